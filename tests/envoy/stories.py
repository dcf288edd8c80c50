"""What must hold when Envoy and Warren speak HBONE with each other."""
import contextlib, os, socket, threading, time

from envoy import ADMIN, APP, AS_FOREIGN, AS_INTRUDER, CLOSED, TO_IMPOSTOR, TO_NOBODY, TO_SERVER, WORKERS, Envoy
from lib.shell import check, wait
from mesh import identity
from place import MISLED, PODS, connect
from traffic import MIB, Way, both_ways, end_of, finish, greet, one_way, reset, send

BULK = 50 * MIB
MANY = 200
# Connections that a tunnel of Warren carries, and its workers, each of which has tunnels of its own.
PLACES, POOLS = 100, 2
# Less than Envoy may send ahead on a stream, and more than lies in the buffers of an application that reads nothing.
ANSWER = 2 * MIB


class World:
    """One run: Warren's proxy, Envoy, and the applications on the far ends."""

    def __init__(self, directory, program, at_server, at_backend):
        self.directory, self.program, self.proxy, self.envoy = directory, program, None, None
        self.inbound = Way("gateway", PODS["gateway"], TO_SERVER, at_server)
        self.outbound = Way("client", PODS["backend"], APP, at_backend)
        self.ways = (self.inbound, self.outbound)

    def start_envoy(self, name="envoy", admin=ADMIN):
        return Envoy(self.program, self.directory, name, admin)


def identities(world):
    """Each proves to the other who it is, and both say so in their logs"""
    mark, over = world.proxy.mark(), len(world.envoy.requests())
    for way in world.ways:
        greet(way)
    check(world.inbound.peer[0] == PODS["gateway"], f"the server sees {world.inbound.peer[0]} for a client")
    request = wait("Envoy's access log", lambda: world.envoy.requests()[over:], 5)[-1]
    check((request["peer"], request["authority"], request["status"]) == (identity("client"), f"{PODS['backend']}:{APP}", 200), f"Envoy's log: {request}")
    lines = wait("Warren's access log", lambda: len(found := world.proxy.since(mark)) == 2 and found, 5)
    inbound, outbound = (next(line for line in lines if line["direction"] == d) for d in ("inbound", "outbound"))
    for line, source, destination in (inbound, "gateway", "server"), (outbound, "client", "gateway"):
        seen = line["src.identity"], line["dst.identity"]
        check(seen == (identity(source), identity(destination)), f"Warren's log has {seen}")


def bulk(world):
    """50 MiB each way at once, byte-exact"""
    start = time.monotonic()
    for way in world.ways:
        with way.open() as (client, server):
            both_ways(client, server, BULK)
    return f"{4 * BULK / MIB / (time.monotonic() - start):.0f} MiB/s"


def client_done(world):
    """A client that is done hears 50 MiB"""
    for way in world.ways:
        with way.open() as (client, server):
            one_way(client, server, MIB)
            one_way(server, client, BULK)


def server_done(world):
    """A server that is done hears 50 MiB; Envoy as waypoint cuts such a connection, and the client is told"""
    with world.inbound.open() as (client, server):
        one_way(server, client, MIB)
        one_way(client, server, BULK)
    for _ in range(5):  # what Envoy cuts off depends on how far it is
        with world.outbound.open() as (client, server):
            one_way(server, client, 2 * MIB)
            try:
                send(client, BULK)
            except (ConnectionResetError, BrokenPipeError):
                continue
            check(False, "Envoy carries what a client says after the server is done: nothing is special about it any more")


def early_answer(world):
    """A client that goes on talking hears all of an answer behind which Envoy wants nothing more of it"""
    with world.outbound.dial(receive_buffer=4096) as client, world.outbound.accept() as server:
        talk = threading.Thread(target=talk_on, args=(client,))
        talk.start()
        server.recv(1)
        over = len(world.envoy.requests())
        said = send(server, ANSWER)
        finish(server)
        # Most of the answer waits in Warren by now.
        wait("the end of the request in Envoy's log", lambda: len(world.envoy.requests()) > over, 10)
        heard, size, how = end_of(client)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        talk.join()
        check(heard == said, f"of {ANSWER} bytes the client heard {size}, then: {how}")


def talk_on(s):
    with contextlib.suppress(OSError):
        while True:
            s.sendall(bytes(MIB))


def resets(world):
    """A reset of either application is one for the other; Envoy as waypoint makes an end of the client's"""
    for way in world.ways:
        with way.open() as (client, server):
            client.sendall(b"x")
            server.recv(1)
            reset(server)
            check(end_of(client)[2] == "reset", "the client takes a torn connection for a complete one")
    with world.inbound.open() as (client, server):
        client.sendall(b"x")
        server.recv(1)
        reset(client)
        check(end_of(server)[2] == "reset", "the server takes a torn connection for a complete one")
    with world.outbound.open() as (client, server):
        over = len(world.envoy.requests())
        client.sendall(b"x")
        server.recv(1)
        reset(client)
        end_of(server)
        request = wait("Envoy's access log", lambda: world.envoy.requests()[over:], 5)[-1]
        check(request["details"] == "http2.remote_reset", f"Warren has not told Envoy of a reset: {request}")


def many(world):
    """200 connections at once share a few tunnels, each has its own bytes"""
    for way, tunnels, most in (world.inbound, f"cluster.tunnel-{TO_SERVER}.upstream_cx_active", WORKERS), (world.outbound, "http.waypoint.downstream_cx_active", POOLS * -(-MANY // PLACES)):
        with contextlib.ExitStack() as held:
            clients = [held.enter_context(way.dial()) for _ in range(MANY)]
            said = [os.urandom(1000) for _ in clients]
            for client, text in zip(clients, said):
                client.sendall(text)
            servers = [held.enter_context(way.accept()) for _ in clients]
            heard = [exactly(server, 1000) for server in servers]
            check(sorted(heard) == sorted(said), "the servers have not heard what the clients said")
            for server, text in zip(servers, heard):
                server.sendall(text[::-1])
                finish(server)
            for client, text in zip(clients, said):
                check(exactly(client, 1000) == text[::-1], "a client has heard the answer to another")
            used = world.envoy.figure(tunnels)
            check(0 < used <= most, f"{MANY} connections are in {used} tunnels, {most} would do")


def exactly(s, size):
    heard = b""
    while len(heard) < size and (data := s.recv(size - len(heard))):
        heard += data
    return heard


def refusals(world):
    """A port on which nobody listens and an identity that is not allowed are refused, and the client is told"""
    mark = world.proxy.mark()
    for port, code in (TO_NOBODY, "W2007"), (AS_INTRUDER, "W2004"), (AS_FOREIGN, "W3004"), (TO_IMPOSTOR, "W3001"):
        check(refused("gateway", PODS["gateway"], port), f"port {port} of Envoy takes connections")
        wait(f"{code} in Warren's log", lambda: any(line.get("code") == code for line in world.proxy.since(mark)), 5)
    for pod, address, port, code, why in (("client", PODS["backend"], CLOSED, "W1010", "503"), ("stranger", PODS["backend"], APP, "W1010", "403"),
                                          ("client", MISLED, APP, "W3003", "")):
        mark = world.proxy.mark()
        check(refused(pod, address, port) == "reset", f"{pod} takes the refusal of {address}:{port} for an answer")
        wait(f"{code} {why} in Warren's log", lambda: any(line.get("code") == code and why in line["error"] for line in world.proxy.since(mark)), 5)
    for way in world.ways:
        way.nobody_came()


def refused(pod, address, port):
    """How a client is told. Which of its calls tells it depends on how fast the refusal is."""
    try:
        with connect(pod, address, port) as client:
            return end_of(client)[2]
    except ConnectionResetError:
        return "reset"


def killed(world):
    """Envoy is killed: open connections are reset, and a new Envoy has new tunnels at once"""
    with world.inbound.open() as (_, server), world.outbound.open() as (client, _):
        world.envoy.stop()
        for s, whose in (server, "server"), (client, "client"):
            check(end_of(s)[2] == "reset", f"the {whose} takes a torn connection for a complete one")
    check(refused("client", PODS["backend"], APP) == "reset", "a connection without Envoy is not refused")
    world.envoy = world.start_envoy()
    for way in world.ways:
        greet(way)


def drained(world):
    """Envoy is drained: what is open goes on to its end, what is new takes tunnels to the next Envoy"""
    old = world.envoy
    with contextlib.ExitStack() as held:
        open_ones = [held.enter_context(way.open()) for way in world.ways]
        world.envoy = world.start_envoy("next", ADMIN + 1)
        old.command("/drain_listeners?graceful&skip_exit")
        wait("new tunnels", lambda: [greet(way) for way in world.ways] and len(world.envoy.requests()) > 1, 20)
        for client, server in open_ones:
            both_ways(client, server, MIB)
    old.stop()
    for way in world.ways:
        greet(way)


CORE = [identities, bulk, client_done, server_done, resets, many]
ALL = [*CORE, early_answer, refusals, drained, killed]
