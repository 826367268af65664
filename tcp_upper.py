#!/usr/bin/env python3
"""Send text over TCP and get it back in capitals: server and client in one file.

    python3 tcp_upper.py server                      wait on 127.0.0.1:12000
    python3 tcp_upper.py client hello, welcome       HELLO, WELCOME
    python3 tcp_upper.py client                      a prompt; Ctrl-D ends
    cat big | python3 tcp_upper.py client > out      any size, both ways at once
    python3 tcp_upper.py client --ping 5             round-trip times
    python3 tcp_upper.py client --trace hello        each socket call as it happens
    python3 tcp_upper.py client --pcap FILE hello    what is sent, for Wireshark; needs no root
    python3 tcp_upper.py server --host 0.0.0.0       for other machines too
    python3 tcp_upper.py server --reset-after 3      after 3 bytes it resets the connection (RST)

The protocol: a connection carries a stream of bytes each way. The server sends back what it reads,
a-z as A-Z and every other byte unchanged. TCP does not mark where a message ends, so the client
ends each with a newline and reads until as many bytes have come back. When the client has no more
to say, it shuts its sending side (FIN); the server finishes its answer and closes. A server that
has too many clients sends one line that says so, and closes. No echo has small letters, but that
line has: so the client knows that it is a notice.

Limits: there is no password and no encryption. The server hangs up on a client that does not read
its answer for --timeout seconds; a client that says nothing may stay.
"""

# The map
#
# Begin with answer() and exchange(): one conversation, as the server and as the client see it.
# The sections, in the order of the file:
#   the conversation   Conversation, answer(), send_message(), exchange(), receive()
#   the server         outcome(), Server, Server.run(), Server.admit(), Server.reply(), serve()
#   the client         ping_report(), write_out(), converse(), stream(), ping(), client()
#   shared fences      Capture, TracedStream, Stop, bind(), Failure, say(), address(), Parser
#   the command line   announce(), build_parser(), main()
#
# Threads: the main thread runs Server.run(); it alone accepts and refuses. Each client has a
# worker, a thread or a process: it runs Server.reply() and uses no connection but its own. In the
# client, stream() starts a thread that sends while the main thread receives.
#
# A connection waits in the backlog until Server.admit() accepts it. If there are too many clients,
# Server.refuse() tells this one so. Otherwise answer() serves it until the client sends FIN, the
# connection breaks, --reset-after or Ctrl-C ends it. Server.reply() logs that and closes it.

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
import re
import select
import shlex
import signal
import socket
import struct
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Optional

VERSION = "1.0"
SERVER = "python3 tcp_upper.py server"
CLIENT = "python3 tcp_upper.py client"
FULL = b"server full, try again later\n"
# The client sends at most so many bytes before it reads their answer. Kernels store more than that
# for each connection, so neither side can block for ever because the other one does not read.
PIECE = 65536


# --- the conversation: as the server and as the client see it ---
class Conversation:
    """Its socket, the options of the command line, how many bytes went."""

    def __init__(self, sock: socket.socket, args: Namespace) -> None:
        self.sock = sock
        self.args = args
        self.sent = 0  # bytes by this side
        self.received = 0
        self.ended = False  # whether this client has sent FIN


def answer(conversation: Conversation) -> None:
    """The server's side: receive, capitalise, send, until the client has no more to say."""
    sock = conversation.sock
    args = conversation.args
    while True:
        chunk = sock.recv(min(args.recv_size, args.reset_after - conversation.received))
        if len(chunk) == 0:  # FIN: the client will send nothing more
            return
        conversation.received += len(chunk)
        hold_back(args, len(chunk))
        sock.settimeout(args.timeout)  # the client has to read its answer in time
        send_message(conversation, chunk.upper())
        sock.settimeout(None)  # it may think for ever before its next message
        if conversation.received == args.reset_after:  # only with --reset-after: reply() sends RST
            return


def hold_back(args: Namespace, size: int) -> None:
    """Wait before an answer of that size, as --delay and --rate (bytes a second) ask."""
    pause = args.delay
    if args.rate:
        pause += size / args.rate
    if pause > 0:  # sleep(0) costs time too
        time.sleep(pause)


def send_message(conversation: Conversation, data: bytes) -> None:
    """Send it all. send() takes only what the kernel has room for.

    (sendall() has one timeout for everything, and would cut off a slow reader.)
    """
    rest = memoryview(data)  # a slice of it is no copy
    conversation.sent += len(rest)  # before send(): the answer may be here before it returns
    try:
        while len(rest) > 0:
            count = conversation.sock.send(rest)
            rest = rest[count:]
    finally:
        conversation.sent -= len(rest)  # if the connection breaks, this was not sent


def exchange(conversation: Conversation, message: bytes) -> bytes:
    """The client's side: send a message, and receive until as many bytes have come back."""
    reply = b""
    for start in range(0, len(message), PIECE):
        send_message(conversation, message[start : start + PIECE])
        while conversation.received < conversation.sent:
            reply += receive(conversation)
    if reply != message.upper():
        raise no_echo(conversation, reply)
    return reply


def receive(conversation: Conversation) -> bytes:
    """The next part of the answer, of any size: one recv() is not one message."""
    wait_for_reply(conversation)
    chunk = conversation.sock.recv(conversation.args.recv_size)
    check(conversation, chunk)
    conversation.received += len(chunk)
    return chunk


def check(conversation: Conversation, chunk: bytes) -> None:
    """Refuse what no echo sends: FIN too early, small letters, more than it was sent."""
    missing = conversation.sent - conversation.received
    if len(chunk) == 0 and (missing > 0 or not conversation.ended):
        raise ConnectionAbortedError(errno.ECONNABORTED, "the server closed it")
    notice = conversation.received == 0 and chunk != chunk.upper()  # it is all that is said
    if len(chunk) > missing or notice:
        raise no_echo(conversation, chunk)


# --- the server: accept, a thread for each client, the end ---
GRACE = 2.0  # seconds that Ctrl-C leaves for answers under way
MAX_REFUSED = 16  # refused clients that are kept, so that they can read why
ACCEPT_PAUSE = 0.5  # seconds to the next accept() when the system has no descriptor or memory left
# the option SO_LINGER: on, for 0 seconds. With it, close() sends RST instead of FIN
RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def log(text: str) -> None:
    say(time.strftime("%Y-%m-%d %H:%M:%S ") + text)


def outcome(conversation: Conversation, problem: Optional[OSError], stopping: bool) -> str:
    """What became of a connection, for the log."""
    # a timeout with a number is the kernel's: the other machine has vanished
    if isinstance(problem, socket.timeout) and not problem.errno:
        return "hung up on: it did not read its answer"
    if problem is not None:
        return f"the client left early ({problem.strerror})"
    if conversation.received >= conversation.args.reset_after:
        return "reset by --reset-after"
    return "stopped" if stopping else "done"


class Server:
    """A listening socket, and a thread or process for each client that came in through it."""

    def __init__(self, args: Namespace, sock: socket.socket) -> None:
        self.args = args
        self.sock = sock
        self.stop = Stop()  # Ctrl-C, as something that select() can wait for (far below)
        self.forks = args.mode == "process" and hasattr(os, "fork")
        self.worker: Any = threading.Thread
        self.clients: dict[Any, socket.socket] = {}  # the connection of each worker
        self.refused: list[socket.socket] = []
        self.accepted = 0
        if self.forks:
            import multiprocessing  # not at the top: it takes a while

            self.worker = multiprocessing.get_context("fork").Process
            # the end of a process is a signal, for which Stop makes select() return
            signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def run(self) -> None:
        while not self.stop.asked and self.accepted - len(self.clients) < self.args.requests:
            watched: list[Any] = [self.stop, self.sock]
            if self.args.mode == "serial" and self.clients:
                watched.remove(self.sock)  # the next client waits in the backlog
            ready = select.select(watched, [], [])[0]
            self.stop.drain()
            if self.sock in ready:
                self.admit()
            self.release()
        self.finish()

    def admit(self) -> None:
        """Accept the next client, and serve it if there is room."""
        try:
            conn, peer = self.sock.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client left between select() and accept()
        except OSError as error:
            # EMFILE, ENFILE, ENOBUFS, ENOMEM: nothing is wrong with this socket
            log(f"cannot accept ({error.strerror}): pausing")
            select.select([self.stop], [], [], ACCEPT_PAUSE)
            return
        if len(self.clients) >= self.args.max_clients:
            return self.refuse(conn, peer, f"there are {len(self.clients)} clients")
        try:
            self.dispatch(conn, peer)
        except (OSError, RuntimeError):
            self.refuse(conn, peer, "the system gives no further thread or process")

    def refuse(self, conn: socket.socket, peer: "Address", why: str) -> None:
        """Tell the client and send FIN, but keep the socket until others are refused.

        If it were closed over unread bytes, it would send RST, which destroys the answer.
        """
        log(f"{address(peer)} refused: {why}")
        self.refused.append(conn)
        with contextlib.suppress(OSError):
            conn.send(FULL)
            conn.shutdown(socket.SHUT_WR)
        if len(self.refused) > MAX_REFUSED:
            self.refused.pop(0).close()

    def dispatch(self, conn: socket.socket, peer: "Address") -> None:
        """Give a client a worker of its own: a thread, or a process (--mode process)."""
        conn.settimeout(None)
        # the kernel notices a client that vanished
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # an answer leaves at once, however short
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        worker = self.worker(target=self.reply, args=(conn, peer), daemon=True)
        worker.start()
        self.accepted += 1
        # what becomes of a process's connection is shown by that process's trace and capture alone
        self.clients[worker] = socket.socket(fileno=conn.detach()) if self.forks else conn

    def hand_over(self) -> None:
        """A new process is a copy of this one: it keeps only the connection that is its own.

        Other clients would hear no FIN as long as it had a copy of theirs.
        """
        for sock in [self.sock, *self.refused, *self.clients.values()]:
            os.close(sock.detach())
        # Ctrl-C reaches every process: the first one passes it on as SIGTERM
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def reply(self, conn: socket.socket, peer: "Address") -> None:
        """A client's worker: the conversation, then a line in the log."""
        if self.forks:
            self.hand_over()
        began = time.monotonic()
        conversation = Conversation(conn, self.args)
        problem = None
        try:
            answer(conversation)
        except OSError as error:
            problem = error
        end = outcome(conversation, problem, self.stop.asked)
        numbers = f"received {conversation.received}, sent {conversation.sent} bytes"
        log(f"{address(peer)} {numbers} in {time.monotonic() - began:.3f} s: {end}")
        if conversation.received >= self.args.reset_after:
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        conn.close()
        self.stop.wake()

    def release(self) -> None:
        """Forget clients that have left: a thread has closed its socket, or a process has ended."""
        for worker, conn in list(self.clients.items()):
            if conn.fileno() < 0 or not worker.is_alive():
                conn.close()
                del self.clients[worker]

    def finish(self) -> None:
        """Stop listening, end what the clients say, and wait a moment for the last answers."""
        for sock in [self.sock, *self.refused]:
            sock.close()
        self.stop.asked = True
        dropped = len(self.clients)
        deadline = time.monotonic() + GRACE
        for worker, conn in self.clients.items():
            if self.forks:
                worker.terminate()  # SIGTERM: its log shall tell that it was stopped
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RD)  # recv() returns what has arrived, then 0
        while self.clients and (left := deadline - time.monotonic()) > 0:
            select.select([self.stop], [], [], left)
            self.stop.drain()
            self.release()
        self.stop.close()
        served = self.accepted - len(self.clients)
        say(f"stopped: {dropped} client{'s' * (dropped != 1)} disconnected, {served} served")


def serve(args: Namespace) -> int:
    raise_file_limit()
    if args.rate:  # a tenth of a second's worth at once
        args.recv_size = min(args.recv_size, max(1, args.rate // 10))
    family, target = resolve(args.host, args.port, socket.SOCK_STREAM)[0]
    try:
        sock = bind(socket_class(args), family, target, args.backlog, args.reuseaddr)
    except Failure:
        if args.reuseaddr:
            raise
        # this fails alike if a server has the port
        bind(socket.socket, family, target, args.backlog).close()
        raise Failure(
            45,
            f"port {args.port} is already in use",
            "no server has it: connections that ended here a moment ago "
            "are in TIME_WAIT, for a minute or so",
            "wait, or start it without --no-reuseaddr",
        ) from None
    # connections inherit it: a later server can tell those in TIME_WAIT from a server
    if os.name == "posix":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server = Server(args, sock)  # from here on a signal is heard
    announce(sock)
    server.run()
    return 0


# --- the client: a prompt, a pipe, a ping, a message ---
PROMPT = "Input lowercase sentence: "
SHOWN = 80  # bytes of a wrong answer that are shown
NOTICE_AFTER = 3.0  # seconds of silence until the client says for whom it waits


def wait_for_reply(conversation: Conversation) -> None:
    """Wait until something comes. Silence counts only while an answer is owed."""
    args = conversation.args
    silence = 0.0
    while silence < args.timeout:
        # if nothing is owed, stream() may send later: from then on silence counts
        owed = conversation.received < conversation.sent
        step = min(NOTICE_AFTER, args.timeout - silence)
        if select.select([conversation.sock], [], [], step)[0]:
            return
        silence += step * owed
        if silence == NOTICE_AFTER:
            say(f"waiting for a reply from {place(args)} (Ctrl-C stops)")
    raise Failure(
        28,
        f"no reply from {place(args)} in {args.timeout:g} s",
        "it is connected but silent: "
        "busy with another client (--mode serial), stopped, or no echo server",
        f"{server_command(args)} --mode thread",
    )


def no_echo(conversation: Conversation, reply: bytes) -> "Failure":
    """What came back is no echo: the notice of a full server, or the words of another program."""
    where = place(conversation.args)
    said = printable(reply[:SHOWN].decode(errors="backslashreplace").strip())
    if FULL.startswith(reply):
        return Failure(
            7,
            f"{where} says: {said}",
            "that is a notice: an echo has no small letters",
            "wait until a client leaves, or start the server with a larger --max-clients",
        )
    return Failure(
        56,
        f"{where} is no uppercase echo, it says: {said}",
        "what came back is not what was sent, in capitals: another program listens there",
        f"ss -ltnup on the server shows which; {server_command(conversation.args)}",
    )


def printable(text: str) -> str:
    """Text for a terminal: what could move the cursor or change colours appears in hex."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text
    )


def ping_report(sent: int, trips: Sequence[float]) -> str:
    """The end of --ping: trips are the milliseconds that each answered message took."""
    lines = f"sent {sent}, received {len(trips)}, lost {sent - len(trips)}"
    if trips:
        mean = sum(trips) / len(trips)
        lines += f"\nround trip min/avg/max {min(trips):.3f}/{mean:.3f}/{max(trips):.3f} ms"
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
            write_out(exchange(conversation, message + b"\n"))
    say("")


def stream(conversation: Conversation) -> None:
    """Standard input to the server, its answer to standard output: one thread for each way.

    If all were sent before any of it is read, both sides would block once the kernel's buffers
    are full.
    """
    problems: list[Exception] = []

    def send_input() -> None:
        try:
            while chunk := read_input(conversation.args.recv_size):
                send_message(conversation, chunk)
        except (Failure, OSError) as problem:
            problems.append(problem)  # told when all that is on its way has come back
        conversation.ended = True
        with contextlib.suppress(OSError):
            conversation.sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send_input, daemon=True)
    sender.start()
    while chunk := receive(conversation):
        write_out(chunk)
    sender.join()  # it has sent FIN, but perhaps not yet shown it
    if problems:
        raise problems[0]


def ask(conversation: Conversation, number: int) -> float:
    """Send a numbered message. Returns the milliseconds until its answer is there."""
    began = time.perf_counter()
    exchange(conversation, b"ping %d\n" % number)
    return 1000 * (time.perf_counter() - began)


def ping(conversation: Conversation) -> None:
    """Send numbered messages and time each answer; --interval later comes the next."""
    args = conversation.args
    number = 0
    trips: list[float] = []  # milliseconds until each answer
    try:
        for number in range(1, args.ping + 1):
            trips.append(ask(conversation, number))
            if number < args.ping:
                time.sleep(args.interval)
    finally:
        write_out(ping_report(number, trips).encode())


def talk(conversation: Conversation) -> None:
    """What the command line asks for: a ping, a message, a prompt or a pipe."""
    if conversation.args.ping:
        ping(conversation)
    elif conversation.args.text:
        write_out(exchange(conversation, os.fsencode(" ".join(conversation.args.text)) + b"\n"))
    elif is_terminal(0):
        converse(conversation)
    else:
        stream(conversation)


def connect(args: Namespace) -> Conversation:
    sock = open_connection(args, args.host, args.port, server_command(args))
    sock.settimeout(None)  # wait_for_reply() watches the time
    return Conversation(sock, args)


def client(args: Namespace) -> int:
    check_client(args)
    conversation = connect(args)
    with conversation.sock as sock:
        try:
            talk(conversation)
        except OSError as error:
            raise Failure(
                18 if conversation.received else 52,
                f"connection lost: {conversation.received:,} of {conversation.sent:,} "
                "bytes came back",
                f"{error.strerror}; what was printed is right",
                f"repeat the command; if the server has ended: {server_command(args)}",
            ) from None
        with contextlib.suppress(OSError):  # after stream() it is closed on both sides
            sock.shutdown(socket.SHUT_WR)  # FIN: nothing more from here
            sock.settimeout(args.timeout)
            sock.recv(1)  # 0 bytes: the server's FIN
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


# --- streams: the same in all scripts over TCP (tests/test_twins.py) ---
SYN, SYN_ACK, ACK, PUSH, FIN, RST = 2, 18, 16, 24, 17, 20  # the flags in TCP's header
SEGMENT = 65495  # bytes: with the headers of TCP and IPv4, a packet of the largest size
US, PEER = 1, -1  # the order of what belongs to both sides


class TracedStream(Traced):
    """The same for TCP, which has connections that begin and end."""

    ends: Sequence[Any]  # of the connection: our address, the peer's
    talking: frozenset[int] = frozenset()  # the sides that may still send

    def accept(self) -> tuple[socket.socket, Any]:
        plain, peer = self.attempt("*", "accept", super().accept)
        # the same connection as a traced object: the plain one gives its descriptor away
        conn = type(self)(fileno=plain.detach())
        conn.show("*", f"accept from {address(peer)}")
        conn.begin(peer, PEER)
        return conn, peer

    def connect(self, target: Any) -> None:
        what = f"connect {address(target)}"
        self.attempt("*", what, super().connect, target)
        here = address(self.getsockname())
        self.show("*", f"{what} ok from {here} (handshake {self.lasted:.2f} ms)")
        self.begin(target, US)

    def begin(self, peer: Any, asks: int) -> None:
        """A connection begins, because one side has asked for it: that is the handshake."""
        self.ends = self.getsockname(), peer
        self.talking = frozenset((US, PEER))
        self.store(asks, SYN)
        self.store(-asks, SYN_ACK)
        self.store(asks, ACK)

    def store(self, side: int, flags: int, data: bytes = b"") -> None:
        """What one side sends, before it is counted: in packets for the capture."""
        if not self.talking or (flags == FIN and side not in self.talking):
            return
        mine, other = (self.sent + 1, self.received + 1)[::side]
        mine -= flags & SYN > 0  # SYN has number 0, the first byte has number 1
        other *= flags != SYN  # the first packet acknowledges nothing
        for start in range(0, len(data) or 1, SEGMENT):
            numbers = mine + start & 0xFFFFFFFF, other & 0xFFFFFFFF  # of 32 bits
            header = struct.pack("!IIHH", *numbers, 0x5000 | flags, 65535)
            rest = b"\0\0" + data[start : start + SEGMENT]
            if self.capture:
                self.capture.packet(6, self.ends[::side], header, rest)
        if flags == FIN:
            self.talking -= {side}
        if flags == RST:
            self.talking = frozenset()

    def attempt(self, *call: Any) -> Any:
        try:
            return super().attempt(*call)
        except ConnectionError:
            self.store(PEER, RST)
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        count: int = self.attempt(">", "send", super().send, data, flags)
        self.store(US, PUSH, bytes(data[:count]))
        self.sent += count
        text = f"send {count} of {len(data)} bytes (sent so far {self.sent})"
        self.show(">", text, data[:count])
        return count

    def recv(self, size: int, flags: int = 0) -> bytes:
        data: bytes = self.attempt("<", "recv", super().recv, size, flags)
        end = "peer sent FIN (end of stream)" if PEER in self.talking else "nothing more can come"
        self.store(PEER, PUSH if data else FIN, data)
        self.received += len(data)
        text = (
            f"recv {len(data)} of at most {size} bytes, waited {self.lasted:.2f} ms "
            f"(received so far {self.received})"
        )
        self.show("<", text if data else f"recv 0 bytes = {end}", data)
        return data

    def shutdown(self, how: int) -> None:
        side = "sending = FIN"
        if how == socket.SHUT_RD:
            side = "receiving"
            self.talking -= {PEER}  # first: another thread may be in recv()
        super().shutdown(how)
        self.show("*", f"shutdown of {side}")
        if how != socket.SHUT_RD:
            self.store(US, FIN)

    def close(self) -> None:
        if self.fileno() < 0:
            return
        if self.talking:
            # RST if close() shall send one (SO_LINGER), or if something came that nobody read
            reset = self.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8).strip(b"\0")
            self.settimeout(0)
            with contextlib.suppress(OSError):
                reset += socket.socket.recv(self, 1, socket.MSG_PEEK)
            self.store(US, RST if reset else FIN)
        self.show("*", f"close (sent {self.sent}, received {self.received})")
        super().close()


# --- end streams ---


def socket_class(args: argparse.Namespace) -> type[socket.socket]:
    """The class of all sockets: if nothing is shown the plain one, so that it costs nothing."""
    Traced.capture = args.pcap
    Traced.dump = args.trace_hex
    Traced.prints = args.trace or args.trace_hex
    return TracedStream if Traced.prints or args.pcap else socket.socket


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


# --- many files: the same in server.py, httpserver.py, tcp_upper.py (tests/test_twins.py) ---
def raise_file_limit() -> None:
    """A connection is a descriptor: ask for as many as the system lets this user have."""
    with contextlib.suppress(ImportError):
        import resource  # not at the top: Windows has none

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for most in hard, 10240:  # macOS names a limit that it does not grant; this one it does
            with contextlib.suppress(ValueError, OSError):
                return resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


# --- end many files ---


# --- connecting: the same in client.py, httpclient.py, tcp_upper.py (tests/test_twins.py) ---
CONNECT_TIMEOUT = 5.0  # seconds; a machine that is there answers within one


def open_connection(args: argparse.Namespace, host: str, port: int, server: str) -> socket.socket:
    """Connect to the first of the host's addresses that answers.

    server is the command that would start the server, for the case that there is none.
    """
    limit = min(CONNECT_TIMEOUT, args.timeout)
    for family, target in resolve(host, port, socket.SOCK_STREAM):
        sock = None
        try:
            # an OSError too where there is no IPv6, or too many open files
            sock = socket_class(args)(family, socket.SOCK_STREAM)
            sock.settimeout(limit)
            sock.connect(target)
            # what is sent leaves at once, however short
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(args.timeout)
            return sock
        except OSError as error:
            if sock:
                sock.close()
            problem = error
    raise cannot_connect(problem, address((host, port)), limit, server)


def cannot_connect(problem: OSError, place: str, limit: float, server: str) -> "Failure":
    if isinstance(problem, ConnectionRefusedError):
        return Failure(
            7,
            f"nothing is listening on {place} (connection refused)",
            "the host answered, but no program has that port open",
            server,
        )
    if isinstance(problem, socket.timeout) or problem.errno == errno.ETIMEDOUT:
        return Failure(
            28,
            f"no answer from {place} in {limit:g} s",
            "a firewall, a wrong address, a host that is down, or a server whose queue is full",
            "check the address; on the server, ss -ltn shows a full queue: Recv-Q above Send-Q",
        )
    if isinstance(problem, ConnectionError):
        return Failure(
            7,
            f"{place} answered and hung up at once ({problem.strerror})",
            "the server ended just then, or something on the way refuses",
            f"repeat the command; if it fails again, restart the server: {server}",
        )
    return Failure(
        7,
        f"cannot connect to {place} ({problem.strerror})",
        "this machine has no way to that address",
        "check the address that the server printed, and the network",
    )


# --- end connecting ---


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
    parser = Parser(prog="tcp_upper.py")
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    roles = parser.add_subparsers(dest="role", metavar="server|client", required=True)
    count = between(0, 1e12)
    some = between(1, 1e12)
    seconds = between(0, 3600, float)

    server = roles.add_parser("server", help="wait for clients and answer them")
    add_flags(
        server,
        ("--requests", some, "N", "end after so many clients (default never)"),
        ("--rate", count, "N", "bytes a second (default no limit)"),
        ("--delay", seconds, "S", "wait so long before each answer"),
        ("--reset-after", some, "N", "send RST after so many bytes"),
        ("--max-clients", some, "N", "more are refused (default 2000)"),
        ("--backlog", between(0, 65535), "N", "clients that wait for accept (default 128)"),
    )
    flag = server.add_argument
    modes = "thread", "serial", "process"
    flag("--mode", choices=modes, help="what serves a client (default thread)")
    kept = "let TIME_WAIT keep the port"
    flag("--no-reuseaddr", dest="reuseaddr", action="store_false", help=kept)
    server.set_defaults(requests=sys.maxsize, rate=0, delay=0.0, reset_after=sys.maxsize)
    server.set_defaults(mode="thread", max_clients=2000, backlog=128)

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
