"""Skiff itself: a server on a scratch data directory, measured over its API by a watcher."""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import time

import processes
from api import Api
from processes import milliseconds, wait_for

PODS = "/api/v1/namespaces/default/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
SERVE = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"


class Server:
    """`skiff up` on a data directory, with a node on this host or several in namespaces of their own."""

    # What the nodes' agents may do: nothing but what is measured asks a registry.
    pulling = ["--offline"]

    def __init__(self, binary, kubectl, data_dir, nodes=0, log=None):
        self.binary, self.kubectl, self.data_dir, self.nodes = binary, kubectl, data_dir, nodes
        self.environment = {**os.environ, "RUST_LOG": log} if log else None
        self.kubeconfig = f"{data_dir}/kubeconfig"
        self.port = _free_port()
        self.process = None

    def start(self):
        """Milliseconds from the start of the process to its `ready` line."""
        log = open(f"{self.data_dir}.log", "ab")  # noqa: SIM115 (the process keeps it)
        begin = time.perf_counter()
        self.process = subprocess.Popen(
            [self.binary, *self.role(), "--data-dir", self.data_dir, "--listen", f"127.0.0.1:{self.port}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=self.environment,
        )  # fmt: skip
        line = self.process.stdout.readline()
        took = milliseconds(begin)
        log.close()
        if not line.startswith(b"ready"):
            raise RuntimeError(f"skiff did not become ready: see {self.data_dir}.log")
        return took

    def role(self):
        return ["up", *self.pulling, *(["--nodes", str(self.nodes)] if self.nodes else [])]

    def api(self):
        return Api(self.kubectl, self.kubeconfig)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def skiff(self, *args):
        subprocess.run([self.binary, *args], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def load(self, images):
        """Milliseconds to import each image."""
        took = {}
        for image in ("busybox", "nginx"):
            begin = time.perf_counter()
            for data_dir in map(self.node_dir, self.node_names()) if self.nodes else [self.data_dir]:
                self.skiff("image", "import", "--data-dir", data_dir, f"{images}/{image}.tar")
            took[image] = milliseconds(begin)
        return took

    def down(self, purge=True):
        if self.process:
            self.kill()
        self.skiff("down", "--data-dir", self.data_dir, *(["--purge"] if purge else []))

    def node_names(self):
        return [f"node-{number}" for number in range(1, self.nodes + 1)]

    def node_dir(self, node):
        return f"{self.data_dir}/nodes/{node}"

    def namespace(self, node):
        """Where a node's network namespace is pinned."""
        return f"/run/skiff/{self.identity()}/nodes/{node}.net"

    def identity(self):
        """What the node's names on the host carry: docs/architecture.md."""
        return hashlib.sha256(os.path.realpath(self.data_dir).encode()).hexdigest()[:8]

    def supervisors(self):
        """Skiff's own processes beside the server: all in the cgroup `shims`, in whichever hierarchy."""
        pids = set()
        for hierarchy in processes.hierarchies():
            for directory, _, _ in os.walk(f"{hierarchy}/skiff-{self.identity()}/shims"):
                pids.update(processes.cgroup_pids(directory))
        return pids - {self.process.pid if self.process else 0}

    def pss_kb(self):
        """Memory of the server, and of every other process of Skiff's."""
        others = [processes.pss_kb(pid) or 0 for pid in self.supervisors()]
        return processes.pss_kb(self.process.pid), others

    def cpu_share(self, seconds):
        """Hundredths of one core that all of Skiff's processes used over some seconds."""
        pids = [self.process.pid, *self.supervisors()]
        before = sum(processes.cpu_seconds(pid) for pid in pids)
        time.sleep(seconds)
        return 100 * (sum(processes.cpu_seconds(pid) for pid in pids) - before) / seconds


def _free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ready(pod):
    if pod["metadata"].get("deletionTimestamp"):
        return False
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", []))


def status(pod):
    return (pod.get("status", {}).get("containerStatuses") or [{}])[0]


def pod_object(name):
    container = {"name": "main", "image": "busybox", "command": ["sh", "-c", SERVE]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container]},
    }


def service(name, selector=None):
    spec = {"ports": [{"port": 80, "targetPort": 80}]}
    if selector:
        spec["selector"] = selector
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def deployment(name, replicas):
    labels = {"app": name}
    container = {"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


class ReadyPods:
    """Counts the Ready pods of a label as events come."""

    def __init__(self, count):
        self.count, self.names = count, set()

    def __call__(self, kind, pod):
        name = pod["metadata"]["name"]
        if kind != "DELETED" and ready(pod):
            self.names.add(name)
        else:
            self.names.discard(name)
        return len(self.names) == self.count


def measure(report, runs, images, binary, kubectl, scratch):
    report.add("skiff", "size of the binary", "MB", [os.path.getsize(binary) / 1e6])
    starts(report, runs, images, binary, kubectl, scratch)
    server = Server(binary, kubectl, f"{scratch}/measured")
    os.mkdir(server.data_dir)
    try:
        server.start()
        api = server.api()
        took = server.load(images)
        report.add("skiff", "image import, nginx", "ms", [took["nginx"]])
        node_ready(api)
        idle(report, server, "no pods")
        deployments(report, api, server, runs)
        single_pods(report, api, server, runs * 4)
        hundred(report, api, server)
        restart(report, server, runs)
    finally:
        server.down()


def starts(report, runs, images, binary, kubectl, scratch):
    serving, node, three = [], [], []
    for run in range(runs):
        server = Server(binary, kubectl, f"{scratch}/start-{run}")
        os.mkdir(server.data_dir)
        try:
            begin = time.perf_counter()
            serving.append(server.start())
            node_ready(server.api())
            node.append(milliseconds(begin))
            server.load(images)
            server.down(purge=False)
            begin = time.perf_counter()
            server.start()
            api = server.api()
            with api.watch(PODS) as watch:
                api.create(DEPLOYMENTS, deployment("first", 3))
                three.append((watch.until(ReadyPods(3)) - begin) * 1000)
        finally:
            server.down()
    report.add("skiff", "start to the ready line, empty data directory", "ms", serving)
    report.add("skiff", "start to node Ready, empty data directory", "ms", node)
    report.add("skiff", "start to 3 nginx pods Ready, images present", "ms", three)


def node_ready(api):
    def is_ready():
        nodes = api.get("/api/v1/nodes")["items"]
        return nodes and all(ready(node) for node in nodes)

    wait_for(is_ready, interval=0.002)


def idle(report, server, what):
    # The memory of a server that has just started work still falls; a few seconds settle it.
    time.sleep(5)
    own, others = server.pss_kb()
    report.add("skiff", f"memory (PSS) of all processes, {what}", "MB", [(own + sum(others)) / 1024])
    report.add("skiff", f"memory (PSS) of the server, {what}", "MB", [own / 1024])
    if others:
        report.add("skiff", f"memory (PSS) of each supervisor, {what}", "kB", others)
    report.add("skiff", f"CPU, idle, {what}", "% of a core", [server.cpu_share(20)])


def deployments(report, api, server, runs):
    applied, kubectl_took, replaced = [], [], []
    for run in range(runs):
        name = f"web-{run}"
        selector = f"{PODS}?labelSelector=app%3D{name}"
        with api.watch(selector) as watch:
            begin = time.perf_counter()
            api.create(DEPLOYMENTS, deployment(name, 3))
            three = ReadyPods(3)
            applied.append((watch.until(three) - begin) * 1000)
            victim = sorted(three.names)[0]
            begin = time.perf_counter()
            api.delete(f"{PODS}/{victim}")
            # The victim leaves the Ready pods first, then its heir makes them three again.
            watch.until(lambda kind, pod: not three(kind, pod))
            replaced.append((watch.until(three) - begin) * 1000)
        api.delete(f"{DEPLOYMENTS}/{name}", propagationPolicy="Background")
        begin = time.perf_counter()
        command = [server.kubectl, "--kubeconfig", server.kubeconfig, "get", "--raw", "/version"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        kubectl_took.append(milliseconds(begin))
        wait_for(lambda path=selector: not api.get(path)["items"], interval=0.01)
    report.add("skiff", "Deployment created to 3/3 nginx Ready", "ms", applied)
    report.add("skiff", "deleted pod to its replacement Ready", "ms", replaced)
    report.add("skiff", "(kubectl itself: one GET)", "ms", kubectl_took)


def single_pods(report, api, server, runs):
    running, process, seen, gone = [], [], [], []
    for run in range(runs):
        name = f"single-{run}"
        with api.watch(f"{PODS}?fieldSelector=metadata.name%3D{name}") as watch:
            begin = time.perf_counter()
            pod = api.create(PODS, pod_object(name))
            running.append((watch.until(lambda _, pod: pod.get("status", {}).get("phase") == "Running") - begin) * 1000)
            cgroup = wait_for(lambda uid=pod["metadata"]["uid"]: pod_cgroup(server, uid))
            first = wait_for(lambda path=cgroup: container_pids(path))
            begin = time.perf_counter()
            os.kill(min(first), signal.SIGKILL)
            wait_for(lambda path=cgroup, old=first: container_pids(path) - old)
            process.append(milliseconds(begin))
            seen.append((watch.until(is_restarted) - begin) * 1000)
            begin = time.perf_counter()
            api.delete(f"{PODS}/{name}")
            gone.append((watch.until(lambda kind, _: kind == "DELETED") - begin) * 1000)
    report.add("skiff", "pod created to Running, seen by a watcher", "ms", running)
    report.add("skiff", "kill -9 to a new process", "ms", process)
    report.add("skiff", "kill -9 to Running in the API", "ms", seen)
    report.add("skiff", "pod deleted to gone", "ms", gone)


def is_restarted(_, pod):
    return status(pod).get("restartCount") == 1 and "running" in status(pod).get("state", {})


def pod_cgroup(server, uid):
    root = f"{processes.memory_hierarchy()}/skiff-{server.identity()}"
    for qos in ("besteffort", "burstable", "guaranteed"):
        if os.path.isdir(f"{root}/{qos}/pod{uid}"):
            return f"{root}/{qos}/pod{uid}"
    return None


def container_pids(cgroup):
    """The processes of all containers of a pod."""
    pids = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(cgroup):
            pids.update(processes.cgroup_pids(f"{cgroup}/{name}"))
    return pids


def hundred(report, api, server):
    with api.watch(PODS) as watch:
        begin = time.perf_counter()
        api.create(DEPLOYMENTS, deployment("hundred", 100))
        report.add("skiff", "100 nginx pods, all Ready", "ms", [(watch.until(ReadyPods(100), 300) - begin) * 1000])
    idle(report, server, "100 pods")


def restart(report, server, runs):
    """kill -9 of the server beside 100 pods, and what the next one needs until it serves and has them back."""
    serving, adopted = [], []
    for _ in range(runs):
        server.kill()
        begin = time.perf_counter()
        serving.append(server.start())
        api = server.api()
        nodes = "/api/v1/nodes"
        wait_for(lambda api=api: sum(ready(pod) for pod in api.get(PODS)["items"]) == 100 and ready(api.get(nodes)["items"][0]))
        adopted.append(milliseconds(begin))
    report.add("skiff", "kill -9 of the server to serving again, 100 pods", "ms", serving)
    report.add("skiff", "kill -9 of the server to 100 pods and node Ready", "ms", adopted)
