"""Exact sums over all states of a small machine."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from genfast._tracing import has_values
from genfast.boltzmann.units import Gaussian, Layer

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


def log_partition_rbm(W: Tensor, vbias: Tensor, hbias: Tensor, visible: Layer, hidden: Layer) -> Tensor:
    """The log of the sum (or integral) over v and h of exp(a.v + b.h + v'W h - E_0(v) - E_0(h)); float64.

    The discrete layer with fewer states is enumerated, the other one summed out in closed form. Differentiable to any
    order: the gradient is the model's expectation, by the same enumeration. States are taken in chunks, and a chunk
    keeps nothing for the backward, but in forward mode and in torch.compile. Two Gaussian layers are one Gaussian.
    """
    W, vbias, hbias = W.double(), vbias.double(), hbias.double()
    if isinstance(visible, Gaussian) and isinstance(hidden, Gaussian):
        return _log_partition_gaussian(W, vbias, hbias, visible.log_precision, hidden.log_precision)
    if (visible.n_states or math.inf) < (hidden.n_states or math.inf):
        W, vbias, hbias, visible, hidden = W.T, hbias, vbias, hidden, visible
    n_states, device = hidden.n_states, W.device
    if n_states is None:
        kinds = f"{type(visible).__name__} and {type(hidden).__name__}"
        raise ValueError(f"log_partition: neither of the layers, {kinds}, is discrete, so none can be enumerated")
    if n_states > 1 << MAX_UNITS:
        exact = f"{hidden.n} units" if n_states == 1 << hidden.n else f"{hidden.n} units ({n_states:.2g} states)"
        raise ValueError(
            f"log_partition: the smaller layer has {exact}, want at most {MAX_UNITS} for exact enumeration"
            f"{'' if n_states == 1 << hidden.n else f' (2^{MAX_UNITS} states)'}; estimate it by annealed importance "
            "sampling instead: genfast.boltzmann.ais_log_z"
        )
    names, others = zip(*visible.named_parameters(), strict=True) if list(visible.parameters()) else ((), ())

    def chunk(start: int) -> Callable[..., tuple[Tensor]]:
        def log_sum(W: Tensor, vbias: Tensor, hbias: Tensor, *others: Tensor) -> tuple[Tensor]:
            h = hidden.states(torch.arange(start, min(start + _CHUNK, n_states), device=device))
            inputs, own = torch.addmm(vbias, h, W.T), dict(zip(names, others, strict=True))
            log_normaliser = torch.func.functional_call(visible, own, (inputs,)) if own else visible(inputs)
            return (torch.logsumexp(h @ hbias + log_normaliser, 0),)

        return log_sum

    starts, others = range(0, n_states, _CHUNK), tuple(p.double() for p in others)
    sums = [s for start in starts for s in _recomputed(chunk(start), W, vbias, hbias, *others)]
    return sums[0] if len(sums) == 1 else torch.logsumexp(torch.stack(sums), 0)


def _log_partition_gaussian(W: Tensor, vbias: Tensor, hbias: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
    """That of two Gaussian layers of these log-precisions: of one normal of the precision [[V, -W], [-W', H]]."""
    bias = torch.cat([vbias, hbias])
    precision = torch.cat([visible, hidden]).double().exp().diag()
    n = W.shape[0]
    coupled = torch.cat([torch.cat([torch.zeros_like(precision[:n, :n]), W], 1), torch.zeros_like(precision[n:])])
    factor, info = torch.linalg.cholesky_ex(precision - coupled - coupled.T)
    if has_values(info) and int(info):
        raise ValueError(
            "log_partition: the weights are too large for the layers' precisions: exp(-E) has no finite integral"
        )
    half = torch.linalg.solve_triangular(factor, bias[:, None], upper=False)
    log_z: Tensor = 0.5 * (half * half).sum() - factor.diagonal().log().sum() + 0.5 * len(bias) * math.log(2 * math.pi)
    return log_z
