"""The tutorials our users start from: applications behind Gateway API gateways, first without the mesh, then with every namespace in it."""
import os

from apps.gateway import programs
from apps.gateway.tutorials import NAMESPACES, Tutorials
from lib import build
from lib.kube import address
from lib.shell import check, run, wait

OUTSIDE = "172.30.0.1"  # the control plane's address on the wire: neither a node nor a pod


def tutorials(w, warren_installed):
    """Tells all of them; gives the figures."""
    w.cluster.load(*programs.images())
    k = w.kube
    nodes = {n["metadata"]["name"]: next(a["address"] for a in n["status"]["addresses"] if a["type"] == "InternalIP") for n in k.api("api/v1/nodes")["items"]}
    with open(w.cluster.dir + "/control/pid") as f:
        world = f.read().strip()
    place = w.dir + "/gateway"
    os.makedirs(place)
    with Tutorials(place, k.command, [build.helm(), "--kubeconfig", k.kubeconfig], programs.chart(), programs.ENVOY_IMAGE, world, nodes, OUTSIDE, w.cluster.wire) as t:
        t.controller()
        with t.wire() as before:
            t.http()
            t.https()
            t.passthrough()
            split = t.canary()
        check(len(before.texts) >= 9, f"without the mesh everything is readable between the nodes, yet only {before.texts} was: {before}")
        figures = [f"before: {before}, v2 {split} of 1000"]
        if warren_installed:
            figures.append(in_mesh(w, t))
        t.remove()
    return "; ".join(figures)


def in_mesh(w, t):
    k = w.kube
    t.label()
    pods = [p for n in NAMESPACES for p in k.pods(n)]
    w.warren.captured(*pods)
    with t.wire() as after:
        answers = t.http_again() + t.https_again() + t.passthrough_again()
        split = t.canary_again()
    check(not after.readable and not after.application, f"{after}: {after.examples}")
    check(after.tunnel > 100, f"too little in tunnels: {after}")
    check({p["metadata"]["uid"] for p in pods} == {p["metadata"]["uid"] for n in NAMESPACES for p in k.pods(n)}, "a pod was restarted")
    t.strict()
    front = k.pods("apple", "app=apple")[0]

    def refused():
        return run(*t.inside, "curl", "-sS", "-m", "3", f"http://{address(front)}:5678/", check=False).startswith("curl:")
    wait("STRICT to refuse a client from outside of the mesh", refused, 10)
    t.http_again()
    t.https_again()
    t.passthrough_again()
    return f"in the mesh: {after}, {answers} lines of answers right, v2 {split} of 1000; the same under STRICT"
