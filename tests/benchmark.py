#!/usr/bin/env python3
"""Measure the six scripts against the programs that people install, on this machine, and draw it.

    python3 tests/benchmark.py --quick               two minutes; without it up to thirty
    python3 tests/benchmark.py lab                   one minute: socket against HTTP, for a student's report
    python3 tests/benchmark.py down kept             only these suites (see the end of this page)
    python3 tests/benchmark.py --charts tests/charts whole, and the README's charts drawn anew
    python3 tests/benchmark.py --peers               who is here, who is not
    python3 tests/benchmark.py --peers install       the commands that install who is not

The table comes on the terminal; results.json, results.md and the charts (SVG) go into the folder of --out.

The method. Servers and clients talk over 127.0.0.1. What is timed for a file is the client's process from start to end.
Every round runs each contender once, and the next round begins with another one, so that a machine that slows down slows
all of them. The first round warms caches and is thrown away. Shown are the median and, behind it, the lowest and the highest;
ratios are taken between two results of the same round, and their median is shown. A result counts only when what arrived
has the right length and SHA-256. Contenders that are not installed are named and left out. Ctrl-C keeps what is there.

Limits: loopback has no delay, no loss and no wire, and both sides share the processors; files lie in memory where
/dev/shm has room. A ratio says more than a number here. Memory and idle connections are read from /proc (Linux).
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import hmac
import importlib.util
import inspect
import itertools
import json
import math
import os
import platform
import random
import re
import select
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
HERE = "127.0.0.1"
KIB, MIB = 1024, 1 << 20
READY_S = 15.0  # a server that does not listen by then counts as broken
BUFFER = MIB  # bytes of one read in this file's own loops
LARGE = {"quick": 64 * MIB, "whole": 512 * MIB}  # bytes of the large file
SIZES = {
    "lab": (KIB, MIB, 64 * MIB),
    "quick": (KIB, 4 * MIB, 64 * MIB),
    # bytes, where size is the x axis
    "whole": (KIB, 16 * KIB, 256 * KIB, 4 * MIB, 64 * MIB, 512 * MIB),
}
MANY = {"quick": 500, "whole": 10_000}  # small files, 1 KiB each
ROUNDS = {"quick": 3, "whole": 5}  # rounds that count, after the one that does not
STEADY = 2  # rounds of a suite whose figures hardly change, such as memory
# when to stop: two and thirty minutes, less what ending takes
TOTAL_S = {"quick": 105.0, "whole": 1680.0}
LOAD_S = {"quick": 0.3, "whole": 1.0}  # how long requests are counted
IDLE = {"quick": (0, 1000), "whole": (0, 250, 500, 1000)}  # idle connections held
# to open these; a server with a short backlog needs a second for each that it drops
CONNECT_ALL_S = 10.0
CROWD = {"quick": (300, 60), "whole": (1000, 200)}  # idle connections and slow downloads at once
SLOW_FILE, SLOW_READ = 4 * MIB, 64 * KIB  # bytes of a slow download, and of one read
SLOW_S = {"quick": 0.01, "whole": 0.05}  # seconds before each read
GUESSES = 2000  # wrong passwords a second
PASSWORD = "right-password"
CUTS = {"quick": 5, "whole": 20}  # times that the link is cut
# bytes of one send and one recv
CHUNKS = [512, 2 * KIB, 8 * KIB, 32 * KIB, 128 * KIB, 512 * KIB, 4 * MIB]
IN_FLIGHT = 32  # datagrams on their way at once


# --- goals ---
# What each script must reach: floors. A ratio is ours divided by theirs as throughput, so more is
# better whatever the unit.
# Without theirs it is a plain figure in the suite's unit: a ceiling where less is better, else a floor.
class Goal(NamedTuple):
    suite: str
    ours: str
    theirs: str | None
    need: float
    x: float | None = None


GOALS = [
    Goal("down", "client.py from server.py", "rsync from rsyncd", 1.2),
    Goal("down", "client.py from server.py", "socat from socat", 0.5),
    Goal("down", "client.py from server.py", "scp from sshd", 1.5),
    Goal("down", "client.py from server.py", "hash loop from hash loop", 0.9),
    Goal("up", "client.py to server.py", "rsync to rsyncd", 1.2),
    Goal("up", "client.py to server.py", "socat to socat", 0.5),
    Goal("up", "client.py to server.py", "scp to sshd", 1.5),
    Goal("up", "client.py to server.py", "hash loop to hash", 0.9),
    Goal("many-down", "client.py from server.py", "rsync from rsyncd", 1.0),
    Goal("many-down", "client.py from server.py", "scp from sshd", 5),
    Goal("many-up", "client.py to server.py", "rsync to rsyncd", 1.0),
    Goal("many-up", "client.py to server.py", "scp to sshd", 5),
    Goal("many-up", "client.py, nothing changed", "client.py to server.py", 3),
    Goal("down", "curl from httpserver.py", "curl from nginx", 0.95),
    Goal("down", "curl from httpserver.py", "curl from http.server", 1.2),
    Goal("up", "curl to httpserver.py", "curl to nginx", 1.0),
    Goal("up", "curl form to httpserver.py", "curl form to uploadserver", 4),
    Goal("down", "httpclient.py from nginx", "curl from nginx", 1.0),
    Goal("down", "httpclient.py from nginx", "wget from nginx", 1.2),
    Goal("many-down", "httpclient.py from nginx", "wget from nginx", 3),
    Goal("many-down", "httpclient.py from nginx", "curl from nginx", 0.5),
    Goal("kept", "httpserver.py", "nginx", 0.6, 16),
    Goal("kept", "httpserver.py", "caddy", 2.0, 16),
    Goal("browser", "httpserver.py", "nginx", 0.4),
    Goal("browser", "httpserver.py", "caddy", 1.3),
    Goal("in-turn", "httpserver.py", "nginx", 0.4),
    Goal("in-turn", "httpserver.py", "caddy", 1.3),
    Goal("middle", "httpserver.py", "nginx", 0.9),
    Goal("new", "httpserver.py", "caddy", 1.1, 16),
    Goal("kept", "httpserver.py", "copyparty", 8, 16),
    Goal("kept", "httpserver.py", "http.server", 20, 16),
    Goal("new", "httpserver.py", "http.server", 2, 16),
    Goal("idle", "tcp_upper.py", None, 100, 1000),
    Goal("idle-answer", "tcp_upper.py", None, 50, 1000),
    Goal("crowd", "httpserver.py", None, 120),
    Goal("crowd-answer", "httpserver.py", None, 50),
    Goal("crowd", "server.py, 100 downloads alone", None, 150),
    Goal("cut", "httpclient.py from nginx", None, 1024),
    Goal("passwords", "server.py password", None, 50),
    Goal("passwords", "httpserver.py password", None, 50),
    Goal("memory", "client.py", None, 60),
    Goal("memory", "server.py", None, 60),
    Goal("memory", "httpclient.py", None, 50),
    Goal("memory-many", "client.py", None, 60),
    Goal("memory-many", "server.py", None, 60),
    Goal("memory-many", "httpclient.py", None, 50),
    Goal("start", "client.py", "python: socket, hashlib, argparse", 1 / 1.5),
    Goal("start", "httpclient.py", "python: http.client, argparse", 1 / 1.5),
    Goal("tls", "curl from httpserver.py TLS", "curl from nginx TLS", 0.92),
    Goal("tls", "client.py from server.py TLS", "scp from sshd", 1.4),
    Goal("tls", "client.py to server.py TLS", "scp to sshd", 1.4),
    Goal("relay", "one to one", "direct put", 0.8),
    Goal("relay", "one to five", "one to one", 1.0),
    Goal("relay-memory", "one to one", None, 80),
    Goal("relay-memory", "one to five", None, 80),
    Goal("relay-many", "one to one", None, 5000),
    Goal("chat", "server.py", None, 1000, 500),
    Goal("udp", "udp_upper.py", "C loop", 0.7),
    Goal("stream", "tcp_upper.py", "socat tr", 1.0),
    Goal("stream", "tcp_upper.py", "bare Python loop", 0.75),
]


# --- numbers ---
class Absent(Exception):
    """A contender is not on this machine."""


class Wrong(Exception):
    """A contender ran and its result does not count."""


def median(values):
    return statistics.median(values) if values else math.nan


def percentile(values):
    """What 99 of 100 stay below."""
    return sorted(values)[len(values) * 99 // 100]


def pair_ratio(ours, theirs, better):
    """Ours divided by theirs as throughput, round by round, and the median of that; nan without a common round."""
    pairs = [(a, b) for a, b in zip(ours, theirs) if a and b]
    return median([a / b if better == "more" else b / a for a, b in pairs])


def line_fit(points):
    """(seconds to set up, bytes a second) of times against sizes. Errors are weighed relative to the time, or the largest
    file alone would decide; nan where time does not grow."""
    weights = [1 / seconds**2 for _, seconds in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points))
    slope = (
        sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points)) / spread
        if spread
        else 0
    )
    return mean_y - slope * mean_x, (1 / slope if slope > 0 else math.nan)


def short(value):
    """A number as people read it: three digits that count."""
    if value is None or math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def size_name(count):
    """Bytes as people say them: 4 MiB."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", MIB), ("KiB", KIB)):
        if count >= factor:
            return f"{count / factor:g} {unit}"
    return f"{count:g} B"


def turned(items, places):
    """The same items, beginning elsewhere."""
    places %= max(1, len(items))
    return items[places:] + items[:places]


# --- instruments ---
# Small programs that are run in a Python of their own, with nothing imported that they do not use:
# see Bench.instrument.
def serve_sendfile(port, name):
    """The limit: each client gets the file from one sendfile loop."""
    size = os.path.getsize(name)
    listening = socket.create_server(("127.0.0.1", int(port)))
    while True:
        conn, _ = listening.accept()
        with suppress(OSError), conn, open(name, "rb") as file:
            sent = 0
            while sent < size:
                sent += os.sendfile(conn.fileno(), file.fileno(), sent, size - sent)


def serve_sink(port, folder):
    """The limit the other way: what a client sends becomes a file, and one byte says that it is there."""
    listening = socket.create_server(("127.0.0.1", int(port)))
    buffer = memoryview(bytearray(1 << 20))
    while True:
        conn, _ = listening.accept()
        with suppress(OSError), conn:
            with open(folder + "/large.bin", "wb", buffering=0) as file:
                while count := conn.recv_into(buffer):
                    file.write(buffer[:count])
            conn.sendall(b"!")


def fetch_stream(port, name):
    """Everything that comes, into a file."""
    buffer = memoryview(bytearray(1 << 20))
    with (
        socket.create_connection(("127.0.0.1", int(port))) as conn,
        open(name, "wb", buffering=0) as file,
    ):
        while count := conn.recv_into(buffer):
            file.write(buffer[:count])


def push_stream(port, name):
    """A file by sendfile, then wait for the byte that says it is there."""
    with socket.create_connection(("127.0.0.1", int(port))) as conn, open(name, "rb") as file:
        conn.sendfile(file)
        conn.shutdown(socket.SHUT_WR)
        conn.recv(1)


def serve_hashed(port, name):
    """The limit of a verified download: read, hash, send; the digest comes last."""
    import hashlib

    buffer = memoryview(bytearray(1 << 20))
    listening = socket.create_server(("127.0.0.1", int(port)))
    while True:
        conn, _ = listening.accept()
        with suppress(OSError), conn, open(name, "rb", buffering=0) as file:
            sha = hashlib.sha256()
            while count := file.readinto(buffer):
                sha.update(buffer[:count])
                conn.sendall(buffer[:count])
            conn.sendall(sha.digest())


def fetch_hashed(port, name, size):
    """Receive, hash, write; then compare the digests."""
    import hashlib

    buffer, remaining, sha = memoryview(bytearray(1 << 20)), int(size), hashlib.sha256()
    with (
        socket.create_connection(("127.0.0.1", int(port))) as conn,
        open(name, "wb", buffering=0) as file,
    ):
        while remaining and (count := conn.recv_into(buffer[:remaining])):
            sha.update(buffer[:count])
            file.write(buffer[:count])
            remaining -= count
        assert conn.recv(32, socket.MSG_WAITALL) == sha.digest()


def serve_hashed_sink(port, folder, size):
    """The limit of a verified upload: receive, hash, write; one byte says that the digest is right."""
    import hashlib

    buffer = memoryview(bytearray(1 << 20))
    listening = socket.create_server(("127.0.0.1", int(port)))
    while True:
        conn, _ = listening.accept()
        with suppress(OSError), conn:
            remaining, sha = int(size), hashlib.sha256()
            with open(folder + "/large.bin", "wb", buffering=0) as file:
                while remaining and (count := conn.recv_into(buffer[:remaining])):
                    sha.update(buffer[:count])
                    file.write(buffer[:count])
                    remaining -= count
            if conn.recv(32, socket.MSG_WAITALL) == sha.digest():
                conn.sendall(b"!")


def push_hashed(port, name):
    """Read, hash, send; then wait for the byte that says it is there and right."""
    import hashlib

    buffer, sha = memoryview(bytearray(1 << 20)), hashlib.sha256()
    with (
        socket.create_connection(("127.0.0.1", int(port))) as conn,
        open(name, "rb", buffering=0) as file,
    ):
        while count := file.readinto(buffer):
            sha.update(buffer[:count])
            conn.sendall(buffer[:count])
        conn.sendall(sha.digest())
        assert conn.recv(1) == b"!"


def serve_chunks(port, name):
    """Each client names a size; it gets the file in sends of that size."""
    with open(name, "rb") as file:
        data = memoryview(file.read())
    listening = socket.create_server(("127.0.0.1", int(port)))
    while True:
        conn, _ = listening.accept()
        with suppress(OSError), conn:
            chunk = int(conn.recv(64) or 1 << 30)
            for start in range(0, len(data), chunk):
                conn.sendall(data[start : start + chunk])


def serve_upper(port):
    """Uppercase echo over TCP, bare: no limits, no log, no errors."""
    listening = socket.create_server(("127.0.0.1", int(port)))
    while True:
        conn, _ = listening.accept()
        with suppress(OSError), conn:
            while chunk := conn.recv(65536):
                conn.sendall(chunk.upper())


def serve_upper_datagrams(port):
    """Uppercase echo over UDP, bare."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", int(port)))
    while True:
        data, peer = sock.recvfrom(65535)
        sock.sendto(data.upper(), peer)


def drain(port, path, connections):
    """So many clients of an HTTP server fetch a large file again and again, and drop it."""
    import selectors

    ready, buffer = selectors.DefaultSelector(), bytearray(1 << 20)
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()

    def begin():
        conn = socket.create_connection(("127.0.0.1", int(port)))
        conn.sendall(request)
        ready.register(conn, selectors.EVENT_READ)

    for _ in range(int(connections)):
        begin()
    while True:
        for key, _ in ready.select():
            if not key.fileobj.recv_into(buffer):
                ready.unregister(key.fileobj)
                key.fileobj.close()
                begin()


def load(port, path, connections, seconds, kept):
    """Requests answered in so many seconds. Every answer must be 200 and as long as the first one."""
    import selectors
    import time

    keeps = kept == "kept"
    closing = "" if keeps else "Connection: close\r\n"
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{closing}\r\n".encode()
    ready, read, done = selectors.DefaultSelector(), {}, 0

    def begin():
        conn = socket.create_connection(("127.0.0.1", int(port)))
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        conn.sendall(request)
        return conn

    def watch(conn):
        ready.register(conn, selectors.EVENT_READ)
        read[conn] = 0

    def first_size():
        whole = b""
        with begin() as conn:
            while b"\r\n\r\n" not in whole:
                whole += conn.recv(65536)
            head = whole[: whole.index(b"\r\n\r\n") + 4]
            size = len(head) + int(head.lower().partition(b"content-length:")[2].split()[0])
            while len(whole) < size:
                whole += conn.recv(65536)
        return size

    def answers(conn):
        """How many answers what has come completes: one, or none."""
        data = conn.recv(65536)
        wrong = data and not read[conn] and not data.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))
        read[conn] += len(data)
        if wrong or read[conn] > size:
            raise SystemExit(f"not the expected answer: {data[:60]!r}")
        if keeps and read[conn] == size:
            read[conn] = 0
            conn.sendall(request)
            return 1
        return 0 if data else ended(conn)

    def ended(conn):
        if read[conn] != (0 if keeps else size):
            raise SystemExit(f"closed after {read[conn]} of {size} bytes")
        ready.unregister(conn)
        conn.close()
        del read[conn]
        watch(begin())
        return 0 if keeps else 1

    size = first_size()
    for _ in range(int(connections)):
        watch(begin())
    start = time.perf_counter()
    while (now := time.perf_counter()) < start + float(seconds):
        for key, _ in ready.select(0.1):
            done += answers(key.fileobj)
    print(done / (now - start))


# A datagram loop as short as C has it, and a load that keeps so many on their way: Python would
# measure itself instead.
C_ECHO = r"""
#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
int main(int argc, char **argv) {
    static char data[65536];
    int sock = socket(AF_INET, SOCK_DGRAM, 0), window = argc > 2 ? atoi(argv[2]) : 0, on_way = 0, good = 0;
    struct sockaddr_in peer = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof peer;
    if (!window) {
        if (bind(sock, (struct sockaddr *)&peer, length)) return 1;
        for (;;) {
            ssize_t count = recvfrom(sock, data, sizeof data, 0, (struct sockaddr *)&peer, &length);
            for (ssize_t i = 0; i < count; i++) data[i] = toupper((unsigned char)data[i]);
            sendto(sock, data, count, 0, (struct sockaddr *)&peer, length);
        }
    }
    struct timeval wait = { 0, 50000 };  /* a datagram that is lost is asked again */
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    connect(sock, (struct sockaddr *)&peer, length);
    double start = now(), end = start + atof(argv[3]);
    while (now() < end) {
        for (; on_way < window; on_way++) send(sock, "hello, welcome &*! 0123456789abc\n", 32, 0);
        ssize_t count = recv(sock, data, sizeof data, 0);
        if (count == 32 && data[0] == 'H' && data[31] == 'C') { good++; on_way--; }
        else if (count < 0) on_way = 0;
        else return 2;
    }
    printf("%f\n", good / (now() - start));
    return 0;
}
"""


# --- processes ---
class Server(NamedTuple):
    name: str
    port: int
    process: subprocess.Popen


PORTS = itertools.count()


def free_port(kind=socket.SOCK_STREAM):
    """A port that is free until it is used: below those that the kernel gives to whoever asks for any, and above the tests' own."""
    for number in itertools.islice(PORTS, 2700):
        port = 30000 + (os.getpid() * 100 + number) % 2700
        with suppress(OSError), socket.socket(socket.AF_INET, kind) as probe:
            probe.bind((HERE, port))
            return port
    raise Wrong("no port is free from 30000 to 32699")


def answers(port):
    with suppress(OSError), socket.create_connection((HERE, port), 1):
        return True
    return False


def family(pid):
    """A process and those that it started, from /proc."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def memory(pid, field):
    """VmRSS or VmHWM (the peak) of a process and its children, in MB."""
    total = 0
    for one in family(pid):
        with suppress(OSError):
            found = re.search(
                rf"^{field}:\s+(\d+)", Path(f"/proc/{one}/status").read_text(), re.MULTILINE
            )
            total += int(found[1]) * KIB if found else 0
    return total / 1e6


def need_proc():
    if not Path("/proc/self/status").exists():
        raise Absent("/proc")


def forget_peak(server):
    """VmHWM starts again at what is used now."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def stop(process):
    """End a process and what it started: each was given a group of its own."""
    for number, patience in ((signal.SIGTERM, 3), (signal.SIGKILL, 3)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def aside(function, *args):
    """One of this file's functions begun in a process of its own, so that measuring here and working there do not wait for
    each other; when its first line is read it is under way."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import benchmark; benchmark.{function.__name__}(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", code, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if not process.stdout.readline():
        problem = process.stderr.read().strip()[-300:]
        end_aside(process)
        raise Wrong(problem)
    return process


def end_aside(process):
    stop(process)
    process.stdout.close()
    process.stderr.close()


class Bench:
    """What all suites share: the folders, the servers that run, the results."""

    def __init__(self, args, work):
        self.args, self.work, self.size = args, work, "quick" if args.quick else "whole"
        self.share = work / "share"
        self.running = {}
        self.absent = {}
        self.wrong = {}
        self.results = {}
        self.help_texts = {}
        self.this_round = {}
        self.warming = True  # the round that does not count
        self.until = time.monotonic() + TOTAL_S[self.size]

    # Contenders: found, or named as absent.
    def need(self, tool, package=None):
        """The path of a program, or Absent."""
        path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/usr/local/sbin:/sbin")
        if not path:
            self.absent[tool] = package or PACKAGES.get(tool, tool)
            raise Absent(tool)
        return path

    def has(self, tool):
        with suppress(Absent):
            return bool(self.need(tool))
        return False

    def module(self, name, *more):
        """The command that runs a package of the environment that runs this."""
        if importlib.util.find_spec(name) is None:
            self.absent[name] = PACKAGES[name]
            raise Absent(name)
        return [sys.executable, "-m", name, *more]

    def script(self, name, *more):
        """The command of one of ours."""
        path = Path(self.args.scripts) / name
        if not path.exists():
            self.absent[name] = "not there yet"
            raise Absent(name)
        return [sys.executable, str(path), *map(str, more)]

    def knows(self, name, *words):
        """Absent unless the script's --help names all these words: what it cannot do yet is not there yet."""
        if name not in self.help_texts:
            asked = subprocess.run(
                self.script(name, "--help"), capture_output=True, text=True, check=False
            )
            self.help_texts[name] = asked.stdout
        for word in words:
            if not re.search(rf"(?<![\w-]){word}(?![\w-])", self.help_texts[name]):
                self.absent[f"{name} {word}"] = "not there yet"
                raise Absent(f"{name} {word}")

    def instrument(self, function, *args):
        """The command that runs one of this file's functions alone, in a Python that imports nothing else."""
        imports = "import os, socket, sys\nfrom contextlib import suppress"
        code = f"{imports}\n{inspect.getsource(function)}\n{function.__name__}(*sys.argv[1:])"
        return [sys.executable, "-I", "-S", "-c", code, *map(str, args)]

    def figure(self, number, run, *args):
        """How to measure one of several figures that a run gives: the run itself happens once a round."""

        def measure():
            if (run, args) not in self.this_round:
                self.this_round[run, args] = run(self, *args)
            return self.this_round[run, args][number]

        return measure

    def c_loop(self):
        """The datagram loop in C, compiled once."""
        program = self.work / "echo"
        if not program.exists():
            compiler = self.need("cc", "gcc")
            (self.work / "echo.c").write_text(C_ECHO)
            subprocess.run(
                [compiler, "-O2", "-o", program, self.work / "echo.c"],
                check=True,
                capture_output=True,
            )
        return str(program)

    # Processes.
    def server(self, name):
        """The server of that name, started when it is first asked for; it runs until the end."""
        if name not in self.running:
            udp = name in DATAGRAM_SERVERS
            port, home = (
                free_port(socket.SOCK_DGRAM if udp else socket.SOCK_STREAM),
                self.work / "servers" / name.replace(" ", "-"),
            )
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            command = SERVERS[name](self, port, home)
            log = (home / "log").open("wb")
            process = subprocess.Popen(
                command,
                cwd=self.share,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            log.close()
            self.running[name] = Server(name, port, process)
            deadline = time.monotonic() + READY_S
            while not (udp or answers(port)):
                if process.poll() is not None or time.monotonic() > deadline:
                    self.stop(name)
                    raise Wrong(
                        "does not start: "
                        + (home / "log").read_text(errors="replace").strip()[-300:]
                    )
                time.sleep(0.02)
            if udp:
                time.sleep(0.3)  # nothing tells that a bare datagram loop is there
        return self.running[name]

    def stop(self, *names):
        for name in names or list(self.running):
            stop(self.running.pop(name).process)

    def run(self, command, cwd=None, peak=None, stdin=None, stdout=subprocess.DEVNULL):
        """Seconds that a command took from start to end; peak is called again and again meanwhile, with its pid."""
        patience = max(5.0, min(180.0, self.until - time.monotonic()))
        with tempfile.TemporaryFile() as errors:
            start = time.perf_counter()
            process = subprocess.Popen(
                command,
                cwd=cwd or self.work,
                stdin=stdin or subprocess.DEVNULL,
                stdout=stdout,
                stderr=errors,
                start_new_session=True,
            )
            # wait(timeout) would look only now and then: up to 50 ms late
            alarm = threading.Timer(patience, stop, [process])
            alarm.start()
            try:
                while peak and process.poll() is None:
                    peak(process.pid)
                    time.sleep(0.005)
                code = process.wait()
                seconds = time.perf_counter() - start
            finally:
                alarm.cancel()
                stop(process)
            if seconds >= patience:
                raise Wrong(f"did not end in {patience:.0f} s")
            errors.seek(0)
            if code:
                raise Wrong(f"exit {code}: {errors.read().decode(errors='replace').strip()[-300:]}")
        return seconds

    def ask(self, command):
        """What a command prints."""
        with tempfile.TemporaryFile() as out:
            self.run(command, stdout=out)
            out.seek(0)
            return out.read().decode(errors="replace")

    def fresh(self, name):
        """An empty folder of that name."""
        folder = self.work / name
        deadline = time.monotonic() + READY_S
        while folder.exists():  # a server may still be clearing away what was uploaded last
            shutil.rmtree(folder, ignore_errors=time.monotonic() < deadline)
        folder.mkdir(parents=True)
        return folder


# --- files ---
def digest(path):
    """(length, SHA-256) of a file."""
    total, done, buffer = hashlib.sha256(), 0, memoryview(bytearray(BUFFER))
    try:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total.update(buffer[:count])
                done += count
    except OSError as error:
        raise Wrong(f"no file arrived: {error}") from None
    return done, total.hexdigest()


def same_file(got, want):
    """Wrong unless the file has the length and SHA-256 that are wanted."""
    have = digest(got)
    if have != want:
        raise Wrong(
            f"{have[0]} bytes arrived of {want[0]}"
            if have[0] != want[0]
            else "another content arrived"
        )


def same_tree(got, want):
    """Wrong unless every small file is there with its content. Index pages that wget -r leaves do not matter."""
    for name in os.listdir(want):
        try:
            with (
                open(os.path.join(got, name), "rb") as a,
                open(os.path.join(want, name), "rb") as b,
            ):
                if a.read() != b.read():
                    raise Wrong(f"{name} has another content")
        except OSError as error:
            raise Wrong(f"{name} did not arrive: {error.strerror}") from None


def make_file(path, size):
    """A file that does not repeat; (length, SHA-256)."""
    with open(path, "wb") as file:
        while size > 0:
            size -= file.write(os.urandom(min(size, BUFFER)))
    return digest(path)


def make_files(bench):
    """What is shared: a large file, a small one, one of each size, a folder of small ones, a folder to upload into."""
    (bench.share / "up").mkdir(parents=True)
    os.chmod(bench.work, 0o755)  # servers that give up their rights must get in
    os.chmod(bench.share / "up", 0o777)
    many = bench.share / "many"
    many.mkdir()
    for number in range(MANY[bench.size]):
        (many / f"{number:05d}.bin").write_bytes(os.urandom(KIB))
    bench.large = make_file(bench.share / "large.bin", LARGE[bench.size])
    bench.small = make_file(bench.share / "1k.bin", KIB)
    bench.sizes = {
        size: make_file(bench.share / f"{size}.bin", size)
        for size in SIZES["lab" if bench.args.lab else bench.size]
    }


# --- servers ---
# A recipe is a function of (bench, port, its own folder) that writes what configuration is needed
# and returns the command.
# It runs in the shared folder. Access logs are on where a server has one, as they are in ours.
PACKAGES = {  # what a program is called where it is installed from
    "nginx": "apt: nginx-light",
    "caddy": "apt: caddy",
    "lighttpd": "apt: lighttpd lighttpd-mod-webdav",
    "darkhttpd": "apt: darkhttpd",
    "curl": "apt: curl",
    "wget": "apt: wget",
    "aria2c": "apt: aria2",
    "rsync": "apt: rsync",
    "sshd": "apt: openssh-server",
    "scp": "apt: openssh-client",
    "sftp": "apt: openssh-client",
    "ssh-keygen": "apt: openssh-client",
    "socat": "apt: socat",
    "ncat": "apt: ncat",
    "vsftpd": "apt: vsftpd",
    "iperf3": "apt: iperf3",
    "wrk": "apt: wrk",
    "ab": "apt: apache2-utils",
    "openssl": "apt: openssl",
    "cc": "apt: gcc libc6-dev",
    "uploadserver": "pip: uploadserver",
    "copyparty": "pip: copyparty",
    "pyftpdlib": "pip: pyftpdlib",
}
STOCK = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, h.ThreadingHTTPServer, 'HTTP/1.1', {}, '127.0.0.1')"


def nginx(bench, port, home, tls=False):
    program = bench.need("nginx")
    user = "user root;" if os.geteuid() == 0 else ""
    secure = (
        f"ssl_certificate {certificate(bench)[0]}; ssl_certificate_key {certificate(bench)[1]};"
        if tls
        else ""
    )
    (
        home / "nginx.conf"
    ).write_text(f"""daemon off; {user} worker_processes 1; worker_rlimit_nofile 20000; pid {home}/pid; error_log {home}/error;
events {{ worker_connections 10000; }}
http {{ access_log {home}/access; sendfile on; tcp_nopush on; keepalive_requests 1000000000; client_max_body_size 0;
client_body_temp_path {bench.work}/nginx-body; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
server {{ listen 127.0.0.1:{port} {"ssl" if tls else ""}; {secure} root {bench.share}; autoindex on;
          dav_methods PUT DELETE MKCOL MOVE; create_full_put_path on; }} }}""")
    return [program, "-c", str(home / "nginx.conf"), "-e", str(home / "error")]


def caddy(bench, port, home):
    program = bench.need("caddy")
    (
        home / "Caddyfile"
    ).write_text(f"""{{\n admin off\n auto_https off\n storage file_system {home}\n}}
http://127.0.0.1:{port} {{\n root * {bench.share}\n file_server browse\n log {{\n output file {home}/access\n }}\n}}\n""")
    return [program, "run", "--adapter", "caddyfile", "--config", str(home / "Caddyfile")]


def lighttpd(bench, port, home):
    program = bench.need("lighttpd")
    # a package of its own; without it nothing can be put
    dav = Path("/usr/lib/lighttpd/mod_webdav.so").exists()
    (
        home / "conf"
    ).write_text(f"""server.document-root = "{bench.share}"\nserver.port = {port}\nserver.bind = "127.0.0.1"
server.modules = ("mod_accesslog", "mod_dirlisting"{', "mod_webdav"' if dav else ""})\naccesslog.filename = "{home}/access"
server.upload-dirs = ("{home}")\nserver.max-keep-alive-requests = 60000\nserver.max-fds = 4096
dir-listing.activate = "enable"\n{'webdav.activate = "enable"' if dav else ""}\n""")
    return [program, "-D", "-f", str(home / "conf")]


def darkhttpd(bench, port, home):
    return [
        bench.need("darkhttpd"),
        str(bench.share),
        "--addr",
        HERE,
        "--port",
        str(port),
        "--log",
        str(home / "access"),
    ]


def rsyncd(bench, port, home):
    program = bench.need("rsync")
    owner = "uid = root\ngid = root\n" if os.geteuid() == 0 else ""
    (home / "conf").write_text(
        f"address = 127.0.0.1\nuse chroot = no\n{owner}[share]\npath = {bench.share}\nread only = no\n"
    )
    return [program, "--daemon", "--no-detach", f"--port={port}", f"--config={home}/conf"]


def sshd(bench, port, home):
    program = bench.need("sshd")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # sshd wants it when root starts it
    key = ssh_key(bench)
    (
        home / "conf"
    ).write_text(f"""Port {port}\nListenAddress 127.0.0.1\nHostKey {key}\nAuthorizedKeysFile {key}.pub\nStrictModes no
PidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\nSubsystem sftp internal-sftp\n""")
    return [program, "-D", "-e", "-f", str(home / "conf")]


def ssh_key(bench):
    key = bench.work / "ssh-key"
    if not key.exists():
        subprocess.run(
            [bench.need("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key],
            check=True,
            capture_output=True,
        )
    return key


def certificate(bench):
    """(certificate, key, SHA-256 of the certificate) made for this run."""
    cert, key = bench.work / "cert.pem", bench.work / "key.pem"
    if not cert.exists():
        subprocess.run(
            [
                bench.need("openssl"),
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-keyout",
                key,
                "-out",
                cert,
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ],
            check=True,
            capture_output=True,
        )
    import ssl  # only here: the stock interpreter of a small machine may have none

    return cert, key, hashlib.sha256(ssl.PEM_cert_to_DER_cert(cert.read_text())).hexdigest()


def vsftpd(bench, port, home):
    program = bench.need("vsftpd")
    mine = "run_as_launching_user=YES\n" if os.geteuid() else ""
    (
        home / "conf"
    ).write_text(f"""{mine}listen=YES\nbackground=NO\nlisten_address={HERE}\nlisten_port={port}\nanonymous_enable=YES\nno_anon_password=YES
anon_root={bench.share}\nwrite_enable=YES\nanon_upload_enable=YES\nanon_other_write_enable=YES\nseccomp_sandbox=NO
use_sendfile=YES\nxferlog_enable=YES\nvsftpd_log_file={home}/access\n""")
    return [program, str(home / "conf")]


def ours_with_tls(name):
    def recipe(bench, port, home):
        bench.knows(name, "--tls", "--cert", "--key")
        cert, key, _ = certificate(bench)
        return bench.script(
            name, "--port", port, "--directory", bench.share, "--tls", "--cert", cert, "--key", key
        )

    return recipe


def ours_with_password(name):
    def recipe(bench, port, home):
        bench.knows(name, "--password")
        return bench.script(
            name, "--port", port, "--directory", bench.share, "--password", PASSWORD
        )

    return recipe


SERVERS: dict[str, Callable[..., list[str]]] = {
    "server.py": lambda b, port, home: b.script(
        "server.py", "--port", port, "--directory", b.share, "--max-clients", 2000
    ),
    "httpserver.py": lambda b, port, home: b.script(
        "httpserver.py", "--port", port, "--directory", b.share
    ),
    "nginx": nginx,
    "caddy": caddy,
    "lighttpd": lighttpd,
    "darkhttpd": darkhttpd,
    "http.server": lambda b, port, home: [sys.executable, "-c", STOCK.format(port)],
    "uploadserver": lambda b, port, home: b.module("uploadserver", "--bind", HERE, str(port)),
    "uploadserver sink": lambda b, port, home: b.module(
        "uploadserver", "--bind", HERE, "-d", str(b.share / "up"), str(port)
    ),
    "copyparty": lambda b, port, home: b.module(
        "copyparty", "-q", "-i", HERE, "-p", str(port), "-v", f"{b.share}::A", "--wram", "--no-crt"
    ),
    "rsyncd": rsyncd,
    "sshd": sshd,
    "vsftpd": vsftpd,
    "pyftpdlib": lambda b, port, home: b.module(
        "pyftpdlib", "-i", HERE, "-p", str(port), "-d", str(b.share), "-w"
    ),
    "socat": lambda b, port, home: [
        b.need("socat"),
        "-b",
        str(BUFFER),
        "-U",
        f"TCP-LISTEN:{port},bind={HERE},reuseaddr,fork",
        f"OPEN:{b.share}/large.bin,rdonly",
    ],
    "socat sink": lambda b, port, home: [
        b.need("socat"),
        "-b",
        str(BUFFER),
        "-u",
        f"TCP-LISTEN:{port},bind={HERE},reuseaddr,fork",
        f"CREATE:{b.share}/up/large.bin",
    ],
    "ncat": lambda b, port, home: [
        b.need("ncat"),
        "-lk",
        HERE,
        str(port),
        "--sh-exec",
        f"cat {b.share}/large.bin",
    ],
    "iperf3": lambda b, port, home: [b.need("iperf3"), "-s", "-B", HERE, "-p", str(port)],
    "sendfile loop": lambda b, port, home: b.instrument(
        serve_sendfile, port, b.share / "large.bin"
    ),
    "recv loop": lambda b, port, home: b.instrument(serve_sink, port, b.share / "up"),
    "hash loop": lambda b, port, home: b.instrument(serve_hashed, port, b.share / "large.bin"),
    "hash sink": lambda b, port, home: b.instrument(
        serve_hashed_sink, port, b.share / "up", b.large[0]
    ),
    "chunks": lambda b, port, home: b.instrument(
        serve_chunks, port, b.share / f"{max(b.sizes)}.bin"
    ),
    "server.py password": ours_with_password("server.py"),
    "httpserver.py password": ours_with_password("httpserver.py"),
    "httpserver.py TLS": ours_with_tls("httpserver.py"),
    "server.py TLS": ours_with_tls("server.py"),
    "nginx TLS": lambda b, port, home: nginx(b, port, home, tls=True),
    "tcp_upper.py": lambda b, port, home: b.script("tcp_upper.py", "server", "--port", port),
    "socat tr": lambda b, port, home: [
        b.need("socat"),
        f"TCP-LISTEN:{port},bind={HERE},reuseaddr,fork",
        "SYSTEM:tr a-z A-Z",
    ],
    "bare Python loop": lambda b, port, home: b.instrument(serve_upper, port),
    "udp_upper.py": lambda b, port, home: b.script("udp_upper.py", "server", "--port", port),
    "C loop": lambda b, port, home: [b.c_loop(), str(port)],
    "bare Python datagrams": lambda b, port, home: b.instrument(serve_upper_datagrams, port),
}
DATAGRAM_SERVERS = ("udp_upper.py", "C loop", "bare Python datagrams")
HTTP_SERVERS = [
    "httpserver.py",
    "nginx",
    "caddy",
    "lighttpd",
    "darkhttpd",
    "http.server",
    "uploadserver",
    "copyparty",
]


# --- clients ---
# A recipe is a function of (bench, server, names…) that returns the command of one transfer.
def url(server, path=""):
    return f"{'https' if server.name.endswith('TLS') else 'http'}://{HERE}:{server.port}/{path}"


def ssh_flags(bench):
    return [
        "-F",
        "none",
        "-q",
        "-i",
        str(ssh_key(bench)),
        "-c",
        "aes128-gcm@openssh.com",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        f"UserKnownHostsFile={os.devnull}",
        "-o",
        "BatchMode=yes",
    ]


def sftp(bench, server, order):
    batch = bench.work / "sftp-batch"
    batch.write_text(order + "\n")
    return [bench.need("sftp"), *ssh_flags(bench), "-P", str(server.port), "-b", str(batch), HERE]


def scp(bench, server, *words):
    return [bench.need("scp"), *ssh_flags(bench), "-P", str(server.port), *words]


def client(bench, server, *words):
    secure = ["--pin", certificate(bench)[2]] if server.name.endswith("TLS") else []
    if secure:
        bench.knows("client.py", "--pin")
    tls = ["--tls"] if secure and "--tls" in bench.help_texts["client.py"] else []
    return bench.script("client.py", "--quiet", "--port", server.port, *tls, *secure, *words)


def curl_list(bench, server, dest):
    """All small files by one curl on one connection."""
    names = sorted(os.listdir(bench.share / "many"))
    listed = bench.work / "curl-list"
    listed.write_text(
        "".join(
            f'url = "{url(server, "many/" + name)}"\noutput = "{dest}/{name}"\n' for name in names
        )
    )
    return [bench.need("curl"), "-sS", "-f", "-K", str(listed)]


def aria_list(bench, server, dest):
    listed = bench.work / "aria-list"
    listed.write_text(
        "".join(f"{url(server, 'many/' + name)}\n" for name in os.listdir(bench.share / "many"))
    )
    return [bench.need("aria2c"), "-q", "-j16", "-i", str(listed), "-d", str(dest)]


def share_path(bench, name):
    return f"{HERE}:{bench.share}/{name}"


DOWN: dict[str, Callable[..., list[str]]] = {  # (bench, server, name, dest)
    "client.py": lambda b, s, name, dest: client(b, s, "get", name, "-o", dest),
    "httpclient.py": lambda b, s, name, dest: b.script(
        "httpclient.py", "get", "--quiet", "--insecure", url(s, name), "-o", dest
    ),
    "curl": lambda b, s, name, dest: [b.need("curl"), "-sSfk", url(s, name), "-o", str(dest)],
    "curl ftp": lambda b, s, name, dest: [
        b.need("curl"),
        "-sSf",
        f"ftp://{HERE}:{s.port}/{name}",
        "-o",
        str(dest),
    ],
    "wget": lambda b, s, name, dest: [
        b.need("wget"),
        "-q",
        "-t",
        "0",
        "--waitretry=0",
        url(s, name),
        "-O",
        str(dest),
    ],
    "aria2c": lambda b, s, name, dest: [
        b.need("aria2c"),
        "-q",
        url(s, name),
        "-d",
        str(dest.parent),
        "-o",
        dest.name,
    ],
    "rsync": lambda b, s, name, dest: [
        b.need("rsync"),
        "-W",
        f"rsync://{HERE}:{s.port}/share/{name}",
        str(dest),
    ],
    "scp": lambda b, s, name, dest: scp(b, s, share_path(b, name), str(dest)),
    "sftp": lambda b, s, name, dest: sftp(b, s, f"get {b.share}/{name} {dest}"),
    "socat": lambda b, s, name, dest: [
        b.need("socat"),
        "-b",
        str(BUFFER),
        "-u",
        f"TCP:{HERE}:{s.port}",
        f"CREATE:{dest}",
    ],
    "ncat": lambda b, s, name, dest: [
        "sh",
        "-c",
        f"exec {b.need('ncat')} --recv-only {HERE} {s.port} > {dest}",
    ],
    "recv loop": lambda b, s, name, dest: b.instrument(fetch_stream, s.port, dest),
    "hash loop": lambda b, s, name, dest: b.instrument(fetch_hashed, s.port, dest, b.large[0]),
}
DOWN_PAIRS = [
    ("client.py", "server.py"),
    ("httpclient.py", "httpserver.py"),
    *(("curl", name) for name in HTTP_SERVERS),
    ("httpclient.py", "nginx"),
    ("wget", "nginx"),
    ("aria2c", "nginx"),
    ("rsync", "rsyncd"),
    ("scp", "sshd"),
    ("sftp", "sshd"),
    ("curl ftp", "vsftpd"),
    ("curl ftp", "pyftpdlib"),
    ("socat", "socat"),
    ("ncat", "ncat"),
    ("recv loop", "sendfile loop"),
    ("hash loop", "hash loop"),
]

UP: dict[str, Callable[..., list[str]]] = {  # (bench, server, source); it arrives as up/large.bin
    "client.py": lambda b, s, source: client(b, s, "put", source, "--into", "up"),
    "httpclient.py": lambda b, s, source: b.script(
        "httpclient.py", "put", "--quiet", source, url(s, "up/")
    ),
    "curl": lambda b, s, source: [
        b.need("curl"),
        "-sSf",
        "-o",
        os.devnull,
        "-T",
        str(source),
        url(s, "up/large.bin"),
    ],
    "curl form": lambda b, s, source: [
        b.need("curl"),
        "-sSf",
        "-o",
        os.devnull,
        "-F",
        f"files=@{source}",
        url(s, "up/" if s.name == "httpserver.py" else "upload"),
    ],
    "curl ftp": lambda b, s, source: [
        b.need("curl"),
        "-sSf",
        "-T",
        str(source),
        f"ftp://{HERE}:{s.port}/up/large.bin",
    ],
    "rsync": lambda b, s, source: [
        b.need("rsync"),
        "-W",
        str(source),
        f"rsync://{HERE}:{s.port}/share/up/",
    ],
    "scp": lambda b, s, source: scp(b, s, str(source), share_path(b, "up/large.bin")),
    "sftp": lambda b, s, source: sftp(b, s, f"put {source} {b.share}/up/large.bin"),
    "socat": lambda b, s, source: [
        b.need("socat"),
        "-b",
        str(BUFFER),
        "-u",
        f"OPEN:{source},rdonly",
        f"TCP:{HERE}:{s.port}",
    ],
    "sendfile loop": lambda b, s, source: b.instrument(push_stream, s.port, source),
    "hash loop": lambda b, s, source: b.instrument(push_hashed, s.port, source),
}
UP_PAIRS = [
    ("client.py", "server.py"),
    ("httpclient.py", "httpserver.py"),
    ("curl", "httpserver.py"),
    ("curl", "nginx"),
    ("curl", "lighttpd"),
    ("curl", "copyparty"),
    ("httpclient.py", "nginx"),
    ("curl form", "httpserver.py"),
    ("curl form", "uploadserver sink"),
    ("rsync", "rsyncd"),
    ("scp", "sshd"),
    ("sftp", "sshd"),
    ("curl ftp", "vsftpd"),
    ("curl ftp", "pyftpdlib"),
    ("socat", "socat sink"),
    ("sendfile loop", "recv loop"),
    ("hash loop", "hash sink"),
]

# (bench, server, dest): the small files lie in dest or in dest/many
MANY_DOWN: dict[tuple[str, str], Callable[..., list[str]]] = {
    ("client.py", "server.py"): lambda b, s, dest: client(b, s, "get", "many", "-o", dest),
    ("httpclient.py", "httpserver.py"): lambda b, s, dest: b.script(
        "httpclient.py", "mirror", "--quiet", url(s, "many/"), "-o", dest
    ),
    ("httpclient.py", "nginx"): lambda b, s, dest: b.script(
        "httpclient.py", "mirror", "--quiet", url(s, "many/"), "-o", dest
    ),
    ("curl", "httpserver.py"): curl_list,
    ("curl", "nginx"): curl_list,
    ("wget", "nginx"): lambda b, s, dest: [
        b.need("wget"),
        "-q",
        "-r",
        "-np",
        "-nH",
        "-P",
        str(dest),
        url(s, "many/"),
    ],
    ("aria2c", "nginx"): aria_list,
    ("rsync", "rsyncd"): lambda b, s, dest: [
        b.need("rsync"),
        "-rtW",
        f"rsync://{HERE}:{s.port}/share/many",
        str(dest),
    ],
    ("scp", "sshd"): lambda b, s, dest: scp(b, s, "-r", share_path(b, "many"), str(dest)),
}
# (bench, server, folder): the small files arrive in up/many or up
MANY_UP: dict[tuple[str, str], Callable[..., list[str]]] = {
    ("client.py", "server.py"): lambda b, s, folder: client(b, s, "put", folder, "--into", "up"),
    ("httpclient.py", "httpserver.py"): lambda b, s, folder: b.script(
        "httpclient.py", "upload", "--quiet", folder, url(s, "up/many/")
    ),
    ("curl", "httpserver.py"): lambda b, s, folder: [
        b.need("curl"),
        "-sSf",
        "-o",
        os.devnull,
        "-T",
        f"{folder}/{{{','.join(sorted(os.listdir(folder)))}}}",
        url(s, "up/"),
    ],
    ("rsync", "rsyncd"): lambda b, s, folder: [
        b.need("rsync"),
        "-rtW",
        str(folder),
        f"rsync://{HERE}:{s.port}/share/up/",
    ],
    ("scp", "sshd"): lambda b, s, folder: scp(b, s, "-r", str(folder), share_path(b, "up/")),
}


# --- asking by hand ---
def read_line(conn, data):
    """(line, what came behind it) from a socket and what was read already."""
    while b"\n" not in data:
        chunk = conn.recv(65536)
        if not chunk:
            raise Wrong(f"closed in mid-line after {data[:80]!r}")
        data += chunk
    line, _, rest = data.partition(b"\n")
    return line, rest


def read_body(conn, data, size, total):
    """Reads size bytes into the digest; returns what came behind them."""
    taken = data[:size]
    total.update(taken)
    size, data = size - len(taken), data[size:]
    buffer = memoryview(bytearray(min(size, BUFFER)))
    while size:
        count = conn.recv_into(buffer[: min(size, BUFFER)])
        if not count:
            raise Wrong(f"closed with {size} bytes missing")
        total.update(buffer[:count])
        size -= count
    return data


class Slow(socket.socket):
    """A connection whose reader takes little at a time, and its time; with a small window, or the kernel would take all."""

    pause = 0.0

    def recv_into(self, buffer):
        time.sleep(self.pause)
        return super().recv_into(buffer[:SLOW_READ])


def greeted_by_nobody(port, kind=socket.socket):
    conn = kind(socket.AF_INET, socket.SOCK_STREAM)
    conn.settimeout(20)
    if kind is Slow:
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_READ)
    conn.connect((HERE, port))
    return conn


def greeted(port, kind=socket.socket):
    """A connection to server.py that has read its greeting."""
    conn = greeted_by_nobody(port, kind)
    read_line(conn, b"")
    return conn


def ask_socket(conn, name, want, first=None):
    """Gets a file from server.py on a connection that is open; the answer's grammar is in server.py."""
    conn.sendall(f"get {name}\n".encode())
    line, rest = read_line(conn, b"")
    if first is not None:
        first.append(time.perf_counter())
    total, done = hashlib.sha256(), 0
    while not line.startswith((b"end", b"err")):
        if line.startswith(b"data "):
            size = int(line[5:])
            rest, done = read_body(conn, rest, size, total), done + size
        line, rest = read_line(conn, rest)
    if (done, total.hexdigest()) != want:
        raise Wrong(f"{done} bytes of another content, then {line[:80]!r}")


def ask_http(conn, name, want, first=None):
    """The same by HTTP/1.1."""
    conn.sendall(f"GET /{name} HTTP/1.1\r\nHost: {HERE}:{conn.getpeername()[1]}\r\n\r\n".encode())
    line, rest = read_line(conn, b"")
    if first is not None:
        first.append(time.perf_counter())
    status, total, size = line, hashlib.sha256(), 0
    while line.strip():
        line, rest = read_line(conn, rest)
        if line.lower().startswith(b"content-length:"):
            size = int(line.split(b":")[1])
    read_body(conn, rest, size, total)
    if (size, total.hexdigest()) != want:
        raise Wrong(f"{size} bytes of another content after {status[:80]!r}")


def ask_echo(conn, name, want):
    """A line to tcp_upper.py and back."""
    conn.sendall(b"a\n")
    if (line := read_line(conn, b"")[0]) != b"A":
        raise Wrong(f"answered {line[:80]!r}")


def by_hand(name):
    """(how to connect, how to ask) for a server of each kind."""
    others = {"server.py": (greeted, ask_socket), "tcp_upper.py": (greeted_by_nobody, ask_echo)}
    return others.get(name, (greeted_by_nobody, ask_http))


def time_small(bench, server, going_on):
    """What 99 of 100 small requests on one kept connection stay below, in ms, one every few ms while something goes on."""
    (connect, ask), times = by_hand(server.name), []
    with connect(server.port) as conn:
        while going_on():
            start = time.perf_counter()
            ask(conn, "1k.bin", bench.small)
            times.append((time.perf_counter() - start) * 1e3)
            time.sleep(0.003)
    return percentile(times)


# --- suites ---
# A suite is a list of cells. A cell is a contender at one place of the x axis (None where there is
# none), and a function that
# measures it once and raises Wrong when the result does not count.
class Cell(NamedTuple):
    name: str
    x: float | None
    measure: Callable[[], float]


class Suite(NamedTuple):
    title: str
    unit: str
    better: str  # "more" or "less"
    x_label: str  # "" for bars
    cells: Callable[[Bench], list[Cell]]
    steady: bool = False  # its figures hardly change: STEADY rounds suffice


def fetch_once(bench, tool, server_name, name, want):
    server = bench.server(server_name)
    dest = bench.fresh("got") / "large.bin"
    seconds = bench.run(DOWN[tool](bench, server, name, dest))
    same_file(dest, want)
    dest.unlink()
    return seconds


def down(bench):
    def measure(tool, server):
        return bench.large[0] / 1e6 / fetch_once(bench, tool, server, "large.bin", bench.large)

    def memory_to_memory():
        server = bench.server("iperf3")
        told = json.loads(
            bench.ask(
                [
                    bench.need("iperf3"),
                    "-c",
                    HERE,
                    "-p",
                    str(server.port),
                    "-R",
                    "-J",
                    "-n",
                    str(bench.large[0]),
                ]
            )
        )
        return told["end"]["sum_received"]["bits_per_second"] / 8e6

    cells = [
        Cell(f"{tool} from {server}", None, lambda t=tool, s=server: measure(t, s))
        for tool, server in DOWN_PAIRS
    ]
    return [*cells, Cell("iperf3, no file", None, memory_to_memory)]


def push_once(bench, tool, server_name):
    """Seconds until the client has ended and the file is whole: some clients do not wait for their server."""
    server = bench.server(server_name)
    arrived = bench.fresh("share/up") / "large.bin"
    os.chmod(arrived.parent, 0o777)
    start = time.perf_counter()
    bench.run(UP[tool](bench, server, bench.share / "large.bin"))
    while time.perf_counter() < start + READY_S and not (
        arrived.exists() and arrived.stat().st_size >= bench.large[0]
    ):
        time.sleep(0.001)
    seconds = time.perf_counter() - start
    same_file(arrived, bench.large)
    arrived.unlink()
    return seconds


def up(bench):
    return [
        Cell(
            f"{tool} to {server.replace(' sink', '')}",
            None,
            lambda t=tool, s=server: bench.large[0] / 1e6 / push_once(bench, t, s),
        )
        for tool, server in UP_PAIRS
    ]


def many_down(bench):
    def measure(tool, name):
        server, dest = bench.server(name), bench.fresh("got")
        seconds = bench.run(MANY_DOWN[tool, name](bench, server, dest))
        same_tree(dest / "many" if (dest / "many").is_dir() else dest, bench.share / "many")
        return MANY[bench.size] / seconds

    return [
        Cell(f"{tool} from {name}", None, lambda t=tool, n=name: measure(t, n))
        for tool, name in MANY_DOWN
    ]


def many_up(bench):
    def measure(tool, name, again=False):
        server, folder = bench.server(name), bench.share / "many"
        arrived = bench.fresh("share/up")
        os.chmod(arrived, 0o777)
        command = MANY_UP[tool, name](bench, server, folder)
        if tool == "httpclient.py":
            (arrived / "many").mkdir()
        seconds = bench.run(command)
        if again:
            seconds = bench.run(command)
        same_tree(arrived / "many" if (arrived / "many").is_dir() else arrived, folder)
        return MANY[bench.size] / seconds

    cells = [
        Cell(f"{tool} to {name}", None, lambda t=tool, n=name: measure(t, n))
        for tool, name in MANY_UP
    ]
    return [
        *cells,
        Cell(
            "client.py, nothing changed",
            None,
            lambda: measure("client.py", "server.py", again=True),
        ),
        Cell("rsync, nothing changed", None, lambda: measure("rsync", "rsyncd", again=True)),
    ]


def requests(kept, own=False):
    """Cells that count requests: by wrk, or by this file's own load where wrk is not."""

    def measure(bench, name, connections, own):
        server = bench.server(name)
        with greeted_by_nobody(server.port) as conn:
            ask_http(conn, "1k.bin", bench.small)
        seconds = 0.1 if bench.warming else LOAD_S[bench.size]
        if own or bench.warming or not bench.has("wrk"):
            return float(
                bench.ask(
                    bench.instrument(load, server.port, "/1k.bin", connections, seconds, kept)
                )
            )
        close = [] if kept == "kept" else ["-H", "Connection: close"]
        told = bench.ask(
            [
                "wrk",
                "-t1",
                f"-c{connections}",
                f"-d{max(1, round(seconds))}s",
                *close,
                url(server, "1k.bin"),
            ]
        )
        if bad := re.search(r"Non-2xx.*", told):
            raise Wrong(bad[0])
        return float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])

    def cells(bench):
        places = (16,) if bench.args.quick else (1, 16, 256)
        return [
            Cell(name, x, lambda n=name, x=x: measure(bench, n, x, own))
            for name in HTTP_SERVERS
            for x in places
        ]

    return cells


BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Cookie": "session=0123456789abcdef; theme=dark",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "none",
    "Priority": "u=0, i",
}
# wrk asks for another one of these files each time
IN_TURN = """
local number = 0
request = function()
    number = (number + 1) %% %d
    return wrk.format("GET", string.format("/many/%%05d.bin", number))
end
"""


def browsing(path, connections, many=False):
    """Cells that count the requests of wrk with a browser's header fields."""

    def measure(bench, name):
        wrk, server = bench.need("wrk"), bench.server(name)
        fields = [word for name, value in BROWSER.items() for word in ("-H", f"{name}: {value}")]
        if many:
            script = bench.work / "in-turn.lua"
            script.write_text(IN_TURN % min(1000, MANY[bench.size]))
            fields += ["-s", str(script)]
        seconds = max(1, round(LOAD_S[bench.size]))
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", *fields, url(server, path)]
        told = bench.ask(command)
        if bad := re.search(r"Non-2xx.*|Socket errors.*", told):
            raise Wrong(bad[0])
        return float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])

    def cells(bench):
        if not (bench.share / path).exists():
            make_file(bench.share / path, MIB)
        return [Cell(name, None, lambda n=name: measure(bench, n)) for name in HTTP_SERVERS]

    return cells


def load_check(bench):
    """This file's own load beside wrk and ab on one server: what is behind 'requests' where they are missing."""

    def by_ab():
        seconds, server = max(1, round(LOAD_S[bench.size])), bench.server("nginx")
        told = bench.ask(
            [
                bench.need("ab"),
                "-q",
                "-k",
                "-c",
                "16",
                "-t",
                str(seconds),
                "-n",
                "10000000",
                url(server, "1k.bin"),
            ]
        )
        return float(re.search(r"Requests per second:\s+([\d.]+)", told)[1])

    def by(own):
        if not own:
            bench.need("wrk")
        return next(
            cell for cell in requests("kept", own)(bench) if (cell.name, cell.x) == ("nginx", 16)
        ).measure()

    return [
        Cell("own load", None, lambda: by(True)),
        Cell("wrk", None, lambda: by(False)),
        Cell("ab", None, by_ab),
    ]


def first_byte(bench):
    def measure(name):
        server, times = bench.server(name), []
        connect, ask = by_hand(name)
        for _ in range(30):
            first, start = [], time.perf_counter()
            with connect(server.port) as conn:
                ask(conn, "1k.bin", bench.small, first)
            times.append((first[0] - start) * 1e3)
        return median(times)

    return [Cell(name, None, lambda n=name: measure(n)) for name in ["server.py", *HTTP_SERVERS]]


def chunks(bench):
    room = functools.lru_cache(maxsize=1)(bytearray)  # taken at the first use, for all

    def by_loop(chunk):
        server, data, done = bench.server("chunks"), room(max(bench.sizes)), 0
        view = memoryview(data)
        with greeted_by_nobody(server.port) as conn:
            conn.sendall(b"%d" % chunk)
            start = time.perf_counter()
            while done < len(data) and (count := conn.recv_into(view[done : done + chunk])):
                done += count
            seconds = time.perf_counter() - start
        if (done, hashlib.sha256(data).hexdigest()) != bench.sizes[len(data)]:
            raise Wrong(f"{done} of {len(data)} bytes, or another content")
        return done / 1e6 / seconds

    return [
        Cell("send and recv of that size", chunk, lambda c=chunk: by_loop(c)) for chunk in CHUNKS
    ]


SIZE_PAIRS = [
    ("client.py", "server.py"),
    ("httpclient.py", "httpserver.py"),
    ("curl", "nginx"),
    ("rsync", "rsyncd"),
    ("scp", "sshd"),
]


def sizes(bench):
    return [
        Cell(
            f"{tool} from {server}",
            size,
            lambda t=tool, s=server, z=size: (
                fetch_once(bench, t, s, f"{z}.bin", bench.sizes[z]) * 1e3
            ),
        )
        for tool, server in SIZE_PAIRS
        for size in bench.sizes
    ]


def under_load(bench):
    """99th percentile of small requests on a kept connection while others download."""

    def measure(name, others):
        server = bench.server(name)
        busy = (
            subprocess.Popen(
                bench.instrument(drain, server.port, "/large.bin", others), start_new_session=True
            )
            if others
            else None
        )
        try:
            time.sleep(0.2)  # the downloads are under way
            until = time.perf_counter() + (0.1 if bench.warming else LOAD_S[bench.size])
            return time_small(bench, server, lambda: time.perf_counter() < until)
        finally:
            if busy:
                stop(busy)

    places = (0, 16) if bench.args.quick else (0, 4, 16)
    return [
        Cell(name, x, lambda n=name, x=x: measure(n, x))
        for name in ("httpserver.py", "nginx", "caddy", "http.server")
        for x in places
    ]


def peaks(bench, tool, name, size):
    """(MB of the client, MB of the server) at their peaks while a file passes, or, without a size, the many small ones:
    up by client.py and rsync, down by httpclient.py."""
    server, seen, many = bench.server(name), [0.0], bench.share / "many"
    got = bench.fresh("share/up" if size is None and tool != "httpclient.py" else "got")
    forget_peak(server)
    if size:
        command = DOWN[tool](bench, server, f"{size}.bin", got / "file")
    else:
        command = (
            MANY_DOWN[tool, name](bench, server, got)
            if got.name == "got"
            else MANY_UP[tool, name](bench, server, many)
        )
    bench.run(command, peak=lambda pid: seen.append(memory(pid, "VmHWM")))
    if size:
        same_file(got / "file", bench.sizes[size])
    else:
        same_tree(got / "many" if (got / "many").is_dir() else got, many)
    return max(seen), memory(server.process.pid, "VmHWM")


def memory_sides(bench):
    need_proc()
    places = list(bench.sizes)[-2:] if bench.args.quick else list(bench.sizes)
    return [
        Cell(side, size, bench.figure(number, peaks, *pair, size))
        for pair in SIZE_PAIRS[:3]
        for number, side in enumerate(pair)
        for size in places
    ]


def memory_many(bench):
    need_proc()
    return [
        Cell(side, None, bench.figure(number, peaks, *pair, None))
        for pair in (SIZE_PAIRS[0], SIZE_PAIRS[1], ("rsync", "rsyncd"))
        for number, side in enumerate(pair)
    ]


def hold_idle(bench, name, count):
    """(MB, ms until a new client is answered, the slowest of 20) of a server that holds so many idle connections."""
    if bench.warming:  # each round has a server of its own: nothing to warm
        return 0.0, 0.0
    bench.stop(*[name] if name in bench.running else [])
    server = bench.server(name)
    with ExitStack() as held:
        until = time.monotonic() + CONNECT_ALL_S
        for number in range(count):
            if time.monotonic() > until:
                raise Wrong(f"let in {number} of {count} connections in {CONNECT_ALL_S:g} s")
            held.enter_context(greeted_by_nobody(server.port))
        (connect, ask), times = by_hand(name), []
        for _ in range(21):
            start = time.perf_counter()
            with connect(server.port) as conn:
                ask(conn, "1k.bin", bench.small)
            times.append((time.perf_counter() - start) * 1e3)
        answered = max(times[1:])  # the first waits until those before it are all let in
        used = memory(server.process.pid, "VmRSS")
    bench.stop(name)
    return used, answered


def idle(figure):
    """Cells of one of the two figures of hold_idle."""

    def cells(bench):
        need_proc()
        return [
            Cell(name, x, bench.figure(figure, hold_idle, name, x))
            for name in ("server.py", "httpserver.py", "tcp_upper.py", "nginx", "caddy")
            for x in IDLE[bench.size]
        ]

    return cells


def hold_crowd(name, port, idle_count, slow_count, pause, *wants):
    """Runs aside: idle connections that have asked once, and slow downloads; at the end says how many of these came whole."""
    connect, ask = by_hand(name)
    Slow.pause = float(pause)
    small, large = ((file, (int(size), sha256)) for file, size, sha256 in (wants[:3], wants[3:]))
    with ExitStack() as held, ThreadPoolExecutor(int(slow_count)) as pool:
        for _ in range(int(idle_count)):
            ask(held.enter_context(connect(int(port))), *small)
        slow = [
            pool.submit(ask, held.enter_context(connect(int(port), Slow)), *large)
            for _ in range(int(slow_count))
        ]
        print("under way", flush=True)
        print(sum(not done.exception() for done in slow))


def bear_crowd(bench, name, idle_count, slow_count):
    """(MB at the peak, ms that 99 of 100 small requests stay below) of a server under idle connections and slow downloads."""
    if bench.warming:  # each round has a server of its own: nothing to warm
        return 0.0, 0.0
    bench.stop(*[name] if name in bench.running else [])
    server = bench.server(name)
    busy = aside(
        hold_crowd,
        name,
        server.port,
        idle_count,
        slow_count,
        SLOW_S[bench.size],
        "1k.bin",
        *bench.small,
        f"{SLOW_FILE}.bin",
        *bench.sizes[SLOW_FILE],
    )
    try:
        slowest = time_small(bench, server, lambda: busy.poll() is None)
        whole = int(busy.stdout.read() or 0)
    finally:
        end_aside(busy)
    if whole != slow_count:
        raise Wrong(f"{whole} of {slow_count} slow downloads came whole")
    peak = memory(server.process.pid, "VmHWM")
    bench.stop(name)
    return peak, slowest


def crowd(figure):
    """Cells of one of the two figures of bear_crowd."""

    def cells(bench):
        need_proc()
        cells = [
            Cell(name, None, bench.figure(figure, bear_crowd, name, *CROWD[bench.size]))
            for name in ("server.py", "httpserver.py", "nginx", "caddy")
        ]
        return [
            *cells,
            Cell(
                "server.py, 100 downloads alone",
                None,
                bench.figure(figure, bear_crowd, "server.py", 0, 100),
            ),
        ]

    return cells


def guess(port, attempt, seconds):
    """Runs aside: wrong passwords from 127.0.0.2, each on a connection of its own; says how many a second the server ended."""
    ready, begun, ended = selectors.DefaultSelector(), 0, 0
    start = time.perf_counter()
    print("under way", flush=True)
    while (now := time.perf_counter() - start) < float(seconds):
        while begun < now * GUESSES and len(ready.get_map()) < 400:
            conn = socket.create_connection((HERE, int(port)), 5, source_address=("127.0.0.2", 0))
            conn.sendall(attempt.encode())
            ready.register(conn, selectors.EVENT_READ)
            begun += 1
        for key, _ in ready.select(0.001):
            with suppress(ConnectionError):  # a reset is an answer too
                if key.fileobj.recv(65536):
                    continue
            ready.unregister(key.fileobj)
            key.fileobj.close()
            ended += 1
    print(ended / now)


WRONG = {
    "server.py password": f"auth nonce={'a' * 32} proof={'b' * 64}\r\n",
    "httpserver.py password": f"GET /1k.bin HTTP/1.1\r\nHost: {HERE}\r\nAuthorization: Basic {b64encode(b'six:wrong').decode()}\r\nConnection: close\r\n\r\n",
}


@cache
def scrypt_key(salt):
    return hashlib.scrypt(PASSWORD.encode(), salt=bytes.fromhex(salt), n=16384, r=8, p=1, dklen=32)


def log_in(name, port):
    """Ms from connecting until the right password is accepted, the key ready as a client has it after its first time."""
    start = time.perf_counter()
    with greeted_by_nobody(port) as conn:
        if name == "httpserver.py password":
            word = b64encode(f"six:{PASSWORD}".encode()).decode()
            conn.sendall(
                f"GET /1k.bin HTTP/1.1\r\nHost: {HERE}:{port}\r\nAuthorization: Basic {word}\r\n\r\n".encode()
            )
            want = b"HTTP/1.1 200"
        else:
            keys = dict(
                word.split("=", 1)
                for word in read_line(conn, b"")[0].decode().split()
                if "=" in word
            )
            facts = f"client {keys['nonce']} {'c' * 32} -"
            proof = hmac.new(scrypt_key(keys["salt"]), facts.encode(), "sha256").hexdigest()
            conn.sendall(f"auth nonce={'c' * 32} proof={proof}\n".encode())
            want = b"ok auth"
        line, _ = read_line(conn, b"")
    if not line.startswith(want):
        raise Wrong(f"the right password is answered {line[:80]!r}")
    return (time.perf_counter() - start) * 1e3


def guessed(bench):
    """What a flood of wrong passwords from elsewhere costs the right one: the slowest of 100 then, less the median before."""

    def measure(name):
        server = bench.server(name)
        log_in(name, server.port)
        quiet, during, seconds = (
            median([log_in(name, server.port) for _ in range(20)]),
            [],
            0.2 if bench.warming else 2 * LOAD_S[bench.size],
        )
        busy = aside(guess, server.port, WRONG[name], seconds)
        try:
            while busy.poll() is None:
                during.append(log_in(name, server.port))
                time.sleep(0.01)
            rate = float(busy.stdout.read() or 0)
        finally:
            end_aside(busy)
        if rate < 0.9 * GUESSES and not bench.warming:
            raise Wrong(f"only {rate:.0f} wrong passwords a second were answered")
        return max(0.01, percentile(during) - quiet)

    return [Cell(name, None, lambda n=name: measure(n)) for name in WRONG]


def hear(ready, run, heard, deadline):
    """Reads what has come to the chatters and counts who has joined, and who heard which line of this run."""
    for key, _ in ready.select(max(0.0, deadline - time.perf_counter())):
        *lines, key.data[:] = (bytes(key.data) + key.fileobj.recv(65536)).split(b"\n")
        for line in lines:
            if found := re.search(rb"^said .* line-%d-(\d+)," % run, line):
                heard[int(found[1])] += 1
            heard["joined"] += line.startswith(b"ok chat")


def chatters(bench):
    """Ten lines a second, said in turn by clients that all hear each other: the longest time until the last of them has heard one."""

    def measure(count):
        bench.knows("client.py", "chat")
        server, ready, heard, worst = (
            bench.server("server.py"),
            selectors.DefaultSelector(),
            Counter(),
            0.0,
        )
        run = time.monotonic_ns()  # who joins is told older lines too
        with ExitStack() as held:
            conns = [held.enter_context(greeted(server.port)) for _ in range(count)]
            for number, conn in enumerate(conns):
                conn.sendall(b"chat n%d\n" % number)
                ready.register(conn, selectors.EVENT_READ, bytearray())
            begun = time.perf_counter()
            while heard["joined"] < count:
                if time.perf_counter() > begun + READY_S:
                    raise Wrong(f"{heard['joined']} of {count} have joined")
                hear(ready, run, heard, begun + READY_S)
            # the first is for the news of who joined
            for number in range(1 + round(10 * 2 * LOAD_S[bench.size])):
                said = time.perf_counter()
                conns[number * 7 % count].sendall(
                    b"say line-%d-%d, good day to everybody\n" % (run, number)
                )
                while heard[number] < count - 1:
                    if time.perf_counter() > said + READY_S:
                        raise Wrong(f"line {number} was heard by {heard[number]} of {count - 1}")
                    hear(ready, run, heard, said + READY_S)
                worst = max(worst, (time.perf_counter() - said) * 1e3 if number else 0)
                while time.perf_counter() < said + 0.1:
                    hear(ready, run, heard, said + 0.1)
        return worst

    return [
        Cell("server.py", x, lambda x=x: measure(x))
        for x in ((500,) if bench.args.quick else (50, 200, 500))
    ]


def cut_link(port, cuts, passed):
    """A port that leads to that one. The first answers are cut after so many bytes each; passed tells how many went through."""
    listening = socket.create_server((HERE, 0))

    def carry(conn, left):
        with suppress(OSError), conn, greeted_by_nobody(port) as server:
            while left:
                for source in select.select([conn, server], [], [])[0]:
                    data = source.recv(min(left, BUFFER) if source is server else BUFFER)
                    if not data:
                        return
                    (conn if source is server else server).sendall(data)
                    if source is server:
                        left -= len(data)
                        passed.append(len(data))

    def lead():
        with suppress(OSError):
            while True:
                threading.Thread(
                    target=carry,
                    args=(listening.accept()[0], cuts.pop() if cuts else math.inf),
                    daemon=True,
                ).start()

    threading.Thread(target=lead, daemon=True).start()
    return listening


def link_cut(bench):
    """KiB a cut that came twice while a file was fetched over a link that is cut at random places."""

    def measure(tool, name):
        size = max(bench.sizes if bench.args.quick else SIZES["quick"])
        server, dest, passed = bench.server(name), bench.fresh("got") / "large.bin", []
        count = 1 if bench.warming else CUTS[bench.size]
        at = random.Random(1).choices(range(1, size // CUTS["whole"]), k=count)
        with cut_link(server.port, list(at), passed) as listening:
            through = server._replace(port=listening.getsockname()[1])
            bench.run(DOWN[tool](bench, through, f"{size}.bin", dest))
            listening.shutdown(socket.SHUT_RDWR)
        same_file(dest, bench.sizes[size])
        return max(0.01, (sum(passed) - size) / KIB / count)

    return [
        Cell(f"{tool} from {name}", None, lambda t=tool, n=name: measure(t, n))
        for tool, name in (
            ("httpclient.py", "nginx"),
            ("httpclient.py", "httpserver.py"),
            ("client.py", "server.py"),
            ("wget", "nginx"),
        )
    ]


def start_up(bench):
    commands = {
        "client.py": lambda: bench.script("client.py", "--version"),
        "httpclient.py": lambda: bench.script("httpclient.py", "--version"),
        "python: socket, hashlib, argparse": lambda: [
            sys.executable,
            "-c",
            "import socket, hashlib, argparse",
        ],
        "python: http.client, argparse": lambda: [
            sys.executable,
            "-c",
            "import http.client, argparse",
        ],
        "curl": lambda: [bench.need("curl"), "--version"],
        "wget": lambda: [bench.need("wget"), "--version"],
        "rsync": lambda: [bench.need("rsync"), "--version"],
    }
    return [
        Cell(name, None, lambda c=command: median([bench.run(c()) for _ in range(5)]) * 1e3)
        for name, command in commands.items()
    ]


def tls(bench):
    pairs = [
        ("curl", "httpserver.py TLS"),
        ("curl", "nginx TLS"),
        ("client.py", "server.py TLS"),
        ("curl", "httpserver.py"),
        ("curl", "nginx"),
        ("client.py", "server.py"),
        ("scp", "sshd"),
    ]
    down = [
        Cell(
            f"{tool} from {server}",
            None,
            lambda t=tool, s=server: (
                bench.large[0] / 1e6 / fetch_once(bench, t, s, "large.bin", bench.large)
            ),
        )
        for tool, server in pairs
    ]
    up = [
        Cell(
            f"{tool} to {server}",
            None,
            lambda t=tool, s=server: bench.large[0] / 1e6 / push_once(bench, t, s),
        )
        for tool, server in pairs
        if tool in ("client.py", "scp")
    ]
    return down + up


def relay_once(bench, receivers, what="large.bin"):
    """(seconds, MB of the server at its peak) from one client through the server to others, which all must have it."""
    bench.knows("client.py", "receive", "send")
    server, got, waiting = bench.server("server.py"), bench.fresh("got"), []
    source, count = bench.share / what, "1" if what == "large.bin" else str(MANY[bench.size])
    forget_peak(server)
    try:
        for number in range(receivers):
            (got / str(number)).mkdir()
            command = client(bench, server, "receive", "--count", count, "-o", got / str(number))
            waiting.append(
                subprocess.Popen(
                    command,
                    cwd=got,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        deadline = time.monotonic() + READY_S
        while bench.ask(client(bench, server, "who")).lower().count("receiv") < receivers:
            if time.monotonic() > deadline:
                raise Wrong("the receivers are not seen by who")
        seconds = bench.run(client(bench, server, "send", source, "--all"))
        for process in waiting:
            process.wait(READY_S)
    finally:
        for process in waiting:
            stop(process)
    for number in range(receivers):
        arrived = got / str(number) / what
        same_file(arrived, bench.large) if what == "large.bin" else same_tree(arrived, source)
    return seconds, memory(server.process.pid, "VmHWM")


def relay(bench):
    """Delivered to all together; the rate also of the way without a relay."""
    size = bench.large[0] / 1e6
    seconds = {number: bench.figure(0, relay_once, number) for number in (1, 5)}
    return [
        Cell("direct put", None, lambda: size / push_once(bench, "client.py", "server.py")),
        Cell("one to one", None, lambda: size / seconds[1]()),
        Cell("one to five", None, lambda: 5 * size / seconds[5]()),
    ]


def relay_memory(bench):
    return [
        Cell("one to one", None, bench.figure(1, relay_once, 1)),
        Cell("one to five", None, bench.figure(1, relay_once, 5)),
    ]


def relay_many(bench):
    return [
        Cell("one to one", None, lambda: MANY[bench.size] / relay_once(bench, 1, "many")[0]),
    ]


def udp(bench):
    def measure(name):
        server = bench.server(name)
        return float(
            bench.ask([bench.c_loop(), str(server.port), str(IN_FLIGHT), str(LOAD_S[bench.size])])
        )

    return [Cell(name, None, lambda n=name: measure(n)) for name in DATAGRAM_SERVERS]


def stream(bench):
    """A file through an echo and back at once: tcp_upper.py's client against each server, and socat's own."""
    source = bench.share / "large.bin"
    upper = hashlib.sha256()
    with open(source, "rb") as file:
        while chunk := file.read(BUFFER):
            upper.update(chunk.upper())
    want = (bench.large[0], upper.hexdigest())

    def measure(name):
        server, got = bench.server(name), bench.fresh("got") / "upper"
        command = bench.script("tcp_upper.py", "client", "--port", server.port)
        with open(source, "rb") as stdin, open(got, "wb") as stdout:
            seconds = bench.run(command, stdin=stdin, stdout=stdout)
        same_file(got, want)
        return want[0] / 1e9 / seconds

    return [
        Cell(name, None, lambda n=name: measure(n))
        for name in ("tcp_upper.py", "socat tr", "bare Python loop")
    ]


def by_protocol(bench):
    """Both protocols by the same few lines of code, on a kept connection and on new ones."""

    def measure(name, size, kept):
        server, want = bench.server(name), bench.sizes[size]
        connect, ask = by_hand(name)
        count = max(2, min(200, 64 * MIB // size))
        start = time.perf_counter()
        with connect(server.port) if kept else nullcontext() as conn:
            for _ in range(count):
                with nullcontext(conn) if kept else connect(server.port) as one:
                    ask(one, f"{size}.bin", want)
        return (time.perf_counter() - start) / count * 1e3

    return [
        Cell(
            f"{word}, {how} connection",
            size,
            lambda n=name, z=size, k=how == "kept": measure(n, z, k),
        )
        for word, name in (("socket", "server.py"), ("HTTP", "httpserver.py"))
        for how in ("kept", "new")
        for size in bench.sizes
    ]


SUITES = {
    "down": Suite("One large file down", "MB/s", "more", "", down),
    "up": Suite("One large file up", "MB/s", "more", "", up),
    "many-down": Suite("Many files of 1 KiB down", "files/s", "more", "", many_down),
    "many-up": Suite("Many files of 1 KiB up", "files/s", "more", "", many_up),
    "kept": Suite(
        "Requests for 1 KiB, kept connections",
        "requests/s",
        "more",
        "connections at once",
        requests("kept"),
    ),
    "browser": Suite(
        "Requests for 1 KiB with a browser's header fields, 16 kept connections",
        "requests/s",
        "more",
        "",
        browsing("1k.bin", 16),
    ),
    "in-turn": Suite(
        "The same for a thousand files in turn",
        "requests/s",
        "more",
        "",
        browsing("1k.bin", 16, many=True),
    ),
    "middle": Suite(
        "Requests for 1 MiB with a browser's header fields, 4 kept connections",
        "requests/s",
        "more",
        "",
        browsing("1m.bin", 4),
    ),
    "new": Suite(
        "Requests for 1 KiB, a new connection each",
        "requests/s",
        "more",
        "connections at once",
        requests("new"),
    ),
    "load-check": Suite(
        "This file's load generator beside wrk and ab: nginx, 16 kept connections",
        "requests/s",
        "more",
        "",
        load_check,
        steady=True,
    ),
    "first-byte": Suite("Time to first byte, new connection", "ms", "less", "", first_byte),
    "chunks": Suite("Throughput against chunk size", "MB/s", "more", "chunk (bytes)", chunks),
    "sizes": Suite(
        "Time against file size, client process whole", "ms", "less", "file size (bytes)", sizes
    ),
    "load": Suite(
        "Small request while others download, 99th percentile",
        "ms",
        "less",
        "large downloads at once",
        under_load,
    ),
    "udp": Suite(f"UDP echoes, {IN_FLIGHT} in flight", "echoes/s", "more", "", udp),
    "stream": Suite("A large file through an uppercase echo and back", "GB/s", "more", "", stream),
    "memory": Suite(
        "Peak memory against file size",
        "MB",
        "less",
        "file size (bytes)",
        memory_sides,
        steady=True,
    ),
    "memory-many": Suite(
        "Peak memory while many files of 1 KiB pass", "MB", "less", "", memory_many, steady=True
    ),
    "idle": Suite(
        "Memory against idle connections", "MB", "less", "idle connections", idle(0), steady=True
    ),
    "idle-answer": Suite(
        "Until a new client is answered, the slowest of 20, against idle connections",
        "ms",
        "less",
        "idle connections",
        idle(1),
        steady=True,
    ),
    "crowd": Suite(
        "Peak memory with idle connections and slow downloads",
        "MB",
        "less",
        "",
        crowd(0),
        steady=True,
    ),
    "crowd-answer": Suite(
        "Small request among idle connections and slow downloads, 99th percentile",
        "ms",
        "less",
        "",
        crowd(1),
        steady=True,
    ),
    "passwords": Suite(
        f"What {GUESSES:,} wrong passwords a second add to a right one, 99th percentile",
        "ms",
        "less",
        "",
        guessed,
    ),
    "cut": Suite(
        "Bytes that come twice over a link that is cut",
        "KiB a cut",
        "less",
        "",
        link_cut,
        steady=True,
    ),
    "start": Suite("Start-up of a client", "ms", "less", "", start_up),
    "tls": Suite("One large file, with TLS and without", "MB/s", "more", "", tls),
    "lab": Suite(
        "Time of one file, socket against HTTP by the same client code",
        "ms",
        "less",
        "file size (bytes)",
        by_protocol,
    ),
    "relay": Suite(
        "From client to client through the server, delivered in total", "MB/s", "more", "", relay
    ),
    "relay-memory": Suite(
        "Peak memory of the server meanwhile", "MB", "less", "", relay_memory, steady=True
    ),
    "relay-many": Suite(
        "Many files of 1 KiB from client to client", "files/s", "more", "", relay_many
    ),
    "chat": Suite(
        "Until a line of chat is heard by all, the slowest",
        "ms",
        "less",
        "chatters",
        chatters,
        steady=True,
    ),
}


# --- rounds ---
def progress(text):
    """What is being done: one line that changes on a terminal, a line each elsewhere."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r\x1b[K" + text[:width])
    else:
        sys.stderr.write(text + "\n")
    sys.stderr.flush()


def measured(bench, key, cell):
    """One result, or None with the reason noted."""
    try:
        return cell.measure()
    except Absent as missing:
        bench.wrong[key, cell.name, cell.x] = f"absent: {missing}"
    except (Wrong, OSError, ValueError, subprocess.SubprocessError) as problem:
        bench.wrong[key, cell.name, cell.x] = str(problem)
    return None


# what a quick run leaves out: no goal names it
NOT_QUICK = re.compile(
    r"^load-check|\bsftp|aria2c|lighttpd|darkhttpd|pyftpdlib|ncat|iperf3|from uploadserver|: uploadserver"
)


def all_cells(bench, suites):
    """(suite's name, cell) of everything that can be measured here."""
    found = []
    for key, suite in suites.items():
        try:
            found += [
                (key, cell)
                for cell in suite.cells(bench)
                if not (bench.args.quick and NOT_QUICK.search(f"{key}: {cell.name}"))
            ]
        except (Absent, OSError) as missing:
            bench.wrong[key, suite.title, None] = f"absent: {missing}"
    return found


def run_rounds(bench, suites):
    """All suites once, and again: when time is up or somebody presses Ctrl-C, each has as many rounds as the others.
    Whoever fails before the first result is not asked again."""
    rounds = bench.args.rounds or ROUNDS[bench.size]
    cells = all_cells(bench, suites)
    for number in range(rounds + 1):
        bench.warming = number == 0
        bench.this_round.clear()
        shown, order = (
            "",
            list(
                in_turn(
                    [
                        (key, cell)
                        for key, cell in cells
                        if number <= STEADY or not suites[key].steady
                    ],
                    number,
                )
            ),
        )
        if bench.warming:  # once each contender: not at each place of the x axis, nor in each suite
            order = list({cell.name: (key, cell) for key, cell in reversed(order)}.values())[::-1]
        for place, (key, cell) in enumerate(order):
            if time.monotonic() > bench.until:
                bench.wrong[key, "time is up", None] = (
                    f"round {number} of {rounds} was not finished"
                )
                return
            if shown != key or sys.stderr.isatty():
                shown, what = key, f"round {number} of {rounds}" if number else "warming up"
                progress(
                    f"{what}, {place + 1} of {len(order)}: {key}: {cell.name}{'' if cell.x is None else f' at {cell.x:g}'}"
                )
            value = measured(bench, key, cell)
            if number:
                bench.results.setdefault(key, {}).setdefault((cell.name, cell.x), []).append(value)
        cells = [
            (key, cell)
            for key, cell in cells
            if (key, cell.name, cell.x) not in bench.wrong
            or good(bench.results.get(key, {}).get((cell.name, cell.x), []))
        ]


def in_turn(cells, number):
    """The suites in their order; in each, the contenders begin with another one every round."""
    for key in dict.fromkeys(key for key, _ in cells):
        own = [cell for cell in cells if cell[0] == key]
        yield from turned(own, number * max(1, len(own) // 4))


# --- output ---
def good(values):
    return [value for value in values if value is not None]


def summary(rows):
    """[(name, x, median, lowest, highest, how many)] of a suite's rows that have a result."""
    return [
        (name, x, median(good(values)), min(good(values)), max(good(values)), len(good(values)))
        for (name, x), values in rows.items()
        if good(values)
    ]


def table(key, suite, rows):
    """A suite as lines of text: best first, or a line for each contender with a column for each x."""
    found = summary(rows)
    lines = [f"{suite.title} ({suite.unit}, {suite.better} is better) [{key}]"]
    width = max([len(row[0]) for row in found], default=0)
    if not suite.x_label:
        for name, _, middle, low, high, _ in sorted(
            found, key=lambda row: row[2], reverse=suite.better == "more"
        ):
            lines.append(f"  {name:{width}}  {short(middle):>8}   {short(low)} to {short(high)}")
        return lines
    places, width = sorted({row[1] for row in found}), max(width, len(suite.x_label))
    name_of = size_name if "bytes" in suite.x_label else "{:g}".format
    lines.append(f"  {suite.x_label:{width}}  " + "".join(f"{name_of(x):>10}" for x in places))
    for name in sorted({row[0] for row in found}):
        by_x = {row[1]: row[2] for row in found if row[0] == name}
        lines.append(f"  {name:{width}}  " + "".join(f"{short(by_x.get(x)):>10}" for x in places))
    if key in ("sizes", "lab"):
        for name in sorted({row[0] for row in found}):
            points = [(row[1], row[2]) for row in found if row[0] == name]
            if len(points) > 2:
                setup, rate = line_fit(points)
                lines.append(
                    f"  {name:{width}}  {short(setup)} ms to set up, then {short(rate / 1e3)} MB/s"
                )
    return lines


def goal_value(bench, goal, suites):
    """What was reached, as need is told; None where it was not measured."""
    rows, suite = bench.results.get(goal.suite, {}), suites.get(goal.suite)
    if goal.theirs is None:
        found = [
            row[2] for row in summary(rows) if row[0] == goal.ours and goal.x in (None, row[1])
        ]
        return max(found) if found else None
    value = pair_ratio(
        rows.get((goal.ours, goal.x), []),
        rows.get((goal.theirs, goal.x), []),
        suite.better if suite else "more",
    )
    return None if math.isnan(value) else value


def goal_lines(bench, suites):
    """Each goal with met or missed; those that were not measured are only counted."""
    lines, unknown = [], []
    for goal in GOALS:
        value = goal_value(bench, goal, suites)
        if value is None:
            unknown.append(goal)
            continue
        place = "" if goal.x is None else f" at {goal.x:g}"
        against = f" / {goal.theirs}" if goal.theirs else f" in {SUITES[goal.suite].unit}"
        floor = goal.theirs or SUITES[goal.suite].better == "more"
        met = value >= goal.need if floor else value <= goal.need
        bound = "at least" if floor else "at most"
        reached = (
            f"{'met   ' if met else 'MISSED'} {short(value):>7}, {bound} {short(goal.need):>5}"
        )
        lines.append(f"  {reached}: {goal.suite}: {goal.ours}{against}{place}")
    if unknown:
        lines.append(
            f"  not measured: {len(unknown)} ("
            + ", ".join(dict.fromkeys(goal.suite for goal in unknown))
            + ")"
        )
    quick = (
        "; they are meant for a whole run: with --quick starting up weighs more"
        if bench.args.quick
        else ""
    )
    return [f"Goals (ratios are ours / theirs as throughput, pair by pair{quick})", *lines]


def machine(bench):
    """Where this was measured."""
    cpu = (
        re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if Path("/proc/cpuinfo").exists()
        else None
    )
    versions = {}
    for tool, flag in (
        ("nginx", "-v"),
        ("caddy", "version"),
        ("lighttpd", "-v"),
        ("curl", "-V"),
        ("wget", "-V"),
        ("aria2c", "-v"),
        ("rsync", "--version"),
        ("socat", "-V"),
        ("ncat", "--version"),
        ("iperf3", "-v"),
        ("sshd", "-V"),
        ("wrk", "-v"),
    ):
        path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin")
        if path:
            told = subprocess.run([path, flag], capture_output=True, text=True, check=False)
            found = re.search(r"\d+\.\d+(?:[.p]\d+)*", told.stdout + told.stderr)
            versions[tool] = found[0] if found else "?"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": cpu[1] if cpu else platform.processor(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "files": str(bench.work),
        "large file": size_name(LARGE[bench.size]),
        "small files": MANY[bench.size],
        "versions": versions,
    }


def report(bench, suites, where):
    """Everything as text."""
    lines = [
        f"{where['date']}, {where['processors']} x {where['processor']}, Python {where['python']}, {where['system']}",
        f"large file {where['large file']}, {where['small files']} small files, load when it began {where['load']:.1f}",
        "",
    ]
    for key, rows in bench.results.items():
        if summary(rows):
            lines += [*table(key, suites[key], rows), ""]
    wrong = {
        f"  {key}: {name}{'' if x is None else f' at {short(x)}'}: {why}": None
        for (key, name, x), why in bench.wrong.items()
        if not why.startswith("absent")
    }
    if wrong:
        lines += ["Without a result, or with fewer rounds", *wrong, ""]
    if bench.absent:
        lines += [
            "Not on this machine: "
            + ", ".join(f"{tool} ({source})" for tool, source in bench.absent.items()),
            "",
        ]
    return lines if bench.args.lab else [*lines, *goal_lines(bench, suites)]


def as_json(bench, suites, where):
    rows = [
        {
            "suite": key,
            "title": suites[key].title,
            "unit": suites[key].unit,
            "better": suites[key].better,
            "contender": name,
            "x": x,
            "median": middle,
            "min": low,
            "max": high,
            "rounds": bench.results[key][name, x],
        }
        for key, found in bench.results.items()
        for name, x, middle, low, high, _ in summary(found)
    ]
    goals = [{**goal._asdict(), "reached": goal_value(bench, goal, suites)} for goal in GOALS]
    wrong = [
        {"suite": key, "contender": name, "x": x, "why": why}
        for (key, name, x), why in bench.wrong.items()
    ]
    return {
        "machine": where,
        "results": rows,
        "goals": goals,
        "without result": wrong,
        "absent": bench.absent,
    }


# --- charts ---
WIDTH, PLOT_LEFT, PLOT_RIGHT, BAR, TOP = 760, 250, 640, 22, 64  # pixels of the SVG's own grid
README_CHARTS = ("down", "kept", "lab")
LIGHT = ["#0a5fb4", "#c2410c", "#15803d", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#57534e"]
DARK = ["#6cb6ff", "#fb923c", "#4ade80", "#c4b5fd", "#f472b6", "#22d3ee", "#bef264", "#d6d3d1"]
OURS = re.compile(r"(server|client|upper)\.py|^socket")


def style():
    def colours(palette, ink, paper, grid, dim):
        each = "".join(
            f".s{n}{{stroke:{colour}}}.f{n}{{fill:{colour}}}" for n, colour in enumerate(palette)
        )
        return f"text{{fill:{ink}}}.paper{{fill:{paper}}}.grid{{stroke:{grid}}}.range{{stroke:{ink}}}.dim{{fill:{dim}}}{each}"

    return (
        "<style>text{font:13px system-ui,sans-serif}.title{font-size:16px;font-weight:600}.small{font-size:11px}"
        ".line{fill:none;stroke-width:2}.line.s1,.line.s3,.line.s5,.line.s7{stroke-dasharray:7 3}"
        + colours(LIGHT, "#1c1917", "#ffffff", "#d6d3d1", "#a8a29e")
        + "@media(prefers-color-scheme:dark){"
        + colours(DARK, "#e7e5e4", "#1c1917", "#44403c", "#78716c")
        + "}</style>"
    )


def text(x, y, words, anchor="start", kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def rule(x1, y1, x2, y2, kind="grid"):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def picture(height, title, note, parts):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(title)}</title>{style()}'
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>{text(16, 26, title, kind="title")}{"".join(parts)}'
        f"{text(16, height - 8, note, kind='small')}</svg>\n"
    )


def nice_steps(top):
    """Round numbers from 0 to at least top, at most six."""
    size = 10 ** math.floor(math.log10(top or 1))
    step = next(size * factor for factor in (0.2, 0.5, 1, 2, 5, 10) if top / (size * factor) <= 5)
    return [step * n for n in range(math.ceil(top / step - 1e-9) + 1)]


def bar_chart(title, unit, better, note, found):
    """Horizontal bars with their median, and a thin line from the lowest to the highest. Ours are coloured."""
    found = sorted(found, key=lambda row: row[2], reverse=better == "more")
    steps = nice_steps(max(row[4] for row in found))
    bottom = TOP + BAR * len(found)
    scale = (PLOT_RIGHT - PLOT_LEFT) / steps[-1]
    parts = [text(16, 44, f"{unit}, {better} is better", kind="small")]
    for value in steps:
        parts += [
            rule(PLOT_LEFT + value * scale, TOP, PLOT_LEFT + value * scale, bottom),
            text(
                PLOT_LEFT + value * scale,
                bottom + 16,
                short(value) if value else "0",
                "middle",
                "small",
            ),
        ]
    parts.append(text((PLOT_LEFT + PLOT_RIGHT) / 2, bottom + 34, unit, "middle"))
    for place, (name, _, middle, low, high, _) in enumerate(found):
        y = TOP + BAR * place
        kind = "f0" if OURS.search(name) else "dim"
        parts += [
            text(PLOT_LEFT - 8, y + 15, name, "end"),
            f'<rect x="{PLOT_LEFT}" y="{y + 4}" width="{max(1, middle * scale):.1f}" height="{BAR - 8}" class="{kind}"/>',
            rule(
                PLOT_LEFT + low * scale, y + BAR / 2, PLOT_LEFT + high * scale, y + BAR / 2, "range"
            ),
            text(PLOT_LEFT + max(middle, high) * scale + 8, y + 15, short(middle)),
        ]
    return picture(bottom + 62, title, note, parts)


def axis(values, low, high):
    """(place of a value, marks) of an axis: by powers where the values span more than 30, else from 0."""
    least, most = min(values), max(values)
    if least > 0 and most / least > 30:
        first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
        jump = max(1, math.ceil((last - first) / 7))
        marks = [10.0**n for n in range(first, last + 1, jump)]
        return (
            lambda value: low + (high - low) * (math.log10(value) - first) / (last - first)
        ), marks
    steps = nice_steps(most)
    return (lambda value: low + (high - low) * value / steps[-1]), steps


def line_chart(title, unit, better, x_label, note, found):
    """A line for each contender, with bars from the lowest to the highest, and the names beside it."""
    left, right, top, bottom = 76, 490, 60, 340
    place_x, marks = axis([row[1] for row in found], left, right)
    if "bytes" in x_label:
        marks = sorted({row[1] for row in found})
    place_y, levels = axis([value for row in found for value in row[3:5]], bottom, top)
    parts = [text(16, 44, f"{unit}, {better} is better", kind="small")]
    for value in marks:
        name = size_name(value) if "bytes" in x_label else f"{value:g}"
        parts += [
            rule(place_x(value), top, place_x(value), bottom),
            text(place_x(value), bottom + 16, name, "middle", "small"),
        ]
    for value in levels:
        parts += [
            rule(left, place_y(value), right, place_y(value)),
            text(left - 6, place_y(value) + 4, f"{value:,.10g}", "end", "small"),
        ]
    parts.append(text((left + right) / 2, bottom + 38, x_label.replace(" (bytes)", ""), "middle"))
    parts.append(
        f'<text transform="translate(16 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">{escape(unit)}</text>'
    )
    for number, name in enumerate(sorted({row[0] for row in found})):
        rows, colour = (
            sorted((row for row in found if row[0] == name), key=lambda row: row[1]),
            number % len(LIGHT),
        )
        points = " ".join(f"{place_x(row[1]):.1f},{place_y(row[2]):.1f}" for row in rows)
        parts += [
            f'<polyline points="{points}" class="line s{colour}"/>',
            rule(
                right + 16,
                top + 10 + 20 * number,
                right + 36,
                top + 10 + 20 * number,
                f"line s{colour}",
            ),
            text(right + 42, top + 14 + 20 * number, name),
        ]
        for row in rows:
            parts += [
                rule(
                    place_x(row[1]), place_y(row[3]), place_x(row[1]), place_y(row[4]), f"s{colour}"
                ),
                f'<circle cx="{place_x(row[1]):.1f}" cy="{place_y(row[2]):.1f}" r="3" class="f{colour}"/>',
            ]
    return picture(404, title, note, parts)


def chart(suite, rows, note=""):
    """A suite as SVG; note stands below: where and when."""
    found = summary(rows)
    places = sorted({row[1] for row in found if row[1] is not None})
    if len(places) == 1:
        return bar_chart(
            suite.title, suite.unit, suite.better, f"{suite.x_label}: {places[0]:g}. {note}", found
        )
    if suite.x_label:
        return line_chart(suite.title, suite.unit, suite.better, suite.x_label, note, found)
    return bar_chart(suite.title, suite.unit, suite.better, note, found)


def write_out(bench, suites, where):
    """The report on stdout; that, the JSON and the charts in the folder."""
    out = Path(bench.args.out)
    out.mkdir(parents=True, exist_ok=True)
    lines, drawn = (
        report(bench, suites, where),
        [key for key, rows in bench.results.items() if summary(rows)],
    )
    print("\n".join(lines), flush=True)
    (out / "results.json").write_text(json.dumps(as_json(bench, suites, where), indent=1) + "\n")
    (out / "results.md").write_text("```text\n" + "\n".join(lines) + "\n```\n")
    note = f"{where['date'].split()[0]}, {where['processors']} x {where['processor']}, Python {where['python']}, {where['system'].split('-with')[0]}"
    for key in drawn:
        (out / f"{key}.svg").write_text(chart(suites[key], bench.results[key], note))
        if bench.args.charts and key in README_CHARTS:
            Path(bench.args.charts).mkdir(parents=True, exist_ok=True)
            shutil.copy(out / f"{key}.svg", bench.args.charts)
    progress(
        f"written to {out}: "
        + ", ".join(["results.json", "results.md", *(f"{key}.svg" for key in drawn)])
    )
    if sys.stderr.isatty():
        sys.stderr.write("\n")


def show_peers(install):
    """Who is here; or the commands that install who is not."""
    missing = {}
    for tool, source in PACKAGES.items():
        program = shutil.which(tool) or shutil.which(tool, path="/usr/sbin")
        here = importlib.util.find_spec(tool) is not None if source.startswith("pip") else program
        if not here:
            missing.setdefault(source[:3], []).append(source[5:])
        if not install:
            print(f"{'here  ' if here else 'absent'} {tool}{'' if here else f' ({source})'}")
    if install:
        for kind, command in (
            ("apt", "sudo apt-get install --no-install-recommends"),
            ("pip", f"{sys.executable} -m pip install"),
        ):
            if kind in missing:
                print(command, *dict.fromkeys(missing[kind]))
    return 0


def build_parser():
    listed = "\n".join(f"  {key:12} {suite.title}" for key, suite in SUITES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"suites:\n{listed}",
    )
    parser.add_argument(
        "suite",
        nargs="*",
        help="the suites to run (default all); lab alone is the small comparison of a minute",
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller files and fewer rounds: two minutes"
    )
    parser.add_argument(
        "--out", metavar="DIR", default=".benchmarks", help="where results go (default %(default)s)"
    )
    parser.add_argument(
        "--charts",
        metavar="DIR",
        help=f"where the README's charts go as well ({', '.join(README_CHARTS)})",
    )
    parser.add_argument(
        "--scripts",
        metavar="DIR",
        default=str(ROOT),
        help="where the six scripts are (default %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=int,
        help="rounds that count (default 5, 3 with --quick and lab)",
    )
    parser.add_argument(
        "--only", metavar="TEXT", help="only contenders whose name has this regular expression"
    )
    parser.add_argument(
        "--work",
        metavar="DIR",
        help="where files lie meanwhile (default /dev/shm, else the temporary folder)",
    )
    parser.set_defaults(lab=False)
    parser.add_argument(
        "--peers",
        nargs="?",
        const="show",
        choices=("show", "install"),
        help="who is installed; how to install the others",
    )
    return parser


def chosen(args, parser):
    """The suites to run."""
    if args.suite == ["lab"]:
        args.quick, args.lab, args.suite = True, True, ["lab", "chunks"]
    for key in args.suite:
        if key not in SUITES:
            parser.error(f"there is no suite {key!r}: " + ", ".join(SUITES))
    suites = {key: SUITES[key] for key in args.suite or SUITES}
    if args.only:

        def some(suite):
            return suite._replace(
                cells=lambda bench: [
                    cell for cell in suite.cells(bench) if re.search(args.only, cell.name)
                ]
            )

        suites = {key: some(suite) for key, suite in suites.items()}
    return suites


def main(argv=None):
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.peers:
        return show_peers(args.peers == "install")
    suites, code = chosen(args, parser), 0
    roomy = os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 6 * LARGE["whole"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(
        prefix="six-benchmark-", dir=args.work or ("/dev/shm" if roomy else None)
    ) as work:
        bench = Bench(args, Path(work))
        where = machine(bench)
        try:
            progress(f"making files in {work}")
            make_files(bench)
            run_rounds(bench, suites)
        except KeyboardInterrupt:
            progress("stopped: here is what there is\n")
            code = 130
        finally:
            bench.stop()
        write_out(bench, suites, where)
    return code


if __name__ == "__main__":
    sys.exit(main())
