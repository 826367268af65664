"""The QR code that httpserver.py draws on a terminal, read by an independent decoder: Debian's zbar-tools."""

import fcntl
import importlib.util
import os
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios

import pytest
from conftest import DEADLINE, ROOT

spec = importlib.util.spec_from_file_location("httpserver", ROOT / "httpserver.py")
httpserver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(httpserver)
needs_zbar = pytest.mark.skipif(not shutil.which("zbarimg"), reason="needs zbarimg (zbar-tools)")
# bytes that a code of each version, 1 to 10, holds at most
MOST = (17, 32, 53, 78, 106, 134, 154, 192, 230, 271)
EDGES = sorted({1, *MOST, *(most + 1 for most in MOST[:-1])})
SIGNS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:/@.%-_?&="
HALVES = {" ": "00", "\u2580": "10", "\u2584": "01", "\u2588": "11"}


def text_of(length):
    return "".join(random.Random(length).choices(SIGNS, k=length))


def draw(path, rows):
    """A picture of rows of 0 and 1, three points a module."""
    lines = [bytes(0 if bit == "1" else 255 for bit in row for _ in range(3)) for row in rows]
    head = b"P5 %d %d 255\n" % (3 * len(rows[0]), 3 * len(rows))
    path.write_bytes(head + b"".join(line * 3 for line in lines))


def read(*paths):
    done = subprocess.run(["zbarimg", "-q", "--raw", *paths], capture_output=True, check=True)
    return done.stdout.decode().splitlines()


@needs_zbar
def test_a_decoder_reads_codes_of_every_length(tmp_path, full):
    lengths = range(1, 272) if full else EDGES
    for length in lengths:
        code = httpserver.qr_code(text_of(length).encode())
        assert len(code) == 17 + 4 * (1 + sum(most < length for most in MOST))
        quiet = [""] * 4
        draw(
            tmp_path / f"{length:03}.pgm",
            [row.center(len(code) + 8, "0") for row in quiet + code + quiet],
        )
    assert read(*sorted(tmp_path.glob("*.pgm"))) == [text_of(length) for length in lengths]


def on_terminal(folder, *flags, columns=80, encoding="utf-8", term="xterm"):
    """What the server says to a terminal of that width, when it has begun."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 60, columns, 0, 0))
    command = [sys.executable, str(ROOT / "httpserver.py"), str(folder), "--port", "0", *flags]
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        start_new_session=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "TERM": term},
    )
    os.close(slave)
    try:
        port = int(re.search(rb":(\d+)/\n", process.stdout.readline())[1])
        process.send_signal(signal.SIGINT)
        said = b""
        while select.select([master], [], [], DEADLINE)[0]:
            try:
                said += os.read(master, 65536)
            except OSError:  # it has ended
                break
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.stdout.close()
        os.close(master)
    return said.decode(errors="replace").replace("\r\n", "\n"), port


def drawn(said):
    return re.findall(r"^\x1b\[30;107m(.*)\x1b\[0m$", said, re.M)


@needs_zbar
def test_on_a_terminal_a_code_holds_the_first_url_for_others_and_the_password_that_was_made(
    tmp_path,
):
    said, _ = on_terminal(tmp_path, "--host", "0.0.0.0")
    lines = drawn(said)
    if not lines:
        pytest.skip("this machine has no address for others")
    rows = ["".join(HALVES[sign][half] for sign in line) for line in lines for half in (0, 1)]
    draw(tmp_path / "code.pgm", rows)
    urls = re.findall(r"http://any:\S+@\S+/", said)
    assert read(tmp_path / "code.pgm") == urls[:1]
    # the quiet zone, on all sides
    assert "1" not in "".join([*rows[:4], *rows[-4:], *(row[:4] + row[-4:] for row in rows)])
    assert len(rows[0]) <= 41


@pytest.mark.parametrize(
    "flags, terminal",
    [
        (["--host", "0.0.0.0", "--open", "--no-qr"], {}),
        (["--host", "0.0.0.0", "--open"], {"columns": 30}),
        (["--host", "0.0.0.0", "--open"], {"encoding": "latin-1"}),
        (["--host", "0.0.0.0", "--open"], {"term": "dumb"}),
        ([], {}),
    ],
    ids=["not wanted", "too narrow", "no such signs", "no colours", "nobody else reaches it"],
)
def test_there_is_no_code_where_it_would_not_serve(flags, terminal, tmp_path):
    said, _ = on_terminal(tmp_path, *flags, **terminal)
    assert "\x1b" not in said and "Traceback" not in said
