"""Parallel trajectory tempering: the right distribution at every model, log Z along the run, the same bits."""

import re

import pytest
import torch

import genfast
from genfast.boltzmann import RBM, TrajectoryTempering, units
from tests.boltzmann.test_tempering import (
    FALSE_ALARM_Z,
    number_of,
    rugged,
    same,
    total_variation,
    two_modes,
    visible_distribution,
)


def run_of(rbm, shares=(0.3, 0.6, 1.0)):
    """Models on the way to `rbm`, as training would pass them: weights and biases grow together."""
    models = []
    for share in shares:
        model = RBM(rbm.n_visible, rbm.n_hidden)
        with torch.no_grad():
            for p, q in zip(model.parameters(), rbm.parameters(), strict=True):
                p.copy_(share * q)
        models.append(model)
    return models


def test_every_model_has_its_distribution():
    models = run_of(rugged())
    chains = TrajectoryTempering(models, 20_000, seed=1)
    chains.run(20)
    counts = torch.zeros(4, 16, dtype=torch.float64)
    for _ in range(90):
        chains.run()
        for level in range(4):
            counts[level] += torch.bincount(number_of(chains.states(level)), minlength=16)
    independent = RBM(4, 3)
    with torch.no_grad():
        independent.W.zero_()
        independent.vbias.copy_(models[0].vbias)
    for level, model in enumerate([independent, *models]):
        assert total_variation(counts[level], visible_distribution(model)) < 0.002, level
    assert ((chains.acceptance_rates > 0.05) & (chains.acceptance_rates < 1)).all()
    assert chains.round_trips.double().mean() > 1


def test_chains_cross_where_gibbs_sampling_is_stuck():
    rbm, n = two_modes(), 400
    chains = TrajectoryTempering(run_of(rbm, (0.2, 0.4, 0.55, 0.7, 0.85, 1.0)), n, seed=2)
    chains.chains.zero_()
    plain = rbm.gibbs(torch.zeros(n, 10), 300, seed=1)[0]
    assert (plain.mean(1) > 0.5).sum() < 0.02 * n
    chains.run(300)
    up = int((chains.states().mean(1) > 0.5).sum())
    assert abs(up - n / 2) < FALSE_ALARM_Z * n**0.5 / 2


def test_log_z_along_the_run():
    models = run_of(rugged())
    chains = TrajectoryTempering(models, 300, seed=3)
    chains.run(30)
    log_z, stderr = chains.log_z(100)
    want = torch.stack([m.log_partition().detach() for m in models])
    assert stderr[0] == 0
    assert ((stderr[1:] > 1e-5) & (stderr[1:] < 0.1)).all()
    assert ((log_z[1:] - want).abs() < FALSE_ALARM_Z * stderr[1:]).all()


def test_models_are_chosen_by_their_acceptance():
    rbm = two_modes()
    models = run_of(rbm, [i / 40 for i in range(1, 41)])
    chains = TrajectoryTempering.select(models, 200, acceptance=0.4, n_rounds=20, seed=4)
    assert 4 < chains.n_levels < 30
    assert torch.equal(chains.levels[-1][0], rbm.W)
    assert chains.acceptance_rates.isnan().all()
    chains.run(150)
    assert (chains.acceptance_rates[1:] > 0.3).all()
    few = TrajectoryTempering.select(models, 200, acceptance=0.05, n_rounds=20, seed=4)
    assert few.n_levels < chains.n_levels


def test_state_dicts_serve_as_models():
    models = run_of(rugged())
    a = TrajectoryTempering(models, 20, seed=1)
    b = TrajectoryTempering([m.state_dict() for m in models], 20, seed=1)
    a.run(5)
    b.run(5)
    assert same(a, b)


def test_every_backend_runs_the_same_ladders(kernels):
    models = [m.to(kernels.device) for m in run_of(rugged())]
    chains, want = (TrajectoryTempering(models, 7, seed=1) for _ in range(2))
    chains.run(6)
    with genfast.backend("reference"):
        want.run(6)
    assert same(chains, want)


def test_ladders_depend_on_their_number_alone_and_go_on():
    models = run_of(rugged())
    whole = TrajectoryTempering(models, 12, seed=5, n_gibbs_steps=2)
    parts = [TrajectoryTempering(models, n, seed=5, n_gibbs_steps=2, first_chain=i) for i, n in ((0, 5), (5, 7))]
    for chains in (whole, *parts):
        chains.run(7)
    assert torch.equal(torch.cat([c.chains for c in parts]), whole.chains)
    again = TrajectoryTempering(models, 12, seed=9, n_gibbs_steps=2)
    again.load_state_dict(whole.state_dict())
    for chains in (whole, again):
        chains.run(3)
    assert same(whole, again)


BAD = {
    "none": (lambda: TrajectoryTempering([]), ValueError, "models: got none, want at least one"),
    "sizes": (
        lambda: TrajectoryTempering([RBM(3, 2), RBM(3, 4)]), ValueError,
        "models: got sizes [[3, 2], [3, 4]], want models of one size",
    ),
    "units": (
        lambda: TrajectoryTempering([RBM(units.Gaussian(3), 2)]), TypeError, "models: want RBMs with 0/1 units in both",
    ),
    "mapping": (lambda: TrajectoryTempering([{"W": torch.zeros(3, 2)}]), TypeError, "models: want RBMs, or their"),
    "target": (
        lambda: TrajectoryTempering.select([RBM(3, 2)], acceptance=2.0), ValueError,
        "acceptance: got 2.0, want a number from 0 to 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, error, text = BAD[what]
    with pytest.raises(error, match=re.escape(text)):
        call()
