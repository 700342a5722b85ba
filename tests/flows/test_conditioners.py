"""Conditioner networks, couplings of images, and couplings that move every dimension."""

import math

import pytest
import torch
from torch import nn

from genfast._module import reset
from genfast.flows import (
    MLP,
    AdditiveCoupling,
    AffineCoupling,
    Constant,
    ConvNet,
    Flow,
    ResidualMLP,
    SplineCoupling,
    StandardNormal,
    alternating_mask,
    checkerboard_mask,
    half_mask,
)
from tests.flows.test_context import Fixed
from tests.flows.test_flows import shaken
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

SHAPE = (3, 4, 2)
WIDTH = 2
F64 = {"dtype": torch.float64}


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


def images(dtype, n=4):
    return torch.randn(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(dtype)


def rows(dtype):
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(dtype)


# -- networks ----------------------------------------------------------------------------------------------------------


class Rows(nn.Module):
    """A network by the name z of its argument, which the shared tests ask for."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def reset_parameters(self):
        reset(self.net)

    def forward(self, z):
        if z.is_complex():
            raise TypeError(f"z: got {z.dtype}")
        return self.net(z)


def net(name, build, data=rows, **options):
    return ModuleSpec(name, lambda **o: Rows(build(**o)), data, ("forward",), name, smooth=("forward",), **options)


NETS = [
    net("mlp", lambda **o: MLP(3, (4,), 2, activation=nn.Tanh, **o)),
    net("residual", lambda **o: ResidualMLP(3, 4, 2, activation=nn.Tanh, **o)),
    net(
        "residual, context",
        lambda **o: Fixed(ResidualMLP(3, 4, 2, activation=nn.Tanh, context_features=2, **o), 2, **o),
    ),
]


class TestNets(ModuleTests):
    specs = NETS


@pytest.mark.parametrize("context", [None, WIDTH])
def test_a_convolutional_network_takes_leading_dimensions_and_any_size(context):
    module = shaken(ConvNet(3, (4, 5), 2, context_features=context, **F64))
    x = images(torch.float64)
    given = () if context is None else (torch.randn(4, WIDTH, **F64),)
    y = module(x, *given)
    assert y.shape == (4, 2, *SHAPE[1:])
    torch.testing.assert_close(module(x[0], *(c[0] for c in given)), y[0])
    deep = module(x.view(2, 2, *SHAPE), *(c.view(2, 2, WIDTH) for c in given))
    torch.testing.assert_close(deep.flatten(0, 1), y)
    assert module(x[:0], *(c[:0] for c in given)).shape == (0, 2, *SHAPE[1:])
    assert module(x[..., :1], *given).shape == (4, 2, 4, 1)
    if context:
        assert not torch.allclose(module(x, given[0] + 1), y)
        torch.testing.assert_close(module(x, given[0][0]), module(x, given[0][:1].expand(4, -1)))


def test_networks_start_at_zero_and_again_after_a_reset():
    for module, args in [
        (MLP(3, (4,), 2), (torch.randn(5, 3),)),
        (ResidualMLP(3, 4, 2, context_features=WIDTH), (torch.randn(5, 3), torch.randn(5, WIDTH))),
        (ConvNet(3, (4,), 2, context_features=WIDTH), (images(torch.float32), torch.randn(4, WIDTH))),
        (Constant(2), (torch.zeros(5, 0),)),
    ]:
        assert not module(*args).any()
        shaken(module)
        assert module(*args).all()
        module.reset_parameters()
        assert not module(*args).any()


def test_the_residual_network_is_that_of_nflows():
    nflows = pytest.importorskip("nflows.nn.nets")
    theirs = nflows.ResidualNet(3, 4, hidden_features=8, context_features=2, num_blocks=2).double()
    ours = ResidualMLP(3, 8, 4, context_features=2, zero_init=False, **F64)
    with torch.no_grad():
        # nflows puts the context first nowhere but in `initial_layer`, behind the input
        ours.first.load_state_dict(theirs.initial_layer.state_dict())
        ours.last.load_state_dict(theirs.final_layer.state_dict())
        for i, block in enumerate(theirs.blocks):
            ours.gates[i].load_state_dict(block.context_layer.state_dict())
            for j in range(2):
                ours.blocks[2 * i + j].load_state_dict(block.linear_layers[j].state_dict())
    x, context = torch.randn(6, 3, **F64), torch.randn(6, 2, **F64)
    torch.testing.assert_close(ours(x, context), theirs(x, context))


def test_dropout_acts_while_training_alone():
    module, x = shaken(ResidualMLP(3, 32, 2, dropout=0.5)), torch.randn(5, 3)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


# -- images ------------------------------------------------------------------------------------------------------------


def couplings():
    torch.manual_seed(0)
    checkerboard = checkerboard_mask(SHAPE)
    scattered = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) > 0.6
    small = {"hidden": (3,), **F64}
    return {
        "affine, last channels": AffineCoupling(half_mask(3), event_dim=3, **small),
        "affine, first channels": AffineCoupling(half_mask(3, last=False), event_dim=3, scale_map="sigmoid", **small),
        "affine, alternating channels": AffineCoupling(alternating_mask(3, odd=False), event_dim=3, **small),
        "affine, checkerboard": AffineCoupling(checkerboard, **small),
        "affine, scattered": AffineCoupling(scattered, **small),
        "additive, channels": AdditiveCoupling(half_mask(3), event_dim=3, **small),
        "additive, checkerboard": AdditiveCoupling(checkerboard_mask(SHAPE, odd=False), **small),
        "spline, channels": SplineCoupling(alternating_mask(3), event_dim=3, n_bins=3, **small),
        "spline, checkerboard": SplineCoupling(checkerboard, n_bins=3, **small),
    }


@pytest.mark.parametrize("name", list(couplings()))
def test_couplings_of_images(name):
    layer = couplings()[name]
    z = images(torch.float64)
    x, log_det = layer(z)
    torch.testing.assert_close(x, z, rtol=0, atol=2 if "sigmoid" in repr(layer) else 1e-12)
    shaken(layer)
    x, log_det = layer(z)
    assert x.shape == z.shape
    assert log_det.shape == (4,)
    mask = layer.mask if layer.by_pixel else layer.mask[:, None, None].expand(SHAPE)
    assert torch.equal(x[:, ~mask], z[:, ~mask])
    assert (x[:, mask] != z[:, mask]).float().mean() > 0.7
    jacobian = torch.autograd.functional.jacobian(lambda t: layer(t[None])[0][0].flatten(), z[0]).flatten(1)
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1])
    back, inverse_log_det = layer.inverse(x)
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-9, atol=1e-9)
    deep, deep_log_det = layer(z.view(2, 1, 2, *SHAPE))
    torch.testing.assert_close(deep.view(x.shape), x)
    torch.testing.assert_close(deep_log_det.view(4), log_det)
    assert layer(z[:0])[0].shape == (0, *SHAPE)
    strided = z.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(strided)[0], x)
    torch.testing.assert_close(layer.inverse(x.transpose(2, 3).contiguous().transpose(2, 3))[0], z)


@pytest.mark.parametrize("name", ["affine, last channels", "affine, checkerboard", "spline, channels"])
def test_gradients_of_couplings_of_images(name):
    layer = shaken(couplings()[name])
    z = images(torch.float64, n=2).requires_grad_()
    for method in (layer, layer.inverse):
        assert torch.autograd.gradcheck(method, (z,), fast_mode=True)
        names, leaves = zip(*layer.named_parameters(), strict=True)

        def f(*values, method=method, names=names):
            del method
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (z.detach(),))

        assert torch.autograd.gradcheck(f, leaves, fast_mode=True)


def pictures(name, build):
    return ModuleSpec(
        name, build, lambda dtype: images(dtype), ("forward", "inverse"), "picture " + name.split(",")[0],
        smooth=("forward", "inverse"),
    )  # fmt: skip


tanh = {"activation": nn.Tanh}
PICTURES = [
    pictures("channels, last", lambda **o: AffineCoupling(half_mask(3), hidden=(2,), event_dim=3, **o)),
    pictures("channels, odd", lambda **o: AffineCoupling([False, True, True], hidden=(2,), event_dim=3, **o)),
    pictures("pixels, odd", lambda **o: AffineCoupling(checkerboard_mask(SHAPE), hidden=(2,), **o)),
    pictures("pixels, even", lambda **o: AffineCoupling(checkerboard_mask(SHAPE, odd=False), hidden=(2,), **o)),
    pictures(
        "context",
        lambda **o: Fixed(
            AffineCoupling(half_mask(3), hidden=(2,), event_dim=3, context_features=WIDTH, **o), WIDTH, **o
        ),
    ),
]


class TestPictures(ModuleTests):
    specs = PICTURES


def test_an_image_flow_with_a_context():
    layers = [
        shaken(AffineCoupling(mask, event_dim=3, hidden=(4,), context_features=WIDTH, **F64), std=0.1)
        for mask in (half_mask(3), checkerboard_mask(SHAPE), half_mask(3, last=False))
    ]

    flow = Flow(StandardNormal(SHAPE, **F64), layers)
    context = torch.randn(5, WIDTH, **F64)
    x, log_p = flow.sample_and_log_prob(2, context)
    assert x.shape == (2, 5, *SHAPE)
    torch.testing.assert_close(flow.log_prob(x, context), log_p)
    given = flow.to_distribution(context)
    assert (given.batch_shape, given.event_shape) == ((5,), SHAPE)
    torch.testing.assert_close(given.log_prob(x), log_p)


def test_a_mask_of_other_images_is_refused():
    layer = AffineCoupling(checkerboard_mask((1, 2, 4)), hidden=(2,))
    with pytest.raises(RuntimeError, match="mask"):
        layer.load_state_dict(AffineCoupling(checkerboard_mask((1, 4, 2)), hidden=(2,)).state_dict())
    with pytest.raises(RuntimeError, match="event_dim"):
        layer.load_state_dict(AffineCoupling(half_mask(8), hidden=(2,)).state_dict())


# -- every dimension moves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AffineCoupling, AdditiveCoupling, SplineCoupling])
@pytest.mark.parametrize("context", [None, WIDTH])
@pytest.mark.parametrize("dim", [1, 3])
def test_all_dimensions_may_move(kind, context, dim):
    torch.manual_seed(0)
    layer = kind([True] * dim, hidden=(4,), context_features=context, **F64)
    z = torch.randn(6, dim, **F64)
    given = () if context is None else (torch.randn(6, WIDTH, **F64),)
    torch.testing.assert_close(layer(z, *given)[0], z)
    shaken(layer)
    x, log_det = layer(z, *given)
    jacobian = torch.autograd.functional.jacobian(lambda t: layer(t[None], *(c[:1] for c in given))[0][0], z[0])
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1])
    torch.testing.assert_close(layer.inverse(x, *given)[0], z)
    if context:
        assert not torch.allclose(layer(z, given[0] + 1)[0], x)
    layer.reset_parameters()
    torch.testing.assert_close(layer(z, *given)[0], z)


def test_a_spline_of_one_dimension_learns_a_density_by_its_context():
    torch.manual_seed(0)
    context = torch.randint(2, (2000, 1)).float()
    x = (2 * context - 1) + 0.2 * torch.randn(2000, 1)
    flow = Flow(StandardNormal(1), [SplineCoupling([True], context_features=1, bound=4.0, hidden=(16,))])
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = -flow.log_prob(x, context).mean()
        loss.backward()
        optimizer.step()
    best = math.log(0.2) + 0.5 * math.log(2 * math.pi * math.e)
    assert best - 0.05 < loss.item() < best + 0.15
    assert flow.sample(100, torch.zeros(1)).mean().item() == pytest.approx(-1, abs=0.15)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ResidualMLP(0, 4, 2), "n_in: got 0, want an integer >= 1"),
        (lambda: ResidualMLP(2, 0, 2), "hidden: got 0"),
        (lambda: ResidualMLP(2, 2, 2, dropout=1.5), "dropout: got 1.5, want a number from 0 to 1"),
        (lambda: ConvNet(0, (2,), 2), r"size 0 of \[0, 2, 2\]: got 0"),
        (lambda: ConvNet(1, (2,), 2, kernel_size=2), "kernel_size: got 2, want an odd number, or 2 of them"),
        (lambda: ConvNet(1, (2,), 2, kernel_size=[3]), r"kernel_size: got \[3\], want an odd number, or 2"),
        (lambda: ConvNet(1, (), 2, context_features=2), "hidden: got none"),
        (lambda: ConvNet(1, (2,), 2)(torch.zeros(3, 4)), r"x: got shape \[3, 4\], want \[..., 1, H, W\]"),
        (lambda: Constant(0), "n_out: got 0"),
        (lambda: checkerboard_mask((2, 2)), r"shape: got \[2, 2\], want \[C, H, W\]"),
        (lambda: AffineCoupling(torch.ones(2, 2, dtype=torch.bool)), r"mask: got torch.bool of shape \[2, 2\]"),
        (
            lambda: AffineCoupling([True, True], event_dim=3),
            r"mask: got \[True, True\], want .* and one False \(kept\)",
        ),
        (lambda: AffineCoupling([True, False], event_dim=2), "event_dim: got 2, want 1 for vectors or 3 for images"),
        (lambda: AffineCoupling(checkerboard_mask(SHAPE), event_dim=1), "event_dim: got 1"),
        (
            lambda: AffineCoupling(half_mask(3), event_dim=3)(torch.zeros(5, 2, 4, 4)),
            r"z: got shape \[5, 2, 4, 4\], want \[\.\.\., 3, H, W\]",
        ),
        (
            lambda: AffineCoupling(checkerboard_mask(SHAPE)).inverse(torch.zeros(5, 3, 2, 4)),
            r"x: got shape \[5, 3, 2, 4\], want \[\.\.\., 3, 4, 2\]",
        ),
        (
            lambda: AffineCoupling(half_mask(2), nn.Conv2d(1, 3, 1), event_dim=3)(torch.zeros(5, 2, 4, 4)),
            r"conditioner: returned shape \[5, 3, 4, 4\], want \[5, 2, 4, 4\] \(2 a moved channel\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
