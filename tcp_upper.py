#!/usr/bin/env python3
"""Send text over TCP and get it back in capitals: server and client in one file.

    python3 tcp_upper.py server                      wait on 127.0.0.1:12000
    python3 tcp_upper.py client hello, welcome       HELLO, WELCOME
    python3 tcp_upper.py client                      a prompt; Ctrl-D ends
    cat big | python3 tcp_upper.py client > out      any size, both ways at once
    python3 tcp_upper.py client --ping 5             round-trip times
    python3 tcp_upper.py client --trace hello        each socket call as it happens
    python3 tcp_upper.py server --host 0.0.0.0       for other machines too
    python3 tcp_upper.py server --reset-after 3      a server that breaks off, by RST

The protocol: a connection carries a stream of bytes each way. The server sends back what it reads,
a-z as A-Z and every other byte unchanged. TCP does not mark where a message ends, so the client
ends each with a newline and reads until as many bytes have come back. When the client has no more
to say, it shuts its sending side (FIN); the server finishes its answer and closes. A server without
room says so in one line and closes. Small letters in an answer can only be such a notice.

Limits: there is no password and no encryption. The server hangs up on a client that does not read
its answer for --timeout seconds; a client that says nothing may stay.
"""

# The map
#
# Begin with answer() and exchange(): one conversation, as the server and as the client see it.
# The sections, in the order of the file:
#   the conversation   Counts, answer(), send_message(), exchange(), receive()
#   the server         outcome(), Server, Server.run(), Server.admit(), Server.reply(), serve()
#   the client         ping_report(), Output, converse(), stream(), ping(), client()
#   shared fences      Traced, TracedStream, Stop, bind(), open_connection(), Failure, Parser
#   the command line   announce(), build_parser(), main()
#
# Threads: the main thread runs Server.run(); it alone accepts, refuses and collects. Each client
# has a thread (or process) that runs Server.reply() and touches only its own connection. In the
# client, stream() starts a thread that sends while the main thread receives.
#
# A connection waits in the backlog until Server.admit() accepts it. If there is no room, it is
# refused: told why, kept for LINGER seconds, closed. Else answer() serves it until the client's
# FIN, an error, --reset-after or Ctrl-C, and Server.reply() logs how it ended and closes it.

# --- imports: the same in all six scripts (tests/test_twins.py) ---
import sys

if __name__ == "__main__":
    # A file that arrives must never be imported, whatever its name. Python looks first into the
    # folder of this script, and PYTHONPATH may add the current one: both leave the path before
    # anything else is imported. (For the same reason nothing here is imported from __future__.)
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]
    import os

    own, library = os.path.dirname(os.path.realpath(__file__)), os.path.dirname(os.__file__)
    for folder in [each for each in sys.path if os.path.exists(each or ".") and each != library]:
        if any(os.path.samefile(folder or ".", place) for place in (".", own)):
            sys.path.remove(folder)
# --- end imports ---

import argparse
import codecs
import contextlib
import errno
import functools
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
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Optional, Union

VERSION = "1.0"
SERVER = "python3 tcp_upper.py server"
CLIENT = "python3 tcp_upper.py client"
PROMPT = "Input lowercase sentence: "
FULL = b"server full, try again later\n"
NOTICE_AFTER = 3.0  # seconds of silence until the client says for whom it waits
# bytes sent before their answer is read: kernels hold more, so the two sides never both wait to
# send
PIECE = 65536
GRACE = 2.0  # seconds that Ctrl-C leaves for answers under way
LINGER = 1.0  # seconds that a refused client has for reading why
MAX_REFUSED = 64  # refused clients kept that long
ACCEPT_PAUSE = 0.5  # seconds to the next accept() when the system has no descriptor or memory left
# SO_LINGER on, for 0 seconds: close() sends RST
RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


# --- the conversation: as the server and as the client see it ---
class Counts:
    """The bytes that went each way on a connection, and whether the client has ended."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.sent = 0
        self.received = 0
        self.ended = False


class NotAnEcho(Exception):
    """What came back is not what was sent, in capitals."""


def answer(conn: socket.socket, args: argparse.Namespace, counts: Counts) -> None:
    """The server's side: receive, capitalise, send, until the client has no more to say."""
    while counts.received < args.reset_after:
        chunk = conn.recv(min(args.recv_size, args.reset_after - counts.received))
        if len(chunk) == 0:  # FIN: the client will send nothing more
            return
        counts.received += len(chunk)
        if args.delay or args.rate:
            hold_back(args, counts)
        conn.settimeout(args.timeout)  # a client has to read its answer...
        send_message(conn, chunk.upper(), counts)
        conn.settimeout(None)  # ...but it may think before the next message
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def hold_back(args: argparse.Namespace, counts: Counts) -> None:
    """Wait before the next answer, as --delay and --rate (bytes a second) ask."""
    pause = args.delay
    if args.rate:
        pause = max(pause, counts.began + counts.sent / args.rate - time.monotonic())
    time.sleep(pause)


def send_message(sock: socket.socket, data: bytes, counts: Counts) -> None:
    """Send it all. send() takes only what the kernel has room for.

    (sendall() has one timeout for everything, and would cut off a slow reader.)
    """
    view = memoryview(data)
    counts.sent += len(view)  # first: the answer can be here before send() returns
    try:
        while len(view) > 0:
            view = view[sock.send(view) :]
    finally:
        counts.sent -= len(view)


def exchange(
    sock: socket.socket, message: bytes, args: argparse.Namespace, counts: Counts
) -> bytes:
    """The client's side: send a message, and receive until as many bytes have come back."""
    reply = b""
    for start in range(0, len(message), PIECE):
        send_message(sock, message[start : start + PIECE], counts)
        while counts.received < counts.sent:
            reply += receive(sock, args, counts)
    if reply != message.upper():
        raise NotAnEcho
    return reply


def receive(sock: socket.socket, args: argparse.Namespace, counts: Counts) -> bytes:
    """The next part of the answer, of any size: one recv() is not one message."""
    wait_for_reply(sock, args, counts)
    chunk = sock.recv(args.recv_size)
    if len(chunk) == 0 and (counts.received < counts.sent or not counts.ended):
        raise ConnectionAbortedError(errno.ECONNABORTED, "the server closed it")
    check(chunk, counts)
    counts.received += len(chunk)
    return chunk


def check(chunk: bytes, counts: Counts) -> None:
    """Refuse what no echo sends: small letters, or more than it was sent."""
    if counts.received == 0 and chunk != chunk.upper():
        raise NotAnEcho(chunk)
    if counts.received + len(chunk) > counts.sent:
        raise NotAnEcho


# --- the server: accept, a thread for each client, the end ---
def outcome(problem: Optional[OSError], stopping: bool, reset: bool) -> str:
    """What became of a connection, for the log."""
    # a timeout with a number is the kernel's: the other machine has vanished
    if isinstance(problem, socket.timeout) and not problem.errno:
        return "hung up on: it did not read its answer"
    if problem is not None:
        return f"the client left early ({problem.strerror})"
    if reset:
        return "reset by --reset-after"
    return "stopped" if stopping else "done"


class Server:
    """A listening socket, and a thread or process for each client that came in through it."""

    def __init__(self, args: argparse.Namespace, sock: socket.socket) -> None:
        self.args = args
        self.sock = sock
        self.stop = Stop()
        self.limit = args.requests or sys.maxsize
        self.forks = args.mode == "process" and hasattr(os, "fork")
        # each client's connection, or the number of its process
        self.clients: set[Union[socket.socket, int]] = set()
        self.refused: list[socket.socket] = []
        self.accepted = 0
        self.ending = False
        if self.forks:  # the end of a child is a signal, for which Stop makes select() return
            signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def run(self) -> None:
        while not self.stop.asked and self.accepted - len(self.clients) < self.limit:
            watched: list[Any] = [self.stop]
            # serial: the next client waits in the backlog
            if self.args.mode != "serial" or not self.clients:
                watched.append(self.sock)
            ready, _, _ = select.select(watched, [], [], LINGER if self.refused else None)
            self.stop.drain()
            if self.sock in ready:
                self.admit()
            self.release(everything=not ready)
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
            self.accepted += 1
        except (OSError, RuntimeError):
            self.clients.discard(conn)
            self.refuse(conn, peer, "the system gives no further thread or process")

    def refuse(self, conn: socket.socket, peer: "Address", why: str) -> None:
        """Tell the client and hang up, but keep the socket for a moment.

        If it were closed over unread bytes, it would send RST, which destroys the answer.
        """
        log(f"{address(peer)} refused: {why}")
        self.refused.append(conn)
        with contextlib.suppress(OSError):
            conn.setblocking(False)
            conn.send(FULL)
            conn.shutdown(socket.SHUT_WR)

    def dispatch(self, conn: socket.socket, peer: "Address") -> None:
        """Give a client a thread of its own, or a process."""
        conn.settimeout(None)
        # the kernel notices a client that vanished
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # an answer leaves at once, however short
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.forks:
            return self.hand_over(conn, peer)
        self.clients.add(conn)
        threading.Thread(target=self.reply, args=(conn, peer), daemon=True).start()

    def hand_over(self, conn: socket.socket, peer: "Address") -> None:
        """Give a connection to a copy of this process. It stays open until both have closed it."""
        child = os.fork()
        if child:  # this is the parent: it goes back to accept()
            self.clients.add(child)
            return conn.close()

        def stop_reading(number: int, frame: object) -> None:
            self.ending = True
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RD)

        try:
            signal.set_wakeup_fd(-1)
            # Ctrl-C reaches both processes: the parent passes it on as SIGTERM
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, stop_reading)
            self.sock.close()
            self.reply(conn, peer)
        except BaseException:  # noqa: BLE001  (a bug: tell it, but end here all the same)
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)  # a child never goes back to accept()

    def reply(self, conn: socket.socket, peer: "Address") -> None:
        """A client's thread or process: its conversation, then its line in the log."""
        counts, problem = Counts(), None
        try:
            answer(conn, self.args, counts)
        except OSError as error:
            problem = error
        seconds = time.monotonic() - counts.began
        end = outcome(problem, self.ending, counts.received >= self.args.reset_after)
        numbers = f"received {counts.received}, sent {counts.sent} bytes in {seconds:.3f} s"
        log(f"{address(peer)} {numbers}: {end}")
        conn.close()
        self.clients.discard(conn)  # in a child it is not there
        self.stop.wake()

    def release(self, everything: bool) -> None:
        """Close refused connections, all or the oldest; collect the children that ended."""
        while self.refused and (everything or len(self.refused) > MAX_REFUSED):
            self.refused.pop(0).close()
        with contextlib.suppress(ChildProcessError):
            while self.forks and (child := os.waitpid(-1, os.WNOHANG)[0]):
                # not there: a child of the shell that became this server
                self.clients.discard(child)

    def finish(self) -> None:
        """Stop listening, ask each client's thread or process to end, wait a moment for them."""
        self.sock.close()
        self.release(everything=True)
        self.ending = True
        dropped, deadline = len(self.clients), time.monotonic() + GRACE
        for client in list(self.clients):
            with contextlib.suppress(OSError):
                if isinstance(client, int):
                    os.kill(client, signal.SIGTERM)
                else:
                    client.shutdown(socket.SHUT_RD)  # recv() returns what has arrived, then 0
        while self.clients and (left := deadline - time.monotonic()) > 0:
            select.select([self.stop], [], [], left)
            self.stop.drain()
            self.release(everything=True)
        for client in list(self.clients):
            if isinstance(client, int):
                os.kill(client, signal.SIGKILL)
        self.stop.close()
        served = self.accepted - len(self.clients)
        say(f"stopped: {dropped} client{'s' * (dropped != 1)} disconnected, {served} served")


def serve(args: argparse.Namespace) -> int:
    raise_file_limit()
    if args.rate:  # a tenth of a second's worth at once
        args.recv_size = min(args.recv_size, max(1, args.rate // 10))
    family, target = resolve(args.host, args.port, socket.SOCK_STREAM)[0]
    sock = bind(socket_class(args), family, target, args.backlog, args.reuseaddr)
    # connections inherit it: a later server can tell those in TIME_WAIT from a server
    if os.name == "posix":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server = Server(args, sock)  # from here on a signal is heard
    announce(sock)
    server.run()
    return 0


# --- the client: a prompt, a pipe, a ping, a message ---
def wait_for_reply(sock: socket.socket, args: argparse.Namespace, counts: Counts) -> None:
    """Wait until something comes. Silence counts only while an answer is owed."""
    silence = 0.0
    while silence < args.timeout:
        owed = counts.received < counts.sent
        step = min(NOTICE_AFTER, args.timeout - silence)
        if select.select([sock], [], [], step)[0]:
            return
        if owed:  # else what stream() sent meanwhile has all of --timeout
            silence += step
            if silence == NOTICE_AFTER:
                say(f"waiting for a reply from {place(args)} (Ctrl-C stops)")
    raise Failure(
        28,
        f"no reply from {place(args)} in {args.timeout:g} s",
        "it is connected but silent: "
        "busy with another client (--mode serial), stopped, or no echo server",
        f"{server_command(args)} --mode thread",
    )


def shown(text: str) -> str:
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
    return lines


class Output:
    """Standard output: a file or a pipe gets the bytes, a terminal text; \\xNN is no text."""

    def __init__(self) -> None:
        self.terminal = os.isatty(1)
        # a chunk can end inside a character
        self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def write(self, data: bytes, last: bool = False) -> None:
        if self.terminal:
            data = shown(self.decoder.decode(data, last)).encode()
        while data:
            try:
                data = data[os.write(1, data) :]
            except BlockingIOError:  # another program made the shared terminal non-blocking
                select.select([], [1], [])
            except OSError as error:
                raise no_output(error) from None


def no_output(error: OSError) -> "Failure":
    return Failure(
        23,
        f"cannot write standard output ({error.strerror})",
        "what reads it has ended, or its disk is full",
        "write to a file on a disk with room: add > FILE to the command",
    )


def read_input(size: int) -> bytes:
    while True:
        try:
            return os.read(0, size)
        except BlockingIOError:  # another program made the shared terminal non-blocking
            select.select([0], [], [])
        except OSError as error:
            raise Failure(
                26,
                f"cannot read standard input ({error.strerror})",
                "what was read before came back whole",
                f"{CLIENT} < FILE",
            ) from None


def converse(sock: socket.socket, args: argparse.Namespace, counts: Counts, out: Output) -> None:
    """The prompt: each line is a message, until Ctrl-D. readline adds history and editing."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (not at the top: loading it can write to a terminal)
    if isinstance(sys.stdin, io.TextIOWrapper):
        # bytes that are no text come through as they were typed
        sys.stdin.reconfigure(errors="surrogateescape")
    screen = sys.stdout if out.terminal else sys.stderr  # a prompt is no result
    with contextlib.redirect_stdout(screen), contextlib.suppress(EOFError):
        while True:
            message = os.fsencode(input(PROMPT))
            out.write(exchange(sock, message + b"\n", args, counts))
    say("")


def stream(sock: socket.socket, args: argparse.Namespace, counts: Counts, out: Output) -> None:
    """Standard input to the server, its answer to standard output: one thread for each way.

    If all were sent before any of it is read, both sides would block once the kernel's buffers
    are full.
    """
    problems: list[Exception] = []

    def send_input() -> None:
        try:
            while chunk := read_input(args.recv_size):
                send_message(sock, chunk, counts)
        except (Failure, OSError) as problem:
            problems.append(problem)  # told when all that is on its way has come back
        counts.ended = True
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=send_input, daemon=True).start()
    while chunk := receive(sock, args, counts):
        out.write(chunk)
    if problems:
        raise problems[0]


def ping(sock: socket.socket, args: argparse.Namespace, counts: Counts, out: Output) -> None:
    """Send numbered messages and time each answer; --interval later comes the next."""
    trips: list[float] = []
    sent = 0
    try:
        for sent in range(1, args.ping + 1):
            began = time.perf_counter()
            exchange(sock, b"ping %d\n" % sent, args, counts)
            trips.append(1000 * (time.perf_counter() - began))
            if sent < args.ping and select.select([sock], [], [], args.interval)[0]:
                receive(sock, args, counts)  # no answer is owed: this finds out what is wrong
    finally:
        out.write(f"{ping_report(sent, trips)}\n".encode())


def talk(sock: socket.socket, args: argparse.Namespace, counts: Counts, out: Output) -> None:
    """What the command line asks for: a ping, a message, a prompt or a pipe."""
    if args.ping:
        ping(sock, args, counts, out)
    elif args.text:
        out.write(exchange(sock, os.fsencode(" ".join(args.text)) + b"\n", args, counts))
    elif os.isatty(0):
        converse(sock, args, counts, out)
    else:
        stream(sock, args, counts, out)


def connect(args: argparse.Namespace) -> socket.socket:
    sock = open_connection(args, args.host, args.port, server_command(args))
    sock.settimeout(None)  # wait_for_reply() watches the time
    return sock


def client(args: argparse.Namespace) -> int:
    check_client(args)
    counts, out = Counts(), Output()
    with connect(args) as sock:
        try:
            talk(sock, args, counts, out)
        except NotAnEcho as problem:
            raise no_echo(args, *problem.args) from None
        except OSError as error:
            raise Failure(
                18 if counts.received else 52,
                f"connection lost: {counts.received:,} of {counts.sent:,} bytes came back",
                f"{error.strerror}; what was printed is right",
                f"repeat the command; if the server has ended: {server_command(args)}",
            ) from None
        finally:
            out.write(b"", last=True)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)  # FIN: nothing more from here
            sock.settimeout(args.timeout)
            sock.recv(1)  # 0 bytes: the server's FIN
    return 0


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
    """A socket that prints a line on stderr for each call.

    It shows what the program asks of the kernel, and what the kernel replies. SYN, ACK and
    retransmission happen inside the kernel: only tcpdump or Wireshark show them.
    """

    began = time.perf_counter()
    numbers = itertools.count(1)
    dump = False  # whether --trace-hex asks for the bytes
    number = sent = received = 0
    lasted = 0.0  # milliseconds of the last call
    handshake = ended = ""  # what a connect() does, what 0 bytes mean

    def show(self, mark: str, text: str, data: Any = b"") -> None:
        self.number = self.number or next(self.numbers)
        if data and hasattr(self, "cipher"):
            text += ", encrypted by TLS on its way"
        if self.dump and data:
            text += hexdump(self.masked(mark, bytes(data)))
        now = 1000 * (time.perf_counter() - self.began)
        say(f"{now:9.3f} ms #{self.number} {mark} {text}")

    def masked(self, mark: str, data: bytes) -> bytes:
        """What --trace-hex may show of the data: all, where nothing is secret."""
        return data

    def attempt(self, mark: str, what: str, call: Callable[..., Any], *args: object) -> Any:
        """Make a call of socket.socket. Its failure is a line of the trace too."""
        began = time.perf_counter()
        try:
            return call(*args)
        except OSError as error:
            if type(error).__name__ not in NOTHING_HAPPENED:
                self.show(mark, f"{what}: {error.strerror or 'timed out'}")
            raise
        finally:
            self.lasted = 1000 * (time.perf_counter() - began)

    def connect(self, target: Any) -> None:
        what = f"connect {address(target)}"
        self.attempt("*", what, super().connect, target)
        here = address(self.getsockname())
        self.show("*", f"{what} ok from {here} ({self.handshake} {self.lasted:.2f} ms)")

    def send(self, data: Any, flags: int = 0) -> int:
        count: int = self.attempt(">", "send", super().send, data, flags)
        self.show_sent("send", data, count)
        return count

    def show_sent(self, what: str, data: Any, count: int) -> None:
        self.sent += count
        text = f"{what} {count} of {len(data)} bytes (sent so far {self.sent})"
        self.show(">", text, data[:count])

    def recv(self, size: int, flags: int = 0) -> bytes:
        data: bytes = self.attempt("<", "recv", super().recv, size, flags)
        self.show_received("recv", data, size)
        return data

    def show_received(self, what: str, data: bytes, size: int) -> None:
        self.received += len(data)
        text = f"0 bytes = {self.ended}"
        if data:
            text = f"{len(data)} of at most {size} bytes, waited {self.lasted:.2f} ms"
            text += f" (received so far {self.received})"
        self.show("<", f"{what} {text}", data)

    def close(self) -> None:
        if self.fileno() >= 0:
            self.show("*", f"close (sent {self.sent}, received {self.received})")
        super().close()


# --- end trace ---


# --- streams: the same in all scripts over TCP (tests/test_twins.py) ---
class TracedStream(Traced):
    """The same for TCP, which has connections that begin and end."""

    handshake, ended = "handshake", "peer sent FIN (end of stream)"

    def accept(self) -> tuple[socket.socket, Any]:
        plain, peer = self.attempt("*", "accept", super().accept)
        # the same connection as a traced object: the plain one gives its descriptor away
        conn = type(self)(fileno=plain.detach())
        conn.show("*", f"accept from {address(peer)}")
        return conn, peer

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        data = self.recv(size or len(buffer), flags)
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def shutdown(self, how: int) -> None:
        self.attempt("*", "shutdown", super().shutdown, how)
        side = "receiving" if how == socket.SHUT_RD else "sending = FIN"
        self.show("*", f"shutdown of {side}")
        if how == socket.SHUT_RD:
            self.ended = "this side has shut its receiving"


# --- end streams ---


def socket_class(args: argparse.Namespace) -> type[socket.socket]:
    """The class of all sockets: without --trace the plain one, so that it costs nothing."""
    Traced.dump = args.trace_hex
    return TracedStream if args.trace or args.trace_hex else socket.socket


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
        raise cannot_listen(error, family, kind, target) from None


def cannot_listen(problem: OSError, family: int, kind: int, target: "Address") -> "Failure":
    host, port = target[:2]
    if problem.errno == errno.EADDRINUSE:
        return Failure(
            45,
            f"port {port} is already in use",
            who_has_port(family, kind, target),
            "--port 0 takes any free one; ss -ltnup shows which program has it",
        )
    if problem.errno == errno.EADDRNOTAVAIL:
        return Failure(
            45,
            f"{host} is not an address of this machine",
            "its own are " + ", ".join(["127.0.0.1", *own_addresses()]),
            "--host 0.0.0.0 listens on all of them",
        )
    if problem.errno == errno.EACCES and port < 1024:
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


def who_has_port(family: int, kind: int, target: "Address") -> str:
    """A second bind tells: SO_REUSEADDR ignores connections in TIME_WAIT, but not a server."""
    with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM and os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            return (
                "no server has it: connections that ended here a moment ago "
                "are in TIME_WAIT, for a minute or so"
            )
    return "another program is using it"


# --- end listening ---


# --- many files: the same in server.py, httpserver.py, tcp_upper.py (tests/test_twins.py) ---
def raise_file_limit() -> None:
    """A connection is a descriptor: ask for as many as the system lets this user have."""
    # macOS names a limit that it does not grant
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not at the top: Windows has none

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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


# --- errors: the same in all six scripts (tests/test_twins.py) ---
Address = tuple[Any, ...]  # (host, port), and for IPv6 (host, port, flow, scope)


class Failure(Exception):
    """What a user or a network can cause: three lines, and the exit code that curl uses for it."""

    def __init__(self, code: int, error: str, why: str, hint: str) -> None:
        super().__init__(f"error: {error}\nwhy:   {why}\ntry:   {hint}")
        self.code = code


def say(text: str) -> None:
    """Write a line for people at once. The program goes on if nobody is left to read it."""
    # AttributeError: started with stderr closed
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def address(place: Address) -> str:
    """HOST:PORT, or [HOST]:PORT for IPv6. An IPv4 client of a dual-stack server looks like IPv4."""
    host = re.sub(r"^::ffff:(?=.*\.)", "", str(place[0]))
    return f"[{host}]:{place[1]}" if ":" in host else f"{host}:{place[1]}"


def resolve(host: str, port: int, kind: int) -> list[tuple[int, Address]]:
    """Each address of a host: the family for socket(), and what connect() and bind() take."""
    # a str would load the codec for international names each time
    name = host.encode() if host.isascii() else host
    # UnicodeError: an empty label, or one over 63 characters
    with contextlib.suppress(socket.gaierror, UnicodeError):
        found = socket.getaddrinfo(name, port, type=kind)
        return [(family, target) for family, _, _, _, target in found]
    raise Failure(
        6,
        f'cannot find host "{ascii(host)[1:-1]}"',
        "it is neither an address nor a name that this machine can look up",
        "check the spelling, or use the address",
    )


def between(low: float, high: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """An argparse type: a number from low to high. bind() would raise OverflowError for 99999."""

    def number(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")

    return number


class Parser(argparse.ArgumentParser):
    """argparse with a short -h, the manual for --help, and complaints in three lines."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            # lines as wide as ours: if argparse had to ask for a width, it would load shutil
            formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 32, 100),
            add_help=False,
            **settings,
        )
        self.add_argument(
            "-h", "--help", action="help", help="show this; --help shows the manual first"
        )

    def format_help(self) -> str:
        manual = f"{__doc__}\n" if "--help" in sys.argv else ""
        brief = super().format_help().replace("\n\n", "\n")
        # the usage need not name the options that are explained below it
        return manual + re.sub(r"(\s+\[-[^]]*\])+(\n +(?= ))?", " [OPTION ...]", brief, count=1)

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
            for close in difflib.get_close_matches(wrong[1], known, 1):
                hint = f"did you mean {close}? {hint} lists all"
        why = "the command line is not as the help describes it; nothing was done"
        say(str(Failure(2, message, why, hint)))
        raise SystemExit(2)


# --- end errors ---


# --- the command line ---
def log(text: str) -> None:
    say(time.strftime("%Y-%m-%d %H:%M:%S ") + text)


def place(args: argparse.Namespace) -> str:
    return address((args.host, args.port))


def server_command(args: argparse.Namespace) -> str:
    """The command that starts the server which this client looks for."""
    host = "" if args.host in ("127.0.0.1", "localhost") else f" --host {shlex.quote(args.host)}"
    return f"{SERVER}{host} --port {args.port}"


def no_echo(args: argparse.Namespace, notice: bytes = b"") -> Failure:
    """What came back is no echo; notice is what the other side says instead."""
    if not notice:
        return Failure(
            56,
            f"{place(args)} is no uppercase echo: what came back is not what was sent, in capitals",
            "another program listens there",
            f"ss -ltnup shows which; {server_command(args)}",
        )
    full = FULL.startswith(notice)
    more = "wait until a client leaves, or start the server with a larger --max-clients"
    return Failure(
        7 if full else 56,
        f"{place(args)} says: {shown(notice.decode(errors='backslashreplace').strip())}",
        "that is a notice: an echo has no small letters",
        more if full else "check the port: ss -ltnup on the server shows which program has it",
    )


def check_client(args: argparse.Namespace) -> None:
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
    try:
        print(f"listening on {address((host, port))}", flush=True)
    except OSError as error:
        sock.close()
        raise no_output(error) from None
    elsewhere = reachable_at(sock)
    for known in elsewhere:
        say(f"from another machine:  {CLIENT} --host {known} --port {port}")
    if not elsewhere:
        named = f" --host {host}" if host != "127.0.0.1" else ""  # the client's own default
        say(f"only this machine can reach it, with:  {CLIENT}{named} --port {port}")
        say("for others, start it with --host 0.0.0.0")


def common_flags(parser: argparse.ArgumentParser) -> None:
    seconds, flag = between(0.01, 1e6, float), parser.add_argument
    flag("--host", help="the server's name or address (default 127.0.0.1)")
    flag(
        "--port", type=between(0, 65535), help="its port; a server takes any for 0 (default 12000)"
    )
    flag("--timeout", type=seconds, metavar="S", help="silence allowed in an answer (default 30)")
    what = "bytes asked of one recv (default 65536)"
    flag("--recv-size", type=between(1, 1 << 30), metavar="N", help=what)
    flag("--trace", action="store_true", help="print a line for each socket call")
    flag("--trace-hex", action="store_true", help="the same, with the first bytes")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="tcp_upper.py", argument_default=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    roles = parser.add_subparsers(dest="role", metavar="server|client", required=True)
    add = functools.partial(roles.add_parser, argument_default=argparse.SUPPRESS)
    count, seconds = between(0, 1e12), between(0, 3600, float)

    server = add("server", help="wait for clients and answer them")
    flag = server.add_argument
    flag("--requests", type=count, metavar="N", help="end after so many clients (default never)")
    flag("--rate", type=count, metavar="N", help="bytes a second (default no limit)")
    flag("--delay", type=seconds, metavar="S", help="wait so long before each answer")
    flag("--reset-after", type=between(1, 1e12), metavar="N", help="send RST after so many bytes")
    what = "what serves a client (default thread)"
    flag("--mode", choices=("thread", "serial", "process"), help=what)
    what = "more are refused (default 2000)"
    flag("--max-clients", type=between(1, 1e5), metavar="N", help=what)
    what = "clients that wait for accept (default 128)"
    flag("--backlog", type=between(0, 65535), metavar="N", help=what)
    what = "let TIME_WAIT keep the port"
    flag("--no-reuseaddr", dest="reuseaddr", action="store_false", help=what)

    client = add("client", help="send text, print what comes back")
    flag = client.add_argument
    what = "the message; without it, each line of standard input is one"
    flag("text", nargs="*", metavar="TEXT", help=what)
    flag("--ping", type=count, metavar="N", help="send N numbered messages and time them")
    flag("--interval", type=seconds, metavar="S", help="from ping to ping (default 0.2)")
    for each in parser, server, client:
        common_flags(each)
    parser.set_defaults(host="127.0.0.1", port=12000, timeout=30.0, recv_size=65536)
    parser.set_defaults(trace=False, trace_hex=False, text=[], ping=0, interval=0.2)
    parser.set_defaults(requests=0, rate=0, delay=0.0, reset_after=sys.maxsize, mode="thread")
    parser.set_defaults(max_clients=2000, backlog=128, reuseaddr=True)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = build_parser().parse_args(argv)
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
