"""The tutorials of deploy/examples, told on a cluster: what a person sees with curl, and what the wire between the nodes shows."""
import contextlib, json, os, re, shutil, signal, subprocess, sys, time

import capture
from outside import ADDRESSES, LoadBalancer, commands
from readme import Readme

HERE = os.path.dirname(os.path.realpath(__file__))
EXAMPLES = os.path.realpath(HERE + "/../../../../deploy/examples")
NAMESPACES = ["envoy-gateway-system", "bookshop", "apple", "passthrough", "canary"]
PORTS = {8080, 5678, 8443, 18000}  # of the applications, and of the controller's own API to its gateways
TUNNEL = 15008
# What answers and requests hold; none of it may be seen between nodes. The server name is in every TLS handshake that is not inside another.
PAYLOADS = [b"The Book Shop", b"Watership Down", b"rabbit should read", b"of 5 carrots", b"\r\n\r\napple\n", b"hello from v", b"GET / HTTP", b"GET /catalogue HTTP",
            b"passthrough.example"]
SHOP = ["<h1>The Book Shop</h1>", "<h2>Watership Down</h2>", "<p>Richard Adams, 1972, 413 pages</p>",
        '<p>"Every rabbit should read it." <b>5 of 5 carrots</b></p>']
REQUESTS, WEIGHT = 1000, 0.1


class Tutorials:
    def __init__(self, place, kubectl, helm, chart, envoy_image, control, nodes, outside, capture_command):
        """`place`: a directory of its own. `kubectl` and `helm`: command lines. `control`: the process whose network namespace is the world
        outside, at the address `outside`. `nodes`: {name: address}. `capture_command(file)`: a tcpdump of the wire that writes into a file."""
        self.place, self.line, self.control, self.nodes, self.outside, self.capture_command = place, kubectl, control, nodes, outside, capture_command
        self.stack = contextlib.ExitStack()
        shutil.copytree(EXAMPLES, place + "/examples")
        path = self.stack.enter_context(commands(place, kubectl=kubectl, helm=helm, curl=["nsenter", f"--net=/proc/{control}/ns/net", shutil.which("curl"), "-m", "60"]))
        self.readme = Readme(EXAMPLES + "/README.md", place + "/examples", path, {}, [
            ("oci://docker.io/envoyproxy/gateway-helm --version v1.9.1", f"{chart} --set global.images.envoyProxy.image={envoy_image}")])
        self.balancer = self.stack.enter_context(LoadBalancer(self.kubectl, nodes, control))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def kubectl(self, *args, input=None):
        return subprocess.run([*self.line, *args], input=input, check=True, capture_output=True, text=True, timeout=120).stdout

    # ---- the tutorials ----

    def controller(self):
        self.readme.run("gateway controller")

    def http(self):
        self.readme.run("1. HTTP", 0)
        return self.http_again()

    def http_again(self):
        return self.answers("1. HTTP", 1, SHOP + ["apple"])

    def https(self):
        self.readme.run("2. HTTPS", 0)
        return self.https_again()

    def https_again(self):
        return self.answers("2. HTTPS", 1, SHOP + ["apple"])

    def passthrough(self):
        self.readme.run("3. TLS", 0)
        return self.passthrough_again()

    def passthrough_again(self):
        return self.answers("3. TLS", 1, ["TLS ended by nginx, server name passthrough.example"])

    def canary(self):
        self.readme.run("4. A canary", 0)
        return self.canary_again()

    def canary_again(self):
        """How many of the requests the second version answered; four standard deviations are allowed, which 1 in 16 000 right splits exceeds."""
        said = self.readme.run("4. A canary", 1)
        counts = {version: int(n) for n, version in re.findall(r"(\d+) hello from (v\d)", said)}
        expected, deviation = REQUESTS * WEIGHT, (REQUESTS * WEIGHT * (1 - WEIGHT)) ** 0.5
        expect(sum(counts.values()) == REQUESTS and abs(counts.get("v2", 0) - expected) <= 4 * deviation, f"a split of 90 to 10, not {said.strip()!r}")
        return counts["v2"]

    def label(self):
        self.readme.run("5. All of it in the mesh", 0)

    def strict(self):
        self.readme.run("5. All of it in the mesh", 1)

    def remove(self):
        self.readme.run("Away with it")

    def answers(self, title, block, lines):
        said = [l.strip() for l in self.readme.run(title, block).splitlines() if l.strip()]
        expect(said == lines, f"{title}: not what the README says:\n" + "\n".join(said))
        return len(said)

    # ---- the wire ----

    @contextlib.contextmanager
    def wire(self, name):
        """What TCP carries between the nodes in the meantime; what comes from outside or goes to the API server is not looked at."""
        seen, file = Wire(), f"{self.place}/{name}.pcap"
        with open(file + ".log", "w+") as log:
            tcpdump = subprocess.Popen(self.capture_command(file), stdout=log, stderr=log, preexec_fn=end_with_parent)
            try:
                within(10, "tcpdump to listen", lambda: "listening on" in open(file + ".log").read())
                yield seen
                time.sleep(0.3)  # for what the kernel still holds for it
            finally:
                tcpdump.send_signal(signal.SIGINT)
                tcpdump.wait(20)
        dropped = re.search(r"(\d+) packets dropped by kernel", open(file + ".log").read())
        expect(dropped and dropped[1] == "0", f"a capture without losses: {open(file + '.log').read()}")
        for s in capture.segments(file):
            if not s.touches(self.outside) and not s.src.startswith(ADDRESSES) and not s.dst.startswith(ADDRESSES):
                seen.add(s)


class Wire:
    """Segments between the nodes: all, those with payload in clear, those to or from an application's port, those of tunnels."""

    def __init__(self):
        self.segments = self.tunnel = self.application = 0
        self.clear, self.examples = {}, []

    def add(self, s):
        self.segments += 1
        self.tunnel += TUNNEL in (s.sport, s.dport)
        in_clear = [p for p in PAYLOADS if p in s.payload]
        port = bool(PORTS & {s.sport, s.dport})
        self.application += port
        for p in in_clear:
            self.clear[p] = self.clear.get(p, 0) + 1
        if (in_clear or port) and len(self.examples) < 5:
            self.examples.append(f"{s.src}:{s.sport} -> {s.dst}:{s.dport} {s.payload[:80]!r}")

    def __str__(self):
        return f"{self.segments} segments between nodes, {self.tunnel} in tunnels, {self.application} at application ports, {sum(self.clear.values())} with payload in clear"


def expect(holds, what):
    if not holds:
        raise AssertionError("expected " + what)


def within(seconds, what, ready):
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.1)


def end_with_parent():
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
