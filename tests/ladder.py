#!/usr/bin/env python3
"""Draw a connection from a saved --trace as a ladder diagram: SVG, for a report or a page.

    python3 tcp_upper.py client --trace hello 2> trace
    python3 tests/ladder.py trace > ladder.svg          the first connection in it
    python3 tests/ladder.py trace 2 > ladder.svg        the one that is marked #2

Time runs downwards. An arrow to the right is what this program sent, to the left what it received;
a wait is a gap, the longer the higher (a tenfold wait is one step more). A dashed arrow is what
the kernel does for a call: the handshake, a FIN. The trace may be that of any of the six scripts.
"""

import math
import re
import sys
from xml.sax.saxutils import escape

EVENT = re.compile(r" *([\d.]+) ms #(\d+) ([*<>]) (.+)")
LEFT, RIGHT, WIDTH = 210, 570, 640  # where the two sides stand, and the picture's width
TOP, ROW, STEP = 74, 30, 18  # above the first event, between two, and more for a tenfold wait
STYLE = """
  svg { background: #fff; font: 13px system-ui, sans-serif; }
  text { fill: #222; } .faint { fill: #666; } .bad { fill: #b00020; }
  line, path { stroke: #222; fill: none; } .side { stroke: #999; } .kernel { stroke-dasharray: 5 4; }
  .bad-line { stroke: #b00020; }
  @media (prefers-color-scheme: dark) {
    svg { background: #1b1b1b; } text { fill: #eee; } .faint { fill: #aaa; } .bad { fill: #ff8a80; }
    line, path { stroke: #eee; } .side { stroke: #777; } .bad-line { stroke: #ff8a80; }
  }
"""


def read(lines, number=None):
    """The events of one connection: milliseconds, mark and text; and the connection's number."""
    events = []
    for line in lines:
        match = EVENT.fullmatch(line.rstrip("\n"))
        if match and number in (None, match[2]):
            number = match[2]
            events.append((float(match[1]), match[3], match[4]))
    return events, number


def label(mark, text):
    """What stands at an event, and how it is drawn: an arrow right or left, dashed or not, or none."""
    size = re.search(r"(\d+) (?:of|bytes)", text)
    if re.match(r"[\w ]+(?:\S+)?: ", text):  # a call that failed
        return text, "left" if mark == "<" else "none", False, True
    if text.startswith("connect "):
        return (
            re.sub(r"connect (\S+) ok from \S+ \((.*)\)", r"connect (\2)", text),
            "both",
            True,
            False,
        )
    if text.startswith("accept "):
        return "accept", "back", True, False
    if "= FIN" in text or "peer sent FIN" in text:
        return "FIN", "right" if mark == "*" else "left", True, False
    if mark == ">":
        return f"{size[1]} bytes" if size else text, "right", False, False
    if mark == "<" and size:
        return f"{size[1]} bytes", "left", False, False
    return text, "none", False, False


def names(events):
    """Who stands left and right: this program, and whom it speaks to."""
    for _, _, text in events:
        found = re.match(r"connect (\S+) ok from (\S+)", text)
        if found:
            return found[2], found[1]
        found = re.match(r"(?:accept from|sendto|recvfrom) (\S+)", text)
        if found:
            return "this program", found[1]
    return "this program", "the other side"


def arrow(direction, y, dashed, bad):
    ends = {
        "right": (LEFT, RIGHT),
        "left": (RIGHT, LEFT),
        "both": (LEFT, RIGHT),
        "back": (RIGHT, LEFT),
    }
    start, end = ends[direction]
    tip = 8 if end > start else -8
    colour = "bad-line" * bad
    head = f"M{end - tip} {y - 4}L{end} {y}L{end - tip} {y + 4}"
    if direction in ("both", "back"):  # a handshake goes both ways
        head += f"M{start + tip} {y - 4}L{start} {y}L{start + tip} {y + 4}"
    shaft = f'<path class="{"kernel " * dashed}{colour}" d="M{start} {y}H{end}"/>'
    return f'{shaft}<path class="{colour}" d="{head}"/>'


def draw(events, number):
    here, there = names(events)
    y, before, first = TOP, None, events[0][0]
    rows = []
    for now, mark, text in events:
        wait = 0.0 if before is None else max(0.0, now - before)
        y += ROW + STEP * max(0, math.log10(wait)) if wait else ROW
        before = now
        says, direction, dashed, bad = label(mark, text)
        at = round(y)
        rows.append(
            f'<text class="faint" x="{LEFT - 14}" y="{at + 4}" text-anchor="end">{now - first:.3f} ms</text>'
        )
        kind = ' class="bad"' if bad else ""
        if direction == "none":
            rows.append(f'<text{kind} x="{LEFT + 12}" y="{at + 4}">{escape(says)}</text>')
            continue
        rows.append(arrow(direction, at, dashed, bad))
        middle = (LEFT + RIGHT) // 2
        rows.append(
            f'<text{kind} x="{middle}" y="{at - 5}" text-anchor="middle">{escape(says)}</text>'
        )
    height = round(y) + 40
    sides = "".join(
        f'<line class="side" x1="{x}" y1="{TOP - 14}" x2="{x}" y2="{height - 16}"/>'
        for x in (LEFT, RIGHT)
    )
    heads = "".join(
        f'<text x="{x}" y="{TOP - 24}" text-anchor="middle">{escape(name)}</text>'
        for x, name in ((LEFT, here), (RIGHT, there))
    )
    title = f"connection #{number}: {here} and {there}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style>\n"
        f'<text class="faint" x="20" y="24">{escape(title)}; time runs downwards</text>\n'
        f"{heads}{sides}\n" + "\n".join(rows) + "\n</svg>\n"
    )


def main(argv):
    if not argv or argv[0].startswith("-"):
        print(__doc__, end="")
        return 2
    try:
        with open(argv[0], encoding="utf-8", errors="replace") as trace:
            events, number = read(trace, argv[1] if len(argv) > 1 else None)
    except OSError as error:
        print(f"error: cannot read {argv[0]} ({error.strerror})", file=sys.stderr)
        return 26
    if not events:
        print(
            f"error: {argv[0]} holds no such connection: is it what --trace printed?",
            file=sys.stderr,
        )
        return 26
    sys.stdout.write(draw(events, number))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
