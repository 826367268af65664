#!/usr/bin/env python3
"""Share a folder or a file over HTTP: for browsers, curl, wget and proxies.

    python3 httpserver.py                        the current folder, at http://127.0.0.1:8000/
    python3 httpserver.py Pictures               another folder
    python3 httpserver.py film.mkv --once        one file; ends when a client has got all of it
    python3 httpserver.py --read-only            nobody can change anything
    python3 httpserver.py --host 0.0.0.0 --tls   for other machines too, encrypted; it makes and
                                                 prints a password
    python3 httpserver.py --host 0.0.0.0 --open  without one; --public-read asks for it only
                                                 where something changes

    curl http://127.0.0.1:8000/                  the folder as a page; as a list with
                                                 -H 'Accept: application/json' or text/plain
    curl -T new.txt http://127.0.0.1:8000/docs/  upload with PUT: 201 new, 204 replaced; missing
                                                 folders are made
    curl -F file=@a.txt http://127.0.0.1:8000/   upload as a form; a name that exists gets a number
    curl -X DELETE http://127.0.0.1:8000/new.txt   /folder/?recursive if it is not empty
    curl -X MKCOL http://127.0.0.1:8000/folder/  make a folder; to rename:
                                                 -X MOVE -H 'Destination: /other'
    curl -C - -o x.tar 'http://127.0.0.1:8000/x/?tar'   a folder as an archive that can be
                                                 resumed; ?zip cannot; ?zip=A/B holds two of it
    wget -r http://127.0.0.1:8000/               all files that can be found by links

HTTP/1.1 (RFC 9110, 9112). GET and HEAD know ETag, all conditions, ranges, and a fresh .gz beside
the file; index.html is the page of its folder. A POST that is no form is stored under a new name,
or under the one in Content-Disposition. An upload is received beside its destination, and renamed
into place when it is whole. Repr-Digest (RFC 9530, sha-256, header or trailer) is checked first;
Want-Repr-Digest asks for it; an answer leaves it out while those of others take too long.

A folder as JSON is a list of its files and folders: name, for reading; href, the exact name in a
URL; size and etag, null for a folder; mtime, in seconds since 1970; type, "folder" for a folder.

Uploads resume as in draft-ietf-httpbis-resumable-upload-10 (interop version 8): POST or PUT with
Upload-Complete, then HEAD and PATCH of the Location in the answer, for seven days. There, a
complete upload says so for as long as its file stays. X-OC-Mtime sets a file's time: seconds since
1970, perhaps with a sign and a fraction, as in ownCloud, rclone and Apache. Without it, a resumable
upload gets the time when it began. X-Executable: 1 stands, both ways, for a file that its owner may
execute. All state is in the folder, so several servers can share one
folder. Runs of zeros become holes where the disk has them.

With --drop-box, who connects can add files and folders, resume an own upload, and nothing else.
Each sender has a folder: named by the login, or by the field Sender (percent-encoded), or by the
address. A name that exists gets a number; Stored-As tells the name (percent-encoded), the log who
handed in what, and with --json as one JSON object a line.

One password is for all: --password, --ask-password or SIXSOCKETS_PASSWORD. On addresses other than
loopback the server makes and prints one, unless it has --open. Clients send it by Basic (RFC 7617),
with any name; for more than that, put a proxy in front. After ten wrong ones within a minute an
address gets 429 until the minute is over. --trust-proxy names a proxy whose word counts for the
client's address. --tls makes a certificate for the run, whose SHA-256 httpclient.py takes as --pin.

Limits: on loopback there is no password unless one is given; without --tls others can read all,
the password too. Links are not followed; names that start with a dot are not served without
--hidden; a path has at most 64 names. No request changes these scripts or what Python imports at
their start. HTML and SVG run no script here, except with --read-only. A Host that is no name of
this machine is refused, unless --allow-host names it or each request needs the password, and so is
a change that another site's page sends: no web page reaches the folder. A proxy in front passes the
Host of the address behind it, and the one that the browser asked for as X-Forwarded-Host.
"""

# The map
#
# Begin with Connection.ready(), which the loop calls when something has come. Connection.advance()
# takes the requests out of it, and Connection.answer_to() answers one.
# The sections, in the order of the file:
#   a request          Request, parse_head(), is_known(), parse_ranges(), client_behind()
#   the folder         check_name(), Place (a name in a folder), Opened, Entry (listed), Shared,
#                      rename(), Part
#   a connection       Answer, Connection, Connection.enter(), BodyReader
#   the loop           Server, Server.turn(), Server.work(), serve()
#   methods            check_request(); get(), get_file(); put(), receive_upload(), post_form();
#                      patch(); delete(), mkcol(), move(); hand_in() for a drop box; METHODS
#   archives, page     get_archive(), listing(), page_body(), error_page(), qr_code()
#   shared fences      Guard, is_program(), Capture, Traced, Stop, bind(), Failure, Parser
#   the command line   announce(), build_parser(), main()
#
# Threads: the main thread is the loop. It alone touches the selector and the queues, and answers
# what is short. A worker touches one connection, from the task that it takes off a queue until it
# leaves what the loop does next in another queue, and rings the bell. What several threads count
# is guarded by the lock of the Server.

# The life of a connection
#
#   accept                    one byte            whole, short
#     +--> HANDSHAKE --> IDLE --------> HEAD ----------+-----> sent: IDLE again, or LINGERING
#                         ^                            |          ^ and closed, if it ends
#                         |           whole, long      +-----> ANSWERING: no room for the rest
#                         +--- HANDED_OVER <-----------+
#
# Each state has a queue in which the first deadline comes first; Connection.enter() alone moves a
# connection from one to another. No deadline: idle, or with a worker, which has its own.

# Why none of http.server's classes? Their habits break rules that tests/test_httpserver.py holds:
#   a malformed field line ends the head and hides all fields after it    ("1 a header line ...")
#   a lone CR passes in a field, \x0b and \xa0 for a space                ("3 a lone CR", "4 ...")
#   the body of a refused request is read as the next request             (..._becomes_the_next_...)
#   head and body leave apart, and Nagle holds the second for 40 ms       (..._in_one_segment)
#   no deadline for a head, and a thread even for an idle connection      (..._its_bytes_drip)
#   a small file takes 310 us of the processor, and 31 us here            (wrk -c 16, one machine)

# --- imports: the same in all six scripts (tests/test_twins.py) ---
import sys

if __name__ == "__main__":
    # A file that arrives must never be imported, whatever its name. Python looks for modules first
    # in the folder of this script, and PYTHONPATH may add the current folder: take both out of the
    # list before anything else is imported. (So there is no import from __future__ either.)
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]
    import os

    own = os.path.dirname(os.path.realpath(__file__))
    library = os.path.dirname(os.__file__)
    for folder in sys.path[:]:
        path = folder or "."
        if folder == library or not os.path.exists(path):
            continue
        if os.path.samefile(path, own) or os.path.samefile(path, "."):
            sys.path.remove(folder)

    import signal

    # Ctrl-C while the rest is loaded: the end of any program, and no traceback
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
# --- end imports ---

import argparse
import base64
import codecs
import contextlib
import copy
import enum
import errno
import functools
import hashlib
import html
import io
import ipaddress
import itertools
import json
import mimetypes
import os
import queue
import re
import secrets
import select
import selectors
import signal
import site
import socket
import stat
import struct
import threading
import time
import unicodedata
import urllib.parse
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional, Union

if TYPE_CHECKING:
    import ssl

VERSION = "1.0"
SERVER = "python3 httpserver.py"
CLIENT = "python3 httpclient.py"
PORT = 8000
MAX_HEAD = 32768  # bytes of a request's head, all of it
MAX_TARGET = 8192  # bytes of the target in it
MAX_FIELDS = 100  # header fields in it
MAX_USER = 64  # bytes of the name in a login that the log shows
MAX_PROXIES = 8  # trusted proxies, one behind another
MAX_LINE = 1024  # bytes of a chunk's size line with its extensions
# bytes of the fields after the last chunk, and of the head of a field of a form
MAX_TRAILER = 8192
# fields of a form: a large folder that is dropped on the page in a browser without JavaScript
MAX_FORM_FIELDS = 10000
MAX_LISTED = 10  # files of a form that the answer names
MAX_RANGES = 16  # after coalescing; a client that asks for more gets the whole file
MAX_GAP = 100  # bytes between two ranges that are sent too: about the size of another head
MAX_DEPTH = 64  # names in a path that a client sends or an archive holds
# folders in one another that a client deletes or moves: programs on this machine may have made
# them, and Python's calls go not much deeper
MAX_WALKED = 250
# requests that one connection gets answered before another one has its turn
MAX_PIPELINED = 32
MAX_ACCEPTED = 16  # connections that are accepted before others have their turn
MAX_THREADS = 512  # transfers and folder walks at once
FOREVER = float("inf")  # a time that never comes
SPARE_THREADS = 4  # workers kept for the next long request
MAX_LINGERING = 256  # refused connections that wait until the client has read why
# heads that are remembered, the bytes of such a head, and those of the answer that is remembered
# with it: all together 50 MB at most
MAX_KNOWN, KNOWN_HEAD, KNOWN_BODY = 2048, 2048, 16384
SMALL = 131072  # bytes of an answer that the loop sends itself
PIECE = 262144  # bytes read or written at a time
LOOK_AFTER = 1 << 24  # bytes read for a digest between two looks whether the client has left
QUICK = 1 << 20  # bytes of a file that the loop sends itself
SENDFILE = 1 << 21  # bytes asked of one sendfile(): more of them fall out of the processor's cache
# bytes of a TLS record at most: with less room, TLS keeps bytes where no selector sees them
RECORD = 1 << 14
SLICE = 1 << 16  # bytes of one send(): TLS takes all or nothing, so a slow reader would seem stuck
DRAIN = 65536  # bytes of an unwanted body that the server reads to keep the connection
LINGER = 2.0  # seconds that a refused client has to read why
GRACE = 2.0  # seconds that answers under way have after Ctrl-C
MIN_RATE = 64  # bytes that make up for a second of waiting: a slower client is stuck
NOTE_EVERY = 1.0  # seconds between two 104 responses with the offset of an upload
# seconds that a worker waits for the next request before it gives its connection back
NEXT_WAIT = 0.002
LOG_DELAY = 0.1  # seconds for which log lines are gathered
# This finds a client that vanished within two minutes, even while it is idle. The first two options
# are the same one: Linux and macOS name it differently.
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
ACCEPT_PAUSE = 0.5  # seconds to the next accept() if no descriptor or memory is left
# how often a lock that another thread has is tried, and the seconds between: two in all
BUSY_TRIES, BUSY_PAUSE = 1000, 0.002
# seconds for which an interrupted upload can be resumed, and the part of a killed server stays
PART_AGE = 7 * 86400
HOLE = 4096  # bytes: shorter runs of zeros are written, because no file system makes holes of them
FREE_CHECK = 1 << 20  # bytes of an upload between two checks of the free space
MAX_NUMBER = 1000  # files of one name that get different numbers
MAX_DIGESTS = 10000  # files whose digest is cached
DIGEST_WAIT = 1.0  # seconds that a request waits for its turn to have a digest computed
# seconds without a change before a digest or an answer is remembered: two changes within one tick
# of the clock have the same time
UNCHANGED = 2.0
MAX_SEARCHED = 10000  # folders whose last search for old parts is remembered
# a part, in small letters or capitals: some disks do not distinguish them
PART = re.compile(r"\.six-[0-9a-f]{32}\.part", re.IGNORECASE)
EXECUTABLE = "X-Executable"  # our own field: 1 for a file that its owner may execute
# a client must name this version of the resumable-upload draft to get interim answers
INTEROP = "8"
ANYBODY = "any"  # the user name of who gives none
REFUSED = "This is a drop box: files can be added, and nothing else can be done."
PROXIED = frozenset(
    ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
)
CHALLENGE = {
    "WWW-Authenticate": 'Basic realm="Six Sockets: any name, and the password", charset="UTF-8"'
}
# no page of another site may show our files as images, or run them as scripts
EMBEDDING = {"Cross-Origin-Resource-Policy": "same-origin"}
# where an answer ends, and which bytes of a file it holds: --header may not replace these
FRAMING = "content-length", "content-range", "trailer", "transfer-encoding"
READING = ("GET", "HEAD", "OPTIONS")
CHANGING = ("PUT", "POST", "DELETE", "MKCOL", "MOVE", "PATCH")
# types in which a browser runs scripts
ACTIVE = re.compile(r"text/html|application/xhtml\+xml|.*[/+]xml")
CORK = getattr(socket, "TCP_CORK", 0)  # send full segments alone, until this is taken off
MORE = getattr(socket, "MSG_MORE", 0)  # the same for one send(): what follows comes at once
UTF_8 = "; charset=utf-8"
# whether the calls take an open folder: a system has them all, or none
DIR_FD = os.open in os.supports_dir_fd and os.scandir in os.supports_fd


def open_flags(names: str) -> int:
    """Flags for os.open(): those of them that the system has."""
    return sum(getattr(os, name, 0) for name in names.split())


FOLDER = open_flags("O_RDONLY O_DIRECTORY O_NOFOLLOW")
# O_NONBLOCK: opening a FIFO must not wait for its writer
LEAF = open_flags("O_RDONLY O_NOFOLLOW O_NONBLOCK O_BINARY")
WRITABLE = open_flags("O_RDWR O_NOFOLLOW O_BINARY")
FRESH = WRITABLE | os.O_CREAT | os.O_EXCL  # a new file: what has its name already is an error
# what link() fails with on a disk without hard links
NO_LINKS = errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP

# For errors of the system, the status and the fixed text for the client: never a local path.
TEXTS = """
404 ENOENT ENOTDIR: there is no such file or folder
403 ELOOP EMLINK: links are not followed
403 EACCES EPERM: the server may not do that here
403 EROFS: the disk is read-only
400 ENAMETOOLONG: the name is too long
400 EINVAL EILSEQ: the system takes no such name
403 ENXIO: only files and folders are served
409 EISDIR: a folder has that name
412 EEXIST: that name exists
409 ENOTEMPTY: the folder is not empty (?recursive deletes it all the same)
507 ENOSPC: the disk is full
507 EDQUOT: the disk is full for this user
507 EFBIG: too large for the disk
409 EXDEV: not on the same disk
503 EMFILE ENFILE: too many open files
"""
PROBLEMS = {
    getattr(errno, name): (int(status), text)
    for status, names, text in re.findall("(...) (.*?): (.*)", TEXTS)
    for name in names.split()
}


Call = Callable[[], object]
Data = Union[bytes, memoryview]  # noqa: UP007  (3.9)
Fields = dict[str, str]  # header fields: lower-case names in a request
Facts = os.stat_result  # what the system tells of a file or folder
Names = Sequence[str]  # the names in a path, from the shared folder down
Ranges = list[tuple[int, int]]  # (start, end), without the byte at the end


class Refusal(Exception):
    """What the client gets instead: a status, a sentence, header fields.

    With close the connection cannot go on. The note is for the log alone."""

    def __init__(
        self,
        status: int,
        text: str,
        fields: Optional[Fields] = None,
        close: bool = False,
        note: str = "",
    ) -> None:
        super().__init__(text)
        self.status, self.text, self.fields = status, text, fields or {}
        self.close, self.note = close, note or text


class Gone(Exception):
    """The client left, or was too slow: it gets no answer any more. The text is for the log."""


# --- a request: its head, conditions, ranges; values in, values out ---

# The head (RFC 9112).

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"

LINE = re.compile(rf"({TOKEN}) ([^\x00-\x20\x7f]+) HTTP/([0-9])\.([0-9])")

# A line ends in CRLF. A lone LF is accepted too (§2.2), so that a request can be typed into
# netcat; a lone CR is not.
WHOLE_HEAD = re.compile(
    rf"({TOKEN}) ([^\x00-\x20\x7f]+) HTTP/1\.([0-9])\r?\n"
    rf"((?:{TOKEN}:[^\x00-\x08\x0a-\x1f\x7f]*\r?\n)*)\r?\n"
)

FIELD = re.compile(rf"({TOKEN}):[ \t]*([^\r\n]*)")

HEAD_END = re.compile(rb"\n\r?\n")

EMPTY_LINES = re.compile(rb"\A(?:\r?\n)+")

HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z_~!$&'()*+,;=%.-]*)(?::[0-9]*)?")

URL = re.compile(r"https?://([^/?]+)(.*)", re.IGNORECASE | re.DOTALL)

WEIGHT = re.compile(r"([^\s,;]+)(?:[^,]*?;\s*q=([01]\.?[0-9]*))?[^,]*")

UPLOAD_URL = re.compile(r"(\?upload=[0-9a-f]{8}).*")

BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

DIGITS = re.compile(r"[0-9]{1,18}")
LENGTH = re.compile(r"([0-9]{1,18})(?:[ \t]*,[ \t]*\1)*")  # a proxy may repeat it (§6.3)
QUOTED = r'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
CHUNK = re.compile(rf"([0-9A-Fa-f]{{1,15}})(?:;{TOKEN}(?:=(?:{TOKEN}|{QUOTED}))?)*")  # §7.1.1


class Request:
    """A request's head, all its values checked. Nobody changes it: known_head() gives it again.

    Only the loop adds the last short answer, which recall() gives to the next such head."""

    remembered: "Optional[Answer]" = None

    def __init__(self, method: str, target: str, minor: int, fields: Fields) -> None:
        self.method, self.minor, self.fields = method, minor, fields
        # for the log: an upload's URL is long, and who knows all of it can change the upload
        shown = UPLOAD_URL.sub(r"\1...", target)
        self.line = printable(f"{method} {shown} HTTP/1.{minor}")
        self.chunked, self.length = framing(fields, minor)
        self.has_body = self.chunked or self.length > 0
        words = [word.strip() for word in fields.get("connection", "").lower().split(",")]
        self.keep = "close" not in words if minor else "keep-alive" in words  # (§9.3)
        self.host, path = split_target(method, target, fields.get("host"), minor)
        self.names, self.slash, self.query = parse_path(path)
        # the loop itself answers these: most are reads of one file
        self.is_light = (
            method in READING
            and not self.has_body
            and not self.query
            and "want-repr-digest" not in fields
        )

    def field(self, name: str) -> str:
        return self.fields.get(name, "")

    def below(self, folder: str) -> "Request":
        """The same request for a name in this folder, whatever is there."""
        moved = copy.copy(self)
        moved.names = (folder, *self.names)
        moved.fields = {name: self.fields[name] for name in self.fields.keys() - CONDITIONS}
        return moved


def parse_head(head: bytes) -> Request:
    text = head.decode("latin-1")
    found = WHOLE_HEAD.fullmatch(text)
    if not found:
        raise malformed(text)
    method, target, minor, lines = found.groups()
    if len(target) > MAX_TARGET:
        raise Refusal(414, "the target is too long")
    fields: Fields = {}
    pairs = FIELD.findall(lines)
    if len(pairs) > MAX_FIELDS:
        raise Refusal(431, f"more than {MAX_FIELDS} header fields")
    for name, value in pairs:
        name = name.lower()
        value = value.rstrip(" \t")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return Request(method, target, int(minor), fields)


HEADS: dict[bytes, Request] = {}  # those of one client are often the same: parse them once


def known_head(head: bytes) -> Request:
    request = HEADS.get(head) or parse_head(head)
    if len(head) <= KNOWN_HEAD:
        if len(HEADS) >= MAX_KNOWN:
            HEADS.clear()
        HEADS[head] = request
    return request


def malformed(head: str) -> Refusal:
    """Why a head is none."""
    line = LINE.fullmatch(re.split(r"\r?\n", head, maxsplit=1)[0])
    if line and line[3] > "1":
        return Refusal(505, "HTTP/1.1 is spoken here")
    if not line or line[3] == "0":
        return Refusal(400, "the request line is not METHOD TARGET HTTP/1.1, with single spaces")
    # folded, without colon, a space before it, a lone CR
    return Refusal(400, "a header line is not NAME: VALUE")


def framing(fields: Fields, minor: int) -> tuple[bool, int]:
    """How the body is delimited: chunked, or by its length (§6.3).

    Where that is ambiguous, a proxy could see another request than this server."""
    if "transfer-encoding" not in fields:
        found = LENGTH.fullmatch(fields.get("content-length", "0"))
        if not found:
            raise Refusal(400, "Content-Length is not one number")
        return False, int(found[1])
    if "content-length" in fields or not minor:
        raise Refusal(400, "Transfer-Encoding with Content-Length or in HTTP/1.0")
    codings = [word.strip(" \t").lower() for word in fields["transfer-encoding"].split(",")]
    if codings == ["chunked"]:
        return True, 0
    if "chunked" in codings[:-1]:
        raise Refusal(400, "chunked must be the last transfer coding")
    raise Refusal(501, "no other transfer coding than chunked")


def split_target(method: str, target: str, host: Optional[str], minor: int) -> tuple[str, str]:
    """The host that was asked, and the path with the query (§3.2)."""
    if host is None and minor or not HOST.fullmatch(host or ""):
        raise Refusal(400, "exactly one valid Host is needed")
    if target[0] == "/":
        return host or "", target
    if method == "CONNECT":
        raise Refusal(405, "this is no proxy", {"Allow": ", ".join(READING)})
    if target == "*" and method == "OPTIONS":
        return host or "", "/"
    found = URL.fullmatch(target)
    if not found or not HOST.fullmatch(found[1]):
        raise Refusal(400, "the target is neither a path nor a URL")
    path = found[2]
    return found[1], path if path[:1] == "/" else "/" + path


def parse_path(target: str) -> tuple[Names, bool, str]:
    """The names in a path, decoded once; whether it ends in a slash; and the query.

    An encoded slash does not separate names."""
    path, _, query = target.partition("?")
    if BAD_ESCAPE.search(path):
        raise Refusal(400, "a percent sign must be followed by two hex digits")
    names = [
        os.fsdecode(urllib.parse.unquote_to_bytes(part.encode("latin-1")))
        for part in path[1:].split("/")
    ]
    slash = names[-1] == ""
    if slash:
        names.pop()
    return tuple(names), slash, query


# Conditions, ranges, negotiation (RFC 9110).

CONDITIONS = frozenset(("if-match", "if-none-match", "if-modified-since", "if-unmodified-since"))

PACKED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}

# the year 1000: HTTP's years have four digits, and a broken disk may give any time
EARLIEST = -30610224000

# for what has no date: NaN is neither before nor after any, so conditions on dates are ignored
# (§13.1.3, §13.1.4)
NO_DATE = float("nan")

TAG = re.compile(r'(W/)?("[^"]*")')

RANGE = re.compile(r"[ \t]*(?:([0-9]{1,40})-([0-9]{0,40})|-([0-9]{1,40}))[ \t]*")


def bare_tag(info: Facts) -> str:
    return f"{info.st_mtime_ns:x}-{info.st_size:x}-{info.st_ino:x}"


def is_executable(info: Facts) -> bool:
    return info.st_mode & stat.S_IXUSR > 0


def facts_of(info: Facts) -> tuple[int, ...]:
    return info.st_ino, info.st_size, info.st_ctime_ns, info.st_mtime_ns, info.st_dev


def etag(info: Facts, coding: str = "") -> str:
    return f'"{bare_tag(info)}{coding}"'


@functools.lru_cache(maxsize=64)
def status_line(status: int, seconds: int, dated: bool) -> bytes:
    date = f"Date: {http_date(seconds)}\r\n" if dated else ""
    return f"HTTP/1.1 {status} {PHRASES[status]}\r\n{date}".encode()


@functools.lru_cache(maxsize=1024)
def http_date(seconds: int) -> str:
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", calendar(time.gmtime, seconds))


@functools.lru_cache(maxsize=1024)
def parse_date(text: str) -> float:
    if not text:
        return NO_DATE
    import email.utils  # not at the top: the slowest import of all, and few requests have a date

    with contextlib.suppress(ValueError, TypeError, IndexError, OverflowError):
        # asctime's form names no zone (§5.6.7)
        return email.utils.parsedate_to_datetime(text.removesuffix(" GMT") + " GMT").timestamp()
    return NO_DATE


def matches(listed: str, tag: str, weak: bool) -> bool:
    """Whether an entity tag is in a list (§13.1.1, §13.1.2). A star matches any that exists."""
    if listed.strip() == "*" or not tag:
        return bool(tag)
    return any(found[1] == tag and (weak or not found[0]) for found in TAG.findall(listed))


def is_known(fields: Fields, tag: str, mtime: float, reading: bool = True) -> bool:
    """The preconditions in their order (§13.2.2): whether a reader already has it (304).

    Any other that fails is refused (412). What is not there has no tag, and is always too new."""
    if CONDITIONS.isdisjoint(fields):
        return False
    since = parse_date(fields.get("if-modified-since", ""))
    until = parse_date(fields.get("if-unmodified-since", ""))
    if "if-match" in fields:
        fails = not matches(fields["if-match"], tag, weak=False)
    else:
        fails = mtime > until
    if "if-none-match" in fields:
        known = matches(fields["if-none-match"], tag, weak=True)
    else:
        known = reading and mtime <= since
    if fails or known and not reading:
        raise Refusal(412, "what is there is not what the request expects")
    return known


def parse_ranges(text: str, size: int) -> Optional[Ranges]:
    """The (start, end) that a Range asks for, ascending.

    [] when the file has none of these bytes, None when the field is to be ignored."""
    unit, _, listed = text.partition("=")
    wanted = [RANGE.fullmatch(part) for part in listed.split(",") if part.strip()]
    if unit.strip().lower() != "bytes" or not wanted or listed.count(",") > 1000:
        return None
    ranges = []
    for found in wanted:
        if not found:
            return None
        first, last, suffix = found.groups()
        # the last N bytes of an empty file: it can be had, and is empty (§14.1.2)
        if suffix and int(suffix) and not size or last and int(last) < int(first):
            return None
        start = max(0, size - int(suffix)) if suffix else int(first)
        end = min(size, int(last) + 1) if last else size
        if start < end:
            ranges.append((start, end))
    merged = coalesce(ranges, MAX_GAP)
    return merged if len(merged) <= MAX_RANGES else None


def coalesce(ranges: Iterable[tuple[int, int]], gap: int = 0) -> Ranges:
    merged: Ranges = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1] + gap:
            start, end = merged[-1][0], max(end, merged.pop()[1])
        merged.append((start, end))
    return merged


def weights(text: str) -> dict[str, float]:
    """A list such as Accept as {word: q}."""
    return {word: float(q or 1) for word, q in WEIGHT.findall(text.lower())}


@functools.lru_cache(maxsize=128)
def takes_gzip(accept: str) -> bool:
    wanted = weights(accept)
    return wanted.get("gzip", wanted.get("x-gzip", wanted.get("*", 0.0))) > 0


def listing_type(accept: str) -> str:
    """Which form of a folder a client wants: HTML unless another one is named and weighs more."""
    wanted = weights(accept)
    wanted.setdefault("text/html", wanted.get("*/*", 0.0) / 2)
    kinds = "text/html", "application/json", "text/plain"
    return max(kinds, key=lambda kind: wanted.get(kind, 0.0))


def wants_page(request: "Request") -> bool:
    """Whether a browser asks: who would rather have JSON or text gets text."""
    accept = request.fields.get("accept", "")
    return "text/html" in accept and listing_type(accept) == "text/html"


@functools.lru_cache(maxsize=1024)
def type_of(name: str) -> str:
    """The media type by a name's extension.

    A compressed file has its own type; it is not a coding of another file."""
    extension = os.path.splitext(name)[1].lower()
    packed = mimetypes.encodings_map.get(extension)
    if packed:
        return PACKED.get(packed, "application/octet-stream")
    kind = mimetypes.types_map.get(extension, "application/octet-stream")
    is_text = kind.startswith("text/") or kind.endswith(("javascript", "json"))
    return kind + UTF_8 * is_text


def disposition(name: str) -> str:
    """Content-Disposition for a download: ASCII for old clients, UTF-8 for others (RFC 6266)."""
    plain = re.sub(r"[^ !#-\[\]-~]|%", "_", name)
    exact = urllib.parse.quote_from_bytes(os.fsencode(name), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"


def parse_digest(text: str) -> str:
    """The sha-256 of a Repr-Digest field (RFC 9530), in hex; "" for none."""
    found = re.search(r"(?:^|,)[ \t]*sha-256=:([A-Za-z0-9+/]{43}=):", text)
    return base64.b64decode(found[1]).hex() if found else ""


def wants_digest(request: Request) -> bool:
    """Whether Want-Repr-Digest asks for sha-256: its weights go from 0 to 10."""
    wanted = request.field("want-repr-digest")
    return bool(re.search(r"(?:^|,)[ \t]*sha-256=(?:[1-9]|10)[ \t]*(?:,|$)", wanted))


def digest_field(digest: bytes) -> str:
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


# Who asks, and for whom.


@functools.lru_cache(maxsize=256)
def is_own_host(host: str, names: frozenset[str]) -> bool:
    """Whether a Host means this machine.

    A foreign name whose address was changed to ours (DNS rebinding) does not."""
    name = re.sub(":[0-9]*$", "", host).lower().rstrip(".")
    if name in names or "*" in names or name.endswith(".localhost"):
        return True
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name.strip("[]")))
    return False


PAIR = re.compile(rf'({TOKEN})=({TOKEN}|"[^"\\]*")')  # a piece of an element of Forwarded

HOP = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([0-9.]+)(?::[0-9]+)?|([0-9A-Fa-f:.]+)")


def hop_address(text: str) -> str:
    """An IP address as proxies write it: perhaps in brackets, with a port. "" for all else."""
    found = HOP.fullmatch(text.strip(" \t"))
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(found[found.lastindex or 0] if found else "")
        return str(getattr(ip, "ipv4_mapped", None) or ip)
    return ""


def forwarded_address(element: str) -> str:
    """The same in an element of Forwarded (RFC 7239).

    All of the element is checked, because its host is what the client said."""
    address = ""
    for text in element.strip(" \t").split(";"):
        pair = PAIR.fullmatch(text)
        if not pair:
            return ""
        if pair[1].lower() == "for":
            address = hop_address(pair[2].strip('"'))
    return address


def client_behind(proxies: frozenset[str], fields: Fields) -> str:
    """The client for which a trusted proxy speaks, or "" in doubt.

    Its entry is the last one: the client may have sent all others. If the two fields differ, the
    client may have sent one of them."""
    found = set()
    for name, read in ("x-forwarded-for", hop_address), ("forwarded", forwarded_address):
        if name in fields:
            # a proxy may stand behind another one
            hops = map(read, reversed(fields[name].rsplit(",", MAX_PROXIES)))
            found.add(next((hop for hop in hops if hop not in proxies), ""))
    return found.pop() if len(found) == 1 else ""


def url_path(names: Iterable[str], slash: bool = False) -> str:
    """Names as a path.

    It begins with exactly one slash, and nothing in it has a meaning in a URL or a header."""
    path = "/" + "/".join(
        urllib.parse.quote_from_bytes(os.fsencode(name), safe="") for name in names
    )
    return path + "/" if slash and path != "/" else path


def parameters(query: str) -> Fields:
    """The parameters of a query; none if there are more than this server knows."""
    with contextlib.suppress(ValueError):
        return dict(urllib.parse.parse_qsl(query, keep_blank_values=True, max_num_fields=20))
    return {}


# --- names and the folder: nothing outside of it, and only whole files in it ---

WINDOWS_NAME = re.compile(
    r'.*[\\:<>"|?*\x00-\x1f].*|.*[. ]|'
    r"(?i:con(?:in\$|out\$)?|prn|aux|nul|(?:com|lpt)[0-9¹²³])(?:\..*)?",
    re.DOTALL,
)


def check_name(name: str, hidden: bool) -> None:
    """The one check of names, for every method: a valid name is inside its folder."""
    if "\0" in name:
        raise Refusal(400, "a name holds no NUL")
    if name in ("", ".", "..") or "/" in name or os.name == "nt" and WINDOWS_NAME.fullmatch(name):
        raise Refusal(403, "that is not the name of a file or folder")
    if name[0] == "." and (not hidden or PART.fullmatch(name)):
        raise Refusal(403, "hidden names are not served")


def check_depth(depth: int) -> None:
    """One limit wherever names come in, so that each walk through the folder ends."""
    if depth > MAX_DEPTH:
        raise Refusal(403, f"more than {MAX_DEPTH} folders deep")


UNPRINTABLE = re.compile(r"[^ !#-\[\]-~]")


def numbered_names(name: str) -> Iterator[str]:
    """a.txt, a (1).txt, a (2).txt and so on, never longer than a file system takes."""
    yield name
    for number in range(1, MAX_NUMBER):
        stem, extension = os.path.splitext(name)
        suffix = f" ({number}){extension}"
        while stem and len(os.fsencode(stem + suffix)) > 255:
            stem = stem[:-1]
        yield stem + suffix


def utf8_name(name: str) -> str:
    """A name as text: the replacement character stands for what is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")


ACCENTS = re.compile("[\u0300-\u036f]")
NUMBER = re.compile("0*([0-9]+)")


def name_order(found: tuple[bool, str]) -> tuple[bool, bytes, str]:
    """Folders before files, each by name as people sort it: natural() of the page does the same.

    Accents and case count for nothing, and numbers by their value: their length stands first."""
    is_file, name = found
    plain = ACCENTS.sub("", unicodedata.normalize("NFD", utf8_name(name))).lower()
    key = NUMBER.sub(lambda digits: f"0{chr(len(digits[1]))}{digits[1]}", plain)
    return is_file, key.encode("utf-16-be"), name  # in JavaScript, texts are UTF-16


def printable_name(name: str) -> str:
    """A name as a line of text.

    Control characters, percent signs and what is not UTF-8 are percent-encoded."""
    return "".join(
        char
        if char.isprintable() and char != "%"
        else urllib.parse.quote_from_bytes(os.fsencode(char))
        for char in name
    )


def printable(text: str) -> str:
    return UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text[:1000])


# an open folder; its path where the system has no dir_fd
Where = Union[int, str]  # noqa: UP007  (3.9)


class Place(NamedTuple):
    """A name in an open folder: whatever is there, or may come there.

    The os functions take its path and dir_fd. Use one from locate() in a "with", which closes the
    folder at the end."""

    folder: Where
    name: str
    owned: bool = False

    def __enter__(self) -> "Place":  # noqa: PYI034  (3.9 has no Self)
        return self

    def __exit__(self, *problem: object) -> None:
        if self.owned and isinstance(self.folder, int):
            os.close(self.folder)

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.name) if isinstance(self.folder, str) else self.name

    @property
    def dir_fd(self) -> Optional[int]:
        return self.folder if isinstance(self.folder, int) else None

    def beside(self, name: str) -> "Place":
        return Place(self.folder, name)

    def stat(self) -> Optional[Facts]:
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path, dir_fd=self.dir_fd, follow_symlinks=False)
        return None

    def open(self, flags: int, mode: int = 0o666) -> int:
        return os.open(self.path, flags, mode, dir_fd=self.dir_fd)

    def unlink(self) -> None:
        os.unlink(self.path, dir_fd=self.dir_fd)

    def regular(self) -> Optional[Facts]:
        """The facts of the file there, if it may be replaced; a folder or device may not."""
        info = self.stat()
        if info and stat.S_ISDIR(info.st_mode):
            raise Refusal(409, "a folder has that name")
        if info and not stat.S_ISREG(info.st_mode):
            raise Refusal(403, "only files and folders are served")
        return info


class Opened(NamedTuple):
    """A file or folder that is open, and its facts."""

    where: Where
    info: Facts

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.info.st_mode)

    @property
    def descriptor(self) -> int:
        assert isinstance(self.where, int)  # only a folder may be a path
        return self.where

    def close(self) -> None:
        if isinstance(self.where, int):
            os.close(self.where)


class Entry(NamedTuple):
    """A file or folder that is listed: its name (in an archive the path there), facts, place."""

    name: str
    info: Facts
    place: Place

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.info.st_mode)

    @property
    def size(self) -> int:
        return 0 if self.is_folder else self.info.st_size

    def open(self) -> Opened:
        """The file, if it still is the one that was listed: its length has been promised."""
        found = open_leaf(self.place)
        if etag(found.info) == etag(self.info):
            return found
        found.close()
        raise Gone(f"{printable(self.name)} changed")

    def is_readable(self) -> bool:
        mode = os.R_OK | os.X_OK * self.is_folder
        return os.access(self.place.path, mode, dir_fd=self.place.dir_fd)


class Shared:
    """The folder that is shared, or the one file in it.

    Each name from the network is opened in here and nowhere else: component by component, without
    following a link."""

    def __init__(self, path: str, hidden: bool, durable: bool) -> None:
        path = os.path.realpath(path)  # what the command line names may be a link
        self.only = None if os.path.isdir(path) else os.path.basename(path)
        self.path = os.path.dirname(path) if self.only else path
        self.title = os.path.basename(self.path) or "files"
        self.hidden, self.durable = hidden or bool(self.only), durable
        self.root = os.open(self.path, FOLDER) if DIR_FD else None

    def locate(self, names: Names, change: bool = False, make: bool = False) -> Place:
        """The place that a path means; with make, the folders on the way are made."""
        for name in names:
            check_name(name, self.hidden)
        if change:
            self.refuse_program(names, is_program)
        if self.only and tuple(names) != (self.only,):
            raise Refusal(404, "only one file is served here")
        if make:
            check_depth(len(names))
        if self.root is None:
            return self.resolve(names, make)
        *folders, leaf = names or ["."]
        place = Place(self.root, leaf)
        for name in folders:
            with place as above:
                place = Place(self.step(above.beside(name), make), leaf, owned=True)
        return place

    def refuse_program(self, names: Names, part_of: Callable[[str], bool]) -> None:
        """Refuse to change a program, or a folder that holds one."""
        if part_of(os.path.join(self.path, *names)):
            raise Refusal(403, "a program of this machine is there, and no request may change one")

    def step(self, place: Place, make: bool) -> int:
        """Open the next folder of a path."""
        # first: where nobody may make a folder, NFS says that instead of that it exists
        with contextlib.suppress(FileNotFoundError):
            return place.open(FOLDER)
        if make:
            with contextlib.suppress(FileExistsError):
                self.make_folder(place)
        return place.open(FOLDER)

    def make_folder(self, place: Place) -> None:
        os.mkdir(place.path, dir_fd=place.dir_fd)
        if self.durable:
            sync_folder(place)

    def resolve(self, names: Names, make: bool) -> Place:
        """Without dir_fd: a path that is its own real path goes through no link."""
        path = os.path.join(self.path, *names)
        if os.path.normcase(os.path.realpath(path)) != os.path.normcase(path):
            raise Refusal(403, "links are not followed")
        folder = os.path.join(self.path, *names[:-1])
        if make:
            os.makedirs(folder, exist_ok=True)
        return Place(folder, names[-1] if names else ".")

    def open(self, names: Names) -> Opened:
        with self.locate(names) as place:
            return open_leaf(place)


def open_leaf(place: Place) -> Opened:
    if not DIR_FD and os.path.isdir(place.path):
        return Opened(place.path, os.stat(place.path))
    descriptor = place.open(LEAF)
    info = os.fstat(descriptor)
    if is_served(info):
        return Opened(descriptor, info)
    os.close(descriptor)
    raise Refusal(403, "only files and folders are served")


def is_served(info: Facts) -> bool:
    return stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)


def look_at(place: Place) -> Opened:
    """What is there, closed again: Windows removes and renames nothing that is open."""
    with contextlib.closing(open_leaf(place)) as found:
        return found


def is_junction(info: Facts) -> bool:
    """A link of Windows: a folder in all but this tag."""
    return bool(getattr(info, "st_reparse_tag", 0) & SURROGATE)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Some bytes of a file. The descriptor belongs to one answer, so seeking is safe."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


# In the tag of what is more than a file or folder on Windows: it stands for another name
SURROGATE = 0x20000000
SORTING = threading.Lock()  # one at a time: what sorting needs is a multiple of what is kept


def entries(where: Where, hidden: bool, folders_first: bool = False) -> Iterator[Entry]:
    """What a folder shows, by name: files and folders, no links, nothing that check_name() refuses.

    Only the names are kept, as one text; each file is looked at when its turn comes."""
    with SORTING, os.scandir(where) as scan:
        found = [
            (folders_first and not item.is_dir(follow_symlinks=False), item.name) for item in scan
        ]
        found.sort(key=name_order if folders_first else None)
        listed = "\0".join([name for _, name in found])
        del found
    for name in re.finditer("[^\0]+", listed):
        with contextlib.suppress(OSError, Refusal):
            check_name(name[0], hidden)
            place = Place(where, name[0])
            info = place.stat()
            if info and is_served(info) and not is_junction(info):
                yield Entry(name[0], info, place)


def is_real_folder(item: os.DirEntry[str]) -> bool:
    """A folder to walk into. A link is none, wherever it leads."""
    with contextlib.suppress(FileNotFoundError):
        is_one = item.is_dir(follow_symlinks=False)
        return is_one and not is_junction(item.stat(follow_symlinks=False))
    return False


def tree(place: Place, depth: int = 1) -> Iterator[tuple[Place, os.DirEntry[str], int]]:
    """All that is in a folder, hidden or not, and how deep; a folder after its content.

    Links are not followed. A folder that was deleted meanwhile is empty."""
    if depth > MAX_WALKED:
        raise Refusal(403, f"more than {MAX_WALKED} folders deep")
    with (
        contextlib.suppress(FileNotFoundError),
        contextlib.closing(open_leaf(place)) as folder,
        os.scandir(folder.where) as scan,
    ):
        for item in scan:
            below = Place(folder.where, item.name)
            if is_real_folder(item):
                yield from tree(below, depth + 1)
            yield below, item, depth


def sync_to_disk(fd: int) -> None:
    """fsync(); on macOS that leaves it in the disk's own memory, and another call does not."""
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # a file system that has no such call
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def sync_folder(place: Place) -> None:
    """For --durable: a new name in a folder survives a power loss. (Windows opens no folder.)"""
    if isinstance(place.folder, int):
        sync_to_disk(place.folder)


def rename(old: Place, new: Place, replace: bool = True) -> None:
    """Without replace, of two writers of one name only one wins."""
    if replace:
        return os.replace(old.path, new.path, src_dir_fd=old.dir_fd, dst_dir_fd=new.dir_fd)
    if os.name == "nt":
        return os.rename(old.path, new.path)
    linked = link(old, new)
    try:
        if not linked:
            return rename(old, new)
        # a request that deletes the whole folder may have removed it
        with contextlib.suppress(FileNotFoundError):
            old.unlink()
    except OSError:
        new.unlink()
        raise


def link(old: Place, new: Place) -> bool:
    """Whether the file has the new name already.

    Without hard links, as on a USB stick, an empty file reserves the name."""
    try:
        os.link(
            old.path, new.path, src_dir_fd=old.dir_fd, dst_dir_fd=new.dir_fd, follow_symlinks=False
        )
        return True
    except (NotImplementedError, AttributeError):
        pass
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    os.close(new.open(FRESH))
    return False


RENAMING = threading.Lock()  # where folders cannot be locked


def lock_file(descriptor: int) -> bool:
    """Lock it. False if another thread or process has the lock."""
    if sys.platform == "win32":
        return lock_byte(descriptor)
    import fcntl  # not at the top: Windows has none

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def retry(conn: "Connection", attempt: Callable[[], bool], problem: str) -> None:
    """Try until it succeeds, for a while, unless the client leaves.

    Count tries, not time: if the machine was suspended, the other thread got no time either."""
    for tries in range(1, BUSY_TRIES):
        if attempt():
            return
        if tries % 100 == 0 and conn.has_left():
            break
        time.sleep(BUSY_PAUSE)
    raise Refusal(503, problem, {"Retry-After": "2"})


@contextlib.contextmanager
def renaming(conn: "Connection", *places: Place) -> Iterator[None]:
    """Lock these folders: no other thread or process gives away a name in them.

    Otherwise a file that is put between the link() and the unlink() of rename() would be lost.
    Without flock(), this excludes only other threads of this process."""
    folders = {}
    with contextlib.ExitStack() as held:
        try:
            for place in places:
                folder = place.beside(".").open(FOLDER)
                held.callback(os.close, folder)
                info = os.fstat(folder)
                folders[info.st_dev, info.st_ino] = functools.partial(lock_file, folder)
            # always in the same order, so that two moves in opposite directions cannot deadlock
            for _, lock in sorted(folders.items()):
                retry(conn, lock, "another program has locked the folder for too long")
        except (ImportError, OSError):
            held.enter_context(RENAMING)
        yield


class Part:
    """An unfinished upload: hidden beside its place, then renamed.

    While a part that can be resumed waits for more, it is closed, and whoever comes may go on with
    it, in this process or another. Who wrote it before finds it not as he left it, and gives up."""

    def __init__(self, place: Place, token: str) -> None:
        self.token, self.place, self.own = token, place, place.beside(f".six-{token}.part")
        self.kept = True  # it stays when it is closed, so that the upload can be resumed
        self.descriptor, self.size = -1, 0
        self.left = ""  # its tag when it was left

    def lock(self, flags: int = WRITABLE, mode: int = 0o666) -> bool:
        """Open it. Whether no other writer has it, in this process or another."""
        self.descriptor = self.own.open(flags, mode)
        # A file system may have no locks, as Lustre.
        with contextlib.suppress(ImportError, OSError):
            if not lock_file(self.descriptor):
                self.close_file()
                return False
        self.size = os.lseek(self.descriptor, 0, os.SEEK_END)
        return True

    def take(self, conn: "Connection") -> None:
        """Lock it, if nobody else has come for it since this connection has left it."""
        if self.descriptor >= 0:
            return
        retry(conn, self.lock, "another connection is writing this upload")
        if self.left not in ("", self.tag()):
            raise Refusal(409, "another connection goes on with this upload", close=True)

    def leave(self) -> None:
        """Let others take it. Nobody knows of a part that cannot be resumed: it stays open."""
        if self.kept:
            self.left = self.tag()
            self.close_file()

    def tag(self) -> str:
        return bare_tag(os.fstat(self.descriptor))

    def write(self, data: Data) -> None:
        self.size += len(data)
        view = memoryview(data)
        # a run of zeros takes no space; where a file cannot be made longer so, it is written
        if len(data) >= HOLE and not data[0] and bytes(data) == bytes(len(data)):
            with contextlib.suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
                os.lseek(self.descriptor, self.size, os.SEEK_SET)
                return
        while view:
            view = view[os.write(self.descriptor, view) :]

    def prepare(self, old: Optional[Facts], mtime: int) -> Facts:
        """Give it what the finished file is to have: the mode of the one that it replaces, a time.

        If it is to be executable, then for all who may read it."""
        if old:
            with contextlib.suppress(OSError, AttributeError):
                runs = 0o111 if is_executable(os.fstat(self.descriptor)) else 0
                os.fchmod(self.descriptor, old.st_mode & 0o777 | old.st_mode >> 2 & runs)
        # Windows renames no open file. Elsewhere the lock stays, or another connection could append
        # to the finished file
        if os.name == "nt":
            self.close_file()
        return self.date(mtime)

    def date(self, mtime: int) -> Facts:
        """Give it this time in ns, or the nearest that the disk has."""
        # Windows dates files by their names alone
        handle = self.own.path if os.name == "nt" else self.descriptor
        # some mounts let only the owner set a time, and not every system knows all years
        with contextlib.suppress(OSError, OverflowError):
            os.utime(handle, ns=(time.time_ns(), mtime))
        return os.stat(handle)

    def rename_to(self, name: str, over: str) -> str:
        """Give it this name; with "number", the first such name that is free."""
        if over == "number":
            for each in numbered_names(name):
                with contextlib.suppress(FileExistsError):
                    return self.rename_to(each, "new")
            raise Refusal(409, "that name exists a thousand times")
        rename(self.own, self.place.beside(name), replace=over != "new")
        return name

    def close(self) -> None:
        if os.name == "nt":
            # Windows removes no open file. Elsewhere keep the lock until no writer can find it
            self.close_file()
        if not self.kept:
            with contextlib.suppress(OSError):
                self.own.unlink()
        self.close_file()

    def close_file(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def new_part(place: Place, kept: bool, executable: bool = False) -> "contextlib.closing[Part]":
    part = Part(place, secrets.token_hex(16))
    part.kept = kept
    # whether others may execute the file is known by the part alone, also after a restart
    part.lock(FRESH, 0o777 if executable else 0o666)  # less the umask
    return contextlib.closing(part)


def remove_old_parts(place: Place) -> None:
    """Delete parts that nobody has continued for too long.

    A part with an old time may be on its way to its place: its lock shows that."""
    before = time.time() - PART_AGE
    with contextlib.suppress(OSError), os.scandir(place.folder) as scan:
        for name in [item.name for item in scan if PART.fullmatch(item.name)]:
            found = place.beside(name).stat()
            # open no young one: its writer may be about to lock it, or to rename it
            if not found or found.st_mtime > before:
                continue
            part = Part(place, name[5:-5])
            # a part of another user must not stop the search
            with contextlib.suppress(OSError), contextlib.closing(part):
                part.kept = not part.lock() or os.fstat(part.descriptor).st_mtime > before


# --- a connection: it reads requests and sends answers ---

PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Span(NamedTuple):
    """Bytes of an open file: what sendfile() takes."""

    descriptor: int
    start: int
    end: int


Piece = Union[bytes, Span]  # noqa: UP007


def size_of(piece: Piece) -> int:
    return piece.end - piece.start if isinstance(piece, Span) else len(piece)


def in_memory(piece: Piece) -> Iterator[bytes]:
    """Its bytes, some at a time."""
    if not isinstance(piece, Span):
        yield piece
        return
    for at in range(piece.start, piece.end, PIECE):
        size = min(PIECE, piece.end - at)
        data = read_at(piece.descriptor, size, at)
        if len(data) < size:
            raise Gone(f"the file shrank by {size - len(data)} bytes")
        yield data


class Answer:
    """What is sent back: a short body, or pieces. A list of pieces is parts of open files and what
    stands between them; other pieces are produced while they are sent."""

    note = ""  # for the log
    close = False  # the connection ends after it
    block = b""  # its header fields, once they are made
    chunked = False  # as they say it
    source: "Optional[Source]" = None
    # a file's tag, its size, and the ranges of it that are sent: what --once counts
    share: Optional[tuple[str, int, Ranges]] = None

    def __init__(
        self,
        status: int,
        fields: Optional[Fields] = None,
        body: bytes = b"",
        pieces: Optional[Iterable[Piece]] = None,
        length: Optional[int] = None,
    ) -> None:
        self.status, self.fields, self.body, self.pieces = status, fields or {}, body, pieces
        # None if it is not known in advance
        self.length = len(body) if pieces is None else length


class Source(NamedTuple):
    """The file that an answer was made of: the answer holds as long as all this does."""

    path: str
    facts: tuple[int, ...]
    folders: list[str]  # on the way to it: none of them may be a link by now
    packed: str  # a name that must not exist, "" if it does not matter

    def is_current(self, root: Optional[int]) -> bool:
        try:
            for folder in self.folders:
                if not stat.S_ISDIR(os.stat(folder, dir_fd=root, follow_symlinks=False).st_mode):
                    return False
            facts = facts_of(os.stat(self.path, dir_fd=root, follow_symlinks=False))
        except OSError:
            return False
        return facts == self.facts and not (self.packed and os.access(self.packed, 0, dir_fd=root))


def text_answer(status: int, text: str, fields: Optional[Fields] = None) -> Answer:
    fields = {"Content-Type": "text/plain; charset=utf-8", **(fields or {})}
    body = f"{status} {PHRASES[status]}: {text}\n" if text else ""
    return Answer(status, fields, body.encode())


def refusal_answer(refused: Refusal) -> Answer:
    answer = text_answer(refused.status, refused.text, refused.fields)
    answer.note, answer.close = refused.note, refused.close
    return answer


def as_refusal(problem: Exception) -> Refusal:
    """What the client is told of a problem: a fixed text. The note for the log has the details."""
    if isinstance(problem, Refusal):
        return problem
    note = reason_of(problem)
    if isinstance(problem, Gone):
        return Refusal(500, "what was asked for changed meanwhile", None, True, note)
    if isinstance(problem, TimeoutError):
        return Refusal(408, "the body did not arrive in time", None, True, note)
    if isinstance(problem, ConnectionError):
        return Refusal(400, "", None, True, f"left in the body: {note}")
    if isinstance(problem, OSError):
        status, text = PROBLEMS.get(problem.errno or 0, (500, "the server's system refused"))
        fields = {"Retry-After": "5"} if status == 503 else {}
        return Refusal(status, text, fields, note=str(problem) if status == 500 else text)
    note = f"{type(problem).__name__}: {problem}"
    return Refusal(500, "a mistake in the server", None, True, note)


class State(enum.IntEnum):
    """What a connection does now. Connection.enter() alone changes it."""

    HANDSHAKE = 1
    IDLE = 2
    HEAD = 3  # a head has begun
    ANSWERING = 4  # no room for the rest of a short answer, or others have their turn
    HANDED_OVER = 5  # a worker has it
    LINGERING = 6  # answered for the last time: the client reads why
    CLOSED = 7  # or not in any queue yet


# (Python 3.11 needs a call of a function for each State.IDLE)
HANDSHAKE, IDLE, HEAD, ANSWERING, HANDED_OVER, LINGERING, CLOSED = State

# what the selector waits for in each state
WAITS_FOR = {
    **dict.fromkeys(State, selectors.EVENT_READ),
    ANSWERING: selectors.EVENT_WRITE,
    HANDED_OVER: 0,
    CLOSED: 0,
}

# the seconds that a connection may stay in a state; in each other one, --timeout
LIMITS = {LINGERING: LINGER, IDLE: FOREVER, HANDED_OVER: FOREVER}


class Connection:
    """A socket, and what has been read from it.

    It belongs to the loop, or to the worker to which it was handed over."""

    def __init__(self, server: "Server", sock: socket.socket, peer: "Address") -> None:
        self.server, self.sock, self.args, self.shared = server, sock, server.args, server.shared
        # hop is the peer; peer is the client of the last request, for whom a proxy may speak
        self.hop = self.peer = re.sub(r"^::ffff:(?=[0-9.]+$)", "", peer[0])
        self.user = "-"  # the name in the login, as the log shows it
        self.state, self.deadline = CLOSED, 0.0
        self.buffer = b""  # what has been read
        self.sent = 0  # bytes of the answer under way, without its head
        # in a worker: seconds for which it still waits for the client, and the bytes that came or
        # went since it last waited, which add to them
        self.patience, self.moved = 0.0, 0
        self.piece: Data | Span = b""  # what is to be sent next, and what comes after it
        self.pieces: Iterator[Piece] | None = None
        # the answer under way, or the last one, and what it answers (both are here because Python
        # finds the methods of an object more slowly when it gets attributes later)
        self.answer = Answer(0)
        self.request: Optional[Request] = None
        self.held: list[Opened] = []  # what is open for the answer under way
        self.body: BodyReader  # of the request that a worker answers

    def enter(self, state: State) -> None:
        """The one place where the state of a connection changes.

        The deadline of a head stays, or one byte at a time could put it off."""
        if state is self.state is HEAD:
            return
        selector, queues = self.server.selector, self.server.queues
        before, after = WAITS_FOR[self.state], WAITS_FOR[state]
        queues[self.state].pop(self, None)
        self.deadline = time.monotonic() + LIMITS.get(state, self.args.timeout)
        self.state = state
        if state is not CLOSED:
            queues[state][self] = None
        if before != after:
            if before:
                selector.unregister(self.sock)
            if after:
                selector.register(self.sock, after, self.ready)

    # In the loop: nothing here blocks.
    def ready(self) -> None:
        """Something has come, or there is room for the rest of an answer."""
        if self.state is ANSWERING:
            return self.advance() if not self.is_sending() or self.send_rest() else None
        try:
            if self.state is HANDSHAKE:
                self.handshake()
            data = self.sock.recv(MAX_HEAD)
        except self.server.waits:
            return self.await_head()
        except Refusal as refused:
            return self.refuse(refused)
        except OSError:
            data = b""
        if self.state is LINGERING:
            return None if data else self.close()
        if not data:
            if self.buffer:
                self.server.log("left within the head", self.peer)
            return self.close()
        self.buffer = self.buffer + data if self.buffer else data
        return self.advance()

    def advance(self) -> None:
        """Answer the requests whose heads are here; pipelined ones in their order."""
        for _ in range(MAX_PIPELINED):
            try:
                request = self.next_request()
            except Refusal as refused:
                return self.refuse(refused)
            if request is None:
                return self.await_head()
            if not request.is_light:
                return self.server.hand_over(self, request)
            answer = self.recall(request)
            if answer.pieces is not None and not self.is_quick(answer):
                return self.server.hand_over(self, request, answer)
            self.begin_answer(request, answer)
            if not self.send_rest():
                return None
            if not self.buffer:
                return self.await_head()
        return self.enter(ANSWERING)  # after other connections have had a turn

    def await_head(self) -> None:
        """Idle until the first byte of a head; from then on its end has a deadline."""
        if self.state is not HANDSHAKE:
            self.enter(HEAD if self.buffer else IDLE)

    def next_request(self) -> Optional[Request]:
        """The next whole head, taken off the buffer; None while there is none."""
        request, size = HEADS.get(self.buffer), len(self.buffer)
        if not request:
            size = self.head_size()
            if not size:
                return None
            request = known_head(self.buffer[:size])
        self.buffer = self.buffer[size:]
        self.peer, self.user = self.hop, "-"
        if self.hop in self.server.proxies:
            self.peer = client_behind(self.server.proxies, request.fields) or self.hop
        return request

    def head_size(self) -> int:
        """Where the first head in the buffer ends; 0 while it has no end."""
        if self.buffer[:1] < b" ":  # no method begins so
            # before the search: its random bytes may hold two line ends, as the end of a head does
            if self.buffer[:1] == b"\x16":
                raise Refusal(
                    400, "this is TLS, and the port speaks without: the address begins with http://"
                )
            # §2.2: some clients send an empty line after a body
            self.buffer = EMPTY_LINES.sub(b"", self.buffer)
        found = HEAD_END.search(self.buffer)
        size = found.end() if found else 0
        if (size or len(self.buffer)) > MAX_HEAD:
            if b"\n" not in self.buffer[:MAX_TARGET]:
                raise Refusal(414, "the target is too long")
            raise Refusal(431, f"the head is longer than {MAX_HEAD} bytes")
        return size

    def recall(self, request: Request) -> Answer:
        """What was answered to the same head, if its file is the same, or a new answer.

        To recall costs one look at each name of the path, and opens nothing. What a password or the
        time decides has no source, and is never remembered."""
        known = request.remembered
        if known and known.source and known.source.is_current(self.shared.root):
            return known
        answer = self.answer_to(request)
        if answer.source and answer.pieces is None and len(answer.body) <= KNOWN_BODY:
            request.remembered = answer
        return answer

    def answer_to(self, request: Request) -> Answer:
        """The one place where a request becomes an answer, or an error becomes one."""
        try:
            check_request(self, request)
            act = hand_in if self.args.drop_box else METHODS[request.method]
            answer = act(self, request)
            if request.method != "HEAD":
                return read_short(answer)
        # a bug of this server too: the client must get an answer
        except Exception as problem:  # noqa: BLE001
            refused = as_refusal(problem)
            as_page = refused.text and wants_page(request)
            answer = error_page(request, refused) if as_page else refusal_answer(refused)
        if request.method == "HEAD":  # the fields of GET with its length, and nothing else (§9.3.2)
            answer.body, answer.pieces = b"", None
        return answer

    def fields_block(self, request: Optional[Request], answer: Answer) -> bytes:
        """None of the fields can hold a line end: what is made of names is percent-encoded."""
        fields = {**EMBEDDING, **answer.fields}
        if answer.status not in (204, 304):  # §8.6: these have no body and say no length
            if answer.length is not None:
                fields["Content-Length"] = str(answer.length)
            elif request and request.minor:
                fields["Transfer-Encoding"] = "chunked"
                answer.chunked = True
        if answer.close:
            fields["Connection"] = "close"
        elif request and not request.minor:
            fields["Connection"] = "keep-alive"
        replaced = self.server.replaced
        lines = "".join(
            [f"{name}: {text}\r\n" for name, text in fields.items() if name.lower() not in replaced]
        )
        return f"{lines}{self.server.extra}\r\n".encode("latin-1")

    def is_quick(self, answer: Answer) -> bool:
        """Whether the kernel sends all of it in a moment: it is a short part of a file."""
        is_listed = isinstance(answer.pieces, list)
        return is_listed and (answer.length or 0) <= QUICK and self.is_direct()

    def is_direct(self) -> bool:
        """Whether sendfile() can be used. On a TLS socket it would send in the clear."""
        return hasattr(os, "sendfile") and type(self.sock) is socket.socket

    def begin_answer(self, request: Optional[Request], answer: Answer) -> None:
        """Make it the next that is sent. Of that, only the bytes after the head are counted."""
        goes_on = request and request.keep and (answer.length is not None or request.minor > 0)
        answer.close = answer.close or self.server.stopping or not goes_on
        answer.block = answer.block or self.fields_block(request, answer)
        dated = "date" not in self.server.replaced
        head = status_line(answer.status, int(time.time()), dated) + answer.block
        self.piece, self.sent = head + answer.body, -len(head)
        self.request, self.answer = request, answer
        if answer.pieces is not None:
            self.pieces = self.framed(answer)
            self.cork(1)

    def framed(self, answer: Answer) -> Iterator[Piece]:
        """The body, as the head has announced it."""
        left = answer.length or 0
        for piece in answer.pieces or ():
            left -= size_of(piece)
            if left < 0 and answer.length is not None:
                raise Gone("what is sent grew meanwhile")
            if isinstance(piece, Span):
                yield from [piece] if self.is_direct() else in_memory(piece)
            elif piece:
                yield b"%x\r\n%b\r\n" % (len(piece), piece) if answer.chunked else piece
        if left > 0:
            raise Gone(f"what is sent shrank by {left} bytes")
        if answer.chunked:
            yield b"0\r\n\r\n"

    def send_rest(self) -> bool:
        """Send what is left of it. Whether that was all, and the connection goes on.

        If the kernel has no room, the loop waits for that."""
        try:
            self.send_all()
        except self.server.waits:
            self.enter(ANSWERING)
            return False
        except (Gone, OSError) as problem:
            return self.give_up(reason_of(problem))
        return self.answered() or self.end()

    def answered(self) -> bool:
        """All of it is sent. Whether the connection goes on."""
        if self.held:
            self.cork(0)
            self.release()
        self.server.count_answer(self)
        return not self.answer.close

    def end(self) -> bool:
        """Close after the last answer.

        Nothing is unread where the client has announced that it sends nothing more."""
        request = self.request
        ends = request and not request.keep and not request.has_body and not self.buffer
        (self.close if ends and not self.server.door.tls else self.linger)()
        return False

    def send_all(self) -> None:
        """Send what the kernel has room for."""
        while self.piece or self.pieces and self.next_piece():
            if isinstance(self.piece, Span):
                count = self.send_file(self.piece)
            else:
                before_file = self.sent < 0 and self.pieces and self.is_direct()
                count = self.sock.send(self.piece[:SLICE], MORE if before_file else 0)
                self.piece = self.piece[count:]
            self.sent += count
            self.moved += count

    def send_file(self, span: Span) -> int:
        size = min(SENDFILE, span.end - span.start)
        count = os.sendfile(self.sock.fileno(), span.descriptor, span.start, size)
        if not count:
            # the client sees that it got less than was announced
            raise Gone(f"the file shrank by {span.end - span.start} bytes")
        rest = span._replace(start=span.start + count)
        self.piece = rest if rest.start < rest.end else b""
        return count

    def is_sending(self) -> bool:
        return bool(self.piece or self.pieces)

    def next_piece(self) -> bool:
        piece = next(self.pieces, None) if self.pieces else None
        if piece is None:
            self.pieces = None
        else:
            self.piece = piece if isinstance(piece, Span) else memoryview(piece)
        return piece is not None

    def give_up(self, why: str) -> bool:
        """End it in the middle of an answer, or where the client has gone before one."""
        if self.is_sending():
            size = "?" if self.answer.length is None else self.answer.length
            self.server.count_answer(self, f"ended at {max(0, self.sent)} of {size} bytes: {why}")
        self.close()
        return False

    def overdue(self) -> None:
        """Its deadline has passed."""
        seconds = f"{self.args.timeout:g} s"
        if self.state is LINGERING:
            return self.close()
        is_stuck = self.state is ANSWERING
        self.refuse(Refusal(408, f"{'silent for' if is_stuck else 'no whole head in'} {seconds}"))

    def refuse(self, refused: Refusal, request: Optional[Request] = None) -> None:
        """Refuse a head that cannot be trusted, or a client that comes at the wrong moment.

        What follows such a head cannot be trusted either, so the connection ends."""
        if self.is_sending():  # no error in the middle of an answer
            self.give_up(refused.note)
            return None
        if self.state is HANDSHAKE:  # it would cost more than a refusal should
            with contextlib.suppress(OSError):
                socket.socket.send(self.sock, alert(OVERLOADED))
            return self.linger()
        answer = refusal_answer(refused)
        answer.close = True
        is_head = request.method == "HEAD" if request else self.buffer.startswith(b"HEAD ")
        answer.body = b"" if is_head else answer.body  # (§9.3.2)
        self.begin_answer(request, answer)
        self.send_rest()

    def linger(self) -> None:
        """Close so that the answer arrives (§9.6).

        A socket that is closed over unread bytes sends RST, which destroys the answer."""
        self.buffer = b""  # or the rest would look like an unfinished head
        try:
            end_tls(self.sock)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return self.close()
        self.enter(LINGERING)
        lingering = self.server.queues[LINGERING]
        if len(lingering) > MAX_LINGERING:
            next(iter(lingering)).close()  # the one that has had the most time

    def close(self) -> None:
        self.enter(CLOSED)
        self.release()
        self.buffer = b""  # or an event of the same turn would find the beginning of a head
        self.sock.close()

    def handshake(self) -> None:
        """Continue the TLS handshake without blocking.

        A client that begins in the clear gets its error in the clear."""
        import ssl

        assert self.server.door.tls
        if not isinstance(self.sock, ssl.SSLSocket):
            first = socket.socket.recv(self.sock, 1, socket.MSG_PEEK)
            if first not in (b"", b"\x16"):
                self.enter(HEAD)
                text = "TLS is spoken on this port: the address begins with https://"
                raise Refusal(400, text)
            self.sock = over_tls(self.server.door.tls, self.sock)
        try:
            shake_hands(self.sock)
        except self.server.waits:
            raise
        except OSError as error:
            why = getattr(error, "reason", "") or error.strerror
            self.server.log(f"no TLS: {why}", self.peer)
            raise
        self.enter(IDLE)

    # In a worker: one thread, this one connection, and it may block.
    def handle(self, request: Optional[Request], answer: Optional[Answer]) -> None:
        """Answer, and then what follows at once. Then the loop goes on with the connection."""
        goes_on: Call = self.close  # after a mistake
        try:
            while request and self.exchange(request, answer):
                request, answer = self.next_request_soon(), None
            goes_on = self.end if request else self.advance
        except Refusal as refused:  # of the next head
            goes_on = functools.partial(self.refuse, refused)
        except (Gone, OSError) as problem:
            goes_on = functools.partial(self.give_up, reason_of(problem))
        finally:
            del self.body
            # the loop does this in its next turn, which the bell begins
            self.server.later.append(goes_on)
            self.server.stop.wake()

    def exchange(self, request: Request, answer: Optional[Answer]) -> bool:
        """One request, whatever it takes. Whether the connection goes on."""
        self.patience = self.args.timeout
        self.body = BodyReader(self, request)
        answer = answer or self.answer_to(request)
        answer.close = answer.close or not self.body.drain()
        self.begin_answer(request, answer)
        self.when_ready(True, self.send_all)
        return self.answered()

    def next_request_soon(self) -> Optional[Request]:
        """The next request, if it follows at once, as when a folder is uploaded.

        To give the connection back takes longer than most uploads. Several busy workers do not wait
        here: they would compete for the interpreter's lock."""
        alone = len(self.server.queues[HANDED_OVER]) == 1
        if not self.buffer and alone and poll(self.sock, False, NEXT_WAIT):
            with contextlib.suppress(*self.server.waits):
                self.buffer = self.sock.recv(MAX_HEAD)
        return self.next_request()

    def cork(self, on: int) -> None:
        """Send full segments alone until the end, or each page of a file would be one segment.

        One sendfile() does so by itself. A listing, whose length nobody knows, leaves as it is
        made: a browser draws what has come."""
        if CORK and self.answer.pieces is not None and (self.answer.length or 0) > QUICK:
            self.sock.setsockopt(socket.IPPROTO_TCP, CORK, on)

    def send(self, data: bytes) -> None:
        self.piece = data
        self.when_ready(True, self.send_all)

    def receive(self, space: memoryview) -> memoryview:
        """What comes next, into at least RECORD bytes.

        TLS returns one record at a time: this gathers all that have come for one write to the disk.
        """
        count: int = self.when_ready(False, self.sock.recv_into, space)
        self.moved += count
        if not count:
            left, size = self.body.left, self.body.request.length
            ended = f"after {size - left} of {size} bytes" if left else "within its chunks"
            raise ConnectionAbortedError(errno.ECONNABORTED, f"the body ended {ended}")
        # nothing more has come, or an error that the next call will tell
        with contextlib.suppress(OSError):
            while (
                self.server.door.tls
                and len(space) - count >= RECORD
                and (more := self.sock.recv_into(space[count:]))
            ):
                count += more
        return space[:count]

    def when_ready(self, writing: bool, call: Callable[..., Any], *args: object) -> Any:
        """A call that sends or receives; again when the socket is ready, if it was not."""
        while True:
            try:
                return call(*args)
            except self.server.waits:
                self.wait(writing)
            except OSError as error:
                # TLS that breaks says so with numbers that mean something else to the system
                raise ConnectionAbortedError(errno.ECONNABORTED, error.strerror) from None

    def wait(self, writing: bool) -> None:
        """Block until the socket is ready. Silence uses up the patience, and so does a trickle.

        Only the time spent waiting for the client counts."""
        self.patience = min(self.args.timeout, self.patience + self.moved / MIN_RATE)
        self.moved, began = 0, time.monotonic()
        is_there = self.patience > 0 and poll(self.sock, writing, self.patience)
        self.patience -= time.monotonic() - began
        if not is_there:
            raise TimeoutError(
                f"silent for {self.args.timeout:g} s, or slower than {MIN_RATE} bytes a second"
            )

    def has_left(self) -> bool:
        """Whether the client has closed, where the system tells that.

        A client that closes only its sending side looks the same. So ask this only after a while,
        and answer all the same."""
        if not hasattr(select, "poll"):
            return False
        poll = select.poll()
        # poll() reports errors and the end of both directions unasked
        poll.register(self.sock, getattr(select, "POLLRDHUP", 0))
        return bool(poll.poll(0))

    def hold(self, found: "Opened") -> "Opened":
        self.held.append(found)
        return found

    def release(self) -> None:
        self.pieces = None
        while self.held:
            self.held.pop().close()


class BodyReader:
    """Reads a request's body on demand.

    A client that waits for 100 Continue gets it with the first read."""

    space: memoryview  # one for all that is received is twice as fast as new ones

    def __init__(self, conn: "Connection", request: Request) -> None:
        self.conn, self.request = conn, request
        self.left = request.length
        self.whole = not request.has_body
        self.asked = "expect" not in request.fields or not request.minor
        self.trailer: Fields = {}
        # one generator for all readers: each continues where the last one stopped
        self.pieces = self.read()

    def read(self) -> Iterator[Data]:
        if self.whole:
            return
        self.space = memoryview(bytearray(PIECE))
        if not self.asked:
            self.asked = True
            self.conn.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.request.chunked:
            yield from self.chunks()
        while self.left:
            data = self.receive(self.left)
            self.left -= len(data)
            yield data
        self.whole = True

    def receive(self, most: int) -> Data:
        """What comes next, up to so many bytes. The next call overwrites them."""
        conn = self.conn
        if not conn.buffer and most >= RECORD:
            return conn.receive(self.space[:most])
        if not conn.buffer:
            self.fill_buffer()
        data, conn.buffer = conn.buffer[:most], conn.buffer[most:]
        return data

    def fill_buffer(self) -> None:
        self.conn.buffer += self.conn.receive(self.space[:RECORD])

    def read_line(self, most: int) -> bytes:
        """A line up to its CRLF, of at most so many bytes."""
        conn = self.conn
        while (end := conn.buffer.find(b"\n")) < 0 and len(conn.buffer) < most + 2:
            self.fill_buffer()
        line, conn.buffer = conn.buffer[: end + 1], conn.buffer[end + 1 :]
        if line[-2:] != b"\r\n" or end > most + 1:
            raise Refusal(400, "a line of a chunked body is too long or does not end in CRLF")
        return line[:-2]

    def chunks(self) -> Iterator[Data]:
        """RFC 9112 §7.1, strictly: what is doubtful here could hide another request."""
        while size := self.chunk_size():
            while size:
                data = self.receive(size)
                size -= len(data)
                yield data
            if self.read_line(2):
                raise Refusal(400, "a chunk is longer than its size")
        left = MAX_TRAILER
        while line := self.read_line(left):
            left -= len(line)
            found = FIELD.fullmatch(line.decode("latin-1"))
            if not found or left <= 0:
                raise Refusal(400, "the trailer is malformed or too long")
            self.trailer[found[1].lower()] = found[2].strip()

    def chunk_size(self) -> int:
        found = CHUNK.fullmatch(self.read_line(MAX_LINE).decode("latin-1"))
        if not found:
            raise Refusal(400, "a chunk's size or extension is malformed")
        return int(found[1], 16)

    def drain(self) -> bool:
        """Read a body that nobody wants, if it is short and the client is sending it.

        The next request stands behind it."""
        if not self.asked or self.left > DRAIN:
            return self.whole
        taken = 0
        # a broken body ends the connection, but not before the answer
        with contextlib.suppress(OSError, Refusal):
            for data in self.pieces:
                taken += len(data)
                if taken > DRAIN:
                    return False
        return self.whole


def reason_of(problem: Exception) -> str:
    return getattr(problem, "strerror", "") or str(problem)


def read_short(answer: Answer) -> Answer:
    """A few bytes of files are read at once: they need no thread of their own."""
    if isinstance(answer.pieces, list) and (answer.length or 0) <= SMALL:
        answer.body = b"".join(itertools.chain.from_iterable(map(in_memory, answer.pieces)))
        answer.pieces = None
    return answer


def poll(sock: socket.socket, writing: bool, seconds: float) -> bool:
    """Wait for one socket. By select() only where poll() is missing: it knows none above 1023."""
    with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:
        selector.register(sock, selectors.EVENT_WRITE if writing else selectors.EVENT_READ)
        return bool(selector.select(seconds))


# --- the loop: one thread for all that is short ---


class Server:
    """The loop, in the main thread: it waits for all sockets and answers itself what is short.

    What takes long is left in a queue from which workers take it. So an idle or slow connection
    costs a socket, a long transfer costs a thread, and no short request waits for a long one."""

    workers = 0  # threads
    count = 0  # answers
    lost = 0  # lines of the log that could not be written
    log_at = 0.0  # when the log was written
    accept_at = FOREVER  # when a pause of accept() ends
    stopping = False  # no connection goes on after its answer
    satisfied = False  # --once: one client has got the whole of a file

    def __init__(
        self,
        args: argparse.Namespace,
        sock: socket.socket,
        door: "Door",
        shared: Shared,
        stop: "Stop",
        log: int,
    ) -> None:
        self.door = door
        # these mean: nothing can be read or written now
        self.waits: tuple[type[OSError], ...] = (BlockingIOError,)
        if door.tls:
            import ssl

            self.waits += ssl.SSLWantReadError, ssl.SSLWantWriteError
        # the bell too: a signal, the last answer and a worker all ring it
        self.args, self.sock, self.shared, self.stop = args, sock, shared, stop
        self.set_policy(args)
        self.selector = selectors.DefaultSelector()
        # the connections in each state: since all may stay in it for the same time, the first
        # deadline comes first, and the one that has been idle longest
        self.queues: dict[State, dict[Connection, None]] = {state: {} for state in State}
        self.tasks: queue.SimpleQueue[Optional[Call]] = queue.SimpleQueue()  # for the workers
        self.later: deque[Call] = deque()  # for the loop
        self.lock = threading.Lock()  # guards what several threads count
        self.log_to = log
        self.lines: deque[str] = deque()
        self.digests: dict[tuple[int, ...], bytes] = {}
        self.hashing = threading.Lock()  # a digest is computed
        # folders that were searched for old parts, and the hour
        self.searched: set[tuple[int, int, int]] = set()
        # --once: the ranges that each client has of each file
        self.received: dict[tuple[str, str], Ranges] = {}
        self.progress = time.monotonic()
        self.selector.register(sock, selectors.EVENT_READ, self.accept)
        self.selector.register(stop, selectors.EVENT_READ, stop.drain)

    def set_policy(self, args: argparse.Namespace) -> None:
        """Who may ask for what, as the command line says it."""
        password = self.door.guard.password if self.door.guard else ""
        self.secret = hashlib.sha256(password.encode("utf-8", "surrogateescape")).digest()
        # whether each request needs the password
        self.asks_all = bool(password) and not args.public_read
        self.read_only = args.read_only or bool(self.shared.only)
        self.allowed = ", ".join(name for name in METHODS if name in READING or not self.read_only)
        # those of this machine, without asking the network: getfqdn can take half a minute
        name = socket.gethostname()
        short = name.partition(".")[0]
        known = ("localhost", name, short, short + ".local", args.host, *args.allow_host)
        self.names = frozenset(map(str.lower, known))
        self.proxies = frozenset(args.trust_proxy)
        # --header: the names of these fields, and the lines
        self.replaced = frozenset(line.partition(":")[0].lower() for line in args.header)
        self.extra = "".join(f"{line}\r\n" for line in args.header)

    def run(self) -> int:
        while not self.stop.asked and not self.stopping and self.turn(self.end_of_once()):
            pass
        return self.finish(self.stop.asked)

    def end_of_once(self) -> float:
        waits = self.args.once and not self.queues[HANDED_OVER]
        return self.progress + self.args.timeout if waits else FOREVER

    def turn(self, end: float) -> bool:
        """One turn of the loop. False when that time is reached."""
        firsts = (next(iter(each)).deadline for each in self.queues.values() if each)
        due = min(end, self.accept_at, *firsts, self.log_at + LOG_DELAY if self.lines else FOREVER)
        left = None if due == FOREVER else max(0.0, due - time.monotonic())
        for key, _ in self.selector.select(0 if self.later else left):
            self.call(key.data)
        for _ in range(len(self.later)):
            self.call(self.later.popleft())
        while self.workers > len(self.queues[HANDED_OVER]) + SPARE_THREADS:
            self.workers -= 1
            self.tasks.put(None)
        now = time.monotonic()
        for waiting in self.queues.values():
            while waiting and (first := next(iter(waiting))).deadline <= now:
                self.call(first.overdue)
        if self.accept_at <= now:
            self.accept_at = FOREVER
            self.selector.register(self.sock, selectors.EVENT_READ, self.accept)
        if self.lines and (now - self.log_at > LOG_DELAY or len(self.lines) > 1000):
            self.write_log(now)
        return now < end

    def call(self, callback: Call) -> None:
        """Mostly the method of a connection, which is closed if that fails, or a worker's task."""
        try:
            callback()
        except Exception as bug:  # noqa: BLE001  a bug must end neither the loop nor a worker
            self.log(f"mistake: {bug!r}")
            if isinstance(owner := getattr(callback, "__self__", None), Connection):
                owner.close()

    def accept(self) -> None:
        """Let in all that wait, up to a number: each turn of the loop has its price too."""
        for _ in range(MAX_ACCEPTED):
            if self.stopping:
                return
            try:
                sock, peer = self.sock.accept()
            except (BlockingIOError, ConnectionError):
                return  # nobody waits any more, or the client left
            except OSError as error:
                # EMFILE, ENFILE, ENOBUFS, ENOMEM: nothing is wrong with the listening socket
                self.log(f"cannot accept ({error.strerror}): pausing")
                self.accept_at = time.monotonic() + ACCEPT_PAUSE
                self.selector.unregister(self.sock)
                return
            sock.setblocking(False)
            self.begin(Connection(self, sock, peer))

    def begin(self, conn: Connection) -> None:
        count = sum(map(len, self.queues.values())) - len(self.queues[LINGERING])
        if self.door.tls:
            conn.enter(HANDSHAKE)
        if count >= self.args.max_clients and not self.make_room(conn):
            text = f"there are {self.args.max_clients} clients"
            return conn.refuse(Refusal(503, text, {"Retry-After": "5"}))
        conn.ready()

    def those(self, *states: State) -> list[Connection]:
        return [conn for state in states for conn in self.queues[state]]

    def make_room(self, new: Connection) -> bool:
        """Close a connection for a new client: the one that has been idle longest (RFC 9112 §9.5).

        Or else the oldest slow one of another address, if that has half of all there are."""
        for conn in self.queues[IDLE]:
            if not poll(conn.sock, False, 0):  # or its next request is here, not read yet
                conn.linger()
                return True
        slow = self.those(HANDSHAKE, HEAD, ANSWERING, IDLE)
        for client, count in Counter(network(conn.hop) for conn in slow).most_common(1):
            if 2 * count >= self.args.max_clients and client != network(new.hop):
                first = next(conn for conn in slow if network(conn.hop) == client)
                first.refuse(Refusal(503, "another client needs the place"))
                return True
        return False

    def hand_over(
        self, conn: Connection, request: Request, answer: Optional[Answer] = None
    ) -> None:
        """Leave a connection to a worker, or refuse what it asks."""
        busy = self.queues[HANDED_OVER]
        conn.enter(HANDED_OVER)
        if self.has_room(conn, request) and (len(busy) <= self.workers or self.start_worker()):
            return self.tasks.put(functools.partial(conn.handle, request, answer))
        full = Refusal(503, "too many transfers at once", {"Retry-After": "5"})
        return conn.refuse(full, request)

    def has_room(self, conn: Connection, request: Request) -> bool:
        """Whether a client may have one more transfer.

        One address may have as many as are left for others, and half of that when it uploads. So
        there is always room for another address, and for an answer to the same one."""
        client, busy = network(conn.peer), self.queues[HANDED_OVER]
        left = MAX_THREADS - len(busy) + 1  # it has entered
        own = sum(network(other.peer) == client for other in busy)
        return own <= (left // 2 if request.has_body else left)

    def start_worker(self) -> bool:
        with contextlib.suppress(RuntimeError):  # the system has none left
            threading.Thread(target=self.work, daemon=True).start()
            self.workers += 1
            return True
        return False

    def work(self) -> None:
        """A worker: a connection is its own until it is given back."""
        while task := self.tasks.get():
            self.call(task)
            del task  # while this waits, it must not keep open what the client had

    def digest(self, conn: Connection, found: Opened) -> bytes:
        """SHA-256 of a file, cached while the file stays the same and unchanged.

        One at a time: many would leave the loop no time, and who waits for the same file finds it
        in the cache. Empty if that takes too long: the client only prefers it (RFC 9530 §4)."""
        key, settled = facts_of(found.info), is_settled(found.info)
        # (another request may remove it at any moment)
        if known := self.digests.get(key):
            return known
        if not self.hashing.acquire(timeout=DIGEST_WAIT):
            return b""
        try:
            digest = self.digests.get(key) or sha256_of(found.descriptor, conn)
            if settled:
                self.digests[key] = digest
            if len(self.digests) > MAX_DIGESTS:
                del self.digests[next(iter(self.digests))]
        finally:
            self.hashing.release()
        return digest

    def search_old_parts(self, place: Place) -> None:
        """Look for old parts once an hour: each time would read all of a large folder."""
        info = os.stat(place.folder)
        key = info.st_dev, info.st_ino, int(time.time()) // 3600
        if key in self.searched:
            return
        if len(self.searched) >= MAX_SEARCHED:
            self.searched.clear()
        self.searched.add(key)
        remove_old_parts(place)

    def count_answer(self, conn: Connection, cut: str = "") -> None:
        """Log an answer in Common Log Format, with a note in quotes if there is more to say.

        Also count it for --requests and --once."""
        request, answer = conn.request, conn.answer
        note = answer.note or cut
        if answer.status == 304 and answer.fields.get("Cache-Control") == "no-store":
            return  # an open page asks every few seconds whether its folder has changed
        told = answer.status == 201 and "Stored-As" in answer.fields and not note  # log_hand_in()
        if not self.args.quiet and not told:
            line = request.line if request else "-"
            noted = f' "{printable(note)}"' if note else ""
            text = f'"{line}" {answer.status} {max(0, conn.sent) or "-"}{noted}'
            self.log(text, conn.peer, conn.user)
        with self.lock:
            self.count += 1
            self.progress = time.monotonic()
            if self.args.once and request and request.method == "GET" and not note and answer.share:
                tag, size, sent_now = answer.share
                ranges = self.received.setdefault((conn.peer, tag), [])
                ranges[:] = coalesce([*ranges, *sent_now])
                self.satisfied = self.satisfied or ranges == [(0, size)]
        if self.satisfied or self.args.requests and self.count >= self.args.requests:
            self.stopping = True
            self.stop.wake()

    def log(self, text: str, client: str = "", user: str = "-", **facts: object) -> None:
        """A line of the log; with --json an object, with facts in place of the text."""
        if self.args.json:
            now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            line = json.dumps({"time": now, "client": client, **(facts or {"text": text})})
        else:
            line = f"{client or '-'} - {user} {log_time(int(time.time()))} {text}"
        self.lines.append(line + "\n")

    def note_left_out(self, entry: Entry, why: str) -> None:
        self.log(f"left out of an archive, because {why}: {printable(entry.name)}")

    def write_log(self, now: float) -> None:
        """Write the log. Lines that cannot be written (a full disk) are counted and reported."""
        # meanwhile workers append to them
        lines = [self.lines.popleft() for _ in range(len(self.lines))]
        self.log_at = now
        view = memoryview("".join(lines).encode())
        try:
            if self.lost:  # of the line before, a part may be there
                when = log_time(int(time.time()))
                os.write(self.log_to, f"\n{when} lines that are lost here: {self.lost}\n".encode())
                self.lost = 0
            while view:
                view = view[os.write(self.log_to, view) :]
        except OSError as error:
            if not self.lost and self.log_to != 2:
                say(
                    f"cannot write the log ({error.strerror}): lines are lost "
                    "until that works again"
                )
            self.lost += bytes(view).count(b"\n")

    def finish(self, asked: bool) -> int:
        """Close the door, end what is idle at once, give what is under way a moment."""
        self.stopping, self.accept_at = True, FOREVER
        with contextlib.suppress(KeyError):  # during a pause
            self.selector.unregister(self.sock)
        self.sock.close()
        for conn in self.those(HANDSHAKE, IDLE, HEAD):
            conn.close()
        dropped = self.wait_for_answers()
        for conn in dropped:
            with contextlib.suppress(OSError):
                # (the method of a TLS socket is for its own thread)
                socket.socket.shutdown(conn.sock, socket.SHUT_RDWR)
        self.wait_for_answers()
        for conn in self.those(*State):
            conn.sock.close()
        self.selector.close()
        self.write_log(0)
        if self.lost:
            say(f"lines of the log that are lost: {self.lost}")
        if asked:
            say(
                f"stopped: {plural(self.count, 'request')} answered, "
                f"{plural(len(dropped), 'transfer')} cut off"
            )
        if self.args.once and not self.satisfied and not asked:
            raise Failure(
                18,
                "nobody has got the whole of it",
                f"no client went on within {self.args.timeout:g} s",
                f"{SERVER} --once --timeout 600",
            )
        return 0

    def wait_for_answers(self) -> list[Connection]:
        """Those that are still under way after the grace."""
        end = time.monotonic() + GRACE
        while (left := self.those(ANSWERING, HANDED_OVER)) and self.turn(end):
            pass
        return left


def is_settled(info: Facts) -> bool:
    return time.time() - max(info.st_ctime, info.st_mtime) > UNCHANGED


def sha256_of(descriptor: int, conn: Optional[Connection] = None) -> bytes:
    """Of a whole file. For a connection, this stops when the client has left."""
    sha, offset = hashlib.sha256(), 0
    while chunk := read_at(descriptor, PIECE, offset):
        sha.update(chunk)
        offset += len(chunk)
        if conn and offset % LOOK_AFTER == 0 and conn.has_left():
            raise Refusal(503, "the client closed before the digest was computed", close=True)
    return sha.digest()


@functools.lru_cache(maxsize=16)
def log_time(seconds: int) -> str:
    """As in [10/Oct/2000:13:55:36 -0700], in English: nothing here calls setlocale()."""
    return time.strftime("[%d/%b/%Y:%H:%M:%S %z]", time.localtime(seconds))


def serve(args: argparse.Namespace) -> int:
    raise_file_limit()
    args.max_clients = most_clients(args.max_clients)
    # a worker that makes a listing must not delay the loop for the usual 5 ms
    sys.setswitchinterval(0.001)
    mimetypes.init()
    shared, log = open_shared(args), open_log(args.log) if args.log else 2
    if args.drop_box and (args.read_only or shared.only):
        raise Failure(
            2,
            "--drop-box, --read-only and a single file exclude each other",
            "nothing could be handed in to one file, or where nothing changes",
            f"{SERVER} FOLDER --drop-box",
        )
    family, target = resolve(args.host, args.port, socket.SOCK_STREAM)[0]
    door = make_door(args, str(target[0]))
    if door.tls:
        door.tls.set_alpn_protocols(["http/1.1"])
    sock = bind(socket_class(args), family, target, 1024)
    # Each connection inherits these: send even a short answer at once. TCP_DEFER_ACCEPT is not one
    # of them: it would save a turn of the loop, but a client that has said nothing yet would not
    # be told that the server is full or has ended.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    with contextlib.closing(Stop()) as stop:
        announce(sock, args, door)
        return Server(args, sock, door, shared, stop, log).run()


# --- methods: what each request does ---


def check_request(conn: Connection, request: Request) -> None:
    """What holds for every method, in the order in which a stranger would try."""
    server, fields, method = conn.server, request.fields, request.method
    # Where each request needs the password, a foreign name is no danger: a page of another site
    # that has its name point to this machine gets no password from the browser, which knows it
    # for our names alone.
    if request.host and not server.asks_all and not is_own_host(request.host, server.names):
        raise Refusal(421, "no name of this machine; its owner can allow it with --allow-host NAME")
    if server.door.guard:
        check_password(conn, request, server.door.guard)
    if method not in METHODS:
        status = 405 if method in ("CONNECT", "TRACE") else 501
        raise Refusal(status, "no such method here", {"Allow": server.allowed})
    if method in CHANGING:
        if server.read_only:
            raise Refusal(405, "nothing can be changed here", {"Allow": server.allowed})
        if is_foreign(request):
            raise Refusal(403, "a page of another site may not change anything here")
    if request.minor and fields.get("expect", "100-continue").lower() != "100-continue":
        raise Refusal(417, "no other expectation than 100-continue")


def check_password(conn: Connection, request: Request, guard: "Guard") -> None:
    """Basic (RFC 7617): any name, and the password.

    --public-read does not cover HEAD of an upload: it ends the connection that sends it."""
    reads = request.method in ("GET", "HEAD") and "upload" not in parameters(request.query)
    if conn.args.public_read and reads:
        return
    login = basic_login(request.field("authorization"))
    if login is None:
        raise Refusal(401, "a password is asked for", CHALLENGE)
    user, given = login
    right = secrets.compare_digest(hashlib.sha256(given).digest(), conn.server.secret)
    reason = guard.judge(conn.peer, right)
    if reason == "busy":
        later = {"Retry-After": str(guard.wait(conn.peer))}
        raise Refusal(429, "busy: too many wrong passwords came from this address", later)
    if reason:
        raise Refusal(401, "wrong password", CHALLENGE)
    conn.user = urllib.parse.quote(user[:MAX_USER], safe="") or "-"


def basic_login(field: str) -> Optional[tuple[bytes, bytes]]:
    """The name and the password, parted by the first colon; None for what is no login by Basic."""
    scheme, _, token = field.partition(" ")
    with contextlib.suppress(ValueError):
        user, colon, password = base64.b64decode(token.strip(), validate=True).partition(b":")
        if scheme.lower() == "basic" and colon:
            return user, password
    return None


def own_hosts(request: Request) -> tuple[str, str]:
    """Under which names the client knows this server: a proxy in front adds the second."""
    return request.host.lower(), request.field("x-forwarded-host").lower()


def is_foreign(request: Request) -> bool:
    """Whether a browser sent this for a page of another site.

    A page cannot add X-Forwarded-Host without asking first; a proxy does."""
    host = request.field("origin").partition("://")[2].lower()
    return "origin" in request.fields and (not host or host not in own_hosts(request))


# To read: a file, parts of it, a folder.


def get(conn: Connection, request: Request) -> Answer:
    options = parameters(request.query) if request.query else {}
    if "upload" in options:
        return upload_state(conn, request)
    shared = conn.shared
    if shared.only and not request.names:
        return redirect(url_path([shared.only]), request)
    found = conn.hold(shared.open(request.names))
    if found.is_folder and request.names and not request.slash:
        return redirect(url_path(request.names, slash=True), request)
    if found.is_folder:
        return get_folder(conn, request, found, options)
    if request.slash:
        raise Refusal(404, "that is a file, not a folder")
    return get_file(conn, request, request.names, found)


def redirect(path: str, request: Request) -> Answer:
    """To a path of ours, never to a host (§15.4.9; // and \\ would begin one)."""
    target = path + ("?" + request.query if request.query else "")
    # browsers would keep it for ever, but the next server on this port may share something else
    return text_answer(308, "it is there", {"Location": target, "Cache-Control": "no-store"})


def get_folder(conn: Connection, request: Request, found: Opened, options: Fields) -> Answer:
    shared, kind = conn.shared, listing_type(request.fields.get("accept", "*/*"))
    crumbs = shared.title, *request.names
    for archive in ARCHIVES:
        if archive in options:
            return get_archive(conn, request, found, crumbs[-1], archive)
    names = *request.names, "index.html"
    if kind == "text/html" and (index := other_file(conn, names)):
        answer = get_file(conn, request, names, index)
        answer.fields["Vary"] = "Accept, Accept-Encoding"
        return answer
    fields = {
        "Content-Type": kind + UTF_8 * (not kind.endswith("json")),
        "Cache-Control": "no-store",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }
    if kind == "text/html":
        fields |= page_fields()
        tag = folder_tag(found.info)
        if tag and is_known(request.fields, f'"{tag}"', NO_DATE):
            return Answer(304, fields)
    pieces = listing(found, kind, crumbs, shared.hidden, conn.server.read_only)
    return Answer(200, fields, pieces=in_chunks(pieces))


def other_file(conn: Connection, names: Names) -> Optional[Opened]:
    """A file that is sent in place of what was asked for, if it is there."""
    with contextlib.suppress(OSError, Refusal):
        found = conn.hold(conn.shared.open(names))
        return None if found.is_folder else found
    return None


def get_file(conn: Connection, request: Request, names: Names, found: Opened) -> Answer:
    fields, coding = request.fields, ""
    packs = takes_gzip(request.field("accept-encoding"))
    if packs and "range" not in fields:
        packed = other_file(conn, (*names[:-1], names[-1] + ".gz"))
        if packed and packed.info.st_mtime >= found.info.st_mtime:
            found, coding = packed, "gzip"
    answer = file_answer(conn, request, names[-1], found, coding)
    is_same = not conn.server.asks_all and not coding and "range" not in fields
    if DIR_FD and is_same and is_settled(found.info):
        folders = ["/".join(names[:count]) for count in range(1, len(names))]
        path = "/".join(names)
        answer.source = Source(path, facts_of(found.info), folders, path + ".gz" if packs else "")
    return answer


def file_answer(
    conn: Connection, request: Request, name: str, found: Opened, coding: str
) -> Answer:
    fields, info = request.fields, found.info
    tag = etag(info, coding and "-gz")
    mtime = max(EARLIEST, min(int(info.st_mtime), int(time.time())))
    headers = {
        "ETag": tag,
        "Last-Modified": http_date(mtime),
        "Cache-Control": "no-cache",
        "Vary": "Accept-Encoding",
    }
    if is_known(fields, tag, mtime):
        return Answer(304, headers)
    kind = type_of(name)
    if kind.endswith(UTF_8) and not coding and not is_utf8(found.descriptor):
        kind = kind.removesuffix(UTF_8)
    headers |= {"Content-Type": kind, "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
    if coding:
        headers["Content-Encoding"] = coding
    elif is_executable(info):
        headers[EXECUTABLE] = "1"
    if not conn.server.read_only and ACTIVE.match(kind):
        # anybody could have uploaded it, so it runs no script in this origin
        headers["Content-Security-Policy"] = "sandbox"
    if wants_digest(request) and (digest := conn.server.digest(conn, found)):
        headers["Repr-Digest"] = digest_field(digest)
    ranges = wanted_ranges(request, info.st_size, tag, mtime)
    if ranges and len(ranges) > 1:
        return several(headers, found.descriptor, info.st_size, ranges)
    return one_range(
        headers, ranges, info.st_size, lambda start, end: [Span(found.descriptor, start, end)]
    )


def is_utf8(descriptor: int) -> bool:
    """Whether a text seems to be UTF-8: its first bytes, perhaps without the last character."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with contextlib.suppress(UnicodeDecodeError):
        decoder.decode(read_at(descriptor, MAX_HEAD, 0))
        return True
    return False


def wanted_ranges(request: Request, size: int, tag: str, mtime: float) -> Optional[Ranges]:
    """The ranges that are to be sent, None for the whole."""
    condition = request.fields.get("if-range", tag)
    # §13.1.5: a strong tag, or the date of a file that has not changed within the last second
    same = condition == tag or parse_date(condition) == mtime < time.time() - 1
    if request.method != "GET" or not same:
        return None
    ranges = parse_ranges(request.field("range"), size)
    if ranges == []:
        raise Refusal(416, "there are no such bytes", {"Content-Range": f"bytes */{size}"})
    return ranges


def one_range(
    headers: Fields,
    ranges: Optional[Ranges],
    size: int,
    read: Callable[[int, int], Iterable[Piece]],
) -> Answer:
    """One range of what has this size, or the whole."""
    status, start, end = 200, 0, size
    if ranges and len(ranges) == 1:
        status, (start, end) = 206, ranges[0]
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    answer = Answer(status, headers, pieces=read(start, end), length=end - start)
    answer.share = headers["ETag"], size, [(start, end)]
    return answer


def several(headers: Fields, descriptor: int, size: int, ranges: Ranges) -> Answer:
    """Several ranges of a file, with a head for each (§14.6)."""
    kind, mark = headers["Content-Type"], secrets.token_hex(12)
    pieces: list[Piece] = []
    for start, end in ranges:
        head = (
            f"\r\n--{mark}\r\nContent-Type: {kind}\r\n"
            f"Content-Range: bytes {start}-{end - 1}/{size}\r\n\r\n"
        )
        pieces += [head.encode(), Span(descriptor, start, end)]
    pieces.append(f"\r\n--{mark}--\r\n".encode())
    headers["Content-Type"] = f"multipart/byteranges; boundary={mark}"
    answer = Answer(206, headers, pieces=pieces, length=sum(map(size_of, pieces)))
    answer.share = headers["ETag"], size, ranges
    return answer


def options(conn: Connection, request: Request) -> Answer:
    fields = {"Allow": conn.server.allowed, "Accept-Ranges": "bytes"}
    if not conn.server.read_only:
        fields |= {"Accept-Patch": "application/partial-upload", "Upload-Limit": upload_limit(conn)}
    return Answer(204, fields)


# To write: a whole file, or those of a form.


def put(conn: Connection, request: Request) -> Answer:
    if "content-range" in request.fields:
        raise Refusal(400, "PUT takes whole files; Upload-Offset with PATCH takes parts")  # §14.4
    if not request.names or request.slash:
        raise Refusal(409, "a folder has that name; POST puts files into it")
    check_size(conn, request)
    # a request that is conditional on an existing file must not create folders
    until = parse_date(request.field("if-unmodified-since"))
    make = "if-match" not in request.fields and until is None
    try:
        where = conn.shared.locate(request.names, change=True, make=make)
    except FileNotFoundError:
        check_conditions(request.fields, None)
        raise
    with where as place:
        there = check_conditions(request.fields, place.regular())
        over = "replace"
        if not CONDITIONS.isdisjoint(request.fields):
            over = bare_tag(there) if there else "new"
        return receive_upload(conn, request, place, Plan(request.names, over=over))


def post(conn: Connection, request: Request) -> Answer:
    """To a folder: store a form's files, or the body under a new name. To a file: like PUT."""
    if has_form(request):
        return post_form(conn, request)
    if request.names and not request.slash and not is_folder(conn, request.names):
        return put(conn, request)
    return store_new(conn, request, (*request.names, suggested_name(request)))


def store_new(conn: Connection, request: Request, names: Names) -> Answer:
    """Store a body under a name that is new: one that exists gets a number."""
    check_size(conn, request)
    with conn.shared.locate(names, change=True, make=True) as place:
        return receive_upload(conn, request, place, Plan(names, over="number"))


def has_form(request: Request) -> bool:
    kind = request.field("content-type").lower()
    return request.method == "POST" and kind.startswith("multipart/form-data")


def announced_length(request: Request) -> str:
    """How long an upload will be when it is whole, "" if it does not say so."""
    length = request.fields.get("upload-length")
    if length is None:
        begun = request.chunked or request.field("upload-complete") == "?0"
        return "" if begun else str(request.length)
    if not DIGITS.fullmatch(length):
        raise Refusal(400, "Upload-Length is not a number")
    return str(int(length))


def is_folder(conn: Connection, names: Names) -> bool:
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        contextlib.closing(conn.shared.open(names)) as found,
    ):
        return found.is_folder
    return False


def check_size(conn: Connection, request: Request) -> None:
    """A size that is too large is refused before the body, and before folders are made for it."""
    if 0 < conn.args.max_size < max(request.length, int(announced_length(request) or 0)):
        limit = {"Upload-Limit": upload_limit(conn)}
        raise Refusal(413, f"more than {conn.args.max_size} bytes are not taken", limit, close=True)


def check_space(conn: Connection, place: Place, size: int) -> None:
    """Each folder may be on a disk of its own."""
    import shutil  # not at the top, nor tarfile and tempfile below: few requests need them

    if size + conn.args.min_free > shutil.disk_usage(place.folder).free:
        raise Refusal(507, "there is not that much free space", close=True)


def check_conditions(fields: Fields, info: Optional[Facts]) -> Optional[Facts]:
    """What a request changes must be as its conditions say, whether it is there or not."""
    tag, mtime = (etag(info), int(info.st_mtime)) if info else ("", FOREVER)
    is_known(fields, tag, mtime, reading=False)
    return info


PLAN = re.compile(
    "upload=([0-9a-f]{32})&over=(new|replace|number|[0-9a-f-]{5,60})(?:&length=([0-9]{1,18}))?"
    "(?:&sha256=([0-9a-f]{64}))?(?:&mtime=(-?[0-9]{1,20}))?&time=(-?[0-9]{1,20})&file=([0-9]{1,40})"
)


class Plan(NamedTuple):
    """What an upload becomes when it is whole.

    A resumable upload has it in its URL, so any server of this folder can continue it."""

    names: Names
    upload: str = ""  # the part's token, if it can be resumed
    # "replace" what stands there, or only the file of this tag; only as a "new" name, or with a
    # "number"
    over: str = "replace"
    length: str = ""  # digits, as the others; "" if it is not known
    sha256: str = ""
    mtime: str = ""  # the client's, in ns
    # By these two the finished file is known: its time as the disk keeps it, which is mtime or else
    # when the upload began, and the number of its inode, which is the part's.
    time: str = ""
    file: str = ""

    def url(self) -> str:
        known = self._asdict()
        names = url_path(known.pop("names"))
        return f"{names}?" + "&".join(f"{key}={value}" for key, value in known.items() if value)


def read_plan(request: Request) -> Plan:
    found = PLAN.fullmatch(request.query)
    if not found or not request.names:
        raise Refusal(404, "there is no such upload")
    return Plan(request.names, *found.groups(default=""))


def receive_upload(conn: Connection, request: Request, place: Place, plan: Plan) -> Answer:
    fields, began, length = request.fields, time.time_ns(), announced_length(request)
    digest, complete = parse_digest(request.field("repr-digest")), fields.get("upload-complete")
    resumable, mtime = complete in ("?0", "?1"), wanted_mtime(request, began)
    check_space(conn, place, max(request.length, int(length or 0)))
    conn.server.search_old_parts(place)
    with new_part(place, resumable, fields.get(EXECUTABLE.lower()) == "1") as part:
        plan = plan._replace(length=length, sha256=digest, mtime=mtime)
        if resumable:
            # how the disk keeps that time; then back to now, or the part could look too old
            kept = part.date(int(mtime or began))
            part.date(began)
            when, file = str(kept.st_mtime_ns), str(kept.st_ino)
            plan = plan._replace(upload=part.token, time=when, file=file)
            there = {"Location": plan.url(), "Upload-Limit": upload_limit(conn)}
            send_interim(conn, request, there)
        return fill_part(conn, request, part, plan, complete != "?0")


def wanted_mtime(request: Request, began: int) -> str:
    """The file's time at the client in ns, from a field of ownCloud, rclone, Nextcloud and Apache.

    A time without a fraction gets the server's: two files of one time and size need two ETags."""
    text = request.fields.get("x-oc-mtime")
    if text is None:
        return ""
    if not re.fullmatch(r"-?[0-9]{1,11}(\.[0-9]{1,9})?", text):
        raise Refusal(400, "X-OC-Mtime is not a time in seconds since 1970, of at most 11 digits")
    import decimal  # not at the top: few uploads have a time

    return str(int(decimal.Decimal(text).scaleb(9)) + (0 if "." in text else began % 10**9))


def send_interim(conn: Connection, request: Request, fields: Fields) -> None:
    """104: where an upload can be resumed, or how much has arrived.

    Only clients of the same version of the draft get it, and no request that came through a proxy:
    nginx 1.22 takes it for the final response, and the upload hangs."""
    same = request.fields.get("upload-draft-interop-version") == INTEROP
    if same and request.minor and PROXIED.isdisjoint(request.fields):
        fields = {"Upload-Draft-Interop-Version": INTEROP, **fields}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        conn.send(f"HTTP/1.1 104 Upload Resumption Supported\r\n{lines}\r\n".encode())


def fill_part(conn: Connection, request: Request, part: Part, plan: Plan, complete: bool) -> Answer:
    """Receive into a part, and when the upload is complete check it and put it in its place."""
    check_length(conn, part, plan, part.size + request.length)
    write_body(conn, part, plan, reporting(conn, request, part))
    if complete:
        return complete_upload(conn, request, part, plan)
    fields = {"Location": plan.url(), **upload_fields(conn, part.size, "?0")}
    if request.method == "PATCH":
        return Answer(204, fields)
    return text_answer(201, "to be continued", fields)


def write_body(conn: Connection, part: Part, plan: Plan, pieces: Iterable[Data]) -> None:
    """Write what comes while there is room: the size of a chunked upload is not known before."""
    part.leave()
    for piece in pieces:
        part.take(conn)
        part.write(piece)
        if part.size % FREE_CHECK < len(piece):  # the caller has checked before
            check_space(conn, part.place, 0)
        check_length(conn, part, plan, part.size)
        part.leave()
    part.take(conn)


def check_length(conn: Connection, part: Part, plan: Plan, size: int) -> None:
    """Give up an upload that gets longer than it may."""
    if 0 < conn.args.max_size < size or plan.length and int(plan.length) < size:
        part.kept = False
        status = 400 if plan.length else 413
        raise Refusal(status, "more than was announced or is taken", close=True)


def reporting(conn: Connection, request: Request, part: Part) -> Iterator[Data]:
    """The body of a resumable upload. Meanwhile tell the client how much is stored.

    Only while more is to come, and only if the client reads."""
    last = 0.0
    for data in conn.body.pieces:
        yield data
        more = part.kept and (conn.body.left or request.chunked)
        if more and time.monotonic() > last + NOTE_EVERY and poll(conn.sock, True, 0):
            last = time.monotonic()
            send_interim(conn, request, {"Upload-Offset": str(part.size)})


def complete_upload(conn: Connection, request: Request, part: Part, plan: Plan) -> Answer:
    fields = {"Upload-Complete": "?1"} if plan.upload else {}
    try:
        if plan.length not in ("", str(part.size)):
            text = f"the upload has {part.size} bytes, {plan.length} were announced"
            raise Refusal(400, text)
        digest = check_digest(conn, request, part, plan)
    except Refusal as refused:
        part.kept = False
        refused.fields |= fields
        raise
    names, info, replaced = finish_upload(conn, part, plan, digest)
    fields["ETag"] = etag(info)
    if plan.mtime and int(plan.mtime) // 10**9 == info.st_mtime_ns // 10**9:
        fields["X-OC-Mtime"] = "accepted"
    if digest:
        fields["Repr-Digest"] = digest_field(digest)
    return Answer(204, fields) if replaced else stored_answer(conn, [names], fields)


def finish_upload(
    conn: Connection, part: Part, plan: Plan, digest: bytes = b""
) -> tuple[Names, Facts, bool]:
    """Put a part in its place. Return its names, its facts, and whether it replaced a file.

    The old file is checked and replaced in one step. Otherwise two writers could both believe
    that they replaced the same one."""
    if conn.args.durable:
        sync_to_disk(part.descriptor)
    with renaming(conn, part.place):
        part.kept = False  # what fails from here on would fail again
        old = None if plan.over in ("new", "number") else part.place.regular()
        if plan.over not in ("new", "number", "replace", old and bare_tag(old)):
            raise Refusal(412, "what it was to replace has changed meanwhile")
        # The system's own times come in ticks of some ms: of three files of one size that follow
        # each other within one, the third may have the inode, and so the ETag, of the first.
        info = part.prepare(old, int(plan.time or plan.mtime or time.time_ns()))
        name = part.rename_to(plan.names[-1], plan.over)
    if conn.args.durable:
        sync_folder(part.place)
    log_hand_in(conn, plan, name, part.size, digest)
    return (*plan.names[:-1], name), info, bool(old)


def place_fields(conn: Connection, names: Names) -> Fields:
    """Where something is stored. Nobody can fetch it from a drop box: its name for the sender."""
    if conn.args.drop_box:
        return {"Stored-As": url_path(names[1:])[1:]}
    return {"Location": url_path(names)}


def stored_answer(
    conn: Connection, stored: Sequence[Names], fields: Fields, more: str = ""
) -> Answer:
    fields = {**place_fields(conn, stored[0]), **fields}
    paths = [path for names in stored for path in place_fields(conn, names).values()]
    return text_answer(201, f"stored as {' '.join(paths)}{more}", fields)


def check_digest(conn: Connection, request: Request, part: Part, plan: Plan) -> bytes:
    """The SHA-256 of what is on the disk, if anybody wants it. It must match an announced one."""
    wanted = plan.sha256 or parse_digest(conn.body.trailer.get("repr-digest", ""))
    if not wanted and not wants_digest(request):
        return b""
    actual = sha256_of(part.descriptor)
    if wanted and actual.hex() != wanted:
        raise Refusal(400, "what arrived is not what Repr-Digest says")
    return actual


# a parameter of Content-Disposition or Content-Type: name="value", or without the quotes
PARAMETER = re.compile(rb';[ \t]*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;"]*))', re.DOTALL)

DISPOSITION = re.compile(rb"^content-disposition:.*", re.IGNORECASE | re.MULTILINE)


def field_parameters(field: bytes) -> dict[bytes, bytes]:
    return {
        name.lower(): bare.strip() or re.sub(rb'\\(["\\])', rb"\1", quoted)
        for name, quoted, bare in PARAMETER.findall(b";" + field)
    }


def suggested_name(request: Request) -> str:
    """The name for a body that is posted to a folder.

    It comes from Content-Disposition, or from time and type."""
    wanted = field_parameters(request.field("content-disposition").encode("latin-1"))
    charset, _, exact = wanted.get(b"filename*", b"").partition(b"''")
    if charset.lower() == b"utf-8" and exact:
        # a backslash in it is meant as one: our page sends it so
        return os.fsdecode(urllib.parse.unquote_to_bytes(exact)).rpartition("/")[2]
    if b"filename" in wanted:
        return last_component(wanted[b"filename"])
    kind = request.field("content-type").partition(";")[0].strip().lower()
    return time.strftime("upload-%Y%m%d-%H%M%S") + (mimetypes.guess_extension(kind) or ".bin")


def last_component(path: bytes) -> str:
    return re.split(r"[/\\]", os.fsdecode(path))[-1]


def boundary_of(content_type: str) -> bytes:
    boundary = field_parameters(content_type.encode("latin-1")).get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise Refusal(400, "a form needs a boundary", close=True)
    return boundary


def form_file_name(head: bytes) -> str:
    """The name of the file in a field of a form, "" when it holds none (RFC 7578).

    Only the last component counts, except in a field called folder: there the path below the
    folder that was chosen."""
    line = DISPOSITION.search(head)
    facts = field_parameters(line[0]) if line else {}
    path = facts.get(b"filename", b"")
    for escape, byte in (b"%22", b'"'), (b"%0D", b"\r"), (b"%0A", b"\n"):
        path = path.replace(escape, byte)
    return os.fsdecode(path) if facts.get(b"name") == b"folder" else last_component(path)


def post_form(conn: Connection, request: Request) -> Answer:
    """RFC 7578: each file of the form into the folder; a name that exists gets a number."""
    check_size(conn, request)
    names: Names = ("-",) if conn.args.drop_box else (*request.names, "-")
    # before the body: who waits for 100 Continue need not send it in vain. Folders that are not
    # there yet are made with the first file: there may be none, or the client may leave.
    with (
        contextlib.suppress(FileNotFoundError),
        conn.shared.locate(names, change=True) as place,
    ):
        check_space(conn, place, request.length)
    stored = store_files(conn, request)
    # all names could be a thousand times what was sent: each begins with the folder's path
    listed, left = list(itertools.islice(stored, MAX_LISTED)), sum(1 for _ in stored)
    if not listed:
        raise Refusal(400, "the form holds no file")
    if wants_page(request):
        # the browser shows the folder again
        folder = request.names[1:] if conn.args.drop_box else request.names
        return text_answer(303, "stored", {"Location": url_path(folder, slash=True)})
    return stored_answer(conn, listed, {}, f" and {left} more" if left else "")


def store_files(conn: Connection, request: Request) -> Iterator[Names]:
    for head, data in form_fields(conn.body.pieces, boundary_of(request.fields["content-type"])):
        if name := form_file_name(head):
            yield store_file(conn, request, data, name)
        deque(data, maxlen=0)


def store_file(conn: Connection, request: Request, data: Iterator[bytes], name: str) -> Names:
    names: Names = (*request.names, *name.split("/"))
    plan = Plan(passing_files(conn, names) if conn.args.drop_box else names, over="number")
    with (
        conn.shared.locate(plan.names, change=True, make=True) as place,
        new_part(place, kept=False) as part,
    ):
        conn.server.search_old_parts(place)
        check_space(conn, place, conn.body.left)  # of all that is still to come
        write_body(conn, part, plan, data)
        return finish_upload(conn, part, plan)[0]


def form_fields(chunks: Iterator[Data], boundary: bytes) -> Iterator[tuple[bytes, Iterator[bytes]]]:
    """The head of each field with its data, which must be used up before the next."""
    text = FormText(chunks)
    mark = b"\r\n--" + boundary
    text.bounded(mark, MAX_HEAD)
    for _ in range(MAX_FORM_FIELDS):
        padding, _, head = text.bounded(b"\r\n\r\n", MAX_TRAILER).partition(b"\r\n")
        if padding[:2] == b"--":
            deque(chunks, maxlen=0)  # what follows the form is ignored
            return
        if padding.strip(b" \t"):
            raise Refusal(400, "a boundary of the form does not end its line", close=True)
        yield head, text.until(mark)
    raise Refusal(413, f"a form of more than {MAX_FORM_FIELDS} fields", close=True)


class FormText:
    """Chunks in which marks are looked for; each byte is looked at about once."""

    def __init__(self, chunks: Iterator[Data]) -> None:
        # line ends around all, so that the first and the last boundary are like the others
        self.chunks, self.buffer = itertools.chain(chunks, [b"\r\n\r\n"]), b"\r\n"

    def until(self, mark: bytes) -> Iterator[bytes]:
        """What stands before a mark, in pieces; the mark is taken away."""
        while (at := self.buffer.find(mark)) < 0:
            safe = max(0, len(self.buffer) - len(mark) + 1)
            piece, self.buffer = self.buffer[:safe], self.buffer[safe:]
            yield piece
            chunk = next(self.chunks, None)
            if chunk is None:
                raise Refusal(400, "the form ends in the middle", close=True)
            self.buffer += chunk
        piece, self.buffer = self.buffer[:at], self.buffer[at + len(mark) :]
        yield piece

    def bounded(self, mark: bytes, limit: int) -> bytes:
        data = b""
        for piece in self.until(mark):
            data += piece
            if len(data) > limit:
                raise Refusal(400, "a line or head of the form is too long", close=True)
        return data


# To resume an upload: what is stored of it, and the rest.


def upload_limit(conn: Connection) -> str:
    """The age begins anew whenever somebody comes for the upload."""
    most = f", max-size={conn.args.max_size}" if conn.args.max_size else ""
    return f"max-age={PART_AGE}{most}"


def upload_fields(conn: Connection, size: int, complete: str) -> Fields:
    return {
        "Upload-Complete": complete,
        "Upload-Offset": str(size),
        "Upload-Limit": upload_limit(conn),
    }


def patch(conn: Connection, request: Request) -> Answer:
    kind = "application/partial-upload"
    if request.field("content-type").lower() != kind:
        raise Refusal(415, f"PATCH takes {kind}", {"Accept-Patch": kind})
    offset, complete = request.field("upload-offset"), request.field("upload-complete")
    if not DIGITS.fullmatch(offset) or complete not in ("?0", "?1"):
        raise Refusal(400, "Upload-Offset and Upload-Complete are needed")
    with resumed(conn, request) as (part, plan):
        check_space(conn, part.place, request.length)
        if part.size != int(offset):
            there = upload_fields(conn, part.size, "?0")
            raise Refusal(409, f"the upload stands at {part.size}", there)
        return fill_part(conn, request, part, plan, complete == "?1")


def upload_state(conn: Connection, request: Request) -> Answer:
    if request.method != "HEAD":
        allowed = {"Allow": "HEAD, PATCH, DELETE"}
        raise Refusal(405, "an upload answers HEAD, PATCH and DELETE", allowed)
    try:
        with resumed(conn, request) as (part, plan):
            fields = upload_fields(conn, part.size, "?0")
            if plan.length:
                fields["Upload-Length"] = plan.length
    except Refusal as refused:
        fields = refused.fields
        if "Upload-Complete" not in fields:
            raise
    return Answer(204, {**fields, "Cache-Control": "no-store"})


@contextlib.contextmanager
def resumed(conn: Connection, request: Request) -> Iterator[tuple[Part, Plan]]:
    """An upload's part, locked. A connection that still writes it has failed: it is ended."""
    plan = read_plan(request)
    with (
        conn.shared.locate(plan.names, change=True) as place,
        contextlib.closing(Part(place, plan.upload)) as part,
    ):
        there = None
        with contextlib.suppress(FileNotFoundError):
            part.take(conn)
            there = part.own.stat()
        # another name: meanwhile, what is open here has become a file
        if not there or there.st_nlink > 1:
            raise finished_upload(conn, place, plan)
        part.date(time.time_ns())  # who wrote it before sees that
        yield part, plan


def finished_upload(conn: Connection, place: Place, plan: Plan) -> Refusal:
    """What is said of an upload without a part: not found, or complete, which HEAD asks for.

    It is complete as long as the file that it became stands in its place."""
    last = plan.names[-1]
    for name in numbered_names(last) if plan.over == "number" else [last]:
        info = place.beside(name).stat()
        same = info and (str(info.st_ino), str(info.st_mtime_ns)) == (plan.file, plan.time)
        if info and same and plan.length in ("", str(info.st_size)):
            fields = {
                **place_fields(conn, [*plan.names[:-1], name]),
                **upload_fields(conn, info.st_size, "?1"),
                "Upload-Length": str(info.st_size),
            }
            return Refusal(400, "the upload is complete", fields)
    return Refusal(404, "there is no such upload")


# To delete, to make a folder, to move.


def delete(conn: Connection, request: Request) -> Answer:
    options = parameters(request.query)
    if "upload" in options:
        with resumed(conn, request) as (part, _):
            part.kept = False
        return Answer(204)
    if not request.names:
        raise Refusal(403, "the shared folder itself stays")
    shared = conn.shared
    with shared.locate(request.names, change=True) as place:
        found = look_at(place)
        if request.slash and not found.is_folder:
            raise Refusal(404, "that is a file, not a folder")
        if found.is_folder:
            shared.refuse_program(request.names, holds_program)
            check_conditions(request.fields, found.info)
            delete_folder(place, "recursive" in options, shared.hidden)
        else:
            with renaming(conn, place):
                check_conditions(request.fields, place.stat())
                place.unlink()
    return Answer(204)


def delete_folder(place: Place, recursive: bool, hidden: bool) -> None:
    for _, item, _ in tree(place) if recursive and not hidden else ():
        # uploads that were broken off may go
        if item.name[0] == "." and not PART.fullmatch(item.name):
            raise Refusal(409, "it holds hidden files, and hidden names are not served")
    for below, item, _ in tree(place) if recursive else ():
        with contextlib.suppress(FileNotFoundError):  # another request has deleted it
            (os.rmdir if is_real_folder(item) else os.unlink)(below.path, dir_fd=below.dir_fd)
    os.rmdir(place.path, dir_fd=place.dir_fd)


def new_place(conn: Connection, names: Names) -> Place:
    """A place for something new, in a folder that must exist (RFC 4918)."""
    check_depth(len(names))
    try:
        return conn.shared.locate(names, change=True)
    except (FileNotFoundError, NotADirectoryError):
        raise Refusal(409, "the folder that it is to be in does not exist") from None


def mkcol(conn: Connection, request: Request) -> Answer:
    if request.has_body:
        raise Refusal(415, "MKCOL takes no body")
    exists = Refusal(405, "that name exists", {"Allow": conn.server.allowed})  # RFC 4918 §9.3.1
    if not request.names:
        raise exists
    try:
        with new_place(conn, request.names) as place:
            conn.shared.make_folder(place)
    except FileExistsError:
        raise exists from None
    return text_answer(201, "made", {"Location": url_path(request.names, slash=True)})


def move(conn: Connection, request: Request) -> Answer:
    """RFC 4918 §9.9, for what rename() can do."""
    target = request.field("destination")
    host, path = split_target("MOVE", target, request.host or None, 0) if target else ("", "")
    if not path or host.lower() not in own_hosts(request):
        raise Refusal(502 if path else 400, "Destination must be a path or URL of this server")
    names, _, _ = parse_path(path)
    if not request.names or not names:
        raise Refusal(403, "the shared folder itself stays")
    with (
        conn.shared.locate(request.names, change=True) as old,
        new_place(conn, names) as new,
        renaming(conn, old, new),
    ):
        found = look_at(old)
        for end in (request.names, names) if found.is_folder else ():
            conn.shared.refuse_program(end, holds_program)
        # all that is in it becomes as deep
        if found.is_folder and len(names) > len(request.names):
            for _, _, depth in tree(old):
                check_depth(len(names) + depth)
        return move_to(old, found, new, request, names)


def move_to(old: Place, found: Opened, new: Place, request: Request, names: Names) -> Answer:
    check_conditions(request.fields, found.info)
    there, polite = new.stat(), request.fields.get("overwrite", "T").upper() == "F"
    if there and names != request.names and os.path.samestat(there, found.info):
        if there.st_nlink > 1 and not found.is_folder:
            # rename() would do nothing, but report success
            raise Refusal(403, "both names are of the same file")
        there = None  # it is found under its new name already: only the case of letters changes
    if there and polite:
        raise Refusal(412, "that name exists")
    if there and (found.is_folder or not stat.S_ISREG(there.st_mode)):
        raise Refusal(409, "something has that name already")
    if not there and names[: len(request.names)] == request.names:
        raise Refusal(409, "a folder cannot be moved into itself")
    # folders have no hard links, and rename() replaces none
    rename(old, new, replace=found.is_folder or not polite)
    if there:
        return Answer(204)
    return text_answer(201, "moved", {"Location": url_path(names, slash=found.is_folder)})


# A drop box (--drop-box): the way of all requests to it.


def hand_in(conn: Connection, request: Request) -> Answer:
    """Add a file or folder below the sender's own; all else is refused, whatever is there.

    No answer tells whether a name exists: one that does gets a number."""
    upload, folder = "upload" in parameters(request.query), sender_folder(conn, request)
    if request.method == "OPTIONS":
        return options(conn, request)
    # without a login, whoever knows the upload's URL is its sender: nobody can guess that. But who
    # has it can change it, so that it would replace something
    mine = not login_name(conn) or request.names[:1] == (folder,)
    own = mine and upload and "&over=number&" in request.query
    if own and request.method in ("HEAD", "PATCH", "DELETE"):
        return METHODS[request.method](conn, request)
    if request.method == "GET" and wants_page(request):
        page = drop_page(conn.shared.title, login_name(conn)).encode()
        return Answer(200, page_fields(), page)
    if upload or request.method not in ("PUT", "POST", "MKCOL"):
        raise Refusal(403, REFUSED)
    return add_to_box(conn, request.below(folder))


def add_to_box(conn: Connection, request: Request) -> Answer:
    if has_form(request):
        return post_form(conn, request)
    if request.method == "MKCOL":
        with (
            contextlib.suppress(FileExistsError),
            conn.shared.locate(passing_files(conn, request.names), True, make=True) as place,
        ):
            conn.shared.make_folder(place)
        return text_answer(201, "made")
    names: Names = request.names
    if request.slash or len(names) == 1:
        names = (*names, suggested_name(request))
    return store_new(conn, request, passing_files(conn, names))


def passing_files(conn: Connection, names: Names) -> Names:
    """The same path. Where a file stands on the way, a folder with a number is made instead.

    An error would tell that the file exists."""
    way: list[str] = []
    for name in names[:-1]:
        fits = (each for each in numbered_names(name) if makes_way(conn, [*way, each]))
        way.append(next(fits, name))
    return (*way, names[-1])


def makes_way(conn: Connection, folders: Names) -> bool:
    with (
        contextlib.suppress(FileExistsError, NotADirectoryError),
        conn.shared.locate([*folders, "-"], change=True, make=True),
    ):
        return True
    return False


def sender_folder(conn: Connection, request: Request) -> str:
    """The name in the login, or else the one that the page has asked for, or the address."""
    asked = urllib.parse.unquote(request.field("sender"))
    name = re.sub(r"[^\w.-]", "-", login_name(conn) or asked or conn.peer)
    name = name.strip(".")[:64] or "-"
    return "_" + name if WINDOWS_NAME.fullmatch(name) else name


def login_name(conn: Connection) -> str:
    """The name in the login; "" for none, and for that in the addresses that the server prints."""
    return "" if conn.user in ("-", ANYBODY) else urllib.parse.unquote(conn.user)


def log_hand_in(conn: Connection, plan: Plan, name: str, size: int, digest: bytes) -> None:
    if not conn.args.drop_box or conn.args.quiet and not conn.args.log:
        return
    sender, *names = plan.names
    path = printable_name("/".join([*plan.names[:-1], name]))
    conn.server.log(
        f"handed in by {sender}: {path}, {size} bytes, verified={'yes' if digest else 'no'}",
        conn.peer,
        conn.user,
        handed_in=path,
        by=sender,
        name=printable_name("/".join(names)),
        size=size,
        sha256=digest.hex() or None,
        verified=bool(digest),
    )


METHODS = {
    "GET": get,
    "HEAD": get,
    "OPTIONS": options,
    "PUT": put,
    "POST": post,
    "PATCH": patch,
    "DELETE": delete,
    "MKCOL": mkcol,
    "MOVE": move,
}

# --- archives: a folder as one stream whose length is known before ---


def chosen(query: str) -> frozenset[str]:
    """What ?zip=A/B and ?tar=A/B name: only these of the folder are wanted. None named is all."""
    names, _, _ = parse_path("/" + query.partition("=")[2])
    return frozenset(names) - {""}


ARCHIVES = {"tar": "application/x-tar", "zip": "application/zip"}


def get_archive(conn: Connection, request: Request, found: Opened, name: str, kind: str) -> Answer:
    """A folder as an archive. The download of a tar that was cut can be resumed.

    Its length and tag come from names, sizes and times alone."""
    fields = {
        "Content-Type": ARCHIVES[kind],
        "Content-Disposition": disposition(f"{name}.{kind}"),
        "Cache-Control": "no-store",
    }
    only = chosen(request.query)
    read = functools.partial(walk, found.where, "", conn.shared.hidden, only=only)
    entries = read(conn.server.note_left_out)
    if kind == "zip":
        length = zip_length(entries)
        answer = Answer(200, fields, pieces=zip_pieces(read()), length=length)
        answer.share = "zip", length, [(0, length)]
        return answer
    length, tag = tar_plan(entries)
    fields |= {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
    if is_known(request.fields, tag, NO_DATE):
        return Answer(304, fields)
    ranges = wanted_ranges(request, length, tag, NO_DATE)
    return one_range(fields, ranges, length, lambda start, end: tar_range(read, start, end, tag))


def walk(
    where: Where,
    path: str,
    hidden: bool,
    left_out: Callable[[Entry, str], None] = lambda entry, why: None,
    depth: int = 0,
    only: frozenset[str] = frozenset(),
) -> Iterator[Entry]:
    """Everything in a folder, depth first and by name, so two walks give the same order.

    Only the names of one folder are in memory at a time. Files that are unreadable or too deep are
    left out: they are no reason to refuse all others."""
    for found in entries(where, hidden):
        if only and found.name not in only:
            continue
        entry = found._replace(name=path + found.name + "/" * found.is_folder)
        if depth == MAX_DEPTH:
            return left_out(entry, f"it is more than {MAX_DEPTH} folders deep there")
        if not entry.is_readable():
            left_out(entry, "the server may not read it")
            continue
        yield entry
        if entry.is_folder:
            with contextlib.closing(open_leaf(entry.place)) as folder:
                yield from walk(folder.where, entry.name, hidden, left_out, depth + 1)


def tar_head(entry: Entry) -> bytes:
    import tarfile

    info = tarfile.TarInfo(entry.name.rstrip("/"))
    info.mode, info.size = stat.S_IMODE(entry.info.st_mode) & 0o777, entry.size
    info.mtime = int(entry.info.st_mtime)
    info.type = tarfile.DIRTYPE if entry.is_folder else tarfile.REGTYPE
    # the one format whose names are bytes
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


TAR_END = 1024  # two empty blocks


def tar_plan(entries: Iterable[Entry]) -> tuple[int, str]:
    """The archive's length, and a tag that changes with any name, size or time."""
    length, sha = TAR_END, hashlib.sha256()
    for entry in entries:
        head = tar_head(entry)
        sha.update(head + etag(entry.info).encode())
        length += len(head) + entry.size + -entry.size % 512
    return length, f'"{sha.hexdigest()[:32]}"'


def tar_pieces(entries: Iterable[Entry]) -> Iterator[Piece]:
    for entry in entries:
        yield tar_head(entry)
        yield from content(entry)
        yield bytes(-entry.size % 512)
    yield bytes(TAR_END)


def tar_range(
    read: Callable[[], Iterator[Entry]], start: int, end: int, tag: str
) -> Iterator[Piece]:
    """The bytes from start to end of the archive.

    The last piece comes only if the folder still is the one that was planned. Otherwise the client
    sees that it has not got the whole."""
    left = end - start
    for piece in cut(tar_pieces(read()), start, end):
        left -= size_of(piece)
        if not left and tar_plan(read())[1] != tag:
            raise Gone("the folder changed")
        yield piece


def content(entry: Entry) -> Iterator[Span]:
    """A file as one piece, open until the next one is asked for; nothing for an empty one."""
    if entry.size:
        with contextlib.closing(entry.open()) as found:
            yield Span(found.descriptor, 0, entry.size)


def cut(pieces: Iterable[Piece], start: int, end: int) -> Iterator[Piece]:
    """What lies between start and end of a stream."""
    for piece in pieces:
        size = size_of(piece)
        low, high = max(0, start), min(size, end)
        start, end = start - size, end - size
        if low < high:
            if isinstance(piece, Span):
                yield Span(piece.descriptor, piece.start + low, piece.start + high)
            else:
                yield piece[low:high]
        if end <= 0:  # the files of the rest need not be opened
            return


def zip_common(entry: Entry, crc: int, more: int) -> bytes:
    """What the heads before a file and in the directory share: from the version to the lengths.

    Bit 3 of the flags: the CRC follows the file, because it is not known before. Bit 11: the name
    is UTF-8. Both sizes are LARGE: they stand in the zip64 field, which has so many bytes."""
    name = os.fsencode(entry.name)
    flags = 8 | 0x800 * (name == entry.name.encode("utf-8", "replace"))
    # 1980 to 2107 is all that the format knows
    when = time.localtime(min(max(entry.info.st_mtime, 315619200), 4354732800))
    clock = when.tm_hour << 11 | when.tm_min << 5 | when.tm_sec // 2
    day = (when.tm_year - 1980) << 9 | when.tm_mon << 5 | when.tm_mday
    return struct.pack("<5H3L2H", 45, flags, 0, clock, day, crc, LARGE, LARGE, len(name), more)


LARGE = 0xFFFFFFFF  # in a 32-bit field: the number stands in the zip64 field instead


def zip_local(entry: Entry) -> bytes:
    field = struct.pack("<2H2Q", 1, 16, entry.size, entry.size)
    return b"PK\3\4" + zip_common(entry, 0, len(field)) + os.fsencode(entry.name) + field


def zip_after(entry: Entry, crc: int) -> bytes:
    return struct.pack("<4sL2Q", b"PK\7\x08", crc, entry.size, entry.size)


def zip_central(entry: Entry, crc: int, offset: int) -> bytes:
    field = struct.pack("<2H3Q", 1, 24, entry.size, entry.size, offset)
    mode = entry.info.st_mode << 16 & LARGE | 0x10 * entry.is_folder
    return (
        struct.pack("<4sH", b"PK\1\2", 3 << 8 | 45)
        + zip_common(entry, crc, len(field))
        + struct.pack("<3H2L", 0, 0, 0, mode, LARGE)
        + os.fsencode(entry.name)
        + field
    )


def zip_end(count: int, size: int, offset: int) -> bytes:
    """The end in the zip64 form, and the old one, in which ones everywhere point to that."""
    return (
        struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
        + struct.pack("<4sLQL", b"PK\6\7", 0, offset + size, 1)
        + struct.pack("<4s2L2LH", b"PK\5\6", 0, LARGE, LARGE, LARGE, 0)
    )


def zip_size(entry: Entry) -> int:
    """Bytes of an entry, without what the directory says of it."""
    return len(zip_local(entry)) + len(zip_after(entry, 0)) + entry.size


def zip_length(entries: Iterable[Entry]) -> int:
    return len(zip_end(0, 0, 0)) + sum(
        zip_size(entry) + len(zip_central(entry, 0, 0)) for entry in entries
    )


def zip_pieces(entries: Iterable[Entry]) -> Iterator[Piece]:
    """Entries as they are read, then the directory, which moves to a file when it grows large."""
    import tempfile

    at = count = 0
    with tempfile.SpooledTemporaryFile(1 << 20) as central:
        for entry in entries:
            crc, count = 0, count + 1
            yield zip_local(entry)
            for chunk in itertools.chain.from_iterable(map(in_memory, content(entry))):
                crc = zlib.crc32(chunk, crc)
                yield chunk
            yield zip_after(entry, crc)
            central.write(zip_central(entry, crc, at))
            at += zip_size(entry)
        size = central.tell()
        central.seek(0)
        yield from iter(lambda: central.read(PIECE), b"")
    yield zip_end(count, size, at)


# --- the page: a folder for people, and for programs ---
STYLE = r"""
:root{color-scheme:light dark;--line:#8884;--dim:#5c6166;--bar:#1a5fd0;--back:#fff;--soft:#f1f3f6}
@media(prefers-color-scheme:dark){:root{--dim:#a9aeb5;--bar:#82b1ff;--back:#17191d;--soft:#24272d}}
*{box-sizing:border-box}[hidden]{display:none!important}
html{overflow-y:scroll;overflow-anchor:none}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:64rem;padding:1rem;
background:var(--back)}
a{color:inherit;text-decoration:none;overflow-wrap:anywhere}
a:hover,a:focus{text-decoration:underline}
nav{font-size:1.25rem;margin-bottom:.5rem}nav a,p a{color:var(--bar)}
p a{text-decoration:underline}
nav span,.dim{color:var(--dim)}
h1{font-size:1.5rem;overflow-wrap:anywhere}
.tools{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;margin:.5rem 0}
input,button,select,textarea,.pick{font:inherit;padding:.35rem .8rem;border:1px solid var(--line);
border-radius:.5rem;background:var(--back);color:inherit}
button,.pick,select,label{cursor:pointer}button:hover,.pick:hover{background:var(--soft)}
input[type=search],input[type=text]{flex:1 1 12rem;min-width:8rem}
:focus-visible,.pick:focus-within{outline:2px solid var(--bar);outline-offset:1px}
.pick input{position:absolute;opacity:0;width:1px;padding:0}
input[type=checkbox]{width:1.1rem;height:1.1rem;min-height:0;flex:none;accent-color:var(--bar)}
#status{margin:.25rem 0}#status:empty{display:none}
table,thead,tbody{display:block}
tr{display:grid;grid-template-columns:2.6rem 1fr 8.5rem 10.5rem 11.5rem;align-items:center;
min-height:2.9rem;border-bottom:1px solid var(--line)}
tbody tr{content-visibility:auto;contain-intrinsic-height:auto calc(2.9rem - 1px)}
td,th{padding:0 .5rem;text-align:left;min-width:0}
tr:focus-within,tbody tr:hover,.chosen{background:var(--soft)}
td:nth-child(2) a{display:block;padding:.25rem 0;white-space:pre-wrap}
td:nth-child(3),th:nth-child(3){text-align:right}
td:nth-child(3),td:nth-child(4){color:var(--dim);white-space:nowrap}
td:first-child,th:first-child{padding:0}
td:first-child label,th:first-child label{display:flex;min-height:2.6rem;align-items:center;
justify-content:center}
td:last-child,th:last-child{padding:0;text-align:right;white-space:nowrap}
th button,td button,td:last-child a{border:0;padding:.3rem;background:none}
th button{font-weight:600;margin:0 -.3rem}
th[aria-sort=ascending] button::after{content:" \2191"}
th[aria-sort=descending] button::after{content:" \2193"}
td button,td:last-child a{display:inline-flex;min-width:2.4rem;height:2.4rem;color:var(--dim);
align-items:center;justify-content:center;vertical-align:middle}
td button:hover,td button:focus,td:last-child a:hover,td:last-child a:focus{color:var(--bar)}
svg{width:1.25rem;height:1.25rem;fill:none;stroke:currentColor;stroke-width:1.8}
.grid thead{display:none}
.grid tbody{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.6rem}
.grid tr{display:grid;grid-template:1fr auto/2.6rem 1fr;border:1px solid var(--line);
border-radius:.5rem;overflow:hidden;contain-intrinsic-height:auto 14rem}
.grid td:nth-child(2){grid-column:1/-1;grid-row:1}
.grid td:nth-child(n+3){display:none}
.grid td:last-child{display:block;grid-column:2;grid-row:2}
.grid .edit,.grid .bin{display:none}
.grid img{width:100%;height:9rem;object-fit:cover;display:block;background:var(--soft)}
.grid img+*{margin-top:.3rem}
footer{color:var(--dim);margin:1rem 0}
#shown:empty{display:none}
.drop{outline:3px dashed var(--bar);outline-offset:-.5rem}
#dock{position:sticky;bottom:0;margin:0 -.5rem}
#dock>div{margin:.5rem 0;padding:.5rem .75rem;border:1px solid var(--line);border-radius:.6rem;
background:var(--soft);box-shadow:0 2px 12px #0003}
#dock .tools{margin:0}#dock .tools>:first-child{flex:1 1 12rem}
progress{width:100%;height:.6rem;accent-color:var(--bar);display:block;margin:.3rem 0}
#jobs{list-style:none;margin:0;padding:0;max-height:40vh;overflow-y:auto}
#jobs li{display:flex;flex-wrap:wrap;gap:0 .75rem;align-items:center;padding:.2rem 0;
border-top:1px solid var(--line)}
#jobs li>:first-child{flex:1 1 10rem;overflow-wrap:anywhere;min-width:0}
#jobs small{color:var(--dim)}#jobs .failed small{color:inherit;font-weight:600}
dialog{border:1px solid var(--line);border-radius:.6rem;max-width:32rem;width:calc(100% - 2rem);
background:var(--back);color:inherit;overflow-wrap:anywhere}
dialog::backdrop{background:#0006}dialog textarea,dialog select{width:100%}
dialog label{display:flex;gap:.5rem;align-items:center;min-height:2.75rem}
@media(scripting:none){.js{display:none!important}th.js{display:block!important;visibility:hidden}}
@media(max-width:40rem),(hover:none){.hint{display:none}
button,.pick,input,select,nav a{min-height:2.75rem}
.pick,nav a{display:inline-flex;
align-items:center}td:first-child label,th:first-child label{min-height:2.75rem;width:2.75rem}
td button,td:last-child a{width:2.75rem;height:2.75rem}}
@media(max-width:40rem){body{padding:.6rem}#dock .tools>:first-child{flex:1 1 100%}
#dock .tools{gap:.3rem}#dock button{padding:.3rem .5rem}
thead tr{display:flex;gap:1rem;border:0}th{padding:0}thead td{display:none}
th:first-child{margin-right:-.75rem}
table:not(.grid) tbody tr{grid-template-columns:2.75rem auto 1fr auto;
contain-intrinsic-height:auto 4rem}
table:not(.grid) td:not(:first-child){padding:0 .25rem}
table:not(.grid) td:first-child,table:not(.grid) td:last-child{grid-row:1/3}
table:not(.grid) td:nth-child(2){grid-column:2/4}
table:not(.grid) td:nth-child(2) a{padding:.5rem 0 1.7rem;margin-bottom:-1.6rem}
table:not(.grid) td:nth-child(3),table:not(.grid) td:nth-child(4){font-size:.85rem;
text-align:left;padding-bottom:.4rem;pointer-events:none}
table:not(.grid) td:last-child{grid-column:4}
td .edit,td .bin{display:none}.grid tbody{grid-template-columns:1fr 1fr}}
"""
SCRIPT = r"""
'use strict';
// Basics: elements, requests, and texts for people.
const $ = id => document.getElementById(id), here = location.pathname;
// fetch() refuses an address with a login in it, which this page's own may be;
// other requests are first sent without, body and all
const at = url => new URL(url, location.origin + here);
const net = (url, options) => fetch(at(url), options);
const wait = ms => new Promise(go => setTimeout(go, ms));
const make = (tag, text, props) =>
  Object.assign(document.createElement(tag), {textContent: text || ''}, props);
const say = text => { $('status').textContent = text; };
const number = n => n.toLocaleString('en');
const count = (n, what) => number(n) + ' ' + what + (n === 1 ? '' : 's');
function size(n) {
  if (n < 999.5) return count(Math.round(n), 'byte');
  let power = 1;
  while (power < 4 && n >= 999.5 * 1000 ** power) power++;
  n /= 1000 ** power;
  return n.toFixed(n < 99.95 ? 1 : 0) + ' ' + ' kMGT'[power] + 'B';
}
// what the server says, without the status: "409 Conflict: a folder has that name"
function sentence(text) {
  const bare = text.replace(/^\d+ [^:]*: /, '').trim() || 'the server refused it';
  return bare[0].toUpperCase() + bare.slice(1) + '.';
}
function decoded(text) {
  try { return decodeURIComponent(text); } catch (error) { return text; }
}
const UNREACHABLE = 'The server cannot be reached.';
// the same as on the server: without accents and case, and numbers by their value
const natural = name => name.normalize('NFD').replace(/[\u0300-\u036f]/g, '').toLowerCase()
  .replace(/0*([0-9]+)/g, (_, digits) => '0' + String.fromCharCode(digits.length) + digits);
// a question over the page: the value of the button, '' for Escape
function question(text, fields, answers) {
  const box = make('dialog', '', {ariaLabel: text}), form = make('form', '', {method: 'dialog'});
  const line = make('div', '', {className: 'tools'});
  line.append(...answers.map(([value, label]) => make('button', label, {value})));
  form.append(make('p', text), ...fields, line);
  box.append(form);
  document.body.append(box);
  box.showModal();
  return new Promise(go => { box.onclose = () => { box.remove(); go(box.returnValue); }; });
}
// what is kept in this browser; it may keep nothing
function kept(store, key, value) {
  try {
    if (value === undefined) return JSON.parse(window[store].getItem(key));
    if (value === null) window[store].removeItem(key);
    else window[store].setItem(key, JSON.stringify(value));
  } catch (error) { /* the page works without */ }
  return null;
}

// The rows of the listing: what they say, their order, and which of them are seen.
const list = document.querySelector('tbody'), writes = !!$('pick');
const rows = () => [...list.rows];
const linkOf = row => row.cells[1].firstElementChild;
const hrefOf = row => linkOf(row).getAttribute('href');
const isFolder = row => hrefOf(row).endsWith('/');
const nameOf = row => linkOf(row).textContent.slice(0, isFolder(row) ? -1 : undefined);
const rowNamed = name => rows().find(row => nameOf(row) === name);
const isPicture = row => /\.(jpe?g|png|gif|webp|avif|svg|bmp)$/i.test(nameOf(row))
  && row.cells[2].dataset.v < 2e7;
const isText = row => row.cells[2].dataset.v < 2e6 && new RegExp('\\.(txt|md|csv|log|json|xml|html?'
  + '|css|m?js|ts|py|sh|[ch]|cpp|java|go|rs|ini|cfg|conf|toml|ya?ml|tex|sql|url)$', 'i')
  .test(nameOf(row));
let [column, way] = kept('localStorage', 'order') || [1, 1];
let pictures = false;
function ordered(some) {
  const value = row => column === 1 ? natural(nameOf(row)) : +row.cells[column].dataset.v;
  const facts = some.map(row => [isFolder(row) ? 0 : 1, value(row), nameOf(row), row]);
  facts.sort((a, b) => a[0] - b[0] || way * (a[1] < b[1] ? -1 : a[1] > b[1] ? 1
    : column > 1 ? 0 : a[2] < b[2] ? -1 : 1));
  return facts.map(fact => fact[3]);
}
// put rows in this order, and move as few of them as possible: what moves loses the focus
function arrange(some) {
  const focused = document.activeElement;
  let next = list.firstElementChild;
  for (const row of some) {
    if (row === next) next = next.nextElementSibling;
    else list.insertBefore(row, next);
  }
  if (focused !== document.activeElement && focused.isConnected)
    focused.focus({preventScroll: true});
}
function sort() {
  arrange(ordered(rows()));
  for (const head of document.querySelectorAll('th[data-key]')) {
    const mine = +head.dataset.key === column;
    head.setAttribute('aria-sort', !mine ? 'none' : way > 0 ? 'ascending' : 'descending');
  }
}
function sortBy(key) {
  [column, way] = [key, column === key ? -way : 1];
  kept('localStorage', 'order', [column, way]);
  sort();
}
const seen = () => rows().filter(row => !row.hidden);
function filter(save) {
  const typed = $('filter').value, want = typed.toLowerCase();
  let shown = 0;
  for (const row of list.rows) {
    row.hidden = !nameOf(row).toLowerCase().includes(want);
    shown += !row.hidden;
  }
  $('shown').textContent = !typed ? '' : !shown ? 'nothing matches'
    : number(shown) + ' of ' + number(list.rows.length);
  if (save || typed) kept('sessionStorage', 'filter ' + here, typed);
}
// the folder above has a filter: it holds here too, unless it leaves nothing
function inheritFilter() {
  const own = kept('sessionStorage', 'filter ' + here);
  const above = kept('sessionStorage', 'filter ' + here.replace(/[^/]*\/$/, ''));
  $('filter').value = own === null ? above || '' : own;
  filter();
  if (own !== null || !list.rows.length || seen().length) return;
  $('filter').value = '';
  filter(true);
}
function clearFilter() { $('filter').value = ''; filter(true); }
function showPictures(on) {
  pictures = on;
  kept('localStorage', 'pictures', on);
  list.parentNode.classList.toggle('grid', on);
  $('grid').setAttribute('aria-pressed', on);
  for (const row of rows()) picture(row);
}
function picture(row) {
  const link = linkOf(row), image = link.querySelector('img');
  if (!pictures && image) image.remove();
  if (pictures && !image && isPicture(row))
    link.prepend(make('img', '', {loading: 'lazy', alt: '', src: hrefOf(row)}));
}
// the box and the buttons of a row, once it is near the window: a long list is drawn at once
const watcher = new IntersectionObserver(found => {
  for (const {target, isIntersecting} of found) if (isIntersecting) dress(target);
}, {rootMargin: '500px'});
function dress(row) {
  watcher.unobserve(row);
  const [box, tools] = $('row').content.cloneNode(true).children, name = nameOf(row);
  box.firstChild.setAttribute('aria-label', 'Choose ' + name);
  box.firstChild.checked = row.classList.contains('chosen');
  for (const tool of tools.children) {
    tool.title = tool.dataset.does + ' ' + name;
    tool.setAttribute('aria-label', tool.title);
  }
  if (isFolder(row) || !isText(row)) tools.querySelector('.copy').remove();
  const get = tools.querySelector('.get'), folder = isFolder(row);
  get.href = hrefOf(row) + (folder ? '?zip' : '');
  get.download = folder ? '' : name;
  row.cells[0].replaceChildren(box);
  row.cells[4].replaceChildren(...tools.children);
  picture(row);
}
function tally() {
  const any = list.rows.length > 0;
  $('empty').hidden = any;
  $('whole').hidden = list.parentNode.tHead.hidden = !any;
  $('grid').hidden = !rows().some(row => !isFolder(row) && isPicture(row));
  if ($('filter').value) filter();
  showChosen();
}

// The listing is alive: look whether the folder has changed, and take over what is new.
let looking = null, again = false, gone = '';
function look() {
  again = Boolean(looking);
  looking = looking || lookOnce().catch(() => trouble(UNREACHABLE)).finally(() => {
    looking = null;
    return again && look();
  });
  return looking;
}
async function lookOnce() {
  const {tag} = list.dataset;
  const headers = {Accept: 'text/html', ...tag && {'If-None-Match': `"${tag}"`}};
  const answer = await net(here, {headers});
  if (answer.status === 404) return trouble('This folder is gone.');
  if (!answer.ok && answer.status !== 304) return trouble(answer.status === 401
    ? 'The password is no longer right: reload the page.' : sentence(await answer.text()));
  trouble('');
  if (answer.ok) merge(new DOMParser().parseFromString(await answer.text(), 'text/html'));
}
// said while it lasts
function trouble(text) {
  if (text || $('status').textContent === gone) say(text);
  gone = text;
}
const topOf = row => row ? row.getBoundingClientRect().top : 0;
function merge(page) {
  const news = page.querySelector('tbody'), known = new Map(rows().map(row => [hrefOf(row), row]));
  if (!news) return say('This folder has a page of its own now: reload to see it.');
  const focused = list.contains(document.activeElement) && document.activeElement.closest('tr');
  const place = rows().indexOf(focused), fresh = [], all = [];
  const first = rows().find(row => topOf(row) >= 0), before = topOf(first);
  for (const row of [...news.rows]) {
    const old = known.get(hrefOf(row));
    known.delete(hrefOf(row));
    all.push(old || row);
    if (!old) fresh.push(row);
    else for (const cell of [2, 3]) if (old.cells[cell].outerHTML !== row.cells[cell].outerHTML)
      old.cells[cell].replaceWith(row.cells[cell].cloneNode(true));
  }
  for (const row of known.values()) row.remove();
  list.dataset.tag = news.dataset.tag;
  $('count').textContent = page.getElementById('count').textContent;
  arrange(ordered(all));
  for (const row of fresh) watcher.observe(row);
  tally();
  // what is in sight stays where it is
  if (scrollY && first && first.isConnected) scrollBy(0, topOf(first) - before);
  const near = list.rows[Math.min(place, list.rows.length - 1)];
  if (focused && !focused.isConnected && near) linkOf(near).focus();
}
async function keepLooking() {
  for (;; await wait(4000)) if (!document.hidden) await look();
}

// Keys: / filters, arrows walk, Enter opens the only match, Alt+Up goes to the folder above.
function onKey(event) {
  const active = document.activeElement, inFilter = active === $('filter');
  if (document.querySelector('dialog') || event.ctrlKey || event.metaKey) return;
  const walk = seen(), place = walk.indexOf(active.closest('tr'));
  if (event.key === '/' && !/INPUT|TEXTAREA/.test(active.tagName)) $('filter').focus();
  else if (event.key === 'Escape') { clearFilter(); choose([]); }
  else if (event.key === 'Enter' && inFilter && walk.length === 1) linkOf(walk[0]).click();
  else if (event.key === 'ArrowUp' && event.altKey) { if (here !== '/') location = '../'; }
  else if (event.key === 'ArrowDown' && walk.length) linkOf(walk[Math.min(place + 1,
    walk.length - 1)]).focus();
  else if (event.key === 'ArrowUp' && place > 0) linkOf(walk[place - 1]).focus();
  else if (event.key === 'ArrowUp' && !place) $('filter').focus();
  else return;
  event.preventDefault();
}

// Choosing rows, and what can be done with them.
const boxOf = row => row.querySelector('input');
const chosen = () => rows().filter(row => row.classList.contains('chosen'));
let lastChosen = null;
function choose(some) {
  const set = new Set(some);
  for (const row of list.rows) {
    row.classList.toggle('chosen', set.has(row));
    if (boxOf(row)) boxOf(row).checked = set.has(row);
  }
  showChosen();
}
function onChoice(event) {
  const row = event.target.closest('tr'), on = event.target.checked, all = seen();
  const from = event.shiftKey && lastChosen ? all.indexOf(lastChosen) : all.indexOf(row);
  const [low, high] = [from, all.indexOf(row)].sort((a, b) => a - b);
  for (const each of all.slice(Math.max(low, 0), high + 1)) {
    each.classList.toggle('chosen', on);
    if (boxOf(each)) boxOf(each).checked = on;
  }
  lastChosen = row;
  showChosen();
}
function showChosen() {
  const some = chosen();
  $('chosen').hidden = !some.length;
  $('every').checked = some.length > 0 && some.length === list.rows.length;
  const files = some.filter(row => !isFolder(row));
  $('howmany').textContent = number(some.length) + ' chosen' + (files.length ? ', '
    + size(files.reduce((sum, row) => sum + +row.cells[2].dataset.v, 0)) : '');
  if ($('rename')) $('rename').hidden = some.length !== 1;
}
function download() {
  const names = chosen().map(row => hrefOf(row).replace(/\/$/, '')).join('/');
  if (names.length > 7000) return say('These are too many names for one archive: choose fewer.');
  make('a', '', {href: '?zip=' + names, download: ''}).click();
}
// send one request that changes something: whether it did
async function change(method, url, headers) {
  try {
    const answer = await net(url, {method, headers});
    say(answer.ok ? '' : sentence(await answer.text()));
    return answer.ok;
  } catch (error) { say(UNREACHABLE); return false; }
}
// a new name that can be taken, '' else
function checked(name) {
  if (!name) return '';
  const there = rowNamed(name);
  if (name.trim() && !there) return name;
  say(there ? `A ${isFolder(there) ? 'folder' : 'file'} of that name exists.`
    : 'A name needs more than spaces.');
  return '';
}
async function makeFolder() {
  const name = checked(prompt('Name of the new folder'));
  if (name && await change('MKCOL', here + encodeURIComponent(name) + '/')) await look();
}
async function rename(row) {
  const typed = prompt('New name', nameOf(row)), folder = isFolder(row);
  const name = typed === nameOf(row) ? '' : checked(typed), href = encodeURIComponent(name);
  const headers = {Destination: here + href, Overwrite: 'F'};
  if (!name || !await change('MOVE', hrefOf(row), headers)) return;
  const link = linkOf(row);
  link.setAttribute('href', href + (folder ? '/' : ''));
  link.textContent = name + (folder ? '/' : '');
  dress(row);
  arrange(ordered(rows()));
  link.focus();
  tally();
}
async function remove(some) {
  const [row] = some, what = some.length > 1 ? `these ${number(some.length)}` : nameOf(row);
  if (!confirm('Delete ' + what + (some.some(isFolder) ? ' and everything in it?' : '?'))) return;
  for (const each of some)
    if (!await change('DELETE', hrefOf(each) + (isFolder(each) ? '?recursive' : ''))) break;
  await look();
}
async function moveChosen() {
  const some = chosen(), where = make('select'), folders = rows().filter(row => isFolder(row)
    && !some.includes(row));
  where.setAttribute('aria-label', 'Folder');
  if (here !== '/') where.append(make('option', 'the folder above', {value: '../'}));
  where.append(...folders.map(row => make('option', nameOf(row), {value: hrefOf(row)})));
  if (!where.length) return say('There is no folder to move it to: make one first.');
  const answers = [['move', 'Move'], ['', 'Cancel']];
  if (!await question(`Move the ${number(some.length)} chosen to`, [where], answers)) return;
  for (const row of some) {
    const Destination = at(where.value).pathname + hrefOf(row);
    if (!await change('MOVE', hrefOf(row), {Destination, Overwrite: 'F'})) break;
  }
  await look();
}
async function copy(row) {
  try {
    const text = await (await net(hrefOf(row))).text();
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyOld(text);
    say('Copied ' + nameOf(row) + '.');
  } catch (error) { say('It could not be copied.'); }
}
// where the address is no secure one, browsers have no other way
function copyOld(text) {
  const box = make('textarea', '', {value: text});
  document.body.append(box);
  box.select();
  const done = document.execCommand('copy');
  box.remove();
  if (!done) throw new Error('refused');
}
function onRow(event) {
  const tool = event.target.closest('button'), row = event.target.closest('tr');
  if (event.target.type === 'checkbox') onChoice(event);
  else if (tool) ({copy, edit: rename, bin: row => remove([row])})[tool.className](row);
}

// Uploading: each file is created, then sent from the offset that the server has, as often as
// the link breaks. What is unfinished is remembered in this browser under the file's identity.
const queue = [], jobs = new Set();
let active = 0, forAll = '', asking = Promise.resolve();
const busy = () => active > 0;
const identity = job => 'part ' + JSON.stringify([job.base + job.path + job.file.name,
  job.file.size, job.file.lastModified]);
function add(file, path, over) {
  if (nameless()) return;
  if (!busy()) clearJobs(true);
  const job = {file, path, over, base: here, sent: 0, note: ''};
  job.id = identity(job);
  if (file.size && [...jobs].some(other => other.id === job.id && isOpen(other))) return;
  const part = kept('localStorage', job.id);
  if (part) job.url = part.url;
  // the line of its upload takes this one's place
  for (const line of document.querySelectorAll('.unfinished'))
    if (line.dataset.id === job.id) line.remove();
  jobs.add(job);
  enqueue(job);
}
// a folder that may be empty
function addFolder(path) {
  if (nameless()) return;
  const file = {name: path.split('/').at(-2) + '/', size: 0};
  const job = {file, path, folder: true, base: here, sent: 0, note: ''};
  jobs.add(job);
  enqueue(job);
}
const isOpen = job => job.state === 'waiting' || job.state === 'sending';
function enqueue(job) {
  queue.push(job);
  update(job, 'waiting');
  while (active < 2 && queue.length) { active++; work(); }
}
async function work() {
  for (let job; (job = queue.shift());) {
    update(job, 'sending');
    try { await (job.folder ? makeAll(job) : upload(job)); }
    catch (error) { update(job, 'failed', error.message); }
  }
  active--;
  if (!active) { forAll = ''; showPanel(); if (list) await look(); }
}
async function makeAll(job) {
  const parts = job.path.split('/').slice(0, -1).map(encodeURIComponent);
  for (const end of parts.keys()) {
    const url = job.base + parts.slice(0, end + 1).join('/') + '/';
    const answer = await net(url, {method: 'MKCOL', headers: sender()});
    if (!answer.ok && answer.status !== 405) throw new Error(sentence(await answer.text()));
  }
  update(job, 'done');
}
async function upload(job) {
  for (let pause = 250; isOpen(job);) {
    const before = job.sent;
    try {
      if (await step(job)) return;
    } catch (error) {
      if (!isOpen(job)) break;
      if (error.final) throw error;
      samples = [];  // the rate from before says nothing any more
      update(job, 'sending', 'the link is lost, trying again');
      pause = job.sent > before ? 250 : Math.min(pause * 2, 15000);
      await Promise.race([wait(pause), new Promise(go => {
        job.wake = go;
        addEventListener('online', go, {once: true});
      })]);
    }
  }
  giveUp(job);
}
// the next step of an upload; true when nothing is left to do
async function step(job) {
  if (!job.url) {
    if (!await create(job)) return true;
  } else if (await locate(job)) return true;
  if (!job.url || !isOpen(job)) return false;
  update(job, 'sending', '');
  const place = await send(job);
  if (place === null) return false;
  finish(job, place);
  return true;
}
const passing = status => status >= 500 && status !== 507 || status === 408 || status === 429;
function failure(status, text) {
  return Object.assign(new Error(sentence(text)), {final: !passing(status)});
}
// begin it at the server: false if it is to be skipped
async function create(job) {
  const folder = job.base + job.path.split('/').map(encodeURIComponent).join('/');
  const name = encodeURIComponent(job.file.name).replace(/'/g, '%27');
  for (;;) {
    const both = Boolean($('drop')) || job.over === 'both';
    const headers = {
      'Upload-Complete': '?0',
      'Upload-Length': job.file.size,
      'X-OC-Mtime': Math.max(0, Math.floor(job.file.lastModified / 1000)),
      'Content-Type': 'application/octet-stream',
      ...sender(),
      ...both && {'Content-Disposition': "inline; filename*=UTF-8''" + name},
      ...job.over !== 'replace' && !both && {'If-None-Match': '*'},
    };
    const answer = await net(folder + (both ? '' : name), {method: both ? 'POST' : 'PUT', headers});
    if (answer.ok) {
      job.url = answer.headers.get('Location');
      remember(job);
      return true;
    }
    if (answer.status !== 412) throw failure(answer.status, await answer.text());
    job.over = await decide(job, folder + name);
    if (!isOpen(job)) return true;
    if (job.over === 'skip') return skip(job);
  }
}
function skip(job) { update(job, 'skipped'); return false; }
// what becomes of a file whose name exists: the same one is skipped, else a person decides
async function decide(job, url) {
  const {headers} = await net(url, {method: 'HEAD', cache: 'no-store'});
  const when = Date.parse(headers.get('Last-Modified')), length = +headers.get('Content-Length');
  if (length === job.file.size && when === Math.floor(job.file.lastModified / 1000) * 1000)
    return 'skip';
  const answer = asking.then(() => forAll || askPerson(job, length, when));
  asking = answer.catch(() => {});
  return answer;
}
async function askPerson(job, length, when) {
  if (!isOpen(job)) return 'skip';
  const told = (bytes, time) => `${size(bytes)}, ${new Date(time).toLocaleString()}`;
  const box = make('input', '', {type: 'checkbox'}), line = make('label');
  line.append(box, 'The same for all others');
  const answer = await question(`${job.path}${job.file.name} exists.`, [
    make('p', 'There: ' + told(length, when), {className: 'dim'}),
    make('p', 'Yours: ' + told(job.file.size, job.file.lastModified), {className: 'dim'}), line,
  ], [['replace', 'Replace'], ['both', 'Keep both'], ['skip', 'Skip']]) || 'skip';
  if (box.checked) forAll = answer;
  return answer;
}
// ask how much has arrived; true if it is finished
async function locate(job) {
  const answer = await net(job.url, {method: 'HEAD'});
  if (answer.status === 404) { forget(job); return false; }
  if (!answer.ok) throw failure(answer.status, await answer.text());
  remember(job);
  progress(job, +answer.headers.get('Upload-Offset'));
  if (answer.headers.get('Upload-Complete') !== '?1') return false;
  finish(job, placeIn(field => answer.headers.get(field)));
  return true;
}
// with the time when it was last on its way: another tab leaves it alone for some seconds
function remember(job, when = Date.now()) {
  const {url, base, path, file} = job;
  kept('localStorage', job.id, {url, base, when, name: path + file.name, size: file.size});
}
function rememberAll(when) {
  for (const job of jobs) if (job.url && isOpen(job)) remember(job, when);
}
function forget(job) {
  kept('localStorage', job.id, null);
  job.url = '';
  progress(job, 0);
}
// send the rest: where it was stored, or null if another file has taken the name
function send(job) {
  return new Promise((good, bad) => {
    const request = job.request = new XMLHttpRequest(), start = job.sent;
    request.open('PATCH', at(job.url));
    request.setRequestHeader('Content-Type', 'application/partial-upload');
    request.setRequestHeader('Upload-Offset', start);
    request.setRequestHeader('Upload-Complete', '?1');
    request.upload.onprogress = event => progress(job, start + event.loaded);
    request.onload = () => {
      const status = request.status, text = request.responseText;
      if (status < 300) return good(placeIn(field => request.getResponseHeader(field)));
      if (status === 412 || status === 404) { forget(job); return good(null); }
      return bad(status === 409 ? new Error(text) : failure(status, text));
    };
    request.onerror = request.onabort = () => bad(new Error('interrupted'));
    request.send(job.file.slice(start));
  });
}
function progress(job, sent) {
  job.sent = Math.min(sent, job.file.size);
  showPanel();
}
const placeIn = field => field('Stored-As') || field('Location') || '';
function finish(job, place) {
  forget(job);
  job.sent = job.file.size;
  const name = place ? decoded(place.split(/\/|%2F/).pop()) : job.file.name;
  update(job, 'done', name === job.file.name ? '' : 'stored as ' + name);
  if ($('drop')) handedIn(job, name);
}
function cancel(job) {
  const waits = queue.includes(job);
  if (!isOpen(job)) return;
  update(job, 'cancelled', 'cancelled');
  if (job.request) job.request.abort();
  if (job.wake) job.wake();
  if (waits) { queue.splice(queue.indexOf(job), 1); giveUp(job); }
}
function giveUp(job) {
  const url = job.url;
  forget(job);
  if (url) net(url, {method: 'DELETE'}).catch(() => {});
}
function retry(job) { enqueue(Object.assign(job, {sent: 0, note: ''})); }

// A drop box: who hands in, and what was handed in from here. It tells nothing of what it holds.
const sender = () => $('drop') ? {Sender: encodeURIComponent($('drop').value.trim())} : {};
function nameless() {
  if (!$('drop') || $('drop').value.trim()) return false;
  say('Your name first, please.');
  $('drop').focus();
  return true;
}
function handedIn(job, name) {
  const all = kept('localStorage', 'handed in') || [], when = new Date().toLocaleString();
  all.unshift([job.path + name, size(job.file.size), when]);
  kept('localStorage', 'handed in', all.slice(0, 500));
  showHandedIn();
}
function showHandedIn() {
  const all = kept('localStorage', 'handed in') || [];
  $('handed').replaceChildren(...all.map(facts => make('li', facts.join(', '))));
  $('handed').parentNode.hidden = !all.length;
}
function startDropBox() {
  if (!$('drop').value) $('drop').value = kept('localStorage', 'name') || '';
  $('drop').onchange = () => kept('localStorage', 'name', $('drop').value);
  showHandedIn();
}

// The panel: all uploads in a few lines that stay in sight; details on demand, failed ones always.
let open = false, drawn = 0, samples = [];
function update(job, state, note) {
  job.state = state;
  if (note !== undefined) job.note = note;
  drawJob(job);
  showPanel();
}
function drawJob(job) {
  const wanted = open || job.state === 'failed' || job.note && job.state !== 'cancelled';
  if (!job.line && !wanted) return;
  if (!job.line) {
    job.line = make('li');
    job.line.append(make('span', job.path + (job.folder ? '' : job.file.name)), make('small'),
      make('button'));
  }
  const [, note, button] = job.line.children;
  job.line.className = job.state;
  note.textContent = job.note || job.state;
  button.textContent = job.state === 'failed' ? 'Try again' : 'Cancel';
  button.hidden = !isOpen(job) && job.state !== 'failed';
  button.onclick = () => job.state === 'failed' ? retry(job) : cancel(job);
  if (!wanted) job.line.remove();
  else if (!job.line.isConnected) $('jobs').append(job.line);
}
function showPanel() {
  const now = performance.now();
  if (busy() && now - drawn < 100) return;
  drawn = now;
  const all = [...jobs], of = state => all.filter(job => job.state === state).length;
  const total = all.filter(job => isOpen(job) || job.state === 'done');
  const bytes = total.reduce((sum, job) => sum + job.file.size, 0);
  const sent = total.reduce((sum, job) => sum + job.sent, 0);
  $('panel').hidden = !all.length && !$('jobs').children.length;
  $('all').hidden = !busy();
  $('all').max = bytes || 1;
  $('all').value = bytes ? sent : 1;
  $('sum').textContent = busy() ? sending(of('done') + of('skipped'), total.length + of('skipped'),
    sent, bytes, now) : ended(of, sent);
  $('details').hidden = !all.length;
  $('stop').hidden = !busy();
  $('clear').hidden = busy() || !all.length;
}
function sending(ready, many, sent, bytes, now) {
  if (!samples.length || now - samples.at(-1)[0] > 500) samples.push([now, sent]);
  samples = samples.filter(sample => now - sample[0] < 10000);
  const [then, before] = samples[0], rate = (sent - before) / (now - then) * 1000;
  const left = (bytes - sent) / rate, known = rate > 0 && now - then > 1000;
  const facts = [`${number(ready)} of ${count(many, 'file')}`, `${size(sent)} of ${size(bytes)}`];
  if (known) facts.push(size(rate) + '/s', duration(left) + ' left');
  return facts.map(fact => fact.replace(/ /g, '\xa0')).join(', ');  // each stays in one line
}
function duration(seconds) {
  if (seconds < 60) return Math.ceil(seconds) + ' s';
  return seconds < 5400 ? Math.round(seconds / 60) + ' min' : (seconds / 3600).toFixed(1) + ' h';
}
function ended(of, sent) {
  samples = [];
  const told = [['done', `uploaded (${size(sent)})`], ['skipped', 'skipped: already there'],
    ['failed', 'failed'], ['cancelled', 'cancelled']].filter(([state]) => of(state));
  return told.map(([state, what]) => number(of(state)) + ' ' + what).join(', ')
    || 'Unfinished uploads';
}
function showDetails() {
  open = !open;
  $('details').textContent = open ? 'Fewer details' : 'Details';
  $('details').setAttribute('aria-expanded', open);
  jobs.forEach(drawJob);
}
function clearJobs(butFailed) {
  for (const job of jobs) {
    if (butFailed && job.state === 'failed') continue;
    if (job.line) job.line.remove();
    jobs.delete(job);
  }
  showPanel();
}
// what this browser began and did not finish, and no tab sends
async function showUnfinished() {
  for (const id of Object.keys(localStorage).filter(key => key.startsWith('part '))) {
    const part = kept('localStorage', id);
    const shown = [...jobs].some(job => job.id === id)
      || [...$('jobs').children].some(line => line.dataset.id === id);
    if (!part || shown || Date.now() - part.when < 5000) continue;
    const answer = await net(part.url, {method: 'HEAD'});
    if (answer.status === 404 || answer.headers.get('Upload-Complete') === '?1')
      kept('localStorage', id, null);
    else if (answer.ok) unfinished(id, part, +answer.headers.get('Upload-Offset'));
  }
}
function unfinished(id, part, offset) {
  const line = make('li', '', {className: 'unfinished'}), stop = make('button', 'Give up');
  const where = part.base === here ? '' : ' in ' + decoded(part.base);
  line.append(make('span', part.name), make('small',
    `${size(offset)} of ${size(part.size)}, choose the file again${where} to go on`), stop);
  stop.onclick = () => {
    giveUp({id, url: part.url, file: {size: 0}});
    line.remove();
    showPanel();
  };
  line.dataset.id = id;
  $('jobs').append(line);
  showPanel();
}

// Where files come from: chosen, dropped, pasted.
const above = path => path.split('/').slice(0, -1).map(part => part + '/').join('');
async function enter(entry, path) {
  if (entry.isFile) return add(await new Promise((good, bad) => entry.file(good, bad)), path);
  const reader = entry.createReader(), inner = path + entry.name + '/';
  let empty = true;
  for (let some; (some = await new Promise((good, bad) => reader.readEntries(good, bad))).length;) {
    empty = false;
    for (const child of some) await enter(child, inner);
  }
  return empty && addFolder(inner);
}
function onFiles(event) {
  for (const file of event.target.files) add(file, above(file.webkitRelativePath || ''));
  event.target.value = '';
}
function onDrag(event) {
  if (![...event.dataTransfer.types].includes('Files')) return;
  event.preventDefault();
  document.body.classList.toggle('drop', event.type === 'dragover');
  if (event.type !== 'drop') return;
  const entries = [...event.dataTransfer.items]
    .map(item => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  if (!entries.length) for (const file of event.dataTransfer.files) add(file, '');
  for (const entry of entries) enter(entry, '').catch(() => say('That cannot be read.'));
}
function stamp() {
  const now = new Date(), two = n => String(n).padStart(2, '0');
  return [now.getFullYear(), two(now.getMonth() + 1), two(now.getDate())].join('-') + ' '
    + [now.getHours(), now.getMinutes(), now.getSeconds()].map(two).join('.');
}
function pasteFile(data, type, ending) {
  add(new File([data], `pasted ${stamp()}.${ending}`, {type}), '', 'both');
}
function onPaste(event) {
  if (/INPUT|TEXTAREA/.test(event.target.tagName)) return;
  const data = event.clipboardData, text = data.getData('text/plain');
  for (const file of data.files)
    pasteFile(file, file.type, file.type.split('/')[1].replace(/\W.*|jpeg/, found =>
      found === 'jpeg' ? 'jpg' : '') || 'bin');
  if (!data.files.length && text) pasteFile(text, 'text/plain', 'txt');
}
async function pasteText() {
  const box = make('textarea', '', {rows: 8, placeholder: 'Paste or type here'});
  box.setAttribute('aria-label', 'Text');
  if (await question('Store this text as a file', [box], [['store', 'Store'], ['', 'Cancel']])
    && box.value) pasteFile(box.value, 'text/plain', 'txt');
}
// while something is on its way, leaving asks, and links open beside this page
function onLink(event) {
  const link = event.target.closest('a,footer button'), kind = link && link.form && 'formTarget';
  if (link) link[kind || 'target'] = busy() && !link.hasAttribute('download') ? '_blank' : '';
}

// The start.
function startListing() {
  for (const head of document.querySelectorAll('th[data-key]'))
    head.firstElementChild.onclick = () => sortBy(+head.dataset.key);
  if (column !== 1 || way !== 1) sort();
  inheritFilter();
  for (const row of list.rows) watcher.observe(row);
  tally();
  $('filter').oninput = () => filter(true);
  $('grid').onclick = () => showPictures(!pictures);
  if (kept('localStorage', 'pictures') && !$('grid').hidden) showPictures(true);
  $('every').onchange = event => choose(event.target.checked ? seen() : []);
  $('zip').onclick = download;
  $('none').onclick = () => choose([]);
  list.onclick = onRow;
  document.onkeydown = onKey;
  document.onvisibilitychange = () => { if (!document.hidden) look(); };
  setTimeout(keepLooking, 4000);
}
function startUploads() {
  $('pick').onchange = $('pickdir').onchange = onFiles;
  document.ondragover = document.ondragleave = document.ondrop = onDrag;
  document.onpaste = onPaste;
  document.onclick = onLink;
  $('paste').onclick = pasteText;
  $('details').onclick = showDetails;
  $('stop').onclick = () => jobs.forEach(job => cancel(job));
  $('clear').onclick = () => clearJobs();
  addEventListener('beforeunload', event => { if (busy()) event.preventDefault(); });
  addEventListener('pagehide', () => rememberAll(0));
  setInterval(() => { if (busy()) { rememberAll(); showPanel(); } }, 1000);
  const show = () => showUnfinished().catch(() => {});
  show();
  setTimeout(show, 6000);  // a browser that crashed has not said that it no longer sends
}
function startChanges() {
  $('mkdir').onclick = makeFolder;
  $('rename').onclick = () => rename(chosen()[0]);
  $('delete').onclick = () => remove(chosen());
  $('move').onclick = moveChosen;
}
if (list) startListing();
if (writes) startUploads();
if (list && writes) startChanges();
if ($('drop')) startDropBox();
"""
UPLOAD = """<noscript><form class="tools" method="post" enctype="multipart/form-data">
<input type="file" name="file" multiple aria-label="files to upload"> <button>Upload</button></form>
</noscript><div class="tools js">
<label class="pick">Upload files<input id="pick" type="file" multiple></label>
<label class="pick">Upload folder<input id="pickdir" type="file" webkitdirectory></label>
<button id="paste">Paste text</button>@@ <span class="hint dim">or drop and paste files here</span>
</div>
"""
MKDIR = """
<button id="mkdir">New folder</button>"""
HAND_IN = """<h1>Hand in</h1><p><label for="drop">Your name</label>
<input id="drop" type="text" autocomplete="name" maxlength="64"@@></p>
"""
HANDED_IN = """<p id="status" role="status"></p><div hidden><h2>Handed in from here</h2>
<ul id="handed"></ul></div><div id="dock">
"""
FIND = """<p id="status" role="status"></p><div class="tools js">
<input id="filter" type="search" placeholder="Filter" aria-label="Filter names">
<span id="shown" role="status"></span><span class="hint dim">/ filters</span>
<button id="grid" hidden aria-pressed="false">Pictures</button></div>
"""
COLUMNS = """<thead><tr>
<th class="js"><label><input id="every" type="checkbox" aria-label="Choose all"></label></th>
<th scope="col" data-key="1" aria-sort="ascending"><button>Name</button></th>
<th scope="col" data-key="2" aria-sort="none"><button>Size</button></th>
<th scope="col" data-key="3" aria-sort="none"><button>Changed</button></th><td></td></tr></thead>
"""
# a form, not links: wget -r and search engines follow those, and would load each folder thrice
WHOLE = """<form id="whole" class="tools"@@>All of it as
<button name="tar">tar (can be resumed)</button><button name="zip">zip</button></form>"""
CHOSEN = """<div id="chosen" hidden><div class="tools"><span id="howmany" role="status"></span>
<button id="zip" title="As one zip archive">Download</button>@@<button id="none">None</button>
</div></div>
"""
CHANGES = """<button id="rename">Rename</button><button id="move">Move</button>
<button id="delete">Delete</button>"""
PANEL = """<div id="panel" hidden><div class="tools"><span id="sum" role="status"></span>
<button id="details" aria-expanded="false">Details</button><button id="stop">Cancel all</button>
<button id="clear">Clear</button></div>
<progress id="all" value="0" aria-label="All uploads"></progress><ul id="jobs"></ul></div>
"""
ROW = """<template id="row"><label><input type="checkbox"></label><div>
<button class="copy" data-does="Copy the text of">
<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M9 9h11v11H9zM15 9V4H4v11h5"/></svg>
</button>
<a class="get" data-does="Download">
<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 4v11m-5-5 5 5 5-5M5 20h14"/></svg></a>"""
ROW_CHANGES = """<button class="edit" data-does="Rename">
<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 20v-4L16 4l4 4L8 20zM13 7l4 4"/></svg>
</button>
<button class="bin" data-does="Delete">
<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13"/></svg>
</button>"""

LONG_NAME = 24  # letters; in a longer name a line may break after these
BREAKS = re.compile(r"[_.-]+")
MAX_COUNTED_NAMES = 20000  # folders of a folder, and names in them: a page counts no more


@functools.cache
def page_fields() -> Fields:
    """Nothing runs in the page but its own script and style, known by their digests."""
    script, style = (
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (SCRIPT, STYLE)
    )
    policy = (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; "
        "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-store",
        "Content-Security-Policy": policy,
        "Referrer-Policy": "same-origin",
    }


def folder_tag(info: Facts) -> str:
    """What changes with every name in a folder.

    "" just after a change: within one tick of the clock another one would have the same time."""
    return bare_tag(info) if abs(time.time() - info.st_mtime) > UNCHANGED else ""


def listing(
    found: Opened, kind: str, crumbs: Names, hidden: bool, read_only: bool
) -> Iterator[str]:
    items = entries(found.where, hidden, folders_first=kind == "text/html")
    if kind == "text/html":
        yield page_head(crumbs[-1]) + path_links(crumbs)
        yield from page_body(items, folder_tag(found.info), hidden, read_only)
    elif kind == "text/plain":
        yield from (printable_name(entry.name) + "/" * entry.is_folder + "\n" for entry in items)
    else:
        yield "["
        for number, entry in enumerate(items):
            yield ",\n"[not number :] + json.dumps(json_entry(entry))
        yield "]\n"


def json_entry(entry: Entry) -> dict[str, object]:
    """href is exact whatever the name is made of; name is for reading."""
    kind = "folder" if entry.is_folder else type_of(entry.name)
    return {
        "name": utf8_name(entry.name),
        "href": url_path([entry.name], slash=entry.is_folder)[1:],
        "size": None if entry.is_folder else entry.size,
        "mtime": entry.info.st_mtime,
        "type": kind,
        "etag": None if entry.is_folder else etag(entry.info),
    }


def page_head(title: str) -> str:
    title = html.escape(utf8_name(title))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n"
    )


def path_links(crumbs: Names) -> str:
    """The shared folder and those on the way to this one, each a link."""
    links = [
        f'<a href="{"../" * up or "./"}">{html.escape(utf8_name(name))}</a>'
        for up, name in zip(reversed(range(len(crumbs))), crumbs)
    ]
    return f'<nav aria-label="Path">{" <span>/</span> ".join(links)}</nav>\n'


def page_body(items: Iterable[Entry], tag: str, hidden: bool, read_only: bool) -> Iterator[str]:
    upload, chosen, panel, row = UPLOAD.replace("@@", MKDIR), CHANGES, PANEL, ROW_CHANGES
    if read_only:
        upload = chosen = panel = row = ""
    yield f'{upload}{FIND}<table>{COLUMNS}<tbody data-tag="{tag}">\n'
    folders = files = total = 0
    budget = iter(range(MAX_COUNTED_NAMES, 0, -1))
    for entry in items:
        folders, files = folders + entry.is_folder, files + (not entry.is_folder)
        total += entry.size
        yield table_row(entry, count_names(entry, hidden, budget) if entry.is_folder else None)
    empty, some = ("", " hidden") if not folders + files else (" hidden", "")
    yield (
        f'</tbody></table>\n<p id="empty" class="dim"{empty}>This folder is empty.</p>\n<footer>'
        f'<span id="count">{plural(folders, "folder")}, {plural(files, "file")}, '
        f"{readable_size(total)}</span>{WHOLE.replace('@@', some)}</footer>\n"
        f'<div id="dock">{CHOSEN.replace("@@", chosen)}{panel}</div>{ROW}{row}</div></template>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def count_names(folder: Entry, hidden: bool, budget: Iterator[int]) -> Optional[int]:
    """How many names it shows; None if nobody may read it, or once the budget is used up."""
    if not next(budget, 0):
        return None
    with (
        contextlib.suppress(OSError, Refusal),
        contextlib.closing(open_leaf(folder.place)) as found,
        os.scandir(found.where) as scan,
    ):
        names = (item.name for item in scan if not item.is_symlink())
        shown = (name for name in names if name[0] != "." or hidden and not PART.fullmatch(name))
        count = sum(1 for _ in zip(shown, budget))
        return count if next(budget, 0) else None
    return None


def readable_time(when: int) -> str:
    # a broken disk may give any time, and the other files must still be listed
    with contextlib.suppress(OverflowError, OSError):
        return time.strftime("%Y-%m-%d %H:%M", calendar(time.localtime, when))
    return ""


def table_row(entry: Entry, inner: Optional[int]) -> str:
    """The ends of cells and rows may be left out, and most of a long page is rows."""
    name, when = html.escape(utf8_name(entry.name)), int(entry.info.st_mtime)
    if len(name) > LONG_NAME:
        name = BREAKS.sub(r"\g<0><wbr>", name)
    href = url_path([entry.name], slash=entry.is_folder)[1:]
    value, size = entry.size, readable_size(entry.size)
    if entry.is_folder:
        value = inner or 0
        size = "" if inner is None else plural(inner, "item") if inner else "empty"
    return (
        f'<tr><td><td><a href="{href}">{name}{"/" * entry.is_folder}</a>'
        f'<td data-v="{value}">{size}<td data-v="{when}">{readable_time(when)}<td>\n'
    )


def drop_page(title: str, login: str) -> str:
    """All that a drop box shows: where to hand in. The login may have told the name."""
    known = f' value="{html.escape(login)}" readonly' if login else ""
    return (
        page_head(title)
        + HAND_IN.replace("@@", known)
        + UPLOAD.replace("@@", "")
        + f"{HANDED_IN}{PANEL}</div><script>{SCRIPT}</script></body></html>\n"
    )


def error_page(request: Request, refused: Refusal) -> Answer:
    """An error for a person in front of a browser."""
    text = refused.text[:1].upper() + refused.text[1:]
    up = f'<a href="{url_path(request.names[:-1], slash=True)}">the folder above</a> or '
    body = f"<h1>{html.escape(text)}.</h1>\n"
    body += f'<p>Go to {up * bool(request.names)}<a href="/">the start</a></p>\n'
    answer = refusal_answer(refused)
    answer.body = (page_head(text) + body).encode()
    answer.length = len(answer.body)
    answer.fields |= page_fields()
    return answer


def in_chunks(texts: Iterator[str]) -> Iterator[bytes]:
    """Texts in pieces: few at first, because a browser draws them while the rest comes."""
    count = 16
    while piece := "".join(itertools.islice(texts, count)):
        yield piece.encode()
        count = min(2 * count, 1024)


# --- the QR code: an address for the camera of a phone ---
# For versions 1 to 10 at level L: bytes in all, bytes that correct a block, blocks.
QR_SIZES = (
    (26, 7, 1),
    (44, 10, 1),
    (70, 15, 1),
    (100, 20, 1),
    (134, 26, 1),
    (172, 18, 2),
    (196, 20, 2),
    (242, 24, 2),
    (292, 30, 2),
    (346, 18, 4),
)
# level L and mask 0, and the versions from 7 on, each with what corrects it
QR_FORMAT, QR_VERSIONS = "001000111110111", (0x07C94, 0x085BC, 0x09A99, 0x0A4D3)
QUIET = 4  # modules of white around a code
Modules = dict[tuple[int, int], int]  # (x, y): 1 is dark


def qr_code(data: bytes) -> list[str]:
    """Up to 271 bytes as rows of 0 and 1 (ISO/IEC 18004), in byte mode, with the least correction.

    Any of the eight masks can be read; the first one, a chessboard, serves for all."""
    wide = len(data) > 230  # version 10 has a length of two bytes
    need = len(data) + 2 + wide
    version = 1 + sum(total - check * blocks < need for total, check, blocks in QR_SIZES)
    total, check, blocks = QR_SIZES[version - 1]
    # the mode, the length, the bytes, four zeros; then padding
    head = (4 << 8 * (1 + wide) | len(data)) << 8 * len(data) | int.from_bytes(data, "big")
    padded = (head << 4).to_bytes(need, "big") + b"\xec\x11" * total
    words = qr_words(padded[: total - check * blocks], check, blocks)
    bits = iter("".join(f"{word:08b}" for word in words))
    size, modules = 17 + 4 * version, qr_frame(version)
    for x, y in qr_path(size):
        if (x, y) not in modules:
            modules[x, y] = int(next(bits, "0")) ^ ~(x + y) & 1
    return ["".join(str(modules[x, y]) for x in range(size)) for y in range(size)]


def qr_words(words: bytes, check: int, blocks: int) -> Iterator[int]:
    """The bytes of all blocks in turn, then those that correct them. Longer blocks stand last."""
    parts = []
    for left in range(blocks, 0, -1):
        length = len(words) // left
        parts.append(words[:length])
        words = words[length:]
    for rows in itertools.zip_longest(*parts), zip(*[qr_check(part, check) for part in parts]):
        for row in rows:
            yield from (word for word in row if word is not None)


def qr_check(words: bytes, count: int) -> list[int]:
    """What is left when they are divided by the generator of this code (Reed-Solomon)."""
    divisor, root = [0] * (count - 1) + [1], 1
    for _ in range(count):
        divisor = [qr_times(a, root) ^ b for a, b in zip(divisor, [*divisor[1:], 0])]
        root = qr_times(root, 2)
    left = [0] * count
    for word in words:
        lead = word ^ left[0]
        left = [qr_times(a, lead) ^ b for a, b in zip(divisor, [*left[1:], 0])]
    return left


def qr_times(one: int, other: int) -> int:
    """The product in the field of 256 elements, whose polynomial is 0x11D."""
    product = 0
    while other:
        product ^= one * (other & 1)
        one, other = one << 1 ^ 0x11D * (one >> 7), other >> 1
    return product


def qr_square(x: int, y: int, rings: str) -> Modules:
    """Rings around a module. What is outside of the code is never asked for."""
    reach = range(1 - len(rings), len(rings))
    return {(x + a, y + b): int(rings[max(abs(a), abs(b))]) for a in reach for b in reach}


def qr_frame(version: int) -> Modules:
    """What holds no data: dotted lines, three finders, alignment, the format, the version."""
    size = 17 + 4 * version
    end, middle = size - 7, size // 2
    frame = {cell: ~at & 1 for at in range(size) for cell in ((6, at), (at, 6))}
    places = [(6, middle), (middle, 6), (middle, middle), (end, middle), (middle, end)]
    for x, y in [*(places if version > 6 else []), (end, end)]:
        frame |= qr_square(x, y, "101" if version > 1 else "")
    for x, y in (3, 3), (3, size - 4), (size - 4, 3):
        frame |= qr_square(x, y, "11010")
    for at, bit in enumerate(QR_FORMAT):  # twice: down beside the finders, and along below them
        y = size - 15 + at if at > 7 else at + (at > 5)
        x = size - 1 - at if at < 8 else 15 - at - (at > 8)
        frame[8, y] = frame[x, 8] = int(bit)
    for at in range(18 if version > 6 else 0):
        one, other = size - 11 + at % 3, at // 3
        frame[one, other] = frame[other, one] = QR_VERSIONS[version - 7] >> at & 1
    return {**frame, (8, size - 8): 1}


def qr_path(size: int) -> Iterator[tuple[int, int]]:
    """Two columns at a time from the right, up and down in turn, without the sixth column."""
    for number, right in enumerate([*range(size - 1, 6, -2), 5, 3, 1]):
        for y in range(size)[:: 1 if number % 2 else -1]:
            yield from ((right, y), (right - 1, y))


def show_qr(url: str) -> None:
    """Draw it in black on white, whatever the terminal's colours are, if it fits in there."""
    # an old console of Windows, which names itself in neither, would show the colours as letters
    kind = os.environ.get("WT_SESSION") or os.environ.get("TERM", "dumb")
    if kind == "dumb" or not sys.stderr.isatty() or len(url) > 271:
        return
    code = qr_code(url.encode())
    wide = len(code) + 2 * QUIET
    # two rows in a line of half blocks; they are an odd number, so one more of white
    rows = [row.center(wide, "0") for row in [""] * QUIET + code + [""] * (QUIET + 1)]
    lines = [
        "".join(" \u2584\u2580\u2588"[int(pair, 2)] for pair in map("".join, zip(*two)))
        for two in zip(rows[::2], rows[1::2])
    ]
    with contextlib.suppress(OSError, UnicodeEncodeError):
        lines[QUIET].encode(sys.stderr.encoding)
        if wide < os.get_terminal_size(sys.stderr.fileno()).columns:
            say("\n".join(f"\x1b[30;107m{line}\x1b[0m" for line in lines))


# --- guarding: the same in server.py, httpserver.py (tests/test_twins.py) ---
# of passwords that are made: none is taken for another when it is read or told
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
MAX_WRONG = 10  # wrong passwords from one address in WINDOW; more are answered busy
WINDOW = 60.0  # seconds
# addresses whose wrong passwords are counted; one more, and the first is forgotten
MAX_COUNTED = 10000
MAKE_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 "
    "-keyout key.pem -out cert.pem"
)
CERTIFICATE = """[req]
distinguished_name = name
x509_extensions = more
prompt = no
[name]
CN = Six Sockets
[more]
subjectAltName = {names}
"""
# TLS alerts, sent instead of a handshake: access_denied, internal_error
DENIED, OVERLOADED = 49, 80


class Guard:
    """The password, and how often each address tried a wrong one.

    Only the address itself is told busy, so nobody can lock out anybody else."""

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
        """Count an attempt: "" for the right password, or the reason why it is refused.

        The check and the count are one step, so many attempts at once are no more than others."""
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
    """What counts as one address: an IPv4 address, or the 64 bits of IPv6 that one owner has."""
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8] if ":" in host else host


class Door(NamedTuple):
    """How clients come in."""

    guard: Optional[Guard]
    tls: "ssl.SSLContext | None"
    pin: str  # SHA-256 of the certificate
    made: str  # the password, if it was made for this run: it may be shown
    flags: str  # what a client's command needs for them


def make_door(args: argparse.Namespace, host: str) -> Door:
    password, made = choose_password(args), ""
    if not password and not args.open and host != "::1" and not host.startswith("127."):
        import secrets  # not at the top: few need it

        words = ("".join(secrets.choice(LETTERS) for _ in range(6)) for _ in range(3))
        password = made = "-".join(words)  # 89 bits
    if args.key and not args.cert:
        raise Failure(
            2,
            "--key needs --cert",
            "a key alone is no certificate",
            "--cert FILE --key FILE, or --tls alone",
        )
    tls, pin = server_tls(args) if args.tls or args.cert else (None, "")
    flags = f" --password {made}" if made else " --ask-password" if password else ""
    flags += f" --pin {pin}" if tls else ""
    return Door(Guard(password) if password else None, tls, pin, made, flags)


def choose_password(args: argparse.Namespace) -> str:
    """The password that was given, or ""."""
    if args.open:
        if args.password is None and not args.ask_password:
            return ""
        raise Failure(
            2,
            "--open and a password exclude each other",
            "--open lets everybody in",
            "leave out --open, or the password",
        )
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
    """What TLS needs, and the SHA-256 of the certificate.

    Without --cert the certificate is made for this run, and its key stays in no file."""
    import ssl
    import tempfile

    context = tls_context(args, server=True)
    with tempfile.TemporaryDirectory(prefix="six-") as folder:
        cert, key = (args.cert, args.key) if args.cert else make_certificate(args, folder)
        try:
            context.load_cert_chain(cert, key)
            with open(cert, encoding="ascii", errors="replace") as file:
                text = file.read()
            found = re.search("(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text)
            pin = fingerprint(ssl.PEM_cert_to_DER_cert(found[0] if found else ""))
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", "") or getattr(error, "strerror", "") or error
            raise Failure(
                26,
                f"cannot use the certificate {cert} ({why})",
                "--cert is a PEM file with the certificate, and --key the one with its key, "
                "unless that is in the first too",
                MAKE_CERTIFICATE,
            ) from None
    return context, pin


def make_certificate(args: argparse.Namespace, folder: str) -> tuple[str, str]:
    """A certificate for all names of this machine, signed by itself."""
    import shutil
    import subprocess

    names = {"DNS:localhost", "IP:127.0.0.1", "IP:::1"}
    names |= {f"IP:{found}" for found in own_addresses()}
    for name in socket.gethostname(), args.host:
        if re.fullmatch("[0-9A-Za-z-]*[A-Za-z-][0-9A-Za-z.-]*", name):
            names.add(f"DNS:{name}")
    with open(os.path.join(folder, "names"), "w", encoding="ascii") as file:
        file.write(CERTIFICATE.format(names=", ".join(sorted(names))))
    # by its whole path: Windows would look for it in the current folder first, which may be shared
    programs = (shutil.which(os.path.join(entry, OPENSSL)) for entry in program_folders())
    program = next((found for found in programs if found and os.path.isabs(found)), None)
    why = "it makes the certificate"
    if program:
        command = [program, *MAKE_CERTIFICATE.split()[1:], "-config", "names"]
        with contextlib.suppress(OSError):  # the system cannot run it
            made = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            if not made.returncode:
                return os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
            why = made.stderr.decode(errors="backslashreplace").strip()[-200:]
    hint = f"{MAKE_CERTIFICATE} -subj /CN=six, elsewhere; then --cert cert.pem --key key.pem"
    if os.name == "nt":
        hint = f"winget install Git.Git, which has it; or {hint}"
    raise Failure(2, "the openssl program is missing or fails", why, hint)


def alert(number: int) -> bytes:
    """A fatal alert, sent instead of a handshake (RFC 8446 section 6)."""
    return bytes([21, 3, 3, 0, 2, 2, number])


def door_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag(
        "--password",
        metavar="TEXT",
        help="what clients must know; safer: SIXSOCKETS_PASSWORD in the environment",
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


# --- times: the same in client.py, httpserver.py, httpclient.py (tests/test_twins.py) ---
CYCLE = 400 * 365.2425 * 86400  # seconds after which the calendar repeats itself


def calendar(clock: Callable[[float], time.struct_time], seconds: float) -> time.struct_time:
    """time.gmtime() or time.localtime(), also before 1970, where Windows has neither."""
    try:
        return clock(seconds)
    except OSError:
        later = clock(seconds + CYCLE)
        return time.struct_time((later.tm_year - 400, *later[1:]))


# --- end times ---


# --- showing sizes: the same in client.py, httpserver.py, httpclient.py (tests/test_twins.py) ---
def readable_size(size: float) -> str:
    """Bytes as people read them, such as 999 bytes or 1.2 MB, in powers of 1,000."""
    if size < 999.5:
        return f"{size:.0f} byte{'s' * (round(size) != 1)}"
    power = 1
    while size >= 999.5 * 1000**power and power < 4:
        power += 1
    number = size / 1000**power
    return f"{number:.{int(number < 99.95)}f} {' kMGT'[power]}B"


# --- end showing sizes ---


# --- reading sizes: the same in the four file scripts (tests/test_twins.py) ---
def parse_size(text: str) -> int:
    """An argparse type: bytes. k, M, G, T are powers of 1,000; Ki, Mi, Gi, Ti of 1,024."""
    found = re.fullmatch(r"([0-9]{1,15})(?:([kmgt])(i?))?", text.lower())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 500k or 2Gi")
    base, power = 1024 if found[3] else 1000, " kmgt".index(found[2] or " ")
    return int(int(found[1]) * base**power)


# --- end reading sizes ---


# --- programs: the same in the four file scripts (tests/test_twins.py) ---
SCRIPTS = (
    "server.py",
    "client.py",
    "httpserver.py",
    "httpclient.py",
    "tcp_upper.py",
    "udp_upper.py",
)
OPENSSL = "openssl.exe" if os.name == "nt" else "openssl"
# what tells Python where its folders are, beside it or in the folder above
SETTINGS = ("pyvenv.cfg", "../pyvenv.cfg", "pybuilddir.txt")
# endings of what Python or Windows loads as code where they look for it
CODE = (".py", ".pyc", ".pyw", ".so", ".pyd", ".dylib", ".dll", ".exe", ".pth", "._pth")


@functools.lru_cache(maxsize=64)
def folder_key(folder: str) -> str:
    """One form for all ways to write a folder's path.

    Some disks ignore case, or how letters are composed. A separator ends the form, so that the
    form of all that is in the folder begins with it."""
    real = os.path.join(os.path.realpath(folder), "")
    return unicodedata.normalize("NFD", real).casefold()


def path_key(path: str) -> str:
    folder, leaf = os.path.split(os.path.abspath(path))
    return folder_key(folder) + unicodedata.normalize("NFD", leaf).casefold() + os.sep


def program_folders() -> list[str]:
    """Where the openssl program may be. Windows has none, but Git for Windows brings one along."""
    programs = os.environ.get("PROGRAMFILES", r"C:\Program Files")
    git = [os.path.join(programs, "Git", "usr", "bin")] if os.name == "nt" else []
    return [*os.get_exec_path(), *git]


@functools.lru_cache(maxsize=1)
def program_places() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What runs when a script of ours starts, and the folders that Python imports from.

    The first are the scripts beside this one, the interpreter, what tells it its folders, and the
    one other program that --tls runs. Folders that do not exist yet count: they could be made."""
    own, bin_folder = (__file__, os.path.realpath(__file__)), os.path.dirname(sys.executable)
    files = {os.path.join(os.path.dirname(script), name) for script in own for name in SCRIPTS}
    files |= {*own, sys.executable, *(os.path.join(bin_folder, name) for name in SETTINGS)}
    files |= {os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix)}
    files |= {os.path.join(folder, OPENSSL) for folder in program_folders()}
    folders = {*site.getsitepackages(), site.getusersitepackages(), *sys.path}
    # Windows tells by its ending what it would run; elsewhere a program can have any name.
    (folders if os.name == "nt" else files).add(bin_folder)
    # An empty entry, as in PYTHONPATH=: stands for the current folder: the first line of this
    # script takes that off the path, but Python imports sitecustomize before it.
    paths = "" if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "")
    folders.update(paths.split(os.pathsep) if paths else [])
    return tuple(map(path_key, files)), tuple(map(folder_key, folders))


def is_program(path: str) -> bool:
    """Whether a file of this name would be part of a program of ours at its next start."""
    key = path_key(path)
    files, folders = program_places()
    # Below a file too: Python runs a folder that is called like a script, if it has a __main__.py.
    # A file above a folder too: Python imports from a folder in a zip file.
    if key.startswith(files) or any(place.startswith(key) for place in folders):
        return True
    if key.startswith(folders) and key[: -len(os.sep)].endswith(CODE):
        return True
    with contextlib.suppress(OSError):
        return os.path.samefile(path, __file__)  # a hard link
    return False


def holds_program(path: str) -> bool:
    """Whether to rename or remove a folder of this name, or to move one there, would change one."""
    key = path_key(path)
    files, folders = program_places()
    places = files + folders
    return key.startswith(places) or any(place.startswith(key) for place in places)


# --- end programs ---


# --- locks: the same in the four file scripts (tests/test_twins.py) ---
LOCKED_BYTE = (1 << 31) - 2  # the last that Windows locks from Python


def lock_byte(fd: int) -> bool:
    """Lock one byte until the file is closed, as Windows can; False if somebody else has locked it.

    Nobody else may read it then, so it is one far behind."""
    if sys.platform != "win32":
        return True
    import msvcrt

    start = os.lseek(fd, 0, os.SEEK_CUR)
    os.lseek(fd, LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    finally:
        os.lseek(fd, start, os.SEEK_SET)
    return True


# --- end locks ---


# --- secrets: the same in the four file scripts (tests/test_twins.py) ---
def ask_password(whose: str) -> str:
    """Read it from the terminal, unseen. Without a terminal, it is not read from elsewhere."""
    import getpass
    import warnings  # neither at the top, nor ssl below: few need them

    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            if os.name == "nt":  # without a console, getpass() would wait there for ever
                os.close(os.open("CONIN$", os.O_RDWR))
            return getpass.getpass(f"password for {whose}: ")
        except (getpass.GetPassWarning, EOFError, OSError):
            raise Failure(
                67,
                f"cannot ask for the password of {whose}",
                "there is no terminal here on which it could be typed unseen",
                "SIXSOCKETS_PASSWORD in the environment",
            ) from None


def tls_context(args: argparse.Namespace, server: bool) -> "ssl.SSLContext":
    """TLS 1.2 and later. --trace and --pcap show the bytes before encryption: on the network they
    are encrypted."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # a second handshake costs its server a lot, and would make a send wait for what is received
    context.options |= getattr(ssl, "OP_NO_RENEGOTIATION", 0)
    made_of = socket_class(args)
    if issubclass(made_of, Traced):
        context.sslsocket_class = type("TracedTLS", (made_of, ssl.SSLSocket), {})
    return context


def over_tls(
    context: "ssl.SSLContext", sock: socket.socket, host: Optional[str] = None
) -> "ssl.SSLSocket":
    """The connection, from now on encrypted; the handshake is still to come.

    A client treats a stream that ends without TLS's own end as an error: somebody may have cut it.
    A server need not: each request tells its own length."""
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
        lasted = 1000 * (time.perf_counter() - began)
        facts = f"{secured.version()}, {(secured.cipher() or '?')[0]}, {lasted:.2f} ms"
        secured.show("*", f"TLS handshake ok ({facts})")


def end_tls(sock: socket.socket) -> None:
    """Send TLS's own end of the stream, if the kernel has room for it; FIN comes after it."""
    if hasattr(sock, "unwrap"):
        sock.settimeout(0)
        with contextlib.suppress(OSError, ValueError):
            sock.unwrap()


def fingerprint(certificate: Optional[bytes]) -> str:
    import hashlib

    return hashlib.sha256(certificate or b"").hexdigest()


# --- end secrets ---


# --- capture: the same in all six scripts (tests/test_twins.py) ---
ABOUT_CAPTURES = (
    b"Written by the program's own side (--pcap), not by the network card. The bytes, their order "
    b"and the times are real, and so is who ended a connection how. The headers are made up: "
    b"segments, acknowledgements and retransmissions are the kernel's, and not seen here. "
    b"What TLS encrypts is stored as it was inside."
)


def internet_checksum(data: bytes) -> bytes:
    """The Internet's checksum (RFC 1071): the complement of the sum of all words of 16 bits."""
    words = int.from_bytes(data + bytes(len(data) % 2), "big")
    return struct.pack("!H", 65535 - words % 65535)


class Capture:
    """A file of packets for Wireshark, in the format pcapng (draft-ietf-opsawg-pcapng)."""

    def __init__(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        try:
            self.file = os.open(path, flags, 0o600)  # passwords are in it too
        except OSError as error:
            failure = Failure(
                23,
                f"cannot write the capture {printable(path)} ({error.strerror})",
                "--pcap stores there what is sent and received; nothing was done",
                "--pcap FILE, in a folder where you may write",
            )
            say(str(failure))
            raise SystemExit(23) from None
        comment = struct.pack("!HH", 1, len(ABOUT_CAPTURES)) + ABOUT_CAPTURES
        self.block(0x0A0D0D0A, struct.pack("!IHHq", 0x1A2B3C4D, 1, 0, -1) + comment)
        self.block(1, struct.pack("!HHI", 101, 0, 0))  # 101: each packet begins with its IP header

    def block(self, kind: int, body: bytes) -> None:
        """Each is one write, so that threads and processes may write side by side."""
        body += bytes(-len(body) % 4)
        size = struct.pack("!I", 12 + len(body))
        try:
            os.write(self.file, struct.pack("!I", kind) + size + body + size)
        except OSError as error:
            say(f"the capture lacks a packet ({error.strerror})")

    def packet(self, protocol: int, ends: Sequence[Any], header: bytes, rest: bytes) -> None:
        """From the first end to the second. The checksum stands between the header and the rest."""
        hosts = ports = b""
        for end in ends:
            # without the zone of an IPv6 address; an IPv4 client of a dual-stack server sends IPv4
            host = re.sub(r"^::ffff:(?=[0-9.]+$)|%.*", "", end[0])
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            hosts += socket.inet_pton(family, host)
            ports += struct.pack("!H", end[1])
        header = ports + header
        size = len(header) + 2 + len(rest)
        header += internet_checksum(hosts + struct.pack("!HH", protocol, size) + header + rest)
        start = struct.pack("!IHBB", 6 << 28, size, protocol, 64)
        if family == socket.AF_INET:
            start = struct.pack("!HHIBB", 0x4500, 20 + size, 0x4000, 64, protocol)
            start += internet_checksum(start + hosts)
        packet = start + hosts + header + rest
        now = time.time_ns() // 1000
        self.block(6, struct.pack("!IQII", 0, now, len(packet), len(packet)) + packet)


# --- end capture ---


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
    """A socket that prints a line on stderr for each call, and fills the capture of --pcap.

    It shows what the program asks of the kernel, and what the kernel replies. SYN, ACK and
    retransmission happen inside the kernel: only tcpdump or Wireshark show them.
    """

    began = time.perf_counter()
    numbers = itertools.count(1)
    prints = dump = False  # whether --trace asks for lines, --trace-hex for the bytes too
    capture: Optional[Capture] = None
    number = sent = received = 0
    touched = 0.0  # when the last call ended
    lasted = 0.0  # milliseconds from there, or from its beginning, to the end of this call

    def show(self, mark: str, text: str, data: Any = b"") -> None:
        if not self.prints:
            return
        self.number = self.number or next(self.numbers)
        if data and hasattr(self, "cipher"):
            text += ", encrypted by TLS on its way"
        if self.dump:
            text += hexdump(bytes(data))
        now = 1000 * (time.perf_counter() - self.began)
        say(f"{now:9.3f} ms #{self.number} {mark} {text}")

    def attempt(self, mark: str, what: str, call: Callable[..., Any], *args: object) -> Any:
        """Make a call of socket.socket. Its failure is a line of the trace too."""
        began = self.touched or time.perf_counter()  # a wait in select() counts too
        try:
            return call(*args)
        except OSError as error:
            if type(error).__name__ not in NOTHING_HAPPENED:
                self.show(mark, f"{what}: {error.strerror or 'timed out'}")
            raise
        finally:
            self.touched = time.perf_counter()
            self.lasted = 1000 * (self.touched - began)


# --- end trace ---


# --- streams: the same in all scripts over TCP (tests/test_twins.py) ---
SYN, SYN_ACK, ACK, PUSH, FIN, RST = 2, 18, 16, 24, 17, 20  # the flags in TCP's header
SEGMENT = 65495  # bytes: with the headers of TCP and IPv4, a packet of the largest size
US, PEER = 1, -1  # the order of what belongs to both sides


class TracedStream(Traced):
    """The same for TCP, which has connections that begin and end."""

    ends: Sequence[Any]  # of the connection: our address, the peer's
    talking: frozenset[int] = frozenset()  # the sides that may still send

    def accept(self) -> tuple[socket.socket, Any]:
        plain, peer = self.attempt("*", "accept", super().accept)
        # the same connection as a traced object: the plain one gives its descriptor away
        conn = type(self)(fileno=plain.detach())
        conn.show("*", f"accept from {address(peer)}")
        conn.begin(peer, PEER)
        return conn, peer

    def connect(self, target: Any) -> None:
        what = f"connect {address(target)}"
        self.attempt("*", what, super().connect, target)
        here = address(self.getsockname())
        self.show("*", f"{what} ok from {here} (handshake {self.lasted:.2f} ms)")
        self.begin(target, US)

    def begin(self, peer: Any, asks: int) -> None:
        """A connection begins, because one side has asked for it: that is the handshake."""
        self.ends = self.getsockname(), peer
        self.talking = frozenset((US, PEER))
        self.store(asks, SYN)
        self.store(-asks, SYN_ACK)
        self.store(asks, ACK)

    def store(self, side: int, flags: int, data: bytes = b"") -> None:
        """What one side sends, before it is counted: in packets for the capture."""
        if not self.talking or (flags == FIN and side not in self.talking):
            return
        mine, other = (self.sent + 1, self.received + 1)[::side]
        mine -= flags & SYN > 0  # SYN has number 0, the first byte has number 1
        other *= flags != SYN  # the first packet acknowledges nothing
        for start in range(0, len(data) or 1, SEGMENT):
            numbers = mine + start & 0xFFFFFFFF, other & 0xFFFFFFFF  # of 32 bits
            header = struct.pack("!IIHH", *numbers, 0x5000 | flags, 65535)
            rest = b"\0\0" + data[start : start + SEGMENT]
            if self.capture:
                self.capture.packet(6, self.ends[::side], header, rest)
        if flags == FIN:
            self.talking -= {side}
        if flags == RST:
            self.talking = frozenset()

    def attempt(self, *call: Any) -> Any:
        try:
            return super().attempt(*call)
        except ConnectionError:
            self.store(PEER, RST)
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        count: int = self.attempt(">", "send", super().send, data, flags)
        self.store(US, PUSH, bytes(data[:count]))
        self.sent += count
        text = f"send {count} of {len(data)} bytes (sent so far {self.sent})"
        self.show(">", text, data[:count])
        return count

    def recv(self, size: int, flags: int = 0) -> bytes:
        data: bytes = self.attempt("<", "recv", super().recv, size, flags)
        end = "peer sent FIN (end of stream)" if PEER in self.talking else "nothing more can come"
        self.store(PEER, PUSH if data else FIN, data)
        self.received += len(data)
        text = (
            f"recv {len(data)} of at most {size} bytes, waited {self.lasted:.2f} ms "
            f"(received so far {self.received})"
        )
        self.show("<", text if data else f"recv 0 bytes = {end}", data)
        return data

    def shutdown(self, how: int) -> None:
        side = "sending = FIN"
        if how == socket.SHUT_RD:
            side = "receiving"
            self.talking -= {PEER}  # first: another thread may be in recv()
        super().shutdown(how)
        self.show("*", f"shutdown of {side}")
        if how != socket.SHUT_RD:
            self.store(US, FIN)

    def close(self) -> None:
        if self.fileno() < 0:
            return
        if self.talking:
            # RST if close() shall send one (SO_LINGER), or if something came that nobody read
            reset = self.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8).strip(b"\0")
            self.settimeout(0)
            with contextlib.suppress(OSError):
                reset += socket.socket.recv(self, 1, socket.MSG_PEEK)
            self.store(US, RST if reset else FIN)
        self.show("*", f"close (sent {self.sent}, received {self.received})")
        super().close()


# --- end streams ---


# --- masking: the same in the four file scripts (tests/test_twins.py) ---
LONGEST_LINE = 65536  # bytes; neither protocol has a longer line with a secret
SECRET = re.compile(rb"(?i)((?:authorization|cookie):[ \t]*|\bproof=)([^\r\n]*)")


class MaskedStream(TracedStream):
    """The same where passwords are sent: a trace is shown to others."""

    lines: Mapping[str, bytes] = {}  # for each direction: a line whose end has not come yet

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        data = self.recv(size or len(buffer), flags)
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def show(self, mark: str, text: str, data: Any = b"") -> None:
        """The same with asterisks for a secret, even if its line came in several pieces."""
        if not self.prints:  # the capture has its own way
            return
        before = self.lines.get(mark, b"")
        shown = SECRET.sub(lambda found: found[1] + b"*" * len(found[2]), before + bytes(data))
        self.lines = {**self.lines, mark: re.split(b"[\r\n]", shown)[-1][:LONGEST_LINE]}
        super().show(mark, text, shown[len(before) :])


def socket_class(args: argparse.Namespace) -> type[socket.socket]:
    """The class of all sockets: if nothing is shown the plain one, so that it costs nothing."""
    Traced.capture, Traced.dump = args.pcap, args.trace_hex
    Traced.prints = args.trace or args.trace_hex
    return MaskedStream if Traced.prints or args.pcap else socket.socket


# --- end masking ---


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
        raise cannot_listen(error, target) from None


def cannot_listen(problem: OSError, target: "Address") -> "Failure":
    host, port = target[:2]
    reason = problem.errno
    if os.name == "nt" and reason == errno.EACCES:  # another program keeps it for itself
        reason = errno.EADDRINUSE
    if reason == errno.EADDRINUSE:
        return Failure(
            45,
            f"port {port} is already in use",
            "another program is using it",
            "--port 0 takes any free one; ss -ltnup shows which program has it",
        )
    if reason == errno.EADDRNOTAVAIL:
        return Failure(
            45,
            f"{host} is not an address of this machine",
            "its own are " + ", ".join(["127.0.0.1", *own_addresses()]),
            "--host 0.0.0.0 listens on all of them",
        )
    if reason == errno.EACCES and port < 1024:
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


# --- end listening ---


# --- many files: the same in server.py, httpserver.py, tcp_upper.py (tests/test_twins.py) ---
def raise_file_limit() -> None:
    """A connection is a descriptor: ask for as many as the system lets this user have."""
    with contextlib.suppress(ImportError):
        import resource  # not at the top: Windows has none

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for most in hard, 10240:  # macOS names a limit that it does not grant; this one it does
            with contextlib.suppress(ValueError, OSError):
                return resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


# --- end many files ---


def most_clients(wanted: int) -> int:
    """Where only select() is, as on Windows, it takes 512 sockets, closing ones included."""
    by_select = issubclass(selectors.DefaultSelector, selectors.SelectSelector)
    return min(wanted, 240) if by_select else wanted


# --- errors: the same in all six scripts (tests/test_twins.py) ---
Address = tuple[Any, ...]  # (host, port), and for IPv6 (host, port, flow, scope)


class Failure(Exception):
    """What a user or a network can cause: three lines, and the exit code that curl uses for it."""

    def __init__(self, code: int, error: str, why: str, hint: str) -> None:
        if os.name == "nt":  # where the programs that a hint names are called otherwise
            hint = re.sub(r"\bss -\w+", "netstat -ano", hint).replace("python3 ", "py ")
        super().__init__(f"error: {error}\nwhy:   {why}\ntry:   {hint}")
        self.code = code


def speak_utf8() -> None:
    """A pipe of Windows, and NUL, have a code page that lacks most letters."""
    for stream in (sys.stdin, sys.stdout, sys.stderr) if os.name == "nt" else ():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=stream.errors)


def hear_ctrl_c() -> None:
    """From now on it is an exception; while the script was loaded it ended the process."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def say(text: str, end: str = "\n") -> None:
    """Write a line for people at once. The program goes on if nobody is left to read it."""
    # AttributeError: started with stderr closed
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            sys.stderr.write(text + end)
            sys.stderr.flush()
        except OSError:
            # Forget that text, and keep none from now on: Python would try to write it at the end,
            # and make the exit code 120.
            raw = open(2, "wb", 0, closefd=False)  # noqa: SIM115  (it stays)
            code, errors = sys.stderr.encoding, "backslashreplace"
            sys.stderr = io.TextIOWrapper(raw, code, errors, write_through=True)


def address(place: Address) -> str:
    """HOST:PORT, or [HOST]:PORT for IPv6. An IPv4 client of a dual-stack server looks like IPv4."""
    host = re.sub(r"^::ffff:(?=[0-9.]+$)", "", str(place[0]))
    return f"[{host}]:{place[1]}" if ":" in host else f"{host}:{place[1]}"


def resolve(host: str, port: int, kind: int) -> list[tuple[int, Address]]:
    """Each address of a host: the family for socket(), and what connect() and bind() take."""
    # a str would load the codec for international names each time
    name = host.encode() if host.isascii() else host
    # UnicodeError: an empty label, or one over 63 characters
    with contextlib.suppress(socket.gaierror, UnicodeError):
        return [(each[0], each[4]) for each in socket.getaddrinfo(name, port, type=kind)]
    both = re.fullmatch("([^:]+):([0-9]+)", host)
    raise Failure(
        6,
        f'cannot find host "{printable(host)}"',
        "it is neither an address nor a name that this machine can look up",
        f"--host {both[1]} --port {both[2]}" if both else "check the spelling, or use the address",
    )


def between(low: float, high: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """An argparse type: a number from low to high. bind() would raise OverflowError for 99999."""

    def number(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high:.13g}")

    return number


class Parser(argparse.ArgumentParser):
    """argparse with a short -h, the manual for --help, and complaints in three lines."""

    def __init__(self, **settings: Any) -> None:
        wide = 100  # as our lines, if that is not the width of a terminal
        with contextlib.suppress(OSError):
            wide = min(wide, os.get_terminal_size(1).columns or wide)
        super().__init__(
            # if argparse had to ask for the width, it would load shutil
            formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 32, wide),
            add_help=False,
            allow_abbrev=False,  # `get --as NAME` would ask for a password
            **settings,
        )
        self.add_argument(
            "-h", "--help", action="help", help="show this; --help shows the manual first"
        )

    def format_help(self) -> str:
        manual = f"{__doc__}\n" if "--help" in sys.argv else ""
        brief = super().format_help().replace("\n\n", "\n")
        # the usage need not name the options that are explained below it
        option = r"(\s+\[-([^][]|\[[^]]*\])*\])+(\n +(?= ))?"
        return manual + re.sub(option, " [OPTION ...]", brief, count=1)

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
            longer = [name for name in known if name.startswith(wrong[1])]
            guesses = longer or difflib.get_close_matches(wrong[1], known, 1, 0.75)
            if guesses:
                hint = f"did you mean {guesses[0]}? {hint} lists all"
            elif (self.usage or self._subparsers) and sys.argv[1].startswith("-"):
                hint += "; write an option of a command after the command"
        why = "the command line is not as the help describes it; nothing was done"
        say(str(Failure(2, message, why, hint)))
        raise SystemExit(2)


# --- end errors ---


# --- the command line ---
def open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise Failure(
            23,
            f"cannot write the log {path} ({error.strerror})",
            "the access log goes there",
            "--log FILE with a file that you may write to",
        ) from None


def open_shared(args: argparse.Namespace) -> Shared:
    try:
        if not os.path.isfile(args.directory):
            os.scandir(args.directory).close()
        return Shared(args.directory, args.hidden, args.durable)
    except OSError as error:
        where = "the current folder is gone"
        with contextlib.suppress(OSError):
            where = f"it is looked for in {os.getcwd()}"
        raise Failure(
            26,
            f"cannot share {args.directory}: {(error.strerror or '').lower()}",
            where,
            f"{SERVER} FOLDER, or the name of one file",
        ) from None


def announce(sock: socket.socket, args: argparse.Namespace, door: Door) -> None:
    """Where the server listens: on stdout for programs, on stderr for people."""
    host, port = sock.getsockname()[:2]
    try:
        if sys.stdout is not None:  # else descriptor 1 is something of ours
            os.write(1, f"listening on {url_of(door, host, port)}\n".encode())
    except OSError as error:
        sock.close()
        raise Failure(
            23,
            f"cannot write standard output ({error.strerror})",
            "what reads it has ended, or its disk is full",
            f"{SERVER} > FILE",
        ) from None
    if args.drop_box:
        say("drop box: who connects can add files, each in a folder of their own, and nothing else")
    others, example = reachable_at(sock), "put FILE /" if args.drop_box else "list /"
    client = f"--port {port}{door.flags} {example}"
    if others:
        return tell_others(others, args, door, sock, client)
    named = f"--host {host} " if host != "127.0.0.1" else ""  # where clients look by themselves
    command = f"curl {'-T FILE ' * args.drop_box}{url_of(door, host, port)}"
    if door.flags:
        command = f"{CLIENT} {named}{client}"
    say(f"only this machine can reach it, with a browser or:  {command}")
    say("for others, start it with --host 0.0.0.0")


def tell_others(
    others: Sequence[str], args: argparse.Namespace, door: Door, sock: socket.socket, client: str
) -> None:
    host, port = sock.getsockname()[:2]
    found = dict.fromkeys([*others, *interface_addresses(host)])
    # the name of this machine is the way out where there is no default route
    others = sorted(found, key=lambda each: each == socket.gethostname())
    login = f"{ANYBODY}:{door.made}@" if door.made else ""
    urls = [url_of(door, other.replace("%", "%25"), port, login) for other in others]
    say("from another machine:  " + "\n                       ".join(urls))
    if not args.no_qr:
        show_qr(urls[0])
    say(f"or:  {CLIENT} --host {others[0]} {client}")
    if not door.guard:
        do = (
            "add files"
            if args.drop_box
            else "read it"
            if args.read_only
            else "read it and change it"
        )
        say(f"nobody is asked for a password: everybody who reaches it can {do}")
    if not door.tls:
        read = "the traffic and the password in it" if door.guard else "the traffic"
        say(f"nothing is encrypted: others on the way can read {read}; --tls encrypts")


def interface_addresses(host: str) -> list[str]:
    """The addresses of all interfaces, where Linux tells them, if the server listens on all."""
    if host not in ("0.0.0.0", "::"):
        return []
    found: list[str] = []
    with contextlib.suppress(OSError), open("/proc/net/fib_trie") as routes:
        found += re.findall(r"-- ([0-9.]+)\n +/32 host LOCAL", routes.read())
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as interfaces:
        for number, _, _, scope, _, name in map(str.split, interfaces if host == "::" else ()):
            zone = f"%{name}" * (scope == "20")  # link-local: the same on each interface
            found.append(str(ipaddress.IPv6Address(int(number, 16))) + zone)
    return [each for each in found if each != "::1" and not each.startswith("127.")]


def url_of(door: Door, host: str, port: int, login: str = "") -> str:
    return f"http{'s' * bool(door.tls)}://{login}{address((host, port))}/"


def proxy_address(text: str) -> str:
    if not (found := hop_address(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address")
    return found


def header_line(text: str) -> str:
    if not re.fullmatch(rf"{TOKEN}: ?[ -~]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME: VALUE")
    name = text.partition(":")[0]
    if name.lower() in FRAMING:
        raise argparse.ArgumentTypeError(f"{name} depends on what each answer holds")
    return text


SWITCHES = """
--public-read  ask for the password only where something changes
--read-only    refuse every change
--drop-box     who connects can add files and folders, and nothing else
--hidden       show and serve names that start with a dot
--durable      an upload is on the disk before it is answered (fsync)
--once         end when one client has got the whole of a file
--quiet        no access log
--json         each line of the log is a JSON object
--no-qr        no QR code of the address on a terminal
--trace        print a line for each socket call
--trace-hex    the same, with the first bytes
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="httpserver.py")
    add = parser.add_argument
    add(
        "directory",
        nargs="?",
        default=None,
        metavar="FOLDER|FILE|PORT",
        help="what is shared (default .); a number that is no name here: the port",
    )
    add("-d", "--directory", dest="folder", default=".", metavar="DIR", help="the same")
    add(
        "-b",
        "--bind",
        "--host",
        dest="host",
        default="127.0.0.1",
        help="the address to listen on; :: is IPv6 and IPv4 (default 127.0.0.1)",
    )
    any_port = f"the port; 0 takes any free one (default {PORT})"
    add("-p", "--port", type=between(0, 65535), default=PORT, help=any_port)
    door_flags(parser)
    for flag, text in re.findall("(.*?)  +(.*)", SWITCHES):
        add(flag, action="store_true", help=text)
    limit_flags(parser)
    proxy_flags(parser)
    add("--log", metavar="FILE", help="where the access log goes (default stderr)")
    add(
        "--pcap",
        type=Capture,
        metavar="FILE",
        help="store all that is sent, passwords too, for Wireshark",
    )
    add("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def limit_flags(parser: argparse.ArgumentParser) -> None:
    limits = (
        (
            "--max-size",
            parse_size,
            0,
            "N",
            "largest upload, such as 500M or 2Gi (default no limit)",
        ),
        ("--min-free", parse_size, 0, "N", "bytes that uploads leave free on the disk (default 0)"),
        (
            "--max-clients",
            between(1, 1e6),
            10000,
            "N",
            "connections; one more ends the longest idle, or gets 503 (default 10000)",
        ),
        ("--requests", between(0, 1e12), 0, "N", "end after so many answers (default never)"),
        (
            "--timeout",
            between(0.01, 1e6, float),
            30.0,
            "S",
            "silence allowed inside a head or body (default 30)",
        ),
    )
    for flag, kind, default, unit, text in limits:
        parser.add_argument(flag, type=kind, default=default, metavar=unit, help=text)


def proxy_flags(parser: argparse.ArgumentParser) -> None:
    """What can be given several times."""
    add = functools.partial(parser.add_argument, action="append", default=[])
    known = "a name under which clients may ask for this server; * is any"
    add("--allow-host", metavar="NAME", help=known)
    behind = "its clients are those in its X-Forwarded-For or Forwarded"
    add("--trust-proxy", type=proxy_address, metavar="ADDRESS", help=behind)
    added = "add this to every answer, in place of the server's own field"
    add("--header", type=header_line, metavar="'NAME: VALUE'", help=added)


def main(argv: Optional[Sequence[str]] = None) -> int:
    speak_utf8()
    parser = build_parser()
    args = parser.parse_args(argv)
    port = re.fullmatch("[0-9]{1,9}", args.directory or "")
    if port and not os.path.lexists(args.directory):  # as in python3 -m http.server
        args = parser.parse_args(["--port", args.directory], args)
        args.directory = None
    args.directory = args.directory or args.folder
    hear_ctrl_c()
    try:
        return serve(args)
    except Failure as failure:
        say(str(failure))
        return failure.code
    except KeyboardInterrupt:
        say("\nstopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
