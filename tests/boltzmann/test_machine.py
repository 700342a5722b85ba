"""The general Boltzmann machine against exact enumeration and against its own definition."""

import concurrent.futures
import copy
import math
import pickle

import pytest
import torch

from genfast.boltzmann import (
    BoltzmannMachine,
    ParallelTempering,
    _dense,
    _dense_path,
    ais_bracket,
    exact_log_z,
    geometric_schedule,
    linear_schedule,
    log_likelihood,
)
from genfast.boltzmann._enumerate import all_states

KINDS = [("01", 1.0), ("pm1", 1.0), ("01", 1.7), ("pm1", 0.8)]


def machine(n_visible=4, n_hidden=2, *, values="01", temperature=1.0, std=0.7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    m = BoltzmannMachine(
        n_visible, n_hidden, values=values, temperature=temperature, init_std=std, generator=generator, dtype=dtype
    )
    with torch.no_grad():
        m.bias.normal_(0, 0.5, generator=generator)
    return m


def states(n, values="01"):
    """All states, the first unit the fastest."""
    bits = all_states(n, 0, 1 << n, device=torch.device("cpu"))
    return bits if values == "01" else 2 * bits - 1


def joint(m):
    """log p of all states of all units, as [hidden states, visible states], by the definition of the energy."""
    s = states(m.n_units, m.values)
    J = m.couplings.triu(1)
    log_weight = (torch.einsum("ri,ij,rj->r", s, J, s) + s @ m.bias) / m.temperature
    return (log_weight - torch.logsumexp(log_weight, 0)).reshape(1 << m.n_hidden, 1 << m.n_visible)


def index(s):
    """The number of each state."""
    return ((s > 0).long() * 2 ** torch.arange(s.shape[-1])).sum(-1)


def binary(rows, n, values="01", *, seed=0):
    bits = torch.randint(2, (rows, n), generator=torch.Generator().manual_seed(seed)).double()
    return bits if values == "01" else 2 * bits - 1


def chi2_bound(degrees):
    """A bound that a chi-square variable passes with a probability of 1e-6 (Laurent & Massart 2000)."""
    x = -math.log(1e-6)
    return degrees + 2 * math.sqrt(degrees * x) + 2 * x


# -- energies and likelihoods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_hidden", [0, 2])
@pytest.mark.parametrize(("values", "temperature"), KINDS)
def test_likelihoods_are_sums_over_all_states(values, temperature, n_hidden):
    m = machine(4, n_hidden, values=values, temperature=temperature)
    log_p, s, v = joint(m), states(m.n_units, values), states(4, values)
    torch.testing.assert_close(-m.energy(s) / temperature - m.log_partition(), log_p.flatten())
    torch.testing.assert_close(m.log_prob(v), torch.logsumexp(log_p, 0))
    torch.testing.assert_close(m.log_prob(v).exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(-m.free_energy(v) - m.log_partition(), m.log_prob(v))
    for i in range(m.n_units):
        turned = s.clone()
        turned[:, i] = 1 - s[:, i] if values == "01" else -s[:, i]
        p = torch.sigmoid(log_p.flatten() - log_p.flatten()[index(turned)])
        torch.testing.assert_close(m.conditional(s)[:, i], torch.where(s[:, i] > 0, p, 1 - p))


@pytest.mark.parametrize("n_hidden", [0, 2])
@pytest.mark.parametrize(("values", "temperature"), KINDS)
def test_pseudo_likelihood_of_all_units(values, temperature, n_hidden):
    m = machine(4, n_hidden, values=values, temperature=temperature)
    log_p, v = torch.logsumexp(joint(m), 0), states(4, values)
    want = sum(log_p - torch.logaddexp(log_p, log_p[torch.arange(16) ^ (1 << i)]) for i in range(4))
    torch.testing.assert_close(m.pseudo_likelihood(v), want)
    torch.testing.assert_close(m.pseudo_likelihood_loss(v), -want.mean())
    torch.testing.assert_close(m.pseudo_likelihood(v.reshape(2, 8, 4)).flatten(), want)


def test_pseudo_likelihood_by_sampling():
    m = machine(4, 3, std=1.5, temperature=1.2)
    v = states(4)
    want = m.pseudo_likelihood(v).detach()
    n = 2000
    estimate = m.pseudo_likelihood(
        v.repeat_interleave(n, 0), exact=False, n_sweeps=200, generator=torch.Generator().manual_seed(0)
    )
    estimate = estimate.reshape(16, n)
    # the chosen unit's spread, and 2% of the value for the logarithm of a mean of 100 correlated numbers
    allowed = 5.5 * estimate.std(1) / n**0.5 + 0.02 * want.abs()
    assert ((estimate.mean(1) - want).abs() < allowed).all()


@pytest.mark.parametrize(("low", "terms"), [(2, 8), (3, 1 << 18), (12, 1 << 18), (1, 1)])
def test_sums_do_not_depend_on_their_chunks(monkeypatch, low, terms):
    monkeypatch.setattr(_dense, "_LOW", low)
    monkeypatch.setattr(_dense, "_TERMS", terms)
    m = machine(3, 4, values="pm1")
    torch.testing.assert_close(m.log_prob(states(3, "pm1")), torch.logsumexp(joint(m), 0))
    got = torch.autograd.grad(m.log_prob(states(3, "pm1"))[2], list(m.parameters()))
    want = torch.autograd.grad(torch.logsumexp(joint(m), 0)[2], list(m.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_expectations_have_their_energy():
    """The energy has no square of a unit, so that of expectations of independent units is the expected one."""
    for values in ("01", "pm1"):
        m = machine(5, 0, values=values)
        p = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        s = states(5, values)
        weights = torch.where(s > 0, p, 1 - p).prod(1)
        torch.testing.assert_close(m.energy(p if values == "01" else 2 * p - 1), (weights * m.energy(s)).sum())


def test_a_large_machine_is_not_enumerated():
    with pytest.raises(ValueError, match=r"log_partition: the machine has 26 units, want at most 25 .*ais_log_z"):
        BoltzmannMachine(26).log_partition()
    with pytest.raises(ValueError, match="free_energy: the machine has 26 hidden units, want at most 25"):
        BoltzmannMachine(2, 26).free_energy(torch.zeros(2))
    with pytest.raises(ValueError, match=r"pseudo_likelihood: the machine has 26 hidden units.*exact=False"):
        BoltzmannMachine(2, 26).pseudo_likelihood(torch.zeros(2))
    assert BoltzmannMachine(100).pseudo_likelihood(torch.zeros(3, 100)).shape == (3,)


# -- couplings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
        lambda p: torch.optim.LBFGS(p, lr=0.1),
    ],
)
def test_couplings_stay_symmetric_and_without_diagonal(make):
    m = machine(5, 2, dtype=torch.float32)
    optimizer, v = make(list(m.parameters())), binary(9, 5).float()

    def step():
        optimizer.zero_grad()
        loss = m.contrastive_loss(m.sample_hidden(v), m.gibbs(m.sample_hidden(v)))
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(step)
        assert torch.equal(m.J, m.J.mT)
        assert not m.J.diagonal().any()
        assert not m.couplings.tril().any(), "what does not count is not moved"


def test_what_lies_below_the_diagonal_counts_for_nothing():
    m = machine()
    other = copy.deepcopy(m)
    with torch.no_grad():
        other.couplings += torch.ones_like(other.couplings).tril()
    assert torch.equal(m.J, other.J)
    for f in (lambda m: m.log_prob(states(4)).sum(), lambda m: m.contrastive_loss(binary(5, 6), binary(4, 6))):
        grads = [torch.autograd.grad(f(x), x.couplings)[0] for x in (m, other)]
        assert torch.equal(*grads)
        assert not grads[0].tril().any()
    with torch.no_grad():
        other.couplings.copy_(m.J)
    torch.testing.assert_close(other.log_partition(), m.log_partition())


@pytest.mark.parametrize("n", [1, 5, 256, 257, 700])
def test_couplings_of_samplers_are_those_of_the_property(n):
    m = BoltzmannMachine(n, init_std=1.0)
    for _ in range(2):  # the second time in the memory of the first
        with m._couplings_now() as J, m._couplings_now() as other:
            assert torch.equal(J, m.J.detach())
            assert torch.equal(other, J)
            assert other.data_ptr() != J.data_ptr()
        with torch.no_grad():
            m.couplings.add_(torch.randn(n, n))
    assert len(pickle.dumps(m)) < 6 * n * n + 10_000, "what is used again is not saved"
    with torch.inference_mode():
        m.gibbs(torch.zeros(2, n))
    m.gibbs(torch.zeros(2, n))


def test_machines_are_sampled_in_threads():
    """Each thread has the couplings to itself."""
    m, s = BoltzmannMachine(300, init_std=0.3), binary(8, 300).float()
    want = [m.gibbs(s, 3, seed=i) for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: m.gibbs(s, 3, seed=i), range(16)))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_from_couplings():
    m = machine(4, 2, values="pm1", temperature=1.3)
    J, bias = m.J.detach(), m.bias.detach()
    other = BoltzmannMachine.from_couplings(J, bias, n_hidden=2, values="pm1", temperature=1.3)
    torch.testing.assert_close(other.log_prob(states(4, "pm1")), m.log_prob(states(4, "pm1")))
    with torch.no_grad():
        other.couplings += 1
    assert torch.equal(m.J, J)


ASYMMETRIC = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 2.5, 0.0]])


@pytest.mark.parametrize(
    ("J", "bias", "message"),
    [
        (ASYMMETRIC, torch.zeros(3), r"J: is not symmetric: J\[1, 2\] = 2 but J\[2, 1\] = 2.5"),
        (torch.eye(3), torch.zeros(3), r"J: got J\[0, 0\] = 1, want a zero diagonal"),
        (torch.zeros(3, 3).fill_(torch.nan), torch.zeros(3), "J: got 9 values that are NaN or infinite"),
        (torch.zeros(3, 3), torch.tensor([0, torch.inf, 0]), "bias: got 1 values that are NaN or infinite"),
        (torch.zeros(3, 4), torch.zeros(3), r"J: got shape \[3, 4\], want a square"),
        (torch.zeros(3, 3), torch.zeros(2), r"bias: got shape \[2\], want \[n\] = \[3\] of J"),
        (torch.zeros(3, 3), torch.zeros(3).double(), "bias: got torch.float64 on cpu, want torch.float32"),
    ],
)
def test_couplings_of_no_machine_are_refused(J, bias, message):
    with pytest.raises(ValueError, match=message):
        BoltzmannMachine.from_couplings(J, bias)


def test_a_state_dict_of_another_kind_is_refused():
    m = machine(4, 2)
    for other in (machine(3, 3), machine(4, 2, values="pm1"), machine(4, 2, temperature=2.0)):
        before = copy.deepcopy(m.state_dict())
        with pytest.raises(RuntimeError, match="the state dict is that of a module with"):
            m.load_state_dict(other.state_dict())
        assert all(torch.equal(x, before[name]) for name, x in m.state_dict().items())


# -- chains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "temperature"), KINDS)
@pytest.mark.parametrize("clamped", [False, True])
def test_chains_reach_the_enumerated_distribution(values, temperature, clamped):
    m, n = machine(3, 2, values=values, temperature=temperature, std=1.0 if values == "01" else 0.4), 100_000
    clamp = torch.tensor([False, True, False, False, True]) if clamped else torch.zeros(5, dtype=torch.bool)
    start = binary(1, 5, values).expand(n, -1).contiguous()
    s = m.gibbs(start, 40, clamp=clamp, seed=1)
    assert torch.equal(s[:, clamp], start[:, clamp])
    p = joint(m).exp().flatten().detach()
    p = torch.where((states(5, values)[:, clamp] == start[0, clamp]).all(1), p, 0)
    p = p / p.sum()
    counts = torch.bincount(index(s), minlength=32)
    here = p > 0
    assert not counts[~here].any()
    chi2 = ((counts - n * p)[here] ** 2 / (n * p[here])).sum()
    assert chi2 < chi2_bound(int(here.sum()) - 1)
    assert float((counts / n - p).abs().sum() / 2) < 0.012


def test_a_temperature_for_each_chain():
    m, n = machine(3, 0, std=1.0), 40_000
    T = torch.tensor([0.5, 2.0]).repeat_interleave(n)
    s = m.gibbs(binary(2 * n, 3), 30, temperature=T, seed=0)
    for part, temperature in zip(s.split(n), (0.5, 2.0), strict=True):
        other = BoltzmannMachine.from_couplings(m.J.detach(), m.bias.detach(), temperature=temperature)
        p = joint(other).exp().flatten().detach()
        counts = torch.bincount(index(part), minlength=8)
        assert ((counts - n * p) ** 2 / (n * p)).sum() < chi2_bound(7)


def test_chains_split_over_batches_and_time():
    m, s = machine(6, 3), binary(20, 9)
    whole = m.gibbs(s, 7, seed=3)
    halves = [m.gibbs(part, 7, seed=3, first_chain=c) for part, c in ((s[:8], 0), (s[8:], 8))]
    assert torch.equal(torch.cat(halves), whole)
    assert torch.equal(m.gibbs(m.gibbs(s, 3, seed=3), 4, seed=3, first_step=3), whole)
    assert m.gibbs(s.to(torch.int64), 7, seed=3).dtype == torch.int64
    assert torch.equal(m.gibbs(s.to(torch.int64), 7, seed=3).double(), whole)


@pytest.mark.parametrize("values", ["01", "pm1"])
def test_completion_has_the_enumerated_conditionals(values):
    m, n = machine(4, 2, values=values, std=1.2 if values == "01" else 0.5), 60_000
    mask = torch.tensor([True, False, True, False])
    v = binary(1, 4, values, seed=5)
    given = v.masked_fill(~mask, torch.nan).expand(n, -1)
    out = m.complete(given, n_steps=40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out[:, mask], v[:, mask].expand(n, -1))
    again = m.complete(v.expand(n, -1), mask, n_steps=40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, out), "what lies at unknown units is not looked at"
    log_p = torch.logsumexp(joint(m), 0).detach()
    fits = (states(4, values)[:, mask] == v[0, mask]).all(1)
    p = torch.softmax(log_p.masked_fill(~fits, -torch.inf), 0)
    counts = torch.bincount(index(out), minlength=16)
    assert ((counts - n * p)[fits] ** 2 / (n * p[fits])).sum() < chi2_bound(3)


def test_completion_of_each_row_by_its_own_mask():
    m, v = machine(6, 2), binary(10, 6)
    mask = torch.rand(10, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    out = m.complete(v.reshape(2, 5, 6), mask.reshape(2, 5, 6), n_steps=5)
    assert out.shape == (2, 5, 6)
    assert torch.equal(out.reshape(10, 6)[mask], v[mask])
    assert set(out.unique().tolist()) <= {0.0, 1.0}


def test_samples():
    m, n = machine(3, 2, std=1.0), 50_000
    v = m.sample(n, 40, generator=torch.Generator().manual_seed(0))
    p = torch.logsumexp(joint(m), 0).exp().detach()
    counts = torch.bincount(index(v), minlength=8)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < chi2_bound(7)
    start = binary(6, 3)
    mask = torch.tensor([True, False, True])
    assert torch.equal(m.sample(6, 3, start=start, clamp=mask)[:, mask], start[:, mask])


def test_annealing_finds_the_ground_state():
    """A spin glass of 14 units with 16,384 states, whose lowest one is known by enumeration."""
    generator = torch.Generator().manual_seed(0)
    J = torch.randn(14, 14, generator=generator, dtype=torch.float64).triu(1)
    m = BoltzmannMachine.from_couplings(J + J.T, torch.zeros(14, dtype=torch.float64), values="pm1")
    energies = m.energy(states(14, "pm1")).detach()
    s, found = m.anneal(32, geometric_schedule(5.0, 0.05, 60), n_sweeps=2, generator=generator)
    torch.testing.assert_close(m.energy(s), found)
    assert float(found.min()) == pytest.approx(float(energies.min()))
    cold = float((found < energies.sort().values[20]).double().mean())
    hot = m.energy(m.gibbs(s, 5, temperature=5.0, seed=0))
    assert cold > 0.5, "of all states 20 are as low"
    assert float(hot.detach().mean()) > float(found.mean()) + 5


def test_tempering_crosses_the_barrier_of_a_machine():
    """Two modes, of which a chain at T = 1 keeps to one; tempering has both, and log Z."""
    n = 8
    J = torch.full((n, n), 0.45, dtype=torch.float64).fill_diagonal_(0)
    m = BoltzmannMachine.from_couplings(J, torch.full((n,), 0.05, dtype=torch.float64), values="pm1")
    chains = ParallelTempering(m, betas=torch.linspace(0.1, 1, 8), n_chains=400, seed=0)
    v = chains.sample(400, n_steps=200)
    p = torch.softmax(-m.energy(states(n, "pm1")).detach(), 0)
    up = float(p[states(n, "pm1").sum(1) > 0].sum())
    share = float((v.sum(1) > 0).double().mean())
    assert abs(share - up) < 5.2 * (up * (1 - up) / 400) ** 0.5


def test_schedules():
    torch.testing.assert_close(geometric_schedule(8, 1, 4), torch.tensor([8.0, 4, 2, 1], dtype=torch.float64))
    torch.testing.assert_close(linear_schedule(4, 1, 4), torch.tensor([4.0, 3, 2, 1], dtype=torch.float64))
    assert geometric_schedule(7.3, 0.1, 50)[-1] == 0.1
    assert linear_schedule(2, 1, 1).tolist() == [2.0]
    for bad in ((0, 1, 3), (1, -2, 3), (math.inf, 1, 3), (1, 2, 0)):
        for make in (geometric_schedule, linear_schedule):
            with pytest.raises(ValueError, match=r"first|last|n: "):
                make(*bad)


# -- annealed importance sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["none", "odds", "data"])
@pytest.mark.parametrize(("values", "temperature"), KINDS)
def test_the_path_leads_from_its_base_to_the_machine(values, temperature, base):
    m = machine(3, 2, values=values, temperature=temperature, std=1.0)
    given = {"none": None, "odds": torch.tensor([0.5, -1.0, 0.2]), "data": binary(7, 3, values)}[base]
    path = m.annealing_path(given)
    s = states(5, values)
    rest = -m.energy(s).detach() / temperature - path.log_weight(s, 0.0, 1.0)  # log f_0
    assert path.log_z_base == pytest.approx(float(torch.logsumexp(rest, 0)))
    torch.testing.assert_close(
        path.log_weight(s, 0.2, 0.5) + path.log_weight(s, 0.5, 1.0), path.log_weight(s, 0.2, 1.0)
    )
    n = 40_000
    drawn = path.start(n, seed=0)
    if base == "odds":
        p = torch.sigmoid(given.double())
        rate = (drawn[:, :3] > 0).double().mean(0)
        assert ((rate - p).abs() < 5.2 * (p * (1 - p) / n).sqrt()).all()
    for beta, at in ((0.0, drawn), (0.6, None), (1.0, None)):
        p = torch.softmax(rest + path.log_weight(s, 0.0, beta), 0)
        if at is None:
            start = torch.multinomial(p, n, replacement=True, generator=torch.Generator().manual_seed(0))
            at = path.step(s[start], beta, seed=1)
        counts = torch.bincount(index(at), minlength=32)
        assert ((counts - n * p) ** 2 / (n * p)).sum() < chi2_bound(31), beta
    assert torch.equal(path.start(30, seed=4)[10:], path.start(20, seed=4, first_run=10))


@pytest.mark.parametrize("n_hidden", [0, 3])
@pytest.mark.parametrize("values", ["01", "pm1"])
def test_annealed_importance_sampling_brackets_log_z(values, n_hidden):
    m = machine(6, n_hidden, values=values, std=0.8 if values == "01" else 0.4, temperature=1.2)
    log_p = torch.logsumexp(joint(m), 0).exp().detach()
    g = torch.Generator().manual_seed(0)
    v = states(6, values)[torch.multinomial(log_p, 400, replacement=True, generator=g)]
    exact = exact_log_z(m)
    bracket = ais_bracket(m, samples=v, betas=torch.linspace(0, 1, 100), n_runs=400, base=v, seed=1)
    for estimate in (bracket.lower, bracket.upper):
        assert abs(estimate.log_z - exact) < 5.2 * estimate.stderr + 0.01
        assert estimate.stderr < 0.1
    assert log_likelihood(m, v).mean == pytest.approx(float(m.log_prob(v).detach().mean()))


@pytest.mark.parametrize("values", ["01", "pm1"])
def test_reverse_runs_start_from_exact_draws(values):
    m, n = machine(2, 3, values=values, std=1.2), 30_000
    path = m.annealing_path()
    v = binary(1, 2, values, seed=3).expand(n, -1)
    s = path.from_samples(v, seed=0)
    assert torch.equal(s[:, :2], v)
    given = joint(m)[:, int(index(v[0]))].detach()
    p = torch.softmax(given, 0)
    counts = torch.bincount(index(s[:, 2:]), minlength=8)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < chi2_bound(7)
    assert torch.equal(path.from_samples(v[5:40], seed=0, first_run=5), s[5:40])
    assert torch.equal(path.from_samples(s, seed=1), s)


def test_reverse_runs_of_many_hidden_units_start_from_sweeps(monkeypatch):
    monkeypatch.setattr(_dense_path, "_EXACT_HIDDEN", 2)
    m, n = machine(2, 3, std=1.0), 30_000
    v = binary(1, 2, seed=3).expand(n, -1)
    s = m.annealing_path().from_samples(v, seed=0)
    assert torch.equal(s[:, :2], v)
    p = torch.softmax(joint(m)[:, int(index(v[0]))].detach(), 0)
    counts = torch.bincount(index(s[:, 2:]), minlength=8)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < chi2_bound(7)


@pytest.mark.parametrize(("values", "temperature"), KINDS)
def test_the_variational_bound(values, temperature):
    m, v = machine(4, 3, values=values, temperature=temperature, std=0.4), states(4, values)
    exact, bound = m.free_energy(v), m.variational_free_energy(v)
    assert (bound > exact).all()
    assert float((bound - exact).detach().max()) < 0.5
    for seed in range(5):
        means = binary(16, 3, values, seed=seed) * 0.8
        assert (m.variational_free_energy(v, means) > exact).all()
    with torch.no_grad():
        m.couplings[4:, 4:] = 0
    torch.testing.assert_close(m.variational_free_energy(v), m.free_energy(v))
    large = BoltzmannMachine(4, 30, temperature=temperature, values=values, init_std=0.1)
    assert log_likelihood(large, v.float(), 20.0).method == "given, variational bound"
