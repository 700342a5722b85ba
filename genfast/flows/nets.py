"""Conditioner networks of coupling layers."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfast._arguments import integer
from genfast._module import Configured
from genfast.flows._transform import needed_context


class MLP(Configured, nn.Sequential):
    """A multilayer perceptron with an activation between linear layers.

    Args:
        n_in: input features.
        hidden: sizes of the hidden layers.
        n_out: output features.
        activation: class of the activation.
        context_features: width of a context `[..., context_features]`, which joins the input as `net(x, context)`.
        zero_init: start the last layer at zero, so that a coupling layer starts as the identity.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer, or a call gives another context than the network takes.

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
        context_features: int | None = None,
        activation: type[nn.Module] = nn.ReLU,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = [n_in, *hidden, n_out]
        for i, size in enumerate(sizes):
            integer(f"size {i} of {sizes}", size)
        if context_features is not None:
            sizes[0] += integer("context_features", context_features)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes[:-1]):
            layers += [nn.Linear(a, b, device=device, dtype=dtype), activation()]
        super().__init__(*layers, nn.Linear(sizes[-2], n_out, device=device, dtype=dtype))
        self.context_features = context_features
        self.activation = activation
        self.zero_init = zero_init
        self._zero_last()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map x `[..., n_in]`, and the context where there is one, to `[..., n_out]`."""
        if context is not None or self.context_features is not None:
            x = torch.cat([x, needed_context(context, self.context_features, x.shape[:-1], "MLP")], -1)
        for layer in self:
            x = layer(x)
        return x

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
