"""The SPIFFE ids on both ends are the pods' service accounts; a node's proxy gets no certificate for accounts that run only elsewhere."""
import time

from lib import authority, trouble
from lib.kube import address
from lib.shell import check

ORDER = 210
NEEDS = ("node",)


def tell(world):
    kube, warren = world.kube, world.warren
    with trouble.meshed_pair(world, "e2e-identity", account=True) as (ns, client, server):
        start = time.time()
        check(not (said := world.talk(client, address(server))), f"no answer: {said}")
        ids = [f"spiffe://cluster.local/ns/{ns}/sa/{a}" for a in ("client", "server")]
        for node in (world.node_a, world.node_b):
            check(warren.access(node, time.time() - start, *ids), f"the access log of {node} does not name {ids[0]} and {ids[1]}")

        control = address(warren.pods("control")[0])
        token = proxy_token(world, world.node_a)
        status, message, chain = authority.ask(world, world.node_a, control, token, ids[0])
        check(status == 0, f"the proxy gets no certificate for an account of its own node: {status} {message}")
        check(ids[0] in authority.names(chain), f"the certificate has other names: {authority.names(chain)}")
        status, message, chain = authority.ask(world, world.node_a, control, token, ids[1])
        check(status != 0 and "BEGIN" not in chain, "the proxy of one node gets a certificate for an account that runs on the other only")
        why = message
        status, message, chain = authority.ask(world, world.node_a, control, token, "spiffe://elsewhere.example/ns/a/sa/b")
        check(status != 0, "a certificate of another trust domain")
        # a token of an account that is no proxy, made for the same audience
        other = kube.kubectl("-n", ns, "create", "token", "client", "--audience", "istio-ca", "--bound-object-kind", "Pod", "--bound-object-name", "client").strip()
        status, message, chain = authority.ask(world, world.node_a, control, other, ids[1])
        check(status != 0 and "BEGIN" not in chain, "an application's token gets a certificate of another account")
        status, _, _ = authority.ask(world, world.node_a, control, "no-token", ids[0])
        check(status == 16, f"without a valid token the answer is {status}, not 16 (UNAUTHENTICATED)")
    return f"both ids in both access logs; refused: another node's account ({why[:60]}), another trust domain, an application's token, no token"


def proxy_token(world, node):
    pid = world.warren.pids(world.warren.pod("proxy", node))[0]
    return world.cluster.script(node, f"cat /proc/{pid}/root/var/run/secrets/tokens/istio-token").strip()
