"""A benchmark that raises, crashes or hangs costs its own result and no other."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import report, runner
from benchmarks.journal import Journal
from benchmarks.timing import Case, Contender, Options, Row, measure
from genfast._optional import MissingPackageError

ROOT = Path(__file__).resolve().parents[2]
QUICK = Options(threads=1, quick=True)

DRIVER = """
import os, signal, sys, time, types
import torch
from benchmarks import __main__ as command, runner, timing
from benchmarks.timing import Case, Contender

timing.Options.seconds, timing.Options.min_rounds = 0.0, 2

def one():
    return (torch.ones(2),)

def crash():
    os.kill(os.getpid(), signal.SIGKILL)

def hang():
    time.sleep(1000)

def refuse():
    raise ValueError("no such\\nluck")

def cases(*runs):
    def generate(options):
        for i, run in enumerate(runs):
            if run is None:
                crash()
            yield Case("op", f"{name_of[generate]} {i}", [Contender("genfast", run), Contender("eager", one)])
        if runs[-1] is refuse:
            raise RuntimeError("at the end")
    return generate

fakes = {"crash": cases(one, crash, one), "early": cases(one, None), "good": cases(one, one), "hang": cases(hang, one),
         "refuse": cases(one, refuse)}
name_of = {function: name for name, function in fakes.items()}
runner.importlib = types.SimpleNamespace(
    import_module=lambda name, package: types.SimpleNamespace(cases=fakes[name.removeprefix(".bench_")]))
command.available = lambda: sorted(fakes)
sys.exit(command.main(sys.argv[1:]))
"""


def drive(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments, "--threads", "1", "--out", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip


def problems(tmp_path):
    results, state = report.load(tmp_path / "cpu.jsonl")
    assert state["threads"] == 1
    return {result.label: result.problem for result in results}


def test_everything_else_is_measured(tmp_path):
    done = drive(tmp_path, "--survive", "--case-limit", "3")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("the benchmarks ended with") == 3  # killed, killed, over time
    found = problems(tmp_path)
    ended = {"crash 1", "hang 0"}
    assert {label for label, problem in found.items() if problem.startswith("the process ended as")} == {
        *ended,
        "case 2",
    }
    assert found["refuse 1"] == "ValueError: no such luck"
    assert found["case 3"] == "RuntimeError: at the end"
    measured = {label for label, problem in found.items() if not problem}
    assert measured == {"crash 0", "crash 2", "early 0", "good 0", "good 1", "hang 1", "refuse 0"}
    assert "NOT MEASURED: op hang 0: the process ended as it came to measure it" in done.stdout
    results, _ = report.load(tmp_path / "cpu.json")
    assert {result.label: result.problem for result in results} == found
    assert (tmp_path / "cpu.csv").read_text().count("the process ended") == 3


def test_a_run_that_was_killed_goes_on(tmp_path):
    assert drive(tmp_path, "good", "crash").returncode == -9
    assert set(problems(tmp_path)) == {"good 0", "good 1", "crash 0", "crash 1"}
    with (tmp_path / "cpu.jsonl").open("a") as file:
        file.write('{"event": "do')
    done = drive(tmp_path, "good", "crash", "--resume")
    assert done.returncode == 1
    assert "crash 2" in done.stdout
    assert "op: good 0" not in done.stdout
    assert not problems(tmp_path)["crash 2"]


def test_usage_errors_are_not_repeated(tmp_path):
    done = drive(tmp_path, "nonsense", "--survive")
    assert done.returncode == 2
    assert done.stderr.count("no benchmark is called") == 1


def test_surviving_goes_on_with_a_run_only_where_asked(tmp_path, monkeypatch):
    path = tmp_path / "cpu.jsonl"
    journal = Journal(path)
    journal.machine({"threads": 2})
    result = runner.Result("op", "label", [], problem="x")
    journal.done("x", 0, result)
    monkeypatch.setattr(runner.subprocess, "run", lambda command, check: types.SimpleNamespace(returncode=9))
    assert command.main(["--resume", "--survive", "--out", str(tmp_path)]) == 9
    assert Journal(path, "read").results() == [result]
    assert command.main(["--survive", "--out", str(tmp_path)]) == 9  # the processes end before they begin
    assert Journal(path, "read").results() == []


def test_words_that_are_handed_on_are_whole(capsys):
    with pytest.raises(SystemExit):
        command.parser().parse_args(["--surv"])
    assert "unrecognized arguments: --surv" in capsys.readouterr().err


def test_results_of_different_settings_are_not_mixed(tmp_path, capsys):
    Journal(tmp_path / "cpu.jsonl").machine({"device": "cpu", "threads": 3})
    before = (tmp_path / "cpu.jsonl").read_text()
    with pytest.raises(SystemExit) as exit_:
        command.main(["--resume", "--threads", "1", "--out", str(tmp_path)])
    assert exit_.value.code == 2
    assert "was measured with threads=3, now it is 1" in capsys.readouterr().err
    assert (tmp_path / "cpu.jsonl").read_text() == before


@pytest.mark.parametrize("line", ["", '{"event": "done"', '{"event": "done", "name": "x"}', "[]", "hello"])
def test_what_is_no_journal_is_refused(tmp_path, line, capsys):
    path = tmp_path / "cpu.jsonl"
    path.write_text(f"{line}\n" if line else "")
    for argv in (["--load", str(path), "--markdown", "README.md"], ["--resume", "--out", str(tmp_path)]):
        if line or "--load" in argv:
            with pytest.raises(SystemExit) as exit_:
                command.main(argv)
            assert exit_.value.code == 2
            assert f"{path}: {'it is no journal' if line else 'no run has begun'}" in capsys.readouterr().err


def raising():
    raise torch.OutOfMemoryError("no memory")


def one():
    return (torch.ones(2),)


def test_a_rival_that_raises_is_left_out():
    contenders = [Contender("genfast", one), Contender("large", raising), Contender("eager", one)]
    result = measure(Case("op", "label", contenders), QUICK)
    assert not result.agrees
    assert [row.seconds is not None for row in result.rows] == [True, False, True]
    assert [row.name for row in result.rows] == ["genfast", "large", "eager"]
    assert result.rows[2].speedup is not None
    assert result.rows[1].problem == "raised OutOfMemoryError: no memory"
    assert "FAILED: op label: large: raised OutOfMemoryError" in report.format_summary([result])
    with pytest.raises(torch.OutOfMemoryError):
        measure(Case("op", "label", [Contender("genfast", raising), Contender("eager", one)]), QUICK)


def test_a_lost_device_asks_for_a_new_process(tmp_path, monkeypatch):
    """As after an illegal access: every further call of the device fails."""

    class Bench:
        @staticmethod
        def cases(options):
            yield Case("op", "first", [Contender("genfast", raising)])
            raise AssertionError("went on")

    monkeypatch.setattr(runner.importlib, "import_module", lambda name, package: Bench)
    monkeypatch.setattr(runner, "device_lost", lambda device: True)
    journal = Journal(tmp_path / "cpu.jsonl")
    assert not runner.run(["x"], QUICK, journal, runner.Limits())
    assert [result.problem for result in journal.results()] == ["OutOfMemoryError: no memory"]
    assert not journal.ended("x")


def test_little_time_is_shared(tmp_path, monkeypatch, capsys):
    """A case of each benchmark comes before the second of any, and none begins too late."""

    def cases(name):
        for i in range(2):
            yield Case("op", f"{name} {i}", [Contender("genfast", one)])

    class Bench:
        def __init__(self, name):
            self.cases = lambda options: cases(name)

    monkeypatch.setattr(runner.importlib, "import_module", lambda name, package: Bench(name[-1]))
    monkeypatch.setattr(runner, "measure", lambda case, options: runner.Result(case.op, case.label, []))
    for limits, order in (
        (runner.Limits(), ["a 0", "a 1", "b 0", "b 1"]),
        (runner.Limits(1000), ["a 0", "b 0", "a 1", "b 1"]),
        (runner.Limits(1e-9), []),
    ):
        journal = Journal(tmp_path / "cpu.jsonl")
        assert runner.run(["a", "b"], QUICK, journal, limits)
        text = (tmp_path / "cpu.jsonl").read_text()
        assert [json.loads(line)["label"] for line in text.splitlines() if '"measure"' in line] == order
        assert ("NO TIME LEFT after 0 s for all cases of a, b" in capsys.readouterr().out) == (not order)


def test_what_needs_a_package_that_is_not_there_is_left_out(tmp_path, monkeypatch, capsys):
    class Bench:
        @staticmethod
        def cases(options):
            raise MissingPackageError("this needs no_such_package, which is not installed")
            yield Case("op", "first", [Contender("genfast", one)])

    monkeypatch.setattr(runner.importlib, "import_module", lambda name, package: Bench)
    journal = Journal(tmp_path / "cpu.jsonl")
    assert runner.run(["x"], QUICK, journal, runner.Limits())
    assert journal.results() == []
    assert journal.ended("x")
    assert "x is left out: this needs no_such_package, which is not installed" in capsys.readouterr().err


def test_results_come_back_from_a_journal(tmp_path):
    result = runner.Result("op", "label", [Row("genfast", 0.5, problem="x")], rounds=3)
    journal = Journal(tmp_path / "a.jsonl")
    journal.done("x", 0, result)
    assert Journal(tmp_path / "a.jsonl", "read").results() == [result]
    assert all(json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines())
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "b.jsonl", "read")
