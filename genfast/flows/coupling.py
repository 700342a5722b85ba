"""Coupling layers: one part of x moves by a map whose parameters the other part gives."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import integer, number
from genfast.flows._coupling import Coupling
from genfast.flows._outside import warn_outside

BOUNDS = (1e-9, 1e9)  #: of the spline's half side, which float32 carries


class AffineCoupling(Coupling):
    r"""x_moved = s(a) z_moved + t with (t, a) from the kept part: the layer of RealNVP and Glow.

    The conditioner's output is [t | a], each `[..., n_moved]`; `scale_map` turns the raw a into the scale s(a) > 0.
    log|det| = sum log s(a). Of images, the channels of the conditioner's output are [t | a] likewise.

    Args:
        mask: bool `[D]`, True where a dimension is transformed; of images see `Coupling`.
        conditioner: module `[..., n_kept]` to `[..., 2 n_moved]`; by default an MLP.
        scale_map: see `genfast.ops.affine_coupling`; "tanh" keeps |log s| below its clamp (2 by default).
        scale_options: constants of the scale map, as `genfast.ops.affine_coupling` takes them.
        hidden: hidden layer sizes of the default conditioner.
        context_features: width of the context `[..., context_features]` that the conditioner takes as its second
            argument; by default what the given conditioner says of itself.
        event_dim: 1 for vectors, 3 for images.
        device: of the buffers and the default conditioner.
        dtype: of the default conditioner.

    Raises:
        ValueError: a bad mask, an unknown scale map (on the first call), or a conditioner of another width.

    Source:
        Dinh et al. 2017, "Density estimation using Real NVP".

    Example:
        >>> layer = AffineCoupling(half_mask(4), hidden=(32,))
        >>> x, log_det = layer.forward(torch.randn(5, 4))
        >>> z, _ = layer.inverse(x)
    """

    n_params_per_dim = 2
    params_by_dim = False

    def __init__(
        self,
        mask: Tensor | Sequence[bool],
        conditioner: nn.Module | None = None,
        *,
        scale_map: str = "tanh",
        scale_options: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (64, 64),
        context_features: int | None = None,
        event_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            mask,
            conditioner,
            hidden=hidden,
            context_features=context_features,
            event_dim=event_dim,
            device=device,
            dtype=dtype,
        )
        self.scale_map = scale_map
        self.scale_options: dict[str, Any] = dict(scale_options or {})

    def extra_repr(self) -> str:
        """Sizes and scale map, for the printed module."""
        options = "".join(f", {name}={value}" for name, value in self.scale_options.items())
        return f"{super().extra_repr()}, scale_map={self.scale_map!r}{options}"

    def saved_options(self) -> dict[str, Any]:
        """The scale map and its constants."""
        return {"scale_map": self.scale_map, "scale_options": self.scale_options}

    def transform(self, moved: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map the moved part with the parameters of the kept part."""
        return ops.affine_coupling(
            moved, params=params, scale_map=self.scale_map, inverse=inverse, **self.scale_options
        )


class AdditiveCoupling(Coupling):
    """x_moved = z_moved + t with t from the kept part, log|det| = 0: the layer of NICE.

    Args:
        mask: bool `[D]`, True where a dimension is transformed; of images see `Coupling`.
        conditioner: module `[..., n_kept]` to `[..., n_moved]`; by default an MLP.
        hidden: hidden layer sizes of the default conditioner.
        context_features: width of the context `[..., context_features]` that the conditioner takes as its second
            argument; by default what the given conditioner says of itself.
        event_dim: 1 for vectors, 3 for images.
        device: of the buffers and the default conditioner.
        dtype: of the default conditioner.

    Raises:
        ValueError: a bad mask, or a conditioner of another width.

    Source:
        Dinh et al. 2015, "NICE: Non-linear independent components estimation".

    Example:
        >>> x, log_det = AdditiveCoupling(alternating_mask(4)).forward(torch.randn(5, 4))
    """

    def transform(self, moved: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map the moved part with the parameters of the kept part."""
        return ops.additive_coupling(moved, params, inverse=inverse)


class SplineCoupling(Coupling):
    r"""x_moved = g(z_moved) with g a monotone rational-quadratic spline, its knots from the kept part.

    On [-bound, bound] g has n_bins bins, outside it is the identity. The conditioner's output is, for each moved
    dimension, [n_bins widths | n_bins heights | n_bins - 1 derivatives], raw (before softmax and softplus), in the
    conventions of nflows.

    Args:
        mask: bool `[D]`, True where a dimension is transformed; of images see `Coupling`.
        conditioner: module `[..., n_kept]` to `[..., n_moved * (3 n_bins - 1)]`; by default an MLP.
        n_bins: number of bins.
        bound: the spline lives on [-bound, bound], a number from 1e-9 to 1e9. Where most of the first data lies
            outside, one warning says so.
        min_bin_width: least width of a bin, as a fraction of the interval.
        min_bin_height: least height of a bin, as a fraction of the interval.
        min_derivative: least slope at a knot.
        hidden: hidden layer sizes of the default conditioner.
        context_features: width of the context `[..., context_features]` that the conditioner takes as its second
            argument; by default what the given conditioner says of itself.
        event_dim: 1 for vectors, 3 for images.
        device: of the buffers and the default conditioner.
        dtype: of the default conditioner.

    Raises:
        TypeError: bound or a minimum is no number, or a tensor that requires a gradient.
        ValueError: a bad mask, n_bins < 2, a bound or minimum out of range, or a conditioner of another width.

    Source:
        Durkan et al. 2019, "Neural spline flows".

    Example:
        >>> layer = SplineCoupling(half_mask(2), n_bins=8, bound=4.0)
        >>> x, log_det = layer.forward(torch.randn(5, 2))
    """

    def __init__(
        self,
        mask: Tensor | Sequence[bool],
        conditioner: nn.Module | None = None,
        *,
        n_bins: int = 8,
        bound: float = 3.0,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
        hidden: Sequence[int] = (64, 64),
        context_features: int | None = None,
        event_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.n_params_per_dim = 3 * integer("n_bins", n_bins, at_least=2) - 1
        self.n_bins = n_bins
        self.bound = number("bound", bound, *BOUNDS)
        self.min_bin_width = number("min_bin_width", min_bin_width, 0, 1 / n_bins)
        self.min_bin_height = number("min_bin_height", min_bin_height, 0, 1 / n_bins)
        self.min_derivative = number("min_derivative", min_derivative, 0, math.nextafter(1, 0))
        self.seen_inputs: set[str] = set()
        super().__init__(
            mask,
            conditioner,
            hidden=hidden,
            context_features=context_features,
            event_dim=event_dim,
            device=device,
            dtype=dtype,
        )

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"{super().extra_repr()}, n_bins={self.n_bins}, bound={self.bound}"

    def saved_options(self) -> dict[str, Any]:
        """The constants of the spline."""
        names = ("n_bins", "bound", "min_bin_width", "min_bin_height", "min_derivative")
        return {name: getattr(self, name) for name in names}

    def transform(self, moved: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map the moved part with the parameters of the kept part."""
        name = "x" if inverse else "z"
        if not torch.compiler.is_compiling() and name not in self.seen_inputs:
            warn_outside(name, moved, self)
        params = params.unflatten(-1, (moved.shape[-1], self.n_params_per_dim))
        out, log_det = ops.rational_quadratic_spline(
            moved,
            params=params,
            bound=self.bound,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
            inverse=inverse,
        )
        return out, log_det.sum(-1)

    def _init_identity(self, bias: Tensor) -> None:
        """Slope 1 at the inner knots: min_derivative + softplus(bias) = 1 (equal bins come from zeros)."""
        if self.min_derivative < 1:
            with torch.no_grad():
                bias.view(-1, self.n_params_per_dim)[:, 2 * self.n_bins :] = math.log(
                    math.expm1(1 - self.min_derivative)
                )
