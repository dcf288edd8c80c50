"""What goes on while something is broken: clients that talk, a wire that is watched."""
import contextlib, time

from . import apps
from .shell import check


class Load:
    """New connections at a rate and a few long ones from a client to an address, while the wire is captured."""

    def __init__(self, world, client, target, rate=10, held=5, ambient=True, seconds=400):
        self.world, self.ambient, self.target = world, ambient, target
        self.capture = world.cluster.wire() if "wire" in world.cluster.can else None
        self.loop = world.kube.background(client, apps.TRAFFIC, "loop", target, str(apps.ECHO), str(rate), str(seconds), "1000")
        self.held = world.kube.background(client, apps.TRAFFIC, "hold", target, str(apps.ECHO), str(held), str(seconds)) if held else None
        self.new = self.long = None

    def __enter__(self):
        if self.capture:
            self.capture.__enter__()
        time.sleep(1)
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.new = self.loop.result()
                self.long = self.held.result() if self.held else {"failed": 0, "started": 0}
        finally:
            for b in (self.loop, self.held):
                if b:
                    b.__exit__()
            if self.capture:
                self.capture.__exit__(kind)
        if kind is None and self.capture:
            clear = self.capture.seen.readable()
            check(not clear, f"{len(clear)} packets in clear, the first {clear[0].src} to {clear[0].dst}:{clear[0].dport}" if clear else "")

    def said(self):
        n = self.new
        kinds = ", ".join(f"{n[k]} {k}" for k in ("refused", "reset", "timeout", "closed", "other") if n[k])
        return (f"{n['failed']} of {n['started']} new connections failed" + (f" ({kinds})" if kinds else "")
                + f", {self.long['failed']} of {self.long['started']} long ones cut, longest time without an answer {n['longest_gap_us'] / 1e6:.2f} s")


@contextlib.contextmanager
def meshed_pair(world, namespace, **more):
    with world.namespace(namespace, ambient=True) as ns:
        world.warren.synced()
        client, server = world.pair(ns, **more)
        yield (ns, *world.warren.captured(client, server))
