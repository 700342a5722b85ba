"""Masked autoregressive flows, affine and of splines."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from genfast._arguments import integer
from genfast.flows.autoregressive import InverseAutoregressive, MaskedAutoregressive
from genfast.flows.base import StandardNormal
from genfast.flows.flow import Flow


def orders(dim: int, n_layers: int, order: str) -> list[str]:
    """The order of the dimensions in each layer."""
    integer("dim", dim)
    integer("n_layers", n_layers)
    if order == "alternating":
        return ["natural" if i % 2 == 0 else "reverse" for i in range(n_layers)]
    if order == "random":
        return ["random"] * n_layers
    raise ValueError(f"order: got {order!r}, want 'alternating' or 'random'")


class MAF(Flow):
    """A masked autoregressive flow: layers of `MaskedAutoregressive` in alternating orders.

    Densities take one pass of each network; so does sampling, about.

    Args:
        dim: number of dimensions.
        n_layers: number of layers.
        hidden: sizes of the hidden layers of each network.
        base: of z; by default `StandardNormal`.
        order: of the dimensions: "alternating" (natural and reverse) or "random" (drawn for each layer).
        context_features: width of the context `[..., context_features]` that all layers take.
        device: of the parameters.
        dtype: of the parameters.
        options: those of `MaskedAutoregressive`, such as scale_map, activation, residual.

    Raises:
        TypeError: an option is unknown, or has the wrong type.
        ValueError: an option is out of range or unknown.

    Source:
        Papamakarios, Pavlakou & Murray 2017, "Masked autoregressive flow for density estimation".

    Example:
        >>> flow = MAF(8, n_layers=5, hidden=(128, 128))
        >>> loss = -flow.log_prob(torch.randn(64, 8)).mean()
        >>> x = flow.sample(1000)
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        *,
        base: nn.Module | Distribution | None = None,
        order: str = "alternating",
        context_features: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            StandardNormal(dim, device=device, dtype=dtype) if base is None else base,
            [
                MaskedAutoregressive(
                    dim, hidden, order=o, context_features=context_features, device=device, dtype=dtype, **options
                )
                for o in orders(dim, n_layers, order)
            ],
        )


class AutoregressiveNSF(MAF):
    """A neural spline flow, autoregressive: MAF with monotone rational-quadratic splines.

    Args:
        dim: number of dimensions.
        n_layers: number of layers.
        hidden: sizes of the hidden layers of each network.
        n_bins: bins of a spline.
        bound: the splines live on [-bound, bound].
        options: those of `MAF`, and of `MaskedAutoregressive`.

    Raises:
        TypeError: an option is unknown, or has the wrong type.
        ValueError: an option is out of range or unknown.

    Source:
        Durkan et al. 2019, "Neural spline flows" (there RQ-NSF (AR)).

    Example:
        >>> flow = AutoregressiveNSF(8, n_layers=3)
        >>> loss = -flow.log_prob(torch.randn(64, 8)).mean()
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 3,
        hidden: Sequence[int] = (64, 64),
        *,
        n_bins: int = 8,
        bound: float = 5.0,
        **options: Any,
    ) -> None:
        super().__init__(dim, n_layers, hidden, kind="rational_quadratic", n_bins=n_bins, bound=bound, **options)


class IAF(Flow):
    """An inverse autoregressive flow: layers of `InverseAutoregressive` in alternating orders.

    Samples with their densities take one pass of each network; so does the density of given data, about.

    Args:
        dim: number of dimensions.
        n_layers: number of layers.
        hidden: sizes of the hidden layers of each network.
        base: of z; by default `StandardNormal`.
        order: of the dimensions: "alternating" (natural and reverse) or "random" (drawn for each layer).
        context_features: width of the context `[..., context_features]` that all layers take.
        device: of the parameters.
        dtype: of the parameters.
        options: those of `InverseAutoregressive`, such as kind, scale_map, activation, residual.

    Raises:
        TypeError: an option is unknown, or has the wrong type.
        ValueError: an option is out of range or unknown.

    Source:
        Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow".

    Example:
        >>> flow = IAF(8, n_layers=4)
        >>> x, log_q = flow.sample_and_log_prob(256)
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 4,
        hidden: Sequence[int] = (64, 64),
        *,
        base: nn.Module | Distribution | None = None,
        order: str = "alternating",
        context_features: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            StandardNormal(dim, device=device, dtype=dtype) if base is None else base,
            [
                InverseAutoregressive(
                    dim, hidden, order=o, context_features=context_features, device=device, dtype=dtype, **options
                )
                for o in orders(dim, n_layers, order)
            ],
        )
