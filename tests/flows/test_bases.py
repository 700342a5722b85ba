"""Base distributions: values against torch.distributions, samples by their moments, gradients, and fits."""

import math

import pytest
import torch
from torch import distributions as td

from genfast.flows import (
    AffineCoupling,
    DiagonalNormal,
    Flow,
    GaussianMixture,
    Normal,
    Planar,
    StandardNormal,
    StudentT,
    Uniform,
    half_mask,
)
from tests.flows.test_context import Fixed
from tests.flows.test_flows import shaken
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

F64 = {"dtype": torch.float64}
D = 3


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


def rows(dtype):
    return torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(dtype)


def spec(name, build, **options):
    return ModuleSpec(name, build, rows, ("log_prob",), name, smooth=("log_prob",), **options)


SPECS = [
    ModuleSpec("standard", lambda **o: StandardNormal(D, **o), rows, ("log_prob",), "s", smooth=("log_prob",)),
    spec("diagonal", lambda **o: DiagonalNormal(D, **o)),
    spec("context", lambda **o: Fixed(DiagonalNormal(D, context_features=2, hidden=(4,), **o), 2, **o)),
    spec("normal", lambda **o: Normal(D, **o)),
    spec("student", lambda **o: StudentT(D, df=3.0, **o)),
    spec("mixture", lambda **o: GaussianMixture(D, 4, **o)),
    spec("uniform", lambda **o: Uniform(D, -9.0, [7.0, 8.0, 9.0][0], **o)),
]


class TestBases(ModuleTests):
    specs = SPECS


def bases(shape=D, **options):
    torch.manual_seed(0)
    each = {
        "standard": StandardNormal(shape, **options),
        "diagonal": DiagonalNormal(shape, **options),
        "student": StudentT(shape, df=6.0, **options),
        "mixture": GaussianMixture(shape, 4, **options),
        "uniform": Uniform(shape, -1.0, 2.0, **options),
    }
    if isinstance(shape, int):
        each["normal"] = Normal(shape, **options)
    return {name: shaken(base) for name, base in each.items()}


def same_of_torch(base):
    if isinstance(base, StandardNormal):
        return td.Independent(td.Normal(torch.zeros(base.shape, **F64), 1.0), base.event_dim)
    if isinstance(base, Uniform):
        return td.Independent(td.Uniform(base.low, base.high), base.event_dim)
    if isinstance(base, Normal):
        return td.MultivariateNormal(base.loc, scale_tril=base.scale_tril())
    if isinstance(base, StudentT):
        return td.Independent(td.StudentT(base.log_df.exp(), base.loc, base.log_scale.exp()), base.event_dim)
    if isinstance(base, GaussianMixture):
        each = td.Independent(td.Normal(base.loc, base.log_scale.exp()), base.event_dim)
        return td.MixtureSameFamily(td.Categorical(logits=base.logits), each)
    return td.Independent(td.Normal(base.loc, base.log_scale.exp()), base.event_dim)


@pytest.mark.parametrize("name", list(bases()))
@pytest.mark.parametrize("shape", [D, (2, 3, 2)], ids=str)
def test_values_are_those_of_torch(name, shape):
    if name == "normal" and shape != D:
        pytest.skip("a full covariance is for vectors")
    base = bases(shape, **F64)[name]
    z = torch.rand(4, 5, *base.shape, **F64) * 2 - 0.5
    want = same_of_torch(base)
    torch.testing.assert_close(base.log_prob(z), want.log_prob(z))
    parameters = [z.requires_grad_(), *base.parameters()]
    got, expected = (torch.autograd.grad(d.log_prob(z).square().sum() + 0 * z.sum(), parameters) for d in (base, want))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", list(bases()))
def test_shapes_and_generators_of_samples(name):
    base = bases(**F64)[name]
    assert base.sample(4).shape == (4, D)
    assert base.sample((2, 4)).shape == (2, 4, D)
    assert base.sample().shape == (D,)
    assert base.sample(0).shape == (0, D)
    assert base.sample(3).dtype == torch.float64
    assert not base.sample(3).requires_grad
    one, two = (base.sample(4, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match="n: got -1"):
        base.sample(-1)
    assert base.float().half().sample(3).dtype == torch.float16


@pytest.mark.parametrize("name", list(bases()))
def test_samples_have_the_moments_of_the_distribution(name):
    """Mean and mean square of 100,000 samples, each within 6 of its standard errors (false alarms: below 1e-6)."""
    torch.manual_seed(0)
    base = bases(**F64)[name]
    z = base.sample(100_000)
    want = same_of_torch(base)
    for power in (1, 2):
        moment = want.mean if power == 1 else want.variance + want.mean**2
        error = (z**power).std(0) / math.sqrt(len(z))
        assert ((z**power).mean(0) - moment).abs().lt(6 * error).all()


@pytest.mark.parametrize("name", ["diagonal", "normal", "student"])
def test_samples_carry_the_gradient(name):
    """d/d parameter of E[f(z)] by samples against that of the moments: E[z^2] = variance + mean^2."""
    torch.manual_seed(0)
    base = bases(**F64)[name]
    z = base.rsample(200_000)
    got = torch.autograd.grad(z.square().mean(0).sum(), list(base.parameters()), retain_graph=True)
    want = same_of_torch(base)
    parts = torch.autograd.grad((want.variance + want.mean**2).sum(), list(base.parameters()))
    for a, b in zip(got, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", list(bases()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_input(name, dtype):
    """Finite density and gradients wherever the density is a number of the dtype."""
    base = bases(dtype=dtype)[name]
    z = torch.tensor([0.0, 1e-30, 1e4, -1e8, 1e15], dtype=dtype)[:, None].expand(-1, D).clone().requires_grad_()
    log_p = base.log_prob(z)
    if name == "uniform":
        assert log_p.tolist() == pytest.approx([-3 * math.log(3)] * 2 + [-math.inf] * 3)
        return
    assert log_p.isfinite().all()
    for grad in torch.autograd.grad(log_p.sum(), [z, *base.parameters()]):
        assert grad.isfinite().all()
    assert base.log_prob(torch.full((1, D), math.nan, dtype=dtype)).isnan().all()


def test_tails_of_the_student_t():
    base = StudentT(1, df=2.0)
    z = torch.tensor([[1e9], [1e20], [1e38]], requires_grad=True)
    log_p = base.log_prob(z)
    want = StudentT(1, df=2.0).double().log_prob(z.detach().double())
    torch.testing.assert_close(log_p.double(), want, rtol=1e-5, atol=1e-4)
    (grad,) = torch.autograd.grad(log_p.sum(), z)
    torch.testing.assert_close(grad * z.detach(), torch.full((3, 1), -3.0), rtol=1e-4, atol=0)
    many = StudentT(2, df=1e6)
    torch.testing.assert_close(
        many.log_prob(torch.ones(1, 2)), StandardNormal(2).log_prob(torch.ones(1, 2)), rtol=1e-5, atol=1e-5
    )
    for parameter in (1e30, -1e30):
        with torch.no_grad():
            base.log_df.fill_(parameter)
        assert base.sample(100).isfinite().all()
        assert base.log_prob(torch.randn(5, 1)).isfinite().all()


@pytest.mark.parametrize("name", ["diagonal", "normal", "student", "mixture"])
def test_parameters_without_bounds(name):
    base = bases()[name]
    for value in (-1e30, 1e30):
        with torch.no_grad():
            for key, parameter in base.named_parameters():
                if "log" in key:
                    parameter.fill_(value)
        log_p = base.log_prob(torch.zeros(2, D))
        assert not log_p.isnan().any()
        assert not base.sample(4).isnan().any()


def test_a_context_moves_the_normal():
    base = shaken(DiagonalNormal(2, context_features=D, hidden=(4,), **F64))
    flow = Flow(base, [shaken(AffineCoupling(half_mask(2), context_features=D, hidden=(4,), **F64))])
    context = torch.randn(5, D, **F64)
    z = base.sample(20_000, context)
    assert z.shape == (20_000, 5, 2)
    assert z.mean(0).std(0).min() > 0.01
    log_p = base.log_prob(torch.zeros(5, 2, **F64), context)
    assert log_p.std() > 1e-3
    assert base.log_prob(torch.zeros(7, 1, 2, **F64), context).shape == (7, 5)
    x, log_p = flow.sample_and_log_prob(4, context)
    torch.testing.assert_close(flow.log_prob(x, context), log_p)
    assert flow.to_distribution(context).rsample((3,)).shape == (3, 5, 2)
    (grad,) = torch.autograd.grad(flow.rsample(4, context.requires_grad_()).sum(), context)
    assert grad.abs().min() > 0
    with pytest.raises(ValueError, match=r"context: got None, want \[\.\.\., 3\]"):
        base.log_prob(torch.zeros(5, 2, **F64))
    with pytest.raises(ValueError, match=r"context: got shape .*, want None: DiagonalNormal takes no context"):
        DiagonalNormal(2).log_prob(torch.zeros(5, 2), torch.zeros(5, 3))


@pytest.mark.parametrize("name", ["diagonal", "normal", "student", "mixture"])
def test_bases_learn(name):
    """Maximum likelihood raises the likelihood of correlated, shifted data, in a flow, every parameter moving."""
    torch.manual_seed(0)
    x = torch.randn(500, D) @ torch.randn(D, D) + 2
    base = bases()[name]
    flow = Flow(base, [Planar(D)])
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    start = flow.forward_kl(x).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = flow.forward_kl(x)
        loss.backward()
        optimizer.step()
    assert loss.item() < start - 0.5
    for key, parameter in base.named_parameters():
        assert not torch.equal(parameter, before[key]), key


def test_a_mixture_has_no_gradient_of_samples_and_says_so():
    flow = Flow(GaussianMixture(2, 3), [Planar(2)])
    assert not flow.to_distribution().has_rsample
    with pytest.raises(ValueError, match="has no rsample; freeze the base"):
        flow.reverse_kl(lambda x: -x.abs().sum(-1), 4)
    flow.base.requires_grad_(False)
    assert flow.to_distribution().has_rsample
    flow.reverse_kl(lambda x: -x.abs().sum(-1), 4).backward()


def test_supports():
    assert Flow(Uniform(2), []).to_distribution().support.check(torch.tensor([[0.5, 1.5], [0.1, 0.2]])).tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DiagonalNormal(0), "dim: got 0"),
        (lambda: StandardNormal((3, 0, 2)), "dim: got 0"),
        (lambda: StandardNormal(()), r"dim: got \(\)"),
        (lambda: Normal(-1), "dim: got -1"),
        (lambda: StudentT(2, df=0.0), "df: got 0.0, want a number from 0.01 to 1e"),
        (lambda: GaussianMixture(2, 0), "n_components: got 0"),
        (lambda: Uniform(2, 1.0, 1.0), "low: got 1.0 and high 1.0, want finite corners, low below high"),
        (lambda: Uniform(2, 0.0, math.inf), "want finite corners"),
        (lambda: Uniform(2, torch.zeros(3)), r"low: got shape \[3\], want a number or \[2\]"),
        (
            lambda: StandardNormal((1, 2, 2)).log_prob(torch.zeros(3, 2)),
            r"z: got .* want \[\.\.\., 1, 2, 2\]",
        ),
        (lambda: StudentT(2).log_prob(torch.zeros(3, 4)), r"z: got shape \[3, 4\], want \[\.\.\., 2\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
