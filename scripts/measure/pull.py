"""Pulling an image of about 100 MB (gzip, three layers) from a registry on loopback, beside podman and containerd.

All of them fetch, check and unpack. Skiff also has all of it on the disk when it returns, so that each peer has a
row of its own time, and one with `sync -f` after it. Each pull is into an empty store. `ctr` only asks containerd, which is
started for each pull with directories of its own: the memory is the daemon's.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time

import podman
import unpack
from namespaces import answers
from processes import milliseconds, wait_for

REGISTRY = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "{address}:{port}", secret: measure}}
"""
CONTAINERD = """version = 2
root = "{scratch}/root"
state = "{scratch}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{scratch}/socket"
"""


def measure(report, runs, skiff, cache):
    for program in ("docker-registry", "skopeo"):
        if not shutil.which(program):
            report.note("pull", "everything", f"{program} is not installed")
            return
    layout = unpack.prepare(cache)
    with tempfile.TemporaryDirectory(prefix="measure-pull-", dir=cache) as scratch, registry(scratch) as host:
        name = f"{host}/layers:1"
        run("skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:{unpack.NAME}", f"docker://{name}")
        series = Series(report, runs, scratch)
        series.add("skiff", "image pull (kept, checked, unpacked, on the disk)", Skiff(skiff, name), durable=True)
        series.add("podman", "pull", Podman(name))
        series.add("ctr", "image pull", Containerd(name))


class Series:
    """Pulls again and again, each time into an empty store under `scratch`."""

    def __init__(self, report, runs, scratch):
        self.report, self.runs, self.scratch = report, runs, scratch

    def add(self, subject, what, puller, durable=False):
        if not shutil.which(puller.program):
            self.report.note(subject, what, f"{puller.program} is not installed")
            return
        times, synced, memory = [], [], []
        for number in range(self.runs):
            scratch = f"{self.scratch}/{subject}-{number}"
            os.mkdir(scratch)
            with puller.store(scratch) as pull:
                # What the last run left to be written would slow this one down.
                run("sync", "-f", self.scratch)
                begin = time.perf_counter()
                kilobytes = pull()
                times.append(milliseconds(begin))
                run("sync", "-f", self.scratch)
                synced.append(milliseconds(begin))
                memory.append(kilobytes())
            shutil.rmtree(scratch)
        self.report.add(subject, what, "ms", times)
        if not durable:
            self.report.add(subject, f"{what}, and `sync -f`", "ms", synced)
        self.report.add(subject, f"{what}: memory at most", "kB", memory)


class Skiff:
    def __init__(self, binary, name):
        self.program, self.name = binary, name

    @contextlib.contextmanager
    def store(self, scratch):
        command = [self.program, "image", "pull", "--quiet", "--data-dir", f"{scratch}/data", self.name]

        def pull():
            peak = unpack.peak_kb(command)
            return lambda: peak

        yield pull


class Podman:
    program = "podman"

    def __init__(self, name):
        self.name = name

    @contextlib.contextmanager
    def store(self, scratch):
        # It refuses a run directory whose name is longer than 50 characters.
        with tempfile.TemporaryDirectory(prefix="measure-", dir="/tmp") as runroot:
            own = podman.Podman(scratch, runroot)

            def pull():
                os.environ.update(own.environment)
                peak = unpack.peak_kb([*own.base, "pull", "--quiet", "--tls-verify=false", self.name])
                return lambda: peak

            try:
                yield pull
            finally:
                own("rmi", "--all", "--force", check=False)
                # Its storage is bound to itself.
                subprocess.run(["umount", "--quiet", f"{scratch}/root/overlay"], stderr=subprocess.DEVNULL, check=False)


class Containerd:
    program = "containerd"

    def __init__(self, name):
        self.name = name

    @contextlib.contextmanager
    def store(self, scratch):
        with open(f"{scratch}/config.toml", "w", encoding="utf-8") as file:
            file.write(CONTAINERD.format(scratch=scratch))
        ctr = ["ctr", "--address", f"{scratch}/socket"]
        daemon = subprocess.Popen(
            ["containerd", "--config", f"{scratch}/config.toml"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def pull():
            run(*ctr, "image", "pull", "--plain-http", self.name)
            return lambda: high_water_kb(daemon.pid)

        try:
            wait_for(lambda: succeeds(*ctr, "version"))
            yield pull
        finally:
            daemon.terminate()
            daemon.wait()


@contextlib.contextmanager
def registry(scratch, address="127.0.0.1"):
    """An empty registry on a free port of an address of this host."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind((address, 0))
        port = listener.getsockname()[1]
    config = f"{scratch}/registry.yml"
    with open(config, "w", encoding="utf-8") as file:
        file.write(REGISTRY.format(root=f"{scratch}/registry", address=address, port=port))
    server = subprocess.Popen(
        ["docker-registry", "serve", config],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: answers((address, port)))
        yield f"{address}:{port}"
    finally:
        server.terminate()
        server.wait()


def high_water_kb(pid):
    """The most memory (resident) that a process ever had."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def succeeds(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
