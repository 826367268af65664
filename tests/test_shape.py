"""What a reader meets first in each of the six scripts: the help on the terminal, the map in the file."""

import ast
import functools
import os
import re
import signal
import struct
import subprocess
import sys
from contextlib import suppress

import pytest
from conftest import DEADLINE, ROOT, SCRIPTS
from test_upper import lines_of

EACH = pytest.mark.parametrize("script", SCRIPTS)
CLIENT = [
    "list",
    "get",
    "put",
    "delete",
    "rename",
    "mkdir",
    "stat",
    "help",
    "who",
    "send",
    "receive",
    "chat",
]
HTTP_CLIENT = ["get", "put", "post", "delete", "head", "list", "mkdir", "move", "mirror", "upload"]
COMMANDS = [
    *((script,) for script in SCRIPTS),
    *(
        (script, role)
        for script in ("tcp_upper.py", "udp_upper.py")
        for role in ("server", "client")
    ),
    *(("client.py", word) for word in CLIENT),
    *(("httpclient.py", word) for word in HTTP_CLIENT),
]
COMMAND = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
pytestmark = pytest.mark.long(8)  # in one process: each help is asked for once
HELPS = {}  # what was printed


@pytest.fixture
def printed(run):
    """What a command prints as its help: several tests look at the same one."""

    def text(*words):
        if words not in HELPS:
            helped = run(*words, env={"COLUMNS": "80"})
            assert helped.code == 0, helped
            HELPS[words] = helped.out.decode()
        return HELPS[words]

    return text


@functools.lru_cache(None)
def docstring(script):
    return ast.get_docstring(ast.parse((ROOT / script).read_text()), clean=False).strip()


# --- help ---
@COMMAND
def test_the_short_help_fits_on_a_screen_and_explains_every_argument(printed, words):
    text = printed(*words, "-h")
    assert text.startswith(f"usage: {' '.join(words)} ")
    assert docstring(words[0])[:40] not in text
    limit = 24 if words[0].endswith("_upper.py") else 40
    assert text.count("\n") <= limit, text
    bare = re.findall(r"^  [^ ]+(?: [^ ]+)*\n(?!   +[^ ])", text, re.M)
    assert not bare, f"without a text: {bare}"


@COMMAND
def test_the_long_help_is_the_manual_first_then_the_short_one(printed, words):
    short, manual = (printed(*words, flag) for flag in ("-h", "--help"))
    assert manual.strip() == f"{docstring(words[0])}\n\n{short}".strip()


@pytest.mark.parametrize("words", [words for words in COMMANDS if len(words) > 1], ids=" ".join)
def test_a_command_lists_its_own_options_before_those_of_all(printed, words):
    options = re.findall(r"^  (?:-\w[^,\n]*, )?(--[\w-]+)", printed(*words, "-h"), re.M)
    common = options[options.index("--host") :]
    assert {"--port", "--timeout", "--trace", "--trace-hex"} <= set(common)
    assert set(common) <= set(
        re.findall(r"^  (?:-\w[^,\n]*, )?(--[\w-]+)", printed(words[0], "-h"), re.M)
    )


@pytest.mark.parametrize(
    "words, meant",
    [
        (["tcp_upper.py", "sever"], "server"),
        (["udp_upper.py", "server", "--loss", "0.3", "--requets", "5"], "--requests"),
        (["tcp_upper.py", "server", "--mode=thred"], "thread"),
        (["server.py", "--max-sise=5"], "--max-size"),
        (["httpserver.py", "--pubic-read"], "--public-read"),
        (["client.py", "gte", "a"], "get"),
        (["client.py", "get", "a", "--pass", "b"], "--password"),
        (["client.py", "put", "a", "--inot", "x"], "--into"),
        (["httpclient.py", "upolad"], "upload"),
        (["httpclient.py", "get", "/", "--chekcsum=x"], "--checksum"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_misspelt_word_is_answered_with_the_one_that_was_meant(run, words, meant):
    failed = run(*words)
    assert (failed.code, failed.err.count("\n")) == (2, 3)
    assert f"did you mean {meant}? python3 {words[0]}" in lines_of(failed)[2]


@pytest.mark.parametrize(
    "words",
    [
        ["client.py", "--limit-rate", "1M", "put", "a"],
        ["client.py", "--hidden", "put", "a"],
        ["httpclient.py", "--force", "get", "http://a/"],
        ["tcp_upper.py", "--mode", "serial", "server"],
        ["udp_upper.py", "--ping", "3", "client"],
    ],
    ids=" ".join,
)
def test_an_option_before_its_command_is_told_its_place_and_gets_no_wrong_guess(run, words):
    failed = run(*words)
    hint = f"python3 {words[0]} -h; write an option of a command after the command"
    assert (failed.code, lines_of(failed)[2]) == (2, hint)


@pytest.mark.parametrize("words", [["server", "--port"], ["server", ""], ["server", "--port", "x"]])
@pytest.mark.parametrize("script", ["tcp_upper.py", "udp_upper.py"])
def test_a_complaint_about_no_misspelt_word_has_no_guess(run, script, words):
    failed = run(script, *words)
    assert failed.code == 2 and "Traceback" not in failed.err
    assert failed.err.endswith(f"try:   python3 {script} server -h\n")


@EACH
def test_the_short_help_fits_a_terminal(script):
    import fcntl
    import pty
    import termios

    commands = {"client.py": ["receive"], "httpclient.py": ["get"]}
    for columns in 80, 60:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        words = [sys.executable, ROOT / script, *commands.get(script, []), "-h"]
        with subprocess.Popen(words, stdout=theirs) as asked:
            os.close(theirs)
            text = b""
            with suppress(OSError):  # how the end of a terminal is told
                while more := os.read(ours, 65536):
                    text += more
        os.close(ours)
        assert asked.returncode == 0 and b"--host" in text
        assert max(map(len, text.decode().splitlines())) <= columns, text.decode()


@pytest.mark.parametrize("command", ["receive", "send", "put", "get"])
def test_the_usage_names_only_what_stands_without_a_dash(printed, command):
    usage = printed("client.py", command, "-h").splitlines()[0]
    assert re.fullmatch(rf"usage: client.py {command} \[OPTION \.\.\.\]( [][A-Z.]+)*", usage)


@EACH
def test_ctrl_c_while_a_script_is_loaded_shows_no_traceback(script, tmp_path):
    (tmp_path / "argparse.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    loading = subprocess.run(
        [sys.executable, ROOT / script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE,
    )
    assert (loading.returncode, loading.stderr) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("script", ["client.py", "tcp_upper.py", "udp_upper.py"])
def test_a_port_in_the_host_is_told_its_own_option(run, script):
    command = ["list"] if script == "client.py" else ["client", "x"]
    failed = run(script, *command, "--host", "127.0.0.1:9001")
    assert (failed.code, lines_of(failed)[2]) == (6, "--host 127.0.0.1 --port 9001")


@EACH
def test_a_word_that_resembles_nothing_is_answered_with_no_guess(run, script):
    failed = run(script, "--xyzzy")
    assert failed.code == 2
    assert lines_of(failed)[2].startswith(f"python3 {script} -h")


@EACH
@pytest.mark.parametrize("hosts", [["--host", "a", "--host", "b"], ["--host=a", "--host=a"]])
def test_two_hosts_are_an_error_that_says_so(run, script, hosts):
    failed = run(script, *hosts)
    assert failed.code == 2
    assert lines_of(failed)[0] == "--host is given twice, but only one address is used"


# --- the first pages of the echo scripts ---
def first_page(script, count=150):
    """The syntax tree of a script, and the line on which so many lines of code have been read."""
    source = (ROOT / script).read_text()
    tree = ast.parse(source)
    texts = set()  # the lines of docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts.update(range(node.lineno, node.end_lineno + 1))
    code = [
        number
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#") and number not in texts
    ]
    return tree, code[count - 1]


@pytest.mark.parametrize("script", ["tcp_upper.py", "udp_upper.py"])
def test_the_first_page_of_an_echo_script_needs_two_weeks_of_python(script):
    tree, end = first_page(script)
    read = [node for node in ast.walk(tree) if getattr(node, "lineno", end + 1) <= end]
    for node in read:
        assert not isinstance(node, ast.NamedExpr), f"a walrus in line {node.lineno}"
        if isinstance(node, (ast.GeneratorExp, ast.ListComp)):
            assert node.lineno == node.end_lineno, f"over two lines: {node.lineno}"
        assert not (isinstance(node, ast.Attribute) and node.attr == "suppress"), node.lineno
    answers = [node for node in read if isinstance(node, ast.FunctionDef)]
    assert {"answer", "exchange"} <= {node.name for node in answers}


@pytest.mark.parametrize("script", ["tcp_upper.py", "udp_upper.py"])
def test_a_far_name_on_the_first_page_is_one_that_the_map_names(script):
    tree, end = first_page(script)
    places = {
        node.name: node.lineno
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    far = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.lineno <= end
        if places.get(node.id, 0) > node.lineno + 500
    }
    assert far <= {"Stop", "say", "address"}
    (shared,) = re.findall(r"^#   shared fences (.*)", (ROOT / script).read_text(), re.M)
    assert far <= set(re.findall(r"\w+", shared))
