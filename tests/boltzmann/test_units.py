"""Kinds of units: their normalisers, moments and draws against integrals, sums and distribution functions."""

import copy
import math

import pytest
import torch

from genfast.boltzmann import RBM
from genfast.boltzmann.units import Binary, DoubleReLU, Gaussian, Layer, Partitioned, ReLU, Softmax, Spin, _half_normal

KINDS = {
    "binary": lambda: Binary(3),
    "spin": lambda: Spin(3),
    "gaussian": lambda: Gaussian(3),
    "softmax": lambda: Softmax(2, 3),
    "relu": lambda: ReLU(3),
    "double relu": lambda: DoubleReLU(3),
    "partitioned": lambda: Partitioned([Spin(2), ReLU(2), Softmax(1, 3)]),
}
DISCRETE = ["binary", "spin", "softmax"]
CONTINUOUS = ["gaussian", "relu", "double relu"]


def make(kind: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Layer:
    layer, generator = KINDS[kind]().to(dtype), torch.Generator().manual_seed(seed)
    for p in layer.parameters():
        torch.nn.init.normal_(p, 0, 0.5, generator=generator)
    return layer


def inputs(layer: Layer, rows: int, *, scale: float = 2.0, seed: int = 1) -> torch.Tensor:
    return scale * torch.randn(rows, layer.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_the_normaliser_are_mean_and_variance(kind, beta):
    layer = make(kind)
    u = inputs(layer, 4).requires_grad_()
    (first,) = torch.autograd.grad(layer.log_normaliser(u, beta=beta).sum(), u, create_graph=True)
    torch.testing.assert_close(first / beta, layer.mean(u, beta=beta))
    second = [torch.autograd.grad(first[:, i].sum(), u, retain_graph=True)[0][:, i] for i in range(layer.size)]
    torch.testing.assert_close(torch.stack(second, 1) / beta**2, layer.variance(u, beta=beta))


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("kind", DISCRETE)
def test_normalisers_are_sums_over_the_states(kind, beta):
    layer = make(kind)
    u, x = inputs(layer, 4), layer.states(torch.arange(layer.n_states))
    joint = beta * u @ x.T
    assert len(x.unique(dim=0)) == len(x)
    torch.testing.assert_close(layer.log_normaliser(u, beta=beta), joint.logsumexp(1))
    p = joint.softmax(1)
    torch.testing.assert_close(layer.mean(u, beta=beta), p @ x)
    torch.testing.assert_close(layer.variance(u, beta=beta), p @ (x * x) - (p @ x) ** 2)
    best = x[joint.argmax(1)]
    torch.testing.assert_close(layer.mode(u), best)


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_normalisers_are_integrals(kind, beta):
    layer = make(kind)
    u = inputs(layer, 4)
    low = 0.0 if kind == "relu" else -40.0
    x = torch.linspace(low, 40, 400_001, dtype=torch.float64)
    for i in range(layer.n):
        only = torch.zeros(layer.n, dtype=torch.float64)
        log_f = []
        for row in u:
            state = x[:, None] * (only + torch.nn.functional.one_hot(torch.tensor(i), layer.n))
            log_f.append(beta * (row[i] * x - layer.energy(state)))
        f = torch.stack(log_f).exp()
        total, mean, square = (torch.trapezoid(f * x**k, x, dim=1) for k in range(3))
        alone = [torch.zeros_like(u) for _ in range(2)]
        alone[0][:, i] = u[:, i]
        difference = layer.log_normaliser(alone[0], beta=beta) - layer.log_normaliser(alone[1], beta=beta)
        at_zero = torch.trapezoid((-beta * layer.energy(state)).exp(), x)
        torch.testing.assert_close(difference, (total / at_zero).log(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(layer.mean(u, beta=beta)[:, i], mean / total, rtol=1e-6, atol=1e-7)
        variance = square / total - (mean / total) ** 2
        torch.testing.assert_close(layer.variance(u, beta=beta)[:, i], variance, rtol=1e-6, atol=1e-6)
        nearest = x[f.argmax(1)]
        torch.testing.assert_close(layer.mode(u)[:, i], nearest, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_the_constant_of_a_normaliser(kind):
    layer = {"gaussian": Gaussian, "relu": ReLU, "double relu": DoubleReLU}[kind](1).double()
    for p in layer.parameters():
        torch.nn.init.constant_(p, 0.3)
    x = torch.linspace(0.0 if kind == "relu" else -30.0, 30, 600_001, dtype=torch.float64)
    want = torch.trapezoid((0.7 * x - layer.energy(x[:, None])).exp(), x).log()
    got = layer.log_normaliser(torch.tensor([0.7], dtype=torch.float64))
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_in_inputs_and_parameters(kind):
    layer = make(kind)
    names = [name for name, _ in layer.named_parameters()]

    def f(u, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (u,))

    arguments = (inputs(layer, 2), *layer.parameters())
    arguments = tuple(t.detach().clone().requires_grad_() for t in arguments)
    assert torch.autograd.gradcheck(f, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, arguments)
    stacked = torch.stack([arguments[0], 2 * arguments[0]]).detach()
    torch.testing.assert_close(torch.vmap(layer)(stacked), layer(stacked))
    hessian = torch.func.hessian(layer)(stacked[0, 0])
    torch.testing.assert_close(hessian.diagonal(), layer.variance(stacked[0, 0]))


def laguerre(t: float) -> list[float]:
    """The integral and the first three cumulants for z = -t, times t, t, t^2, t^3, by quadrature in y = t x."""
    numpy = pytest.importorskip("numpy")
    y, w = numpy.polynomial.laguerre.laggauss(40)
    w = w * numpy.exp(-(y**2) / (2 * t * t))
    mean = (w * y).sum() / w.sum()
    return [w.sum(), mean, *((w * (y - mean) ** k).sum() / w.sum() for k in (2, 3))]


@pytest.mark.parametrize("t", [8.0, 29.9, 30.1, 100.0, 1e4, 1e9, 1e30, 1e90])
def test_cumulants_far_in_the_tail(t):
    total, *wanted = laguerre(t)
    z = torch.tensor(-t, dtype=torch.float64, requires_grad=True)
    got = _half_normal.log_integral(z)
    assert got.item() == pytest.approx(math.log(total / t), rel=1e-12)
    for k, want in enumerate(wanted, 1):
        (got,) = torch.autograd.grad(got, z, create_graph=True)
        assert got.item() * t**k == pytest.approx(want, rel=1e-6 if k == 3 else 1e-8)
    (fourth,) = torch.autograd.grad(got, z)
    assert fourth.isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_inputs_give_finite_numbers_and_gradients(kind, dtype):
    layer = make(kind, dtype=dtype)
    for size in (0.0, 1e-30, 50.0, 1e4, 1e15):
        for sign in (1, -1):
            u = torch.full((1, layer.size), sign * size, dtype=dtype, requires_grad=True)
            out = layer.log_normaliser(u)
            grads = torch.autograd.grad(out.sum(), [u, *layer.parameters()], create_graph=True)
            again = torch.autograd.grad(grads[0].sum(), u)
            for t in (out, *grads, *again, layer.mean(u), layer.variance(u), layer.mode(u), layer.sample(u)):
                assert t.isfinite().all(), (size, sign)
            assert (layer.variance(u) >= 0).all()
            assert layer.check("x", layer.sample(u), dtype, states=True) is not None
    nan = torch.full((1, layer.size), torch.nan, dtype=dtype)
    of_inputs = [] if kind == "gaussian" else [layer.variance(nan)]
    for t in (layer.log_normaliser(nan), layer.mean(nan), layer.sample(nan), *of_inputs):
        assert t.isnan().all()


@pytest.mark.parametrize("z", [-1e12, -300.0, -6.0, -0.5, 0.0, 0.5, 6.0, 40.0])
def test_draws_are_those_of_the_distribution_function(z):
    """Inversion solves log P(X > x) = log u; and 100,000 draws pass Kolmogorov's test at a false-alarm rate of 1e-6."""
    n = 100_000
    u = 1 - torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    at = torch.full((n,), z, dtype=torch.float64)
    x = _half_normal.sample(at, u)
    assert (x >= 0).all()
    if z > 0:
        log_tail = torch.special.log_ndtr(at - x) - torch.special.log_ndtr(at)
    else:
        ratio = torch.special.erfcx((x - at) / math.sqrt(2)) / torch.special.erfcx(-at / math.sqrt(2))
        log_tail = ratio.log() - x * x / 2 + at * x
    torch.testing.assert_close(log_tail, u.log(), rtol=1e-9, atol=1e-9)
    sorted_p = log_tail.exp().sort().values
    distance = (sorted_p - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n
    assert distance * math.sqrt(n) < 2.70


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_exact_moments(kind):
    layer, n = make(kind), 100_000
    u = inputs(layer, 1, scale=1.0)
    for beta in (1.0, 0.4):
        x = layer.sample(u.expand(n, -1), beta=beta, generator=torch.Generator().manual_seed(3))
        mean, variance = layer.mean(u, beta=beta)[0], layer.variance(u, beta=beta)[0]
        assert ((x.mean(0) - mean).abs() < 5.6 * (variance / n).sqrt()).all(), "two-sided at 1e-6 for 50 units"
        squares = (x - mean) ** 2
        assert ((squares.mean(0) - variance).abs() <= 5.6 * (squares.std(0) / n**0.5) + 1e-12).all()
        assert layer.sample(u.expand(2, -1), beta=torch.tensor([beta, 1.0])).shape == (2, layer.size)
    assert torch.equal(*(layer.sample(u, generator=torch.Generator().manual_seed(3)) for _ in range(2)))


def test_double_relu_draws_pass_kolmogorovs_test():
    layer = make("double relu")
    with torch.no_grad():
        layer.shift.copy_(torch.tensor([-2.0, 0.0, 3.0]))
    n, u = 100_000, torch.tensor([[0.3, -0.4, 0.2]], dtype=torch.float64)
    draws = layer.sample(u.expand(n, -1), generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-25, 25, 500_001, dtype=torch.float64)
    for i in range(3):
        state = torch.zeros(len(x), 3, dtype=torch.float64)
        state[:, i] = x
        f = (u[0, i] * x - layer.energy(state)).exp()
        cumulated = torch.cumulative_trapezoid(f, x)
        at = torch.bucketize(draws[:, i], x).clamp(1, len(x) - 1) - 1
        p = (cumulated[at.clamp(max=len(cumulated) - 1)] / cumulated[-1]).sort().values
        assert ((p - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n) * math.sqrt(n) < 2.75


@pytest.mark.parametrize("kind", KINDS)
def test_biases_and_parameters_from_data_have_its_means(kind):
    layer = make(kind)
    data = layer.sample(inputs(layer, 1).expand(4000, -1), generator=torch.Generator().manual_seed(5))
    before = [p.detach().clone() for p in layer.parameters()]
    bias = layer.inputs_of_data(data)
    for p, old in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p, old), "inputs_of_data leaves the layer as it is"
    slack = 2e-3 if layer.n_states or kind == "partitioned" else 1e-9  # one more row keeps means off their ends
    torch.testing.assert_close(layer.mean(bias), data.mean(0), rtol=slack, atol=slack)
    bias = layer.init_from_data(data)
    torch.testing.assert_close(layer.mean(bias), data.mean(0), rtol=slack, atol=slack)
    if kind in ("gaussian", "relu"):
        torch.testing.assert_close(layer.variance(bias), data.var(0), rtol=1e-3, atol=1e-9)
    assert layer.init_from_data(data[:1]).isfinite().all()
    with pytest.raises(ValueError, match="v: got no rows"):
        layer.init_from_data(data[:0])


BAD = {
    "spin": (torch.tensor([1.0, 0.5, 3.0]), r"x: got values from 0.5 to 3, want -1 or 1, or means in between \(2 \* x"),
    "gaussian": (torch.tensor([1.0, math.inf, 0.0]), "x: got values from 0 to inf, want finite numbers"),
    "softmax": (
        torch.tensor([1.0, 0.0, 0.0, 0.6, 0.0, 0.0]),
        "x: got a unit whose 3 classes sum to 0.6, want 1 in each",
    ),
    "relu": (torch.tensor([1.0, -1.0, 0.0]), "x: got values from -1 to 1, want finite numbers >= 0"),
    "partitioned": (torch.tensor([1, 1, 0, -1, 0, 1, 0.0]), r"x\[..., 2:4\]: got values from -1 to 0, want finite"),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_values_are_refused_on_the_cpu_and_nan_elsewhere(kind):
    layer, (x, message) = make(kind), BAD[kind]
    with pytest.raises(ValueError, match=message):
        layer.check("x", x, torch.float64)
    assert torch.vmap(lambda x: layer.check("x", x, torch.float64))(x[None]).isnan().any()
    with pytest.raises(ValueError, match=rf"x: got shape \[2\], want \[..., {layer.size}\]"):
        layer.check("x", torch.zeros(2), torch.float64)
    with pytest.raises(TypeError, match="x: got list, want a tensor"):
        layer.check("x", [1.0], torch.float64)


@pytest.mark.parametrize("kind", ["spin", "softmax"])
def test_means_are_no_states(kind):
    layer = make(kind)
    means = layer.mean(inputs(layer, 2))
    torch.testing.assert_close(layer.check("x", means, torch.float64), means)
    with pytest.raises(ValueError, match=r"x: got values between .* alone"):
        layer.check("x", means, torch.float64, states=True)
    n = 20_000
    drawn = layer.drawn(means[:1].expand(n, -1), torch.Generator().manual_seed(0))
    layer.check("x", drawn, torch.float64, states=True)
    error = (drawn.mean(0) - means[0]).abs()
    assert (error < 5.4 * (drawn.var(0) / n).sqrt() + 1e-9).all()
    assert torch.equal(layer.drawn(drawn, None), drawn)


def test_classes_as_vectors_and_back():
    layer = Softmax(2, 3)
    labels = torch.tensor([[0, 2], [1, 1]])
    assert torch.equal(layer.labels(layer.one_hot(labels)), labels)
    with pytest.raises(ValueError, match="labels: got classes 0 to 3, want 0 to 2"):
        layer.one_hot(torch.tensor([[0, 3]]))
    with pytest.raises(ValueError, match=r"labels: got torch.float32 \[1, 2\], want integers \[..., 2\]"):
        layer.one_hot(torch.zeros(1, 2))


def test_bad_layers_are_named():
    with pytest.raises(ValueError, match="n_classes: got 1, want an integer >= 2"):
        Softmax(2, 1)
    with pytest.raises(TypeError, match=r"layers\[1\]: got int, want a layer"):
        Partitioned([Binary(2), 3])
    with pytest.raises(ValueError, match="n: got 0, want an integer >= 1"):
        Partitioned([])
    layer = Binary(3)
    with pytest.raises(ValueError, match="got one layer for both, want two"):
        RBM(layer, layer)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (lambda: RBM(Spin(3), 2), lambda: RBM(3, 2)),
        (lambda: RBM(3, 2), lambda: RBM(Spin(3), 2)),
        (lambda: RBM(3, Spin(2)), lambda: RBM(3, 2)),
        (lambda: RBM(Softmax(2, 3), 2), lambda: RBM(Softmax(3, 2), 2)),
        (lambda: RBM(Gaussian(3), 2), lambda: RBM(ReLU(3), 2)),
        (lambda: RBM(Partitioned([Binary(2), Spin(1)]), 2), lambda: RBM(Partitioned([Spin(1), Binary(2)]), 2)),
    ],
)
def test_the_state_of_other_units_is_refused(saved, loaded):
    one, other = saved(), loaded()
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(RuntimeError, match=r"_extra_state|the state dict is that of a module"):
        other.load_state_dict(one.state_dict())
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name])
    saved().load_state_dict(one.state_dict())


def test_checkpoints_of_binary_machines_have_the_names_they_always_had():
    assert list(RBM(3, 2).state_dict()) == ["W", "vbias", "hbias", "chains"]
    assert [name for name, _ in RBM(Gaussian(3), 2).named_parameters()][:3] == ["W", "vbias", "hbias"]
