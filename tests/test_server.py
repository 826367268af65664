"""server.py as any client meets it: bytes in, bytes out, and what is in the folder and the log afterwards."""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import DEADLINE, ROOT, Process, assert_clean, interpreters, stopped, until

sys.path.insert(0, str(ROOT))
import server as script

GREETING = re.compile(rb"sixsockets 1 max-line=32768 auth=none you=127\.0\.0\.1:\d+\n")
BIG = random.Random(3).randbytes(3 << 20)  # enough to be resumed


@pytest.fixture
def box(tmp_path):
    """A folder to share, and beside it things that must stay untouched."""
    (tmp_path / "box").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (tmp_path / "box_disallow").write_text("secret")
    return tmp_path / "box"


@pytest.fixture
def start(spawn, box):
    def started(*flags, **more):
        return spawn("server.py", box, *flags, **more)

    return started


def sha(data):
    return hashlib.sha256(data).hexdigest()


def everything(sock):
    return b"".join(iter(lambda: sock.recv(65536), b""))


def without_notes(said):
    """A server that is slow for a moment tells how far it is."""
    return re.sub(rb"note \S+ (?:received|checked)=\d+\n", b"", said)


def talk(server, request, close=True):
    """All that the server says to these bytes, without its greeting."""
    with server.connect() as sock:
        with contextlib.suppress(ConnectionError):  # it may hang up before it has read all
            sock.sendall(request)
            if close:
                sock.shutdown(socket.SHUT_WR)
        said = everything(sock)
    greeting, _, rest = said.partition(b"\n")
    assert GREETING.fullmatch(greeting + b"\n"), greeting
    return without_notes(rest)


def put(name, data, digest=None, **keys):
    """The lines of an upload."""
    words = "".join(f" {key}={value}" for key, value in keys.items())
    return (
        f"put {name}{words}\ndata {len(data)}\n".encode()
        + data
        + f"end sha256={digest or sha(data)}\n".encode()
    )


def names(folder):
    return sorted(os.listdir(folder))


@contextlib.contextmanager
def held_open(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def parts(folder):
    return [name for name in os.listdir(folder) if name.startswith(".six-")]


# --- the session of the docstring ---
SESSION = [
    (
        put("notes.txt", b"hello\n", size=6, mtime_ns=1700000000500000000),
        f"ok put notes.txt size=6 sha256={sha(b'hello' + bytes([10]))} verified=yes\n",
    ),
    (
        b"get notes.txt\n",
        f"ok get notes.txt size=6 mtime_ns=1700000000500000000\ndata 6\nhello\nend sha256={sha(b'hello' + bytes([10]))}\n",
    ),
    (b"get no%20such.txt\n", "err get no%20such.txt reason=no-such-file\n"),
    (b"list\n", "file notes.txt size=6 mtime_ns=1700000000500000000\nok list count=1\n"),
    (b"bye\n", "ok bye\n"),
]


@pytest.mark.parametrize(
    "cut", ["whole", "byte by byte", "with trailing bytes", "CRLF and capitals"]
)
def test_the_session_of_the_docstring(start, cut):
    server, request = start(), b"".join(asked for asked, _ in SESSION)
    answer = "".join(said for _, said in SESSION).encode()
    if cut == "byte by byte":
        with server.connect() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in request:
                sock.sendall(bytes([byte]))
            assert without_notes(GREETING.sub(b"", everything(sock))) == answer
        return
    if cut == "with trailing bytes":
        request += b"list\nbogus"
    if cut == "CRLF and capitals":
        request = (
            request.replace(b"put notes.txt", b"\r\n\nPUT notes.txt")
            .replace(b"get no", b"Download no")
            .replace(b"bye\n", b"QUIT\r\n")
        )
    assert talk(server, request, close=False) == answer


def test_help_has_a_line_for_each_verb(start):
    said = talk(start(), b"help\n").decode().splitlines()
    assert [text.split()[1] for text in said[:-1]] == list(script.COMMANDS)
    assert said[-1] == f"ok help count={len(script.COMMANDS)}"


def test_the_docstring_names_each_verb_and_each_reason():
    for verb in [*script.COMMANDS, *script.ALIASES]:
        assert re.search(rf"\b{verb}\b", script.__doc__), verb
    source = (ROOT / "server.py").read_text()
    told = set(re.findall(r'(?:Refused|Broken)\("([a-z-]+)"', source)) | set(
        script.REASONS.values()
    )
    for reason in told:
        assert re.search(rf"(?<![a-z-]){reason}(?![a-z-])", script.__doc__), reason


def test_netcat_is_enough(start, box):
    data = b"by hand\0\xff"
    assert (
        talk(start(), b"put x\ndata %d\n" % len(data) + data + b"end\n")
        == f"ok put x size=9 sha256={sha(data)} verified=no\n".encode()
    )
    assert (box / "x").read_bytes() == data


def test_sizes_come_back_whole(start, box):
    server = start()
    for size in (
        0,
        1,
        65535,
        65536,
        65537,
        (1 << 18) - 1,
        1 << 18,
        (1 << 20) - 1,
        1 << 20,
        (1 << 20) + 1,
    ):
        data, got = BIG[:size], b""
        said = talk(server, put("x", data, size=size, over="yes") + b"get x\n")
        assert (box / "x").read_bytes() == data
        body = said.partition(b"\n")[2].partition(b"\n")[2]
        while body.startswith(b"data "):
            head, _, body = body.partition(b"\n")
            got, body = got + body[: int(head[5:])], body[int(head[5:]) :]
        assert got == data and body == f"end sha256={sha(data)}\n".encode()


def test_time_and_executable_bit_are_kept(start, box):
    server = start()
    assert b"verified=yes" in talk(
        server,
        put("x", b"abc", mtime_ns=1234567890123456789, exec="yes") + put("y", b"", mtime_ns=-5),
    )
    assert (box / "x").stat().st_mtime_ns == 1234567890123456789
    assert (box / "x").stat().st_mode & 0o777 == 0o777 & ~os.umask(os.umask(0o22)) | 0o111 & 0o755
    assert b"mtime_ns=1234567890123456789 exec=yes" in talk(server, b"stat x\n")
    assert b"mtime_ns=-5\n" in talk(server, b"stat y\n")


def test_what_is_replaced_keeps_its_mode(start, box):
    (box / "x").write_text("old")
    (box / "x").chmod(0o640)
    assert b"reason=exists size=3" in talk(start(), put("x", b"new"))
    assert (box / "x").read_text() == "old"
    server = start()
    assert b"ok put x" in talk(server, put("x", b"new", over="yes"))
    assert (box / "x").read_text() == "new" and (box / "x").stat().st_mode & 0o777 == 0o640
    (box / "x").chmod(0o6755)
    assert b"ok put x" in talk(server, put("x", b"newer", over="yes"))
    assert (box / "x").stat().st_mode & 0o7777 == 0o755, (
        "whoever may write to the folder must not become the file's owner by it"
    )


def test_folders(start, box):
    server = start()
    said = talk(
        server,
        b"mkdir a/b\nmkdir a/b\nlist deep=yes\ndelete a\nrename a/b c\nrename c c/d\ndelete a\nlist\ndelete c\nlist\nlist nope\n",
    ).decode()
    told = re.sub(r" mtime_ns=\d+", "", said).splitlines()
    assert len(re.findall(" mkdir a/b: ", server.stop())) == 1, "the second one made nothing"
    assert told == [
        "ok mkdir a/b",
        "err mkdir a/b reason=exists",
        "dir a",
        "dir a/b",
        "ok list count=2",
        "err delete a reason=not-empty",
        "ok rename a/b c",
        "err rename c c/d reason=not-possible",
        "ok delete a",
        "dir c",
        "ok list count=1",
        "ok delete c",
        "ok list count=0",
        "err list nope reason=no-such-folder",
    ]


def test_a_missing_folder_is_told_from_a_missing_file(start, box):
    said = talk(
        start(), put("no/x", b"x") + b"get no/x\nget x\nrename x y\nrename no/x y\nstat no/x\n"
    ).decode()
    assert [answer.split("no-such-")[1] for answer in said.splitlines()] == [
        "folder",
        "folder",
        "file",
        "file",
        "folder",
        "folder",
    ]


def test_rename_replaces_only_when_told(start, box):
    for name in "ab":
        (box / name).write_text(name)
    assert b"reason=exists" in talk(start(), b"rename a b\n") and (box / "b").read_text() == "b"
    assert (
        talk(start(), b"rename a b over=yes\n")
        == b"ok rename a b over=yes\n".replace(b" over=yes", b"")
        and (box / "b").read_text() == "a"
    )


@pytest.mark.parametrize("new", ["b", "d/a"])
def test_a_rename_from_link_to_link_of_one_file_leaves_the_new_name_alone(start, box, new):
    server = start()
    (box / "d").mkdir()
    (box / "a").write_text("a")
    os.link(box / "a", box / new)
    assert talk(server, b"rename a a over=yes\n") == b"ok rename a a\n" and (box / "a").exists(), (
        "to its own name: nothing happens"
    )
    assert talk(server, f"rename a {new} over=yes\n".encode()) == f"ok rename a {new}\n".encode()
    assert not (box / "a").exists() and (box / new).read_text() == "a"


def test_a_rename_to_the_same_name_in_another_case_loses_no_file(box, tmp_path):
    """Where both are one name to the file system, Linux finds source and target to be one file, and its rename() does nothing."""
    from conftest import Server

    runner = tmp_path / "run.py"
    runner.write_text(f"""
import os, runpy, sys
def fold(call, *folders):
    def folded(*names, **more):
        found = [next((each for each in os.listdir(more[key]) if each.lower() == name.lower()), name) if more.get(key) is not None else name
                 for name, key in zip(names, folders)]
        return call(*found, *names[len(found):], **more)
    os.supports_dir_fd.add(folded)
    return folded
os.stat, os.unlink, os.replace = fold(os.stat, "dir_fd"), fold(os.unlink, "dir_fd"), fold(os.replace, "src_dir_fd", "dst_dir_fd")
sys.argv = ["server.py", *sys.argv[1:], "--port", "0"]
runpy.run_path({str(ROOT / "server.py")!r}, run_name="__main__")
""")
    (box / "a").write_text("a")
    server = Server(str(runner), box)
    assert talk(server, b"rename a A over=yes\n") == b"ok rename a A\n"
    server.stop()
    assert [path.read_text() for path in box.iterdir()] == ["a"]


def test_a_listing_is_sorted_and_deep_on_request(start, box):
    for name in ("z/1", "a", "m/n/o", "b"):
        (box / name).parent.mkdir(parents=True, exist_ok=True)
        (box / name).touch()
    shallow, deep = (
        re.sub(r" (size|mtime_ns)=\d+", "", talk(start(), asked).decode()).splitlines()
        for asked in (b"list\n", b"list deep=yes\n")
    )
    assert shallow == ["file a", "file b", "dir m", "dir z", "ok list count=4"]
    assert deep == [
        "file a",
        "file b",
        "dir m",
        "dir z",
        "dir m/n",
        "file m/n/o",
        "file z/1",
        "ok list count=7",
    ]
    assert b"file m/n/o" in talk(start(), b"list m/n\n")


# --- names ---
BAD_NAMES = [
    "..",
    ".",
    "a/../b",
    "/etc/passwd",
    "//etc",
    "..%2f",
    "%2e%2e/",
    "..%2Foutside%2Fsecret",
    "../box_disallow",
    "a//b",
    "a/",
    "%2e",
    "nul%00byte",
    "/",
    ".six-" + "0" * 32 + ".part",
    "a/.SIX-" + "f" * 32 + ".PART",
    "a/" * 2500 + "b",
    "x" * 256,
]
ODD_NAMES = [
    "new%0Aline",
    "cr%0D",
    "%1B[31mred",
    "%9B",
    "%E2%80%AEgpj.exe",
    "%FF",
    "%C0%AE%C0%AE",
    "%252e%252e",
    "quote\"'",
    "~root",
    "-rf",
    "x" * 255,
    "dot.",
    "space%20",
    "CON",
    "nul.txt",
    "f::$DATA",
    "C:\\x",
    "\\\\host\\share",
    "a%5c..",
    "ü",
    "%C3%BC2",
    "per%25cent",
    "eq%3Dual",
    "tab%09",
    "$(id)",
]
VERBS = [
    "get {}",
    "put {} over=yes",
    "put {} over=yes size=2000000 mtime_ns=1 offset=9",
    "stat {}",
    "delete {}",
    "rename {} fine",
    "rename there {}",
    "mkdir {}",
    "list {}",
    "mkdir {}/sub",
    "get {}/x",
]


def test_bad_names_are_refused_by_every_verb(start, box):
    (box / "there").write_text("there")
    asked = [
        verb.format(name)
        for verb in VERBS
        for name in BAD_NAMES
        if len(name) != 256 or "offset" not in verb
    ]
    said = (
        talk(
            start(),
            "".join(
                f"{text}\ndata 1\nx\nend\n".replace("x\nend", "xend") for text in asked
            ).encode(),
        )
        .decode()
        .splitlines()
    )
    assert len(said) == len(asked)
    for question, answer in zip(asked, said):
        assert answer.startswith("err ") and answer.endswith(
            ("reason=bad-name", "reason=no-such-file")
            if "x" * 256 in question
            else "reason=bad-name"
        ), question[:80]
    assert names(box) == ["there"] and names(box.parent / "outside") == ["secret"]


def test_odd_names_come_through_exactly(start, box):
    server = start()
    for name in ODD_NAMES:
        raw = re.sub(rb"%(..)", lambda found: bytes.fromhex(found[1].decode()), name.encode())
        assert b"ok put" in talk(server, put(name, b"data")), name
        assert os.listdir(os.fsencode(box)) == [raw]
        listed = talk(server, b"list\n").split()[1].decode()
        said = talk(
            server,
            f"get {listed}\nrename {listed} plain\nrename plain {name}\nstat {name}\ndelete {listed}\n".encode(),
        )
        assert said.count(b"ok ") == 5 and b"data 4\ndata" in said, (name, said)
    server.stop()
    assert all(char.isprintable() or char == "\n" for char in server.err), server.err


def test_names_can_not_forge_a_log_line(start):
    server = start()
    talk(server, b"get x%0A2026-01-01%2000:00:00%20127.0.0.1:1%20put%20y\n")
    assert re.search(r"get x\\n2026-01-01", server.stop())


def test_hidden_names_are_refused_and_unlisted_unless_shared(start, box):
    (box / ".git").mkdir()
    (box / ".git" / "config").write_text("x")
    server = start()
    for verb in VERBS[:-2]:
        if verb != "rename there {}":
            assert b"reason=hidden-name" in talk(
                server, (verb.format(".git/config") + "\n").encode()
            )
    assert talk(server, b"list deep=yes\n") == b"ok list count=0\n"
    assert b".git/config" in talk(start("--hidden"), b"list deep=yes\nget .git/config\n")


def test_windows_names_are_refused_on_windows():
    for name in (
        "CON",
        "nul.txt",
        "f::$DATA",
        "C:\\x",
        "\\\\host\\share",
        "a\\b",
        "dot.",
        "space ",
        "com1",
        "a?b",
    ):
        with pytest.raises(script.Refused):
            script.check_name(name, windows=True)
    assert script.check_name("console/connect.txt", windows=True) == ["console", "connect.txt"]


# --- links and special files ---
def plant(box):
    outside = box.parent / "outside"
    (box / "leaf").symlink_to(outside / "secret")
    (box / "parent").symlink_to(outside)
    (box / "dangling").symlink_to(outside / "new")
    os.mkfifo(box / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(box / "socket"))
    listener.close()


@pytest.mark.parametrize("verb", VERBS)
def test_links_and_special_files_lead_nowhere(start, box, verb):
    plant(box)
    (box / "there").write_text("there")
    server = start()
    for name in ("leaf", "parent/secret", "parent/new", "dangling", "fifo", "socket", "parent"):
        said = talk(server, (verb.format(name) + "\n").encode() + b"data 3\nbadend\n")
        assert said.startswith(b"err "), (name, said)
        assert b"secret" not in said.replace(b"parent/secret", b"")
    assert (box.parent / "outside" / "secret").read_text() == "secret" and names(
        box.parent / "outside"
    ) == ["secret"]


def test_links_are_not_listed_and_a_deep_listing_says_which(start, box):
    plant(box)
    assert talk(start(), b"list\n") == b"ok list count=0\n"
    assert sorted(talk(start(), b"list deep=yes\n").splitlines())[:3] == [
        b"note dangling reason=not-a-file",
        b"note fifo reason=not-a-file",
        b"note leaf reason=not-a-file",
    ]


def give_up_rights():
    """What lets root pass over modes: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by PR_CAPBSET_DROP. Others have neither."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="root keeps its rights")
def test_what_cannot_be_looked_at_does_not_end_a_listing(start, box):
    (box / "closed").mkdir()
    (box / "closed" / "x").write_text("x")
    (box / "later").write_text("later")
    (box / "closed").chmod(0o444)
    try:
        server = start(preexec_fn=give_up_rights)
        told = re.sub(
            r" (?:size|mtime_ns)=\d+", "", talk(server, b"list deep=yes\nlist closed\n").decode()
        ).splitlines()
    finally:
        (box / "closed").chmod(0o755)
    closed = "note closed/x reason=not-permitted"
    assert told == [
        "dir closed",
        "file later",
        closed,
        "ok list count=2",
        closed,
        "ok list closed count=0",
    ]


def test_a_folder_swapped_for_a_link_during_an_upload_is_not_followed(start, box):
    server = start()
    (box / "a").mkdir()
    with server.connect() as sock:
        sock.sendall(b"put a/x\ndata 4\nab")
        until(lambda: parts(box / "a"), "the part")
        (box / "a").rename(box / "b")
        (box / "a").symlink_to(box.parent / "outside")
        sock.sendall(b"cdend\nbye\n")
        assert b"ok put a/x" in everything(sock)
    assert (box / "b" / "x").read_text() == "abcd" and names(box.parent / "outside") == ["secret"]


def test_a_single_file_is_all_that_is_shared(spawn, box):
    (box / "a").write_text("a")
    (box / "b").write_text("b")
    said = talk(
        spawn("server.py", box / "a"),
        b"list\nget a\nget b\nlist deep=yes\nput c\ndata 1\nxend\ndelete a\n",
    ).decode()
    assert (
        said.count("file a") == 2 and "ok get a" in said and "err get b reason=no-such-file" in said
    )
    assert "file b" not in said and said.count("reason=read-only") == 2
    (box / "link").symlink_to("a")
    assert b"ok get a" in talk(spawn("server.py", box / "link"), b"get a\n")


@pytest.mark.skipif(os.name == "nt", reason="takes away what Windows does not have")
def test_without_dir_fd_names_are_resolved_and_compared(box, tmp_path):
    code = (
        "import os, runpy, sys; os.supports_dir_fd = set(); sys.argv = ['server.py', sys.argv[1], '--port', sys.argv[3]]\n"
        f"runpy.run_path({str(ROOT / 'server.py')!r}, run_name='__main__')"
    )
    from conftest import Server

    runner = tmp_path / "run.py"
    runner.write_text(code)
    server = Server(str(runner), box)
    try:
        plant(box)
        said = talk(
            server,
            put("d", b"x")
            + b"mkdir a/b\n"
            + put("a/b/c", b"deep")
            + b"get a/b/c\nget leaf\nget parent/secret\n"
            + put("parent/y", b"x")
            + b"get ../outside/secret\nlist a/b\nrename a/b/c e\ndelete e\nlist parent\n",
        ).decode()
        assert "data 4\ndeep" in said and "secret\n" not in said.replace("parent/secret\n", "")
        assert [
            answer.split("reason=")[1] for answer in said.splitlines() if answer.startswith("err")
        ] == ["not-a-file", "not-a-folder", "not-a-folder", "bad-name", "not-a-folder"]
        assert names(box.parent / "outside") == ["secret"]
        server.stop()
    finally:
        if server.process.poll() is None:
            server.kill()


# --- lines and numbers ---
MISTAKES = [
    (b"x" * 40000, "line-too-long"),
    (b"get " + b"x" * 32763 + b"\n", "bad-name"),
    (b"get " + b"x" * 32764 + b"\n", "line-too-long"),
    (b"get a  b\n", "bad-line"),
    (b"get a \n", "bad-line"),
    (b"get a%zz\n", "bad-line"),
    (b"get a%\n", "bad-line"),
    (b"get a\tb\n", "bad-line"),
    (b" list\n", "bad-line"),
    (b"get a\0\n", "bad-line"),
    (b"\x1b[2J\n", "bad-line"),
    (b"data -1\n", "bad-number"),
    (b"data 1e9\n", "bad-number"),
    (b"data 0x5\n", "bad-number"),
    (b"data +5\n", "bad-number"),
    (b"data\n", "bad-number"),
    (b"data " + b"9" * 19 + b"\n", "bad-number"),
    (b"data " + b"9" * 32000 + b"\n", "bad-number"),
    ("data ٣\n".encode(), "bad-number"),
    (b"put a\ndata x\n", "bad-number"),
    (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "this-is-http"),
    (b"POST /x HTTP/1.0\r\n\r\nput x\ndata 1\nxend\n", "this-is-http"),
    (b"PRI * HTTP/2.0\r\n\r\n", "this-is-http"),
    (b"\x16\x03\x01\x02\x00\x01\x00", "this-is-tls"),
    (b"bogus\n", "unknown-verb"),
    (b"get\n", "usage"),
    (b"get a b\n", "usage"),
    (b"rename a\n", "usage"),
    (b"ping x\n", "usage"),
    (b"=\n", "unknown-verb"),
    (b"put a size=3 size=1\ndata 3\nabcend\n", "too-long"),
    (b"put a size=3\ndata 5\nabcdeend\n", "too-long"),
    (b"put a size=3\ndata 2\nabend\n", "incomplete"),
    (b"put a\ndata 2\nababort reason=x\n", "aborted"),
    (b"put a\ndata 2\nabend sha256=00\n", "wrong-digest"),
    (b"put a\ndata 2\nabping\n", "aborted"),
    (b"put a size=4\ndata 99999999999999\nabcd", "too-long"),
]


BAD_NUMBERS = [
    b"put a size=-1",
    b"put a size=1e3",
    b"put a size=",
    b"put a mtime_ns=99999999999999999999",
    b"put a mtime_ns=1.5",
    b"put a offset=x",
    b"get a offset=x",
    b"stat a size=1 mtime_ns=x",
    b"put a size=x mtime_ns=1 offset=1",
    b"send 127.0.0.1:1 a size=x",
    b"send 127.0.0.1:1 a mtime_ns=99999999999999999999",
]


def test_a_request_with_a_bad_number_is_refused_and_the_connection_goes_on(start, box):
    """Its body, if it has one, is dropped; the next request on the same connection is carried out."""
    server, requests = start(), b""
    for request in BAD_NUMBERS:
        requests += request + b"\n" + b"data 3\nabc" + b"end\n"
    said = talk(server, requests + put("b", b"hello", mtime_ns=5) + b"ping\n")
    *refused, stored, pong = said.splitlines()
    words = [b" ".join(word for word in line.split() if b"=" not in word) for line in BAD_NUMBERS]
    assert refused == [
        b"err " + word.replace(b"127.0.0.1:1 ", b"") + b" reason=bad-number" for word in words
    ]
    assert stored.startswith(b"ok put b size=5") and pong == b"ok ping"
    assert names(box) == ["b"] and (box / "b").stat().st_mtime_ns == 5


def test_what_a_peer_can_get_wrong_is_answered_and_logged_once(start, box):
    server, closing = (
        start(),
        ("line-too-long", "bad-line", "bad-number", "this-is-http", "this-is-tls"),
    )
    for sent, reason in MISTAKES:
        said = talk(server, sent)
        assert f"reason={reason}".encode() in said, (sent[:60], said[:300])
        assert said.splitlines()[-1].startswith(b"err - ") == (reason in closing), (
            sent[:60],
            said[:300],
        )
        assert max(map(len, said.splitlines())) < 32768
        assert names(box) == []
    assert talk(server, b"ping\n") == b"ok ping\n"
    logged = re.findall(r"(?:: |, )([a-z-]+)$", server.stop(), re.MULTILINE)
    assert logged == [reason for _, reason in MISTAKES]


@pytest.mark.parametrize("size", [2**31, 2**63, 2**64, 10**30])
def test_a_small_file_that_says_to_be_larger_than_any_memory_is_answered(start, box, size):
    """Where a regular expression is to begin must fit into 31 or 63 bits, depending on the machine."""
    request = b"put a size=%d mtime_ns=1\ndata %d\n" % (size, size)
    assert not script.BEGIN.match(request)
    said = talk(start(), request)
    assert said == b"" if size < 2**63 else b"reason=bad-number" in said
    assert script.BEGIN.match(put("a", BIG[:999999], size=999999, mtime_ns=1))


NO_UTF8 = {
    b"\x16\x03\x01\x02\x00\x01\x00\xff\xfe\n\x80junk": "this-is-tls",
    b"\x16\x03\x01\x00abc\n": "this-is-tls",
    b"say \xff\n": "bad-line",
    b"get \xff\xfe\n": "bad-line",
    b"get %FF\n": "bad-line",
    b"stat a sha256=%FF\n": "bad-line",
}


def test_where_names_are_unicode_a_line_that_is_none_is_answered(box, tmp_path):
    """As on Windows. A TLS client's first bytes may hold a line feed, too."""
    from conftest import Server

    code = """
sys.getfilesystemencodeerrors = lambda: "surrogatepass"
os.fsdecode = lambda name: name if isinstance(name, str) else name.decode("utf-8", "surrogatepass")"""
    server = Server(with_calls(tmp_path / "run.py", code), box)
    for sent, reason in NO_UTF8.items():
        assert talk(server, sent) == f"err - reason={reason}\n".encode(), sent
    server.stop()


def test_a_refused_body_is_dropped_and_the_next_line_understood(start, box):
    said = talk(
        start(),
        put("../x", BIG[:200000])
        + put("y", b"fine").replace(b"end", b"note y\nend")
        + b"data 5\nget y"
        + b"end\nabort\nnote y\nping\n",
    )
    assert (
        said.splitlines()[0] == b"err put ../x reason=bad-name"
        and said.splitlines()[1].startswith(b"ok put y")
        and said.endswith(b"ok ping\n")
    )
    assert names(box) == ["y"]


def test_a_file_that_holds_the_first_bytes_of_tls_is_not_taken_for_it(start):
    """What is left of a body in the buffer stands behind the line that comes next, at whatever place that ends."""
    body = b"\x16\x03" * 100000
    with start().connect() as sock, sock.makefile("rb") as answers:
        for sent in (put("x", body), b"ping\n", b"ping\r\n", b"ping\n"):
            sock.sendall(sent)
            while (said := answers.readline()).startswith((b"sixsockets", b"note")):
                pass
            assert said.startswith(b"ok "), said


def test_a_verb_inside_a_body_ends_it_and_is_run(start, box):
    said = talk(start(), b"put a\ndata 2\nab" + put("b", b"b") + b"list\n")
    assert [answer.split()[:3] for answer in said.splitlines()[:2]] == [
        [b"err", b"put", b"a"],
        [b"ok", b"put", b"b"],
    ]
    assert names(box) == ["b"]


def test_no_line_of_a_deep_listing_is_longer_than_a_line_may_be(start, box):
    """Folders renamed into each other can have names that are longer than those of any request."""
    above = os.open(box, os.O_RDONLY)
    for _ in range(55):
        os.mkdir(b"\xff" * 250, dir_fd=above)
        below = os.open(b"\xff" * 250, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.symlink("x", "link", dir_fd=above)
    os.close(above)
    said = talk(start(), b"list deep=yes\n").splitlines()
    assert max(map(len, said)) < 32768 and any(
        b"note" in told and b"reason=too-deep" in told for told in said
    )


def deep(folder, count, name="d"):
    """So many folders, each in the one before."""
    above = os.open(folder, os.O_RDONLY)
    for _ in range(count):
        os.mkdir(name, dir_fd=above)
        below = os.open(name, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)


def test_no_name_is_deeper_than_sixty_four_components(start, box):
    server, path = start(), "/".join("d" * 63)
    assert b"ok put" in talk(server, f"mkdir {path}\n".encode() + put(f"{path}/x", b"x"))
    for request in (
        put(f"{path}/d/x", b"x"),
        f"mkdir {path}/d/d\n".encode(),
        f"get {path}/d/x\n".encode(),
        f"rename {path}/x {path}/d/x\n".encode(),
    ):
        assert b"reason=too-deep" in talk(server, request)
    assert names(box.joinpath(*path.split("/"))) == ["x"]


def test_a_rename_makes_nothing_deeper_than_sixty_four_components(start, box):
    server, half = start(), "/".join("d" * 32)
    assert b"ok mkdir" in talk(server, f"mkdir a/{half}\nmkdir b/{half}\n".encode())
    said = talk(server, f"rename a b/{half}/a\nrename a/d b/{half}/d\n".encode())
    assert said.count(b"reason=too-deep") == 2
    said = talk(server, f"rename a/d/d b/{half}/d\nrename b/d/d b/e\nrename b/e up\n".encode())
    assert said.count(b"ok rename") == 3 and names(box) == ["a", "b", "up"]


def test_a_tree_that_is_too_deep_already_is_told_and_costs_little(start, box):
    """It may have come another way."""
    deep(box, 200)
    (box / "x").touch()
    server = start()
    said = talk(server, b"list deep=yes\n").decode().splitlines()
    assert len(said) == 67 and said[-1] == "ok list count=65"
    assert said[65] == f"note {'/'.join('d' * 64)} reason=too-deep"
    assert server.at_rest()
    assert b"reason=too-deep" in talk(server, b"rename d other/d\nmkdir e\nrename d e/d\n")


def test_help_about_something_long_does_not_repeat_it(start):
    assert len(talk(start(), b"help " + b"\xff" * 30000 + b"\n").splitlines()[-1]) < 100


def test_an_error_about_a_long_name_is_no_longer_than_a_line_may_be(start):
    for sent in (
        b"get " + b"\xff" * 32000,
        b"rename " + b"\xff" * 16000 + b" " + b"\xff" * 16000,
        b"x " + b"a " * 16000 + b"b",
        b" ".join(["\U000f0000".encode() * 1000] * 3),
    ):
        assert len(talk(start(), sent + b"\n").splitlines()[0]) < 32768


def test_without_a_default_route_it_does_not_say_that_nobody_else_can_come(spawn, box):
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode
    ):
        pytest.skip("cannot make a network of its own here")
    server = spawn(
        "server.py",
        shell=f"exec unshare -rn {sys.executable} {ROOT}/server.py {box} --host 0.0.0.0 --open --port 0",
    )
    server.wait_for("and change it\nnothing is encrypted.*\n")
    assert (
        f"client.py --host {socket.gethostname()} --port {server.port}\n" in server.err
        and "only this machine" not in server.err
    )


# --- limits ---
def test_one_client_too_many_is_told_so(start):
    server = start("--max-clients", "1")
    with server.connect() as sock:
        assert GREETING.match(sock.recv(100))
        with server.connect() as other:
            assert everything(other) == b"err - reason=server-full\n"
    server.wait_for("refused: --max-clients 1 is reached")
    until(lambda: talk_or_full(server) == b"ok ping\n", "room again")


def from_address(server, host):
    return socket.create_connection((server.host, server.port), DEADLINE, (host, 0))


@pytest.mark.skipif(sys.platform != "linux", reason="has one loopback address")
def test_one_address_cannot_keep_all_places_from_others(start, box):
    """The one that is silent longest goes: not a new one, not one that waits for files, and none for its own address."""
    server = start("--max-clients", "5")
    with contextlib.ExitStack() as opened:
        watcher = opened.enter_context(from_address(server, "127.0.0.8"))
        answers = opened.enter_context(watcher.makefile("rb"))
        assert answers.readline().startswith(b"sixsockets ")
        crowd, expected = [], ["who"]

        def all_wait():
            watcher.sendall(b"who\n")
            told = iter(answers.readline, b"ok who count=%d\n" % len(expected))
            return sorted(re.findall(r"mode=(\w+)", b"".join(told).decode())) == sorted(expected)

        for request, mode in (
            (b"receive\n", "receive"),
            (b"ping\n", "idle"),
            (b"ping\n", "idle"),
            (b"put x\ndata 9\n12345", "put"),
        ):
            crowd.append(opened.enter_context(from_address(server, "127.0.0.1")))
            assert GREETING.match(crowd[-1].recv(200))
            crowd[-1].sendall(request)
            expected.append(mode)
            # who has not begun is idle too; and an answer can be here before its thread waits again
            if mode != "put":
                assert crowd[-1].recv(200).startswith(b"ok ")
            until(all_wait, f"{mode} to wait")
        until(lambda: sizes(box) == [5], "the upload to be under way")
        assert everything(from_address(server, "127.0.0.1")) == b"err - reason=server-full\n"
        others = []
        for gone in (1, 2):
            others.append(opened.enter_context(from_address(server, "127.0.0.9")))
            assert others[-1].recv(200).startswith(b"sixsockets ")
            assert everything(crowd[gone]) == b""
        # now nobody has more than half
        assert everything(from_address(server, "127.0.0.7")) == b"err - reason=server-full\n"
        crowd[3].sendall(b"6789end\n")
        with crowd[3].makefile("rb") as answers:
            assert any(each.startswith(b"ok put x") for each in answers)
        crowd[0].sendall(b"ping\n")
        assert crowd[0].recv(200) == b"ok ping\n"


def test_those_who_wait_go_last_and_those_with_a_request_never():
    """Also of IPv6, where 64 bits are one address."""

    class Client(types.SimpleNamespace):
        __hash__, is_idle = object.__hash__, script.Session.is_idle
        owed = relays = ()

        def __eq__(self, other):
            return self is other

        def cut(self):
            gone.append(self.name)

    gone, server = [], script.Server.__new__(script.Server)
    server.args, server.log = types.SimpleNamespace(max_clients=4), lambda lines: None
    made = [("receiver", "receive", 1), ("old", "", 2), ("new", "", 3), ("busy", "", 0)]
    server.sessions = {
        Client(
            name=name,
            mode=mode,
            last_heard=heard,
            peer=f"[2001:db8::{heard}]:9",
            between_requests=name != "busy",
        )
        for name, mode, heard in made
    }
    assert not server.make_room(script.network("2001:db8::9"))
    server.args.max_clients = 1
    while server.make_room(script.network("2001:db8:0:1::9")):
        pass
    assert gone == ["old", "new", "receiver"]


def talk_or_full(server):
    # OSError: who was turned away and is slow then finds the connection reset
    with contextlib.suppress(AssertionError, OSError):
        return talk(server, b"ping\n")


ONE_FILE = {
    "new": ({}, b"5 bytes", "ok put x size=7"),
    "empty": ({}, b"", "ok put x size=0"),
    "another digest": ({"digest": "0" * 64}, b"y", "err put x reason=wrong-digest"),
    "digest in capitals": ({"digest": sha(b"y").upper()}, b"y", "ok put x size=1"),
    "longer": ({"size": 3}, b"four", "err put x reason=too-long"),
    "shorter": ({"size": 5}, b"four", "err put x reason=incomplete"),
    "longer than it says at last": ({"mtime_ns": "7 size=3"}, b"four", "err put x reason=too-long"),
    "a file there": ({"name": "file"}, b"y", "err put file reason=exists size=4 mtime_ns="),
    "a folder there": ({"name": "folder"}, b"y", "err put folder reason=is-a-folder"),
    "a link there": ({"name": "link"}, b"y", "err put link reason=not-a-file"),
    "over a file": ({"name": "file", "over": "yes"}, b"y", "ok put file size=1"),
    "a program": ({"exec": "yes", "nick": "anna"}, b"y", "ok put x size=1"),
    "of before 1970": ({"mtime_ns": -(10**18)}, b"y", "ok put x size=1"),
    "of after 2255": ({"mtime_ns": 9 * 10**18}, b"y", "err put x reason=bad-number"),
}


@pytest.mark.parametrize("case", ONE_FILE)
def test_a_small_file_has_the_same_answer_whole_and_in_pieces(start, box, case):
    keys, data, answer = ONE_FILE[case]
    request = put(**{"name": "x", "data": data, "size": len(data), "mtime_ns": 10**18, **keys})
    server, answers = start(), []
    # what comes with a line before it is taken whole
    for pieces in [b"ping\n" + request], [bytes([byte]) for byte in b"ping\n" + request]:
        shutil.rmtree(box)
        (box / "folder").mkdir(parents=True)
        (box / "file").write_bytes(b"mine")
        (box / "link").symlink_to(box / "file")
        with server.connect() as sock, sock.makefile("rb") as said:
            said.readline()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                sock.send(piece)
            assert said.readline() == b"ok ping\n"
            told = next(line for line in said if not line.startswith(b"note "))
            answers.append(re.sub(r" (received|mtime_ns)=\d+", "", told.decode()))
            sock.send(b"ping\n")
            assert said.readline() == b"ok ping\n"  # and the next line is understood
        name = keys.get("name", "x")
        stored = (box / name).read_bytes() == data if answer.startswith("ok") else True
        assert stored and not [left for left in names(box) if left.endswith(".part")]
        if answer.startswith("err"):
            assert names(box) == ["file", "folder", "link"]
            assert (box / "file").read_bytes() == b"mine"
    assert answers[0] == answers[1] and answers[0].startswith(answer.removesuffix(" mtime_ns="))


def test_a_file_with_a_new_name_needs_no_lock_of_its_folder(start, box):
    fcntl = pytest.importorskip("fcntl")
    server = start()
    with held_open(box) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert b"ok put a " in talk(server, put("a", b"new", size=3))


def test_limits_on_uploads(start, box):
    server = start("--max-size", "1Ki")
    assert b"reason=too-large limit=1024" in talk(
        server, put("a", b"x" * 1025)
    ) and b"reason=too-large" in talk(server, b"put a size=1025\n")
    assert b"ok put" in talk(server, put("a", b"x" * 1024, size=1024))
    assert b"reason=disk-full" in talk(start("--min-free", "999T"), put("b", b"x"))
    read_only = start("--read-only")
    for verb in VERBS[1:3] + VERBS[4:8]:
        assert b"reason=read-only" in talk(read_only, (verb.format("a") + "\n").encode())
    assert names(box) == ["a"]


@pytest.mark.parametrize("count", [500000, 3000000], ids=["in lines", "in one line"])
def test_uploads_at_once_leave_the_free_space_that_was_asked_for(box, tmp_path, count):
    """Each had room when it began. What the folder holds stands for a disk of six megabytes."""
    from conftest import Server

    code = """
def disk(folder):
    free = 6_000_000 - sum(entry.stat().st_size for entry in os.scandir(folder))
    return os.statvfs_result([1, 1, 6_000_000, free, free, 9, 9, 9, 0, 255])
os.statvfs = disk"""
    server = Server(with_calls(tmp_path / "run.py", code), box, "--min-free", "2M")
    data = b"".join(
        b"data %d\n%b" % (count, BIG[at : at + count]) for at in range(0, 3000000, count)
    )
    with server.connect() as one, server.connect() as other:
        other.sendall(b"put other size=3000000 mtime_ns=1\n" + data[:100000])
        until(lambda: parts(box) and (box / parts(box)[0]).stat().st_size, "the other to begin")
        one.sendall(b"put one size=3000000\n" + data + b"end\nbye\n")
        assert b"ok put one size=3000000 " in everything(one)
        with contextlib.suppress(ConnectionError):
            other.sendall(data[100000:] + b"end\nbye\n")
        assert b"err put other reason=disk-full received=" in everything(other)
    server.stop()
    assert names(box) == ["one"]


def test_a_resumed_upload_needs_room_for_its_rest_alone(start, box):
    if not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", box], check=True)
    try:
        server = start("--min-free", "4M")
        partial(server, box)
        said = talk(server, rest(2 << 20))
        assert said.splitlines()[1].startswith(b"ok put big"), said
        assert talk(server, put("more", BIG, size=len(BIG))) == b"err put more reason=disk-full\n"
        server.stop()
    finally:
        subprocess.run(["umount", "-l", box], check=True)


def test_an_output_that_takes_nothing_is_told(box):
    with open("/dev/full", "wb") as full:
        failed = subprocess.run(
            [sys.executable, "-W", "error", ROOT / "server.py", box, "--port", "0"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert failed.returncode == 23 and failed.stderr.startswith(
        "error: cannot write standard output"
    ), failed.stderr
    assert_clean(failed.stderr)


def test_a_log_that_can_not_be_written_is_told(run, box):
    failed = run("server.py", box, "--port", "0", "--log", box / "no/log")
    assert failed.code == 23 and "cannot write the log" in failed.err and failed.out == b""


@pytest.mark.parametrize("limit", [0, 4096, 100000])
def test_a_full_disk_leaves_no_file_and_tells_the_client(start, box, limit):
    server = start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    said = talk(server, put("x", BIG[:200000], size=200000) + b"ping\n")
    told = re.fullmatch(rb"err put x reason=too-large received=(\d+)\nok ping\n", said)
    assert told and limit <= int(told[1]) <= 200000
    assert names(box) == []


def with_calls(path, code):
    """The server, where some calls of the system do other things."""
    path.write_text(
        f"import errno, os, runpy, sys\n{code}\nrunpy.run_path({str(ROOT / 'server.py')!r}, run_name='__main__')"
    )
    return str(path)


def test_a_disk_that_turned_read_only_is_told_as_that(box, tmp_path):
    from conftest import Server

    code = """
opened = os.open
def frozen(path, flags, *rest, **more):
    if flags & os.O_CREAT:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    return opened(path, flags, *rest, **more)
os.supports_dir_fd = {*os.supports_dir_fd, frozen}
os.open = frozen"""
    server = Server(with_calls(tmp_path / "run.py", code), box)
    assert talk(server, put("x", b"x")) == b"err put x reason=disk-read-only\n"
    server.stop()


def test_a_disk_without_modes_and_times_takes_a_replacement_all_the_same(box, tmp_path):
    from conftest import Server

    code = """
def refuse(*args, **more):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
os.supports_fd = {*os.supports_fd, refuse}
os.fchmod = os.utime = refuse"""
    (box / "x").write_text("old")
    (box / "private").write_text("old")
    (box / "private").chmod(0o600)
    server = Server(with_calls(tmp_path / "run.py", code), box)
    whole = put("x", b"new", mtime_ns=1, over="yes", exec="yes")
    assert b"verified=yes" in talk(server, whole)
    assert b"reason=not-permitted" in talk(server, put("private", b"new", over="yes"))
    server.stop()
    assert (box / "x").read_text() == "new" and (box / "private").read_text() == "old"


def test_a_log_on_a_full_disk_tells_how_many_lines_it_lost(start, box, tmp_path):
    log = tmp_path / "log"
    server = start(
        "--log", log, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    )
    for _ in range(9):
        talk(server, b"list\n")
    server.wait_for(r"cannot write the log \(File too large\)")
    assert log.stat().st_size == 200
    os.truncate(log, 0)
    talk(server, b"delete nothing\n")
    found = until(lambda: re.search(r"(\d+) lines? lost", log.read_text()), "the log to tell")
    assert 3 < int(found[1]) < 10 and "delete nothing" in log.read_text()
    assert server.err.count("cannot write the log") == 1


@pytest.mark.parametrize("keys", [{}, {"mtime_ns": 5}])
def test_a_run_of_zeros_is_kept_as_a_hole(start, box, keys):
    size = 32 << 20
    data = b"begin" + bytes(size) + b"end" + bytes(5 << 20)
    server = start()
    assert b"verified=yes" in talk(server, put("x", data, size=len(data), **keys))
    assert (box / "x").read_bytes() == data
    assert (box / "x").stat().st_blocks * 512 < 4 << 20
    assert talk(server, b"get x\n").count(b"\0") == data.count(b"\0")


def test_an_upload_of_zeros_is_resumed_where_it_was_cut(start, box):
    data = bytes(3 << 20) + b"end"
    server, keys = start(), f"x size={len(data)} mtime_ns=5"
    with server.connect() as sock:
        sock.sendall(f"put {keys}\ndata 2000000\n".encode() + data[:2000000])
        until(lambda: parts(box) and (box / parts(box)[0]).stat().st_size == 2000000, "the bytes")
    server.wait_for("cut at 2000000 of")
    said = talk(server, rest(2000000, "x mtime_ns=5", data))
    assert said.startswith(b"note x offset=2000000\n") and b"verified=yes" in said
    assert (box / "x").read_bytes() == data and names(box) == ["x"]


def test_a_current_folder_that_is_gone_is_told(box):
    (box / "gone").mkdir()
    command = [
        "sh",
        "-c",
        f"rmdir ../gone; exec '{sys.executable}' -W error '{ROOT / 'server.py'}' --port 0",
    ]
    done = subprocess.run(
        command, cwd=box / "gone", stderr=subprocess.PIPE, check=False, timeout=DEADLINE
    )
    assert done.returncode == 26 and b"error: cannot share files (" in done.stderr
    assert_clean(done.stderr.decode())


def test_when_the_shared_folder_is_gone_the_log_says_so(start, box):
    server = start()
    box.rename(box.parent / "elsewhere")
    with server.connect() as sock:
        assert everything(sock) == b"err - reason=server-full\n"
    server.wait_for(f"refused: .*No such file or directory: '{box}'")
    (box.parent / "elsewhere").rename(box)
    assert talk(server, b"ping\n") == b"ok ping\n"


def test_too_many_open_files_in_accept_is_survived(start):
    server = start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24)))
    socks = [server.connect() for _ in range(40)]
    server.wait_for("cannot accept|Too many open files")
    for sock in socks:
        sock.close()
    until(lambda: talk_or_full(server) == b"ok ping\n", "the next client")


# --- time ---
def test_a_line_that_stands_still_is_given_up_and_an_idle_client_is_not(start):
    server = start("--timeout", "0.2")
    with server.connect() as idle, server.connect() as slow:
        slow.sendall(b"lis")
        assert GREETING.sub(b"", everything(slow)) == b""
        idle.sendall(b"ping\n")
        assert GREETING.match(idle.recv(100)) is not None
        assert "silent for 0.2 s" in server.wait_for("connection lost.*")[0]
        idle.sendall(b"bye\n")
        assert everything(idle).endswith(b"ok bye\n")


def test_one_byte_at_a_time_does_not_keep_a_line_open(start):
    server = start("--timeout", "0.3")
    stop = threading.Event()
    with server.connect() as sock:

        def drip():
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    sock.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        server.wait_for("connection lost: silent")
        stop.set()
        thread.join()


def test_a_reader_that_stops_reading_is_let_go(start, box):
    (box / "big").write_bytes(BIG * 8)
    server = start("--timeout", "0.3")
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"get big\n")
        server.wait_for(
            r"get big: cut at \d+ of 25165824 bytes \(silent for 0.3 s\)\n.*connection lost: silent"
        )
    assert talk(server, b"ping\n") == b"ok ping\n"


def test_many_clients_that_say_nothing_or_reset_delay_nobody(start, full):
    count = 400 if full else 100  # far fewer than the 1024 descriptors that some systems allow
    server = start("--max-clients", "2000")
    before = server.at_rest()
    silent = [server.connect() for _ in range(count)]
    for _ in range(count):
        sock = server.connect()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    assert talk(server, b"ping\n") == b"ok ping\n"
    assert server.status("VmRSS") < (150 << 10) * max(1, count // 100)
    for sock in silent:
        sock.close()
    server.rests(before)


def test_hundreds_who_come_at_once_are_queued_by_the_kernel(start):
    """Whoever finds the queue full is not refused but hears nothing, and asks again after a second."""
    with open("/proc/sys/net/core/somaxconn") as limit:
        if int(limit.read()) < 1024:
            pytest.skip("this kernel's queues are short")
    server = start()
    server.process.send_signal(signal.SIGSTOP)
    waiting = [socket.socket() for _ in range(300)]
    for sock in waiting:
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", server.port))
    # 1: ESTABLISHED
    until(
        lambda: all(
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x01" for sock in waiting
        ),
        "all to be connected",
    )
    server.process.send_signal(signal.SIGCONT)
    for sock in waiting:
        sock.close()


# --- endings ---
def exchange_bytes():
    return put("f", b"new data", size=8, over="yes") + b"get f\nlist\nbye\n"


def test_an_upload_cut_at_every_byte_leaves_the_old_file_or_the_new_one(start, box, full):
    (box / "f").write_text("old")
    server, request = start(), exchange_bytes()
    whole = request.index(b"get f")
    for count in range(0, len(request), 1 if full else 5):
        (box / "f").write_text("old")
        talk(server, request[:count])
        assert (box / "f").read_text() == ("old" if count < whole else "new data"), count
        assert names(box) == ["f"]


def test_a_client_reset_at_every_byte_of_the_answer_is_survived(start, box, proxy, full):
    server, request = start(), exchange_bytes()
    length, before = len(talk(server, request)) + 60, server.at_rest()
    for count in range(1, length, 1 if full else 20):
        way = proxy(server.port, cut_at=count)
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", way.port), DEADLINE) as sock,
        ):
            sock.sendall(request)
            everything(sock)
        way.close()
    server.rests(before)
    assert (box / "f").read_text() == "new data" and names(box) == ["f"]


def test_an_upload_corrupted_at_any_byte_is_never_taken_for_whole(start, box, full):
    server, request = start(), put("f", b"0123456789", size=10)
    for at in range(0, len(request), 1 if full else 3):
        broken = bytearray(request)
        broken[at] ^= 1
        said = talk(server, bytes(broken))
        for name in names(box):
            assert (box / name).read_bytes() == b"0123456789" or b"verified=no" in said, (at, said)
            (box / name).unlink()


def sizes(folder):
    found = []
    for part in parts(folder):
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile, as parts do
            found.append(os.stat(folder / part).st_size)
    return found


def partial(server, box, name="big", data=BIG, count=2 << 20, over=""):
    """An upload that ends in the middle; what is kept of it."""
    line = rf"put {name}: cut at {count} of {len(data)} bytes.*; kept"
    before = len(re.findall(line, server.err))
    with server.connect() as sock:
        sock.sendall(
            f"put {name} size={len(data)} mtime_ns=1700000000000000001{over}\ndata {len(data)}\n".encode()
            + data[:count]
        )
        until(lambda: count in sizes(box), "the part to grow")
    until(lambda: len(re.findall(line, server.err)) > before, "the server to be done with it")


def rest(offset, keys="big mtime_ns=1700000000000000001", data=BIG):
    """An upload that goes on after the bytes that are there."""
    return (
        f"put {keys} size={len(data)} offset={offset} sha256={sha(data[:offset])}\n"
        f"data {len(data) - offset}\n".encode()
        + data[offset:]
        + f"end sha256={sha(data)}\n".encode()
    )


def test_an_interrupted_upload_is_resumed(start, box):
    server = start()
    partial(server, box)
    partial(server, box, count=1 << 20)  # begun again, and cut again
    partial(server, box)
    assert talk(server, b"list\nstat big size=%d mtime_ns=1700000000000000001\n" % len(BIG)) == (
        b"ok list count=0\nerr stat big reason=no-such-file part=2097152\n"
    )
    assert talk(server, rest(2 << 20)).decode() == (
        f"note big offset={2 << 20}\nok put big size={len(BIG)} sha256={sha(BIG)} verified=yes\n"
    )
    assert (box / "big").read_bytes() == BIG and names(box) == ["big"]
    partial(server, box, "other")
    assert ", 1 part kept" in server.stop(), "each once, and not what was completed"


def test_a_part_survives_a_client_that_goes_while_it_is_checked(start, box):
    server, size = start(), 1 << 34  # a hole costs no room, and more time than a note
    part = box / script.lasting_name("big", size, 1)
    with part.open("wb") as file:
        file.truncate(size)
    with server.connect() as sock:
        # close() resets
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(b"put big size=%d mtime_ns=1 offset=%d sha256=00\n" % (size, size))
        until(lambda: b"note big checked=" in sock.recv(4096), "the check to begin")
    server.wait_for("connection lost")
    assert b"part=%d" % size in talk(server, b"stat big size=%d mtime_ns=1\n" % size)


def test_an_upload_that_the_server_hangs_up_on_is_resumed_too(start, box):
    said = talk(
        start(),
        b"put big size=%d mtime_ns=1700000000000000001\ndata %d\n%b"
        % (len(BIG), 1 << 20, BIG[: 1 << 20])
        + b"data -1\n",
    )
    assert said.endswith(b"err - reason=bad-number\n") and sizes(box) == [1 << 20], said


def test_a_resumed_upload_that_replaces_a_file_is_executable_all_the_same(start, box):
    (box / "big").write_text("old")
    (box / "big").chmod(0o644)
    server = start()
    partial(server, box, over=" exec=yes over=yes")
    talk(server, rest(2 << 20, "big mtime_ns=1700000000000000001 exec=yes over=yes"))
    assert (box / "big").read_bytes() == BIG and (box / "big").stat().st_mode & 0o777 == 0o755


def test_a_part_survives_the_server_being_killed(start, box):
    server = start()
    with server.connect() as sock:
        sock.sendall(
            f"put big size={len(BIG)} mtime_ns=1700000000000000001\ndata {len(BIG)}\n".encode()
            + BIG[: 1 << 20]
        )
        until(lambda: 1 << 20 in sizes(box), "the part to grow")
        server.kill()
    assert b"verified=yes" in talk(start(), rest(1 << 20))


def test_where_nothing_can_be_resumed_the_body_starts_at_nothing(start, box):
    server = start()
    for keys in ("x size=5000000 mtime_ns=1", "small size=5 mtime_ns=1", "x size=5000000", "x"):
        said = talk(server, f"put {keys} offset=3 sha256={sha(b'abc')}\n".encode())
        assert said == f"note {keys.split()[0]} offset=0\n".encode()
    said = talk(server, b"put y size=3 offset=2\ndata 3\nabcend sha256=%b\n" % sha(b"abc").encode())
    assert said.startswith(b"note y offset=0\nok put y size=3") and names(box) == ["y"]


@pytest.mark.parametrize("difference", ["digest", "no digest", "more than there is"])
def test_a_part_that_is_another_beginning_is_not_used(start, box, difference):
    server = start()
    partial(server, box)
    asked = rest(2 << 20)
    if difference == "more than there is":
        asked = rest((2 << 20) + 1)
    else:
        before = b" sha256=" + sha(BIG[: 2 << 20]).encode()
        assert before in asked
        asked = asked.replace(before, b"" if difference == "no digest" else b" sha256=" + b"0" * 64)
    said = talk(server, asked)
    assert said.startswith(b"note big offset=0\nerr put big reason=incomplete"), said
    assert b"verified=yes" in talk(server, put("big", BIG, size=len(BIG), mtime_ns=5))


def test_a_part_of_which_the_client_has_less_is_used_that_far(start, box):
    server = start()
    partial(server, box)
    assert talk(server, rest(1 << 20)).startswith(b"note big offset=%d\nok put" % (1 << 20))
    assert (box / "big").read_bytes() == BIG and names(box) == ["big"]


def test_a_part_that_is_a_hard_link_to_a_file_is_never_written(start, box):
    """Killed between link and unlink, the part and the published file are one: going on with the part would change the file."""
    server = start()
    partial(server, box)
    part = parts(box)[0]
    os.link(box / part, box / "published")
    before = (box / "published").read_bytes()
    asked = rest(2 << 20).partition(b"\n")[0] + b"\n" + put("", BIG).partition(b"\n")[2]
    assert talk(server, asked).startswith(b"note big offset=0\nok put big")
    assert (
        (box / "published").read_bytes() == before
        and (box / "big").read_bytes() == BIG
        and names(box) == ["big", "published"]
    )


def test_the_same_part_has_one_writer(start, box):
    server = start()
    begin = f"put big size={len(BIG)} mtime_ns=1700000000000000001\ndata {len(BIG)}\n".encode()
    with server.connect() as first, server.connect() as second:
        first.sendall(begin + BIG[: 1 << 20])
        until(lambda: sizes(box) == [1 << 20], "the part")
        # the first is silent: it gives way
        second.sendall(begin + BIG + f"end sha256={sha(BIG)}\nbye\n".encode())
        assert b"ok put big" in everything(second)
        everything(first)
    assert (box / "big").read_bytes() == BIG and names(box) == ["big"]


NO_LOCKS = {
    "system": "import sys; sys.modules['fcntl'] = None",
    "file system": "import fcntl\ndef flock(*_): raise OSError(38, 'Function not implemented')\nfcntl.flock = flock",
}


@pytest.mark.parametrize("without", NO_LOCKS)
def test_a_part_has_one_writer_also_where_there_are_no_locks(spawn, box, tmp_path, without):
    (tmp_path / "run.py").write_text(
        f"{NO_LOCKS[without]}\nimport runpy\nrunpy.run_path({str(ROOT / 'server.py')!r}, run_name='__main__')"
    )
    server = spawn(str(tmp_path / "run.py"), box)
    begin, end = (
        f"put big size={len(BIG)} mtime_ns=1\ndata {len(BIG)}\n".encode(),
        f"end sha256={sha(BIG)}\nbye\n".encode(),
    )
    with server.connect() as first, server.connect() as second:
        first.sendall(begin + BIG[: 2 << 20])
        until(lambda: sizes(box) == [2 << 20], "the part")
        second.sendall(b"ping\n" + begin + BIG[:10])
        said = b""
        while b"ok ping\n" not in said:  # it leaves when the second has begun to write
            said += second.recv(1000) or pytest.fail("the second one was hung up on")
        with contextlib.suppress(ConnectionError):  # it was silent and had to give way
            first.sendall(BIG[2 << 20 :] + end)
            everything(first)
        second.sendall(BIG[10:] + end)
        assert b"ok put big" in everything(second)
    assert (box / "big").read_bytes() == BIG and names(box) == ["big"]


def test_a_silent_writer_gives_way_also_when_its_folder_was_renamed(start, box):
    server = start()
    (box / "d").mkdir()
    begin = f"size={len(BIG)} mtime_ns=1700000000000000001\ndata {len(BIG)}\n".encode()
    with server.connect() as first:
        first.sendall(b"put d/big " + begin + BIG[: 1 << 20])
        until(lambda: sizes(box / "d") == [1 << 20], "the part")
        assert b"ok rename" in talk(server, b"rename d e\n")
        assert b"ok put e/big" in talk(
            server, b"put e/big " + begin + BIG + f"end sha256={sha(BIG)}\n".encode()
        )
        everything(first)
    assert (box / "e/big").read_bytes() == BIG and names(box / "e") == ["big"]


def test_a_writer_that_is_done_does_not_forget_the_next_one(box):
    """Between the end of an upload and its last line, somebody else may have begun the same part."""
    part = script.Part(script.Folder(str(box)), "big", len(BIG), 1)
    done, following = (script.Session.__new__(script.Session) for _ in range(2))
    done.server = following.server = types.SimpleNamespace(writers={part.identity(): following})
    done.disclaim(part)
    assert done.server.writers == {part.identity(): following}
    following.disclaim(part)
    assert not done.server.writers


@pytest.mark.skipif(os.name == "nt", reason="there are no locks there")
def test_a_part_that_is_dropped_is_locked_until_its_name_is_gone(box):
    """Or who waits for it takes it in between, and writes to the end what has no name."""

    class Watched(script.Folder):
        def remove(self, name, is_folder=False):
            claims.append(following.claim())
            super().remove(name, is_folder)

    claims, folder = [], Watched(str(box))
    part, following = (script.Part(folder, "big", len(BIG), 1) for _ in range(2))
    claims.append(part.claim())
    part.drop()
    assert claims == [True, False] and names(box) == []
    assert following.claim() and len(parts(box)) == 1
    following.drop()


@pytest.mark.skipif(os.name == "nt", reason="there are no locks there")
def test_an_old_part_that_is_swept_is_locked_until_its_name_is_gone(box, monkeypatch):
    class Watched(script.Folder):
        def remove(self, name, is_folder=False):
            claims.append(following.claim())
            super().remove(name, is_folder)

    claims, folder = [], Watched(str(box))
    following = script.Part(folder, "big", len(BIG), 1)
    (box / following.name).write_text("x")
    monkeypatch.setattr(script, "KEPT", -1)
    assert [script.remove_if_old(folder, name) for name in folder.entries()] == [True]
    assert claims == [False] and names(box) == []


def test_a_part_that_nothing_can_resume_says_so_by_its_name(start, box):
    server = start()
    with server.connect() as sock:
        sock.sendall(b"put x\ndata 5\nfirst")
        until(lambda: parts(box), "the part")
        assert parts(box)[0].startswith(".six-00000000")
    assert not script.lasting_name("x", 1, 1).startswith(".six-00000000")


def test_two_uploads_of_one_name_at_once_do_not_both_win(start, box):
    server = start()
    with server.connect() as first, server.connect() as second:
        for sock, data in (first, b"first"), (second, b"other"):
            sock.sendall(b"put x\ndata 5\n" + data)
        until(lambda: len(parts(box)) == 2, "both parts")
        first.sendall(b"end\nbye\n")
        assert b"ok put x" in everything(first)
        second.sendall(b"end\nbye\n")
        assert b"err put x reason=exists" in everything(second)
    assert (box / "x").read_text() == "first" and names(box) == ["x"]


LASTING, RANDOM = ".six-" + "a" * 32 + ".part", ".six-" + "0" * 8 + "a" * 24 + ".part"


@pytest.mark.parametrize(
    ("hours", "left"),
    [(0.9, [LASTING, RANDOM]), (1.1, [LASTING]), (6 * 24, [LASTING]), (8 * 24, [])],
)
def test_old_parts_are_swept_and_young_ones_kept(box, tmp_path, hours, left):
    """What counts is when a part was last written, not the time of its source, which it gets before its name.

    A part with a random name cannot be resumed, so it goes after an hour."""
    from conftest import Server

    (box / "sub").mkdir()
    for folder in box, box / "sub":
        for name in LASTING, RANDOM:
            (folder / name).write_text("x")
            os.utime(folder / name, (0, 0))
    runner = tmp_path / "run.py"
    runner.write_text(
        f"import runpy, sys, time\nnow = time.time\ntime.time = lambda: now() + {hours} * 3600\n"
        f"runpy.run_path({str(ROOT / 'server.py')!r}, run_name='__main__')"
    )
    server = Server(str(runner), box)
    for name in {LASTING, RANDOM}.difference(left):
        server.wait_for(f"removed sub/{name}: nobody resumed it")
    assert talk(server, b"list deep=yes\n").startswith(b"dir sub")
    assert sorted(parts(box)) == sorted(parts(box / "sub")) == sorted(left)
    server.stop()


def test_get_resumes_only_what_is_the_beginning_of_the_file(start, box):
    (box / "big").write_bytes(BIG)
    server = start()
    good = talk(server, f"get big offset=100 sha256={sha(BIG[:100])}\n".encode())
    assert (
        good.splitlines()[0].endswith(b" offset=100")
        and good.endswith(f"end sha256={sha(BIG)}\n".encode())
        and len(good) < len(BIG) + 300
    )
    for offset, digest in (100, sha(b"x")), (len(BIG) + 1, sha(BIG)), (100, ""):
        other = talk(server, f"get big offset={offset} sha256={digest}\n".encode())
        assert b"offset" not in other.splitlines()[0] and len(other) > len(BIG)


def test_a_file_that_changes_while_it_is_sent_is_given_up(start, box):
    (box / "big").write_bytes(BIG * 8)
    server = start()
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(b"get big\nping\n")
        while b"data " not in sock.recv(4096):
            pass
        os.truncate(box / "big", 10)
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock).endswith(b"abort reason=changed\nok ping\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once_with_idle_clients(start, number):
    server = start()
    with server.connect() as first, server.connect() as second:
        assert first.recv(100) and second.recv(100)
        assert "stopped: 2 clients disconnected, 0 parts kept" in server.stop(number)


def test_a_signal_in_mid_upload_keeps_the_part(start, box):
    server = start()
    with server.connect() as sock:
        sock.sendall(
            f"put big size={len(BIG)} mtime_ns=1\ndata {len(BIG)}\n".encode() + BIG[: 1 << 20]
        )
        until(lambda: 1 << 20 in sizes(box), "the part to grow")
        assert "stopped: 1 client disconnected, 1 part kept" in server.stop()
    assert len(parts(box)) == 1


STEPS = ["open", "write", "utime", "link", "unlink", "replace", "fsync"]


@pytest.mark.parametrize("over", ["", "yes"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_each_step_the_file_is_the_old_or_the_new_one(
    box, tmp_path, step, after, over, full
):
    from conftest import Server

    if step in ("replace", "link", "unlink") and (step == "replace") != bool(over):
        return  # not a step of this kind of upload
    if not full and not (after and step in ("write", "link", "replace")):
        return
    if over:
        (box / "x").write_text("old")
    runner = tmp_path / "run.py"
    runner.write_text(f"""
import os, runpy, signal, sys
true = os.{step}
def deadly(first, *rest, **more):
    if {after} : result = true(first, *rest, **more)
    if {step!r} not in ("open", "unlink") or ".six-" in str(first):
        if {step!r} != "write" or bytes(rest[0][:4]) == b"new ":
            os.kill(os.getpid(), signal.SIGKILL)
    return result if {after} else true(first, *rest, **more)
os.supports_dir_fd = {{*os.supports_dir_fd, deadly}}
os.supports_fd = {{*os.supports_fd, deadly}}
os.{step} = deadly
sys.argv = ["server.py", sys.argv[1], "--durable", "--port", "0"]
runpy.run_path({str(ROOT / "server.py")!r}, run_name="__main__")
""")
    server = Server(str(runner), box)
    said = talk(
        server, put("x", b"new data", size=8, mtime_ns=1, **({"over": over} if over else {}))
    )
    assert server.wait() == -signal.SIGKILL, server.err
    assert b"ok put" not in said
    published = [name for name in names(box) if not name.startswith(".six-")]
    assert published in ([], ["x"]) and (not over or published)
    if published:
        assert (box / "x").read_text() in (("old", "new data") if over else ("new data",))


def test_with_durable_a_folder_that_is_made_is_on_the_disk_before_success_is_told(box, tmp_path):
    from conftest import Server

    runner = tmp_path / "run.py"
    runner.write_text(f"""
import os, runpy, sys
true = os.fsync
def told(fd):
    true(fd)
    with open({str(tmp_path / "synced")!r}, "a") as file:
        print(os.fstat(fd).st_ino, file=file)
os.fsync = told
sys.argv = ["server.py", *sys.argv[1:], "--port", "0"]
runpy.run_path({str(ROOT / "server.py")!r}, run_name="__main__")
""")
    server = Server(str(runner), box, "--durable")
    (box / "a").mkdir()  # as by somebody else a moment ago
    assert talk(server, b"mkdir a/b/c\n") == b"ok mkdir a/b/c\n"
    assert talk(server, b"mkdir a/b/c\n") == b"err mkdir a/b/c reason=exists\n"
    above = [str(folder.stat().st_ino) for folder in (box, box / "a", box / "a" / "b")]
    assert (tmp_path / "synced").read_text().split() == above * 2
    server.stop()
    (tmp_path / "synced").unlink()
    plain = Server(str(runner), box)
    assert talk(plain, b"mkdir d/e\n") == b"ok mkdir d/e\n"
    plain.stop()
    assert not (tmp_path / "synced").exists()


def test_an_empty_part_of_a_killed_server_goes_after_an_hour(start, spawn, box, tmp_path):
    """Nothing can be resumed of it. One that a writer still has stays, however long nothing came."""
    code = "import time; now = time.time; time.time = lambda: now() + 3700"
    killed, alive = start(), start()
    with killed.connect() as first, killed.connect() as second, alive.connect() as sock:
        first.sendall(f"put lost size={len(BIG)} mtime_ns=1\n".encode())
        second.sendall(b"put lost\n")
        sock.sendall(b"put x\n")
        until(lambda: len(parts(box)) == 3, "all parts")
        killed.kill()
        later = spawn(with_calls(tmp_path / "run.py", code), box)
        later.wait_for("removed .six-")
        later.at_rest()
        assert len(parts(box)) == 1
        sock.sendall(b"data 1\nxend\nbye\n")
        assert b"ok put x" in everything(sock)
    assert names(box) == ["x"]


def test_a_rename_does_not_take_an_upload_with_it(box, tmp_path):
    """A rename links the new name and takes the old one away: between the two an upload must not take the old one."""
    from conftest import Server

    (box / "p").write_text("old")
    runner = tmp_path / "run.py"
    runner.write_text(f"""
import os, runpy, sys, threading
near, named, replace, link, utime = threading.Event(), threading.Event(), os.replace, os.link, os.utime
def slow_link(path, *rest, **more):
    link(path, *rest, **more)
    if path == "p":
        print("between", file=sys.stderr, flush=True)
        near.wait(20)
        named.wait(0.2)  # an upload that does not wait for the lock is named in this time
def told_utime(*args, **more):
    near.set()
    return utime(*args, **more)
def told_replace(*args, **more):
    replace(*args, **more)
    named.set()
os.supports_dir_fd = {{*os.supports_dir_fd, slow_link}}
os.supports_fd = {{*os.supports_fd, told_utime}}
os.link, os.utime, os.replace = slow_link, told_utime, told_replace
sys.argv = ["server.py", sys.argv[1], "--port", "0"]
runpy.run_path({str(ROOT / "server.py")!r}, run_name="__main__")
""")
    server = Server(str(runner), box)
    with server.connect() as sock:
        sock.sendall(b"rename p q\nbye\n")
        server.wait_for("between")
        assert b"ok put p" in talk(server, put("p", b"new", mtime_ns=1, over="yes"))
        assert b"ok rename" in everything(sock)
    server.stop()
    assert (box / "p").read_text() == "new" and (box / "q").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="there are no locks there")
@pytest.mark.parametrize("slow", ["link", "replace"])
@pytest.mark.long(6)
def test_a_rename_does_not_take_the_upload_of_another_process_with_it(start, box, tmp_path, slow):
    """Several servers of one folder are one, also when a rename of one meets an upload to the other."""
    from conftest import Server

    (box / "p").write_text("old")
    if slow == "replace":  # two links of one file, which it leaves as they are
        os.link(box / "p", box / "q")
    runner = tmp_path / "run.py"
    runner.write_text(f"""
import os, runpy, sys, time
call = os.{slow}
def slow(*args, **more):
    found = call(*args, **more)
    print("between", file=sys.stderr, flush=True)
    for _ in range(2000):
        if os.path.exists({str(tmp_path / "go")!r}):
            break
        time.sleep(0.01)
    return found
os.supports_dir_fd = {{*os.supports_dir_fd, slow}}
os.{slow} = slow
runpy.run_path({str(ROOT / "server.py")!r}, run_name="__main__")
""")
    ours, other = Server(str(runner), box, "--timeout", "30"), start()
    with ours.connect() as sock:
        sock.sendall(b"rename p q over=yes\nbye\n" if slow == "replace" else b"rename p q\nbye\n")
        ours.wait_for("between")
        keys = {"size": len(BIG), "mtime_ns": 1, "over": "yes"}
        changes = put("p", BIG, **keys), b"rename p r\n", b"delete p\n"
        with ThreadPoolExecutor() as pool:  # each waits for two seconds
            for said in pool.map(lambda change: talk(other, change), changes):
                assert b"reason=busy" in said.splitlines()[-1]
        (tmp_path / "go").touch()
        assert b"ok rename" in everything(sock)
    again = rest(len(BIG), "p mtime_ns=1 over=yes").replace(b"data 0\n", b"")
    assert b"verified=yes" in talk(other, again)
    ours.stop()
    assert (box / "p").read_bytes() == BIG and (box / "q").read_text() == "old"
    assert names(box) == ["p", "q"]


def test_ten_clients_at_once(start, box):
    server = start()
    problems = []

    def client(number):
        data = BIG[number : 100000 + number]
        said = talk(
            server,
            b"".join(
                put(f"{number}-{turn}", data) + f"get {number}-{turn}\n".encode()
                for turn in range(5)
            ),
        )
        if said.count(b"verified=yes") != 5 or said.count(sha(data).encode()) != 10:
            problems.append(said[:200])

    threads = [threading.Thread(target=client, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert not problems and len(names(box)) == 50


def test_memory_does_not_grow_with_the_size_of_a_file(start, box):
    server = start()
    talk(server, put("x", BIG * 25))
    talk(server, b"get x\n")
    assert server.status("VmHWM") < 60 << 10


@pytest.mark.parametrize("count, most", [(5000, 9), (15000, 24), (25000, 24)])
def test_a_listing_that_nobody_reads_costs_little(start, box, count, most, full):
    """Below the number up to which a listing is sorted, and above it."""
    if count > 5000 and not full:
        pytest.skip("one of the slow matrices: --full runs it")
    for number in range(count):
        os.mknod(box / f"{'n' * 60}{number:05}")
    server, readers = start(), []
    before = server.status("VmHWM")
    with contextlib.ExitStack() as opened:
        for _ in range(12):
            readers.append(opened.enter_context(server.connect()))
            readers[-1].sendall(b"list\n")
        for sock in readers:
            said = b""
            while b"\nfile " not in said:
                said += sock.recv(1000)
        assert server.status("VmHWM") - before < most << 10


def test_a_deep_listing_keeps_only_the_names_of_the_folders_above(box):
    """One text for each level: a reader may stop here, and there may be many readers."""
    for number in range(2000):
        (box / f"{'n' * 60}{number:05}").mkdir()
    (box / names(box)[0] / "below").touch()
    tracemalloc.start()
    try:
        found = script.walk(script.Folder(str(box)), "")
        assert next(full for full, _, _ in found if full.endswith("/below"))
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()


def test_a_client_that_says_little_costs_little(start):
    server = start()
    talk(server, b"ping\n")
    before = server.status("VmRSS")
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            sock = stack.enter_context(server.connect())
            sock.sendall(b"ping\n")
            assert GREETING.match(sock.recv(100))
        assert server.status("VmRSS") - before < 40 * 128


@pytest.mark.parametrize("folder", ["", "0"])
def test_a_number_that_is_no_name_here_is_the_port(tmp_path, folder):
    if folder:
        (tmp_path / folder / "in it").mkdir(parents=True)
    words = ("0", "--port", "0") if folder else ("0",)
    server = Process(ROOT / "server.py", *words, cwd=tmp_path)
    port = int(server.wait_for(r"listening on 127\.0\.0\.1:(\d+)", "out")[1])
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
        sock.sendall(b"list\nbye\n")
        assert (b"dir in%20it " in sock.makefile("rb").read()) == bool(folder)
    server.kill()
    assert os.listdir(tmp_path) == [folder or "files"]


# --- a drop box ---
def test_in_a_drop_box_files_can_be_added_and_nothing_else(start, box):
    (box / "a").write_text("a")
    server = start("--drop-box")
    said = talk(server, b"ping nick=anna\n" + put("a", b"1", size=1) + put("a", b"22", over="yes"))
    assert said.splitlines() == [
        b"ok ping",
        b"ok put a size=1 sha256=%b verified=yes as=a" % sha(b"1").encode(),
        b"err put a reason=drop-box",
    ]
    asked = (
        "list|get a|get anna/a|delete a|rename a b|who|send x y|receive|chat|say x|stat a|stat b"
    )
    for request in asked.split("|"):
        said = talk(server, f"ping nick=anna\n{request}\n".encode()).decode().splitlines()[1]
        assert said.startswith("err ") and said.endswith("reason=drop-box"), said
    assert names(box) == ["a", "anna"] and (box / "anna" / "a").read_bytes() == b"1"
    server.wait_for(r"handed in by anna: anna/a, 1 bytes, verified=yes")
    told = re.findall(r"\d (put|stat|handed in) .*", server.err)
    assert told == ["handed in", "put"], "one line for what was handed in"


def test_what_is_handed_in_twice_gets_a_number_and_the_answer_tells_it(start, box):
    server = start("--drop-box")
    said = talk(
        server,
        b"ping nick=anna\nmkdir hw\nmkdir hw\n"
        + b"".join(put("hw/my%20notes.txt", bytes([each])) for each in b"123")
        + b"ping nick=bob\n"
        + put("hw/new/my%20notes.txt", b"4"),
    ).decode()
    assert re.findall(r"as=(\S+)", said) == [
        "hw/my%20notes.txt",
        "hw/my%20notes%20(1).txt",
        "hw/my%20notes%20(2).txt",
        "hw/new/my%20notes.txt",
    ]
    assert said.count("ok mkdir hw") == 2
    found = {str(path.relative_to(box)): path.read_bytes() for path in box.rglob("*.txt")}
    assert found == {
        "anna/hw/my notes.txt": b"1",
        "anna/hw/my notes (1).txt": b"2",
        "anna/hw/my notes (2).txt": b"3",
        "bob/hw/new/my notes.txt": b"4",
    }


def test_each_resumes_his_own_upload_in_a_drop_box_alone(start, box):
    server = start("--drop-box")
    with server.connect() as sock:
        sock.sendall(
            b"put big nick=anna size=%d mtime_ns=1\ndata %d\n%b"
            % (len(BIG), len(BIG), BIG[:1500000])
        )
        until(
            lambda: any(each.stat().st_size == 1500000 for each in box.glob("anna/.six-*")),
            "the part to grow",
        )
    server.wait_for("put big: cut at 1500000")
    asked = b"stat big nick=%b size=%d mtime_ns=1\n"
    assert talk(server, asked % (b"bob", len(BIG))) == b"err stat big reason=drop-box\n"
    assert (
        talk(server, asked % (b"anna", len(BIG))) == b"err stat big reason=drop-box part=1500000\n"
    )
    said = talk(server, rest(1500000, "big nick=anna mtime_ns=1"))
    assert b"note big offset=1500000\n" in said and b"verified=yes as=big" in said
    assert (box / "anna" / "big").read_bytes() == BIG and names(box) == ["anna"]


def test_without_a_nick_the_address_is_the_folder_and_two_may_have_one_nick(start, box):
    server = start("--drop-box")
    with server.connect() as other:
        other.sendall(b"ping nick=anna\n")
        other.recv(1000)
        talk(server, put("x", b"1") + b"ping nick=anna\n" + put("y", b"2"))
    assert sorted(str(path.relative_to(box)) for path in box.glob("*/*")) == [
        "127.0.0.1/x",
        "anna/y",
    ]
    for name in ("../x", "/x", ".hidden", "a/.six-" + "0" * 32 + ".part"):
        assert b"reason=bad-name" in (said := talk(server, put(name, b"x"))) or b"hidden" in said


@pytest.mark.parametrize(
    "name, folder",
    [("anna", "anna"), ("..", "-"), (".x", "x"), ("2001:db8::1", "2001-db8--1"), ("con", "_con")],
)
def test_a_sender_becomes_a_folder_on_any_system(name, folder):
    assert script.sender_folder(name) == folder


def test_the_log_of_a_drop_box_can_be_read_by_a_program(start, box, tmp_path):
    server = start("--drop-box", "--json", "--quiet", "--log", tmp_path / "log")
    talk(server, b"ping nick=anna\n" + put("n%0A.txt", b"1"))
    assert server.stop() == ""
    lines = [json.loads(each) for each in (tmp_path / "log").read_text().splitlines()]
    found = [each for each in lines if "handed_in" in each]
    assert len(found) == 1 and all({"time", "client", "text"} <= set(each) for each in lines)
    facts = {
        key: found[0][key] for key in ("by", "name", "handed_in", "size", "verified", "sha256")
    }
    assert facts == {
        "by": "anna",
        "name": "n\\n.txt",
        "handed_in": "anna/n\\n.txt",
        "size": 1,
        "verified": True,
        "sha256": sha(b"1"),
    }


@pytest.mark.parametrize("flags", [["--read-only"], []])
def test_a_drop_box_that_could_take_nothing_is_refused(run, box, flags):
    (box / "a").touch()
    done = run("server.py", *flags, "--drop-box", box if flags else box / "a")
    assert done.code == 2 and "drop box" in done.err


def test_a_quiet_server_says_what_is_needed_alone(start, spawn, box):
    server = start("--quiet")
    talk(server, put("a", b"a"))
    assert server.stop() == ""
    made = spawn("server.py", box, "--quiet", "--host", "0.0.0.0")
    assert re.fullmatch(r"from another machine:\n  python3 client.py --host \S+ .*\n", made.stop())


# --- the wire, its pure functions ---
@pytest.mark.parametrize(
    ("raw", "verb", "words", "keys"),
    [
        (b"list", "list", [], {}),
        (b"LIST a deep=yes", "list", ["a"], {"deep": "yes"}),
        (b"put a%20b size=5 size=6", "put", ["a b"], {"size": "6"}),
        (b"get a%3Db", "get", ["a=b"], {}),
        ("get ü".encode(), "get", ["ü"], {}),
        (b"get %ff", "get", ["\udcff"], {}),
        (b"x k=", "x", [], {"k": ""}),
        (b"say  two  spaces = 100%", "say", [" two  spaces = 100%"], {}),
    ],
)
def test_parse(raw, verb, words, keys):
    assert script.parse(os.fsdecode(raw)) == script.Line(verb, words, keys)


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "a b",
        "100%",
        "a=b",
        "ü",
        "日本",
        "\udcff",
        "a\nb",
        "\u202e",
        "\x9b",
        "~!@#$^&*()[]{}|;:'\",.<>?/\\`",
    ],
)
def test_quote_and_parse_agree(name):
    out = script.line("get", name, key=name)
    assert out.isascii() == (script.quote(name).isascii()) and script.parse(
        os.fsdecode(out[:-1])
    ) == script.Line(
        "get",
        [name],
        {"key": name},
    )


def test_digests_that_many_ask_for_leave_room_for_others(start, box):
    with open(box / "big", "wb") as file:
        file.truncate(1 << 30)
    (box / "small").write_text("x")
    server = start()
    with contextlib.ExitStack() as held:
        for _ in range(60):
            sock = held.enter_context(server.connect())
            sock.sendall(b"stat big digest=yes\n")
            assert sock.recv(100).startswith(b"sixsockets")
        until(lambda: server.status("Threads") >= 60, "all of them to be served")
        read = []
        with stopped(server):  # or one could be done and the next begun between two looks
            for number in os.listdir(f"/proc/{server.pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(f"/proc/{server.pid}/fd/{number}").endswith("/big"):
                        facts = Path(f"/proc/{server.pid}/fdinfo/{number}").read_text()
                        read.append(int(facts.split()[1]))
        assert sum(0 < position < 1 << 30 for position in read) <= 4, read
        assert b"ok stat small" in talk(server, b"stat small digest=no\n")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("5", 5),
        ("2k", 2000),
        ("2K", 2000),
        ("3M", 3 * 10**6),
        ("1g", 10**9),
        ("1T", 10**12),
        ("1Ki", 1024),
        ("1mi", 1 << 20),
        ("2GI", 2 << 30),
        ("1Ti", 1 << 40),
    ],
)
def test_a_size_means_powers_of_1000_unless_an_i_says_1024(text, size):
    assert script.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "i", "1i", "1Kii", "1.5G", "-1", "1 k", "1P", "9" * 16])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        script.parse_size(text)


def test_every_python_since_3_9_runs_it_alone(alone, tmp_path, full):
    from conftest import Server

    path = alone("server.py", for_any=True)
    found = interpreters()
    for version in found if full else [min(found, key=lambda name: int(name[2:]))]:
        server = Server(str(path), python=found[version], cwd=path.parent)
        assert b"ok put" in talk(server, put("x", b"data", over="yes") + b"list\n")
        server.stop()


def test_help_is_the_manual(run):
    assert script.__doc__.strip()[:60] in run("server.py", "--help").out.decode()
