"""Nothing that arrives becomes code: what lies beside a script, or in the current folder, is data."""

import contextlib
import http.client
import os
import py_compile
import select
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEADLINE, ROOT, SCRIPTS, assert_clean, place

# these a start of Python itself imports, from where PYTHONPATH says
STARTUP = ("__future__", "sitecustomize", "usercustomize")
MODULES = sorted({*STARTUP, *getattr(sys, "stdlib_module_names", sys.builtin_module_names)})


def poison_file(folder, name, mark):
    (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('{name} ')\n")


def poison_package(folder, name, mark):
    (folder / name).mkdir()
    poison_file(folder / name, "__init__", mark)


def poison_bytecode(folder, name, mark):
    poison_file(folder, name, mark)
    py_compile.compile(str(folder / f"{name}.py"), cfile=str(folder / f"{name}.pyc"), doraise=True)
    (folder / f"{name}.py").unlink()


def poison_extension(folder, name, mark):
    """No machine code is at hand that would run: what is no library at all fails to be one."""
    (folder / f"{name}.so").write_bytes(b"no library")


POISONS = poison_file, poison_package, poison_bytecode, poison_extension


@pytest.fixture(params=POISONS, ids=lambda poison: poison.__name__)
def poisoned(request, tmp_path, full):
    """A folder with the six scripts, and a module of the name of each that Python has."""
    if request.param is not poison_file and not full:
        pytest.skip("one of the slow matrices: --full runs it")
    folder, mark = tmp_path / "shared", tmp_path / "mark"
    folder.mkdir()
    for script in SCRIPTS:
        place(script, folder)
    for name in MODULES:
        request.param(folder, name, mark)
    (folder / "a.txt").write_text("hello\n")
    yield folder
    assert not mark.exists(), f"imported from the shared folder: {mark.read_text()}"


def on_terminal(*command, cwd, dialogue):
    """A program on a terminal of its own: each text of the dialogue is typed when the one before it was shown."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, command)],
        cwd=cwd,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the program has closed the terminal
        for awaited, typed in dialogue:
            while awaited not in shown:
                assert select.select([master], [], [], DEADLINE)[0], (awaited, shown)
                shown += os.read(master, 65536)
            shown = shown.partition(awaited)[2]
            os.write(master, typed)
        while select.select([master], [], [], DEADLINE)[0] and (chunk := os.read(master, 65536)):
            shown += chunk
    os.close(master)
    assert process.wait(DEADLINE) == 0, shown.decode(errors="replace")
    assert_clean(shown.decode(errors="replace"))


def test_the_poison_works(tmp_path):
    """Without the scripts' care, Python imports what lies beside a script: the tests below can fail."""
    for poison in POISONS[:3]:
        folder, mark = tmp_path / poison.__name__, tmp_path / f"{poison.__name__}.mark"
        folder.mkdir()
        poison(folder, "tarfile", mark)
        (folder / "careless.py").write_text("import tarfile\n")
        subprocess.run([sys.executable, folder / "careless.py"], check=True, cwd=tmp_path)
        assert mark.read_text() == "__init__ " if poison is poison_package else "tarfile "


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_clean_among_poisoned_modules(script, poisoned, run):
    assert run(poisoned / script, "--help", cwd=poisoned).code == 0
    assert run(poisoned / script, "--port", "99999", cwd=poisoned.parent).code == 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_elsewhere_imports_nothing_from_the_current_folder(script, poisoned, run):
    assert run(ROOT / script, "--help", cwd=poisoned).code == 0


def test_the_tcp_pair_imports_nothing_that_arrived(poisoned, spawn, run, tmp_path):
    server = spawn(
        poisoned / "server.py", ".", "--password", "word", "--tls", "--log", tmp_path / "log",
        cwd=poisoned,
    )  # fmt: skip
    pin = server.wait_for(r"--pin (\w+)")[1]
    flags = ["--port", server.port, "--password", "word", "--pin", pin]

    def client(*words, code=0, input=b""):
        done = run(poisoned / "client.py", *words, *flags, cwd=poisoned, input=input)
        assert done.code == code, done
        return done

    client("list", "--json")
    client("put", "a.txt", "--json", "--force")
    client("get", "a.t*", "-o", tmp_path / "copy.txt")
    client("put", "a.tx", code=26)
    client(code=2, input=b"lst\nlist\nlogout\n")
    client("who")
    dialogue = [
        (b"> ", b"list\n"),
        (b"a.txt", b""),
        (b"> ", b"get a.t\t"),
        (b"xt", b"\x15logout\n"),
    ]
    on_terminal(poisoned / "client.py", *flags, cwd=poisoned, dialogue=dialogue)


def test_the_http_server_imports_nothing_that_arrived(poisoned, spawn):
    server = spawn(poisoned / "httpserver.py", cwd=poisoned)
    conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    form = (
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="b.txt"\r\n\r\nhi\r\n--b--\r\n'
    )
    for method, target, body, fields in [
        ("GET", "/", None, {}),
        ("GET", "/?tar", None, {}),
        ("GET", "/?zip", None, {}),
        ("GET", "/", None, {"Accept": "application/json"}),
        ("GET", "/a.txt", None, {"Want-Repr-Digest": "sha-256=1"}),
        ("GET", "/a.txt", None, {"If-Modified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"}),
        ("GET", "/a.txt", None, {"Range": "bytes=0-1,3-4"}),
        ("POST", "/", form, {"Content-Type": "multipart/form-data; boundary=b"}),
        ("PUT", "/new.txt", b"new", {}),
        ("DELETE", "/new.txt", None, {}),
    ]:
        conn.request(method, target, body, fields)
        answer = conn.getresponse()
        answer.read()
        assert answer.status < 400, (method, target, fields, answer.status)
    conn.close()


def test_the_http_pair_imports_nothing_that_arrived(poisoned, spawn, run, tmp_path):
    flags = ["--password", "word", "--tls", "--log", tmp_path / "log"]
    server = spawn(poisoned / "httpserver.py", *flags, cwd=poisoned)
    pin = server.wait_for(r"--pin (\w+)")[1]
    url = f"https://127.0.0.1:{server.port}/"
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "b.txt").write_text("b")
    for words, code in [
        (["list", url, "--json"], 0),
        (["get", f"{url}a.txt", "--json", "-o", tmp_path / "copy"], 0),
        (["get", f"{url}nothing"], 22),
        (["put", "a.txt", f"{url}c.txt"], 0),
        (["upload", tmp_path / "tree", f"{url}tree/"], 0),
        (["mirror", f"{url}tree/", "-o", tmp_path / "mirrored"], 0),
        (["post", f"{url}tree/", "--form", "f=@a.txt"], 0),
    ]:
        done = run(
            poisoned / "httpclient.py", *words, "--password", "word", "--pin", pin, cwd=poisoned
        )
        assert done.code == code, (words, done)


def test_a_name_that_the_server_chose_is_not_imported(tmp_path, canned, run):
    mark = tmp_path / "mark"
    place("httpclient.py", tmp_path)
    body = f"open({str(mark)!r}, 'a').write('json ')\n".encode()
    server = canned(
        b"HTTP/1.1 200 OK\r\nContent-Disposition: attachment; filename=json.py\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body,
        read_until=b"\r\n\r\n",
    )
    for number in range(2):
        where = tmp_path / "there" / str(number) if number else tmp_path
        where.mkdir(parents=True, exist_ok=True)
        done = run(
            tmp_path / "httpclient.py", "get", "--json", f"http://127.0.0.1:{server.port}/x",
            cwd=where,
        )  # fmt: skip
        assert done.code == 0, done
        assert (where / "json.py").read_bytes() == body
    assert run(tmp_path / "httpclient.py", "--help", cwd=tmp_path).code == 0
    assert not mark.exists()


@pytest.mark.parametrize("script", ["tcp_upper.py", "udp_upper.py"])
def test_the_echo_scripts_import_nothing_that_arrived(script, poisoned, spawn, run):
    server = spawn(poisoned / script, "server", cwd=poisoned)
    address = ["--port", server.port]
    assert run(poisoned / script, "client", "hello", *address, cwd=poisoned).out == b"HELLO\n"
    assert run(poisoned / script, "client", "--ping", "1", *address, cwd=poisoned).code == 0
    assert run(poisoned / script, "client", *address, cwd=poisoned, input=b"a\n").out == b"A\n"
    dialogue = [(b"sentence: ", b"hello\n"), (b"HELLO", b""), (b"sentence: ", b"\x04")]
    on_terminal(poisoned / script, "client", *address, cwd=poisoned, dialogue=dialogue)


def test_a_script_reached_by_a_link_is_as_careful(poisoned, run, tmp_path):
    link = tmp_path / "share.py"
    link.symlink_to(poisoned / "httpserver.py")
    assert run(link, "--help", cwd=tmp_path).code == 0
    assert Path(os.readlink(link)).parent == poisoned


@pytest.mark.parametrize("script", ["server.py", "httpserver.py"])
def test_an_openssl_that_arrived_is_not_run(script, tmp_path, spawn):
    """PATH may hold the current folder, and Windows looks there first."""
    planted, mark = tmp_path / "openssl", tmp_path / "mark"
    planted.write_text(f"#!/bin/sh\ntouch '{mark}'\nexit 1\n")
    planted.chmod(0o755)
    for path in (os.pathsep + os.environ["PATH"], os.curdir + os.pathsep + os.environ["PATH"]):
        server = spawn(ROOT / script, ".", "--tls", cwd=tmp_path, env={"PATH": path})
        server.stop()
    assert not mark.exists()


def test_no_upload_becomes_the_openssl_that_is_run(tmp_path, spawn, run):
    (tmp_path / "bin").mkdir()
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    (tmp_path / "openssl").write_text("#!/bin/sh\n")
    server = spawn(ROOT / "server.py", tmp_path, env={"PATH": path})
    done = run(
        "client.py", "put", "openssl", "--as", "bin/openssl", "--port", server.port, cwd=tmp_path
    )
    assert done.code == 25 and "part of a program" in done.err, done
    assert os.listdir(tmp_path / "bin") == []


@pytest.mark.parametrize("script", ["server.py", "httpserver.py"])
def test_a_python_in_the_share_takes_no_part_from_an_upload(script, tmp_path, spawn, run):
    """Also where its folders for packages are missing, and in what has no ending that tells code."""
    share = tmp_path / "share"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", share / "venv"], check=True)
    place(script, share)
    python = share / "venv" / "bin" / "python"
    version = "python{}.{}".format(*sys.version_info)
    sites = subprocess.run(
        [python, "-c", "import site; print(*site.getsitepackages(), sep='\\n')"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split()
    server = spawn(share / script, share, python=python, cwd=tmp_path)
    (tmp_path / "x").write_text("x")
    refused = [os.path.relpath(os.path.join(site, "x.pth"), share) for site in sites]
    refused += [f"venv/lib/{version}/x.py", "venv/lib/libpython.so.1.0", "venv/pyvenv.cfg"]
    refused += [f"venv/bin/{name}" for name in ("activate", "openssl", "python", "pybuilddir.txt")]
    for name in refused:
        if script == "server.py":
            words = ["client.py", "put", "x", "--as", name, "--force", "--port", server.port]
            assert run(*words, cwd=tmp_path).code == 25, name
        else:
            conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
            conn.request("PUT", f"/{name}", b"x")
            assert conn.getresponse().status == 403, name
            conn.close()


def test_a_zip_that_python_imports_from_takes_the_place_of_no_upload(tmp_path, spawn, run):
    (tmp_path / "x").write_text("x")
    path = os.pathsep.join(["mods.zip/inner", "sub/mods.egg/x/y"])
    server = spawn(ROOT / "server.py", ".", cwd=tmp_path, env={"PYTHONPATH": path})
    for name in ("mods.zip", "sub/mods.egg", "mods.zip/inner/a.py"):
        words = ["put", "x", "--as", name, "--port", server.port]
        assert run("client.py", *words, cwd=tmp_path).code == 25, name
