"""What a story is given: the cluster, its API, Warren, and places for what it makes and finds."""
import contextlib, time

from . import apps
from .shell import Failed, wait


class World:
    def __init__(self, cluster, kube, warren, directory):
        self.cluster, self.kube, self.warren, self.dir = cluster, kube, warren, directory
        self.notes = {}  # what one story leaves for a later one
        self.rows = []  # rows of the table of figures
        self.namespaces = []
        self.node_a, self.node_b = kube.nodes()[:2]

    def row(self, name, value, target="", ok=None, why=""):
        """A figure for the table at the end. `ok` is whether it meets its target, None where there is none."""
        self.rows.append((name, value, target, ok, why))

    @contextlib.contextmanager
    def namespace(self, name, ambient=False, labels=None):
        """A namespace of the story's own, which goes with it."""
        self.make_namespace(name, ambient, labels)
        try:
            yield name
        finally:
            with contextlib.suppress(Failed):
                self.kube.api(f"api/v1/namespaces/{name}", "DELETE", missing=True)

    def make_namespace(self, name, ambient=False, labels=None):
        self.kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {**(apps.AMBIENT if ambient else {}), **(labels or {})}}})
        self.namespaces.append(name)
        wait("the default service account", lambda: self.kube.api(f"api/v1/namespaces/{name}/serviceaccounts/default", missing=True), 20, 0.05)

    def label(self, namespace, off=False):
        """kubectl label of a namespace into the mesh or out of it; the Unix time at which the command had ended."""
        self.kube.kubectl("label", "namespace", namespace, "istio.io/dataplane-mode" + ("-" if off else "=ambient"), *([] if off else ["--overwrite"]))
        return time.time()

    def gone(self, seconds=60):
        """Waits until all namespaces of stories are gone."""
        def none():
            names = {n["metadata"]["name"] for n in self.kube.api("api/v1/namespaces")["items"]}
            return not names & set(self.namespaces)
        wait("the end of the stories' namespaces", none, seconds, 0.3)

    def pair(self, namespace, account=False, **more):
        """A client on one node and an echo server on the other, Ready."""
        k = self.kube
        if account:
            for name in ("client", "server"):
                k.create(apps.account(namespace, name))
        k.create(apps.client(namespace, "client", self.node_a, account="client" if account else None, **more),
                 apps.server(namespace, "server", self.node_b, account="server" if account else None, **more))
        return k.ready(f"{namespace}/client", f"{namespace}/server")

    def talk(self, client, target, port=apps.ECHO, count=3, patience=0):
        """Echoes over new connections; the error when one fails, else nothing."""
        for _ in range(count):
            said = self.kube.exec(client, apps.TRAFFIC, "first", target, str(port), str(patience), check=False)
            if '"ok":1' not in said:
                return said.strip()
        return ""
