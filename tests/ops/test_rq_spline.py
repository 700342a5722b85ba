import math

import pytest
import torch

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
            "unknown tails": BadInput(
                lambda t: {"tails": "cubic"}, ValueError,
                "tails: got 'cubic', want 'linear', 'circular', None, or one of the first two a feature",
            ),
            "negative bound": BadInput(
                lambda t: {"bound": -1.0}, ValueError,
                "bound: got -1.0, want 9.31e-10 to 1.07e[+]09 for torch.float32",
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


# --- what is refused, and what infinite parameters mean ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bounds"),
    [
        (torch.float32, (2.0**-30, 2.0**30)), (torch.float64, (2.0**-200, 2.0**200)),
        (torch.float16, (2.0**-14, 65504.0)),
    ],
    ids=["float32", "float64", "float16"],
)  # fmt: skip
@pytest.mark.parametrize("shared", [False, True], ids=["own rows", "shared rows"])
def test_bounds_that_a_dtype_carries(kernels, dtype, bounds, shared):
    """At the ends of the range the map is that of bound 1, scaled, and extreme parameters stay finite."""
    for bound in bounds:
        t = inputs((64, 8, 0), kernels, dtype=torch.float64)
        t = {k: v[0] if shared and k != "x" else v for k, v in t.items()}
        t["x"] = torch.linspace(-0.99, 0.99, 64, device=kernels.device, dtype=torch.float64)
        scaled = {k: (v * bound if k == "x" else v).to(dtype) for k, v in t.items()}
        for inverse in (False, True):
            y, log_det = spline(**scaled, bound=bound, inverse=inverse)
            same = {k: v.double() / (bound if k == "x" else 1) for k, v in scaled.items()}
            want = reference.rational_quadratic_spline(**same, bound=1.0, inverse=inverse)
            limit = 1e-3 if dtype == torch.float16 else 1e-4
            assert (y.double() / bound - want[0]).abs().max() <= limit
            assert (log_det - want[1]).abs().max() <= limit
        if dtype == torch.float16:  # its gradients by the parameters go with the bound, and need not fit
            continue
        for size in (1.0, 1e4):
            hard = {k: v.to(kernels.device, dtype) for k, v in extreme(size)().items()}
            hard = {k: v[3] if shared and k != "x" else v for k, v in hard.items()}
            hard["x"] = (torch.linspace(-1, 1, 64, device=kernels.device, dtype=torch.float64) * bound).to(dtype)
            for inverse in (False, True):
                options = {"bound": bound, "inverse": inverse, "min_bin_width": 0.0, "min_derivative": 0.0}
                out, grads = vjp(spline, hard, options, [torch.ones_like(hard["x"])] * 2)
                assert all(v.isfinite().all() for v in [*out, *grads.values()])


@pytest.mark.parametrize(
    ("dtype", "bound", "wanted"),
    [
        (torch.float32, 1e-20, "9.31e-10 to 1.07e[+]09 for torch.float32"),
        (torch.float32, 1e20, "9.31e-10 to 1.07e[+]09 for torch.float32"),
        (torch.bfloat16, 1e20, "9.31e-10 to 1.07e[+]09 for torch.bfloat16"),
        (torch.float16, 1e5, "6.1e-05 to 6.55e[+]04 for torch.float16"),
        (torch.float64, 1e100, "6.22e-61 to 1.61e[+]60 for torch.float64"),
        (torch.float64, math.inf, "6.22e-61 to 1.61e[+]60 for torch.float64"),
        (torch.float32, math.nan, "9.31e-10 to 1.07e[+]09 for torch.float32"),
    ],
)  # fmt: skip
def test_bounds_that_a_dtype_does_not_carry(dtype, bound, wanted):
    x, params = torch.zeros(2, dtype=dtype), torch.zeros(23, dtype=dtype)
    with pytest.raises(ValueError, match=f"^bound: got {bound}, want {wanted}$".replace("e+", "e[+]")):
        spline(x, params=params, bound=bound)


def test_under_autocast_the_range_is_that_of_float32():
    x, params = torch.zeros(2, dtype=torch.float16), torch.zeros(23, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert spline(x, params=params, bound=1e5)[0].dtype == torch.float32


OPTIONS = ["bound", "min_bin_width", "min_bin_height", "min_derivative"]


@pytest.mark.parametrize("name", [*OPTIONS, "inverse"])
def test_options_are_numbers(name):
    """A tensor would get no gradient, and silently so; a bound that is one has one."""
    x, params = torch.zeros(2), torch.zeros(23)
    wanted = "a bool" if name == "inverse" else r"a number \(it has no gradient\)"
    for value in (torch.tensor(0.1), torch.tensor(0.1, requires_grad=True), "0.1", None, 1j):
        if (name == "bound" and isinstance(value, torch.Tensor)) or (name.startswith("min_bin") and value is None):
            continue
        with pytest.raises(TypeError, match=f"^{name}: got {type(value).__name__}, want {wanted}$"):
            spline(x, params=params, **{name: value})
    if name != "inverse":
        with pytest.raises(ValueError, match=f"^{name}: got nan, want "):
            spline(x, params=params, **{name: math.nan})


@pytest.mark.parametrize("shared", [False, True], ids=["own rows", "shared rows"])
@pytest.mark.parametrize("inverse", [False, True])
def test_infinite_parameters(backend, inverse, shared):
    """-inf as a width or height, and either infinity as a slope, are the limits; +inf as a width or height is NaN."""

    def run(name, *values, at=1):
        t = {
            k: v[:1].expand(40, -1).clone()
            for k, v in inputs((1, 8, 0), backend, seed=9, dtype=torch.float32).items()
            if k != "x"
        }
        t[name][:, at : at + len(values)] = torch.tensor(values, device=backend.device)
        t["x"] = torch.linspace(-2.9, 2.9, 40, device=backend.device)
        if shared:
            t = {k: v[0] if k != "x" else v for k, v in t.items()}
        out, grads = vjp(spline, t, {"inverse": inverse}, [torch.ones_like(t["x"])] * 2)
        return [*out, *grads.values()]

    for name in ("widths", "heights"):
        for a, b in zip(run(name, -math.inf), run(name, -80.0), strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
        for values in ([math.inf], [math.inf] * 2, [-math.inf] * 8):
            out = run(name, *values, at=0)
            assert out[0].isnan().all()
            assert out[1].isnan().all()
    for infinite, large in ((math.inf, 2.0**40), (-math.inf, -100.0)):
        for a, b in zip(run("derivatives", infinite), run("derivatives", large), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-30)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_round_trip_of_extreme_maps(kernels, dtype, limit):
    """With no minima and logits of size 10 most of the map is too flat or too steep to come back; the rest does."""
    options = {"min_bin_width": 0.0, "min_bin_height": 0.0, "min_derivative": 0.0}
    for inverse in (False, True):
        t = inputs((20_000, 8, 0), kernels, scale=10.0, dtype=dtype)
        t["x"] = t["x"].clamp(-3, 3)
        y, log_det = spline(**t, inverse=inverse, **options)
        back, _ = spline(**{**t, "x": y}, inverse=not inverse, **options)
        steady = (log_det.abs() <= 3) & (t["x"].abs() < 3)
        assert steady.sum() > 500
        assert (back - t["x"])[steady].abs().max() <= limit
