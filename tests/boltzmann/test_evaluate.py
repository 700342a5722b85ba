"""Estimates of log Z against exact enumeration, and likelihoods against their definitions."""

import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import genfast
from genfast._finite import NonFiniteError
from genfast.boltzmann import (
    RBM,
    DeepBoltzmannMachine,
    ais_bracket,
    ais_log_z,
    annealing_betas,
    exact_log_z,
    log_likelihood,
    pseudo_log_likelihood,
    reverse_ais_log_z,
)
from genfast.boltzmann._annealing import AnnealingPath, advance, base_log_odds
from genfast.boltzmann._enumerate import all_states

ROOT = Path(genfast.__file__).resolve().parents[1]


def machine(n_visible, n_hidden, *, std, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rbm = RBM(n_visible, n_hidden, init_std=std, generator=generator, dtype=dtype)
    with torch.no_grad():
        rbm.vbias.normal_(0, std, generator=generator)
        rbm.hbias.normal_(0, std, generator=generator)
    return rbm


def exact_samples(rbm, n, seed=0):
    """Independent draws of the machine, by enumeration of the visible layer."""
    v = all_states(rbm.n_visible, 0, 1 << rbm.n_visible, device=torch.device("cpu")).to(rbm.W.dtype)
    with torch.no_grad():
        p = torch.softmax(-rbm.free_energy(v).double(), 0)
    return v[torch.multinomial(p, n, replacement=True, generator=torch.Generator().manual_seed(seed))]


class Plain:
    """A machine whose path has steps alone, as one without a fused op has."""

    def __init__(self, rbm):
        self.rbm = rbm

    def annealing_path(self, base=None):
        path = self.rbm.annealing_path(base)

        class Path:
            log_z_base, start, from_samples = path.log_z_base, path.start, path.from_samples
            log_weight, step = path.log_weight, path.step

        return Path()


# --- the estimate -----------------------------------------------------------------------------------------------------


def test_the_published_ladder():
    betas = annealing_betas()
    assert len(betas) == 14_501
    assert betas[0] == 0
    assert betas[-1] == 1
    steps = betas.diff()
    for part, size in ((steps[:500], 1e-3), (steps[500:4500], 1e-4), (steps[4500:], 1e-5)):
        torch.testing.assert_close(part, torch.full_like(part, size), rtol=1e-6, atol=1e-12)
    for n in (1, 2, 7, 1000):
        assert len(annealing_betas(n)) == n + 1
        assert (annealing_betas(n).diff() > 0).all()


@pytest.mark.parametrize("std", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("sizes", [(10, 8), (15, 10), (6, 12)], ids=str)
@pytest.mark.parametrize("base", ["uniform", "data", "log-odds"])
def test_ais_finds_the_exact_log_z(sizes, std, base):
    rbm = machine(*sizes, std=std)
    exact = exact_log_z(rbm)
    bases = {"uniform": None, "data": exact_samples(rbm, 100), "log-odds": torch.linspace(-1, 1, sizes[0])}
    estimate = ais_log_z(rbm, betas=2000, n_runs=200, base=bases[base], seed=3)
    assert abs(estimate.log_z - exact) < 5 * estimate.stderr + 1e-5
    assert estimate.stderr < 0.5
    assert 20 <= estimate.ess <= 200


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_the_bracket_holds_the_truth(std):
    rbm = machine(12, 9, std=std)
    exact = exact_log_z(rbm)
    bracket = ais_bracket(rbm, samples=exact_samples(rbm, 200), betas=1000, n_runs=200, seed=5)
    assert bracket.lower.method == "AIS"
    assert bracket.upper.method == "reverse AIS"
    for side in (bracket.lower, bracket.upper):
        assert abs(side.log_z - exact) < 5 * side.stderr
    low, high = bracket.interval
    assert low < exact < high
    assert abs(bracket.gap) < 0.5


def test_on_average_the_sides_lie_below_and_above():
    """With few betas, log Z is under- and overestimated: the means differ by many standard errors."""
    rbm = machine(10, 8, std=1.5)
    exact, samples = exact_log_z(rbm), exact_samples(rbm, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        below = [ais_log_z(rbm, betas=12, n_runs=2, seed=s).log_z for s in range(100)]
        above = [reverse_ais_log_z(rbm, samples[2 * s : 2 * s + 2], betas=12, seed=s).log_z for s in range(100)]
    for values, sign in ((below, -1), (above, 1)):
        t = torch.tensor(values) - exact
        assert sign * t.mean() > 3 * t.std() / len(t) ** 0.5


def test_a_machine_without_a_fused_op():
    rbm = machine(9, 7, std=1.0)
    estimate = ais_log_z(Plain(rbm), betas=300, n_runs=200, seed=1)
    assert isinstance(rbm.annealing_path(), AnnealingPath)
    assert abs(estimate.log_z - exact_log_z(rbm)) < 5 * estimate.stderr
    reverse = reverse_ais_log_z(Plain(rbm), exact_samples(rbm, 200), betas=300, seed=1)
    assert abs(reverse.log_z - exact_log_z(rbm)) < 5 * reverse.stderr


def test_the_error_is_that_of_the_mean_weight():
    rbm = machine(8, 6, std=1.0)
    estimate = ais_log_z(rbm, betas=200, n_runs=50, seed=2)
    w = estimate.log_weights.exp()
    base = rbm.annealing_path().log_z_base
    assert estimate.log_z == pytest.approx(base + math.log(w.mean()), abs=1e-9)
    jackknife = torch.stack([(w.sum() - x).div(49).log() for x in w])
    spread = ((jackknife - jackknife.mean()) ** 2).sum().mul(49 / 50).sqrt()
    assert estimate.stderr == pytest.approx(spread.item(), rel=0.05)
    sd = w.std() / 50**0.5
    low, high = (base + math.log(w.mean() + k * sd) for k in (-3, 3))
    assert estimate.interval == pytest.approx((low, high), abs=1e-9)
    assert estimate.ess == pytest.approx((w.sum() ** 2 / (w**2).sum()).item())


def test_few_effective_runs_are_told():
    rbm = machine(15, 10, std=4.0)
    with pytest.warns(UserWarning, match=r"AIS: \d\.\d of 100 runs count"):
        estimate = ais_log_z(rbm, betas=2, seed=1)
    assert estimate.interval[0] == -math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ais_log_z(rbm, betas=2000, seed=1)


# --- the same numbers, however it is run ------------------------------------------------------------------------------


def test_seeds_splits_threads_and_progress():
    rbm = machine(40, 30, std=0.3)
    want = ais_log_z(rbm, betas=250, n_runs=37, seed=7).log_weights
    seen = []
    torch.set_num_threads(1)
    got = ais_log_z(rbm, betas=250, n_runs=37, seed=7, progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(got.log_weights, want)
    assert seen == [(100, 250), (200, 250), (250, 250)]
    betas = annealing_betas(250).tolist()
    path = rbm.annealing_path()
    parts = [
        advance(
            path, path.start(n, seed=7, first_run=k), None, betas, seed=7, first_run=k, step=0
        )[0] for k, n in ((0, 5), (5, 20), (25, 12))
    ]  # fmt: skip
    assert torch.equal(torch.cat(parts), want)
    assert not torch.equal(ais_log_z(rbm, betas=250, n_runs=37, seed=8).log_weights, want)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    first, second = (ais_log_z(rbm, betas=20, n_runs=5, generator=g).log_weights for g in generators)
    assert torch.equal(first, second)


WORKER = """
import sys, torch
from genfast.boltzmann import ais_bracket
from tests.boltzmann.test_evaluate import machine
torch.distributed.init_process_group("gloo")
rbm = machine(30, 20, std=0.3)
torch.manual_seed(torch.distributed.get_rank())  # ranks that draw other seeds agree on the first one's
bracket = ais_bracket(rbm, betas=100, n_runs=7, n_steps=20, distributed=True)
torch.save([bracket.lower.log_weights, bracket.upper.log_weights], f"{sys.argv[1]}/{torch.distributed.get_rank()}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_have_the_bits_of_one(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "worker.py"), str(tmp_path)], capture_output=True, text=True,
        timeout=240, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = ais_bracket(machine(30, 20, std=0.3), betas=100, n_runs=7, n_steps=20)
    for rank in (0, 1):
        lower, upper = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(lower, alone.lower.log_weights)
        assert torch.equal(upper, alone.upper.log_weights)


# --- likelihoods ------------------------------------------------------------------------------------------------------


def test_log_likelihood_says_where_its_log_z_is_from():
    rbm = machine(12, 6, std=0.7, dtype=torch.float64)
    data = exact_samples(rbm, 200)
    exact = log_likelihood(rbm, data)
    with torch.no_grad():
        want = rbm.log_prob(data)
    assert (exact.method, exact.log_z_stderr) == ("exact", 0)
    torch.testing.assert_close(exact.per_row, want, rtol=1e-9, atol=1e-9)
    assert exact.mean == pytest.approx(want.mean().item())
    assert exact.stderr == pytest.approx(want.std().item() / 200**0.5)
    assert log_likelihood(rbm, data.bool(), 3.0).method == "given"
    estimate = ais_log_z(rbm, betas=500, base=data, seed=1)
    by_ais = log_likelihood(rbm, data, estimate)
    assert (by_ais.method, by_ais.log_z, by_ais.log_z_stderr) == ("AIS", estimate.log_z, estimate.stderr)
    assert by_ais.mean - exact.mean == pytest.approx(exact.log_z - estimate.log_z)


def test_log_likelihood_of_a_large_machine_is_by_ais():
    rbm = machine(40, 30, std=0.1)
    data = torch.bernoulli(torch.full((20, 40), 0.3))
    found = log_likelihood(rbm, data, betas=300, n_runs=20, seed=1)
    assert found.method == "AIS"
    assert found.log_z == ais_log_z(rbm, betas=300, n_runs=20, seed=1, base=data).log_z
    assert found.log_z_stderr > 0


def test_a_deep_machine_is_bounded():
    dbm = DeepBoltzmannMachine(12, [26, 26], init_std=0.02)
    data = torch.bernoulli(torch.full((30, 12), 0.4), generator=torch.Generator().manual_seed(0))
    found = log_likelihood(dbm, data, betas=100, n_runs=10, seed=1)
    assert found.method == "AIS, variational bound"
    torch.testing.assert_close(found.per_row, dbm.bound(data, found.log_z).detach())
    small = DeepBoltzmannMachine(9, [6, 5], init_std=0.5)
    bracket = ais_bracket(small, betas=300, n_steps=300, seed=1)
    assert abs(bracket.lower.log_z - exact_log_z(small)) < 5 * bracket.lower.stderr
    assert log_likelihood(small, data[:, :9]).method == "exact"


def test_pseudo_log_likelihood():
    rbm = machine(9, 5, std=0.7, dtype=torch.float64)
    data = exact_samples(rbm, 30)
    found = pseudo_log_likelihood(rbm, data)
    want = rbm.pseudo_likelihood(data, exact=True).detach()
    torch.testing.assert_close(found.per_row, want)
    assert (found.mean, found.log_z) == (pytest.approx(want.mean().item()), None)
    drawn = [pseudo_log_likelihood(rbm, data, exact=False, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    assert torch.equal(drawn[0].per_row, drawn[1].per_row)
    assert not torch.equal(drawn[0].per_row, want)


def test_base_rates_of_data():
    data = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0]])
    odds = base_log_odds(data, torch.zeros(1, dtype=torch.float64), 3)
    torch.testing.assert_close(odds.sigmoid(), torch.tensor([0.75, 1 / 3, 0.25], dtype=torch.float64))


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "no path": (lambda r: ais_log_z(torch.nn.Linear(2, 2)), TypeError, "got Linear, which has no annealing_path"),
    "no log_partition": (lambda r: exact_log_z(object()), TypeError, "model: got object, which has no log_partition"),
    "one run": (lambda r: ais_log_z(r, n_runs=1), ValueError, "n_runs: got 1, want an integer >= 2"),
    "no betas": (lambda r: ais_log_z(r, betas=0), ValueError, "betas: got 0, want an integer >= 1"),
    "short ladder": (lambda r: ais_log_z(r, betas=[0.0]), ValueError, "want a ladder of at least 2 numbers"),
    "ladder that falls": (
        lambda r: ais_log_z(r, betas=[0, 0.5, 0.4, 1]), ValueError, "a ladder that does not increase from 0 to 1",
    ),
    "ladder that ends early": (lambda r: ais_log_z(r, betas=[0, 0.5]), ValueError, "does not increase from 0 to 1"),
    "ladder of NaN": (lambda r: ais_log_z(r, betas=[0, math.nan, 1]), ValueError, "does not increase from 0 to 1"),
    "base too short": (lambda r: ais_log_z(r, base=torch.zeros(2)), ValueError, "got 2 log-odds, want n_visible = 4"),
    "base infinite": (lambda r: ais_log_z(r, base=torch.full((4,), math.inf)), ValueError, "base: got log-odds that"),
    "base of grey values": (
        lambda r: ais_log_z(r, base=torch.full((3, 4), 7.0)), ValueError, "base: got values from 7 to 7",
    ),
    "base without rows": (lambda r: ais_log_z(r, base=torch.zeros(0, 4)), ValueError, "base: got no rows"),
    "no process group": (lambda r: ais_log_z(r, distributed=True), ValueError, "start them with torchrun"),
    "one sample": (lambda r: reverse_ais_log_z(r, torch.zeros(1, 4)), ValueError, "with at least 2 rows"),
    "samples of grey values": (
        lambda r: reverse_ais_log_z(r, torch.full((3, 4), 0.5)), ValueError, "samples: got values between 0 and 1",
    ),
    "seed and generator": (
        lambda r: ais_log_z(r, seed=1, generator=torch.Generator()), ValueError, "got both, want at most one",
    ),
    "no rows": (lambda r: log_likelihood(r, torch.zeros(0, 4)), ValueError, "with at least one row"),
    "data in three dimensions": (lambda r: log_likelihood(r, torch.zeros(2, 2, 2)), ValueError, "data: got shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, text = BAD[name]
    with pytest.raises(error, match=re.escape(text)):
        call(machine(4, 3, std=0.1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_that_are_not_finite(value):
    rbm = machine(4, 3, std=0.1)
    with torch.no_grad():
        rbm.W[1, 1] = value
    with pytest.raises(NonFiniteError, match="W"):
        ais_log_z(rbm, betas=10, seed=1)
