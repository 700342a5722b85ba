"""A gradient that is not known is refused, not left out."""

from typing import Any

import torch
from torch import Tensor


class _Refused(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, message: str) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        raise RuntimeError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:  # noqa: ARG004
        raise RuntimeError(ctx.message)


def refuse_gradient(x: Tensor, message: str) -> Tensor:
    """x, of which no derivative is taken: asking for one raises RuntimeError with the message."""
    out: Tensor = _Refused.apply(x, message)
    return out
