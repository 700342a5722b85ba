import math

import pytest
import torch

import genfast
from genfast import ops
from genfast.reference import rq_spline as reference
from tests.harness import BadInput, OpSpec, OpTests, relative_error, vjp

spline = ops.rational_quadratic_spline
BINS = [1, 2, 3, 4, 5, 8, 10, 16, 19, 32, 40]  # with code of their own: 4, 8, 10, 16, 32


def make(case, generator, scale=1.0):
    """Numbers on both sides of the bound, and logits; the case is (N, K, derivatives beyond K - 1)."""
    n, k, extra = case
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    return {
        "x": randn(n) * 2.5, "widths": randn(n, k) * scale, "heights": randn(n, k) * scale,
        "derivatives": randn(n, k - 1 + extra) * scale,
    }  # fmt: skip


def inputs(case, kernels, seed=0, scale=1.0, dtype=torch.float64):
    made = make(case, torch.Generator().manual_seed(seed), scale)
    return {k: v.to(kernels.device, dtype) for k, v in made.items()}


def extreme(size, n=64, k=8):
    """Every logit is -size, 0 or size."""

    def tensors():
        g = torch.Generator().manual_seed(7)
        pick = lambda *shape: (torch.randint(0, 3, shape, generator=g) - 1) * float(size)  # noqa: E731
        x = torch.linspace(-3.5, 3.5, n)
        x[:4] = torch.tensor([-3.0, 3.0, 0.0, 1e30])
        return {"x": x, "widths": pick(n, k), "heights": pick(n, k), "derivatives": pick(n, k - 1)}

    return tensors


class TestRationalQuadraticSpline(OpTests):
    spec = OpSpec(
        name="rational_quadratic_spline", function=spline, reference=reference.rational_quadratic_spline, make=make,
        cases=[(6, 5, 0), (5, 3, 1), (1, 1, 1), (130, 8, 0), (67, 13, 2), (257, 16, 0)],
        rows=["x", "widths", "heights", "derivatives"],
        small=[(105, bins, 0) for bins in (2, 4, 7, 8, 10, 16, 32)], small_options=[{}, {"inverse": True}],
        variants={
            "forward": {},
            "inverse": {"inverse": True},
            "options": {"bound": 2.5, "min_bin_width": 0.02, "min_bin_height": 0.0, "min_derivative": 0.1},
        },
        extreme={
            "1e4": extreme(1e4), "3e38": extreme(3e38), "1e4, one bin": extreme(1e4, k=1),
            "1e4, any number of bins": extreme(1e4, k=7),
        },
        bad={
            "no bins": BadInput(
                lambda t: {"widths": t["widths"][:, :0]}, ValueError,
                r"widths: got shape \[6, 0\], want \[..., K\] with K >= 1",
            ),
            "other numbers of widths": BadInput(
                lambda t: {"widths": t["widths"][:4]}, ValueError,
                r"widths: got shape \[4, 5\], want \[6, K\], or what broadcasts to it",
            ),
            "fewer heights": BadInput(
                lambda t: {"heights": t["heights"][:, :4]}, ValueError,
                r"heights: got shape \[6, 4\], want \[6, K = 5 of widths\], or what broadcasts to it",
            ),
            "too few derivatives": BadInput(
                lambda t: {"derivatives": t["derivatives"][:, :3]}, ValueError,
                "derivatives: got 3 a number, want at least K - 1 = 4",
            ),
            "circular tails": BadInput(
                lambda t: {"tails": "circular"}, ValueError,
                r"tails: got 'circular', want 'linear' \(the identity outside \[-bound, bound\]\)",
            ),
            "negative bound": BadInput(
                lambda t: {"bound": -1.0}, ValueError, "bound: got -1.0, want a positive finite number"
            ),
            "no room for the bins": BadInput(
                lambda t: {"min_bin_width": 0.3}, ValueError,
                "min_bin_width: got 0.3, want between 0 and 1 / K = 0.2",
            ),
            "negative minimum": BadInput(
                lambda t: {"min_bin_height": -0.1}, ValueError,
                "min_bin_height: got -0.1, want between 0 and 1 / K = 0.2",
            ),
            "slope 1 out of reach": BadInput(
                lambda t: {"min_derivative": 1.0}, ValueError,
                "min_derivative: got 1.0, want between 0 and 1, and less than 1",
            ),
        },
    )  # fmt: skip


def make_packed(case, generator):
    tensors = make(case, generator)
    return {"x": tensors.pop("x"), "params": torch.cat(list(tensors.values()), -1)}


def packed_reference(x, params, **options):
    k = (params.shape[-1] + 1) // 3
    return reference.rational_quadratic_spline(x, *params.split([k, k, k - 1], -1), **options)


class TestPackedParameters(OpTests):
    spec = OpSpec(
        name="rational_quadratic_spline", function=spline, reference=packed_reference, make=make_packed,
        cases=[(6, 5, 0), (5, 3, 0), (130, 8, 0), (67, 10, 0), (257, 16, 0)], rows=["x", "params"],
        variants={"forward": {}, "inverse": {"inverse": True}},
        bad={
            "both kinds": BadInput(
                lambda t: {"widths": t["params"]}, TypeError,
                "params: got it and widths, heights or derivatives too, want one or the other",
            ),
            "neither kind": BadInput(
                lambda t: {"params": None}, TypeError, "widths: got NoneType, want a torch.Tensor"
            ),
            "no such K": BadInput(
                lambda t: {"params": t["params"][:, 1:]}, ValueError,
                r"params: got shape \[6, 13\], want \[..., 3 K - 1\] with K >= 1",
            ),
            "other numbers": BadInput(
                lambda t: {"params": t["params"][:4]}, ValueError,
                r"params: got shape \[4, 14\], want \[6, 14\], or what broadcasts to it",
            ),
        },
    )  # fmt: skip


# --- against nflows ---------------------------------------------------------------------------------------------------


def nflows_spline(**arguments):
    module = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    tensors = {k: arguments.pop(k) for k in ("x", "widths", "heights", "derivatives")}
    bound = arguments.pop("bound", 3.0)
    return module.unconstrained_rational_quadratic_spline(*tensors.values(), tail_bound=bound, **arguments)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("k", [1, 2, 8, 11, 32])
def test_equals_nflows(backend, k, extra, inverse):
    tensors = inputs((300, k, extra), backend, seed=k)
    tensors["x"][:4] = torch.tensor([3.0, -3.0, 3.0000001, -1e9])
    options = {"inverse": inverse, "min_bin_width": 2e-3, "min_derivative": 5e-3}
    cotangents = [torch.randn(300, dtype=torch.float64, device=backend.device) for _ in range(2)]
    got, got_grads = vjp(spline, tensors, options, cotangents)
    want, want_grads = vjp(nflows_spline, tensors, options, cotangents)
    for a, b in zip([*got, *got_grads.values()], [*want, *want_grads.values()], strict=True):
        assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max()) if a.numel() else a.shape == b.shape


def test_float32_is_no_less_accurate_than_nflows(kernels):
    tensors = inputs((20_000, 8, 0), kernels, seed=5)
    single = {k: v.float() for k, v in tensors.items()}
    exact = reference.rational_quadratic_spline(**{k: v.double() for k, v in single.items()})
    for got, theirs, want in zip(spline(**single), nflows_spline(**single), exact, strict=True):
        assert relative_error(got, want) <= relative_error(theirs, want)


# --- what is true of any such map -------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("k", BINS)
def test_any_number_of_bins(kernels, k, inverse):
    """Whole and partial registers, tiles of columns of every size, both types."""
    for n, dtype, limit in ((50, torch.float64, 1e-11), (50, torch.float32, 2e-5)):
        tensors = inputs((n, k, 1), kernels, seed=100 + k, dtype=dtype)
        for a, b in zip(
            spline(**tensors, inverse=inverse),
            reference.rational_quadratic_spline(**{k: v.double() for k, v in tensors.items()}, inverse=inverse),
            strict=True,
        ):
            assert relative_error(a, b) <= limit


@pytest.mark.parametrize("inverse", [False, True])
def test_log_det_is_the_log_of_the_derivative(kernels, inverse):
    tensors = inputs((500, 8, 0), kernels, seed=1)
    tensors["x"].requires_grad_()
    y, log_det = spline(**tensors, inverse=inverse)
    (slope,) = torch.autograd.grad(y.sum(), tensors["x"])
    assert torch.allclose(slope.log(), log_det, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
def test_monotone(kernels, dtype, inverse):
    for seed in range(10):
        row = inputs((1, 8, 0), kernels, seed=seed, scale=3.0, dtype=dtype)
        x = torch.linspace(-3.2, 3.2, 20_001, dtype=dtype, device=kernels.device)
        y, _ = spline(**{**row, "x": x}, inverse=inverse)
        assert (y.diff() >= 0).all()


@pytest.mark.parametrize("inverse", [False, True], ids=["forward first", "inverse first"])
@pytest.mark.parametrize("k", [4, 5, 8, 16, 32])
def test_float32_round_trip(kernels, k, inverse):
    """A trip there and back returns to the number within what float32 can tell apart on the way.

    Where the map is flat (slopes go down to 1e-6 for logits of this size), many x share one float32 y: no arithmetic
    can tell them apart. `blur` is the width of what maps onto one float32 number as they lie at the bound, 2^-22 apart.
    """
    for seed in range(5):
        t = inputs((20_000, k, 0), kernels, seed=seed, scale=3.0, dtype=torch.float32)
        y, log_det = spline(**t, inverse=inverse)
        back, back_log_det = spline(**{**t, "x": y}, inverse=not inverse)
        exact = {name: v.double() for name, v in t.items()}
        low, high = (
            reference.rational_quadratic_spline(**{**exact, "x": y.double() + s * 2.0**-23}, inverse=not inverse)[0]
            for s in (-1, 1)
        )
        blur = high - low
        error = (back - t["x"]).abs()
        assert (error <= 1e-6 + 1.5 * blur).all()
        assert (error[blur <= 5e-5] <= 1e-4).all()
        assert (blur <= 5e-5).double().mean() > 0.5, "most numbers are tested by that"
        steady = blur <= 1e-6
        assert (log_det + back_log_det)[steady].abs().quantile(0.99) <= 1e-3


def test_float64_round_trip(kernels):
    t = inputs((20_000, 8, 0), kernels, seed=3, scale=3.0)
    y, log_det = spline(**t)
    back, back_log_det = spline(**{**t, "x": y}, inverse=True)
    steady = log_det > math.log(1e-3)
    assert (back - t["x"])[steady].abs().max() <= 1e-11
    assert (log_det + back_log_det)[steady].abs().max() <= 1e-8


def test_density_integrates_to_one(kernels):
    for seed in range(5):
        row = inputs((1, 8, 0), kernels, seed=seed, scale=1.5)
        x = torch.linspace(-9, 9, 200_001, dtype=torch.float64, device=kernels.device)
        z, log_det = spline(**{**row, "x": x}, inverse=True)
        density = torch.exp(-0.5 * z * z + log_det) / math.sqrt(2 * math.pi)
        assert abs(torch.trapezoid(density, x).item() - 1) <= 1e-4  # the rule's own error at kinks is 2e-5


# --- tails, knots and edges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [False, True])
def test_tails_are_the_identity(kernels, inverse):
    t = inputs((40, 8, 0), kernels, dtype=torch.float32)
    t["x"] = torch.cat([torch.linspace(3.001, 1e6, 20), -torch.linspace(3.001, 1e6, 20)]).to(kernels.device)
    t["x"][0], t["x"][-1] = torch.inf, -torch.inf
    ones = [torch.ones(40, device=kernels.device)] * 2
    (y, log_det), grads = vjp(spline, t, {"inverse": inverse}, ones)
    assert torch.equal(y, t["x"])
    assert not log_det.any()
    assert torch.equal(grads.pop("x"), ones[0])
    for name, g in grads.items():
        assert not g.any(), name


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knots_are_hit_exactly(kernels, dtype, inverse):
    """Equal bins have exact knots; there y = x, and the slope is the knot's."""
    k, bound = 8, 4.0
    x = torch.linspace(-bound, bound, k + 1, dtype=dtype, device=kernels.device)
    zeros = torch.zeros(k + 1, k, dtype=dtype, device=kernels.device)
    raw = torch.randn(k - 1, dtype=dtype, device=kernels.device)
    t = {"x": x, "widths": zeros, "heights": zeros, "derivatives": raw.expand(k + 1, k - 1)}
    cotangents = [torch.ones_like(x)] * 2
    (y, log_det), grads = vjp(spline, t, {"bound": bound, "inverse": inverse}, cotangents)
    slopes = torch.nn.functional.pad(1e-3 + torch.nn.functional.softplus(raw), (1, 1), value=1.0)
    assert torch.allclose(y, x, atol=1e-6 if dtype == torch.float32 else 1e-14)
    assert torch.allclose(log_det, -slopes.log() if inverse else slopes.log(), atol=1e-6)
    _, want = vjp(reference.rational_quadratic_spline, t, {"bound": bound, "inverse": inverse}, cotangents)
    if dtype == torch.float64:  # in float32 either bin may be taken
        for name, g in grads.items():
            assert relative_error(g, want[name]) <= 1e-12, name


def test_ends_of_the_square(kernels):
    t = inputs((64, 8, 0), kernels, seed=2, scale=3.0, dtype=torch.float32)
    t["x"] = torch.tensor([3.0, -3.0], device=kernels.device).repeat(32)
    for inverse in (False, True):
        (y, log_det), grads = vjp(spline, t, {"inverse": inverse}, [torch.ones_like(t["x"])] * 2)
        assert torch.equal(y, t["x"])
        assert log_det.abs().max() <= 1e-5
        assert all(g.isfinite().all() for g in grads.values())


def test_extra_derivatives(kernels):
    """The K-th derivative is the slope at the right end; those after it are not read and get no gradient."""
    t = inputs((100, 8, 3), kernels, seed=4)
    ones = [torch.ones_like(t["x"])] * 2
    out, grads = vjp(spline, t, {}, ones)
    less = {**t, "derivatives": t["derivatives"][:, :8]}
    for a, b in zip(out, spline(**less), strict=True):
        assert torch.equal(a, b)
    assert not grads["derivatives"][:, 8:].any()
    t["x"] = torch.full_like(t["x"], 3.0)
    slope = 1e-3 + torch.nn.functional.softplus(t["derivatives"][:, 7])
    assert torch.allclose(spline(**t)[1], slope.log())


def test_nan_parameters_spoil_their_own_numbers_only(kernels):
    t = inputs((70, 8, 0), kernels, seed=6, dtype=torch.float32)
    t["x"] = torch.linspace(-2.9, 2.9, 70, device=kernels.device)
    want = spline(**t)
    for name in ("widths", "heights"):
        poisoned = {**t, name: t[name].clone()}
        poisoned[name][33, 5] = torch.nan
        for inverse in (False, True):
            assert all(o[33].isnan() for o in spline(**poisoned, inverse=inverse))
        for a, b in zip(spline(**poisoned), want, strict=True):
            assert torch.equal(a[:33], b[:33])
            assert torch.equal(a[34:], b[34:])


@pytest.mark.parametrize(
    "options", [{"min_bin_width": 0.125, "min_bin_height": 0.125}, {"min_bin_width": 0.0, "min_derivative": 0.0}],
    ids=["no freedom left", "no minimum"],
)  # fmt: skip
def test_limits_of_the_minima(kernels, options):
    for dtype, limit in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        t = inputs((200, 8, 0), kernels, seed=8, dtype=dtype)
        cotangents = [torch.ones_like(t["x"])] * 2
        got, got_grads = vjp(spline, t, options, cotangents)
        exact = {k: v.double() for k, v in t.items()}
        want, want_grads = vjp(reference.rational_quadratic_spline, exact, options, [c.double() for c in cotangents])
        for a, b in zip([*got, *got_grads.values()], [*want, *want_grads.values()], strict=True):
            assert relative_error(a, b) <= limit


def test_parameters_broadcast(native):
    """One spline for all numbers of a feature, with the gradients summed."""
    x = torch.randn(30, 2, dtype=torch.float64)
    p = {k: v[:2] for k, v in make((2, 8, 0), torch.Generator().manual_seed(1)).items() if k != "x"}
    cotangents = [torch.randn(30, 2, dtype=torch.float64) for _ in range(2)]
    out, grads = vjp(spline, {"x": x, **p}, {}, cotangents)
    with genfast.backend("reference"):
        want, want_grads = vjp(spline, {"x": x, **p}, {}, cotangents)
    for a, b in zip([*out, *grads.values()], [*want, *want_grads.values()], strict=True):
        assert relative_error(a, b) <= 1e-11


def test_packed_parameters_give_the_same_numbers(kernels):
    for k in BINS:
        t = inputs((70, k, 0), kernels, seed=k, dtype=torch.float32)
        cotangents = [torch.ones_like(t["x"])] * 2
        out, grads = vjp(spline, t, {}, cotangents)
        packed = {"x": t.pop("x"), "params": torch.cat(list(t.values()), -1)}
        packed_out, packed_grads = vjp(spline, packed, {}, cotangents)
        assert all(torch.equal(a, b) for a, b in zip(out, packed_out, strict=True))
        assert torch.equal(grads.pop("x"), packed_grads.pop("x"))
        assert torch.equal(torch.cat(list(grads.values()), -1), packed_grads["params"])


@pytest.mark.parametrize("make", [make, make_packed])
def test_saves_the_inputs_only(native, make):
    t = {k: v.requires_grad_() for k, v in make((100, 8, 0), torch.Generator().manual_seed(1)).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda s: saved.append(s.data_ptr()) or s, lambda s: s):
        spline(**t)
    assert sorted(saved) == sorted(v.data_ptr() for v in t.values())
