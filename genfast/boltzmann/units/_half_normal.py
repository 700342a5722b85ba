"""The density proportional to exp(-x^2 / 2 + z x) on x >= 0: a normal of mean z and variance 1, cut off at 0.

With Phi the normal distribution and phi its density, r = phi(z) / Phi(z):

    log of the integral:  log sqrt(2 pi) + z^2 / 2 + log Phi(z),    its derivatives:
    mean:                 m = z + r
    variance:             v = 1 - r m,      v' = r (m^2 - v)

For z << 0 these cancel; there r comes of the scaled complementary error function, and far out m and v of Laplace's
continued fraction of Mills' ratio, r = t + 1/(t + 2/(t + 3/(t + ...))) with t = -z. All is computed in float64.
"""

import math
from typing import Any

import torch
from torch import Tensor

from genfast._tracing import has_values

_FAR = 30.0  # beyond, 8 terms of the fraction are exact to float64; below, the cancellation costs eps t^4 at most
_SQRT_HALF = math.sqrt(0.5)


def _log_integral(z: Tensor) -> Tensor:
    below = torch.special.erfcx(-z.clamp(max=0) * _SQRT_HALF).log()
    above = z.clamp(min=0)
    above = above * above / 2 + torch.special.log_ndtr(above) + math.log(2)
    return torch.where(z < 0, below, above) + 0.5 * math.log(math.pi / 2)


def _cumulants(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m, v and v'.

    With the fraction's tails c = 2/(t + d) and d = 3/(t + ...): m = 1/(t + c), v = m (c - m), and m^2 - v = m (2 m - c)
    with 2 m - c = m c (d - c), of which nothing cancels.
    """
    r = math.sqrt(2 / math.pi) / torch.special.erfcx(-z * _SQRT_HALF)
    m = z + r
    v = 1 - r * m
    third = r * (m * m - v)
    far = z < -_FAR
    if torch.compiler.is_compiling() or z.device.type != "cpu" or bool(far.any()):
        t = (-z).clamp(min=_FAR)
        d = torch.zeros_like(t)
        for k in range(9, 2, -1):
            d = k / (t + d)
        c = 2 / (t + d)
        far_m = 1 / (t + c)
        m = torch.where(far, far_m, m)
        v = torch.where(far, far_m * (c - far_m), v)
        third = torch.where(far, (t + far_m) * far_m * far_m * c * (d - c), third)
    return m, v, third


class _Cumulant(torch.autograd.Function):
    """The log of the integral (order 0), the mean (1), the variance (2) or its derivative (3) in z.

    Each is the derivative of the one before.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(order: int, z: Tensor) -> Tensor:
        return _log_integral(z) if order == 0 else _cumulants(z)[order - 1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.order, z = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad * _derivative(ctx.order, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        return tangent * _derivative(ctx.order, *ctx.saved_tensors)


def _derivative(order: int, z: Tensor) -> Tensor:
    if order < 3:
        return _cumulant(order + 1, z)
    m, v, third = (_cumulant(k, z) for k in (1, 2, 3))
    return (m - z) * (2 * m * v - third) - m * third  # r' = -r m


def _cumulant(order: int, z: Tensor) -> Tensor:
    out: Tensor = _Cumulant.apply(order, z)
    return out


def log_integral(z: Tensor) -> Tensor:
    """The log of the integral of exp(-x^2 / 2 + z x) over x >= 0, in float64; differentiable to any order."""
    return _cumulant(0, z.double())


def mean(z: Tensor) -> Tensor:
    """The mean, in float64."""
    return _cumulant(1, z.double())


def variance(z: Tensor) -> Tensor:
    """The variance, in float64."""
    return _cumulant(2, z.double())


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """The first two moments of float64 z, without a gradient."""
    m, v, _ = _cumulants(z.detach())
    return m, v.addcmul_(m, m)


def sample(z: Tensor, u: Tensor) -> Tensor:
    """The x that is exceeded with probability u in (0, 1], both float64: exact draws of uniform u, at every z.

    Above z = 0, x = z - Phi^-1(u Phi(z)). Below, with t = -z, Halley's method solves g(x) = log P(X > x) - log u = 0 of
    g = log erfcx((t + x) / sqrt 2) - log erfcx(t / sqrt 2) - (x^2 / 2 + t x) - log u, in which nothing cancels; three
    steps are exact to 2e-14. -g' is the hazard rate r at t + x, and g'' = -r (r - t - x).
    """
    above = z > 0
    if z.device.type != "cpu" or not has_values(z):
        return torch.where(above, _invert_above(z, u), _invert_below(z.clamp(max=0), u))
    below = ~(above | z.isnan())
    x = z.clone()
    x[above] = _invert_above(z[above], u[above])
    x[below] = _invert_below(z[below], u[below])
    return x


def _invert_above(z: Tensor, u: Tensor) -> Tensor:
    quantile: Tensor = torch.special.ndtri(u * torch.special.ndtr(z))
    return (z - quantile).clamp(min=0)


def _invert_below(z: Tensor, u: Tensor) -> Tensor:
    t, log_u = -z, u.log()
    log_scale = torch.special.erfcx(t * _SQRT_HALF).log()
    x = -2 * log_u / (t + torch.sqrt(t * t - 2 * log_u)).clamp(min=torch.finfo(t.dtype).tiny)
    for _ in range(3):
        end = t + x
        tail = torch.special.erfcx(end * _SQRT_HALF)
        rate = math.sqrt(2 / math.pi) / tail
        newton = (tail.log() - log_scale - 0.5 * x * (end + t) - log_u) / rate
        x = (x + newton / (1 + 0.5 * newton * (rate - end))).clamp(min=0)
    return x
