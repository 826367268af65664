"""What tcp_upper.py and udp_upper.py do alike: the same words, the same errors, the same ends."""

import contextlib
import fcntl
import os
import pty
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import COMPILED, DEADLINE, ROOT, Process, assert_clean, free_port, states, until

F_SETPIPE_SZ = 1031  # of Linux; the fcntl module names it from Python 3.10 on
BOTH = pytest.mark.parametrize("script", ["tcp_upper.py", "udp_upper.py"])


def lines_of(failure):
    """The three lines of an error, without their labels."""
    error, why, hint = failure.err.strip().splitlines()[-3:]
    assert (error[:7], why[:7], hint[:7]) == ("error: ", "why:   ", "try:   "), failure
    return error[7:], why[7:], hint[7:]


def patient(script, **constants):
    """The script, where what happens must not depend on a tenth of a second, or on two: over TCP Ctrl-C leaves answers much time,
    over UDP the first try and a ping wait long."""
    longer = (
        {"GRACE": DEADLINE}
        if script.startswith("tcp")
        else {"TRIES": (DEADLINE,), "PING_WAIT": DEADLINE}
    )
    longer.update(constants)
    module = script.partition(".")[0]
    return (
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module} as it; vars(it).update({longer}); sys.exit(it.main())",
    )


def kind_of(script):
    return socket.SOCK_STREAM if script.startswith("tcp") else socket.SOCK_DGRAM


class Terminal:
    """A program on a terminal of its own: type to it, read its screen."""

    def __init__(self, *args, **streams):
        self.fd, inner = pty.openpty()
        command = [sys.executable, *(arg if isinstance(arg, bytes) else str(arg) for arg in args)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "TERM": "dumb"},
            start_new_session=True,
            # so that Ctrl-C is a signal
            preexec_fn=lambda: fcntl.ioctl(inner, termios.TIOCSCTTY, 0),
            **{"stdin": inner, "stdout": inner, "stderr": inner, **streams},
        )
        os.close(inner)
        self.screen = b""

    def type(self, text):
        os.write(self.fd, text)

    def wait_for(self, text):
        while text not in self.screen:
            try:
                chunk = (
                    os.read(self.fd, 4096) if select.select([self.fd], [], [], DEADLINE)[0] else b""
                )
            except OSError:  # EIO: the program has ended
                chunk = b""
            assert chunk, f"no {text!r} on the screen:\n{self.screen.decode(errors='replace')}"
            self.screen += chunk

    def end(self):
        code = self.process.wait(DEADLINE)
        os.close(self.fd)
        return code


# --- the work ---
@BOTH
def test_words_come_back_in_capitals(spawn, run, script):
    server = spawn(script, "server")
    done = run(*patient(script), "client", "--port", server.port, "hello,", "welcome")
    assert (done.code, done.out, done.err) == (0, b"HELLO, WELCOME\n", "")


@BOTH
def test_everything_but_a_to_z_comes_back_as_it_was(spawn, run, script):
    server = spawn(script, "server")
    message = "&*! é ß ı 09 Zz".encode()
    assert (
        run(script, "client", "--port", server.port, os.fsdecode(message)).out
        == message.upper() + b"\n"
    )
    everything = bytes(byte for byte in range(256) if byte != 10)
    assert (
        run(script, "client", "--port", server.port, input=everything + b"\n").out
        == everything.upper() + b"\n"
    )


@BOTH
@pytest.mark.parametrize("text", [b"", b"\n", b"\n\n", b"a", b"a\n", b"a\n\nb", b"\r\n"])
def test_lines_of_standard_input_come_back_byte_for_byte(spawn, run, script, text):
    server = spawn(script, "server")
    done = run(*patient(script), "client", "--port", server.port, input=text)
    assert (done.code, done.out, done.err) == (0, text.upper(), "")


@BOTH
def test_an_empty_word_is_a_message_too(spawn, run, script):
    server = spawn(script, "server")
    assert run(script, "client", "--port", server.port, "").out == b"\n"


@BOTH
def test_ping_counts_and_times(spawn, run, script):
    server = spawn(script, "server")
    done = run(*patient(script), "client", "--port", server.port, "--ping", 5, "--interval", 0)
    assert done.code == 0
    assert re.fullmatch(
        rb"sent 5, received 5, lost 0(, doubled 0, out of order 0)?\n"
        rb"round trip min/avg/max \d+\.\d{3}/\d+\.\d{3}/\d+\.\d{3} ms\n",
        done.out,
    ), done


@BOTH
def test_ctrl_c_ends_a_ping_with_its_figures(spawn, script):
    server = spawn(script, "server")
    client = Process(ROOT / script, "client", "--port", server.port, "--ping", 1000, "--trace")
    client.wait_for(r"< recv")
    client.process.send_signal(signal.SIGINT)
    assert client.wait() == 130
    assert re.match(r"sent \d+, received \d+, lost \d", client.out)
    assert_clean(client.err)


# --- the terminal ---
@BOTH
def test_the_prompt_answers_until_end_of_file(spawn, script):
    server = spawn(script, "server")
    client = Terminal(ROOT / script, "client", "--port", server.port)
    for word in b"hello", b"welcome":
        client.wait_for(b"Input lowercase sentence: ")
        client.screen = b""
        client.type(word + b"\n")
        client.wait_for(word.upper())
    client.wait_for(b"sentence: ")
    client.type(b"\4")
    assert client.end() == 0
    assert b"Traceback" not in client.screen


@BOTH
def test_bytes_that_are_no_text_can_be_typed(spawn, script, tmp_path):
    server = spawn(script, "server")
    with open(tmp_path / "out", "wb") as out:
        client = Terminal(ROOT / script, "client", "--port", server.port, stdout=out)
        client.wait_for(b"sentence: ")
        client.type(b"a\xffb\n\4")
        assert client.end() == 0
    assert (tmp_path / "out").read_bytes() == b"A\xffB\n"


@BOTH
def test_a_prompt_is_no_product(spawn, script, tmp_path):
    server = spawn(script, "server")
    with open(tmp_path / "out", "wb") as out:
        client = Terminal(ROOT / script, "client", "--port", server.port, stdout=out)
        client.wait_for(b"sentence: ")
        client.type(b"hello\n")
        client.screen = b""
        client.wait_for(b"sentence: ")
        client.type(b"\4")
        assert client.end() == 0
    assert (tmp_path / "out").read_bytes() == b"HELLO\n"


@BOTH
def test_ctrl_c_at_the_prompt_stops(spawn, script):
    server = spawn(script, "server")
    client = Terminal(ROOT / script, "client", "--port", server.port)
    client.wait_for(b"sentence: ")
    until(lambda: states(client.process) == {"S"}, "it to wait for typing")
    # Python's readline misses a Ctrl-C that comes just before it waits: a person presses again, too
    for _ in range(20):
        client.type(b"\3")
        with contextlib.suppress(subprocess.TimeoutExpired):
            # one more while it ends would be a KeyboardInterrupt that nobody catches
            client.process.wait(5)
            break
    client.wait_for(b"stopped")
    assert client.end() == 130


@BOTH
def test_what_is_no_text_is_shown_in_hex_on_a_terminal(spawn, script):
    server = spawn(script, "server")
    client = Terminal(ROOT / script, "client", "--port", server.port, b"\x1b[2J\xff\xc3\xa9")
    client.wait_for(b"\\x1b[2J\\xff\xc3\xa9\r\n")
    assert client.end() == 0


# --- what people get wrong ---
@BOTH
@pytest.mark.parametrize("port", ["99999", "-1", "http", "1e3", ""])
def test_a_bad_port_is_a_matter_of_the_command_line(run, script, port):
    failed = run(script, "client", f"--port={port}", "hi")
    assert failed.code == 2
    error, _, hint = lines_of(failed)
    assert repr(port) in error and "0 to 65535" in error
    assert hint == f"python3 {script} client -h"


@BOTH
@pytest.mark.parametrize("args", [["client", "--port", "0", "hi"], ["--port", "0", "client", "hi"]])
def test_a_client_cannot_ask_at_port_0(run, script, args):
    failed = run(script, *args)
    assert (failed.code, failed.err.count("\n")) == (2, 3)
    assert lines_of(failed)[0] == "port 0 is no server's" and "server --port 0" not in failed.err


@BOTH
@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64 + ".org"])
def test_an_unknown_name_is_said(run, script, role, host):
    failed = run(script, role, "--host", host)
    assert failed.code == 6
    assert lines_of(failed)[0] == f'cannot find host "{host}"'


@BOTH
def test_a_port_of_another_program_is_said(spawn, run, script):
    server = spawn(script, "server")
    failed = run(script, "server", "--port", server.port)
    assert failed.code == 45
    assert lines_of(failed)[:2] == (
        f"port {server.port} is already in use",
        "another program is using it",
    )
    assert "ss -l" in lines_of(failed)[2]


SERVERS = pytest.mark.parametrize(
    "args",
    [["tcp_upper.py", "server"], ["udp_upper.py", "server"], ["server.py"], ["httpserver.py"]],
)
CHANGED = "import runpy, socket, sys; sys.argv.pop(0); real = socket.socket; %s; runpy.run_path(sys.argv[0], run_name='__main__')"


WITHOUT_IPV6 = CHANGED % (  # as after booting with ipv6.disable=1
    "socket.socket = type('IPv4', (real,), {'__init__': lambda self, family=2, *rest: real.__init__(self, 99 if family == 10 else family, *rest)})"
)


@BOTH
def test_a_client_that_has_no_ipv6_says_it(run, script):
    failed = run("-c", WITHOUT_IPV6, ROOT / script, "client", "--host", "::1", "hi")
    assert failed.code == 7
    assert "[::1]:12000 (Address family not supported by protocol)" in lines_of(failed)[0]


@SERVERS
def test_a_system_without_ipv6_is_said(run, tmp_path, args):
    failed = run(
        "-c", WITHOUT_IPV6, ROOT / args[0], *args[1:], "--host", "::1", "--port", 0, cwd=tmp_path
    )
    assert failed.code == 45
    assert (
        lines_of(failed)[0] == "cannot listen on [::1]:0 (Address family not supported by protocol)"
    )


@SERVERS
def test_a_port_above_1023_that_is_refused_needs_no_rights(run, tmp_path, args):
    """Windows keeps ranges of ports for itself, SELinux all but some: administrator rights would not help."""
    code = CHANGED % (
        "exec('def refuse(self, target): raise PermissionError(13, \"Permission denied\")'); "
        "socket.socket = type('Refused', (real,), {'bind': refuse})"
    )
    failed = run("-c", code, ROOT / args[0], *args[1:], "--port", 50000, cwd=tmp_path)
    assert (failed.code, lines_of(failed)[0]) == (
        45,
        "cannot listen on 127.0.0.1:50000 (Permission denied)",
    )


@pytest.mark.parametrize("args", [["tcp_upper.py", "server"], ["server.py"], ["httpserver.py"]])
def test_of_two_servers_that_start_at_once_one_says_that_the_port_is_in_use(run, tmp_path, args):
    """Both may bind it, as neither listens yet: the other one listens first here."""
    code = CHANGED % (
        "other = real(); listen = real.listen; real.listen = lambda self, backlog: (other.setsockopt(1, socket.SO_REUSEADDR, 1), "
        "other.bind(self.getsockname()), listen(other, 1), other.detach(), listen(self, backlog))"
    )
    failed = run("-c", code, ROOT / args[0], *args[1:], "--port", free_port(), cwd=tmp_path)
    assert failed.code == 45
    assert (
        lines_of(failed)[0].endswith("is already in use")
        and lines_of(failed)[1] == "another program is using it"
    )


@BOTH
def test_an_address_of_another_machine_is_said(run, script):
    failed = run(script, "server", "--host", "192.0.2.1")
    assert failed.code == 45
    error, why, hint = lines_of(failed)
    assert error == "192.0.2.1 is not an address of this machine"
    assert "127.0.0.1" in why and "--host 0.0.0.0" in hint


@BOTH
def test_a_port_below_1024_needs_rights(script):
    setpriv = shutil.which("setpriv") or pytest.skip("setpriv is not installed")
    if os.geteuid() != 0:
        command = [sys.executable, str(ROOT / script), "server", "--port", "7"]
    else:
        command = [
            setpriv,
            "--bounding-set=-net_bind_service",
            sys.executable,
            str(ROOT / script),
            "server",
            "--port",
            "7",
        ]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert failed.returncode == 45, failed.stderr
    assert failed.stderr.startswith("error: port 7 needs administrator rights\n")


@BOTH
def test_the_hint_names_the_host_and_port_that_were_meant(run, script):
    port = free_port(kind_of(script))
    failed = run(script, "client", "--host", "127.0.0.2", "--port", port, "hi")
    assert failed.code == 7
    assert lines_of(failed)[2] == f"python3 {script} server --host 127.0.0.2 --port {port}"


@BOTH
def test_a_role_is_needed(run, script):
    assert run(script).code == 2
    assert run(script, "sever").code == 2


@BOTH
@pytest.mark.parametrize("role", ["client", "server"])
def test_standard_output_that_takes_nothing_is_said(spawn, run, script, role):
    server = spawn(script, "server")
    args = (
        ["client", "--port", str(server.port), "hi"]
        if role == "client"
        else ["server", "--port", "0"]
    )
    with open("/dev/full", "wb") as full:
        failed = subprocess.run(
            [sys.executable, str(ROOT / script), *args],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
        )
    assert failed.returncode == 23
    assert failed.stderr.startswith(
        "error: cannot write standard output (No space left on device)\nwhy:"
    )
    assert_clean(failed.stderr)


@BOTH
def test_a_host_cannot_move_the_cursor(run, script):
    failed = run(script, "client", "--host", "a\x1b[2Jb", "hi")
    assert failed.code == 6 and "\x1b" not in failed.err


@BOTH
def test_standard_input_that_cannot_be_read_is_said(spawn, script, tmp_path):
    server = spawn(script, "server")
    with open(tmp_path / "written", "wb") as unreadable:
        failed = subprocess.run(
            [sys.executable, str(ROOT / script), "client", "--port", str(server.port)],
            stdin=unreadable,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
    assert failed.returncode == 26
    assert failed.stderr.startswith("error: cannot read standard input (Bad file descriptor)\n")
    assert_clean(failed.stderr)


@BOTH
def test_standard_streams_that_do_not_block_lose_nothing(spawn, script):
    """Another program that shares them has set them so, and a pipe is empty or full."""
    server = spawn(script, "server")
    lines = [b"two", *[b"x" * 1000] * 20]
    (inner, typed), (screen, outer) = os.pipe(), os.pipe()
    os.set_blocking(inner, False)
    os.set_blocking(outer, False)
    fcntl.fcntl(outer, F_SETPIPE_SZ, 4096)
    client = subprocess.Popen(
        [sys.executable, *patient(script), "client", "--port", str(server.port)],
        stdin=inner,
        stdout=outer,
        stderr=subprocess.PIPE,
    )
    for line in b"one\n", b"more\n":
        os.write(typed, line)
        assert select.select([screen], [], [], DEADLINE)[0]
        assert os.read(screen, 9) == line.upper()
        # or what comes next would be there before it asks
        until(lambda: states(client) == {"S"} or client.poll() is not None, "it to wait for more")
        os.set_blocking(inner, False)  # once more, in the middle of it
        os.set_blocking(outer, False)
    os.close(inner)
    os.close(outer)
    os.write(typed, b"\n".join(lines))
    os.close(typed)
    waiting = lambda: int.from_bytes(fcntl.ioctl(screen, termios.FIONREAD, bytes(4)), sys.byteorder)  # noqa: E731
    until(lambda: waiting() >= 4000 or client.poll() is not None, "the pipe to be full")
    answer = b"".join(iter(lambda: os.read(screen, 65536), b""))
    os.close(screen)
    assert (answer, client.communicate(timeout=DEADLINE)[1], client.returncode) == (
        b"\n".join(lines).upper(),
        b"",
        0,
    )


@BOTH
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_standard_stream_is_not_mistaken_for_the_connection(spawn, script, closed):
    server = spawn(script, "server")
    done = subprocess.run(
        f"{sys.executable} {COMPILED[script]} client --port {server.port} hi {closed}",
        shell=True,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stdout) == ((0, "HI\n") if closed == "2>&-" else (26, ""))
    assert_clean(done.stderr)


# --- the command line ---
@BOTH
def test_flags_stand_before_or_after_the_role(spawn, run, script):
    server = spawn(script, "server")
    assert run(script, "--port", server.port, "client", "hi").out == b"HI\n"
    assert run(script, "client", "hi", "--port", server.port).out == b"HI\n"
    assert run(script, "--port", 1, "client", "hi", "--port", server.port).out == b"HI\n"


@BOTH
def test_version(run, script):
    assert re.fullmatch(rf"{script} \d+\.\d+\n".encode(), run(script, "--version").out)


# --- starting and stopping ---
@BOTH
def test_the_listening_line_comes_alone_on_stdout_and_the_client_command_on_stderr(spawn, script):
    server = spawn(script, "server")
    assert server.out == f"listening on 127.0.0.1:{server.port}\n"
    server.wait_for(
        rf"only this machine can reach it, with:  python3 {script} client --port {server.port}$"
    )


@pytest.mark.parametrize(
    "args",
    [
        ["tcp_upper.py", "server"],
        ["udp_upper.py", "server"],
        ["server.py"],
        ["httpserver.py", "--password", "x"],
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_the_client_command_names_an_address_of_this_machine_where_no_client_looks_by_itself(
    spawn, tmp_path, args, host
):
    server = spawn(*args, "--host", host, cwd=tmp_path)
    server.wait_for(
        rf"only this machine can reach it, with.*client.* --host {host} --port {server.port}\b"
    )


@BOTH
def test_bound_to_every_address_the_server_tells_how_others_reach_it(spawn, run, script):
    server = spawn(script, "server", "--host", "0.0.0.0")
    host = next((host for host in addresses() if ":" not in host), None)
    server.wait_for(
        rf"python3 {script} client --host {re.escape(host or socket.gethostname())} --port {server.port}$"
    )
    if host:
        assert run(script, "client", "--host", host, "--port", server.port, "hi").out == b"HI\n"


def addresses():
    code = "import udp_upper; print(*udp_upper.own_addresses())"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()


@BOTH
def test_ipv6_and_dual_stack(spawn, run, script):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    only = spawn(script, "server", "--host", "::1")
    assert only.out == f"listening on [::1]:{only.port}\n"
    only.wait_for(
        rf"only this machine can reach it, with:  python3 {script} client --host ::1 --port {only.port}\n"
    )
    assert run(script, "client", "--host", "::1", "--port", only.port, "hi").out == b"HI\n"
    both = spawn(script, "server", "--host", "::")
    for host in "::1", "127.0.0.1":
        assert run(script, "client", "--host", host, "--port", both.port, "hi").out == b"HI\n"


@BOTH
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_with_0(spawn, script, number):
    assert "stopped: " in spawn(script, "server").stop(number)


@BOTH
def test_a_background_job_that_has_sigint_ignored_still_hears_it(spawn, script):
    server = spawn(
        script, "server", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    server.stop(signal.SIGINT)


@BOTH
def test_requests_ends_the_server_by_itself(spawn, run, script):
    server = spawn(script, "server", "--requests", 2)
    for word in "a", "b":
        assert run(*patient(script), "client", "--port", server.port, word).code == 0
    assert server.wait() == 0
    assert re.search(r"\b2 (served|sent)$", server.err)


@BOTH
def test_nobody_left_to_read_the_log_does_not_stop_the_server(run, script):
    reader, writer = os.pipe()
    server = subprocess.Popen(
        [sys.executable, str(ROOT / script), "server", "--port", "0", "--trace"],
        stdout=subprocess.PIPE,
        stderr=writer,
    )
    os.close(writer)
    os.close(reader)
    port = int(server.stdout.readline().rpartition(b":")[2])
    for _ in range(3):
        assert run(script, "client", "--port", port, "hi").out == b"HI\n"
    server.send_signal(signal.SIGINT)
    assert server.wait(DEADLINE) == 0
    server.stdout.close()


# --- the trace ---
EVENT = r" +\d+\.\d{3} ms #\d+ "


@BOTH
def test_without_trace_nothing_is_printed(spawn, run, script):
    server = spawn(script, "server")
    assert run(*patient(script), "client", "--port", server.port, "hi").err == ""


@BOTH
def test_trace_prints_a_line_for_each_call(spawn, run, script):
    server = spawn(script, "server", "--trace")
    done = run(*patient(script), "client", "--trace", "--port", server.port, "hi")
    here = rf"127\.0\.0\.1:{server.port}"
    expected = [
        rf"\* connect {here} ok from 127\.0\.0\.1:\d+ \(handshake \d+\.\d\d ms\)",
        r"> send 3 of 3 bytes \(sent so far 3\)",
        r"< recv 3 of at most 65536 bytes, waited \d+\.\d\d ms \(received so far 3\)",
        r"\* shutdown of sending = FIN",
        r"< recv 0 bytes = peer sent FIN \(end of stream\)",
        r"\* close \(sent 3, received 3\)",
    ]
    if script.startswith("udp"):
        expected = [
            rf"\* connect {here} ok from 127\.0\.0\.1:\d+ \(UDP: nothing is sent\)",
            r"> send 2 bytes",
            rf"< recvfrom {here} 2 of at most 65536 bytes, waited \d+\.\d\d ms",
            r"\* close",
        ]
    got = done.err.splitlines()
    assert len(got) == len(expected), done
    for line, pattern in zip(got, expected):
        assert re.fullmatch(EVENT + pattern, line), f"{line!r} is not {pattern!r}"
    server.wait_for(EVENT + r"< recv")


@BOTH
def test_the_trace_tells_how_long_an_answer_was_waited_for(spawn, run, script):
    server = spawn(script, "server", "--delay", 0.3)
    traced = run(*patient(script), "client", "--trace", "--port", server.port, input=b"hi").err
    # less than the delay by what this client lost between send() and the clock
    assert float(re.search(r"waited (\d+\.\d\d) ms", traced)[1]) > 100


def test_a_pipe_over_tcp_shuts_its_side_once(spawn, run):
    server = spawn("tcp_upper.py", "server")
    traced = run("tcp_upper.py", "client", "--trace", "--port", server.port, input=b"hi\n").err
    assert traced.count("shutdown") == 1 and "not connected" not in traced


@BOTH
def test_a_refusal_and_a_reset_are_traced(run, script):
    failed = run(script, "client", "--trace", "--port", free_port(kind_of(script)), "hi")
    assert re.search(EVENT + r".*Connection refused", failed.err), failed


@BOTH
def test_trace_hex_dumps_at_most_64_bytes(spawn, run, script):
    server = spawn(script, "server")
    dumped = run(script, "client", "--trace-hex", "--port", server.port, "x" * 100).err
    assert dumped.count("78 78") and "40  78" not in dumped
    assert (
        " 0  48 69 c3 a9" in run(script, "client", "--trace-hex", "--port", server.port, "Hié").err
    )


# --- without what some systems lack ---
WITHOUT = {
    "os.fork": "del os.fork",
    "readline": "sys.modules['readline'] = None",
    "resource": "sys.modules['resource'] = None",
    "recvmsg": "del socket.socket.recvmsg",
}


@BOTH
@pytest.mark.long(5)  # a client over UDP waits for its tries to end
@pytest.mark.parametrize("call", sorted(WITHOUT))
def test_it_works_without_what_some_systems_lack(run, script, call, tmp_path):
    """The script runs as in a system that does not have the call; the fallback has to give the same."""
    if call == "recvmsg":
        take_away = (
            "gone = property(lambda self: (_ for _ in ()).throw(AttributeError('recvmsg')))\n"
            "socket.socket = type('Lacking', (type,), {'recvmsg': gone})('Bare', (socket.socket,), {'recvmsg': gone})"
        )
    else:
        take_away = WITHOUT[call]
    wrapper = tmp_path / "without.py"
    wrapper.write_text(
        f"import os, runpy, socket, sys\n{take_away}\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    more = ["--mode", "process"] if script.startswith("tcp") else ["--recv-size", "10", "--trace"]
    server = Process(wrapper, ROOT / script, "server", "--port", 0, *more)
    try:
        port = int(server.wait_for(r"listening on .*:(\d+)$", "out")[1])
        assert run(wrapper, ROOT / script, "client", "--port", port, "hello").out == b"HELLO\n"
        if script.startswith("udp"):
            assert run(script, "client", "--port", port, "hello, welcome").code == 18
            server.wait_for("truncated: the datagram is larger than the buffer of 10 bytes")
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0
        assert_clean(server.err)
    finally:
        server.process.kill()


@BOTH
def test_the_soft_file_limit_is_raised(spawn, script):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if script.startswith("udp"):
        pytest.skip("one socket serves all: no limit to raise")
    server = spawn(
        script, "server", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    )
    limits = Path(f"/proc/{server.pid}/limits").read_text()
    assert re.search(rf"Max open files\s+{hard}\s+{hard}", limits)
