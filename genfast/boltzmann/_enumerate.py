"""Exact sums over all states of a small machine."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

MAX_UNITS = 25
_CHUNK = 1 << 12


def all_states(n_units: int, start: int, stop: int, *, device: torch.device) -> Tensor:
    """The binary states number `start` to `stop` of `n_units` units, unit 0 the lowest bit: `[stop - start, n]`."""
    index = torch.arange(start, stop, device=device)
    return ((index[:, None] >> torch.arange(n_units, device=device)) & 1).double()


class _Recomputed(torch.autograd.Function):
    """function(*tensors), a tuple, of which the arguments alone are kept: a checkpoint for derivatives of every order.

    In reverse mode, torch.func's too. It has no jvp: within one, PyTorch drops the tangents of the levels around.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG004
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        function, count = ctx.function, len(ctx.saved_tensors)

        def pull_back(*args: Tensor) -> tuple[Tensor, ...]:
            found: tuple[Tensor, ...] = torch.func.vjp(function, *args[:count])[1](args[count:])
            return found

        return None, *_recomputed(pull_back, *ctx.saved_tensors, *grads)


def _recomputed(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """`_Recomputed`, where it can be; the compiler chooses itself what to keep, and forward mode wants operations."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0:  # noqa: SLF001  (torch.func's levels too)
        return function(*tensors)
    found: tuple[Tensor, ...] = _Recomputed.apply(function, *tensors)
    return found


def log_partition_rbm(W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    """The log of sum_{v, h} exp(a.v + b.h + v'W h), summing out the larger layer in closed form; float64.

    Differentiable to any order: the gradient is the model's expectation, by the same enumeration. States are taken in
    chunks, and a chunk keeps nothing for the backward, but in forward mode and in torch.compile.
    """
    W, vbias, hbias = W.double(), vbias.double(), hbias.double()
    if W.shape[0] < W.shape[1]:
        W, vbias, hbias = W.T, hbias, vbias
    n_units, device = W.shape[1], W.device
    if n_units > MAX_UNITS:
        raise ValueError(
            f"log_partition: the smaller layer has {n_units} units, want at most {MAX_UNITS} for exact enumeration; "
            "genfast.boltzmann.ais_log_z estimates log Z of larger machines"
        )

    def chunk(start: int) -> Callable[..., tuple[Tensor]]:
        def log_sum(W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor]:
            h = all_states(n_units, start, min(start + _CHUNK, 1 << n_units), device=device)
            # -logsigmoid(-x) is softplus without torch's linear cut-off
            return (torch.logsumexp(h @ hbias - functional.logsigmoid(-torch.addmm(vbias, h, W.T)).sum(1), 0),)

        return log_sum

    sums = [s for start in range(0, 1 << n_units, _CHUNK) for s in _recomputed(chunk(start), W, vbias, hbias)]
    return sums[0] if len(sums) == 1 else torch.logsumexp(torch.stack(sums), 0)
