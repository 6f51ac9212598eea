"""A client of the Kubernetes API, as thin as can be: what it costs must not be measured."""

import base64
import concurrent.futures
import contextlib
import http.client
import json
import queue
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.parse


# A connection that was quiet for so many seconds may have been closed by the server.
QUIET = 10


class Api:
    """One connection for requests; each watch has another."""

    def __init__(self, kubectl, kubeconfig):
        shown = subprocess.run(
            [kubectl, "--kubeconfig", kubeconfig, "config", "view", "--raw", "--output", "json"],
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        config = json.loads(shown)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.host = urllib.parse.urlsplit(cluster["server"]).netloc
        self.tls = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]).decode())
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(_decoded(user["client-certificate-data"]) + b"\n" + _decoded(user["client-key-data"]))
            file.flush()
            self.tls.load_cert_chain(file.name)
        self.connection, self.used = self._connect(), time.monotonic()

    def another(self):
        """The same cluster and user over a connection of its own, for another thread."""
        twin = object.__new__(Api)
        twin.host, twin.tls = self.host, self.tls
        twin.connection, twin.used = twin._connect(), time.monotonic()
        return twin

    def _connect(self):
        return http.client.HTTPSConnection(self.host, context=self.tls, timeout=120)

    def request(self, method, path, body=None, missing_is_none=False):
        """The answer's object; None for 404 when that is asked for."""
        data = None if body is None else json.dumps(body)
        if time.monotonic() - self.used > QUIET:
            self.connection.close()
            self.connection = self._connect()
        self.connection.request(method, path, data, {"Content-Type": "application/json", "Accept": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        self.used = time.monotonic()
        if answer.status == 404 and missing_is_none:
            return None
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text.decode(errors='replace')}")
        return json.loads(text)

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def create(self, path, body):
        return self.request("POST", path, body)

    def replace(self, path, body):
        return self.request("PUT", path, body)

    def delete(self, path, **options):
        return self.request("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", **options})

    def watch(self, path):
        """Events from now on."""
        return Watch(self, path)


def in_parallel(api, items, work, connections=16):
    """Calls `work(api, item)` for each item, over several connections at once; what it gave, in the items' order."""
    own = threading.local()

    def one(item):
        if not hasattr(own, "api"):
            own.api = api.another()
        return work(own.api, item)

    with concurrent.futures.ThreadPoolExecutor(connections) as pool:
        return list(pool.map(one, items))


class Watch:
    """The events of a collection, each with the moment it arrived."""

    def __init__(self, api, path):
        self.path = path
        version = api.get(path)["metadata"]["resourceVersion"]
        self.connection = api._connect()
        separator = "&" if "?" in path else "?"
        self.connection.request("GET", f"{path}{separator}watch=1&resourceVersion={version}")
        self.socket = self.connection.sock
        self.answer = self.connection.getresponse()
        self.events = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for line in self.answer:
                self.events.put((time.perf_counter(), line))
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass  # closed

    def until(self, wanted, seconds=120):
        """The moment of the first event for which `wanted(type, object)` is true."""
        deadline = time.monotonic() + seconds
        while True:
            at, line = self._next(deadline)
            event = json.loads(line)
            if wanted(event["type"], event["object"]):
                return at

    def moments(self, count, seconds=120):
        """When each of the next objects came into the collection."""
        deadline = time.monotonic() + seconds
        moments = []
        while len(moments) < count:
            at, line = self._next(deadline)
            if line.startswith(b'{"type":"ADDED"'):
                moments.append(at)
        return moments

    def _next(self, deadline):
        try:
            return self.events.get(timeout=max(0.001, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"what was waited for did not come by the watch of {self.path}") from None

    def close(self):
        # The reading thread holds the answer's lock until something arrives: end what it waits for.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _decoded(text):
    return base64.b64decode(text)
