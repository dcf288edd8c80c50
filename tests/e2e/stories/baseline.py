"""Without a mesh: the figures that those with Warren are compared with."""
from lib import apps, measure
from lib.kube import address

ORDER = 10
NEEDS = ("node",)


def tell(world):
    with world.namespace("e2e-baseline") as ns:
        world.kube.create(apps.server(ns, "server", world.node_b))
        server = world.kube.ready(f"{ns}/server")
        results = measure.starts(world, ns, 30, target=address(server))
        first = [r["max_us"] / 1000 for r in results if r["ok"]]
        made = [1000 * s for s in measure.sandboxes(world, world.node_a, {r["name"] for r in results})]
        burst = measure.starts(world, ns, 20, 20, prefix="burst", target=address(server))
    with measure.iperf_pair(world, "e2e-baseline-iperf", ambient=False) as (client, server):
        speeds = [measure.iperf(world, client, address(server), n) for n in (1, 8)]
    world.notes["baseline"] = {"first": first, "sandbox": made, "burst": max(r["max_us"] for r in burst) / 1000, "iperf": speeds}
    return (f"first echo {measure.ms(first, 50)}/{measure.ms(first, 99)} ms, sandbox {measure.ms(made, 50)}/{measure.ms(made, 99)} ms, "
            f"20 at once {world.notes['baseline']['burst']:.0f} ms, iperf3 {speeds[0]:.1f}/{speeds[1]:.1f} Gb/s")
