"""Connections opened around kubectl label: how long new ones still go out in clear, and what becomes of those from before."""
import time

from lib import apps
from lib.kube import address
from lib.shell import check, wait
from lib.wire import HBONE

ORDER = 130
NEEDS = ("wire",)


def tell(world):
    kube, warren = world.kube, world.warren
    late, failed = [], 0
    for i in range(3):
        with world.namespace(f"e2e-window-{i}") as ns:
            client, server = world.pair(ns)
            with world.cluster.wire() as c, kube.background(client, apps.TRAFFIC, "loop", address(server), str(apps.ECHO), "200", "30") as loop, \
                    kube.background(client, apps.TRAFFIC, "hold", address(server), str(apps.ECHO), "3", "30") as held:
                time.sleep(1)
                labelled = world.label(ns)
                warren.captured(client, server)
                time.sleep(1)
                if i == 0:
                    counted(world, client)
                got, old = loop.result(), held.result()
            check(not old["failed"], f"connections from before the label were cut: {old}")
            failed += got["failed"]
            seen = c.seen.between(address(client))
            late.append(max([p.time for p in seen.opened(apps.ECHO)], default=labelled) - labelled)
            check(seen.port(HBONE), "nothing went through the mesh after the label")
    worst = max(0, *late)
    with world.namespace("e2e-window-reset") as ns:
        kube.kubectl("annotate", "namespace", ns, "warren.dev/existing=reset")
        client, server = world.pair(ns)
        with kube.background(client, apps.TRAFFIC, "hold", address(server), str(apps.ECHO), "3", "30") as held:
            time.sleep(1)
            world.label(ns)
            warren.captured(client, server)
            time.sleep(1)
            old = held.result()
        check(old["failed"] == 3, f"with existing: reset, connections from before the label live on: {old}")
    world.row("connections opened after kubectl label returned, in clear for", f"{worst:.3f} s at most of 3", "<= 0.05 s", worst <= 0.05)
    return (f"new connections in clear until {', '.join(f'{1000 * s:+.0f}' for s in late)} ms after the command's end; {failed} of the new ones failed; "
            "3 from before lived on and are counted, with existing: reset they ended")


def counted(world, client):
    """The agent counts the three connections from before the label, in a metric and in an Event of the pod."""
    def metric():
        left = {k: v for k, v in world.warren.metrics("agent", world.node_a).items() if "connections_left" in k}
        check(any(v >= 3 for v in left.values()), f"{left}")
        return True
    wait("the metric that counts the 3 connections from before", metric, 10)
    namespace, name = client["metadata"]["namespace"], client["metadata"]["name"]
    wait("the Event that counts the connections from before", lambda: any("connection" in e for e in world.kube.events(namespace, name)), 10)
