"""Parallel tempering: the right distribution at every temperature, across barriers, the same bits everywhere."""

import math
import re

import pytest
import torch
from torch import nn

from genfast import ops
from genfast.boltzmann import RBM, ParallelTempering
from genfast.boltzmann._enumerate import all_states
from genfast.boltzmann._exchange import bridge, standard_error
from tests.boltzmann.test_rbm import machine

FALSE_ALARM_Z = 4.9  # standard deviations that a normal number exceeds with probability 1e-6, on either side


def joint_energies(rbm):
    """E of all states `[2^n_visible, 2^n_hidden]`, in float64."""
    nv, nh = rbm.n_visible, rbm.n_hidden
    v, h = (all_states(n, 0, 1 << n, device=torch.device("cpu")) for n in (nv, nh))
    W, a, b = (p.detach().double() for p in (rbm.W, rbm.vbias, rbm.hbias))
    return -(v @ a)[:, None] - h @ b - v @ W @ h.T


def visible_distribution(rbm, beta=1.0):
    return torch.softmax(-beta * joint_energies(rbm).flatten(), 0).reshape(1 << rbm.n_visible, -1).sum(1)


def number_of(v):
    return (v.double() @ 2.0 ** torch.arange(v.shape[1], dtype=torch.float64)).long()


def total_variation(counts, p):
    return float((counts / counts.sum() - p).abs().sum() / 2)


def rugged(seed=3):
    return machine(4, 3, std=1.5, seed=seed).float()


def two_modes(n=10, strength=1.5):
    """All visible units 0 or all 1, and hardly anything between."""
    rbm = RBM(n, 6)
    with torch.no_grad():
        rbm.W.fill_(strength)
        rbm.vbias.fill_(-strength * 6 / 2)
        rbm.hbias.fill_(-strength * n / 2)
    return rbm


# --- the right distribution -------------------------------------------------------------------------------------------


def test_every_temperature_has_its_distribution():
    """2.4 million states each: of 16 states, the total variation that chance alone leaves is about 0.001."""
    rbm, betas = rugged(), [0.0, 0.35, 0.7, 1.0]
    chains = ParallelTempering(rbm, betas, 20_000, seed=1)
    chains.run(30)
    counts = torch.zeros(len(betas), 16, dtype=torch.float64)
    for _ in range(120):
        chains.run()
        for level in range(len(betas)):
            counts[level] += torch.bincount(number_of(chains.states(level)), minlength=16)
    for level, beta in enumerate(betas):
        assert total_variation(counts[level], visible_distribution(rbm, beta)) < 0.002, beta


def test_swaps_on_the_free_energy_would_be_wrong():
    """What others do, on the same machine with the same op: a total variation ten times too large."""
    rbm, betas, n = rugged(), torch.tensor([0.0, 0.35, 0.7, 1.0]), 10_000
    v = torch.bernoulli(torch.full((n, 4, 4), 0.5))
    counts = torch.zeros(16, dtype=torch.float64)
    for step in range(60):
        v = rbm.gibbs(v.flatten(0, 1), beta=betas.repeat(n), seed=step)[0].reshape(n, 4, 4)
        order, _ = ops.tempering_swap(rbm.free_energy(v).detach(), betas, seed=step, first_step=step)
        v = v.gather(1, order[..., None].expand_as(v))
        if step >= 20:
            counts += torch.bincount(number_of(v[:, -1]), minlength=16)
    assert total_variation(counts, visible_distribution(rbm)) > 0.006


def test_chains_cross_where_gibbs_sampling_is_stuck():
    rbm, n = two_modes(), 400
    start = torch.zeros(n, 10)
    plain = rbm.gibbs(start, 300, seed=1)[0]
    assert (plain.mean(1) > 0.5).sum() < 0.02 * n, "the barrier is no barrier"
    chains = ParallelTempering(rbm, 8, n, start=start, seed=2)
    chains.run(300)
    up = int((chains.states().mean(1) > 0.5).sum())
    assert abs(up - n / 2) < FALSE_ALARM_Z * math.sqrt(n) / 2
    assert chains.round_trips.double().mean() > 3


def test_log_z_of_the_ladder():
    for rbm in (rugged(), two_modes()):
        chains = ParallelTempering(rbm, 8, 200, seed=3)
        chains.run(50)
        log_z, stderr = chains.log_z(100)
        assert 1e-4 < stderr < 0.2
        assert abs(log_z - float(rbm.log_partition().detach())) < FALSE_ALARM_Z * stderr


def test_bridge_finds_a_known_ratio():
    """Gaussians of unit and other width: log Z ratio log s. The error is that of repetitions."""
    g = torch.Generator().manual_seed(0)
    s, errors, told = 1.7, [], []
    for _ in range(60):
        x, y = (torch.randn(20, 30, 1, generator=g, dtype=torch.float64) * w for w in (1.0, s))
        c, influences = bridge(*(t**2 / (2 * s * s) - t**2 / 2 for t in (x, y)))
        errors.append(float(c) - math.log(s))
        told.append(standard_error(influences))
    errors, told = torch.tensor(errors), torch.tensor(told)
    assert abs(errors.mean()) < FALSE_ALARM_Z * errors.std() / 60**0.5
    assert 0.7 < float(errors.std() / told.mean()) < 1.4


def test_adapting_makes_acceptance_equal():
    rbm = two_modes()
    chains = ParallelTempering(rbm, [0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 1.0], 100, seed=4)
    chains.run(50)
    before = chains.acceptance_rates
    betas = chains.adapt(100, 6)
    assert torch.equal(betas, chains.betas)
    assert betas[0] == 0
    assert betas[-1] == 1
    assert bool((betas.diff() > 0).all())
    assert chains.acceptance_rates.isnan().all(), "statistics begin anew"
    chains.run(200)
    after = chains.acceptance_rates
    assert before.max() - before.min() > 0.5
    assert after.max() - after.min() < 0.12
    assert after.min() > before.min()


# --- the same bits ----------------------------------------------------------------------------------------------------


def same(a, b):
    return all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


def test_every_backend_runs_the_same_ladders(kernels):
    import genfast

    rbm = machine(20, 15, std=0.5).to(kernels.device)
    chains = ParallelTempering(rbm, 5, 7, seed=1)
    chains.run(6)
    with genfast.backend("reference"):
        want = ParallelTempering(rbm, 5, 7, seed=1)
        want.run(6)
    assert same(chains, want)
    assert not torch.equal(chains.replicas, torch.arange(5, device=kernels.device).expand(7, 5)), "nothing was swapped"


def test_ladders_depend_on_their_number_alone():
    rbm = machine(20, 15, std=0.5)
    whole = ParallelTempering(rbm, 4, 12, seed=5, n_gibbs_steps=2)
    parts = [ParallelTempering(rbm, 4, n, seed=5, n_gibbs_steps=2, first_chain=i) for i, n in ((0, 5), (5, 7))]
    for chains in (whole, *parts):
        chains.run(7)
    assert torch.equal(torch.cat([c.chains for c in parts]), whole.chains)
    assert torch.equal(torch.cat([c.replicas for c in parts]), whole.replicas)
    assert torch.equal(torch.cat([c.round_trips for c in parts]), whole.round_trips)


def test_a_state_dict_goes_on_bit_for_bit():
    rbm = machine(20, 15, std=0.5)
    whole, first = (ParallelTempering(rbm, 4, 6, seed=5) for _ in range(2))
    whole.run(9)
    first.run(4)
    second = ParallelTempering(rbm, [0.0, 0.5, 0.9, 1.0], 6, seed=77)
    second.load_state_dict(first.state_dict())
    second.run(5)
    assert same(second, whole)
    assert not any(k.startswith("machine") for k in whole.state_dict())


def test_the_seed_is_drawn_from_the_generator():
    rbm = machine(20, 15, std=0.5)
    drawn = [ParallelTempering(rbm, 3, 2, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert drawn[0].seed == drawn[1].seed != drawn[2].seed
    assert torch.equal(drawn[0].chains, drawn[1].chains)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_round_trips_are_counted():
    """Beside a count from the whole history of each replica."""
    chains = ParallelTempering(machine(6, 5, std=0.8), 4, 9, seed=8)
    history = [chains.replicas]
    rates = []
    for _ in range(120):
        chains.run()
        history.append(chains.replicas)
        rates.append(chains.acceptance_rates)
    levels = torch.stack(history).argsort(-1)  # the level of each replica at each time
    for ladder in range(9):
        trips = 0
        for replica in range(4):
            at = [int(x) for x in levels[:, ladder, replica] if int(x) in (0, 3)]
            ends = [x for i, x in enumerate(at) if i == 0 or at[i - 1] != x]
            ends = ends[ends.index(0) :] if 0 in ends else []
            trips += max(0, (len(ends) - 1) // 2)
        assert trips == chains.round_trips[ladder]
    assert chains.round_trips.sum() > 20
    assert ((chains.acceptance_rates > 0) & (chains.acceptance_rates <= 1)).all()


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_last_level():
    rbm = machine(6, 4)
    chains = ParallelTempering(rbm, 4, 10, seed=1)
    data = (torch.rand(8, 6) < 0.3).float()
    chains.pcd_loss(data, 2).backward()
    got = [p.grad.clone() for p in rbm.parameters()]
    rbm.zero_grad()
    rbm.contrastive_loss(data, chains.states()).backward()
    assert int(chains.n_rounds) == 2
    assert all(torch.equal(p.grad, g) for p, g in zip(rbm.parameters(), got, strict=True))


def test_training_with_tempered_chains_learns_two_modes():
    """The chains of PCD are left behind in one of them."""
    data = torch.cat([torch.zeros(20, 8), torch.ones(20, 8)])

    def trained(chains_of):
        rbm = RBM(8, 4, generator=torch.Generator().manual_seed(0))
        loss = chains_of(rbm)
        optimizer = torch.optim.SGD(rbm.parameters(), lr=0.3)
        for _ in range(400):
            optimizer.zero_grad()
            loss(data).backward()
            optimizer.step()
        p = visible_distribution(rbm)
        return float(p[0]), float(p[-1])

    def persistent(rbm):
        rbm.reset_chains(60)
        return rbm.pcd_loss

    low, high = trained(lambda rbm: ParallelTempering(rbm, 6, 60, seed=1).pcd_loss)
    assert 0.3 < low < 0.5
    assert 0.3 < high < 0.5
    low, high = trained(persistent)
    assert abs(low - high) > 0.3


# --- other machines, clamped units, bad input -------------------------------------------------------------------------


class Other(nn.Module):
    """An RBM that is not one of ours, with temperatures instead of betas and no chain numbers."""

    values = "01"
    temperature = 2.0

    def __init__(self, rbm):
        super().__init__()
        self.rbm, self.n_visible = rbm, rbm.n_visible

    def gibbs(self, v, n, *, temperature, seed):
        return self.rbm.gibbs(v, n, beta=1 / temperature, seed=seed)

    def energy(self, v, h):
        return self.rbm.energy(v, h)


def test_any_machine_with_energy_and_gibbs():
    rbm, betas = rugged(), [0.3, 0.6, 1.0]
    chains = ParallelTempering(Other(rbm), betas, 10_000, seed=1)
    chains.run(20)
    counts = torch.zeros(3, 16, dtype=torch.float64)
    for _ in range(60):
        chains.run()
        for level in range(3):
            counts[level] += torch.bincount(number_of(chains.states(level)), minlength=16)
    for level, beta in enumerate(betas):
        assert total_variation(counts[level], visible_distribution(rbm, beta / 2)) < 0.003
    assert ((chains.acceptance_rates > 0.1) & (chains.acceptance_rates < 1)).all()


def test_clamped_units_stay_and_the_rest_is_conditional():
    rbm = rugged()
    start = torch.tensor([[1.0, 0.0, 1.0, 0.0]]).repeat(20_000, 1)
    clamp = torch.tensor([True, True, False, False])
    chains = ParallelTempering(rbm, 4, 20_000, start=start, clamp=clamp, seed=1)
    chains.run(20)
    counts = torch.zeros(16, dtype=torch.float64)
    for _ in range(30):
        chains.run()
        counts += torch.bincount(number_of(chains.states()), minlength=16)
    p = visible_distribution(rbm)
    fits = torch.tensor([i & 3 == 1 for i in range(16)])
    p = torch.where(fits, p, 0) / p[fits].sum()
    assert counts[~fits].sum() == 0
    assert total_variation(counts, p) < 0.003


def test_sampling_and_sizes():
    chains = ParallelTempering(machine(6, 4), [0.2, 1.0], 5, seed=1)
    x = chains.sample(12, n_steps=3, every=2)
    assert x.shape == (12, 6)
    assert int(chains.n_rounds) == 3 + 2 * 2
    assert chains.states(0).shape == (5, 6)
    single = ParallelTempering(machine(6, 4), [1.0], 3, seed=1)
    single.run(2)
    assert single.acceptance_rates.shape == (0,)
    assert single.round_trips.tolist() == [0, 0, 0]


BAD = {
    "decreasing": (lambda m: ParallelTempering(m, [0.5, 0.2]), ValueError, "want increasing numbers of at least 0"),
    "negative": (lambda m: ParallelTempering(m, [-0.5, 0.2]), ValueError, "want increasing numbers of at least 0"),
    "one": (lambda m: ParallelTempering(m, 1), ValueError, "betas: got 1, want an integer >= 2"),
    "nan": (lambda m: ParallelTempering(m, [math.nan, 1.0]), ValueError, "betas: got [nan, 1.0]"),
    "matrix": (lambda m: ParallelTempering(m, torch.zeros(2, 2)), ValueError, "betas: got shape [2, 2], want [n_lev"),
    "chains": (lambda m: ParallelTempering(m, 3, 0), ValueError, "n_chains: got 0, want an integer >= 1"),
    "start": (
        lambda m: ParallelTempering(m, 3, 4, start=torch.zeros(3, 6)), ValueError,
        "start: got shape [3, 6], want [n_chains = 4, n_visible]",
    ),
    "clamp": (
        lambda m: ParallelTempering(m, 3, 4, clamp=torch.ones(6, dtype=torch.bool)), ValueError,
        "clamp: got a mask without start",
    ),
    "machine": (
        lambda m: ParallelTempering(nn.Linear(2, 2)), TypeError, "machine: got Linear, want one with energy() and with",
    ),
    "zero temperature": (lambda m: ParallelTempering(Other(m), [0.0, 1.0]), ValueError, "betas: got 0 as the first"),
    "number of temperatures": (lambda m: ParallelTempering(Other(m), 4), ValueError, "betas: got a number, want a"),
    "log_z": (
        lambda m: ParallelTempering(m, [0.5, 1.0]).log_z(), ValueError, "log_z: want betas that begin at 0 and end",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, error, text = BAD[what]
    with pytest.raises(error, match=re.escape(text)):
        call(machine(6, 4))


def test_parameters_that_are_not_finite():
    rbm = machine(6, 4)
    chains = ParallelTempering(rbm, 3, 4, seed=1)
    chains.run(2)
    before = {k: v.clone() for k, v in chains.state_dict().items()}
    nn.init.constant_(rbm.W, torch.nan)
    with pytest.raises(FloatingPointError, match="step 3: parameter W has 24 non-finite values of 24"):
        chains.run()
    assert all(torch.equal(v, before[k]) for k, v in chains.state_dict().items())
