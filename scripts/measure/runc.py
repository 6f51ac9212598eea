"""The same steps with runc: one container, no network, no image handling."""

import json
import os
import shutil
import subprocess
import tempfile
import time

from processes import milliseconds


def measure(report, runs):
    if not shutil.which("runc"):
        report.note("runc", "everything", "runc is not installed")
        return
    with tempfile.TemporaryDirectory(prefix="measure-runc-") as scratch:
        runc = ["runc", "--root", f"{scratch}/state"]
        bundle(scratch)
        started, deleted = [], []
        for run in range(runs):
            name = f"measure-{os.getpid()}-{run}"
            begin = time.perf_counter()
            subprocess.run([*runc, "run", "--detach", "--bundle", scratch, name], check=True, **quiet())
            started.append(milliseconds(begin))
            begin = time.perf_counter()
            subprocess.run([*runc, "delete", "--force", name], check=True, **quiet())
            deleted.append(milliseconds(begin))
        report.add("runc", "container created and started (`run -d` returns)", "ms", started)
        report.add("runc", "container deleted (`delete -f` returns)", "ms", deleted)


def quiet():
    return {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def bundle(directory):
    """A bundle of static busybox, asleep."""
    os.makedirs(f"{directory}/rootfs/bin")
    shutil.copy("/bin/busybox", f"{directory}/rootfs/bin/sleep")
    subprocess.run(["runc", "spec", "--bundle", directory], check=True)
    with open(f"{directory}/config.json", encoding="utf-8") as file:
        spec = json.load(file)
    spec["process"]["terminal"] = False
    spec["process"]["args"] = ["/bin/sleep", "100000"]
    with open(f"{directory}/config.json", "w", encoding="utf-8") as file:
        json.dump(spec, file)
