"""A node without an agent (crash, missing image, node affinity): new pods of ambient namespaces there do not start, and their Events say why."""
import json

from lib import apps
from lib.kube import address
from lib.shell import check, wait
from lib.warren import CHART, NAMESPACE, RELEASE

ORDER = 460
NEEDS = ("node", "wire")


def tell(world):
    kube, warren = world.kube, world.warren
    nodes = (world.node_a, world.node_b)
    elsewhere = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [world.node_a]}]}]}}}
    ways = {
        "crash": lambda: change(world, "args", ["agent", "--no-such-flag"]),
        "image": lambda: change(world, "image", "localhost/warren:never-made"),
        "affinity": lambda: warren.helm("upgrade", RELEASE, CHART, *warren.values(), "--set-json", "agent.affinity=" + json.dumps(elsewhere)),
    }
    reasons = {}
    with world.namespace("e2e-absent", ambient=True) as ns, world.namespace("e2e-absent-plain") as plain:
        kube.create(*(apps.server(ns, f"server-{n}", n) for n in nodes))
        servers = dict(zip(nodes, warren.captured(*kube.ready(*(f"{ns}/server-{n}" for n in nodes)))))
        try:
            for way, remove in ways.items():
                remove()
                node = absent(world)
                other = nodes[1 - nodes.index(node)]
                with world.cluster.wire() as c:
                    kube.create(apps.first(ns, way, node, address(servers[other]), patience=60000), apps.client(plain, way, node))
                    reasons[way] = wait(f"{way}: an Event with the reason", lambda: reason(kube, ns, way), 40)
                    check(kube.pod(f"{ns}/{way}")["status"]["phase"] == "Pending", f"{way}: the pod started without an agent")
                    kube.ready(f"{plain}/{way}", seconds=40)
                    said = world.talk(servers[node], address(servers[other])) or world.talk(servers[other], address(servers[node]))
                    check(not said, f"{way}: a captured pod lost its connections with the agent: {said}")
                    warren.upgrade()
                    warren.healthy(120)
                    ended = kube.ended(f"{ns}/{way}", seconds=90)
                    check(ended["status"]["phase"] == "Succeeded", f"{way}: the pod that waited got no answer: {kube.logs(ended)}")
                check(not c.seen.readable(), f"{way}: {len(c.seen.readable())} packets in clear")
        except BaseException:
            warren.upgrade()  # what follows needs its agent
            raise
    return f"{', '.join(ways)}: the pod waits, starts when the agent is back, never in clear; its Event: {reasons['crash'][:150]}"


def change(world, field, value):
    """Makes the agent unable to run; the rollout replaces it on one node and waits there."""
    world.kube.kubectl("-n", NAMESPACE, "patch", "daemonset/warren-agent", "--type=json", "-p",
                       json.dumps([{"op": "replace", "path": f"/spec/template/spec/containers/0/{field}", "value": value}]))


def absent(world):
    """The node that has no working agent, once there is one."""
    def gone():
        for node in (world.node_a, world.node_b):
            pods = world.kube.pods(NAMESPACE, "app=warren-agent", node)
            if not any(s.get("started") and s.get("state", {}).get("running") for p in pods for s in p["status"].get("containerStatuses", [])):
                return node
    return wait("the end of an agent", gone, 90, 0.3)


def reason(kube, namespace, name):
    return next((e for e in kube.events(namespace, name) if "FailedCreatePodSandBox" in e and "warren" in e), None)
