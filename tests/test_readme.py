"""Every command block of README.md is run, and what it prints is compared with what the README shows.

In a ```console block `$ cmd` runs in bash, `$ cmd &` starts a server that is stopped at the block's end, and the lines below
are what a terminal shows. `...` stands for any text, alone on a line for any lines. Times, rates, dates, free ports and this
machine's addresses are masked on both sides. Each block has an empty folder with copies of the scripts, in which the default
ports are replaced by free ones, so that a server which runs on this machine is in nobody's way, and in which UDP's first tries wait
longer, so that a machine that is busy for a moment loses nothing.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
from conftest import DEADLINE, ROOT, SCRIPTS, Process, assert_clean, free_port

README = (ROOT / "README.md").read_text()
DEFAULT_PORTS = ("8000", "9000", "12000")
PROGRAMS = ("curl", "nc", "openssl", "wget")  # which a machine may lack
MARK = "--- a command has ended ---"
MASKS = [
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE"),
    (r" *\d+\.\d+(/\d+\.\d+)* (m?s)\b", r" TIME \2"),
    (r"\d+(\.\d+)? ?([kKMG]i?B)/s", r"RATE \2/s"),
    (r"#\d+ ", "#N "),
    (rf"((?:\d+\.){{3}}\d+|\[[0-9a-f:]+\]):(?!(?:{'|'.join(DEFAULT_PORTS)})\b)\d+", r"\1:PORT"),
    (r"\b(?!127\.0\.0\.|0\.0\.0\.0|192\.0\.2\.)(\d+\.){3}\d+\b", "ADDRESS"),
]


def blocks():
    """(first line, [(command, in the background, expected lines)]) of each console block"""
    for match in re.finditer(r"^```console\n(.*?)^```$", README, re.M | re.S):
        steps = []
        for line in match[1].splitlines():
            if line.startswith("$ "):
                command = line[2:]
                steps.append((command.removesuffix("&").rstrip(), command.endswith("&"), []))
            else:
                steps[-1][2].append(line)
        yield pytest.param(steps, id=f"line {README[: match.start()].count(chr(10)) + 1}")


def masked(text):
    for pattern, name in MASKS:
        text = re.sub(pattern, name, text)
    return text


def agrees(expected, got):
    """Whether the lines a block shows describe what was printed."""
    pattern = ""
    for line in expected:
        pattern += (
            r"(?:.*\n)*?"
            if line == "..."
            else ".*".join(map(re.escape, masked(line).split("..."))) + r"\n"
        )
    return re.fullmatch(pattern, masked(got)) is not None


class Shell:
    """bash in a folder of its own; what a command prints comes back as on a terminal, stdout and stderr in one."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = {port: str(free_port()) for port in DEFAULT_PORTS}
        for script in SCRIPTS:
            source = (
                (ROOT / script)
                .read_text()
                .replace("TRIES = (0.1, 0.2, 0.4, 0.8)", "TRIES = (1.1, 1.2, 0.4, 0.8)")
            )
            (folder / script).write_text(self.swap(source, after=r"port\W{1,3}|:|default[ =]"))
        programs = folder.with_name(folder.name + "-bin")
        programs.mkdir()
        (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "python3").chmod(0o755)
        self.env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
        self.bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=self.env,
            text=True,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        # a command that waits for ever ends the test, not the tests
        self.limit = threading.Timer(2 * DEADLINE, self.kill)
        self.limit.start()

    def swap(self, text, after=r"\b", back=False):
        """Default ports for free ones, or back; in a script only where a port is meant."""
        for default, free in self.ports.items():
            old, new = (free, default) if back else (default, free)
            text = re.sub(rf"(?i)({after}){old}\b", rf"\g<1>{new}", text)
        return text

    def run(self, command):
        self.bash.stdin.write(
            f"{{ {self.swap(command)}\n}} </dev/null\nended=$?; echo; echo '{MARK}'; (exit $ended)\n"
        )
        self.bash.stdin.flush()
        lines = []
        for line in self.bash.stdout:
            if line == MARK + "\n":
                break
            lines.append(line)
        text = "".join(lines)[:-1]  # less the newline before the mark
        return self.swap(text, back=True)

    def start(self, command):
        server = Process(shell=f"exec {self.swap(command)} 2>&1", cwd=self.folder, env=self.env)
        server.wait_for("^listening on .*\n", "out")
        return server

    def kill(self):
        """All that was started and still runs."""
        with suppress(ProcessLookupError):
            os.killpg(self.bash.pid, signal.SIGKILL)

    def close(self):
        self.limit.cancel()
        self.kill()
        self.bash.wait(DEADLINE)
        self.bash.stdin.close()
        self.bash.stdout.close()


def transcript(steps, folder):
    """What each step of a block printed."""
    folder.mkdir()
    shell, got, servers = Shell(folder), {}, {}
    try:
        for number, (command, background, _) in enumerate(steps):
            if background:
                servers[number] = shell.start(command)
            else:
                got[number] = shell.run(command)
    finally:
        for server in servers.values():
            server.process.send_signal(signal.SIGINT)
        codes = [server.wait() for server in servers.values()]
        shell.close()
    assert not any(codes), f"servers ended with {codes}"
    got.update((number, shell.swap(server.out, back=True)) for number, server in servers.items())
    for text in got.values():
        assert_clean(text)
    return [
        text if text.endswith("\n") or not text else text + "\n" for _, text in sorted(got.items())
    ]


@pytest.mark.parametrize("steps", list(blocks()))
def test_a_command_block_prints_what_the_readme_shows(steps, tmp_path):
    for program in PROGRAMS:
        if any(
            re.search(rf"\b{program} ", command) for command, _, _ in steps
        ) and not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    got = transcript(steps, tmp_path / "folder")
    for (command, background, expected), text in zip(steps, got):
        assert agrees(expected, text), (
            f"$ {command}{' &' * background}\nprinted:\n{text}\nthe README shows:\n"
            + "\n".join(expected)
        )
    for number, (_, _, expected) in enumerate(steps):
        for place, line in enumerate(expected):
            broken = [*expected[:place], line.replace("...", "") + "broken", *expected[place + 1 :]]
            assert line == "..." or not agrees(broken, got[number]), (
                f"a change in {line!r} would not be noticed"
            )


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
    ],
)
def test_what_is_compared_and_what_is_masked(expected, got, want):
    assert agrees(expected, got) is want


FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)  # (kind, text)


def test_the_readme_starts_with_the_main_job_and_the_tests():
    main_job = (
        "python3 httpserver.py"
        if (ROOT / "httpserver.py").exists()
        else "python3 tcp_upper.py server"
    )
    assert FENCED[0][0] == "console" and FENCED[0][1].startswith(f"$ {main_job} &\n")
    assert re.fullmatch(
        r"python3 -m venv .venv && .* && .venv/bin/python -m pytest\n", FENCED[1][1]
    )


def test_every_command_block_is_of_a_kind_that_is_run():
    """The tests' own command is run by .ci/run instead; what is no command is a piece of a configuration file."""
    assert [kind for kind, _ in FENCED if kind not in ("console", "nginx")] == ["sh"]
