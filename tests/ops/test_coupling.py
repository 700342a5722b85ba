import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from genfast import _native, ops
from genfast.reference import coupling as reference
from tests.harness import BadInput, OpSpec, OpTests, Small, relative_error, vjp
from tests.tolerances import tolerance

LAYOUTS = ("chunked_shift_scale", "chunked_scale_shift", "interleaved")


def pack(shift, scale, layout):
    if layout == "interleaved":
        return torch.stack((shift, scale), -1).flatten(-2)
    return torch.cat((shift, scale) if layout == "chunked_shift_scale" else (scale, shift), -1)


def make(case, generator):
    n, d = case
    randn = lambda: torch.randn(n, d, generator=generator, dtype=torch.float64)  # noqa: E731
    return {"x": randn(), "shift": randn(), "scale": randn()}


def make_packed(case, generator):
    t = make(case, generator)
    return {"x": t["x"], "params": torch.cat((t["shift"], t["scale"]), -1)}


def packed_reference(x, params, layout, **options):
    return reference.affine_coupling(x, *reference.split_params(params, layout), **options)


# (N, D); the first is differentiated numerically
CASES = [(4, 3), (7, 2), (700, 1), (67, 17), (33, 64), (3, 1100), (2, 4100)]

FAR = [0.0, -0.0, 1e-30, 39.9, -41.0, 88.0, -104.0, 1e4, -1e4, 3e38, -3e38]

EXTREME = {
    "raw scale": lambda: {"x": torch.randn(1, 11), "shift": torch.randn(1, 11), "scale": torch.tensor([FAR])},
    "x and shift": lambda: {
        "x": torch.tensor([[1e18, -1e18, 0.0]]), "shift": torch.tensor([[-1e18, 1e18, 1e18]]),
        "scale": torch.tensor([[100.0, -100.0, 0.0]]),
    },
}  # fmt: skip

BAD = {
    "scalar": BadInput(lambda t: {"x": t["x"][0, 0]}, ValueError, r"x: got a scalar, want rows \[..., D\]"),
    "shape of shift": BadInput(
        lambda t: {"shift": t["shift"][:, :2]}, ValueError, r"shift: got shape \[4, 2\], want \[4, 3\], that of x"
    ),
    "shape of scale": BadInput(
        lambda t: {"scale": t["scale"][0]}, ValueError, r"scale: got shape \[3\], want \[4, 3\], that of x"
    ),
    "shape of params": BadInput(
        lambda t: {"shift": None, "scale": None, "params": t["shift"]}, ValueError,
        r"params: got shape \[4, 3\], want \[..., 2 D\] for x of shape \[4, 3\]",
    ),
    "no scale": BadInput(lambda t: {"scale": None}, ValueError, r"scale: got None, want shift and scale, or params"),
    "both": BadInput(
        lambda t: {"params": t["shift"]}, ValueError, r"params: give either params or shift and scale, got both"
    ),
    "layout": BadInput(
        lambda t: {"layout": "mixed"}, ValueError,
        r"layout: got 'mixed', want one of 'chunked_shift_scale', 'chunked_scale_shift', 'interleaved'",
    ),
    "map": BadInput(
        lambda t: {"scale_map": "log"}, ValueError,
        r"scale_map: got 'log', want one of 'exp', 'sigmoid', 'softplus', 'tanh', 'atan', 'softclip', "
        r"'reciprocal_sigmoid'",
    ),
    "constant of another map": BadInput(
        lambda t: {"clamp": 2.0}, ValueError, r"clamp: scale_map 'exp' has no such constant"
    ),
    "constant out of range": BadInput(
        lambda t: {"scale_map": "softplus", "min_scale": -1.0}, ValueError,
        r"min_scale: got -1.0, want a number from 0 to 1e\+06",
    ),
    "limit out of range": BadInput(
        lambda t: {"max_log_scale": math.inf}, ValueError, r"max_log_scale: got inf, want a number from 0.001 to 80"
    ),
    "constant is a tensor": BadInput(
        lambda t: {"scale_map": "tanh", "clamp": torch.ones(())}, TypeError, r"clamp: got Tensor, want a number"
    ),
}  # fmt: skip


def undo(tensors, options, outputs):
    others = {k: v for k, v in tensors.items() if k != "x"}
    return ops.affine_coupling(outputs[0], **others, **{**options, "inverse": not options.get("inverse")})[0]


BOTH = [{"inverse": False}, {"inverse": True}]


class TestAffineCoupling(OpTests):
    spec = OpSpec(
        name="affine_coupling", function=ops.affine_coupling, reference=reference.affine_coupling, make=make,
        cases=CASES, rows=["scale", "x", "shift"], extreme=EXTREME, bad=BAD, undo=undo, small=[(35, 5), (35, 67)],
        small_options=[{**way, "scale_map": name} for way in BOTH for name in reference.SCALE_MAPS],
        variants={
            "exp": {},
            "exp inverse": {"inverse": True},
            "sigmoid": {"scale_map": "sigmoid"},
            "softplus inverse": {"scale_map": "softplus", "min_scale": 1e-3, "inverse": True},
            "tanh": {"scale_map": "tanh", "clamp": 1.5},
            "atan inverse": {"scale_map": "atan", "inverse": True},
            "softclip": {"scale_map": "softclip"},
            "reciprocal sigmoid inverse": {"scale_map": "reciprocal_sigmoid", "inverse": True},
        },
    )  # fmt: skip


class TestPackedCoupling(OpTests):
    spec = OpSpec(
        name="affine_coupling", function=ops.affine_coupling, reference=packed_reference, make=make_packed,
        cases=CASES, rows=["params", "x"], undo=undo, small=[(35, 5)],
        small_options=[{**way, "layout": layout} for way in BOTH for layout in LAYOUTS],
        variants={
            "shift first": {"layout": "chunked_shift_scale", "scale_map": "sigmoid", "min_scale": 1e-3},
            "scale first inverse": {"layout": "chunked_scale_shift", "scale_map": "tanh", "inverse": True},
            "interleaved": {"layout": "interleaved"},
        },
    )  # fmt: skip


SMALL = {
    "additive_coupling": Small(
        lambda: {"x": torch.randn(35, 5, dtype=torch.float64), "shift": torch.randn(35, 5, dtype=torch.float64)}, BOTH
    )
}

MAPS = {
    "exp": {}, "sigmoid": {"offset": 1.0, "min_scale": 0.01}, "softplus": {"offset": 0.5}, "tanh": {"gain": 0.1},
    "atan": {"clamp": 1.0, "gain": 2.0}, "softclip": {"clamp": 3.0}, "reciprocal_sigmoid": {"offset": -1.0},
}  # fmt: skip


@pytest.mark.parametrize("scale_map", MAPS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_map_and_direction(kernels, scale_map, inverse, dtype):
    options = {"scale_map": scale_map, "inverse": inverse, **MAPS[scale_map]}
    exact = make((50, 37), torch.Generator().manual_seed(2))
    exact["scale"] *= 3
    cotangents = [torch.randn(50, 37).double(), torch.randn(50).double()]
    want, want_grads = vjp(reference.affine_coupling, exact, options, cotangents)
    cotangents = [c.to(kernels.device) for c in cotangents]
    got, grads = vjp(
        ops.affine_coupling, {k: v.to(kernels.device, dtype) for k, v in exact.items()}, options, cotangents
    )
    rounded = {k: v.to(dtype).double() for k, v in exact.items()}
    want, want_grads = vjp(reference.affine_coupling, rounded, options, [c.cpu() for c in cotangents])
    for a, b in zip([*got, *grads.values()], [*want, *want_grads.values()], strict=True):
        assert relative_error(a, b) <= tolerance("affine_coupling", dtype)


def scales(a):
    """The scale of each map as the libraries write it."""
    return {
        "exp": ({}, torch.exp(a)),
        "nflows coupling": ({"scale_map": "sigmoid", "min_scale": 1e-3}, torch.sigmoid(a + 2) + 1e-3),
        "nflows MAF": ({"scale_map": "softplus", "min_scale": 1e-3}, F.softplus(a) + 1e-3),
        "Glow": ({"scale_map": "sigmoid"}, torch.sigmoid(a + 2)),
        "normflows sigmoid": ({"scale_map": "reciprocal_sigmoid"}, 1 / torch.sigmoid(a + 2)),
        "FrEIA GLOW": ({"scale_map": "atan", "clamp": 2.0}, torch.exp(2.0 * 0.636 * torch.atan(a))),
        "FrEIA AllInOne": ({"scale_map": "tanh", "clamp": 2.0, "gain": 0.1}, torch.exp(2 * torch.tanh(0.1 * a / 2))),
        "zuko": ({"scale_map": "softclip"}, torch.exp(a / (1 + abs(a / math.log(1e-3))))),
    }


@pytest.mark.parametrize("name", scales(torch.zeros(())))
def test_conventions_of_the_libraries(kernels, name):
    t = {k: v.to(kernels.device) for k, v in make((20, 5), torch.Generator().manual_seed(0)).items()}
    options, s = scales(t["scale"])[name]
    y, log_det = ops.affine_coupling(**t, **options)
    assert torch.allclose(y, t["x"] * s + t["shift"], atol=1e-12)
    assert torch.allclose(log_det, torch.log(s).sum(-1), atol=1e-12)
    x, log_det = ops.affine_coupling(**t, inverse=True, **options)
    assert torch.allclose(x, (t["x"] - t["shift"]) / s, atol=1e-12)
    assert torch.allclose(log_det, -torch.log(s).sum(-1), atol=1e-12)


def test_nflows_itself(kernels):
    coupling = pytest.importorskip("nflows.transforms.coupling")
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 6)
    net.forward = lambda x, context=None: F.linear(x, net.weight, net.bias)
    layer = coupling.AffineCouplingTransform(torch.tensor([0, 0, 0, 1, 1, 1]), lambda *_: net)
    x = torch.randn(40, 6)
    for inverse in (False, True):
        y, log_det = (layer.inverse if inverse else layer)(x)
        params = net(x[:, :3]).to(kernels.device)
        got, got_log_det = ops.affine_coupling(
            x[:, 3:].to(kernels.device), params=params, scale_map="sigmoid", min_scale=1e-3, inverse=inverse
        )
        assert torch.allclose(got.cpu(), y[:, 3:], atol=1e-5)
        assert torch.allclose(got_log_det.cpu(), log_det, atol=1e-5)


@pytest.mark.parametrize("scale_map", MAPS)
@pytest.mark.parametrize("inverse", [False, True])
def test_log_det_is_that_of_the_jacobian(kernels, scale_map, inverse):
    t = {k: v.to(kernels.device) for k, v in make((1, 4), torch.Generator().manual_seed(1)).items()}
    f = lambda x: ops.affine_coupling(x, t["shift"], t["scale"], scale_map=scale_map, inverse=inverse)  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(lambda x: f(x)[0], t["x"]).reshape(4, 4)
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], f(t["x"])[1][0], atol=1e-12)


@pytest.mark.parametrize("scale_map", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_undoes_forward(kernels, scale_map, dtype):
    t = {k: v.to(kernels.device, dtype) for k, v in make((300, 9), torch.Generator().manual_seed(3)).items()}
    t["scale"] = t["scale"] * 3
    y, log_det = ops.affine_coupling(**t, scale_map=scale_map)
    x, back = ops.affine_coupling(y, t["shift"], t["scale"], scale_map=scale_map, inverse=True)
    # y keeps eps |shift| of x s, which the inverse divides by s.
    s = torch.exp(reference.log_scale(t["scale"], scale_map))
    bound = 8 * torch.finfo(dtype).eps * (t["x"].abs() + t["shift"].abs() / s)
    assert ((x - t["x"]).abs() <= bound).all()
    assert torch.equal(back, -log_det)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_packed_equals_unpacked_to_the_last_bit(kernels, layout, inverse, dtype):
    for n, d in [(1, 1), *CASES]:
        t = {k: v.to(kernels.device, dtype) for k, v in make((n, d), torch.Generator().manual_seed(4)).items()}
        cotangents = [torch.randn(n, d, device=kernels.device), torch.randn(n, device=kernels.device)]
        options = {"scale_map": "sigmoid", "inverse": inverse}
        want, want_grads = vjp(ops.affine_coupling, t, options, cotangents)
        params = pack(t["shift"], t["scale"], layout)
        got, grads = vjp(
            ops.affine_coupling, {"x": t["x"], "params": params}, {**options, "layout": layout}, cotangents
        )
        shift, scale = reference.split_params(grads["params"], layout)
        pairs = zip([*got, grads["x"], shift, scale], [*want, *want_grads.values()], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), (n, d)


def captured(monkeypatch, name):
    """Arguments of every call of a kernel."""
    calls, kernel, arguments = [], getattr(_native, name), _native.kernels()[name]

    def call(*args):
        calls.append(dict(zip(arguments, args, strict=True)))
        kernel(*args)

    monkeypatch.setattr(_native, name, call)
    return calls


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_are_read_where_they_lie(native, monkeypatch, layout):
    calls = captured(monkeypatch, "coupling_forward")
    params, both = torch.randn(10, 12), torch.randn(10, 12)
    x = both[:, 6:]
    shift, scale = reference.split_params(params, layout)
    y, log_det = ops.affine_coupling(x, shift, scale)
    for name, t in (("x", x), ("shift", shift), ("scale", scale)):
        assert calls[0][name].data_ptr() == t.data_ptr()
        assert calls[0][name].stride() == t.stride()
    want = ops.affine_coupling(x.contiguous(), shift.contiguous(), scale.contiguous())
    assert torch.equal(y, want[0])
    assert torch.equal(log_det, want[1])
    ops.affine_coupling(x, params=params, layout=layout)
    assert calls[2]["params"].data_ptr() == params.data_ptr()


def test_broadcasts_are_read_where_they_lie(native, monkeypatch):
    forward, backward = captured(monkeypatch, "coupling_forward"), captured(monkeypatch, "coupling_backward")
    x, shift, scale = torch.randn(10, 6, requires_grad=True), torch.randn(6), torch.randn(6, requires_grad=True)
    y, log_det = ops.affine_coupling(x, shift.expand(10, 6), scale.expand(10, 6))
    (y.sum() + log_det.sum()).backward()
    assert forward[0]["shift"].stride() == forward[0]["scale"].stride() == (0, 1)
    assert backward[0]["grad_y"].stride() == (0, 0)
    assert backward[0]["grad_log_det"].stride() == (0,)
    assert torch.allclose(scale.grad, (x.detach() * scale.detach().exp() + 1).sum(0), atol=1e-4)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_kept_for_the_backward(native, inverse, packed):
    t = {k: v.requires_grad_() for k, v in make((30, 8), torch.Generator().manual_seed(0)).items()}
    params = pack(t["shift"], t["scale"], "interleaved").detach().requires_grad_()
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        if packed:
            y, _ = ops.affine_coupling(t["x"], params=params, layout="interleaved", inverse=inverse)
        else:
            y, _ = ops.affine_coupling(**t, inverse=inverse)
    assert set(kept) == {(y if inverse else t["x"]).data_ptr(), (params if packed else t["scale"]).data_ptr()}


def test_saturation(kernels):
    """Past max_log_scale the scale stays where it is, and its gradient is 0."""
    raw = torch.tensor([[-1e3, -5.0, -2.0, 2.0, 5.0, 1e3]], device=kernels.device, dtype=torch.float64)
    for scale_map, sign in (("exp", 1), ("reciprocal_sigmoid", -1)):
        a = raw.clone().requires_grad_()
        y, log_det = ops.affine_coupling(
            torch.ones_like(raw), torch.zeros_like(raw), a, scale_map=scale_map, max_log_scale=4.0,
            **({"offset": 0.0} if sign < 0 else {}),
        )  # fmt: skip
        (grad,) = torch.autograd.grad(log_det.sum(), a)
        ends = [math.exp(-4 * sign), math.exp(4 * sign)] if sign > 0 else [math.exp(4), 1.0]
        assert y[0, 0].item() == pytest.approx(ends[0], rel=1e-12)
        assert y[0, -1].item() == pytest.approx(ends[1], rel=1e-12)
        assert grad[0, 0] == 0
        assert grad[0, 2] != 0
        assert (grad[0, -1] == 0) == (sign > 0) or abs(grad[0, -1]) < 1e-100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_scale_keeps_its_digits_in_the_tails(kernels, dtype):
    """log sigmoid near 1 is -e^-u, which log(sigmoid) rounds to 0; log softplus far left is u."""
    u = torch.tensor([[18.0], [30.0], [-30.0]], dtype=dtype, device=kernels.device)
    zero = torch.zeros_like(u)
    _, sigmoid = ops.affine_coupling(zero, zero, u, scale_map="sigmoid", offset=0.0)
    _, softplus = ops.affine_coupling(zero, zero, u, scale_map="softplus")
    eps = 8 * torch.finfo(dtype).eps
    for got, want in ((sigmoid, [-math.log1p(math.exp(-18)), -math.log1p(math.exp(-30)), -30.0]),
                      (softplus, [math.log(18 + math.exp(-18)), math.log(30), -30.0])):  # fmt: skip
        assert got.cpu().tolist() == pytest.approx(want, rel=eps)


@pytest.mark.parametrize("column", [0, 1])
def test_nan_in_any_argument_stays(kernels, column):
    for scale_map, inverse, name in itertools.product(MAPS, (False, True), ("x", "shift", "scale")):
        t = {k: v.float().to(kernels.device) for k, v in make((3, 2), torch.Generator().manual_seed(0)).items()}
        t[name][1, column] = torch.nan
        cotangents = [torch.ones(3, 2, device=kernels.device), torch.ones(3, device=kernels.device)]
        (y, log_det), grads = vjp(ops.affine_coupling, t, {"scale_map": scale_map, "inverse": inverse}, cotangents)
        expected = torch.zeros(3, 2, dtype=torch.bool)
        expected[1, column] = True
        assert torch.equal(y.isnan().cpu(), expected)
        assert torch.equal(
            log_det.isnan().cpu(), expected.any(-1) if name == "scale" else torch.zeros(3, dtype=torch.bool)
        )
        if name != "shift" or inverse:
            assert torch.equal(grads["scale"].isnan().cpu(), expected)


def test_only_the_log_det_is_used(kernels):
    t = {k: v.to(kernels.device).requires_grad_() for k, v in make((5, 3), torch.Generator().manual_seed(0)).items()}
    _, log_det = ops.affine_coupling(**t)
    grads = torch.autograd.grad(log_det.sum(), list(t.values()))
    assert not grads[0].any()
    assert not grads[1].any()
    assert torch.equal(grads[2], torch.ones_like(grads[2]))


def test_no_columns_and_no_rows(kernels):
    for n, d in ((3, 0), (0, 4), (0, 0)):
        x = torch.empty(n, d, device=kernels.device, requires_grad=True)
        y, log_det = ops.affine_coupling(x, params=torch.empty(n, 2 * d, device=kernels.device))
        assert y.shape == (n, d)
        assert torch.equal(log_det, torch.zeros(n, device=kernels.device))
        (grad,) = torch.autograd.grad(y.sum() + log_det.sum(), x)
        assert grad.shape == (n, d)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_double_backward_of_packed_parameters(native, inverse, layout):
    t = make((3, 2), torch.Generator().manual_seed(0))
    x, params = t["x"].requires_grad_(), pack(t["shift"], t["scale"], layout).requires_grad_()
    f = lambda x, p: ops.affine_coupling(x, params=p, layout=layout, scale_map="softplus", inverse=inverse)  # noqa: E731
    assert torch.autograd.gradgradcheck(f, (x, params))


@pytest.mark.parametrize("inverse", [False, True])
def test_additive(backend, inverse):
    x, shift = (torch.randn(2, 5, 3, dtype=torch.float64, device=backend.device, requires_grad=True) for _ in range(2))
    y, log_det = ops.additive_coupling(x, shift, inverse=inverse)
    assert torch.equal(y, x - shift if inverse else x + shift)
    assert log_det.shape == (2, 5)
    assert not log_det.any()
    back, _ = ops.additive_coupling(y, shift, inverse=not inverse)
    assert torch.allclose(back, x)
    assert torch.autograd.gradcheck(lambda *a: ops.additive_coupling(*a, inverse=inverse)[0], (x, shift))
    assert ops.additive_coupling(x.half(), shift.half())[1].dtype == torch.float32


def test_additive_refuses():
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"shift: got shape \[3\], want \[2, 3\], that of x"):
        ops.additive_coupling(x, x[0])
    with pytest.raises(TypeError, match=r"x: got int, want a torch.Tensor"):
        ops.additive_coupling(1, x)
    with pytest.raises(TypeError, match=r"shift: got torch.float64, want torch.float32 like x"):
        ops.additive_coupling(x, x.double())
