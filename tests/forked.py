"""Start a script by a fork of a process that has its modules already: most of a start is Python's own imports, and the tests start two thousand.

Each of the six scripts gets such a process (this file, run as a program) in each process of the tests at its first start. It has run the script up to its
last statement, which calls main(). What is forked then goes on as `python SCRIPT` does: its own words, environment, folder, streams and session, no descriptor
of anybody else's. A program of a test that changes something and then runs or imports a script is forked from that script's process, too; it runs the script
from its first line. What only a real start or a real end shows (other interpreters, PYTHONPATH, limits set before it, --full) is started for real, and so is
everything where Linux is not.
"""

import array
import ast
import atexit
import contextlib
import gc
import io
import marshal
import os
import re
import runpy
import socket
import subprocess
import sys
import threading
import types
import warnings

# read by Python or its libraries before the first line runs
EARLY = ("PYTHON", "LC_", "LANG", "TZ", "LD_", "MALLOC", "GLIBC")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>
# what a script may take at its start that is not the same in two processes
OWN = ("urandom", "perf_counter", "monotonic", "time", "getpid", "getcwd", "environ", "argv")
SOURCES = {}  # of what is started by a fork, by its bytecode
STARTERS = {}
STARTING = threading.Lock()
REAL = subprocess.Popen
POSSIBLE = sys.platform == "linux"


def early(environment):
    return {name: value for name, value in environment.items() if name.startswith(EARLY)}


# --- in the process of the tests ---
def prepare(source, bytecode):
    """From now on it is started by a fork, by whomever in this process. What the process for it runs lies beside the bytecode."""
    with open(source, encoding="utf-8") as file:
        parts = in_two(file.read(), source)
    part = f"{bytecode}.{os.getpid()}"
    with open(part, "wb") as file:
        marshal.dump(parts, file)
    os.replace(part, bytecode + ".parts")
    SOURCES[bytecode] = source
    subprocess.Popen = Popen


def in_two(text, source):
    """The code of a script until it calls main(), and from there: what a process must take for itself, and that call."""
    tree = ast.parse(text)
    rest = [tree.body.pop()]
    for node in tree.body:
        within = node.body if isinstance(node, ast.ClassDef) else [node]
        for each in within:
            if isinstance(each, (ast.Assign, ast.AnnAssign)) and each.value and own(each.value):
                target = each.target if isinstance(each, ast.AnnAssign) else each.targets[0]
                name = ast.unparse(target) if each is node else f"{node.name}.{target.id}"
                rest.insert(0, *ast.parse(f"{name} = {ast.unparse(each.value)}").body)
    last = ast.Module(rest, [])
    return tuple(compile(part, source, "exec", dont_inherit=True) for part in (tree, last))


def own(value):
    return any(getattr(node, "attr", getattr(node, "id", None)) in OWN for node in ast.walk(value))


def what_to_run(command):
    """The bytecode of the script, and for its process: whether warnings are errors, the text of the test's program that runs it, if any, and its words.
    None if it is something else."""
    if not isinstance(command, (list, tuple)) or command[0] != sys.executable:
        return None
    words = [os.fspath(word) for word in command[1:]]
    strict = words[:2] == ["-W", "error"]
    if strict:
        del words[:2]
    first, text = words[0], None
    if first == "-c":
        text = words.pop(1)
    elif first.endswith(".py") and os.path.dirname(first) != os.path.dirname(__file__):
        with contextlib.suppress(OSError):
            if os.path.getsize(first) < 20000:  # a program of a test, and no copy of a script
                with open(first, encoding="utf-8") as file:
                    text = file.read()
    for bytecode, source in SOURCES.items():
        name = os.path.basename(source)[:-3]
        if first in (bytecode, source):
            return bytecode, (strict, None, words)
        runs = "runpy.run_path(" in (text or "") and (source in text or source in words)
        if runs or re.search(rf"\bimport {name}\b", text or ""):
            return bytecode, (strict, text, words)
    return None


class Starter:
    """The process that is forked for one script, and the way to ask it."""

    def __init__(self, bytecode):
        import ctypes

        self.prctl = ctypes.CDLL(None).prctl
        self.sock, other = socket.socketpair()
        with other:
            self.process = REAL(
                [
                    sys.executable,
                    "-W",
                    "error",
                    __file__,
                    SOURCES[bytecode],
                    bytecode,
                    str(other.fileno()),
                ],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def start(self, what, cwd, environment, new_session, streams):
        """The process number of what runs now: a child of ours, since whose parent ends goes to the next reaper above."""
        order = marshal.dumps((what, cwd, environment, new_session))
        self.prctl(SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self.sock, [len(order).to_bytes(4, "big")], streams)
            self.sock.sendall(order)
            answer = receive(self.sock, 5)[:4]
        finally:
            self.prctl(SUBREAPER, 0, 0, 0, 0)
        return int.from_bytes(answer, "big")


class Popen(subprocess.Popen):
    """subprocess.Popen whose process is forked where that shows what a real start would."""

    # the arguments are the same from Python 3.9 on; what came later stands at the end
    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, info, flags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest,
    ):  # fmt: skip
        environment = dict(os.environ if env is None else env)
        special = preexec_fn or pass_fds or not close_fds or shell or executable
        if special or early(environment) != early(os.environ) or not (what := what_to_run(args)):
            return super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, info, flags, shell,
                p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest,
            )  # fmt: skip
        streams = [
            number if ours < 0 else ours
            for number, ours in enumerate((p2cread, c2pwrite, errwrite))
        ]
        bytecode, what = what
        with STARTING:
            key = os.getpid(), bytecode
            if key not in STARTERS:
                STARTERS[key] = Starter(bytecode)
            where, new_session = os.fspath(cwd or os.getcwd()), rest[5]
            self.pid = STARTERS[key].start(what, where, environment, new_session, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


# --- in the process that is forked ---
def receive(sock, size):
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def receive_order(sock):
    """The descriptors of three streams, and what to run; None when the tests have ended."""
    streams = array.array("i")
    size, ancillary, _, _ = sock.recvmsg(4, socket.CMSG_SPACE(3 * streams.itemsize))
    if not size:
        return None
    streams.frombytes(ancillary[0][2])
    size += receive(sock, 4 - len(size))
    return list(streams), marshal.loads(receive(sock, int.from_bytes(size, "big")))


def open_streams():
    """Standard streams as Python makes them at its start: unbuffered if PYTHONUNBUFFERED says so."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        mode = "w" if number else "r"
        buffer = open(  # noqa: SIM115
            number, mode + "b", -isinstance(old.buffer, io.BufferedIOBase), closefd=False
        )
        new = io.TextIOWrapper(
            buffer,
            old.encoding,
            old.errors,
            "\n",
            line_buffering=number == 2,
            write_through=old.write_through,
        )
        new.mode = mode
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def load(bytecode):
    """The script's code, and a module that has run all but its last statement; that statement's code."""
    with open(bytecode, "rb") as file:
        code = marshal.loads(file.read()[16:])  # behind the header of PEP 552
    with open(bytecode + ".parts", "rb") as file:
        first, last = marshal.load(file)
    del sys.path[0]  # the folder of the tests
    path = list(sys.path)
    # what its command line imports and compiles is there then, too
    module = new_module("imported", bytecode)
    exec(code, vars(module))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        module.main(["-h"])
    del sys.modules["imported"]
    sys.path[:] = [os.path.dirname(bytecode), *path]
    module = new_module("__main__", bytecode)
    exec(first, vars(module))
    return code, module, last, path


def new_module(name, file=None):
    module = types.ModuleType(name)
    if file:
        module.__file__ = file
    sys.modules[name] = module
    return module


def become(sock, streams, cwd, environment, new_session):
    """The process that a start gets: no descriptor of anybody else's."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sock.close()
    os.closerange(3, max(streams) + 1)
    if new_session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    open_streams()


def warn_as_ever():
    """As a Python that was started without -W."""
    sys.warnoptions.clear()
    warnings.resetwarnings()
    for kind in ImportWarning, PendingDeprecationWarning, DeprecationWarning, ResourceWarning:
        warnings.simplefilter("ignore", kind)


def run_changed(text, words, code, source, path):
    """What a test makes of the script, as `python -c TEXT` or `python FILE` runs it. It has the script's code, so that nobody compiles it again."""

    def run_path(file, init_globals=None, run_name=None):
        if str(file) != source:
            return run(file, init_globals, run_name)
        sys.argv[0] = source
        module = new_module(run_name, source)
        exec(code, vars(module))
        return vars(module)

    run, runpy.run_path = runpy.run_path, run_path
    by_file = words[0] != "-c"
    sys.path[:] = [os.path.dirname(words[0]) if by_file else "", *path]
    module = new_module("__main__", words[0] if by_file else None)
    exec(compile(text, words[0] if by_file else "<string>", "exec"), vars(module))


def end_after(run, *what):
    """What it raises ends this process, too."""
    try:
        run(*what)
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        # as Python ends, but nothing is taken apart that the kernel frees anyway: a third of a short run's time
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


def main(source, bytecode, number):
    code, module, last, path = load(bytecode)
    gc.collect()
    gc.freeze()  # a fork shares what nobody collects
    sock = socket.socket(fileno=int(number))
    while order := receive_order(sock):
        between = os.fork()
        if not between:
            if pid := os.fork():
                sock.sendall(pid.to_bytes(4, "big"))
                os._exit(0)
            streams, ((strict, text, words), *where) = order
            become(sock, streams, *where)
            if not strict:
                warn_as_ever()
            sys.argv[:] = words
            if text is None:
                return end_after(exec, last, vars(module))
            return end_after(run_changed, text, words, code, source, path)
        os.waitpid(between, 0)  # now the script's process is a child of the tests' own
        sock.sendall(b"!")
        for stream in order[0]:
            os.close(stream)
    sock.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
