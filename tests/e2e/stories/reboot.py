"""A node reboots: its pods are captured again by themselves, and nothing that they send before is in clear."""
import time

from lib import apps
from lib.kube import address, is_ready
from lib.shell import check, wait

ORDER = 440
NEEDS = ("reboot", "wire", "node")


def tell(world):
    kube, warren = world.kube, world.warren
    warren.synced()
    with world.namespace("e2e-reboot", ambient=True) as ns:
        kube.create(apps.server(ns, "far", world.node_a), apps.server(ns, "server", world.node_b), apps.service(ns, "server"), apps.client(ns, "client", world.node_a))
        far, server, client = warren.captured(*kube.ready(f"{ns}/far", f"{ns}/server", f"{ns}/client"))
        # one that sends as soon as it runs, also after the reboot
        kube.create(apps.pod(ns, "talker", apps.TRAFFIC, "loop", address(far), str(apps.ECHO), "50", "600", node=world.node_b))
        warren.captured(kube.ready(f"{ns}/talker"))
        vip = kube.api(f"api/v1/namespaces/{ns}/services/server")["spec"]["clusterIP"]
        restarts = count(kube.pod(server))
        with world.cluster.wire() as c:
            with kube.background(client, apps.TRAFFIC, "loop", vip, str(apps.ECHO), "20", "120", "1000") as loop:
                time.sleep(1)
                start = time.time()
                world.cluster.reboot(world.node_b)
                wait("the pod after the reboot", lambda: (p := kube.pod(server)) and count(p) > restarts and is_ready(p), 90)
                wait("an answer after the reboot", lambda: not world.talk(client, vip), 60)
                time.sleep(1)
                got = loop.result()
            warren.healthy(120)
            again = warren.captured(f"{ns}/server", f"{ns}/talker", seconds=60)
            check(not world.talk(client, address(again[0])), "no answer after the reboot")
        clear = c.seen.readable()
        check(not clear, f"{len(clear)} packets in clear after a reboot, the first {clear[0].src} to {clear[0].dst}:{clear[0].dport}, {clear[0].time - start:.1f} s after it"
              if clear else "")
        # away from the first failure until the first answer after it
        seconds = got["longest_gap_us"] / 1e6
        check("15008" in warren.rules(again[0]) or "15006" in warren.rules(again[0]), "no rules in the pod after the reboot")
    world.row("node reboot until its captured pod answers again", f"{seconds:.1f} s", "<= 8 s", seconds <= 8)
    return f"its pod answered again after {seconds:.1f} s, captured; 0 packets in clear"


def count(pod):
    return sum(s["restartCount"] for s in pod["status"].get("containerStatuses", []))
