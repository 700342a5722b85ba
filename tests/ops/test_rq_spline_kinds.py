"""Rational-quadratic splines with other tails, boxes, bounds and dialects."""

import math

import pytest
import torch
from torch.nn.functional import softplus

from genfast import ops
from genfast.reference import rq_spline as reference
from tests.harness import BadInput, OpSpec, OpTests, relative_error, vjp
from tests.ops.test_rq_spline import extreme, spline

MORE = {"linear": -1, "circular": 0, None: 1}
KINDS = [
    *((t, "nflows") for t in MORE), *((t, "zuko") for t in MORE), ("linear", "pyro"), ("circular", "identity"),
    (None, "identity"),
]  # fmt: skip


def options_of(dialect):
    return {"dialect": "nflows", "enable_identity_init": True} if dialect == "identity" else {"dialect": dialect}


def make(case, generator, more=0, scale=1.0):
    n, k = case
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    return {
        "x": randn(n) * 2.5, "widths": randn(n, k) * scale, "heights": randn(n, k) * scale,
        "derivatives": randn(n, k + more) * scale,
    }  # fmt: skip


def inputs(case, kernels, more=0, seed=0, scale=1.0, dtype=torch.float64):
    made = make(case, torch.Generator().manual_seed(seed), more, scale)
    return {k: v.to(kernels.device, dtype) for k, v in made.items()}


def with_slopes(tensors, more):
    """Other numbers of slopes: those there are, again and again."""

    def made():
        t = tensors()
        k = t["widths"].shape[-1]
        return {**t, "derivatives": t["derivatives"].repeat(1, 3)[:, : k + more]}

    return made


class TestCircular(OpTests):
    spec = OpSpec(
        name="rational_quadratic_spline", function=spline, reference=reference.rational_quadratic_spline, make=make,
        cases=[(5, 3), (6, 1), (130, 8)], rows=["x", "widths", "heights", "derivatives"],
        small=[(105, bins) for bins in (1, 7, 8)],
        variants={
            "circular": {"tails": "circular"},
            "inverse, zuko": {"tails": "circular", "inverse": True, "dialect": "zuko"},
        },
        extreme={f"{size:g}": with_slopes(extreme(size), 0) for size in (1e4, 3e38)},
        bad={
            "inner slopes": BadInput(
                lambda t: {"derivatives": t["derivatives"][:, 1:]}, ValueError,
                "derivatives: got 2 a number, want K = 3 with tails='circular'",
            ),
            "another dialect": BadInput(
                lambda t: {"dialect": "tfp"}, ValueError, "dialect: got 'tfp', want 'nflows', 'zuko' or 'pyro'"
            ),
            "identity in another dialect": BadInput(
                lambda t: {"dialect": "zuko", "enable_identity_init": True}, ValueError,
                "enable_identity_init: got True with dialect='zuko', want it with 'nflows' only",
            ),
            "identity that is no bool": BadInput(
                lambda t: {"dialect": "nflows", "enable_identity_init": 1}, TypeError,
                "enable_identity_init: got int, want a bool",
            ),
            "no least slope": BadInput(
                lambda t: {"dialect": "zuko", "min_derivative": 0.0}, ValueError,
                r"min_derivative: got 0 with dialect='zuko', want more than 0 \(its logarithm is taken\)",
            ),
            "a box": BadInput(
                lambda t: {"left": -1.0}, ValueError,
                r"left: got -1.0, want none with these tails \(a box is for tails=None\)",
            ),
            "a check": BadInput(
                lambda t: {"check_domain": True}, ValueError,
                r"check_domain: got True, want it with tails=None only \(others are defined everywhere\)",
            ),
        },
    )  # fmt: skip


BOX = {"left": -1.0, "right": 4.0, "bottom": 0.5, "top": 3.0}


def make_closed(case, generator):
    t = make(case, generator, 1)
    return {**t, "x": 0.5 + 2.5 * torch.rand(case[0], generator=generator, dtype=torch.float64)}


def closed_reference(*args, left=None, right=None, bottom=None, top=None, **options):
    box = None if left is None else (left, right, bottom, top)
    return reference.rational_quadratic_spline(*args, box=box, **options)


class TestClosed(OpTests):
    spec = OpSpec(
        name="rational_quadratic_spline", function=spline, make=make_closed, cases=[(5, 3), (130, 8), (67, 1)],
        reference=lambda x, widths, heights, derivatives, **options: closed_reference(
            x, widths, heights, derivatives, **options
        ),
        rows=["x", "widths", "heights", "derivatives"], small=[(105, bins) for bins in (1, 7, 8)],
        variants={
            "box": {"tails": None, **BOX},
            "inverse of a box": {"tails": None, "inverse": True, "enable_identity_init": True, **BOX},
        },
        extreme={
            "1e4": lambda: {
                **with_slopes(extreme(1e4), 1)(), "x": torch.linspace(0.5, 3, 64),
            },
        },
        bad={
            "inner slopes": BadInput(
                lambda t: {"derivatives": t["derivatives"][:, 1:]}, ValueError,
                "derivatives: got 3 a number, want K [+] 1 = 4 with tails=None",
            ),
            "an empty box": BadInput(
                lambda t: {"right": -1.0}, ValueError,
                "right: got -1.0, want more than the other end -1.0 by 1.86e-09 or more",
            ),
            "upside down": BadInput(
                lambda t: {"top": 0.0}, ValueError,
                "top: got 0.0, want more than the other end 0.5 by 1.86e-09 or more",
            ),
            "no number": BadInput(
                lambda t: {"left": torch.zeros(())}, TypeError,
                r"left: got Tensor, want a number \(it has no gradient\)",
            ),
            "infinite": BadInput(
                lambda t: {"left": -math.inf}, ValueError,
                "left: got -inf, want -1.07e[+]09 to 1.07e[+]09 for torch.float32"
            ),
            "a number outside": BadInput(
                lambda t: {"x": t["x"] + 4, "check_domain": True}, ValueError,
                r"x: got numbers from [0-9.]+ to [0-9.]+, want them within \[(-1, 4|0.5, 3)\] of a closed spline",
            ),
        },
    )  # fmt: skip


def make_scaled(case, generator):
    t = make((1, case[1]), generator, -1)
    n, d = case[0], 3
    return {
        "x": torch.randn(n, d, generator=generator, dtype=torch.float64) * 2,
        "params": torch.randn(n, d, 3 * case[1] - 1, generator=generator, dtype=torch.float64) + t["widths"].sum(),
        "bound": 0.5 + 3 * torch.rand(d, generator=generator, dtype=torch.float64),
    }


def scaled_reference(x, params, bound, **options):
    k = (params.shape[-1] + 1) // 3
    parts = params.split([k, k, k - 1], -1)
    y, log_det = reference.rational_quadratic_spline(x / bound, *parts, bound=1.0, **options)
    return torch.where(x.abs() <= bound, y * bound, x), log_det


SCALED = [(4, 3), (45, 8)]


@pytest.mark.parametrize("inverse", [False, True])
def test_bound_of_each_feature(backend, inverse):
    """Values and gradients, those of the bound too, of B f(x / B)."""
    for case in SCALED:
        t = make_scaled(case, torch.Generator().manual_seed(1))
        t = {k: v.to(backend.device) for k, v in t.items()}
        cotangents = [torch.randn(t["x"].shape, dtype=torch.float64) for _ in range(2)]
        got, got_grads = vjp(spline, t, {"inverse": inverse}, cotangents)
        want, want_grads = vjp(scaled_reference, t, {"inverse": inverse}, cotangents)
        for a, b in zip([*got, *got_grads.values()], [*want, *want_grads.values()], strict=True):
            assert relative_error(a, b) <= 1e-10
        assert all(g.any() for g in got_grads.values())


def test_bound_of_each_feature_under_transforms(native):
    t = make_scaled((4, 3), torch.Generator().manual_seed(1))
    leaves = [v.requires_grad_() for v in t.values()]
    f = lambda x, params, bound: spline(x, params=params, bound=bound)  # noqa: E731
    assert torch.autograd.gradcheck(f, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, leaves)
    half = [v.detach().to(torch.bfloat16) for v in leaves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [o.dtype for o in f(*half)] == [torch.float32] * 2
    plain = [v.detach() for v in leaves]
    with torch._subclasses.FakeTensorMode() as mode:
        assert f(*(mode.from_tensor(v) for v in plain))[0].shape == (4, 3)
    assert f(*(v.to("meta") for v in plain))[1].shape == (4, 3)


def test_bounds_that_are_refused():
    x, params = torch.zeros(4, 3), torch.zeros(23)
    for bound, error, text in (
        (torch.ones(2), ValueError, r"bound: got shape \[2\], want what broadcasts to \[4, 3\] of x"),
        (torch.tensor([1.0, 0.0, 2.0]), ValueError, "bound: got 0 in it, want positive numbers"),
        (torch.ones(3, dtype=torch.float64), TypeError, "bound: got torch.float64, want torch.float32 like x"),
    ):
        with pytest.raises(error, match=text):
            spline(x, params=params, bound=bound)
    with pytest.raises(ValueError, match="left: got 0 and a tensor as bound, want one or the other"):
        spline(x, params=torch.zeros(25), bound=torch.ones(3), tails=None, left=0)


# --- against other libraries ------------------------------------------------------------------------------------------


def same(ours, theirs, tensors, options, limit=1e-9):
    cotangents = [torch.randn(tensors["x"].shape, dtype=torch.float64) for _ in range(2)]
    got, got_grads = vjp(ours, tensors, options, cotangents)
    want, want_grads = vjp(theirs, tensors, options, cotangents)
    for name, a, b in zip(["y", "log_det", *got_grads], [*got, *got_grads.values()], [*want, *want_grads.values()],
                          strict=True):  # fmt: skip
        assert a.numel() == 0 or ((a - b).abs() <= limit * (1 + b.abs().max())).all(), name


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("k", [1, 8, 11])
def test_equals_nflows_on_a_box(native, k, inverse):
    nflows = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    t = inputs((300, k), native, 1, seed=k)
    t["x"] = torch.rand(300, dtype=torch.float64) * 2.5 + 0.5
    t["x"][:2] = torch.tensor([0.5, 3.0])
    same(
        lambda **a: spline(**a, tails=None, **BOX), lambda **a: nflows.rational_quadratic_spline(*a.values(), **BOX),
        t, {"inverse": inverse},
    )  # fmt: skip


@pytest.mark.parametrize("inverse", [False, True])
def test_equals_nflows_with_identity_init(native, inverse):
    """Through slopes that an nflows without that option takes to the same."""
    nflows = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    beta = math.log(2) / (1 - 1e-3)

    def theirs(x, widths, heights, derivatives, **options):
        raw = (softplus(beta * derivatives) / beta).expm1().log()
        return nflows.rational_quadratic_spline(x, widths, heights, raw, left=-3, right=3, bottom=-3, top=3, **options)

    t = inputs((300, 8), native, 1)
    t["x"] = t["x"].clamp(-3, 3)
    same(lambda **a: spline(**a, tails=None, enable_identity_init=True), theirs, t, {"inverse": inverse})
    # linear tails: the raw slope at the ends is fixed, the softplus is not
    edge = math.log(math.expm1(1 - 1e-3))
    ends = torch.full((300, 1), edge, dtype=torch.float64)
    inner = {**t, "derivatives": t["derivatives"][:, 1:-1]}
    padded = {**t, "derivatives": torch.cat([ends, inner["derivatives"], ends], -1)}
    for a, b in zip(spline(**inner, enable_identity_init=True), theirs(**padded), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("k", [1, 8])
def test_equals_normflows_on_a_circle(native, k, inverse):
    normflows = pytest.importorskip("normflows.utils.splines")
    same(
        lambda **a: spline(**a, tails="circular"),
        lambda **a: normflows.unconstrained_rational_quadratic_spline(*a.values(), tails="circular", tail_bound=3.0),
        inputs((300, k), native, 0, seed=k), {"inverse": inverse},
    )  # fmt: skip


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_equals_normflows_with_tails_of_each_feature(native, inverse, packed):
    normflows = pytest.importorskip("normflows.utils.splines")
    tails = ["linear", "circular", "linear"]
    g = torch.Generator().manual_seed(0)
    t = {"x": torch.rand(50, 3, generator=g, dtype=torch.float64) * 5.9 - 2.95}
    t["params"] = torch.randn(50, 3, 25, generator=g, dtype=torch.float64)

    def ours(x, params, **options):
        parts = {"params": params}
        if not packed:
            parts = dict(zip(("widths", "heights", "derivatives"), params.split([8, 8, 9], -1), strict=True))
        return spline(x, **parts, tails=tails, **options)

    def theirs(x, params, **options):
        return normflows.unconstrained_rational_quadratic_spline(
            x, *params.split([8, 8, 9], -1), tails=tails, tail_bound=3.0, **options
        )

    same(ours, theirs, t, {"inverse": inverse})
    outside = {**t, "x": t["x"] * 10}
    y, log_det = ours(**outside)
    beyond = outside["x"].abs() > 3
    assert torch.equal(y[beyond], outside["x"][beyond])  # there normflows gives 0
    assert not log_det[beyond].any()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", ["linear", "circular"])
def test_equals_normflows_with_a_bound_of_each_feature(native, tails, inverse):
    normflows = pytest.importorskip("normflows.utils.splines")
    g = torch.Generator().manual_seed(0)
    randn = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)  # noqa: E731
    t = {
        "x": randn(60, 3) * 2, "widths": randn(60, 3, 8), "heights": randn(60, 3, 8),
        "derivatives": randn(60, 3, 8 + MORE[tails]), "bound": torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64),
    }  # fmt: skip

    def theirs(x, widths, heights, derivatives, bound, **options):
        return normflows.unconstrained_rational_quadratic_spline(
            x, widths, heights, derivatives, tail_bound=bound, **options
        )

    # normflows' slopes are those of the map, ours too: the square is scaled alike on both axes
    same(spline, theirs, t, {"tails": tails, "inverse": inverse})


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("k", [1, 2, 8, 11])
def test_equals_zuko(native, k, inverse, scale):
    zuko = pytest.importorskip("zuko.transforms")

    def theirs(x, widths, heights, derivatives, slope):
        f = zuko.MonotonicRQSTransform(widths, heights, derivatives, bound=5.0, slope=slope)
        if not inverse:
            return f.call_and_ladj(x)
        z = f.inv(x)
        return z, -f.log_abs_det_jacobian(z, x)

    t = inputs((300, k), native, -1, seed=k, scale=scale)
    t["x"] = t["x"] * 2
    for slope in (1e-3, 0.2):
        same(
            lambda slope, **a: spline(**a, dialect="zuko", bound=5.0, min_derivative=slope, inverse=inverse), theirs,
            t, {"slope": slope}, 1e-9 if scale == 1 else 1e-6,
        )  # fmt: skip


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("k", [1, 8])
def test_equals_pyro(native, k, inverse):
    pyro = pytest.importorskip("pyro.distributions.transforms.spline")

    def theirs(x, widths, heights, derivatives):
        y, log_det = pyro._monotonic_rational_spline(
            x, widths.softmax(-1), heights.softmax(-1), softplus(derivatives), bound=3.0, inverse=inverse, eps=0.0
        )
        return y, log_det

    same(lambda **a: spline(**a, dialect="pyro", inverse=inverse), theirs, inputs((300, k), native, -1, seed=k), {})


# --- what is true of any such map -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tails", "dialect"), KINDS)
def test_maps_of_every_kind(kernels, tails, dialect):
    """Round trip, log_det, monotone, and one value at both sides of the knots and ends."""
    options = {"tails": tails, **options_of(dialect)}
    row = inputs((1, 8), kernels, MORE[tails], seed=3, scale=0.7)
    x = torch.linspace(-3, 3, 4001, dtype=torch.float64, device=kernels.device).requires_grad_()
    y, log_det = spline(**{**row, "x": x}, **options)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope.log(), log_det, atol=1e-11)
    back, back_log_det = spline(**{**row, "x": y}, **options, inverse=True)
    assert torch.allclose(back, x, atol=1e-10)
    assert torch.allclose(back_log_det, -log_det, atol=1e-8)
    assert (y.diff() > 0).all()
    assert (log_det.diff().abs() <= 0.2).all(), "the derivative is continuous within"
    assert torch.allclose(y[[0, -1]].cpu(), torch.tensor([-3.0, 3.0], dtype=torch.float64), atol=1e-14)
    ends = {"pyro": 1 - 1e-3, "identity": 1.0}.get(dialect, 1.0)
    if tails == "linear":
        assert torch.allclose(log_det[[0, -1]].exp(), torch.full_like(slope[:2], ends), atol=1e-9)
    if tails == "circular":
        assert torch.allclose(log_det[0], log_det[-1], atol=1e-9)
    density = torch.exp(back_log_det.detach())  # of a uniform base on [-3, 3]
    assert abs(torch.trapezoid(density, y.detach()).item() / 6 - 1) <= 1e-3
    # rows that are shared, and those of each number, are other code
    own = {k: v.expand(4001, -1).contiguous() for k, v in row.items() if k != "x"}
    for a, b in zip(spline(x, **own, **options), (y, log_det), strict=True):
        assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize(("tails", "dialect"), KINDS)
def test_gradients_of_shared_rows_of_every_kind(kernels, tails, dialect):
    options = {"tails": tails, **options_of(dialect)}
    for k in (1, 8, 19):
        row = {n: v[0] for n, v in inputs((1, k), kernels, MORE[tails], seed=k).items() if n != "x"}
        x = torch.linspace(-2.9, 2.9, 200, dtype=torch.float64, device=kernels.device)
        cotangents = [torch.randn(200, dtype=torch.float64) for _ in range(2)]
        for inverse in (False, True):
            _, got = vjp(spline, {"x": x, **row}, {**options, "inverse": inverse}, cotangents)
            _, want = vjp(
                reference.rational_quadratic_spline, {"x": x, **row}, {**options, "inverse": inverse}, cotangents
            )
            for name, g in want.items():
                assert g.numel() == 0 or relative_error(got[name], g) <= 1e-10, (k, name)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", ["circular", None])
def test_zero_parameters_are_the_identity(kernels, tails, inverse):
    x = torch.linspace(-3, 3, 101, device=kernels.device)
    zeros = torch.zeros(16 + 8 + MORE[tails], device=kernels.device)
    for options in ({"enable_identity_init": True}, {"dialect": "zuko"}):
        y, log_det = spline(x, params=zeros, tails=tails, inverse=inverse, **options)
        assert torch.allclose(y, x, atol=1e-6)
        assert log_det.abs().max() <= 1e-6


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_outside_a_closed_spline(backend, inverse, shared):
    """NaN, without a gradient; and with `check_domain` an error."""
    t = inputs((40, 8), backend, 1, dtype=torch.float32)
    if shared:
        t = {k: v[0] if k != "x" else v for k, v in t.items()}
    t["x"] = torch.linspace(-1.5, 4.5, 40, device=backend.device)
    t["x"][0], t["x"][-1] = -torch.inf, torch.inf
    start, end = (0.5, 3.0) if inverse else (-1.0, 4.0)
    inside = (t["x"] >= start) & (t["x"] <= end)
    options = {"tails": None, "inverse": inverse, **BOX}
    out, grads = vjp(spline, t, options, [torch.ones(40)] * 2)
    for o in out:
        assert torch.equal(o.isfinite(), inside)
        assert torch.equal(o.isnan(), ~inside)
    assert all(g.isfinite().all() for g in grads.values())
    assert not grads["x"][~inside].any()
    with pytest.raises(ValueError, match="x: got numbers from -inf to inf, want them within"):
        spline(**t, **options, check_domain=True)
    spline(**{**t, "x": t["x"].clamp(start, end)}, **options, check_domain=True)


def test_bounds_of_each_feature(backend):
    """Exactly the identity outside, with its gradient; NaN where a bound turns out not to be positive."""
    bound = torch.tensor([1.0, 1e-3, 1e3], device=backend.device)
    t = {
        "x": torch.tensor([[2.0, 1e30, -1e4], [-torch.inf, -2e-3, torch.inf]], device=backend.device),
        "params": torch.randn(3, 23, device=backend.device), "bound": bound,
    }  # fmt: skip
    for inverse in (False, True):
        (y, log_det), grads = vjp(spline, t, {"inverse": inverse}, [torch.ones(2, 3)] * 2)
        assert torch.equal(y, t["x"])
        assert not log_det.any()
        assert torch.equal(grads["x"], torch.ones_like(y))
        assert not grads["params"].any()
        assert not grads["bound"].any()
    with torch.inference_mode():
        f = torch.func.vmap(
            lambda b: spline(t["x"][0], t["params"][:, :8], t["params"][:, 8:16], t["params"][:, 16:], bound=b)
        )
        y, log_det = f(torch.tensor([[1.0, -1.0, 0.0]], device=backend.device))
    assert y.isnan().tolist() == log_det.isnan().tolist() == [[False, True, True]]


def test_half_types_with_a_bound_of_each_feature(kernels):
    g = torch.Generator().manual_seed(0)
    t = {
        "x": torch.randn(50, 3, generator=g),
        "params": torch.randn(50, 3, 23, generator=g),
        "bound": torch.tensor([0.5, 2, 3]),
    }
    for dtype in (torch.float16, torch.bfloat16):
        half = {k: v.to(kernels.device, dtype) for k, v in t.items()}
        y, log_det = spline(**half)
        want = spline(**{k: v.float() for k, v in half.items()})
        assert (y.dtype, log_det.dtype) == (dtype, torch.float32)
        assert torch.equal(y, want[0].to(dtype))
        assert torch.equal(log_det, want[1])


@pytest.mark.parametrize("inverse", [False, True])
def test_infinite_parameters_of_zuko(backend, inverse):
    """They count as very large ones."""
    for name in ("widths", "heights", "derivatives"):
        for sign in (-1, 1):
            t = inputs((20, 8), backend, -1, dtype=torch.float32)
            outs = []
            for value in (math.inf, 1e30):
                t[name] = t[name].clone()
                t[name][:, 2] = sign * value
                out, grads = vjp(spline, t, {"dialect": "zuko", "inverse": inverse}, [torch.ones(20)] * 2)
                outs.append([*out, *grads.values()])
            assert all(torch.allclose(a, b, atol=1e-6) and b.isfinite().all() for a, b in zip(*outs, strict=True))


def test_tails_of_each_feature_are_checked():
    x, params = torch.zeros(2, 3), torch.zeros(3, 25)
    for tails, text in (
        (["linear"], "tails: got 1, want one for each of the 3 features of x"),
        (
            ["linear", "circular", None],
            r"tails: got \['linear', 'circular', None\], want 'linear', 'circular', None, or ",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            spline(x, params=params, tails=tails)
    with pytest.raises(ValueError, match=r"params: got shape \[3, 24\], want \[..., 3 K \+ 1\] with K >= 1"):
        spline(x, params=params[:, 1:], tails=["circular"] * 3)
    with pytest.raises(
        ValueError, match=r"min_derivative: got 0.7 with dialect='pyro' and mixed tails, want below 0.5"
    ):
        spline(x, params=params, tails=["linear"] * 3, dialect="pyro", min_derivative=0.7)
    y, _ = spline(x + 2.9, params=torch.linspace(-1, 1, 25), tails=("linear", "circular", "linear"), dialect="zuko")
    assert y.shape == x.shape
    assert torch.equal(y[:, 0], y[:, 2])
    assert not torch.equal(y[:, 0], y[:, 1])


def test_compiled_with_a_bound_of_each_feature(native):
    def f(x, params, bound):
        return ops.rational_quadratic_spline(x, params=params, bound=bound, tails=None, check_domain=True)

    t = {"x": torch.rand(6, 3) - 0.5, "params": torch.randn(3, 25), "bound": torch.tensor([0.5, 2, 3])}
    want = f(**t)
    for a, b in zip(torch.compile(f, fullgraph=True, backend="aot_eager")(**t), want, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
