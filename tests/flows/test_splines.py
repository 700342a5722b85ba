"""Couplings of all kinds of splines."""

import math

import pytest
import torch

from genfast.flows import Flow, SplineCoupling, StandardNormal, alternating_mask, half_mask
from tests.flows.test_flows import shaken
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

DIM = 5


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


KINDS = {
    "circular": {"tails": "circular"},
    "closed": {"tails": None},
    "one a dimension": {"tails": ["linear", "circular", "linear"]},
    "zuko": {"dialect": "zuko"},
    "zuko, circular": {"dialect": "zuko", "tails": "circular"},
    "pyro": {"dialect": "pyro"},
    **{kind: {"kind": kind} for kind in ("linear", "quadratic", "cubic")},
    **{f"{kind}, closed": {"kind": kind, "tails": None} for kind in ("linear", "quadratic", "cubic")},
}


def layer(name, dim=DIM, std=0.3, **options):
    torch.manual_seed(0)
    options = {"hidden": (16,), "dtype": torch.float64, **KINDS[name], **options}
    return shaken(SplineCoupling(half_mask(dim), **options), std=std)


def numbers(n, dim=DIM, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, dim, dtype=torch.float64, generator=g) * 5.8 - 2.9


@pytest.mark.parametrize("name", KINDS)
def test_log_det_is_that_of_the_jacobian_and_inverse_returns(kernels, name):
    f = layer(name).to(kernels.device)
    z = numbers(7).to(kernels.device)
    x, log_det = f(z)
    for row in range(7):
        jacobian = torch.autograd.functional.jacobian(lambda t: f(t[None])[0][0], z[row])
        torch.testing.assert_close(log_det[row], torch.linalg.slogdet(jacobian)[1])
    back, back_log_det = f.inverse(x)
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back_log_det, -log_det, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_reach_every_parameter(native, name):
    f = layer(name)
    for method in (f, f.inverse):
        f.zero_grad()
        x, log_det = method(numbers(64))
        (x.square().sum() + log_det.sum()).backward()
        for parameter_name, parameter in f.named_parameters():
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", KINDS)
def test_starts_at_the_identity(native, name):
    torch.manual_seed(0)
    f = SplineCoupling(half_mask(DIM), hidden=(16,), dtype=torch.float64, **KINDS[name])
    z = numbers(50)
    for _ in range(2):
        x, log_det = f(z)
        limit = {"quadratic": 0.3, "pyro": 2e-3}.get(name, 1e-9)  # the ends of these two are not 1
        assert (x - z).abs().max() <= limit
        assert log_det.abs().max() <= 2 * limit
        shaken(f)
        f.reset_parameters()


@pytest.mark.parametrize("name", [n for n in KINDS if "closed" not in n and n != "one a dimension"])
def test_density_integrates_to_one(native, name):
    flow = Flow(StandardNormal(2, dtype=torch.float64), [layer(name, 2)])
    axis = torch.linspace(-7, 7, 701, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    with torch.no_grad():
        density = flow.log_prob(grid.flatten(0, 1)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(density.item() - 1) <= 5e-3


def test_a_circle_has_one_density_at_its_ends(native):
    f = layer("circular", 2, std=1.0, bound=math.pi)
    x = torch.tensor([[0.3, -math.pi], [0.3, math.pi]], dtype=torch.float64)
    _, log_det = f.inverse(x)
    assert log_det.abs().min() > 1e-3
    torch.testing.assert_close(log_det[0], log_det[1])


def test_outside_of_closed_splines(native):
    f = layer("closed", 2)
    x, log_det = f(torch.tensor([[4.0, 1.0], [1.0, 4.0]], dtype=torch.float64))
    assert x.isnan().tolist() == [[False, False], [False, True]]
    assert log_det.isnan().tolist() == [False, True]


@pytest.mark.parametrize("name", KINDS)
def test_a_state_of_another_kind_is_refused(name):
    state = layer(name).state_dict()
    layer(name).load_state_dict(state)
    option = next(iter(KINDS[name]))
    with pytest.raises(RuntimeError, match=f"the state dict is that of a module with .*{option}="):
        SplineCoupling(half_mask(DIM), hidden=(16,), dtype=torch.float64).load_state_dict(state)


def test_the_state_of_a_default_layer_is_what_it_was():
    """So those that were saved before there were other kinds are loaded."""
    f = SplineCoupling(half_mask(2))
    assert f.saved_options() == {
        "n_bins": 8, "bound": 3.0, "min_bin_width": 1e-3, "min_bin_height": 1e-3, "min_derivative": 1e-3
    }  # fmt: skip
    assert f.n_params_per_dim == 23


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "quartic"}, "kind: got 'quartic', want 'rational_quadratic', 'cubic', 'quadratic' or 'linear'"),
        ({"tails": "flat"}, "tails: got 'flat', want 'linear', 'circular', None, or a list of the first two for kind="),
        ({"kind": "cubic", "tails": "circular"}, "tails: got 'circular', want 'linear' or None for kind='cubic'"),
        ({"tails": ["linear"]}, "tails: got 1, want one for each of 2 moved dimensions"),
        ({"tails": ["linear"] * 2, "event_dim": 3}, "tails: got 2, want one for all of an image"),
        ({"dialect": "tfp"}, "dialect: got 'tfp', want 'nflows', 'zuko' or 'pyro' for kind='rational_quadratic'"),
        ({"kind": "linear", "dialect": "zuko"}, "dialect: got 'zuko', want 'nflows' for kind='linear'"),
        ({"kind": "linear", "min_bin_height": 0.1}, "min_bin_height: got 0.1 with kind='linear', which has none"),
        ({"kind": "cubic", "min_derivative": 0.1}, "min_derivative: got 0.1 with kind='cubic', which has none"),
        ({"dialect": "zuko", "min_derivative": 0}, "min_derivative: got 0, want a number from"),
        ({"kind": "quadratic", "min_bin_height": 2}, "min_bin_height: got 2, want a number from 0 to 1"),
    ],
)
def test_what_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        SplineCoupling(half_mask(4), **options)


def test_images(native):
    torch.manual_seed(0)
    for options in ({"kind": "cubic"}, {"tails": "circular"}):
        f = shaken(SplineCoupling(half_mask(2), event_dim=3, hidden=(4,), dtype=torch.float64, **options))
        z = torch.rand(2, 2, 3, 3, dtype=torch.float64)
        x, log_det = f(z)
        back, back_log_det = f.inverse(x)
        torch.testing.assert_close(back, z)
        torch.testing.assert_close(back_log_det, -log_det)


def spec(name, **options):
    def build(*, device=None, **o):
        return SplineCoupling(alternating_mask(4), n_bins=3, hidden=(3,), device=device, **o, **options)

    generator = torch.Generator().manual_seed(0)
    return ModuleSpec(
        name, build, lambda dtype: torch.randn(6, 4, dtype=torch.float64, generator=generator.manual_seed(0)).to(dtype),
        ("forward", "inverse"), name, smooth=("forward",),
    )  # fmt: skip


class TestSplines(ModuleTests):
    specs = (spec("circular, zuko", tails="circular", dialect="zuko"), spec("cubic", kind="cubic"))
