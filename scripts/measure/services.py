"""Services: what a connection through one costs, what a change costs, and how soon a Ready pod is reached on every node."""

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
import time

from api import in_parallel
from namespaces import Clients, answers, by_hand
from processes import milliseconds, wait_for
from skiff import PODS, Server, deployment, node_ready, ready, service

SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
COUNTS = (1, 100, 5000)
CONNECTIONS = 3000
NODES = 3
# Changes of one slice that all nodes follow.
CHANGES = 100
# Seconds of each transfer.
TRANSFER = 3


def measure(report, runs, images, binary, kubectl, scratch):
    by_count(report, runs, images, binary, kubectl, scratch)
    across_nodes(report, runs, images, binary, kubectl, scratch)


def by_count(report, runs, images, binary, kubectl, scratch):
    """One node with more and more services."""
    # The table's transactions tell their size.
    log = "warn,skiff_agent::net::nftables=debug"
    server = Server(binary, kubectl, f"{scratch}/services", log=log)
    os.mkdir(server.data_dir)
    try:
        server.start()
        api = server.api()
        node_ready(api)
        server.load(images)
        api.create(DEPLOYMENTS, deployment("web", 1))
        pod = wait_for(lambda: next((p for p in api.get(PODS)["items"] if ready(p)), None), interval=0.01)
        ip = pod["status"]["podIP"]
        through = (api.create(SERVICES, service("web", {"app": "web"}))["spec"]["clusterIP"], 80)
        wait_for(lambda: answers(through), interval=0.002)
        changing = Changing(api, "changing", ip)
        made = 1
        for count in COUNTS:
            begin = time.perf_counter()
            for address in add_services(api, range(made, count), ip):
                wait_for(lambda address=address: answers(address), interval=0.002)
            if count > made:
                report.add("skiff", f"{count - made} Services created until all answer", "ms", [milliseconds(begin)])
            made = count
            connections(report, "direct connection", (ip, 80), runs, count)
            connections(report, "through a Service", through, runs, count)
            one_change(report, changing, f"{server.data_dir}.log", runs * 4, count)
            reached(report, api, runs, count)
    finally:
        server.down()


def slice_of(name, ips):
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 80}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in ips],
    }  # fmt: skip


def add_services(api, numbers, pod_ip):
    """Services that lead to one pod by slices written by hand; gives their addresses."""

    def add(api, number):
        name = f"other-{number}"
        address = api.create(SERVICES, service(name))["spec"]["clusterIP"]
        api.create(SLICES, slice_of(name, [pod_ip]))
        return address, 80

    return in_parallel(api, numbers, add)


class Changing:
    """A service whose one endpoint comes and goes."""

    def __init__(self, api, name, pod_ip):
        self.api, self.name, self.pod_ip = api, name, pod_ip
        self.address = (api.create(SERVICES, service(name))["spec"]["clusterIP"], 80)
        api.create(SLICES, slice_of(name, []))

    def put(self, served):
        """Writes the slice; the moments before and after."""
        begin = time.perf_counter()
        self.api.replace(f"{SLICES}/{self.name}", slice_of(self.name, [self.pod_ip] if served else []))
        return begin, time.perf_counter()


def connections(report, what, address, runs, services):
    rates, slow = [], []
    for _ in range(runs):
        took = []
        begin = time.perf_counter()
        for _ in range(CONNECTIONS):
            at = time.perf_counter()
            socket.create_connection(address).close()
            took.append(time.perf_counter() - at)
        rates.append(CONNECTIONS / (time.perf_counter() - begin))
        slow.append(sorted(took)[CONNECTIONS * 99 // 100] * 1e6)
    report.add("skiff", f"{what}, {services} Services: connections", "1/s", rates)
    report.add("skiff", f"{what}, {services} Services: p99", "us", slow)


def one_change(report, changing, log, runs, services):
    """From the request that adds an endpoint to its first connection, and what the kernel was told."""
    took, told = [], []
    for _ in range(runs):
        before = os.path.getsize(log)
        begin, _ = changing.put(True)
        wait_for(lambda: answers(changing.address), interval=0.0003)
        took.append(milliseconds(begin))
        told.append(wait_for(lambda at=before: transaction(log, at), interval=0.002))
        changing.put(False)
        wait_for(lambda: not answers(changing.address), interval=0.001)
    report.add("skiff", f"one change of {services} Services: written to in force", "ms", took)
    report.add("skiff", f"one change of {services} Services: the transaction", "bytes", told)


def transaction(log, begin):
    """The bytes of the first transaction that the log tells of since."""
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(begin)
        found = re.search(r"committed .*\bbytes=(\d+)", file.read())
    return int(found[1]) if found else None


def reached(report, api, runs, services):
    """From a watcher seeing a pod Ready to the Service without other endpoints answering."""
    took = []
    for run in range(runs):
        name = f"reached-{services}-{run}"
        address = (api.create(SERVICES, service(name, {"app": name}))["spec"]["clusterIP"], 80)
        with api.watch(f"{PODS}?labelSelector=app%3D{name}") as watch:
            api.create(DEPLOYMENTS, deployment(name, 1))
            at = watch.until(lambda _, pod: ready(pod))
            wait_for(lambda address=address: answers(address), interval=0.0005)
            took.append((time.perf_counter() - at) * 1000)
        api.delete(f"{DEPLOYMENTS}/{name}", propagationPolicy="Background")
        api.delete(f"{SERVICES}/{name}")
    report.add("skiff", f"pod Ready to reached by its Service, {services} Services", "ms", took)


def across_nodes(report, runs, images, binary, kubectl, scratch):
    """Several nodes, each in a network namespace of its own on one bridge."""
    server = Server(binary, kubectl, f"{scratch}/nodes", nodes=NODES)
    os.mkdir(server.data_dir)
    try:
        server.start()
        api = server.api()
        wait_for(lambda: len(api.get("/api/v1/nodes")["items"]) == NODES, interval=0.01)
        node_ready(api)
        server.load(images)
        with Clients(map(server.namespace, server.node_names())) as clients:
            everywhere(report, api, clients, runs * 4)
            followed(report, api, clients)
        throughput(report, api, server, runs)
    finally:
        server.down()


def everywhere(report, api, clients, runs):
    """From a watcher seeing a pod Ready to its Service answering on every node."""
    took = []
    for run in range(runs):
        name = f"everywhere-{run}"
        address = (api.create(SERVICES, service(name, {"app": name}))["spec"]["clusterIP"], 80)
        clients.begin(address)
        with api.watch(f"{PODS}?labelSelector=app%3D{name}") as watch:
            api.create(DEPLOYMENTS, deployment(name, 1))
            at = watch.until(lambda _, pod: ready(pod))
        took.append(max(0, (clients.moments()[-1] - at) * 1000))
        api.delete(f"{DEPLOYMENTS}/{name}", propagationPolicy="Background")
        api.delete(f"{SERVICES}/{name}")
    report.add("skiff", f"pod Ready to its address in the tables of {NODES} nodes", "ms", took)


def followed(report, api, clients):
    """How far the nodes' tables are apart when one endpoint comes and goes, alone and while others change."""
    api.create(DEPLOYMENTS, deployment("web", 1))
    pod = wait_for(
        lambda: next((p for p in api.get(f"{PODS}?labelSelector=app%3Dweb")["items"] if ready(p)), None), interval=0.01
    )
    ip = pod["status"]["podIP"]
    changing = Changing(api, "followed", ip)
    for load, what in ((False, "an idle cluster"), (True, "others changing")):
        written, apart = [], []
        with churn(api, ip) if load else contextlib.nullcontext():
            for number in range(CHANGES):
                served = number % 2 == 0
                clients.begin(changing.address, served)
                _, after = changing.put(served)
                moments = clients.moments()
                written.append((moments[-1] - after) * 1000)
                apart.append((moments[-1] - moments[0]) * 1000)
        for name, values in (("written to in force on every node", written), ("first node to last node", apart)):
            report.add("skiff", f"a changed endpoint, {what}: {name}", "ms", values)
            p99 = sorted(values)[len(values) * 99 // 100]
            report.add("skiff", f"a changed endpoint, {what}: {name}, p99", "ms", [p99])


@contextlib.contextmanager
def churn(api, ip):
    """Services of others whose endpoints change as fast as one client can write."""
    over = threading.Event()
    others = [Changing(api.another(), f"churned-{number}", ip) for number in range(20)]

    def change():
        served = True
        while not over.is_set():
            for other in others:
                other.put(served)
            served = not served

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def throughput(report, api, server, runs):
    """TCP from a pod to one of another node, beside the same links and routes made by hand."""
    api.create(DEPLOYMENTS, deployment("ends", NODES))
    selector = f"{PODS}?labelSelector=app%3Dends"
    pods = wait_for(
        lambda: (found := [p for p in api.get(selector)["items"] if ready(p)]) and len(found) == NODES and found,
        interval=0.05,
    )
    pods.sort(key=lambda pod: pod["spec"]["nodeName"])
    far = next((p for p in pods if p["spec"]["nodeName"] != pods[0]["spec"]["nodeName"]), None)
    if far is None:
        report.note("skiff", "TCP, pod to pod of another node", "all pods came to one node")
        return
    inside = [["nsenter", f"--net=/proc/{pid_of(server, pod)}/ns/net"] for pod in (pods[0], far)]
    rates = transfers(inside[0], inside[1], far["status"]["podIP"], runs)
    report.add("skiff", "TCP, pod to pod of another node", "Gbit/s", rates)
    with by_hand() as (client, at, address):
        rates = transfers(["ip", "netns", "exec", client], ["ip", "netns", "exec", at], address, runs)
        report.add("by hand", "TCP, the same links and routes without nftables", "Gbit/s", rates)


def pid_of(server, pod):
    """The process of a pod's container."""
    data_dir = server.node_dir(pod["spec"]["nodeName"])
    listed = subprocess.run([server.binary, "ps", "-o", "json", "--data-dir", data_dir], check=True, capture_output=True)
    return next(c["pid"] for c in json.loads(listed.stdout) if c["pod"] == pod["metadata"]["name"])


def transfers(client, server, address, runs):
    """Gbit/s of each transfer."""
    listening = subprocess.Popen([*server, "iperf3", "--server"], stdout=subprocess.DEVNULL)
    try:
        rates = []
        for _ in range(runs):
            done = wait_for(lambda: transfer(client, address), interval=0.2)
            rates.append(done["end"]["sum_received"]["bits_per_second"] / 1e9)
        return rates
    finally:
        listening.terminate()
        listening.wait()


def transfer(client, address):
    """What iperf3 says; None while nobody listens yet, or the server is not done with the last one."""
    done = subprocess.run([*client, "iperf3", "--client", address, "--time", str(TRANSFER), "--json"], capture_output=True)
    told = json.loads(done.stdout) if done.returncode == 0 else {}
    return told if "sum_received" in told.get("end", {}) else None
