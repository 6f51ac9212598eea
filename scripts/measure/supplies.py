"""Drills of what nodes depend on: registries and disks. The nodes of this cluster ask a registry, and have small disks
of their own, so that nothing else on the host is touched."""

import contextlib
import datetime
import os
import shutil
import subprocess
import time

import drill
import pull
from processes import wait_for
from skiff import PODS, Server, ready, status

DRILLS = "/apis/skiff.dev/v1/drills"
# Room for the images, and for little else.
DISK = "64m"
# A node looks at its disk when it writes its status: it needs time to find it full.
FULL = ["--duration", "15s"]
# A pull tries some more times by itself for a few seconds, before it is given up.
OUTAGE = ["--duration", "12s"]


class Supplied(Server):
    """Its nodes fetch images."""

    pulling = []  # noqa: RUF012


def measure(report, runs, images, binary, kubectl, scratch):
    server = Supplied(binary, kubectl, f"{scratch}/supplies", nodes=drill.NODES)
    # Where hosts.toml files tell of registries; it has to be there when the nodes start.
    os.makedirs(f"{server.data_dir}/registries.d")
    try:
        with disks(server):
            drill.serve_web(server, images)
            drill.measure(report, server, "disk-full", FULL, None, runs)
            registry_outage(report, server, images, runs)
    finally:
        server.down()


@contextlib.contextmanager
def disks(server):
    """A small file system in memory for each node's data. The cluster is taken down before they go."""
    with contextlib.ExitStack() as stack:
        for node in map(server.node_dir, server.node_names()):
            os.makedirs(node)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "skiff-measure", node], check=True)
            stack.callback(subprocess.run, ["umount", node], check=True)
        stack.callback(server.down, purge=False)
        yield


def registry_outage(report, server, images, runs):
    """A drill beside which a pod asks for an image that is to be looked up in a registry."""
    what = "registry-outage"
    for program in ("docker-registry", "skopeo"):
        if not shutil.which(program):
            report.note("skiff", what, f"{program} is not installed")
            return
    # The nodes reach the host where they reach the API.
    endpoints = server.api().get("/api/v1/namespaces/default/endpoints/kubernetes")
    address = endpoints["subsets"][0]["addresses"][0]["ip"]
    with pull.registry(os.path.dirname(server.data_dir), address) as host:
        serve_nginx(server, images, host)
        outages = [outage(server, f"{host}/nginx:1", run) for run in range(runs)]
    detected, recovered, reports = zip(*outages, strict=True)
    report.add("skiff", f"{what}: to detect (pod created to ErrImagePull)", "ms", detected)
    report.add("skiff", f"{what}: to recover (injected to that pod Ready)", "ms", recovered)
    drill.consequences(report, what, reports)


def serve_nginx(server, images, host):
    folder = f"{server.data_dir}/registries.d/{host}"
    os.mkdir(folder)
    with open(f"{folder}/hosts.toml", "w", encoding="utf-8") as file:
        file.write(f'server = "http://{host}"\n')
    archive, name = f"oci-archive:{images}/nginx.tar", f"docker://{host}/nginx:1"
    pull.run("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", archive, name)


def outage(server, image, run):
    """Milliseconds until a pod that comes during an outage is known to have no image, and until it is Ready; the report."""
    drill.fresh(server)
    api = server.api()
    pod = f"pulls-{run}"
    with (
        api.watch(DRILLS) as drills,
        api.watch(f"{PODS}?fieldSelector=metadata.name%3D{pod}") as watch,
        drill.Running(server, "registry-outage", [*OUTAGE, "--seed", str(run)]) as running,
    ):
        injected, node = under_way(drills)
        begin = time.perf_counter()
        api.create(PODS, pulling(pod, image, node))
        detected = watch.until(has_no_image)
        recovered = watch.until(lambda _, pod: ready(pod))
        said = running.report()
    api.delete(f"{PODS}/{pod}")
    wait_for(lambda: api.get(f"{PODS}/{pod}", missing_is_none=True) is None, interval=0.01)
    return (detected - begin) * 1000, (recovered - injected) * 1000, said


def under_way(drills):
    """When the drill that begins was injected, by this process's clock, and which node it hit."""
    seen = []

    def injected(_, found):
        seen[:] = [found.get("status") or {}]
        return seen[0].get("injectedAt") and seen[0].get("phase") == "Running"

    drills.until(injected)
    at = datetime.datetime.fromisoformat(seen[0]["injectedAt"]).timestamp()
    return time.perf_counter() - (time.time() - at), seen[0]["victims"][0].removeprefix("node/")


def has_no_image(_, pod):
    return status(pod).get("state", {}).get("waiting", {}).get("reason") == "ErrImagePull"


def pulling(name, image, node):
    """A pod for which its node asks the registry whether the image is still the same."""
    container = {"name": "main", "image": image, "imagePullPolicy": "Always"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [container]},
    }
