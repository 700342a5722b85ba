"""Models that a run keeps on its way."""

import pytest
import torch

import genfast
from genfast.boltzmann import TrajectoryTempering
from genfast.training import snapshots
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint
from genfast.training.kept import FOLDER, next_snapshot

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

QUICK = {"device": "cpu", "progress": False, "batch_size": 64, "hidden": 8, "method": "pcd"}


def test_steps_grow_by_equal_factors():
    steps = [0]
    while steps[-1] < 40:
        steps.append(next_snapshot(steps[-1], 2))
    assert steps[1:] == [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45]


def test_a_run_keeps_models_and_trains_as_without(tmp_path):
    plain = genfast.fit("rbm", out=tmp_path / "plain", steps=20, **QUICK).model
    kept = genfast.fit("rbm", out=tmp_path / "kept", steps=20, snapshots=1, **QUICK).model
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        assert torch.equal(a, b)
    files = sorted(p.name for p in (tmp_path / "kept" / FOLDER).iterdir())
    assert files == [f"{s:010d}.pt" for s in (1, 2, 4, 8, 16)]
    models = snapshots(tmp_path / "kept")
    assert len(models) == 6, "and the last"
    assert torch.equal(models[-1]["W"], genfast.load(tmp_path / "kept").W)
    after_four = genfast.fit("rbm", steps=4, **QUICK).model
    assert torch.equal(models[2]["W"], after_four.W)
    chains = TrajectoryTempering.select(models, 20, n_rounds=5, seed=1)
    chains.run(5)
    assert chains.states().shape == (20, 64)


def test_a_run_that_goes_on_keeps_the_same(tmp_path):
    genfast.fit("rbm", out=tmp_path / "whole", steps=20, snapshots=1, **QUICK)
    genfast.fit("rbm", out=tmp_path / "parts", steps=5, snapshots=1, **QUICK)
    genfast.fit("rbm", out=tmp_path / "parts", steps=20, snapshots=1, resume=True, progress=False, device="cpu")
    for a, b in zip(snapshots(tmp_path / "whole"), snapshots(tmp_path / "parts"), strict=True):
        assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_replaced_run_leaves_none(tmp_path):
    genfast.fit("rbm", out=tmp_path, steps=5, snapshots=1, **QUICK)
    genfast.fit("rbm", out=tmp_path, steps=5, overwrite=True, **QUICK)
    with pytest.raises(ValueError, match=r"has no snapshots; train with snapshots=4, or --snapshots 4"):
        snapshots(tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT).step == 5


def test_snapshots_want_a_folder():
    with pytest.raises(ValueError, match="snapshots: wants out, the folder of the run"):
        genfast.fit("rbm", steps=2, snapshots=1, **QUICK)
    with pytest.raises(ValueError, match=r"snapshots: got 0, want at least 1"):
        genfast.fit("rbm", steps=2, snapshots=0, **QUICK)
