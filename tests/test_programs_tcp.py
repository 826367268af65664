"""server.py and client.py: no file that arrives becomes part of a program of ours, by whatever way it comes."""

import os
import re
import subprocess
import sys
import venv

import pytest
from conftest import DEADLINE, assert_clean, place
from test_server import BIG, box, names, parts, put, script, sha, start, talk  # noqa: F401

POISON = b"raise SystemExit('poison: this upload became code')\n"
REFUSED = "reason=not-permitted why="


@pytest.fixture
def home(box):  # noqa: F811
    """The shared folder with the scripts in it: the natural first use."""
    for each in "server.py", "client.py":
        place(each, box)
    (box / "sub").mkdir()
    (box / "poison").write_bytes(POISON)
    return box


@pytest.fixture
def serve(spawn, home):
    def started(*flags, **more):
        return spawn(str(home / "server.py"), ".", *flags, cwd=home, **more)

    return started


def runs_clean(*command, **more):
    """What it says at its next start."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=DEADLINE, check=False, **more
    )
    assert done.returncode == 0 and "poison" not in done.stdout + done.stderr, done.stderr
    assert_clean(done.stderr)


def refusals(server, *requests):
    """Each is refused, with a reason and a sentence."""
    for request in requests:
        said = talk(server, request).decode()
        assert said.startswith("err ") and REFUSED in said, (request[:80], said)


OURS = ["server.py", "client.py", "httpserver.py", "udp_upper.py", "SERVER.PY", "Client.Py"]


@pytest.mark.parametrize("name", OURS)
def test_no_upload_becomes_a_script_of_ours(serve, home, name):
    server, before = serve(), names(home)
    whole = put(name, POISON, size=len(POISON), mtime_ns=1, over="yes")
    refusals(
        server,
        whole,
        put(name, POISON),
        f"rename poison {name} over=yes\n".encode(),
        f"rename poison {name}\n".encode(),
        f"rename sub {name}\n".encode(),
    )
    if name in before:
        refusals(server, f"rename {name} away\n".encode(), f"delete {name}\n".encode())
    else:
        refusals(server, f"mkdir {name}\n".encode())
    assert names(home) == before
    runs_clean(sys.executable, home / "server.py", "--help")


@pytest.mark.parametrize("name", ["client.py", "udp_upper.py"])
def test_no_folder_with_a_main_file_becomes_a_script_of_ours(serve, home, name):
    """Python runs a folder that is called like a script, if it has a __main__.py."""
    (home / "sub" / "__main__.py").write_bytes(POISON)
    server, before = serve(), names(home)
    refusals(server, f"rename sub {name}\n".encode())
    for request in f"mkdir {name}/x\n".encode(), put(f"{name}/__main__.py", POISON):
        assert re.match(rb"err .* reason=(no\S+|exists)", talk(server, request))
    assert names(home) == before


def test_no_resumed_upload_becomes_a_script_of_ours(serve, home):
    part = home / script.lasting_name("client.py", len(BIG), 1)
    part.write_bytes(BIG[:2000000])
    keys = f"client.py size={len(BIG)} mtime_ns=1"
    rest = BIG[2000000:]
    known = sha(part.read_bytes())
    request = (
        f"put {keys} over=yes offset=2000000 sha256={known}\ndata {len(rest)}\n".encode()
        + rest
        + f"end sha256={sha(BIG)}\n".encode()
    )
    said = talk(serve(), request).decode().splitlines()
    assert REFUSED in said[0]
    runs_clean(sys.executable, home / "client.py", "--help")


def test_another_name_of_the_running_script_is_the_script(serve, home):
    os.link(home / "server.py", home / "hard")
    os.symlink("server.py", home / "soft")
    server = serve()
    refusals(server, put("hard", POISON, over="yes"), b"delete hard\n", b"rename hard away\n")
    for request in (
        put("soft", POISON, over="yes"),
        b"delete soft\n",
        b"rename poison soft over=yes\n",
    ):
        assert re.search(b"reason=(not-a-file|not-permitted)", talk(server, request))
    runs_clean(sys.executable, home / "server.py", "--help")


def test_a_script_that_is_started_through_a_link_is_guarded_under_both_names(spawn, home):
    (home / "bin").mkdir()
    os.symlink("../server.py", home / "bin" / "share")
    server = spawn(str(home / "bin" / "share"), home)
    refusals(
        server,
        put("server.py", POISON, over="yes"),
        put("bin/client.py", POISON),
        b"rename bin other\n",
    )
    runs_clean(sys.executable, home / "bin" / "share", "--help")


def test_other_files_come_and_go_beside_the_scripts(serve, home):
    server = serve()
    for name in "json.py", "server.py.txt", "my server.py".replace(" ", "%20"), "sub/server.py":
        assert b"ok put" in talk(server, put(name, POISON)), name
    assert b"ok rename" in talk(server, b"rename json.py tarfile.py\nrename sub other\n")
    runs_clean(sys.executable, home / "server.py", "--help", cwd=home)


@pytest.mark.parametrize("paths", [":", ".", "{home}/lib", "/nowhere:lib"])
def test_a_folder_that_python_imports_from_takes_no_code(spawn, home, paths):
    """Python imports from it before the first line of a script runs."""
    inside = "" if paths in ":." else "lib/"
    env = {"PYTHONPATH": paths.format(home=home)}
    server = spawn(str(home / "server.py"), ".", cwd=home, env=env)
    (home / inside / "encodings").mkdir(parents=True)
    for name in "sitecustomize.py", "json.py", "encodings/__init__.py", "os.cpython-311.so":
        refusals(server, put(inside + name, POISON), f"rename poison {inside}{name}\n".encode())
    if inside:
        refusals(server, b"rename sub lib/json\n", b"rename lib away\n")
    assert b"ok put" in talk(server, put(f"{inside}notes.txt", POISON))
    (home / inside / "encodings").rmdir()
    runs_clean(sys.executable, home / "server.py", "--help", cwd=home, env={**os.environ, **env})


def test_nothing_is_put_where_python_will_look_for_a_folder(spawn, home):
    """Not an archive either: Python imports from those too."""
    server = spawn(
        str(home / "server.py"), ".", cwd=home, env={"PYTHONPATH": f"{home}/lib:{home}/zip"}
    )
    (home / "new").mkdir()
    (home / "new" / "json.py").write_bytes(POISON)
    refusals(server, b"rename new lib\n", put("zip", POISON), b"mkdir lib\n")


def test_an_environment_in_the_shared_folder_stays_as_it_is(spawn, home):
    venv.create(home / "venv", symlinks=True)
    python = home / "venv" / "bin" / "python"
    server = spawn(str(home / "server.py"), ".", cwd=home, python=str(python))
    (library,) = (home / "venv" / "lib").glob("python*")
    packages = f"venv/lib/{library.name}/site-packages"
    refusals(
        server,
        put(f"{packages}/sitecustomize.py", POISON),
        put(f"{packages}/it.pth", b"import sitecustomize"),
        put("venv/pyvenv.cfg", b"home = /tmp\n", over="yes"),
        b"delete venv/pyvenv.cfg\n",
        b"rename venv other\n",
        b"rename venv/lib venv/other\n",
        b"rename sub venv/bin/python.py\n",
    )
    runs_clean(python, home / "server.py", "--help", cwd=home)


def test_without_dir_fd_it_is_the_same(home, tmp_path):
    from conftest import Server

    runner = tmp_path / "run.py"
    runner.write_text(
        "import os, runpy, sys\nos.supports_dir_fd = set()\n"
        f"runpy.run_path({str(home / 'server.py')!r}, run_name='__main__')"
    )
    server = Server(str(runner), home)
    refusals(server, put("server.py", POISON, over="yes"), b"rename poison client.py over=yes\n")
    server.stop()


# --- the client, which gets and receives ---
@pytest.fixture
def here(tmp_path):
    """Where the client's script lies, and where it is used."""
    (tmp_path / "here").mkdir()
    for each in "server.py", "client.py":
        place(each, tmp_path / "here")
    return tmp_path / "here"


def test_the_client_tells_why_the_server_takes_no_script(serve, run, here):
    server = serve()
    (here / "poison.py").write_bytes(POISON)
    done = run(
        "client.py",
        "--port",
        server.port,
        "put",
        "poison.py",
        "--as",
        "server.py",
        "--force",
        cwd=here,
    )
    assert done.code == 25 and "not-permitted" in done.err and "part of a program" in done.err


@pytest.mark.parametrize("way", ["file", "tree", "named"])
def test_get_replaces_no_script_of_ours(start, run, box, here, way):  # noqa: F811
    for name in "client.py", "udp_upper.py", "json.py":
        (box / name).write_bytes(POISON)
    server, before = start(), (here / "client.py").read_bytes()
    words = {
        "file": ["get", "client.py", "udp_upper.py", "json.py", "--force"],
        "tree": ["get", "*", "--force"],
        "named": ["get", "json.py", "-o", "client.py", "--force"],
    }[way]
    done = run(str(here / "client.py"), "--port", server.port, *words, cwd=here)
    assert done.code == 23 and "part of a program" in done.err
    assert (here / "client.py").read_bytes() == before and not (here / "udp_upper.py").exists()
    assert (here / "json.py").exists() == (way != "named") and not parts(here)
    runs_clean(sys.executable, here / "client.py", "--help", cwd=here)


def test_get_of_a_folder_into_the_path_of_python_takes_no_code(start, run, box, here):  # noqa: F811
    (box / "lib" / "json").mkdir(parents=True)
    for name in "json/__init__.py", "sitecustomize.py", "notes.txt":
        (box / "lib" / name).write_bytes(POISON)
    (box / "lib" / "big.py").write_bytes(BIG)
    (here / "lib").mkdir()
    server, env = start(), {"PYTHONPATH": "lib"}
    client = [str(here / "client.py"), "--port", server.port]
    done = run(*client, "get", "lib", cwd=here, env=env)
    assert done.code == 23 and done.err.count("part of a program") == 3
    assert names(here / "lib") == ["json", "notes.txt"] and names(here / "lib" / "json") == []
    runs_clean(sys.executable, here / "client.py", "--help", cwd=here, env={**os.environ, **env})


def test_get_does_not_resume_into_a_script(start, run, box, here):  # noqa: F811
    (box / "client.py").write_bytes(BIG)
    os.utime(box / "client.py", ns=(5, 5))
    part = here / script.lasting_name("client.py", len(BIG), 5)
    part.write_bytes(BIG[:2000000])
    done = run(
        str(here / "client.py"), "--port", start().port, "get", "client.py", "--force", cwd=here
    )
    assert done.code == 23 and "part of a program" in done.err and part.exists()


@pytest.mark.parametrize("force", [True, False])
def test_a_receiver_takes_no_script_and_goes_on(start, spawn, run, here, tmp_path, force):  # noqa: F811
    from conftest import Process

    server, mine, before = start(), tmp_path / "mine", (here / "server.py").read_bytes()
    (mine / "client.py").mkdir(parents=True)
    (mine / "client.py" / "__main__.py").write_bytes(POISON)
    for name in "server.py", "httpclient.py", "note":
        (mine / name).write_bytes(POISON)
    flags = ["receive", "--nick", "bob", "--count", "1", *["--force"] * force]
    receiver = Process(str(here / "client.py"), "--port", server.port, *flags, cwd=here)
    receiver.wait_for("waiting for files")
    client = ["client.py", "--port", server.port, "send"]
    sent = run(*client, "server.py", "httpclient.py", "client.py", "note", "--to", "bob", cwd=mine)
    assert sent.code == 25 and sent.err.count("part of a program") >= 2
    assert receiver.wait() == 0 and receiver.err.count("not-permitted") >= 2
    assert (here / "server.py").read_bytes() == before
    assert (here / "client.py").is_file() and not (here / "httpclient.py").exists()
    assert (here / "note").exists()


def test_a_destination_that_is_a_link_to_the_folder_of_the_scripts_takes_none(
    start,  # noqa: F811
    run,
    box,  # noqa: F811
    here,
    tmp_path,
):
    from conftest import Process

    server, link = start(), tmp_path / "link"
    (box / "udp_upper.py").write_bytes(POISON)
    link.symlink_to(here)
    client = [str(here / "client.py"), "--port", server.port]
    for target in link, link / "udp_upper.py":
        done = run(*client, "get", "udp_upper.py", "-o", target, cwd=tmp_path)
        assert done.code == 23 and "part of a program" in done.err, (target, done)
    receiver = Process(*client, "receive", "--nick", "bob", "-o", link, cwd=tmp_path)
    receiver.wait_for("waiting for files")
    sent = run(*client, "send", box / "udp_upper.py", "--to", "bob", cwd=tmp_path)
    receiver.kill()
    assert sent.code == 25 and "part of a program" in sent.err, sent
    assert names(here) == ["client.py", "server.py"]
