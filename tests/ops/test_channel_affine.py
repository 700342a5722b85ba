import pytest
import torch

import genfast
from genfast import ops
from genfast.ops import _channel_products as products
from genfast.reference import channel_affine as reference
from tests.harness import BadInput, OpSpec, OpTests, Small, relative_error, vjp

BOTH = {"forward": {"inverse": False}, "inverse": {"inverse": True}}


def undo(function):
    return lambda t, options, out: function(
        **{**t, "x": out[0]}, **{**options, "inverse": not options["inverse"]}
    )[0]  # fmt: skip


def randn(generator, *size):
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def weights(n, g):
    """An L and U whose products do not grow."""
    return {
        "lower": randn(g, n, n) / (2 * n), "upper": randn(g, n, n) / (2 * n), "log_diag": randn(g, n) / 4,
    }  # fmt: skip


def completed(function):
    """With what has no gradient: signs of the diagonal, and a permutation of the channels."""

    def call(x, log_diag, *, sign_diag=None, permutation=None, **rest):
        if isinstance(log_diag, torch.Tensor) and log_diag.layout != torch.strided:
            return function(x, log_diag=log_diag, sign_diag=None, permutation=None, **rest)
        if permutation is None and isinstance(log_diag, torch.Tensor) and log_diag.is_floating_point():
            n = log_diag.shape[0]
            i = torch.ones_like(log_diag.detach()).cumsum(0).long() - 1
            permutation = (7 * i + 2) % n if n % 7 else n - 1 - i
            if isinstance(x, torch.Tensor) and x.device != permutation.device:
                permutation = None
        if sign_diag is None and isinstance(log_diag, torch.Tensor):
            sign_diag = torch.ones_like(log_diag.detach())
            sign_diag[1::3].fill_(-2)
        return function(x, log_diag=log_diag, sign_diag=sign_diag, permutation=permutation, **rest)

    return call


conv1x1, both = completed(ops.invertible_conv1x1), completed(ops.actnorm_conv1x1)


def scales(n, g):
    return {"bias": randn(g, n), "log_scale": randn(g, n) / 2}


def bad(**change):
    return lambda t: {k: f(t[k]) for k, f in change.items()}


SHORT = r"got shape \[2\], want \[C\] with C = 3 channels of x"
SCALE_BAD = {
    "short log_scale": BadInput(bad(log_scale=lambda v: v[:2]), ValueError, f"log_scale: {SHORT}"),
    "short bias": BadInput(bad(bias=lambda v: v[:2]), ValueError, f"bias: {SHORT}"),
}
WEIGHT_BAD = {
    "no image": BadInput(
        bad(x=lambda v: v[0, 0]), ValueError, r"x: got shape \[\d, \d\], want images \[\.\.\., C, H, W\]"
    ),
    "lower of other channels": BadInput(
        bad(lower=lambda v: v[:2]), ValueError,
        r"lower: got shape \[2, 3\], want \[C, C\] with C = 3 channels of x",
    ),
    "upper of other channels": BadInput(
        bad(upper=lambda v: v[:2]), ValueError,
        r"upper: got shape \[2, 3\], want \[C, C\] with C = 3 channels of x",
    ),
    "short log_diag": BadInput(bad(log_diag=lambda v: v[:2]), ValueError, f"log_diag: {SHORT}"),
    "short sign_diag": BadInput(lambda t: {"sign_diag": torch.ones(2)}, ValueError, f"sign_diag: {SHORT}"),
    "sign_diag of another dtype": BadInput(
        lambda t: {"sign_diag": torch.ones(3, dtype=torch.int64)}, TypeError,
        "sign_diag: got torch.int64, want torch.float32 like x",
    ),
}  # fmt: skip


def make_actnorm(case, g):
    return {"x": randn(g, *case), **scales(case[1], g)}


def extreme_scales(value):
    return lambda: {
        "x": torch.full((3, 2, 2, 2), 1e-3), "log_scale": torch.tensor([value, -value]), "bias": torch.ones(2)
    }  # fmt: skip


class TestActNormOfImages(OpTests):
    spec = OpSpec(
        name="actnorm", function=lambda **t: ops.actnorm(event_dim=3, **t),
        reference=reference.actnorm, make=make_actnorm, constant=[1], rows=["x"], variants=BOTH,
        cases=[(2, 3, 2, 2), (1, 1, 1, 1), (5, 2, 7, 9), (130, 4, 4, 4), (3, 70, 5, 5)],
        small=[(3, 5, 3, 7), (35, 4, 1, 1)], bad=SCALE_BAD | {
            "scalar": BadInput(lambda t: {"x": t["x"][0, 0, 0, 0]}, ValueError, r"x: got shape \[\], want images .*"),
            "other event": BadInput(lambda t: {"event_dim": 2}, TypeError, ".*multiple values.*"),
        },
        extreme={"wide": extreme_scales(60.0), "saturated": lambda: {
            "x": torch.zeros(3, 2, 2, 2), "log_scale": torch.tensor([3e38, -3e38]), "bias": torch.zeros(2)}},
        undo=undo(lambda **t: ops.actnorm(event_dim=3, **t)),
    )  # fmt: skip


class TestActNormOfVectors(OpTests):
    spec = OpSpec(
        name="actnorm", function=lambda **t: ops.actnorm(event_dim=1, **t), reference=reference.actnorm,
        make=make_actnorm, constant=[1], rows=["x"], variants=BOTH,
        cases=[(4, 3), (1, 1), (1030, 5), (67, 200)], bad={
            "short log_scale": BadInput(
                bad(log_scale=lambda v: v[:2]), ValueError, f"log_scale: {SHORT}"
            ),
        },
        undo=undo(lambda **t: ops.actnorm(event_dim=1, **t)),
    )  # fmt: skip


def make_conv(case, g):
    return {"x": randn(g, *case), **weights(case[1], g)}


class TestInvertibleConv1x1(OpTests):
    spec = OpSpec(
        name="invertible_conv1x1", function=conv1x1, reference=completed(reference.invertible_conv1x1),
        make=make_conv, constant=[1], rows=["x"], variants=BOTH,
        cases=[(2, 3, 2, 2), (1, 1, 1, 1), (5, 2, 7, 9), (40, 12, 4, 4), (3, 70, 5, 5)],
        half_cases=[(2, 3, 2, 2)], bad=WEIGHT_BAD, undo=undo(conv1x1),
        extreme={"wide": lambda: {
            "x": torch.full((3, 2, 2, 2), 1e-3), "lower": torch.zeros(2, 2), "upper": torch.zeros(2, 2),
            "log_diag": torch.tensor([60.0, -60.0])}},
    )  # fmt: skip


class TestActNormConv1x1(OpTests):
    spec = OpSpec(
        name="actnorm_conv1x1", function=both, reference=completed(reference.actnorm_conv1x1),
        make=lambda case, g: {"x": randn(g, *case), **scales(case[1], g), **weights(case[1], g)},
        constant=[1], rows=["x"], variants=BOTH, cases=[(2, 3, 2, 2), (5, 2, 7, 9), (130, 8, 2, 2), (2, 33, 7, 9)],
        bad=SCALE_BAD | WEIGHT_BAD, undo=undo(both),
    )  # fmt: skip


def small(case, *, scaled):
    def make():
        g = torch.Generator().manual_seed(0)
        n = case[1]
        t = {"x": randn(g, *case), **(scales(n, g) if scaled else {}), **weights(n, g)}
        return t | {"sign_diag": randn(g, n), "permutation": torch.randperm(n, generator=g)}

    return Small(make, list(BOTH.values()))


SMALL = {
    "invertible_conv1x1 of 5 channels": small((3, 5, 3, 7), scaled=False),
    "actnorm_conv1x1 of 5 channels": small((3, 5, 3, 7), scaled=True),
    "actnorm_conv1x1 of 34 channels": small((3, 34, 5, 5), scaled=True),
}
ROWS_BAD = {
    "scalar": BadInput(lambda t: {"x": t["x"][0, 0]}, ValueError, r"x: got a scalar, want rows \[\.\.\., D\]"),
    "other lower": BadInput(
        bad(lower=lambda v: v[:2]), ValueError, r"lower: got shape \[2, 3\], want \[D, D\] with D = 3 of x"
    ),
    "other upper": BadInput(
        bad(upper=lambda v: v[:2]), ValueError, r"upper: got shape \[2, 3\], want \[D, D\] with D = 3 of x"
    ),
    "short diagonal": BadInput(
        bad(raw_diag=lambda v: v[:2]), ValueError, r"raw_diag: got shape \[2\], want \[D\] with D = 3 of x"
    ),
    "short bias": BadInput(bad(bias=lambda v: v[:2]), ValueError, r"bias: got shape \[2\], want \[D\] with D = 3 of x"),
    "no minimum": BadInput(
        lambda t: {"min_diag": 0.0}, ValueError, r"min_diag: got 0\.0, want a number from 1e-30 to 1e\+06"
    ),
}


class TestLULinear(OpTests):
    spec = OpSpec(
        name="lu_linear", function=ops.lu_linear, reference=reference.lu_linear,
        make=lambda case, g: {
            "x": randn(g, *case), "lower": randn(g, case[1], case[1]) / (2 * case[1]),
            "upper": randn(g, case[1], case[1]) / (2 * case[1]), "bias": randn(g, case[1]),
            "raw_diag": randn(g, case[1]) + 1,
        },
        constant=[1], rows=["x"], variants=BOTH, cases=[(4, 3), (1, 1), (1030, 5), (67, 64), (9, 50)],
        small=[(35, 5)], bad=ROWS_BAD, undo=undo(ops.lu_linear),
        extreme={"wide": lambda: {
            "x": torch.ones(3, 2), "lower": torch.zeros(2, 2), "upper": torch.zeros(2, 2),
            "raw_diag": torch.tensor([1e30, -1e30]), "bias": torch.zeros(2)}},
    )  # fmt: skip


@pytest.mark.parametrize("function", [both, conv1x1], ids=["both", "conv"])
@pytest.mark.parametrize("inverse", [False, True])
def test_channels_last(kernels, function, inverse):
    """Images whose channels lie last are read, and their results and gradients written, in that order."""
    g = torch.Generator().manual_seed(0)
    for case in ((3, 5, 4, 7), (130, 4, 2, 2)):
        t = {"x": randn(g, *case), **weights(case[1], g)}
        if function is both:
            t |= scales(case[1], g)
        t = {k: v.to(kernels.device) for k, v in t.items()}
        last = {**t, "x": t["x"].contiguous(memory_format=torch.channels_last)}
        cotangents = [randn(g, *case), randn(g, case[0])]
        for c in (cotangents[0], cotangents[0].contiguous(memory_format=torch.channels_last)):
            want, want_grads = vjp(function, t, {"inverse": inverse}, cotangents)
            got, grads = vjp(function, last, {"inverse": inverse}, [c, cotangents[1]])
            assert got[0].is_contiguous(memory_format=torch.channels_last)
            assert grads["x"].is_contiguous(memory_format=torch.channels_last)
            for a, b in zip([*got, *grads.values()], [*want, *want_grads.values()], strict=True):
                assert relative_error(a, b) <= 1e-13


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_products_of_many_channels(monkeypatch, inverse, dtype):
    """What takes over beyond some number of channels is the same map, with the same gradients."""
    specs = [TestActNormConv1x1.spec, TestInvertibleConv1x1.spec, TestLULinear.spec]
    for spec in specs:
        for case in spec.cases[:2]:
            t = spec.inputs(case, dtype)
            cotangents = [torch.ones_like(o) for o in spec.function(**t, inverse=inverse)]
            cotangents[0] = randn(torch.Generator().manual_seed(1), *case)
            want = vjp(spec.function, t, {"inverse": inverse}, cotangents)
            with monkeypatch.context() as m:
                m.setattr(products, "_MOST_ON_CPU", 0)
                got = vjp(spec.function, t, {"inverse": inverse}, cotangents)
            for a, b in zip([*got[0], *got[1].values()], [*want[0], *want[1].values()], strict=True):
                assert a.dtype == b.dtype
                assert relative_error(a, b) <= (1e-12 if dtype == torch.float64 else 1e-2)


def test_one_pixel_by_hand(backend):
    """U = [[2, 1], [0, -1]], L = [[1, 0], [3, 1]], the channels swapped."""
    to = lambda *v: torch.tensor(v, dtype=torch.float64, device=backend.device)  # noqa: E731
    x = to(1, 4).view(1, 2, 1, 1)
    log_diag, sign = to(2, 1).log(), to(1, -1)
    y, log_det = ops.invertible_conv1x1(
        x, to((7, 7), (3, 7)), to((7, 1), (7, 7)), log_diag, sign, torch.tensor([1, 0], device=backend.device)
    )
    assert torch.allclose(y.flatten(), to(3 * 6 - 4, 6))
    assert torch.allclose(log_det, log_diag.sum())


def test_a_weight_of_a_library_is_factored(backend):
    """W by torch.linalg.lu, against the convolution with it, and its slogdet."""
    w = torch.randn(6, 6, dtype=torch.float64)
    p, lower, upper = torch.linalg.lu(w)
    diag = upper.diagonal()
    given = (t.to(backend.device) for t in (lower, upper, diag.abs().log(), diag.sign(), p.argmax(1)))
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    y, log_det = ops.invertible_conv1x1(x.to(backend.device), *given)
    assert torch.allclose(y.cpu(), torch.nn.functional.conv2d(x, w[:, :, None, None]))
    assert torch.allclose(log_det.cpu(), 20 * torch.linalg.slogdet(w)[1].expand(3))


def test_singular_weights(backend):
    """A diagonal with a sign of 0: the product is right, its log-determinant minus infinity, its inverse not finite."""
    t = {k: v.to(backend.device) for k, v in make_conv((2, 3, 2, 2), torch.Generator().manual_seed(0)).items()}
    t["sign_diag"] = torch.tensor([1, 0, -1]).to(t["x"])
    y, log_det = conv1x1(**t)
    assert y.isfinite().all()
    assert (log_det == -torch.inf).all()
    x, log_det = conv1x1(**{**t, "x": y}, inverse=True)
    assert not x.isfinite().all()
    assert (log_det == torch.inf).all()


def test_images_without_pixels(kernels):
    t = {k: v.to(kernels.device) for k, v in make_conv((2, 3, 2, 2), torch.Generator().manual_seed(0)).items()}
    t["x"] = t["x"][:, :, :0]
    out, grads = vjp(conv1x1, t, {}, [torch.zeros(2, 3, 0, 2), torch.ones(2)])
    assert out[0].shape == (2, 3, 0, 2)
    assert torch.equal(out[1].cpu(), torch.zeros(2, dtype=torch.float64))
    assert not any(g.any() for g in grads.values())


@pytest.mark.parametrize(
    ("order", "error", "text"),
    [
        (torch.tensor([0, 1]), ValueError, rf"permutation: {SHORT}"),
        (torch.tensor([0, 1, 1]), ValueError, r"permutation: got \[0, 1, 1\], want each of 0 to 2 once"),
        (torch.tensor([0, 3, 1]), ValueError, r"permutation: got \[0, 3, 1\], want each of 0 to 2 once"),
        (torch.tensor([0, 1, 2], dtype=torch.int32), TypeError, r"permutation: got torch.int32, want torch.int64"),
        ([0, 1, 2], TypeError, r"permutation: got list, want a torch.Tensor"),
        (torch.tensor([0, 1, 2], device="meta"), ValueError, r"permutation: got a tensor on meta, want cpu like x"),
    ],
)
def test_bad_permutation(order, error, text):
    t = make_conv((2, 3, 2, 2), torch.Generator().manual_seed(0))
    for backend in ("native", "reference"):
        with genfast.backend(backend), pytest.raises(error, match=text):
            ops.invertible_conv1x1(**t, sign_diag=torch.ones_like(t["log_diag"]), permutation=order)


def test_a_permutation_on_a_gpu_that_is_none(kernels):
    """Where its values cannot be seen without waiting, the results are NaN."""
    if kernels.name not in ("simt", "cuda"):
        pytest.skip("a CPU raises an error")
    if kernels.name == "simt":
        pytest.skip("its tensors lie on the CPU, and are checked like these")
    t = {k: v.to(kernels.device) for k, v in make_conv((2, 3, 2, 2), torch.Generator().manual_seed(0)).items()}
    order = torch.tensor([0, 0, 5], device=kernels.device)
    assert all(
        o.isnan().all()
        for o in ops.invertible_conv1x1(**t, sign_diag=torch.ones_like(t["log_diag"]), permutation=order)[:1]
    )


def test_event_of_actnorm():
    one = torch.zeros(3)
    with pytest.raises(ValueError, match=r"event_dim: x of shape \[2, 3, 3\] is neither \[N, C\] nor \[N, C, H, W\]"):
        ops.actnorm(torch.zeros(2, 3, 3), one, one)
    with pytest.raises(ValueError, match=r"event_dim: got 2, want 1 for vectors or 3 for images"):
        ops.actnorm(torch.zeros(2, 3, 3), one, one, event_dim=2)
    assert ops.actnorm(torch.zeros(3, 2, 2), one, one, event_dim=3)[1].shape == ()
    assert ops.actnorm(torch.zeros(2, 2, 3), one, one, event_dim=1)[1].shape == (2, 2)


def test_values_of_nflows():
    transforms = pytest.importorskip("nflows.transforms")
    for shape in ((7, 5), (7, 5, 3, 4)):
        x = torch.randn(shape)
        other = transforms.ActNorm(5).eval()
        other.log_scale.data.normal_(), other.shift.data.normal_()
        for inverse in (False, True):
            want = (other.inverse if inverse else other)(x)
            for a, b in zip(ops.actnorm(x, other.log_scale, other.shift, inverse=inverse), want, strict=True):
                assert relative_error(a, b) <= 1e-6
    x = torch.randn(7, 5)
    other = transforms.LULinear(5, identity_init=False)
    lower, upper = other._create_lower_upper()
    given = lower, upper, other.unconstrained_upper_diag, other.bias
    got, want = ops.lu_linear(x, *given), other(x)
    assert all(relative_error(a, b) <= 1e-6 for a, b in zip(got, want, strict=True))
    got = ops.lu_linear(got[0], *given, inverse=True)
    assert relative_error(got[0], x) <= 1e-5
    assert relative_error(got[1], -want[1]) <= 1e-6


def test_values_of_nflows_convolution():
    """Its permutation comes first: P of ours on the other side, so its inverse is our form of W."""
    conv = pytest.importorskip("nflows.transforms.conv")
    other = conv.OneByOneConvolution(5, identity_init=False)
    lower, upper = other._create_lower_upper()
    x, order = torch.randn(3, 5, 2, 4), other.permutation._permutation
    want, log_det = other(x)
    diag = other.upper_diag
    got = ops.invertible_conv1x1(x[:, order], lower, upper, diag.log(), torch.ones(5))
    assert relative_error(got[0], want) <= 1e-6
    assert relative_error(got[1], log_det) <= 1e-6


def test_values_of_normflows():
    """Its forward is W^-1, ours W."""
    normflows = pytest.importorskip("normflows")
    other = normflows.flows.Invertible1x1Conv(6, use_lu=True).double()
    x = torch.randn(3, 6, 2, 4, dtype=torch.float64)
    given = other.L, other.U, other.log_S, other.sign_S, other.P.argmax(1)
    for inverse in (True, False):
        want, log_det = (other.forward if inverse else other.inverse)(x)
        got = ops.invertible_conv1x1(x, *given, inverse=inverse)
        assert relative_error(got[0], want) <= 1e-12
        assert torch.allclose(got[1], log_det.expand(3))
