"""Affine maps of the channels of vectors and images in plain PyTorch: ActNorm, 1x1 convolutions, LU layers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Where log-scales saturate, so that scales and their inverses are normal numbers of float32.
MAX_LOG_SCALE = 80.0


def actnorm(x: Tensor, log_scale: Tensor, bias: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.actnorm`; the channels are dimension 1, whatever follows are pixels."""
    log_s = log_scale.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    x = x.movedim(1, -1)
    y = (x - bias) * torch.exp(-log_s) if inverse else x * torch.exp(log_s) + bias
    return y.movedim(-1, 1), _log_det(x, log_s.sum(), inverse)


def invertible_conv1x1(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diag: Tensor,
    sign_diag: Tensor,
    permutation: Tensor | None = None,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.invertible_conv1x1`; the channels are dimension 1."""
    log_d = log_diag.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    diag = torch.sign(sign_diag) * torch.exp(log_d)
    # a sign of 0 is a weight of 0
    log_abs = torch.where(sign_diag == 0, -torch.inf, log_d)
    x = x.movedim(1, -1)
    order = None if permutation is None else _checked(permutation, lower.shape[0])
    if inverse:
        w = x if order is None else x.index_select(-1, torch.argsort(order[0]))
        y = _solve(w, lower, upper, diag)
    else:
        w = _product(x, lower, upper, diag)
        y = w if order is None else w.index_select(-1, order[0])
    if order is not None:
        y = torch.where(order[1], y, torch.nan)
    return y.movedim(-1, 1), _log_det(x, log_abs.sum(), inverse)


def actnorm_conv1x1(
    x: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diag: Tensor,
    sign_diag: Tensor,
    permutation: Tensor | None = None,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.actnorm_conv1x1`."""
    weights = (lower, upper, log_diag, sign_diag, permutation)
    if inverse:
        x, of_weights = invertible_conv1x1(x, *weights, inverse=True)
        x, of_scale = actnorm(x, log_scale, bias, inverse=True)
    else:
        x, of_scale = actnorm(x, log_scale, bias)
        x, of_weights = invertible_conv1x1(x, *weights)
    return x, of_scale + of_weights


def lu_linear(
    x: Tensor, lower: Tensor, upper: Tensor, raw_diag: Tensor, bias: Tensor, *, min_diag: float = 1e-3,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `genfast.ops.lu_linear`."""
    diag = min_diag - F.logsigmoid(-raw_diag)  # torch's softplus drops e^-t beyond t = 20
    y = _solve(x - bias, lower, upper, diag) if inverse else _product(x, lower, upper, diag) + bias
    return y, _log_det(x, torch.log(diag).sum(), inverse)


def _log_det(x: Tensor, of_pixel: Tensor, inverse: bool) -> Tensor:
    """Of each sample of x `[N, ..., C]`."""
    pixels = math.prod(x.shape[1:-1])
    return (-pixels * of_pixel if inverse else pixels * of_pixel).expand(x.shape[0])


def _product(x: Tensor, lower: Tensor, upper: Tensor, diag: Tensor) -> Tensor:
    """L (U x) of each pixel, where U has the diagonal."""
    v = x * diag + x @ torch.triu(upper, 1).mT
    return v + v @ torch.tril(lower, -1).mT


def _solve(x: Tensor, lower: Tensor, upper: Tensor, diag: Tensor) -> Tensor:
    """U^-1 (L^-1 x) of each pixel."""
    pixels = x.reshape(-1, x.shape[-1]).mT
    v = torch.linalg.solve_triangular(torch.tril(lower, -1), pixels, upper=False, unitriangular=True)
    u: Tensor = torch.linalg.solve_triangular(torch.triu(upper, 1) + torch.diag(diag), v, upper=True)
    return u.mT.reshape(x.shape)


def _checked(permutation: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Indices that can be used, and whether they are a permutation; where they are none, results are NaN."""
    valid = (torch.sort(permutation).values == torch.arange(n, device=permutation.device)).all()
    return permutation.clamp(0, n - 1), valid
