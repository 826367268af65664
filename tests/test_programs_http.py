"""httpserver.py: nothing that arrives becomes code, by whatever way it comes, neither at once nor at the next start."""

import ast
import os
import re
import ssl
import subprocess
import sys

import pytest
from conftest import DEADLINE, ROOT, place
from test_httpserver import ask, folder, server, wire  # noqa: F401  the fixtures too
from test_httpserver_changes import FORM, append, form

POISON = b"raise SystemExit('poison: this upload became code')\n"
PYTHON = f"lib/python3.{sys.version_info[1]}/site-packages"


@pytest.fixture
def home(folder):  # noqa: F811
    """The shared folder, with the script in it: the natural first use."""
    place("httpserver.py", folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_bytes(b"data")
    return folder


@pytest.fixture
def start(spawn, home):
    """The script as a person starts it: in its own folder, which it shares."""

    def started(*flags, **more):
        return spawn(str(home / "httpserver.py"), *flags, cwd=home, **more)

    return started


def content(where):
    return {
        path.relative_to(where): path.is_file() and path.read_bytes() for path in where.rglob("*")
    }


def plan_for(ask, path, to):  # noqa: F811
    """The address of an upload that has begun under another name, as if it had begun under this one."""
    location = ask("PUT", "/begun", "Upload-Complete: ?0\r\n", b"", to=to).fields["location"]
    return path + location[location.index("?") :]


def arrivals(ask, path, to):  # noqa: F811
    """What each way of putting a file there is answered."""
    folder, _, name = path.rpartition("/")  # noqa: F811
    named = f'Content-Disposition: inline; filename="{name}"\r\n'
    yield "put", ask("PUT", path, body=POISON, to=to)
    yield "post", ask("POST", path, body=POISON, to=to)
    yield "posted into the folder", ask("POST", folder + "/", named, POISON, to=to)
    part = f'name="f"; filename="{name}"'.encode()
    yield "form", ask("POST", folder + "/", FORM, form((part, POISON)), to=to)
    part = f'name="folder"; filename="{path[1:]}"'.encode()
    yield "form of a folder", ask("POST", "/", FORM, form((part, POISON)), to=to)
    yield "begun", ask("PUT", path, "Upload-Complete: ?0\r\n", POISON, to=to)
    yield "resumed", append(ask, plan_for(ask, path, to), 0, POISON, to=to)
    yield "moved there", ask("MOVE", "/sub/data", f"Destination: {path}\r\n", to=to)
    yield (
        "moved there, if it is new",
        ask("MOVE", "/sub/data", f"Destination: {path}\r\nOverwrite: F\r\n", to=to),
    )
    yield "a folder moved there", ask("MOVE", "/sub", f"Destination: {path}\r\n", to=to)


def changes(ask, path, to):  # noqa: F811
    yield from arrivals(ask, path, to)
    yield "moved away", ask("MOVE", path, "Destination: /away\r\n", to=to)
    yield "deleted", ask("DELETE", path, to=to)


def assert_refused(answers, where, before):
    for way, reply in answers:
        assert reply.status == 403 and b"program" in reply.body, (way, reply)
    for part in where.rglob(".six-*"):  # of the upload that was begun under another name
        part.unlink()
    assert content(where) == before


@pytest.mark.parametrize("name", ["httpserver.py", "HTTPServer.PY", "copy", "client.py"])
def test_no_way_leads_over_the_running_script_or_the_names_of_its_siblings(
    name,
    start,
    home,
    ask,  # noqa: F811
):
    os.link(home / "httpserver.py", home / "copy")
    before, there = content(home), start()
    assert_refused(changes(ask, "/" + name, there), home, before)


def test_the_name_of_a_sibling_is_not_taken_by_a_folder_either(start, home, ask):  # noqa: F811
    """Python runs the __main__.py of a folder that is named as a script."""
    before, there = content(home), start()
    assert_refused(arrivals(ask, "/client.py/__main__.py", there), home, before)
    made = ask("MKCOL", "/client.py/", to=there)
    assert_refused([("made", made)], home, before)


def test_a_link_to_the_script_stays(start, home, ask):  # noqa: F811
    (home / "link").symlink_to("httpserver.py")
    before, there = content(home), start()
    for way, reply in changes(ask, "/link", there):
        if way not in ("posted into the folder", "form"):  # these get a number
            assert reply.status in (403, 409), (way, reply)
    assert (home / "link").is_symlink()
    assert (
        content(home)[(home / "httpserver.py").relative_to(home)]
        == (before[(home / "httpserver.py").relative_to(home)])
    )


def test_the_folder_that_the_script_lies_in_stays(spawn, tmp_path, ask):  # noqa: F811
    inner = tmp_path / "share" / "tools" / "net"
    inner.mkdir(parents=True)
    place("httpserver.py", inner)
    before, share = content(tmp_path / "share"), tmp_path / "share"
    there = spawn(str(inner / "httpserver.py"), cwd=share)
    for path in "/tools", "/tools/net", "/Tools":
        refused = [
            ("moved", ask("MOVE", path, "Destination: /away\r\n", to=there)),
            ("deleted", ask("DELETE", f"{path}/?recursive", to=there)),
            ("deleted if empty", ask("DELETE", f"{path}/", to=there)),
        ]
        if path != "/Tools":  # which is nothing here
            assert_refused(refused, share, before)
    assert ask("PUT", "/tools/net/data.txt", body=b"data", to=there).status == 201


def test_a_folder_that_python_imports_from_takes_data_and_no_code(
    spawn,
    home,
    ask,  # noqa: F811
    tmp_path,
):
    (home / "lib" / "package").mkdir(parents=True)
    before = content(home)
    there = spawn(
        str(home / "httpserver.py"), home, cwd=tmp_path, env={"PYTHONPATH": str(home / "lib")}
    )
    for name in "json.py", "json.SO", "package/__init__.py", "x.pth":
        assert_refused(arrivals(ask, f"/lib/{name}", there), home, before)
    folders = [
        ("a folder moved there", ask("MOVE", "/sub", "Destination: /lib/json\r\n", to=there)),
        ("moved", ask("MOVE", "/lib", "Destination: /away\r\n", to=there)),
        ("deleted", ask("DELETE", "/lib/?recursive", to=there)),
        ("moved out", ask("MOVE", "/lib/package", "Destination: /package\r\n", to=there)),
    ]
    assert_refused(folders, home, before)
    assert ask("PUT", "/lib/notes.txt", body=b"data", to=there).status == 201
    assert ask("PUT", "/json.py", body=POISON, to=there).status == 201


def test_the_environment_that_the_server_runs_in_stays(spawn, home, ask):  # noqa: F811
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
    (home / "venv" / PYTHON / "some.py").write_bytes(b"")
    before = content(home)
    there = spawn(
        str(home / "httpserver.py"), cwd=home, python=str(home / "venv" / "bin" / "python")
    )
    for path in f"/venv/{PYTHON}/json.py", f"/venv/{PYTHON}/x.pth", "/venv/pyvenv.cfg":
        assert_refused(arrivals(ask, path, there), home, before)
    removed = [
        ("moved", ask("MOVE", "/venv", "Destination: /away\r\n", to=there)),
        ("deleted", ask("DELETE", "/venv/lib/?recursive", to=there)),
        ("a file deleted", ask("DELETE", f"/venv/{PYTHON}/some.py", to=there)),
    ]
    assert_refused(removed, home, before)
    assert ask("PUT", "/venv/notes.txt", body=b"data", to=there).status == 201


def imported():
    for node in ast.walk(ast.parse((ROOT / "httpserver.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def use(there, wire, ask):  # noqa: F811
    """All that imports something late: archives, listings, dates, forms, uploads."""
    for path, fields in (
        ("/?tar", ""),
        ("/?zip", ""),
        ("/", "Accept: application/json\r\n"),
        ("/", "Accept: text/html\r\n"),
        ("/a.txt", "If-Modified-Since: Fri, 13 Feb 2009 23:31:30 GMT\r\n"),
    ):
        reply = wire(there).send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").reply()
        assert reply.status == 200 and reply.whole, (path, reply)
    assert ask("POST", "/", FORM, form((b'name="f"; filename="f"', b"x")), to=there).status == 201
    assert ask("PUT", "/new", body=b"x", to=there).status in (201, 204)


def test_uploads_that_are_named_as_modules_are_data_now_and_at_the_next_start(
    start,
    wire,  # noqa: F811
    ask,  # noqa: F811
    home,
):
    there = start()
    names = sorted({*imported(), "__future__", "sitecustomize", "usercustomize", "tarfile"})
    for number, name in enumerate(names):
        path = f"/{name}.py" if number % 2 else f"/{name}/__init__.py"
        assert ask("PUT", path, body=POISON, to=there).status == 201, name
    (home / "a.txt").write_bytes(b"hello\n")
    use(there, wire, ask)
    there.stop()
    use(start(), wire, ask)
    secret = start("--tls", "--password", "x")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with secret.connect() as plain, context.wrap_socket(plain) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        sock.settimeout(DEADLINE)
        assert re.match(rb"HTTP/1.1 401 ", sock.recv(1000))


@pytest.mark.parametrize("paths", [":", "/nowhere:", "."])
def test_a_current_folder_that_python_imports_from_takes_no_code(paths, start, home, ask):  # noqa: F811
    """An empty word in PYTHONPATH means it, and Python itself imports from there before the script's first line."""
    (home / "encodings").mkdir()
    before, there = content(home), start(env={"PYTHONPATH": paths})
    for name in "sitecustomize.py", "encodings/__init__.py":
        assert_refused(arrivals(ask, f"/{name}", there), home, before)
    assert ask("PUT", "/notes.txt", body=b"data", to=there).status == 201
