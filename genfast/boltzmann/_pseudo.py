"""Pseudo-likelihood of discrete units, from the hidden units' inputs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from genfast.boltzmann._bits import Parameters
from genfast.boltzmann._contrastive import product
from genfast.boltzmann.units import Layer, Partitioned, Softmax


def parts(layer: Layer, start: int = 0) -> list[tuple[int, Layer]]:
    """The layers that are not made of others, each with its first column."""
    if not isinstance(layer, Partitioned):
        return [(start, layer)]
    found = []
    for part in layer:
        found += parts(part, start)
        start += part.size
    return found


def pseudo_likelihood(
    v: Tensor, parameters: Parameters, visible: Layer, hidden: Layer, *, exact: bool, generator: torch.Generator | None
) -> Tensor:
    """sum_i log p(v_i | v_-i) of states v `[..., n_visible]`; one random unit of each part for all but for `exact`.

    Another state of unit i changes the inputs of the hidden units by a row of W (or the difference of two), so F of
    its states costs sums over the hidden units and no product.
    """
    W, vbias, hbias = parameters
    inputs = product(v, W, hbias)
    here = hidden.log_normaliser(inputs)
    at = v.device if generator is None else generator.device

    def term(start: int, layer: Layer, unit: Tensor) -> Tensor:
        if isinstance(layer, Softmax):
            classes = torch.arange(layer.n_classes, device=v.device)
            columns = start + unit * layer.n_classes + classes
            states = v.gather(-1, columns)
            weights, biases = W[columns], vbias[columns]
            others = inputs.unsqueeze(-2) + weights - (states.unsqueeze(-1) * weights).sum(-2, keepdim=True)
            scores = biases + hidden.log_normaliser(others)
            return (states * scores.log_softmax(-1)).sum(-1)
        scale, offset = layer.bits or (1.0, 0.0)
        column = (start + unit).squeeze(-1)
        change = 2 * offset + scale - 2 * v.gather(-1, start + unit).squeeze(-1)
        there = hidden.log_normaliser(torch.addcmul(inputs, change.unsqueeze(-1), W[column]))
        return F.logsigmoid(here - there - change * vbias[column])

    total, each = torch.zeros_like(here), (*v.shape[:-1], 1)
    for start, layer in parts(visible):
        if exact:
            for i in range(layer.n):
                total = total + term(start, layer, torch.full(each, i, device=v.device))
        else:
            unit = torch.randint(layer.n, each, device=at, generator=generator).to(v.device)
            total = total + layer.n * term(start, layer, unit)
    return total
