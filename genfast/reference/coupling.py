"""Affine and additive coupling in plain PyTorch: the oracle of the tests and the fallback of the kernels."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

#: Scale maps, in the order in which the kernels number them, each with its constants and their defaults.
SCALE_MAPS: Mapping[str, Mapping[str, float]] = {
    "exp": {},
    "sigmoid": {"offset": 2.0, "min_scale": 0.0},
    "softplus": {"offset": 0.0, "min_scale": 0.0},
    "tanh": {"clamp": 2.0, "gain": 1.0},
    "atan": {"clamp": 2.0, "gain": 1.0},
    "softclip": {"clamp": -math.log(1e-3)},
    "reciprocal_sigmoid": {"offset": 2.0},
}

#: What `params` may hold, in the order in which the kernels number it.
LAYOUTS = ("chunked_shift_scale", "chunked_scale_shift", "interleaved")

# Beyond it atan and softclip are constant in float64; keeps squares and ratios finite.
_FAR = 1e18


def _softplus(t: Tensor) -> Tensor:
    return -F.logsigmoid(-t)  # torch's softplus drops e^-t beyond t = 20, which float64 sees


def log_scale(
    raw: Tensor,
    scale_map: str = "exp",
    *,
    clamp: float | None = None,
    offset: float | None = None,
    min_scale: float | None = None,
    gain: float | None = None,
    max_log_scale: float = 40.0,
) -> Tensor:
    """log s(raw) of a scale map, computed from the raw parameter and saturated at +-max_log_scale."""
    default = SCALE_MAPS[scale_map]
    c = default.get("clamp", 1.0) if clamp is None else clamp
    u = raw + (default.get("offset", 0.0) if offset is None else offset)
    m = default.get("min_scale", 0.0) if min_scale is None else min_scale
    g = default.get("gain", 1.0) if gain is None else gain
    if scale_map == "exp":
        log_s = raw
    elif scale_map == "sigmoid":
        log_s = torch.log(torch.sigmoid(u) + m) if m > 0 else F.logsigmoid(u)
    elif scale_map == "softplus":
        # Below the clamp s is e^u (or min_scale) and saturated, while log would meet a zero.
        log_s = torch.log(_softplus(u.clamp(min=-max_log_scale - 1)) + m)
    elif scale_map == "tanh":
        log_s = c * torch.tanh((g / c) * raw)
    elif scale_map == "atan":
        log_s = (0.636 * c) * torch.atan((g * raw).clamp(-_FAR, _FAR))
    elif scale_map == "softclip":
        t = raw.clamp(-_FAR, _FAR)
        log_s = t / (1 + t.abs() / c)
    else:  # reciprocal_sigmoid
        log_s = _softplus(-u)
    return log_s.clamp(-max_log_scale, max_log_scale)


def split_params(params: Tensor, layout: str = "chunked_shift_scale") -> tuple[Tensor, Tensor]:
    """The views (shift, scale) of a packed parameter tensor [..., 2 D]."""
    if layout == "interleaved":
        return params[..., 0::2], params[..., 1::2]
    first, second = params.chunk(2, -1) if params.shape[-1] else (params, params)
    return (first, second) if layout == "chunked_shift_scale" else (second, first)


def join_params(shift: Tensor, scale: Tensor, layout: str = "chunked_shift_scale") -> Tensor:
    """The inverse of `split_params`."""
    if layout == "interleaved":
        return torch.stack((shift, scale), -1).flatten(-2)
    return torch.cat((shift, scale) if layout == "chunked_shift_scale" else (scale, shift), -1)


def affine_coupling(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    scale_map: str = "exp",
    inverse: bool = False,
    clamp: float | None = None,
    offset: float | None = None,
    min_scale: float | None = None,
    gain: float | None = None,
    max_log_scale: float = 40.0,
) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.affine_coupling`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    log_s = log_scale(
        scale.to(wide),
        scale_map,
        clamp=clamp,
        offset=offset,
        min_scale=min_scale,
        gain=gain,
        max_log_scale=max_log_scale,
    )
    if inverse:
        return ((x.to(wide) - shift.to(wide)) * torch.exp(-log_s)).to(x.dtype), -log_s.sum(-1)
    return (x.to(wide) * torch.exp(log_s) + shift.to(wide)).to(x.dtype), log_s.sum(-1)


def additive_coupling(x: Tensor, shift: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.additive_coupling`."""
    log_det = x.new_zeros(x.shape[:-1], dtype=torch.promote_types(x.dtype, torch.float32))
    return (x - shift if inverse else x + shift), log_det
