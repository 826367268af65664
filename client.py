#!/usr/bin/env python3
"""Move files to and from a server.py: verified, resumed, never half there.

    python3 client.py list                        what is on 127.0.0.1:9000
    python3 client.py put notes.txt photos/       files and whole folders
    python3 client.py get notes.txt photos        into the current folder; -o DEST for elsewhere
    python3 client.py put src --exclude '*.o' --delete --dry-run    what that would send and delete
    python3 client.py --host 192.0.2.7 --tls --password WORD get '*.jpg' -o pictures/
                                                  (as the server printed it at its start; a password
                                                  of your own needs --pin SHA256 too)
    export SIXSOCKETS_HOST=192.0.2.7:9000         then no command needs --host and --port
    tar c . | python3 client.py put - --as box.tar     and: get box.tar -o - | tar x
    python3 client.py delete old.txt              rename OLD NEW, mkdir NAME, stat NAME, help
    python3 client.py who                         the other clients
    python3 client.py receive -o inbox/           wait for what they send
    python3 client.py send photos/ --to 192.0.2.9:51234 --to anna
                                                  or --all: nothing stays on the server
    python3 client.py chat --nick anna            talk with those who are in it
    python3 client.py                             a shell with these commands

If the connection is lost, a command reconnects for two minutes and resumes by itself (--retries).
If that fails too, the same command resumes later. A file that is there already, with the same size
and time, is skipped; --force replaces a different one. The receiving side checks length and SHA-256
before it gives a file its name and reports success.

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

The password comes from --password, --ask-password or SIXSOCKETS_PASSWORD in the environment, which
no process list shows. The client never sends it, but proves that it knows it. It tells nothing
else to a server that cannot prove the same. --tls, --cacert and --pin encrypt. A password that the
server made is proof enough of its certificate: both proofs cover it, and nobody can guess it.

Limits: without TLS others can read what is sent. An upload from standard input cannot be resumed.
Links inside a folder are skipped and named, names that start with a dot unless you say --hidden.
"""

# The map
#
# Begin at do_list(), the smallest command, then Link.ask(), which sends its request; then Batch.
# A put comes through main(), run_words(), do_put(), Batch.run(), Puts.put_file(), send_body() and
# Puts.accept(); a get through do_get(), Batch.run(), Gets.get_file() and Gets.receive().
#
#   one question       do_list(), do_stat(), do_help(), do_who(), hear_lines(), ask()
#   many files         File, Batch, Batch.exchange(), Batch.go_on(), Changes, expand()
#   put                Puts, Puts.converse(), Puts.put_file(), Puts.send_file()
#   get                Gets, Gets.converse(), Gets.get_file(), Gets.receive()
#   other clients      Sends, Inbox, Chat, then the table of the commands
#   the connection     Wire, Link, Link.log_in(), Link.ask(), connected(), persist()
#   what stands below  refusal(), Folder, Part, tell(), Progress, shell()
#   shared fences      client_tls(), Capture, Traced, open_connection(), Failure, Parser
#   the command line   build_parser(), run_words(), run_command(), main()
#
# Each File has a conversation, a generator: it sends a request, and `yield` waits for the answer.
# So the order of its code is the order of the wire. A File waits in Batch.files; its conversation
# waits in Batch.waiting. If the connection is lost, each begins again with the File it yielded:
# persist() repeats what is asked, and nothing else does.
# Only a chat has a second thread: it alone uses the connection, the main one waits for typing.

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

import _thread  # the locks of threading, which takes a client long to load
import argparse
import codecs
import contextlib
import enum
import errno
import functools
import hashlib
import io
import itertools
import os
import posixpath
import re
import select
import selectors
import shlex
import signal
import site
import socket
import stat
import struct
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional, TypeVar, Union

if TYPE_CHECKING:
    import ssl

VERSION = "1.0"
PROTOCOL = "1"
PORT = 9000
SERVER = "python3 server.py"
PROMPT = "sixsockets> "
WHICH = "which file (empty: none)? "
UNANSWERED = 256  # requests that may wait for their answers
# and their length: what both kernels hold, so that neither side ever waits for the other to read
UNANSWERED_BYTES = 24576
# what a server is sent after so many seconds without a greeting: to a file server it means nothing,
# one that waits for TLS or HTTP says at once what it is
NUDGE_AFTER, NUDGE = 1.0, b"note -\r\n\r\n"
NOTICE_AFTER = 3.0  # seconds of silence until the client says for whom it waits
LEAST_WINDOW = 8192  # bytes that the kernel may hold for a client that takes them slowly
# seconds of silence of standard input after which the server is told that more may come
STDIN_SILENCE = 1.0
RATE_AFTER = 0.5  # seconds after which a rate means something
REDRAW = 0.1  # seconds from one picture of the progress bar to the next
# seconds until the first new attempt, and at most: each pause is twice as long as the one before
BACK_OFF, LONGEST_PAUSE = 0.5, 10.0
ASKED_FIRST = 1 << 23  # bytes of a file from which the server is asked before it is sent
RETRIES = 16  # attempts after a lost connection: their pauses add up to two minutes
# exit codes of a server that does not answer: refused or no route, silent, gone before its greeting
NO_SERVER = {7, 28, 52}
# how a line that answers something can begin
ANSWERS = ("ok", "err", "file", "dir", "note", "help", "client", "got")
# a password that a server made: no 0, 1, i, l, o, which look alike
MADE_PASSWORD = re.compile("[a-hj-km-np-z2-9]{6}(?:-[a-hj-km-np-z2-9]{6}){2}")
CHAT_PROMPT = "> "
PIPE_RATE = 18.0  # lines a second that a pipe says: a little less than every server takes
# lines of a pipe that may wait for answers: a link that stood still brings them all at once
CHAT_UNANSWERED = 8
GOODBYE = 1.0  # seconds that a chat which is stopped has for the answers to what was said last
CHAT_LINE = 1000  # characters of one line of the chat; more are several
SENDERS = 1000  # folders from others whose names here are remembered
# folders that stay open: what is asked for runs ahead of what comes, often into the next folder
OPEN_FOLDERS = 4
NICK = re.compile(r"[\w.-]{1,32}")
CHAT_COMMANDS = "/who", "/nick", "/msg", "/quit"
CHAT_HELP = "/who, /nick NAME, /msg NICK TEXT, /quit; //TEXT says /TEXT"
CONTINUED = "  | "  # how a row begins that goes on with the line above it
CONTINUED_ROOM = 20  # columns of such a row at least
LISTED_IN_MEMORY = 12000  # lines of a listing; the rest goes to a nameless file


# --- one question: list, stat, help, who ---
def do_list(args: argparse.Namespace) -> int:
    """On a terminal a table; to a pipe one name a line, a folder's with a slash."""
    code, table = 0, is_terminal(1)
    folder = remote_name(args, args.folder) if args.folder else args.cwd or ""
    entries = matching if is_pattern(args, folder) else list_folder
    for entry in entries(args, folder, args.r):
        name = entry.words[0]
        if entry.keys.get("reason") == "not-a-file":
            say_in_rows(f"skipped {printable(name)}: {SKIPPED['link or special']}")
            continue
        if entry.verb == "note":  # what the server cannot list
            code = 9
            say_failure(refusal(entry, "list", name))
            continue
        if args.json:
            numbers: dict[str, Any] = {
                key: entry.number(key) for key in ("size", "mtime_ns") if key in entry.keys
            }
            tell_json({"type": entry.verb, "name": name, **numbers})
            continue
        name = name.removeprefix(f"{args.cwd}/") + "/" * (entry.verb == "dir")
        size = readable_size(entry.number("size")) if entry.verb == "file" else ""
        date = date_of(entry.number("mtime_ns")).rpartition(":")[0]  # without the seconds
        tell(f"{size:>9}  {date}  {name}" if table else name)
    return code


def do_stat(args: argparse.Namespace) -> int:
    name = remote_name(args, args.name)
    answer = require_ok(ask(args, "stat", name), "stat", name)
    if args.json:
        tell_json({**answer.keys, "verb": "stat", "name": name, "result": "ok"})
        return 0
    facts = ["folder" if answer.keys.get("type") == "dir" else "file"]
    if "size" in answer.keys:
        facts.append(plural(answer.number("size"), "byte"))
    facts.append(date_of(answer.number("mtime_ns")))
    if "exec" in answer.keys:
        facts.append("executable")
    tell(f"{name}: {', '.join(facts)}")
    return 0


def do_help(args: argparse.Namespace) -> int:
    """The server's own words: what it understands."""
    for found in ask_lines(args, "help"):
        tell(found.words[0])
    return 0


def do_who(args: argparse.Namespace) -> int:
    for found in ask_lines(args, "who"):
        nick, mode, you = (found.keys.get(key, "") for key in ("nick", "mode", "you"))
        if args.json:
            tell_json({"address": found.words[0], "nick": nick, "mode": mode, "you": bool(you)})
        else:
            facts = found.words[0], nick, mode, you and "(you)"
            tell(printable("  ".join(filter(None, facts))))
    return 0


class Listing:
    """The lines of an answer, however many: first in memory, then in a nameless file."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.rest: Any = None

    def add(self, entry: "Line") -> None:
        if len(self.lines) < LISTED_IN_MEMORY:
            return self.lines.append(entry)
        if self.rest is None:
            import tempfile  # not at the top: it is slow to load

            self.rest = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as this object)
        self.rest.write(line(entry.verb, *entry.words, **entry.keys))

    def __iter__(self) -> Iterator["Line"]:
        yield from self.lines
        if self.rest is not None:
            self.rest.seek(0)
            yield from (parse(os.fsdecode(raw[:-1])) for raw in self.rest)


def hear_lines(link: "Link", answer: "Line", *words: str) -> Listing:
    """The lines of an answer that has several, from its first to before its `ok`."""
    found = Listing()
    while answer.verb not in ("ok", "err"):
        found.add(answer)
        answer = link.answer()
    require_ok(answer, words[0], " ".join(words[1:]))
    return found


def ask_lines(args: argparse.Namespace, *words: str, **keys: object) -> Listing:
    """One question with an answer of several lines. Nothing is shown before all are here."""

    def attempt() -> Listing:
        link = connected(args)
        return hear_lines(link, link.ask(*words, **keys), *words)

    return persist(args, attempt)


def ask(args: argparse.Namespace, *words: str, **keys: object) -> "Line":
    return persist(args, lambda: connected(args).ask(*words, **keys))


def list_folder(args: argparse.Namespace, folder: str, deep: bool) -> Listing:
    """What is in a folder there; "" is the shared one. Deep: and in all folders below."""
    return ask_lines(args, "list", *filter(None, [folder]), deep="yes" if deep else None)


# --- many files: a conversation for each, and what became of it ---
class File(NamedTuple):
    """A file or folder of a command: what it is called there and here, and what is known of it."""

    name: str  # on the server, or at the receiver
    path: str = ""  # here
    top: str = ""  # the folder that was named, which it is in: its path here
    status: Optional[os.stat_result] = None  # of the one here, where a walk has looked at it
    listed: Optional["Line"] = None  # what a listing of the server says of it
    fresh: bool = False  # where it goes there can be nothing of that name
    tried: bool = False  # it was asked for before, and what came of that is not known
    doomed: bool = False  # --delete removes it
    stream: Optional["Stream"] = None  # standard output, and what of the file is in it already


# A conversation sends requests. Each `yield` waits for the answer to the one just sent, and says
# with what it begins again if the connection is lost before it has come or been carried out.
Conversation = Generator[File, "Line", None]


# what the server says of a name that is free, or where it does not tell
NAME_IS_FREE = {"no-such-file", "no-such-folder", "drop-box"}
# what the server says to the same request again if it had been done before the connection was lost
DONE = {"delete": "no-such-file", "mkdir": "exists"}
# what the last line tells besides what was sent, fetched or skipped
LAST_LINE = {
    "same": "{:,} already there",
    "deleted": "deleted {:,}",
    "delete": "would delete {:,}",
    "failed": "{:,} failed",
}
# what is left out of a tree, and why
SKIPPED = {
    "hidden": "its name starts with a dot (--hidden takes such names)",
    "link or special": "a link or a special file",
    "excluded": "",
}


class Batch:
    """The files of one command: a conversation for each, written as if it were the only one.

    While one waits for its answer, the next begins. One bad file does not stop the others."""

    verb = ""
    taken = 0, "", ""  # where another file has the name: exit code, what is told, what to do
    again = "the same command again resumes"
    repeated = "resumes"  # what is told of a command to repeat when the connection was lost

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.progress = Progress(args)
        self.files: list[Iterator[File]] = []  # still to begin, the last first
        self.waiting: deque[tuple[File, Conversation]] = deque()  # in the order of their requests
        self.code = self.bytes = self.there = 0  # bytes that came or went, or had before this run
        self.began: dict[str, int] = {}  # of files on their way: how much was there before this run
        self.counts: Counter[str] = Counter()  # what became of how many
        self.furthest = (0, 0)  # files, and bytes, at the last loss of the connection
        self.lost_at = ""  # where that was

    def use_link(self, link: "Link") -> None:
        self.link = link
        link.handle_note = self.handle_note
        if not self.counts:  # the clock begins here: before, a password may have been typed
            self.progress.began = time.monotonic()

    def handle_note(self, note: "Line") -> None:
        for key in ("received", "checked"):
            if key in note.keys:
                self.progress.update(note.number(key), "" if key == "received" else key)

    def converse(self, file: File) -> Conversation:
        """What is said about one file, in the order of the wire."""
        raise NotImplementedError

    def as_failure(self, file: File, error: Union[OSError, "Refused"]) -> "Failure":
        raise NotImplementedError

    def run(self, files: Iterator[File]) -> int:
        try:
            self.exchange_all(files)
            if self.args.delete and self.counts["failed"]:
                say("nothing was deleted, because something failed")
            elif self.args.delete:
                self.remove_surplus()
        except BaseException as end:
            if isinstance(end, KeyboardInterrupt):
                end.args = (f"stopped after {self.reached()}; {self.again}",)
            self.progress.clear()
            self.hang_up()
            raise
        self.summary()
        return self.code

    def reached(self) -> str:
        """How far it came. The answer for a file may have come while the next one was sent."""
        link: Link | None = self.args.link
        if link and self.verb != "get":  # there a body may be under way
            link.timeout = REDRAW
            with contextlib.suppress(Lost, Broken):
                link.notes()
        arrived = [
            file.status.st_size
            for (answer, _), (file, _) in zip(link.arrived if link else (), self.waiting)
            if answer.verb == "ok" and file.tried and file.status
        ]
        size = self.bytes + self.there + self.progress.current + sum(arrived)
        return f"{plural(self.counts['ok'] + len(arrived), 'file')} and {readable_size(size)}"

    def remove_surplus(self) -> None:
        try:
            self.exchange_all(self.surplus())
        except Failure as failure:
            self.fail(File("--delete"), failure)

    def surplus(self) -> Iterator[File]:
        """What --delete removes there."""
        return iter(())

    def exchange_all(self, files: Iterator[File]) -> None:
        self.files.append(files)
        try:
            persist(self.args, self.exchange)
        except Lost as lost:
            if not self.args.reached:
                raise
            again = f"{self.args.typed}   ({self.repeated})"
            if_gone = f"if no server is there: {server_command(self.args)}"
            raise self.lost_failure(lost, f"{again}; {if_gone}") from None

    def exchange(self) -> None:
        """Begin as many conversations as may wait, and give each answer to the one it is for."""
        self.use_link(connected(self.args))
        try:
            while (file := self.next_file()) or self.waiting:
                if file:
                    self.go_on(file, self.converse(file), None)
                else:
                    answer = self.link.answer()
                    self.go_on(*self.waiting.popleft(), answer)
        except Lost as lost:
            self.begin_again(lost)
            raise

    def next_file(self) -> Optional[File]:
        """None, too, as long as many requests are unanswered."""
        while self.files and not self.link.full():
            if file := next(self.files[-1], None):
                return file
            self.files.pop()
        return None

    def go_on(self, file: File, conversation: Conversation, answer: Optional["Line"]) -> None:
        """Let a conversation go on until it waits for its next answer, or ends."""
        try:
            waiting = conversation.send(answer) if answer else next(conversation)
            self.waiting.append((waiting, conversation))
        except StopIteration:
            pass
        except Failure as failure:
            self.fail(file, failure)
        except (OSError, Refused) as error:
            self.fail(file, self.as_failure(file, error))
        except Lost:
            self.waiting.appendleft((file, conversation))  # begin_again() does that
            raise

    def settle(self, file: File, result: str, **facts: object) -> None:
        """What became of a file: the last line counts it, and a program is told."""
        self.counts[result] += 1
        if self.args.json:
            tell_json({"verb": self.verb, "name": file.name, "result": result, **facts})

    def say(self, text: str) -> None:
        self.progress.clear()
        say_in_rows(text)

    def fail(self, file: File, failure: "Failure") -> None:
        self.code = self.code or failure.code
        self.progress.clear()
        say_failure(failure)
        what = str(failure).splitlines()[0].removeprefix("error: ")
        self.settle(file, "failed", error=what)

    def done(self, file: File, size: int, sha256: str, offset: int = 0, **facts: object) -> None:
        self.began.pop(file.name, None)
        self.bytes += size - offset
        self.there += offset
        self.progress.count_file(size)
        self.settle(file, "ok", size=size, sha256=sha256, **facts)

    def skip_same(self, file: File, size: int, sha256: str = "") -> None:
        if file.tried:  # this run sent it, and the answer was lost
            return self.done(file, size, sha256, self.began.get(file.name, 0))
        self.progress.resumed += size
        self.progress.count_file(size)
        self.settle(file, "same", size=size)

    def plan(self, what: str, file: File, size: int = 0) -> None:
        """With --dry-run this is all that is done."""
        self.bytes += size
        self.settle(file, what, dry_run=True)
        if not self.args.json:
            tell(f"{what} {file.name}")

    def skip(self, kind: str, path: str) -> None:
        """Leave out what is in a tree. The last line counts it."""
        self.counts[kind] += 1
        told = SKIPPED[kind] and (self.counts[kind] == 1 or kind != "hidden")
        if told and not self.args.quiet:
            self.say(f"skipped {printable(path)}: {SKIPPED[kind]}")

    def leaves_out(self, path: str, below: str) -> bool:
        """Whether a path is left out, below the folder that was named. A folder's ends in "/"."""
        kind = self.kept_out(below)
        if not kind:
            return False
        above = below.rstrip("/").rpartition("/")[0]
        if not (above and self.kept_out(f"{above}/")):
            self.skip(kind, path)
        return True

    def kept_out(self, below: str) -> str:
        """What --exclude or a dot at its beginning leaves out, and --delete leaves alone."""
        if not self.args.hidden and "/." in f"/{below}":
            return "hidden"
        excluded = self.args.exclude and is_excluded(self.args.exclude, below)
        return "excluded" if excluded else ""

    def change(self, file: File, verb: str, *more: str, **keys: object) -> Conversation:
        """One request that changes something there."""
        if self.args.dry_run:
            return self.plan(verb, file)
        self.link.request(verb, file.name, *more, **keys)
        answer = yield file._replace(tried=True)
        reason = answer.keys.get("reason")
        if file.doomed and reason == "not-empty":
            return  # what is in it was left alone
        if not (file.tried and reason == DONE.get(verb)):
            require_ok(answer, verb, file.name)
        self.settle(file, "deleted" if file.doomed else "ok")

    def is_same(
        self,
        file: File,
        ours: os.stat_result,
        theirs: "Line",
        opened: Callable[[], tuple[int, os.stat_result]],
    ) -> bool:
        """Whether both are the same: by SHA-256 where the server told it, or by size and time.

        Only --force replaces another file."""
        size = theirs.number("size")
        alike = ours.st_size == size
        if "sha256" not in theirs.keys:
            alike = same(ours.st_size, ours.st_mtime_ns, size, theirs.number("mtime_ns"))
        elif alike:
            fd, _ = opened()
            try:
                told = theirs.keys["sha256"]
                alike = digest(fd, size, hashlib.sha256(), self.show_checked) == told
            finally:
                os.close(fd)
        if not alike and not self.args.force:
            code, what, hint = self.taken
            if size == ours.st_size and self.args.compare == "time":
                # another client may have lost part of the time
                hint = f"--compare content tells whether they are the same; {hint}"
            name = printable(file.path if self.verb == "get" else file.name)
            raise Failure(code, f"{what} {name}", difference(theirs, ours), hint)
        return alike

    def show_checked(self, count: int) -> None:
        self.progress.update(count, "checked")

    def choose_doomed(self, name: str, content: Iterable[str], source: set[str]) -> list[str]:
        """What --delete removes of a folder's content: more than half of it only with --force.

        A link of the source is in it with a slash, too: nobody has looked what is behind it."""
        links = tuple(path for path in source if path.endswith("/"))
        found = [below for below in content if not self.kept_out(below)]
        doomed = [
            below
            for below in found
            if below.rstrip("/") not in source and not below.startswith(links)
        ]
        if len(doomed) * 2 > len(found) and not self.args.force:
            what = f"--delete would remove {len(doomed):,} of the {len(found):,} files and folders"
            what += f" in {printable(name)}"
            why = "that is more than half: perhaps another folder is meant"
            if self.args.dry_run:
                self.say(f"without --force it refuses that: {what}")
                return doomed
            hint = "--dry-run shows them, --force removes them"
            raise Failure(self.taken[0], what, why, hint)
        return doomed

    def hang_up(self) -> list[File]:
        """Close the connection. The files whose conversations that ends are to begin again."""
        files = [file for file, _ in self.waiting]
        for _, conversation in self.waiting:
            conversation.close()  # it releases its part: the shell's next command may need it
        self.waiting.clear()
        self.files.append(iter(files))
        close_link(self.args)
        return files

    def begin_again(self, lost: "Lost") -> None:
        """The connection is lost: what waited for an answer is to begin again, where it can."""
        reached = self.progress.files, self.progress.done + self.progress.current
        if reached > self.furthest:
            self.furthest, self.args.tries = reached, 0
        files = self.hang_up()
        self.lost_at = self.where(files[0], self.progress.current) if files else ""
        self.progress.clear()
        hints = [*filter(None, map(self.cannot_repeat, files))]
        if hints:
            raise self.lost_failure(lost, hints[0])

    def lost_failure(self, lost: "Lost", hint: str) -> "Failure":
        return lost_failure(lost, 18, f"connection lost{self.lost_at}", hint)

    def where(self, file: File, current: int) -> str:
        """How far the first file came that has no answer."""
        size = file.status.st_size if file.status else 0
        size = file.listed.number("size") if file.listed else size
        return f" at {current:,} of {size:,} bytes of {printable(file.name)}" if size else ""

    def cannot_repeat(self, file: File) -> str:
        """Where it cannot be begun again by itself: what to do then."""
        return ""

    def summary(self) -> None:
        self.progress.clear()
        elapsed, counts = time.monotonic() - self.progress.began, self.counts
        files = counts["ok"] + counts["new"] + counts["replace"]
        if self.args.json:
            return tell_json(
                {
                    "verb": self.verb,
                    "files": files,
                    "bytes": self.bytes,
                    "seconds": round(elapsed, 3),
                    "same": counts["same"],
                    "skipped": sum(counts[kind] for kind in SKIPPED),
                    "deleted": counts["deleted"] + counts["delete"],
                    "failed": counts["failed"],
                }
            )
        rate = readable_size(self.bytes / max(elapsed, 0.001))
        skipped = ", ".join(f"{counts[kind]:,} {kind}" for kind in SKIPPED if counts[kind])
        clauses = [f"skipped {skipped}"] * bool(skipped)
        clauses += [form.format(counts[key]) for key, form in LAST_LINE.items() if counts[key]]
        text = f"{plural(files, 'file')}, {readable_size(self.bytes + self.there)}"
        text += f" ({readable_size(self.there)} of it already there)" * bool(self.there)
        if self.args.dry_run:
            would = "fetch" if self.verb == "get" else "send"
            text = f"{self.verb} --dry-run: would {would} {text}"
        elif files:
            text = f"{self.verb}: {text} in {elapsed:.2f} s ({rate}/s)"
        else:
            text = f"{self.verb}: 0 files"
        # of one failure alone all is told already
        alone = sum(counts.values()) == counts["failed"] < 2
        if not self.args.quiet and (self.args.delete or not alone):
            say("; ".join([text, *clauses]))


class Changes(Batch):
    """delete, rename, mkdir: a request for each name."""

    def __init__(self, args: argparse.Namespace, *more: str, **keys: object) -> None:
        super().__init__(args)
        self.verb, self.more, self.keys = args.command, more, keys

    def converse(self, file: File) -> Conversation:
        if not self.args.r or file.listed:
            return (yield from self.change(file, self.verb, *self.more, **self.keys))
        self.link.request("list", file.name, deep="yes")
        answer = yield file
        found = [file._replace(listed=answer)]
        if answer.keys.get("reason") != "not-a-folder":
            for entry in hear_lines(self.link, answer, self.verb, file.name):
                if entry.verb != "note":  # a link, which is not ours to delete
                    found.append(File(entry.words[0], listed=entry))
        self.files.append(reversed(found))  # a folder comes after what is in it

    def cannot_repeat(self, file: File) -> str:
        return "" if self.verb in DONE else "list shows what is there now"

    def where(self, file: File, current: int) -> str:
        return f": unknown whether {self.verb} was done to {printable(file.name)}"

    def summary(self) -> None:
        if self.counts["ok"] and not (self.args.quiet or self.args.json):
            failed = f"; {self.counts['failed']:,} failed" * bool(self.counts["failed"])
            say(f"{self.verb}: {self.counts['ok']:,} done{failed}")


def do_delete(args: argparse.Namespace) -> int:
    return Changes(args).run(expand(args, args.names))


def do_rename(args: argparse.Namespace) -> int:
    over = "yes" if args.force else None
    old, new = remote_name(args, args.old), remote_name(args, args.new)
    return Changes(args, new, over=over).run(iter([File(old)]))


def do_mkdir(args: argparse.Namespace) -> int:
    return Changes(args).run(iter([File(remote_name(args, args.folder))]))


def expand(args: argparse.Namespace, names: Sequence[str]) -> Iterator[File]:
    """Names on the server; *, ? and [] match what is there.

    All are matched before the first is used, so that no other answer comes between."""
    chosen = Listing()
    for name in (remote_name(args, each) for each in names):
        count = 0
        if is_pattern(args, name):
            for found in matching(args, name):
                count += found.verb != "note"
                chosen.add(found)
        if not count:
            chosen.add(Line("name", [name], {}))
    return (File(found.words[0]) for found in chosen if found.verb != "note")


def is_pattern(args: argparse.Namespace, name: str) -> bool:
    """Whether a name has to be matched: it is not that of a file whose name holds a star."""
    return bool(re.search(r"[*?[]", name)) and ask(args, "stat", name).verb != "ok"


def matching(args: argparse.Namespace, pattern: str, below: bool = False) -> Iterator["Line"]:
    """What a pattern stands for in its folder, or also below it.

    As in a shell, * matches no dot at the beginning."""
    import fnmatch  # not at the top: few need it

    folder, _, wanted = pattern.rpartition("/")
    for entry in list_folder(args, folder, below):
        above, _, leaf = entry.words[0].rpartition("/")
        unasked = leaf.startswith(".") and not (args.hidden or wanted.startswith("."))
        if (above == folder or below) and fnmatch.fnmatchcase(leaf, wanted) and not unasked:
            yield entry


def walk(top: str) -> Iterator[tuple[str, os.stat_result]]:
    """What is in a folder here: first what is in a folder, then the folder, which ends in "/"."""
    for above, folders, names in os.walk(top, topdown=False):
        below = os.path.join(above, "")[len(os.path.join(top, "")) :].replace(os.sep, "/")
        for name in [*names, *folders]:
            with contextlib.suppress(OSError):  # it has gone meanwhile
                status = os.lstat(os.path.join(above, name))
                yield below + name + "/" * stat.S_ISDIR(status.st_mode), status


# --- put: files go out ---
class Puts(Batch):
    """Each file: is it there already? If not, its bytes, and the answer that they arrived."""

    verb = "put"
    taken = (
        25,
        "server already has another",
        "--as NAME stores yours beside it; --force replaces it",
    )

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.folder = functools.lru_cache(OPEN_FOLDERS)(self.open_folder)

    def sources(self) -> Iterator[File]:
        """What the command line names. Folders on the way to --into are made."""
        into = remote_name(self.args, self.args.into) if self.args.into else self.args.cwd or ""
        if self.args.into and into:  # in the shell, / and .. can mean all that is shared
            yield File(into, status=os.stat("."))  # a folder without a path: nothing is in it
        for path in self.args.paths:
            # "" is the root folder's
            own = "" if path == "-" else os.path.basename(os.path.abspath(path))
            if not own and self.args.name is None:
                what = "standard input" if path == "-" else printable(path)
                raise Failure(
                    2,
                    f"{what} has no name",
                    "it is kept under one there",
                    f"{self.verb} {printable(shlex.quote(path))} --as NAME",
                )
            if is_excluded(self.args.exclude, own + "/" * os.path.isdir(path)):
                self.skip("excluded", path)
                continue
            name = plain_name(own if self.args.name is None else self.args.name)
            yield File(f"{into}/{name}" if into else name, path)

    def converse(self, file: File) -> Conversation:
        if file.doomed:
            return (yield from self.change(file, "delete"))
        if file.path == "-":
            return (yield from self.put_input(file))
        # a link that is named is followed; in a folder links are not
        status = file.status or os.stat(file.path)
        if stat.S_ISDIR(status.st_mode):
            yield from self.put_folder(file)
        elif stat.S_ISREG(status.st_mode):
            yield from self.put_file(file, status)
        else:
            raise OSError(errno.EINVAL, "neither a file nor a folder")

    def put_file(self, file: File, status: os.stat_result) -> Conversation:
        """What the server has of that name decides whether the bytes are sent."""
        part, over = 0, False
        if not file.fresh:
            self.ask_about(file, status)
            there = yield file._replace(status=status)
            if there is LIKELY:
                return self.skip_same(file, status.st_size)
            if there.keys.get("reason") not in NAME_IS_FREE:
                if self.is_there(file, status, there):
                    return self.skip_same(file, status.st_size, there.keys.get("sha256", ""))
                over = True
            part = there.number("part")
        if self.args.dry_run:
            return self.plan("replace" if over else "new", file, status.st_size)
        yield from self.send_file(file, part, over)

    def ask_about(self, file: File, status: os.stat_result) -> None:
        """What does the server have of that name, and of an earlier attempt to send this file?"""
        resumable = status.st_size >= RESUMABLE and self.args.resume
        keys = {"size": status.st_size, "mtime_ns": status.st_mtime_ns} if resumable else {}
        content = file.tried or self.args.compare == "content"
        self.link.request("stat", file.name, **keys, digest="yes" if content else None)
        if not content:
            told = f"ok stat {quote(file.name)} type=file size={status.st_size}"
            told += f" mtime_ns={within_range(status.st_mtime_ns)}"
            self.link.expect(told + " exec=yes" * bool(status.st_mode & stat.S_IXUSR))

    def send_file(self, file: File, part: int, over: bool) -> Conversation:
        """The bytes, and whether they arrived."""
        fd, status = self.opened(file)
        try:
            offset, sha256 = self.send_bytes(file, fd, status, part, over)
        finally:
            os.close(fd)
        if self.verb == "put":
            told = f"ok put {quote(file.name)} size={status.st_size} sha256={sha256} verified=yes"
            self.link.expect(told)
        answer = yield file._replace(status=status, fresh=False, tried=True)
        if answer is LIKELY:
            return self.done(file, status.st_size, sha256, offset)
        if answer.keys.get("reason") == "exists" and not file.tried:
            # another client was quicker: look whether it was with the same
            return self.files.append(iter([file._replace(tried=True, fresh=False)]))
        self.accept(file, answer, status.st_size, sha256, offset)

    def send_bytes(
        self, file: File, fd: int, status: os.stat_result, part: int, over: bool
    ) -> tuple[int, str]:
        """How much was there before this run, and the digest of all.

        If there are many, or a part was left before, the server is heard first: it refuses what it
        has no room for, or says where to begin."""
        size, sha = status.st_size, hashlib.sha256()
        begun = part if part <= size else 0
        asks = self.verb == "put" and (begun or size >= ASKED_FIRST)
        keys: dict[str, object] = {"size": size, "mtime_ns": status.st_mtime_ns}
        if over:
            keys["over"] = "yes"
        if status.st_mode & stat.S_IXUSR and os.name != "nt":
            keys["exec"] = "yes"
        if asks:
            keys |= {"offset": begun, "sha256": digest(fd, begun, sha, self.show_checked)}
        self.announce(file, "put", **keys)
        offset = self.link.accepted_offset() if asks else 0
        if offset is None:
            return 0, ""
        if offset != begun:
            sha = hashlib.sha256()
            os.lseek(fd, 0, os.SEEK_SET)
        self.progress.resumed += offset
        before = self.began.setdefault(file.name, offset)
        send_body(self.link, fd, size - offset, status, sha, self.may_go_on)
        return before, sha.hexdigest()

    def may_go_on(self, count: int) -> bool:
        """Between chunks: or has the server refused it already?

        What is smaller leaves together with other files: of those nothing has come yet."""
        return count < BATCH or not self.link.peek()

    def accept(self, file: File, answer: "Line", size: int, sha256: str, offset: int = 0) -> None:
        """Believe that it arrived only if the server computed the same digest."""
        require_ok(answer, "put", file.name)
        if answer.keys.get("sha256") != sha256 or answer.keys.get("verified") != "yes":
            raise Failure(
                56,
                f"the server stored something else as {printable(file.name)}",
                "its digest is not that of what was sent",
                "run the same command with --force",
            )
        given = answer.keys.get("as", file.name)
        other = {"as": given} if given != file.name else {}
        self.done(file, size, sha256, offset, **other)
        if other and not self.args.quiet:
            self.say(f"{printable(file.name)} is stored as {printable(given)}")

    def is_there(self, file: File, status: os.stat_result, there: "Line") -> bool:
        """Whether the server has it. Only --force replaces a file; nothing replaces a folder."""
        require_ok(there, "put", file.name)
        if there.keys.get("type") != "file":
            raise refusal(Line("err", [], {"reason": "is-a-folder"}), "put", file.name)
        return self.is_same(file, status, there, functools.partial(self.opened, file))

    def put_folder(self, file: File) -> Conversation:
        """Make the folder there, then queue what is in it. A new one is empty."""
        if (yield from self.keeps_copy(file)):
            return self.say(f"skipped {printable(file.path)}: there the server keeps what is sent")
        fresh = file.fresh
        if not (fresh and self.args.dry_run):
            fresh = yield from self.make_folder(file)
        if file.path:
            self.files.append(self.children(file, fresh))

    def make_folder(self, file: File) -> Generator[File, "Line", bool]:
        """Whether it is new; with --dry-run, whether it would be."""
        if self.args.dry_run:
            self.link.request("stat", file.name)
        else:
            self.announce(file, "mkdir")
        answer = yield file._replace(fresh=False)
        if answer.keys.get("type") == "dir" or answer.keys.get("reason") == "exists":
            return False
        if answer.keys.get("reason") not in NAME_IS_FREE:
            require_ok(answer, "put", file.name)
        return True

    def surplus(self) -> Iterator[File]:
        """What the folders there have, and those here have not."""
        found: list[File] = []
        for source in self.sources():
            new = self.args.dry_run and ask(self.args, "stat", source.name).verb != "ok"
            if new or not os.path.isdir(source.path):
                continue
            there = [
                entry.words[0][len(source.name) + 1 :] + "/" * (entry.verb == "dir")
                for entry in list_folder(self.args, source.name, True)
                if entry.verb != "note"
            ]
            names = (below.rstrip("/") for below in there)
            here = {name for name in names if self.is_here(source.path, name)}
            for below in self.choose_doomed(source.name, there, here):
                found.append(File(f"{source.name}/{below}".rstrip("/"), doomed=True))
        return reversed(found)  # a folder comes after what is in it

    def is_here(self, top: str, below: str) -> bool:
        """Whether something of that name is in the folder here, or may be behind a link.

        A server that lists names from elsewhere must not learn what is there."""
        try:
            above, leaf = os.path.split(os.path.join(top, *check_name(below)))
            return self.folder(top, above).stat(leaf) is not None
        except FileNotFoundError:
            return False
        except (OSError, Refused):
            return True

    def keeps_copy(self, file: File) -> Generator[File, "Line", bool]:
        """Whether the server stores in this very folder what is sent to it.

        Then each copy would contain a copy, without end. It can only be a folder on this machine,
        called like the one that is sent. To know, let the server make a folder, and look here."""
        goal = file.name.partition("/")[0]
        if self.verb != "put" or not file.top or not file.name.endswith(f"/{goal}"):
            return False
        with contextlib.suppress(OSError):  # the connection is lost: the next request tells
            if self.link.sock.getsockname()[0] != self.link.sock.getpeername()[0]:
                return False
        probe = f"probe-{os.urandom(8).hex()}"
        self.link.request("mkdir", f"{goal}/{probe}")
        answer = yield file
        found = os.path.lexists(os.path.join(file.path, probe))
        if answer.verb == "ok":
            self.link.request("delete", f"{goal}/{probe}")
            yield file
        return found

    def measure(self) -> None:
        """How much there is to send: the bar tells how much of it."""
        for path in self.args.paths:
            with contextlib.suppress(OSError):
                if not os.path.isdir(path):
                    self.progress.expect(os.stat(path).st_size)
            for below, status in walk(path):
                if stat.S_ISREG(status.st_mode) and not self.kept_out(below):
                    self.progress.expect(status.st_size)

    def cannot_repeat(self, file: File) -> str:
        once = "run it again from the start: standard input cannot be resumed"
        return once if file.path == "-" else ""

    def announce(self, file: File, verb: str, **keys: object) -> None:
        self.link.request(verb, file.name, **keys)

    def children(self, above: File, fresh: bool) -> Iterator[File]:
        """What is in a folder."""
        try:
            top, here = above.top or above.path, os.path.join(above.path, "")
            below = here[len(os.path.join(top, "")) :].replace(os.sep, "/")
            folder = self.folder(top, above.path)
            for name in folder.entries():
                status = folder.stat(name)
                mode = status.st_mode if status else stat.S_IFREG
                if PART.fullmatch(name):
                    continue
                if self.leaves_out(here + name, f"{below}{name}{'/' * stat.S_ISDIR(mode)}"):
                    continue
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    self.skip("link or special", here + name)
                else:
                    yield File(f"{above.name}/{name}", here + name, top, status, None, fresh)
        except OSError as error:
            self.fail(above, self.as_failure(above, error))

    def open_folder(self, top: str, path: str) -> "Folder":
        """A folder of a tree, opened from the named one down without following any link.

        A link may have taken the place of a folder meanwhile."""
        return Folder(top).descend([*filter(None, path[len(top) :].split(os.sep))])

    def opened(self, file: File) -> tuple[int, os.stat_result]:
        """A regular file, open for reading; a FIFO would block for ever.

        Only a link that was named itself is followed."""
        if file.top:
            above, leaf = os.path.split(file.path)
            fd = self.folder(file.top, above).open(leaf, os.O_RDONLY)
        else:
            fd = os.open(file.path, os.O_RDONLY | NO_LINK & ~getattr(os, "O_NOFOLLOW", 0))
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file")
        return fd, status

    def put_input(self, file: File) -> Conversation:
        """Standard input has no known length: it needs no stat, and has no second attempt."""
        if self.args.dry_run:
            return self.plan("new", file)
        if sys.stdin is None:  # closed: the connection may have its number
            raise os_error(errno.EBADF)
        self.announce(file, "put", over="yes" if self.args.force else None)
        size, sha, problem = 0, hashlib.sha256(), None
        try:
            while not self.await_input(file.name) and (chunk := os.read(0, CHUNK)):
                sha.update(chunk)
                size += len(chunk)
                self.link.put(b"data %d\n" % len(chunk))
                self.link.put(chunk)
                self.link.flush()
            end = line("end", sha256=sha.hexdigest())  # where it was refused, this means nothing
        except OSError as error:
            problem, end = error, line("abort", reason="changed")
        self.link.put(end)
        answer = yield file
        if problem:
            raise problem
        self.accept(file, answer, size, sha.hexdigest())

    def await_input(self, name: str) -> bool:
        """Wait for standard input, and tell the server that we are there.

        Returns whether the server has refused the upload meanwhile."""
        while (
            not (refused := self.link.peek())
            and os.name != "nt"
            and not select.select([0], [], [], STDIN_SILENCE)[0]
        ):
            self.link.put(line("note", name))
            self.link.flush()
        return refused

    def as_failure(self, file: File, error: Union[OSError, "Refused"]) -> "Failure":
        assert isinstance(error, OSError)
        near, (folder, leaf) = "", os.path.split(file.path)
        with contextlib.suppress(OSError):
            near = did_you_mean(leaf, os.listdir(folder or "."))
        what = f"cannot read {printable(file.path)}: {(error.strerror or '').lower()}"
        what += f" (in {printable(os.getcwd())})"
        return Failure(26, what, "it was not sent", near or "check the name")


def do_put(args: argparse.Namespace) -> int:
    """Also send: the same files, to other clients."""
    args.paths = [found for path in args.paths for found in local_names(path)]
    if args.name and (len(args.paths) > 1 or args.name.endswith("/")):
        raise Failure(
            2,
            f"--as {printable(args.name)} is for one file",
            "it is the whole name of that file: no folder's, and not for several files",
            f"{args.command} without --as"
            + "; --into FOLDER for a folder" * (args.command == "put"),
        )
    batch = Puts(args) if args.command == "put" else Sends(args)
    if batch.progress.drawn:
        batch.measure()
    return batch.run(batch.sources())


def local_names(path: str) -> list[str]:
    """What a pattern stands for where no shell has seen it: on Windows, and at our own prompt."""
    if not re.search(r"[*?[]", path) or os.path.lexists(path):
        return [path]
    import glob  # not at the top: few need it

    return sorted(glob.glob(path)) or [path]


# --- get: files come in ---
FULL = {errno.ENOSPC, errno.EDQUOT}  # of a disk


class Gets(Batch):
    """Each file: is it here already? If not, its bytes, into a part, and then its name."""

    verb = "get"
    taken = (
        23,
        "here is already another",
        "-o DEST puts the server's elsewhere; --force replaces yours",
    )

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.stream: int | None = None
        self.leaf = ""  # what the one thing that is fetched shall be called
        self.top = self.choose(args.output)
        # for --delete: a folder's path here -> the names that the server has in it
        self.known: dict[str, set[str]] = {}
        self.folder = functools.lru_cache(OPEN_FOLDERS)(self.open_folder)

    def choose(self, output: Optional[str]) -> Optional["Folder"]:
        """DEST: a folder, a name, - for standard output, or a device or FIFO."""
        if output == "-" or (
            output
            and os.path.exists(output)
            and not os.path.isfile(output)
            and not os.path.isdir(output)
        ):
            try:
                self.stream = product() if output == "-" else os.open(output, os.O_WRONLY)
            except OSError as error:
                raise cannot_write(output, error) from None
            return None
        folder = output or "."
        if output and not output.endswith("/") and not os.path.isdir(output):
            folder, self.leaf = os.path.split(os.path.abspath(output))
        return destination(folder)

    def sources(self) -> Iterator[File]:
        found = expand(self.args, self.args.names)
        first = list(itertools.islice(found, 2))
        if self.leaf and len(first) > 1:
            output = self.args.output
            raise Failure(
                2,
                f"{printable(output)} is not a folder",
                "several files cannot have one name",
                f"-o {printable(shlex.quote(output))}/ makes the folder",
            )
        return itertools.chain(first, found)

    def converse(self, file: File) -> Conversation:
        facts, content = file.listed, self.args.compare == "content" and self.stream is None
        if facts and not self.is_wanted(file, facts):
            return
        if not facts or (content and "sha256" not in facts.keys):
            self.link.request("stat", file.name, digest="yes" if content else None)
            facts = require_ok((yield file), "get", file.name)
            if not file.top:
                own = file.name.rpartition("/")[2]
                # DEST is where it goes, not its new name: given again, the command finds it there
                if facts.keys.get("type") == "dir":
                    path = f"{self.leaf}/{own}" if self.leaf else own
                    return (yield from self.get_folder(file._replace(path=path)))
                if is_excluded(self.args.exclude, own):
                    return self.skip("excluded", file.name)
                file = file._replace(path=self.leaf or own)
                self.progress.expect(facts.number("size"))
            file = file._replace(listed=facts)
        yield from self.get_file(file, facts)

    def get_folder(self, file: File) -> Conversation:
        """The listing of a folder, whole: bodies can follow only after it."""
        self.link.request("list", file.name, deep="yes")
        entries = hear_lines(self.link, (yield file), "get", file.name)
        known = self.known[file.path] = set()
        for entry in entries:
            if entry.verb == "file" and self.progress.drawn:
                self.progress.expect(entry.number("size"))
            if self.args.delete:
                known.add(below := entry.words[0][len(file.name) + 1 :])
                if entry.keys.get("reason") == "not-a-file":
                    known.add(f"{below}/")
        fresh = self.make_folder(file.path)
        self.files.append(self.entries(file, entries, fresh))

    def entries(self, above: File, found: Listing, fresh: bool) -> Iterator[File]:
        for entry in found:
            name = entry.words[0]
            if name.startswith(above.name + "/"):
                path = above.path + name[len(above.name) :]
                yield File(name, path, above.path, None, entry, fresh)
            else:
                file = File(name)
                self.fail(file, self.as_failure(file, Refused("bad-name")))

    def is_wanted(self, file: File, entry: "Line") -> bool:
        """Whether an entry of a listing is a file to get; a folder is made at once."""
        check_name(file.path)
        below = file.path[len(file.top) + 1 :] + "/" * (entry.verb == "dir")
        if file.top and self.leaves_out(file.name, below):
            return False
        if entry.keys.get("reason") == "not-a-file":
            self.skip("link or special", file.name)
        elif entry.verb == "note":
            raise refusal(entry, "get", file.name)
        elif entry.verb == "dir":
            self.make_folder(file.path)
        else:
            return True
        return False

    def make_folder(self, path: str) -> bool:
        """Whether it is empty: then nothing below it can be there already."""
        if self.stream is not None or self.args.dry_run:
            return False
        folder, empty = self.folder(path), True
        for name in folder.entries():
            empty = False
            remove_if_old(folder, name)
        return empty

    def local(self, path: str) -> tuple["Folder", str]:
        """Where a name leads here, below DEST. Each component is checked."""
        above, _, leaf = path.rpartition("/")
        check_name(leaf)
        return self.folder(above), leaf

    def open_folder(self, path: str) -> "Folder":
        assert self.top
        return self.top.descend(check_name(path) if path else [], make=True)

    def get_file(self, file: File, facts: "Line") -> Conversation:
        """What is here of that name decides whether the bytes are asked for."""
        size = facts.number("size")
        if self.args.dry_run and self.is_new(file):
            return self.plan("new", file, size)
        if self.stream is not None:
            stream = file.stream or Stream(self.stream)
            stream.size = size
            return (yield from self.fetch(file._replace(stream=stream), stream))
        folder, leaf = self.local(file.path)
        there = None if file.fresh else folder.stat(leaf)
        if there and self.is_here(file, facts, folder, leaf, there):
            return self.skip_same(file, size)
        if self.args.dry_run:
            return self.plan("replace", file, size)
        folder.protect(leaf, there)
        part = Part(folder, leaf, size, facts.number("mtime_ns"), facts.is_set("exec"))
        if self.args.resume and part.length():
            self.check_earlier(file, part, size)
        yield from self.fetch(file, part)

    def fetch(self, file: File, part: "Part") -> Conversation:
        """Its bytes, or those after what an earlier attempt left."""
        mine = part.sha.hexdigest() if part.received else None
        self.link.request("get", file.name, offset=part.received or None, sha256=mine)
        if file.listed:
            told = "".join([f" {key}={value}" for key, value in file.listed.keys.items()])
            self.link.expect(f"ok get {quote(file.name)}{told}\ndata {part.size}", file.listed)
        try:
            answer = require_ok((yield file), "get", file.name)
        except BaseException:
            part.keep()
            raise
        self.receive(file, part, answer)

    def is_new(self, file: File) -> bool:
        """Whether nothing of that name is here; a folder above it is not made for that."""
        return self.top is None or not os.path.lexists(os.path.join(self.top.path, file.path))

    def surplus(self) -> Iterator[File]:
        """Remove what is here and not there."""
        for path, known in self.known.items():
            if self.top is None or self.is_new(File("", path)):
                continue
            content = (
                below
                for below, status in walk(os.path.join(self.top.path, path))
                if stat.S_ISDIR(status.st_mode)
                or (stat.S_ISREG(status.st_mode) and not PART.fullmatch(os.path.basename(below)))
            )
            for below in self.choose_doomed(path, content, known):
                self.remove(File(f"{path}/{below}".rstrip("/")), below.endswith("/"))
        return iter(())

    def remove(self, file: File, is_folder: bool) -> None:
        if self.args.dry_run:
            return self.plan("delete", file)
        with contextlib.suppress(OSError, Refused):  # what is in it was left alone
            folder, leaf = self.local(file.name)
            folder.protect(leaf, folder.stat(leaf), is_folder)
            folder.remove(leaf, is_folder)
            self.settle(file, "deleted")

    def is_here(
        self,
        file: File,
        facts: "Line",
        folder: "Folder",
        leaf: str,
        there: os.stat_result,
    ) -> bool:
        """Whether what is here is what the server has."""
        if not stat.S_ISREG(there.st_mode):
            why = "a folder, a link or a special file has that name here"
            raise Refused("exists", why=why)
        return self.is_same(file, there, facts, functools.partial(folder.read, leaf))

    def check_earlier(self, file: File, part: "Part", size: int) -> None:
        """Lock what an earlier attempt left, and hash it: the server compares the digest."""
        self.claim(file, part)
        length = part.length()
        try:
            if length <= size:  # a longer one is of no use
                digest(part.fd, length, part.sha, self.show_checked)
                part.received = length
        except BaseException:
            part.close()  # this program, a shell, may be the next to ask for it
            raise

    def claim(self, file: File, part: "Part") -> None:
        if not part.claim():
            raise Failure(
                23,
                f"another program is writing {printable(file.path)}",
                "its part is locked",
                "run the same command again when that one is done",
            )

    def receive(self, file: File, part: "Part", answer: "Line") -> None:
        """The body that follows the answer."""
        offset = 0
        if answer.body is None:  # it may go on, or have changed since its part was checked
            offset, part.size = answer.number("offset"), answer.number("size")
            part.mtime_ns, part.executable = answer.number("mtime_ns"), answer.is_set("exec")
        size = part.size or 0
        try:
            offset = self.write_body(file, part, answer, offset)
        except (Lost, KeyboardInterrupt):
            self.progress.current = part.received
            part.keep()
            raise
        except BaseException as error:
            kept = isinstance(error, OSError) and error.errno in FULL and part.keep()
            part.drop()
            self.hang_up()  # the rest of this body is on its way, and nobody wants it
            self.use_link(connected(self.args))
            if isinstance(error, OSError):
                raise self.cut_short(file, part, size, error, kept) from None
            raise
        self.done(file, size, part.sha256, offset)

    def write_body(self, file: File, part: "Part", answer: "Line", offset: int) -> int:
        """Receive it into the part, which then gets its name. Returns how much this run found."""
        if part.fd < 0:
            self.claim(file, part)
        part.begin(offset)
        self.progress.resumed += offset
        before = self.began.setdefault(file.name, offset)
        try:
            tell = self.progress.update
            if receive_body(self.link, answer, part, lambda announced: None, tell) == "no":
                raise Refused("wrong-digest")
        except Refused as refused:
            told = "its length is not what the server announced", "run the same command again"
            came = f"{part.received:,} of {part.size or 0:,} bytes"
            raise Failure(
                18 if refused.reason in ("aborted", "incomplete") else 56,
                f"{printable(file.name)} was not received ({refused.reason} after {came})",
                *WHYS.get(refused.reason, told),
            ) from None
        try:
            part.finish(self.args.force)
        except FileExistsError:  # another command was quicker
            if there := part.folder.stat(part.leaf):
                self.is_here(file, answer, part.folder, part.leaf, there)  # or a Failure
            part.drop()
        return before

    def cut_short(
        self, file: File, part: "Part", size: int, error: OSError, kept: bool
    ) -> "Failure":
        what = f"cannot write {printable(file.path)} ({error.strerror}) "
        what += f"after {part.received:,} of {size:,} bytes"
        why, hint = "what was there before is untouched", "-o DEST for another place"
        if not part.name:
            why = "what reads it has ended, or its disk is full"
        elif error.errno in FULL:
            folder = printable(part.folder.path)
            needed = plural(size - part.received * kept, "byte")
            why = f"{needed} more must fit on the disk of {folder}"
            hint = "make room, then run the same command" + " again: it resumes" * kept
        return Failure(23, what, why, hint)

    def as_failure(self, file: File, error: Union[OSError, "Refused"]) -> "Failure":
        if isinstance(error, OSError):
            return cannot_write(file.path, error)
        why = error.keys.get("why", WHYS[error.reason][0])
        code = 56 if error.reason == "bad-name" else 23
        what = f"will not write {printable(file.path or file.name)} here"
        return Failure(code, what, str(why), "-o DEST for another place")


def destination(path: str) -> "Folder":
    """The folder that something comes to, made when missing, without what nobody came back for."""
    try:
        os.makedirs(path, exist_ok=True)
        folder = Folder(os.path.abspath(path))  # or each file would ask which folder is current
        for name in folder.entries():
            remove_if_old(folder, name)
    except OSError as error:
        raise cannot_write(path, error) from None
    return folder


def cannot_write(path: str, error: OSError) -> "Failure":
    return Failure(
        23,
        f"cannot write to {printable(path)} ({error.strerror})",
        "nothing was received",
        "-o DEST for another place",
    )


def do_get(args: argparse.Namespace) -> int:
    batch = Gets(args)
    try:
        return batch.run(batch.sources())
    finally:
        if batch.stream is not None and args.output != "-":
            os.close(batch.stream)  # its reader waits for the end, and this program may be a shell


# --- from client to client: send, receive, chat ---
# reasons of who gets nothing more either
NO_RECEIVER = {"gone", "left", "no-such-client", "not-receiving", "stalled"}


class Sends(Puts):
    """Files to other clients. The server passes each on; every receiver answers for itself."""

    verb = "send"
    again = "what has arrived whole stays there"
    repeated = "what others have already comes to them twice"

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.waits = self.nobody = False
        # receiver -> how many files and folders it was sent, how many it has, their bytes
        self.results: dict[str, Counter[str]] = {}
        self.targets = ",".join(filter(None, args.to or []))
        self.nicks: set[str] = set()  # of receivers that have one, and are here
        self.receivers: dict[str, str] = {}  # address or nick -> what we call it
        self.absent: set[str] = set()  # of these, those of whom it was told that they are not there
        if not self.targets and not args.all:
            raise Failure(
                2,
                "nobody is named to send to",
                "send goes to other clients",
                "--to HOST:PORT or NICK, or --all; who lists them",
            )

    def use_link(self, link: "Link") -> None:
        """Find the receivers. After a loss they have to come back as well, by their nicks."""
        super().use_link(link)
        receiving = {
            found.words[0]: found.keys.get("nick", "")
            for found in hear_lines(link, link.ask("who"), "who")
            if found.keys.get("mode") == "receive" and "you" not in found.keys
        }
        if away := self.nicks.difference(receiving.values()):
            raise Lost(f"{printable(', '.join(away))} is not back yet")
        if self.args.all:
            self.targets = ",".join(nick or place for place, nick in receiving.items())
        if not self.targets and self.args.tries:
            raise Lost("nobody is receiving yet")
        if not self.targets:
            raise Failure(
                25,
                "nobody is receiving",
                "no other client waits for files",
                "python3 client.py receive, there; --to HOST:PORT or NICK, here",
            )
        self.nicks = set(self.targets.split(",")).intersection(receiving.values())

    def announce(self, file: File, verb: str, **keys: object) -> None:
        kind = "dir" if verb == "mkdir" else None
        self.link.request("send", self.targets, file.name, **keys, type=kind)

    def put_file(self, file: File, status: os.stat_result) -> Conversation:
        if self.args.dry_run:
            return self.plan("new", file, status.st_size)
        yield from self.send_file(file, 0, False)

    def put_folder(self, file: File) -> Conversation:
        if not self.args.dry_run:
            self.announce(file, "mkdir")
        if self.args.dry_run or self.has_arrived(file, (yield file)):
            self.files.append(self.children(file, True))

    def handle_note(self, note: "Line") -> None:
        if "waiting" in note.keys and not self.waits:
            self.waits = True
            count = plural(note.number("waiting"), "receiver")
            self.say(f"waiting: {count}, not all of them free yet")
        super().handle_note(note)

    def accept(self, file: File, answer: "Line", size: int, sha256: str, offset: int = 0) -> None:
        if self.has_arrived(file, answer, size, sha256):
            self.done(file, size, sha256)

    def has_arrived(self, file: File, answer: "Line", size: int = 0, sha256: str = "") -> bool:
        """Who has it, who has not, and why. False if nobody has."""
        if self.nobody:
            self.counts["failed"] += 1
            return False
        if not self.link.got:
            raise refusal(answer, "send", file.name)
        reasons = [self.count_result(file, found, size, sha256) for found in self.link.got]
        if all(reasons) and NO_RECEIVER.issuperset(reasons):
            self.nobody = True
            if self.waiting or self.next_file():
                say("nobody is left who receives: the rest is not sent")
            self.files.clear()
        return not all(reasons)

    def count_result(self, file: File, found: "Line", size: int, sha256: str) -> str:
        """What one receiver said: "", or why it has not got it. That it is absent is told once."""
        verified = found.words[1:2] == ["ok"] and found.keys.get("sha256") == (sha256 or None)
        word, nick = found.words[0], found.keys.get("nick")
        target = self.receivers.setdefault(word, peer_name(word, nick))
        self.receivers[nick or word] = target  # so it is called when it has left
        counts = self.results.setdefault(target, Counter())
        counts.update(sent=1, verified=int(verified), bytes=size * verified)
        if verified:
            return ""
        reason = found.keys.get("reason") or "wrong-digest"
        if reason in NO_RECEIVER:
            self.nicks -= {word, nick}
            if target in self.absent:
                return reason
            self.absent.add(target)
        told = "the receiver says so", "run the same command again"
        why, hint = WHYS.get(f"there {reason}") or WHYS.get(reason, told)
        what = f"{target} did not get {printable(file.name)} ({printable(reason)})"
        self.fail(file, Failure(25, what, printable(found.keys.get("why", why)), hint))
        return reason

    def summary(self) -> None:
        super().summary()
        for target, counts in self.results.items():
            if self.args.json:
                tell_json({"verb": "send", "receiver": target, **counts})
            elif not self.args.quiet:
                verified = f"verified {counts['verified']:,} of {counts['sent']:,}"
                say(f"{target}: {verified}, {readable_size(counts['bytes'])}")


class Inbox:
    """What others send. Requests come from the server, and we answer them as a server does."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        # (sender, file or folder) -> what it is called here; "" if its user did not want it
        self.names: dict[tuple[str, str], str] = {}
        self.shows = is_terminal(1) and not args.quiet  # for a person
        self.top = destination(args.output or ".")
        self.folder = functools.lru_cache(OPEN_FOLDERS)(
            functools.partial(self.top.descend, make=True)
        )

    def run(self) -> int:
        self.link = connected(self.args)
        answer = require_ok(self.link.ask("receive"), "let receive", "files")
        self.link.keep_alive()
        if not self.args.quiet:
            known = printable(answer.keys.get("nick") or answer.keys.get("you", "?"))
            command = f"python3 client.py{endpoint_flags(self.args)} send PATH --to {known}"
            say(f"waiting for files; others send them with:  {command}")
        while self.args.count:  # below zero, without --count, it comes to no end
            if not self.link.has_unread():
                self.folder.cache_clear()  # before the next comes, they may be gone
            self.handle_request(self.link.message(idle=True))
        self.leave()
        return 0

    def leave(self) -> None:
        """Read until the server closes, because the next file may be on its way.

        If we closed with that unread, a reset could overtake our last answer."""
        until, self.link.timeout = time.monotonic() + GOODBYE, GOODBYE
        with contextlib.suppress(Lost, Broken):
            self.link.send_line("bye")
            while time.monotonic() < until:
                self.link.line()
        close_link(self.args)

    def handle_request(self, request: "Line") -> None:
        """One request. What is left of a body that was refused is passed over."""
        if request.verb not in ("put", "mkdir"):
            if request.verb not in ("data", "end", "abort", "note", "ok"):
                raise Broken(f"{request.verb} where a file was awaited")
            return
        name = request.words[0] if request.words else ""
        try:
            parts = self.admit(name, request)
            folder = self.folder(tuple(parts[:-1]))
            # nothing is replaced without --force
            folder.protect(parts[-1], folder.stat(parts[-1]) if self.args.force else None)
            if request.verb == "put":
                self.store(folder, parts, request)
            else:
                self.make(folder, parts, request)
        except (Refused, OSError) as error:
            reason, why = reason_of(error), getattr(error, "keys", {}).get("why")
            self.link.send_line("err", request.verb, name[:1000], reason=reason, why=why)
            because = f": {why}" if why else ""
            text = f"{sender_of(request)}: did not get {printable(name)} ({reason}{because})"
            if reason != "not-wanted" or self.args.senders:  # else its user has just said so
                say_in_rows(text)

    def admit(self, name: str, request: "Line") -> list[str]:
        """The components of its name here. The first may differ from what the sender calls it."""
        top, *below = check_name(name, self.args.hidden)
        if not self.is_from_wanted(request):
            raise Refused("not-wanted")
        key = request.keys.get("from", ""), top
        if key not in self.names:
            self.names[key] = top if self.is_wanted(top, request) else ""
            if len(self.names) > SENDERS:
                del self.names[next(iter(self.names))]
        if not self.names[key]:
            raise Refused("not-wanted")
        return [self.names[key], *below]

    def is_from_wanted(self, request: "Line") -> bool:
        """Each time: only the names of those whom --from lets in are remembered."""
        endpoint, nick = request.keys.get("from", ""), request.keys.get("nick", "")
        known = {endpoint, endpoint.rpartition(":")[0].strip("[]"), nick.lower()}
        return not self.args.senders or not known.isdisjoint(map(str.lower, self.args.senders))

    def is_wanted(self, top: str, request: "Line") -> bool:
        """Say who sends what before it is taken; --ask can refuse it."""
        if not self.args.quiet and (self.args.ask or is_terminal(2)):
            size = f", {readable_size(request.number('size'))}" if "size" in request.keys else ""
            say_in_rows(f"{sender_of(request)} sends {printable(top)}{size}")
        return not self.args.ask or self.is_taken()

    def is_taken(self) -> bool:
        """Ask; no answer for half of the time that the server waits for us means no."""
        say("take it? [y/N] ", "")
        if not sys.stdin or not select.select([0], [], [], self.args.timeout / 2)[0]:
            say("no answer: refused")
            return False
        return sys.stdin.readline().strip().lower().startswith("y")

    def make(self, folder: "Folder", parts: list[str], request: "Line") -> None:
        """A folder. If its sender has not sent it before, it gets a name that is free here."""
        name = request.words[0]
        if len(parts) > 1 or self.args.force:
            folder.below(parts[-1], make=True)
        else:
            for leaf in numbered_names(parts[-1]):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder.at(leaf), dir_fd=folder.fd)
                    break
            self.names[request.keys.get("from", ""), name] = leaf
        self.link.send_line("ok", "mkdir", name)

    def store(self, folder: "Folder", parts: list[str], request: "Line") -> None:
        name, size = request.words[0], request.number_or_none("size")
        mtime_ns, executable = request.number_or_none("mtime_ns"), request.is_set("exec")
        part, progress = Part(folder, parts[-1], None, mtime_ns, executable), Progress(self.args)
        part.size = size  # only now: what others send is begun anew each time
        progress.expect(size or 0)

        def tell_both(received: int) -> None:
            due = progress.due
            progress.update(received)
            if progress.due > due:  # the sender's picture is as new as ours
                self.link.send_line("note", name, received=received)
                self.link.flush()

        try:
            part.claim()
            part.begin(0)
            verified = receive_body(self.link, request, part, lambda announced: None, tell_both)
            for leaf in numbered_names(part.leaf):
                part.leaf = leaf
                with contextlib.suppress(FileExistsError):
                    part.finish(self.args.force)
                    break
        except Lost:
            progress.clear()
            came = f"{part.received:,} of {size or 0:,} bytes of {printable(name)}"
            say_in_rows(f"connection lost at {came}: it has to be sent again")
            raise
        finally:
            progress.clear()
            part.drop()
        self.tell_stored([*parts[:-1], part.leaf], part, verified, request)

    def tell_stored(self, parts: list[str], part: "Part", verified: str, request: "Line") -> None:
        """To the sender, and to who reads what we print."""
        name, given, sender = request.words[0], "/".join(parts), sender_of(request)
        self.link.put(stored_answer(name, part, verified, given if given != name else ""))
        if not self.link.has_unread():  # else the next file is here, and answers go together
            self.link.flush()
        # also for the connection that follows a lost one
        self.args.tries, self.args.count = 0, self.args.count - 1
        path = os.path.join(self.args.output or "", *parts)
        if self.args.json:
            facts = {"size": part.received, "sha256": part.sha256}
            tell_json({"verb": "receive", "name": path, "from": sender, **facts})
        elif self.shows:
            # ours comes first: a name can say anything
            tell(f"{readable_size(part.received):>9}  {sender}  {path}")
        else:
            tell(path)


def sender_of(request: "Line") -> str:
    return peer_name(request.keys.get("from", "?"), request.keys.get("nick"))


def numbered_names(leaf: str) -> Iterator[str]:
    """notes.txt, notes (1).txt, notes (2).txt ..."""
    yield leaf
    stem, ending = os.path.splitext(leaf)
    for number in itertools.count(1):
        yield f"{stem} ({number}){ending}"


def do_receive(args: argparse.Namespace) -> int:
    return persist(args, Inbox(args).run)


class Typist(enum.Enum):
    """Where the main thread of a chat is."""

    ELSEWHERE = "it has not begun"
    TYPING = "it waits for a line, and a signal can wake it"
    GONE = "no more lines come"


class Chat:
    """What is typed goes to all others; what they say appears above the prompt.

    One thread owns the connection; the main thread waits for typing."""

    def __init__(self, args: argparse.Namespace) -> None:
        import threading  # not at the top: few need it

        self.args, self.link = args, connected(args)
        self.live = is_terminal(0) and is_terminal(1)
        self.typist = Typist.ELSEWHERE
        self.to_say: deque[str] = deque()  # lines for the thread
        self.bell, self.ringer = socket.socketpair()
        self.unanswered: deque[str] = deque()  # of what was said to one alone: to whom
        self.code = 0
        self.problem: Exception | None = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def join(self) -> None:
        self.link.send_line("chat")
        while (found := self.link.line()).verb not in ("ok", "err"):
            self.show(found)
        require_ok(found, "let join", "the chat")
        self.link.keep_alive()
        if not self.args.quiet:
            known = printable(found.keys.get("nick") or found.keys.get("you", "?"))
            count = plural(found.number_or_none("count") or 1, "client")
            say(f"{count} here; you are {known}; {', '.join(CHAT_COMMANDS)}")
        self.ring()  # somebody may have said something already, and it came with the answer
        self.thread.start()

    # the thread that has the connection
    def run(self) -> None:
        try:
            while self.typist is not Typist.GONE or self.to_say or self.unanswered:
                self.wait_and_pass_on()
            say_bye(self.args)
        except (Lost, Broken, Failure) as problem:
            self.problem = problem
            self.wake_typist()

    def wait_and_pass_on(self) -> None:
        """Wait until somebody says or types something, and pass it on."""
        self.link.flush()
        heard = select.select(
            [self.link.sock, self.bell], [], [], self.args.timeout if self.unanswered else None
        )[0]
        if not heard:
            raise Silent(f"silent for {self.args.timeout:g} s")
        if self.bell in heard:
            self.bell.recv(4096)
            while self.to_say:
                self.send_typed(self.to_say.popleft())
        if self.link.sock in heard:
            self.link.receive(self.args.timeout)
        while self.link.line_end() >= 0:
            self.show(self.link.line())

    def send_typed(self, text: str) -> None:
        """A line for all, or a command, which begins with one slash."""
        command, _, rest = text.partition(" ")
        if not text.startswith("/") or text.startswith("//"):
            self.say(text[text.startswith("//") :])
        elif command == "/who":
            self.request(line("who"))
        elif command == "/msg" and " " in rest.strip():
            told = b"tell %b\n" % rest.strip().encode(errors="surrogateescape")
            self.request(told, rest.split()[0])
        elif command == "/nick" and rest:
            if not NICK.fullmatch(rest):
                return self.show_line(f"* {WHYS['bad-nick'][0]}")
            self.request(line("chat", rest))
        else:
            if command not in CHAT_COMMANDS and (meant := did_you_mean(command, CHAT_COMMANDS)):
                self.show_line(f"* {meant.rstrip()}")
            self.show_line(f"* {CHAT_HELP}")

    def say(self, text: str) -> None:
        clean = "".join(" " if char < " " or char == "\x7f" else char for char in text)
        for start in range(0, len(clean), CHAT_LINE):
            piece = clean[start : start + CHAT_LINE].encode(errors="surrogateescape")
            self.request(b"say %b\n" % piece)

    def request(self, text: bytes, to: str = "") -> None:
        self.link.put(text)
        self.unanswered.append(to)

    def show(self, found: "Line") -> None:
        """A line of a peer begins with its name, a line of this program with a star."""
        verb, words, keys = found.verb, found.words or [""], found.keys
        if verb in ("said", "told"):
            name, _, text = words[0].partition(" ")
            name = unquote(name.removeprefix("from="))
            private, alone = ({"private": True}, " to you alone") if verb == "told" else ({}, "")
            self.show_line(f"{name}{alone}: {text}", {"from": name, "text": text, **private})
        elif verb == "joined" and "was" in keys:
            text = f"* {keys['was']} is now {words[0]}"
            self.show_line(text, {verb: words[0], "was": keys["was"]})
        elif verb in ("joined", "left"):
            self.show_line(f"* {words[0]} {verb}", {verb: words[0]})
        elif verb == "client":
            facts = words[0], keys.get("nick"), keys.get("mode")
            self.show_line(f"* {'  '.join(filter(None, facts))}", {**keys, "client": words[0]})
        elif "lost" in keys:
            lost = found.number("lost")
            text = f"* {plural(lost, 'line')} of others lost: they came faster than you took them"
            self.show_line(text, {"lost": lost})
        elif words[0] in ("say", "tell", "who", "chat"):
            to = self.unanswered.popleft() if self.unanswered else ""
            if verb == "err":
                self.code, reason = 9, keys.get("reason", "?")
                to = f" to {to}" if to else ""
                self.show_line(f"* not said{to} ({reason})", {"error": reason})
            elif words[0] == "chat":
                nick = keys.get("nick", "")
                self.show_line(f"* you are {nick}", {"nick": nick})

    def show_line(self, text: str, facts: Optional[dict[str, Any]] = None) -> None:
        earlier = self.thread.ident is None  # what was said before we came
        if self.live:
            text = f"{'earlier' if earlier else time.strftime('%H:%M')} {text}"
        if self.args.json and facts:
            tell_json({**facts, "earlier": True} if earlier else facts)
        elif self.typist is Typist.TYPING and self.live:
            write_out(self.with_prompt(in_rows(printable(text), 1)).encode())
        else:
            tell(printable(text))

    def with_prompt(self, text: str) -> str:
        """The line, and below it the prompt with what was typed so far (if Python has readline)."""
        readline = sys.modules.get("readline")
        if not readline:
            return f"\n{text}\n{CHAT_PROMPT}"
        typed = CHAT_PROMPT + printable(readline.get_line_buffer())
        return "\r" + "\x1b[A" * (len(typed) // columns_of(1)) + f"\x1b[J{text}\n{typed}"

    def wake_typist(self) -> None:
        """Interrupt input(): nobody is left to type for.

        A signal just before input() blocks is lost, so it is repeated until it works."""
        import threading

        # on Windows the next line, or Ctrl-C, ends it
        while hasattr(signal, "SIGUSR1") and self.typist is not Typist.GONE:
            if self.typist is Typist.TYPING:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(REDRAW)

    # the main thread
    def type(self) -> int:
        """Line after line, until the end of them."""
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, self.stop_typing)
        patience = None
        try:
            while not self.problem and (text := self.read_line()) != "/quit":
                self.to_say.append(text)
                self.ring()
        except EOFError:
            pass
        except KeyboardInterrupt:
            patience = GOODBYE
            raise
        finally:
            self.typist = Typist.GONE
            self.ring()
            self.thread.join(patience)
            # closed already, unless the server is stuck: then the thread, which owns it, hears its
            # end
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.link.sock, socket.SHUT_RDWR)
            self.thread.join(patience)
        if self.problem:
            raise self.problem
        return 0 if self.live else self.code

    def read_line(self) -> str:
        self.typist = Typist.TYPING
        text = next_line(CHAT_PROMPT)
        if not self.live:  # a pipe is read no faster than the server takes it
            time.sleep((1 + len(text) // CHAT_LINE) / PIPE_RATE)
            while len(self.unanswered) + len(self.to_say) >= CHAT_UNANSWERED and not self.problem:
                time.sleep(REDRAW)
        return text

    def ring(self) -> None:
        with contextlib.suppress(OSError):
            self.ringer.send(b"\0")

    def stop_typing(self, number: int, frame: object) -> None:
        if self.typist is Typist.TYPING:
            self.typist = Typist.GONE
            raise EOFError


def do_chat(args: argparse.Namespace) -> int:
    chat = Chat(args)
    if chat.live:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (not at the top: loading it can write to a terminal)
    try:
        chat.join()
        return chat.type()
    finally:
        chat.bell.close()
        chat.ringer.close()


class Command(NamedTuple):
    run: Callable[[argparse.Namespace], Optional[int]]
    text: str  # what -h and the shell's help say of it
    places: tuple[str, ...] = ()  # its arguments


COMMANDS = {
    "list": Command(do_list, "what is there", ("[PATH]",)),
    "get": Command(do_get, "fetch files, folders, or what a pattern matches", ("NAME...",)),
    "put": Command(do_put, "send files, folders, or - for standard input", ("PATH...",)),
    "delete": Command(do_delete, "delete files and empty folders", ("NAME...",)),
    "rename": Command(do_rename, "give it another name, or another folder", ("OLD", "NEW")),
    "mkdir": Command(do_mkdir, "make a folder", ("FOLDER",)),
    "stat": Command(do_stat, "size and time of a file", ("NAME",)),
    "help": Command(do_help, "what the server understands"),
    "who": Command(do_who, "who is connected"),
    "send": Command(do_put, "the same as put, to other clients", ("PATH...",)),
    "receive": Command(do_receive, "wait for what others send"),
    "chat": Command(do_chat, "talk with those who are in it"),
}


# --- wire: the same in server.py, client.py (tests/test_twins.py) ---
# bytes of a line with its end: the longest path of most systems, every byte percent-encoded, and
# keys
MAX_LINE = 32768
SMALL_BUFFER = 1 << 12  # bytes asked of one recv until more than that has come at once
# the same after that: a whole `data` line with its body; each busy connection has its own
BUFFER = (1 << 20) + SMALL_BUFFER
RECORD = 1 << 14  # bytes of a TLS record at most
BATCH = 1 << 16  # bytes of lines and small bodies that gather until they leave in one send
PLAIN = re.compile(r"[!-$&-<>-~]*")  # printable ASCII but for space, percent sign and equals sign
CONTROL = re.compile(r"[\0-\x1f\x7f]")  # what no line may hold
BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
TEXT_VERBS = {
    "help",
    "say",
    "said",
    "tell",
    "told",
}  # verbs whose line is text from the first space on
ESCAPE = re.compile(rb"%(..)")
# bytes of names as this system has them in text
NAMES = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
BEYOND = 9 * 10**18  # the first number that is too large; 64 bits hold all below
HTTP = re.compile(r"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE|PRI) \S+ HTTP/\d")
# how a file begins that comes in one piece: most small ones do
BEGIN = re.compile(
    rb"((?:put|send [!-$&-<>-~]+) [!-$&-<>-~]+) (size=([0-9]{1,6}) mtime_ns=[0-9]{1,19}"
    rb"(?: (?!size=)[a-z]+=[!-$&-<>-~]*)*)\ndata \3\n"
)
END = re.compile(rb"end sha256=([0-9a-f]{64})\n")
TLS = b"\x16\x03"  # how a TLS client begins
AUTH = "scrypt-hmac-sha256"
NONCE = re.compile("(?:[0-9a-f]{2}){16,64}")
# select() knows no descriptor above 1023, and epoll needs one of its own
SELECTOR = getattr(selectors, "PollSelector", selectors.SelectSelector)
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
# a peer that vanished is noticed in two minutes
# the first two are one, as Linux and as macOS call it
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


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
    # of a small file, until more is received: its bytes, and what its `end` says
    body: Optional[memoryview] = None
    sha256: str = ""

    def number(self, key: str) -> int:
        return self.number_or_none(key) or 0

    def number_or_none(self, key: str) -> Optional[int]:
        """Decimal digits, few enough for 64 bits; only mtime_ns may be negative."""
        text = self.keys.get(key)
        if text is None:
            return None
        if not is_number(text.removeprefix("-") if key == "mtime_ns" else text):
            raise BadNumber("bad-number")
        return int(text)

    def is_set(self, key: str) -> bool:
        return self.keys.get(key) == "yes"


def is_number(text: str) -> bool:
    return len(text) < 20 and text.isascii() and text.isdecimal() and int(text) < BEYOND


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
    if BROKEN_ESCAPE.search(word):
        raise Broken("bad-line")
    return os.fsdecode(
        ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(word))
    )


def within_range(number: int) -> int:
    """The nearest number that the other side reads: a file's time can lie beyond."""
    if -BEYOND < number < BEYOND:
        return number
    return BEYOND - 1 if number > 0 else 1 - BEYOND


def line(*words: str, **keys: object) -> bytes:
    """A line as it is sent; a key whose value is None is left out."""
    text = " ".join(words if PLAIN.fullmatch("".join(words)) else map(quote, words))
    for key, value in keys.items():
        if type(value) is int:
            text += f" {key}={within_range(value)}"
        elif value is not None:
            text += f" {key}={quote(str(value))}"
    return f"{text}\n".encode()


def parse(text: str) -> Line:
    """A line as it was received: the verb, the positional words, the key=value words."""
    if not text.isprintable() and CONTROL.search(text):
        raise Broken("this-is-tls" if text.startswith(TLS.decode()) else "bad-line")
    if "HTTP/" in text and HTTP.match(text):
        raise Broken("this-is-http")
    verb, space, rest = text.partition(" ")
    if not verb:  # a space at the beginning: an answer would repeat no verb, and be no line itself
        raise Broken("bad-line")
    verb = verb.lower()
    if verb in TEXT_VERBS:
        return Line(verb, [rest] if space else [], {})
    words, keys, plain = [], {}, "%" not in rest
    for word in rest.split(" ") if space else ():
        key, equals, value = word.partition("=")
        if equals:
            keys[key.lower()] = value if plain else unquote(value)
        elif key:
            words.append(key if plain else unquote(key))
        else:  # two spaces, or one at the end
            raise Broken("bad-line")
    return Line(verb, words, keys)


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
    """One connection. A byte belongs to a line, or to the body that a `data N` line announced."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self.sock, self.timeout = sock, timeout
        self.selector = SELECTOR()  # knows the socket by its number, which it keeps under TLS
        self.selector.register(sock.fileno(), READ)
        sock.setblocking(False)  # only wait() waits
        self.buffer = bytearray(SMALL_BUFFER)
        self.view = memoryview(self.buffer)
        self.start = self.end = 0  # what was received and not yet used: buffer[start:end]
        self.remaining = 0  # bytes of the announced body that are still to be used
        self.early: deque[Line] = deque()  # lines that were read before their turn
        self.out = bytearray()  # what is still to be sent
        self.last_heard = time.monotonic()

    def keep_alive(self) -> None:
        """A client may be silent for hours: let the kernel notice when it has vanished."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):
                self.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def attempt(self, call: Callable[[memoryview], int], view: memoryview) -> int:
        """Send or receive what is possible now: how many bytes.

        A failure of the connection is Lost: an OSError of a disk must stay different."""
        try:
            count = call(view)
        except OSError as error:
            if type(error).__name__ in NOTHING_HAPPENED:
                return 0
            raise Lost(error.strerror or "closed") from None
        if not count:
            raise Ended("the other side closed the connection")
        self.last_heard = time.monotonic()
        return count

    def wait(self, patience: Optional[float], event: int = READ) -> None:
        """Wait until the connection can be read or written. All waiting for the peer is here."""
        self.selector.modify(self.sock.fileno(), event)
        if not self.selector.select(patience):
            raise Silent(f"silent for {self.timeout:g} s")

    # sending
    def put(self, data: bytes) -> None:
        """Queue bytes. Small ones are sent together, before this side waits; large ones at once."""
        self.out += data[:BATCH]
        if len(self.out) >= BATCH:
            self.flush()
        if len(data) > BATCH:
            self.push(memoryview(data)[BATCH:])

    def send_line(self, *words: str, **keys: object) -> None:
        self.put(line(*words, **keys))

    def flush(self) -> None:
        if self.out:
            view, self.out = memoryview(self.out), bytearray()
            self.push(view)

    def push(self, view: memoryview) -> None:
        """Send all, however slowly the peer reads."""
        while view:
            count = self.attempt(self.sock.send, view)
            view = view[count:]
            if not count:
                self.wait(self.timeout, WRITE)

    # receiving
    def has_unread(self) -> bool:
        return self.start < self.end

    def receive(self, patience: Optional[float]) -> None:
        """Wait for more bytes. First send what is queued, or both sides could wait for ever."""
        self.flush()
        self.fill(patience)

    def fill(self, patience: Optional[float]) -> None:
        rest, tls = self.view[self.start : self.end], hasattr(self.sock, "pending")
        # TLS hands out whole records: what does not fit it holds back, and select() does not see it
        if len(self.buffer) == SMALL_BUFFER and (
            tls or max(self.end, self.remaining) >= SMALL_BUFFER
        ):
            self.buffer = bytearray(BUFFER)
            self.view = memoryview(self.buffer)
        self.view[: len(rest)] = rest
        self.start, self.end = 0, len(rest)
        # no further than to the end of the body, so that the next one is received in one piece
        ends = self.remaining if self.remaining > self.end and not tls else len(self.view)
        while not (count := self.attempt(self.sock.recv_into, self.view[self.end : ends])):
            self.wait(patience)
        self.end += count
        # a body goes on with what else has come; an error or the end is for the next call
        with contextlib.suppress(Lost):
            while self.end < self.remaining and ends - self.end >= RECORD and count:
                count = self.attempt(self.sock.recv_into, self.view[self.end : ends])
                self.end += count

    def line(self, idle: bool = False) -> Line:
        """The next line, under one deadline. With idle, there is none before its first byte."""
        while self.remaining:  # a body that nobody wants is read and dropped
            self.take_body()
        deadline = None
        while not self.early:
            stop = self.line_end()
            if stop < 0:
                if deadline is None and (self.has_unread() or not idle):
                    deadline = time.monotonic() + self.timeout
                self.receive_more_of_a_line(deadline)
                continue
            try:
                text = str(self.view[self.start : stop], *NAMES).removesuffix("\r")
                found = parse(text) if text else None  # an empty line means nothing
            except UnicodeDecodeError:  # Windows' names are Unicode; a TLS client's bytes are not
                tls = self.buffer.startswith(TLS, self.start)
                raise Broken("this-is-tls" if tls else "bad-line") from None
            self.start = stop + 1
            if not found:
                continue
            if found.verb == "data":
                if not is_number(" ".join(found.words)):
                    raise Broken("bad-number")
                self.remaining = int(found.words[0])
            return found
        return self.early.popleft()

    def message(self, idle: bool = False) -> Line:
        """The next line. Where it begins a small file that has come whole, all of that is read."""
        begun = BEGIN.match(self.buffer, self.start, min(self.end, self.start + MAX_LINE))
        if not begun or self.remaining or self.early:
            return self.line(idle)
        whole = self.whole_body(begun.end(), int(begun[3]))
        if not whole:
            return self.line(idle)
        verb, *words = begun[1].decode().split(" ")
        keys: dict[str, str] = {}
        for word in begun[2].decode().split(" "):
            key, _, keys[key] = word.partition("=")
        return Line(verb, words, keys, *whole)

    def whole_body(self, begin: int, size: int) -> Optional[tuple[memoryview, str]]:
        """A body that begins there in the buffer, and what its `end` says, if all has come."""
        ended = END.match(self.buffer, begin + size, self.end)
        if not ended:
            return None
        self.start = ended.end()
        return self.view[begin : begin + size], ended[1].decode()

    def receive_more_of_a_line(self, deadline: Optional[float]) -> None:
        try:
            self.receive(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except Ended:
            if self.has_unread():
                raise Lost("the other side closed the connection inside a line") from None
            raise

    def line_end(self) -> int:
        """Where the next line ends in the buffer, or -1."""
        stop = self.buffer.find(b"\n", self.start, self.end)
        if stop < 0 and self.buffer.startswith(TLS, self.start, self.end):
            raise Broken("this-is-tls")
        if (self.end if stop < 0 else stop) - self.start >= MAX_LINE:
            raise Broken("line-too-long")
        return stop

    def take_body(self) -> memoryview:
        """The next bytes of the announced body, valid until the next call."""
        if self.start == self.end:
            self.receive(self.timeout)
        begin, count = self.start, min(self.end - self.start, self.remaining)
        self.start += count
        self.remaining -= count
        return self.view[begin : self.start]


# --- end wire ---


# --- the connection: requests go out, answers come back in their order ---
LIKELY = Line("ok", [], {})  # the answer that was expected


class Link(Wire):
    """A connection to the server, and the requests that it has not answered yet."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(dial(args), args.timeout)
        self.pace = Pace(args.limit_rate) if args.limit_rate else None
        if self.pace:  # what the kernel holds back has not been taken by us
            window = max(LEAST_WINDOW, min(args.limit_rate, BUFFER))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.endpoint = endpoint(args)
        # what was asked and not answered yet: the words that the answer repeats, the line's length,
        # the answer that is likely, and what stands for it
        self.asked: deque[tuple[tuple[str, ...], int, bytes, Line]] = deque()
        self.unanswered = 0  # bytes of these lines
        # answers that came while something was sent, each with what receivers said before it
        self.arrived: deque[tuple[Line, list[Line]]] = deque()
        self.said: list[Line] = []  # what receivers said since the last answer
        self.got: list[Line] = []  # what they said before the answer that was taken last
        self.handle_note: Callable[[Line], None] = lambda note: None
        try:
            self.log_in(args, self.greet())
        except BaseException:
            self.sock.close()
            raise

    def greet(self) -> Line:
        try:
            plain = not hasattr(self.sock, "pending")
            patience = min(NUDGE_AFTER, self.timeout / 2)
            if plain and not select.select([self.sock], [], [], patience)[0]:
                self.put(NUDGE)
            greeting = self.line()
        except Broken as broken:
            greeting = Line(str(broken), [], {})
        except Lost as lost:
            raise lost_failure(
                lost,
                52,
                f"{self.endpoint} said nothing",
                "check the port: a file server greets first",
            ) from None
        if greeting.keys.get("reason") in TURNED_AWAY:
            code, what, why, hint = TURNED_AWAY[greeting.keys["reason"]]
            raise Failure(code, f"{self.endpoint} {what}", why, hint)
        if greeting.verb != "sixsockets" or greeting.words[:1] != [PROTOCOL]:
            known = {"http": "it speaks HTTP", "this": "it speaks TLS"}.get(
                greeting.verb[:4], "it does not begin with the greeting of one"
            )
            raise Failure(
                56,
                f"{self.endpoint} is no Six Sockets file server",
                f"{known}: another program listens there",
                "check the port; httpclient.py speaks to web servers",
            )
        return greeting

    def log_in(self, args: argparse.Namespace, greeting: Line) -> None:
        """Both sides prove that they know the password, or nothing else is said."""
        keys, password = greeting.keys, given_password(args, args.host, args.port)
        if keys.get("auth", "none") == "none":
            if password:
                raise Failure(
                    67,
                    f"{self.endpoint} does not ask for the password",
                    "so it cannot prove that it knows it: it may be another server",
                    "without --password and SIXSOCKETS_PASSWORD, if it is meant to be open",
                )
            return
        salt, nonce = keys.get("salt", ""), keys.get("nonce", "")
        if keys["auth"] != AUTH or not NONCE.fullmatch(salt) or not NONCE.fullmatch(nonce):
            raise Broken(f"auth={keys['auth']}")
        if not password:
            password = args.password = ask_password(self.endpoint)
        self.exchange_proofs(auth_key(password, salt), nonce)

    def exchange_proofs(self, key: bytes, theirs: str) -> None:
        """Ours first. Under TLS both cover the certificate: nobody in between can pass them on."""
        mine, certificate = os.urandom(16).hex(), ""
        if hasattr(self.sock, "getpeercert"):
            certificate = fingerprint(self.sock.getpeercert(binary_form=True))
        proof = auth_proof(key, "client", theirs, mine, certificate)
        answer = self.ask("auth", nonce=mine, proof=proof)
        if answer.verb != "ok":
            reason = answer.keys.get("reason", "?")
            told = "it is not the server's", "the one that the server was given, or printed"
            if reason == "busy":
                told = TURNED_AWAY["busy"][2:]
            raise Failure(67, f"{self.endpoint} refused the password ({printable(reason)})", *told)
        expected = auth_proof(key, "server", theirs, mine, certificate)
        if not same_proof(answer.keys.get("proof", ""), expected):
            raise Failure(
                67,
                f"{self.endpoint} does not know the password itself",
                "it is not the server that it should be, or somebody is in between",
                "check the address; nothing was sent",
            )

    def attempt(self, call: Callable[[memoryview], int], view: memoryview) -> int:
        """As in Wire, but no quicker than --limit-rate."""
        if not self.pace:
            return super().attempt(call, view)
        count = super().attempt(call, view[: self.pace.piece])
        self.pace.wait(count)
        return count

    def wait(self, patience: Optional[float], event: int = READ) -> None:
        """As in Wire; but a server that sends while it does not read waits for others."""
        if event == READ and patience is not None and self.timeout > NOTICE_AFTER < patience:
            if select.select([self.sock], [], [], NOTICE_AFTER)[0]:
                return
            patience -= NOTICE_AFTER
            say(f"waiting for an answer from {self.endpoint} (Ctrl-C stops)")
        if event == READ and os.name == "nt":
            self.sock.settimeout(patience)
            with contextlib.suppress(socket.timeout):
                await_data(self.sock)
            self.sock.setblocking(False)
            patience = 0
        try:
            super().wait(patience, event)
        except Silent:
            if event == READ or not self.notes():
                raise

    def notes(self) -> int:
        """Take the lines that have come; how many. A server may send them without end."""
        count = 0
        while count < 2 * LISTED_IN_MEMORY and (
            self.buffer.find(b"\n", self.start, self.end) >= 0
            or select.select([self.sock], [], [], 0)[0]
        ):
            self.listen(self.line())
            count += 1
        return count

    def request(self, *words: str, **keys: object) -> None:
        text = line(*words, **keys)
        # the answer does not repeat for whom it was
        echoed = words if words[0] != "send" else ("send", words[2])
        self.asked.append((echoed, len(text), b"", LIKELY))
        self.unanswered += len(text)
        self.put(text)

    def expect(self, likely: str, stands: Line = LIKELY) -> None:
        """The answer to the last request, if all goes well: it need not be taken to pieces.

        Where it ends with `data N`, another line tells what it says."""
        words, length, *_ = self.asked.pop()
        self.asked.append((words, length, f"{likely}\n".encode(*NAMES), stands))

    def full(self) -> bool:
        return len(self.asked) >= UNANSWERED or self.unanswered > UNANSWERED_BYTES

    def answer(self) -> Line:
        """The next line that answers the oldest request: the only one, or one of several."""
        if not self.arrived and (likely := self.likely_answer()):
            self.unanswered -= self.asked.popleft()[1]
            return likely
        while not self.arrived:
            self.listen(self.line())
        found, self.got = self.arrived.popleft()
        if found.verb in ("ok", "err"):
            words, length, *_ = self.asked.popleft()
            self.unanswered -= length
            if found.words != ["-"] and not all(map(str.startswith, words, found.words)):
                raise Broken(f"{' '.join(found.words)} where {' '.join(words)} was asked")
        return found

    def likely_answer(self) -> Optional[Line]:
        """The answer that was expected, if it has come, and if its body has come whole."""
        likely, stands = self.asked[0][2:]
        if not likely or not self.buffer.startswith(likely, self.start, self.end):
            return None
        begin = self.start + len(likely)
        if stands is LIKELY:
            self.start = begin
            return LIKELY
        whole = self.whole_body(begin, int(likely.rpartition(b" ")[2]))
        return Line("ok", [], stands.keys, *whole) if whole else None

    def accepted_offset(self) -> Optional[int]:
        """Where the body of the put that was just asked for begins. None: the server refuses it."""
        while len(self.arrived) < len(self.asked):
            note = self.listen(self.line())
            if note and "offset" in note.keys:
                return note.number("offset")
        return None

    def listen(self, found: Line) -> Optional[Line]:
        """Keep an answer that has come; pass a note to handle_note(), and return it."""
        if found.verb not in ANSWERS:
            raise Broken(f"{found.verb} where an answer was awaited")
        if found.verb not in ("ok", "err") and not found.words:
            raise Broken("bad-line")
        if found.verb == "got":
            place = len(self.arrived)
            if place >= len(self.asked) or self.asked[place][0][0] != "send":
                raise Broken("got without a send")
            self.said.append(found)
        elif found.verb == "note" and "reason" not in found.keys:
            self.handle_note(found)
        elif len(self.arrived) > LISTED_IN_MEMORY:  # while something is sent, nobody takes them
            raise Broken("more answers than requests")
        else:
            self.arrived.append((found, self.said))
            self.said = []
            return None
        return found

    def peek(self) -> bool:
        """Read what has come, without blocking. Returns whether every request has its answer."""
        self.notes()
        return len(self.arrived) >= len(self.asked)

    def ask(self, *words: str, **keys: object) -> Line:
        """One request, and its answer, or the first line of it."""
        self.request(*words, **keys)
        return self.answer()


def dial(args: argparse.Namespace) -> socket.socket:
    """A connection to the server: by TLS when something is said about whom to trust."""
    plain = functools.partial(open_connection, args, args.host, args.port, server_command(args))
    try:
        checked = not proof_suffices(args)
        return encrypt(plain, args.host, args, checked=checked) if wants_tls(args) else plain()
    except OSError as error:
        if isinstance(error, socket.timeout):
            raise Silent(f"silent for {args.timeout:g} s") from None
        raise Lost("it hung up within the TLS handshake") from None


def proof_suffices(args: argparse.Namespace) -> bool:
    """Whether the server's proof, which covers its certificate, is enough to trust it.

    Who is in between hears our proof, and can try passwords on it: this is safe only with one that
    a server made, of 89 random bits. One that a person made needs --pin or --cacert."""
    unpinned = not (args.pin or args.cacert or args.insecure)
    return unpinned and bool(MADE_PASSWORD.fullmatch(given_password(args, args.host, args.port)))


# what decides where a connection goes, and how: in the shell each command may say it anew
LINK_FLAGS = (
    "host",
    "port",
    "tls",
    "cacert",
    "pin",
    "insecure",
    "timeout",
    "nick",
    "limit_rate",
    "trace",
    "trace_hex",
    "pcap",
)


def connected(args: argparse.Namespace) -> Link:
    """The connection of this command.

    The shell keeps one from command to command, unless the server closed it or the flags differ."""
    flags = [vars(args)[flag] for flag in LINK_FLAGS]
    link: Optional[Link] = args.link
    if link and args.reached == flags and not select.select([link.sock], [], [], 0)[0]:
        return link
    close_link(args)
    try:
        link = args.link = Link(args)
    except Failure as failure:
        # a server that was there before may be on its way back; but one that is there and refuses
        # would do so again, or lock us out
        if failure.code in NO_SERVER and args.reached == flags:
            raise Lost("no server answers") from None
        raise
    args.reached = flags
    if args.nick:
        require_ok(link.ask("ping", nick=args.nick), "accept the nick", args.nick)
    return link


Result = TypeVar("Result")


def persist(args: argparse.Namespace, work: Callable[[], Result]) -> Result:
    """Do it. If the connection is lost, do it again on a new one: two minutes of growing pauses.

    Only this function repeats anything; work() itself knows what it has done already."""
    while True:
        try:
            done = work()
        except Lost as lost:
            close_link(args)
            if args.tries >= args.retries or not args.reached:
                raise
            problem = lost
        else:
            args.tries = 0
            return done
        seconds = min(BACK_OFF * 2**args.tries, LONGEST_PAUSE)
        args.tries += 1
        say(f"connection lost ({problem}); attempt {args.tries} of {args.retries} in {seconds:g} s")
        time.sleep(seconds)


def lost_failure(lost: Lost, code: int, what: str, hint: str) -> "Failure":
    """What a lost connection ends; silence has an exit code of its own."""
    return Failure(28 if isinstance(lost, Silent) else code, what, str(lost), hint)


def close_link(args: argparse.Namespace) -> None:
    if args.link:
        end_tls(args.link.sock)
        args.link.sock.close()
    args.link = None


def say_bye(args: argparse.Namespace) -> None:
    """All has been said: a server that is gone by now changes nothing."""
    with contextlib.suppress(Lost):
        args.link.put(line("bye"))
        args.link.flush()
    close_link(args)


# --- answers and names: what they mean for people ---
# for each reason code what it means for people, and what they can do; "there": from a receiver
REASON_TEXTS = """
no-such-file
    the server has nothing of that name
    list shows what there is
no-such-folder
    a folder in that path is missing there
    mkdir makes it; put --into FOLDER does too
drop-box
    it is a drop box: files can be added, and nothing else can be done
    put PATH, to hand something in
exists
    there is already something of that name
    another name; --force puts or renames over a file, never over a folder
is-a-folder
    that name is a folder
    another name, or a name in the folder
not-a-folder
    a part of that path is a file or a link
    list shows what there is
not-a-file
    that name is a link or a special file, and the server follows none
    the name of the file itself
not-empty
    the folder is not empty, or holds names that are not shown
    delete -r deletes what is in it too
not-permitted
    the server's user may not do that there
    the permissions of the server's folder
bad-name
    the name leaves the shared folder, or no server can have it
    a path below the shared folder, without .. and without a / at its beginning or end
too-deep
    that is more than 64 folders deep
    a place further up
hidden-name
    the server keeps names that start with a dot to itself
    python3 server.py --hidden
read-only
    the server was started with --read-only
    python3 server.py without it
too-large
    it is more than the server's --max-size
    python3 server.py with a larger --max-size
disk-full
    the server's disk is full, or would be fuller than --min-free allows
    delete something there
disk-read-only
    its disk takes no writing: it is mounted so, or turned so after an error
    what the system there says of the disk
busy
    another client is sending this file
    run the same command again when that one is done
taken-over
    another client is putting the same file, and the server goes on with that one
    run the same command again when that one is done
wrong-digest
    what arrived is not what was sent: the network or a disk changed it
    run the same command again
aborted
    it changed while it was sent, or its sender gave up
    run the same command again when nothing writes to it
no-such-client
    nobody who is connected has that address or nick
    who lists the clients
yourself
    that is this very connection
    who lists the clients
not-receiving
    it is connected, but does not wait for files
    python3 client.py receive, there
gone
    its connection ended before it had all
    run the same command again when it is back
stalled
    it took nothing for longer than the server's --timeout, and was disconnected
    run the same command again
left
    it stopped receiving
    python3 client.py receive, there
not-received
    no receiver has got it
    who lists the clients
not-wanted
    its user takes nothing from you, or did not want this
    ask there; receive --from NICK names who may send
bad-nick
    a nick is 1 to 32 letters, digits, points, hyphens or underscores
    --nick NAME
there disk-full
    its disk is full
    room there, then again
there too-large
    its disk or its user can have no file of that size
    python3 client.py receive -o DIR, there
there hidden-name
    it takes no names that start with a dot
    python3 client.py receive --hidden, there; --as NAME, here
there not-permitted
    it may not write in its folder
    python3 client.py receive -o DIR, there
"""
WHYS = {
    code: (why, hint) for code, why, hint in re.findall("(.+)\n    (.+)\n    (.+)\n", REASON_TEXTS)
}


# reasons that come instead of the greeting
TURNED_AWAY = {
    "server-full": (
        7,
        "has as many clients as it takes",
        "its --max-clients is reached",
        "wait a while, then run the same command again",
    ),
    "busy": (
        67,
        "lets nobody in from this address for a minute",
        "too many wrong passwords came from it",
        "wait a minute, then run the same command again",
    ),
    "tls-only": (
        56,
        "speaks TLS only",
        "it was started with --tls",
        "--pin SHA256 as the server printed it, or --cacert FILE, or --tls",
    ),
}


# exit codes of reasons; others depend on what was asked
CODES = {"aborted": 18, "wrong-digest": 56, "no-such-file": 78, "no-such-folder": 78}


def require_ok(answer: Line, verb: str, name: str) -> Line:
    if answer.verb != "ok":
        raise refusal(answer, verb, name)
    return answer


def refusal(answer: Line, verb: str, name: str) -> "Failure":
    """What an `err` means, in three lines."""
    reason = answer.keys.get("reason", "?")
    why, hint = WHYS.get(reason, ("the server says so", "the server's log tells more"))
    if reason == "no-such-folder" and verb not in ("put", "mkdir", "rename"):
        why, hint = WHYS["no-such-file"]
    if "why" in answer.keys:
        why, hint = printable(answer.keys["why"]), "use another name or folder"
    upload = verb in ("put", "send") and reason not in ("aborted", "wrong-digest")
    code = 25 if upload else CODES.get(reason, 9)
    if "limit" in answer.keys:
        why += f" ({readable_size(answer.number('limit'))})"
    if "received" in answer.keys:
        reason += f" after {answer.number('received'):,} bytes"
    what = f"server refused to {verb} {printable(name)}".rstrip()
    return Failure(code, f"{what} ({printable(reason)})", why, hint)


def peer_name(endpoint: str, nick: Optional[str]) -> str:
    return printable(f"{endpoint} ({nick})" if nick else endpoint)


def remote_name(args: argparse.Namespace, text: str) -> str:
    """A name on the server. In the shell, cd has chosen the folder that it begins in."""
    name = plain_name(text)
    if args.cwd is None or args.command == "send":
        return name
    found = posixpath.normpath(posixpath.join("/", args.cwd, name)).strip("/")
    if not found and args.command not in ("list", "cd", "put"):
        raise nameless(text)
    return found


def plain_name(text: str) -> str:
    """A name as people type it: a slash at the end of a folder's name means nothing."""
    # no line can have it as a word: the server would hang up on all that is asked with it
    if not text:
        raise nameless(text)
    return text.rstrip("/") or text


def nameless(text: str) -> "Failure":
    return Failure(
        2,
        f'"{printable(text)}" is no name of a file or folder',
        "it is empty, perhaps by a variable of the shell that is not set, or all that is shared",
        "list shows what there is",
    )


def same(size: int, mtime_ns: int, other_size: int, other_mtime_ns: int) -> bool:
    """Whether two files count as the same, by size and time.

    File systems keep times to 1 or 100 ns, 1 µs, 1 s or 2 s: the coarser precision decides."""
    mtime_ns, other_mtime_ns = within_range(mtime_ns), within_range(other_mtime_ns)
    if mtime_ns == other_mtime_ns:
        return size == other_size
    coarsest = max(
        unit
        for unit in (1, 100, 1000, 10**9, 2 * 10**9)
        if mtime_ns % unit == 0 or other_mtime_ns % unit == 0
    )
    return size == other_size and mtime_ns // coarsest == other_mtime_ns // coarsest


def difference(theirs: Line, ours: os.stat_result) -> str:
    """Size and time of two files; also the digits of a second, where only these differ."""
    sizes = theirs.number("size"), ours.st_size
    times = theirs.number("mtime_ns"), ours.st_mtime_ns
    told = [f"{plural(size, 'byte')} of {date_of(ns)}" for size, ns in zip(sizes, times)]
    if told[0] == told[1]:
        told = [f"{text}.{ns % 10**9:09}" for text, ns in zip(told, times)]
    return f"the server's: {told[0]}; yours: {told[1]}"


def date_of(mtime_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", calendar(time.localtime, mtime_ns / 1e9))


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
    )


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def did_you_mean(word: str, known: Sequence[str]) -> str:
    import difflib  # not at the top: only a misspelt word needs it

    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {printable(close[0])}? " if close else ""


# --- folders: the same in server.py, client.py (tests/test_twins.py) ---
MAX_NAME = 4096  # bytes of a path: more than most systems take
MAX_DEPTH = 64  # components of a path: what is further down costs too much to walk to
# what the name of an unfinished file looks like
PART = re.compile(r"\.six-[0-9a-f]{32}\.part", re.IGNORECASE)
# what Windows takes for something else
DEVICE = re.compile(
    r"(?:con(?:in\$|out\$)?|prn|aux|nul|(?:com|lpt)[0-9¹²³])(?:\..*)?|.*[. ]|.*[\\:<>|?*\"].*",
    re.IGNORECASE,
)
# and no wait for a FIFO
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
RANDOM = ".six-" + "0" * 8  # how the name of a part begins that nothing can resume
# the rest of such a name: 24 digits, counted from a random number on
UNIQUE = itertools.count(int.from_bytes(os.urandom(12), "big"))
KEPT = 7 * 86400  # seconds that the part of an interrupted transfer is kept
KEPT_USELESS = 3600  # the same for one that nothing can resume: empty, or with a random name
NAMING = _thread.allocate_lock()  # held by the thread that takes or replaces names
# seconds from one try to lock a folder to the next: two in all
PAUSES = [min(0.05, 0.001 * 2**count) for count in range(44)]
# entries of a folder that are put in order; those after them come as the disk has them
SORTED = 20000
SORTING = _thread.allocate_lock()  # one at a time: to sort takes several times what is kept
LINK = os.stat_result([stat.S_IFLNK, *[0] * 9])  # of which nothing but its kind matters
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
    parts = name.split("/")
    if (
        "\0" in name
        or (len(name) * 4 > MAX_NAME and len(os.fsencode(name)) > MAX_NAME)
        or (windows and any(map(DEVICE.fullmatch, parts)))
    ):
        raise Refused("bad-name")
    for part in parts:
        if part and part[0] != ".":
            continue
        if part in ("", ".", "..") or PART.fullmatch(part):
            raise Refused("bad-name")
        if not hidden:
            raise Refused("hidden-name")
    if len(parts) > MAX_DEPTH:
        raise Refused("too-deep")
    return parts


def unfit(status: os.stat_result) -> str:
    """Why it is not a regular file, or ""."""
    if stat.S_ISREG(status.st_mode):
        return ""
    return "is-a-folder" if stat.S_ISDIR(status.st_mode) else "not-a-file"


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
        elif not stat.S_ISDIR(os.stat(path).st_mode):
            raise os_error(errno.ENOTDIR)

    def __del__(self) -> None:
        if self.fd is not None:
            os.close(self.fd)

    def at(self, name: str) -> str:
        """What the system's calls take for a name in it: where they take no descriptor, a path.

        Then the path must be its own real path: neither a link nor a junction, nor the second name
        that Windows gives a long one."""
        if self.fd is not None:
            return name
        path = os.path.join(os.path.realpath(self.path), name)
        if os.path.normcase(os.path.realpath(path)) != os.path.normcase(path):
            raise os_error(errno.ELOOP)
        return path

    def below(self, name: str, make: bool = False) -> "Folder":
        """The folder of that name in this one; a link is not followed."""
        if make:
            with contextlib.suppress(FileExistsError):
                self.make(name)
        if self.fd is None and self.stat(name) is LINK:
            raise os_error(errno.ENOTDIR)
        return Folder(os.path.join(self.path, name), self.fd, self.durable)

    def descend(self, names: Sequence[str], make: bool = False) -> "Folder":
        return functools.reduce(lambda found, name: found.below(name, make), names, self)

    def protect(self, name: str, there: Optional[os.stat_result], is_folder: bool = False) -> None:
        """What arrives is never run: refuse to change a part of a program, or to make one.

        What is there already may be this script under another name."""
        check = holds_program if is_folder else is_program
        if (there or nears_program(self.path)) and check(os.path.join(self.path, name)):
            raise Refused("not-permitted", why="it would be part of a program at its next start")

    def make(self, name: str) -> None:
        """Make a folder in it. If there is one, it may be new and not on the disk yet: sync too."""
        if not self.stat(name):
            self.protect(name, None)
        try:
            os.mkdir(self.at(name), dir_fd=self.fd)
        finally:
            self.sync()

    def sync(self) -> None:
        """With --durable, write the names in it to the disk itself. (Windows syncs no folder.)"""
        if self.durable and self.fd is not None:
            sync_to_disk(self.fd)

    def open(self, name: str, flags: int, mode: int = 0o666) -> int:
        return os.open(self.at(name), flags | NO_LINK, mode, dir_fd=self.fd)

    def stat(self, name: str) -> Optional[os.stat_result]:
        try:
            return os.stat(self.at(name), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            if self.fd is None and error.errno == errno.ELOOP:
                return LINK
            raise

    def identity(self, name: str) -> tuple[Any, ...]:
        """Tells a name in it from all others, even after a folder above it was renamed."""
        if self.fd is None:
            return os.path.normcase(self.path), name
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino, name

    def read(self, name: str) -> tuple[int, os.stat_result]:
        """A regular file, open for reading, and its status."""
        fd = self.open(name, os.O_RDONLY)
        status = os.fstat(fd)
        if reason := unfit(status):
            os.close(fd)
            raise Refused(reason)
        return fd, status

    def remove(self, name: str, is_folder: bool = False) -> None:
        (os.rmdir if is_folder else os.unlink)(self.at(name), dir_fd=self.fd)

    def entries(self) -> Iterator[str]:
        """The names in it, sorted; of more than SORTED only so many, because memory would matter.

        They are kept as one text: whoever reads them may take hours."""
        with os.scandir(self.path if self.fd is None else self.fd) as found:
            names = (entry.name for entry in found)
            with SORTING:
                first = "/".join(sorted(itertools.islice(names, SORTED)))
            yield from (name[0] for name in re.finditer("[^/]+", first))
            yield from names

    def rename(self, old: str, other: "Folder", new: str, replace: bool) -> None:
        """Move a file or folder to that name. Without replace, fail if the name is taken."""
        if not replace and self.link(old, other, new):
            return
        if not replace and other.stat(new):
            raise os_error(errno.EEXIST)
        # Windows' rename() replaces nothing
        move = os.replace if replace else os.rename
        move(self.at(old), other.at(new), src_dir_fd=self.fd, dst_dir_fd=other.fd)

    def link(self, old: str, other: "Folder", new: str) -> bool:
        """Move a file by a hard link, which fails if the name is taken: to check and to change are
        one step. False for a folder, and where the file system has no hard links (FAT)."""
        here, there = self.fd, other.fd
        try:
            os.link(
                self.at(old),
                other.at(new),
                src_dir_fd=here,
                dst_dir_fd=there,
                follow_symlinks=False,
            )
        except FileExistsError:
            raise
        except OSError:
            return False
        self.remove(old)
        return True

    @contextlib.contextmanager
    def locked(self, other: "Optional[Folder]" = None) -> Iterator[None]:
        """Nobody else takes or replaces names in these folders meanwhile, in any process.

        Otherwise a rename() could remove a file that was put between its link() and its remove().
        A link() to a name that is free needs no lock: while there is such a name, it fails.
        Where folders have no locks, this excludes only the threads of this process."""
        fds = [self.fd] if self.fd is not None else []
        if other and other.fd is not None and other.identity("") != self.identity(""):
            fds.append(other.fd)
        for pause in PAUSES:
            NAMING.acquire()
            try:
                if all(map(lock_file, fds)):
                    yield
                    return
            finally:
                for fd in fds:
                    lock_file(fd, free=True)
                NAMING.release()
            time.sleep(pause)
        raise os_error(errno.EBUSY)


def sync_to_disk(fd: int) -> None:
    """fsync(); on macOS that leaves it in the disk's own memory, and another call does not."""
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # a file system that has no such call
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def lock_file(fd: int, free: bool = False) -> bool:
    """Lock a part or folder, or free it; False if somebody else has locked it.

    Without a lock only the writers in one server know of each other."""
    if sys.platform == "win32":
        return lock_byte(fd)
    try:
        import fcntl  # not at the top: Windows has none

        fcntl.flock(fd, fcntl.LOCK_UN if free else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Lustre, for one, may have none
        pass
    return True


def remove_if_old(folder: Folder, name: str) -> bool:
    """Remove what has that name if it is a part that nobody resumed in time.

    Its age is that of its ctime: shortly before the end its mtime becomes that of the source."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as held_open:
        status = folder.stat(name) if PART.fullmatch(name) else None
        if not status:
            return False
        useful = status.st_size and not name.startswith(RANDOM)
        if time.time() - status.st_ctime > (KEPT if useful else KEPT_USELESS):
            fd = folder.open(name, os.O_RDONLY)
            held_open.callback(os.close, fd)
            free = lock_file(fd)
            if os.name == "nt":
                # Windows removes no open file; elsewhere the lock must last until the name is gone
                held_open.close()
            if free:
                folder.remove(name)
            return free
    return False


# --- end folders ---


# --- bodies: the same in server.py, client.py (tests/test_twins.py) ---
# most bytes that our side announces in one `data`: it can stop only between two, and each busy
# connection has its own
CHUNK = 1 << 20
# bytes from which an interrupted file is worth resuming; a smaller one starts over
RESUMABLE = 1 << 20
HOLE = 1 << 12  # zeros at once from which a disk need not store them


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
        self.folder, self.leaf, self.executable = folder, leaf, executable
        self.size, self.mtime_ns = size, mtime_ns  # None: not known
        self.sha, self.received, self.fd = hashlib.sha256(), 0, -1
        self.sha256 = ""  # of the whole body
        self.resumable = mtime_ns is not None and (size or 0) >= RESUMABLE
        self.name = f"{RANDOM}{next(UNIQUE):024x}.part"
        if self.resumable:
            self.name = lasting_name(leaf, size, mtime_ns)

    def identity(self) -> tuple[object, ...]:
        return self.folder.identity(self.name)

    def claim(self) -> bool:
        """Open and lock it, new or as an earlier attempt left it. False: another one writes it."""
        mode = 0o777 if self.executable else 0o666  # less the umask
        if not self.resumable:  # nobody else has that name
            self.fd = self.folder.open(self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            # a small one is whole long before remove_if_old() takes it
            return (self.size is not None and self.size < RESUMABLE) or lock_file(self.fd)
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

    def length(self) -> int:
        """Bytes that are there, also before claim() from an earlier attempt."""
        found = self.folder.stat(self.name) if self.resumable or self.fd >= 0 else None
        return found.st_size if found else 0

    def begin(self, offset: int) -> None:
        """Write from the offset on, if the digest is that of the bytes before; else from 0."""
        if offset != self.received:
            self.sha, self.received = hashlib.sha256(), 0
        if self.resumable:
            os.ftruncate(self.fd, self.received)
            os.lseek(self.fd, self.received, os.SEEK_SET)

    def write(self, chunk: memoryview) -> None:
        self.sha.update(chunk)
        self.received += len(chunk)
        if len(chunk) >= HOLE and self.leave_hole(chunk):
            return
        while chunk:
            chunk = chunk[os.write(self.fd, chunk) :]

    def leave_hole(self, chunk: memoryview) -> bool:
        """Make the file longer instead of writing zeros: most disks need not store them."""
        # without a name it is standard output, which cannot be made longer
        if not self.name or chunk[0] or bytes(chunk) != bytes(len(chunk)):
            return False
        with contextlib.suppress(OSError):  # a file system that makes no file longer
            os.ftruncate(self.fd, self.received)
            os.lseek(self.fd, 0, os.SEEK_END)
            return True
        return False

    def finish(self, over: bool) -> None:
        """Give it its time and mode, then its name: one that is taken while nobody renames."""
        there = self.folder.stat(self.leaf) if over else None
        if there and hasattr(os, "fchmod"):
            runs = 0o111 & there.st_mode >> 2 if self.executable else 0
            self.set_mode(there.st_mode & 0o777 | runs)
        if self.mtime_ns is not None:
            self.set_time(self.mtime_ns)
        if self.folder.durable:
            sync_to_disk(self.fd)
        if os.name == "nt":
            self.close()  # Windows renames no open file
        if over or not self.folder.link(self.name, self.folder, self.leaf):
            with self.folder.locked():
                self.folder.rename(self.name, self.folder, self.leaf, replace=over)
        self.folder.sync()
        self.close()

    def set_time(self, ns: int) -> None:
        try:
            os.utime(self.fd if TIMED else self.folder.at(self.name), ns=(ns, ns))
        except OSError:
            return  # a disk that keeps times of its own

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
        if self.fd >= 0 and self.resumable and self.received:
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
    wire: Wire,
    fd: int,
    remaining: int,
    status: os.stat_result,
    sha: "hashlib._Hash",
    go_on: Callable[[int], bool],
) -> str:
    """Send so many bytes of a file, to its announced end, then its digest.

    Returns "", or the reason why it was given up, as the peer is told."""
    reason = ""
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
    if reason:
        wire.send_line("abort", reason=reason)
    else:
        wire.put(b"end sha256=%b\n" % sha.hexdigest().encode())
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
    begun: Line,
    part: Part,
    check: Callable[[int], None],
    tell: Callable[[int], None],
) -> str:
    """Write a body into the part until `end`: "yes" if its digest agrees, "no" if it had none.

    Refused if the body is not what was announced. check() may refuse so many bytes. A verb that
    belongs to no body ends it like `abort`, and is carried out afterwards."""
    theirs: Optional[str] = begun.sha256
    if begun.body is None:
        theirs = receive_chunks(wire, part, check, tell)
    else:
        part.write(begun.body)
    if part.size not in (None, part.received):
        raise Refused("incomplete", received=part.received, size=part.size)
    part.sha256 = part.sha.hexdigest()
    if theirs not in (None, part.sha256):
        raise Refused("wrong-digest", sha256=part.sha256)
    return "no" if theirs is None else "yes"


def stored_answer(name: str, part: Part, verified: str, given: str = "") -> bytes:
    """What the sender of a file is told, also under which other name it was stored."""
    text = f"ok put {quote(name)} size={part.received} sha256={part.sha256} verified={verified}"
    return f"{text} as={quote(given)}\n".encode() if given else f"{text}\n".encode()


def receive_chunks(
    wire: Wire,
    part: Part,
    check: Callable[[int], None],
    tell: Callable[[int], None],
) -> Optional[str]:
    """Until `end`: the digest that it says."""
    while (found := wire.line()).verb in ("data", "note"):  # a note is a sign of life
        if part.size is not None and part.received + wire.remaining > part.size:
            raise Refused("too-long", size=part.size)
        while wire.remaining:
            check(part.received + wire.remaining)  # others may have filled the disk meanwhile
            part.write(wire.take_body())
            tell(part.received)
    if found.verb not in ("end", "abort"):
        wire.early.append(found)
    if found.verb != "end":
        raise Refused("aborted")
    return found.keys["sha256"].lower() if "sha256" in found.keys else None


# --- end bodies ---


# --- telling: results on stdout for programs, progress on stderr for people ---
def tell(text: str) -> None:
    """A line of the product: names as they are to a pipe, harmless to a terminal."""
    raw = in_rows(printable(text), 1).encode() if is_terminal(1) else os.fsencode(text)
    write_out(raw + b"\n")


def write_all(fd: int, raw: bytes) -> None:
    view = memoryview(raw)
    while view:
        view = view[write_some(fd, view) :]


def write_out(raw: bytes) -> None:
    try:
        write_all(product(), raw)
    except OSError as error:
        raise Failure(
            23,
            f"cannot write standard output ({error.strerror})",
            "what reads it has ended, or its disk is full",
            "run the same command without | or > to see what it writes",
        ) from error


def product() -> int:
    """Standard output. Where it was closed before the start, the connection may have its number."""
    if sys.stdout is None:
        raise os_error(errno.EBADF)
    return 1


def tell_json(facts: dict[str, Any]) -> None:
    """One JSON object. Bytes that are no UTF-8 become \\x escapes.

    Then the key "quoted" has the name's exact bytes, as the protocol writes them."""
    import json  # not at the top: few need it

    clean = {
        key: os.fsencode(value).decode(errors="backslashreplace")
        if isinstance(value, str)
        else value
        for key, value in facts.items()
    }
    if clean.get("name") != facts.get("name"):
        clean["quoted"] = quote(facts["name"])
    write_out(f"{json.dumps(clean)}\n".encode())


def say_failure(failure: Exception) -> None:
    """Say what failed: with names and reasons of others, but with a hint that is all ours."""
    for text in str(failure).splitlines():
        (say if text.startswith("try:") else say_in_rows)(text)


def say_in_rows(text: str) -> None:
    say(in_rows(text, 2))


def in_rows(text: str, fd: int) -> str:
    """What people read, in rows that fit on their terminal; all but the first begin with a mark.

    A terminal that breaks a long line itself begins a row with any part of it: a peer could place
    there what looks like the line of another peer, or like ours."""
    if not is_terminal(fd):
        return text
    room = max(CONTINUED_ROOM, columns_of(fd) - 1)
    rows, used = [""], 0
    for char in text:
        # terminals differ about characters that are wide in East Asia alone
        width = 2 if unicodedata.east_asian_width(char) in "AFW" else 1
        if used + width > room:
            rows.append(CONTINUED)
            used = len(CONTINUED)
        rows[-1] += char
        used += width
    return "\n".join(rows)


def columns_of(fd: int) -> int:
    """How wide the terminal is now. Some do not know, and its window may have been closed."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(fd).columns or 80
    return 80


class Progress:
    """One bar for the whole command, on a terminal. It counts bytes that the receiver has."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.drawn = is_terminal(2) and not args.quiet
        self.began = time.monotonic()
        self.due = self.began + REDRAW
        self.total = self.done = self.current = self.files = self.all_files = 0  # bytes, and files
        self.resumed = 0  # bytes that were there before and do not count for the rate
        self.shown = False

    def expect(self, size: int) -> None:
        """One more file of that size is to come."""
        self.total += size
        self.all_files += 1

    def count_file(self, size: int) -> None:
        """One file has come to its end."""
        self.files += 1
        self.done += size
        self.update(0)

    def update(self, current: int, verb: str = "") -> None:
        """So much of the current file is there. When that is due, it is shown."""
        self.current, now = current, time.monotonic()
        if now < self.due:
            return
        self.due = now + REDRAW
        if self.drawn:
            self.shown = True
            checked = f"checking: {readable_size(current)}"
            say(f"\r{checked if verb else self.bar(now)}\x1b[K", "")

    def bar(self, now: float) -> str:
        """As much as fits into one row, the most important first."""
        done = self.done + self.current
        total, moved = max(self.total, done, 1), done - self.resumed
        parts = [f"{100 * done // total:3}%", f"{readable_size(done)} of {readable_size(total)}"]
        elapsed = now - self.began
        if moved > 0 and elapsed >= RATE_AFTER:
            parts.append(f"{readable_size(moved / elapsed)}/s")
            parts.append(f"{clock((total - done) * elapsed / moved)} left")
        if self.all_files > 1:
            parts.append(f"{self.files:,} of {plural(self.all_files, 'file')}")
        text, *more = parts
        for part in more:
            if len(text) + len(part) + 2 < columns_of(2):
                text += f"  {part}"
        return text

    def clear(self) -> None:
        if self.shown:
            say("\r\x1b[K", "")
            self.shown = False


class Stream(Part):
    """Standard output, a device or a FIFO. What is written stays, but is verified all the same.

    A terminal gets it as text, with escapes for all else."""

    def __init__(self, fd: int) -> None:
        self.fd, self.resumable, self.name = fd, False, ""
        self.sha, self.received = hashlib.sha256(), 0
        self.decoder = (
            codecs.getincrementaldecoder("utf-8")("backslashreplace") if is_terminal(fd) else None
        )

    def claim(self) -> bool:
        return True

    def begin(self, offset: int) -> None:
        if offset != self.received:
            raise Failure(
                36,
                "cannot go on with standard output",
                "the file on the server has changed, and its beginning is already written",
                "run the same command again",
            )

    def write(self, chunk: memoryview) -> None:
        if not self.decoder:
            return super().write(chunk)
        self.sha.update(chunk)
        self.received += len(chunk)
        self.type(self.decoder.decode(chunk))

    def type(self, text: str) -> None:
        clean = (char if char in "\n\t" else printable(char) for char in text)
        write_all(self.fd, "".join(clean).encode())

    def finish(self, over: bool) -> None:
        if self.decoder:
            # the beginning of a character that never ended
            self.type(self.decoder.decode(b"", True))

    def keep(self) -> bool:
        return bool(self.received)

    def drop(self) -> None:
        pass


# --- the shell ---
def shell(args: argparse.Namespace) -> int:
    """Commands from a prompt or a pipe, one a line. If one fails, the next runs all the same."""
    terminal, code, args.cwd = is_terminal(0), 0, ""
    connected(args)
    if terminal:
        prepare_completion(args)
        say(f"connected to {endpoint(args)}; help lists the commands")
    while True:
        try:
            text = next_line(f"sixsockets {args.cwd}> " if args.cwd else PROMPT)
            failed = min(1, os.system(text[1:])) if text.startswith("!") else run_line(args, text)
            code = code or failed
        except KeyboardInterrupt as end:
            if not terminal or isinstance(end, Killed):
                raise
            say(str(end))
        except EOFError:
            break
    if args.link:
        say_bye(args)
    return 0 if terminal else code


def run_line(args: argparse.Namespace, text: str) -> int:
    """One line of the shell: the same words as on the command line."""
    own = argparse.Namespace(**vars(args))
    args.link = None  # a chat is typed into as well: there Tab shall not ask on its connection
    try:
        return run_command(own, text)
    finally:
        args.link, args.reached, args.cwd = own.link, own.reached, own.cwd


def next_line(prompt: str) -> str:
    """A typed line, or one from a pipe: there input() would write its prompt into the results."""
    if is_terminal(0) and is_terminal(1):
        return input(prompt)
    # closed before the start: the same as nothing in it
    text = sys.stdin.readline() if sys.stdin else ""
    if not text:
        raise EOFError
    return text.rstrip("\r\n")


def split(text: str) -> list[str]:
    """The words of a line, and what is asked for because they lack it."""
    try:
        words = completed(shlex.split(text))
        if "\0" in "".join(words):
            raise ValueError
        return words
    except ValueError:
        raise Failure(
            2,
            "cannot read that line",
            "a quote opens and does not close, or it holds a NUL",
            "put 'a b.txt'",
        ) from None


def completed(words: list[str]) -> list[str]:
    """What some commands need is asked for: no answer, no words."""
    alone = words[0].lower() if len(words) == 1 else ""
    if alone == "upload":
        return asked_upload()
    if WORDS.get(alone, alone) in ("put", "get", "delete"):
        name = next_line(WHICH)
        return [*words, name] if name else []
    return words


def asked_upload() -> list[str]:
    """`upload` alone asks for the path, and to whom it goes; no path means no upload."""
    path = next_line(WHICH)
    to = next_line("to whom (empty: the server): ").replace(",", " ").split() if path else []
    if len(to) == 2 and to[1].isdigit():
        return ["upload", *to, path]
    return ["send", path, "--to", ",".join(to)] if to else ["put", path] if path else []


def known_words(words: Sequence[str]) -> list[str]:
    """Our words for those of the labs; `upload IP PORT PATH` sends to that client."""
    verb, *rest = words
    verb = verb.lower()
    to_client = len(rest) > 2 and rest[1].isdigit() and not os.path.exists(rest[0])
    if verb == "upload" and to_client:
        return ["send", *rest[2:], "--to", address((rest[0].strip("[]"), rest[1]))]
    return [WORDS.get(verb, verb), *rest]


def change_folder(args: argparse.Namespace) -> None:
    """cd: names there begin in that folder from now on."""
    folder = remote_name(args, args.folder or "/")
    if folder:
        answer = require_ok(ask(args, "stat", folder), "list", folder)
        if answer.keys.get("type") != "dir":
            raise Failure(2, f"{printable(folder)} is not a folder", "it is a file there", "list")
    args.cwd = folder


def change_local_folder(args: argparse.Namespace) -> None:
    path = args.folder or "~"
    try:
        os.chdir(os.path.expanduser(path))
    except OSError as error:
        what = f"cannot change to {printable(path)} ({error.strerror})"
        raise Failure(26, what, "this is about the folder here", "!ls; cd changes there") from None
    tell(os.getcwd())


def show_shell_help(args: argparse.Namespace) -> None:
    lines = command_lines({**COMMANDS, **SHELL_COMMANDS})
    for row in f"{lines}\n{SHELL_HELP}".splitlines():
        tell(row)


def leave(args: argparse.Namespace) -> None:
    raise EOFError


# what the shell alone has
SHELL_COMMANDS = {
    "help": Command(show_shell_help, "these lines"),
    "cd": Command(change_folder, "the folder there that names begin in", ("[FOLDER]",)),
    "pwd": Command(lambda args: tell(f"/{args.cwd}"), "which one that is"),
    "lcd": Command(change_local_folder, "the same for the folder here", ("[FOLDER]",)),
    "bye": Command(leave, "the end (logout, stop, quit, Ctrl-D)"),
}
SHELL_HELP = """\
  !COMMAND            a command of this machine
COMMAND -h lists what else it takes. Names with spaces stand in quotes.
upload, download, ls, dir, rm and mv mean put, get, list, delete, rename;
upload IP PORT PATH sends to that client."""


# what the labs and other shells say for ours
WORDS = {
    "upload": "put",
    "download": "get",
    **dict.fromkeys(("ls", "dir"), "list"),
    "rm": "delete",
    "mv": "rename",
    **dict.fromkeys(("logout", "stop", "quit", "exit"), "bye"),
}


# commands that take names on the server, where Tab asks for them
NAMES_THERE = "cd", "delete", "get", "list", "mkdir", "rename", "stat"


def prepare_completion(args: argparse.Namespace) -> None:
    """History and the Tab key, where Python has readline: commands, then names there or here."""
    with contextlib.suppress(ImportError):
        import readline  # not at the top: loading it can write to a terminal

        found: list[str] = []

        def complete(text: str, state: int) -> Optional[str]:
            if state == 0:
                found.clear()
                before = readline.get_line_buffer()[: readline.get_begidx()].split()
                try:
                    found.extend(completions(args, known_words(before)[0] if before else "", text))
                except KeyboardInterrupt as error:  # readline would drop it
                    close_link(args)  # the rest of an answer may be on its way
                    raise_again(error)
            return found[state] if state < len(found) else None

        readline.set_completer_delims(" ")
        readline.set_completer(complete)
        # macOS has another library under that name
        other = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if other else "tab: complete")


def raise_again(error: KeyboardInterrupt) -> None:
    """What shall end this program ends it when readline waits for a key again."""
    if isinstance(error, Killed):
        signal.signal(signal.SIGALRM, end_at_signal)
        signal.setitimer(signal.ITIMER_REAL, REDRAW)


def completions(args: argparse.Namespace, verb: str, text: str) -> list[str]:
    """What a word of a line can become: a command, a name there, or a path here."""
    import glob  # not at the top: few need it

    if not verb:
        words = sorted({*COMMANDS, *WORDS, *SHELL_COMMANDS})
        return [f"{word} " for word in words if word.startswith(text)]
    if verb in NAMES_THERE:
        paths = names_there(args, text) if args.link else []
    else:
        paths = [path + "/" * os.path.isdir(path) for path in glob.glob(glob.escape(text) + "*")]
    return [shlex.quote(path) for path in sorted(paths)]


def names_there(args: argparse.Namespace, text: str) -> list[str]:
    """Names on the server that begin so; none that could move a cursor."""
    args.command, args.tries = "list", args.retries  # a loss is for the next command to make good
    above = text[: text.rfind("/") + 1]
    found: list[str] = []
    try:
        for entry in list_folder(args, remote_name(args, above or "."), False):
            path = above + entry.words[0].rpartition("/")[2] + "/" * (entry.verb == "dir")
            if path.startswith(text) and path == printable(path):
                found.append(path)
    except Failure:  # there is no such folder
        pass
    except (Lost, Broken, OSError):  # readline would drop it
        close_link(args)  # the rest of the answer may be on its way
    return found


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


# --- the command line ---
def endpoint(args: argparse.Namespace) -> str:
    return address((args.host, args.port))


def settle_endpoint(args: argparse.Namespace) -> None:
    """SIXSOCKETS_HOST, as HOST or HOST:PORT, serves where --host is left out."""
    if args.host is None:
        given = os.environ.get("SIXSOCKETS_HOST") or "127.0.0.1"
        # an IPv6 address without brackets has no port: it matches the second half alone
        host, port = re.findall(r"^(\[.*\]|[^:]*):([0-9]{1,5})$|$", given)[0]
        args.host, args.port = (host or given).strip("[]"), args.port or int(port or PORT)
    args.port = args.port or PORT
    if not 0 < args.port < 65536:
        raise Failure(2, f"there is no port {args.port}", "SIXSOCKETS_HOST names it", "HOST:9000")


def endpoint_flags(args: argparse.Namespace) -> str:
    """What others type to reach the same server; what they need not type is left out."""
    host = "" if args.host in ("127.0.0.1", "localhost") else f" --host {shlex.quote(args.host)}"
    port = f" --port {args.port}" if args.port != PORT else ""
    return host + port


def typed(words: Sequence[str]) -> str:
    """A command to give again, as it was typed; a password is for nobody's screen."""
    masked = [
        "..." if before == "--password" else re.sub("(?s)^(--password=).*", r"\1...", word)
        for before, word in zip(["", *words], words)
    ]
    return printable(shlex.join(masked))


def server_command(args: argparse.Namespace) -> str:
    """The command that starts the server which this client looks for."""
    return f"{SERVER}{endpoint_flags(args)}{' --tls' * wants_tls(args)}"


def common_flags(parser: argparse.ArgumentParser) -> None:
    """Before a command or after it: what stands before is the default of what stands after."""
    group = parser.add_argument_group("options of every command")
    flag = group.add_argument
    flag("--host", help="the server (default: SIXSOCKETS_HOST, else 127.0.0.1)")
    flag("--port", type=between(1, 65535), help="its port (default 9000)")
    trust_flags(group)
    seconds, times = between(0.01, 1e6, float), between(0, 1000)
    text = "silence allowed inside an answer (default 30)"
    flag("--timeout", type=seconds, default=30.0, metavar="S", help=text)
    text = f"attempts after a lost connection (default {RETRIES}: two minutes)"
    flag("--retries", type=times, default=RETRIES, metavar="N", help=text)
    flag("--nick", metavar="NAME", help="what others know this client by")
    flag("--force", action="store_true", help="replace what is different")
    text = "start over instead of going on where it was cut off"
    flag("--no-resume", dest="resume", action="store_false", help=text)
    text = "what makes two files the same: size and time (default), or SHA-256"
    flag("--compare", choices=("time", "content"), default="time", help=text)
    flag("--quiet", action="store_true", help="no progress, no last line")
    flag("--json", action="store_true", help="results on stdout, one JSON object a line")
    flag("--trace", action="store_true", help="print a line for each socket call")
    flag("--trace-hex", action="store_true", help="the same, with the first bytes")
    text = "store all that is sent, passwords too, for Wireshark"
    flag("--pcap", type=Capture, metavar="FILE", help=text)


# an argument: its name for us, how many of it, and what -h says of it
ARGUMENTS = {
    "NAME": ("name", None, "a file or folder there"),
    "NAME...": ("names", "+", "files, folders or patterns there"),
    "PATH...": ("paths", "+", "files and folders here, or - for standard input"),
    "[PATH]": ("folder", "?", "a folder or a pattern there (default: all that is shared)"),
    "OLD": ("old", None, "its name there"),
    "NEW": ("new", None, "the new name, or a folder there"),
    "FOLDER": ("folder", None, "the name of the new folder"),
    "[FOLDER]": ("folder", "?", "a folder (default: the first one)"),
}


def own_flags(command: str, flag: Callable[..., object]) -> None:
    if command in ("list", "delete"):
        flag("-r", action="store_true", help="folders with all that is in them")
    if command in ("get", "receive"):
        what = "a folder, a name, or - for standard output (default: here)"
        flag("-o", "--as", dest="output", metavar="DEST", help=what)
    if command in ("put", "send"):
        flag("--as", dest="name", metavar="NAME", help="what it is called there")
    if command in ("get", "put", "send"):
        # what others have is not ours to delete
        kept = "--delete" if command == "send" else ""
        tree_flags(lambda name, **more: name == kept or flag(name, **more))
    if command in ("get", "put", "send", "receive"):
        flag("--hidden", action="store_true", help="names that start with a dot too")
    if command == "put":
        flag("--into", metavar="FOLDER", help="the folder there, made when missing")
    if command == "delete":
        flag("--dry-run", action="store_true", help="show what would be done, and change nothing")
    if command == "send":
        flag("--to", action="append", metavar="HOST:PORT|NICK", help="who gets it, or several")
        flag("--all", action="store_true", help="everybody who is receiving")
    if command == "receive":
        who = "take files from these alone: nicks or addresses"
        flag(
            "--count", type=between(1, 1e9), default=-1, metavar="N", help="end after so many files"
        )
        flag("--from", dest="senders", nargs="+", metavar="NICK|ADDRESS", help=who)
        flag("--ask", action="store_true", help="ask before taking what somebody sends")


# what commands have instead that lack such a flag, and what a run knows besides
WITHOUT: dict[str, Any] = {
    "r": False,
    "into": None,
    "hidden": False,
    "exclude": None,
    "dry_run": False,
    "delete": False,
    "limit_rate": 0,
    "command": "",
    "cwd": None,  # in the shell the folder that names begin in; "" is the shared one
    "link": None,
    "reached": None,  # the flags of the last connection: the server was there
    "tries": 0,  # new connections since something went well
}


def build_parser() -> argparse.ArgumentParser:
    """For what stands before the command; command_parser() is for the rest."""
    usage = "client.py [OPTION ...] [COMMAND ...]"
    parser = Parser(prog="client.py", usage=usage, epilog=command_lines(COMMANDS))
    parser.formatter_class = functools.partial(
        argparse.RawDescriptionHelpFormatter, max_help_position=32, width=100
    )
    parser.set_defaults(**WITHOUT)
    version = f"%(prog)s {VERSION}, protocol {PROTOCOL}"
    parser.add_argument("--version", action="version", version=version)
    text = "default: a shell with these commands"
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help=text)
    common_flags(parser)
    return parser


def command_lines(commands: Mapping[str, Command]) -> str:
    return "\n".join(
        f"  {' '.join([name, *command.places]):18}  {command.text}"
        for name, command in commands.items()
    )


def command_parser(name: str, command: Command) -> argparse.ArgumentParser:
    parser = Parser(prog=f"client.py {name}")
    for place in command.places:
        key, many, text = ARGUMENTS[place]
        parser.add_argument(key, nargs=many, metavar=place.strip("[.]"), help=text)
    own_flags(name, parser.add_argument)
    common_flags(parser)
    return parser


def run_words(args: argparse.Namespace, words: Sequence[str]) -> int:
    """A command as on the command line; the shell has some more."""
    verb, *rest = known_words(words)
    known = COMMANDS if args.cwd is None else {**COMMANDS, **SHELL_COMMANDS}
    if verb == "bye":
        leave(args)
    if verb not in known:
        where = "python3 client.py -h" if args.cwd is None else "help"
        hint = f"{did_you_mean(verb, [*known, *WORDS])}{where} lists all"
        raise Failure(2, f"unknown command {printable(verb)}", "there is no such word", hint)
    args.command = verb
    command_parser(verb, known[verb]).parse_args(rest, args)
    prepare(args)
    return known[verb].run(args) or 0


def prepare(args: argparse.Namespace) -> None:
    settle_endpoint(args)
    if args.ask_password and args.password is None:
        args.password = ask_password(endpoint(args))


def run_command(args: argparse.Namespace, given: Union[str, Sequence[str]]) -> int:
    """Run a command or the shell; the exit code. After a failure the connection is closed."""
    args.tries = 0
    try:
        words = given
        if isinstance(given, str):
            words = split(given)
            args.typed = typed(words)
        if words or args.cwd is not None:
            return run_words(args, words) if words else 0
        prepare(args)
        return shell(args)
    except SystemExit as end:  # what argparse thinks of the words
        return int(end.code or 0)
    except (Failure, Lost, Broken, OSError) as error:
        problem = error
    except KeyboardInterrupt as end:
        close_link(args)
        end.args = end.args or ("\nstopped",)
        raise
    close_link(args)
    args.reached = None
    if isinstance(problem.__cause__, BrokenPipeError) and args.command in ("list", "who", "help"):
        return 0  # who reads the answer has seen enough, as head does
    failure = explained(args, problem)
    say_failure(failure)
    return failure.code


def explained(args: argparse.Namespace, problem: Exception) -> "Failure":
    """What ended a command, in three lines."""
    if isinstance(problem, Failure):
        return problem
    if isinstance(problem, Lost):
        return lost_failure(
            problem,
            56,
            f"connection to {endpoint(args)} lost",
            f"run the same command again; if no server is there: {server_command(args)}",
        )
    if isinstance(problem, Broken):
        return Failure(
            56,
            f"{endpoint(args)} broke the protocol ({printable(str(problem))})",
            "it sent what no file server sends",
            "server.py --trace shows it",
        )
    reason = getattr(problem, "strerror", None) or problem
    return Failure(
        26,
        f"cannot go on here ({reason})",
        "no single file is the cause: the current folder is gone, or there is no room "
        "for temporary files",
        "cd to a folder that exists, then run the same command",
    )


class Killed(KeyboardInterrupt):
    """kill and a closed terminal end the program like Ctrl-C, and the shell too.

    So no part stays that cannot be resumed."""


DEADLY = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


def end_at_signal(number: int, frame: object) -> None:
    # a system that goes down sends both: the second one shall not interrupt what the first one
    # began
    for each in DEADLY:
        signal.signal(each, lambda *_: None)
    raise Killed


def catch_signals() -> None:
    for number in DEADLY:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, end_at_signal)


def main(argv: Optional[Sequence[str]] = None) -> int:
    speak_utf8()
    args = build_parser().parse_args(argv)
    args.typed = typed(["python3", "client.py", *(sys.argv[1:] if argv is None else argv)])
    hear_ctrl_c()
    catch_signals()
    with contextlib.suppress(AttributeError):  # None: it was closed
        # as in file names: what is typed or piped need not be text
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        return run_command(args, args.words)
    except EOFError:  # bye
        return 0
    except KeyboardInterrupt as end:
        say(str(end))
        return 130
    finally:
        close_link(args)


if __name__ == "__main__":
    sys.exit(main())
