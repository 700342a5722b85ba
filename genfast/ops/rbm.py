"""Restricted Boltzmann machines: many Gibbs sweeps in one call, and the free energy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genfast import _native
from genfast._backend import use_reference
from genfast._differentiable import differentiable
from genfast._register import HALF, define, is_plain, like
from genfast._tracing import has_values
from genfast.ops import _checks as check
from genfast.ops._sampling import SEEDS, STATES, clamp_mask, per_chain, seed_tensor
from genfast.reference import rbm as reference

_NOT_BINARY = 2  # a bit of the kernel's status: see RbmStatus in rbm.h

# --- Gibbs sampling ---------------------------------------------------------------------------------------------------

# Products (chain, visible unit, hidden unit) of one call of the kernel: half a second of the slowest one. A longer call
# is cut into several, so that an interrupt is heard in between; the chain is the same, bit for bit.
SLICE = 2**31


def _outputs(
    v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, beta: Tensor, clamp: Tensor | None, seed: Tensor, n_steps: int,
    first_chain: int, first_step: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return like(v), v.new_empty(v.shape[0], W.shape[1])


def _gibbs(
    v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, beta: Tensor, clamp: Tensor | None, seed: Tensor, n_steps: int,
    first_chain: int, first_step: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    states = v if v.dtype in STATES else v.to(torch.int64)
    if W.dtype not in (torch.float32, torch.float64):
        W, vbias, hbias = W.float(), vbias.float(), hbias.float()
    n, products = v.shape[0], W.shape[0] * W.shape[1]
    if n * n_steps * products <= SLICE:
        outputs = _slice(states, W, vbias, hbias, beta, clamp, seed, n_steps, first_chain, first_step)
    else:
        block = min(n, max(64, SLICE // products // 64 * 64))
        steps = max(1, SLICE // (block * products))
        parts = []
        for i in range(0, n, block):
            out_v, part = states[i : i + block], slice(i, i + block)
            beta_i = beta[part] if beta.shape[0] == n else beta
            clamp_i = clamp[part] if clamp is not None and clamp.dim() == 2 else clamp
            for j in range(0, n_steps, steps):
                out_v, out_h = _slice(
                    out_v, W, vbias, hbias, beta_i, clamp_i, seed, min(steps, n_steps - j), first_chain + i,
                    first_step + j,
                )  # fmt: skip
            parts.append((out_v, out_h))
        outputs = (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
    return outputs if states is v else (outputs[0].to(v.dtype), outputs[1].to(v.dtype))


def _slice(
    v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, beta: Tensor, clamp: Tensor | None, seed: Tensor, n_steps: int,
    first_chain: int, first_step: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out_v, out_h = _outputs(v, W, vbias, hbias, beta, clamp, seed, n_steps, first_chain, first_step)
    # A GPU's status lies in memory, and looking at it waits; so it is looked at only where NaN cannot tell.
    status = seed.new_empty(1, dtype=torch.int32) if v.is_cuda and not v.is_floating_point() else None
    returned: int | None = _native.rbm_gibbs(
        v, W, vbias, hbias, beta, clamp, seed, n_steps, first_chain & 0xFFFFFFFF, first_step & 0xFFFFFFFF, out_v,
        out_h, status,
    )  # fmt: skip
    if status is not None:
        returned = int(status)
    if returned:
        refuse_states(returned, v)
    return out_v, out_h


def gibbs_states(
    v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, seed: Tensor, n_steps: int, first_chain: int, first_step: int
) -> Tensor:
    """The visible states after n_steps sweeps of plain rows, on the backend in use."""
    if use_reference(v):
        return reference.rbm_gibbs(
            v, W, vbias, hbias, seed=seed, n_steps=n_steps, first_chain=first_chain, first_step=first_step
        )[0]
    beta = v.new_ones(1, dtype=torch.float32)
    states: Tensor = _gibbs_op(v, W, vbias, hbias, beta, None, seed, n_steps, first_chain, first_step)[0]
    return states


def refuse_states(status: int, v: Tensor) -> None:
    """Raise the error that a status of the kernel stands for, if it is one for states of this dtype."""
    if status & _NOT_BINARY:
        raise ValueError("v: expected states that are 0 or 1, got other values")
    if not v.is_floating_point():
        raise ValueError(
            f"W, vbias, hbias, beta: expected finite values, because {v.dtype} states cannot express NaN; "
            "got NaN or infinity"
        )


_CPU = torch.device("cpu")
_ONE = torch.ones(1, dtype=torch.float32, device=_CPU)  # the usual beta
_NUMBER = (float, int)

# Weights are raised to float32 anyway, and states keep their dtype.
_gibbs_op = define("rbm_gibbs", _outputs, launch=_gibbs, autocast=False)


def _fits(v: Any, W: Any, vbias: Any, hbias: Any) -> bool:
    """Whether these are float32 rows and parameters on the CPU that `_machine` lets pass: its checks in a third."""
    if not (type(v) is Tensor and isinstance(W, Tensor) and isinstance(vbias, Tensor) and isinstance(hbias, Tensor)):
        return False
    here = v.is_cpu and W.is_cpu and vbias.is_cpu and hbias.is_cpu
    alike = v.dtype == torch.float32 == W.dtype == vbias.dtype == hbias.dtype
    sizes, nv, nh = W.shape, vbias.shape, hbias.shape
    fit = v.dim() == 2 and len(nv) == len(nh) == 1 and sizes == nv + nh and v.shape[1:] == nv
    dense = v.layout == W.layout == vbias.layout == hbias.layout == torch.strided
    return here and alike and fit and dense and 0 not in sizes


def _machine(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor, torch.Size]:
    """Checks the parameters of a machine; v as rows, and its leading dimensions."""
    if _fits(v, W, vbias, hbias):
        return v, v.shape[:1]
    check.floating("W", W)
    check.same_dtype_and_device(W, "W", vbias=vbias, hbias=hbias)
    check.tensor("v", v)
    if v.device != W.device:
        raise ValueError(f"v: got a tensor on {v.device}, want {W.device} like W")
    if v.is_complex():
        raise TypeError(f"v: got {v.dtype}, want states in a real, integer or bool dtype")
    rows, batch = check.rows("v", v)
    check.shape("W", W, (rows.shape[1], None), "[n_visible, n_hidden] with n_visible = {} of v", rows.shape[1])
    if W.numel() == 0:
        raise ValueError(f"W: got shape {list(W.shape)}, want at least one visible and one hidden unit")
    check.shape("vbias", vbias, W.shape[:1], "[n_visible] of W")
    check.shape("hbias", hbias, W.shape[1:], "[n_hidden] of W")
    return rows, batch


def rbm_gibbs(
    v: Tensor,
    W: Tensor,
    vbias: Tensor,
    hbias: Tensor,
    *,
    n_steps: int = 1,
    beta: float | Tensor = 1.0,
    clamp: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Run sweeps of block Gibbs sampling in a restricted Boltzmann machine.

    One sweep draws all hidden units given the visible ones, :math:`p(h_j = 1 | v) = \sigma(\beta (b_j + (vW)_j))`, then
    all visible units given these, :math:`p(v_i = 1 | h) = \sigma(\beta (a_i + (Wh)_i))`. All sweeps run in one call.

    **The same seed gives the same chain, bit for bit, on every backend and device**, whatever the number of threads:
    weights are rounded once to fixed point (an error near that of a float32 product), sums are exact, and the random
    numbers are Philox4x32-10 at (chain, unit, step). `genfast.reference.rbm` and `genfast.reference._gibbs` state the
    definition to the last bit.
    A chain can therefore be split and resumed: rows `k:` of a batch are the chains from `first_chain=k`, and n steps
    are m steps followed by n - m steps from `first_step=m`, with the same seed.

    The op is a function of its arguments and has no gradient. Under `torch.vmap` each entry of the batch is one call
    with its own seed, if `seed` is batched or drawn, or with the same seed otherwise.

    Args:
        v: states of the chains `[..., n_visible]`, 0 or 1 in any dtype.
        W: weights `[n_visible, n_hidden]`, float32 or float64 (half types are raised to float32).
        vbias: a, `[n_visible]`.
        hbias: b, `[n_hidden]`.
        n_steps: number of sweeps, at least 1.
        beta: inverse temperature: a number, or one for each chain `[...]`.
        clamp: bool mask `[n_visible]` or `[..., n_visible]` of visible units that stay as they are in `v`.
        generator: torch generator from which the seed is drawn; the default one if not given.
        seed: an int or an int64 tensor of one element on the device of `v`, read by the kernel. If not given it is
            drawn anew at each call.
        first_chain: number of the first row, for its random numbers.
        first_step: number of the first sweep, for its random numbers.

    Returns:
        v: `[..., n_visible]` after the last sweep, in the dtype of `v`.
        h: `[..., n_hidden]`, the hidden states from which these were drawn, in the dtype of `v`.

        Where `W` or a bias holds NaN or infinity, floating states are NaN; so are the states of a chain whose `beta`
        does, or, on a GPU (where looking would wait), whose `v` holds other values than 0 and 1.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, n_steps < 1; `v` holds other values than 0 and 1; or the states are
            integers or bools, and would have to be NaN. For these dtypes a call on a GPU waits for the result.

    Source:
        Block Gibbs sampling: Hinton, "Training products of experts by minimizing contrastive divergence", 2002.
        Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.

    Example:
        >>> W, a, b = torch.randn(784, 500) * 0.1, torch.zeros(784), torch.zeros(500)
        >>> v = torch.bernoulli(torch.full((128, 784), 0.2))
        >>> v, h = genfast.ops.rbm_gibbs(v, W, a, b, n_steps=10, seed=1)
        >>> v.shape, h.shape
        (torch.Size([128, 784]), torch.Size([128, 500]))
    """
    rows, batch = _machine(v, W, vbias, hbias)
    for name, number, least in (
        ("n_steps", n_steps, 1), ("first_chain", first_chain, 0), ("first_step", first_step, 0),
    ):  # fmt: skip
        if number < least:
            raise ValueError(f"{name}: got {number}, want at least {least}")
    plain = not torch.compiler.is_compiling() and v.is_cpu and is_plain((v, W, vbias, hbias))
    if plain and clamp is None and isinstance(beta, _NUMBER) and not use_reference(v):
        betas = _ONE if beta == 1 else v.new_full((1,), float(beta), dtype=torch.float32)
        drawn = seed is None and generator is None
        key = torch.randint(*SEEDS, device=_CPU) if drawn else seed_tensor(seed, generator, v)
        if not (rows.is_contiguous() and W.is_contiguous() and vbias.is_contiguous() and hbias.is_contiguous()):
            rows, W, vbias, hbias = rows.contiguous(), W.contiguous(), vbias.contiguous(), hbias.contiguous()
        out_v, out_h = _gibbs(rows, W, vbias, hbias, betas, None, key, n_steps, first_chain, first_step)
        return (out_v, out_h) if v.dim() == 2 else (out_v.reshape(v.shape), out_h.reshape(*batch, W.shape[1]))
    betas, mask, key = per_chain("beta", beta, v, batch), clamp_mask(clamp, v), seed_tensor(seed, generator, v)
    parameters = [t.detach() if t.requires_grad else t for t in (rows, W, vbias, hbias)]
    if use_reference(v):
        out_v, out_h = reference.rbm_gibbs(
            *parameters, seed=key, n_steps=n_steps, beta=betas, clamp=mask, first_chain=first_chain,
            first_step=first_step,
        )  # fmt: skip
    else:
        out_v, out_h = _gibbs_op(*parameters, betas, mask, key, n_steps, first_chain, first_step)
    return out_v.reshape(v.shape), out_h.reshape(*batch, W.shape[1])


# --- free energy ------------------------------------------------------------------------------------------------------


_DENSE = 60  # up to so many columns finding the non-zeros takes longer than a dense product (rbm_energy_cpu.cpp)


def state_product(
    left: Tensor, right: Tensor, *, scale: Tensor | None = None, init: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """init + left @ right, or -(left * scale)^T @ right where a scale is given; few non-zeros in left are few sums."""
    transposed = scale is not None
    if out is None:
        out = right.new_empty(left.shape[1 if transposed else 0], right.shape[1])
    if (
        right.shape[1] > _DENSE
        and left.dtype == torch.float32
        and left.is_cpu
        and has_values(left)
        and not use_reference(left)
        and _native.rbm_sparse_product(left, right, scale, init, transposed, out)
    ):
        return out
    if scale is not None:
        return torch.mm((left * -scale[:, None]).t(), right, out=out)
    return torch.mm(left, right, out=out) if init is None else torch.addmm(init, left, right, out=out)


def parameter_gradients(
    v: Tensor, p: Tensor, weights: Tensor, out: Sequence[Tensor | None] = (None, None, None)
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of weights . F(v) in W, vbias and hbias, from p = P(h = 1 | v), over what `out` holds.

    With F = -a.v - sum softplus(b + vW) they are -(weights v)^T p, -v^T weights and -p^T weights.
    """
    minus = -weights
    of_W = state_product(v, p, scale=weights, out=out[0])
    return of_W, torch.mv(v.t(), minus, out=out[1]), torch.mv(p.t(), minus, out=out[2])


def _visible_gradient(W: Tensor, vbias: Tensor, p: Tensor, weights: Tensor) -> Tensor:
    """The gradient of weights . F(v) in v: -weights (a + p W^T), row by row."""
    return torch.addmm(vbias, p, W.t()).mul_(-weights[:, None])


# p = P(h = 1 | v) comes out of the forward for the backward's use.
def _energies(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape[:1]), v.new_empty(v.shape[0], W.shape[1])


def _energy(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor, Tensor]:
    p = state_product(v, W, init=hbias)
    return rows_energy(v, vbias, p), p


def rows_energy(v: Tensor, vbias: Tensor, fields: Tensor) -> Tensor:
    """F(v) of rows with the hidden fields b + vW, over which P(h = 1 | v) is written."""
    if use_reference(v):
        energy = -(v @ vbias) + functional.logsigmoid(-fields).sum(-1)
        fields.sigmoid_()
        return energy
    energy = v.new_empty(v.shape[:1])
    _native.rbm_free_energy(v, vbias, fields, energy)
    return energy


def _energy_gradients(
    v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, p: Tensor, grad_energy: Tensor, need_v: bool, need_W: bool,
    need_vbias: bool, need_hbias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    of_v = like(v) if need_v else None
    if not (need_W or need_vbias or need_hbias):
        return of_v, None, None, None
    return of_v, like(W), like(vbias), like(hbias)


def _energy_backward(
    v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, p: Tensor, grad_energy: Tensor, *needs: bool
) -> tuple[Tensor | None, ...]:
    of_v = _visible_gradient(W, vbias, p, grad_energy) if needs[0] else None
    of_parameters = parameter_gradients(v, p, grad_energy) if any(needs[1:]) else (None, None, None)
    return of_v, *of_parameters


_energy_op = differentiable(
    "rbm_free_energy", _energies, outputs=("energy", "p"), reference=reference.rbm_free_energy, launch=_energy,
    backward=_energy_gradients, backward_launch=_energy_backward, rows=("v",),
)  # fmt: skip


def rbm_free_energy(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    r"""The free energy of visible states, :math:`F(v) = -a \cdot v - \sum_j \mathrm{softplus}(b_j + (vW)_j)`.

    The marginal distribution of v is proportional to :math:`e^{-F(v)}`, so the log-likelihood's gradient is that of the
    difference of two means of F, over the model's samples and over the data:
    `loss = rbm_free_energy(data, ...).mean() - rbm_free_energy(samples, ...).mean()` is contrastive divergence. The
    gradient :math:`\partial F / \partial W = -v^T \sigma(b + vW)` comes out of one fused pass; on the CPU the products
    add the rows of active units only, where few units are active.

    Args:
        v: visible states `[..., n_visible]`, of any real values. Integers and bools are taken as numbers.
        W: weights `[n_visible, n_hidden]`; float32 or float64, or float16/bfloat16 (computed in float32).
        vbias: a, `[n_visible]`.
        hbias: b, `[n_hidden]`.

    Returns:
        F: `[...]`; float32 for half types. Differentiable, twice too, in all arguments.

    Raises:
        TypeError: an argument is not a tensor of a floating dtype, or dtypes differ.
        ValueError: a shape does not fit, or tensors lie on different devices.

    Source:
        Hinton, "A practical guide to training restricted Boltzmann machines", 2012, eq. 25.

    Example:
        >>> W, a, b = (x.requires_grad_() for x in (torch.randn(784, 500) * 0.01, torch.zeros(784), torch.zeros(500)))
        >>> data = torch.bernoulli(torch.full((128, 784), 0.2))
        >>> samples, _ = genfast.ops.rbm_gibbs(data, W, a, b)
        >>> both = genfast.ops.rbm_free_energy(torch.stack([data, samples]), W, a, b)  # one call is faster than two
        >>> (both[0] - both[1]).mean().backward()  # CD-1
    """
    rows, batch = _machine(v, W, vbias, hbias)
    if not v.is_floating_point():
        rows = rows.to(W.dtype)
    elif v.dtype != W.dtype:
        check.same_dtype_and_device(W, "W", v=v)
    arguments = (rows, W, vbias, hbias)
    if W.dtype in HALF:
        arguments = (rows.float(), W.float(), vbias.float(), hbias.float())
    out: Tensor | tuple[Tensor, ...] = _energy_op(*arguments)
    energy = out if isinstance(out, Tensor) else out[0]
    return energy if v.dim() == 2 else energy.reshape(batch)


# --- the loss of contrastive divergence -------------------------------------------------------------------------------


def _contrasts(
    v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return v.new_empty(()), v.new_empty(v.shape[:1]), like(W), like(vbias), like(hbias)


def _contrast(v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor, ...]:
    energy, p = _energy(v, W, vbias, hbias)
    return (energy @ weights, energy, *parameter_gradients(v, p, weights))


def _contrast_gradients(
    v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, energy: Tensor, of_W: Tensor, of_vbias: Tensor,
    of_hbias: Tensor, grad_loss: Tensor, need_v: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return like(v) if need_v else None, like(weights), like(W), like(vbias), like(hbias)


def _contrast_backward(
    v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, energy: Tensor, of_W: Tensor, of_vbias: Tensor,
    of_hbias: Tensor, grad_loss: Tensor, need_v: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    of_v = None
    if need_v:
        p = state_product(v, W, init=hbias).sigmoid_()
        of_v = _visible_gradient(W, vbias, p, weights * grad_loss)
    return (of_v, *(grad_loss * t for t in (energy, of_W, of_vbias, of_hbias)))


def _weighted_energy(v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    return (reference.rbm_free_energy(v, W, vbias, hbias) * weights).sum()


_contrast_op = differentiable(
    "rbm_contrast", _contrasts, outputs=("loss", "energy", "of_W", "of_vbias", "of_hbias"), reference=_weighted_energy,
    launch=_contrast, backward=_contrast_gradients, backward_launch=_contrast_backward, row_outputs=False,
)  # fmt: skip


def rbm_contrast(v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    """The sum of weights times F(v) for rows v `[N, n_visible]` and weights `[N]`: one node of autograd.

    Its gradient in W, vbias and hbias is computed together with the value. All tensors are float32, or all float64.
    """
    loss: Tensor | tuple[Tensor, ...] = _contrast_op(v, weights, W, vbias, hbias)
    return loss if isinstance(loss, Tensor) else loss[0]
