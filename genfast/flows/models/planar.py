"""The planar flow."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from genfast.flows.base import StandardNormal
from genfast.flows.flow import Flow
from genfast.flows.planar import Planar

_START = 0.3


class PlanarFlow(Flow):
    """A stack of planar layers on a standard normal: for densities in few dimensions, above all by the reverse KL.

    The layers start gently, with w and u at 0.3 of what `Planar` draws, so that none folds the space.

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
        >>> flow = PlanarFlow(2)
        >>> loss = flow.reverse_kl(genfast.data.load("u1").log_prob, 512)
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
        layers = Planar(dim, n_layers, generator=generator, **where)
        super().__init__(StandardNormal(dim, **where) if base is None else base, [layers])
        self._start_gently()

    def reset_parameters(self) -> None:
        """Draw the initial parameters again."""
        super().reset_parameters()
        self._start_gently()

    @torch.no_grad()
    def _start_gently(self) -> None:
        for parameter in (self.transforms[0].w, self.transforms[0].u):
            assert isinstance(parameter, Tensor)  # noqa: S101  (Planar's)
            parameter.mul_(_START)
