"""The command as a process: its first moments, Ctrl-C at any time, terminals that are narrow or know ASCII only."""

import re
import signal
import time

import pytest

from genfast.training.checkpoint import CHECKPOINT, load_checkpoint
from tests.cli.conftest import environment, start

QUICK = ("--hidden", 8, "--batch-size", 16, "--device", "cpu")


def interrupted(process, *, within):
    """Send Ctrl-C; returns the error stream."""
    process.send_signal(signal.SIGINT)
    since = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - since < within
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert re.search(r"^genfast: (interrupted|stopped by SIGINT .*)$", err, re.MULTILINE)
    return err


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.0, 2.0, 3.0])
def test_interrupt_in_the_first_seconds(tmp_path, seconds):
    process = start("train", "rbm", *QUICK, "--epochs", 100000, "--out", tmp_path / "run")
    time.sleep(seconds)
    interrupted(process, within=10)  # a busy machine may need long to load a library


def test_interrupt_while_the_numbers_are_loaded(tmp_path):
    """The handler that ends at once stands before torch is imported."""
    code = "import sys, genfast.cli.start as s; s._end_at_once_on_interrupt(); assert 'torch' not in sys.modules; "
    code += "print('ready', flush=True); import time; time.sleep(60)"
    process = start(command=("-c", code))
    assert process.stdout.readline() == "ready\n"
    assert interrupted(process, within=5) == "genfast: interrupted\n"


def test_interrupt_within_a_long_step(run, tmp_path):
    """A step of hours: the run stops at once, and what was before the step is saved."""
    options = ("train", "rbm", *QUICK, "--backend", "reference", "--k", 10**9, "--out", tmp_path / "run")
    process = start(*options)
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    err = interrupted(process, within=30)  # a busy machine is slow to save and to leave
    assert "stopped by SIGINT within step 1; --resume goes on from step 0" in err
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT).step == 0


def test_interrupt_of_long_sampling(run, tmp_path):
    assert run("train", "rbm", *QUICK, "--steps", 3, "--out", tmp_path)[0] == 0
    process = start("sample", tmp_path, "--sweeps", 10**9, "-n", 1000)
    time.sleep(8)
    interrupted(process, within=30)
    assert not (tmp_path / "samples").exists()


def test_a_background_job_keeps_ignoring_interrupts(tmp_path):
    """A shell starts `genfast ... &` with SIGINT ignored; Ctrl-C is then meant for others."""
    process = start(
        "train", "rbm", *QUICK, "--steps", 400, "--out", tmp_path / "run",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_terminal_that_knows_ascii_only(tmp_path, variables):
    folder = tmp_path / "Größe-数"
    for arguments in (
        ("train", "rbm", *QUICK, "--steps", 3, "--out", folder),
        ("sample", folder, "--sweeps", 3),
        ("train", "rbm", *QUICK, "--out", folder),
        ("train", "--help"),
        ("train", "rbm", "--help"),
        ("train", "rbm", "--colour", "ü"),
    ):
        process = start(*arguments, env=environment(**variables))
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        assert out.isascii()
        assert err.isascii()
        assert process.returncode == {"--colour": 2, "--out": 1}.get(str(arguments[-2]), 0) or "--steps" in arguments
    assert "holds a run already" not in out


@pytest.mark.parametrize(
    "command", [("--help",), ("train", "--help"), ("train", "rbm", "--help"), ("sample", "--help")]
)
def test_help_on_a_narrow_terminal(command):
    process = start(*command, env=environment(COLUMNS="40", TERMINAL_WIDTH="40"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert all(len(line) <= 40 for line in out.splitlines())
    assert "…" not in out, "no name of an option is cut"
    if "rbm" in command:
        for name in ("--batch-size", "--checkpoint-every", "--momentum"):
            assert name in out


def test_help_shows_the_options_of_one_model_only(run):
    _, rbm, _ = run("train", "rbm", "--help")
    _, nsf, _ = run("train", "nsf", "--help")
    assert "--momentum" in rbm
    assert "--bins" not in rbm
    assert "--bins" in nsf
    assert "--momentum" not in nsf
    _, models, _ = run("train", "--help")
    for name in ("nsf", "planar", "rbm", "realnvp"):
        assert name in models


def test_help_of_sample_shows_the_options_of_the_run(run, tmp_path):
    assert run("train", "rbm", *QUICK, "--steps", 3, "--out", tmp_path / "rbm")[0] == 0
    assert run("train", "planar", "--layers", 2, "--steps", 3, "--out", tmp_path / "flow")[0] == 0
    assert "--sweeps" in run("sample", tmp_path / "rbm", "--help")[1]
    assert "--sweeps" not in run("sample", tmp_path / "flow", "--help")[1]
    assert run("sample", tmp_path / "flow", "--sweeps", 3)[0] == 2
    code, _, err = run("sample", tmp_path / "nowhere", "--sweeps", 3)
    assert code == 1
    assert "there is no checkpoint" in err
    assert not (tmp_path / "flow" / "samples").exists()
