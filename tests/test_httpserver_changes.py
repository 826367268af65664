"""httpserver.py: uploads, forms, deleting, renaming, resuming, archives; and what many, slow or hostile clients do to it."""

import ctypes
import errno
import fcntl
import hashlib
import io
import itertools
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import DEADLINE, ROOT, free_port, stopped, taken, until
from test_httpserver import GET, RAW, Wire, ask, folder, server, tree, url, wire  # noqa: F401  the fixtures too

DATA = random.Random(2).randbytes(300000)
LIBC = ctypes.CDLL(None)


def tar_names(body):
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        return [name.rstrip("/") for name in archive.getnames()]


def digest(data):
    return "sha-256=:" + b64encode(hashlib.sha256(data).digest()).decode() + ":"


# --- PUT, POST (rules 30, 33) ---
def test_put_makes_and_replaces_whole_files_as_its_conditions_say(ask, folder):  # 30
    assert [ask("PUT", "/new/deep/x", body=DATA).status for _ in range(2)] == [201, 204]
    assert (folder / "new" / "deep" / "x").read_bytes() == DATA
    tag = ask("GET", "/a.txt").fields["etag"]
    for fields, status in (
        ("If-None-Match: *", 412),
        ('If-Match: "x"', 412),
        (f"If-Match: {tag}", 204),
        (f"If-Match: {tag}", 412),
        ("Content-Range: bytes 0-1/5", 400),
    ):
        assert ask("PUT", "/a.txt", fields + "\r\n", b"changed").status == status
    assert [
        ask("PUT", path, "If-Match: *\r\n", b"x").status for path in ("/none", "/none/deep/x")
    ] == [412, 412]
    assert sorted(os.listdir(folder)) == ["a.txt", "new"]
    assert ask("PUT", "/new", body=b"x").status == 409
    assert ask("PUT", "/a.txt/below", body=b"x").status in (404, 409)
    assert ask("PUT", "/", body=b"x").status == 409
    assert tree(folder) == {b"a.txt": b"changed", b"new/deep/x": DATA}


def test_a_replaced_file_keeps_its_mode_and_a_new_one_gets_the_umask(ask, folder):
    (folder / "a.txt").chmod(0o640)
    ask("PUT", "/a.txt", body=b"x")
    ask("PUT", "/new", body=b"x")
    mask = os.umask(0)
    os.umask(mask)
    assert [(folder / name).stat().st_mode & 0o777 for name in ("a.txt", "new")] == [
        0o640,
        0o666 & ~mask,
    ]


def test_of_two_writers_of_a_new_name_one_wins(ask, folder):
    statuses = []
    threads = [
        threading.Thread(
            target=lambda n=n: statuses.append(
                ask("PUT", "/race", "If-None-Match: *\r\n", bytes([n]) * 200000).status
            )
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [412] * 7
    assert len(set((folder / "race").read_bytes())) == 1 and len(tree(folder)) == 2


def form(*parts, end=b"--\r\n"):
    body = b"".join(
        b"--XX\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    return body + b"--XX" + end


FORM = "Content-Type: multipart/form-data; boundary=XX\r\n"


def test_a_form_stores_its_files_under_safe_names_and_numbers_those_that_exist(ask, folder):  # 33
    tricky = b"\r\n--X\r\n--XY\r\n-" + DATA + b"\r\n--"
    reply = ask(
        "POST",
        "/",
        FORM,
        form(
            (b'name="file"; filename="a.txt"', tricky),
            (b'name="file"; filename="a.txt"', b""),
            (b'name="text"', b"a field"),
            (b'name="file"; filename=""', b""),
            (b'name="file"; filename="\xc3\xbc%22%0D%0A.txt"', b"1"),
            (b'name="file"; filename="../../up.txt"', b"2"),
            (b'name="file"; filename="C:\\x\\win.txt"', b"3"),
            (b'name="folder"; filename="deep/er/x"', b"4"),
            (b'name="file"; filename="plain"; filename*=UTF-8\'\'..%2fevil', b"5"),
            end=b"--",
        ),
    )
    assert reply.status == 201, reply
    assert reply.fields["location"] == "/a%20%281%29.txt"
    assert tree(folder) == {
        b"a.txt": b"hello\n",
        b"a (1).txt": tricky,
        b"a (2).txt": b"",
        'ü"\r\n.txt'.encode(): b"1",
        b"up.txt": b"2",
        b"win.txt": b"3",
        b"deep/er/x": b"4",
        b"plain": b"5",
    }
    assert (
        ask(
            "POST", "/", FORM + "Accept: text/html\r\n", form((b'name="f"; filename="b"', b""))
        ).fields["location"]
        == "/"
    )


def test_a_long_name_gets_its_number_without_half_a_character(ask, folder):
    for _ in range(2):
        assert (
            ask(
                "POST",
                "/",
                "Content-Disposition: attachment; filename*=UTF-8''" + "%C3%A9" * 125 + ".txt\r\n",
                b"x",
            ).status
            == 201
        )
    assert sorted(tree(folder)) == [
        b"a.txt",
        ("é" * 123 + " (1).txt").encode(),
        ("é" * 125 + ".txt").encode(),
    ]


def test_a_form_byte_by_byte_is_the_same(wire, folder):  # 33
    body = (
        b"preamble"
        + b"\r\n"
        + form((b'name="file"; filename="x"', b"\r\n--X data \r\n"))
        + b"epilogue"
    )
    connection = wire().send(
        f"POST / HTTP/1.1\r\nHost: localhost\r\n{FORM}Content-Length: {len(body)}\r\n\r\n"
    )
    for byte in body:
        connection.send(bytes([byte]))
    assert connection.reply().status == 201
    assert (folder / "x").read_bytes() == b"\r\n--X data \r\n"


def test_broken_and_hostile_forms_store_nothing(ask, folder):  # 33
    for fields, body in [
        (FORM, b""),
        (FORM, b"--XX--\r\n"),
        (FORM, form((b'name="f"; filename="cut"', b"12345"))[:-12]),
        (FORM, b"--XX\r\n" + b"X: y\r\n" * 5000 + b"\r\n\r\n--XX--\r\n"),
        (FORM.replace("XX", ""), b""),
        ("Content-Type: multipart/form-data\r\n", b""),
        (FORM, b"x" * 100000),
        *(
            (FORM, form((b'name="folder"; filename="%b"' % name, b"x")))
            for name in (
                b"../up",
                b"/etc/x",
                b"a//b",
                b".hidden",
                b"a/../b",
                b".six-" + b"0" * 32 + b".part",
                b"a\0b",
            )
        ),
        (FORM, form((b'name="f"; filename=".."', b"x"))),
    ]:
        reply = ask("POST", "/", fields, body)
        assert reply.status in (400, 403), (body[:80], reply)
    assert set(tree(folder.parent)) == {b"www/a.txt"}


def test_a_form_refused_in_the_middle_of_a_chunk_hides_no_request_in_it(wire, folder):  # 13
    smuggled = b"\r\n0\r\n\r\nDELETE /a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = form((b'name="f"; filename=".hidden"', smuggled * 100))
    connection = wire().send(
        f"POST / HTTP/1.1\r\nHost: localhost\r\n{FORM}Transfer-Encoding: chunked\r\n\r\n".encode()
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        + GET.encode()
        + b"\r\n"
    )
    reply = connection.reply()
    assert reply.status == 403
    assert reply.fields.get("connection") == "close" or connection.reply().body == b"hello\n"
    assert tree(folder) == {b"a.txt": b"hello\n"}


def test_other_posts_are_stored_under_a_new_name_or_like_put(ask, folder):
    reply = ask("POST", "/", "Content-Type: application/x-www-form-urlencoded\r\n", b"a=1&b=2")
    assert reply.status == 201
    assert ask("GET", reply.fields["location"]).body == b"a=1&b=2"
    assert (
        ask("POST", "/", 'Content-Disposition: attachment; filename="../a.txt"\r\n', b"x").fields[
            "location"
        ]
        == "/a%20%281%29.txt"
    )
    assert (
        ask("POST", "/", "Content-Disposition: inline; filename*=UTF-8''%c3%bc\r\n", b"x").fields[
            "location"
        ]
        == "/%C3%BC"
    )
    assert (
        ask(
            "POST", "/", "Content-Disposition: inline; filename*=UTF-8''..%2fback%5cslash\r\n", b"x"
        ).fields["location"]
        == "/back%5Cslash"
    )
    for kind, value, want in [
        ("attachment; ", '"a;b.txt"', "a;b.txt"),
        ("attachment; ", r'"say \"hi\".txt"', 'say "hi".txt'),
        ("attachment; ", "my file.txt; x=y", "my file.txt"),
        ("", "without-type.txt", "without-type.txt"),
    ]:
        assert (
            ask("POST", "/", f"Content-Disposition: {kind}filename={value}\r\n", b"x").status == 201
            and (folder / want).read_bytes() == b"x"
        )
    assert ask("POST", "/a.txt", body=b"put").status == 204
    assert ask("POST", "/fresh", body=b"put").status == 201
    assert (folder / "a.txt").read_bytes() == (folder / "fresh").read_bytes() == b"put"


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MiB with one old file."""
    if not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    (disk / "old").write_bytes(b"old")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def upload_chunked(ask, server, size):
    """The statuses of an upload and a form whose lengths are not known before."""
    body = form((b'name="f"; filename="f"', b"x" * size))
    return [
        ask(
            method,
            path,
            f"{fields}Transfer-Encoding: chunked\r\n",
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data),
            to=server,
            length=False,
        ).status
        for method, path, fields, data in (
            ("PUT", "/old", "", b"x" * size),
            ("POST", "/", FORM, body),
        )
    ]


def test_a_full_disk_is_507_and_the_old_file_stays(spawn, disk, ask):  # 30
    server = spawn("httpserver.py", disk)
    assert ask("PUT", "/old", body=bytes(9 << 20), to=server).status == 507  # told before the body
    assert upload_chunked(ask, server, 9 << 20) == [507, 507]
    assert tree(disk) == {b"old": b"old"}


def test_of_a_disk_that_turned_read_only_just_that_is_said(spawn, disk, ask):
    server = spawn("httpserver.py", disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for reply in (
        ask("PUT", "/old", body=b"new", to=server),
        ask("POST", "/", FORM, form((b'name="f"; filename="f"', b"x")), to=server),
        ask("DELETE", "/old", to=server),
        ask("MOVE", "/old", "Destination: /new\r\n", to=server),
        ask("MKCOL", "/new", to=server),
    ):
        assert reply.status == 403 and b"read-only" in reply.body, reply


def test_zeros_beyond_the_limit_of_a_file_are_507_too(spawn, folder, ask):
    server = spawn(
        "httpserver.py",
        folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000)),
    )
    assert ask("PUT", "/a.txt", body=bytes(300000), to=server).status == 507
    assert tree(folder) == {b"a.txt": b"hello\n"}


def test_chunked_uploads_too_leave_the_space_free_that_is_to_stay_free(spawn, disk, ask):
    server = spawn("httpserver.py", disk, "--min-free", "4M")
    assert upload_chunked(ask, server, 6 << 20) == [507, 507]
    assert tree(disk) == {b"old": b"old"}


def test_the_free_space_of_a_disk_in_the_folder_is_its_own(spawn, disk, ask):
    server = spawn("httpserver.py", disk.parent, "--min-free", "4M")
    for path in "/disk/old", "/disk/new/x":
        assert ask("PUT", path, body=bytes(5 << 20), to=server).status == 507
    assert (
        ask(
            "POST", "/disk/", FORM, form((b'name="f"; filename="f"', bytes(5 << 20))), to=server
        ).status
        == 507
    )
    assert ask("POST", "/disk/", body=bytes(5 << 20), to=server).status == 507
    location = ask(
        "POST", "/disk/", "Upload-Complete: ?0\r\nUpload-Length: 9\r\n", to=server
    ).fields["location"]
    assert append(ask, location, 0, bytes(5 << 20), to=server).status == 507
    assert ask("DELETE", location, to=server).status == 204 and tree(disk) == {b"old": b"old"}


def test_a_file_size_limit_in_the_middle_of_an_upload_is_507(spawn, folder, ask):  # 30
    server = spawn(
        "httpserver.py",
        folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000)),
    )
    assert ask("PUT", "/a.txt", body=DATA, to=server).status == 507
    assert tree(folder) == {b"a.txt": b"hello\n"}


def test_a_quota_that_is_used_up_is_507(spawn, folder, ask, tmp_path):  # 30
    script = tmp_path / "quota.py"
    script.write_text(
        "import errno, os, runpy, stat, sys\nwrite = os.write\n"
        "def within(descriptor, data):\n    if stat.S_ISREG(os.fstat(descriptor).st_mode):\n        raise OSError(errno.EDQUOT, 'quota')\n    return write(descriptor, data)\n"
        f"os.write, sys.argv[0] = within, 'httpserver.py'\nrunpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    assert ask("PUT", "/a.txt", body=DATA, to=spawn(str(script), folder)).status == 507
    assert tree(folder) == {b"a.txt": b"hello\n"}


def test_limits_of_size_and_free_space(spawn, folder, ask):
    server = spawn("httpserver.py", folder, "--max-size", "1k")
    assert [ask("PUT", "/x", body=bytes(n), to=server).status for n in (999, 1000, 1001)] == [
        201,
        204,
        413,
    ]
    assert (
        ask("POST", "/", FORM, form((b'name="f"; filename="f"', bytes(2000))), to=server).status
        == 413
    )
    assert (
        ask("PUT", "/x", body=b"", to=spawn("httpserver.py", folder, "--min-free", "9000T")).status
        == 507
    )
    assert set(tree(folder)) == {b"a.txt", b"x"}


def test_durable_uploads_work(spawn, folder, ask):
    server = spawn("httpserver.py", folder, "--durable")
    assert ask("PUT", "/d/x", body=DATA, to=server).status == 201
    assert (folder / "d" / "x").read_bytes() == DATA


def test_a_folder_that_is_there_need_not_be_one_that_the_server_may_make(
    spawn, folder, ask, tmp_path
):
    """NFS says first that nobody may make a folder there, and not that it exists."""
    (tmp_path / "refusing.py").write_text(
        "import os, runpy, sys\n"
        "def refused(name, **more):\n    raise PermissionError(13, 'Permission denied')\n"
        "os.supports_dir_fd.add(refused)\nos.mkdir, sys.argv[0] = refused, 'httpserver.py'\n"
        f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    (folder / "d").mkdir()
    server = spawn(str(tmp_path / "refusing.py"), folder)
    assert ask("PUT", "/d/x", body=DATA, to=server).status == 201
    assert ask("PUT", "/new/x", body=DATA, to=server).status == 403


def test_a_folder_whose_files_nobody_may_look_at_is_moved_all_the_same(
    spawn, folder, ask, tmp_path
):
    # capset(): also root gets only what the mode of a folder gives its owner
    (tmp_path / "unprivileged.py").write_text(
        "import ctypes, runpy, sys\n"
        "head, nothing = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()\n"
        "assert ctypes.CDLL(None).capset(head, nothing) == 0\nsys.argv[0] = 'httpserver.py'\n"
        f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    (folder / "d" / "listed").mkdir(parents=True)
    (folder / "d" / "listed" / "x").touch()
    (folder / "d" / "listed").chmod(0o444)
    server = spawn(str(tmp_path / "unprivileged.py"), folder)
    try:
        assert ask("MKCOL", "/e/", to=server).status == 201
        assert ask("MOVE", "/d", "Destination: /e/d\r\n", to=server).status == 201
    finally:
        for path in folder.glob("**/listed"):
            path.chmod(0o755)
    assert (folder / "e" / "d" / "listed" / "x").exists()


def test_durable_puts_the_names_of_new_folders_on_the_disk_too(spawn, folder, ask, tmp_path):
    (tmp_path / "told.py").write_text(
        "import os, runpy, sys\nmkdir, fsync = os.mkdir, os.fsync\n"
        "def told_mkdir(name, **more):\n    mkdir(name, **more)\n    os.write(2, f\"mkdir in {os.fstat(more['dir_fd']).st_ino}\\n\".encode())\n"
        "def told_fsync(number):\n    fsync(number)\n    os.write(2, f'fsync of {os.fstat(number).st_ino}\\n'.encode())\n"
        "os.supports_dir_fd.add(told_mkdir)\nos.mkdir, os.fsync, sys.argv[0] = told_mkdir, told_fsync, 'httpserver.py'\n"
        f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    server = spawn(str(tmp_path / "told.py"), folder, "--durable", "--quiet")
    assert (
        ask("PUT", "/d/e/x", body=DATA, to=server).status
        == ask("MKCOL", "/m/", to=server).status
        == 201
    )
    inodes = [
        os.stat(path).st_ino for path in (folder, folder / "d", folder / "d/e/x", folder / "d/e")
    ]
    told = [
        "mkdir in",
        "fsync of",
        "mkdir in",
        "fsync of",
        "fsync of",
        "fsync of",
        "mkdir in",
        "fsync of",
    ]
    where = [0, 0, 1, 1, 2, 3, 0, 0]
    assert re.findall(r"(?:mkdir in|fsync of) \d+", server.stop()) == [
        f"{what} {inodes[number]}" for what, number in zip(told, where)
    ]


def test_a_digest_is_checked_before_the_file_is_put_in_place(ask, folder):
    assert (
        ask("PUT", "/good", f"Repr-Digest: sha-512=:AA==:, {digest(DATA)}\r\n", DATA).status == 201
    )
    assert ask("PUT", "/a.txt", f"Repr-Digest: {digest(DATA)}\r\n", DATA[:-1] + b"?").status == 400
    for claimed, status in (DATA, 201), (b"other", 400):
        chunks = b"%x\r\n%b\r\n0\r\nRepr-Digest: %b\r\n\r\n" % (
            len(DATA),
            DATA,
            digest(claimed).encode(),
        )
        assert (
            ask(
                "PUT",
                f"/trailer{status}",
                "Trailer: Repr-Digest\r\nTransfer-Encoding: chunked\r\n",
                chunks,
                length=False,
            ).status
            == status
        )
    assert ask("PUT", "/good", "Want-Repr-Digest: sha-256=1\r\n", b"x").fields[
        "repr-digest"
    ] == digest(b"x")
    assert (
        set(tree(folder)) == {b"a.txt", b"good", b"trailer201"}
        and (folder / "a.txt").read_bytes() == b"hello\n"
    )


# --- DELETE, MKCOL, MOVE (rule 31) ---
def test_delete(ask, folder):  # 31
    (folder / "full" / "deep").mkdir(parents=True)
    (folder / "full" / "deep" / "x").touch()
    (folder / "full" / "link").symlink_to(folder / "a.txt")
    (folder / "empty").mkdir()
    rows = [
        ("/none", "", 404),
        ("/full/", "", 409),
        ("/a.txt/", "", 404),
        ("/a.txt", 'If-Match: "x"\r\n', 412),
        ("/empty/", "", 204),
        ("/full/?recursive", "", 204),
        ("/", "", 403),
        ("/?recursive", "", 403),
    ]
    assert [(path, fields, ask("DELETE", path, fields).status) for path, fields, _ in rows] == rows
    assert tree(folder) == {b"a.txt": b"hello\n"}
    assert ask("DELETE", "/a.txt").status == 204


def test_a_folder_is_deleted_whatever_somebody_else_deletes_in_it_meanwhile(
    spawn, ask, folder, tmp_path
):
    for name in "a", "b", "c":
        (folder / "full" / name / "deep").mkdir(parents=True)
        (folder / "full" / name / "x").touch()
    script = tmp_path / "meanwhile.py"
    script.write_text(
        "import os, runpy, shutil, sys\nunlink = os.unlink\n"
        "def late(name, dir_fd=None):\n    os.unlink = unlink\n    for other in os.listdir('full'):\n        shutil.rmtree('full/' + other)\n"
        "    unlink(name, dir_fd=dir_fd)\n"
        "os.supports_dir_fd.add(late)\nos.unlink, sys.argv[0] = late, 'httpserver.py'\n"
        f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    assert ask("DELETE", "/full/?recursive", to=spawn(str(script), cwd=folder)).status == 204
    assert os.listdir(folder) == ["a.txt"]


def test_a_folder_that_holds_hidden_files_is_deleted_only_by_who_is_shown_them(spawn, ask, folder):
    (folder / "f" / "deep").mkdir(parents=True)
    (folder / "f" / "seen").touch()
    (folder / "f" / "deep" / ".env").touch()
    assert ask("DELETE", "/f/?recursive").status == 409
    assert set(tree(folder / "f")) == {b"seen", b"deep/.env"}
    assert (
        ask("DELETE", "/f/?recursive", to=spawn("httpserver.py", folder, "--hidden")).status == 204
    )
    (folder / "g").mkdir()
    (folder / "g" / f".six-{'0' * 32}.part").touch()
    assert ask("DELETE", "/g/?recursive").status == 204
    assert os.listdir(folder) == ["a.txt"]


@pytest.mark.parametrize("depth, status", [(249, 204), (1500, 403)])
def test_a_folder_is_deleted_unless_it_is_deeper_than_calls_may_go(depth, status, ask, folder):
    # only programs on this machine make such
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("x", os.O_CREAT, dir_fd=descriptor))
    os.close(descriptor)
    reply, left = ask("DELETE", "/d/?recursive"), sorted(os.listdir(folder))
    subprocess.run(["rm", "-rf", folder / "d"], check=True)  # or pytest could not tidy up
    assert (reply.status, left) == (status, ["a.txt", "d"] if status == 403 else ["a.txt"])
    assert status == 204 or b"more than 250 folders deep" in reply.body


DEEP = 64  # names in a path


def form_of(name):
    part = f'--b\r\nContent-Disposition: form-data; name="folder"; filename="{name}"\r\n\r\n\r\n'
    return "Content-Type: multipart/form-data; boundary=b\r\n", f"{part}--b--\r\n".encode()


def test_no_name_comes_in_deeper_than_64_by_any_method(ask, folder):
    deepest = "/d" * (DEEP - 1)
    assert ask("PUT", f"{deepest}/x").status == 201
    assert ask("MKCOL", f"{deepest}/y").status == 201
    wrong = []
    for method, path, fields, body in (
        ("PUT", f"{deepest}/y/x", "", b""),
        ("PUT", f"{deepest}/y/x", "If-None-Match: *\r\n", b""),
        ("PUT", f"{deepest}/y/x", "Upload-Complete: ?0\r\n", b"x"),
        ("PUT", f"{deepest}/y/y/y/x", "", b""),
        ("POST", f"{deepest}/y/", "", b"x"),
        ("POST", f"{deepest}/y/", *form_of("x")),
        ("POST", "/", *form_of("d/" * DEEP + "x")),
        ("MKCOL", f"{deepest}/y/y/", "", b""),
        ("MOVE", "/a.txt", f"Destination: {deepest}/y/x\r\n", b""),
    ):
        reply = ask(method, path, fields, body)
        if reply.status != 403 or b"more than 64" not in reply.body:
            wrong.append((method, path, reply))
    assert not wrong, wrong
    assert tree(folder) == {b"a.txt": b"hello\n", f"{deepest}/x".encode()[1:]: b""}
    assert os.listdir(folder / f"{deepest}/y"[1:]) == []


def test_a_folder_is_not_moved_down_so_far_that_what_is_in_it_gets_too_deep(ask, folder):
    for path in "/e/" * 2 + "x", "/d" * (DEEP - 3) + "/x", "/c/y/x":
        assert ask("PUT", path.replace("//", "/")).status == 201
    # e/e/x: three names, and two below e
    assert ask("MOVE", "/e", "Destination: " + "/d" * (DEEP - 3) + "/e\r\n").status == 201
    assert ask("MOVE", "/c", "Destination: " + "/d" * (DEEP - 3) + "/e/c\r\n").status == 403
    # where it gets no deeper nobody counts
    assert ask("MOVE", "/d", "Destination: /f\r\n").status == 201
    assert ask("MOVE", "/c", "Destination: /g\r\n").status == 201


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_is_too_deep_is_left_out_of_an_archive_which_the_log_tells(kind, server, ask, folder):
    (folder / "d").joinpath(*["d"] * (DEEP + 1), "e").mkdir(parents=True)
    (folder / "d").joinpath(*["d"] * (DEEP - 2), "x").touch()
    reply = ask("GET", f"/?{kind}")
    assert reply.status == 200 and reply.whole
    zipped = kind == "zip" and zipfile.ZipFile(io.BytesIO(reply.body)).namelist()
    names = [name.rstrip("/") for name in zipped] if zipped else tar_names(reply.body)
    wanted = ["/".join(["d"] * depth) for depth in range(1, DEEP + 1)]
    assert names == ["a.txt", *wanted, "/".join(["d"] * (DEEP - 1)) + "/x"]
    told = server.wait_for("left out of an archive, because (.*): (.*)")
    assert told[1] == "it is more than 64 folders deep there" and told[2] == "d/" * (DEEP + 1)
    # of the folder there it is all
    assert ask("GET", "/" + "d/" * 10 + f"?{kind}").whole


def test_mkcol_and_move(ask, folder):
    assert [ask("MKCOL", path).status for path in ("/f/", "/f/", "/a.txt", "/no/where/", "/")] == [
        201,
        405,
        405,
        409,
        405,
    ]
    (folder / "b").write_bytes(b"b")
    rows = [
        ("/a.txt", "/b", "Overwrite: F\r\n", 412),
        ("/a.txt", "/new", "Overwrite: F\r\n", 201),
        ("/new", "http://localhost/f/x", "", 201),
        ("/f/x", "/b", "", 204),
        ("/b", "http://evil.example/x", "", 502),
        ("/b", "", "", 400),
        ("/b", "/f", "", 409),
        ("/none", "/x", "", 404),
        ("/f", "/f/f", "", 409),
        ("/", "/x", "", 403),
        ("/b", "/no/where", "", 409),
        ("/f", "/g", "Overwrite: F\r\n", 201),
    ]
    assert [
        (old, new, more, ask("MOVE", old, f"Destination: {new}\r\n{more}").status)
        for old, new, more, _ in rows
    ] == rows
    assert b"into itself" in ask("MOVE", "/g", "Destination: /g/f\r\n").body
    assert tree(folder) == {b"b": b"hello\n"} and sorted(os.listdir(folder)) == ["b", "g"]
    os.link(folder / "b", folder / "same")
    assert [ask("MOVE", "/b", f"Destination: {new}\r\n").status for new in ("/same", "/c")] == [
        403,
        201,
    ]
    assert sorted(os.listdir(folder)) == ["c", "g", "same"]


@pytest.mark.parametrize(
    "number",
    [0, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP],
    ids=lambda number: errno.errorcode.get(number, "links"),
)
def test_with_and_without_hard_links_a_new_name_is_the_whole_file_or_nothing(
    number, spawn, ask, folder, tmp_path
):
    (folder / "kept").mkdir()
    (folder / "kept" / "x").write_bytes(b"kept")
    (folder / "kept").chmod(0o555)
    script = tmp_path / "no_links.py"
    script.write_text(
        f"import os, runpy, sys\ndef no_links(*_, **more):\n    raise OSError({number}, 'no links')\n"
        f"os.link, sys.argv[0] = {'no_links' if number else 'os.link'}, 'httpserver.py'\n"
        f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    server = spawn(str(script), folder, preexec_fn=obey_modes)
    assert [ask("PUT", "/b", "If-None-Match: *\r\n", DATA, to=server).status for _ in range(2)] == [
        201,
        412,
    ]
    assert [
        ask("MOVE", old, "Destination: /c\r\nOverwrite: F\r\n", to=server).status
        for old in ("/kept/x", "/b", "/a.txt")
    ] == [403, 201, 412]
    assert tree(folder) == {b"a.txt": b"hello\n", b"c": DATA, b"kept/x": b"kept"}


# --- resuming uploads ---
def begin(ask, path="/", length=None, more="", **to):
    length = len(DATA) if length is None else length
    reply = ask(
        "POST" if path.endswith("/") else "PUT",
        path,
        f"Upload-Complete: ?0\r\nUpload-Length: {length}\r\nContent-Disposition: inline; filename=big\r\n{more}",
        **to,
    )
    assert reply.status == 201, reply
    return reply.fields["location"]


def append(ask, location, offset, data, complete="?1", **to):
    return ask(
        "PATCH",
        location,
        f"Content-Type: application/partial-upload\r\nUpload-Offset: {offset}\r\nUpload-Complete: {complete}\r\n",
        data,
        **to,
    )


def ask_for(ask, location, **to):
    """HEAD of an upload that another connection may still be writing: busy (503) for as long as that has not let go."""
    return until(
        lambda: (reply := ask("HEAD", location, **to)).status != 503 and reply,
        "the old connection to let go",
    )


def test_the_log_does_not_tell_how_an_upload_can_be_changed(ask, server):
    location = begin(ask)
    assert append(ask, location, 0, DATA).status == 201
    shown = re.search("/big.upload=[0-9a-f]{8}", location)[0]
    assert f'"PATCH {shown}... HTTP/1.1" 201 ' in server.stop()


def test_an_upload_in_pieces_is_one_file(ask, folder):
    location = begin(ask, more=f"Repr-Digest: {digest(DATA)}\r\n")
    assert append(ask, location, 0, DATA[:1000], "?0").status == 204
    state = ask("HEAD", location)
    assert (
        state.status,
        state.fields["upload-offset"],
        state.fields["upload-complete"],
        state.fields["upload-length"],
    ) == (204, "1000", "?0", str(len(DATA)))
    assert append(ask, location, 999, DATA[999:]).fields["upload-offset"] == "1000"
    done = append(ask, location, 1000, DATA[1000:])
    assert (done.status, done.fields["upload-complete"], done.fields["location"]) == (
        201,
        "?1",
        "/big",
    )
    assert tree(folder) == {b"a.txt": b"hello\n", b"big": DATA}


def test_a_complete_upload_says_so_as_long_as_its_file_stays(spawn, ask, folder):
    (folder / "big").write_bytes(DATA)
    location = begin(ask, more="X-OC-Mtime: 1500000000\r\n")
    done = append(ask, location, 0, DATA)
    assert (done.status, done.fields["location"]) == (201, "/big%20%281%29")
    after_a_restart = spawn("httpserver.py", folder)
    state = ask("HEAD", location, to=after_a_restart).fields
    assert (
        state["upload-complete"],
        state["upload-offset"],
        state["upload-length"],
        state["location"],
    ) == ("?1", "300000", "300000", "/big%20%281%29")
    assert (
        append(ask, location, len(DATA), b"").status == append(ask, location, 0, DATA).status == 400
    )
    assert ask("DELETE", location).status == 400
    assert (folder / "big (1)").read_bytes() == DATA and (
        folder / "big (1)"
    ).stat().st_mtime // 1 == 1500000000
    assert ask("PUT", "/big%20%281%29", body=DATA).status == 204
    assert ask("HEAD", location).status == 404


def test_an_upload_that_was_cut_goes_on_where_the_server_stands_even_another_server(
    spawn, server, wire, ask, folder
):
    other = spawn("httpserver.py", folder)
    location = begin(ask, "/x")
    connection = wire().send(
        f"PATCH {location} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/partial-upload\r\nUpload-Offset: 0\r\nUpload-Complete: ?1\r\n"
        f"Content-Length: {len(DATA)}\r\n\r\n".encode()
        + DATA[:100000]
    )
    until(lambda: any(len(data) == 100000 for data in tree(folder).values()), "the part")
    state = ask("HEAD", location, to=other)  # the old connection still is open, and may not go on
    assert state.fields["upload-offset"] == "100000"
    connection.send(DATA[100000:200000])
    assert connection.reply().status == 409 and connection.closed()
    server.kill()
    assert append(ask, location, 100000, DATA[100000:], to=other).status == 201
    assert tree(folder) == {b"a.txt": b"hello\n", b"x": DATA}


def test_an_upload_can_be_taken_over_although_its_old_connection_still_sends(
    server, wire, ask, folder
):
    location = ask("PUT", "/x", "Upload-Complete: ?0\r\n").fields["location"]
    old = wire().send(
        f"PATCH {location} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/partial-upload\r\nUpload-Offset: 0\r\nUpload-Complete: ?1\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )

    def go_on():
        with suppress(ConnectionError, TimeoutError):
            while not select.select([old.sock], [], [], 0)[0]:
                old.send(b"40000\r\n%b\r\n" % bytes(0x40000))

    sender = threading.Thread(target=go_on)
    sender.start()
    # its size alone: it grows faster than it could be read
    until(lambda: any(part.stat().st_size for part in folder.glob(".six-*.part")), "the part")
    assert ask_for(ask, location).status == 204
    assert ask("DELETE", location).status == 204
    sender.join()
    assert old.reply().status in (404, 409)
    assert tree(folder) == {b"a.txt": b"hello\n"}


def test_interim_answers_go_to_clients_of_the_same_draft_only(wire, ask):
    request = "PUT /x HTTP/1.1\r\nHost: localhost\r\nUpload-Complete: ?1\r\nContent-Length: 5\r\nUpload-Draft-Interop-Version: {}\r\n\r\nhello"
    connection = wire().send(request.format(8))
    early = connection.reply()
    assert early.status == 104 and "?upload=" in early.fields["location"]
    assert connection.reply().status == 201
    assert wire().send(request.format(7)).reply().status == 204
    assert ask("OPTIONS", "/").fields["accept-patch"] == "application/partial-upload"


def test_a_client_of_the_same_draft_is_told_how_much_has_arrived(wire, ask):
    head = f"PATCH {begin(ask, '/x', 6)} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/partial-upload\r\nUpload-Complete: ?1\r\n"
    connection = wire().send(
        f"{head}Upload-Draft-Interop-Version: 8\r\nUpload-Offset: 0\r\nContent-Length: 6\r\n\r\n123"
    )
    note = connection.reply()
    assert (note.status, note.fields) == (
        104,
        {"upload-draft-interop-version": "8", "upload-offset": "3"},
    )
    assert connection.send("456").reply().status == 201


def test_a_file_keeps_the_time_that_it_has_at_the_client(ask, folder):
    for method, path in ("PUT", "/x"), ("POST", "/"):
        reply = ask(
            method,
            path,
            "X-OC-Mtime: 1234567890\r\nContent-Disposition: inline; filename=y\r\n",
            b"data",
        )
        assert (reply.status, reply.fields["x-oc-mtime"]) == (201, "accepted")
        assert (
            ask("GET", reply.fields["location"]).fields["last-modified"]
            == "Fri, 13 Feb 2009 23:31:30 GMT"
        )
        assert ask("HEAD", reply.fields["location"]).fields["etag"] == reply.fields["etag"]
    tags = {
        ask("PUT", "/x", "X-OC-Mtime: 1234567890\r\n", b"%d" % n).fields["etag"] for n in range(5)
    }
    assert len(tags) == 5  # of one size, one time, and in turn of one inode
    for wrong in "", "-", "1e9", "1.", ".5", "+1", "123456789012", "--1", "nan", "1, 2":
        assert ask("PUT", "/a.txt", f"X-OC-Mtime: {wrong}\r\n", b"data").status == 400, wrong
    assert (folder / "a.txt").read_bytes() == b"hello\n"


@pytest.mark.parametrize(
    "text, ns",
    [
        ("-1.5", -1500000000),
        ("-0.000000001", -1),
        ("1500000000.000000100", 1500000000000000100),
        ("10413792000", 10413792000 * 10**9),  # the year 2300
        ("-3000000000", -3000000000 * 10**9),  # 1874
    ],
)
def test_a_time_may_have_a_fraction_a_sign_and_eleven_digits(text, ns, ask, folder, spawn):
    reply = ask("PUT", "/x", f"X-OC-Mtime: {text}\r\n", b"data")
    kept, wanted = (folder / "x").stat().st_mtime_ns, ns if "." in text else ns // 10**9
    os.utime(folder / "a.txt", ns=(ns, ns))
    if (folder / "a.txt").stat().st_mtime_ns != ns:
        pytest.skip("this file system has no such time")
    assert (kept if "." in text else kept // 10**9) == wanted
    assert (reply.status, reply.fields["x-oc-mtime"]) == (201, "accepted")
    location = begin(ask, "/y", 4, f"X-OC-Mtime: {text}\r\n")
    assert append(ask, location, 0, b"data").fields["x-oc-mtime"] == "accepted"
    assert ask("HEAD", location).fields["upload-complete"] == "?1"
    for path, fields in (
        ("/?tar", ""),
        ("/?zip", ""),
        ("/", ""),
        ("/", "Accept: application/json\r\n"),
    ):
        assert ask("GET", path, fields).whole


@pytest.mark.parametrize(
    "path, condition",
    [
        ("/a.txt", "If-Match: TAG"),
        ("/a.txt", "If-Match: *"),
        ("/a.txt", 'If-None-Match: "x"'),
        ("/a.txt", "If-Unmodified-Since: DATE"),
        ("/new", "If-None-Match: *"),
        ("/new", 'If-None-Match: "x"'),
    ],
)
def test_a_conditional_upload_in_pieces_replaces_only_what_was_there_when_it_began(
    path, condition, ask, folder
):
    there = ask("HEAD", "/a.txt").fields
    begun = f"{condition}\r\nUpload-Complete: ?0\r\n".replace("TAG", there["etag"]).replace(
        "DATE", there["last-modified"]
    )
    first, second, third = (ask("PUT", path, begun, b"some ").fields["location"] for _ in range(3))
    assert append(ask, first, 5, b"first").status in (201, 204)
    assert append(ask, second, 5, b"second").status == 412
    assert (folder / path[1:]).read_bytes() == b"some first"
    assert ask("DELETE", path).status == 204
    assert append(ask, third, 5, b"third").status == (201 if path == "/new" else 412)
    assert not [name for name in tree(folder) if b".six-" in name]


def test_a_condition_that_is_no_date_is_ignored_also_where_folders_are_made(ask, folder):
    for condition, status in ("nonsense", 201), ("Thu, 01 Jan 1970 00:00:00 GMT", 412):
        fields = f"If-Unmodified-Since: {condition}\r\n"
        assert ask("PUT", f"/new/{status}/x", fields, DATA).status == status
    assert tree(folder) == {b"a.txt": b"hello\n", b"new/201/x": DATA}


def test_wrong_resumptions_are_refused_and_change_nothing(ask, folder):
    location = begin(ask, "/x", 10)
    assert append(ask, location, 0, b"12345", "?0").status == 204
    for path, offset, data, complete, status in [
        (location, 5, b"1234567", "?1", 400),
        (location.replace("upload=", "upload=0"), 5, b"1", "?1", 404),
        (location + "&x", 5, b"", "?2", 400),
        ("/x?upload=" + "0" * 32, 0, b"", "?1", 404),
        ("/x?upload=../../etc/passwd&over=new", 0, b"", "?1", 404),
        ("/../x" + location[2:], 5, b"", "?1", 403),
    ]:
        assert append(ask, path, offset, data, complete).status == status, path
    # more than was announced: given up, as the draft says
    assert ask("HEAD", location).status == 404
    location = begin(ask, "/x", 10, f"Repr-Digest: {digest(b'other')}\r\n")
    assert append(ask, location, 0, b"0123456789").status == 400
    location = begin(ask, "/x", 10)
    assert append(ask, location, 0, b"123").status == 400
    location = begin(ask, "/x", 10)
    assert ask("DELETE", location).status == 204
    assert tree(folder) == {b"a.txt": b"hello\n"}


def test_a_resumption_that_gets_too_long_is_refused_before_its_body(spawn, wire, ask, folder):
    server = spawn("httpserver.py", folder, "--max-size", 1000)
    for announced, status in ("", 413), ("Upload-Length: 10\r\n", 400):
        location = ask(
            "PUT", "/x", f"Upload-Complete: ?0\r\n{announced}", b"12345", to=server
        ).fields["location"]
        reply = (
            wire(server)
            .send(
                f"PATCH {location} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/partial-upload\r\nUpload-Offset: 5\r\n"
                "Upload-Complete: ?1\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n"
            )
            .reply()
        )
        assert reply.status == status
    assert tree(folder) == {b"a.txt": b"hello\n"}


@pytest.fixture
def halfway(request, spawn, folder, tmp_path):
    """A server that stops after the link() and before the replace() of its renames until it gets a line on stdin."""
    script = tmp_path / "halfway.py"
    script.write_text(
        getattr(request, "param", "")
        + "import os, runpy, sys\nlink, replace = os.link, os.replace\n"
        "def halfway(*args, **more):\n    link(*args, **more)\n    os.write(2, b'linked\\n')\n    sys.stdin.readline()\n"
        "def later(*args, **more):\n    os.write(2, b'linked\\n')\n    sys.stdin.readline()\n    replace(*args, **more)\n"
        f"os.link, os.replace, sys.argv[0] = halfway, later, 'httpserver.py'\nrunpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    server = spawn(str(script), folder, stdin=subprocess.PIPE)
    yield server
    server.process.stdin.close()


def meanwhile(server, first, second):
    """Two replies: to a request that renames, and to another that comes in the middle of that. (It may have to wait for the first one.)"""
    server.wait_for("linked")
    select.select([second.sock], [], [], 0.3)
    server.process.stdin.write(b"\n\n")
    server.process.stdin.flush()
    done, other = first.reply(), second.reply()
    # where the first one took longer than the second one waits: it is to ask again
    return done, second.send(second.sent).reply() if other.status == 503 else other


def test_a_file_put_while_its_old_one_is_moved_away_stays(halfway, wire, ask, folder):
    first = wire(halfway).send(
        "MOVE /a.txt HTTP/1.1\r\nHost: localhost\r\nDestination: /b\r\nOverwrite: F\r\n\r\n"
    )
    halfway.wait_for("linked")
    second = wire(halfway).send(
        "PUT /a.txt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nnew"
    )
    assert all(reply.status in (201, 204) for reply in meanwhile(halfway, first, second))
    assert tree(folder) == {b"a.txt": b"new", b"b": b"hello\n"}


def test_a_file_deleted_while_it_is_moved_is_moved(halfway, wire, folder):
    first = wire(halfway).send(
        "MOVE /a.txt HTTP/1.1\r\nHost: localhost\r\nDestination: /b\r\nOverwrite: F\r\n\r\n"
    )
    halfway.wait_for("linked")
    second = wire(halfway).send("DELETE /a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert [reply.status for reply in meanwhile(halfway, first, second)] == [201, 404]
    assert tree(folder) == {b"b": b"hello\n"}


def test_a_file_whose_folder_is_deleted_while_it_is_moved_is_moved(halfway, wire, ask, folder):
    assert ask("PUT", "/sub/x", body=b"data").status == 201
    first = wire(halfway).send(
        "MOVE /sub/x HTTP/1.1\r\nHost: localhost\r\nDestination: /b\r\nOverwrite: F\r\n\r\n"
    )
    halfway.wait_for("linked")
    second = wire(halfway).send("DELETE /sub/?recursive HTTP/1.1\r\nHost: localhost\r\n\r\n")
    # it waits for nobody, and is over before the first one goes on
    assert select.select([second.sock], [], [], DEADLINE)[0]
    assert [reply.status for reply in meanwhile(halfway, first, second)] == [201, 204]
    assert tree(folder) == {b"a.txt": b"hello\n", b"b": b"data"}


def test_a_file_moved_to_where_one_is_put_comes_before_or_after_that(halfway, wire, ask, folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_bytes(b"old")
    tag = ask("HEAD", "/sub/x", to=halfway).fields["etag"]
    first = wire(halfway).send(
        f"PUT /sub/x HTTP/1.1\r\nHost: localhost\r\nIf-Match: {tag}\r\nContent-Length: 3\r\n\r\nnew"
    )
    halfway.wait_for("linked")
    second = wire(halfway).send(
        "MOVE /a.txt HTTP/1.1\r\nHost: localhost\r\nDestination: /sub/x\r\n\r\n"
    )
    select.select([second.sock], [], [], 0.3)
    # not between what the other checks and what it replaces
    assert halfway.err.count("linked") == 1
    assert [reply.status for reply in meanwhile(halfway, first, second)] == [204, 204]
    assert tree(folder) == {b"sub/x": b"hello\n"}


NO_LOCKS = {
    "system": "import sys\nsys.modules['fcntl'] = None\n",
    "file system": "import fcntl\ndef flock(*_): raise OSError(38, 'Function not implemented')\nfcntl.flock = flock\n",
}


@pytest.mark.parametrize(
    "halfway", ["", *NO_LOCKS.values()], ids=["locks", *NO_LOCKS], indirect=True
)
def test_of_two_writers_who_replace_the_same_version_one_wins(halfway, wire, ask, folder):
    head = f"PUT /a.txt HTTP/1.1\r\nHost: localhost\r\nIf-Match: {ask('HEAD', '/a.txt', to=halfway).fields['etag']}\r\nContent-Length: 5\r\n\r\n"
    first = wire(halfway).send(head + "first")
    halfway.wait_for("linked")
    second = wire(halfway).send(head + "other")
    assert [reply.status for reply in meanwhile(halfway, first, second)] == [204, 412]
    assert tree(folder) == {b"a.txt": b"first"}


def test_nobody_appends_to_an_upload_that_is_just_being_put_in_its_place(
    halfway, wire, ask, folder
):
    location = ask(
        "POST",
        "/",
        "Upload-Complete: ?0\r\nContent-Disposition: inline; filename=big\r\n",
        to=halfway,
    ).fields["location"]
    head = f"PATCH {location} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/partial-upload\r\nContent-Length: 5\r\n"
    first = wire(halfway).send(f"{head}Upload-Offset: 0\r\nUpload-Complete: ?1\r\n\r\nhello")
    halfway.wait_for("linked")
    second = wire(halfway).send(f"{head}Upload-Offset: 5\r\nUpload-Complete: ?0\r\n\r\nworld")
    done, refused = meanwhile(halfway, first, second)
    assert (done.status, refused.status) == (201, 400)
    assert tree(folder) == {b"a.txt": b"hello\n", b"big": b"hello"}


def test_nobody_goes_on_with_an_upload_that_is_just_being_removed(
    spawn, ask, wire, folder, tmp_path
):
    script = tmp_path / "halfway.py"
    script.write_text(
        "import os, runpy, sys\nunlink = os.unlink\n"
        "def later(*args, **more):\n    os.unlink = unlink\n    os.write(2, b'unlinking\\n')\n    sys.stdin.readline()\n    unlink(*args, **more)\n"
        f"os.unlink, sys.argv[0] = later, 'httpserver.py'\nrunpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    server = spawn(str(script), folder, stdin=subprocess.PIPE)
    location = begin(ask, "/x", to=server)
    first = wire(server).send(f"DELETE {location} HTTP/1.1\r\nHost: localhost\r\n\r\n")
    server.wait_for("unlinking")
    assert append(ask, location, 0, b"lost", "?0", to=server).status == 503
    server.process.stdin.close()
    assert first.reply().status == 204
    assert append(ask, location, 0, b"lost", "?0", to=server).status == 404
    assert tree(folder) == {b"a.txt": b"hello\n"}


@pytest.mark.parametrize("without", NO_LOCKS)
def test_where_there_are_no_locks_an_upload_goes_on_all_the_same(
    without, spawn, ask, folder, tmp_path
):
    (tmp_path / "run.py").write_text(
        f"{NO_LOCKS[without]}import runpy\nrunpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    server = spawn(str(tmp_path / "run.py"), folder)
    location = ask("PUT", "/x", "Upload-Complete: ?0\r\n", b"01234", to=server).fields["location"]
    state = ask("HEAD", location, to=server)
    assert (state.status, state.fields.get("upload-offset")) == (204, "5")
    assert append(ask, location, 5, b"56789", to=server).status == 201
    assert tree(folder) == {b"a.txt": b"hello\n", b"x": b"0123456789"}


STOP_AT = (  # the second call
    "import os, runpy, sys\ndef stops(name):\n    function, calls = getattr(os, name), []\n    def stopped(*args, **more):\n"
    "        calls.append(0)\n        if len(calls) == 2:\n            os.write(2, f'stops at {name}\\n'.encode())\n"
    "            sys.stdin.readline()\n        return function(*args, **more)\n    setattr(os, name, stopped)\n"
    "stops(sys.argv.pop(1))\nsys.argv[0] = 'httpserver.py'\n"
    f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
)


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
def test_who_waits_for_an_upload_changes_nothing_of_the_file_that_it_becomes(
    method, spawn, ask, wire, folder, tmp_path
):
    (tmp_path / "stops.py").write_text(STOP_AT)
    first, other = (
        spawn(str(tmp_path / "stops.py"), "utime", folder, stdin=subprocess.PIPE) for _ in range(2)
    )
    location = begin(ask, "/x", 10, "X-OC-Mtime: 1234567890\r\n")
    more = "Content-Type: application/partial-upload\r\nUpload-Offset: 0\r\nUpload-Complete: ?1\r\n"
    writer = wire(first).send(
        f"PATCH {location} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: 10\r\n\r\n0123456789"
    )
    first.wait_for(
        "stops at utime"
    )  # after it has taken the part, before the finished file gets its time
    waiting = wire(other).send(
        f"{method} {location} HTTP/1.1\r\nHost: localhost\r\n{more if method == 'PATCH' else ''}\r\n"
    )
    select.select([waiting.sock], [], [], 0.3)
    first.process.stdin.close()
    done = writer.reply()
    other.process.stdin.close()
    assert waiting.reply(head=method == "HEAD").status in (204, 400, 503)
    assert (done.status, done.fields["x-oc-mtime"]) == (201, "accepted")
    assert (folder / "x").stat().st_mtime // 1 == 1234567890
    assert ask("HEAD", "/x").fields["etag"] == done.fields["etag"]
    assert ask("HEAD", location).fields["upload-complete"] == "?1"
    assert tree(folder) == {b"a.txt": b"hello\n", b"x": b"0123456789"}


def test_three_who_ask_for_an_upload_while_its_last_byte_arrives_lose_nothing_of_it(
    spawn, server, wire, ask, folder
):
    """Through another server of the folder: its HEAD, PATCH and DELETE wait for the writer, or come before or after it."""
    other, finished = spawn("httpserver.py", folder), 0
    more = "Content-Type: application/partial-upload\r\nUpload-Offset: {}\r\nUpload-Complete: {}\r\nContent-Length: {}\r\n"
    for number in range(100):
        if finished == 8:
            break
        location = begin(ask, f"/x{number}", 10, "X-OC-Mtime: 1234567890\r\n")
        line = f"{location} HTTP/1.1\r\nHost: localhost\r\n"
        writer = wire().send(f"PATCH {line}{more.format(0, '?1', 10)}\r\n012345678")
        until(lambda n=number: b"012345678" in tree(folder).values(), "the part")
        pollers = [wire(other) for _ in range(3)]
        # DELETE comes at another moment of the end each time: mostly it is too late
        writer.send("9")
        if number >= 60:  # a machine that is busy elsewhere: then all of them are
            select.select([writer.sock], [], [], DEADLINE)
        pollers[0].send(f"HEAD {line}\r\n")
        pollers[1].send(f"PATCH {line}{more.format(0, '?0', 0)}\r\n")
        select.select([writer.sock], [], [], number % 4 / 1000)
        pollers[2].send(f"DELETE {line}\r\n")
        done = writer.reply()
        head, patched, deleted = (
            poller.reply(head=poller is pollers[0]).status for poller in pollers
        )
        if done.status == 201:
            finished += 1
            assert 404 not in (head, patched, deleted) and deleted != 204
            assert done.fields["x-oc-mtime"] == "accepted"
            assert (folder / f"x{number}").stat().st_mtime // 1 == 1234567890
            assert ask("HEAD", f"/x{number}").fields["etag"] == done.fields["etag"]
            assert ask("HEAD", location).fields["upload-complete"] == "?1"
        else:  # one of them was first
            assert done.status in (404, 409), done
            state = ask_for(ask, location)
            assert state.status == (404 if deleted == 204 else 204)
            if deleted != 204:
                at = int(state.fields["upload-offset"])
                assert append(ask, location, at, b"0123456789"[at:]).status == 201
    assert finished == 8
    assert all(data in (b"hello\n", b"0123456789") for data in tree(folder).values())


def test_several_who_go_on_with_one_upload_through_two_servers_do_not_spoil_it(
    spawn, server, wire, ask, folder, full
):
    """Each sends some of the rest, as a client does whose link breaks: whole, in part, or in part and then says nothing more."""
    servers, data = [server, spawn("httpserver.py", folder)], os.urandom(2 << 20)
    head = "Content-Type: application/partial-upload\r\nUpload-Offset: {}\r\nUpload-Complete: ?{}\r\nContent-Length: {}\r\n\r\n"

    def goes_on(location, seed):
        chance, silent = random.Random(seed), []
        while True:
            there = chance.choice(servers)
            state = ask("HEAD", location, to=there)
            assert state.status in (204, 503)
            if state.fields.get("upload-complete") == "?1":
                return
            if state.status == 503:
                continue
            start = int(state.fields["upload-offset"])
            end = min(len(data), start + chance.choice((1000, 70000, 500000)))
            connection = wire(there)
            silent.append(connection)
            with suppress(ConnectionError, IndexError):
                connection.send(
                    f"PATCH {location} HTTP/1.1\r\nHost: localhost\r\n"
                    + head.format(start, int(end == len(data)), end - start)
                )
                connection.send(data[start : chance.choice((end, (start + end) // 2))])
                if chance.random() < 0.7:
                    connection.sock.shutdown(socket.SHUT_WR)
                    assert connection.reply().status in (201, 204, 400, 404, 408, 409, 503)

    for number in range(20 if full else 1):
        location = begin(ask, f"/x{number}", len(data), f"Repr-Digest: {digest(data)}\r\n")
        with ThreadPoolExecutor() as at_once:
            list(at_once.map(goes_on, [location] * 3, range(3 * number, 3 * number + 3)))
        assert (folder / f"x{number}").read_bytes() == data
    assert not list(folder.glob(".six-*"))


def test_a_finished_upload_has_the_time_when_it_began_and_others_that_of_their_end(ask, folder):
    before = time.time_ns()
    location = begin(ask, "/x", 10)
    began = int(re.search("&time=([0-9]+)", location)[1])
    assert before <= began <= time.time_ns()
    assert append(ask, location, 0, b"0123456789").status == 201
    assert (folder / "x").stat().st_mtime_ns == began

    def later():  # by the clock that files have, which is some milliseconds late
        (folder / "probe").touch()
        return (folder / "probe").stat().st_mtime_ns > began

    until(later, "another time")
    assert ask("PUT", "/y", body=b"0123456789").status == 201
    assert (folder / "y").stat().st_mtime_ns > began


@pytest.mark.parametrize("mtime", ["", "X-OC-Mtime: 1234567891\r\n", "X-OC-Mtime: -1\r\n"])
def test_a_complete_upload_says_so_on_a_disk_with_coarse_times_too(
    mtime, spawn, ask, folder, tmp_path
):
    (tmp_path / "run.py").write_text(
        "import os, runpy\nutime = os.utime\ndef coarse(file, ns):\n"
        "    utime(file, ns=tuple(max(0, each) // 2000000000 * 2000000000 for each in ns))\nos.utime = coarse\n"
        f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    there = spawn(str(tmp_path / "run.py"), folder)
    location = begin(ask, "/x", 10, mtime, to=there)
    # what has begun is young, whatever time its file will have
    age = int(
        re.search(r"max-age=(\d+)", ask("HEAD", location, to=there).fields["upload-limit"])[1]
    )
    assert age > 600000
    assert append(ask, location, 0, b"0123456789", to=there).status == 201
    assert ask("HEAD", location, to=there).fields["upload-complete"] == "?1"
    assert (folder / "x").stat().st_mtime % 2 == 0


def test_another_file_with_the_inode_of_a_given_up_upload_is_not_taken_for_it(ask, folder):
    location = begin(ask, "/x", 10)
    assert ask("DELETE", location).status == 204
    for fields in "", "Upload-Complete: ?1\r\n", "X-OC-Mtime: 1234567890\r\n":
        assert ask("PUT", "/x", fields, b"other data").status in (201, 204)
        # what an upload with this inode would have got
        stale = f"{location.partition('&file=')[0]}&file={(folder / 'x').stat().st_ino}"
        assert ask("HEAD", stale).status == 404 == append(ask, stale, 0, b"0123456789").status


@contextmanager
def locked(folder):
    """Any local user who may read a folder can lock it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def test_a_folder_that_somebody_else_locks_is_busy_after_a_while_and_nothing_is_lost(ask, folder):
    location = begin(ask, "/x", 10)
    requests = [
        lambda: ask("PUT", "/a.txt", body=b"new"),
        lambda: ask("POST", "/", FORM, form((b'name="f"; filename="f"', b"data"))),
        lambda: ask("DELETE", "/a.txt"),
        lambda: ask("MOVE", "/a.txt", "Destination: /b\r\n"),
        lambda: append(ask, location, 0, b"0123456789"),
    ]
    with locked(folder), ThreadPoolExecutor() as at_once:  # each waits for two seconds
        for reply in at_once.map(lambda request: request(), requests):
            assert reply.status == 503 and reply.fields["retry-after"] == "2"
        assert ask("GET", "/a.txt").body == b"hello\n"
        assert sorted(tree(folder).values()) == [b"0123456789", b"hello\n"]
    # what has arrived is kept, and need not be sent again
    assert ask("HEAD", location).fields["upload-offset"] == "10"
    assert append(ask, location, 10, b"").status == 201
    assert [request().status for request in requests[:4]] == [204, 201, 204, 404]
    assert tree(folder) == {b"f": b"data", b"x": b"0123456789"}


def test_what_waits_for_a_lock_is_not_done_for_a_client_that_has_given_up(
    server, wire, ask, folder
):
    with locked(folder):
        given_up = wire().send("DELETE /a.txt HTTP/1.1\r\nHost: localhost\r\n\r\n")
        given_up.close()
        server.wait_for(r'"DELETE /a\.txt HTTP/1\.1" 503 ')
    assert ask("GET", "/a.txt").body == b"hello\n"


def test_nobody_computes_a_digest_for_a_client_that_has_left(server, wire, folder):
    wanted = "HTTP/1.1\r\nHost: localhost\r\nWant-Repr-Digest: sha-256=1\r\n\r\n"
    with open(folder / "big", "wb") as file:
        file.truncate(4 << 30)
    left = wire().send(f"HEAD /big {wanted}")
    left.close()
    server.wait_for(r'"HEAD /big HTTP/1\.1" 503 ')
    half = wire().send(f"GET /a.txt {wanted}")
    half.sock.shutdown(socket.SHUT_WR)  # as some clients do that have nothing more to send
    assert half.reply().fields["repr-digest"] == digest(b"hello\n")


# reads of digests write a line each, and wait until the file `gate` exists
GATED = """
import os, sys, time
sys.path.insert(0, {root!r})
import httpserver
read_at, httpserver.UNCHANGED, httpserver.LOOK_AFTER = httpserver.read_at, -1, httpserver.PIECE
def gated(descriptor, size, offset):
    if size == httpserver.PIECE:
        os.write(2, b"a read for a digest\\n")
        while not os.path.exists({gate!r}):
            time.sleep(0.01)
    return read_at(descriptor, size, offset)
httpserver.read_at = gated
sys.exit(httpserver.main())
"""


@pytest.fixture
def gated(spawn, folder, tmp_path):
    """A server whose digests wait for a gate, and what opens that."""
    script, gate = tmp_path / "gated.py", tmp_path / "gate"
    script.write_text(GATED.format(root=str(ROOT), gate=str(gate)))
    return spawn(str(script), folder), gate.touch


def ask_for_digest(connection, name):
    fields = "Host: localhost\r\nWant-Repr-Digest: sha-256=1\r\n"
    return connection.send(f"HEAD /{name} HTTP/1.1\r\n{fields}\r\n")


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(4 << 20)
    return path.name


def test_many_digests_at_once_leave_room_for_other_clients_and_the_last_ones_are_left_out(
    gated, wire, ask, folder
):
    server, open_gate = gated
    first = ask_for_digest(wire(server), sparse(folder / "big"))
    server.wait_for("a read for a digest")
    others = [ask_for_digest(wire(server), sparse(folder / f"big{number}")) for number in range(5)]
    assert ask("GET", "/a.txt", to=server).body == b"hello\n"
    assert ask("PUT", "/new", to=server).status == 201
    # the answers without a digest come while the first one waits for its own
    assert all("repr-digest" not in one.reply(head=True).fields for one in others)
    assert server.err.count("a read for a digest") == 1
    open_gate()
    assert first.reply(head=True).fields["repr-digest"] == digest(bytes(4 << 20))


def test_a_file_is_read_once_for_all_who_wait_for_its_digest_and_again_if_the_first_leaves(
    gated, wire, ask, folder
):
    server, open_gate = gated
    leaving = ask_for_digest(wire(server), sparse(folder / "big"))
    server.wait_for("a read for a digest")
    waiting = [ask_for_digest(wire(server), "big") for _ in range(12)]
    leaving.close()
    assert ask("GET", "/a.txt", to=server).body == b"hello\n"
    open_gate()
    for one in waiting:
        assert one.reply(head=True).fields["repr-digest"] == digest(bytes(4 << 20))
    server.wait_for(r'"HEAD /big HTTP/1\.1" 503 ')
    # 16 pieces and the end, after the first one
    assert server.err.count("a read for a digest") == 1 + 17


def test_the_digest_of_a_file_that_was_changed_in_place_is_the_new_one(ask, folder):
    """Size and time are kept: only the time of the change tells it."""
    path = folder / "a.txt"
    info = path.stat()
    until(lambda: time.time() > info.st_ctime + 2.1, "the file to be one that nobody just changes")
    for data in b"hello\n", b"jelly\n":
        path.write_bytes(data)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        assert path.stat().st_mtime_ns == info.st_mtime_ns
        reply = ask("GET", "/a.txt", "Want-Repr-Digest: sha-256=1\r\n")
        assert (reply.body, reply.fields["repr-digest"]) == (data, digest(data))
        changed = path.stat().st_ctime
        until(lambda: time.time() > changed + 2.1, "its digest to be one that is remembered")  # noqa: B023
        assert ask("HEAD", "/a.txt", "Want-Repr-Digest: sha-256=1\r\n").fields[
            "repr-digest"
        ] == digest(data)


def test_runs_of_zeros_take_no_space_and_arrive_whole(ask, folder):
    zeros, rest = bytes(16 << 20), os.urandom(100000)
    data = rest + zeros + rest + zeros
    fields = f"Repr-Digest: {digest(data)}\r\n"
    assert ask("PUT", "/whole", fields, data).status == 201
    location = begin(ask, "/pieces", len(data), fields)
    for start in range(0, len(data), 6 << 20):
        piece, end = data[start : start + (6 << 20)], start + (6 << 20) >= len(data)
        assert ask("HEAD", location).fields["upload-offset"] == str(start)
        assert append(ask, location, start, piece, f"?{int(end)}").status == (201 if end else 204)
    assert ask("POST", "/", FORM, form((b'name="f"; filename="f"', data))).status == 201
    for name in "whole", "pieces", "f":
        assert (folder / name).read_bytes() == data
        assert (folder / name).stat().st_blocks * 512 < 8 << 20


def test_where_a_file_cannot_have_holes_zeros_are_written(spawn, ask, folder, tmp_path):
    (tmp_path / "run.py").write_text(
        "import os, runpy\ndef ftruncate(*_): raise OSError(95, 'Operation not supported')\nos.ftruncate = ftruncate\n"
        f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    data = bytes(1 << 20) + DATA
    assert ask("PUT", "/x", body=data, to=spawn(str(tmp_path / "run.py"), folder)).status == 201
    assert (folder / "x").read_bytes() == data


@pytest.mark.parametrize("call", ["fchmod", "utime"])
def test_where_a_mode_or_time_cannot_be_set_a_file_is_replaced_all_the_same(
    call, spawn, ask, folder, tmp_path
):
    (tmp_path / "run.py").write_text(
        f"import os, runpy\ndef refuse(*_, **__): raise PermissionError(1, 'Operation not permitted')\nos.{call} = refuse\n"
        f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    there = spawn(str(tmp_path / "run.py"), folder)
    assert ask("PUT", "/a.txt", "X-OC-Mtime: 1500000000\r\n", b"new", to=there).status == 204
    assert tree(folder) == {b"a.txt": b"new"}


def test_a_part_is_recognised_in_either_case(spawn, ask, folder):
    """On a disk without case it has both names."""
    there = spawn("httpserver.py", folder, "--hidden")
    for name in f".SIX-{'A' * 32}.PART", f".Six-{'0' * 32}.part", f".six-{'a' * 32}.Part":
        (folder / name).write_bytes(b"half")
        for method in "GET", "PUT", "DELETE":
            assert ask(method, f"/{name}", to=there).status == 403
        assert ask("MOVE", "/a.txt", f"Destination: /{name}\r\n", to=there).status == 403
        assert name.encode() not in ask("GET", "/", to=there).body


def test_old_parts_expire_and_are_never_served(ask, folder):
    old, young, busy = (folder / f".six-{digit * 32}.part" for digit in "012")
    for part in (old, young, busy):
        part.write_bytes(b"x")
    os.utime(old, (1, 1))
    os.utime(busy, (1, 1))  # as its file's time is set a moment before it is put in its place
    with open(busy, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        begin(ask)
        assert not old.exists() and young.exists() and busy.exists()
    assert b".six" not in ask("GET", "/").body + ask("GET", "/?tar").body


def test_a_folder_is_not_looked_through_for_each_upload_into_it(spawn, ask, folder, tmp_path):
    (tmp_path / "told.py").write_text(
        "import os, runpy, sys\nscandir = os.scandir\n"
        "def told(where='.'):\n    os.write(2, f'looks through {where}\\n'.encode())  # whole, whatever else is said\n    return scandir(where)\n"
        "os.supports_fd.add(told)\nos.scandir, sys.argv[0] = told, 'httpserver.py'\n"
        f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    server = spawn(str(tmp_path / "told.py"), folder)
    for path in ("/x", "/y", "/d/x", "/d/y") * 5:
        begin(ask, path, to=server)
    # four when an hour ends meanwhile
    assert 2 <= len(re.findall(r"looks through \d+", server.stop())) <= 4


def test_a_search_for_old_parts_opens_no_young_one(spawn, ask, folder, tmp_path):
    """Its writer may be about to lock it, or, on Windows, to rename it."""
    (tmp_path / "told.py").write_text(
        "import os, runpy, sys\nopen = os.open\n"
        "def told(name, *more, **settings):\n"
        "    os.write(2, f'opens {name}\\n'.encode())\n    return open(name, *more, **settings)\n"
        "os.supports_dir_fd.add(told)\nos.open, sys.argv[0] = told, 'httpserver.py'\n"
        f"runpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    old, young = (folder / f".six-{digit * 32}.part" for digit in "ab")
    for part in (old, young):
        part.write_bytes(b"x")
    os.utime(old, (1, 1))
    server = spawn(str(tmp_path / "told.py"), folder)
    begin(ask, to=server)
    told = server.stop()
    assert f"opens {old.name}" in told and f"opens {young.name}" not in told


def test_an_old_part_that_may_not_be_opened_keeps_no_other_one(spawn, ask, folder):
    parts = [folder / f".six-{number:032x}.part" for number in range(16)]
    for number, part in enumerate(parts):
        part.write_bytes(b"x")
        part.chmod(0o444 if number % 2 else 0o644)
        os.utime(part, (1, 1))
    begin(ask, to=spawn("httpserver.py", folder, preexec_fn=obey_modes))
    assert [part.exists() for part in parts] == [False, True] * 8


# --- archives ---
@pytest.fixture
def full_folder(folder):
    for raw in RAW:
        with open(os.path.join(os.fsencode(folder), raw), "wb") as file:
            file.write(raw)
    (folder / "sub" / ("d" * 200)).mkdir(parents=True)
    (folder / "sub" / ("d" * 200) / "big").write_bytes(DATA)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    (folder / ".hidden").touch()
    return folder


def visible(folder):
    return {name: data for name, data in tree(folder).items() if name not in (b"link", b".hidden")}


def test_tar_has_an_exact_length_and_every_file(ask, full_folder):
    reply = ask("GET", "/?tar")
    assert reply.whole and int(reply.fields["content-length"]) == len(reply.body)
    with tarfile.open(
        fileobj=io.BytesIO(reply.body), encoding="utf-8", errors="surrogateescape"
    ) as archive:
        assert {
            os.fsencode(item.name): archive.extractfile(item).read()
            for item in archive
            if item.isfile()
        } == visible(full_folder)
        assert "empty" in archive.getnames()
    assert "filename=\"www.tar\"; filename*=UTF-8''www.tar" in reply.fields["content-disposition"]


def test_tar_resumes_at_every_kind_of_offset(ask, full_folder):
    whole = ask("GET", "/?tar")
    for start in 0, 1, 511, 512, 513, 5000, 100000, len(whole.body) - 1025, len(whole.body) - 1:
        part = ask("GET", "/?tar", f"Range: bytes={start}-\r\nIf-Range: {whole.fields['etag']}\r\n")
        assert part.status == 206 and part.body == whole.body[start:], start
    assert ask("GET", "/?tar", "Range: bytes=100-199\r\n").body == whole.body[100:200]
    assert ask("GET", "/?tar", f"Range: bytes={len(whole.body)}-\r\n").status == 416
    (full_folder / "more").touch()
    assert (
        ask("GET", "/?tar", f"Range: bytes=5-\r\nIf-Range: {whole.fields['etag']}\r\n").status
        == 200
    )


def test_conditions_on_the_date_of_an_archive_which_has_none_are_ignored(ask):
    date = "Fri, 31 Dec 2100 00:00:00 GMT"
    assert "last-modified" not in ask("HEAD", "/?tar").fields
    assert [
        ask("GET", "/?tar", f"{name}: {date}\r\n").status
        for name in ("If-Modified-Since", "If-Unmodified-Since")
    ] == [200, 200]
    assert ask("GET", "/?tar", f"Range: bytes=5-\r\nIf-Range: {date}\r\n").status == 200


def test_an_archive_of_some_names_holds_these_alone(ask, folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "inner").write_text("inner")
    for name in (b"\xff.bin", b"a+b &c.txt", b"left out"):
        (folder / os.fsdecode(name)).write_bytes(name)
    query = "%FF.bin/a%2Bb%20%26c.txt/sub/..%2F..%2Fetc/../nothing"
    packed = tar_names(ask("GET", f"/?tar={query}").body)
    names = {os.fsdecode(b"\xff.bin"), "a+b &c.txt", "sub", "sub/inner"}
    assert set(packed) == names
    zipped = zipfile.ZipFile(io.BytesIO(ask("GET", f"/?zip={query}").body))
    assert len(zipped.namelist()) == 4 and "left out" not in zipped.namelist()
    every = ask("GET", "/?zip=").body
    assert "left out" in zipfile.ZipFile(io.BytesIO(every)).namelist()


def test_zip_is_whole_and_other_programs_read_it(ask, full_folder):
    reply = ask("GET", "/?zip")
    assert reply.whole and int(reply.fields["content-length"]) == len(reply.body)
    with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:
        assert archive.testzip() is None
        want = {
            name.decode("utf-8")
            if name in RAW[1:] or name.isascii()
            else name.decode("cp437"): data
            for name, data in visible(full_folder).items()
        }
        assert {
            name: archive.read(name) for name in archive.namelist() if not name.endswith("/")
        } == want
        assert "empty/" in archive.namelist()


def obey_modes():
    """For a process to be started as root: without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, so that modes hold for it too."""
    LIBC.prctl(24, 1)
    LIBC.prctl(24, 2)


def test_what_may_not_be_read_is_left_out_of_archives(spawn, folder, ask):
    for name in "locked", "open":
        (folder / name).mkdir()
        (folder / name / "x").touch()
    (folder / "secret").touch(0o000)
    (folder / "locked").chmod(0o000)
    server = spawn("httpserver.py", folder, preexec_fn=obey_modes)
    try:
        tar, packed = (ask("GET", f"/?{kind}", to=server) for kind in ("tar", "zip"))
        assert tar.whole and tar_names(tar.body) == [
            "a.txt",
            "open",
            "open/x",
        ]
        assert packed.whole and zipfile.ZipFile(io.BytesIO(packed.body)).namelist() == [
            "a.txt",
            "open/",
            "open/x",
        ]
        for name in "locked/", "secret":
            server.wait_for(f"may not read it: {name}$")
    finally:
        (folder / "locked").chmod(0o700)


def test_an_archive_whose_folder_changes_meanwhile_ends_short(wire, folder):
    (folder / "big").touch()
    os.truncate(folder / "big", 16 << 20)  # more than the kernel's buffers take
    (folder / "later").write_bytes(bytes(1 << 20))
    (folder / "z").mkdir()
    (folder / "z" / "gone").touch()
    changes = [
        lambda: os.truncate(folder / "later", (1 << 20) - 1),
        (folder / "z" / "new").touch,
        (folder / "z" / "gone").unlink,
    ]
    for kind, change in itertools.product(("tar", "zip"), changes):
        (folder / "z" / "new").unlink(missing_ok=True)
        (folder / "z" / "gone").touch()
        (folder / "later").write_bytes(bytes(1 << 20))
        connection = wire(narrow=True)
        connection.send(f"GET /?{kind} HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.more()
        change()
        assert not connection.reply().whole, kind
        assert connection.closed()


def test_a_part_of_an_archive_is_whole_only_if_it_is_of_the_archive_whose_tag_it_has(
    wire, ask, folder
):
    (folder / "big").touch()
    os.truncate(folder / "big", 16 << 20)
    (folder / "z").mkdir()
    (folder / "z" / "inner").write_bytes(b"x" * 1000)
    whole = ask("GET", "/?tar").body
    end = len(whole) - 1024  # of the last file
    # in its padding, its last byte, another one, the end of its head
    for last in end - 1, end - 25, end - 26, end - 1025:
        assert (
            ask("GET", "/?tar", f"Range: bytes={last - 600}-{last}\r\n").body
            == whole[last - 600 : last + 1]
        )
    connection = wire(narrow=True).send(
        f"GET /?tar HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-{end - 1}\r\n\r\n"
    )
    connection.more()
    (folder / "z" / "aaa").write_bytes(b"moves all that follows")
    assert not connection.reply().whole and connection.closed()


# --- the end: --requests, --once, signals ---
def test_requests_ends_after_so_many(spawn, folder, ask):
    server = spawn("httpserver.py", folder, "--requests", "3")
    assert [ask("GET", "/a.txt", to=server).status for _ in range(3)] == [200] * 3
    assert server.wait() == 0


def test_once_ends_when_one_client_has_the_whole_file_in_however_many_ranges(spawn, folder, ask):
    server = spawn("httpserver.py", folder / "a.txt", "--once")
    assert (
        ask("HEAD", "/a.txt", to=server).status
        == ask("GET", "/a.txt", "Range: bytes=3-\r\n", to=server).status - 6
        == 200
    )
    assert ask("GET", "/other", to=server).status == 404
    assert ask("GET", "/a.txt", "Range: bytes=1-2\r\n", to=server).body == b"el"
    assert server.process.poll() is None
    assert ask("GET", "/a.txt", "Range: bytes=0-0\r\n", to=server).body == b"h"
    assert server.wait() == 0


def test_once_counts_ranges_that_end_at_the_same_moment(spawn, folder, wire, tmp_path):
    (folder / "big").write_bytes(bytes(2000000))
    script = tmp_path / "same_moment.py"
    script.write_text(
        f"import sys, threading\nfrom contextlib import suppress\nsys.path.insert(0, {str(ROOT)!r})\nimport httpserver\n"
        "coalesce, both = httpserver.coalesce, threading.Barrier(2)\n"
        "def together(ranges, gap=0):\n    with suppress(threading.BrokenBarrierError):\n        gap or both.wait(1)\n    return coalesce(ranges, gap)\n"
        "httpserver.coalesce = together\nsys.exit(httpserver.main())\n"
    )
    server = spawn(str(script), folder, "--once")
    halves = [
        wire(server).send(f"GET /big HTTP/1.1\r\nHost: localhost\r\nRange: bytes={half}\r\n\r\n")
        for half in ("0-999999", "1000000-")
    ]
    assert [half.reply().whole for half in halves] == [True, True]
    assert server.wait() == 0


def test_once_counts_a_client_that_closes(spawn, folder):
    for fields in "HTTP/1.0\r\n", "HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n":
        server = spawn("httpserver.py", folder / "a.txt", "--once")
        with server.connect() as sock:
            sock.sendall(f"GET /a.txt {fields}\r\n".encode())
            assert b"".join(iter(lambda: sock.recv(4096), b"")).endswith(b"hello\n")
        assert server.wait() == 0


def test_once_gives_up_with_18(run, folder):
    done = run("httpserver.py", folder / "a.txt", "--once", "--port", 0, "--timeout", "0.2")
    assert done.code == 18 and "nobody has got the whole of it" in done.err


def test_a_single_file_is_all_that_is_served(spawn, folder, ask):
    (folder / "b").touch()
    server = spawn("httpserver.py", folder / "a.txt")
    assert ask("GET", "/", to=server).fields["location"] == "/a.txt"
    assert [ask("GET", path, to=server).status for path in ("/a.txt", "/b", "/.", "/a.txt/")] == [
        200,
        404,
        403,
        404,
    ]
    assert ask("PUT", "/a.txt", body=b"x", to=server).status == 405
    (folder / "link").symlink_to("a.txt")
    assert ask("GET", "/a.txt", to=spawn("httpserver.py", folder / "link")).body == b"hello\n"


def test_ctrl_c_ends_at_once_when_idle_and_cuts_off_what_is_stuck(spawn, folder, wire):
    (folder / "big").write_bytes(bytes(64 << 20))
    server = spawn("httpserver.py", folder)
    idle, stuck = (
        wire(server),
        wire(server, narrow=True).send("GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    )
    stuck.more()
    assert "1 transfer cut off" in server.stop()
    assert idle.closed()
    assert spawn("httpserver.py", folder).stop(signal.SIGTERM)


# --- many, slow, hostile clients ---
def test_a_transfer_that_begins_while_the_last_one_is_given_back_has_its_grace_too(
    spawn, folder, wire, tmp_path
):
    script = tmp_path / "slow.py"
    script.write_text(
        "import collections, os, runpy, sys\n"
        "class Queue(collections.deque):\n    first = True\n    def append(self, item):\n        super().append(item)\n"
        "        if callable(item) and Queue.first:\n            Queue.first = False\n            os.write(2, b'given back\\n')\n            sys.stdin.readline()\n"
        f"collections.deque, sys.argv[0] = Queue, 'httpserver.py'\nrunpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    server = spawn(str(script), folder, stdin=subprocess.PIPE)
    first, second = wire(server), wire(server)
    assert (
        first.send("PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
        .reply()
        .status
        == 201
    )
    server.wait_for("given back")
    # its end wakes the leader
    assert (
        second.send("PUT /y HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\ny")
        .reply()
        .status
        == 201
    )
    assert (
        first.send(
            "PUT /z HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        )
        .reply()
        .status
        == 100
    )
    server.process.stdin.close()
    assert second.send(GET + "\r\n").reply().status == 200
    assert "1 transfer cut off" in server.stop()


def test_idle_and_slow_connections_cost_no_thread(server, ask):
    socks = [server.connect() for _ in range(300)]
    for sock in socks[::2]:
        sock.sendall(b"GET /a.txt HTTP/1.1\r\nHo")
    assert ask("GET", "/a.txt").status == 200
    assert server.status("Threads") < 10
    for sock in socks:
        sock.close()
    until(lambda: server.descriptors() < 30, "the connections to be let go")


def test_a_reader_that_stops_delays_nobody_and_is_hung_up_on(spawn, folder, ask, wire):
    (folder / "big").write_bytes(bytes(20 << 20))
    # longer than a machine under load stands still: the reader below is not to be taken for stuck
    server = spawn("httpserver.py", folder, "--timeout", "5")
    stuck = [
        wire(server, narrow=True).send("GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(30)
    ]
    assert ask("GET", "/big", to=server).whole
    until(lambda: server.err.count("silent for 5 s") == 30, "all to be hung up on")
    assert not stuck[0].reply().whole
    until(lambda: server.status("Threads") < 10, "the threads to end")


def test_a_crawling_upload_is_ended(spawn, folder, wire):
    server = spawn("httpserver.py", folder, "--timeout", "0.5")
    connection = wire(server).send(
        "PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    )
    with suppress(ConnectionError):
        while not select.select([connection.sock], [], [], 0.05)[0]:
            connection.send("x")
    assert connection.reply().status == 408
    server.wait_for('"PUT /x HTTP/1.1" 408 .* "silent for 0.5 s, or slower than 64 bytes a second"')
    assert set(tree(folder)) == {b"a.txt"}


def test_one_client_too_many_gets_503(spawn, folder, wire):
    server = spawn("httpserver.py", folder, "--max-clients", "3")
    kept = [wire(server).send(GET + "\r\n") for _ in range(3)]
    assert [connection.reply().status for connection in kept] == [200] * 3
    for connection in kept:
        connection.send(GET)  # not idle: there is no end to this head
        taken(connection.sock)
    reply = wire(server).reply()
    assert (reply.status, reply.fields["connection"]) == (503, "close") and reply.fields[
        "retry-after"
    ]
    kept.pop().close()
    until(lambda: wire(server).send(GET + "\r\n").reply().status == 200, "room")


def test_one_address_with_slow_heads_does_not_keep_all_others_out(spawn, folder, wire):
    server = spawn("httpserver.py", folder, "--max-clients", "4")
    slow = []
    for _ in range(4):
        slow.append(wire(server).send(GET + "\r\n"))
        assert slow[-1].reply().status == 200
        slow[-1].send(GET)
        taken(slow[-1].sock)
    assert wire(server).reply().status == 503
    for number in 0, 1:
        other = wire(server, source="127.0.0.2").send(GET + "\r\n")
        assert (other.reply().status, slow[number].reply().status) == (200, 503)
        other.send(GET)  # not idle
        taken(other.sock)
    assert wire(server).reply().status == 503


def test_one_address_that_reads_slowly_does_not_keep_all_others_out(spawn, folder, wire):
    (folder / "big").write_bytes(b"x" * 131072)
    server = spawn("httpserver.py", folder, "--max-clients", "4")
    for _ in range(4):
        wire(server, narrow=True).send("GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        server.wait_for("GET /big")
    until(lambda: wire(server, source="127.0.0.2").send(GET + "\r\n").reply().status == 200, "room")
    assert "another client needs the place" in server.stop()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_for_a_new_client_the_connection_that_is_idle_longest_makes_room(
    scheme, spawn, folder, wire
):
    server = spawn("httpserver.py", folder, "--max-clients", "3", *["--tls"] * (scheme == "https"))
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def asked(connection):
        return connection.send(GET + "\r\n").reply().status

    def come():
        connection = wire(server)
        connection.sock = (
            context.wrap_socket(connection.sock) if scheme == "https" else connection.sock
        )
        return connection

    kept = []
    for _ in range(3):
        kept.append(come())
        assert asked(kept[-1]) == 200
    assert asked(kept[0]) == 200  # the second is idle longest now
    new = come()
    assert asked(new) == 200 and kept[1].closed()
    kept[2].send(GET)
    taken(kept[2].sock)
    assert asked(come()) == 200 and kept[0].closed()
    assert kept[2].send("\r\n").reply().status == 200 == asked(new)


def test_without_descriptors_it_pauses_and_recovers(spawn, folder, ask, wire):
    server = spawn(
        "httpserver.py",
        folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)),
    )
    socks = [server.connect() for _ in range(60)]
    server.wait_for("cannot accept .*: pausing")
    for sock in socks:
        sock.close()
    assert ask("GET", "/a.txt", to=server).status == 200


def test_without_threads_what_is_short_is_answered_all_the_same_to_slow_readers_too(
    spawn, folder, wire, tmp_path
):
    (tmp_path / "none.py").write_text(
        'import runpy, sys, threading\ndef none(thread):\n    raise RuntimeError("can\'t start new thread")\n'
        f"threading.Thread.start, sys.argv[0] = none, 'httpserver.py'\nrunpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    (folder / "big").write_bytes(b"x" * 131072)
    server = spawn(str(tmp_path / "none.py"), folder)
    assert wire(server).send("GET /?tar HTTP/1.1\r\nHost: localhost\r\n\r\n").reply().status == 503
    connection = wire(server).send("HEAD /?tar HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.reply(head=True).status == 503 and connection.closed()
    reader, asked = wire(server, narrow=True), 0
    reader.sock.setblocking(False)
    with suppress(BlockingIOError):  # more than the kernel has room for, on both ways
        for asked in itertools.count():  # noqa: B007
            reader.sock.sendall(b"GET /big HTTP/1.1\r\nHost: localhost\r\nX: %15000d\r\n\r\n" % 0)
    reader.sock.settimeout(DEADLINE)
    assert wire(server).send(GET + "\r\n").reply().body == b"hello\n"
    assert asked > 30
    assert all(reader.reply().body == b"x" * 131072 for _ in range(asked))


def test_a_reader_that_stops_within_a_short_answer_is_hung_up_on(spawn, folder, wire):
    (folder / "big").write_bytes(bytes(131072))
    server = spawn("httpserver.py", folder, "--timeout", "0.3")
    reader = wire(server, narrow=True)
    reader.send("GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
    server.wait_for("silent for 0.3 s")
    whole = server.err.count("200 131072\n")
    # of the next answer there is room for some bytes, or for none
    received = b"".join(iter(reader.more, b"")).count(0)
    assert 131072 * whole <= received < 131072 * (whole + 1), server.err


def test_a_client_that_resets_its_connection_after_an_upload_is_one_log_line(spawn, folder, wire):
    server = spawn("httpserver.py", folder)
    for _ in range(5):
        one = wire(server).send("PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
        assert one.reply().status in (201, 204)
        one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()
    log = server.stop()
    assert log.count('"PUT /x HTTP/1.1"') == 5 and "reset" not in log


def test_a_refused_client_that_is_let_go_of_as_it_leaves_is_not_logged_twice(
    spawn, folder, wire, tmp_path
):
    (tmp_path / "few.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport httpserver\nhttpserver.MAX_LINGERING = 2\nsys.exit(httpserver.main())\n"
    )
    server = spawn(str(tmp_path / "few.py"), folder)
    first, second, third = wire(server), wire(server), wire(server)
    assert [connection.send("junk\r\n\r\n").reply().status for connection in (first, second)] == [
        400,
        400,
    ]
    with stopped(server):
        # one too many to be kept open: the first is closed, whose end is to be read next
        third.send("junk\r\n\r\n")
        first.close()
    assert third.reply().status == 400
    assert "left within" not in server.stop()


def test_reset_at_once_and_garbage_leave_it_whole(server, ask):
    for data in [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\0" * 5000,
        b"\r\n" * 5000,
        b"GET",
        os.urandom(5000),
    ] * 10:
        sock = server.connect()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with suppress(ConnectionError):
            sock.sendall(data)
        sock.close()
    assert ask("GET", "/a.txt").status == 200
    until(lambda: server.descriptors() < 30, "the connections to be let go")


def test_cut_at_every_byte_of_a_request_nothing_half_is_stored(server, wire, ask, folder, full):
    request = b"PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n0123456789"
    for end in range(0, len(request), 1 if full else 5):
        wire().send(request[:end]).close()
    until(lambda: tree(folder) == {b"a.txt": b"hello\n"}, "parts to be cleared away")
    assert ask("PUT", "/x", body=b"0123456789").status == 201


def test_killed_in_an_upload_the_old_file_stays(server, wire, folder):
    wire().send("PUT /a.txt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n12345")
    until(lambda: len(tree(folder)) == 2, "the part")
    server.kill()
    assert (folder / "a.txt").read_bytes() == b"hello\n"


# --- a drop box ---
def sender(name):
    return f"Authorization: Basic {b64encode(name.encode() + b':word').decode()}\r\n"


@pytest.fixture
def box(spawn, folder):
    return spawn("httpserver.py", folder, "--drop-box", "--password", "word", "--json")


def test_what_is_handed_in_lies_in_the_senders_folder_and_nothing_is_ever_replaced(
    box, ask, folder
):
    def put(who, path, data, fields="", method="PUT"):
        reply = ask(method, path, sender(who) + fields, data, to=box)
        assert reply.status == 201 and "location" not in reply.fields, reply
        return reply.fields["stored-as"]

    assert put("anna", "/h.txt", b"one") == "h.txt"
    assert put("anna", "/h.txt", b"two") == "h%20%281%29.txt"
    assert put("anna", "/h.txt", b"three", "If-Match: *\r\n") == "h%20%281%29.txt".replace("1", "2")
    assert put("ben", "/h.txt", b"four", f"Repr-Digest: {digest(b'four')}\r\n") == "h.txt"
    assert put("../x y", "/sub/h.txt", b"five") == "sub/h.txt"
    reply = ask(
        "POST", "/", sender("ben") + FORM, form((b'name="f"; filename="h.txt"', b"6")), to=box
    )
    assert reply.body == b"201 Created: stored as h%20%281%29.txt\n"
    assert put("ben", "/new", b"7") == "new"
    for _ in range(2):
        assert ask("MKCOL", "/sub/", sender("ben"), to=box).status == 201
    assert tree(folder) == {
        b"a.txt": b"hello\n",
        b"anna/h.txt": b"one",
        b"anna/h (1).txt": b"two",
        b"anna/h (2).txt": b"three",
        b"ben/h.txt": b"four",
        b"ben/h (1).txt": b"6",
        b"ben/new": b"7",
        b"-x-y/sub/h.txt": b"five",
    }
    lines = [json.loads(line) for line in box.stop().splitlines() if line.startswith("{")]
    told = [line for line in lines if "handed_in" in line]
    assert [(line["by"], line["handed_in"], line["size"], line["verified"]) for line in told] == [
        ("anna", "anna/h.txt", 3, False),
        ("anna", "anna/h (1).txt", 3, False),
        ("anna", "anna/h (2).txt", 5, False),
        ("ben", "ben/h.txt", 4, True),
        ("-x-y", "-x-y/sub/h.txt", 4, False),
        ("ben", "ben/h (1).txt", 1, False),
        ("ben", "ben/new", 1, False),
    ]
    assert told[3]["sha256"] == hashlib.sha256(b"four").hexdigest()
    assert told[1]["name"] == "h.txt" and told[1]["client"] == "127.0.0.1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", told[0]["time"])
    # each in one line: what is no file has the usual one
    texts = [line["text"].partition(" ")[0] for line in lines if "text" in line]
    assert texts == ['"MKCOL', '"MKCOL']


def test_a_drop_box_does_nothing_else_and_does_not_tell_whether_a_name_exists(box, ask, folder):
    assert ask("PUT", "/h.txt", sender("anna"), b"one", to=box).status == 201
    for method, fields in [
        ("GET", ""),
        ("HEAD", ""),
        ("GET", "Accept: application/json\r\n"),
        ("DELETE", ""),
        ("MOVE", "Destination: /b\r\n"),
        ("PATCH", ""),
    ]:
        answers = {
            (reply.status, reply.body)
            for path in (
                "/h.txt",
                "/none",
                "/anna/h.txt",
                "/a.txt",
                "/",
                "/anna/",
                "/?tar",
                "/x?zip",
            )
            for reply in [ask(method, path, sender("anna") + fields, to=box)]
        }
        body = b"403 Forbidden: This is a drop box: files can be added, and nothing else can be done.\n"
        assert answers == {(403, b"" if method == "HEAD" else body)}, method
    page = [
        ask("GET", path, sender("anna") + "Accept: text/html\r\n", to=box) for path in ("/", "/x")
    ]
    assert [each.status for each in page] == [200, 200] and b"a.txt" not in page[0].body
    assert tree(folder) == {b"a.txt": b"hello\n", b"anna/h.txt": b"one"}


def test_in_a_drop_box_a_name_below_ones_own_file_is_answered_like_every_other_one(
    box, ask, folder
):
    assert ask("PUT", "/h.txt", sender("anna"), b"one", to=box).status == 201
    for path, stored in [("/h.txt/x", "h%20%281%29.txt/x"), ("/none/x", "none/x")]:
        reply = ask("PUT", path, sender("anna"), b"two", to=box)
        assert (reply.status, reply.fields["stored-as"]) == (201, stored)
        assert ask("MKCOL", path + "/sub/", sender("anna"), to=box).status == 201
        fields, data = sender("anna") + FORM, form((b'name="folder"; filename="x/y"', b"3"))
        assert ask("POST", path[:-1], fields, data, to=box).status == 201
        assert ask("POST", path, fields, data, to=box).status == 201
    assert tree(folder) == {
        b"a.txt": b"hello\n",
        b"anna/h.txt": b"one",
        **{
            b"anna/%b/%b" % (way, name): data
            for way in (b"h (1).txt", b"none")
            for name, data in ((b"x", b"two"), (b"x (1)/y", b"3"), (b"x (1)/x/y", b"3"))
        },
    }


def test_in_a_drop_box_an_upload_is_resumed_by_its_own_sender_alone(box, ask, folder):
    for stored in "big", "big%20%281%29":
        location = begin(ask, "/", 10, sender("anna"), to=box)
        for method in "HEAD", "DELETE":
            assert ask(method, location, sender("eve"), to=box).status == 403
        more = "Content-Type: application/partial-upload\r\nUpload-Offset: {}\r\nUpload-Complete: {}\r\n"
        first = ask("PATCH", location, sender("anna") + more.format(0, "?0"), b"01234", to=box)
        assert first.status == 204
        assert ask("HEAD", location, sender("anna"), to=box).fields["upload-offset"] == "5"
        done = ask("PATCH", location, sender("anna") + more.format(5, "?1"), b"56789", to=box)
        assert (done.status, done.fields["stored-as"]) == (201, stored)
        state = ask("HEAD", location, sender("anna"), to=box).fields
        assert state["upload-complete"] == "?1" and "location" not in state
    assert sorted(os.listdir(folder / "anna")) == ["big", "big (1)"]


def test_in_a_drop_box_no_changed_url_of_an_upload_replaces_anything(box, ask, folder):
    assert ask("PUT", "/h.txt", sender("anna"), b"one", to=box).status == 201
    location = begin(ask, "/", 3, sender("anna"), to=box)
    tag = ask("PUT", "/i.txt", sender("anna"), b"two", to=box).fields["etag"].strip('"')
    for over in "replace", "new", tag:
        changed = location.replace("over=number", f"over={over}").replace("big?", "h.txt?")
        more = "Content-Type: application/partial-upload\r\nUpload-Offset: 0\r\nUpload-Complete: ?1\r\n"
        assert ask("PATCH", changed, sender("anna") + more, b"bad", to=box).status == 403, over
    assert (folder / "anna" / "h.txt").read_bytes() == b"one"


def test_without_a_login_the_sender_names_himself_or_is_his_address(spawn, ask, folder, run):
    box = spawn("httpserver.py", folder, "--drop-box", "--password", "word")
    fields = sender("any") + "Sender: Ben\r\n"  # the name in the addresses that it prints
    assert ask("PUT", "/x", fields, b"0", to=box).status == 201
    assert os.listdir(folder / "Ben") == ["x"]
    shutil.rmtree(folder / "Ben")
    box = spawn("httpserver.py", folder, "--drop-box")
    assert ask("PUT", "/x", "Sender: J%C3%BCrgen\r\n", b"1", to=box).status == 201
    assert ask("PUT", "/x", "Sender: ..\r\n", b"2", to=box).status == 201
    assert ask("PUT", "/x", "Sender: nul.txt\r\n", b"3", to=box).status == 201
    assert ask("PUT", "/x", "", b"4", to=box).status == 201
    assert set(os.listdir(folder)) == {"a.txt", "Jürgen", "-", "_nul.txt", "127.0.0.1"}
    assert "handed in by Jürgen: Jürgen/x, 1 bytes, verified=no" in box.stop()
    for words, text in (["--read-only"], "exclude each other"), ([folder / "a.txt"], "one file"):
        done = run("httpserver.py", "--drop-box", "--port", "0", *words, cwd=folder)
        assert done.code == 2 and text in done.err


# --- the command line, other systems, several servers ---
def test_the_log_goes_to_a_file_or_nowhere(spawn, folder, ask, tmp_path):
    log = tmp_path / "access.log"
    log.write_text("old\n")
    ask("GET", "/a.txt", to=spawn("httpserver.py", folder, "--log", log))
    until(
        lambda: re.fullmatch(
            r'old\n127\.0\.0\.1 - - \[.*\] "GET /a\.txt HTTP/1\.1" 200 6\n', log.read_text()
        ),
        "the line",
    )
    quiet = spawn("httpserver.py", folder, "--quiet")
    ask("GET", "/a.txt", to=quiet)
    assert "GET" not in quiet.stop()


def test_lines_that_the_log_has_no_room_for_are_counted_in_it(spawn, folder, ask, tmp_path):
    log = tmp_path / "access.log"
    server = spawn("httpserver.py", folder, "--log", log)

    def room(size):
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    room(10)
    ask("GET", "/lost", to=server)
    said = "cannot write the log (File too large): lines are lost until that works again\n"
    server.wait_for(re.escape(said))
    ask("GET", "/a.txt", to=server)
    room(10)
    ask("GET", "/lost", to=server)
    room(resource.RLIM_INFINITY)
    while "/there" not in log.read_text():
        ask("GET", "/there", to=server)
    beginning, lost, count, rest = re.split(
        r"\n(\[.*\] lines that are lost here: (\d+)\n)", log.read_text()
    )
    assert lost and len(beginning) == 10 and "/lost" not in beginning
    assert server.stop().count(said) == 1
    requests = int(re.search(r"stopped: (\d+) requests", server.err)[1])
    assert int(count) + log.read_text().count("GET /") == requests


def test_what_is_said_about_wrong_command_lines(run, folder):
    for args, code, words in [
        (["nowhere"], 26, "cannot share nowhere"),
        (["--port", "99999"], 2, "65535"),
        (["--header", "no"], 2, "NAME: VALUE"),
        (["--header", "A: b\r\nC: d"], 2, "NAME: VALUE"),
        (["--max-size", "big"], 2, "500k"),
        (["--host", "192.0.2.1", "--open"], 45, "not an address of this machine"),
        (["--log", "nowhere/log"], 23, "cannot write the log"),
    ]:
        done = run("httpserver.py", *args, cwd=folder)
        assert (
            done.code == code
            and words in done.err
            and re.search("error: .*\nwhy: .*\ntry: ", done.err)
        ), (args, done)


def test_nowhere_to_say_where_it_listens_is_23(folder):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-W", "error", ROOT / "httpserver.py", folder, "--port", "0"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 23 and re.fullmatch("error: .*\nwhy: .*\ntry: .*\n", done.stderr), (
        done
    )


def test_dual_stack_and_ipv6(spawn, folder):
    server = spawn("httpserver.py", folder, "--host", "::", "--open")
    for host in "127.0.0.1", "::1":
        with socket.create_connection((host, server.port)) as sock:
            sock.sendall((GET + "Connection: close\r\n\r\n").encode())
            assert b"200 OK" in sock.recv(4096)
    server.wait_for(r"^127\.0\.0\.1 - - ")
    server.wait_for(r"^::1 - - ")


def test_it_works_without_dir_fd_and_sendfile_as_on_windows(tmp_path, folder, spawn, ask, wire):
    (folder / "big").write_bytes(DATA * 3)
    (folder / "link").symlink_to("/etc")
    script = tmp_path / "bare.py"
    script.write_text(
        f"import os, runpy, sys\ndel os.sendfile, os.pread, os.fork\nos.supports_dir_fd.clear()\nsys.argv[0] = 'httpserver.py'\nrunpy.run_path({str(ROOT / 'httpserver.py')!r}, run_name='__main__')\n"
    )
    server = spawn(str(script), folder)
    assert ask("GET", "/big", to=server).body == DATA * 3
    assert ask("PUT", "/n/x", body=DATA, to=server).status == 201
    assert (
        ask("POST", "/", FORM, form((b'name="f"; filename="a.txt"', b"x")), to=server).status == 201
    )
    assert b"big" in ask("GET", "/", to=server).body
    assert ask("GET", "/link/passwd", to=server).status == 403
    assert ask("GET", "/../etc/passwd", to=server).status == 403
    assert len(tar_names(ask("GET", "/?tar", to=server).body)) == 5
    assert [
        ask("MKCOL", "/m/", to=server).status,
        ask("MOVE", "/m", "Destination: /k\r\n", to=server).status,
        ask("DELETE", "/n/?recursive", to=server).status,
    ] == [201, 201, 204]
    location = begin(ask, "/r", to=server)
    assert append(ask, location, 0, DATA, to=server).status == 201


def test_trace_shows_the_wire_and_masks_secrets(spawn, folder, ask):
    server = spawn("httpserver.py", folder, "--trace-hex")
    ask("GET", "/a.txt", "Authorization: Basic c2VjcmV0\r\n", to=server)
    server.wait_for(r"#\d+ < recv \d+ of at most .*")
    server.wait_for(r"#\d+ > send \d+ of \d+ bytes")
    assert "c2VjcmV0" not in server.err


NGINX = """daemon off; master_process off; pid {here}/pid; error_log {here}/error.log;
events {{}}
http {{ access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;
upstream both {{ server 127.0.0.1:{first}; server 127.0.0.1:{second}; }}
server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://both; proxy_http_version 1.1; proxy_set_header Host 127.0.0.1; proxy_set_header X-Forwarded-Host $host;
proxy_set_header Connection ""; }} }} }}"""
HAPROXY = """defaults
  mode http
  timeout connect 5s
  timeout client 20s
  timeout server 20s
listen both
  bind 127.0.0.1:{port}
  http-request set-header X-Forwarded-Host %[req.hdr(Host)]
  http-request set-header Host 127.0.0.1
  server first 127.0.0.1:{first}
  server second 127.0.0.1:{second}
"""


@pytest.mark.parametrize(
    ("program", "config"),
    [
        pytest.param(
            command,
            config,
            id=command[0],
            marks=pytest.mark.skipif(not shutil.which(command[0]), reason=f"needs {command[0]}"),
        )
        for command, config in ((["nginx", "-c"], NGINX), (["haproxy", "-q", "-db", "-f"], HAPROXY))
    ],
)
def test_behind_a_proxy_two_servers_of_one_folder_are_one(
    program, config, spawn, folder, ask, tmp_path
):
    first, second, port = (
        spawn("httpserver.py", folder),
        spawn("httpserver.py", folder),
        free_port(),
    )
    (tmp_path / "config").write_text(
        config.format(here=tmp_path, first=first.port, second=second.port, port=port)
    )
    process = subprocess.Popen([*program, tmp_path / "config"], stderr=subprocess.PIPE)
    try:
        front = type(
            "Front", (), {"connect": lambda self: socket.create_connection(("127.0.0.1", port), 20)}
        )()

        def up():
            with suppress(ConnectionError):
                return front.connect().close() is None

        until(up, program[0])
        origin = "Origin: http://localhost\r\n"
        location = begin(ask, "/shared", len(DATA), origin, to=front)
        for start in range(0, len(DATA), 100000):
            chunk = DATA[start : start + 100000]
            reply = append(
                ask, location, start, chunk, "?1" if start + 100000 >= len(DATA) else "?0", to=front
            )
            assert reply.status in (201, 204), reply
        assert {ask("HEAD", location, to=front).fields["upload-complete"] for _ in range(4)} == {
            "?1"
        }
        assert len({ask("GET", "/shared", to=front).fields["etag"] for _ in range(4)}) == 1
        assert {ask("GET", "/shared", to=front).body for _ in range(4)} == {DATA}
        assert (
            ask(
                "PUT",
                "/shared",
                "Upload-Complete: ?1\r\nUpload-Draft-Interop-Version: 8\r\n",
                DATA,
                to=front,
            ).status
            == 204
        )
        assert ask("DELETE", "/shared", "Origin: http://evil.example\r\n", to=front).status == 403
        assert len({ask("HEAD", "/?tar", to=front).fields["etag"] for _ in range(4)}) == 1
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
    first.wait_for("PATCH")
    second.wait_for("PATCH")


def test_copied_alone_into_an_empty_folder_it_serves(alone, spawn, ask):
    script = alone("httpserver.py")
    server = spawn(script, cwd=script.parent)
    assert b"httpserver.py" in ask("GET", "/", to=server).body
    help_text = subprocess.run(
        [sys.executable, "-I", script, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert (
        "python3 httpserver.py --read-only" in help_text
        and "draft-ietf-httpbis-resumable-upload-10" in help_text
    )


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_can_do_all_that_the_docstring_says(server, folder, tmp_path):
    (folder / "folder").mkdir()
    (folder / "folder" / "f").write_bytes(DATA)
    (tmp_path / "new.txt").write_bytes(DATA)
    root = f"http://127.0.0.1:{server.port}"

    def curl(*args):
        return subprocess.run(
            ["curl", "-sS", "-f", *args], cwd=tmp_path, capture_output=True, check=True
        ).stdout

    assert b"a.txt" in curl(root + "/", "-H", "Accept: text/plain")
    curl("-T", "new.txt", root + "/docs/")
    curl("-F", "file=@new.txt", root + "/")
    assert (folder / "docs" / "new.txt").read_bytes() == (folder / "new.txt").read_bytes() == DATA
    curl("-X", "DELETE", root + "/new.txt")
    curl("-X", "MKCOL", root + "/made/")
    curl("-X", "MOVE", "-H", "Destination: /other", root + "/made")
    curl("-r", "0-99999", "-o", "folder.tar", root + "/folder/?tar")
    curl("-C", "-", "-o", "folder.tar", root + "/folder/?tar")
    with tarfile.open(tmp_path / "folder.tar") as archive:
        assert archive.extractfile("f").read() == DATA
    curl("-z", str(folder / "a.txt"), root + "/a.txt")
    assert sorted(os.listdir(folder)) == ["a.txt", "docs", "folder", "other"]


@pytest.mark.skipif(not shutil.which("wget"), reason="needs wget")
def test_wget_follows_the_links_of_a_folder_and_loads_no_archive(server, folder, tmp_path):
    (folder / "sub").mkdir()
    (folder / "sub" / "ü b.txt").write_bytes(DATA)
    root = f"http://127.0.0.1:{server.port}/"
    subprocess.run(["wget", "-q", "-r", "-nH", root], cwd=tmp_path / "", check=True)
    assert (tmp_path / "sub" / "ü b.txt").read_bytes() == DATA
    log = server.stop()
    assert '"GET /sub/ HTTP/1.1" 200' in log and "?" not in log


def test_a_client_that_leaves_before_100_continue_is_no_fault_of_the_server(spawn, folder):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    server = spawn("httpserver.py", folder, "--tls")
    with context.wrap_socket(server.connect()) as sock:
        sock.sendall(GET.encode() + b"\r\n")
        assert sock.recv(100)
        with stopped(server):  # until all is there: the head, and the end
            sock.sendall(
                b"PUT /x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
            )
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
    assert server.wait_for('"PUT /x HTTP/1.1" (.*)')[1].startswith('400 - "left in the body')


@pytest.mark.parametrize("path, status", [("/a.txt/", 404), ("/%00/", 400)])
def test_a_form_to_no_folder_is_refused_before_it_is_sent(wire, path, status):
    asked = wire().send(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{FORM}"
        "Content-Length: 100000\r\nExpect: 100-continue\r\n\r\n"
    )
    assert asked.reply().status == status


@pytest.mark.parametrize("option", [[], ["--drop-box"]])
def test_a_form_that_stores_nothing_makes_no_folder(spawn, ask, folder, option):
    there = spawn("httpserver.py", folder, *option)
    for fields, body in (
        ("Content-Type: multipart/form-data\r\n", b""),
        (FORM, form((b'name="more"', b"no file"))),
        (FORM, b"--XX\r\nbroken"),
    ):
        assert ask("POST", "/a/b/", fields, body, to=there).status >= 400
    assert os.listdir(folder) == ["a.txt"]


def test_an_upload_without_a_time_is_not_told_that_its_time_was_accepted(ask):
    for fields, said in ("", None), ("X-OC-Mtime: 1500000000\r\n", "accepted"):
        fields += "Upload-Complete: ?1\r\n"
        assert ask("PUT", "/x", fields, b"x").fields.get("x-oc-mtime") == said


def test_a_worker_without_a_task_keeps_no_file_of_the_last_one_open(spawn, folder):
    with open(folder / "big", "wb") as file:
        file.truncate(1 << 30)
    server = spawn("httpserver.py", folder)
    with server.connect() as sock:
        sock.sendall(b"GET /?tar HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    (folder / "big").unlink()

    def open_files():
        return [os.path.realpath(each) for each in Path(f"/proc/{server.pid}/fd").iterdir()]

    until(lambda: not [each for each in open_files() if "deleted" in each], "the file to be closed")


def test_a_part_of_an_archive_opens_no_file_that_follows(run, tmp_path):
    (tmp_path / "cut.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport httpserver\n"
        "def pieces():\n    yield b'abcde'\n    yield b'fghij'\n    sys.exit('opens the next')\n"
        "print(*httpserver.cut(pieces(), 3, 7), *httpserver.cut(pieces(), 0, 10))\n"
    )
    told = run(str(tmp_path / "cut.py"))
    assert (told.code, told.out, told.err) == (0, b"b'de' b'fg' b'abcde' b'fghij'\n", "")


def test_of_a_large_form_to_a_long_path_the_answer_names_a_few_files(ask, folder):
    path = "/" + "/".join([f"{'a' * 200}"] * 10) + "/"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%d"\r\n\r\n\r\n'
    form = b"".join(part % number for number in range(200)) + b"--b--\r\n"
    reply = ask("POST", path, "Content-Type: multipart/form-data; boundary=b\r\n", form)
    assert reply.status == 201 and reply.fields["location"] == path + "0"
    assert reply.body.endswith(f"{path}9 and 190 more\n".encode()) and len(reply.body) < 11 * len(
        path
    )
    assert len(tree(folder)) == 201


def test_the_page_of_a_deep_folder_does_not_repeat_its_path_for_each_folder_above_it(ask, folder):
    names = [f"{'ü' * 60}{number}" for number in range(20)]
    folder.joinpath(*names).mkdir(parents=True)
    path = "/" + "/".join(url(name.encode()) for name in names) + "/"
    page = ask("GET", path).body.decode()
    above = re.findall(r'<a href="([./]*)">(.*?)</a>', page)
    assert above[1:] == [("../" * (19 - up) or "./", name) for up, name in enumerate(names)]
    assert len(page) - len(ask("GET", "/").body) < 8 * len(path)


def test_a_page_shows_folders_first_and_each_kind_by_name_whatever_the_case(ask, folder):
    (folder / "a.txt").unlink()
    for name in ("b", "Ä", "ä", "z", "Z", "A", "a"):
        (folder / f"{name}-file").touch()
        (folder / f"{name}-folder").mkdir()
    shown = re.findall(r"<td><a href=.*?>(.*?)/?</a>", ask("GET", "/").body.decode())
    names = ["A", "a", "Ä", "ä", "b", "Z", "z"]
    assert shown == [f"{name}-folder" for name in names] + [f"{name}-file" for name in names]
    listed = json.loads(ask("GET", "/", "Accept: application/json\r\n").body)
    assert [entry["name"] for entry in listed] == sorted(shown)


def test_listings_that_nobody_reads_hold_no_facts_of_their_files(server, ask, folder, wire):
    for number in range(4000):
        os.mknod(folder / f"{number:06}")
    kinds = ["text/html", "application/json", "text/plain"]
    lists = [ask("GET", "/", f"Accept: {kind}\r\n").body for kind in kinds]
    assert all(lists[0].index(b">%06d<" % n) < lists[0].index(b">%06d<" % (n + 1)) for n in (0, 9))
    assert [entry["name"] for entry in json.loads(lists[1])][:3] == ["000000", "000001", "000002"]
    assert lists[2].split() == [b"%06d" % number for number in range(4000)] + [b"a.txt"]
    before, asked = server.status("VmRSS"), []
    for number in range(6):
        head = f"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: {kinds[number % 2]}\r\n\r\n"
        asked.append(wire(narrow=True).send(head))
    for connection in asked:  # each has begun
        while b"000009" not in connection.rest:
            connection.more()
    # half a megabyte for each, its thread too; with the facts it is three
    assert server.status("VmRSS") - before < 6 * 1500


def uploads(wire, server, count, fields="", source="127.0.0.1"):
    """How many of so many uploads are taken at once, none of which goes on. The others are told to come later."""
    taken = 0
    for number in range(count):
        connection = wire(server, source=source).send(
            f"PUT /{number} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        )
        status = connection.reply().status
        assert status in (100, 503)
        taken += status == 100
    return taken


@pytest.mark.parametrize("way", ["directly", "through a proxy", "from one IPv6 network"])
def test_slow_uploads_from_one_address_leave_room_for_its_answers_and_for_all_others(
    way, spawn, folder, wire, ask
):
    # longer than the test takes under load: an upload that ends gives its place to another
    server = spawn("httpserver.py", folder, "--trust-proxy", "127.0.0.9", "--timeout", "600")
    hop = "127.0.0.9" if way != "directly" else "127.0.0.1"
    form = "2001:db8:0:{}::{}" if way == "from one IPv6 network" else "192.0.2.{}"
    mine = [f"X-Forwarded-For: {form.format(7, number)}\r\n" for number in (1, 2)]
    other = f"X-Forwarded-For: {form.format(8, 1)}\r\n"
    if way != "from one IPv6 network":
        mine[1] = mine[0]
    taken = [uploads(wire, server, 110, fields, hop) for fields in mine]
    assert taken[0] == 110 and 160 < sum(taken) < 180
    # a folder's page takes a thread: by the same address, and by others
    for source, fields in (hop, mine[0]), (hop, other), ("127.0.0.2", ""):
        page = wire(server, source=source).send(
            f"GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"
        )
        assert page.reply().status == 200
        put = wire(server, source=source)
        put.send(f"PUT /x HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: 1\r\n\r\nx")
        is_own = source == hop and (way == "directly" or fields == mine[0])
        assert put.reply().status == 503 if is_own else put.reply().status in (201, 204)
    for source in ("127.0.0.3", "127.0.0.4", "127.0.0.5"):
        assert uploads(wire, server, 20, source=source) == 20


# --- behind a proxy ---
FORWARDED = [
    # what a request from the trusted proxy 127.0.0.1 says, and whose it is
    ("", "127.0.0.1"),
    ("X-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1"),
    ("X-Forwarded-For: 192.0.2.1:4711\r\n", "192.0.2.1"),
    ("X-Forwarded-For: 6.6.6.6, 192.0.2.1\r\n", "192.0.2.1"),
    ("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1"),
    ("X-Forwarded-For: 6.6.6.6, 192.0.2.1, 127.0.0.1, 10.0.0.1\r\n", "192.0.2.1"),
    ("X-Forwarded-For: 127.0.0.1\r\n", "127.0.0.1"),
    ("X-Forwarded-For: 192.0.2.1" + ", 10.0.0.1" * 2000 + "\r\n", "127.0.0.1"),
    ("X-Forwarded-For: 2001:DB8:0::1\r\n", "2001:db8::1"),
    ("X-Forwarded-For: [2001:db8::1]:4711\r\n", "2001:db8::1"),
    ("X-Forwarded-For: ::ffff:192.0.2.1\r\n", "192.0.2.1"),
    *(
        (f"X-Forwarded-For: 192.0.2.1, {entry}\r\n", "127.0.0.1")
        for entry in (
            "unknown",
            "",
            "192.0.2",
            "192.0.2.256",
            "192.0.2.2 evil",
            "fe80::1%evil",
            '" - - [x]',
            "\xb2.0.0.1",
            "[192.0.2.2",
            "1" * 5000,
        )
    ),
    ('Forwarded: for=6.6.6.6, For="[2001:db8::1]:47";proto=http\r\n', "2001:db8::1"),
    ("Forwarded: by=10.0.0.1;for=192.0.2.1;host=a\r\n", "192.0.2.1"),
    ('Forwarded: for="192.0.2.1:80"\r\n', "192.0.2.1"),
    # an entry that the client left open, and a host that looks like one
    ('Forwarded: for="x, for=192.0.2.1\r\n', "192.0.2.1"),
    ('Forwarded: for=192.0.2.1;host="a,for=6.6.6.6"\r\n', "127.0.0.1"),
    ('X-Forwarded-For: "192.0.2.2"\r\n', "127.0.0.1"),
    ('Forwarded: host="a,for=6.6.6.6;x=";for=192.0.2.1\r\n', "127.0.0.1"),
    ('Forwarded: for=192.0.2.1;host="a,for=6.6.6.6;b=\\"";proto=http\r\n', "127.0.0.1"),
    ("Forwarded: for=_hidden\r\n", "127.0.0.1"),
    ("Forwarded: proto=http\r\n", "127.0.0.1"),
    # the client sent one of them, and who knows which
    ("Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 192.0.2.1\r\n", "127.0.0.1"),
    ("Forwarded: for=192.0.2.1\r\nX-Forwarded-For: 192.0.2.1\r\n", "192.0.2.1"),
    ("X-Real-IP: 6.6.6.6\r\n", "127.0.0.1"),
]


def test_whose_a_request_is_the_last_entry_of_a_trusted_proxy_tells(spawn, folder, wire):
    server = spawn("httpserver.py", folder, "--trust-proxy", "127.0.0.1", "--trust-proxy=10.0.0.1")
    connection = wire(server)  # one for all: each request is for somebody else
    for number, (fields, _) in enumerate(FORWARDED):
        connection.send(f"HEAD /{number} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
        assert connection.reply(head=True).status == 404
    server.wait_for(f"HEAD /{len(FORWARDED) - 1} ")
    told = re.findall(r'^(\S+) - - .* "HEAD /(\d+) HTTP/1.1" 404', server.err, re.M)
    wrong = [
        (*FORWARDED[int(number)], host)
        for host, number in told
        if host != FORWARDED[int(number)][1]
    ]
    assert not wrong and len(told) == len(FORWARDED), wrong


def test_what_others_than_the_trusted_proxy_say_of_their_address_counts_for_nothing(
    spawn, folder, wire
):
    server = spawn("httpserver.py", folder, "--trust-proxy", "127.0.0.9")
    head = "GET /a.txt HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
    assert wire(server).send(head).reply().status == 200
    server.wait_for("^127.0.0.1 - - ")
    assert "6.6.6.6" not in server.err


def test_a_proxy_to_be_trusted_is_an_address(run, folder):
    for text in "localhost", "10.0.0.0/8", "":
        done = run("httpserver.py", folder, "--port", "70000", "--trust-proxy", text)
        assert done.code == 2
    done = run("httpserver.py", folder, "--trust-proxy", "localhost", "--requests", "x")
    assert "'localhost' is not an IP address" in done.err


def login(connection, password, fields=""):
    code = b64encode(f"any:{password}".encode()).decode()
    head = f"GET /a.txt HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {code}\r\n"
    return connection.send(f"{head}{fields}\r\n").reply().status


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_ten_wrong_passwords_through_a_proxy_lock_out_only_the_network_that_sent_them(
    scheme, spawn, folder, wire
):
    server = spawn(
        "httpserver.py",
        folder,
        *["--password", "right", "--trust-proxy", "127.0.0.1"],
        *["--tls"] * (scheme == "https"),
    )
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def come():
        connection = wire(server)
        if scheme == "https":
            connection.sock = context.wrap_socket(connection.sock)
        return connection

    connection = come()

    def tried(password, client):
        return login(connection, password, f"X-Forwarded-For: {client}\r\n")

    assert [tried("wrong", f"2001:db8::{n:x}") for n in range(1, 11)] == [401] * 10
    assert tried("right", "2001:db8::ffff") == 429
    assert tried("right", "2001:db8:0:1::1") == tried("right", "192.0.2.1") == 200
    # entries that are none count for the proxy itself, which locks out nobody who is named
    assert [tried("wrong", "nobody") for n in range(10)] == [401] * 10
    assert tried("right", "nobody") == 429 and tried("right", "192.0.2.1") == 200
    # nor when it comes again, which under TLS is judged before the handshake
    assert login(come(), "right", "X-Forwarded-For: 192.0.2.1\r\n") == 200


PROXIES = [
    pytest.param(
        [*command],
        config,
        marks=pytest.mark.skipif(not shutil.which(command[0]), reason="not installed"),
        id=command[0],
    )
    for command, config in (
        (
            ["nginx", "-c"],
            NGINX.replace(
                "proxy_set_header Conn",
                'proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header Forwarded ""; proxy_set_header Conn',
            ),
        ),
        (
            ["haproxy", "-q", "-db", "-f"],
            HAPROXY + "  option forwardfor\n  http-request del-header Forwarded\n",
        ),
    )
]


@pytest.mark.parametrize(("program", "config"), PROXIES)
def test_behind_nginx_and_haproxy_each_client_is_counted_and_logged_by_its_own_address(
    program, config, spawn, folder, wire, tmp_path
):
    server, port = (
        spawn("httpserver.py", folder, "--password", "right", "--trust-proxy", "127.0.0.1"),
        free_port(),
    )
    (tmp_path / "config").write_text(
        config.format(here=tmp_path, first=server.port, second=server.port, port=port)
    )
    process = subprocess.Popen([*program, tmp_path / "config"], stderr=subprocess.PIPE)
    front = types.SimpleNamespace(host="127.0.0.1", port=port)
    try:

        def up():
            with suppress(ConnectionError):
                return socket.create_connection(("127.0.0.1", port), DEADLINE).close() is None

        until(up, program[0])
        spoofed = "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.7\r\n"

        def tried(password, source):
            return login(wire(front, source=source), password, spoofed)

        assert [tried("wrong", "127.0.0.2") for _ in range(10)] == [401] * 10
        assert tried("right", "127.0.0.2") == 429 and tried("right", "127.0.0.3") == 200
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
    server.wait_for(r'^127\.0\.0\.3 - any .*" 200 ')
    assert len(re.findall(r"^127\.0\.0\.2 - - ", server.err, re.M)) == 11
    assert "6.6.6" not in server.err
