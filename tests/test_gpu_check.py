"""scripts/gpu_check.sh: what it says where it cannot check anything, and how it goes on where something fails."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from genfast import _native

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"


def run(*arguments, python=sys.executable, **environment):
    environment = {**os.environ, "PYTHON": str(python), **environment}
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def refused(done, sentence):
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"gpu_check: {sentence}")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path):
    refused(run("--out", tmp_path / "new"), "nothing to check: torch sees no GPU on this machine")


def test_bad_arguments(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refused(run("--fast"), "unknown argument '--fast'")
    refused(run("--out"), "--out needs a folder")
    refused(run("--out", file), f"cannot write to {file}")
    refused(run("--out", tmp_path, python="/no/python"), "no Python called '/no/python'")


def test_help():
    done = run("--help")
    assert done.returncode == 0
    assert "scripts/gpu_check.sh [--out DIR]" in done.stdout


# -- the phases -------------------------------------------------------------------------------------------------------


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT.with_suffix(".py"))
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # where its dataclasses look
    spec.loader.exec_module(module)
    return module


def shell(check, name, script, judge=None, **options):
    """A phase that runs a line of shell."""
    return check.Phase(
        name, lambda seconds: ["bash", "-c", script, "-", str(seconds)], options.pop("weight", 1),
        options.pop("most", 60), judge or check.judge_tests, **options,
    )  # fmt: skip


def go(check, monkeypatch, tmp_path, *phases, started=0.0):
    (tmp_path / "work").mkdir(exist_ok=True)
    monkeypatch.setattr(check, "phases", lambda python, work, out: list(phases))
    code = check.main(
        [
            *("--python", sys.executable, "--work", str(tmp_path / "work"), "--out", str(tmp_path)),
            *("--gpu", "Some GPU", "--started", str(time.time() - started)),
        ]
    )
    return code, json.loads((tmp_path / "gpu_check.json").read_text())


BUILD = "echo 'CUDA kernels  sm_90'"


def test_a_failure_does_not_stop_what_follows(check, monkeypatch, tmp_path, capsys):
    code, report = go(
        check, monkeypatch, tmp_path,
        shell(check, "build", BUILD, check.judge_build),
        shell(check, "small", "echo 'FAILED tests/x.py::y - wrong'; echo '1 failed, 3 passed in 2s'; exit 1"),
        shell(check, "crash", "kill -SEGV $$"),
        shell(check, "tests", "echo '4 passed, 2 skipped in 2s'"),
        shell(check, "none", "echo '4 skipped in 2s'"),
        shell(check, "late", "echo 'SKIPPED [3] x: no time left'; echo '4 passed, 3 skipped in 2s'"),
        check.Phase("memcheck", None, 1, 9, check.judge_sanitizer, "no compute-sanitizer"),
        shell(check, "racecheck", "echo 'Error: Device not supported'; exit 1", check.judge_sanitizer),
    )  # fmt: skip
    assert code == 1
    assert [(phase["phase"], phase["outcome"]) for phase in report["phases"]] == [
        ("build", "passed"),
        ("small", "failed"),
        ("crash", "failed"),
        ("tests", "passed"),
        ("none", "failed"),
        ("late", "incomplete"),
        ("memcheck", "not run"),
        ("racecheck", "not run"),
    ]
    printed = capsys.readouterr().out
    assert "FAILED tests/x.py::y - wrong" in printed
    assert "gpu_check: small, crash, none failed on Some GPU" in printed
    assert "no benchmark was measured" in printed
    assert "4 passed, 2 skipped" in (tmp_path / "gpu_check.log").read_text()


def test_a_build_that_fails_ends_it(check, monkeypatch, tmp_path, capsys):
    script = "echo 'x.cu(3): error: no'; exit 1"
    code, report = go(
        check, monkeypatch, tmp_path, shell(check, "build", script, check.judge_build), shell(check, "tests", "true")
    )
    assert code == 1
    assert [phase["phase"] for phase in report["phases"]] == ["build"]
    assert "x.cu(3): error: no" in capsys.readouterr().out


def test_a_phase_that_hangs_is_ended_with_all_it_started(check, monkeypatch, tmp_path):
    mark = tmp_path / "mark"
    hang = f"(trap '' TERM; while true; do date > {mark}; sleep 0.1; done) & echo begun; sleep 600"
    code, report = go(
        check, monkeypatch, tmp_path,
        shell(check, "build", BUILD, check.judge_build),
        shell(check, "tests", hang, most=5.1),
        shell(check, "more", "echo '1 passed'"),
    )  # fmt: skip
    assert code == 1
    assert [phase["outcome"] for phase in report["phases"]] == ["passed", "timed out", "passed"]
    assert report["phases"][1]["seconds"] < 20
    mark.unlink(missing_ok=True)
    time.sleep(0.5)
    assert not mark.exists()
    assert "begun" in (tmp_path / "gpu_check.log").read_text()


def test_time_is_shared(check, monkeypatch, tmp_path):
    """By weight among what is still to come; what a phase leaves goes to the next; past the end nothing begins."""
    script = 'echo "1 passed, limit $1"'
    phases = [
        shell(check, "build", BUILD, check.judge_build),
        shell(check, "a", script, weight=3, most=1000),
        shell(check, "b", script, weight=1, most=1000),
        shell(check, "c", script, weight=1, most=20),
    ]
    _, report = go(check, monkeypatch, tmp_path, *phases, started=check.TOTAL - 100)
    limits = [float(phase["detail"].rpartition(" ")[2]) for phase in report["phases"][1:]]
    assert limits == [pytest.approx(60, abs=8), pytest.approx(50, abs=8), 20]
    code, report = go(check, monkeypatch, tmp_path, *phases, started=check.TOTAL - 1)
    assert code == 0
    assert [phase["outcome"] for phase in report["phases"]] == ["not run"]


def test_the_commands_of_the_phases(check, tmp_path):
    """What they run is there, and takes the arguments it is given."""
    found = {phase.name: phase for phase in check.phases(sys.executable, tmp_path, tmp_path)}
    assert list(found) == ["build", "benchmarks", "small", "tests", "memcheck", "racecheck", "report"]
    command = list(found["benchmarks"].command(100))
    command[command.index("cuda")] = "cpu"
    command[command.index("--time-limit") + 1] = "0.001"
    command.remove("--survive")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200, check=False)
    assert check.judge_benchmarks(done.returncode, done.stdout)[0] == "incomplete", done.stderr
    (tmp_path / "cpu.jsonl").rename(tmp_path / "cuda.jsonl")
    (tmp_path / "build.log").write_text(PTXAS)
    done = subprocess.run(
        found["report"].command(9), capture_output=True, text=True, cwd=ROOT, timeout=200, check=False
    )
    assert found["report"].judge(done.returncode, done.stdout)[0] == "passed", done.stderr
    assert (tmp_path / "cuda.csv").exists()
    assert json.loads((tmp_path / "kernels.json").read_text())[0]["name"] == "kernel<float>"
    if not _native.has_cuda():
        command = [*found["build"].command(9)[:4], "true"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200, check=False)
        outcome, detail = check.judge_build(done.returncode, done.stdout + done.stderr)
        assert (outcome, detail) == ("failed", "exit code 1; the build has no CUDA kernels")
    for name in ("small", "tests"):
        assert "-m cuda" in " ".join(found[name].command(9))
        until = float(found[name].environment(100)["GENFAST_TESTS_UNTIL"])
        assert time.time() + 60 < until < time.time() + 100


PTXAS = """
ptxas info    : Compiling entry function '_ZN2gf4cuda6kernelIfEEvPT_' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 4224 bytes smem
"""


def test_kernels_that_ran_are_named(check, tmp_path):
    built = ["planar_forward_kernel<float, 2>", "planar_forward_kernel<double, 2>", "gibbs<4, true>", "idle<float>"]
    (tmp_path / "kernels.json").write_text(json.dumps([{"name": name} for name in built]))
    lines, found = check.kernels_that_ran(tmp_path)
    assert lines == ["kernels that ran: unknown (torch.profiler saw none)"]
    events = [
        {"test": "a", "kernels": ["void gf::cuda::(anonymous namespace)::planar_forward_kernel<float, 2>(gf::Args)"]},
        {"test": "b", "kernels": ["void gf::cuda::gibbs<4u, true>(gf::cuda::Args, int)"]},
        {"test": "c", "kernels": []},
    ]
    (tmp_path / check.NOTES).write_text("".join(json.dumps(event) + "\n" for event in events))
    lines, found = check.kernels_that_ran(tmp_path)
    assert lines == [
        "kernels that ran in the small cases (2 of 4): gibbs 1/1, planar_forward_kernel 1/2",
        "kernels that did not run in the small cases: idle<float>, planar_forward_kernel<double,2>",
    ]
    assert found["not in the build's list"] == []
    (tmp_path / check.NOTES).write_text('{"test": "a", "untraced": "RuntimeError: no CUPTI"}\n')
    assert check.kernels_that_ran(tmp_path)[0] == ["kernels that ran: unknown (RuntimeError: no CUPTI)"]


def test_measured_cases_are_listed(check, tmp_path):
    row = {"seconds": {"median": 2e-6}, "speedup": None, "name": "genfast", "problem": ""}
    rival = {"seconds": {"median": 8e-6}, "speedup": {"median": 4.0}, "name": "eager", "problem": ""}
    results = [
        {"op": "planar", "label": "K=1", "rows": [row, rival], "floor": 1e-6, "problem": ""},
        {"op": "spline", "label": "8 bins", "rows": [], "floor": None, "problem": "RuntimeError: no"},
        {"op": "rbm", "label": "toy", "rows": [{**rival, "seconds": None, "problem": "differs"}], "problem": ""},
    ]
    lines = [json.dumps({"event": "done", "name": "x", "index": i, "result": r}) for i, r in enumerate(results)]
    (tmp_path / "cuda.jsonl").write_text("\n".join(lines) + '\n{"event": "prep')
    assert check.measured(tmp_path / "cuda.jsonl") == [
        "  planar K=1: 2.0 us; 4.00x eager; 2.0x floor",
        "  spline 8 bins: RuntimeError: no",
        "  rbm toy: differs",
    ]


# -- the plugin of the tests ------------------------------------------------------------------------------------------

LOST = """
import os, pytest, time, torch

pytestmark = pytest.mark.cuda
lost = False

def synchronize():
    if lost:
        raise RuntimeError("an illegal memory access was encountered")

@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, synchronize

def test_float64(): pass
def test_bad():
    global lost
    lost = True
    assert False
@pytest.mark.parametrize("i", range(5))
def test_after(i): assert not lost
def test_float32(): pass
def test_hang():
    if os.environ.get("HANG"):
        time.sleep(1000)
"""


def plugin(tmp_path, *options, **environment):
    (tmp_path / "test_it.py").write_text(textwrap.dedent(LOST))
    notes = tmp_path / "notes.jsonl"
    outside = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}  # it is no worker of ours
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.gpu_plugin", "-p", "no:cacheprovider", "-c", os.devnull),
            *("-o", "markers=cuda", "-v", "-rs", *options, str(tmp_path / "test_it.py")),
        ],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
        env={**outside, "GENFAST_TEST_NOTES": str(notes), "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    return done, [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def test_a_lost_gpu_or_a_test_that_hangs_costs_one_test(tmp_path):
    pytest.importorskip("xdist")
    done, notes = plugin(tmp_path, "-n", "1", GENFAST_TEST_LIMIT="5", HANG="1")
    assert "2 failed, 7 passed" in done.stdout, done.stdout
    for name in ("test_bad", "test_hang"):
        assert f"crashed while running 'test_it.py::{name}'" in done.stdout
    assert "in test_hang" in done.stdout + done.stderr
    assert [note["test"].rpartition("::")[2] for note in notes] == ["test_bad"]
    assert "assert False" in notes[0]["lost"]


def test_a_lost_gpu_without_workers(tmp_path):
    done, notes = plugin(tmp_path, "-p", "no:xdist")
    assert done.returncode == 3
    assert "the GPU is lost to this process after" in done.stdout
    assert len(notes) == 1
    assert done.stdout.index("test_float32") < done.stdout.index("test_float64")


def test_tests_that_come_too_late_are_skipped(tmp_path):
    done, _ = plugin(tmp_path, "-p", "no:xdist", GENFAST_TESTS_UNTIL="1")
    assert done.returncode == 0
    assert "9 skipped" in done.stdout
    assert "no time left" in done.stdout


def test_tracing_that_fails_costs_no_test(tmp_path):
    """torch without CUDA refuses to trace it."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done, notes = plugin(tmp_path, "-p", "no:xdist", "-k", "after", GENFAST_TRACE_KERNELS="1")
    assert "5 passed" in done.stdout
    assert [list(note) for note in notes] == [["test", "untraced"]]
