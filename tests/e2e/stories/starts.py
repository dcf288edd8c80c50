"""Pods that connect by their first instruction: 200 in a row on a busy node, 20 at once; not a byte in clear, and how long they wait."""
from lib import apps, measure
from lib.kube import address
from lib.shell import check

ORDER = 310
NEEDS = ("wire", "node")


def tell(world):
    kube = world.kube
    with world.namespace("e2e-starts", ambient=True) as ns:
        kube.create(apps.server(ns, "server", world.node_b))
        server = world.warren.captured(kube.ready(f"{ns}/server"))
        ip = address(server)
        with world.cluster.wire() as c:
            quiet = measure.starts(world, ns, 30, prefix="quiet", target=ip)
            burst = measure.starts(world, ns, 20, 20, prefix="burst", target=ip)
            kube.create(*(apps.pod(ns, f"load-{i}", "sh", "-c", "while :; do :; done", node=world.node_a) for i in range(2)))
            kube.ready(f"{ns}/load-0", f"{ns}/load-1")
            busy = measure.starts(world, ns, 200, 10, prefix="busy", target=ip)
        seen, all_of_them = c.seen.between(ip), quiet + burst + busy
        failed = [r for r in all_of_them if not r["ok"]]
        check(not seen.readable(), f"{len(seen.readable())} packets in clear")
        check(not seen.port(apps.ECHO), f"{len(seen.port(apps.ECHO))} packets to the application's port")
        check(not failed, f"{len(failed)} of {len(all_of_them)} got no echo: {failed[:3]}")
    first = [r["max_us"] / 1000 for r in quiet]
    made = [1000 * s for s in measure.sandboxes(world, world.node_a, {r["name"] for r in quiet})]
    slowest = max(r["max_us"] for r in burst) / 1000
    base = world.notes.get("baseline")
    without = lambda key: f" (without {measure.ms(base[key], 50)} / {measure.ms(base[key], 99)})" if base else ""
    p = measure.percentile
    world.row("first connect + 64 B echo by a pod's first instruction, p50 / p99", f"{measure.ms(first, 50)} / {measure.ms(first, 99)} ms" + without("first"),
              "<= 15 / 40 ms", p(first, 50) <= 15 and p(first, 99) <= 40)
    world.row("sandbox creation incl. CNI, p50 / p99", f"{measure.ms(made, 50)} / {measure.ms(made, 99)} ms" + without("sandbox"),
              "<= 140 / 165 ms, 11 / 14 ms more than without", p(made, 50) <= 140 and p(made, 99) <= 165)
    world.row("20 such pods at once, slowest first echo", f"{slowest:.0f} ms" + (f" (without {base['burst']:.0f})" if base else ""), "<= 250 ms", slowest <= 250)
    busy_first = [r["max_us"] / 1000 for r in busy]
    return (f"{len(all_of_them)} starts, 0 packets in clear; first echo {measure.ms(first, 50)}/{measure.ms(first, 99)} ms, on a busy node "
            f"{measure.ms(busy_first, 50)}/{measure.ms(busy_first, 99)} ms, 20 at once {slowest:.0f} ms; sandbox {measure.ms(made, 50)}/{measure.ms(made, 99)} ms")
