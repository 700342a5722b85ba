"""The context of transforms and flows, and the flow as a torch distribution."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.distributions.constraints import independent, real

from genfast.flows import (
    MLP,
    AdditiveCoupling,
    AffineCoupling,
    Flow,
    Permutation,
    Planar,
    SplineCoupling,
    StandardNormal,
    Transform,
    half_mask,
)
from tests.flows.test_flows import shaken
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

WIDTH = 3


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


class Fixed(nn.Module):
    """A transform at one context, as a module of its input alone."""

    def __init__(self, module, width=WIDTH, **options):
        super().__init__()
        self.module = module
        self.register_buffer("context", torch.linspace(-1, 1, width, **options))

    def reset_parameters(self):
        self.module.reset_parameters()
        with torch.no_grad():
            self.context.copy_(torch.linspace(-1, 1, len(self.context)))

    def forward(self, z):
        return self.module(z, self.context)

    def inverse(self, x):
        return self.module.inverse(x, self.context)

    def log_prob(self, x):
        return self.module.log_prob(x, self.context)


def rows(dtype):
    return torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)


BOTH = ("forward", "inverse")


SPECS = [
    ModuleSpec(
        name,
        lambda kind=kind, **o: Fixed(kind(half_mask(4), hidden=(5,), context_features=WIDTH, **o), **o),
        rows,
        BOTH,
        family=name,
        smooth=BOTH if kind is not SplineCoupling else (),
    )
    for name, kind in [("affine", AffineCoupling), ("additive", AdditiveCoupling), ("spline", SplineCoupling)]
]


class TestWithContext(ModuleTests):
    """Everything that is asked of modules, of those with a context."""

    specs = SPECS


def conditional(seed=0, base=None):
    torch.manual_seed(seed)
    layers = [
        shaken(AffineCoupling(half_mask(4), hidden=(8,), context_features=WIDTH)),
        Permutation("reverse", 4),
        shaken(SplineCoupling(half_mask(4), hidden=(8,), context_features=WIDTH)),
        Planar(4),
    ]
    return Flow(base or StandardNormal(4), layers).double()


def test_a_context_changes_the_density_row_by_row():
    flow = conditional()
    x, context = torch.randn(5, 4).double(), torch.randn(5, WIDTH).double()
    each = torch.stack([flow.log_prob(x[i], context[i]) for i in range(5)])
    torch.testing.assert_close(flow.log_prob(x, context), each)
    assert not torch.allclose(flow.log_prob(x, context.flip(0)), each)
    torch.testing.assert_close(flow.log_prob(x, context[0]), flow.log_prob(x, context[:1].expand(5, -1)))


def test_log_prob_broadcasts_x_and_context():
    flow = conditional()
    x, context = torch.randn(7, 1, 4).double(), torch.randn(5, WIDTH).double()
    got = flow.log_prob(x, context)
    assert got.shape == (7, 5)
    torch.testing.assert_close(got[2, 3], flow.log_prob(x[2, 0], context[3]))
    z, log_det = flow.inverse(x, context)
    assert (z.shape, log_det.shape) == ((7, 5, 4), (7, 5))


@pytest.mark.parametrize(
    ("n", "batch", "want"),
    [
        (6, (), (6, 4)),
        (6, (5,), (6, 5, 4)),
        ((2, 3), (5, 2), (2, 3, 5, 2, 4)),
        ((), (5,), (5, 4)),
        (0, (5,), (0, 5, 4)),
    ],
)
def test_shapes_of_samples_are_those_of_torch_distributions(n, batch, want):
    flow, context = conditional(), torch.randn(*batch, WIDTH).double()
    x, log_p = flow.sample_and_log_prob(n, context, generator=torch.Generator().manual_seed(1))
    assert x.shape == want
    torch.testing.assert_close(flow.log_prob(x, context), log_p)
    drawn = flow.sample(n, context, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, x.detach())
    assert not drawn.requires_grad
    assert flow.rsample(n, context).requires_grad


def test_samples_without_context_take_a_shape():
    flow = Flow(StandardNormal(2), [Planar(2)])
    assert flow.sample((3, 2)).shape == (3, 2, 2)
    assert flow.sample().shape == (2,)
    assert flow.rsample(3).requires_grad
    with pytest.raises(ValueError, match="n: got -1, want an integer >= 0"):
        flow.sample((3, -1))


def test_gradients_reach_the_context():
    flow = conditional()
    context = torch.randn(5, WIDTH, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 4).double()
    assert torch.autograd.gradcheck(lambda c: flow.log_prob(x, c), (context,))
    (grad,) = torch.autograd.grad(flow.rsample(3, context).square().sum(), context)
    assert (grad != 0).all(1).all()


def test_a_flow_in_a_flow_takes_its_context():
    inner = conditional()
    outer = Flow(StandardNormal(4).double(), [inner])
    assert outer.context_features == WIDTH
    x, context = torch.randn(5, 4).double(), torch.randn(5, WIDTH).double()
    torch.testing.assert_close(outer.log_prob(x, context), inner.log_prob(x, context))


class Plain(nn.Module):
    """A transform of another library, which knows of no context."""

    def forward(self, z):
        return 2 * z, z.new_full(z.shape[:-1], 4 * torch.tensor(2.0).log())

    def inverse(self, x):
        return x / 2, x.new_full(x.shape[:-1], -4 * torch.tensor(2.0).log())


def test_foreign_transforms_get_no_context():
    flow = Flow(StandardNormal(4), [AffineCoupling(half_mask(4), context_features=WIDTH), Plain()])
    x, context = torch.randn(5, 4), torch.randn(5, WIDTH)
    torch.testing.assert_close(
        flow.log_prob(x, context), StandardNormal(4).log_prob(x / 2) - 4 * torch.tensor(2.0).log()
    )


class OwnConditioner(nn.Module):
    def __init__(self, context_features=None):
        super().__init__()
        self.linear = nn.Linear(2 + WIDTH, 4)
        if context_features is not None:
            self.context_features = context_features

    def forward(self, x, context):
        return self.linear(torch.cat([x, context], -1))


@pytest.mark.parametrize("said_by", ["conditioner", "coupling"])
def test_own_conditioners_take_a_context(said_by):
    if said_by == "conditioner":
        layer = AffineCoupling(half_mask(4), OwnConditioner(WIDTH))
    else:
        layer = AffineCoupling(half_mask(4), OwnConditioner(), context_features=WIDTH)
    z, context = torch.randn(5, 4), torch.randn(5, WIDTH)
    x, _ = layer(z, context)
    torch.testing.assert_close(layer.inverse(x, context)[0], z)


@pytest.mark.parametrize(
    "module",
    [
        Planar(4),
        Permutation("reverse", 4),
        AffineCoupling(half_mask(4)),
        MLP(4, (3,), 2),
        Flow(StandardNormal(4), [Planar(4)]),
        Flow(StandardNormal(4), []),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_context_that_nothing_takes_is_refused(module):
    calls = [module, *([module.inverse] if hasattr(module, "inverse") else [])]
    for call in calls:
        with pytest.raises(ValueError, match=r"context: got (shape \[5, 3\]|a context), want None"):
            call(torch.zeros(5, 4), torch.zeros(5, WIDTH))


@pytest.mark.parametrize("make", [lambda: AffineCoupling(half_mask(4), context_features=WIDTH), conditional, "mlp"])
@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (None, ValueError, r"context: got None, want \[\.\.\., 3\]"),
        (torch.zeros(5, 2), ValueError, r"context: got shape \[5, 2\], want \[\.\.\., 3\]"),
        (torch.zeros(()), ValueError, r"context: got shape \[\], want \[\.\.\., 3\]"),
        (
            torch.zeros(2, 3),
            ValueError,
            r"context: got shape \[2, 3\], want leading dimensions that (expand|broadcast)",
        ),
        (torch.zeros(5, 3, dtype=torch.int64), TypeError, r"context: got torch.int64, want a floating-point tensor"),
        (torch.zeros(5, 3, dtype=torch.complex64), TypeError, r"context: got torch.complex64, want real numbers"),
        ([0.0, 0.0, 0.0], TypeError, "context: got list, want a tensor"),
    ],
)
def test_bad_contexts_are_named(make, context, error, message):
    module = MLP(4, (5,), 2, context_features=WIDTH) if make == "mlp" else make()
    dtype = torch.float64 if isinstance(module, Flow) else torch.float32
    with pytest.raises(error, match=message):
        module(torch.zeros(5, 4, dtype=dtype), context)


def test_parts_that_do_not_fit_are_refused():
    parts = [AffineCoupling(half_mask(4), context_features=c) for c in (2, 3)]
    with pytest.raises(
        ValueError, match=r"context_features: got parts for contexts of \[2, 3\] numbers, want one width"
    ):
        Flow(StandardNormal(4), parts)
    with pytest.raises(ValueError, match=r"context_features: got parts for contexts of \[2, 3\] numbers"):
        AffineCoupling(half_mask(4), MLP(2, (4,), 4, context_features=2), context_features=3)
    with pytest.raises(ValueError, match="context_features: got 0, want an integer >= 1"):
        MLP(2, (4,), 4, context_features=0)

    class Image(Transform):
        event_dim = 3

    with pytest.raises(
        ValueError, match=r"transforms\[1\]: takes events of 3 dimensions, transforms\[0\] gives events of 1"
    ):
        Flow(StandardNormal(4), [Planar(4), Image()])
    with pytest.raises(ValueError, match=r"transforms\[0\]: takes events of 3 dimensions, base gives events of 1"):
        Flow(StandardNormal(4), [Image()])


def test_the_width_of_the_context_is_saved():
    state = AffineCoupling(half_mask(4), context_features=WIDTH).state_dict()
    AffineCoupling(half_mask(4), context_features=WIDTH).load_state_dict(state)
    with pytest.raises(RuntimeError, match="context_features=3"):
        AffineCoupling(half_mask(4)).load_state_dict(state)


# -- torch.distributions -----------------------------------------------------------------------------------------------


def test_a_flow_as_a_distribution():
    flow, context = conditional(), torch.randn(5, WIDTH).double()
    given = flow.to_distribution(context)
    assert isinstance(given, torch.distributions.Distribution)
    assert (given.batch_shape, given.event_shape, given.has_rsample) == ((5,), (4,), True)
    assert str(given.support) == str(independent(real, 1))
    assert repr(given) == "FlowDistribution(Flow, batch_shape: (5,), event_shape: (4,))"
    x = given.rsample((7,))
    assert x.shape == (7, 5, 4)
    assert x.requires_grad
    assert not given.sample().requires_grad
    torch.testing.assert_close(given.log_prob(x), flow.log_prob(x, context))
    assert given.log_prob(x[0, 0]).shape == (5,)
    y, log_p = given.rsample_and_log_prob((2,))
    torch.testing.assert_close(given.log_prob(y), log_p)
    assert given.support.check(x).all()
    wide = given.expand((3, 5))
    assert (wide.batch_shape, wide.sample((2,)).shape) == ((3, 5), (2, 3, 5, 4))
    torch.testing.assert_close(wide.log_prob(x[0]), given.log_prob(x[0]).expand(3, 5))
    with pytest.raises(ValueError, match=r"value: got shape \[5, 3\], want \[\.\.\., 4\]"):
        given.log_prob(torch.zeros(5, 3))


def test_a_flow_without_context_as_a_distribution():
    flow = Flow(StandardNormal(2), [Planar(2)])
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    given = flow.to_distribution()
    assert torch.equal(torch.random.get_rng_state(), state), "its shape is found without a draw"
    assert (given.batch_shape, given.event_shape) == ((), (2,))
    assert given.sample((3,)).shape == (3, 2)
    wide = given.expand(torch.Size((4, 1)))
    assert wide.sample((3,)).shape == (3, 4, 1, 2)
    assert wide.log_prob(torch.zeros(2)).shape == (4, 1)
    assert wide.expand((4, 6)).batch_shape == (4, 6)
    assert Independent(wide, 1).log_prob(torch.zeros(4, 1, 2)).shape == (4,)
    with pytest.raises(ValueError, match="context: got a context, want None"):
        flow.to_distribution(torch.zeros(3))
    with pytest.raises(ValueError, match=r"context: got None, want \[\.\.\., 3\] for the flow"):
        conditional().to_distribution()
    with pytest.raises(ValueError, match=r"context: got shape \[2\], want \[\.\.\., 3\]"):
        conditional().to_distribution(torch.zeros(2))


def test_a_base_without_rsample_has_none_in_the_distribution():
    scale = nn.Parameter(torch.ones(2))
    base = Independent(Normal(torch.zeros(2), scale), 1)
    assert Flow(base, []).to_distribution().has_rsample

    class NoGradient(Normal):
        has_rsample = False

    flow = Flow(Independent(NoGradient(torch.zeros(2), scale), 1), [])
    assert not flow.to_distribution().has_rsample
    with pytest.raises(ValueError, match="the gradient of samples in its parameters needs samples with a gradient"):
        flow.rsample(2)


def test_a_distribution_follows_its_flow():
    flow = Flow(StandardNormal(2), [Planar(2)])
    given, x = flow.to_distribution(), torch.randn(3, 2)
    shaken(flow)
    torch.testing.assert_close(given.log_prob(x), flow.log_prob(x))
    loss = -given.log_prob(x).mean()
    loss.backward()
    assert flow.transforms[0].w.grad is not None
    torch.testing.assert_close(copy.deepcopy(given).log_prob(x), given.log_prob(x))
    with pytest.raises(NotImplementedError):
        kl_divergence(given, given)


def test_pyro_samples_and_scores_a_flow():
    pyro = pytest.importorskip("pyro")
    flow, context = conditional(), torch.randn(5, WIDTH).double()

    def model(x=None):
        with pyro.plate("rows", 5):
            return pyro.sample("x", flow.to_distribution(context), obs=x)

    x = model()
    trace = pyro.poutine.trace(pyro.poutine.condition(model, {"x": x})).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), flow.log_prob(x, context).sum())
    assert flow.to_distribution(context).to_event(1).log_prob(x).ndim == 0
