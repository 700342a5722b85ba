"""Affine and additive coupling: scale, shift and log-determinant in one pass."""

from typing import Any

import torch
from torch import Tensor

from genfast import _native
from genfast._differentiable import differentiable
from genfast._register import HALF, autocast_to_float32, like
from genfast.ops import _checks as check
from genfast.reference import coupling as reference
from genfast.reference.coupling import LAYOUTS, SCALE_MAPS

_MAPS = tuple(SCALE_MAPS)
_MAX_LOG_SCALE = 80.0  # e^80 and e^-80 are normal numbers of float32


def _outputs(
    x: Tensor, shift: Tensor | None, scale: Tensor | None, params: Tensor | None, layout: int, map: int, clamp: float,
    offset: float, min_scale: float, gain: float, limit: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return like(x), check.sums(x)


def _near(t: Tensor | None) -> Tensor | None:
    """A matrix whose columns lie close together; the kernels read others in place too, but slowly."""
    if t is None or t.is_contiguous():
        return t
    return t.contiguous() if t.stride(1) > 2 and t.shape[1] > 1 else t


def _forward(
    x: Tensor, shift: Tensor | None, scale: Tensor | None, params: Tensor | None, *constants: Any
) -> tuple[Tensor, Tensor]:
    y, log_det = _outputs(x, shift, scale, params, *constants)
    if x.numel() == 0:
        return y, log_det.zero_()
    _native.coupling_forward(_near(x), _near(shift), _near(scale), _near(params), *constants, y, log_det)
    return y, log_det


# What is kept of x and y is the side of the map before scale and shift: the input of the forward, the inverse's output.
# There is no gradient of what is not given; and none of shift in the forward, where it is grad_y itself.
def _gradients(
    grad_y: Tensor, grad_log_det: Tensor, kept: Tensor, scale: Tensor | None, params: Tensor | None, layout: int,
    map: int, clamp: float, offset: float, min_scale: float, gain: float, limit: float, inverse: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    shift = like(kept) if inverse and params is None else None
    return like(kept), shift, None if scale is None else like(scale), None if params is None else like(params)


def _backward(
    grad_y: Tensor, grad_log_det: Tensor, kept: Tensor, scale: Tensor | None, params: Tensor | None, *constants: Any
) -> tuple[Tensor | None, ...]:
    grads = _gradients(grad_y, grad_log_det, kept, scale, params, *constants)
    if kept.numel() > 0:
        _native.coupling_backward(
            _near(grad_y), grad_log_det, _near(kept), _near(scale), _near(params), *constants, *grads
        )
    return grads


def _save(args: tuple[Any, ...], out: tuple[Tensor, ...]) -> tuple[Any, ...]:
    x, _, scale, params, *constants = args
    return out[0] if constants[-1] else x, scale, params


def _to_arguments(
    saved: tuple[Any, ...], constants: tuple[Any, ...], grads: tuple[Tensor, ...], found: tuple[Any, ...]
) -> tuple[Tensor | None, ...]:
    x, shift, scale, params = found
    packed, inverse = saved[2] is not None, constants[-1]
    return (x, None, None, params) if packed else (x, shift if inverse else grads[0], scale, None)


def _log_scale(raw: Tensor, constants: tuple[Any, ...]) -> Tensor:
    _, map, clamp, offset, min_scale, gain, limit, _ = constants
    return reference.log_scale(
        raw, _MAPS[map], clamp=clamp, offset=offset, min_scale=min_scale, gain=gain, max_log_scale=limit
    )


def _reference(x: Tensor, shift: Any, scale: Any, params: Any, *constants: Any) -> tuple[Tensor, Tensor]:
    layout, map, clamp, offset, min_scale, gain, limit, inverse = constants
    if params is not None:
        shift, scale = reference.split_params(params, LAYOUTS[layout])
    return reference.affine_coupling(
        x, shift, scale, scale_map=_MAPS[map], inverse=inverse, clamp=clamp, offset=offset, min_scale=min_scale,
        gain=gain, max_log_scale=limit,
    )  # fmt: skip


def _backward_reference(
    grad_y: Tensor, grad_log_det: Tensor, kept: Tensor, scale: Any, params: Any, *constants: Any
) -> tuple[Tensor | None, ...]:
    """The adjoint in differentiable operations, with the reference's log s."""
    layout, inverse = LAYOUTS[constants[0]], constants[-1]
    raw = reference.split_params(params, layout)[1] if scale is None else scale
    l_row = grad_log_det.unsqueeze(-1)
    log_s, pull_back, *_ = torch.func.vjp(lambda t: _log_scale(t, constants), raw)
    grad_x = grad_y * torch.exp(-log_s if inverse else log_s)
    grad_shift = -grad_x if inverse else grad_y
    (grad_scale,) = pull_back(-(grad_y * kept + l_row) if inverse else grad_x * kept + l_row)
    if params is None:
        return grad_x, grad_shift if inverse else None, grad_scale, None
    return grad_x, None, None, reference.join_params(grad_shift, grad_scale, layout)


_op = differentiable(
    "coupling", _outputs, outputs=("y", "log_det"), reference=_reference, launch=_forward, backward=_gradients,
    backward_launch=_backward, backward_reference=_backward_reference, save=_save, gradients=_to_arguments,
    rows=("x", "shift", "scale", "params", "kept"), strided=True,
)  # fmt: skip


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
    if clamp is offset is min_scale is gain is None and max_log_scale == 40.0 and scale_map in _USUAL:
        return _USUAL[scale_map]
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


# What `_constants` gives for a scale map alone, checked once.
_USUAL: dict[str, tuple[int, float, float, float, float, float]] = {}
_USUAL |= {name: _constants(name, None, None, None, None, 40.0) for name in _MAPS}


def _same_shape(name: str, t: Tensor, x: Tensor) -> None:
    if t.shape != x.shape:
        raise ValueError(f"{name}: got shape {list(t.shape)}, want {list(x.shape)}, that of x")


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
    are finite for every finite a. y is infinite only where :math:`x\,s + t` itself lies outside the range of its dtype
    (65504 in float16: there a bounded map such as "tanh" is the safe choice).

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
    if params is not None:
        if shift is not None or scale is not None:
            raise ValueError("params: give either params or shift and scale, got both")
        check.same_dtype_and_device(x, "x", params=params)
        if params.shape != (*x.shape[:-1], 2 * x.shape[-1]):
            raise ValueError(f"params: got shape {list(params.shape)}, want [..., 2 D] for x of shape {list(x.shape)}")
        params = params if x.dim() == 2 else params.reshape(rows.shape[0], params.shape[-1])
    else:
        if shift is None or scale is None:
            missing = "shift" if shift is None else "scale"
            raise ValueError(f"{missing}: got None, want shift and scale, or params")
        check.same_dtype_and_device(x, "x", shift=shift, scale=scale)
        _same_shape("shift", shift, x)
        _same_shape("scale", scale, x)
        if x.dim() != 2:
            shift, scale = shift.reshape(rows.shape), scale.reshape(rows.shape)
    y, log_det = _op(rows, shift, scale, params, LAYOUTS.index(layout), *constants, bool(inverse))
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
    check.same_dtype_and_device(x, "x", shift=shift)
    _same_shape("shift", shift, x)
    if autocast_to_float32(x):
        x, shift = (t.float() if t.dtype in HALF else t for t in (x, shift))
    return reference.additive_coupling(x, shift, inverse=inverse)
