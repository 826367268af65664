"""What other systems have and this one lacks, or the reverse: shown here by taking calls away, or by making them answer as there."""

import errno
import fcntl
import importlib
import io
import os
import readline
import socket
import sys
import tarfile
import types

import pytest
from conftest import ROOT
from test_httpserver import ask, folder, server, wire  # noqa: F401  fixtures
from test_server import names, talk

# A link "junction" looks as a junction does on Windows: a folder in all but its tag, and no call takes a descriptor or refuses links.
JUNCTIONS = """
import os, runpy, stat, sys, traceback
os.supports_dir_fd = set()
del os.O_NOFOLLOW
looked, scanned, is_link = os.stat, os.scandir, os.path.islink

class Status:
    def __init__(self, path):
        self.real, self.target = looked(path, follow_symlinks=False), looked(path)
        self.st_reparse_tag, self.st_mode = 0xA0000003, self.target.st_mode
    def __getattr__(self, name):
        return getattr(self.real, name)

def is_junction(path):
    return isinstance(path, str) and os.path.basename(path) == "junction"

def stat_there(path, *, dir_fd=None, follow_symlinks=True):
    if is_junction(path) and not follow_symlinks:
        return Status(path)
    return looked(path, follow_symlinks=follow_symlinks)

class Entry:
    def __init__(self, entry):
        self.entry, self.name, self.path = entry, entry.name, entry.path
    def is_dir(self, follow_symlinks=True):
        return self.entry.is_dir(follow_symlinks=follow_symlinks or self.name == "junction")
    def is_file(self, follow_symlinks=True):
        return self.entry.is_file(follow_symlinks=follow_symlinks)
    def is_symlink(self):
        return self.entry.is_symlink() and self.name != "junction"
    def stat(self, follow_symlinks=True):
        return stat_there(self.path, follow_symlinks=follow_symlinks)

class Scan:
    def __init__(self, path):
        self.scan = scanned(path)
    def __enter__(self):
        return self
    def __exit__(self, *problem):
        self.scan.close()
    def __iter__(self):
        return self
    def __next__(self):
        return Entry(next(self.scan))
    def close(self):
        self.scan.close()

os.stat, os.scandir = stat_there, Scan
lstat_before = os.lstat

def is_realpath():  # it sees through junctions there
    nearest = traceback.extract_stack(limit=6)  # islink() calls lstat()
    return any("realpath" in caller.name for caller in nearest[:-1] if caller.name != "is_realpath")

def lstat_there(path, **more):
    return lstat_before(path, **more) if is_realpath() else stat_there(path, follow_symlinks=False)

def is_link_there(path):
    return is_link(path) and (is_realpath() or not is_junction(path))

os.lstat, os.path.islink = lstat_there, is_link_there
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def junctions(tmp_path):
    path = tmp_path / "junctions.py"
    path.write_text(JUNCTIONS)
    return path


@pytest.fixture
def outside(tmp_path):
    """A folder beyond the share, to which a junction in it leads."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    yield outside
    assert os.listdir(outside) == ["secret"], "nothing outside is deleted"


def test_a_junction_is_neither_listed_nor_archived_nor_emptied_by_http(
    ask, folder, junctions, outside, spawn
):  # noqa: F811
    (folder / "sub").mkdir()
    (folder / "sub" / "junction").symlink_to(outside)
    server = spawn(str(junctions), ROOT / "httpserver.py", folder)
    assert b"junction" not in ask("GET", "/sub/", to=server).body
    with tarfile.open(fileobj=io.BytesIO(ask("GET", "/?tar", to=server).body)) as archive:
        assert not [name for name in archive.getnames() if "junction" in name or "secret" in name]
    assert b"secret" not in ask("GET", "/?zip", to=server).body
    for path in "/sub/junction", "/sub/junction/", "/sub/junction/secret":
        assert ask("GET", path, to=server).status in (403, 404)
        assert ask("DELETE", path + "?recursive", to=server).status in (403, 404)
    assert ask("DELETE", "/sub/?recursive", to=server).status == 204
    assert not (folder / "sub").exists()


def test_a_junction_leads_nowhere_over_tcp(tmp_path, junctions, outside, spawn):
    share = tmp_path / "share"
    (share / "sub").mkdir(parents=True)
    (share / "sub" / "junction").symlink_to(outside)
    server = spawn(str(junctions), ROOT / "server.py", share)
    said = talk(
        server, b"list deep=yes\nlist sub/junction\nget sub/junction/secret\nstat sub/junction\n"
    ).decode()
    assert (
        "secret size" not in said and "dir sub/junction" not in said and said.count("\nerr ") == 3
    )
    assert talk(server, b"delete sub/junction\n").startswith(b"err delete")
    assert names(share / "sub") == ["junction"]


@pytest.mark.parametrize("script", ["server.py", "httpserver.py", "tcp_upper.py"])
def test_a_limit_that_is_named_but_not_granted_is_asked_for_in_part(script, tmp_path, spawn):
    """macOS says that a process may have files without end, and grants 10240."""
    runner, mark = tmp_path / "limits.py", tmp_path / "mark"
    runner.write_text(
        "import resource, runpy, sys\n"
        "def setrlimit(kind, limits):\n"
        "    if limits[0] != 10240: raise ValueError('current limit exceeds maximum limit')\n"
        f"    open({str(mark)!r}, 'w').close()\n"
        "resource.setrlimit = setrlimit\n"
        "sys.argv[:] = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    spawn(str(runner), ROOT / script, *(["server"] if script == "tcp_upper.py" else [tmp_path]))
    assert mark.exists()


@pytest.mark.parametrize("script", ["server", "httpserver", "tcp_upper", "udp_upper"])
def test_a_port_that_another_keeps_for_itself_is_called_taken(script, monkeypatch):
    """Windows answers with 10013, access denied, where another system says that it is in use."""
    module = importlib.import_module(script)
    denied = PermissionError(errno.EACCES, "access denied")
    monkeypatch.setattr(module, "os", types.SimpleNamespace(name="nt"))
    monkeypatch.setattr(module, "own_addresses", lambda: [])
    told = str(module.cannot_listen(denied, ("127.0.0.1", 8000)))
    assert "port 8000 is already in use" in told and "denied" not in told, told


CLIENTS = ["client", "httpclient", "tcp_upper", "udp_upper"]


class Console(io.RawIOBase):
    """What open() makes of a console there: no FileIO, and it takes a part of long text."""

    def __init__(self, shown):
        self.shown = shown

    def writable(self):
        return True

    def write(self, data):
        self.shown.append(bytes(data[:4]))
        return len(data[:4])


@pytest.mark.parametrize("script", CLIENTS)
def test_a_console_of_windows_gets_text_and_nul_is_none(script, monkeypatch):
    """os.isatty() is true of both there. tests/windows/ asks a console of wine's."""
    module, shown, modes = importlib.import_module(script), [], []

    def open_there(fd, mode, buffering, closefd):
        assert (buffering, closefd) == (0, False)
        modes.append(mode)
        return Console(shown) if fd < 3 else open(os.devnull, mode, buffering)

    there = types.SimpleNamespace(name="nt", isatty=lambda fd: fd != 2)
    monkeypatch.setattr(module, "os", there)
    monkeypatch.setattr(module, "open", open_there, raising=False)
    assert [module.is_terminal(fd) for fd in (0, 1, 2, 3)] == [True, True, False, False]
    assert modes == ["rb", "wb", "wb"], "the keyboard is read, the screen is written"
    if script in ("tcp_upper", "udp_upper"):
        module.write_out(b"GR\xc3\xbcN")
        assert b"".join(shown) == b"GR\xc3\xbcN"
    else:
        assert module.write_some(1, b"GR\xc3\xbcN") == 4 and shown == [b"GR\xc3\xbc"]


@pytest.mark.parametrize("script", ["server", "client", "httpserver", "httpclient"])
def test_letters_that_a_disk_takes_apart_are_the_same_name(script, tmp_path):
    """HFS+ of macOS gives the names of files with each accent as a character of its own."""
    module = importlib.import_module(script)
    together, apart = tmp_path / "Gr\u00fcn.py", tmp_path / "Gru\u0308n.py"
    assert together != apart and module.path_key(str(together)) == module.path_key(str(apart))
    assert module.folder_key(str(together)) == module.folder_key(str(apart))


@pytest.mark.parametrize("script", ["server", "client", "httpserver"])
def test_a_file_reaches_the_disk_itself_where_fsync_does_not_bring_it(
    script, monkeypatch, tmp_path
):
    """macOS: fsync() leaves it in the disk's memory, and some file systems lack the other call."""
    module, called = importlib.import_module(script), []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(os, "fsync", lambda fd: called.append("fsync"))
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, what: called.append(what))
    module.sync_to_disk(3)
    assert called == [51]

    def refuse(fd, what):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    module.sync_to_disk(3)
    assert called == [51, "fsync"]


def test_the_idle_time_of_a_connection_is_set_by_its_other_name_too(monkeypatch):
    """macOS calls TCP_KEEPIDLE TCP_KEEPALIVE."""
    module, number = importlib.import_module("server"), socket.TCP_KEEPIDLE
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", number, raising=False)
    with socket.socket() as sock:
        module.Wire.keep_alive(types.SimpleNamespace(sock=sock))
        assert sock.getsockopt(socket.IPPROTO_TCP, number) == module.KEEPALIVE["TCP_KEEPALIVE"]


@pytest.mark.parametrize("library", ["GNU readline", "libedit readline"])
def test_the_tab_key_completes_with_either_library(library, monkeypatch):
    """macOS has libedit under readline's name, which binds a key by other words."""
    bound = []
    monkeypatch.setattr(readline, "__doc__", f"Importing this uses {library}.")
    monkeypatch.setattr(readline, "parse_and_bind", bound.append)
    importlib.import_module("client").prepare_completion(types.SimpleNamespace())
    assert bound == ["tab: complete" if library[0] == "G" else "bind ^I rl_complete"]
    readline.set_completer(None)
