import functools
import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import genfast
from genfast import ops
from genfast.ops._masked_plan import plan
from genfast.reference import masked_autoregressive as reference
from genfast.reference.coupling import SCALE_MAPS
from tests.harness import BadInput, OpSpec, OpTests, Small, cotangents_of, relative_error, vjp

# Names of networks, with the degrees of inputs and hidden units.
NETWORKS = {
    "one layer": ((1, 2, 3), (1, 2, 0)),
    "no hidden layer": ((2, 1, 3),),
    "one number": ((1,), (0, 0, 0)),
    "only context": ((5, 5), (4, 4)),
    "any order": ((3, 1, 4, 2, 4), (2, 3, 1, 3, 2, 9, 1), (3, 1, 2)),
    "fewer units than numbers": (tuple(range(1, 18)), (1, 7), (16, 2, 8)),
    "wide": (tuple(range(40, 0, -1)), tuple(i % 39 + 1 for i in range(90)), tuple(i % 39 + 1 for i in range(80))),
    "block": ((2, 1, 3, 4), (1, 2, 3, 1, 2), (3, 1, 2), (1, 2, 3, 2, 2)),
    "blocks": (tuple(range(1, 12)), *[tuple(i % 10 + 1 for i in range(23))] * 5),
}


def tensors_of(network, n, generator, n_params=2, context=True):
    degrees = NETWORKS[network]
    widths = [*map(len, degrees), len(degrees[0]) * n_params]

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = torch.cat([randn(b * a) / a**0.5 for a, b in itertools.pairwise(widths)])
    tensors = {"z": randn(n, widths[0]), "weights": weights, "biases": 0.3 * randn(sum(widths[1:]))}
    if context and len(degrees) > 1:
        tensors["context"] = 0.3 * randn(n, sum(widths[1:-1]))
    return tensors


def network_of(tensors, spline):
    """The network that these sizes belong to: the tests of the harness hand on tensors alone."""
    for name, degrees in NETWORKS.items():
        widths = [*map(len, degrees), len(degrees[0]) * (3 * spline - 1 if spline else 2)]
        if widths[0] == tensors["z"].shape[-1] and sum(widths[1:]) == tensors["biases"].numel():
            return name
    return "one layer"  # for what must be refused


def function(*, spline=0, **arguments):
    """The op, with the degrees of the network that the tensors belong to."""
    known = all(torch.is_tensor(arguments.get(k)) and arguments[k].dim() for k in ("z", "biases"))
    one = torch.is_tensor(arguments.get("z")) and arguments["z"].shape[-1:] == (1,)
    name = network_of(arguments, spline) if known else "one number" if one else "one layer"
    given: dict[str, Any] = {"degrees": NETWORKS[name], "residual": name.startswith("block"), **arguments}
    if spline:
        given["kind"] = "rational_quadratic"
    return ops.masked_autoregressive_inverse(**given)


def plain(**arguments):
    """The same in plain PyTorch: a pass of the network for each degree."""
    with genfast.backend("reference"):
        return function(**arguments)


def density(x, options, tensors, spline=0):
    """z of x: one pass of the network, and the map's other direction."""
    name = network_of({**tensors, "z": x}, spline)
    degrees = NETWORKS[name]
    n_params = 3 * spline - 1 if spline else 2
    network = reference.Network(
        degrees, n_params, options.get("layout", "interleaved"), name.startswith("block"),
        (("context" in tensors),) * (len(degrees) - 1),
    )  # fmt: skip
    layers = network.layers(tensors["weights"], tensors["biases"])
    hidden = network.hidden(x, layers, tensors.get("context"), options.get("activation", "relu"))
    params = F.linear(hidden, *layers[-1])
    params = params[..., [row for i in range(len(degrees[0])) for row in network.outputs(i)]].unflatten(
        -1, (-1, n_params)
    )
    inverse = not options.get("map_inverse", True)
    if not spline:
        names = ("scale_map", "clamp", "offset", "min_scale", "gain")
        given = {k: options[k] for k in names if k in options}
        return ops.affine_coupling(
            x, params[..., 0].contiguous(), params[..., 1].contiguous(), inverse=inverse, **given
        )[0]
    logits, slopes = params.split([2 * spline, spline - 1], -1)
    w, h = (logits * options.get("logit_scale", 1.0)).chunk(2, -1)
    return ops.rational_quadratic_spline(x, w, h, slopes, bound=options.get("bound", 3.0), inverse=inverse)[0]


def undo(tensors, options, outputs, spline=0):
    return density(outputs[0], options, tensors, spline)


def make(case, generator):
    name, n = case
    return tensors_of(name, n, generator)


def make_spline(case, generator):
    name, n = case
    return tensors_of(name, n, generator, 3 * BINS - 1)


BINS = 3
CASES = [
    ("one layer", 3), ("no hidden layer", 5), ("one number", 1), ("only context", 3), ("block", 70),
    ("any order", 67), ("fewer units than numbers", 33), ("wide", 130), ("blocks", 65),
]  # fmt: skip


def bad(change, error, text):
    return BadInput(lambda t: change, error, text)


BAD = {
    "scalar": BadInput(lambda t: {"z": t["z"][0, 0]}, ValueError, r"z: got a scalar, want rows \[..., D\]"),
    "too few inputs": bad(
        {"degrees": ((1, 2), (1, 2, 0))}, ValueError,
        r"degrees\[0\]: got 2 numbers, want 3, one for each column of z",
    ),
    "one sequence": bad(
        {"degrees": (1, 2, 3)}, TypeError,
        r"degrees: want a sequence of sequences of ints, of the inputs and of each hidden layer",
    ),
    "no int": bad({"degrees": ((1, 2, 3), (1, 2.5))}, TypeError, r"degrees\[1\]: got 2.5 among them, want ints"),
    "no units": bad({"degrees": ((1, 2, 3), ())}, ValueError, r"degrees\[1\]: got no units, want at least 1"),
    "weights of another size": bad(
        {"degrees": ((1, 2, 3), (1, 1)), "biases": torch.zeros(8), "context": None}, ValueError,
        r"weights: got shape \[27\], want \[18\], 2 x 3 \+ 6 x 2, or a list of tensors",
    ),
    "biases of another size": bad(
        {"biases": torch.zeros(8)}, ValueError,
        r"biases: got 5 for the outputs beside 3 for hidden units, want 6, 2 for each input",
    ),
    "biases for no spline": bad(
        {"kind": "rational_quadratic", "degrees": ((1, 2, 3), (1,))}, ValueError,
        r"biases: got 8 for the outputs beside 1 for hidden units, want 3 times 3 K - 1",
    ),
    "context of another width": bad(
        {"context": torch.zeros(3, 2)}, ValueError,
        r"context: got shape \[3, 2\], want \[3, 3\], the units of the layers it adds to",
    ),
    "no such layer": bad(
        {"context_layers": [1]}, ValueError, r"context_layers: got \[1\], want increasing numbers below 1"
    ),
    "activation": bad(
        {"activation": "swish"}, ValueError,
        r"activation: got 'swish', want one of 'relu', 'tanh', 'elu', 'gelu', 'gelu_tanh', 'silu'",
    ),
    "kind": bad({"kind": "cubic"}, ValueError, r"kind: got 'cubic', want one of 'affine', 'rational_quadratic'"),
    "layout": bad(
        {"layout": "mixed"}, ValueError,
        r"layout: got 'mixed', want one of 'interleaved', 'interleaved_scale_shift', 'chunked_shift_scale', "
        r"'chunked_scale_shift' for kind 'affine'",
    ),
    "map": bad({"scale_map": "log"}, ValueError, r"scale_map: got 'log', want one of .*"),
    "blocks of one layer": bad(
        {"residual": True, "degrees": ((1, 2, 3), (1, 2, 0), (2, 2))}, ValueError,
        r"residual: got 2 hidden layers, want 1 and two for each block",
    ),
    "blocks of two widths": bad(
        {"residual": True, "degrees": ((1, 2, 3), (1, 2, 0), (2, 2), (1, 2))}, ValueError,
        r"degrees\[3\]: got 2 units, want 3, those of the block's input",
    ),
    "blocks with falling degrees": bad(
        {"residual": True, "degrees": ((1, 2, 3), (1, 2, 0), (2, 2), (1, 1, 0))}, ValueError,
        r"degrees\[3\]: got less than degrees\[1\] for a unit, want no decrease over a block",
    ),
    "residual is a number": bad({"residual": 1}, TypeError, r"residual: got int, want a bool"),
}  # fmt: skip

HUGE = torch.tensor([[1e15, -1e15, 1e-30], [30.0, -0.0, -1e4]])
EXTREME = {
    "z": lambda: {**tensors_of("one layer", 2, torch.Generator().manual_seed(0)), "z": HUGE},
    "scales": lambda: {
        **tensors_of("one layer", 2, torch.Generator().manual_seed(0)),
        "biases": torch.tensor([1e4, -1e4, 0, 0, 200.0, 0, -200.0, 1e4, 0]),
    },
}  # fmt: skip


class TestAffine(OpTests):
    spec = OpSpec(
        name="masked_autoregressive_inverse", function=function, reference=plain, make=make, cases=CASES,
        rows=["z", "context"], extreme=EXTREME, bad=BAD, undo=undo,
        variants={
            "relu": {"scale_map": "tanh"},
            "silu forward": {
                "activation": "silu", "scale_map": "softplus", "min_scale": 1e-3, "map_inverse": False,
                "layout": "interleaved_scale_shift",
            },
        },
    )  # fmt: skip


class TestSpline(OpTests):
    spec = OpSpec(
        name="masked_autoregressive_inverse", function=functools.partial(function, spline=BINS),
        reference=functools.partial(plain, spline=BINS), make=make_spline,
        cases=[("one number", 3), ("one layer", 5), ("block", 67), ("any order", 33)], rows=["z", "context"],
        undo=functools.partial(undo, spline=BINS),
        extreme={"z": lambda: {**make_spline(("one layer", 2), torch.Generator().manual_seed(0)), "z": HUGE}},
        variants={
            "tanh": {"activation": "tanh"},
            "elu forward": {"activation": "elu", "map_inverse": False, "bound": 2.0, "logit_scale": 0.5},
        },
    )  # fmt: skip


# --- the direction in which all numbers are known


def transform(*, spline=0, **arguments):
    """The other op, by the name that it has for its rows."""
    z = arguments.pop("x")
    known = all(torch.is_tensor(t) and t.dim() for t in (z, arguments.get("biases")))
    name = network_of({**arguments, "z": z}, spline) if known else "one layer"
    given: dict[str, Any] = {"degrees": NETWORKS[name], "residual": name.startswith("block"), **arguments}
    if spline:
        given["kind"] = "rational_quadratic"
    return ops.masked_autoregressive_transform(z, **given)


def plain_transform(**arguments):
    with genfast.backend("reference"):
        return transform(**arguments)


def solve(tensors, options, outputs, spline=0):
    others = {k: v for k, v in tensors.items() if k != "x"}
    back = {**options, "map_inverse": not options.get("map_inverse", False)}
    return function(z=outputs[0], spline=spline, **others, **back)[0]


def renamed(make):
    return lambda *given: {("x" if k == "z" else k): v for k, v in make(*given).items()}


class TestTransform(OpTests):
    spec = OpSpec(
        name="masked_autoregressive_transform", function=transform, reference=plain_transform, make=renamed(make),
        cases=CASES, rows=["x", "context"], extreme={k: renamed(v) for k, v in EXTREME.items()}, undo=solve,
        variants={
            "relu": {"scale_map": "tanh"},
            "gelu inverse": {
                "activation": "gelu", "scale_map": "softplus", "min_scale": 1e-3, "map_inverse": True,
                "layout": "chunked_scale_shift",
            },
        },
        bad={
            "too few inputs": bad(
                {"degrees": ((1, 2), (1, 2, 0))}, ValueError,
                r"degrees\[0\]: got 2 numbers, want 3, one for each column of x",
            ),
            "activation": bad({"activation": "swish"}, ValueError, r"activation: got 'swish', want one of .*"),
            "option": bad({"colour": 1}, TypeError, r".*unexpected keyword argument 'colour'"),
        },
    )  # fmt: skip


class TestSplineTransform(OpTests):
    spec = OpSpec(
        name="masked_autoregressive_transform", function=functools.partial(transform, spline=BINS),
        reference=functools.partial(plain_transform, spline=BINS), make=renamed(make_spline),
        cases=[("one layer", 2), ("block", 67), ("any order", 33)], rows=["x", "context"],
        undo=functools.partial(solve, spline=BINS), variants={"tanh": {"activation": "tanh", "bound": 2.0}},
    )  # fmt: skip


def test_the_sums_are_kept_for_the_backward_alone(native):
    """Without a gradient nothing is kept, and a backward without kept sums computes them again."""
    tensors = renamed(make)(("blocks", 40), torch.Generator().manual_seed(0))
    kept = []

    def pack(t):
        kept.append(t)
        return t

    leaves = {k: v.requires_grad_() for k, v in tensors.items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = transform(**leaves)
    assert any(t is not None and t.dim() == 2 and t.shape[1] == 40 for t in kept)
    want = torch.autograd.grad(out, list(leaves.values()), cotangents_of(out))
    _, pull_back = torch.func.vjp(lambda t: transform(**t), {k: v.detach() for k, v in leaves.items()})
    got = pull_back(tuple(cotangents_of(out)))[0]
    for name, b in zip(leaves, want, strict=True):
        assert relative_error(got[name], b) <= 1e-12


def small(network, **options):
    """A small case of a network, and the options that say which it is."""
    spline, to = options.pop("spline", 0), options.pop("to", "z")

    def made():
        found = tensors_of(network, 35, torch.Generator().manual_seed(0), 3 * spline - 1 if spline else 2)
        return {(to if k == "z" else k): v for k, v in found.items()}

    return Small(
        made,
        [{"degrees": NETWORKS[network], "residual": network.startswith("block"), **options}],
    )


SMALL = {
    "masked_autoregressive_inverse any order": small("any order", activation="elu", scale_map="tanh"),
    "masked_autoregressive_inverse block": small("block", activation="gelu", map_inverse=False),
    "masked_autoregressive_inverse wide": small("wide", activation="tanh", scale_map="tanh"),
    "masked_autoregressive_transform blocks": small("block", to="x", activation="elu"),
    "masked_autoregressive_transform spline": small("any order", to="x", spline=3, kind="rational_quadratic"),
    "masked_autoregressive_inverse spline": small("block", spline=4, activation="silu", kind="rational_quadratic"),
}


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_activation(kernels, activation, dtype):
    exact = tensors_of("block", 50, torch.Generator().manual_seed(1))
    exact["weights"] *= 2
    exact = {k: v.to(dtype).double() for k, v in exact.items()}
    options = {"activation": activation, "scale_map": "tanh"}
    cotangents = cotangents_of(plain(**exact, **options))
    want, want_grads = vjp(plain, exact, options, cotangents)
    got, grads = vjp(function, {k: v.to(kernels.device, dtype) for k, v in exact.items()}, options, cotangents)
    limit = 1e-11 if dtype == torch.float64 else 5e-5
    for a, b in zip([*got, *grads.values()], [*want, *want_grads.values()], strict=True):
        assert relative_error(a, b) <= limit


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "elu"])
def test_activations_of_extreme_sums(kernels, activation):
    """Of sums far from 0, values and slopes are what they tend to, and not infinity times 0."""
    for size in (1e3, 1e12, 3e18):
        bias = torch.tensor([size, -size, 0.0, 0.0])
        tensors = {"z": torch.zeros(2, 1), "weights": torch.tensor([0.0, 0.0, 1e-18, 1e-18, 0.0, 0.0]), "biases": bias}
        tensors = {k: v.to(kernels.device) for k, v in tensors.items()}
        options = {"degrees": ((1,), (0, 0)), "activation": activation, "map_inverse": False}
        out, grads = vjp(ops.masked_autoregressive_inverse, tensors, options, [torch.ones(2, 1), torch.ones(2)])
        want, want_grads = vjp(
            plain, {k: v.cpu().double() for k, v in tensors.items()}, options, [torch.ones(2, 1), torch.ones(2)]
        )
        for a, b in zip([*out, *grads.values()], [*want, *want_grads.values()], strict=True):
            assert relative_error(a, b) <= 1e-6


@pytest.mark.parametrize("scale_map", SCALE_MAPS)
@pytest.mark.parametrize("inverse", [False, True])
def test_every_scale_map(kernels, scale_map, inverse):
    tensors = tensors_of("one layer", 35, torch.Generator().manual_seed(2))
    options = {"scale_map": scale_map, "map_inverse": inverse, "layout": "chunked_scale_shift"}
    cotangents = cotangents_of(plain(**tensors, **options))
    want, want_grads = vjp(plain, tensors, options, cotangents)
    got, grads = vjp(function, {k: v.to(kernels.device) for k, v in tensors.items()}, options, cotangents)
    for a, b in zip([*got, *grads.values()], [*want, *want_grads.values()], strict=True):
        assert relative_error(a, b) <= 1e-11


@pytest.mark.parametrize("layout", reference.LAYOUTS)
def test_layouts_are_rows_of_the_last_layer(native, layout):
    """Moving the outputs' rows from one layout to another changes nothing."""
    degrees = NETWORKS["any order"]
    tensors = tensors_of("any order", 9, torch.Generator().manual_seed(0))
    want = function(**tensors)
    rows = [0] * 10
    network = reference.Network(degrees, 2, layout, False, (True, True))
    for i in range(5):
        for q, row in enumerate(network.outputs(i)):
            rows[row] = 2 * i + q
    last = tensors["weights"][-30:].view(10, 3)[rows].flatten()
    moved = {
        **tensors, "weights": torch.cat([tensors["weights"][:-30], last]),
        "biases": torch.cat([tensors["biases"][:-10], tensors["biases"][-10:][rows]]),
    }  # fmt: skip
    for a, b in zip(function(**moved, layout=layout), want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("n", [1, 5000])
def test_few_and_many_samples(native, n):
    """A sum over more samples than are kept in cache is taken in parts."""
    tensors = tensors_of("block", n, torch.Generator().manual_seed(4))
    cotangents = cotangents_of(plain(**tensors))
    want, want_grads = vjp(plain, tensors, {}, cotangents)
    got, grads = vjp(function, tensors, {}, cotangents)
    for a, b in zip([*got, *grads.values()], [*want, *want_grads.values()], strict=True):
        assert relative_error(a, b) <= 1e-11


def test_more_units_than_shared_memory_holds(kernels):
    degrees = ((1, 2, 3), tuple(i % 3 for i in range(400)), tuple(i % 3 for i in range(400)))
    generator = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = {"z": randn(33, 3), "weights": 0.1 * randn(400 * 409), "biases": 0.1 * randn(806)}
    cotangents = [randn(33, 3), randn(33)]
    want, want_grads = vjp(plain, tensors, {"degrees": degrees}, cotangents)
    tensors = {k: v.to(kernels.device) for k, v in tensors.items()}
    got, grads = vjp(function, tensors, {"degrees": degrees}, cotangents)
    for a, b in zip([*got, *grads.values()], [*want, *want_grads.values()], strict=True):
        assert relative_error(a, b) <= 1e-11


@pytest.mark.parametrize("network", NETWORKS)
def test_each_weight_is_read_once(network):
    """What the kernels stream are the weights within the masks between units that matter, and these units' biases."""
    degrees = NETWORKS[network]
    described = reference.Network(degrees, 2, "interleaved", network.startswith("block"), (False,) * (len(degrees) - 1))
    top = max(degrees[0])
    matters = [torch.tensor([i == 0 or d < top for d in layer]) for i, layer in enumerate(degrees)]
    matters.append(torch.ones(2 * len(degrees[0]), dtype=torch.bool))
    masks = described.masks(torch.empty(0))
    count = sum((m & b[:, None] & a).sum() for m, (a, b) in zip(masks, itertools.pairwise(matters), strict=True))
    assert plan(described, False, torch.device("cpu")).packed == count + sum(m.sum() for m in matters[1:])


@pytest.mark.parametrize("network", ["any order", "block", "fewer units than numbers"])
def test_jacobian_is_triangular_in_the_degrees(native, network):
    tensors = tensors_of(network, 1, torch.Generator().manual_seed(0))
    jacobian = torch.func.jacrev(lambda z: function(**{**tensors, "z": z}, activation="tanh")[0])(tensors["z"])[0, :, 0]
    degree = torch.tensor(NETWORKS[network][0])
    allowed = (degree[:, None] > degree) | torch.eye(len(degree), dtype=torch.bool)
    assert not jacobian[~allowed].any()
    assert (jacobian[degree[:, None] > degree] != 0).any()
    assert (jacobian.diagonal() > 0).all()


def test_weights_outside_the_masks_are_not_read(kernels):
    degrees = NETWORKS["any order"]
    network = reference.Network(degrees, 2, "interleaved", False, (True, True))
    tensors = {
        k: v.to(kernels.device) for k, v in tensors_of("any order", 40, torch.Generator().manual_seed(0)).items()
    }
    there = torch.cat([m.flatten() for m in network.masks(tensors["weights"])])
    poisoned = {**tensors, "weights": torch.where(there, tensors["weights"], torch.nan)}
    want, want_grads = vjp(function, tensors, {}, cotangents_of(function(**tensors)))
    got, grads = vjp(function, poisoned, {}, cotangents_of(function(**tensors)))
    for a, b in zip([*got, *grads.values()], [*want, *want_grads.values()], strict=True):
        assert torch.equal(a, b)
    assert not grads["weights"][~there].any()
    # the first hidden layer's unit of degree 9 is seen by nothing
    assert not grads["weights"][:35].view(7, 5)[5].any()
    assert grads["biases"][5] == 0
    assert not grads["context"][:, 5].any()


@pytest.mark.parametrize("layers", [[0], [2], [0, 1, 2]], ids=str)
def test_lists_of_tensors_and_some_layers_with_context(native, layers):
    degrees = NETWORKS["block"]
    widths = [4, 5, 3, 5, 8]
    tensors = tensors_of("block", 6, torch.Generator().manual_seed(0))
    shapes = [(b, a) for a, b in itertools.pairwise(widths)]
    weights = [w.view(s) for w, s in zip(tensors["weights"].split([a * b for a, b in shapes]), shapes, strict=True)]
    biases = list(tensors["biases"].split(widths[1:]))
    every = tensors["context"].split(widths[1:-1], -1)
    some = [every[i] for i in layers]
    all_layers = torch.cat([c if i in layers else torch.zeros_like(c) for i, c in enumerate(every)], -1)
    want = function(**{**tensors, "context": all_layers})
    for context in (some, torch.cat(some, -1)):
        got = ops.masked_autoregressive_inverse(
            tensors["z"], weights, biases, context, degrees=degrees, residual=True, context_layers=layers
        )
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


LISTS = {
    "a layer too few": (
        {"weights": [torch.zeros(3, 2)]}, ValueError, r"weights: got 1 tensors, want 2, one a layer"
    ),
    "a mask of the wrong size": (
        {"weights": [torch.zeros(3, 3), torch.zeros(4, 3)]}, ValueError,
        r"weights\[0\]: got shape \[3, 3\], want \[3, 2\], as degrees say",
    ),
    "a bias too few": ({"biases": [torch.zeros(4)]}, ValueError, r"biases: got 1 tensors, want 2, one a layer"),
    "a bias of another dtype": (
        {"biases": [torch.zeros(3).double(), torch.zeros(4)]}, TypeError,
        r"biases\[0\]: got torch.float64, want torch.float32 like z",
    ),
    "a context too many": (
        {"context": [torch.zeros(5, 3)] * 2}, ValueError,
        r"context: got 2 tensors, want 1, one for each of context_layers",
    ),
    "a context of other rows": (
        {"context": [torch.zeros(4, 3)]}, ValueError, r"context\[0\]: got shape \[4, 3\], want \[5, 3\]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS)
def test_bad_lists(case):
    change, error, text = LISTS[case]
    good = {"weights": [torch.zeros(3, 2), torch.zeros(4, 3)], "biases": [torch.zeros(3), torch.zeros(4)]}
    with pytest.raises(error, match=f"^{text}$"):
        ops.masked_autoregressive_inverse(torch.zeros(5, 2), **{**good, **change}, degrees=[[1, 2], [1, 1, 0]])


# --- against the libraries that run the network once for each number


def linears(made):
    blocks = [layer for b in made.blocks for layer in (b.linear_layers if hasattr(b, "linear_layers") else [b.linear])]
    return [made.initial_layer, *blocks, made.final_layer]


def of_nflows(made, d):
    layers = linears(made)
    return {
        "weights": [layer.weight for layer in layers], "biases": [layer.bias for layer in layers],
        "degrees": [range(1, d + 1), *(layer.degrees.tolist() for layer in layers[:-1])],
    }  # fmt: skip


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("random_mask", [False, True])
@pytest.mark.parametrize("d", [1, 2, 9])
def test_nflows_affine(native, residual, random_mask, d):
    autoregressive = pytest.importorskip("nflows.transforms.autoregressive")
    if residual and random_mask:
        pytest.skip("nflows has no residual blocks with random masks")
    torch.manual_seed(0)
    peer = autoregressive.MaskedAffineAutoregressiveTransform(
        d, 24, num_blocks=2, use_residual_blocks=residual, random_mask=random_mask, activation=torch.tanh
    ).double()
    z = 2 * torch.randn(33, d, dtype=torch.float64)
    got = ops.masked_autoregressive_inverse(
        z, **of_nflows(peer.autoregressive_net, d), residual=residual, activation="tanh", scale_map="softplus",
        min_scale=1e-3, layout="interleaved_scale_shift",
    )  # fmt: skip
    for a, b in zip(got, peer.inverse(z), strict=True):
        assert relative_error(a, b) <= 1e-9


@pytest.mark.parametrize("residual", [False, True])
def test_nflows_spline(native, residual):
    autoregressive = pytest.importorskip("nflows.transforms.autoregressive")
    torch.manual_seed(0)
    peer = autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        5, 16, num_bins=6, tails="linear", tail_bound=2.0, use_residual_blocks=residual
    ).double()
    z = 2 * torch.randn(60, 5, dtype=torch.float64)
    got = ops.masked_autoregressive_inverse(
        z, **of_nflows(peer.autoregressive_net, 5), residual=residual, kind="rational_quadratic", bound=2.0
    )
    for a, b in zip(got, peer.inverse(z), strict=True):
        assert relative_error(a, b) <= 1e-8


@pytest.mark.parametrize("residual", [False, True])
def test_nflows_context(native, residual):
    """What its context layers give goes in as terms of the sums."""
    autoregressive = pytest.importorskip("nflows.transforms.autoregressive")
    torch.manual_seed(0)
    peer = autoregressive.MaskedAffineAutoregressiveTransform(
        4, 12, context_features=3, use_residual_blocks=residual
    ).double()
    made = peer.autoregressive_net
    z, context = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    terms = [F.relu(made.context_layer(context))]
    if residual:
        terms += [b.context_layer(context) for b in made.blocks]
    got = ops.masked_autoregressive_inverse(
        z, **of_nflows(made, 4), context=terms, context_layers=[0, 1, 3] if residual else [0], residual=residual,
        scale_map="softplus", min_scale=1e-3, layout="interleaved_scale_shift",
    )  # fmt: skip
    for a, b in zip(got, peer.inverse(z, context), strict=True):
        assert relative_error(a, b) <= 1e-9


@pytest.mark.parametrize("passes", [None, 2])
def test_zuko(native, passes):
    """Its MAF, in a random order, and with two passes, as in coupling: inputs that share a degree."""
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    order = torch.randperm(6)
    peer = zuko.flows.MaskedAutoregressiveTransform(6, passes=passes, order=order, hidden_features=(20, 14)).double()
    layers = [m for m in peer.hyper if hasattr(m, "mask")]
    degrees = [peer.order.tolist()]
    for layer in layers[:-1]:
        before = torch.tensor(degrees[-1])
        degrees.append([int(before[row].max()) for row in layer.mask])
    z = torch.randn(40, 6, dtype=torch.float64)
    x, log_det = ops.masked_autoregressive_inverse(
        z, [m.weight for m in layers], [m.bias for m in layers], degrees=degrees, scale_map="softclip"
    )
    want = peer().inv(z)
    assert relative_error(x, want) <= 1e-9
    assert relative_error(log_det, -peer().log_abs_det_jacobian(want, z)) <= 1e-9
