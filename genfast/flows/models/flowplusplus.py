"""Flow++."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from genfast._arguments import integer
from genfast.flows.base import StandardNormal
from genfast.flows.flow import Flow
from genfast.flows.mixture import LogisticMixtureCoupling
from genfast.flows.models._couplings import masks, stacked


class FlowPlusPlus(Flow):
    """Couplings by CDFs of logistic mixtures that move one half of the dimensions and the other half in turn.

    The couplings are those of the paper; its ActNorms and 1x1 convolutions between them, its attention in the
    conditioners, and its variational dequantization are left out. One dimension alone moves by mixtures of the context,
    or by a learned mixture.

    Args:
        dim: number of dimensions, or (C, H, W) of images, whose conditioners are convolutional; see `RealNVP`.
        n_layers: number of couplings.
        hidden: sizes of the hidden layers of each conditioner: units, or channels for images.
        n_components: components of a mixture.
        mixture: "logistic" or "gaussian"; see `LogisticMixtureCoupling`.
        base: of z; by default `StandardNormal`.
        context_features: width of the context `[..., context_features]` that all layers take.
        rebuild: put the layers into an `InvertibleSequential`: less memory, more time.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is no positive integer, the mixture is unknown, or images have one row alone.

    Source:
        Ho et al. 2019, "Flow++: Improving flow-based generative models with variational dequantization and architecture
        design".

    Example:
        >>> flow = FlowPlusPlus(8)
        >>> loss = -flow.log_prob(torch.randn(64, 8)).mean()
        >>> x = flow.sample(1000)
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        n_layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        *,
        n_components: int = 8,
        mixture: str = "logistic",
        base: nn.Module | Distribution | None = None,
        context_features: int | None = None,
        rebuild: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        layers = [
            LogisticMixtureCoupling(
                mask,
                hidden=hidden,
                n_components=n_components,
                mixture=mixture,
                context_features=context_features,
                **where,
            )
            for mask in masks(dim, integer("n_layers", n_layers))
        ]
        super().__init__(StandardNormal(dim, **where) if base is None else base, stacked(layers, rebuild=rebuild))
