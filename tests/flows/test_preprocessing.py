"""Logit, AffineTransform, Standardize: log-determinants, round trips, the boundary."""

import copy
import math

import pytest
import torch

from genfast.flows import AffineTransform, Flow, Logit, Planar, Standardize, StandardNormal
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

F64 = {"dtype": torch.float64}


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


def rows(dtype):
    return torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(dtype)


def measured(**options):
    layer = Standardize(4, **options)
    if not layer.mean.is_meta:
        layer.mean.copy_(torch.linspace(-1, 2, 4))
        layer.std.copy_(torch.linspace(0.5, 2, 4))
    return layer


def behind(last):
    """A flow that ends in a layer of its own copy."""
    return lambda **o: Flow(StandardNormal(4, **o), [Planar(4, **o), copy.deepcopy(last)])


BOTH = ("forward", "inverse")
SPECS = [
    ModuleSpec("logit", behind(Logit(0.05)), rows, BOTH, "logit", smooth=BOTH),
    ModuleSpec("logit, 0.1", behind(Logit(0.1)), rows, BOTH, "logit", smooth=BOTH),
    ModuleSpec("affine", lambda **o: AffineTransform(0.5, [1.0, -2.0, 0.3, 4.0], **o), rows, BOTH, "a", smooth=BOTH),
    ModuleSpec("scale", lambda **o: AffineTransform(scale=3.0, **o), rows, BOTH, "scale", smooth=BOTH),
    ModuleSpec("standardize", lambda **o: Standardize(4, **o), rows, BOTH, "standardize", smooth=BOTH),
]


class TestPreprocessing(ModuleTests):
    specs = SPECS


@pytest.mark.parametrize(
    "layer",
    [
        Logit(0.05),
        Logit(0.0),
        AffineTransform(1.0, 0.2),
        AffineTransform(torch.linspace(0, 1, 4), -2.0),
        AffineTransform([0.5], [[2.0], [3.0]], event_dim=2),
        measured(),
        Logit(1e-6, event_dim=2),
    ],
    ids=str,
)
def test_log_det_is_that_of_the_jacobian_and_inverse_returns(layer):
    layer = layer.double()
    event = (4,) if layer.event_dim == 1 else (2, 2)
    z = torch.randn(3, *event, **F64, generator=torch.Generator().manual_seed(0))
    x, log_det = layer(z)
    jacobian = torch.autograd.functional.jacobian(lambda t: layer(t)[0], z[0]).reshape(4, 4)
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1])
    back, inverse_log_det = layer.inverse(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(inverse_log_det, -log_det)
    deep, deep_log_det = layer(z[None, :, None])
    torch.testing.assert_close(deep, x[None, :, None])
    torch.testing.assert_close(deep_log_det, log_det[None, :, None])
    assert torch.autograd.gradcheck(layer, (z.requires_grad_(),))
    assert torch.autograd.gradcheck(layer.inverse, (x.detach().requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05, 0.49])
def test_the_logit_is_finite_for_finite_input(alpha, dtype):
    layer = Logit(alpha)
    limits = torch.finfo(dtype)
    z = torch.tensor([0.0, 1e-30, 50, -50, 800, -1e30, limits.max, limits.min], dtype=dtype)[:, None].requires_grad_()
    x, log_det = layer(z)
    assert x.isfinite().all()
    assert log_det.isfinite().all()
    (grad,) = torch.autograd.grad(x.sum() + log_det.sum(), z)
    assert grad.isfinite().all()
    inside = [limits.tiny, limits.eps, 0.5, 1 - limits.eps, 1 - limits.eps / 2]
    x = torch.tensor([0.0, 1.0, *inside], dtype=dtype)[:, None].requires_grad_()
    z, log_det = layer.inverse(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    (grad,) = torch.autograd.grad(z.sum() + log_det.sum(), x)
    assert grad.isfinite().all()
    assert layer(torch.full((1, 1), math.nan, dtype=dtype))[0].isnan().all()
    assert all(t.isnan().all() for t in layer.inverse(torch.full((1, 1), math.nan, dtype=dtype)))


def test_the_logit_near_the_boundary_is_accurate():
    x = torch.tensor([[2e-38], [1e-10], [1 - 2**-20], [1 - 2**-24]])
    z, log_det = Logit(0.0).inverse(x)
    want, want_log_det = Logit(0.0).inverse(x.double())
    torch.testing.assert_close(z.double(), want, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_det.double(), want_log_det, rtol=1e-6, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_beyond_the_boundary_the_density_is_zero(alpha):
    flow = Flow(StandardNormal(2), [Logit(alpha)])
    edge = alpha / (1 - 2 * alpha)
    x = torch.tensor([[0.5, -edge - 1e-3], [1 + edge + 1e-3, 0.5], [0.5, 0.5], [-edge - 1, 3.0]], requires_grad=True)
    log_p = flow.log_prob(x)
    assert log_p[[0, 1, 3]].tolist() == [-math.inf] * 3
    assert log_p[2].isfinite()
    (grad,) = torch.autograd.grad(log_p.sum(), x)
    assert not grad.isnan().any()
    support = flow.to_distribution().support
    assert support.check(x.detach()).tolist() == [False, False, True, False]


def test_the_density_behind_a_logit_integrates_to_one():
    flow = Flow(StandardNormal(1, **F64), [Logit(0.05)])
    edge, n = 0.05 / 0.9, 20_000
    width = 1 + 2 * edge
    x = (torch.arange(n, **F64) + 0.5) / n * width - edge
    assert flow.log_prob(x[:, None]).exp().sum().item() * width / n == pytest.approx(1, abs=1e-6)


def test_standardize_measures():
    torch.manual_seed(0)
    x = torch.randn(1000, 3) * torch.tensor([1.0, 20.0, 0.0]) + torch.tensor([5.0, -3.0, 7.0])
    layer = Standardize(3)
    layer.measure(x)
    z, log_det = layer.inverse(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_det, -layer.std.log().sum().expand(1000))
    with pytest.raises(ValueError, match=r"x: got shape \[4, 2\], want \[N, 3\] with N > 0"):
        layer.measure(torch.zeros(4, 2))
    pictures = Standardize((1, 2, 2))
    pictures.measure(torch.rand(50, 1, 2, 2), 1 / 16)
    assert pictures(torch.zeros(3, 1, 2, 2))[1].shape == (3,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Logit(0.5), ValueError, "alpha: got 0.5, want a number from 0 to 0.5"),
        (lambda: Logit(-0.1), ValueError, "alpha: got -0.1"),
        (lambda: Logit("a"), TypeError, "alpha: got str, want a number"),
        (lambda: Logit(event_dim=0), ValueError, "event_dim: got 0"),
        (
            lambda: Logit(event_dim=3)(torch.zeros(2, 2)),
            ValueError,
            r"z: got shape \[2, 2\], want 3 dim",
        ),
        (lambda: Logit()(torch.zeros(2, dtype=torch.int64)), TypeError, "z: got torch.int64"),
        (lambda: Logit()(torch.zeros(2, 2), torch.zeros(2, 2)), ValueError, "context: got shape"),
        (lambda: AffineTransform(0.0, 0.0), ValueError, "scale: got 0.0, want finite numbers other than 0"),
        (lambda: AffineTransform(math.nan), ValueError, "loc: got nan, want finite numbers"),
        (lambda: AffineTransform(torch.zeros(2, 2)), ValueError, r"loc: got shape \[2, 2\], want at most 1 dim"),
        (
            lambda: AffineTransform([0.0, 1.0])(torch.zeros(5, 3)),
            ValueError,
            r"z: got shape \[5, 3\], want events of 1",
        ),
        (
            lambda: AffineTransform([0.0, 1.0])(torch.zeros(5, 1)),
            ValueError,
            r"z: got shape \[5, 1\], want events of 1",
        ),
        (lambda: Standardize(3)(torch.zeros(5, 2)), ValueError, r"z: got shape \[5, 2\], want \[\.\.\., 3\]"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
