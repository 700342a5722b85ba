"""What the base distributions of flows have in common."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from genfast._arguments import integer, real
from genfast._module import Configured

LARGEST_LOG_SCALE = 40.0  # e^40 is a number of float32 and, squared, still one


def sample_shape(n: int | Sequence[int]) -> tuple[int, ...]:
    """The leading dimensions of samples from their number, or from the dimensions themselves.

    Raises:
        ValueError: one of them is no integer of at least 0.
    """
    if isinstance(n, Sequence):
        return tuple(integer("n", size, at_least=0) for size in n)
    return (integer("n", n, at_least=0),)


def event_shape(dim: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of one event from a number of dimensions, or from the shape itself.

    Raises:
        ValueError: it is no positive integer and no sequence of such.
    """
    if isinstance(dim, Sequence) and len(dim):
        return tuple(integer("dim", size) for size in dim)
    return (integer("dim", dim),)


class Base(Configured):
    """A distribution of noise; a subclass gives `_draw` and `_log_prob`.

    Args:
        dim: number of dimensions, or the shape of one event: (C, H, W) for images.
    """

    #: Width of the context `[..., context_features]` that the distribution hangs on; None: it takes none.
    context_features: int | None = None
    #: Whether `_draw` carries the gradient of all parameters.
    has_rsample = True
    #: Where noise lies, as a constraint on one number.
    codomain: constraints.Constraint = constraints.real

    def __init__(self, dim: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = event_shape(dim)
        self.dim = math.prod(self.shape)
        self.event_dim = len(self.shape)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"dim={self.shape[0] if self.event_dim == 1 else self.shape}"

    def saved_options(self) -> dict[str, Any]:
        """The shape of one event."""
        return {"dim": self.dim if self.event_dim == 1 else list(self.shape)}

    @property
    def reparametrised(self) -> bool:
        """Whether samples carry the gradient of the parameters, if any parameter wants one."""
        return self.has_rsample or not any(p.requires_grad for p in self.parameters())

    @torch.no_grad()
    def sample(self, n: int | Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples `[n, *shape]`, without a graph; n is their number or their leading dimensions."""
        return self._draw(sample_shape(n), generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density log p(z) of z `[..., *shape]`; returns `[...]`, summed in float32 or wider, of that dtype."""
        return self._log_prob(self._checked(z))

    def _checked(self, z: Tensor) -> Tensor:
        real("z", z, self.shape[-1])
        if z.ndim < self.event_dim or z.shape[z.ndim - self.event_dim :] != self.shape:
            raise ValueError(f"z: got shape {list(z.shape)}, want [..., {str(list(self.shape))[1:]}")
        return z.to(torch.promote_types(z.dtype, torch.float32))

    def _sum(self, terms: Tensor) -> Tensor:
        """The sum over one event."""
        return terms.sum(-1) if self.event_dim == 1 else terms.flatten(-self.event_dim).sum(-1)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Samples `[*shape, *event]`, with a graph where there is one."""
        raise NotImplementedError

    def _log_prob(self, z: Tensor) -> Tensor:
        """The log-density of z of the right shape, in float32 or wider."""
        raise NotImplementedError


class Reparametrised(Base):
    """A distribution whose samples are a differentiable function of its parameters."""

    def rsample(self, n: int | Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """`sample` with a graph: differentiable in the parameters."""
        return self._draw(sample_shape(n), generator)
