"""Jobs and init containers whose first instruction uses the network."""
from lib import apps
from lib.kube import address
from lib.shell import check

ORDER = 230
NEEDS = ("wire",)


def tell(world):
    kube = world.kube
    with world.namespace("e2e-jobs", ambient=True) as ns:
        kube.create(apps.server(ns, "server", world.node_b))
        server = world.warren.captured(kube.ready(f"{ns}/server"))
        command = [apps.TRAFFIC, "first", address(server), str(apps.ECHO)]
        container = {"image": apps.IMAGE, "command": command}
        with world.cluster.wire() as c:
            kube.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job", "namespace": ns}, "spec": {
                "completions": 6, "parallelism": 3, "backoffLimit": 0, "template": {"metadata": {"labels": {"app": "job"}}, "spec": {
                    "restartPolicy": "Never", "nodeName": world.node_a, "initContainers": [{"name": "init", **container}], "containers": [{"name": "main", **container}]}}}})
            kube.kubectl("-n", ns, "wait", "--for=condition=complete", "job/job", "--timeout=60s", timeout=70)
        seen = c.seen.between(address(server))
        check(not seen.readable() and not seen.port(apps.ECHO), f"a job's traffic is readable: {seen}")
    return "6 pods with an init container: 12 first connections, none failed, none in clear"
