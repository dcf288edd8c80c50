"""The proxy of a node is deleted, then killed, then killed again: traffic is back soon and never in clear."""
import time

from lib import trouble
from lib.kube import address
from lib.shell import check

ORDER = 400
NEEDS = ("node", "wire")


def tell(world):
    warren = world.warren
    with trouble.meshed_pair(world, "e2e-proxy-gone") as (ns, client, server):
        def load():
            return trouble.Load(world, client, address(server))
        with load() as deleted:
            world.kube.kubectl("-n", "warren-system", "delete", "pod", warren.pod("proxy", world.node_b)["metadata"]["name"], "--wait=true", timeout=90)
            warren.healthy()
            time.sleep(2)
        gap = deleted.new["longest_gap_us"] / 1e6
        check(gap <= 5, f"pod deleted: traffic was away for {gap:.1f} s")
        with load() as killed:
            warren.kill("proxy", world.node_b)
            time.sleep(6)
        with load() as again:
            warren.kill("proxy", world.node_b)
            time.sleep(3)
            warren.kill("proxy", world.node_b)
            time.sleep(8)
        warren.healthy()
    failed, out = killed.new["failed"], killed.new["longest_gap_us"] / 1e6
    second = again.new["longest_gap_us"] / 1e6
    world.row("proxy killed (SIGKILL) under 10 new connections/s", f"{failed} fail, out {out:.1f} s; twice within 3 s: {again.new['failed']} fail, out {second:.1f} s",
              "<= 12 fail, out <= 1.2 s; a second kill no back-off", failed <= 12 and out <= 1.2 and second <= 3)
    return f"deleted: {deleted.said()}; killed: {failed} failed, out {out:.1f} s; killed twice: {again.new['failed']} failed, out {second:.1f} s"
