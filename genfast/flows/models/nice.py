"""NICE."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from genfast._arguments import integer
from genfast.flows.base import StandardNormal
from genfast.flows.coupling import AdditiveCoupling, AffineCoupling
from genfast.flows.flow import Flow
from genfast.flows.models._couplings import masks, stacked


class NICE(Flow):
    """Additive couplings that move the odd and the even dimensions in turn, behind one scale and shift of all of them.

    The couplings keep volumes; the first transform, learned or (with a context) a network of the context, is what makes
    some directions wide and others narrow. The paper's is the scale alone, with a logistic base.

    Args:
        dim: number of dimensions.
        n_layers: number of couplings.
        hidden: sizes of the hidden layers of each conditioner.
        base: of z; by default `StandardNormal`.
        context_features: width of the context `[..., context_features]` that all layers take.
        rebuild: put the couplings into an `InvertibleSequential`: less memory, more time.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is no positive integer.

    Source:
        Dinh, Krueger & Bengio 2015, "NICE: Non-linear independent components estimation".

    Example:
        >>> flow = NICE(8)
        >>> loss = -flow.log_prob(torch.randn(64, 8)).mean()
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        *,
        base: nn.Module | Distribution | None = None,
        context_features: int | None = None,
        rebuild: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"hidden": hidden, "context_features": context_features, **where}
        scale = AffineCoupling([True] * integer("dim", dim), scale_map="exp", **options)
        layers = [
            AdditiveCoupling(mask, **options) for mask in masks(dim, integer("n_layers", n_layers), alternating=True)
        ]
        super().__init__(
            StandardNormal(dim, **where) if base is None else base, [scale, *stacked(layers, rebuild=rebuild)]
        )
