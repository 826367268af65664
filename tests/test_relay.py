"""From client to client through server.py: who, receive, send and chat, as bytes and with the real client."""

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import (
    DEADLINE,
    ROOT,
    Listener,
    Process,
    Server,
    Terminal,
    free_port,
    queues,
    states,
    stopped,
    until,
)

sys.path.insert(0, str(ROOT))
import client as script

BIG = random.Random(5).randbytes(12 << 20)  # more than the kernel's buffers on the way hold
HELLO = b"hello\n"


def sha(data):
    return hashlib.sha256(data).hexdigest()


class Peer:
    """A client by hand: lines out, lines in."""

    def __init__(self, server, *, small=False):
        self.sock = socket.socket()
        self.sock.settimeout(DEADLINE)
        if small:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.connect((server.host, server.port))
        if server.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.sock = context.wrap_socket(self.sock)
        self.file, self.ended = self.sock.makefile("rb"), False
        self.name = self.line().split("you=")[1]

    def tell(self, text):
        self.sock.sendall(text if isinstance(text, bytes) else text.encode() + b"\n")

    def line(self):
        """The next line, or nothing at the end; a second time that would be a loop without an end."""
        said = self.file.readline()
        assert said or not self.ended, "the server has hung up"
        self.ended = not said
        return said.decode(errors="backslashreplace").rstrip("\n")

    def answer(self):
        """The next line that is no note."""
        while (found := self.line()).startswith("note ") and "lost=" not in found:
            pass
        return found

    def ask(self, text):
        self.tell(text)
        return self.answer()

    def lines(self, text, last="ok "):
        """All lines of an answer."""
        found = [self.ask(text)]
        while not found[-1].startswith((last, "err ")):
            found.append(self.answer())
        return found

    def body(self):
        """What follows a put: its bytes, and the line after them."""
        data = b""
        while (found := self.answer()).startswith("data "):
            data += self.file.read(int(found[5:]))
        return data, found

    def accept(self):
        """Take a file as a receiver does."""
        offer = self.answer()
        name = offer.split()[1]
        data, end = self.body()
        assert end == f"end sha256={sha(data)}", end
        self.tell(f"ok put {name} size={len(data)} sha256={sha(data)} verified=yes")
        return name, data

    def send(self, to, name="x", data=HELLO):
        """A whole file; the lines that answer it."""
        return self.lines(
            b"send %b %b size=%d\n%b" % (to.encode(), name.encode(), len(data), body(data))
        )

    def reset(self):
        """Close without a FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.file.close()
        self.sock.close()

    def close(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.file.close()
        self.sock.close()


def body(data, end=True):
    return b"data %d\n%b" % (len(data), data) + (
        b"end sha256=%b\n" % sha(data).encode() if end else b""
    )


@pytest.fixture
def start(spawn, tmp_path):
    def started(*flags, **more):
        server = spawn("server.py", tmp_path / "box", *flags, **more)
        server.tls = "--tls" in flags
        server.cpu = lambda: (
            sum(
                map(
                    int,
                    Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13],
                )
            )
            / os.sysconf("SC_CLK_TCK")
        )
        return server

    return started


@pytest.fixture
def server(start, request):
    return start(*getattr(request, "param", ()))


OVER_TLS = pytest.mark.parametrize("server", [(), ("--tls",)], ids=["plain", "tls"], indirect=True)
if not shutil.which("openssl"):
    OVER_TLS = pytest.mark.parametrize("server", [()], indirect=True)


@pytest.fixture
def peer(server):
    made = []

    def connect(first="", to=None, **more):
        made.append(Peer(to or server, **more))
        if first:
            assert made[-1].lines(first)[-1].startswith("ok "), first
        return made[-1]

    yield connect
    for each in made:
        each.close()


def meanwhile(call, *args):
    """A call in a thread; what it returns comes from .result()."""

    class Running(threading.Thread):
        def run(self):
            self.found = call(*args)

        def result(self):
            self.join(DEADLINE)
            assert not self.is_alive(), f"{call.__name__} does not end"
            return self.found

    running = Running(daemon=True)
    running.start()
    return running


# --- who, and nicks ---
def test_who_lists_everybody_with_nick_and_mode(peer):
    idle, bob, eve = peer("ping nick=anna"), peer("receive nick=bob"), peer("chat eve")
    until(lambda: "mode=idle" in eve.lines("who")[0], "the first to be idle again")
    assert eve.lines("who") == [
        f"client {idle.name} nick=anna mode=idle",
        f"client {bob.name} nick=bob mode=receive",
        f"client {eve.name} nick=eve mode=chat you=yes",
        "ok who count=3",
    ]


@pytest.mark.parametrize("words", ["receive a b", "%" * 30_000])
def test_a_request_that_is_refused_is_nobodys_mode(peer, words):
    bob, eve, watcher = peer("receive nick=bob"), peer(), peer()
    eve.tell(b"send bob x size=6\n%b%b\n" % (body(HELLO), words.encode()))
    assert bob.answer().startswith("put x "), "both requests have been read"
    assert f"client {eve.name} mode=send" in watcher.lines("who")
    bob.body()
    bob.tell(f"ok put x size=6 sha256={sha(HELLO)} verified=yes")
    assert eve.answer().startswith(f"got {bob.name} ok ") and eve.answer().startswith("ok send x ")
    assert eve.answer().startswith("err ")


def test_a_nick_in_use_gets_a_number_and_is_free_again_afterwards(peer):
    first = peer("ping nick=anna")
    assert peer().ask("receive nick=Anna").endswith(" nick=Anna2")
    assert peer().ask("chat ANNA").split()[3] == "nick=ANNA3"
    assert first.ask("ping nick=anna") == "ok ping", "its own nick is not taken"
    first.tell("bye")
    assert first.line() == "ok bye" and first.line() == ""
    watcher = peer()
    until(
        lambda: not any("nick=anna " in line for line in watcher.lines("who")),
        "the nick to be free",
    )
    watcher.tell("ping nick=anna")
    assert (
        watcher.line() == "ok ping"
        and f"client {watcher.name} nick=anna mode=who you=yes" in watcher.lines("who")
    )


@pytest.mark.parametrize(
    "nick",
    [
        "%20",
        "a%20b",
        "a:b",
        "127.0.0.1:9000",
        "a,b",
        "a%0Ab",
        "%1B[31m",
        "a>",
        "*",
        "x" * 33,
        "%E2%80%AE",
        "%FF",
        "a%E3%85%A4",  # the fillers of Hangul: letters that nobody sees
        "%E1%85%9F",
        "%E1%85%A0b",
        "%EF%BE%A0",
        "",
    ],
)
def test_a_nick_that_could_pass_for_something_else_is_refused(peer, nick):
    other = peer()
    assert (
        other.ask(f"ping nick={nick}") == "err ping reason=bad-nick"
        and other.ask("ping nick=Zoë_1.2-x") == "ok ping"
    )


# --- one file, many receivers ---
@OVER_TLS
def test_the_session_of_the_docstring(peer):
    sender, bob, other = peer("ping nick=anna"), peer("receive nick=bob"), peer("receive")
    sending = meanwhile(sender.send, f"bob,{other.name}")
    for receiver in bob, other:
        assert receiver.line() == f"put x size=6 from={sender.name} nick=anna"
        assert receiver.body() == (HELLO, f"end sha256={sha(HELLO)}")
        receiver.tell(f"ok put x size=6 sha256={sha(HELLO)} verified=yes as=x%20(1)")
    told = f"ok put x as=x%20(1) size=6 sha256={sha(HELLO)} verified=yes"
    *got, end = sending.result()
    assert sorted(got) == sorted([f"got {bob.name} {told} nick=bob", f"got {other.name} {told}"])
    assert end == "ok send x receivers=2 verified=2"


@OVER_TLS
def test_keys_folders_and_bytes_come_through_exactly(peer):
    sender, bob = peer(), peer("receive nick=bob")
    sending = meanwhile(sender.lines, "send bob a%20dir type=dir")
    assert bob.line() == f"mkdir a%20dir from={sender.name}"
    bob.tell("ok mkdir a%20dir")
    assert sending.result() == [
        f"got {bob.name} ok mkdir a%20dir nick=bob",
        "ok send a%20dir receivers=1 verified=1",
    ]
    sender.tell(
        b"send bob a%%20dir/%%FF size=%d mtime_ns=-5 exec=yes\n" % len(BIG) + b"data 3\nabc"
    )
    assert bob.line() == f"put a%20dir/%FF size={len(BIG)} mtime_ns=-5 exec=yes from={sender.name}"
    assert (bob.line(), bob.file.read(3)) == ("data 3", b"abc"), (
        "what has come goes on at once, not only when a block is full"
    )
    sending = meanwhile(sender.lines, body(BIG[3:], end=False) + b"end\n")
    assert bob.body() == (BIG[3:], "end")
    bob.tell("err put a%20dir/%FF reason=wrong-digest")
    assert sending.result() == [
        f"got {bob.name} err put a%20dir/%FF reason=wrong-digest nick=bob",
        "err send a%20dir/%FF reason=not-received receivers=1 verified=0",
    ]


def test_who_cannot_be_sent_to_is_told_and_the_connection_stays_usable(peer):
    sender, bob, idle = peer("ping nick=anna"), peer("receive nick=bob"), peer()
    sending = meanwhile(sender.send, f"nobody,anna,{idle.name},{sender.name},,BOB,{bob.name}")
    assert bob.accept() == ("x", HELLO)
    reasons = [
        f"got {name} err put x reason={reason}"
        for name, reason in (
            ("nobody", "no-such-client"),
            ("anna", "yourself"),
            (idle.name, "not-receiving"),
            (sender.name, "yourself"),
        )
    ]
    *got, ok, end = sending.result()
    assert (
        sorted(got) == sorted(reasons)
        and ok.startswith(f"got {bob.name} ok put x size=6")
        and end == "ok send x receivers=5 verified=1"
    )
    assert sender.send("127.0.0.1:1")[-1] == "err send x reason=not-received receivers=1 verified=0"
    for name, reason in (
        ("../x", "bad-name"),
        ("/etc/x", "bad-name"),
        ("a//b", "bad-name"),
        ("nul%00", "bad-name"),
    ):
        assert sender.send("bob", name) == [
            f"err send {name.replace('nul%00', 'nul%00')} reason={reason}"
        ]
    for wrong in "bob", ", x", "n," * 2001 + "n x":
        assert sender.ask(f"send {wrong}").startswith("err send ") and "reason=usage" in sender.ask(
            f"send {wrong}"
        ), wrong[:9]
    assert sender.ask("ping") == "ok ping"


def test_nobody_can_make_a_line_longer_than_the_sender_may_take_nor_flood_the_log(server, peer):
    sender, bob = peer(), peer("receive nick=bob")
    sending = meanwhile(sender.send, "bob," + "ü" * 5000, "%FF" * 4096)
    assert bob.answer().startswith("put %FF") and bob.body()[0] == HELLO
    bob.tell(b"err put x reason=" + b"\xff" * 32000 + b"\n")
    got = sending.result()
    assert len(got) == 3 and max(map(len, got)) < script.MAX_LINE, [len(found) for found in got]
    assert got[0].startswith("got " + "ü" * 900 + " err") and got[1].endswith(
        " reason=" + "%FF" * 32 + " nick=bob"
    )
    server.wait_for(", not-received")
    assert max(map(len, server.err.splitlines())) < 3000


def test_a_request_ends_the_wait_unless_it_only_asks(peer):
    sender, bob = peer(), peer("receive nick=bob")
    assert (
        bob.ask("ping") == "ok ping"
        and bob.lines("who")[-1] == "ok who count=2"
        and bob.lines("help")[-1].startswith("ok help")
    )
    sending = meanwhile(sender.send, "bob")
    assert (
        bob.accept() == ("x", HELLO) and sending.result()[-1] == "ok send x receivers=1 verified=1"
    )
    assert bob.ask("get nothing") == "err get nothing reason=no-such-file"
    assert sender.send("bob")[0] == "got bob err put x reason=not-receiving"


# --- somebody goes, or stands still ---
@OVER_TLS
@pytest.mark.parametrize(
    "how",
    [
        "closes",
        "says bye",
        "breaks the protocol",
        "says ok too early",
        "never ends a line",
        "refuses",
    ],
)
def test_one_receiver_that_fails_in_mid_body_is_told_at_once_and_the_other_gets_all(peer, how):
    sender, bob, other = peer(), peer("receive nick=bob"), peer("receive")
    sender.tell(
        b"send %b,bob x size=%d\ndata %d\n%b" % (other.name.encode(), len(BIG), len(BIG), BIG[:10])
    )
    for receiver in bob, other:
        assert (
            receiver.line().startswith("put x")
            and receiver.line() == "data 10"
            and receiver.file.read(10) == BIG[:10]
        )
    if how == "closes":
        bob.close()
    else:
        bob.tell(
            {
                "says bye": b"\r\n\nbye\n",
                "breaks the protocol": b"put\0\n",
                "says ok too early": b"ok put x size=10 verified=yes\n",
                "never ends a line": b"x" * 300000,
                "refuses": b"err put x reason=disk-full received=10\n",
            }[how]
        )
    reason = {"says bye": "left", "says ok too early": "left", "refuses": "received=10"}.get(
        how, "gone"
    )
    if how == "refuses":
        reason = "disk-full received=10"
    assert sender.answer() == f"got {bob.name} err put x reason={reason} nick=bob", (
        "the sender is silent meanwhile"
    )
    getting = meanwhile(other.body)
    sender.tell(BIG[10:] + b"end sha256=%b\n" % sha(BIG).encode())
    assert getting.result() == (BIG[10:], f"end sha256={sha(BIG)}")
    other.tell(f"ok put x size={len(BIG)} sha256={sha(BIG)} verified=yes")
    assert (
        sender.answer().startswith(f"got {other.name} ok put x")
        and sender.answer() == "ok send x receivers=2 verified=1"
    )
    if how == "says bye":
        assert bob.body()[1] == "ok bye"


def test_a_small_file_is_passed_on_alike_whole_and_in_pieces(peer):
    anna, bob = peer(), peer("receive nick=bob")
    request = b"send bob x size=%d mtime_ns=7\n%b" % (len(HELLO), body(HELLO))
    for pieces in [request], [bytes([byte]) for byte in request]:
        for piece in pieces:
            anna.tell(piece)
        assert bob.answer() == f"put x size={len(HELLO)} mtime_ns=7 from={anna.name}"
        assert bob.body() == (HELLO, f"end sha256={sha(HELLO)}")
        told = f"ok put x size={len(HELLO)} sha256={sha(HELLO)} verified=yes"
        bob.tell(told)
        assert anna.answer() == f"got {bob.name} {told} nick=bob"
        assert anna.answer() == "ok send x receivers=1 verified=1"


def rests(server, *peers):
    """Whether it has read all that these have sent, and no thread of it runs or could."""
    return all(queues(each.sock)[1] == 0 for each in peers) and states(server) == {"S"}


def stuck(server, goal):
    """Whether there is more for this one than its socket has room for, and nothing else to do."""
    return queues(goal.sock)[0] and all(states(server) == {"S"} for _ in range(3))


@pytest.mark.skipif(sys.platform != "linux", reason="has /proc")
@pytest.mark.parametrize("how", ["err put x reason=disk-full", "bye"])
def test_who_refuses_before_it_has_read_what_was_left_for_it_reads_that_unchanged(
    spawn, tmp_path, peer, how
):
    """The sender goes on meanwhile, and what comes then is in the same memory."""
    patient = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import server as it\n"
        f"it.LINGER = {DEADLINE}; sys.exit(it.main())"
    )
    server = spawn("-c", patient, tmp_path / "box")
    server.tls = False
    sender, other = peer(to=server), peer("receive", to=server)
    slow = peer("receive nick=slow", to=server, small=True)
    sending = meanwhile(sender.send, f"slow,{other.name}", "x", BIG)
    assert slow.line().startswith("put x")
    until(
        lambda: queues(sender.sock)[1] and stuck(server, slow),
        "the one that does not read to hold up all",
    )
    slow.tell(how)
    assert other.accept() == ("x", BIG)
    assert sending.result()[-1] == "ok send x receivers=2 verified=1"
    data, end = slow.body()
    assert end == ("ok bye" if how == "bye" else "abort reason=refused")
    assert 0 < len(data) < len(BIG) and data == BIG[: len(data)]


def test_when_the_only_receiver_goes_the_sender_need_not_go_on(peer):
    sender, bob = peer(), peer("receive nick=bob")
    sender.tell(b"send bob x size=100\ndata 100\nabc")
    assert bob.line() and bob.line() == "data 3"
    bob.close()
    assert (
        sender.answer().startswith("got ")
        and sender.answer() == "err send x reason=not-received receivers=1 verified=0"
    )
    sender.tell(b"." * 97 + b"abort\n")
    assert sender.ask("ping") == "ok ping"


@pytest.mark.parametrize(
    "how",
    ["closes", "aborts", "asks for something else", "breaks the protocol", "says nothing more"],
)
def test_when_the_sender_ends_in_mid_body_the_receivers_hear_it_at_once_and_can_be_sent_to_again(
    start, peer, how
):
    server = start("--timeout", "4") if how == "says nothing more" else None
    sender, bob = peer(to=server), peer("receive nick=bob", to=server)
    sender.tell(b"send bob x size=100\ndata 10\nabcdefghij")
    assert bob.line() and bob.line() == "data 10" and bob.file.read(10) == b"abcdefghij"
    said = {
        "closes": None,
        "aborts": b"abort reason=changed\n",
        "asks for something else": b"ping\n",
        "breaks the protocol": b"a\0\n",
    }
    if how == "closes":
        sender.close()
    elif how in said:
        sender.tell(said[how])
    assert bob.answer() == {
        "aborts": "abort reason=changed",
        "asks for something else": "abort reason=interrupted",
    }.get(how, "abort reason=sender-gone")
    bob.tell("err put x reason=aborted")
    if how == "asks for something else":
        assert [sender.answer() for _ in range(3)][1:] == [
            "err send x reason=not-received receivers=1 verified=0",
            "ok ping",
        ]
    another = peer(to=server)
    sending = meanwhile(another.send, "bob")
    assert (
        bob.accept() == ("x", HELLO) and sending.result()[-1] == "ok send x receivers=1 verified=1"
    )


@pytest.mark.parametrize("tls", [(), ("--tls",)][: 1 + bool(shutil.which("openssl"))])
def test_a_receiver_that_stalls_is_closed_while_all_others_go_on(start, peer, tls):
    server = start("--timeout", "3", *tls)
    sender, stuck, other = (
        peer(to=server),
        peer("receive nick=stuck", to=server, small=True),
        peer("receive nick=other", to=server),
    )
    before = server.status("VmRSS")
    notes = []

    def take():
        """The body, and how often the server said that it is there while there was nothing to take."""
        data = b""
        while not (found := other.line()).startswith("end"):
            notes.append(found == "note x")
            data += other.file.read(int(found[5:])) if found.startswith("data ") else b""
        return data, found

    sending = meanwhile(sender.send, "stuck,other", "x", BIG)
    assert (
        other.answer().startswith("put x")
        and stuck.line().startswith("put x")
        and stuck.line().startswith("data ")
    )
    stuck.tell("note x received=1")
    getting = meanwhile(take)
    until(lambda: server.status("Threads") and sending.is_alive(), "the transfer to run")
    # another pair is not delayed
    second, third = peer(to=server), peer("receive nick=third", to=server)
    quick = meanwhile(second.send, "third")
    assert (
        third.accept() == ("x", HELLO)
        and quick.result()[-1] == "ok send x receivers=1 verified=1"
        and sending.is_alive()
    )
    assert getting.result() == (BIG, f"end sha256={sha(BIG)}")
    assert any(notes)
    other.tell(f"ok put x size={len(BIG)} sha256={sha(BIG)} verified=yes")
    *_, gone, ok, end = sending.result()
    assert gone == f"got {stuck.name} err put x reason=stalled nick=stuck" and ok.startswith(
        f"got {other.name} ok"
    )
    assert end == "ok send x receivers=2 verified=1"
    assert server.status("VmHWM") - before < 20000, (
        "memory does not grow with what a slow receiver has not taken"
    )
    server.wait_for(re.escape(f"{stuck.name} connection lost: took nothing for 3 s"))


@pytest.mark.parametrize("note", ["note x", f"note x received={len(HELLO)}", "note x received=%d"])
def test_a_receiver_whose_notes_tell_of_nothing_new_does_not_hold_its_sender(start, peer, note):
    server = start("--timeout", "1")
    sender, talker = peer(to=server), peer("receive", to=server)
    sending = meanwhile(sender.send, talker.name)
    assert talker.answer().startswith("put x ") and talker.body() == (
        HELLO,
        f"end sha256={sha(HELLO)}",
    )
    with contextlib.suppress(ConnectionError):
        for number in range(len(HELLO), round(DEADLINE * 100)):  # an answer never comes
            talker.tell(note % number if "%" in note else note)
            sending.join(0.01)
            if not sending.is_alive():
                break
        else:
            raise AssertionError("held for as long as it talked")
    assert sending.result()[-2:] == [
        f"got {talker.name} err put x reason=stalled",
        "err send x reason=not-received receivers=1 verified=0",
    ]


@pytest.mark.parametrize("step", [1, 20])
def test_a_receiver_that_has_all_and_tells_of_a_little_more_each_time_does_not_hold_its_sender(
    start, peer, step
):
    server = start("--timeout", "1")
    sender, talker = peer(to=server), peer("receive", to=server)
    sending = meanwhile(sender.send, talker.name, "x", b"x" * 1000)
    assert talker.answer().startswith("put x ") and talker.body()[0] == b"x" * 1000
    with contextlib.suppress(ConnectionError):
        for received in range(0, 50 * step, step):
            talker.tell(f"note x received={received}")
            sending.join(0.3)
            if not sending.is_alive():
                break
        else:
            raise AssertionError("held for as long as it told of more")
    assert sending.result()[-2] == f"got {talker.name} err put x reason=stalled"


def test_a_sender_of_notes_alone_holds_nobody_for_whom_others_wait(start, peer):
    server = start("--timeout", "2")
    talker, bob, other = peer(to=server), peer("receive nick=bob", to=server), peer(to=server)
    talker.tell("send bob x size=9")
    assert bob.line().startswith("put x ")

    def take():
        ends = bob.answer()
        bob.tell("err put x reason=aborted")
        return ends, bob.accept()

    sending, taking = meanwhile(other.send, "bob", "y"), meanwhile(take)
    while taking.is_alive():
        talker.tell("note x")
        taking.join(0.1)
    assert taking.result() == ("abort reason=stalled", ("y", HELLO))
    assert sending.result()[-1] == "ok send y receivers=1 verified=1"
    assert talker.answer() == "err send x reason=stalled"
    assert talker.ask("ping") == "ok ping"


def test_the_next_file_is_on_its_way_before_the_answer(peer):
    sender, bob, eve = peer(), peer("receive nick=bob"), peer("receive nick=eve")
    for name in "abc":
        sender.tell(b"send bob,eve %b size=6\n%b" % (name.encode(), body(HELLO)))
    sender.tell("ping")
    for receiver in bob, eve:
        for name in "abc":
            assert receiver.answer().startswith(f"put {name} ") and receiver.body()[0] == HELLO
    for receiver, verified in ((bob, "yes"), (eve, "no")):
        for name in "abc":
            receiver.tell(f"ok put {name} sha256={sha(HELLO)} verified={verified}")
    for name in "abc":
        assert sorted([sender.answer(), sender.answer()]) == sorted(
            f"got {each.name} ok put {name} sha256={sha(HELLO)} verified={word} nick={nick}"
            for each, word, nick in ((bob, "yes", "bob"), (eve, "no", "eve"))
        )
        assert sender.answer() == f"ok send {name} receivers=2 verified=1"
    assert sender.answer() == "ok ping", "answers come in the order of the requests"


def test_who_sends_many_files_lets_another_in_between(peer):
    first, second, bob = peer(), peer(), peer("receive nick=bob")
    first.tell(b"send bob a size=6\n" + body(HELLO))
    assert bob.answer().startswith("put a ") and bob.body()[0] == HELLO
    waiting = meanwhile(second.send, "bob", "b")
    watcher = peer()
    until(lambda: " ".join(watcher.lines("who")).count("mode=send") == 2, "the second to wait")
    first.tell(b"send bob c size=6\n" + body(HELLO))
    bob.tell(f"ok put a sha256={sha(HELLO)} verified=yes")
    assert [bob.accept()[0] for _ in range(2)] == ["b", "c"]
    assert waiting.result()[-1] == "ok send b receivers=1 verified=1"


def test_a_receiver_that_leaves_while_its_sender_waits_is_told_to_be_gone(peer):
    first, second = peer(), peer()
    bob, eve = peer("receive nick=bob"), peer("receive nick=eve")
    first.tell(b"send bob a size=6\n" + body(HELLO))
    assert bob.answer().startswith("put a ") and bob.body()[0] == HELLO
    second.tell(b"send bob,eve b size=6\n" + body(HELLO))
    assert second.line() == "note b waiting=2"
    assert eve.ask("list") == "ok list count=0"
    bob.tell(f"ok put a sha256={sha(HELLO)} verified=yes")
    assert bob.accept()[0] == "b"
    assert second.answer() == f"got {eve.name} err put b reason=not-receiving"
    assert second.answer().startswith(f"got {bob.name} ok put b ")
    assert second.answer() == "ok send b receivers=2 verified=1"


def test_a_sender_that_is_gone_is_not_shown_as_sending(peer):
    sender, bob = peer(), peer("receive nick=bob")
    sender.tell(b"send bob x size=6\n" + body(HELLO))
    assert bob.answer().startswith("put x ") and bob.body()[0] == HELLO
    sender.close()
    watcher = peer()
    until(lambda: sender.name not in " ".join(watcher.lines("who")), "it to be forgotten")
    bob.tell(f"ok put x sha256={sha(HELLO)} verified=yes")
    sending = meanwhile(watcher.send, "bob", "y")
    assert bob.accept()[0] == "y" and sending.result()[-1].endswith("verified=1")


def test_a_receiver_that_asks_something_while_a_file_arrives_gets_the_file_then_the_answer(peer):
    sender, bob = peer(), peer("receive nick=bob")
    sender.tell(b"send bob x size=6\ndata 3\nhel")
    assert bob.line().startswith("put x ")
    bob.tell("ping\nwho")
    sender.tell(b"data 3\nlo\nend sha256=%b\n" % sha(HELLO).encode())
    assert bob.body() == (HELLO, f"end sha256={sha(HELLO)}")
    bob.tell(f"ok put x sha256={sha(HELLO)} verified=yes")
    assert bob.answer() == "ok ping" and bob.answer().startswith("client ")
    assert sender.answer().startswith("got ") and sender.answer().endswith("verified=1")


def test_a_receiver_that_refuses_inside_the_body_hears_that_it_ends(server, peer):
    sender, bob = peer(), peer("receive nick=bob")
    sender.tell(b"send bob x size=9\ndata 3\nhel")
    assert bob.line().startswith("put x ") and bob.line() == "data 3" and bob.file.read(3)
    bob.tell("err put x reason=disk-full")
    assert bob.answer() == "abort reason=refused"
    assert sender.answer().endswith("reason=disk-full nick=bob")
    assert sender.answer() == "err send x reason=not-received receivers=1 verified=0"
    server.wait_for("send bob x: 3 bytes, .*, not-received")


@pytest.mark.parametrize("claim", ["sha256=" + "0" * 64, ""])
def test_verified_is_what_the_digests_say_and_not_the_receiver(peer, claim):
    sender, bob = peer(), peer("receive nick=bob")
    sending = meanwhile(sender.send, "bob")
    assert bob.answer().startswith("put x ") and bob.body()[0] == HELLO
    bob.tell(f"ok put x {claim} verified=yes".replace("  ", " "))
    got, answer = sending.result()
    assert "verified=no" in got and answer == "ok send x receivers=1 verified=0"


def held_up(peer):
    """A transfer to one that reads and one that stands still, until no more can be sent: sender, still, other, what other gets,
    and what the sender still has of the block that it is at."""
    still, other, sender = (
        peer("receive nick=still", small=True),
        peer("receive nick=other"),
        peer(),
    )
    sender.tell("send still,other x")
    assert still.line().startswith("put x ") and other.line().startswith("put x ")
    getting, block = meanwhile(other.body), body(BIG[: 1 << 20], end=False)
    sender.sock.settimeout(1)
    with contextlib.suppress(socket.timeout):
        rest = block
        while True:
            rest = rest[sender.sock.send(rest[: script.BATCH]) :] or block
    sender.sock.settimeout(DEADLINE)
    return sender, still, other, getting, rest


@OVER_TLS
@pytest.mark.parametrize("how", ["closes", "is reset"])
def test_a_sender_that_goes_while_a_receiver_stands_still_is_noticed_at_once(server, peer, how):
    sender, still, other, getting, _ = held_up(peer)
    if how == "is reset":
        sender.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sender.close()
    data, end = getting.result()
    assert data and end == "abort reason=sender-gone"
    server.wait_for(f"{sender.name} send x: cut after [0-9]+ bytes")
    other.tell("err put x reason=aborted")
    another = peer()
    sending = meanwhile(another.send, "other,still")
    assert still.body() == (data, end), "it hears so behind what was on its way"
    still.tell("err put x reason=aborted")
    assert (
        other.accept() == still.accept() == ("x", HELLO)
        and sending.result()[-1] == "ok send x receivers=2 verified=2"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="has /proc")
def test_the_abort_of_a_sender_that_goes_never_comes_inside_a_body(server, peer):
    """The receiver has not taken what came before, and half of the next body waits with it."""
    sender, bob = peer(), peer("receive nick=bob", small=True)
    bob.tell(b"help\n" * 4100)  # with more answers than the way to it holds
    until(lambda: stuck(server, bob), "the server to wait for the receiver")
    sender.tell(b"send bob x\ndata 3\nabc")
    until(lambda: rests(server, sender), "the first bytes to be left for the receiver")
    with stopped(server):
        sender.tell(body(BIG[:100000], end=False))
    until(lambda: queues(sender.sock)[1] < 100000, "the next bytes to come")
    until(lambda: states(server) == {"S"}, "them to wait")
    sender.reset()
    server.wait_for(f"{sender.name} send x: cut after [0-9]+ bytes")
    while not (said := bob.line()).startswith("put "):
        assert said.startswith(("help ", "ok help")), said
    data, end = bob.body()
    assert end == "abort reason=sender-gone" and (b"abc" + BIG[:100000]).startswith(data)
    bob.tell("err put x reason=aborted")
    sending = meanwhile(peer().send, "bob", "y")
    assert bob.accept() == ("y", HELLO) and sending.result()[-1].endswith(" verified=1")


@pytest.mark.skipif(sys.platform != "linux", reason="has /proc")
def test_a_receiver_hears_of_each_file_that_it_owes_an_answer_also_if_the_sender_is_lost(
    server, peer
):
    """Here that is while the offer would make more than gathers, and what was left is not taken."""
    name, sender, bob = b"\xff" * 4096, peer(), peer("receive nick=bob", small=True)
    sending = meanwhile(sender.send, "bob", "%FF" * 4096)  # from now on many lines are read at once
    assert bob.accept() == ("%FF" * 4096, HELLO) and sending.result()[-1].endswith(" verified=1")
    bob.tell(b"help\n" * 4100)  # with more answers than the way to it holds
    until(lambda: stuck(server, bob), "the server to wait for the receiver")
    sender.tell(b"send bob first\n%b" % body(HELLO))
    until(lambda: rests(server, sender), "a file to be left for the receiver")
    with stopped(server):  # the last offer is the one that makes more than 64 KiB
        sends = (b"send bob %b\n%b" % (name, body(b""))) * 5
        sender.tell(sends + b"send bob %b nick=anna\n%b" % (name, body(b"")))
    other = peer()
    until(lambda: " nick=anna " in other.lines("who")[0], "the last request to be read")
    until(
        lambda: all(states(server) == {"S"} for _ in range(5)),
        "the sender's thread to wait for the receiver",
    )
    sender.reset()
    server.wait_for(f"{sender.name} connection lost")
    while not (said := bob.line()).startswith("put first "):
        assert said.startswith(("help ", "ok help")), said
    assert bob.body() == (HELLO, f"end sha256={sha(HELLO)}")
    bob.tell(f"ok put first size=6 sha256={sha(HELLO)} verified=yes")
    ends = []
    for _ in range(6):
        assert (said := bob.answer()).startswith("put %FF"), said
        ends.append(bob.body()[1])
        bob.tell(f"err put {'%FF' * 4096} reason=aborted")
    assert ends == [f"end sha256={sha(b'')}"] * 5 + ["abort reason=sender-gone"]
    sending = meanwhile(peer().send, "bob", "y")
    assert bob.accept() == ("y", HELLO) and sending.result()[-1].endswith(" verified=1")


@pytest.mark.skipif(sys.platform != "linux", reason="has /proc")
@pytest.mark.parametrize("keys", [b"", b" mtime_ns=7"])
@pytest.mark.parametrize("how", ["is reset", "breaks the protocol", "does so and closes"])
def test_a_small_file_that_came_whole_is_delivered_also_if_its_sender_is_lost(
    server, peer, how, keys
):
    """Its receiver answers it, and can be sent to again."""
    sender, bob = peer(), peer("receive nick=bob")
    with stopped(server):
        sender.tell(b"send bob x size=6%b\n%b" % (keys, body(HELLO)))
        if how == "is reset":
            sender.reset()
        else:
            sender.tell(b"a\0\n")
        if how == "does so and closes":
            sender.close()
    assert bob.accept() == ("x", HELLO)
    sending = meanwhile(peer().send, "bob", "y")
    assert bob.accept() == ("y", HELLO)
    assert sending.result()[-1] == "ok send y receivers=1 verified=1"


def test_a_sender_that_only_closes_its_own_half_behind_the_last_byte_is_not_gone(peer):
    """As nc -N does: what it has sent is on its way, and it waits for the answer."""
    sender, still, other, getting, rest = held_up(peer)
    ending = meanwhile(lambda: [sender.tell(rest + b"end\n"), sender.sock.shutdown(socket.SHUT_WR)])
    data, line = b"", ""
    # it reads until there is room for all the rest on the way
    while line != "end" and ending.is_alive():
        line = still.answer()
        data += b"" if line == "end" else still.file.read(int(line[5:]))
    for _ in range(5):
        assert sender.line() == "note x received=0", "the sender hears how far they are"
    more, line = (b"", line) if line == "end" else still.body()
    assert line == "end" and getting.result() == (data + more, "end")
    for receiver in still, other:
        receiver.tell("ok put x verified=yes")
    assert (
        sender.answer().startswith("got ")
        and sender.answer().startswith("got ")
        and sender.answer() == "ok send x receivers=2 verified=0"
    )


def test_notes_tell_how_far_the_slowest_is_and_that_the_server_lives(peer):
    sender, bob, other = peer(), peer("receive nick=bob"), peer("receive nick=other")
    sender.tell(b"send bob,other x size=100\ndata 10\nabcdefghij")
    for receiver, count in (bob, 10), (other, 7):
        assert receiver.line() and receiver.line() == "data 10" and receiver.file.read(10)
        receiver.tell(f"note x received={count}")
    while "received=7" not in sender.line():
        pass
    other.tell("note x received=10")
    while "received=10" not in sender.line():
        pass
    assert bob.line() == "note x", "while the sender is silent"
    sender.tell("note x")
    assert bob.line() == "note x", "the sender's own sign of life"


# --- several at once ---
def test_several_senders_to_one_receiver_come_one_after_another(peer):
    bob, senders = peer("receive nick=bob"), [peer() for _ in range(4)]
    senders[0].tell(b"send bob x0 size=20\ndata 10\nabcdefghij")
    assert bob.line().startswith("put x0")
    running = [
        meanwhile(sender.send, "bob", f"x{number + 1}", HELLO * 10)
        for number, sender in enumerate(senders[1:3])
    ]
    senders[3].tell("send bob x3")
    assert senders[3].line() == "note x3 waiting=1"
    senders[3].close()  # who goes while it waits is forgotten
    senders[0].tell(body(b"k" * 10, end=False) + b"end\n")
    assert bob.body() == (b"abcdefghij" + b"k" * 10, "end")
    bob.tell("ok put x0 size=20 verified=no")
    assert (
        senders[0].answer().startswith("got")
        and senders[0].answer() == "ok send x0 receivers=1 verified=0"
    )
    taken = []
    while len(taken) < 2:
        offer = bob.answer()
        data, end = bob.body()
        if offer.startswith("put x3"):
            bob.tell("err put x3 reason=aborted")
            assert end == "abort reason=sender-gone"
        else:
            taken.append((offer.split()[1], data))
            bob.tell(f"ok put {taken[-1][0]} size=60 sha256={sha(data)} verified=yes")
    assert sorted(taken) == [("x1", HELLO * 10), ("x2", HELLO * 10)]
    assert all(each.result()[-1].endswith("verified=1") for each in running)


@OVER_TLS
def test_whoever_waits_for_another_misses_nothing_that_came_at_once(peer):
    """Under TLS 15 kB are one record, and of what it still holds no selector tells: in the chat, of a receiver, of a sender."""
    anna, carl, text = peer("chat anna"), peer("chat carl"), "x" * 3700
    anna.tell("\n".join(f"say {number} {text}" for number in range(4)))
    assert [carl.answer() for _ in range(4)] == [
        f"said from=anna {number} {text}" for number in range(4)
    ]
    assert sorted(anna.answer() for _ in range(5)) == [
        "joined carl at=" + carl.name,
        *["ok say"] * 4,
    ]
    sender, bob, data = peer(), peer("receive nick=bob"), os.urandom(9000)
    sender.tell(b"send bob x size=%d\n%b" % (len(data), body(data)))
    assert bob.answer().startswith("put x ") and bob.body() == (data, f"end sha256={sha(data)}")
    bob.tell(
        "\n".join(
            [
                *(f"note x received={number}" for number in range(600)),
                f"ok put x size={len(data)} sha256={sha(data)} verified=yes",
            ]
        )
    )
    assert [sender.answer()[:4], sender.answer()] == ["got ", "ok send x receivers=1 verified=1"]


@OVER_TLS
def test_crossing_transfers_end(peer, full):
    """A sends to B and C while D sends to C and B, again and again: each takes both receivers or none."""
    rounds = 200 if full else 30
    receivers = {nick: peer(f"receive nick={nick}") for nick in "bc"}
    senders = {"b,c": peer(), "c,b": peer()}
    taking = [
        meanwhile(lambda each=each: [each.accept() for _ in range(2 * rounds)])
        for each in receivers.values()
    ]
    sending = [
        meanwhile(lambda to=to, each=each: [each.send(to, to[0])[-1] for _ in range(rounds)])
        for to, each in senders.items()
    ]
    for to, each in zip(senders, sending):
        assert each.result() == [f"ok send {to[0]} receivers=2 verified=2"] * rounds
    for each in taking:
        assert sorted(each.result()) == [("b", HELLO)] * rounds + [("c", HELLO)] * rounds


def test_who_waits_for_one_that_stands_still_keeps_nobody_from_another(peer):
    mute, bob, (first, second, third) = (
        peer("receive nick=mute"),
        peer("receive nick=bob"),
        (peer() for _ in range(3)),
    )
    first.tell(b"send mute x size=10\ndata 1\n.")
    assert mute.line().startswith("put x")
    second.tell("send mute,bob y")
    assert second.line() == "note y waiting=2"
    taken = meanwhile(bob.accept)
    assert third.send("bob", "z")[-1] == "ok send z receivers=1 verified=1"
    assert taken.result() == ("z", HELLO)
    first.tell(b"abort\n")
    assert mute.body()[1].startswith("abort")
    mute.tell("err put x reason=aborted")
    assert bob.line().startswith("put y"), "and its turn comes"


@pytest.mark.parametrize("server", [("--timeout", "4")], indirect=True)
def test_who_has_waited_long_enough_comes_first(peer):
    slow, _bob, (first, second, third) = (
        peer("receive nick=slow"),
        peer("receive nick=bob"),
        (peer() for _ in range(3)),
    )
    first.tell(b"send slow x size=100\ndata 1\n.")
    assert slow.line().startswith("put x")
    second.tell("send slow,bob y")
    for _ in range(5):
        assert second.line() == "note y waiting=2", "a second each"
        slow.tell("note x received=1")  # it lives
        first.tell(b"data 1\n.")
    third.tell("send bob z")
    assert third.line() == "note z waiting=1"


def test_two_that_send_to_each_other_do_not_wait_for_ever(peer):
    """Who sends does not receive: so of the two one is told."""
    one, two = peer("receive nick=one"), peer("receive nick=two")
    one.tell(b"send two x size=100\ndata 1\n.")
    assert two.line().startswith("put x") and two.line() == "data 1"
    two.tell(b"." and b"send one y\n" + body(HELLO))
    assert two.file.read(1) == b"." and two.answer() == "got one err put y reason=not-receiving"
    assert two.answer() == "err send y reason=not-received receivers=1 verified=0"
    assert one.answer() == f"got {two.name} err put x reason=left nick=two"


@OVER_TLS
def test_afterwards_nothing_is_left_over(server, peer, tmp_path):
    server.at_rest()
    watcher = peer()
    before = server.descriptors(), server.status("Threads")
    for number in range(5):
        sender, bob, chatter = peer(), peer(f"receive nick=bob{number}"), peer("chat")
        if number:
            sender.tell(b"send bob%d x size=100\ndata 10\nabcdefghij" % number)
            assert bob.line().startswith("put x")
        for each in [sender, bob, chatter][number % 2 : :]:
            each.close()
        if number % 2:
            sender.close()
    server.rests(before)
    assert watcher.lines("who")[-1] == "ok who count=1"
    assert os.listdir(tmp_path / "box") == [], "the server stores nothing"


# --- the real client ---
@pytest.fixture
def here(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def do(run, server, here):
    def done(*words, **more):
        return run(
            "client.py",
            *["--insecure"] * server.tls,
            "--port",
            server.port,
            *words,
            **{"cwd": here, **more},
        )

    return done


@pytest.fixture
def receiving(here, server):
    """Real receivers in the background; each is known to wait when this returns."""
    running = []

    def started(*flags, port=None, **more):
        running.append(
            Process(
                ROOT / "client.py",
                *["--insecure"] * server.tls,
                "--port",
                port or server.port,
                "receive",
                *flags,
                cwd=here,
                **more,
            )
        )
        running[-1].wait_for("waiting for files")
        return running[-1]

    yield started
    for each in running:
        if each.process.poll() is None:
            each.kill()


def plant(folder):
    for name in ("empty/also empty", "deep/er"):
        (folder / name).mkdir(parents=True)
    odd = os.fsdecode(b"a b%=\n\xff\xc3\xbc")
    for name, data in (
        ("a.txt", b"a"),
        ("nothing", b""),
        (f"deep/{odd}", b"odd"),
        ("deep/er/big", BIG),
        ("run.sh", b"#!"),
    ):
        (folder / name).write_bytes(data)
        os.utime(folder / name, ns=(0, 1700000000123456789))
    (folder / "run.sh").chmod(0o755)


def tree(folder):
    return {
        os.fsencode(str(path.relative_to(folder))): path.is_dir()
        or (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode & 0o100)
        for path in folder.rglob("*")
    }


@OVER_TLS
def test_files_folders_and_standard_input_reach_everybody_whole(do, here, receiving):
    (here / "tree").mkdir()
    plant(here / "tree")
    (here / "image.png").write_bytes(BIG[:100000])
    boxes = [receiving("-o", nick, "--nick", nick, "--count", "7") for nick in ("bob", "eve")]
    sent = do("send", "tree", "image.png", "--all")
    assert (
        sent.code == 0
        and len(
            re.findall(
                r"^127\.0\.0\.1:\d+ \((?:bob|eve)\): verified 11 of 11, 12\.7 MB$", sent.err, re.M
            )
        )
        == 2
    ), sent
    piped = do(
        "send",
        "-",
        "--as",
        "piped",
        "--to",
        "bob",
        "--to",
        "EVE",
        input=b"from a pipe",
        env={"SIX": "1"},
    )
    assert piped.code == 0, piped
    for nick, box in zip(("bob", "eve"), boxes):
        assert box.wait() == 0, box.err
        assert tree(here / nick / "tree") == tree(here / "tree")
        assert (here / nick / "image.png").read_bytes() == BIG[:100000] and (
            here / nick / "piped"
        ).read_bytes() == b"from a pipe"
        assert f"{nick}/piped\n" in box.out and len(box.out.splitlines()) == 8, (
            "one of the names has a line feed"
        )


def test_nothing_is_replaced_without_force_and_a_number_is_added(do, here, receiving):
    (here / "t").mkdir()
    (here / "t" / "a.txt").write_text("one")
    box = receiving("-o", "box", "--nick", "bob", "--count", "4")
    for text in ("one", "two"):
        (here / "t" / "a.txt").write_text(text)
        assert do("send", "t", "t/a.txt", "--to", "bob").code == 0
    assert box.wait() == 0
    found = {
        str(path.relative_to(here / "box")): path.read_text()
        for path in (here / "box").rglob("*.txt")
    }
    assert found == {"t/a.txt": "one", "a.txt": "one", "t (1)/a.txt": "two", "a (1).txt": "two"}
    # the server may not have let go of bob yet
    box = receiving("-o", "box", "--nick", "eve", "--count", "2", "--force", "--json")
    assert do("send", "t", "t/a.txt", "--to", "eve", "--nick", "anna").code == 0 and box.wait() == 0
    assert (
        (here / "box" / "t" / "a.txt").read_text() == (here / "box" / "a.txt").read_text() == "two"
    )
    told = [json.loads(text) for text in box.out.splitlines()]
    assert sorted(each["name"] for each in told) == ["box/a.txt", "box/t/a.txt"] and all(
        "(anna)" in each["from"] for each in told
    )


def test_unless_all_got_all_it_says_who_did_not_and_exits_25(do, here, receiving):
    (here / "x").write_text("x")
    (here / ".hidden").write_text("h")
    (here / "folder").mkdir()
    (here / "folder" / "x").touch()
    unknown = do("send", "folder", "--to", "nobody")
    assert unknown.code == 25 and unknown.err.count("error:") == 1, (
        "what is in a folder that nobody has is not tried"
    )
    nobody = do("send", "x", "--all")
    assert nobody.code == 25 and "nobody is receiving" in nobody.err
    receiving("-o", "box", "--nick", "bob")
    some = do("send", "x", ".hidden", "--to", "bob", "--to", "nobody")
    assert (
        some.code == 25
        and "nobody did not get x (no-such-client)" in some.err
        and "bob) did not get .hidden (hidden-name)" in some.err
    )
    assert "receive --hidden" in some.err and "server.py" not in some.err
    assert (
        re.search(r"^127.* \(bob\): verified 1 of 2, 1 byte$", some.err, re.M)
        and "\nnobody: verified 0 of 2, 0 bytes\n" in some.err
    )
    assert os.listdir(here / "box") == ["x"]
    gone = do("send", "nosuch", "x", "--to", "bob", "--json", "--quiet")
    assert gone.code == 26 and json.loads(gone.out.splitlines()[-1])["verified"] == 1
    for words in (
        ("x", "x", "--as", "y", "--to", "bob"),
        ("-", "--to", "bob"),
        ("x",),
        ("x", "--to", ""),
    ):
        assert do("send", *words).code == 2


@pytest.mark.parametrize("answer", ["err put x reason=", "err put x", "ok put x verified=yes"])
def test_a_receiver_that_gives_no_reason_or_no_digest_has_not_got_it_either(do, here, peer, answer):
    (here / "x").write_text("x")
    bob = peer("receive nick=bob")
    sending = meanwhile(do, "send", "x", "--to", "bob")
    assert bob.line().startswith("put x ") and bob.body()[0] == b"x"
    bob.tell(answer)
    sent = sending.result()
    assert (
        sent.code == 25 and "(bob) did not get x" in sent.err and "verified 0 of 1" in sent.err
    ), sent


def test_json_counts_what_one_receiver_of_one_file_verified(do, here, receiving):
    (here / "x").write_bytes(HELLO)
    box = receiving("-o", "box", "--nick", "bob", "--count", "1")
    sent = do("send", "x", "--to", "bob", "--json")
    (bob,) = (told for told in map(json.loads, sent.out.splitlines()) if "receiver" in told)
    assert repr((bob["sent"], bob["verified"], bob["bytes"])) == "(1, 1, 6)", "1 is not true"
    assert box.wait() == 0, box.err


def test_when_nobody_is_left_a_tree_is_given_up_and_told_of_once(do, here, receiving):
    (here / "t" / "empty").mkdir(parents=True)
    for number in range(300):
        (here / "t" / f"{number}").write_text("x")
    receiving("-o", "box", "--nick", "bob", "--count", "1")
    found = do("send", "t", "--to", "bob,")
    assert (
        found.code == 25
        and found.err.count("error:") == 1
        and "\nnobody is left who receives: the rest is not sent\n" in found.err
    ), found.err
    assert re.search(
        r"^127\.\S+ \(bob\): verified 2 of [23], 1 byte$", found.err, re.M
    ) and os.listdir(here / "box" / "t") == ["0"]


def test_send_deletes_nothing_on_the_server_and_by_dry_run_sends_nothing(
    do, here, receiving, tmp_path
):
    for folder in (here / "t", tmp_path / "box" / "t"):
        folder.mkdir(parents=True)
    (here / "t/x").write_text("xyz")
    (tmp_path / "box/t/only there").touch()
    receiving("-o", "inbox", "--nick", "bob")
    assert "--delete" not in do("send", "-h").out.decode()
    refused = do("send", "t", "--to", "bob", "--delete", "--force")
    assert refused.code == 2 and (tmp_path / "box/t/only there").exists(), refused
    plan = do("send", "t", "--to", "bob", "--dry-run")
    assert plan.code == 0 and plan.out == b"new t/x\n", plan
    assert plan.err == "send --dry-run: would send 1 file, 3 bytes\n", plan
    assert os.listdir(here / "inbox") == []


def test_who_is_absent_is_told_of_once_and_the_others_get_the_whole_tree(
    do, here, receiving, server
):
    (here / "t").mkdir()
    for number in range(600):
        (here / "t" / f"{number}").write_text("x")
    receiving("-o", "box", "--nick", "bob")
    found = do("send", "t", "--to", "bob", "--to", "Carl")
    assert found.code == 25 and found.err.count("error:") == 1, found.err
    assert re.search(r"\(bob\): verified 601 of 601, 600 bytes\n", found.err), found.err
    assert "\nCarl: verified 0 of 601, 0 bytes\n" in found.err
    assert len(os.listdir(here / "box" / "t")) == 600
    assert "no-such-client" not in server.err, "its sender is told, and not the log for each file"


def test_a_receiver_that_left_and_came_back_is_offered_the_later_files(do, here, peer):
    (here / "t").mkdir()
    for number in range(20):
        (here / "t" / f"{number}").write_text("x")
    bob, eve, watcher = peer("receive nick=bob"), peer("receive nick=eve"), peer()
    sending = meanwhile(do, "send", "t", "--all")
    assert bob.answer().startswith("mkdir t ") and eve.answer().startswith("mkdir t ")
    bob.close()
    until(lambda: "nick=bob" not in " ".join(watcher.lines("who")), "bob to be gone")
    bob = peer("receive nick=bob")
    eve.tell("ok mkdir t")
    taking = meanwhile(lambda: [eve.accept()[0] for _ in range(20)])
    names = [bob.accept()[0] for _ in range(20)]
    assert taking.result() == names and len(set(names)) == 20
    sent = sending.result()
    assert sent.code == 25 and sent.err.count("error:") == 1, sent
    assert "(eve): verified 21 of 21, 20 bytes" in sent.err, sent
    assert "(bob): verified 0 of 1, 0 bytes" in sent.err, sent
    assert "(bob): verified 20 of 20, 20 bytes" in sent.err, sent


def test_who_names_and_marks(do, server, receiving):
    _, threads = server.at_rest()
    receiving("--nick", "bob")
    told = do("who", "--nick", "bob").out.decode()
    assert re.fullmatch(
        r"127\.0\.0\.1:\d+  bob  receive\n127\.0\.0\.1:\d+  bob2  who  \(you\)\n", told
    ), told
    until(lambda: server.status("Threads") == threads + 1, "the server to let go of it")
    assert [json.loads(text)["you"] for text in do("who", "--json").out.splitlines()] == [
        False,
        True,
    ]
    bad = do("list", "--nick", "a b")
    assert bad.code == 9 and "(bad-nick)" in bad.err


def test_the_words_of_the_labs_in_the_shell(do, here, receiving):
    (here / "x").write_text("x")
    box = receiving("-o", "box", "--count", "4")
    place = re.search(r"--to (\S+):(\d+)", box.err)
    typed = f"upload {place[1]} {place[2]} x\nupload\nx\n{place[1]} {place[2]}\nupload\nx\n{place[1]}:{place[2]}\nsend x --all\nupload\nx\n\nlist\nwho\nstop\n"
    told = do(input=typed.encode())
    assert told.code == 0 and told.out.decode().startswith("x\n127.0.0.1:"), told
    assert box.wait() == 0 and sorted(os.listdir(here / "box")) == ["x", "x (1)", "x (2)", "x (3)"]


def test_a_receiver_comes_back_after_a_lost_connection(do, here, receiving, server, proxy, peer):
    (here / "x").write_text("x")
    box = receiving(
        "-o",
        "box",
        "--nick",
        "bob",
        "--count",
        "2",
        port=proxy(server.port, cut_at=400, times=1).port,
    )
    assert do("send", "x", "--to", "bob").code == 0
    sender = peer()
    sender.tell("send bob " + "y" * 200 + " type=dir")  # this goes over the 400 bytes
    assert "reason=gone" in sender.answer()
    # bob2, if the server has not let go of bob yet
    nick = box.wait_for(r"(?s)waiting for files.*waiting for files[^\n]* --to (\S+)\n")[1]
    assert do("send", "x", "--to", nick).code == 0 and box.wait() == 0
    assert box.out.splitlines() == ["box/x", "box/x (1)"]


def test_a_receiver_comes_back_after_each_lost_connection_on_which_something_came(
    listeners, run, here
):
    def talk(conn):
        conn.sendall(
            b"sixsockets 1 max-line=32768 auth=none you=10.0.0.9:9\nok receive you=10.0.0.9:9\n"
            + puts("x")
        )
        with conn.makefile("rb") as file:
            next(line for line in file if line.startswith(b"ok put"))

    listeners.append(Listener(talk))
    found = run(
        "client.py",
        "--port",
        listeners[-1].port,
        "--retries",
        "1",
        "receive",
        "--count",
        "3",
        cwd=here,
        timeout=DEADLINE,
    )
    assert found.code == 0 and sorted(os.listdir(here)) == ["x", "x (1)", "x (2)"], found


def test_a_receiver_that_has_all_ends_also_where_its_goodbye_finds_nobody(listeners, here):
    def talk(conn):
        conn.sendall(
            b"sixsockets 1 max-line=32768 auth=none you=10.0.0.9:9\nok receive you=10.0.0.9:9\n"
            + puts("x")
        )
        with conn.makefile("rb") as file:
            next((line for line in file if line.startswith(b"ok put")), None)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        conn.close()  # a reset
        gone.set()

    gone = threading.Event()
    listeners.append(Listener(talk))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n" * 65536)
    os.set_blocking(writer, True)  # full: what has come is told when there is room
    box = subprocess.Popen(
        [
            sys.executable,
            ROOT / "client.py",
            "--port",
            str(listeners[-1].port),
            "receive",
            "--count",
            "1",
        ],
        cwd=here,
        stdout=writer,
    )
    os.close(writer)
    try:
        assert gone.wait(DEADLINE)
        while b"x" not in os.read(reader, 65536):
            pass
        assert box.wait(DEADLINE) == 0 and os.listdir(here) == ["x"]
    finally:
        os.close(reader)
        box.kill()


def test_a_sender_that_waits_for_its_turn_longer_than_its_timeout_is_not_cut(server, peer, here):
    (here / "x").write_bytes(BIG)
    first, bob = peer(), peer("receive nick=bob")
    first.tell(b"send bob y size=1\ndata 1\n")
    assert bob.line().startswith("put y")
    second = Process(
        ROOT / "client.py",
        "--port",
        server.port,
        "send",
        "x",
        "--to",
        "bob",
        "--timeout",
        "4",
        "--retries",
        "0",
        cwd=here,
    )
    second.wait_for("^waiting: 1 receiver, not all of them free yet$")
    for _ in range(5):
        assert bob.line() == "note y", "a second each"
    first.tell(b"." + b"end sha256=%b\n" % sha(b".").encode())
    assert bob.body()[0] == b"."
    bob.tell(f"ok put y size=1 sha256={sha(b'.')} verified=yes")
    assert bob.accept() == ("x", BIG) and second.wait() == 0, second.err


def test_a_sender_whose_server_is_gone_says_so_and_promises_nothing(server, peer, here):
    (here / "x").write_bytes(BIG)
    bob = peer("receive nick=bob")
    sending = Process(
        ROOT / "client.py", "--port", server.port, "--retries", "0", "send", "x", "--to", "bob",
        cwd=here,
    )  # fmt: skip
    assert bob.line().startswith("put x")
    server.kill()
    assert (
        sending.wait() == 18
        and "have already comes to them twice" in sending.err
        and "kept" not in sending.err
    )


def test_where_there_is_no_poll_select_waits_for_bell_and_connection(here, tmp_path):
    (here / "x").write_bytes(BIG)
    runner = tmp_path / "run.py"
    runner.write_text(f"""
import runpy, selectors, sys
del selectors.PollSelector
path = {str(ROOT)!r} + "/" + sys.argv.pop(1)
sys.argv[0] = path
runpy.run_path(path, run_name="__main__")
""")
    server = Server(str(runner), "server.py", tmp_path / "box")
    common = "client.py", "--port", server.port
    bob = Process(str(runner), *common, "receive", "--count", "1", "-o", "got/", cwd=here)
    name = bob.wait_for(r"--to\s+(\S+)")[1]
    anna = Process(str(runner), *common, "send", "x", "--to", name, cwd=here)
    assert (anna.wait(), bob.wait()) == (0, 0), (anna.err, bob.err)
    assert (here / "got/x").read_bytes() == BIG
    server.stop()


KILLED = """
import os, runpy, signal, socket
left, true = [{turn}], socket.socket.{call}
def deadly(*args):
    result = true(*args)
    left[0] -= 1
    if not left[0]:
        open({mark!r}, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return result
socket.socket.{call} = deadly
runpy.run_path({path!r}, run_name="__main__")
"""


@pytest.mark.parametrize("call", ["send", "recv_into"])
@pytest.mark.long(6)
def test_a_server_killed_at_any_step_loses_no_file_in_silence(here, tmp_path, full, call):
    """Who has no whole file is told so, and what has the file's name is the whole file."""
    (here / "x").write_bytes(BIG)
    for turn in range(1, 60) if full else (9,):
        runner, killed = tmp_path / "run.py", tmp_path / f"killed{turn}"
        path = str(ROOT / "server.py")
        runner.write_text(KILLED.format(turn=turn, call=call, path=path, mark=str(killed)))
        server, got = Server(str(runner), tmp_path / "box"), here / f"{call}{turn}"
        common = "--port", server.port, "--retries", "0"
        words = "receive", "--count", "1", "--nick", "bob", "-o", f"{got.name}/"
        bob = Process(ROOT / "client.py", *common, *words, cwd=here)
        until(lambda bob=bob: "waiting" in bob.err or bob.process.poll() is not None, "bob")
        anna = Process(ROOT / "client.py", *common, "send", "x", "--to", "bob", cwd=here)
        codes = anna.wait(), bob.wait()
        has = (got / "x").exists()
        assert not has or (got / "x").read_bytes() == BIG
        assert not [*got.glob(".six-*")], "of what was sent to it nothing can be resumed"
        assert has or (codes[0] and codes[1]), (turn, anna.err, bob.err)
        assert all(not code or "error: " in each.err for code, each in zip(codes, (anna, bob)))
        if not killed.exists():  # so many steps a transfer does not have
            assert has and codes == (0, 0)
            server.stop()
            break
        assert server.wait() == -signal.SIGKILL, server.err


def test_a_send_goes_on_with_its_receivers_when_the_server_was_started_again(spawn, here, proxy):
    def start(*words, port=None):
        return Process(ROOT / "client.py", "--port", port or server.port, *words, cwd=here)

    (here / "t").mkdir()
    (here / "t/0").write_bytes(BIG)
    (here / "t/1").write_text("one")
    server = spawn("server.py", here, port=free_port())
    way = proxy(server.port, hold_at=1 << 20, times=1)  # so that it cannot end before
    boxes = [
        start("--nick", nick, "receive", "-o", nick, port=port)
        for nick, port in (("bob", server.port), ("eve", way.port))
    ]
    for box in boxes:
        box.wait_for("waiting for files")
    sending = start("send", "t", "--to", "bob", "--to", "eve")
    until(lambda: list(here.glob("bob/t/.six*")), "the part")
    server.kill()
    way.go.set()
    spawn("server.py", here, port=server.port)
    assert sending.wait() == 0 and "attempt 1 of 16" in sending.err, sending.err
    assert "not back yet" in sending.err or "attempt 2" not in sending.err, sending.err
    for nick, box in zip(("bob", "eve"), boxes):
        assert {path.name: path.read_bytes() for path in (here / nick / "t").iterdir()} == {
            "0": BIG,
            "1": b"one",
        }, nick
        box.kill()


def test_ctrl_c_or_a_signal_ends_a_receiver_and_leaves_no_part(peer, here, receiving):
    boxes = {
        number: receiving("-o", "box", "--nick", f"bob{number:d}")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    sender = peer()
    sender.tell(
        f"send {','.join(f'bob{number:d}' for number in boxes)} x size=100".encode()
        + b"\ndata 10\nabcdefghij"
    )
    until(
        lambda: [path.stat().st_size for path in (here / "box").iterdir()] == [10] * 3, "the parts"
    )
    for number, box in boxes.items():
        box.process.send_signal(number)
        assert box.wait() == 130, number
        assert sender.answer().endswith(f"reason=gone nick=bob{number:d}")
    assert os.listdir(here / "box") == []


def test_two_signals_at_once_end_a_receiver_as_one_does(peer, here, receiving):
    box, sender = receiving("-o", "box", "--nick", "bob"), peer()
    sender.tell(b"send bob x size=100\ndata 10\nabcdefghij")
    until(lambda: [path.stat().st_size for path in (here / "box").iterdir()] == [10], "the part")
    for number in signal.SIGSTOP, signal.SIGTERM, signal.SIGHUP, signal.SIGCONT:
        box.process.send_signal(number)
    assert box.wait() == 130 and "Traceback" not in box.err and os.listdir(here / "box") == [], (
        box.err
    )


def test_a_receiver_tells_where_and_to_whom_others_send(server, here):
    flags = "--port", server.port, "--nick", "anna"
    box = Process(ROOT / "client.py", *flags, "receive", cwd=here)
    box.wait_for(f"python3 client.py --port {server.port} send PATH --to anna")
    box.kill()


def test_a_server_that_answers_what_was_not_asked_or_nothing_at_all_ends_the_command(
    listeners, run, here
):
    def talk(conn):
        conn.sendall(b"sixsockets 1 max-line=32768 auth=none you=10.0.0.9:9\n")
        file = conn.makefile("rb")
        # an empty line comes from a client that had to wait
        asked = next(line for line in file if line != b"\n")
        conn.sendall(
            {
                b"who\n": b"got x ok put y\nok who count=0\n",
                b"chat\n": b"ok chat you=10.0.0.9:9 count=1\n",
            }[asked]
        )
        file.read()

    listeners.append(Listener(talk))
    (here / "x").write_text("x")
    for words, code, said in (
        (("send", "x", "--all"), 56, "broke the protocol"),
        (("chat", "--timeout", "2"), 28, "silent for 2 s"),
    ):
        found = run(
            "client.py",
            "--port",
            listeners[-1].port,
            *words,
            cwd=here,
            input=b"hello\n",
            timeout=DEADLINE,
        )
        assert found.code == code and said in found.err, found.err


def puts(name, data=HELLO, **keys):
    return (
        f"put {name}{''.join(f' {key}={value}' for key, value in keys.items())} from=10.0.0.1:1\n".encode()
        + body(data)
    )


HOSTILE = [
    "..",
    "../x",
    "/etc/x",
    "a/../../x",
    "%2E%2E/x",
    "a//b",
    ".",
    ".ssh/authorized_keys",
    "nul%00",
    ".six-" + "0" * 32 + ".part",
    "link/x",
]


def test_a_receiver_writes_nothing_outside_of_its_folder_and_nothing_that_is_not_whole(
    listeners, here, receiving
):
    """A server that says whatever it likes."""
    answers = []

    def talk(conn):
        file = conn.makefile("rb")
        conn.sendall(b"sixsockets 1 max-line=32768 auth=none you=10.0.0.9:9\n")
        assert next(line for line in file if line != b"\n") == b"receive\n"
        conn.sendall(b"ok receive you=10.0.0.9:9\n")
        for told in (
            *(puts(name) for name in HOSTILE),
            *(f"mkdir {name} from=x\n".encode() for name in HOSTILE),
            puts("short", size=7),
            puts("long", size=5),
            b"put wrong\n" + body(HELLO, end=False) + b"end sha256=" + b"0" * 64 + b"\n",
            b"put cut\n" + body(HELLO, end=False) + b"abort\n",
            b"put folder\n" + body(HELLO),
            b"note x\nput good\n" + b"note good\n" + body(HELLO),
        ):
            conn.sendall(told)
            answers.append(
                next(line for line in file if not line.startswith(b"note ")).decode().strip()
            )
        conn.sendall(b"put lost size=100000000\ndata 100000000\n")
        while not select.select([conn], [], [], 0)[0]:  # it says ten times a second how far it is
            conn.sendall(b"abc")
        assert file.readline().startswith(b"note lost received=")

    (here / "box" / "folder").mkdir(parents=True)
    (here / "outside").mkdir()
    (here / "box" / "link").symlink_to(here / "outside")
    listeners.append(Listener(talk))
    box = receiving("-o", "box", "--retries", "0", port=listeners[-1].port)
    assert box.wait() == 56, box.err
    assert re.search(r"connection lost at [1-9][\d,]* of 100,000,000 bytes of lost", box.err)
    assert all(answer.startswith("err ") for answer in answers[:-2]), answers
    assert [re.sub(".*reason=", "", answer) for answer in answers[-6:-2]] == [
        "incomplete",
        "too-long",
        "wrong-digest",
        "aborted",
    ]
    assert answers[
        -2
    ] == f"ok put folder size=6 sha256={sha(HELLO)} verified=yes as=folder%20(1)" and answers[
        -1
    ].startswith("ok put good")
    assert sorted(os.listdir(here / "box")) == ["folder", "folder (1)", "good", "link"]
    assert (
        os.listdir(here / "outside") == []
        and os.listdir(here / "box" / "folder") == []
        and sorted(os.listdir(here)) == ["box", "outside"]
    )
    assert box.out == "box/folder (1)\nbox/good\n"


def test_strangers_make_a_receiver_forget_no_name_of_those_it_takes_from(canned, run, here):
    """A folder of that name is there already, so that of the sender has another one here."""
    known, stranger = b" from=10.0.0.1:1 nick=anna\n", b" from=10.0.0.2:1 nick=eve\n"
    empty = b"end\n"
    server = canned(
        b"sixsockets 1 auth=none you=10.0.0.9:9\nok receive you=10.0.0.9:9\nmkdir photos%b" % known
        + b"".join(b"put x%d%b%b" % (number, stranger, empty) for number in range(script.SENDERS))
        + b"put photos/b%b%b" % (known, empty)
    )
    (here / "photos").mkdir()
    got = run(
        "client.py", "--port", server.port, "receive", "--from", "anna", "--count", "1", cwd=here
    )
    assert got.err.count("(not-wanted)") == script.SENDERS, got
    assert sorted(map(str, here.rglob("*"))) == [
        str(here / name) for name in ("photos", "photos (1)", "photos (1)/b")
    ]


def test_a_receiver_without_retries_connects_once_even_after_it_got_a_file(canned, run, here):
    for place, words in enumerate((["--retries", "0", "receive"], ["receive", "--retries", "0"])):
        server = canned(
            b"sixsockets 1 auth=none you=10.0.0.9:9\nok receive you=10.0.0.9:9\n"
            + puts(f"f{place}")
        )
        got = run("client.py", "--port", server.port, *words, cwd=here)
        assert got.code == 56 and "attempt" not in got.err and len(server.read) == 1, got
        assert got.out == b"f%d\n" % place and (here / f"f{place}").read_bytes() == HELLO


def test_what_a_receiver_hears_instead_of_a_file_moves_no_terminal(canned, run, here):
    told = run(
        "client.py",
        "--port",
        canned(
            b"sixsockets 1 auth=none you=10.0.0.9:9\nok receive you=10.0.0.9:9\n\xc2\x9b31m x\n"
        ).port,
        "receive",
        cwd=here,
    )
    assert (
        told.code == 56 and "broke the protocol (\\x9b31m where a file was awaited)" in told.err
    ), told


def test_a_receiver_that_cannot_write_says_so_and_goes_on(do, here, receiving):
    (here / "n").write_text("n")
    (here / "large").write_bytes(BIG[:200000])
    blocked = do("receive", "-o", "n")
    assert blocked.code == 23 and "cannot write to n" in blocked.err
    box = receiving(
        "-o",
        "box",
        "--nick",
        "bob",
        "--count",
        "1",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000)),
    )
    full = do("send", "large", "n", "--to", "bob")
    assert (
        full.code == 25
        and "did not get large (too-large)" in full.err
        and "--max-size" not in full.err
        and "verified 1 of 2" in full.err
    )
    assert (
        box.wait() == 0
        and "127.0.0.1" in box.err
        and "did not get large (" in box.err
        and os.listdir(here / "box") == ["n"]
    )


# --- chat ---
@OVER_TLS
def test_all_others_hear_what_is_said_and_who_comes_and_goes(server, peer):
    anna, nameless = peer("chat anna"), peer("chat")
    assert anna.line() == f"joined {nameless.name} at={nameless.name}"
    assert anna.ask("say hello  all %20 ü") == "ok say"
    assert nameless.line() == "said from=anna hello  all %20 ü"
    bob = peer()
    assert bob.lines("chat bob") == [
        "said from=anna hello  all %20 ü",
        f"ok chat bob nick=bob you={bob.name} count=3",
    ], "what was said before"
    assert (
        nameless.ask("say from=bob said from=bob x").startswith(f"joined bob at={bob.name}")
        and nameless.line() == "ok say"
    )
    assert bob.line() == f"said from={nameless.name} from=bob said from=bob x", (
        "the first word is the server's"
    )
    nameless.close()
    assert bob.line() == f"left {nameless.name}"
    assert (
        bob.lines("stat none")[0].startswith("err stat")
        and bob.ask("say x") == "err say reason=not-in-chat"
    ), "another request leaves the chat"
    assert [anna.line() for _ in range(4)][1:] == [
        f"said from={nameless.name} from=bob said from=bob x",
        f"left {nameless.name}",
        "left bob",
    ]
    assert re.search(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d 127\.0\.0\.1:\d+ chat: <anna> hello  all %20 ü$",
        server.stop(),
        re.M,
    )


def test_the_last_fifty_lines_are_told_to_who_joins(peer):
    speakers = [peer("chat"), peer("chat")]
    for number in range(60):
        speaker = speakers[number % 2]
        speaker.tell(f"say {number}")
        until(lambda speaker=speaker: speaker.answer() == "ok say", "it to be said")
    heard = peer().lines("chat")
    assert [text.rsplit(" ", 1)[1] for text in heard[:-1]] == [
        str(number) for number in range(10, 60)
    ]


def test_who_takes_another_name_in_the_chat_stays_in_it_and_hears_nothing_twice(peer):
    anna, bob = peer("chat anna"), peer("chat bob")
    assert anna.line().startswith("joined bob ")
    assert anna.ask("say hello") == "ok say" and bob.line() == "said from=anna hello"
    assert bob.ask("chat Anna").startswith("ok chat Anna nick=Anna2 ")
    assert anna.line() == f"joined Anna2 at={bob.name} was=bob"
    assert anna.ask("say again") == "ok say" and bob.line() == "said from=anna again"
    assert bob.ask("list").startswith("ok list") and anna.line() == "left Anna2"
    assert len(bob.lines("chat")) == 3, "who has left hears what was said before"


@pytest.mark.parametrize(
    "text", [b"a\rsaid from=bob x", b"a\x1b[2Jb", b"a\0b", b"a\tb", b"x" * 40000]
)
def test_a_line_that_could_be_two_or_move_a_cursor_ends_the_connection(peer, text):
    anna, bob = peer("chat anna"), peer("chat bob")
    anna.line()
    bob.tell(b"say " + text + b"\n")
    assert (
        bob.line() in ("err - reason=bad-line", "err - reason=line-too-long")
        and anna.line() == "left bob"
    )


def test_what_is_said_cannot_forge_a_line_of_the_log(server, peer):
    anna, bob = peer("chat anna"), peer("chat bob")
    for text in (
        "\x9b31m \u202e \u2028 2026-01-01 00:00:00 10.0.0.1:1 chat: <eve> I",
        "x" * 4001,
        "x" * 4000,
    ):
        bob.tell(f"say {text}")
        assert bob.line() == (
            "err say reason=too-long limit=4000" if len(text) == 4001 else "ok say"
        )
    bob.tell(b"say \xff\xfe\n")
    assert bob.line() == "ok say"
    assert [anna.line() for _ in range(4)][-1] == "said from=bob \\xff\\xfe", (
        "bytes come through as they are"
    )
    log = server.stop()
    assert (
        r"<bob> \x9b31m \u202e \u2028 2026-01-01" in log
        and r"<bob> \xff\xfe" in log
        and all(char.isprintable() or char == "\n" for char in log)
    )


def test_who_floods_is_told_so_and_heard_within_limits(server, peer):
    anna, bob = peer("chat anna"), peer("chat bob")
    anna.line()
    bob.tell(b"say flood\n" * 1000 + b"ping\n")
    answers = [bob.line() for _ in range(1001)]
    said = answers.count("ok say")
    assert (
        39 <= said < 400
        and answers.count("err say reason=too-fast limit=20/s") == 1000 - said
        and answers[-1] == "ok ping"
    )
    assert [anna.line() for _ in range(said)] == ["said from=bob flood"] * said
    assert bob.ask("who") and anna.lines("who")[-1].startswith("ok who"), "both go on"
    assert server.stop().count("flood") == said


def test_everybody_hears_every_line(peer, full):
    crowd = [peer("chat") for _ in range(450 if full else 30)]
    for number, speaker in enumerate(crowd[::3]):
        speaker.tell(f"say {number}")
    count = len(crowd[::3])
    for number, listener in enumerate(crowd):
        heard = [
            int(line.rsplit(" ", 1)[1]) for line in iter_until(listener, count - (number % 3 == 0))
        ]
        assert sorted([*heard, *[number // 3] * (number % 3 == 0)]) == list(range(count))


def iter_until(listener, count):
    """The next so many lines that were said."""
    while count:
        if (line := listener.line()).startswith("said"):
            count -= 1
            yield line


def test_coming_and_going_is_limited_too(peer):
    anna, bob = peer("chat anna"), peer()
    bob.tell(b"chat bob\nping nick=bob\n" * 1000 + b"bye\n")
    answers = list(iter(bob.line, ""))
    joined = sum(answer.startswith("ok chat") for answer in answers)
    assert (
        39 <= joined < 400
        and answers.count("err chat bob reason=too-fast limit=20/s") == 1000 - joined
    )
    heard = [anna.line() for _ in range(2 * joined)]
    assert set(heard) == {f"joined bob at={bob.name}", "left bob"} and anna.ask("ping") == "ok ping"


def test_who_waits_costs_nothing(server, peer):
    """Also who was told something while it was typing, and hears it afterwards."""
    anna, bob = peer("chat anna"), peer("chat bob")
    anna.tell(b"say")  # a line that is begun
    assert [bob.ask("say now") for _ in range(3)] == ["ok say"] * 3
    anna.tell(b" typed\n")
    assert sorted(anna.line() for _ in range(5)) == [
        f"joined bob at={bob.name}",
        "ok say",
        *["said from=bob now"] * 3,
    ]
    assert bob.line() == "said from=anna typed"
    sender, eve = peer(), peer("receive nick=eve")
    before = server.cpu()
    sender.tell("send eve x")
    assert eve.line().startswith("put x") and eve.line() == "note x", (
        "the server's sign of life, after a second"
    )
    assert server.cpu() - before < 0.15


def test_a_server_that_stops_lets_what_is_under_way_end(server, peer):
    sender, bob, eve, waiting = peer(), peer("receive nick=bob"), peer("receive nick=eve"), peer()
    sender.tell(b"send bob x size=6\ndata 6\nhel")
    assert bob.line().startswith("put x")
    waiting.tell("send bob y")
    assert waiting.line() == "note y waiting=1"
    server.process.send_signal(signal.SIGINT)
    assert eve.line() == "", "who waits is let go at once"
    sender.tell(b"lo\nend sha256=%b\n" % sha(HELLO).encode())
    assert bob.body()[0] == HELLO
    bob.tell(f"ok put x size=6 sha256={sha(HELLO)} verified=yes")
    assert (
        sender.answer().startswith("got") and sender.answer() == "ok send x receivers=1 verified=1"
    )
    assert server.process.wait(DEADLINE) == 0
    server.wait_for("stopped: 4 clients")


def test_a_chatter_that_reads_nothing_is_let_go_also_if_it_sends_empty_lines(start, peer):
    """Those have no answer that could wait for it; what others say meanwhile needs memory."""
    server = start("--timeout", "1")
    deaf, text = peer("chat deaf", to=server, small=True), "x" * 3900
    for _ in range(25):  # each may say forty at once: more than the way to it holds
        speaker = peer("chat", to=server)
        speaker.tell(f"say {text}\n".encode() * 40)
        for _ in range(40):
            while not speaker.line().startswith(("ok say", "err say")):
                pass
        speaker.tell("bye")
        while speaker.line():
            pass
        with contextlib.suppress(ConnectionError):
            deaf.tell("")
    server.wait_for(f"{deaf.name} connection lost: silent for 1 s")


@OVER_TLS
def test_a_reader_that_is_stuck_loses_its_own_lines_and_is_told_how_many(server, peer, full):
    if server.tls and not full:
        pytest.skip("a second and a half of encryption: --full runs it")
    stuck, reader, text = peer("chat stuck", small=True), peer("chat reader"), "x" * 3900
    hearing = meanwhile(
        lambda: [line for line in iter(reader.line, "") if line.startswith("said")][:1]
    )
    spoken = 0
    for _ in range(60):  # each may say forty at once
        speaker = peer("chat")
        speaker.tell(f"say {text}\n".encode() * 40)
        answered = 0
        while answered < 40:
            said = speaker.line()
            answered += " say" in said
            spoken += said == "ok say"
        speaker.tell("bye")
        while speaker.line():  # until it is gone: the next one leaves after it
            pass
    heard = [stuck.line()]
    assert heard[0].startswith("joined reader")
    while heard[-1] != f"left {speaker.name}":  # the newest lines are kept
        heard.append(stuck.line())
    lost = sum(int(line.split("lost=")[1]) for line in heard if line.startswith("note chat"))
    whole = [line for line in heard if line.startswith("said")]
    events = sum(line.startswith(("said", "joined", "left")) for line in heard)
    assert {len(line.partition(" x")[2]) + 1 for line in whole} == {3900}, "no line is torn"
    assert lost > 0 and events + lost == 1 + spoken + 120, "what is not heard is counted"
    assert stuck.ask("ping") == "ok ping"
    reader.tell("bye")
    assert hearing.result()


def test_on_a_terminal_the_prompt_comes_back_with_what_was_typed_so_far(server, peer, here):
    anna = peer("chat anna")
    bob = Terminal("--port", server.port, "chat", "--nick", "bob", cwd=here)
    bob.wait_for("> ")
    assert anna.line().startswith("joined bob")
    bob.type("half a l")
    bob.wait_for("half a l")
    assert anna.ask("say \x9b31m hi") == "ok say"
    bob.wait_for("anna: \\x9b31m hi")
    bob.wait_for("\n> half a l")
    bob.type("ine\r")
    assert anna.line() == "said from=bob half a line"
    bob.type("/who\r")
    bob.wait_for(f"* {anna.name}  anna  chat")
    bob.type("/quit\r")
    assert bob.end() == 0 and anna.line() == "left bob"


def test_on_a_terminal_without_readline_it_is_plain(server, peer, here):
    anna = peer("chat anna")
    bob = Terminal("--port", server.port, "chat", "--nick", "bob", cwd=here, without="readline")
    bob.wait_for("> ")
    assert anna.line().startswith("joined bob")
    bob.type("half a l")
    bob.wait_for("half a l")
    assert anna.ask("say hi") == "ok say"
    bob.wait_for("anna: hi\r\n> ")
    bob.type("ine\r/quit\r")
    assert (
        anna.line() == "said from=bob half a line" and anna.line() == "left bob" and bob.end() == 0
    )
    assert "\x1b" not in bob.text


def test_the_bar_shows_what_the_slowest_receiver_has(server, peer, here):
    (here / "x").write_bytes(BIG)
    bob, eve = peer("receive nick=bob"), peer("receive nick=eve")
    sending = Terminal("--port", server.port, "send", "x", "--to", "bob", "--to", "eve", cwd=here)
    taking = [meanwhile(lambda each=each: (each.answer(), each.body())) for each in (bob, eve)]
    assert [each.result()[1][0] == BIG for each in taking] == [True, True]
    for receiver, share in (bob, 3), (eve, 2):
        receiver.tell(f"note x received={len(BIG) // share}")
    sending.wait_for(" 33%  4.2 MB of 12.6 MB")
    for receiver in bob, eve:
        receiver.tell(f"ok put x size={len(BIG)} sha256={sha(BIG)} verified=yes")
    sending.wait_for("(eve): verified 1 of 1")
    assert sending.end() == 0


def test_on_a_terminal_a_chat_ends_with_the_server(server, peer, here):
    anna = peer("chat anna")
    bob = Terminal("--port", server.port, "chat", "--nick", "bob", "--retries", "0", cwd=here)
    bob.wait_for("> ")
    assert anna.line()
    server.stop()
    bob.wait_for("error: connection to 127.0.0.1")
    assert bob.end() == 56


@OVER_TLS
def test_from_a_pipe_it_says_what_comes_in_and_prints_what_it_hears(server, peer, do, run):
    anna = peer("chat anna")
    typed = b"hello\n//slash\ttab\n/who\n/huh\n\nbad \xff\n" + b"y" * 2500 + b"\n/quit\nnot this\n"
    done = do("chat", "--nick", "anna", input=typed)
    assert done.code == 0 and "you are anna2" in done.err
    heard = [anna.line() for _ in range(8)]
    assert heard[1:5] == [
        "said from=anna2 hello",
        "said from=anna2 /slash tab",
        "said from=anna2 bad \\xff",
        "said from=anna2 " + "y" * 1000,
    ]
    assert heard[7] == "left anna2" and heard[6].endswith(" " + "y" * 500)
    assert (
        f"* {anna.name}  anna  chat" in done.out.decode() and "* /who, /nick" in done.out.decode()
    )
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import client; client.PIPE_RATE = 1e9; sys.exit(client.main(sys.argv[1:]))"
    hasty = ["-c", code, *["--insecure"] * server.tls, "--port", server.port]
    # 13 seconds' worth
    done = run(*hasty, "chat", "--json", "--quiet", input=b"z" * 300 * script.CHAT_LINE + b"\n")
    assert (
        done.code == 9
        and json.loads(done.out.splitlines()[0])
        == {"from": "anna2", "text": "hello", "earlier": True}
        and b'"too-fast"' in done.out
    )


def test_a_chat_on_a_terminal_tells_the_time_what_was_before_and_what_was_meant(
    server, peer, tmp_path
):
    anna = peer("chat anna")
    assert anna.ask("say before") == "ok say"
    flags = ["--insecure"] * server.tls
    bob = Terminal(*flags, "--port", server.port, "--nick", "bob", "chat", cwd=tmp_path)
    bob.wait_for("earlier anna: before\r\n")
    bob.wait_for("you are bob")
    anna.tell("say now")
    bob.wait_for("anna: now")
    assert re.search(r"\d\d:\d\d anna: now\r\n", bob.text), bob.text
    for typed, heard in (
        ("/msg", "* /who, /nick NAME, /msg NICK TEXT, /quit; //TEXT says /TEXT\r\n"),
        ("/msg eve x", "* not said to eve (no-such-client)"),
        ("/quti", "did you mean /quit?"),
        ("/nick carl", "* you are carl"),
        ("/nick a:b", "* a nick is 1 to 32 letters"),
    ):
        bob.type(typed + "\n")
        bob.wait_for(heard)
    assert "did you mean /msg" not in bob.text and "  | " not in bob.text, "no row is broken"
    anna.tell("chat ann")
    bob.wait_for("* anna is now ann\r\n")
    assert bob.text.count("anna: now") == 1 and "bob: " not in bob.text, bob.text
    anna.tell("tell carl psst")
    bob.wait_for("ann to you alone: psst")
    bob.type("/msg ann hm?\n")
    until(lambda: "told from=carl hm?" in anna.line(), "the line for anna alone")
    bob.type("hi\n")
    until(lambda: "said from=carl hi" in anna.line(), "the line of carl")
    bob.type("/quit\n")
    assert bob.end() == 0


def test_what_is_said_together_with_the_answer_is_heard_at_once(listeners):
    def talk(conn):
        conn.sendall(b"sixsockets 1 max-line=32768 auth=none you=10.0.0.9:9\n")
        assert conn.recv(100).endswith(b"chat\n")
        conn.sendall(b"ok chat you=10.0.0.9:9 count=2\nsaid from=bob hello\n")
        conn.recv(100)

    listeners.append(Listener(talk))
    chat = Process(ROOT / "client.py", "--port", listeners[0].port, "chat", stdin=subprocess.PIPE)
    chat.wait_for("bob: hello", "out")
    chat.process.stdin.close()
    assert chat.wait() == 0, chat.err


def test_a_pipe_that_asks_who_is_there_is_answered_before_the_chat_ends(peer, do):
    bob = peer("receive nick=bob")
    # the server may not have let go of the one before yet
    for said, nick in (b"/who\n", "anna"), (b"hello\n/who\n", "berta"), (b"/who\n/quit\n", "carla"):
        done = do("chat", "--nick", nick, input=said)
        assert done.code == 0 and re.search(
            rf"^\* {bob.name}  bob  receive\n(?:\* .*\n)*\* \S+  {nick}  chat\n",
            done.out.decode(),
            re.MULTILINE,
        ), done


def test_a_pipe_into_a_chat_waits_for_the_limit_and_loses_no_line(peer, do):
    anna = peer("chat anna")
    lines = [f"line {number}" for number in range(42)]  # two more than a server takes at once
    done = do("chat", "--nick", "bob", input="\n".join(lines).encode())
    assert done.code == 0
    assert [anna.line() for _ in range(43)][1:] == [f"said from=bob {line}" for line in lines]


def test_a_pipe_into_a_chat_waits_for_a_server_that_does_not_answer(listeners, run):
    """What a link that stood still had gathered would come to the server all at once: more than it takes."""
    said = []

    def talk(conn):
        conn.sendall(b"sixsockets 1 auth=none you=10.0.0.9:9\nok chat you=10.0.0.9:9 count=1\n")
        said.extend(line for line in conn.makefile("rb") if line.startswith(b"say "))

    listeners.append(Listener(talk))
    done = run(
        "client.py",
        "--port",
        listeners[-1].port,
        "chat",
        "--timeout",
        "2",
        input=b"".join(b"line %d\n" % number for number in range(60)),
    )
    listeners[-1].threads[-1].join(DEADLINE)
    # one is counted late now and then
    assert done.code == 28 and len(said) in range(
        script.CHAT_UNANSWERED, script.CHAT_UNANSWERED + 4
    ), (done, said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_chat_is_stopped_soon_also_where_the_server_does_not_answer(listeners, number):
    said = threading.Event()

    def talk(conn):
        conn.sendall(b"sixsockets 1 auth=none you=10.0.0.9:9\nok chat you=10.0.0.9:9 count=1\n")
        for line in conn.makefile("rb"):
            if line == b"say hello\n":
                said.set()

    listeners.append(Listener(talk))
    chat = Process(
        ROOT / "client.py",
        "--port",
        listeners[-1].port,
        "--timeout",
        "1000",
        "chat",
        stdin=subprocess.PIPE,
    )
    chat.process.stdin.write(b"hello\n")
    chat.process.stdin.flush()
    assert said.wait(DEADLINE)
    chat.process.send_signal(number)
    assert chat.wait() == 130 and chat.err.endswith("\nstopped\n"), chat.err
    chat.process.stdin.close()


def test_in_the_shell_a_chat_comes_back_to_the_prompt(do, peer):
    anna = peer("chat anna")
    done = do("--nick", "bob", input=b"chat\nhi\n/quit\nwho\n")
    # bob2, if the server has not let go of bob yet
    assert done.code == 0 and re.search(rb"  bob2?  who  \(you\)", done.out), done
    assert [anna.line() for _ in range(3)][1] == "said from=bob hi"


def test_names_with_a_number_keep_their_ending():
    names = script.numbered_names("a.tar.gz")
    assert [next(names) for _ in range(3)] == ["a.tar.gz", "a.tar (1).gz", "a.tar (2).gz"]
    assert [name for _, name in zip(range(2), script.numbered_names("noend"))] == [
        "noend",
        "noend (1)",
    ]
