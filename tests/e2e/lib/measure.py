"""Figures that are taken with and without the mesh, in the same way."""
import contextlib, datetime, json, re, time

from . import apps
from .shell import Failed, percentile, wait


def starts(world, namespace, count, at_once=1, prefix="start", account=None, target=None):
    """Starts pods on node a that connect to `target` on the other node by their first instruction; what each reports, in order.
    At most `at_once` are under way at the same time."""
    kube, results, under_way, made = world.kube, [], [], 0
    while made < count or under_way:
        while made < count and len(under_way) < at_once:
            pod = kube.create(apps.first(namespace, f"{prefix}-{made}", world.node_a, target, account=account))
            under_way.append((pod, time.monotonic()))
            made += 1
        for pod, since in list(under_way):
            now = kube.pod(pod)
            if now["status"].get("phase") in ("Succeeded", "Failed"):
                results.append({"name": pod["metadata"]["name"], **json.loads(kube.logs(pod))})
                under_way.remove((pod, since))
                kube.delete(pod)
            elif time.monotonic() - since > 60:
                raise Failed(f"a pod did not end: {kube.state(pod)}")
        time.sleep(0.05)
    return results


def sandboxes(world, node, names):
    """Seconds that containerd took to make the sandboxes of these pods, CNI included, from its log."""
    begun, took = {}, []
    for line in world.cluster.runtime_log(node).splitlines():
        if m := re.search(r'time="([^"]+)".*RunPodSandbox for name:\\"([^"\\]+)\\" uid:\\"([^"\\]+)\\"', line):
            at = datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", m[1]).replace("Z", "+00:00")).timestamp()
            if "returns sandbox id" in line:
                if m[3] in begun and (names is None or m[2] in names):
                    took.append(at - begun[m[3]])
            else:
                begun[m[3]] = at
    return took


def ms(values, p):
    return f"{percentile(values, p):.0f}"


def iperf(world, client, target, connections, seconds=5):
    """Gb/s of iperf3 from a pod to another."""
    said = world.kube.exec(client, "iperf3", "-c", target, "-t", str(seconds), "-P", str(connections), "-J", timeout=seconds + 30)
    return json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e9


@contextlib.contextmanager
def iperf_pair(world, namespace, ambient):
    with world.namespace(namespace, ambient) as ns:
        k = world.kube
        k.create(apps.client(ns, "client", world.node_a), apps.pod(ns, "server", "iperf3", "-s", node=world.node_b))
        pods = k.ready(f"{ns}/client", f"{ns}/server")
        if ambient:
            pods = world.warren.captured(*pods)
        wait("iperf3", lambda: "0" == k.exec(pods[1], "sh", "-c", "grep -q :1451 /proc/net/tcp /proc/net/tcp6; echo $?", check=False).strip(), 10)
        yield pods
