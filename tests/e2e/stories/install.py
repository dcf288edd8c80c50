"""helm install, as the README has it: every part is Ready, no pod is touched, the image is small."""
import time

from lib import apps
from lib.shell import check
from lib.warren import NAMESPACE

ORDER = 100


def tell(world):
    kube, warren = world.kube, world.warren
    with world.namespace("e2e-bystander") as ns:
        kube.create(apps.client(ns, "bystander", world.node_a))
        kube.ready(f"{ns}/bystander")
        start = time.monotonic()
        warren.install()
        warren.healthy()
        seconds = time.monotonic() - start
        pod = kube.pod(f"{ns}/bystander")
        check(not any("istio" in a for a in pod["metadata"].get("annotations", {})), "a pod outside of the mesh was annotated")
        if "node" in world.cluster.can:
            rules = warren.rules(pod)
            check("15008" not in rules and "warren" not in rules, f"rules in a pod outside of the mesh: {rules}")
    root = kube.api("api/v1/namespaces/default/configmaps/istio-ca-root-cert")["data"]["root-cert.pem"]
    check("BEGIN CERTIFICATE" in root, "no root certificate is published")
    check(world.image_bytes < 40_000_000, f"the image has {world.image_bytes / 1e6:.1f} MB")
    return f"Ready after {seconds:.1f} s, image {world.image_bytes / 1e6:.1f} MB, {len(kube.pods(NAMESPACE))} pods"
