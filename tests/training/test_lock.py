"""One run a folder, whatever happens to the one before."""

import os
import signal
import subprocess
import sys
import time

import pytest

import genfast
from genfast._errors import RunError
from genfast.training.lock import LOCK, RunLock
from tests.cli.conftest import environment, start

HOLD = """
import sys, time
from pathlib import Path
from genfast.training.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_told_of_the_first(tmp_path, holder):
    with pytest.raises(RunError, match=rf"{tmp_path} is in use by another run \(process {holder.pid} on \S+, started "):
        RunLock(tmp_path)
    with pytest.raises(RunError, match=r"in use by another run .*take another out"):
        genfast.fit("rbm", out=tmp_path, steps=3, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [LOCK]


def test_a_killed_run_blocks_nobody(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with RunLock(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_the_lock_goes_with_the_run(tmp_path):
    genfast.fit("rbm", out=tmp_path, hidden=4, steps=3, progress=False, device="cpu")
    assert not (tmp_path / LOCK).exists()
    with pytest.raises(RunError, match="holds a run already"):
        genfast.fit("rbm", out=tmp_path, hidden=4, steps=3)
    assert not (tmp_path / LOCK).exists()


def test_a_lock_whose_file_was_removed_is_not_taken_for_one(tmp_path, monkeypatch):
    """Between open and lock the holder may remove the file: the newcomer would hold what nobody sees."""
    import fcntl

    real, calls = fcntl.flock, []

    def flock(handle, how):
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(how)
        return real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock(tmp_path) as lock:
        assert len(calls) == 2
        assert os.path.samestat(os.fstat(lock._handle), (tmp_path / LOCK).stat())


def test_two_commands_into_one_folder(tmp_path):
    pytest.importorskip("typer")
    options = ("train", "rbm", "--hidden", 8, "--device", "cpu", "--out", tmp_path / "run")
    first = start(*options, "--epochs", 100000, "--checkpoint-every", 5)
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / "run" / "checkpoint.pt").exists():
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        second = start(*options, "--seed", 5, "--overwrite")
        _, err = second.communicate(timeout=120)
        assert second.returncode == 1
        assert f"is in use by another run (process {first.pid} on " in err
        assert err.count("\n") == 1
    finally:
        first.send_signal(signal.SIGINT)
        _, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
