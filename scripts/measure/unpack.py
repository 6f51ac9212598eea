"""Taking in an image of about 100 MB (gzip) in three layers, beside umoci, skopeo and tar.

The layers are files of this host (programs, libraries, data), packed once and kept under target/. What Skiff
does is more than the others do: it keeps the compressed layers, checks every digest, unpacks, and has all of it
on the disk when it returns. So each peer has a row of its own time, and one with `sync -f` after it.
"""

import gzip
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time

from processes import milliseconds

NAME = "example.org/measure/layers:1"
LAYERS = 3
# Of each layer, before it is packed; about half of it after.
LAYER_BYTES = 60 << 20
SOURCES = ["/usr/lib", "/usr/bin", "/usr/share", "/usr/sbin"]
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def measure(report, runs, skiff, cache):
    layout = prepare(cache)
    blobs = sum(entry.stat().st_size for entry in os.scandir(f"{layout}/blobs/sha256"))
    report.add("images", "size of the measured image's blobs", "MB", [blobs / 1e6])
    with tempfile.TemporaryDirectory(prefix="measure-unpack-", dir=cache) as scratch:
        target = f"{scratch}/target"
        series = Series(report, runs, scratch, target)
        name = ["--name", NAME]
        series.add("skiff", "image import (kept, checked, unpacked, on the disk)", [skiff, "image", "--data-dir", target, "import", layout, *name], durable=True)
        series.add("umoci", "raw unpack", ["umoci", "raw", "unpack", "--image", f"{layout}:{NAME}", target])
        series.add("skopeo", "copy to a directory (nothing unpacked)", ["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:{NAME}", f"dir:{target}"])
        layers = " && ".join(f"tar xzf {layout}/blobs/sha256/{digest} -C {target}" for digest in layer_digests(layout))
        series.add("tar", "xzf of each layer", ["sh", "-c", f"mkdir {target} && {layers}"])


class Series:
    """Runs a command again and again into an empty place."""

    def __init__(self, report, runs, scratch, target):
        self.report, self.runs, self.scratch, self.target = report, runs, scratch, target

    def add(self, subject, what, command, durable=False):
        if not shutil.which(command[0]):
            self.report.note(subject, what, f"{command[0]} is not installed")
            return
        times, synced, memory = [], [], []
        for _ in range(self.runs):
            # What the last run left to be written would slow this one down.
            subprocess.run(["sync", "-f", self.scratch], check=True)
            begin = time.perf_counter()
            memory.append(peak_kb(command))
            times.append(milliseconds(begin))
            subprocess.run(["sync", "-f", self.scratch], check=True)
            synced.append(milliseconds(begin))
            shutil.rmtree(self.target)
        self.report.add(subject, what, "ms", times)
        if not durable:
            self.report.add(subject, f"{what}, and `sync -f`", "ms", synced)
        self.report.add(subject, f"{what}: memory at most", "kB", memory)


# A process begins with the high-water mark of the one that starts it. This one is large: what it packs passes through its
# memory; so a small one starts the command.
LAUNCHER = """
import os, sys
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_kb(command):
    """Runs a command; the most memory (resident) that it, or one of its children, had."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER]
    done = subprocess.run([*launcher, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    # The command may have printed something before.
    return int(done.stdout.split()[-1])


def prepare(cache):
    """The image as an OCI layout; made by the first run."""
    layout = f"{cache}/measured-image"
    if os.path.exists(f"{layout}/index.json"):
        return layout
    shutil.rmtree(layout, ignore_errors=True)
    os.makedirs(f"{layout}/blobs/sha256")
    files = host_files()
    packed = [pack(layout, files) for _ in range(LAYERS)]
    config = blob(layout, json.dumps({
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for diff_id, _ in packed]},
    }).encode())  # fmt: skip
    media = "application/vnd.oci.image"
    manifest = blob(layout, json.dumps({
        "schemaVersion": 2,
        "mediaType": f"{media}.manifest.v1+json",
        "config": {"mediaType": f"{media}.config.v1+json", **config},
        "layers": [{"mediaType": f"{media}.layer.v1.tar+gzip", **layer} for _, layer in packed],
    }).encode())  # fmt: skip
    named = {"annotations": {"org.opencontainers.image.ref.name": NAME}}
    with open(f"{layout}/oci-layout", "w", encoding="ascii") as file:
        file.write('{"imageLayoutVersion":"1.0.0"}')
    with open(f"{layout}/index.json", "w", encoding="ascii") as file:
        json.dump({"schemaVersion": 2, "manifests": [{"mediaType": f"{media}.manifest.v1+json", **manifest, **named}]}, file)
    return layout


def host_files():
    """Regular files and links of the host, always in the same order."""
    for source in SOURCES:
        for directory, directories, names in os.walk(source):
            directories.sort()
            for name in sorted(names):
                path = os.path.join(directory, name)
                if os.path.islink(path) or os.path.isfile(path):
                    yield path


def pack(layout, files):
    """The next layer of files: its diff id, and its blob's descriptor."""
    part = f"{layout}/layer.tar"
    size = 0
    with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in files:
            tar.add(path, recursive=False)
            size += os.lstat(path).st_size
            if size >= LAYER_BYTES:
                break
    with open(part, "rb") as file:
        plain = file.read()
    os.remove(part)
    return f"sha256:{hashlib.sha256(plain).hexdigest()}", blob(layout, gzip.compress(plain, 6, mtime=0))


def blob(layout, content):
    digest = hashlib.sha256(content).hexdigest()
    with open(f"{layout}/blobs/sha256/{digest}", "wb") as file:
        file.write(content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


def layer_digests(layout):
    def load(digest):
        with open(f"{layout}/blobs/sha256/{digest.partition(':')[2]}", "rb") as file:
            return json.load(file)

    with open(f"{layout}/index.json", "rb") as file:
        manifest = load(json.load(file)["manifests"][0]["digest"])
    return [layer["digest"].partition(":")[2] for layer in manifest["layers"]]
