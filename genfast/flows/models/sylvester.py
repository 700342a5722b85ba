"""The Sylvester flow."""

from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from genfast.flows.base import StandardNormal
from genfast.flows.flow import Flow
from genfast.flows.sylvester import Sylvester


class SylvesterFlow(Flow):
    """A stack of Sylvester layers on a standard normal: planar layers of many units each, for more dimensions.

    Args:
        dim: number of dimensions.
        n_layers: number of layers.
        n_units: units of a layer, at most `dim`; by default all, up to 32.
        variant: what Q is made of; see `Sylvester`.
        n_reflections: reflections of a layer, of variant "householder".
        base: the distribution of the noise, by default the standard normal; see `Flow`.
        generator: draws the initial parameters; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer, `n_units` is more than `dim`, or there is no such variant.

    Source:
        van den Berg, Hasenclever, Tomczak & Welling 2018, "Sylvester normalizing flows for variational inference".

    Example:
        >>> flow = SylvesterFlow(32, n_layers=8, n_units=8)
        >>> x, log_prob = flow.sample_and_log_prob(100)
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 16,
        n_units: int | None = None,
        *,
        variant: str = "orthogonal",
        n_reflections: int = 8,
        base: nn.Module | Distribution | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        layers = Sylvester(
            dim, n_layers, n_units, variant=variant, n_reflections=n_reflections, generator=generator, **where
        )
        super().__init__(StandardNormal(dim, **where) if base is None else base, [layers])
