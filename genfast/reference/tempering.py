"""Replica exchange in plain PyTorch.

Levels i and i + 1 of a ladder, with replicas x and y, are exchanged with probability min(1, exp(r)); the log ratio
r = (beta_i - beta_{i+1}) (E(x) - E(y)) is two float64 differences and their product, rounded to float32. The pairs with
i = step (mod 2) share no level and are decided together: pair i by random word i of stream 6 (see `_gibbs`), accepted
where u <= exp(-max(0, -r)), with the u and the exponential of `_gibbs`. Every backend decides alike, to the last bit.
"""

import torch
from torch import Tensor

from genfast.reference._gibbs import exp_negative, uniform_words

__all__ = ["exchange_swap", "tempering_swap"]

STREAM = 6


def tempering_swap(
    energies: Tensor,
    betas: Tensor,
    *,
    seed: int | Tensor,
    order: Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, Tensor]:
    """One round of swaps between the temperatures of ladders: `genfast.ops.tempering_swap` on `energies [N, k]`.

    Returns:
        order: `[N, k]`, int64, the replica at each level.
        probability: `[N, k - 1]`, float32, min(1, exp(r)) of each pair.
    """
    n, k = energies.shape
    levels = torch.arange(k, device=energies.device).expand(n, k) if order is None else order
    at_level = energies.double().gather(1, levels)
    betas = torch.as_tensor(betas, dtype=torch.float64, device=energies.device)
    ratio = (betas[:-1] - betas[1:]) * (at_level[:, :-1] - at_level[:, 1:])
    return _exchanged(levels, ratio.float(), seed, first_chain, first_step)


def exchange_swap(
    log_ratio: Tensor, *, seed: int | Tensor, first_chain: int = 0, first_step: int = 0
) -> tuple[Tensor, Tensor]:
    """The same from the log ratios `[N, k - 1]` themselves: `genfast.ops.exchange_swap`."""
    n, pairs = log_ratio.shape
    levels = torch.arange(pairs + 1, device=log_ratio.device).expand(n, pairs + 1)
    return _exchanged(levels, log_ratio.float(), seed, first_chain, first_step)


def _exchanged(order: Tensor, ratio: Tensor, seed: int | Tensor, chain: int, step: int) -> tuple[Tensor, Tensor]:
    device, pairs = ratio.device, ratio.shape[1]
    probability = torch.where(ratio.isnan(), ratio, exp_negative((-ratio).clamp(min=0).nan_to_num(0)))
    seed = torch.as_tensor(seed, dtype=torch.int64, device=device).reshape(())
    words = uniform_words(seed, torch.arange(len(ratio), device=device) + chain, pairs, step, STREAM)
    u = (words >> 1).float() * 2.0**-31 + 2.0**-32
    tried = (torch.arange(pairs, device=device) - step) % 2 == 0
    accepted = (u <= probability) & tried
    order = order.clone()
    low, high = order[:, :-1].clone(), order[:, 1:].clone()
    order[:, :-1] = torch.where(accepted, high, order[:, :-1])
    order[:, 1:] = torch.where(accepted, low, order[:, 1:])
    return order, probability
