"""Measure Skiff beside podman and runc: `scripts/bench` prepares everything and calls this."""

import argparse
import os
import platform
import sys
import tempfile

import dns
import drills
import podman
import pull
import runc
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
    options.add_argument("--only", choices=["skiff", "services", "dns", "drills", "images", "podman", "runc"], action="append", help="measure just this (repeatable)")
    args = options.parse_args()
    subjects = args.only or ["skiff", "services", "dns", "drills", "images", "podman", "runc"]

    report = Report()
    report.header()
    if "skiff" in subjects:
        with tempfile.TemporaryDirectory(prefix="measure-skiff-", dir=os.path.dirname(args.output) or ".") as scratch:
            skiff.measure(report, args.runs, args.images, args.skiff, args.kubectl, os.path.abspath(scratch))
    if "services" in subjects:
        with tempfile.TemporaryDirectory(prefix="measure-services-", dir=os.path.dirname(args.output) or ".") as scratch:
            services.measure(report, args.runs, args.images, args.skiff, args.kubectl, os.path.abspath(scratch))
    if "dns" in subjects:
        with tempfile.TemporaryDirectory(prefix="measure-dns-", dir=os.path.dirname(args.output) or ".") as scratch:
            dns.measure(report, args.runs, args.skiff, args.kubectl, os.path.abspath(scratch))
    if "drills" in subjects:
        with tempfile.TemporaryDirectory(prefix="measure-drills-", dir=os.path.dirname(args.output) or ".") as scratch:
            drills.measure(report, args.runs, args.images, args.skiff, args.kubectl, os.path.abspath(scratch))
    if "images" in subjects:
        cache = os.path.abspath(os.path.dirname(args.output) or ".")
        unpack.measure(report, args.runs, args.skiff, cache)
        pull.measure(report, args.runs, args.skiff, cache)
    if "podman" in subjects:
        podman.measure(report, args.runs, args.images)
    if "runc" in subjects:
        runc.measure(report, args.runs * 2)
    report.write(args.output, host())


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
