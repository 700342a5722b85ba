"""Radial and Sylvester flows, and the ready models of planar, radial and Sylvester layers."""

import math

import pytest
import torch

from genfast import data
from genfast.flows import (
    Flow,
    PlanarFlow,
    Radial,
    RadialFlow,
    StandardNormal,
    Sylvester,
    SylvesterFlow,
)
from tests.flows.test_flows import shaken
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

DIM = 4
VARIANTS = ("orthogonal", "householder", "triangular")
F64 = {"dtype": torch.float64}


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


def rows(dtype):
    return torch.randn(5, DIM, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def described(name, build, family, *more):
    return ModuleSpec(name, build, rows, ("forward", "inverse", *more), family, smooth=("forward", "inverse", *more))


class TestModules(ModuleTests):
    specs = (
        described("radial", lambda **o: Radial(DIM, 2, **o), "radial"),
        described("sylvester, orthogonal", lambda **o: Sylvester(DIM, 1, 2, **o), "orthogonal"),
        described("sylvester, householder",
                  lambda **o: Sylvester(DIM, 1, 2, variant="householder", n_reflections=2, **o),
                  "householder"),
        described("sylvester, triangular", lambda **o: Sylvester(DIM, 2, 2, variant="triangular", **o),
                  "triangular"),
        ModuleSpec("planar flow", lambda **o: PlanarFlow(DIM, 2, **o), rows, ("log_prob",), "planar flow",
                   smooth=("log_prob",)),
    )  # fmt: skip


def modules(dim=5):
    torch.manual_seed(0)
    return {
        "radial": shaken(Radial(dim, 6, **F64)),
        **{v: shaken(Sylvester(dim, 3, min(3, dim), variant=v, **F64)) for v in VARIANTS},
        "all units": shaken(Sylvester(dim, 3, **F64)),
    }


@pytest.mark.parametrize("name", modules())
def test_log_det_is_that_of_the_jacobian_and_inverse_returns(name):
    layer = modules()[name]
    z = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1), **F64)
    x, log_det = layer(z)
    for i, j in ((0, 0), (1, 2)):
        jacobian = torch.autograd.functional.jacobian(lambda t: layer(t)[0], z[i, j])
        torch.testing.assert_close(log_det[i, j], torch.linalg.slogdet(jacobian)[1])
    back, inverse_log_det = layer.inverse(x)
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", modules())
def test_gradients_reach_every_parameter_in_both_directions(name):
    layer = modules()[name]
    z = torch.randn(64, 5, generator=torch.Generator().manual_seed(1), **F64)
    for method in (layer, layer.inverse):
        layer.zero_grad()
        x, log_det = method(z)
        (x.square().sum() + log_det.sum()).backward()
        for parameter_name, parameter in layer.named_parameters():
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", modules())
def test_density_integrates_to_one(name):
    flow = Flow(StandardNormal(2, **F64), [modules(2)[name]])
    axis = torch.linspace(-12, 12, 401, **F64)
    with torch.no_grad():
        log_p = flow.log_prob(torch.cartesian_prod(axis, axis))
    assert float(log_p.exp().sum()) * float(axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_columns_are_orthonormal_whatever_the_parameters(variant, dtype):
    layer = Sylvester(7, 4, 3, variant=variant, dtype=dtype)
    for scale in (1.0, 0.0, 1e-3, 1e4 if dtype == torch.float16 else 1e30):
        if layer.v is not None:
            with torch.no_grad():
                layer.v.copy_(torch.randn(layer.v.shape, generator=torch.Generator().manual_seed(1)) * scale)
        q = layer.orthonormal()
        assert q.dtype == torch.float32
        torch.testing.assert_close(q.mT @ q, torch.eye(3).expand(4, 3, 3), rtol=0, atol=2e-6)
    assert sum(p.numel() for p in Sylvester(7, 4, 3, variant="triangular").parameters()) == 4 * (9 + 9 + 3)


@pytest.mark.parametrize("value", [-1e4, -100.0, -20.0, 0.0, 20.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_layers_are_invertible_whatever_the_parameters(value, dtype):
    """alpha > 0, beta >= -alpha; |r1 r2| < 1."""
    z = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    radial = Radial(4, 3, dtype=dtype)
    for alpha, beta in ((value, 0.0), (0.0, value), (value, value), (value, -value)):
        with torch.no_grad():
            radial.alpha.fill_(alpha)
            radial.beta.fill_(beta)
        a, b = radial.constrained()
        assert (a > 0).all()
        assert (a + b >= 0).all()
        assert all(out.isfinite().all() for out in (*radial(z), radial.inverse(z)[0]))
    layer = Sylvester(4, 2, 4, dtype=dtype)
    for sign in (1, -1):
        with torch.no_grad():
            for r, s in ((layer.r1, sign), (layer.r2, 1)):
                r.diagonal(dim1=-2, dim2=-1).fill_(s * value)
        x, log_det = layer(z)
        back, inverse_log_det = layer.inverse(x)
        assert all(out.isfinite().all() for out in (log_det, back, inverse_log_det))
        # where a unit is nearly flat, rounding x moves z; but it is mapped to the same x again
        torch.testing.assert_close(layer(back)[0], x, rtol=0, atol=100 * torch.finfo(dtype).eps)


def test_bad_sizes_and_variants_are_refused():
    with pytest.raises(ValueError, match="n_units: got 5, want at most dim = 4"):
        Sylvester(4, 1, 5)
    with pytest.raises(ValueError, match="variant: got 'qr', want one of 'orthogonal', 'householder', 'triangular'"):
        Sylvester(4, variant="qr")
    with pytest.raises(ValueError, match="n_reflections: got 0"):
        Sylvester(4, n_reflections=0)
    for build in (Radial, Sylvester, PlanarFlow, RadialFlow, SylvesterFlow):
        with pytest.raises(ValueError, match="n_layers: got 0"):
            build(4, 0)
    with pytest.raises(RuntimeError, match="variant='householder', this one has variant='orthogonal'"):
        Sylvester(8, 1).load_state_dict(Sylvester(8, 1, variant="householder").state_dict())
    with pytest.raises(ValueError, match="context: got shape"):
        Radial(4)(torch.randn(2, 4), torch.randn(2, 3))


@pytest.mark.parametrize("model", [PlanarFlow, RadialFlow, SylvesterFlow])
def test_ready_models_learn_and_draw_again(model):
    """By maximum likelihood, which needs the inverse: better than the best normal."""
    torch.manual_seed(0)
    x = data.load("moons").x
    flow = model(2)
    start = {k: v.clone() for k, v in flow.state_dict().items()}
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        flow.forward_kl(x[torch.randint(len(x), (256,))]).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
    normal = 0.5 * torch.logdet(2 * math.pi * math.e * x.T.cov())
    assert float(-flow.log_prob(x).detach().mean()) < float(normal) - 0.1
    torch.manual_seed(0)
    flow.reset_parameters()
    for k, v in flow.state_dict().items():
        assert "extra" in k or torch.equal(v, start[k]), k
    other = model(2, 3, base=torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(2), 1.0), 1))
    assert other.sample(4).shape == (4, 2)
