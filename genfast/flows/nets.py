"""Conditioner networks of coupling layers."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from genfast._arguments import integer


class MLP(nn.Sequential):
    """A multilayer perceptron with an activation between linear layers.

    Args:
        n_in: input features.
        hidden: sizes of the hidden layers.
        n_out: output features.
        activation: class of the activation.
        zero_init: start the last layer at zero, so that a coupling layer starts as the identity.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer.

    Example:
        >>> MLP(1, (64, 64), 2)(torch.zeros(5, 1)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        n_out: int,
        *,
        activation: type[nn.Module] = nn.ReLU,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = [n_in, *hidden, n_out]
        for i, size in enumerate(sizes):
            integer(f"size {i} of {sizes}", size)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes[:-1]):
            layers += [nn.Linear(a, b, device=device, dtype=dtype), activation()]
        last = nn.Linear(sizes[-2], n_out, device=device, dtype=dtype)
        if zero_init:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        super().__init__(*layers, last)
