"""The recipe of the deep Boltzmann machine: pretraining, chains, resume, pictures."""

import copy
import json

import pytest
import torch

import genfast
from genfast._errors import RunError
from genfast.recipes import dbm as recipe
from genfast.training import sample
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint

QUICK = {
    "device": "cpu", "progress": False, "batch_size": 16, "log_every": 10, "hidden": "12,6", "pretrain_steps": 20,
    "mean_field_steps": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dbm")
    genfast.fit("dbm", out=folder, steps=60, **QUICK)
    return folder


def test_a_short_run_learns(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["pseudo_likelihood"] > rows[0]["pseudo_likelihood"] - 1
    assert rows[-1]["reconstruction_error"] < rows[0]["reconstruction_error"]
    assert {"bound_plus_log_z", "loss", "step"} <= rows[-1].keys()
    for name in ("samples.png", "filters.png", "reconstructions.png", "learning_curve.png"):
        assert (run / name).stat().st_size > 1000


def test_samples_start_from_the_persistent_chains(run, tmp_path):
    dbm = genfast.load(run)
    assert dbm.n_chains == 16
    drawn, _ = sample(run, 16, sweeps=3, out=tmp_path / "out")
    g = torch.Generator().manual_seed(0)
    start = dbm.chains[torch.randperm(16, generator=g)]
    assert torch.equal(drawn.x, dbm.gibbs(dbm.layers(start), 3, generator=g)[0])
    assert "3 sweeps from the persistent chains" in drawn.what
    fresh, _ = sample(run, 16, sweeps=3, fresh=True, out=tmp_path / "out")
    assert "3 sweeps of new chains" in fresh.what
    assert not torch.equal(fresh.x, drawn.x)


@pytest.mark.parametrize("stops", [(7, 27), (40,), (20, 53)], ids=str)
def test_resumes_bit_for_bit_through_both_phases(run, tmp_path, stops):
    genfast.fit("dbm", out=tmp_path, steps=stops[0], **QUICK)
    for steps in (*stops[1:], 60):
        genfast.fit("dbm", out=tmp_path, steps=steps, resume=True, progress=False, device="cpu")
    a, b = (load_checkpoint(folder / CHECKPOINT) for folder in (run, tmp_path))
    assert a.model.keys() == b.model.keys()
    for name, value in a.model.items():
        assert torch.equal(value, b.model[name]), name
    for name, value in a.average.items() if isinstance(a.average, dict) else enumerate(a.average or ()):
        assert torch.equal(value, b.average[name])


def test_with_and_without_autograd_are_one_training(monkeypatch):
    """What runs in several processes: the same numbers but for rounding, and pairs that take their steps."""
    direct = genfast.fit("dbm", steps=50, **QUICK).model
    monkeypatch.setattr(recipe.Recipe, "direct_step", lambda *_: None)
    graph = genfast.fit("dbm", steps=50, **QUICK).model
    for p, q in zip(direct.parameters(), graph.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-3)


def test_pairs_are_trained_in_turn():
    one = genfast.fit("dbm", steps=15, average=0, **QUICK).model
    two = genfast.fit("dbm", steps=30, average=0, **QUICK).model
    untrained = genfast.fit("dbm", steps=1, average=0, **QUICK).model
    assert torch.equal(one.weights[1], untrained.weights[1])
    assert not torch.equal(two.weights[1], untrained.weights[1])
    assert one.n_chains == two.n_chains == 0


def test_without_pretraining():
    options = {**QUICK, "pretrain_steps": 0, "hidden": "9"}
    dbm = genfast.fit("dbm", steps=3, **options).model
    assert dbm.n_hidden == (9,)
    assert dbm.n_chains == 16


def test_the_rate_falls(monkeypatch):
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (seen.append(self.param_groups[0]["lr"]), step(self)))
    genfast.fit("dbm", steps=50, lr=0.1, lr_half_life=5, **QUICK)
    assert len(seen) == 10
    assert seen == [0.1 / (1 + t / 5) for t in range(10)]


@pytest.mark.parametrize("hidden", ["", "12,", "a", "12,-3", "1,1,1,1,1,1,1,1", "0"])
def test_hidden_units_are_checked(hidden):
    with pytest.raises(RunError, match=r"hidden: got .*, want 1 to 7 numbers of units such as 500,1000"):
        genfast.fit("dbm", steps=1, **{**QUICK, "hidden": hidden})


def test_data_that_are_no_images(tmp_path):
    with pytest.raises(RunError, match="values from"):
        genfast.fit("dbm", torch.randn(30, 6), steps=1, **QUICK)


def test_a_checkpoint_of_another_machine_is_refused(run):
    state = copy.deepcopy(load_checkpoint(run / CHECKPOINT))
    made = recipe.Recipe(recipe.DBMOptions(hidden="12,6", pretrain_steps=20), dim=64)
    with pytest.raises(RunError, match="persistent chains are not states 0/1 of 82 units"):
        made.load_state({"chains": torch.zeros(3, 81), "updates": torch.tensor(1)})
    with pytest.raises(RunError, match="how many updates"):
        made.load_state({"chains": torch.zeros(3, 82)})
    with pytest.raises(RunError, match=r"pretraining does not fit: state: got no tensor below\.1"):
        made.load_state({"chains": torch.zeros(3, 82), "updates": torch.tensor(1)})
    assert state is not None
