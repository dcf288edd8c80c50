"""iperf3 between two pods on two nodes, with the processor time of the daemons."""
import time

from lib import measure
from lib.kube import address

ORDER = 300
NEEDS = ("node",)


def tell(world):
    with measure.iperf_pair(world, "e2e-throughput", ambient=True) as (client, server):
        proxies = [world.warren.pod("proxy", n) for n in (world.node_a, world.node_b)]
        speeds, cores = [], []
        for connections in (1, 8):
            before, start = sum(map(world.warren.cpu, proxies)), time.monotonic()
            speeds.append(measure.iperf(world, client, address(server), connections))
            cores.append((sum(map(world.warren.cpu, proxies)) - before) / (time.monotonic() - start))
    base = world.notes.get("baseline", {}).get("iperf")
    without = f"{base[0]:.1f} / {base[1]:.1f}" if base else "not measured"
    world.row("iperf3 between nodes, 1 / 8 connections", f"{speeds[0]:.1f} / {speeds[1]:.1f} Gb/s at {cores[0]:.1f} / {cores[1]:.1f} cores (without: {without})", "reported")
    return f"{speeds[0]:.1f} / {speeds[1]:.1f} Gb/s with 1 / 8 connections at {cores[0]:.1f} / {cores[1]:.1f} cores; without a mesh {without}"
