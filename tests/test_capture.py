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
FIELDS = [
    *("ip.src", "ip.dst", "ip.len", "tcp.srcport", "tcp.flags.str", "udp.length"),
    *("http.request.uri", "http.response.code", "http.authorization"),
    *("_ws.expert.severity", "tcp.analysis.flags", "tcp.analysis.lost_segment"),
    *("tcp.checksum.status", "udp.checksum.status"),
]
WARNING = 0x600000
STREAMS = 2


class Dissected:
    """What tshark makes of a capture, all in one run: most of one is its start."""

    def __init__(self, path, *more):
        words = [word for name in FIELDS for word in ("-e", name)]
        words += [word for stream in range(STREAMS) for word in ("-z", f"follow,tcp,raw,{stream}")]
        done = subprocess.run(
            [TSHARK, "-n", *STRICT, *more, "-r", str(path), "-T", "fields", *words],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, done.stderr
        said = done.stderr.splitlines()
        assert not [line for line in said if not line.startswith("Running as user")], done.stderr
        table, *streams = re.split(r"^=+\nFollow: .*\n", done.stdout, flags=re.M)
        self.packets = [dict(zip(FIELDS, line.split("\t"))) for line in table.splitlines() if line]
        self.streams = [self.both_ways(text) for text in sorted(streams)]
        self.head = path.read_bytes()[:1000].decode(errors="replace")

    def both_ways(self, text):
        """The bytes of both directions, as "Follow TCP stream" gives them: the client's, the server's."""
        rows = re.findall(r"^(\t?)([0-9a-f]+)$", text, re.M)
        return tuple(
            b"".join(bytes.fromhex(row) for tab, row in rows if bool(tab) == server)
            for server in (False, True)
        )

    def values(self, field):
        """What the packets that have this field have there."""
        return [packet[field] for packet in self.packets if packet[field]]

    def assert_clean(self):
        assert not self.values("tcp.analysis.flags")
        levels = ",".join(self.values("_ws.expert.severity")).split(",")
        assert all(int(level or 0) < WARNING for level in levels)
        assert "0" not in self.values("tcp.checksum.status") + self.values("udp.checksum.status")
        assert "The headers are made up" in self.head


@needs_tshark
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_echo_over_tcp_is_captured_on_both_sides(spawn, run, tmp_path, host, full):
    if host == "127.0.0.1" and not full:
        pytest.skip("most of it is tshark's start: --full runs it")
    there, here = tmp_path / "server", tmp_path / "client"
    server = spawn("tcp_upper.py", "server", "--pcap", there, "--host", host)
    at = ("--host", host, "--port", server.port)
    done = run("tcp_upper.py", "client", "--pcap", here, *at, "hello")
    assert (done.code, done.out) == (0, b"HELLO\n")
    server.stop()
    for path in there, here:
        seen = Dissected(path)
        seen.assert_clean()
        assert seen.streams[0] == (b"hello\n", b"HELLO\n")
        flags = seen.values("tcp.flags.str")
        assert "S" in flags[0] and "A" not in flags[0]
        assert sum("F" in each for each in flags) == 2 and not any("R" in each for each in flags)


@needs_tshark
def test_a_large_stream_is_captured_in_segments_that_fit_a_packet(spawn, run, tmp_path):
    server, path = spawn("tcp_upper.py", "server"), tmp_path / "wire"
    data = os.urandom(1_000_000)
    words = "client", "--port", server.port
    assert run("tcp_upper.py", *words, "--pcap", path, input=data).out == data.upper()
    seen = Dissected(path)
    assert not seen.values("tcp.analysis.lost_segment")
    assert "0" not in seen.values("tcp.checksum.status")
    assert max(map(int, seen.values("ip.len"))) == 65535
    assert seen.streams[0] == (data, data.upper())


@needs_tshark
def test_a_reset_is_captured_as_one(spawn, run, tmp_path):
    there, here = tmp_path / "server", tmp_path / "client"
    server = spawn("tcp_upper.py", "server", "--pcap", there, "--reset-after", 3)
    words = "client", "--port", server.port, "hello"
    assert run("tcp_upper.py", *words, "--pcap", here).code == 18
    server.stop()
    for path in there, here:
        seen = Dissected(path)
        assert seen.streams[0][1] == b"HEL"
        (reset,) = [packet for packet in seen.packets if "R" in packet["tcp.flags.str"]]
        assert reset["tcp.srcport"] == str(server.port)


@needs_tshark
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_datagrams_are_captured_as_they_were(spawn, run, tmp_path, host, full):
    if host != "::" and not full:
        pytest.skip("most of it is tshark's start: --full runs it")
    there, here = tmp_path / "server", tmp_path / "client"
    server = spawn("udp_upper.py", "server", "--pcap", there, "--host", host)
    words = "client", "--port", server.port
    done = run("udp_upper.py", *words, "--pcap", here, input=b"a\n\nx%s\n" % (b"y" * 60000))
    assert done.code == 0
    server.stop()
    for path in there, here:
        seen = Dissected(path)
        seen.assert_clean()
        assert {*seen.values("ip.src"), *seen.values("ip.dst")} == {"127.0.0.1"}
        lengths = [int(length) - 8 for length in seen.values("udp.length")]
        assert lengths[:2] == [1, 1] and lengths[-1] == 60001


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
        seen = Dissected(path, "-d", f"tcp.port=={server.port},http")
        seen.assert_clean()
        assert seen.values("http.request.uri")[0] == "/a.txt"
        assert seen.values("http.response.code")[0] == "200"


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
        seen = Dissected(path)
        seen.assert_clean()
        asked, said = seen.streams[0]
        assert b"get a.txt" in asked and b"data 6\nhello\n" in said
        assert "What TLS encrypts is stored as it was inside" in seen.head


@needs_tshark
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_for_each_client_writes_to_the_same_capture(spawn, run, tmp_path):
    path = tmp_path / "wire"
    server = spawn("tcp_upper.py", "server", "--mode", "process", "--pcap", path)
    for text in "one", "two":
        assert run("tcp_upper.py", "client", "--port", server.port, text).code == 0
    server.stop()
    seen = Dissected(path)
    seen.assert_clean()
    assert [said for _, said in seen.streams] == [b"ONE\n", b"TWO\n"]
    assert sum("F" in flags for flags in seen.values("tcp.flags.str")) == 4


@needs_tshark
def test_passwords_are_in_a_capture_but_not_in_the_trace_beside_it(spawn, run, tmp_path):
    path = tmp_path / "wire"
    server = spawn("httpserver.py", tmp_path, "--password", "open sesame")
    words = "list", f"http://127.0.0.1:{server.port}/", "--user", "me:open sesame"
    done = run("httpclient.py", *words, "--pcap", path, "--trace-hex")
    assert done.code == 0 and "connect 127.0.0.1" in done.err and "* recv" not in done.err
    heads = Dissected(path, "-d", f"tcp.port=={server.port},http").values("http.authorization")
    assert heads and re.match("(Basic|Digest) .", heads[-1]), heads


@needs_tshark
def test_the_commands_of_a_shell_are_one_capture(spawn, run, tmp_path):
    path = tmp_path / "wire"
    server = spawn("server.py", tmp_path)
    done = run("client.py", "--port", server.port, "--pcap", path, input=b"list\nhelp\nlist\n")
    assert done.code == 0
    assert Dissected(path).streams[0][0].count(b"list") == 2


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
