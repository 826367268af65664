"""What all tests stand on: real processes on free ports, and peers that misbehave on purpose.

spawn("tcp_upper.py", "server")      a server, stopped by SIGINT at the end: exit 0 and a clean stderr, or the test fails
run("tcp_upper.py", "client", "hi")  a program run to its end: .code, .out, .err
canned(b"HTTP/1.1 400 ...")          a TCP server that says these bytes to each client and hangs up
proxy(port, cut_at=100)              a proxy that cuts, delays or corrupts what passes through it
"""

import functools
import importlib
import itertools
import os
import py_compile
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [
    name
    for name in (
        "server.py",
        "client.py",
        "httpserver.py",
        "httpclient.py",
        "tcp_upper.py",
        "udp_upper.py",
    )
    if (ROOT / name).exists()
]
# the tests were started in the background: what they start must heed Ctrl-C all the same
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# or by nohup: the tests go on, but what they start ends as on a terminal that hangs up
if os.name != "nt" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
# what a person's shell does not set, and what hides that Python stores output
os.environ.pop("PYTHONUNBUFFERED", None)
# seconds that anything may take before a test calls it hung; no test waits for it to pass
DEADLINE = 60.0
HELPER = pytest.StashKey[int]()
LISTENING = re.compile(r"listening on (?:https?://)?(.+):(\d+)/?\n")


def compiled(script):
    """The script as bytecode: compiling is a third of its start, and the tests start a thousand. As it is, where that cannot be stored."""
    try:
        # into __pycache__, as an import does
        return py_compile.compile(str(ROOT / script), doraise=True)
    except OSError:
        return str(ROOT / script)


COMPILED = {name: compiled(name) for name in SCRIPTS}


def program(script, python):
    """What to give to this interpreter for a script's name or path; anything else is left as it is."""
    path = ROOT / script
    if path.parent != ROOT or path.name not in COMPILED:
        return str(script)
    return COMPILED[path.name] if python == sys.executable else str(path)


def place(script, folder):
    """A script in a folder, to be started there by this interpreter: what it is compiled to, as Python runs a file by what it begins with, not by its name."""
    return Path(shutil.copy(COMPILED[script] if forked.SOURCES else ROOT / script, folder / script))


@functools.lru_cache(1)
def interpreters():
    """Every python3.9 or later on PATH and among pyenv's versions, by version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for minor in range(9, 20):
        names = [
            *sorted(map(str, pyenv.glob(f"3.{minor}.*/bin/python3"))),
            shutil.which(f"python3.{minor}"),
        ]
        for name in filter(None, names):
            asked = subprocess.run(
                [name, "-c", "import sys; print(sys.version_info[1])"],
                capture_output=True,
                text=True,
            )
            if asked.stdout.strip() == str(minor):
                found[f"3.{minor}"] = name
                break
    return found


PORTS = itertools.count()


@functools.lru_cache(1)
def hundred(pid):
    """The first of a hundred ports that no other process of ours uses: whoever holds that one has them all."""
    for number in range(pid, pid + 100):
        holder = socket.socket()
        with suppress(OSError):
            holder.bind(("127.0.0.1", 20000 + number % 100 * 100))
            return holder
        holder.close()
    raise AssertionError("all ports from 20000 on are taken")


def free_port(kind=socket.SOCK_STREAM):
    """A port that is free until it is used: below those that the kernel gives to whoever asks for any, and each of our processes has its own."""
    first = hundred(os.getpid()).getsockname()[1]
    for number in itertools.islice(PORTS, 1000):
        port = first + 1 + number % 99
        with suppress(OSError), socket.socket(socket.AF_INET, kind) as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no port is free from {first} on")


def until(condition, what, seconds=DEADLINE):
    """Wait for a fact of another process that announces itself nowhere, such as a count in /proc."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.005)
    return value


def states(server):
    """Of its threads, as Linux calls them: S waits, T is stopped."""
    stats = Path(f"/proc/{server.pid}/task").glob("*/stat")
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in stats}


@contextmanager
def stopped(server):
    """What is sent meanwhile comes to it all at once. A signal alone would stop it a moment later."""
    server.process.send_signal(signal.SIGSTOP)
    until(lambda: states(server) == {"T"}, "the server to stand still")
    yield
    server.process.send_signal(signal.SIGCONT)


def queues(sock):
    """Bytes in the socket at the other end of this one, from /proc/net: those that have not left yet, and those that nobody has read."""
    with suppress(OSError):  # it is reset
        pairs = [sock.getpeername(), sock.getsockname()]
        ends = [f"{socket.inet_aton(host)[::-1].hex()}:{port:04x}".upper() for host, port in pairs]
        with open("/proc/net/tcp") as rows:
            for words in map(str.split, rows):
                if words[1:3] == ends:
                    return tuple(int(count, 16) for count in words[4].split(":"))
    return 0, 0  # it is closed


def taken(sock):
    """Wait until the other end has read all that was sent."""
    until(lambda: queues(sock)[1] == 0, "what was sent to be read")


def assert_clean(text):
    for sign in ("Traceback", "Warning", "Exception ignored", "Fatal"):
        assert sign not in text, f"stderr is not clean:\n{text}"


class Process:
    """A program that runs meanwhile; its output is gathered as it comes."""

    def __init__(
        self,
        *args,
        cwd=None,
        env=None,
        python=sys.executable,
        shell=None,
        stdin=subprocess.DEVNULL,
        **more,
    ):
        command = (
            ["bash", "-c", shell]
            if shell
            else [python, "-W", "error", program(args[0], python), *map(str, args[1:])]
        )
        environment = {**os.environ, **(env or {})}
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        )
        self.pid = self.process.pid
        self.heard = threading.Condition()
        self.texts = {"out": b"", "err": b""}
        self.readers = [
            threading.Thread(target=self.gather, args=(name, stream), daemon=True)
            for name, stream in (("out", self.process.stdout), ("err", self.process.stderr))
        ]
        for reader in self.readers:
            reader.start()

    def gather(self, name, stream):
        for chunk in iter(lambda: os.read(stream.fileno(), 65536), b""):
            with self.heard:
                self.texts[name] += chunk
                self.heard.notify_all()
        with self.heard:
            self.heard.notify_all()

    @property
    def out(self):
        return self.texts["out"].decode(errors="backslashreplace")

    @property
    def err(self):
        return self.texts["err"].decode(errors="backslashreplace")

    def wait_for(self, pattern, stream="err", seconds=DEADLINE):
        """Wait until the output matches; the match object."""
        deadline = time.monotonic() + seconds
        with self.heard:
            while True:
                if found := re.search(pattern, getattr(self, stream), re.M):
                    return found
                left = deadline - time.monotonic()
                alive = any(reader.is_alive() for reader in self.readers)
                assert left > 0 and alive, f"no {pattern!r} in std{stream}:\n{self.out}{self.err}"
                self.heard.wait(min(left, 0.5))

    def wait(self, seconds=DEADLINE):
        """Its exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it does not end:\n{self.out}{self.err}") from None
        for reader in self.readers:
            reader.join(DEADLINE)
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def kill(self):
        self.process.kill()
        return self.wait()

    def status(self, field):
        """A number from /proc, such as Threads or VmRSS (KiB)."""
        return int(
            re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text(), re.M)[1]
        )

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Server(Process):
    """A server script: .host and .port are where it listens."""

    def __init__(self, script, *args, port=0, **more):
        super().__init__(script, *args, "--port", port, **more)
        self.host, number = self.wait_for(LISTENING.pattern, "out").groups()
        self.host, self.port = self.host.strip("[]"), int(number)

    def connect(self, timeout=DEADLINE):
        return socket.create_connection((self.host, self.port), timeout)

    def at_rest(self):
        """The descriptors and threads of a server.py that nobody uses: at its start it looks for old parts, and has some more meanwhile."""
        with self.connect() as sock:
            sock.sendall(b"\n")
            sock.recv(100)  # whom it answers came in after that look began
        until(lambda: self.status("Threads") == 1, "it to have nothing to do")
        return self.descriptors(), self.status("Threads")

    def rests(self, before):
        """Wait until it has no more than at_rest() told. It can be less: what had just been closed may have counted then."""
        until(
            lambda: self.descriptors() <= before[0] and self.status("Threads") <= before[1],
            "threads and descriptors to be back",
        )

    def stop(self, number=signal.SIGINT):
        """Ask it to end: exit 0, nothing but the listening line on stdout, and no traceback or warning."""
        self.process.send_signal(number)
        code = self.wait()
        assert code == 0, f"exit {code}:\n{self.err}"
        assert_clean(self.err)
        assert LISTENING.fullmatch(self.out), (
            f"stdout holds more than the listening line:\n{self.out}"
        )
        return self.err


@pytest.fixture
def spawn():
    running = []

    def start(script, *args, **more):
        running.append(Server(script, *args, **more))
        return running[-1]

    yield start
    problems = []
    for server in running:
        if server.process.poll() is None:
            try:
                server.stop()
            except AssertionError as problem:
                problems.append(str(problem))
                with suppress(ProcessLookupError):
                    server.kill()
        else:
            server.wait()
    assert not problems, "\n".join(problems)


class Terminal:
    """A client on a terminal of its own."""

    def __init__(self, *words, cwd, without=""):
        self.master, slave = os.openpty()
        start = f"import runpy, sys; sys.modules[{without!r}] = None; sys.argv[0] = 'client.py'; runpy.run_path({str(ROOT / 'client.py')!r}, run_name='__main__')"
        what = ["-c", start] if without else [program("client.py", sys.executable)]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", *what, *map(str, words)],
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm"},
            close_fds=True,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, text):
        while text not in self.text:
            # if it had ended before, there is nothing to come when all is read
            ended = self.process.poll() is not None
            assert select.select([self.master], [], [], DEADLINE)[0], (
                f"no {text!r} in {self.text!r}"
            )
            more = b""
            with suppress(OSError):
                more = os.read(self.master, 65536)
            self.text += more.decode(errors="replace")
            assert more or not ended, self.text

    def end(self):
        code = self.process.wait(DEADLINE)
        os.close(self.master)
        return code


class Finished:
    """What a program left behind: its exit code, its output as bytes, its messages as text."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err.decode(errors="backslashreplace")

    def __repr__(self):
        return f"exit {self.code}\nstdout: {self.out[:2000]!r}\nstderr: {self.err}"


@pytest.fixture
def run():
    def run_to_end(
        script, *args, input=b"", cwd=None, env=None, python=sys.executable, timeout=60, **more
    ):
        with subprocess.Popen(
            [python, "-W", "error", program(script, python), *map(str, args)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        ) as process:
            try:
                out, err = process.communicate(input, timeout)
            finally:
                process.kill()  # if it has not ended by itself
        finished = Finished(process.returncode, out, err)
        assert_clean(finished.err)
        return finished

    return run_to_end


class Listener:
    """A listening socket whose clients are each given to a thread that runs talk(conn); the threads end with it."""

    def __init__(self, talk, port=0):
        self.talk = talk
        self.go = threading.Event()
        self.sock = socket.create_server(("127.0.0.1", port))
        self.port = self.sock.getsockname()[1]
        self.open = [self.sock]
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self):
        with suppress(OSError):
            while True:
                conn, _ = self.sock.accept()
                self.open.append(conn)
                self.threads.append(threading.Thread(target=self.serve, args=(conn,), daemon=True))
                self.threads[-1].start()

    def serve(self, conn):
        with conn, suppress(OSError):
            self.talk(conn)

    def close(self):
        self.go.set()
        for sock in self.open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self.threads:
            thread.join(DEADLINE)


@pytest.fixture
def listeners():
    made = []
    yield made
    for listener in made:
        listener.close()


@pytest.fixture
def canned(listeners):
    """A server that says the next of these byte strings to each client (the last one again and again) and hangs up.
    With read_until it first reads until those bytes came; what it read is in .read."""

    def start(*answers, read_until=b"", drain=True):
        read, turn, lock = [], iter(range(1 << 30)), threading.Lock()

        def talk(conn):
            with lock:
                number = next(turn)
                read.append(b"")
            conn.settimeout(DEADLINE)
            while read_until not in read[number] and (chunk := conn.recv(65536)):
                read[number] += chunk
            conn.sendall(answers[min(number, len(answers) - 1)])
            if drain:
                conn.shutdown(socket.SHUT_WR)
                while chunk := conn.recv(65536):
                    read[number] += chunk

        listeners.append(Listener(talk))
        listeners[-1].read = read
        return listeners[-1]

    return start


@pytest.fixture
def proxy(listeners):
    """A way to a server that can be bad. Positions count the bytes from the server (or to it, with toward="server"):
    at cut_at both connections are reset, at corrupt_at one bit is flipped, behind hold_at nothing passes before .go is set,
    and delay is waited before each chunk."""

    def start(
        port, cut_at=None, corrupt_at=None, hold_at=None, delay=0.0, toward="client", times=1 << 30
    ):
        left = [times]

        def talk(conn):
            bad = left[0] > 0
            left[0] -= 1
            with socket.create_connection(("127.0.0.1", port), DEADLINE) as server:
                upward = threading.Thread(
                    target=pump, args=(conn, server, bad and toward == "server"), daemon=True
                )
                upward.start()
                pump(server, conn, bad and toward == "client")
                upward.join(DEADLINE)

        def pump(source, sink, bad):
            passed = 0
            with suppress(OSError):
                while True:
                    most = 65536 if not bad or cut_at is None else min(65536, cut_at - passed)
                    chunk = source.recv(most) if most else b""
                    if not most:
                        # linger 0: RST, as a lost link looks to both in the end
                        for sock in (source, sink):
                            sock.setsockopt(
                                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                            )
                            sock.shutdown(socket.SHUT_RDWR)
                        return
                    if not chunk:
                        break
                    if (
                        bad
                        and corrupt_at is not None
                        and passed <= corrupt_at < passed + len(chunk)
                    ):
                        chunk = bytearray(chunk)
                        chunk[corrupt_at - passed] ^= 1
                    if bad and delay:
                        threading.Event().wait(delay)
                    if bad and hold_at is not None and passed >= hold_at:
                        way.go.wait(DEADLINE)
                    sink.sendall(chunk)
                    passed += len(chunk)
            with suppress(OSError):  # also when it was reset: the other side would wait for ever
                sink.shutdown(socket.SHUT_WR)

        way = Listener(talk)
        listeners.append(way)
        return way

    return start


@pytest.fixture
def alone(tmp_path):
    """A copy of one script in an empty folder, as somebody who took only that file has it. One for any interpreter is its source."""

    def copy(script, for_any=False):
        folder = tmp_path / "alone"
        folder.mkdir(exist_ok=True)
        return Path(shutil.copy(ROOT / script, folder)) if for_any else place(script, folder)

    return copy


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the slow matrices whole (CI does)")
    parser.addoption(
        "--processes",
        type=int,
        default=(os.cpu_count() or 1) + 6,
        help="run so many tests at once (default six more than cores: many wait)",
    )


class Elsewhere(pytest.Module):
    """Tests that stand on forks, terminals and /proc: on Windows they are skipped by name, and those in tests/windows/ run."""

    def collect(self):
        pytest.skip("needs forks, terminals and /proc", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if os.name == "nt" and module_path.parent.name != "windows":
        return Elsewhere.from_parent(parent, path=module_path)
    return None


def memory_has_room(folder="/dev/shm"):
    """Whether files of the tests may lie there: in a container it is often tiny, or nothing in it may be executed."""
    with suppress(OSError, AttributeError):
        room = os.statvfs(folder)
        return room.f_bavail * room.f_frsize > 4 << 30 and not room.f_flag & os.ST_NOEXEC
    return False


def pytest_configure(config):
    config.addinivalue_line("markers", LONG)
    if config.getoption("--full"):  # real starts, and a real disk
        return
    # most of a start is Python's own imports
    if forked.POSSIBLE:
        for name, path in COMPILED.items():
            if path.endswith(".pyc"):
                forked.prepare(str(ROOT / name), path)
    if memory_has_room():  # tests make and remove a hundred thousand files: a third of their time
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")


def pytest_collection(session):
    """Half of the time before the first test is the rewriting of assertions. A second process begins at the last file: what it has stored, this one finds."""
    sys.dont_write_bytecode = False
    if not hasattr(os, "fork") or session.config.option.file_or_dir:
        return
    if helper := os.fork():
        session.config.stash[HELPER] = helper
        return
    for path in sorted(Path(__file__).parent.glob("test_*.py"), reverse=True):
        with suppress(BaseException):
            importlib.import_module(path.stem)
    os._exit(0)


def pytest_collection_finish(session):
    if helper := session.config.stash.get(HELPER, None):
        os.kill(helper, signal.SIGKILL)
        os.waitpid(helper, 0)


@pytest.fixture
def full(request):
    return request.config.getoption("--full")


# --- several tests at once: most of a test is waiting for an interpreter to start ---
LONG = "long(seconds): begins before what is shorter, and one process runs all that has this mark"


def pieces_of(items):
    """The tests in lists, each of which one process runs: what is marked as long first, the longest before all, then ever fewer at a time."""
    long, short = {}, []
    for item in items:
        if mark := item.get_closest_marker("long"):
            long.setdefault(id(mark), (mark.args[0], []))[1].append(item)
        else:
            short.append(item)
    pieces = [tests for _, tests in sorted(long.values(), key=lambda pair: -pair[0])]
    # so that all end together; and less than 256 lists: so many numbers fit into bytes
    while short:
        at_once = max(2, len(short) // 40)
        pieces.append(short[:at_once])
        del short[:at_once]
    return pieces


def pytest_runtestloop(session):
    """Share the tests out among processes, some at a time. The queue is a pipe of numbers, from which each takes its next."""
    option, items = session.config.option, session.items
    pieces = pieces_of(items)
    count = min(option.processes, len(pieces))
    watched = option.collectonly or option.usepdb or option.capture == "no"
    if count < 2 or watched or session.testsfailed or not hasattr(os, "fork"):
        return None  # pytest's own loop
    if option.basetemp:  # before there are several: the first to ask for it empties it
        session.config._tmp_path_factory.getbasetemp()
    queue, filling = os.pipe()
    os.write(filling, bytes(range(len(pieces))))
    os.close(filling)
    workers = {}
    for _ in range(count):
        hear, tell = connection.Pipe(duplex=False)
        if not (pid := os.fork()):
            for other in [*workers, hear]:
                other.close()  # so that a report which nobody gathers is an error
            return work(session, pieces, queue, tell)
        tell.close()
        workers[hear] = pid
    gather_reports(session, workers, queue)
    return True


def gather_reports(session, workers, queue):
    """What the processes report goes to the terminal as if it had happened here; each of them must end well."""
    hooks, problem, running = session.config.hook, None, {}
    try:
        while workers:
            for hear in connection.wait(workers):
                try:
                    data = hear.recv()
                except EOFError:
                    _, status = os.waitpid(workers.pop(hear), 0)
                    if name := running.get(hear):
                        code = os.WTERMSIG(status) if os.WIFSIGNALED(status) else "none"
                        problem = session.Interrupted(f"{name} ended its process (signal {code})")
                    continue
                if isinstance(data, str):
                    running[hear] = data
                else:
                    hooks.pytest_runtest_logreport(
                        report=hooks.pytest_report_from_serializable(
                            config=session.config, data=data
                        )
                    )
                    if session.shouldfail:
                        problem = session.Failed(session.shouldfail)
                if problem:
                    os.read(queue, 256)  # nobody begins another piece
    finally:
        os.read(queue, 256)
        os.close(queue)
        for hear, pid in workers.items():  # interrupted: each ends the test it is in, and tidies up
            hear.close()
            os.waitpid(pid, 0)
    if problem:
        raise problem


def work(session, pieces, queue, tell):
    """One of the processes. It then ends as pytest does, tidying up, with nothing on its own standard output."""
    config = session.config
    # what pytest's own plugins look for, to leave the cache to the one that gathers
    config.workerinput = {}
    config.pluginmanager.register(Teller(session, tell))
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()  # its temporary files are shared with the parent
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    capture.start_global_capturing()
    while not session.shouldfail and (number := os.read(queue, 1)):
        items = pieces[number[0]]
        for item, following in zip(items, [*items[1:], None]):
            config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                break
    return True


class Teller:
    def __init__(self, session, tell):
        self.session, self.tell = session, tell

    def pytest_runtest_logstart(self, nodeid):
        self.send(nodeid)

    def pytest_runtest_logfinish(self):
        self.send("")

    def pytest_runtest_logreport(self, report):
        config = self.session.config
        self.send(config.hook.pytest_report_to_serializable(config=config, report=report))

    def send(self, data):
        """A report, the name of the test that begins, or no name when it has ended."""
        try:
            self.tell.send(data)
        except OSError:
            self.session.shouldfail = "nobody gathers the reports any more"
