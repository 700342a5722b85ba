"""The recipe of the RBM: chains, means of the parameters, samples."""

import copy

import numpy as np
import pytest
import torch

import genfast
import genfast.data
from genfast import recipes
from genfast._errors import RunError
from genfast.data import Dataset
from genfast.training import sample
from genfast.training.averaging import Average
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint
from genfast.training.run import resolve

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


RUNS = {
    "spin": {"visible": "spin", "hidden_units": "spin"},
    "gaussian": {"visible": "gaussian", "method": "pcd"},
    "gaussian, relu": {"visible": "gaussian", "hidden_units": "relu", "method": "pcd"},
    "double relu": {"hidden_units": "double-relu", "method": "pcd"},
    "fast": {"method": "fpcd", "fast_lr": 0.02},
    "centered": {"centered": True, "method": "pcd"},
    "scaled": {"scaled": True},
    "decay and sparsity": {"weight_decay": 1e-3, "l1": 1e-4, "sparsity": 0.1},
    "labels": {"labels": 10, "method": "pcd"},
    "labels, fast, spin": {"labels": 10, "method": "fpcd", "visible": "spin"},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_resumes_bit_for_bit_and_samples(tmp_path, name):
    options = {**QUICK, **RUNS[name]}
    whole = genfast.fit("rbm", out=tmp_path / "whole", steps=12, checkpoint_every=6, **options).model
    genfast.fit("rbm", out=tmp_path / "part", steps=6, checkpoint_every=6, **options)
    resumed = genfast.fit("rbm", out=tmp_path / "part", steps=12, resume=True, checkpoint_every=6, **options).model
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    loaded = genfast.load(tmp_path / "whole")
    assert type(loaded) is type(whole)
    drawn, _ = sample(tmp_path / "whole", 4, sweeps=2, fresh=True, out=tmp_path / "drawn")
    assert drawn.x.shape == (4, whole.n_visible)
    whole.visible.check("x", drawn.x, torch.float32, states=True)
    assert (tmp_path / "whole" / "samples.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["fast", "labels", "decay and sparsity", "gaussian, relu", "scaled"])
def test_the_step_in_closed_form_is_that_of_the_loss(name):
    """What several processes do by autograd is what a single one does without."""
    recipe = recipes.load("rbm")
    source = genfast.data.load("digits")
    options = resolve(recipe, {**RUNS[name], "hidden": 6, "k": 1})
    one, two = (recipe.start(options, source) for _ in range(2))
    two.model.load_state_dict(one.model.state_dict())
    for step in range(2):
        batch = one.rows[20 * step : 20 * step + 20]
        optimizers = [r.optimizer() for r in (one, two)]
        torch.manual_seed(step)
        one.direct_step(batch, optimizers[0])
        torch.manual_seed(step)
        optimizers[1].zero_grad()
        two.loss(batch).backward()
        optimizers[1].step()
        for (key, a), b in zip(one.model.named_parameters(), two.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": 5}, "labels: got 5, but digits has labels from 0 to 9"),
        ({"labels": 10, "data": "{rows}", "visible": "gaussian"}, "labels: .* has no labels"),
        ({"centered": True, "average": 100}, "average: got 100, but centred parameters have no mean: want 0"),
        ({"centered": True, "labels": 10}, "labels: not together with centered or scaled"),
        ({"data": "{rows}"}, "has values from .* an RBM wants them in .0, 1., or visible gaussian"),
    ],
)
def test_what_does_not_go_together_is_said(tmp_path, given, message):
    np.save(tmp_path / "rows.npy", np.linspace(-3, 3, 40, dtype=np.float32).reshape(10, 4))
    given = {k: v.format(rows=tmp_path / "rows.npy") if isinstance(v, str) else v for k, v in given.items()}
    with pytest.raises(RunError, match=message):
        genfast.fit("rbm", steps=1, **{**QUICK, **given})


def test_a_file_of_real_numbers_takes_gaussian_units(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(5, 3, (200, 4)).astype(np.float32))
    result = genfast.fit("rbm", data=str(tmp_path / "rows.npy"), visible="gaussian", steps=30, **QUICK)
    v = result.model.sample(2000, 50, generator=torch.Generator().manual_seed(0))
    assert (v.mean(0) - 5).abs().max() < 1.5
    assert (v.std(0) - 3).abs().max() < 1


def test_a_run_with_labels_predicts_them():
    result = genfast.fit("rbm", labels=10, method="pcd", hidden=64, epochs=8, device="cpu", progress=False, lr=0.5)
    digits = genfast.data.load("digits").binarized()
    assert result.model.score(digits.x, digits.y) > 0.9
