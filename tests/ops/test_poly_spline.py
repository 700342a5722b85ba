import math

import pytest
import torch

from genfast import ops
from genfast.reference import poly_spline as reference
from tests.harness import BadInput, OpSpec, OpTests, relative_error, vjp

linear, quadratic, cubic = ops.linear_spline, ops.quadratic_spline, ops.cubic_spline
BOX = {"left": -1.0, "right": 4.0, "bottom": 0.5, "top": 3.0}
NAMES = {linear: ["pdf"], quadratic: ["widths", "heights"], cubic: ["widths", "heights", "derivatives"]}
REFERENCES = {
    linear: reference.linear_spline, quadratic: reference.quadratic_spline, cubic: reference.cubic_spline
}  # fmt: skip


def widths_of(spline, k, tails="linear"):
    """How many parameters of each name a number has."""
    return {linear: [k], quadratic: [k, k - 1 if tails == "linear" else k + 1], cubic: [k, k, 2]}[spline]


def inputs(spline, n, k, kernels=None, tails="linear", seed=0, scale=1.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    randn = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)  # noqa: E731
    t = {"x": randn(n) * 2.5}
    t |= {name: randn(n, m) * scale for name, m in zip(NAMES[spline], widths_of(spline, k, tails), strict=True)}
    return {name: v.to(kernels.device if kernels else "cpu", dtype) for name, v in t.items()}


def row_of(tensors):
    return {k: v[0] for k, v in tensors.items() if k != "x"}


def make(spline, tails="linear"):
    def made(case, generator):
        t = inputs(spline, *case, tails=tails)
        return {
            k: torch.randn(v.shape, generator=generator, dtype=v.dtype) * (2.5 if k == "x" else 1) for k, v in t.items()
        }

    return made


def make_inside(spline):
    """Numbers within both sides of the box."""
    first = make(spline, None)

    def made(case, generator):
        x = 0.55 + 2.4 * torch.rand(case[0], generator=generator, dtype=torch.float64)
        return {**first(case, generator), "x": x}

    return made


def boxed(spline):
    def f(*args, left=None, right=None, bottom=None, top=None, **options):
        return REFERENCES[spline](*args, box=None if left is None else (left, right, bottom, top), **options)

    return lambda *args, **kwargs: f(*args, *(kwargs.pop(n) for n in ["x", *NAMES[spline]] if n in kwargs), **kwargs)


def extreme(spline, size):
    """Every parameter is -size, 0 or size."""

    def tensors():
        g = torch.Generator().manual_seed(7)
        t = inputs(spline, 64, 8)
        pick = lambda v: (torch.randint(0, 3, v.shape, generator=g) - 1) * float(size)  # noqa: E731
        x = torch.linspace(-3.5, 3.5, 64)
        x[:4] = torch.tensor([-3.0, 3.0, 0.0, 1e30])
        return {"x": x, **{k: pick(v) for k, v in t.items() if k != "x"}}

    return tensors


def spec(spline, cases, bad):
    return OpSpec(
        name=spline.__name__, function=spline, reference=boxed(spline), make=make(spline), cases=cases,
        rows=["x", *NAMES[spline]], small=[(105, 3), (105, 8)],
        variants={"forward": {}, "inverse": {"inverse": True}},
        extreme={f"{size:g}": extreme(spline, size) for size in (30.0, 1e4, 3e38)}, bad=bad,
    )  # fmt: skip


class TestLinear(OpTests):
    spec = spec(
        linear, [(5, 3), (6, 1), (130, 8)],
        {
            "no bins": BadInput(
                lambda t: {"pdf": t["pdf"][:, :0]}, ValueError, r"pdf: got shape \[5, 0\], want \[..., K\] with K >= 1"
            ),
            "too many bins": BadInput(
                lambda t: {"pdf": t["pdf"][:, :1].expand(5, 1025)}, ValueError, "pdf: got K = 1025, want 1024 or less"
            ),
            "other numbers of rows": BadInput(
                lambda t: {"pdf": t["pdf"][:4]}, ValueError,
                r"pdf: got shape \[4, 3\], want \[5, K\], or what broadcasts to it",
            ),
            "circular": BadInput(
                lambda t: {"tails": "circular"}, ValueError,
                r"tails: got 'circular', want 'linear' \(the identity outside\) or None",
            ),
            "a box": BadInput(
                lambda t: {"top": 2}, ValueError,
                r"top: got 2, want none with these tails \(a box is for tails=None\)",
            ),
            "bound": BadInput(
                lambda t: {"bound": 0.0}, ValueError, "bound: got 0.0, want 9.31e-10 to 1.07e[+]09 for torch.float32"
            ),
            "no bool": BadInput(lambda t: {"inverse": 1}, TypeError, "inverse: got int, want a bool"),
        },
    )  # fmt: skip


class TestQuadratic(OpTests):
    spec = spec(
        quadratic, [(5, 3), (6, 5), (130, 8)],
        {
            "one bin": BadInput(
                lambda t: {"widths": t["widths"][:, :1]}, ValueError,
                "widths: got K = 1, want K >= 2 with tails='linear'",
            ),
            "all heights": BadInput(
                lambda t: {"heights": t["heights"][:, :1].expand(5, 4)}, ValueError,
                r"heights: got shape \[5, 4\], want \[5, K - 1 = 2\], or what broadcasts to it",
            ),
            "no room": BadInput(
                lambda t: {"min_bin_width": 0.4}, ValueError,
                "min_bin_width: got 0.4, want between 0 and 1 / K = 0.333333",
            ),
            "no room for heights": BadInput(
                lambda t: {"min_bin_height": 1.1}, ValueError, "min_bin_height: got 1.1, want between 0 and 1"
            ),
            "a tensor": BadInput(
                lambda t: {"min_bin_height": torch.tensor(0.1)}, TypeError,
                r"min_bin_height: got Tensor, want a number \(it has no gradient\)",
            ),
            "both": BadInput(
                lambda t: {"params": torch.zeros(5)}, TypeError,
                "params: got it and widths or heights too, want one or the other",
            ),
            "packed": BadInput(
                lambda t: {"params": torch.zeros(6), "widths": None, "heights": None}, ValueError,
                r"params: got shape \[6\], want \[..., 2 K - 1\] with K >= 2",
            ),
        },
    )  # fmt: skip


class TestCubic(OpTests):
    spec = spec(
        cubic, [(5, 3), (6, 1), (130, 8)],
        {
            "heights": BadInput(
                lambda t: {"heights": t["heights"][:, :2]}, ValueError,
                r"heights: got shape \[5, 2\], want \[5, K = 3 of widths\], or what broadcasts to it",
            ),
            "derivatives": BadInput(
                lambda t: {"derivatives": t["derivatives"][:, :1]}, ValueError,
                r"derivatives: got shape \[5, 1\], want \[5, 2\], or what broadcasts to it",
            ),
            "no room for heights": BadInput(
                lambda t: {"min_bin_height": 0.5}, ValueError,
                "min_bin_height: got 0.5, want between 0 and 1 / K = 0.333333",
            ),
            "packed": BadInput(
                lambda t: {"params": torch.zeros(7), "widths": None, "heights": None, "derivatives": None}, ValueError,
                r"params: got shape \[7\], want \[..., 2 K \+ 2\] with K >= 1",
            ),
        },
    )  # fmt: skip


SPLINES = pytest.mark.parametrize("spline", [linear, quadratic, cubic], ids=lambda f: f.__name__)


@pytest.fixture
def double_by_default():
    """nflows' linear inverse has its knots in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- against nflows ---------------------------------------------------------------------------------------------------


def nflows_of(spline, closed):
    name = spline.__name__
    module = pytest.importorskip(f"nflows.transforms.splines.{name.removesuffix('_spline')}")
    f = getattr(module, name if closed else f"unconstrained_{name}")

    def theirs(x, *given, **options):
        if spline is cubic:
            given = (*given[:2], given[2][..., :1], given[2][..., 1:])
        return f(x, *given, **options)

    return lambda **t: theirs(t.pop("x"), *(t.pop(n) for n in NAMES[spline]), **t)


def same(ours, theirs, tensors, options, limit):
    cotangents = [torch.randn(tensors["x"].shape, dtype=torch.float64) for _ in range(2)]
    got, got_grads = vjp(ours, tensors, options, cotangents)
    want, want_grads = vjp(theirs, tensors, options, cotangents)
    for name, a, b in zip(
        ["y", "log_det", *got_grads], [*got, *got_grads.values()], [*want, *want_grads.values()], strict=True
    ):
        assert ((a - b).abs() <= limit * (1 + b.abs().max())).all(), name


@pytest.mark.parametrize("closed", [False, True], ids=["tails", "closed"])
@pytest.mark.parametrize("inverse", [False, True])
@SPLINES
def test_equals_nflows(native, double_by_default, spline, inverse, closed):
    for k, scale in ((2, 1.0), (8, 1.0), (11, 2.0)):
        t = inputs(spline, 300, k, native, None if closed else "linear", seed=k, scale=scale)
        ours = {"tails": None, "bound": 3.0} if closed else {}
        theirs = {"left": -3.0, "right": 3.0, "bottom": -3.0, "top": 3.0} if closed else {"tail_bound": 3.0}
        if closed:
            t["x"] = t["x"].clamp(-2.999, 2.999)  # at the ends nflows cuts the gradient
        limit = 1e-6 if spline is cubic and inverse else 1e-9  # nflows loses digits where it takes roots
        if spline is linear and inverse:  # its last bin is too high by the 1e-6 of its search
            y, _ = spline(**t, **ours, inverse=True)
            keep = (y < 3 - 6 / k) | (t["x"] > 3)
            t = {name: v[keep] for name, v in t.items()}
            assert 100 < len(t["x"]) < 300
        f = nflows_of(spline, closed)
        same(
            lambda o=ours, **a: spline(**a, **o), lambda o=theirs, f=f, **a: f(**a, **o), t, {"inverse": inverse}, limit
        )


@SPLINES
def test_box(kernels, spline):
    """log_det counts the sides; values and gradients are the reference's, and nflows' but for that."""
    t = inputs(spline, 90, 8, kernels, None)
    for inverse in (False, True):
        start, end = (0.5, 3.0) if inverse else (-1.0, 4.0)
        t["x"] = torch.linspace(start, end, 90, dtype=torch.float64, device=kernels.device)
        options = {"tails": None, "inverse": inverse, **BOX}
        same(spline, boxed(spline), t, options, 1e-9)
        y, log_det = spline(**{**t, "x": t["x"].requires_grad_()}, **options)
        (slope,) = torch.autograd.grad(y.sum(), t["x"])
        assert torch.allclose(slope.log(), log_det, atol=1e-10)
        t["x"] = t["x"].detach()


def test_a_closed_quadratic_with_inner_heights_as_nflows_takes_it(native):
    nflows = pytest.importorskip("nflows.transforms.splines.quadratic")
    t = inputs(quadratic, 100, 8, native)
    t["x"] = torch.rand(100, dtype=torch.float64)
    same(
        lambda **a: quadratic(**a, tails=None, left=0, right=1, bottom=0, top=1),
        lambda x, widths, heights: nflows.quadratic_spline(x, widths, heights), t, {}, 1e-10,
    )  # fmt: skip


# --- what is true of any such map -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tails", ["linear", None])
@SPLINES
def test_maps(kernels, spline, tails):
    """Round trip, log_det, monotone, continuous at knots and ends, integral."""
    for scale in (0.5, 3.0):
        row = row_of(inputs(spline, 1, 8, kernels, tails, seed=3, scale=scale))
        x = torch.linspace(-3, 3, 6001, dtype=torch.float64, device=kernels.device).requires_grad_()
        y, log_det = spline(x, **row, tails=tails)
        (slope,) = torch.autograd.grad(y.sum(), x)
        back, back_log_det = spline(y, **row, tails=tails, inverse=True)
        assert torch.allclose(slope.log(), log_det, atol=1e-10)
        assert torch.allclose(back, x, atol=1e-9)
        if spline is not linear:  # whose log_det jumps at the knots
            assert torch.allclose(back_log_det, -log_det, atol=1e-6)
        assert (y.diff() > 0).all()
        assert (y.diff() <= slope.max() * 1.001e-3 + 1e-9).all(), "y is continuous"
        if spline is not linear and scale < 1:
            assert (slope.diff().abs() <= 0.05).all(), "and so is the derivative"
        assert torch.allclose(y[[0, -1]].cpu(), torch.tensor([-3.0, 3.0], dtype=torch.float64), atol=1e-13)
        assert abs(torch.trapezoid(slope, x).item() / 6 - 1) <= 2e-3
    wide = torch.linspace(-9, 9, 200_001, dtype=torch.float64, device=kernels.device)
    if tails == "linear":
        z, jacobian = spline(wide, **row_of(inputs(spline, 1, 8, kernels, seed=1)), inverse=True)
        assert (
            abs(torch.trapezoid(torch.exp(-0.5 * z * z + jacobian), wide).item() / math.sqrt(2 * math.pi) - 1) <= 1e-3
        )


@SPLINES
def test_round_trip_in_float32(kernels, spline):
    """Within the rounding of y over the slope."""
    for seed in range(3):
        t = inputs(spline, 5000, 8, kernels, seed=seed, scale=2.0, dtype=torch.float32)
        y, log_det = spline(**t)
        back, back_log_det = spline(**{**t, "x": y}, inverse=True)
        error = (back - t["x"]).abs()
        assert (error <= 1e-6 + 1e-6 * (-log_det).exp()).all()
        steady = log_det.abs() <= 2
        assert (log_det + back_log_det)[steady].abs().quantile(0.99) <= 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cubic_inverse_where_roots_meet(kernels, dtype):
    """Where nflows' roots fail: one bin with slopes that make the cubic a line, a parabola, or flat in the middle."""
    logit = lambda p: math.log(p / (1 - p))  # noqa: E731
    limit = 2e-6 if dtype == torch.float32 else 1e-13
    x = torch.cat([torch.linspace(-3, 3, 999, dtype=dtype), torch.tensor([-3 + 1e-6, 3 - 1e-6, 1e-7], dtype=dtype)])
    x = x.to(kernels.device)
    zeros = torch.zeros(1, dtype=dtype, device=kernels.device)
    for a, b in (
        (1, 1),
        (1.5, 1.5),
        (1e-8, 2),
        (2, 1e-8),
        (1, 1 + 1e-9),
        (2.9999, 1e-6),
        (2.5, 2.5),
        (0.5, 1.5),
        (1e-8, 1e-8),
    ):
        raw = torch.tensor([logit(a / 3), logit(b / 3)], dtype=dtype, device=kernels.device)
        back, _ = cubic(x, zeros, zeros, raw, inverse=True)
        again, slope = cubic(back, zeros, zeros, raw)
        # to the rounding of `back`, which the slope magnifies
        assert ((again - x).abs() <= limit * (1 + slope.exp())).all(), (a, b)
        assert (back.diff()[:998] >= 0).all(), (a, b)


def test_cubic_inverse_that_nflows_gets_wrong(native):
    """A piece whose cubic term is just above nflows' threshold for a quadratic, in float32."""
    nflows = pytest.importorskip("nflows.transforms.splines.cubic")
    t = inputs(cubic, 20_000, 8, native, seed=2, dtype=torch.float32)
    inside = t["x"].abs() < 3
    ours = cubic(**t, inverse=True)[0]
    theirs = nflows.unconstrained_cubic_spline(
        t["x"],
        t["widths"],
        t["heights"],
        t["derivatives"][:, :1],
        t["derivatives"][:, 1:],
        inverse=True,
        tail_bound=3.0,
    )[0]
    want = reference.cubic_spline(**{k: v.double() for k, v in t.items()}, inverse=True)[0]
    error = lambda y: (y - want)[inside].abs().nan_to_num(1.0).max()  # noqa: E731
    assert error(ours) <= 1e-4
    assert error(theirs) > 10 * error(ours)


# --- ends, broadcasting, limits ---------------------------------------------------------------------------------------


@SPLINES
def test_outside(backend, spline):
    """Exactly the identity with linear tails, NaN in a closed one; no gradient reaches the parameters."""
    for tails in ("linear", None):
        t = inputs(spline, 20, 8, backend, tails, dtype=torch.float32)
        t["x"] = torch.cat([torch.linspace(3.001, 1e30, 10), -torch.linspace(3.001, 1e30, 10)]).to(backend.device)
        t["x"][0] = torch.inf
        for inverse in (False, True):
            (y, log_det), grads = vjp(spline, t, {"tails": tails, "inverse": inverse}, [torch.ones(20)] * 2)
            if tails:
                assert torch.equal(y, t["x"])
                assert not log_det.any()
                assert torch.equal(grads["x"], torch.ones_like(y))
            else:
                assert y.isnan().all()
                assert log_det.isnan().all()
                assert not grads["x"].any()
            assert not any(g.any() for name, g in grads.items() if name != "x")
    with pytest.raises(ValueError, match=r"x: got numbers from -1e\+30 to inf, want them within"):
        spline(**t, tails=None, check_domain=True)


@SPLINES
def test_shared_and_packed_parameters(backend, spline):
    t = inputs(spline, 1, 8, backend, seed=2)
    row = row_of(t)
    x = torch.randn(6, 5, dtype=torch.float64, device=backend.device)
    cotangents = [torch.randn(6, 5, dtype=torch.float64) for _ in range(2)]
    got, got_grads = vjp(spline, {"x": x, **row}, {}, cotangents)
    want, want_grads = vjp(
        lambda x, **r: spline(x, **{k: v.expand(6, 5, -1) for k, v in r.items()}), {"x": x, **row}, {}, cotangents
    )
    for a, b in zip([*got, *got_grads.values()], [*want, *want_grads.values()], strict=True):
        assert relative_error(a, b) <= 1e-12
    if spline is not linear:
        packed = spline(x, params=torch.cat(list(row.values()), -1))
        assert all(torch.equal(a, b) for a, b in zip(packed, got, strict=True))


@SPLINES
def test_bound_of_each_feature(backend, spline):
    bound = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64, device=backend.device)
    row = row_of(inputs(spline, 1, 8, backend))
    x = torch.randn(40, 3, dtype=torch.float64, device=backend.device)
    cotangents = [torch.randn(40, 3, dtype=torch.float64) for _ in range(2)]
    f = lambda x, bound, **r: spline(x, **r, bound=bound)  # noqa: E731
    got, got_grads = vjp(f, {"x": x, "bound": bound, **row}, {}, cotangents)
    for i, b in enumerate((0.5, 2.0, 4.0)):
        for a, c in zip(got, spline(x[:, i], **row, bound=b), strict=True):
            assert torch.allclose(a[:, i], c, atol=1e-12)
    eps = 1e-6
    for i in range(3):
        step = torch.zeros(3, dtype=torch.float64, device=backend.device)
        step[i] = eps
        ends = [
            sum((o.cpu() * c).sum() for o, c in zip(f(x, bound + s * step, **row), cotangents, strict=True))
            for s in (-1, 1)
        ]
        if spline is linear:
            continue  # log_det jumps with the bound
        assert abs((ends[1] - ends[0]) / (2 * eps) - got_grads["bound"][i].cpu()) <= 1e-3 * (
            1 + got_grads["bound"][i].abs().cpu()
        )


@SPLINES
def test_many_bins(kernels, spline):
    """As many as there may be, in float64 too: one row fills the shared memory of a block."""
    for dtype, limit in ((torch.float32, 2e-3), (torch.float64, 1e-9)):
        t = inputs(spline, 3, 1024, kernels, scale=0.1, dtype=dtype)
        t["x"] = torch.tensor([-2.0, 0.1, 1.0], dtype=dtype, device=kernels.device)
        options = {} if spline is linear else {"min_bin_width": 1e-4, "min_bin_height": 1e-4}
        got, got_grads = vjp(spline, t, options, [torch.ones(3)] * 2)
        exact = {k: v.double().cpu() for k, v in t.items()}
        want, want_grads = vjp(REFERENCES[spline], exact, options, [torch.ones(3)] * 2)
        for a, b in zip([*got, *got_grads.values()], [*want, *want_grads.values()], strict=True):
            assert relative_error(a, b) <= limit


@SPLINES
def test_bounds_that_a_dtype_carries(kernels, spline):
    for dtype, bounds in ((torch.float32, (2.0**-30, 2.0**30)), (torch.float64, (2.0**-200, 2.0**200))):
        for bound in bounds:
            t = inputs(spline, 64, 8, kernels, dtype=dtype)
            t["x"] = torch.linspace(-0.99, 0.99, 64, dtype=torch.float64, device=kernels.device).to(dtype)
            for inverse in (False, True):
                y, log_det = spline(**{**t, "x": t["x"] * bound}, bound=bound, inverse=inverse)
                want = spline(**t, bound=1.0, inverse=inverse)
                assert torch.allclose(y / bound, want[0], atol=1e-5)
                assert torch.allclose(log_det, want[1], atol=1e-4)
                hard = {k: v.to(kernels.device, dtype) for k, v in extreme(spline, 1e4)().items()}
                hard["x"] = torch.linspace(-1, 1, 64, device=kernels.device, dtype=dtype) * bound
                options = {"bound": bound, "inverse": inverse}
                options |= {} if spline is linear else {"min_bin_width": 0.0, "min_bin_height": 0.0}
                out, grads = vjp(spline, hard, options, [torch.ones(64)] * 2)
                assert all(v.isfinite().all() for v in [*out, *grads.values()]), (dtype, bound, inverse)
