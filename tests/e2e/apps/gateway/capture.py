"""Reads what tcpdump wrote (pcap, Ethernet) and says what TCP segments carry."""
import ipaddress, struct
from typing import NamedTuple


class Segment(NamedTuple):
    src: str
    sport: int
    dst: str
    dport: int
    payload: bytes

    def touches(self, *addresses):
        return self.src in addresses or self.dst in addresses


def segments(path):
    """Every TCP segment, IPv4 or IPv6, of a capture; one that is still being written ends where it ends."""
    with open(path, "rb") as f:
        data = f.read()
    if len(data) < 24:
        return
    order = {0xA1B2C3D4: "<", 0xD4C3B2A1: ">", 0xA1B23C4D: "<", 0x4D3CB2A1: ">"}[struct.unpack("<I", data[:4])[0]]
    if (link := struct.unpack(order + "I", data[20:24])[0]) != 1:
        raise ValueError(f"{path}: link type {link}, not Ethernet")
    at = 24
    while at + 16 <= len(data):
        length = struct.unpack(order + "I", data[at + 8:at + 12])[0]
        frame = data[at + 16:at + 16 + length]
        at += 16 + length
        if found := segment(frame):
            yield found


def segment(frame):
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00" and packet[9] == 6:
        head, end = (packet[0] & 15) * 4, struct.unpack("!H", packet[2:4])[0]
        src, dst = packet[12:16], packet[16:20]
    elif kind == b"\x86\xdd" and packet[6] == 6:
        head, end = 40, 40 + struct.unpack("!H", packet[4:6])[0]
        src, dst = packet[8:24], packet[24:40]
    else:
        return None
    tcp = packet[head:end]
    sport, dport = struct.unpack("!HH", tcp[:4])
    return Segment(str(ipaddress.ip_address(src)), sport, str(ipaddress.ip_address(dst)), dport, tcp[(tcp[12] >> 4) * 4:])
