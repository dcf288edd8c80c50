"""helm uninstall leaves nothing behind, also on a node that lost its agent, and the pods talk in clear again without a restart."""
import re, time

from lib import apps
from lib.kube import address
from lib.shell import check, wait
from lib.warren import CHART, NAMESPACE
from stories import agent_absent

ORDER = 900
NEEDS = ("node", "wire")


def tell(world):
    kube, warren, cluster = world.kube, world.warren, world.cluster
    with world.namespace("e2e-uninstall", ambient=True) as ns:
        client, server = warren.captured(*world.pair(ns))
        check(not world.talk(client, address(server)), "no answer in the mesh")
        # one node has lost its agent: a pod waits there, as it has to; with Warren it goes too
        agent_absent.change(world, "args", ["agent", "--no-such-flag"])
        node = agent_absent.absent(world)
        kube.create(apps.server(ns, "waiting", node))
        wait("an Event with the reason", lambda: agent_absent.reason(kube, ns, "waiting"), 40)
        start = time.monotonic()
        warren.uninstall()
        seconds = time.monotonic() - start
        wait("the end of Warren's pods", lambda: not kube.pods(NAMESPACE), 60)
        for node in (world.node_a, world.node_b):
            def clean():
                left = traces(world, node)
                check(not left, left)
                return True
            wait(f"nothing of Warren on {node}", clean, 15)
        for pod in (client, server):
            left = warren.rules(pod)
            check(not re.search(r"1500[1368]|warren|istio|0x539|0x111", left), f"left in the network of {pod['metadata']['name']}:\n{left}")
            check("ambient.istio.io/redirection" not in kube.pod(pod)["metadata"].get("annotations", {}), "the annotation is left")
        with cluster.wire() as c:
            said = world.talk(client, address(server))
        check(not said, f"after uninstalling: {said}")
        check(c.seen.between(address(server)).readable(), "the payload is not in clear after uninstalling")
        check(all(s["restartCount"] == 0 for p in kube.pods(ns) for s in p["status"]["containerStatuses"]), "a pod was restarted")
        # the pod that waited starts, in a namespace that is still labelled
        waiting = kube.ready(f"{ns}/waiting", seconds=90)
        check(not (said := world.talk(client, address(waiting))), f"the pod that waited does not answer: {said}")
    kube.kubectl("delete", "-f", CHART + "/crds")
    kube.kubectl("delete", "namespace", NAMESPACE, timeout=90)
    return f"gone after {seconds:.1f} s; nothing left on the nodes, in the pods, on the objects"


def traces(world, node):
    """What is left of Warren on a node: files, rules, routes, processes."""
    return world.cluster.script(node, r"""
        ls -d /opt/cni/bin/warren* /var/run/warren/* /etc/cni/net.d/*warren* /var/run/ztunnel/* 2>/dev/null
        grep -l warren /etc/cni/net.d/* 2>/dev/null
        nft list tables 2>/dev/null | grep -i warren
        ip rule | grep -E '0x539|0x111|1337'
        grep -l -a -E '^/?(opt/cni/bin/)?warren' /proc/[0-9]*/cmdline 2>/dev/null
        true""").strip()
