"""A chain of transforms, as flows and invertible stacks have it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from genfast._arguments import real
from genfast.flows._transform import Transform, broadcast_context, common_context, wants_context


class Chain(Transform):
    """Transforms one after the other, the first one acts on noise; a subclass gives `forward` and `inverse`.

    Args:
        transforms: modules with `forward` and `inverse`, those of other libraries too, which get no context.
        base: the distribution of the noise, where there is one.
    """

    transforms: nn.ModuleList

    def __init__(self, transforms: Iterable[nn.Module], *, base: nn.Module | None = None) -> None:
        super().__init__()
        steps = list(transforms)
        for i, step in enumerate(steps):
            if not callable(step) or not callable(getattr(step, "inverse", None)):
                raise TypeError(f"transforms[{i}]: got {type(step).__name__}, want a module with forward and inverse")
        _check_events(base, steps)
        common_context(base, *steps)
        self.transforms = nn.ModuleList(steps)

    @property
    def context_features(self) -> int | None:  # type: ignore[override]
        """The width of the context that the parts take; None where none takes one."""
        return common_context(*self.transforms)

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """Trailing dimensions of one event of noise: those of the first transform that says so."""
        return _first([getattr(part, "event_dim", None) for part in self.transforms]) or 1

    @property
    def event_dim_out(self) -> int:
        """Trailing dimensions of one event of data: those of the last transform."""
        return _first([getattr(part, "event_dim_out", None) for part in reversed(self.transforms)]) or self.event_dim

    def apply_all(
        self, x: Tensor, context: Tensor | None, *, inverse: bool, step: Callable[..., Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """All transforms, or their inverses in reverse order: the output and the sum of the log-determinants.

        Args:
            x: what they are applied to.
            context: that of x, or None.
            inverse: the inverses.
            step: called before each with its place in `transforms` and its input.
        """
        if context is not None:
            x, context = self._with_context(x, context, self.event_dim_out if inverse else self.event_dim)
        given, total = x, None
        places = range(len(self.transforms))
        for i in reversed(places) if inverse else places:
            if step is not None:
                step(i, x)
            x, log_det = apply(self.transforms[i], x, context, inverse=inverse)
            total = log_det if total is None else total + log_det
        if total is None:
            lead = given.shape[: max(given.ndim - self.event_dim, 0)]
            total = x.new_zeros(lead, dtype=torch.promote_types(x.dtype, torch.float32))
        return x, total

    def _with_context(self, x: Tensor, context: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
        width = self.context_features
        if width is None:
            raise ValueError("context: got a context, want None: no part of the flow takes one")
        real("context", context, width)
        return broadcast_context(x, context, event_dim)


def apply(part: nn.Module, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
    """One transform or its inverse, with the context where it wants one."""
    one: Callable[..., tuple[Tensor, Tensor]] = part.inverse if inverse else part  # type: ignore[assignment]
    return one(x) if context is None or not wants_context(part) else one(x, context)


def _first(values: list[Any]) -> int | None:
    return next((value for value in values if value is not None), None)


def _check_events(base: nn.Module | None, steps: list[nn.Module]) -> None:
    """Refuse neighbours of which one gives vectors and the next takes images; who says nothing is not asked."""
    name, dim = "base", getattr(base, "event_dim", None)
    for i, step in enumerate(steps):
        takes = getattr(step, "event_dim", None)
        if None not in (dim, takes) and dim != takes:
            raise ValueError(f"transforms[{i}]: takes events of {takes} dimensions, {name} gives events of {dim}")
        name, dim = f"transforms[{i}]", getattr(step, "event_dim_out", takes)
