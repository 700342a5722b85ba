import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from genfast import ops
from genfast.reference import mixture_cdf as reference
from tests.harness import BadInput, OpSpec, OpTests, relative_error, vjp

logistics, gaussians = ops.mixture_of_logistics_cdf, ops.mixture_of_gaussians_cdf
KINDS = {"logistic": (logistics, ["probability", "logit"]), "normal": (gaussians, ["probability", "logit", "probit"])}
PAIRS = [(kind, output) for kind, (_, outputs) in KINDS.items() for output in outputs]
NAMES = ["logits", "means", "log_scales"]


def make(case, generator):
    """Numbers, and components that overlap; the case is (N, K)."""
    n, k = case
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    return {
        "x": randn(n) * 2, "logits": randn(n, k), "means": randn(n, k) * 1.5, "log_scales": randn(n, k) * 0.4 - 0.3,
    }  # fmt: skip


def make_probabilities(case, generator):
    tensors = make(case, generator)
    return {**tensors, "x": (0.8 * tensors["x"]).sigmoid()}


def extreme(size, n=64, k=4):
    """Every parameter is -size, 0 or size, and x one of these or near them."""

    def tensors():
        g = torch.Generator().manual_seed(7)
        pick = lambda *shape: (torch.randint(0, 3, shape, generator=g) - 1) * float(size)  # noqa: E731
        return {"x": pick(n) * torch.rand(n, generator=g), **{name: pick(n, k) for name in NAMES}}

    return tensors


EXTREME = {"50": extreme(50.0), "1e4": extreme(1e4), "3e38": extreme(3e38), "3e38, one component": extreme(3e38, k=1)}


def undo(function):
    def call(tensors, options, outputs):
        return function(**{**tensors, "x": outputs[0]}, **{**options, "inverse": not options.get("inverse", False)})[0]

    return call


class TestMixtureOfLogistics(OpTests):
    spec = OpSpec(
        name="mixture_of_logistics_cdf", function=logistics, reference=reference.mixture_of_logistics_cdf, make=make,
        cases=[(3, 2), (1, 1), (131, 8)], rows=["x", *NAMES],
        variants={
            "probability": {}, "logit": {"output": "logit"}, "inverse": {"output": "logit", "inverse": True},
        },
        small=[(105, 1), (105, 4), (70, 31)], small_options=[{"output": "logit"}, {"output": "logit", "inverse": True}],
        extreme=EXTREME, undo=lambda t, o, out: undo(logistics)(t, o, out) if o else t["x"],
        bad={
            "no components": BadInput(
                lambda t: {"logits": t["logits"][:, :0]}, ValueError,
                r"logits: got shape \[3, 0\], want \[..., K\] with K >= 1",
            ),
            "other numbers of logits": BadInput(
                lambda t: {"logits": t["logits"][:2]}, ValueError,
                r"logits: got shape \[2, 2\], want \[3, K\], or what broadcasts to it",
            ),
            "fewer means": BadInput(
                lambda t: {"means": t["means"][:, :1]}, ValueError,
                r"means: got shape \[3, 1\], want \[3, K = 2 of logits\], or what broadcasts to it",
            ),
            "more scales": BadInput(
                lambda t: {"log_scales": t["log_scales"].repeat(1, 2)}, ValueError,
                r"log_scales: got shape \[3, 4\], want \[3, K = 2 of logits\], or what broadcasts to it",
            ),
            "probit of logistics": BadInput(
                lambda t: {"output": "probit"}, ValueError, "output: got 'probit', want one of 'probability', 'logit'"
            ),
            "inverse is no bool": BadInput(lambda t: {"inverse": 1}, TypeError, "inverse: got int, want a bool"),
        },
    )  # fmt: skip


class TestMixtureOfGaussians(OpTests):
    spec = OpSpec(
        name="mixture_of_gaussians_cdf", function=gaussians, reference=reference.mixture_of_gaussians_cdf, make=make,
        cases=[(3, 2), (131, 8)], rows=["x", *NAMES],
        variants={"probit": {"output": "probit"}, "inverse": {"output": "probit", "inverse": True}},
        small=[(105, 1), (105, 4), (70, 31)],
        small_options=[{"output": "probit"}, {"output": "probit", "inverse": True}, {"output": "logit"}, {}],
        extreme=EXTREME, undo=undo(gaussians),
        bad={
            "another output": BadInput(
                lambda t: {"output": "log"}, ValueError,
                "output: got 'log', want one of 'probability', 'logit', 'probit'",
            )
        },
    )  # fmt: skip


def make_packed(case, generator):
    tensors = make(case, generator)
    return {"x": tensors.pop("x"), "params": torch.cat(list(tensors.values()), -1)}


def packed_reference(x, params, **options):
    return reference.mixture_of_logistics_cdf(x, *params.chunk(3, -1), **options)


class TestPackedParameters(OpTests):
    spec = OpSpec(
        name="mixture_of_logistics_cdf", function=logistics, reference=packed_reference, make=make_packed,
        cases=[(3, 2), (130, 8)], rows=["x", "params"], variants={"logit": {"output": "logit"}},
        bad={
            "both kinds": BadInput(
                lambda t: {"logits": t["params"]}, TypeError,
                "params: got it and logits, means or log_scales too, want one or the other",
            ),
            "neither kind": BadInput(
                lambda t: {"params": None}, TypeError, "logits: got NoneType, want a torch.Tensor"
            ),
            "no such K": BadInput(
                lambda t: {"params": t["params"][:, 1:]}, ValueError,
                r"params: got shape \[3, 5\], want \[..., 3 K\] with K >= 1",
            ),
            "other numbers": BadInput(
                lambda t: {"params": t["params"][:2]}, ValueError,
                r"params: got shape \[2, 6\], want \[3, 6\], or what broadcasts to it",
            ),
        },
    )  # fmt: skip


# --- rows that several numbers share ----------------------------------------------------------------------------------

# Shapes of x and of the rows: each block of dimensions is short, or longer than any register, chunk or tile.
SHARED = {
    "one row": ((70,), ()), "one row, chunks": ((9000,), (1,)), "features": ((50, 7), (7,)),
    "features, chunks": ((5000, 3), (3,)), "samples": ((50, 3), (50, 1)), "samples, long": ((3, 700), (3, 1)),
    "channels": ((4, 5, 33), (5, 1)), "groups": ((4, 5, 6, 7), (4, 1, 6, 1)), "a scalar": ((), ()),
    "no numbers": ((0, 3), (3,)),
}  # fmt: skip


def shared_inputs(form, k, device, dtype):
    shape, lead = SHARED[form]
    g = torch.Generator().manual_seed(k)
    t = {"x": torch.randn(shape, generator=g, dtype=torch.float64) * 2}
    for name, size in zip(NAMES, (1.0, 1.5, 0.4), strict=True):
        t[name] = torch.randn(*lead, k, generator=g, dtype=torch.float64) * size
    return {name: v.to(device, dtype) for name, v in t.items()}


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("form", SHARED)
def test_shared_rows_equal_expanded_ones(backend, form, inverse):
    options = {"output": "logit", "inverse": inverse}
    for k, dtype, limit in ((1, torch.float64, 1e-10), (5, torch.float32, 1e-4), (19, torch.float64, 1e-10)):
        t = shared_inputs(form, k, backend.device, dtype)
        cotangents = [torch.randn_like(t["x"]) for _ in range(2)]
        got, got_grads = vjp(logistics, t, options, cotangents)
        wide = {n: v.double() for n, v in t.items()}
        expanded = lambda x, **p: logistics(  # noqa: E731
            x, **{n: v.expand(*x.shape, v.shape[-1]).contiguous() for n, v in p.items()}, **options
        )
        want, want_grads = vjp(expanded, wide, {}, [c.double() for c in cotangents])
        for a, b in zip([*got, *got_grads.values()], [*want, *want_grads.values()], strict=True):
            assert (a.shape, a.dtype) == (b.shape, dtype)
            assert relative_error(a, b) <= limit, (k, dtype)


@pytest.mark.parametrize("form", ["one row, chunks", "features, chunks", "samples"])
def test_threads_do_not_change_the_sums(kernels, form):
    t = shared_inputs(form, 8, kernels.device, torch.float32)
    cotangents = [torch.randn_like(t["x"]) for _ in range(2)]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([g for out in vjp(logistics, t, {"output": "logit"}, cotangents)[1:] for g in out.values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("form", ["one row, chunks", "features", "samples"])
def test_shared_rows_of_half_types(kernels, form, dtype):
    """Sums over numbers are not rounded on the way, nor is the inverse's y before its use: only the results are."""
    t = shared_inputs(form, 8, kernels.device, dtype)
    cotangents = [torch.ones_like(t["x"]), torch.ones_like(t["x"], dtype=torch.float32)]
    for options in ({"output": "logit"}, {"output": "logit", "inverse": True}):
        got, got_grads = vjp(logistics, t, options, cotangents)
        wide = {k: v.float() for k, v in t.items()}
        want, want_grads = vjp(logistics, wide, options, [c.float() for c in cotangents])
        assert torch.equal(got[0], want[0].to(dtype))
        assert torch.equal(got[1], want[1])
        for name, g in got_grads.items():
            assert torch.equal(g, want_grads[name].to(dtype)), name


# --- the mathematics --------------------------------------------------------------------------------------------------


def tensors_on(device, dtype=torch.float32, **values):
    return {k: torch.as_tensor(v, dtype=dtype, device=device) for k, v in values.items()}


def test_equals_the_mixture_of_torch(backend):
    t = {k: v.to(backend.device) for k, v in make((500, 6), torch.Generator().manual_seed(3)).items()}
    p, log_p = gaussians(**t)
    components = Normal(t["means"], t["log_scales"].exp())
    mixture = MixtureSameFamily(Categorical(logits=t["logits"]), components)
    assert torch.allclose(p, mixture.cdf(t["x"]), rtol=0, atol=1e-14)
    assert torch.allclose(log_p, mixture.log_prob(t["x"]), rtol=1e-12, atol=1e-12)
    digits = (p - 0.5).abs() < 0.4999  # nearer to 1, they are lost
    assert torch.allclose(gaussians(**t, output="logit")[0][digits], p.logit()[digits], rtol=1e-9, atol=1e-9)
    assert torch.allclose(gaussians(**t, output="probit")[0][digits], torch.special.ndtri(p)[digits], rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_integrates_to_the_probability(backend, kind):
    function, _ = KINDS[kind]
    x = torch.linspace(-40, 40, 40_001, dtype=torch.float64, device=backend.device)
    row = {k: v[0].to(backend.device) for k, v in make((1, 5), torch.Generator().manual_seed(4)).items() if k != "x"}
    p, log_p = function(x, **row)
    total = torch.cumulative_trapezoid(log_p.exp(), x)
    assert p[0] < 1e-6
    assert (p[-1] - 1).abs() < 1e-6
    assert (total + p[0] - p[1:]).abs().max() <= 1e-6


@pytest.mark.parametrize(("kind", "output"), [("logistic", "logit"), ("normal", "probit")])
def test_one_component_is_affine_however_far(kernels, kind, output):
    """The logit of a logistic CDF, and the probit of a normal one, are u: also where the CDF itself is 0 or 1."""
    function, _ = KINDS[kind]
    u = torch.tensor([*(-(10.0**i) for i in range(12, -5, -1)), 0.0, *(10.0**i for i in range(-4, 13))])
    for log_scale in (-5.0, 0.0, 3.0):
        t = tensors_on(
            kernels.device, x=u * math.exp(log_scale), logits=[0.3], means=[0.0], log_scales=[log_scale]
        )  # fmt: skip
        y, log_det = function(**t, output=output)
        assert ((y.cpu() - u).abs() <= 4e-7 * (u.abs() + 1)).all()
        assert ((log_det.cpu() + log_scale).abs() <= 3e-6).all()
        back, log_det = function(**{**t, "x": y}, output=output, inverse=True)
        assert ((back - t["x"]).abs().cpu() <= 1e-6 * math.exp(log_scale) * (u.abs() + 1)).all()
        assert ((log_det.cpu() - log_scale).abs() <= 3e-6).all()


@pytest.mark.parametrize(("kind", "output"), PAIRS)
def test_tails_and_gaps_are_accurate_in_float32(kernels, kind, output):
    """Where every term underflows in float32: values, and gradients, against float64 in which they do not."""
    function, _ = KINDS[kind]
    distance = 600.0 if kind == "logistic" else 34.0  # of which float64 still has the density
    x = torch.linspace(-distance, distance, 401)
    gap = torch.tensor([-0.45 * distance, 0.45 * distance])  # between two components lies no density
    t = tensors_on(kernels.device, x=x, logits=[0.4, -1.0, -40.0], means=[*gap, 0.0], log_scales=[0.0, 0.2, -1.0])
    single = {k: v.expand(401, -1).contiguous() if k != "x" else v for k, v in t.items()}
    double = {k: v.double().cpu() for k, v in single.items()}
    cotangents = [torch.ones(401, device=kernels.device)] * 2
    got, got_grads = vjp(function, single, {"output": output}, cotangents)
    want, want_grads = vjp(
        getattr(reference, function.__name__), double, {"output": output}, [c.double().cpu() for c in cotangents]
    )
    for a, b in zip(got, want, strict=True):
        assert ((a.cpu() - b).abs() <= 2e-6 * (1 + b.abs())).all()
    for name, b in want_grads.items():
        size = b.abs() + (distance if name == "log_scales" else 1)
        assert ((got_grads[name].cpu() - b).abs() <= 3e-5 * size).all(), name


@pytest.mark.parametrize(("kind", "output"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_inverse_of_hard_mixtures(kernels, kind, output, dtype):
    """Narrow components far apart, where Newton's method alone diverges: y lies between the values next to the root."""
    function, _ = KINDS[kind]
    g = torch.Generator().manual_seed(8)
    n, k = 4000, 6
    randn = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)  # noqa: E731
    t = {"x": randn(n) * 3, "logits": randn(n, k) * 6, "means": randn(n, k) * 20, "log_scales": randn(n, k) * 3 - 2}
    t["means"][::3] *= 1e-3
    if output == "probability":
        t["x"] = t["x"].sigmoid()
    t = {name: v.to(kernels.device, dtype) for name, v in t.items()}
    x, log_det = function(**t, output=output, inverse=True)
    assert x.isfinite().all()
    assert log_det.isfinite().all()
    # a few floats around the root, or the rounding of x - mu
    step = 8 * torch.finfo(dtype).eps * (x.abs() + t["means"].abs().amax(-1))
    low, high = (function(**{**t, "x": x + s}, output=output)[0] for s in (-step, step))
    slack = 32 * torch.finfo(dtype).eps * (1 + t["x"].abs())
    assert ((low <= t["x"] + slack) & (t["x"] - slack <= high)).all()
    there = function(**{**t, "x": x}, output=output)[1]
    assert torch.allclose(there, -log_det, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "output"), PAIRS)
def test_an_absent_component(backend, kind, output):
    function, _ = KINDS[kind]
    t = {k: v.to(backend.device) for k, v in make((60, 4), torch.Generator().manual_seed(5)).items()}
    without = {k: v if k == "x" else v[:, [0, 1, 3]].contiguous() for k, v in t.items()}
    t["logits"][:, 2] = -math.inf
    for inverse in (False, True):
        if output == "probability" and inverse:
            t["x"], without["x"] = t["x"].sigmoid(), without["x"].sigmoid()
        options = {"output": output, "inverse": inverse}
        cotangents = [torch.ones(60, dtype=torch.float64, device=backend.device)] * 2
        got, got_grads = vjp(function, t, options, cotangents)
        want, want_grads = vjp(function, without, options, cotangents)
        for a, b in zip(got, want, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
        for name in NAMES:
            assert not got_grads[name][:, 2].abs().gt(1e-30).any(), name
            assert torch.allclose(got_grads[name][:, [0, 1, 3]], want_grads[name], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_quantiles(backend, kind):
    """The inverse of the CDF itself, of a probability: against the reference, and of extreme mixtures."""
    function, _ = KINDS[kind]
    t = make_probabilities((131, 5), torch.Generator().manual_seed(1))
    cotangents = [torch.randn(131, dtype=torch.float64) for _ in range(2)]
    want, want_grads = vjp(getattr(reference, function.__name__), t, {"inverse": True}, cotangents)
    here = {k: v.to(backend.device) for k, v in t.items()}
    got, got_grads = vjp(function, here, {"inverse": True}, [c.to(backend.device) for c in cotangents])
    for a, b in zip([*got, *got_grads.values()], [*want, *want_grads.values()], strict=True):
        assert relative_error(a, b) <= 1e-10
    if backend.name == "reference":
        return
    for tensors in EXTREME.values():
        t = {k: v.to(backend.device) for k, v in {**tensors(), "x": torch.linspace(0, 1, 64)}.items()}
        out, grads = vjp(function, t, {"inverse": True}, [torch.ones(64, device=backend.device)] * 2)
        assert all(v.isfinite().all() for v in [*out, *grads.values()])


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_at_and_beyond_the_ends(backend, kind):
    function, _ = KINDS[kind]
    t = {k: v[:1].to(backend.device).float() for k, v in make((1, 4), torch.Generator().manual_seed(6)).items()}
    t["x"] = torch.tensor([0.0, 1.0, 1e-45, 1 - 2**-24, -1e-3, 1.001, math.nan], device=backend.device)
    out, grads = vjp(function, t, {"inverse": True}, [torch.ones(7, device=backend.device)] * 2)
    assert all(o[:4].isfinite().all() for o in out)
    assert out[0][0] < out[0][1]
    assert all(o[4:].isnan().all() for o in out)
    assert not grads["x"][:2].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_nan_in_a_row(kernels, kind, inverse):
    """It comes out of its own number and of no other, also in one register."""
    function, _ = KINDS[kind]
    for name in NAMES:
        t = {k: v.to(kernels.device).float() for k, v in make((40, 4), torch.Generator().manual_seed(6)).items()}
        t[name][3, 1] = math.nan
        if name == "logits":
            t[name][7, 2] = math.inf
            t[name][9] = -math.inf
        out, grads = vjp(
            function, t, {"output": "logit", "inverse": inverse}, [torch.ones(40, device=kernels.device)] * 2
        )
        bad = torch.zeros(40, dtype=torch.bool)
        bad[[3, 7, 9] if name == "logits" else [3]] = True
        for o in [*out, grads["x"]]:
            assert torch.equal(o.isnan().cpu(), bad), name


def test_gradients_at_the_limits_of_scales(backend):
    """A log-scale beyond its limit counts as the limit, and has no gradient."""
    t = tensors_on(
        backend.device, torch.float64, x=[0.5, 0.5], logits=[[0.1, 0.2]] * 2, means=[[0.5, 0.2]] * 2,
        log_scales=[[-25.0, 0.0], [-24.0, 0.0]],
    )  # fmt: skip
    ones = [torch.ones(2, dtype=torch.float64, device=backend.device)] * 2
    out, grads = vjp(logistics, t, {"output": "logit"}, ones)
    assert out[0][0] == out[0][1]
    assert grads["log_scales"][0, 0] == 0
    assert grads["log_scales"][1, 0] != 0
    assert torch.equal(grads["means"][0], grads["means"][1])


@pytest.mark.parametrize(("kind", "output"), PAIRS)
def test_second_derivatives_of_the_inverse(native, kind, output):
    function, _ = KINDS[kind]
    t = (make_probabilities if output == "probability" else make)((3, 2), torch.Generator().manual_seed(2))
    leaves = [v.requires_grad_() for v in t.values()]
    call = lambda x, l, m, s: function(x, l, m, s, output=output, inverse=True)  # noqa: E731, E741
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)
