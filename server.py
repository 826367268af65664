#!/usr/bin/env python3
"""Share a folder over TCP with any number of clients, and hand files from client to client.

    python3 server.py                         share ./files with this machine, on 127.0.0.1:9000
    python3 server.py /srv/box                share that folder; or a single file
    python3 server.py --host 0.0.0.0 --tls    with other machines too: prints the command for them,
                                              password included
    python3 server.py --read-only             nothing can be changed
    python3 server.py --drop-box --host ::    hand-in: files can be added, and nothing else
    python3 server.py --min-free 1G --max-size 500M --max-clients 20
    printf 'list\\n' | nc -N 127.0.0.1 9000    client.py is the client; netcat is enough

THE PROTOCOL, version 1. Every byte belongs to a line, or to the body that a `data N` line
announced.

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

A body need not end in a line feed: the next line begins right behind its last byte, as here `end`
behind `abc`. A client should send `data`, the body and `end` in one call, or set TCP_NODELAY:
otherwise Nagle's algorithm holds the last of them back for 40 ms.

    C: put abc.txt
    C: data 3
    C: abcend
    S: ok put abc.txt size=3 sha256=ba7816bf… verified=no

A put that was interrupted goes on. The client asks how much is there, and tells the digest of as
many bytes of its own:

    C: stat film.mp4 size=3145728 mtime_ns=1700000000500000000
    S: err stat film.mp4 reason=no-such-file part=2097152
    C: put film.mp4 size=3145728 mtime_ns=1700000000500000000 offset=2097152 sha256=(of the first)
    S: note film.mp4 offset=2097152
    C: data 1048576
    C: (1048576 bytes)
    C: end sha256=(of the whole file)
    S: ok put film.mp4 size=3145728 sha256=(of the whole file) verified=yes

Lines. A line is a verb and words with single spaces between them. It ends with LF, or CRLF, and has
at most 32768 bytes with that. Verbs and keys are case-insensitive. A word is positional, or
key=value. Unknown keys are ignored; if a key is given twice, the last value counts. An empty line
means nothing. In names and values a space, `%`, `=` and every byte that is not part of a printable
UTF-8 character are written %XX; other bytes may be. No line has a control character (a tab neither,
not even in the text of `say`), a space at its beginning or end, two spaces in a row (but in such a
text), or a `%` without two hex digits: these are bad-line. Numbers are decimal digits, at most
8999999999999999999; mtime_ns (nanoseconds since 1970) may begin with a minus sign.

Names. A name is a path below the shared folder, with `/` between its components: at most 4096 bytes
and 64 components. Refused as bad-name: an empty component, `.`, `..`, a leading `/`, NUL, and
`.six-<32 hex digits>.part`; on Windows also \\ : < > | ? * ", devices, and a trailing dot or space.
Without --hidden a name is refused as hidden-name if a component of it starts with a dot. Links are
not followed.

Requests and answers. The server speaks first: the greeting above. A client may send requests
without waiting for the answers, which come in the same order: `ok VERB NAME… key=value…` or `err
VERB NAME… reason=CODE …`. They repeat the request's positional words (err two at most, each cut off
after 900 characters), but `send` only NAME, and `help`, `say` and `tell` none. Lines that begin
with `note` may come before an answer. received=N and checked=N tell how far the server is, at most
ten times a second; offset=N answers a `put` that names one; in `list`, reason=CODE tells what was
left out. Any request except help, say and tell may have the key nick=NAME, which is what others
know this client by from now on. It has 1 to 32 letters, digits, `_`, `.` or `-`, else it is refused
as bad-nick. If another client has that nick already, in whatever case, a number is added.

    help                    help VERB WORDS -- TEXT, a line for each verb, then ok help count=N
    list [FOLDER] [deep=yes]
                            lines file NAME size=N mtime_ns=N [exec=yes] and dir NAME mtime_ns=N
                            with full names, then ok list count=N. deep=yes lists all folders below
                            too, each after the lines of the folder that it is in
    stat NAME [digest=yes] [size=N mtime_ns=N]
                            ok stat NAME type=file size= mtime_ns= [exec=yes] [sha256=], or type=dir
                            mtime_ns=. If size and mtime_ns are given, and an interrupted put of
                            such a file left N bytes, the answer has part=N, even if it is err
    get NAME                ok get NAME size= mtime_ns= [exec=yes], then a body
    get NAME offset=N sha256=DIGEST
                            for a client that has N bytes with this SHA-256. If these are the file's
                            first N bytes: ok get … offset=N, and a body that starts there. If not:
                            the whole file, and no offset
    put NAME [size=N] [mtime_ns=N] [exec=yes] [over=yes]
                            a body follows; then ok put NAME size= sha256= verified=yes, or =no if
                            `end` had no digest. over=yes replaces a file
    put NAME size=N mtime_ns=N offset=N sha256=DIGEST …
                            for a client that would go on after its first N bytes, which have this
                            SHA-256. The server answers first with note NAME offset=N if an
                            interrupted put of this file left bytes that begin with these, else
                            with offset=0, or with err; then follows a body that starts there
    delete NAME             a file or an empty folder
    rename OLD NEW [over=yes]
                            also into another folder
    mkdir NAME              makes a folder, and the folders above it that are missing
    auth nonce=HEX proof=HEX
                            ok auth proof=HEX: see Auth
    who                     client HOST:PORT [nick=NAME] mode=MODE [you=yes] lines, then ok who
                            count=N. MODE is receive or chat for a client that waits in it, else the
                            verb that is carried out, or idle
    receive                 ok receive you=HOST:PORT [nick=NAME]; then the connection waits, below
    send TO NAME [size=N] [mtime_ns=N] [exec=yes] [type=dir]
                            a body follows, unless type=dir. TO is one or more HOST:PORT or nicks,
                            with commas between. A line got … for each receiver, then ok send NAME
                            receivers=N verified=N, below
    chat [NICK]             up to 50 lines `said` from before, then ok chat [NICK] [nick=NAME]
                            you=HOST:PORT count=N, below. In the chat: another nick, and no lines
    say TEXT                the rest of the line as it is, at most 4000 bytes, to all others in the
                            chat; ok say
    tell NICK TEXT          the same to one in the chat alone; NICK is a nick or HOST:PORT; ok tell
    ping                    ok ping
    bye                     ok bye, and the server closes
    upload, download, and logout, stop, quit are other words for put, get and bye.

Bodies. `data N` and exactly N bytes, any number of times; then `end sha256=DIGEST`. The digest is
that of the whole file, even if the body starts at an offset. A sender that gives up sends `abort
reason=…` instead (reason=changed: the file changed while it was sent). `note NAME` between them
announces that more may come. A body without its `end` never becomes a file. Another verb inside a
body ends it like abort, and is carried out then. Outside a body `data` is read and dropped, and
`end`, `abort` and `note` mean nothing. So a server may refuse a put before its body or inside it,
and understands the next line even if the client does not know yet. A client that wants no more of a
body from the server closes.

Auth. A server with a password announces it in its greeting. It refuses everything but help, ping,
auth and bye until the client has proved that it knows the password, which is never sent. This is
how it goes with the password `secret`, without TLS (long lines are broken here):

    S: sixsockets 1 max-line=32768 auth=scrypt-hmac-sha256 salt=6b1f0a92c4d85e37b0a1934ce27d5f68
       nonce=0c9d2be871f34a56907be8d3142fa5c6 you=…
    C: auth nonce=a4e15b7c03d98f62175c0eb94d3a8f21
       proof=e44b51273e139859cfa496f74d825cfac867a2b4cfd9a004a520753f6ec39eeb
    S: ok auth proof=37116c4fdc7a203e34491b9a0b93bdaa7c141a258e87d5192ebd77edd0034a25

The client makes its own nonce: 16 to 64 random bytes in lower-case hex digits, new for each
connection. In Python, where scrypt is that of RFC 7914, of the password's UTF-8 bytes:

    key = hashlib.scrypt(b"secret", salt=bytes.fromhex(salt), n=16384, r=8, p=1, dklen=32)
    text = f"client {servers_nonce} {my_nonce} {certificate}".encode()
    proof = hmac.new(key, text, "sha256").hexdigest()

certificate is `-`, or with TLS the SHA-256 of the server's certificate (DER) in hex. The server's
proof is the same with the word server instead of client; a client goes no further if the server
cannot give it. After a wrong proof the server closes.

Why a client that was given a password which the server made (89 random bits) needs no --pin: it
takes any certificate, sends `auth` and nothing else, and checks the server's proof. Somebody in
between, who ends TLS with a certificate of his own and relays everything, has on the client's side
another certificate than the server has. So the client's proof is wrong at the server, and the
server's at the client; he cannot make one himself, since both need the key. To answer the client
with its own proof, or with one of an earlier connection, does not help him: the word and the nonces
differ. A client that asked for TLS does not go on without it. What he gets is one proof, on which
he can try passwords without anybody's help: 2^89 of them, at 50 ms each. A password of a person's
own could be guessed in this way, so it needs --pin or --cacert.

After ten wrong proofs within a minute from one address, the server answers all new connections from
there with `err - reason=busy retry=SECONDS` instead of the greeting (under TLS with the alert
access_denied), until the minute is over.

TLS. With --tls the client begins with a TLS handshake (1.2 or later), and all the rest is the same
inside. A client that begins without TLS, or says nothing for five seconds, is answered without TLS:

    C: list
    S: err - reason=tls-only

From client to client. A connection that has sent `receive` waits for what others send. This is what
Bob sees on his, who takes the first file, refuses the second inside its body, and is left with a
third whose sender goes away (S is the server, B is Bob):

    B: receive nick=bob
    S: ok receive you=127.0.0.1:51240 nick=bob
    S: put notes.txt size=6 from=127.0.0.1:51234 nick=anna
    S: data 6
    S: hello⏎
    S: end sha256=5891b5b5…
    B: note notes.txt received=6
    B: ok put notes.txt size=6 sha256=5891b5b5… verified=yes
    S: put film.mp4 size=9000000 from=127.0.0.1:51234 nick=anna
    S: data 524288
    S: (524288 bytes)
    B: err put film.mp4 reason=disk-full
    S: abort reason=refused
    S: put last.txt size=6 from=127.0.0.1:51234 nick=anna
    S: data 3
    S: hel
    S: abort reason=sender-gone
    B: err put last.txt reason=aborted

And this is what Anna sees, who sends the first one to Bob and to somebody who is not there:

    A: send bob,carl notes.txt size=6
    A: data 6
    A: hello⏎
    A: end sha256=5891b5b5…
    S: got carl err put notes.txt reason=no-such-client
    S: got 127.0.0.1:51240 ok put notes.txt size=6 sha256=5891b5b5… verified=yes nick=bob
    S: ok send notes.txt receivers=2 verified=1

The receiver's side. The server sends these, and the client answers as a server does:

    put NAME [size=N] [mtime_ns=N] [exec=yes] from=HOST:PORT [nick=NAME]
                            and a body, in which `note NAME` may stand between the lines; then ok
                            put NAME size= sha256= verified=yes [as=NAME-IT-HAS-THERE], or err put
                            NAME reason=CODE [why=TEXT], as soon as the client knows
    mkdir NAME from=HOST:PORT [nick=NAME]
                            ok mkdir NAME or err mkdir NAME reason=CODE

The next put may come before the answer to the one before it; the answers come in the same order.
During a body the client sends note NAME received=N now and then. The sender chose NAME: the
receiver must check it. A body that the client has refused ends with abort reason=refused, or with
its end if that was on its way. If its sender is gone or gives up, it ends with abort and another
reason. A help, who, ping or say (without nick) that comes inside a body is carried out after it.
Any other request ends the waiting: inside a body it means that the client does not want the file,
and the answer to it ends the body.

The sender's side. TO is HOST:PORT or a nick, or several with commas between. A sender gets all its
receivers at once, first come first served. While one of them is busy with another sender it gets
`note NAME waiting=N` (how many still receive), and has none of them; it keeps them from later
senders only when it has waited for --timeout seconds. Then it gets `note NAME received=N`: what the
slowest receiver has. As soon as a receiver's result is known, it gets `got HOST:PORT ok put NAME
size= sha256= verified= [as=] [nick=]` or `got HOST:PORT err put NAME reason=CODE [why=] [nick=]`
(mkdir with type=dir). Instead of HOST:PORT a word of TO stands there if nobody was reached by it.
verified=yes means that the receiver says so, and that its digest is the sender's. The reason is the
receiver's own, or no-such-client, not-receiving, yourself, gone (it closed, or broke the protocol),
stalled, or left (it asked for something else, or said ok before the body's end). The last line is
ok send NAME receivers=N verified=N if one receiver at least has the file, and else err send NAME
reason=not-received, which may come inside the body. A sender may send the next `send` before the
answer. It may close its writing side after the last byte, as nc -N does, but the connection only
after the answer: the server notices at the next note that a sender is gone.

Nothing is stored. The server announces with `data` what it holds, and reads on when every receiver
has taken that: the slowest one sets the pace. It closes a receiver that stands still for --timeout
seconds (stalled): one that reads nothing, or that has been sent all and neither answers nor gets on
by 1024 bytes a second. A sender that sends nothing but notes for so long, while others wait for its
receivers, is refused (stalled).

Chat. After `ok chat`, until the next request other than help, who, ping, say, tell and chat, these
lines come between answers: said from=NAME TEXT (one space, then the text to the end of the line),
told from=NAME TEXT (to this client alone), joined NAME at=HOST:PORT, left NAME. NAME is the nick or
HOST:PORT; joined has was=NAME too where a client only takes another name. One client may say 40
lines (or join so often) at once and 20 a second; more are refused as too-fast. For a client that
does not read, 200 lines are kept; of more it loses the oldest, and gets `note chat lost=N` before
the next.

Reason codes. The connection goes on after these; every err that comes inside the body of a put has
received=N, the bytes that have come.

    no-such-file            there is none, or (with one file shared) it is another
    no-such-folder          a folder above it is missing
    exists                  the name is taken (a file: with size= mtime_ns=, but for mkdir)
    is-a-folder             a file was expected, or a folder's name cannot be a file's
    not-a-folder            a file was found where a folder was expected
    not-a-file              a link or special file
    not-empty               delete of a folder with something in it
    not-permitted           the system does not allow it, or (with why=) it would be part of a
                            program that runs later: a script of ours, or what Python imports
    not-possible            such as renaming a folder into itself
    bad-name                see Names; also what this system cannot call a file
    too-deep                more than 64 components, also of what is in a folder that is renamed;
                            as a note, what `list` does not look into
    hidden-name             a component starts with a dot, and the server has no --hidden
    read-only               the server has --read-only
    drop-box                the server has --drop-box (stat: with part= for an interrupted put)
    too-large               more than --max-size (limit=)
    too-long                more bytes than size= announced (size=); say and tell: text (limit=)
    incomplete              fewer bytes than size= announced (size=)
    wrong-digest            the digest of `end` is another (sha256= of what came)
    aborted                 the body ended with abort, or with another request
    bad-number              the value of a key is no number
    disk-full               no room, or less than --min-free would be left
    disk-read-only          the disk
    busy                    another connection writes this very part and is not silent, or another
                            program has locked the folder, or the server has no descriptor left
    bad-nick                see Requests
    not-received            of a send: no receiver has the file (receivers= verified=0)
    stalled                 of a send: see The sender's side
    not-in-chat             say or tell before chat
    no-such-client          tell: nobody of that name is in the chat
    too-fast                the chat's limit (limit=)
    auth-required           the password is not proved yet
    not-needed              auth without a password, or a second time
    usage                   too few or too many words (usage=)
    unknown-verb            (try=help)
    failed                  the system gave another error

The server closes after these. They come as `err - reason=`, and instead of the greeting where that
is said; wrong-password and busy also as `err auth reason=`.

    bad-line                see Lines
    line-too-long           more than 32768 bytes
    bad-number              of `data`
    this-is-http            a request of HTTP
    this-is-tls             TLS, where the server has none
    tls-only                (instead) the reverse
    server-full             (instead) there are --max-clients; also no thread or descriptor
    busy                    (instead) too many wrong passwords from there (retry= seconds)
    wrong-password          the proof is wrong
    taken-over              another connection puts the same file (name, size, mtime_ns), and this
                            one had been silent for a second

It closes too if a line, once begun, or a body stands still for --timeout seconds, or if the
password is not proved within them. After that a client may be silent between requests for ever,
with one exception: if the server is full, and one address (of IPv6: 64 bits) has more than half of
all places, a client from another address takes the place of the one there that has been silent
longest. Clients in receive or chat go last, and none goes while its request is carried out. If the
connection ends inside a put of 1 MiB or more that announced size and mtime_ns, what was received is
kept for seven days. What no put can go on with goes at once, or an hour after the server was
killed.

Drop box. With --drop-box a client can put, mkdir and resume, and nothing else (help, ping, auth and
bye are allowed; stat is always err, with part= if the client's own interrupted put left bytes).
What it puts goes to a folder of its own: that of its nick (which may have no number here), or else
of its address; missing folders are made. If a name is taken, the file gets a number, as in
notes (1).txt: the answer to put has as=NAME-IT-HAS-THERE. The log tells who handed in what; with
--json it is one object a line, and handed_in, by, name, size, sha256, verified tell it.

Limits. On a loopback address the server asks for no password unless one is given. On any other it
makes one and prints it, unless --open does without. Without --tls others can read the traffic, and
try passwords on what they have read. A file is written under a hidden name and renamed when its
length and digest are right: readers see the old file or the new one, whole.
"""

# The map
#
# Begin with answer(), then do_get() and do_put(): one function for each verb of the protocol.
# The sections, in the order of the file:
#   the conversation   converse(), answer(), do_get(), do_put(), do_send(), Command
#   what it stands on  Line, Wire, Folder, Part, send_body(), receive_body()
#   one client         walk(), Session, Session.run(), Session.wait(), Session.find()
#   client to client   Bell, Lobby, Lobby.take(), Relay, Relay.body()
#   the server         Server, Server.run(), Server.accept(), Server.handle(), serve()
#   shared fences      Guard, Door, is_program(), Capture, Traced, Stop, bind(), Failure, Parser
#   the command line   announce(), build_parser(), main()
#
# Threads: the main thread runs Server.run(). Each client has one that runs Session.run(); it alone
# reads and writes the connection, for its whole life. Other threads leave what they have for it in
# Session.queue and ring its Bell.
# States of a connection: TLS and greeting; requests, `admitted` once the password is proved;
# waiting in `receive` or `chat` (`mode`, Session.wait()); hung up on: Session.hang_up() reads
# until the client has read why.

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
import contextlib
import errno
import functools
import hashlib
import io
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
import struct
import threading
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Optional, Union

if TYPE_CHECKING:
    import ssl

VERSION = "1.0"
PROTOCOL = "1"
PORT = 9000  # where client.py looks by itself
CLIENT = "python3 client.py"
GRACE = 2.0  # seconds that Ctrl-C leaves for transfers under way
TLS_WAIT = 5.0  # seconds in which a TLS client begins; who waits for a greeting is told tls-only
LINGER = 1.0  # seconds that a client has for reading why the server closes
MAX_REFUSED = 64  # clients over the limit that are kept that long
ACCEPT_PAUSE = 0.5  # seconds to the next accept() when the system has no descriptor or memory left
NOTE_PAUSE = 0.1  # seconds from one note to the next
DIGESTS = 2  # files that are read at once for nothing but their digest
STALE = 1.0  # seconds of silence after which the writer of a part gives way to a new one
# how often a new writer of a part tries to get it from the old one, and seconds between two tries
TRIES, RETRY = 40, 0.05
# characters of each word that an error repeats: three words, each character as twelve bytes, are
# shorter than MAX_LINE
MAX_ECHO = 900
# seconds of silence after which a client that waits for another is told that the server is there
LIFE = 1.0
# what a receiver's answer tells the sender, and how many characters of each: without a limit the
# line could be longer than MAX_LINE
RESULT_KEYS = {
    "reason": 32,
    "why": 200,
    "received": 20,
    "as": MAX_ECHO,
    "size": 20,
    "sha256": 64,
    "verified": 3,
}
SENDS_AHEAD = 200  # files of one sender that its receivers have not answered yet
LEAST_RATE = 1024  # bytes a second by which a receiver that has been sent all must get on
POSTPONED = 16  # requests of a receiver that wait for the end of the file which it is sent
# letters of any script, digits: nothing that could pass for an address or for more than a name, and
# none of the four letters that nobody can see (the fillers of Hangul)
NICK = re.compile(r"(?:(?![\u115f\u1160\u3164\uffa0])[\w.-]){1,32}")
MAX_SAY = 4000  # bytes of one line of the chat
SAY_RATE, SAY_BURST = 20.0, 40.0  # lines a second that one client may say, and how many at once
MAX_TARGETS = 2000  # receivers that one line can name: each is answered with a line of its own
HISTORY = 50  # lines of the chat that a client gets when it joins
UNHEARD = 200  # lines that are kept for a slow reader; of more it loses the oldest
AT_ONCE = 16  # how many of them leave together
SWEEP = 3600.0  # seconds from one search for old parts to the next


# --- the conversation: a request comes, a command answers ---
def converse(session: "Session") -> None:
    """A client's requests, one after another, until it leaves or the server stops."""
    while not session.done and not session.server.stop.asked:
        if not session.has_unread():
            session.flush()  # before Ctrl-C may take it for idle
            session.between_requests = True
        try:
            request = session.message(idle=session.admitted)
        except Ended:  # it may have closed only its own half, and await what receivers answer
            session.finish_sends()
            raise
        session.between_requests = False
        if request.verb in ALIASES:
            request = request._replace(verb=ALIASES[request.verb])
        session.doing = session.doing or "idle"  # it has said something, which may be refused
        answer(session, request)
    session.finish_sends()


def answer(session: "Session", request: "Line") -> None:
    """Run one command. If it is refused, tell the client why; then log the result."""
    verb, words = request.verb, request.words
    if verb in ONLY_IN_BODY:  # the rest of a body that was refused; line() drops the bytes
        return
    session.started = session.last_note = time.monotonic()
    session.moved, result = 0, "ok"
    try:
        if session.relays and verb != "send":  # answers come in the order of the requests
            session.finish_sends()
        command = find_command(session, verb, words)
        session.prepare(request)
        command.run(session, request, *words)
    except (Refused, BadNumber, OSError) as error:
        result = reason_of(error)
        session.finish_sends()
        repeated = {"send": words[1:], "say": [], "tell": []}.get(verb, words)[:2]
        named = [word[:MAX_ECHO] for word in (verb, *repeated)]
        session.send_line("err", *named, reason=result, **getattr(error, "keys", {}))
    told = HANDED_IN if session.args.drop_box else UNCHANGED
    if (verb, result) not in told and (verb not in UNLOGGED or result not in UNLOGGED_RESULTS):
        # somebody may have typed the password after `auth`
        what = " ".join([verb, *words]) if verb not in ("auth", "tell") else verb
        elapsed = time.monotonic() - session.started
        session.log(f"{what[:300]}: {session.moved} bytes, {elapsed:.3f} s, {result}")


def find_command(session: "Session", verb: str, words: Sequence[str]) -> "Command":
    """What the table says of a verb, after the checks that hold for all commands."""
    found = COMMANDS.get(verb)
    if found is None:
        raise Refused("unknown-verb", **{"try": "help"})
    if not found.least <= len(words) <= found.most:
        raise Refused("usage", usage=f"{verb} {found.usage}")
    if not session.admitted and verb not in BEFORE_AUTH:
        raise Refused("auth-required")
    if found.changes and session.args.read_only:
        raise Refused("read-only")
    if session.args.drop_box and verb not in DROPPING:
        raise Refused("drop-box")
    return found


def do_help(session: "Session", request: "Line", topic: str = "") -> None:
    for verb, command in COMMANDS.items():
        usage = f"{command.usage} " if command.usage else ""
        session.put(f"help {verb} {usage}-- {command.text}\n".encode())
    session.ok(request._replace(words=[]), count=len(COMMANDS))


def do_list(session: "Session", request: "Line", name: str = "") -> None:
    folder = session.folder(check_name(name, session.args.hidden) if name else [])
    deep, count = request.is_set("deep"), 0
    for full, _, found in walk(folder, name, deep, session.visible):
        if isinstance(found, os.stat_result):
            count += describe(session, full, found, deep)
        else:  # what the system does not let it list
            session.send_line("note", full, reason=reason_of(found))
    session.ok(request, count=count)


def describe(session: "Session", full: str, status: os.stat_result, deep: bool) -> bool:
    """One entry of a listing; False for what is neither a file nor a folder."""
    if stat.S_ISREG(status.st_mode):
        session.send_line("file", full, **facts(status))
    elif stat.S_ISDIR(status.st_mode):
        session.send_line("dir", full, mtime_ns=status.st_mtime_ns)
    else:
        if deep:
            session.send_line("note", full, reason="not-a-file")
        return False
    return True


def digest_in_turn(session: "Session", name: str, fd: int, upto: int, sha: "hashlib._Hash") -> str:
    """The digest of a file's first bytes. Few at once read a file for that.

    Many would leave short requests no processor time. Those that wait say so."""
    tell, turns = session.progress(name, "checked"), session.server.digest_turns
    while not turns.acquire(timeout=NOTE_PAUSE):
        tell(0)
    try:
        return digest(fd, upto, sha, tell)
    finally:
        turns.release()


def do_stat(session: "Session", request: "Line", name: str) -> None:
    part_size = left_by_interruption(session, request, name)
    if session.args.drop_box:  # not even whether there is such a file
        raise Refused("drop-box", part=part_size)
    try:
        status = session.existing(name)[2]
    except Refused as refusal:
        raise Refused(refusal.reason, part=part_size) from None
    if stat.S_ISDIR(status.st_mode):
        return session.ok(request, type="dir", mtime_ns=status.st_mtime_ns)
    sha256 = None
    if request.is_set("digest"):
        with session.opened(name) as (fd, status):
            sha256 = digest_in_turn(session, name, fd, status.st_size, hashlib.sha256())
    session.ok(request, type="file", **facts(status), sha256=sha256, part=part_size)


def left_by_interruption(session: "Session", request: "Line", name: str) -> Optional[int]:
    """How much of such a file an interrupted put left, if the request names its mtime_ns."""
    with contextlib.suppress(OSError, Refused):
        if "mtime_ns" in request.keys:
            return session.part(request, name).length() or None
    return None


def do_get(session: "Session", request: "Line", name: str) -> None:
    offset, sha = request.number("offset"), hashlib.sha256()
    with session.opened(name) as (fd, status):
        if offset and not begins_alike(session, request, fd, status.st_size, sha):
            offset, sha = 0, hashlib.sha256()
            os.lseek(fd, 0, os.SEEK_SET)
        session.send_line("ok", "get", name, **facts(status), offset=offset or None)
        try:
            reason = send_body(session, fd, status.st_size - offset, status, sha, session.count)
        except Lost as lost:
            size = status.st_size - offset
            session.log(f"get {name}: cut at {session.moved} of {size} bytes ({lost})")
            raise
    if reason:
        session.log(f"get {name}: given up, it {reason} meanwhile")


def begins_alike(
    session: "Session", request: "Line", fd: int, size: int, sha: "hashlib._Hash"
) -> bool:
    """Whether our file begins with the bytes that the client has and gives the digest of."""
    offset = request.number("offset")
    return offset <= size and request.keys.get("sha256") == digest_in_turn(
        session, request.words[0], fd, offset, sha
    )


def do_put(session: "Session", request: "Line", name: str) -> None:
    over, drop_box = request.is_set("over"), session.args.drop_box
    if drop_box and over:
        raise Refused("drop-box")
    part = session.part(request, name, make=drop_box)
    session.check_room(part.size or 0, part)
    if over or drop_box or request.body is None:
        session.check_vacant(part.folder, part.leaf, over or drop_box)
    else:  # store() finds out by itself whether there is such a file
        part.folder.protect(part.leaf, None)
    session.claim(part)
    try:
        verified = store(session, request, name, part)
    except (Lost, Broken) as lost:
        kept = "kept for seven days" if session.keep(part) else "nothing is kept"
        whole = "?" if part.size is None else part.size
        session.log(f"put {name}: cut at {part.received} of {whole} bytes ({lost}); {kept}")
        raise
    except (OSError, Refused) as error:
        reason, keys = reason_of(error), getattr(error, "keys", {})
        if reason == "busy":  # another program has locked the folder: the client may come back
            session.keep(part)
        if reason == "exists" and (there := part.folder.stat(part.leaf)):
            reason = unfit(there) or reason
            keys = facts(there) if reason == "exists" else keys
        raise Refused(reason, **{**keys, "received": part.received}) from None
    finally:
        session.moved = part.received
        part.drop()
        session.disclaim(part)
    given = "/".join([*name.split("/")[:-1], part.leaf]) if drop_box else ""
    session.put(stored_answer(name, part, verified, given))
    if drop_box:
        session.log_handed_in(name, given, part, verified)


def store(session: "Session", request: "Line", name: str, part: "Part") -> str:
    """Receive a body into its part, and give that its name: whether it was verified."""
    if "offset" in request.keys:
        agree_on_offset(session, request, name, part)
    else:
        part.begin(0)
    verified = receive_body(
        session,
        request,
        part,
        lambda announced: session.check_room(announced, part),
        session.progress(name, "received"),
    )
    if session.args.drop_box:
        finish_beside(part)
    else:
        part.finish(request.is_set("over"))
    return verified


def finish_beside(part: "Part") -> None:
    """Its name, with the first number that is free if there is such a file: notes (1).txt."""
    stem, ending = os.path.splitext(part.leaf)
    numbered = (f"{stem} ({number}){ending}" for number in itertools.count(1))
    for leaf in itertools.chain([part.leaf], numbered):
        part.leaf = leaf
        with contextlib.suppress(FileExistsError):
            part.finish(over=False)
            break


def agree_on_offset(session: "Session", request: "Line", name: str, part: "Part") -> None:
    """Go on after the client's first N bytes if the part begins with them, else at 0; tell it."""
    offset = part.received = request.number("offset")  # so that an interruption does not lose it
    if not begins_alike(session, request, part.fd, part.length(), part.sha):
        offset = 0
    part.begin(offset)
    session.send_line("note", name, offset=offset)


def do_delete(session: "Session", request: "Line", name: str) -> None:
    folder, leaf, status = session.existing(name)
    folder.protect(leaf, status)
    with folder.locked():
        folder.remove(leaf, stat.S_ISDIR(status.st_mode))
    session.last_folder = "", session.root
    session.ok(request)


def do_rename(session: "Session", request: "Line", old: str, new: str) -> None:
    folder, leaf, status = session.existing(old)
    other, other_leaf = session.find(new)
    here, there = (folder, leaf), (other, other_leaf)
    is_folder = stat.S_ISDIR(status.st_mode)
    # "a" and "A" where case means nothing: only one of them is listed
    respelt = is_same(here, there) and not all(
        name in place.entries() for place, name in (here, there)
    )
    over = respelt or request.is_set("over") and not is_folder
    folder.protect(leaf, status, is_folder)
    if not respelt:
        session.check_vacant(other, other_leaf, over, is_folder)
    if is_folder and new.count("/") > old.count("/"):
        check_depth(session, folder.below(leaf), new)
    with folder.locked(other):
        folder.rename(leaf, other, other_leaf, replace=over)
        differ = folder.identity(leaf) != other.identity(other_leaf)
        if differ and not respelt and is_same(here, there):
            folder.remove(leaf)  # os.replace() does nothing between two links of one file
    session.last_folder = "", session.root
    session.ok(request)


def is_same(*places: tuple["Folder", str]) -> bool:
    """Whether two names are of the same file or folder."""
    status, other = (folder.stat(name) for folder, name in places)
    return status is not None and other is not None and os.path.samestat(status, other)


def check_depth(session: "Session", folder: "Folder", name: str) -> None:
    """Refuse to rename a folder if that would put something in it too far down."""
    tell = session.progress(name, "checked")
    for count, (_, _, found) in enumerate(walk(folder, name)):
        if isinstance(found, Refused):
            raise found
        tell(count)


def do_mkdir(session: "Session", request: "Line", name: str) -> None:
    folder, leaf = session.find(name, make=True)
    try:
        folder.make(leaf)
    except FileExistsError:
        if not session.args.drop_box:  # there it is not told
            raise
    session.ok(request)


def do_auth(session: "Session", request: "Line") -> None:
    """Check the client's proof of the password and give ours. A wrong proof ends the connection."""
    server, nonce = session.server, request.keys.get("nonce", "")
    guard = server.door.guard
    if guard is None or session.admitted:
        raise Refused("not-needed")
    if not NONCE.fullmatch(nonce):
        raise Refused("usage", usage=f"auth {COMMANDS['auth'].usage}")
    nonces, host = (session.nonce, nonce, server.door.pin), host_of(session.peer)
    proof = auth_proof(server.key, "client", *nonces)
    reason = guard.judge(host, same_proof(request.keys.get("proof", ""), proof))
    if reason:
        session.done, wait = True, guard.wait(host)
        if reason == "busy":
            raise Refused(reason, retry=wait)
        if wait:
            session.log(f"auth: {MAX_WRONG} wrong passwords: {host} is answered busy for {wait} s")
        raise Refused(reason)
    session.admitted = True
    session.send_line("ok", "auth", proof=auth_proof(server.key, "server", *nonces))


def do_ping(session: "Session", request: "Line") -> None:
    session.ok(request)


def do_bye(session: "Session", request: "Line") -> None:
    session.ok(request)
    session.done = True


def do_who(session: "Session", request: "Line") -> None:
    everybody = sorted(session.server.sessions.copy(), key=lambda each: each.connected)
    for each in everybody:
        mode = each.mode or ("idle" if each.is_idle() else each.doing)
        you = "yes" if each is session else None
        session.send_line("client", each.peer, nick=each.nick or None, mode=mode, you=you)
    session.ok(request, count=len(everybody))


def do_receive(session: "Session", request: "Line") -> None:
    session.share()
    session.ok(request, you=session.peer, nick=session.nick or None)
    session.mode = "receive"
    session.lobby.wake_senders()


def do_send(session: "Session", request: "Line", to: str, name: str) -> None:
    """Pass a body on. Its receivers may answer while the next one is on its way."""
    verb = "mkdir" if request.keys.get("type") == "dir" else "put"
    check_name(name)
    offer = line(
        verb,
        name,
        size=request.number_or_none("size"),
        mtime_ns=request.number_or_none("mtime_ns"),
        exec="yes" if request.is_set("exec") else None,
        **{"from": session.peer, "nick": session.nick or None},
    )
    wanted, refused = find_receivers(session, to)
    same = bool(session.relays) and session.relays[-1].wanted == wanted
    session.finish_sends(SENDS_AHEAD if same else 0)
    session.share()
    relay = Relay(session, request, verb, wanted, len(wanted) + len(refused))
    session.lobby.take(relay)
    refused.update((each.peer, "not-receiving") for each in set(wanted).difference(relay.wanted))
    relay.results.extend((target, refusal(reason), "") for target, reason in refused.items())
    session.relays.append(relay)
    try:
        session.gathered += offer  # without a wait that can fail: now each receiver owes an answer
        if verb == "mkdir":
            relay.end(b"")
        else:
            relay.body(request)
    except (Lost, Broken, Refused) as error:
        relay.give_up(reason_of(error) if isinstance(error, Refused) else "sender-gone")
        session.relays.remove(relay)
        session.moved = relay.moved
        if isinstance(error, Lost):
            session.log(f"send {name}: cut after {relay.moved} bytes ({error})")
        raise


def find_receivers(session: "Session", to: str) -> "tuple[list[Session], dict[str, str]]":
    """The clients that a list of HOST:PORT or nicks names; and why others cannot receive."""
    known = {
        name.casefold(): each
        for each in session.server.sessions.copy()
        for name in (each.peer, each.nick)
    }
    wanted: dict[Session, None] = {}  # an ordered set: a client may be named twice
    refused = {}
    targets = list(filter(None, to.split(",")))
    if not 0 < len(targets) <= MAX_TARGETS:
        raise Refused("usage", usage=f"send {COMMANDS['send'].usage}")
    for target in targets:
        found = known.get(target.casefold())
        if found is None:
            refused[target] = "no-such-client"
        elif found is session:
            refused[target] = "yourself"
        elif found.mode != "receive":
            refused[target] = "not-receiving"
        else:
            wanted[found] = None
    return list(wanted), refused


def do_chat(session: "Session", request: "Line", nick: str = "") -> None:
    """Join; or, in the chat, take another name."""
    session.limit_rate()
    before = session.display_name() if session.mode == "chat" else ""
    if request.words:
        session.set_nick(nick)
    session.share()
    for said in session.lobby.join(session, before):
        session.put(said)
    session.log(f"chat: {session.display_name()} joined{before and f', who was {before}'}")
    count = len(session.lobby.chatters)
    session.ok(request, nick=session.nick or None, you=session.peer, count=count)


def do_say(session: "Session", request: "Line", text: str) -> None:
    session.lobby.say(session, sayable(session, text))
    session.log(f"chat: <{session.display_name()}> {text}")
    session.put(b"ok say\n")


def do_tell(session: "Session", request: "Line", text: str) -> None:
    name, _, words = text.partition(" ")
    if not words:
        raise Refused("usage", usage=f"tell {COMMANDS['tell'].usage}")
    if not session.lobby.tell(session, name.casefold(), sayable(session, words)):
        raise Refused("no-such-client")
    session.put(b"ok tell\n")


def sayable(session: "Session", text: str) -> bytes:
    """The bytes of what one says in the chat, after the checks that hold for all of it."""
    raw = text.encode(*NAMES)
    if session.mode != "chat":
        raise Refused("not-in-chat")
    if len(raw) > MAX_SAY:
        raise Refused("too-long", limit=MAX_SAY)
    session.limit_rate()
    return raw


class Command(NamedTuple):
    run: Callable[..., None]  # gets the session, the request and its positional words
    usage: str
    text: str
    least: int = 0  # positional words
    most: int = 0
    changes: bool = False  # refused with --read-only


COMMANDS = {
    "help": Command(do_help, "", "these lines", 0, 1),
    "list": Command(
        do_list, "[FOLDER] [deep=yes]", "what is there; deep: in all folders below too", 0, 1
    ),
    "stat": Command(
        do_stat, "NAME [digest=yes]", "size and time of a file; digest: its SHA-256 too", 1, 1
    ),
    "get": Command(do_get, "NAME [offset=N sha256=OF-MY-FIRST-N]", "its bytes follow", 1, 1),
    "put": Command(
        do_put,
        "NAME [size=N] [mtime_ns=N] [exec=yes] [over=yes] [offset=N sha256=OF-MY-FIRST-N]",
        "then: data N, N bytes, end",
        1,
        1,
        True,
    ),
    "delete": Command(do_delete, "NAME", "a file or an empty folder", 1, 1, True),
    "rename": Command(do_rename, "OLD NEW [over=yes]", "also into another folder", 2, 2, True),
    "mkdir": Command(do_mkdir, "NAME", "a folder, and those above it", 1, 1, True),
    "auth": Command(do_auth, "nonce=HEX proof=HEX", "prove that you know the password"),
    "who": Command(do_who, "", "the clients that are connected, and what they do"),
    "receive": Command(
        do_receive, "[nick=N]", "wait for what others send; it comes as put and mkdir"
    ),
    "send": Command(
        do_send,
        "HOST:PORT|NICK[,...] NAME [size=N] [mtime_ns=N] [exec=yes] [type=dir]",
        "to clients that receive; a body as after put",
        2,
        2,
    ),
    "chat": Command(do_chat, "[NICK]", "join: hear what others say", 0, 1),
    "say": Command(do_say, "TEXT", "to all others in the chat", 1, 1),
    "tell": Command(do_tell, "NICK TEXT", "to one in the chat alone", 1, 1),
    "ping": Command(do_ping, "", "is anybody there"),
    "bye": Command(do_bye, "", "the end"),
}
ALIASES = {"upload": "put", "download": "get", "logout": "bye", "stop": "bye", "quit": "bye"}
BEFORE_AUTH = {"help", "ping", "auth", "bye"}
DROPPING = {*BEFORE_AUTH, "put", "mkdir", "stat"}  # all that --drop-box allows
ONLY_IN_BODY = {"data", "end", "abort", "note"}  # they mean something only inside a body
# they do not end a `receive` or `chat` that waits
GO_ON_WAITING = {"help", "who", "ping", "say", "tell"}
# not logged unless they are refused: they move and change nothing (a `send` when it is answered)
UNLOGGED = {"help", "stat", "ping", "bye", "who", "chat", "say", "tell", "auth", "send"}
# their results that are not worth a line in the log
UNLOGGED_RESULTS = {"ok", "no-such-file", "no-such-folder", "too-fast", "drop-box"}
# reasons of receivers that were not there: a sender of a tree names them for each file again
UNREACHED = {"no-such-client", "not-receiving", "yourself"}
# a client asks for each folder of a tree, also when it sends the tree again
UNCHANGED = {("mkdir", "exists")}
HANDED_IN = {("put", "ok")}  # in a drop box log_handed_in() tells it


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


# --- one client: its connection, the names that it uses, the part that it writes ---
def facts(status: os.stat_result) -> dict[str, object]:
    """What the protocol tells of a file."""
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "exec": "yes" if status.st_mode & stat.S_IXUSR else None,
    }


def sender_folder(name: str) -> str:
    """The folder of a nick or address in a drop box, on any system."""
    safe = re.sub(r"[^\w.-]", "-", name).strip(".") or "-"
    return f"_{safe}" if DEVICE.fullmatch(safe) else safe


def host_of(peer: str) -> str:
    return peer.rpartition(":")[0].strip("[]")


def walk(
    top: Folder,
    name: str,
    deep: bool = True,
    visible: Callable[[str], bool] = lambda name: True,
    above: Sequence[str] = (),
) -> Iterator[tuple[str, Folder, Union[os.stat_result, OSError, Refused]]]:
    """What is in a folder called name, with deep also in all folders below it.

    Yields full name, folder, and status or why there is none: a folder may let its names be read,
    and not its files be looked at. Only one folder is open at a time. Of the folders above, only
    the names of those still to come are kept, as one text each: a reader may take hours."""
    before = "".join(f"{each}/" for each in [name, *above] if each)
    found = ""
    try:
        folder = top.descend(above)
        entries = filter(visible, folder.entries())
        too_deep = before.count("/") >= MAX_DEPTH or len(os.fsencode(before)) > MAX_NAME
        if too_deep and any(entries):
            raise Refused("too-deep")
        for leaf in entries:
            try:
                status = folder.stat(leaf)
            except OSError as error:
                yield before + leaf, folder, error
                continue
            if status:  # else it is gone already
                yield before + leaf, folder, status
                found += f"{leaf}/" * (deep and stat.S_ISDIR(status.st_mode))
        del folder, entries
    except (OSError, Refused) as error:
        if not above:
            raise
        yield before[:-1], top, error
    for below in re.finditer("[^/]+", found):
        yield from walk(top, name, deep, visible, (*above, below[0]))


class Session(Wire):
    """A client's connection, and the thread that owns it."""

    def __init__(self, server: "Server", sock: socket.socket, peer: "Address") -> None:
        super().__init__(sock, server.args.timeout)
        self.server, self.args, self.lobby = server, server.args, server.lobby
        self.peer = address(peer)
        self.root = Folder(server.args.directory, durable=server.args.durable)
        self.last_folder: tuple[str, Folder] = "", self.root  # it stays open
        self.logged: list[str] = []
        self.connected = self.started = self.last_note = time.monotonic()
        self.moved = 0  # bytes of this request
        self.between_requests, self.done = True, False
        # whether the client may do more than ask and log in
        self.admitted = server.door.guard is None
        self.nonce = os.urandom(16).hex()
        # the verb that runs or ran last; mode: "receive" or "chat" while it waits in one
        self.nick = self.doing = self.mode = ""
        self.reason = ""  # why another thread ended it
        # what others have left for it, and the lock of that; lines of the chat that were dropped
        self.bell: Bell | None = None
        self.lock, self.queue, self.missed = threading.Lock(), deque["Block"](), 0
        self.sending = memoryview(b"")  # what is being sent of it
        # as a receiver: what it has not answered; requests that wait until it has
        self.owed: deque[Relay] = deque()
        self.postponed: list[Line] = []
        # when it last took bytes or got further; the next count that is further
        self.progressed, self.goal = self.connected, LEAST_RATE * self.timeout
        # as a sender: what is not answered yet; lines and small bodies for the last one's
        # receivers; those of them that have still to send on what was left for them
        self.relays: deque[Relay] = deque()
        self.gathered = bytearray()
        self.taking: set[Session] = set()
        # the clock of the rate limit, which each line puts forward
        self.next_say = self.connected - SAY_BURST / SAY_RATE

    def run(self) -> None:
        """A connection's whole life."""
        try:
            self.encrypt()
            self.greet()
            converse(self)
        except Ended:
            if not self.doing:
                self.log("came and left without a word")
        except Lost as lost:
            self.sending, self.out = memoryview(b""), bytearray()
            self.queue.clear()
            self.log(f"connection lost: {lost}")
        except Broken as broken:
            self.out += line("err", "-", reason=broken)  # hang_up() sends it
            self.log(f"hung up on: {broken}")
        finally:
            if self.relays:  # what has come whole still reaches its receivers
                self.relays[-1].leave()
                self.relays.clear()
            self.lobby.leave(self, "gone")
            if self.reason:
                self.out += line("err", "-", reason=self.reason)
            self.hang_up()

    def encrypt(self) -> None:
        """The TLS handshake, under a deadline. A client without TLS is answered without TLS."""
        context = self.server.door.tls
        if context is None:
            return
        try:
            self.wait(min(TLS_WAIT, self.timeout))
        except Silent:
            raise Broken("tls-only") from None
        try:
            if socket.socket.recv(self.sock, 1, socket.MSG_PEEK) not in (b"", TLS[:1]):
                raise Broken("tls-only")
            self.sock.settimeout(self.timeout)
            secured = self.sock = over_tls(context, self.sock)
            shake_hands(secured)
            secured.setblocking(False)
        except OSError as error:
            why = getattr(error, "reason", "") or error.strerror
            why = "silent" if isinstance(error, socket.timeout) else why
            raise Lost(f"no TLS: {why}") from None

    def greet(self) -> None:
        keys = {"auth": "none"}
        if not self.admitted:
            keys = {"auth": AUTH, "salt": self.server.salt, "nonce": self.nonce}
        self.send_line("sixsockets", PROTOCOL, **{"max-line": MAX_LINE, **keys, "you": self.peer})

    def prepare(self, request: Line) -> None:
        """A request may name its client; most end a `receive` or `chat` that waits."""
        self.doing, nick = request.verb, request.keys.get("nick")
        stays = self.doing in GO_ON_WAITING or self.doing == self.mode == "chat"
        if self.mode and (nick is not None or not stays):
            self.lobby.leave(self, "left")
        if nick is not None:
            if not self.admitted:  # or strangers could take the names of those who may come in
                raise Refused("auth-required")
            self.set_nick(nick)

    def set_nick(self, nick: str) -> None:
        """Its name from now on, with a number if another client has that name."""
        if not NICK.fullmatch(nick):
            raise Refused("bad-nick")
        with self.lobby.lock:
            others = self.server.sessions.copy() - {self}
            # in a drop box it is a folder's name, also for the connection after a lost one
            known = set() if self.args.drop_box else others
            taken = {session.nick.casefold() for session in known}
            numbered = (f"{nick}{number}" for number in itertools.count(2))
            names = itertools.chain([nick], numbered)
            self.nick = next(name for name in names if name.casefold() not in taken)

    def display_name(self) -> str:
        return self.nick or self.peer

    def ok(self, request: Line, **keys: object) -> None:
        self.put(line("ok", request.verb, *request.words, **keys))

    def progress(self, name: str, key: str) -> Callable[[int], None]:
        """A function for a long operation to call: now and then it tells the client a count."""

        return functools.partial(self.tell_count, name, key)

    def tell_count(self, name: str, key: str, count: int) -> None:
        now = time.monotonic()
        if now - self.last_note >= NOTE_PAUSE:
            self.last_note = now
            self.send_line("note", name, **{key: count})
            self.flush()

    def count(self, more: int) -> bool:
        self.moved += more
        return True

    def limit_rate(self) -> None:
        """Each client may make the others read so many lines, and no more."""
        now = time.monotonic()
        due = max(self.next_say, now - SAY_BURST / SAY_RATE) + 1 / SAY_RATE
        if due > now:
            raise Refused("too-fast", limit=f"{SAY_RATE:g}/s")
        self.next_say = due

    # waiting, logging, closing
    def receive(self, patience: Optional[float]) -> None:
        """Before it waits: other threads may change the last folder."""
        self.last_folder = "", self.root
        # nor may strangers keep the places of others by idle talk
        if not self.admitted and time.monotonic() > self.connected + self.timeout:
            raise Lost(f"no password in {self.timeout:g} s")
        if not self.mode:
            return super().receive(patience)
        self.serve_others()  # also if this client never stops talking
        self.fill(patience)
        if self.mode == "chat":  # what was said before comes before the next answer
            self.put(b"".join(self.take_queued(UNHEARD)))
        self.hear()

    def wait(self, patience: Optional[float], event: int = READ) -> None:
        """As in Wire; but meanwhile this thread does what others leave for it, and rings for."""
        if event == WRITE or not (self.mode or self.relays):
            return super().wait(patience, event)
        assert self.bell
        due = None if patience is None else time.monotonic() + patience
        while due is None or time.monotonic() < due:
            self.serve_others()
            left = None if due is None else max(0.0, due - time.monotonic())
            # who is told how far others are, or sees that one gets on, wakes by itself
            left = min(LIFE, self.timeout) if self.owed or self.relays else left
            if self.bell.select(READ | WRITE if self.sending else READ, left) & READ:
                return
        raise Silent(f"silent for {self.timeout:g} s")

    def has_line(self) -> bool:
        """Has a whole line arrived that is not empty?"""
        while self.has_unread() and self.buffer[self.start] in b"\r\n":
            self.start += 1
        return self.line_end() >= 0

    def flush(self) -> None:
        self.write_log()
        if self.sending:  # a line that was begun must be ended before any other
            view, self.sending = self.sending, memoryview(b"")
            self.push(view)
        super().flush()

    def write_log(self) -> None:
        """The log lines are written with the answers that they tell of, many at once."""
        if self.logged:
            self.server.write_log(self.logged)
            self.logged = []

    def log(self, text: str, **more: object) -> None:
        self.logged.append(log_line(self.args.json, printable(text), self.peer, **more))

    def log_handed_in(self, name: str, given: str, part: Part, verified: str) -> None:
        by = self.nick or host_of(self.peer)
        there = f"{sender_folder(by)}/{given}"
        self.log(
            f"handed in by {by}: {there}, {part.received} bytes, verified={verified}",
            handed_in=printable(there),
            by=by,
            name=printable(name),
            size=part.received,
            sha256=part.sha256,
            verified=verified == "yes",
        )

    def hang_up(self) -> None:
        """Close so that the last answer arrives: closing over unread bytes sends RST, which
        destroys it."""
        deadline = time.monotonic() + LINGER
        with contextlib.suppress(Lost, OSError):
            self.timeout = LINGER
            self.flush()
            end_tls(self.sock)
            self.sock.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.start = self.end
                self.fill(left)
        if self.bell:
            self.bell.close()
        self.sock.close()

    def is_idle(self) -> bool:
        return self.between_requests and not self.owed and not self.relays

    def cut(self, reason: str = "") -> None:
        """From another thread: end whatever this connection waits for; its own tells the reason.

        (A TLS socket's own shutdown() is for its own thread only.)"""
        self.reason = reason
        with contextlib.suppress(OSError):
            how = socket.SHUT_RD if reason else socket.SHUT_RDWR
            socket.socket.shutdown(self.sock, how)

    # what others leave for it, and what it leaves for others
    def share(self) -> None:
        """From now on other threads may have something for it."""
        self.bell = self.bell or Bell(self.sock.fileno())

    def ring(self) -> None:
        if self.bell:
            self.bell.ring()

    def serve_others(self) -> None:
        """Tell what receivers answered, send what is left for it, and see that it gets on."""
        self.report()
        self.write_log()
        self.send_queued()
        self.check_owed()

    def send_queued(self) -> None:
        """As much as the connection takes now: our own answers, then what others left."""
        while self.sending or self.out or self.queue:
            if not self.sending:
                self.sending, self.out = memoryview(self.out or self.next_block()), bytearray()
            count = self.attempt(self.sock.send, self.sending)
            if not count:
                return
            self.sending = self.sending[count:]
            self.progressed = time.monotonic()
        if self.owed:
            self.tell_taken(self.owed[-1].sender)

    def next_block(self) -> "Block":
        blocks = self.take_queued(AT_ONCE if self.mode == "chat" else 1)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def tell_taken(self, sender: "Session") -> None:
        """The sender waits until all its receivers have taken what it left."""
        with self.lock:
            if self.queue or self not in sender.taking:
                return
            sender.taking.discard(self)
        if not sender.taking:
            sender.ring()

    def take_queued(self, most: int) -> "list[Block]":
        with self.lock:
            blocks = [self.queue.popleft() for _ in range(min(most, len(self.queue)))]
            lost, self.missed = self.missed, 0
        return [line("note", "chat", lost=lost), *blocks] if lost else blocks

    def leave_line(self, text: bytes) -> None:
        """From another thread. A slow client loses its oldest lines; nobody waits for it."""
        with self.lock:
            if len(self.queue) == UNHEARD:
                self.queue.popleft()
                self.missed += 1
            self.queue.append(text)
        self.ring()

    # as a receiver
    def hear(self) -> None:
        """Notes about what it is sent, then an answer for each. Any other request means that it
        wants no more; but one that ends no wait is carried out after the file."""
        while self.owed and self.has_line():
            relay, found = self.owed[0], self.line()
            answers = found.words[:1] == [relay.verb] and (
                found.verb == "err" or (found.verb == "ok" and relay.ended)
            )
            if found.verb == "note":
                self.count_received(relay, min(found.number("received"), relay.moved))
                continue
            if answers:
                self.accept_answer(relay, found)
                continue
            self.postponed.append(found)
            stays = found.verb in GO_ON_WAITING and "nick" not in found.keys
            if not stays or len(self.postponed) > POSTPONED:
                self.drop_owed("left")
        if not self.owed:
            self.early.extend(self.postponed)
            self.postponed.clear()

    def count_received(self, relay: "Relay", received: int) -> None:
        """A count keeps a receiver from being closed only if it grows by LEAST_RATE."""
        if received > relay.receivers.get(self, received):
            relay.receivers[self] = received
            if received >= min(self.goal, relay.moved):
                self.progressed, self.goal = time.monotonic(), received + LEAST_RATE * self.timeout
            relay.sender.ring()

    def accept_answer(self, relay: "Relay", found: Line) -> None:
        with self.lock:
            self.owed.popleft()
            if not relay.ended:
                self.queue.append(line("abort", reason="refused"))
        self.progressed, self.goal = time.monotonic(), LEAST_RATE * self.timeout
        if not self.owed:
            self.release()
        relay.settle(self, found)

    def check_owed(self) -> None:
        """Close it if it stands still. While its sender is silent, tell it that we are there."""
        if not self.owed or (self.queue and not self.sending):
            return
        relay, silent = self.owed[0], time.monotonic() - self.progressed
        if not self.sending and not relay.ended:
            if silent > LIFE:
                self.queue.append(line("note", relay.name))
        elif silent > self.timeout:
            self.drop_owed("stalled")
            raise Lost(f"took nothing for {self.timeout:g} s")

    def drop_owed(self, reason: str) -> None:
        """It gets nothing more of what it was sent."""
        with self.lock:
            owed = self.owed.copy()
            self.owed.clear()
        self.release()
        for relay in owed:
            relay.settle(self, refusal(reason))

    def release(self) -> None:
        """It owes no answer, and has a copy of what it has still to send of a sender's buffer."""
        with self.lock:
            self.sending = memoryview(b"".join([self.sending, *self.queue]))
            self.queue.clear()
        self.lobby.wake_senders()

    # as a sender
    def hear_bell(self, patience: float) -> bool:
        assert self.bell
        self.flush()
        return self.bell.wait(patience)

    def report(self) -> None:
        """Pass on what is gathered; tell the client what became of what it sent, in order."""
        if self.relays:
            self.relays[-1].pass_on()
        self.tell_results()

    def tell_results(self) -> None:
        while self.relays and self.relays[0].report():
            self.relays.popleft()
        # if the client is gone, only the reset that answers this tells so while it is unread
        if self.relays and (received := self.relays[0].receivers.copy().values()):
            self.tell_count(self.relays[0].name, "received", min(received))

    def finish_sends(self, most: int = 0) -> None:
        """Wait until no more than so many of its files have no answer."""
        while len(self.relays) > most:
            self.report()
            if len(self.relays) > most:
                self.hear_bell(NOTE_PAUSE)

    # names: whatever a client names is found here and nowhere else
    def folder(self, parts: list[str], make: bool = False) -> Folder:
        """Found component by component from the shared folder, unless it is the last folder."""
        if self.args.only and parts:
            raise Refused("no-such-file")
        name = "/".join(parts)
        if name != self.last_folder[0]:
            try:
                self.last_folder = name, self.root.descend(parts, make)
            except FileNotFoundError:
                raise Refused("no-such-folder") from None
        return self.last_folder[1]

    def find(self, name: str, make: bool = False) -> tuple[Folder, str]:
        """The folder that a name from the network is in, and its last component."""
        args = self.args
        if args.drop_box:
            name = f"{sender_folder(self.nick or host_of(self.peer))}/{name}"
        *above, leaf = check_name(name, args.hidden or name == args.only)
        if args.only and name != args.only:
            raise Refused("no-such-file")
        return self.folder(above, make), leaf

    def existing(self, name: str) -> tuple[Folder, str, os.stat_result]:
        folder, leaf = self.find(name)
        status = folder.stat(leaf)
        if status is None:
            raise Refused("no-such-file")
        if unfit(status) == "not-a-file":
            raise Refused("not-a-file")
        return folder, leaf, status

    def visible(self, name: str) -> bool:
        if self.args.only:
            return bool(name == self.args.only)
        return not PART.fullmatch(name) and (self.args.hidden or name[0] != ".")

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[tuple[int, os.stat_result]]:
        folder, leaf = self.find(name)
        fd, status = folder.read(leaf)
        try:
            yield fd, status
        finally:
            os.close(fd)

    def check_vacant(self, folder: Folder, leaf: str, over: bool, is_folder: bool = False) -> None:
        there = folder.stat(leaf)
        folder.protect(leaf, there, is_folder)
        if there and unfit(there):
            raise Refused(unfit(there))
        if there and not over:
            raise Refused("exists", size=there.st_size, mtime_ns=there.st_mtime_ns)

    def check_room(self, whole: int, part: Part) -> None:
        """Refuse so many bytes. What the part has of them is on the disk already."""
        if 0 < self.args.max_size < whole:
            raise Refused("too-large", limit=self.args.max_size)
        if self.args.min_free:
            free = shutil.disk_usage(self.args.directory).free + part.length()
            if free - whole < self.args.min_free:
                raise Refused("disk-full")

    # parts: one connection at a time writes one
    def part(self, request: Line, name: str, make: bool = False) -> Part:
        """The part for the body of such a request."""
        size, mtime_ns = request.number_or_none("size"), request.number_or_none("mtime_ns")
        return Part(*self.find(name, make), size, mtime_ns, request.is_set("exec"))

    def claim(self, part: Part) -> None:
        """Become the one writer of a part. An earlier writer that is silent has lost its link: end
        it. Count tries, not time: if the machine was suspended, that writer got no time either."""
        if not part.resumable:
            part.claim()
            return
        try:
            for _ in range(TRIES):
                other = self.server.writers.setdefault(part.identity(), self)
                if other is self and part.claim():
                    return self.server.kept.discard(part.identity())
                if other is not self and time.monotonic() - other.last_heard > STALE:
                    other.cut("taken-over")
                time.sleep(RETRY)
            raise Refused("busy")
        except (Refused, OSError):
            self.disclaim(part)
            raise

    def keep(self, part: Part) -> bool:
        keeps = part.keep()
        if keeps:
            self.server.kept.add(part.identity())
        return keeps

    def disclaim(self, part: Part) -> None:
        """The part has no writer any more, unless the next one has come in already."""
        if part.resumable and self.server.writers.get(part.identity()) is self:
            del self.server.writers[part.identity()]


# --- from client to client: the bell of a connection, who may send to whom, what is passed on ---
class Bell:
    """Wakes the thread of a connection when others have left something for it."""

    def __init__(self, connection: int) -> None:
        self.connection, self.rung = connection, False
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        self.selector = SELECTOR()
        self.selector.register(self.reader, READ)
        self.selector.register(connection, READ)

    def ring(self) -> None:
        """From any thread, after something was left: who hears it once looks for all of that."""
        if not self.rung:
            self.rung = True
            with contextlib.suppress(OSError):
                self.writer.send(b"\0")

    def wait(self, patience: float) -> bool:
        """Wait for the bell alone; False if it did not ring."""
        with contextlib.suppress(OSError):
            self.reader.settimeout(patience)
            self.reader.recv(4096)
            self.rung = False
            return True
        return False

    def select(self, event: int, patience: Optional[float]) -> int:
        """Wait for the bell or the connection: which of READ and WRITE it can do."""
        self.selector.modify(self.connection, event)
        able = 0
        for key, found in self.selector.select(patience):
            if key.fileobj is self.reader:
                self.wait(0)
            else:
                able = found
        return able

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


class Lobby:
    """Who chats, and which sender's turn it is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.queue: list[Relay] = []  # that wait for their receivers, first come first
        self.chatters: dict[Session, None] = {}  # in the order in which they came
        self.history: deque[bytes] = deque(maxlen=HISTORY)

    def wake_senders(self) -> None:
        """A receiver came, went or is free: whose turn is it now?"""
        for relay in self.queue.copy():
            relay.sender.ring()

    def leave(self, session: "Session", reason: str) -> None:
        """It neither receives nor chats any more."""
        with self.lock:
            if session in self.chatters:
                del self.chatters[session]
                self.tell_all(line("left", session.display_name()))
                session.log(f"chat: {session.display_name()} left")
            session.mode = ""
        session.drop_owed(reason)

    # senders
    def take(self, relay: "Relay") -> None:
        """Wait for this sender's turn; then all its receivers that still receive, at once."""
        sender = relay.sender
        with self.lock:
            self.queue.append(relay)
        try:
            while not self.try_take(relay):
                sender.report()
                if not sender.hear_bell(LIFE):
                    sender.tell_count(relay.name, "waiting", len(relay.still_receive()))
        finally:
            with self.lock:
                self.queue.remove(relay)
            self.wake_senders()

    def try_take(self, relay: "Relay") -> bool:
        with self.lock:
            if not self.is_turn(relay):
                return False
            relay.wanted = relay.still_receive()
            relay.receivers = dict.fromkeys(relay.wanted, 0)
            for session in relay.wanted:
                with session.lock:  # or one that drops what it owes could forget this
                    session.owed.append(relay)
        return True

    def is_turn(self, relay: "Relay") -> bool:
        """Are its receivers free, and not kept for a sender that came before? A sender keeps its
        receivers if it can begin too, or has waited long enough; else it may wait for one that
        stands still, and the others are for those that can begin. A sender's own receivers count
        as free: it may send the next file before the answer, unless others wait for their turn."""
        kept: set[Session] = set()
        for each in self.queue:
            found = set(each.still_receive())
            holders = {held.sender for one in found for held in one.owed.copy()}
            free = found.isdisjoint(kept) and holders <= {relay.sender}
            if each is relay:
                return free
            if free or time.monotonic() > each.started + each.sender.timeout:
                kept |= found
        return False

    def is_awaited(self, relay: "Relay") -> bool:
        """Do others wait for one of its receivers?"""
        held = set(relay.receivers.copy())
        return any(not held.isdisjoint(each.still_receive()) for each in self.queue.copy())

    # chatters
    def join(self, session: "Session", before: str) -> list[bytes]:
        """What was said before; what is said from now on comes after it. Who was in the chat with
        another name has heard all that."""
        with self.lock:
            joined = line("joined", session.display_name(), at=session.peer, was=before or None)
            self.tell_all(joined, session)
            self.chatters[session] = None
            session.mode = "chat"
            return [] if before else list(self.history)

    def say(self, session: "Session", text: bytes) -> None:
        with self.lock:
            said = b"said from=%b %b\n" % (quote(session.display_name()).encode(), text)
            self.history.append(said)
            self.tell_all(said, session)

    def tell(self, session: "Session", name: str, text: bytes) -> bool:
        """To one alone; False if nobody of that name is in the chat."""
        told = b"told from=%b %b\n" % (quote(session.display_name()).encode(), text)
        with self.lock:
            for each in self.chatters:
                if name in (each.peer, each.nick.casefold()):
                    each.leave_line(told)
                    return True
        return False

    def tell_all(self, text: bytes, but: "Session | None" = None) -> None:
        """Leave a line for all in the chat."""
        for session in self.chatters:
            if session is not but:
                session.leave_line(text)


NOTHING = memoryview(b"")
Block = Union[bytes, bytearray, memoryview]  # whole lines, or the bytes that the last one announced


def refusal(reason: str) -> Line:
    return Line("err", [], {"reason": reason})


class Relay:
    """A file or folder that one client sends to others.

    The sender's thread leaves each block in the receivers' queues, and the next when all have taken
    it: so the slowest sets the pace. Each receiver's thread sends it, and hears the answer."""

    def __init__(
        self, sender: "Session", request: Line, verb: str, wanted: "list[Session]", count: int
    ) -> None:
        self.sender, self.verb, self.wanted, self.count = sender, verb, wanted, count
        self.name, self.what = request.words[1], " ".join(["send", *request.words])[:300]
        self.receivers: dict[Session, int] = {}  # those that have not answered: what they received
        # what became of it: at whom, the answer, the nick
        self.results: deque[tuple[str, Line, str]] = deque()
        self.taken = self.verified = self.moved = 0
        self.ended = False  # all is passed on: only answers are to come
        self.sha256 = "-"  # what the sender says at the end
        self.started = self.brought = time.monotonic()

    def still_receive(self) -> "list[Session]":
        return [session for session in self.wanted if session.mode == "receive"]

    # the sender's thread
    def body(self, request: Line) -> None:
        """The sender's body, at once if it has come whole, else line by line until it ends."""
        sender = self.sender
        if request.body is not None:
            self.chunk(request.body)
            self.sha256 = request.sha256
            return self.end(b"end sha256=%b\n" % request.sha256.encode())
        while (found := sender.line()).verb in ("data", "note"):
            if found.verb == "note":
                self.give(line("note", self.name))
                # notes alone do not keep receivers for whom others wait
                overdue = time.monotonic() > self.brought + sender.timeout
                if overdue and sender.lobby.is_awaited(self):
                    raise Refused("stalled")
            while sender.remaining:
                self.chunk(sender.take_body())
        if found.verb == "end":
            self.sha256 = found.keys.get("sha256", "-").lower()
            return self.end(line("end", sha256=found.keys.get("sha256")))
        if found.verb != "abort":
            sender.early.append(found)
        self.end(line("abort", reason=found.keys.get("reason", "interrupted")))
        self.pass_on()  # not with the next file: to who has refused this one it means nothing

    def chunk(self, chunk: memoryview) -> None:
        self.moved += len(chunk)
        self.brought = time.monotonic()
        self.give(b"data %d\n" % len(chunk), chunk)

    def end(self, last: bytes) -> None:
        self.ended = True
        self.give(last)

    def give(self, text: bytes, body: memoryview = NOTHING) -> None:
        """Pass on a line, or `data` and its bytes. Few bytes gather until the sender waits."""
        many = len(self.sender.gathered) + len(text) + len(body) >= BATCH
        if many:  # before anything is begun: if this fails, give_up() ends what is gathered
            self.await_receivers()
        self.sender.gathered += text
        self.sender.gathered += body[:BATCH]
        if many:
            self.pass_on(body[BATCH:])

    def pass_on(self, body: memoryview = NOTHING) -> None:
        """What is gathered, and what of a body is in the sender's own buffer."""
        self.await_receivers()
        self.leave(body)
        if body:
            self.await_receivers()

    def await_receivers(self) -> None:
        """Until each receiver has taken what was left for it."""
        while self.sender.taking:
            self.sender.tell_results()
            self.sender.hear_bell(NOTE_PAUSE)

    def leave(self, body: memoryview = NOTHING) -> None:
        """In the queue of each receiver."""
        block, self.sender.gathered = self.sender.gathered, bytearray()
        for each in self.receivers.copy() if block else ():
            with each.lock:
                if self in each.owed:  # it may have answered meanwhile
                    each.queue.extend([block, body] if body else [block])
                    self.sender.taking.add(each)
            each.ring()

    def give_up(self, reason: str) -> None:
        """The sender is gone or may not go on: no receiver can hold this up."""
        # what receivers have not taken stays in the old buffer
        self.sender.buffer = bytearray(self.sender.buffer)
        self.sender.view = memoryview(self.sender.buffer)
        self.sender.gathered += line("abort", reason=reason)
        self.ended = True
        self.leave()

    def report(self) -> bool:
        """Tell the sender what became of it where; then, if that is all, the answer."""
        over = not self.receivers  # before the results are read: the last one is among them then
        while self.results:
            self.report_one(*self.results.popleft())
        if over and not self.ended:
            raise Refused("not-received", receivers=self.count, verified=0)
        if over:
            self.answer()
        return over

    def report_one(self, target: str, result: Line, nick: str) -> None:
        keys = {
            key: result.keys[key][:most] for key, most in RESULT_KEYS.items() if key in result.keys
        }
        if result.verb == "ok":
            # a receiver may say what it likes: what it has must be what was sent
            self.taken += 1
            if self.verb == "put" and self.sha256 != keys.get("sha256", "").lower():
                keys["verified"] = "no"
            self.verified += keys.get("verified", "yes") == "yes"
        elif (reason := keys.get("reason", "failed")) not in UNREACHED:
            self.sender.log(f"send {self.name[:300]} to {target[:300]}: {reason}")
        words = target[:MAX_ECHO], result.verb, self.verb, self.name
        self.sender.send_line("got", *words, **keys, nick=nick or None)

    def answer(self) -> None:
        verb, reason = ("ok", None) if self.taken else ("err", "not-received")
        facts = {"receivers": self.count, "verified": self.verified}
        self.sender.send_line(verb, "send", self.name, reason=reason, **facts)
        elapsed = time.monotonic() - self.started
        self.sender.log(f"{self.what}: {self.moved} bytes, {elapsed:.3f} s, {reason or verb}")

    # the receivers' threads
    def settle(self, session: "Session", result: Line) -> None:
        self.results.append((session.peer, result, session.nick))
        self.receivers.pop(session, None)
        if not session.owed:
            self.sender.taking.discard(session)
        self.sender.ring()


# --- the server: listen, accept, a thread for each client ---
class Server:
    """A listening socket, and a thread for each client whose connection it accepted."""

    def __init__(
        self,
        args: argparse.Namespace,
        sock: socket.socket,
        door: "Door",
        log_fd: int,
    ) -> None:
        self.args, self.sock, self.door = args, sock, door
        self.stop = Stop()
        self.sessions: set[Session] = set()
        # by the identity of the part that they write
        self.writers: dict[tuple[object, ...], Session] = {}
        self.refused: list[socket.socket] = []
        self.lobby = Lobby()
        self.kept: set[tuple[object, ...]] = set()  # parts of uploads that nobody has completed
        self.log_fd, self.lost_lines = log_fd, 0  # lines that it could not take
        self.digest_turns = threading.BoundedSemaphore(DIGESTS)
        self.salt = os.urandom(16).hex()
        self.key = auth_key(door.guard.password, self.salt) if door.guard else b""

    def run(self) -> None:
        searched = -SWEEP
        while not self.stop.asked:
            if not self.args.read_only and time.monotonic() - searched >= SWEEP:
                searched = time.monotonic()
                threading.Thread(target=self.remove_old_parts, daemon=True).start()
            watched: list[socket.socket | Stop] = [self.stop, self.sock]
            ready, _, _ = select.select(watched, [], [], LINGER if self.refused else SWEEP)
            self.stop.drain()
            if self.sock in ready:
                self.accept()
            while self.refused and (not ready or len(self.refused) > MAX_REFUSED):
                self.refused.pop(0).close()
        self.finish()

    def accept(self) -> None:
        """Accept the next client, and give it a thread of its own if there is room."""
        try:
            conn, peer = self.sock.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client left between select() and accept()
        except OSError as error:
            # EMFILE, ENFILE, ENOBUFS, ENOMEM: nothing is wrong with this socket
            self.log(f"cannot accept ({error.strerror}): pausing")
            select.select([self.stop], [], [], ACCEPT_PAUSE)
            return
        guard = self.door.guard
        if guard and (wait := guard.wait(host_of(address(peer)))):
            return self.turn_away(conn, line("err", "-", reason="busy", retry=wait), DENIED)
        full = len(self.sessions) >= self.args.max_clients
        if full and not self.make_room(network(host_of(address(peer)))):
            return self.refuse(conn, peer, f"--max-clients {self.args.max_clients} is reached")
        try:
            self.start_thread(conn, peer)
        except (OSError, RuntimeError) as error:
            # no further descriptor or thread, or the shared folder is gone
            self.refuse(conn, peer, printable(str(error)))

    def make_room(self, newcomer: Union[str, bytes]) -> bool:
        """Hang up on a client of an address that has more than half of all places.

        So no address can shut out the others. The idle client that is silent longest goes first,
        those in `receive` or `chat` last."""
        places = {each: network(host_of(each.peer)) for each in self.sessions.copy()}
        crowd, count = Counter(places.values()).most_common(1)[0]
        idle = [each for each, place in places.items() if place == crowd and each.is_idle()]
        if crowd == newcomer or count * 2 <= self.args.max_clients or not idle:
            return False
        longest = min(idle, key=lambda each: (bool(each.mode), each.last_heard))
        self.sessions.discard(longest)
        longest.cut()
        self.log(f"{longest.peer} hung up on: full, and its address has {count} clients")
        return True

    def refuse(self, conn: socket.socket, peer: "Address", why: str) -> None:
        self.log(f"refused: {why}", address(peer))
        self.turn_away(conn, line("err", "-", reason="server-full"), OVERLOADED)

    def turn_away(self, conn: socket.socket, text: bytes, code: int) -> None:
        """Answer and close, but keep the socket a moment: closing over unread bytes sends RST,
        which destroys the answer. Under TLS the answer is an alert, which needs no handshake."""
        self.refused.append(conn)
        with contextlib.suppress(OSError):
            conn.setblocking(False)
            conn.send(alert(code) if self.door.tls else text)
            conn.shutdown(socket.SHUT_WR)

    def start_thread(self, conn: socket.socket, peer: "Address") -> None:
        # an answer leaves at once, however short
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = Session(self, conn, peer)
        session.keep_alive()
        self.sessions.add(session)
        try:
            threading.Thread(target=self.handle, args=(session,), daemon=True).start()
        except RuntimeError:
            self.sessions.discard(session)
            raise

    def handle(self, session: Session) -> None:
        """A client's thread, from its first line to its last."""
        try:
            session.run()
        finally:
            self.sessions.discard(session)
            self.stop.wake()

    def log(self, text: str, client: str = "") -> None:
        self.write_log([log_line(self.args.json, text, client)])

    def write_log(self, lines: Sequence[str]) -> None:
        """One write, so that the lines of two threads do not mix.

        If the disk is full it may take only a part: then the next write begins a new line."""
        lost = self.lost_lines
        before = [log_line(self.args.json, f"{lost} lines lost before this one")] * bool(lost)
        now = "" if self.args.json else time.strftime("%Y-%m-%d %H:%M:%S ")
        text = "".join([f"{now}{each}\n" for each in [*before, *lines]])
        left = ("\n" * bool(lost) + text).encode()
        try:
            while left and self.log_fd >= 0:
                left = left[os.write(self.log_fd, left) :]
            self.lost_lines = 0
        except OSError as error:
            self.lost_lines += len(lines)
            if not lost and self.log_fd != 2:
                say(
                    f"cannot write the log ({error.strerror}): the lines that it misses are counted"
                )

    def remove_old_parts(self) -> None:
        with contextlib.suppress(OSError):
            for full, folder, _ in walk(Folder(self.args.directory), ""):
                if remove_if_old(folder, os.path.basename(full)):
                    self.log(f"removed {printable(full)}: nobody resumed it")

    def finish(self) -> None:
        """Close the listening socket, cut what is idle, and give transfers a moment to end."""
        for sock in [self.sock, *self.refused]:
            sock.close()
        dropped = len(self.sessions)
        # first those that are idle; what is under way has GRACE seconds to end by itself
        for seconds, busy_too in (GRACE, False), (LINGER, True):
            deadline = time.monotonic() + seconds
            while self.sessions and (left := deadline - time.monotonic()) > 0:
                for session in [each for each in list(self.sessions) if busy_too or each.is_idle()]:
                    session.cut()
                select.select([self.stop], [], [], min(left, ACCEPT_PAUSE))
                self.stop.drain()
        kept = len(self.kept)
        clients, parts = "s" * (dropped != 1), "s" * (kept != 1)
        if not self.args.quiet:
            say(f"stopped: {dropped} client{clients} disconnected, {kept} part{parts} kept")


def log_line(as_json: bool, text: str, client: str = "", **facts: object) -> str:
    """A line of the log, which begins with the time when it is written, or an object of JSON."""
    if not as_json:
        return f"{client} {text}" if client else text
    import json  # not at the top: few need it

    return json.dumps(
        {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "client": client, "text": text, **facts},
        ensure_ascii=False,
    )


def prepare_folder(args: argparse.Namespace) -> None:
    """Find the folder to share, made if missing, or the one name in it if a file is shared."""
    path = args.path or args.directory
    try:
        # what the command line names may be a link
        args.directory, args.only = os.path.realpath(path), ""
        if os.path.isfile(args.directory):
            args.directory, args.only = os.path.split(args.directory)
        os.makedirs(args.directory, exist_ok=True)
        Folder(args.directory)
    except OSError as error:
        raise Failure(
            26,
            f"cannot share {printable(path)} ({error.strerror})",
            "the folder is missing and cannot be made, or may not be read",
            "python3 server.py --directory FOLDER",
        ) from None


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
    args.max_clients = most_clients(args.max_clients)
    family, target = resolve(args.host, args.port, socket.SOCK_STREAM)[0]
    door = make_door(args, str(target[0]))
    if door.tls:
        # a client that waits for an answer shall see nothing but answers arrive
        door.tls.num_tickets = 0
    prepare_folder(args)
    args.read_only = args.read_only or bool(args.only)
    if args.drop_box and args.read_only:
        raise Failure(
            2,
            "a drop box must be a folder that may be changed",
            "nothing can be handed in to one file, nor where all is --read-only",
            "python3 server.py --drop-box FOLDER",
        )
    log_fd = open_log(args.log) if args.log else -1 if args.quiet else 2
    # a client that finds the backlog full tries again only after a second
    sock = bind(socket_class(args), family, target, 1024)
    server = Server(args, sock, door, log_fd)
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
def announce(sock: socket.socket, args: argparse.Namespace, door: Door) -> None:
    """Tell where the server listens: programs on stdout; people on stderr, with a command."""
    host, port = sock.getsockname()[:2]
    try:
        if sys.stdout is not None:  # else descriptor 1 is something of ours
            os.write(1, f"listening on {address((host, port))}\n".encode())
    except OSError as error:
        sock.close()
        raise Failure(
            23,
            f"cannot write standard output ({error.strerror})",
            "what reads it has ended, or its disk is full",
            "python3 server.py > FILE",
        ) from None
    elsewhere = reachable_at(sock)
    # who knows a made password needs no pin: see "Auth"
    flags = door.flags.replace(f" --pin {door.pin}", " --tls") if door.made else door.flags
    flags = f" --port {port}{flags}" if port != PORT else flags
    if args.quiet and not door.made:
        return
    for name in elsewhere:
        say(f"from another machine:\n  {CLIENT} --host {name}{flags}")
    if not elsewhere:
        named = f" --host {host}" if host != "127.0.0.1" else ""  # where clients look by themselves
        say(f"only this machine can reach it, with:  {CLIENT}{named}{flags} list")
    if not args.quiet:
        warn(args, door, bool(elsewhere))


def warn(args: argparse.Namespace, door: Door, reachable: bool) -> None:
    """What whoever starts it should know of who can do what."""
    if args.drop_box:
        say("drop box: who connects can add files, each in a folder of their own, and nothing else")
    if not reachable:
        return say("for others, start it with --host 0.0.0.0")
    if not door.guard:
        rights = "read it" if args.read_only else "read it and change it"
        rights = "add files" if args.drop_box else rights
        say(f"nobody is asked for a password: everybody who reaches it can {rights}")
    if not door.tls:
        guess = " and try to guess a weak password" if door.guard else ""
        say(f"nothing is encrypted: others on the way can read the traffic{guess}; --tls encrypts")


def limit_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
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
        help="refuse more clients at once (default 500)",
    )
    flag(
        "--timeout",
        type=between(0.01, 1e6, float),
        default=30.0,
        metavar="S",
        help="seconds that a line or body may stand still (default 30)",
    )


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="server.py")
    flag = parser.add_argument
    flag(
        "path",
        nargs="?",
        metavar="FOLDER",
        help="what is shared: a folder, made if missing, or a file (default files); or the port",
    )
    flag("--directory", default="files", metavar="DIR", help="the same as an option")
    flag(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default 127.0.0.1); 0.0.0.0 or :: for all",
    )
    flag("--port", type=between(0, 65535), default=PORT, help="0 takes a free one (default 9000)")
    door_flags(parser)
    flag("--read-only", action="store_true", help="refuse what would change the folder")
    flag("--drop-box", action="store_true", help="let clients add files, and do nothing else")
    flag("--hidden", action="store_true", help="show and serve names that start with a dot")
    flag("--durable", action="store_true", help="answer only when files are on the disk (fsync)")
    limit_flags(parser)
    flag("--log", metavar="FILE", help="where the log goes (default stderr)")
    flag("--json", action="store_true", help="write the log as one JSON object a line")
    flag("--quiet", action="store_true", help="no log on stderr, and no hints at the start")
    flag("--trace", action="store_true", help="print a line for each socket call")
    flag("--trace-hex", action="store_true", help="the same, with the first bytes")
    flag(
        "--pcap",
        type=Capture,
        metavar="FILE",
        help="store all that is sent, passwords too, for Wireshark",
    )
    flag("--version", action="version", version=f"%(prog)s {VERSION}, protocol {PROTOCOL}")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    speak_utf8()
    parser = build_parser()
    args = parser.parse_args(argv)
    # a number that is no file or folder is the port, as in httpserver.py
    if re.fullmatch("[0-9]{1,9}", args.path or "") and not os.path.lexists(args.path):
        args = parser.parse_args(["--port", args.path, args.directory], args)
    hear_ctrl_c()
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
