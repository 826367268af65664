#!/usr/bin/env python3
"""Move files to and from a server.py: verified, resumed, never half there.

    python3 client.py list                        what is on 127.0.0.1:9000
    python3 client.py put notes.txt photos/       files and whole folders
    python3 client.py get notes.txt photos        into the current folder; -o DEST for elsewhere
    python3 client.py --host 192.0.2.7 get '*.jpg' -o pictures/
    tar c . | python3 client.py put - --as box.tar     and: get box.tar -o - | tar x
    python3 client.py delete old.txt              rename OLD NEW, mkdir NAME, stat NAME, help
    python3 client.py                             a shell with these commands

A command that was cut off goes on where it was when it is given again. What is already there with the same size and
time is skipped; a different file is replaced only with --force. The other side checks length and SHA-256
before a file gets its name and before success is told.

What is said on the wire (server.py's docstring specifies it):

    S: sixsockets 1 max-line=32768 auth=none you=127.0.0.1:51234
    C: put notes.txt size=6 mtime_ns=1700000000500000000
    C: data 6
    C: hello⏎
    C: end sha256=5891b5b5…
    S: ok put notes.txt size=6 sha256=5891b5b5… verified=yes
    C: get notes.txt
    S: ok get notes.txt size=6 mtime_ns=1700000000500000000
    S: data 6
    S: hello⏎
    S: end sha256=5891b5b5…

Limits: nothing is encrypted. What comes from standard input cannot be resumed. Links inside a folder are skipped and named.
"""
from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import itertools
import os
import re
import select
import shlex
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

VERSION = "1.0"
PROTOCOL = "1"
SERVER = "python3 server.py"
PROMPT = "sixsockets> "
UNANSWERED = 256  # requests that may wait for their answers
UNANSWERED_BYTES = 24576  # and their length: what both kernels hold, so that neither side ever waits for the other to read
NOTICE_AFTER = 3.0  # seconds of silence until the client says for whom it waits
REDRAW = 0.1  # seconds from one picture of the progress bar to the next
BACK_OFF = 0.5  # seconds until the first new attempt; doubled each time
ANSWERS = ("ok", "err", "file", "dir", "note", "help")  # how a line that answers something can begin
MANY = 64  # files of a folder from which one list is quicker than a stat for each
LISTED = 12000  # lines of a listing that are kept in memory; the rest goes to a nameless file


# --- wire: the same in server.py, client.py (tests/test_twins.py) ---
MAX_LINE = 32768  # bytes of a line with its end: the longest path of most systems, every byte percent-encoded, and keys
BUFFER = 1 << 18  # bytes asked of one recv: twice as many gain little, and each connection has its own
QUIET = 1 << 12  # the same for a connection on which no more than that has come at once
BATCH = 1 << 16  # bytes of lines and small bodies that gather until they leave in one send
PLAIN = re.compile(r"[!-$&-<>-~]*")  # printable ASCII but for space, percent sign and equals sign
CONTROL = re.compile(rb"[\0-\x1f\x7f]")  # bytes that no line may hold
BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
FREE = {"help", "say", "said"}  # verbs whose line is text from the first space on
ESCAPE = re.compile(rb"%(..)")
NAMES = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # bytes of names as this system has them in text
NUMBER = re.compile(r"-?(?:[0-9]{1,18}|[0-8][0-9]{18})")  # what 64 bits hold
HTTP = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE|PRI) \S+ HTTP/\d")
TLS = b"\x16\x03"  # how a TLS client begins


class Lost(Exception):
    """The connection is gone, or its peer silent, where something was still to come."""


class Ended(Lost):
    """The peer closed between two lines, where that may be."""


class Broken(Exception):
    """The peer does not keep to the protocol; the text is the reason code that it is told."""


class Line(NamedTuple):
    verb: str
    words: list[str]
    keys: dict[str, str]

    def number(self, key: str, default: int = 0) -> int:
        """A count of bytes or nanoseconds: decimal digits, few enough for 64 bits; only mtime_ns may be negative."""
        text = self.keys.get(key)
        if text is None:
            return default
        if not NUMBER.fullmatch(text) or (text[0] == "-" and key != "mtime_ns"):
            raise Broken("bad-number")
        return int(text)


def quote(text: str) -> str:
    """A name or value as a word: space, %, = and what is not printable UTF-8 become %XX, byte by byte."""
    if PLAIN.fullmatch(text):
        return text
    return "".join(char if char.isprintable() and char not in " %=" else "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogateescape"))
                   for char in os.fsencode(text).decode(errors="surrogateescape"))


def unquote(word: str) -> str:
    if "%" not in word:
        return word
    if BROKEN_ESCAPE.search(word):
        raise Broken("bad-line")
    return os.fsdecode(ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(word)))


def line(*words: str, **keys: object) -> bytes:
    """A line as it goes out; a key without a value (None) is left away."""
    text = " ".join([quote(word) for word in words] + [f"{key}={quote(str(value))}" for key, value in keys.items() if value is not None])
    return f"{text}\n".encode()


def parse(raw: bytes) -> Line:
    """A line as it came in: the verb, the positional words, the key=value words."""
    if CONTROL.search(raw):
        raise Broken("bad-line")
    start, *rest = raw.decode(*NAMES).split(" ")
    found = Line(start.lower(), [], {})
    if found.verb in FREE:
        return found._replace(words=[" ".join(rest)] if rest else [])
    for word in rest:
        key, equals, value = word.partition("=")
        if not word:  # two spaces, or one at the end
            raise Broken("bad-line")
        if equals:
            found.keys[key] = unquote(value)
        else:
            found.words.append(unquote(word))
    return found


def shown(text: str) -> str:
    """A name for people, on one line: what could move a cursor, change colours or forge a line appears in hex."""
    if text.isprintable():
        return text
    raw = os.fsencode(text).decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in raw)


class Wire:
    """One connection. Every byte on it belongs to a line, or to the body bytes that a `data N` line announced."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self.sock, self.timeout = sock, timeout
        sock.settimeout(timeout)
        self.buffer = bytearray(QUIET)
        self.view = memoryview(self.buffer)
        self.start = self.end = 0  # what has come and is not yet taken: buffer[start:end]
        self.owed = 0  # bytes of the announced body that are still to be taken
        self.again: Line | None = None  # a line that was read too early
        self.out: list[bytes] = []
        self.queued = 0  # bytes in out
        self.heard = time.monotonic()  # when the peer last said something

    def put(self, data: bytes) -> None:
        """Queue bytes: small ones leave together, and before anything is waited for; large ones at once."""
        if len(data) >= BATCH:
            self.flush()
            return self.attempt(self.push, memoryview(data))
        self.out.append(data)
        self.queued += len(data)
        if self.queued >= BATCH:
            self.flush()

    def flush(self) -> None:
        if self.out:
            view = memoryview(b"".join(self.out))
            self.out.clear()
            self.queued = 0
            self.attempt(self.push, view)

    def push(self, view: memoryview) -> int:
        """All of it, however slowly the peer reads, as long as it does. (sendall() has one timeout for everything.)"""
        while view:
            view = view[self.sock.send(view):]
        return 1

    def attempt(self, call: Callable[[memoryview], int], view: memoryview) -> None:
        """A socket call that can fail, or find the stream's end: the end of the conversation, unlike an OSError of a disk."""
        try:
            count = call(view)
        except OSError as error:
            raise Lost(f"silent for {self.timeout:g} s" if isinstance(error, socket.timeout) else error.strerror or "closed") from None
        if not count:
            raise Ended("the other side closed the connection")
        self.heard = time.monotonic()

    def fill(self, patience: float | None) -> None:
        """Wait for more and take what comes. What is queued leaves first: two sides that both wait would wait for ever."""
        self.flush()
        rest = self.view[self.start:self.end]
        if len(self.buffer) == QUIET and max(self.end, self.owed) >= QUIET:
            self.buffer = bytearray(BUFFER)
            self.view = memoryview(self.buffer)
        self.view[:len(rest)] = rest
        self.start, self.end = 0, len(rest)
        if patience != self.timeout:
            self.sock.settimeout(patience)
        self.attempt(self.receive, self.view[self.end:])
        if patience != self.timeout:
            self.sock.settimeout(self.timeout)

    def receive(self, view: memoryview) -> int:
        count = self.sock.recv_into(view)
        self.end += count
        return count

    def line(self, idle: bool = False) -> Line:
        """The next line. With idle its first byte may take as long as it likes; then the whole line has one deadline."""
        while self.owed:  # a body that nobody wants is read and dropped
            self.take()
        if self.again:
            early, self.again = self.again, None
            return early
        while True:
            stop = self.buffer.find(b"\n", self.start, self.end)
            if stop < 0:
                stop = self.gather(idle)
            raw = bytes(self.view[self.start:stop])
            self.start = stop + 1
            if len(raw) >= MAX_LINE:
                raise Broken("line-too-long")
            if raw and raw != b"\r":  # an empty line means nothing
                return self.understand(raw[:-1] if raw[-1] == 13 else raw)

    def gather(self, idle: bool) -> int:
        """Wait until a line is whole: where it ends."""
        deadline = None if idle and self.start == self.end else time.monotonic() + self.timeout
        while (stop := self.buffer.find(b"\n", self.start, self.end)) < 0:
            if self.buffer.startswith(TLS, self.start):
                raise Broken("this-is-tls")
            if self.end - self.start >= MAX_LINE:
                raise Broken("line-too-long")
            self.wait(self.end - self.start, deadline)
            deadline = deadline or time.monotonic() + self.timeout
        return stop

    def wait(self, begun: int, deadline: float | None) -> None:
        try:
            self.fill(None if deadline is None else max(0.001, deadline - time.monotonic()))
        except Ended:
            if begun:
                raise Lost("the other side closed the connection inside a line") from None
            raise

    def understand(self, raw: bytes) -> Line:
        if b"HTTP/" in raw and HTTP.match(raw):
            raise Broken("this-is-http")
        found = parse(raw)
        if found.verb == "data":
            if len(found.words) != 1 or not re.fullmatch("[0-9]{1,18}", found.words[0]):
                raise Broken("bad-number")
            self.owed = int(found.words[0])
        return found

    def take(self) -> memoryview:
        """Some of the announced body, valid until the next call."""
        if self.start == self.end:
            self.fill(self.timeout)
        view = self.view[self.start:min(self.end, self.start + self.owed)]
        self.start += len(view)
        self.owed -= len(view)
        return view
# --- end wire ---


# --- pure functions: values in, values out ---
WHYS = {
    "no-such-file": ("the server has nothing of that name", "list shows what there is"),
    "no-such-folder": ("a folder in that path is missing there", "mkdir makes it; put --into FOLDER does too"),
    "exists": ("there is already something of that name", "--force replaces a file"),
    "is-a-folder": ("that name is a folder", "another name, or a name in the folder"),
    "not-a-folder": ("a part of that path is a file or a link", "list shows what there is"),
    "not-a-file": ("that name is a link or a special file, and the server follows none", "the name of the file itself"),
    "not-empty": ("the folder is not empty, or holds names that are not shown", "delete what is in it first"),
    "not-permitted": ("the server's user may not do that there", "the permissions of the server's folder"),
    "bad-name": ("the name leaves the shared folder, or no server can have it", "a path below the shared folder, without .. or a leading /"),
    "hidden-name": ("the server keeps names that start with a dot to itself", f"{SERVER} --hidden"),
    "read-only": ("the server was started with --read-only", f"{SERVER} without it"),
    "too-large": ("it is more than the server's --max-size", f"{SERVER} with a larger --max-size"),
    "disk-full": ("the server's disk is full, or would be fuller than --min-free allows", "delete something there"),
    "busy": ("another client is sending this file", "again, when that one is done"),
    "wrong-digest": ("what arrived is not what was sent: the network or a disk changed it", "again"),
    "aborted": ("it was given up", "again"),
    "usage": ("the server expects other words", "help"),
    "unknown-verb": ("the server does not know that command", "help lists those that it knows"),
}


def human(size: float) -> str:
    """1.2 MB: three digits, powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 99.95 else f"{size:.1f} {unit}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def same(size: int, mtime_ns: int, other_size: int, other_mtime_ns: int) -> bool:
    """Whether two files pass for the same. File systems keep times to 1 or 100 ns, 1 µs, 1 s or 2 s: the coarser side's precision decides."""
    coarsest = max(unit for unit in (1, 100, 1000, 10**9, 2 * 10**9) if mtime_ns % unit == 0 or other_mtime_ns % unit == 0)
    return size == other_size and mtime_ns // coarsest == other_mtime_ns // coarsest


def remote_name(text: str) -> str:
    """A name as people type it: a slash at the end of a folder's name means nothing."""
    return text.rstrip("/") or text


def refusal(answer: Line, verb: str, name: str) -> Failure:
    """What an `err` means, in three lines."""
    reason = answer.keys.get("reason", "?")
    why, hint = WHYS.get(reason, ("the server says so", "the server's log tells more"))
    if "limit" in answer.keys:
        why += f" ({human(answer.number('limit'))})"
    if "received" in answer.keys:
        reason += f" after {answer.number('received'):,} bytes"
    code = 56 if reason.startswith("wrong-digest") else 25 if verb == "put" else 78 if reason in ("no-such-file", "no-such-folder") else 9
    return Failure(code, f"server refused to {verb} {shown(name)} ({shown(reason)})", why, hint)


# --- folders: the same in server.py, client.py (tests/test_twins.py) ---
MAX_NAME = 4096  # bytes of a path: more than most systems take
PART = re.compile(r"\.six-[0-9a-f]{32}\.part", re.IGNORECASE)  # what the name of an unfinished file looks like
DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?|.*[. ]|.*[\\:<>|?*\"].*", re.IGNORECASE)  # what Windows takes for something else
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # and no wait for a FIFO
SORTED = 20000  # entries of a folder that are put in order; where there are more they come as the disk has them
BY_DESCRIPTOR = {os.open, os.stat, os.unlink, os.mkdir, os.rename, os.link} <= os.supports_dir_fd and os.scandir in os.supports_fd


class Refused(Exception):
    """A request that is understood and not carried out: the reason code, and what else the answer says."""

    def __init__(self, reason: str, **keys: object) -> None:
        super().__init__(reason)
        self.reason, self.keys = reason, keys


def components(name: str, hidden: bool = True, windows: bool = os.name == "nt") -> list[str]:
    """The parts of a name from the network; or Refused, when it could lead outside, to a device, or to an unfinished file."""
    parts = name.split("/")
    if len(os.fsencode(name)) > MAX_NAME:
        raise Refused("bad-name")
    for part in parts:
        if part in ("", ".", "..") or "\0" in part or PART.fullmatch(part) or (windows and DEVICE.fullmatch(part)):
            raise Refused("bad-name")
        if part[0] == "." and not hidden:
            raise Refused("hidden-name")
    return parts


class Folder:
    """An open folder. Names in it are used through its descriptor, so that no link planted meanwhile leads elsewhere;
    where the system has no such calls, through its path, resolved and compared. It is closed with its last user."""

    def __init__(self, path: str, within: int | None = None) -> None:
        self.path, self.fd = path, None
        if BY_DESCRIPTOR:
            leaf = path if within is None else os.path.basename(path)
            nofollow = 0 if within is None else os.O_NOFOLLOW
            self.fd = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | nofollow, dir_fd=within)
        elif not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def __del__(self) -> None:
        if getattr(self, "fd", None) is not None:
            os.close(self.fd)  # type: ignore[arg-type]

    def at(self, name: str) -> str:
        return name if self.fd is not None else os.path.join(self.path, name)

    def below(self, name: str, make: bool = False) -> Folder:
        """The folder of that name in this one; a link is not followed."""
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.at(name), dir_fd=self.fd)
        path = os.path.join(self.path, name)
        if not BY_DESCRIPTOR and os.path.realpath(path) != os.path.join(os.path.realpath(self.path), name):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return Folder(path, self.fd)

    def open(self, name: str, flags: int, mode: int = 0o666) -> int:
        if not BY_DESCRIPTOR and os.path.islink(self.at(name)):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.open(self.at(name), flags | NO_LINK, mode, dir_fd=self.fd)

    def stat(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(self.at(name), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def read(self, name: str) -> tuple[int, os.stat_result]:
        """A regular file, open for reading, and its facts."""
        fd = self.open(name, os.O_RDONLY)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise Refused("is-a-folder" if stat.S_ISDIR(status.st_mode) else "not-a-file")
        return fd, status

    def remove(self, name: str, is_folder: bool = False) -> None:
        (os.rmdir if is_folder else os.unlink)(self.at(name), dir_fd=self.fd)

    def entries(self) -> Iterator[os.DirEntry[str]]:
        """What is in it, sorted, unless there is so much that memory would feel it."""
        with os.scandir(self.path if self.fd is None else self.fd) as found:
            first = list(itertools.islice(found, SORTED))
            yield from sorted(first, key=lambda entry: entry.name) if len(first) < SORTED else first
            yield from found

    def move(self, old: str, other: Folder, new: str, over: bool) -> None:
        """Rename. What is there is replaced only with over; a hard link can tell in one step that nothing is."""
        source, target = self.at(old), other.at(new)
        if over:
            return os.replace(source, target, src_dir_fd=self.fd, dst_dir_fd=other.fd)
        try:
            os.link(source, target, src_dir_fd=self.fd, dst_dir_fd=other.fd, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # a folder, or a file system without hard links (FAT): look first, then rename
            if other.stat(new):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            return os.rename(source, target, src_dir_fd=self.fd, dst_dir_fd=other.fd)
        os.unlink(source, dir_fd=self.fd)


def locked(fd: int) -> bool:
    """Take the lock of a part. Systems without flock do without: there the part's writer alone knows its name."""
    with contextlib.suppress(ImportError):
        import fcntl  # not at the top: Windows has none
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
# --- end folders ---


# --- bodies: the same in server.py, client.py (tests/test_twins.py) ---
CHUNK = 1 << 20  # most bytes that our side announces in one `data`: it can stop only between two
RESUMABLE = 1 << 20  # bytes from which an interrupted file is worth resuming; a smaller one starts over
UNLOCKED = contextlib.nullcontext()


class Part:
    """A file that is being received: hidden and locked in its own folder, hashed as it comes, put in place when it is whole."""

    def __init__(self, folder: Folder, leaf: str, size: int | None = None, mtime_ns: int | None = None, executable: bool = False) -> None:
        self.folder, self.leaf, self.mtime_ns, self.executable = folder, leaf, mtime_ns, executable
        self.sha, self.received, self.fd = hashlib.sha256(), 0, -1
        self.keyed = mtime_ns is not None and (size or 0) >= RESUMABLE
        token = hashlib.sha256(os.fsencode(f"{leaf}/{size}/{mtime_ns}")).hexdigest()[:32] if self.keyed else os.urandom(16).hex()
        self.name = f".six-{token}.part"

    def place(self) -> tuple[object, ...]:
        """What tells it from all others, also after a folder above it was renamed."""
        if self.folder.fd is None:
            return self.folder.path, self.name
        above = os.fstat(self.folder.fd)
        return above.st_dev, above.st_ino, self.name

    def claim(self) -> bool:
        """Open it, new or as an earlier attempt left it. False: somebody else is writing it."""
        mode = 0o777 if self.executable else 0o666  # less the umask
        while self.fd < 0:
            fd = self.folder.open(self.name, os.O_RDWR | os.O_CREAT | (0 if self.keyed else os.O_EXCL), mode)
            if self.keyed and not locked(fd):
                os.close(fd)
                return False
            ours, there = os.fstat(fd), self.folder.stat(self.name) if self.keyed else None
            if self.keyed and not (there and there.st_ino == ours.st_ino and ours.st_nlink == 1 and stat.S_ISREG(ours.st_mode)):
                os.close(fd)  # its last writer has just put it in place, or died between link and unlink: not ours to write
                if there and there.st_ino == ours.st_ino:
                    self.folder.remove(self.name)
                continue
            self.fd = fd
        return True

    def length(self) -> int:
        return os.fstat(self.fd).st_size

    def begin(self, offset: int) -> None:
        """Write from offset on, which is where the digest stands, or else from the start."""
        if offset != self.received:
            self.sha, self.received = hashlib.sha256(), 0
        if self.keyed:
            os.ftruncate(self.fd, self.received)
            os.lseek(self.fd, self.received, os.SEEK_SET)

    def write(self, chunk: memoryview) -> None:
        self.sha.update(chunk)
        self.received += len(chunk)
        while chunk:
            chunk = chunk[os.write(self.fd, chunk):]

    def finish(self, over: bool, durable: bool = False, lock: contextlib.AbstractContextManager[Any] = UNLOCKED) -> None:
        """Give it its time and mode, and then its name, under the lock that a rename has too."""
        there = self.folder.stat(self.leaf) if over else None
        if there and hasattr(os, "fchmod"):
            os.fchmod(self.fd, there.st_mode & 0o777 | (0o111 & there.st_mode >> 2 if self.executable else 0))
        if self.mtime_ns is not None:
            by_fd = os.utime in os.supports_fd
            os.utime(self.fd if by_fd else self.folder.at(self.name), ns=(self.mtime_ns, self.mtime_ns))
        if durable:
            os.fsync(self.fd)
        if os.name == "nt":
            self.close()  # Windows renames no open file
        with lock:
            self.folder.move(self.name, self.folder, self.leaf, over)
        if durable and self.folder.fd is not None:
            os.fsync(self.folder.fd)
        self.close()

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
            self.close()
            with contextlib.suppress(OSError):
                self.folder.remove(self.name)


def send_body(wire: Wire, fd: int, status: os.stat_result, sha: hashlib._Hash, go_on: Callable[[int], bool]) -> str:
    """The file from where fd stands to the size that was announced, and its digest. "" or why it was given up, as the peer is told."""
    remaining = status.st_size - os.lseek(fd, 0, os.SEEK_CUR)
    reason = ""
    while remaining and not reason:
        chunk = read_some(fd, min(remaining, CHUNK))
        if not chunk:
            reason = "changed"
            break
        sha.update(chunk)
        remaining -= len(chunk)
        wire.put(b"data %d\n" % len(chunk))
        wire.put(chunk)
        reason = "" if go_on(len(chunk)) else "refused"
    now = os.fstat(fd)
    if not reason and (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        reason = "changed"
    wire.put(line("abort", reason=reason) if reason else b"end sha256=%b\n" % sha.hexdigest().encode())
    return reason


def read_some(fd: int, most: int) -> bytes:
    """A broken disk reads like a file that has become shorter: the body is given up."""
    try:
        return os.read(fd, most)
    except OSError:
        return b""


def digest(fd: int, upto: int, sha: hashlib._Hash, tell: Callable[[int], None]) -> str:
    """Hash the first bytes of a file, as many as it has of those; fd stands behind them then."""
    done = 0
    while done < upto and (chunk := os.read(fd, min(CHUNK, upto - done))):
        sha.update(chunk)
        done += len(chunk)
        tell(done)
    return sha.hexdigest()


def receive_body(wire: Wire, sink: Part, check: Callable[[int], None], tell: Callable[[int], None]) -> Line:
    """Bodies into the sink until another line comes, which is returned: `end` and its digest, or `abort`.
    A verb that does not belong inside a body ends it like `abort`, and is then run. check() may refuse what is announced."""
    while (found := wire.line()).verb == "data":
        check(sink.received + wire.owed)
        while wire.owed:
            sink.write(wire.take())
            tell(sink.received)
    if found.verb not in ("end", "abort"):
        wire.again = found
        return Line("abort", [], {"reason": "interrupted"})
    return found
# --- end bodies ---


# --- the connection: requests go out, answers come back in their order ---
class Job:
    """A file or folder on its way: what it is called there and here, and what is known of it."""

    __slots__ = ("below", "executable", "failed", "fresh", "mtime_ns", "name", "offset", "once", "part", "path", "sha256", "size",
                 "status", "there")

    def __init__(self, name: str, path: str = "", status: os.stat_result | None = None) -> None:
        self.name, self.path, self.status = name, path, status
        self.size = self.mtime_ns = self.offset = 0
        self.executable = self.failed = self.below = self.fresh = self.once = False
        self.part: Part | None = None
        self.there: Line | None = None  # the server's line of it, from a listing
        self.sha256 = ""


Handler = Callable[[Job, Line], None]


class Link(Wire):
    """A connection to the server, and the requests that it has not answered yet."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(open_connection(args, args.host, args.port, server_command(args)), args.timeout)
        self.place = place(args)
        self.pending: deque[tuple[Handler, Job, tuple[str, ...], int]] = deque()
        self.unanswered = 0  # bytes of pending requests
        self.arrived: deque[Line] = deque()  # answers that came while something was sent
        self.noted: Callable[[Line], None] = lambda note: None
        try:
            self.greet()
        except Failure:
            self.sock.close()
            raise

    def greet(self) -> None:
        with contextlib.suppress(Lost):
            try:
                greeting = self.line()
            except Broken as broken:
                greeting = Line(str(broken), [], {})
            if greeting.keys.get("reason") == "server-full":
                raise Failure(7, f"{self.place} has as many clients as it takes", "its --max-clients is reached", "again later")
            if greeting.verb != "sixsockets" or greeting.words[:1] != [PROTOCOL]:
                known = {"http": "it speaks HTTP", "this": "it speaks TLS"}.get(greeting.verb[:4], "it does not begin with the greeting of one")
                raise Failure(56, f"{self.place} is no Six Sockets file server", f"{known}: another program listens there",
                              "check the port; httpclient.py speaks to web servers")
            return
        raise Failure(52, f"{self.place} said nothing", "it closed or stayed silent where a file server greets", "check the port")

    def fill(self, patience: float | None) -> None:
        self.flush()
        if not select.select([self.sock], [], [], min(NOTICE_AFTER, self.timeout))[0] and NOTICE_AFTER < self.timeout:
            say(f"waiting for an answer from {self.place} (Ctrl-C stops)")
        super().fill(patience)

    def request(self, handler: Handler, job: Job, *words: str, **keys: object) -> None:
        text = line(*words, **keys)
        self.pending.append((handler, job, words, len(text)))
        self.unanswered += len(text)
        self.put(text)

    def full(self) -> bool:
        return len(self.pending) >= UNANSWERED or self.unanswered > UNANSWERED_BYTES

    def answer(self) -> Line:
        return self.arrived.popleft() if self.arrived else self.hear()

    def hear(self) -> Line:
        """The next line that is an answer."""
        while not self.listen():
            pass
        found = self.arrived.pop()
        if found.verb not in ANSWERS:
            raise Failure(56, f"{self.place} answered {shown(found.verb)!r}, which belongs to nothing that was asked",
                          "it breaks the protocol, or is no server.py", "ss -ltnp shows which program has the port")
        return found

    def listen(self) -> bool:
        """The next line: an answer is kept until it is asked for, a note tells how far the server is."""
        found = self.line()
        if found.verb in ("file", "dir", "note", "help") and not found.words:
            raise Broken("bad-line")
        if found.verb != "note" or "reason" in found.keys:
            self.arrived.append(found)
            return True
        self.noted(found)
        return False

    def peek(self) -> bool:
        """Take the lines that have come, without waiting. Has the last request been answered already?"""
        while self.buffer.find(b"\n", self.start, self.end) >= 0 or select.select([self.sock], [], [], 0)[0]:
            self.listen()
        return len(self.arrived) >= len(self.pending)

    def ask(self, *words: str, **keys: object) -> Line:
        """One request, and its answer; those that come before it are kept for whom they belong to."""
        self.put(line(*words, **keys))
        while len(self.arrived) < len(self.pending):
            self.listen()
        return self.hear()


def hang_up(args: argparse.Namespace) -> None:
    if args.link:
        args.link.sock.close()
    args.link = None


def connected(args: argparse.Namespace) -> Link:
    """The connection of this command; the shell's stays open from command to command, unless the server has closed it."""
    if args.link and select.select([args.link.sock], [], [], 0)[0]:
        hang_up(args)
    args.link = args.link or Link(args)
    found: Link = args.link
    return found


def expand(args: argparse.Namespace, names: Sequence[str]) -> Iterator[str]:
    """Names on the server, with *, ? and [] matched there."""
    for name in map(remote_name, names):
        if not re.search(r"[*?[]", name):
            yield name
            continue
        import fnmatch  # not at the top: few need it
        above = name.rpartition("/")[0]
        found = [answer.words[0] for answer in listing(connected(args), above)]
        yield from [name] if name in found else fnmatch.filter(found, name) or [name]


def listing(link: Link, folder: str, deep: bool = False) -> Iterator[Line]:
    answer = link.ask("list", *[folder] * bool(folder), deep="yes" if deep else None)
    while answer.verb in ("file", "dir", "note"):
        yield answer
        answer = link.hear()
    if answer.verb != "ok":
        raise refusal(answer, "list", folder)


# --- many files: what is asked, what is awaited, what became of each ---
class Progress:
    """One bar for the whole job, on a terminal: bytes that are safe on the other side, or here."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.drawn = os.isatty(2) and not args.quiet
        self.began = time.monotonic()
        self.due = self.began + REDRAW
        self.total = self.done = self.current = self.files = self.all_files = 0  # bytes, and files
        self.resumed = 0  # bytes that were there before and do not count for the rate
        self.shown = False

    def at(self, current: int, verb: str = "") -> None:
        """So much of the current file is there."""
        self.current = current
        now = time.monotonic()
        if self.drawn and now >= self.due:
            self.due = now + REDRAW
            self.shown = True
            sys.stderr.write("\r" + (f"verifying what is there already: {human(current)}" if verb else self.bar(now)) + "\x1b[K")
            sys.stderr.flush()

    def bar(self, now: float) -> str:
        done, total = self.done + self.current, max(self.total, self.done + self.current, 1)
        rate = (done - self.resumed) / max(now - self.began, 0.001)
        filled = 20 * done // total
        left = f"{clock((total - done) / rate)} left" if rate > 0 else ""
        files = f"  {self.files:,} of {plural(self.all_files, 'file')}" if self.all_files > 1 else ""
        return f"{100 * done // total:3}% [{'#' * filled}{' ' * (20 - filled)}] {human(done)} of {human(total)}  {human(rate)}/s  {left}{files}"

    def clear(self) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self.shown = False


class Batch:
    """The files of one command. Requests run ahead of their answers; one bad file does not stop the others."""

    verb = ""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.link = connected(args)
        self.link.noted = self.noted
        self.progress = Progress(args)
        self.sources: list[Iterator[Job]] = []
        self.code = self.moved = self.bytes = self.skipped = self.failed = 0
        self.tries = 0  # new connections since something went well

    def noted(self, note: Line) -> None:
        for key in ("received", "checked"):
            if key in note.keys:
                self.progress.at(note.number(key), "" if key == "received" else key)

    def start(self, job: Job) -> None:
        raise NotImplementedError

    def trouble(self, job: Job, error: OSError) -> Failure:
        raise NotImplementedError

    def run(self, jobs: Iterator[Job]) -> int:
        self.sources.append(jobs)
        try:
            while True:
                try:
                    self.pump()
                    break
                except Lost as lost:
                    self.recover(lost)
        except KeyboardInterrupt:
            self.progress.clear()
            say(f"stopped after {plural(self.moved, 'file')} and {human(self.progress.done + self.progress.current)}; the same command again resumes")
            hang_up(self.args)
            return 130
        self.summary()
        return self.code

    def pump(self) -> None:
        while True:
            if not self.link.full() and (job := self.next_job()):
                self.attempt(self.start, job)
            elif self.link.pending:
                self.settle()
            else:
                return

    def next_job(self) -> Job | None:
        while self.sources:
            if job := next(self.sources[-1], None):
                return job
            self.sources.pop()
        return None

    def settle(self) -> None:
        """The next answer, to whom it belongs. When the connection is lost meanwhile, that job is begun again."""
        answer = self.link.answer()
        handler, job, words, cost = entry = self.link.pending.popleft()
        self.link.unanswered -= cost
        if answer.verb in ("ok", "err") and answer.words != ["-"] and not all(map(str.startswith, words, answer.words)):
            raise Failure(56, f"the server answered {shown(' '.join(answer.words))} where {shown(' '.join(words))} was asked",
                          "something on the way changed it, or the server breaks the protocol", "again")
        try:
            self.attempt(handler, job, answer)
        except Lost:
            self.link.pending.appendleft(entry)
            raise

    def attempt(self, call: Callable[..., None], job: Job, *rest: Line) -> None:
        try:
            call(job, *rest)
        except Failure as failure:
            self.fail(job, failure)
        except Broken as broken:
            raise Failure(56, f"{self.link.place} broke the protocol ({broken})", "it sent what no file server sends",
                          "server.py --trace shows it") from None
        except OSError as error:
            self.fail(job, self.trouble(job, error))

    def fail(self, job: Job, failure: Failure) -> None:
        if job.failed:
            return
        job.failed = True
        self.code = self.code or failure.code
        self.failed += 1
        self.progress.clear()
        say(str(failure))
        self.report(job, "failed", error=str(failure).splitlines()[0][7:])

    def done(self, job: Job, size: int, sha256: str) -> None:
        self.moved += 1
        self.bytes += size - job.offset
        self.tries = 0
        self.advance(size)
        self.report(job, "ok", size=size, sha256=sha256)

    def skip(self, job: Job, size: int) -> None:
        self.skipped += 1
        self.progress.resumed += size
        self.advance(size)
        self.report(job, "same", size=size)

    def pass_over(self, path: str) -> None:
        self.progress.clear()
        say(f"skipped {shown(path)}: a link or a special file")

    def advance(self, size: int) -> None:
        self.progress.files += 1
        self.progress.done += size
        self.progress.at(0)

    def report(self, job: Job, result: str, **more: object) -> None:
        if self.args.json:
            tell_json({"verb": self.verb, "name": job.name, "result": result, **more})

    def resumed(self, job: Job, offset: int) -> None:
        """It goes on at offset: further than the last time means that new attempts get somewhere."""
        if offset > job.offset:
            self.progress.resumed += offset - job.offset
            job.offset, self.tries = offset, 0

    def requeue(self) -> None:
        """What had no answer yet is begun again, in its order, each once."""
        again = {id(job): job for _, job, _, _ in self.link.pending}
        for job in again.values():
            job.fresh, job.there = False, None
        self.sources.append(iter(again.values()))
        self.link.pending.clear()
        hang_up(self.args)
        self.progress.current = 0

    def recover(self, lost: Lost) -> None:
        """A new connection, after a pause that grows; or the Failure that tells how far it came."""
        reached, job = self.progress.current, self.link.pending[0][1] if self.link.pending else Job("")
        self.requeue()
        while self.tries < self.args.retries and not job.once:
            pause = BACK_OFF * 2 ** self.tries
            self.tries += 1
            self.progress.clear()
            say(f"connection lost ({lost}); attempt {self.tries} of {self.args.retries} in {pause:g} s")
            time.sleep(pause)
            with contextlib.suppress(Failure):
                self.link = connected(self.args)
                self.link.noted = self.noted
                return
        self.progress.clear()
        where = f" at {reached:,} of {job.size:,} bytes of {shown(job.name)}" if job.size else ""
        raise Failure(28 if "silent" in str(lost) else 18, f"connection lost{where}", str(lost), "again from the start: standard input cannot be resumed" if job.once else
                      "the same command again goes on where it was; if nobody is there: " + server_command(self.args))

    def summary(self) -> None:
        self.progress.clear()
        took = time.monotonic() - self.progress.began
        text = f"{self.verb}: {plural(self.moved, 'file')}, {human(self.bytes)} in {took:.2f} s ({human(self.bytes / max(took, 0.001))}/s)"
        text += f"; {self.skipped:,} already there" if self.skipped else ""
        text += f"; {self.failed:,} failed" if self.failed else ""
        if self.args.json:
            tell_json({"verb": self.verb, "files": self.moved, "bytes": self.bytes, "seconds": round(took, 3),
                       "skipped": self.skipped, "failed": self.failed})
        elif not self.args.quiet and (self.moved or self.skipped or self.failed > 1):
            say(text)


# --- put: files go out ---
class Puts(Batch):
    """Each file: is it there already? If not, its bytes, and the answer that they arrived."""

    verb = "put"

    def jobs(self) -> Iterator[Job]:
        """What the command line names. Folders on the way to --into are made."""
        into = remote_name(self.args.into) if self.args.into else ""
        if into:
            yield Job(into, "", os.stat("."))
        for path in self.args.paths:
            name = self.args.name or os.path.basename(os.path.abspath(path))
            if path == "-" and not self.args.name:
                raise Failure(2, "standard input has no name", "the server keeps it under one", "put - --as NAME")
            yield Job(f"{into}/{name}" if into else name, path)

    def start(self, job: Job) -> None:
        if job.path == "-":
            return self.send_input(job)
        status = job.status = job.status or os.stat(job.path)  # a link that is named is followed; in a folder links are not
        if stat.S_ISDIR(status.st_mode):
            self.link.request(self.made, job, "mkdir", job.name)
        elif job.fresh:
            self.send(job, 0, over=False)
        elif job.there:
            self.checked(job, job.there)
        elif stat.S_ISREG(status.st_mode):
            job.size = status.st_size
            content = self.args.compare == "content"
            keys = {"size": job.size, "mtime_ns": status.st_mtime_ns} if job.size >= RESUMABLE and self.args.resume else {}
            self.link.request(self.checked, job, "stat", job.name, **keys, digest="yes" if content else None)
        else:
            raise Failure(26, f"skipped {shown(job.path)}", "it is a link or a special file, not a file or folder", "the file that it leads to")

    def children(self, above: Job, known: dict[str, Line], whole: bool) -> Iterator[Job]:
        """What is in a folder: each with what is known of it there, so that few have to be asked for."""
        try:
            folder = Folder(above.path)
            for entry in folder.entries():
                if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                    self.pass_over(os.path.join(above.path, entry.name))
                elif not PART.fullmatch(entry.name):
                    job = Job(f"{above.name}/{entry.name}", os.path.join(above.path, entry.name), entry.stat(follow_symlinks=False))
                    job.size = job.status.st_size if job.status else 0
                    small = job.size < RESUMABLE and self.args.compare != "content"  # of others a part may be there, or the digest is needed
                    job.fresh = above.fresh or (small and whole and job.name not in known)
                    job.there = known.get(job.name) if small else None
                    yield job
        except OSError as error:
            self.fail(Job(above.name, above.path), self.trouble(above, error))

    def made(self, job: Job, answer: Line) -> None:
        """The folder is there, so what is in it can go: into a new one without asking what is there already."""
        job.fresh = answer.verb == "ok"
        if not job.fresh and answer.keys.get("reason") != "exists":
            raise refusal(answer, "put", job.name)
        if job.path:
            known: dict[str, Line] = {}
            many = not job.fresh and sum(1 for _ in itertools.islice(Folder(job.path).entries(), MANY)) == MANY
            for entry in listing(self.link, job.name) if many else ():
                if len(known) < LISTED:
                    known[entry.words[0]] = entry
            self.sources.append(self.children(job, known, many and len(known) < LISTED))

    def checked(self, job: Job, answer: Line) -> None:
        """What the server has of that name decides."""
        if answer.verb == "err" and answer.keys.get("reason") == "no-such-file":
            return self.send(job, answer.number("part"), over=False)
        if answer.verb == "err":
            raise refusal(answer, "put", job.name)
        there, is_file = answer.number("size"), answer.keys.get("type", answer.verb) == "file"
        if is_file and self.is_same(job, answer):
            return self.skip(job, job.size)
        if is_file and self.args.force:
            return self.send(job, answer.number("part"), over=True)
        if not is_file:
            raise Failure(25, f"server already has a folder {shown(job.name)}", "a file cannot take its place", "--as NAME")
        raise Failure(25, f"server already has {shown(job.name)} ({there:,} bytes; yours has {job.size:,})", "it is different, by size or time",
                      "--force replaces it; --as NAME stores it beside")

    def is_same(self, job: Job, answer: Line) -> bool:
        assert job.status
        if self.args.compare != "content":
            return same(job.size, job.status.st_mtime_ns, answer.number("size"), answer.number("mtime_ns"))
        if job.size != answer.number("size"):
            return False
        with opened(job.path) as fd:
            return digest(fd, job.size, hashlib.sha256(), lambda count: self.progress.at(count, "checked")) == answer.keys.get("sha256")

    def send(self, job: Job, part: int, over: bool) -> None:
        with opened(job.path) as fd:
            status, sha = os.fstat(fd), hashlib.sha256()
            job.size, offset = status.st_size, 0
            if part and self.args.resume:
                offset = self.agree(job, fd, status, sha)
                sha = sha if offset else hashlib.sha256()
                os.lseek(fd, offset, os.SEEK_SET)
            self.resumed(job, offset)
            self.link.request(self.stored, job, "put", job.name, size=job.size, mtime_ns=status.st_mtime_ns, over="yes" if over else None,
                              exec="yes" if status.st_mode & stat.S_IXUSR and os.name != "nt" else None, offset=offset or None)
            given_up = send_body(self.link, fd, status, sha, self.go_on)
        job.sha256 = sha.hexdigest()
        if given_up == "changed":
            raise Failure(18, f"{shown(job.path)} changed while it was sent", "the server has not kept it", "again, when nothing writes to it")

    def agree(self, job: Job, fd: int, status: os.stat_result, sha: hashlib._Hash) -> int:
        """Where to go on: as far as the server's part is the beginning of this very file."""
        answer = self.link.ask("resume", job.name, size=job.size, mtime_ns=status.st_mtime_ns,
                               exec="yes" if status.st_mode & stat.S_IXUSR else None)
        if answer.verb == "err":
            raise refusal(answer, "put", job.name)
        offset = answer.number("offset")
        ours = digest(fd, offset, sha, lambda count: self.progress.at(count, "checked")) if 0 < offset <= job.size else ""
        return offset if ours and ours == answer.keys.get("sha256") else 0

    def go_on(self, count: int) -> bool:
        """Between chunks: has the server refused it already?"""
        return count < BATCH or not self.link.peek()

    def stored(self, job: Job, answer: Line) -> None:
        if job.failed:
            return
        if answer.verb != "ok":
            raise refusal(answer, "put", job.name)
        if answer.keys.get("sha256") != job.sha256 or answer.keys.get("verified") != "yes":
            raise Failure(56, f"the server stored something else as {shown(job.name)}", "its digest is not that of what was sent",
                          "again, with --force")
        self.done(job, job.size, job.sha256)

    def send_input(self, job: Job) -> None:
        """Standard input, of unknown length: no question whether it is there, and no second attempt."""
        job.once = True
        self.link.request(self.stored, job, "put", job.name, over="yes" if self.args.force else None)
        sha, refused = hashlib.sha256(), False
        while not refused and (chunk := os.read(0, CHUNK)):
            sha.update(chunk)
            job.size += len(chunk)
            self.link.put(b"data %d\n" % len(chunk))
            self.link.put(chunk)
            self.link.flush()
            refused = self.link.peek()
        job.sha256 = sha.hexdigest()
        self.link.put(line("abort", reason="refused") if refused else line("end", sha256=job.sha256))

    def trouble(self, job: Job, error: OSError) -> Failure:
        near = ""
        with contextlib.suppress(OSError):
            import difflib
            near = next(iter(difflib.get_close_matches(os.path.basename(job.path), os.listdir(os.path.dirname(job.path) or "."), 1)), "")
        return Failure(26, f"cannot read {shown(job.path)}: {(error.strerror or '').lower()} (in {shown(os.getcwd())})",
                       "it was not sent", f"did you mean {shown(near)}?" if near else "check the name")


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A regular file for reading, and only that: a FIFO would wait for ever."""
    fd = os.open(path, os.O_RDONLY | NO_LINK & ~getattr(os, "O_NOFOLLOW", 0))
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield fd
    finally:
        os.close(fd)


# --- get: files come in ---
class Stream(Part):
    """Standard output, or a device or FIFO: what is written cannot be taken back, but it is verified all the same."""

    def __init__(self, fd: int) -> None:
        self.fd, self.keyed, self.name = fd, False, ""
        self.sha, self.received = hashlib.sha256(), 0

    def claim(self) -> bool:
        return True

    def begin(self, offset: int) -> None:
        if offset != self.received:
            raise Failure(36, "cannot go on with standard output",
                          "the file on the server has changed, and its beginning is already written", "again")

    def finish(self, over: bool, durable: bool = False, lock: contextlib.AbstractContextManager[Any] = UNLOCKED) -> None:
        pass

    def keep(self) -> bool:
        return bool(self.received)

    def drop(self) -> None:
        pass


class Gets(Batch):
    """Each file: is it here already? If not, its bytes, into a part, and then its name."""

    verb = "get"

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.stream: int | None = None
        self.leaf = ""  # what the one thing that is fetched shall be called
        self.top, self.near = self.destination(args.output)

    def destination(self, output: str | None) -> tuple[Folder | None, tuple[str, Folder | None]]:
        """DEST: a folder, a name, - for standard output, or a device or FIFO."""
        if output == "-" or (output and os.path.exists(output) and not os.path.isfile(output) and not os.path.isdir(output)):
            self.stream = product() if output == "-" else os.open(output, os.O_WRONLY)
            return None, ("", None)
        folder = output or "."
        if output and not output.endswith("/") and not os.path.isdir(output):
            if len(self.args.names) > 1:
                raise Failure(2, f"{output} is not a folder", "several files cannot have one name", f"-o {shlex.quote(output)}/ makes the folder")
            folder, self.leaf = os.path.split(os.path.abspath(output))
        try:
            os.makedirs(folder, exist_ok=True)
            top = Folder(folder)
        except OSError as error:
            raise Failure(23, f"cannot write to {shown(folder)} ({error.strerror})", "nothing was fetched", "-o DEST for another place") from None
        return top, ("", top)

    def jobs(self) -> Iterator[Job]:
        return map(Job, list(expand(self.args, self.args.names)))

    def start(self, job: Job) -> None:
        if job.below:
            return self.fetch(job)
        self.link.request(self.found, job, "stat", job.name, digest="yes" if self.args.compare == "content" and self.stream is None else None)

    def found(self, job: Job, answer: Line) -> None:
        if answer.verb != "ok":
            raise refusal(answer, "get", job.name)
        own = job.name.rpartition("/")[2]
        job.path = self.leaf or own
        if answer.keys.get("type") == "dir":  # DEST is where it goes, not its new name: given again, the command finds it there
            job.path = f"{self.leaf}/{own}" if self.leaf else own
            self.link.request(self.tree, job, "list", job.name, deep="yes")
        else:
            self.learn(job, answer)
            self.fetch(job)

    def learn(self, job: Job, answer: Line) -> None:
        self.progress.total += answer.number("size") - job.size
        self.progress.all_files += not job.mtime_ns
        job.size, job.mtime_ns, job.sha256 = answer.number("size"), answer.number("mtime_ns"), answer.keys.get("sha256", "")
        job.executable = answer.keys.get("exec") == "yes"

    def tree(self, job: Job, answer: Line) -> None:
        """The listing of a folder, whole: bodies can follow only after it."""
        entries = Listing()
        while answer.verb in ("file", "dir", "note"):
            entries.add(answer)
            self.progress.total += answer.number("size") if answer.verb == "file" else 0
            self.progress.all_files += answer.verb == "file"
            answer = self.link.hear()
        if answer.verb != "ok":
            raise refusal(answer, "get", job.name)
        if self.stream is None:
            self.local(job.path + "/x", make=True)
        self.sources.append(self.entries(job, entries))

    def entries(self, above: Job, found: Listing) -> Iterator[Job]:
        for entry in found:
            job = Job(entry.words[0])
            if not job.name.startswith(above.name + "/"):
                self.fail(job, Failure(56, f"the server listed {shown(job.name)}, which is not in {shown(above.name)}",
                                       "it breaks the protocol", "another server"))
                continue
            job.path, job.below = above.path + job.name[len(above.name):], True
            if entry.verb == "note" and entry.keys["reason"] == "not-a-file":
                self.pass_over(job.name)
            elif entry.verb == "note":
                self.fail(job, refusal(entry, "get", job.name))
            elif entry.verb == "dir":
                self.attempt(self.make_folder, job)
            else:
                job.size, job.mtime_ns, job.executable = entry.number("size"), entry.number("mtime_ns"), entry.keys.get("exec") == "yes"
                yield job

    def make_folder(self, job: Job) -> None:
        if self.stream is None:
            self.local(job.path + "/x", make=True)

    def local(self, path: str, make: bool = False) -> tuple[Folder, str]:
        """Where a name leads here: checked like a name from any network, component by component below DEST."""
        assert self.top
        try:
            *above, leaf = components(path)
        except Refused:
            raise Failure(56, f"the server names a file {shown(path)}", "that would lead outside of the folder that it is for",
                          "another server") from None
        key = "/".join(above)
        if self.near[0] != key:
            found = self.top
            for part in above:
                found = found.below(part, make=True)
            self.near = key, found
        folder = self.near[1]
        assert folder
        return folder, leaf

    def fetch(self, job: Job) -> None:
        if self.stream is not None:
            job.part = job.part or Stream(self.stream)
        elif self.is_here(job, *self.local(job.path)):
            return self.skip(job, job.size)
        elif self.args.resume and job.size >= RESUMABLE and not job.part:
            self.resume(job, *self.local(job.path))
        part = job.part
        self.link.request(self.fetched, job, "get", job.name, offset=part.received if part and part.received else None,
                          sha256=part.sha.hexdigest() if part and part.received else None)

    def is_here(self, job: Job, folder: Folder, leaf: str) -> bool:
        there = folder.stat(leaf)
        if there is None:
            return False
        if not stat.S_ISREG(there.st_mode):
            raise Failure(23, f"cannot write {shown(job.path)}", "a folder, a link or a special file has that name here", "-o DEST for another place")
        if job.sha256:
            fd, there = folder.read(leaf)
            with os.fdopen(fd, "rb"):
                alike = there.st_size == job.size and digest(fd, job.size, hashlib.sha256(), lambda count: None) == job.sha256
        else:
            alike = same(job.size, job.mtime_ns, there.st_size, there.st_mtime_ns)
        if not alike and not self.args.force:
            raise Failure(23, f"{shown(job.path)} is already here ({there.st_size:,} bytes; the server's has {job.size:,})",
                          "it is different, by size or time", "--force replaces it; -o DEST puts it elsewhere")
        return alike

    def resume(self, job: Job, folder: Folder, leaf: str) -> None:
        """What an earlier attempt left, and its digest, for the server to compare."""
        part = Part(folder, leaf, job.size, job.mtime_ns, job.executable)
        if not folder.stat(part.name):
            return
        if not part.claim():
            raise Failure(23, f"another program is writing {shown(job.path)}", "its part is locked", "again, when that one is done")
        if part.length() <= job.size:
            digest(part.fd, part.length(), part.sha, lambda count: self.progress.at(count, "checked"))
            part.received = os.lseek(part.fd, 0, os.SEEK_CUR)
        job.part = part

    def fetched(self, job: Job, answer: Line) -> None:
        if answer.verb != "ok":
            raise refusal(answer, "get", job.name)
        size = answer.number("size")
        part = job.part or Part(*self.local(job.path), size, answer.number("mtime_ns"), answer.keys.get("exec") == "yes")
        job.part = None
        try:
            self.receive(job, part, size, answer.number("offset"))
        except (Lost, KeyboardInterrupt):
            job.part = part if isinstance(part, Stream) else None
            self.progress.current = part.received
            part.keep()
            raise
        except BaseException:
            job.offset = part.received
            part.drop()
            self.requeue()  # the rest of this body is on its way, and nobody wants it
            self.link = connected(self.args)
            self.link.noted = self.noted
            raise
        self.done(job, size, part.sha.hexdigest())

    def receive(self, job: Job, part: Part, size: int, offset: int) -> None:
        if part.fd < 0 and not part.claim():
            raise Failure(23, f"another program is writing {shown(job.path)}", "its part is locked", "again, when that one is done")
        part.begin(offset)
        self.resumed(job, offset)

        def check(announced: int) -> None:
            if announced > size:
                raise Failure(56, f"the server sends more of {shown(job.name)} than the {size:,} bytes that it said",
                              "it breaks the protocol", "again")

        end = receive_body(self.link, part, check, self.progress.at)
        self.verify(job, part, end, size)
        part.finish(self.args.force)

    def verify(self, job: Job, part: Part, end: Line, size: int) -> None:
        if end.verb == "abort":
            raise Failure(18, f"{shown(job.name)} changed while the server sent it", "what came of it is not kept",
                          "again, when nothing writes to it")
        if part.received != size:
            raise Failure(18, f"{part.received:,} of {size:,} bytes of {shown(job.name)} came", "the server ended before", "again")
        if end.keys.get("sha256") != part.sha.hexdigest():
            raise Failure(56, f"{shown(job.name)} arrived changed", "its SHA-256 is not what the server computed: nothing is kept", "again")

    def trouble(self, job: Job, error: OSError) -> Failure:
        return Failure(23, f"cannot write {shown(job.path)} ({error.strerror}) after {job.offset:,} of {job.size:,} bytes",
                       "what was there before is untouched", "room on the disk, or -o DEST")


class Listing:
    """The lines of a listing, however many: first in memory, then in a nameless file."""

    def __init__(self) -> None:
        self.lines: deque[Line] = deque()
        self.rest: Any = None

    def add(self, entry: Line) -> None:
        if len(self.lines) < LISTED:
            return self.lines.append(entry)
        if self.rest is None:
            import tempfile  # not at the top: it is slow to load
            self.rest = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as this object)
        self.rest.write(line(entry.verb, *entry.words, **entry.keys))

    def __iter__(self) -> Iterator[Line]:
        while self.lines:
            yield self.lines.popleft()
        if self.rest is not None:
            self.rest.seek(0)
            yield from (parse(raw[:-1]) for raw in self.rest)
            self.rest.close()


# --- the commands ---
def tell(text: str) -> None:
    """A line of the product: names as they are to a pipe, harmless to a terminal."""
    view = memoryview((shown(text).encode() if os.isatty(1) else os.fsencode(text)) + b"\n")
    try:
        while view:
            view = view[os.write(product(), view):]
    except OSError as error:
        raise Failure(23, f"cannot write standard output ({error.strerror})", "what reads it has ended, or its disk is full",
                      "the same without | or >") from None


def product() -> int:
    """Standard output. Where it was closed before the start, the connection may have its number."""
    if sys.stdout is None:
        raise Failure(23, "cannot write standard output (it is closed)", "whoever started this closed it", "the same without >&-")
    return 1


def tell_json(facts: dict[str, Any]) -> None:
    """Text that is not UTF-8 is told with \\x escapes; of such a name "quoted" has the bytes, as the protocol writes them."""
    import json  # not at the top: few need it
    clean = {key: os.fsencode(value).decode(errors="backslashreplace") if isinstance(value, str) else value for key, value in facts.items()}
    if clean.get("name") != facts.get("name"):
        clean["quoted"] = quote(facts["name"])
    tell(json.dumps(clean))


def do_list(args: argparse.Namespace) -> int:
    """On a terminal a table; to a pipe one name a line, a folder's with a slash."""
    code, table = 0, os.isatty(1)
    for entry in listing(connected(args), remote_name(args.folder) if args.folder else "", args.r):
        if entry.verb == "note":
            code = 9
            say(str(refusal(entry, "list", entry.words[0])))
            continue
        name = entry.words[0] + "/" * (entry.verb == "dir")
        if args.json:
            tell_json({"type": entry.verb, "name": entry.words[0], **{key: entry.number(key) for key in ("size", "mtime_ns") if key in entry.keys}})
        elif table:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.number("mtime_ns") / 1e9))
            tell(f"{human(entry.number('size')) if entry.verb == 'file' else '':>9}  {when}  {name}")
        else:
            tell(name)
    return code


def do_get(args: argparse.Namespace) -> int:
    batch = Gets(args)
    return batch.run(batch.jobs())


def do_put(args: argparse.Namespace) -> int:
    if args.name and len(args.paths) > 1:
        raise Failure(2, "--as names one file, and there are several", "they would replace each other", "--into FOLDER")
    args.paths = [found for path in args.paths for found in local_names(path)]
    batch = Puts(args)
    if batch.progress.drawn:
        measure(batch.progress, args.paths)
    return batch.run(batch.jobs())


def local_names(path: str) -> list[str]:
    """What a pattern stands for where no shell has seen it: on Windows, and at our own prompt."""
    if not re.search(r"[*?[]", path) or os.path.lexists(path):
        return [path]
    import glob  # not at the top: few need it
    return sorted(glob.glob(path)) or [path]


def measure(progress: Progress, paths: Sequence[str]) -> None:
    """How much there is to send: the bar tells how much of it."""
    for path in paths:
        sizes = ([os.path.join(top, name) for top, _, names in os.walk(path) for name in names] if os.path.isdir(path) else [path])
        for found in sizes:
            with contextlib.suppress(OSError):
                progress.total += os.lstat(found).st_size
                progress.all_files += 1


class Deletes(Batch):
    verb = "delete"

    def start(self, job: Job) -> None:
        self.link.request(self.answered, job, "delete", job.name)

    def answered(self, job: Job, answer: Line) -> None:
        if answer.verb != "ok":
            raise refusal(answer, "delete", job.name)
        self.report(job, "ok")


def do_delete(args: argparse.Namespace) -> int:
    batch = Deletes(args)
    batch.sources.append(map(Job, list(expand(args, args.names))))
    batch.pump()
    return batch.code


def simple(args: argparse.Namespace, *words: str) -> Line:
    """One request, one answer."""
    answer = connected(args).ask(*words)
    if answer.verb != "ok":
        raise refusal(answer, words[0], words[1])
    if args.json:
        tell_json({"verb": words[0], "name": words[1], "result": "ok", **answer.keys})
    return answer


def do_rename(args: argparse.Namespace) -> int:
    simple(args, "rename", remote_name(args.old), remote_name(args.new))
    return 0


def do_mkdir(args: argparse.Namespace) -> int:
    simple(args, "mkdir", remote_name(args.folder))
    return 0


def do_stat(args: argparse.Namespace) -> int:
    name = remote_name(args.name)
    answer = simple(args, "stat", name)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(answer.number("mtime_ns") / 1e9))
    facts = [f"{answer.number('size'):,} bytes"] * ("size" in answer.keys) + [when] + ["executable"] * ("exec" in answer.keys)
    if not args.json:
        tell(f"{name}: {'folder' if answer.keys.get('type') == 'dir' else 'file'}, {', '.join(facts)}")
    return 0


def do_help(args: argparse.Namespace) -> int:
    """The server's own words: what it understands."""
    link = connected(args)
    link.put(line("help"))
    while (found := link.hear()).verb == "help":
        tell(found.words[0])
    return 0

COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": do_list, "get": do_get, "put": do_put, "delete": do_delete, "rename": do_rename, "mkdir": do_mkdir, "stat": do_stat, "help": do_help,
}


# --- the shell ---
WORDS = {"upload": "put", "download": "get", "ls": "list"}  # what the labs say for ours
ENDS = {"bye", "logout", "stop", "quit", "exit"}
SHELL_HELP = """\
    list [FOLDER] [-r]        what is there; -r in all folders below too
    get NAME... [-o DEST]     fetch files or folders (download)
    put PATH... [--as NAME] [--into FOLDER]    send files or folders (upload)
    delete NAME...            rename OLD NEW    mkdir NAME    stat NAME
    help                      these lines
    bye                       the end (logout, stop, quit, Ctrl-D)
put and get replace a different file only with --force. Names with spaces stand in quotes."""


def shell(args: argparse.Namespace) -> int:
    """Commands from a prompt, or a line each from a pipe. One that fails says so, and the next one comes."""
    terminal, code = os.isatty(0), 0
    connected(args)
    if terminal:
        prepare_completion()
        say(f"connected to {place(args)}; help lists the commands")
    while True:
        try:
            words = split(input(PROMPT) if terminal else next_line())
            if words and words[0].lower() in ENDS:
                break
            failed = obey(args, words) if words else 0
            code = code or failed
        except KeyboardInterrupt:
            say("")
        except EOFError:
            break
    if args.link:
        args.link.put(line("bye"))
        args.link.flush()
    return 0 if terminal else code


def next_line() -> str:
    """input() writes to standard output even where there is no prompt."""
    text = sys.stdin.readline()
    if not text:
        raise EOFError
    return text


def split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:  # a quote that is not closed
        say(str(Failure(2, f"cannot read that line ({str(error).lower()})", "a quote opens and does not close", "put 'a b.txt'")))
        return []


def obey(args: argparse.Namespace, words: list[str]) -> int:
    """One line of the shell: the same words as on the command line, and those of the labs."""
    verb = WORDS.get(words[0].lower(), words[0].lower())
    if verb == "help":
        for text in SHELL_HELP.splitlines():
            tell(text)
        return 0
    if verb not in COMMANDS:
        say(str(Failure(2, f"unknown command {shown(words[0])}", "the shell has no such word", "help")))
        return 2
    if verb in ("put", "get", "delete") and len(words) == 1:
        words = [verb, input("which file? ")]
    if "\0" in "".join(words):
        say(str(Failure(2, "cannot read that line (it holds a NUL)", "no file has such a name", "the same without it")))
        return 2
    try:
        parsed = build_parser().parse_args([verb, *words[1:]])
    except SystemExit as end:
        return int(end.code or 0)
    for name in ("host", "port", "timeout", "retries", "quiet", "json", "trace", "trace_hex", "resume", "compare"):
        if getattr(parsed, name) == parser_defaults()[name]:
            setattr(parsed, name, getattr(args, name))
    parsed.link = args.link
    try:
        return carry_out(parsed)
    finally:
        args.link = parsed.link


def prepare_completion() -> None:
    """History and the Tab key, where Python has readline: commands first, then local paths."""
    with contextlib.suppress(ImportError):
        import readline  # not at the top: loading it can write to a terminal

        def complete(text: str, state: int) -> str | None:
            import glob
            if readline.get_begidx() == 0:
                found = [word + " " for word in sorted({*COMMANDS, *WORDS, *ENDS}) if word.startswith(text)]
            else:
                found = [shlex.quote(path + "/" * os.path.isdir(path)) for path in sorted(glob.glob(glob.escape(text) + "*"))]
            return found[state] if state < len(found) else None

        readline.set_completer_delims(" ")
        readline.set_completer(complete)
        readline.parse_and_bind("tab: complete")


# --- trace: the same in all six scripts (tests/test_twins.py) ---
T = TypeVar("T")
DUMPED = 64  # bytes of each call that --trace-hex shows
SECRET = re.compile(rb"(?i)((?:authorization|cookie):[ \t]*)([^\r\n]+)")


def hexdump(data: bytes) -> str:
    """The first bytes, sixteen a line, secrets masked."""
    data = SECRET.sub(lambda found: found[1] + b"*" * len(found[2]), data[:DUMPED])
    rows = [(start, data[start:start + 16]) for start in range(0, len(data), 16)]
    return "".join(f"\n{start:16x}  {row.hex(' '):47}  {re.sub(rb'[^ -~]', b'.', row).decode()}" for start, row in rows)


class Traced(socket.socket):
    """A socket that prints a line on stderr for each call. It shows what the program asks of the kernel and hears from it;
    SYN, ACK and retransmission happen inside the kernel, where only tcpdump or Wireshark see them."""

    began = time.perf_counter()
    numbers = itertools.count(1)
    dump = False
    number = sent = received = 0

    def show(self, mark: str, text: str, data: bytes = b"") -> None:
        self.number = self.number or next(self.numbers)
        say(f"{1000 * (time.perf_counter() - self.began):9.3f} ms #{self.number} {mark} {text}" + hexdump(data) * self.dump)

    def attempt(self, mark: str, what: str, call: Callable[..., T], *args: object) -> T:
        try:
            return call(*args)
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # that one means: nothing happened
                self.show(mark, f"{what}: {error.strerror or 'timed out'}")
            raise

    def put(self, name: str, data: Any, call: Callable[..., int], *args: object) -> int:
        count = self.attempt(">", name, call, data, *args)
        self.sent += count
        self.show(">", f"{name} {count} of {len(data)} bytes (sent so far {self.sent})", bytes(data[:min(count, DUMPED)]))
        return count

    def take(self, name: str, size: int, call: Callable[..., T], *args: object) -> T:
        began = time.perf_counter()
        result = self.attempt("<", name, call, *args)
        waited = 1000 * (time.perf_counter() - began)
        data: Any = result[0] if isinstance(result, tuple) else args[0] if isinstance(result, int) else result
        count = result if isinstance(result, int) else len(data)
        self.received += count
        name += f" {address(result[-1])}" if isinstance(result, tuple) else ""
        text = f"{name} {count} of at most {size} bytes, waited {waited:.2f} ms (received so far {self.received})"
        ended = count == 0 and self.type == socket.SOCK_STREAM
        self.show("<", f"{name} 0 bytes = peer sent FIN (end of stream)" if ended else text, bytes(data[:min(count, DUMPED)]))
        return result

    def connect(self, target: Any) -> None:
        began = time.perf_counter()
        self.attempt("*", f"connect {address(target)}", super().connect, target)
        took = f"handshake {1000 * (time.perf_counter() - began):.2f} ms" if self.type == socket.SOCK_STREAM else "UDP: nothing is sent"
        self.show("*", f"connect {address(target)} ok from {address(self.getsockname())} ({took})")

    def accept(self) -> tuple[socket.socket, Any]:
        plain, peer = self.attempt("*", "accept", super().accept)
        conn = type(self)(plain.family, plain.type, plain.proto, plain.detach())
        conn.show("*", f"accept from {address(peer)}")
        return conn, peer

    def send(self, data: Any, flags: int = 0) -> int:
        return self.put("send", data, super().send, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view, flags):]

    def sendto(self, data: Any, *rest: Any) -> int:
        return self.put(f"sendto {address(rest[-1])}", data, super().sendto, *rest)

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self.take("recv", size, super().recv, size, flags)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        return self.take("recv", size or len(buffer), super().recv_into, buffer, size, flags)

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, Any]:
        return self.take("recvfrom", size, super().recvfrom, size, flags)

    def recvmsg(self, size: int, *rest: Any) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        return self.take("recvmsg", size, super().recvmsg, size, *rest)

    def shutdown(self, how: int) -> None:
        self.attempt("*", "shutdown", super().shutdown, how)
        self.show("*", "shutdown of receiving" if how == socket.SHUT_RD else "shutdown of sending = FIN")

    def close(self) -> None:
        if self.fileno() >= 0:
            self.show("*", f"close (sent {self.sent}, received {self.received})")
        super().close()


class TracedHex(Traced):
    dump = True


def socket_class(args: argparse.Namespace) -> type[socket.socket]:
    """What sockets are made of: without --trace the plain class, so that it costs nothing."""
    return TracedHex if args.trace_hex else Traced if args.trace else socket.socket
# --- end trace ---


# --- connecting: the same in client.py, httpclient.py, tcp_upper.py (tests/test_twins.py) ---
CONNECT_TIMEOUT = 5.0  # seconds; a machine that is there answers within one


def open_connection(args: argparse.Namespace, host: str, port: int, server: str) -> socket.socket:
    """Connect to the first of the host's addresses that answers; server is the command that would start what is missing."""
    limit = min(CONNECT_TIMEOUT, args.timeout)
    for family, target in resolve(host, port, socket.SOCK_STREAM):
        sock = socket_class(args)(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(limit)
            sock.connect(target)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is sent leaves at once, however short
            sock.settimeout(args.timeout)
            return sock
        except OSError as error:
            sock.close()
            problem = error
    place = address((host, port))
    if isinstance(problem, ConnectionRefusedError):
        raise Failure(7, f"nothing is listening on {place} (connection refused)",
                      "the host answered, but no program has that port open", server)
    if isinstance(problem, socket.timeout) or problem.errno == errno.ETIMEDOUT:
        raise Failure(28, f"no answer from {place} in {limit:g} s", "silence means a firewall, a wrong address or a host that is down; "
                      "a refusal would be instant", "check the address that the server printed")
    raise Failure(7, f"cannot connect to {place} ({problem.strerror})", "this machine has no way to that address",
                  "check the address that the server printed, and the network")
# --- end connecting ---


# --- errors: the same in all six scripts (tests/test_twins.py) ---
Address = tuple[Any, ...]  # (host, port), and for IPv6 (host, port, flow, scope)


class Failure(Exception):
    """What a user or a network can cause: told in three lines, with the exit code that curl has for it."""

    def __init__(self, code: int, error: str, why: str, hint: str) -> None:
        super().__init__(f"error: {error}\nwhy:   {why}\ntry:   {hint}")
        self.code = code


def say(text: str) -> None:
    """A line for people, written at once. Nobody left to read it is no reason to stop."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # AttributeError: started with stderr closed
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def address(place: Address) -> str:
    """HOST:PORT, [HOST]:PORT for IPv6; an IPv4 client of a dual-stack server by its IPv4 address."""
    host, port = str(place[0]), place[1]
    host = host[7:] if host.startswith("::ffff:") and "." in host else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(host: str, port: int, kind: int) -> list[tuple[int, Address]]:
    """Each address of a host: the family for socket(), and what connect() and bind() take."""
    with contextlib.suppress(socket.gaierror, UnicodeError):  # UnicodeError: an empty label, or one over 63 characters
        return [(family, target) for family, _, _, _, target in socket.getaddrinfo(host, port, type=kind)]
    raise Failure(6, f'cannot find host "{ascii(host)[1:-1]}"', "it is neither an address nor a name that this machine can look up",
                  "check the spelling, or use the address")


def between(low: float, high: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """An argparse type: a number from low to high. (Port 99999 would raise OverflowError out of bind().)"""
    def number(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
    return number


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints in the three lines of all others."""

    def error(self, message: str) -> NoReturn:
        say(str(Failure(2, message, "the command line is not as the help describes it; nothing was done", f"python3 {self.prog} --help")))
        raise SystemExit(2)
# --- end errors ---


# --- the command line ---
def place(args: argparse.Namespace) -> str:
    return address((args.host, args.port))


def server_command(args: argparse.Namespace) -> str:
    """The command that starts the server which this client looks for."""
    host = "" if args.host in ("127.0.0.1", "localhost") else f" --host {shlex.quote(args.host)} --open"
    return f"{SERVER}{host} --port {args.port}"


def parser_defaults() -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": 9000, "timeout": 30.0, "retries": 3, "quiet": False, "json": False, "trace": False, "trace_hex": False,
            "resume": True, "force": False, "compare": "time", "link": None}


def common_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--host", help="the server's name or address (default 127.0.0.1)")
    flag("--port", type=between(1, 65535), help="its port (default 9000)")
    flag("--timeout", type=between(0.01, 1e6, float), metavar="S", help="silence allowed inside an answer (default 30)")
    flag("--retries", type=between(0, 1000), metavar="N", help="new connections after a lost one (default 3)")
    flag("--force", action="store_true", help="replace what is different")
    flag("--no-resume", dest="resume", action="store_false", help="start over instead of going on where it was cut off")
    flag("--compare", choices=("time", "content"), help="what makes two files the same: size and time (default), or SHA-256")
    flag("--quiet", action="store_true", help="no progress, no last line")
    flag("--json", action="store_true", help="results on stdout, one JSON object a line")
    flag("--trace", action="store_true", help="print a line for each socket call")
    flag("--trace-hex", action="store_true", help="the same, with the first bytes")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="client.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(**parser_defaults())
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}, protocol {PROTOCOL}")
    common_flags(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, argument_default=argparse.SUPPRESS, help=text)
        common_flags(made)
        return made

    listed = command("list", "what is there")
    listed.add_argument("folder", nargs="?", default="", metavar="PATH", help="a folder (default: all that is shared)")
    listed.add_argument("-r", action="store_true", default=False, help="all folders below too")
    got = command("get", "fetch files and folders")
    got.add_argument("names", nargs="+", metavar="NAME", help="a file, a folder, or a pattern such as '*.jpg'")
    got.add_argument("-o", dest="output", default=None, metavar="DEST", help="a folder, a name, or - for standard output (default: here)")
    sent = command("put", "send files and folders")
    sent.add_argument("paths", nargs="+", metavar="PATH", help="a file, a folder, or - for standard input")
    sent.add_argument("--as", dest="name", default=None, metavar="NAME", help="what it is called there")
    sent.add_argument("--into", default=None, metavar="FOLDER", help="the folder there, made when missing")
    command("delete", "delete files and empty folders").add_argument("names", nargs="+", metavar="NAME")
    renamed = command("rename", "give a file or folder another name, or another folder")
    renamed.add_argument("old", metavar="OLD")
    renamed.add_argument("new", metavar="NEW")
    command("mkdir", "make a folder").add_argument("folder", metavar="NAME")
    command("stat", "size and time of a file").add_argument("name", metavar="NAME")
    command("help", "what the server understands")
    return parser


def carry_out(args: argparse.Namespace) -> int:
    """One command, and whatever ends it, as an exit code. A connection on which something failed is not used again."""
    try:
        return COMMANDS[args.command](args) if args.command else shell(args)
    except Failure as failure:
        problem = failure
    except Lost as lost:
        problem = Failure(28 if "silent" in str(lost) else 56, f"connection to {place(args)} lost", str(lost),
                          f"again; if nobody is there: {server_command(args)}")
    except Broken as broken:
        problem = Failure(56, f"{place(args)} broke the protocol ({broken})", "it sent what no file server sends", "server.py --trace shows it")
    except KeyboardInterrupt:
        hang_up(args)
        say("\nstopped")
        return 130
    hang_up(args)
    say(str(problem))
    return problem.code


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return carry_out(args)
    finally:
        hang_up(args)


if __name__ == "__main__":
    sys.exit(main())
