"""Warren's proxy with everything that it is told: identities, the mesh, its pods."""
import json, os, socket, threading

from lib.authority import field
from lib.shell import Failed, run, wait
from place import MISLED, NODE, PODS, REDIRECTED, ask, end_of_file, handle, start, stop

READINESS = 15021
# Certificates that Envoy shows: the account, and its trust domain.
ENVOYS = {"gateway": "cluster.local", "intruder": "cluster.local", "foreign": "other.example"}


def identity(account, trust_domain="cluster.local"):
    return f"spiffe://{trust_domain}/ns/default/sa/{account}"


def certificates(directory):
    """One authority, for Warren as FAKE_CA_ROOT, and what it signs for Envoy: NAME.pem, NAME.key."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    previous = os.umask(0o077)  # Warren takes no key that others can read
    try:
        run("openssl", "req", "-x509", *key, "-days", "2", "-subj", "/O=test", "-keyout", f"{directory}/root.key", "-out", f"{directory}/root.pem",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        for name, trust_domain in ENVOYS.items():
            request = run("openssl", "req", *key, "-subj", "/", "-keyout", f"{directory}/{name}.key", "-addext", f"subjectAltName=URI:{identity(name, trust_domain)}",
                          "-addext", "keyUsage=critical,digitalSignature", "-addext", "extendedKeyUsage=serverAuth,clientAuth")
            run("openssl", "x509", "-req", "-days", "1", "-copy_extensions", "copy", "-CA", f"{directory}/root.pem", "-CAkey", f"{directory}/root.key",
                "-out", f"{directory}/{name}.pem", input=request)
    finally:
        os.umask(previous)


def described():
    """The mesh as Warren's local file: each pod is its own account. Only the gateway may reach the server."""
    def workload(name, address, **more):
        return {"name": name, "namespace": "default", "serviceAccount": name, "workloadIps": [address], "node": NODE, "services": {}, **more}

    waypoint = {"destination": f"/{PODS['gateway']}"}
    of_mesh = {"protocol": "HBONE"}
    workloads = [workload("client", PODS["client"], **of_mesh), workload("stranger", PODS["stranger"], **of_mesh),
                 workload("server", PODS["server"], **of_mesh, authorizationPolicies=["default/gateway-only"]), workload("gateway", PODS["gateway"], **of_mesh),
                 workload("backend", PODS["backend"], waypoint={**waypoint, "hboneMtlsPort": 15008}),
                 workload("misled", MISLED, waypoint={**waypoint, "hboneMtlsPort": 15009})]
    principal = identity("gateway").removeprefix("spiffe://")
    return f"""workloads: {json.dumps(workloads)}
policies:
- name: gateway-only
  namespace: default
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [!Exact {principal}]
"""


class Agent(threading.Thread):
    """Hands the pods to a proxy that asks on its socket (ZDS)."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server.bind(path)
        self.server.listen()
        self.proxies = []

    def run(self):
        try:
            while True:
                proxy, _ = self.server.accept()
                self.proxies.append(proxy)
                proxy.recv(4096)  # hello
                for pod in REDIRECTED:
                    info = field(1, pod.encode()) + field(2, b"default") + field(3, pod.encode())
                    with handle(pod) as namespace:
                        socket.send_fds(proxy, [field(1, field(1, pod.encode()) + field(2, info))], [namespace.fileno()])
                    proxy.recv(4096)
                proxy.send(field(3, b""))  # these are all
                proxy.recv(4096)
        except OSError:
            pass  # the test is over

    def close(self):
        for s in (self.server, *self.proxies):
            s.close()


class Proxy:
    """`warren proxy` for the pods, with an engine."""

    def __init__(self, program, engine, directory):
        self.log, self.agent = f"{directory}/warren-{engine}.log", f"{directory}/agent-{engine}"
        with open(f"{directory}/mesh.yaml", "w") as f:
            f.write(described())
        self.zds = Agent(self.agent)
        self.zds.start()
        settings = {"LOCAL_XDS_PATH": f"{directory}/mesh.yaml", "FAKE_CA": "true", "FAKE_CA_ROOT": f"{directory}/root.pem:{directory}/root.key", "INPOD_UDS": self.agent,
                    "NODE_NAME": NODE, "XDS_ADDRESS": "", "IPV6_ENABLED": "false", "HBONE_ENGINE": engine, "LOG_FORMAT": "json", "ZTUNNEL_WORKER_THREADS": "2",
                    "RUST_LOG": os.environ.get("RUST_LOG", "info")}
        self.process = start(NODE, [program, "proxy"], self.log, settings)
        wait("Warren's proxy", self.ready, 30)

    def ready(self):
        if self.process.poll() is not None:
            raise Failed(f"it ended: {end_of_file(self.log)}")
        return ask(NODE, READINESS, "/healthz/ready")

    def mark(self):
        """A place in the log, for `since`."""
        return os.path.getsize(self.log)

    def since(self, mark):
        """Lines about connections since then, as dictionaries."""
        with open(self.log, "rb") as f:
            f.seek(mark)
            lines = [json.loads(line) for line in f.read().splitlines() if line.startswith(b"{") and line.endswith(b"}")]
        return [line for line in lines if line.get("target") == "access"]

    def stop(self):
        stop(self.process)
        self.zds.close()
