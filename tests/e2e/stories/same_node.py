"""Two pods of one node: their traffic is authenticated and encrypted too, with the identities of their service accounts."""
import time

from lib import apps
from lib.kube import address
from lib.shell import check
from lib.wire import HBONE

ORDER = 120
NEEDS = ("node",)


def tell(world):
    kube, warren = world.kube, world.warren
    with world.namespace("e2e-same-node") as ns:
        kube.create(apps.account(ns, "left"), apps.account(ns, "right"))
        kube.create(apps.client(ns, "left", world.node_a, account="left"), apps.server(ns, "right", world.node_a, account="right"))
        left, right = kube.ready(f"{ns}/left", f"{ns}/right")
        check(talk(world, left, right).readable(), "before: the payload is not readable on the node")
        world.label(ns)
        warren.captured(left, right)
        start = time.time()
        seen = talk(world, left, right)
        check(not seen.readable() and not seen.port(apps.ECHO), f"readable between two pods of one node: {seen}")
        check(seen.port(HBONE), f"nothing to port {HBONE}: {seen}")
        lines = warren.access(world.node_a, time.time() - start, f"ns/{ns}/sa/left", f"ns/{ns}/sa/right")
        check(lines, "the access log does not name both identities")
    return f"{len(seen.port(HBONE))} packets of TLS on the node, 0 readable; both SPIFFE ids in the access log"


def talk(world, left, right):
    with world.cluster.inside(world.node_a) as c:
        said = world.talk(left, address(right))
    check(not said, f"no answer: {said}")
    return c.seen.between(address(left), address(right))
