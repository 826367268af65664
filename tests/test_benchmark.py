"""The benchmark: its numbers, its charts, and one small run of it. How fast anything is, is not asserted."""

import argparse
import json
import math
import os
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET

import benchmark
import pytest
from conftest import DEADLINE, ROOT, until

BENCHMARK = ROOT / "tests" / "benchmark.py"
SVG = "{http://www.w3.org/2000/svg}"


def run_benchmark(*args, **more):
    return subprocess.run(
        [sys.executable, "-W", "error", BENCHMARK, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=10 * DEADLINE,  # on a busy machine a small run takes its time
        check=False,
        **more,
    )


@pytest.mark.parametrize(
    "ours, theirs, better, want",
    [
        ([2, 4, 6], [1, 2, 3], "more", 2),
        ([2, 4, 6], [1, 2, 3], "less", 0.5),
        # the median of the ratios, not the ratio of the medians
        ([10, 1, 10], [5, 1, 5], "more", 2),
        # a round in which one of the two failed does not count
        ([None, 4], [9, 2], "more", 2),
        ([4, 4, 4], [2], "more", 2),
        ([], [1], "more", math.nan),
        ([None], [1], "more", math.nan),
    ],
)
def test_ratios_are_taken_pair_by_pair(ours, theirs, better, want):
    got = benchmark.pair_ratio(ours, theirs, better)
    assert got == want or math.isnan(got) and math.isnan(want)


@pytest.mark.parametrize("values, want", [([3], 3), ([5, 1, 3], 3), ([1, 2, 3, 10], 2.5)])
def test_medians(values, want):
    assert benchmark.median(values) == want


def test_the_line_through_times_gives_set_up_and_rate():
    setup, rate = benchmark.line_fit([(size, 0.05 + size / 1e9) for size in (1e3, 1e6, 1e8, 1e9)])
    assert (round(setup, 6), round(rate)) == (0.05, 1_000_000_000)
    assert math.isnan(benchmark.line_fit([(1, 2.0), (2, 2.0)])[1])


@pytest.mark.parametrize(
    "value, want",
    [
        (math.nan, "-"),
        (None, "-"),
        (0, "0"),
        (0.01234, "0.0123"),
        (99.5, "99.5"),
        (1234567, "1,234,567"),
    ],
)
def test_numbers_have_three_digits_that_count(value, want):
    assert benchmark.short(value) == want


@pytest.mark.parametrize(
    "count, want", [(512, "512 B"), (1024, "1 KiB"), (4 << 20, "4 MiB"), (1 << 30, "1 GiB")]
)
def test_sizes_are_named(count, want):
    assert benchmark.size_name(count) == want


@pytest.mark.parametrize(
    "values, want", [([5], 5), ([2, 1], 2), (range(100), 99), (range(1000), 990)]
)
def test_one_of_a_hundred_lies_above_the_percentile(values, want):
    assert benchmark.percentile(values) == want


def test_each_round_begins_with_another_contender():
    assert [benchmark.turned("abc", n) for n in range(4)] == ["abc", "bca", "cab", "abc"]


@pytest.mark.parametrize("top", [0.003, 1, 7, 50, 99_999])
def test_an_axis_has_few_marks_and_reaches_the_top(top):
    steps = benchmark.nice_steps(top)
    assert steps[0] == 0 and steps[-1] >= top and 2 <= len(steps) <= 6


BARS = {
    ("ours server.py", None): [3.0, 1.0, None],
    ('a <b> & "c"', None): [2.0],
    ("failed", None): [None],
}
LINES = {
    (name, x): [factor * (x + 1.0)]
    for name, factor in (("socket", 1), ("HTTP", 900))
    for x in (0, 1024, 1 << 20)
}


@pytest.mark.parametrize(
    "rows, label",
    [(BARS, ""), (LINES, "file size (bytes)"), ({("one", 16): [5.0]}, "connections at once")],
)
def test_a_chart_is_well_formed_names_its_unit_and_runs_nothing(rows, label):
    suite = benchmark.Suite("Title <&>", "MB/s", "more", label, lambda bench: [])
    drawn = benchmark.chart(suite, rows)
    root = ET.fromstring(drawn)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert "Title <&>" in words and "MB/s" in words
    assert label.replace(" (bytes)", "") in " ".join(filter(None, words))
    assert {element.tag for element in root.iter()}.isdisjoint(
        {f"{SVG}script", f"{SVG}image", f"{SVG}a"}
    )
    assert "prefers-color-scheme:dark" in drawn and "http" not in drawn.replace(
        "http://www.w3.org/2000/svg", ""
    ).lower().replace(">http<", "")
    for element in root.iter(f"{SVG}circle"):
        assert (
            0 <= float(element.get("cx")) <= benchmark.WIDTH
            and 0 <= float(element.get("cy")) <= 400
        )


def test_every_goal_names_contenders_of_its_suite(tmp_path):
    bench = benchmark.Bench(argparse.Namespace(quick=False, scripts=ROOT), tmp_path)
    bench.share.mkdir()
    bench.large, bench.sizes = (
        benchmark.make_file(bench.share / "large.bin", 10),
        dict.fromkeys(benchmark.SIZES["whole"]),
    )
    cells = {
        key: {(cell.name, cell.x) for cell in suite.cells(bench)}
        for key, suite in benchmark.SUITES.items()
    }
    for goal in benchmark.GOALS:
        for name in filter(None, (goal.ours, goal.theirs)):
            assert any(name == cell and goal.x in (None, x) for cell, x in cells[goal.suite]), (
                goal,
                name,
            )


def test_a_link_is_cut_where_it_should_be_and_what_passed_is_counted(canned):
    passed = []
    # what is not read before a cut makes it a reset
    with benchmark.cut_link(canned(b"x" * 1000, read_until=b"give").port, [100], passed) as link:
        for want in 100, 1000:
            with (
                socket.create_connection(link.getsockname(), DEADLINE) as conn,
                conn.makefile("rb") as answer,
            ):
                conn.sendall(b"give")
                assert len(answer.read()) == want
        link.shutdown(socket.SHUT_RDWR)
    assert sum(passed) == 1100


def test_wrong_passwords_are_counted_when_they_are_answered(canned):
    server = canned(b"no")

    def rate():
        process = benchmark.aside(benchmark.guess, server.port, "wrong", 0.3)
        out, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, err
        return float(out)

    until(rate, "an answer within a third of a second")


def test_what_cannot_begin_aside_does_not_count():
    with pytest.raises(benchmark.Wrong, match="Refused"):
        benchmark.aside(benchmark.hold_crowd, "nginx", 1, 1, 1, 0, "a", 1, "", "b", 1, "")


def test_help_is_the_manual_and_lists_the_suites():
    asked = run_benchmark("--help")
    assert asked.returncode == 0 and benchmark.__doc__.splitlines()[0] in asked.stdout
    assert all(key in asked.stdout for key in benchmark.SUITES)


def test_an_unknown_suite_is_a_usage_error():
    asked = run_benchmark("no-such-suite")
    assert asked.returncode == 2 and "no-such-suite" in asked.stderr


def test_it_says_who_is_here_and_how_to_install_who_is_not():
    assert "nginx" in run_benchmark("--peers").stdout
    nobody = run_benchmark("--peers", "install", env={**os.environ, "PATH": "/nowhere"})
    assert nobody.returncode == 0 and "apt-get install" in nobody.stdout


@pytest.mark.long(4)
def test_a_small_run_measures_verifies_and_draws(tmp_path):
    done = run_benchmark(
        "first-byte",
        "chunks",
        "--only",
        "^http.server$|send and recv",
        "--rounds",
        1,
        "--quick",
        "--out",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "results.json").read_text())
    assert {row["contender"] for row in told["results"]} == {
        "http.server",
        "send and recv of that size",
    }, done.stdout
    assert all(row["min"] <= row["median"] <= row["max"] for row in told["results"])
    for name in ("first-byte", "chunks"):
        ET.parse(tmp_path / f"{name}.svg")


def test_scripts_that_are_not_there_are_named_and_not_failed(tmp_path):
    done = run_benchmark(
        "start",
        "--only",
        "client.py",
        "--rounds",
        1,
        "--quick",
        "--scripts",
        tmp_path,
        "--out",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    assert "client.py (not there yet)" in done.stdout


@pytest.mark.long(3)
def test_ctrl_c_keeps_what_is_there_and_leaves_no_file(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            BENCHMARK,
            "first-byte",
            "--only",
            "^http.server$",
            "--quick",
            "--rounds",
            "500",
            "--work",
            tmp_path,
            "--out",
            tmp_path / "out",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "round 2 of 500" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130 and "Time to first byte" in out
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
