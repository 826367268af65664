"""--pcap of the six scripts, read by tshark; and tests/ladder.py, which draws a trace."""

import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import DEADLINE, ROOT, SCRIPTS, free_port

LADDER = ROOT / "tests" / "ladder.py"
TSHARK = shutil.which("tshark")
needs_tshark = pytest.mark.skipif(not TSHARK, reason="tshark is not installed")
STRICT = [
    *("-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"),
    *("-o", "ip.check_checksum:TRUE"),
]
WARNINGS = "_ws.expert.severity >= 0x600000 or tcp.checksum.status == 0"


def tshark(path, *words):
    done = subprocess.run(
        [TSHARK, "-n", *STRICT, "-r", str(path), *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("Running as user")]
    assert not said, done.stderr
    return done.stdout


def fields(path, *names, only=""):
    words = [word for name in names for word in ("-e", name)]
    table = tshark(path, "-T", "fields", *words, *(["-Y", only] if only else []))
    return [line.split("\t") for line in table.splitlines()]


def followed(path, stream=0):
    """The bytes of both directions, as "Follow TCP stream" gives them: the client's, the server's."""
    text = tshark(path, "-q", "-z", f"follow,tcp,raw,{stream}")
    rows = re.findall(r"^(\t?)([0-9a-f]+)$", text, re.M)
    return tuple(
        b"".join(bytes.fromhex(row) for tab, row in rows if bool(tab) == server)
        for server in (False, True)
    )


def assert_clean_capture(path):
    assert not tshark(path, "-Y", WARNINGS)
    assert "The headers are made up" in path.read_bytes()[:1000].decode(errors="replace")


@needs_tshark
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_echo_over_tcp_is_captured_on_both_sides(spawn, run, tmp_path, host):
    there, here = tmp_path / "server", tmp_path / "client"
    server = spawn("tcp_upper.py", "server", "--pcap", there, "--host", host)
    at = ("--host", host, "--port", server.port)
    done = run("tcp_upper.py", "client", "--pcap", here, *at, "hello")
    assert (done.code, done.out) == (0, b"HELLO\n")
    server.stop()
    for path in there, here:
        assert_clean_capture(path)
        assert followed(path) == (b"hello\n", b"HELLO\n")
        flags = [row[0] for row in fields(path, "tcp.flags.str")]
        assert "S" in flags[0] and "A" not in flags[0]
        assert sum("F" in each for each in flags) == 2 and not any("R" in each for each in flags)


@needs_tshark
def test_a_large_stream_is_captured_in_segments_that_fit_a_packet(spawn, run, tmp_path):
    server, path = spawn("tcp_upper.py", "server"), tmp_path / "wire"
    data = os.urandom(1_000_000)
    words = "client", "--port", server.port
    assert run("tcp_upper.py", *words, "--pcap", path, input=data).out == data.upper()
    assert not tshark(path, "-Y", "tcp.checksum.status == 0 or tcp.analysis.lost_segment")
    assert max(int(row[0]) for row in fields(path, "ip.len")) == 65535
    assert followed(path) == (data, data.upper())


@needs_tshark
def test_a_reset_is_captured_as_one(spawn, run, tmp_path):
    there, here = tmp_path / "server", tmp_path / "client"
    server = spawn("tcp_upper.py", "server", "--pcap", there, "--reset-after", 3)
    words = "client", "--port", server.port, "hello"
    assert run("tcp_upper.py", *words, "--pcap", here).code == 18
    server.stop()
    for path in there, here:
        assert followed(path)[1] == b"HEL"
        (sender,) = fields(path, "tcp.srcport", only="tcp.flags.reset == 1")
        assert sender == [str(server.port)]


@needs_tshark
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_datagrams_are_captured_as_they_were(spawn, run, tmp_path, host):
    there, here = tmp_path / "server", tmp_path / "client"
    server = spawn("udp_upper.py", "server", "--pcap", there, "--host", host)
    words = "client", "--port", server.port
    done = run("udp_upper.py", *words, "--pcap", here, input=b"a\n\nx%s\n" % (b"y" * 60000))
    assert done.code == 0
    server.stop()
    for path in there, here:
        assert not tshark(path, "-Y", "_ws.expert.severity >= 0x600000 or udp.checksum.status == 0")
        rows = fields(path, "ip.src", "ip.dst", "udp.length")
        assert {row[0] for row in rows} | {row[1] for row in rows} == {"127.0.0.1"}
        assert [int(row[2]) - 8 for row in rows[:2]] == [1, 1]
        assert rows[-1][2] == str(60001 + 8)


@needs_tshark
def test_requests_over_http_are_found_by_the_dissector(spawn, run, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.txt").write_bytes(b"x" * 200_000)
    there, here = tmp_path / "server", tmp_path / "client"
    server = spawn("httpserver.py", tmp_path / "shared", "--pcap", there)
    url = f"http://127.0.0.1:{server.port}/a.txt"
    done = run("httpclient.py", "get", url, "-o", "-", "--pcap", here)
    assert (done.code, len(done.out)) == (0, 200_000)
    server.stop()
    for path in there, here:
        assert_clean_capture(path)
        as_http = ("-d", f"tcp.port=={server.port},http", "-Y", "http")
        table = tshark(
            path, *as_http, "-T", "fields", "-e", "http.request.uri", "-e", "http.response.code"
        )
        assert "/a.txt" in table and "200" in table


@needs_tshark
def test_the_tcp_pair_is_captured_and_what_tls_hides_is_said(spawn, run, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "a.txt").write_bytes(b"hello\n")
    there, here = tmp_path / "server", tmp_path / "client"
    server = spawn("server.py", tmp_path / "shared", "--tls", "--pcap", there)
    pin = re.search(r"--pin ([0-9a-f]{64})", server.wait_for(r"--pin [0-9a-f]{64}")[0])[1]
    words = "--port", server.port, "--pin", pin, "get", "a.txt", "-o", "-"
    done = run("client.py", *words, "--pcap", here)
    assert (done.code, done.out) == (0, b"hello\n")
    server.stop()
    for path in there, here:
        assert_clean_capture(path)
        assert b"get a.txt" in followed(path)[0] and b"data 6\nhello\n" in followed(path)[1]
        assert b"What TLS encrypts is stored as it was inside" in path.read_bytes()[:1000]


@needs_tshark
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_for_each_client_writes_to_the_same_capture(spawn, run, tmp_path):
    path = tmp_path / "wire"
    server = spawn("tcp_upper.py", "server", "--mode", "process", "--pcap", path)
    for text in "one", "two":
        assert run("tcp_upper.py", "client", "--port", server.port, text).code == 0
    server.stop()
    assert_clean_capture(path)
    assert [followed(path, stream)[1] for stream in (0, 1)] == [b"ONE\n", b"TWO\n"]
    assert len(fields(path, "tcp.flags.str", only="tcp.flags.fin == 1")) == 4


@needs_tshark
def test_passwords_are_in_a_capture_but_not_in_the_trace_beside_it(spawn, run, tmp_path):
    path = tmp_path / "wire"
    server = spawn("httpserver.py", tmp_path, "--password", "open sesame")
    words = "list", f"http://127.0.0.1:{server.port}/", "--user", "me:open sesame"
    done = run("httpclient.py", *words, "--pcap", path, "--trace-hex")
    assert done.code == 0 and "connect 127.0.0.1" in done.err and "* recv" not in done.err
    as_http = "-d", f"tcp.port=={server.port},http"
    heads = tshark(path, *as_http, "-T", "fields", "-e", "http.authorization")
    assert re.search("^(Basic|Digest) .", heads, re.M), heads


@needs_tshark
def test_the_commands_of_a_shell_are_one_capture(spawn, run, tmp_path):
    path = tmp_path / "wire"
    server = spawn("server.py", tmp_path)
    done = run("client.py", "--port", server.port, "--pcap", path, input=b"list\nhelp\nlist\n")
    assert done.code == 0
    assert followed(path)[0].count(b"list") == 2


@needs_tshark
def test_without_trace_nothing_is_printed(spawn, run, tmp_path):
    server = spawn("tcp_upper.py", "server")
    done = run("tcp_upper.py", "client", "--port", server.port, "--pcap", tmp_path / "wire", "hi")
    assert (done.code, done.out, done.err) == (0, b"HI\n", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_capture_that_cannot_be_written_is_said(run, tmp_path, script):
    words = {"server.py": [tmp_path], "httpserver.py": [tmp_path], "client.py": ["list"]}
    words["httpclient.py"] = ["get", "http://127.0.0.1:1/"]
    path = tmp_path / "none" / "wire"
    failed = run(script, *words.get(script, ["server"]), "--pcap", path)
    assert failed.code == 23 and failed.err.count("\n") == 3
    assert failed.err.startswith(f"error: cannot write the capture {path} (")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_capture_is_for_its_owner_alone(run, tmp_path):
    run("tcp_upper.py", "client", "--port", free_port(), "--pcap", tmp_path / "wire", "hi")
    assert (tmp_path / "wire").stat().st_mode & 0o777 == 0o600


# --- the ladder ---
def test_a_trace_becomes_a_ladder(spawn, run, tmp_path):
    server = spawn("tcp_upper.py", "server")
    traced = run("tcp_upper.py", "client", "--port", server.port, "--trace", "hello")
    (tmp_path / "trace").write_text(traced.err)
    drawn = run(LADDER, tmp_path / "trace")
    assert drawn.code == 0
    texts = [each.text for each in ElementTree.fromstring(drawn.out).iter() if each.text]
    assert f"127.0.0.1:{server.port}" in texts and texts.count("6 bytes") == 2
    assert texts.count("FIN") == 2 and texts.count("SYN") == 1
