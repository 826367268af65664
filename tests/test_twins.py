"""The blocks that several scripts share are the same to the byte, and stand exactly where their first line says."""

import ast
import functools
import re

import pytest
from conftest import ROOT, SCRIPTS

FENCE = re.compile(
    r"^# --- (?P<name>[\w -]+?): (?P<says>the same in .*?) ---\n(?P<body>.*?)^# --- end (?P=name) ---$",
    re.M | re.S,
)
GROUPS = {
    "the four file scripts": {"server.py", "client.py", "httpserver.py", "httpclient.py"},
    "all six scripts": {
        "server.py",
        "client.py",
        "httpserver.py",
        "httpclient.py",
        "tcp_upper.py",
        "udp_upper.py",
    },
    "all scripts over TCP": {
        "server.py",
        "client.py",
        "httpserver.py",
        "httpclient.py",
        "tcp_upper.py",
    },
    "all four clients": {"client.py", "httpclient.py", "tcp_upper.py", "udp_upper.py"},
    "all four servers": {"server.py", "httpserver.py", "tcp_upper.py", "udp_upper.py"},
}


@functools.lru_cache(None)
def fences():
    """name -> script -> (what the first line says, the body)"""
    found = {}
    for script in SCRIPTS:
        for match in FENCE.finditer((ROOT / script).read_text()):
            assert script not in found.setdefault(match["name"], {}), (
                f"{script} has two blocks called {match['name']}"
            )
            found[match["name"]][script] = match["says"], match["body"]
    return found


def functions(script):
    """The names of its functions and methods in their order, a method as Class.name; fenced ones are left out."""
    source = FENCE.sub(lambda match: "\n" * match[0].count("\n"), (ROOT / script).read_text())
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        if isinstance(node, ast.ClassDef):
            names += [
                f"{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, ast.FunctionDef)
            ]
    return names


def test_every_fence_that_opens_also_closes():
    for script in SCRIPTS:
        source = (ROOT / script).read_text()
        opened = re.findall(r"^# --- ([\w -]+?): the same in", source, re.M)
        assert opened == [match["name"] for match in FENCE.finditer(source)], script
        assert len(re.findall(r"^# --- end ", source, re.M)) == len(opened), script


@pytest.mark.parametrize("name", sorted(fences()))
def test_copies_of_a_fence_are_the_same_to_the_byte(name):
    copies = fences()[name]
    assert len({body for _, body in copies.values()}) == 1, (
        f"{name} differs between {', '.join(copies)}"
    )
    assert len({says for says, _ in copies.values()}) == 1, (
        f"the first lines of {name} differ between {', '.join(copies)}"
    )


@pytest.mark.parametrize("name", sorted(fences()))
def test_a_fence_stands_where_its_first_line_says(name):
    copies = fences()[name]
    says = (
        next(iter(copies.values()))[0]
        .replace("the same in ", "")
        .replace(" (tests/test_twins.py)", "")
    )
    named = GROUPS.get(says) or set(re.split(r", | and ", says))
    assert named & set(SCRIPTS) == set(copies)


def test_one_changed_byte_in_a_fence_is_noticed():
    copies = dict(fences()["errors"])
    script = next(iter(copies))
    says, body = copies[script]
    copies[script] = says, body.replace("error", "Error", 1)
    assert len({body for _, body in copies.values()}) == 2


def test_the_echo_scripts_have_the_same_functions_in_the_same_order():
    of_udp_alone = "TracedDatagrams."  # what --trace shows of datagrams
    over_udp = [name for name in functions("udp_upper.py") if not name.startswith(of_udp_alone)]
    assert functions("tcp_upper.py") == over_udp


def is_there(name, tree):
    """Where a function, a class or a method Class.name begins in the file, None if it is nowhere."""
    for part in name.split("."):
        kinds = ast.FunctionDef, ast.ClassDef
        found = [node for node in tree.body if isinstance(node, kinds) and node.name == part]
        if not found:
            return None
        tree = found[0]
    return tree.lineno


MAPS = {
    script: found[0]
    for script in SCRIPTS
    if (found := re.search(r"^# The map\n(?:#.*\n)+", (ROOT / script).read_text(), re.M))
}


def test_each_script_has_a_map():
    assert set(MAPS) == set(SCRIPTS)


@pytest.mark.parametrize("script", MAPS)
def test_what_the_map_names_is_there_and_in_that_order(script):
    """Names are functions with (), or classes in the list of sections, which is indented."""
    tree = ast.parse((ROOT / script).read_text())
    before_reasons = MAPS[script].partition("\n# Why ")[0]
    listed = "\n".join(re.findall(r"^#   .*", before_reasons, re.M))
    # a word all in capitals is a state in a drawing, or an abbreviation
    names = re.findall(r"\b[A-Z]\w+\.\w+(?=\()|\b\w+(?=\(\))|\b[A-Z]\w*[a-z]\w*", listed)
    lines = [is_there(name, tree) for name in names]
    assert len(names) >= 5 and None not in lines, dict(zip(names, lines))
    assert lines == sorted(lines), f"not in the order of the file: {dict(zip(names, lines))}"
    for name in re.findall(r"\b(?:[A-Z]\w+\.)?\w+(?=\(\))", MAPS[script]):
        known = name in ("accept", "select", "recv", "send") or is_there(name, tree)
        assert known, f"{name}() is nowhere"


@pytest.mark.parametrize("script", MAPS)
def test_the_map_is_short_and_stands_before_the_imports(script):
    source = (ROOT / script).read_text()
    before = MAPS[script].partition("\n# Why ")[0]
    told = [line for line in before.splitlines() if not re.search(r"^#$|--|[|^]", line)]
    assert 10 <= len(told) <= 20, "without empty lines, a drawing of the states, and reasons"
    assert source.index("# The map\n") < source.index("\nimport ")
