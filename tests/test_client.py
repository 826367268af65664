"""client.py as a person at a shell meets it, against the real server and against peers that misbehave."""

import argparse
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from conftest import (
    COMPILED,
    DEADLINE,
    ROOT,
    Listener,
    Process,
    Terminal,
    free_port,
    interpreters,
    until,
)

sys.path.insert(0, str(ROOT))
import client as script

BIG = random.Random(4).randbytes(3 << 20)
GREETING = b"sixsockets 1 max-line=32768 auth=none you=127.0.0.1:1\n"


@pytest.fixture
def box(tmp_path):
    (tmp_path / "box").mkdir()
    return tmp_path / "box"


@pytest.fixture
def here(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def server(spawn, box):
    return spawn("server.py", box)


@pytest.fixture
def do(run, server, here):
    """Run the client against the server, in the folder here."""

    def done(*words, port=None, **more):
        return run("client.py", "--port", port or server.port, *words, **{"cwd": here, **more})

    return done


def tree(folder, parts=True):
    """Every file and folder below, with content, time and executable bit; without the parts, which go at any time while a server works."""
    return {
        str(path.relative_to(folder)): path.is_dir()
        or (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode & 0o100)
        for path in sorted(Path(folder).rglob("*"))
        if not path.is_symlink() and (parts or ".six-" not in path.name)
    }


def plant(folder):
    """A tree with what trees have: empty folders and files, odd names, an executable, times to the nanosecond."""
    for name in ("empty/also empty", "deep/er/est"):
        (folder / name).mkdir(parents=True)
    odd = os.fsdecode(b"a b%=\n\xff\xc3\xbc")
    for name, data in (
        ("a.txt", b"a"),
        ("nothing", b""),
        (f"deep/{odd}", b"odd"),
        ("deep/er/est/big", BIG),
        ("run.sh", b"#!"),
        ("-rf", b"dash"),
    ):
        (folder / name).write_bytes(data)
        os.utime(folder / name, ns=(0, 1700000000123456789))
    (folder / "run.sh").chmod(0o755)


# --- there and back ---
def test_a_tree_comes_through_whole_in_both_directions(do, here, box):
    (here / "tree").mkdir()
    plant(here / "tree")
    sent = do("put", "tree")
    assert sent.code == 0 and "put: 6 files, 3.1 MB" in sent.err
    assert tree(box / "tree") == tree(here / "tree")
    got = do("get", "tree", "-o", "back")
    assert got.code == 0 and tree(here / "back/tree") == tree(here / "tree")
    assert do("get", "tree", "-o", "into/").code == 0 and tree(here / "into/tree") == tree(
        here / "tree"
    )


def test_what_is_there_already_is_skipped_and_counted(do, here, box):
    (here / "tree").mkdir()
    plant(here / "tree")
    do("put", "tree")
    again = do("put", "tree")
    assert again.code == 0 and "put: 0 files" in again.err and "6 already there" in again.err
    do("get", "tree", "-o", "back")
    assert "6 already there" in do("get", "tree", "-o", "back").err


def test_a_different_file_is_replaced_only_by_force(do, here, box):
    (here / "x").write_text("mine")
    (box / "x").write_text("theirs")
    for verb, code in ("put", 25), ("get", 23):
        refused = do(verb, "x")
        assert (
            refused.code == code
            and "4" in refused.err
            and "6" in refused.err
            and "--force" in refused.err
        )
    assert (box / "x").read_text() == "theirs" and (here / "x").read_text() == "mine"
    assert do("put", "x", "--force").code == 0 and (box / "x").read_text() == "mine"
    (box / "x").write_text("theirs again")
    assert do("--force", "get", "x").code == 0 and (here / "x").read_text() == "theirs again"


def test_compare_content_skips_what_only_differs_in_time(do, here, box):
    for folder, when in (here, 5), (box, 7):
        (folder / "x").write_text("same")
        os.utime(folder / "x", (0, when))
    assert do("put", "x").code == 25
    for verb in "put", "get":
        assert "1 already there" in do(verb, "x", "--compare", "content").err
    (box / "x").write_text("diff")
    assert (
        do("put", "x", "--compare", "content").code == 25
        and do("get", "x", "--compare", "content").code == 23
    )


def test_compare_content_holds_in_a_folder_too(do, here, box):
    for folder, text, when in (here, "mine", 5), (box, "ours", 7):
        (folder / "d").mkdir()
        (folder / "d/same").write_text("same")
        (folder / "d/other").write_text(text)
        os.utime(folder / "d/same", (0, when))
        os.utime(folder / "d/other", (0, 6))
    for words in ("put",), ("get",), ("get", "--force"):
        done = do(*words, "d", "--compare", "content")
        assert (
            "1 already there" in done.err
            and done.code == {"put": 25, "get": 23, "--force": 0}[words[-1]]
        ), done
    assert (here / "d/other").read_text() == "ours"


def test_one_bad_file_does_not_stop_the_others(do, here, box):
    for name in "abc":
        (here / name).write_text(name)
        (box / (name + "2")).write_text(name)
    sent = do("put", "a", "nosuch", "b", "c")
    assert (
        sent.code == 26
        and "cannot read nosuch" in sent.err
        and "put: 3 files" in sent.err
        and "1 failed" in sent.err
    )
    got = do("get", "a2", "gone", "b2", "../x", "c2")
    assert got.code == 78 and "get: 3 files" in got.err and "2 failed" in got.err
    gone = do("delete", "a2", "gone", "b2")
    assert gone.code == 78 and not (box / "a2").exists() and not (box / "b2").exists()


def test_an_empty_name_is_told_before_anything_is_done(do, box):
    (box / "x").touch()
    for words in (
        ("delete", "", "x"),
        ("get", "x", ""),
        ("stat", ""),
        ("rename", "x", ""),
        ("mkdir", ""),
        ("put", "/etc/passwd", "--as", ""),
    ):
        done = do(*words)
        assert (
            done.code == 2
            and 'error: "" is no name of a file' in done.err
            and os.listdir(box) == ["x"]
        ), done
    assert do("list", "").out == b"x\n"


def test_links_in_a_folder_are_skipped_and_named(do, here, box):
    (here / "tree").mkdir()
    (here / "tree" / "real").write_text("x")
    (here / "tree" / "link").symlink_to("real")
    os.mkfifo(here / "tree" / "fifo")
    sent = do("put", "tree")
    assert (
        sent.code == 0
        and "skipped tree/link" in sent.err
        and "skipped tree/fifo" in sent.err
        and os.listdir(box / "tree") == ["real"]
    )
    (box / "tree" / "link").symlink_to("real")
    got = do("get", "tree", "-o", "back")
    assert (
        got.code == 0
        and "skipped tree/link" in got.err
        and os.listdir(here / "back/tree") == ["real"]
    )


def test_a_named_link_is_followed(do, here, box):
    (here / "real").write_text("x")
    (here / "link").symlink_to("real")
    assert (
        do("put", "link").code == 0
        and (box / "link").read_text() == "x"
        and not (box / "link").is_symlink()
    )


def test_globs_names_and_folders(do, here, box):
    for name in ("a.txt", "b.txt", "c.md", "[x]"):
        (here / name).write_text(name)
    assert "put: 2 files" in do("put", "*.txt", "--into", "in/here").err and sorted(
        os.listdir(box / "in/here")
    ) == ["a.txt", "b.txt"]
    assert "put: 1 file" in do("put", "[x]").err
    assert do("put", "c.md", "--as", "d.md").code == 0 and (box / "d.md").exists()
    assert do("put", "a.txt", "b.txt", "--as", "x").code == 2
    got = do("get", "in/here/?.txt", "[x]", "-o", "new/")
    assert got.code == 0 and sorted(os.listdir(here / "new")) == ["[x]", "a.txt", "b.txt"]
    assert do("get", "a", "b", "-o", "file").code == 2
    assert do("delete", "in/here/*").code == 0 and os.listdir(box / "in/here") == []


@pytest.mark.parametrize(("path", "what"), [("/", "/"), ("-", "standard input")])
def test_what_has_no_name_is_told_how_it_gets_one(do, box, path, what):
    done = do("put", path)
    assert (
        done.code == 2
        and f"error: {what} has no name" in done.err
        and f"try:   put {path} --as NAME" in done.err
        and os.listdir(box) == []
    ), done


@pytest.mark.parametrize(("verb", "port"), [("put", None), ("send", 1)])
def test_a_folder_as_the_new_name_is_told_before_anything_is_sent(do, here, box, verb, port):
    (here / "x").touch()
    done = do(verb, "x", "--as", "docs/", port=port)
    assert (
        done.code == 2
        and "--as docs/ is for one file" in done.err
        and ("--into FOLDER" in done.err) == (verb == "put")
        and os.listdir(box) == []
    ), done


def test_what_a_pattern_matches_does_not_all_get_one_name(do, here, box):
    for folder in here, box:
        for name in "a.txt", "b.txt":
            (folder / name).write_text(name)
    for words, more in (
        (("get", "*.txt", "-o", "one", "--force"), {}),
        ((), {"input": b"put *.txt --as one --force\n"}),
    ):
        done = do(*words, **more)
        assert (
            done.code == 2
            and "several" in done.err
            and {*os.listdir(here), *os.listdir(box)} == {"a.txt", "b.txt"}
        ), done


def test_a_pattern_that_many_names_match_is_not_kept_in_memory(server, here, box):
    for number in range(9):
        (box / f"{number}.txt").touch()
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import client; client.LISTED_IN_MEMORY = 2; sys.exit(client.main(sys.argv[1:]))"
    subprocess.run(
        [sys.executable, "-c", code, "--port", str(server.port), "get", "*.txt"],
        cwd=here,
        check=True,
    )
    assert len(os.listdir(here)) == 9


def test_standard_input_and_output(do, here, box):
    sent = do("put", "-", "--as", "x", input=BIG)
    assert sent.code == 0 and (box / "x").read_bytes() == BIG
    got = do("get", "x", "-o", "-")
    assert got.out == BIG and got.code == 0
    assert do("put", "-").code == 2
    assert do("get", "x", "-o", "/dev/null").code == 0 and Path("/dev/null").is_char_device()
    assert do("put", "-", "--as", "empty").code == 0 and (box / "empty").read_bytes() == b""


def test_list_stat_rename_mkdir_help(do, box):
    (box / "sub").mkdir()
    (box / "sub" / "ü b").write_text("x" * 1234)
    assert (
        do("list").out.decode() == "sub/\n"
        and do("list", "-r").out.decode() == "sub/\nsub/ü b\n"
        and do("list", "sub/").out.decode() == "sub/ü b\n"
    )
    assert (
        "1,234 bytes" in do("stat", "sub/ü b").out.decode()
        and "folder" in do("stat", "sub").out.decode()
    )
    assert (
        do("mkdir", "new/er").code == 0
        and do("rename", "sub/ü b", "new/c").code == 0
        and (box / "new/c").exists()
    )
    assert "put NAME" in do("help").out.decode()
    assert do("rename", "new/c", "x").code == 0 and do("mkdir", "y").code == 0
    (box / "z").write_text("old")
    assert (
        do("rename", "x", "z").code
        == do("--force", "rename", "x", "y").code
        == do("--force", "mkdir", "z").code
        == 9
    )
    assert (
        (box / "z").read_text() == "old"
        and do("rename", "x", "z", "--force").code == 0
        and (box / "z").stat().st_size == 1234
    )
    assert (
        do("mkdir", "new").code == 9
        and do("rename", "no", "where").code == 78
        and do("delete", "new").code == 9
        and do("list", "no").code == 78
    )


def test_json_is_one_object_a_line(do, here, box):
    (here / "a b").write_text("x")
    for verb in "put", "list", "stat", "get", "delete":
        done = do(verb, *["a b"] * (verb != "list"), "--json", *["--force"] * (verb == "get"))
        facts = [json.loads(text) for text in done.out.splitlines()]
        assert done.code == 0 and facts[0]["name"] == "a b" and done.err == ""
    (here / "a b").write_text("y")


def test_json_of_names_that_are_no_text_can_be_read_by_all(do, here, box):
    (here / os.fsdecode(b"a\xff")).write_text("x")
    for verb in "put", "list", "stat", "get", "delete":
        done = do(verb, *[os.fsdecode(b"a\xff")] * (verb != "list"), "--json")
        facts = json.loads(done.out.splitlines()[0])
        assert (
            done.code == 0
            and (facts["name"], facts["quoted"]) == ("a\\xff", "a%FF")
            and b"\\ud" not in done.out
        ), done


def test_a_destination_that_cannot_be_opened_and_a_current_folder_that_is_gone_are_told(
    server, box, here
):
    (box / "x").write_text("x")
    for words, before, code in (
        ("get x -o /dev/tty", "", 23),
        ("get x -o y", "rmdir ../gone;", 26),
        ("put x", "rmdir ../gone;", 26),
        ("put /x y", "rmdir ../gone;", 26),
    ):
        (here / "gone").mkdir(exist_ok=True)
        command = [
            "sh",
            "-c",
            f'{before} exec "$@" {words}',
            "sh",
            sys.executable,
            COMPILED["client.py"],
            "--port",
            str(server.port),
        ]
        done = subprocess.run(
            command,
            cwd=here / "gone",
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            start_new_session=True,
        )  # nobody has that terminal
        assert (
            done.returncode == code
            and done.stderr.count(b"error: cannot") == 1
            and b"Traceback" not in done.stderr
        ), (words, done.stderr)


def test_quiet_says_nothing(do, here):
    (here / "x").write_text("x")
    done = do("put", "x", "--quiet")
    assert (done.code, done.out, done.err) == (0, b"", "")


def test_an_output_that_takes_nothing_is_told(server, box, here):
    (box / "x").write_text("x")
    for words in (
        ("list",),
        ("list", "--json"),
        ("help",),
        ("stat", "x"),
        ("get", "x", "-o", "-"),
        (),
    ):
        for redirect in (">/dev/full", ">&-"):
            done = subprocess.run(
                [
                    "sh",
                    "-c",
                    f'exec "$@" {redirect}',
                    "sh",
                    sys.executable,
                    COMPILED["client.py"],
                    "--port",
                    str(server.port),
                    *words,
                ],
                cwd=here,
                input=b"list\n",
                stderr=subprocess.PIPE,
                check=False,
            )
            assert done.returncode == 23 and b"Traceback" not in done.stderr, (
                words,
                redirect,
                done.stderr,
            )
            assert b"was there before" not in done.stderr, done.stderr


def test_an_input_that_cannot_be_read_is_told_at_once(server, box, here):
    """Where it is closed the connection may have its number; one that is open for writing alone fails in the middle of the upload."""
    for words, redirect, code in (
        ((), "<&-", 0),
        (("chat",), "<&-", 0),
        (("put", "-", "--as", "x"), "<&-", 26),
        (("put", "-", "--as", "x"), "0>w", 26),
    ):
        command = [
            "sh",
            "-c",
            f'exec "$@" {redirect}',
            "sh",
            sys.executable,
            COMPILED["client.py"],
            "--port",
            str(server.port),
            "--timeout",
            "600",
            *words,
        ]
        done = subprocess.run(command, cwd=here, capture_output=True, timeout=DEADLINE, check=False)
        assert done.returncode == code and b"Traceback" not in done.stderr, (
            words,
            redirect,
            done.stderr,
        )
        assert done.stderr.count(b"error: cannot read -: bad file descriptor") == (code == 26), (
            done.stderr
        )
    assert tree(box) == {}


# --- interruptions ---
def grown(folder, count):
    return lambda: any(path.stat().st_size >= count for path in Path(folder).glob(".six-*"))


def test_a_put_that_is_killed_is_resumed_by_the_same_command(server, do, here, box, proxy):
    (here / "big").write_bytes(BIG * 4)
    cut = do(
        "put",
        "big",
        "--retries",
        "0",
        port=proxy(server.port, cut_at=5 << 20, toward="server").port,
    )
    assert cut.code == 18 and re.search(
        r"connection lost at [\d,]+ of 12,582,912 bytes of big\n", cut.err
    )
    assert re.search(r"try:   python3 client.py --port \d+ put big --retries 0 ", cut.err), cut.err
    server.wait_for("put big: cut at .* kept")
    again = do("put", "big", "--trace")
    assert (
        again.code == 0
        and (box / "big").read_bytes() == BIG * 4
        and sum(map(int, re.findall(r"send (\d+) of", again.err))) < 12 << 20
    )
    assert os.listdir(box) == ["big"]


def test_a_get_that_is_cut_is_resumed_by_the_same_command(server, do, here, box, proxy):
    (box / "big").write_bytes(BIG * 4)
    cut = do("get", "big", "--retries", "0", port=proxy(server.port, cut_at=5 << 20).port)
    assert cut.code == 18 and not (here / "big").exists() and len(os.listdir(here)) == 1
    again = do("get", "big")
    assert (
        again.code == 0 and (here / "big").read_bytes() == BIG * 4 and os.listdir(here) == ["big"]
    )
    assert re.search(r"get: 1 file, 12\.6 MB \([1-5]\.\d MB of it already there\)", again.err), (
        again
    )
    assert re.search(r"get big: (\d+) bytes", server.wait_for("get big: [1-9]\\d* bytes, .* ok")[0])


@pytest.mark.parametrize("toward", ["server", "client"])
def test_one_run_reconnects_and_resumes_by_itself(server, do, here, box, proxy, toward):
    source, verb = (here, "put") if toward == "server" else (box, "get")
    (source / "tree").mkdir()
    plant(source / "tree")
    done = do(verb, "tree", port=proxy(server.port, cut_at=2 << 20, toward=toward, times=1).port)
    assert (
        done.code == 0
        and "attempt 1 of 16" in done.err
        and tree(here / "tree") == tree(box / "tree")
        and "already there" not in done.err
    )


def test_a_lost_link_where_only_something_is_asked_is_made_good(server, do, box, proxy):
    for number in range(40):
        (box / f"{number:03}").touch()
    for words in (["list"], ["stat", "000"], ["help"], ["get", "*9"], ["delete", "*8"]):
        done = do(*words, port=proxy(server.port, cut_at=60, times=1).port)
        assert done.code == 0 and "attempt 1 of 16" in done.err, done
    assert len(os.listdir(box)) == 36
    cut = do("list", port=proxy(server.port, cut_at=500, times=1).port)
    assert cut.code == 0 and cut.out == do("list").out, cut


def test_what_was_sent_before_the_link_was_lost_counts_as_sent(server, do, here, box, proxy):
    (here / "t").mkdir()
    for number in range(40):
        (here / f"t/{number}").write_text(f"{number}")
    port = proxy(server.port, cut_at=400, toward="client", times=1).port
    done = do("put", "t", "--json", port=port)
    *files, last = map(json.loads, done.out.splitlines())
    assert done.code == 0 and "attempt 1 of 16" in done.err and tree(box / "t") == tree(here / "t")
    assert last["files"] == 40 and last["same"] == 0, done
    assert all(each["result"] == "ok" and len(each["sha256"]) == 64 for each in files), done


def test_a_listing_that_is_cut_is_asked_again_and_shown_only_when_it_is_whole(do, canned):
    first, second = b"client 10.0.0.1:1 mode=idle\n", b"client 10.0.0.2:1 mode=idle\n"
    peer = canned(GREETING + first, GREETING + first + second + b"ok who count=2\n")
    assert do("who", port=peer.port).out == b"10.0.0.1:1  idle\n10.0.0.2:1  idle\n"
    peer = canned(GREETING + first, GREETING + second + b"ok who count=1\n")
    assert do("who", port=peer.port).out == b"10.0.0.2:1  idle\n", "it has changed meanwhile"
    done = do("who", "--retries", "1", port=canned(GREETING + first, GREETING + first).port)
    assert done.code == 56 and done.out == b"" and "attempt 1 of 1" in done.err, done


@pytest.mark.parametrize("words", [["delete", "a"], ["mkdir", "d"], ["rename", "a", "b"]])
def test_a_change_whose_answer_is_lost_is_made_good_or_told_as_unknown(
    server, do, box, canned, words
):
    """The server has done it before the link was lost, so it says that it cannot do it again."""
    again = {
        "delete": b"err delete a reason=no-such-file\n",
        "mkdir": b"err mkdir d reason=exists\n",
    }
    done = do(*words, port=canned(GREETING, GREETING + again.get(words[0], b"")).port)
    assert done.code == (18 if words[0] == "rename" else 0), done
    done = do(*words, "--retries", "0", port=canned(GREETING).port)
    assert done.code == 18 and f"unknown whether {words[0]} was done to {words[1]}" in done.err, (
        done
    )


HELD = f"""
import sys
import threading
sys.path.insert(0, {str(ROOT)!r})
import client
client.BACK_OFF = 0.002
left = int(sys.argv.pop(1))
def receive(self, patience, true=client.Link.receive):
    global left
    left -= 1
    if not left:
        print("held", file=sys.stderr, flush=True)
        input()
    true(self, patience)
client.Link.receive = receive
sys.exit(client.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "hold"),
    [
        (["get", "tree"], 4),
        (["put", "tree"], 3),
        (["put", "big", "--as", "new"], 3),
        (["list", "-r"], 2),
        (["delete", "x*"], 4),
        (["mkdir", "new"], 2),
    ],
)
def test_a_server_that_is_killed_and_comes_back_much_later_ends_no_command(
    spawn, here, box, words, hold
):
    """The client is held before it reads for the nth time. Its pauses are short; the attempts are
    more than there were when they lasted four seconds."""
    for folder in here, box:
        (folder / "tree/deep").mkdir(parents=True)
        (folder / "big").write_bytes(BIG)
        for number in range(30):
            (folder / f"tree/deep/{number}-{folder.name}").write_text(str(number))
        (folder / "xa").touch()
    server = spawn("server.py", box, port=free_port())
    client = Process(
        "-c", HELD, hold, "--port", server.port, *words, cwd=here, stdin=subprocess.PIPE
    )
    client.wait_for("held")
    server.kill()
    server.wait()
    client.process.stdin.write(b"\n")
    client.process.stdin.close()
    client.wait_for("attempt 6 of 16")
    spawn("server.py", box, port=server.port)
    assert client.wait() == 0, client.err
    names = {path.relative_to(box) for path in box.rglob("*") if ".six-" not in path.name}
    ours = {path.relative_to(here) for path in here.rglob("*") if ".six-" not in path.name}
    assert len(names) == {"put": 64 if "new" not in words else 35, "delete": 33, "mkdir": 35}.get(
        words[0], 34
    )
    assert len(ours) == (64 if words[0] == "get" else 34)
    if words[0] == "list":
        assert client.out.count("deep/1") == 11 and client.out.count("\n") == 34


def test_a_password_is_not_repeated_in_what_to_type_again():
    assert (
        script.typed(["put", "a b", "--password", "x", "--password=y z", "p"])
        == "put 'a b' --password ... --password=... p"
    )
    assert script.typed(["--password=y\nz", "list"]) == "--password=... list"


@pytest.mark.parametrize("verb", ["put", "get"])
def test_no_resume_starts_over(server, do, here, box, proxy, verb):
    (here if verb == "put" else box).joinpath("big").write_bytes(BIG)
    do(
        verb,
        "big",
        "--retries",
        "0",
        port=proxy(
            server.port, cut_at=2 << 20, toward="server" if verb == "put" else "client"
        ).port,
    )
    if verb == "put":
        server.wait_for("put big: cut at")
    done = do(verb, "big", "--no-resume")
    assert (
        done.code == 0
        and "put: 1 file, 3.1 MB" in done.err.replace("get:", "put:")
        and (here / "big").read_bytes() == (box / "big").read_bytes()
    )


def test_a_part_of_another_source_is_not_used(server, do, here, box, proxy):
    """Same size, same time, other bytes: only the digest tells."""
    for content in BIG, BIG[::-1]:
        (here / "big").write_bytes(content)
        os.utime(here / "big", (0, 5))
        if content == BIG:
            do(
                "put",
                "big",
                "--retries",
                "0",
                port=proxy(server.port, cut_at=2 << 20, toward="server").port,
            )
            server.wait_for("put big: cut at")
    assert do("put", "big").code == 0 and (box / "big").read_bytes() == BIG[::-1]


def test_a_file_that_grew_while_its_part_was_checked_has_the_time_of_what_came(do, here, canned):
    """As a log does: the part is its beginning still, so only the rest is sent."""
    half, size = BIG[: 1 << 20], 2 << 20
    found, got = (b"ok %%b x size=%d mtime_ns=1\n" % size % word for word in (b"stat", b"get"))
    begun = GREETING + found + got + b"data %d\n%b" % (len(half), half)
    grown = (
        b"ok get x size=%d mtime_ns=2 offset=%d\ndata %d\n"
        % (len(BIG), len(half), len(BIG) - len(half))
        + BIG[len(half) :]
    )
    grown += b"end sha256=%b\n" % hashlib.sha256(BIG).hexdigest().encode()
    assert do("get", "x", port=canned(begun, GREETING + grown).port).code == 0
    assert tree(here) == {"x": (BIG, 2, 0)}


def test_a_silent_standard_input_keeps_the_upload_alive_and_a_refusal_is_heard_meanwhile(
    listeners, tmp_path
):
    def talk(conn):
        conn.sendall(b"sixsockets 1 max-line=32768 auth=none you=10.0.0.9:9\n")
        file = conn.makefile("rb")
        heard.extend(file.readline() for _ in range(5))
        conn.sendall(b"err put x reason=disk-full received=2\n")
        file.read()

    heard = []
    listeners.append(Listener(talk))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import client; client.STDIN_SILENCE = 0.05; sys.exit(client.main(sys.argv[1:]))"
    reader, writer = os.pipe()
    os.write(writer, b"a\n")  # before it starts, for it tells of silence soon
    with os.fdopen(reader) as stdin, os.fdopen(writer):
        put = Process(
            "-c", code, "--port", listeners[-1].port, "put", "-", "--as", "x", stdin=stdin
        )
        assert put.wait() == 25 and "(disk-full after 2 bytes)" in put.err, put.err
    assert heard[:5] == [b"put x\n", b"data 2\n", b"a\n", b"note x\n", b"note x\n"], heard


def test_standard_input_that_was_cut_is_not_begun_again_in_its_middle(server, do, box, proxy):
    """Also where an earlier request, here for the folder, has no answer yet."""
    done = do(
        "put",
        "-",
        "--as",
        "x",
        "--into",
        "d",
        port=proxy(server.port, cut_at=1 << 20, toward="server", times=1).port,
        input=BIG,
    )
    assert (
        done.code == 18
        and "standard input cannot be resumed" in done.err
        and not (box / "d/x").exists()
    ), done


def test_a_cut_download_to_standard_output_goes_on(server, do, box, proxy):
    (box / "big").write_bytes(BIG)
    done = do("get", "big", "-o", "-", port=proxy(server.port, cut_at=1 << 20, times=1).port)
    assert done.code == 0 and done.out == BIG


def test_a_second_loss_before_the_first_was_made_good_repeats_nothing(do, canned):
    """The nick is told on each new connection; that one is lost with its answer."""
    found = GREETING + b"ok ping nick=anna\nok stat x size=%d\n" % len(BIG)
    half, rest = BIG[: 1 << 20], BIG[1 << 20 :]
    end = b"end sha256=%b\n" % hashlib.sha256(BIG).hexdigest().encode()
    cut, silent = found + b"ok get x size=%d\ndata %d\n" % (len(BIG), len(half)) + half, GREETING
    last = (
        GREETING
        + b"ok ping nick=anna\n"
        + b"ok get x size=%d offset=%d\ndata %d\n" % (len(BIG), len(half), len(rest))
        + rest
        + end
    )
    peer = canned(cut, silent, last)
    done = do("get", "x", "-o", "-", "--nick", "anna", port=peer.port)
    assert done.code == 0 and done.out == BIG and "attempt 2 of 16" in done.err, done
    assert b"get x offset=%d sha256=" % len(half) in peer.read[2]


def test_ctrl_c_keeps_the_part(server, here, box, proxy):
    (box / "big").write_bytes(BIG * 30)
    slow = proxy(server.port, delay=0.01)
    client = Process(ROOT / "client.py", "--port", slow.port, "get", "big", cwd=here)
    until(grown(here, 1 << 20), "the part to grow")
    client.process.send_signal(signal.SIGINT)
    assert (
        client.wait() == 130
        and "the same command again resumes" in client.err
        and "Traceback" not in client.err
    )
    assert len(os.listdir(here)) == 1


def stopped(client):
    """Files, and bytes in their unit, that a client counts which Ctrl-C ends."""
    client.process.send_signal(signal.SIGINT)
    assert client.wait() == 130, client.err
    found = re.search(r"stopped after (\d+) files? and ([\d.]+) (?:bytes|kB|MB); the", client.err)
    assert found, client.err
    return int(found[1]), float(found[2])


def test_ctrl_c_counts_what_is_kept_and_what_arrived_before(spawn, here, box, proxy):
    (box / "big").write_bytes(BIG * 10)
    server = spawn("server.py", box)
    port = proxy(server.port, delay=0.01).port
    getting = Process(ROOT / "client.py", "--port", port, "get", "big", cwd=here)
    until(grown(here, 2 << 20), "the part to grow")
    server.kill()
    getting.wait_for("attempt 1 of 16")
    (kept,) = here.iterdir()
    assert stopped(getting) == (0, pytest.approx(kept.stat().st_size / 1e6, rel=0.1))
    kept.unlink()
    (box / "big").rename(here / "big")
    (here / "small").write_text("small")
    port = proxy(spawn("server.py", box).port, delay=0.01, toward="server").port
    putting = Process(ROOT / "client.py", "--port", port, "put", "small", "big", cwd=here)
    until(grown(box, 2 << 20), "the part to grow")
    assert (box / "small").exists() and stopped(putting)[0] == 1, "its answer came behind big"


@pytest.mark.parametrize("verb", ["put", "get"])
def test_ctrl_c_in_a_tree_counts_the_files_that_are_done(server, here, box, verb):
    source, goal = (here, box) if verb == "put" else (box, here)
    (source / "t").mkdir()
    for number in range(5):
        (source / f"t/{number}").write_text("small")
    (source / "t/big").write_bytes(BIG)
    slow = Process(
        ROOT / "client.py", "--port", server.port, verb, "t", "--limit-rate", "500k", cwd=here
    )
    # the answers have left the server when it waits for the rest of the big one
    until(lambda: (goal / "t").is_dir() and grown(goal / "t", 200_000)(), "the part to grow")
    assert stopped(slow)[0] == 5


def test_a_killed_client_or_server_is_resumed(spawn, run, here, box, proxy):
    (here / "big").write_bytes(BIG * 10)
    server = spawn("server.py", box)
    client = Process(
        ROOT / "client.py",
        "--port",
        proxy(server.port, delay=0.01, toward="server").port,
        "put",
        "big",
        cwd=here,
    )
    until(grown(box, 1 << 20), "the part to grow")
    client.kill()
    server.wait_for("put big: cut at")
    kept = max(path.stat().st_size for path in box.iterdir())
    client = Process(
        ROOT / "client.py",
        "--port",
        proxy(server.port, delay=0.01, toward="server").port,
        "--retries",
        "0",
        "put",
        "big",
        cwd=here,
    )
    until(grown(box, kept + 1), "the part to grow")
    server.kill()
    assert client.wait() in (18, 56)
    kept = max(path.stat().st_size for path in box.iterdir())
    server = spawn("server.py", box)
    done = run("client.py", "--port", server.port, "--json", "put", "big", cwd=here)
    assert done.code == 0 and (box / "big").read_bytes() == BIG * 10
    assert json.loads(done.out.splitlines()[-1])["bytes"] == len(BIG) * 10 - kept


STEPS = {
    "put": ["open", "fstat", "read", "send", "close"],
    "get": ["mkdir", "open", "write", "utime", "link", "unlink", "close"],
    "get --force": ["open", "write", "utime", "replace"],
}


@pytest.mark.parametrize("command", STEPS)
def test_killed_at_each_step_the_same_command_completes_it(server, here, box, full, command):
    """A tree with a large file among small ones; the process dies right after its first, second, third such call."""
    for step, turn in itertools.product(STEPS[command], (1, 2, 3)):
        if full or (step, turn) in (
            ("send", 2),
            ("read", 3),
            ("write", 2),
            ("link", 1),
            ("unlink", 3),
            ("replace", 1),
        ):
            kill_and_complete(server, here, box, command, step, turn)


def kill_and_complete(server, here, box, command, step, turn):
    (verb, *flags), top = command.split(), f"{step}{turn}"
    source, target = (here, box) if verb == "put" else (box, here)
    (source / top / "d/e").mkdir(parents=True)
    for name, data in (("a", b"new"), ("big", BIG), ("d/c", b"new too")):
        (source / top / name).write_bytes(data)
    if flags:
        (target / top).mkdir()
        (target / top / "a").write_text("old and long")
    code = f"""
import os, runpy, signal, socket, sys
left, place = [{turn}], {"socket.socket" if step == "send" else "os"}
true = place.{step}
def deadly(first, *rest, **more):
    result = true(first, *rest, **more)
    left[0] -= {step!r} not in ("open", "fstat", "close") or "client.py" in sys._getframe(1).f_code.co_filename
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
os.supports_dir_fd = {{*os.supports_dir_fd, deadly}}
os.supports_fd = {{*os.supports_fd, deadly}}
place.{step} = deadly
sys.argv = {["client.py", "--port", str(server.port), verb, *flags, top]!r}
runpy.run_path({str(ROOT / "client.py")!r}, run_name="__main__")
"""
    before = server.at_rest()
    killed = subprocess.run(
        [sys.executable, "-c", code], cwd=here, stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole = tree(source / top)
    for name, fact in tree(target / top, parts=False).items():
        assert fact == whole[name] or (flags and fact[0] == b"old and long"), (name, fact)
    server.rests(before)  # it has stored all that the dead one sent
    again = [sys.executable, ROOT / "client.py", "--port", str(server.port), verb, *flags, top]
    done = subprocess.run(again, cwd=here, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and tree(target / top, parts=False) == whole, done.stderr


@pytest.mark.parametrize("verb", ["put", "get"])
def test_cut_at_every_byte_of_a_short_exchange(server, do, here, box, proxy, full, verb):
    """Old or new, never in between, and never success where there was none."""
    (here if verb == "put" else box).joinpath("x").write_text("new data")
    target, before = (box if verb == "put" else here) / "x", server.at_rest()
    for toward in "server", "client":
        for count in range(1, 250, 1 if full else 110):
            target.unlink(missing_ok=True)
            way = proxy(server.port, cut_at=count, toward=toward)
            done = do(verb, "x", "--retries", "0", port=way.port)
            way.close()
            server.rests(before)
            assert not target.exists() or target.read_text() == "new data"
            assert done.code in (0, 7, 18, 52, 55, 56) and (done.code or target.exists()), (
                toward,
                count,
                done,
            )


@pytest.mark.parametrize("verb", ["put", "get"])
def test_corrupted_at_any_byte_it_is_whole_or_an_error(server, do, here, box, proxy, full, verb):
    (here if verb == "put" else box).joinpath("x").write_text("new data")
    folder, before = box if verb == "put" else here, server.at_rest()
    for toward in "server", "client":
        for at in range(0, 300, 1 if full else 37):
            way = proxy(server.port, corrupt_at=at, toward=toward)
            done = do(verb, "x", "--retries", "0", "--timeout", "0.5", port=way.port)
            way.close()
            server.rests(before)
            whole = (folder / "x").exists() and (folder / "x").read_text() == "new data"
            assert whole or (done.code and not (folder / "x").exists()), (toward, at, done)
            # a changed name is stored as it came: told as an error, and its bytes are right
            for path in folder.iterdir():
                assert path.read_text() == "new data" and (path.name == "x" or done.code), (
                    toward,
                    at,
                    done,
                )
                path.unlink()


def test_a_digest_that_is_not_theirs_is_not_kept(do, here, canned):
    body = (
        b"ok stat x type=file size=3 mtime_ns=1\nok get x size=3 mtime_ns=1\ndata 3\nabcend sha256="
        + b"0" * 64
        + b"\n"
    )
    done = do("get", "x", port=canned(GREETING + body).port)
    assert done.code == 56 and "wrong-digest" in done.err and os.listdir(here) == []


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"ok get x size=3 mtime_ns=1\ndata 5\nabcdeend\n", 56),
        (b"ok get x size=3 mtime_ns=1\ndata 2\nabend\n", 18),
        (b"ok get x size=3 mtime_ns=1\ndata 2\nababort reason=changed\n", 18),
        (b"ok get x size=3 mtime_ns=1\ndata 2\na", 18),
        (b"err get x reason=no-such-file\n", 78),
        (b"gibberish\n", 56),
        (b"ok get x size=-3\n", 56),
        (b"ok get x size=99999999999999999999\n", 56),
        (b"x" * 40000, 56),
        (b"err get x reason=%1B[31m\n", 9),
        (b"", 18),
        (b"\xc2\x9b31m\n", 56),
        (b"ok get y%1B[31m\n", 56),
    ],
)
def test_a_server_that_misbehaves_leaves_nothing_behind(do, here, canned, answer, code):
    done = do(
        "get",
        "x",
        "--retries",
        "0",
        port=canned(GREETING + b"ok stat x type=file size=3 mtime_ns=1\n" + answer).port,
    )
    assert done.code == code and not {"\x1b", "\x9b"} & {*done.err} and os.listdir(here) == [], done


def test_a_key_of_a_listing_that_nobody_knows_means_nothing(do, here, canned):
    facts = b"x size=3 mtime_ns=1 new=%FF%0A\n"
    answers = b"ok stat t type=dir\nfile t/" + facts + b"ok list t count=1\nok get t/" + facts
    end = f"data 3\nabcend sha256={hashlib.sha256(b'abc').hexdigest()}\n".encode()
    done = do("get", "t", port=canned(GREETING + answers + end).port)
    assert done.code == 0 and (here / "t/x").read_bytes() == b"abc", done


def flood(lines, begun):
    """A server that takes a put, and then sends these lines without end."""

    def talk(conn):
        conn.sendall(GREETING)
        while b"stat x" not in conn.recv(1000):
            pass
        conn.sendall(b"err stat x reason=no-such-file\n")
        for _ in iter(bool, True):
            conn.sendall(lines)
            begun.set()

    return Listener(talk)


def test_a_server_that_answers_without_end_is_left(do, here, listeners):
    listeners.append(flood(b"ok put x\n" * 5000, threading.Event()))
    (here / "x").write_bytes(BIG[: 5 << 20])
    done = do("put", "x", port=listeners[0].port)
    assert done.code == 56 and "more answers than requests" in done.err, done


def test_ctrl_c_ends_an_upload_to_a_server_that_sends_notes_without_end(here, listeners):
    flooding = threading.Event()
    listeners.append(flood(b"note x received=5\n" * 5000, flooding))
    (here / "x").write_bytes(BIG[: 5 << 20])
    put = Process(ROOT / "client.py", "--port", listeners[0].port, "put", "x", cwd=here)
    assert flooding.wait(DEADLINE)
    stopped(put)


@pytest.mark.parametrize(
    ("words", "answer", "code"),
    [
        (["stat", "x"], b"ok stat\n", 0),
        (["list"], b"file\nok list\n", 56),
        (["list"], b"note reason=failed\nok list\n", 56),
        (["help"], b"help\n", 56),
        (["get", "t"], b"ok stat t type=dir\nfile\nok list\n", 56),
        (["get", "*"], b"dir\nok list\n", 56),
        (["rename", "a", "b"], b"note\nok rename\n", 56),
        (["delete", "x"], b"dir\n", 56),
    ],
)
def test_lines_without_their_words_are_told_as_what_they_are(do, canned, words, answer, code):
    done = do(*words, "--retries", "0", port=canned(GREETING + answer).port)
    assert done.code == code and "Traceback" not in done.err, done


@pytest.mark.parametrize("verb", ["put", "get"])
def test_a_folder_listed_without_words_stops_the_command(do, here, canned, verb):
    (here / "t").mkdir()
    for number in range(70):
        (here / "t" / str(number)).touch()
    answers = (
        b"err mkdir t reason=exists\n" if verb == "put" else b"ok stat t type=dir mtime_ns=1\n"
    )
    done = do(
        verb,
        "t",
        "--retries",
        "0",
        "-o" if verb == "get" else "--as",
        "t",
        port=canned(GREETING + answers + b"file\nok list t\n").port,
    )
    assert done.code == 56 and "bad-line" in done.err, done


@pytest.mark.parametrize(
    "name",
    [
        "t/../../x",
        "/etc/x",
        "other/x",
        "t/",
        "t/a//b",
        "t/%00",
        "t/.six-" + "0" * 32 + ".part",
        "t/..",
    ],
)
def test_names_that_a_server_invents_lead_nowhere(do, here, canned, name):
    listing = f"ok stat t type=dir mtime_ns=1\nfile {name} size=1 mtime_ns=1\ndir {name} mtime_ns=1\nok list t count=1\n".encode()
    done = do("get", "t", port=canned(GREETING + listing).port)
    assert done.code == 56 and not any(path.is_file() for path in here.parent.rglob("*")), done


@pytest.mark.parametrize("name", [b"\xff", b"%FF"])
def test_where_names_are_unicode_a_line_that_is_none_breaks_the_protocol(
    run, here, canned, tmp_path, name
):
    """As on Windows."""
    runner = tmp_path / "run.py"
    runner.write_text(f"""
import os, runpy, sys
sys.getfilesystemencodeerrors = lambda: "surrogatepass"
os.fsdecode = lambda name: name if isinstance(name, str) else name.decode("utf-8", "surrogatepass")
runpy.run_path({str(ROOT / "client.py")!r}, run_name="__main__")
""")
    server = canned(GREETING + b"file %b size=1 mtime_ns=1\nok list count=1\n" % name)
    done = run(str(runner), "--port", server.port, "list", cwd=here)
    assert done.code == 56 and "broke the protocol" in done.err, done


def test_a_file_that_goes_while_its_folder_is_read_stops_no_other(server, here, box):
    for name in "abc":
        (here / "tree" / name).parent.mkdir(exist_ok=True)
        (here / "tree" / name).write_text(name)
    code = f"""
import contextlib, os, runpy, sys
true = os.scandir
def late(folder):
    found = list(true(folder))
    with contextlib.suppress(FileNotFoundError):
        os.unlink("tree/b")
    return contextlib.nullcontext(iter(found))
os.supports_fd = {{*os.supports_fd, late}}
os.scandir = late
sys.argv = {["client.py", "--port", str(server.port), "put", "tree"]!r}
runpy.run_path({str(ROOT / "client.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 26 and "cannot read tree/b: no such file" in done.stderr
    assert {path.name for path in (box / "tree").iterdir()} == {"a", "c"}


@pytest.mark.parametrize(
    ("name", "listed", "code"), [("a", "a", 26), ("deep", "deep", 26), ("deep", "x", 0)]
)
def test_a_link_that_takes_the_place_of_a_file_or_folder_of_a_tree_is_not_followed(
    server, here, box, name, listed, code
):
    """It comes when what is there has just been looked at; in the last case when also what is in it has."""
    for path in "tree/a", "tree/deep/x", "else/x":
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_text("secret" if path == "else/x" else "mine")
    program = f"""
import os, runpy, sys
true, seen = os.stat, []
def late(path, **more):
    found = true(path, **more)
    if path == {listed!r} and more.get("dir_fd") is not None and not seen:
        seen.append(path)
        os.rename("tree/{name}", "moved")
        os.symlink("../else{"/x" * (name == "a")}", "tree/{name}")
    return found
os.supports_dir_fd = {{*os.supports_dir_fd, late}}
os.stat = late
sys.argv = {["client.py", "--port", str(server.port), "put", "tree"]!r}
runpy.run_path({str(ROOT / "client.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code and done.stderr.count("error: cannot read") == bool(code), (
        done.stderr
    )
    assert [path.read_text() for path in box.rglob("*") if path.is_file()] == ["mine"] * (
        1 if code else 2
    )


@pytest.mark.parametrize(
    "words",
    [["put", "."], ["put", ".", "--into", "copies/of"], ["put", "../here"], ["put", "files"]],
)
def test_a_folder_that_holds_the_shared_one_is_sent_without_what_the_server_keeps_of_it(
    spawn, run, here, words
):
    (here / "files/old").mkdir(parents=True)
    whole = {"a", "files/old/c", *(f"files/{number:03}" for number in range(200))}
    for path in whole:
        (here / path).write_text(path)
    server = spawn("server.py", "files", cwd=here)
    for _attempt in range(2):
        done = run("client.py", "--port", server.port, *words, "--compare", "content", cwd=here)
        assert done.code == 0 and done.err.count("there the server keeps what is sent") == 1, done
    into, name = (
        ("copies/of/" if "--into" in words else ""),
        "files" if words[1] == "files" else "here",
    )
    sent = (
        {path.removeprefix("files/") for path in whole if path.startswith("files/")}
        if name == "files"
        else whole
    )
    found = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
    assert found == whole | {f"files/{into}{name}/{path}" for path in sent}


def test_a_link_that_is_lost_while_a_folder_is_looked_at_loses_nothing_of_it(
    server, do, here, box, proxy
):
    for path in "tree/tree/a", "tree/b":
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_text(path)
    done = do(
        "put",
        "tree",
        port=proxy(server.port, cut_at=len("mkdir tree\nmkd"), toward="server", times=1).port,
    )
    assert done.code == 0 and "attempt 1" in done.err, done
    assert {str(path.relative_to(box)) for path in box.rglob("*") if path.is_file()} == {
        "tree/tree/a",
        "tree/b",
    }


def test_a_link_that_is_lost_before_a_folder_is_looked_at_is_told_as_lost(listeners, here):
    """When the folder has been listed, the client waits until its kernel knows of the reset."""

    def talk(conn):
        conn.sendall(GREETING)
        conn.recv(100)
        conn.sendall(b"ok mkdir tree\n")
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    (here / "tree/tree").mkdir(parents=True)
    listeners.append(Listener(talk))
    program = f"""
import contextlib, os, runpy, select, sys
true = os.scandir
def late(folder):
    found, poll = list(true(folder)), select.poll()
    for fd in range(3, 20):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            poll.register(fd, 0)
    assert any(event & select.POLLHUP for _, event in poll.poll({DEADLINE * 1000}))
    return contextlib.nullcontext(iter(found))
os.supports_fd = {{*os.supports_fd, late}}
os.scandir = late
sys.argv = {["client.py", "--port", str(listeners[-1].port), "--retries", "0", "put", "tree"]!r}
runpy.run_path({str(ROOT / "client.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 18 and "error: connection lost" in done.stderr, done


def test_links_here_are_not_followed_by_a_tree(do, here, box):
    (box / "t" / "sub").mkdir(parents=True)
    (box / "t" / "sub" / "x").write_text("x")
    (here / "t").mkdir()
    (here / "elsewhere").mkdir()
    (here / "t" / "sub").symlink_to(here / "elsewhere")
    assert do("get", "t").code == 23 and os.listdir(here / "elsewhere") == []
    (here / "x").symlink_to(here / "new")
    (box / "x").write_text("x")
    assert do("get", "x", "--force").code == 23 and not (here / "new").exists()


def test_a_source_that_changes_while_it_is_sent_is_told(server, here, box, proxy):
    (here / "big").write_bytes(BIG * 10)  # more than the kernel's buffers on the way hold
    way = proxy(server.port, hold_at=2 << 20, toward="server")
    client = Process(ROOT / "client.py", "--port", way.port, "put", "big", cwd=here)
    until(grown(box, 1 << 20), "the part to grow")
    os.utime(here / "big", (0, 99))
    way.go.set()
    assert client.wait() == 18 and "changed while it was sent" in client.err
    until(lambda: os.listdir(box) == [], "the part to go")


def test_a_part_whose_check_was_interrupted_in_the_shell_is_let_go(server, here, box):
    # a hole costs no room, and takes long to check
    size, part = 1 << 34, here / script.lasting_name("big", 1 << 34, 0)
    for path in box / "big", part:
        with path.open("wb") as file:
            file.truncate(size)
    os.utime(box / "big", (0, 0))

    def held():
        """How far in it each descriptor stands that is open on the part."""
        found = []
        for fd in Path(f"/proc/{shell.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found += [
                    int(Path(f"/proc/{shell.process.pid}/fdinfo/{fd.name}").read_text().split()[1])
                ] * (os.readlink(fd) == str(part))
        return found

    shell = Terminal("--port", server.port, cwd=here)
    shell.type("get big\r")
    until(lambda: any(held()), "the check to begin")
    shell.process.send_signal(signal.SIGINT)
    shell.wait_for("stopped after")
    shell.type("help\r")
    shell.wait_for("the end")
    assert not held() and part.stat().st_size == size
    shell.type("bye\r")
    assert shell.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_shell_that_a_pipe_feeds_and_no_later_line_runs(
    server, here, box, number
):
    shell = Process(ROOT / "client.py", "--port", server.port, cwd=here, stdin=subprocess.PIPE)
    shell.process.stdin.write(b"receive\nmkdir after\n")
    shell.process.stdin.flush()
    shell.wait_for("waiting for files")
    shell.process.send_signal(number)
    assert shell.wait() == 130 and "\nstopped\n" in shell.err and os.listdir(box) == [], shell.err
    shell.process.stdin.close()


def test_a_terminal_comes_back_to_the_prompt_at_ctrl_c_and_sigterm_ends_the_shell(server, here):
    shell = Terminal("--port", server.port, cwd=here)
    shell.wait_for("sixsockets> ")
    shell.type("half a line")
    shell.wait_for("half a line")
    shell.process.send_signal(signal.SIGINT)
    # a signal that comes just before it waits for typing is noticed behind the line
    shell.type("\rreceive\r")
    shell.wait_for("waiting for files")
    shell.process.send_signal(signal.SIGINT)
    shell.wait_for("stopped")
    shell.type("mkdir a\r")
    server.wait_for("mkdir a")
    shell.process.send_signal(signal.SIGTERM)
    shell.type("\r")
    assert "unknown command" not in shell.text and shell.end() == 130


@pytest.mark.parametrize(
    "answer", [b"err get x reason=not-permitted\n", b"ok get y size=1\n", b"what\n"]
)
def test_a_part_that_the_server_does_not_go_on_with_is_let_go_in_the_shell(
    do, here, canned, answer
):
    found, data = (
        GREETING + b"ok stat x size=%d mtime_ns=1\n" % len(BIG),
        b"data %d\n%b" % (len(BIG), BIG),
    )
    part = here / script.lasting_name("x", len(BIG), 1)
    part.write_bytes(BIG[: 1 << 20])
    got = b"ok get x size=%d mtime_ns=1\n%bend sha256=%b\n" % (
        len(BIG),
        data,
        hashlib.sha256(BIG).hexdigest().encode(),
    )
    done = do(input=b"get x\nget x\n", port=canned(GREETING, found + answer, found + got).port)
    assert done.err.count("error:") == 1 and tree(here) == {"x": (BIG, 1, 0)}, done


def test_what_goes_to_a_pipe_with_a_name_ends_with_its_command_in_the_shell(server, here, box):
    (box / "x").write_text("x")
    os.mkfifo(here / "pipe")
    shell = Process(ROOT / "client.py", "--port", server.port, cwd=here, stdin=subprocess.PIPE)
    shell.process.stdin.write(b"get x -o pipe\n")
    shell.process.stdin.flush()
    reader = Process("-c", "print(open('pipe').read())", cwd=here)
    assert reader.wait() == 0 and reader.out == "x\n"
    shell.process.stdin.close()
    assert shell.wait() == 0, shell.err


def test_a_file_that_changed_before_the_link_was_lost_is_begun_again_and_told_once(
    listeners, run, here
):
    def talk(conn):
        conn.sendall(GREETING)
        with conn.makefile("rb") as file:
            asked.append(verbs := [])
            # an empty line comes from a client that had to wait
            for line in filter(bytes.strip, file):
                verbs.append(line.split()[0])
                if verbs[-1] == b"stat":
                    conn.sendall(b"err stat big reason=no-such-file\n")
                elif verbs[-1] == b"put":
                    os.utime(here / "big", (0, 99 + len(asked)))
                    conn.sendall(b"note big offset=0\n")
                elif verbs[-1] == b"data":
                    file.read(int(line.split()[1]))
                elif verbs[-1] == b"abort":
                    if len(asked) == 1:
                        return
                    conn.sendall(b"err put big reason=aborted\n")

    asked = []
    (here / "big").write_bytes(BIG * 10)  # more than the kernel's buffers on the way hold
    listeners.append(Listener(talk))
    sent = run("client.py", "--port", listeners[-1].port, "put", "big", cwd=here)
    assert sent.code == 18 and sent.err.count("it changed while it was sent") == 1, sent
    assert [verbs[0] for verbs in asked] == [b"stat", b"stat"]
    assert [verbs[-1] for verbs in asked] == [b"abort", b"abort"]


def test_a_full_disk_here_and_there(spawn, run, here, box):
    (box / "big").write_bytes(BIG)
    (box / "small").write_text("small")
    server = spawn("server.py", box)
    limited = {
        "cwd": here,
        "preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    }
    got = run("client.py", "--port", server.port, "get", "big", "small", **limited)
    assert (
        got.code == 23
        and "cannot write big" in got.err
        and re.search(r"after [1-9][\d,]+ of 3,145,728 bytes", got.err)
        and os.listdir(here) == ["small"]
    )
    (here / "large").write_bytes(BIG)
    (here / "little").write_text("x")
    full = spawn("server.py", box, "--max-size", "1M")
    sent = run("client.py", "--port", full.port, "put", "large", "little", cwd=here)
    assert (
        sent.code == 25
        and "too-large" in sent.err
        and (box / "little").exists()
        and not (box / "large").exists()
    )


def test_a_folder_that_is_refused_is_named_once(spawn, run, here, box):
    (here / "tree" / ".git").mkdir(parents=True)
    for number in range(20):
        (here / "tree" / ".git" / str(number)).touch()
    (here / "tree" / "z").touch()
    sent = run(
        "client.py", "--port", spawn("server.py", box).port, "put", "--hidden", "tree", cwd=here
    )
    assert sent.code == 25 and sent.err.count("error:") == 1 and (box / "tree" / "z").exists()


# --- what people get wrong ---
def test_absent_server(run):
    port = free_port()
    failed = run("client.py", "--port", port, "list")
    assert (
        failed.code == 7
        and "connection refused" in failed.err
        and f"server.py --port {port}" in failed.err
    )
    assert run("client.py", "--host", "no such host", "list").code == 6
    assert run("client.py", "frobnicate").code == 2


@pytest.mark.parametrize(
    ("says", "code", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 56, "no Six Sockets"),
        (b"", 52, "said nothing"),
        (b"\x16\x03\x01", 56, "no Six Sockets"),
        (b"err - reason=server-full\n", 7, "as many clients"),
        (b"sixsockets 9\n", 56, "no Six Sockets"),
    ],
)
def test_another_program_on_the_port(run, canned, says, code, told):
    failed = run("client.py", "--port", canned(says).port, "list")
    assert failed.code == code and told in failed.err


def test_a_silent_server_times_out(run, listeners):
    from conftest import Listener

    listeners.append(Listener(lambda conn: b"".join(iter(lambda: conn.recv(65536), b""))))
    failed = run("client.py", "--port", listeners[0].port, "--timeout", "0.2", "list")
    assert failed.code == 28 and "said nothing\nwhy:   silent for 0.2 s" in failed.err


def test_did_you_mean(do, here):
    (here / "note.txt").touch()
    failed = do("put", "notes.txt")
    assert (
        failed.code == 26
        and "did you mean note.txt?" in failed.err
        and "no such file" in failed.err
    )


def test_files_that_differ_in_the_digits_of_a_second_are_told_apart_by_their_content(do, here, box):
    for folder, digits in ((here, 520886729), (box, 33360300)):
        (folder / "x").write_bytes(b"12")
        os.utime(folder / "x", ns=(0, 1700000000 * 10**9 + digits))
    for verb, code in (("put", 25), ("get", 23)):
        failed = do(verb, "x")
        assert failed.code == code and "--compare content tells whether they are" in failed.err
        assert ".033360300; yours: 2 bytes of " in failed.err and ".520886729\n" in failed.err
        assert do(verb, "x", "--compare", "content").err == f"{verb}: 0 files; 1 already there\n"
    (here / "x").write_bytes(b"21")
    failed = do("put", "x", "--compare", "content")
    assert failed.code == 25 and "--compare" not in failed.err, "that is known already"


def test_who_lists_what_is_not_there_is_not_told_to_make_it(do, here):
    (here / "x").touch()
    for words in (["list", "no"], ["get", "no/x"], ["stat", "no/x"], ["delete", "no/x"]):
        failed = do(*words)
        assert failed.code == 78 and "try:   list shows what there is" in failed.err, failed
    failed = do("put", "x", "--as", "no/x")
    assert failed.code == 25 and "mkdir makes it; put --into FOLDER does too" in failed.err, failed


def test_what_was_changed_is_told_in_one_line(do, box):
    assert do("mkdir", "d").err == "mkdir: 1 done\n"
    assert do("rename", "d", "e").err == "rename: 1 done\n"
    failed = do("delete", "e", "no").err.splitlines()
    assert failed[0].startswith("error: ") and failed[-1] == "delete: 1 done; 1 failed", failed
    assert do("mkdir", "d", "--quiet").err == "" and paths(box) == []


# --- the shell ---
def test_the_shell_goes_on_after_a_failure_and_knows_the_words_of_the_labs(do, here, box):
    (here / "a b").write_text("x")
    words = 'upload "a b"\nls\nbogus\ndownload nothere\nput \'open\nrename "a b" c\ndelete c\nhelp\nlist\nlogout\nlist\n'
    done = do(input=words.encode())
    assert "\n  cd [FOLDER]  " in done.out.decode(), "a line for each command"
    assert (
        done.out.decode().startswith("a b\n")
        and "unknown command bogus" in done.err
        and "quote" in done.err
        and done.code
    )
    assert os.listdir(box) == [] and "upload" in done.out.decode()
    assert do(input=b"list\n").code == 0


def test_the_shell_holds_no_part_of_a_command_that_was_cut_off(do, server, here, box, proxy):
    """z waited behind a, and what an earlier command had left of it was locked already."""
    for name in "a", "z":
        (box / name).write_bytes(BIG)
    assert do("get", "z", "--retries", "0", port=proxy(server.port, cut_at=2 << 20).port).code == 18
    done = do(
        "--retries",
        "0",
        input=b"get a z\nget z\nget a\n",
        port=proxy(server.port, cut_at=2 << 20, times=1).port,
    )
    assert done.code == 18 and done.err.count("error:") == 1 and tree(here) == tree(box), done


def test_a_nul_in_a_line_of_the_shell_is_told_and_the_next_line_runs(do, box):
    lines = b"put a\0b\nli\0st\nlist a\0\nget\nx\0\nput\nx\0\nupload\na\0b\n\nmkdir d\n"
    done = do(input=lines)
    assert done.code == 2 and done.err.count("NUL") == 6 and os.listdir(box) == ["d"], done


def test_a_command_of_the_shell_goes_where_its_own_flags_say(do, spawn, box, tmp_path):
    (tmp_path / "other").mkdir()
    for folder in box, tmp_path / "other":
        (folder / "x").touch()
    other = spawn("server.py", tmp_path / "other")
    done = do(input=b"list\ndelete x --port %d\nwho --nick anna\nstat x\n" % other.port)
    assert done.code == 0 and os.listdir(box) == ["x"] and os.listdir(tmp_path / "other") == [], (
        done
    )
    assert b"  anna  " in done.out and b"x: file" in done.out, done


def test_the_shell_survives_a_server_that_restarts(spawn, box, here):
    server = spawn("server.py", box, port=free_port())
    shell = Process(ROOT / "client.py", "--port", server.port, cwd=here, stdin=subprocess.PIPE)
    shell.process.stdin.write(b"mkdir a\n")
    shell.process.stdin.flush()
    server.wait_for("mkdir a")
    server.stop()
    server = spawn("server.py", box, port=server.port)
    shell.process.stdin.write(b"mkdir b\n")
    shell.process.stdin.close()
    assert shell.wait() == 0 and sorted(os.listdir(box)) == ["a", "b"], shell.err


def test_a_terminal_has_a_bar_a_table_and_no_escapes(server, here, box, proxy):
    pty = pytest.importorskip("pty")
    (box / "esc\x1b[31m").write_text("x" * 1500)
    (box / "big").write_bytes(BIG)
    for words, pattern in (
        (["list"], rb"1\.5 kB  \d{4}-.*esc\\x1b\[31m"),
        (["get", "big", "-o", "new"], rb"%  .* of 3\.1 MB"),
    ):
        master, slave = pty.openpty()
        port = proxy(server.port, delay=0.02).port
        client = subprocess.Popen(
            [sys.executable, ROOT / "client.py", "--port", str(port), *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=here,
        )
        os.close(slave)
        said = b""
        try:
            while chunk := os.read(master, 65536):
                said += chunk
        except OSError:  # how Linux tells that nobody has the terminal any more
            pass
        os.close(master)
        assert client.wait() == 0 and re.search(pattern, said), said
        assert b"\x1b[31m" not in said


@pytest.mark.parametrize("verb", ["get", "put"])
def test_a_transfer_outlives_its_terminal(server, here, box, proxy, verb):
    way = proxy(
        server.port, hold_at=1_500_000, delay=0.03, toward="client" if verb == "get" else "server"
    )
    source, goal = (box, here) if verb == "get" else (here, box)
    (source / "big").write_bytes(BIG)
    ours, theirs = os.openpty()
    client = subprocess.Popen(
        [sys.executable, ROOT / "client.py", "--port", str(way.port), verb, "big"],
        cwd=here,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    while b"%" not in os.read(ours, 65536):
        pass
    os.close(ours)
    way.go.set()
    assert client.wait(DEADLINE) == 0 and (goal / "big").read_bytes() == BIG


def test_what_a_file_holds_moves_no_terminal(server, box, here):
    pty = pytest.importorskip("pty")
    (box / "x").write_bytes("plain\n\tü\x1b]0;title\x07\x9b2J\r".encode() + b"\xff\xc3")
    for output in "-", "/dev/stdout":
        master, slave = pty.openpty()
        client = subprocess.Popen(
            [
                sys.executable,
                ROOT / "client.py",
                "--port",
                str(server.port),
                "get",
                "x",
                "-o",
                output,
            ],
            stdout=slave,
            stderr=subprocess.DEVNULL,
            cwd=here,
        )
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: it has ended
            while chunk := os.read(master, 65536):
                shown += chunk
        os.close(master)
        assert (
            client.wait(DEADLINE) == 0
            and shown.decode() == "plain\r\n\tü\\x1b]0;title\\x07\\x9b2J\\r\\xff\\xc3"
        ), shown


# --- many, and large ---
def test_many_small_files_and_memory_stays_small(server, do, here, box, full):
    count = 10000 if full else 600
    (here / "many").mkdir()
    for number in range(count):
        (here / "many" / f"{number:05}").write_bytes(b"%d" % number * 20)
    slowly = {"timeout": 10 * DEADLINE}
    assert f"put: {count:,} files" in do("put", "many", **slowly).err and tree(box) == {
        "many": True,
        **{f"many/{name}": fact for name, fact in tree(here / "many").items()},
    }
    assert f"{count:,} already there" in do("put", "many", **slowly).err
    assert f"get: {count:,} files" in do("get", "many", "-o", "back", **slowly).err and tree(
        here / "back/many"
    ) == tree(here / "many")
    assert server.status("VmHWM") < 60 << 10


def test_the_memory_of_the_client_does_not_grow_with_the_file(server, here, box):
    with open(here / "big", "wb") as sparse:
        sparse.truncate(100 << 20)
    for words in ("put", "big"), ("get", "big", "-o", "back"):
        code = (
            f"import re, runpy, sys; sys.argv = {['client.py', '--port', str(server.port), *words]!r}\n"
            f"try: runpy.run_path({str(ROOT / 'client.py')!r}, run_name='__main__')\n"
            "except SystemExit as end: print(end.code, re.search('VmHWM:\\\\s+(\\\\d+)', open('/proc/self/status').read())[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True
        )
        assert int(done.stdout.split()[0]) == 0 and int(done.stdout.split()[1]) < 60 << 10
    assert (
        hashlib.sha256((here / "back").read_bytes()).digest()
        == hashlib.sha256((here / "big").read_bytes()).digest()
    )


# --- pure functions, and the file by itself ---
@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (1234567, "1.2 MB"),
        (99949, "99.9 kB"),
        (99951, "100 kB"),
        (999499, "999 kB"),
        (999500, "1.0 MB"),
        (5e15, "5000 TB"),
    ],
)
def test_readable_size(size, text):
    assert script.readable_size(size) == text


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (1700000000123456789, 1700000000123456789, True),
        (1700000000123456789, 1700000000123456700, True),
        (1700000000123456789, 1700000000000000000, True),
        (1700000000123456789, 1700000000123456788, False),
        (1700000001123456789, 1700000000000000000, True),
        (1700000002123456789, 1700000000000000000, False),
        (1700000000123456789, 1700000000123450000, False),
        (1700000000000000000, 1700000001000000000, True),
    ],
)
def test_times_are_compared_at_the_coarser_precision(one, other, alike):
    assert script.same(5, one, 5, other) is alike and not script.same(5, one, 6, other)


@pytest.mark.parametrize(
    "told",
    [
        "ab" * 32,
        "AB" * 32,
        ":".join(["AB"] * 32),
        "sha256 Fingerprint=" + ":".join(["AB"] * 32),
        "sha256:" + "ab" * 32,
    ],
)
def test_a_pin_is_taken_as_we_and_as_openssl_print_it(told):
    assert script.pin(told) == "ab" * 32


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_the_bar_fits_into_a_row_and_says_nothing_before_there_is_something(monkeypatch, columns):
    monkeypatch.setattr(script, "columns_of", lambda fd: columns)
    bar = script.Progress(argparse.Namespace(quiet=True))
    bar.total, bar.all_files, bar.files, bar.current = 123_456_789_000, 12_345, 1_234, 1
    early, late = bar.bar(bar.began + 0.1), bar.bar(bar.began + 5000)
    assert "  0%" in early and "/s" not in early and "left" not in early
    assert columns < 80 or ("1 byte of 123 GB" in early and "1,234 of 12,345 files" in early)
    bar.current = 99_999_999_999
    assert all(len(text) < columns for text in (early, late, bar.bar(bar.began + 5000)))
    bar.current = 0
    assert "/s" not in bar.bar(bar.began + 5000), "nothing has come"


def test_clock():
    assert [script.clock(seconds) for seconds in (0, 61.9, 3600, 36061)] == [
        "0:00",
        "1:01",
        "1:00:00",
        "10:01:01",
    ]


def test_listing_beyond_memory_comes_back_the_same(monkeypatch):
    monkeypatch.setattr(script, "LISTED_IN_MEMORY", 2)
    lines = [
        script.Line("file", [f"a {number}\udcff"], {"size": str(number)}) for number in range(5)
    ]
    listing = script.Listing()
    for entry in lines:
        listing.add(entry)
    assert list(listing) == lines


def test_every_python_since_3_9_runs_it_alone(alone, server, box, full):
    path = alone("client.py", for_any=True)
    (path.parent / "x").write_text("x")
    found = interpreters()
    for version in found if full else [min(found, key=lambda name: int(name[2:]))]:
        for words in (["put", "x"], ["get", "x"], ["list"]):
            done = subprocess.run(
                [found[version], "-I", str(path), "--port", str(server.port), *words],
                cwd=path.parent,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


LATER = """
import os, runpy, sys, time
true = time.time
time.time = lambda: true() + 8 * 86400
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_parts_that_nobody_came_back_for_are_swept_on_both_sides(
    spawn, server, here, box, tmp_path
):
    """Eight days later, where something new comes: all but those that somebody writes, and what only looks like one."""
    names = [f".six-{digit * 32}.part" for digit in "0123"]
    for folder in (here, here / "deep", here / "new", box, box / "deep"):
        folder.mkdir(exist_ok=True)
        for name in [*names, ".six-mine"]:
            (folder / name).write_bytes(b"half")
    (box / "deep/x").write_bytes(b"x")
    kept = sorted([names[3], ".six-mine"])
    with contextlib.ExitStack() as stack:
        for folder in (here, here / "deep", here / "new", box, box / "deep"):
            fcntl.flock(stack.enter_context((folder / names[3]).open()), fcntl.LOCK_EX)
        code = tmp_path / "later.py"
        code.write_text(LATER)
        for target in (here, here / "new"):
            done = subprocess.run(
                [
                    sys.executable,
                    code,
                    ROOT / "client.py",
                    "--port",
                    str(server.port),
                    "get",
                    "deep",
                    "-o",
                    target,
                ],
                cwd=here,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        assert sorted(os.listdir(here)) == sorted([*kept, "deep", "new"])
        assert sorted(os.listdir(here / "deep")) == sorted([*kept, "x"]) and sorted(
            os.listdir(here / "new")
        ) == sorted([*kept, "deep"])
        assert names[0] in os.listdir(box), "the server has the right time"
        later = spawn(code, ROOT / "server.py", box)
        until(
            lambda: (
                sorted(os.listdir(box)) == sorted([*kept, "deep"])
                and sorted(os.listdir(box / "deep")) == sorted([*kept, "x"])
            ),
            "no parts but one",
        )
        later.wait_for(r"removed deep/\.six-0{32}\.part: nobody resumed it")


def test_a_tree_that_is_too_deep_goes_as_far_as_it_may_and_comes_back(do, here, box):
    (here / "t" / "/".join("d" * 70)).mkdir(parents=True)
    (here / "t" / "x").write_text("x")
    done = do("put", "t")
    assert done.code == 25 and done.err.count("error:") == 1 and "64 folders deep" in done.err
    assert (box / "t/x").exists() and len(list(box.rglob("d"))) == 63
    assert do("get", "t", "-o", "there/").code == 0
    (box / "t" / "/".join("d" * 64)).mkdir()
    (box / "t" / "/".join("d" * 64) / "x").touch()
    done = do("get", "t", "-o", "again/")
    assert done.code == 9 and "64 folders deep" in done.err and (here / "again/t/x").exists()


@pytest.mark.parametrize("how", [">", ">>"])
def test_zeros_come_as_a_hole_or_as_they_are(do, server, here, box, how):
    data = b"begin" + bytes(20 << 20) + b"end"
    (box / "zeros").write_bytes(data)
    assert do("get", "zeros").code == 0 and (here / "zeros").read_bytes() == data
    assert (here / "zeros").stat().st_blocks * 512 < 4 << 20
    (here / "all").write_text("before")
    get = f"'{sys.executable}' '{ROOT / 'client.py'}' --port {server.port} get zeros -o - {how} all"
    assert (
        subprocess.run(["sh", "-c", get], cwd=here, check=False, timeout=DEADLINE).returncode == 0
    )
    assert (here / "all").read_bytes() == b"before" * (how == ">>") + data


@pytest.fixture
def invented(listeners):
    """A server that answers a request with the lines given for it or its verb, a get with one byte."""

    def start(answers):
        def talk(conn):
            conn.sendall(GREETING)
            for request in conn.makefile("rb"):
                verb, *words = request.decode(errors="surrogateescape").split()
                name = next((word for word in words if "=" not in word), "-")
                says = answers.get(f"{verb} {name}") or answers.get(verb) or USUAL.get(verb, "")
                said = says.replace("{name}", name)
                conn.sendall(said.encode(errors="surrogateescape"))

        listeners.append(Listener(talk))
        return listeners[-1].port

    return start


USUAL = {
    "stat": "ok stat {name} type=file size=1 mtime_ns=1\n",
    "get": "ok get {{name}} size=1 mtime_ns=1\ndata 1\nxend sha256={}\n".format(
        hashlib.sha256(b"x").hexdigest()
    ),
    "bye": "ok bye\n",
}


@pytest.mark.parametrize(("pattern", "name"), [("*", ".profile"), ("t", "t/.ssh/keys")])
def test_a_dot_name_that_a_server_lists_is_not_taken_unasked(do, here, invented, pattern, name):
    listed = f"file {name} size=1 mtime_ns=1 exec=yes\nok list\n"
    first = {"*": "err stat * reason=no-such-file\n", "t": "ok stat t type=dir mtime_ns=1\n"}
    port = invented({"list": listed, f"stat {pattern}": first[pattern]})
    do("get", pattern, "--retries", "0", port=port)
    assert [path.name for path in here.rglob("*") if path.is_file()] == []
    assert do("get", pattern, "--retries", "0", "--hidden", port=port).code == 0
    assert (here / name).read_bytes() == b"x"


def test_dot_names_come_with_hidden_or_when_they_are_named(spawn, do, here, box):
    (box / "t").mkdir()
    for name in (".a", "b", "t/.c", "t/d"):
        (box / name).write_text(name)
    port = spawn("server.py", "--hidden", box).port
    got = do("get", "*", port=port)
    assert got.code == 0 and got.err.endswith("; skipped 1 hidden\n"), got
    assert sorted(os.listdir(here)) == ["b", "t"] and os.listdir(here / "t") == ["d"]
    assert do("get", ".a", port=port).code == 0 and (here / ".a").exists()
    assert do("get", "*", "--hidden", "-o", "all/", port=port).code == 0
    assert tree(here / "all") == tree(box)


@pytest.mark.parametrize("year", [2300, 1969, 1650])
def test_a_file_dated_beyond_what_the_protocol_holds_goes_both_ways(do, here, box, year):
    when = (year - 1970) * 31556952
    for folder, names in ((here, ("up/odd", "up/even")), (box, ("down/odd", "down/even"))):
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)
    for path in (here / "up/odd", box / "down/odd", box / "down"):
        os.utime(path, (when, when))
    if os.stat(box / "down/odd").st_mtime != when:
        pytest.skip("this file system holds no such time")
    for words in (["put", "up"], ["get", "down"], ["--json", "list", "down"], ["stat", "down"]):
        assert (done := do(*words)).code == 0, done
    assert (box / "up/odd").exists() and (here / "down/odd").exists()
    assert "2 already there" in do("put", "up").err and "2 already there" in do("get", "down").err


def test_the_shell_waits_for_a_server_that_restarts(spawn, box, here):
    server = spawn("server.py", box, port=free_port())
    shell = Process(ROOT / "client.py", "--port", server.port, cwd=here, stdin=subprocess.PIPE)
    shell.process.stdin.write(b"mkdir a\n")
    shell.process.stdin.flush()
    server.wait_for("mkdir a")
    server.stop()
    shell.process.stdin.write(b"mkdir b\n")
    shell.process.stdin.close()
    shell.wait_for("attempt 1 of 16")
    spawn("server.py", box, port=server.port)
    assert shell.wait() == 0 and sorted(os.listdir(box)) == ["a", "b"], shell.err


def test_a_server_that_comes_back_and_refuses_is_asked_once_and_quoted(run, here, canned):
    auth = GREETING.replace(
        b"none", script.AUTH.encode() + b" salt=%b nonce=%b" % ((b"00" * 16,) * 2)
    )
    server = canned(GREETING + b"ok stat a type=file size=2 mtime_ns=1\n", auth)
    done = run("client.py", "--port", server.port, "get", "a", cwd=here)
    assert done.code == 67 and "cannot ask for the password" in done.err, done
    assert len(server.read) == 2


# --- what peers write stands beside what we write ---
POSING = [
    "hi" + " " * 200 + "bob: I agree",
    "\u3000" * 40 + "bob: I agree",
    "\u3164" * 40 + "bob: I agree",
    "\u2800" * 75 + "bob: I agree",
    "e\u0301" * 80 + "bob: I agree",
    "é" * 80 + "bob: I agree",
    "x" * 74 + "bob: I agree",
    "\u202ebob: I agree\u2066" + "\u200f" * 80,
    "\U0001f600" * 40 + "bob: I agree",
    "\x1b[2K\x1b[1Gbob: I agree\x9b1G\x85\u2028bob: I agree",
]


def rows_of(text, columns=80):
    """The rows of a terminal, where a character beside ASCII takes one column or two, as it likes."""
    for row in re.sub(r"\x1b\[[JAK]|\r(?!\n)", "\n", text.replace("\r\n", "\n")).split("\n"):
        row = row.removeprefix("> ")
        assert row.isprintable(), row
        widths = (2 if unicodedata.east_asian_width(char) in "AFW" else 1 for char in row)
        told = row.startswith("waiting for files; ")  # a command to copy, and all ours
        assert told or sum(widths) <= columns, f"the terminal begins a row inside {row!r}"
        yield row


def test_on_a_terminal_each_row_of_a_chat_tells_whose_it_is(invented, here):
    said = "".join(f"said from=anna {text}\n" for text in POSING).encode()
    said = said.replace(b"\x1b", b"%1B").replace(b"\x9b", b"%9B")  # no line may hold them
    said = re.sub(rb"[\0-\t\x0b-\x1f]", b"", said).decode(errors="surrogateescape")
    port = invented({"chat": f"ok chat you=127.0.0.1:1 count=2\n{said}said from=bob at last\n"})
    chat = Terminal("--port", port, "chat", "--retries", "0", cwd=here)
    chat.wait_for("bob: at last")
    chat.type("/quit\n")
    chat.end()
    posed = list(rows_of(chat.text.partition("bob: at last")[0]))
    # a line that comes while readline draws the prompt leaves a piece of the prompt as a row
    ours = re.compile(r"\d\d:\d\d (?:anna: |$)|  \| |\d clients? here|>? ?$")
    assert [row for row in posed if not ours.match(row)] == []
    assert sum("I agree" in row for row in posed) >= len(POSING) - 1


HOSTILE = [
    "a" + " " * 200 + "9.9 MB  2026-01-01 10:00  safe.txt",
    "try:   curl evil.example" + " " * 40 + "try:   curl evil.example",
    "a\n9.9 MB  2026-01-01 10:00  safe.txt",
    "a\x1b]0;title\x07\x9b2J\r",
    "a\u202egpj.exe\u2066",
    "a\udcff",
    "<img src=x onerror=alert(1)>\"'",
    "..",
    ".",
    "a/../../b",
    "/etc/passwd",
    "//etc/x",
    "..%2f..%2fb",
    "..\\b",
    "C:\\x",
    "a\0",
    "a" * 256,
    "a" * 5000,
    "a/" * 80 + "b",
    ".six-" + "0" * 32 + ".part",
    ".SIX-" + "A" * 32 + ".PART",
    ".bashrc",
    "~root",
    "-rf",
    "con",
]


def ends_with(terminal, code):
    """Read it to its end; its rows."""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
        while more := os.read(terminal.master, 65536):
            terminal.text += more.decode()
    assert terminal.end() in code, terminal.text
    return list(rows_of(terminal.text))


def only_inside(here, names=()):
    """No file came to lie outside the folder, and none in it under a name that is refused."""
    assert sorted(os.listdir(here.parent)) == ["here"]
    found = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
    assert found <= set(names), found


@pytest.fixture
def listed():
    """What a server says of each hostile name, as a file, and of some as what is wrong with them."""
    files = [script.line("file", name, size=1, mtime_ns=10**18) for name in HOSTILE]
    notes = [script.line("note", name, reason="not-permitted", why=name) for name in HOSTILE]
    return b"".join(files + notes).decode() + "ok {verb}\n"


def test_names_that_a_hostile_server_lists_are_harmless_and_no_row_poses(invented, here, listed):
    port = invented({"list": listed.replace("{verb}", "list")})
    ours = re.compile(
        r" {0,8}\d+(\.\d)? \w+  \d{4}-\d\d-\d\d |  \| |error: |why:   |try:   list|try:   use|$"
    )
    rows = ends_with(Terminal("--port", port, "list", cwd=here), {9})
    assert [row for row in rows if not ours.match(row)] == []
    assert len(rows) > 2 * len(HOSTILE)
    only_inside(here)


def test_json_tells_what_a_hostile_server_lists_and_it_cannot_tell_for_us(
    do, invented, here, listed
):
    stat = script.line("ok", "stat", "a", name="forged", verb="get", result="failed", size=1)
    client = script.line("client", "127.0.0.1:1", nick=HOSTILE[3], mode=HOSTILE[0], you="no")
    answers = {
        "list": listed.replace("{verb}", "list"),
        "who": client.decode() + "ok who\n",
        "stat a": stat.decode(),
    }
    port = invented(answers)
    done = do("list", "--json", port=port)
    facts = [json.loads(text) for text in done.out.splitlines()]
    names = [script.unquote(each["quoted"]) if "quoted" in each else each["name"] for each in facts]
    assert names == HOSTILE and done.out.isascii()
    told = json.loads(do("stat", "a", "--json", port=port).out)
    assert (told["name"], told["verb"], told["result"]) == ("a", "stat", "ok")
    assert json.loads(do("who", "--json", port=port).out)["nick"] == HOSTILE[3]


@pytest.mark.parametrize("hidden", [[], ["--hidden"]])
@pytest.mark.parametrize("pattern", ["*", "t"])
def test_of_hostile_names_get_makes_only_those_below_its_folder(invented, here, pattern, hidden):
    below = "t/" * (pattern == "t")
    files = (script.line("file", below + name, size=1, mtime_ns=1) for name in HOSTILE)
    kind = {"t": "ok stat t type=dir mtime_ns=1\n", "*": "err stat * reason=no-such-file\n"}
    listing = b"".join(files).decode() + "ok list\n"
    port = invented({"list": listing, f"stat {pattern}": kind[pattern]})
    words = "get", pattern, "--retries", "0", "--quiet", *hidden
    rows = ends_with(Terminal("--port", port, *words, cwd=here), {23, 56})
    ours = re.compile(r"error: |why:   |try:   (?!curl)|  \| |$")
    assert [row for row in rows if not ours.match(row)] == []
    fine = set(HOSTILE[:7] + ["..%2f..%2fb", "..\\b", "C:\\x", "~root", "-rf", "con"])
    fine |= {".bashrc"} if hidden else set()
    only_inside(here, {below + name for name in fine if hidden or name[0] != "."})


def test_of_hostile_names_receive_makes_only_those_below_its_folder(invented, here):
    facts = {"size": 1, "from": "127.0.0.1:9", "nick": "eve"}
    end = b"end sha256=%s\n" % hashlib.sha256(b"x").hexdigest().encode()
    files = [
        script.line("put", name, **facts) + b"data 1\nx" + end
        for name in [*HOSTILE, "  9 bytes from 127.0.0.1:8 (bob)", "a from bob: exists", "last"]
    ]
    folders = [script.line("mkdir", name, **facts) for name in HOSTILE[7:13]]
    says = "ok receive you=127.0.0.1:1\n" + b"".join(folders + files).decode()
    inbox = Terminal("--port", invented({"receive": says}), "receive", cwd=here)
    inbox.wait_for("last\r\n")
    inbox.process.send_signal(signal.SIGINT)
    rows = ends_with(inbox, {130})
    ours = re.compile(
        r" {0,8}1 byte  127\.0\.0\.1:9 \(eve\)  |127\.0\.0\.1:9 \(eve\)(?:: | sends )|waiting for|stopped|  \| |$"
    )
    assert [row for row in rows if not ours.match(row)] == []
    assert sorted(os.listdir(here.parent)) == ["here"]
    assert not any(path.name.startswith(".") for path in here.rglob("*"))


def test_what_receivers_say_of_a_file_cannot_pose_as_ours(invented, here):
    (here / "a").write_text("x")
    reason = HOSTILE[1]
    got = script.line("got", "127.0.0.1:9", "err", nick=HOSTILE[3], reason=reason, why=HOSTILE[1])
    says = got.decode() + "ok send a\n"
    port = invented({"xend": says, "who": "ok who count=1\n"})
    sent = Terminal("--port", port, "send", "a", "--to", "eve", "--quiet", cwd=here)
    rows = ends_with(sent, {25})
    ours = re.compile(r"error: 127|why:   |try:   run the same command again|  \| |$")
    assert [row for row in rows if not ours.match(row)] == []


# --- trees: what is left out, what would be done ---
@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.tmp", ["a.tmp", "d/b.tmp", ".tmp", "d.tmp/x"], ["a.tmpx", "tmp", "d/a.tmp2"]),
        ("build/", ["build/", "a/build/", "build/x"], ["build", "a/build", "builder/"]),
        ("/top", ["top", "top/", "top/x"], ["a/top", "topper"]),
        ("doc/*.pdf", ["doc/a.pdf", "doc/a.pdf/x"], ["a.pdf", "doc/a/b.pdf", "x/doc/a.pdf"]),
        ("**/x/y", ["x/y", "a/x/y", "a/b/x/y/z"], ["ax/y", "x/a/y"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "b/a/z"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b/a/c"]),
        ("[!a-c]?.txt", ["dx.txt", "x/d1.txt"], ["ax.txt", "d.txt", "dxx.txt"]),
        ("[a/]", ["[a/]"], ["a", "/"]),
        ("a[\\d]", ["ad", "a\\"], ["a1"]),
        ("a b%(", ["a b%(", "x/a b%("], ["ab%("]),
        ("ä?", ["äö"], ["ä", "ä/"]),
    ],
)
def test_a_pattern_means_what_gitignore_means_by_it(pattern, matching, others):
    patterns = [script.pattern(pattern)]
    assert [path for path in matching if not script.is_excluded(patterns, path)] == []
    assert [path for path in others if script.is_excluded(patterns, path)] == []


@pytest.fixture
def trees(here, box):
    """The same tree on both sides, with what may be left out of one."""

    def fill(*folders):
        for folder in folders:
            for path in (
                "a.txt",
                "b.tmp",
                ".git/config",
                ".env",
                "build/x.o",
                "src/a.c",
                "src/b.tmp",
            ):
                (folder / "t" / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / "t" / path).write_text(path)
            (folder / "t/link").symlink_to("a.txt")

    return fill


def paths(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("verb", ["put", "get"])
def test_a_tree_comes_without_what_is_hidden_or_excluded_and_the_last_line_counts_it(
    spawn, do, here, box, trees, verb
):
    trees(here if verb == "put" else box)
    there, port = (box if verb == "put" else here), spawn("server.py", "--hidden", box).port
    words = [verb, "t", "--exclude", "*.tmp", "--exclude", "build/"]
    plan = do(*words, "--dry-run", "--delete", port=port)
    assert plan.out == b"new t/a.txt\nnew t/src/a.c\n" and not list(there.iterdir()), plan
    assert (
        f"{verb} --dry-run: would {'send' if verb == 'put' else 'fetch'} 2 files, 12 b" in plan.err
    )
    done = do(*words, port=port)
    assert done.code == 0, done
    assert paths(there) == ["t/a.txt", "t/src/a.c"], done
    assert (
        done.err.count("skipped t/") == 2
        and "skipped t/.env: its name starts with a dot" in done.err
    )
    assert done.err.endswith("; skipped 2 hidden, 1 link or special, 3 excluded\n"), done
    quiet = do(*words, "--quiet", port=port)
    assert quiet.code == 0 and quiet.err == ""
    told = do(*words, "--json", "--quiet", port=port).out.splitlines()
    assert json.loads(told[-1]).items() >= {"same": 2, "skipped": 6, "files": 0}.items()
    done = do(verb, "t", "--hidden", port=port)
    assert done.code == 0 and len(paths(there)) == 7 and "skipped 1 link" in done.err, done


@pytest.mark.parametrize("verb", ["put", "get"])
def test_delete_removes_what_the_source_lost_but_nothing_excluded_or_hidden(
    spawn, do, here, box, trees, verb
):
    trees(here, box)
    ours, theirs = (here, box) if verb == "put" else (box, here)
    port = spawn("server.py", "--hidden", box).port
    assert do(verb, "t", "--compare", "content", port=port).code == 0
    (ours / "t/moved").symlink_to("not mounted")
    for path in ("old/deep/er/x", "old/y", "old/.keep", "gone.txt", "moved/x"):
        (theirs / "t" / path).parent.mkdir(parents=True, exist_ok=True)
        (theirs / "t" / path).touch()
    os.unlink(ours / "t/build/x.o")
    os.unlink(ours / "t/src/b.tmp")
    words = [verb, "t", "--compare", "content", "--exclude", "*.tmp", "--delete"]
    plan = do(*words, "--dry-run", port=port)
    doomed = {"build/x.o", "gone.txt", "old/deep/er/x", "old/deep/er", "old/deep", "old/y", "old"}
    assert {line[9:].decode() for line in plan.out.splitlines()} == doomed, plan
    warning = "without --force it refuses that: --delete would remove 7 of the 13 files and"
    assert warning in plan.err and plan.err.endswith("; would delete 7\n"), plan
    refused = do(*words, port=port)
    assert refused.code == {"put": 25, "get": 23}[verb], refused
    assert "--delete would remove 7 of the 13 files and folders in t" in refused.err, refused
    assert re.search(rf"\n{verb}: \d files?.*; 1 failed\n$", refused.err), refused
    assert (theirs / "t/gone.txt").exists()
    done = do(*words, "--force", port=port)
    assert done.code == 0 and done.err.endswith("; deleted 6\n"), done
    kept = {".env", ".git/config", "a.txt", "b.tmp", "old/.keep", "src/a.c", "src/b.tmp"}
    kept.add("moved/x")  # a link has taken the place of that folder
    assert set(paths(theirs / "t")) == kept | {"link"} and not (theirs / "t/old/deep").exists()
    assert (theirs / "t/build").is_dir(), "it is there still at the source"
    (ours / "t/a.txt").write_text("other")
    (theirs / "t/gone.txt").touch()
    failed = do(*words, port=port)
    assert failed.code and "nothing was deleted, because something failed" in failed.err
    assert (theirs / "t/gone.txt").exists()


def test_a_server_learns_nothing_of_what_is_outside_of_the_folder_that_is_sent(
    do, here, listeners, tmp_path
):
    (here / "t").mkdir()
    (here / "t/link").symlink_to(tmp_path)
    listed = b"".join(
        b"file t/%b size=1 mtime_ns=1\n" % os.fsencode(name)
        for name in ("../nothing", f"/{tmp_path}/nothing", "link/nothing", "was/../../nothing")
    )
    asked = []

    def talk(conn):
        conn.sendall(GREETING)
        for line in conn.makefile("rb"):
            asked.append(line)
            answer = listed + b"ok list t count=4\n"
            conn.sendall(answer if line.startswith(b"list ") else b"ok " + line)

    listeners.append(Listener(talk))
    done = do("put", "t", "--delete", "--force", "--retries", "0", port=listeners[0].port)
    assert done.code == 0 and asked == [b"mkdir t\n", b"list t deep=yes\n"], (done, asked)


def test_the_rate_is_kept_to_in_both_directions(do, here, box):
    """It is measured between the trace's lines: the first and the last of the body."""
    for folder, verb in (here, "put"), (box, "get"):
        (folder / verb).write_bytes(bytes(range(256)) * 400)
        done = do(verb, verb, "--limit-rate", "200k", "--trace")
        assert done.code == 0, done
        mark = ">" if verb == "put" else "<"
        large = re.findall(rf"([\d.]+) ms #1 {mark} \w+ (\d{{4,}}) of", done.err)
        assert max(int(count) for _, count in large) <= 20000
        assert float(large[-1][0]) - float(large[0][0]) >= 350, large


def test_delete_r_takes_a_folder_with_what_is_in_it(do, box):
    for path in ("t/a/b/c", "t/d", "u", "v/w"):
        (box / path).parent.mkdir(parents=True, exist_ok=True)
        (box / path).touch()
    assert do("delete", "t").code == 9 and (box / "t/d").exists()
    plan = do("delete", "-r", "t", "u", "--dry-run")
    assert plan.out == b"delete t/a/b/c\ndelete t/a/b\ndelete t/d\ndelete t/a\ndelete t\ndelete u\n"
    assert do("delete", "-r", "t", "u", "nosuch").code == 78
    assert os.listdir(box) == ["v"]
    assert do("delete", "-r", "*").code == 0 and os.listdir(box) == []
    (box / "t").mkdir()
    (box / "t/link").symlink_to("/etc/passwd")
    kept = do("delete", "-r", "t")
    assert kept.code == 9 and kept.err.count("error:") == 1 and "not-empty" in kept.err, kept
    assert (box / "t/link").is_symlink()


def test_list_takes_patterns_is_calm_about_links_and_ends_when_nobody_reads(server, do, box):
    for path in ("a.txt", "b.md", "d/c.txt"):
        (box / path).parent.mkdir(exist_ok=True)
        (box / path).touch()
    (box / "link").symlink_to("a.txt")
    listed = do("list", "-r")
    assert listed.code == 0 and listed.err == "skipped link: a link or a special file\n", listed
    assert do("list", "*.txt").out == b"a.txt\n" and do("list", "d/?.txt").out == b"d/c.txt\n"
    assert do("list", "-r", "*.txt").out == b"a.txt\nd/c.txt\n"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as stdout:
        client = [sys.executable, str(ROOT / "client.py"), "--port", str(server.port), "list"]
        ended = subprocess.run(client, stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 0 and b"error" not in ended.stderr, ended


@pytest.mark.parametrize("pattern", ["!a", "", "/", "[z-a]"])
def test_what_is_no_pattern_is_told(pattern):
    with pytest.raises(argparse.ArgumentTypeError):
        script.pattern(pattern)


# --- joining, words and folders ---
def test_the_environment_names_the_server_where_no_host_is_given(server, run, box, here):
    (box / "x").touch()
    for value in (f"127.0.0.1:{server.port}", "127.0.0.1"):
        flags = [] if ":" in value else ["--port", server.port]
        env = {**os.environ, "SIXSOCKETS_HOST": value}
        assert run("client.py", *flags, "list", env=env).out == b"x\n"
    absent = run("client.py", "--host", "127.0.0.2", "--port", free_port(), "list", env=env)
    assert absent.code == 7 and "nothing is listening on 127.0.0.2" in absent.err


@pytest.mark.parametrize(
    ("value", "given", "host", "port"),
    [
        ("a.example", None, "a.example", 9000),
        ("a.example:80", None, "a.example", 80),
        ("a.example:80", 7, "a.example", 7),
        ("::1", None, "::1", 9000),
        ("[::1]", None, "::1", 9000),
        ("[::1]:80", None, "::1", 80),
        ("", None, "127.0.0.1", 9000),
    ],
)
def test_host_and_port_of_the_environment(monkeypatch, value, given, host, port):
    monkeypatch.setenv("SIXSOCKETS_HOST", value)
    args = argparse.Namespace(host=None, port=given)
    script.settle_endpoint(args)
    assert (args.host, args.port) == (host, port)


def test_the_words_of_the_labs_work_on_the_command_line_too(do, here, box):
    (here / "a b").write_text("x")
    assert do("UPLOAD", "a b").code == 0 and do("--quiet", "LIST").out == b"a b\n"
    assert do("--nick", "list", "dir").out == b"a b\n"
    assert do("mv", "a b", "c").code == 0 and do("download", "c").code == 0
    assert (here / "c").read_text() == "x" and do("rm", "c").code == 0 and os.listdir(box) == []
    assert do("logout").code == do("STOP").code == 0
    assert do("upload").code == 2
    assert "did you mean list" in do("lits").err


def test_the_shell_has_folders_on_both_sides_and_commands_of_this_machine(do, here, box):
    (box / "d/e").mkdir(parents=True)
    (box / "f").touch()
    (here / "sub").mkdir()
    (here / "sub/x").write_text("x")
    lines = (
        "cd d\npwd\nlcd sub\nput x\nput x --as y\nput x --into e\ndir\nmv y e/z\nrm x\ncd ..\nls\n"
    )
    lines += "cd d/e\nget /d/e/z -o got\n!echo there >&2; exit 3\ncd f\ncd nosuch\n"
    done = do(input=lines.encode())
    assert done.out.decode().splitlines() == [
        "/d", str(here / "sub"), "e/", "x", "y", "d/", "f",
    ], done  # fmt: skip
    assert paths(box) == ["d/e/x", "d/e/z", "f"] and (here / "sub/got").read_text() == "x"
    assert "there" in done.err and done.code == 1 and "no-such-file" in done.err, done


def test_in_the_shell_tab_completes_names_there_where_these_are_meant(server, here, box):
    pytest.importorskip("readline")
    (here / "here.txt").touch()
    (box / "deep").mkdir()
    (box / "deep" / "renamed x.txt").touch()
    (box / "escape\x1b[2J").touch()
    (box / "there.txt").touch()
    shell = Terminal("--port", server.port, cwd=here)
    shell.wait_for("sixsockets> ")
    for typed, completed in (
        ("stat th\t", "stat there.txt"),
        ("ls /d\tr\t", "'/deep/renamed x.txt'"),
        ("stat he\t", "stat he"),
        ("stat esc\t", "stat esc"),
        ("stat no/\t", "stat no/"),
        ("put he\t", "put here.txt"),
        ("cd de\t", "cd deep/"),
        ("rm ren\t", "'renamed x.txt'"),
    ):
        shell.type(typed)
        shell.wait_for(completed)
        shell.type("\n")
        shell.wait_for("> ")
    until(lambda: not (box / "deep" / "renamed x.txt").exists(), "the file to be deleted")
    assert (box / "there.txt").exists() and "stat here" not in shell.text, shell.text
    assert "stat escape" not in shell.text, "a name that clears the screen is not typed"
    shell.type("bye\n")
    assert shell.end() == 0


def test_a_signal_ends_the_shell_also_while_tab_waits_for_the_server(here, listeners):
    asked = threading.Event()

    def talk(conn):
        conn.sendall(GREETING)
        if b"list" in conn.recv(100):
            asked.set()
        conn.recv(100)  # until it has closed

    listeners.append(Listener(talk))
    shell = Terminal("--port", listeners[0].port, cwd=here)
    shell.wait_for("sixsockets> ")
    shell.type("get x\t")
    assert asked.wait(DEADLINE)
    shell.process.send_signal(signal.SIGTERM)
    assert shell.end() == 130


def test_the_help_of_the_shell_fits_80_columns(do):
    rows = do(input=b"help\n").out.decode().splitlines()
    assert len(rows) > 15 and max(map(len, rows)) <= 76, rows


def test_in_the_shell_no_name_is_a_way_out_and_all_that_is_shared_has_none(do, here, box):
    (box / "d").mkdir()
    (here / "x").touch()
    lines = "\nget\n\nput\n\nupload\n\ndelete\n\ncd d\n\npwd\n"
    lines += "delete -r ..\nget /\nrename x ..\nput x --into ..\nbye\nlist\n"
    done = do(input=lines.encode())
    assert done.out == b"/d\n" and done.code == 2, f"nothing else is done, and bye ends it: {done}"
    whole = [
        line for line in done.err.splitlines() if line.endswith(" is no name of a file or folder")
    ]
    assert whole == [
        f'error: "{name}" is no name of a file or folder' for name in ("..", "/", "..")
    ]
    assert paths(box) == ["x"] and (box / "d").is_dir() and done.err.count("error:") == 3


def test_a_link_that_is_lost_by_cd_does_not_end_the_shell(run, canned):
    found = b"ok stat d type=dir mtime_ns=1\n"
    peer = canned(GREETING, GREETING + b"what\n", GREETING + found)
    done = run("client.py", "--port", peer.port, input=b"cd /d\ncd /d\ncd /d\npwd\n")
    assert done.out == b"/d\n" and done.err.count("error:") == 1, done


def test_a_web_server_on_the_port_is_told_at_once(spawn, run, box):
    port = spawn("httpserver.py", box).port
    done = run("client.py", "--port", port, "list", timeout=20)
    assert done.code == 56 and "it speaks HTTP" in done.err, done


def test_a_put_without_room_is_refused_before_it_is_sent(spawn, run, here, box):
    (here / "big").write_bytes(bytes(10 << 20))
    port = spawn("server.py", box, "--max-size", "9M").port
    done = run("client.py", "--port", port, "put", "big", "--trace", cwd=here)
    assert done.code == 25 and "too-large" in done.err, done
    assert sum(map(int, re.findall(r"send (\d+) of", done.err))) < 1000


def test_a_drop_box_takes_everything_and_says_in_sentences_what_it_does_not_do(
    spawn, run, here, box
):
    def do(*words, **more):
        return run("client.py", "--port", port, "--nick", "anna", *words, cwd=here, **more)

    port = spawn("server.py", box, "--drop-box").port
    (here / "t").mkdir()
    (here / "t/a ü").write_text("one")
    assert do("put", "t").code == 0
    (here / "t/a ü").write_text("other")
    again = do("put", "t", "--json")
    told, last = map(json.loads, again.out.splitlines())
    assert again.code == 0 and "t/a ü is stored as t/a ü (" in again.err, again
    assert told["as"].startswith("t/a ü (") and last["files"] == 1
    assert (box / "anna" / told["as"]).read_text() == "other"
    assert (box / "anna/t/a ü").read_text() == "one", "nothing that was handed in is lost"
    for words in ["list"], ["list", "*"], ["get", "t"], ["delete", "-r", "t"], ["stat", "t/a ü"]:
        done = do(*words)
        assert done.code in (9, 78) and f"error: server refused to {words[0]}" in done.err, done
        assert "why:   it is a drop box: files can be added" in done.err and not done.out, done
    done = do("put", "t", "--delete")
    assert "it is a drop box" in done.err and done.err.endswith("1 failed\n"), done


@pytest.mark.parametrize("verb", ["put", "get"])
def test_the_same_command_twice_at_once_ends_well_for_both(server, here, box, verb):
    source, target = (here, box) if verb == "put" else (box, here)
    (source / "t").mkdir()
    for number in range(300):
        (source / f"t/{number}").write_text(f"{number}")
    (source / "big").write_bytes(BIG * 4)
    words = [ROOT / "client.py", "--port", server.port, verb, "t"]
    both = [Process(*words, cwd=here) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0], [each.err for each in both]
    assert tree(target / "t") == tree(source / "t")
    assert os.listdir(target) == ["t"], "no part is left"
    both = [Process(*words[:-1], "big", cwd=here) for _ in range(2)]
    codes = sorted(each.wait() for each in both)
    told = both[0].err + both[1].err
    assert codes == [0, 0] or (
        codes == [0, 25 if verb == "put" else 23]
        and "another" in told
        and "again when that" in told
    ), told
    assert (target / "big").read_bytes() == BIG * 4


def test_receive_takes_from_those_alone_who_are_named_and_asks(server, do, here, box):
    (here / "x").write_text("x")
    inbox = Process(
        ROOT / "client.py", "--port", server.port, "--nick", "carl", "receive", "-o", box / "in",
        "--from", "Anna", "--count", "1", cwd=here,
    )  # fmt: skip
    inbox.wait_for("waiting for files")
    refused = do("--nick", "bob", "send", "x", "--to", "carl")
    assert refused.code == 25 and "not-wanted" in refused.err, refused
    assert do("--nick", "anna", "send", "x", "--to", "carl").code == 0
    assert inbox.wait() == 0 and os.listdir(box / "in") == ["x"], inbox.err
    asked = Terminal(
        "--port", server.port, "--nick", "dora", "receive", "--ask", "--count", "1", cwd=here
    )
    asked.wait_for("waiting for files")
    for answer, code in ("n\n", 25), ("y\n", 0):
        (here / f"{code}").write_text("y")
        send = [ROOT / "client.py", "--nick", "bob", "--port", server.port, "send", f"{code}"]
        sent = Process(*send, "--to", "dora", cwd=here)
        asked.wait_for(f"(bob) sends {code}, 1 byte")
        asked.wait_for("take it? [y/N]")
        assert "did not get" not in asked.text, "its user knows"
        asked.text = ""
        asked.type(answer)
        assert sent.wait() == code, sent.err
    asked.wait_for("0 (1)")
    assert asked.end() == 0


@pytest.mark.parametrize("listed", [b" size=3 mtime_ns=1", b" size=3 mtime_ns=1 exec=yes", b""])
def test_a_file_that_changed_since_it_was_listed_is_what_the_answer_says(do, here, canned, listed):
    """The client knows the likely answer from the listing; what comes may be another, or a part."""
    end = b"end sha256=%b\n" % hashlib.sha256(b"four").hexdigest().encode()
    begun = GREETING + b"ok stat t type=dir\nfile t/x%b\nok list t deep=yes count=1\n" % listed
    body = b"ok get t/x size=4 mtime_ns=2\ndata 4\nfour"
    assert do("get", "t", port=canned(begun + body + end).port).code == 0
    assert tree(here / "t") == {"x": (b"four", 2, 0)}


def test_a_listing_without_sizes_is_no_reason_to_fall(do, here, canned):
    end = b"end sha256=%b\n" % hashlib.sha256(b"").hexdigest().encode()
    begun = GREETING + b"ok stat t type=dir\nfile t/x\nok list t deep=yes count=1\n"
    assert do("get", "t", port=canned(begun + b"ok get t/x\ndata 0\n" + end).port).code == 0
    assert tree(here / "t")["x"][0] == b""
