"""A node without an agent (missing image, node affinity): new pods of ambient namespaces there do not start, and their Events say why."""
import json, time

from lib import apps
from lib.kube import address
from lib.shell import Failed, check, wait
from lib.warren import NAMESPACE

ORDER = 460
NEEDS = ("node", "wire")


def tell(world):
    kube, warren = world.kube, world.warren
    with world.namespace("e2e-absent", ambient=True) as ns, world.namespace("e2e-absent-plain") as plain:
        kube.create(apps.server(ns, "server", world.node_b), apps.client(ns, "old", world.node_a))
        server, old = warren.captured(*kube.ready(f"{ns}/server", f"{ns}/old"))
        reasons = []
        for kind, remove, bring_back in (
                ("missing image", lambda: missing_image(world), lambda: None),
                ("node affinity", lambda: warren.helm("upgrade", "warren", chart(), *warren.values(), "--set-json", "agent.affinity=" + json.dumps(elsewhere(world.node_a))),
                 lambda: None)):
            remove()
            wait(f"the agent's end on {world.node_a}", lambda: not running(world), 60)
            with world.cluster.wire() as c:
                name = "first-" + kind.split()[1]
                kube.create(apps.first(ns, name, world.node_a, address(server), patience=60000))
                kube.create(apps.client(plain, "plain-" + kind.split()[1], world.node_a))
                event = wait("an Event with the reason", lambda: next((e for e in kube.events(ns, name) if "warren" in e.lower() and "Sandbox" in e), None), 40)
                check(kube.pod(f"{ns}/{name}")["status"]["phase"] == "Pending", "the pod started without an agent")
                kube.ready(f"{plain}/plain-" + kind.split()[1], seconds=40)
                check(not (said := world.talk(old, address(server))), f"a captured pod lost its connections with the agent: {said}")
                warren.upgrade()
                warren.healthy(120)
                ended = kube.ended(f"{ns}/{name}", seconds=90)
                check(ended["status"]["phase"] == "Succeeded", f"the pod that waited got no answer: {kube.logs(ended)}")
            check(not c.seen.readable(), f"{kind}: {len(c.seen.readable())} packets in clear")
            reasons.append(event)
    return f"missing image and node affinity: the pod waits, starts when the agent is back, never in clear; its Event: {reasons[0][:140]}"


def chart():
    from lib.warren import CHART
    return CHART


def missing_image(world):
    """Of the agent on one node only, so that the rollout waits there: the pod is replaced by hand."""
    kube = world.kube
    kube.kubectl("-n", NAMESPACE, "patch", "daemonset/warren-agent", "--type=json", "-p", json.dumps(
        [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "localhost/warren:never-made"},
         {"op": "replace", "path": "/spec/updateStrategy", "value": {"type": "OnDelete"}}]))
    kube.delete(world.warren.pod("agent", world.node_a), 1)


def elsewhere(node):
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [node]}]}]}}}


def running(world):
    return [p for p in world.kube.pods(NAMESPACE, "app=warren-agent", world.node_a) if any(s.get("state", {}).get("running") for s in p["status"].get("containerStatuses", []))]
