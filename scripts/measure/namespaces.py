"""Clients inside network namespaces, and namespaces made by hand."""

import contextlib
import ctypes
import itertools
import os
import queue
import socket
import subprocess
import threading
import time

CLONE_NEWNET = 0x40000000


def answers(address, timeout=1):
    try:
        socket.create_connection(address, timeout=timeout).close()
    except OSError:
        return False
    return True


def enter(namespace):
    """Moves the calling thread, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(namespace, "rb") as pinned:
        if libc.setns(pinned.fileno(), CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), namespace)


class Clients:
    """A client in each of some network namespaces, that waits until an address answers there."""

    def __init__(self, namespaces):
        self.jobs = []
        self.seen = queue.SimpleQueue()
        for namespace in namespaces:
            jobs = queue.SimpleQueue()
            self.jobs.append(jobs)
            threading.Thread(target=self._serve, args=(namespace, jobs), daemon=True).start()

    def _serve(self, namespace, jobs):
        enter(namespace)
        while (job := jobs.get()) is not None:
            address, wanted = job
            deadline = time.monotonic() + 60
            # Packets to an address that the node does not know yet are dropped: nobody waits for a second SYN.
            while answers(address, timeout=0.05) != wanted and time.monotonic() < deadline:
                time.sleep(0.0003)
            self.seen.put(time.perf_counter())

    def begin(self, address, wanted=True):
        for jobs in self.jobs:
            jobs.put((address, wanted))

    def moments(self):
        """When each of them saw it, the first of them first."""
        return sorted(self.seen.get(timeout=90) for _ in self.jobs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for jobs in self.jobs:
            jobs.put(None)


def ip(*words, namespace=None):
    prefix = ["ip", "-netns", namespace] if namespace else ["ip"]
    subprocess.run([*prefix, *words], check=True)


_numbers = itertools.count()


@contextlib.contextmanager
def by_hand():
    """Two namespaces that reach each other as pods of two nodes do: each behind a router of its own, both routers on one bridge.

    Gives the names of the two, and the second one's address. Nothing but links, addresses and routes.
    """
    prefix = f"measure{os.getpid()}x{next(_numbers)}"
    switch, ends, routers = f"{prefix}s", [f"{prefix}a", f"{prefix}b"], [f"{prefix}ra", f"{prefix}rb"]
    made = []
    try:
        for name in (switch, *ends, *routers):
            ip("netns", "add", name)
            made.append(name)
            ip("link", "set", "lo", "up", namespace=name)
        ip("link", "add", "br0", "type", "bridge", namespace=switch)
        ip("link", "set", "br0", "up", namespace=switch)
        for number, (end, router) in enumerate(zip(ends, routers)):
            ip("link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", router, namespace=switch)
            ip("link", "set", f"p{number}", "master", "br0", "up", namespace=switch)
            ip("address", "add", f"192.0.2.{number + 1}/24", "dev", "eth0", namespace=router)
            ip("link", "set", "eth0", "up", namespace=router)
            ip("link", "add", "end", "type", "veth", "peer", "name", "eth0", "netns", end, namespace=router)
            ip("address", "add", f"198.51.100.{4 * number + 1}/30", "dev", "end", namespace=router)
            ip("link", "set", "end", "up", namespace=router)
            ip("address", "add", f"198.51.100.{4 * number + 2}/30", "dev", "eth0", namespace=end)
            ip("link", "set", "eth0", "up", namespace=end)
            ip("route", "add", "default", "via", f"198.51.100.{4 * number + 1}", namespace=end)
            subprocess.run(
                ["ip", "netns", "exec", router, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"], check=True
            )
        for number, router in enumerate(routers):
            other = 1 - number
            ip("route", "add", f"198.51.100.{4 * other}/30", "via", f"192.0.2.{other + 1}", namespace=router)
        yield ends[0], ends[1], "198.51.100.6"
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)
