"""deploy/minikube/README.md, read out loud: every command that is not minikube's own, and what the page says that it prints."""
import os, re, shutil, tempfile

from lib import apps, build
from lib.shell import Failed, check, run
from lib.warren import NAMESPACE

ORDER = 950
NEEDS = ("images",)
PAGE = build.TOP + "/deploy/minikube/README.md"


def tell(world):
    blocks, said = parse(), []
    with tempfile.TemporaryDirectory() as d:
        checkout(world, d)
        env = {**os.environ, "KUBECONFIG": world.kube.kubeconfig, "PATH": d + "/bin:" + os.environ["PATH"]}
        try:
            for commands, expected in blocks:
                out = run("bash", "-e", "-o", "pipefail", "-c", commands, timeout=300, env=env, cwd=d)
                check(not expected or re.search(expected, out, re.MULTILINE), f"{commands.strip().splitlines()[0]}: does not print /{expected}/ but {out.strip()[-300:]}")
                if m := re.search(r"([\d.]+) Gbits/sec.*receiver", out):
                    said.append(m[1])
        except Failed:
            world.kube.kubectl("delete", "-f", d + "/deploy/minikube/app.yaml", "--wait=false", check=False)
            run(build.helm(), "--kubeconfig", world.kube.kubeconfig, "-n", NAMESPACE, "uninstall", "warren", timeout=200, check=False)
            raise
    return f"{len(blocks)} blocks" + (f"; iperf3 {said[0]} Gb/s before, {said[-1]} after" if len(said) > 1 else "")


def parse():
    """[(commands, regular expression of what they print or None)] of the page; lines of minikube left out."""
    found = []
    with open(PAGE) as f:
        page = f.read()
    for m in re.finditer(r"(?:<!-- prints: (.*?) -->\n)?```sh\n(.*?)```", page, re.DOTALL):
        commands = "".join(l + "\n" for l in m[2].splitlines() if not l.lstrip().startswith("minikube"))
        if commands.strip():
            found.append((commands, m[1]))
    check(len(found) > 10, f"{PAGE} has {len(found)} blocks of commands")
    return found


def checkout(world, d):
    """What the page needs of a checkout, with the images that the cluster has; kubectl and helm on the PATH."""
    shutil.copytree(build.TOP + "/deploy", d + "/deploy")
    app = d + "/deploy/minikube/app.yaml"
    with open(app) as f:
        text = re.sub(r"image: \S+", "image: " + apps.IMAGE, f.read())
    # nginx has its configuration in its image elsewhere
    text = text.replace("        - name: web\n          image: " + apps.IMAGE, "        - name: web\n          command: [sh, -c, 'mkdir -p /www && echo hello >/www/index.html && exec httpd -f -p 80 -h /www']\n          image: " + apps.IMAGE)
    with open(app, "w") as f:
        f.write(text)
    os.makedirs(d + "/bin")
    os.symlink(build.helm(), d + "/bin/helm")
    with open(d + "/bin/kubectl", "w") as f:
        f.write(f'#!/bin/sh\nexec {" ".join(world.cluster.kubectl)} "$@"\n')
    os.chmod(d + "/bin/kubectl", 0o755)
    with open(build.TOP + "/Cargo.toml") as f:
        version = re.search(r'^version = "(.*)"', f.read(), re.MULTILINE)[1]
    for node in (world.node_a, world.node_b):
        world.cluster.node(node, "/opt/kube/ctr", "-n", "k8s.io", "images", "tag", "--force", world.warren.image, f"localhost/warren:{version}")
