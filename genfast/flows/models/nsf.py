"""The neural spline flow of couplings."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from genfast._arguments import integer
from genfast.flows.base import StandardNormal
from genfast.flows.coupling import SplineCoupling
from genfast.flows.flow import Flow
from genfast.flows.models._couplings import masks, stacked


class NSF(Flow):
    """Couplings of monotone rational-quadratic splines that move one half of the dimensions and the other in turn.

    One dimension alone moves by splines of the context, or of learned knots.

    Args:
        dim: number of dimensions, or (C, H, W) of images, whose conditioners are convolutional; see `RealNVP`.
        n_layers: number of couplings.
        hidden: sizes of the hidden layers of each conditioner: units, or channels for images.
        n_bins: bins of a spline.
        bound: the splines live on [-bound, bound], outside they are the identity.
        base: of z; by default `StandardNormal`.
        context_features: width of the context `[..., context_features]` that all layers take.
        rebuild: put the layers into an `InvertibleSequential`: less memory, more time.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is no positive integer, n_bins < 2, or the bound is out of range.

    Source:
        Durkan et al. 2019, "Neural spline flows" (there RQ-NSF (C)).

    Example:
        >>> flow = NSF(8)
        >>> loss = -flow.log_prob(torch.randn(64, 8)).mean()
        >>> NSF(1, context_features=3).sample(5, torch.randn(7, 3)).shape
        torch.Size([5, 7, 1])
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        n_layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        *,
        n_bins: int = 8,
        bound: float = 5.0,
        base: nn.Module | Distribution | None = None,
        context_features: int | None = None,
        rebuild: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        layers = [
            SplineCoupling(mask, hidden=hidden, n_bins=n_bins, bound=bound, context_features=context_features, **where)
            for mask in masks(dim, integer("n_layers", n_layers))
        ]
        super().__init__(StandardNormal(dim, **where) if base is None else base, stacked(layers, rebuild=rebuild))
