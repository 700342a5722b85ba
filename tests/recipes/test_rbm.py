"""The recipe of the RBM: chains, means of the parameters, samples."""

import copy

import numpy as np
import pytest
import torch

import genfast
from genfast.data import Dataset
from genfast.training import sample
from genfast.training.averaging import Average
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint

QUICK = {"device": "cpu", "progress": False, "batch_size": 16, "log_every": 10, "hidden": 8}


@pytest.fixture(scope="module")
def persistent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pcd")
    genfast.fit("rbm", out=folder, steps=40, method="pcd", **QUICK)
    return folder


def test_samples_start_from_the_persistent_chains(persistent, tmp_path):
    rbm = genfast.load(persistent)
    drawn, folder = sample(persistent, 16, sweeps=3, out=tmp_path / "out")
    g = torch.Generator().manual_seed(0)
    start = rbm.chains[torch.randperm(16, generator=g)]
    assert torch.equal(drawn.x, rbm.gibbs(start, 3, generator=g)[0])
    assert folder == tmp_path / "out"
    assert "3 sweeps from the persistent chains" in drawn.what
    fresh, _ = sample(persistent, 16, sweeps=3, fresh=True, out=tmp_path / "out")
    assert "3 sweeps of new chains" in fresh.what
    assert not torch.equal(fresh.x, drawn.x)


def test_more_samples_than_chains_are_not_copies(persistent, tmp_path):
    drawn, _ = sample(persistent, 50, sweeps=20, out=tmp_path)
    assert drawn.x.shape == (50, 64)
    assert len(drawn.x.unique(dim=0)) == 50


def test_the_machine_that_a_run_gives_back_checks_itself(persistent):
    """The training loop checks in its place, with better words; what is done with it later is not the loop's."""
    fitted = genfast.fit("rbm", steps=2, **QUICK).model
    for rbm in (fitted, genfast.load(persistent)):
        torch.nn.init.constant_(rbm.W, torch.nan)
        with pytest.raises(FloatingPointError, match="parameter W"):
            rbm.cd_loss(torch.zeros(3, 64))


def test_a_run_without_chains_starts_new_ones(tmp_path):
    genfast.fit("rbm", out=tmp_path, steps=5, **QUICK)
    assert "1,000 sweeps of new chains" in sample(tmp_path, 4)[0].what


def test_samples_lie_beside_the_run_and_never_in_its_place(persistent):
    before = {p.name: p.read_bytes() for p in persistent.iterdir() if p.is_file()}
    drawn, folder = sample(persistent, 9)
    assert folder == persistent / "samples"
    assert np.array_equal(np.load(folder / "samples.npy"), drawn.x.numpy())
    with pytest.raises(ValueError, match=r"out: .* holds a run, whose own pictures would be lost"):
        sample(persistent, 9, out=persistent)
    assert {p.name: p.read_bytes() for p in persistent.iterdir() if p.is_file()} == before


def test_samples_are_written_all_or_none(persistent, tmp_path, monkeypatch):
    import os

    from genfast._errors import WriteError

    target = tmp_path / "drawn"
    sample(persistent, 4, sweeps=1, out=target)
    before = {p.name: p.read_bytes() for p in target.iterdir()}
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"cannot write .*samples.png: No space left on device"):
        sample(persistent, 5, sweeps=1, out=target)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == before
    calls.clear()
    with pytest.raises(WriteError):
        sample(persistent, 5, sweeps=1, out=tmp_path / "new")
    assert not (tmp_path / "new").exists(), "not even the folder is left"


def test_the_model_is_the_mean_of_the_parameters(persistent):
    checkpoint = load_checkpoint(persistent / CHECKPOINT)
    rbm = genfast.load(persistent)
    for name, parameter in rbm.named_parameters():
        assert torch.equal(parameter, checkpoint.average[name])
        assert not torch.equal(parameter, checkpoint.model[name])


def test_the_mean_follows_its_formula():
    module = torch.nn.Linear(1, 1, bias=False)
    average = Average(module, 50)
    want, decay_limit = None, 1 - 10 / 50
    for step in range(1, 201):
        torch.nn.init.constant_(module.weight, float(step))
        average.update(step)
        if step % 10 == 0:
            n = step // 10
            decay = min(decay_limit, (n - 1 + 1) / (n - 1 + 10))
            want = float(step) * (1 - decay) + decay * (want if want is not None else 0.0)
    initial = copy.deepcopy(average.values[0]).item()
    with average.in_place():
        assert module.weight.item() == initial
    assert module.weight.item() == 200.0
    assert initial == pytest.approx(want, rel=0.1)


@pytest.mark.parametrize("steps", [1, 9])
def test_a_run_shorter_than_the_mean_is_trained(steps):
    """The mean is taken every tenth step; before the first it may not be the untrained machine."""
    averaged, last = (genfast.fit("rbm", steps=steps, average=average, **QUICK).model for average in (500, 0))
    for a, b in zip(averaged.parameters(), last.parameters(), strict=True):
        assert torch.equal(a, b)


def test_means_resume_bit_for_bit(tmp_path):
    options = {"method": "pcd", "average": 30, **QUICK}
    genfast.fit("rbm", out=tmp_path / "whole", steps=65, **options)
    genfast.fit("rbm", out=tmp_path / "parts", steps=27, **options)
    genfast.fit("rbm", out=tmp_path / "parts", steps=65, resume=True, progress=False, device="cpu")
    a, b = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "parts"))
    for name, value in a.average.items():
        assert torch.equal(value, b.average[name])


def test_colour_images(tmp_path):
    images = (torch.rand(40, 3, 4, 5) < 0.4).float()
    genfast.fit("rbm", images, out=tmp_path, steps=3, **QUICK)
    drawn, folder = sample(tmp_path, 4, sweeps=2)
    assert drawn.x.shape == (4, 60)
    assert (folder / "samples.png").stat().st_size > 1000


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_that_have_no_colours(tmp_path, channels):
    """Rows of one's own that say so: what cannot be drawn in colours is drawn flat, after the training, not refused."""
    data = Dataset("mine", (torch.rand(40, 20 * channels) < 0.4).float(), shape=(channels, 4, 5))
    genfast.fit("rbm", data, out=tmp_path, steps=3, **QUICK)
    drawn, folder = sample(tmp_path, 4, sweeps=2)
    assert drawn.x.shape == (4, 20 * channels)
    assert (folder / "samples.png").stat().st_size > 1000
