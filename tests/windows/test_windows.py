"""The six scripts, run by a Windows Python (machine.py says by which): their first tasks, and what only Windows does."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import tarfile
import zipfile

import pytest
from conftest import ROOT, SCRIPTS, until
from machine import IS_WINDOWS, LIMIT, ask, lines, needs_pty, needs_python, not_by_hand, windows  # noqa: F401
from test_httpserver_page import CHROMIUM, browser, finished  # noqa: F401

pytestmark = needs_python
DATA = bytes(range(256)) * 5000


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"hello\n")
    (folder / "GRüN.txt").write_bytes(b"green\n")
    (folder / ".env").write_bytes(b"secret\n")
    return folder


@pytest.fixture
def tcp(windows, share):
    return windows.serve("server.py", share)


@pytest.fixture
def http(windows, share):
    return windows.serve("httpserver.py", share)


# --- first tasks ---
@pytest.mark.parametrize("script", ["tcp_upper.py", "udp_upper.py"])
def test_an_echo(windows, run, script):
    server = windows.serve(script, "server")
    words = ["client", "hello é", "--port", server.port]
    assert windows.run(script, *words).out == "HELLO é\n".encode()
    assert run(script, *words).out == "HELLO é\n".encode()


@pytest.mark.parametrize("ours", ["server", "client", "both"])
def test_files_go_both_ways_over_tcp(windows, share, run, spawn, tmp_path, ours):
    server = spawn("server.py", share) if ours == "client" else windows.serve("server.py", share)
    client = run if ours == "server" else windows.run
    name = "ein Bär 100%.bin"
    (tmp_path / name).write_bytes(DATA)
    for words in (
        ["put", name],
        ["get", name, "-o", "copy"],
        ["rename", name, "sub/b"],
        ["list", "-r"],
        ["delete", "sub/b"],
    ):
        done = client("client.py", *words, "--port", server.port, cwd=tmp_path)
        assert done.code == 0, done
        assert words[0] != "list" or b"sub/b" in done.out
    assert (tmp_path / "copy").read_bytes() == DATA
    assert sorted(os.listdir(share)) == sorted([".env", "GRüN.txt", "a.txt", "sub"])


@pytest.mark.parametrize("ours", ["server", "client", "both"])
def test_files_go_both_ways_over_http(windows, share, run, spawn, tmp_path, ours):
    server = (
        spawn("httpserver.py", share) if ours == "client" else windows.serve("httpserver.py", share)
    )
    client = run if ours == "server" else windows.run
    name, url = "ein Bär 100%.bin", f"http://127.0.0.1:{server.port}/"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / name).write_bytes(DATA)
    for words in (
        ["upload", "tree", f"{url}tree/"],
        ["get", f"{url}tree/ein%20B%C3%A4r%20100%25.bin", "-o", "copy"],
        ["mirror", url, "-o", "mirrored"],
        ["move", f"{url}tree/ein%20B%C3%A4r%20100%25.bin", f"{url}b"],
        ["delete", f"{url}b"],
    ):
        done = client("httpclient.py", *words, cwd=tmp_path)
        assert done.code == 0, done
    assert (tmp_path / "copy").read_bytes() == DATA
    assert (tmp_path / "mirrored" / "tree" / name).read_bytes() == DATA
    assert not list(share.rglob("*.part")) and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_manual_goes_into_a_pipe(windows, script):
    """Also where a pipe's encoding lacks a character of it: there ? stands for that."""
    done = windows.run(script, "--help")
    assert done.code == 0 and f"\nusage: {script}".encode() in done.out, done


# --- names ---
BAD = [
    "con",
    "NUL.txt",
    "a.",
    "a ",
    "c:x",
    "a:stream",
    "x\\y",
    "..\\a.txt",
    "CONIN$",
    "conout$",
    "COM¹",
    "lpt².txt",
]


def test_no_verb_takes_a_name_that_windows_takes_for_something_else(tcp):
    for name in BAD:
        quoted = "".join(f"%{byte:02x}" for byte in name.encode())
        for verb in (
            "get {}",
            "put {} size=0",
            "stat {}",
            "delete {}",
            "mkdir {}",
            "rename {} b",
            "rename a.txt {}",
            "list {}",
        ):
            (said,) = lines(tcp, verb.format(quoted))
            assert said.startswith("err ") and "reason=bad-name" in said, (name, verb, said)


def test_no_method_takes_a_name_that_windows_takes_for_something_else(http):
    for name in BAD:
        quoted = "/" + "".join(f"%{byte:02x}" for byte in name.encode())
        for method in "GET", "PUT", "DELETE", "MKCOL", "MOVE":
            status, _, body = ask(http, method, quoted, "Destination: /b\r\n" * (method == "MOVE"))
            assert status == 403, (method, name, body)
        assert ask(http, "MOVE", "/a.txt", f"Destination: {quoted}\r\n")[0] == 403, name


def test_a_short_name_is_no_other_name_of_a_file(windows, share, tcp, http):
    """Windows gives each long name a second one of 8.3 letters: it would lead to hidden files, and past every check."""
    short = windows.code(
        "import ctypes; b = ctypes.create_unicode_buffer(300)\n"
        "for name in ('.env', 'longer than eight.txt'):\n"
        " open(name, 'a').close(); ctypes.windll.kernel32.GetShortPathNameW(name, b, 300); print(b.value)",
        cwd=share,
    ).split()
    assert len(short) == 2 and all("~" in name for name in short)
    for name in short:
        for line in (
            f"get {name}",
            f"stat {name}",
            f"delete {name}",
            f"put {name} over=yes size=0",
            f"rename {name} b",
        ):
            said = lines(tcp, line)[0]
            assert said.startswith(f"err {line.split()[0]}"), said
        for method in "GET", "DELETE", "PUT", "MOVE":
            assert ask(http, method, f"/{name}", "Destination: /b\r\n" * (method == "MOVE"))[0] in (
                403,
                404,
            )
    assert (share / ".env").read_bytes() == b"secret\n" and not (share / "b").exists()


def test_the_same_name_in_another_case_is_the_same_file(tcp, http, share):
    assert lines(tcp, "rename a.txt A.txt")[0].startswith("ok rename"), "a name can change its case"
    assert not IS_WINDOWS or "A.txt" in os.listdir(share)
    assert ask(http, "MOVE", "/A.txt", "Destination: /a.TXT\r\n")[0] in (201, 204)
    assert not IS_WINDOWS or "a.TXT" in os.listdir(share)
    assert lines(tcp, "put SUB/x size=1", "data 1", "xend")[-1].startswith("ok put")
    assert (share / "sub" / "x").read_bytes() == b"x"


def test_a_missing_folder_is_missing(tcp, windows, tmp_path):
    assert "reason=no-such-f" in lines(tcp, "list nothing")[0]
    assert "reason=no-such-f" in lines(tcp, "get nothing/a")[0]
    assert windows.run("client.py", "list", "nothing", "--port", tcp.port, cwd=tmp_path).code == 78


# --- httpserver.py ---
def test_a_file_is_deleted_and_moved_while_the_server_holds_it(http, share):
    assert ask(http, "MOVE", "/a.txt", "Destination: /sub/b.txt\r\n")[0] == 201
    assert ask(http, "DELETE", "/sub/b.txt")[0] == 204
    assert ask(http, "DELETE", "/sub/?recursive")[0] == 204
    assert sorted(os.listdir(share)) == [".env", "GRüN.txt"]


def test_an_upload_replaces_and_leaves_no_part(http, share):
    assert ask(http, "PUT", "/a.txt", body=b"new")[0] == 204
    assert ask(http, "PUT", "/new", body=b"new")[0] == 201
    status, _, _ = ask(http, "PUT", "/bad", "Repr-Digest: sha-256=:" + "A" * 43 + "=:\r\n", b"x")
    assert status == 400
    assert sorted(os.listdir(share)) == [".env", "GRüN.txt", "a.txt", "new", "sub"]


def test_archives_are_whole(http):
    with tarfile.open(fileobj=io.BytesIO(ask(http, "GET", "/?tar")[2])) as archive:
        assert {"a.txt", "GRüN.txt"} <= {name.removeprefix("./") for name in archive.getnames()}
    with zipfile.ZipFile(io.BytesIO(ask(http, "GET", "/?zip")[2])) as archive:
        assert archive.testzip() is None and "a.txt" in archive.namelist()


def test_the_listing_tells_the_etag_of_each_file(http):
    listed = json.loads(ask(http, "GET", "/", "Accept: application/json\r\n")[2])
    told = {entry["name"]: entry.get("etag") for entry in listed}
    assert told["a.txt"] == ask(http, "HEAD", "/a.txt")[1]["etag"]


@pytest.mark.parametrize("script", ["server.py", "httpserver.py"])
def test_more_connections_than_select_takes_are_answered_and_the_server_lives(
    windows, share, script
):
    """select() takes 512 sockets on Windows."""
    server = windows.serve(script, share, "--max-clients", "2000")
    request = (
        b"ping\n" if script == "server.py" else b"GET /a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    with contextlib.ExitStack() as held:
        socks = [held.enter_context(server.connect()) for _ in range(540)]
        answered = 0
        for sock in socks:
            # one over the cap is told so, or an idle one was closed to make room for it
            with contextlib.suppress(ConnectionError):
                sock.sendall(request)
                answered += bool(sock.recv(100))
        assert answered >= 200  # most of the 240 that it holds at once
    if script == "server.py":
        # full until it has seen that the others are gone
        until(lambda: lines(server, "ping") == ["ok ping"], "an answer")
    else:
        until(lambda: ask(server, "GET", "/a.txt")[2] == b"hello\n", "an answer")


@pytest.mark.skipif(
    IS_WINDOWS or not CHROMIUM, reason="needs Linux's chromium, as the tests of the page do"
)
def test_a_browser_uploads_by_the_page(browser, http, share, tmp_path):
    (tmp_path / "ü #1'.bin").write_bytes(DATA)
    browser.open(f"http://127.0.0.1:{http.port}/")
    browser.choose("#pick", tmp_path / "ü #1'.bin")
    finished(browser, 1)
    assert (share / "ü #1'.bin").read_bytes() == DATA and not list(share.glob(".six-*"))


# --- times ---
def test_a_time_before_1970_goes_both_ways(windows, share, tcp, http, tmp_path):
    for folder in share, tmp_path:
        (folder / "old").write_bytes(b"old")
        os.utime(folder / "old", (-86400, -86400))
    client, port = ["client.py", "--port", tcp.port], f"http://127.0.0.1:{http.port}/"
    assert windows.run(*client, "put", "old", "--as", "older", cwd=tmp_path).code == 0
    assert windows.run(*client, "list").code == 0
    assert windows.run(*client, "stat", "old").code == 0
    assert windows.run("httpclient.py", "put", "old", f"{port}oldest", cwd=tmp_path).code == 0
    assert ask(http, "HEAD", "/old")[0] == 200


# --- parts ---
def test_a_get_that_fails_and_a_put_that_is_refused_leave_nothing(
    windows, tcp, share, canned, tmp_path
):
    lines(tcp, "put small size=5", "data 5", "helloend sha256=" + "0" * 64)
    assert sorted(os.listdir(share)) == [".env", "GRüN.txt", "a.txt", "sub"]
    cut = canned(
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nRepr-Digest: sha-256=:"
        + b"A" * 43
        + b"=:\r\n\r\n123456789",
        read_until=b"\r\n\r\n",
    )
    done = windows.run(
        "httpclient.py", "get", f"http://127.0.0.1:{cut.port}/x", "--retries", "0", cwd=tmp_path
    )
    assert done.code == 56 and [name for name in os.listdir(tmp_path) if name != "share"] == [], (
        done
    )


def test_of_two_writers_of_one_part_the_new_one_wins(tcp, share):
    """The old one may be the dead half of a lost link."""
    size = 3_000_000
    with tcp.connect() as old:
        old.sendall(
            f"put x size={size} mtime_ns=5\ndata {size}\n".encode() + bytes([7]) * 1_500_000
        )
        tcp.wait_for("put|connect")
        said = lines(tcp, f"put x size={size} mtime_ns=5", f"data {size}\n" + "x" * size + "end")
    assert said[-1].startswith("ok put"), said
    assert (share / "x").stat().st_size == size


def test_a_part_that_is_written_is_locked_for_other_processes(windows, share, tcp):
    other = windows.serve("server.py", share)
    size = 3_000_000
    with tcp.connect() as old:
        old.sendall(
            f"put x size={size} mtime_ns=5\ndata {size}\n".encode()
            + bytes(2_000_000)
            + b"x" * 900_000
        )
        while not list(share.glob(".six-*")):
            pass
        said = lines(
            other,
            f"put x size={size} mtime_ns=5 offset=0 sha256=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        )
    assert "reason=busy" in said[0] or said[0].startswith("ok put"), said


def test_an_upload_over_http_is_for_who_comes_for_it_last(windows, share, http):
    """The new one may be in another process: the old one ends at its next bytes."""
    other = windows.serve("httpserver.py", share)
    begun = ask(http, "PUT", "/x", "Upload-Complete: ?0\n")
    location = begun[1]["location"]
    fields = "Content-Type: application/partial-upload\nUpload-Complete: ?1\nUpload-Offset: "
    head = f"PATCH {location} HTTP/1.1\nHost: localhost\n{fields}0\nContent-Length: {len(DATA)}\n\n"
    with http.connect() as old:
        old.sendall(head.replace("\n", "\r\n").encode() + DATA[:100_000])
        until(lambda: share_has(share, 100_000), "the part")
        said = ask(other, "HEAD", location)
        assert said[1].get("upload-offset") == "100000" or said[0] == 503, said
        old.sendall(DATA[100_000:110_000])
        assert b" 409 " in old.recv(1000)
    said = until(lambda: (reply := ask(other, "HEAD", location))[0] != 503 and reply, "its end")
    assert said[1]["upload-offset"] == "100000", said
    assert ask(other, "PATCH", location, f"{fields}100000", DATA[100_000:])[0] == 201
    assert (share / "x").read_bytes() == DATA


def share_has(share, size):
    return any(path.stat().st_size == size for path in share.glob(".six-*.part"))


def test_an_old_part_of_a_download_is_removed(windows, tmp_path):
    """Windows removes no file that is open."""
    name = f".six-{'0' * 32}.part"
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (1, 1))
    windows.code(
        f"import sys; sys.path.insert(0, '.')\n"
        f"import httpclient; httpclient.remove_old_parts(r'{tmp_path}', {{'{name}'}})",
        cwd=ROOT,
    )
    assert os.listdir(tmp_path) == []


# --- people ---
@not_by_hand
def test_ctrl_c_ends_who_waits(windows, tcp, canned, tmp_path):
    waiting = windows.popen("client.py", "receive", "--port", tcp.port, cwd=tmp_path)
    tcp.wait_for("receive|mode")
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(10) == 130
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        asking = windows.popen(
            "httpclient.py", "get", f"http://127.0.0.1:{silent.getsockname()[1]}/x", cwd=tmp_path
        )
        conn, _ = silent.accept()
        with conn:
            assert conn.recv(100)
            asking.send_signal(signal.SIGINT)
            assert asking.wait(10) == 130


@not_by_hand
def test_ctrl_c_ends_a_server_with_idle_clients_at_once(windows):
    server = windows.serve("tcp_upper.py", "server")
    with server.connect() as first, server.connect() as second:
        for sock in first, second:
            sock.sendall(b"a\n")
            assert sock.recv(10) == b"A\n"
        server.stop()


def test_utf8_that_is_piped_in_is_read_as_such(windows, tcp, tmp_path):
    done = windows.run(
        "client.py", "--port", tcp.port, input="stat GRüN.txt\nlogout\n".encode(), cwd=tmp_path
    )
    assert done.code == 0 and "GRüN.txt".encode() in done.out, done
    with tcp.connect() as other:
        other.sendall(b"chat\n")
        heard = other.recv(1000)
        windows.run("client.py", "--port", tcp.port, "chat", input="grüße ş\n".encode())
        while b"left" not in heard:
            heard += other.recv(1000)
    assert "grüße ş\n".encode() in heard


# --- consoles ---
@needs_pty
def test_a_console_shows_letters_as_they_are(windows, tcp, http, share, tmp_path):
    """Bytes would appear by an old code page: GR├╝N. What is no text appears in hex there."""
    (share / "GRüN.txt").write_bytes("grün\xff\n".encode("latin-1") + "grün\n".encode())
    echo = windows.serve("tcp_upper.py", "server")
    datagrams = windows.serve("udp_upper.py", "server")
    port, url = ["--port", tcp.port], f"http://127.0.0.1:{http.port}/"
    for words in (
        ["tcp_upper.py", "client", "grün", "--port", echo.port],
        ["udp_upper.py", "client", "grün", "--port", datagrams.port],
        ["client.py", "list", *port],
        ["client.py", "get", "GRüN.txt", "-o", "-", *port],
        ["httpclient.py", "get", f"{url}GR%C3%BCN.txt", "-o", "-"],
        ["httpclient.py", "list", url],
    ):
        shown = windows.screen(*words, cwd=tmp_path)
        assert "grün" in shown.lower(), (words, shown)
        assert "├" not in shown and "Ã" not in shown, (words, shown)


def test_nul_is_no_console(windows, tcp, tmp_path):
    """isatty() says that it is one: then a prompt would appear that nobody can answer."""
    echo = windows.serve("tcp_upper.py", "server")
    for words in (
        ["tcp_upper.py", "client", "--port", echo.port],
        ["client.py", "--port", tcp.port],
    ):
        process = windows.popen(*words, cwd=tmp_path)  # its input is NUL
        out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0 and b"nput lowercase" not in err, err
        assert b"help lists" not in err and out == b"", (out, err)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_manual_goes_into_nul(windows, script):
    """isatty() is true of it, and its code page has few letters."""
    process = windows.popen(script, "--help", stdout=subprocess.DEVNULL)
    _, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (0, b"")


# --- lines of errors ---
def test_a_udp_answer_larger_than_the_buffer_says_so(windows):
    server = windows.serve("udp_upper.py", "server")
    done = windows.run(
        "udp_upper.py", "client", "hello world", "--recv-size", "4", "--port", server.port
    )
    assert "no way to" not in done.err, done
    assert done.out == b"HELL\n" or "buffer" in done.err or "cut" in done.err, done


def test_a_port_that_is_taken_is_called_taken(windows):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        done = windows.run("tcp_upper.py", "server", "--port", taken.getsockname()[1])
    assert done.code == 45 and "denied" not in done.err.lower(), done


def test_a_password_that_is_asked_for_without_a_console_is_an_error(windows, share):
    done = windows.run("server.py", share, "--ask-password", "--port", "0")
    assert done.code == 67 and "no terminal" in done.err, done


def test_hints_name_programs_of_windows(windows):
    taken = windows.serve("tcp_upper.py", "server")
    done = windows.run("tcp_upper.py", "server", "--port", taken.port)
    assert done.code == 45 and "netstat -ano" in done.err and " ss " not in done.err, done


@pytest.mark.skipif(IS_WINDOWS, reason="Windows may have an openssl program; wine has none")
@pytest.mark.parametrize("script", ["server.py", "httpserver.py"])
def test_without_openssl_the_error_says_where_windows_gets_one(windows, share, script):
    done = windows.run(script, share, "--tls", "--port", "0")
    assert done.code == 2 and "try:   winget install Git.Git" in done.err, done
    assert "openssl req -x509" in done.err and "--cert cert.pem --key key.pem" in done.err


@pytest.mark.parametrize("script", ["server", "httpserver"])
def test_the_openssl_program_of_git_for_windows_is_found(windows, tmp_path, script):
    """It is not run: an empty file stands for it, and its path is what would be started."""
    folder = tmp_path / "Git" / "usr" / "bin"
    folder.mkdir(parents=True)
    (folder / "openssl.exe").touch()
    told = windows.code(
        "import argparse, os, subprocess, sys\n"
        "sys.path.insert(0, '.')\n"
        f"import {script} as script\n"
        f"os.environ.update(PROGRAMFILES=r'{tmp_path}', PATH='')\n"
        "subprocess.run = lambda command, **more: (\n"
        "    print(command[0]) or subprocess.CompletedProcess(command, 0, b'', b''))\n"
        f"script.make_certificate(argparse.Namespace(host='localhost'), r'{tmp_path}')",
        cwd=ROOT,
    )
    assert told.replace("\\", "/").endswith("/Git/usr/bin/openssl.exe"), told
