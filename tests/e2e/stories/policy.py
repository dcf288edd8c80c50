"""Policies of every kind take effect within a second, cut live connections that are no longer allowed, and say why."""
import time

from lib import apps
from lib.apps import ECHO, authorization, peer_authentication
from lib.kube import address
from lib.shell import check

ORDER = 200
LIMIT = 1.0  # seconds until a policy must be in force
OTHER = ECHO + 1


def tell(world):
    kube, warren = world.kube, world.warren
    times = {}
    with world.namespace("e2e-policy", ambient=True) as ns, world.namespace("e2e-neighbour", ambient=True) as neighbour, world.namespace("e2e-stranger") as out:
        for name in ("client", "rival"):
            kube.create(apps.account(ns, name), apps.client(ns, name, world.node_a, account=name))
        kube.create(apps.client(neighbour, "visitor", world.node_a), apps.client(out, "stranger", world.node_a), apps.server(ns, "server", world.node_b, ECHO, OTHER))
        server, client, rival, visitor, stranger = kube.ready(f"{ns}/server", f"{ns}/client", f"{ns}/rival", f"{neighbour}/visitor", f"{out}/stranger")
        warren.captured(server, client, rival, visitor)
        ip = address(server)
        for pod in (client, rival, visitor, stranger):
            check(not (said := world.talk(pod, ip, count=1)), f"without a policy {pod['metadata']['name']} gets no answer: {said}")

        # STRICT: only from inside the mesh
        times["STRICT"], began = enforce(world, lambda: kube.apply(peer_authentication(ns, "STRICT")), ip, allowed=[client, visitor], denied=[stranger])
        why(world, server, began, "", address(stranger))

        select = {"app": "server"}
        principal = f"cluster.local/ns/{ns}/sa/client"
        cases = {
            "principal": [{"from": [{"source": {"principals": [principal]}}]}],
            "namespace": [{"from": [{"source": {"namespaces": [ns]}}]}],
            "port": [{"to": [{"operation": {"ports": [str(ECHO)]}}]}],
            "IP": [{"from": [{"source": {"ipBlocks": [address(client) + "/32"]}}]}],
        }
        refused = {"principal": [rival, visitor], "namespace": [visitor], "port": [], "IP": [rival, visitor]}
        for kind, rules in cases.items():
            policy = authorization(ns, "by-" + kind.lower(), rules=rules, selector=select)
            times[kind], began = enforce(world, lambda: kube.apply(policy), ip, allowed=[client], denied=refused[kind],
                                  denied_port=[client] if kind == "port" else [])
            if refused[kind]:
                why(world, server, began, policy["metadata"]["name"], address(refused[kind][0]))
            kube.kubectl("-n", ns, "delete", "authorizationpolicy", policy["metadata"]["name"])
        deny = authorization(ns, "deny-rival", "DENY", [{"from": [{"source": {"principals": ["*/sa/rival"]}}]}])
        times["DENY"], began = enforce(world, lambda: kube.apply(deny), ip, allowed=[client, visitor], denied=[rival])
        why(world, server, began, "deny-rival", address(rival))
        said = kube.kubectl("-n", ns, "describe", "authorizationpolicy", "deny-rival")
        check("Conditions" in said, f"kubectl describe of the policy says nothing about it: {said}")

        # one that cannot be enforced at this layer says so
        kube.apply(authorization(ns, "layer7", rules=[{"to": [{"operation": {"methods": ["GET"]}}]}], selector={"app": "nobody"}))
        time.sleep(1)
        said = kube.kubectl("-n", ns, "describe", "authorizationpolicy", "layer7")
        check("methods" in said.split("Status", 1)[-1], f"kubectl describe does not say what cannot be enforced: {said[-800:]}")
    return "in force after " + ", ".join(f"{k} {v:.2f} s" for k, v in times.items()) + "; live connections cut"


def enforce(world, change, ip, allowed, denied, denied_port=()):
    """Makes a change while clients talk. Seconds from its return until the last connection that it forbids was still answered (0 if none), and
    when it was made. Connections of the forbidden that are open by then must end, those of the others must not."""
    kube = world.kube
    clients = [(p, ECHO, True) for p in allowed] + [(p, ECHO, False) for p in denied] + [(p, OTHER, False) for p in denied_port]
    loops = [(p, good, kube.background(p, apps.TRAFFIC, "loop", ip, str(port), "20", "30", "1000")) for p, port, good in clients]
    holds = [(p, good, kube.background(p, apps.TRAFFIC, "hold", ip, str(port), "2", "30")) for p, port, good in clients]
    try:
        time.sleep(1.5)
        began = time.time()
        change()
        at = time.time()
        time.sleep(2.5)
        last = 0
        for pod, good, running in loops:
            name, got = pod["metadata"]["name"], running.result()
            check(got["ok"] > 10, f"{name} did not talk before the change: {got}")
            if good:
                check(not got["failed"], f"{name} is allowed, but connections failed: {got}")
            else:
                check(got["failed"], f"{name} is not refused after 2.5 s: {got}")
                last = max(last, got["last_ok"] - at)
        check(last <= LIMIT, f"a forbidden connection was answered {last:.2f} s after the change")
        for pod, good, running in holds:
            name, got = pod["metadata"]["name"], running.result()
            check(good or got["failed"] == 2, f"live connections of {name} were not cut: {got}")
            check(not good or not got["failed"], f"live connections of {name} were cut: {got}")
    finally:
        for _, _, running in loops + holds:
            running.__exit__()
    return max(0, last), began


def why(world, server, since, policy, source):
    """The access log of the server's proxy names the policy and the source of a refused connection."""
    lines = [l for l in world.warren.access(world.node_b, time.time() - since, source) if "code=" in l or '"code"' in l]
    check(lines, f"the access log does not say why {source} was refused")
    check(not policy or any(policy in l for l in lines), f"the access log does not name {policy}: {lines[-1]}")
