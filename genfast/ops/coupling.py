"""Affine and additive coupling: scale, shift and log-determinant in one pass."""

from typing import Any

import torch
from torch import Tensor

from genfast import _native
from genfast._backend import use_reference
from genfast._register import define, keep_signature, wants_double_backward
from genfast.ops import _checks as check
from genfast.reference import coupling as reference
from genfast.reference.coupling import LAYOUTS, SCALE_MAPS

_MAPS = tuple(SCALE_MAPS)
_PACKED_FIRST = ("chunked_shift_scale", "interleaved")  # where shift comes before scale
_MAX_LOG_SCALE = 80.0  # e^80 and e^-80 are normal numbers of float32

Spec = tuple[int, float, float, float, float, float, bool]  # the end of the ops' schemas


def _near(t: Tensor) -> Tensor:
    """A matrix whose columns lie close together; kernels read others in place too, but slowly."""
    return t.contiguous() if t.stride(1) > 2 and t.shape[1] > 1 else t


def _forward(
    x: Tensor, shift: Tensor, scale: Tensor | None, layout: int, scale_map: int, clamp: float, offset: float,
    min_scale: float, gain: float, limit: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n, d = x.shape
    y, log_det = x.new_empty((n, d)), x.new_empty(n, dtype=check.accumulate_dtype(x))
    if n == 0 or d == 0:
        return y, log_det.zero_()
    operands = (None, None, _near(shift)) if scale is None else (_near(shift), _near(scale), None)
    _native.coupling_forward(
        _near(x), *operands, layout, scale_map, clamp, offset, min_scale, gain, limit, inverse, y, log_det
    )
    return y, log_det


def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=check.accumulate_dtype(x))


def _backward(
    grad_y: Tensor, grad_log_det: Tensor, kept: Tensor, raw: Tensor, packed: bool, layout: int, scale_map: int,
    clamp: float, offset: float, min_scale: float, gain: float, limit: float, inverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads = _backward_fake(grad_y, grad_log_det, kept, raw, packed, layout, scale_map, clamp, offset, min_scale,
                           gain, limit, inverse)  # fmt: skip
    n, d = kept.shape
    if n == 0 or d == 0:
        return grads
    grad_x, grad_shift, grad_raw = grads
    operands = (None, _near(raw)) if packed else (_near(raw), None)
    results = (None, None, grad_raw) if packed else (grad_shift if inverse else None, grad_raw, None)
    _native.coupling_backward(
        _near(grad_y), grad_log_det, _near(kept), *operands, layout, scale_map, clamp, offset, min_scale, gain, limit,
        inverse, grad_x, *results,
    )  # fmt: skip
    return grads


def _backward_fake(
    grad_y: Tensor, grad_log_det: Tensor, kept: Tensor, raw: Tensor, packed: bool, layout: int, scale_map: int,
    clamp: float, offset: float, min_scale: float, gain: float, limit: float, inverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n, d = kept.shape
    return kept.new_empty((n, d)), kept.new_empty((n, d if inverse and not packed else 0)), raw.new_empty(raw.shape)


_CONSTANTS = "int scale_map, float clamp, float offset, float min_scale, float gain, float limit, bool inverse"
_forward_op = define(
    "affine_coupling_forward",
    f"(Tensor x, Tensor shift, Tensor? scale, int layout, {_CONSTANTS}) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    rows=("x", "shift", "scale"),
    row_outputs=(True, True),
    strided=True,
)
# The second result, the gradient of shift, is empty where that is grad_y itself or lies in the packed third.
_backward_op = define(
    "affine_coupling_backward",
    f"(Tensor grad_y, Tensor grad_log_det, Tensor kept, Tensor raw, bool packed, int layout, {_CONSTANTS})"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    rows=("grad_y", "grad_log_det", "kept", "raw"),
    row_outputs=(True, True, True),
    strided=True,
)


@keep_signature
class _AffineCoupling(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, shift: Tensor, scale: Tensor | None, layout: int, spec: Spec) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = _forward_op(x, shift, scale, layout, *spec)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, shift, scale, ctx.layout, ctx.spec = inputs
        ctx.packed = scale is None
        ctx.save_for_backward(output[0] if ctx.spec[-1] else x, shift if scale is None else scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, raw = ctx.saved_tensors
        function: Any = _differentiable_backward if wants_double_backward(*grads, kept, raw) else _backward_op
        grad_x, grad_shift, grad_raw = function(*grads, kept, raw, ctx.packed, ctx.layout, *ctx.spec)
        if ctx.packed:
            return grad_x, grad_raw, None, None, None
        return grad_x, grad_shift if ctx.spec[-1] else grads[0], grad_raw, None, None


def _differentiable_backward(
    grad_y: Tensor, grad_log_det: Tensor, kept: Tensor, raw: Tensor, packed: bool, layout: int, scale_map: int,
    clamp: float, offset: float, min_scale: float, gain: float, limit: float, inverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The adjoint in differentiable operations, with the reference's log s: what double backward goes through."""

    def log_scale(t: Tensor) -> Tensor:
        return reference.log_scale(
            t, _MAPS[scale_map], clamp=clamp, offset=offset, min_scale=min_scale, gain=gain, max_log_scale=limit
        )

    wide = check.accumulate_dtype(kept)
    g, x, l_row = grad_y.to(wide), kept.to(wide), grad_log_det.unsqueeze(-1)
    scale = reference.split_params(raw, LAYOUTS[layout])[1] if packed else raw
    scale = scale.to(wide)
    if inverse:
        grad_x = g * torch.exp(-log_scale(scale))
        grad_shift, cotangent = -grad_x, -(g * x + l_row)
    else:
        grad_x = g * torch.exp(log_scale(scale))
        grad_shift, cotangent = g, grad_x * x + l_row
    grad_scale = torch.func.vjp(log_scale, scale)[1](cotangent)[0]
    if packed:
        if LAYOUTS[layout] == "interleaved":
            grad_scale = torch.stack((grad_shift, grad_scale), -1).flatten(-2)
        else:
            shift_first = LAYOUTS[layout] in _PACKED_FIRST
            grad_scale = torch.cat((grad_shift, grad_scale) if shift_first else (grad_scale, grad_shift), -1)
    return grad_x.to(kept.dtype), grad_shift.to(kept.dtype), grad_scale.to(raw.dtype)


def _number(name: str, value: Any, default: float, low: float, high: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {type(value).__name__}, want a number")
    if not low <= value <= high:
        raise ValueError(f"{name}: got {value}, want a number from {low:g} to {high:g}")
    return float(value)


def _constants(
    scale_map: str,
    clamp: float | None,
    offset: float | None,
    min_scale: float | None,
    gain: float | None,
    max_log_scale: float,
) -> tuple[int, float, float, float, float, float]:
    """The checked constants in the order of the ops' schemas, defaults filled in."""
    default = SCALE_MAPS.get(scale_map)
    if default is None:
        raise ValueError(f"scale_map: got {scale_map!r}, want one of {', '.join(map(repr, _MAPS))}")
    for name, value in (("clamp", clamp), ("offset", offset), ("min_scale", min_scale), ("gain", gain)):
        if value is not None and name not in default:
            raise ValueError(f"{name}: scale_map {scale_map!r} has no such constant")
    return (
        _MAPS.index(scale_map),
        _number("clamp", clamp, default.get("clamp", 1.0), 1e-6, 1e6),
        _number("offset", offset, default.get("offset", 0.0), -1e6, 1e6),
        _number("min_scale", min_scale, default.get("min_scale", 0.0), 0.0, 1e6),
        _number("gain", gain, default.get("gain", 1.0), -1e6, 1e6),
        _number("max_log_scale", max_log_scale, 40.0, 1e-3, _MAX_LOG_SCALE),
    )


def _same_shape(name: str, t: Tensor, x: Tensor) -> None:
    if t.shape != x.shape:
        raise ValueError(f"{name}: got shape {list(t.shape)}, want {list(x.shape)}, that of x")


def _raised(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Half types as float32 under autocast, before autograd keeps them."""
    low = (torch.float16, torch.bfloat16)
    return tuple(t.float() if t is not None and t.dtype in low else t for t in tensors)


def affine_coupling(
    x: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    params: Tensor | None = None,
    layout: str = "chunked_shift_scale",
    scale_map: str = "exp",
    inverse: bool = False,
    clamp: float | None = None,
    offset: float | None = None,
    min_scale: float | None = None,
    gain: float | None = None,
    max_log_scale: float = 40.0,
) -> tuple[Tensor, Tensor]:
    r"""Scale and shift the transformed half of a coupling or autoregressive layer.

    Forward :math:`y = x\, s(a) + t` with :math:`\log|\det| = \sum_d \log s(a_d)`; inverse :math:`x = (y - t) / s(a)`
    with :math:`-\sum_d \log s(a_d)`, where t is `shift` and a is `scale`, the raw outputs of a network. One pass
    forward, one backward; besides its arguments the backward keeps nothing (for the inverse: its output).

    | scale_map | log s(a) | constants and defaults |
    |---|---|---|
    | "exp" | a | |
    | "sigmoid" | log(sigmoid(a + offset) + min_scale) | offset=2, min_scale=0 (nflows: 1e-3) |
    | "softplus" | log(softplus(a + offset) + min_scale) | offset=0, min_scale=0 (nflows' MAF: 1e-3) |
    | "tanh" | clamp tanh(gain a / clamp) | clamp=2, gain=1 (FrEIA's AllInOneBlock: gain=0.1) |
    | "atan" | 0.636 clamp atan(gain a) | clamp=2, gain=1 (FrEIA's GLOWCouplingBlock) |
    | "softclip" | a / (1 + abs(a) / clamp) | clamp=-log(1e-3) (zuko) |
    | "reciprocal_sigmoid" | -log sigmoid(a + offset) | offset=2 (normflows' "sigmoid") |

    log s is computed from a itself, and saturates at :math:`\pm` `max_log_scale` with gradient 0 beyond, so s and 1/s
    are finite for every finite a.

    Slices, expanded tensors and views such as `params.chunk(2, -1)` or `params[..., 0::2]` are read where they lie,
    without a copy. With `params=` the gradient, too, is written as one packed tensor.

    Args:
        x: rows `[..., D]` (y for the inverse); float32 or float64, or float16/bfloat16 (computed in float32).
        shift: `[..., D]`.
        scale: `[..., D]`, the raw parameter of the scale.
        params: `[..., 2 D]`, shift and scale in one tensor, in place of the two.
        layout: of `params`: "chunked_shift_scale", "chunked_scale_shift", or "interleaved" (shift at even columns).
        scale_map: see above.
        inverse: apply the inverse.
        clamp: bound of log s; see above.
        offset: added to a; see above.
        min_scale: added to s; see above.
        gain: factor of a; see above.
        max_log_scale: where log s saturates, at most 80.

    Returns:
        y: `[..., D]` (x for the inverse).
        log_det: `[...]`, log|det| of the map applied, in nats; float32 for half types.

    Raises:
        TypeError: an argument is not a floating-point tensor, dtypes differ, or a constant is not a number.
        ValueError: a shape does not fit, tensors lie on different devices, both or neither of (shift, scale) and
            params are given, the map or layout is unknown, or a constant is out of range or not one of the map's.

    Source:
        Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP", ICLR 2017, eq. 4-8; sigmoid: Kingma &
        Dhariwal, "Glow", NeurIPS 2018; the libraries named above.

    Example:
        >>> x_a, x_b = torch.randn(4096, 128).chunk(2, -1)
        >>> y_b, log_det = genfast.ops.affine_coupling(x_b, params=network(x_a), scale_map="sigmoid")
        >>> y_b.shape, log_det.shape
        (torch.Size([4096, 64]), torch.Size([4096]))
    """
    check.floating("x", x)
    rows, batch = check.rows("x", x)
    constants = _constants(scale_map, clamp, offset, min_scale, gain, max_log_scale)
    if layout not in LAYOUTS:
        raise ValueError(f"layout: got {layout!r}, want one of {', '.join(map(repr, LAYOUTS))}")
    first: Tensor
    if params is not None:
        if shift is not None or scale is not None:
            raise ValueError("params: give either params or shift and scale, got both")
        check.same_dtype_and_device(x, x=x, params=params)
        if params.shape != (*x.shape[:-1], 2 * x.shape[-1]):
            raise ValueError(f"params: got shape {list(params.shape)}, want [..., 2 D] for x of shape {list(x.shape)}")
        first = params
    else:
        if shift is None or scale is None:
            missing = "shift" if shift is None else "scale"
            raise ValueError(f"{missing}: got None, want shift and scale, or params")
        check.same_dtype_and_device(x, x=x, shift=shift, scale=scale)
        _same_shape("shift", shift, x)
        _same_shape("scale", scale, x)
        first = shift
    if x.dim() != 2:
        first = first.reshape(rows.shape[0], first.shape[-1])
        scale = None if scale is None else scale.reshape(rows.shape)
    if torch.is_autocast_enabled(x.device.type):
        rows, first, scale = _raised(rows, first, scale)
    if use_reference(x):
        if scale is None:
            first, scale = reference.split_params(first, layout)
        names = dict(zip(("clamp", "offset", "min_scale", "gain", "max_log_scale"), constants[1:], strict=True))
        y, log_det = reference.affine_coupling(rows, first, scale, scale_map=scale_map, inverse=inverse, **names)
    else:
        number = LAYOUTS.index(layout)
        if torch.is_grad_enabled():
            y, log_det = _AffineCoupling.apply(rows, first, scale, number, (*constants, inverse))
        else:
            y, log_det = _forward_op(rows, first, scale, number, *constants, inverse)
    return check.restore(y, log_det, x, batch)


def additive_coupling(x: Tensor, shift: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""Shift the transformed half of a volume-preserving coupling layer.

    Forward :math:`y = x + t`, inverse :math:`x = y - t`; :math:`\log|\det| = 0`. PyTorch's own addition is one kernel
    already and is used as it is.

    Args:
        x: rows `[..., D]` (y for the inverse).
        shift: `[..., D]`, t.
        inverse: apply the inverse.

    Returns:
        y: `[..., D]` (x for the inverse).
        log_det: `[...]`, zeros; float32 for half types.

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
        ValueError: the shapes differ, or tensors lie on different devices.

    Source:
        Dinh, Krueger & Bengio, "NICE: non-linear independent components estimation", ICLR workshop 2015.

    Example:
        >>> y, log_det = genfast.ops.additive_coupling(x, shift)
        >>> x_again, _ = genfast.ops.additive_coupling(y, shift, inverse=True)
    """
    check.floating("x", x)
    if x.dim() == 0:
        check.rows("x", x)
    check.same_dtype_and_device(x, x=x, shift=shift)
    _same_shape("shift", shift, x)
    if torch.is_autocast_enabled(x.device.type):
        x, shift = _raised(x, shift)
    return reference.additive_coupling(x, shift, inverse=inverse)
