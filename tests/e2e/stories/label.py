"""A namespace joins the mesh and leaves it: what the wire shows before, during and after, no pod restarted."""
import time

from lib import apps
from lib.kube import address
from lib.shell import check
from lib.wire import HBONE

ORDER = 110
NEEDS = ("wire",)


def tell(world):
    kube, warren = world.kube, world.warren
    with world.namespace("e2e-label") as ns:
        client, server = world.pair(ns)
        kube.create(apps.server(ns, "out", world.node_b, labels=apps.OUT), apps.service(ns, "server"))
        kube.ready(f"{ns}/out")
        ips = address(client), address(server)
        vip = kube.api(f"api/v1/namespaces/{ns}/services/server")["spec"]["clusterIP"]

        plain(world, client, server, "before")

        start = time.monotonic()
        world.label(ns)
        warren.captured(client, server)
        enrolled = time.monotonic() - start
        check(not world.talk(client, ips[1]), "no answer in the mesh: " + world.talk(client, ips[1]))
        with world.cluster.wire() as c:
            said = world.talk(client, ips[1], count=3) or world.talk(client, vip, count=3)
        check(not said, f"no answer in the mesh: {said}")
        seen = c.seen.between(*ips)
        check(not seen.readable(), f"{len(seen.readable())} packets with readable payload in the mesh: {seen}")
        check(not seen.port(apps.ECHO), f"{len(seen.port(apps.ECHO))} packets to the application's port in the mesh")
        check(seen.port(HBONE), f"nothing to port {HBONE}: {seen}")
        check(not seen.tunnel_clear(), "HTTP in clear on the tunnel's port")
        records = seen.port(HBONE)
        handshakes = tls13(world, client, server)
        described = kube.kubectl("-n", ns, "get", "pod", "server", "-o", "yaml")
        check("ambient.istio.io/redirection: enabled" in described, "the annotation is not in kubectl get pod -o yaml")

        # the opt-out label of a pod is respected: its traffic stays in clear and it has no annotation
        out = kube.pod(f"{ns}/out")
        check("ambient.istio.io/redirection" not in out["metadata"].get("annotations", {}), "the pod that opted out is annotated")
        with world.cluster.wire() as c:
            check(not world.talk(client, address(out)), "the pod that opted out does not answer")
        check(c.seen.between(address(out)).readable(), "the pod that opted out is not reached in clear")

        check(all(s["restartCount"] == 0 for p in kube.pods(ns) for s in p["status"]["containerStatuses"]), "a pod was restarted")

        start = time.monotonic()
        world.label(ns, off=True)
        warren.released(client, server)
        left = time.monotonic() - start
        plain(world, client, server, "after")
        check(all(s["restartCount"] == 0 for p in kube.pods(ns) for s in p["status"]["containerStatuses"]), "a pod was restarted")
    return (f"in after {enrolled:.2f} s, out after {left:.2f} s; in the mesh: 0 readable, 0 to the port, {len(records)} packets of TLS, "
            f"{handshakes} TLS 1.3 handshakes")


def plain(world, client, server, when):
    with world.cluster.wire() as c:
        said = world.talk(client, address(server))
    check(not said, f"{when}: no answer: {said}")
    seen = c.seen.between(address(server))
    check(seen.readable() and seen.port(apps.ECHO), f"{when}: the payload is not readable on the wire: {seen}")
    check(not seen.port(HBONE), f"{when}: packets to port {HBONE}")


def tls13(world, client, server):
    """Handshakes seen when a new tunnel is made: that of an account that has none yet."""
    kube, ns = world.kube, client["metadata"]["namespace"]
    kube.create(apps.account(ns, "newcomer"))
    with world.cluster.wire() as c:
        kube.create(apps.first(ns, "newcomer", world.node_a, address(server), patience=0, account="newcomer"))
        pod = kube.ended(f"{ns}/newcomer")
    check(pod["status"]["phase"] == "Succeeded", f"a pod that starts in the mesh: {kube.logs(pod)}")
    seen = c.seen.between(address(server))
    check(not seen.readable(), "a new pod's payload is readable")
    check(not seen.port(apps.ECHO), "a new pod went to the application's port in clear")
    check(seen.tls13(), f"no TLS 1.3 handshake: {seen}")
    return len(seen.tls13())
