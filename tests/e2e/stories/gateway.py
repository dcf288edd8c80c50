"""The tutorials our users start from: applications behind Gateway API gateways, first without the mesh, then with every namespace in it."""
import contextlib, tempfile

from apps.gateway import programs
from apps.gateway.tutorials import NAMESPACES, TEXTS, Tutorials
from lib import build
from lib.kube import address
from lib.shell import check, wait

ORDER = 500
NEEDS = ("node", "wire", "images")
OUTSIDE = "172.30.0.1"  # the control plane's address on the wire: neither a node nor a pod


def tell(world):
    with tutorials(world) as t:
        before, split = without_mesh(t)
        return f"{before}, v2 {split} of 1000; {in_mesh(world, t)}"


@contextlib.contextmanager
def tutorials(world):
    """Envoy Gateway on the cluster, the examples' directory, and a world outside; all of it goes at the end."""
    kube, cluster = world.kube, world.cluster
    cluster.load(*programs.images())
    nodes = {n["metadata"]["name"]: next(a["address"] for a in n["status"]["addresses"] if a["type"] == "InternalIP") for n in kube.api("api/v1/nodes")["items"]}
    helm = [build.helm(), "--kubeconfig", kube.kubeconfig]
    with tempfile.TemporaryDirectory(dir=world.dir) as place, Tutorials(place, kube.command, helm, programs.chart(), programs.ENVOY_IMAGE, cluster.dir, nodes,
                                                                        OUTSIDE, cluster.wire) as t:
        world.namespaces += NAMESPACES
        t.controller()
        yield t
        t.remove()


def without_mesh(t):
    """What the wire between the nodes shows of the tutorials without the mesh, and the canary's share."""
    with t.wire() as seen:
        t.http()
        t.https()
        t.passthrough()
        t.again()
        split = t.canary()
    check(seen.texts == set(TEXTS), f"without the mesh everything should be readable between the nodes, yet {set(TEXTS) - seen.texts} was not: {seen}")
    return seen, split


def in_mesh(world, t):
    """The same with every namespace labelled, no pod restarted; then with the services' own namespaces STRICT."""
    kube = world.kube
    pods = [p for n in NAMESPACES for p in kube.pods(n)]
    t.label()
    world.warren.captured(*pods)
    with t.wire() as seen:
        t.again()
        split = t.canary_again()
    check(not seen.readable and not seen.application, f"{seen}: {seen.examples}")
    check(seen.tunnel > 100, f"hardly anything in tunnels: {seen}")
    check({p["metadata"]["uid"] for p in pods} == {p["metadata"]["uid"] for n in NAMESPACES for p in kube.pods(n)}, "a pod was replaced")
    apple = address(kube.pods("apple", "app=apple")[0])
    check(t.outsider(f"http://{apple}:5678/").strip() == "apple", "a client outside of the mesh should reach a pod of a PERMISSIVE namespace")
    t.strict()
    wait("STRICT to refuse a client outside of the mesh", lambda: t.outsider(f"http://{apple}:5678/").startswith("curl:"), 10)
    with t.wire() as strict:
        t.again()
    check(not strict.readable and not strict.application, f"under STRICT: {strict}: {strict.examples}")
    return f"in the mesh: {seen}, v2 {split} of 1000; the same answers under STRICT"
