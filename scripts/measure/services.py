"""Services: what a connection through one costs beside a direct one, and how soon a Ready pod is reached."""

import os
import socket
import time

from processes import milliseconds, wait_for
from skiff import PODS, Server, deployment, node_ready, ready

SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
COUNTS = (1, 100, 5000)
CONNECTIONS = 3000


def measure(report, runs, images, binary, kubectl, scratch):
    server = Server(binary, kubectl, f"{scratch}/services")
    os.mkdir(server.data_dir)
    try:
        server.start()
        api = server.api()
        node_ready(api)
        server.load(images)
        api.create("/apis/apps/v1/namespaces/default/deployments", deployment("web", 1))
        pod = wait_for(lambda: next((p for p in api.get(PODS)["items"] if ready(p)), None), interval=0.01)
        direct = (pod["status"]["podIP"], 80)
        through = (api.create(SERVICES, service("web", {"app": "web"}))["spec"]["clusterIP"], 80)
        wait_for(lambda: answers(through), interval=0.002)
        made = 1
        for count in COUNTS:
            begin = time.perf_counter()
            last = add_services(api, made, count, pod["status"]["podIP"])
            if last:
                wait_for(lambda address=last: answers(address), interval=0.002)
                report.add("skiff", f"{count - made} Services created to the last answering", "ms", [milliseconds(begin)])
            made = count
            connections(report, "direct connection", direct, runs, count)
            connections(report, "through a Service", through, runs, count)
            reached(report, api, runs, count)
    finally:
        server.down()


def service(name, selector=None):
    spec = {"ports": [{"port": 80, "targetPort": 80}]}
    if selector:
        spec["selector"] = selector
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def add_services(api, made, count, pod_ip):
    """Services that lead to one pod by slices written by hand; gives the address of the last."""
    address = None
    for number in range(made, count):
        name = f"other-{number}"
        address = (api.create(SERVICES, service(name))["spec"]["clusterIP"], 80)
        endpoints = [{"addresses": [pod_ip], "conditions": {"ready": True}}]
        api.create(SLICES, {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 80}], "endpoints": endpoints,
        })  # fmt: skip
    return address


def answers(address):
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


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


def reached(report, api, runs, services):
    """From a watcher seeing a pod Ready to the Service without other endpoints answering."""
    took = []
    for run in range(runs):
        name = f"reached-{services}-{run}"
        address = (api.create(SERVICES, service(name, {"app": name}))["spec"]["clusterIP"], 80)
        with api.watch(f"{PODS}?labelSelector=app%3D{name}") as watch:
            api.create("/apis/apps/v1/namespaces/default/deployments", deployment(name, 1))
            at = watch.until(lambda _, pod: ready(pod))
            wait_for(lambda address=address: answers(address), interval=0.0005)
            took.append((time.perf_counter() - at) * 1000)
        api.delete(f"/apis/apps/v1/namespaces/default/deployments/{name}", propagationPolicy="Background")
        api.delete(f"{SERVICES}/{name}")
    report.add("skiff", f"pod Ready to reached by its Service, {services} Services", "ms", took)
