"""Both ends of a connection, in one process: what one says is what the other must hear."""
import concurrent.futures, contextlib, hashlib, os, socket, struct

from lib.shell import check
from place import DEADLINE, connect

BLOCK = 1 << 18
MIB = 1 << 20
SEED = os.urandom(BLOCK)


class Way:
    """From a pod, by an address, to an application."""

    def __init__(self, pod, address, port, listener):
        self.pod, self.address, self.port, self.listener = pod, address, port, listener

    def dial(self, **options):
        return connect(self.pod, self.address, self.port, **options)

    def accept(self):
        s, self.peer = self.listener.accept()
        s.settimeout(DEADLINE)
        return s

    def nobody_came(self):
        self.listener.settimeout(0)
        try:
            self.listener.accept()
        except BlockingIOError:
            self.listener.settimeout(DEADLINE)
        else:
            check(False, f"a connection came from {self.pod} that must not")

    @contextlib.contextmanager
    def open(self):
        """A connection's two ends."""
        with self.dial() as client, self.accept() as server:
            yield client, server


def send(s, size):
    """So many bytes that are never the same; their digest."""
    digest = hashlib.sha256()
    for n in range(0, size, BLOCK):
        block = struct.pack("!Q", n) + SEED[8:size - n]
        s.sendall(block)
        digest.update(block)
    return digest.digest()


def receive(s):
    """The digest of all that comes until the end."""
    digest = hashlib.sha256()
    while data := s.recv(BLOCK):
        digest.update(data)
    return digest.digest()


def finish(s):
    s.shutdown(socket.SHUT_WR)


def reset(s):
    """An application that ends without saying that it is done."""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def end_of(s):
    """What it says before it ends, how much that is, and how it ends."""
    digest, size = hashlib.sha256(), 0
    try:
        while data := s.recv(BLOCK):
            digest.update(data)
            size += len(data)
        how = "end"
    except ConnectionResetError:
        how = "reset"
    return digest.digest(), size, how


def both_ways(client, server, size):
    """Each says so much while it hears as much. The client is done first: a server that is goes for a story of its own."""
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        asked, heard = threads.submit(send, client, size), threads.submit(receive, server)
        answered, got = threads.submit(send, server, size), threads.submit(receive, client)
        said = asked.result()
        finish(client)
        check(said == heard.result(), "the server has not heard what the client said")
        said = answered.result()
        finish(server)
        check(said == got.result(), "the client has not heard what the server said")


def one_way(speaker, hearer, size):
    """One says so much and that it is done; the other hears exactly that."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        heard = threads.submit(receive, hearer)
        said = send(speaker, size)
        finish(speaker)
        check(said == heard.result(), "something else was heard than was said")


def greet(way):
    """A connection with a word each way and a clean end."""
    with way.open() as (client, server):
        for speaker, hearer in (client, server), (server, client):
            one_way(speaker, hearer, 100)
