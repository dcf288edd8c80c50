"""The world outside of the test cluster: a load balancer with public addresses, and a client that goes through it."""
import contextlib, json, os, shlex, threading

from lib.shell import Failed, run

ADDRESSES = "192.0.2."  # RFC 5737


class LoadBalancer:
    """Does for Services of type LoadBalancer what a cloud does: gives each an address and sends it to a node that has a ready endpoint.

    `kubectl` is a command line, `inside` one that runs another in the network namespace that is on the wire; `nodes`: {name: address}.
    """

    def __init__(self, kubectl, nodes, inside):
        self.kubectl, self.nodes, self.inside = kubectl, nodes, inside
        self.given, self.routes = {}, {}
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
        while not self.ended.wait(0.5):
            with contextlib.suppress(Failed):  # the API may be away for a while
                self.once()

    def once(self):
        found = json.loads(run(*self.kubectl, "get", "services,endpointslices", "-A", "-o", "json"))["items"]
        slices = [o for o in found if o["kind"] == "EndpointSlice"]
        for s in found:
            if s["kind"] != "Service" or s["spec"].get("type") != "LoadBalancer":
                continue
            name, namespace = s["metadata"]["name"], s["metadata"]["namespace"]
            address = self.given.setdefault((namespace, name), f"{ADDRESSES}{len(self.given) + 1}")
            if not s["status"]["loadBalancer"].get("ingress"):
                run(*self.kubectl, "patch", "service", name, "-n", namespace, "--subresource=status", "--type=merge",
                    "-p", json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}))
            ready = sorted(endpoint["nodeName"] for e in slices for endpoint in e.get("endpoints") or []
                           if e["metadata"]["namespace"] == namespace and e["metadata"].get("labels", {}).get("kubernetes.io/service-name") == name
                           and endpoint["conditions"].get("ready"))
            if ready and self.routes.get(address) not in ready:  # the node in use stays so while it has one
                self.route("replace", address, "via", self.nodes[ready[0]])
                self.routes[address] = ready[0]

    def route(self, verb, address, *rest):
        run(*self.inside, "ip", "route", verb, address + "/32", *rest, check=verb != "del")


def commands(path, **programs):
    """Makes a directory for PATH with the given programs, each by the command line that it stands for."""
    os.makedirs(path)
    for name, line in programs.items():
        with open(f"{path}/{name}", "w") as f:
            f.write(f'#!/bin/sh\nexec {shlex.join(line)} "$@"\n')
        os.chmod(f"{path}/{name}", 0o755)
    return path
