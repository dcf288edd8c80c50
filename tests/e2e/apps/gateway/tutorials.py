"""The tutorials of deploy/examples, told on a cluster: what a person sees with curl, and what the wire between the nodes shows."""
import contextlib, os, re, shutil

from lib.shell import check, run
from lib.wire import HBONE

from .outside import ADDRESSES, LoadBalancer, commands
from .readme import Readme

HERE = os.path.dirname(os.path.realpath(__file__))
EXAMPLES = os.path.realpath(HERE + "/../../../../deploy/examples")
NAMESPACES = ["envoy-gateway-system", "bookshop", "apple", "passthrough", "canary"]
PORTS = {8080, 5678, 8443, 18000}  # of the applications, and of the controller's own API to its gateways
# What answers and requests hold; none of it may be seen between nodes. The server name is in every TLS handshake that is not inside another.
TEXTS = [b"The Book Shop", b"Watership Down", b"rabbit should read", b"of 5 carrots", b"\r\n\r\napple\n", b"hello from v", b"GET / HTTP", b"Host: catalogue:8080",
            b"passthrough.example"]
SHOP = ["<h1>The Book Shop</h1>", "<h2>Watership Down</h2>", "<p>Richard Adams, 1972, 413 pages</p>",
        '<p>"Every rabbit should read it." <b>5 of 5 carrots</b></p>']
NGINX = ["TLS ended by nginx, server name passthrough.example"]
REQUESTS, WEIGHT = 1000, 0.1


class Tutorials:
    """The README's commands, run in a copy of deploy/examples. Curl and the load balancer are outside of the cluster: on the wire, not on a node."""

    def __init__(self, place, kubectl, helm, chart, envoy_image, cluster, nodes, outside, capture):
        """`place`: a directory of its own. `kubectl`, `helm`: command lines. `chart`: stands in for the registry's. `cluster`: its directory; its control
        plane's place on the wire, with the address `outside`, is the world outside. `nodes`: {name: address}. `capture()`: a Capture of the wire."""
        self.kubectl, self.outside, self.capture = kubectl, outside, capture
        self.stack = contextlib.ExitStack()
        directory = shutil.copytree(EXAMPLES, place + "/examples")
        with open(cluster + "/control/pid") as f:
            self.inside = inside = ["nsenter", f"--net=/proc/{f.read().strip()}/ns/net"]
        path = commands(place + "/commands", kubectl=kubectl, helm=helm, curl=[*inside, shutil.which("curl"), "--max-time", "60"])
        shutdown = "config.envoyGateway.envoyProxy.shutdown"  # a gateway waits a minute for its clients unless told
        self.readme = Readme(EXAMPLES + "/README.md", directory, path, [
            ("oci://docker.io/envoyproxy/gateway-helm --version v1.9.1",
             f"{chart} --set global.images.envoyProxy.image={envoy_image},{shutdown}.drainTimeout=2s,{shutdown}.minDrainDuration=1s")])
        self.stack.enter_context(LoadBalancer(kubectl, nodes, inside))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    # ---- the tutorials ----

    def controller(self):
        self.readme.run("gateway controller")

    def http(self):
        self.readme.run("1. HTTP", 0)
        self.answers("1. HTTP", 1, SHOP + ["apple"])

    def https(self):
        self.readme.run("2. HTTPS", 0)
        self.answers("2. HTTPS", 1, SHOP + ["apple"])

    def passthrough(self):
        self.readme.run("3. TLS", 0)
        self.answers("3. TLS", 1, NGINX)

    def again(self, times=10):
        """The questions of the first three, with what is deployed."""
        for _ in range(times):
            self.answers("1. HTTP", 1, SHOP + ["apple"])
            self.answers("2. HTTPS", 1, SHOP + ["apple"])
            self.answers("3. TLS", 1, NGINX)

    def canary(self):
        self.readme.run("4. A canary", 0)
        return self.canary_again()

    def canary_again(self):
        """How many of the requests the second version answered; four standard deviations are allowed, which 1 in 16 000 right splits exceeds."""
        said = self.readme.run("4. A canary", 1)
        counts = {version: int(n) for n, version in re.findall(r"(\d+) hello from (v\d)", said)}
        expected, deviation = REQUESTS * WEIGHT, (REQUESTS * WEIGHT * (1 - WEIGHT)) ** 0.5
        check(sum(counts.values()) == REQUESTS and abs(counts.get("v2", 0) - expected) <= 4 * deviation, f"not a split of 90 to 10: {said.strip()!r}")
        return counts["v2"]

    def label(self):
        self.readme.run("5. All of it in the mesh", 0)

    def strict(self):
        self.readme.run("5. All of it in the mesh", 1)

    def remove(self):
        self.readme.run("Away with it")

    def answers(self, title, block, lines):
        said = [l.strip() for l in self.readme.run(title, block).splitlines() if l.strip()]
        check(said == lines, f"{title}: not what the README says:\n" + "\n".join(said))

    def outsider(self, url):
        """What curl says to a client outside of the mesh that asks a pod itself."""
        return run(*self.inside, "curl", "-sS", "--max-time", "3", url, check=False)

    # ---- the wire ----

    @contextlib.contextmanager
    def wire(self):
        """What TCP carries between the nodes in the meantime; what comes from outside or goes to the API server is not looked at."""
        found = Found()
        with self.capture() as c:
            yield found
        found.count(p for p in c.seen.packets if not any(a == self.outside or a.startswith(ADDRESSES) for a in (p.src, p.dst)))


class Found:
    """Packets between the nodes: all, those of tunnels, those of the applications' own ports, those with something readable in them."""

    def count(self, packets):
        self.packets = self.tunnel = self.application = self.readable = 0
        self.texts, self.examples = set(), []
        for p in packets:
            texts = [t for t in TEXTS if t in p.payload]
            application = bool(PORTS & {p.sport, p.dport})
            self.packets += 1
            self.tunnel += HBONE in (p.sport, p.dport)
            self.application += application
            self.readable += bool(texts)
            self.texts.update(texts)
            if (texts or application) and len(self.examples) < 5:
                self.examples.append(f"{p.src}:{p.sport} > {p.dst}:{p.dport} {p.payload[:80]!r}")

    def __str__(self):
        return f"{self.packets} TCP packets between nodes: {self.tunnel} in tunnels, {self.application} of application ports, {self.readable} readable"
