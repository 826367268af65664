"""The docstring of server.py is the specification: its transcripts are played, and its codes provoked."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import threading

import pytest
from conftest import DEADLINE, ROOT, Server, place
from test_relay import HELLO, Peer, body, meanwhile
from test_server import BIG, box, parts, put, script, start, until  # noqa: F401

LINE = re.compile(r"    ([A-Z]): (.*)")


def transcripts():
    """Each block of lines with speakers, one after another; a line that is broken is joined."""
    found = [[]]
    for text in script.__doc__.splitlines():
        if match := LINE.fullmatch(text):
            found[-1].append((match[1], re.sub(r" {3,}\(.*\)$", "", match[2])))
        elif found[-1] and text.startswith("       ") and text.strip():
            speaker, before = found[-1].pop()
            found[-1].append((speaker, f"{before} {text.strip()}"))
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


DIGESTS = {"(of the first)": BIG[: 2 << 20], "(of the whole file)": BIG}


def content(text, size):
    """A body as the transcript shows it."""
    return BIG[-size:] if text == f"({size} bytes)" else text.replace("⏎", "\n").encode()


def expect(peer, text):
    """A line like that: what the transcript leaves out, and addresses, may be anything."""
    found = peer.answer() if not text.startswith("note ") else peer.line()
    while re.fullmatch(r"note \S+(?: (?:received|checked)=\d+)?", found) and "offset=" in text:
        found = peer.line()  # a server that is slow for a moment tells how far it is
    wanted = re.escape(text).replace("…", r"\S*")
    for shown, data in DIGESTS.items():
        wanted = wanted.replace(re.escape(shown), hashlib.sha256(data).hexdigest())
    wanted = re.sub(r"127\\\.0\\\.0\\\.1:\d+", r"127.0.0.1:\\d+", wanted)
    assert re.fullmatch(wanted, found), (text, found)


def receive(peer, size, first):
    """So many bytes, in however many pieces the server announces them."""
    data = peer.file.read(int(first[5:]))
    while len(data) < size:
        data += peer.file.read(int(peer.answer()[5:]))
    return data


def play(block, peer, before=lambda text: None):
    size, first = -1, ""  # of the body that comes next; the line that announces it
    for speaker, text in block:
        if speaker != "S":
            for shown, data in DIGESTS.items():
                text = text.replace(shown, hashlib.sha256(data).hexdigest())
            text = text.replace("5891b5b5…", hashlib.sha256(HELLO).hexdigest())
            data = content(text, size) if size >= 0 else text.encode()
            peer.tell(data if len(data) == size else data + b"\n")
        elif size >= 0:
            assert receive(peer, size, first) == content(text, size)
        elif text.startswith("data "):
            first = peer.answer()
        elif not text.startswith("sixsockets "):
            before(text)
            expect(peer, text)
        size = int(text[5:]) if text.startswith("data ") else -1


@pytest.fixture
def peer(start):  # noqa: F811
    made = []

    def connect(server=None, **more):
        server = server or made[0][0]
        server.tls = False
        made.append((server, Peer(server, **more)))
        return made[-1][1]

    yield connect
    for _, each in made:
        each.close()


def test_the_docstring_has_the_transcripts_that_are_played_here():
    assert [block[0][1].split()[0] for block in transcripts()] == [
        "sixsockets",
        "put",
        "stat",
        "sixsockets",
        "list",
        "receive",
        "send",
    ]


def test_the_session_a_body_without_line_feed_and_a_resumed_put(start, peer, box):  # noqa: F811
    blocks, server = transcripts(), start()
    part = box / script.lasting_name("film.mp4", len(BIG), 1700000000500000000)
    play(blocks[1], peer(server))
    (box / "abc.txt").unlink()
    play(blocks[0], peer())
    part.write_bytes(BIG[: 2 << 20])
    play(blocks[2], peer())
    assert (box / "film.mp4").read_bytes() == BIG


def test_a_client_without_tls_on_a_tls_port(start):  # noqa: F811
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl program")
    server, (asked, said) = start("--tls", "--timeout", "2"), transcripts()[4]
    for request in asked[1].encode() + b"\n", b"":  # the second waits for a greeting
        with server.connect() as sock:
            sock.sendall(request)
            assert sock.makefile().read() == said[1] + "\n"


def test_the_receivers_view_and_the_senders(start, peer):  # noqa: F811
    blocks = transcripts()
    bob, anna, other = peer(start()), peer(), peer()
    anna.tell("ping nick=anna")
    assert anna.answer() == "ok ping"

    def send(text):
        """What a sender does just before Bob hears of it."""
        if text.startswith("put notes.txt"):
            anna.tell(b"send bob notes.txt size=6\n" + body(HELLO))
        elif text.startswith("put film.mp4"):
            anna.tell(b"send bob film.mp4 size=9000000\n" + body(BIG[-524288:], end=False))
        elif text.startswith("put last.txt"):
            anna.tell(b"abort\nsend bob last.txt size=6\ndata 3\nhel")
        elif text == "abort reason=sender-gone":
            anna.close()

    play(blocks[5], bob, send)
    other.tell("ping nick=anna2")
    assert other.answer() == "ok ping"
    taking = meanwhile(bob.accept)
    play(blocks[6], other)
    assert taking.result() == ("notes.txt", HELLO)


# --- reason codes ---
def table():
    """The codes of the two tables: those after which the connection goes on, those that end it."""
    text = script.__doc__.partition("Reason codes.")[2].partition("It closes too")[0]
    on, _, off = text.partition("The server closes after these.")
    return [re.findall(r"^    ([a-z-]+)  ", part, re.M) for part in (on, off)]


NONCE = b"auth nonce=" + b"0" * 32 + b" proof=00\n"
LOADED = "import os, runpy\ndef fail(*args, **more): raise OSError({}, '')\nos.mkdir = fail\n"
GOES_ON = {
    "no-such-file": b"get nope\n",
    "no-such-folder": b"get nope/x\n",
    "exists": put("a", b"x"),
    "is-a-folder": b"get dir\n",
    "not-a-folder": b"get a/x\n",
    "not-a-file": b"get link\n",
    "not-empty": b"delete dir\n",
    "not-possible": b"rename dir dir/sub\n",
    "bad-name": b"get ..\n",
    "too-deep": b"mkdir " + b"/".join([b"d"] * 65) + b"\n",
    "hidden-name": b"get .x\n",
    "too-long": put("b", b"1234", size=1),
    "incomplete": put("b", b"1234", size=5),
    "wrong-digest": put("b", b"1234", digest="00"),
    "aborted": b"put b\ndata 1\nxabort\n",
    "bad-number": b"get a offset=x\n",
    "bad-nick": b"ping nick=a:b\n",
    "not-received": b"send nobody x\n",
    "not-in-chat": b"say x\n",
    "no-such-client": b"chat\ntell bob hi\n",
    "too-fast": b"chat\n" + b"say x\n" * 60,
    "not-needed": NONCE,
    "usage": b"get\n",
    "unknown-verb": b"bogus\n",
}
WITH_FLAGS = {
    "read-only": (["--read-only"], b"delete a\n"),
    "drop-box": (["--drop-box"], b"list\n"),
    "too-large": (["--max-size", "3"], put("b", b"1234")),
    "disk-full": (["--min-free", "999T"], put("b", b"1234")),
    "auth-required": (["--password", "x"], b"list\n"),
}
BROKEN_DISK = {"disk-read-only": "30", "failed": "5", "busy": "24"}
CLOSES = {
    "bad-line": b"a  b\n",
    "line-too-long": b"x" * 40000,
    "bad-number": b"data x\n",
    "this-is-http": b"GET / HTTP/1.1\r\n\r\n",
    "this-is-tls": b"\x16\x03\x01\x02",
}


def said_to(server, request):
    with server.connect() as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return sock.makefile("rb").read()


# --- those that take more than one request ---
def provoke_not_permitted(start, box):
    """What is put where the running script lies would be a part of it at its next start."""
    place("server.py", box)
    server = Server(box / "server.py", box)
    found = said_to(server, put("client.py", b"x") + b"ping\n")
    server.stop()
    assert found.endswith(b"ok ping\n")
    return found


def provoke_stalled(start, box):
    server = start("--timeout", "2")
    server.tls = False
    bob, anna, carl = Peer(server), Peer(server), Peer(server)
    assert bob.ask("receive nick=bob").startswith("ok receive")
    anna.tell("send bob x")
    assert bob.answer().startswith("put x "), "the sender's turn"
    carl.tell("send bob y")
    done = threading.Event()

    def live():
        """It sends notes alone."""
        with contextlib.suppress(OSError):
            while not done.wait(0.05):
                anna.tell("note x")

    going = meanwhile(live)
    found = anna.answer()
    while found and not found.startswith("err"):
        found = anna.answer()
    done.set()
    going.result()
    assert anna.ask("ping") == "ok ping"
    for each in (bob, anna, carl):
        each.close()
    return found.encode()


def provoke_tls_only(start, box):
    return said_to(start("--tls"), b"list\n")


def provoke_server_full(start, box):
    server = start("--max-clients", "1")
    with server.connect() as first:
        assert first.recv(100)
        return said_to(server, b"")


def provoke_wrong_password(start, box):
    return said_to(start("--password", "x"), NONCE)


def provoke_busy(start, box):
    server = start("--password", "x")
    for _ in range(script.MAX_WRONG):
        assert said_to(server, NONCE).endswith(b"reason=wrong-password\n")
    return said_to(server, b"")


def provoke_taken_over(start, box):
    server, request = start(), b"put taken size=%d mtime_ns=1\n" % len(BIG)
    with server.connect() as first:
        first.sendall(request + b"data %d\n%b" % (len(BIG), BIG[: 1 << 20]))
        until(lambda: parts(box), "the part")
        assert b"ok put taken" in said_to(server, request + b"data %d\n%bend\n" % (len(BIG), BIG))
        assert (box / "taken").read_bytes() == BIG
        return first.makefile("rb").read()


LONGER = {"not-permitted": provoke_not_permitted, "stalled": provoke_stalled}
LONGER_CLOSES = {
    "tls-only": provoke_tls_only,
    "server-full": provoke_server_full,
    "busy": provoke_busy,
    "wrong-password": provoke_wrong_password,
    "taken-over": provoke_taken_over,
}


@pytest.mark.parametrize("code", [*LONGER, *LONGER_CLOSES])
def test_a_reason_code_that_takes_more_than_one_request(start, box, code):  # noqa: F811
    if code == "tls-only" and not shutil.which("openssl"):
        pytest.skip("needs the openssl program")
    found = {**LONGER, **LONGER_CLOSES}[code](start, box).decode().splitlines()
    last = found[-1] if code in LONGER_CLOSES else "\n".join(found)
    assert re.search(rf"^err .*reason={code}( |$)", last, re.M), found


def test_every_reason_code_is_provoked(spawn, start, box, tmp_path):  # noqa: F811
    on, off = table()
    assert {*on} == {*GOES_ON, *WITH_FLAGS, *BROKEN_DISK, *LONGER}
    assert {*off} == {*CLOSES, *LONGER_CLOSES}
    (box / "a").write_text("a")
    (box / "dir").mkdir()
    (box / "dir" / "x").touch()
    os.symlink("a", box / "link")
    server = start()
    for code, request in GOES_ON.items():
        said = said_to(server, request + b"ping\n").decode().splitlines()
        assert any(re.search(rf"^err .* reason={code}( |$)", each) for each in said), (code, said)
        assert said[-1] == "ok ping", "the connection goes on"
    for code, request in CLOSES.items():
        said = said_to(server, request + b"ping\n").decode().splitlines()
        assert said[-1] == f"err - reason={code}"
    for code, (flags, request) in WITH_FLAGS.items():
        said = said_to(start(*flags), request + b"ping\n").decode()
        assert f" reason={code}" in said and said.endswith("ok ping\n"), (code, said)
    for code, number in BROKEN_DISK.items():
        runner = tmp_path / "runner.py"
        path = str(ROOT / "server.py")
        runner.write_text(
            LOADED.format(number) + f"runpy.run_path({path!r}, run_name='__main__')\n"
        )
        broken = Server(str(runner), box)
        said = said_to(broken, b"mkdir new\nping\n").decode().splitlines()
        assert said[1:] == [f"err mkdir new reason={code}", "ok ping"]
        broken.stop()


def test_every_refusal_inside_a_body_tells_how_far_it_came(start, box):  # noqa: F811
    server = start("--max-size", "5")
    for request in (
        put("b", b"1234", size=5),
        b"put b size=2\ndata 2\n12data 1\n3end\n",
        put("b", b"1234", digest="00"),
        b"put b\ndata 4\n1234abort\n",
        b"put b\ndata 4\n1234data 9\n123456789end\n",
    ):
        assert re.search(rb"err put b reason=\S+ .*received=[24]\b", said_to(server, request))
    with server.connect() as first, first.makefile("rb") as answers:
        first.sendall(b"put c\ndata 1\nx")
        until(lambda: parts(box), "the part")
        (box / "c").write_text("other")
        first.sendall(b"end\n")
        answers.readline()
        said = answers.readline()
        while said.startswith(b"note "):
            said = answers.readline()
        assert re.fullmatch(rb"err put c reason=exists size=5 mtime_ns=\d+ received=1\n", said), (
            said
        )


def test_another_writer_that_is_alive_keeps_its_part(start, box):  # noqa: F811
    server, request, done = start(), b"put big size=%d mtime_ns=1\n" % len(BIG), threading.Event()
    with server.connect() as first:
        first.sendall(request + b"data %d\n%b" % (len(BIG), BIG[: 1 << 20]))
        until(lambda: parts(box), "the part")

        def go_on():
            place = 1 << 20
            while not done.wait(0.05):
                first.sendall(BIG[place : place + 1])
                place += 1

        going = meanwhile(go_on)
        assert b"err put big reason=busy" in said_to(server, request)
        done.set()
        going.join(DEADLINE)


def test_keys_are_read_in_any_case_and_a_tab_is_no_text(start, box):  # noqa: F811
    server = start()
    said = said_to(server, b"PUT a SIZE=1\ndata 1\nxend SHA256=00\n")
    assert b"reason=wrong-digest" in said
    assert said_to(server, b"chat\nsay a\tb\n").endswith(b"err - reason=bad-line\n")


def test_one_in_the_chat_is_told_something_alone(start, peer):  # noqa: F811
    anna, bob, eve = peer(start()), peer(), peer()
    for each, nick in ((anna, "anna"), (bob, "bob"), (eve, "eve")):
        each.lines(f"chat {nick}")
    assert anna.answer().startswith("joined bob") and anna.answer().startswith("joined eve")
    assert anna.ask("tell Bob hello  there") == "ok tell"
    assert bob.answer().startswith("joined eve")
    assert bob.answer() == "told from=anna hello  there"
    assert anna.ask("tell carl x") == "err tell reason=no-such-client"
    assert anna.ask("say all") == "ok say"
    assert bob.answer() == "said from=anna all" == eve.answer()
