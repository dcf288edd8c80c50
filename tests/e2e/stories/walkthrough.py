"""deploy/minikube/README.md: every command in it that is not minikube's own, in order, prints what the page says."""
import os, re, shutil, tempfile

from lib import build
from lib.apps import IMAGE
from lib.shell import check, run, wait

ORDER = 950
PAGE = build.TOP + "/deploy/minikube/README.md"
# Applications of the page that come from registries, and what stands in for them.
IMAGES = {
    "image: docker.io/nicolaka/netshoot:v0.14": f"image: {IMAGE}",
    "image: docker.io/library/nginx:1.28": f"image: {IMAGE}\n          command: [sh, -c, 'echo hello >/tmp/index.html; exec httpd -f -p 80 -h /tmp']",
}
INSTALL = "helm install warren deploy/helm/warren"


def blocks(page):
    """(commands, what they must print or nothing) of each block for a shell, without the lines that are minikube's own."""
    found = re.findall(r"(?:^<!-- prints: ([^\n]*) -->\n)?^```sh\n(.*?)^```$", page, re.M | re.S)
    for prints, text in found:
        lines = [line for line in text.splitlines() if not line.startswith("minikube")]
        if lines:
            yield "\n".join(lines), prints


def tell(world):
    with open(PAGE) as f:
        page = list(blocks(f.read()))
    check(any(INSTALL in text for text, _ in page), "the page does not install Warren")
    with tempfile.TemporaryDirectory(dir=world.dir) as checkout:
        figures = walk(world, page, checkout)
    wait("the end of the page's namespaces", lambda: not any(
        world.kube.api("api/v1/namespaces/" + n, missing=True) for n in ("shop", "outside", "warren-system")), 90)
    return f"{len(page)} blocks of commands; iperf3 {', '.join(figures)}"


def walk(world, page, checkout):
    """Runs the page in a checkout whose images can be had here; the throughputs that it prints."""
    shutil.copytree(build.TOP + "/deploy", checkout + "/deploy")
    with open(checkout + "/deploy/minikube/app.yaml") as f:
        app = f.read()
    for image, local in IMAGES.items():
        check(image in app, f"app.yaml does not use {image}")
        app = app.replace(image, local)
    with open(checkout + "/deploy/minikube/app.yaml", "w") as f:
        f.write(app)
    tools = checkout + "/bin"
    os.mkdir(tools)
    os.symlink(build.helm(), tools + "/helm")
    with open(tools + "/kubectl", "w") as f:
        f.write("#!/bin/sh\nexec " + " ".join(world.kube.command) + ' "$@"\n')
    os.chmod(tools + "/kubectl", 0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "KUBECONFIG": world.kube.kubeconfig}
    figures = []
    for text, prints in page:
        text = text.replace(INSTALL, " ".join([INSTALL, *world.warren.values()]))
        said = run("bash", "-ec", text, cwd=checkout, env=env, timeout=600)
        if prints:
            check(re.search(prints, said, re.M), f"this printed something other than {prints}:\n{text}\n{said[-1500:]}")
        figures += re.findall(r"([\d.]+ \wbits/sec).*receiver", said)
    return figures
