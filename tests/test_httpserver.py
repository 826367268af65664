"""httpserver.py on real bytes: how requests are read, how files are answered. The numbers are those of the rules that such servers break."""

import email.utils
import gzip
import hashlib
import itertools
import json
import os
import re
import socket
import tempfile
import threading
import time
from base64 import b64encode
from contextlib import ExitStack, suppress

import pytest
from conftest import DEADLINE, ROOT, until

NAMES = [
    "a b.txt",
    "ü.txt",
    "?#%;:&.txt",
    "new\nline",
    "quote\"'<img src=x onerror=alert(1)>",
    "\x1b[31mred",
    "~root",
    "-rf",
    "\u202eevil",
    "+plus",
]
RAW = [b"\xff\xfe.bin", *(name.encode() for name in NAMES)]


class Reply:
    def __init__(self, status, fields, body, whole):
        self.status, self.fields, self.body, self.whole = status, fields, body, whole

    def __repr__(self):
        return f"{self.status} {self.fields} {self.body[:300]!r}"


class Wire:
    """A connection on which requests are written as bytes and answers read as RFC 9112 frames them."""

    def __init__(self, server, narrow=False, source=None):
        self.sock = socket.socket() if narrow else None
        if source:
            place = server.host, server.port
            self.sock = socket.create_connection(place, DEADLINE, (source, 0))
        self.sock = self.sock or server.connect()
        # before connecting, or the kernel takes tens of megabytes for a client that does not read
        if narrow:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            self.sock.settimeout(DEADLINE)
            self.sock.connect((server.host, server.port))
        self.rest = b""

    def send(self, data):
        self.sent = data
        self.sock.sendall(data if isinstance(data, bytes) else data.encode("latin-1"))
        return self

    def more(self):
        chunk = self.sock.recv(1 << 18)
        self.rest += chunk
        return chunk

    def exactly(self, count):
        data = bytearray(self.rest)
        while len(data) < count and (chunk := self.sock.recv(1 << 20)):
            data += chunk
        self.rest = bytes(data[count:])
        return bytes(data[:count])

    def line(self):
        while b"\r\n" not in self.rest and self.more():
            pass
        line, _, self.rest = self.rest.partition(b"\r\n")
        return line

    def reply(self, head=False):
        status = int(self.line().split(b" ")[1])
        fields = {}
        while line := self.line():
            name, _, value = line.decode("latin-1").partition(": ")
            assert name.lower() not in fields, f"{name} twice"
            fields[name.lower()] = value
        if head or status < 200 or status in (204, 304):
            assert not (status < 200 or status == 204) or "content-length" not in fields
            return Reply(status, fields, b"", True)
        if "chunked" in fields.get("transfer-encoding", ""):
            body, whole = b"", False
            while size := int(self.line() or b"0", 16):
                body += self.exactly(size)
                assert self.line() == b""
            whole = self.line() == b""
        elif "content-length" in fields:
            size = int(fields["content-length"])
            body = self.exactly(size)
            whole = len(body) == size
        else:
            assert fields.get("connection") == "close"
            while self.more():
                pass
            body, whole, self.rest = self.rest, True, b""
        return Reply(status, fields, body, whole)

    def closed(self):
        with suppress(ConnectionResetError):
            return not self.rest and self.sock.recv(1) == b""
        return True

    def close(self):
        self.sock.close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "a.txt").write_bytes(b"hello\n")
    return tmp_path / "www"


@pytest.fixture
def server(spawn, folder):
    return spawn("httpserver.py", folder)


@pytest.fixture
def wire(server):
    made = []

    def connect(to=None, narrow=False, source=None):
        made.append(Wire(to or server, narrow, source))
        return made[-1]

    yield connect
    for each in made:
        each.close()


@pytest.fixture
def ask(wire, server):
    """One request on a connection of its own; the path may be bytes. Of what is refused the server reads for a while only, so that
    sending the rest may fail: the answer is there all the same."""

    def request(method, path, fields="", body=b"", to=None, length=True):
        line = (
            f"{method} ".encode()
            + (path if isinstance(path, bytes) else path.encode("latin-1"))
            + b" HTTP/1.1\r\nHost: localhost\r\n"
        )
        if length and (body or method in ("PUT", "POST", "PATCH")):
            fields += f"Content-Length: {len(body)}\r\n"
        connection = wire(to or server)
        with suppress(ConnectionError):
            connection.send(line + fields.encode("latin-1") + b"\r\n" + body)
        while (reply := connection.reply(head=method == "HEAD")).status < 200:
            pass
        return reply

    return request


def tree(folder):
    """Every file below a folder with its content, hidden ones too; but none that goes away meanwhile, as parts do."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            with suppress(FileNotFoundError), open(path, "rb") as file:
                found[os.fsencode(path)[len(os.fsencode(folder)) + 1 :]] = file.read()
    return found


def url(name):
    return "".join(
        chr(byte) if chr(byte).isalnum() and byte < 128 else f"%{byte:02x}" for byte in name
    )


# --- reading a request (rules 1 to 21) ---
GET = "GET /a.txt HTTP/1.1\r\nHost: localhost\r\n"
HEADS = [
    ("1 a header line without a colon", GET + "junk\r\nRange: bytes=0-0\r\n\r\n", 400),
    ("1 a space before the colon", GET + "Host : a\r\n\r\n", 400),
    ("1 an empty name", GET + ": a\r\n\r\n", 400),
    ("2 a folded line", GET + "X: a\r\n b\r\n\r\n", 400),
    ("3 a lone CR", GET + "X: a\rb\r\n\r\n", 400),
    ("3 a NUL", GET + "X: a\0b\r\n\r\n", 400),
    ("3 lone LFs are line ends", "GET /a.txt HTTP/1.1\nHost: localhost\n\n", 200),
    ("4 two spaces", "GET  /a.txt HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("4 a vertical tab", "GET\x0b/a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("4 a no-break space", "GET\xa0/a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("4 four words", "GET /a.txt x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("5 an empty line before", "\r\n" + GET + "\r\n", 200),
    ("6 HTTP/0.9", "GET /a.txt\r\n\r\n", 400),
    ("6 HTTP/0.9 by number", "GET /a.txt HTTP/0.9\r\n\r\n", 400),
    ("6 HTTP/2", "PRI * HTTP/2.0\r\n\r\n", 505),
    ("6 a later minor version", "GET /a.txt HTTP/1.2\r\nHost: localhost\r\n\r\n", 200),
    ("6 a version in words", "GET /a.txt HTTP/one\r\n\r\n", 400),
    ("7 no Host", "GET /a.txt HTTP/1.1\r\n\r\n", 400),
    ("7 no Host in 1.0", "GET /a.txt HTTP/1.0\r\n\r\n", 200),
    ("7 two Hosts", GET + "Host: localhost\r\n\r\n", 400),
    ("7 a Host that is none", "GET /a.txt HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("8 absolute form", "GET http://localhost/a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    (
        "8 absolute form without a path",
        "GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n",
        200,
    ),
    ("8 OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 204),
    ("8 CONNECT", "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    ("8 a path without slash", "GET a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    *(
        (
            f"9 Content-Length {value[:9]!r}",
            f"PUT /new HTTP/1.1\r\nHost: localhost\r\nContent-Length: {value}\r\n\r\n",
            400,
        )
        for value in (
            "+5",
            "-5",
            "1_0",
            "\xa05",
            "5 5",
            "0x5",
            "",
            "1e3",
            "5, 6",
            "9" * 9000,
            "5\r\nContent-Length: 6",
        )
    ),
    (
        "10 both lengths",
        GET.replace("GET", "PUT") + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    ("10 chunked in 1.0", "PUT /new HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (
        "10 an unknown coding",
        GET.replace("GET", "PUT") + "Transfer-Encoding: gzip, chunked\r\n\r\n",
        501,
    ),
    (
        "10 chunked is not last",
        GET.replace("GET", "PUT") + "Transfer-Encoding: chunked, gzip\r\n\r\n",
        400,
    ),
    (
        "10 chunked twice",
        GET.replace("GET", "PUT") + "Transfer-Encoding: chunked, chunked\r\n\r\n",
        400,
    ),
    ("15 an unknown expectation", GET + "Expect: coffee\r\n\r\n", 417),
    ("18 a long target", f"GET /{'a' * 9000} HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    ("18 an endless target", "GET /" + "a" * 40000, 414),
    ("18 a long header", GET + f"X: {'a' * 40000}\r\n\r\n", 431),
    ("18 many headers", GET + "X: a\r\n" * 200 + "\r\n", 431),
    ("19 NUL in the path", "GET /a%00.txt HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("19 a bad escape", "GET /a%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("19 half an escape", "GET /a%4 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("19 the query is not decoded", "GET /a.txt?%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    ("23 an unknown method", "BREW /a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
    (
        "23 a method named like an attribute",
        "__init__ /a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n",
        501,
    ),
    ("23 TRACE", "TRACE /a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    ("38 a foreign Host", "GET /a.txt HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
    (
        "38 a foreign host in absolute form",
        "GET http://evil.example/a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n",
        421,
    ),
    ("38 an address", "GET /a.txt HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", 200),
]


def test_heads_are_answered_as_the_rfc_says_whole_and_byte_by_byte(wire, server, full):
    wrong = []
    for what, head, status in HEADS:
        for way in ("whole", "bytewise") if full or len(head) < 300 else ("whole",):
            connection = wire()
            if way == "whole":
                connection.send(head)
            else:
                with suppress(ConnectionError):
                    for byte in head:
                        connection.send(byte)
            got = connection.reply(head=head.startswith("HEAD"))
            if (
                got.status != status
                or status == 400
                and got.fields.get("connection") != "close"
                and not what.startswith("19")
            ):
                wrong.append(f"{what}, {way}: got {got}, want {status}")
            connection.close()
    assert not wrong, "\n".join(wrong)
    assert server.connect()


def test_after_a_malformed_head_nothing_more_is_read_as_a_request(wire):
    connection = wire().send(GET + "junk\r\n\r\n" + GET + "\r\n")
    assert connection.reply().status == 400
    assert connection.closed()


# 21
def test_pipelined_requests_are_answered_in_order_also_behind_bodies_and_folders(wire, folder):
    (folder / "big").write_bytes(os.urandom(1 << 20))
    request = ["GET /a.txt", "PUT /up", "GET /", "HEAD /a.txt", "GET /big", "GET /none", "GET /up"]
    data = b"".join(
        f"{line} HTTP/1.1\r\nHost: localhost\r\n".encode()
        + (b"Content-Length: 4\r\n\r\nbody" if "PUT" in line else b"\r\n")
        for line in request
    )
    connection = wire().send(data * 10)
    for turn in range(10):
        replies = [connection.reply(head=line.startswith("HEAD")) for line in request]
        assert [reply.status for reply in replies] == [
            200,
            204 if turn else 201,
            200,
            200,
            200,
            404,
            200,
        ]
        assert replies[4].body == (folder / "big").read_bytes()
        assert replies[6].body == b"body"


BODIES = [
    ("PUT", "/up", 201),
    ("POST", "/a.txt/x", 404),
    ("GET", "/a.txt", 200),
    ("GET", "/none", 404),
    ("DELETE", "/none", 404),
    ("PUT", "/.hidden", 403),
    ("MKCOL", "/folder/", 415),
    ("BREW", "/", 501),
    ("HEAD", "/a.txt", 200),
    ("PUT", "/a.txt/", 409),
]


def test_a_body_never_becomes_the_next_request(wire):  # 13
    smuggled = b"DELETE /a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for (method, path, status), (framing, body) in itertools.product(
        BODIES,
        (
            (f"Content-Length: {len(smuggled)}", smuggled),
            ("Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(smuggled), smuggled)),
        ),
    ):
        connection = wire().send(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode()
            + body
            + GET.encode()
            + b"\r\n"
        )
        reply = connection.reply(head=method == "HEAD")
        assert reply.status in (status, 204 if status == 201 else status), (method, path, reply)
        if reply.fields.get("connection") != "close":
            assert connection.reply().body == b"hello\n"


def test_an_unwanted_body_that_breaks_takes_no_answer_away(wire, folder):  # 13
    for number, (framing, body) in enumerate(
        [
            ("Content-Length: 5", b"cut"),
            ("Transfer-Encoding: chunked", b"5\r\ncut"),
            ("Transfer-Encoding: chunked", b"zz\r\n"),
        ]
    ):
        (folder / str(number)).touch()
        connection = wire().send(
            f"DELETE /{number} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n".encode() + body
        )
        connection.sock.shutdown(socket.SHUT_WR)
        reply = connection.reply()
        assert (reply.status, reply.fields["connection"]) == (204, "close") and connection.closed()
    assert set(tree(folder)) == {b"a.txt"}


CHUNKED = [
    (b"5\r\nhello\r\n0\r\n\r\n", 201),
    (b"5;ext=1\r\nhello\r\n0\r\nX: y\r\n\r\n", 201),
    (b'5;a;b=c;d="e;\\"f"\r\nhello\r\n0;x\r\n\r\n', 201),
    (b"5;\r\nhello\r\n0\r\n\r\n", 400),
    (b"5 \r\nhello\r\n0\r\n\r\n", 400),
    (b"5 ;a\r\nhello\r\n0\r\n\r\n", 400),
    (b"5;a(b\r\nhello\r\n0\r\n\r\n", 400),
    (b"5;a=\r\nhello\r\n0\r\n\r\n", 400),
    (b'5;a="b\r\nhello\r\n0\r\n\r\n', 400),
    (b"5\r\nhello\r\n0;\r\n\r\n", 400),
    (b"0\r\n\r\n", 201),
    (b"00005\r\nhello\r\n0\r\n\r\n", 201),
    (b"+5\r\nhello\r\n0\r\n\r\n", 400),
    (b"0x5\r\nhello\r\n0\r\n\r\n", 400),
    (b"5\nhello\n0\n\n", 400),
    (b"5\r\nhelloX\r\n0\r\n\r\n", 400),
    (b" 5\r\nhello\r\n0\r\n\r\n", 400),
    (b"g\r\n", 400),
    (b"-1\r\n", 400),
    (b"ffffffffffffffffff\r\n", 400),
    (b"5;" + b"x" * 5000 + b"\r\nhello\r\n0\r\n\r\n", 400),
    (b"0\r\n" + b"X: y\r\n" * 5000 + b"\r\n", 400),
    (b"0\r\njunk\r\n\r\n", 400),
]


def test_chunks_are_read_strictly_whole_and_byte_by_byte(wire, folder):  # 11
    for (body, status), bytewise in itertools.product(CHUNKED, (False, True)):
        way = (
            [body[i : i + 1] for i in range(min(len(body), 100))] + [body[100:]]
            if bytewise
            else [body]
        )
        connection = wire().send(
            "PUT /new HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with suppress(ConnectionError):
            for part in way:
                connection.send(part)
        reply = connection.reply()
        assert reply.status == status, (body[:40], reply)
        if status == 201:
            assert (folder / "new").read_bytes() == (b"" if body[:2] == b"0\r" else b"hello")
            (folder / "new").unlink()
        assert set(tree(folder)) == {b"a.txt"}


def test_put_without_a_length_is_an_empty_file(ask, folder):  # 12
    assert ask("PUT", "/empty", length=False).status == 201
    assert (folder / "empty").read_bytes() == b""


def test_a_refused_upload_gets_its_answer_although_it_goes_on_sending(spawn, folder, wire):  # 14
    small = spawn("httpserver.py", folder, "--max-size", "1M")
    connection = wire(small).send(
        "PUT /big HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n"
    )
    with suppress(ConnectionError):
        for _ in range(20):
            connection.send(bytes(1 << 18))
    reply = connection.reply()
    assert (reply.status, reply.fields["connection"]) == (413, "close")
    connection = wire(small).send(
        "PUT /big HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with suppress(ConnectionError):
        for _ in range(20):
            connection.send(b"40000\r\n" + bytes(1 << 18) + b"\r\n")
    assert connection.reply().status == 413
    assert set(tree(folder)) == {b"a.txt"}


def test_continue_is_sent_only_when_the_body_is_wanted(wire, folder):  # 15
    expecting = (
        "PUT {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n{}\r\n"
    )
    for path, fields, status in (
        ("/a.txt", "If-None-Match: *\r\n", 412),
        ("/.x", "", 403),
        ("/n", "Origin: http://evil.example\r\n", 403),
    ):
        reply = wire().send(expecting.format(path, fields)).reply()
        assert (reply.status, reply.fields["connection"]) == (status, "close")
    connection = wire().send(expecting.format("/new", ""))
    assert connection.reply().status == 100
    assert connection.send("hello").reply().status == 201
    assert connection.send(GET + "\r\n").reply().body == b"hello\n"
    assert (folder / "new").read_bytes() == b"hello"


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 100\r\n\r\n12345",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n12",
    ],
)
def test_upload_cut_short_leaves_the_old_file(server, wire, folder, framing):  # 16
    for path in "a.txt", "new":
        connection = wire().send(f"PUT /{path} HTTP/1.1\r\nHost: localhost\r\n{framing}")
        until(lambda: len(tree(folder)) == 2, "the part")
        connection.close()
        until(lambda: tree(folder) == {b"a.txt": b"hello\n"}, "the part to be cleared away")
    server.wait_for(r'"PUT /new HTTP/1.1" 400 - "left in the body')


def test_connection_is_kept_and_closed_as_both_versions_say(wire):  # 17
    for head, keep, says in [
        ("1.1\r\nHost: localhost\r\n", True, None),
        ("1.1\r\nHost: localhost\r\nConnection: TE, Close\r\n", False, "close"),
        ("1.0\r\n", False, "close"),
        ("1.0\r\nConnection: x, Keep-Alive\r\n", True, "keep-alive"),
    ]:
        connection = wire().send(f"GET /a.txt HTTP/{head}\r\n")
        reply = connection.reply()
        assert reply.fields.get("connection") == says
        assert (
            connection.send(f"GET /a.txt HTTP/{head}\r\n").reply().status == 200
            if keep
            else connection.closed()
        )


def test_a_head_has_a_deadline_however_its_bytes_drip(spawn, folder, wire):  # 18
    server = spawn("httpserver.py", folder, "--timeout", "0.3")
    connection = wire(server).send("GET /a.txt HTTP/1.1\r\n")
    began = time.monotonic()
    with suppress(ConnectionError):
        while not server.err.count(" 408 "):
            connection.send("X")
            threading.Event().wait(0.02)
            assert time.monotonic() - began < DEADLINE
    assert connection.reply().status == 408
    idle = wire(server)  # says nothing: it may, and costs no thread
    assert idle.send(GET + "\r\n").reply().status == 200


# --- names ---
# 19, 20, 35, 37, 39
def test_odd_names_come_through_exactly_and_are_escaped_wherever_shown(server, ask, folder):
    for raw in RAW:
        reply = ask("PUT", "/" + url(raw), body=raw)
        assert reply.status == 201, (raw, reply)
        assert "\n" not in reply.fields["location"] and "\x1b" not in reply.fields["location"]
        assert ask("GET", reply.fields["location"]).body == raw
    assert {name: data for name, data in tree(folder).items() if name != b"a.txt"} == {
        raw: raw for raw in RAW
    }
    page = ask("GET", "/").body.decode()
    assert (
        "<img src=x" not in page
        and "\x1b" not in page.replace("\x1b", "", 0)
        or "&lt;img src=x" in page
    )
    assert "<img src=x onerror" not in page
    described = json.loads(ask("GET", "/", "Accept: application/json\r\n").body)
    json.dumps(described).encode("utf-8")
    assert {ask("GET", "/" + entry["href"]).body for entry in described} == {*RAW, b"hello\n"}
    lines = ask("GET", "/", "Accept: text/plain\r\n").body.decode("utf-8").splitlines()
    assert len(lines) == len(RAW) + 1 and "new%0Aline" in lines
    for raw in RAW:
        assert ask("DELETE", "/" + url(raw)).status == 204
    assert tree(folder) == {b"a.txt": b"hello\n"}
    server.wait_for(r"DELETE /%2bplus")
    assert "\x1b" not in server.err


def test_a_request_line_cannot_forge_a_log_line(server, wire):  # 39
    wire().send(b'GET /"\xff\x9b%0d%0a1.2.3.4 HTTP/1.1\r\nHost: localhost\r\n\r\n').reply()
    line = server.wait_for(r"^(.*)1\.2\.3\.4.*$")[0]
    assert re.fullmatch(
        r"127\.0\.0\.1 - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "
        r'"GET /\\x22\\xff\\x9b%0d%0a1\.2\.3\.4 HTTP/1\.1" 404 \d+ "[^"]*"',
        line,
    ), line


HOSTILE = [
    "/..",
    "/.",
    "/../",
    "/a/../a.txt",
    "//etc/passwd",
    "//",
    "/%2e%2e/x",
    "/..%2f..%2fetc%2fpasswd",
    "/%2fetc%2fpasswd",
    "/a%2fb",
    "/.hidden",
    "/sub/.hidden",
    "/.six-" + "0" * 32 + ".part",
    "/%2e%2e%2f",
    "/sub/%2e%2e",
    "/x/%2e/y",
]


def test_hostile_names_reach_nothing_outside_by_any_method(ask, folder):
    (folder.parent / "outside").write_bytes(b"secret")
    (folder / "sub").mkdir()
    (folder / ".hidden").write_bytes(b"secret")
    (folder / (".six-" + "0" * 32 + ".part")).write_bytes(b"secret")
    before = tree(folder.parent)
    for method, path in itertools.product(
        [
            "GET",
            "HEAD",
            "PUT",
            "POST",
            "DELETE",
            "MKCOL",
            "MOVE",
            "MOVE to",
            "GET ?tar",
            "GET ?zip",
        ],
        HOSTILE,
    ):
        if method == "MOVE to":
            reply = ask("MOVE", "/a.txt", f"Destination: {path}\r\n")
        else:
            reply = ask(
                method.split()[0],
                path + method.partition(" ")[2],
                "Destination: /moved\r\n" if method == "MOVE" else "",
                b"x" if method in ("PUT", "POST") else b"",
            )
        assert reply.status in (400, 403, 404, 409, 502), (method, path, reply)
        assert b"secret" not in reply.body
    assert tree(folder.parent) == before


def test_links_and_special_files_are_neither_followed_nor_opened(ask, folder):
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"secret")
    (folder / "leaf").symlink_to(outside / "f")
    (folder / "dir").symlink_to(outside)
    os.mkfifo(folder / "fifo")
    (folder / "sock").touch()
    (folder / "sock").unlink()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "sock"))
    with listener:
        methods, paths = (
            ("GET", "HEAD", "PUT", "POST", "DELETE", "MOVE", "MKCOL"),
            ("/leaf", "/dir/f", "/dir/", "/fifo", "/sock", "/dir/new"),
        )
        for method, path in itertools.product(methods, paths):
            reply = ask(
                method,
                path,
                "Destination: /moved\r\n" if method == "MOVE" else "",
                b"x" if method in ("PUT", "POST") else b"",
            )
            assert reply.status in (403, 404, 405, 409), (method, path, reply)
            assert b"secret" not in reply.body
    assert (outside / "f").read_bytes() == b"secret" and sorted(os.listdir(outside)) == ["f"]
    assert sorted(os.listdir(folder)) == ["a.txt", "dir", "fifo", "leaf", "sock"]


def test_a_link_planted_as_gzip_sidecar_or_index_or_in_a_folder_shows_nothing(ask, folder):
    secret = folder.parent / "secret"
    secret.write_bytes(b"secret")
    (folder / "a.txt.gz").symlink_to(secret)
    (folder / "index.html").symlink_to(secret)
    assert ask("GET", "/a.txt", "Accept-Encoding: gzip\r\n").body == b"hello\n"
    for path in "/", "/?tar", "/?zip":
        reply = ask("GET", path)
        assert (
            reply.status == 200
            and reply.whole
            and b"secret" not in reply.body
            and b"index.html" not in reply.body
        )


def test_the_longest_names_and_paths_are_answered(ask, folder):
    assert ask("PUT", "/" + "n" * 255, body=b"x").status == 201
    assert ask("PUT", "/" + "n" * 256, body=b"x").status == 400
    assert ask("GET", "/" + "n" * 256).status == 400
    assert ask("GET", "/" + "d/" * 2048 + "x").status == 404
    assert len(tree(folder)) == 2


def test_hidden_names_are_served_with_the_flag(spawn, folder, ask):
    (folder / ".profile").write_bytes(b"x")
    server = spawn("httpserver.py", folder, "--hidden")
    assert ask("GET", "/.profile", to=server).body == b"x"
    assert ask("GET", "/.six-" + "0" * 32 + ".part", to=server).status == 403


# --- answering (rules 22 to 29, 34 to 37) ---
def test_head_has_the_fields_of_get_and_no_body(wire, ask, folder):  # 22
    (folder / "sub").mkdir()
    for path in "/a.txt", "/", "/sub", "/none", "/?tar", "/?zip", "/%zz":
        got, head = ask("GET", path), ask("HEAD", path)
        drop = {"date"}
        assert {k: v for k, v in got.fields.items() if k not in drop} == {
            k: v for k, v in head.fields.items() if k not in drop
        }, path
        connection = wire().send(
            f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        connection.reply(head=True)
        assert connection.closed()


def test_a_head_that_is_refused_is_answered_without_a_body_too(wire, spawn, folder):  # 22
    hasty = spawn("httpserver.py", folder, "--timeout", "0.2")
    for head, to, status in (
        (" /a HTTP/1.1\r\njunk\r\n\r\n", None, 400),
        (f" /a HTTP/1.1\r\nX: {'a' * 40000}\r\n\r\n", None, 431),
        (" /a HTTP/1.1\r\n", hasty, 408),
    ):
        connection = wire(to).send("HEAD" + head)
        reply = connection.reply(head=True)
        assert (
            reply.status == status
            and int(reply.fields["content-length"]) > 0
            and connection.closed()
        ), (head[:40], reply, connection.rest)


def test_read_only_says_405_with_allow(spawn, folder, ask):  # 23
    server = spawn("httpserver.py", folder, "--read-only")
    for method in "PUT", "POST", "DELETE", "MKCOL", "MOVE", "PATCH":
        reply = ask(method, "/a.txt", to=server)
        assert (reply.status, reply.fields["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert tree(folder) == {b"a.txt": b"hello\n"}
    assert b'method="post"' not in ask("GET", "/", to=server).body


def test_head_and_small_body_leave_in_one_segment(server):  # 24
    with server.connect() as sock:
        # Nagle against delayed ACK would take 40 ms each, or split what is read
        for _ in range(50):
            sock.sendall((GET + "\r\n").encode())
            assert sock.recv(65536).endswith(b"\r\n\r\nhello\n")


# 25
def test_a_file_that_grows_or_shrinks_while_sent_is_never_taken_for_whole(wire, server, folder):
    size = 16 << 20  # more than the kernel's buffers take
    for change, whole in (
        (lambda file: file.write(b"more"), True),
        (lambda file: file.truncate(1000), False),
    ):
        (folder / "big").touch()
        os.truncate(folder / "big", size)
        connection = wire(narrow=True)
        connection.send("GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.more()
        with open(folder / "big", "ab") as file:
            change(file)
        reply = connection.reply()
        assert int(reply.fields["content-length"]) == size
        assert reply.whole == whole
        assert whole or connection.closed()
    server.wait_for('"ended at .* the file shrank')


def test_a_folder_without_slash_is_redirected_to_itself_and_nowhere_else(ask, folder):  # 26
    (folder / "sub").mkdir()
    (folder / "\\evil.com").mkdir()
    assert ask("GET", "/sub?a=b&c").fields["location"] == "/sub/?a=b&c"
    assert ask("GET", "/%5cevil.com").fields["location"] == "/%5Cevil.com/"
    assert ask("GET", "/\\evil.com").fields["location"] == "/%5Cevil.com/"
    for path in "//evil.com/%2f..", "/\\evil.com/..", "//evil.com", "//evil.com/..":
        assert "location" not in ask("GET", path).fields
    assert ask("GET", "/a.txt/").status == 404


def conditions(ask):
    first = ask("GET", "/a.txt").fields
    return first["etag"], first["last-modified"]


def test_preconditions_are_taken_in_their_order(ask, folder):  # 27
    os.utime(folder / "a.txt", (1e9, 1e9))
    tag, date = conditions(ask)
    past, future = (email.utils.formatdate(1e9 + shift, usegmt=True) for shift in (-10, 10))
    rows = [
        (f"If-Match: {tag}", 200),
        ('If-Match: "x"', 412),
        ("If-Match: *", 200),
        (f"If-Match: W/{tag}", 412),
        (f'If-Match: "x", {tag}', 200),
        (f"If-Unmodified-Since: {past}", 412),
        (f"If-Unmodified-Since: {date}", 200),
        ("If-Unmodified-Since: nonsense", 200),
        (f"If-Match: {tag}\r\nIf-Unmodified-Since: {past}", 200),
        (f"If-None-Match: {tag}", 304),
        (f"If-None-Match: W/{tag}", 304),
        ('If-None-Match: "x"', 200),
        ("If-None-Match: *", 304),
        (f"If-Modified-Since: {date}", 304),
        (f"If-Modified-Since: {past}", 200),
        (f"If-Modified-Since: {future}", 304),
        ("If-Modified-Since: 5", 200),
        (f'If-None-Match: "x"\r\nIf-Modified-Since: {future}', 200),
        (f'If-Match: "x"\r\nIf-None-Match: {tag}', 412),
        ("If-Modified-Since: Sunday, 09-Sep-01 01:46:40 GMT", 304),
        ("If-Modified-Since: Sun Sep  9 01:46:40 2001", 304),
    ]
    wrong = [
        (fields, got)
        for fields, want in rows
        if (got := ask("GET", "/a.txt", fields + "\r\n").status) != want
    ]
    assert not wrong
    reply = ask("GET", "/a.txt", f"If-None-Match: {tag}\r\n")
    assert "content-length" not in reply.fields and reply.fields["etag"] == tag


def test_a_date_without_a_zone_is_not_taken_for_local_time(spawn, ask, folder):  # 27
    os.utime(folder / "a.txt", (1e9, 1e9))
    for zone in "Asia/Tokyo", "America/New_York":
        server = spawn("httpserver.py", folder, env={"TZ": zone})
        for second, status in (40, 304), (39, 200):
            assert (
                ask(
                    "GET",
                    "/a.txt",
                    f"If-Modified-Since: Sun Sep  9 01:46:{second} 2001\r\n",
                    to=server,
                ).status
                == status
            ), zone


def test_preconditions_and_ranges_of_a_folder_with_a_page_of_its_own_are_those_of_that_page(
    ask, folder
):
    (folder / "index.html").write_bytes(b"<p>hello")
    for field, status in (
        ('If-Match: "x"', 412),
        ("If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT", 412),
        ("Range: bytes=100-", 416),
        ("Range: bytes=1-", 206),
        ("If-Match: *", 200),
    ):
        assert ask("GET", "/", field + "\r\n").status == status, field


def test_last_modified_is_never_later_than_date(ask, folder):  # 27
    os.utime(folder / "a.txt", (4e9, 4e9))
    fields = ask("GET", "/a.txt").fields
    assert email.utils.parsedate_to_datetime(
        fields["last-modified"]
    ) <= email.utils.parsedate_to_datetime(fields["date"])


def test_if_range_compares_strongly(ask, folder):  # 28
    os.utime(folder / "a.txt", (1e9, 1e9))
    tag, date = conditions(ask)
    rows = [
        (tag, 206),
        (f"W/{tag}", 200),
        ('"x"', 200),
        (date, 206),
        (email.utils.formatdate(1e9 + 1, usegmt=True), 200),
        ("nonsense", 200),
        ("", 200),
    ]
    assert [
        (value, ask("GET", "/a.txt", f"Range: bytes=0-1\r\nIf-Range: {value}\r\n").status)
        for value, _ in rows
    ] == rows


RANGES = [  # of hello\n
    ("bytes=0-0", 206, b"h"),
    ("bytes=1-", 206, b"ello\n"),
    ("bytes=-2", 206, b"o\n"),
    ("bytes=-100", 206, b"hello\n"),
    ("bytes=5-999", 206, b"\n"),
    ("bytes=6-", 416, None),
    ("bytes=-0", 416, None),
    ("bytes=2-1", 200, None),
    ("bytes=a-b", 200, None),
    ("lines=0-1", 200, None),
    ("bytes=", 200, None),
    ("bytes", 200, None),
    ("BYTES=0-1", 206, b"he"),
    ("bytes=0-1,1-2", 206, b"hel"),
    ("bytes=" + ",".join(["0-"] * 1000), 206, b"hello\n"),
    ("bytes=0-99999999999999999999999", 206, b"hello\n"),
    ("bytes= 0-0", 206, b"h"),
    ("bytes=-", 200, None),
    ("bytes=0-0,9-", 206, b"h"),
]


def test_ranges(ask):  # 29
    for value, status, body in RANGES:
        reply = ask("GET", "/a.txt", f"Range: {value}\r\n")
        assert reply.status == status, (value, reply)
        assert reply.body == (b"hello\n" if status == 200 else body) or status == 416
        assert status != 416 or reply.fields["content-range"] == "bytes */6"
        assert ask("HEAD", "/a.txt", f"Range: {value}\r\n").status == 200


def test_ranges_of_an_empty_file(ask, folder):  # 29
    (folder / "empty").touch()
    assert ask("GET", "/empty", "Range: bytes=0-\r\n").status == 416
    assert ask("GET", "/empty", "Range: bytes=-5\r\n").status == 200


def test_several_ranges_come_as_parts_and_many_cost_no_more_than_one(ask, folder):  # 29
    data = os.urandom(1000000)
    (folder / "big").write_bytes(data)
    reply = ask("GET", "/big", "Range: bytes=500000-500009,0-9,-10\r\n")
    mark = re.fullmatch("multipart/byteranges; boundary=(.*)", reply.fields["content-type"])[
        1
    ].encode()
    parts = [part.split(b"\r\n\r\n", 1) for part in reply.body.split(b"\r\n--" + mark)[1:-1]]
    assert [body for _, body in parts] == [data[:10], data[500000:500010], data[-10:]]
    assert b"Content-Range: bytes 500000-500009/1000000" in parts[1][0]
    assert (
        ask(
            "GET",
            "/big",
            "Range: bytes=" + ",".join(f"{n * 1000}-{n * 1000 + 1}" for n in range(100)) + "\r\n",
        ).status
        == 200
    )


def test_a_fresh_gz_beside_a_file_is_served_to_those_who_take_it(ask, folder):  # 34
    packed = gzip.compress(b"hello\n")
    (folder / "a.txt.gz").write_bytes(packed)
    plain, coded = ask("GET", "/a.txt"), ask("GET", "/a.txt", "Accept-Encoding: br, gzip\r\n")
    assert (coded.body, coded.fields["content-encoding"], coded.fields["content-type"]) == (
        packed,
        "gzip",
        plain.fields["content-type"],
    )
    assert (
        plain.fields["etag"] != coded.fields["etag"]
        and plain.fields["vary"] == coded.fields["vary"] == "Accept-Encoding"
    )
    assert (
        ask(
            "GET", "/a.txt", f"Accept-Encoding: gzip\r\nIf-None-Match: {coded.fields['etag']}\r\n"
        ).status
        == 304
    )
    for fields in (
        "Accept-Encoding: gzip;q=0\r\n",
        "Accept-Encoding: identity, *;q=0\r\n",
        "Accept-Encoding: gzip\r\nRange: bytes=0-\r\n",
    ):
        assert ask("GET", "/a.txt", fields).body == b"hello\n"
    named = ask("GET", "/a.txt.gz", "Accept-Encoding: gzip\r\n")
    assert (
        named.fields["content-type"] == "application/gzip"
        and "content-encoding" not in named.fields
    )
    os.utime(folder / "a.txt.gz", (1, 1))
    assert ask("GET", "/a.txt", "Accept-Encoding: gzip\r\n").body == b"hello\n"


def test_files_that_the_loop_sends_are_whole_and_in_order_for_a_client_that_reads_slowly(
    wire, folder
):
    """20 MiB of them: the kernel has room for a part, so the loop waits in the middle of a file."""
    names = [f"f{number}" for number in range(20)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(bytes([number]) * (1 << 20))
    requests = "".join(f"GET /{name} HTTP/1.1\r\nHost: localhost\r\n\r\n" for name in names)
    connection = wire(narrow=True).send(requests)
    for number in range(20):
        assert connection.reply().body == bytes([number]) * (1 << 20), number


def test_a_client_that_leaves_is_one_log_line(server, wire, folder):  # 36
    (folder / "big").write_bytes(bytes(50 << 20))
    connection = wire(narrow=True).send("GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
    connection.more()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    server.wait_for(r'"GET /big HTTP/1.1" 200 [-\d]+ "ended at \d+ of 52428800 bytes: ')
    assert wire().send(GET + "\r\n").reply().status == 200
    assert server.err.count("GET /big") == 1


def test_uploaded_pages_cannot_run_script_here(spawn, folder, ask):  # 37
    for name in "x.html", "x.svg", "x.xhtml", "x.xml", "index.html":
        (folder / name).write_bytes(b"<script>alert(1)</script>")
        reply = ask("GET", "/" + name)
        assert (
            reply.fields["content-security-policy"],
            reply.fields["x-content-type-options"],
        ) == ("sandbox", "nosniff")
    assert ask("GET", "/").fields["content-security-policy"] == "sandbox"
    server = spawn("httpserver.py", folder, "--read-only")
    assert "content-security-policy" not in ask("GET", "/", to=server).fields


def test_the_page_has_a_strict_policy_and_a_listing_varies_by_accept(ask):  # 34, 37
    fields = ask("GET", "/", "Accept: text/html,*/*;q=0.8\r\n").fields
    assert fields["vary"] == "Accept" and fields["content-security-policy"].startswith(
        "default-src 'none'; script-src 'sha256-"
    )
    assert "unsafe" not in fields["content-security-policy"]
    for accept, kind in (
        ("application/json", "application/json"),
        ("text/plain", "text/plain"),
        ("*/*", "text/html"),
        ("application/json;q=0, text/html", "text/html"),
        ("text/html;q=0.5, application/json", "application/json"),
    ):
        assert ask("GET", "/", f"Accept: {accept}\r\n").fields["content-type"].startswith(kind), (
            accept
        )


def test_a_time_that_is_none_takes_no_listing_away(spawn, ask):
    # most disks keep no such time
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.path.isdir("/dev/shm") else None
    ) as folder:
        for name, when in ("far", 1 << 62), ("past", -(1 << 60)):
            with open(os.path.join(folder, name), "wb") as file:
                os.utime(file.fileno(), (when, when))
        server = spawn("httpserver.py", folder)
        for kind in "text/html", "application/json", "text/plain":
            reply = ask("GET", "/", f"Accept: {kind}\r\n", to=server)
            assert reply.whole and b"far" in reply.body
        for path in "/far", "/past", "/?tar", "/?zip":
            reply = ask("GET", path, to=server)
            assert reply.whole and reply.status == 200, path


def test_changes_from_a_foreign_page_are_refused(ask, folder):  # 38
    for method in "PUT", "POST", "DELETE", "MKCOL", "MOVE", "PATCH":
        for origin in "http://evil.example", "null", "http://localhost:1":
            assert ask(method, "/a.txt", f"Origin: {origin}\r\n").status == 403
    assert ask("PUT", "/own", "Origin: http://localhost\r\n").status == 201
    assert (
        ask(
            "PUT", "/own", "Origin: https://files.example\r\nX-Forwarded-Host: files.example\r\n"
        ).status
        == 204
    )
    assert ask("GET", "/a.txt", "Origin: http://evil.example\r\n").status == 200


def test_starting_looks_up_no_name(spawn, folder):  # 40
    source = (ROOT / "httpserver.py").read_text()
    assert "getfqdn(" not in source
    assert spawn("httpserver.py", folder)


def test_digests_that_are_forgotten_at_the_same_moment_disturb_no_answer(
    spawn, folder, wire, ask, tmp_path
):
    for name in "b", "c":
        (folder / name).write_text(name)
    script = tmp_path / "forget.py"
    script.write_text(
        f"import sys, threading\nfrom contextlib import suppress\nsys.path.insert(0, {str(ROOT)!r})\nimport httpserver\n"
        "both, init, httpserver.MAX_DIGESTS = threading.Barrier(2), httpserver.Server.__init__, 1\n"
        "class Meeting(dict):\n    def pop(self, key):\n        del self[key]\n"
        "    def __delitem__(self, key):\n        with suppress(threading.BrokenBarrierError):\n            both.wait(1)\n        super().__delitem__(key)\n"
        "def begin(self, *args):\n    init(self, *args)\n    self.digests = Meeting()\n"
        "httpserver.Server.__init__ = begin\nsys.exit(httpserver.main())\n"
    )
    server, want = spawn(str(script), folder), "Want-Repr-Digest: sha-256=1\r\n"
    assert ask("GET", "/a.txt", want, to=server).status == 200
    pair = [
        wire(server).send(f"GET /{name} HTTP/1.1\r\nHost: localhost\r\n{want}\r\n") for name in "bc"
    ]
    assert [connection.reply().body for connection in pair] == [b"b", b"c"], server.err


# --- answers that are remembered ---
REMEMBERING = """
import itertools, sys
sys.path.insert(0, {root!r})
import httpserver
httpserver.UNCHANGED, get_file, count = -1e9, httpserver.get_file, itertools.count()
def numbered(*args):
    answer = get_file(*args)
    answer.fields["Number"] = str(next(count))
    return answer
httpserver.get_file = numbered
sys.exit(httpserver.main())
"""


@pytest.fixture
def remembering(spawn, folder, tmp_path, wire):
    """A server that numbers its answers of a file when it makes them; and what asks it twice, to get what was remembered if anything was."""
    (tmp_path / "remembering.py").write_text(REMEMBERING.format(root=str(ROOT)))

    def start(*flags):
        server = spawn(str(tmp_path / "remembering.py"), folder, *flags)
        connection = wire(server)

        def twice(path="/a.txt", fields="", method="GET"):
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"
            first, second = (connection.send(head).reply(method == "HEAD") for _ in range(2))
            assert (first.status, first.body) == (second.status, second.body)
            assert first.fields.keys() == second.fields.keys()
            number = first.fields.get("number")
            return second, number is not None and number == second.fields["number"]

        return server, twice

    return start


def test_the_answer_to_the_same_head_is_remembered_for_as_long_as_its_file_stays_the_same(
    remembering, folder
):
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "deep" / "f").write_bytes(b"data\n")
    (folder / "large").write_bytes(b"x" * 16385)
    (folder / "larger").write_bytes(b"x" * 400000)
    server, twice = remembering()
    path, tag = folder / "a.txt", twice()[0].fields["etag"]
    browser = "Accept-Encoding: gzip, deflate, br\r\nCookie: a=b\r\n"
    for asked in (
        [],
        ["/a.txt", browser],
        ["/sub/deep/f", browser],
        ["/a.txt", "", "HEAD"],
        ["/a.txt", f"If-None-Match: {tag}\r\n"],
    ):
        reply, remembered = twice(*asked)
        assert remembered and reply.status in (200, 304), asked
    for asked in (
        ["/large"],
        ["/larger"],
        ["/a.txt", "Range: bytes=0-1\r\n"],
        ["/a.txt", "If-Match: no\r\n"],
    ):
        assert not twice(*asked)[1], asked
    # changed in place, with its size and time
    info = path.stat()
    path.write_bytes(b"jelly\n")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert twice()[0].body == b"jelly\n" == twice(fields=browser)[0].body
    (folder / "new").write_bytes(b"other\n")
    os.replace(folder / "new", path)
    assert twice()[0].body == b"other\n"
    assert twice("/a.txt", f"If-None-Match: {tag}\r\n")[0].body == b"other\n"
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"other\n"))
    assert twice(fields=browser)[0].fields["content-encoding"] == "gzip"
    assert twice()[0].body == b"other\n"
    (folder / "a.txt.gz").unlink()
    assert twice(fields=browser)[0].body == b"other\n"
    path.unlink()
    assert twice()[0].status == 404
    path.symlink_to("new")
    assert twice()[0].status == 403
    path.unlink()
    path.mkdir()
    assert twice()[0].status == 308


def test_the_answer_is_remembered_too_where_each_request_has_a_connection_of_its_own(
    remembering, folder, ask
):
    server, _ = remembering()
    first, second = (ask("GET", "/a.txt", "Connection: close\r\n", to=server) for _ in range(2))
    assert first.fields["number"] == second.fields["number"] == "0"
    assert second.body == b"hello\n" and second.fields["connection"] == "close"
    (folder / "a.txt").write_bytes(b"other\n")
    assert ask("GET", "/a.txt", "Connection: close\r\n", to=server).body == b"other\n"


def test_what_was_remembered_is_not_served_through_a_folder_that_became_a_link(
    remembering, folder, tmp_path
):
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "deep" / "f").write_bytes(b"data\n")
    server, twice = remembering()
    assert twice("/sub/deep/f")[1]
    for moved in folder / "sub", folder / "sub" / "deep":
        moved.rename(tmp_path / "elsewhere")
        moved.symlink_to(tmp_path / "elsewhere")
        assert twice("/sub/deep/f")[0].status == 404
        moved.unlink()
        assert twice("/sub/deep/f")[0].status == 404
        (tmp_path / "elsewhere").rename(moved)
        assert twice("/sub/deep/f")[1]


def test_nothing_that_a_password_decides_is_remembered(remembering, folder):
    server, twice = remembering("--password", "word")
    login = f"Authorization: Basic {b64encode(b'a:word').decode()}\r\n"
    reply, remembered = twice("/a.txt", login)
    assert reply.body == b"hello\n" and not remembered
    wrong = f"Authorization: Basic {b64encode(b'a:no').decode()}\r\n"
    assert [twice("/a.txt", wrong)[0].status for _ in range(5)] == [401] * 5
    assert twice("/a.txt", login)[0].status == 429


def test_a_file_that_has_just_changed_is_not_remembered_and_dates_go_on(wire, folder):
    (folder / "a.txt").write_bytes(b"first\n")
    connection = wire()
    for number in range(50):
        (folder / "a.txt").write_bytes(b"%05d\n" % number)  # within one tick of its times
        assert connection.send(GET + "\r\n").reply().body == b"%05d\n" % number
    os.utime(folder / "a.txt", (1, 1))
    first = connection.send(GET + "\r\n").reply().fields["date"]
    until(lambda: connection.send(GET + "\r\n").reply().fields["date"] != first, "another second")


def test_text_that_is_not_utf8_is_not_announced_as_utf8(ask, folder):
    for data, charset in [
        (b"", "; charset=utf-8"),
        ("ü".encode() * 50000, "; charset=utf-8"),
        (b"x" + "ü".encode() * 50000, "; charset=utf-8"),  # the first bytes end within one
        ("Grüße".encode("latin-1"), ""),
        ("ü".encode("utf-16"), ""),
    ]:
        (folder / "t.txt").write_bytes(data)
        for method in "GET", "HEAD":
            assert ask(method, "/t.txt").fields["content-type"] == "text/plain" + charset, data[:9]


def test_a_host_of_ones_own_is_served_if_it_is_allowed_or_each_request_needs_the_password(
    spawn, folder, ask
):
    def status(server, host, fields=""):
        reply = Wire(server).send(f"GET /a.txt HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n").reply()
        return reply.status, reply.body

    server = spawn("httpserver.py", folder, "--allow-host", "Files.example", "--allow-host", "b.c")
    for host, expected in [
        ("files.example", 200),
        ("FILES.example.:8000", 200),
        ("b.c", 200),
        ("localhost", 200),
        ("x.files.example", 421),
        ("example", 421),
    ]:
        assert status(server, host)[0] == expected, host
    assert b"--allow-host" in status(server, "evil.example")[1]
    assert status(spawn("httpserver.py", folder, "--allow-host", "*"), "any.example")[0] == 200
    login = f"Authorization: Basic {b64encode(b'a:word').decode()}\r\n"
    server = spawn("httpserver.py", folder, "--password", "word")
    assert [status(server, "any.example", each)[0] for each in ("", login)] == [401, 200]
    server = spawn("httpserver.py", folder, "--password", "word", "--public-read")
    assert [status(server, "any.example", each)[0] for each in ("", login)] == [421, 421]


def test_no_redirect_is_kept_by_a_browser(spawn, ask, folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "f").touch()
    for server, path in (
        (spawn("httpserver.py", folder), "/sub"),
        (
            spawn("httpserver.py", folder / "a.txt"),
            "/",
        ),
    ):
        reply = ask("GET", path, to=server)
        assert (reply.status, reply.fields["cache-control"]) == (308, "no-store")


def test_the_log_names_the_user_of_a_right_login_and_of_no_other(spawn, folder, ask):
    server = spawn("httpserver.py", folder, "--password", "word", "--public-read")

    def put(login):
        secret = b64encode(login).decode()
        return ask("PUT", "/x", f"Authorization: Basic {secret}\r\n", to=server).status

    assert [put(b"Anna B\xc3\xbc:word"), put(b"eve:no"), put(b":word")] == [201, 401, 204]
    assert ask("GET", "/a.txt", to=server).status == 200
    users = re.findall(r"^127\.0\.0\.1 - (\S+) \[", server.stop(), re.M)
    # a line is written when its answer is sent, and the next one may be quicker
    assert sorted(users) == ["-", "-", "-", "Anna%20B%C3%BC"]


@pytest.mark.parametrize(
    "words", [["-p", "0"], ["-p0", "-b", "127.0.0.1"], ["--bind", "127.0.0.1", "-d", "www"], []]
)
def test_it_is_started_as_people_know_it_from_http_server(words, spawn, folder, ask):
    for number in ["8123"] if not words else []:
        (folder.parent / number).mkdir()  # it is a folder's name: that is shared
        (folder.parent / number / "a.txt").write_bytes(b"hello\n")
        words = [number]
    path = "/a.txt" if "-d" in words or words == ["8123"] else "/www/a.txt"
    assert ask("GET", path, to=spawn("httpserver.py", *words, cwd=folder.parent)).body == b"hello\n"


def test_a_number_that_is_no_name_here_is_the_port(run, folder):
    done = run("httpserver.py", "70000", cwd=folder)
    assert done.code == 2 and "'70000' is not a number from 0 to 65535" in done.err


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="only Linux tells it")
def test_at_the_start_each_address_is_told_one_url_a_line(spawn, folder):
    server = spawn("httpserver.py", folder, "--host", "::", "--open")
    server.wait_for("--tls encrypts")
    first, *more = re.search(
        r"from another machine:  (http\S+)\n((?: +http\S+\n)*)or:  python3 httpclient", server.err
    )[0].split()[3:-3]
    with open("/proc/net/if_inet6") as table:
        there = [line.split() for line in table]
    urls = [first, *more]
    assert len(set(urls)) == len(urls) and not any("[::1]" in url or "127." in url for url in urls)
    for _, _, _, scope, _, name in there:
        if scope == "20":
            assert any(f"%25{name}]" in url for url in urls)


def test_index_types_and_own_headers(spawn, folder, ask):
    (folder / "index.html").write_bytes(b"<p>front")
    server = spawn(
        "httpserver.py",
        folder,
        "--header",
        "Access-Control-Allow-Origin: *",
        "--header",
        "X-One: 1",
    )
    reply = ask("GET", "/", to=server)
    assert (
        reply.body,
        reply.fields["content-type"],
        reply.fields["access-control-allow-origin"],
    ) == (b"<p>front", "text/html; charset=utf-8", "*")
    assert b"front" not in ask("GET", "/", "Accept: application/json\r\n", to=server).body
    assert reply.fields["vary"] == "Accept, Accept-Encoding"
    for name, kind in (
        ("x.tar.gz", "application/gzip"),
        ("x.unknown", "application/octet-stream"),
        ("x.JPG", "image/jpeg"),
        ("x.css", "text/css; charset=utf-8"),
    ):
        (folder / name).touch()
        assert ask("GET", "/" + name, to=server).fields["content-type"] == kind


def test_a_digest_is_computed_when_it_is_asked_for(ask, folder):
    want = "sha-256=:" + b64encode(hashlib.sha256(b"hello\n").digest()).decode() + ":"
    assert ask("GET", "/a.txt", "Want-Repr-Digest: sha-256=10\r\n").fields["repr-digest"] == want
    assert (
        ask("GET", "/a.txt", "Want-Repr-Digest: sha-256=10\r\nRange: bytes=0-1\r\n").fields[
            "repr-digest"
        ]
        == want
    )
    assert (
        "repr-digest"
        not in ask("GET", "/a.txt", "Want-Repr-Digest: sha-512=3, sha-256=0\r\n").fields
    )
    (folder / "a.txt").write_bytes(b"HELLO\n")
    assert ask("GET", "/a.txt", "Want-Repr-Digest: sha-256=1\r\n").fields["repr-digest"] != want


def test_every_answer_says_that_no_other_site_may_embed_it(spawn, folder, ask, wire):
    (folder / "sub").mkdir()
    tag = ask("GET", "/a.txt").fields["etag"]
    replies = [
        ask(method, path, fields)
        for method, path, fields in (
            ("GET", "/a.txt", ""),
            ("HEAD", "/a.txt", ""),
            ("GET", "/a.txt", f"If-None-Match: {tag}\r\n"),
            ("GET", "/a.txt", "Range: bytes=0-1,4-5\r\n"),
            ("GET", "/", ""),
            ("GET", "/", "Accept: application/json\r\n"),
            ("GET", "/?tar", ""),
            ("GET", "/?zip", ""),
            ("GET", "/sub", ""),
            ("GET", "/none", ""),
            ("OPTIONS", "/", ""),
            ("PUT", "/new", ""),
            ("BREW", "/", ""),
        )
    ]
    replies.append(wire().send("nonsense\r\n\r\n").reply())
    secret = spawn("httpserver.py", folder, "--password", "x")
    replies.append(ask("GET", "/a.txt", to=secret))
    wrong = [
        reply
        for reply in replies
        if reply.fields.get("cross-origin-resource-policy") != "same-origin"
    ]
    assert not wrong, wrong


def test_a_header_that_is_given_replaces_the_servers_own_in_whatever_case(spawn, folder, ask):
    given = {
        "cross-origin-RESOURCE-policy": "cross-origin",
        "cache-control": "max-age=60",
        "ETAG": '"mine"',
        "content-type": "text/plain",
        "Date": "Thu, 01 Jan 1970 00:00:00 GMT",
        "CONNECTION": "close",
        "Content-security-policy": "default-src *",
    }
    more = [word for name, value in given.items() for word in ("--header", f"{name}: {value}")]
    # reply() asserts that no field comes twice
    server = spawn("httpserver.py", folder, *more)
    for path in "/a.txt", "/", "/none", "/?tar":
        fields = ask("GET", path, "Connection: close\r\n", to=server).fields
        assert {name.lower(): fields[name.lower()] for name in given} == {
            name.lower(): value for name, value in given.items()
        }


def test_of_a_header_that_is_given_twice_both_are_sent(spawn, folder):
    server = spawn("httpserver.py", folder, "--header", "Link: <a>", "--header", "link: <b>")
    with server.connect() as sock:
        sock.sendall(b"GET /a.txt HTTP/1.0\r\n\r\n")
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    assert b"\r\nLink: <a>\r\nlink: <b>\r\n" in data


@pytest.mark.parametrize(
    "name", ["content-length", "Transfer-Encoding", "Content-Range", "trailer"]
)
def test_a_header_that_says_where_an_answer_ends_cannot_be_given(run, folder, name):
    done = run("httpserver.py", folder, "--port", "0", "--header", f"{name}: 5")
    assert done.code == 2 and done.err.startswith("error: ") and name in done.err, done
    assert done.out == b"" and len(done.err.splitlines()) == 3


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="the kernel tells no timers")
def test_a_client_that_vanished_while_idle_is_noticed_in_two_minutes(server, wire):
    connection = wire()
    assert connection.send(GET + "\r\n").reply().status == 200
    ends = [f"0100007F:{port:04X}" for port in (server.port, connection.sock.getsockname()[1])]

    def timer():
        """Which one the kernel has set for the server's end, and the hundredths of a second that are left. 2 is keepalive."""
        with open("/proc/net/tcp") as table:
            rows = [line.split() for line in table]
        kind, _, left = next(row[5] for row in rows if row[1:3] == ends).partition(":")
        return int(kind, 16) == 2 and int(left, 16)

    # the last answer has first to be acknowledged
    assert until(timer, "the keepalive timer") <= 6100


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_connections_that_linger_are_bounded(spawn, tmp_path):
    server = spawn("httpserver.py", tmp_path, "--max-clients", "1")
    with ExitStack() as stack:
        for _ in range(400):
            last = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        last.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert last.recv(12).startswith(b"HTTP/1.1 ")
        assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 300
