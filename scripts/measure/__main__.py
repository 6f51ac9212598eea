"""Measure Skiff beside podman and runc: `scripts/bench` prepares everything and calls this."""

import argparse
import os
import platform
import signal
import sys
import tempfile

import dns
import drills
import podman
import pull
import runc
import scheduler
import services
import skiff
import unpack
from series import Report


def main():
    options = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    options.add_argument("--skiff", required=True, help="the binary to measure")
    options.add_argument("--kubectl", required=True)
    options.add_argument("--images", required=True, help="directory with nginx.tar and busybox.tar")
    options.add_argument("--output", default="target/bench.json", help="the JSON file (default: %(default)s)")
    options.add_argument("--runs", type=int, default=5, help="runs of each step (default: %(default)s)")
    options.add_argument("--only", choices=list(SUBJECTS), action="append", help="measure just this (repeatable)")
    args = options.parse_args()
    subjects = args.only or list(SUBJECTS)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    report = Report()
    report.header()
    cache = os.path.abspath(os.path.dirname(args.output) or ".")
    for subject in [subject for subject in SUBJECTS if subject in subjects]:
        with tempfile.TemporaryDirectory(prefix=f"measure-{subject}-", dir=cache) as scratch:
            SUBJECTS[subject](report, args, scratch, cache)
    report.write(args.output, host())


def interrupted(number, _):
    """What is measured is taken down as it always is; nothing may interrupt that."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def images(report, args, _, cache):
    unpack.measure(report, args.runs, args.skiff, cache)
    pull.measure(report, args.runs, args.skiff, cache)


# What can be measured, in this order.
SUBJECTS = {
    "skiff": lambda report, args, scratch, _: skiff.measure(report, args.runs, args.images, args.skiff, args.kubectl, scratch),
    "scheduler": lambda report, args, scratch, _: scheduler.measure(report, args.runs, args.skiff, args.kubectl, scratch),
    "services": lambda report, args, scratch, _: services.measure(report, args.runs, args.images, args.skiff, args.kubectl, scratch),
    "dns": lambda report, args, scratch, _: dns.measure(report, args.runs, args.skiff, args.kubectl, scratch),
    "drills": lambda report, args, scratch, _: drills.measure(report, args.runs, args.images, args.skiff, args.kubectl, scratch),
    "images": images,
    "podman": lambda report, args, *_: podman.measure(report, args.runs, args.images),
    "runc": lambda report, args, *_: runc.measure(report, args.runs * 2),
}


def host():
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "cgroups": "v2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "v1 or hybrid",
    }


if __name__ == "__main__":
    sys.exit(main())
