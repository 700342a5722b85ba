"""One step of contrastive divergence of a restricted Boltzmann machine: chains and gradients in one call."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genfast import _native
from genfast._backend import use_reference
from genfast._register import HALF, define, like
from genfast.ops import _checks as check
from genfast.ops._sampling import seed_tensor
from genfast.ops.rbm import (
    SLICE,
    _machine,
    gibbs_states,
    parameter_gradients,
    refuse_states,
    rows_energy,
    state_product,
)
from genfast.reference import rbm as reference

# Bits of the kernel's status: see RbmStatus in rbm.h.
_NOT_FINITE, _NOT_BINARY, _NOT_PROBABILITY = 1, 2, 16

Gradients = tuple[Tensor, Tensor, Tensor]


class RbmStep(NamedTuple):
    """What `rbm_cd` returns."""

    grad_W: Tensor  # noqa: N815
    grad_vbias: Tensor
    grad_hbias: Tensor
    v: Tensor
    loss: Tensor


def contrastive_step(
    v: Tensor, chains: Tensor | None, W: Tensor, vbias: Tensor, hbias: Tensor, seed: Tensor, k: int,
    first_chain: int = 0, first_step: int = 0, *, out: Sequence[Tensor], loss: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Writes the gradients over `out` and the value over `loss` [1]; returns the model's states.

    All tensors are rows of one dtype, float32 or float64, on one device, contiguous but `out`'s, with at least one row.

    Raises:
        ValueError: on the CPU, v is not in [0, 1], or chains hold other values than 0 and 1.
    """
    start = v if chains is None else chains
    n, products = start.shape[0], W.shape[0] * W.shape[1]
    fits = v.dtype == torch.float32 and v.is_cpu and not use_reference(v) and n * k * products <= SLICE
    if fits and all(g.is_contiguous() for g in out):
        where = (first_chain & 0xFFFFFFFF, first_step & 0xFFFFFFFF)
        v_model = torch.empty_like(start)
        status = _native.rbm_cd(v, chains, W, vbias, hbias, seed, False, k, *where, v_model, *out, loss)
        if status in (0, _NOT_FINITE):
            return v_model
        if status == _NOT_BINARY:  # probabilities: their statistics are sums of floats, and first states are drawn
            drawn = chains is None
            status = _native.rbm_cd(None, start, W, vbias, hbias, seed, drawn, k, *where, v_model, *out, loss)
            if status == _NOT_BINARY:
                refuse_states(status, start)
            if status == _NOT_PROBABILITY:
                raise ValueError(_PROBABILITIES)
            if status == 0:
                _add_data(v, W, vbias, hbias, out, loss)
            if status in (0, _NOT_FINITE):
                return v_model
    return _composed(v, chains, W, vbias, hbias, seed, k, first_chain, first_step, out, loss)


_PROBABILITIES = "v: expected 0 or 1, or probabilities in between, got other values"


def _add_data(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, out: Sequence[Tensor], loss: Tensor | None) -> None:
    """Adds the gradients of mean F(v)."""
    if not bool(((v >= 0) & (v <= 1)).all()):
        raise ValueError(_PROBABILITIES)
    mean = v.new_full(v.shape[:1], 1 / v.shape[0])
    p = state_product(v, W, init=hbias)
    if loss is None:
        p.sigmoid_()
    else:
        loss += rows_energy(v, vbias, p) @ mean
    for total, part in zip(out, parameter_gradients(v, p, mean), strict=True):
        total.add_(part)


def _composed(
    v: Tensor, chains: Tensor | None, W: Tensor, vbias: Tensor, hbias: Tensor, seed: Tensor, k: int, first_chain: int,
    first_step: int, out: Sequence[Tensor], loss: Tensor | None,
) -> Tensor:  # fmt: skip
    """The step from a Gibbs call and products: on GPUs, in float64, for very long calls and very large weights."""
    good = (v >= 0) & (v <= 1)
    if v.is_cpu and not bool(good.all()):
        raise ValueError(_PROBABILITIES)
    if not v.is_cpu:
        v = torch.where(good, v, torch.nan)
    start = reference.drawn_states(v, seed, first_chain, first_step) if chains is None else chains
    v_model = gibbs_states(start, W, vbias, hbias, seed, k, first_chain, first_step)
    rows, n = torch.cat([v, v_model]), v.shape[0]
    weights = v.new_full(rows.shape[:1], 1 / n)
    weights[n:] = -1 / v_model.shape[0]
    p = state_product(rows, W, init=hbias)
    if loss is None:
        p.sigmoid_()
    else:
        loss.copy_(rows_energy(rows, vbias, p) @ weights)
    parameter_gradients(rows, p, weights, out)
    return v_model


def _outputs(
    v: Tensor, chains: Tensor | None, W: Tensor, vbias: Tensor, hbias: Tensor, seed: Tensor, k: int, first_chain: int,
    first_step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return like(W), like(vbias), like(hbias), like(v if chains is None else chains), v.new_empty(1)


def _step(
    v: Tensor, chains: Tensor | None, W: Tensor, vbias: Tensor, hbias: Tensor, seed: Tensor, k: int, first_chain: int,
    first_step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    out, loss = (torch.empty_like(W), torch.empty_like(vbias), torch.empty_like(hbias)), v.new_empty(1)
    states = contrastive_step(v, chains, W, vbias, hbias, seed, k, first_chain, first_step, out=out, loss=loss)
    return *out, states, loss


_op = define("rbm_cd", _outputs, launch=_step, autocast=False)


def rbm_cd(
    v: Tensor,
    W: Tensor,
    vbias: Tensor,
    hbias: Tensor,
    *,
    k: int = 1,
    chains: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> RbmStep:
    r"""One step of contrastive divergence: k Gibbs sweeps, and the gradients that they give, in one call.

    The chains start at the data (CD-k) or at `chains` (persistent contrastive divergence). With their states v' after
    k sweeps, the gradients of :math:`\frac1N \sum F(v) - \frac1M \sum F(v')` are

    .. math::
        \frac{\partial}{\partial W} = \overline{v' \sigma(b + v'W)} - \overline{v\, \sigma(b + vW)}, \qquad
        \frac{\partial}{\partial a} = \overline{v'} - \overline{v}, \qquad
        \frac{\partial}{\partial b} = \overline{\sigma(b + v'W)} - \overline{\sigma(b + vW)}

    with F of `rbm_free_energy`. The chains are those of `rbm_gibbs` with the same seed, bit for bit. On the CPU in
    float32 the exact integer fields of the sampler serve the statistics too: with weights of ordinary size their error
    is below that of a float32 product, and where it is not, the fields are computed anew.

    The op has no gradient of its own. Under `torch.vmap` each entry of the batch is one call.

    Args:
        v: data `[N, n_visible]`, 0/1 or probabilities in between, in any real dtype. Chains that start at probabilities
            start at states drawn from them.
        W: weights `[n_visible, n_hidden]`, float32 or float64 (half types are raised to float32).
        vbias: a, `[n_visible]`.
        hbias: b, `[n_hidden]`.
        k: number of Gibbs sweeps, at least 1.
        chains: 0/1 states `[M, n_visible]` to start from instead of the data.
        generator: torch generator from which the seed is drawn; the default one if not given.
        seed: an int or an int64 tensor of one element on the device of `v`.
        first_chain: number of the first chain, for its random numbers.
        first_step: number of the first sweep, for its random numbers.

    Returns:
        grad_W: `[n_visible, n_hidden]`.
        grad_vbias: `[n_visible]`.
        grad_hbias: `[n_hidden]`.
        v: the chains' states after k sweeps, `[M, n_visible]`, in the dtype of `W`.
        loss: the difference of the mean free energies, a scalar. It is not the likelihood and need not fall.

        Where a parameter is NaN or infinite all of them are NaN.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, there are no rows, k < 1; on the CPU, `v` holds values outside
            [0, 1], or `chains` others than 0 and 1 (elsewhere they count as NaN).

    Source:
        Hinton, "Training products of experts by minimizing contrastive divergence", 2002; Tieleman, "Training
        restricted Boltzmann machines using approximations to the likelihood gradient", 2008.

    Example:
        >>> W, a, b = torch.randn(784, 500) * 0.01, torch.zeros(784), torch.zeros(500)
        >>> v = torch.bernoulli(torch.full((128, 784), 0.2))
        >>> step = genfast.ops.rbm_cd(v, W, a, b, seed=1)
        >>> W -= 0.1 * step.grad_W
        >>> step.v.shape
        torch.Size([128, 784])
    """
    rows, _ = _machine(v, W, vbias, hbias)
    for name, number, least in (("k", k, 1), ("first_chain", first_chain, 0), ("first_step", first_step, 0)):
        if number < least:
            raise ValueError(f"{name}: got {number}, want at least {least}")
    wide = torch.float32 if W.dtype in HALF else W.dtype
    if chains is not None:
        check.tensor("chains", chains)
        check.shape("chains", chains, (None, W.shape[0]), "[M, n_visible] with n_visible = {} of W", W.shape[0])
        if chains.device != W.device:
            raise ValueError(f"chains: got a tensor on {chains.device}, want {W.device} like W")
    for name, x in (("v", rows), ("chains", chains)):
        if x is not None and x.shape[0] == 0:
            raise ValueError(f"{name}: got no rows, want at least one")
    tensors = [None if t is None else t.detach().to(wide) for t in (rows, chains, W, vbias, hbias)]
    outputs = _op(*tensors, seed_tensor(seed, generator, v), k, first_chain, first_step)
    of_W, of_vbias, of_hbias, states = (t if W.dtype == wide else t.to(W.dtype) for t in outputs[:4])
    return RbmStep(of_W, of_vbias, of_hbias, states, outputs[4].reshape(()))
