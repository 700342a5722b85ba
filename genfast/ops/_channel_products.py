"""Affine maps of many channels, in PyTorch's own products and triangular solutions: forward and adjoint.

Beyond some width these are the faster body, and on a GPU the kernels' shared memory ends. Formulas and names are those
of csrc/ops/channel_affine/channel_affine_math.h.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import solve_triangular

from genfast.reference.channel_affine import MAX_LOG_SCALE

_MOST_ON_CPU = 256
# In 64 KiB of shared memory, which every GPU has.
_MOST_ON_GPU = {True: (56, 120), False: (80, 240)}  # float64? (with triangles, without)


def are_faster(x: Tensor, lower: Tensor | None) -> bool:
    """Whether images x `[N, C, H, W]` have too many channels for the kernels."""
    channels = x.shape[1]
    if x.is_cuda:
        with_triangles, without = _MOST_ON_GPU[x.dtype == torch.float64]
        return channels > (without if lower is None else with_triangles)
    return lower is not None and channels > _MOST_ON_CPU


class _Map:
    """The parts of the map in the dtype that they are computed in; None where it has none."""

    shift: Any
    bias: Any
    log_s: Any
    log_d: Any
    lower: Any
    upper: Any
    valid: Any

    def __init__(
        self, dtype: torch.dtype, lower: Tensor | None, upper: Tensor | None, diag: Tensor | None, sign: Tensor | None,
        permutation: Tensor | None, log_scale: Tensor | None, shift: Tensor | None, bias: Tensor | None,
        softplus: bool, min_diag: float,
    ) -> None:  # fmt: skip
        self.dtype, self.log_scale, self.raw = dtype, log_scale, diag
        self.shift = None if shift is None else shift.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.log_det = torch.zeros((), dtype=dtype)
        self.log_s = self.log_d = self.lower = self.upper = self.valid = None
        self.order = permutation
        if permutation is not None:
            n = permutation.shape[0]
            self.valid = (torch.sort(permutation).values == torch.arange(n, device=permutation.device)).all()
            self.order = permutation.clamp(0, n - 1)
        if log_scale is not None:
            self.log_s = log_scale.to(dtype).clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
            self.log_det = self.log_s.sum()
        if lower is None or upper is None or diag is None:
            return
        raw = diag.to(dtype)
        if softplus:
            d = min_diag - F.logsigmoid(-raw)
            self.log_d, self.slope = torch.log(d), torch.sigmoid(raw) / d
        else:
            self.log_d = raw.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
            self.slope = (self.log_d == raw).to(dtype)
            d = torch.exp(self.log_d)
            if sign is not None:
                d = d * torch.sign(sign.to(dtype))
                self.log_d = torch.where(sign == 0, -math.inf, self.log_d)
        self.diag = d
        self.lower = torch.tril(lower.to(dtype), -1).fill_diagonal_(1)
        self.upper = torch.triu(upper.to(dtype), 1) + torch.diag(d)
        self.log_det = self.log_det + self.log_d.sum()

    def rows(self, x: Tensor) -> Tensor:
        """The pixels of images as rows [N H W, C]."""
        return x.to(self.dtype).permute(0, 2, 3, 1).reshape(-1, x.shape[1])

    def put(self, rows: Tensor, out: Tensor) -> None:
        """Rows as images."""
        if self.valid is not None:
            rows = torch.where(self.valid, rows, math.nan)
        n, c, h, w = out.shape
        out.copy_(rows.view(n, h, w, c).permute(0, 3, 1, 2))


def forward(out: Tensor, log_det: Tensor, input: Tensor, *args: object) -> None:
    """Writes output and log_det; the arguments are those of the op."""
    *parameters, inverse = args
    f = _Map(log_det.dtype, *parameters)  # type: ignore[arg-type]
    x = f.rows(input)
    if inverse:
        x = x if f.bias is None else x - f.bias
        x = x if f.order is None else x[:, torch.argsort(f.order)]
        if f.lower is not None:
            x = solve_triangular(f.lower.mT, x, upper=True, left=False, unitriangular=True)
            x = solve_triangular(f.upper.mT, x, upper=False, left=False)
        x = x if f.log_s is None else (x - f.shift) * torch.exp(-f.log_s)
    else:
        x = x if f.log_s is None else x * torch.exp(f.log_s) + f.shift
        x = x if f.lower is None else (x @ f.upper.mT) @ f.lower.mT
        x = x if f.order is None else x[:, f.order]
        x = x if f.bias is None else x + f.bias
    f.put(x, out)
    pixels = input.shape[2] * input.shape[3]
    log_det.copy_((-pixels if inverse else pixels) * f.log_det if pixels else torch.zeros(()))


def backward(
    grads: tuple[Tensor | None, ...], grad_output: Tensor, grad_log_det: Tensor, kept: Tensor, *args: object
) -> None:
    """Writes the gradients of input, lower, upper, diag, log_scale, shift and bias."""
    *parameters, inverse = args
    f = _Map(grad_log_det.dtype, *parameters)  # type: ignore[arg-type]
    sign = -1 if inverse else 1
    x, g = f.rows(kept), f.rows(grad_output)
    x = x if f.log_s is None else x * torch.exp(f.log_s)
    u = x if f.shift is None else x + f.shift
    l = sign * kept.shape[2] * kept.shape[3] * grad_log_det.sum()  # noqa: E741
    v = w = g
    if not inverse:
        of_bias = g.sum(0)
        w = g if f.order is None else g[:, torch.argsort(f.order)]
        if f.lower is not None:
            v = w @ f.lower
            g = v @ f.upper
    elif f.log_s is not None:
        g = g * torch.exp(-f.log_s)
    of_shift, of_scale = sign * g.sum(0), sign * (g * x).sum(0) + l
    if not inverse:
        g = g if f.log_s is None else g * torch.exp(f.log_s)
    else:
        if f.lower is not None:
            v = solve_triangular(f.upper, g, upper=True, left=False)
            g = w = solve_triangular(f.lower, v, upper=False, left=False, unitriangular=True)
        g = g if f.order is None else g[:, f.order]
        of_bias = -g.sum(0)
    into, lower, upper, diag, log_scale, shift, bias = grads
    f.put(g, into)  # type: ignore[arg-type]
    if shift is not None:
        shift.copy_(of_shift)
    if bias is not None:
        bias.copy_(of_bias)
    if log_scale is not None and f.log_s is not None:
        log_scale.copy_(of_scale * (f.log_s == f.log_scale))
    if lower is None or upper is None or diag is None or f.lower is None:
        return
    lower.copy_(torch.tril(sign * (w.mT @ (u @ f.upper.mT)), -1))
    upper.copy_(torch.triu(sign * (v.mT @ u), 1))
    diag.copy_(f.slope * (sign * (v * (u * f.diag)).sum(0) + l))
