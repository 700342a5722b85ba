"""A flow as a `torch.distributions.Distribution`."""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from genfast._arguments import real


class FlowDistribution(Distribution):
    """The distribution of a flow's data, given a context where the flow takes one; see `Flow.to_distribution`.

    Args:
        flow: a `Flow`; shared, not copied.
        context: `[*batch_shape, C]`, or None.
        batch_shape: where there is no context: of the independent, equal distributions that `expand` asks for.

    Raises:
        ValueError: the context is missing, not wanted, or of another width.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (as torch writes it)

    def __init__(self, flow: Any, context: Tensor | None = None, batch_shape: Sequence[int] = ()) -> None:
        width = flow.context_features
        if context is None and width is not None:
            raise ValueError(f"context: got None, want [..., {width}] for the flow")
        if context is not None:
            if width is None:
                raise ValueError("context: got a context, want None: no part of the flow takes one")
            real("context", context, width)
            batch_shape = context.shape[:-1]
        self.flow = flow
        self.context = context
        super().__init__(torch.Size(batch_shape), flow.data_shape(), validate_args=False)

    def __repr__(self) -> str:
        """The flow's type and the shapes."""
        shapes = f"batch_shape: {tuple(self.batch_shape)}, event_shape: {tuple(self.event_shape)}"
        return f"FlowDistribution({type(self.flow).__name__}, {shapes})"

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether samples carry the gradient of all parameters."""
        return bool(self.flow.reparametrised)

    @property
    def support(self) -> constraints.Constraint:
        """Where the last transform puts data."""
        last = self.flow.transforms[-1] if len(self.flow.transforms) else self.flow.base
        inner = getattr(last, "codomain", constraints.real)
        return constraints.independent(inner, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "FlowDistribution":
        """The same for a larger batch shape."""
        context = self.context
        if context is not None:
            context = context.expand(*batch_shape, context.shape[-1])
        return type(self)(self.flow, context, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of value `[..., *batch_shape, *event_shape]`."""
        if value.shape[value.ndim - len(self.event_shape) :] != self.event_shape:
            raise ValueError(f"value: got shape {list(value.shape)}, want [..., {str(list(self.event_shape))[1:]}")
        log_prob: Tensor = self.flow.log_prob(value, self.context)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Samples `[*sample_shape, *batch_shape, *event_shape]`, without a graph."""
        x: Tensor = self.flow.sample(self._lead(sample_shape), self.context)
        return x

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Samples with a graph."""
        x: Tensor = self.flow.rsample(self._lead(sample_shape), self.context)
        return x

    def rsample_and_log_prob(self, sample_shape: Any = torch.Size()) -> tuple[Tensor, Tensor]:  # noqa: B008
        """Samples and their log-density in one pass of the flow, as zuko's distributions have it."""
        drawn: tuple[Tensor, Tensor] = self.flow.sample_and_log_prob(self._lead(sample_shape), self.context)
        return drawn

    def _lead(self, sample_shape: Any) -> tuple[int, ...]:
        return tuple(sample_shape) if self.context is not None else (*sample_shape, *self.batch_shape)


@functools.cache
def _pyro_type(mixin: type) -> type[FlowDistribution]:
    return type("FlowDistribution", (FlowDistribution, mixin), {})


def distribution_type() -> type[FlowDistribution]:
    """`FlowDistribution`, with what Pyro adds to distributions where Pyro is imported."""
    pyro = sys.modules.get("pyro.distributions.torch_distribution")
    return FlowDistribution if pyro is None else _pyro_type(pyro.TorchDistributionMixin)
