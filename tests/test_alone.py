"""Each script by itself: copied to an empty folder, on every interpreter that is here, with the standard library alone."""

import ast
import functools
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS, interpreters

PYTHONS = interpreters()


@pytest.fixture(params=PYTHONS)
def version(request, full):
    """Each interpreter that is here; the oldest and the newest alone unless --full is given."""
    if not full and request.param not in [*PYTHONS][:: max(1, len(PYTHONS) - 1)]:
        pytest.skip("one of the slow matrices: --full runs it")
    return request.param


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_copy_in_an_empty_folder_prints_its_help(alone, script, version, full):
    """-I keeps the folder and the user's packages out, -S the installed ones: what is imported is the standard library."""
    copy = alone(script, for_any=True)
    for flags in [["-I", "-S"], ["-I"]][: 1 + full]:
        helped = subprocess.run(
            [PYTHONS[version], *flags, "-W", "error", copy.name, "--help"],
            cwd=copy.parent,
            capture_output=True,
            text=True,
        )
        assert (helped.returncode, helped.stderr) == (0, "")
        assert f"\nusage: {script} " in helped.stdout
    assert [path.name for path in copy.parent.iterdir()] == [script]


def imported(script):
    """Every module named in an import statement, wherever it stands."""
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module


@functools.lru_cache(None)
def all_imported():
    names = {name for script in SCRIPTS for name in imported(script)} - {"msvcrt", "winreg"}
    return "".join(f"import {name}\n" for name in sorted(names))


@pytest.mark.long(2)  # in one process: the scripts are parsed once
def test_imports_are_of_the_standard_library(version):
    code = all_imported()
    done = subprocess.run(
        [PYTHONS[version], "-I", "-S", "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_runs_at_import(script):
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {script[:-3]}",
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_can_be_started_as_a_program(script):
    assert (ROOT / script).read_text().startswith("#!/usr/bin/env python3\n")
    assert (ROOT / script).stat().st_mode & 0o111


def test_the_top_level_holds_the_scripts_the_tests_and_the_readme():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = {path.split("/")[0] for path in tracked.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= {*SCRIPTS, "tests", "README.md"}
