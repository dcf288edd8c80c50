"""Headless and StatefulSet names, a Service, a hostNetwork client, kubectl port-forward and exec, the client's address."""
import re, subprocess

from lib import apps
from lib.kube import address
from lib.shell import check, run

ORDER = 240


def tell(world):
    kube, warren = world.kube, world.warren
    with world.namespace("e2e-names", ambient=True) as ns:
        kube.apply({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web", "namespace": ns}, "spec": {
            "serviceName": "web", "replicas": 2, "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "web"}}, "template": {
                "metadata": {"labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 1, "topologySpreadConstraints": [
                    {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}],
                    "containers": [{"name": "app", "image": apps.IMAGE, "command": ["/bin/health"], "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}]}}}},
            apps.service(ns, "web", 8080, headless=True), apps.service(ns, "front", 8080, selector={"app": "web"}))
        kube.create(apps.client(ns, "client", world.node_a), apps.client(ns, "on-host", world.node_a, host_network=True))
        pods = warren.captured(*kube.ready(f"{ns}/web-0", f"{ns}/web-1", f"{ns}/client"))
        host = kube.ready(f"{ns}/on-host")
        client = pods[2]

        def get(pod, url):
            return kube.exec(pod, "curl", "-sS", "-m", "5", url)
        for name in ("web-0.web", "web-1.web", f"web-1.web.{ns}.svc.cluster.local", "web", "front", f"front.{ns}"):
            said = get(client, f"http://{name}:8080/")
            check(f"seen from {address(client)}:" in said, f"{name} saw another address than the client's: {said}")
        for pod in pods[:2]:
            check("seen from" in get(host, f"http://{address(pod)}:8080/"), "a hostNetwork client gets no answer")

        forward = subprocess.Popen([*kube.command, "-n", ns, "port-forward", "pod/web-1", ":8080"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            port = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
            check(port, "kubectl port-forward does not start")
            check("seen from 127.0.0.1" in run("curl", "-sS", "-m", "5", f"http://127.0.0.1:{port[1]}/"), "no answer through kubectl port-forward")
        finally:
            forward.kill()
            forward.wait()
        check("web-0" in kube.exec(pods[0], "hostname"), "kubectl exec")
    return "6 names, hostNetwork client, port-forward and exec answered; the server saw the client's address"
