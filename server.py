#!/usr/bin/env python3
"""Share a folder over TCP: list, get, put, delete, rename, for any number of clients at once; hand files from client to client; chat.

    python3 server.py                         share ./files with this machine, on 127.0.0.1:9000
    python3 server.py /srv/box                share that folder; or a single file
    python3 server.py --host 0.0.0.0 --tls    with other machines too: prints the command, password included, for them
    python3 server.py --read-only             nothing can be changed
    python3 server.py --min-free 1G --max-size 500M --max-clients 20
    printf 'list\\n' | nc -N 127.0.0.1 9000    client.py is the client; netcat is enough

THE PROTOCOL, version 1. Every byte belongs to a line, or to the body bytes that a `data N` line announced.

    S: sixsockets 1 max-line=32768 auth=none you=127.0.0.1:51234
    C: put notes.txt size=6 mtime_ns=1700000000500000000
    C: data 6
    C: hello⏎                                        (6 bytes, the line feed is one of them)
    C: end sha256=5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03
    S: ok put notes.txt size=6 sha256=5891b5b5… verified=yes
    C: get notes.txt
    S: ok get notes.txt size=6 mtime_ns=1700000000500000000
    S: data 6
    S: hello⏎
    S: end sha256=5891b5b5…
    C: get no%20such.txt
    S: err get no%20such.txt reason=no-such-file
    C: list
    S: file notes.txt size=6 mtime_ns=1700000000500000000
    S: ok list count=1
    C: bye
    S: ok bye

Lines. A verb and words, single spaces between them, at the end LF (CRLF is taken too), at most 32768 bytes with it.
Verbs are case-insensitive. A word is positional, or key=value; unknown keys are ignored; of a key given twice the last
counts. An empty line means nothing. In names and values a space, `%`, `=` and every byte that is not part of a printable UTF-8 character are written
%XX; more may be. Numbers are decimal digits; mtime_ns (nanoseconds since 1970) may begin with a minus sign. Names are paths
below the shared folder with `/` between components, at most 4096 bytes and 64 components. Refused as bad-name: an empty component, `.`, `..`,
a leading `/`, NUL, `.six-<32 hex digits>.part`; on Windows also \\ : < > | ? * ", devices, a trailing dot or space. A name with
a component that starts with a dot is refused as hidden-name without --hidden. Links are not followed.

Requests and answers. The server speaks first: the greeting above. Requests may follow one another without waiting; answers
come in their order: `ok VERB NAME… key=value…` or `err VERB NAME… reason=CODE …` (words cut off after 900 characters).
Lines that begin with `note` may come before an answer: received=N and checked=N tell how far the server is, ten times a
second at most; with reason=CODE, in `list`, what was left out. Any request but help and say may have the key nick=NAME:
what others know this client by from now on, 1 to 32 letters, digits, `_`, `.` or `-`, else bad-nick; a number is added
where another client has that nick already, in whatever case.

    help                    help VERB WORDS -- TEXT, a line a verb, then ok help count=N
    list [FOLDER] [deep=yes]  file NAME size=N mtime_ns=N [exec=yes] and dir NAME mtime_ns=N lines, full names, then
                            ok list count=N; deep=yes lists all folders below too, each after the lines of the one it is in
    stat NAME [digest=yes] [size=N mtime_ns=N]
                            ok stat NAME type=file size= mtime_ns= [exec=yes] [sha256=], or type=dir mtime_ns=. With size
                            and mtime_ns the answer, err too, has part=N when an interrupted put of such a file left N bytes
    get NAME                ok get NAME size= mtime_ns= [exec=yes], then a body
    get NAME offset=N sha256=DIGEST
                            the rest, to a client that has N bytes with this SHA-256: ok get … offset=N, and a body that
                            starts there; when the digest is not that of the server's first N bytes: the whole, no offset
    put NAME [size=N] [mtime_ns=N] [exec=yes] [over=yes] [offset=N]
                            a body follows; then ok put NAME size= sha256= verified=yes, or =no when `end` had no digest.
                            over=yes replaces a file. offset=N only right after a `resume` that answered N
    resume NAME size=N mtime_ns=N
                            ok resume NAME offset=N sha256=DIGEST of what an interrupted put left (offset=0: nothing). A
                            client whose first N bytes have this digest may put the rest; another puts without offset
    delete NAME             a file or an empty folder
    rename OLD NEW [over=yes]  also into another folder
    mkdir NAME              a folder, and those above it that are missing
    auth nonce=HEX proof=HEX  ok auth proof=HEX: see Auth
    who                     client HOST:PORT [nick=NAME] mode=MODE [you=yes] lines, then ok who count=N. MODE is receive or chat for
                            one that waits in it, else the verb that is carried out, or idle
    receive                 ok receive you=HOST:PORT [nick=NAME], and the connection waits, below
    send TO NAME [size=N] [mtime_ns=N] [exec=yes] [type=dir]
                            a body follows, unless type=dir. TO is one or more HOST:PORT or nicks, with commas between. A line
                            got … for each receiver, then ok send NAME receivers=N verified=N, below
    chat [NICK]             up to 50 lines `said` from before, then ok chat [NICK] [nick=NAME] you=HOST:PORT count=N, below
    say TEXT                the rest of the line as it stands, at most 4000 bytes, to all others in the chat; ok say
    ping                    ok ping
    bye                     ok bye, and the server closes
    upload, download, and logout, stop, quit are other words for put, get and bye.

Bodies. `data N` and exactly N bytes, any number of times, then `end sha256=DIGEST` of the whole file, from its first byte also
where an offset was agreed; or `abort reason=CODE` when the sender gives up (reason=changed: the file changed while it was
sent). `note NAME` between them says that more may come. A body without its `end` is never a file. Another verb inside a body ends
it like abort, and is run then. Outside a body `data` is read and dropped, `end`, `abort` and `note` mean nothing: a put may be refused before or inside its body,
the client need not know, and the next line is understood. A client that wants no more of a body from the server closes.

Auth. A server with a password says so in its greeting, and refuses all but help, ping, auth and bye until the client has
proved that it knows it. The password is never sent. This is how it goes with the password `secret`, without TLS:

    S: sixsockets 1 max-line=32768 auth=scrypt-hmac-sha256 salt=6b1f0a92c4d85e37b0a1934ce27d5f68 nonce=0c9d2be871f34a56907be8d3142fa5c6 you=…
    C: auth nonce=a4e15b7c03d98f62175c0eb94d3a8f21 proof=e44b51273e139859cfa496f74d825cfac867a2b4cfd9a004a520753f6ec39eeb
    S: ok auth proof=37116c4fdc7a203e34491b9a0b93bdaa7c141a258e87d5192ebd77edd0034a25

The client makes a nonce of its own: 16 to 64 random bytes in lower-case hex digits, new for each connection. In Python:

    key = hashlib.scrypt(b"secret", salt=bytes.fromhex(salt), n=16384, r=8, p=1, dklen=32)    # RFC 7914, of the UTF-8 bytes
    text = f"client {servers_nonce} {my_nonce} {certificate}".encode()
    proof = hmac.new(key, text, "sha256").hexdigest()

where certificate is `-`, or with TLS the SHA-256 of the server's certificate (DER) in hex: so nobody can pass proofs on from
another connection. The server's proof is the same with the word server for client; a client whose server cannot give it goes
no further. After a wrong proof the server closes. Ten within a minute from one address, and until it is over all its new connections
are answered `err - reason=busy retry=SECONDS` instead of the greeting (under TLS by the alert access_denied).

TLS. With --tls the client begins with a TLS handshake (1.2 or later), and all the rest is the same inside. Who begins in the
clear is answered in the clear, with reason=tls-only.

From client to client. A connection that has said `receive` waits until its client closes or says something other than help,
who, ping, say (without nick); usage and unknown-verb do not end it. Meanwhile the server may send it, one after another and each when the last was answered,
    put NAME [size=N] [mtime_ns=N] [exec=yes] from=HOST:PORT [nick=NAME]     and a body, in which `note NAME` may stand between lines
    mkdir NAME from=HOST:PORT [nick=NAME]
and the client answers as the server does: note NAME received=N while it comes, then ok put NAME size= sha256= verified=yes
[as=NAME-IT-HAS-THERE] or err put NAME reason=CODE [why=TEXT], as soon as it knows; ok or err mkdir NAME. A request of its own inside a body
is carried out, and means that it does not want the file (left). NAME is what the sender says: it is for the receiver to check.

The sender hears `note NAME waiting=N` while one of its N receivers has something else coming; all are taken at once,
first come first, and a sender that waits has none (nor keeps it from others, before it has waited for --timeout
seconds). Then `note NAME received=N`: what the slowest of them has; and of each as soon as it is known, `got HOST:PORT
ok put NAME size= sha256= verified= [as=] [nick=]` or `got TO err put NAME reason=CODE [why=]` (mkdir with type=dir). The
reason is the receiver's own, or no-such-client, not-receiving, yourself, gone (closed, or broke the protocol), stalled
(took nothing and told of nothing more received for --timeout seconds: the server has closed it), left. A receiver's ok before the end of the body
is a request like any other: left. When none has got it, the end is err send NAME reason=not-received receivers=N verified=0; inside the body if
that is known there. When the sender is lost or gives up, its receivers get `abort reason=…`. It may close its writing side
behind the last byte, as nc -N does, but its connection only after the answer: one that is gone is noticed at the next note.
Nothing is stored: the server announces with `data` what it holds, at most 512 KiB, and takes more when every receiver has
that. The digest is the sender's, and the receiver checks it.

Chat. Between `ok chat` and the next request other than help, who, ping, say, lines come between answers: said from=NAME TEXT
(one space, then the text to the end of the line), joined NAME at=HOST:PORT, left NAME. NAME is the nick or HOST:PORT. One client
may say 40 lines (or join so often) at once and 20 a second: others are answered too-fast and not told. For a client that does not
read, 200 lines are kept; it loses the oldest of more, and hears `note chat lost=N` before the next.

Reason codes. The connection goes on after: no-such-file no-such-folder (one above it is missing) exists (with size= mtime_ns=, but for mkdir)
is-a-folder not-a-folder not-a-file (a link or special) not-empty not-permitted (with why= a sentence, where what arrives would be
run as part of a program later: a script of ours, what Python imports) not-possible bad-name too-deep (more than 64 components, also
of what is in a folder that is renamed; `list` does not look into what is further down, or longer than names are) hidden-name read-only
too-large (limit=) too-long (more than size= said) incomplete (less) wrong-digest aborted disk-full disk-read-only bad-number (of a key) resume-first busy (another
client is writing it) bad-nick not-received not-in-chat too-fast (limit=) auth-required not-needed (auth where there is no password, or
a second time) usage unknown-verb failed; received=N tells how far a put came. The server closes after `err auth` reason=
wrong-password busy, after `err - reason=` bad-line, line-too-long, bad-number (of `data`), this-is-http, this-is-tls, and after tls-only,
server-full and busy, which come instead of the greeting. It closes too when a line, once begun, or a body stands still for --timeout
seconds, or the password is not proved within them; after that a client may be silent between requests for ever. When either side closes
inside a put of 1 MiB or more that told size and mtime_ns, what was received is kept for seven days for `resume`.
Anything else that a killed server leaves behind goes after an hour.

Limits: on a loopback address nobody is asked for a password unless one is given; on any other one is made at start and printed,
unless --open does without. Without --tls others can read the traffic, and try passwords on what they have read. A file is
written under a hidden name and renamed when its length and digest are right: readers see the old file or the new one, whole.
"""

# --- imports: the same in all six scripts (tests/test_twins.py) ---
import sys

if __name__ == "__main__":
    # A file that arrives must never be imported, whatever its name. Python looks first into the
    # folder of this script, and PYTHONPATH may add the current one: both leave the path before
    # anything else is imported. (For the same reason nothing here is imported from __future__.)
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]
    import os

    def is_closed(folder: str) -> bool:
        """Neither the script's folder nor the current one, unless that is the library itself."""
        own = os.curdir, os.path.dirname(os.path.realpath(__file__))
        return folder == os.path.dirname(os.__file__) or not any(
            os.path.exists(folder) and os.path.samefile(folder, each) for each in own
        )

    sys.path[:] = [folder for folder in sys.path if is_closed(folder or os.curdir)]
# --- end imports ---

import argparse
import contextlib
import enum
import errno
import functools
import hashlib
import itertools
import os
import re
import select
import selectors
import shutil
import signal
import site
import socket
import stat
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional, TypeVar, Union

if TYPE_CHECKING:
    import ssl

VERSION = "1.0"
PROTOCOL = "1"
CLIENT = "python3 client.py"
GRACE = 2.0  # seconds that Ctrl-C leaves for transfers under way
LINGER = 1.0  # seconds that a client which is hung up on has for reading why
MAX_REFUSED = 64  # clients over the limit that are kept that long
ACCEPT_PAUSE = 0.5  # seconds to the next accept() when the system has no descriptor or memory left
TELL = 0.1  # seconds from note to note
STALE = 1.0  # seconds of silence after which the writer of a part gives way to a new one
BUSY = 2.0  # seconds that a new writer of a part waits for the old one
# characters of a name that an error repeats: three words of so many, twelve bytes each, are less
# than MAX_LINE
MAX_ECHO = 900
# seconds of silence after which somebody who waits for another is told that the server is there
LIFE = 1.0
BRIEF = 0.001  # seconds that one client's connection may hold up what others wait for too
# letters of any script, digits: nothing that could pass for an address or for more than a name
NICK = re.compile(r"[\w.-]{1,32}")
MAX_SAY = 4000  # bytes of one line of the chat
SAY_RATE, SAY_BURST = 20.0, 40.0  # lines a second that one client may say, and how many at once
MAX_TARGETS = 2000  # receivers that one line can name: each is answered with a line of its own
HISTORY = 50  # lines of the chat that are told to who joins
UNHEARD = 200  # lines that wait for one reader; of more it loses the oldest
AT_ONCE = 16  # of them that leave in one send
SWEEP = 3600.0  # seconds from one search for parts that nobody came back for to the next


# --- wire: the same in server.py, client.py (tests/test_twins.py) ---
# bytes of a line with its end: the longest path of most systems, every byte percent-encoded, and
# keys
MAX_LINE = 32768
# bytes asked of one recv: half as many cost a sixth more time, and each busy connection has its own
BUFFER = 1 << 19
QUIET = 1 << 12  # the same for a connection on which no more than that has come at once
RECORD = 1 << 14  # bytes of a TLS record at most
BATCH = 1 << 16  # bytes of lines and small bodies that gather until they leave in one send
PLAIN = re.compile(r"[!-$&-<>-~]*")  # printable ASCII but for space, percent sign and equals sign
CONTROL = re.compile(rb"[\0-\x1f\x7f]")  # bytes that no line may hold
BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
FREE = {"help", "say", "said"}  # verbs whose line is text from the first space on
ESCAPE = re.compile(rb"%(..)")
# bytes of names as this system has them in text
NAMES = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
NUMBER = re.compile("[0-8]?[0-9]{1,18}")
BEYOND = 9 * 10**18  # the first number that NUMBER does not match; 64 bits hold all below
HTTP = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE|PRI) \S+ HTTP/\d")
TLS = b"\x16\x03"  # how a TLS client begins
AUTH = "scrypt-hmac-sha256"
NONCE = re.compile("(?:[0-9a-f]{2}){16,64}")
BODY = re.compile(rb"data ([0-9]{1,18})")  # the line that comes most often
# a peer that vanished is noticed in two minutes
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


class Lost(Exception):
    """The connection ended, or the peer fell silent, while something was still to come."""


class Silent(Lost):
    """The connection may still stand, but the peer neither sends nor reads."""


class Ended(Lost):
    """The peer closed between two lines, where it may."""


class Broken(Exception):
    """The peer broke the protocol; the text is the reason code that it is told."""


class BadNumber(Broken):
    """A line can be understood but for a number: a server refuses the request and goes on."""


class Line(NamedTuple):
    verb: str
    words: list[str]
    keys: dict[str, str]

    def number(self, key: str, default: int = 0) -> int:
        """Decimal digits, few enough for 64 bits; only mtime_ns may be negative."""
        text = self.keys.get(key)
        if text is None:
            return default
        if not NUMBER.fullmatch(text.removeprefix("-") if key == "mtime_ns" else text):
            raise BadNumber("bad-number")
        return int(text)

    def known(self, key: str) -> Optional[int]:
        return self.number(key) if key in self.keys else None

    def is_set(self, key: str) -> bool:
        return self.keys.get(key) == "yes"


DATA = Line("data", [], {})


def quote(text: str) -> str:
    """A name or value as a word: space, %, = and what is not printable UTF-8 become %XX."""
    if PLAIN.fullmatch(text):
        return text
    return "".join(
        char
        if char.isprintable() and char not in " %="
        else "%" + char.encode(errors="surrogateescape").hex("%").upper()
        for char in os.fsencode(text).decode(errors="surrogateescape")
    )


def unquote(word: str) -> str:
    if "%" not in word:
        return word
    if BROKEN_ESCAPE.search(word):
        raise Broken("bad-line")
    return os.fsdecode(
        ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(word))
    )


def held(number: int) -> int:
    """The nearest number that the other side reads: a file's time can lie beyond."""
    return max(-BEYOND + 1, min(number, BEYOND - 1))


def line(*words: str, **keys: object) -> bytes:
    """A line as it is sent; a key whose value is None is left out."""
    pairs = [
        f"{key}={held(value) if type(value) is int else quote(str(value))}"
        for key, value in keys.items()
        if value is not None
    ]
    return f"{' '.join([*map(quote, words), *pairs])}\n".encode()


def parse(raw: bytes) -> Line:
    """A line as it was received: the verb, the positional words, the key=value words."""
    text = raw.decode(*NAMES)
    if not text.isprintable() and CONTROL.search(raw):
        raise Broken("this-is-tls" if raw.startswith(TLS) else "bad-line")
    start, *rest = text.split(" ")
    if not start:  # a space at the beginning: an answer would repeat no verb, and be no line itself
        raise Broken("bad-line")
    found = Line(start.lower(), [], {})
    if found.verb in FREE:
        return found._replace(words=[" ".join(rest)] if rest else [])
    for word in rest:
        key, equals, value = word.partition("=")
        if equals:
            found.keys[key] = unquote(value)
        elif word:
            found.words.append(unquote(word))
        else:  # two spaces, or one at the end
            raise Broken("bad-line")
    return found


def printable(text: str) -> str:
    """Text for people, on one line: what could move a cursor or forge a line becomes an escape."""
    if text.isprintable():
        return text
    raw = os.fsencode(text).decode(errors="backslashreplace")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in raw
    )


@functools.lru_cache(maxsize=1)
def auth_key(password: str, salt: str) -> bytes:
    """The key that both sides derive from the password, once per process.

    It takes 50 ms and 16 MiB, so that guessing takes long."""
    if not hasattr(hashlib, "scrypt"):
        raise Failure(
            2,
            "this Python cannot speak with a password",
            "its hashlib has no scrypt: it was built without OpenSSL 1.1 or later",
            "another Python; python3 -c 'import hashlib; hashlib.scrypt' tells",
        )
    return hashlib.scrypt(
        password.encode("utf-8", "surrogateescape"),
        salt=bytes.fromhex(salt),
        n=1 << 14,
        r=8,
        p=1,
        dklen=32,
    )


def auth_proof(key: bytes, side: str, server_nonce: str, client_nonce: str, pin: str) -> str:
    """Proves that this side, "client" or "server", knows the password.

    It is valid for one connection, and under TLS for one certificate."""
    import hmac  # not at the top: few need it

    text = f"{side} {server_nonce} {client_nonce} {pin or '-'}"
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def same_proof(one: str, other: str) -> bool:
    """Compare in constant time: the time that it takes does not tell where they differ."""
    import hmac

    return hmac.compare_digest(os.fsencode(one), os.fsencode(other))


class Wire:
    """One connection: every byte belongs to a line, or to the body that a `data N` line announced."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self.sock, self.timeout = sock, timeout
        sock.settimeout(timeout)
        self.buffer = bytearray(QUIET)
        self.view = memoryview(self.buffer)
        self.start = self.end = 0  # what was received and not yet used: buffer[start:end]
        self.remaining = 0  # bytes of the announced body that are still to be used
        self.unread: Line | None = None  # a line that was read too early
        self.out = bytearray()  # what is still to be sent
        self.last_heard = time.monotonic()

    def keep_alive(self) -> None:
        """A client may be silent for hours: let the kernel notice when it has vanished."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):
                self.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    # sending
    def put(self, data: bytes) -> None:
        """Queue bytes. Small ones are sent together, before this side waits; large ones at once."""
        if len(data) >= BATCH:
            self.flush()
            return self.attempt(self.push, memoryview(data))
        self.out += data
        if len(self.out) >= BATCH:
            self.flush()

    def flush(self) -> None:
        if self.out:
            view, self.out = memoryview(self.out), bytearray()
            self.attempt(self.push, view)

    def push(self, view: memoryview) -> int:
        """Send all, however slowly the peer reads. (sendall() has one timeout for everything.)"""
        while view:
            view = view[self.sock.send(self.sendable(view)) :]
        return 1

    def sendable(self, view: memoryview) -> memoryview:
        """What one send() may get: TLS takes all or nothing, so a slow reader would seem stuck."""
        return view[:BATCH] if hasattr(self.sock, "pending") else view

    def attempt(self, call: Callable[[memoryview], int], view: memoryview) -> None:
        """Turn a failure of a socket call into Lost: an OSError of a disk must stay different."""
        try:
            count = call(view)
        except OSError as error:
            if isinstance(error, socket.timeout):
                raise Silent(f"silent for {self.timeout:g} s") from None
            raise Lost(error.strerror or "closed") from None
        if not count:
            raise Ended("the other side closed the connection")
        self.last_heard = time.monotonic()

    # receiving
    def receive(self, patience: Optional[float]) -> None:
        """Wait for more bytes. First send what is queued, or both sides could wait for ever."""
        self.flush()
        rest = self.view[self.start : self.end]
        if len(self.buffer) == QUIET and (
            max(self.end, self.remaining) >= QUIET or hasattr(self.sock, "pending")
        ):
            # under TLS from the start: with room for a whole record it holds nothing back that
            # select() would not see
            self.buffer = bytearray(BUFFER)
            self.view = memoryview(self.buffer)
        self.view[: len(rest)] = rest
        self.start, self.end = 0, len(rest)
        if patience != self.timeout:
            self.sock.settimeout(patience)
        self.attempt(self.receive_into, self.view[self.end :])
        if patience != self.timeout:
            self.sock.settimeout(self.timeout)

    def receive_into(self, view: memoryview) -> int:
        count = self.sock.recv_into(view)
        if self.remaining and hasattr(self.sock, "pending"):
            count += self.more_records(view[count:])
        self.end += count
        return count

    def more_records(self, view: memoryview) -> int:
        """TLS returns one record (16 KiB) at a time: inside a body read all that have arrived."""
        count, patience = 0, self.sock.gettimeout()
        self.sock.settimeout(0)
        # nothing more has come, or an error that the next call will tell
        with contextlib.suppress(OSError):
            while len(view) - count >= RECORD and (more := self.sock.recv_into(view[count:])):
                count += more
        self.sock.settimeout(patience)
        return count

    def line(self, idle: bool = False) -> Line:
        """The next line. With idle, the wait for its first byte has no deadline."""
        while self.remaining:  # a body that nobody wants is read and dropped
            self.take_body()
        if self.unread:
            early, self.unread = self.unread, None
            return early
        while True:
            stop = self.wait_for_line(idle)
            raw = bytes(self.view[self.start : stop]).removesuffix(b"\r")
            self.start = stop + 1
            if raw:  # an empty line means nothing
                return self.understand(raw)

    def wait_for_line(self, idle: bool) -> int:
        """Wait until the next line is whole, under one deadline; where it ends."""
        deadline = None if idle and self.start == self.end else time.monotonic() + self.timeout
        while (stop := self.line_end()) < 0:
            if self.buffer.startswith(TLS, self.start, self.end):
                raise Broken("this-is-tls")
            try:
                self.receive(None if deadline is None else max(0.001, deadline - time.monotonic()))
            except Ended:
                if self.start < self.end:
                    raise Lost("the other side closed the connection inside a line") from None
                raise
            deadline = deadline or time.monotonic() + self.timeout
        return stop

    def line_end(self) -> int:
        """Where the next line ends in the buffer, or -1."""
        stop = self.buffer.find(b"\n", self.start, min(self.end, self.start + MAX_LINE))
        if stop < 0 and self.end - self.start >= MAX_LINE:
            raise Broken("line-too-long")
        return stop

    def understand(self, raw: bytes) -> Line:
        if body := BODY.fullmatch(raw):
            self.remaining = int(body[1])
            return DATA
        if b"HTTP/" in raw and HTTP.match(raw):
            raise Broken("this-is-http")
        found = parse(raw)
        if found.verb == "data":
            size = re.fullmatch("[0-9]{1,18}", " ".join(found.words))
            if not size:
                raise Broken("bad-number")
            self.remaining = int(size[0])
        return found

    def take_body(self) -> memoryview:
        """The next bytes of the announced body, valid until the next call."""
        if self.start == self.end:
            self.receive(self.timeout)
        view = self.view[self.start : min(self.end, self.start + self.remaining)]
        self.start += len(view)
        self.remaining -= len(view)
        return view


# --- end wire ---


# --- pure functions: values in, values out ---
def facts(status: os.stat_result) -> dict[str, object]:
    """What the protocol tells of a file."""
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "exec": "yes" if status.st_mode & stat.S_IXUSR else None,
    }


# --- folders: the same in server.py, client.py (tests/test_twins.py) ---
MAX_NAME = 4096  # bytes of a path: more than most systems take
MAX_DEPTH = 64  # components of a path: what is further down costs too much to walk to
# what the name of an unfinished file looks like
PART = re.compile(r"\.six-[0-9a-f]{32}\.part", re.IGNORECASE)
# what Windows takes for something else
DEVICE = re.compile(
    r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?|.*[. ]|.*[\\:<>|?*\"].*", re.IGNORECASE
)
# and no wait for a FIFO
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
RANDOM = ".six-" + "0" * 8  # how the name of a part begins that nothing can resume
# the rest of such a name: 24 digits, counted from a random number on
UNIQUE = itertools.count(int.from_bytes(os.urandom(12), "big"))
KEPT = 7 * 86400  # seconds that the part of an interrupted transfer is kept
KEPT_USELESS = 3600  # the same for one that nothing can resume: empty, or with a random name
# entries of a folder that are put in order; where there are more they come as the disk has them
SORTED = 20000
TIMED = os.utime in os.supports_fd
BY_DESCRIPTOR = {
    os.open,
    os.stat,
    os.unlink,
    os.mkdir,
    os.rename,
    os.link,
} <= os.supports_dir_fd and os.scandir in os.supports_fd


REASONS = {
    errno.ENOENT: "no-such-file",
    errno.ENOTDIR: "not-a-folder",
    errno.EISDIR: "is-a-folder",
    errno.EEXIST: "exists",
    errno.EACCES: "not-permitted",
    errno.EPERM: "not-permitted",
    errno.EROFS: "disk-read-only",
    errno.ELOOP: "not-a-file",
    errno.ENXIO: "not-a-file",
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.EFBIG: "too-large",
    errno.ENAMETOOLONG: "bad-name",
    errno.EILSEQ: "bad-name",
    errno.ENOTEMPTY: "not-empty",
    errno.EINVAL: "not-possible",
    errno.EXDEV: "not-possible",
    errno.EMFILE: "busy",
    errno.ENFILE: "busy",
    errno.EBUSY: "busy",
}  # what a peer is told of an OSError; any other is "failed"


class Refused(Exception):
    """A request that is understood but not carried out: the reason code, and the answer's keys."""

    def __init__(self, reason: str, **keys: object) -> None:
        super().__init__(reason)
        self.reason, self.keys = reason, keys


def reason_of(error: Exception) -> str:
    """The reason code of a Refused or Broken, or of an OSError."""
    return REASONS.get(error.errno or 0, "failed") if isinstance(error, OSError) else str(error)


def os_error(number: int) -> OSError:
    """As a system call would raise it: Python makes it a FileExistsError, NotADirectoryError ..."""
    return OSError(number, os.strerror(number))


def check_name(name: str, hidden: bool = True, windows: bool = os.name == "nt") -> list[str]:
    """Split a name from the network, or refuse one that leads outside, to a device or to a part."""
    parts, too_long = name.split("/"), len(os.fsencode(name)) > MAX_NAME
    for part in parts:
        if (
            too_long
            or part in ("", ".", "..")
            or "\0" in part
            or PART.fullmatch(part)
            or (windows and DEVICE.fullmatch(part))
        ):
            raise Refused("bad-name")
        if part[0] == "." and not hidden:
            raise Refused("hidden-name")
    if len(parts) > MAX_DEPTH:
        raise Refused("too-deep")
    return parts


class Folder:
    """An open folder; its last user closes it.

    Names in it are used through its descriptor, so that no link planted meanwhile leads elsewhere.
    Where the system has no such calls, they are used through its path, resolved and compared."""

    def __init__(self, path: str, within: Optional[int] = None, durable: bool = False) -> None:
        self.path, self.durable = path, durable
        self.fd: int | None = None
        if BY_DESCRIPTOR:
            leaf = path if within is None else os.path.basename(path)
            nofollow = 0 if within is None else os.O_NOFOLLOW
            self.fd = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | nofollow, dir_fd=within)
        elif not os.path.isdir(path):
            raise os_error(errno.ENOTDIR)

    def __del__(self) -> None:
        if self.fd is not None:
            os.close(self.fd)

    def at(self, name: str) -> str:
        return name if self.fd is not None else os.path.join(self.path, name)

    def below(self, name: str, make: bool = False) -> "Folder":
        """The folder of that name in this one; a link is not followed."""
        if make:
            with contextlib.suppress(FileExistsError):
                self.make(name)
        path = os.path.join(self.path, name)
        if not BY_DESCRIPTOR:
            real = os.path.join(os.path.realpath(self.path), name)
            if os.path.realpath(path) != real:
                raise os_error(errno.ENOTDIR)
        return Folder(path, self.fd, self.durable)

    def descend(self, names: Sequence[str], make: bool = False) -> "Folder":
        return functools.reduce(lambda found, name: found.below(name, make), names, self)

    def protect(self, name: str, is_folder: bool = False) -> None:
        """What arrives is never run: refuse to change a part of a program, or to make one."""
        check = holds_program if is_folder else is_program
        if check(os.path.join(self.path, name)):
            raise Refused("not-permitted", why="it would be part of a program at its next start")

    def make(self, name: str) -> None:
        """Make a folder in it. If there is one, it may be new and not on the disk yet: sync too."""
        if not self.stat(name):
            self.protect(name)
        try:
            os.mkdir(self.at(name), dir_fd=self.fd)
        finally:
            self.sync()

    def sync(self) -> None:
        """With --durable, write the names in it to the disk itself. (Windows syncs no folder.)"""
        if self.durable and self.fd is not None:
            os.fsync(self.fd)

    def open(self, name: str, flags: int, mode: int = 0o666) -> int:
        if not BY_DESCRIPTOR and os.path.islink(self.at(name)):
            raise os_error(errno.ELOOP)
        return os.open(self.at(name), flags | NO_LINK, mode, dir_fd=self.fd)

    def stat(self, name: str) -> Optional[os.stat_result]:
        try:
            return os.stat(self.at(name), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def identity(self, name: str) -> tuple[object, ...]:
        """Tells a name in it from all others, even after a folder above it was renamed."""
        if self.fd is None:
            return os.path.normcase(self.path), name
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino, name

    def read(self, name: str) -> tuple[int, os.stat_result]:
        """A regular file, open for reading, and its status."""
        fd = self.open(name, os.O_RDONLY)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise Refused("is-a-folder" if stat.S_ISDIR(status.st_mode) else "not-a-file")
        return fd, status

    def remove(self, name: str, is_folder: bool = False) -> None:
        (os.rmdir if is_folder else os.unlink)(self.at(name), dir_fd=self.fd)

    def entries(self) -> Iterator[os.DirEntry[str]]:
        """What is in it, sorted, unless there are so many entries that memory would matter."""
        with os.scandir(self.path if self.fd is None else self.fd) as found:
            first = list(itertools.islice(found, SORTED))
            yield from sorted(first, key=lambda entry: entry.name) if len(first) < SORTED else first
            yield from found

    def rename(self, old: str, other: "Folder", new: str, replace: bool) -> None:
        """Move a file or folder to that name. Without replace, fail if the name is taken."""
        source, target = self.at(old), other.at(new)
        folders = {"src_dir_fd": self.fd, "dst_dir_fd": other.fd}
        if replace:
            return os.replace(source, target, **folders)
        try:
            # a hard link fails if the name is taken: the check and the change are one step
            os.link(source, target, **folders, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:
            # a folder, or a file system without hard links (FAT): look first, then rename
            if other.stat(new):
                raise os_error(errno.EEXIST) from None
            return os.rename(source, target, **folders)
        if PART.fullmatch(old):  # nobody else gives that name to anything
            return self.remove(old)
        self.remove_link(old, other.stat(new))

    def remove_link(self, name: str, status: Optional[os.stat_result]) -> None:
        """Remove one of the two names of a file.

        If another program has put a different file there meanwhile, that keeps the name."""
        aside = f"{RANDOM}{next(UNIQUE):024x}.part"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.at(name), self.at(aside), src_dir_fd=self.fd, dst_dir_fd=self.fd)
            found = self.stat(aside)
            if not (status and found and os.path.samestat(found, status)):
                with contextlib.suppress(FileExistsError):
                    return self.rename(aside, self, name, replace=False)
            self.remove(aside)


def lock_file(fd: int) -> bool:
    """Lock a part; False if another process has locked it.

    Without flock only the writers in one server know of each other."""
    with contextlib.suppress(ImportError, OSError):  # OSError: Lustre, for one, may have none
        import fcntl  # not at the top: Windows has none

        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def remove_if_old(folder: Folder, entry: os.DirEntry[str]) -> bool:
    """Remove an entry if it is a part that nobody resumed in time.

    Its age is that of its ctime: shortly before the end its mtime becomes that of the source."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as held_open:
        if not PART.fullmatch(entry.name):
            return False
        status = entry.stat(follow_symlinks=False)
        useful = status.st_size and not entry.name.startswith(RANDOM)
        if time.time() - status.st_ctime > (KEPT if useful else KEPT_USELESS):
            fd = folder.open(entry.name, os.O_RDONLY)
            held_open.callback(os.close, fd)
            free = lock_file(fd)
            if os.name == "nt":
                # Windows removes no open file; elsewhere the lock must last until the name is gone
                held_open.close()
            if free:
                folder.remove(entry.name)
            return free
    return False


# --- end folders ---


# --- bodies: the same in server.py, client.py (tests/test_twins.py) ---
# most bytes that our side announces in one `data`: it can stop only between two, and each busy
# connection has its own
CHUNK = 1 << 19
# bytes from which an interrupted file is worth resuming; a smaller one starts over
RESUMABLE = 1 << 20
HOLE = 1 << 12  # zeros at once from which a disk need not store them
UNLOCKED = contextlib.nullcontext()


def lasting_name(leaf: str, size: Optional[int], mtime_ns: Optional[int]) -> str:
    """The name of a part that can be resumed: the same for each attempt to send the same file."""
    return f".six-{hashlib.sha256(os.fsencode(f'{leaf}/{size}/{mtime_ns}')).hexdigest()[:32]}.part"


class Part:
    """The hidden file of an upload or download that is not finished.

    It is locked, hashed as it grows, and gets its final name when it is whole."""

    def __init__(
        self,
        folder: Folder,
        leaf: str,
        size: Optional[int] = None,
        mtime_ns: Optional[int] = None,
        executable: bool = False,
    ) -> None:
        self.folder, self.leaf, self.mtime_ns, self.executable = folder, leaf, mtime_ns, executable
        self.sha, self.received, self.fd = hashlib.sha256(), 0, -1
        self.keyed = mtime_ns is not None and (size or 0) >= RESUMABLE
        self.name = (
            lasting_name(leaf, size, mtime_ns)
            if self.keyed
            else f"{RANDOM}{next(UNIQUE):024x}.part"
        )

    def identity(self) -> tuple[object, ...]:
        return self.folder.identity(self.name)

    def claim(self) -> bool:
        """Open and lock it, new or as an earlier attempt left it. False: another one writes it."""
        mode = 0o777 if self.executable else 0o666  # less the umask
        while True:
            fd = self.folder.open(self.name, os.O_RDWR | os.O_CREAT, mode)
            if not lock_file(fd):
                os.close(fd)
                return False
            ours, there = os.fstat(fd), self.folder.stat(self.name)
            same = there and os.path.samestat(there, ours)
            if same and ours.st_nlink == 1 and stat.S_ISREG(ours.st_mode):
                self.fd = fd
                return True
            # its last writer has just renamed it, or died between link and unlink: it is not ours
            os.close(fd)
            if same:
                self.folder.remove(self.name)

    def examine(self, most: int, tell: Callable[[int], None]) -> None:
        """Hash what an earlier attempt left. If it is longer than the file, it is of no use."""
        length = os.fstat(self.fd).st_size
        if length <= most:
            self.received = length  # so that an interruption of this does not lose it either
            digest(self.fd, length, self.sha, tell)
            self.received = os.lseek(self.fd, 0, os.SEEK_CUR)

    def begin(self, offset: int) -> None:
        """Write from the offset on, if the digest is that of the bytes before; else from 0."""
        if offset != self.received:
            self.sha, self.received = hashlib.sha256(), 0
        if self.keyed:
            os.ftruncate(self.fd, self.received)
            os.lseek(self.fd, self.received, os.SEEK_SET)

    def write(self, chunk: memoryview) -> None:
        self.sha.update(chunk)
        self.received += len(chunk)
        while chunk and not self.leave_hole(chunk):
            chunk = chunk[os.write(self.fd, chunk) :]

    def leave_hole(self, chunk: memoryview) -> bool:
        """Make the file longer instead of writing zeros: most disks need not store them."""
        # without a name it is standard output, which cannot be made longer
        if not self.name or len(chunk) < HOLE or chunk[0] or bytes(chunk) != bytes(len(chunk)):
            return False
        with contextlib.suppress(OSError):  # a file system that makes no file longer
            os.ftruncate(self.fd, self.received)
            os.lseek(self.fd, 0, os.SEEK_END)
            return True
        return False

    def finish(
        self, over: bool, *, lock: contextlib.AbstractContextManager[Any] = UNLOCKED
    ) -> None:
        """Give it its time and mode, then its name, under the lock that a rename has too."""
        there = self.folder.stat(self.leaf) if over else None
        if there and hasattr(os, "fchmod"):
            runs = 0o111 & there.st_mode >> 2 if self.executable else 0
            self.set_mode(there.st_mode & 0o777 | runs)
        if self.mtime_ns is not None:
            with contextlib.suppress(OSError):  # a disk that keeps times of its own
                os.utime(
                    self.fd if TIMED else self.folder.at(self.name),
                    ns=(self.mtime_ns, self.mtime_ns),
                )
        if self.folder.durable:
            os.fsync(self.fd)
        if os.name == "nt":
            self.close()  # Windows renames no open file
        with lock:
            self.folder.rename(self.name, self.folder, self.leaf, replace=over)
        self.folder.sync()
        self.close()

    def set_mode(self, mode: int) -> None:
        """A disk without modes may refuse; but nobody may read what was hidden from them before."""
        try:
            os.fchmod(self.fd, mode)
        except OSError:
            if os.fstat(self.fd).st_mode & 0o777 & ~mode:
                raise

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def keep(self) -> bool:
        """After an interruption: leave it for a later attempt, if there can be one."""
        if self.fd >= 0 and self.keyed and self.received:
            self.close()
            return True
        self.drop()
        return False

    def drop(self) -> None:
        if self.fd >= 0:
            if os.name == "nt":
                # Windows removes no open file; elsewhere the lock must last until the name is gone
                self.close()
            with contextlib.suppress(OSError):
                self.folder.remove(self.name)
            self.close()


def send_body(
    wire: Wire, fd: int, status: os.stat_result, sha: "hashlib._Hash", go_on: Callable[[int], bool]
) -> str:
    """Send a file from where fd stands to its announced size, then its digest.

    Returns "", or the reason why it was given up, as the peer is told."""
    remaining, reason = status.st_size - os.lseek(fd, 0, os.SEEK_CUR), ""
    while remaining and not reason:
        try:
            chunk = os.read(fd, min(remaining, CHUNK))
        except OSError:  # a broken disk reads like a file that has become shorter
            chunk = b""
        if not chunk:
            break
        sha.update(chunk)
        remaining -= len(chunk)
        wire.put(b"data %d\n" % len(chunk))
        wire.put(chunk)
        reason = "" if go_on(len(chunk)) else "refused"
    now = os.fstat(fd)
    as_told = (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    reason = reason or ("changed" if remaining or not as_told else "")
    last = line("abort", reason=reason) if reason else line("end", sha256=sha.hexdigest())
    wire.put(last)
    return reason


def digest(fd: int, upto: int, sha: "hashlib._Hash", tell: Callable[[int], None]) -> str:
    """Hash the first bytes of a file, or all if it has fewer; then fd stands behind them."""
    done = 0
    while done < upto and (chunk := os.read(fd, min(CHUNK, upto - done))):
        sha.update(chunk)
        done += len(chunk)
        tell(done)
    return sha.hexdigest()


def receive_body(
    wire: Wire,
    part: Part,
    size: Optional[int],
    check: Callable[[int], None],
    tell: Callable[[int], None],
) -> str:
    """Write a body into the part until `end`: "yes" if its digest agrees, "no" if it had none.

    Refused if the body is not what was announced. check() may refuse so many bytes. A verb that
    does not belong inside a body ends it like `abort`, and is carried out afterwards."""
    while (found := wire.line()).verb in ("data", "note"):  # a note is a sign of life
        if size is not None and part.received + wire.remaining > size:
            raise Refused("too-long", size=size)
        check(part.received + wire.remaining)
        while wire.remaining:
            part.write(wire.take_body())
            tell(part.received)
    if found.verb not in ("end", "abort"):
        wire.unread = found
    if found.verb != "end":
        raise Refused("aborted")
    if size is not None and part.received != size:
        raise Refused("incomplete", received=part.received, size=size)
    theirs, ours = found.keys.get("sha256"), part.sha.hexdigest()
    if theirs is not None and theirs.lower() != ours:
        raise Refused("wrong-digest", sha256=ours)
    return "no" if theirs is None else "yes"


# --- end bodies ---


# --- from client to client: who waits, who is lent to whom, who chats ---
class Holder(enum.Enum):
    """Who reads and writes a connection now: no two at once (with TLS one thread alone may)."""

    OWN = "its own thread"  # LOBBY when it waits in `receive` or `chat`
    # OWN when the client says something or is gone, SENDER when another sends to it
    LOBBY = "whoever has the lobby's lock"
    # LOBBY when it answered, OWN when it is lost or said something else
    SENDER = "the thread of the client that sends to it"


class Lobby:
    """The connections that wait. One thread watches them all, while their own threads sleep."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # and the lock of all that is here
        self.selector = selectors.DefaultSelector()
        self.reader, self.writer = socket.socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)
        self.selector.register(self.reader, selectors.EVENT_READ)
        # when each waiting sender has waited enough, and whom it wants
        self.queue: list[tuple[float, list[Session]]] = []
        self.chatters: dict[Session, None] = {}  # in the order in which they came
        self.history: deque[bytes] = deque(maxlen=HISTORY)
        self.closed = False
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.closed = True
        self.wake()
        self.thread.join(LINGER)

    def wake(self) -> None:
        """Where the system's selector takes no connection while it waits, let it begin anew."""
        with contextlib.suppress(OSError):
            self.writer.send(b"\0")

    def watch(self) -> None:
        while not self.closed:
            self.selector.select()
            # look again: what spoke may have been lent and given back meanwhile, and have nothing
            # more to say
            with self.changed:
                # a function of its own, so that no connection is held on to while it waits
                self.heed(self.selector.select(0))
        for opened in (self.selector, self.reader, self.writer):
            opened.close()

    def heed(self, found: Sequence[tuple[selectors.SelectorKey, int]]) -> None:
        for key, events in found:
            if key.data is None:
                self.reader.recv(4096)
            elif events & selectors.EVENT_READ:
                self.hand_back(key.data)
            else:
                self.deliver(key.data)

    # the life of a connection that waits; all but keep() and take() are called with the lock held
    def keep(self, session: "Session") -> None:
        """Wait until the client says something, in its own thread. Lost, when it was lost while another had it."""
        with self.changed:
            session.returned.clear()
            self.admit(session)
        session.returned.wait()
        session.sock.settimeout(session.timeout)
        if session.rest:  # a line that was begun comes before any other
            session.out, session.rest = bytearray(session.rest) + session.out, b""
        if session.trouble:
            raise Lost(session.trouble)

    def admit(self, session: "Session") -> None:
        session.holder = Holder.LOBBY
        session.sock.settimeout(BRIEF)
        self.selector.register(session.sock, self.events(session), session)
        self.changed.notify_all()
        self.wake()

    def events(self, session: "Session") -> int:
        return selectors.EVENT_READ | (
            selectors.EVENT_WRITE if session.rest or session.unheard else 0
        )

    def hand_back(self, session: "Session", trouble: str = "") -> None:
        if session.holder is Holder.LOBBY:
            self.selector.unregister(session.sock)
        session.holder, session.trouble = Holder.OWN, trouble
        session.returned.set()

    def leave(self, session: "Session") -> None:
        """It neither receives nor chats any more."""
        with self.changed:
            if session in self.chatters:
                del self.chatters[session]
                self.tell_all(line("left", session.called()))
                session.note(f"chat: {session.called()} left")
            session.mode, session.rest = "", b""
            session.unheard.clear()
            self.changed.notify_all()

    # receivers
    def take(
        self, wanted: "list[Session]", waiting: Callable[[int], None], patience: float
    ) -> "list[Session]":
        """All of them that still receive, at once, when it is this sender's turn."""
        entry = time.monotonic() + patience, wanted
        with self.changed:
            self.queue.append(entry)
        try:
            while (lent := self.lend(entry)) is None:
                waiting(sum(session.mode == "receive" for session in wanted))
            return lent
        finally:
            with self.changed:
                self.queue = [each for each in self.queue if each is not entry]
                self.changed.notify_all()

    def turn(self, entry: "tuple[float, list[Session]]") -> bool:
        """Whether its receivers are free, and for nobody who came before: who can begin too, or has waited enough. Others
        wait for a receiver that may stand still; until then they keep nobody from those that are free."""
        spoken_for: set[Session] = set()
        for each in self.queue:
            found = {session for session in each[1] if session.mode == "receive"}
            ready = found.isdisjoint(spoken_for) and all(
                session.holder is Holder.LOBBY for session in found
            )
            if each is entry:
                return ready
            if ready or time.monotonic() > each[0]:
                spoken_for |= found
        return False

    def lend(self, entry: "tuple[float, list[Session]]") -> "list[Session] | None":
        """Its receivers, if its turn comes within a moment."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.turn(entry), LIFE):
                return None
            lent = [session for session in entry[1] if session.mode == "receive"]
            for session in lent:
                self.selector.unregister(session.sock)
                session.holder = Holder.SENDER
            return lent

    def give_back(self, session: "Session", trouble: str = "") -> None:
        with self.changed:
            if trouble or session.start != session.end:
                self.hand_back(session, trouble)
            else:
                self.admit(session)
            self.changed.notify_all()

    # chatters
    def join(self, session: "Session") -> list[bytes]:
        """What was said before; what is said from now on comes after it."""
        with self.changed:
            self.tell_all(line("joined", session.called(), at=session.peer))
            self.chatters[session] = None
            session.mode = "chat"
            return list(self.history)

    def say(self, session: "Session", text: bytes) -> None:
        with self.changed:
            said = b"said from=%b %b\n" % (quote(session.called()).encode(), text)
            self.history.append(said)
            self.tell_all(said, session)

    def tell_all(self, told: bytes, but: "Session | None" = None) -> None:
        """A line to everybody in the chat. Who is slow hears it later, who is stuck never; nobody waits for either."""
        for session in self.chatters:
            if session is not but:
                session.missed += len(session.unheard) == UNHEARD
                session.unheard.append(told)
                if session.holder is Holder.LOBBY and not session.rest:
                    self.deliver(session)

    def deliver(self, session: "Session") -> None:
        """What waits for a reader, as far as it takes it now."""
        try:
            while session.rest or session.unheard:
                if not session.rest:
                    lost = [line("note", "chat", lost=session.missed)] if session.missed else []
                    # a copy of its own, so not all
                    some = [
                        session.unheard.popleft() for _ in range(min(AT_ONCE, len(session.unheard)))
                    ]
                    session.rest, session.missed = b"".join([*lost, *some]), 0
                session.rest = session.rest[session.sock.send(session.rest[:BATCH]) :]
        except OSError as error:
            if not isinstance(error, socket.timeout):
                return self.hand_back(session, error.strerror or "closed")
        if self.events(session) != self.selector.get_key(session.sock).events:
            self.selector.modify(session.sock, self.events(session), session)


def ready(
    readers: Sequence[socket.socket], writers: Sequence[socket.socket], patience: float
) -> set[socket.socket]:
    """Wait until one can be read, or one of the others written: those that can be read. (select() knows no descriptor above 1023.)"""
    with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:
        for sock in {*readers, *writers}:
            selector.register(
                sock,
                selectors.EVENT_READ * (sock in readers)
                | selectors.EVENT_WRITE * (sock in writers),
                sock,
            )
        return {
            key.data for key, events in selector.select(patience) if events & selectors.EVENT_READ
        }


class Receiver:
    """One of those that a client sends to: what it has still to take, and what it answered."""

    def __init__(self, session: "Session") -> None:
        self.session = session
        self.rest = memoryview(b"")
        self.received = 0
        self.answer: Line | None = None
        # when it last took something or got further; when it was last told something
        self.heard = self.told = time.monotonic()

    def tell(self, block: bytes) -> None:
        self.told = time.monotonic()
        self.heard = self.heard if self.rest else self.told
        # nothing is left but where the sender was lost within a block
        self.rest = memoryview(bytes(self.rest) + block)

    def send(self) -> None:
        """As much as it takes now."""
        with contextlib.suppress(socket.timeout):
            self.rest = self.rest[self.session.sock.send(self.session.sendable(self.rest)) :]
            self.heard = time.monotonic()

    def hear(self, relay: "Relay") -> None:
        """What it says: notes, then its answer. Something else is a request of its own: it stays unread, and the file is not wanted."""
        wire = self.session
        with contextlib.suppress(Silent):
            wire.receive(BRIEF)
        wire.sock.settimeout(BRIEF)
        while not self.answer and wire.has_line():
            mark, found = wire.start, wire.line()
            if found.verb == "note":
                received = min(found.number("received"), relay.sender.moved)
                # what tells of nothing new is no life: or notes without end would hold the sender
                # for ever
                if received > self.received:
                    self.received, self.heard = received, time.monotonic()
            elif (
                found.verb in ("ok", "err")
                and found.words[:1] == [relay.verb]
                and (relay.ended or found.verb == "err")
            ):
                self.answer = found
            else:
                wire.start, wire.remaining = mark, 0
                self.answer = Line("err", [relay.verb], {"reason": "left"})


class Relay:
    """What one client sends to others, as it comes: nothing is kept but the block that is on its way. The slowest sets the pace."""

    def __init__(
        self, sender: "Session", verb: str, name: str, sessions: "Sequence[Session]", count: int
    ) -> None:
        self.sender, self.verb, self.name, self.count = sender, verb, name, count
        # from whom an answer is still to come
        self.open = [Receiver(session) for session in sessions]
        self.verified = 0
        self.ended = False  # all is told: only answers are to come
        self.progress = sender.tell(name, "received")

    def body(self) -> None:
        """The sender's, line by line, until it ends."""
        while (found := self.sender.line()).verb in ("data", "note"):
            if found.verb == "note":
                self.pass_on(line("note", self.name))
            while self.sender.remaining:
                chunk = self.sender.take_body()
                self.sender.moved += len(chunk)
                self.pass_on(b"".join((b"data %d\n" % len(chunk), chunk)))
        if found.verb == "end":
            return self.end(line("end", sha256=found.keys.get("sha256")))
        if found.verb != "abort":
            self.sender.unread = found
        self.end(line("abort", reason=found.keys.get("reason", "interrupted")))

    def end(self, last: bytes) -> None:
        self.ended = True
        self.pass_on(last)

    def pass_on(self, block: bytes) -> None:
        """A whole line, or `data` and its bytes, to all."""
        for receiver in self.open:
            receiver.tell(block)
        self.flush()

    def flush(self) -> None:
        while any(receiver.rest for receiver in self.open):
            for receiver in [receiver for receiver in self.open if receiver.rest]:
                self.attempt(receiver, receiver.send)
            if any(receiver.rest for receiver in self.open):
                self.listen(TELL)

    def attend(self, patience: float) -> None:
        """Called before the sender's thread reads: until there is something, the receivers are listened to."""
        deadline = time.monotonic() + patience
        while self.open and self.sender.sock not in self.listen(LIFE, self.sender.sock):
            if time.monotonic() > deadline:
                raise Silent(f"silent for {self.sender.timeout:g} s")
            self.flush()
        if not self.open:
            raise self.refusal()

    def refusal(self) -> Refused:
        return Refused("not-received", receivers=self.count, verified=0)

    def settle(self) -> None:
        """Wait for the answers."""
        while self.open:
            self.listen(TELL)

    def listen(self, patience: float, *others: socket.socket) -> set[socket.socket]:
        """Hear who says something within that time. The sender is told how far the slowest is, and who waits that the server is there."""
        silent = [receiver.session.sock for receiver in self.open if not receiver.answer]
        found = ready(
            [*others, *silent],
            [receiver.session.sock for receiver in self.open if receiver.rest],
            patience,
        )
        for receiver in [receiver for receiver in self.open if receiver.session.sock in found]:
            self.attempt(receiver, functools.partial(receiver.hear, self))
        now = time.monotonic()
        for receiver in list(self.open):
            if now - receiver.heard > receiver.session.timeout and (receiver.rest or self.ended):
                self.lose(receiver, "stalled", f"took nothing for {receiver.session.timeout:g} s")
            elif now - receiver.told > LIFE and not (receiver.rest or self.ended):
                receiver.tell(line("note", self.name))
        if self.open:
            self.show()
        return found

    def show(self) -> None:
        """How far the slowest is. A sender that is gone answers with a reset: nothing else tells of it while what it sent is unread."""
        try:
            self.progress(min(receiver.received for receiver in self.open))
        except Lost:
            if not self.ended:
                raise

    def attempt(self, receiver: Receiver, call: Callable[[], None]) -> None:
        try:
            call()
        except (Lost, Broken, OSError) as error:
            return self.lose(receiver, "gone", str(error))
        if receiver.answer and not receiver.rest:
            self.open.remove(receiver)
            self.report(receiver.session.peer, receiver.answer, receiver.session.nick)
            self.sender.server.lobby.give_back(receiver.session)

    def lose(self, receiver: Receiver, reason: str, trouble: str) -> None:
        """Its own thread closes it; the others go on."""
        self.open.remove(receiver)
        self.sender.server.lobby.give_back(receiver.session, trouble)
        self.report(
            receiver.session.peer,
            receiver.answer or Line("err", [], {"reason": reason}),
            receiver.session.nick,
        )

    def report(self, target: str, answer: Line, nick: str = "") -> None:
        """What became of it at one receiver, for the sender, whether that is still there or not."""
        good = answer.verb == "ok"
        self.verified += good and (self.verb == "mkdir" or answer.keys.get("verified") == "yes")
        if not good:
            self.sender.note(
                f"send {self.name[:300]} to {target[:300]}: {answer.keys.get('reason', 'failed')[: RESULTS['reason']]}"
            )
        with contextlib.suppress(Lost):
            told = {
                key: answer.keys[key][:most] for key, most in RESULTS.items() if key in answer.keys
            }
            self.sender.put(
                line(
                    "got",
                    target[:MAX_ECHO],
                    answer.verb,
                    self.verb,
                    self.name,
                    **told,
                    nick=nick or None,
                )
            )
            self.sender.flush()


# --- one client: a line comes, a command answers ---
def walk(
    top: Folder,
    name: str,
    deep: bool,
    visible: Callable[[str], bool],
    failed: Callable[[str, Union[OSError, Refused]], None],
) -> Iterator[tuple[str, Folder, os.DirEntry[str]]]:
    """What is in a folder called name, and with deep in all below it: full name, folder, entry. Only one folder is open at a time."""
    waiting: list[list[str]] = [[]]
    while waiting:
        above, found = waiting.pop(), []
        full = "/".join([name] * bool(name) + above)
        before = f"{full}/" if full else ""
        try:
            folder = top.descend(above)
            entries = filter(lambda entry: visible(entry.name), folder.entries())
            too_deep = before.count("/") >= MAX_DEPTH or len(os.fsencode(before)) > MAX_NAME
            if too_deep and any(entries):
                raise Refused("too-deep")
            for entry in entries:
                yield before + entry.name, folder, entry
                found += [entry.name] * (deep and entry.is_dir(follow_symlinks=False))
        except (OSError, Refused) as error:
            if not above:
                raise
            failed(full, error)
        waiting += ([*above, leaf] for leaf in reversed(found))


class Session(Wire):
    """A client's connection, and the thread that owns it."""

    def __init__(self, server: "Server", sock: socket.socket, peer: "Address") -> None:
        super().__init__(sock, server.args.timeout)
        self.server, self.args, self.peer = server, server.args, address(peer)
        self.root = Folder(server.directory, durable=server.args.durable)
        self.near: tuple[str, Folder] = "", self.root  # the folder that was used last
        self.ready: Part | None = None  # what `resume` has checked, for the `put` that follows
        self.logged: list[str] = []
        self.began = self.told = time.monotonic()
        self.moved = self.requests = 0  # bytes of this operation; lines that were answered
        self.idle, self.done = True, False
        self.known = server.door.guard is None  # whether the client may do more than ask and log in
        self.nonce = os.urandom(16).hex()
        self.since, self.doing = self.began, ""
        # what the lobby knows of it; with nick and mode `who` shows it
        self.nick = self.mode = ""  # mode: "receive" or "chat" while it waits in one of them
        self.holder, self.returned = Holder.OWN, threading.Event()
        self.trouble = ""  # what another thread met that had it
        # lines of the chat that are still to be sent
        self.unheard: deque[bytes] = deque(maxlen=UNHEARD)
        self.rest, self.missed = b"", 0  # what has begun to leave of them; how many were dropped
        # the flood limit's clock, which each line puts forward
        self.said = time.monotonic() - SAY_BURST / SAY_RATE
        self.relay: Relay | None = None  # while it sends to others

    def run(self) -> None:
        """A connection's whole life."""
        try:
            self.encrypt()
            self.greet()
            while not self.done and not self.server.stop.asked:
                if self.start == self.end:
                    self.flush()  # before Ctrl-C may take it for idle
                    self.idle = True
                request = self.line(idle=self.known)
                self.idle = False
                self.requests += 1
                self.dispatch(request)
        except Ended:
            if not self.requests:
                self.note("came and left without a word")
        except Lost as lost:
            self.note(f"connection lost: {lost}")
        except Broken as broken:
            self.out += line("err", "-", reason=broken)  # hang_up() sends it
            self.note(f"hung up on: {broken}")
        finally:
            self.release()
            self.server.lobby.leave(self)
            self.hang_up()

    def encrypt(self) -> None:
        """The TLS handshake, under a deadline. Who begins in the clear is answered in the clear."""
        context = self.server.door.tls
        if context is None:
            return
        try:
            first = socket.socket.recv(self.sock, 1, socket.MSG_PEEK)
            if first and first != TLS[:1]:
                raise Broken("tls-only")
            secured = over_tls(context, self.sock)
            self.sock = secured
            shake_hands(secured)
        except OSError as error:
            raise Lost(
                f"no TLS: {'silent' if isinstance(error, socket.timeout) else getattr(error, 'reason', '') or error.strerror}"
            ) from None

    def greet(self) -> None:
        guard, keys = self.server.door.guard, {"auth": "none"}
        if guard:
            keys = {"auth": AUTH, "salt": self.server.salt, "nonce": self.nonce}
        self.put(line("sixsockets", PROTOCOL, **{"max-line": MAX_LINE, **keys, "you": self.peer}))

    def dispatch(self, request: Line) -> None:
        """Find the command, check what holds for all, run it, tell and log the result."""
        verb, names = ALIASES.get(request.verb, request.verb), request.words
        if verb in NOT_ALONE:  # what is left of a body that was refused; line() drops the bytes
            return
        self.began = self.told = time.monotonic()
        self.moved, result = 0, "ok"
        try:
            command = self.command(verb, names)
            self.attend(verb, request)
            command.run(self, request)
        except (Refused, BadNumber, OSError) as error:
            result, keys = reason_of(error), getattr(error, "keys", {})
            named = {"send": names[1:], "say": []}.get(verb, names)
            self.put(
                line(
                    "err", *[word[:MAX_ECHO] for word in (verb, *named[:2])], reason=result, **keys
                )
            )
        if verb not in UNLOGGED or result not in EXPECTED:
            # somebody may have typed the password there
            what = " ".join([verb, *(names if verb != "auth" else [])])
            self.note(
                f"{what[:300]}: {self.moved} bytes, {time.monotonic() - self.began:.3f} s, {result}"
            )

    def command(self, verb: str, names: Sequence[str]) -> "Command":
        found = COMMANDS.get(verb)
        if found is None:
            raise Refused("unknown-verb", **{"try": "help"})
        if not found.least <= len(names) <= found.most:
            raise Refused("usage", usage=f"{verb} {found.usage}")
        if not self.known and verb not in BEFORE_AUTH:
            raise Refused("auth-required")
        if found.changes and self.args.read_only:
            raise Refused("read-only")
        return found

    def attend(self, verb: str, request: Line) -> None:
        """A request may name its client; most end a `receive` or `chat` that waits."""
        self.doing = verb
        if self.mode and (verb not in STAYS or "nick" in request.keys):
            self.server.lobby.leave(self)
        if "nick" in request.keys:
            if not self.known:  # or strangers could take the names of those who may come in
                raise Refused("auth-required")
            self.take_nick(request.keys["nick"])

    def ok(self, request: Line, **keys: object) -> None:
        self.put(line("ok", ALIASES.get(request.verb, request.verb), *request.words, **keys))

    def tell(self, name: str, key: str) -> Callable[[int], None]:
        """What a long operation calls as it goes on: now and then the client hears how far it is."""

        def note(count: int) -> None:
            now = time.monotonic()
            if now - self.told >= TELL:
                self.told = now
                self.put(line("note", name, **{key: count}))
                self.flush()

        return note

    def receive(self, patience: Optional[float]) -> None:
        """Before it waits: what is known of the last folder may be out of date afterwards. Other threads may have it meanwhile."""
        self.near = "", self.root
        # nor may strangers keep the places of others by idle talk
        if not self.known and time.monotonic() > self.since + self.timeout:
            raise Lost(f"no password in {self.timeout:g} s")
        if self.relay:
            self.relay.attend(self.timeout if patience is None else patience)
        elif self.mode and patience is None:
            self.flush()
            self.server.lobby.keep(self)
            if self.start != self.end:  # who had it has left something unread
                return
            patience = self.timeout
        super().receive(patience)

    def has_line(self) -> bool:
        """Has all of a line come that is not empty?"""
        while self.start < self.end and self.buffer[self.start] in b"\r\n":
            self.start += 1
        found = self.buffer.find(b"\n", self.start, self.end) >= 0
        if not found and self.end - self.start >= MAX_LINE:
            raise Broken("line-too-long")
        return found

    def flush(self) -> None:
        """Log lines leave with the answers that they tell of, many at once."""
        if self.logged:
            self.server.log(self.logged)
            self.logged = []
        super().flush()

    def note(self, text: str) -> None:
        self.logged.append(f"{self.peer} {printable(text)}")

    def hang_up(self) -> None:
        """Close so that the last answer arrives: a socket closed over unread bytes sends RST, which destroys it."""
        deadline = time.monotonic() + LINGER
        with contextlib.suppress(Lost, OSError):
            self.flush()
            end_tls(self.sock)
            self.sock.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.sock.settimeout(left)
                if not self.sock.recv_into(self.buffer):
                    break
        self.sock.close()

    # names: whatever a client names is found here and nowhere else
    def folder(self, parts: list[str], make: bool = False) -> Folder:
        """Component by component from the shared folder; the one that was used last is still open."""
        if self.server.only and parts:
            raise Refused("no-such-file")
        name = "/".join(parts)
        if name != self.near[0]:
            try:
                self.near = name, self.root.descend(parts, make)
            except FileNotFoundError:
                raise Refused("no-such-folder") from None
        return self.near[1]

    def find(self, name: str, make: bool = False) -> tuple[Folder, str]:
        """The folder in which a name from the network is, and its last component."""
        *above, leaf = check_name(name, self.args.hidden or name == self.server.only)
        if self.server.only and name != self.server.only:
            raise Refused("no-such-file")
        return self.folder(above, make), leaf

    def existing(self, name: str) -> tuple[Folder, str, os.stat_result]:
        folder, leaf = self.find(name)
        status = folder.stat(leaf)
        if status is None:
            raise Refused("no-such-file")
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise Refused("not-a-file")
        return folder, leaf, status

    def visible(self, name: str) -> bool:
        return (
            name == self.server.only
            if self.server.only
            else not PART.fullmatch(name) and (self.args.hidden or name[0] != ".")
        )

    # the commands
    def do_help(self, request: Line) -> None:
        for verb, command in COMMANDS.items():
            self.put(
                f"help {verb} {command.usage}{' ' * bool(command.usage)}-- {command.text}\n".encode()
            )
        self.ok(request._replace(words=[]), count=len(COMMANDS))

    def do_list(self, request: Line) -> None:
        name = request.words[0] if request.words else ""
        folder = self.folder(check_name(name, self.args.hidden)) if name else self.root
        deep, count = request.is_set("deep"), 0

        def failed(full: str, error: Union[OSError, Refused]) -> None:
            self.put(line("note", full, reason=reason_of(error)))

        for full, _, entry in walk(folder, name, deep, self.visible, failed):
            try:
                count += self.describe(full, entry, deep)
            except FileNotFoundError:
                pass  # gone already
            except OSError as error:  # a folder that may be read but not entered, a dead mount
                failed(full, error)
        self.ok(request, count=count)

    def describe(self, full: str, entry: os.DirEntry[str], deep: bool) -> bool:
        """One entry of a listing; False for what is no file or folder."""
        status = entry.stat(follow_symlinks=False)
        is_file, is_folder = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
        if is_file:
            self.put(line("file", full, **facts(status)))
        elif is_folder:
            self.put(line("dir", full, mtime_ns=status.st_mtime_ns))
        elif deep:
            self.put(line("note", full, reason="not-a-file"))
        return is_file or is_folder

    def do_stat(self, request: Line) -> None:
        name, keys = request.words[0], request.keys
        part = self.part(request) if "mtime_ns" in keys else None  # most ask without, and many
        kept = part.folder.stat(part.name) if part and part.keyed else None
        try:
            status = self.existing(name)[2]
        except Refused as refusal:
            raise Refused(refusal.reason, part=kept.st_size if kept else None) from None
        if stat.S_ISDIR(status.st_mode):
            return self.ok(request, type="dir", mtime_ns=status.st_mtime_ns)
        found = None
        if keys.get("digest") == "yes":
            with self.opened(name) as (fd, status):
                found = digest(fd, status.st_size, hashlib.sha256(), self.tell(name, "checked"))
        self.ok(
            request, type="file", **facts(status), sha256=found, part=kept.st_size if kept else None
        )

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[tuple[int, os.stat_result]]:
        folder, leaf = self.find(name)
        fd, status = folder.read(leaf)
        try:
            yield fd, status
        finally:
            os.close(fd)

    def do_get(self, request: Line) -> None:
        name, offset, sha = request.words[0], request.number("offset"), hashlib.sha256()
        with self.opened(name) as (fd, status):
            if offset and (
                offset > status.st_size
                or digest(fd, offset, sha, self.tell(name, "checked")) != request.keys.get("sha256")
            ):
                offset, sha = 0, hashlib.sha256()
                os.lseek(fd, 0, os.SEEK_SET)
            self.put(line("ok", "get", name, **facts(status), offset=offset or None))
            try:
                given_up = send_body(self, fd, status, sha, self.count)
            except Lost as lost:
                self.note(
                    f"get {name}: cut at {self.moved} of {status.st_size - offset} bytes ({lost})"
                )
                raise
        if given_up:
            self.note(f"get {name}: given up, it {given_up} meanwhile")

    def count(self, more: int) -> bool:
        self.moved += more
        return True

    def do_put(self, request: Line) -> None:
        name, over = request.words[0], request.is_set("over")
        size, part = request.known("size"), self.part(request)
        self.check_room(size or 0, request.number("offset"))
        self.check_vacant(part.folder, part.leaf, over)
        part = self.claimed(part, request)
        try:
            part.begin(request.number("offset"))
            verified = receive_body(
                self,
                part,
                size,
                lambda announced: self.check_room(announced, part.received),
                self.tell(name, "received"),
            )
            part.finish(over, lock=self.server.lock)
        except (Lost, Broken) as lost:
            kept = "nothing is kept"
            if part.keep():
                kept, self.server.kept = "kept for seven days", self.server.kept + 1
            self.note(
                f"put {name}: cut at {part.received} of {'?' if size is None else size} bytes ({lost}); {kept}"
            )
            raise
        except OSError as error:
            raise Refused(reason_of(error), received=part.received) from None
        finally:
            self.moved = part.received
            part.drop()
            self.disclaim(part)
        self.ok(request, size=part.received, sha256=part.sha.hexdigest(), verified=verified)

    def check_room(self, whole: int, have: int) -> None:
        if 0 < self.args.max_size < whole:
            raise Refused("too-large", limit=self.args.max_size)
        if (
            self.args.min_free
            and shutil.disk_usage(self.server.directory).free - (whole - have) < self.args.min_free
        ):
            raise Refused("disk-full")

    def check_vacant(self, folder: Folder, leaf: str, over: bool, is_folder: bool = False) -> None:
        folder.protect(leaf, is_folder)
        there = folder.stat(leaf)
        if there and stat.S_ISDIR(there.st_mode):
            raise Refused("is-a-folder")
        if there and not stat.S_ISREG(there.st_mode):
            raise Refused("not-a-file")
        if there and not over:
            raise Refused("exists", size=there.st_size, mtime_ns=there.st_mtime_ns)

    def part(self, request: Line) -> Part:
        """Where the body of such an upload goes."""
        size, mtime_ns = request.known("size"), request.known("mtime_ns")
        return Part(*self.find(request.words[0]), size, mtime_ns, request.is_set("exec"))

    def claimed(self, part: Part, request: Line) -> Part:
        """The part, as `resume` has checked it or new, and ours alone."""
        offset = request.number("offset")
        if (
            self.ready
            and self.ready.identity() == part.identity()
            and offset in (0, self.ready.received)
        ):
            self.ready.executable = part.executable  # `resume` does not say it
            part, self.ready = self.ready, None
            return part
        self.release()
        if offset:
            raise Refused("resume-first")
        self.claim(part)
        return part

    def claim(self, part: Part) -> None:
        """Be the one who writes a part. Who wrote it before and is silent has lost its link, and is ended. What counts is how often
        we have tried: a machine that stood still meanwhile has left the other no time to end."""
        if not part.keyed:  # nobody else knows its name
            part.claim()
            return
        left = BUSY
        try:
            while (
                other := self.server.writers.setdefault(part.identity(), self)
            ) is not self or not part.claim():
                if other is not self and time.monotonic() - other.last_heard > STALE:
                    other.cut()
                if left <= 0:
                    raise Refused("busy")
                left -= TELL / 2
                time.sleep(TELL / 2)
        except (Refused, OSError):
            self.disclaim(part)
            raise

    def disclaim(self, part: Part) -> None:
        """The part has no writer any more, unless the next one has come in already."""
        if part.keyed and self.server.writers.get(part.identity()) is self:
            del self.server.writers[part.identity()]

    def do_resume(self, request: Line) -> None:
        self.release()
        part = self.part(request)
        if not part.keyed or not part.folder.stat(part.name):
            return self.ok(request, offset=0)
        self.claim(part)
        self.ready = part
        part.examine(request.number("size"), self.tell(request.words[0], "checked"))
        self.ok(request, offset=part.received, sha256=part.sha.hexdigest())

    def release(self) -> None:
        """Nobody sends what `resume` has checked: leave the part as it is."""
        if self.ready:
            self.ready.keep()
            self.disclaim(self.ready)
            self.ready = None

    def do_delete(self, request: Line) -> None:
        folder, leaf, status = self.existing(request.words[0])
        folder.protect(leaf)
        folder.remove(leaf, stat.S_ISDIR(status.st_mode))
        self.near = "", self.root
        self.ok(request)

    def do_rename(self, request: Line) -> None:
        old, new = request.words
        folder, leaf, status = self.existing(old)
        other, other_leaf = self.find(new)
        is_folder = stat.S_ISDIR(status.st_mode)
        over = request.is_set("over") and not is_folder
        folder.protect(leaf, is_folder)
        self.check_vacant(other, other_leaf, over, is_folder)
        if is_folder and new.count("/") > old.count("/"):
            self.check_depth(folder.below(leaf), new)
        with self.server.lock:
            folder.rename(leaf, other, other_leaf, over)
            left = folder.stat(leaf) if over else None
            twins = (
                left
                and os.path.samestat(left, status)
                and folder.identity(leaf) != other.identity(other_leaf)
            )
            # where "a" and "A" are one name, only one of them is listed
            both = (folder, leaf), (other, other_leaf)
            if twins and all(
                any(entry.name == name for entry in where.entries()) for where, name in both
            ):
                folder.remove_link(
                    leaf, status
                )  # rename() does nothing between two links of one file
        self.near = "", self.root
        self.ok(request)

    def check_depth(self, folder: Folder, name: str) -> None:
        """Whether all that is in a folder may be so far down when the folder has that name."""

        def failed(full: str, error: Union[OSError, Refused]) -> None:
            if isinstance(error, Refused):
                raise error

        tell = self.tell(name, "checked")
        for count, _ in enumerate(walk(folder, name, True, lambda name: True, failed)):
            tell(count)

    def do_mkdir(self, request: Line) -> None:
        folder, leaf = self.find(request.words[0], make=True)
        folder.make(leaf)
        self.ok(request)

    def do_auth(self, request: Line) -> None:
        """The client proves that it knows the password, and hears the proof that we do. A wrong proof is its connection's last word."""
        guard, mine = self.server.door.guard, request.keys.get("nonce", "")
        if guard is None or self.known:
            raise Refused("not-needed")
        if not NONCE.fullmatch(mine):
            raise Refused("usage", usage="auth nonce=HEX proof=HEX")
        facts, host = (
            (self.nonce, mine, self.server.door.pin),
            self.peer.rpartition(":")[0].strip("[]"),
        )
        reason = guard.judge(
            host,
            same_proof(
                request.keys.get("proof", ""), auth_proof(self.server.key, "client", *facts)
            ),
        )
        if reason:
            self.done, wait = True, guard.wait(host)
            if reason != "busy" and wait:
                self.note(
                    f"auth: {MAX_WRONG} wrong passwords: {host} is answered busy for {wait} s"
                )
            raise Refused(reason, retry=wait if reason == "busy" else None)
        self.known = True
        self.put(line("ok", "auth", proof=auth_proof(self.server.key, "server", *facts)))

    def do_ping(self, request: Line) -> None:
        self.ok(request)

    def do_bye(self, request: Line) -> None:
        self.ok(request)
        self.done = True

    # the commands between clients
    def called(self) -> str:
        return self.nick or self.peer

    def take_nick(self, nick: str) -> None:
        """Its name from now on, with a number where another has that name."""
        if not NICK.fullmatch(nick):
            raise Refused("bad-nick")
        with self.server.lobby.changed:
            taken = {
                session.nick.casefold()
                for session in list(self.server.sessions)
                if session is not self
            }
            numbered = itertools.chain([nick], (f"{nick}{number}" for number in itertools.count(2)))
            self.nick = next(name for name in numbered if name.casefold() not in taken)

    def do_who(self, request: Line) -> None:
        everybody = sorted(self.server.sessions.copy(), key=lambda session: session.since)
        for each in everybody:
            mode = each.mode or ("idle" if each.idle else each.doing)
            self.put(
                line(
                    "client",
                    each.peer,
                    nick=each.nick or None,
                    mode=mode,
                    you="yes" if each is self else None,
                )
            )
        self.ok(request, count=len(everybody))

    def do_receive(self, request: Line) -> None:
        self.ok(request, you=self.peer, nick=self.nick or None)
        self.mode = "receive"

    def do_send(self, request: Line) -> None:
        """Each receiver is lent to this thread until it has answered."""
        targets, name = request.words
        verb = "mkdir" if request.keys.get("type") == "dir" else "put"
        check_name(name)
        offer = line(
            verb,
            name,
            size=request.known("size"),
            mtime_ns=request.known("mtime_ns"),
            exec="yes" if request.is_set("exec") else None,
            **{"from": self.peer, "nick": self.nick or None},
        )
        wanted, refused = self.targets(targets)
        lent = self.server.lobby.take(wanted, self.tell(name, "waiting"), self.timeout)
        refused.update((session.peer, "not-receiving") for session in set(wanted).difference(lent))
        relay = Relay(self, verb, name, lent, len(lent) + len(refused))
        try:
            for target, reason in refused.items():
                relay.report(target, Line("err", [], {"reason": reason}))
            if verb == "mkdir":
                relay.end(offer)
            else:
                relay.pass_on(offer)
                self.relay = relay
                relay.body()
        except Lost as lost:
            self.note(f"send {name}: cut after {self.moved} bytes ({lost})")
            raise
        finally:
            self.relay = None
            if not relay.ended:
                relay.end(line("abort", reason="sender-gone"))
            relay.settle()
        if not relay.verified:
            raise relay.refusal()
        self.put(line("ok", "send", name, receivers=relay.count, verified=relay.verified))

    def targets(self, words: str) -> "tuple[list[Session], dict[str, str]]":
        """Who is meant by HOST:PORT or nick, separated by commas; and why others cannot be."""
        known = {
            name.casefold(): session
            for session in self.server.sessions.copy()
            for name in (session.peer, session.nick)
        }
        wanted: dict[Session, None] = {}
        refused = {}
        named = list(filter(None, words.split(",")))
        if not 0 < len(named) <= MAX_TARGETS:
            raise Refused("usage", usage=f"send {COMMANDS['send'].usage}")
        for target in named:
            found = known.get(target.casefold())
            if found is None or found is self or found.mode != "receive":
                refused[target] = (
                    "no-such-client"
                    if found is None
                    else "yourself"
                    if found is self
                    else "not-receiving"
                )
            else:
                wanted[found] = None
        return list(wanted), refused

    def do_chat(self, request: Line) -> None:
        if request.words:
            self.take_nick(request.words[0])
        self.pace()
        for said in self.server.lobby.join(self):
            self.put(said)
        self.note(f"chat: {self.called()} joined")
        self.ok(
            request, nick=self.nick or None, you=self.peer, count=len(self.server.lobby.chatters)
        )

    def pace(self) -> None:
        """Each client may make others read so many lines, and no more."""
        now = time.monotonic()
        due = max(self.said, now - SAY_BURST / SAY_RATE) + 1 / SAY_RATE
        if due > now:
            raise Refused("too-fast", limit=f"{SAY_RATE:g}/s")
        self.said = due

    def do_say(self, request: Line) -> None:
        text = request.words[0]
        if self.mode != "chat":
            raise Refused("not-in-chat")
        if len(text.encode(*NAMES)) > MAX_SAY:
            raise Refused("too-long", limit=MAX_SAY)
        self.pace()
        self.server.lobby.say(self, text.encode(*NAMES))
        self.note(f"chat: <{self.called()}> {text}")
        self.put(b"ok say\n")

    def cut(self) -> None:
        """From another thread: whatever this one waits for ends now. (The method of a TLS socket is for its own thread.)"""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


class Command(NamedTuple):
    run: Callable[[Session, Line], None]
    least: int  # positional words
    most: int
    changes: bool  # refused with --read-only
    usage: str
    text: str


COMMANDS = {
    "help": Command(Session.do_help, 0, 1, False, "", "these lines"),
    "list": Command(
        Session.do_list,
        0,
        1,
        False,
        "[FOLDER] [deep=yes]",
        "what is there; deep: in all folders below too",
    ),
    "stat": Command(
        Session.do_stat,
        1,
        1,
        False,
        "NAME [digest=yes]",
        "size and time of a file; digest: its SHA-256 too",
    ),
    "get": Command(
        Session.do_get, 1, 1, False, "NAME [offset=N sha256=OF-MY-FIRST-N]", "its bytes follow"
    ),
    "put": Command(
        Session.do_put,
        1,
        1,
        True,
        "NAME [size=N] [mtime_ns=N] [exec=yes] [over=yes] [offset=N]",
        "then: data N, N bytes, end",
    ),
    "resume": Command(
        Session.do_resume,
        1,
        1,
        True,
        "NAME size=N mtime_ns=N",
        "how much of it is here from an interrupted put",
    ),
    "delete": Command(Session.do_delete, 1, 1, True, "NAME", "a file or an empty folder"),
    "rename": Command(
        Session.do_rename, 2, 2, True, "OLD NEW [over=yes]", "also into another folder"
    ),
    "mkdir": Command(Session.do_mkdir, 1, 1, True, "NAME", "a folder, and those above it"),
    "auth": Command(
        Session.do_auth, 0, 0, False, "nonce=HEX proof=HEX", "prove that you know the password"
    ),
    "who": Command(
        Session.do_who, 0, 0, False, "", "the clients that are connected, and what they do"
    ),
    "receive": Command(
        Session.do_receive,
        0,
        0,
        False,
        "[nick=N]",
        "wait for what others send; it comes as put and mkdir",
    ),
    "send": Command(
        Session.do_send,
        2,
        2,
        False,
        "HOST:PORT|NICK[,...] NAME [size=N] [mtime_ns=N] [exec=yes] [type=dir]",
        "to clients that receive; a body as after put",
    ),
    "chat": Command(Session.do_chat, 0, 1, False, "[NICK]", "join: hear what others say"),
    "say": Command(Session.do_say, 1, 1, False, "TEXT", "to all others in the chat"),
    "ping": Command(Session.do_ping, 0, 0, False, "", "is anybody there"),
    "bye": Command(Session.do_bye, 0, 0, False, "", "the end"),
}
ALIASES = {"upload": "put", "download": "get", "logout": "bye", "stop": "bye", "quit": "bye"}
BEFORE_AUTH = {"help", "ping", "auth", "bye"}
NOT_ALONE = {"data", "end", "abort", "note"}  # they mean something only inside a body
STAYS = {"help", "who", "ping", "say"}  # they do not end a `receive` or `chat` that waits
# what a receiver's answer tells the sender, and characters of each at most: or its line could be
# longer than the sender may take
RESULTS = {
    "reason": 32,
    "why": 200,
    "received": 20,
    "as": MAX_ECHO,
    "size": 20,
    "sha256": 64,
    "verified": 3,
}
# unless they are refused: they move and change nothing
UNLOGGED = {"help", "stat", "ping", "bye", "resume", "who", "chat", "say", "auth"}
# results of those that are not worth a line in the log
EXPECTED = {"ok", "no-such-file", "no-such-folder", "too-fast"}


# --- the server: listen, accept, a thread a client ---
class Server:
    """A listening socket, and a thread for each client that came in through it."""

    def __init__(
        self,
        args: argparse.Namespace,
        sock: socket.socket,
        door: "Door",
        directory: str,
        only: str,
        journal: int,
    ) -> None:
        self.door = door
        self.args, self.sock, self.directory, self.only = args, sock, directory, only
        self.stop = Stop()
        self.sessions: set[Session] = set()
        # by the place of the part that they write
        self.writers: dict[tuple[object, ...], Session] = {}
        self.refused: list[socket.socket] = []
        self.lobby = Lobby()
        self.kept = 0  # parts of interrupted uploads
        self.lock = threading.Lock()
        self.journal, self.lost = journal, 0  # lines that it could not take
        self.salt = os.urandom(16).hex()
        self.key = auth_key(door.guard.password, self.salt) if door.guard else b""

    def run(self) -> None:
        swept = -SWEEP
        while not self.stop.asked:
            if not self.args.read_only and time.monotonic() - swept >= SWEEP:
                swept = time.monotonic()
                threading.Thread(target=self.sweep, daemon=True).start()
            watched: list[socket.socket | Stop] = [self.stop, self.sock]
            ready, _, _ = select.select(watched, [], [], LINGER if self.refused else SWEEP)
            self.stop.drain()
            if self.sock in ready:
                self.take()
            while self.refused and (not ready or len(self.refused) > MAX_REFUSED):
                self.refused.pop(0).close()
        self.finish()

    def take(self) -> None:
        """Give the next client a thread of its own, if there is room."""
        try:
            conn, peer = self.sock.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client left between select() and accept()
        except OSError as error:
            # EMFILE, ENFILE, ENOBUFS, ENOMEM: nothing is wrong with this socket
            self.log([f"cannot accept ({error.strerror}): pausing"])
            select.select([self.stop], [], [], ACCEPT_PAUSE)
            return
        if self.door.guard and (
            wait := self.door.guard.wait(address(peer).rpartition(":")[0].strip("[]"))
        ):
            return self.turn_away(conn, line("err", "-", reason="busy", retry=wait), DENIED)
        if len(self.sessions) >= self.args.max_clients:
            return self.refuse(conn, peer, f"there are {len(self.sessions)} clients")
        try:
            self.handle(conn, peer)
        except (OSError, RuntimeError) as error:
            # no further descriptor or thread, or the shared folder is gone
            self.refuse(conn, peer, printable(str(error)))

    def refuse(self, conn: socket.socket, peer: "Address", why: str) -> None:
        self.log([f"{address(peer)} refused: {why}"])
        self.turn_away(conn, line("err", "-", reason="server-full"), OVERLOADED)

    def turn_away(self, conn: socket.socket, answer: bytes, code: int) -> None:
        """Answer and hang up, but keep the socket a moment: closed over unread bytes it sends RST, which destroys the answer.
        A handshake would cost more than the refusal may: under TLS the answer is an alert."""
        self.refused.append(conn)
        with contextlib.suppress(OSError):
            conn.setblocking(False)
            conn.send(alert(code) if self.door.tls else answer)
            conn.shutdown(socket.SHUT_WR)

    def handle(self, conn: socket.socket, peer: "Address") -> None:
        # an answer leaves at once, however short
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = Session(self, conn, peer)
        session.keep_alive()
        self.sessions.add(session)
        try:
            threading.Thread(target=self.attend, args=(session,), daemon=True).start()
        except RuntimeError:
            self.sessions.discard(session)
            raise

    def attend(self, session: Session) -> None:
        try:
            session.run()
        finally:
            self.sessions.discard(session)
            self.stop.wake()

    def log(self, lines: Sequence[str]) -> None:
        """One write, so that the lines of two threads do not mix. A full disk may take a part of it: the next begins a line."""
        now, lost = time.strftime("%Y-%m-%d %H:%M:%S "), self.lost
        told = [f"{lost} lines lost before this one"] * bool(lost) + [*lines]
        left = ("\n" * bool(lost) + "".join(f"{now}{text}\n" for text in told)).encode()
        try:
            while left:
                left = left[os.write(self.journal, left) :]
            self.lost = 0
        except OSError as error:
            self.lost += len(lines)
            if not lost and self.journal != 2:
                say(f"cannot write the log ({error.strerror}): what it misses is counted")

    def sweep(self) -> None:
        with contextlib.suppress(OSError):
            for full, folder, entry in walk(
                Folder(self.directory), "", True, lambda name: True, lambda full, error: None
            ):
                if remove_if_old(folder, entry):
                    self.log([f"removed {printable(full)}: nobody resumed it"])

    def finish(self) -> None:
        """Close the door, let go of who waits, and give what is under way a moment."""
        for sock in [self.sock, *self.refused]:
            sock.close()
        dropped = len(self.sessions)
        for seconds, busy_too in (GRACE, False), (LINGER, True):
            deadline = time.monotonic() + seconds
            while self.sessions and (left := deadline - time.monotonic()) > 0:
                waiting = [
                    found
                    for found in list(self.sessions)
                    if found.idle and found.holder is not Holder.SENDER
                ]
                for session in list(self.sessions) if busy_too else waiting:
                    session.cut()
                select.select([self.stop], [], [], min(left, ACCEPT_PAUSE))
                self.stop.drain()
        self.lobby.close()
        say(
            f"stopped: {dropped} client{'s' * (dropped != 1)} disconnected, {self.kept} part{'s' * (self.kept != 1)} kept"
        )


def shared(path: str) -> tuple[str, str]:
    """The folder to share, made when missing, and the one name in it when it is a single file."""
    try:
        directory, only = os.path.realpath(path), ""  # what the command line names may be a link
        if os.path.isfile(directory):
            directory, only = os.path.split(directory)
        os.makedirs(directory, exist_ok=True)
        Folder(directory)
    except OSError as error:
        raise Failure(
            26,
            f"cannot share {printable(path)} ({error.strerror})",
            "the folder is missing and cannot be made, or may not be read",
            "python3 server.py --directory FOLDER",
        ) from None
    return directory, only


def open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise Failure(
            23,
            f"cannot write the log {printable(path)} ({error.strerror})",
            "nothing was shared",
            "--log FILE in a folder that is there",
        ) from None


def serve(args: argparse.Namespace) -> int:
    raise_file_limit()
    family, target = resolve(args.host, args.port, socket.SOCK_STREAM)[0]
    door = make_door(args, str(target[0]))
    if door.tls:
        # a client that waits for an answer shall see nothing but answers arrive
        door.tls.num_tickets = 0
    directory, only = shared(args.path or args.directory)
    args.read_only = args.read_only or bool(only)
    journal = open_log(args.log) if args.log else 2
    # who finds the queue full asks again only after a second
    sock = bind(socket_class(args), family, target, 1024)
    server = Server(args, sock, door, directory, only, journal)
    with contextlib.closing(server.stop):
        announce(sock, args, door)
        server.run()
    return 0


# --- guarding: the same in server.py, httpserver.py (tests/test_twins.py) ---
# of passwords that are made: none is taken for another when it is read or told
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
MAX_WRONG = 10  # wrong passwords from one address in WINDOW; more are answered busy
WINDOW = 60.0  # seconds
# addresses whose wrong passwords are counted; one more, and the first is forgotten
MAX_COUNTED = 10000
MAKE_CERTIFICATE = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -keyout key.pem -out cert.pem"
CERTIFICATE = """[req]
distinguished_name = name
x509_extensions = more
prompt = no
[name]
CN = Six Sockets
[more]
subjectAltName = {names}
"""
# TLS alerts, in the clear instead of a handshake: access_denied, internal_error
DENIED, OVERLOADED = 49, 80


class Guard:
    """The password, and who has tried others. Each address is told busy for itself: nobody can lock out somebody else."""

    def __init__(self, password: str) -> None:
        self.password = password
        # by network: when its minute ends, wrong passwords in it
        self.wrong: dict[str | bytes, tuple[float, int]] = {}
        self.lock = threading.Lock()

    def wait(self, host: str) -> int:
        """Seconds until an address may try again."""
        end, count = self.wrong.get(network(host), (0.0, 0))
        return max(0, int(end - time.monotonic() + 1)) if count >= MAX_WRONG else 0

    def judge(self, host: str, right: bool) -> str:
        """An attempt: "" for the right password, or the reason why not. Counting and judging are one step: many at once are no more."""
        with self.lock:
            if self.wait(host):
                return "busy"
            if right:
                return ""
            now = time.monotonic()
            end, count = self.wrong.pop(network(host), (0.0, 0))
            self.wrong[network(host)] = (end, count + 1) if now < end else (now + WINDOW, 1)
            if len(self.wrong) > MAX_COUNTED:
                del self.wrong[next(iter(self.wrong))]
            return "wrong-password"


def network(host: str) -> Union[str, bytes]:
    """Who counts as one: an IPv4 address, or 64 bits of an IPv6 address, for its owner has the rest."""
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8] if ":" in host else host


class Door(NamedTuple):
    """How clients come in."""

    guard: Optional[Guard]
    tls: "ssl.SSLContext | None"
    pin: str  # SHA-256 of the certificate
    made: str  # the password, when it was made for this run: it may be shown
    flags: str  # what a client's command needs for them


def make_door(args: argparse.Namespace, host: str) -> Door:
    password, made = choose_password(args), ""
    if not password and not args.open and host != "::1" and not host.startswith("127."):
        import secrets  # not at the top: few need it

        # 89 bits
        password = made = "-".join(
            "".join(secrets.choice(LETTERS) for _ in range(6)) for _ in range(3)
        )
    if args.key and not args.cert:
        raise Failure(
            2,
            "--key needs --cert",
            "a key alone is no certificate",
            "--cert FILE --key FILE, or --tls alone",
        )
    tls, pin = server_tls(args) if args.tls or args.cert else (None, "")
    flags = f" --password {made}" if made else " --ask-password" if password else ""
    return Door(
        Guard(password) if password else None,
        tls,
        pin,
        made,
        flags + (f" --pin {pin}" if tls else ""),
    )


def choose_password(args: argparse.Namespace) -> str:
    """The one that was given, or none."""
    if args.open and (args.password is not None or args.ask_password):
        raise Failure(
            2, "--open and a password exclude each other", "--open lets everybody in", "one of them"
        )
    if args.open:
        return ""
    if args.ask_password:
        args.password = ask_password("this server")
    if args.password == "":
        raise Failure(
            2,
            "an empty password is none",
            "everybody would guess it",
            "--open, if everybody may come in",
        )
    return args.password or os.environ.get("SIXSOCKETS_PASSWORD", "")


def server_tls(args: argparse.Namespace) -> "tuple[ssl.SSLContext, str]":
    """What TLS needs, and the certificate's SHA-256: --cert's, or that of one made for this run, whose key no file keeps."""
    import ssl
    import tempfile

    context = tls_context(args, server=True)
    context.options |= getattr(ssl, "OP_NO_RENEGOTIATION", 0)  # each would cost us a handshake
    with tempfile.TemporaryDirectory(prefix="six-") as folder:
        cert, key = (args.cert, args.key) if args.cert else make_certificate(args, folder)
        try:
            context.load_cert_chain(cert, key)
            with open(cert, encoding="ascii", errors="replace") as file:
                found = re.search(
                    "-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----",
                    file.read(),
                    re.DOTALL,
                )
            pin = fingerprint(ssl.PEM_cert_to_DER_cert(found[0] if found else ""))
        except (OSError, ValueError) as error:
            raise Failure(
                26,
                f"cannot use the certificate {cert} ({getattr(error, 'reason', '') or getattr(error, 'strerror', '') or error})",
                "--cert is a PEM file with the certificate, and --key the one with its key, unless that is in the first too",
                MAKE_CERTIFICATE,
            ) from None
    return context, pin


def make_certificate(args: argparse.Namespace, folder: str) -> tuple[str, str]:
    """A certificate for all names of this machine, signed by itself."""
    import shutil
    import subprocess

    names = {
        "DNS:localhost",
        "IP:127.0.0.1",
        "IP:::1",
        *(f"IP:{found}" for found in own_addresses()),
    }
    names |= {
        f"DNS:{name}"
        for name in (socket.gethostname(), args.host)
        if re.fullmatch("[0-9A-Za-z-]*[A-Za-z-][0-9A-Za-z.-]*", name)
    }
    with open(os.path.join(folder, "names"), "w", encoding="ascii") as file:
        file.write(CERTIFICATE.format(names=", ".join(sorted(names))))
    # by its whole path: Windows would look for it in the current folder first, which may be shared
    programs = (shutil.which(os.path.join(entry, OPENSSL)) for entry in os.get_exec_path())
    program = next((found for found in programs if found and os.path.isabs(found)), None)
    try:
        if not program:
            raise FileNotFoundError
        subprocess.run(
            [program, *MAKE_CERTIFICATE.split()[1:], "-config", "names"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        why = (
            "it makes the certificate"
            if isinstance(error, OSError)
            else error.stderr.decode(errors="backslashreplace").strip()[-200:]
        )
        raise Failure(
            2,
            "the openssl program is missing or fails",
            why,
            f"{MAKE_CERTIFICATE} -subj /CN=six, elsewhere; then --cert cert.pem --key key.pem",
        ) from None
    return os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")


def alert(number: int) -> bytes:
    """Instead of a handshake: a fatal alert (RFC 8446 section 6)."""
    return bytes([21, 3, 3, 0, 2, 2, number])


def door_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag(
        "--password",
        metavar="TEXT",
        help="what clients must know (better: the environment's SIXSOCKETS_PASSWORD, which no process list shows)",
    )
    flag("--ask-password", action="store_true", help="ask for it on the terminal")
    flag("--open", action="store_true", help="let other machines in without a password")
    flag(
        "--tls",
        action="store_true",
        help="encrypt; without --cert with a certificate made for this run",
    )
    flag("--cert", metavar="FILE", help="the certificate, PEM (implies --tls)")
    flag("--key", metavar="FILE", help="its key, if that is in another file")


# --- end guarding ---


# --- reading sizes: the same in server.py, httpserver.py (tests/test_twins.py) ---
def parse_size(text: str) -> int:
    """An argparse type: bytes. k, M, G, T are powers of 1,000; Ki, Mi, Gi, Ti are powers of 1,024."""
    found = re.fullmatch(r"([0-9]{1,15})(?:([kmgt])(i?))?", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 500k or 2Gi")
    base, power = 1024 if found[3] else 1000, " kmgt".index(found[2] or " ")
    return int(int(found[1]) * base**power)


# --- end reading sizes ---


# --- programs: the same in server.py, client.py, httpserver.py, httpclient.py (tests/test_twins.py) ---
SCRIPTS = (
    "server.py",
    "client.py",
    "httpserver.py",
    "httpclient.py",
    "tcp_upper.py",
    "udp_upper.py",
)
OPENSSL = "openssl.exe" if os.name == "nt" else "openssl"
# endings of what Python or Windows loads as code where they look for it
CODE = (".py", ".pyc", ".pyw", ".so", ".pyd", ".dylib", ".dll", ".exe", ".pth", "._pth")


@functools.lru_cache(maxsize=64)
def folder_key(folder: str) -> str:
    """One form for all ways to write a folder's path: disks may know neither case nor composed letters.

    A separator ends it, so that it begins the form of all that is in the folder."""
    real = os.path.join(os.path.realpath(folder), "")
    return unicodedata.normalize("NFD", real).casefold()


def path_key(path: str) -> str:
    folder, leaf = os.path.split(os.path.abspath(path))
    return folder_key(folder) + unicodedata.normalize("NFD", leaf).casefold() + os.sep


@functools.lru_cache(maxsize=1)
def program_places() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files that run when a script of ours starts, and the folders that Python imports from.

    The files are the scripts beside this one, the interpreter, what tells it its folders, and the
    one other program that --tls runs."""
    homes = {os.path.dirname(script) for script in (__file__, os.path.realpath(__file__))}
    bin_folder = os.path.dirname(sys.executable)
    files = {os.path.join(home, name) for home in homes for name in SCRIPTS}
    files |= {__file__, os.path.realpath(__file__), sys.executable}
    files |= {os.path.join(bin_folder, level, "pyvenv.cfg") for level in (os.curdir, os.pardir)}
    files |= {os.path.join(folder, OPENSSL) for folder in os.get_exec_path()}
    folders = {bin_folder, site.getusersitepackages(), *sys.path}
    # An empty entry, as in PYTHONPATH=: stands for the current folder: the first line of this
    # script takes that off the path, but Python imports sitecustomize before it.
    paths = "" if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "")
    folders.update(paths.split(os.pathsep) if paths else [])
    return tuple(map(path_key, files)), tuple(map(folder_key, folders))


def is_program(path: str) -> bool:
    """Whether a file of this name would be part of a program of ours at its next start."""
    key = path_key(path)
    files, folders = program_places()
    # below a file too: Python runs a folder that is called like a script, if it has a __main__.py
    if key.startswith(files) or key in folders:
        return True
    if key.startswith(folders) and key[: -len(os.sep)].endswith(CODE):
        return True
    with contextlib.suppress(OSError):
        return os.path.exists(path) and os.path.samefile(path, __file__)  # a hard link
    return False


def holds_program(path: str) -> bool:
    """Whether to rename or remove a folder of this name, or to move one there, would change one."""
    key = path_key(path)
    files, folders = program_places()
    return key.startswith(folders) or any(place.startswith(key) for place in files + folders)


# --- end programs ---


# --- secrets: the same in server.py, client.py, httpserver.py, httpclient.py (tests/test_twins.py) ---
def ask_password(whose: str) -> str:
    """From the terminal, unseen; where there is none, it is not read from elsewhere in the clear."""
    import getpass
    import warnings  # neither at the top, nor ssl below: few need them

    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(f"password for {whose}: ")
        except (getpass.GetPassWarning, EOFError, OSError):
            raise Failure(
                67,
                f"cannot ask for the password of {whose}",
                "there is no terminal here on which it could be typed unseen",
                "SIXSOCKETS_PASSWORD in the environment",
            ) from None


def tls_context(args: argparse.Namespace, server: bool) -> "ssl.SSLContext":
    """TLS 1.2 and later. --trace shows what goes in and comes out: on the wire it is encrypted."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if args.trace or args.trace_hex:
        context.sslsocket_class = type("TracedTLS", (socket_class(args), ssl.SSLSocket), {})
    return context


def over_tls(
    context: "ssl.SSLContext", sock: socket.socket, host: Optional[str] = None
) -> "ssl.SSLSocket":
    """The connection, from now on encrypted; the handshake is still to come. Where a client's stream ends without TLS's own end
    it was cut, perhaps on purpose: an error. What comes to a server says itself how long it is."""
    secured = context.wrap_socket(
        sock,
        server_side=host is None,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=host is None,
        server_hostname=host,
    )
    if isinstance(sock, Traced):
        vars(secured).update(vars(sock))  # its trace goes on as the same connection's
    return secured


def shake_hands(secured: "ssl.SSLSocket") -> None:
    began = time.perf_counter()
    secured.do_handshake()
    if isinstance(secured, Traced):
        secured.show(
            "*",
            f"TLS handshake ok ({secured.version()}, {(secured.cipher() or '?')[0]}, {1000 * (time.perf_counter() - began):.2f} ms)",
        )


def end_tls(sock: socket.socket) -> None:
    """TLS's own end of the stream, if the kernel has room for it; FIN comes after it."""
    if hasattr(sock, "unwrap"):
        sock.settimeout(0)
        with contextlib.suppress(OSError, ValueError):
            sock.unwrap()


def fingerprint(certificate: Optional[bytes]) -> str:
    import hashlib

    return hashlib.sha256(certificate or b"").hexdigest()


# --- end secrets ---


# --- trace: the same in all six scripts (tests/test_twins.py) ---
T = TypeVar("T")
DUMPED = 64  # bytes of each call that --trace-hex prints
LONGEST_NAME = len("authorization:")  # the longest name that announces a secret
SECRET = re.compile(rb"(?i)((?:authorization|cookie):[ \t]*|\bproof=)([^\r\n]*)")


def hexdump(data: bytes) -> str:
    """The first bytes, sixteen a line."""
    rows = [(start, data[start : start + 16]) for start in range(0, min(len(data), DUMPED), 16)]
    return "".join(
        f"\n{start:16x}  {row.hex(' '):47}  {re.sub(rb'[^ -~]', b'.', row).decode()}"
        for start, row in rows
    )


class Traced(socket.socket):
    """A socket that prints a line on stderr for each call.

    It shows what the program asks of the kernel, and what the kernel replies. SYN, ACK and
    retransmission happen inside the kernel: only tcpdump or Wireshark show them.
    """

    began = time.perf_counter()
    numbers = itertools.count(1)
    dump = False  # whether --trace-hex asks for the bytes
    number = sent = received = 0
    # for each direction: the end of the last line, or the name of the secret that it is in
    unended: Mapping[str, bytes] = {}

    def show(self, mark: str, text: str, data: Any = b"") -> None:
        self.number = self.number or next(self.numbers)
        dumped = hexdump(self.masked(mark, bytes(data))) if self.dump and data else ""
        now = 1000 * (time.perf_counter() - self.began)
        say(f"{now:9.3f} ms #{self.number} {mark} {text}{dumped}")

    def masked(self, mark: str, data: bytes) -> bytes:
        """The bytes, with asterisks for a secret, even if its line came in several pieces."""
        before = self.unended.get(mark, b"")
        text = SECRET.sub(lambda found: found[1] + b"*" * len(found[2]), before + data)
        line = text[max(text.rfind(b"\r"), text.rfind(b"\n")) + 1 :]
        secret = SECRET.search(line)
        self.unended = {**self.unended, mark: secret[1] if secret else line[-LONGEST_NAME:]}
        return text[len(before) :]

    def attempt(
        self, mark: str, what: str, call: Callable[..., T], *args: object
    ) -> tuple[T, float]:
        """What the call returns, and the milliseconds that it lasted."""
        began = time.perf_counter()
        try:
            return call(*args), 1000 * (time.perf_counter() - began)
        except OSError as error:
            # these mean: nothing happened
            if not isinstance(error, BlockingIOError) and "Want" not in type(error).__name__:
                self.show(mark, f"{what}: {error.strerror or 'timed out'}")
            raise

    def show_sent(self, name: str, data: Any, count: int) -> None:
        self.sent += count
        text = f"{name} {count} of {len(data)} bytes (sent so far {self.sent})"
        self.show(">", text, data[:count])

    def show_received(self, data: Any, size: int, waited: float) -> None:
        count = len(data)
        self.received += count
        text = f"{count} of at most {size} bytes, waited {waited:.2f} ms"
        text += f" (received so far {self.received})"
        self.show("<", f"recv {text if count else '0 bytes = peer sent FIN (end of stream)'}", data)

    def connect(self, target: Any) -> None:
        _, lasted = self.attempt("*", f"connect {address(target)}", super().connect, target)
        here = address(self.getsockname())
        self.show("*", f"connect {address(target)} ok from {here} (handshake {lasted:.2f} ms)")

    def accept(self) -> tuple[socket.socket, Any]:
        (plain, peer), _ = self.attempt("*", "accept", super().accept)
        # the same connection as a traced object: the plain one gives its descriptor away
        conn = Traced(fileno=plain.detach())
        conn.show("*", f"accept from {address(peer)}")
        return conn, peer

    def send(self, data: Any, flags: int = 0) -> int:
        count, _ = self.attempt(">", "send", super().send, data, flags)
        self.show_sent("send", data, count)
        return count

    def recv(self, size: int, flags: int = 0) -> bytes:
        data, waited = self.attempt("<", "recv", super().recv, size, flags)
        self.show_received(data, size, waited)
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        count, waited = self.attempt("<", "recv", super().recv_into, buffer, size, flags)
        self.show_received(memoryview(buffer)[:count], size or len(buffer), waited)
        return count

    def shutdown(self, how: int) -> None:
        self.attempt("*", "shutdown", super().shutdown, how)
        side = "receiving" if how == socket.SHUT_RD else "sending = FIN"
        self.show("*", f"shutdown of {side}")

    def close(self) -> None:
        if self.fileno() >= 0:
            self.show("*", f"close (sent {self.sent}, received {self.received})")
        super().close()


def socket_class(args: argparse.Namespace) -> type[socket.socket]:
    """The class of all sockets: without --trace the plain one, so that it costs nothing."""
    Traced.dump = args.trace_hex
    return Traced if args.trace or args.trace_hex else socket.socket


# --- end trace ---


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


def raise_file_limit() -> None:
    """A connection is a descriptor: ask for as many as the system lets this user have."""
    # macOS names a limit that it does not grant
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not at the top: Windows has none

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
        if sys.platform == "win32":  # where two servers could otherwise share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        elif reuse and backlog is not None:
            # or connections of an earlier server in TIME_WAIT would keep the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
    host, port = str(place[0]), place[1]
    host = host[7:] if host.startswith("::ffff:") and "." in host else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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


class Layout(argparse.HelpFormatter):
    """Help that fits on a screen. With the width given, argparse need not load shutil to ask."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100, max_help_position=32)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        arguments = [action for action in actions if not action.option_strings]
        if prefix is None:  # else this makes the prog of a subcommand
            arguments.insert(0, argparse.Action([], "", nargs="*", metavar="OPTION"))
        super().add_usage(usage, arguments, groups, prefix)

    def format_help(self) -> str:
        return super().format_help().replace("\n\n", "\n")


class Parser(argparse.ArgumentParser):
    """argparse with a short -h, the manual for --help, and complaints in three lines."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=Layout, add_help=False, **settings)
        what = "show this; --help shows the manual first"
        self.add_argument("-h", "--help", action="help", help=what)

    def format_help(self) -> str:
        manual = f"{__doc__}\n" if "--help" in sys.argv else ""
        return manual + super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What parse_args() calls, for a subcommand too: so each names its own options."""
        words = sys.argv[1:] if args is None else args
        if [word.partition("=")[0] for word in words].count("--host") > 1:
            self.error("--host is given twice, but only one address is used")
        known, unknown = super().parse_known_args(words, namespace)
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
def announce(sock: socket.socket, args: argparse.Namespace, door: Door) -> None:
    """Where the server listens: for programs on stdout; for people on stderr, with the command that reaches it."""
    host, port = sock.getsockname()[:2]
    try:
        print(f"listening on {address((host, port))}", flush=True)
    except OSError as error:
        sock.close()
        raise Failure(
            23,
            f"cannot write standard output ({error.strerror})",
            "what reads it has ended, or its disk is full",
            "python3 server.py > FILE",
        ) from None
    elsewhere = reachable_at(sock)
    for name in elsewhere:
        say(f"from another machine:  {CLIENT} --host {name} --port {port}{door.flags} list")
    if not elsewhere:
        named = f" --host {host}" if host != "127.0.0.1" else ""  # where clients look by themselves
        return say(
            f"only this machine can reach it, with:  {CLIENT}{named} --port {port}{door.flags} list\nfor others, start it with --host 0.0.0.0"
        )
    if not door.guard:
        say(
            f"nobody is asked for a password: everybody who reaches it can read it{'' if args.read_only else ' and change it'}"
        )
    if not door.tls:
        guess = " and try to guess a weak password" if door.guard else ""
        say(f"nothing is encrypted: others on the way can read the traffic{guess}; --tls encrypts")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="server.py")
    flag = parser.add_argument
    flag(
        "path",
        nargs="?",
        metavar="FOLDER",
        help="what is shared: a folder, or a single file (default files, made when missing)",
    )
    flag("--directory", default="files", metavar="DIR", help="the same as a flag")
    flag(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default 127.0.0.1); 0.0.0.0 or :: for all",
    )
    flag(
        "--port",
        type=between(0, 65535),
        default=9000,
        help="the port; any free one for 0 (default 9000)",
    )
    door_flags(parser)
    flag("--read-only", action="store_true", help="refuse what would change the folder")
    flag("--hidden", action="store_true", help="show and serve names that start with a dot")
    flag(
        "--durable",
        action="store_true",
        help="have files on the disk itself before success is told (fsync)",
    )
    flag(
        "--max-size",
        type=parse_size,
        default=0,
        metavar="N",
        help="largest upload, such as 500M or 2Gi; 0 is no limit (default)",
    )
    flag(
        "--min-free",
        type=parse_size,
        default=0,
        metavar="N",
        help="refuse uploads that would leave less room on the disk (default 0)",
    )
    flag(
        "--max-clients",
        type=between(1, 1e5),
        default=500,
        metavar="N",
        help="more are refused (default 500)",
    )
    flag(
        "--timeout",
        type=between(0.01, 1e6, float),
        default=30.0,
        metavar="S",
        help="silence allowed inside a line or body (default 30)",
    )
    flag("--log", metavar="FILE", help="where the log goes (default stderr)")
    flag("--trace", action="store_true", help="print a line for each socket call")
    flag("--trace-hex", action="store_true", help="the same, with the first bytes")
    flag("--version", action="version", version=f"%(prog)s {VERSION}, protocol {PROTOCOL}")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return serve(args)
    except Failure as failure:
        say(str(failure))
        return failure.code
    except KeyboardInterrupt:  # at the question for the password; later it is Stop's
        say("\nstopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
