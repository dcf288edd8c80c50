"""Probes of all kinds under STRICT, on both nodes; a process of the node other than the kubelet is refused."""
import time

from lib import apps
from lib.apps import peer_authentication
from lib.kube import address, is_ready
from lib.shell import check

ORDER = 220
NEEDS = ("node",)
KINDS = {"http": {"httpGet": {"path": "/", "port": 8080}}, "tcp": {"tcpSocket": {"port": 8081}}, "grpc": {"grpc": {"port": 8082}},
         "exec": {"exec": {"command": ["/bin/health", "check"]}}}


def tell(world):
    kube, warren = world.kube, world.warren
    with world.namespace("e2e-probes", ambient=True) as ns:
        kube.apply(peer_authentication(ns, "STRICT"))
        names = []
        for node in (world.node_a, world.node_b):
            for kind, probe in KINDS.items():
                every = {**probe, "periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 1}
                names.append(f"{ns}/{kind}-{node}")
                kube.create(apps.pod(ns, f"{kind}-{node}", "/bin/health", node=node, startupProbe={**every, "failureThreshold": 30},
                                     readinessProbe=every, livenessProbe=every))
        pods = warren.captured(*kube.ready(*names))
        end = time.monotonic() + 8
        while time.monotonic() < end:
            for pod in map(kube.pod, pods):
                check(is_ready(pod), f"{pod['metadata']['name']} is not Ready any more: {kube.state(pod)}")
            time.sleep(0.5)
        for pod in map(kube.pod, pods):
            check(pod["status"]["containerStatuses"][0]["restartCount"] == 0, f"{pod['metadata']['name']} was restarted by its probe")

        # the same port, from a process of the node that is not the kubelet
        refused = []
        for pod in pods:
            if pod["metadata"]["name"].startswith("http"):
                node = pod["spec"]["nodeName"]
                said = world.cluster.script(node, f"curl -s -m 3 http://{address(pod)}:8080/ >/dev/null && echo answered || echo refused", check=False)
                refused.append("refused" in said)
                far = world.node_a if node == world.node_b else world.node_b
                said = world.cluster.script(far, f"curl -s -m 3 http://{address(pod)}:8080/ >/dev/null && echo answered || echo refused", check=False)
                check("refused" in said, f"a process of the other node reaches {pod['metadata']['name']} under STRICT")
        world.row("a host process other than the kubelet, own node, under STRICT", "refused" if all(refused) else "gets through", "refused", all(refused))
    return f"{len(pods)} pods Ready for 8 s, no restart; a host process on the pod's node: {'refused' if all(refused) else 'GETS THROUGH'}"
