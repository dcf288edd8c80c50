"""The cluster that the stories are told on: our own of tests/kube, or any that KUBECONFIG names."""
import contextlib, json, os, signal

from . import build
from .shell import check, run
from .wire import Capture

CLUSTER = build.KUBE + "/cluster"
AUDIT = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
    {"level": "Metadata", "users": [f"system:serviceaccount:warren-system:warren-{r}" for r in ("agent", "control", "proxy")]}, {"level": "None"}]}


class Own:
    """A cluster of tests/kube, in a directory of its own. It can do everything."""
    can = frozenset({"node", "wire", "reboot", "audit", "images"})

    def __init__(self, directory, programs):
        self.dir, self.audit_log = directory + "/cluster", directory + "/audit.log"
        self.env = {**os.environ, "KUBE_BIN": programs}
        self.programs = programs
        with open(directory + "/audit.json", "w") as f:
            json.dump(AUDIT, f)
        self.env["KUBE_APISERVER_ARGS"] = (f"--audit-policy-file={directory}/audit.json --audit-log-path={self.audit_log} "
                                           + os.environ.get("KUBE_APISERVER_ARGS", ""))
        self.kubectl = [programs + "/kube", "kubectl"]

    def up(self):
        self.kubeconfig = run(CLUSTER, "up", self.dir, "--nodes", "2", timeout=180, env=self.env).strip().splitlines()[-1]

    def down(self):
        run(CLUSTER, "down", self.dir, timeout=60, env=self.env)

    def load(self, *archives):
        run(CLUSTER, "load", self.dir, *archives, timeout=300, env=self.env)

    def node(self, node, *command, timeout=60, check=True, input=None):
        """Runs a program on a node."""
        return run(CLUSTER, "node-exec", self.dir, node, "--", *command, timeout=timeout, check=check, env=self.env, input=input)

    def script(self, node, text, **more):
        return self.node(node, "bash", "-c", text, **more)

    def control(self, text, **more):
        """Runs a script where the control plane runs."""
        pid = read(self.dir + "/control/pid")
        return run("nsenter", "-t", pid, "-a", "bash", "-c", text, **more)

    def wire(self, expression="tcp", snap=0):
        """A capture of what goes between the nodes."""
        return Capture("env", "KUBE_BIN=" + self.programs, CLUSTER, "wire", self.dir, "--", expression=expression, snap=snap)

    def inside(self, node, interface="any", expression="tcp"):
        """A capture of what passes a node's interfaces, the pods' own among them; what goes between two pods is seen twice."""
        return Capture("env", "KUBE_BIN=" + self.programs, CLUSTER, "node-exec", self.dir, node, "--", "tcpdump", "-i", interface, expression=expression)

    def reboot(self, node):
        run(CLUSTER, "reboot", self.dir, node, timeout=150, env=self.env)

    def runtime_log(self, node):
        return read(f"{self.dir}/{node}/root/var/log/containerd.log")

    def files(self, node):
        """The root directory of a node, as seen from here."""
        return f"{self.dir}/{node}/root"

    @contextlib.contextmanager
    def api_server_away(self):
        """Holds the API server still: connections to it hang, as when a network is cut."""
        pids = [p for p in read_lines(f"/proc/{read(self.dir + '/control/pid').strip()}/task/{read(self.dir + '/control/pid').strip()}/children")]
        found = [int(p) for p in pids if read(f"/proc/{p}/cmdline").startswith("kube-apiserver")]
        check(found, "there is no API server to hold")
        os.kill(found[0], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(found[0], signal.SIGCONT)


class Given:
    """The cluster of KUBECONFIG: what a cluster's API cannot do is not possible here."""
    can = frozenset()

    def __init__(self, kubeconfig):
        self.kubeconfig, self.kubectl = kubeconfig, ["kubectl"]

    def up(self):
        pass

    down = up

    def load(self, *archives):
        """The nodes of such a cluster have the images, or a registry has: WARREN_IMAGE_NAME and APPS_IMAGE name them."""


def read(path):
    with open(path, errors="replace") as f:
        return f.read()


def read_lines(path):
    return read(path).split()
