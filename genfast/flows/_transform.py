"""What all transforms of flows have in common, and the check of their context."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from genfast._arguments import floating, integer
from genfast._module import Module


class Transform(Module):
    """An invertible map from noise to data.

    A subclass gives `forward` and `inverse`, each `(output, log_det)` of the map just applied, log_det one number an
    event, in float32 or wider; with `context = self.check_context(z, context)` as their first line. A subclass that can
    take a context sets `context_features`.

    Example:
        >>> class Shift(Transform):
        ...     def __init__(self, dim, context_features=None):
        ...         super().__init__()
        ...         self.context_features = context_features
        ...         self.shift = torch.nn.Linear(context_features, dim)
        ...     def forward(self, z, context=None):
        ...         context = self.check_context(z, context)
        ...         return z + self.shift(context), z.new_zeros(z.shape[:-1])
        ...     def inverse(self, x, context=None):
        ...         context = self.check_context(x, context)
        ...         return x - self.shift(context), x.new_zeros(x.shape[:-1])
    """

    #: Trailing dimensions of one event of noise: 1 for vectors `[..., D]`, 3 for images `[..., C, H, W]`.
    event_dim: int = 1
    #: Width of the context `[..., context_features]` that the transform needs; None: it takes none.
    context_features: int | None = None
    #: Where data lie, as a constraint on one number.
    codomain: constraints.Constraint = constraints.real

    @property
    def event_dim_out(self) -> int:
        """Trailing dimensions of one event of data."""
        return self.event_dim

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise z to (x, log|det dx/dz|)."""
        raise NotImplementedError

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data x to (z, log|det dz/dx|)."""
        raise NotImplementedError

    def check_context(self, x: Tensor, context: Tensor | None, event_dim: int | None = None) -> Tensor | None:
        """The context of x, expanded to its leading dimensions; None where the transform takes none.

        Args:
            x: what the transform is applied to; its own check has passed.
            context: what the caller gave.
            event_dim: trailing dimensions of x that are one event; by default those of noise.

        Raises:
            TypeError: the context is no tensor of floating-point numbers.
            ValueError: it is missing, or given where none is taken, or its width or leading dimensions do not fit.
        """
        if context is None and self.context_features is None:
            return None
        lead = x.shape[: x.ndim - (self.event_dim if event_dim is None else event_dim)]
        return expanded_context(context, self.context_features, lead, type(self).__name__)


def expanded_context(context: object, features: int | None, lead: Sequence[int], owner: str) -> Tensor | None:
    """The context of `features` numbers, expanded to the leading dimensions `lead`; see `Transform.check_context`."""
    return None if context is None and features is None else needed_context(context, features, lead, owner)


def needed_context(context: object, features: int | None, lead: Sequence[int], owner: str) -> Tensor:
    """`expanded_context` where there must be one."""
    if features is None:
        got = f"shape {list(context.shape)}" if isinstance(context, Tensor) else type(context).__name__
        raise ValueError(f"context: got {got}, want None: {owner} takes no context")
    if context is None:
        raise ValueError(f"context: got None, want [..., {features}] for {owner}")
    floating("context", context, features)
    assert isinstance(context, Tensor)  # noqa: S101  (checked above)
    want = (*lead, features)
    if context.shape == want:
        return context
    try:
        return context.expand(want)
    except RuntimeError:
        raise ValueError(
            f"context: got shape {list(context.shape)}, want leading dimensions that expand to {list(lead)}, "
            "those of the rows"
        ) from None


def common_context(*parts: Any, given: int | None = None) -> int | None:
    """The width of the context that parts take in common, which `given` states where none of them says so.

    Raises:
        ValueError: they want contexts of different widths, or `given` is not a positive integer.
    """
    if given is not None:
        integer("context_features", given)
    widths = {w for w in (given, *(getattr(part, "context_features", None) for part in parts)) if w is not None}
    if len(widths) > 1:
        raise ValueError(f"context_features: got parts for contexts of {sorted(widths)} numbers, want one width")
    return next(iter(widths), None)


def wants_context(part: nn.Module) -> bool:
    """Whether a transform, a base or a conditioner is called with a context; foreign modules are not."""
    return getattr(part, "context_features", None) is not None


def broadcast_context(x: Tensor, context: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """x `[..., event]` and context `[..., C]`, each expanded to the leading dimensions that they broadcast to."""
    if context.ndim == 0:
        return x, context  # refused by whatever takes it
    at = max(x.ndim - event_dim, 0)
    lead, given = x.shape[:at], context.shape[:-1]
    if lead == given:
        return x, context
    try:
        both = torch.broadcast_shapes(lead, given)
    except RuntimeError:
        raise ValueError(
            f"context: got shape {list(context.shape)}, want leading dimensions that broadcast with {list(lead)}, "
            "those of the rows"
        ) from None
    return x.expand(*both, *x.shape[at:]), context.expand(*both, context.shape[-1])
