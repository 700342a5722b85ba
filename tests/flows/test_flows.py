"""Flow modules: round trips, log-determinants against the Jacobian, densities that integrate to 1, and fits."""

import math

import pytest
import torch
from torch import nn

from genfast import data
from genfast.flows import (
    MLP,
    AdditiveCoupling,
    AffineCoupling,
    Flow,
    Permutation,
    Planar,
    SplineCoupling,
    StandardNormal,
    alternating_mask,
    half_mask,
)

DIM = 5


def shaken(module: nn.Module, *, std: float = 0.3, seed: int = 0) -> nn.Module:
    """Move the parameters away from the identity start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def transforms(dim: int = DIM) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    scattered = torch.tensor([True, False, False, True, False, True, False])[:dim]
    f64 = {"dtype": torch.float64}
    return {
        "planar": shaken(Planar(dim, 6, **f64)),
        "affine, last half": shaken(AffineCoupling(half_mask(dim), hidden=(16,), **f64)),
        "affine, first half": shaken(AffineCoupling(half_mask(dim, last=False), hidden=(16,), **f64)),
        "affine, alternating": shaken(AffineCoupling(alternating_mask(dim), hidden=(16, 16), **f64)),
        "affine, scattered, exp": shaken(AffineCoupling(scattered, scale_map="exp", hidden=(16,), **f64)),
        "affine, own conditioner": shaken(
            AffineCoupling(half_mask(dim), nn.Linear(dim // 2, 2 * (dim - dim // 2), **f64), scale_map="sigmoid")
        ),
        "affine, own clamp": shaken(
            AffineCoupling(half_mask(dim), scale_options={"clamp": 0.5}, hidden=(16,), **f64), std=1.0
        ),
        "additive": shaken(AdditiveCoupling(half_mask(dim), hidden=(16,), **f64)),
        "spline": shaken(SplineCoupling(half_mask(dim), hidden=(16,), **f64)),
        "spline, scattered": shaken(SplineCoupling(scattered, n_bins=5, bound=2.0, hidden=(16,), **f64)),
        "spline, two bins": shaken(SplineCoupling(half_mask(dim), n_bins=2, hidden=(16,), **f64)),
        "permutation": Permutation([3, 0, 4, 1, 2][:dim] if dim == 5 else "reverse", dim),
        "no layer": Flow(StandardNormal(dim, **f64), []),
        "stack": Flow(
            StandardNormal(dim, **f64),
            [
                shaken(SplineCoupling(half_mask(dim), hidden=(16,), **f64)),
                Permutation("random", dim),
                shaken(AffineCoupling(half_mask(dim), hidden=(16,), **f64)),
                shaken(Planar(dim, 2, **f64)),
            ],
        ),
    }


NAMES = list(transforms())


@pytest.mark.parametrize("name", NAMES)
def test_log_det_is_that_of_the_jacobian_and_inverse_returns(name):
    layer = transforms()[name]
    z = torch.randn(7, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, log_det = layer(z)
    assert x.shape == z.shape
    assert log_det.shape == (7,)
    for row in range(7):
        jacobian = torch.autograd.functional.jacobian(lambda t: layer(t[None])[0][0], z[row])
        torch.testing.assert_close(log_det[row], torch.linalg.slogdet(jacobian)[1])
    back, inverse_log_det = layer.inverse(x)
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_leading_dimensions_and_no_rows(name):
    layer = transforms()[name]
    z = torch.randn(2, 3, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, log_det = layer(z)
    flat_x, flat_log_det = layer(z.flatten(0, 1))
    torch.testing.assert_close(x.flatten(0, 1), flat_x)
    torch.testing.assert_close(log_det.flatten(), flat_log_det)
    for method in (layer, layer.inverse):
        x, log_det = method(z[:0, 0])
        assert x.shape == (0, DIM)
        assert log_det.shape == (0,)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("permutation", "no layer")])
def test_gradients_reach_every_parameter_in_both_directions(name):
    layer = transforms()[name]
    z = torch.randn(64, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for method in (layer, layer.inverse):
        layer.zero_grad()
        x, log_det = method(z)
        (x.square().sum() + log_det.sum()).backward()
        for parameter_name, parameter in layer.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize(
    "layer",
    [
        AffineCoupling(half_mask(4)),
        AdditiveCoupling(alternating_mask(4)),
        SplineCoupling(half_mask(4), n_bins=6),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_default_conditioner_starts_at_the_identity(layer):
    z = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    x, log_det = layer(z)
    torch.testing.assert_close(x, z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, torch.zeros(100), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["planar", "affine, last half", "additive", "spline", "stack", "no layer"])
def test_density_integrates_to_one(name):
    flow = Flow(StandardNormal(2, dtype=torch.float64), [transforms(2)[name]])
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.5)  # features wide enough for the grid
        step = 0.04
        axis = torch.arange(-8, 8 + step / 2, step, dtype=torch.float64)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)
        total = flow.log_prob(grid).exp().sum().item() * step**2
    assert total == pytest.approx(1.0, abs=2e-3)


def test_sample_and_log_prob_agree_with_log_prob():
    flow = transforms()["stack"]
    x, log_q = flow.sample_and_log_prob(50, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=1e-8, atol=1e-8)
    assert x.requires_grad
    samples = flow.sample(50, generator=torch.Generator().manual_seed(3))
    assert not samples.requires_grad
    torch.testing.assert_close(samples, x.detach())


def test_base_may_be_a_torch_distribution():
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), torch.ones(3)), 1)
    flow = Flow(normal, [Permutation("reverse", 3)])
    x = flow.sample(10)
    torch.testing.assert_close(flow.log_prob(x), StandardNormal(3).log_prob(x))
    with pytest.raises(ValueError, match=r"generator: torch\.distributions take none"):
        flow.sample(3, generator=torch.Generator())
    scalars = Flow(torch.distributions.Normal(torch.zeros(3), torch.ones(3)), [])
    with pytest.raises(ValueError, match=r"log_prob returned shape \[4, 3\] .* want \[4\]"):
        scalars.log_prob(torch.zeros(4, 3))


def test_standard_normal_is_the_normal():
    z = torch.randn(5, 3, dtype=torch.float64)
    want = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(StandardNormal(3).log_prob(z), want)
    assert StandardNormal(3).to(torch.float64).sample(2).dtype == torch.float64


def test_losses_are_what_they_say():
    flow = transforms()["stack"]
    x = torch.randn(20, DIM, dtype=torch.float64)
    torch.testing.assert_close(flow.forward_kl(x), -flow.log_prob(x).mean())
    got = flow.reverse_kl(lambda y: -y.abs().sum(-1), 30, generator=torch.Generator().manual_seed(0))
    y, log_q = flow.sample_and_log_prob(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(got, (log_q + y.abs().sum(-1)).mean())
    with pytest.raises(ValueError, match=r"target_log_prob: returned shape \[30, 5\], want \[30\]"):
        flow.reverse_kl(lambda y: y, 30)


def test_masks():
    assert half_mask(5).tolist() == [False, False, True, True, True]
    assert half_mask(5, last=False).tolist() == [True, True, False, False, False]
    assert alternating_mask(4).tolist() == [False, True, False, True]
    assert alternating_mask(3, odd=False).tolist() == [True, False, True]


def test_state_dict_round_trip_carries_a_random_permutation():
    first, second = transforms()["stack"], transforms()["stack"]
    shaken(second, std=1.0, seed=5)
    second.transforms[1] = Permutation("reverse", DIM)
    second.load_state_dict(first.state_dict())
    z = torch.randn(4, DIM, dtype=torch.float64)
    torch.testing.assert_close(first(z)[0], second(z)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Planar(0), "dim: got 0"),
        (lambda: Planar(2, 0), "n_layers: got 0"),
        (lambda: StandardNormal(-1), "dim: got -1"),
        (lambda: Permutation([0, 2]), r"permutation: got \[0, 2\], want a permutation of 0 to 1"),
        (lambda: Permutation("shuffle", 3), "permutation: got 'shuffle'"),
        (lambda: Permutation("reverse"), "dim: got None"),
        (lambda: Permutation([1, 0], 3), "dim: got 3, want 2"),
        (lambda: AffineCoupling([False]), r"mask: got \[False\], want at least one True \(moved\)$"),
        (lambda: AffineCoupling(torch.tensor([0, 1])), "mask: got torch.int64"),
        (lambda: SplineCoupling(half_mask(2), n_bins=1), "n_bins: got 1"),
        (lambda: SplineCoupling(half_mask(2), bound=math.inf), "bound: got inf"),
        (lambda: MLP(2, (0,), 3), r"size 1 of \[2, 0, 3\]: got 0"),
        (lambda: AffineCoupling(half_mask(4))(torch.zeros(2, 3)), r"z: got shape \[2, 3\], want \[..., 4\]"),
        (lambda: AffineCoupling(half_mask(4)).inverse(torch.zeros(2, 3)), r"x: got shape \[2, 3\]"),
        (
            lambda: AffineCoupling(half_mask(4), nn.Linear(2, 3))(torch.zeros(5, 4)),
            r"conditioner: returned shape \[5, 3\], want \[5, 4\]",
        ),
        (lambda: Flow(StandardNormal(2), []).sample(-1), "n: got -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_flow_refuses_what_is_no_transform_or_base():
    with pytest.raises(TypeError, match=r"transforms\[0\]: got Linear, want a module with forward and inverse"):
        Flow(StandardNormal(2), [nn.Linear(2, 2)])
    with pytest.raises(TypeError, match="base: got Linear without a method sample"):
        Flow(nn.Linear(2, 2), [])


def test_reverse_kl_fits_an_unnormalised_density():
    """The reverse KL of a planar flow to U2 comes near 0, from about 3 at the start."""
    torch.manual_seed(0)
    density = data.load("u2")
    flow = Flow(StandardNormal(2), [Planar(2, 16)])
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)

    def divergence() -> float:
        with torch.no_grad():
            return flow.reverse_kl(density.log_prob, 20000).item() + density.log_normalizer

    before = divergence()
    for _ in range(600):
        optimizer.zero_grad()
        flow.reverse_kl(density.log_prob, 256).backward()
        optimizer.step()
    after = divergence()
    assert after > -0.05, "a KL divergence is not negative"
    assert after < 0.5 * before
    assert after < 0.9


@pytest.mark.parametrize("layer", [AffineCoupling, SplineCoupling], ids=lambda c: c.__name__)
def test_maximum_likelihood_fits_samples(layer):
    torch.manual_seed(0)
    x = data.load("moons", n=4000).x
    flow = Flow(StandardNormal(2), [layer(half_mask(2, last=i % 2 == 0), hidden=(32, 32)) for i in range(6)])
    before = flow.forward_kl(x).item()
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    for _ in range(400):
        optimizer.zero_grad()
        flow.forward_kl(x[torch.randint(len(x), (256,))]).backward()
        optimizer.step()
    after = flow.forward_kl(x).item()
    assert after < before - 0.4
