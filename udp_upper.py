#!/usr/bin/env python3
"""Send text over UDP and get it back in capitals: server and client in one file.

    python3 udp_upper.py server                      wait on 127.0.0.1:12000
    python3 udp_upper.py client hello, welcome       HELLO, WELCOME
    python3 udp_upper.py client                      a prompt; Ctrl-D ends
    cat lines | python3 udp_upper.py client > out    each line a datagram, one after another
    python3 udp_upper.py client --ping 5             round-trip times, and how many were lost
    python3 udp_upper.py client --trace hello        each socket call as it happens
    python3 udp_upper.py client --pcap FILE hello    what is sent, for Wireshark; needs no root
    python3 udp_upper.py server --loss 0.3 --seed 7  a bad network, the same one each time

The protocol: a datagram is a message of its own. The server sends back each one that it reads,
a-z as A-Z and every other byte unchanged. The network may lose, double or reorder both. So the
client waits 0.1 s for the answer, asks again and waits 0.2, 0.4 and 0.8 s. It knows the answer
because that is the question in capitals; other datagrams (late or foreign) are ignored and counted.
If only the beginning of the answer comes, the client reports it as truncated after the last try:
until then it may be the late answer to a shorter question. Nobody connects, so neither side can
tell when the other one left.

Limits: there is no password and no encryption, and a sender's address can be forged. A forged
datagram could make two servers answer each other for ever. So a server ignores datagrams from its
own port, from port 12000, from ports below 1024 and from those of some other services. Answers of
another server have no small letter: of such datagrams, it ignores one in fifty of each sender.
A datagram holds at most 65507 bytes over IPv4, 65527 over IPv6. A bad network is decided from
--seed, the client's host and the number of its datagram: the same experiment has the same result.
"""

# The map
#
# Begin with answer() and exchange(): one conversation, as the server and as the client see it.
# The sections, in the order of the file:
#   the conversation   Conversation, answer(), send_message(), exchange(), receive()
#   the server         outcome(), Server, Server.run(), Server.admit(), Server.reply(), serve()
#   the client         ping_report(), write_out(), converse(), stream(), ping(), client()
#   shared fences      Capture, Traced, Stop, bind(), Failure, say(), address(), Parser
#   the command line   announce(), build_parser(), main()
#
# Threads: there is one. A server has one socket for all clients, and a client sends only after
# it has the answer to its last message or has given up.
#
# There are no connections, so the server has no state for them. A datagram that arrives is
# refused by Server.admit(), or answer() sends its answer at once. With --loss, --dup, --reorder,
# --delay, --rate or --truncate, Server.dispatch() drops the answer or puts it into a queue, until
# Server.release() finds that its time has come. Then Server.reply() sends it.

# --- imports: the same in all six scripts (tests/test_twins.py) ---
import sys

if __name__ == "__main__":
    # A file that arrives must never be imported, whatever its name. Python looks for modules first
    # in the folder of this script, and PYTHONPATH may add the current folder: take both out of the
    # list before anything else is imported. (So there is no import from __future__ either.)
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]
    import os

    own = os.path.dirname(os.path.realpath(__file__))
    library = os.path.dirname(os.__file__)
    for folder in sys.path[:]:
        path = folder or "."
        if folder == library or not os.path.exists(path):
            continue
        if os.path.samefile(path, own) or os.path.samefile(path, "."):
            sys.path.remove(folder)

    import signal

    # Ctrl-C while the rest is loaded: the end of any program, and no traceback
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
# --- end imports ---

import argparse
import contextlib
import errno
import io
import itertools
import os
import random
import re
import select
import shlex
import signal
import socket
import struct
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Optional

VERSION = "1.0"
SERVER = "python3 udp_upper.py server"
CLIENT = "python3 udp_upper.py client"
TRIES = (0.1, 0.2, 0.4, 0.8)  # seconds that each try of the client waits for the answer
LARGEST = 65536  # bytes: no datagram is as large
MAX_STALE = 64  # datagrams that a try reads, so that a flood of others cannot hold the client


# --- the conversation: as the server and as the client see it ---
class Conversation:
    """A client's side: its socket, the options of the command line, what it has met."""

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.sock: socket.socket  # connect() makes it
        self.ignored = 0  # datagrams that were no answer
        self.doubled = 0  # answers to a ping that came again
        self.asked = 0  # the size of the last message
        self.beginnings: list[int] = []  # sizes of what may be its answer, truncated
        self.problem: Optional[OSError] = None  # what the kernel heard (ICMP) of the last try


def answer(sock: socket.socket, server: "Server", most: int) -> None:
    """The server's side: receive what waits, capitalise, send; at most so many datagrams."""
    size = server.args.recv_size
    arrived = []
    try:  # all of it before the first answer: BATCH (below) says why
        for _ in range(most):
            arrived.append(sock.recvfrom(LARGEST))
    except (BlockingIOError, ConnectionError):
        pass  # nothing more is there. (Windows raises ConnectionError if a client has left.)
    for data, peer in arrived:
        reply = data[:size].upper()
        if server.admit(data, reply, peer):
            server.finished += 1
            try:
                sock.sendto(reply, peer)
            except OSError as error:  # lost, as UDP may: reply() says why that can be
                server.refuse(peer, f"answers lost: {error.strerror}")


def hold_back(args: Namespace, free: float, size: int) -> float:
    """When an answer leaves: after --delay, and when --rate has let the earlier ones out."""
    due: float = time.monotonic() + args.delay
    if args.rate:
        due = max(due, free) + size / args.rate
    return due


def send_message(conversation: Conversation, data: bytes) -> None:
    """Send one datagram, whole or not at all."""
    # send() may first tell that nobody took an earlier datagram (ICMP): then it is called again
    for _ in range(2):
        try:
            conversation.sock.send(data)
            return
        except OSError as error:
            conversation.problem = error
            if error.errno == errno.EMSGSIZE:  # larger than any datagram
                raise no_echo(conversation) from None


def exchange(conversation: Conversation, message: bytes) -> bytes:
    """The client's side: send a message until its reply comes, each time with more patience."""
    conversation.asked = len(message)
    conversation.beginnings = []
    refusals = 0  # tries of which the kernel heard that they failed
    for seconds in TRIES:
        conversation.problem = None
        deadline = time.perf_counter() + seconds
        send_message(conversation, message)
        for _ in range(MAX_STALE):
            reply = receive(conversation, deadline)
            if reply is None:
                break
            if check(conversation, reply, message.upper()):
                return reply
        refusals += conversation.problem is not None
        if not conversation.beginnings:
            why = f" ({conversation.problem.strerror})" if conversation.problem else ""
            say(f"no reply in {seconds:g} s{why}")  # print() to stderr
    if refusals < len(TRIES):
        conversation.problem = None  # silence, as far as anybody knows
    raise no_echo(conversation)


def receive(conversation: Conversation, deadline: float) -> Optional[bytes]:
    """The next datagram, or None when the time is up. One recvfrom() is one message."""
    size = conversation.args.recv_size
    while wait_for_reply(conversation, deadline):
        try:
            # Windows cuts nothing off, but drops a datagram for which the buffer is too small
            data, _ = conversation.sock.recvfrom(LARGEST if os.name == "nt" else size)
            return data[:size]
        except OSError as error:
            # nobody has that port now, but a server may come before the last try
            conversation.problem = error
    return None


def check(conversation: Conversation, reply: bytes, expected: bytes) -> bool:
    """Whether a datagram is the reply. If it is not, note what it is."""
    if reply == expected:
        return True
    if expected.startswith(reply):
        # truncated; or a late answer to a shorter question
        conversation.beginnings.append(len(reply))
    else:
        conversation.ignored += 1
    return False


# --- the server: receive, play a bad network, answer ---
# datagrams received before the first of them is answered: a client that waits for the answers
# wakes once for many, which is faster than once for each; and Ctrl-C is still heard
BATCH = 64
# what answers by itself there: SSDP, NFS, SIP, mDNS, memcached, and this script
SERVICES = {1900, 2049, 5060, 5353, 11211, 12000, *range(1024)}
ECHO_LIMIT = 50  # of so many datagrams of a sender without a small letter one is not answered
SLOTS = 4096  # counters for them: senders whose addresses have the same hash share one
GRACE = 2.0  # seconds that Ctrl-C leaves for answers that --delay holds back
# seconds that --reorder holds an answer for others to overtake it; less than the first try waits
LATE = 0.05
# answers that --delay, --rate and --reorder hold; more are lost, as in a full router
MAX_WAITING = 1000
MAX_PEERS = 10000  # clients whose datagrams are counted; with one more, all begin anew


def log(text: str) -> None:
    say(time.strftime("%Y-%m-%d %H:%M:%S ") + text)


def outcome(args: Namespace, host: str, number: int) -> tuple[bool, bool, bool]:
    """Whether a client's datagram of that number is lost, doubled, reordered.

    Each has a draw of its own, so that one option does not change another's result.
    """
    draw = random.Random(f"{args.seed} {host} {number}").random
    return draw() < args.loss, draw() < args.dup, draw() < args.reorder


class Server:
    """A socket for all clients, and the answers that are held back to play a bad network."""

    def __init__(self, args: Namespace, sock: socket.socket) -> None:
        self.args = args
        self.sock = sock
        self.stop = Stop()  # Ctrl-C, as something that select() can wait for (far below)
        self.services = SERVICES | {sock.getsockname()[1]}
        self.capitals = [0] * SLOTS  # of the senders of a slot: datagrams without a small letter
        self.told: set[str] = set()  # what is said once
        self.numbers: Counter[Address] = Counter()  # how many datagrams each client has sent
        # when it is due, the answer, to whom; the next one stands first
        self.waiting: list[tuple[float, bytes, Address]] = []
        chances = args.loss or args.dup or args.reorder
        self.plays = chances or args.delay or args.rate or args.truncate < LARGEST
        self.free = 0.0  # when --rate lets the next answer out
        self.finished = 0

    def run(self) -> None:
        watched: list[Any] = [self.stop, self.sock]
        while not self.stop.asked and self.finished < self.args.requests:
            ready = select.select(watched, [], [], self.release())[0]
            if self.sock in ready:
                answer(self.sock, self, min(BATCH, self.args.requests - self.finished))
        self.finish()

    def admit(self, data: bytes, reply: bytes, peer: "Address") -> bool:
        """Whether a datagram is answered at once: not if that could go on for ever.

        Another server's answers have no small letters. Not to answer one of them ends the loop,
        and a client that sends only capitals asks again. In a bad network dispatch() decides.
        """
        if peer[1] in self.services:
            return self.refuse(
                peer, f"datagrams from port {peer[1]} get no answer: a service has it"
            )
        if data == reply:
            slot = hash(peer) % SLOTS
            self.capitals[slot] += 1
            if self.capitals[slot] % ECHO_LIMIT == 0:
                why = f"no answer to one in {ECHO_LIMIT} datagrams without a small letter"
                return self.refuse(peer, f"{why}: it may be an answer")
        if len(data) > len(reply):  # the kernel would cut off as much, but not tell
            why = f"the datagram is larger than the buffer of {self.args.recv_size} bytes"
            log(f"{address(peer)} truncated: {why}")
        if self.plays:
            self.dispatch(reply, peer)
        return not self.plays

    def refuse(self, peer: "Address", why: str) -> bool:
        """Tell why a datagram gets no answer; once, or strangers could fill the log with it."""
        if why not in self.told:
            self.told.add(why)
            log(f"{address(peer)} {why} (said once)")
        return False

    def dispatch(self, reply: bytes, peer: "Address") -> None:
        """Treat an answer as the bad network would that the options play."""
        self.numbers[peer] += 1
        number = self.numbers[peer]
        if len(self.numbers) > MAX_PEERS:
            self.numbers.clear()
        which = f"{address(peer)} datagram {number}"
        lost, doubled, reordered = outcome(self.args, peer[0], number)
        if lost or len(self.waiting) >= MAX_WAITING:
            why = "by --loss" if lost else f"{MAX_WAITING} answers are waiting"
            return log(f"{which} lost: {why}")
        rest = reply[: self.args.truncate]
        cut = f"truncated from {len(reply)} to {len(rest)} bytes"
        for what, done in (cut, rest != reply), ("doubled", doubled), ("reordered", reordered):
            if done:
                log(f"{which} {what}")
        for _ in range(1 + doubled):
            self.hand_over(rest, peer, LATE * reordered)

    def hand_over(self, reply: bytes, peer: "Address", late: float) -> None:
        """Put an answer into the queue, which it leaves when its time has come."""
        self.free = hold_back(self.args, self.free, len(reply))
        self.waiting.append((self.free + late, reply, peer))
        self.waiting.sort(key=lambda each: each[0])

    def reply(self, reply: bytes, peer: "Address") -> None:
        self.finished += 1
        try:
            self.sock.sendto(reply, peer)
        except OSError as error:
            # the network is down, a firewall says no, the send buffer is full: lost, as UDP may
            self.refuse(peer, f"answers lost: {error.strerror}")

    def release(self) -> Optional[float]:
        """Send the answers that are due. Returns the seconds until the next is, None for none."""
        while self.waiting and (pause := self.waiting[0][0] - time.monotonic()) <= 0:
            _, reply, peer = self.waiting.pop(0)
            self.reply(reply, peer)
        return pause if self.waiting else None

    def finish(self) -> None:
        """Send the answers that are due within a moment, and drop the others."""
        deadline = time.monotonic() + GRACE
        while (pause := self.release()) is not None and time.monotonic() + pause < deadline:
            time.sleep(pause)
        self.sock.close()
        self.stop.close()
        dropped = len(self.waiting)
        say(f"stopped: {dropped} answer{'s' * (dropped != 1)} dropped, {self.finished} sent")


def serve(args: Namespace) -> int:
    # of a host's addresses the least, IPv4 before IPv6: the client takes the same one
    family, target = min(resolve(args.host, args.port, socket.SOCK_DGRAM))
    sock = bind(socket_class(args), family, target, reuse=False)
    server = Server(args, sock)  # from here on a signal is heard
    announce(sock)
    server.run()
    return 0


# --- the client: a prompt, a pipe, a ping, a message ---
PROMPT = "Input lowercase sentence: "
PING_WAIT = 1.0  # seconds of silence after the last ping until the missing ones count as lost
PIECE = 65536  # bytes of standard input that are read at once
LONGEST = 1 << 20  # bytes of a line that are read to name its size when it is too long
Times = dict[bytes, float]  # one for each answer to a ping


def wait_for_reply(conversation: Conversation, deadline: float) -> bool:
    """Whether a datagram has come in time. One that is there counts, however late it is."""
    left = max(0.0, deadline - time.perf_counter())
    return bool(select.select([conversation.sock], [], [], left)[0])


def no_echo(conversation: Conversation) -> "Failure":
    """No answer came. The kernel may have said why, each time."""
    problem, args = conversation.problem, conversation.args
    if problem and problem.errno == errno.EMSGSIZE:
        version, most = (6, 65527) if conversation.sock.family == socket.AF_INET6 else (4, 65507)
        return Failure(
            2,
            f"the datagram is {conversation.asked} bytes, the IPv{version} maximum is {most}",
            "UDP sends a datagram whole or not at all; some systems take even less",
            "send shorter lines, or use TCP: tcp_upper.py takes any size",
        )
    if isinstance(problem, ConnectionError):
        return Failure(
            7,
            f"nothing is listening on {place(args)} (every try was refused)",
            "the host answered each datagram with: no program has that port open (ICMP)",
            server_command(args),
        )
    if problem:
        return Failure(
            7,
            f"cannot reach {place(args)} ({problem.strerror})",
            "this machine has no way to that address",
            "check the address that the server printed, and the network",
        )
    if conversation.beginnings:
        return Failure(
            18,
            f"the reply is truncated: {max(conversation.beginnings)} of {conversation.asked} "
            "bytes came back",
            "a buffer on the way was smaller than the datagram, and UDP drops what does not fit",
            "start server and client with a larger --recv-size and no --truncate",
        )
    tries = f"after {len(TRIES)} tries ({', '.join(map(str, TRIES))} s)"
    asked = f"to {args.ping} pings" if args.ping else tries
    return Failure(
        28,
        f"no reply from {place(args)} {asked}",
        "UDP cannot tell a lost datagram from a server that is not running",
        server_command(args),
    )


def printable(text: str) -> str:
    """Text for a terminal: what could move the cursor or change colours appears in hex."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text
    )


def ping_report(sent: int, trips: Times, doubled: int) -> str:
    """The end of --ping: trips are the milliseconds until each answer came, in their order."""
    highest = overtaken = 0
    for reply in trips:
        number = int(reply[5:])
        overtaken += number < highest
        highest = max(highest, number)
    lines = f"sent {sent}, received {len(trips)}, lost {sent - len(trips)}"
    lines += f", doubled {doubled}, out of order {overtaken}"
    if trips:
        times = trips.values()
        mean = sum(times) / len(times)
        lines += f"\nround trip min/avg/max {min(times):.3f}/{mean:.3f}/{max(times):.3f} ms"
    return lines + "\n"


def make_blocking(stream: int) -> None:
    """Another program can make a terminal that it shares with this one non-blocking."""
    if os.name == "posix":
        os.set_blocking(stream, True)


def write_out(data: bytes) -> None:
    """To standard output: a file or a pipe gets the bytes, a terminal text; \\xNN is no text."""
    if is_terminal(1):
        data = printable(data.decode(errors="backslashreplace")).encode()
    try:
        with open(1, "wb", buffering=0, closefd=False) as output:
            while data:  # a console of Windows takes a part of long text
                make_blocking(1)
                data = data[output.write(data) :]
    except OSError as error:
        raise Failure(
            23,
            f"cannot write standard output ({error.strerror})",
            "what reads it has ended, or its disk is full",
            "write to a file on a disk with room: add > FILE to the command",
        ) from None


def read_input(size: int) -> bytes:
    make_blocking(0)
    try:
        return os.read(0, size)
    except OSError as error:
        raise Failure(
            26,
            f"cannot read standard input ({error.strerror})",
            "what was read before came back whole",
            f"{CLIENT} < FILE",
        ) from None


def converse(conversation: Conversation) -> None:
    """The prompt: each line is a message, until Ctrl-D. readline adds history and editing."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (not at the top: loading it can write to a terminal)
    # bytes that are no text come through as they were typed
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    screen = sys.stdout if is_terminal(1) else sys.stderr  # a prompt is no result
    with contextlib.redirect_stdout(screen), contextlib.suppress(EOFError):
        while True:
            make_blocking(0)
            message = os.fsencode(input(PROMPT))
            try:
                reply = exchange(conversation, message)
            except Failure as failure:  # the next one may get through
                say(str(failure))
            else:
                write_out(reply + b"\n")
    say("")


def stream(conversation: Conversation) -> None:
    """Each line of standard input is a datagram; its answer is written before the next is sent."""
    rest = b""
    while len(rest) <= LONGEST and (chunk := read_input(PIECE)):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            write_out(exchange(conversation, line) + b"\n")
    if rest:
        write_out(exchange(conversation, rest))


def ask(conversation: Conversation, number: int, left: Times, trips: Times) -> None:
    """Send a numbered message, and time what comes until the next one is due."""
    args = conversation.args
    now = left[b"PING %d" % number] = time.perf_counter()
    deadline = now + args.interval
    send_message(conversation, b"ping %d" % number)
    for _ in range(MAX_STALE + args.ping):
        if number == args.ping:
            deadline = time.perf_counter() + min(PING_WAIT, args.timeout)
        reply = receive(conversation, deadline)
        if reply is None:
            return
        if reply not in left:
            conversation.ignored += 1
        elif reply in trips:
            conversation.doubled += 1
        else:
            trips[reply] = 1000 * (time.perf_counter() - left[reply])
        if len(trips) == args.ping:
            return


def ping(conversation: Conversation) -> None:
    """Send numbered messages, one each --interval, and time what comes back meanwhile."""
    left: Times = {}  # when each question left, by its answer
    trips: Times = {}  # of each answer: milliseconds until it came first
    try:
        for number in range(1, conversation.args.ping + 1):
            ask(conversation, number, left, trips)
    finally:
        write_out(ping_report(len(left), trips, conversation.doubled).encode())
    if not trips:
        raise no_echo(conversation)


def talk(conversation: Conversation) -> None:
    """What the command line asks for: a ping, a message, a prompt or a pipe."""
    if conversation.args.ping:
        ping(conversation)
    elif conversation.args.text:
        write_out(exchange(conversation, os.fsencode(" ".join(conversation.args.text))) + b"\n")
    elif is_terminal(0):
        converse(conversation)
    else:
        stream(conversation)


def connect(args: Namespace) -> Conversation:
    """Send nothing, but name the only peer whose datagrams and refusals (ICMP) are let in."""
    conversation = Conversation(args)
    # in an order that serve() has too: nothing tells on which of its addresses a server is
    for family, target in sorted(resolve(args.host, args.port, socket.SOCK_DGRAM)):
        sock = None
        try:
            sock = socket_class(args)(family, socket.SOCK_DGRAM)
            sock.connect(target)
            conversation.sock = sock
            return conversation
        except OSError as error:
            if sock:
                sock.close()
            conversation.problem = error
    raise no_echo(conversation)


def client(args: Namespace) -> int:
    check_client(args)
    conversation = connect(args)
    with conversation.sock:
        try:
            talk(conversation)
        finally:
            if conversation.ignored:
                say(f"ignored {conversation.ignored} late or foreign datagrams")
    return 0


# --- capture: the same in all six scripts (tests/test_twins.py) ---
ABOUT_CAPTURES = (
    b"Written by the program's own side (--pcap), not by the network card. The bytes, their order "
    b"and the times are real, and so is who ended a connection how. The headers are made up: "
    b"segments, acknowledgements and retransmissions are the kernel's, and not seen here. "
    b"What TLS encrypts is stored as it was inside."
)


def internet_checksum(data: bytes) -> bytes:
    """The Internet's checksum (RFC 1071): the complement of the sum of all words of 16 bits."""
    words = int.from_bytes(data + bytes(len(data) % 2), "big")
    return struct.pack("!H", 65535 - words % 65535)


class Capture:
    """A file of packets for Wireshark, in the format pcapng (draft-ietf-opsawg-pcapng)."""

    def __init__(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        try:
            self.file = os.open(path, flags, 0o600)  # passwords are in it too
        except OSError as error:
            failure = Failure(
                23,
                f"cannot write the capture {printable(path)} ({error.strerror})",
                "--pcap stores there what is sent and received; nothing was done",
                "--pcap FILE, in a folder where you may write",
            )
            say(str(failure))
            raise SystemExit(23) from None
        comment = struct.pack("!HH", 1, len(ABOUT_CAPTURES)) + ABOUT_CAPTURES
        self.block(0x0A0D0D0A, struct.pack("!IHHq", 0x1A2B3C4D, 1, 0, -1) + comment)
        self.block(1, struct.pack("!HHI", 101, 0, 0))  # 101: each packet begins with its IP header

    def block(self, kind: int, body: bytes) -> None:
        """Each is one write, so that threads and processes may write side by side."""
        body += bytes(-len(body) % 4)
        size = struct.pack("!I", 12 + len(body))
        try:
            os.write(self.file, struct.pack("!I", kind) + size + body + size)
        except OSError as error:
            say(f"the capture lacks a packet ({error.strerror})")

    def packet(self, protocol: int, ends: Sequence[Any], header: bytes, rest: bytes) -> None:
        """From the first end to the second. The checksum stands between the header and the rest."""
        hosts = ports = b""
        for end in ends:
            # without the zone of an IPv6 address; an IPv4 client of a dual-stack server sends IPv4
            host = re.sub(r"^::ffff:(?=[0-9.]+$)|%.*", "", end[0])
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            hosts += socket.inet_pton(family, host)
            ports += struct.pack("!H", end[1])
        header = ports + header
        size = len(header) + 2 + len(rest)
        header += internet_checksum(hosts + struct.pack("!HH", protocol, size) + header + rest)
        start = struct.pack("!IHBB", 6 << 28, size, protocol, 64)
        if family == socket.AF_INET:
            start = struct.pack("!HHIBB", 0x4500, 20 + size, 0x4000, 64, protocol)
            start += internet_checksum(start + hosts)
        packet = start + hosts + header + rest
        now = time.time_ns() // 1000
        self.block(6, struct.pack("!IQII", 0, now, len(packet), len(packet)) + packet)


# --- end capture ---


# --- trace: the same in all six scripts (tests/test_twins.py) ---
DUMPED = 64  # bytes of each call that --trace-hex prints
NOTHING_HAPPENED = ("BlockingIOError", "SSLWantReadError", "SSLWantWriteError")


def hexdump(data: bytes) -> str:
    """The first bytes, sixteen a line."""
    text = ""
    for start in range(0, min(len(data), DUMPED), 16):
        row = data[start : start + 16]
        text += f"\n{start:16x}  {row.hex(' '):47}  {re.sub(rb'[^ -~]', b'.', row).decode()}"
    return text


class Traced(socket.socket):
    """A socket that prints a line on stderr for each call, and fills the capture of --pcap.

    It shows what the program asks of the kernel, and what the kernel replies. SYN, ACK and
    retransmission happen inside the kernel: only tcpdump or Wireshark show them.
    """

    began = time.perf_counter()
    numbers = itertools.count(1)
    prints = dump = False  # whether --trace asks for lines, --trace-hex for the bytes too
    capture: Optional[Capture] = None
    number = sent = received = 0
    touched = 0.0  # when the last call ended
    lasted = 0.0  # milliseconds from there, or from its beginning, to the end of this call

    def show(self, mark: str, text: str, data: Any = b"") -> None:
        if not self.prints:
            return
        self.number = self.number or next(self.numbers)
        if data and hasattr(self, "cipher"):
            text += ", encrypted by TLS on its way"
        if self.dump:
            text += hexdump(bytes(data))
        now = 1000 * (time.perf_counter() - self.began)
        say(f"{now:9.3f} ms #{self.number} {mark} {text}")

    def attempt(self, mark: str, what: str, call: Callable[..., Any], *args: object) -> Any:
        """Make a call of socket.socket. Its failure is a line of the trace too."""
        began = self.touched or time.perf_counter()  # a wait in select() counts too
        try:
            return call(*args)
        except OSError as error:
            if type(error).__name__ not in NOTHING_HAPPENED:
                self.show(mark, f"{what}: {error.strerror or 'timed out'}")
            raise
        finally:
            self.touched = time.perf_counter()
            self.lasted = 1000 * (self.touched - began)


# --- end trace ---


class TracedDatagrams(Traced):
    """The same for UDP: connect() sends nothing, an empty datagram ends nothing."""

    def connect(self, target: Any) -> None:
        what = f"connect {address(target)}"
        self.attempt("*", what, super().connect, target)
        here = address(self.getsockname())
        self.show("*", f"{what} ok from {here} (UDP: nothing is sent)")

    def send(self, data: Any) -> int:  # type: ignore[override]
        count: int = self.attempt(">", "send", super().send, data)
        self.show(">", f"send {count} bytes", data)
        self.store(data, self.getpeername(), 1)
        return count

    def sendto(self, data: Any, peer: Any) -> int:  # type: ignore[override]
        what = f"sendto {address(peer)}"
        count: int = self.attempt(">", what, super().sendto, data, peer)
        self.show(">", f"{what} {count} bytes", data)
        self.store(data, peer, 1)
        return count

    def recvfrom(self, size: int) -> tuple[bytes, Any]:  # type: ignore[override]
        data, peer = self.attempt("<", "recvfrom", super().recvfrom, size)
        what = f"recvfrom {address(peer)} {len(data)} of at most {size} bytes"
        self.show("<", f"{what}, waited {self.lasted:.2f} ms", data)
        self.store(data, peer, -1)
        return data, peer

    def store(self, data: bytes, peer: "Address", order: int) -> None:
        """A datagram for the capture: to the peer, or from there if the order is -1."""
        if self.capture:
            with socket.socket(self.family, socket.SOCK_DGRAM) as probe:
                probe.connect(peer)  # sends nothing, but chooses the address that the peer sees
                ends = [(probe.getsockname()[0], self.getsockname()[1]), peer]
            self.capture.packet(17, ends[::order], struct.pack("!H", 8 + len(data)), data)

    def close(self) -> None:
        self.show("*", "close")
        super().close()


def socket_class(args: argparse.Namespace) -> type[socket.socket]:
    """The class of all sockets: if nothing is shown the plain one, so that it costs nothing."""
    Traced.capture = args.pcap
    Traced.dump = args.trace_hex
    Traced.prints = args.trace or args.trace_hex
    return TracedDatagrams if Traced.prints or args.pcap else socket.socket


# --- listening: the same in all four servers (tests/test_twins.py) ---
class Stop:
    """Ctrl-C and SIGTERM as something that select() can wait for, on Windows too.

    The second signal ends the process at once. A shell makes its background jobs ignore SIGINT;
    this server obeys it all the same.
    """

    def __init__(self) -> None:
        self.asked = False
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)
        signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self.ask)
        signal.signal(signal.SIGTERM, self.ask)

    def ask(self, number: int, frame: object) -> None:
        if self.asked:
            os._exit(130)
        self.asked = True

    def fileno(self) -> int:
        return self.reader.fileno()

    def wake(self) -> None:
        """Make select() return, from any thread."""
        with contextlib.suppress(OSError):
            self.writer.send(b"\0")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.reader.recv(4096)

    def close(self) -> None:
        """The work is done: a signal must not turn the exit code 0 into another one."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self.reader.close()
        self.writer.close()


def own_addresses() -> list[str]:
    """This machine's addresses on its default routes. Connecting a UDP socket sends nothing."""
    found = []
    for family, elsewhere in (socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            found.append(probe.getsockname()[0])
    return found


def reachable_at(sock: socket.socket) -> list[str]:
    """The addresses at which other machines reach this server; none if it is bound to loopback.

    Without a default route the system does not tell its address. Other machines of the network may
    still reach it, so they are given its name.
    """
    host = sock.getsockname()[0]
    if host == "::1" or host.startswith("127."):
        return []
    if host not in ("::", "0.0.0.0"):
        return [host]
    found = [each for each in own_addresses() if host == "::" or ":" not in each]
    return found or [socket.gethostname()]


def bind(
    made_of: type[socket.socket],
    family: int,
    target: "Address",
    backlog: Optional[int] = None,
    reuse: bool = True,
) -> socket.socket:
    """A socket that is bound to that address; with a backlog it is a TCP socket that listens."""
    kind = socket.SOCK_DGRAM if backlog is None else socket.SOCK_STREAM
    sock = None
    try:
        sock = made_of(family, kind)  # an OSError too: a system without IPv6
        # on Windows, where two servers could otherwise share a port
        exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        if exclusive or reuse:
            # elsewhere: or connections of an earlier server in TIME_WAIT would keep the port
            sock.setsockopt(socket.SOL_SOCKET, exclusive or socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # --host :: is for IPv4 too
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, target[0] != "::")
        sock.bind(target)
        if backlog is not None:
            sock.listen(backlog)  # fails too, if two servers have bound the port at once
        sock.setblocking(False)  # select() waits, accept() and recvfrom() do not
        return sock
    except OSError as error:
        if sock:
            sock.close()
        raise cannot_listen(error, target) from None


def cannot_listen(problem: OSError, target: "Address") -> "Failure":
    host, port = target[:2]
    reason = problem.errno
    if os.name == "nt" and reason == errno.EACCES:  # another program keeps it for itself
        reason = errno.EADDRINUSE
    if reason == errno.EADDRINUSE:
        return Failure(
            45,
            f"port {port} is already in use",
            "another program is using it",
            "--port 0 takes any free one; ss -ltnup shows which program has it",
        )
    if reason == errno.EADDRNOTAVAIL:
        return Failure(
            45,
            f"{host} is not an address of this machine",
            "its own are " + ", ".join(["127.0.0.1", *own_addresses()]),
            "--host 0.0.0.0 listens on all of them",
        )
    if reason == errno.EACCES and port < 1024:
        return Failure(
            45,
            f"port {port} needs administrator rights",
            "ports below 1024 are kept for the system's services",
            f"--port {8000 + port}",
        )
    return Failure(
        45,
        f"cannot listen on {address(target)} ({problem.strerror})",
        "the system refuses it",
        "--host 127.0.0.1 --port 0",
    )


# --- end listening ---


# --- terminals: the same in all four clients (tests/test_twins.py) ---
def is_terminal(fd: int) -> bool:
    """Whether a person is there. Windows says so of NUL too, which is no console."""
    if os.name != "nt" or not os.isatty(fd):
        return os.isatty(fd)
    with open(fd, "wb" if fd else "rb", buffering=0, closefd=False) as stream:
        return not isinstance(stream, io.FileIO)


# --- end terminals ---


# --- errors: the same in all six scripts (tests/test_twins.py) ---
Address = tuple[Any, ...]  # (host, port), and for IPv6 (host, port, flow, scope)


class Failure(Exception):
    """What a user or a network can cause: three lines, and the exit code that curl uses for it."""

    def __init__(self, code: int, error: str, why: str, hint: str) -> None:
        if os.name == "nt":  # where the programs that a hint names are called otherwise
            hint = re.sub(r"\bss -\w+", "netstat -ano", hint).replace("python3 ", "py ")
        super().__init__(f"error: {error}\nwhy:   {why}\ntry:   {hint}")
        self.code = code


def speak_utf8() -> None:
    """A pipe of Windows, and NUL, have a code page that lacks most letters."""
    for stream in (sys.stdin, sys.stdout, sys.stderr) if os.name == "nt" else ():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=stream.errors)


def hear_ctrl_c() -> None:
    """From now on it is an exception; while the script was loaded it ended the process."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def say(text: str, end: str = "\n") -> None:
    """Write a line for people at once. The program goes on if nobody is left to read it."""
    # AttributeError: started with stderr closed
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            sys.stderr.write(text + end)
            sys.stderr.flush()
        except OSError:
            # Forget that text, and keep none from now on: Python would try to write it at the end,
            # and make the exit code 120.
            raw = open(2, "wb", 0, closefd=False)  # noqa: SIM115  (it stays)
            code, errors = sys.stderr.encoding, "backslashreplace"
            sys.stderr = io.TextIOWrapper(raw, code, errors, write_through=True)


def address(place: Address) -> str:
    """HOST:PORT, or [HOST]:PORT for IPv6. An IPv4 client of a dual-stack server looks like IPv4."""
    host = re.sub(r"^::ffff:(?=[0-9.]+$)", "", str(place[0]))
    return f"[{host}]:{place[1]}" if ":" in host else f"{host}:{place[1]}"


def resolve(host: str, port: int, kind: int) -> list[tuple[int, Address]]:
    """Each address of a host: the family for socket(), and what connect() and bind() take."""
    # a str would load the codec for international names each time
    name = host.encode() if host.isascii() else host
    # UnicodeError: an empty label, or one over 63 characters
    with contextlib.suppress(socket.gaierror, UnicodeError):
        return [(each[0], each[4]) for each in socket.getaddrinfo(name, port, type=kind)]
    both = re.fullmatch("([^:]+):([0-9]+)", host)
    raise Failure(
        6,
        f'cannot find host "{printable(host)}"',
        "it is neither an address nor a name that this machine can look up",
        f"--host {both[1]} --port {both[2]}" if both else "check the spelling, or use the address",
    )


def between(low: float, high: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """An argparse type: a number from low to high. bind() would raise OverflowError for 99999."""

    def number(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high:.13g}")

    return number


class Parser(argparse.ArgumentParser):
    """argparse with a short -h, the manual for --help, and complaints in three lines."""

    def __init__(self, **settings: Any) -> None:
        wide = 100  # as our lines, if that is not the width of a terminal
        with contextlib.suppress(OSError):
            wide = min(wide, os.get_terminal_size(1).columns or wide)
        super().__init__(
            # if argparse had to ask for the width, it would load shutil
            formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 32, wide),
            add_help=False,
            allow_abbrev=False,  # `get --as NAME` would ask for a password
            **settings,
        )
        self.add_argument(
            "-h", "--help", action="help", help="show this; --help shows the manual first"
        )

    def format_help(self) -> str:
        manual = f"{__doc__}\n" if "--help" in sys.argv else ""
        brief = super().format_help().replace("\n\n", "\n")
        # the usage need not name the options that are explained below it
        option = r"(\s+\[-([^][]|\[[^]]*\])*\])+(\n +(?= ))?"
        return manual + re.sub(option, " [OPTION ...]", brief, count=1)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What parse_args() calls, for a subcommand too: so each names its own options."""
        if sum(word.startswith("--host") for word in sys.argv) > 1:
            self.error("--host is given twice, but only one address is used")
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        hint = f"python3 {self.prog} -h"
        wrong = re.search("(?:arguments:|choice:) '?([^ ='/]+)", message)
        if wrong:
            import difflib  # not at the top: only a misspelt word needs it

            # argparse lists the possible choices after the wrong one
            known = [*self._option_string_actions, *re.findall(r"[\w-]+", message[wrong.end() :])]
            longer = [name for name in known if name.startswith(wrong[1])]
            guesses = longer or difflib.get_close_matches(wrong[1], known, 1, 0.75)
            if guesses:
                hint = f"did you mean {guesses[0]}? {hint} lists all"
            elif (self.usage or self._subparsers) and sys.argv[1].startswith("-"):
                hint += "; write an option of a command after the command"
        why = "the command line is not as the help describes it; nothing was done"
        say(str(Failure(2, message, why, hint)))
        raise SystemExit(2)


# --- end errors ---


# --- the command line ---
def place(args: Namespace) -> str:
    return address((args.host, args.port))


def server_command(args: Namespace) -> str:
    """The command that starts the server which this client looks for."""
    host = "" if args.host in ("127.0.0.1", "localhost") else f" --host {shlex.quote(args.host)}"
    return f"{SERVER}{host} --port {args.port}"


def check_client(args: Namespace) -> None:
    if sys.stdin is None or sys.stdout is None:  # then the connection would get their numbers
        raise Failure(
            26,
            "standard input or output is closed",
            "text comes in by the one and goes out by the other",
            f"give it both: {CLIENT} < FILE > OUT",
        )
    if args.port == 0:
        raise Failure(
            2,
            "port 0 is no server's",
            "only a server takes it: the system then gives it any free port",
            "give --port the number that the server printed",
        )


def announce(sock: socket.socket) -> None:
    """Where the server listens, on stdout; the command that reaches it, on stderr."""
    host, port = sock.getsockname()[:2]
    write_out(f"listening on {address((host, port))}\n".encode())
    elsewhere = reachable_at(sock)
    for known in elsewhere:
        say(f"from another machine:  {CLIENT} --host {known} --port {port}")
    if not elsewhere:
        named = f" --host {host}" if host != "127.0.0.1" else ""  # the client's own default
        say(f"only this machine can reach it, with:  {CLIENT}{named} --port {port}")
        say("for others, start it with --host 0.0.0.0")


def add_flags(parser: argparse.ArgumentParser, *rows: tuple[str, Any, str, str]) -> None:
    for name, kind, metavar, text in rows:
        parser.add_argument(name, type=kind, metavar=metavar, help=text)


def common_flags(parser: argparse.ArgumentParser) -> None:
    """They may stand before the role or after it: each default is in one place, build_parser()."""
    parser.argument_default = argparse.SUPPRESS
    add_flags(
        parser,
        ("--host", str, "HOST", "the server's name or address (default 127.0.0.1)"),
        ("--port", between(0, 65535), "PORT", "its port; a server takes 0 too (default 12000)"),
        ("--timeout", between(0.01, 1e6, float), "S", "silence allowed in an answer (default 30)"),
        ("--recv-size", between(1, 1 << 30), "N", "bytes asked of one recv (default 65536)"),
        ("--pcap", Capture, "FILE", "store what is sent and received, for Wireshark"),
    )
    parser.add_argument("--trace", action="store_true", help="print a line for each socket call")
    parser.add_argument("--trace-hex", action="store_true", help="the same, with the first bytes")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="udp_upper.py")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    roles = parser.add_subparsers(dest="role", metavar="server|client", required=True)
    count = between(0, 1e12)
    some = between(1, 1e12)
    seconds = between(0, 3600, float)
    share = between(0, 1, float)

    server = roles.add_parser("server", help="wait for clients and answer them")
    add_flags(
        server,
        ("--requests", some, "N", "end after so many answers (default never)"),
        ("--rate", count, "N", "bytes a second, for all (default no limit)"),
        ("--delay", seconds, "S", "hold each answer back so long"),
        ("--loss", share, "P", "share of the datagrams that get no answer"),
        ("--dup", share, "P", "share that is answered twice"),
        ("--reorder", share, "P", "share whose answer later ones overtake"),
        ("--truncate", count, "N", "bytes left of an answer (default all)"),
        ("--seed", count, "K", "another seed is another bad network (default 1)"),
    )
    server.set_defaults(requests=sys.maxsize, delay=0.0, loss=0.0, dup=0.0, reorder=0.0)
    server.set_defaults(rate=0, truncate=LARGEST, seed=1)

    client = roles.add_parser("client", help="send text, print what comes back")
    words = "the message; without it, each line of standard input is one"
    client.add_argument("text", nargs="*", metavar="TEXT", help=words)
    add_flags(
        client,
        ("--ping", count, "N", "send N numbered messages and time them"),
        ("--interval", seconds, "S", "from ping to ping (default 0.2)"),
    )
    client.set_defaults(ping=0, interval=0.2)
    for each in parser, server, client:
        common_flags(each)
    parser.set_defaults(host="127.0.0.1", port=12000, timeout=30.0, recv_size=65536)
    parser.set_defaults(trace=False, trace_hex=False, pcap=None)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    speak_utf8()
    args = build_parser().parse_args(argv)
    hear_ctrl_c()
    try:
        return serve(args) if args.role == "server" else client(args)
    except Failure as failure:
        say(str(failure))
        return failure.code
    except KeyboardInterrupt:
        say("\nstopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
