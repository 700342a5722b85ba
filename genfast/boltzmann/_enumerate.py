"""Exact sums over all states of a small machine."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MAX_UNITS = 25
_CHUNK = 1 << 12


def all_states(n_units: int, start: int, stop: int, *, device: torch.device) -> Tensor:
    """The binary states number `start` to `stop` of `n_units` units, unit 0 the lowest bit: `[stop - start, n]`."""
    index = torch.arange(start, stop, device=device)
    return ((index[:, None] >> torch.arange(n_units, device=device)) & 1).double()


class _Recomputed(torch.autograd.Function):
    """A scalar function(*tensors) whose backward keeps the arguments alone: a checkpoint that torch.func takes too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch.func.vjp(ctx.function, *ctx.saved_tensors)[1](grads[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        grads = torch.func.grad(ctx.function, tuple(range(len(ctx.saved_tensors))))(*ctx.saved_tensors)
        products = [(g * t).sum() for g, t in zip(grads, tangents[1:], strict=True) if t is not None]
        return torch.stack(products).sum()


def log_partition_rbm(W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    """The log of sum_{v, h} exp(a.v + b.h + v'W h), summing out the larger layer in closed form; float64.

    Differentiable to any order: the gradient is the model's expectation, by the same enumeration. States are taken in
    chunks, and a chunk keeps nothing for the backward.
    """
    W, vbias, hbias = W.double(), vbias.double(), hbias.double()
    if W.shape[0] < W.shape[1]:
        W, vbias, hbias = W.T, hbias, vbias
    n_units, device = W.shape[1], W.device
    if n_units > MAX_UNITS:
        raise ValueError(
            f"log_partition: the smaller layer has {n_units} units, want at most {MAX_UNITS} for exact enumeration"
        )

    def chunk(start: int) -> Callable[..., Tensor]:
        def log_sum(W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
            h = all_states(n_units, start, min(start + _CHUNK, 1 << n_units), device=device)
            # -logsigmoid(-x) is softplus without torch's linear cut-off
            return torch.logsumexp(h @ hbias - functional.logsigmoid(-torch.addmm(vbias, h, W.T)).sum(1), 0)

        return log_sum

    chunks = map(chunk, range(0, 1 << n_units, _CHUNK))
    if torch.compiler.is_compiling():  # the compiler chooses itself what to keep
        sums = [log_sum(W, vbias, hbias) for log_sum in chunks]
    else:
        sums = [_Recomputed.apply(log_sum, W, vbias, hbias) for log_sum in chunks]
    return sums[0] if len(sums) == 1 else torch.logsumexp(torch.stack(sums), 0)
