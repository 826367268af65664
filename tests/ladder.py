#!/usr/bin/env python3
"""Draw a ladder diagram of one connection, as SVG, from what --trace of any of the six scripts printed.

    python3 tcp_upper.py client --trace hello 2> trace
    python3 tests/ladder.py trace > ladder.svg        the first connection in it
    python3 tests/ladder.py trace 2 > ladder.svg      the one that is marked #2
    python3 tests/ladder.py --guide tests/charts      the README's diagrams, from traces made now

Time runs downwards. On the left is the program that was traced, on the right the other side, which is seen only through what
arrived: an arrow from there ends when recv() returned. A pause of a millisecond or more is a gap with its length beside it; gaps
grow with the logarithm of the time. Dashed arrows are what the kernel does by itself, which no trace of socket calls shows.
"""

import argparse
import math
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
WIDTH, LEFT, RIGHT, TOP = 760, 250, 560, 76  # pixels of the SVG's own grid
ROW, DECADE, TILT = (
    24,
    13,
    12,
)  # between two events, for each factor of ten, from one end of an arrow to the other
PAUSE = 1.0  # milliseconds from which a gap tells its length
LINE = re.compile(r" *(\d+\.\d+) ms #(\d+) ([*<>]) (.*)")
STYLE = (
    "<style>text{font:13px system-ui,sans-serif}.title{font-size:16px;font-weight:600}.small{font-size:11px}"
    "text{fill:#1c1917}.paper{fill:#ffffff}.life{stroke:#a8a29e}.arrow{stroke:#0a5fb4}.head{fill:#0a5fb4}.dim{fill:#78716c}"
    ".line{stroke-width:2}.kernel{stroke-dasharray:5 4;stroke-width:1.5}.dots{stroke-dasharray:2 5}"
    "@media(prefers-color-scheme:dark){text{fill:#e7e5e4}.paper{fill:#1c1917}.life{stroke:#78716c}.arrow{stroke:#6cb6ff}"
    ".head{fill:#6cb6ff}.dim{fill:#a8a29e}}</style>"
)


class Event(NamedTuple):
    """A line of the trace."""

    ms: float
    mark: str
    words: str


class Arrow(NamedTuple):
    """What goes from one side to the other."""

    right: bool  # to the other side
    label: str
    kernel: bool  # no call of the program sent or took it


def events_of(trace, connection=None):
    """The lines about this connection, or about the first, and when each happened after the first of them."""
    # a shutdown of what the other side has ended already says nothing about the wire
    found = [
        line for line in map(LINE.match, trace.splitlines()) if line and "shutdown: " not in line[4]
    ]
    connection = connection or (found[0][2] if found else None)
    events = [
        Event(float(line[1]), line[3], line[4]) for line in found if line[2] == str(connection)
    ]
    return [event._replace(ms=event.ms - events[0].ms) for event in events]


def arrows_of(event):
    """What a line of the trace says about the wire."""
    words = event.words
    if words.startswith("connect"):
        first = [Arrow(True, "SYN", True)]
        if " ok " in words:
            return [*first, Arrow(False, "SYN, ACK", True), Arrow(True, "ACK", True)]
        return [*first, Arrow(False, "RST", True)] if "refused" in words else first
    if words.startswith("accept"):
        return [Arrow(False, "SYN", True), Arrow(True, "SYN, ACK", True), Arrow(False, "ACK", True)]
    if "= FIN" in words:
        return [Arrow(True, "FIN", False)]
    if "peer sent FIN" in words:
        return [Arrow(False, "FIN", False)]
    if "reset by peer" in words:
        return [Arrow(False, "RST", False)]
    moved = re.match(r"(send|recv|sendfile|sendto \S+|recvfrom \S+) (\d+)", words)
    if moved and moved[2] != "0":
        return [Arrow(event.mark == ">", f"{int(moved[2]):,} byte{'s' * (moved[2] != '1')}", False)]
    return []


def with_last_fin(events):
    """The events with their arrows; close() sends the FIN that shutdown() has not sent."""
    found, sent = [], []
    for event in events:
        arrows = arrows_of(event)
        labels = [each.label for each in sent]
        ended = Arrow(True, "FIN", False) in sent or "RST" in labels or "SYN, ACK" not in labels
        if event.words.startswith("close") and not ended:
            arrows = [Arrow(True, "FIN", True)]
        found.append((event, arrows))
        sent += arrows
    return found, [each.right for each in sent if each.label == "FIN"]


def call_of(event):
    """The call, as the side that made it is labelled."""
    words = event.words
    if "= FIN" in words:
        return "shutdown()"
    found = re.match(r"[a-z]+", words)
    result = " = 0" if "recv 0" in words else ""
    return f"{found[0]}(){result}" if found else ""


def ends_of(events):
    """The address on the left and the one on the right."""
    for event in events:
        if found := re.match(r"connect (\S+?):? .*?(?:ok from (\S+)|$)", event.words):
            return found[2] or "", found[1]
        if found := re.match(r"(?:accept from|sendto|recvfrom) (\S+)", event.words):
            return "", found[1]
    return "", ""


def text(x, y, words, anchor="start", kind=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def line(x1, y1, x2, y2, kind):
    return f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" class="{kind}"/>'


def arrow(y, which):
    """An arrow that is sent at y, or has arrived by then; and where the next one may begin."""
    start, end, way = (LEFT, RIGHT, 1) if which.right else (RIGHT, LEFT, -1)
    kind = "arrow kernel" if which.kernel else "arrow line"
    head = f"{end},{y + TILT} {end - 9 * way},{y + TILT - 6} {end - 9 * way},{y + TILT + 4}"
    middle = (LEFT + RIGHT) / 2
    return (
        line(start, y, end - 6 * way, y + TILT - 1, kind)
        + f'<polygon points="{head}" class="head"/>'
        + text(middle, y + TILT / 2 - 5, which.label, "middle")
    )


def ladder(events, title, names=("this program", "the other side")):
    """The whole picture."""
    events, fins = with_last_fin(events)
    y, parts, before = TOP + 14, [], 0.0
    for event, arrows in events:
        passed, before = event.ms - before, event.ms
        gap = DECADE * max(0.0, math.log10(max(passed, 0.1) / 0.1))
        if passed >= PAUSE:
            gap = max(gap, 30)
            parts.append(text(LEFT + 8, y + gap / 2 - 4, f"{passed:,.0f} ms", kind="small dim"))
        y += gap
        # what arrives has its call where it ends, what leaves where it starts
        arrives = bool(arrows) and not arrows[0].right
        at = y + TILT * arrives
        parts.append(text(LEFT - 10, at + 4, call_of(event), "end"))
        parts.append(text(100, at + 4, f"{event.ms:,.1f} ms", "end", "small dim"))
        for each in arrows:
            parts.append(arrow(y, each))
            y += ROW
        y += TILT * arrives if arrows else ROW
    if (
        True in fins and False in fins
    ):  # who sent the first one waits for what may still be under way
        x, anchor = (LEFT - 10, "end") if fins[0] else (RIGHT + 10, "start")
        parts.append(text(x, y + 4, "TIME_WAIT", anchor))
        y += ROW
    height = y + 40
    own, other = ends_of([event for event, _ in events])
    lives = [line(x, TOP, x, y, "life line") for x in (LEFT, RIGHT)]
    heads = [
        text(LEFT, TOP - 24, names[0], "middle"),
        text(LEFT, TOP - 8, own, "middle", "small dim"),
        text(RIGHT, TOP - 24, names[1], "middle"),
        text(RIGHT, TOP - 8, other, "middle", "small dim"),
    ]
    note = "Made from a --trace. Dashed: what the kernel does by itself. The kernel's ACKs of data are left out."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img"><title>{escape(title)}</title>{STYLE}'
        f'<rect class="paper" width="{WIDTH}" height="{height:.0f}"/>{text(16, 26, title, kind="title")}'
        + "".join([*lives, *heads, *parts])
        + f"{text(16, height - 10, note, kind='small')}</svg>\n"
    )


# --- the README's diagrams ---
class Played:
    """A server and a client of ours that talk to each other: what the client's trace says."""

    def __init__(self, server, *options):
        self.server = subprocess.Popen(
            [sys.executable, ROOT / server, *options, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.port = re.search(r":(\d+)/?$", self.server.stdout.readline().strip())[1]

    def client(self, *command, said=(), piped=""):
        """Its trace. The pipe is text that ends, at once. Or it is told each of these lines when the one before has been answered; then the server is stopped."""
        command = [sys.executable, ROOT / command[0], *command[1:], "--trace", "--port", self.port]
        with tempfile.TemporaryFile("w+") as trace:
            client = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=trace, text=True
            )
            for words in said:
                client.stdin.write(words + "\n")
                client.stdin.flush()
                client.stdout.readline()
            if said:
                self.stop()
            client.communicate(piped)
            self.stop()
            trace.seek(0)
            return trace.read()

    def stop(self):
        self.server.send_signal(signal.SIGINT)
        self.server.wait()
        self.server.stdout.close()


def guide(folder):
    """The diagrams of the lab guide, by the number of the experiment."""
    pair = ("client", "server")
    hello = ("tcp_upper.py", "client")
    with tempfile.TemporaryDirectory() as shared:
        for name in ("1.txt", "2.txt", "3.txt"):
            Path(shared, name).write_text(name)
        files = [
            "httpclient.py",
            "get",
            "/1.txt",
            "/2.txt",
            "/3.txt",
            "-o",
            f"{shared}/copies/",
            "--quiet",
        ]
        traces = {
            1: (
                "One message over TCP",
                Played("tcp_upper.py", "server").client(*hello, "hello, welcome"),
            ),
            7: (
                "Half-close: the answer comes after the client's FIN",
                Played("tcp_upper.py", "server", "--delay", "1").client(*hello, piped="hello\n"),
            ),
            9: (
                "The server closes first",
                Played("tcp_upper.py", "server").client(*hello, said=["hi"]),
            ),
            18: ("Three files on one connection", Played("httpserver.py", shared).client(*files)),
        }
    for number, (title, trace) in traces.items():
        Path(folder, f"ladder-{number}.svg").write_text(
            ladder(events_of(trace), f"{number}. {title}", pair)
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", nargs="?", help="a file with what --trace printed")
    parser.add_argument("connection", nargs="?", help="the number behind # (default the first one)")
    parser.add_argument("--title", help="what stands above the picture")
    parser.add_argument("--guide", metavar="FOLDER", help="make the README's diagrams")
    args = parser.parse_args()
    if args.guide:
        guide(args.guide)
        return 0
    if not args.trace:
        parser.error("name a file with what --trace printed")
    try:
        trace = Path(args.trace).read_text(errors="replace")
    except OSError as error:
        print(f"error: cannot read {args.trace} ({error.strerror})", file=sys.stderr)
        return 26
    events = events_of(trace, args.connection)
    if not events:
        which = f"connection #{args.connection}" if args.connection else "connection"
        print(
            f"error: there is no {which} in {args.trace}: is it what --trace printed?",
            file=sys.stderr,
        )
        return 26
    sys.stdout.write(ladder(events, args.title or "One connection"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
