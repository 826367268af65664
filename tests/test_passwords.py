"""Who may come in, and how it is encrypted: server.py with client.py, httpserver.py with httpclient.py."""

import array
import base64
import contextlib
import fcntl
import functools
import hashlib
import hmac
import http.client
import itertools
import os
import pty
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
import urllib.parse
import warnings

import pytest
from conftest import DEADLINE, ROOT, Listener, Process, until

sys.path.insert(0, str(ROOT))
import server as script

GREETED = re.compile(
    rb"sixsockets 1 max-line=32768 auth=scrypt-hmac-sha256 salt=([0-9a-f]{32}) nonce=([0-9a-f]{32}) you=127\.0\.0\.\d:\d+\n"
)
WORD = "grün: 100% ✓"  # umlauts, a colon, a space, a percent sign
RESTING = 1  # threads of a server that nobody uses: the one that accepts
VERBS = [
    "list",
    "get a",
    "put b size=1",
    "put b size=2000000 mtime_ns=1 offset=1 sha256=00",
    "stat a",
    "delete a",
    "rename a b",
    "mkdir b",
    "upload b",
    "download a",
]


@pytest.fixture
def box(tmp_path):
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "a").write_bytes(b"in the box")
    return folder


def everything(sock):
    return b"".join(iter(lambda: sock.recv(65536), b""))


AUTHORITY = """[ca]
default_ca = own
[own]
database = index
new_certs_dir = .
serial = serial
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = DNS:localhost,IP:127.0.0.1
"""


MADE_ONCE = {}  # to find a key takes a third of a second


def made(folder, name, ends="491231000000Z"):
    """A certificate for localhost and 127.0.0.1 with RSA, as others have it, and its key."""
    where = folder / name
    where.mkdir()
    if known := MADE_ONCE.get((name, ends)):
        for file, data in zip(("cert", "key"), known):
            (where / file).write_bytes(data)
        return where / "cert", where / "key"
    for file, text in (("index", ""), ("serial", "01"), ("conf", AUTHORITY)):
        (where / file).write_text(text)
    for command in (
        "openssl req -new -newkey rsa:2048 -nodes -keyout key -out request -subj /CN=localhost",
        f"openssl ca -batch -selfsign -config conf -keyfile key -in request -out cert -notext -startdate 200101000000Z -enddate {ends}",
    ):
        subprocess.run(command.split(), cwd=where, check=True, capture_output=True)
    MADE_ONCE[name, ends] = [(where / file).read_bytes() for file in ("cert", "key")]
    return where / "cert", where / "key"


def pin_of(server):
    return server.wait_for("--pin ([0-9a-f]{64})")[1]


def trusting():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@functools.lru_cache(None)
def key_of(password, salt):
    return hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), n=16384, r=8, p=1, dklen=32)


class Student:
    """A client made from server.py's docstring alone."""

    def __init__(self, server, password, tls=False, source="127.0.0.1", who="client"):
        self.sock = socket.create_connection(
            (server.host, server.port), DEADLINE, source_address=(source, 0)
        )
        self.certificate = "-"
        if tls:
            self.sock = trusting().wrap_socket(self.sock)
            self.certificate = hashlib.sha256(self.sock.getpeercert(binary_form=True)).hexdigest()
        self.file = self.sock.makefile("rb")
        self.greeting = self.file.readline()
        if found := GREETED.fullmatch(self.greeting):
            salt, self.nonce = found[1].decode(), found[2].decode()
            self.key = key_of(password, salt)
            self.mine = os.urandom(16).hex()
            self.proof = self.prove(who)

    def prove(self, who):
        return hmac.new(
            self.key, f"{who} {self.nonce} {self.mine} {self.certificate}".encode(), "sha256"
        ).hexdigest()

    def say(self, text):
        self.sock.sendall(text.encode() + b"\n")
        return self.file.readline()

    def log_in(self):
        return self.say(f"auth nonce={self.mine} proof={self.proof}")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()
        self.sock.close()


# --- server.py: the proof ---
def test_the_proofs_of_the_docstring_are_right():
    doc = script.__doc__
    salt, nonce, mine, proof, answer = re.search(
        r"salt=([0-9a-f]{32})\s+nonce=([0-9a-f]{32}) you=…\n +C: auth nonce=([0-9a-f]{32})"
        r"\s+proof=([0-9a-f]{64})\n +S: ok auth proof=([0-9a-f]{64})",
        doc,
    ).groups()
    assert "the password `secret`" in doc
    key = hashlib.scrypt(b"secret", salt=bytes.fromhex(salt), n=16384, r=8, p=1, dklen=32)
    for who, want in (("client", proof), ("server", answer)):
        assert hmac.new(key, f"{who} {nonce} {mine} -".encode(), "sha256").hexdigest() == want


def refused(student):
    return student.log_in() == b"err auth reason=wrong-password\n" and student.file.read() == b""


@pytest.mark.parametrize("tls", [False, True])
def test_every_verb_needs_the_proof_and_nothing_else_passes_for_one(spawn, box, tls):
    server = spawn("server.py", box, "--password", WORD, *["--tls"] * tls)
    with Student(server, WORD, tls) as student:
        for verb in VERBS:
            assert re.fullmatch(rb"err \w+( \w)* reason=auth-required\n", student.say(verb)), verb
        assert student.say("ping nick=anna") == b"err ping reason=auth-required\n", (
            "strangers take no names"
        )
        assert (
            student.say("data 3\nabcping") == b"ok ping\n"
            and student.say("end\nabort\nping") == b"ok ping\n"
        )
        assert student.say("help auth").startswith(b"help help")
        while not student.file.readline().startswith(b"ok help"):
            pass
        for malformed in (
            " nonce=x",
            " proof=",
            f" nonce={student.mine[:-1]}",
            f" nonce={'A' * 32}",
            f" nonce={'a' * 130}",
            " x y",
        ):
            assert student.say("auth" + malformed).endswith(
                b" reason=usage usage=auth%20nonce%3DHEX%20proof%3DHEX\n"
            ), malformed
        assert student.log_in() == f"ok auth proof={student.prove('server')}\n".encode()
        assert (
            student.say("list").startswith(b"file a size=10 ")
            and student.file.readline() == b"ok list count=1\n"
        )
        assert student.log_in() == b"err auth reason=not-needed\n"
        old = student.mine, student.proof
    for wrong in ("x", WORD + " ", "", WORD.encode().decode("latin-1")):
        with Student(server, wrong, tls) as student:
            assert refused(student), wrong
    for proof in (old[1], "", "ü" * 64):  # an old one, none, and what is no hex
        with Student(server, WORD, tls) as student:
            student.mine, student.proof = old[0], proof
            assert refused(student), proof
    # what the server would say is no client's proof
    with Student(server, WORD, tls, who="server") as student:
        assert refused(student)
    log = server.stop()
    assert (
        len(re.findall(r"127\.0\.0\.1:\d+ auth: .*wrong-password", log)) == 8
        and "delete a: 0 bytes" in log
    )
    assert "grün" not in log and (box / "a").read_bytes() == b"in the box"


def test_somebody_in_between_with_another_certificate_passes_no_proof_on(
    spawn, run, box, listeners, tmp_path
):
    """The client is told to trust it, and every line is passed on as it is: the proofs cover the certificate, so both ends notice."""
    server = spawn("server.py", box, "--password", WORD, "--tls")
    cert, key = made(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    def between(conn):
        with trusting().wrap_socket(server.connect()) as inner:
            # at hand before the client waits for it: one that waits long says something
            greeting = inner.recv(4096)
            with context.wrap_socket(conn, server_side=True) as client:
                client.sendall(greeting)
                inner.sendall(client.recv(4096))
                client.sendall(inner.recv(4096))

    listeners.append(Listener(between))
    done = run("client.py", "--port", listeners[0].port, "--insecure", "--password", WORD, "list")
    assert done.code == 67 and done.out == b""
    server.wait_for("auth: .*wrong-password")


MADE = "abcdef-ghjkmn-pqrs29"  # as a server makes it


@pytest.mark.parametrize(
    ("password", "flags", "code"),
    [(MADE, [], 67), (MADE, ["--insecure"], 67), (WORD, [], 60), (MADE + "x", [], 60)],
)
def test_who_is_in_between_gets_nothing_from_a_client_that_has_a_made_password_and_no_pin(
    spawn, run, box, listeners, tmp_path, password, flags, code
):
    """All lines are passed on as they are. With a password that a person made, the handshake ends
    it already: nothing is said on which passwords could be tried."""
    server = spawn("server.py", box, "--password", password, "--tls")
    cert, key = made(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    def between(conn):
        with contextlib.suppress(OSError), trusting().wrap_socket(server.connect()) as inner:
            greeting = inner.recv(4096)
            with context.wrap_socket(conn, server_side=True) as client:
                client.sendall(greeting)
                while line := client.recv(4096):
                    heard.append(line)
                    inner.sendall(line)
                    client.sendall(inner.recv(4096))

    heard = []
    listeners.append(Listener(between))
    to = "--port", listeners[0].port, "--tls", "--password", password, *flags
    done = run("client.py", *to, "list")
    assert done.code == code and done.out == b"", done
    assert [line.split()[0] for line in heard] == [b"auth"] * (code == 67)


def test_a_made_password_stands_for_the_pin_and_a_pin_may_be_shortened(spawn, run, box, canned):
    server = spawn("server.py", box, "--password", MADE, "--tls")
    at, pin = ("--port", server.port, "--tls"), pin_of(server)
    done = run("client.py", *at, "--password", MADE, "list")
    assert done.code == 0 and done.out == b"a\n" and done.err == "", done
    wrong = run("client.py", *at, "--password", MADE[::-1], "list")
    assert wrong.code == 67 and "refused the password" in wrong.err
    for digits, code in (16, 0), (15, 2), (40, 0):
        done = run("client.py", *at, "--password", MADE, "--pin", pin[:digits], "list")
        assert done.code == code, done
    wrong = run("client.py", *at, "--password", MADE, "--pin", "0" * 16, "list")
    assert wrong.code == 60 and pin in wrong.err
    open_one = spawn("server.py", box, "--tls")
    done = run("client.py", "--port", open_one.port, "--tls", "--password", MADE, "list")
    assert done.code == 67 and "does not ask for the password" in done.err


def test_more_than_ten_wrong_passwords_are_answered_busy_and_nobody_else_is(spawn, run, box):
    plain, tls = (
        spawn("server.py", box, "--password", WORD, "--timeout", "600"),
        spawn("server.py", box, "--password", WORD, "--tls"),
    )
    early = Student(plain, WORD, source="127.0.0.2")
    for server in (plain, tls):
        for _ in range(10):
            with Student(server, "guess", server is tls, source="127.0.0.2") as student:
                assert refused(student)
        server.wait_for("127.0.0.2 is answered busy")
    for _ in range(3):
        with Student(plain, WORD, source="127.0.0.2") as student:
            assert (
                re.fullmatch(rb"err - reason=busy retry=\d\d\n", student.greeting)
                and student.file.read() == b""
            )
    with early:  # a connection from before does not get around it
        assert (
            re.fullmatch(rb"err auth reason=busy retry=\d\d\n", early.log_in())
            and early.file.read() == b""
        )
    with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
        Student(tls, WORD, tls=True, source="127.0.0.2")
    assert run("client.py", "--port", plain.port, "--password", WORD, "list").out == b"a\n"
    assert (
        run("client.py", "--port", tls.port, "--password", WORD, "--insecure", "list").out == b"a\n"
    )
    until(
        lambda: plain.status("Threads") == tls.status("Threads") == RESTING,
        "no thread for those who were refused",
    )


def test_wrong_passwords_are_counted_for_a_minute_each_network_for_itself_and_in_bounded_memory(
    monkeypatch,
):
    now = [1000.0]
    monkeypatch.setattr(script.time, "monotonic", lambda: now[0])
    guard = script.Guard("x")
    assert [guard.judge("192.0.2.1", False) for _ in range(12)] == ["wrong-password"] * 10 + [
        "busy"
    ] * 2
    assert guard.judge("192.0.2.1", True) == "busy" and guard.judge(
        "192.0.2.2", True
    ) == "" == guard.judge("192.0.2.2", True)
    now[0] += 59
    assert guard.wait("192.0.2.1") and guard.judge("192.0.2.1", True) == "busy"
    now[0] += 2
    assert (
        not guard.wait("192.0.2.1")
        and guard.judge("192.0.2.1", False) == "wrong-password"
        and guard.judge("192.0.2.1", True) == ""
    )
    for number in range(10):
        assert guard.judge(f"2001:db8::{number}%eth0", False) == "wrong-password"
    assert (
        guard.judge("2001:db8::ffff:1", True) == "busy"
        and guard.judge("2001:db8:0:1::1", True) == ""
    )
    for number in range(script.MAX_COUNTED + 5):
        guard.judge(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", False)
    assert len(guard.wrong) == script.MAX_COUNTED


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:0:c000:201", bytes(8)),  # translated by a router (SIIT)
        ("::ffff:0:192.0.2.1", bytes(8)),  # the same, as Windows writes it
        ("::1", bytes(8)),
        ("fe80::1%eth0", bytes([0xFE, 0x80, 0, 0, 0, 0, 0, 0])),
    ],
)
def test_an_ipv4_client_counts_as_one_however_it_is_written(host, counted):
    peer = script.address((host, 51234, 0, 0))
    assert script.network(script.host_of(peer)) == counted


def test_an_ipv4_client_of_a_dual_stack_server_is_locked_out_alone(spawn, box):
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        server = spawn("server.py", box, "--host", "::", "--password", WORD)
        server.host = "127.0.0.1"
        for _ in range(10):
            with Student(server, "guess", source="127.0.0.2") as student:
                assert refused(student)
        server.wait_for("127.0.0.2 is answered busy")
        for source, greets in (("127.0.0.2", False), ("127.0.0.3", True)):
            with Student(server, WORD, source=source) as student:
                assert student.greeting.startswith(b"sixsockets") == greets, student.greeting


def test_without_a_password_there_is_nothing_to_prove(spawn, box):
    with Student(spawn("server.py", box), "") as student:
        assert (
            b" auth=none " in student.greeting
            and student.say("auth nonce=" + "a" * 32) == b"err auth reason=not-needed\n"
        )


def test_a_password_that_is_typed_by_hand_is_not_logged(spawn, box):
    server = spawn("server.py", box, "--password", "correct-horse")
    with Student(server, "correct-horse") as student:
        assert b"reason=usage" in student.say("auth correct-horse")
    server.wait_for("auth: 0 bytes, .* usage")
    assert "horse" not in server.stop()


def test_a_client_that_does_not_log_in_may_not_be_silent_for_ever(spawn, box):
    server = spawn("server.py", box, "--password", WORD, "--timeout", "4")
    with Student(server, WORD) as student:
        assert student.log_in().startswith(b"ok auth")
        with Student(server, WORD) as other:
            assert other.file.read() == b""
        server.wait_for("silent for 4 s")
        with Student(server, WORD) as other:

            def hung_up():
                with contextlib.suppress(ConnectionError):
                    return other.say("\nping") != b"ok ping\n"
                return True

            until(hung_up, "the end of idle talk")
        server.wait_for("connection lost: no password in 4 s")
        assert student.say("ping") == b"ok ping\n"


def test_a_web_form_at_the_tcp_port_is_answered_and_closed(spawn, box):
    server = spawn("server.py", box, "--password", WORD)
    with server.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\r\ndelete a\r\nput b\r\ndata 1\r\nx\r\nend\r\n"
        )
        said = b""
        with contextlib.suppress(ConnectionError):
            while more := sock.recv(4096):
                said += more
    assert (
        said.endswith(b"err - reason=this-is-http\n")
        and os.listdir(box) == ["a"]
        and "delete" not in server.stop()
    )


# --- client.py: which password, and to whom ---
def test_the_password_comes_from_the_command_line_or_the_environment(spawn, run, box):
    server = spawn("server.py", box, env={"SIXSOCKETS_PASSWORD": WORD})
    at = "--port", server.port
    assert run("client.py", *at, "--password", WORD, "list").out == b"a\n"
    assert run("client.py", "list", *at, env={"SIXSOCKETS_PASSWORD": WORD}).out == b"a\n"
    wrong = run("client.py", *at, "--password", "x", "list", env={"SIXSOCKETS_PASSWORD": WORD})
    assert wrong.code == 67 and "wrong-password" in wrong.err
    none = run("client.py", *at, "list")
    assert (
        none.code == 67
        and "cannot ask for the password" in none.err
        and "SIXSOCKETS_PASSWORD" in none.err
    )
    # no terminal
    assert run("client.py", *at, "--ask-password", "list", start_new_session=True).code == 67
    shell = run(
        "client.py", *at, "--password", WORD, "--trace-hex", input=b"list\nget a -o -\nbye\n"
    )
    assert (
        shell.code == 0
        and shell.out == b"a\nin the box"
        and not re.search("proof=[^*]|grün", shell.err)
    )
    assert WORD not in server.stop()


def test_a_server_that_cannot_prove_it_knows_the_password_is_told_nothing(run, canned, tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    greeting = f"sixsockets 1 max-line=32768 auth=scrypt-hmac-sha256 salt={'5' * 32} nonce={'7' * 32} you=127.0.0.1:1\n".encode()
    answers = [
        (greeting + b"ok auth proof=" + b"0" * 64 + b"\n", 67),
        (greeting + b"ok auth\n", 67),
        (greeting + b"err auth reason=busy retry=9\n", 67),
        (greeting.replace(b"5" * 32, b"5" * 31), 56),
        (greeting.replace(b"scrypt", b"md5"), 56),
        (greeting, 56),
        (b"sixsockets 1 max-line=32768 auth=none you=127.0.0.1:1\n", 67),
        (b"sixsockets 1 you=127.0.0.1:1\n", 67),
        (b"err - reason=busy retry=20\n", 67),
    ]
    server = canned(*[said for said, _ in answers])
    for number, (said, code) in enumerate(answers):
        done = run(
            "client.py",
            "--port",
            server.port,
            "--retries",
            0,
            "put",
            tmp_path / "a",
            env={"SIXSOCKETS_PASSWORD": WORD},
        )
        assert done.code == code and not done.out, (said, done)
        assert re.fullmatch(
            rb"(auth nonce=[0-9a-f]{32} proof=[0-9a-f]{64}\n)?", server.read[number]
        ), said


class Terminal:
    """A program with a terminal of its own, on which things are typed."""

    def __init__(self, *command):
        self.pid, self.end = pty.fork()
        if not self.pid:
            os.execv(sys.executable, [sys.executable, *map(str, command)])
        self.text = b""

    def read_until(self, mark):
        with contextlib.suppress(OSError):  # EIO: it has ended
            while (
                mark not in self.text
                and select.select([self.end], [], [], DEADLINE)[0]
                and (more := os.read(self.end, 4096))
            ):
                self.text += more
        assert mark in self.text, self.text
        return self.text

    def type(self, text):
        os.write(self.end, text.encode())

    def wait(self):
        with contextlib.suppress(OSError):
            while select.select([self.end], [], [], DEADLINE)[0] and (
                more := os.read(self.end, 4096)
            ):
                self.text += more
        os.close(self.end)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "waitstatus_to_exitcode"), reason="a pseudo terminal is needed")
def test_on_a_terminal_it_is_asked_for_unseen(box):
    server = Terminal(ROOT / "server.py", box, "--port", 0, "--ask-password")
    server.read_until(b"password for")
    server.type(WORD + "\n")
    try:
        port = re.search(rb"listening on 127.0.0.1:(\d+)", server.read_until(b"0.0.0.0"))[
            1
        ].decode()
        for asks in ([], ["--ask-password"]):
            client = Terminal(ROOT / "client.py", "--port", port, *asks, "stat", "a")
            client.read_until(b"password for")
            client.type(WORD + "\n")
            assert (
                client.wait() == 0
                and b"10 bytes" in client.text
                and "grün".encode() not in client.text
            )
        client = Terminal(ROOT / "client.py", "--port", port, "list")
        client.read_until(b"password for")
        client.type("\x03")
        assert client.wait() == 130 and b"Traceback" not in client.text
    finally:
        os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == 0 and "grün".encode() not in server.text


# --- how a server starts ---
def test_off_loopback_a_password_is_made_and_printed_in_the_clients_command(spawn, run, box):
    log = box.parent / "log"
    server = spawn("server.py", box, "--host", "0.0.0.0", "--log", log)
    command = server.wait_for(
        r"python3 (client\.py --host \S+ --port \d+ --password ([a-z2-9-]{20}))\n"
    )
    server.wait_for("others on the way can read the traffic and try to guess a weak password")
    done = run(*command[1].split(), "list")
    assert (done.code, done.out) == (0, b"a\n"), done
    assert (
        not re.search("[ilo01]", command[2])
        and run("client.py", "--port", server.port, "list").code == 67
    )
    tls = spawn("server.py", box, "--host", "0.0.0.0", "--tls")
    other = tls.wait_for(
        r"from another machine:\n  python3 (client\.py --host \S+ --port \d+ --password (\S+) --tls)\n"
    )
    assert "--pin" not in tls.err, "who knows such a password needs none"
    assert run(*other[1].split(), "--insecure", "list").out == b"a\n" and other[2] != command[2]
    assert "can read" not in tls.stop() and command[2] not in log.read_text()
    own = spawn("server.py", box, "--host", "0.0.0.0", "--password", WORD)
    own.wait_for(r"client\.py --host \S+ --port \d+ --ask-password\n")
    assert WORD not in own.stop()
    with_open = spawn(
        "server.py", box, "--host", "0.0.0.0", "--open", env={"SIXSOCKETS_PASSWORD": WORD}
    )
    assert run("client.py", "--port", with_open.port, "list").out == b"a\n"
    with_open.wait_for(
        "everybody who reaches it can read it and change it\nnothing is encrypted: others on the way can read the traffic; "
    )


@pytest.mark.parametrize(
    "flags, code, says",
    [
        (["--password", ""], 2, "empty"),
        (["--password", "x", "--open"], 2, "exclude"),
        (["--ask-password", "--open"], 2, "exclude"),
        (["--ask-password"], 67, "no terminal"),
        (["--cert", "nowhere"], 26, "nowhere"),
        (["--tls", "--cert", __file__], 26, "cannot use the certificate"),
        (["--tls", "--key", __file__], 2, "--cert"),
    ],
)
def test_flags_that_do_not_go_together_are_told(run, box, flags, code, says):
    done = run("server.py", box, "--port", 0, *flags, start_new_session=True)
    assert done.code == code and says in done.err and not done.out, done


# --- TLS ---
def test_a_machine_without_openssl_is_told_how_to_make_a_certificate_elsewhere(run, box):
    done = run("server.py", box, "--port", 0, "--tls", env={"PATH": "/nonexistent"})
    command = re.search(
        r"try:   (openssl req .*), elsewhere; then --cert cert.pem --key key.pem", done.err
    )
    assert done.code == 2 and command, done
    subprocess.run(command[1].split(), cwd=box, check=True, capture_output=True)
    assert {"cert.pem", "key.pem"} < set(os.listdir(box))


@pytest.mark.parametrize("script", ["server.py", "httpserver.py"])
def test_a_certificate_of_openssls_own_kind_is_told_to_be_none(run, box, tmp_path, script):
    """OpenSSL loads it, with what it may be trusted for, which Python's ssl cannot read."""
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -subj /CN=six"
    for command in (make, "openssl x509 -in cert.pem -trustout -out trusted.pem"):
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    done = run(
        script, box, "--port", 0, "--cert", tmp_path / "trusted.pem", "--key", tmp_path / "key.pem"
    )
    assert done.code == 26 and "cannot use the certificate" in done.err and not done.out, done


def test_tls_with_a_certificate_made_for_the_run(spawn, run, box, tmp_path):
    (tmp_path / "tmp").mkdir()
    server = spawn("server.py", box, "--tls", env={"TMPDIR": str(tmp_path / "tmp")})
    pin, at = pin_of(server), ("--port", server.port)
    assert os.listdir(tmp_path / "tmp") == []  # the key is in no file any more
    big = os.urandom(3_000_000)
    (tmp_path / "big").write_bytes(big)
    assert (
        run("client.py", *at, "--pin", pin, "put", tmp_path / "big").code == 0
        and (box / "big").read_bytes() == big
    )
    fetched = run(
        "client.py",
        *at,
        "--pin",
        "SHA256:" + ":".join(re.findall("..", pin)).upper(),
        "--trace",
        "get",
        "big",
        "a",
        "-o",
        f"{tmp_path}/here/",
    )
    assert (
        fetched.code == 0
        and (tmp_path / "here/big").read_bytes() == big
        and "TLS handshake ok (TLSv1." in fetched.err
    )
    wrong = run("client.py", *at, "--pin", "0" * 64, "list")
    assert wrong.code == 60 and pin in wrong.err
    untrusted = run("client.py", *at, "--tls", "list")
    assert untrusted.code == 60 and pin in untrusted.err
    insecure = run("client.py", *at, "--insecure", "list")
    assert insecure.code == 0 and "not checked" in insecure.err and pin in insecure.err
    assert run("client.py", *at, "--insecure", "--pin", "0" * 64, "list").code == 60


def test_tls_against_plain_and_the_reverse_are_told(spawn, run, box):
    tls, plain = spawn("server.py", box, "--tls"), spawn("server.py", box)
    done = run("client.py", "--port", tls.port, "list")
    assert done.code == 56 and "speaks TLS only" in done.err and "--pin" in done.err
    with tls.connect() as sock:
        sock.sendall(b"list\n")
        assert everything(sock) == b"err - reason=tls-only\n"
    done = run("client.py", "--port", plain.port, "--tls", "list")
    assert done.code == 56 and "speaks no TLS" in done.err
    plain.wait_for("this-is-tls")


def test_whom_a_client_trusts(spawn, run, box, tmp_path):
    cert, key = made(tmp_path, "own")
    server = spawn("server.py", box, "--cert", cert, "--key", key)
    at = "--port", server.port
    assert pin_of(server) == hashlib.sha256(ssl.PEM_cert_to_DER_cert(cert.read_text())).hexdigest()
    for host in "127.0.0.1", "localhost":
        assert run("client.py", *at, "--host", host, "--cacert", cert, "list").out == b"a\n"
    assert run("client.py", *at, "--cacert", "nowhere", "list").code == 26
    other, _ = made(tmp_path, "other")
    assert run("client.py", *at, "--cacert", other, "list").code == 60
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + cert.read_text())
    assert pin_of(spawn("server.py", box, "--cert", both)) == pin_of(server)
    assert run("server.py", box, "--port", 0, "--cert", other, "--key", key).code == 26
    # a name that the certificate lacks
    elsewhere = spawn("server.py", box, "--host", "127.0.0.3", "--cert", cert, "--key", key)
    assert (
        run(
            "client.py", "--port", elsewhere.port, "--host", "127.0.0.3", "--cacert", cert, "list"
        ).code
        == 60
    )
    expired, its_key = made(tmp_path, "expired", ends="200201000000Z")
    late = spawn("server.py", box, "--cert", expired, "--key", its_key)
    done = run("client.py", "--port", late.port, "--cacert", expired, "list")
    assert done.code == 60 and "expired" in done.err and pin_of(late) in done.err
    assert run("client.py", "--port", late.port, "--pin", pin_of(late), "list").out == b"a\n"


def test_tls_older_than_1_2_is_refused(run, listeners, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*made(tmp_path, "own"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    listeners.append(Listener(lambda conn: context.wrap_socket(conn, server_side=True).recv(1)))
    done = run("client.py", "--port", listeners[0].port, "--insecure", "list")
    assert done.code == 56 and "TLS" in done.err and "1.2" in done.err, done


def test_a_client_that_waits_takes_all_that_one_record_of_tls_holds(listeners, tmp_path):
    """What TLS has decrypted and nobody has taken is seen by no select(): in the chat, and before a receiver's next file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*made(tmp_path, "own"))
    (tmp_path / "inbox").mkdir()
    said, end = (
        b"".join(b"said from=bob %03d %b\n" % (number, b"x" * 90) for number in range(140)),
        threading.Event(),
    )
    names = [f"f{number:03}" for number in range(140)]
    puts = b"".join(
        b"put %b size=5\ndata 5\nhello\nend sha256=%b\n"
        % (name.encode(), hashlib.sha256(b"hello").hexdigest().encode())
        for name in names
    )

    def talk(conn):
        with context.wrap_socket(conn, server_side=True) as client:
            client.sendall(b"sixsockets 1 max-line=32768 auth=none you=me\n")
            verb = client.recv(100).strip()
            client.sendall(b"ok %b you=me\n" % verb)
            client.sendall(said if verb == b"chat" else puts)  # 14 kB: one record
            end.wait(DEADLINE)

    listeners.append(Listener(talk))
    at = ["--insecure", "--port", listeners[0].port]
    chat = Process(ROOT / "client.py", *at, "chat", stdin=subprocess.PIPE)
    inbox = Process(ROOT / "client.py", *at, "receive", "-o", tmp_path / "inbox")
    try:
        chat.wait_for("bob: 139 x{90}$", "out")
        until(lambda: sorted(os.listdir(tmp_path / "inbox")) == names, "all files")
    finally:
        end.set()
        chat.process.stdin.close()
        chat.kill()
        inbox.kill()


def test_no_redirect_leads_out_of_the_tls_that_was_asked_for(run, listeners, canned, tmp_path):
    clear = canned(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
    certificate, key = made(tmp_path, "own")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def talk(conn):
        with context.wrap_socket(conn, server_side=True) as server:
            server.recv(65536)
            server.sendall(
                b"HTTP/1.1 302 There\r\nLocation: http://127.0.0.1:%d/a\r\nContent-Length: 0\r\n\r\n"
                % clear.port
            )

    listeners.append(Listener(talk))
    pem = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    done = run(
        "httpclient.py",
        "get",
        f"https://127.0.0.1:{listeners[-1].port}/a",
        "--pin",
        hashlib.sha256(pem).hexdigest(),
        cwd=tmp_path,
    )
    assert done.code == 2 and "in the clear" in done.err and not clear.read, done


def test_a_server_that_ends_tls_amid_a_body_is_not_waited_for(listeners, tmp_path):
    """Such an end can be read again and again: select() never waits, and no timeout passes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*made(tmp_path, "own"))
    with open(tmp_path / "big", "wb") as file:
        file.truncate(50_000_000)  # more than fits on the way
    wanted, stuck, conns = threading.Event(), threading.Event(), []

    def talk(conn):
        with context.wrap_socket(conn, server_side=True) as server:
            server.recv(65536)
            server.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            select.select([server], [], [], DEADLINE)
            conns.append(server)
            wanted.set()
            stuck.wait(DEADLINE)
            socket.socket.shutdown(server, socket.SHUT_WR)  # FIN without TLS's own end
            listeners[0].go.wait(DEADLINE)

    listeners.append(Listener(talk))
    client = Process(
        "httpclient.py",
        "post",
        f"https://127.0.0.1:{listeners[0].port}/",
        "--data",
        f"@{tmp_path / 'big'}",
        "--insecure",
    )
    try:
        assert wanted.wait(DEADLINE)
        waiting = array.array("i", [0])
        amounts = [-1]

        def still():
            fcntl.ioctl(conns[0], termios.FIONREAD, waiting)
            amounts.append(waiting[0])
            return len(amounts) > 20 and len(set(amounts[-20:])) == 1

        # if it is only slow, nothing is shown, and nothing fails
        until(still, "the client to be stuck")
        stuck.set()
        # Python 3.9 finds an end of the stream in it, later ones a broken TLS
        assert client.wait() in (52, 55), client.err
    finally:
        client.kill()


def test_a_hundred_mute_clients_on_the_tls_port_delay_nobody(spawn, run, box):
    server = spawn("server.py", box, "--tls", "--timeout", "600")
    mute = [server.connect() for _ in range(100)]
    for number, sock in enumerate(mute):
        # nothing, or the beginning of a handshake
        sock.sendall(b"\x16\x03\x01\x02\x00"[: number % 6])
    assert (
        run(
            "client.py", "--port", server.port, "--pin", pin_of(server), "list", timeout=DEADLINE
        ).out
        == b"a\n"
    )
    for sock in mute:
        sock.close()


def test_a_handshake_has_a_deadline(spawn, box):
    server = spawn("server.py", box, "--tls", "--timeout", "0.5")
    with server.connect() as mute, server.connect() as begun:
        begun.sendall(b"\x16\x03\x01\x02\x00\x01")
        for sock in (mute, begun):
            with contextlib.suppress(ConnectionError):
                assert b"sixsockets" not in everything(sock)
    until(lambda: server.status("Threads") == RESTING, "no thread for them")


# --- httpserver.py: Basic ---
METHODS = [
    ("GET", "/a"),
    ("HEAD", "/a"),
    ("OPTIONS", "/"),
    ("PUT", "/new"),
    ("POST", "/"),
    ("DELETE", "/a"),
    ("MKCOL", "/new/"),
    ("MOVE", "/a"),
    ("PATCH", "/?upload=" + "0" * 32),
    ("HEAD", "/?upload=" + "0" * 32),
    ("GET", "/"),
    ("GET", "/?tar"),
    ("GET", "/?zip"),
    ("GET", "/none"),
    ("OPTIONS", "*"),
    ("TRACE", "/"),
    ("BREW", "/"),
]
# with --public-read
OPEN = [
    ("GET", "/a"),
    ("HEAD", "/a"),
    ("GET", "/"),
    ("GET", "/?tar"),
    ("GET", "/?zip"),
    ("GET", "/none"),
]


def basic(password, name="any"):
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def asked(server, method, path, login=None, source="127.0.0.1", body=None, tls=False, **fields):
    """One request on a connection of its own: (status, fields, body)."""
    kind, more = (
        (http.client.HTTPSConnection, {"context": trusting()})
        if tls
        else (http.client.HTTPConnection, {})
    )
    connection = kind(
        "127.0.0.1", server.port, timeout=DEADLINE, source_address=(source, 0), **more
    )
    with contextlib.closing(connection):
        connection.request(
            method,
            path,
            body,
            {
                **({"Authorization": login} if login else {}),
                **{name.replace("_", "-"): value for name, value in fields.items()},
            },
        )
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


@pytest.mark.parametrize("tls", [False, True])
def test_every_method_needs_the_password(spawn, box, tls):
    server = spawn("httpserver.py", box, "--password", WORD, *["--tls"] * tls)
    for number, (method, path) in enumerate(METHODS):
        for login in (None, basic("wrong"), basic(WORD).lower()):
            status, fields, body = asked(
                server,
                method,
                path,
                login,
                f"127.0.1.{number + 1}",
                b"x" if method in ("PUT", "POST", "PATCH") else None,
                tls,
            )
            assert (
                status == 401
                and fields["WWW-Authenticate"].startswith("Basic realm=")
                and 'charset="UTF-8"' in fields["WWW-Authenticate"]
            )
            assert (body == b"") == (method == "HEAD") and int(fields["Content-Length"]) > 0
        status = asked(
            server,
            method,
            path,
            basic(WORD, "ü:x"[:1]),
            body=b"x" if method == "PUT" else None,
            tls=tls,
            Destination="/moved",
        )[0]
        assert status not in (401, 403, 421, 429, 500), (method, path)
        (box / "a").write_bytes(b"in the box")
    malformed = [
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic a",
        "Basic " + base64.b64encode(WORD.encode()).decode(),
        "Bearer " + basic(WORD)[6:],
        "Digest a=b",
        "Basic" + basic(WORD)[6:],
        "Basic \xff\xfe",
        "Basic " + base64.b64encode(b"any:\xff\xfe").decode(),
        "Basic =" + basic(WORD)[6:],
    ]
    for field in malformed:
        assert asked(server, "GET", "/a", field, tls=tls)[0] == 401, field
    assert (
        asked(server, "GET", "/a", basic(WORD).replace("Basic", "bAsIc"), tls=tls)[2]
        == b"in the box"
    )
    log = server.stop()
    assert (
        '"DELETE /a HTTP/1.1" 401 ' in log
        and '"wrong password"' in log
        and basic(WORD)[6:] not in log
        and "grün" not in log
    )
    # and what was posted
    assert len(os.listdir(box)) == 4 and {"a", "moved", "new"} < set(os.listdir(box))


def test_an_upload_is_refused_before_its_body(spawn, box):
    server = spawn("httpserver.py", box, "--password", WORD)
    with server.connect() as sock, sock.makefile("rb") as file:
        sock.sendall(
            b"PUT /b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        assert file.readline() == b"HTTP/1.1 401 Unauthorized\r\n"
    # a small one that is sent all the same is no request
    with server.connect() as sock, sock.makefile("rb") as file:
        body = b"DELETE /a HTTP/1.1\r\nHost: localhost\r\n\r\n"
        sock.sendall(
            b"PUT /b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        sock.sendall(
            f"GET /a HTTP/1.1\r\nHost: localhost\r\nAuthorization: {basic(WORD)}\r\nConnection: close\r\n\r\n".encode()
        )
        answers = file.read()
    assert (
        re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"401", b"200"]
        and answers.endswith(b"in the box")
        and os.listdir(box) == ["a"]
    )
    # of a large one as much is taken as the answer needs to arrive
    with server.connect() as sock, sock.makefile("rb") as file:
        with contextlib.suppress(ConnectionError):
            sock.sendall(
                b"PUT /b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"
                + b"x" * 3_000_000
            )
        assert file.readline() == b"HTTP/1.1 401 Unauthorized\r\n"


def test_public_read_asks_for_the_password_where_something_changes(spawn, box):
    server = spawn("httpserver.py", box, "--password", WORD, "--public-read")
    for method, path in METHODS:
        assert (asked(server, method, path)[0] != 401) == ((method, path) in OPEN), (method, path)
    assert (
        asked(server, "PUT", "/b", basic(WORD), body=b"x")[0] == 201
        and asked(server, "GET", "/b", basic("wrong"))[2] == b"x"
    )


def test_a_password_does_not_let_other_pages_in(spawn, box):
    server = spawn("httpserver.py", box, "--password", WORD)
    public = spawn("httpserver.py", box, "--password", WORD, "--public-read")
    for method, path in METHODS:
        # DNS rebinding: the browser has no password for such a name
        assert asked(server, method, path, Host="evil.example")[0] == 401
        assert asked(public, method, path, basic(WORD), Host="evil.example")[0] == 421
    for method, path in (
        ("PUT", "/a"),
        ("POST", "/"),
        ("DELETE", "/a"),
        ("MKCOL", "/b/"),
        ("MOVE", "/a"),
    ):
        assert asked(server, method, path, basic(WORD), Origin="http://evil.example")[0] == 403
    assert (
        asked(
            server, "PUT", "/b", basic(WORD), body=b"x", Origin=f"http://127.0.0.1:{server.port}"
        )[0]
        == 201
    )
    assert sorted(os.listdir(box)) == ["a", "b"]


def test_http_more_than_ten_wrong_passwords_are_answered_busy_and_nobody_else_is(spawn, box):
    server, tls = (
        spawn("httpserver.py", box, "--password", WORD),
        spawn("httpserver.py", box, "--password", WORD, "--tls"),
    )
    for where in (server, tls):
        assert [
            asked(where, "GET", "/a", basic("guess"), "127.0.0.2", tls=where is tls)[0]
            for _ in range(10)
        ] == [401] * 10
        assert asked(where, "GET", "/a", basic(WORD), tls=where is tls)[0] == 200
    status, fields, body = asked(server, "DELETE", "/a", basic(WORD), "127.0.0.2")
    assert status == 429 and 0 < int(fields["Retry-After"]) <= 60 and b"busy" in body
    assert asked(server, "GET", "/a", None, "127.0.0.2")[0] == 401
    assert asked(tls, "GET", "/a", basic(WORD), "127.0.0.2", tls=True)[0] == 429


def test_curl_and_httpclient_log_in(spawn, run, box, tmp_path):
    server, url = (
        (found := spawn("httpserver.py", box, env={"SIXSOCKETS_PASSWORD": WORD})),
        f"http://127.0.0.1:{found.port}",
    )
    at, quoted = ("--port", server.port), urllib.parse.quote(WORD)
    if shutil.which("curl"):
        for words in (
            ["-u", f"any:{WORD}", url + "/a"],
            [url.replace("//", f"//any:{quoted}@") + "/a"],
        ):
            assert (
                subprocess.run(
                    ["curl", "-s", *words], capture_output=True, timeout=DEADLINE, check=True
                ).stdout
                == b"in the box"
            )
    (tmp_path / "b").write_bytes(b"sent")
    assert (
        run("httpclient.py", "get", "/a", "-o", "-", *at, "--password", WORD).out == b"in the box"
    )
    assert run("httpclient.py", *at, "list", "/", env={"SIXSOCKETS_PASSWORD": WORD}).out.endswith(
        b" a\n"
    )
    assert (
        run(
            "httpclient.py", "put", tmp_path / "b", url.replace("//", f"//any:{quoted}@") + "/b"
        ).code
        == 0
        and (box / "b").read_bytes() == b"sent"
    )
    none, wrong = (
        run("httpclient.py", *at, "list", "/"),
        run("httpclient.py", *at, "-v", "--password", "guess9", "list", "/"),
    )
    assert (
        none.code == wrong.code == 22
        and "401" in none.err
        and "--password" in none.err
        and base64.b64encode(b":guess9").decode() not in wrong.err
    )
    elsewhere = run("httpclient.py", "list", url + "/", env={"SIXSOCKETS_PASSWORD": WORD})
    # it is for what --host and --port name, which is not where the URL leads
    assert elsewhere.code == 22
    traced = run("httpclient.py", *at, "--trace-hex", "--password", WORD, "get", "/a", "-o", "-")
    assert traced.out == b"in the box" and basic(WORD, "")[6:16] not in traced.err
    assert "grün" not in server.stop()


def test_httpclient_asks_on_a_terminal_for_that_server_alone(spawn, box, canned):
    server = spawn("httpserver.py", box, "--password", WORD)
    other = canned(
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n",
        read_until=b"\r\n\r\n",
    )
    client = Terminal(
        ROOT / "httpclient.py",
        "get",
        f"http://127.0.0.1:{server.port}/a",
        f"http://127.0.0.1:{other.port}/b",
        "-o",
        "-",
    )
    client.read_until(b"password for 127.0.0.1:%d:" % server.port)
    client.type(WORD + "\n")
    client.read_until(b"password for 127.0.0.1:%d:" % other.port)
    client.type("other\n")
    assert (
        client.wait() == 22
        and "grün".encode() not in client.text
        and b"Traceback" not in client.text
    )
    assert (
        basic(WORD, "").encode() not in b"".join(other.read)
        and basic("other", "").encode() in other.read[-1]
    )


@pytest.mark.parametrize(
    "script, client, what",
    [("server.py", "client.py", "list"), ("httpserver.py", "httpclient.py", "list /")],
)
def test_on_another_loopback_address_the_command_that_is_printed_reaches_it(
    spawn, run, box, script, client, what
):
    server = spawn(script, box, "--host", "127.0.0.2", "--password", WORD)
    command = server.wait_for(rf"with.*:  python3 ({client} .*)--ask-password {what}\n")
    assert run(*command[1].split(), "--password", WORD, *what.split()).code == 0


def test_http_off_loopback_a_password_is_made_and_printed_in_the_clients_command(spawn, run, box):
    for tls in (False, True):
        server = spawn("httpserver.py", box, "--host", "0.0.0.0", *["--tls"] * tls)
        command = server.wait_for(
            r"python3 (httpclient\.py --host \S+ --port \d+ --password ([a-z2-9-]{20})(?: --pin [0-9a-f]{64})? list /)\n"
        )
        assert f"from another machine:  http{'s' * tls}://any:{command[2]}@" in server.err
        assert run(*command[1].split()).out.endswith(b" a\n")
        assert (
            run("httpclient.py", "--port", server.port, *["--insecure"] * tls, "list", "/").code
            == 22
        )
        assert (
            server.err.count(command[2]) <= 2
            and ("others on the way can read" in server.stop()) != tls
        )
    own = spawn("httpserver.py", box, "--host", "0.0.0.0", "--password", WORD)
    own.wait_for(r"httpclient\.py --host \S+ --port \d+ --ask-password list /\n")
    assert WORD not in own.stop()


@pytest.mark.parametrize(
    "script, before, secret, after",
    [
        (
            "httpserver.py",
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: ",
            b"Basic !!!!!!!!",
            b"\r\nX-After: shown\r\n\r\n",
        ),
        ("server.py", b"auth proof=", b"!" * 64, b"\nshown\n"),
    ],
)
def test_a_secret_that_comes_in_pieces_stays_masked_in_the_trace(
    spawn, box, script, before, secret, after
):
    server = spawn(script, box, "--password", WORD, "--trace-hex")
    pieces = before[:-4], before[-4:], secret[:2], secret[2:4], secret[4:] + after[:1], after[1:]
    with socket.create_connection(("127.0.0.1", server.port)) as conn:
        for sent, piece in zip(itertools.accumulate(map(len, pieces)), pieces):
            conn.sendall(piece)
            server.wait_for(rf"received so far {sent}\)")
        conn.settimeout(10)
        assert conn.recv(100)
    traced = server.stop()
    shown = b"".join(
        bytes.fromhex(row) for row in re.findall(r"^ +[0-9a-f]+  ((?:[0-9a-f]{2} )+)", traced, re.M)
    )
    assert (
        before in shown and b"shown" in shown and b"*" * len(secret) in shown and b"!" not in shown
    )


# --- httpserver.py: TLS ---
def test_http_over_tls(spawn, run, box, tmp_path):
    (tmp_path / "tmp").mkdir()
    server = spawn("httpserver.py", box, "--tls", "--trace", env={"TMPDIR": str(tmp_path / "tmp")})
    pin, at = pin_of(server), ("--port", server.port)
    assert server.out.startswith("listening on https://") and os.listdir(tmp_path / "tmp") == []
    big = os.urandom(3_000_000)
    (tmp_path / "big").write_bytes(big)
    sent = run(
        "httpclient.py",
        *at,
        "--pin",
        pin,
        "--trace",
        "put",
        tmp_path / "big",
        f"https://127.0.0.1:{server.port}/",
    )
    assert sent.code == 0 and (box / "big").read_bytes() == big
    moved = re.findall(r"[<>] (?:send|recv) \d+ .*", sent.err)
    assert moved and all(line.endswith(", encrypted by TLS on its way") for line in moved)
    # more at once could take longer than the timeout, though it moves
    assert max(map(int, re.findall(r"> send (\d+) of", sent.err))) <= 65536
    assert run("httpclient.py", *at, "--pin", pin, "get", "/big", "-o", "-").out == big
    for words, code, says in (
        (["--pin", "0" * 64], 60, pin),
        (["--tls"], 60, pin),
        (["--insecure"], 0, "not checked"),
        ([], 22, "400 Bad Request"),
    ):
        done = run("httpclient.py", *at, *words, "list", "/")
        assert done.code == code and says in done.err, done
    # the kernel has room for little, so that one record after another has to wait
    with Narrow(server) as sock:
        sock.sendall(
            b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2
            + b"GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert everything(sock).count(big) == 2
    with Narrow(server) as sock:  # what follows in the record of a body is seen
        sock.sendall(
            b"PUT /c HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nnew"
            + b"GET /c HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2
        )
        said = b""
        while said.count(b"\r\n\r\nnew") < 2:
            said += sock.recv(65536)
        chunked = (
            b"PUT /d HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"%x\r\n%b\r\n" % (n, b"y" * n) for n in (1, 20000, 5))
        )
        sock.sendall(
            chunked + b"0\r\n\r\nGET /d HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert everything(sock).endswith(b"y" * 20006)
    # cut without TLS's own end, and broken: both are said to be what they are
    for ending in b"", b"\x17\x03\x03\x00\x20" + bytes(32):
        with Narrow(server) as sock, socket.socket(fileno=os.dup(sock.fileno())) as below:
            sock.sendall(b"PUT /cut HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
            below.sendall(ending)
            below.shutdown(socket.SHUT_WR)
            server.wait_for(
                '"PUT /cut HTTP/1.1" 400 - "left in the body: '
                + ("the body ended after 1 of 9 bytes" if not ending else ".*(RECORD|MAC)")
            )
    server.wait_for("TLS handshake ok")


def Narrow(server):
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.settimeout(DEADLINE)
    plain.connect((server.host, server.port))
    return trusting().wrap_socket(plain)


def test_http_tls_against_plain_and_the_reverse_are_told(spawn, run, box):
    tls, plain = spawn("httpserver.py", box, "--tls"), spawn("httpserver.py", box)
    assert b"https://" in asked(tls, "GET", "/")[2]
    done = run("httpclient.py", "--port", plain.port, "--tls", "list", "/")
    assert done.code == 56 and "speaks no TLS" in done.err
    plain.wait_for('400 .* "this is TLS')
    # one of a thousand handshakes has two line ends among its random bytes
    with plain.connect() as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 random \n\n bytes")
        assert b"this is TLS" in everything(sock)


def test_http_a_hundred_mute_clients_on_the_tls_port_delay_nobody(spawn, run, box):
    server = spawn("httpserver.py", box, "--tls", "--timeout", "600")
    mute = [server.connect() for _ in range(100)]
    for number, sock in enumerate(mute):
        # nothing, or the beginning of a handshake
        sock.sendall(b"\x16\x03\x01\x02\x00"[: number % 6])
    assert run(
        "httpclient.py", "--port", server.port, "--pin", pin_of(server), "list", "/"
    ).out.endswith(b" a\n")
    assert server.status("Threads") <= RESTING + 2
    for sock in mute:
        sock.close()


def test_http_tls_clients_that_reset_or_send_nonsense_leave_it_whole(spawn, box):
    server = spawn("httpserver.py", box, "--tls")
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        trusting().wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    begun = hello.read()
    for data in [
        b"",
        begun,
        begun[:-1],
        begun[:5] + os.urandom(len(begun)),
        b"\x16" + os.urandom(3000),
    ] * 40:
        with server.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with contextlib.suppress(ConnectionError):
                sock.sendall(data)
    assert [asked(server, "GET", "/a", tls=True)[2] for _ in range(5)] == [b"in the box"] * 5
    until(lambda: server.descriptors() < 30, "the connections to be let go")
    assert "mistake" not in server.stop()


def test_http_a_handshake_has_a_deadline(spawn, box):
    patient = spawn("httpserver.py", box, "--tls", "--timeout", "600", "--max-clients", "3")
    with patient.connect(), patient.connect(), patient.connect() as begun:
        begun.sendall(b"\x16\x03\x01\x02\x00\x01")
        with pytest.raises(ssl.SSLError, match="INTERNAL_ERROR"):
            asked(patient, "GET", "/", tls=True)
    server = spawn("httpserver.py", box, "--tls", "--timeout", "2", "--max-clients", "3")
    with server.connect() as mute, server.connect() as begun, server.connect() as third:
        begun.sendall(b"\x16\x03\x01\x02\x00\x01")
        for sock in (mute, begun, third):
            assert everything(sock) == b"\x15\x03\x03\x00\x02\x02\x50"

    def comes_in():
        # the deadline holds for this client too, should the machine stand still meanwhile
        with contextlib.suppress(OSError):
            return asked(server, "GET", "/a", tls=True)[2] == b"in the box"

    until(comes_in, "room")


def test_files_and_words_go_from_client_to_client_under_tls_and_with_a_password(
    spawn, run, box, tmp_path
):
    server = spawn("server.py", box, "--tls", "--password", WORD)
    common = "--port", server.port, "--password", WORD, "--pin", pin_of(server)
    big = os.urandom(2_000_000)
    (tmp_path / "big").write_bytes(big)
    receiver = Process(
        ROOT / "client.py",
        *common,
        "receive",
        "--count",
        2,
        "--nick",
        "anna",
        "-o",
        tmp_path / "in",
    )
    told = receiver.wait_for("others send them with:  .* send PATH --to anna")[0]
    assert "grün" not in told
    done = run("client.py", *common, "send", tmp_path / "big", box / "a", "--to", "anna")
    assert done.code == 0 and receiver.wait() == 0, (done, receiver.err)
    assert (tmp_path / "in/big").read_bytes() == big and (
        tmp_path / "in/a"
    ).read_bytes() == b"in the box"
    with Student(server, WORD, tls=True) as one, Student(server, WORD, tls=True) as other:
        for number, student in enumerate((one, other)):
            student.log_in()
            assert student.say(f"chat n{number}").startswith(b"ok chat")
        assert (
            one.file.readline().startswith(b"joined n1") and other.say("say hello") == b"ok say\n"
        )
        assert one.file.readline() == b"said from=n1 hello\n"
