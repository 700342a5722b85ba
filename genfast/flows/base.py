"""Base distributions of flows."""

import math

import torch
from torch import Tensor, nn

from genfast._arguments import integer


class StandardNormal(nn.Module):
    """The standard normal N(0, I) on `dim` dimensions: log p(z) = -|z|^2 / 2 - dim log(2 pi) / 2.

    Args:
        dim: number of dimensions.
        device: where samples are drawn (moved by `.to()`).
        dtype: of the samples.

    Raises:
        ValueError: dim is not a positive integer.

    Example:
        >>> StandardNormal(3).sample(5).shape
        torch.Size([5, 3])
    """

    like: Tensor

    def __init__(self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dim = integer("dim", dim)
        self.register_buffer("like", torch.empty(0, device=device, dtype=dtype), persistent=False)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"dim={self.dim}"

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw n samples, `[n, dim]`."""
        return torch.randn(n, self.dim, device=self.like.device, dtype=self.like.dtype, generator=generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density log p(z) of z `[..., dim]`; returns `[...]`."""
        return -0.5 * (z * z).sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)
