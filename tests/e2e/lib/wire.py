"""A capture of the wire, and what a person would look for in it."""
import collections, os, re, signal, socket, struct, subprocess, tempfile, time

from .shell import Failed, check, wait

HBONE = 15008
CANARY = b"This text is a canary"
Packet = collections.namedtuple("Packet", "time src dst sport dport flags payload")
SYN, ACK = 2, 16


def packets(data):
    """The TCP packets of a pcap file over IPv4 and IPv6, in Ethernet or Linux cooked frames. A duplicate seen on two ports counts twice."""
    if len(data) < 24:
        return
    magic, link = struct.unpack_from("<I", data)[0], struct.unpack_from("<I", data, 20)[0]
    order, unit = {0xA1B2C3D4: ("<", 1e6), 0xA1B23C4D: ("<", 1e9)}[magic]
    header = {1: 14, 113: 16, 276: 20}[link]
    at = 24
    while at + 16 <= len(data):
        seconds, part, length, _ = struct.unpack_from(order + "IIII", data, at)
        frame = data[at + 16:at + 16 + length]
        at += 16 + length
        ip = frame[header:]
        if not ip:
            continue
        if ip[0] >> 4 == 4 and ip[9] == 6:
            size = struct.unpack_from("!H", ip, 2)[0]
            src, dst, tcp = socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20]), ip[(ip[0] & 15) * 4:size]
        elif ip[0] >> 4 == 6 and ip[6] == 6:
            size = struct.unpack_from("!H", ip, 4)[0]
            src, dst, tcp = socket.inet_ntop(socket.AF_INET6, ip[8:24]), socket.inet_ntop(socket.AF_INET6, ip[24:40]), ip[40:40 + size]
        else:
            continue
        sport, dport = struct.unpack_from("!HH", tcp)
        yield Packet(seconds + part / unit, src, dst, sport, dport, tcp[13], tcp[(tcp[12] >> 4) * 4:])


class Seen:
    """What was captured."""

    def __init__(self, data):
        self.packets = list(packets(data))

    def between(self, *addresses):
        """The same, of connections that have one of these addresses at an end only."""
        part = Seen(b"")
        part.packets = [p for p in self.packets if p.src in addresses or p.dst in addresses]
        return part

    def port(self, port):
        return [p for p in self.packets if port in (p.sport, p.dport)]

    def opened(self, port):
        """Packets that open a connection to this port."""
        return [p for p in self.packets if p.dport == port and p.flags & (SYN | ACK) == SYN]

    def readable(self, text=CANARY):
        """Packets in which this text can be read."""
        return [p for p in self.packets if text in p.payload]

    def tls13(self):
        """Packets from the tunnel's port in which a server chose TLS 1.3 (the ServerHello's supported_versions is 0x0304)."""
        return [p for p in self.packets if p.sport == HBONE and p.payload[:2] == b"\x16\x03" and p.payload[5:6] == b"\x02"
                and b"\x00\x2b\x00\x02\x03\x04" in p.payload]

    def tunnel_clear(self):
        """Packets of the tunnel's port with a payload that begins like none of TLS: a mistake unless it is the middle of a record."""
        return [p for p in self.port(HBONE) if p.payload.startswith((b"PRI * HTTP", b"CONNECT", b"GET ", b"POST "))]

    def __str__(self):
        ports = collections.Counter(min(p.sport, p.dport) for p in self.packets)
        return f"{len(self.packets)} TCP packets ({', '.join(f'{n} of port {p}' for p, n in ports.most_common(4))})"


class Capture:
    """with Capture(argv...) as c: ...; then c.seen. argv starts tcpdump; everything that it captured is parsed at the end."""

    def __init__(self, *tcpdump, expression="tcp", snap=0):
        self.argv = [*tcpdump, "-Z", "root", "-n", "--immediate-mode", "-U", "-B", "65536", "-s", str(snap), "-w", "-", expression]
        self.seen = None

    def __enter__(self):
        self.file, self.errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.process = subprocess.Popen(self.argv, stdout=self.file, stderr=self.errors, stdin=subprocess.DEVNULL, start_new_session=True)
        wait("tcpdump", self._listening, 15, 0.02)
        return self

    def said(self):
        return os.pread(self.errors.fileno(), 65536, 0).decode(errors="replace")

    def _listening(self):
        if self.process.poll() is not None:
            raise Failed("tcpdump ended: " + self.said())
        return "listening on" in self.said()

    def so_far(self):
        """What is captured by now; tcpdump goes on."""
        time.sleep(0.2)
        return Seen(self._data())

    def _data(self):
        size, at, parts = os.fstat(self.file.fileno()).st_size, 0, []
        while at < size:
            parts.append(os.pread(self.file.fileno(), 1 << 24, at))
            at += len(parts[-1])
        return b"".join(parts)

    def __exit__(self, kind, *_):
        time.sleep(0.3)  # the last packets are still on their way from the kernel's ring
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if kind is None:
            self.seen = Seen(self._data())
            if dropped := re.search(r"([1-9]\d*) packets dropped by kernel", self.said()):
                check(False, f"the capture lost {dropped[1]} packets: it proves nothing")
        self.file.close()
        self.errors.close()
