"""Drills: the time to detect and to recover from each failure, as `skiff drill run` reports it on a 3-node cluster."""

import json
import os
import subprocess

from processes import wait_for
from skiff import PODS, Server, deployment, node_ready, ready

SERVICES = "/api/v1/namespaces/default/services"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
NODES = 3
REPLICAS = 3
# How long faults last that only end when they are undone: the recovery counts from the injection on.
LASTS = ["--duration", "3s"]

# Each drill with its options, and what docs say is to be reached (seconds to recover; None: nothing was said).
DRILLS = [
    ("container-kill", [], 0.05),
    ("container-oom", [], None),
    ("container-hang", LASTS, None),
    ("pod-delete", [], 0.1),
    ("pod-evict", [], None),
    ("node-drain", LASTS, None),
    # Its pods tolerate the loss of a node for no time at all.
    ("node-crash", LASTS, 1.5),
    # Longer than the grace period of a node that falls silent.
    ("node-partition", ["--duration", "15s"], None),
    ("pod-partition", LASTS, None),
    ("dns-outage", LASTS, None),
    ("registry-outage", LASTS, None),
    ("disk-full", LASTS, None),
    ("cpu-stress", LASTS, None),
    ("memory-pressure", LASTS, None),
    ("packet-loss", LASTS, None),
    ("latency", LASTS, None),
    ("agent-restart", [], None),
    ("controlplane-restart", [], None),
    ("controlplane-kill", [], 0.5),
]
# Longer than any drill takes here.
PATIENCE = 300


def measure(report, runs, images, binary, kubectl, scratch):
    server = Server(binary, kubectl, f"{scratch}/drills", nodes=NODES)
    os.mkdir(server.data_dir)
    try:
        server.start()
        api = server.api()
        wait_for(lambda: len(api.get("/api/v1/nodes")["items"]) == NODES, interval=0.01)
        node_ready(api)
        server.load(images)
        api.create(DEPLOYMENTS, mobile("web", REPLICAS))
        api.create(SERVICES, service("web"))
        for drill, options, goal in DRILLS:
            one(report, server, drill, options, goal, runs)
    finally:
        server.down()


def mobile(name, replicas):
    """A deployment whose pods leave a lost node at once, and have a limit of memory to come near to."""
    made = deployment(name, replicas)
    pod = made["spec"]["template"]["spec"]
    pod["containers"][0]["resources"] = {"limits": {"memory": "64Mi"}}
    pod["tolerations"] = [
        {"key": f"node.kubernetes.io/{lost}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}
        for lost in ("not-ready", "unreachable")
    ]
    return made


def service(name):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 80}]},
    }


def one(report, server, drill, options, goal, runs):
    """The same drill several times, each on a cluster that is whole."""
    reports = []
    for run in range(runs):
        whole(server)
        said = told(server, drill, [*options, "--seed", str(run)])
        if said.get("result") in ("Passed", "Failed"):
            reports.append(said)
        else:
            # What this host can't do is refused, and is so the next time too.
            report.note("skiff", drill, said.get("message") or "no report")
            return
    aim = f" (goal {goal * 1000:g} ms)" if goal else ""
    report.add("skiff", f"{drill}: to detect", "ms", [in_ms(r["timeToDetect"]) for r in reports])
    report.add("skiff", f"{drill}: to recover{aim}", "ms", [in_ms(r["timeToRecover"]) for r in reports])
    lost = [r for r in reports if not r["recovered"]]
    if lost:
        report.note("skiff", f"{drill}: to recover", f"{len(lost)} of {runs} did not: {lost[0]['message']}")
    requests = [r["requests"] for r in reports if r["requests"]]
    if requests:
        sent = sum(r["sent"] for r in requests) // len(requests)
        report.add("skiff", f"{drill}: failed requests", f"of {sent}", [r["failed"] for r in requests])
    writes = [r["writes"] for r in reports if r["writes"]]
    if writes:
        report.add("skiff", f"{drill}: acknowledged writes lost (goal 0)", "writes", [w["lost"] for w in writes])
        report.add("skiff", f"{drill}: longest time without a write", "ms", [in_ms(w["longestGap"]) for w in writes])


def in_ms(seconds):
    return None if seconds is None else seconds * 1000


def whole(server):
    """Every node and every pod is Ready. The API may have been away: it is asked over a new connection."""
    api = server.api()

    def is_whole():
        nodes = api.get("/api/v1/nodes")["items"]
        pods = api.get(PODS)["items"]
        return len(nodes) == NODES and all(map(ready, nodes)) and len(pods) == REPLICAS and all(map(ready, pods))

    wait_for(is_whole, interval=0.1)


def told(server, drill, options):
    """What `skiff drill run` prints; where it prints no report, its last words as the message."""
    command = [server.binary, "drill", "run", drill, "deployment/web", "-o", "json", "--kubeconfig", server.kubeconfig]
    done = subprocess.run(
        [*command, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    try:
        return json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {"message": lines[-1]}
