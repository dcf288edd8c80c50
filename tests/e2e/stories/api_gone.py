"""The API server is away for a minute: traffic, old and new, is not concerned."""
import time

from lib import apps, trouble
from lib.cluster import CLUSTER
from lib.kube import Background, address
from lib.shell import check

ORDER = 430
NEEDS = ("node", "wire")
AWAY = 60


def tell(world):
    with trouble.meshed_pair(world, "e2e-api-gone") as (ns, client, server):
        # clients run on the nodes themselves: kubectl exec would go through the API server
        inside = loop(world, client, address(server))
        with world.cluster.wire() as c:
            with world.cluster.api_server_away():
                time.sleep(AWAY)
            got = inside.result()
        check(not got["failed"] and got["ok"] > 5 * AWAY, f"traffic suffered: {got}")
        check(not c.seen.readable(), f"{len(c.seen.readable())} packets in clear")
        world.warren.healthy(120)
        world.warren.captured(client, server)
    return f"away {AWAY} s: 0 of {got['started']} new connections failed, 0 packets in clear"


def loop(world, pod, target):
    """A loop of connections by a process in a pod's container, started from its node."""
    return Background(["env", "KUBE_BIN=" + world.cluster.programs, CLUSTER, "node-exec", world.cluster.dir, pod["spec"]["nodeName"], "--",
                       "nsenter", "-t", str(world.warren.pids(pod)[0]), "-n", "-m", apps.TRAFFIC, "loop", target, str(apps.ECHO), "10", str(AWAY + 60), "1000"])
