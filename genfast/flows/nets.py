"""Conditioner networks of coupling layers."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from genfast._arguments import integer
from genfast._module import Configured


class MLP(Configured, nn.Sequential):
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
        super().__init__(*layers, nn.Linear(sizes[-2], n_out, device=device, dtype=dtype))
        self.activation = activation
        self.zero_init = zero_init
        self._zero_last()

    def saved_options(self) -> dict[str, Any]:
        """The activation."""
        return {"activation": self.activation.__name__}

    def reset_parameters(self) -> None:
        """Draw the initial parameters again."""
        super().reset_parameters()
        self._zero_last()

    def _zero_last(self) -> None:
        last = self[-1]
        if self.zero_init and isinstance(last, nn.Linear):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
