#!/usr/bin/env python3
"""Run a script and store what it sends and receives as a capture, without administrator rights.

    python3 tests/capture.py wire.pcapng tcp_upper.py client hello
    python3 tests/capture.py wire.pcapng httpserver.py --port 8000
    wireshark wire.pcapng

The first argument is the file to write, the second the script, the others are the script's. It
works on every system, and for all six scripts, TLS and IPv6 included. What the script itself does
and prints is unchanged, but for one thing: os.sendfile() is taken away, as it passes no bytes here.

What is real in the capture: the bytes, their order, the times, and who ended a connection how (FIN
or RST). What is made up: the headers, the handshakes and the acknowledgements. How the kernel cut
the bytes into segments, and what it sent again, only tcpdump shows. Of TLS it holds what was inside;
a comment at each such packet says so. A connection that was refused is not in it. Passwords are:
look at what you give away.
"""

import os
import re
import runpy
import socket
import struct
import sys
import threading
import time
from contextlib import suppress

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16  # the flags in TCP's header
TCP, UDP = 6, 17  # the protocol in IP's header
SEGMENT = 65495  # bytes: with the headers of TCP and IPv4, a packet of the largest size
US, PEER = 0, 1
ABOUT = (
    "Written by the program's own side (tests/capture.py), not by the network card. The bytes, their "
    "order and the times are real. The headers are made up: real segments, acknowledgements and "
    "retransmissions are the kernel's, and not seen here."
)
INSIDE_TLS = "on the network, these bytes are encrypted by TLS"


# --- the file: pcapng, https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-03.html ---
class Capture:
    """A file of packets. Each block is one write, so that two threads or processes may write."""

    def __init__(self, path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self.fd = os.open(path, flags, 0o666)
        self.block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1), ABOUT)
        self.block(1, struct.pack("=HHI", 101, 0, 0))  # 101: each packet begins with its IP header

    def block(self, kind, body, comment=""):
        body += bytes(-len(body) % 4)
        if comment:
            text = comment.encode()
            body += struct.pack("=HH", 1, len(text)) + text + bytes(-len(text) % 4 + 4)
        size = struct.pack("=I", 12 + len(body))
        os.write(self.fd, struct.pack("=I", kind) + size + body + size)

    def packet(self, protocol, source, target, header, rest, comment=""):
        """The header is what TCP or UDP has between ports and checksum; rest follows the checksum."""
        # without the zone of an IPv6 address; an IPv4 client of a dual-stack server sends IPv4
        names = [re.sub(r"^::ffff:(?=.*\.)|%.*", "", place[0]) for place in (source, target)]
        family = socket.AF_INET6 if ":" in names[0] else socket.AF_INET
        hosts = b"".join(socket.inet_pton(family, name) for name in names)
        header = struct.pack("!HH", source[1], target[1]) + header
        size = len(header) + 2 + len(rest)
        header += checksum(hosts + struct.pack("!HH", protocol, size) + header + rest)
        if family == socket.AF_INET:
            start = struct.pack("!HHIBB", 0x4500, 20 + size, 0x4000, 64, protocol)
            start += checksum(start + hosts)
        else:
            start = struct.pack("!IHBB", 6 << 28, size, protocol, 64)
        packet = start + hosts + header + rest
        high, low = divmod(time.time_ns() // 1000, 1 << 32)
        before = struct.pack("=IIIII", 0, high, low, len(packet), len(packet))
        self.block(6, before + packet, comment)


def checksum(data):
    """The Internet's (RFC 1071): the ones' complement of the sum of all words of 16 bits."""
    words = int.from_bytes(data + bytes(len(data) % 2), "big")
    return struct.pack("!H", 65535 - words % 65535)


# --- a connection: what its kernel could have sent ---
class Flow:
    """A TCP connection in the capture: its two ends, and the next sequence number of each."""

    def __init__(self, ends, asks):
        """It begins with a handshake, for which one side asks."""
        self.ends = ends
        self.next = [0, 0]
        self.ended = [False, False]
        self.reset = False
        self.shut = False  # whether we have shut our receiving: then 0 bytes are no FIN
        for side, flags in (asks, SYN), (1 - asks, SYN), (asks, 0):
            self.send(side, flags)

    def send(self, side, flags, data=b"", comment=""):
        """What one side sends, and the acknowledgement of the other."""
        with turn:
            self.store(side, flags, data, comment)

    def store(self, side, flags, data, comment):
        if self.reset or (flags & FIN and self.ended[side]):
            return
        other = 1 - side
        for start in range(0, len(data) or 1, SEGMENT):
            rest = data[start : start + SEGMENT]
            acknowledge = ACK if self.next[other] else 0  # all but the first have it
            numbers = self.next[side] % (1 << 32), self.next[other] % (1 << 32)
            header = struct.pack("!IIHH", *numbers, 5 << 12 | flags | acknowledge, 65535)
            capture.packet(TCP, self.ends[side], self.ends[other], header, b"\0\0" + rest, comment)
            if rest or flags & (FIN | SYN):
                self.next[side] += len(rest) or 1
            if rest or flags & FIN:
                self.store(other, 0, b"", "")
        self.ended[side] = self.ended[side] or bool(flags & FIN)
        self.reset = bool(flags & RST)


# --- the sockets: what the script calls, recorded ---
class Captured(socket.socket):
    """Every socket of the script. accept() of the standard library makes one of these too."""

    def __init__(self, *args, **more):
        """ssl, and a traced connection, go on with a descriptor in another object."""
        super().__init__(*args, **more)
        self.flow = flows.get(self.fileno()) if more.get("fileno") is not None else None

    def begin(self, peer, asks):
        internet = self.family in (socket.AF_INET, socket.AF_INET6)
        if self.type == socket.SOCK_STREAM and internet:
            self.flow = flows[self.fileno()] = Flow((self.getsockname(), peer), asks)

    def attempt(self, call, *args):
        try:
            return call(*args)
        except ConnectionError:
            if self.flow:
                self.flow.send(PEER, RST)
            raise

    def sent(self, data, peer=None, comment=""):
        if self.flow:
            self.flow.send(US, PSH, bytes(data), comment)
        elif self.is_datagram():
            self.datagram(True, peer or self.getpeername(), bytes(data))

    def received(self, data, peer=None, comment=""):
        if self.flow and (data or not self.flow.shut):
            self.flow.send(PEER, PSH if data else FIN, bytes(data), comment)
        elif self.is_datagram():
            self.datagram(False, peer or self.getpeername(), bytes(data))

    def is_datagram(self):
        internet = self.family in (socket.AF_INET, socket.AF_INET6)
        return internet and self.type == socket.SOCK_DGRAM

    def datagram(self, ours, peer, data):
        """Of a socket that is bound to all addresses, the one on the way to that peer."""
        with Plain(self.family, socket.SOCK_DGRAM) as probe:
            probe.connect(peer)  # sends nothing
            here = probe.getsockname()[0], self.getsockname()[1]
        source, target = (here, peer) if ours else (peer, here)
        capture.packet(UDP, source, target, struct.pack("!H", 8 + len(data)), data)

    def connect(self, target):
        self.attempt(super().connect, target)
        self.begin(self.getpeername(), US)

    def accept(self):
        conn, peer = super().accept()
        conn.begin(peer, PEER)
        return conn, peer

    def send(self, data, *flags):
        count = self.attempt(super().send, data, *flags)
        self.sent(memoryview(data)[:count])
        return count

    def sendall(self, data, *flags):
        self.attempt(super().sendall, data, *flags)
        self.sent(data)

    def recv(self, size, flags=0):
        data = self.attempt(super().recv, size, flags)
        if not flags & socket.MSG_PEEK:
            self.received(data)
        return data

    def recv_into(self, buffer, *rest):
        count = self.attempt(super().recv_into, buffer, *rest)
        self.received(memoryview(buffer)[:count])
        return count

    def sendto(self, data, *rest):
        count = super().sendto(data, *rest)
        self.sent(data, rest[-1])
        return count

    def recvfrom(self, *args):
        data, peer = super().recvfrom(*args)
        self.received(data, peer)
        return data, peer

    def shutdown(self, how):
        super().shutdown(how)
        if self.flow and how != socket.SHUT_WR:
            self.flow.shut = True
        if self.flow and how != socket.SHUT_RD:
            self.flow.send(US, FIN)

    def close(self):
        if self.flow and flows.pop(self.fileno(), None):
            self.flow.send(US, RST if self.resets() else FIN)
        super().close()

    def resets(self):
        """Whether close() sends RST: something came that nobody read, or SO_LINGER asks for it."""
        self.settimeout(0)
        try:
            if Plain.recv(self, 1, socket.MSG_PEEK):
                return True
        except ConnectionError:
            self.flow.send(PEER, RST)
        except OSError:
            pass  # nothing came
        linger = self.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        return linger[0] == 1 and not any(linger[len(linger) // 2 :])


def record_tls():
    """What passes through TLS does not pass through send() and recv() of the socket below."""
    import ssl

    for name, tell in (("send", Captured.sent), ("recv", Captured.received)):
        plain = getattr(ssl.SSLSocket, name)
        setattr(ssl.SSLSocket, name, recorded(plain, tell))
    into = ssl.SSLSocket.recv_into

    def recv_into(self, buffer, *rest):
        count = into(self, buffer, *rest)
        if self._sslobj is not None:
            self.received(memoryview(buffer)[:count], comment=INSIDE_TLS)
        return count

    ssl.SSLSocket.recv_into = recv_into


def recorded(call, tell):
    def method(self, what, *rest):
        inside = self._sslobj is not None
        done = call(self, what, *rest)
        if inside:
            tell(self, done if isinstance(done, bytes) else what[:done], comment=INSIDE_TLS)
        return done

    return method


Plain = socket.socket
flows = {}  # of each connection that is open, by its descriptor
turn = threading.Lock()  # one thread may send while another receives
capture = None


def main(argv):
    global capture
    if len(argv) < 2 or argv[0].startswith("-"):
        print(__doc__, end="")
        return 2
    try:
        capture = Capture(argv[0])
    except OSError as error:
        print(f"error: cannot write {argv[0]} ({error.strerror})", file=sys.stderr)
        return 23
    socket.socket = Captured
    record_tls()
    with suppress(AttributeError):  # it passes no bytes here
        del os.sendfile
    sys.argv = argv[1:]
    runpy.run_path(argv[1], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
