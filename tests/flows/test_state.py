"""The state of flows: masks and orders that are loaded or changed, options, base distributions, bounds."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from genfast.flows import (
    MLP,
    AffineCoupling,
    Coupling,
    Flow,
    Permutation,
    Planar,
    SplineCoupling,
    StandardNormal,
    TorchDistribution,
    alternating_mask,
    half_mask,
)
from tests.flows.test_flows import shaken


def affine(mask, seed=0):
    torch.manual_seed(seed)
    return shaken(AffineCoupling(mask, hidden=(5,)), seed=seed)


MASKS = [alternating_mask(4), alternating_mask(4, odd=False), half_mask(4), half_mask(4, last=False)]


# -- masks and orders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["load", "assign", "copy_", "set", "functional_call", "parent", "inference"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_layer_computes_with_the_mask_it_has(before, after, way):
    donor, layer, z = affine(MASKS[after], seed=1), affine(MASKS[before]), torch.randn(3, 4)
    layer(z)
    want = donor(z)
    state = donor.state_dict()
    if way == "functional_call":
        own = layer(z)
        got = torch.func.functional_call(layer, {k: v for k, v in state.items() if "_extra_state" not in k}, (z,))
        torch.testing.assert_close(layer(z), own)
    else:
        if way == "inference":
            with torch.inference_mode():
                layer.load_state_dict(state)
        elif way == "parent":
            nn.ModuleDict({"a": layer}).load_state_dict({f"a.{k}": v for k, v in state.items()})
        elif way == "copy_":
            layer.conditioner.load_state_dict(donor.conditioner.state_dict())
            layer.mask.copy_(donor.mask)
        elif way == "set":
            layer.conditioner = donor.conditioner
            layer.mask = donor.mask.clone()
        else:
            layer.load_state_dict(state, assign=way == "assign")
        got = layer(z)
        assert torch.equal(layer.kept, donor.kept)
        assert torch.equal(layer.order, donor.order)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(copy.deepcopy(layer)(z), layer(z))


def test_a_mask_of_other_sizes_is_refused_and_nothing_has_changed():
    layer, z = affine(half_mask(4)), torch.randn(3, 4)
    want = layer(z)
    state = affine(half_mask(4), seed=2).state_dict()
    for mask in ([False, False, False, True], [True, True, True, False], [False, True, True]):
        state["mask"] = torch.tensor(mask)
        n = sum(mask)
        with pytest.raises(RuntimeError, match=rf"mask: got {n} moved of {len(mask)} dimensions, want 2 of 4 for this"):
            layer.load_state_dict(state)
        torch.testing.assert_close(layer(z), want, rtol=0, atol=0)
    flow = Flow(StandardNormal(4), [Planar(4), affine(half_mask(4))])
    before = copy.deepcopy(flow.state_dict())
    other = Flow(StandardNormal(4), [Planar(4), affine(half_mask(4), seed=3)]).state_dict()
    other["transforms.1.mask"] = torch.tensor([True, False, False, False])
    with pytest.raises(RuntimeError, match=r"transforms\.1\.mask: got 1 moved of 4"):
        flow.load_state_dict(other)
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())
    layer.mask.copy_(torch.tensor([False, False, False, True]))
    with pytest.raises(ValueError, match="mask: got 1 moved of 4 dimensions, want 2 of 4"):
        layer(z)


def test_an_order_that_is_none_is_refused():
    layer = Permutation([1, 2, 0])
    for wrong in ([0, 0, 1], [1, 2, 3]):
        with pytest.raises(RuntimeError, match=r"permutation: got .* want a permutation of 0 to 2"):
            layer.load_state_dict({**layer.state_dict(), "permutation": torch.tensor(wrong)})
    other = Permutation([2, 0, 1])
    layer.load_state_dict({**other.state_dict(), "inverse_permutation": torch.tensor([0, 1, 2])})
    z = torch.randn(2, 3)
    assert torch.equal(layer.inverse(layer(z)[0])[0], z), "the inverse is derived, not believed"
    layer.permutation.copy_(torch.tensor([0, 2, 1]))
    assert torch.equal(layer.inverse(layer(z)[0])[0], z)
    with torch.device("meta"):
        deferred = Permutation("random", 5)
    with torch.device("cpu"):
        assert sorted(deferred.to_empty(device="cpu").permutation.tolist()) == list(range(5))


def test_to_empty_leaves_the_mask():
    layer = affine(alternating_mask(4))
    layer.to_empty(device="cpu")
    assert torch.equal(layer.mask, alternating_mask(4))
    assert layer.kept.tolist() == [0, 2]
    layer.reset_parameters()
    z = torch.randn(3, 4)
    torch.testing.assert_close(layer(z)[0], z)


def test_a_mask_without_values_is_refused():
    with pytest.raises(ValueError, match="mask: got a Tensor on meta without values, want a list of bools"):
        AffineCoupling(half_mask(4).to("meta"))
    with torch.device("meta"):
        assert half_mask(4).tolist() == [False, False, True, True]


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_state_of_a_layer_with_other_options_is_refused_with_both():
    state = SplineCoupling(half_mask(2), bound=5.0).state_dict()
    message = r"SplineCoupling: the state dict is that of a module with bound=5\.0, this one has bound=3\.0"
    with pytest.raises(RuntimeError, match=message):
        SplineCoupling(half_mask(2)).load_state_dict(state)
    flow = Flow(StandardNormal(2), [AffineCoupling(half_mask(2), scale_map="exp")])
    with pytest.raises(RuntimeError, match=r"transforms\.0: .* scale_map='exp', this one has scale_map='tanh'"):
        Flow(StandardNormal(2), [AffineCoupling(half_mask(2))]).load_state_dict(flow.state_dict())
    with pytest.raises(RuntimeError, match="activation='Tanh', this one has activation='ReLU'"):
        MLP(1, (3,), 2).load_state_dict(MLP(1, (3,), 2, activation=nn.Tanh).state_dict())
    with pytest.raises(RuntimeError, match="dim=3, this one has dim=2"):
        StandardNormal(2).load_state_dict(StandardNormal(3).state_dict())


def test_a_state_dict_without_options_is_loaded():
    """That of an earlier version, or of a tool that keeps parameters and buffers alone."""
    flow = Flow(StandardNormal(2), [affine(half_mask(2), seed=1), Permutation("reverse", 2)])
    state = {k: v for k, v in flow.state_dict().items() if not k.endswith("_extra_state")}
    other = Flow(StandardNormal(2), [affine(half_mask(2)), Permutation("reverse", 2)])
    other.load_state_dict(state)
    x = torch.randn(3, 2)
    torch.testing.assert_close(other.log_prob(x), flow.log_prob(x))
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        other.load_state_dict({})
    damaged = {**flow.state_dict(), "base._extra_state": torch.tensor([1.0, 2.0])}
    with pytest.raises(RuntimeError, match="base: the state dict's _extra_state is damaged"):
        other.load_state_dict(damaged)


# -- base distributions ------------------------------------------------------------------------------------------------


def diagonal(scale=None):
    return Independent(Normal(torch.tensor([0.0, 1.0]), torch.ones(2) if scale is None else scale), 1)


def test_a_distribution_follows_to_and_is_saved():
    flow = Flow(diagonal(torch.tensor([1.0, 2.0])), [Planar(2)])
    assert isinstance(flow.base, TorchDistribution)
    x = torch.randn(5, 2)
    want = flow.log_prob(x)
    other = Flow(diagonal(), [Planar(2)])
    other.load_state_dict(flow.state_dict())
    torch.testing.assert_close(other.log_prob(x), want)
    flow.double()
    assert flow.sample(3).dtype == torch.float64
    assert flow.log_prob(x.double()).dtype == torch.float64
    torch.testing.assert_close(flow.log_prob(x.double()).float(), want)
    assert flow.to("meta").sample(3).is_meta


def test_a_distribution_that_requires_gradients_is_trained():
    scale = nn.Parameter(torch.tensor(2.0))
    flow = Flow(diagonal(scale), [])
    assert [n for n, _ in flow.named_parameters()] == ["base.base_dist_scale"]
    assert flow.get_parameter("base.base_dist_scale") is scale
    x = torch.randn(200, 2) + torch.tensor([0.0, 1.0])
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        flow.forward_kl(x).backward()
        optimizer.step()
    assert scale.item() == pytest.approx(1.0, abs=0.15)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.05)
    target = Independent(Normal(torch.tensor([0.0, 1.0]), 3 * torch.ones(2)), 1)
    for _ in range(200):  # the reverse KL divergence has its gradient through the samples too
        optimizer.zero_grad()
        flow.reverse_kl(target.log_prob, 500).backward()
        optimizer.step()
    assert scale.item() == pytest.approx(3.0, abs=0.2)
    assert copy.deepcopy(flow).get_parameter("base.base_dist_scale") is not scale


@pytest.mark.parametrize(
    "distribution",
    [
        MultivariateNormal(torch.zeros(2), covariance_matrix=torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
        MixtureSameFamily(
            Categorical(torch.tensor([0.3, 0.7])), Independent(Normal(torch.randn(2, 2), torch.ones(2, 2)), 1)
        ),
        TransformedDistribution(diagonal(), [AffineTransform(torch.tensor([1.0, 2.0]), torch.tensor(2.0))]),
    ],
    ids=lambda d: type(d).__name__,
)
def test_composed_distributions(distribution):
    base = TorchDistribution(distribution)
    z = torch.randn(5, 2)
    want = distribution.log_prob(z)
    torch.testing.assert_close(base.log_prob(z), want)
    torch.manual_seed(0)
    sample = base.sample(4)
    torch.manual_seed(0)
    torch.testing.assert_close(sample, distribution.sample((4,)))
    torch.testing.assert_close(base.double().log_prob(z.double()).float(), want, rtol=1e-4, atol=1e-4)
    assert base.sample(2).dtype == torch.float64
    other = TorchDistribution(distribution)
    with torch.no_grad():
        for b in other.buffers():
            b.mul_(1.1)
    other.load_state_dict(base.state_dict())
    torch.testing.assert_close(other.log_prob(z), want, rtol=1e-4, atol=1e-4)
    other.to_empty(device="cpu").reset_parameters()
    torch.testing.assert_close(other.log_prob(z), want)


def test_a_distribution_that_cannot_be_trained_is_refused():
    log_scale = nn.Parameter(torch.zeros(2))
    with pytest.raises(TypeError, match="base: base_dist_scale of Independent is computed from tensors that require"):
        Flow(diagonal(log_scale.exp()), [])
    flow = Flow(
        MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])),
                          Independent(Normal(nn.Parameter(torch.randn(2, 2)), torch.ones(2, 2)), 1)), [],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"base: the gradient of the reverse KL divergence .* no rsample"):
        flow.reverse_kl(lambda x: -x.square().sum(-1), 10)
    flow.requires_grad_(False)
    flow.reverse_kl(lambda x: -x.square().sum(-1), 10)
    with pytest.raises(TypeError, match="base: got Base, want a module or a torch"):
        Flow(type("Base", (), {"sample": len, "log_prob": len})(), [])


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_standard_normal_sums_in_float32(dtype):
    z = torch.randn(50, 3000).to(dtype)
    got = StandardNormal(3000).log_prob(z)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, StandardNormal(3000).log_prob(z.double()).float())
    with pytest.raises(ValueError, match=r"z: got shape \[50, 3000\], want \[\.\.\., 2\]"):
        StandardNormal(2).log_prob(z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_log_determinants_of_half_modules_are_float32(dtype):
    flow = Flow(StandardNormal(4), [Permutation("reverse", 4), affine(half_mask(4)), Planar(4)]).to(dtype)
    x = torch.randn(3, 4).to(dtype)
    for layer in (flow, *flow.transforms, Flow(StandardNormal(4), [])):
        for method in (layer.forward, layer.inverse):
            out, log_det = method(x)
            assert out.dtype == dtype
            assert log_det.dtype == torch.float32
    assert flow.log_prob(x).dtype == torch.float32
    assert flow.sample_and_log_prob(3)[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("bound", "error", "message"),
    [
        (1e-20, ValueError, "bound: got 1e-20, want a number from 1e-09 to 1e\\+09"),
        (1e20, ValueError, "bound: got 1e\\+20, want a number from"),
        (float("nan"), ValueError, "bound: got nan"),
        (torch.tensor(2.0, requires_grad=True), TypeError, "bound: got a tensor that requires a gradient"),
        (torch.ones(2), TypeError, r"bound: got torch\.float32 of shape \[2\], want a number"),
        ("3", TypeError, "bound: got str, want a number"),
    ],
)
def test_bounds_that_cannot_be(bound, error, message):
    with pytest.raises(error, match=message):
        SplineCoupling(half_mask(2), bound=bound)


@pytest.mark.parametrize("bound", [1e-9, 1e-3, 1e3, 1e9, torch.tensor(2.0)])
def test_bounds_that_can_be(kernels, bound):
    layer = shaken(SplineCoupling(half_mask(4), bound=bound, hidden=(8,))).to(kernels.device)
    bound = float(bound)
    with torch.no_grad():
        layer.conditioner[0].weight.div_(bound)  # the network sees numbers of size 1
    z = (bound * torch.linspace(-1.2, 1.2, 40).reshape(10, 4)).to(kernels.device).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, log_det = layer(z)
        back, _ = layer.inverse(x)
    grads = torch.autograd.grad((x / bound).sum() + log_det.sum(), [z, *layer.parameters()])
    for t in (x, log_det, back, *grads):
        assert t.isfinite().all()
    torch.testing.assert_close(back / bound, z / bound, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("minimum", "value"), [("min_bin_width", 0.2), ("min_bin_height", -0.1), ("min_derivative", 1.0)]
)
def test_minima_are_checked_when_the_layer_is_made(minimum, value):
    with pytest.raises(ValueError, match=f"{minimum}: got {value}, want a number from 0 to"):
        SplineCoupling(half_mask(2), **{minimum: value})


@pytest.mark.parametrize(
    "module", [Planar(4), AffineCoupling(half_mask(4)), SplineCoupling(half_mask(4)), Flow(StandardNormal(4), [])]
)
def test_what_are_no_rows_of_real_numbers_is_refused(module):
    for method, name in ((module.forward, "z"), (module.inverse, "x")):
        with pytest.raises(TypeError, match=rf"{name}: got torch\.complex64"):
            method(torch.zeros(2, 4, dtype=torch.complex64))
        with pytest.raises(TypeError, match=rf"{name}: got list, want a tensor"):
            method([[0.0] * 4])
        with pytest.raises(ValueError, match=rf"{name}: got "):
            method(torch.tensor(1.0))


# -- the warning of another scale --------------------------------------------------------------------------------------


def pixel_flow(n=4):
    return Flow(StandardNormal(4), [SplineCoupling(alternating_mask(4, odd=i % 2 == 0), hidden=(8,)) for i in range(n)])


def test_data_far_outside_the_bound_warns_once_and_names_the_scale():
    x = torch.linspace(0, 255, 100)[:, None].expand(-1, 4)
    flow = pixel_flow()
    message = (
        r"^x reaches 255, and 98% of it lies outside \[-3, 3\], where the spline is the identity: "
        r"standardise the data, or give a larger bound=$"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        flow.log_prob(x)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.log_prob(x)
        pixel_flow().log_prob((x - x.mean()) / x.std())
        pixel_flow().sample(100)
        pixel_flow().log_prob(x[:0])
    with pytest.warns(UserWarning, match="reaches 255"):
        flow.transforms[0].__class__(half_mask(4)).inverse(x)


def test_later_calls_do_not_look_at_the_data():
    flow, x = pixel_flow(), torch.randn(10, 4)
    flow.log_prob(x)
    with torch.profiler.profile() as profile:
        flow.log_prob(x)
    names = {e.key for e in profile.key_averages()}
    assert not names & {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}


def test_every_coupling_layer_has_its_options_in_the_state():
    for kind in Coupling.__subclasses__():
        assert "_extra_state" in kind(half_mask(2)).state_dict()
