"""The world outside of the test cluster: a load balancer with public addresses, and a client that goes through it."""
import contextlib, json, os, shlex, subprocess, threading

ADDRESSES = "192.0.2."  # RFC 5737


class LoadBalancer:
    """Does for Services of type LoadBalancer what a cloud does: gives each an address and sends it to a node that has a ready endpoint.

    `kubectl(*args, input=None)` gives the output of a kubectl call; `control` is the process whose network namespace is on the wire.
    """

    def __init__(self, kubectl, nodes, control):
        self.kubectl, self.nodes, self.control = kubectl, nodes, control
        self.given, self.routes, self.failure = {}, {}, None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, name="load balancer")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        for address in self.routes:
            self.route("del", address)

    def run(self):
        while not self.ended.wait(0.3):
            try:
                self.once()
                self.failure = None
            except subprocess.CalledProcessError as e:  # the API is away for a while: once more
                self.failure = e.stderr

    def once(self):
        for s in json.loads(self.kubectl("get", "services", "-A", "-o", "json"))["items"]:
            name, namespace = s["metadata"]["name"], s["metadata"]["namespace"]
            if s["spec"].get("type") != "LoadBalancer":
                continue
            address = self.given.setdefault((namespace, name), f"{ADDRESSES}{len(self.given) + 1}")
            if not s["status"]["loadBalancer"].get("ingress"):
                self.kubectl("patch", "service", name, "-n", namespace, "--subresource=status", "--type=merge",
                             "-p", json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}))
            if node := self.node(namespace, name):
                if self.routes.get(address) != node:
                    self.route("replace", address, "via", self.nodes[node])
                    self.routes[address] = node

    def node(self, namespace, name):
        """A node with a ready endpoint, the one that is in use if it still has one."""
        slices = json.loads(self.kubectl("get", "endpointslices", "-n", namespace, "-l", "kubernetes.io/service-name=" + name, "-o", "json"))
        ready = sorted({e["nodeName"] for s in slices["items"] for e in s.get("endpoints") or [] if e["conditions"].get("ready")})
        used = self.routes.get(self.given[namespace, name])
        return used if used in ready else ready[0] if ready else None

    def route(self, verb, address, *rest):
        subprocess.run(["nsenter", f"--net=/proc/{self.control}/ns/net", "ip", "route", verb, address + "/32", *rest],
                       check=verb != "del", capture_output=True, text=True)


@contextlib.contextmanager
def commands(dir, **programs):
    """A directory for PATH, with the given programs, each by the command line that it stands for."""
    path = f"{dir}/commands"
    os.makedirs(path)
    for name, line in programs.items():
        with open(f"{path}/{name}", "w") as f:
            f.write(f'#!/bin/sh\nexec {shlex.join(line)} "$@"\n')
        os.chmod(f"{path}/{name}", 0o755)
    yield path
