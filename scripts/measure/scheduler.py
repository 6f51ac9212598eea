"""The scheduler: pods a second at a thousand nodes, of which nothing is real but their objects.

The control plane is the whole one, `skiff server`: the replicas are made by its controller, every binding is a durable
write through its API, and the nodes' leases are renewed as agents would. Bindings are counted by a watcher of the pods that have a
node, which need not parse them.
"""

import contextlib
import datetime
import itertools
import os
import threading
import time

from api import in_parallel
from processes import wait_for
from skiff import DEPLOYMENTS, PODS, Server, deployment

NODES = 1000
REPLICAS = 3000
# Seconds in which every lease is renewed, as the agents do.
RENEWED = 5
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
BOUND = f"{PODS}?fieldSelector=spec.nodeName%21%3D"
READY = [
    {"type": kind, "status": status, "reason": "Simulated", "message": ""}
    for kind, status in (("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False"))
]


class ControlPlane(Server):
    """`skiff server`: no node of its own."""

    def role(self):
        return ["server"]


def measure(report, runs, binary, kubectl, scratch):
    server = ControlPlane(binary, kubectl, f"{scratch}/scheduler")
    os.mkdir(server.data_dir)
    try:
        server.start()
        api = server.api()
        nodes = in_parallel(api, range(NODES), register)
        with renewed(api, nodes):
            wait_for(lambda: all_open(api), interval=0.1)
            rates, took = zip(*[replicas(api, f"set-{run}") for run in range(runs)], strict=True)
        report.add("skiff", f"pods bound a second, {NODES} nodes (goal 5000)", "1/s", rates)
        report.add("skiff", f"Deployment of {REPLICAS} created to all bound, {NODES} nodes", "ms", took)
    except TimeoutError as error:
        report.note("skiff", f"pods bound a second, {NODES} nodes", str(error))
    finally:
        server.down()


def register(api, number):
    """Makes a node as its agent would; gives its name."""
    name = f"simulated-{number}"
    room = {"cpu": "32", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "110"}
    api.create("/api/v1/nodes", {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"capacity": room, "allocatable": room, "conditions": READY},
    })  # fmt: skip
    api.create(LEASES, lease(name))
    return name


def lease(name):
    now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
    return {
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now},
    }  # fmt: skip


@contextlib.contextmanager
def renewed(api, nodes):
    """Renews each node's lease again and again, evenly over the time, so that they stay Ready."""
    over = threading.Event()
    own = api.another()

    def renew():
        due = time.monotonic()
        for name in itertools.cycle(nodes):
            due += RENEWED / len(nodes)
            if over.wait(max(0, due - time.monotonic())):
                return
            own.replace(f"{LEASES}/{name}", lease(name))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def all_open(api):
    """No node is tainted any more."""
    nodes = api.get("/api/v1/nodes")["items"]
    return len(nodes) == NODES and not any(node.get("spec", {}).get("taints") for node in nodes)


def replicas(api, name):
    """Bindings a second, from the first to the last, and milliseconds from the Deployment to the last one."""
    # Its pods end at once: nothing runs them.
    made = deployment(name, REPLICAS)
    made["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 0
    with api.watch(BOUND) as watch:
        begin = time.perf_counter()
        api.create(DEPLOYMENTS, made)
        moments = watch.moments(REPLICAS)
    rate = (REPLICAS - 1) / (moments[-1] - moments[0])
    api.delete(f"{DEPLOYMENTS}/{name}", propagationPolicy="Background")
    wait_for(lambda: not api.get(PODS)["items"], seconds=120, interval=0.2)
    return rate, (moments[-1] - begin) * 1000
