#!/usr/bin/env python3
"""Fetch, send and mirror files over HTTP: a client for any web server, in one file.

    python3 httpclient.py get http://HOST/big.iso        saved as big.iso; repeat it to continue
    python3 httpclient.py get URL -o - | tar x           to standard output; or -o FOLDER, -o NAME
    python3 httpclient.py get URL --connections 4 --checksum sha256:HEX    or -i FILE, with URLs
    python3 httpclient.py put notes.txt photo.jpg http://HOST:8000/inbox/  or --text TEXT URL
    python3 httpclient.py upload DIR http://HOST:8000/inbox/    a folder; repeat it to send changes
    python3 httpclient.py mirror http://HOST/pub/ -o copy       the reverse, from any index page
    python3 httpclient.py list -r /                      --host and --port complete the URL
    python3 httpclient.py post URL --data 'a=1&b=2'      or --data @FILE, --form photo=@me.jpg
    python3 httpclient.py delete|head|mkdir URL, move URL NEW

A download is written to a hidden part (.six-*.part) beside its destination. A note (.six-*.json)
holds the URL, the ETag or Last-Modified, the size, and the ranges that are still to come. A link
that had worked is tried again for two minutes (--retries). Then, or when you repeat the command,
the download continues by Range with If-Range; a file that changed starts over. Length and digest
are checked before the part gets its name. get replaces a file only with --force, or with --newer if
the server's file is newer or of another size. mirror replaces what differs, with --newer only such
files. A name that only the server proposes replaces nothing. A file that would run later is
refused: these scripts, and code in a folder from which Python imports. gzip and deflate are
decoded; what comes in another coding is kept, with its ending.

A file that is here already is not fetched again. The ETag that came with it proves that, where
Linux can keep it (user.six.etag); else Last-Modified and size do. put asks first (HEAD): the same
file is skipped, another one is replaced only with --force. upload sends a file whose size or time
differs from the server's; if the server keeps no times, it sends what is newer. Large uploads wait
for the server's word (Expect: 100-continue). They can be resumed, also through proxies, if the
reply to OPTIONS has Upload-Limit: then the server speaks
draft-ietf-httpbis-resumable-upload-10 (interop version 8). If the server tells another SHA-256 of
what it stored (Repr-Digest) than was sent, the upload is repeated. Files keep their time if the
server knows X-OC-Mtime, and the right to execute if it knows X-Executable: 1. "sent unverified"
means that the server replied 200 and a page, which a server that ignores PUT would do too.

For mirror and upload, --exclude leaves out what matches, as in .gitignore, and --hidden takes names
that start with a dot. --delete deletes what the source does not have, once all else came through:
never what is left out, and more than half only with --force. --dry-run shows it all before.

A password is sent only to the server for which --password, --user, --token, -H or the URL gave it,
never along a redirect to another one. SIXSOCKETS_PASSWORD is only for --host and --port. Otherwise
~/.netrc is read, and on a terminal you are asked. Without https, others can read the password.
--pin SHA256 trusts the certificate that httpserver.py --tls printed.
Proxies come from --proxy or http_proxy, https_proxy, all_proxy, no_proxy.
Exit codes are curl's: 22 for a status of 400 or above, 18 for a transfer that was cut short, 60 for
a certificate that is not trusted.
"""

# The map
#
# Begin with Client.ask(), Client.request(), Client.converse(): a request and its reply. Before them
# are URL and Head, the values that all parts of the program hand to each other.
# The sections, in the order of the file:
#   the conversation    URL, Head, Client, Client.ask(), Client.converse(), Client.retry(), check()
#   the wire            Connection, Reply, BodySource
#   getting             get(), Download, Download.receive(), Download.store(), Span, Part, Stream
#   sending             put(), Upload, post()
#   folders             list_folder(), Tree, mirror(), upload(), copy_folder(), copy_files()
#   logins and proxies  login_fields(), proxy_for()
#   pure functions      parse_url(), parse_head(), safe_name(), html_entries(), printable()
#   shared fences       encrypt(), is_program(), Capture, Traced, open_connection(), Failure, Parser
#   the command line    Transient, Progress, report(), target(), build_parser(), main()
#
# One file on its way: get(), Download.run(), Client.retry(), Download.save(), Download.receive(),
# Client.ask(), Client.converse(), Reply, Download.admits(), Download.store(), Part.write(),
# Download.finish(), Part.rename().
#
# A download is a Part with the spans that are still to come: one, or several for --connections.
# Threads: in Download.side_by_side() each has its own Client and fetches span after span; they
# share the Part, under its lock. The main thread waits and saves the note.
# A connection is idle, sends a request, receives the reply, and is idle again or closed. A failure
# that may pass is a Transient: Client.retry() continues.

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
import binascii
import codecs
import contextlib
import errno
import functools
import io
import itertools
import os
import re
import select
import signal
import site
import socket
import stat
import struct
import time
import unicodedata
import zlib
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional, TypeVar, Union
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

if TYPE_CHECKING:
    import hashlib
    import ssl

Fields = dict[str, str]
Facts = dict[str, Any]  # an object of JSON
Data = Union[bytes, memoryview]

VERSION = "1.0"
T = TypeVar("T")
PORTS = {"http": 80, "https": 443}
BUFFER = 1 << 21  # bytes of one recv() or write() at most: half of it would take a tenth more time
# bytes of one send() under TLS, which must send all of them before the timeout
TLS_SLICE = 1 << 16
MAX_HEAD = 1 << 16  # bytes of a reply's head, or of a chunked body's trailers
MAX_LINE = 4096  # bytes of the line before a chunk
# 1xx replies before the real one: a server may send one each second of an upload
MAX_INTERIM = 1000
MAX_REDIRECTS = 10
MAX_LISTING = 1 << 24  # bytes of an index page: 100,000 names and more
MAX_ANSWER = 1 << 16  # bytes read of an error page, or drained to keep a connection
MAX_DEPTH = 64  # folders within folders, as the servers take them; one can invent more without end
SHOWN_LINES = 3  # of an error page
# bytes decoded at once: zlib copies what follows the end of a gzip member
GZIP_STEP = 1 << 16
GZIP_RATIO = 200  # decoded bytes for each received one; text rarely passes 20, a bomb has 1000
PIPELINE = 64  # requests sent before their replies, for a folder of files
EXPECT_FROM = 1 << 20  # bytes: a larger body waits for 100 Continue, as with curl
EXPECT_WAIT = 1.0  # seconds to wait for it; old servers stay silent
# bytes: a smaller file needs no note, since it is fetched again whole; of a folder, it is in memory
# before it is written
NOTED_FROM = 1 << 18
HOLE_FROM = 1 << 12  # bytes: the block of most file systems
SPLIT_FROM = 1 << 20  # bytes: the smallest span that is worth a connection
# for open(): follow no link, wait for no FIFO
CAREFULLY = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
# the attribute of a saved file that holds its ETag
XATTR = "user.six.etag"
# seconds between notes of a download over several connections: at first, and at most
SAVE_EVERY = 0.05, 1.0
PART_AGE = 7 * 24 * 3600.0  # seconds that a part may wait to be continued
USELESS_AGE = 3600.0  # the same for one that nothing can continue: empty, or with a random name
RANDOM = ".six-" + "0" * 8  # how such a name begins, in all scripts
FIRST_PAUSE = 0.1  # seconds before a retry; each one without progress triples it
LONGEST_PAUSE = 10.0
RETRIES = 16  # without progress; with those pauses, two minutes
FEW_TRIES = 3  # where a server was never reached, or answers that it has trouble
LONGEST_WAIT = 120.0  # seconds that a server may ask to wait
NAME_ROOM = 14  # columns of the progress line: of the name of a file, at least, and a space
DRAWN_EVERY = 0.1  # seconds between two drawings of the progress line
LATEST = 10**11  # seconds since 1970: a later time is a mistake, and no system can show it
EARLIEST = -62135596800  # the same for the year 1: an earlier time has no date in HTTP
EXECUTABLE = "X-Executable"  # our own field: 1 for a file that its owner may execute
OC_MTIME = "X-OC-Mtime"  # the field for a file's time that ownCloud invented
# PATCH is idempotent because we send an Upload-Offset with it
IDEMPOTENT = {"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"}
PASSING = {408, 429, 500, 502, 503, 504}  # statuses that may pass, so that a retry makes sense
REDIRECTS = {301, 302, 303, 307, 308}
# ask for the unencoded bytes of a file, and for their digest
IDENTITY = {"Accept-Encoding": "identity"}
DIGEST_WANTED = {"Want-Repr-Digest": "sha-256=1"}
WANTED = {**IDENTITY, **DIGEST_WANTED}
DRAFT = {"Upload-Draft-Interop-Version": "8"}  # of resumable uploads
ADVICE = {  # what the user may do about a status
    401: "--password, --ask-password or --user NAME:PASSWORD;"
    " SIXSOCKETS_PASSWORD for --host and --port",
    403: "use another login or another name",
    404: "check the name; list shows what is there",
    405: "list shows whether that name exists; else use a server that allows this change",
    409: "list shows what is in the way: move or delete that first",
    411: "put a file, not standard input: the server wants its length first",
    407: "--proxy http://USER:PASSWORD@HOST:PORT",
    412: "--force replaces what is there",
    413: "send a smaller file, or raise the limit of the server",
    507: "make room on the server's disk",
}
# A pattern is compiled when it is first used, and then kept by re; few runs need all.
HEAD_END = re.compile(rb"\n\r?\n")  # old CGI programs end a line with a bare LF
LINE_END = re.compile(rb"\n")
STATUS_LINE = r"HTTP/(1\.[01]) ([1-9][0-9][0-9])(?: (.*))?"
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 section 5.6.2
FIELD = rf"(?m)^(?:({TOKEN}):(.*)|(.+))$"  # or a line that is none
FOLD = r"\n[ \t]+"  # obs-fold: a user agent reads it as a space (RFC 9112 section 5.2)
# labels at most as long as TLS and the resolver accept
HOST = r"[!-,\-/-~]{1,63}(?:\.[!-,\-/-~]{1,63})*\.?"
LENGTH = r"[0-9]{1,18}"
MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
DATE = r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9:]{8}) GMT"
ISO_DATE = r"([0-9-]{10}T[0-9]{2}(?::[0-9]{2}){2})(?:\.[0-9]+)?Z"  # in Caddy's indexes
CHUNK_LINE = rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n"
CONTENT_RANGE = r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)"
SHA256_FIELD = r"(?i)(?:^|,)\s*sha-256=:?([A-Za-z0-9+/]{43}=):?"
FILENAME = r'(?i)\bfilename\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))'
FILENAME_STAR = r"(?i)\bfilename\*\s*=\s*utf-8'[^']*'([^\s;]+)"
LINK = r"(?i)<a\s(?:[^<>]*?\s)?href\s*=\s*(?:\"([^\"<>]*)\"|'([^'<>]*)'|([^\s<>\"']+))"
PLAIN = r"[A-Za-z0-9_%-][A-Za-z0-9_.%~-]*/?"  # a link that needs no resolving; most are like this
# names that Windows does not take, or takes for a device
WINDOWS_DEVICE = r"con(?:in\$|out\$)?|prn|aux|nul|(?:com|lpt)[0-9¹²³]"
WINDOWS_ILLEGAL = rf"(?i)[\\<>:\"|?*\x00-\x1f]|[. ]$|^(?:{WINDOWS_DEVICE})(?=\.|$)"
GZIP_NAMES = ".gz", ".tgz"
DECODED = {"gzip", "deflate"}
MAX_CODINGS = 5  # one around another, as in curl
# what a file is called that is in another coding; if none of these, it is called like the coding
ENDINGS = {"zstd": ".zst", "compress": ".Z", "gzip": ".gz"}
CLOSED = "the server closed it"
PART_NAME = r"\.six-[0-9a-f]{32}\.(?:part|json)"
SIGNED = r"x-(?:amz|goog)-[^&=]*|awsaccesskeyid|googleaccessid|signature|expires"
SIGNATURE = rf"(?i)(?<=[?&])(?:{SIGNED})=[^&]*&?"


# --- the conversation: one request, one reply, and what comes after it ---
class URL(NamedTuple):
    """Where a request goes. As text it is printable ASCII, without the login and without the query,
    which may hold a signature."""

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
        """What a reference from the server means. The login is ours if it leads to the same server;
        one that the server chose is dropped."""
        try:
            found = parse_url(urljoin(self.full, reference))
            return found._replace(login=self.login if found.origin == self.origin else "")
        except (Failure, ValueError):
            raise broken(
                self.authority, f"a link to {reference[:100]!r}, which is no http or https URL"
            ) from None

    def child(self, name: str) -> "URL":
        path = f"{self.path.rstrip('/')}/{quote(os.fsencode(name))}"
        return URL(self.scheme, self.host, self.port, path, self.login)


class Head(NamedTuple):
    """The head of a reply; field names in lower case, repeated fields joined by commas."""

    status: int
    reason: str
    fields: Fields
    length: Optional[int]  # Content-Length, if the body has one
    range: Optional[tuple[int, int, int]]  # see content_range()
    modified: Optional[float]
    codings: list[str]  # what the body was encoded with, one after another
    keep: bool  # whether the server keeps the connection open
    text: str

    def get(self, name: str) -> str:
        return self.fields.get(name, "")

    @property
    def ending(self) -> str:
        """What a file's name ends in that we keep as it came, since we cannot decode it."""
        if set(self.codings) <= DECODED:
            return ""
        known = [ENDINGS.get(each) or "." + re.sub(r"\W", "_", each) for each in self.codings]
        return "".join(known[:MAX_CODINGS])

    @property
    def success(self) -> bool:
        """Not for 207, by which WebDAV tells that some of it failed."""
        return self.status < 300 and self.status != 207


class Origin:
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
        self.login_fields = login_fields(url, args)
        self.reached = False  # once in this run, so that a refusal may pass


class Client:
    """Sends requests to servers. Each thread has its own client; all share what is known of the
    origins."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.origins: dict[tuple[str, str], Origin] = args.origins  # by URL.origin and login
        # one kept connection for each origin: some servers serve one at a time
        self.idle: dict[str, Connection] = {}

    def ask(
        self,
        method: str,
        url: URL,
        fields: Optional[Fields] = None,
        body: Optional["BodySource"] = None,
    ) -> "Reply":
        """Send a request, follow redirects, and return the last reply.

        A login is sent only to the origin that the user gave it for."""
        fields, same_origin = fields or {}, True
        for _ in range(MAX_REDIRECTS + 1):
            login = self.origin(url).login_fields if same_origin else {}
            reply = self.converse(method, url, {**fields, **login}, body)
            head = reply.head
            # standard input, once read, cannot be sent twice
            if not (body and body.sent) and self.meets_demand(reply, body, same_origin):
                continue
            location = head.get("location")
            if head.status not in REDIRECTS or not location:
                return reply
            with reply:
                asked = method
                method, body = redirected(method, head.status, body)
            # without the body, its fields go too: Content-Type, a digest (RFC 9110 section 15.4)
            fields = fields if method == asked else {}
            before, url = url, url.join(location)
            same_origin = same_origin and before.origin == url.origin
        raise Failure(
            47,
            f"more than {MAX_REDIRECTS} redirects, the last one to {url}",
            "the server sends in circles",
            "check the URL; -v shows each redirect",
        )

    def meets_demand(self, reply: "Reply", body: Optional["BodySource"], same_origin: bool) -> bool:
        """Do what the reply demands: leave out the Expect that the server refused, or log in with a
        password that nobody has given and the user is asked for.

        Returns whether to repeat the request."""
        url, head = reply.url, reply.head
        if head.status == 417 and body and body.expects:
            with reply:
                body.expects = False
            return True
        login_fields = self.origin(url).login_fields
        wanted = head.status == 401 and "basic" in head.get("www-authenticate").lower()
        given = not same_origin or login_fields.get("Authorization")
        if not wanted or given or not is_terminal(2):
            return False
        with reply:
            self.args.progress.clear()
            login_fields["Authorization"] = basic(":" + ask_password(url.authority))
        return True

    def origin(self, url: URL) -> Origin:
        key = url.origin, url.login
        if key not in self.origins:
            self.origins[key] = Origin(url, self.args)
        return self.origins[key]

    def request(self, method: str, url: URL, fields: Fields, body: Optional["BodySource"]) -> bytes:
        # https goes through a tunnel, which needs no absolute URL
        proxy = self.origin(url).proxy if url.scheme == "http" else None
        own = {
            "Host": re.sub("%[^]]*", "", url.authority),  # a zone means nothing to the server
            "User-Agent": f"six-httpclient/{VERSION}",
            "Accept": "*/*",
            **proxy_login(proxy),
        }
        if body and body.length is None:
            own["Transfer-Encoding"] = "chunked"
        elif body:
            own["Content-Length"] = str(body.length)
        if body and body.expects:
            own["Expect"] = "100-continue"
        return request_head(method, url.full if proxy else url.target, merged(own, fields))

    def converse(
        self, method: str, url: URL, fields: Fields, body: Optional["BodySource"]
    ) -> "Reply":
        """Send one request and read its reply."""
        request = self.request(method, url, fields, body)
        connection = self.connection(url)
        narrate(self.args, ">", request)
        try:
            connection.send(request)
            early = None
            if body:
                if b"\r\nExpect: 100-continue\r\n" in request:
                    early = connection.wait_for_continue()
                early = early or connection.send_body(body)
            reply = Reply(connection, early or connection.read_head(), method, url)
        except BaseException:
            connection.close()
            raise
        # after an early reply, the server would take the rest of the body for a request
        reply.keep = reply.keep and early is None
        self.idle[url.origin] = connection
        return reply

    def connection(self, url: URL) -> "Connection":
        """The connection of the last reply, if it is open and nothing waits there; else a new one.

        Bytes that follow a reply's body answer no request. An end of the stream waits there too, if
        the server has closed it."""
        kept = self.idle.pop(url.origin, None)
        if kept and kept.sock.fileno() >= 0:
            if kept.start == kept.end and not select.select([kept.sock], [], [], 0)[0]:
                return kept
            kept.close()
        return self.connect(url)

    def connect(self, url: URL) -> "Connection":
        origin, dial = self.origin(url), functools.partial(self.open_socket, url)
        try:
            https = url.scheme == "https"
            name = url.host.partition("%")[0]
            sock = encrypt(dial, name, self.args, ["http/1.1"]) if https else dial()
        except OSError as error:
            raise Transient(
                28 if isinstance(error, socket.timeout) else 56,
                f"{url.host} hung up on TLS or stayed silent",
                str(error),
                "http:// instead of https://?",
                lasting=origin.reached,
            ) from None
        except Failure as failure:
            lines = lines_of(failure)
            if failure.code == 6 and not origin.proxy and not self.args.family:
                # perhaps it is a path, without the slash at its beginning
                path = f"/{url.host}{url.path.rstrip('/')}"
                lines[2] = f"check it; {path} is a path on {self.args.host}:{self.args.port}"
            # a lack of file descriptors on this machine does not pass
            passing = failure.code in (6, 7, 28) and os.strerror(errno.EMFILE) not in str(failure)
            kind = Transient if origin.reached and passing else Failure
            raise kind(failure.code, *lines) from None
        origin.reached = True
        with contextlib.suppress(OSError):  # the peer may have closed it already
            narrate(self.args, "*", f"connected to {address(sock.getpeername())}".encode())
        return Connection(sock, url.authority, self.args)

    def open_socket(self, url: URL) -> socket.socket:
        proxy = self.origin(url).proxy
        via = proxy or url
        host = address_of(via, self.args.family)
        sock = open_connection(self.args, host, via.port, server_command(url, proxy))
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
        request = request_head("CONNECT", goal, {"Host": goal, **proxy_login(proxy)})
        connection = Connection(sock, f"the proxy {proxy.authority}", self.args)
        narrate(self.args, ">", request)
        connection.send(request)
        head = connection.read_head()
        if not 200 <= head.status < 300:
            reason = f"{head.status} {printable(head.reason)}"
            raise Failure(
                7 if head.status in PASSING else 56,
                f"the proxy {proxy.authority} does not connect to {goal}: {reason}",
                "it allows other ports only, cannot reach the server, or asks for a password",
                "--proxy http://USER:PASSWORD@HOST:PORT",
            )

    def close(self) -> None:
        for connection in self.idle.values():
            connection.close()

    def retry(self, act: "Callable[[], T]", count: Callable[[], int] = lambda: 0) -> "T":
        """Repeat act() until it raises no Transient. count() tells how many bytes have passed.

        A link that had worked is tried for two minutes after its last byte, or as often as
        --retries says. Other troubles are tried a few times."""
        tries, most = 0, count()
        while True:
            try:
                return act()
            except Transient as failure:
                tries = 0 if count() > most else tries + 1
                most = max(most, count())
                limit = self.args.retries if failure.lasting else min(self.args.retries, FEW_TRIES)
                pause = failure.after
                if pause is None:
                    pause = min(FIRST_PAUSE * 3**tries, LONGEST_PAUSE)
                if tries > limit or not limit or pause > LONGEST_WAIT:
                    raise failure.given_up(most) from None
                self.args.progress.wait(lines_of(failure)[0], pause)

    def pipeline(
        self, method: str, urls: Sequence[URL], make: Callable[[URL], bytes]
    ) -> Iterator[tuple[URL, "Reply"]]:
        """Send many requests to one server without waiting for each reply. Replies come in the same
        order. Where none comes, the caller asks again by itself.

        Not every server keeps a connection open, so begin with one request, and double that
        number while the connection stays open."""
        asked, window = 0, 1  # how many URLs were asked for, and how many at a time
        most = PIPELINE if urls and not self.origin(urls[0]).proxy else 1
        connection: Connection | None = None
        try:
            for done, url in enumerate(urls):
                if not connection:
                    connection = self.retry(functools.partial(self.connection, url))
                    asked, window = done, 1
                # not one by one: several share a segment
                batch = urls[asked : done + window] if asked - done <= window // 2 else []
                asked += len(batch)
                try:
                    self.send_requests(connection, map(make, batch))
                    reply = Reply(connection, connection.read_head(), method, url)
                except Failure:
                    connection.close()
                    connection = None
                    continue
                with reply:
                    yield url, reply
                window = min(2 * window, most)
                if not reply.keep:
                    connection = None
            if connection:
                self.idle[url.origin], connection = connection, None
        finally:
            if connection:
                connection.close()

    def asking(self, method: str, base: URL, fields: Fields) -> Callable[[URL], bytes]:
        """What makes the requests for files of one server: they differ in their targets alone, so
        that the rest is built only once."""
        request = self.request(method, base, {**fields, **self.origin(base).login_fields}, None)
        before, _, after = request.partition(to_bytes(f"{base.target} HTTP/"))
        return lambda url: b"%b%b HTTP/%b" % (before, to_bytes(url.target), after)

    def send_requests(self, connection: "Connection", requests: Iterable[bytes]) -> None:
        data = b""
        for request in requests:
            narrate(self.args, ">", request)
            data += request
            if len(data) > TLS_SLICE:
                connection.send(data)
                data = b""
        connection.send(data)


def redirected(
    method: str, status: int, body: Optional["BodySource"]
) -> tuple[str, Optional["BodySource"]]:
    """The method and body after a redirect (RFC 9110 section 15.4)."""
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
    """Merge fields, in whatever case. As in curl, an empty value removes a field."""
    named = {name.lower(): (name, value) for name, value in [*fields.items(), *others.items()]}
    return {name: value for name, value in named.values() if value}


def request_head(method: str, target: str, fields: Fields) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return to_bytes("\r\n".join([*lines, "", ""]))


def check(reply: "Reply") -> None:
    """Raise a Failure with the first lines of the body, if the reply is no success.

    A redirect without a Location is no success: a store sends one for a bucket in another
    region."""
    head = reply.head
    if head.success:
        return
    lines = ""
    with reply, contextlib.suppress(Failure):
        lines = error_lines(head, reply.read(MAX_ANSWER))
    text = (
        f"{reply.url}: {head.status} {printable(head.reason)}",
        f"the server says: {lines}" if lines else "the server gives no reason",
        ADVICE.get(head.status, "-v shows both heads"),
    )
    if head.status in PASSING:
        # a proxy says 502 to 504 while the server behind it restarts
        after = retry_after(head)
        raise Transient(22, *text, after=after, lasting=head.status > 501 or after is not None)
    raise Failure(22, *text)


def retry_after(head: Head) -> Optional[float]:
    """Seconds, from a number of them or a date (RFC 9110 section 10.2.3)."""
    value = head.get("retry-after")
    if re.fullmatch(LENGTH, value):
        return float(value)
    date = parse_date(value)
    return None if date is None else max(0.0, date - time.time())


# --- the wire: bytes in, heads and bodies out ---
class Connection:
    """A TCP or TLS connection. buffer[start:end] holds what was received and not yet read."""

    def __init__(self, sock: socket.socket, peer: str, args: argparse.Namespace) -> None:
        self.sock = sock
        self.peer = peer
        self.args = args
        self.piece = args.pace.piece if args.pace else BUFFER  # bytes of one recv() at most
        self.slice = min(self.piece, TLS_SLICE if hasattr(sock, "unwrap") else BUFFER)
        self.buffer = memoryview(bytearray(BUFFER))
        self.start = self.end = 0
        self.why_closed = CLOSED  # why nothing more comes, once receive() returns 0
        # a success that came before the end of the body: the server may still be reading
        self.success: Head | None = None

    def receive(self) -> int:
        """Append what arrives to the buffer. Returns 0 at the end of the stream."""
        waiting = self.end - self.start
        self.buffer[:waiting] = self.buffer[self.start : self.end]
        self.start, self.end = 0, waiting
        try:
            await_data(self.sock)
            count = self.sock.recv_into(self.buffer[waiting : waiting + self.piece])
        except socket.timeout:
            raise Transient(
                28,
                f"{self.peer} has said nothing for {self.args.timeout:g} s",
                "it is connected but silent: busy, stopped, or behind a broken link",
                "--timeout gives it longer",
                lasting=False,
            ) from None
        except OSError as error:
            if self.sock.gettimeout() == 0:
                raise
            self.why_closed, count = error.strerror or str(error), 0
        self.end += count
        if self.args.pace:
            self.args.pace.wait(count)
        return count

    def read(self, most: int) -> memoryview:
        """At most so many of the next bytes, valid until the next call; none at the end of the
        stream."""
        if self.start == self.end:
            self.receive()
        chunk = self.buffer[self.start : min(self.end, self.start + most)]
        self.start += len(chunk)
        return chunk

    def read_until(self, mark: re.Pattern[bytes], limit: int) -> bytes:
        """The bytes up to and including a mark."""
        while True:
            start = self.start
            found = mark.search(self.buffer, start, min(self.end, start + limit))
            if found:
                self.start = found.end()
                return bytes(self.buffer[start : self.start])
            if self.end - start >= limit:
                raise broken(self.peer, f"no end of a head or line within {limit} bytes")
            if not self.receive():
                raise self.lost()

    def lost(self) -> "Transient":
        came = self.end - self.start
        code, what = (18, f"only {came} bytes of a head came") if came else (52, "no answer")
        why = f"connection lost: {self.why_closed}"
        text = f"{what} from {self.peer}", why, "repeat the command"
        return Transient(code, *text, lasting=code != 52)

    def read_head(self) -> Head:
        for _ in range(MAX_INTERIM):
            head = self.next_head()
            if head.status >= 200:
                return head
        raise broken(self.peer, f"more than {MAX_INTERIM} interim responses")

    def next_head(self) -> Head:
        try:
            raw = self.read_until(HEAD_END, MAX_HEAD)
        except Transient:
            raw = bytes(self.buffer[self.start : self.end])
            if raw.startswith(b"HTTP/"[: len(raw)]):
                raise
            # else it is the greeting of another protocol, and a retry cannot help
        try:
            head = parse_head(raw)
        except ValueError as error:
            raise broken(self.peer, str(error)) from None
        narrate(self.args, "<", raw)
        return head

    def early_head(self) -> Optional[Head]:
        """What arrives before the whole request is sent: the reply, which may be a refusal, or an
        interim one (1xx)."""
        self.sock.settimeout(0)
        try:
            if not self.receive():
                raise self.lost()
        except OSError as error:
            if type(error).__name__ not in NOTHING_HAPPENED:
                raise unsent(self.peer, error) from None
            # else TLS has read a message of its own, such as a session ticket
        finally:
            self.sock.settimeout(self.args.timeout)
        head = None
        while (not head or head.status < 200) and HEAD_END.search(
            self.buffer, self.start, self.end
        ):
            head = self.next_head()
        return head

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self.sock.send(view) :]
        except OSError as error:
            raise unsent(self.peer, error) from None

    def send_body(self, body: "BodySource") -> Optional[Head]:
        """Send the body, and stop as soon as the server refuses it. An early success counts only at
        the end."""
        chunked = body.length is None
        try:
            for chunk in body.chunks():
                data = b"%x\r\n%b\r\n" % (len(chunk), bytes(chunk)) if chunked else chunk
                if head := self.send_watching(data):
                    return head
            return (self.send_watching(b"0\r\n\r\n") if chunked else None) or self.success
        except OSError as error:
            # EPIPE, ECONNRESET: a reply that came before may still be in the kernel
            with contextlib.suppress(Transient):
                return self.success or self.read_head()
            raise unsent(self.peer, error) from None

    def send_watching(self, data: Data) -> Optional[Head]:
        """Send all of the data, or return the refusal that came before its end."""
        view = memoryview(data)
        while view:
            watched = [] if self.success else [self.sock]
            readable, writable, _ = select.select(watched, [self.sock], [], self.args.timeout)
            if readable and (head := self.early_head()):
                if head.status >= 300:
                    return head
                if head.status >= 200:
                    self.success = head
            if not readable and not writable:
                raise Transient(
                    28,
                    f"{self.peer} has accepted nothing for {self.args.timeout:g} s",
                    "it stopped reading",
                    "repeat the command",
                )
            if writable:
                count = self.sock.send(view[: self.slice])
                view = view[count:]
                self.args.progress.add(count)
                if self.args.pace:
                    self.args.pace.wait(count)
        return None

    def wait_for_continue(self) -> Optional[Head]:
        """Wait after Expect: 100-continue. Returns the refusal, or None if the body may be sent.

        Any interim reply (1xx) allows the body. So does silence: old servers do not know Expect."""
        deadline = time.monotonic() + EXPECT_WAIT
        while select.select([self.sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if head := self.early_head():
                return head if head.status >= 200 else None
        return None

    def close(self) -> None:
        self.sock.close()


class Reply:
    """A reply. Its body is read in chunks; RFC 9112 section 6.3 says where it ends."""

    def __init__(self, connection: Connection, head: Head, method: str, url: URL) -> None:
        self.connection = connection
        self.head = head
        self.url = url
        self.keep = head.keep
        self.ended = method == "HEAD" or head.status in (204, 304) or head.length == 0
        self.received = 0

    def chunks(self) -> Iterator[Data]:
        """The body as it arrives. Raises Transient if the connection is lost before its end."""
        if self.ended:
            return
        if "transfer-encoding" in self.head.fields:
            body = self.decode_chunked()
        elif self.head.length is None:
            body = self.read_to_close()
        else:
            body = self.read_sized(self.head.length - self.received)
        for chunk in body:
            self.received += len(chunk)
            yield chunk
        self.ended = True

    def read_sized(self, remaining: int) -> Iterator[memoryview]:
        while remaining:
            chunk = self.connection.read(remaining)
            if not chunk:
                raise self.cut()
            remaining -= len(chunk)
            yield chunk

    def whole(self) -> memoryview:
        """All of a body that is no longer than the buffer, valid until the next call."""
        connection, size = self.connection, self.head.length or 0
        while connection.end - connection.start < size:
            if not connection.receive():
                raise self.cut()
        self.received, self.ended = size, True
        return connection.read(size)

    def read_to_close(self) -> Iterator[memoryview]:
        """A body without a length ends where the server closes the connection. An error is no such
        end."""
        self.keep = False
        while chunk := self.connection.read(BUFFER):
            yield chunk
        if self.connection.why_closed != CLOSED:
            raise self.cut()

    def decode_chunked(self) -> Iterator[memoryview]:
        peer = self.connection.peer
        if self.head.get("transfer-encoding").lower() != "chunked":
            raise broken(peer, "a Transfer-Encoding other than chunked")
        # a reply with both fields may be an attack (request smuggling)
        self.keep = self.keep and "content-length" not in self.head.fields
        while size := self.chunk_size():
            yield from self.read_sized(size)
            if self.read_line(MAX_LINE).strip(b"\r\n"):
                raise broken(peer, "a chunk that is longer than it says")
        limit = MAX_HEAD
        while (line := self.read_line(limit)).strip(b"\r\n"):  # trailers
            limit -= len(line)
            if b"\0" in line:
                raise broken(peer, "a NUL in its trailers")

    def read_line(self, limit: int) -> bytes:
        try:
            return self.connection.read_until(LINE_END, limit)
        except Transient as failure:
            raise failure if failure.code == 28 else self.cut() from None

    def chunk_size(self) -> int:
        found = re.fullmatch(CHUNK_LINE, self.read_line(MAX_LINE))
        if not found:
            raise broken(self.connection.peer, "a chunk whose size is no hexadecimal number")
        return int(found[1], 16)

    def decoded(self) -> Iterator[Data]:
        """The body without its Content-Encoding. It may not grow larger than text can."""
        codings, peer = self.head.codings, self.connection.peer
        if self.head.ending or len(codings) > MAX_CODINGS:
            what = f"a Content-Encoding that nobody asked for: {printable(', '.join(codings)[:40])}"
            raise broken(peer, what)
        size, body = 0, self.chunks()
        for coding in reversed(codings):
            body = decompress(body, coding)
        try:
            for out in body:
                size += len(out)
                if codings and size > GZIP_RATIO * self.received + BUFFER:
                    raise broken(peer, f"an encoded body over {GZIP_RATIO} times its size")
                yield out
        except zlib.error as error:
            raise broken(peer, f"an encoded body that is damaged ({error})") from None

    def read(self, limit: int) -> bytes:
        """The first bytes of the body, or all of it if it is shorter than the limit."""
        data = bytearray()  # bytes would be copied for each chunk
        for chunk in self.decoded():
            data += chunk
            if len(data) > limit:
                break
        return bytes(data[:limit])

    def cut(self) -> "Transient":
        size = "" if self.head.length is None else f" of {self.head.length:,}"
        return Transient(
            18,
            f"connection to {self.connection.peer} lost at {self.received:,}{size} bytes",
            self.connection.why_closed,
            "repeat the command: it continues from there",
        )

    def __enter__(self) -> "Reply":  # noqa: PYI034  (Self came with Python 3.11)
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the connection where the next reply begins, or closed."""
        length = self.head.length
        short = length is not None and length - self.received <= MAX_ANSWER
        if short and not self.ended and not exception[0]:
            with contextlib.suppress(Failure):
                deque(self.chunks(), maxlen=0)
        if not self.ended or not self.keep:
            self.keep = False
            self.connection.close()


def decompress(chunks: Iterable[Data], coding: str) -> Iterator[Data]:
    """Decode gzip or deflate, a bounded amount at a time.

    gzip may have several members, each with its own checksum (RFC 1952 section 2.2). deflate
    means the format of zlib, but some servers send it without zlib's head and checksum. Raises
    zlib.error for what is neither, or ends too early."""
    wbits, decoder = 31, None  # 31: with gzip's head and checksum
    for chunk in chunks:
        if coding == "deflate" and not decoder:
            wbits = 15 if chunk[0] & 15 == 8 else -15
        for start in range(0, len(chunk), GZIP_STEP):
            rest, full = bytes(chunk[start : start + GZIP_STEP]), False
            while rest or full:
                decoding = decoder and not decoder.eof
                decoder = decoder if decoding else zlib.decompressobj(wbits=wbits)
                out = decoder.decompress(rest, BUFFER)
                yield out
                rest = decoder.unused_data or decoder.unconsumed_tail
                full = len(out) == BUFFER and not decoder.eof
    if not decoder or not decoder.eof:
        raise zlib.error("it stops in the middle")


class BodySource:
    """What is sent: bytes as they are, and the content of files, whose names are str.

    Without any part, it is standard input, whose length is unknown."""

    def __init__(self, *parts: Union[bytes, str], start: int = 0) -> None:
        self.parts = parts
        self.start = start  # offset of the first byte to send, for a single file
        found = [None if isinstance(part, bytes) else sendable_file(part) for part in parts]
        self.sizes = [info.st_size if info else len(part) for part, info in zip(parts, found)]
        self.length = sum(self.sizes) - start if parts else None
        self.state = [(info.st_size, info.st_mtime_ns) for info in found if info]
        self.mtime_ns = self.state[0][1] if self.state else 0
        self.executable = any(info and info.st_mode & stat.S_IXUSR for info in found)
        self.sent = 0  # bytes read from standard input
        self.checked = False  # whether the server will tell the digest of what it has
        self.digest = ""  # then: that of the file, once it is sent
        # a server that has the beginning wants the rest, so no Expect: 100-continue for that
        self.expects = not start and (self.length is None or self.length >= EXPECT_FROM)

    def changed(self) -> bool:
        """Whether a file was written to since. Then what was sent does not fit what follows."""
        return BodySource(*self.parts).state != self.state

    def chunks(self) -> Iterator[Data]:
        total = hasher("sha256")
        for part, size in zip(self.parts, self.sizes):
            for chunk in [part] if isinstance(part, bytes) else file_chunks(part, self.start, size):
                if self.checked:
                    total.update(chunk)
                yield chunk
        while self.length is None and (chunk := read_input()):
            self.sent += len(chunk)
            yield chunk
        if self.checked:
            # of a file that an earlier request has begun, this one has seen only the rest
            whole = not self.start
            self.digest = total.hexdigest() if whole else file_digest(str(self.parts[0]), "sha256")

    def whole(self) -> bytes:
        return b"".join(map(bytes, self.chunks()))


def sendable_file(path: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise Failure(
            26,
            f"cannot send {printable(path)}: it is no regular file",
            "its length is not known in advance",
            "upload sends a folder; cat FILE | ... put - URL anything else",
        )
    return found


def file_chunks(path: str, start: int, end: int) -> Iterator[memoryview]:
    """Exactly these bytes of a file, each chunk valid until the next.

    If the file becomes shorter meanwhile, it is an error: nothing is made up."""
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
            f"{printable(path)} became shorter while it was read",
            f"{have:,} of {end:,} bytes were there",
            "repeat the command when nothing writes to it",
        )


def read_input() -> bytes:
    try:
        # None: standard input is closed, and descriptor 0 may be the connection
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
        where = f"looked for in {printable(os.getcwd())}"
    except OSError:
        where = "the current folder is gone"
    return Failure(26, f"cannot read {printable(path)}: {error.strerror}", where, "check the name")


def unsent(peer: str, error: OSError) -> "Transient":
    return Transient(
        55,
        f"could not send to {peer} ({error.strerror or 'timed out'})",
        "it closed the connection or stopped reading",
        "repeat the command",
    )


def broken(peer: str, what: str) -> "Failure":
    is_tls = "\\x15" in what or "\\x16" in what
    return Failure(
        56,
        f"{peer} broke the protocol: {what}",
        "it is no HTTP server, a faulty one, or an attack",
        "https://: that is TLS" if is_tls else "curl -v shows what it sends",
    )


def narrate(args: argparse.Namespace, mark: str, data: bytes) -> None:
    """For -v: print a head line by line with curl's marks, and mask passwords in it."""
    if args.verbose:
        masked = SECRET.sub(rb"\1***", data.partition(b"\r\n\r\n")[0])
        for line in to_text(masked).splitlines():
            say(f"{mark} {printable(line)}")


# --- getting: a download, its part, its name ---
class Source(NamedTuple):
    """The file on the server that a part belongs to."""

    etag: str
    modified: str
    size: Optional[int]
    digest: str  # SHA-256 in hex, if the server told it

    @property
    def validator(self) -> str:
        """For If-Range, which compares strongly. A weak ETag proves nothing (RFC 9110 section
        13.1.5)."""
        return self.modified if not self.etag or self.etag.startswith("W/") else self.etag

    def fits(self, head: Head) -> bool:
        """Whether a partial reply may be of the same file.

        A server that knows Range but not If-Range sends a range of whatever file it has now."""
        field, want = ("etag", self.etag) if self.etag else ("last-modified", self.modified)
        return head.get(field) in ("", want)


class Entry(NamedTuple):
    """A line of a folder's index. None stands for what the index does not tell."""

    name: str
    folder: bool
    size: Optional[int] = None
    mtime: Optional[float] = None
    etag: str = ""
    special: bool = False  # here: a link, or what is neither file nor folder


Output = Union["Part", "Stream"]
Place = Union[str, URL]  # of a file or folder: here, or on the server
Files = dict[URL, Entry]


def get(client: Client) -> None:
    args, folder, name = client.args, client.args.output or "", ""
    if folder == "-" or folder and not os.path.isdir(folder) and not folder.endswith("/"):
        folder, name = os.path.split(folder)
    urls = args.url + (read_lines(args.input) if args.input else [])
    if not urls:
        raise Failure(2, "get needs a URL", "nothing was fetched", "get URL, or -i FILE")
    if args.output != "-":
        if len(urls) > 1 and name:
            raise Failure(
                2,
                f"{len(urls)} URLs cannot all be {printable(args.output)}",
                "nothing was fetched",
                "-o FOLDER/",
            )
        make_folder(args, folder or ".")
    folder = os.path.join(folder, "")

    found = [target(text, args) for text in urls]
    for_each(args, found, lambda url: Download(client, url, folder, name, replace=False).run())


def read_lines(path: str) -> list[str]:
    """The URLs in a file, one a line; - is standard input. Lines that begin with # are comments."""
    try:
        standard = path == "-"
        with open(0 if standard else path, encoding="utf-8", closefd=not standard) as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeError) as error:
        raise Failure(
            26,
            f"cannot read the URLs in {printable(path)}: {error}",
            "nothing was fetched",
            "-i FILE, or - for standard input",
        ) from None
    return [line for line in lines if line and not line.startswith("#")]


class Download:
    """One URL that becomes one file, with as many requests and connections as it takes.

    The main thread asks first. That reply tells the name, and whether ranges are served."""

    def __init__(self, client: Client, url: URL, folder: str, name: str, replace: bool) -> None:
        args = client.args
        self.client = client
        self.args = args
        self.url = url
        self.folder = folder  # "", or with a separator at its end
        self.name = name  # "" until the first reply, which may propose one
        # the user chose the name: then it may be a FIFO or device, too
        self.chosen = bool(name) and not replace
        self.stdout = self.chosen and self.path == "-"
        self.replace = bool(replace or args.force or args.newer)
        self.connections = args.connections
        self.verdict = ""  # "saved", or "same" if the file was here already
        self.reply: Reply | None = None  # what a pipeline has brought already
        self.head: Head | None = None
        self.old: os.stat_result | None = None  # what has the name already
        self.is_page = False  # of a folder, perhaps after redirects
        self.received = 0

    @property
    def path(self) -> str:
        return self.folder + self.name

    def run(self, reply: Optional[Reply] = None) -> None:
        """Fetch the file, beginning with a reply that is here already, if there is one."""
        began, args = time.monotonic(), self.args
        if not reply:
            self.client.retry(self.probe)
        elif reply.head.codings or not 0 < (reply.head.length or 0) <= NOTED_FROM:
            self.reply = reply
        else:
            with contextlib.suppress(Transient):  # then ask again
                self.save_short(reply)
        if not self.verdict:
            try:
                self.save()
            except Changed:
                self.connections = 1
                self.save()
        if self.stdout:
            return
        report(args, self.url, self.verdict, self.path, self.received, time.monotonic() - began)
        if self.is_page and args.verb == "get" and not args.quiet and not args.json:
            say("that is the page of a folder; mirror fetches what is in it")

    def probe(self) -> None:
        """Ask by HEAD whether the file is here already, and whether it can come in spans."""
        name, several = self.name or safe_name(url_name(self.url)), self.connections > 1
        here = not self.args.force and os.path.isfile(self.folder + name)
        if self.stdout or not here and not several:
            return
        with self.client.ask("HEAD", self.url, WANTED if several else IDENTITY) as reply:
            head = reply.head
        found = head.status == 200  # a URL that is signed only for GET refuses HEAD
        if found:
            self.check_here(head)
        ranges = "bytes" in head.get("accept-ranges") and source_of(head).validator
        if not found or head.codings or not head.length or not ranges:
            self.connections = 1

    def check_here(self, head: Head) -> None:
        """The verdict is "same" if this very file is here already.

        Raises Failure if another one must not be replaced."""
        self.learn(head)
        found = self.old and stat_or_none(self.path)
        if found is None or self.stdout or self.chosen and not stat.S_ISREG(found.st_mode):
            return
        regular = stat.S_ISREG(found.st_mode)
        if regular and not (self.args.force and self.replace) and self.is_same(head):
            self.verdict = "same"
        elif not regular or not self.replace:
            raise exists(self.path, not self.replace and (self.args.force or self.args.newer))

    def is_same(self, head: Head) -> bool:
        """Whether a reply is about the very file that is here, and --checksum agrees."""
        args = self.args
        if not same_here(args, self.path, self.url, entry_of(head)):
            return False
        return not args.checksum or file_digest(self.path, args.checksum[0]) == args.checksum[1]

    def learn(self, head: Head) -> None:
        """Take the name, if the user has chosen none, and the time from a reply.

        It comes before anything is written, so that a dangerous name is refused in time."""
        self.head = head
        if not self.name:
            asked = safe_name(url_name(self.url))
            proposed = disposition_name(head.get("content-disposition"))
            self.name = safe_name(proposed) if proposed else asked
            # the server may propose a name, but not choose what is replaced
            self.replace = self.replace and self.name == asked
        ending = head.ending
        if ending and not self.name.endswith(ending):
            say(f"{self.url} comes encoded, which was not asked for: kept as {ending}")
            if not self.stdout:
                self.name += ending
        # mostly nothing is there, and access() finds that out sooner than an exception
        there = os.access(self.path, os.F_OK)
        self.old = stat_or_none(self.path, follow=False) if there else None
        # few folders are near a program; a name that exists may be a link to one
        if nears_program(self.folder) or self.old:
            refuse_program(self.path)

    def save_short(self, reply: Reply) -> None:
        """Save a file that is in memory before it is written: no part of it can be left."""
        self.check_here(reply.head)
        if self.verdict:
            return
        self.args.progress.begin(self.name, 0, reply.head.length)
        data = reply.whole()
        self.args.progress.add(len(data))
        self.verify(promised_digest(reply.head), lambda name: hasher(name, data).hexdigest())
        part = f"{self.folder}{RANDOM}{os.urandom(12).hex()}.part"
        set_facts = functools.partial(copy_facts, self.url, reply.head, self.old)
        try:
            write_whole(part, self.path, data, set_facts)
        except FileNotFoundError:
            return  # another run took it for an old part: save() fetches it again
        except OSError as error:
            raise unwritable(self.path, error, 0) from None
        self.received, self.verdict = len(data), "saved"

    def save(self) -> None:
        output = self.open_output()
        try:
            if output.source:
                self.args.progress.begin(self.name, output.have, output.source.size)
            if self.connections > 1 and isinstance(output, Part) and self.head:
                self.side_by_side(output, self.head)
            while not self.verdict and output.left():
                output.remember()
                self.client.retry(
                    lambda: self.receive(self.client, output, output.left()[0]),
                    lambda: output.have,
                )
            if not self.verdict:
                self.finish(output)
        except Changed:
            # other threads may still write into this part, so the next one is another file
            output.discard()
            raise
        finally:
            output.close()

    def open_output(self) -> Output:
        found = stat_or_none(self.path) if self.chosen else None
        special = found and not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode)
        if self.stdout or special:
            return Stream(self.path, self.args)
        return Part(self.folder, self.url, self.args)

    def receive(self, client: Client, output: Output, span: "Span") -> None:
        """Ask for a span, and store what comes."""
        if output.fd < 0:
            return  # the main thread has closed it, while this one waited to try again
        reply, self.reply = self.reply, None
        with reply or client.ask("GET", self.url, wanted(output.source, span)) as reply:
            if self.admits(reply, output, span):
                self.store(reply, output, span)

    def admits(self, reply: Reply, output: Output, span: "Span") -> bool:
        """Whether the body of a reply belongs into the output.

        If not, the verdict says why, or nothing is missing."""
        head, source, found = reply.head, output.source, reply.head.range
        self.is_page = reply.url.path.endswith("/")
        if source and head.status == 416:
            self.check_whole(head, source, output)
            return False
        check(reply)
        if source and found:
            same = source.fits(head) and source.size in (None, found[2])
            if not same or found[:2] != (span.offset, span.end or found[2]):
                raise self.changed()
            self.learn(head)
            return True
        if source and head.status == 206 or len(output.spans) > 1:
            raise self.changed()
        if head.status == 206:
            raise broken(self.url.authority, "a part (206) of what was asked for whole")
        if head.status in (204, 205) and not self.chosen:
            self.verdict = "nothing to save:"
        else:
            self.check_here(head)
        return not self.verdict

    def changed(self) -> "Changed":
        """What was fetched does not fit the file that the server has now: start over."""
        return Changed(
            33,
            f"{self.url.authority} answers a range with another one",
            "the file changed meanwhile, or its server is at fault",
            "use --no-resume with -o FILE to fetch it from the start",
        )

    def check_whole(self, head: Head, source: Source, output: Output) -> None:
        """For 416: nothing is missing if size and ETag are those of what we have."""
        same = source.etag and head.get("etag") == source.etag
        if not same or not head.range or head.range[2] != output.have:
            raise self.changed()
        self.learn(head)
        output.spans = [Span(output.have, output.have)]

    def store(self, reply: Reply, output: Output, span: "Span") -> None:
        """Write the body of a reply into its span.

        gzip is decoded, unless the name asks for gzip, as a.tar.gz does."""
        head, found = reply.head, reply.head.range
        decode = head.codings and not head.ending and not self.is_gzip()
        if not output.source or not found:
            # offsets and digests belong to the encoded bytes
            output.begin(Source("", "", None, "") if decode else source_of(head))
            span = output.spans[0]
        end = found[1] if found else span.end
        if len(output.spans) < 2:
            self.args.progress.begin(self.name, output.have, output.source and output.source.size)
        for chunk in reply.decoded() if decode else reply.chunks():
            if end is not None and span.offset + len(chunk) > end:
                raise broken(self.url.authority, "a range longer than it says")
            output.write(span.offset, chunk)
            span.offset += len(chunk)
            self.args.progress.add(len(chunk))
        if end is None:
            span.end = span.offset
        elif span.offset < end:
            raise Transient(
                18,
                f"a range of {self.url} came short",
                f"{end - span.offset:,} bytes of it are missing",
                "repeat the command",
            )

    def is_gzip(self) -> bool:
        return self.name.endswith(GZIP_NAMES) or url_name(self.url).endswith(GZIP_NAMES)

    def side_by_side(self, output: "Part", head: Head) -> None:
        """Several threads fetch one span after another, each over a connection of its own."""
        import queue  # not at the top: one connection needs none
        import threading

        source, size = output.source, head.length or 0  # never 0: see probe()
        if not source or not source.fits(head) or source.size != size:
            output.begin(source_of(head))
        if not output.divide(size, self.connections):
            return
        self.args.progress.begin(self.name, output.have, size)
        output.lock, left = threading.Lock(), iter(output.left())  # all threads share both
        ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            problem = None
            try:
                with contextlib.closing(Client(self.args)) as client:
                    for span in left:
                        act = functools.partial(self.receive, client, output, span)
                        client.retry(act, lambda: span.offset)  # noqa: B023
            except BaseException as error:  # noqa: BLE001  (the main thread raises it again)
                problem = error
            ends.put(problem)

        self.client.close()  # some servers serve one connection at a time
        for _ in range(self.connections):
            threading.Thread(target=work, daemon=True).start()
        running, (pause, most) = self.connections, SAVE_EVERY
        while running:
            with contextlib.suppress(queue.Empty):
                if problem := ends.get(timeout=pause):
                    raise problem  # the other threads end when they find the part closed
                running -= 1
            output.remember()
            pause = min(2 * pause, most)

    def finish(self, output: Output) -> None:
        """Check the digests, then give the part its name."""
        try:
            self.verify(output.source.digest if output.source else "", output.digest)
        except Failure:
            if isinstance(output, Part):
                output.discard()
            raise
        self.received = output.have - output.kept
        if isinstance(output, Part) and self.head:
            copy_facts(self.url, self.head, self.old, output.fd, output.path)
            output.rename(self.path, self.replace)
        self.verdict = "saved"

    def verify(self, promised: str, digest: Callable[[str], str]) -> None:
        """Check the digests that the server and the user promised."""
        for name, want in filter(None, [self.args.checksum, promised and ("sha256", promised)]):
            found = digest(name)
            if found != want:
                raise Failure(
                    56,
                    f"{self.url} came with a wrong {name}: {found}",
                    f"{want} was promised; nothing is kept of it",
                    "repeat the command; if it fails again, the file on the server is another one",
                )


def wanted(source: Optional[Source], span: "Span") -> Fields:
    """The fields that ask for a span, or for the whole if nothing else can be proven to fit."""
    if not source or not source.validator or (span.offset, span.end) == (0, source.size):
        return WANTED
    last = "" if span.end is None else span.end - 1
    return {**WANTED, "Range": f"bytes={span.offset}-{last}", "If-Range": source.validator}


def refuse_program(path: str) -> None:
    if is_program(path):
        raise Failure(
            23,
            f"{printable(path)} would be part of a program when it next starts",
            "what a server sends must not run here",
            "-o with another folder or name",
        )


def exists(path: str, unasked: bool = False) -> "Failure":
    """For a file that must not be replaced. Unasked: only the server chose its name."""
    why = "it was left as it is"
    hint = "--newer replaces it if the server's is newer or of another size, --force always,"
    hint += " -o gives another name"
    if unasked:
        why = "the server proposed that name, and must not choose what is replaced"
        hint = "-o NAME: that of the file to replace, or another"
    return Failure(23, f"{printable(path)} exists already, and is another file", why, hint)


def unwritable(path: str, error: OSError, offset: int) -> "Failure":
    after = f" after {offset:,} bytes" if offset else ""
    return Failure(
        23,
        f"cannot write {printable(path)}{after}: {error.strerror}",
        "what came until then is kept where that is possible",
        "make room or choose another folder with -o, then repeat the command",
    )


def same_here(args: argparse.Namespace, path: str, url: URL, entry: Entry) -> bool:
    """Whether a file here is the one that a server describes.

    The ETag that came with it is the best proof. Without one, compare the times: a saved file
    has the time of Last-Modified. With --newer, a later time here is as good, and so is an equal
    size if the server tells no time."""
    by_etag = entry.etag and (not args.newer or entry.mtime is None)
    if by_etag and (known := remembered_etag(path, url)):
        return known == entry.etag
    found = stat_or_none(path)
    if not found:
        return False
    return is_copy(Entry("", False, found.st_size, found.st_mtime), entry, not args.newer)


def is_copy(copy: Entry, source: Entry, exact: bool) -> bool:
    """Whether both ends have the same file: size and time are equal.

    exact means that a copy gets the time of its source. Else it may have that of the copying, which
    is later."""
    if copy.mtime is None or source.size not in (None, copy.size):
        return False
    if source.mtime is None:
        return not exact and source.size is not None
    return source.mtime // 1 == copy.mtime // 1 or not exact and source.mtime < copy.mtime


def stat_or_none(path: str, follow: bool = True) -> Optional[os.stat_result]:
    try:
        return os.stat(path, follow_symlinks=follow)
    except OSError:
        return None


def file_digest(path: str, name: str) -> str:
    total = hasher(name)
    for chunk in file_chunks(path, 0, sendable_file(path).st_size):
        total.update(chunk)
    return total.hexdigest()


def etag_prefix(url: URL, found: os.stat_result) -> bytes:
    """What stands before a remembered ETag: the URL, and the file's size and time when it was
    saved."""
    return f"{part_name(url)} {found.st_size} {found.st_mtime_ns} ".encode()


def remembered_etag(path: str, url: URL) -> str:
    with contextlib.suppress(OSError, AttributeError):
        text, prefix = os.getxattr(path, XATTR), etag_prefix(url, os.stat(path))
        return to_text(text[len(prefix) :]) if text.startswith(prefix) else ""
    return ""


def url_name(url: URL) -> str:
    return unquoted(url.path.rpartition("/")[2]) or "index.html"


class Span:
    """Bytes of a file that are still to come. Without an end: until the body ends."""

    def __init__(self, offset: int, end: Optional[int] = None) -> None:
        self.offset = offset
        self.end = end


class Spans:
    """Which bytes of a source are here, and which are still to come."""

    def __init__(self) -> None:
        self.source: Source | None = None
        self.spans = [Span(0)]
        self.kept = 0  # of the bytes that are here, what earlier runs have left

    @property
    def have(self) -> int:
        """How many bytes are here."""
        last = self.spans[-1]
        missing = sum((span.end or span.offset) - span.offset for span in self.spans)
        return (last.end or last.offset) - missing

    def left(self) -> list[Span]:
        return [span for span in self.spans if span.offset != span.end]

    def begin(self, source: Source) -> None:
        """Start at the first byte, whatever was here."""
        self.source, self.spans = source, [Span(0, source.size)]

    def remember(self) -> None:
        """Note what is here, where that can be continued."""


class Part(Spans):
    """The hidden file of a download that is not finished, and a note of the source that it belongs
    to, with the spans that are still to come.

    A single span grows with the file, whose length tells where to go on, so its note stays as it
    is. Of several, only the note can tell."""

    def __init__(self, folder: str, url: URL, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        self.url = url
        self.path = folder + part_name(url)
        self.note = note_name(self.path)
        # a real lock once several threads write
        self.lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self.noted = False  # whether there may be a note
        self.fd = -1  # while it is closed
        self.open()
        if self.noted and args.resume:
            self.recall()

    def open(self) -> None:
        """Open and lock the part, so that two runs of one download do not both write into it."""
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | CAREFULLY, 0o666)
            lock_file(self.fd)
            found, there = os.fstat(self.fd), stat_or_none(self.path, follow=False)
            refuse_special(found)
            # otherwise another process has just renamed it, since it is finished
            if there and os.path.samestat(found, there):
                if found.st_nlink < 2:
                    self.noted = found.st_size > 0
                    return
                # a run was killed in rename(): this file is finished, and keeps its other name
                self.unlink()
        except BlockingIOError:
            self.release()
            raise Failure(
                23,
                f"{printable(self.path)} is being written by another process",
                "the same URL is on its way there already",
                "wait for it, or -o another folder",
            ) from None
        except OSError as error:
            self.release()
            raise unwritable(self.path, error, 0) from None
        self.release()
        self.open()

    def recall(self) -> None:
        """Find out from the note what is here, if that can be proven."""
        try:
            note = read_note(self.note)
            spans = [Span(int(first), end and int(end)) for first, end in note["spans"]]
            source, last, size = noted_source(note), spans[-1], os.fstat(self.fd).st_size
        except NO_NOTE:
            return
        known = last.end == source.size and size <= (last.end or size) and source.validator
        if not known or min(span.offset for span in spans) < 0:
            return
        last.offset = max(last.offset, size)
        self.source, self.spans = source, spans
        if size and not self.left():
            # ask for the last byte of a whole part: that reply proves that the rest fits
            last.offset -= 1
        self.kept = self.have

    def begin(self, source: Source) -> None:
        if self.have or self.noted:
            self.forget()
            os.ftruncate(self.fd, 0)
        super().begin(source)
        if source.validator and (source.size is None or source.size > NOTED_FROM):
            self.remember()

    def forget(self) -> None:
        self.source, self.spans = None, [Span(0)]
        self.kept = 0
        if self.noted:
            with contextlib.suppress(OSError):
                os.unlink(self.note)
        self.noted = False

    def divide(self, size: int, count: int) -> bool:
        """Cut what is left of a source of known size into spans for so many connections.

        There are more spans than connections, so that fast connections can take more of them."""
        left = self.left()
        step = max(SPLIT_FROM, -(-(size - self.have) // (4 * count)))
        pieces = [
            Span(first, min(first + step, span.end or size))
            for span in left
            for first in range(span.offset, span.end or size, step)
        ]
        if len(pieces) < 2:
            return False
        # the file's length tells of the last span: of one without content, it tells nothing
        self.spans = [*pieces, Span(size, size)]
        # now, because what is written behind a gap must not look as if all before it were here
        self.remember()
        return True

    def remember(self) -> None:
        """Write the note. The bytes that it counts must be on the disk before it.

        After a power failure, nothing else could tell which of them were written."""
        if self.source is None or not self.source.validator:
            return
        # before the rest: other threads write meanwhile
        spans = [(span.offset, span.end) for span in self.spans]
        if len(spans) > 1:
            try:
                getattr(os, "fdatasync", os.fsync)(self.fd)
            except OSError as error:
                if error.errno != errno.EINVAL:  # some file systems cannot
                    raise unwritable(self.path, error, 0) from None
        write_note(self.note, {"url": str(self.url), **self.source._asdict(), "spans": spans})
        self.noted = True

    def write(self, offset: int, data: Data) -> None:
        with self.lock:
            try:
                view = memoryview(b"" if self.is_hole(offset, data) else data)
                os.lseek(self.fd, offset, os.SEEK_SET)
                while view:
                    count = os.write(self.fd, view)
                    view, offset = view[count:], offset + count
            except OSError as error:
                raise unwritable(self.path, error, offset) from None

    def is_hole(self, offset: int, data: Data) -> bool:
        """Leave zeros out: a hole reads as zeros, and needs no room on the disk."""
        end = offset + len(data)
        if len(data) < HOLE_FROM or data[0] or bytes(data) != bytes(len(data)):
            return False
        with contextlib.suppress(OSError):  # some file systems cannot extend a file this way
            if os.fstat(self.fd).st_size < end:
                os.ftruncate(self.fd, end)
            return True
        return False

    def digest(self, name: str) -> str:
        """The digest of the whole part, with the bytes of earlier runs."""
        return file_digest(self.path, name)

    def rename(self, path: str, replace: bool) -> None:
        """Give it its final name. This is the last step."""
        try:
            if os.name == "nt":
                # Windows renames no open file; elsewhere the lock lasts until the part has its name
                self.release()
            rename(self.path, path, replace)
            self.release()
        except FileExistsError:
            raise exists(path) from None
        except OSError as error:
            raise unwritable(path, error, self.have) from None
        if self.noted:
            self.forget()

    def release(self) -> None:
        with self.lock:
            if self.fd >= 0:
                os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """If the part did not become the file, keep what can be continued."""
        if self.fd < 0:
            return
        if not self.noted or not self.have:
            self.discard()
        elif len(self.spans) > 1:
            with contextlib.suppress(Failure):  # if the disk is full, the last note will do
                self.remember()
        self.release()

    def discard(self) -> None:
        self.forget()
        with contextlib.suppress(OSError):
            self.unlink()
        self.release()

    def unlink(self) -> None:
        if os.name == "nt":
            self.release()  # Windows removes no open file; elsewhere the lock lasts longer
        os.unlink(self.path)


class Stream(Spans):
    """Standard output, a pipe or a device. A terminal gets text, with \\xNN for bytes that are
    none.

    A download that goes there can be continued only within this run."""

    def __init__(self, path: str, args: argparse.Namespace) -> None:
        super().__init__()
        self.name = "standard output" if path == "-" else printable(path)
        # standard output is closed, and the connection may have its number
        if path == "-" and sys.stdout is None:
            raise Failure(
                23,
                "cannot write standard output (it is closed)",
                "whoever started this closed it",
                "start it with standard output open (without >&-), or use -o FILE",
            )
        try:
            self.fd = 1 if path == "-" else os.open(path, os.O_WRONLY)
        except OSError as error:
            raise unwritable(path, error, 0) from None
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self.decoder = decoder if is_terminal(self.fd) else None
        self.totals = {args.checksum[0]: hasher(args.checksum[0])} if args.checksum else {}

    def discard(self) -> None:
        if self.have:
            raise Failure(
                33,
                "the rest cannot be fetched alone, and what was written cannot be taken back",
                "the file changed, or the server does not serve ranges",
                "-o FILE, which can start over",
            )

    def begin(self, source: Source) -> None:
        self.discard()
        super().begin(source)
        if source.digest:
            self.totals["sha256"] = hasher("sha256")

    def write(self, offset: int, data: Data, last: bool = False) -> None:
        for total in self.totals.values():
            total.update(data)
        if self.decoder:
            data = printable(self.decoder.decode(data, last), "\n\t").encode()
        view = memoryview(data)
        try:
            while view:
                view = view[write_some(self.fd, view) :]
        except BrokenPipeError:
            raise  # head has enough: main() ends quietly
        except OSError as error:
            raise unwritable(self.name, error, self.have) from None

    def digest(self, name: str) -> str:
        return self.totals[name].hexdigest()

    def close(self) -> None:
        if self.decoder:
            self.write(0, b"", last=True)


def open_own(path: str, flags: int) -> int:
    """open() for names that others in this folder can predict.

    It follows no link, waits for no FIFO, and opens nothing but a regular file."""
    fd = os.open(path, flags | CAREFULLY)
    try:
        refuse_special(os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def refuse_special(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def copy_facts(url: URL, head: Head, old: Optional[os.stat_result], fd: int, path: str) -> None:
    """Set time, ETag and the right to execute as the server told them, and else the mode of the
    file that it replaces."""
    file = fd if os.utime in os.supports_fd else path  # Windows finds it by its name alone
    # the file system may not know such a time; only Linux has attributes, and not everywhere
    with contextlib.suppress(OSError, OverflowError, AttributeError):
        if head.modified is not None:
            os.utime(file, (head.modified, head.modified))
        if etag := head.get("etag"):
            os.setxattr(fd, XATTR, etag_prefix(url, os.fstat(fd)) + to_bytes(etag))
    runs = 0o111 if head.get(EXECUTABLE.lower()) == "1" else 0
    if not old and not runs:
        return
    # the target of a link may be open to all
    model = old if old and stat.S_ISREG(old.st_mode) else os.fstat(fd)
    # there may be no modes
    with contextlib.suppress(OSError):
        # without setuid and setgid, which were meant for the old content
        os.chmod(file, model.st_mode & 0o777 | model.st_mode >> 2 & runs)


def write_whole(
    part: str,
    path: str,
    data: Data,
    finish: Callable[[int, str], object] = lambda fd, path: None,
) -> None:
    """Write a short file whole or not at all: under a name that nobody else uses, then renamed."""
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CAREFULLY, 0o666)
    try:
        try:
            if os.write(fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finish(fd, part)
        finally:
            os.close(fd)
        rename(part, path, True)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def rename(source: str, path: str, replace: bool) -> None:
    """Give a file its name. A link fails if somebody has taken that name meanwhile."""
    if replace:
        return os.replace(source, path)
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except (OSError, AttributeError):  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "exists") from None
        return os.replace(source, path)
    os.unlink(source)


def lock_file(fd: int) -> bool:
    """Lock a file until it is closed. Raises BlockingIOError if another run has locked it.

    Returns False where the file system has no flock()."""
    if sys.platform == "win32":
        if not lock_byte(fd):
            raise BlockingIOError
        return True
    try:
        import fcntl  # not at the top: Windows has none

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return False  # some file systems have no locks, such as Lustre
    return True


def read_note(path: str) -> Any:
    with open(path, encoding="utf-8", opener=open_own) as file:
        import json  # not at the top: mostly there is no note

        return json.load(file)


# what reading a note raises that no run of ours wrote
NO_NOTE = OSError, ValueError, OverflowError, TypeError, LookupError, RecursionError


def noted_source(note: Facts) -> Source:
    """The source in a note. Raises one of NO_NOTE for a note that no run of ours wrote.

    Others may plant a note, and its validator is sent in the head of a request."""
    source = Source(*(note[name] for name in Source._fields))
    printing = "".join((source.etag, source.modified)).isprintable()
    counted = isinstance(source.size, (int, type(None)))
    if not printing or not counted or not re.fullmatch("[0-9a-f]{64}|", source.digest):
        raise ValueError("a note that no run of ours wrote")
    return source


def write_note(path: str, note: Facts) -> None:
    import json

    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + "~")  # a link there may lead to any file
        write_whole(path + "~", path, json.dumps(note).encode())
    except OSError as error:
        raise unwritable(path, error, 0) from None


def part_name(url: URL) -> str:
    """The name of a URL's part: the same each time, even if the URL's signature is not."""
    import hashlib

    unsigned = re.sub(SIGNATURE, "", url.full) if "?" in url.target else url.full
    return f".six-{hashlib.sha256(to_bytes(unsigned)).hexdigest()[:32]}.part"


def note_name(part: str) -> str:
    return part[: -len("part")] + "json"


def remove_old_parts(folder: str, names: set[str]) -> None:
    for stem in {name[: -len("part")] for name in names if is_part(name)}:
        ends = [end for end in ("part", "json") if stem + end in names]
        with contextlib.suppress(OSError):
            remove_if_old([os.path.join(folder, stem + end) for end in ends], stem)


def remove_if_old(paths: list[str], stem: str) -> None:
    """Remove a part and its note if nobody has continued it in time, unless it is locked.

    A part without a note may be client.py's, which continues it."""
    with open(paths[0], "rb", opener=open_own) as file:
        found = os.fstat(file.fileno())
        useful = found.st_size and not stem.lower().startswith(RANDOM)
        young = time.time() - found.st_mtime < (PART_AGE if useful else USELESS_AGE)
        if young or not (lock_file(file.fileno()) or useful):
            return
        if os.name == "nt":
            file.close()  # Windows removes no open file; elsewhere the lock lasts longer
        for path in paths:
            os.unlink(path)


# --- sending: put, post, delete, mkdir, move, head ---
def put(client: Client) -> None:
    args = client.args
    paths: list[str] = args.path
    url = target(args.url, args)
    into = url.path.endswith("/")
    if (args.text is None) is not bool(paths) or not into and len(paths) > 1:
        raise Failure(
            2,
            f"{len(paths)} files and {int(args.text is not None)} texts cannot become {url}",
            "nothing was sent",
            f"put FILE {url}, or --text TEXT; more files into a folder: {folder_url(url)}",
        )
    if into and ("-" in paths or not paths):
        what = "a text" if not paths else "standard input"
        raise Failure(2, f"{what} has no name", "nothing was sent", f"{url}NAME")
    if not paths:
        body = BodySource(os.fsencode(args.text))
        return attempt(args, Upload(client, url, body, "the text").run)

    def send_path(path: str) -> None:
        send_file(client, path, url.child(os.path.basename(path)) if into else url)

    for_each(args, paths, send_path)


def send_file(client: Client, path: str, url: URL) -> None:
    """PUT a file, or standard input for -."""
    Upload(client, url, BodySource() if path == "-" else BodySource(path), path).run()


class Upload:
    """A file that is sent to a server, with as many requests as it takes."""

    def __init__(self, client: Client, url: URL, body: BodySource, path: str) -> None:
        args = client.args
        self.client = client
        self.args = args
        self.url = url
        self.body = body
        self.path = path
        self.offset = 0  # bytes that the server has, as far as we know
        self.verdict = "sent"
        self.fields: Fields = {}
        self.condition: Fields = {}
        self.note = note_name(os.path.join(os.path.dirname(path), part_name(url)))
        self.resource = self.recall()  # where it can be continued
        self.kept: int | None = None  # bytes that an earlier run has sent, once the server tells

    def run(self) -> None:
        """After a lost link, continue where the server stopped: never with standard input."""
        began, retry = time.monotonic(), self.client.retry
        careful = self.args.verb == "put" and not self.args.force and not self.resource
        if careful and retry(self.is_there):
            self.verdict = "same"
        elif self.body.length is None:
            self.attempt()
        else:
            retry(self.attempt, lambda: self.offset)
        seconds, moved = time.monotonic() - began, self.sent - (self.kept or 0)
        report(self.args, self.url, self.verdict, self.path, moved, seconds)

    def recall(self) -> Optional[URL]:
        """Where an earlier run of the same upload stopped, if the file is still the same.

        Others may plant a note, so it tells only the path, on the server that the user named."""
        if not self.args.resume or self.body.length is None:
            return None
        with contextlib.suppress(*NO_NOTE):
            note = read_note(self.note)
            same = [(note["size"], note["mtime_ns"])] == self.body.state
            if same and re.fullmatch("/[!-~]*", note["resource"]):
                return self.url._replace(target=note["resource"])
        return None

    def forget(self) -> None:
        self.resource = None
        with contextlib.suppress(OSError):
            os.unlink(self.note)

    def remember(self, resource: URL) -> None:
        """Note beside the file where its rest may be sent. If no note can be written, a retry
        starts over."""
        size, mtime_ns = self.body.state[0]
        where = {"url": str(self.url), "resource": resource.target}
        with contextlib.suppress(Failure):
            write_note(self.note, {**where, "size": size, "mtime_ns": mtime_ns})

    def prepare(self) -> Fields:
        """The fields that describe the file.

        The digest of a short body goes before it. A long one would have to be read for that first,
        so its digest is compared with the one in the reply."""
        if self.body.length is None:
            return {}
        seconds, fields = self.body.mtime_ns // 10**9, Fields()
        if self.body.state and EARLIEST <= seconds < LATEST:
            # servers keep whole seconds; in English as long as nobody calls setlocale()
            when = calendar(time.gmtime, seconds)
            date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", when)
            # nginx takes the file's time from Date
            fields = {"Last-Modified": date, "Date": date, OC_MTIME: str(seconds)}
        elif self.body.state:
            self.warn_of_time()
        if self.body.executable:
            fields[EXECUTABLE] = "1"
        if self.body.length < EXPECT_FROM:
            digest = hasher("sha256", self.body.whole()).digest()
            return {**fields, "Repr-Digest": f"sha-256=:{b64(digest)}:"}  # RFC 9530
        with self.client.ask("OPTIONS", self.url) as reply:
            offers = reply.head.fields
        if "upload-limit" in offers and self.args.resume:  # it speaks the draft
            fields["Upload-Length"] = str(self.body.length)
        self.body.checked = "want-repr-digest" in offers
        return {**fields, **DIGEST_WANTED}

    def is_there(self) -> bool:
        """Whether the server has this very file. Another one is replaced only with --force."""
        # a text has no time, so ask for the digest
        wanted = IDENTITY if self.body.state else WANTED
        with self.client.ask("HEAD", self.url, wanted) as reply:
            head = reply.head
        if head.status in PASSING:
            check(reply)  # many servers ignore the condition, so ask until it answers
        if head.status == 200 and not self.is_same(head):
            raise occupied(self.url, is_folder=reply.url.path.endswith("/"))
        self.condition = {"If-None-Match": "*"}  # somebody may put a file there meanwhile
        return head.status == 200

    def is_same(self, head: Head) -> bool:
        body = self.body
        if body.state:
            ours = Entry("", False, body.length, body.mtime_ns // 10**9)
            return is_copy(entry_of(head), ours, exact=True)
        digest = promised_digest(head) if body.parts else ""
        return bool(digest) and digest == hasher("sha256", body.whole()).hexdigest()

    def attempt(self) -> None:
        if self.body.changed():  # the server has the beginning of another file
            self.body, self.resource, self.fields = BodySource(self.path), None, {}
        if not (self.resource and self.go_on(self.resource)):
            self.begin()
        self.forget()
        if self.body.changed():
            raise Failure(
                18,
                f"{printable(self.path)} changed while it was sent",
                "what the server has may be neither the old nor the new",
                "repeat the command when nothing writes to it",
            )

    def begin(self) -> None:
        self.offset = self.kept = 0
        self.fields = self.fields or self.prepare()
        fields = {**self.fields, **self.condition}
        self.condition = {}  # only once: when a reply was lost, the file there may be ours
        self.resource = self.create(fields) if "Upload-Length" in fields else None
        if self.resource:
            self.append(self.resource)
        else:
            self.send_whole(fields)

    def create(self, fields: Fields) -> Optional[URL]:
        """Begin with an empty upload. The reply says where to continue.

        A 104 reply would say so during the upload, but nginx and other proxies drop it. The
        place must be on the server that the user named, because it is sent the login."""
        fields = {**fields, "Upload-Complete": "?0", **DRAFT}
        with self.client.ask("PUT", self.url, fields, BodySource(b"")) as reply:
            self.check(reply)
            location = reply.head.get("location")
        resource = reply.url.join(location)
        if not location or resource.origin != self.url.origin:
            return None
        self.remember(resource)
        return resource

    @property
    def sent(self) -> int:
        return self.body.sent if self.body.length is None else self.body.length

    def as_request(self) -> bytes:
        """Head and body in one piece, for a pipeline."""
        self.fields = self.prepare()
        fields = {**self.fields, **self.client.origin(self.url).login_fields}
        head = self.client.request("PUT", self.url, fields, self.body)
        return head + self.body.whole()

    def is_done(self, reply: Reply) -> bool:
        """Whether a reply in the pipeline says that the file was stored."""
        if not reply.head.success or self.is_doubtful(reply) or self.body.changed():
            return False
        self.check(reply, self.body)
        self.args.progress.begin(self.path, 0, None)
        self.args.progress.add(self.sent)
        report(self.args, self.url, "sent", self.path, self.sent)
        return True

    def send_whole(self, fields: Fields) -> None:
        self.args.progress.begin(self.path, 0, self.body.length)
        with self.client.ask("PUT", self.url, fields, self.body) as reply:
            self.check(reply, self.body)
            doubtful = self.is_doubtful(reply)
        if doubtful:
            self.verify()
            self.verdict = "sent unverified"

    def check(self, reply: Reply, stored: Optional[BodySource] = None) -> None:
        """Check a reply, and the digest in it if it is about what was stored.

        A time before 1970 or after 2286 may be refused: then go without it."""
        head = reply.head
        rare = not re.fullmatch("[0-9]{0,10}", self.fields.get(OC_MTIME, ""))
        lost = stored and head.success and head.get(OC_MTIME.lower()) != "accepted"
        if rare and (lost or head.status == 400):
            del self.fields[OC_MTIME]
            self.warn_of_time()
            if not lost:
                raise Transient(22, f"{self.url}: 400", "that time", "without it", after=0)
        check(reply)
        if stored and stored.digest:
            self.compare(promised_digest(head), stored.digest)

    def compare(self, found: str, sent: str) -> None:
        # a file that changed meanwhile is no fault of the way: attempt() tells it
        if found and found != sent and not self.body.changed():
            self.forget()
            raise Transient(
                56,
                f"{self.url} arrived damaged: its SHA-256 is {found}",
                f"{sent} was sent",
                "delete it there, then repeat the command",
                lasting=False,
            )

    def warn_of_time(self) -> None:
        time_of = f"the time of {printable(self.path)}, {self.body.mtime_ns // 10**9} s since 1970"
        say(f"not kept by the server: {time_of}")

    @staticmethod
    def is_doubtful(reply: Reply) -> bool:
        """Whether a success may be the reply to a GET."""
        page = reply.head.status == 200
        return page and (bool(reply.read(1)) or "last-modified" in reply.head.fields)

    def verify(self) -> None:
        """Compare what the server has now with what was sent, because no reply has told that.

        A server that takes no files, such as Caddy, may treat PUT as GET: it replies 200 with
        what it had before."""
        try:
            with self.client.ask("HEAD", self.url, WANTED) as reply:
                head = reply.head
        except Failure:  # it has taken the file, and perhaps ends after that
            return
        length = head.length if head.status == 200 else None
        if length not in (None, self.sent):
            raise Failure(
                56,
                f"{self.url} has {length:,} bytes, {self.sent:,} were sent",
                "the server answered 200 and stored something else, or nothing",
                "use a server that accepts files by PUT",
            )
        found = promised_digest(head) if length and self.body.state else ""
        self.compare(found, found and file_digest(self.path, "sha256"))

    def go_on(self, resource: URL) -> bool:
        """Send what is missing of an upload. Returns False if the server has forgotten it."""
        with self.client.ask("HEAD", resource, DRAFT) as reply:
            head = reply.head
            # busy: the server still waits for a connection that was lost
            if head.status == 503:
                check(reply)
        text, size = head.get("upload-offset"), self.body.length or 0
        complete = head.get("upload-complete") == "?1"
        known = head.status < 400 and re.fullmatch(LENGTH, text) and int(text) <= size
        if not known or complete and int(text) < size:
            return False
        self.offset = int(text)
        if self.kept is None:
            self.kept = self.offset
        if complete:  # only the reply was lost
            self.verify()
        else:
            self.append(resource)
        return True

    def append(self, resource: URL) -> None:
        self.args.progress.begin(self.path, self.offset, self.body.length)
        fields = {
            "Content-Type": "application/partial-upload",
            "Upload-Offset": str(self.offset),
            "Upload-Complete": "?1",
            **DIGEST_WANTED,
            **DRAFT,
        }
        rest = BodySource(self.path, start=self.offset)
        rest.checked = True
        with self.client.ask("PATCH", resource, fields, rest) as reply:
            if reply.head.status == 409:
                raise Transient(
                    55,
                    "the server has another amount of it than it said",
                    "it is still busy with what came",
                    "repeat the command",
                )
            self.check(reply, rest)


def occupied(url: URL, is_folder: bool) -> "Failure":
    what, hint = "another file", "--force replaces it; or put under another name"
    if is_folder:
        what, hint = "a folder", f"{folder_url(url)} puts files into it"
    return Failure(25, f"{url} exists already, and is {what}", "it was left as it is", hint)


def post(client: Client) -> None:
    args = client.args
    url, data, kind = target(args.url, args), args.data, "application/octet-stream"
    if args.form and data is not None:
        raise Failure(
            2,
            "--data and --form are two bodies",
            "a request has one; nothing was sent",
            "--form NAME=VALUE for both",
        )
    if args.form:
        boundary = os.urandom(16).hex()
        kind = f"multipart/form-data; boundary={boundary}"
        body = BodySource(*form_fields(args.form, boundary))
    elif data in ("-", "@-"):
        body = BodySource()
    elif data is None:
        kind, body = "", BodySource(b"")
    elif data.startswith("@"):
        body = BodySource(data[1:])
    else:
        kind, body = "application/x-www-form-urlencoded", BodySource(os.fsencode(data))
    args.progress.begin(str(url), 0, body.length)
    with client.ask("POST", url, {"Content-Type": kind}, body) as reply:
        check(reply)
        with contextlib.closing(Stream("-", args)) as output:
            for chunk in reply.decoded():
                output.write(0, chunk)
    if args.json:
        report(args, url, "posted", size=body.length or 0)


def form_fields(forms: Sequence[str], boundary: str) -> list[Union[bytes, str]]:
    """The fields of multipart/form-data (RFC 7578): NAME=VALUE, or NAME=@FILE."""
    parts: list[bytes | str] = []
    for form in forms:
        name, equals, value = form.partition("=")
        if not equals:
            raise Failure(
                2,
                f"--form {printable(form)} has no equals sign",
                "nothing was sent",
                "--form NAME=VALUE or --form NAME=@FILE",
            )
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{quoted(name)}"'
        content: bytes | str = os.fsencode(value)
        if value.startswith("@"):
            content = value[1:]
            head += f'; filename="{quoted(os.path.basename(content))}"'
            head += "\r\nContent-Type: application/octet-stream"
        parts += [os.fsencode(head + "\r\n\r\n"), content, b"\r\n"]
    return [*parts, f"--{boundary}--\r\n".encode()]


def quoted(name: str) -> str:
    """Quote a name in the head of a form's field as browsers do."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def delete(client: Client) -> None:
    args = client.args

    def delete_url(url: URL) -> None:
        client.retry(lambda: request(client, "DELETE", url))
        report(args, url, "deleted")

    for_each(args, [target(text, args) for text in args.url], delete_url)


def request(client: Client, method: str, url: URL, fields: Optional[Fields] = None) -> None:
    """Send a request whose reply has no body that matters."""
    with client.ask(method, url, fields) as reply:
        check(reply)


def mkdir(client: Client) -> None:
    args = client.args
    url = folder_url(target(args.url, args))  # nginx demands the slash
    request(client, "MKCOL", url)
    report(args, url, "made")


def move(client: Client) -> None:
    args = client.args
    url = target(args.url, args)
    if "://" in args.new:
        new = target(args.new, args)
    else:
        # a folder is renamed like a file, not moved into itself; a:b is no scheme
        sibling = url._replace(target=url.path.rstrip("/"))
        new = sibling.join(encoded(args.new, "/?").replace(":", "%3A"))
    overwrite = "T" if args.force else "F"
    request(client, "MOVE", url, {"Destination": new.full, "Overwrite": overwrite})
    report(args, url, "moved", str(new))


def head(client: Client) -> None:
    args = client.args
    url = target(args.url, args)
    with client.ask("HEAD", url) as reply:
        found = reply.head
    if args.json:
        fields = {name: json_text(value) for name, value in found.fields.items()}
        emit_json(args, {"url": str(url), "status": found.status, "fields": fields})
    else:
        emit(args, printable(found.text.rstrip("\n"), "\n\t"))
    if found.status >= 400:
        check(reply)


# --- folders: list, mirror, upload ---
def list_folder(client: Client) -> None:
    url = folder_url(target(client.args.url, client.args))
    show_folder(Tree(client, url), url, "")


def show_folder(tree: "Tree", url: URL, path: str) -> None:
    """Print what a folder holds; with --recursive also what is in its folders."""
    args = tree.args
    base, entries = tree.listing(url, path)
    for entry in sorted(entries, key=lambda entry: entry.name):
        name = path + entry.name
        if args.json:
            facts = {**entry._asdict(), "name": json_text(name)}
            del facts["special"]
            emit_json(args, facts)
        else:
            size = "-" if entry.size is None else f"{entry.size}"
            when = "-"
            if entry.mtime is not None:
                when = time.strftime("%Y-%m-%d %H:%M", calendar(time.localtime, entry.mtime))
            emit(args, f"{size:>12}  {when:16}  {printable(name)}{'/' * entry.folder}")
        if entry.folder and args.recursive and check_name(entry.name, hidden=True):
            inner = folder_url(base.child(entry.name))
            attempt(args, functools.partial(show_folder, tree, inner, f"{name}/"))


def read_index(reply: Reply) -> list[Entry]:
    url, data = reply.url, reply.read(MAX_LISTING + 1)
    if len(data) > MAX_LISTING:
        raise Failure(
            56,
            f"the index of {url} is over {MAX_LISTING:,} bytes",
            "no more is read into memory",
            "use a folder with fewer entries",
        )
    parse = json_entries if "json" in reply.head.get("content-type") else html_entries
    try:
        return parse(to_text(data), url)
    except (TypeError, ValueError, RecursionError):
        raise broken(url.authority, "an index that is no JSON list though it says so") from None


class Tree:
    """A folder with all that is in it, which list shows, mirror fetches, and upload sends.

    A path is what an entry is called below the folder that was named; a folder's ends in a
    slash."""

    def __init__(self, client: Client, root: URL) -> None:
        self.client, self.args = client, client.args
        self.root = root
        self.sending = client.args.verb == "upload"
        self.there = 0  # entries at the destination
        # of them, what the source does not have: a folder after what is in it
        self.extra: list[tuple[Place, bool]] = []

    def listing(self, url: URL, path: str) -> tuple[URL, list[Entry]]:
        """The URL of a folder after redirects, and its entries."""
        reply, entries = self.ask(url, path)
        base, root = reply.url, self.root
        if base.origin != root.origin or not base.path.startswith(root.path):
            raise Failure(
                56, f"{url} leads out of {root}", "it was not followed", "name that URL by itself"
            )
        return base, entries

    def ask(self, url: URL, path: str, missing: bool = False) -> tuple[Reply, list[Entry]]:
        """Ask for a folder's entries. JSON is preferred; a page of links will do.

        missing: without an index, there are none."""
        if path.count("/") > MAX_DEPTH:
            raise Failure(
                26 if self.sending else 56,
                f"{url} is more than {MAX_DEPTH} folders deep",
                "it was left out",
                f"{self.args.verb} that folder by itself",
            )
        accept = "application/json, text/html;q=0.9, */*;q=0.1"
        fields = {"Accept": accept, "Accept-Encoding": "gzip"}

        def act() -> tuple[Reply, list[Entry]]:
            with self.client.ask("GET", url, fields) as reply:
                if not missing or reply.head.status in PASSING:
                    check(reply)
                return reply, read_index(reply) if reply.head.success else []

        return self.client.retry(act)

    def leaves_out(self, path: str, entry: Entry) -> bool:
        """Whether an entry of the source is not copied. Say why, if nobody asked for that."""
        args, progress, name = self.args, self.args.progress, entry.name
        path += name + "/" * entry.folder
        what, why = "link or special", ""
        if is_part(name):
            if not name.endswith("part"):
                return True  # the note beside it is not worth a line
            what, why = "unfinished", "an unfinished transfer"
        elif not check_name(name, hidden=True):
            why = "no name for a file or folder"
        elif entry.special:
            why = "a link or a special file"
        elif is_excluded(args.exclude, path):
            what = "excluded"
        elif name.startswith(".") and not args.hidden:
            what = "hidden"
            if what not in progress.skipped:  # only the first is told
                why = "its name starts with a dot (--hidden takes such names)"
        else:
            return False
        progress.skipped[what] += 1
        if why and not args.quiet:
            progress.clear()
            say(f"skipped {printable(path)}: {why}")
        return True

    def find_extra(self, place: Place, path: str, names: Container[str] = ()) -> bool:
        """Note what a folder of the destination has besides these names. Returns whether all of it
        may go."""
        whole = True
        if isinstance(place, str):
            entries = local_entries(place)
        else:
            entries = self.listing(folder_url(place), path)[1]
        for entry in entries:
            name, inner = entry.name, path + entry.name + "/" * entry.folder
            allowed = not entry.special and check_name(name, self.args.hidden)
            if not allowed or is_excluded(self.args.exclude, inner):
                whole = False
                continue
            self.there += 1
            if name in names:
                continue
            child = os.path.join(place, name) if isinstance(place, str) else place.child(name)
            if not entry.folder or self.find_extra(child, inner):
                self.extra.append((child, entry.folder))
            else:
                whole = False
        return whole

    def finish(self, folder: str) -> None:
        """Delete what the source does not have, if all else came through. Tell the counts."""
        args, extra = self.args, self.extra if self.args.delete else []
        if extra and args.progress.code:
            say("nothing was deleted, because something failed")
            extra = []
        for where, _ in extra if args.dry_run else []:
            show_plan(args, "delete", where)
        if 2 * len(extra) > self.there and not args.force:
            place = self.root if self.sending else printable(folder)
            raise Failure(
                25 if self.sending else 23,
                f"--delete would remove {len(extra)} of the {self.there} entries of {place}",
                "that is more than half: perhaps another folder is meant",
                "--dry-run shows them, --force removes them",
            )
        if not args.dry_run:
            for_each(args, extra, lambda each: self.remove(*each))
        args.progress.summary(args)

    def remove(self, place: Place, folder: bool) -> None:
        if isinstance(place, str):
            try:
                os.rmdir(place) if folder else os.unlink(place)
            except OSError as error:
                raise unwritable(place, error, 0) from None
            report(self.args, self.root, "deleted", place)
        else:
            url = folder_url(place) if folder else place
            self.client.retry(lambda: request(self.client, "DELETE", url))
            report(self.args, url, "deleted")


def local_entries(folder: str) -> list[Entry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(map(local_entry, entries))
    except OSError as error:
        raise unreadable(folder, error) from None


def local_entry(entry: "os.DirEntry[str]") -> Entry:
    found = stat_or_none(entry.path, follow=False)
    if not found:
        return Entry(entry.name, False)  # it has just been removed: sending it will tell
    # a junction of Windows is a folder in all but this tag: it stands for another name
    junction = getattr(found, "st_reparse_tag", 0) & 0x20000000
    folder = stat.S_ISDIR(found.st_mode) and not junction
    special = not folder and not stat.S_ISREG(found.st_mode)
    # servers keep whole seconds
    mtime = found.st_mtime_ns // 10**9
    return Entry(entry.name, folder, found.st_size, mtime, special=special)


def show_plan(args: argparse.Namespace, what: str, place: Place) -> None:
    """For --dry-run: say what would be done."""
    name = place if isinstance(place, str) else unquoted(place.path)
    args.progress.count(what)
    if args.json:
        facts = {"verb": args.verb, "name": json_text(name), "result": what, "dry_run": True}
        emit_json(args, facts)
    else:
        emit(args, f"{what:7} {printable(name)}")


def mirror(client: Client) -> None:
    args = client.args
    url = folder_url(target(args.url, args))
    name = safe_name(url_name(url._replace(target=url.path.rstrip("/"))))
    copy_tree(client, url, args.output or (name if url.path != "/" else url.host))


def upload(client: Client) -> None:
    args = client.args
    if not os.path.isdir(args.dir):
        raise Failure(
            26,
            f"{printable(args.dir)} is no folder here",
            "upload sends a folder",
            "put sends files",
        )
    copy_tree(client, folder_url(target(args.url, args)), args.dir)


def copy_tree(client: Client, url: URL, folder: str) -> None:
    tree = Tree(client, url)
    copy_folder(tree, os.path.join(folder, ""), url, "")
    tree.finish(folder)


def copy_folder(tree: Tree, here: str, url: URL, path: str) -> None:
    """Fetch or send what is in a folder, then in the folders in it. A file that fails does not stop
    the rest. The path of the folder here has a separator at its end."""
    args = tree.args
    there: dict[str, Entry] | None
    if tree.sending:
        # list first: a server that shares this very folder is about to add one to it, without end
        entries = local_entries(here)
        there = remote(tree, url, path)
    else:
        url, entries = tree.listing(url, path)
        found = make_folder(args, here[:-1] or os.sep, strict=bool(path))
        there = {name: Entry(name, False) for name in found}
    names = {entry.name for entry in entries}
    if args.delete and there:
        tree.find_extra(url if tree.sending else here, path, names)
    if there is None:  # the server does not tell, so any of them may be there
        there = {name: Entry(name, False) for name in names}
    wanted = [entry for entry in entries if not tree.leaves_out(path, entry)]
    copy_files(tree, here, url, [entry for entry in wanted if not entry.folder], there)

    def copy_inner(entry: Entry) -> None:
        inner = folder_url(url.child(entry.name))
        copy_folder(tree, here + entry.name + os.sep, inner, f"{path}{entry.name}/")

    for_each(args, [entry for entry in wanted if entry.folder], copy_inner)


def copy_files(
    tree: Tree, here: str, base: URL, files: list[Entry], there: dict[str, Entry]
) -> None:
    """Fetch or send the files of a folder, except those that are the same at both ends."""
    args, jobs = tree.args, {base.child(file.name): file for file in files}
    args.progress.expect([file.size for file in files])
    known = {
        url: there[file.name] if tree.sending else file
        for url, file in jobs.items()
        if file.name in there
    }
    for url in find_same(tree, here, jobs, known):
        file = jobs.pop(url)
        report(args, url, "same", here + file.name, file.size or 0)
    if args.dry_run:
        for url, file in jobs.items():
            place = url if tree.sending else here + file.name
            show_plan(args, "replace" if url in known else "new", place)
    elif tree.sending:
        send_files(tree, here, jobs)
    else:
        fetch_files(tree, here, base, jobs, there)


def find_same(tree: Tree, here: str, jobs: Files, known: Files) -> list[URL]:
    """Which files are the same at both ends. known: what the server's index says of those that are
    at both. Where it does not tell, HEAD does."""
    client, args = tree.client, tree.args
    if not tree.sending and args.force:
        return []
    keeps_times = any(entry.etag for entry in known.values())  # as our own server does
    unsure = [url for url, entry in known.items() if entry.size is None or entry.mtime is None]
    for url, reply in client.pipeline("HEAD", unsure, client.asking("HEAD", tree.root, IDENTITY)):
        if reply.head.status == 200:
            known[url] = entry_of(reply.head)
        elif reply.head.status == 404:
            del known[url]
    if not tree.sending:
        return [url for url in known if same_here(args, here + jobs[url].name, url, known[url])]
    exact = [url for url in known if is_copy(known[url], jobs[url], True)]
    # a server that keeps one file's time keeps all
    if exact or keeps_times:
        return exact
    return [url for url in known if is_copy(known[url], jobs[url], False)]


def fetch_files(tree: Tree, folder: str, base: URL, jobs: Files, there: Iterable[str]) -> None:
    """Fetch files in a pipeline, and what that leaves one by one."""
    client, args = tree.client, tree.args

    def download(url: URL) -> Download:
        return Download(client, url, folder, jobs[url].name, replace=True)

    begun = set(filter(is_part, there))  # these are continued by Range
    urls = [url for url in jobs if not begun or part_name(url) not in begun]
    for url, reply in client.pipeline("GET", urls, client.asking("GET", base, WANTED)):
        if reply.head.status == 200:
            attempt(args, functools.partial(download(url).run, reply))
            del jobs[url]
    for_each(args, list(jobs), lambda url: download(url).run())


def send_files(tree: Tree, folder: str, jobs: Files) -> None:
    """Send short files in a pipeline, the rest one by one."""
    client, uploads = tree.client, dict[URL, Upload]()

    def make(url: URL) -> bytes:
        path = folder + jobs[url].name
        uploads[url] = Upload(client, url, BodySource(path), path)
        return uploads[url].as_request()

    short = [url for url, file in jobs.items() if (file.size or 0) <= NOTED_FROM]
    for url, reply in client.pipeline("PUT", short, make):
        if uploads.pop(url).is_done(reply):
            del jobs[url]
        elif reply.head.success or reply.head.status in {*REDIRECTS, 401, 405, 501}:
            break  # all others would get the same reply
    for_each(tree.args, list(jobs), lambda url: send_file(client, folder + jobs[url].name, url))


def remote(tree: Tree, url: URL, path: str) -> Optional[dict[str, Entry]]:
    """What a server has in a folder, which is made if it is missing. None if the server does not
    tell."""
    reply, entries = tree.ask(url, path, missing=True)
    status = reply.head.status
    if status == 404 and not tree.args.dry_run:
        # many servers know no MKCOL, and make folders when a file comes
        with tree.client.ask("MKCOL", url):
            pass
    return {entry.name: entry for entry in entries} if status in (200, 404) else None


def entry_of(head: Head) -> Entry:
    """What a reply says of a file."""
    return Entry("", False, head.length, head.modified, head.get("etag"))


def folder_url(url: URL) -> URL:
    return url if url.path.endswith("/") else url._replace(target=url.path + "/")


def make_folder(args: argparse.Namespace, path: str, strict: bool = False) -> set[str]:
    """Make a folder, and return the names in it.

    Inside a mirror it must not be a link, which could lead out of the mirror."""
    if not os.path.isdir(path):
        refuse_program(path)  # Python runs the __main__.py in a folder
    try:
        if not args.dry_run:
            os.makedirs(path, exist_ok=True)
        if strict and os.path.islink(path):
            raise OSError(errno.ELOOP, "it is a link to elsewhere")
        # a drop box can be written to, but not read
        names = set(os.listdir(path)) if os.access(path, os.R_OK) else set[str]()
        if not args.dry_run:
            remove_old_parts(path, names)
        return names
    except OSError as error:
        raise unwritable(path, error, 0) from None


# --- logins and proxies ---
def login_fields(url: URL, args: argparse.Namespace) -> Fields:
    """What the user gave for one server only: -H, and the login."""
    fields = dict(args.header)
    if "authorization" not in {name.lower() for name in fields}:
        fields["Authorization"] = authorization(url, args)
    return fields


def authorization(url: URL, args: argparse.Namespace) -> str:
    """The login from the URL, the command line, the environment (only for --host), or .netrc."""
    if login := url.login or args.user:
        return basic(login)
    if password := given_password(args, url.host, url.port):
        return basic(":" + password)
    path = os.path.expanduser("~/.netrc")
    return netrc_login(path, url.host) if os.path.isfile(path) else ""


def netrc_login(path: str, host: str) -> str:
    import netrc

    try:
        found = netrc.netrc(path).authenticators(host)
    except (OSError, ValueError, netrc.NetrcParseError) as error:
        # ValueError: it is not UTF-8. Do not print the error's text: it may quote a password
        reason = f"it is malformed near line {getattr(error, 'lineno', '?')}"
        raise Failure(
            26,
            f"cannot read {printable(path)}: {getattr(error, 'strerror', '') or reason}",
            "it may hold the login for this server",
            "repair the file or rename it",
        ) from None
    return basic(f"{found[0]}:{found[2]}") if found else ""


def basic(login: str) -> str:
    return "Basic " + b64(to_bytes(login if ":" in login else login + ":"))


def proxy_login(proxy: Optional[URL]) -> Fields:
    return {"Proxy-Authorization": basic(proxy.login)} if proxy and proxy.login else {}


def proxy_for(url: URL, args: argparse.Namespace) -> Optional[URL]:
    """The proxy for a URL. HTTP_PROXY in capitals is not read: in a CGI script it is a request's
    field."""
    text = proxy_of_environment(url) if args.proxy is None else args.proxy
    if not text:
        return None
    proxy = parse_url(text if "://" in text else "http://" + text)
    if proxy.scheme != "http":
        raise Failure(
            2,
            f"{proxy} is not a proxy URL that begins with http://",
            "nothing was sent",
            "http://HOST:PORT, for https too",
        )
    return proxy


def proxy_of_environment(url: URL) -> str:
    value = os.environ.get
    direct = value("no_proxy") or value("NO_PROXY") or ""
    for domain in direct.lower().replace(",", " ").split():
        if domain == "*" or f".{url.host}".endswith("." + domain.lstrip(".")):
            return ""
    https = value("https_proxy") or value("HTTPS_PROXY")
    own = https if url.scheme == "https" else value("http_proxy")
    return own or value("all_proxy") or value("ALL_PROXY") or ""


def address_of(url: URL, family: Optional[int]) -> str:
    """The host, or with -4 or -6 its first address of that family."""
    if family is None:
        return url.host
    for found, target in resolve(url.host, url.port, socket.SOCK_STREAM):
        if found == family:
            return str(target[0])
    raise Failure(
        6,
        f"{url.host} has no address of the family that -4 or -6 asks for",
        "nothing was sent",
        "leave -4 or -6 out",
    )


def server_command(url: URL, proxy: Optional[URL]) -> str:
    """The command that starts the server which does not answer."""
    if proxy:
        return f"--proxy or the environment names the proxy {proxy.authority}: is that right?"
    tls = " --tls" * (url.scheme == "https")
    if url.host in ("127.0.0.1", "localhost"):
        return f"python3 httpserver.py --port {url.port}{tls}"
    import shlex

    return f"python3 httpserver.py --host {shlex.quote(url.host)} --port {url.port}{tls}"


# --- pure functions: URLs, heads, dates, names, indexes ---
def parse_url(text: str) -> URL:
    """Parse an absolute URL as people write it.

    Spaces and umlauts are encoded; what is encoded already stays."""
    reason = ""
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode()
        host = host.replace("%25", "%", 1)  # before the zone of a link-local address
    except ValueError as error:
        percent = "is a character in the password not percent-encoded?"
        reason = percent if "@" in text else printable(str(error))
    if reason or scheme not in PORTS or not re.fullmatch(HOST, host):
        # the end of the login is uncertain, so hide all before the last @
        safe = printable(re.sub(r"(?s)^.*@", "...@", text))
        problem = f"no URL ({reason})" if reason else "no http or https URL"
        raise Failure(2, f"{safe} is {problem}", "nothing was sent", "http://HOST:PORT/PATH")
    query = "?" + encoded(parts.query, "/?[]") if parts.query else ""
    path = encoded(parts.path or "/", "/")
    login = unquoted(parts.netloc.rpartition("@")[0])
    return URL(scheme, host, PORTS[scheme] if port is None else port, path + query, login)


def encoded(text: str, also: str) -> str:
    text = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text)
    return quote(to_bytes(text), safe="%!$&'()*+,;=:@" + also)


def unquoted(text: str) -> str:
    """Percent-decoded, as a name or login. Bytes that are no UTF-8 are kept."""
    return os.fsdecode(unquote_to_bytes(to_bytes(text)))


@functools.lru_cache(maxsize=16)  # short files of one age often have equal heads
def parse_head(raw: bytes) -> Head:
    """Parse a head (RFC 9112 sections 4 and 5). Raises ValueError for a malformed one.

    No guesses: two programs that guess differently let an attacker in between."""
    if b"\0" in raw or raw.count(b"\r") != raw.count(b"\r\n"):
        raise ValueError("a NUL or a bare CR in its head")
    first, _, rest = to_text(raw).replace("\r", "").rstrip("\n").partition("\n")
    rest = re.sub(FOLD, " ", rest)
    found = re.fullmatch(STATUS_LINE, first)
    if not found:
        raise ValueError(f"{first[:60]!r} where HTTP/1.1 and a status belong")
    fields: Fields = {}
    for name, value, other in re.findall(FIELD, rest):
        if other:
            raise ValueError(f"{other[:60]!r} where a header belongs")
        name, value = name.lower(), value.strip(" \t")
        if name in fields:
            if name == "location" and fields[name] != value:
                raise ValueError("two places to go to")
            value = f"{fields[name]}, {value}"
        fields[name] = value
    version, status, reason = found.groups("")
    words, encoded_by = listed(fields, "connection"), listed(fields, "content-encoding")
    return Head(
        int(status),
        reason,
        fields,
        content_length(fields),
        content_range(fields) if status in ("206", "416") else None,
        parse_date(fields.get("last-modified", "")),
        # none: some servers say so
        [word.removeprefix("x-") for word in encoded_by if word not in ("identity", "none")],
        "keep-alive" in words if version == "1.0" else "close" not in words,
        f"{first}\n{rest}",
    )


def listed(fields: Fields, name: str) -> list[str]:
    """The words of a field that holds a list, in lower case."""
    words = fields.get(name, "").lower().split(",")
    return [word.strip() for word in words if word.strip()]


def content_length(fields: Fields) -> Optional[int]:
    """RFC 9112 section 6.3: Transfer-Encoding overrides it, and repeated numbers must be equal."""
    if "content-length" not in fields or "transfer-encoding" in fields:
        return None
    items = [item.strip() for item in fields["content-length"].split(",")]
    if not all(re.fullmatch(LENGTH, item) for item in items) or len(set(map(int, items))) > 1:
        raise ValueError("a Content-Length that is no number, or several")
    return int(items[0])


def content_range(fields: Fields) -> Optional[tuple[int, int, int]]:
    """The first byte, the byte after the last, and the size of the whole file, of a 206 or 416.

    (-1, 0, size) means that the range could not be satisfied."""
    found = re.fullmatch(CONTENT_RANGE, fields.get("content-range", ""))
    if not found or found[3] == "*":
        return None
    first, last, size = map(int, found.groups("-1"))
    return first, last + 1, size


@functools.lru_cache(maxsize=64)  # the files of a folder share many dates
def parse_date(text: str) -> Optional[float]:
    """Seconds since 1970. Reads the date of RFC 9110 section 5.6.7 that is not obsolete, and ISO
    8601."""
    if found := re.fullmatch(DATE, text):
        day, month, year, clock = found.groups()
        text = f"{year}-{MONTHS.find(month) // 3 + 1:02}-{day}T{clock}Z"
    # a leap second is read as the one before it
    found = re.fullmatch(ISO_DATE, text.replace(":60Z", ":59Z"))
    if not found:
        return None
    import datetime  # not at the top: few replies have a date that matters

    with contextlib.suppress(ValueError):  # such as 30 February
        return datetime.datetime.fromisoformat(f"{found[1]}+00:00").timestamp()
    return None


def source_of(head: Head) -> Source:
    span, date, modified = head.range, parse_date(head.get("date")), head.modified
    # within the same second, the file may change again
    settled = date is not None and modified is not None and modified < date
    validator = head.get("last-modified") if settled else ""
    size = span[2] if span else head.length
    return Source(head.get("etag"), validator, size, promised_digest(head))


def promised_digest(head: Head) -> str:
    digest = head.get("repr-digest") or head.get("digest")
    found = digest and re.search(SHA256_FIELD, digest)
    return binascii.a2b_base64(found[1]).hex() if found else ""


def disposition_name(value: str) -> str:
    """The file name in a Content-Disposition, if any (RFC 6266)."""
    if found := re.search(FILENAME_STAR, value):
        return unquoted(found[1])
    found = re.search(FILENAME, value)
    return re.sub(r"\\(.)", r"\1", found[1] or found[2] or "") if found else ""


def safe_name(name: str) -> str:
    """A file name from what a server proposes: no folder, not hidden, not too long."""
    name = re.sub(r"[\x00-\x1f\x7f-\x9f]", "_", re.split(r"[/\\]", name)[-1])
    name = re.sub(r"^\.", "_", name)
    if os.name == "nt":
        name = re.sub(WINDOWS_ILLEGAL, "_", name)
    if len(os.fsencode(name)) > 255:  # the limit of most file systems
        stem, ending = map(os.fsencode, os.path.splitext(name))
        name = os.fsdecode(stem[:200] + ending[:50])
    return name or "index.html"


def check_name(name: str, hidden: bool) -> bool:
    """Whether a name from a server's index may become a file or folder here."""
    if name in ("", ".", "..") or re.search(r"[/\0]", name) or is_part(name):
        return False
    if name.startswith(".") and not hidden:
        return False
    return os.name != "nt" or not re.search(WINDOWS_ILLEGAL, name)


def is_part(name: str) -> bool:
    return name.startswith(".six-") and re.fullmatch(PART_NAME, name) is not None


def html_entries(text: str, url: URL) -> list[Entry]:
    """The links of an index page that lead to something in that folder.

    Links that sort the page or lead up do not."""
    links = ["".join(groups) for groups in re.findall(LINK, text)]
    names = dict.fromkeys(child_name(unescaped(link).strip(), url) for link in links)
    return [Entry(unquoted(name.rstrip("/")), name.endswith("/")) for name in names if name]


def unescaped(text: str) -> str:
    if "&" in text:
        import html

        text = html.unescape(text)
    return text


def child_name(reference: str, url: URL) -> str:
    """The name, still encoded, that a link gives to something in a folder; "" if it leads
    elsewhere."""
    if re.fullmatch(PLAIN, reference):
        return reference
    with contextlib.suppress(Failure):
        link = url.join(reference.partition("#")[0])
        name = link.target[len(url.path) :]
        if link.full.startswith(url.origin + url.path) and not re.search("[?]|/.", name):
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


def json_entry(item: Facts) -> Optional[Entry]:
    get = item.get
    name: Any = get("name")
    size, mtime, etag = get("size"), get("mtime", get("mod_time")), get("etag")
    link = get("href", get("url"))
    try:
        # exact even where the name is no text
        name = unquoted(link.removeprefix("./")) if isinstance(link, str) else name
        os.fsencode(name)
    except (TypeError, UnicodeError):  # no str, or half a surrogate pair: it stands for no bytes
        return None
    kind = get("type") in ("directory", "folder", "dir")
    folder = kind or get("is_dir") is True or name.endswith("/")
    mtime = parse_date(mtime) if isinstance(mtime, str) else mtime
    mtime = mtime if isinstance(mtime, (int, float)) and abs(mtime) < LATEST else None
    size = size if isinstance(size, int) and not folder else None
    return Entry(name.rstrip("/"), folder, size, mtime, etag if isinstance(etag, str) else "")


def printable(text: str, keep: str = "") -> str:
    """Text for people. Undecodable bytes and control characters appear as \\x1b, unless kept."""
    return "".join(
        char if char.isprintable() or char in keep else ascii(char)[1:-1]
        for char in json_text(text)
    )


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def to_text(data: bytes) -> str:
    """Decode UTF-8. to_bytes() restores bytes that are none."""
    return data.decode("utf-8", "surrogateescape")


def json_text(text: str) -> str:
    """Text that every JSON reader accepts: bytes that are no UTF-8 appear as \\x80."""
    return to_bytes(text).decode(errors="backslashreplace")


def b64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def hasher(name: str, data: Data = b"") -> "hashlib._Hash":
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
    return printable(" | ".join([line[:200] for line in lines if line][:SHOWN_LINES]))


# --- trust: the same in client.py, httpclient.py (tests/test_twins.py) ---
NO_TLS = "WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE"
TLS_TROUBLE = (  # by the endings of OpenSSL's reason
    (
        ("ACCESS_DENIED",),
        67,
        "lets nobody in from this address for a minute",
        "too many wrong passwords came from it",
        "wait for a minute, then repeat the command",
    ),
    (
        ("INTERNAL_ERROR",),
        7,
        "takes no connection now",
        "it has as many clients as it takes, or trouble",
        "repeat the command when a client has left; the server's log tells more",
    ),
    (
        NO_TLS,
        56,
        "speaks no TLS on that port",
        "what came was not encrypted",
        "leave out --tls, --pin, --cacert, --insecure; in a URL write http:// instead of https://",
    ),
    (
        ("UNSUPPORTED_PROTOCOL", "PROTOCOL_VERSION"),
        56,
        "speaks only TLS that is older than 1.2",
        "that is not safe any more",
        "update the server, so that it speaks TLS 1.2",
    ),
)


def given_password(args: argparse.Namespace, host: str, port: int) -> str:
    """--password is for each server that the command names; the password in the environment is
    only for --host and --port."""
    if args.password is not None:
        return str(args.password)
    named = (host, port) == (args.host, args.port)
    return os.environ.get("SIXSOCKETS_PASSWORD", "") if named else ""


def wants_tls(args: argparse.Namespace) -> bool:
    return bool(args.tls or args.pin or args.cacert or args.insecure)


def client_tls(args: argparse.Namespace, checked: bool) -> "ssl.SSLContext":
    """Which servers to trust. --pin needs no authority: it names the certificate itself."""
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
            f"cannot read the authorities in {args.cacert!a} ({error.strerror or error})",
            "a PEM file is expected",
            "--cacert FILE",
        ) from None
    return context


def encrypt(
    dial: Callable[[], socket.socket],
    host: str,
    args: argparse.Namespace,
    protocols: Sequence[str] = (),
    checked: bool = True,
) -> "ssl.SSLSocket":
    """Connect, and check that the peer is the one that it should be; nothing is sent on it yet.

    Unchecked, the caller needs another proof. An OSError: it was lost during the handshake."""
    context = client_tls(args, checked)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    secured = over_tls(context, dial(), host)
    try:
        shake_hands(secured)
        found = fingerprint(secured.getpeercert(binary_form=True))
        check_pin(args, host, found)
    except BaseException as error:
        secured.close()
        raise tls_failure(error, dial, host, args) from None
    if args.insecure and not args.pin and checked:
        unknown = f"whether {host} is who it says (the SHA-256 of its certificate is {found})"
        say_once(f"not checked, for --insecure: {unknown}")
    return secured


def check_pin(args: argparse.Namespace, host: str, found: str) -> None:
    if args.pin and not found.startswith(args.pin):
        raise Failure(
            60,
            f"{host} shows another certificate than the one pinned",
            f"its SHA-256 is {found}",
            "if it has been restarted, the pin that it printed; if not, somebody is in between",
        )


def tls_failure(
    error: BaseException, dial: Callable[[], socket.socket], host: str, args: argparse.Namespace
) -> BaseException:
    """What to raise for an error during the handshake: itself, if it is none of TLS."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        found = certificate_of(dial, host, args)
        signed = "nobody known here has signed its certificate for that name"
        return Failure(
            60,
            f"{host} is not trusted ({error.verify_message})",
            f"{signed}; its SHA-256 is {found}",
            "--cacert FILE, or --pin SHA256 as the server printed it",
        )
    if isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError):
        return error
    reason = str(error.reason)
    for endings, code, what, why, hint in TLS_TROUBLE:
        if reason.endswith(endings):
            return Failure(code, f"{host} {what}", why, hint)
    return Failure(
        56,
        f"{host} refuses TLS with this client ({reason})",
        "it speaks other versions or ciphers than this client",
        "check host and port; the server may need a newer TLS",
    )


def certificate_of(dial: Callable[[], socket.socket], host: str, args: argparse.Namespace) -> str:
    """The SHA-256 of a certificate that is not trusted: OpenSSL tells it only on a connection that
    does not check. Nothing is sent on that one."""
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
    if not re.fullmatch(r"[0-9a-f]{16,64}", value):
        what = "the SHA-256 of a certificate in hex, or the first 16 digits of it or more"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
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


# --- trees: the same in client.py, httpclient.py (tests/test_twins.py) ---
# the parts of a pattern, and what they match; only ** matches a slash
PIECE = re.compile(r"(?<![^/])\*\*/|/\*\*\Z|\*+|\?|\[[!^]?[^]/]+\]|.", re.DOTALL)
WILD = {"**/": "(?:[^/]+/)*", "/**": "/.+", "*": "[^/]*", "?": "[^/]"}


def pattern(text: str) -> "re.Pattern[str]":
    """An argparse type: the paths in a folder that a pattern in .gitignore's simple form means.

    Without a slash inside it matches a name at any depth, with one it begins at the folder that was
    named. A slash at its end: folders only. What is in a folder that matches, matches too."""
    anywhere = "" if "/" in text.rstrip("/") else "(?:.*/)?"
    below = "/.*" if text.endswith("/") else "(?:/.*)?"
    core = PIECE.sub(lambda found: as_expression(found[0]), text.strip("/"))
    with contextlib.suppress(re.error):
        if core and not text.startswith("!"):
            return re.compile(anywhere + core + below, re.DOTALL)
    raise argparse.ArgumentTypeError(f"{text!r} is no pattern such as '*.tmp', build/ or a/*.jpg")


def as_expression(piece: str) -> str:
    if piece[0] == "[" and len(piece) > 1:
        inside = re.sub(r"[\\\[&|~]", r"\\\g<0>", piece[1:-1].replace("!", "^", piece[1] == "!"))
        return f"(?!/)[{inside}]"
    return WILD.get(piece) or (WILD["*"] if piece[0] == "*" else re.escape(piece))


def is_excluded(patterns: Optional[Sequence["re.Pattern[str]"]], path: str) -> bool:
    """Whether --exclude means that path below the folder that was named. A folder's ends in "/"."""
    return any(each.fullmatch(path) for each in patterns or ())


def tree_flags(flag: Callable[..., object]) -> None:
    several = "may be given several times"
    text = f"leave out what matches, as in .gitignore; {several}"
    flag("--exclude", type=pattern, action="append", metavar="PATTERN", help=text)
    flag("--dry-run", action="store_true", help="show what would be done, and change nothing")
    text = "of a folder, also delete what the source no longer has"
    flag("--delete", action="store_true", help=text)
    flag("--limit-rate", type=parse_size, metavar="N", help="bytes a second at most, such as 500k")


class Pace:
    """Not more than so many bytes a second."""

    def __init__(self, rate: int) -> None:
        self.rate, self.due = rate, 0.0
        self.piece = max(1, rate // 10)  # bytes at once: those of a tenth of a second

    def wait(self, count: int) -> None:
        """After so many bytes, wait until the next may come or go."""
        now = time.monotonic()
        self.due = max(self.due, now) + count / self.rate
        time.sleep(self.due - now)


# --- end trees ---


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


@functools.lru_cache(maxsize=64)
def nears_program(folder: str) -> bool:
    """Whether any name in a folder could be that of a program: one answer for all its files.

    holds_program() takes a last component that is a link for a name, but DEST may be a link."""
    return holds_program(os.path.realpath(folder))


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


# --- waiting: the same in client.py, httpclient.py (tests/test_twins.py) ---
STEP = 0.2  # seconds until Ctrl-C is heeded on Windows


def await_data(sock: socket.socket) -> None:
    """On Windows Ctrl-C ends no recv() before its time: wait in steps until something is there."""
    limit, start = sock.gettimeout(), time.monotonic()
    while os.name == "nt" and not select.select([sock], [], [], STEP)[0]:
        if limit is not None and time.monotonic() - start > limit:
            raise socket.timeout("timed out")


# --- end waiting ---


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


# --- terminals: the same in all four clients (tests/test_twins.py) ---
def is_terminal(fd: int) -> bool:
    """Whether a person is there. Windows says so of NUL too, which is no console."""
    if os.name != "nt" or not os.isatty(fd):
        return os.isatty(fd)
    with open(fd, "wb" if fd else "rb", buffering=0, closefd=False) as stream:
        return not isinstance(stream, io.FileIO)


# --- end terminals ---


# --- consoles: the same in client.py, httpclient.py (tests/test_twins.py) ---
def write_some(fd: int, data: Union[bytes, memoryview]) -> int:
    """os.write(), except that a console of Windows gets text: bytes appear by a code page."""
    if os.name != "nt":
        return os.write(fd, data)
    with open(fd, "wb", buffering=0, closefd=False) as stream:
        return stream.write(data) or 0


# --- end consoles ---


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


class Changed(Failure):
    """The file on the server changed while its ranges were fetched."""


def lines_of(failure: Failure) -> list[str]:
    """The three lines, without what each begins with."""
    return [line[7:] for line in str(failure).split("\n")]


class Transient(Failure):
    """A failure that may pass, so that a retry makes sense. after: the seconds that the server
    named. lasting: worth minutes of retries."""

    def __init__(
        self,
        code: int,
        error: str,
        why: str,
        hint: str,
        *,
        after: Optional[float] = None,
        lasting: bool = True,
    ) -> None:
        super().__init__(code, error, why, hint)
        self.after, self.lasting = after, lasting

    def given_up(self, count: int) -> Failure:
        """What is reported when no retry follows: with the bytes that have passed until then."""
        error, why, hint = lines_of(self)
        if self.after and self.after > LONGEST_WAIT:
            hint = f"repeat the command in {self.after:.0f} s: so long the server wants you to wait"
        elif count:
            hint = f"repeat the command: {readable_size(count)} have passed, and it goes on from"
            hint += " what can be continued"
        return Failure(self.code, error, why, hint)


# --- progress and reports ---
# what else the last line says of many files
SUMMED = {
    "same": "; {} already there",
    "skipped": "; skipped {}",
    "deleted": "; deleted {}",
    "delete": "; would delete {}",
    "failed": "; {} failed",
}


class Progress:
    """A line on the terminal about one file or many, and what became of them. Nothing is drawn
    elsewhere."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.quiet = args.quiet
        self.drawing = is_terminal(2) and not (
            args.quiet or args.verbose or args.trace or args.trace_hex
        )
        self.name = ""
        self.total: int | None = None  # bytes, as far as that is known
        # bytes: that needed no transfer, that were transferred, and both of the current file
        self.spared = self.moved = self.current = 0
        self.files = 0  # of a folder, as far as they are known
        self.results = Counter[str]()  # of many files: how many were saved, same, sent
        self.skipped = Counter[str]()
        self.code = 0  # the exit code: that of the first failure
        self.pause_ends = 0.0
        self.began = self.drawn = time.monotonic()

    def begin(self, name: str, done: int, total: Optional[int]) -> None:
        """A file begins or goes on, with so many bytes done."""
        self.name = name
        if self.files:
            self.spared += done - self.current
        else:
            self.spared, self.moved, self.total, self.began = done, 0, total, time.monotonic()
        self.current = done

    def expect(self, sizes: list[Optional[int]]) -> None:
        """Announce more files. From now on, the line is about all of them."""
        self.files += len(sizes)
        self.total = (self.total or 0) + sum(size or 0 for size in sizes)

    def count(self, result: str, size: Optional[int] = 0) -> None:
        """A file is finished; so many bytes of it needed no transfer."""
        self.results[result] += 1
        self.spared += size or 0
        self.current = 0

    def add(self, count: int) -> None:
        """Count bytes. If several threads call it at once, the line may be a few bytes short."""
        self.moved += count
        self.current += count
        if self.drawing and time.monotonic() - self.drawn > DRAWN_EVERY:
            self.draw()

    def facts(self) -> list[str]:
        """What the line tells, the most important first; nothing before there is something to
        say."""
        total, elapsed, moved = self.total, self.drawn - self.began, self.moved
        done = self.spared + moved
        facts = [readable_size(done)]
        if self.files:
            files = f"{self.files:,} file{'s' * (self.files != 1)}"
            facts = [f"{sum(self.results.values()):,} of {files}", facts[0]]
            facts[1] += f" of {readable_size(max(total or 0, done))}"
        elif total:
            facts.insert(0, f"{100 * done // total:3}%")
        if moved and elapsed > 1:
            facts.append(f"{readable_size(moved / elapsed)}/s")
            if total and not self.files:
                left = elapsed * (total - done) / moved
                facts.append(f"{left // 60:.0f}:{left % 60:02.0f} left")
        return facts

    def draw(self) -> None:
        """Draw the line, with as much as the window is wide, so that it never wraps."""
        self.drawn = time.monotonic()
        # the window of the terminal may have been closed: go on without
        with contextlib.suppress(OSError):
            width = (os.get_terminal_size(2).columns or 80) - 1  # 0: it does not know
            facts, name = self.facts(), printable(self.name)
            # of one file, read its name rather than the last facts; of many, each passes quickly
            room = width if self.files else max(width - NAME_ROOM, 0)
            while len(text := "  ".join(facts)) > room:
                facts.pop()
            if self.total and not self.files and columns(name) + 2 + len(text) + 23 <= width:
                text = f"[{'#' * (20 * (self.spared + self.moved) // self.total):20}] {text}"
            while name and columns(name) + 2 + len(text) > width:
                name = name[:-1]
            say(f"\r{name}{'  ' * bool(name)}{text}\x1b[K", "")

    def wait(self, problem: str, pause: float) -> None:
        """Pause before a retry, and tell it once, even if several connections wait at a time."""
        now = time.monotonic()
        if now >= self.pause_ends:
            self.pause_ends = now + pause
            self.clear()
            if not self.quiet:
                say(f"{problem}; trying again in {pause:.1f} s")
        time.sleep(pause)

    def clear(self) -> None:
        if self.drawing:
            say("\r\x1b[K", "")

    def summary(self, args: argparse.Namespace) -> None:
        """One line about many files, with the words of client.py."""
        self.clear()
        counts, seconds = self.results, time.monotonic() - self.began
        done = sum(counts[name] for name in ("saved", "sent", "new", "replace"))
        moved = self.moved
        if args.json:
            facts = {"verb": args.verb, "files": done, "bytes": moved, "seconds": round(seconds, 3)}
            facts.update({name: counts[name] for name in ("same", "deleted", "failed")})
            return emit_json(args, {**facts, "skipped": sum(self.skipped.values())})
        files = f"{done} file{'s' * (done != 1)}"
        text = f"{args.verb}: {files}, {readable_size(moved)} in {seconds:.2f} s"
        text += f" ({readable_size(moved / max(seconds, 1e-3))}/s)" * bool(moved)
        if args.dry_run:
            would = "fetch" if args.verb == "mirror" else "send"
            text = f"{args.verb} --dry-run: would {would} {files}"
        left_out = ", ".join(f"{count} {what}" for what, count in self.skipped.items())
        told = {**counts, "skipped": left_out}
        text += "".join(SUMMED[name].format(told[name]) for name in SUMMED if told.get(name))
        if not args.quiet:
            say(text)


def columns(text: str) -> int:
    """How wide text is on a terminal, at most: characters of East Asia take two columns."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def emit(args: argparse.Namespace, line: str) -> None:
    """Write a line of the result to standard output at once."""
    args.progress.clear()
    Stream("-", args).write(0, f"{line}\n".encode())


def emit_json(args: argparse.Namespace, facts: Facts) -> None:
    import json

    emit(args, json.dumps(facts))


def report(
    args: argparse.Namespace,
    url: URL,
    result: str,
    path: str = "",
    size: int = 0,
    seconds: Optional[float] = None,
) -> None:
    """Report one transfer: a line for people, or with --json an object for programs."""
    args.progress.count(result, size if result == "same" else 0)
    args.progress.clear()
    if args.json:
        facts = {"result": result, "url": str(url), "file": json_text(path), "bytes": size}
        emit_json(args, {**facts, "seconds": seconds and round(seconds, 3)})
    elif not args.quiet and not args.progress.files:
        text = (
            f"moved {url} to {path}" if result == "moved" else f"{result} {printable(path) or url}"
        )
        if seconds and result != "same":
            text += f" ({size:,} bytes, {readable_size(size / max(seconds, 1e-6))}/s)"
        say(text)


def attempt(args: argparse.Namespace, act: Callable[[], object]) -> None:
    """Act, and report a failure, which stops nothing."""
    try:
        act()
    except Failure as failure:
        args.progress.code = args.progress.code or failure.code
        args.progress.clear()
        say(str(failure))
        args.progress.count("failed")
        if args.json:
            error = lines_of(failure)[0]
            emit_json(args, {"result": "failed", "code": failure.code, "error": error})


def for_each(args: argparse.Namespace, items: Iterable[T], act: Callable[[T], object]) -> None:
    for item in items:
        attempt(args, functools.partial(act, item))


# --- the command line ---
def target(text: str, args: argparse.Namespace) -> URL:
    """A URL as people type it. --host and --port complete /path, and http:// may be left out."""
    if text.startswith("/"):
        text = host_url(args) + text
    return parse_url(text if "://" in text else scheme(args) + text)


def host_url(args: argparse.Namespace) -> str:
    host = f"[{args.host}]" if ":" in args.host else args.host
    return f"{scheme(args)}{host}:{args.port}"


def scheme(args: argparse.Namespace) -> str:
    return f"http{'s' * wants_tls(args)}://"


def header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(TOKEN, name) or re.search(r"[\r\n\0]", value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME: VALUE")
    return name, value.strip()


def bearer(text: str) -> tuple[str, str]:
    return header(f"Authorization: Bearer {text}")


def checksum(text: str) -> tuple[str, str]:
    name, _, value = text.partition(":")
    digits = {"md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128}.get(
        name
    )
    if len(value) != digits or not re.fullmatch("[0-9a-fA-F]+", value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:HEX, such as sha256:9f86d0...")
    return name, value.lower()


ALL = ""
# the verbs that have a flag, its names, its argument (none: a switch) with its type, and its text
FLAGS: tuple[tuple[str, str, str, Callable[[str], Any], str], ...] = (
    (ALL, "--host", "HOST", str, "completes an argument that starts with / (default 127.0.0.1)"),
    (ALL, "--port", "PORT", between(1, 65535), "the same (default 8000)"),
    (ALL, "--user", "USER:PASSWORD", str, "log in with Basic"),
    (ALL, "--proxy", "URL", str, "go through this proxy; '' for none"),
    (ALL, "--timeout", "S", between(0.01, 1e6, float), "silence allowed (default 30)"),
    (ALL, "--retries", "N", between(0, 1000), "tries without progress (default 16: two minutes)"),
    (ALL, "--quiet", "", bool, "no progress, no reports"),
    (ALL, "--json", "", bool, "a JSON object for each transfer on standard output"),
    (ALL, "-v --verbose", "", bool, "show the heads of requests and replies"),
    (ALL, "--trace", "", bool, "print a line for each socket call"),
    (ALL, "--trace-hex", "", bool, "the same, with the first bytes"),
    (ALL, "--pcap", "FILE", Capture, "store all that is sent, passwords too, for Wireshark"),
    ("get", "-o --output", "DEST", str, "a folder, a name, or - for standard output"),
    ("mirror", "-o --output", "DEST", str, "the folder for it"),
    ("get mirror", "--force", "", bool, "replace what exists"),
    ("get mirror", "--newer", "", bool, "replace it if the server's is newer or of another size"),
    ("get", "-i --input", "FILE", str, "fetch the URLs in this file too, one a line"),
    (
        "get",
        "--connections",
        "N",
        between(1, 64),
        "fetch spans side by side if HEAD tells Accept-Ranges (default 1)",
    ),
    ("get", "--checksum", "NAME:HEX", checksum, "what it must have, such as sha256:9f86d0..."),
    ("put", "--text", "TEXT", str, "send this text instead of a file"),
    ("put", "--force", "", bool, "replace what exists and is another file"),
    ("get put", "--limit-rate", "N", parse_size, "bytes a second at most"),
    ("post", "--data", "TEXT|@FILE|-", str, "the body: this text, a file, or standard input"),
    ("move", "--force", "", bool, "replace what has that name"),
    ("mirror upload", "--hidden", "", bool, "names that start with a dot too"),
    ("upload", "--force", "", bool, "let --delete remove more than half"),
    ("list", "-r --recursive", "", bool, "what is in its folders, too"),
)


def add_flags(flag: Callable[..., object], wanted: str) -> None:
    for verbs, names, metavar, kind, text in FLAGS:
        if wanted in verbs.split(" "):
            settings = {"metavar": metavar, "type": kind} if metavar else {"action": "store_true"}
            flag(*names.split(), help=text, **settings)


def common_flags(parser: argparse.ArgumentParser, headers: str) -> None:
    group = parser.add_argument_group("options of every command")
    flag = group.add_argument
    add_flags(flag, ALL)
    for number, family in (4, socket.AF_INET), (6, socket.AF_INET6):
        only = f"connect by IPv{number} only"
        flag(f"-{number}", dest="family", action="store_const", const=family, help=only)
    append: dict[str, Any] = {"dest": headers, "action": "append"}
    line = "send this 'NAME: VALUE' too, or instead; only to the server named"
    flag("-H", "--header", type=header, metavar="LINE", help=line, **append)
    flag("--token", type=bearer, metavar="TOKEN", help="log in with Bearer", **append)
    flag("--no-resume", dest="resume", action="store_false", help="start over, whatever is here")
    trust_flags(group)


# argparse sets the others. A verb's flags are here because other verbs read them too.
UNSET = (
    *("checksum", "data", "delete", "dry_run", "exclude", "family", "force", "hidden", "input"),
    *("limit_rate", "newer", "output", "recursive", "text"),
)
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(UNSET),
    "host": "127.0.0.1",
    "port": 8000,
    "timeout": 30.0,
    "retries": RETRIES,
    "connections": 1,
    "header": [],
    "later_header": [],
    "url": [],
    "path": [],
    "form": [],
}


# the function of each verb, its text, and its arguments: + stands for one or more, * for any number
VERBS: dict[str, tuple[Callable[[Client], None], str, str]] = {
    "get": (get, "fetch files", "URL*"),
    "put": (put, "send files, or - for standard input", "PATH* URL"),
    "post": (post, "send data or a form", "URL"),
    "delete": (delete, "delete files", "URL+"),
    "head": (head, "show a reply's head", "URL"),
    "list": (list_folder, "show what a folder holds", "URL"),
    "mkdir": (mkdir, "make a folder", "URL"),
    "move": (move, "rename: NEW is a URL, path or name", "URL NEW"),
    "mirror": (mirror, "fetch a folder, or what changed in it", "URL"),
    "upload": (upload, "send one, or what changed in it", "DIR URL"),
}


PLACES = {
    "URL": "the address; one that starts with / is completed by --host and --port",
    "PATH": "a file here, or - for standard input",
    "DIR": "the folder here",
    "NEW": "its new name",
}


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """A parser for these words.

    Only the verb among them gets its flags, because those of ten verbs take long to build."""
    parser = Parser(prog="httpclient.py")
    common_flags(parser, "header")
    parser.set_defaults(**DEFAULTS)
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog="httpclient.py")
    for name, (_, text, arguments) in VERBS.items():
        verb = verbs.add_parser(name, argument_default=argparse.SUPPRESS, help=text)
        if name not in words:
            continue
        # Flags are built anew: set_defaults() above would change shared ones, which then undo what
        # stands before the verb. Headers get a list of their own: argparse cannot go on with the
        # one from before the verb.
        common_flags(verb, "later_header")
        for argument in arguments.split():
            metavar = argument.rstrip("*+")
            nargs = argument[-1] if argument[-1] in "*+" else None
            verb.add_argument(metavar.lower(), nargs=nargs, metavar=metavar, help=PLACES[metavar])
        add_flags(verb.add_argument, name)
        if name in ("mirror", "upload"):
            tree_flags(verb.add_argument)
        if name == "post":
            form = "NAME=VALUE|NAME=@FILE"
            text = "a field or file of a form"
            verb.add_argument("--form", action="append", metavar=form, help=text)
    return parser


def parsed(words: Sequence[str]) -> argparse.Namespace:
    args = build_parser(words).parse_args(words)
    args.header = args.header + args.later_header
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    speak_utf8()
    args = parsed(sys.argv[1:] if argv is None else argv)
    args.progress, args.origins = Progress(args), {}
    args.pace = Pace(args.limit_rate) if args.limit_rate else None
    hear_ctrl_c()
    try:
        # in lower case as in URLs, because given_password() compares the two
        args.host = parse_url(host_url(args)).host
        if args.ask_password:
            args.password = ask_password("the server")
        with contextlib.closing(Client(args)) as client:
            VERBS[args.verb][0](client)
            return int(args.progress.code)
    except Failure as failure:
        args.progress.clear()
        say(str(failure))
        return failure.code
    except BrokenPipeError:
        args.progress.clear()
        return 0
    except KeyboardInterrupt:
        args.progress.clear()
        say("stopped; repeat the command to continue from what is here")
        return 130


if __name__ == "__main__":
    sys.exit(main())
