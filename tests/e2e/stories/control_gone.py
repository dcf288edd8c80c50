"""The control plane is away for a minute: traffic goes on, known identities start, unknown ones wait and are never in clear."""
import json, time

from lib import apps, trouble
from lib.kube import address
from lib.shell import check, wait
from lib.warren import NAMESPACE

ORDER = 420
NEEDS = ("wire",)
AWAY = 60


def tell(world):
    kube = world.kube
    with trouble.meshed_pair(world, "e2e-control-gone", account=True) as (ns, client, server):
        kube.create(apps.account(ns, "unknown"))
        scale(kube, 0)
        try:
            wait("the control plane's end", lambda: not kube.pods(NAMESPACE, "app=warren-control"), 60)
            start = time.monotonic()
            with trouble.Load(world, client, address(server)) as load:
                kube.create(apps.first(ns, "known", world.node_a, address(server), account="client"),
                            apps.first(ns, "new", world.node_a, address(server), patience=120000, account="unknown"))
                known = kube.ended(f"{ns}/known", seconds=40)
                got = json.loads(kube.logs(known))
                time.sleep(max(0, AWAY - (time.monotonic() - start)))
                early = kube.pod(f"{ns}/new")
                check(early["status"]["phase"] != "Succeeded", "a pod whose identity nobody could certify got through")
                scale(kube, 2)
                late = kube.ended(f"{ns}/new", seconds=90)
                check(late["status"]["phase"] == "Succeeded", f"a pod of an unknown account never got through: {kube.logs(late)}")
        finally:
            scale(kube, 2)
            kube.rollout(NAMESPACE, "deployment/warren-control")
            back = time.monotonic()
        world.warren.synced()
        back = time.monotonic() - back
        check(not load.new["failed"] and not load.long["failed"], f"traffic suffered: {load.said()}")
        works = known["status"]["phase"] == "Succeeded"
        check(works, f"a new pod of an account that is on the node got no answer: {got}")
    world.row("a new pod while the control plane is away, its account known", f"works, first echo after {got['max_us'] / 1000:.0f} ms" if works else "no answer", "works", works)
    return f"away {AWAY} s: {load.said()}; new pod of a known account answered after {got['max_us'] / 1000:.0f} ms, of an unknown one once control was back; proxies heard of it {back:.1f} s after its rollout"


def scale(kube, replicas):
    kube.kubectl("-n", NAMESPACE, "scale", "deployment/warren-control", f"--replicas={replicas}")
