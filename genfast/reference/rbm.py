"""Restricted Boltzmann machines in plain PyTorch: block Gibbs sampling and the free energy.

The energy of visible and hidden units in {0, 1} is E(v, h) = -a.v - b.h - v'Wh with `W [n_visible, n_hidden]`, and the
machine's distribution is proportional to exp(-beta E).

The Gibbs chain is defined to the last bit, so that every backend draws the same states from the same seed: `quantise`
rounds W, a (vbias) and b (hbias) to multiples of a power of two, s = 2^e: the smallest for which no sum of |W| over a
row or a column plus the bias leaves int32, and W itself fits three signed bytes. The field of a unit is then an exact
integer, from which `genfast/reference/_gibbs.py` says how it is drawn; the streams of random words are 1 for hidden and
2 for visible units.
"""

import torch
from torch import Tensor
from torch.nn import functional

from genfast.reference._gibbs import accept, fixed_point_exponent, uniform_words

__all__ = ["drawn_states", "quantise", "rbm_cd", "rbm_free_energy", "rbm_gibbs"]

HIDDEN_STREAM, VISIBLE_STREAM, START_STREAM = 1, 2, 7


def quantise(W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rounds finite weights and biases to integer multiples of 2^e, half to even, with e of `fixed_point_exponent`.

    Returns:
        The integers of W, vbias and hbias as int64, and e.
    """
    W, vbias, hbias = (x if x.dtype == torch.float64 else x.float() for x in (W, vbias, hbias))
    e = fixed_point_exponent(W, (vbias, hbias), ((0, hbias), (1, vbias)))
    qw, qv, qh = (torch.round(x * 2.0**-e).to(torch.int64) for x in (W, vbias, hbias))
    return qw, qv, qh, e


def _sample(
    state: Tensor,
    weights: Tensor,
    bias: Tensor,
    scale: float,
    beta: Tensor,
    words: Tensor,
) -> Tensor:
    # Sums of integers below 2^31 are exact in float64, in any order.
    field = state.double() @ weights.double() + bias.double()
    return accept(field, scale, beta[:, None], words)


def rbm_gibbs(
    v: Tensor,
    W: Tensor,
    vbias: Tensor,
    hbias: Tensor,
    *,
    seed: int | Tensor,
    n_steps: int = 1,
    beta: float | Tensor = 1.0,
    clamp: Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, Tensor]:
    """Runs `n_steps` sweeps of block Gibbs sampling: hidden given visible, then visible given hidden.

    The arguments are those of `genfast.ops.rbm_gibbs`, with `v [N, n_visible]` and a seed that is given.

    Returns:
        The last visible states `[N, n_visible]` and the hidden states `[N, n_hidden]` they were drawn from, in the
        dtype of `v`. Floating states come out as NaN where the weights are not finite, and in a chain whose `beta` is
        not finite or (on other devices than the CPU) whose `v` holds anything but 0 and 1.

    Raises:
        ValueError: on the CPU, `v` holds something else than 0 and 1; or what makes floating states NaN happens to
            integer or boolean ones.
    """
    with torch.no_grad():
        binary = (v == 0) | (v == 1)
        if v.device.type == "cpu" and not bool(binary.all()):
            raise ValueError("v: expected states that are 0 or 1, got other values")
        beta = torch.as_tensor(beta, dtype=torch.float32, device=v.device).expand(v.shape[0])
        good = binary.all(1) & beta.isfinite()
        finite = all(bool(x.isfinite().all()) for x in (W, vbias, hbias))
        if not v.is_floating_point() and not (finite and bool(good.all())):
            raise ValueError(
                f"W, vbias, hbias, beta: expected finite values, because {v.dtype} states cannot express NaN; "
                "got NaN or infinity"
            )
        if not finite:
            return v.new_full(v.shape, torch.nan), v.new_full((v.shape[0], W.shape[1]), torch.nan)
        qw, qv, qh, e = quantise(W, vbias, hbias)
        scale = 2.0 ** min(e, 100)
        seed = torch.as_tensor(seed, dtype=torch.int64, device=v.device).reshape(())
        chains = torch.arange(v.shape[0], device=v.device) + first_chain
        start = visible = v != 0
        hidden = visible.new_zeros(v.shape[0], W.shape[1])
        for step in range(first_step, first_step + n_steps):
            words = uniform_words(seed, chains, W.shape[1], step, HIDDEN_STREAM)
            hidden = _sample(visible, qw, qh, scale, beta, words)
            words = uniform_words(seed, chains, W.shape[0], step, VISIBLE_STREAM)
            visible = _sample(hidden, qw.t(), qv, scale, beta, words)
            if clamp is not None:
                visible = torch.where(clamp, start, visible)
        out_v, out_h = visible.to(v.dtype), hidden.to(v.dtype)
        if v.is_floating_point():
            out_v, out_h = (x.masked_fill(~good[:, None], torch.nan) for x in (out_v, out_h))
        return out_v, out_h


def rbm_free_energy(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    """F(v) = -a.v - sum_j softplus(b_j + (v W)_j), so that the marginal of v is proportional to exp(-F(v)).

    Args:
        v: visible states `[..., n_visible]`, of any real values.
        W: weights `[n_visible, n_hidden]`.
        vbias: a, `[n_visible]`.
        hbias: b, `[n_hidden]`.

    Returns:
        The free energies `[...]`.
    """
    # -logsigmoid(-x) is softplus without torch's linear cut-off, and its derivatives are stable to second order.
    return -(v @ vbias) + functional.logsigmoid(-(v @ W + hbias)).sum(-1)


def drawn_states(v: Tensor, seed: int | Tensor, first_chain: int = 0, first_step: int = 0) -> Tensor:
    """0/1 states of which each unit is 1 with the probability v; 0/1 states stay as they are, and NaN stays NaN.

    The random words are those of stream 7 at the chain, the unit and the step, in `v [N, n_visible]`; a unit is 1 where
    u < v with u = float32(word >> 1) * 2^-31 + 2^-32.
    """
    if v.device.type == "cpu" and bool(((v == 0) | (v == 1)).all()):
        return v
    seed = torch.as_tensor(seed, dtype=torch.int64, device=v.device).reshape(())
    chains = torch.arange(v.shape[0], device=v.device) + first_chain
    words = uniform_words(seed, chains, v.shape[1], first_step, START_STREAM)
    u = (words >> 1).float() * 2.0**-31 + 2.0**-32
    return torch.where(v.isnan(), v, ((u < v) | (v >= 1)).to(v.dtype))


def rbm_cd(
    v: Tensor,
    W: Tensor,
    vbias: Tensor,
    hbias: Tensor,
    *,
    seed: int | Tensor,
    k: int = 1,
    chains: Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step of contrastive divergence; the arguments are those of `genfast.ops.rbm_cd`, with rows v.

    Returns:
        The gradients of mean F(v) - mean F(v') in W, vbias and hbias, the states v' after k sweeps, and that value.
    """
    start = drawn_states(v, seed, first_chain, first_step) if chains is None else chains
    model, _ = rbm_gibbs(start, W, vbias, hbias, seed=seed, n_steps=k, first_chain=first_chain, first_step=first_step)
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (W, vbias, hbias)]
        loss = rbm_free_energy(v, *leaves).mean() - rbm_free_energy(model, *leaves).mean()
        of_W, of_vbias, of_hbias = torch.autograd.grad(loss, leaves)
    return of_W, of_vbias, of_hbias, model, loss.detach()
