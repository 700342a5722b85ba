"""MADE, masked and inverse autoregressive transforms and flows, also against nflows and zuko with their weights."""

import copy
import functools

import pytest
import torch
from torch import nn

from genfast import ops
from genfast.flows import IAF, MADE, MAF, AutoregressiveNSF, InverseAutoregressive, MaskedAutoregressive
from tests.flows.test_flows import shaken
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

DIM, CONTEXT = 4, 3
BOTH = ("forward", "inverse")
F64 = {"dtype": torch.float64}


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


def rows(dtype):
    return torch.randn(5, DIM, dtype=dtype, generator=torch.Generator().manual_seed(0))


def layer(name, family, transform, **options):
    build = functools.partial(transform, DIM, **{"hidden": (6,), "activation": "tanh", **options})
    return ModuleSpec(name, build, rows, BOTH, family, smooth=BOTH)


BLOCKS = {"residual": True, "hidden": (5, 5, 5)}


class TestModules(ModuleTests):
    specs = (
        layer("masked", "masked", MaskedAutoregressive),
        layer("masked, listed", "masked", MaskedAutoregressive, order=[2, 0, 3, 1]),
        layer("inverse, blocks", "blocks", InverseAutoregressive, scale_map="softplus", **BLOCKS),
        layer("masked spline", "masked spline", MaskedAutoregressive, kind="rational_quadratic", n_bins=3),
        ModuleSpec(
            "made", functools.partial(MADE, DIM, (6, 5), 3, activation="silu", order="reverse"), rows, ("forward",),
            "made", smooth=("forward",),
        ),
        ModuleSpec(
            "maf", functools.partial(MAF, DIM, 2, (6,), activation="tanh"), rows, (*BOTH, "log_prob"), "maf",
            smooth=(*BOTH, "log_prob"),
        ),
    )  # fmt: skip


KINDS = {
    "masked": lambda **o: MaskedAutoregressive(DIM, (8, 8), **o),
    "masked, own order": lambda **o: MaskedAutoregressive(DIM, (8, 8), order=[1, 3, 0, 2], **o),
    "masked, random masks": lambda **o: MaskedAutoregressive(DIM, (8, 8), random_masks=True, order="random", **o),
    "masked, blocks": lambda **o: MaskedAutoregressive(DIM, scale_map="sigmoid", **BLOCKS, **o),
    "masked, no hidden layer": lambda **o: MaskedAutoregressive(DIM, (), **o),
    "masked spline": lambda **o: MaskedAutoregressive(DIM, (8,), kind="rational_quadratic", n_bins=5, **o),
    "inverse": lambda **o: InverseAutoregressive(DIM, (8, 8), order="reverse", activation="elu", **o),
    "inverse spline": lambda **o: InverseAutoregressive(DIM, (8,), kind="rational_quadratic", **o),
    "maf": lambda **o: MAF(DIM, 3, (8,), **o),
    "iaf": lambda **o: IAF(DIM, 3, (8,), order="random", **o),
    "autoregressive nsf": lambda **o: AutoregressiveNSF(DIM, 2, (8,), **o),
}


def made(name, **options):
    torch.manual_seed(0)
    return shaken(KINDS[name](**F64, **options))


@pytest.mark.parametrize("name", KINDS)
def test_log_det_is_that_of_the_jacobian_and_inverse_returns(name):
    layer, z = made(name), rows(torch.float64)
    x, log_det = layer(z)
    for i in range(len(z)):
        jacobian = torch.autograd.functional.jacobian(lambda t: layer(t[None])[0][0], z[i])
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian)[1])
    back, back_log_det = layer.inverse(x)
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back_log_det, -log_det, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [n for n in KINDS if n not in ("masked, no hidden layer", "masked, random masks")])
def test_context_moves_every_dimension_and_both_directions_agree(name):
    """Also the first dimension, whose parameters depend on the context alone."""
    layer, z = made(name, context_features=CONTEXT), rows(torch.float64)
    context = torch.randn(5, CONTEXT, dtype=torch.float64, requires_grad=True)
    x, log_det = layer(z, context)
    back, back_log_det = layer.inverse(x, context)
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back_log_det, -log_det, rtol=1e-8, atol=1e-8)
    for i in range(DIM):
        (gradient,) = torch.autograd.grad(x[:, i].sum(), context, retain_graph=True)
        assert gradient.any(), i
    for method in (layer, layer.inverse):
        with pytest.raises(ValueError, match="context: got None"):
            method(z)
        with pytest.raises(ValueError, match="context: got shape"):
            method(z, context[:, :2])


@pytest.mark.parametrize("order", ["natural", "reverse", [2, 0, 3, 1]])
@pytest.mark.parametrize("kind", [MaskedAutoregressive, InverseAutoregressive])
def test_a_dimension_depends_on_those_before_it(kind, order):
    places = {"natural": [0, 1, 2, 3], "reverse": [3, 2, 1, 0]}.get(order if isinstance(order, str) else "", order)
    layer = shaken(kind(DIM, (16,), order=order, activation="tanh", **F64))
    place = torch.tensor(places)
    allowed = place[:, None] > place
    for method in (layer, layer.inverse):
        jacobian = torch.func.jacrev(lambda t, f=method: f(t)[0])(torch.randn(1, DIM, **F64))[0, :, 0]
        assert (jacobian[allowed] != 0).all()
        assert not jacobian[~allowed & ~torch.eye(DIM, dtype=torch.bool)].any()
        assert (jacobian.diagonal() > 0).all()


@pytest.mark.parametrize("name", KINDS)
def test_starts_as_the_identity(name):
    torch.manual_seed(0)
    layer, z = KINDS[name](**F64), 0.5 * rows(torch.float64)
    if name == "masked, blocks":
        pytest.skip("its scale map is not 1 at 0")
    for method in (layer, layer.inverse):
        out, log_det = method(z)
        torch.testing.assert_close(out, z, rtol=1e-9, atol=1e-9)
        assert log_det.abs().max() < 1e-9


@pytest.mark.parametrize("name", ["masked", "masked spline", "inverse", "maf"])
def test_gradients_reach_every_parameter_in_both_directions(name):
    layer, z = made(name, context_features=2), rows(torch.float64)
    context = torch.randn(5, 2, dtype=torch.float64)
    for method in (layer, layer.inverse):
        layer.zero_grad()
        x, log_det = method(z, context)
        (x.square().sum() + log_det.sum()).backward()
        for parameter_name, parameter in layer.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.any(), parameter_name


def test_gradients_of_both_directions_agree():
    """By the inverse function theorem, computed by other kernels: x = f(z), and z = f^-1(x)."""
    layer, z = made("masked"), rows(torch.float64)
    x = layer(z)[0].detach()
    down = torch.func.jacrev(lambda t: layer.inverse(t)[0].sum(0))(x).transpose(0, 1)
    up = torch.func.jacrev(lambda t: layer(t)[0].sum(0))(z).transpose(0, 1)
    eye = torch.eye(DIM, dtype=torch.float64).expand(5, DIM, DIM)
    torch.testing.assert_close(up @ down, eye, rtol=1e-9, atol=1e-9)
    parameters = list(layer.parameters())
    through_x = torch.autograd.grad(layer(z)[0].square().sum() / 2, parameters)
    # d f(z; p) = -f'(z) d f^-1(x; p)
    pulled = torch.einsum("nj,njk->nk", x, up)
    through_z = torch.autograd.grad(layer.inverse(x)[0], parameters, -pulled)
    for a, b in zip(through_x, through_z, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_density_integrates_to_one():
    torch.manual_seed(0)
    grid = torch.linspace(-9, 9, 601, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    for flow in (MAF(2, 2, (8,), **F64), IAF(2, 2, (8,), **F64), AutoregressiveNSF(2, 2, (8,), **F64)):
        shaken(flow, std=0.2)
        with torch.no_grad():
            total = flow.log_prob(points).exp().sum() * (grid[1] - grid[0]) ** 2
        assert abs(float(total) - 1) < 2e-3


def test_sample_and_log_prob_agree_with_log_prob():
    for name in ("maf", "iaf", "autoregressive nsf"):
        flow = made(name)
        x, log_p = flow.sample_and_log_prob(20)
        torch.testing.assert_close(log_p, flow.log_prob(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("way", ["load", "copy_", "set"])
def test_masks_follow_the_degrees_in_use(way):
    donor = shaken(MaskedAutoregressive(DIM, (8,), order=[2, 0, 3, 1], **F64), seed=1)
    layer, x = shaken(MaskedAutoregressive(DIM, (8,), **F64)), rows(torch.float64)
    layer(x), layer.inverse(x)
    if way == "load":
        layer.load_state_dict(donor.state_dict())
    else:
        for a, b in zip(layer.parameters(), donor.parameters(), strict=True):
            a.data.copy_(b)
        if way == "copy_":
            layer.conditioner.degrees.copy_(donor.conditioner.degrees)
        else:
            layer.conditioner.degrees = donor.conditioner.degrees.clone()
    for method in BOTH:
        for a, b in zip(getattr(layer, method)(x), getattr(donor, method)(x), strict=True):
            assert torch.equal(a, b)
    assert "conditioner.mask_0" not in layer.state_dict()
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))


BAD = {
    "order": (lambda: MADE(3, order=[0, 0, 2]), ValueError, r"order: got \[0, 0, 2\], want a permutation of 0 to 2"),
    "order's name": (
        lambda: MADE(3, order="sorted"), ValueError,
        "order: got 'sorted', want 'natural', 'reverse', 'random' or a list of integers",
    ),
    "hidden": (lambda: MADE(3, (4, 0)), ValueError, r"hidden\[1\]: got 0"),
    "activation": (lambda: MADE(3, activation="swish"), ValueError, "activation: got 'swish', want one of 'relu'"),
    "blocks": (
        lambda: MADE(3, (4, 4), residual=True), ValueError,
        r"hidden: got \[4, 4\], want an odd number of equal sizes for residual blocks",
    ),
    "random blocks": (lambda: MADE(3, (4,), residual=True, random_masks=True), ValueError, "random_masks: got True"),
    "context alone": (lambda: MADE(3, (), context_features=2), ValueError, "hidden: got no layer"),
    "kind": (lambda: MaskedAutoregressive(3, kind="cubic"), ValueError, "kind: got 'cubic', want one of 'affine'"),
    "bins": (lambda: MaskedAutoregressive(3, n_bins=1), ValueError, "n_bins: got 1"),
    "map": (lambda: MaskedAutoregressive(3, scale_map="log").inverse(torch.zeros(2, 3)), ValueError, "scale_map: got"),
    "width": (lambda: MaskedAutoregressive(3)(torch.zeros(2, 4)), ValueError, "z: got shape"),
    "orders": (lambda: MAF(3, order="sorted"), ValueError, "order: got 'sorted', want 'alternating' or 'random'"),
    "option": (lambda: MAF(3, colour=1), TypeError, "colour"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    build, error, text = BAD[case]
    with pytest.raises(error, match=text):
        build()


def test_degrees_that_are_no_permutation_are_refused_and_nothing_has_changed():
    net, other, x = MADE(3, (4,), zero_init=False), MADE(3, (4,)), torch.randn(2, 3)
    want, state = net(x), other.state_dict()
    state["degrees"] = torch.tensor([1, 1, 2, 1, 2, 1, 2])
    with pytest.raises(RuntimeError, match=r"got \[1, 1, 2\] for the inputs, want a permutation of 1 to 3"):
        net.load_state_dict(state)
    assert torch.equal(net(x), want)
    net.degrees[0] = 7
    with pytest.raises(ValueError, match="degrees: got"):
        net(x)


# -- against the libraries that run the network once for each dimension


def load(net, layers):
    for own, other in zip(net.linears, layers, strict=True):
        own.weight.data.copy_(other.weight)
        own.bias.data.copy_(other.bias)


def scale_first(t, dim):
    """Rows [scale, shift] of each dimension as [shift, scale]."""
    return t.unflatten(0, (dim, 2)).flip(1).flatten(0, 1)


@pytest.mark.parametrize("residual", [False, True])
def test_nflows_affine(residual):
    autoregressive = pytest.importorskip("nflows.transforms.autoregressive")
    torch.manual_seed(0)
    peer = autoregressive.MaskedAffineAutoregressiveTransform(
        5, 12, num_blocks=2, use_residual_blocks=residual
    ).double()
    own = MaskedAutoregressive(
        5,
        (12,) * (5 if residual else 3),
        residual=residual,
        scale_map="softplus",
        scale_options={"min_scale": 1e-3},
        **F64,
    )
    net = peer.autoregressive_net
    blocks = [m for b in net.blocks for m in (b.linear_layers if residual else [b.linear])]
    load(own.conditioner, [net.initial_layer, *blocks, net.final_layer])
    last = own.conditioner.linears[-1]
    last.weight.data = scale_first(last.weight.data, 5)
    last.bias.data = scale_first(last.bias.data, 5)
    x = torch.randn(20, 5, dtype=torch.float64)
    for ours, theirs in ((own.inverse(x), peer(x)), (own.forward(x), peer.inverse(x))):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_nflows_spline():
    autoregressive = pytest.importorskip("nflows.transforms.autoregressive")
    torch.manual_seed(0)
    peer = autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        5, 12, num_bins=4, tails="linear", tail_bound=2.0
    ).double()
    own = MaskedAutoregressive(5, (12,) * 5, residual=True, kind="rational_quadratic", n_bins=4, bound=2.0, **F64)
    net = peer.autoregressive_net
    load(own.conditioner, [net.initial_layer, *(m for b in net.blocks for m in b.linear_layers), net.final_layer])
    x = 2 * torch.randn(20, 5, dtype=torch.float64)
    for ours, theirs in ((own.inverse(x), peer(x)), (own.forward(x), peer.inverse(x))):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_zuko_maf():
    """A whole flow with zuko's weights: the same densities, and samples of the same noise."""
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    peer = zuko.flows.MAF(5, transforms=3, hidden_features=(16, 12)).double()
    own = MAF(5, 3, (16, 12), **F64)
    # zuko's list begins at the data
    for layer, transform in zip(reversed(own.transforms), peer.transform.transforms, strict=True):
        masked = [m for m in transform.hyper if isinstance(m, nn.Linear)]
        places = transform.order.tolist()
        degrees = [places]
        for m in masked[:-1]:
            before = torch.tensor(degrees[-1])
            degrees.append([int(before[row].max()) for row in m.mask])
        load(layer.conditioner, masked)
        layer.conditioner.degrees.copy_(torch.tensor([d + 1 for part in degrees for d in part]))
    x = torch.randn(30, 5, dtype=torch.float64)
    torch.testing.assert_close(own.log_prob(x), peer().log_prob(x), rtol=1e-9, atol=1e-9)
    z = torch.randn(30, 5, dtype=torch.float64)
    torch.testing.assert_close(own.forward(z)[0], peer().transform.inv(z), rtol=1e-9, atol=1e-9)


def test_sampling_computes_each_unit_once(monkeypatch):
    """The direction that others loop over calls the op, once a layer."""
    calls = []
    op = ops.masked_autoregressive_inverse
    monkeypatch.setattr(ops, "masked_autoregressive_inverse", lambda *a, **o: calls.append(1) or op(*a, **o))
    flow = MAF(DIM, 3, (8,))
    flow.sample(4)
    assert len(calls) == 3
    flow.log_prob(torch.zeros(2, DIM))
    assert len(calls) == 3
