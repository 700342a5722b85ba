"""RealNVP."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from genfast._arguments import integer
from genfast.flows.base import StandardNormal
from genfast.flows.coupling import AffineCoupling
from genfast.flows.flow import Flow
from genfast.flows.models._couplings import masks, stacked


class RealNVP(Flow):
    """Affine couplings that move one half of the dimensions and the other half in turn.

    Of images, given their shape, the conditioners are convolutional, and what moves are in turn the pixels of the two
    colours of a checkerboard, the odd and the even rows. All layers see the image at full size; the model of the paper
    also factors out half of the dimensions on the way, as `Glow` does.

    Args:
        dim: number of dimensions, or (C, H, W) of images.
        n_layers: number of couplings.
        hidden: sizes of the hidden layers of each conditioner: units, or channels for images.
        base: of z; by default `StandardNormal`.
        scale_map: see `AffineCoupling`.
        scale_options: see `AffineCoupling`.
        context_features: width of the context `[..., context_features]` that all layers take.
        rebuild: put the layers into an `InvertibleSequential`: less memory, more time.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is no positive integer, or images have one row alone.

    Source:
        Dinh et al. 2017, "Density estimation using Real NVP".

    Example:
        >>> flow = RealNVP(8)
        >>> loss = -flow.log_prob(torch.randn(64, 8)).mean()
        >>> RealNVP((1, 8, 8), n_layers=4).sample(5).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        n_layers: int = 8,
        hidden: Sequence[int] = (64, 64),
        *,
        base: nn.Module | Distribution | None = None,
        scale_map: str = "tanh",
        scale_options: Mapping[str, Any] | None = None,
        context_features: int | None = None,
        rebuild: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        layers = [
            AffineCoupling(
                mask,
                hidden=hidden,
                scale_map=scale_map,
                scale_options=scale_options,
                context_features=context_features,
                **where,
            )
            for mask in masks(dim, integer("n_layers", n_layers))
        ]
        super().__init__(StandardNormal(dim, **where) if base is None else base, stacked(layers, rebuild=rebuild))
