"""One node in network namespaces: a bridge, pods on it, and programs and sockets inside of them."""
import contextlib, ctypes, http.client, os, socket, subprocess

from lib.shell import Failed, run

PREFIX = f"warren-envoy-{os.getpid()}-"
NODE = "node"
PODS = {"client": "10.97.0.2", "stranger": "10.97.0.3", "server": "10.97.0.4", "gateway": "10.97.0.5", "backend": "10.97.0.6"}
# Behind a gateway that cannot prove to be who it should be.
MISLED = "10.97.0.7"
REDIRECTED = ("client", "stranger", "server")
DEADLINE = 20  # seconds, of every wait for a socket
STARTED = []

# What an agent does for a pod: outbound to the proxy, and the application's answers to a client's address back to it.
REDIRECTION = """
table ip warren-envoy {
  chain mark-inbound { type filter hook prerouting priority -150; meta mark & 0xfff == 0x539 ct mark set 0x111; }
  chain mark-answers { type route hook output priority -150; ct mark 0x111 meta mark set 0x111; }
  chain outbound { type nat hook output priority -100; oifname lo accept; meta mark & 0xfff == 0x539 accept; ct mark 0x111 accept; meta l4proto tcp redirect to :15001; }
}
"""
SETNS = ctypes.CDLL(None, use_errno=True).setns
CLONE_NEWNET = 0x40000000


def raise_up():
    names = [NODE, *PODS]
    for name in names:
        run("ip", "netns", "add", PREFIX + name)
        run("ip", "-n", PREFIX + name, "link", "set", "lo", "up")
        inside(name, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter")
    ip(NODE, "link", "add", "bridge", "type", "bridge")
    ip(NODE, "address", "add", "10.97.0.1/24", "dev", "bridge")
    ip(NODE, "link", "set", "bridge", "up")
    for pod, address in PODS.items():
        ip(NODE, "link", "add", pod, "type", "veth", "peer", "name", "eth0", "netns", PREFIX + pod)
        ip(NODE, "link", "set", pod, "master", "bridge", "up")
        ip(pod, "address", "add", address + "/24", "dev", "eth0")
        ip(pod, "link", "set", "eth0", "up")
    ip("backend", "address", "add", MISLED + "/24", "dev", "eth0")
    for pod in REDIRECTED:
        inside(pod, "nft", "-f", "-", input=REDIRECTION)
        ip(pod, "route", "add", "local", "default", "dev", "lo", "table", "100")
        ip(pod, "rule", "add", "fwmark", "0x111/0xfff", "lookup", "100")


def stop_all():
    for process in STARTED:
        stop(process)


def take_down():
    """Removes all of it, and the programs in it."""
    stop_all()
    for name in (NODE, *PODS):
        run("ip", "netns", "delete", PREFIX + name, check=False)


def ip(name, *argv):
    run("ip", "-n", PREFIX + name, *argv)


def inside(name, *argv, **options):
    """What a program prints that runs in a namespace."""
    return run("ip", "netns", "exec", PREFIX + name, *argv, **options)


def start(name, argv, log, env=None):
    """A program that goes on in a namespace."""
    with open(log, "ab") as out:
        process = subprocess.Popen(["ip", "netns", "exec", PREFIX + name, *argv], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
                                   start_new_session=True)
    STARTED.append(process)
    return process


def stop(process):
    process.kill()
    process.wait()


def end_of_file(path, size=2000):
    try:
        with open(path, errors="replace") as f:
            return f.read()[-size:]
    except FileNotFoundError:
        return ""


def handle(name):
    """The namespace itself, as a file."""
    return open(f"/run/netns/{PREFIX}{name}", "rb")


@contextlib.contextmanager
def entered(name):
    """Sockets that this thread makes meanwhile belong to the namespace, and stay there."""
    with open("/proc/thread-self/ns/net", "rb") as home, handle(name) as there:
        setns(there)
        try:
            yield
        finally:
            setns(home)


def setns(namespace):
    if SETNS(namespace.fileno(), CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def listen(name, address, port):
    with entered(name):
        listener = socket.create_server((address, port), backlog=512)
    listener.settimeout(DEADLINE)
    return listener


def connect(name, address, port, receive_buffer=None):
    with entered(name):
        s = socket.socket()
    if receive_buffer:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    s.settimeout(DEADLINE)
    s.connect((address, port))
    return s


def ask(name, port, path, method="GET"):
    """What a program inside of a namespace answers on its administrative port."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.sock = connect(name, "127.0.0.1", port)
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read().decode()
    except OSError as e:
        raise Failed(f"{name}:{port}{path}: {e}")
    finally:
        connection.close()
    if answer.status != 200:
        raise Failed(f"{name}:{port}{path}: {answer.status} {body[:300]}")
    return body
