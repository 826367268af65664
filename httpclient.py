#!/usr/bin/env python3
"""Fetch, send and mirror files over HTTP: a client for any web server, in one file.

    python3 httpclient.py get http://HOST/big.iso            saved as big.iso; the same again goes on after a cut
    python3 httpclient.py get URL -o - | tar x               to standard output; -o takes a folder or a name too
    python3 httpclient.py get URL --connections 4 --checksum sha256:HEX
    python3 httpclient.py put notes.txt photo.jpg http://HOST:8000/inbox/
    python3 httpclient.py upload DIR http://HOST:8000/inbox/ a folder; again sends only what changed
    python3 httpclient.py mirror http://HOST/pub/ -o copy    the reverse, from any server's index page
    python3 httpclient.py list /                             http://127.0.0.1:8000/: --host and --port complete it
    python3 httpclient.py post URL --data 'a=1&b=2'          or --data @FILE, --data -, --form photo=@me.jpg
    python3 httpclient.py delete|head|mkdir URL, move URL NEW

A download is written to a hidden part (.six-*.part) beside its destination, with a note (.six-*.json) of the
URL, ETag or Last-Modified and size that it belongs to. A lost link, or running the command again, continues it
by Range with If-Range; a file that changed meanwhile starts over. Length and digest are checked before the part
gets its name. get replaces what exists only with --force, or with --newer if the server's is newer or of another size;
mirror replaces what differs (with --newer only such). A name that the server alone proposes replaces nothing.
What would run later is refused: these scripts, and code in a folder from which Python imports.
What is here already is not fetched again: told by the ETag that came with it, which Linux keeps with the file
(user.six.etag), or else by Last-Modified and size. upload sends what has another size or time than the server's file,
or where the server keeps no times what is newer.
Large uploads ask first (Expect: 100-continue), or are resumed, also through proxies, where OPTIONS tells by Upload-Limit
that the server speaks draft-ietf-httpbis-resumable-upload-10 (interop version 8). Files keep their time where the server knows X-OC-Mtime.
"sent unverified": the server's answer, 200 and a page, may be that of one that ignores PUT.

A password is sent only to the server that --password, --user, --token, -H or the URL named it for, never along a
redirect elsewhere; SIXSOCKETS_PASSWORD only to --host and --port; otherwise ~/.netrc is asked, and on a terminal you.
Without https others can read it. --pin SHA256 trusts the certificate that httpserver.py --tls printed.
Proxies come from --proxy or http_proxy, https_proxy, all_proxy, no_proxy.
Exit codes are curl's: 22 is a status of 400 or above, 18 a transfer cut short, 60 a certificate not trusted.
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

    def is_open(folder: str) -> bool:
        """Whether files arrive there: the script's folder and the current one, not the library."""
        if not os.path.exists(folder) or folder == os.path.dirname(os.__file__):
            return False
        own = os.path.dirname(os.path.realpath(__file__))
        return os.path.samefile(folder, os.curdir) or os.path.samefile(folder, own)

    sys.path[:] = [folder for folder in sys.path if not is_open(folder or os.curdir)]
# --- end imports ---

import argparse
import binascii
import codecs
import contextlib
import errno
import functools
import itertools
import os
import re
import select
import site
import socket
import stat
import time
import unicodedata
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional, TypeVar, Union
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

if TYPE_CHECKING:
    import hashlib
    import ssl

VERSION = "1.0"
T = TypeVar("T")
PORTS = {"http": 80, "https": 443}
# bytes: one recv() at most, and one write(); fewer calls than with 256 KiB save a fifth of the time
BUFFER = 1 << 20
# bytes of one send() under TLS: it takes all of them before the timeout, or counts as stuck
TLS_SLICE = 1 << 16
MAX_HEAD = 1 << 16  # bytes of a response's head, or of a chunked body's trailers
MAX_LINE = 4096  # bytes of the line before a chunk
# 1xx responses before the real one; a server may tell each second how much of an upload it has
MAX_INTERIM = 1000
MAX_REDIRECTS = 10
MAX_LISTING = 1 << 24  # bytes of an index page: 100,000 names and more
MAX_ANSWER = 1 << 16  # bytes read of an error page, and drained to keep a connection
MAX_DEPTH = 100  # folders within folders: a server can make up more for ever
SHOWN_LINES = 3  # of an error page
# bytes decoded at once: what follows the end of a gzip member is copied each time
GZIP_STEP = 1 << 16
GZIP_RATIO = 200  # decoded bytes for each received one; text rarely passes 20, a bomb has 1000
PIPELINE = 64  # requests on the way at once, when a folder of files is fetched
EXPECT_FROM = 1 << 20  # bytes: larger bodies wait for the server's word, as curl's do
EXPECT_WAIT = 1.0  # seconds for that word; servers that do not know it stay silent
NOTED_FROM = 1 << 18  # bytes: a smaller file is fetched whole again, and needs no note
HOLE_FROM = 1 << 12  # bytes: the block of most file systems
SPLIT_FROM = 1 << 20  # bytes: the least that is worth a connection of its own
# an attribute of a file: the ETag that it came with, if nothing else tells it from a newer one
XATTR = "user.six.etag"
# seconds before the first note of a download over several connections, doubled up to the most
SAVE_EVERY = 0.05, 1.0
PART_AGE = 7 * 24 * 3600.0  # seconds that a part may wait to be continued
# seconds before another try: after progress, without (doubling), and the most of it
PAUSES = 0.1, 0.5, 60.0
DRAWN_EVERY = 0.1  # seconds
LATEST = 10**11  # seconds since 1970: a later time is a mistake, and no system can show it
EARLIEST = -62135596800  # the same for the year 1: earlier ones have no date in HTTP
OC_MTIME = "X-OC-Mtime"  # the field for a file's time that ownCloud invented
# PATCH: only with an Upload-Offset, which makes it so
IDEMPOTENT = {"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"}
PASSING = {408, 429, 500, 502, 503, 504}  # statuses that another try may turn into success
REDIRECTS = {301, 302, 303, 307, 308}
# of a file: its very bytes, and their digest if known
IDENTITY = {"Accept-Encoding": "identity"}
WANTED = {**IDENTITY, "Want-Repr-Digest": "sha-256=1"}
INTEROP = "8"  # of the resumable-upload draft
ADVICE = {  # what a person may do about a status
    401: "--password, --ask-password or --user NAME:PASSWORD, or SIXSOCKETS_PASSWORD for --host and --port",
    403: "another login, or another name",
    404: "check the name; list shows what is there",
    405: "the server allows no such change there",
    411: "the server wants the length first: put a file, not standard input",
    407: "--proxy http://USER:PASSWORD@HOST:PORT",
    412: "--force replaces what is there",
    413: "the server takes no such large body",
    507: "the server's disk is full",
}
# A pattern is compiled when it is first used, and then kept by re; few runs need all.
HEAD_END = re.compile(rb"\n\r?\n")  # a bare LF ends a line here too: old CGI programs write them
LINE_END = re.compile(rb"\n")
STATUS_LINE = r"HTTP/(1\.[0-9]) ([1-9][0-9][0-9])(?: (.*))?"
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 section 5.6.2
FIELD = rf"(?m)^(?:({TOKEN}):(.*)|(.+))$"  # or a line that is none
FOLD = r"\n[ \t]+"  # obs-fold: a user agent reads it as a space (RFC 9112 section 5.2)
# labels of a length that TLS and the resolver take
HOST = r"[!-,\-/-~]{1,63}(?:\.[!-,\-/-~]{1,63})*\.?"
LENGTH = r"[0-9]{1,18}"
MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
DATE = r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
# in Caddy's indexes
ISO_DATE = r"([0-9]{4})-(0[1-9]|1[0-2])-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?Z"
CHUNK_LINE = rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n"
CONTENT_RANGE = r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)"
SHA256_FIELD = r"(?i)(?:^|,)\s*sha-256=:?([A-Za-z0-9+/]{43}=):?"
FILENAME = r'(?i)\bfilename\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))'
FILENAME_STAR = r"(?i)\bfilename\*\s*=\s*utf-8'[^']*'([^\s;]+)"
LINK = r"(?i)<a\s(?:[^<>]*?\s)?href\s*=\s*(?:\"([^\"<>]*)\"|'([^'<>]*)'|([^\s<>\"']+))"
PLAIN = r"[A-Za-z0-9_%-][A-Za-z0-9_.%~-]*/?"  # a link that needs no resolving, as most in an index
PART_NAME = r"\.six-[0-9a-f]{32}\.(?:part|json)"
SIGNATURE = r"(?i)(?<=[?&])(?:x-(?:amz|goog)-[^&=]*|awsaccesskeyid|googleaccessid|signature|expires)=[^&]*&?"
WINDOWS_DEVICE = r"(?i)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)"


# --- pure functions: URLs, heads, names, numbers ---
class URL(NamedTuple):
    """Where a request goes. Its text is printable ASCII, without the login and what follows a question mark: signatures stand there."""

    scheme: str
    host: str
    port: int
    target: str  # path and query, percent-encoded
    login: str = ""  # user:password

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def full(self) -> str:
        return self.origin + self.target

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def __str__(self) -> str:
        return self.origin + self.path + "?..." * ("?" in self.target)

    def join(self, reference: str) -> "URL":
        """What a reference from the server means. A login in it is somebody else's choice, and dropped."""
        try:
            return parse_url(urljoin(self.full, reference))._replace(login="")
        except (Failure, ValueError):
            raise broken(
                self.authority, f"a link to {reference[:100]!r}, which is no http or https URL"
            ) from None

    def child(self, name: str) -> "URL":
        return self._replace(target=self.path.rstrip("/") + "/" + quote(os.fsencode(name)))


def parse_url(text: str) -> URL:
    """An absolute URL as people write it: spaces and umlauts are encoded, what is encoded already stays."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError as error:
        reason = (
            "is a character in the password not percent-encoded?"
            if "@" in text
            else shown(str(error))
        )
        raise Failure(
            2,
            f"{loginless(text)} is no URL ({reason})",
            "nothing was sent",
            "http://HOST:PORT/PATH",
        ) from None
    if parts.scheme not in PORTS or not re.fullmatch(HOST, host):
        raise Failure(
            2,
            f"{loginless(text)} is no http or https URL",
            "nothing was sent",
            "http://HOST:PORT/PATH",
        )
    target = encoded(parts.path or "/", "/") + (
        "?" + encoded(parts.query, "/?[]") if parts.query else ""
    )
    login = parts.netloc.rpartition("@")[0]
    return URL(
        parts.scheme, host, PORTS[parts.scheme] if port is None else port, target, unquoted(login)
    )


def loginless(text: str) -> str:
    """What was given instead of a URL, for a message. Where the login in it ends is uncertain, so all before the last @ counts as such."""
    return shown(re.sub(r"(?s)^.*@", "...@", text))


def encoded(text: str, also: str) -> str:
    text = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text)
    return quote(text.encode("utf-8", "surrogateescape"), safe="%!$&'()*+,;=:@" + also)


def unquoted(text: str) -> str:
    """Percent-decoded, as a name or login. What is no UTF-8 passes byte by byte."""
    return os.fsdecode(unquote_to_bytes(text.encode("utf-8", "surrogateescape")))


class Head(NamedTuple):
    """The head of a response; field names in lower case, repeated fields joined by commas."""

    version: str
    status: int
    reason: str
    fields: dict[str, str]
    length: Optional[int]  # Content-Length, if the body has one
    text: str

    def get(self, name: str) -> str:
        return self.fields.get(name, "")

    def has(self, name: str, word: str) -> bool:
        return word in [item.strip().lower() for item in self.get(name).split(",")]

    @property
    def modified(self) -> Optional[float]:
        return parse_date(self.get("last-modified"))


def parse_head(raw: bytes) -> Head:
    """RFC 9112 section 4 and 5. What is malformed raises ValueError: guessing is how two programs come to disagree."""
    if b"\0" in raw or raw.count(b"\r") != raw.count(b"\r\n"):
        raise ValueError("a NUL or a bare CR in its head")
    text = re.sub(FOLD, " ", raw.decode("utf-8", "surrogateescape").replace("\r", ""))
    first, _, rest = text.rstrip("\n").partition("\n")
    found = re.fullmatch(STATUS_LINE, first)
    if not found:
        raise ValueError(f"{first[:60]!r} where HTTP/1.1 and a status belong")
    fields: dict[str, str] = {}
    for name, value, other in re.findall(FIELD, rest):
        if other:
            raise ValueError(f"{other[:60]!r} where a header belongs")
        name, value = name.lower(), value.strip(" \t")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return Head(found[1], int(found[2]), found[3] or "", fields, content_length(fields), text)


def content_length(fields: dict[str, str]) -> Optional[int]:
    """RFC 9112 section 6.3: Transfer-Encoding goes before it; several must be the same number."""
    if "content-length" not in fields or "transfer-encoding" in fields:
        return None
    length, *others = {item.strip() for item in fields["content-length"].split(",")}
    if others or not re.fullmatch(LENGTH, length):
        raise ValueError("a Content-Length that is no number")
    return int(length)


@functools.lru_cache(maxsize=64)  # a folder's files share many
def parse_date(text: str) -> Optional[float]:
    """Seconds since 1970. Of the three forms of RFC 9110 section 5.6.7 the one that is not obsolete, or ISO 8601."""
    if (found := re.fullmatch(DATE, text)) and found[2] in MONTHS:
        day, year, month = int(found[1]), int(found[3]), MONTHS.index(found[2]) // 3
    elif found := re.fullmatch(ISO_DATE, text):
        day, year, month = int(found[3]), int(found[1]), int(found[2]) - 1
    else:
        return None
    hour, minute, second = map(int, found.groups()[3:])
    # a year from March to February ends with its leap day
    year, month = (year, month - 2) if month > 1 else (year - 1, month + 10)
    days = (
        365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469
    )
    return 86400.0 * days + 3600 * hour + 60 * minute + second


def http_date(seconds: float) -> str:
    # in English as long as nobody calls setlocale()
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))


def content_range(head: Head) -> Optional[tuple[int, int, int]]:
    """First byte, the byte after the last, and the size of the whole. (-1, -1, size) when none could be satisfied."""
    found = re.fullmatch(CONTENT_RANGE, head.get("content-range"))
    if not found or found[3] == "*":
        return None
    return (
        (int(found[1]), int(found[2]) + 1, int(found[3])) if found[1] else (-1, -1, int(found[3]))
    )


class Source(NamedTuple):
    """What a part belongs to."""

    url: str
    etag: str
    modified: str
    size: Optional[int]
    digest: str  # SHA-256 in hex, if the server told it

    @property
    def validator(self) -> str:
        """For If-Range, which compares strongly: a weak ETag proves nothing (RFC 9110 section 13.1.5)."""
        return self.modified if not self.etag or self.etag.startswith("W/") else self.etag

    def fits(self, head: Head) -> bool:
        """Whether a partial response may be of the same file: servers that know Range but not If-Range send one of any."""
        field, want = ("etag", self.etag) if self.etag else ("last-modified", self.modified)
        return head.get(field) in ("", want)


def source_of(url: URL, head: Head) -> Source:
    span = content_range(head)
    size = span[2] if span else head.length
    date, modified = parse_date(head.get("date")), head.modified
    # or it may change again within its second
    settled = date is not None and modified is not None and modified < date
    found = re.search(SHA256_FIELD, head.get("repr-digest") or head.get("digest"))
    digest = binascii.a2b_base64(found[1]).hex() if found else ""
    return Source(
        str(url), head.get("etag"), head.get("last-modified") if settled else "", size, digest
    )


def disposition_name(value: str) -> str:
    """The file name in a Content-Disposition, if any (RFC 6266)."""
    if found := re.search(FILENAME_STAR, value):
        return unquoted(found[1])
    found = re.search(FILENAME, value)
    return re.sub(r"\\(.)", r"\1", found[1] or found[2] or "") if found else ""


def safe_name(name: str) -> str:
    """A file name out of what a server proposes: one component, not hidden, no control characters, not too long."""
    name = re.split(r"[/\\]", name)[-1]
    name = "".join("_" if char < " " or "\x7f" <= char <= "\x9f" else char for char in name)
    name = "_" + name[1:] if name.startswith(".") else name
    if os.name == "nt":
        name = re.sub(r'[<>:"|?*]', "_", name).rstrip(". ")
        name = "_" + name if re.match(WINDOWS_DEVICE, name) else name
    stem, dot, ending = name.rpartition(".")
    if len(os.fsencode(name)) > 255:  # what file systems take
        name = os.fsdecode(os.fsencode(stem or name)[:200]) + (
            dot + ending if len(os.fsencode(ending)) < 50 else ""
        )
    return name or "index.html"


def legal(name: str, hidden: bool) -> bool:
    """Whether a name from a server's index may become a file or folder here."""
    if (
        name in ("", ".", "..")
        or "/" in name
        or "\0" in name
        or name.startswith(".")
        and not hidden
        or is_part(name)
    ):
        return False
    return os.name != "nt" or not (
        re.search(r'[\\<>:"|?*\x00-\x1f]|[. ]$', name) or re.match(WINDOWS_DEVICE, name)
    )


def is_part(name: str) -> bool:
    return name.startswith(".six-") and re.fullmatch(PART_NAME, name) is not None


class Entry(NamedTuple):
    """A line of a folder's index; None is what that index does not tell."""

    name: str
    folder: bool
    size: Optional[int] = None
    mtime: Optional[float] = None
    etag: str = ""


def html_entries(text: str, url: URL) -> list[Entry]:
    """The links of an index page that lead to something in that very folder; sorting links and the way up do not."""
    references = [
        unescaped(match[1] or match[2] or match[3] or "").strip()
        for match in re.finditer(LINK, text)
    ]
    names = dict.fromkeys(name for reference in references if (name := child_name(reference, url)))
    return [Entry(unquoted(name.rstrip("/")), name.endswith("/")) for name in names]


def unescaped(text: str) -> str:
    if "&" in text:
        import html

        text = html.unescape(text)
    return text


def child_name(reference: str, url: URL) -> str:
    """The name, still encoded, that a reference gives to something in a folder; "" when it leads elsewhere."""
    if re.fullmatch(PLAIN, reference):
        return reference
    with contextlib.suppress(Failure):
        link = url.join(reference.partition("#")[0])
        name = link.path[len(url.path) :]
        if (
            link.origin == url.origin
            and link.path.startswith(url.path)
            and "?" not in link.target
            and "/" not in name[:-1]
        ):
            return name if name != "/" else ""
    return ""


def json_entries(text: str, url: URL) -> list[Entry]:
    """An index as JSON, as httpserver.py, nginx and Caddy write it."""
    import json

    index = json.loads(text)
    index = index.get("entries") if isinstance(index, dict) else index
    if not isinstance(index, list):
        raise TypeError("an index that is no list")
    return [entry for item in index if isinstance(item, dict) and (entry := json_entry(item))]


def json_entry(item: dict[str, Any]) -> Optional[Entry]:
    name: Any = item.get("name")
    size, mtime, link, etag = (
        item.get("size"),
        item.get("mtime", item.get("mod_time")),
        item.get("href", item.get("url")),
        item.get("etag"),
    )
    try:
        # exact even where the name is no text
        name = unquoted(link.removeprefix("./")) if isinstance(link, str) else name
        os.fsencode(name)
    except (TypeError, UnicodeError):  # no str, or half a surrogate pair: it stands for no bytes
        return None
    folder = (
        item.get("is_dir") is True
        or item.get("type") in ("directory", "folder", "dir")
        or name.endswith("/")
    )
    mtime = parse_date(mtime) if isinstance(mtime, str) else mtime
    mtime = mtime if isinstance(mtime, (int, float)) and abs(mtime) < LATEST else None
    size = size if isinstance(size, int) and not folder else None
    return Entry(name.rstrip("/"), folder, size, mtime, etag if isinstance(etag, str) else "")


def shown(text: str) -> str:
    """Text for a terminal: what could move the cursor or change colours appears in hex."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text
    )


def spoken(name: str) -> str:
    """A file name in a message: one line, whatever is in it."""
    return (
        shown(os.fsencode(name).decode(errors="backslashreplace"))
        .replace("\n", "\\n")
        .replace("\t", "\\t")
    )


def basic(login: str) -> str:
    return "Basic " + b64(
        (login if ":" in login else login + ":").encode("utf-8", "surrogateescape")
    )


def b64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def hasher(name: str, data: bytes = b"") -> "hashlib._Hash":
    # not at the top, like json, html and ssl: what loads them is worth the wait, other runs start
    # sooner
    import hashlib

    return hashlib.new(name, data)


def error_lines(head: Head, body: bytes) -> str:
    """The first lines of an error page, as text."""
    text = body.decode("utf-8", "replace")
    if "html" in head.get("content-type"):
        text = unescaped(re.sub(r"(?s)<(style|script|head)\b.*?(?:</\1>|\Z)|<[^<>]*>", "\n", text))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return shown(" | ".join([line[:200] for line in lines if line][:SHOWN_LINES])).replace(
        "\n", " "
    )


# --- the wire: bytes in, heads and bodies out ---
CLOSED = "the server closed it"


class Wire:
    """A connection. What has come in and is not read yet stands in buffer[start:end]."""

    def __init__(self, sock: socket.socket, peer: str, args: argparse.Namespace) -> None:
        self.sock = sock
        self.peer = peer
        self.args = args
        self.slice = TLS_SLICE if hasattr(sock, "unwrap") else BUFFER
        self.buffer = memoryview(bytearray(BUFFER))
        self.start = self.end = 0
        self.problem = CLOSED  # why nothing more comes, once fill() is 0
        self.heard = False  # a head has come since the last request, an interim one (1xx) at least
        # one that was told before the body was sent: the server may still be reading
        self.success: Head | None = None

    def fill(self) -> int:
        """Put what arrives behind what is there; 0 at the end of the stream."""
        waiting = self.end - self.start
        self.buffer[:waiting] = self.buffer[self.start : self.end]
        self.start, self.end = 0, waiting
        try:
            count = self.sock.recv_into(self.buffer[waiting:])
        except OSError as error:
            if self.sock.gettimeout() == 0:
                raise
            if isinstance(error, socket.timeout):
                raise Transient(
                    28,
                    f"{self.peer} has said nothing for {self.args.timeout:g} s",
                    "it is connected but silent: busy, stopped, or behind a broken link",
                    "--timeout gives it longer",
                ) from None
            self.problem, count = error.strerror or str(error), 0
        self.end += count
        return count

    def take(self, most: int) -> memoryview:
        """Some of the bytes that come next, valid until the next call; none at the end of the stream."""
        if self.start == self.end:
            self.fill()
        piece = self.buffer[self.start : min(self.end, self.start + most)]
        self.start += len(piece)
        return piece

    def until(self, mark: re.Pattern[bytes], limit: int) -> bytes:
        """The bytes up to a mark and with it."""
        while not (
            found := mark.search(self.buffer, self.start, min(self.end, self.start + limit))
        ):
            if self.end - self.start >= limit:
                raise broken(self.peer, f"no end of a head or line within {limit} bytes")
            if not self.fill():
                raise self.lost()
        data = bytes(self.buffer[self.start : found.end()])
        self.start = found.end()
        return data

    def lost(self) -> "Transient":
        came = self.end - self.start
        code, what = (18, f"only {came} bytes of a head came") if came else (52, "no answer")
        return Transient(
            code, f"{what} from {self.peer}", f"connection lost: {self.problem}", "the same again"
        )

    def head(self) -> Head:
        """The head of the response. Interim ones (1xx) before it are taken note of."""
        for _ in range(MAX_INTERIM):
            head = self.one_head()
            if head.status >= 200:
                return head
        raise broken(self.peer, f"more than {MAX_INTERIM} interim responses")

    def one_head(self) -> Head:
        try:
            raw = self.until(HEAD_END, MAX_HEAD)
        except Transient:
            raw = bytes(self.buffer[self.start : self.end])
            if raw.startswith(b"HTTP/"[: len(raw)]):
                # else no head that was cut but another protocol's greeting: trying again would not
                # help
                raise
        try:
            head = parse_head(raw)
        except ValueError as error:
            raise broken(self.peer, str(error)) from None
        narrate(self.args, "<", head.text)
        self.heard = True
        return head

    def early(self) -> Optional[Head]:
        """The response, if it has come though the request is not yet sent whole (rule: it may be a refusal)."""
        self.sock.settimeout(0)
        try:
            if not self.fill():
                raise self.lost()
        except OSError as error:
            if not isinstance(error, BlockingIOError) and "Want" not in type(error).__name__:
                raise unsent(self.peer, error) from None
            # else TLS has read something of its own, such as a session ticket
        finally:
            self.sock.settimeout(self.args.timeout)
        while HEAD_END.search(self.buffer, self.start, self.end):
            head = self.one_head()
            if head.status >= 200:
                return head
        return None

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self.sock.send(view) :]
        except OSError as error:
            raise unsent(self.peer, error) from None

    def send_body(self, body: "Body") -> Optional[Head]:
        """Send it, watching for an answer meanwhile: a server that refuses says so and stops reading. A success is its word for later."""
        chunked = body.length is None
        try:
            for piece in body.pieces():
                if head := self.send_piece(
                    b"%x\r\n" % len(piece) + piece + b"\r\n" if chunked else piece
                ):
                    return head
            return (self.send_piece(b"0\r\n\r\n") if chunked else None) or self.success
        except OSError as error:
            # EPIPE, ECONNRESET: what was said before may still be there to read
            with contextlib.suppress(Transient):
                return self.success or self.head()
            raise unsent(self.peer, error) from None

    def send_piece(self, data: Union[bytes, memoryview]) -> Optional[Head]:
        view = memoryview(data)
        while view:
            readable, writable, _ = select.select(
                [] if self.success else [self.sock], [self.sock], [], self.args.timeout
            )
            if readable and (head := self.early()):
                if head.status >= 300:
                    return head
                self.success = head
            if not readable and not writable:
                raise Transient(
                    28,
                    f"{self.peer} has taken nothing for {self.args.timeout:g} s",
                    "it stopped reading",
                    "the same again",
                )
            if writable:
                count = self.sock.send(view[: self.slice])
                view = view[count:]
                self.args.progress.add(count)
        return None

    def await_word(self) -> Optional[Head]:
        """After Expect: 100-continue: the refusal, or None when the body may go, as any interim response says."""
        deadline = time.monotonic() + EXPECT_WAIT
        while (
            not self.heard
            and select.select([self.sock], [], [], max(0.0, deadline - time.monotonic()))[0]
        ):
            if head := self.early():
                return head
        return None

    def close(self) -> None:
        self.sock.close()


class Reply:
    """A response. Its body is read piece by piece; how it ends, RFC 9112 section 6.3 tells."""

    def __init__(self, wire: Wire, head: Head, method: str, url: URL) -> None:
        self.wire = wire
        self.head = head
        self.url = url
        self.keep = (
            head.has("connection", "keep-alive")
            if head.version == "1.0"
            else not head.has("connection", "close")
        )
        self.ended = method == "HEAD" or head.status in (204, 304) or head.length == 0
        self.received = 0

    def pieces(self) -> Iterator[memoryview]:
        """The body as it comes; Transient when it ends before its end."""
        if self.ended:
            return
        if "transfer-encoding" in self.head.fields:
            body = self.chunks()
        else:
            body = (
                self.to_the_end()
                if self.head.length is None
                else self.sized(self.head.length - self.received)
            )
        for piece in body:
            self.received += len(piece)
            yield piece
        self.ended = True

    def sized(self, left: int) -> Iterator[memoryview]:
        while left:
            piece = self.wire.take(left)
            if not piece:
                raise self.cut()
            left -= len(piece)
            yield piece

    def to_the_end(self) -> Iterator[memoryview]:
        """The end of the connection is the end of the body, if it is the server that ended it."""
        self.keep = False
        while piece := self.wire.take(BUFFER):
            yield piece
        if self.wire.problem != CLOSED:
            raise self.cut()

    def chunks(self) -> Iterator[memoryview]:
        if self.head.get("transfer-encoding").lower() != "chunked":
            raise broken(self.wire.peer, "a Transfer-Encoding other than chunked")
        # both: somebody may be smuggling
        self.keep = self.keep and "content-length" not in self.head.fields
        while size := self.chunk_size():
            yield from self.sized(size)
            if self.line(MAX_LINE) not in (b"\r\n", b"\n"):
                raise broken(self.wire.peer, "a chunk that is longer than it says")
        limit = MAX_HEAD
        while (line := self.line(limit)) not in (b"\r\n", b"\n"):  # trailers
            limit -= len(line)

    def line(self, limit: int) -> bytes:
        try:
            return self.wire.until(LINE_END, limit)
        except Transient as failure:
            raise failure if failure.code == 28 else self.cut() from None

    def chunk_size(self) -> int:
        found = re.fullmatch(CHUNK_LINE, self.line(MAX_LINE))
        if not found:
            raise broken(self.wire.peer, "a chunk whose size is no hexadecimal number")
        return int(found[1], 16)

    def decoded(self) -> Iterator[Union[bytes, memoryview]]:
        """The body without its Content-Encoding; gzip no larger than text can become."""
        coding = self.head.get("content-encoding").lower() or "identity"
        if coding == "identity":
            yield from self.pieces()
            return
        if coding not in ("gzip", "x-gzip"):
            raise broken(
                self.wire.peer, f"a Content-Encoding that nobody asked for: {shown(coding[:40])}"
            )
        made = 0
        try:
            for out in gunzip(self.pieces()):
                made += len(out)
                if made > GZIP_RATIO * self.received + BUFFER:
                    raise broken(self.wire.peer, f"a gzip body over {GZIP_RATIO} times its size")
                yield out
        except zlib.error as error:
            raise broken(self.wire.peer, f"a gzip body that is damaged ({error})") from None

    def read(self, limit: int) -> bytes:
        """The first bytes of the body, all of them if they are not more than the limit."""
        data = bytearray()  # bytes would be copied for each piece
        for piece in self.decoded():
            data += piece
            if len(data) > limit:
                break
        return bytes(data[:limit])

    def cut(self) -> "Transient":
        size = "" if self.head.length is None else f" of {self.head.length:,}"
        return Transient(
            18,
            f"connection to {self.wire.peer} lost at {self.received:,}{size} bytes",
            self.wire.problem,
            "the same command again goes on from there",
        )

    def __enter__(self) -> "Reply":  # noqa: PYI034  (Self came with Python 3.11)
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the connection at the next response, or closed."""
        if (
            not self.ended
            and self.head.length is not None
            and self.head.length - self.received <= MAX_ANSWER
            and not exception[0]
        ):
            with contextlib.suppress(Failure):
                for _ in self.pieces():
                    pass
        if not self.ended or not self.keep:
            self.keep = False
            self.wire.close()


def gunzip(pieces: Iterable[memoryview]) -> Iterator[bytes]:
    """What these bytes decode to, a bounded amount at a time: one member after another, each with its checksum
    (RFC 1952 section 2.2). zlib.error for what is no gzip, or not all of it."""
    decoder = zlib.decompressobj(wbits=31)  # 31: with gzip's head and checksum
    for step in (
        piece[start : start + GZIP_STEP]
        for piece in pieces
        for start in range(0, len(piece), GZIP_STEP)
    ):
        rest, full = bytes(step), False
        while rest or full:
            if decoder.eof:
                decoder = zlib.decompressobj(wbits=31)
            out = decoder.decompress(rest, BUFFER)
            yield out
            rest, full = (
                decoder.unused_data or decoder.unconsumed_tail,
                len(out) == BUFFER and not decoder.eof,
            )
    if not decoder.eof:
        raise zlib.error("it stops in the middle")


class Body:
    """What is sent: bytes as they are, or the content of the files that a str names. Without a length: standard input."""

    def __init__(self, *parts: Union[bytes, str]) -> None:
        self.parts = parts
        found = [None if isinstance(part, bytes) else sendable_file(part) for part in parts]
        self.sizes = [
            len(part) if info is None else info.st_size for part, info in zip(parts, found)
        ]
        self.length = sum(self.sizes) if parts else None
        self.mtime_ns = next((info.st_mtime_ns for info in found if info), 0)
        self.state = [(info.st_size, info.st_mtime_ns) for info in found if info]
        self.start = self.sent = 0  # sent: what was read of standard input
        # 100 Continue, before it is sent
        self.expects = self.length is None or self.length >= EXPECT_FROM

    def rest(self, offset: int) -> "Body":
        """What follows an offset, of a single file. The server has said already that it wants it."""
        rest = Body(*self.parts)
        rest.start, rest.sizes, rest.length, rest.expects = (
            offset,
            self.sizes,
            sum(self.sizes) - offset,
            False,
        )
        return rest

    def changed(self) -> bool:
        """Whether a file has been written to since: what was sent and what follows would not fit together."""
        return Body(*self.parts).state != self.state

    def pieces(self) -> Iterator[Union[bytes, memoryview]]:
        for part, size in zip(self.parts, self.sizes):
            yield from [part] if isinstance(part, bytes) else file_pieces(part, self.start, size)
        for piece in iter(read_input, b"") if self.length is None else ():
            self.sent += len(piece)
            yield piece

    def digest(self) -> str:
        """For Repr-Digest (RFC 9530)."""
        sha256 = hasher("sha256")
        for piece in self.pieces():
            sha256.update(piece)
        return f"sha-256=:{b64(sha256.digest())}:"


def sendable_file(path: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise Failure(
            26,
            f"cannot send {spoken(path)}: it is no regular file",
            "its length is not known in advance",
            "upload sends a folder; cat FILE | ... put - URL anything else",
        )
    return found


def file_pieces(path: str, start: int, end: int) -> Iterator[memoryview]:
    """Exactly these bytes of a file, each piece valid until the next: of one that shrinks meanwhile, nothing is made up."""
    buffer = memoryview(bytearray(min(BUFFER, end - start)))
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while count := file.readinto(buffer[: end - file.tell()]):
                yield buffer[:count]
            have = file.tell()
    except OSError as error:
        raise unreadable(path, error) from None
    if have < end:
        raise Failure(
            26,
            f"{spoken(path)} became shorter while it was read",
            f"{have:,} of {end:,} bytes were there",
            "once more, when nothing writes to it",
        )


def read_input() -> bytes:
    try:
        # None: it was closed before the start, and 0 may be the connection
        return os.read(-1 if sys.stdin is None else 0, BUFFER)
    except OSError as error:
        raise Failure(
            26,
            f"cannot read standard input ({error.strerror})",
            "the server has at most what was read before",
            "put FILE URL",
        ) from None


def unreadable(path: str, error: OSError) -> "Failure":
    try:
        where = f"looked for in {spoken(os.getcwd())}"
    except OSError:
        where = "the current folder is gone"
    return Failure(26, f"cannot read {spoken(path)}: {error.strerror}", where, "check the name")


def unsent(peer: str, error: OSError) -> "Transient":
    return Transient(
        55,
        f"could not send to {peer} ({error.strerror or 'timed out'})",
        "it closed the connection or stopped reading",
        "the same again",
    )


def broken(peer: str, what: str) -> "Failure":
    hint = (
        "curl -v shows what it sends"
        if "\\x15" not in what and "\\x16" not in what
        else "https://: that is TLS"
    )
    return Failure(
        56,
        f"{peer} broke the protocol: {what}",
        "it is no HTTP server, a faulty one, or an attack",
        hint,
    )


def narrate(args: argparse.Namespace, mark: str, text: str) -> None:
    """-v: a head, line by line, in curl's marks; passwords masked."""
    if args.verbose:
        masked = SECRET.sub(
            lambda found: found[1] + b"***", text.encode("utf-8", "surrogateescape")
        )
        for line in masked.decode("utf-8", "backslashreplace").splitlines():
            say(f"{mark} {shown(line)}")


# --- asking: connections, proxies, passwords, redirects, patience ---
Fields = dict[str, str]


class Server:
    """What a client knows of one server."""

    def __init__(self, url: URL, args: argparse.Namespace) -> None:
        if url.scheme == "http" and (args.tls or args.pin or args.cacert):
            raise Failure(
                2,
                f"{url} would go in the clear",
                "--tls, --pin and --cacert ask for TLS; nothing was sent there",
                "https://",
            )
        self.proxy = proxy_for(url, args)
        self.personal = personal(url, args)
        self.reached = False  # once in this run: when it refuses now, it may be back soon


class Client:
    """Asks servers. A thread has its own, and shares with others what is known of the servers."""

    def __init__(
        self, args: argparse.Namespace, servers: Optional[dict[tuple[str, str], Server]] = None
    ) -> None:
        self.args = args
        self.servers = {} if servers is None else servers  # by origin and login
        # the connection kept to each origin: one, for there are servers that serve one at a time
        self.idle: dict[str, Wire] = {}

    def ask(
        self, method: str, url: URL, fields: Optional[Fields] = None, body: Optional[Body] = None
    ) -> Reply:
        """The response that stands at the end of all redirects. Logins stay with the origin that they were given for."""
        fields, own = fields or {}, True
        for _ in range(MAX_REDIRECTS + 1):
            reply = self.exchange(
                method, url, {**fields, **(self.server(url).personal if own else {})}, body
            )
            again = not (body and body.sent)  # what was read of standard input cannot be sent twice
            if again and own and self.can_log_in(reply):
                continue
            if again and reply.head.status == 417 and body and body.expects:
                with reply:
                    body.expects = False  # the server knows no Expect
                continue
            location = reply.head.get("location")
            if reply.head.status not in REDIRECTS or not location:
                return reply
            with reply:
                before, (method, body) = method, redirected(method, reply.head.status, body)
            # they were about the body: Content-Type, Expect, a digest (RFC 9110 section 15.4)
            fields = fields if method == before else {}
            target = url.join(location)
            own = own and target.origin == url.origin
            url = target._replace(login=url.login if own else "")
        raise Failure(
            47,
            f"more than {MAX_REDIRECTS} redirects, the last one to {url}",
            "the server sends in circles",
            "another URL",
        )

    def can_log_in(self, reply: Reply) -> bool:
        """Where none was given, a password may be typed: for this server alone."""
        url, server = reply.url, self.server(reply.url)
        wanted = reply.head.status == 401 and "basic" in reply.head.get("www-authenticate").lower()
        if (
            not wanted
            or server.personal.get("Authorization")
            or url.origin in self.args.asked
            or not os.isatty(2)
        ):
            return False
        with reply:
            self.args.progress.clear()
            self.args.asked[url.origin] = ask_password(url.authority)
        server.personal = personal(url, self.args)
        return True

    def server(self, url: URL) -> Server:
        server = self.servers.get((url.origin, url.login))
        if server is None:
            server = self.servers[url.origin, url.login] = Server(url, self.args)
        return server

    def exchange(self, method: str, url: URL, fields: Fields, body: Optional[Body]) -> Reply:
        """One request and its response. On a kept connection the server may just have hung up: then once more on a new one."""
        request = self.request(method, url, fields, body)
        wire = self.kept(url)
        if wire and method in IDEMPOTENT and (body is None or body.length is not None):
            try:
                return self.converse(wire, request, method, url, body)
            except Transient as failure:
                if failure.code not in (52, 55) or wire.heard:
                    raise
        elif wire:
            wire.close()
        return self.converse(self.dial(url), request, method, url, body)

    def request(self, method: str, url: URL, fields: Fields, body: Optional[Body]) -> bytes:
        # https goes through a tunnel
        proxy = self.server(url).proxy if url.scheme == "http" else None
        all_fields = {
            "Host": url.authority,
            "User-Agent": f"six-httpclient/{VERSION}",
            "Accept": "*/*",
        }
        if proxy and proxy.login:
            all_fields["Proxy-Authorization"] = basic(proxy.login)
        if body is not None:
            all_fields.update(
                {"Transfer-Encoding": "chunked"}
                if body.length is None
                else {"Content-Length": str(body.length)}
            )
            all_fields.update({"Expect": "100-continue"} if body.expects else {})
        return request_head(method, url.full if proxy else url.target, merged(all_fields, fields))

    def converse(
        self, wire: Wire, request: bytes, method: str, url: URL, body: Optional[Body]
    ) -> Reply:
        narrate(self.args, ">", request.decode("utf-8", "surrogateescape"))
        try:
            wire.heard = False
            wire.send(request)
            early = None
            if body is not None:
                early = wire.await_word() if b"\r\nExpect: 100-continue\r\n" in request else None
                early = early or wire.send_body(body)
            reply = Reply(wire, early or wire.head(), method, url)
        except BaseException:
            wire.close()
            raise
        # or the rest of the body would be taken for a request
        reply.keep = reply.keep and early is None
        self.idle[url.origin] = wire
        return reply

    def kept(self, url: URL) -> Optional[Wire]:
        """The connection of the last response, if that has been read to its end. Bytes after it came unasked."""
        wire = self.idle.pop(url.origin, None)
        if wire and wire.start != wire.end:
            wire.close()
        return wire if wire and wire.sock.fileno() >= 0 else None

    def dial(self, url: URL) -> Wire:
        plain = functools.partial(self.plain, url)
        try:
            sock = (
                encrypt(plain, url.host, self.args, ["http/1.1"])
                if url.scheme == "https"
                else plain()
            )
        except OSError as error:
            raise Transient(
                28 if isinstance(error, socket.timeout) else 56,
                f"{url.host} hung up on TLS or stayed silent",
                str(error),
                "http:// instead of https://?",
            ) from None
        except Failure as failure:
            # but not for want of file descriptors here
            passing = failure.code in (6, 7, 28) and os.strerror(errno.EMFILE) not in str(failure)
            if self.server(url).reached and passing:
                raise Transient(
                    failure.code, *(line[7:] for line in str(failure).split("\n"))
                ) from None
            raise
        self.server(url).reached = True
        with contextlib.suppress(OSError):  # it has hung up already, as will be seen
            narrate(self.args, "*", f"connected to {address(sock.getpeername())}")
        return Wire(sock, url.authority, self.args)

    def plain(self, url: URL) -> socket.socket:
        proxy = self.server(url).proxy
        via = proxy or url
        sock = open_connection(
            self.args,
            via_family(via.host, via.port, self.args),
            via.port,
            server_command(url, proxy),
        )
        try:
            if proxy and url.scheme == "https":
                self.tunnel(sock, url, proxy)
        except BaseException:
            sock.close()
            raise
        return sock

    def tunnel(self, sock: socket.socket, url: URL, proxy: URL) -> None:
        """Ask a proxy to pass bytes to the server unread (RFC 9110 section 9.3.6)."""
        goal = f"{url.authority}:{url.port}" if url.port == PORTS[url.scheme] else url.authority
        fields = {
            "Host": goal,
            **({"Proxy-Authorization": basic(proxy.login)} if proxy.login else {}),
        }
        request, wire = (
            request_head("CONNECT", goal, fields),
            Wire(sock, f"the proxy {proxy.authority}", self.args),
        )
        narrate(self.args, ">", request.decode())
        wire.send(request)
        head = wire.head()
        if not 200 <= head.status < 300:
            raise (Transient if head.status in PASSING and self.server(url).reached else Failure)(
                56,
                f"the proxy {proxy.authority} does not connect to {goal}: {head.status} {shown(head.reason)}",
                "it allows other ports only, cannot reach the server, or asks for a password",
                "--proxy http://USER:PASSWORD@HOST:PORT",
            )

    def close(self) -> None:
        for wire in self.idle.values():
            wire.close()

    def same_request(self, method: str, url: URL, fields: Fields) -> Callable[[URL], bytes]:
        """What makes requests that differ in nothing but the target: one is made for all."""
        mark = url._replace(target="\0")
        whole = self.request(method, mark, {**fields, **self.server(url).personal}, None)
        before, after = whole.split(b"\0")
        return lambda each: before + each.target.encode() + after

    def pipeline(
        self, method: str, urls: Iterable[URL], make: Callable[[URL], bytes]
    ) -> Iterator[tuple[URL, Reply]]:
        """Ask for many things of one server without waiting in between; the responses come in the same order.
        It starts with one request, and doubles while the connection holds: not every server keeps it open.
        A URL for which make() gives nothing is left out."""
        waiting, asked, window = deque(urls), deque[URL](), 1
        most = PIPELINE if waiting and not self.server(waiting[0]).proxy else 1
        wire: Wire | None = None
        try:
            while waiting or asked:
                url = (asked or waiting)[0]
                wire = wire or self.kept(url) or self.dial(url)
                # several in one segment
                room = window - len(asked) if len(asked) <= window // 2 else 0
                new = [waiting.popleft() for _ in range(min(room, len(waiting)))]
                asked.extend(self.send_all(wire, new, make))
                if not asked:
                    continue
                with Reply(wire, wire.head(), method, asked.popleft()) as reply:
                    yield reply.url, reply
                window = min(2 * window, most) if reply.keep else 1
                if not reply.keep:
                    wire = None
                    waiting.extendleft(reversed(asked))
                    asked.clear()
            if wire:
                self.idle[url.origin], wire = wire, None
        finally:
            if wire:
                wire.close()

    def send_all(self, wire: Wire, urls: list[URL], make: Callable[[URL], bytes]) -> Iterator[URL]:
        """Send requests, small ones together; which there were."""
        data = b""
        for url in urls:
            if request := make(url):
                if self.args.verbose:
                    head, _, _ = request.partition(b"\r\n\r\n")
                    narrate(self.args, ">", head.decode("utf-8", "surrogateescape"))
                data += request
                yield url
            if len(data) > TLS_SLICE:
                wire.send(data)
                data = b""
        wire.send(data)


def redirected(method: str, status: int, body: Optional[Body]) -> tuple[str, Optional[Body]]:
    """How to go on after a redirect (RFC 9110 section 15.4)."""
    if status == 303 and method != "HEAD" or status in (301, 302) and method == "POST":
        return "GET", None
    if body is not None and body.sent:
        raise Failure(
            47,
            "the server redirects the upload, but standard input cannot be sent twice",
            "it has been read",
            "send to the new address, or from a file",
        )
    return method, body


def merged(fields: Fields, others: Fields) -> Fields:
    """Fields of any case over fields of any case; an empty value takes one away, as with curl."""
    named = {name.lower(): (name, value) for name, value in [*fields.items(), *others.items()]}
    return {name: value for name, value in named.values() if value}


def request_head(method: str, target: str, fields: Fields) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def personal(url: URL, args: argparse.Namespace) -> Fields:
    """What the user gave for one server alone: -H, and the login."""
    fields = dict(args.header)
    if "authorization" not in {name.lower() for name in fields}:
        fields["Authorization"] = authorization(url, args)
    return fields


def authorization(url: URL, args: argparse.Namespace) -> str:
    """The login for a server: from the URL, the command line, the environment if the server is --host's, or .netrc."""
    if login := url.login or args.user:
        return basic(login)
    if args.token:
        return f"Bearer {args.token}"
    if password := args.asked.get(url.origin) or given_password(args, url.host, url.port):
        return basic(":" + password)
    path = os.path.expanduser("~/.netrc")
    return netrc_login(path, url.host) if os.path.isfile(path) else ""


def netrc_login(path: str, host: str) -> str:
    import netrc

    try:
        found = netrc.netrc(path).authenticators(host)
    except (OSError, ValueError, netrc.NetrcParseError) as error:
        # ValueError: it is not UTF-8. Their own texts quote words of a password
        reason = (
            error.strerror
            if isinstance(error, OSError)
            else f"it is malformed near line {getattr(error, 'lineno', '?')}"
        )
        raise Failure(
            26,
            f"cannot read {spoken(path)}: {reason}",
            "it may hold the login for this server",
            "repair or rename it",
        ) from None
    return basic(f"{found[0]}:{found[2]}") if found else ""


def proxy_for(url: URL, args: argparse.Namespace) -> Optional[URL]:
    """HTTP_PROXY in capitals is not read: a web server sets that from a request's Proxy header."""
    names = [
        f"{url.scheme}_proxy",
        "HTTPS_PROXY" if url.scheme == "https" else "all_proxy",
        "all_proxy",
        "ALL_PROXY",
    ]
    text = (
        args.proxy if args.proxy is not None else next(filter(None, map(os.environ.get, names)), "")
    )
    direct = (
        (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "")
        if args.proxy is None
        else ""
    )
    if not text or any(
        each == "*" or f".{url.host}".endswith("." + each.lstrip("."))
        for each in direct.lower().replace(",", " ").split()
    ):
        return None
    proxy = parse_url(text if "://" in text else "http://" + text)
    if proxy.scheme != "http":
        raise Failure(
            2,
            f"{proxy} is no proxy that is spoken to without TLS",
            "nothing was sent",
            "http://HOST:PORT, for https too",
        )
    return proxy


def via_family(host: str, port: int, args: argparse.Namespace) -> str:
    """With -4 or -6, the host's address of that kind."""
    if not args.family:
        return host
    for family, target in resolve(host, port, socket.SOCK_STREAM):
        if family == args.family:
            return str(target[0])
    raise Failure(
        6,
        f'host "{host}" has no address of the kind asked for',
        "-4 is for IPv4, -6 for IPv6",
        "leave it out",
    )


def check(reply: Reply) -> Reply:
    """The response, if it is a success; its first lines as a failure otherwise (and never in a file). None is a redirect to nowhere,
    as a store sends for another region's bucket, nor 207, by which WebDAV tells that some of it failed."""
    head = reply.head
    if head.status < 300 and head.status != 207:
        return reply
    with reply:
        try:
            lines = error_lines(head, reply.read(MAX_ANSWER))
        except Failure:
            lines = ""
    what = f"{reply.url}: {head.status} {shown(head.reason)}"
    text = (
        what,
        f"the server says: {lines}" if lines else "the server gives no reason",
        ADVICE.get(head.status, "-v shows both heads"),
    )
    if head.status in PASSING:
        raise Transient(22, *text, after=retry_after(head))
    raise Failure(22, *text)


def retry_after(head: Head) -> Optional[float]:
    """Seconds, from a number of them or a date (RFC 9110 section 10.2.3)."""
    value = head.get("retry-after")
    if re.fullmatch(LENGTH, value):
        return float(value)
    date = parse_date(value)
    return None if date is None else max(0.0, date - time.time())


def persist(
    args: argparse.Namespace, act: "Callable[[], T]", progress: Callable[[], int] = lambda: 0
) -> "T":
    """Try until it works. --retries counts the tries that got no further; pauses double, and vary so that clients spread."""
    failures, best = 0, progress()
    while True:
        try:
            return act()
        except Transient as failure:
            further = progress() > best
            failures, best = 0 if further else failures + 1, max(best, progress())
            if failures > args.retries or args.retries == 0:
                raise
            pause = (
                PAUSES[0]
                if further
                else min(PAUSES[1] * 2 ** (failures - 1), PAUSES[2]) * (1 - os.urandom(1)[0] / 512)
            )
            pause = pause if failure.after is None else min(failure.after, PAUSES[2])
            args.progress.clear()
            say(
                str(failure).split("\n")[0] + f"; trying again in {pause:.1f} s"
            ) if not args.quiet else None
            time.sleep(pause)


# --- getting: a part, its source, its place ---
class Part:
    """A download on its way: a hidden file beside its destination, and a note of what it belongs to. A short one is fetched
    whole again when it is cut, so it needs no note, and has a name that nobody else makes up."""

    def __init__(
        self, folder: str, url: URL, args: argparse.Namespace, short: bool = False
    ) -> None:
        self.args = args
        self.path = os.path.join(
            folder, f".six-{os.urandom(16).hex()}.part" if short else part_name(url)
        )
        self.note = self.path[: -len("part")] + "json"
        self.source: Source | None = None
        # with several connections: the spans still missing, each [first, end]
        self.left: list[list[int]] = []
        # a lock once several threads write
        self.guard: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self.fd = self.open()
        self.noted = os.fstat(self.fd).st_size > 0
        self.offset = self.recall() if args.resume else 0

    def open(self) -> int:
        """The part, locked: two runs of one download would write into each other."""
        try:
            fd = open_own(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise unwritable(self.path, error, 0) from None
        try:
            lock(fd)
        except BlockingIOError:
            os.close(fd)
            raise Failure(
                23,
                f"{spoken(self.path)} is being written by another process",
                "the same URL is on its way there already",
                "wait for it, or -o another folder",
            ) from None
        found = os.fstat(fd)
        try:
            if os.path.samestat(found, os.lstat(self.path)):
                if found.st_nlink < 2:
                    return fd
                # a run was killed in link(): this is the finished file, which keeps its other name
                os.unlink(self.path)
        except FileNotFoundError:
            pass  # another process has just finished: what was opened bears its final name now
        except OSError as error:
            os.close(fd)
            raise unwritable(self.path, error, 0) from None
        os.close(fd)
        return self.open()

    def recall(self) -> int:
        """How much is here of what the note names; 0 when it cannot be proven."""
        if not self.noted:
            return 0
        try:
            note = read_note(self.note)
            left = [[int(first), int(end)] for first, end in note.pop("left")]
            source, found = noted_source(note), os.fstat(self.fd)
        except (OSError, ValueError, OverflowError, TypeError, KeyError):
            return 0
        size = found.st_size
        whole = size if source.size is None else source.size
        if (
            time.time() - found.st_mtime > PART_AGE
            or not source.validator
            or size > whole
            or left
            and size != whole
        ):
            return 0
        self.source = source
        if any(first < end for first, end in left):
            self.left = left
            return size
        # of a whole one the last byte: its answer proves the rest
        return min(size, whole - 1) if source.size else size

    def begin(self, source: Source) -> None:
        """From the first byte, whatever was here."""
        self.forget()
        self.source = source
        os.ftruncate(self.fd, 0)
        if source.validator and (source.size is None or source.size > NOTED_FROM):
            self.remember()

    def remember(self) -> None:
        """The note. What it calls here must be on the disk first: after a power failure nobody else could tell."""
        if self.source is None:
            return
        left = [list(span) for span in self.left]  # as it is now: writing goes on meanwhile
        if left:
            try:
                getattr(os, "fdatasync", os.fsync)(self.fd)
            except OSError as error:
                if error.errno != errno.EINVAL:  # some file systems know no such thing
                    raise unwritable(self.path, error, 0) from None
        write_note(self.note, {**self.source._asdict(), "left": left})
        self.noted = True

    def forget(self) -> None:
        self.source, self.offset, self.left = None, 0, []
        if self.noted:
            with contextlib.suppress(OSError):
                os.unlink(self.note)
        self.noted = False

    def write(self, data: Union[bytes, memoryview]) -> None:
        """What follows; zeros become a hole, which takes no room on the disk."""
        end, hole = self.offset + len(data), False
        if len(data) >= HOLE_FROM and not data[0] and bytes(data) == bytes(len(data)):
            with contextlib.suppress(OSError):  # a file system that makes no longer files thus
                os.ftruncate(self.fd, end)
                hole = True
        if not hole:
            self.write_at(self.offset, data)
        self.offset = end

    def write_at(self, position: int, data: Union[bytes, memoryview]) -> None:
        view = memoryview(data)
        with self.guard:
            try:
                os.lseek(self.fd, position, os.SEEK_SET)
                while view:
                    view = view[os.write(self.fd, view) :]
            except OSError as error:
                raise unwritable(self.path, error, position + len(data) - len(view)) from None

    def divide(self) -> bool:
        """Cut what is missing into spans, more than there are connections: the quick ones take more of them."""
        size = self.source.size if self.source else None
        if size is None:
            return False
        step = max(SPLIT_FROM, -(-size // (4 * self.args.connections)))
        self.left = [[first, min(first + step, size)] for first in range(self.offset, size, step)]
        try:  # to take the room now, so that a full disk is known before the first byte
            # first: what a run that is killed just then leaves is room, not what came
            self.remember()
            take_room(self.fd, size)
            os.ftruncate(self.fd, size)
        except (OSError, Failure) as problem:
            self.left = []
            with contextlib.suppress(OSError, Failure):
                os.ftruncate(self.fd, self.offset)
                self.remember()
            raise (
                unwritable(self.path, problem, 0) if isinstance(problem, OSError) else problem
            ) from None
        self.offset = size
        return True

    def missing(self) -> int:
        return sum(end - first for first, end in self.left)

    def digest(self, name: str) -> str:
        """Of all that is here: what was fetched in an earlier run counts too."""
        return file_digest(self.path, name)

    def place(
        self, path: str, url: URL, modified: Optional[float], etag: str, replace: bool
    ) -> None:
        """Give it its name, as the last thing of all. A link cannot replace what somebody else put there meanwhile."""
        try:
            if modified is not None:
                # a time that this file system does not know
                with contextlib.suppress(OSError, OverflowError):
                    os.utime(self.path, (modified, modified))
            if etag:
                # only Linux has them, and not on every file system
                with contextlib.suppress(OSError, AttributeError):
                    os.setxattr(
                        self.fd,
                        XATTR,
                        stamp(url, os.fstat(self.fd)) + etag.encode("utf-8", "surrogateescape"),
                    )
            # no old file, or a file system without modes
            with contextlib.suppress(OSError):
                # but not setuid or setgid: it stood for what was there before
                old = os.lstat(path).st_mode
                if stat.S_ISREG(old):  # what a link leads to may be open to all
                    os.chmod(self.path, old & 0o777)
            if os.name == "nt":
                # Windows renames no open file; elsewhere the lock is held until the part has its
                # name
                self.release()
            if replace or not link(self.path, path):
                os.replace(self.path, path)
            self.release()
        except FileExistsError:
            raise exists(path) from None
        except OSError as error:
            raise unwritable(path, error, self.offset) from None
        self.forget()

    def release(self) -> None:
        with self.guard:
            if self.fd >= 0:
                os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Without its place found: what can be continued stays."""
        if self.fd < 0:
            return
        if self.source is None or not self.offset or not self.noted:
            self.discard()
        elif self.left:
            with contextlib.suppress(Failure):  # the note of some seconds ago will do
                self.remember()
        self.release()

    def discard(self) -> None:
        self.forget()
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def take_room(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except AttributeError:
        pass  # macOS and Windows have no such call
    except OSError as error:
        # a file system that cannot, such as ZFS on FreeBSD
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


def open_own(path: str, flags: int) -> int:
    """open() for names that others in this folder can foretell: what they planted is not followed, waited for, or written to."""
    fd = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "it is no regular file")


def read_note(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8", opener=open_own) as file:
            import json  # here: mostly there is no note

            note = json.load(file)
    except RecursionError:
        note = None
    if not isinstance(note, dict):
        raise TypeError("a note that is no object")
    return note


def noted_source(note: dict[str, Any]) -> Source:
    """TypeError or ValueError for one that no run of ours wrote: others may plant a note, and its validator goes into a request's head."""
    source = Source(**note)
    texts = source.url, source.etag, source.modified, source.digest
    if not all(isinstance(text, str) and text.isprintable() for text in texts) or not isinstance(
        source.size, (int, type(None))
    ):
        raise TypeError("a note of wrong types")
    if not re.fullmatch("[0-9a-f]{64}|", source.digest):
        raise ValueError("a note with a digest that is none")
    return source


def write_note(path: str, note: dict[str, Any]) -> None:
    """Whole or not at all."""
    import json

    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + "~")  # a link there may lead to any file
        with open(path + "~", "x", encoding="utf-8") as file:
            json.dump(note, file)
        os.replace(path + "~", path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path + "~")
        raise unwritable(path, error, 0) from None


def part_name(url: URL) -> str:
    """The same for one URL each time, also where a store's signature in it is another one each time."""
    unsigned = re.sub(SIGNATURE, "", url.full) if "?" in url.target else url.full
    return f".six-{hasher('sha256', unsigned.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.part"


class Stream:
    """What goes to standard output, a pipe or a device: as it is, but to a terminal as text, with \\xNN for what is none.
    A download that goes there is continued within this run only."""

    def __init__(self, path: str, args: argparse.Namespace) -> None:
        self.name = "standard output" if path == "-" else spoken(path)
        # closed before the start: the connection may have its number
        if path == "-" and sys.stdout is None:
            raise Failure(
                23,
                "cannot write standard output (it is closed)",
                "whoever started this closed it",
                "the same without >&-",
            )
        try:
            self.fd = 1 if path == "-" else os.open(path, os.O_WRONLY)
        except OSError as error:
            raise unwritable(path, error, 0) from None
        self.decoder = (
            codecs.getincrementaldecoder("utf-8")("backslashreplace")
            if os.isatty(self.fd)
            else None
        )
        self.source: Source | None = None
        self.offset = 0
        self.totals = {args.checksum[0]: hasher(args.checksum[0])} if args.checksum else {}

    def begin(self, source: Source) -> None:
        if self.offset:
            raise Failure(
                33,
                "the rest cannot be fetched alone, and what was written cannot be taken back",
                "the file changed, or the server does not serve ranges",
                "-o FILE, which can start over",
            )
        self.source = source
        if source.digest:
            self.totals["sha256"] = hasher("sha256")

    def forget(self) -> None:
        self.source = None

    discard = forget

    def write(self, data: Union[bytes, memoryview], last: bool = False) -> None:
        self.offset += len(data)
        for total in self.totals.values():
            total.update(data)
        view = memoryview(shown(self.decoder.decode(data, last)).encode() if self.decoder else data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError as error:
            raise Failure(
                23,
                f"cannot write {self.name} ({error.strerror})",
                "what reads it has ended, or its disk is full",
                "-o FILE, with room for it",
            ) from None

    def digest(self, name: str) -> str:
        return self.totals[name].hexdigest()

    def close(self) -> None:
        if self.decoder:
            self.write(b"", last=True)


class Download:
    """One URL on its way to one file, however many requests it takes."""

    def __init__(self, client: Client, url: URL, folder: str, name: str, replace: bool) -> None:
        self.client = client
        self.args = client.args
        self.url = url
        self.folder = folder
        self.name = name  # "" until the first response, which may propose one
        self.path = os.path.join(folder, name)
        # by the user: then it may be a FIFO or device, too
        self.chosen = bool(name) and not replace
        self.stdout = self.chosen and self.path == "-"
        self.replace = bool(replace or self.args.force or self.args.newer)
        self.head: Head | None = None
        self.began = time.monotonic()
        self.received = 0

    def run(self) -> str:
        """saved, or same when it was here already."""
        if persist(self.args, self.probe):
            return "same"
        try:
            return self.into(self.sink(), many=True)
        except Changed:
            return self.into(self.sink(), many=False)

    def into(self, sink: Union[Part, Stream], many: bool) -> str:
        with contextlib.closing(sink):
            done = many and isinstance(sink, Part) and side_by_side(self, sink)
            done = done or persist(self.args, lambda: self.fetch(sink), lambda: sink.offset)
            return self.finish(sink) if done else "same"

    def settle(self, reply: Reply, method: str) -> str:
        """What a response that was asked for in a row makes of it: saved, same, or "" when it needs more than that."""
        if method == "HEAD":
            return "same" * self.same(reply.head)
        short = reply.head.length is not None and reply.head.length <= NOTED_FROM
        with (
            contextlib.suppress(Failure),
            contextlib.closing(Part(self.folder, self.url, self.args, short)) as part,
        ):
            return self.finish(part) if self.receive(reply, part) else "same"
        return ""  # it will be told when it fails once more

    def sink(self) -> Union[Part, Stream]:
        found = look(self.path) if self.chosen else None
        if (
            self.stdout
            or found
            and not stat.S_ISREG(found.st_mode)
            and not stat.S_ISDIR(found.st_mode)
        ):
            return Stream(self.path, self.args)
        return Part(self.folder, self.url, self.args)

    def probe(self) -> bool:
        """Whether the file is here already, by what the server says of it without sending it."""
        name = self.name or safe_name(url_name(self.url))
        if self.stdout or self.args.force or not os.path.isfile(os.path.join(self.folder, name)):
            return False
        with self.client.ask("HEAD", self.url, IDENTITY) as reply:
            if reply.head.status != 200:
                return False  # a URL signed for GET alone refuses HEAD
            self.saw(reply.head)
            return self.here(reply.head)

    def here(self, head: Head) -> bool:
        """Whether the very file is here already. A Failure where what is here is another one, and must stay."""
        found = look(self.path)
        if found is None or self.stdout or self.chosen and not stat.S_ISREG(found.st_mode):
            return False
        regular = stat.S_ISREG(found.st_mode)
        if regular and not (self.args.force and self.replace) and self.same(head):
            return True
        if not regular or not self.replace:
            raise exists(self.path, not self.replace and (self.args.force or self.args.newer))
        return False

    def same(self, head: Head) -> bool:
        """Whether a response is about the very file here, and --checksum agrees."""
        told = Entry(self.name, False, head.length, head.modified, head.get("etag"))
        return told_same(self.args, self.path, self.url, told) and (
            not self.args.checksum
            or file_digest(self.path, self.args.checksum[0]) == self.args.checksum[1]
        )

    def fetch(self, sink: Union[Part, Stream]) -> bool:
        """One request for what is missing, and its body to the end. False when there is nothing to do."""
        asked = dict(WANTED)
        if sink.offset and sink.source and sink.source.validator:
            asked.update({"Range": f"bytes={sink.offset}-", "If-Range": sink.source.validator})
        with self.client.ask("GET", self.url, asked) as reply:
            return self.receive(reply, sink)

    def receive(self, reply: Reply, sink: Union[Part, Stream]) -> bool:
        """A response into its place. gzip is decoded unless it is what was asked for by name, as in a.tar.gz."""
        head = reply.head
        if head.status == 416 and sink.offset:
            return self.out_of_range(head, sink)
        check(reply)
        if head.status == 206:
            self.continues(head, sink)
        elif head.status != 200:
            raise Failure(
                22,
                f"{self.url}: {head.status} {shown(head.reason)}",
                "that is no file",
                "-v shows both heads",
            )
        self.saw(head)
        if sink.offset == 0 and self.here(head):
            return False
        named = any(name.endswith((".gz", ".tgz")) for name in (self.name, url_name(self.url)))
        decode = head.get("content-encoding") not in ("", "identity") and not named
        if head.status == 200:
            source = source_of(self.url, head)
            # offsets and digests are of what is not decoded
            sink.begin(source if not decode else Source(source.url, "", "", None, ""))
        self.args.progress.begin(self.name, sink.offset, sink.source.size if sink.source else None)
        for piece in reply.decoded() if decode else reply.pieces():
            sink.write(piece)
            self.received += len(piece)
            self.args.progress.add(len(piece))
        return True

    def saw(self, head: Head) -> None:
        """A response tells the name, if nobody has chosen one, and the time. Nothing is written before."""
        self.head = head
        if not self.name:
            asked = safe_name(url_name(self.url))
            proposed = disposition_name(head.get("content-disposition"))
            self.name = safe_name(proposed) if proposed else asked
            self.path = os.path.join(self.folder, self.name)
            # the server's choice of a name is no choice of what may be replaced
            self.replace = self.replace and self.name == asked
        refuse_program(self.path)

    def continues(self, head: Head, sink: Union[Part, Stream]) -> None:
        """A partial response must start where we stopped and be of the same file, whatever the server was asked."""
        span, source = content_range(head), sink.source
        if not sink.offset or source is None:
            raise broken(self.url.authority, "a part (206) of what was asked for whole")
        fits = (
            span
            and span[0] == sink.offset
            and span[1] == span[2]
            and source.size in (None, span[2])
        )
        if not fits or not source.fits(head):
            sink.forget()
            raise Transient(
                33,
                f"{self.url.authority} answers a range with another one",
                "it changed meanwhile, or its server is at fault",
                "-o FILE --no-resume",
                after=0,
            )

    def out_of_range(self, head: Head, sink: Union[Part, Stream]) -> bool:
        """416: nothing is missing if the size is what we have and the ETag says that it is the same file."""
        span, source = content_range(head), sink.source
        if (
            span
            and span[2] == sink.offset
            and source
            and source.etag
            and head.get("etag") == source.etag
        ):
            self.saw(head)
            return True
        sink.forget()
        raise Transient(
            33,
            f"{self.url.authority} has not so many bytes of it any more",
            "the file changed",
            "--no-resume",
            after=0,
        )

    def finish(self, sink: Union[Part, Stream]) -> str:
        source = sink.source
        if source and source.size is not None and sink.offset != source.size:
            raise Failure(
                18,
                f"{sink.offset:,} of {source.size:,} bytes came",
                "the server ended the body early",
                "the same again",
            )
        promised = [self.args.checksum, source and source.digest and ("sha256", source.digest)]
        for name, want in filter(None, promised):
            found = sink.digest(name)
            if found != want:
                sink.discard()
                raise Failure(
                    56,
                    f"{self.url} came with a wrong {name}: {found}",
                    f"{want} was promised; nothing is kept of it",
                    "the same again; if it stays, the file there is another one",
                )
        if isinstance(sink, Part):
            modified, etag = (
                (self.head.modified, self.head.get("etag")) if self.head else (None, "")
            )
            sink.place(self.path, self.url, modified, etag, self.replace)
        return "saved"


def side_by_side(download: Download, part: Part) -> bool:
    """Fill the part over several connections, each fetching one span after another. False: it has to come in one piece."""
    args, resumed = part.args, part.offset > 0
    if not part.left:
        many = args.connections > 1 and (
            resumed or persist(args, lambda: rangeable(download, part))
        )
        if not many or not part.divide():
            return False
    # where a password may be asked for: here, and not by several threads at once
    if resumed and os.isatty(2):
        with contextlib.suppress(Failure), download.client.ask("HEAD", download.url):
            pass
    import threading  # not at the top: one connection needs none

    problems, news, part.guard = list[BaseException](), threading.Event(), threading.Lock()
    spans = iter(part.left)

    def one(client: Client, span: list[int]) -> None:
        persist(args, lambda: fetch_span(client, download, part, span, problems), lambda: span[0])

    def work() -> None:
        try:
            with contextlib.closing(Client(args, download.client.servers)) as client:
                for span in spans:  # one iterator for all of them
                    one(client, span)
        except BaseException as problem:  # noqa: BLE001  (raised again in the thread that waits)
            problems.append(problem)
        news.set()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(args.connections)]
    for worker in workers:
        worker.start()
    args.progress.begin(download.name, part.offset - part.missing(), part.offset)
    saved, pause = time.monotonic(), SAVE_EVERY[0]
    while any(worker.is_alive() for worker in workers) and not problems:
        news.wait(min(DRAWN_EVERY, pause))
        news.clear()
        args.progress.add(part.offset - part.missing() - args.progress.done)
        if time.monotonic() - saved >= pause:
            part.remember()
            saved, pause = time.monotonic(), min(2 * pause, SAVE_EVERY[1])
    if problems and isinstance(problems[0], Changed):
        part.discard()  # others may still be writing into it, so the next one is another file
    if problems:
        raise problems[0]
    download.received, part.left = part.offset, []
    return True


def rangeable(download: Download, part: Part) -> bool:
    """Ask for one byte: that tells size, validator, and whether ranges are served at all."""
    with download.client.ask("GET", download.url, {**WANTED, "Range": "bytes=0-0"}) as reply:
        span, source = content_range(reply.head), source_of(download.url, reply.head)
    # ranges are of what is encoded: receive() decodes the whole
    coded = reply.head.get("content-encoding") not in ("", "identity")
    if (
        reply.head.status != 206
        or not span
        or not source.validator
        or span[2] < 2 * SPLIT_FROM
        or coded
    ):
        return False
    download.saw(reply.head)
    if download.here(reply.head._replace(length=span[2])):
        # only now its name is known: the response to one whole request tells the same, and is not
        # read
        return False
    part.begin(source)
    return True


def fetch_span(
    client: Client, download: Download, part: Part, span: list[int], problems: list[BaseException]
) -> None:
    """What is missing of one span. Its first byte moves on as it comes, so that a new try asks for the rest only."""
    source, url = part.source, download.url
    if source is None or problems or span[0] == span[1]:
        return
    asked = {
        "Accept-Encoding": "identity",
        "Range": f"bytes={span[0]}-{span[1] - 1}",
        "If-Range": source.validator,
    }
    with client.ask("GET", url, asked) as reply:
        check(reply)
        fits = reply.head.status == 206 and content_range(reply.head) == (
            span[0],
            span[1],
            source.size,
        )
        if not fits or not source.fits(reply.head):
            raise Changed(
                33,
                f"{url} changed while it was fetched",
                "a range of it is not what was asked for",
                "the same again",
            )
        download.saw(reply.head)
        for piece in reply.pieces():
            if problems:
                return
            if len(piece) > span[1] - span[0]:
                raise broken(url.authority, "a range longer than it says")
            part.write_at(span[0], piece)
            span[0] += len(piece)
    if span[0] < span[1]:
        raise Transient(
            18,
            f"a range of {url} came short",
            f"{span[1] - span[0]:,} bytes of it are missing",
            "the same again",
        )


def refuse_program(path: str) -> None:
    if is_program(path):
        raise Failure(
            23,
            f"{spoken(path)} would be part of a program when it next starts",
            "what a server sends must not run here",
            "-o with another folder or name",
        )


def look(path: str) -> Optional[os.stat_result]:
    with contextlib.suppress(OSError):
        return os.stat(path)
    return None


def told_same(args: argparse.Namespace, path: str, url: URL, told: Entry) -> bool:
    """Whether a file here is the one that a server describes. The ETag that came with it knows best. mtimes are set from
    Last-Modified, so equal ones mean much; with --newer a later one here is as good, and where no time is told the size must do."""
    by_time = args.newer and told.mtime is not None
    if told.etag and not by_time and (known := remembered_etag(path, url)):
        return known == told.etag
    found = look(path)
    if found is None or told.size is not None and told.size != found.st_size:
        return False
    if told.mtime is None:
        return bool(args.newer) and told.size is not None
    return told.mtime // 1 == found.st_mtime // 1 or by_time and told.mtime < found.st_mtime


def file_digest(path: str, name: str) -> str:
    total = hasher(name)
    for piece in file_pieces(path, 0, sendable_file(path).st_size):
        total.update(piece)
    return total.hexdigest()


def stamp(url: URL, found: os.stat_result) -> bytes:
    """What stands before a remembered ETag: it says something of this URL only, and of the file as it was when it came."""
    return f"{part_name(url)} {found.st_size} {found.st_mtime_ns} ".encode()


def remembered_etag(path: str, url: URL) -> str:
    with contextlib.suppress(OSError, AttributeError):
        text, start = os.getxattr(path, XATTR), stamp(url, os.stat(path))
        return (
            text[len(start) :].decode("utf-8", "surrogateescape") if text.startswith(start) else ""
        )
    return ""


def url_name(url: URL) -> str:
    return unquoted(url.path.rpartition("/")[2]) or "index.html"


def sweep(folder: str, names: set[str]) -> None:
    """Remove parts that nobody can continue, or has for a week, and their notes, but none that is locked: somebody writes it."""
    for stem in {name[: -len("part")] for name in names if is_part(name)}:
        with contextlib.suppress(OSError):
            remove_stale(
                [
                    os.path.join(folder, stem + end)
                    for end in ("part", "json")
                    if stem + end in names
                ]
            )


def remove_stale(paths: list[str]) -> None:
    """Remove a part and its note, or the note of an upload, if it is old and nobody has it locked.
    A part without a note or content need not be old."""
    found = os.lstat(paths[0])
    if not stat.S_ISREG(found.st_mode):
        return
    with open(paths[0], "rb") as file:
        alone = len(paths) < 2 and paths[0].endswith(".part")
        useless = lock(file.fileno()) and (alone or not found.st_size)
        for path in paths if useless or time.time() - found.st_mtime > PART_AGE else []:
            os.unlink(path)


def link(source: str, path: str) -> bool:
    """Give a file its name where there is none yet; False where the file system has no links."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except (OSError, AttributeError):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "exists") from None
        return False
    os.unlink(source)
    return True


def lock(fd: int) -> bool:
    """BlockingIOError: another run has it. False on systems and file systems without flock, which do without."""
    with contextlib.suppress(ImportError):
        import fcntl  # not at the top: Windows has none

        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            raise
        except OSError:
            pass  # Lustre, for one, may have none
    return False


def exists(path: str, unasked: bool = False) -> "Failure":
    """Unasked: it may be replaced, but the server alone proposed its name."""
    hint = "--newer replaces it if the server's is newer or of another size, --force always, -o gives another name"
    return Failure(
        23,
        f"{spoken(path)} exists already, and is another file",
        "the server proposed that name, and must not choose what is replaced"
        if unasked
        else "it was left as it is",
        "-o NAME: that of the file to replace, or another" if unasked else hint,
    )


def unwritable(path: str, error: OSError, offset: int) -> "Failure":
    after = f" after {offset:,} bytes" if offset else ""
    return Failure(
        23,
        f"cannot write {spoken(path)}{after}: {error.strerror}",
        "what came until then is kept where that is possible",
        "make room or choose another folder with -o, then the same again",
    )


def get(client: Client) -> int:
    args, folder, name = client.args, client.args.output or "", ""
    if folder == "-" or folder and not os.path.isdir(folder) and not folder.endswith("/"):
        folder, name = os.path.split(folder)
    if len(args.url) > 1 and name and args.output != "-":
        raise Failure(
            2,
            f"{len(args.url)} URLs cannot all be {spoken(args.output)}",
            "nothing was fetched",
            "-o FOLDER/",
        )
    if args.output != "-":
        make_folder(folder or ".")
    return each(
        args,
        [target(text, args) for text in args.url],
        lambda url: tell(args, Download(client, url, folder, name, replace=False)),
    )


def tell(args: argparse.Namespace, download: Download) -> None:
    """Run a download, and say what became of it."""
    verdict = download.run()
    if not download.stdout:
        report(
            args,
            download.url,
            verdict,
            download.path,
            download.received,
            time.monotonic() - download.began,
        )


# --- sending: put, post, delete, mkdir, move ---
def put(client: Client) -> int:
    args = client.args
    paths: list[str] = args.path
    url = target(args.url, args)
    if not url.path.endswith("/") and len(paths) > 1:
        raise Failure(
            2,
            f"{len(paths)} files cannot all become {url}",
            "nothing was sent",
            f"{url}/ is a folder",
        )
    if "-" in paths and url.path.endswith("/"):
        raise Failure(2, "standard input has no name", "nothing was sent", f"{url}NAME")

    def one(path: str) -> None:
        send_file(
            client, path, url.child(os.path.basename(path)) if url.path.endswith("/") else url
        )

    return each(args, paths, one)


def send_file(client: Client, path: str, url: URL) -> None:
    """PUT a file, or standard input for -; again after a lost link, from where the server has it if it can tell."""
    began, body, args = time.monotonic(), Body() if path == "-" else Body(path), client.args
    upload = Upload(client, url, body, path)
    persist(
        args, upload.attempt, lambda: upload.offset
    ) if body.length is not None else upload.attempt()
    report(args, url, upload.verdict, path, upload.sent, time.monotonic() - began)


class Upload:
    """A file on its way to a server, however many requests it takes."""

    def __init__(self, client: Client, url: URL, body: Body, path: str) -> None:
        self.client = client
        self.url = url
        self.body = body
        self.path = path
        self.offset = 0  # what the server is known to have
        self.complete = False  # it said that this is all, and stored: only its answer was lost
        self.announced = False  # that the server speaks the draft
        self.verdict = "sent"
        self.fields: Fields = {}
        self.note = os.path.join(os.path.dirname(path), part_name(url)[: -len("part")] + "json")
        # where it can be continued
        self.resource = self.recall() if client.args.resume and body.length is not None else None

    def recall(self) -> Optional[URL]:
        """Where an earlier run of the same upload stopped, if the file is still the same. Who has made up that note shall get no login."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, Failure):
            note = read_note(self.note)
            resource = self.url.join(note["resource"])
            if (note["size"], note["mtime_ns"], resource.origin) == (
                self.body.length,
                self.body.mtime_ns,
                self.url.origin,
            ):
                return resource._replace(login=self.url.login)
        return None

    def remember(self, resource: URL) -> None:
        """Beside the file, until it is sent whole: where the rest of it may go. Where nothing can be written, it starts over."""
        note = {
            "url": str(self.url),
            "resource": resource.target,
            "size": self.body.length,
            "mtime_ns": self.body.mtime_ns,
        }
        with contextlib.suppress(Failure):
            write_note(self.note, note)

    def prepare(self) -> Fields:
        """A digest stands before the body, so a large file is read twice for it: only for servers that say they take it."""
        if self.body.length is None:
            return {}
        seconds = self.body.mtime_ns // 10**9
        fields = {}
        if EARLIEST <= seconds < LATEST:
            # the second is the one that servers keep
            fields = {"Last-Modified": http_date(seconds), OC_MTIME: str(seconds)}
            if self.client.args.verb == "upload":
                fields["Date"] = fields["Last-Modified"]  # from which nginx takes the file's time
        else:
            self.timeless()
        told = {"want-repr-digest"}
        if self.body.length >= EXPECT_FROM:
            with self.client.ask("OPTIONS", self.url) as reply:
                told = set(reply.head.fields)
        self.announced = "upload-limit" in told and self.client.args.resume
        return {
            **fields,
            **(
                {"Repr-Digest": self.body.digest()}
                if told & {"want-repr-digest", "upload-limit"}
                else {}
            ),
        }

    def attempt(self) -> None:
        if self.body.changed():  # since the last try: the server has the beginning of another file
            self.body, self.resource, self.fields = Body(self.path), None, {}
        if not (self.resource and self.known(self.resource)):
            self.resource = self.create()
        if not self.resource:
            self.send_whole()
        elif not self.complete:
            self.append(self.resource)
        with contextlib.suppress(OSError):
            os.unlink(self.note)
        if self.body.changed():
            raise Failure(
                18,
                f"{spoken(self.path)} changed while it was sent",
                "what the server has may be neither the old nor the new",
                "once more, when nothing writes to it",
            )

    def create(self) -> Optional[URL]:
        """Where the server speaks the draft, begin with an empty upload: the answer tells where it can be continued. (104 would tell it
        meanwhile, but nginx and others pass none on.) Not elsewhere than on the server that was named: it would be sent the login."""
        self.fields, self.offset = self.fields or self.prepare(), 0
        if not self.announced:
            return None
        fields = {
            **self.fields,
            "Upload-Complete": "?0",
            "Upload-Length": str(self.body.length),
            "Upload-Draft-Interop-Version": INTEROP,
        }
        with self.client.ask("PUT", self.url, fields, Body(b"")) as reply:
            resource = (
                check(self.refused(reply))
                .url.join(reply.head.get("location"))
                ._replace(login=self.url.login)
            )
        if not reply.head.get("location") or resource.origin != self.url.origin:
            return None
        self.remember(resource)
        return resource

    @property
    def sent(self) -> int:
        return self.body.sent if self.body.length is None else self.body.length

    def send_whole(self) -> None:
        self.client.args.progress.begin(self.path, 0, self.body.length)
        with self.client.ask("PUT", self.url, self.fields, self.body) as reply:
            self.check_time(check(self.refused(reply)).head)
            doubtful = self.doubtful(reply)
        if doubtful:
            self.look_again()

    @staticmethod
    def doubtful(reply: Reply) -> bool:
        """Whether a success may be the answer to a GET."""
        return reply.head.status == 200 and (
            bool(reply.read(1)) or "last-modified" in reply.head.fields
        )

    @property
    def rare_time(self) -> bool:
        """Whether the file's time is before 1970 or after 2286: not every server takes such a one."""
        return not re.fullmatch("[0-9]{0,10}", self.fields.get(OC_MTIME, ""))

    def refused(self, reply: Reply) -> Reply:
        """The response, unless it may be about a rare time: then the file is sent without."""
        if reply.head.status == 400 and self.rare_time:
            del self.fields[OC_MTIME]
            self.timeless()
            raise Transient(22, f"{self.url}: 400", "that time", "without it", after=0)
        return reply

    def check_time(self, head: Head) -> None:
        if self.rare_time and head.get(OC_MTIME.lower()) != "accepted":
            self.timeless()

    def timeless(self) -> None:
        say(
            f"not kept by the server: the time of {spoken(self.path)}, {self.body.mtime_ns // 10**9} s since 1970"
        )

    def look_again(self) -> None:
        """A server that takes no files, such as Caddy's, may answer PUT as if it were GET: 200, and what it had before."""
        length = None
        with (
            contextlib.suppress(Failure),
            self.client.ask("HEAD", self.url, IDENTITY) as reply,
        ):
            length = reply.head.length if reply.head.status == 200 else None
        if length not in (None, self.sent):
            raise Failure(
                56,
                f"{self.url} has {length:,} bytes, {self.sent:,} were sent",
                "the server answered 200 and stored something else, or nothing",
                "a server that takes files by PUT",
            )
        self.verdict = "sent unverified"

    def known(self, resource: URL) -> bool:
        """Ask how much has arrived; False when the server has forgotten it."""
        with self.client.ask("HEAD", resource, {"Upload-Draft-Interop-Version": INTEROP}) as reply:
            offset = reply.head.get("upload-offset")
            # busy: another connection, lost without its knowledge, still writes there
            if reply.head.status == 503:
                check(reply)
        if (
            reply.head.status >= 400
            or not re.fullmatch(LENGTH, offset)
            or int(offset) > (self.body.length or 0)
        ):
            return False
        self.offset, whole = int(offset), reply.head.get("upload-complete") == "?1"
        self.complete = whole and self.offset == self.body.length
        return self.complete or not whole

    def append(self, resource: URL) -> None:
        self.client.args.progress.begin(self.path, self.offset, self.body.length)
        fields = {
            "Content-Type": "application/partial-upload",
            "Upload-Offset": str(self.offset),
            "Upload-Complete": "?1",
            "Upload-Draft-Interop-Version": INTEROP,
        }
        with self.client.ask("PATCH", resource, fields, self.body.rest(self.offset)) as reply:
            if reply.head.status == 409:
                raise Transient(
                    55,
                    "the server has another amount of it than it said",
                    "it is still busy with what came",
                    "the same again",
                )
            self.check_time(check(reply).head)


def post(client: Client) -> int:
    args = client.args
    url, fields, body = target(args.url, args), {}, Body(b"")
    if args.form and args.data is not None:
        raise Failure(
            2,
            "--data and --form are two bodies",
            "a request has one; nothing was sent",
            "--form NAME=VALUE for both",
        )
    if args.form:
        boundary = os.urandom(16).hex()
        body = Body(*form_parts(args.form, boundary))
        fields["Content-Type"] = f"multipart/form-data; boundary={boundary}"
    elif args.data is not None:
        text = args.data if args.data != "-" else "@-"
        body = (
            (Body() if text == "@-" else Body(text[1:]))
            if text.startswith("@")
            else Body(os.fsencode(text))
        )
        fields["Content-Type"] = (
            "application/octet-stream"
            if text.startswith("@")
            else "application/x-www-form-urlencoded"
        )
    args.progress.begin(str(url), 0, body.length)
    with client.ask("POST", url, fields, body) as reply:
        check(reply)
        sink = Stream("-", args)
        for piece in reply.decoded():
            sink.write(piece)
        sink.close()
    report(args, url, "posted", "", body.length or 0, None) if args.json else None
    return 0


def form_parts(forms: Sequence[str], boundary: str) -> list[Union[bytes, str]]:
    """The parts of multipart/form-data (RFC 7578): NAME=VALUE as it stands, NAME=@FILE with the file's content."""
    parts: list[bytes | str] = []
    for form in forms:
        name, equals, value = form.partition("=")
        if not equals:
            raise Failure(
                2,
                f"--form {spoken(form)} has no equals sign",
                "nothing was sent",
                "--form NAME=VALUE or --form NAME=@FILE",
            )
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{quoted(name)}"'
        if value.startswith("@"):
            head += f'; filename="{quoted(os.path.basename(value[1:]))}"\r\nContent-Type: application/octet-stream'
        parts += [
            os.fsencode(head + "\r\n\r\n"),
            value[1:] if value.startswith("@") else os.fsencode(value),
            b"\r\n",
        ]
    return [*parts, f"--{boundary}--\r\n".encode()]


def quoted(name: str) -> str:
    """For a quoted string in a form's head, as browsers do it."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def delete(client: Client) -> int:
    args = client.args

    def one(url: URL) -> None:
        persist(args, lambda: simple(client, "DELETE", url))
        report(args, url, "deleted", "", 0, None)

    return each(args, [target(text, args) for text in args.url], one)


def simple(client: Client, method: str, url: URL, fields: Optional[Fields] = None) -> None:
    with client.ask(method, url, fields) as reply:
        check(reply)


def mkdir(client: Client) -> int:
    args = client.args
    url = folder_url(target(args.url, args))  # nginx insists on the slash
    simple(client, "MKCOL", url)
    report(args, url, "made", "", 0, None)
    return 0


def move(client: Client) -> int:
    args = client.args
    url = target(args.url, args)
    # a folder is renamed like a file, not moved into itself
    sibling = url._replace(target=url.path.rstrip("/"))
    # a:b is no scheme
    new = (
        sibling.join(encoded(args.new, "/?").replace(":", "%3A"))
        if "://" not in args.new
        else target(args.new, args)
    )
    simple(client, "MOVE", url, {"Destination": new.full, "Overwrite": "T" if args.force else "F"})
    report(args, url, "moved", str(new), 0, None)
    return 0


def head(client: Client) -> int:
    args = client.args
    url = target(args.url, args)
    with client.ask("HEAD", url) as reply:
        text = reply.head.text.rstrip("\n")
    if args.json:
        fields = {
            name: value.encode("utf-8", "surrogateescape").decode(errors="backslashreplace")
            for name, value in reply.head.fields.items()
        }
        emit_json(args, {"url": str(url), "status": reply.head.status, "fields": fields})
    else:
        emit(args, shown(text))
    check(reply) if reply.head.status >= 400 else None
    return 0


# --- folders: list, mirror, upload ---
def listing(client: Client, url: URL) -> tuple[URL, list[Entry]]:
    """The index of a folder: where it stands, and its entries. JSON is asked for, any page of links will do."""
    with client.ask(
        "GET",
        url,
        {"Accept": "application/json, text/html;q=0.9, */*;q=0.1", "Accept-Encoding": "gzip"},
    ) as reply:
        check(reply)
        data = reply.read(MAX_LISTING + 1)
    if len(data) > MAX_LISTING:
        raise Failure(
            56,
            f"the index of {url} is over {MAX_LISTING:,} bytes",
            "no more is read into memory",
            "a smaller folder",
        )
    text, kind = data.decode("utf-8", "surrogateescape"), reply.head.get("content-type")
    try:
        return reply.url, json_entries(text, reply.url) if "json" in kind else html_entries(
            text, reply.url
        )
    except (TypeError, ValueError, RecursionError):
        raise broken(url.authority, "an index that is no JSON list though it says so") from None


def list_folder(client: Client) -> int:
    args = client.args
    url = folder_url(target(args.url, args))
    _, entries = persist(args, lambda: listing(client, url))
    for entry in sorted(entries, key=lambda entry: entry.name):
        if args.json:
            emit_json(
                args,
                {
                    **entry._asdict(),
                    "name": os.fsencode(entry.name).decode(errors="backslashreplace"),
                },
            )
        else:
            size = "-" if entry.size is None else f"{entry.size}"
            when = (
                "-"
                if entry.mtime is None
                else time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime))
            )
            emit(args, f"{size:>12}  {when:16}  {spoken(entry.name)}{'/' * entry.folder}")
    return 0


def mirror(client: Client) -> int:
    args = client.args
    url = folder_url(target(args.url, args))
    name = (
        url.host
        if url.path == "/"
        else safe_name(url_name(url._replace(target=url.path.rstrip("/"))))
    )
    code = mirror_folder(client, url, url, args.output or name, 0)
    args.progress.summary(args)
    return code


def mirror_folder(client: Client, root: URL, url: URL, dest: str, depth: int) -> int:
    """A folder and those in it: what is the same is not fetched, a bad file stops nothing."""
    args = client.args
    here, entries = persist(args, lambda: listing(client, url))
    if here.origin != root.origin or not here.path.startswith(root.path) or depth > MAX_DEPTH:
        raise Failure(
            56, f"{url} leads out of {root}, or too deep", "it was not followed", "mirror that one"
        )
    there = make_folder(dest, strict=depth > 0)
    files, folders = list[Entry](), list[str]()
    for entry in entries:
        if not legal(entry.name, args.hidden):
            say(
                f"skipped {spoken(entry.name)}: not a name that may come from a server (--hidden takes those with a dot)"
            )
        elif entry.folder:
            folders.append(entry.name)
        else:
            files.append(entry)
    code = mirror_files(client, here, dest, there, files)

    def one(name: str) -> int:
        return mirror_folder(
            client, root, folder_url(here.child(name)), os.path.join(dest, name), depth + 1
        )

    further = each(args, folders, one)
    return code or further


def mirror_files(
    client: Client, base: URL, dest: str, there: set[str], entries: list[Entry]
) -> int:
    """Fetch a folder's files: asked for in a row as long as all goes well, what is left then one by one, with patience."""
    args = client.args
    args.progress.expect(len(entries))
    known = there if not args.force else set[str]()

    def is_same(entry: Entry) -> bool:
        """By what the index itself tells."""
        told = entry.name in known and entry.size is not None and entry.mtime is not None
        path = os.path.join(dest, entry.name)
        return told and told_same(args, path, base.child(entry.name), entry)

    jobs = {base.child(entry.name): entry.name for entry in entries if not is_same(entry)}
    for _ in range(len(entries) - len(jobs)):
        args.progress.count("same")

    def settle(url: URL, reply: Reply, method: str) -> None:
        download = Download(client, url, dest, jobs[url], replace=True)
        verdict = download.settle(reply, method) if reply.head.status == 200 else ""
        if verdict:
            report(args, url, verdict, download.path, download.received, None)
            del jobs[url]

    def in_a_row(method: str, urls: list[URL]) -> None:
        make = client.same_request(method, base, WANTED)
        quickly(client, method, urls, make, lambda url, reply: settle(url, reply, method))

    in_a_row("HEAD", [url for url, name in jobs.items() if name in known])
    begun = set(filter(is_part, there))
    in_a_row("GET", [url for url in jobs if not begun or part_name(url) not in begun])
    return each(
        args,
        list(jobs),
        lambda url: tell(args, Download(client, url, dest, jobs[url], replace=True)),
    )


def quickly(
    client: Client,
    method: str,
    urls: Iterable[URL],
    make: Callable[[URL], bytes],
    settle: Callable[[URL, Reply], None],
) -> None:
    """Ask for all of them in a row, and for the rest once more where a link broke, as long as that gets further.
    A Failure of one is told when it is tried by itself."""
    left, before = dict.fromkeys(urls), -1
    while left and len(left) != before:
        before = len(left)
        with contextlib.suppress(Failure):
            for url, reply in client.pipeline(method, list(left), make):
                del left[url]
                settle(url, reply)
            return


def upload(client: Client) -> int:
    args = client.args
    if not os.path.isdir(args.dir):
        raise Failure(
            26, f"{spoken(args.dir)} is no folder here", "upload sends a folder", "put sends files"
        )
    url = folder_url(target(args.url, args))
    code = upload_folder(client, args.dir, url, 0)
    args.progress.summary(args)
    return code


def upload_folder(client: Client, path: str, url: URL, depth: int) -> int:
    """Send what the server has not, or has otherwise. Links and special files are told and left out."""
    args = client.args
    if depth > MAX_DEPTH:
        raise Failure(
            26,
            f"{spoken(path)} is more than {MAX_DEPTH} folders deep",
            "it was left out",
            "upload that one",
        )
    # before the server makes a folder: it may share this very one, and then there is no end
    files, folders = sendable(path, args)
    there = remote(client, url)
    args.progress.expect(len(files))
    code = upload_files(client, {url.child(entry.name): entry.path for entry in files}, url, there)
    further = each(
        args,
        folders,
        lambda entry: upload_folder(
            client, entry.path, folder_url(url.child(entry.name)), depth + 1
        ),
    )
    return code or further


def upload_files(
    client: Client, jobs: dict[URL, str], base: URL, there: Optional[dict[str, Entry]]
) -> int:
    """Send a folder's files: short ones in a row as long as all goes well, what is left then one by one, with patience."""
    args = client.args
    known = {at: told for at in jobs if (told := told_of(at, there))}
    unsure = {at for at, told in known.items() if told.size is None or told.mtime is None}

    def heard(at: URL, reply: Reply) -> None:
        if reply.head.status in (200, 404):
            found = reply.head.length if reply.head.status == 200 else None
            known[at] = Entry("", False, found, reply.head.modified)
            unsure.discard(at)

    def ask(at: URL) -> None:
        with client.ask("HEAD", at, IDENTITY) as reply:
            heard(at, reply)

    quickly(client, "HEAD", list(unsure), client.same_request("HEAD", base, IDENTITY), heard)
    # a server that gave one file our time keeps it
    exact = any(told.etag or stored_same(jobs[at], told, exact=True) for at, told in known.items())

    def is_same(at: URL) -> bool:
        return at in known and stored_same(jobs[at], known[at], exact)

    row = Row(client, jobs)
    quickly(
        client,
        "PUT",
        [at for at in jobs if at not in unsure and not is_same(at)],
        row.request,
        row.settle,
    )

    def one(at: URL) -> None:
        if at in unsure:
            persist(args, lambda: ask(at))
        if is_same(at):
            return report(args, at, "same", jobs[at], 0, None)
        send_file(client, jobs[at], at)

    return each(args, list(jobs), one)


def told_of(at: URL, there: Optional[dict[str, Entry]]) -> Optional[Entry]:
    """What an index tells of a file: nothing, if it is not there; an empty entry, if nobody knows."""
    name = url_name(at)
    return Entry(name, False) if there is None else there.get(name)


def stored_same(path: str, told: Entry, exact: bool) -> bool:
    """Whether a server has this file: of the same size and time, or of a later time where it is that of its coming."""
    found = look(path)
    if found is None or told.mtime is None or told.size != found.st_size:
        return False
    ours, theirs = found.st_mtime_ns // 10**9, told.mtime // 1
    return theirs == ours or not exact and theirs > ours


class Row:
    """Short files that are sent without waiting in between. Whatever is no plain success is left to be sent by itself."""

    def __init__(self, client: Client, jobs: dict[URL, str]) -> None:
        self.client = client
        self.jobs = jobs  # what is sent is none any more
        self.sent: dict[URL, Upload] = {}
        self.plain = True  # no answer yet that all others would get too

    def request(self, url: URL) -> bytes:
        path = self.jobs[url]
        with contextlib.suppress(Failure):
            body = Body(path)
            if self.plain and body.length is not None and body.length <= NOTED_FROM:
                upload = self.sent[url] = Upload(self.client, url, body, path)
                upload.fields = upload.prepare()
                fields = {**upload.fields, **self.client.server(url).personal}
                return self.client.request("PUT", url, fields, body) + b"".join(
                    map(bytes, body.pieces())
                )
        return b""

    def settle(self, url: URL, reply: Reply) -> None:
        upload, status = self.sent.pop(url), reply.head.status
        done = status < 300 and status != 207
        doubtful = status in REDIRECTS or status == 401 or done and upload.doubtful(reply)
        self.plain = self.plain and not doubtful
        if done and not doubtful and not upload.body.changed():
            upload.check_time(reply.head)
            report(self.client.args, url, "sent", upload.path, upload.sent, None)
            self.client.args.progress.add(upload.sent)
            del self.jobs[url]


def sendable(
    path: str, args: argparse.Namespace
) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """A folder's files and folders, in order of their names."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(path, error) from None
    hidden = [
        entry
        for entry in entries
        if entry.name.startswith(".") and (not args.hidden or is_part(entry.name))
    ]
    odd = [
        entry
        for entry in entries
        if entry.is_symlink() or not entry.is_file() and not entry.is_dir()
    ]
    for entry in [*hidden, *odd]:
        kept = "hidden (--hidden sends it)" if entry in hidden else "a link or special file"
        why = "an unfinished transfer" if is_part(entry.name) else kept
        say(f"skipped {spoken(entry.path)}: {why}")
    plain = [entry for entry in entries if entry not in hidden and entry not in odd]
    return [entry for entry in plain if entry.is_file()], [
        entry for entry in plain if entry.is_dir()
    ]


def remote(client: Client, url: URL) -> Optional[dict[str, Entry]]:
    """What a server has in a folder, which is made if missing; None when it does not tell."""
    if persist(client.args, lambda: missing(client, url)):
        # many servers make folders as they are needed, and know no MKCOL
        with contextlib.suppress(Failure):
            simple(client, "MKCOL", url)
        return {}
    try:
        return {
            entry.name: entry for entry in persist(client.args, lambda: listing(client, url))[1]
        }
    except Failure as failure:
        if failure.code != 22:
            raise
        return None


def missing(client: Client, url: URL) -> bool:
    with client.ask("HEAD", url) as reply:
        return reply.head.status == 404


def folder_url(url: URL) -> URL:
    return url if url.path.endswith("/") else url._replace(target=url.path + "/")


def make_folder(path: str, strict: bool = False) -> set[str]:
    """A folder for what comes, and what is there already. Inside a mirror it must not be a link, which could lead out of it."""
    if not os.path.isdir(path):
        refuse_program(path)  # Python runs the __main__.py in a folder
    try:
        os.makedirs(path, exist_ok=True)
        if strict and os.path.islink(path):
            raise OSError(errno.ELOOP, "it is a link to elsewhere")
        # a drop box may be written to, and not read
        names = set(os.listdir(path)) if os.access(path, os.R_OK) else set[str]()
        sweep(path, names)
        return names
    except OSError as error:
        raise unwritable(path, error, 0) from None


VERBS: dict[str, Callable[[Client], int]] = {
    "get": get,
    "put": put,
    "post": post,
    "delete": delete,
    "head": head,
    "list": list_folder,
    "mkdir": mkdir,
    "move": move,
    "mirror": mirror,
    "upload": upload,
}


# --- trust: the same in client.py, httpclient.py (tests/test_twins.py) ---
# how OpenSSL calls an answer in the clear
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE")
TLS_TROUBLE = {
    "ACCESS_DENIED": (
        67,
        "lets nobody in from this address for a minute",
        "too many wrong passwords came from it",
        "again, later",
    ),
    "INTERNAL_ERROR": (
        7,
        "takes no connection now",
        "it has as many clients as it takes, or trouble",
        "again, later",
    ),
    **dict.fromkeys(
        NO_TLS,
        (
            56,
            "speaks no TLS on that port",
            "what came was not encrypted",
            "the same without --tls, --pin, --cacert and --insecure, or http:// instead of https://",
        ),
    ),
    **dict.fromkeys(
        ("UNSUPPORTED_PROTOCOL", "PROTOCOL_VERSION"),
        (
            56,
            "speaks only TLS that is older than 1.2",
            "that is not safe any more",
            "a newer server",
        ),
    ),
}  # by the end of OpenSSL's reason


def given_password(args: argparse.Namespace, host: str, port: int) -> str:
    """--password is for the servers that the command names, the environment's only for what --host and --port name."""
    if args.password is not None:
        return str(args.password)
    return (
        os.environ.get("SIXSOCKETS_PASSWORD", "") if (host, port) == (args.host, args.port) else ""
    )


def wants_tls(args: argparse.Namespace) -> bool:
    return bool(args.tls or args.pin or args.cacert or args.insecure)


def client_tls(args: argparse.Namespace, checked: bool) -> "ssl.SSLContext":
    """Whom to trust. --pin takes the place of authorities: the very certificate is known, whoever signed it."""
    import ssl

    context = tls_context(args, server=False)
    if not checked or args.insecure or args.pin:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    try:
        context.load_verify_locations(args.cacert) if args.cacert else context.load_default_certs()
    except OSError as error:
        raise Failure(
            26,
            f"cannot read the authorities in {shown(args.cacert)} ({error.strerror or error})",
            "a PEM file is expected",
            "--cacert FILE",
        ) from None
    return context


def encrypt(
    dial: Callable[[], socket.socket],
    host: str,
    args: argparse.Namespace,
    speaks: Sequence[str] = (),
) -> "ssl.SSLSocket":
    """A connection whose other end is who it should be; nothing was said on it yet. An OSError: it was lost in the handshake."""
    import ssl

    context = client_tls(args, checked=True)
    if speaks:
        context.set_alpn_protocols(list(speaks))
    secured = over_tls(context, dial(), host)
    try:
        shake_hands(secured)
        found = fingerprint(secured.getpeercert(binary_form=True))
        if args.pin and found != args.pin:
            raise Failure(
                60,
                f"{host} shows another certificate than the one pinned",
                f"its SHA-256 is {found}",
                "if it has been restarted, the pin that it printed; if not, somebody is in between",
            )
    except BaseException as error:
        secured.close()
        if isinstance(error, ssl.SSLCertVerificationError):
            raise Failure(
                60,
                f"{host} is not trusted ({error.verify_message})",
                f"nobody known here has signed its certificate for that name; its SHA-256 is {seen(dial, host, args)}",
                "--cacert FILE, or --pin SHA256 as the server printed it",
            ) from None
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            raise tls_failure(host, str(error.reason)) from None
        raise
    if args.insecure and not args.pin:
        say_once(
            f"not checked, for --insecure: whether {host} is who it says (the SHA-256 of its certificate is {found})"
        )
    return secured


def tls_failure(host: str, reason: str) -> "Failure":
    code, what, why, hint = next(
        (TLS_TROUBLE[end] for end in TLS_TROUBLE if reason.endswith(end)),
        (
            56,
            f"cannot be spoken to by TLS ({reason})",
            "it refuses what this client offers",
            "another server or port",
        ),
    )
    return Failure(code, f"{host} {what}", why, hint)


def seen(dial: Callable[[], socket.socket], host: str, args: argparse.Namespace) -> str:
    """The certificate that is not trusted: OpenSSL tells only who trusts it. Nothing is said on that connection."""
    try:
        with over_tls(client_tls(args, checked=False), dial(), host) as secured:
            secured.do_handshake()
            return fingerprint(secured.getpeercert(binary_form=True))
    except (OSError, Failure):
        return "not to be had"


@functools.cache
def say_once(text: str) -> None:
    say(text)


def pin(text: str) -> str:
    """An argparse type: the SHA-256 of a certificate, as we and as openssl print it."""
    value = text.lower().rpartition("=")[2].replace(":", "").removeprefix("sha256")
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise argparse.ArgumentTypeError(f"{text!r} is not the SHA-256 of a certificate in hex")
    return value


def trust_flags(parser: argparse._ActionsContainer) -> None:
    flag = parser.add_argument
    flag(
        "--password",
        metavar="TEXT",
        help="the password; safer in SIXSOCKETS_PASSWORD (for --host, --port alone)",
    )
    flag("--ask-password", action="store_true", help="ask for it on the terminal")
    flag("--tls", action="store_true", help="encrypt, and trust whom this system trusts")
    flag("--cacert", metavar="FILE", help="trust the authorities in this file (implies --tls)")
    flag(
        "--pin",
        type=pin,
        metavar="SHA256",
        help="trust this very certificate, and no other (implies --tls)",
    )
    flag(
        "--insecure",
        action="store_true",
        help="trust any certificate: somebody in between can read and change all",
    )


# --- end trust ---


# --- showing sizes: the same in client.py, httpserver.py, httpclient.py (tests/test_twins.py) ---
def readable_size(size: float) -> str:
    """Bytes as people read them, such as 999 bytes or 1.2 MB, in powers of 1,000."""
    if size < 999.5:
        return f"{size:.0f} byte{'s' * (round(size) != 1)}"
    unit = ""
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.5:
            break
    return f"{size:.0f} {unit}" if size >= 99.95 else f"{size:.1f} {unit}"


# --- end showing sizes ---


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
DUMPED = 64  # bytes of each call that --trace-hex prints
LONGEST_LINE = 65536  # bytes; neither protocol has a longer line with a secret
SECRET = re.compile(rb"(?i)((?:authorization|cookie):[ \t]*|\bproof=)([^\r\n]*)")
NOTHING_HAPPENED = ("BlockingIOError", "SSLWantReadError", "SSLWantWriteError")


def hexdump(data: bytes) -> str:
    """The first bytes, sixteen a line."""
    text = ""
    for start in range(0, min(len(data), DUMPED), 16):
        row = data[start : start + 16]
        text += f"\n{start:16x}  {row.hex(' '):47}  {re.sub(rb'[^ -~]', b'.', row).decode()}"
    return text


class Traced(socket.socket):
    """A socket that prints a line on stderr for each call.

    It shows what the program asks of the kernel, and what the kernel replies. SYN, ACK and
    retransmission happen inside the kernel: only tcpdump or Wireshark show them.
    """

    began = time.perf_counter()
    numbers = itertools.count(1)
    dump = False  # whether --trace-hex asks for the bytes
    number = sent = received = 0
    lasted = 0.0  # milliseconds of the last call
    handshake = ended = ""  # what a connect() does, what 0 bytes mean
    lines: Mapping[str, bytes] = {}  # for each direction: a line whose end has not come yet

    def show(self, mark: str, text: str, data: Any = b"") -> None:
        self.number = self.number or next(self.numbers)
        if self.dump and data:
            text += hexdump(self.masked(mark, bytes(data)))
        now = 1000 * (time.perf_counter() - self.began)
        say(f"{now:9.3f} ms #{self.number} {mark} {text}")

    def masked(self, mark: str, data: bytes) -> bytes:
        """The bytes, with asterisks for a secret, even if its line came in several pieces."""
        before = self.lines.get(mark, b"")
        text = SECRET.sub(lambda found: found[1] + b"*" * len(found[2]), before + data)
        self.lines = {**self.lines, mark: re.split(b"[\r\n]", text)[-1][:LONGEST_LINE]}
        return text[len(before) :]

    def attempt(self, mark: str, what: str, call: Callable[..., Any], *args: object) -> Any:
        """Make a call of socket.socket. Its failure is a line of the trace too."""
        began = time.perf_counter()
        try:
            return call(*args)
        except OSError as error:
            if type(error).__name__ not in NOTHING_HAPPENED:
                self.show(mark, f"{what}: {error.strerror or 'timed out'}")
            raise
        finally:
            self.lasted = 1000 * (time.perf_counter() - began)

    def connect(self, target: Any) -> None:
        what = f"connect {address(target)}"
        self.attempt("*", what, super().connect, target)
        here = address(self.getsockname())
        self.show("*", f"{what} ok from {here} ({self.handshake} {self.lasted:.2f} ms)")

    def send(self, data: Any, flags: int = 0) -> int:
        count: int = self.attempt(">", "send", super().send, data, flags)
        self.show_sent("send", data, count)
        return count

    def show_sent(self, what: str, data: Any, count: int) -> None:
        self.sent += count
        text = f"{what} {count} of {len(data)} bytes (sent so far {self.sent})"
        self.show(">", text, data[:count])

    def recv(self, size: int, flags: int = 0) -> bytes:
        data: bytes = self.attempt("<", "recv", super().recv, size, flags)
        self.show_received("recv", data, size)
        return data

    def show_received(self, what: str, data: bytes, size: int) -> None:
        self.received += len(data)
        text = f"0 bytes = {self.ended}"
        if data:
            text = f"{len(data)} of at most {size} bytes, waited {self.lasted:.2f} ms"
            text += f" (received so far {self.received})"
        self.show("<", f"{what} {text}", data)

    def close(self) -> None:
        if self.fileno() >= 0:
            self.show("*", f"close (sent {self.sent}, received {self.received})")
        super().close()


# --- end trace ---


# --- streams: the same in all scripts over TCP (tests/test_twins.py) ---
class TracedStream(Traced):
    """The same for TCP, which has connections that begin and end."""

    handshake, ended = "handshake", "peer sent FIN (end of stream)"

    def accept(self) -> tuple[socket.socket, Any]:
        plain, peer = self.attempt("*", "accept", super().accept)
        # the same connection as a traced object: the plain one gives its descriptor away
        conn = TracedStream(fileno=plain.detach())
        conn.show("*", f"accept from {address(peer)}")
        return conn, peer

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        data = self.recv(size or len(buffer), flags)
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def shutdown(self, how: int) -> None:
        self.attempt("*", "shutdown", super().shutdown, how)
        side = "receiving" if how == socket.SHUT_RD else "sending = FIN"
        self.show("*", f"shutdown of {side}")


def socket_class(args: argparse.Namespace) -> type[socket.socket]:
    """The class of all sockets: without --trace the plain one, so that it costs nothing."""
    Traced.dump = args.trace_hex
    return TracedStream if args.trace or args.trace_hex else socket.socket


# --- end streams ---


# --- connecting: the same in client.py, httpclient.py, tcp_upper.py (tests/test_twins.py) ---
CONNECT_TIMEOUT = 5.0  # seconds; a machine that is there answers within one


def open_connection(args: argparse.Namespace, host: str, port: int, server: str) -> socket.socket:
    """Connect to the first of the host's addresses that answers.

    server is the command that would start the server, for the case that there is none.
    """
    limit = min(CONNECT_TIMEOUT, args.timeout)
    for family, target in resolve(host, port, socket.SOCK_STREAM):
        sock = None
        try:
            # an OSError too where there is no IPv6, or too many open files
            sock = socket_class(args)(family, socket.SOCK_STREAM)
            sock.settimeout(limit)
            sock.connect(target)
            # what is sent leaves at once, however short
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(args.timeout)
            return sock
        except OSError as error:
            if sock:
                sock.close()
            problem = error
    raise cannot_connect(problem, address((host, port)), limit, server)


def cannot_connect(problem: OSError, place: str, limit: float, server: str) -> "Failure":
    if isinstance(problem, ConnectionRefusedError):
        return Failure(
            7,
            f"nothing is listening on {place} (connection refused)",
            "the host answered, but no program has that port open",
            server,
        )
    if isinstance(problem, socket.timeout) or problem.errno == errno.ETIMEDOUT:
        return Failure(
            28,
            f"no answer from {place} in {limit:g} s",
            "a firewall, a wrong address, a host that is down, or a server whose queue is full",
            "check the address; on the server, ss -ltn shows a full queue: Recv-Q above Send-Q",
        )
    if isinstance(problem, ConnectionError):
        return Failure(
            7,
            f"{place} answered and hung up at once ({problem.strerror})",
            "the server ended just then, or something on the way refuses",
            f"repeat the command; if it fails again, restart the server: {server}",
        )
    return Failure(
        7,
        f"cannot connect to {place} ({problem.strerror})",
        "this machine has no way to that address",
        "check the address that the server printed, and the network",
    )


# --- end connecting ---


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


class Parser(argparse.ArgumentParser):
    """argparse with a short -h, the manual for --help, and complaints in three lines."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=self.layout, add_help=False, **settings)
        what = "show this; --help shows the manual first"
        self.add_argument("-h", "--help", action="help", help=what)

    def layout(self, prog: str) -> argparse.HelpFormatter:
        """Lines as wide as ours. If argparse had to ask for a width, it would load shutil."""
        return argparse.HelpFormatter(prog, width=100, max_help_position=32)

    def format_help(self) -> str:
        manual = f"{__doc__}\n" if "--help" in sys.argv else ""
        brief = super().format_help().replace("\n\n", "\n")
        # the usage need not name the options that are explained below it
        return manual + re.sub(r"(\s+\[-[^]]*\])+(\n +(?= ))?", " [OPTION ...]", brief, count=1)

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
            for close in difflib.get_close_matches(wrong[1], known, 1):
                hint = f"did you mean {close}? {hint} lists all"
        why = "the command line is not as the help describes it; nothing was done"
        say(str(Failure(2, message, why, hint)))
        raise SystemExit(2)


# --- end errors ---


class Changed(Failure):
    """What is being fetched in pieces is another file now."""


class Transient(Failure):
    """A failure that may pass by itself: worth another try, after so many seconds if the server named them."""

    def __init__(
        self, code: int, error: str, why: str, hint: str, *, after: Optional[float] = None
    ) -> None:
        super().__init__(code, error, why, hint)
        self.after = after


# --- progress and reports ---
class Progress:
    """A line on the terminal while something lasts: for one file, or for many. Elsewhere nothing."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.shown = os.isatty(2) and not (
            args.quiet or args.verbose or args.trace or args.trace_hex
        )
        self.name = ""
        self.total: int | None = None
        self.done = self.first = self.files = 0
        self.results: dict[str, int] = {}  # of many files: how many were saved, same, sent
        self.began = self.drawn = time.monotonic()

    def begin(self, name: str, done: int, total: Optional[int]) -> None:
        self.name = name
        if not self.files:
            self.done, self.first, self.total, self.began = done, done, total, time.monotonic()

    def expect(self, files: int) -> None:
        """There are so many more files: from now on the line is about all of them."""
        self.files += files

    def count(self, result: str) -> None:
        self.results[result] = self.results.get(result, 0) + 1

    def add(self, count: int) -> None:
        self.done += count
        if self.shown and time.monotonic() - self.drawn > DRAWN_EVERY:
            self.draw()

    def draw(self) -> None:
        self.drawn = time.monotonic()
        passed, settled = max(self.drawn - self.began, 1e-3), sum(self.results.values())
        share = (
            settled / self.files if self.files else self.done / self.total if self.total else None
        )
        rate = (self.done - self.first) / passed
        left = (
            (self.total - self.done) / rate
            if self.total and rate and not self.files
            else passed / share - passed
            if share
            else None
        )
        text = (
            f"{settled} of {self.files} files, " * bool(self.files) + f"{spoken(self.name)[:30]} "
        )
        text += f"[{'#' * int(20 * share):20}] {100 * share:3.0f}%  " if share is not None else ""
        text += f"{readable_size(self.done)}  {readable_size(rate)}/s  " + (
            f"{left // 60:.0f}:{left % 60:02.0f} left" if left is not None else ""
        )
        # a terminal whose window was closed: what came in the background goes on
        with contextlib.suppress(OSError):
            width = os.get_terminal_size(2).columns or 80  # 0: a terminal that does not know
            self.put(f"\r{text[: width - 1]}\x1b[K")

    def clear(self) -> None:
        if self.shown:
            self.put("\r\x1b[K")

    def summary(self, args: argparse.Namespace) -> None:
        """The one line about many files."""
        self.clear()
        if not args.quiet and not args.json:
            say(
                ", ".join(f"{count} {result}" for result, count in self.results.items())
                or "nothing to do"
            )

    def put(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


def emit(args: argparse.Namespace, line: str) -> None:
    """A line of the product: to standard output, at once."""
    Stream("-", args).write(f"{line}\n".encode())


def emit_json(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    import json

    emit(args, json.dumps(facts))


def report(
    args: argparse.Namespace, url: URL, result: str, path: str, size: int, seconds: Optional[float]
) -> None:
    """What became of one transfer: a line for people, or with --json an object for programs."""
    args.progress.count(result)
    args.progress.clear()
    if args.json:
        name = os.fsencode(path).decode(errors="backslashreplace")
        emit_json(
            args,
            {
                "result": result,
                "url": str(url),
                "file": name,
                "bytes": size,
                "seconds": seconds and round(seconds, 3),
            },
        )
    elif not args.quiet and not args.progress.files:
        rate = (
            f" ({size:,} bytes, {readable_size(size / max(seconds, 1e-6))}/s)"
            if seconds and result != "same"
            else ""
        )
        what = f"{url} to {path}" if result == "moved" else spoken(path) or url
        say(f"{result} {what}{rate}")


def each(args: argparse.Namespace, items: Iterable[T], act: Callable[[T], Optional[int]]) -> int:
    """Do it for all of them. A failure is told, and the rest goes on; the first one's exit code stands."""
    code = 0
    for item in items:
        try:
            result = act(item) or 0
        except Failure as failure:
            args.progress.clear()
            say(str(failure))
            args.progress.count("failed")
            if args.json:
                emit_json(
                    args,
                    {
                        "result": "failed",
                        "code": failure.code,
                        "error": str(failure).split("\n")[0][7:],
                    },
                )
            result = failure.code
        code = code or result
    return code


# --- the command line ---
def target(text: str, args: argparse.Namespace) -> URL:
    """A URL as people type it: /path is completed by --host and --port, and http:// may be left out."""
    text = (
        host_url(args) + text
        if text.startswith("/")
        else text
        if "://" in text
        else scheme(args) + text
    )
    return parse_url(text)


def host_url(args: argparse.Namespace) -> str:
    host = f"[{args.host}]" if ":" in args.host else args.host
    return f"{scheme(args)}{host}:{args.port}"


def scheme(args: argparse.Namespace) -> str:
    return f"http{'s' * wants_tls(args)}://"


def server_command(url: URL, proxy: Optional[URL]) -> str:
    """The command that starts the server which was not found there."""
    if proxy:
        return f"--proxy or the environment names the proxy {proxy.authority}: is that right?"
    tls = " --tls" * (url.scheme == "https")
    if url.host in ("127.0.0.1", "localhost"):
        return f"python3 httpserver.py --port {url.port}{tls}"
    import shlex

    return f"python3 httpserver.py --host {shlex.quote(url.host)} --port {url.port}{tls}"


def header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(TOKEN, name) or re.search(r"[\r\n\0]", value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME: VALUE")
    return name, value.strip()


def checksum(text: str) -> tuple[str, str]:
    name, _, value = text.partition(":")
    digits = {"md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128}.get(
        name, 0
    )
    if len(value) != digits or not re.fullmatch("[0-9a-fA-F]+", value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:HEX, such as sha256:9f86d0...")
    return name, value.lower()


def common_flags(parser: argparse.ArgumentParser, headers: str) -> None:
    group = parser.add_argument_group("options of every command")
    flag = group.add_argument
    flag("--host", help="completes an argument that starts with / (default 127.0.0.1)")
    flag("--port", type=between(1, 65535), help="the same (default 8000)")
    flag(
        "-H",
        "--header",
        dest=headers,
        action="append",
        type=header,
        metavar="LINE",
        help="send this 'NAME: VALUE' too, or instead; only to the server named",
    )
    trust_flags(group)
    flag("--user", metavar="USER:PASSWORD", help="log in with Basic")
    flag("--token", help="log in with Bearer")
    flag("--proxy", metavar="URL", help="go through this proxy; '' for none")
    flag("-4", dest="family", action="store_const", const=socket.AF_INET, help="IPv4 only")
    flag("-6", dest="family", action="store_const", const=socket.AF_INET6, help="IPv6 only")
    flag(
        "--timeout",
        type=between(0.01, 1e6, float),
        metavar="S",
        help="silence allowed (default 30)",
    )
    flag(
        "--retries",
        type=between(0, 1000),
        metavar="N",
        help="tries that get no further before giving up (default 3)",
    )
    flag("--no-resume", dest="resume", action="store_false", help="start over, whatever is here")
    flag("--quiet", action="store_true", help="no progress, no reports")
    flag("--json", action="store_true", help="a JSON object for each transfer on standard output")
    flag("-v", "--verbose", action="store_true", help="show the heads of requests and responses")
    flag("--trace", action="store_true", help="print a line for each socket call")
    flag("--trace-hex", action="store_true", help="the same, with the first bytes")


DEFAULTS = {
    "host": "127.0.0.1",
    "port": 8000,
    "header": [],
    "later_header": [],
    "user": None,
    "password": None,
    "ask_password": False,
    "tls": False,
    "cacert": None,
    "pin": None,
    "insecure": False,
    "token": None,
    "proxy": None,
    "family": None,
    "timeout": 30.0,
    "retries": 3,
    "resume": True,
    "quiet": False,
    "json": False,
    "verbose": False,
    "trace": False,
    "trace_hex": False,
    "output": None,
    "force": False,
    "newer": False,
    "connections": 1,
    "checksum": None,
    "hidden": False,
    "data": None,
    "form": [],
}


# what the arguments of the verbs are
PLACES = {
    "URL": "the address; one that starts with / is completed by --host and --port",
    "PATH": "a file here, or - for standard input",
    "DIR": "the folder here",
    "NEW": "its new name",
}


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """A parser for these words: only the verb among them gets its flags, for those of ten verbs take a while to build."""
    parser = Parser(prog="httpclient.py")
    common_flags(parser, "header")
    parser.set_defaults(**DEFAULTS)
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog="httpclient.py")

    def verb(name: str, text: str, *places: str) -> Callable[..., object]:
        made = verbs.add_parser(name, argument_default=argparse.SUPPRESS, help=text)
        if name not in words:
            return lambda *names, **more: None
        # Flags are built anew: set_defaults() above would change shared ones, which then undo what
        # stands before the verb.
        # a list of its own: argparse cannot go on with the one from before the verb
        common_flags(made, "later_header")
        for place in places:
            made.add_argument(
                place.rstrip("+").lower(),
                nargs="+" if place.endswith("+") else None,
                metavar=place.rstrip("+"),
                help=PLACES[place.rstrip("+")],
            )
        if name in ("get", "mirror"):
            where = (
                "a folder, a name, or - for standard output"
                if name == "get"
                else "the folder for it"
            )
            made.add_argument("-o", "--output", metavar="DEST", help=where)
            made.add_argument("--force", action="store_true", help="replace what exists")
            made.add_argument(
                "--newer",
                action="store_true",
                help="replace what exists if the server's is newer or of another size",
            )
        return made.add_argument

    flag = verb("get", "fetch files", "URL+")
    flag(
        "--connections",
        type=between(1, 64),
        metavar="N",
        help="fetch ranges of a large file side by side (default 1)",
    )
    flag(
        "--checksum",
        type=checksum,
        metavar="NAME:HEX",
        help="what the file must have, such as sha256:9f86d0...",
    )
    verb("put", "send files, or - for standard input", "PATH+", "URL")
    flag = verb("post", "send data or a form", "URL")
    flag("--data", metavar="TEXT|@FILE|-", help="the body: this text, a file, or standard input")
    flag(
        "--form", action="append", metavar="NAME=VALUE|NAME=@FILE", help="a field or file of a form"
    )
    verb("delete", "delete files", "URL+")
    verb("head", "show a response's head", "URL")
    verb("list", "show what a folder holds", "URL")
    verb("mkdir", "make a folder", "URL")
    flag = verb("move", "rename: NEW is a URL, path or name", "URL", "NEW")
    flag("--force", action="store_true", help="replace what has that name")
    folders = (
        verb("mirror", "fetch a folder, or what changed in it", "URL"),
        verb("upload", "send one, or what changed in it", "DIR", "URL"),
    )
    for flag in folders:
        flag("--hidden", action="store_true", help="names that start with a dot too")
    return parser


def parsed(words: Sequence[str]) -> argparse.Namespace:
    args = build_parser(words).parse_args(words)
    args.header = args.header + args.later_header
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parsed(sys.argv[1:] if argv is None else argv)
    args.progress, args.asked = Progress(args), {}
    try:
        # in lower case, as in URLs: for one of them the environment's password may be
        args.host = parse_url(host_url(args)).host
        if args.ask_password:
            args.password = ask_password("the server")
        with contextlib.closing(Client(args)) as client:
            return VERBS[args.verb](client)
    except Failure as failure:
        args.progress.clear()
        say(str(failure))
        return failure.code
    except KeyboardInterrupt:
        args.progress.clear()
        say("stopped; the same command again goes on from what is here")
        return 130


if __name__ == "__main__":
    sys.exit(main())
