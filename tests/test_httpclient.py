"""httpclient.py: its pure functions as tables, and what it does with canned bytes, cuts, and python's own http.server."""

import contextlib
import gzip
import hashlib
import http.server
import importlib.util
import itertools
import json
import os
import random
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib

import pytest
from conftest import COMPILED, DEADLINE, ROOT, Listener, Process, interpreters, until

SCRIPT = ROOT / "httpclient.py"
spec = importlib.util.spec_from_file_location("httpclient", SCRIPT)
h = importlib.util.module_from_spec(spec)
sys.modules["httpclient"] = h
spec.loader.exec_module(h)
DATE = "Date: Mon, 05 Jan 2026 10:00:00 GMT\r\nLast-Modified: Sun, 04 Jan 2026 10:00:00 GMT\r\n"
MTIME = 1767520800  # that Last-Modified
EXPECTANT = (
    "-c",
    (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h; h.EXPECT_WAIT = {DEADLINE}\n"
        "sys.exit(h.main())"
    ),
)  # waits for the server's word until it comes


def answer(body=b"", status="200 OK", headers="", length=True):
    size = f"Content-Length: {len(body)}\r\n" if length else ""
    return f"HTTP/1.1 {status}\r\n{size}{headers}Connection: close\r\n\r\n".encode() + body


class Files(Listener):
    """A small HTTP server for one body: ranges, If-Range and HEAD, with everything that a test wants to bend."""

    def __init__(
        self, body, etag='"a"', headers="", ranges=True, cuts=(), resets=False, hook=None, port=0
    ):
        self.body, self.etag, self.headers, self.ranges, self.resets, self.hook = (
            body,
            etag,
            headers,
            ranges,
            resets,
            hook,
        )
        self.cuts = list(cuts)  # each: bytes of body after which one response is cut off
        # bytes of body that left here, counted before: the client may have ended before send()
        # returns
        self.sent = 0
        self.heads = []
        self.lock = threading.Lock()
        super().__init__(self.talk, port)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/file.bin"

    def talk(self, conn):
        conn.settimeout(DEADLINE)
        file = conn.makefile("rb")
        while head := self.read_head(file):
            if not self.respond(conn, head):
                return

    def read_head(self, file):
        lines = []
        while (line := file.readline()) not in (b"\r\n", b""):
            lines.append(line.decode().strip())
        with self.lock:
            self.heads.append("\n".join(lines))
        return "\n".join(lines)

    def respond(self, conn, head):
        if self.hook and (bent := self.hook(head)):
            conn.sendall(bent)
            return b"Connection: close" not in bent
        start, end, size = 0, len(self.body), len(self.body)
        asked = re.search(r"Range: bytes=(\d+)-(\d*)", head)
        fresh = re.search(r"If-Range: (.*)", head)
        status = "200 OK"
        if self.ranges and asked and (not fresh or fresh[1] == self.etag):
            start, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else end
            status = "206 Partial Content"
            if start >= size:
                conn.sendall(
                    f"HTTP/1.1 416 No\r\nContent-Range: bytes */{size}\r\nETag: {self.etag}\r\nContent-Length: 0\r\n\r\n".encode()
                )
                return True
        span = (
            f"Content-Range: bytes {start}-{end - 1}/{size}\r\n" if status.startswith("206") else ""
        )
        etag = f"ETag: {self.etag}\r\n" if self.etag else ""
        etag += "Accept-Ranges: bytes\r\n" if self.ranges else ""
        conn.sendall(
            f"HTTP/1.1 {status}\r\nContent-Length: {end - start}\r\n{span}{etag}{self.headers}\r\n".encode()
        )
        if head.startswith("HEAD"):
            return True
        with self.lock:
            cut = self.cuts.pop(0) if self.cuts and end - start > self.cuts[0] else None
        part = self.body[start:end] if cut is None else self.body[start : start + cut]
        for at in range(0, len(part), 65536):
            with self.lock:
                self.sent += len(part[at : at + 65536])
            conn.sendall(part[at : at + 65536])
        # linger 0: RST, as a lost link looks in the end
        if cut is not None and self.resets and len(self.cuts) % 2:
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        elif cut is not None:  # to close before all requests are read would be a reset, too
            conn.shutdown(socket.SHUT_WR)
            while conn.recv(65536):
                pass
        return cut is None


@pytest.fixture
def files(listeners):
    def start(*args, **more):
        listeners.append(Files(*args, **more))
        return listeners[-1]

    return start


def get(run, tmp_path, *args, **more):
    return run("httpclient.py", "get", *args, cwd=tmp_path, **more)


def told(done):
    """The counts in the last line about a folder: files that came or went, those that were there, failures."""
    found = re.search(
        r"^(?:mirror|upload): (\d+) files?, .*?(?:; (\d+) already there)?(?:; skipped [^;]*)?(?:; (\d+) failed)?\n\Z",
        done.err,
        re.M,
    )
    return tuple(int(count or 0) for count in found.groups())


def names(folder):
    return sorted(os.listdir(folder))


# --- pure functions ---
@pytest.mark.parametrize(
    "text, full",
    [
        ("http://h", "http://h/"),
        ("http://h:80/a", "http://h/a"),
        ("http://h:8000/a b", "http://h:8000/a%20b"),
        ("http://h/%41%zz", "http://h/%41%25zz"),
        ("http://h/ü?q=ö x#frag", "http://h/%C3%BC?q=%C3%B6%20x"),
        ("http://[::1]:8000/", "http://[::1]:8000/"),
        ("https://h:443/", "https://h/"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://h/a\r\nX: y", "http://h/aX:%20y"),
    ],
)
def test_urls_are_encoded_once(text, full):
    assert h.parse_url(text).full == full


def test_a_login_and_a_signature_never_show_in_a_urls_text():
    url = h.parse_url("http://me:s%20cret@h/a?X-Amz-Signature=abc")
    assert url.login == "me:s cret"
    assert str(url) == "http://h/a?..."
    # bytes of a command line that is not UTF-8
    assert h.parse_url("http://\udcff:%fe@h/").login == "\udcff:\udcfe"


@pytest.mark.parametrize(
    "text",
    [
        "ftp://h/",
        "http://",
        "http://h:99999/",
        "http://[::1/",
        "file:///etc/passwd",
        "https://../x",
        "https://.h/",
        "https://a..b/",
        f"https://{'a' * 64}.h/",
        "http://a b/",
        "http://a\0b/",
        "http://a\x7f:80/",
        "http://\x1b[31m/",
        "http://u:secret@h:99999/",
        "http://u:secret/x@h/",
        "ftp://u:x@secret@h/",
        "http://u:\nsecret/x@h/",
    ],
)
def test_what_is_no_http_url_is_usage(text):
    with pytest.raises(h.Failure) as caught:
        h.parse_url(text)
    assert caught.value.code == 2 and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/2 200 OK\n\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"\x15\x03\x01\n\n",
        b"HTTP/1.1 200 OK\r\njunk\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nHost : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
    ],
)
def test_a_malformed_head_is_refused(raw):
    with pytest.raises(ValueError):
        h.parse_head(raw)


def test_a_head_is_read_as_the_rfc_says():
    head = h.parse_head(
        b"HTTP/1.1 200\r\nA: 1\r\na:2 \r\nFold: x\r\n  y\r\nContent-Length: 5, 5\r\n\r\n"
    )
    assert (head.status, head.reason, head.get("a"), head.get("fold"), head.length) == (
        200,
        "",
        "1, 2",
        "x y",
        5,
    )


@pytest.mark.parametrize("value", ["5", " 5 ", "5, 5", "5,05,5"])
def test_equal_content_lengths_are_one(value):
    raw = f"HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\n"
    assert h.parse_head(raw.encode()).length == 5


@pytest.mark.parametrize("value", ["+5", "1_0", "-1", "0x5", "", "5, 6", "9" * 30, "\u0665"])
def test_a_content_length_is_digits_alone(value):
    with pytest.raises(ValueError):
        _ = h.parse_head(f"HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\n".encode()).length


@pytest.mark.parametrize(
    "value, want",
    [
        ('attachment; filename="a b.txt"', "a b.txt"),
        ("attachment; filename=a.txt", "a.txt"),
        (r'inline; filename="a\"b"', 'a"b'),
        ("attachment; filename=x; filename*=UTF-8''%C3%BC.txt", "ü.txt"),
        ("inline", ""),
        ("attachment; filename=", ""),
        ("attachment; filename*=UTF-8''\udcff%FE", "\udcff\udcfe"),
    ],
)
def test_content_disposition(value, want):
    assert h.disposition_name(value) == want


@pytest.mark.parametrize(
    "name, want",
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\x.txt", "x.txt"),
        (".bashrc", "_bashrc"),
        ("..", "_."),
        ("", "index.html"),
        ("a\nb\x1b[31m\x9b", "a_b_[31m_"),
        ("ü ü.txt", "ü ü.txt"),
        ("x" * 300 + ".txt", "x" * 200 + ".txt"),
        ("a/", "index.html"),
        ("-rf", "-rf"),
    ],
)
def test_a_proposed_name_is_made_safe(name, want):
    assert h.safe_name(name) == want


@pytest.mark.parametrize(
    "name, want",
    [
        ("a", True),
        ("a b\n\"'", True),
        ("\udcff", True),
        ("..", False),
        (".", False),
        ("", False),
        ("a/b", False),
        ("a\0", False),
        (".git", False),
        (".six-" + "0" * 32 + ".part", False),
        ("-rf", True),
        ("~root", True),
    ],
)
def test_names_from_an_index(name, want):
    assert h.check_name(name, hidden=False) is want
    assert h.check_name(name, hidden=True) is (want or name == ".git")


@pytest.mark.parametrize(
    "page, want",
    [
        ('<a href="a%20b.txt">x</a>', [("a b.txt", False)]),
        ("<A  class=x HREF='sub/'>", [("sub", True)]),
        ("<a href=./c>", [("c", False)]),
        ('<a href="/pub/d">', [("d", False)]),
        ('<a href="http://h/pub/e?C=N">', []),
        ('<a href="../">', []),
        ('<a href="/">', []),
        ('<a href="?C=N;O=D">', []),
        ('<a href="http://evil/pub/f">', []),
        ('<a href="//evil/pub/f">', []),
        ('<a href="g/h">', []),
        ('<a href="i#frag">', [("i", False)]),
        ('<a href="a&amp;b">', [("a&b", False)]),
        ('<a href="javascript:alert(1)">', []),
        ('<a href="http://[x"><a href="http://h:x/pub/k">', []),
        ('<a href="%2e%2e/">', [("..", True)]),
        ('<a href="j%2fk">', [("j/k", False)]),
        ("<link href='x'>", []),
        ("<a " * 50000, []),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_links_of_an_index_page(page, want):
    entries = h.html_entries(page, h.parse_url("http://h/pub/"))
    assert [(entry.name, entry.folder) for entry in entries] == want


@pytest.mark.parametrize(
    "text",
    ["5", "{}", "null", '"x"', "[", "[" * 100_000, '{"entries": 5}', "1" * 5000],
    ids=lambda text: text[:10],
)
def test_json_that_is_no_index_is_refused(text):
    with pytest.raises((TypeError, ValueError, RecursionError)):
        h.json_entries(text, h.parse_url("http://h/"))


@pytest.mark.parametrize(
    "item",
    [
        '{"name": 5}',
        '{"href": "a", "size": true, "mtime": 1e999}',
        '{"name": "a", "mtime": NaN, "size": "x"}',
        '{"name": "a", "mtime": 1%s}' % ("0" * 400),
        "[]",
        "7",
    ],
)
def test_odd_values_in_an_index_are_as_if_not_told(item):
    entries = h.json_entries(f"[{item}]", h.parse_url("http://h/"))
    assert all((entry.name, entry.mtime) == ("a", None) for entry in entries)


@pytest.mark.parametrize("key", ["name", "href"])
def test_odd_values_that_are_half_a_surrogate_pair_are_no_names(key):
    assert h.json_entries(
        f'[{{"{key}": "\\ud800"}}, {{"name": "b"}}]', h.parse_url("http://h/")
    ) == [h.Entry("b", False)]


def test_indexes_as_json_of_this_server_nginx_and_caddy():
    url = h.parse_url("http://h/")
    assert h.json_entries(
        '[{"name":"?","href":"%FF","type":"file","size":3,"mtime":1.5}]', url
    ) == [h.Entry("\udcff", False, 3, 1.5)]
    nginx = '[{"name":"a","type":"directory","mtime":"Mon, 05 Jan 2026 10:00:00 GMT"}]'
    assert h.json_entries(nginx, url)[0][:3] == ("a", True, None)
    assert h.json_entries(
        '[{"name":"s/","size":1,"url":"./s/","is_dir":true,"mod_time":"x"}]', url
    ) == [h.Entry("s", True)]
    assert h.json_entries(
        '[{"name":"c","size":1,"url":"./c","mod_time":"2026-01-04T10:00:00.123456789Z"}]', url
    ) == [h.Entry("c", False, 1, MTIME)]


@pytest.mark.parametrize(
    "method, status, want",
    [
        ("POST", 301, "GET"),
        ("POST", 302, "GET"),
        ("POST", 303, "GET"),
        ("PUT", 303, "GET"),
        ("POST", 307, "POST"),
        ("POST", 308, "POST"),
        ("PUT", 301, "PUT"),
        ("HEAD", 303, "HEAD"),
        ("DELETE", 302, "DELETE"),
    ],
)
def test_the_method_after_a_redirect(method, status, want):
    assert h.redirected(method, status, h.BodySource(b"x"))[0] == want


@pytest.mark.parametrize(
    "words",
    [
        "--port 8233 --host h -v --no-resume --retries 1 -H A:b head /",
        "head / --port 8233 --host h -v --no-resume --retries 1 -H A:b",
        "--port 8233 -v head --host h / --retries 1 --no-resume -H A:b",
        "--port 1 --retries 9 -H X:y head / --port 8233 --host h -v --no-resume --retries 1 -H A:b",
    ],
)
def test_flags_count_before_and_after_the_verb(words):
    args = h.parsed(words.split())
    assert (args.port, args.host, args.verbose, args.resume, args.retries) == (
        8233,
        "h",
        True,
        False,
        1,
    )
    assert args.header == [("X", "y")] * ("X:y" in words) + [("A", "b")] and args.timeout == 30


def test_help_is_the_manual(run):
    done = run("httpclient.py", "--help")
    assert done.code == 0 and h.__doc__.splitlines()[4].strip() in done.out.decode()


def test_a_head_as_json_holds_no_half_characters(run, canned):
    server = canned(
        answer(headers="X-Name: ?\u00fc\r\n").replace(b"?", b"\xff"), read_until=b"\r\n\r\n"
    )
    done = run("httpclient.py", "head", "--json", f"http://127.0.0.1:{server.port}/")
    assert done.code == 0 and json.loads(done.out)["fields"]["x-name"] == "\\xff\u00fc"


# --- get: framing, names, what exists ---
BODY = random.Random(6).randbytes(300_000)


@pytest.mark.parametrize("framed", ["length", "chunked", "close", "old"])
def test_a_body_is_whole_however_it_is_framed(run, canned, tmp_path, framed):
    chunks = b"".join(
        b"%X;ext=1\r\n%b\r\n" % (len(part), part)
        for part in (BODY[:1], BODY[1:70_000], BODY[70_000:])
    )
    server = canned(
        {
            "length": answer(BODY),
            "close": answer(BODY, length=False),
            "old": b"HTTP/1.0 200 OK\n\n" + BODY,
            "chunked": answer(
                chunks + b"0\r\nTrailer: x\r\n\r\n",
                headers="Transfer-Encoding: chunked\r\n",
                length=False,
            ),
        }[framed],
        read_until=b"\r\n\r\n",
    )
    assert get(run, tmp_path, f"http://127.0.0.1:{server.port}/a.bin").code == 0
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert names(tmp_path) == ["a.bin"]


def test_a_head_that_comes_byte_by_byte(run, listeners, tmp_path):
    def drip(conn):
        conn.recv(65536)
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in answer(
            b"5\r\nhello\r\n0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n", length=False
        ):
            conn.sendall(bytes([byte]))

    listeners.append(Listener(drip))
    done = get(run, tmp_path, f"http://127.0.0.1:{listeners[-1].port}/", "-o", "-")
    assert (done.code, done.out) == (0, b"hello")


# ids: pytest puts the id into the environment, which is not for 100 kB
@pytest.mark.parametrize(
    "raw, code",
    [
        (b"", 52),
        (b"HTTP/1.1 200 OK\r\nContent-Le", 18),
        (b"HT", 18),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 56),
        (b"220 ready\r\n", 56),
        (b"\x15\x03\x01\x00\x02\x02\n\n", 56),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 56),
        (b"A" * 70_000, 56),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", 56),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1001, 56),
        (answer(b"zz\r\nhello\r\n0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n"), 56),
        (answer(b"-5\r\nhello\r\n0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n"), 56),
        (answer(b"3\r\nhello\r\n0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n"), 56),
        (answer(b"5\r\nhello\r\n", headers="Transfer-Encoding: chunked\r\n"), 18),
        (answer(b"x", headers="Transfer-Encoding: gzip, chunked\r\n"), 56),
        (answer(b"x" * 100, headers="Content-Encoding: gzip" + ", gzip" * 5 + "\r\n"), 56),
        (answer(b"x" * 100, headers="Content-Encoding: deflate\r\n"), 56),
        (answer(b"x").replace(b"HTTP/1.1", b"HTTP/1.2"), 56),
        (answer(b"x", "302 Found", "Location: /a\r\nLocation: /b\r\n"), 56),
        # curl takes this and ignores the length. But no file is as long as this, so whatever comes
        # until the stream ends is less than was promised: a cut could not be told from the end.
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\nhello", 56),
        # curl takes a first line that begins with spaces for a field. RFC 9112 section 2.2 forbids
        # that, because others skip the line: it could hide a length or a redirect from a proxy.
        (answer(b"x").replace(b"OK\r\n", b"OK\r\n \r\n"), 56),
        (answer(b"x").replace(b"OK\r\n", b"OK\r\n X: y\r\n"), 56),
        (
            answer(
                b"1\r\nx\r\n0\r\nA: \0\r\n\r\n",
                headers="Transfer-Encoding: chunked\r\n",
                length=False,
            ),
            56,
        ),
        (answer(b"x" * 100, headers="Content-Encoding: gzip\r\n"), 56),
        (answer(b"hello", "206 Partial Content", "Content-Range: bytes 0-4/5\r\n"), 56),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_server_that_breaks_the_protocol_leaves_no_file(run, canned, tmp_path, raw, code):
    server = canned(raw, read_until=b"\r\n\r\n")
    done = get(run, tmp_path, f"http://127.0.0.1:{server.port}/a", "--retries", 0)
    assert done.code == code, done
    assert done.err.startswith("error: ") and names(tmp_path) == []


def test_a_gzip_bomb_is_stopped_early(run, canned, tmp_path):
    # three hundred megabytes, as members of thirty: packing them as one takes seconds
    bomb = gzip.compress(bytes(30_000_000), 9) * 10
    server = canned(
        answer(bomb, headers="Content-Encoding: gzip\r\n"),
        read_until=b"\r\n\r\n",
    )
    assert get(run, tmp_path, f"http://127.0.0.1:{server.port}/a").code == 56
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, h.BUFFER - 1, h.BUFFER, h.BUFFER + 1, 3 * h.BUFFER])
def test_gzip_of_any_size_comes_out_whole(run, canned, size):
    body = (b"text %d\n" * 9 % tuple(range(9)) * (size // 60 + 1))[:size]
    server = canned(
        answer(gzip.compress(body, 1), headers="Content-Encoding: gzip\r\n"), read_until=b"\r\n\r\n"
    )
    done = run("httpclient.py", "post", f"http://127.0.0.1:{server.port}/")
    assert (done.code, done.out == body) == (0, True)


@pytest.mark.parametrize("step, most", [(1, 30_000), (7, 300_000), (100_000, 300_000)])
def test_gzip_of_many_members_comes_out_whole(step, most):
    bodies = BODY[:most], b"", b"x", BODY[:7_000]
    packed = b"".join(map(gzip.compress, bodies))
    pieces = [packed[at : at + step] for at in range(0, len(packed), step)]
    assert b"".join(h.decompress(pieces, "gzip")) == b"".join(bodies)


@pytest.mark.parametrize(
    "after, code",
    [
        (gzip.compress(b" world"), 0),
        (b"junk", 56),
        (b"\x1f", 56),
        (b"\0", 56),
        (gzip.compress(b" world")[:-1], 56),
    ],
    ids=["member", "text", "begin", "zero", "cut"],
)
def test_what_follows_gzip_is_gzip_or_refused(run, canned, tmp_path, after, code):
    server = canned(
        answer(gzip.compress(b"hello") + after, headers="Content-Encoding: gzip\r\n"),
        read_until=b"\r\n\r\n",
    )
    assert get(run, tmp_path, f"http://127.0.0.1:{server.port}/a").code == code
    assert tree(tmp_path) == ({"a": b"hello world"} if code == 0 else {})


def test_gzip_is_decoded_unless_the_name_asks_for_it(run, canned, tmp_path):
    packed = gzip.compress(BODY)
    server = canned(answer(packed, headers="Content-Encoding: gzip\r\n"), read_until=b"\r\n\r\n")
    assert (
        get(
            run,
            tmp_path,
            f"http://127.0.0.1:{server.port}/a",
            f"http://127.0.0.1:{server.port}/b.tar.gz",
        ).code
        == 0
    )
    assert (tmp_path / "a").read_bytes() == BODY and (tmp_path / "b.tar.gz").read_bytes() == packed
    # what it is to be called here changes nothing
    checksum = "sha256:" + hashlib.sha256(packed).hexdigest()
    assert (
        get(
            run,
            tmp_path,
            f"http://127.0.0.1:{server.port}/b.tar.gz",
            "-o",
            "c",
            "--checksum",
            checksum,
        ).code
        == 0
    )
    assert get(run, tmp_path, f"http://127.0.0.1:{server.port}/b.tar.gz", "-o", "-").out == packed
    named = 'Content-Encoding: gzip\r\nContent-Disposition: attachment; filename="d.tgz"\r\n'
    server = canned(answer(packed, headers=named), read_until=b"\r\n\r\n")
    assert get(run, tmp_path, f"http://127.0.0.1:{server.port}/download").code == 0
    assert (tmp_path / "d.tgz").read_bytes() == packed


def test_an_error_page_is_shown_and_never_written(run, canned, tmp_path):
    page = b"<html><style>p{}</style><h1>No</h1>\n<p>such \x1b[31mfile</p></html>"
    server = canned(
        answer(page, "404 Not Found", "Content-Type: text/html\r\n"), read_until=b"\r\n\r\n"
    )
    (tmp_path / "old").write_bytes(b"old")
    done = get(run, tmp_path, f"http://127.0.0.1:{server.port}/x", "-o", "old", "--force")
    assert done.code == 22 and "404 Not Found" in done.err and "No | such \\x1b[31mfile" in done.err
    assert names(tmp_path) == ["old"] and (tmp_path / "old").read_bytes() == b"old"


@pytest.mark.parametrize(
    "page, want",
    [
        (b"<h1>No</h1><style>p{}</style>such<script>x", "No | such"),
        (b"<style " * 9300, ""),
        (b"<header>No</header>", "No"),
    ],
    ids=["open", "styles", "header"],
)
def test_an_error_page_says_no_more_than_its_text(page, want):
    assert h.error_lines(h.parse_head(answer(headers="Content-Type: text/html\r\n")), page) == want


def test_the_name_comes_from_content_disposition_made_safe(run, canned, tmp_path):
    server = canned(
        answer(b"x", headers='Content-Disposition: attachment; filename="../../.b\xc3\xa4d"\r\n'),
        read_until=b"\r\n\r\n",
    )
    assert get(run, tmp_path, f"http://127.0.0.1:{server.port}/download?id=1").code == 0
    assert names(tmp_path) == ["_b\xc3\xa4d"]


def test_mtime_is_set_and_the_same_file_is_not_fetched_again(run, files, tmp_path):
    server = files(BODY, headers=DATE)
    assert get(run, tmp_path, server.url).code == 0
    assert os.stat(tmp_path / "file.bin").st_mtime == MTIME
    done = get(run, tmp_path, server.url, "-o", "file.bin")
    assert done.code == 0 and "same" in done.err and server.sent == len(BODY)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="no extended attributes here")
def test_an_etag_alone_tells_the_same_file_and_another_one(run, files, tmp_path):
    server = files(BODY)
    with contextlib.suppress(OSError):
        os.setxattr(tmp_path, h.XATTR, b"")
        assert get(run, tmp_path, server.url).code == 0
        for more in [], ["-o", "file.bin"], ["--newer"]:
            assert "same" in get(run, tmp_path, server.url, *more).err and server.sent == len(BODY)
        # nobody said that its ETags are not the same by chance
        assert get(run, tmp_path, server.url + "?other", "-o", "file.bin").code == 23
        server.etag = '"b"'
        assert get(run, tmp_path, server.url).code == 23
        assert "saved" in get(run, tmp_path, server.url, "--newer").err and server.sent == 2 * len(
            BODY
        )
        # written to meanwhile: the ETag is no longer of what is in it
        os.utime(tmp_path / "file.bin", (1, 1))
        assert get(run, tmp_path, server.url).code == 23


def test_parts_of_last_week_are_swept_unless_somebody_writes_them(run, files, stock, tmp_path):
    import fcntl

    old, locked, young, note, single = (f".six-{number * 32}" for number in "01234")
    for name in (
        f"{old}.part",
        f"{old}.json",
        f"{locked}.part",
        f"{locked}.json",
        f"{single}.json",
        ".six-mine.part",
    ):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (MTIME, MTIME))
    for name in f"{young}.part", f"{young}.json", f"{note}.json":
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / f"{young}.json", (MTIME, MTIME))  # written when it began, weeks ago
    with open(tmp_path / f"{locked}.part", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shutil.copytree(tmp_path, tmp_path / "copy", ignore=lambda folder, names: {"served"})
        assert get(run, tmp_path, files(BODY).url).code == 0
    assert names(tmp_path) == sorted(
        [
            f"{locked}.part",
            f"{locked}.json",
            f"{young}.part",
            f"{young}.json",
            f"{note}.json",
            ".six-mine.part",
            "copy",
            "file.bin",
            "served",
        ]
    )
    assert run("httpclient.py", "mirror", stock[1], "-o", tmp_path / "copy").code == 0
    assert names(tmp_path / "copy") == sorted(
        [f"{young}.part", f"{young}.json", f"{note}.json", ".six-mine.part"]
    )


def test_only_a_lone_dash_is_standard_output(run, files, tmp_path):
    (tmp_path / "sub").mkdir()
    for place in "./-", "sub/-":
        done = get(run, tmp_path, files(BODY).url, "-o", place)
        assert done.code == 0 and done.out == b"" and (tmp_path / place).read_bytes() == BODY


def test_an_existing_file_stays_without_force(run, files, tmp_path):
    server = files(BODY, headers=DATE)
    (tmp_path / "file.bin").write_bytes(b"mine")
    for more in [], ["-o", "file.bin"]:
        assert get(run, tmp_path, server.url, *more).code == 23
        assert names(tmp_path) == ["file.bin"] and (tmp_path / "file.bin").read_bytes() == b"mine"
    os.chmod(tmp_path / "file.bin", 0o640)
    assert get(run, tmp_path, server.url, "--newer").code == 0
    assert (tmp_path / "file.bin").read_bytes() == BODY and os.stat(
        tmp_path / "file.bin"
    ).st_mode & 0o777 == 0o640


def test_a_url_signed_for_get_alone_works_and_its_signature_stays_secret(run, files, tmp_path):
    def store(head):
        signed = re.match("GET /bucket/file.bin[?]X-Amz-Signature=5ec4e7[ &]", head)
        return None if signed else b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\ndenied"

    server = files(BODY, hook=store, cuts=[100_000])
    url = f"http://127.0.0.1:{server.port}/bucket/file.bin?X-Amz-Signature="
    (tmp_path / "file.bin").write_bytes(b"old")
    assert get(run, tmp_path, url + "5ec4e7", "-o", "file.bin", "--newer").code == 0
    assert (tmp_path / "file.bin").read_bytes() == BODY
    server.cuts.append(200_000)
    assert get(run, tmp_path, url + "5ec4e7&X-Amz-Date=1", "-o", "c", "--retries", 0).code == 18
    # signed anew, and continued
    assert get(run, tmp_path, url + "5ec4e7&X-Amz-Date=2", "-o", "c").code == 0
    assert (tmp_path / "c").read_bytes() == BODY and server.sent == 2 * len(BODY)
    done = get(run, tmp_path, url + "5ec4e7x", "-o", "b", "--json")
    assert done.code == 22 and "denied" in done.err and "5ec4e7" not in done.err + done.out.decode()


def test_newer_leaves_a_later_file_of_the_same_size(run, files, tmp_path):
    server = files(BODY, headers=DATE)
    (tmp_path / "file.bin").write_bytes(bytes(len(BODY)))
    assert "same" in get(run, tmp_path, server.url, "--newer", "-o", "file.bin").err
    assert get(run, tmp_path, server.url, "--force").code == 0
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_several_urls_share_a_connection_and_go_on_past_a_bad_one(run, files, tmp_path):
    server = files(
        BODY,
        hook=lambda head: (
            b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno" if "/bad" in head else None
        ),
    )
    base = server.url.rpartition("/")[0]
    done = get(run, tmp_path, f"{base}/a", f"{base}/bad", f"{base}/b", "--json")
    assert done.code == 22 and names(tmp_path) == ["a", "b"]
    results = [json.loads(line) for line in done.out.splitlines()]
    assert [each["result"] for each in results] == ["saved", "failed", "saved"]
    assert len(server.threads) == 2  # the one that accepts, and one connection


# --- get: cuts, resuming, ranges ---
@pytest.mark.long(4)
def test_twenty_cuts_leave_a_whole_file_and_fetch_nothing_twice(run, files, tmp_path, full):
    size = 20_000_000 if full else 5_000_000
    body = random.Random(1).randbytes(size)
    cuts = [random.Random(seed).randrange(1, size // 22) for seed in range(20)]
    server = files(body, cuts=cuts, resets=True)
    done = get(run, tmp_path, server.url, "--trace")
    assert done.code == 0 and (tmp_path / "file.bin").read_bytes() == body
    assert names(tmp_path) == ["file.bin"] and server.cuts == []
    came = [int(count) for count in re.findall(r"close \(sent \d+, received (\d+)\)", done.err)]
    # 300: a head; what a reset destroyed never came
    assert len(came) == 21 and len(body) < sum(came) < len(body) + 21 * 300


def test_the_same_command_again_goes_on(run, files, tmp_path):
    server = files(BODY * 4, cuts=[500_000])
    done = get(run, tmp_path, server.url, "--retries", 0)
    assert done.code == 18 and "500,000 of 1,200,000" in done.err
    note = json.loads(next(tmp_path.glob(".six-*.json")).read_text())
    assert (note["etag"], note["size"], note["url"]) == ('"a"', 1_200_000, server.url)
    assert get(run, tmp_path, server.url).code == 0
    assert (
        (tmp_path / "file.bin").read_bytes() == BODY * 4
        and server.sent == 1_200_000
        and names(tmp_path) == ["file.bin"]
    )


def test_a_file_that_changed_meanwhile_starts_over(run, files, tmp_path):
    server = files(BODY * 4, cuts=[500_000])
    assert get(run, tmp_path, server.url, "--retries", 0).code == 18
    server.etag, server.body = '"b"', BODY[::-1] * 4
    assert get(run, tmp_path, server.url).code == 0
    assert (tmp_path / "file.bin").read_bytes() == server.body


def test_a_short_file_that_was_cut_is_never_taken_for_a_part_of_a_long_one(run, files, tmp_path):
    long, server = BODY * 4, files(BODY * 4, cuts=[500_000])
    assert get(run, tmp_path, server.url, "--retries", 0).code == 18 and len(names(tmp_path)) == 2
    server.body, server.etag, server.cuts = b"n" * 100_000, '"b"', [50_000]
    assert get(run, tmp_path, server.url, "--retries", 0).code == 18 and names(tmp_path) == []
    server.body, server.etag = long, '"a"'
    assert get(run, tmp_path, server.url).code == 0 and (tmp_path / "file.bin").read_bytes() == long


def test_without_a_strong_validator_nothing_is_continued(run, files, tmp_path):
    server = files(BODY * 4, etag='W/"a"', cuts=[500_000])
    assert get(run, tmp_path, server.url).code == 0
    assert (tmp_path / "file.bin").read_bytes() == BODY * 4 and "Range:" not in "".join(
        server.heads
    )


@pytest.mark.parametrize(
    "span, etag",
    [
        ("0-{}/{}", '"a"'),
        ("500001-{}/{}", '"a"'),
        ("500000-{}/9999999", '"a"'),
        ("500000-{}/{}", '"b"'),
        ("x", '"a"'),
    ],
)
def test_a_206_that_does_not_fit_starts_over(run, files, tmp_path, span, etag):
    def bend(head):
        last, total = 1_199_999, 1_200_000
        text = span.format(last, total)
        lie = f"HTTP/1.1 206 P\r\nContent-Range: bytes {text}\r\nETag: {etag}\r\nContent-Length: 700000\r\nConnection: close\r\n\r\n"
        return lie.encode() + bytes(700_000) if "Range: bytes=" in head else None

    server = files(BODY * 4, cuts=[500_000], hook=bend)
    assert get(run, tmp_path, server.url).code == 0
    assert (tmp_path / "file.bin").read_bytes() == BODY * 4


def test_416_is_done_only_when_size_and_etag_agree(run, files, tmp_path):
    unsized = answer(
        BODY, headers='ETag: "a"\r\nTransfer-Encoding: chunked\r\n', length=False
    ).replace(BODY, b"%x\r\n%b\r\n" % (len(BODY), BODY))
    for total, etag, again in (
        (len(BODY), '"a"', False),
        (len(BODY), '"b"', True),
        (len(BODY) + 1, '"a"', True),
    ):
        no = f"HTTP/1.1 416 No\r\nContent-Range: bytes */{total}\r\nETag: {etag}\r\nContent-Length: 0\r\n\r\n".encode()
        plain = []

        def bend(head, plain=plain, no=no):
            if "Range: bytes=" in head:
                return no
            plain.append(head)
            return unsized if len(plain) == 1 else unsized + b"0\r\n\r\n"

        server = files(BODY, hook=bend)
        assert get(run, tmp_path, server.url, "--force").code == 0
        assert (tmp_path / "file.bin").read_bytes() == BODY and (len(plain) == 2) is again


def test_416_in_another_run_ends_a_download_that_nobody_gave_a_name(run, canned, tmp_path):
    server = canned(
        b'HTTP/1.1 200 OK\r\nETag: "a"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b'
        % (len(BODY), BODY),
        f'HTTP/1.1 416 No\r\nContent-Range: bytes */{len(BODY)}\r\nETag: "a"\r\nContent-Length: 0\r\n\r\n'.encode(),
        read_until=b"\r\n\r\n",
    )
    url = f"http://127.0.0.1:{server.port}/file.bin"
    assert get(run, tmp_path, url, "--retries", 0).code == 18 and b"Range:" not in server.read[0]
    assert get(run, tmp_path, url).code == 0 and b"Range: bytes=300000-" in server.read[1]
    assert (tmp_path / "file.bin").read_bytes() == BODY and names(tmp_path) == ["file.bin"]


def test_a_status_that_passes_is_tried_again_after_retry_after(run, canned, tmp_path):
    server = canned(
        answer(b"busy", "503 Busy", "Retry-After: 0\r\n"),
        answer(b"slow", "429 Slow", "Retry-After: 0\r\n"),
        answer(b"ok"),
        read_until=b"\r\n\r\n",
    )
    assert get(run, tmp_path, f"http://127.0.0.1:{server.port}/a").code == 0
    assert (tmp_path / "a").read_bytes() == b"ok"


def test_a_post_is_never_sent_twice(run, canned):
    server = canned(
        answer(b"busy", "503 Busy", "Retry-After: 0\r\n"), answer(b"ok"), read_until=b"a=1"
    )
    assert (
        run("httpclient.py", "post", f"http://127.0.0.1:{server.port}/", "--data", "a=1").code == 22
    )
    assert (
        len(server.read) == 1
        and b"Content-Type: application/x-www-form-urlencoded" in server.read[0]
    )


def test_several_connections_fetch_nothing_of_a_file_that_is_here_by_the_name_that_the_server_gives(
    run, files, tmp_path
):
    server = files(
        bytes(8 << 20), headers=DATE + "Content-Disposition: attachment; filename=named\r\n"
    )
    assert get(run, tmp_path, server.url, "--connections", 4).code == 0 and names(tmp_path) == [
        "named"
    ]
    again = get(run, tmp_path, server.url, "--connections", 4)
    assert again.code == 0 and "same named" in again.err
    (tmp_path / "named").write_bytes(b"another")
    server.heads.clear()
    assert (
        get(run, tmp_path, server.url, "--connections", 4).code == 23
        and len(list(filter(None, server.heads))) == 1
    )


def test_more_connections_than_descriptors_are_told_in_three_lines(run, files, tmp_path):
    import resource

    # all wait at once
    server = files(
        bytes(70 << 20),
        hook=lambda head: head.startswith("GET") and server.go.wait(DEADLINE) and None,
    )
    done = get(
        run,
        tmp_path,
        server.url,
        "--connections",
        64,
        # a thread that still runs at the end needs it, and there is no descriptor left to load it by
        env={"LD_PRELOAD": "libgcc_s.so.1"} if sys.platform == "linux" else {},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)),
    )
    assert done.code == 7 and "Too many open files" in done.err, done


def test_four_connections_fill_one_file_with_each_byte_fetched_once(run, files, tmp_path):
    body = random.Random(3).randbytes(9_000_001)
    server = files(body, headers=DATE, cuts=[100_000, 300_000, 700_000])
    assert get(run, tmp_path, server.url, "--connections", 4).code == 0
    assert (tmp_path / "file.bin").read_bytes() == body and names(tmp_path) == ["file.bin"]
    assert server.sent == len(body) and sum("Range: bytes=" in head for head in server.heads) > 4
    assert os.stat(tmp_path / "file.bin").st_mtime == MTIME


@pytest.mark.parametrize("size, ranges", [(3_000_000, False), (700_000, True), (0, True)])
def test_several_connections_are_one_for_a_short_file_and_where_no_ranges_are_promised(
    run, files, tmp_path, size, ranges
):
    server = files(random.Random(3).randbytes(size), ranges=ranges)
    assert get(run, tmp_path, server.url, "--connections", 4).code == 0
    assert (tmp_path / "file.bin").read_bytes() == server.body
    methods = [head.split()[0] for head in server.heads if head]
    assert methods == ["HEAD", "GET"] and server.sent == len(server.body)


def test_several_connections_resume_what_an_earlier_run_left(run, files, tmp_path):
    body = random.Random(4).randbytes(8_000_000)
    server = files(body, cuts=[500_000])
    done = get(run, tmp_path, server.url, "--connections", 3, "--retries", 0)
    assert done.code == 18
    before = server.sent
    assert get(run, tmp_path, server.url, "--connections", 2).code == 0
    assert (tmp_path / "file.bin").read_bytes() == body and server.sent < len(body) + before


def test_several_connections_go_on_from_a_part_that_one_began(run, files, tmp_path):
    server = files(random.Random(8).randbytes(6_000_000), cuts=[500_000])
    assert get(run, tmp_path, server.url, "--retries", 0).code == 18
    assert get(run, tmp_path, server.url, "--connections", 3).code == 0
    assert (tmp_path / "file.bin").read_bytes() == server.body and server.sent == len(server.body)
    assert sum("Range: bytes=" in head for head in server.heads) > 3


@pytest.mark.parametrize("begun", [False, True])
def test_what_is_before_bytes_of_a_run_that_was_killed_is_not_taken_for_received(
    run, files, tmp_path, begun
):
    server = files(random.Random(9).randbytes(6_000_000), cuts=[500_000])
    if begun:
        assert get(run, tmp_path, server.url, "--retries", 0).code == 18
    deadly = (
        f"import os, signal, sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h; write = h.Part.write\n"
        "def kill(self, offset, data):\n"
        "    write(self, offset, data)\n"
        "    if offset > 3_000_000: os.kill(os.getpid(), signal.SIGKILL)\n"
        "h.Part.write = kill\n"
        f"sys.argv[1:] = ['get', {server.url!r}, '--connections', '3']; h.main()"
    )
    killed = subprocess.run(
        [sys.executable, "-c", deadly], cwd=tmp_path, timeout=DEADLINE, check=False
    )
    assert killed.returncode == -9
    assert get(run, tmp_path, server.url).code == 0
    assert (tmp_path / "file.bin").read_bytes() == server.body


def test_several_connections_without_room_keep_what_one_fetched(run, files, tmp_path):
    import resource

    server = files(random.Random(9).randbytes(6_000_000), cuts=[500_000])
    assert get(run, tmp_path, server.url, "--retries", 0).code == 18
    little = {
        "preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    }
    assert get(run, tmp_path, server.url, "--connections", 3, **little).code == 23
    assert get(run, tmp_path, server.url).code == 0
    assert (tmp_path / "file.bin").read_bytes() == server.body


def test_several_connections_decode_what_one_does(run, files, tmp_path):
    text = b"".join(
        b"%d\n" % number for number in random.Random(1).choices(range(10**9), k=700_000)
    )
    server = files(gzip.compress(text, 1), headers="Content-Encoding: gzip\r\n")
    for name, more in ("one", []), ("more", ["--connections", 3]):
        assert get(run, tmp_path, server.url, "-o", name, *more).code == 0
        assert (tmp_path / name).read_bytes() == text, name


def test_several_connections_that_go_on_ask_for_one_password(files, tmp_path):
    pty = pytest.importorskip("pty")
    body = random.Random(5).randbytes(4 << 20)
    refusal = answer(b"", "401 No", "WWW-Authenticate: Basic\r\n")
    server = files(
        body, hook=lambda head: None if "Authorization: Basic OndvcmQ=" in head else refusal
    )
    part = tmp_path / h.part_name(h.parse_url(server.url))
    part.write_bytes(bytes(len(body)))
    spans = [[first, first + (1 << 20)] for first in range(0, len(body), 1 << 20)]
    note = {
        "url": server.url,
        "etag": '"a"',
        "modified": "",
        "size": len(body),
        "digest": "",
        "spans": [*spans, [len(body), len(body)]],
    }
    part.with_suffix(".json").write_text(json.dumps(note))
    pid, end = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.execv(
            sys.executable,
            [sys.executable, str(SCRIPT), "get", server.url, "--connections", "4", "--quiet"],
        )
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(end, 65536):
            said += chunk
            assert said.count(b"password for") < 2, said
            os.write(end, b"word\n" * chunk.count(b"password for"))
    os.close(end)
    assert os.waitpid(pid, 0)[1] == 0 and said.count(b"password for") == 1, said
    assert (tmp_path / "file.bin").read_bytes() == body


def test_several_connections_notice_a_change(run, files, tmp_path):
    server = files(random.Random(5).randbytes(8_000_000), cuts=[500_000])
    assert get(run, tmp_path, server.url, "--connections", 3, "--retries", 0).code == 18
    server.etag, server.body = '"b"', random.Random(6).randbytes(8_000_000)
    assert get(run, tmp_path, server.url, "--connections", 3).code == 0
    assert (tmp_path / "file.bin").read_bytes() == server.body


def test_a_connection_that_waited_while_another_noticed_a_change_asks_no_more(files, tmp_path):
    """The first is asked to wait, and wakes up when the new file is here already."""
    body, ranged = random.Random(6).randbytes(8_000_000), itertools.count()

    def bend(head):
        if "\nRange: " not in head:
            return None
        if next(ranged) == 0:
            return b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
        return answer(b"!", "206 Part", 'ETag: "b"\r\nContent-Range: bytes 0-0/8000000\r\n')

    server = files(body, hook=bend)
    code = (
        f"import sys, threading; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h\n"
        f"here = threading.Event(); h.Progress.wait = lambda *_: here.wait({DEADLINE})\n"
        "code = h.main(); here.set()\n"
        f"for each in threading.enumerate()[1:]: each.join({DEADLINE})\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "get", server.url, "--connections", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0 and (tmp_path / "file.bin").read_bytes() == body, done.stderr
    asked = [("GET", "\nRange: " in head) for head in server.heads if head.startswith("GET")]
    assert asked == [("GET", True), ("GET", True), ("GET", False)]


def test_a_range_that_is_shorter_than_it_says_is_told(run, canned, tmp_path):
    head = "HTTP/1.1 200 OK\r\nETag: 'a'\r\nContent-Length: 600000\r\n\r\n".replace("'", '"')
    more = 'ETag: "a"\r\nContent-Range: bytes 400000-599999/600000\r\n'
    server = canned(head.encode() + b"x" * 400_000, answer(b"y" * 50, "206 Part", more))
    url = f"http://127.0.0.1:{server.port}/a"
    done = run("httpclient.py", "get", url, "--retries", 1, cwd=tmp_path)
    assert done.code == 56 and f"a range of {url} came short" in done.err, done


@pytest.mark.parametrize("more", [[], ["--connections", 3]])
def test_a_change_is_noticed_also_where_the_server_knows_range_but_not_if_range(
    run, files, tmp_path, more
):
    old, new = (random.Random(seed).randbytes(6_000_000) for seed in (1, 2))
    server = files(old, etag="", headers=DATE, cuts=[500_000])
    assert get(run, tmp_path, server.url, "--retries", 0).code == 18

    def careless(head):
        asked = re.search(r"Range: bytes=(\d+)-(\d*)", head)
        start, end = (int(asked[1]), int(asked[2] or len(new) - 1) + 1) if asked else (0, len(new))
        return answer(
            new[start:end],
            "206 Partial" if asked else "200 OK",
            DATE.replace("04 Jan", "03 Jan")
            + f"Content-Range: bytes {start}-{end - 1}/{len(new)}\r\n" * bool(asked),
        )

    server.hook = careless
    done = get(run, tmp_path, server.url, *more)
    assert done.code == 0 and (tmp_path / "file.bin").read_bytes() == new, done


@pytest.mark.parametrize("field", ["Repr-Digest: sha-256=:{}:", "Digest: SHA-256={}"])
def test_a_digest_is_checked(run, files, tmp_path, field):
    import base64

    right = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    assert get(run, tmp_path, files(BODY, headers=field.format(right) + "\r\n").url).code == 0
    done = get(run, tmp_path, files(BODY, headers=field.format(wrong) + "\r\n").url, "-o", "other")
    assert done.code == 56 and "wrong sha256" in done.err and names(tmp_path) == ["file.bin"]


def test_a_checksum_from_the_command_line_is_checked(run, files, tmp_path):
    server = files(BODY)
    assert (
        get(
            run, tmp_path, server.url, "--checksum", "sha512:" + hashlib.sha512(BODY).hexdigest()
        ).code
        == 0
    )
    assert get(run, tmp_path, server.url, "-o", "b", "--checksum", "sha256:" + "0" * 64).code == 56
    assert get(run, tmp_path, server.url, "-o", "-", "--checksum", "sha256:" + "0" * 64).code == 56
    assert (
        get(
            run,
            tmp_path,
            server.url,
            "-o",
            "-",
            "--checksum",
            "sha512:" + hashlib.sha512(BODY).hexdigest(),
        ).out
        == BODY
    )
    assert names(tmp_path) == ["file.bin"]


def test_a_checksum_is_checked_also_of_what_is_here_already(run, files, tmp_path):
    server, wanted = files(b"right", headers=DATE), f"sha256:{hashlib.sha256(b'right').hexdigest()}"
    for body, code in (b"right", 0), (b"wrong", 23):
        (tmp_path / "file.bin").write_bytes(body)
        os.utime(tmp_path / "file.bin", (MTIME, MTIME))
        done = get(run, tmp_path, server.url, "--checksum", wanted)
        assert done.code == code and ("same file.bin" in done.err) is (code == 0), done


def test_two_runs_of_one_download_do_not_write_into_each_other(run, listeners, tmp_path):
    def stall(conn):
        conn.recv(65536)
        conn.sendall(answer(BODY * 2)[:400_000])
        conn.recv(1)

    listeners.append(Listener(stall))
    url = f"http://127.0.0.1:{listeners[-1].port}/a"
    first = Process(SCRIPT, "get", url, "-v", cwd=tmp_path)
    first.wait_for("< Content-Length")
    assert get(run, tmp_path, url).code == 23
    first.process.send_signal(2)
    assert first.wait() == 130 and "Traceback" not in first.err


def test_a_part_that_is_the_finished_file_too_is_not_written_into(run, files, tmp_path):
    server = files(BODY, cuts=[1000])
    (tmp_path / "file.bin").write_bytes(b"finished")
    # killed between link() and unlink()
    os.link(tmp_path / "file.bin", tmp_path / h.part_name(h.parse_url(server.url)))
    assert get(run, tmp_path, server.url, "--force", "--retries", 0).code == 18
    assert (tmp_path / "file.bin").read_bytes() == b"finished"
    assert get(run, tmp_path, server.url, "--force").code == 0
    assert (tmp_path / "file.bin").read_bytes() == BODY and names(tmp_path) == ["file.bin"]


def test_what_was_planted_where_a_part_or_its_note_would_stand_is_left_alone(run, files, tmp_path):
    server = files(BODY)
    part = tmp_path / "in" / h.part_name(h.parse_url(server.url))
    part.parent.mkdir()
    os.mkfifo(part)
    done = get(run, part.parent, server.url)
    assert done.code == 23 and "it is no regular file" in done.err
    part.unlink()
    part.write_bytes(b"x")
    os.mkfifo(part.with_suffix(".json"))
    (tmp_path / "mine").write_bytes(b"mine")
    part.with_suffix(".json~").symlink_to(tmp_path / "mine")
    assert get(run, part.parent, server.url).code == 0
    assert (part.parent / "file.bin").read_bytes() == BODY
    os.link(tmp_path / "mine", part.with_suffix(".json~"))
    assert get(run, part.parent, server.url, "--force").code == 0
    (tmp_path / "open").touch()
    (tmp_path / "open").chmod(0o666)
    (part.parent / "file.bin").unlink()
    (part.parent / "file.bin").symlink_to(tmp_path / "open")
    assert get(run, part.parent, server.url, "--force").code == 0
    # what a planted link leads to has no say in who may write
    assert (part.parent / "file.bin").stat().st_mode & 0o022 == 0
    assert (tmp_path / "mine").read_bytes() == b"mine" and names(part.parent) == ["file.bin"]


@pytest.mark.parametrize(
    "wrong",
    [
        '"size": "x"',
        '"size": [1]',
        f'"size": {len(BODY)}.0',
        '"etag": 5',
        '"etag": "\\r\\nX-Planted: 1"',
        '"etag": "\\ud800"',
        '"etag": "", "modified": 7',
        '"digest": 5',
        '"digest": "x"',
        '"digest": "x:y"',
        '"spans": [[1e999, 1]]',
        '"spans": 5',
        '"spans": []',
        '"spans": [[-5, 10], [300000, 300000]]',
        '"spans": ' + "[" * 100_000,
    ],
    ids=lambda wrong: wrong[:30],
)
def test_a_planted_note_of_wrong_types_is_as_none(run, files, tmp_path, wrong):
    server = files(BODY)
    part = tmp_path / h.part_name(h.parse_url(server.url))
    part.write_bytes(b"planted")
    note = {
        "url": server.url,
        "etag": '"a"',
        "modified": "",
        "size": len(BODY),
        "digest": "",
        "spans": [[0, len(BODY)]],
    }
    part.with_suffix(".json").write_text(json.dumps(note)[:-1] + f", {wrong}}}")
    done = get(run, tmp_path, server.url)
    assert done.code == 0 and (tmp_path / "file.bin").read_bytes() == BODY, done
    assert not any("Range:" in head or "X-Planted" in head for head in server.heads)


def test_a_full_disk_says_after_how_much(run, files, tmp_path):
    import resource

    done = get(
        run,
        tmp_path,
        files(BODY * 10).url,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert done.code == 23 and re.search(
        r"cannot write \.six-\w+\.part after 1,000,000 bytes", done.err
    )


def test_a_device_that_takes_no_more_is_named(run, files, tmp_path):
    done = get(run, tmp_path, files(BODY).url, "-o", "/dev/full")
    assert done.code == 23 and "cannot write /dev/full: No space left" in done.err


# --- redirects and logins ---
def test_redirects_are_followed_and_circles_end(run, canned, tmp_path):
    goal = canned(answer(b"there"), read_until=b"\r\n\r\n")
    start = canned(
        answer(b"", "302 Found", f"Location: http://127.0.0.1:{goal.port}/goal\r\n"),
        read_until=b"\r\n\r\n",
    )
    assert get(run, tmp_path, f"http://127.0.0.1:{start.port}/name").code == 0
    assert (tmp_path / "name").read_bytes() == b"there"
    circle = canned(answer(b"", "302 Found", "Location: /again\r\n"), read_until=b"\r\n\r\n")
    assert get(run, tmp_path, f"http://127.0.0.1:{circle.port}/").code == 47
    assert len(circle.read) == 11


def test_a_redirect_that_drops_the_body_drops_what_was_said_of_it(run, canned, tmp_path):
    (tmp_path / "big").write_bytes(bytes(h.EXPECT_FROM))
    server = canned(
        answer(b"", "303 See Other", "Location: /b\r\n"), answer(b"there"), read_until=b"\r\n\r\n"
    )
    done = run(
        "httpclient.py", "post", f"http://127.0.0.1:{server.port}/a", "--data", "@big", cwd=tmp_path
    )
    assert done.code == 0 and done.out == b"there" and b"Expect: " in server.read[0]
    assert (
        server.read[1].startswith(b"GET /b ")
        and b"Expect" not in server.read[1]
        and b"Content-" not in server.read[1]
    )


@pytest.mark.parametrize("location", ["ftp://x/", "http://[x", "http://x:y/", "file:///etc/passwd"])
def test_a_redirect_to_nowhere_is_the_servers_fault(run, canned, tmp_path, location):
    server = canned(answer(b"", "302 Found", f"Location: {location}\r\n"), read_until=b"\r\n\r\n")
    assert get(run, tmp_path, f"http://127.0.0.1:{server.port}/").code == 56


@pytest.mark.parametrize(
    "login",
    [
        ["--user", "u:secret"],
        ["-H", "Authorization: Bearer secret"],
        ["-H", "X-Key: secret"],
        ["-H", "Authorization: secret"],
        "url",
    ],
)
def test_logins_stay_with_the_server_they_were_given_for(run, canned, tmp_path, login):
    goal = canned(answer(b"there"), read_until=b"\r\n\r\n")
    start = canned(
        answer(b"", "307 Go", f"Location: http://x:y@127.0.0.1:{goal.port}/\r\n"),
        read_until=b"\r\n\r\n",
    )
    url = f"http://{'u:secret@' * (login == 'url')}127.0.0.1:{start.port}/a"
    done = get(run, tmp_path, url, "-v", *([] if login == "url" else login))
    assert done.code == 0
    secrets = b"secret", b"dTpzZWNyZXQ="
    assert any(secret in start.read[0] for secret in secrets)
    assert (
        not any(secret in goal.read[0] for secret in secrets)
        and b"Authorization" not in goal.read[0]
        and b"Referer" not in goal.read[0]
    )
    assert not any(secret.decode() in done.err for secret in secrets) or login == [
        "-H",
        "X-Key: secret",
    ]


@pytest.mark.parametrize("login", [["--password", "secret"], "url"])
def test_logins_stay_also_when_an_upload_is_to_go_on_elsewhere(run, canned, tmp_path, login):
    (tmp_path / "x").write_bytes(bytes(h.EXPECT_FROM))
    other = canned(
        answer(b"", headers="Upload-Limit: min-size=0\r\n"),
        answer(b"", "201 Created", "Location: /rest\r\n"),
        answer(b"", "201 Created"),
        read_until=b"\r\n\r\n",
    )
    start = canned(
        answer(b"", "307 Go", f"Location: http://127.0.0.1:{other.port}/\r\n"),
        read_until=b"\r\n\r\n",
    )
    url, more = (
        f"http://{'u:secret@' * (login == 'url')}127.0.0.1:{start.port}/a",
        [] if login == "url" else login,
    )
    assert run("httpclient.py", "put", "--force", "x", url, *more, cwd=tmp_path).code == 0
    note = {
        "url": "",
        "resource": f"http://127.0.0.1:{other.port}/rest",
        "size": h.EXPECT_FROM,
        "mtime_ns": (tmp_path / "x").stat().st_mtime_ns,
    }
    # as in a folder that others write to
    (tmp_path / h.part_name(h.parse_url(url)).replace(".part", ".json")).write_text(
        json.dumps(note)
    )
    assert run("httpclient.py", "put", "--force", "x", url, *more, cwd=tmp_path).code == 0
    assert [said.split()[0] for said in other.read] == [
        b"OPTIONS",
        b"PUT",
        b"PUT",
        b"OPTIONS",
        b"PUT",
    ]
    assert not any(
        word in said for said in other.read for word in (b"secret", b"Authorization", b"/rest")
    )


def test_the_environments_password_is_for_host_and_port_alone(run, canned, tmp_path):
    one, other = (
        canned(answer(b"x"), read_until=b"\r\n\r\n"),
        canned(answer(b"x"), read_until=b"\r\n\r\n"),
    )
    env = {"SIXSOCKETS_PASSWORD": "pass:word"}
    assert (
        get(
            run, tmp_path, "/a", f"http://127.0.0.1:{other.port}/b", "--port", one.port, env=env
        ).code
        == 0
    )
    assert (
        b"Authorization: Basic OnBhc3M6d29yZA==\r\n" in one.read[0]
        and b"Authorization" not in other.read[0]
    )
    assert get(run, tmp_path, "/c", "--host", "LocalHost", "--port", one.port, env=env).code == 0
    assert b"Authorization: Basic OnBhc3M6d29yZA==\r\n" in one.read[1]


def test_a_token_is_sent_as_bearer_and_cannot_carry_a_line_break(run, canned, tmp_path):
    server = canned(answer(b"x"), read_until=b"\r\n\r\n")
    url = f"http://127.0.0.1:{server.port}/a"
    assert get(run, tmp_path, url, "--token", "a.b-c").code == 0
    assert b"\r\nAuthorization: Bearer a.b-c\r\n" in server.read[0]
    assert get(run, tmp_path, url, "--token", "a\r\nX: y").code == 2


def test_minus_4_and_minus_6_choose_the_family(run, files, tmp_path):
    port = files(BODY).port
    assert get(run, tmp_path, "-4", f"http://localhost:{port}/file.bin").code == 0
    done = get(run, tmp_path, "-6", f"http://127.0.0.1:{port}/other")
    assert done.code == 6 and "leave -4 or -6 out" in done.err


def test_netrc(run, canned, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password word\n")
    server = canned(answer(b"x"), read_until=b"\r\n\r\n")
    assert (
        get(run, tmp_path, f"http://127.0.0.1:{server.port}/a", env={"HOME": str(tmp_path)}).code
        == 0
    )
    assert b"Authorization: Basic bWU6d29yZA==\r\n" in server.read[0]
    (tmp_path / ".netrc").write_bytes(b"machine 127.0.0.1 login me password \xff\n")
    done = get(run, tmp_path, f"http://127.0.0.1:{server.port}/b", env={"HOME": str(tmp_path)})
    assert done.code == 26 and ".netrc" in done.err


def test_a_malformed_netrc_keeps_its_secrets(run, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password two words\n")
    done = get(run, tmp_path, "http://127.0.0.1:1/a", env={"HOME": str(tmp_path)})
    assert done.code == 26 and "near line" in done.err and "words" not in done.err, done


@pytest.mark.parametrize(
    "text",
    [
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 40,
        "sha1:" + "g" * 40,
        "crc32:00000000",
        "md5:",
        ":",
        "sha256",
    ],
)
def test_a_checksum_that_can_never_be_is_refused_before_the_download(text, run):
    done = run("httpclient.py", "get", "--checksum", text, "http://127.0.0.1:1/")
    assert done.code == 2 and "is not NAME:HEX" in done.err


def test_a_given_header_takes_the_place_of_ours_in_any_case(run, canned):
    server = canned(answer(b""), read_until=b"{}")
    done = run(
        "httpclient.py",
        "post",
        f"http://127.0.0.1:{server.port}/",
        "--data",
        "{}",
        "-H",
        "content-type: application/json",
        "-H",
        "user-agent: me",
        "-H",
        "accept:",
    )
    assert (
        done.code == 0
        and b"content-type: application/json\r\n" in server.read[0]
        and b"user-agent: me\r\n" in server.read[0]
    )
    assert (
        server.read[0].lower().count(b"content-type:")
        == server.read[0].lower().count(b"user-agent:")
        == 1
    )
    assert b"accept" not in server.read[0].lower()


def test_a_server_that_serves_one_connection_at_a_time_is_kept_one(run, listeners, tmp_path):
    alone = threading.Lock()

    def talk(conn):
        with alone, conn.makefile("rb") as file:
            while b"".join(itertools.takewhile(bytes.strip, file)):
                conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    listeners.append(Listener(talk))
    place = f"127.0.0.1:{listeners[-1].port}"
    done = get(
        run,
        tmp_path,
        f"http://me:word@{place}/a",
        f"http://{place}/b",
        "-o",
        "-",
        "--timeout",
        10,
        "--retries",
        0,
    )
    assert done.code == 0 and done.out == b"hihi", done


def test_a_header_cannot_carry_a_line_break(run):
    done = run("httpclient.py", "get", "/", "-H", "A: b\r\nC: d")
    assert done.code == 2 and "NAME: VALUE" in done.err


def test_missing_authorities_are_26(run, files, tmp_path):
    server = files(BODY)
    assert get(run, tmp_path, server.url.replace("http", "https"), "--cacert", "nowhere").code == 26


@pytest.mark.parametrize("flags", [["--tls"], ["--pin", "0" * 64], ["--insecure"]])
def test_nothing_goes_in_the_clear_where_tls_is_asked_for(run, canned, flags):
    server = canned(answer(b"x"))
    done = run(
        "httpclient.py",
        "head",
        f"127.0.0.1:{server.port}/a",
        "--password",
        "word",
        "--retries",
        0,
        *flags,
    )
    assert done.code == 56 and "speaks no TLS" in done.err, done
    assert not any(b"HEAD" in said for said in server.read)


@pytest.mark.parametrize("flags", [["--tls"], ["--pin", "0" * 64], ["--cacert", "file"]])
def test_http_is_refused_where_tls_is_asked_for(run, canned, flags):
    server = canned(answer(b"x"))
    done = run(
        "httpclient.py", "head", f"http://127.0.0.1:{server.port}/a", "--password", "word", *flags
    )
    assert done.code == 2 and "in the clear" in done.err and "https://" in done.err, done
    assert not server.read


def test_an_index_in_many_chunks_is_read_in_one_go(run, canned):
    chunks = b"3e8\r\n" + b" " * 1000 + b"\r\n"
    server = canned(
        answer(
            chunks * 16_000 + b"0\r\n\r\n", headers="Transfer-Encoding: chunked\r\n", length=False
        ),
        read_until=b"\r\n\r\n",
    )
    # copied anew for each chunk it takes minutes
    done = run("httpclient.py", "list", f"http://127.0.0.1:{server.port}/", timeout=30)
    assert done.code == 0 and not done.out, done


def test_a_proxy_is_asked_with_the_whole_url(run, canned, tmp_path):
    server = canned(answer(b"x"), read_until=b"\r\n\r\n")
    proxy = f"http://me:word@127.0.0.1:{server.port}"
    assert (
        get(run, tmp_path, "http://example.test/a?b", "-o", "a", env={"http_proxy": proxy}).code
        == 0
    )
    assert server.read[0].startswith(
        b"GET http://example.test/a?b HTTP/1.1\r\nHost: example.test\r\n"
    )
    assert b"Proxy-Authorization: Basic bWU6d29yZA==\r\n" in server.read[0]
    assert (
        get(
            run,
            tmp_path,
            f"http://127.0.0.1:{server.port}/b",
            env={"http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"},
        ).code
        == 0
    )
    assert (
        get(
            run,
            tmp_path,
            f"http://localhost:{server.port}/d",
            env={"http_proxy": "http://127.0.0.1:1", "no_proxy": "x, LocalHost"},
        ).code
        == 0
    )
    assert (
        get(
            run,
            tmp_path,
            f"http://127.0.0.1:{server.port}/c",
            "--proxy",
            "",
            env={"http_proxy": "http://127.0.0.1:1"},
        ).code
        == 0
    )


# --- sending ---
def test_a_redirect_to_a_name_that_is_none_ends_in_three_lines_through_a_proxy_too(
    run, canned, tmp_path
):
    server = canned(
        answer(b"", "302 Found", f"Location: https://{'a' * 64}.h/\r\n"),
        b"HTTP/1.1 200 OK\r\n\r\n",
        read_until=b"\r\n\r\n",
    )
    done = get(run, tmp_path, "http://h/a", "--proxy", f"http://127.0.0.1:{server.port}")
    assert done.code == 56 and "which is no http or https URL" in done.err, done


def test_put_sends_length_and_digest(run, canned, tmp_path):
    (tmp_path / "a b.txt").write_bytes(b"hello")
    server = canned(answer(b"", "201 Created"), read_until=b"hello")
    assert (
        run(
            "httpclient.py",
            "put",
            "--force",
            "a b.txt",
            f"http://127.0.0.1:{server.port}/in/",
            cwd=tmp_path,
        ).code
        == 0
    )
    head, _, body = server.read[0].partition(b"\r\n\r\n")
    assert (
        head.startswith(b"PUT /in/a%20b.txt HTTP/1.1\r\n")
        and body == b"hello"
        and b"\r\nContent-Length: 5\r\n" in head
    )
    assert b"Repr-Digest: sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:" in head


@pytest.mark.parametrize(
    "put, head, code, said",
    [
        (answer(b""), None, 0, "sent a ("),  # as from S3
        (answer(b"stored"), answer(b"", "403 No"), 0, "sent unverified a ("),
        (answer(b"stored"), b"HTTP/1.1", 0, "sent unverified a ("),
        (
            answer(b"hello"),
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            0,
            "sent unverified a (",
        ),
        (
            answer(b"older text"),
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
            56,
            "has 10 bytes, 5 were sent",
        ),
        (
            answer(b"", headers=DATE),
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            56,
            "has 0 bytes, 5 were sent",
        ),
    ],
    ids=["store", "page", "hangs up", "same size", "ignored", "ignored, was empty"],
)
def test_a_200_to_a_put_is_not_believed_when_it_looks_like_a_get(
    run, canned, tmp_path, put, head, code, said
):
    (tmp_path / "a").write_bytes(b"hello")
    server = canned(put, *([head] if head else []), read_until=b"\r\n\r\n")
    done = run(
        "httpclient.py", "put", "--force", "a", f"http://127.0.0.1:{server.port}/a", cwd=tmp_path
    )
    assert done.code == code and said in done.err, done
    assert [head.split()[0] for head in server.read] == [b"PUT", b"HEAD"][: 1 + bool(head)]


@pytest.mark.parametrize(
    "status",
    ["301 Moved Permanently", "307 Temporary Redirect", "300 Multiple Choices", "207 Multi-Status"],
)
@pytest.mark.parametrize("verb", ["put", "post", "delete", "mkdir"])
def test_a_redirect_to_nowhere_and_a_partial_failure_are_no_success(
    run, canned, tmp_path, verb, status
):
    (tmp_path / "a").write_bytes(b"x")
    server = canned(
        answer(b"<Error>use the other endpoint</Error>", status), read_until=b"\r\n\r\n"
    )
    done = run(
        "httpclient.py",
        verb,
        *["a"] * (verb == "put"),
        f"http://127.0.0.1:{server.port}/a",
        cwd=tmp_path,
    )
    assert done.code == 22 and status in done.err and "use the other endpoint" in done.err, done


def test_a_time_that_no_calendar_has_does_not_keep_a_file_from_being_sent(run, canned, tmp_path):
    server = canned(answer(b"", "201 Created"), read_until=b"\r\n\r\nhello")
    # few file systems keep such a time
    with tempfile.NamedTemporaryFile(
        dir="/dev/shm" if os.path.isdir("/dev/shm") else tmp_path
    ) as file:
        file.write(b"hello")
        file.flush()
        with contextlib.suppress(OSError):
            os.utime(file.name, (9e18, 9e18))
        assert (
            run(
                "httpclient.py", "put", "--force", file.name, f"http://127.0.0.1:{server.port}/"
            ).code
            == 0
        )


def test_an_answer_whose_beginning_was_read_is_drained_no_further_than_its_end(
    run, listeners, tmp_path
):
    (tmp_path / "a").write_bytes(b"hello")
    (tmp_path / "b").write_bytes(b"hello")
    talks = []

    def store(conn):
        file = conn.makefile("rb")
        talks.append(conn)
        while request := file.readline():
            while file.readline() != b"\r\n":
                pass
            if request.startswith(b"PUT"):
                file.read(5)
            stored = (
                b"200 OK\r\nContent-Length: 6\r\n\r\nstored"
                if request.startswith(b"PUT")
                else b"404 No\r\nContent-Length: 0\r\n\r\n"
            )
            conn.sendall(b"HTTP/1.1 " + stored)

    listeners.append(Listener(store))
    done = run(
        "httpclient.py",
        "put",
        "--force",
        "a",
        "b",
        f"http://127.0.0.1:{listeners[-1].port}/",
        "--timeout",
        3,
        cwd=tmp_path,
    )
    assert done.code == 0 and done.err.count("sent unverified") == 2 and len(talks) == 1, done


def test_standard_input_is_sent_in_chunks(run, canned):
    server = canned(answer(b"", "201 Created"), read_until=b"0\r\n\r\n")
    assert (
        run(
            "httpclient.py",
            "put",
            "--force",
            "-",
            f"http://127.0.0.1:{server.port}/a",
            input=b"hello",
        ).code
        == 0
    )
    assert b"Transfer-Encoding: chunked" in server.read[0] and server.read[0].endswith(
        b"5\r\nhello\r\n0\r\n\r\n"
    )


def test_standard_input_that_cannot_be_read_is_26_at_once(canned):
    server = canned(b"HTTP/1.1 100 Continue\r\n\r\n", read_until=b"\r\n\r\n")
    with open(os.devnull, "wb") as unreadable:
        client = Process(
            SCRIPT, "put", "--force", "-", f"http://127.0.0.1:{server.port}/a", stdin=unreadable
        )
    assert client.wait() == 26 and "cannot read standard input" in client.err, client.err


@pytest.mark.parametrize(
    "words",
    [
        ("put", "--force", "-", "URL", "--retries", 0),
        ("put", "--force", "-", "URL"),
        ("post", "URL", "--data", "-"),
        ("post", "URL", "--data", "@big"),
    ],
)
def test_a_server_that_knows_no_expect_gets_the_body_without(run, listeners, tmp_path, words):
    (tmp_path / "big").write_bytes(bytes(2_000_000))
    heads = []

    def store(conn):
        with conn.makefile("rb") as file:
            while lines := list(itertools.takewhile(bytes.strip, file)):
                heads.append(b"".join(lines))
                if b"Expect" in heads[-1]:
                    conn.sendall(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
                    continue
                length = re.search(rb"Content-Length: (\d+)", heads[-1])
                heads.append(
                    file.read(int(length[1]))
                    if length
                    else b"".join(itertools.takewhile(bytes.strip, file))
                )
                conn.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    listeners.append(Listener(store))
    url = f"http://127.0.0.1:{listeners[-1].port}/a"
    done = run(
        *EXPECTANT,
        *(url if word == "URL" else word for word in words),
        input=b"hello",
        cwd=tmp_path,
    )
    assert done.code == 0 and heads[2:] == [
        bytes(2_000_000) if "@big" in words else b"5\r\nhello\r\n0\r\n"
    ], (done, heads)


@pytest.mark.parametrize(
    "read, code, said",
    [(b"\r\n\r\n", 0, "sent -"), (b"0\r\n\r\n", 47, "it has been read")],
    ids=["before", "after"],
)
def test_standard_input_goes_where_a_redirect_says_until_it_is_read(
    run, listeners, canned, read, code, said
):
    got = []

    def store(conn):
        with conn.makefile("rb") as file:
            list(itertools.takewhile(bytes.strip, file))
            conn.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            got.append(b"".join(itertools.takewhile(bytes.strip, file)))
            conn.sendall(answer(b"", "201 Created"))

    listeners.append(Listener(store))
    there = answer(b"", "307 There", f"Location: http://127.0.0.1:{listeners[-1].port}/b\r\n")
    gate = canned(there, read_until=read)
    words = EXPECTANT if code == 0 else ["httpclient.py"]
    done = run(*words, "put", "--force", "-", f"http://127.0.0.1:{gate.port}/a", input=b"hello")
    assert (
        done.code == code and said in done.err and got == [b"5\r\nhello\r\n0\r\n"] * (code == 0)
    ), (done, got)


def test_standard_input_goes_on_from_no_planted_note(run, listeners, tmp_path):
    heads = []

    def store(conn):
        with conn.makefile("rb") as file:
            heads.append(next(file, b""))
            list(itertools.takewhile(bytes.strip, file))
            if heads[-1].startswith(b"PUT"):
                conn.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                heads.append(b"".join(itertools.takewhile(bytes.strip, file)))
            conn.sendall(answer(b"", "204 Fine", "Upload-Offset: 0\r\nUpload-Complete: ?0\r\n"))

    listeners.append(Listener(store))
    url = h.parse_url(f"http://127.0.0.1:{listeners[-1].port}/a")
    note = tmp_path / h.part_name(url).replace(".part", ".json")
    note.write_text(json.dumps({"url": str(url), "resource": "/x", "size": None, "mtime_ns": 0}))
    done = run("httpclient.py", "put", "--force", "-", url, input=b"hello", cwd=tmp_path)
    assert done.code == 0 and heads == [b"PUT /a HTTP/1.1\r\n", b"5\r\nhello\r\n0\r\n"], (
        done,
        heads,
    )


def test_standard_input_that_was_read_is_not_sent_again_with_a_password(canned):
    pty = pytest.importorskip("pty")
    server = canned(
        answer(b"", "401 No", "WWW-Authenticate: Basic\r\n"),
        answer(b"", "201 Created"),
        read_until=b"0\r\n\r\n",
    )
    command = f"printf hello | {sys.executable} {COMPILED[SCRIPT.name]} put --force - http://127.0.0.1:{server.port}/a; echo exit $?"
    pid, end = pty.fork()
    if not pid:
        os.execvp("bash", ["bash", "-c", command])
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(end, 65536):
            said += chunk
            os.write(end, b"word\n" * (b"password for" in chunk))
    os.close(end)
    os.waitpid(pid, 0)
    assert b"401 No" in said and said.endswith(b"exit 22\r\n") and len(server.read) == 1, said


def test_a_large_body_waits_for_the_servers_word(run, canned, tmp_path):
    (tmp_path / "big").write_bytes(bytes(2_000_000))
    server = canned(
        answer(b"", "404 No"),
        answer(b"too big", "413 Too Large", "Content-Type: text/plain\r\n"),
        read_until=b"\r\n\r\n",
    )
    done = run(
        *EXPECTANT, "put", "--force", "big", f"http://127.0.0.1:{server.port}/big", cwd=tmp_path
    )
    assert done.code == 22 and "413 Too Large" in done.err and "too big" in done.err
    assert b"Expect: 100-continue" in server.read[1] and len(server.read[1]) < 1000


def test_an_early_refusal_is_read_while_sending(run, listeners, tmp_path):
    (tmp_path / "big").write_bytes(bytes(900_000))

    def refuse(conn):
        conn.recv(1000)
        conn.sendall(answer(b"", "507 Full"))
        conn.shutdown(socket.SHUT_WR)
        while conn.recv(65536):
            pass

    listeners.append(Listener(refuse))
    done = run(
        "httpclient.py",
        "put",
        "--force",
        "big",
        f"http://127.0.0.1:{listeners[-1].port}/big",
        "--timeout",
        5,
        cwd=tmp_path,
    )
    assert done.code == 22 and "507 Full" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("put", "--force", "big", "URL"),
        ("post", "URL", "--data", "@big"),
        ("put", "--force", "-", "URL"),
    ],
)
def test_a_success_that_is_told_early_does_not_end_the_body(run, listeners, tmp_path, words):
    (tmp_path / "big").write_bytes(BODY * 30)  # more than fits on the way
    got = []

    def store(conn):
        with conn.makefile("rb") as file:
            head = b"".join(itertools.takewhile(bytes.strip, file))
            if head.startswith(b"OPTIONS"):
                return conn.sendall(answer())
            conn.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            file.peek()
            conn.sendall(answer(b"", "201 Created"))
            length = re.search(rb"Content-Length: (\d+)", head)
            sizes = (int(line, 16) for line in file if line.strip())
            got.append(
                file.read(int(length[1]))
                if length
                else b"".join(file.read(size) for size in iter(sizes.__next__, 0))
            )

    listeners.append(Listener(store))
    url = f"http://127.0.0.1:{listeners[-1].port}/a"
    done = run(
        *EXPECTANT,
        *(url if word == "URL" else word for word in words),
        input=BODY * 30,
        cwd=tmp_path,
    )
    assert done.code == 0, done
    until(lambda: got, "the body")
    assert got == [BODY * 30], list(map(len, got))


def test_an_answer_is_read_though_the_server_hung_up_on_the_body(run, canned, tmp_path):
    (tmp_path / "big").write_bytes(bytes(900_000))
    server = canned(answer(b"", "403 Forbidden"), read_until=b"\r\n\r\n", drain=False)
    done = run(
        "httpclient.py",
        "put",
        "--force",
        "big",
        f"http://127.0.0.1:{server.port}/big",
        "--retries",
        0,
        cwd=tmp_path,
    )
    assert done.code in (22, 55) and "Traceback" not in done.err


def test_data_and_a_form_are_not_sent_as_one_of_them(run, canned):
    server = canned(answer(b""), read_until=b"\r\n\r\n")
    done = run(
        "httpclient.py", "post", f"http://127.0.0.1:{server.port}/", "--data", "a", "--form", "b=c"
    )
    assert done.code == 2 and "two bodies" in done.err and not server.read


def test_a_form_is_sent_as_browsers_do(run, canned, tmp_path):
    (tmp_path / 'a"b.txt').write_bytes(b"hello")
    server = canned(answer(b"thanks"), read_until=b"--\r\n")
    done = run(
        "httpclient.py",
        "post",
        f"http://127.0.0.1:{server.port}/",
        "--form",
        "text=a=b",
        "--form",
        'file=@a"b.txt',
        cwd=tmp_path,
    )
    assert (done.code, done.out) == (0, b"thanks")
    head, _, body = server.read[0].partition(b"\r\n\r\n")
    boundary = re.search(rb"boundary=(\w+)", head)[1]
    assert body == (
        b'--%b\r\nContent-Disposition: form-data; name="text"\r\n\r\na=b\r\n--%b\r\nContent-Disposition: form-data; name="file"; '
        b'filename="a%%22b.txt"\r\nContent-Type: application/octet-stream\r\n\r\nhello\r\n--%b--\r\n'
        % (boundary, boundary, boundary)
    )
    assert int(re.search(rb"Content-Length: (\d+)", head)[1]) == len(body)


@pytest.mark.parametrize(
    "new, path",
    [("note: 1.txt", "/in/note%3A%201.txt"), ("/b", "/b"), ("../b", "/b"), ("http://h/b:c", None)],
)
def test_a_file_is_moved_to_any_name(run, canned, new, path):
    server = canned(answer(b"", "201 Created"), read_until=b"\r\n\r\n")
    base = f"http://127.0.0.1:{server.port}"
    assert run("httpclient.py", "move", f"{base}/in/a", new).code == 0
    assert f"\r\nDestination: {base + path if path else new}\r\n".encode() in server.read[0]


@pytest.mark.parametrize("there", [[], ["a"]], ids=["of the folder", "of a file"])
def test_an_upload_asks_again_when_an_answer_is_lost(run, canned, tmp_path, there):
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "a").write_bytes(b"hello")
    index = (
        [
            answer(
                json.dumps([{"name": "a"}]).encode(), headers="Content-Type: application/json\r\n"
            ),
        ]
        if there
        else []
    )
    server = canned(
        *index,
        *([b"", b""] if there else [b""]),
        *([] if there else [answer(b"", "404 No"), answer(b"", "201 Created")]),
        answer(b"", "201 Created"),
        read_until=b"\r\n\r\n",
    )
    done = run("httpclient.py", "upload", "up", f"http://127.0.0.1:{server.port}/", cwd=tmp_path)
    # a file about which no answer came is sent
    assert done.code == 0 and ("trying again" in done.err or there), (done, server.read)
    assert server.read[-1].startswith(b"PUT /a")


def test_an_upload_says_why_something_stays_here(run, canned, tmp_path):
    for name in f".six-{1:032}.part", f".six-{2:032}.json", ".git":
        (tmp_path / name).write_text("x")
    for flags, said in ([], "takes such names"), (["--hidden"], "unfinished"):
        server = canned(
            answer(b"[]", headers="Content-Type: application/json\r\n"),
            answer(b"", "201 Created"),
            read_until=b"\r\n\r\n",
        )
        err = run(
            "httpclient.py", "upload", tmp_path, f"http://127.0.0.1:{server.port}/", *flags
        ).err
        assert (
            "1.part: an unfinished transfer\n" in err
            and said in err
            and (".git: " in err) == (not flags)
            and "2.json" not in err
            and "1 unfinished" in err
        ), err


class Uploads(Listener):
    """A server that speaks the resumable-upload draft, and cuts the connection after so many bytes, so many times.
    What happens meanwhile is done after each body, before the answer or the cut."""

    def __init__(self, cut_at, times, meanwhile=lambda: None, busy=0, damaged=0):
        self.busy = busy  # so many times
        self.damaged = damaged  # so many uploads
        self.cut_at, self.times, self.data, self.methods, self.received = cut_at, times, b"", [], 0
        self.meanwhile = meanwhile
        super().__init__(self.talk)

    def talk(self, conn):
        conn.settimeout(DEADLINE)
        file = conn.makefile("rb")
        while line := file.readline():
            fields = {}
            while (field := file.readline()) not in (b"\r\n", b""):
                name, _, value = field.decode().partition(":")
                fields[name.lower()] = value.strip()
            self.methods.append(line.split()[0].decode())
            if not self.respond(conn, file, self.methods[-1], line.split()[1], fields):
                return

    def respond(self, conn, file, method, path, fields):
        if method == "HEAD" and self.busy:
            self.busy -= 1
            conn.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")
        elif method == "HEAD" and path == b"/big":
            conn.sendall(
                b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (self.digest(), self.length)
            )
        elif method == "HEAD":
            assert path == b"/up/8"
            conn.sendall(
                f"HTTP/1.1 204 OK\r\nUpload-Offset: {len(self.data)}\r\nUpload-Complete: ?{int(len(self.data) == self.length)}\r\n\r\n".encode()
            )
        elif method == "OPTIONS":
            conn.sendall(b"HTTP/1.1 204 OK\r\nUpload-Limit: min-size=0\r\n\r\n")
        elif method == "PUT":
            assert (
                fields["upload-complete"] == "?0"
                and fields["content-length"] == "0"
                and "expect" not in fields
            )
            self.data, self.length = b"", int(fields["upload-length"])
            conn.sendall(
                b"HTTP/1.1 201 Created\r\nLocation: /up/8\r\nUpload-Complete: ?0\r\nContent-Length: 0\r\n\r\n"
            )
        else:
            assert (path, fields["upload-complete"], int(fields["upload-offset"])) == (
                b"/up/8",
                "?1",
                len(self.data),
            )
            conn.sendall(
                b"HTTP/1.1 104 Upload Resumption Supported\r\nUpload-Draft-Interop-Version: 8\r\nUpload-Offset: 0\r\n\r\n"
                * 30
            )
            length = int(fields["content-length"])
            assert len(self.data) + length == self.length
            cut = self.times > 0 and self.cut_at <= length
            self.times -= 1
            got = file.read(self.cut_at if cut else length)
            self.data, self.received = self.data + got, self.received + len(got)
            self.meanwhile()
            if cut:
                return False
            assert fields["want-repr-digest"] == "sha-256=1"
            conn.sendall(b"HTTP/1.1 201 Created\r\n%bContent-Length: 0\r\n\r\n" % self.digest())
        return True

    def digest(self):
        self.damaged -= 1
        stored = hashlib.sha256(self.data + b"!" * (self.damaged >= 0)).digest()
        return f"Repr-Digest: sha-256=:{h.b64(stored)}:\r\n".encode()


@pytest.mark.parametrize("times", [1, 9])
def test_an_upload_that_arrives_damaged_is_sent_again_and_told(run, listeners, tmp_path, times):
    (tmp_path / "big").write_bytes(BODY * 10)
    server = Uploads(cut_at=0, times=0, damaged=times)
    listeners.append(server)
    url = f"http://127.0.0.1:{server.port}/big"
    command = "put", "--force", "big", url
    done = run("httpclient.py", *command, "--retries", 2, cwd=tmp_path)
    assert "arrived damaged" in done.err and names(tmp_path) == ["big"], done
    assert server.methods == ["OPTIONS", *["PUT", "PATCH"] * min(times + 1, 3)]
    assert done.code == (0 if times == 1 else 56), done


def test_an_upload_that_is_resumed_is_compared_whole(run, listeners, tmp_path):
    (tmp_path / "big").write_bytes(BODY * 10)
    server = Uploads(cut_at=700_000, times=1, damaged=1)
    listeners.append(server)
    command = "put", "--force", "big", f"http://127.0.0.1:{server.port}/big"
    done = run("httpclient.py", *command, cwd=tmp_path)
    assert done.code == 0 and "arrived damaged" in done.err and server.data == BODY * 10, done
    assert server.methods == ["OPTIONS", "PUT", "PATCH", "HEAD", "PATCH", "PUT", "PATCH"]


def test_a_file_that_changes_at_the_end_of_an_upload_is_not_called_damaged(listeners, tmp_path):
    (tmp_path / "big").write_bytes(BODY * 10)
    server = Uploads(cut_at=700_000, times=1)
    listeners.append(server)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h\n"
        "file_digest = h.file_digest\n"
        "def later(path, name):\n"
        "    with open(path, 'ab') as file: file.write(b'more')\n"
        "    return file_digest(path, name)\n"
        "h.file_digest = later\nsys.exit(h.main())"
    )
    command = "put", "--force", "big", f"http://127.0.0.1:{server.port}/big"
    command = [sys.executable, "-c", code, *command]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 18 and "big changed while it was sent" in done.stderr, done
    assert "damaged" not in done.stderr and names(tmp_path) == ["big"]
    assert server.methods == ["OPTIONS", "PUT", "PATCH", "HEAD", "PATCH"]


def test_an_upload_is_resumed_where_the_server_speaks_the_draft(run, listeners, tmp_path):
    (tmp_path / "big").write_bytes(BODY * 10)
    server = Uploads(cut_at=700_000, times=3)
    listeners.append(server)
    assert (
        run(
            "httpclient.py",
            "put",
            "--force",
            "big",
            f"http://127.0.0.1:{server.port}/big",
            cwd=tmp_path,
        ).code
        == 0
    )
    assert server.data == BODY * 10 and server.received == len(server.data)
    assert server.methods == ["OPTIONS", "PUT", *["PATCH", "HEAD"] * 3, "PATCH"]


def test_an_upload_that_another_connection_still_writes_is_asked_for_again(
    run, listeners, tmp_path
):
    (tmp_path / "big").write_bytes(BODY * 10)
    server = Uploads(cut_at=700_000, times=1, busy=2)
    listeners.append(server)
    assert (
        run(
            "httpclient.py",
            "put",
            "--force",
            "big",
            f"http://127.0.0.1:{server.port}/big",
            cwd=tmp_path,
        ).code
        == 0
    )
    assert server.data == BODY * 10 and server.methods == [
        "OPTIONS",
        "PUT",
        "PATCH",
        "HEAD",
        "HEAD",
        "HEAD",
        "PATCH",
    ]


@pytest.mark.parametrize("damaged", [0, 1])
def test_an_upload_whose_last_answer_is_lost_is_sent_again_only_if_it_arrived_damaged(
    run, listeners, tmp_path, damaged
):
    (tmp_path / "big").write_bytes(BODY * 10)
    server = Uploads(cut_at=len(BODY * 10), times=1, damaged=damaged)
    listeners.append(server)
    assert (
        run(
            "httpclient.py",
            "put",
            "--force",
            "big",
            f"http://127.0.0.1:{server.port}/big",
            cwd=tmp_path,
        ).code
        == 0
    )
    methods = ["OPTIONS", "PUT", "PATCH", "HEAD", "HEAD", *["PUT", "PATCH"] * damaged]
    assert server.methods == methods and names(tmp_path) == ["big"]


def test_an_upload_is_resumed_by_the_same_command_again(run, listeners, tmp_path):
    (tmp_path / "big").write_bytes(BODY * 10)
    listeners.append(Uploads(cut_at=700_000, times=1))
    server, command = (
        listeners[-1],
        ["put", "--force", "big", f"http://127.0.0.1:{listeners[-1].port}/big"],
    )
    assert run("httpclient.py", *command, "--retries", 0, cwd=tmp_path).code in (18, 52, 55)
    assert len(names(tmp_path)) == 2
    rest = len(BODY) * 10 - server.received
    done = run("httpclient.py", *command, cwd=tmp_path)
    assert done.code == 0 and f"sent big ({rest:,} bytes" in done.err
    assert (
        server.data == BODY * 10
        and server.received == len(server.data)
        and names(tmp_path) == ["big"]
    )
    assert server.methods == ["OPTIONS", "PUT", "PATCH", "HEAD", "PATCH"]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_the_bar_of_an_upload_tells_what_the_server_has(listeners, tmp_path):
    (tmp_path / "big").write_bytes(BODY * 10)
    listeners.append(Uploads(cut_at=1_000_000, times=2))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h; h.DRAWN_EVERY = -1; sys.exit(h.main())"
    here, there = os.openpty()
    client = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "put",
            "--force",
            "big",
            f"http://127.0.0.1:{listeners[-1].port}/big",
        ],
        cwd=tmp_path,
        stderr=there,
    )
    os.close(there)
    drawn = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(here, 65536):
            drawn += chunk
    os.close(here)
    shares = [int(share) for share in re.findall(rb"(\d+)%", drawn)]
    assert client.wait(DEADLINE) == 0 and max(shares) == shares[-1] == 100, shares


def test_an_upload_killed_in_the_middle_is_resumed(run, listeners, tmp_path):
    (tmp_path / "big").write_bytes(BODY * 10)
    started, gone = threading.Event(), threading.Event()

    def kill():
        if not started.is_set():
            assert len(names(tmp_path)) == 2
            started.set()
            gone.wait(DEADLINE)

    server = Uploads(700_000, 1, kill)
    listeners.append(server)
    command = ["put", "--force", "big", f"http://127.0.0.1:{server.port}/big"]
    client = Process(SCRIPT, *command, cwd=tmp_path)
    assert started.wait(DEADLINE)
    client.kill()
    gone.set()
    assert run("httpclient.py", *command, cwd=tmp_path).code == 0
    assert (
        server.data == BODY * 10
        and server.received == len(server.data)
        and names(tmp_path) == ["big"]
    )
    assert server.methods == ["OPTIONS", "PUT", "PATCH", "HEAD", "PATCH"]


def rewriter(folder, *bodies):
    """What gives the file big another content each time, as long as there is one."""
    left = list(bodies)

    def rewrite():
        if left:
            (folder / "new").write_bytes(left.pop(0))
            os.replace(folder / "new", folder / "big")

    return rewrite


def test_a_file_that_changes_between_tries_is_sent_from_its_start(run, listeners, tmp_path):
    (tmp_path / "big").write_bytes(BODY * 10)
    server = Uploads(700_000, 1, rewriter(tmp_path, BODY[::-1] * 10))
    listeners.append(server)
    assert (
        run(
            "httpclient.py",
            "put",
            "--force",
            "big",
            f"http://127.0.0.1:{server.port}/big",
            cwd=tmp_path,
        ).code
        == 0
    )
    assert server.data == BODY[::-1] * 10 and names(tmp_path) == ["big"]
    assert server.methods == ["OPTIONS", "PUT", "PATCH", "OPTIONS", "PUT", "PATCH"]


def test_a_file_that_changes_while_it_is_sent_is_18(run, listeners, tmp_path):
    (tmp_path / "big").write_bytes(BODY * 10)
    server = Uploads(700_000, 0, rewriter(tmp_path, BODY[::-1] * 10))
    listeners.append(server)
    done = run(
        "httpclient.py",
        "put",
        "--force",
        "big",
        f"http://127.0.0.1:{server.port}/big",
        cwd=tmp_path,
    )
    assert (
        done.code == 18
        and "big changed while it was sent" in done.err
        and names(tmp_path) == ["big"]
    )


def test_a_missing_local_file_is_26_and_the_others_are_sent(run, canned, tmp_path):
    (tmp_path / "b").write_bytes(b"b")
    server = canned(answer(b"", "201 Created"), read_until=b"\r\n\r\n")
    done = run(
        "httpclient.py",
        "put",
        "--force",
        "a",
        "b",
        f"http://127.0.0.1:{server.port}/",
        cwd=tmp_path,
    )
    assert done.code == 26 and "cannot read a: No such file" in done.err and "sent b" in done.err


# --- folders ---
def test_a_missing_local_file_is_26_also_where_the_current_folder_is_gone(tmp_path):
    command = f"cd {tmp_path} && rmdir {tmp_path} && {sys.executable} {COMPILED[SCRIPT.name]} put gone http://127.0.0.1:1/"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert done.returncode == 26 and b"the current folder is gone" in done.stderr, done.stderr


@pytest.fixture
def stock(tmp_path):
    """Python's own server, for a folder of its own: HTTP/1.0, an index of plain links, no ranges."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_mirror_of_pythons_own_server_and_again_only_what_changed(run, stock, tmp_path):
    folder, url = stock
    (folder / "sub" / "deep ü").mkdir(parents=True)
    for name in "a", "b c\n\"'<&>%41", "sub/x.txt", "sub/deep ü/y;z?#":
        (folder / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    assert run("httpclient.py", "mirror", url, "-o", "copy", cwd=tmp_path).code == 0
    assert tree(tmp_path / "copy") == tree(folder)
    (folder / "a").write_bytes(b"changed")
    (tmp_path / "copy" / "sub" / "x.txt").unlink()
    done = run("httpclient.py", "mirror", url, "-o", "copy", cwd=tmp_path)
    assert done.code == 0 and told(done) == (2, 2, 0)
    assert tree(tmp_path / "copy") == tree(folder)


@pytest.mark.parametrize("own", [False, True], ids=["told by the index", "asked for"])
def test_mirror_replaces_by_force_also_what_looks_the_same(run, spawn, stock, tmp_path, own):
    folder, url = stock
    url = url if own else f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/"
    (folder / "a").write_bytes(b"theirs")
    assert run("httpclient.py", "mirror", url, "-o", "copy", cwd=tmp_path).code == 0
    when = os.stat(tmp_path / "copy" / "a").st_mtime
    (tmp_path / "copy" / "a").write_bytes(b"broken")
    os.utime(tmp_path / "copy" / "a", (when, when))
    again = "httpclient.py", "mirror", url, "-o", "copy"
    assert told(run(*again, cwd=tmp_path)) == (0, 1, 0)
    assert told(run(*again, "--force", cwd=tmp_path)) == (1, 0, 0)
    assert (tmp_path / "copy" / "a").read_bytes() == b"theirs"


def test_list_shows_names_of_pythons_own_server(run, stock):
    folder, url = stock
    (folder / "sub").mkdir()
    (folder / "a\nb").write_bytes(b"")
    done = run("httpclient.py", "list", url)
    assert done.code == 0 and [
        line.split(maxsplit=2)[2] for line in done.out.decode().splitlines()
    ] == ["a\\nb", "sub/"]


def test_an_index_that_names_a_file_twice_is_listed(run, canned):
    server = canned(
        answer(
            b'[{"name": "a", "size": 1}, {"name": "a"}]',
            headers="Content-Type: application/json\r\n",
        ),
        read_until=b"\r\n\r\n",
    )
    done = run("httpclient.py", "list", f"http://127.0.0.1:{server.port}/")
    assert done.code == 0 and [line.split()[0] for line in done.out.splitlines()] == [b"1", b"-"], (
        done
    )


def test_a_hostile_index_writes_nothing_outside(run, files, tmp_path):
    links = [
        "../../evil",
        "/etc/passwd",
        "%2e%2e/evil",
        "..%2fevil",
        "%2fetc%2fevil",
        "http://127.0.0.1:1/evil",
        "//127.0.0.1:1/x",
        ".ssh",
        "..%5c",
        "x%5cy",
        "a%00b",
        "good",
        ".six-" + "0" * 32 + ".part",
        "ok/../../evil",
        "sub/",
        "?C=N;O=D",
    ]
    index = answer(
        "".join(f'<a href="{each}">' for each in links).encode(),
        headers="Content-Type: text/html\r\n",
    )
    out = answer(b"", "302 Found", "Location: /elsewhere/\r\n")

    def serve(head):
        path = head.split()[1]
        return (
            index
            if path == "/pub/"
            else out
            if path == "/pub/sub/"
            else answer(b"good" if path == "/pub/good" else b"evil")
        )

    server = files(b"", hook=serve)
    (tmp_path / "dest").mkdir()
    done = run(
        "httpclient.py",
        "mirror",
        f"http://127.0.0.1:{server.port}/pub/",
        "-o",
        "dest/copy",
        cwd=tmp_path,
    )
    assert done.code == 56 and "leads out of" in done.err
    assert names(tmp_path) == ["dest"] and names(tmp_path / "dest") == ["copy"]
    assert tree(tmp_path / "dest" / "copy") == {"good": b"good", "x\\y": b"evil"}
    assert {head.split()[1] for head in server.heads if head} == {
        "/pub/",
        "/pub/good",
        "/pub/x%5Cy",
        "/pub/sub/",
        "/elsewhere/",
    }


def test_a_link_planted_in_the_destination_is_not_followed(run, stock, tmp_path):
    folder, url = stock
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_bytes(b"x")
    (tmp_path / "copy").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "copy" / "sub").symlink_to(tmp_path / "outside")
    assert run("httpclient.py", "mirror", url, "-o", "copy", cwd=tmp_path).code == 23
    assert names(tmp_path / "outside") == []


def test_a_name_that_a_server_chose_is_never_a_pipe(run, stock, canned, tmp_path):
    for name in "pipe", "-":
        (stock[0] / name).write_bytes(b"x")
    (tmp_path / "copy").mkdir()
    os.mkfifo(tmp_path / "copy" / "pipe")
    (tmp_path / "copy" / "file").write_bytes(b"old")
    done = run("httpclient.py", "mirror", stock[1], "-o", tmp_path / "copy")
    assert (done.code, done.out) == (23, b"") and (tmp_path / "copy" / "-").read_bytes() == b"x"
    # whatever a file called "-" holds
    assert get(run, tmp_path / "copy", f"{stock[1]}pipe", "-o", "-").out == b"x"
    server = canned(
        answer(b"x", headers='Content-Disposition: attachment; filename="pipe"\r\n'),
        read_until=b"\r\n\r\n",
    )
    for more in [], ["--force"]:
        assert get(run, tmp_path / "copy", f"http://127.0.0.1:{server.port}/file", *more).code == 23
    assert (
        names(tmp_path / "copy") == ["-", "file", "pipe"] and (tmp_path / "copy" / "pipe").is_fifo()
    )


def test_mirror_pipelines_and_survives_a_server_that_hangs_up(run, files, tmp_path):
    index = "".join(f'<a href="f{number}">' for number in range(50)).encode()
    counts = iter(range(1 << 20))

    def serve(head):
        if head.split()[1] == "/":
            return (
                f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(index)}\r\n\r\n".encode()
                + index
            )
        name = head.split()[1].encode()
        close = b"Connection: close\r\n" if next(counts) % 7 == 6 else b""
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n%b" % (len(name), close, name)

    server = files(b"", hook=serve)
    assert (
        run(
            "httpclient.py",
            "mirror",
            f"http://127.0.0.1:{server.port}/",
            "-o",
            "copy",
            cwd=tmp_path,
        ).code
        == 0
    )
    assert tree(tmp_path / "copy") == {f"f{number}": b"/f%d" % number for number in range(50)}


def test_mirror_goes_on_past_a_bad_file_and_resumes_a_cut_one(run, files, tmp_path):
    index = b'<a href="a"><a href="bad"><a href="file.bin"><a href="z">'

    def serve(head):
        path = head.split()[1]
        if path == "/":
            return answer(index, headers="Content-Type: text/html\r\n")
        return (
            None
            if path == "/file.bin"
            else answer(b"", "403 No")
            if path == "/bad"
            else answer(path.encode())
        )

    server = files(BODY * 4, hook=serve, cuts=[500_000])
    done = run(
        "httpclient.py", "mirror", f"http://127.0.0.1:{server.port}/", "-o", "copy", cwd=tmp_path
    )
    assert done.code == 22 and "/bad: 403" in done.err
    assert tree(tmp_path / "copy") == {
        "a": b"/a",
        "z": b"/z",
        "file.bin": BODY * 4,
    } and server.sent == len(BODY * 4)


def test_mirror_leaves_nothing_of_a_short_file_that_is_always_cut(run, files, tmp_path):
    index = answer(
        b'<a href="a"><a href="file.bin"><a href="z">', headers="Content-Type: text/html\r\n"
    )
    server = files(
        BODY[:1000],
        cuts=[500] * 9,
        headers=DATE,
        hook=lambda head: (
            None
            if "file.bin" in head
            else index
            if head.split()[1] == "/"
            else answer(b"x", headers=DATE)
        ),
    )
    done = run(
        "httpclient.py",
        "mirror",
        f"http://127.0.0.1:{server.port}/",
        "-o",
        "copy",
        "--retries",
        0,
        cwd=tmp_path,
    )
    assert done.code == 18 and names(tmp_path / "copy") == ["a", "z"]
    assert int(os.stat(tmp_path / "copy" / "z").st_mtime) == MTIME


def test_mirror_checks_the_digest_of_a_short_file_before_it_has_a_name(run, files, tmp_path):
    wrong = "Repr-Digest: sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:\r\n"
    index = answer(b'<a href="a"><a href="bad">', headers="Content-Type: text/html\r\n")
    replies = {"/": index, "/a": answer(b"a"), "/bad": answer(b"bad", headers=wrong)}
    server = files(b"", hook=lambda head: replies[head.split()[1]])
    done = run("httpclient.py", "mirror", f"http://127.0.0.1:{server.port}/", "-o", tmp_path / "m")
    assert done.code == 56 and "wrong sha256" in done.err
    assert tree(tmp_path / "m") == {"a": b"a"}


@pytest.mark.parametrize("step", ["copy_facts", "rename"])
def test_mirror_killed_at_a_short_file_leaves_a_part_that_goes_an_hour_later(
    run, files, tmp_path, step
):
    index = answer(b'<a href="a"><a href="b">', headers="Content-Type: text/html\r\n")
    replies = {"/": index, "/a": answer(b"whole"), "/b": answer(b"whole")}
    server = files(b"", hook=lambda head: replies[head.split()[1]])
    deadly = (
        f"import os, signal, sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h\n"
        f"h.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "h.main()"
    )
    words = "mirror", f"http://127.0.0.1:{server.port}/", "-o", tmp_path / "m"
    killed = subprocess.run([sys.executable, "-c", deadly, *map(str, words)], check=False)
    assert killed.returncode == -9
    (part,) = (tmp_path / "m").iterdir()
    assert part.name.endswith(".part")
    os.utime(part, (time.time() - 4000,) * 2)
    assert run("httpclient.py", *words).code == 0
    assert tree(tmp_path / "m") == {"a": b"whole", "b": b"whole"}


def test_mirror_fetches_a_short_file_again_whose_part_another_run_removed(run, files, tmp_path):
    index = answer(b'<a href="a">', headers="Content-Type: text/html\r\n")
    server = files(b"", hook=lambda head: index if head.split()[1] == "/" else answer(b"whole"))
    swept = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h\n"
        "rename = h.rename\n"
        "def sweep(part, *more): h.rename = rename; os.unlink(part); rename(part, *more)\n"
        "h.rename = sweep; sys.exit(h.main())"
    )
    words = "mirror", f"http://127.0.0.1:{server.port}/", "-o", tmp_path / "m"
    done = run("-c", swept, *words)
    assert done.code == 0 and tree(tmp_path / "m") == {"a": b"whole"}, done


def test_mirror_goes_on_past_a_bad_file_that_comes_with_a_malformed_head(run, files, tmp_path):
    pages = {
        "/": answer(
            b'<a href="a"><a href="bad"><a href="z"><a href="sub/">',
            headers="Content-Type: text/html\r\n",
        ),
        "/sub/": answer(b'<a href="y">', headers="Content-Type: text/html\r\n"),
        "/bad": b"HTTP/1.1 200 OK\r\njunk\r\nConnection: close\r\n\r\n",
    }
    server = files(b"", hook=lambda head: pages.get(head.split()[1]) or answer(b"x"))
    done = run(
        "httpclient.py", "mirror", f"http://127.0.0.1:{server.port}/", "-o", "copy", cwd=tmp_path
    )
    assert done.code == 56 and done.err.count("error: ") == 1
    assert tree(tmp_path / "copy") == {"a": b"x", "z": b"x", "sub/y": b"x"}


# --- being used ---
def test_alone_on_every_python(alone, files, tmp_path, full):
    script, server, found = alone("httpclient.py", for_any=True), files(BODY), interpreters()
    for version in found if full else [min(found, key=lambda name: int(name[2:]))]:
        python = found[version]
        done = subprocess.run(
            [python, "-W", "error", "-I", script, "get", server.url, "-o", version],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (version, done.stderr)
        assert (tmp_path / version).read_bytes() == BODY


def test_without_calls_that_other_systems_lack(files, tmp_path):
    server = files(random.Random(7).randbytes(5_000_000))
    code = f"import os, sys, runpy; del os.link, os.O_NOFOLLOW; sys.modules['fcntl'] = None; sys.argv = sys.argv[1:]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    for more in [], ["--connections", "3"]:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                "httpclient.py",
                "get",
                server.url,
                "-o",
                f"a{len(more)}",
                *more,
            ],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0 and (tmp_path / f"a{len(more)}").read_bytes() == server.body, (
            done.stderr
        )


def test_a_file_system_without_locks_does_without(files, tmp_path):
    """Nobody can tell there whether a part without content is being written, so it stays."""
    server = files(BODY)
    week, empty = (tmp_path / f".six-{digit * 32}.part" for digit in "ab")
    week.write_bytes(b"x")
    empty.touch()
    os.utime(week, (1, 1))
    os.utime(empty, (1, 1))
    code = (
        f"import fcntl, sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient\n"
        "def flock(*_): raise OSError(38, 'Function not implemented')\nfcntl.flock = flock\nsys.exit(httpclient.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "get", server.url],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and (tmp_path / "file.bin").read_bytes() == BODY, done.stderr
    assert names(tmp_path) == [empty.name, "file.bin"]


def test_ctrl_c_keeps_what_came_and_the_next_run_goes_on(run, listeners, files, tmp_path):
    gone = threading.Event()
    server = files(BODY * 4)

    def stall(conn):
        head = server.read_head(conn.makefile("rb"))
        if gone.is_set():
            server.respond(conn, head)
            return
        conn.sendall(
            f'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: {len(server.body)}\r\n\r\n'.encode()
            + server.body[:500_000]
        )
        conn.recv(1)

    listeners.append(Listener(stall))
    url = f"http://127.0.0.1:{listeners[-1].port}/file.bin"
    first = Process(SCRIPT, "get", url, "--trace", cwd=tmp_path)
    first.wait_for(r"received so far 500\d\d\d\)")
    first.process.send_signal(2)
    assert first.wait() == 130 and "Traceback" not in first.err
    gone.set()
    assert run("httpclient.py", "get", url, cwd=tmp_path).code == 0
    assert (tmp_path / "file.bin").read_bytes() == server.body and server.sent <= len(
        server.body
    ) - 500_000 + h.BUFFER


def test_nobody_listening_and_nobody_of_that_name(run):
    done = run("httpclient.py", "get", "/x", "--port", 1)
    assert (
        done.code == 7
        and "nothing is listening on 127.0.0.1:1" in done.err
        and "python3 httpserver.py --port 1" in done.err
    )
    assert run("httpclient.py", "get", "http://no-such-host.invalid/").code == 6


def test_a_silent_server_is_28(run, canned, tmp_path):
    server = canned(b"", read_until=b"never comes")
    done = get(run, tmp_path, f"http://127.0.0.1:{server.port}/", "--timeout", 0.2, "--retries", 0)
    assert done.code == 28 and "said nothing for 0.2 s" in done.err


@pytest.mark.parametrize(
    "begun",
    [
        b"Content-Length: 9\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"\r\nhello",
    ],
    ids=["length", "chunked", "close"],
)
def test_a_server_that_falls_silent_in_a_body_is_28(run, listeners, tmp_path, begun):
    def talk(conn):
        conn.recv(65536)
        conn.sendall(b"HTTP/1.1 200 OK\r\n" + begun)
        conn.recv(1)  # the end, when the client leaves

    listeners.append(Listener(talk))
    done = get(
        run, tmp_path, f"http://127.0.0.1:{listeners[-1].port}/a", "--timeout", 0.2, "--retries", 0
    )
    assert done.code == 28 and "said nothing for 0.2 s" in done.err and names(tmp_path) == []


def test_trace_and_verbose_mask_what_is_secret(run, canned, tmp_path):
    server = canned(answer(b"x"), read_until=b"\r\n\r\n")
    done = get(
        run, tmp_path, f"http://127.0.0.1:{server.port}/a", "--user", "me:word", "--trace-hex", "-v"
    )
    assert (
        done.code == 0
        and "bWU6d29yZA" not in done.err
        and "> Authorization: ***" in done.err
        and "recv" in done.err
    )


def test_a_server_that_resets_at_once_is_told_in_three_lines(monkeypatch, capsys, tmp_path):
    connect = h.open_connection

    def reset(*args):
        sock = connect(*args)
        conn, _ = server.accept()
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST
        conn.close()
        assert select.select([sock], [], [], DEADLINE)[0]
        return sock

    # so that the reset comes before anything else is done with the connection
    monkeypatch.setattr(h, "open_connection", reset)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE)
        assert h.main(
            [
                "get",
                f"http://127.0.0.1:{server.getsockname()[1]}/a",
                "-o",
                f"{tmp_path}/a",
                "--retries",
                "0",
            ]
        ) in (52, 55)
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(files, proxy, tmp_path):
    way = proxy(files(BODY * 4).port, delay=0.03)
    command = [sys.executable, SCRIPT, "get", f"http://127.0.0.1:{way.port}/file.bin", "--force"]
    drawn = {}
    for name, more in ("shown", []), ("quiet", ["--quiet"]):
        here, there = os.openpty()
        client = subprocess.Popen([*command, *more], cwd=tmp_path, stderr=there)
        os.close(there)
        drawn[name] = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while chunk := os.read(here, 65536):
                drawn[name] += chunk
        os.close(here)
        assert client.wait(DEADLINE) == 0
    assert (
        re.search(rb"\rfile\.bin  \[#+ *\] +\d+%  [\d.]+ .B\x1b", drawn["shown"])
        and drawn["quiet"] == b""
    )
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0 and re.fullmatch(
        rb"saved file\.bin \(1,200,000 bytes, [\d.]+ .B/s\)\n", done.stderr
    )


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_a_download_outlives_its_terminal(files, proxy, tmp_path):
    way = proxy(files(BODY * 4).port, hold_at=500_000, delay=0.03)
    here, there = os.openpty()
    client = subprocess.Popen(
        [sys.executable, SCRIPT, "get", f"http://127.0.0.1:{way.port}/file.bin"],
        cwd=tmp_path,
        stderr=there,
        start_new_session=True,
    )
    os.close(there)
    while b"%" not in os.read(here, 65536):
        pass
    os.close(here)
    way.go.set()
    assert client.wait(DEADLINE) == 0 and (tmp_path / "file.bin").read_bytes() == BODY * 4


def test_output_to_a_closed_pipe_ends_quietly(files, tmp_path):
    command = f"{sys.executable} {COMPILED[SCRIPT.name]} get {files(BODY * 10).url} -o - | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize(
    "words, shell, code",
    [
        (["get", "URL", "-o", "-"], ">&-", 23),
        (["list", "URL"], ">&-", 23),
        (["post", "URL", "--data", "x"], ">&-", 23),
        (["put", "--force", "-", "URL"], "<&-", 26),
    ],
)
def test_a_connection_is_never_taken_for_a_closed_standard_stream(
    canned, tmp_path, words, shell, code
):
    page = answer(b"<a href=product>", headers="Content-Type: text/html\r\n")
    server = canned(
        b"HTTP/1.1 100 Continue\r\n\r\n" if code == 26 else page, read_until=b"\r\n\r\n"
    )
    url = f"http://127.0.0.1:{server.port}/"
    command = [
        sys.executable,
        COMPILED[SCRIPT.name],
        *(url + "x" * (code == 26) if word == "URL" else word for word in words),
    ]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {shell}', "bash", *command],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (
        done.returncode == code and b"cannot" in done.stderr and b"Traceback" not in done.stderr
    ), done.stderr
    server.close()  # all of what came is here
    assert not any(b"product" in said or b"HTTP/1.1 100" in said for said in server.read), (
        server.read
    )


def test_memory_does_not_grow_with_the_file(run, files, tmp_path):
    server = files(bytes(1 << 20) * 60)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h\n"
        "code = h.main()\n"
        "with open('/proc/self/status') as facts:\n"
        "    print(code, *(line.split()[1] for line in facts if line.startswith('VmHWM')))"
    )
    done = run("-c", code, "get", server.url, cwd=tmp_path)
    code, peak = map(int, done.out.split())
    assert (code, os.path.getsize(tmp_path / "file.bin")) == (0, 60 << 20) and peak < 50_000


@pytest.mark.parametrize("many", [1, 4])
def test_a_server_that_restarts_is_waited_for_once_it_was_reached(listeners, tmp_path, many):
    """It hangs up on all who wait for an answer, refuses them, and is there again once that was told."""
    body, asked = random.Random(6).randbytes(8_000_000), threading.Semaphore(0)

    def stall(head):
        if not head.startswith("HEAD"):
            asked.release()
            first.go.wait(DEADLINE)

    first = Files(body, hook=stall)
    listeners.append(first)
    client = Process(SCRIPT, "get", first.url, "--connections", many, cwd=tmp_path)
    assert all(asked.acquire(timeout=DEADLINE) for _ in range(many))
    first.close()
    client.wait_for(r"connection refused.*trying again")
    listeners.append(Files(body, port=first.port))
    assert client.wait() == 0, client.err
    assert (tmp_path / "file.bin").read_bytes() == body


WATCHED = (
    f"import json, os, sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h\n"
    "sync, replace, lasts = os.fdatasync, os.replace, []\n"
    "def fdatasync(fd): sync(fd); lasts.append(os.pread(fd, os.fstat(fd).st_size, 0))\n"
    "def put(source, path):\n"
    "    if path.endswith('.json'):\n"
    "        with open(source) as file: note = json.load(file)\n"
    "        edges = sum(note['spans'], [0])[:-1]\n"
    "        here = zip(edges[::2], edges[1::2])\n"
    "        last = lasts[-1] if lasts else b''\n"
    "        sound = all(last[first:end] == b'\\1' * (end - first) for first, end in here)\n"
    "        print(bool(lasts) and sound, len(note['spans']) > 1)\n"
    "    replace(source, path)\n"
    "os.fdatasync, os.replace = fdatasync, put; sys.exit(h.main())"
)


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="no fdatasync here")
def test_what_a_note_calls_here_is_on_the_disk_before_it(run, files, proxy, tmp_path):
    """All bytes of the body are ones, so that a zero is one that was not on the disk when the note was written."""
    server = files(b"\1" * (4 << 20))
    way = proxy(server.port, delay=0.02)
    url = f"http://127.0.0.1:{way.port}/file.bin"
    done = run("-c", WATCHED, "get", url, "--connections", 4, cwd=tmp_path)
    assert done.code == 0, done
    told = done.out.split(b"\n")[:-1]
    assert b"True True" in told and b"False True" not in told, told


def test_several_connections_that_are_killed_at_once_have_noted_what_came(run, listeners, tmp_path):
    """Each connection gets a part of its span and then waits, so nothing but time could bring a later note."""
    body = random.Random(7).randbytes(8_000_000)
    server = Files(body)

    def stall(conn):
        conn.settimeout(DEADLINE)
        with conn.makefile("rb") as file:
            head = server.read_head(file)
            if head.startswith("HEAD"):
                length = f"Accept-Ranges: bytes\r\nContent-Length: {len(body)}"
                conn.sendall(f'HTTP/1.1 200 OK\r\nETag: "a"\r\n{length}\r\n\r\n'.encode())
                return
            span = re.search(r"bytes=(\d+)-(\d+)", head)
            first, last = int(span[1]), int(span[2])
            said = f"bytes {first}-{last}/{len(body)}\r\nContent-Length: {last + 1 - first}"
            conn.sendall(
                f'HTTP/1.1 206 Part\r\nETag: "a"\r\nContent-Range: {said}\r\n\r\n'.encode()
            )
            conn.sendall(body[first : min(last + 1, first + 400_000)])
            if last > first:
                conn.recv(1)

    listeners.append(Listener(stall))
    url = f"http://127.0.0.1:{listeners[-1].port}/file.bin"
    patient = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h\n"
        "h.SAVE_EVERY = h.SAVE_EVERY[0], 1e9\n"
        "sys.exit(h.main())"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", patient, "get", url, "--connections", "4"], cwd=tmp_path
    )
    note = tmp_path / h.part_name(h.parse_url(url)).replace(".part", ".json")

    def missing():
        with contextlib.suppress(OSError, ValueError):
            return sum(end - first for first, end in json.loads(note.read_text())["spans"])
        return len(body)

    try:
        until(lambda: missing() < len(body), "a note")
    finally:
        client.kill()
        client.wait()


def test_one_connection_that_goes_on_after_several_notes_each_span(files, tmp_path):
    server = files(random.Random(4).randbytes(4 << 20))
    size, waiting = len(server.body), 2 << 20
    part = tmp_path / h.part_name(h.parse_url(server.url))
    part.write_bytes(bytes(size))
    spans = [[first, first + (1 << 20)] for first in range(0, size, 1 << 20)]
    source = {"url": server.url, "etag": '"a"', "modified": "", "size": size, "digest": ""}
    note = part.with_suffix(".json")
    note.write_text(json.dumps({**source, "spans": [*spans, [size, size]]}))
    asked = threading.Event()

    def hold(head):
        if f"bytes={waiting}-" in head:
            asked.set()
            server.go.wait(DEADLINE)

    server.hook = hold
    client = Process(SCRIPT, "get", server.url, cwd=tmp_path)
    assert asked.wait(DEADLINE)
    client.kill()
    left = [first for first, end in json.loads(note.read_text())["spans"] if first < end]
    assert left[0] == waiting


def test_old_parts_go_with_the_next_run_and_what_another_program_may_continue_stays(
    run, files, tmp_path
):
    """Nothing can continue one that is empty or has a random name; one without a note may be client.py's."""
    import fcntl

    ages = {"young": 60, "hour": 4000, "week": 8 * 24 * 3600}
    kinds = {"useful": "a" * 32, "empty": "b" * 32, "random": "0" * 8 + "c" * 24}
    for age, seconds in ages.items():
        for kind, digits in kinds.items():
            part = tmp_path / f".six-{digits[:-1]}{list(ages).index(age)}.part"
            part.write_bytes(b"x" * (kind != "empty"))
            os.utime(part, (time.time() - seconds,) * 2)
    writing, upload = f".six-{'d' * 32}.part", f".six-{'e' * 32}.json"
    for name in writing, upload:
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / writing, (1, 1))
    with open(tmp_path / writing, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert get(run, tmp_path, files(BODY).url).code == 0
    young = {f".six-{digits[:-1]}0.part" for digits in kinds.values()}
    useful = f".six-{'a' * 31}1.part"
    assert set(names(tmp_path)) == {*young, useful, writing, upload, "file.bin"}


class Shelf(Listener):
    """A server that stores what is PUT, without any folder's index, and counts how many requests wait for an answer at most."""

    def __init__(self, bend=lambda number, path: b""):
        self.bend, self.stored, self.paths, self.most = bend, {}, [], 0
        super().__init__(self.talk)

    def talk(self, conn):
        conn.settimeout(DEADLINE)
        data = b""
        while chunk := conn.recv(1 << 20):
            data, waiting = data + chunk, 0
            while found := re.match(rb"(?s)([A-Z]+) (/\S*) (.*?)\r\n\r\n", data):
                length = re.search(rb"(?i)\ncontent-length: ([0-9]+)", found[3])
                end = found.end() + int(length[1] if length else 0)
                if len(data) < end:
                    break
                waiting, path = waiting + 1, found[2].decode()
                body, data = data[found.end() : end], data[end:]
                self.paths.append(path)
                bent = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"
                if found[1] == b"PUT":
                    bent = self.bend(len(self.paths), path)
                    if not bent or b" 201 " in bent:
                        self.stored[path] = body
                elif found[1] == b"MKCOL":
                    bent = b""
                if bent == b"cut":
                    return
                conn.sendall(bent or b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
                if b"Connection: close" in bent:
                    return
            self.most = max(self.most, waiting)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/up/"


def folder_of(tmp_path, count):
    (tmp_path / "up").mkdir()
    for number in range(count):
        (tmp_path / "up" / f"{number:03}").write_bytes(b"%d " % number * number)
    (tmp_path / "up" / "large").write_bytes(bytes(range(256)) * 8192)
    return {f"/up/{name}": body for name, body in tree(tmp_path / "up").items()}


def test_an_upload_keeps_several_short_files_on_their_way(run, listeners, tmp_path):
    want, server = folder_of(tmp_path, 200), Shelf()
    listeners.append(server)
    done = run("httpclient.py", "upload", "up", server.url, cwd=tmp_path)
    assert done.code == 0 and told(done) == (201, 0, 0) and server.stored == want, done
    assert 16 <= server.most <= 64 and len(server.paths) == 204


@pytest.mark.parametrize(
    "bad",
    [
        answer(b"no", "403 No"),
        b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
        b"cut",
        b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"junk\r\n\r\n",
    ],
    ids=["refusal", "trouble", "cut", "close", "junk"],
)
def test_an_upload_in_a_row_tells_of_each_file_by_itself(run, listeners, tmp_path, bad):
    want, refused = folder_of(tmp_path, 60), b"403" in bad
    left = [bad] * (9 if refused else 1)
    server = Shelf(lambda number, path: left.pop() if path == "/up/030" and left else b"")
    listeners.append(server)
    done = run("httpclient.py", "upload", "up", server.url, cwd=tmp_path)
    assert done.code == (22 if refused else 0), done
    if refused:
        del want["/up/030"]
        assert done.err.count("error:") == 1 and "/up/030: 403" in done.err
    assert told(done) == ((60, 0, 1) if refused else (61, 0, 0)), done
    assert server.stored == want


def test_an_upload_in_a_row_asks_for_no_more_once_it_is_sent_elsewhere(run, listeners, tmp_path):
    want, there = folder_of(tmp_path, 20), Shelf()
    listeners.append(there)

    def bend(number, path):
        head = f"HTTP/1.1 307 There\r\nLocation: http://127.0.0.1:{there.port}{path}\r\n"
        return f"{head}Content-Length: 0\r\n\r\n".encode()

    gate = Shelf(bend)
    listeners.append(gate)
    done = run("httpclient.py", "upload", "up", gate.url, cwd=tmp_path)
    assert done.code == 0 and there.stored == want, done
    assert sum(path == "/up/001" for path in gate.paths) == 1 and gate.most == 1


def test_what_is_same_on_a_server_that_keeps_our_time_has_that_time(run, spawn, tmp_path):
    """A restored backup: of the same size, and older than what was sent before."""
    for name in "served", "up":
        (tmp_path / name).mkdir()
    at = "upload", "up", f"http://127.0.0.1:{spawn('httpserver.py', 'served', cwd=tmp_path).port}/"
    for body, when in (b"new", MTIME), (b"old", MTIME - 100), (b"nEw", MTIME + 100):
        (tmp_path / "up" / "a").write_bytes(body)
        os.utime(tmp_path / "up" / "a", (when, when))
        for said in (1, 0, 0), (0, 1, 0):
            assert told(run("httpclient.py", *at, cwd=tmp_path)) == said
        assert tree(tmp_path / "served") == {"a": body}


@pytest.mark.parametrize("kept, said", [(False, (0, 2, 0)), (True, (1, 1, 0))])
def test_one_file_with_our_time_tells_that_a_server_keeps_it(run, canned, tmp_path, kept, said):
    (tmp_path / "up").mkdir()
    for name in "ab":
        (tmp_path / "up" / name).write_bytes(b"hello")
        os.utime(tmp_path / "up" / name, (MTIME, MTIME))
    index = [{"name": name, "size": 5, "mtime": MTIME + 9} for name in "ab"]
    index[1]["mtime"] -= 9 * kept
    server = canned(
        answer(json.dumps(index).encode(), headers="Content-Type: application/json\r\n"),
        answer(b"", "201 Created"),
        read_until=b"\r\n\r\n",
    )
    done = run("httpclient.py", "upload", "up", f"http://127.0.0.1:{server.port}/", cwd=tmp_path)
    assert done.code == 0 and told(done) == said, done


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="no extended attributes here")
def test_mirror_and_get_see_a_change_of_equal_size_within_a_second(run, spawn, tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    url = f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/"
    for number, body in enumerate([b"one", b"two", b"six"]):
        (folder / "a").write_bytes(body)
        os.utime(folder / "a", ns=(0, MTIME * 10**9 + number))
        for said in (1, 0, 0), (0, 1, 0):
            done = run("httpclient.py", "mirror", url, "-o", "copy", cwd=tmp_path)
            assert told(done) == said
        assert tree(tmp_path / "copy") == {"a": body}
        done = run("httpclient.py", "get", f"{url}a", cwd=tmp_path)
        assert done.code == (23 if number else 0) and (tmp_path / "a").read_bytes() == b"one"


@pytest.mark.parametrize("when", [-5, -(2**31), 10**10 + 7])
@pytest.mark.parametrize("verb", ["put", "upload"])
def test_a_time_before_1970_or_after_2286_is_sent_and_told_if_it_is_not_kept(
    run, canned, tmp_path, verb, when
):
    (tmp_path / "up").mkdir()
    file = tmp_path / "up" / "a"
    file.write_bytes(b"hello")
    os.utime(file, (when, when))
    if os.stat(file).st_mtime != when:
        pytest.skip("this file system keeps no such time")
    field, before = f"\r\nX-OC-Mtime: {when}\r\n".encode(), []
    if verb == "upload":
        before = [answer(b"", "404 No"), answer(b"", "201 Created")]
    kept = answer(b"", "201 Created", "X-OC-Mtime: accepted\r\n")
    refused = answer(b"", "400 No")
    for answers, told, fields in [
        ([kept], 0, [1]),
        ([answer(b"", "201 Created")], 1, [1]),
        ([refused] * (1 + (verb == "upload")) + [kept], 1, [1] * (1 + (verb == "upload")) + [0]),
    ]:
        server = canned(*before, *answers, read_until=b"\r\n\r\n")
        what = "up/a" if verb == "put" else "up"
        done = run(
            "httpclient.py", verb, "--force", what, f"http://127.0.0.1:{server.port}/", cwd=tmp_path
        )
        asked = [read for read in server.read if read.startswith(b"PUT")]
        assert done.code == 0 and done.err.count("not kept by the server: the time of ") == told
        assert [field in read for read in asked] == fields, (done, asked)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 3_000_000])
def test_zeros_at_the_end_come_in_full(run, files, tmp_path, size):
    body = b"\1" + bytes(size)
    assert get(run, tmp_path, files(body, headers=DATE).url).code == 0
    assert (tmp_path / "file.bin").read_bytes() == body


@pytest.mark.parametrize("many", [1, 4])
def test_holes_of_a_file_stay_holes_also_after_a_cut(run, files, tmp_path, many):
    """tmp_path may lie on a file system without holes."""
    with open(tmp_path / "probe", "wb") as probe:
        probe.truncate(1 << 20)
    if os.stat(tmp_path / "probe").st_blocks:
        pytest.skip("no holes here")
    body = b"a" + bytes(20 << 20) + b"b" + bytes(20 << 20) + b"c"
    server = files(body, cuts=[15 << 20])
    assert get(run, tmp_path, server.url, "--connections", many).code == 0
    assert (tmp_path / "file.bin").read_bytes() == body
    assert server.sent == len(body) or many > 1  # the connection that is cut asks again
    assert os.stat(tmp_path / "file.bin").st_blocks * 512 < 10 << 20


def test_an_index_that_names_a_file_twice_is_mirrored_once(run, files, tmp_path):
    index = json.dumps([{"name": "a", "size": 5, "mtime": MTIME}] * 3).encode()
    server = files(
        b"hello",
        headers=DATE,
        hook=lambda head: (
            answer(index, headers="Content-Type: application/json\r\n")
            if head.startswith("GET / ")
            else None
        ),
    )
    for _ in "once", "again":
        done = run("httpclient.py", "mirror", server.url[:-8], "-o", "copy", cwd=tmp_path)
        assert done.code == 0 and tree(tmp_path / "copy") == {"a": b"hello"}, done
    assert server.sent == 5


# --- programs: what arrives is never code ---
def started(alone, tmp_path, *words, cwd=None, **env):
    """The copied script, run where it lies or elsewhere, as a person does."""
    script = tmp_path / "alone" / "httpclient.py"
    script = script if script.exists() else alone("httpclient.py")
    return subprocess.run(
        [sys.executable, script, *words],
        cwd=cwd or script.parent,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


POISON = b"import os; os._exit(99)\n"
ROUTES = {
    "named by the URL": ["{url}/{name}"],
    "proposed by the server": ["{url}/attached?{name}"],
    "given by -o": ["{url}/x", "-o", "{name}"],
    "several connections": ["{url}/big", "-o", "{name}", "--connections", "3"],
    "into a folder": ["{url}/{name}", "-o", "."],
    "by a link to the folder": ["{url}/{name}", "-o", "{link}"],
}


@pytest.mark.parametrize("force", ["--force", ""])
@pytest.mark.parametrize("name", ["httpclient.py", "server.py", "HTTPclient.py"])
@pytest.mark.parametrize("route", ROUTES)
def test_no_route_brings_a_program_into_being(alone, files, tmp_path, route, name, force, full):
    if not full and bool(force) != (name == "httpclient.py"):
        pytest.skip("one of the slow matrices: --full runs it")
    body = POISON + bytes(5_000_000 if route == "several connections" else 0)

    def hook(head):
        if "/attached" in head and head.startswith("GET"):
            said = head.partition("?")[2].partition(" ")[0]
            return answer(POISON, headers=f"Content-Disposition: attachment; filename={said}\r\n")

    server = files(body, hook=hook)
    url = f"http://127.0.0.1:{server.port}"
    words = [word.format(url=url, name=name, link=tmp_path / "link") for word in ROUTES[route]]
    (tmp_path / "link").symlink_to(tmp_path / "alone")
    before = alone("httpclient.py").read_bytes()
    done = started(alone, tmp_path, "get", *words, *filter(None, [force]))
    assert done.returncode == 23 and "part of a program" in done.stderr, done
    assert done.stderr.count("\n") == 3 and names(tmp_path / "alone") == ["httpclient.py"]
    assert (tmp_path / "alone" / "httpclient.py").read_bytes() == before


def test_a_program_is_refused_also_by_mirror_and_the_rest_comes(alone, stock, tmp_path):
    folder, url = stock
    for name in "a", "b", "client.py", "httpclient.py":
        (folder / name).write_bytes(POISON)
    done = started(alone, tmp_path, "mirror", url, "-o", ".", "--force")
    assert done.returncode == 23 and done.stderr.count("part of a program") == 2, done
    assert names(tmp_path / "alone") == ["a", "b", "httpclient.py"]
    assert started(alone, tmp_path, "--version").returncode == 0


def test_a_folder_that_python_would_run_is_refused(alone, stock, tmp_path):
    folder, url = stock
    (folder / "server.py").mkdir()
    for name in "a", "server.py/__main__.py":
        (folder / name).write_bytes(POISON)
    for words in ["mirror", url, "-o", "."], ["get", f"{url}a", "-o", "server.py/"]:
        done = started(alone, tmp_path, *words)
        assert done.returncode == 23 and "part of a program" in done.stderr, done
        assert names(tmp_path / "alone") == ["a", "httpclient.py"]


def test_a_part_that_an_earlier_run_left_does_not_become_a_program(alone, files, tmp_path):
    server = files(random.Random(5).randbytes(1_000_000), cuts=[500_000])
    url = f"http://127.0.0.1:{server.port}/client.py"
    alone("httpclient.py")
    cut = started(alone, tmp_path, "get", url, "-o", "sub/", "--retries", "0")
    assert cut.returncode == 18, cut
    for name in names(tmp_path / "alone" / "sub"):
        shutil.move(tmp_path / "alone" / "sub" / name, tmp_path / "alone" / name)
    assert started(alone, tmp_path, "get", url, "--force").returncode == 23
    assert "client.py" not in names(tmp_path / "alone")


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symlink", "hard link"])
def test_the_running_script_is_known_under_its_other_names(alone, files, tmp_path, make):
    (tmp_path / "other").mkdir()
    make(alone("httpclient.py"), tmp_path / "other" / "tool")
    done = started(
        alone, tmp_path, "get", files(POISON).url, "-o", "tool", "--force", cwd=tmp_path / "other"
    )
    assert done.returncode == 23 and "part of a program" in done.stderr, done
    assert os.path.samefile(tmp_path / "other" / "tool", tmp_path / "alone" / "httpclient.py")


@pytest.mark.parametrize("name", ["json.py", "sitecustomize.py", "json.so", "sub/__init__.pyc"])
def test_a_folder_that_pythonpath_names_gets_no_code(alone, files, tmp_path, name):
    there = tmp_path / "modules"
    (there / "sub").mkdir(parents=True)
    more = {"PYTHONPATH": str(there), "cwd": there}
    url = files(POISON).url
    done = started(alone, tmp_path, "get", url, "-o", name, **more)
    assert done.returncode == 23 and not (there / name).exists(), done
    # what only looks like it is welcome
    assert started(alone, tmp_path, "get", url, "-o", "sub/json.txt", **more).returncode == 0


def test_a_file_named_like_a_module_is_harmless_beside_the_script(alone, canned, tmp_path):
    server = canned(
        answer(POISON, headers="Content-Disposition: attachment; filename=json.py\r\n"),
        read_until=b"\r\n\r\n",
    )
    url = f"http://127.0.0.1:{server.port}/x"
    for code in 0, 23:  # then it exists, and is another one
        done = started(alone, tmp_path, "get", "--json", url)
        assert done.returncode == code and '"result"' in done.stdout, done
    assert names(tmp_path / "alone") == ["httpclient.py", "json.py"]


@pytest.mark.parametrize("flag", ["--force", "--newer"])
def test_the_server_does_not_choose_what_is_replaced(run, canned, tmp_path, flag):
    (tmp_path / "precious").write_bytes(b"mine")
    proposal = "Content-Disposition: attachment; filename=precious\r\n"
    server = canned(answer(b"theirs", headers=proposal + DATE), read_until=b"\r\n\r\n")
    url = f"http://127.0.0.1:{server.port}"
    done = get(run, tmp_path, f"{url}/download", flag)
    assert done.code == 23 and "-o" in done.err and done.err.count("\n") == 3, done
    assert tree(tmp_path) == {"precious": b"mine"}
    # what the URL or the person names may be replaced
    for words in [f"{url}/precious"], [f"{url}/download", "-o", "precious"]:
        (tmp_path / "precious").write_bytes(b"mine")
        assert get(run, tmp_path, *words, flag).code == 0
        assert tree(tmp_path) == {"precious": b"theirs"}


def test_a_replaced_file_keeps_its_permissions_but_not_its_setuid(run, files, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"old")
    (tmp_path / "file.bin").chmod(0o6750)
    assert get(run, tmp_path, files(BODY).url, "--force").code == 0
    assert (tmp_path / "file.bin").stat().st_mode & 0o7777 == 0o750


def test_a_file_system_without_modes_takes_a_replacement(run, files, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"old")
    unable = (
        f"import errno, os, sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h\n"
        "def unable(*args): raise OSError(errno.EPERM, 'not permitted')\n"
        "os.chmod = os.fchmod = unable; sys.exit(h.main())"
    )
    done = run("-c", unable, "get", files(BODY).url, "--force", cwd=tmp_path)
    assert done.code == 0 and tree(tmp_path) == {"file.bin": BODY}, done


# --- the server restarts, and takes longer than a few tries ---
QUICK = (
    "-c",
    (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import httpclient as h\n"
        "h.PAUSES = 0.02, 0.02, 0.15\nsys.exit(h.main())"
    ),
)


class Anything(Listener):
    """A server with an index of two files, which stores what is PUT; it holds back the answer about the path given."""

    def __init__(self, held, port=0):
        self.held, self.asked, self.stored = held, threading.Event(), {}
        super().__init__(self.talk, port)

    def talk(self, conn):
        conn.settimeout(DEADLINE)
        file = conn.makefile("rb")
        while line := file.readline():
            method, path, _ = line.decode().split()
            size = 0
            while (field := file.readline()) != b"\r\n":
                if field.lower().startswith(b"content-length:"):
                    size = int(field.split(b":")[1])
            body = file.read(size)
            if self.held == f"{method} {path}":
                self.asked.set()
                self.go.wait(DEADLINE)
                return
            if method == "PUT":
                self.stored[path] = body
            page = b'<a href="a"><a href="b">' if path == "/" else path.encode()
            status = "404 No" if method == "HEAD" else "200 OK" if method == "GET" else "201 Made"
            page = page if method == "GET" else b""
            size = f"Content-Type: text/html\r\nContent-Length: {len(page)}\r\n\r\n"
            conn.sendall(f"HTTP/1.1 {status}\r\n{size}".encode() + page)


WAITING = [
    ("GET /b", ["get", "URLb"]),
    ("PUT /b", ["put", "up/b", "URLb"]),
    ("HEAD /b", ["put", "up/b", "URLb"]),
    ("GET /b", ["mirror", "URL", "-o", "copy"]),
    ("GET /", ["mirror", "URL", "-o", "copy"]),
    ("PUT /b", ["upload", "up", "URL"]),
]


def test_each_command_waits_for_a_server_that_restarts(listeners, tmp_path):
    """All at once, since most of it is pauses. After three of them, the tries of many programs are over."""
    running = []
    for number, (held, words) in enumerate(WAITING):
        here = tmp_path / str(number)
        (here / "up").mkdir(parents=True)
        for name in "ab":
            (here / "up" / name).write_bytes(b"/%b" % name.encode())
        first = Anything(held)
        listeners.append(first)
        url = f"http://127.0.0.1:{first.port}/"
        client = Process(*QUICK, *(word.replace("URL", url) for word in words), cwd=here)
        running.append((words[0], here, first, client))
    for _, _, first, _ in running:
        assert first.asked.wait(DEADLINE)
        first.close()
    for *_, client in running:
        client.wait_for("(?s)(connection refused.*trying again.*){3}")
    restarted = [Anything("", first.port) for *_, first, _ in running]
    listeners.extend(restarted)
    for (command, here, first, client), again in zip(running, restarted):
        assert client.wait() == 0, client.err
        if command in ("put", "upload"):
            assert {**first.stored, **again.stored}["/b"] == b"/b"
        else:
            assert next(here.glob(f"{'copy/' * (command == 'mirror')}b")).read_bytes() == b"/b"


def test_who_gives_up_says_how_much_has_come_and_that_the_command_goes_on(run, files, tmp_path):
    server = files(BODY * 4, cuts=[500_000])
    done = get(run, tmp_path, server.url, "--retries", 0)
    assert done.code == 18 and "500 kB have passed, and it goes on" in done.err
    never = run(*QUICK, "get", "http://127.0.0.1:1/", cwd=tmp_path)
    assert never.code == 7 and "trying again" not in never.err


def test_a_server_that_asks_for_an_hour_is_not_waited_for(run, canned, tmp_path):
    server = canned(answer(b"", "503 Busy", "Retry-After: 3600\r\n"), read_until=b"\r\n\r\n")
    done = get(run, tmp_path, f"http://127.0.0.1:{server.port}/a")
    assert done.code == 22 and "repeat the command in 3600 s" in done.err


# --- what curl takes ---
def test_204_saves_nothing_but_under_a_name_that_was_given(run, canned, tmp_path):
    nothing = b"HTTP/1.1 204 No Content\r\n\r\n"
    server = canned(nothing, nothing, read_until=b"\r\n\r\n")
    url = f"http://127.0.0.1:{server.port}/a"
    done = get(run, tmp_path, url)
    assert done.code == 0 and "nothing to save" in done.err and names(tmp_path) == []
    assert get(run, tmp_path, url, "-o", "b").code == 0
    assert (tmp_path / "b").read_bytes() == b""


@pytest.mark.parametrize("wbits", [15, -15], ids=["with zlib's head", "bare"])
def test_deflate_of_both_kinds_is_decoded(run, canned, wbits):
    coder = zlib.compressobj(wbits=wbits)
    body = coder.compress(BODY) + coder.flush()
    server = canned(answer(body, headers="Content-Encoding: deflate\r\n"), read_until=b"\r\n\r\n")
    done = run("httpclient.py", "get", f"http://127.0.0.1:{server.port}/a", "-o", "-")
    assert (done.code, done.out) == (0, BODY)


def test_several_codings_are_undone_one_after_another(run, canned):
    body = gzip.compress(zlib.compress(BODY))
    headers = "Content-Encoding: identity, deflate\r\nContent-Encoding: x-gzip\r\n"
    server = canned(answer(body, headers=headers), read_until=b"\r\n\r\n")
    done = run("httpclient.py", "get", f"http://127.0.0.1:{server.port}/a", "-o", "-")
    assert (done.code, done.out) == (0, BODY)


@pytest.mark.parametrize(
    "coding, ending",
    [("br", ".br"), ("zstd", ".zst"), ("gzip, br", ".gz.br"), ("a/../b*c", ".a____b_c")],
)
def test_a_coding_that_nobody_asked_for_is_kept_with_its_ending(
    run, canned, tmp_path, coding, ending
):
    reply = answer(b"coded", headers=f"Content-Encoding: {coding}\r\n")
    server = canned(reply, reply, reply, read_until=b"\r\n\r\n")
    url = f"http://127.0.0.1:{server.port}/a"
    done = get(run, tmp_path, url)
    assert done.code == 0 and f"kept as {ending}" in done.err
    assert names(tmp_path) == [f"a{ending}"]
    assert (tmp_path / f"a{ending}").read_bytes() == b"coded"
    assert get(run, tmp_path, url, "-o", f"b{ending}").code == 0
    assert (tmp_path / f"b{ending}").read_bytes() == b"coded"
    assert get(run, tmp_path, url, "-o", "-").out == b"coded"


@pytest.mark.parametrize("text", ["http://[fe80::1%25eth0]:8000/", "http://[fe80::1%eth0]:8000/"])
def test_a_zone_is_for_the_connection_alone(text):
    url = h.parse_url(text)
    assert (url.host, url.port) == ("fe80::1%eth0", 8000)
    args = h.parsed(["get", text])
    args.origins = {}
    request = h.Client(args).request("GET", url, {}, None)
    assert b"\r\nHost: [fe80::1]:8000\r\n" in request and request.startswith(b"GET / HTTP/1.1")


# --- put, trees ---
def test_put_waits_for_a_server_that_cannot_tell_yet_what_is_there(run, canned, tmp_path):
    """It may ignore that only a new file may be made."""
    (tmp_path / "a").write_bytes(b"hello")
    busy = answer(b"", "503 Busy", "Retry-After: 0\r\n")
    server = canned(busy, answer(b"other"), answer(b"", "201 Made"), read_until=b"\r\n\r\n")
    done = run("httpclient.py", "put", "a", f"http://127.0.0.1:{server.port}/a", cwd=tmp_path)
    assert done.code == 25 and "exists already" in done.err, done
    assert [head.split()[0] for head in server.read] == [b"HEAD", b"HEAD"]


def test_put_skips_the_same_file_and_does_not_replace_another_one(run, spawn, tmp_path):
    (tmp_path / "served").mkdir()
    url = f"http://127.0.0.1:{spawn('httpserver.py', 'served', cwd=tmp_path).port}/"

    def put(*words):
        return run("httpclient.py", "put", *words, cwd=tmp_path)

    (tmp_path / "a").write_bytes(b"one")
    assert put("a", url).err.startswith("sent a (")
    assert put("a", url).err.startswith("same a")
    (tmp_path / "a").write_bytes(b"other")
    done = put("a", url)
    assert done.code == 25 and "exists already, and is another file" in done.err
    assert (tmp_path / "served" / "a").read_bytes() == b"one"
    assert put("a", url, "--force").code == 0
    assert put("--text", "hello ü", f"{url}note").code == 0
    assert put("--text", "hello", url).code == put(url).code == 2
    assert put("--text", "hello ü", f"{url}note").err == "same the text\n"
    assert put("--text", "hello", f"{url}note").code == 25
    (tmp_path / "served" / "folder").mkdir()
    for words in ["a"], ["-"], ["--text", "hello"]:
        done = put(*words, f"{url}folder")
        hint = f"is a folder\nwhy:   it was left as it is\ntry:   {url}folder/ puts files into it\n"
        assert done.code == 25 and done.err.endswith(hint), done
    (tmp_path / "served" / "folder").rmdir()
    assert tree(tmp_path / "served") == {"a": b"other", "note": "hello ü".encode()}


def test_put_asks_the_server_to_replace_nothing(run, canned, tmp_path):
    server = canned(answer(b"", "404 No"), answer(b"", "201 Made"), read_until=b"\r\n\r\n")
    url = f"http://127.0.0.1:{server.port}/a"
    assert run("httpclient.py", "put", "--text", "x", url).code == 0
    assert b"\r\nIf-None-Match: *\r\n" in server.read[1]


def test_an_executable_file_stays_one(run, canned, tmp_path):
    (tmp_path / "run").write_bytes(b"x")
    (tmp_path / "run").chmod(0o755)
    server = canned(
        answer(b"", "201 Made"),
        answer(b"x", headers="X-Executable: 1\r\n"),
        read_until=b"\r\n\r\n",
    )
    url = f"http://127.0.0.1:{server.port}/a"
    assert run("httpclient.py", "put", "run", url, "--force", cwd=tmp_path).code == 0
    assert b"\r\nX-Executable: 1\r\n" in server.read[0]
    assert get(run, tmp_path, url).code == 0 and (tmp_path / "a").stat().st_mode & 0o111


def test_httpserver_keeps_the_right_to_execute(run, spawn, tmp_path):
    (tmp_path / "served").mkdir()
    server = spawn("httpserver.py", "served", cwd=tmp_path)
    url = f"http://127.0.0.1:{server.port}/"
    mask = os.umask(0)
    os.umask(mask)
    big = 1 << 20  # so large is resumable
    for name, size, mode in ("plain", 1, 0o644), ("tool", 1, 0o755), ("large", big, 0o755):
        (tmp_path / name).write_bytes(b"x" * size)
        (tmp_path / name).chmod(mode)
        there, wanted = tmp_path / "served" / name, (0o666 | mode & 0o111) & ~mask
        assert run("httpclient.py", "put", name, url, cwd=tmp_path).code == 0
        assert there.stat().st_mode & 0o777 == wanted
        head = run("httpclient.py", "head", url + name).out.decode()
        assert head.count("X-Executable: 1\n") == (mode == 0o755), head
        assert run("httpclient.py", "get", url + name, "-o", "copy-" + name, cwd=tmp_path).code == 0
        assert (tmp_path / ("copy-" + name)).stat().st_mode & 0o777 == wanted
    # a file that is replaced keeps its mode, and who may read it may execute it
    (tmp_path / "served" / "tool").chmod(0o640)
    (tmp_path / "tool").write_bytes(b"other")
    assert run("httpclient.py", "put", "--force", "tool", url, cwd=tmp_path).code == 0
    assert (tmp_path / "served" / "tool").stat().st_mode & 0o777 == 0o750


def test_an_upload_that_another_server_goes_on_with_stays_executable(spawn, tmp_path):
    first = spawn("httpserver.py", tmp_path)
    begin = b"PUT /tool HTTP/1.1\r\nHost: localhost\r\nX-Executable: 1\r\nUpload-Complete: ?0\r\n"
    begin += b"Content-Length: 1\r\n\r\na"
    made = talk(first.port, begin)
    place = re.search(rb"(?i)\r\nlocation: (\S+)", made)[1]
    assert made.startswith(b"HTTP/1.1 201 "), made
    second = spawn("httpserver.py", tmp_path)
    rest = (
        b"PATCH %b HTTP/1.1\r\nHost: localhost\r\nUpload-Offset: 1\r\nUpload-Complete: ?1\r\n"
        % place
    )
    rest += b"Content-Type: application/partial-upload\r\nContent-Length: 1\r\n\r\nb"
    done = talk(second.port, rest)
    assert done.startswith(b"HTTP/1.1 201 "), done
    assert (tmp_path / "tool").read_bytes() == b"ab" and (tmp_path / "tool").stat().st_mode & 0o100


def talk(port, request):
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as conn:
        conn.sendall(
            request.replace(b"Host: localhost\r\n", b"Host: localhost\r\nConnection: close\r\n")
        )
        return b"".join(iter(lambda: conn.recv(1 << 16), b""))


def planted(tmp_path, side):
    """Two folders, and what a copy of the first to the second, without *.tmp and build/, would do."""
    for name in "same", "new", "changed", ".hidden", "x.tmp", "sub/new", "build/x":
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    for name in "same", "changed", "old", ".keep", "y.tmp", "gone/a", "gone/sub/b", "build/z":
        path = tmp_path / "dest" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"theirs" if name != "same" else b"same")
    for folder in "source", "dest":
        os.utime(tmp_path / folder / "same", (MTIME, MTIME))
    served = "source" if side == "mirror" else "dest"
    after = {name: name.encode() for name in ("same", "new", "changed", "sub/new")}
    kept = dict.fromkeys((".keep", "y.tmp", "build/z"), b"theirs")
    return served, {**after, **kept}


@pytest.mark.parametrize("side", ["mirror", "upload"])
def test_a_tree_is_copied_without_what_is_excluded_and_what_is_more_there_goes(
    run, spawn, tmp_path, side
):
    served, want = planted(tmp_path, side)
    server = spawn("httpserver.py", served, cwd=tmp_path)
    words = ["mirror", "/", "-o", "dest"] if side == "mirror" else ["upload", "source", "/"]
    more = ["--exclude", "*.tmp", "--exclude", "build/", "--delete", "--port", server.port]
    before = tree(tmp_path / "dest")
    dry = run("httpclient.py", *words, *more, "--dry-run", cwd=tmp_path)
    at = "dest/" if side == "mirror" else "/"
    told_so = dry.out.decode().splitlines()
    assert sorted(told_so) == sorted(
        f"{what:7} {at}{name}"
        for what, each in [
            ("new", ["new", "sub/new"]),
            ("replace", ["changed"]),
            ("delete", ["old", "gone/a", "gone/sub/b", "gone/sub", "gone"]),
        ]
        for name in each
    )
    assert (
        dry.code in (23, 25) and "more than half" in dry.err and tree(tmp_path / "dest") == before
    )
    refused = run("httpclient.py", *words, *more, cwd=tmp_path)
    assert refused.code == dry.code and (tmp_path / "dest" / "gone").exists()
    done = run("httpclient.py", *words, *more, "--force", cwd=tmp_path)
    assert done.code == 0 and tree(tmp_path / "dest") == want, done
    assert "deleted 5" in done.err and not (tmp_path / "dest" / "gone").exists()
    left_out = "1 hidden, 2 excluded" if side == "upload" else "2 excluded"
    assert f"; skipped {left_out}; deleted 5\n" in done.err


def test_nothing_is_deleted_if_something_failed(run, files, tmp_path):
    index = answer(b'<a href="a"><a href="bad">', headers="Content-Type: text/html\r\n")
    pages = {"/": index, "/bad": answer(b"", "403 No")}
    server = files(b"", hook=lambda head: pages.get(head.split()[1]) or answer(b"x"))
    (tmp_path / "copy").mkdir()
    for name in "a", "old", "b", "c":
        (tmp_path / "copy" / name).write_bytes(b"x")
    url = f"http://127.0.0.1:{server.port}/"
    done = run("httpclient.py", "mirror", url, "-o", "copy", "--delete", cwd=tmp_path)
    assert done.code == 22 and "nothing was deleted, because something failed" in done.err
    assert names(tmp_path / "copy") == ["a", "b", "c", "old"]


def test_a_server_chooses_nothing_outside_that_is_deleted(run, files, tmp_path):
    """Its index names what would lead out of the folder that was uploaded."""
    index = json.dumps([{"name": name} for name in ("../../up", "..", "ok", "a/b")]).encode()
    page = answer(index, headers="Content-Type: application/json\r\n")
    server = files(b"", hook=lambda head: page if head.startswith("GET") else answer(b"", "204 No"))
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "a").write_bytes(b"x")
    url = f"http://127.0.0.1:{server.port}/in/"
    done = run("httpclient.py", "upload", "up", url, "--delete", "--force", cwd=tmp_path)
    assert done.code == 0, done
    deleted = [head.split()[1] for head in server.heads if head.startswith("DELETE")]
    assert deleted == ["/in/ok"]


def test_list_goes_into_folders_when_asked_to(run, spawn, tmp_path):
    (tmp_path / "a" / "b c").mkdir(parents=True)
    (tmp_path / "a" / "b c" / "ü").write_bytes(b"x")
    server = spawn("httpserver.py", tmp_path)
    done = run("httpclient.py", "list", "/", "-r", "--port", server.port)
    shown = [line.split(maxsplit=3)[3] for line in done.out.decode().splitlines() if " 1 " in line]
    assert done.code == 0 and shown == ["a/b c/ü"], done


def test_urls_come_from_a_file_too(run, files, tmp_path):
    server = files(BODY)
    (tmp_path / "list").write_text(f"# two\n{server.url}\n\n{server.url}2\n")
    assert get(run, tmp_path, "-i", "list").code == 0
    assert names(tmp_path) == ["file.bin", "file.bin2", "list"]
    assert get(run, tmp_path, "-i", "-", input=f"{server.url}3\n".encode()).code == 0
    assert get(run, tmp_path, "-i", "no").code == 26 and (tmp_path / "file.bin3").exists()
    assert get(run, tmp_path).code == 2


def test_a_rate_is_a_limit_in_both_directions(run, files, canned, tmp_path):
    assert get(run, tmp_path, files(BODY).url, "--limit-rate", "100M").code == 0
    assert (tmp_path / "file.bin").read_bytes() == BODY
    server = canned(answer(b"", "201 Made"), read_until=b"END")
    words = "--text", "x" * 50_000 + "END", f"http://127.0.0.1:{server.port}/a", "--force"
    assert run("httpclient.py", "put", "--limit-rate", "500k", *words).code == 0


@pytest.mark.parametrize("columns", [30, 40, 80])
def test_the_line_of_progress_never_wraps(monkeypatch, columns):
    drawn = []
    monkeypatch.setattr(h.os, "get_terminal_size", lambda fd: os.terminal_size((columns, 24)))
    monkeypatch.setattr(h, "say", lambda text, end: drawn.append(text))
    for many in False, True:
        progress = h.Progress(h.parsed(["get", "/"]))
        if many:
            progress.expect([10**12, None] * 5000)
        progress.begin("名前" * 40, 5, 10**12)
        progress.began -= 5000
        for count in 1, 10**6, 10**11:
            progress.add(count)
            progress.draw()
    for line in drawn:
        assert 10 < h.columns(line[1:-3]) < columns, line
    assert any("of 10,000 files" in line for line in drawn)


@pytest.mark.parametrize("columns", [40, 80])
def test_the_line_of_progress_shows_the_name_rather_than_a_bar(monkeypatch, columns):
    drawn = []
    monkeypatch.setattr(h.os, "get_terminal_size", lambda fd: os.terminal_size((columns, 24)))
    monkeypatch.setattr(h, "say", lambda text, end: drawn.append(text))
    for name in "ubuntu-24.04.1-desktop-amd64.iso", "a.iso":
        progress = h.Progress(h.parsed(["get", "/"]))
        progress.begin(name, 0, 10**8)
        progress.began -= 50
        progress.add(10**6)
        progress.draw()
    long, short = drawn
    assert long.startswith(
        "\rubuntu-24.04" if columns == 40 else "\rubuntu-24.04.1-desktop-amd64.iso"
    )
    assert "  1%  1.0 MB" in long and "[" not in long[:-3]
    assert short.startswith("\ra.iso  ") and ("[" in short[:-3]) is (columns == 80)


def test_the_common_mistakes_get_a_hint(run, files, listeners, tmp_path):
    done = get(run, tmp_path, "notes.invalid", "--port", 8123)
    assert done.code == 6 and "/notes.invalid is a path on 127.0.0.1:8123" in done.err
    page = answer(b"<a href=x>", headers="Content-Type: text/html\r\n")
    there = answer(b"", "301 There", "Location: /pub/\r\n")
    server = files(b"", hook=lambda head: page if " /pub/ " in head else there)
    for path in "pub/", "pub":
        done = get(run, tmp_path, f"http://127.0.0.1:{server.port}/{path}")
        assert done.code == 0 and "mirror fetches what is in it" in done.err
    plain = Listener(lambda conn: conn.recv(9999) and conn.sendall(answer(b"", "400 No")))
    listeners.append(plain)
    done = get(run, tmp_path, f"https://127.0.0.1:{plain.port}/pub/")
    assert done.code == 56 and "write http:// instead of https://" in done.err


@pytest.mark.parametrize(
    "status, hint",
    [
        ("405 No", "try:   list shows whether that name exists; else use a server that allows"),
        ("409 No", "try:   list shows what is in the way: move or delete that first"),
    ],
)
def test_a_change_that_is_not_allowed_gets_a_hint(run, canned, status, hint):
    url = f"http://127.0.0.1:{canned(answer(b'', status)).port}/a"
    done = run("httpclient.py", "delete", url)
    assert done.code == 22 and hint in done.err, done


def test_two_files_for_one_name_get_a_hint(run):
    done = run("httpclient.py", "put", "a", "b", "http://h/c")
    hint = "put FILE http://h/c, or --text TEXT; more files into a folder: http://h/c/\n"
    assert done.code == 2 and done.err.endswith(f"try:   {hint}"), done


def exchanged(raw, method="GET"):
    """What the client makes of a reply, byte for byte as a server sends it: the status, the body, and
    whether the connection could be used again."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(DEADLINE)
        theirs.sendall(raw)
        theirs.shutdown(socket.SHUT_WR)
        args = h.parsed(["get", "/"])
        args.pace, args.progress = None, h.Progress(args)
        connection = h.Connection(ours, "peer", args)
        with h.Reply(connection, connection.read_head(), method, h.parse_url("http://a/")) as reply:
            return reply.head.status, reply.read(1 << 20), reply.keep


LL_OK, LL_CHUNKED = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


# The replies of llhttp's test suite, the parser of Node.js, in our own words. It takes the ones here.
@pytest.mark.parametrize(
    "raw, want",
    [
        (LL_OK + b"A: 1\r\nB:\t 2\r\nContent-Length: 0\r\n\r\n", (200, b"", True)),
        (LL_OK + b"\r\n", (200, b"", False)),  # without a length, the body ends with the stream
        (LL_OK + b"\r\nHTTP/1.1 200 OK", (200, b"HTTP/1.1 200 OK", False)),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", (404, b"", False)),
        (b"HTTP/1.1 301\r\n\r\n", (301, b"", False)),
        (b"HTTP/1.1 200 \r\n\r\n", (200, b"", False)),
        (b"HTTP/1.1 200  OK\r\n\r\n", (200, b"", False)),
        (LL_OK + b"Content-Length:  5  \r\n\r\nhello", (200, b"hello", True)),
        (LL_OK + b"Content-Length:\t5\t\r\n\r\nhello", (200, b"hello", True)),
        (LL_OK + b"X-$a_.b: 1\r\n_c: 2\r\nContent-Length: 0\r\n\r\n", (200, b"", True)),
        (LL_OK + b"Pragma: \r\nContent-Length: 1\r\n\r\nx", (200, b"x", True)),
        (LL_OK + b"Content-Length: 1\r\nProxy-Connection: close\r\n\r\nx", (200, b"x", True)),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nx", (200, b"x", False)),
        (b"HTTP/1.0 204 No\r\nConnection: keep-alive\r\n\r\nHTTP/1.0 ", (204, b"", True)),
        (b"HTTP/1.1 204 No\r\n\r\nHTTP/1.1 200 OK", (204, b"", True)),
        (b"HTTP/1.1 204 No\r\nConnection: close\r\n\r\nHTTP/1.1", (204, b"", False)),
        (
            LL_OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello you",
            (200, b"hello", False),
        ),
        (LL_OK + b"Upgrade: h2c\r\nContent-Length: 4\r\n\r\nbody", (200, b"body", True)),
        (
            LL_CHUNKED.replace(b"\r\nT", b"\r\nContent-Length-X: 0\r\nT") + b"2\r\nOK\r\n0\r\n\r\n",
            (200, b"OK", True),
        ),
        (LL_CHUNKED + b"5;a;b=c\r\nhello\r\n1;d\r\n!\r\n0\r\n\r\n", (200, b"hello!", True)),
        (LL_CHUNKED + b'5;a="b; c";d;e=f\r\nhello\r\n0\r\n\r\n', (200, b"hello", True)),
        # llhttp refuses these four, unless it is set to be lenient; curl takes them, and so do we:
        # old CGI programs end lines with a bare LF, old servers fill up a chunk's size with spaces
        (b"HTTP/1.1 200 OK\nContent-Length: 1\n\nx", (200, b"x", True)),
        (LL_CHUNKED + b"5  \r\nhello\r\n0  \r\n\r\n", (200, b"hello", True)),
        (LL_CHUNKED + b"5;\r\nhello\r\n0\r\n\r\n", (200, b"hello", True)),
        (LL_CHUNKED + b'5;a="b\r\nhello\r\n0\r\n\r\n', (200, b"hello", True)),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_reply_that_nodes_parser_takes_is_taken(raw, want):
    assert exchanged(raw) == want


@pytest.mark.parametrize(
    "raw",
    [
        b"HTP/1.1 200 OK\r\n\r\n",
        b"HTTPER/1.1 200 OK\r\n\r\n",
        b"HTTP/01.1 200 OK\r\n\r\n",
        b"HTTP/11.1 200 OK\r\n\r\n",
        b"HTTP/1.01 200 OK\r\n\r\n",
        b"HTTP/5.6 200 OK\r\n\r\n",
        b"HTTP/1.1\t200 OK\r\n\r\n",
        b"\rHTTP/1.1\t200 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 2 OK\r\n\r\n",
        LL_OK + b"Foo: 1\rBar: 2\r\n\r\n",
        LL_OK + b" Host: foo\r\n\r\n",
        LL_OK + b"Transfer-Encoding:\r\nContent-Length: 5\r\n\r\nhello",
        LL_CHUNKED + b"2 abc\r\naa\r\n0\r\n\r\n",
        # llhttp takes the rest. These are other protocols:
        b"RTSP/1.1 200 OK\r\n\r\n",
        b"ICE/1.1 200 OK\r\n\r\n",
        # Where chunked is not the last coding, it stores the body as it came, until the stream ends.
        # Then nobody knows where the file ends, and its bytes are not those that were asked for.
        LL_OK + b"Transfer-Encoding: chunked, deflate\r\n\r\nWorld",
        LL_OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\nWorld",
        LL_OK + b"Transfer-Encoding: chunkedchunked\r\n\r\n2\r\nOK\r\n0\r\n\r\n",
        LL_OK + b"Transfer-Encoding: chunked\r\n  abc\r\n\r\n5\r\nWorld\r\n0\r\n\r\n",
        # We never ask for another protocol, so what follows must be a reply.
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody",
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_reply_that_nodes_parser_refuses_is_refused(raw):
    with pytest.raises(h.Failure) as caught:
        exchanged(raw)
    assert caught.value.code == 56


def test_a_reply_to_head_has_no_body_whatever_it_announces():
    raw = LL_OK + b"Content-Length: 123\r\n\r\n" + LL_OK + b"Content-Length: 456\r\n\r\n"
    assert exchanged(raw, "HEAD") == (200, b"", True)


@pytest.mark.parametrize("text", ["2024-02-29T12345678Z", "Sun, 06 Nov 1994 00000000 GMT"])
def test_a_clock_without_colons_is_no_date_on_any_python(text):
    assert h.parse_date(text) is None
