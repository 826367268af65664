"""tests/ladder.py draws what a trace says: its arrows, in order, as well-formed SVG."""

import re
from xml.etree import ElementTree

import pytest
from conftest import ROOT
from ladder import events_of, ladder

FRESH = "    1.000 ms #1 * connect 127.0.0.1:12000 ok from 127.0.0.1:37464 (handshake 0.10 ms)\n"
HANDSHAKE = [("SYN", True), ("SYN, ACK", False), ("ACK", True)]
SENT = "    1.100 ms #1 > send 6 of 6 bytes (sent so far 6)\n"
CAME = "    9.000 ms #1 < recv 6 of at most 65536 bytes, waited 0.10 ms (received so far 6)\n"
FIN = "    9.100 ms #1 * shutdown of sending = FIN\n"
PEER_FIN = "    9.200 ms #1 < recv 0 bytes = peer sent FIN (end of stream)\n"
CLOSE = "    9.300 ms #1 * close (sent 6, received 6)\n"
RST = "    9.200 ms #1 < recv: Connection reset by peer\n"
REFUSED = "    1.000 ms #1 * connect 127.0.0.1:12000: Connection refused\n"
ACCEPTED = "    1.000 ms #1 * accept from 127.0.0.1:37464\n"


UDP = "    1.000 ms #1 > sendto 127.0.0.1:12000 5 bytes\n"
UDP_CAME = "    2.000 ms #1 < recvfrom 127.0.0.1:12000 5 of at most 65536 bytes, waited 0.07 ms\n"


def draw(trace):
    return ladder(events_of(trace), "a trace")


def arrows(svg):
    """(what it is labelled with, whether it goes to the right) of each arrow, from the top."""
    root = ElementTree.fromstring(svg)
    found = []
    for place, each in enumerate(root):
        if each.tag.endswith("polygon"):
            line, label = root[place - 1], root[place + 1]
            found.append((label.text, float(line.get("x1")) < float(line.get("x2"))))
    return found


@pytest.mark.parametrize(
    "trace, want",
    [
        (FRESH + SENT, [*HANDSHAKE, ("6 bytes", True)]),
        (FRESH + SENT.replace("#1", "#2"), HANDSHAKE),
        (FRESH + "HELLO\n" + CAME.replace("recv 6", "recv 1"), [*HANDSHAKE, ("1 byte", False)]),
        (FRESH + FIN + PEER_FIN + CLOSE, [*HANDSHAKE, ("FIN", True), ("FIN", False)]),
        (FRESH + PEER_FIN + CLOSE, [*HANDSHAKE, ("FIN", False), ("FIN", True)]),
        (FRESH + RST + CLOSE, [*HANDSHAKE, ("RST", False)]),
        (REFUSED + CLOSE, [("SYN", True), ("RST", False)]),
        (UDP + UDP_CAME, [("5 bytes", True), ("5 bytes", False)]),
        (ACCEPTED, [(label, not right) for label, right in HANDSHAKE]),
    ],
)
def test_the_arrows_are_what_the_trace_says(trace, want):
    assert arrows(draw(trace)) == want


def test_who_sent_the_first_fin_keeps_time_wait_and_a_pause_tells_its_length():
    ours = draw(FRESH + SENT + CAME + FIN + PEER_FIN + CLOSE)
    theirs = draw(FRESH + PEER_FIN + CLOSE)
    assert re.search(r'text-anchor="end"[^>]*>TIME_WAIT', ours)
    assert re.search(r'text-anchor="start"[^>]*>TIME_WAIT', theirs)
    assert ">8 ms<" in ours


def test_a_longer_wait_is_a_larger_gap():
    def height(wait):
        later = CAME.replace("9.000", f"{1.0 + wait:.3f}")
        return float(re.search(r'viewBox="0 0 \d+ (\d+)"', draw(FRESH + later))[1])

    assert height(0.1) < height(2) < height(50) < height(5000)


def test_the_program_draws_one_connection_and_says_which_is_missing(run, tmp_path):
    program, trace = ROOT / "tests" / "ladder.py", tmp_path / "trace"
    trace.write_text(FRESH + SENT + (FRESH + CAME).replace("#1", "#2"))
    for number, want in (
        (None, ("6 bytes", True)),
        ("1", ("6 bytes", True)),
        ("2", ("6 bytes", False)),
    ):
        done = run(program, "--title", "<hello>", trace, *([number] if number else []))
        assert arrows(done.out)[-1] == want and b"&lt;hello&gt;" in done.out
    assert b"prefers-color-scheme:dark" in done.out
    for words, problem in (((trace, "7"), "connection #7"), ((tmp_path / "none",), "cannot read")):
        done = run(program, *words)
        assert done.code == 26 and problem in done.err
