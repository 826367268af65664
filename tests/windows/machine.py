"""The Windows Python by which these tests run the scripts: this one on Windows, else one under wine that python.sh made.

Limits of wine, for which nothing here asks: accept() fails with 10057 after a client's reset; a reset with unread data is
lost; no ICMP error reaches a UDP socket; standard streams cannot be files; no junctions and no symbolic links can be made; a rename
that changes only the case of a name does nothing.

What a test here cannot fail by under wine, and so leaves unproven for a real Windows: a port that another has on 0.0.0.0
(wine says that it is taken, Windows that access is denied); Ctrl-C with idle clients (wine wakes accept() at once, Windows
perhaps after seconds; the test bears ten). That a server which refuses the 541st client still answers its first is not asked.
A console is wine's own, drawn on a terminal of Linux: how Windows' own draws is untried.
"""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from conftest import ROOT, Finished, Server, assert_clean

IS_WINDOWS = os.name == "nt"
PYTHON = sys.executable if IS_WINDOWS else os.environ.get("SIXSOCKETS_WINDOWS_PYTHON")
# seconds for one test: then all that it started is killed. On a busy machine wine takes half a minute to start a script.
LIMIT = 300
needs_python = pytest.mark.skipif(
    not PYTHON,
    reason="no Windows Python: tests/windows/python.sh makes one, SIXSOCKETS_WINDOWS_PYTHON names it",
)
not_by_hand = pytest.mark.skipif(IS_WINDOWS, reason="on Windows only a person can type Ctrl-C")
needs_pty = pytest.mark.skipif(IS_WINDOWS, reason="wine makes a console of a terminal of Linux")


class WindowsServer(Server):
    """A server whose lines end as on Windows."""

    def __init__(self, script, *args, **more):
        super().__init__(script, *args, python=PYTHON, **more)

    @property
    def out(self):
        return super().out.replace("\r\n", "\n")

    @property
    def err(self):
        return super().err.replace("\r\n", "\n")

    def stop(self, number=signal.SIGINT):
        if not IS_WINDOWS:
            return super().stop(number)
        self.kill()
        assert_clean(self.err)
        return self.err


class Machine:
    """What a test starts there. It ends with the test, and a test that takes too long is ended by it."""

    def __init__(self):
        self.running = []
        self.timer = threading.Timer(LIMIT, self.kill)
        self.timer.start()

    def kill(self):
        for process in self.running:
            process.kill()

    def serve(self, script, *args, **more):
        server = WindowsServer(script, *args, **more)
        self.running.append(server.process)
        return server

    def popen(self, script, *args, env=None, **more):
        process = subprocess.Popen(
            [PYTHON, "-W", "error", str(ROOT / script), *map(str, args)],
            stdin=more.pop("stdin", subprocess.DEVNULL),
            stdout=more.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            **more,
        )
        self.running.append(process)
        return process

    def run(self, script, *args, input=b"", **more):
        """A script run to its end: .code, .out as text, .err."""
        process = self.popen(script, *args, stdin=subprocess.PIPE, **more)
        out, err = process.communicate(input, LIMIT)
        done = Finished(
            process.returncode, out.replace(b"\r\n", b"\n"), err.replace(b"\r\n", b"\n")
        )
        assert_clean(done.err)
        return done

    def screen(self, script, *args, **more):
        """What a script that runs to its end shows on a console: wine makes one of a terminal here."""
        import pty

        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [PYTHON, str(ROOT / script), *map(str, args)], stdin=theirs, stdout=theirs, stderr=theirs, **more
        )  # fmt: skip
        self.running.append(process)
        os.close(theirs)
        shown = b""
        with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
            while chunk := terminal.read(65536):
                shown += chunk
        process.wait(LIMIT)
        text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown.decode().replace("\r", ""))
        assert_clean(text)
        return text

    def code(self, source, **more):
        """What a few lines of Python print there."""
        process = subprocess.run(
            [PYTHON, "-c", source], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False, **more
        )  # fmt: skip
        assert process.returncode == 0, process.stderr.decode()
        return process.stdout.decode().strip()


@pytest.fixture
def windows():
    machine = Machine()
    yield machine
    machine.timer.cancel()
    machine.kill()
    for process in machine.running:
        process.wait(LIMIT)


def exchange(server, request):
    """What a server answers to these bytes until it has nothing more to say."""
    with server.connect() as sock:
        sock.sendall(request)
        said = b""
        while chunk := sock.recv(65536):
            said += chunk
    return said


def lines(server, *requests):
    """The lines that server.py answers to these, without its greeting."""
    said = exchange(server, "".join(f"{line}\n" for line in (*requests, "bye")).encode())
    return said.decode().splitlines()[1:-1]


def ask(server, method, target, fields="", body=b""):
    """(status, fields, body) of one request to httpserver.py."""
    conn = http.client.HTTPConnection(server.host, server.port, timeout=LIMIT)
    with contextlib.closing(conn):
        lines = (line.partition(": ") for line in fields.splitlines())
        conn.request(method, target, body, {name: value for name, _, value in lines})
        answer = conn.getresponse()
        return (
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            answer.read(),
        )
