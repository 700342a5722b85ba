"""Energies of deep Boltzmann machines, and the gradients that training takes from statistics of data and model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genfast.ops.rbm import state_product


def energy_of(states: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """E = -sum_l b_l . x_l - sum_l x_l' W_l x_(l+1) of states `[..., n_l]`; returns `[...]`."""
    energy = -(states[0] @ biases[0])
    for W, b, below, x in zip(weights, biases[1:], states, states[1:], strict=False):
        energy = energy - x @ b - ((below @ W) * x).sum(-1)
    return energy


def entropy_of(means: Sequence[Tensor]) -> Tensor:
    """The entropy of independent units with these means `[..., n_l]`, in nats; returns `[...]`."""
    parts = [-(torch.special.xlogy(m, m) + torch.special.xlogy(1 - m, 1 - m)).sum(-1) for m in means]
    return torch.stack(parts).sum(0)


def statistics_grad_(
    data: Sequence[Tensor], model: Sequence[Tensor], weights: Tensor, grads: tuple[Sequence[Tensor], Sequence[Tensor]]
) -> None:
    """Write the gradients of sum weights * E, over the rows of data and then of the model, over the contents of grads.

    Args:
        data: layers of the data `[N, n_l]`: the visible states and the means of the hidden ones.
        model: layers of the model `[M, n_l]`, 0/1.
        weights: of the rows, `[N + M]`.
        grads: of the weights and of the biases.
    """
    n, minus = len(data[0]), -weights
    for i, grad in enumerate(grads[0]):
        if i == 0:  # the visible states are mostly zeros
            state_product(torch.cat([data[0], model[0]]), torch.cat([data[1], model[1]]), scale=weights, out=grad)
        else:
            torch.mm((data[i] * minus[:n, None]).t(), data[i + 1], out=grad)
            grad.addmm_((model[i] * minus[n:, None]).t(), model[i + 1])
    for i, grad in enumerate(grads[1]):
        torch.mv(data[i].t(), minus[:n], out=grad)
        grad.addmv_(model[i].t(), minus[n:])
