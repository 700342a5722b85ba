"""Coupling layers: one part of x moves by a map whose parameters the other part gives."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from genfast import ops
from genfast._arguments import floating, integer, number
from genfast._module import Configured, reset
from genfast.flows._index import IndexModule
from genfast.flows._outside import warn_outside
from genfast.flows._transform import Transform, common_context
from genfast.flows.nets import MLP


class Coupling(IndexModule, Configured, Transform):
    """The common part of the coupling layers: x_kept = z_kept, x_moved = g(z_moved; conditioner(z_kept)).

    A subclass gives `n_params_per_dim` and `transform(moved, params, inverse) -> (moved, log_det)`.

    The mask is saved in the state dict, and the layer follows the one it loads; a mask of other sizes, or the state of
    a layer with other options, is refused.

    Args:
        mask: bool `[D]`, True where a dimension is transformed; see `half_mask` and `alternating_mask`. At least one
            dimension moves and one is kept.
        conditioner: any module `[..., n_kept]` to `[..., n_moved * n_params_per_dim]`; by default an `MLP` that starts
            the layer as the identity.
        hidden: hidden layer sizes of the default conditioner.
        context_features: width of the context `[..., context_features]` that the conditioner takes as its second
            argument; by default what the given conditioner says of itself.
        device: of the buffers and the default conditioner.
        dtype: of the default conditioner.

    Raises:
        ValueError: the mask is not a bool vector with both values, or it has none (on the meta device).
    """

    source = "mask"
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
        context_features: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        values = _mask_values(mask)
        if device is None and isinstance(mask, Tensor) and mask.device.type != "cpu":
            device = mask.device
        self.n_moved = sum(values)
        self.n_kept = len(values) - self.n_moved
        if not self.n_moved or not self.n_kept:
            raise ValueError(f"mask: got {values}, want at least one True (moved) and one False (kept)")
        self._register(values, torch.tensor(values, dtype=torch.bool, device=device))
        self.default_conditioner = conditioner is None
        if conditioner is None:
            conditioner = MLP(
                self.n_kept,
                hidden,
                self.n_moved * self.n_params_per_dim,
                context_features=context_features,
                device=device,
                dtype=dtype,
            )
            self._init_identity(conditioner[-1])
        self.conditioner = conditioner
        self.context_features = common_context(conditioner, given=context_features)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"n_kept={self.n_kept}, n_moved={self.n_moved}"

    def saved_options(self) -> dict[str, Any]:
        """None beside the type of the layer."""
        return {}

    def reset_parameters(self) -> None:
        """Draw the conditioner's parameters again; with the default conditioner the layer is then the identity."""
        reset(self.conditioner)
        if self.default_conditioner:
            self._init_identity(self.conditioner[-1])  # type: ignore[index]

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., D]` to (x `[..., D]`, log_det `[...]`)."""
        return self._apply_map("z", z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., D]` to (z `[..., D]`, log_det `[...]`)."""
        return self._apply_map("x", x, context, inverse=True)

    def transform(self, moved: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map the moved part `[..., n_moved]` with params `[..., n_moved * n_params_per_dim]`."""
        raise NotImplementedError

    def _init_identity(self, last: nn.Module) -> None:
        """Set the bias of the default conditioner's last layer so that the layer starts as the identity."""

    def _apply_map(self, name: str, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        floating(name, x, self.n_kept + self.n_moved)
        context = self.check_context(x, context)
        halves, order = None, self.order
        if self._follow():
            halves, kept_at, moved_at = self._halves, self.kept, self.moved
        else:
            both = torch.argsort(self.mask.to(torch.int8), stable=True)
            order, kept_at, moved_at = torch.argsort(both), both[: self.n_kept], both[self.n_kept :]
        if halves == "last":
            kept, moved = x[..., : self.n_kept], x[..., self.n_kept :]
        elif halves == "first":
            moved, kept = x[..., : self.n_moved], x[..., self.n_moved :]
        else:
            kept, moved = x.index_select(-1, kept_at), x.index_select(-1, moved_at)
        params = self.conditioner(kept) if context is None else self.conditioner(kept, context)
        n_params = self.n_moved * self.n_params_per_dim
        if params.shape != (*x.shape[:-1], n_params):
            raise ValueError(
                f"conditioner: returned shape {list(params.shape)}, want {[*x.shape[:-1], n_params]} "
                f"({self.n_params_per_dim} a moved dimension)"
            )
        moved, log_det = self.transform(moved, params, inverse=inverse)
        if halves == "last":
            return torch.cat([kept, moved], -1), log_det
        if halves == "first":
            return torch.cat([moved, kept], -1), log_det
        return torch.cat([kept, moved], -1).index_select(-1, order), log_det

    def _derive(self, values: list[int]) -> dict[str, list[int]]:
        kept = [i for i, moves in enumerate(values) if not moves]
        moved = [i for i, moves in enumerate(values) if moves]
        both = kept + moved
        steps = sum(a != b for a, b in zip(values[1:], values, strict=False))
        self._halves = None if steps != 1 else "last" if values[-1] else "first"
        return {"kept": kept, "moved": moved, "order": sorted(range(len(both)), key=both.__getitem__)}

    def _fault(self, values: list[int]) -> str:
        size, n_moved = self.n_kept + self.n_moved, sum(map(bool, values))
        if len(values) == size and n_moved == self.n_moved:
            return ""
        return f"got {n_moved} moved of {len(values)} dimensions, want {self.n_moved} of {size} for this conditioner"


def _mask_values(mask: Tensor | Sequence[bool]) -> list[bool]:
    with _disable_current_modes():
        if isinstance(mask, Tensor) and (type(mask) is not Tensor or mask.device.type == "meta"):
            raise ValueError(f"mask: got a {type(mask).__name__} on {mask.device} without values, want a list of bools")
        given = torch.as_tensor(mask, device="cpu")
        if given.dtype != torch.bool or given.ndim != 1:
            raise ValueError(f"mask: got {given.dtype} of shape {list(given.shape)}, want a bool vector [D]")
        values: list[bool] = given.tolist()
        return values


BOUNDS = (1e-9, 1e9)  #: of the spline's half side, which float32 carries


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
        context_features: width of the context `[..., context_features]` that the conditioner takes as its second
            argument; by default what the given conditioner says of itself.
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
        context_features: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            mask, conditioner, hidden=hidden, context_features=context_features, device=device, dtype=dtype
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
        mask: bool `[D]`, True where a dimension is transformed.
        conditioner: module `[..., n_kept]` to `[..., n_moved]`; by default an MLP.
        hidden: hidden layer sizes of the default conditioner.
        context_features: width of the context `[..., context_features]` that the conditioner takes as its second
            argument; by default what the given conditioner says of itself.
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
        bound: the spline lives on [-bound, bound], a number from 1e-9 to 1e9. Where most of the first data lies
            outside, one warning says so.
        min_bin_width: least width of a bin, as a fraction of the interval.
        min_bin_height: least height of a bin, as a fraction of the interval.
        min_derivative: least slope at a knot.
        hidden: hidden layer sizes of the default conditioner.
        context_features: width of the context `[..., context_features]` that the conditioner takes as its second
            argument; by default what the given conditioner says of itself.
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
            mask, conditioner, hidden=hidden, context_features=context_features, device=device, dtype=dtype
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
