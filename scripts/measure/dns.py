"""The node's DNS server beside Debian's dnsmasq: the same names, the same questions, one after the other."""

import contextlib
import ipaddress
import os
import random
import re
import socket
import struct
import subprocess
import tempfile
import time

from api import in_parallel
from skiff import Server

NAMES = 1000
SECONDS = 5
CLIENTS = 4
# The rate at which latencies are taken, well below what either can give.
STEADY = 5000
SAMPLES = 5000


def measure(report, runs, binary, kubectl, scratch):
    questions = os.path.join(scratch, "questions")
    names = [f"bench-{i}.default.svc.cluster.local" for i in range(NAMES)]
    with open(questions, "w", encoding="utf-8") as file:
        for name in random.sample(names, len(names)):
            file.write(f"{name} A\n")

    server = Server(binary, kubectl, os.path.join(scratch, "data"))
    os.mkdir(server.data_dir)
    try:
        server.start()
        api = server.api()
        in_parallel(api, range(NAMES), create)
        nodes = api.get("/api/v1/nodes")["items"]
        block = ipaddress.ip_network(nodes[0]["spec"]["podCIDR"])
        address = (str(block.network_address + 1), 53)
        until_answered(address, names[-1])
        ask(report, "skiff", runs, address, questions, names)
    finally:
        server.down()

    with dnsmasq(scratch, names) as address:
        until_answered(address, names[-1])
        ask(report, "dnsmasq", runs, address, questions, names)


def create(api, i):
    spec = {"ports": [{"port": 80}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"bench-{i}"}, "spec": spec}
    api.create("/api/v1/namespaces/default/services", service)


def ask(report, subject, runs, address, questions, names):
    rates, tails = [], []
    for _ in range(runs):
        rates.append(rate(address, questions))
        tails.append(tail(address, questions, names))
    report.add(subject, f"DNS queries, {CLIENTS} clients, {NAMES} names", "per s", rates)
    report.add(subject, f"DNS latency p99 at {STEADY} queries a second", "ms", tails)


def dnsperf(address, questions, *more):
    host, port = address
    return ["dnsperf", "-s", host, "-p", str(port), "-d", questions, "-c", str(CLIENTS), "-l", str(SECONDS), *more]


def rate(address, questions):
    """Queries a second that are answered, as many at once as dnsperf keeps open."""
    done = subprocess.run(dnsperf(address, questions), check=True, capture_output=True, text=True).stdout
    lost = int(re.search(r"Queries lost:\s+(\d+)", done)[1])
    if lost > 100:
        raise RuntimeError(f"{lost} queries lost")
    return float(re.search(r"Queries per second:\s+([\d.]+)", done)[1])


def tail(address, questions, names):
    """The 99th percentile of single questions' times, in ms, while others ask at a steady rate."""
    load = subprocess.Popen(dnsperf(address, questions, "-Q", str(STEADY)), stdout=subprocess.DEVNULL)
    try:
        with question_socket(address) as client:
            times = sorted(question(client, random.choice(names)) for _ in range(SAMPLES))
    finally:
        load.terminate()
        load.wait()
    return 1000 * times[int(len(times) * 0.99)]


def question_socket(address):
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(2)
    client.connect(address)
    return client


def question(client, name):
    """Seconds until the answer, which has to have an address."""
    number = random.getrandbits(16)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    message = struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    begin = time.perf_counter()
    client.send(message)
    answer = client.recv(512)
    took = time.perf_counter() - begin
    if struct.unpack(">HHHH", answer[:8])[0] != number or answer[3] & 0xF or answer[7] == 0:
        raise RuntimeError(f"no address for {name}")
    return took


def until_answered(address, name):
    deadline = time.monotonic() + 30
    while True:
        try:
            with question_socket(address) as client:
                question(client, name)
            return
        except (OSError, RuntimeError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def dnsmasq(scratch, names):
    """dnsmasq with the same names, on a loopback address of its own."""
    address = ("127.53.53.1", 5353)
    with tempfile.NamedTemporaryFile("w", dir=scratch, suffix=".conf", encoding="utf-8") as file:
        first = ipaddress.ip_address("10.43.100.0")
        for i, name in enumerate(names):
            file.write(f"host-record={name},{first + i}\n")
        file.flush()
        process = subprocess.Popen([
            "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces", "--local-ttl=5",
            f"--listen-address={address[0]}", f"--port={address[1]}", f"--conf-file={file.name}", "--pid-file",
            "--dns-forward-max=10000", "--user=root",
        ])  # fmt: skip
        try:
            yield address
        finally:
            process.terminate()
            process.wait()
