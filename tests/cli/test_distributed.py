"""torchrun with two processes on the CPU."""

import subprocess
import sys

import pytest
import torch

from genfast.training.checkpoint import CHECKPOINT, load_checkpoint
from genfast.training.metrics import METRICS, read_metrics
from tests.cli.conftest import environment

pytest.importorskip("lightning_fabric")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


def torchrun(*arguments):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "genfast"]
    return subprocess.run(
        [sys.executable, *launch, *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


OPTIONS = ("train", "rbm", "--method", "pcd", "--hidden", 8, "--batch-size", 16, "--log-every", 5, "--device", "cpu")


def test_two_processes_train_one_model_and_resume(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = torchrun(*OPTIONS, "--steps", 12, "--out", whole)
    assert result.returncode == 0, result.stderr
    checkpoint = load_checkpoint(whole / CHECKPOINT)
    first, second = checkpoint.ranks
    assert first["chains"].shape == second["chains"].shape == (16, 64)
    assert not torch.equal(first["chains"], second["chains"]), "each rank draws numbers of its own"
    assert not torch.equal(first["rng"], second["rng"])
    rows = read_metrics(whole / METRICS)
    assert [row["step"] for row in rows] == [5, 10, 12], "one process writes"
    assert rows[-1]["epoch"] == pytest.approx(12 / 57, abs=1e-3), "an epoch is 1797 rows in steps of 2 x 16"

    for steps in (7, 12):
        more = ("--resume",) if steps == 12 else ()
        result = torchrun(*OPTIONS, *more, "--steps", steps, "--out", parts)
        assert result.returncode == 0, result.stderr
    resumed = load_checkpoint(parts / CHECKPOINT)
    for name, value in checkpoint.model.items():
        assert torch.equal(resumed.model[name], value), name
    for a, b in zip(checkpoint.ranks, resumed.ranks, strict=True):
        assert torch.equal(a["chains"], b["chains"])


def test_the_gradient_is_the_mean_over_processes(tmp_path):
    """A flow on a file of equal rows: two processes of 8 rows do what one process of any number does."""
    import numpy as np

    from genfast.cli import entry

    np.save(tmp_path / "rows.npy", np.tile([[0.3, -0.8]], (32, 1)))
    options = ("train", "planar", "--data", tmp_path / "rows.npy", "--layers", 3, "--batch-size", 8, "--steps", 6)
    result = torchrun(*options, "--device", "cpu", "--out", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert entry.run([str(a) for a in (*options, "--device", "cpu", "--out", tmp_path / "one")]) == 0
    one, two = (load_checkpoint(tmp_path / n / CHECKPOINT).model for n in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_a_fault_is_told_and_ends_both(tmp_path):
    result = torchrun("train", "gan", "--out", tmp_path / "x")
    assert result.returncode != 0
    assert "genfast: error: unknown model 'gan'" in result.stderr


CHAINED = {
    "rbm": ("--method", "pcd", "--hidden", 8),
    "bm": ("--method", "pcd", "--hidden", 3, "--chains", 16, "--k-data", 2),
    "dbm": ("--hidden", "8,6", "--pretrain-steps", 0),
}


@pytest.mark.parametrize("model", CHAINED)
def test_chains_and_samples_are_the_same_bits_on_one_process_and_on_two(model, tmp_path):
    """One update of 32 rows, and of 2 x 16: the parameters begin as the same bits, and so the chains are."""
    from genfast.cli import entry

    options = ("train", model, *CHAINED[model], "--steps", 1, "--average", 0, "--device", "cpu")
    doubled = [32 if before == "--chains" else o for before, o in zip((None, *options), options, strict=False)]
    one, two = tmp_path / "one", tmp_path / "two"
    assert entry.run([str(a) for a in (*doubled, "--batch-size", 32, "--out", one)]) == 0
    result = torchrun(*options, "--batch-size", 16, "--out", two)
    assert result.returncode == 0, result.stderr
    alone, *none = load_checkpoint(one / CHECKPOINT).ranks
    ranks = load_checkpoint(two / CHECKPOINT).ranks
    assert not none
    assert alone["chains"].shape[0] == 32
    assert torch.equal(alone["chains"], torch.cat([rank["chains"] for rank in ranks]))

    sampling = ("sample", one, "-n", 33, "--sweeps", 3, "--device", "cpu")
    assert entry.run([str(a) for a in (*sampling, "--out", tmp_path / "a")]) == 0
    result = torchrun(*sampling, "--out", tmp_path / "b")
    assert result.returncode == 0, result.stderr
    a, b = ((tmp_path / name / "samples.npy").read_bytes() for name in "ab")
    assert a == b
    assert result.stdout.count("samples.npy") == 1, "one process tells"
