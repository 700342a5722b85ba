"""Restricted Boltzmann machines: many Gibbs sweeps in one call, and the free energy."""

import torch
from torch import Tensor

from genfast import _native
from genfast._backend import use_reference
from genfast._register import define
from genfast.ops import _checks as check
from genfast.reference import rbm as reference

_STATES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
)  # fmt: skip
_NOT_FINITE, _NOT_BINARY, _BAD_BETA = 1, 2, 4  # bits of the kernel's status

# --- Gibbs sampling ---------------------------------------------------------------------------------------------------


def _gibbs(
    v: Tensor,
    W: Tensor,
    vbias: Tensor,
    hbias: Tensor,
    beta: Tensor,
    clamp: Tensor | None,
    seed: Tensor,
    n_steps: int,
    first_chain: int,
    first_step: int,
) -> tuple[Tensor, Tensor]:
    states = v if v.dtype in _STATES else v.to(torch.int64)
    if W.dtype != torch.float64:
        W, vbias, hbias = W.float(), vbias.float(), hbias.float()
    out_v, out_h = _gibbs_fake(states, W, vbias, hbias, beta, clamp, seed, n_steps, first_chain, first_step)
    status = seed.new_empty(1, dtype=torch.int32)
    size = _native.rbm_gibbs_workspace(n=v.shape[0], nv=W.shape[0], nh=W.shape[1])
    _native.rbm_gibbs(
        v=states, W=W, vbias=vbias, hbias=hbias, beta=beta, clamp=clamp, seed=seed, out_v=out_v, out_h=out_h,
        status=status, workspace=status.new_empty(size), n_steps=n_steps, first_chain=first_chain & 0xFFFFFFFF,
        first_step=first_step & 0xFFFFFFFF, stream=_native.stream(v),
    )  # fmt: skip
    # Looking at the status of a GPU waits for it, so this is done only where NaN cannot tell.
    if not v.is_cuda or not v.is_floating_point():
        _refuse(int(status), v)
    return out_v.to(v.dtype), out_h.to(v.dtype)


def _refuse(status: int, v: Tensor) -> None:
    if status & _NOT_BINARY:
        raise ValueError("v: expected states that are 0 or 1, got other values")
    if status and not v.is_floating_point():
        raise ValueError(
            f"W, vbias, hbias, beta: expected finite values, because {v.dtype} states cannot express NaN; "
            "got NaN or infinity"
        )


def _gibbs_fake(
    v: Tensor,
    W: Tensor,
    vbias: Tensor,
    hbias: Tensor,
    beta: Tensor,
    clamp: Tensor | None,
    seed: Tensor,
    n_steps: int,
    first_chain: int,
    first_step: int,
) -> tuple[Tensor, Tensor]:
    del vbias, hbias, beta, clamp, seed, n_steps, first_chain, first_step
    return v.new_empty(v.shape), v.new_empty(v.shape[0], W.shape[1])


_gibbs_op = define(
    "rbm_gibbs",
    "(Tensor v, Tensor W, Tensor vbias, Tensor hbias, Tensor beta, Tensor? clamp, Tensor seed, int n_steps,"
    " int first_chain, int first_step) -> (Tensor, Tensor)",
    _gibbs,
    _gibbs_fake,
    autocast=False,  # weights are raised to float32 anyway, and states keep their dtype
)


def _machine(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor, torch.Size]:
    """Checks the parameters of a machine; v as rows, and its leading dimensions."""
    check.floating("W", W)
    check.same_dtype_and_device(W, W=W, vbias=vbias, hbias=hbias)
    check.tensor("v", v)
    if v.device != W.device:
        raise ValueError(f"v: got a tensor on {v.device}, want {W.device} like W")
    rows, batch = check.rows("v", v)
    check.shape("W", W, (rows.shape[1], None), f"[n_visible, n_hidden] with n_visible = {rows.shape[1]} of v")
    if 0 in W.shape:
        raise ValueError(f"W: got shape {list(W.shape)}, want at least one visible and one hidden unit")
    check.shape("vbias", vbias, (W.shape[0],), "[n_visible] of W")
    check.shape("hbias", hbias, (W.shape[1],), "[n_hidden] of W")
    return rows, batch


def _beta(beta: float | Tensor, v: Tensor, batch: torch.Size) -> Tensor:
    if not isinstance(beta, Tensor):
        return torch.full((1,), float(beta), dtype=torch.float32, device=v.device)
    if beta.device != v.device:
        raise ValueError(f"beta: got a tensor on {beta.device}, want {v.device} like v")
    if beta.dim() and beta.shape != batch:
        raise ValueError(f"beta: got shape {list(beta.shape)}, want a number or one per chain, {list(batch)}")
    return beta.detach().reshape(-1).float()


def _clamp(clamp: Tensor | None, v: Tensor) -> Tensor | None:
    if clamp is None:
        return None
    check.tensor("clamp", clamp)
    if clamp.dtype != torch.bool:
        raise TypeError(f"clamp: got {clamp.dtype}, want a torch.bool mask")
    if clamp.device != v.device:
        raise ValueError(f"clamp: got a tensor on {clamp.device}, want {v.device} like v")
    if clamp.shape not in (v.shape, v.shape[-1:]):
        raise ValueError(
            f"clamp: got shape {list(clamp.shape)}, want [n_visible] = {list(v.shape[-1:])} or that of v, "
            f"{list(v.shape)}"
        )
    return clamp if clamp.dim() == 1 else clamp.reshape(-1, clamp.shape[-1])


def _seed(seed: int | Tensor | None, generator: torch.Generator | None, device: torch.device) -> Tensor:
    if seed is None:
        at = device if generator is None else generator.device
        drawn = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=at, generator=generator)
        return drawn.to(device)
    if generator is not None:
        raise ValueError("generator, seed: got both, want at most one of them")
    if not isinstance(seed, Tensor):
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed: got {type(seed).__name__}, want an int or an int64 tensor")
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed: got {seed}, want 64 bits")
        signed = seed - 2**64 if seed >= 2**63 else seed
        return torch.full((), signed, dtype=torch.int64, device=device)
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise TypeError(f"seed: got {seed.dtype} {list(seed.shape)}, want an int or an int64 tensor of one element")
    if seed.device != device:
        raise ValueError(f"seed: got a tensor on {seed.device}, want {device} like v")
    return seed.reshape(())


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
    numbers are Philox4x32-10 at (chain, unit, step). `genfast.reference.rbm` states the definition to the last bit.
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
    if v.is_complex():
        raise TypeError(f"v: got {v.dtype}, want states 0 or 1 in a real, integer or bool dtype")
    for name, number, least in (
        ("n_steps", n_steps, 1), ("first_chain", first_chain, 0), ("first_step", first_step, 0),
    ):  # fmt: skip
        if number < least:
            raise ValueError(f"{name}: got {number}, want at least {least}")
    betas, mask, key = _beta(beta, v, batch), _clamp(clamp, v), _seed(seed, generator, v.device)
    parameters = (rows.detach(), W.detach(), vbias.detach(), hbias.detach())
    if use_reference(v):
        out_v, out_h = reference.rbm_gibbs(
            *parameters, seed=key, n_steps=n_steps, beta=betas, clamp=mask, first_chain=first_chain,
            first_step=first_step,
        )  # fmt: skip
    else:
        out_v, out_h = _gibbs_op(*parameters, betas, mask, key, n_steps, first_chain, first_step)
    return out_v.reshape(v.shape), out_h.reshape(*batch, W.shape[1])
