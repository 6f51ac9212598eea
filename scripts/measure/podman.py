"""The same steps with podman, from the same image archives, in a storage of its own.

Containers get no network: podman's needs programs that a bare host lacks, and leaving it out is in podman's favour.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time

from processes import hierarchies, milliseconds, named, pss_kb, wait_for

POD = """apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  hostNetwork: true
  containers:
  - name: main
    image: {image}
    imagePullPolicy: Never
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"]
"""
SERVE = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"


# The defaults raise limits, which a host without CAP_SYS_RESOURCE refuses.
CONFIG = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"""


class Podman:
    def __init__(self, scratch, runroot=None):
        with open(f"{scratch}/containers.conf", "w", encoding="utf-8") as file:
            file.write(CONFIG)
        self.environment = {**os.environ, "CONTAINERS_CONF": f"{scratch}/containers.conf"}
        self.base = [
            "podman", "--root", f"{scratch}/root", "--runroot", runroot or f"{scratch}/run", "--tmpdir", f"{scratch}/tmp",
            "--cgroup-manager", "cgroupfs", "--runtime", "runc", "--events-backend", "none",
            "--storage-driver", "overlay",
        ]  # fmt: skip

    def __call__(self, *args, check=True):
        done = subprocess.run(
            [*self.base, *args],
            env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise RuntimeError(f"podman {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def load(self, archive):
        """The name under which the image was loaded."""
        return self("load", "--input", archive).rpartition(": ")[2]

    def run(self, image, *options):
        return self("run", "--detach", "--network", "none", *options, image, "sh", "-c", SERVE)


def measure(report, runs, images):
    if not shutil.which("podman"):
        report.note("podman", "everything", "podman is not installed")
        return
    with tempfile.TemporaryDirectory(prefix="measure-podman-") as scratch:
        podman = Podman(scratch)
        before = parents()
        try:
            image = podman.load(f"{images}/busybox.tar")
            single(report, podman, image, runs)
            killed(report, podman, image, runs)
            play_kube(report, podman, image, runs, scratch)
            hundred(report, podman, image)
        finally:
            podman("rm", "--all", "--force", "--time", "0", check=False)
            podman("pod", "rm", "--all", "--force", check=False)
            podman("system", "reset", "--force", check=False)
            subprocess.run(["umount", f"{scratch}/root/overlay"], stderr=subprocess.DEVNULL, check=False)
            remove_cgroups(before)


def parents():
    """podman's parent cgroup, where it has one."""
    return {path for path in (f"{hierarchy}/libpod_parent" for hierarchy in hierarchies()) if os.path.isdir(path)}


def remove_cgroups(before):
    """Remove the cgroups that podman leaves behind, where there were none before."""

    def gone():
        for parent in parents() - before:
            for directory, _, _ in os.walk(parent, topdown=False):
                # Busy until the last conmon in it has ended.
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
        return not parents() - before

    with contextlib.suppress(TimeoutError):
        wait_for(gone, seconds=10, interval=0.1)


def single(report, podman, image, runs):
    started, stopped, removed = [], [], []
    for _ in range(runs):
        begin = time.perf_counter()
        container = podman.run(image)
        started.append(milliseconds(begin))
        begin = time.perf_counter()
        podman("stop", container)
        podman("rm", container)
        stopped.append(milliseconds(begin))
        container = podman.run(image)
        begin = time.perf_counter()
        podman("rm", "--force", "--time", "0", container)
        removed.append(milliseconds(begin))
    report.add("podman", "container created and started (`run -d` returns)", "ms", started)
    report.add("podman", "container stopped and removed (`stop`, `rm`)", "ms", stopped)
    report.add("podman", "container removed by force (`rm -f -t 0`)", "ms", removed)


def killed(report, podman, image, runs):
    """kill -9 of the main process of a container with `--restart=always`, until the next one is there."""
    restarted = []
    for _ in range(runs):
        container = podman.run(image, "--restart", "always")
        pid_file = podman("inspect", "--format", "{{.PidFile}}", container)

        def pid(path=pid_file):
            try:
                with open(path, encoding="ascii") as file:
                    return int(file.read())
            except (OSError, ValueError):
                return None

        first = wait_for(pid)
        begin = time.perf_counter()
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: pid() not in (None, first) and os.path.exists(f"/proc/{pid()}"))
        restarted.append(milliseconds(begin))
        podman("rm", "--force", "--time", "0", container)
    report.add("podman", "kill -9 to a new process", "ms", restarted)


def play_kube(report, podman, image, runs, scratch):
    """Three pods of one manifest: podman runs one replica of a Deployment, so they are pods here."""
    manifest = f"{scratch}/three.yaml"
    with open(manifest, "w", encoding="utf-8") as file:
        file.write("---\n".join(POD.format(name=f"measure-{n}", image=image) for n in range(3)))
    played, taken_down = [], []
    try:
        for _ in range(runs):
            begin = time.perf_counter()
            podman("play", "kube", manifest)
            played.append(milliseconds(begin))
            begin = time.perf_counter()
            podman("play", "kube", "--down", manifest)
            taken_down.append(milliseconds(begin))
    except RuntimeError as error:
        report.note("podman", "three pods (`play kube`)", str(error))
        return
    report.add("podman", "three pods (`play kube` returns)", "ms", played)
    report.add("podman", "three pods gone (`play kube --down` returns)", "ms", taken_down)


def hundred(report, podman, image):
    before = set(named("conmon"))
    begin = time.perf_counter()
    for _ in range(100):
        podman.run(image)
    report.add("podman", "100 containers, one after the other", "ms", [milliseconds(begin)])
    monitors = [pss_kb(pid) for pid in set(named("conmon")) - before]
    monitors = [kb for kb in monitors if kb]
    report.add("podman", "memory (PSS) of each conmon, of 100", "kB", monitors)
