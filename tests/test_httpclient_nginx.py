"""httpclient.py against nginx (index pages, ranges, dav, passwords, TLS), a CONNECT proxy, Caddy, and httpserver.py."""

import hashlib
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import suppress

import pytest
from conftest import DEADLINE, ROOT, Listener, Process, free_port, until
from test_httpclient import EXPECTANT

BODY = random.Random(9).randbytes(3_000_000)
NGINX = shutil.which("nginx") or ("/usr/sbin/nginx" if os.path.exists("/usr/sbin/nginx") else None)
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl is not installed"
)
needs_server = pytest.mark.skipif(
    not (ROOT / "httpserver.py").exists(), reason="httpserver.py is not here"
)
CONF = """
worker_processes 1; daemon off; error_log {base}/error.log; pid {base}/pid; {user}
events {{ worker_connections 64; }}
http {{ access_log {base}/access.log; default_type application/octet-stream; client_max_body_size 50m;
  client_body_temp_path {base}/t1; proxy_temp_path {base}/t2; fastcgi_temp_path {base}/t3; uwsgi_temp_path {base}/t4; scgi_temp_path {base}/t5;
  gzip_types text/html; keepalive_requests 30;
  server {{ listen 127.0.0.1:{port}; root {base}/www; autoindex on; gzip on; gzip_min_length 10;
    location /behind/ {{ proxy_pass http://127.0.0.1:{behind}/; proxy_request_buffering off; proxy_redirect / /behind/; absolute_redirect off; }}
    location /json/ {{ alias {base}/www/; autoindex_format json; }}
    location /secret/ {{ alias {base}/www/; auth_basic "a"; auth_basic_user_file {base}/users; }}
    location /small/ {{ alias {base}/dav/; dav_methods PUT; client_max_body_size 1k; }}
    location /dav/ {{ alias {base}/dav/; dav_methods PUT DELETE MKCOL MOVE; create_full_put_path on; }} }}
  {tls} }}
"""
TLS = """
  server {{ listen 127.0.0.1:{port} ssl; root {base}/www; ssl_certificate {base}/cert; ssl_certificate_key {base}/key;
    client_max_body_size 50m; location /dav/ {{ alias {base}/dav/; dav_methods PUT; }} }}
"""


class Nginx:
    def __init__(self, base, behind=1):
        for name in "www", "dav":
            (base / name).mkdir()
        (base / "www" / "big.bin").write_bytes(BODY)
        (base / "www" / "sub folder").mkdir()
        for number in range(70):
            (base / "www" / "sub folder" / f"ü {number}.txt").write_text(f"{number}\n" * number)
        (base / "users").write_text("me:{PLAIN}a b\n")
        self.base, self.port, self.tls_port = base, free_port(), free_port()
        made = shutil.which("openssl") and subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-keyout",
                base / "key",
                "-out",
                base / "cert",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
            ],
            capture_output=True,
            check=True,
        )
        self.has_tls = bool(made)
        tls = TLS.format(port=self.tls_port, base=base) if made else ""
        user = "user root;" if hasattr(os, "geteuid") and os.geteuid() == 0 else ""
        (base / "conf").write_text(
            CONF.format(base=base, port=self.port, behind=behind, tls=tls, user=user)
        )
        self.process = subprocess.Popen([NGINX, "-c", base / "conf"], stderr=subprocess.DEVNULL)
        until(self.answers, "nginx to listen")

    def answers(self):
        with suppress(OSError):
            for port in [self.port, self.tls_port][: 1 + self.has_tls]:
                socket.create_connection(("127.0.0.1", port)).close()
            return True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self):
        return f"https://localhost:{self.tls_port}"

    @property
    def pin(self):
        return hashlib.sha256(
            ssl.PEM_cert_to_DER_cert((self.base / "cert").read_text())
        ).hexdigest()

    def stop(self):
        self.process.terminate()
        self.process.wait(DEADLINE)


@pytest.fixture(scope="module")
def nginx(tmp_path_factory):
    server = Nginx(tmp_path_factory.mktemp("nginx"))
    yield server
    server.stop()


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def names(folder):
    return sorted(os.listdir(folder))


@needs_nginx
@pytest.mark.parametrize("more", [[], ["--connections", "3"]], ids=["one", "three"])
def test_a_large_file_from_nginx_survives_cuts_everywhere(run, nginx, proxy, tmp_path, more):
    way = proxy(nginx.port, cut_at=700_000, times=6)
    done = run("httpclient.py", "get", f"http://127.0.0.1:{way.port}/big.bin", *more, cwd=tmp_path)
    assert done.code == 0, done
    assert (tmp_path / "big.bin").read_bytes() == BODY and names(tmp_path) == ["big.bin"]
    assert int(os.stat(tmp_path / "big.bin").st_mtime) == int(
        os.stat(nginx.base / "www" / "big.bin").st_mtime
    )


@needs_nginx
@pytest.mark.parametrize("index", ["", "/json"])
def test_mirror_of_nginx_through_its_pages_or_its_json(run, nginx, tmp_path, index):
    assert (
        run("httpclient.py", "mirror", f"{nginx.url}{index}/", "-o", "copy", cwd=tmp_path).code == 0
    )
    assert tree(tmp_path / "copy") == tree(nginx.base / "www")
    done = run("httpclient.py", "mirror", f"{nginx.url}{index}/", "-o", "copy", cwd=tmp_path)
    assert done.code == 0 and "mirror: 0 files" in done.err and "71 already there" in done.err


@needs_nginx
def test_list_shows_what_nginx_has(run, nginx):
    out = run("httpclient.py", "list", f"{nginx.url}/json").out.decode()
    assert (
        re.search(r"^ +3000000  \d{4}-\d\d-\d\d \d\d:\d\d  big\.bin$", out, re.MULTILINE)
        and "sub folder/" in out
    )
    assert "big.bin" in run("httpclient.py", "list", nginx.url).out.decode()


@needs_nginx
def test_dav_put_mkdir_move_delete_and_upload(run, nginx, tmp_path):
    dav = nginx.base / "dav"
    source = tmp_path / "source"
    (source / "deep" / "ö ö").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "deep" / "ö ö" / "b#?;%41.bin").write_bytes(BODY)
    (source / "a").write_bytes(b"a")
    os.utime(source / "a", (1_600_000_000, 1_600_000_000))
    (source / "link").symlink_to("a")
    (source / ".hidden").write_bytes(b"h")
    done = run("httpclient.py", "upload", "source", f"{nginx.url}/dav/up/", cwd=tmp_path)
    assert (
        done.code == 0
        and "skipped link: " in done.err
        and "skipped .hidden: " in done.err
        and "upload: 2 files" in done.err
    )
    assert (
        tree(dav / "up") == {"deep/ö ö/b#?;%41.bin": BODY, "a": b"a"}
        and (dav / "up" / "empty").is_dir()
    )
    assert os.stat(dav / "up" / "a").st_mtime == 1_600_000_000
    (source / "a").write_bytes(b"b!")
    done = run("httpclient.py", "upload", "source", f"{nginx.url}/dav/up/", "--quiet", cwd=tmp_path)
    assert done.code == 0 and (dav / "up" / "a").read_bytes() == b"b!"
    assert (
        "2 already there"
        in run("httpclient.py", "upload", "source", f"{nginx.url}/dav/up/", cwd=tmp_path).err
    )
    assert (
        run("httpclient.py", "mkdir", f"{nginx.url}/dav/new").code == 0 and (dav / "new").is_dir()
    )
    assert run("httpclient.py", "move", f"{nginx.url}/dav/up/a", "/dav/new/c").code == 0
    assert (
        run("httpclient.py", "put", "-", f"{nginx.url}/dav/d", input=BODY).code == 0
        and (dav / "d").read_bytes() == BODY
    )
    assert (
        run("httpclient.py", "move", f"{nginx.url}/dav/d", "new/c").code == 22
        and (dav / "new" / "c").read_bytes() == b"b!"
    )
    assert (
        run("httpclient.py", "move", f"{nginx.url}/dav/d", "new/c", "--force").code == 0
        and (dav / "new" / "c").read_bytes() == BODY
    )
    done = run("httpclient.py", "delete", f"{nginx.url}/dav/new/c", f"{nginx.url}/dav/no")
    assert done.code == 22 and names(dav / "new") == []


@needs_nginx
def test_a_refused_upload_says_why_before_the_body_is_sent(run, nginx, tmp_path):
    (tmp_path / "big").write_bytes(BODY)
    done = run(*EXPECTANT, "put", "big", f"{nginx.url}/small/big", "--trace", cwd=tmp_path)
    assert (
        done.code == 22
        and "413" in done.err
        and int(re.findall(r"close \(sent (\d+)", done.err)[-1]) < 5000
    )
    assert not (nginx.base / "dav" / "big").exists()


@needs_nginx
def test_passwords_for_nginx(run, nginx, tmp_path):
    url = f"{nginx.url}/secret/big.bin"
    done = run("httpclient.py", "get", url, cwd=tmp_path)
    assert done.code == 22 and "401" in done.err and "--user" in done.err
    assert run("httpclient.py", "get", url, "-o", "a", "--user", "me:a b", cwd=tmp_path).code == 0
    assert (
        run("httpclient.py", "get", url.replace("//", "//me:a%20b@"), "-o", "b", cwd=tmp_path).code
        == 0
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == BODY


@needs_nginx
@needs_openssl
def test_tls_is_trusted_by_authority_by_pin_or_not_at_all(run, nginx, tmp_path):
    url = f"{nginx.tls_url}/big.bin"
    done = run("httpclient.py", "get", url, cwd=tmp_path)
    assert done.code == 60 and "not trusted" in done.err and names(tmp_path) == []
    for number, more in enumerate(
        (
            ["--cacert", nginx.base / "cert"],
            ["--pin", nginx.pin],
            ["--insecure"],
            ["--pin", nginx.pin, "--connections", 2],
        )
    ):
        assert run("httpclient.py", "get", url, "-o", f"f{number}", *more, cwd=tmp_path).code == 0
        assert (tmp_path / f"f{number}").read_bytes() == BODY
    done = run("httpclient.py", "get", url, "-o", "no", "--pin", "0" * 64, cwd=tmp_path)
    assert done.code == 60 and nginx.pin in done.err and "no" not in names(tmp_path)
    done = run(
        "httpclient.py",
        "get",
        url.replace("localhost", "127.0.0.1"),
        "-o",
        "no",
        "--cacert",
        nginx.base / "cert",
        cwd=tmp_path,
    )
    assert done.code == 60 and "no" not in names(tmp_path)


@needs_nginx
@needs_openssl
def test_tls_against_plain_and_the_reverse_are_told(run, nginx, tmp_path):
    done = run("httpclient.py", "get", f"https://localhost:{nginx.port}/", cwd=tmp_path)
    assert done.code == 56 and "http:// instead of https://" in done.err
    assert (
        run("httpclient.py", "get", f"http://localhost:{nginx.tls_port}/", cwd=tmp_path).code == 22
    )


@needs_nginx
@needs_openssl
def test_a_large_file_is_sent_over_tls(run, nginx, tmp_path):
    (tmp_path / "big").write_bytes(BODY)
    for name, source, data in ("one", "big", b""), ("two", "-", BODY):
        assert (
            run(
                "httpclient.py",
                "put",
                source,
                f"{nginx.tls_url}/dav/{name}",
                "--pin",
                nginx.pin,
                cwd=tmp_path,
                input=data,
            ).code
            == 0
        )
        assert (nginx.base / "dav" / name).read_bytes() == BODY
        (nginx.base / "dav" / name).unlink()


@needs_nginx
@needs_openssl
def test_tls_that_is_cut_is_continued(run, nginx, proxy, tmp_path):
    way = proxy(nginx.tls_port, cut_at=800_000, times=3)
    done = run(
        "httpclient.py",
        "get",
        f"https://127.0.0.1:{way.port}/big.bin",
        "--pin",
        nginx.pin,
        "--trace",
        cwd=tmp_path,
    )
    assert done.code == 0 and (tmp_path / "big.bin").read_bytes() == BODY and "recv" in done.err


class Connect(Listener):
    """A CONNECT proxy that wants a password, and cannot reach the server for its requests of these numbers."""

    def __init__(self, down=()):
        self.heads, self.down = [], down
        super().__init__(self.talk)

    def talk(self, conn):
        head = b""
        while b"\r\n\r\n" not in head:
            head += conn.recv(65536)
        self.heads.append(head.decode())
        if "Proxy-Authorization: Basic bWU6d29yZA==" not in self.heads[-1]:
            conn.sendall(b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n")
            return
        if len(self.heads) in self.down:
            conn.sendall(b"HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n")
            return
        host, port = head.split()[1].decode().rsplit(":", 1)
        with socket.create_connection((host, int(port)), DEADLINE) as far:
            conn.sendall(b"HTTP/1.1 200 Go\r\n\r\n")
            upward = threading.Thread(target=self.pump, args=(conn, far), daemon=True)
            upward.start()
            self.pump(far, conn)
            upward.join(DEADLINE)

    def pump(self, source, sink):
        with suppress(OSError):
            while chunk := source.recv(65536):
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)


@needs_nginx
@needs_openssl
def test_https_goes_through_a_proxy_by_connect(run, nginx, listeners, tmp_path):
    listeners.append(Connect())
    proxy = f"me:word@127.0.0.1:{listeners[-1].port}"
    more = ["--pin", nginx.pin, "--user", "a:secret"]
    done = run(
        "httpclient.py",
        "get",
        f"{nginx.tls_url}/big.bin",
        *more,
        cwd=tmp_path,
        env={"https_proxy": proxy},
    )
    assert done.code == 0 and (tmp_path / "big.bin").read_bytes() == BODY
    assert (
        listeners[-1].heads[0].startswith(f"CONNECT localhost:{nginx.tls_port} HTTP/1.1\r\n")
        and "YTpzZWNyZXQ" not in listeners[-1].heads[0]
    )
    done = run(
        "httpclient.py",
        "get",
        f"{nginx.tls_url}/big.bin",
        "--proxy",
        proxy.rpartition("@")[2],
        *more,
        cwd=tmp_path,
    )
    assert done.code == 56 and "407" in done.err


@needs_nginx
def test_a_server_behind_a_proxy_that_restarts_is_waited_for_once_it_was_reached(
    run, nginx, proxy, listeners, tmp_path
):
    url = f"https://127.0.0.1:{proxy(nginx.tls_port, cut_at=800_000, times=1).port}/big.bin"
    more = "--pin", nginx.pin, "--proxy"
    for down, code in ([2], 0), ([1], 7):
        listeners.append(Connect(down))
        address = f"me:word@127.0.0.1:{listeners[-1].port}"
        done = run("httpclient.py", "get", "--force", url, *more, address, cwd=tmp_path)
        assert done.code == code and "does not connect to" in done.err and "503" in done.err, done
        assert len(listeners[-1].heads) == (3 if code == 0 else 1)


@needs_nginx
def test_ctrl_c_in_the_middle_and_again_on_a_terminal(nginx, proxy, run, tmp_path):
    way = proxy(nginx.port, hold_at=1_500_000, times=1)
    first = Process(
        ROOT / "httpclient.py",
        "get",
        f"http://127.0.0.1:{way.port}/big.bin",
        "--trace",
        cwd=tmp_path,
    )
    first.wait_for(r"received so far [1-9]\d{6}\)")
    first.process.send_signal(2)
    assert first.wait() == 130 and first.err.rstrip().endswith("to continue from what is here")
    assert len(names(tmp_path)) == 2
    done = run("httpclient.py", "get", f"http://127.0.0.1:{way.port}/big.bin", "-v", cwd=tmp_path)
    assert (
        done.code == 0
        and "> Range: bytes=" in done.err
        and (tmp_path / "big.bin").read_bytes() == BODY
    )


# --- Caddy ---
@pytest.fixture
def caddy(tmp_path):
    port, folder = free_port(), tmp_path / "www"
    (folder / "sub ü#?%41").mkdir(parents=True)
    (folder / "big.bin").write_bytes(BODY)
    (folder / "sub ü#?%41" / "a b.txt").write_text("hello")
    site = f"{{\nadmin off\nauto_https off\n}}\nhttp://127.0.0.1:{port} {{\nroot * {folder}\nencode gzip\nfile_server browse\n}}\n"
    (tmp_path / "Caddyfile").write_text(site)
    process = Process(
        shell="exec caddy run --config Caddyfile",
        cwd=tmp_path,
        env={"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
    )
    process.wait_for("serving initial configuration")
    yield folder, port
    process.process.terminate()
    process.wait()


@pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed")
def test_caddy_is_listed_mirrored_and_continued(run, caddy, proxy, tmp_path):
    folder, port = caddy
    url = f"http://127.0.0.1:{port}/"
    out = run("httpclient.py", "list", url).out.decode()
    assert (
        re.search(r"^ +3000000  \d{4}-\d\d-\d\d \d\d:\d\d  big\.bin$", out, re.MULTILINE)
        and "sub ü#?%41/" in out
    )
    for said in "mirror: 2 files, ", "2 already there":
        done = run("httpclient.py", "mirror", url, "-o", "copy", cwd=tmp_path)
        assert done.code == 0 and said in done.err and tree(tmp_path / "copy") == tree(folder)
    for more in [], ["--connections", 3]:
        way = proxy(port, cut_at=700_000, times=4)
        assert (
            run(
                "httpclient.py",
                "get",
                f"http://127.0.0.1:{way.port}/big.bin",
                "--force",
                *more,
                cwd=tmp_path,
            ).code
            == 0
        )
        assert (tmp_path / "big.bin").read_bytes() == BODY
    (tmp_path / "new").write_bytes(b"new")
    # it serves files and takes none, but answers 200
    for name in "big.bin", "sub%20%C3%BC%23%3F%2541/a%20b.txt":
        done = run("httpclient.py", "put", "--force", "new", f"{url}{name}", cwd=tmp_path)
        assert done.code == 56 and "3 were sent" in done.err
    assert run("httpclient.py", "put", "new", f"{url}new", cwd=tmp_path).code == 22
    assert tree(tmp_path / "copy") == tree(folder)


# --- httpserver.py, the other half of the pair ---
@needs_server
def test_with_httpserver_everything_round_trips(run, spawn, tmp_path):
    shared, source = tmp_path / "shared", tmp_path / "source"
    shared.mkdir()
    (source / "sub").mkdir(parents=True)
    for name in (
        "a b.txt",
        "sub/ü#?%41;.bin",
        "sub/new\nline",
        os.fsdecode(b"sub/\xff"),
        "sub/<&'\">",
    ):
        (source / name).write_bytes(name.encode("utf-8", "surrogateescape") * 1000)
    (source / "big").write_bytes(BODY)
    server = spawn("httpserver.py", shared)
    at = ["--port", server.port]
    assert run("httpclient.py", "upload", source, "/up/", *at).code == 0
    assert tree(shared / "up") == tree(source)
    assert "6 already there" in run("httpclient.py", "upload", source, "/up/", *at).err
    assert run("httpclient.py", "mirror", "/up/", "-o", tmp_path / "copy", *at).code == 0
    assert tree(tmp_path / "copy") == tree(source)
    assert (
        "6 already there"
        in run("httpclient.py", "mirror", "/up/", "-o", tmp_path / "copy", *at).err
    )
    done = run("httpclient.py", "list", "/up/sub/", *at)
    assert done.code == 0 and b"new\\nline" in done.out
    assert (
        run(
            "httpclient.py", "get", "/up/big", "-o", tmp_path / "again", "--connections", 3, *at
        ).code
        == 0
    )
    assert (tmp_path / "again").read_bytes() == BODY
    assert run("httpclient.py", "mkdir", "/new", *at).code == 0
    assert (
        run("httpclient.py", "move", "/up/big", "/new/big", *at).code == 0
        and (shared / "new" / "big").read_bytes() == BODY
    )
    assert run("httpclient.py", "post", "/new/", "--form", f"file=@{source / 'big'}", *at).code == 0
    assert run("httpclient.py", "delete", "/new/big", *at).code == 0
    assert run("httpclient.py", "get", "/new/big", *at, cwd=tmp_path).code == 22
    # the server shares what is sent
    assert run("httpclient.py", "upload", shared / "up", "/up/itself/", *at).code == 0
    assert (shared / "up" / "itself" / "sub").is_dir() and not (
        shared / "up" / "itself" / "itself"
    ).exists()
    (tmp_path / "deep" / "/".join("d" * 65)).mkdir(parents=True)
    done = run("httpclient.py", "upload", tmp_path / "deep", "/deep/", *at)
    assert done.code == 26 and "64 folders deep" in done.err and "Traceback" not in done.err


@needs_server
def test_with_httpserver_an_upload_is_resumed(run, spawn, proxy, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "big").write_bytes(BODY)
    os.utime(tmp_path / "big", (1_600_000_000, 1_600_000_000))
    server = spawn("httpserver.py", tmp_path / "shared")
    way = proxy(server.port, cut_at=1_200_000, toward="server", times=2)
    done = run(
        "httpclient.py", "put", "big", f"http://127.0.0.1:{way.port}/big", "-v", cwd=tmp_path
    )
    assert (
        done.code == 0
        and "> PATCH " in done.err
        and (tmp_path / "shared" / "big").read_bytes() == BODY
    )
    assert int(os.stat(tmp_path / "shared" / "big").st_mtime) == 1_600_000_000


@needs_server
@needs_nginx
def test_an_upload_is_resumed_through_nginx_which_passes_no_interim_responses_on(
    run, spawn, proxy, tmp_path_factory, tmp_path
):
    (tmp_path / "shared").mkdir()
    (tmp_path / "big").write_bytes(BODY)
    os.utime(tmp_path / "big", (1_600_000_000, 1_600_000_000))
    nginx = Nginx(
        tmp_path_factory.mktemp("front"), spawn("httpserver.py", tmp_path / "shared").port
    )
    try:
        # where nothing had come of what a kept connection took, it is sent once more
        for name, cuts, more in ("one", 1, []), ("two", 2, ["--retries", 0]):
            way = proxy(nginx.port, cut_at=1_200_000, toward="server", times=cuts)
            command = [
                "httpclient.py",
                "put",
                "big",
                f"http://127.0.0.1:{way.port}/behind/{name}",
                "-v",
            ]
            done = run(*command, *more, cwd=tmp_path)
            said = done.err
            if more:
                # a note of where it goes on
                assert (
                    done.code != 0
                    and len(names(tmp_path)) == 3
                    and not (tmp_path / "shared" / name).exists()
                )
                done = run(*command, cwd=tmp_path)
                said += done.err
            offsets = re.findall(r"> Upload-Offset: (\d+)", said)
            assert done.code == 0 and len(offsets) > 1 and said.count("> PUT ") == 1, done
            assert names(tmp_path) == ["big", "shared"]
            assert (tmp_path / "shared" / name).read_bytes() == BODY and int(
                os.stat(tmp_path / "shared" / name).st_mtime
            ) == 1_600_000_000
    finally:
        nginx.stop()
