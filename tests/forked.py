"""Start a script by a fork of a process that has its modules already: most of a start is Python's own imports, and the tests start two thousand.

Each of the six scripts gets such a process (this file, run as a program) in each process of the tests at its first start. What is forked then runs the
script's bytecode as `python SCRIPT` does: its own words, environment, folder, streams and session, no descriptor of anybody else's. What only a real start
or a real end shows (other interpreters, PYTHONPATH, limits set before it, --full) is started for real, and so is everything where Linux is not.
"""

import array
import atexit
import contextlib
import gc
import io
import marshal
import os
import socket
import subprocess
import sys
import threading
import types

# read by Python or its libraries before the first line runs
EARLY = ("PYTHON", "LC_", "LANG", "TZ", "LD_", "MALLOC", "GLIBC")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>
STARTERS = {}
POSSIBLE = sys.platform == "linux"


def early(environment):
    return {name: value for name, value in environment.items() if name.startswith(EARLY)}


# --- in the process of the tests ---
class Starter:
    """The process that is forked for one script, and the way to ask it."""

    def __init__(self, bytecode):
        import ctypes

        self.prctl = ctypes.CDLL(None).prctl
        self.sock, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", __file__, bytecode, str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def start(self, words, cwd, environment, new_session, streams):
        """The process number of what runs now: a child of ours, since whose parent ends goes to the next reaper above."""
        order = marshal.dumps((words, cwd, environment, new_session))
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
        streams = [p2cread, c2pwrite, errwrite]
        environment = dict(os.environ if env is None else env)
        special = preexec_fn or pass_fds or not close_fds or shell or min(streams) < 0
        if special or early(environment) != early(os.environ):
            return super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, info, flags, shell,
                p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest,
            )  # fmt: skip
        key = os.getpid(), args[3]
        if key not in STARTERS:
            STARTERS[key] = Starter(args[3])
        where, new_session = os.fspath(cwd or os.getcwd()), rest[5]
        self.pid = STARTERS[key].start(args[4:], where, environment, new_session, streams)
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
    """Standard streams as Python makes them at its start."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        mode = "w" if number else "r"
        new = open(  # noqa: SIM115
            number, mode, encoding=old.encoding, errors=old.errors, newline="\n", closefd=False
        )
        if number == 2:
            new.reconfigure(line_buffering=True)
        new.mode = mode
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def load(bytecode):
    """The script's code; what it imports at its start is imported, and nothing else of it is left."""
    with open(bytecode, "rb") as file:
        code = marshal.loads(file.read()[16:])  # behind the header of PEP 552
    del sys.path[0]  # the folder of the tests
    path, module = list(sys.path), types.ModuleType("imported")
    module.__file__ = bytecode
    sys.modules["imported"] = module
    exec(code, vars(module))
    # what its command line imports and compiles is there then, too
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        module.main(["-h"])
    del sys.modules["imported"]
    sys.path[:] = path
    return code


def become(sock, streams, bytecode, code, words, cwd, environment, new_session):
    """The script, as `python SCRIPT` runs it: what it raises ends this process too."""
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
    sys.argv[:] = [bytecode, *words]
    sys.path.insert(0, os.path.dirname(bytecode))
    module = types.ModuleType("__main__")
    module.__file__ = bytecode
    sys.modules["__main__"] = module
    try:
        exec(code, vars(module))
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        # as Python ends, but nothing is taken apart that the kernel frees anyway: a third of a short run's time
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


def main(bytecode, number):
    code = load(bytecode)
    gc.collect()
    gc.freeze()  # a fork shares what nobody collects
    sock = socket.socket(fileno=int(number))
    while order := receive_order(sock):
        between = os.fork()
        if not between:
            if pid := os.fork():
                sock.sendall(pid.to_bytes(4, "big"))
                os._exit(0)
            return become(sock, order[0], bytecode, code, *order[1])
        os.waitpid(between, 0)  # now the script's process is a child of the tests' own
        sock.sendall(b"!")
        for stream in order[0]:
            os.close(stream)
    sock.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
