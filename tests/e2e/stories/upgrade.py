"""helm upgrade and rolling restarts under load: how many connections fail and how many are cut."""
import time

from lib import trouble
from lib.kube import address
from lib.shell import check
from lib.warren import NAMESPACE

ORDER = 450
NEEDS = ("node", "wire")


def tell(world):
    kube, warren = world.kube, world.warren
    with trouble.meshed_pair(world, "e2e-upgrade") as (ns, client, server):
        with trouble.Load(world, client, address(server), rate=40) as rolled:
            start = time.monotonic()
            kube.kubectl("-n", NAMESPACE, "rollout", "restart", "daemonset/warren-proxy")
            kube.rollout(NAMESPACE, "daemonset/warren-proxy", seconds=180)
            warren.healthy(120)
            time.sleep(max(1, 26 - (time.monotonic() - start)))
        image = f"{warren.image}-next"
        for node in (world.node_a, world.node_b):
            world.cluster.node(node, "/opt/kube/ctr", "-n", "k8s.io", "images", "tag", "--force", warren.image, image)
        with trouble.Load(world, client, address(server), rate=40) as upgraded:
            start = time.monotonic()
            warren.upgrade(image)
            warren.healthy(120)
            seconds = time.monotonic() - start
        images = {c["image"] for p in kube.pods(NAMESPACE) for c in p["spec"]["containers"]}
        check(images == {image}, f"after the upgrade the images are {images}")
        warren.image = image
        warren.captured(client, server)
    world.row(f"rolling restart of the proxies, {rolled.new['started']} new connections", f"{rolled.new['failed']} fail, {rolled.long['failed']} of {rolled.long['started']} long ones cut",
              "0 fail", not rolled.new["failed"])
    check(rolled.new["failed"] == 0, f"rolling restart: {rolled.said()}")
    check(upgraded.new["failed"] == 0, f"helm upgrade: {upgraded.said()}")
    return f"rolling restart: {rolled.said()}; helm upgrade of all ({seconds:.0f} s): {upgraded.said()}"
