"""The coupling layer of Flow++ and its model: maps, densities, start, images, state, and that they learn."""

import math

import pytest
import torch

from genfast import data
from genfast.flows import (
    Flow,
    FlowPlusPlus,
    LogisticMixtureCoupling,
    StandardNormal,
    alternating_mask,
    checkerboard_mask,
    half_mask,
)
from tests.flows.test_flows import shaken
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

F64 = {"dtype": torch.float64}
KINDS = ["logistic", "gaussian"]


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


def rows(dtype):
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(dtype)


def layer(kind="logistic", mask=None, **options):
    torch.manual_seed(0)
    mask = half_mask(3) if mask is None else mask
    options = {"hidden": (6,), "n_components": 3, **F64, **options}
    return shaken(LogisticMixtureCoupling(mask, mixture=kind, **options))


class TestModules(ModuleTests):
    specs = (
        ModuleSpec(
            "mixture", lambda **o: LogisticMixtureCoupling(half_mask(3), hidden=(3,), n_components=2, **o), rows,
            ("forward", "inverse"), "mixture", smooth=("forward", "inverse"),
        ),
        ModuleSpec(
            "flowplusplus", lambda **o: FlowPlusPlus(3, 1, (3,), n_components=2, mixture="gaussian", **o), rows,
            ("forward", "inverse", "log_prob"), "flowplusplus", smooth=("forward", "inverse", "log_prob"),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {}, {"mask": alternating_mask(5)}, {"mask": half_mask(4, last=False), "scale_map": "exp"},
        {"mask": [True, True], "context_features": 2}, {"scale_options": {"clamp": 0.5}}, {"n_components": 1},
    ],
    ids=["half", "alternating", "exp", "context alone", "own clamp", "one component"],
)  # fmt: skip
def test_log_det_is_that_of_the_jacobian_and_inverse_returns(kind, options):
    one = layer(kind, **options)
    x = torch.randn(4, one.n_kept + one.n_moved, generator=torch.Generator().manual_seed(1), **F64) * 2
    given = (torch.randn(4, 2, **F64),) if "context_features" in options else ()
    z, log_det = one.inverse(x, *given)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda t, i=i: one.inverse(t[None], *(c[i : i + 1] for c in given))[0][0], x[i]
        )
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian)[1])
    back, log_det_back = one(z, *given)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-9, atol=1e-9)


def test_the_layer_by_hand():
    """The formula of Flow++, from the conditioner's output."""
    one = layer(scale_map="exp")
    x = torch.randn(50, 3, **F64)
    z, log_det = one.inverse(x)
    p = one.conditioner(x[:, :1]).view(50, 2, 11)
    pi, mean, scale = p[..., 2:5].softmax(-1), p[..., 5:8], p[..., 8:].exp()
    u = ((x[:, 1:, None] - mean) / scale).sigmoid()
    cdf, density = (pi * u).sum(-1), (pi * u * (1 - u) / scale).sum(-1)
    torch.testing.assert_close(z[:, 1:], cdf.logit() * p[..., 1].exp() + p[..., 0])
    want = density.log() - (cdf * (1 - cdf)).log() + p[..., 1]
    torch.testing.assert_close(log_det, want.sum(-1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", ["pixels", "channels"])
def test_images(kind, mask):
    options = {"mask": checkerboard_mask((2, 4, 3))} if mask == "pixels" else {"mask": half_mask(2), "event_dim": 3}
    one = layer(kind, **options, hidden=(4,))
    x = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(1), **F64)
    z, log_det = one.inverse(x)
    jacobian = torch.autograd.functional.jacobian(lambda t: one.inverse(t[None])[0][0], x[0]).view(24, 24)
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1])
    torch.testing.assert_close(one(z)[0], x)
    flow = FlowPlusPlus((2, 4, 3), n_layers=2, hidden=(4,), n_components=2)
    assert flow.log_prob(flow.sample(3)).shape == (3,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_components", [1, 2, 8, 32])
def test_the_start_is_near_the_identity(kind, n_components):
    one = LogisticMixtureCoupling([True], n_components=n_components, mixture=kind, **F64)
    x = torch.linspace(-5, 5, 401, **F64)[:, None]
    z, log_det = one.inverse(x)
    assert (z - x).abs().max() <= (1e-12 if n_components == 1 else 0.14)
    assert log_det.abs().max() <= (1e-12 if n_components == 1 else 0.08)
    one.reset_parameters()
    torch.testing.assert_close(one.inverse(x)[0], z)


def test_components_part_in_training():
    """They do not start alike: equal ones would get equal gradients for ever."""
    torch.manual_seed(0)
    flow = FlowPlusPlus(2, n_layers=2, hidden=(8,), n_components=4)
    flow.forward_kl(data.load("moons", n=500).x).backward()
    grad = flow.transforms[0].conditioner.last_bias.grad[2:].view(3, 4)
    assert (grad[:, :, None] - grad[:, None]).abs().amax(0)[~torch.eye(4, dtype=torch.bool)].min() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_data_far_out(kind):
    """What lies in no component has a finite density with a gradient, and comes back."""
    one = layer(kind, dtype=torch.float32)
    x = torch.tensor([[0.3, 1e3, -1e3], [0.3, 1e5, -1e4], [0.3, -300.0, 40.0]])
    flow = Flow(StandardNormal(3), [one])
    log_p = flow.log_prob(x)
    log_p.sum().backward()
    assert log_p.isfinite().all()
    assert all(p.grad.isfinite().all() for p in one.parameters())
    back = one(one.inverse(x)[0])[0]
    assert ((back - x).abs() <= 1e-5 * (1 + x.abs())).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_integrates_to_one(kind):
    torch.manual_seed(0)
    flow = shaken(FlowPlusPlus(2, n_layers=2, hidden=(8,), n_components=3, mixture=kind), std=0.2)
    axis = torch.linspace(-16, 16, 801)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(total.item() - 1) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("context", [None, 2])
@pytest.mark.parametrize("rebuild", [False, True])
def test_model(kind, dim, context, rebuild):
    torch.manual_seed(0)
    flow = FlowPlusPlus(dim, hidden=(8,), mixture=kind, context_features=context, rebuild=rebuild, **F64)
    flow = shaken(flow, std=0.1)
    given = () if context is None else (torch.randn(4, context, **F64),)
    x, log_p = flow.sample_and_log_prob(4 if context is None else (), *given)
    torch.testing.assert_close(flow.log_prob(x, *given), log_p)
    flow.log_prob(x.detach(), *given).sum().backward()
    assert all(p.grad is not None for p in flow.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_learns_with_its_defaults(kind):
    torch.manual_seed(0)
    x = data.load("moons", n=4000).x
    flow = FlowPlusPlus(2, mixture=kind)
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    before = flow.forward_kl(x).item()
    for _ in range(200):
        optimizer.zero_grad()
        flow.forward_kl(x[torch.randint(len(x), (256,))]).backward()
        optimizer.step()
    assert flow.forward_kl(x).item() < before - 0.5
    assert math.isfinite(flow.sample(100).sum())


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_under_autocast(low):
    one = layer(dtype=torch.float32)
    x = torch.randn(6, 3)
    with torch.autocast("cpu", dtype=low):
        z, log_det = one.inverse(x)
        back, _ = one(z)
    assert z.dtype == log_det.dtype == torch.float32
    assert torch.allclose(back, x, atol=0.1)


def test_bad_input():
    with pytest.raises(ValueError, match=r"^n_components: got 0"):
        LogisticMixtureCoupling(half_mask(2), n_components=0)
    with pytest.raises(ValueError, match=r"^mixture: got 'normal', want one of 'logistic', 'gaussian'$"):
        LogisticMixtureCoupling(half_mask(2), mixture="normal")
    wide = torch.nn.Linear(1, 25)
    with pytest.raises(ValueError, match=r"^conditioner: returned shape \[4, 25\], want \[4, 26\] \(26 a moved"):
        LogisticMixtureCoupling(half_mask(2), wide)(torch.zeros(4, 2))
    state = LogisticMixtureCoupling(half_mask(2), n_components=4).state_dict()
    with pytest.raises(RuntimeError, match="n_components"):
        LogisticMixtureCoupling(half_mask(2), n_components=5).load_state_dict(state)
