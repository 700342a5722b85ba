"""Restricted Boltzmann machines of every pair of kinds against sums and integrals over all states."""

import copy
import itertools
import math

import pytest
import torch

from genfast.boltzmann import RBM, _enumerate
from genfast.boltzmann.units import Binary, DoubleReLU, Gaussian, Partitioned, ReLU, Softmax, Spin

VISIBLE = {
    "binary": lambda: Binary(4),
    "spin": lambda: Spin(4),
    "potts": lambda: Softmax(2, 3),
    "gaussian": lambda: Gaussian(2),
    "relu": lambda: ReLU(2),
    "double relu": lambda: DoubleReLU(2),
    "binary and labels": lambda: Partitioned([Binary(3), Softmax(1, 3)]),
    "binary and gaussian": lambda: Partitioned([Binary(2), Gaussian(1)]),
}
HIDDEN = {
    "binary": lambda: Binary(3),
    "spin": lambda: Spin(3),
    "potts": lambda: Softmax(1, 3),
    "gaussian": lambda: Gaussian(2),
    "relu": lambda: ReLU(2),
    "double relu": lambda: DoubleReLU(2),
}
DISCRETE = ("binary", "spin", "potts", "binary and labels")
PAIRS = list(itertools.product(VISIBLE, HIDDEN))
SOME = [(v, h) for i, v in enumerate(VISIBLE) for j, h in enumerate(HIDDEN) if (i + j) % 3 == 0]  # each kind in turn


def machine(visible: str, hidden: str, *, std: float = 0.6, seed: int = 0, dtype=torch.float64) -> RBM:
    generator = torch.Generator().manual_seed(seed)
    rbm = RBM(VISIBLE[visible](), HIDDEN[hidden](), init_std=std, generator=generator, dtype=dtype)
    with torch.no_grad():
        for p in (rbm.vbias, rbm.hbias, *rbm.visible.parameters(), *rbm.hidden.parameters()):
            p.normal_(0, 0.4, generator=generator)
        if rbm.visible.n_states is None and rbm.hidden.n_states is None:
            rbm.W.mul_(0.4)  # so that exp(-E) has a finite integral
    return rbm


def everything(layer) -> torch.Tensor:
    return layer.states(torch.arange(layer.n_states))


def draws(layer, rows: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return layer.sample(torch.zeros(rows, layer.size, dtype=torch.float64), generator=generator)


def grid(layer, *, reach: float = 14.0, points: int = 257) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a layer's states, and the logs of their weights in the trapezoidal rule (or sum)."""
    if layer.n_states is not None:
        x = everything(layer)
        return x, torch.zeros(len(x), dtype=torch.float64)
    if isinstance(layer, Partitioned):
        points = [grid(part) for part in layer]
        combined = itertools.product(*(zip(x, w, strict=True) for x, w in points))
        rows = [(torch.cat([x for x, _ in c]), sum(w for _, w in c)) for c in combined]
        return torch.stack([x for x, _ in rows]), torch.stack([w for _, w in rows])
    low = 0.0 if isinstance(layer, ReLU) else -reach
    one = torch.linspace(low, reach, points, dtype=torch.float64)
    weight = torch.full_like(one, one[1] - one[0])
    weight[[0, -1]] /= 2
    x = torch.cartesian_prod(*[one] * layer.n).view(-1, layer.n)
    return x, torch.cartesian_prod(*[weight.log()] * layer.n).view(-1, layer.n).sum(1)


@pytest.mark.parametrize(("visible", "hidden"), PAIRS)
def test_free_energy_is_the_sum_over_the_hidden_states(visible, hidden):
    rbm = machine(visible, hidden)
    v = draws(rbm.visible, 3)
    h, log_weights = grid(rbm.hidden, reach=12.0, points=401)
    energy = rbm.energy(v[:, None].expand(-1, len(h), -1), h.expand(len(v), -1, -1))
    want = -torch.logsumexp(log_weights - energy, 1)
    rough = rbm.hidden.n_states is None and not isinstance(rbm.hidden, Gaussian)  # the trapezoidal rule at a cusp
    torch.testing.assert_close(rbm.free_energy(v), want, rtol=0, atol=2e-3 if rough else 1e-8)


@pytest.mark.parametrize(("visible", "hidden"), PAIRS)
def test_log_partition_is_the_sum_over_the_visible_states(visible, hidden):
    rbm = machine(visible, hidden)
    v, log_weights = grid(rbm.visible)
    log_z = torch.logsumexp(log_weights - rbm.free_energy(v), 0)
    if visible not in DISCRETE and rbm.hidden.n_states is None and not visible == hidden == "gaussian":
        with pytest.raises(ValueError, match=r"neither of the layers, .*, is discrete, so none can be enumerated"):
            rbm.log_partition()
        return
    rough = visible in ("relu", "double relu")
    torch.testing.assert_close(rbm.log_partition(), log_z, rtol=0, atol=5e-3 if rough else 1e-8)
    if not rough:
        total = (rbm.log_prob(v) + log_weights).exp().sum()
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(("visible", "hidden"), PAIRS)
def test_the_conditionals_are_those_of_the_energy(visible, hidden):
    """E[h|v] is the derivative of -F in b, and of the joint energy's exponential sums."""
    rbm = machine(visible, hidden)
    v = draws(rbm.visible, 3)
    (of_hbias,) = torch.autograd.grad(-rbm.free_energy(v).sum(), rbm.hbias)
    torch.testing.assert_close(rbm.hidden_mean(v).sum(0), of_hbias)
    h = draws(rbm.hidden, 2)
    x, log_weights = grid(rbm.visible)
    energy = rbm.energy(x[:, None].expand(-1, 2, -1), h.expand(len(x), -1, -1))
    p = (log_weights[:, None] - energy).softmax(0)
    rough = visible in ("relu", "double relu")
    torch.testing.assert_close(rbm.visible_mean(h), p.T @ x, rtol=0, atol=2e-2 if rough else 1e-8)


@pytest.mark.parametrize(("visible", "hidden"), PAIRS)
def test_the_loss_has_the_gradient_of_the_free_energies(visible, hidden):
    rbm = machine(visible, hidden)
    data, model = draws(rbm.visible, 6), draws(rbm.visible, 5, seed=1)
    parameters = list(rbm.parameters())
    want = torch.autograd.grad(rbm.free_energy(data).mean() - rbm.free_energy(model).mean(), parameters)
    got = torch.autograd.grad(rbm.contrastive_loss(data, model), parameters)
    for (name, _), a, b in zip(rbm.named_parameters(), got, want, strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("method", ["cd", "pcd"])
@pytest.mark.parametrize(("visible", "hidden"), PAIRS)
def test_backward_without_a_graph_is_the_backward_of_the_loss(visible, hidden, method):
    rbm = machine(visible, hidden).to(torch.float32 if method == "cd" else torch.float64)
    other, data = copy.deepcopy(rbm), draws(rbm.visible, 7)
    for seed in (4, 5):
        rbm.zero_grad()
        loss = getattr(rbm, f"{method}_loss")(data, 2, generator=torch.Generator().manual_seed(seed))
        loss.backward()
        states = getattr(other, f"{method}_backward")(data, 2, generator=torch.Generator().manual_seed(seed))
        for name, p in rbm.named_parameters():
            torch.testing.assert_close(other.get_parameter(name).grad, p.grad, msg=name)
        assert torch.equal(rbm.chains, other.chains)
        torch.testing.assert_close(other.contrastive_loss(data, states), loss)
    rbm.check_finite()


@pytest.mark.parametrize(
    "kinds", [(Gaussian(2), Binary(2)), (Softmax(1, 3), ReLU(1)), (Spin(2), DoubleReLU(1))], ids=str
)
def test_first_and_second_derivatives_of_the_likelihood(monkeypatch, kinds):
    monkeypatch.setattr(_enumerate, "_CHUNK", 2)
    rbm = RBM(*copy.deepcopy(kinds), init_std=0.5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v, names = draws(rbm.visible, 3), [name for name, _ in rbm.named_parameters()]
    rbm.forward = rbm.log_prob
    leaves = tuple(p.detach().clone().requires_grad_() for p in rbm.parameters())

    def f(*parameters):
        return torch.func.functional_call(rbm, dict(zip(names, parameters, strict=True)), (v,))

    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_constant_log_partition_has_no_gradient_in_any_parameter(hidden):
    rbm = machine("gaussian", hidden)
    v = draws(rbm.visible, 3).requires_grad_()
    log_prob = rbm.log_prob(v, log_partition=1.0)
    assert torch.autograd.grad(log_prob.sum(), v, retain_graph=True)[0].isfinite().all()
    for p in rbm.parameters():
        with pytest.raises(RuntimeError, match="log_partition was given as a constant"):
            torch.autograd.grad(log_prob.sum(), p, retain_graph=True)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("visible", DISCRETE)
def test_pseudo_likelihood(visible, hidden):
    rbm = machine(visible, hidden)
    x = everything(rbm.visible)
    log_p, index = rbm.free_energy(x).neg(), {tuple(row.tolist()): i for i, row in enumerate(x)}
    rows = x[:: max(1, len(x) // 4)][:4]
    units, start = [], 0
    for part in rbm.visible if isinstance(rbm.visible, Partitioned) else [rbm.visible]:
        width = part.size // part.n
        units += [(start + i * width, width, part) for i in range(part.n)]
        start += part.size
    want = []
    for row in rows:
        total = 0.0
        for column, width, part in units:
            choices = everything(type(part)(1, width) if width > 1 else type(part)(1))
            others = row.repeat(len(choices), 1)
            others[:, column : column + width] = choices
            scores = torch.stack([log_p[index[tuple(other.tolist())]] for other in others])
            total += log_p[index[tuple(row.tolist())]] - scores.logsumexp(0)
        want.append(total)
    torch.testing.assert_close(rbm.pseudo_likelihood(rows, exact=True), torch.stack(want))
    n = 20_000
    estimate = rbm.pseudo_likelihood(rows.repeat_interleave(n, 0), generator=torch.Generator().manual_seed(0))
    estimate = estimate.view(len(rows), n)
    error = (estimate.mean(1) - torch.stack(want)).abs() / (estimate.std(1) / n**0.5 + 1e-12)
    assert error.max() < 5.3, "a two-sided normal test at 1e-6 for four rows"


def test_pseudo_likelihood_of_continuous_units_is_refused():
    with pytest.raises(ValueError, match=r"pseudo_likelihood: the visible layer is Gaussian\(2\), want discrete units"):
        machine("gaussian", "binary").pseudo_likelihood(torch.zeros(1, 2))


def number_of(layer, x: torch.Tensor) -> torch.Tensor:
    """The numbers of states of a discrete layer, in the order of `states`."""
    if isinstance(layer, Partitioned):
        number, factor = 0, 1
        for part, columns in zip(layer, layer.split(x), strict=True):
            number, factor = number + factor * number_of(part, columns), factor * part.n_states
        return number
    digits, base = (layer.labels(x), layer.n_classes) if isinstance(layer, Softmax) else ((x > 0).long(), 2)
    return (digits * base ** torch.arange(layer.n)).sum(1)


SMALL = {
    "binary": lambda: Binary(3),
    "spin": lambda: Spin(3),
    "potts": lambda: Softmax(2, 3),
    "binary and labels": lambda: Partitioned([Binary(2), Softmax(1, 3)]),
}


@pytest.mark.parametrize("hidden", ["binary", "spin", "potts"])
@pytest.mark.parametrize("visible", DISCRETE)
def test_chains_reach_the_enumerated_distribution(monkeypatch, visible, hidden):
    """Chains that start in the exact distribution stay in it: 2^20 of them, total variation below 0.002.

    The expected distance of so many exact draws of K <= 12 states is sqrt(K / (2 pi n)) < 0.0014.
    """
    monkeypatch.setitem(VISIBLE, visible, SMALL[visible])
    rbm = machine(visible, hidden, dtype=torch.float32)
    x, n = everything(rbm.visible), 1 << 20
    assert torch.equal(number_of(rbm.visible, x), torch.arange(len(x)))
    p = rbm.log_prob(x.float()).detach().double().exp()
    start = x.float().repeat_interleave((p * n).round().long(), 0)
    assert (p - 1 / len(x)).abs().sum() > 0.04, "not the uniform distribution"
    v, _ = rbm.gibbs(start, 2, seed=1)
    counts = torch.bincount(number_of(rbm.visible, v), minlength=len(x))
    assert 0.5 * (counts / len(v) - p).abs().sum() < 0.002


def test_gaussian_binary_chains_reach_the_exact_mixture():
    rbm = machine("gaussian", "binary", std=1.0, dtype=torch.float32)
    n = 100_000
    h = everything(rbm.hidden)
    inputs = h.float() @ rbm.W.T + rbm.vbias
    log_p = h.float() @ rbm.hbias + rbm.visible.log_normaliser(inputs)
    p = log_p.softmax(0).detach().double()
    v = rbm.sample(n, 80, generator=torch.Generator().manual_seed(0)).double()
    means, deviation = rbm.visible.mean(inputs).detach().double(), (-0.5 * rbm.visible.log_precision).exp().double()
    assert len(p) == 8
    for i in range(2):
        z = (v[:, i, None].sort(0).values - means[:, i]) / deviation[i]
        cdf = torch.special.ndtr(z) @ p
        distance = (cdf - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n
        assert distance * math.sqrt(n) < 2.75, "Kolmogorov's test at a false-alarm rate of 1e-6"
    joint = (v[:, 0] * v[:, 1]).mean()
    want = (p * means.prod(1)).sum()
    assert (joint - want).abs() < 5.2 * (v[:, 0] * v[:, 1]).std() / math.sqrt(n)


@pytest.mark.parametrize(("visible", "hidden"), [p for p in SOME if p[0] not in DISCRETE])
def test_chains_keep_the_moments_of_continuous_machines(visible, hidden):
    """Means and second moments of v after many sweeps against those of the free energy on a grid."""
    rbm = machine(visible, hidden)
    with torch.no_grad():
        rbm.W.mul_(0.5)  # so that 40 sweeps are enough
    x, log_weights = grid(rbm.visible)
    p = (log_weights - rbm.free_energy(x)).softmax(0).detach()
    n = 10_000
    v = rbm.sample(n, 40, generator=torch.Generator().manual_seed(0))
    slack = 5e-3 if visible in ("relu", "double relu") else 0
    for power in (1, 2):
        want, got = p @ x**power, (v**power).mean(0)
        assert ((got - want).abs() < 5.6 * (v**power).std(0) / n**0.5 + slack).all(), power


@pytest.mark.parametrize(("visible", "hidden"), PAIRS)
def test_chains_are_those_of_their_seed_and_keep_what_is_clamped(visible, hidden):
    rbm = machine(visible, hidden)
    start = draws(rbm.visible, 30)
    clamp = torch.arange(rbm.n_visible) < 2 if "binary and" not in visible else torch.arange(rbm.n_visible) < 1
    if visible == "potts":
        clamp = torch.arange(6) < 3
    elif visible in ("gaussian", "relu", "double relu"):
        clamp = torch.tensor([True, False])
    one, two, other = (rbm.gibbs(start, 3, seed=s, clamp=clamp) for s in (1, 1, 2))
    for a, b, c in zip(one, two, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert torch.equal(one[0][:, clamp], start[:, clamp])
    assert not torch.equal(one[0][:, ~clamp], start[:, ~clamp])
    later = rbm.gibbs(start, 3, seed=1, first_chain=30)[0]
    assert not torch.equal(rbm.gibbs(start, 3, seed=1)[0], later)
    betas = torch.linspace(0.5, 1, 30)
    assert rbm.gibbs(start, 2, beta=betas, seed=1)[0].shape == start.shape
    rbm.visible.check("v", rbm.gibbs(start, 2, seed=1)[0], torch.float64, states=True)
    assert rbm.reconstruct(start).shape == start.shape
    with pytest.raises(ValueError, match="n_steps"):
        rbm.gibbs(start, 0)


@pytest.mark.parametrize(("visible", "hidden"), [("spin", "spin"), ("spin", "binary"), ("binary", "spin")])
def test_spins_run_on_the_kernel_of_bits(visible, hidden):
    """Chains can be split, and are those of the 0/1 machine of the same distribution, bit for bit."""
    rbm = machine(visible, hidden)
    start = draws(rbm.visible, 30)
    v, h = rbm.gibbs(start, 4, seed=3)
    parts = [rbm.gibbs(start[i : i + 10], 4, seed=3, first_chain=i) for i in (0, 10, 20)]
    assert torch.equal(torch.cat([p[0] for p in parts]), v)
    half = rbm.gibbs(start, 1, seed=3)[0]
    assert torch.equal(rbm.gibbs(half, 3, seed=3, first_step=1)[0], v)
    assert set(h.unique().tolist()) == set(rbm.hidden.values.states)
    if visible == "spin":
        assert torch.equal(rbm.gibbs(start.long(), 4, seed=3)[0], v.long())
        with pytest.raises(ValueError, match="v: got values between -1 and 1, want -1 or 1 alone"):
            rbm.gibbs(0 * start)
        with pytest.raises(ValueError, match=r"v: got values from 0 to 1, want -1 or 1|between -1 and 1"):
            rbm.gibbs((start > 0).long())


def test_spins_of_one_machine_are_bits_of_another():
    spins = machine("spin", "spin")
    bits = RBM(4, 3, dtype=torch.float64)
    with torch.no_grad():
        bits.W.copy_(4 * spins.W)
        bits.vbias.copy_(2 * (spins.vbias - spins.W.sum(1)))
        bits.hbias.copy_(2 * (spins.hbias - spins.W.sum(0)))
    x = everything(spins.visible)
    torch.testing.assert_close(spins.log_prob(x), bits.log_prob((x + 1) / 2))


@pytest.mark.parametrize("visible", VISIBLE)
def test_inpainting_replaces_what_is_missing(visible):
    rbm = machine(visible, "binary")
    v = draws(rbm.visible, 20)
    missing = torch.arange(rbm.n_visible) >= (3 if visible in ("potts", "binary and labels") else 1)
    spoilt = torch.where(missing, torch.nan, v)
    out = rbm.inpaint(spoilt, missing, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out[:, ~missing], v[:, ~missing])
    rbm.visible.check("v", out, torch.float64, states=True)
    means = rbm.inpaint(spoilt, missing.expand(20, -1), 5, mean=True)
    assert torch.equal(means[:, ~missing], v[:, ~missing])
    rbm.visible.check("v", means, torch.float64)
    with pytest.raises(ValueError, match=r"v: got NaN|v: got a unit|v.*: got"):
        rbm.inpaint(spoilt, torch.zeros_like(missing))
    with pytest.raises(TypeError, match=r"missing: got torch\.float64, want a torch.bool mask"):
        rbm.inpaint(v, missing.double())


@pytest.mark.parametrize("kinds", [("gaussian", "binary"), ("binary", "relu")])
def test_real_units_are_refused_where_they_have_no_distribution(kinds):
    rbm = machine(*kinds)
    v = draws(rbm.visible, 3)
    for beta in (0.0, torch.tensor([1.0, 0.0, 0.5])):
        with pytest.raises(ValueError, match="beta: got 0, want numbers above 0: real units have no distribution"):
            rbm.gibbs(v, beta=beta)
    assert machine("potts", "binary").gibbs(everything(Softmax(2, 3)), beta=0.0)[0].isfinite().all()


def test_inpainting_draws_from_the_conditional():
    rbm, n = machine("binary", "binary", std=1.0), 20_000
    v = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(n, -1)
    missing = torch.tensor([False, False, True, True])
    out = rbm.inpaint(v, missing, 40, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount((out[:, 2] + 2 * out[:, 3]).long(), minlength=4)
    x = everything(rbm.visible)
    p = rbm.log_prob(x).exp().detach()[(x[:, 0] == 1) & (x[:, 1] == 0)]
    expected = n * p / p.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 30.7, "chi-square with 3 degrees of freedom at 1e-6"


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("visible", ["potts", "binary and labels", "binary"])
def test_the_zero_sum_gauge_keeps_the_distribution(visible, hidden):
    rbm = machine(visible, hidden)
    x = everything(rbm.visible)
    before, h = rbm.log_prob(x).detach(), rbm.hidden_mean(x).detach()
    old = rbm.W.detach().clone()
    assert rbm.zero_sum_() is rbm
    torch.testing.assert_close(rbm.log_prob(x), before)
    torch.testing.assert_close(rbm.hidden_mean(x), h)
    for layer, W, bias in ((rbm.visible, rbm.W, rbm.vbias), (rbm.hidden, rbm.W.T, rbm.hbias)):
        columns = {"Softmax": slice(0, None), "Partitioned": slice(3, None)}.get(type(layer).__name__)
        if columns is not None:
            torch.testing.assert_close(W[columns].unflatten(0, (-1, 3)).sum(1), torch.zeros_like(W[columns][::3]))
            torch.testing.assert_close(bias[columns].view(-1, 3).sum(1), torch.zeros_like(bias[columns][::3]))
    again = rbm.W.detach().clone()
    rbm.zero_sum_()
    torch.testing.assert_close(rbm.W, again)
    assert torch.equal(old, again) == (visible == "binary" and hidden != "potts")


@pytest.mark.parametrize(("visible", "hidden"), SOME)
def test_the_annealing_path(visible, hidden):
    """The base is exact and its draws are; every f_beta is normalisable and left as it is by a step."""
    rbm = machine(visible, hidden)
    data = draws(rbm.visible, 200, seed=7)
    x, log_weights = grid(rbm.visible)
    for base in (None, data, rbm.vbias.detach() + 0.3):
        path = rbm.annealing_path(base)
        hidden_at_0 = rbm.hidden.log_normaliser(torch.zeros(rbm.n_hidden, dtype=torch.float64))
        log_f0 = x @ path.base - rbm.visible.energy(x) + hidden_at_0
        slack = 2e-2 if visible in ("relu", "double relu") else 1e-7
        assert path.log_z_base == pytest.approx(torch.logsumexp(log_f0 + log_weights, 0).item(), abs=slack)
        torch.testing.assert_close(
            path.log_weight(x, 0.0, 1.0), -rbm.free_energy(x).detach() - log_f0.detach(), rtol=1e-9, atol=1e-9
        )
    middle = path.log_weight(x, 0.0, 0.3) + path.log_weight(x, 0.3, 1.0)
    torch.testing.assert_close(middle, path.log_weight(x, 0.0, 1.0))
    n = 8_000
    start = path.start(n, seed=5, first_run=0)
    p = (log_f0 + log_weights).softmax(0).detach()
    assert ((start.mean(0) - p @ x).abs() < 5.6 * start.std(0) / n**0.5 + slack).all()
    state = start
    for t in range(12):
        state = path.step(state, 0.5, seed=5, first_run=0, step=t)
    p = (log_f0 + path.log_weight(x, 0.0, 0.5) + log_weights).softmax(0).detach()
    assert ((state.mean(0) - p @ x).abs() < 5.6 * state.std(0) / n**0.5 + slack).all()
    assert torch.equal(path.from_samples(state, seed=1, first_run=0), state)
    assert torch.equal(path.start(20, seed=5, first_run=0), path.start(20, seed=5, first_run=0))
    assert not torch.equal(path.start(20, seed=5, first_run=0), path.start(20, seed=5, first_run=20))


def test_a_base_that_does_not_fit_is_named():
    rbm = machine("spin", "binary")
    with pytest.raises(ValueError, match=r"base: got shape \[2, 3\], want \[..., 4\]"):
        rbm.annealing_path(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="base: got NaN or infinite values"):
        rbm.annealing_path(torch.full((4,), torch.nan))


def test_annealed_importance_sampling_along_the_path():
    """log Z of small machines of several kinds within five standard errors."""
    for visible, hidden in (("binary", "relu"), ("gaussian", "binary"), ("potts", "gaussian")):
        rbm = machine(visible, hidden)
        path, n = rbm.annealing_path(draws(rbm.visible, 100)), 2000
        state, log_w = path.start(n, seed=1, first_run=0), torch.zeros(n, dtype=torch.float64)
        betas = torch.linspace(0, 1, 31).tolist()
        for t, (low, high) in enumerate(itertools.pairwise(betas)):
            log_w += path.log_weight(state, low, high)
            state = path.step(state, high, seed=1, first_run=0, step=t)
        w = (log_w - log_w.max()).exp()
        log_z = path.log_z_base + log_w.max().item() + w.mean().log().item()
        error = (w.std() / w.mean() / n**0.5).item()
        assert abs(log_z - rbm.log_partition().item()) < 5.2 * error
        assert error < 0.05


def test_two_gaussian_layers_that_have_no_integral_are_refused():
    rbm = RBM(Gaussian(2), Gaussian(2), init_std=3.0, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="the weights are too large for the layers' precisions"):
        rbm.log_partition()


def test_what_cannot_be_enumerated_says_what_to_do():
    with pytest.raises(ValueError, match=r"26 units, want at most 25 .*genfast.boltzmann.ais_log_z"):
        RBM(Gaussian(5), 26).log_partition()
    with pytest.raises(ValueError, match=r"17 units \(1.3e\+08 states\), want at most 25"):
        RBM(Softmax(17, 3), Gaussian(3)).log_partition()


def test_a_trained_gaussian_machine_finds_its_mixture():
    """Two clusters at -2 and 2 in two dimensions: the likelihood of an RBM comes near that of the mixture itself."""
    generator = torch.Generator().manual_seed(0)
    sign = 2.0 * torch.randint(2, (2000, 1), generator=generator) - 1
    data = 2 * sign + torch.randn(2000, 2, generator=generator)
    rbm = RBM(Gaussian(2), 4, generator=generator)
    rbm.init_from_data(data)
    independent = rbm.log_prob(data).mean().item()
    optimizer = torch.optim.Adam(rbm.parameters(), lr=0.02)
    for _ in range(600):
        batch = data[torch.randint(2000, (200,), generator=generator)]
        rbm.pcd_backward(batch, 2, generator=generator)
        optimizer.step()
    clusters = torch.distributions.Normal(2 * torch.tensor([[[1.0]], [[-1.0]]]), 1.0)
    best = (clusters.log_prob(data).sum(-1).logsumexp(0) - math.log(2)).mean().item()
    reached = rbm.log_prob(data).mean().item()
    assert best - 0.15 < reached < best + 0.05
    assert reached > independent + 0.3
