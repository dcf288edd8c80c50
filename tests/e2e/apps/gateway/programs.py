"""The programs of the gateway stories, built or fetched once into the cache, and container images of them.

Images carry the names that the manifests use, so that what a user would apply is applied unchanged.
"""
import json, os, shutil, string

from lib.build import CACHE, ENVOY, envoy, go_program, made, make_image
from lib.shell import run

GATEWAY, ECHO = "v1.9.1", "v1.0.0"
MODULE = "github.com/envoyproxy/gateway"
ENVOY_IMAGE = f"docker.io/envoyproxy/envoy:distroless-v{ENVOY}"
GATEWAY_IMAGE = f"docker.io/envoyproxy/gateway:{GATEWAY}"
NGINX = "/usr/sbin/nginx"  # Debian package nginx-light


def chart():
    """The directory of Envoy Gateway's own Helm chart with its CRDs, made from its Go module as its release is."""
    path = f"{CACHE}/gateway-helm-{GATEWAY}"
    with made(path) as new:
        if new:
            source = json.loads(run("go", "mod", "download", "-json", f"{MODULE}@{GATEWAY}", timeout=600))["Dir"]
            shutil.copytree(source + "/charts/gateway-helm", new)
            run("chmod", "-R", "u+w", new)
            with open(new + "/values.tmpl.yaml") as f:
                values = string.Template(f.read()).substitute(GatewayImage=GATEWAY_IMAGE, GatewayImagePullPolicy="IfNotPresent")
            os.remove(new + "/values.tmpl.yaml")
            with open(new + "/values.yaml", "w") as f:
                f.write(values)
    return path


def images():
    """Paths of the images' archives."""
    gateway = go_program("envoy-gateway", MODULE, GATEWAY, "./cmd/envoy-gateway", f"-X {MODULE}/internal/cmd/version.envoyGatewayVersion={GATEWAY}")
    echo = go_program("http-echo", "github.com/hashicorp/http-echo", ECHO)
    nginx = f"nginx-{int(os.path.getmtime(NGINX))}"
    return [image(GATEWAY_IMAGE, f"gateway-{GATEWAY}", gateway, "/usr/local/bin/envoy-gateway"),
            image(ENVOY_IMAGE, f"envoy-{ENVOY}", envoy(), "/usr/local/bin/envoy"),
            image("docker.io/hashicorp/http-echo:1.0", f"http-echo-{ECHO}", echo, "/http-echo"),
            image("docker.io/library/nginx:stable", nginx, NGINX, "/usr/sbin/nginx")]


def image(name, file, program, path):
    """An image of one program and its libraries."""
    out = f"{CACHE}/images/{file}.tar"
    with made(out) as new:
        if new:
            make_image(name, new, [path], [f"{program}:{path}"], libs=True)
    return out
