"""Coupling layers: one part of x moves by a map whose parameters the other part gives."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import integer
from genfast.flows.nets import MLP


class Coupling(nn.Module):
    """The common part of the coupling layers: x_kept = z_kept, x_moved = g(z_moved; conditioner(z_kept)).

    A subclass gives `n_params_per_dim` and `transform(moved, params, inverse) -> (moved, log_det)`.

    Args:
        mask: bool `[D]`, True where a dimension is transformed; see `half_mask` and `alternating_mask`. At least one
            dimension moves and one is kept.
        conditioner: any module `[..., n_kept]` to `[..., n_moved * n_params_per_dim]`; by default an `MLP` that starts
            the layer as the identity.
        hidden: hidden layer sizes of the default conditioner.
        device: of the buffers and the default conditioner.
        dtype: of the default conditioner.

    Raises:
        ValueError: the mask is not a bool vector with both values.
    """

    n_params_per_dim = 1
    mask: Tensor
    kept: Tensor
    moved: Tensor
    order: Tensor

    def __init__(
        self,
        mask: Tensor | Sequence[bool],
        conditioner: nn.Module | None = None,
        *,
        hidden: Sequence[int] = (64, 64),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        mask = torch.as_tensor(mask, device=device)
        if mask.dtype != torch.bool or mask.ndim != 1:
            raise ValueError(f"mask: got {mask.dtype} of shape {list(mask.shape)}, want a bool vector [D]")
        if bool(mask.all()) or not bool(mask.any()):
            raise ValueError(f"mask: got {mask.tolist()}, want at least one True (moved) and one False (kept)")
        kept, moved = (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]
        self.register_buffer("mask", mask)
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("moved", moved, persistent=False)
        self.register_buffer("order", torch.argsort(torch.cat([kept, moved])), persistent=False)
        self.n_kept, self.n_moved = len(kept), len(moved)
        self._halves = self._find_halves(mask)
        if conditioner is None:
            conditioner = MLP(self.n_kept, hidden, self.n_moved * self.n_params_per_dim, device=device, dtype=dtype)
            self._init_identity(conditioner[-1])
        self.conditioner = conditioner

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"n_kept={self.n_kept}, n_moved={self.n_moved}"

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map z `[..., D]` to (x `[..., D]`, log_det `[...]`)."""
        return self._apply_map(z, inverse=False)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x `[..., D]` to (z `[..., D]`, log_det `[...]`)."""
        return self._apply_map(x, inverse=True)

    def transform(self, moved: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map the moved part `[..., n_moved]` with params `[..., n_moved * n_params_per_dim]`."""
        raise NotImplementedError

    def _init_identity(self, last: nn.Module) -> None:
        """Set the bias of the default conditioner's last layer so that the layer starts as the identity."""

    def _apply_map(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.ndim == 0 or x.shape[-1] != len(self.mask):
            raise ValueError(f"{'x' if inverse else 'z'}: got shape {list(x.shape)}, want [..., {len(self.mask)}]")
        if self._halves == "last":
            kept, moved = x[..., : self.n_kept], x[..., self.n_kept :]
        elif self._halves == "first":
            moved, kept = x[..., : self.n_moved], x[..., self.n_moved :]
        else:
            kept, moved = x.index_select(-1, self.kept), x.index_select(-1, self.moved)
        params = self.conditioner(kept)
        n_params = self.n_moved * self.n_params_per_dim
        if params.shape != (*x.shape[:-1], n_params):
            raise ValueError(
                f"conditioner: returned shape {list(params.shape)}, want {[*x.shape[:-1], n_params]} "
                f"({self.n_params_per_dim} a moved dimension)"
            )
        moved, log_det = self.transform(moved, params, inverse=inverse)
        if self._halves == "last":
            return torch.cat([kept, moved], -1), log_det
        if self._halves == "first":
            return torch.cat([moved, kept], -1), log_det
        return torch.cat([kept, moved], -1).index_select(-1, self.order), log_det

    @staticmethod
    def _find_halves(mask: Tensor) -> str | None:
        steps = int((mask[1:] != mask[:-1]).sum())
        return None if steps != 1 else "last" if bool(mask[-1]) else "first"


class AffineCoupling(Coupling):
    r"""x_moved = s(a) z_moved + t with (t, a) from the kept part: the layer of RealNVP and Glow.

    The conditioner's output is [t | a], each `[..., n_moved]`; `scale_map` turns the raw a into the scale s(a) > 0.
    log|det| = sum log s(a).

    Args:
        mask: bool `[D]`, True where a dimension is transformed.
        conditioner: module `[..., n_kept]` to `[..., 2 n_moved]`; by default an MLP.
        scale_map: see `genfast.ops.affine_coupling`; "tanh" keeps |log s| below its clamp (2 by default).
        scale_options: constants of the scale map, as `genfast.ops.affine_coupling` takes them.
        hidden: hidden layer sizes of the default conditioner.
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

    def __init__(
        self,
        mask: Tensor | Sequence[bool],
        conditioner: nn.Module | None = None,
        *,
        scale_map: str = "tanh",
        scale_options: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (64, 64),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(mask, conditioner, hidden=hidden, device=device, dtype=dtype)
        self.scale_map = scale_map
        self.scale_options: dict[str, Any] = dict(scale_options or {})

    def transform(self, moved: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map the moved part with the parameters of the kept part."""
        return ops.affine_coupling(
            moved, params=params, scale_map=self.scale_map, inverse=inverse, **self.scale_options
        )


class AdditiveCoupling(Coupling):
    """x_moved = z_moved + t with t from the kept part, log|det| = 0: the layer of NICE.

    Args:
        mask: bool `[D]`, True where a dimension is transformed.
        conditioner: module `[..., n_kept]` to `[..., n_moved]`; by default an MLP.
        hidden: hidden layer sizes of the default conditioner.
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
        mask: bool `[D]`, True where a dimension is transformed.
        conditioner: module `[..., n_kept]` to `[..., n_moved * (3 n_bins - 1)]`; by default an MLP.
        n_bins: number of bins.
        bound: the spline lives on [-bound, bound].
        min_bin_width: least width of a bin, as a fraction of the interval.
        min_bin_height: least height of a bin, as a fraction of the interval.
        min_derivative: least slope at a knot.
        hidden: hidden layer sizes of the default conditioner.
        device: of the buffers and the default conditioner.
        dtype: of the default conditioner.

    Raises:
        ValueError: a bad mask, n_bins < 2, bound <= 0, or a conditioner of another width.

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        integer("n_bins", n_bins, at_least=2)
        if not (math.isfinite(bound) and bound > 0):
            raise ValueError(f"bound: got {bound!r}, want a finite number > 0")
        self.n_params_per_dim = 3 * n_bins - 1
        self.n_bins = n_bins
        self.bound = bound
        self.min_bin_width = min_bin_width
        self.min_bin_height = min_bin_height
        self.min_derivative = min_derivative
        super().__init__(mask, conditioner, hidden=hidden, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"{super().extra_repr()}, n_bins={self.n_bins}, bound={self.bound}"

    def transform(self, moved: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map the moved part with the parameters of the kept part."""
        params = params.unflatten(-1, (self.n_moved, self.n_params_per_dim))
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

    def _init_identity(self, last: nn.Module) -> None:
        """Slope 1 at the inner knots: min_derivative + softplus(bias) = 1 (equal bins come from zeros)."""
        if isinstance(last, nn.Linear) and self.min_derivative < 1:
            with torch.no_grad():
                bias = last.bias.view(self.n_moved, self.n_params_per_dim)
                bias[:, 2 * self.n_bins :] = math.log(math.expm1(1 - self.min_derivative))
