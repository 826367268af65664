"""tcp_upper.py alone: streams, framing, modes, what happens when one side leaves, stalls or is not what it seems."""

import errno
import hashlib
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import DEADLINE, ROOT, Listener, Process, assert_clean, free_port, until
from test_upper import lines_of, patient

sys.path.insert(0, str(ROOT))
import tcp_upper  # noqa: E402

SCRIPT = "tcp_upper.py"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER 0: close() sends RST


def read_all(sock):
    return b"".join(iter(lambda: sock.recv(65536), b""))


# --- the pure functions ---
@pytest.mark.parametrize(
    "text, want",
    [
        ("", ""),
        ("abc é\n", "abc é\n"),
        ("a\tb", "a\tb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\r", "\\x0d"),
        ("\x9b", "\\x9b"),
        ("\u202e", "\\x202e"),
    ],
)
def test_text_for_a_terminal(text, want):
    assert tcp_upper.printable(text) == want


@pytest.mark.parametrize(
    "sent, trips, want",
    [
        (0, [], "sent 0, received 0, lost 0"),
        (3, [], "sent 3, received 0, lost 3"),
        (
            3,
            [1.0, 3.0],
            "sent 3, received 2, lost 1\nround trip min/avg/max 1.000/2.000/3.000 ms",
        ),
    ],
)
def test_the_report_of_a_ping(sent, trips, want):
    assert tcp_upper.ping_report(sent, trips) == want + "\n"


@pytest.mark.parametrize(
    "problem, stopping, want",
    [
        (None, False, "done"),
        (None, True, "stopped"),
        (socket.timeout(), False, "hung up on: it did not read its answer"),
        (
            TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
            False,
            "the client left early (Connection timed out)",
        ),
        (
            ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
            False,
            "the client left early (Connection reset by peer)",
        ),
    ],
)
def test_the_outcome_of_a_connection(problem, stopping, want):
    conversation = tcp_upper.Conversation(None, SimpleNamespace(reset_after=sys.maxsize))
    assert tcp_upper.outcome(conversation, problem, stopping) == want


@pytest.mark.parametrize(
    "place, want",
    [
        (("127.0.0.1", 9), "127.0.0.1:9"),
        (("::1", 9, 0, 0), "[::1]:9"),
        (("::ffff:10.0.0.1", 9, 0, 0), "10.0.0.1:9"),
        (("servr", 9), "servr:9"),
    ],
)
def test_an_address_as_text(place, want):
    assert tcp_upper.address(place) == want


# --- streams and framing ---
@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 5_000_000])
def test_a_stream_of_any_size_comes_back_whole(spawn, run, size):
    server = spawn(SCRIPT, "server")
    data = random.Random(size).randbytes(size)
    done = run(SCRIPT, "client", "--port", server.port, input=data)
    assert done.code == 0
    assert hashlib.sha256(done.out).hexdigest() == hashlib.sha256(data.upper()).hexdigest()
    server.wait_for(rf"received {size}, sent {size} bytes in \d+\.\d{{3}} s: done$")


@pytest.mark.parametrize("recv_size", [1, 4, 4096])
def test_one_recv_is_not_one_message(spawn, recv_size):
    server = spawn(SCRIPT, "server", "--recv-size", recv_size, "--trace")
    with server.connect() as sock:
        for part in b"hel", b"lo wor", b"ld":
            sock.sendall(part)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"HELLO WORLD"
    server.wait_for(r"recv 0 bytes = peer sent FIN")
    assert f"of at most {recv_size} bytes" in server.err
    assert server.err.count("< recv") - 1 >= 11 / recv_size


def test_the_answer_still_comes_after_the_client_has_shut_its_side(spawn):
    server = spawn(SCRIPT, "server")
    with server.connect() as sock:
        sock.sendall(b"x" * 1_000_000)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"X" * 1_000_000


def test_a_pipe_streams_both_ways_however_small_the_buffers(spawn, run, proxy):
    server = spawn(SCRIPT, "server", "--recv-size", 1000)
    data = os.urandom(3_000_000)
    assert run(SCRIPT, "client", "--port", proxy(server.port).port, input=data).out == data.upper()


def test_a_long_message_on_the_command_line_cannot_block_both_sides(spawn, run):
    server = spawn(SCRIPT, "server", "--recv-size", 512)
    words = ["x" * 100_000] * 15
    assert (
        run(SCRIPT, "client", "--port", server.port, *words).out
        == " ".join(words).upper().encode() + b"\n"
    )


def test_answers_come_while_standard_input_is_still_open(spawn):
    server = spawn(SCRIPT, "server")
    client = Process(ROOT / SCRIPT, "client", "--port", server.port, stdin=subprocess.PIPE)
    for word in b"one", b"two":
        client.process.stdin.write(word + b"\n")
        client.process.stdin.flush()
        client.wait_for(word.upper().decode(), "out")
    client.process.stdin.close()
    assert client.wait() == 0


def test_rate_paces_in_tenths_of_a_second(spawn, run):
    server = spawn(SCRIPT, "server", "--rate", 100_000, "--trace")
    # in one send: a pipe could bring it in pieces
    assert run(SCRIPT, "client", "--port", server.port, "x" * 29_999).out == b"X" * 29_999 + b"\n"
    server.wait_for("recv 10000 of at most 10000 bytes")


# --- instruments ---
def test_delay_comes_before_each_answer(spawn, run):
    server = spawn(SCRIPT, "server", "--delay", 0.2)
    done = run(SCRIPT, "client", "--port", server.port, "--ping", 3, "--interval", 0.5)
    assert (done.code, done.out.split(b"\n")[0]) == (0, b"sent 3, received 3, lost 0")
    assert float(re.search(rb"avg/max (\d+\.\d+)/", done.out)[1]) >= 200


@pytest.mark.parametrize("mode", ["thread", "process", "serial"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_reset_after_so_many_bytes_the_client_sees_a_reset(spawn, run, mode, count):
    server = spawn(SCRIPT, "server", "--reset-after", count, "--mode", mode)
    with server.connect() as sock:
        sock.sendall(b"hello\n")
        got = b""
        with pytest.raises(ConnectionResetError):
            while True:
                got += sock.recv(100)
        assert got == b"HELLO\n"[:count]
    server.wait_for(rf"received {count}, sent {count} bytes in .* s: reset by --reset-after$")
    failed = run(SCRIPT, "client", "--port", server.port, "hello")
    assert failed.code == 18
    assert lines_of(failed)[0] == f"connection lost: {count} of 6 bytes came back"
    assert lines_of(failed)[1].startswith("Connection reset by peer")


def test_a_connection_of_fewer_bytes_is_not_reset(spawn, run):
    server = spawn(SCRIPT, "server", "--reset-after", 100)
    done = run(SCRIPT, "client", "--port", server.port, "hello")
    assert (done.code, done.out) == (0, b"HELLO\n")
    server.wait_for("received 6, sent 6 bytes in .* s: done$")


# --- modes, room and ends ---
@pytest.mark.parametrize("flags", [["hi"], ["--ping", 2], []])
def test_an_answer_that_never_ends_is_not_gathered(listeners, run, flags):
    def talk(conn):
        conn.recv(100)
        while True:
            conn.sendall(b"A" * 65536)

    listeners.append(Listener(talk))
    failed = run(SCRIPT, "client", "--port", listeners[-1].port, *flags, input=b"hi\n")
    assert (failed.code, len(failed.out) < 1 << 20) == (56, True)
    assert "is no uppercase echo" in lines_of(failed)[0]


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_slow_client_delays_nobody(spawn, run, mode):
    server = spawn(SCRIPT, "server", "--mode", mode)
    with server.connect() as idle:
        assert run(SCRIPT, "client", "--port", server.port, "hi").out == b"HI\n"
        idle.sendall(b"still here")
        assert idle.recv(100) == b"STILL HERE"


def test_in_serial_mode_the_second_client_waits_for_the_first(spawn):
    server = spawn(SCRIPT, "server", "--mode", "serial")
    with server.connect() as first, server.connect() as second:
        second.sendall(b"second")
        first.sendall(b"first")
        assert first.recv(100) == b"FIRST"
        second.settimeout(0.2)
        with pytest.raises(socket.timeout):
            second.recv(100)
        first.close()
        second.settimeout(DEADLINE)
        assert second.recv(100) == b"SECOND"


def test_in_process_mode_the_end_of_a_child_that_is_no_client_means_nothing(spawn):
    """A shell can start something in the background and then become the server, whose child that is from then on."""
    code = "import os, runpy, sys; os.fork() or (os.read(0, 1), os._exit(0)); sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    server = spawn("-c", code, ROOT / SCRIPT, "server", "--mode", "process", stdin=subprocess.PIPE)
    server.process.stdin.close()  # and that child ends
    (child,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    until(lambda: " Z " in Path(f"/proc/{child}/stat").read_text(), "the child to be gone")
    with server.connect() as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"X"


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_the_log_tells_a_connection_that_the_server_cut_from_one_that_was_done(spawn, mode):
    server = spawn(SCRIPT, "server", "--mode", mode)
    with server.connect() as done, server.connect() as cut:
        for sock in done, cut:
            sock.sendall(b"x")
            assert sock.recv(1) == b"X"
        done.shutdown(socket.SHUT_WR)
        server.wait_for(f"{done.getsockname()[1]} received 1, .*: done$")
        assert re.search(f"{cut.getsockname()[1]} received 1, .*: stopped$", server.stop(), re.M)


def test_in_process_mode_each_client_has_a_process_that_ends_with_it(spawn):
    server = spawn(SCRIPT, "server", "--mode", "process")
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    with server.connect() as one, server.connect() as two:
        for sock in one, two:
            sock.sendall(b"hi")
            assert sock.recv(10) == b"HI"
        assert len(children.read_text().split()) == 2
    until(lambda: not children.read_text(), "both children to be collected")


def test_in_process_mode_a_child_that_is_still_busy_after_the_grace_is_ended_too(spawn):
    # that the connection is still open at the end is a ResourceWarning
    flag, code = patient(SCRIPT, GRACE=0.1)
    quiet = f"import warnings; warnings.simplefilter('ignore'); {code}"
    server = spawn(flag, quiet, "server", "--mode", "process", "--rate", 100)
    with server.connect() as sock:
        sock.sendall(b"x" * 5000)  # 50 s worth of answer
        assert sock.recv(1) == b"X"
        child = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().strip()
        assert "stopped: 1 client disconnected, 0 served" in server.stop()
        until(lambda: not Path(f"/proc/{child}").exists(), "the child to be gone")


def test_in_process_mode_a_client_hears_the_fin_while_a_later_one_is_served(spawn):
    """The later child is a copy of a process that had the first connection open too."""
    server = spawn(SCRIPT, "server", "--mode", "process")
    with server.connect() as one, server.connect() as two:
        for sock in one, two:
            sock.sendall(b"hi")
            assert sock.recv(10) == b"HI"
        one.shutdown(socket.SHUT_WR)
        assert one.recv(10) == b""


def test_a_killed_child_is_collected_and_counted(spawn):
    server = spawn(SCRIPT, "server", "--mode", "process", "--requests", 1)
    with server.connect() as sock:
        sock.sendall(b"hi")
        sock.recv(10)
        child = int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text())
        os.kill(child, signal.SIGKILL)
        assert server.wait() == 0


@pytest.mark.parametrize("mode", ["thread", "process"])
def test_a_full_server_says_so(spawn, run, mode):
    server = spawn(SCRIPT, "server", "--max-clients", 1, "--mode", mode)
    with server.connect() as first:
        first.sendall(b"a")
        assert first.recv(1) == b"A"
        for how in ({"input": b"x" * 3_000_000}, {"input": b""}):
            failed = run(SCRIPT, "client", "--port", server.port, **how)
            assert failed.code == 7
            assert (
                lines_of(failed)[0] == f"127.0.0.1:{server.port} says: server full, try again later"
            )
        assert run(SCRIPT, "client", "--port", server.port, "hi").code == 7
    server.wait_for("sent 1 bytes")
    until(lambda: run(SCRIPT, "client", "--port", server.port, "hi").out == b"HI\n", "room")


def test_more_refused_clients_than_are_kept_waiting(spawn):
    server = spawn(SCRIPT, "server", "--max-clients", 1)
    with server.connect() as first:
        first.sendall(b"a")
        first.recv(1)
        refused = [server.connect() for _ in range(100)]
        assert all(read_all(sock) == tcp_upper.FULL for sock in refused)
        until(lambda: server.descriptors() < 30, "the refused ones to be let go")
        for sock in refused:
            sock.close()


def test_many_idle_clients_cost_little_and_leave_nothing(spawn, full):
    server = spawn(SCRIPT, "server")
    before = server.descriptors(), server.status("Threads")
    # fewer than the 1024 descriptors that some systems allow
    idle = [server.connect() for _ in range(900 if full else 200)]
    for sock in idle:
        sock.sendall(b"a")
    assert all(sock.recv(1) == b"A" for sock in idle)
    assert server.status("Threads") == before[1] + len(idle)
    assert server.status("VmRSS") < 100_000  # KiB
    for sock in idle:
        sock.close()
    server.rests(before)


def test_out_of_descriptors_is_survived(spawn, run):
    server = spawn(
        SCRIPT, "server", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    )
    crowd = [server.connect() for _ in range(20)]
    server.wait_for(r"cannot accept \(Too many open files\): pausing")
    for sock in crowd:
        sock.close()
    assert run(SCRIPT, "client", "--port", server.port, "hi").out == b"HI\n"


def test_ctrl_c_with_idle_clients_ends_at_once_and_counts_them(spawn):
    server = spawn(*patient(SCRIPT), "server")
    clients = [server.connect() for _ in range(50)]
    for sock in clients:
        sock.sendall(b"a")
        assert sock.recv(1) == b"A"
    assert "stopped: 50 clients disconnected, 50 served" in server.stop()
    for sock in clients:
        assert sock.recv(1) == b""
        sock.close()


def test_ctrl_c_lets_the_answer_under_way_out(spawn):
    server = spawn(*patient(SCRIPT), "server", "--rate", 10_000)
    with server.connect() as sock:
        sock.sendall(b"x" * 5000)
        assert sock.recv(1) == b"X"
        server.process.send_signal(signal.SIGINT)
        assert len(read_all(sock)) == 4999
    assert server.wait() == 0


def test_a_second_ctrl_c_ends_at_once(spawn):
    server = spawn(*patient(SCRIPT), "server", "--rate", 100)
    with server.connect() as sock:
        sock.sendall(b"x" * 5000)  # 50 s worth of answer
        assert sock.recv(1) == b"X"
        server.process.send_signal(signal.SIGINT)
        until(lambda: refuses(server.port), "the listener to be closed")
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 130


def refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port), DEADLINE).close()
    except ConnectionError:  # also a reset, when it closes meanwhile
        return True
    return False


@pytest.mark.parametrize("mode", ["thread", "process", "serial"])
def test_every_mode_ends_by_ctrl_c_with_a_client_connected(spawn, mode):
    server = spawn(SCRIPT, "server", "--mode", mode)
    with server.connect() as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"A"
        assert "stopped: 1 client disconnected" in server.stop()


# --- clients that do harm ---
def test_a_client_that_resets_is_one_line_with_both_numbers(spawn, run):
    server = spawn(SCRIPT, "server", "--rate", 1000)
    sock = server.connect()
    sock.sendall(b"x" * 5000)
    sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
    server.wait_for(r"received \d+, sent \d+ bytes in .* s: the client left early \(.*\)$")
    assert run(SCRIPT, "client", "--port", server.port, "hi").out == b"HI\n"


def test_a_client_that_connects_and_resets_at_once_is_survived(spawn, run):
    server = spawn(SCRIPT, "server")
    for _ in range(100):
        sock = server.connect()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
    assert run(SCRIPT, "client", "--port", server.port, "hi").out == b"HI\n"


def test_a_client_that_never_reads_is_hung_up_on(spawn):
    server = spawn(SCRIPT, "server", "--timeout", 0.3)
    with server.connect() as sock:
        with pytest.raises(ConnectionError):
            while True:
                sock.sendall(b"x" * 65536)
        server.wait_for("hung up on: it did not read its answer")


def test_a_slow_reader_that_lives_is_not_hung_up_on():
    """Sending it all takes longer than the timeout, each piece less: sendall() would give up."""
    got = bytearray()

    class Slow:
        """The socket of such a reader, in a time of its own: each call has the timeout anew."""

        def send(self, data):
            got.extend(data[:1000])
            return len(data[:1000])

        def sendall(self, data):
            raise socket.timeout("timed out")

    conversation = tcp_upper.Conversation(Slow(), SimpleNamespace())
    tcp_upper.send_message(conversation, b"x" * 20_500)
    assert (bytes(got), conversation.sent) == (b"x" * 20_500, 20_500)


def test_a_client_that_says_nothing_may_stay(spawn):
    server = spawn(SCRIPT, "server", "--timeout", 0.1)
    with server.connect() as sock:
        sock.settimeout(0.4)
        with pytest.raises(socket.timeout):
            sock.recv(1)
        sock.settimeout(DEADLINE)
        sock.sendall(b"a")
        assert sock.recv(1) == b"A"


# --- servers that are none ---
def test_a_server_that_is_gone_is_refused(run):
    failed = run(SCRIPT, "client", "--port", 9, "hi")
    assert failed.code == 7
    assert lines_of(failed) == (
        "nothing is listening on 127.0.0.1:9 (connection refused)",
        "the host answered, but no program has that port open",
        "python3 tcp_upper.py server --port 9",
    )


def test_no_answer_may_mean_a_full_queue(run):
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    waiting = []
    for _ in range(4):  # the backlog is full: the kernel drops further SYNs as a firewall would
        waiting.append(socket.socket())
        waiting[-1].setblocking(False)
        waiting[-1].connect_ex(full.getsockname())
    failed = run(SCRIPT, "client", "--port", full.getsockname()[1], "--timeout", 0.3, "hi")
    for sock in [full, *waiting]:
        sock.close()
    assert failed.code == 28
    error, why, hint = lines_of(failed)
    assert error.endswith("in 0.3 s") and "a firewall" in why and "queue is full" in why
    assert "check the address" in hint and "Recv-Q" in hint


def test_hung_up_on_before_connect_returns_is_no_missing_way(monkeypatch):
    class Slow(socket.socket):
        """What a client meets that had to wait for a processor: the reset comes before it looks whether it is connected."""

        def connect(self, target):
            self.setblocking(False)
            self.connect_ex(target)
            with listener.accept()[0] as conn:
                conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            problem = until(
                lambda: self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "the reset"
            )
            raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(tcp_upper, "socket_class", lambda args: Slow)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(tcp_upper.Failure, match="answered and hung up at once") as caught,
    ):
        tcp_upper.open_connection(
            SimpleNamespace(timeout=DEADLINE), "127.0.0.1", listener.getsockname()[1], ""
        )
    assert caught.value.code == 7


def test_a_server_that_is_silent_times_out(run, listeners, canned):
    silent = canned(b"", read_until=b"never comes")
    failed = run(SCRIPT, "client", "--port", silent.port, "--timeout", 0.2, "hi")
    assert failed.code == 28
    assert lines_of(failed)[0] == f"no reply from 127.0.0.1:{silent.port} in 0.2 s"


def test_only_silence_since_the_question_counts():
    """A line that is typed at the end of a long pause has all of --timeout for its answer."""

    class Sender:
        received, asked, end = 0, False, time.monotonic() + 0.3

        @property
        def sent(self):
            if not self.asked and time.monotonic() >= self.end - 0.05:
                self.asked = True
                server.sendall(b"HELLO")
            return 5 * self.asked

    client, server = socket.socketpair()
    with client, server:
        args = SimpleNamespace(host="servr", port=9, timeout=0.3, recv_size=100)
        sender = Sender()
        sender.sock, sender.args = client, args
        assert tcp_upper.receive(sender) == b"HELLO"


def test_after_three_seconds_of_silence_it_says_for_whom_it_waits(canned):
    silent = canned(b"", read_until=b"never comes")
    client = Process(ROOT / SCRIPT, "client", "--port", silent.port, "hi")
    client.wait_for(rf"^waiting for a reply from 127\.0\.0\.1:{silent.port} \(Ctrl-C stops\)$")
    client.process.send_signal(signal.SIGINT)
    assert client.wait() == 130
    assert client.err.endswith("\nstopped\n")
    assert_clean(client.err)


@pytest.mark.parametrize("how", [{"args": ["abcdef"]}, {"input": b"abcdef\n"}])
@pytest.mark.parametrize(
    "answer, code, error",
    [
        (b"", 52, "connection lost: 0 of 7 bytes came back"),
        (b"ABC", 18, "connection lost: 3 of 7 bytes came back"),
        (b"ABCDEFGHI\n", 56, "is no uppercase echo"),
        (b"HTTP/1.1 400 Bad Request\r\n", 56, "says: HTTP/1.1 400 Bad Request"),
        (b"\x1b[2Jevil\xff\n", 56, "says: \\x1b[2Jevil\\xff"),
        (tcp_upper.FULL, 7, "says: server full, try again later"),
    ],
)
def test_a_server_that_is_no_echo(run, canned, how, answer, code, error):
    server = canned(answer, read_until=b"abcdef\n")
    failed = run(
        SCRIPT, "client", "--port", server.port, *how.get("args", ()), input=how.get("input", b"")
    )
    assert failed.code == code, failed
    assert error in lines_of(failed)[0]
    assert ("--max-clients" in failed.err) == (code == 7), (
        "advice for a full server, and for no other"
    )


def test_a_full_server_is_known_by_a_small_buffer_too(run, canned):
    failed = run(
        SCRIPT,
        "client",
        "--port",
        canned(tcp_upper.FULL, read_until=b"\n").port,
        "--recv-size",
        4,
        "abcdef",
    )
    assert failed.code == 7
    assert "says: serv" in lines_of(failed)[0] and "--max-clients" in lines_of(failed)[2]


def test_a_server_that_answers_and_never_closes_does_not_hold_the_client(run, listeners):
    hold = threading.Event()
    listeners.append(
        Listener(lambda conn: (conn.sendall(conn.recv(100).upper()), hold.wait(DEADLINE)))
    )
    done = run(SCRIPT, "client", "--port", listeners[-1].port, "--timeout", 2, "hi")
    hold.set()
    assert (done.code, done.out) == (0, b"HI\n")


def test_a_message_that_comes_back_changed_is_not_printed(run, canned):
    failed = run(SCRIPT, "client", "--port", canned(b"ABCDEX\n", read_until=b"\n").port, "abcdef")
    assert (failed.code, failed.out) == (56, b"")


def test_a_ping_answered_with_nonsense_ends(run, canned):
    failed = run(
        SCRIPT,
        "client",
        "--port",
        canned(b"PONG\nPING 99999999999\n", read_until=b"\n").port,
        "--ping",
        3,
        "--interval",
        0,
    )
    assert failed.code == 56


def test_a_ping_whose_server_ends_between_two_questions_ends_too(run, listeners):
    listeners.append(Listener(lambda conn: conn.sendall(conn.recv(100).upper())))
    failed = run(SCRIPT, "client", "--port", listeners[-1].port, "--ping", 2, "--interval", 0.1)
    assert (failed.code, failed.out.split(b"\n")[0]) == (18, b"sent 2, received 1, lost 1")
    assert lines_of(failed)[0] == "connection lost: 7 of 14 bytes came back"


@pytest.mark.parametrize("cut_at", [0, 1, 6, 7, 13])
def test_a_stream_cut_anywhere_is_no_success(spawn, run, proxy, cut_at):
    server = spawn(SCRIPT, "server")
    failed = run(
        SCRIPT,
        "client",
        "--port",
        proxy(server.port, cut_at=cut_at).port,
        input=b"hello\nworld\nx\n",
    )
    # 7: hung up on before connect() returned
    assert failed.code in ((18,) if failed.out else (7, 52))
    assert failed.out == b"HELLO\nWORLD\nX\n"[: len(failed.out)]


# --- the port after the server ---
def leave_time_wait(spawn, *flags):
    """Stop a server while a client is connected: the server closes first, and its side goes into TIME_WAIT."""
    server = spawn(SCRIPT, "server", *flags, port=free_port())
    with server.connect() as sock:
        sock.sendall(b"a")
        sock.recv(1)
        server.stop()
        assert sock.recv(1) == b""
    return server.port


EARLIER = pytest.mark.parametrize("earlier", [[], ["--no-reuseaddr"]])


@EARLIER
def test_a_server_starts_again_over_time_wait(spawn, run, earlier):
    port = leave_time_wait(spawn, *earlier)
    assert spawn(SCRIPT, "server", port=port).port == port


@EARLIER
def test_without_reuseaddr_time_wait_keeps_the_port_and_the_message_says_so(spawn, run, earlier):
    port = leave_time_wait(spawn, *earlier)
    failed = run(SCRIPT, "server", "--no-reuseaddr", "--port", port)
    assert failed.code == 45
    error, why, _ = lines_of(failed)
    assert error == f"port {port} is already in use"
    assert "TIME_WAIT" in why and "no server" in why


SLOW_TERMINAL = """
import sys, threading
sys.path.insert(0, {root!r})
import tcp_upper
tell, order, second = tcp_upper.say, iter(range(9)), threading.Event()

def say(text):
    if "* close (sent 2" in text and next(order) == 0:
        second.wait({seconds})  # until both are served
    elif "* close (sent 2" in text:
        second.set()
        threading.Event().wait(0.3)  # this one's line comes later than the end could
    tell(text)

tcp_upper.say, tcp_upper.GRACE = say, {seconds}
sys.exit(tcp_upper.main(["server", "--port", "0", "--trace"]))
"""


def test_the_trace_is_whole_when_a_server_ends(spawn):
    server = spawn("-c", SLOW_TERMINAL.format(root=str(ROOT), seconds=DEADLINE))
    with server.connect() as one, server.connect() as other:
        for sock in one, other:
            sock.sendall(b"hi")
            assert sock.recv(2) == b"HI"
        assert server.stop().count("* close (sent 2, received 2)") == 2


def test_the_trace_does_not_take_its_own_shutdown_for_a_fin(spawn):
    server = spawn(SCRIPT, "server", "--trace")
    with server.connect() as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"A"
        log = server.stop()
    assert "recv 0 bytes = nothing more can come" in log and "sent FIN" not in log
