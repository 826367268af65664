"""Every command block of README.md is played as a person would, and what its terminals show is compared with the README.

A ```console block is what a person sees in one or more terminals. `server$ CMD` is typed at the prompt of the terminal that is
called "server"; `$ CMD` at the only one. `server:` alone, or before a line, says that the next lines are what that terminal shows
meanwhile. `^C` at the start of a line is Ctrl-C, `^D` Ctrl-D, and a line that begins with a program's own prompt is typed there.
All other lines are what the terminal shows: `...` stands for any text, alone on a line for any lines. Times, rates, dates, free
ports and this machine's addresses are masked on both sides.

The terminals are real (pty) with bash in them. What is typed next is typed when the lines so far are there: what never comes is
a hang, and a line that nothing announced is an error, as is a program that still runs at the end. The lab guide is played once
from its first experiment to the last in the same terminals and the same folder, and each experiment alone.

The folder holds copies of the scripts, in which the default ports are replaced by free ones, so that a server which runs on this
machine is in nobody's way, and in which UDP's first tries wait longer, so that a machine that is busy for a moment loses nothing.
"""

import functools
import marshal
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import NamedTuple

import pytest
from conftest import DEADLINE, ROOT, SCRIPTS, assert_clean, free_port

fcntl = pytest.importorskip("fcntl", reason="there are no terminals (pty) to type into")
termios = pytest.importorskip("termios", reason="there are no terminals (pty) to type into")
pytestmark = pytest.mark.long(30)  # in one process: each script is compiled once
README = (ROOT / "README.md").read_text()
DEFAULT_PORTS = ("8000", "9000", "12000")
PROGRAMS = ("curl", "openssl", "wget", "tshark")  # which a machine may lack
PROMPTS = ("Input lowercase sentence: ", "sixsockets> ", "> ")  # of our own programs
KEYS = {"C": "\x03", "D": "\x04"}
NAMES = ("server", "client", "third", "fourth", "")  # of terminals; "" where one is enough
ROWS, COLUMNS = 24, 100
SHELL = "bash --noprofile --norc --noediting"
MASKS = [
    (r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?", "DATE"),
    (r"(?m)^\d\d:\d\d (?=\S)", "HH:MM "),
    (r" *\d+\.\d+(/\d+\.\d+)* (m?s)\b", r" TIME \2"),
    (r"\d+(\.\d+)? (bytes|[kMG]B)/s", "RATE"),
    (r"#\d+ ", "#N "),
    (rf"((?:\d+\.){{3}}\d+|\[[0-9a-f:]+\]):(?!(?:{'|'.join(DEFAULT_PORTS)})\b)\d+", r"\1:PORT"),
    (r"\b(?!127\.0\.0\.|0\.0\.0\.0|192\.0\.2\.)(\d+\.){3}\d+\b", "ADDRESS"),
]


# --- what the README says ---
class Act(NamedTuple):
    """One thing that a person does in a terminal, or looks at there."""

    name: str  # the terminal's
    kind: str  # "command", "key" (Ctrl-C or Ctrl-D), "line" (typed into a program) or "look"
    text: str  # what is typed
    prompt: str  # the program's, at which that is typed, or ""
    shows: list  # the lines that appear then, with that of the act itself where it leaves one
    number: int  # of the line in the README


def acts_of(block, first=1):
    """What is done in a block, in order."""
    acts, name, prompts = [], "", PROMPTS
    for number, line in enumerate(block.splitlines(), first):
        found = re.match(r"(\w*)\$ (.*)|(\w+):(?: (.*))?$", line)
        if found and found[1] in NAMES:
            name = found[1]
            acts.append(Act(name, "command", found[2], "", [], number))
            # a trace of HTTP has lines that begin as the prompt of a chat does
            prompts = PROMPTS if " chat" in found[2] else PROMPTS[:-1]
            continue
        if found and found[3] and found[3] in NAMES:
            name, line = found[3], found[4]
            acts.append(Act(name, "look", "", "", [], number))
            if line is None:
                continue
        prompt = next(filter(line.startswith, prompts), "")
        key = re.match(r"\^([CD])(.*)", line[len(prompt) :])
        if key:
            shows = [prompt + key[2]] if prompt + key[2] else []
            acts.append(Act(name, "key", KEYS[key[1]], prompt, shows, number))
        elif prompt:
            acts.append(Act(name, "line", line[len(prompt) :] + "\n", prompt, [line], number))
        else:
            acts[-1].shows.append(line)
    return acts


class Part(NamedTuple):
    """A heading of the README, and the blocks below it."""

    title: str
    text: str
    blocks: list  # of acts


def parts():
    found = []
    for match in re.finditer(r"^#+ (.*)\n((?s:.*?))(?=^#+ |\Z)", outside_blocks(README), re.M):
        start, end = match.span(2)
        blocks = [
            acts_of(block[1], README[: start + block.start(1)].count("\n") + 1)
            for block in re.finditer(r"^```console\n(.*?)^```$", README[start:end], re.M | re.S)
        ]
        if blocks:
            found.append(Part(match[1], README[start:end], blocks))
    return found


def outside_blocks(text):
    """The text with # in its code blocks made harmless: there it is no heading."""
    return re.sub(
        r"^```.*?^```$", lambda block: block[0].replace("#", " "), text, flags=re.M | re.S
    )


PARTS = parts()
GUIDE = [part for part in PARTS if re.match(r"\d+\. ", part.title)]
TASKS = [part for part in PARTS if part not in GUIDE]


# --- what is compared ---
def masked(text):
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text)
    return text


def pattern_of(expected):
    """What the lines describe, as a regular expression for masked text."""
    return "".join(
        r"(?:.*\n)*?"
        if line == "..."
        else ".*".join(map(re.escape, masked(line).split("..."))) + r"\n"
        for line in expected
    )


def agrees(expected, got):
    """Whether the lines a block shows describe all that was printed."""
    return re.fullmatch(pattern_of(expected), masked(got)) is not None


def begins(expected, got):
    """Whether they describe how it begins."""
    return re.match(pattern_of(expected), masked(got)) is not None


def on_screen(text):
    """What a terminal shows of a program's output: what was overwritten or erased in a line is gone."""
    text = re.sub(r"\x1b\][^\a]*\a|\x1b\[[0-9;?]*[A-IL-Za-z]|\x1b[=>]", "", text)
    return "\n".join(map(row, text.split("\n")))


def row(line):
    shown = ""
    for piece in line.split("\r"):
        piece, erased, rest = re.sub(r".\x08 \x08|\x07", "", piece).partition("\x1b[K")
        shown = piece + rest if erased else piece + shown[len(piece) :]
    return re.sub(r"\x1b\[[JK]", "", shown)


# --- the terminals ---
class Wrong(AssertionError):
    """What a person would call wrong in what is on the screen."""


class Terminal:
    """A terminal with bash in it, and what it has shown since the last command was typed."""

    def __init__(self, name, player):
        self.name, self.player = name, player
        self.text, self.heard = "", threading.Condition()
        self.command, self.expected = "", []
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        # the prompt puts the exit code into the window's title, as many people's does
        env = {**player.env, "PS1": rf"\e]0;$?\a{name}$ "}
        # the first terminal that the leader of a session opens is the one whose Ctrl-C it gets
        self.bash = subprocess.Popen(
            ["sh", "-c", f"exec {SHELL} <$0 >$0 2>&1", os.ttyname(slave)],
            cwd=player.folder,
            env=env,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self.gather, daemon=True)
        self.reader.start()
        self.wait(self.at_prompt, "the first prompt", DEADLINE)
        os.close(slave)  # not before: with nobody at the other end, reading the terminal fails

    def gather(self):
        with suppress(OSError):
            while chunk := os.read(self.master, 65536):
                with self.heard:
                    self.text += chunk.decode(errors="replace")
                    self.heard.notify_all()

    def at_prompt(self):
        """The prompt that ends what was shown, if the command has ended: [1] is its exit code."""
        return re.search(rf"\x1b\]0;(\d+)\a{self.name}\$ $", self.text)

    def shown(self):
        """What the last command has printed so far."""
        prompt = self.at_prompt()
        text = self.text[: prompt.start()] if prompt else self.text
        # where the kernel echoes Ctrl-C and Ctrl-D depends on what is printed at the same moment
        text = on_screen(text).replace("^C", "").replace("^D\b\b", "")
        if prompt and text and not text.endswith("\n"):
            text += "\n"  # the command did not end its last line: the prompt follows on it
        return swap(text, back=True)

    def wait(self, condition, what, seconds=None):
        seconds = seconds or self.player.deadline
        deadline = time.monotonic() + seconds
        with self.heard:
            while not (value := condition()):
                if (left := deadline - time.monotonic()) <= 0:
                    raise Wrong(self.account(f"hangs: waited {seconds:g} s for {what}"))
                self.heard.wait(left)
            return value

    def account(self, problem):
        return (
            f"terminal {self.name!r}: {problem}\n$ {self.command}\n--- it shows:\n{self.shown()}\n"
            "--- the README shows:\n" + "\n".join(self.expected)
        )

    def type(self, text):
        os.write(self.master, text.encode())

    def start(self, command):
        """Type a command at the prompt."""
        if not self.at_prompt() or self.shown():
            raise Wrong(self.account("is not at a fresh prompt"))
        self.command, self.expected = command, []
        self.player.compile(command)
        typed = swap(command)
        self.type(typed + "\n")
        # the kernel echoes it; what is left of the text is the command's
        self.wait(lambda: "\n" in self.text, "the echo", DEADLINE)
        with self.heard:
            self.text = self.text.partition("\n")[2]

    def goes_on(self, prompt=""):
        """Wait until what a running program shows is what the README shows up to here."""

        def ready():
            text = self.shown()
            there = begins(self.expected, text) and (not prompt or text.endswith(prompt))
            if self.at_prompt() and not there:
                raise Wrong(self.account("has ended"))
            return there

        self.wait(ready, "these lines" + (f" and {prompt!r}" if prompt else ""))

    def ends(self):
        """Wait for the shell's prompt; then every line must be as the README shows it."""
        prompt = self.wait(self.at_prompt, "the prompt")
        text = self.shown()
        if not agrees(self.expected, text):
            raise Wrong(self.account("shows something else"))
        assert_clean(text)
        self.player.records.append((self.expected, text, int(prompt[1])))
        with self.heard:
            self.text = self.text[prompt.start() :]

    def close(self):
        # what still runs there, of a block that is wrong; 0 would be our own group
        with suppress(OSError):
            if group := os.tcgetpgrp(self.master):
                os.killpg(group, signal.SIGKILL)
        self.bash.kill()
        self.bash.wait(DEADLINE)
        self.reader.join(DEADLINE)
        os.close(self.master)


# python3 on the person's PATH: a script that is as it was compiled is not compiled at each of its starts
PYTHON = """#!/bin/sh
[ "$1" -ot "{programs}/$1.code" ] && exec "{python}" "{programs}/start.py" "{programs}/$1.code" "$@"
exec "{python}" "$@"
"""
START = """import marshal, os, sys
with open(sys.argv[1], "rb") as file:
    code = marshal.load(file)
del sys.argv[:2], file, marshal
__file__ = os.path.abspath(sys.argv[0])
sys.path[0] = os.path.dirname(__file__)
exec(code)
"""


@functools.lru_cache(2)
def ports(pid):
    """What takes the place of the default ports in one process of the tests: always the same, so that a script is compiled once."""
    return {port: str(free_port()) for port in DEFAULT_PORTS}


def swap(text, after=r"\b", back=False):
    """Default ports for free ones, or back; in a script only where a port is meant."""
    for default, free in ports(os.getpid()).items():
        old, new = (free, default) if back else (default, free)
        text = re.sub(rf"(?i)({after}){old}\b", rf"\g<1>{new}", text)
    return text


@functools.lru_cache(2)
def scripts(pid):
    """The source of each, with these ports."""
    found = {}
    for script in SCRIPTS:
        source = (ROOT / script).read_text()
        source = source.replace("TRIES = (0.1, 0.2, 0.4, 0.8)", "TRIES = (0.6, 0.7, 0.3, 0.4)")
        found[script] = swap(source, after=r"port\W{1,3}|:|default[ =]")
    return found


@functools.lru_cache(None)
def bytecode(source):
    return marshal.dumps(compile(source, "script", "exec", dont_inherit=True))


class Player:
    """The person: a folder with the scripts, and terminals that are opened when they are first needed."""

    def __init__(self, folder, deadline=DEADLINE):
        self.folder, self.deadline = folder, deadline
        folder.mkdir()
        for script, source in scripts(os.getpid()).items():
            (folder / script).write_text(source)
        self.programs = programs = folder.with_name(folder.name + "-bin")
        programs.mkdir()
        (programs / "start.py").write_text(START)
        (programs / "python3").write_text(PYTHON.format(python=sys.executable, programs=programs))
        (programs / "python3").chmod(0o755)
        unset = ("PYTHONPATH", "INPUTRC", "PROMPT_COMMAND", "http_proxy", "https_proxy")
        self.env = {name: value for name, value in os.environ.items() if name not in unset}
        self.env.update(
            PATH=f"{programs}:{os.environ['PATH']}",
            HOME=str(programs),
            TERM="xterm",
            LC_ALL="C.UTF-8",
        )
        self.terminals = {}
        self.records = []  # (expected lines, text, exit code) of each command that has ended

    def compile(self, command):
        """Have the bytecode of the scripts in a command ready for its start."""
        for script in SCRIPTS:
            stored = self.programs / f"{script}.code"
            if script in command and not stored.exists():
                stored.write_bytes(bytecode((self.folder / script).read_text()))

    def terminal(self, name):
        if name not in self.terminals:
            self.terminals[name] = Terminal(name, self)
        return self.terminals[name]

    def play(self, acts):
        for place, act in enumerate(acts):
            terminal = self.terminal(act.name)
            if act.kind == "command":
                terminal.start(act.text)
            elif act.kind in ("key", "line"):
                if terminal.at_prompt():
                    raise Wrong(terminal.account("has ended before the next key"))
                terminal.type(act.text)
            terminal.expected.extend(act.shows)
            later = next((each for each in acts[place + 1 :] if each.name == act.name), None)
            if later is None or later.kind == "command":
                terminal.ends()
            else:
                terminal.goes_on(later.prompt)

    def close(self):
        for terminal in self.terminals.values():
            terminal.close()


def play(parts, folder, deadline=DEADLINE):
    """Play these parts in order, in the same terminals; then prove that each of their lines was needed."""
    player = Player(folder, deadline)
    try:
        for part in parts:
            for acts in part.blocks:
                try:
                    player.play(acts)
                except Wrong as problem:
                    raise Wrong(f"{part.title} (line {acts[0].number}): {problem}") from None
    finally:
        player.close()
    for expected, text, _ in player.records:
        for place, line in enumerate(expected):
            broken = [*expected[:place], line.replace("...", "") + "broken", *expected[place + 1 :]]
            assert line == "..." or not agrees(broken, text), (
                f"a change in {line!r} would not be noticed"
            )
    return player


def needs(parts):
    """Skip where a program is missing, or the system is another one than an experiment says."""
    for part in parts:
        if "(Linux)" in part.title and not sys.platform.startswith("linux"):
            pytest.skip(f"{part.title}: only on Linux")
        for program in PROGRAMS:
            commands = [act.text for acts in part.blocks for act in acts if act.kind == "command"]
            if any(re.search(rf"\b{program} ", text) for text in commands):
                shutil.which(program) or pytest.skip(f"{program} is not installed")


# --- the tests ---
@pytest.mark.long(40)
def test_the_lab_guide_is_played_in_order_in_the_same_terminals(tmp_path):
    able = []
    for part in GUIDE:
        with suppress(pytest.skip.Exception):
            needs([part])
            able.append(part)
    play(able, tmp_path / "folder")


@pytest.mark.parametrize("part", GUIDE, ids=lambda part: part.title)
def test_an_experiment_works_alone(part, tmp_path, full):
    if not full:
        pytest.skip("--full plays each experiment alone too")
    needs([part])
    play([part], tmp_path / "folder")


def each_block(parts):
    for part in parts:
        for acts in part.blocks:
            yield pytest.param(
                Part(part.title, part.text, [acts]), id=f"{part.title}, line {acts[0].number}"
            )


@pytest.mark.parametrize("part", list(each_block(TASKS)))
def test_a_block_outside_the_guide_works_alone(part, tmp_path):
    needs([part])
    play([part], tmp_path / "folder")


def lines_of(text):
    """The README's prose, as (number of the first line, lines) of each paragraph or list entry."""
    paragraph, code = [], False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        fence = line.startswith("```")
        prose = line.strip() and not code and not fence and not line.startswith(("|", "#", "    "))
        if paragraph and (not prose or line.startswith("- ")):
            yield number - len(paragraph), paragraph
            paragraph = []
        if prose:
            paragraph.append(line)
        code ^= fence


def test_the_readme_is_short_and_so_is_each_paragraph():
    assert README.count("\n") <= 900
    for number, paragraph in lines_of(README):
        assert len(paragraph) <= 5, f"line {number}: a paragraph of {len(paragraph)} lines"
        for line in paragraph:
            assert len(line) <= 120 or " " not in line.strip("- ") or "<img" in line, line


FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)  # (kind, text)


def test_the_first_screen_has_the_order_of_a_newcomers_questions():
    screen = README[: README.index("\n## ")]
    order = [
        "# Six Sockets\n",
        'src="tests/charts/page.webp"',
        "$ python3 httpserver.py --host 0.0.0.0\n",
        "$ python3 httpserver.py\n",
        "**Get it:**",
        "```sh\n",
        "| `httpserver.py` |",
    ]
    places = [screen.index(each) for each in order]
    assert places == sorted(places)


def test_the_two_commands_that_set_up_and_test_are_the_first_sh_block():
    """.ci/run takes them from there."""
    (commands,) = [text for kind, text in FENCED if kind == "sh"]
    assert re.fullmatch(r"python3 -m venv .venv && .*\n.venv/bin/python -m pytest\n", commands)


def test_every_command_block_is_of_a_kind_that_is_played():
    assert {kind for kind, _ in FENCED} == {"console", "sh"}


def test_every_picture_of_the_readme_is_in_the_repository():
    pictures = re.findall(r'!\[[^\]]*\]\(([^)]+)\)|<img src="([^"]+)"', README)
    assert pictures
    for each in pictures:
        assert (ROOT / "".join(each)).is_file()


NOT_EVERYWHERE = r"&\s*$|\bnc |\bstat |\bss |touch -d|\buntil |kill %|\bseq |sha256sum|\bjobs\b"


def test_the_guide_types_nothing_that_only_some_systems_have():
    """Nothing runs in the background either, and nobody waits for what he cannot see."""
    acts = [act for part in PARTS for acts in part.blocks for act in acts]
    for command in (act.text for act in acts if act.kind == "command"):
        assert not re.search(NOT_EVERYWHERE, command), command


def test_every_experiment_has_question_prediction_filter_and_exercise():
    titles = re.findall(r"^### (\d+)\. .*\n((?s:.*?))(?=^#)", outside_blocks(README), re.M)
    assert [int(number) for number, _ in titles] == list(range(1, 21))
    for number, text in titles:
        start = text.partition("```")[0]
        assert "?" in start or "Predict" in start, f"experiment {number}: no question"
        for word in ("redict", "*Filter:*", "*Exercise"):
            assert word in text, f"experiment {number}: no {word}"


# --- the player, on blocks that are wrong ---
SERVE = "server$ python3 tcp_upper.py server\nlistening on 127.0.0.1:12000\n...\n"
ASK = "client$ python3 tcp_upper.py client hello\nHELLO\n"
DONE = "server: 2026-11-20 12:00:00 127.0.0.1:1 received 6, sent 6 bytes in 0.001 s: done\n"
STOP = "^Cstopped: 0 clients disconnected, 1 served\n"


@pytest.mark.parametrize(
    "block, problem",
    [
        (SERVE + ASK + DONE + STOP, ""),
        (SERVE + ASK.replace("HELLO", "HELLA") + DONE + STOP, "shows something else"),
        (SERVE + ASK + DONE + "more\n" + STOP, "hangs"),
        (SERVE + ASK + DONE + STOP.replace("1 served", "2 served"), "shows something else"),
        (SERVE + ASK + "server: " + STOP, ""),  # the start ends with "..."
        (SERVE.replace("...\n", "") + ASK + DONE + STOP, "hangs"),  # unexpected lines
        (SERVE.replace("listening", "list") + ASK + DONE + STOP, "hangs"),
        (SERVE + ASK, "hangs: waited"),  # nobody stops the server
        (SERVE + ASK + SERVE + STOP, "hangs"),  # it still runs where the next one is typed
        (SERVE + SERVE.replace("server$", "third$") + "server: " + STOP, "already in use"),
        ("client$ python3 -c 'input()'\n", "hangs: waited"),
        ("client$ true\nclient: more\n", "has ended|shows something else"),
        (ASK, "shows something else"),
        ("client$ python3 tcp_upper.py client\nInput lowercase sentence: hi\n", "has ended"),
    ],
)
def test_a_block_that_does_not_say_what_happens_fails(block, problem, tmp_path):
    part = Part("a block", block, [acts_of(block)])
    if not problem:
        play([part], tmp_path / "folder")
    else:
        with pytest.raises(Wrong, match=problem):
            play([part], tmp_path / "folder", deadline=1.0 if "hang" in problem else DEADLINE)


@pytest.mark.parametrize(
    "printed, shown",
    [
        ("a\r\nb\r\n", "a\nb\n"),
        (" 10%\r 20%\r100%\r\n", "100%\n"),
        ("long line\rshort\r\n", "shortline\n"),
        ("long line\r\x1b[Kshort\r\n", "short\n"),
        ("\x1b[?2004h> hi\r\n\x1b[?2004l\rthere\r\n", "> hi\nthere\n"),
        ("\x1b]0;title\ahi\r\n", "hi\n"),
    ],
)
def test_what_a_terminal_shows(printed, shown):
    assert on_screen(printed) == shown


@pytest.mark.parametrize(
    "expected, got, want",
    [
        (["HELLO"], "HELLO\n", True),
        (["HELLO"], "HELLO\nmore\n", False),
        (["HELLO", "..."], "HELLO\nmore\n", True),
        (["HELLO", "..."], "HELLO\n", True),
        (["HELLO"], "", False),
        ([], "HELLO\n", False),
        ([], "", True),
        (["a ... c"], "a b c\n", True),
        (["a ... c"], "a b d\n", False),
        (["took 0.12 ms"], "took 3.40 ms\n", True),
        (["took 0.12 ms"], "took 3 ms\n", False),
        (["exit 7"], "exit 8\n", False),
        (["127.0.0.1:54321"], "127.0.0.1:33333\n", True),
        (["127.0.0.1:12000"], "127.0.0.1:12001\n", False),
        (["10.1.2.3"], "192.168.0.9\n", True),
        (["2026-01-01 10:00:00 hi"], "2027-12-31 23:59:59 hi\n", True),
        (["(1.0 MB/s)"], "(529 bytes/s)\n", True),
        (["1.0 MB"], "1.0 kB\n", False),
    ],
)
def test_what_is_compared_and_what_is_masked(expected, got, want):
    assert agrees(expected, got) is want
