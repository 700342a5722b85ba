"""The radial flow."""

from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from genfast.flows.base import StandardNormal
from genfast.flows.flow import Flow
from genfast.flows.radial import Radial


class RadialFlow(Flow):
    """A stack of radial layers on a standard normal, each of which contracts or expands around a point.

    Args:
        dim: number of dimensions.
        n_layers: number of layers.
        base: the distribution of the noise, by default the standard normal; see `Flow`.
        generator: draws the initial parameters; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer.

    Source:
        Rezende & Mohamed 2015, "Variational inference with normalizing flows".

    Example:
        >>> flow = RadialFlow(2)
        >>> loss = flow.forward_kl(genfast.data.load("moons").x)
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 32,
        *,
        base: nn.Module | Distribution | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        layers = Radial(dim, n_layers, generator=generator, **where)
        super().__init__(StandardNormal(dim, **where) if base is None else base, [layers])
