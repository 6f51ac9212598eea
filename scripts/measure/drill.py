"""One drill: the cluster and the target that it needs, `skiff drill run`, and the rows of its reports."""

import json
import subprocess

from processes import wait_for
from skiff import DEPLOYMENTS, PODS, deployment, node_ready, ready, service, status

SERVICES = "/api/v1/namespaces/default/services"
TARGET = f"{PODS}?labelSelector=app%3Dweb"
NODES = 3
REPLICAS = 3
# Longer than any drill takes here.
PATIENCE = 300


def serve_web(server, images):
    """Starts the cluster, and makes the Deployment and the Service that drills are pointed at."""
    server.start()
    api = server.api()
    wait_for(lambda: len(api.get("/api/v1/nodes")["items"]) == NODES, interval=0.01)
    node_ready(api)
    server.load(images)
    api.create(DEPLOYMENTS, mobile("web", REPLICAS))
    api.create(SERVICES, service("web", {"app": "web"}))


def mobile(name, replicas):
    """A deployment whose pods leave a lost node at once, and have a limit of memory to come near to."""
    made = deployment(name, replicas)
    pod = made["spec"]["template"]["spec"]
    # The image was imported, and is in no registry.
    pod["containers"][0]["imagePullPolicy"] = "IfNotPresent"
    pod["containers"][0]["resources"] = {"limits": {"memory": "64Mi"}}
    pod["tolerations"] = [
        {"key": f"node.kubernetes.io/{lost}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}
        for lost in ("not-ready", "unreachable")
    ]
    return made


def measure(report, server, drill, options, goal, runs):
    """The same drill several times, each on a cluster that is whole."""
    reports = []
    for run in range(runs):
        fresh(server)
        with Running(server, drill, [*options, "--seed", str(run)]) as running:
            said = running.report()
        if said.get("result") in ("Passed", "Failed"):
            reports.append(said)
        else:
            # What this host can't do is refused, and is so the next time too.
            report.note("skiff", drill, said.get("message") or "no report")
            return
    aim = f" (goal {goal * 1000:g} ms)" if goal else ""
    report.add("skiff", f"{drill}: to detect", "ms", [in_ms(r["timeToDetect"]) for r in reports])
    report.add("skiff", f"{drill}: to recover{aim}", "ms", [in_ms(r["timeToRecover"]) for r in reports])
    consequences(report, drill, reports)
    writes = [r["writes"] for r in reports if r["writes"]]
    if writes:
        report.add("skiff", f"{drill}: acknowledged writes lost (goal 0)", "writes", [w["lost"] for w in writes])
        report.add("skiff", f"{drill}: longest time without a write", "ms", [in_ms(w["longestGap"]) for w in writes])


def consequences(report, drill, reports):
    """What the target's users saw, and whether it ever recovered."""
    lost = [r for r in reports if not r["recovered"]]
    if lost:
        report.note("skiff", f"{drill}: to recover", f"{len(lost)} of {len(reports)} did not: {lost[0]['message']}")
    requests = [r["requests"] for r in reports if r["requests"]]
    if requests:
        sent = sum(r["sent"] for r in requests) // len(requests)
        report.add("skiff", f"{drill}: failed requests", f"of {sent}", [r["failed"] for r in requests])


def in_ms(seconds):
    return None if seconds is None else seconds * 1000


def fresh(server):
    """Every node is Ready, and so is every pod of the target, none of which ever crashed: a second crash of the same
    container would wait for its back-off. The API may have been away: it is asked over a new connection."""
    api = server.api()

    def is_whole():
        nodes = api.get("/api/v1/nodes")["items"]
        pods = api.get(TARGET)["items"]
        return len(nodes) == NODES and all(map(ready, nodes)) and len(pods) == REPLICAS and all(map(ready, pods)) and pods

    for pod in wait_for(is_whole, interval=0.1):
        if status(pod).get("restartCount"):
            api.delete(f"{PODS}/{pod['metadata']['name']}")
    wait_for(lambda: (pods := is_whole()) and not any(status(pod).get("restartCount") for pod in pods), interval=0.1)


class Running:
    """`skiff drill run` at the deployment. What is left of it ends with the block."""

    def __init__(self, server, drill, options):
        self.process = subprocess.Popen(
            [server.binary, "drill", "run", drill, "deployment/web", "-o", "json", "--kubeconfig", server.kubeconfig, *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def report(self):
        """What it prints at its end; where it prints no report, its last words as the message."""
        out, err = self.process.communicate(timeout=PATIENCE)
        try:
            return json.loads(out)
        except ValueError:
            lines = err.strip().splitlines() or [f"ended with {self.process.returncode}"]
            return {"message": lines[-1]}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
