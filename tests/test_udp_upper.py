"""udp_upper.py alone: datagrams, retries, and a bad network that is the same each time."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter, namedtuple
from types import SimpleNamespace

import pytest
from conftest import DEADLINE, ROOT, Process, free_port, stopped, until
from test_upper import lines_of, patient

sys.path.insert(0, str(ROOT))
import udp_upper  # noqa: E402

SCRIPT = "udp_upper.py"


@pytest.fixture
def peer():
    """A server of the test's own: reply(answers) sends them for the next datagram that comes, and returns that one."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(DEADLINE)

    def reply(*answers):
        question, sender = sock.recvfrom(65536)
        for answer in answers:
            sock.sendto(answer, sender)
        return question

    yield SimpleNamespace(port=sock.getsockname()[1], sock=sock, reply=reply)
    sock.close()


@pytest.fixture
def asker():
    """A client of the test's own, connected to a port."""
    made = []

    def connect(port):
        made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made[-1].settimeout(DEADLINE)
        made[-1].connect(("127.0.0.1", port))
        return made[-1]

    yield connect
    for sock in made:
        sock.close()


# --- the pure functions ---
@pytest.mark.parametrize(
    "sent, trips, doubled, want",
    [
        (0, {}, 0, "sent 0, received 0, lost 0, doubled 0, out of order 0"),
        (
            3,
            {b"PING 3": 1.0, b"PING 1": 3.0},
            1,
            "sent 3, received 2, lost 1, doubled 1, out of order 1\nround trip min/avg/max 1.000/2.000/3.000 ms",
        ),
    ],
)
def test_the_report_of_a_ping(sent, trips, doubled, want):
    assert udp_upper.ping_report(sent, trips, doubled) == want + "\n"


Outcome = namedtuple("Outcome", "lost doubled reordered")


def outcomes(count=100, host="127.0.0.1", **chances):
    args = SimpleNamespace(**{"seed": 7, "loss": 0.0, "dup": 0.0, "reorder": 0.0, **chances})
    return [Outcome(*udp_upper.outcome(args, host, number)) for number in range(1, count + 1)]


def lost(**chances):
    return [number for number, what in enumerate(outcomes(**chances), 1) if what.lost]


def test_the_same_seed_decides_the_same_on_every_machine_and_version():
    assert [number for number in lost(loss=0.3) if number <= 20] == LOST_OF_SEED_7
    assert lost(loss=0.3) == lost(loss=0.3)


def test_another_seed_or_host_decides_otherwise():
    assert lost(loss=0.3) != lost(loss=0.3, seed=8)
    assert lost(loss=0.3) != lost(loss=0.3, host="127.0.0.2")


def test_one_chance_does_not_move_another():
    assert lost(loss=0.3) == lost(loss=0.3, dup=0.5, reorder=0.5)


@pytest.mark.parametrize("chance, want", [(0.0, 0), (1.0, 100)])
def test_never_and_always(chance, want):
    assert sum(what.lost for what in outcomes(loss=chance)) == want


# --- datagrams ---
@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 65506, 65507])
def test_a_datagram_of_any_size_comes_back_whole(spawn, asker, size):
    server = spawn(SCRIPT, "server")
    data = bytes(byte % 256 for byte in range(size))
    sock = asker(server.port)
    sock.send(data)
    assert sock.recv(65536) == data.upper()


def test_the_largest_datagram_goes_through_the_client(spawn, run):
    server = spawn(SCRIPT, "server")
    done = run(*patient(SCRIPT), "client", "--port", server.port, input=b"x" * 65507)
    assert (done.code, done.out) == (0, b"X" * 65507)


@pytest.mark.parametrize("size", [65508, 70000, 2_000_000])
def test_a_datagram_that_is_too_large_is_refused_before_it_is_sent(run, peer, size):
    failed = run(SCRIPT, "client", "--port", peer.port, input=b"x" * size)
    assert failed.code == 2
    assert re.fullmatch(
        r"the datagram is \d+ bytes, the IPv4 maximum is 65507", lines_of(failed)[0]
    )
    assert size > 1_000_000 or str(size) in lines_of(failed)[0]
    assert not select.select([peer.sock], [], [], 0)[0]


def test_the_limit_of_ipv6_is_another(run):
    failed = run(SCRIPT, "client", "--host", "::1", "--port", 9, input=b"x" * 65528)
    assert (failed.code, lines_of(failed)[0]) == (
        2,
        "the datagram is 65528 bytes, the IPv6 maximum is 65527",
    )


def test_many_datagrams_at_once_are_all_answered(spawn, asker):
    server = spawn(SCRIPT, "server")
    sock = asker(server.port)
    for _ in range(5):
        for number in range(100):
            sock.send(b"n%d" % number)
        assert sorted(sock.recv(100) for _ in range(100)) == sorted(
            b"N%d" % number for number in range(100)
        )


def test_all_datagrams_that_wait_are_received_before_the_first_is_answered(spawn, asker):
    """Or a client that waits for answers would be woken for each one, which is slower."""
    server = spawn(SCRIPT, "server", "--trace")
    sock = asker(server.port)
    with stopped(server):
        for number in range(3):
            sock.send(b"n%d" % number)
    assert [sock.recv(100) for _ in range(3)] == [b"N0", b"N1", b"N2"]
    calls = re.findall(r"([<>]) (recvfrom|sendto)", server.stop())
    assert calls == [("<", "recvfrom")] * 3 + [(">", "sendto")] * 3


def test_requests_counts_answered_datagrams_exactly(spawn):
    server = spawn(SCRIPT, "server", "--requests", 3)
    # not connected: it hears no ICMP of the server that has ended
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        for number in range(5):
            sock.sendto(b"n%d" % number, ("127.0.0.1", server.port))
        assert server.wait() == 0
        assert [sock.recv(100) for _ in range(3)] == [b"N0", b"N1", b"N2"]
    assert "3 sent" in server.err


def test_a_datagram_larger_than_the_servers_buffer_is_reported(spawn, run):
    server = spawn(SCRIPT, "server", "--recv-size", 4)
    failed = run(SCRIPT, "client", "--port", server.port, "hello")
    assert failed.code == 18
    assert lines_of(failed)[0] == "the reply is truncated: 4 of 5 bytes came back"
    server.wait_for("truncated: the datagram is larger than the buffer of 4 bytes")
    assert run(SCRIPT, "client", "--port", server.port, "four").out == b"FOUR\n"


def test_an_answer_larger_than_the_clients_buffer_is_reported(spawn, run):
    server = spawn(SCRIPT, "server")
    assert run(SCRIPT, "client", "--port", server.port, "--recv-size", 4, "hello").code == 18


# --- tries ---
def test_nobody_there_is_said_after_four_tries_that_were_all_refused(run):
    port = free_port(socket.SOCK_DGRAM)
    failed = run(SCRIPT, "client", "--port", port, "hi")
    assert failed.code == 7
    assert re.findall(r"^no reply in ([\d.]+) s \(Connection refused\)$", failed.err, re.M) == [
        "0.1",
        "0.2",
        "0.4",
        "0.8",
    ]
    assert (
        lines_of(failed)[0] == f"nothing is listening on 127.0.0.1:{port} (every try was refused)"
    )
    assert lines_of(failed)[2] == f"python3 udp_upper.py server --port {port}"


@pytest.mark.parametrize("flags", [["hi"], ["--ping", 2, "--interval", 0]])
def test_a_network_that_is_lost_is_not_told_as_a_server_that_is_missing(run, flags):
    code = (
        "import errno, os, runpy, socket, sys; sys.argv.pop(0); exec('def lost(*_): raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))'); "
        "socket.socket.send = lost; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    failed = run("-c", code, ROOT / SCRIPT, "client", *flags)
    assert failed.code == 7
    assert lines_of(failed)[:2] == (
        "cannot reach 127.0.0.1:12000 (Network is unreachable)",
        "this machine has no way to that address",
    )


def test_silence_cannot_be_told_from_loss(run, peer):
    failed = run(SCRIPT, "client", "--port", peer.port, "hi")
    assert failed.code == 28
    assert (
        lines_of(failed)[0]
        == f"no reply from 127.0.0.1:{peer.port} after 4 tries (0.1, 0.2, 0.4, 0.8 s)"
    )
    assert [peer.reply() for _ in range(4)] == [b"hi"] * 4
    assert not select.select([peer.sock], [], [], 0)[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_of_a_name_with_addresses_of_both_kinds_client_and_server_take_the_same(spawn, run, host):
    """Most systems give ::1 first for localhost, where nobody listens by default."""
    code = (
        "import runpy, socket, sys; sys.argv.pop(0); look_up = socket.getaddrinfo; "
        "socket.getaddrinfo = lambda name, *rest, **more: (look_up('::1', *rest, **more) if name == b'localhost' else []) + look_up(name, *rest, **more); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    server = spawn("-c", code, ROOT / SCRIPT, "server", "--host", host)
    done = run(
        "-c", code, ROOT / SCRIPT, "client", "--host", "localhost", "--port", server.port, "hi"
    )
    assert (done.code, done.out) == (0, b"HI\n")


def test_a_server_that_starts_during_the_tries_is_found(spawn):
    port = free_port(socket.SOCK_DGRAM)
    # tries for as long as a server may take to start
    client = Process(*patient(SCRIPT, TRIES=(0.1,) * 600), "client", "--port", port, "hi")
    client.wait_for(r"no reply in 0\.1 s \(Connection refused\)")
    spawn(SCRIPT, "server", port=port)
    assert client.wait() == 0
    assert client.out == "HI\n"


def test_a_lost_answer_is_asked_for_again(peer):
    client = Process(*patient(SCRIPT, TRIES=(0.1, DEADLINE)), "client", "--port", peer.port, "hi")
    assert peer.reply() == b"hi"
    assert peer.reply(b"HI") == b"hi"
    assert client.wait() == 0
    assert client.out == "HI\n" and client.err.startswith("no reply in 0.1 s\n")


def test_late_and_foreign_answers_are_ignored_and_counted(peer):
    client = Process(*patient(SCRIPT), "client", "--port", peer.port, stdin=subprocess.PIPE)
    client.process.stdin.write(b"one\ntwo\n")
    client.process.stdin.close()
    peer.reply(b"something", b"\0", b"ONE")
    peer.reply(b"ONE", b"two", b"TWO")
    assert client.wait() == 0
    assert (client.out, client.err) == ("ONE\nTWO\n", "ignored 4 late or foreign datagrams\n")


def test_an_answer_that_is_there_counts_although_the_try_is_over(peer, asker, monkeypatch):
    """As after a moment in which the machine stood still."""
    sock = asker(peer.port)

    def answer_at_once(conversation, data):
        peer.sock.sendto(data.upper(), sock.getsockname())
        select.select([sock], [], [])

    monkeypatch.setattr(udp_upper, "TRIES", (0.0,))
    monkeypatch.setattr(udp_upper, "send_message", answer_at_once)
    conversation = udp_upper.Conversation(SimpleNamespace(recv_size=100))
    conversation.sock = sock
    assert udp_upper.exchange(conversation, b"hi") == b"HI"


def test_a_beginning_that_is_followed_by_the_whole_is_a_late_answer(peer):
    client = Process(*patient(SCRIPT), "client", "--port", peer.port, "hello")
    peer.reply(b"H", b"HELLO")
    assert (client.wait(), client.out) == (0, "HELLO\n")


def test_a_late_answer_to_an_empty_line_is_not_taken_for_the_beginning_of_the_next(peer):
    client = Process(
        *patient(SCRIPT, TRIES=(0.5, DEADLINE)),
        "client",
        "--port",
        peer.port,
        stdin=subprocess.PIPE,
    )
    client.process.stdin.write(b"\nhello\n")
    client.process.stdin.close()
    # what comes back for that is an answer to the empty line, as after a second try
    while peer.reply(b"") != b"hello":
        pass
    assert peer.reply(b"HELLO") == b"hello"
    assert (client.wait(), client.out) == (0, "\nHELLO\n")


def test_answers_cut_to_what_an_earlier_one_was_are_reported_after_the_last_try(spawn, run):
    server = spawn(SCRIPT, "server", "--truncate", 3)
    failed = run(SCRIPT, "client", "--port", server.port, input=b"hel\nhello\n")
    assert (failed.code, failed.out, lines_of(failed)[0]) == (
        18,
        b"HEL\n",
        "the reply is truncated: 3 of 5 bytes came back",
    )


@pytest.mark.parametrize("flags", [["hi"], ["--ping", 2, "--interval", 0.01]])
def test_a_flood_of_foreign_answers_does_not_hold_the_client(peer, flags):
    client = Process(ROOT / SCRIPT, "client", "--port", peer.port, *flags)
    question, sender = peer.sock.recvfrom(100)
    stop = threading.Event()

    def flood():
        while not stop.is_set():
            peer.sock.sendto(b"foreign", sender)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        assert client.wait() == 28
    finally:
        stop.set()
        thread.join()


def test_after_a_failure_in_a_pipe_nothing_more_is_sent(run, peer):
    failed = run(SCRIPT, "client", "--port", peer.port, input=b"one\ntwo\n")
    assert failed.code == 28
    assert {peer.reply() for _ in range(4)} == {b"one"}
    assert not select.select([peer.sock], [], [], 0)[0]


def test_ping_without_any_answer(run, peer):
    failed = run(SCRIPT, "client", "--port", peer.port, "--ping", 3, "--interval", 0)
    assert (failed.code, failed.out) == (
        28,
        b"sent 3, received 0, lost 3, doubled 0, out of order 0\n",
    )
    assert lines_of(failed)[0] == f"no reply from 127.0.0.1:{peer.port} to 3 pings"


def test_a_ping_reads_what_has_come_before_it_asks_again(peer, asker, monkeypatch, capfd):
    """Or of two answers to each question one would stay unread, until the kernel has no room for the next."""
    sock = asker(peer.port)

    def answer_twice(conversation, data):
        for _ in range(2):
            peer.sock.sendto(data.upper(), sock.getsockname())
        select.select([sock], [], [])

    monkeypatch.setattr(udp_upper, "send_message", answer_twice)
    args = SimpleNamespace(ping=3000, interval=0.0, timeout=5.0, recv_size=100)
    conversation = udp_upper.Conversation(args)
    conversation.sock = sock
    udp_upper.ping(conversation)
    assert capfd.readouterr().out.startswith("sent 3000, received 3000, lost 0, doubled ")


def test_ping_with_nobody_there(run):
    failed = run(
        SCRIPT, "client", "--port", free_port(socket.SOCK_DGRAM), "--ping", 3, "--interval", 0.01
    )
    assert (failed.code, failed.out) == (
        7,
        b"sent 3, received 0, lost 3, doubled 0, out of order 0\n",
    )


def test_ping_counts_doubled_late_and_foreign_answers(peer):
    client = Process(*patient(SCRIPT), "client", "--port", peer.port, "--ping", 3, "--interval", 0)
    assert [peer.reply() for _ in range(2)] == [b"ping 1", b"ping 2"]
    peer.reply(b"PING 2", b"PING 1", b"PING 1", b"PONG", b"PING 99", b"PING x", b"PING 3")
    assert client.wait() == 0
    assert client.out.startswith("sent 3, received 3, lost 0, doubled 1, out of order 1\n")
    assert "ignored 3 late" in client.err


# --- the bad network ---
LOST_OF_SEED_7 = [3, 6, 11, 13, 14, 19]  # by --loss 0.3 among the first twenty


def ping(run, port, count=20):
    done = run(SCRIPT, "client", "--port", port, "--ping", count, "--interval", 0.002)
    return done.out.decode().splitlines()[0]


def test_loss_has_one_right_result(spawn, run):
    server = spawn(SCRIPT, "server", "--loss", 0.3, "--seed", 7)
    want = f"sent 20, received {20 - len(LOST_OF_SEED_7)}, lost {len(LOST_OF_SEED_7)}, doubled 0, out of order 0"
    assert [ping(run, server.port), ping(run, server.port)] == [want, want]
    assert [
        int(number) for number in re.findall(r"datagram (\d+) lost: by --loss", server.stop())
    ] == LOST_OF_SEED_7 * 2


def test_dup_and_reorder_have_one_right_result(spawn, run):
    server = spawn(SCRIPT, "server", "--dup", 0.2, "--reorder", 0.3, "--seed", 7)
    decided = outcomes(count=19, dup=0.2, reorder=0.3)
    done = run(*patient(SCRIPT), "client", "--port", server.port, "--ping", 19, "--interval", 0.002)
    assert "sent 19, received 19, lost 0" in done.out.decode()
    log = server.stop()  # all of it: a client can end before its server's last line is read here
    for what in "doubled", "reordered":
        numbers = [int(number) for number in re.findall(rf"datagram (\d+) {what}", log)]
        assert numbers == [number for number, each in enumerate(decided, 1) if getattr(each, what)]


def test_a_reordered_answer_comes_after_the_next(spawn, asker):
    server = spawn(*patient(SCRIPT, LATE=1.0), "server", "--reorder", 0.3, "--seed", 7)
    decided = [each.reordered for each in outcomes(count=10, reorder=0.3)]
    first = decided.index(True) + 1
    assert not decided[first]
    sock = asker(server.port)
    with stopped(server):  # so that all are there at once, however slow this is
        for number in range(1, first + 2):
            sock.send(b"%d" % number)
    expected = [b"%d" % number for number in [*range(1, first), first + 1, first]]
    assert [sock.recv(10) for _ in expected] == expected


def test_a_reordered_answer_that_nothing_overtakes_comes_all_the_same(spawn, run):
    server = spawn(SCRIPT, "server", "--reorder", 1)
    done = run(*patient(SCRIPT), "client", "--port", server.port, input=b"a\nb\n")
    assert (done.out, done.err) == (b"A\nB\n", "")


def test_a_doubled_answer_does_not_become_the_next_ones(spawn, run):
    server = spawn(SCRIPT, "server", "--dup", 1)
    done = run(*patient(SCRIPT), "client", "--port", server.port, input=b"a\nb\nc\n")
    assert (done.code, done.out) == (0, b"A\nB\nC\n")


def test_truncate_cuts_the_answer(spawn, run):
    server = spawn(SCRIPT, "server", "--truncate", 3)
    failed = run(SCRIPT, "client", "--port", server.port, "hello")
    assert (failed.code, lines_of(failed)[0]) == (
        18,
        "the reply is truncated: 3 of 5 bytes came back",
    )
    server.wait_for("datagram 1 truncated from 5 to 3 bytes")
    assert run(SCRIPT, "client", "--port", server.port, "abc").out == b"ABC\n"


def test_delay_longer_than_the_first_try_makes_late_answers(spawn, run):
    server = spawn(SCRIPT, "server", "--delay", 0.5)
    # far apart, or the first may get its answer
    done = run(
        *patient(SCRIPT, TRIES=(0.01, DEADLINE)), "client", "--port", server.port, input=b"a\nb\n"
    )
    assert done.out == b"A\nB\n"
    assert "no reply in 0.01 s" in done.err and re.search(r"ignored \d late", done.err)


def test_rate_keeps_order_and_loses_nothing(spawn, asker):
    server = spawn(SCRIPT, "server", "--rate", 20_000)
    sock = asker(server.port)
    for number in range(10):
        sock.send(b"%d" % number * 100)
    assert [sock.recv(200)[:1] for _ in range(10)] == [b"%d" % number for number in range(10)]


def test_the_queue_of_answers_held_back_is_bounded(spawn, asker):
    server = spawn(SCRIPT, "server", "--delay", 1000)
    sock = asker(server.port)
    for _ in range(11):
        for _ in range(100):
            sock.send(b"x")
        until(lambda: receive_queue(server) == 0, "the server to read them")
    server.wait_for(r"datagram 1001 lost: 1000 answers are waiting")
    assert "stopped: 1000 answers dropped, 0 sent" in server.stop()


def receive_queue(server):
    """Bytes that wait in the server's socket, from /proc/net/udp."""
    with open("/proc/net/udp") as table:
        rows = [words for row in table if (words := row.split())[1].endswith(f":{server.port:04X}")]
    assert rows, "the server's socket is not in the table"
    return sum(int(row[4].split(":")[1], 16) for row in rows)


def test_ctrl_c_lets_answers_out_that_are_nearly_due(spawn, asker):
    server = spawn(SCRIPT, "server", "--delay", 0.5)
    sock = asker(server.port)
    sock.send(b"x")
    until(lambda: receive_queue(server) == 0, "the server to read it")
    server.process.send_signal(signal.SIGINT)
    assert sock.recv(10) == b"X"
    assert server.wait() == 0
    assert "stopped: 0 answers dropped, 1 sent" in server.err


def test_counts_of_clients_are_bounded():
    args = SimpleNamespace(seed=1, loss=1.0, dup=0.0, reorder=0.0)
    server = udp_upper.Server.__new__(udp_upper.Server)
    vars(server).update(
        args=args, numbers=Counter(), waiting=[], told={"datagram 1 lost: by --loss"}
    )
    most = udp_upper.MAX_PEERS
    for number in range(most + 5):
        server.dispatch(b"", ("10.0.0.1", number))
        assert len(server.numbers) <= most


# --- datagrams that a stranger forged, so that two servers answer each other for ever ---
def test_a_datagram_from_the_servers_own_port_gets_no_answer_and_one_line(spawn, asker):
    server = spawn(SCRIPT, "server")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as twin:
        twin.bind(("127.0.0.2", server.port))
        for _ in range(20):
            twin.sendto(b"loop", ("127.0.0.1", server.port))
        sock = asker(server.port)
        sock.send(b"hi")
        assert sock.recv(10) == b"HI"  # so the others have been read
        assert not select.select([twin], [], [], 0)[0]
    assert server.stop().count(f"datagrams from port {server.port} get no answer") == 1


@pytest.mark.parametrize("port", [7, 19, 53, 1023, 1900, 11211, 12000])
def test_a_datagram_from_the_port_of_a_service_that_answers_gets_none(spawn, asker, port):
    server = spawn(SCRIPT, "server")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        try:
            service.bind(("127.0.0.2", port))
        except OSError as problem:
            pytest.skip(f"port {port}: {problem.strerror}")
        service.sendto(b"loop", ("127.0.0.1", server.port))
        sock = asker(server.port)
        sock.send(b"hi")
        assert sock.recv(10) == b"HI"
        assert not select.select([service], [], [], 0)[0]
    server.wait_for(f"datagrams from port {port} get no answer")


def test_two_servers_that_do_not_know_each_others_port_stop_answering_each_other(spawn, asker):
    """The second one is played: it sends back what it gets, as any echo server would."""
    server = spawn(SCRIPT, "server")
    sock = asker(server.port)
    sock.send(b"loop")
    for _ in range(udp_upper.ECHO_LIMIT - 1):
        sock.send(sock.recv(10))
    assert sock.recv(10) == b"LOOP"
    sock.send(b"LOOP")
    server.wait_for(rf"no answer to one in {udp_upper.ECHO_LIMIT} datagrams without a small letter")
    sock.send(b"hi")
    assert sock.recv(10) == b"HI"


def test_one_forged_datagram_makes_two_servers_send_a_hundred_at_most(spawn):
    """No list knows their ports. What comes from the second one's port is sent before it is there."""
    first = spawn(SCRIPT, "server")
    port = free_port(socket.SOCK_DGRAM)
    with stopped(first):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
            forger.bind(("127.0.0.1", port))
            forger.sendto(b"loop", ("127.0.0.1", first.port))
        second = spawn(SCRIPT, "server", port=port)
    until(lambda: "no answer to one in" in first.err + second.err, "the end of the loop")
    sent = [int(re.search(r"(\d+) sent", server.stop())[1]) for server in (first, second)]
    assert 10 < sum(sent) <= 100


def test_a_client_that_sends_only_capitals_gets_every_answer(spawn, run):
    server = spawn(SCRIPT, "server")
    lines = b"".join(b"%d\n" % number for number in range(udp_upper.ECHO_LIMIT + 10))
    done = run(SCRIPT, "client", "--port", server.port, input=lines)
    assert (done.code, done.out) == (0, lines)


def test_one_client_of_capitals_takes_no_answer_from_another(spawn, asker):
    server = spawn(SCRIPT, "server")
    one, other = asker(server.port), asker(server.port)
    for _ in range(udp_upper.ECHO_LIMIT - 1):
        one.send(b"1")
        assert one.recv(10) == b"1"
    other.send(b"2")
    assert other.recv(10) == b"2"


def test_answers_that_cannot_leave_do_not_fill_the_log(spawn, asker):
    code = (
        "import errno, os, runpy, socket, sys; sys.argv.pop(0); exec('def lost(*_): raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))'); "
        "socket.socket.sendto = lost; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    server = spawn("-c", code, ROOT / SCRIPT, "server", "--requests", 50)
    sock = asker(server.port)
    for _ in range(50):
        sock.send(b"x")
    assert server.wait() == 0
    assert server.err.count("No route to host") == 1


def test_an_empty_datagram_and_random_bytes_are_answered_like_any_other(spawn, asker):
    server = spawn(SCRIPT, "server")
    sock = asker(server.port)
    for data in b"", os.urandom(1000), b"\r\n" * 10:
        sock.send(data)
        assert sock.recv(2000) == data.upper()
