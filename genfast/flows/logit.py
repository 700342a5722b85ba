"""The logit: data in an interval, such as pixels, behind a flow over all real numbers."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from genfast._arguments import floating, integer, number
from genfast._module import Configured
from genfast.flows._transform import Transform


class Logit(Configured, Transform):
    r"""x = (sigmoid(z) - alpha) / (1 - 2 alpha): data in [0, 1] from real numbers; z = logit(alpha + (1 - 2 alpha) x).

    .. math::
        \log|\det \partial x / \partial z| = \sum_d \log s(z_d) + \log s(-z_d) - \log(1 - 2\alpha), \quad s = sigmoid

    alpha > 0 keeps z moderate where pixels are 0 and 1. The logarithms are those of the numbers themselves, so that
    everything is finite for every finite z and every x inside. At the boundary -alpha / (1 - 2 alpha) or
    1 + alpha / (1 - 2 alpha), x counts as the nearest normal number inside. Beyond it, no z maps to x: z is that of the
    boundary and log|det| is -inf, so that the density is 0, without a gradient.

    Args:
        alpha: see above, from 0 to below 0.5; 0.05 for images of 256 levels, 1e-6 in nflows and MAF.
        event_dim: trailing dimensions of one event: 1 for vectors, 3 for images.

    Raises:
        TypeError: alpha is no number.
        ValueError: alpha is out of range, or event_dim is no positive integer.

    Source:
        Dinh et al. 2017, "Density estimation using Real NVP", section 4.1.

    Example:
        >>> layer = Logit(0.05)
        >>> x, log_det = layer.forward(torch.randn(5, 4))
        >>> z, _ = layer.inverse(torch.rand(5, 4))
    """

    def __init__(self, alpha: float = 0.05, *, event_dim: int = 1) -> None:
        super().__init__()
        self.alpha = number("alpha", alpha, 0, math.nextafter(0.5, 0))
        self.event_dim = integer("event_dim", event_dim)
        edge = self.alpha / (1 - 2 * self.alpha)
        self.codomain = constraints.interval(-edge, 1 + edge)

    def extra_repr(self) -> str:
        """Options, for the printed module."""
        return f"alpha={self.alpha:g}, event_dim={self.event_dim}"

    def saved_options(self) -> dict[str, Any]:
        """The constant."""
        return {"alpha": self.alpha}

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., *event]` to (x of the same shape, log_det `[...]`)."""
        wide = self._wide("z", z, context)
        x = (torch.sigmoid(wide) - self.alpha) / (1 - 2 * self.alpha)
        log_det = F.logsigmoid(wide) + F.logsigmoid(-wide) - math.log1p(-2 * self.alpha)
        return x.to(z.dtype), self._sum(log_det)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., *event]` to (z of the same shape, log_det `[...]`)."""
        wide = self._wide("x", x, context)
        limits = torch.finfo(wide.dtype)
        below = self.alpha + (1 - 2 * self.alpha) * wide
        above = self.alpha + (1 - 2 * self.alpha) * (1 - wide)
        log_below, log_above = below.clamp(min=limits.tiny).log(), above.clamp(min=limits.eps / 2).log()
        log_det = math.log1p(-2 * self.alpha) - log_below - log_above
        log_det = torch.where((below < 0) | (above < 0), -torch.inf, log_det)
        return (log_below - log_above).to(x.dtype), self._sum(log_det)

    def _wide(self, name: str, x: Tensor, context: Tensor | None) -> Tensor:
        floating(name, x)
        if x.ndim < self.event_dim:
            raise ValueError(f"{name}: got shape {list(x.shape)}, want {self.event_dim} dimensions or more")
        self.check_context(x, context)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def _sum(self, terms: Tensor) -> Tensor:
        return terms.flatten(-self.event_dim).sum(-1)
