"""Drills: the time to detect and to recover from each failure, as `skiff drill run` reports it on a 3-node cluster."""

import os

import drill
import supplies
from skiff import Server

# How long faults last that only end when they are undone: the recovery counts from the injection on.
LASTS = ["--duration", "3s"]

# Each drill with its options, and what docs say is to be reached (seconds to recover; None: nothing was said).
# disk-full and registry-outage need another cluster.
DRILLS = [
    ("container-kill", [], 0.05),
    ("container-oom", [], None),
    ("container-hang", LASTS, None),
    ("pod-delete", [], 0.1),
    ("pod-evict", [], None),
    ("node-drain", LASTS, None),
    # Its pods tolerate the loss of a node for no time at all; what the undo brings back would not count.
    ("node-crash", ["--duration", "10s"], 1.5),
    # Longer than the grace period of a node that falls silent.
    ("node-partition", ["--duration", "15s"], None),
    ("pod-partition", LASTS, None),
    ("dns-outage", LASTS, None),
    ("cpu-stress", LASTS, None),
    ("memory-pressure", LASTS, None),
    ("packet-loss", LASTS, None),
    # Refused, and a row says why, where the kernel has no netem.
    ("latency", LASTS, None),
    ("agent-restart", [], None),
    ("controlplane-restart", [], None),
    ("controlplane-kill", [], 0.5),
]


def measure(report, runs, images, binary, kubectl, scratch):
    server = Server(binary, kubectl, f"{scratch}/drills", nodes=drill.NODES)
    os.mkdir(server.data_dir)
    try:
        drill.serve_web(server, images)
        for kind, options, goal in DRILLS:
            drill.measure(report, server, kind, options, goal, runs)
    finally:
        server.down()
    supplies.measure(report, runs, images, binary, kubectl, scratch)
