"""The warning that a spline flow is fed data of another scale."""

import contextlib
import contextvars
import warnings
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from genfast._tracing import has_values


class Bounded(Protocol):
    """A layer that is the identity outside [-bound, bound], and remembers which of its inputs was looked at."""

    bound: float
    seen_inputs: set[str]


_warned: contextvars.ContextVar[list[bool] | None] = contextvars.ContextVar("_warned", default=None)


@contextlib.contextmanager
def one_warning() -> Iterator[None]:
    """Inside, the first layer that warns speaks for the others."""
    token = _warned.set([])
    try:
        yield
    finally:
        _warned.reset(token)


def warn_outside(name: str, x: Tensor, layer: Bounded) -> None:
    """Warn where most of x lies outside the bound of the layer: for the first rows that it sees, and once.

    Looking waits for the device; later calls do not come here.
    """
    if x.numel() == 0 or not has_values(x):
        return
    layer.seen_inputs.add(name)
    warned = _warned.get()
    if warned:
        return
    size = x.detach().abs()
    outside, largest = float((size > layer.bound).float().mean()), float(size.max())
    if outside > 0.5:
        if warned is not None:
            warned.append(True)
        warnings.warn(
            f"{name} reaches {largest:.4g}, and {outside:.0%} of it lies outside [-{layer.bound:g}, {layer.bound:g}], "
            "where the spline is the identity: standardise the data, or give a larger bound=",
            UserWarning,
            stacklevel=2,
        )
