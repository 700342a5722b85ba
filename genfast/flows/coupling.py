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
    r"""x_moved = g(z_moved) with g a monotone spline, its knots from the kept part.

    On [-bound, bound] g has n_bins bins, outside it is the identity. The conditioner's output is, for each moved
    dimension, a row of raw parameters as `genfast.ops.rational_quadratic_spline` takes it (or `cubic_spline`,
    `quadratic_spline`, `linear_spline`): with the defaults [n_bins widths | n_bins heights | n_bins - 1 derivatives].

    For angles take `tails="circular"` and `bound=math.pi`: the slopes at both ends are one. The conditioner should then
    see what does not jump there, such as sines and cosines of the kept angles.

    Args:
        mask: bool `[D]`, True where a dimension is transformed; of images see `Coupling`.
        conditioner: module `[..., n_kept]` to `[..., n_moved * n_params_per_dim]`; by default an MLP. The attribute
            `n_params_per_dim` is 3 n_bins - 1 by default.
        n_bins: number of bins.
        bound: the spline lives on [-bound, bound], a number from 1e-9 to 1e9. Where most of the first data lies
            outside, one warning says so.
        kind: "rational_quadratic", "cubic", "quadratic" or "linear". The first starts as the identity with the default
            conditioner, as do "cubic" and "linear", and "quadratic" with `tails=None`; with linear tails it starts
            near it, because at the ends nflows' formula does not reach it.
        tails: what lies outside: "linear", "circular" (the identity), None (NaN: for data that cannot lie there), or
            for vectors a list of the first two, one for each moved dimension. Only the rational-quadratic spline has
            circular ones.
        dialect: whose normalisation the rational-quadratic spline follows: "nflows", "zuko" or "pyro".
        min_bin_width: least width of a bin, as a fraction of the interval; by default 1e-3, in zuko's dialect 0.
            Linear splines have none.
        min_bin_height: the same for heights; of the quadratic spline the least slope.
        min_derivative: least slope at a knot of a rational-quadratic spline.
        hidden: hidden layer sizes of the default conditioner.
        context_features: width of the context `[..., context_features]` that the conditioner takes as its second
            argument; by default what the given conditioner says of itself.
        event_dim: 1 for vectors, 3 for images.
        device: of the buffers and the default conditioner.
        dtype: of the default conditioner.

    Raises:
        TypeError: bound or a minimum is no number, or a tensor that requires a gradient.
        ValueError: a bad mask, n_bins < 2, a bound or minimum out of range, an unknown kind, tails or dialect, a
            constant that the kind does not have, or a conditioner of another width.

    Source:
        Durkan et al. 2019, "Neural spline flows"; Müller et al. 2019, "Neural importance sampling" (linear, quadratic);
        Durkan et al. 2019, "Cubic-spline flows"; Rezende et al. 2020, "Normalizing flows on tori and spheres"
        (circular).

    Example:
        >>> layer = SplineCoupling(half_mask(2), n_bins=8, bound=4.0)
        >>> x, log_det = layer.forward(torch.randn(5, 2))
        >>> angles = SplineCoupling(half_mask(2), bound=math.pi, tails="circular")
    """

    # of layers that were pickled before there were others
    kind = "rational_quadratic"
    tails: str | tuple[str, ...] | None = "linear"
    dialect = "nflows"

    def __init__(
        self,
        mask: Tensor | Sequence[bool],
        conditioner: nn.Module | None = None,
        *,
        n_bins: int = 8,
        bound: float = 3.0,
        kind: str = "rational_quadratic",
        tails: str | Sequence[str] | None = "linear",
        dialect: str = "nflows",
        min_bin_width: float | None = None,
        min_bin_height: float | None = None,
        min_derivative: float = 1e-3,
        hidden: Sequence[int] = (64, 64),
        context_features: int | None = None,
        event_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.n_bins = integer("n_bins", n_bins, at_least=2)
        self.kind, self.tails, self.dialect = _checked_kind(kind, tails, dialect)
        self.n_params_per_dim = self._n_params()
        self.bound = number("bound", bound, *BOUNDS)
        minima = {"min_bin_width": min_bin_width, "min_bin_height": min_bin_height}
        if kind == "linear" and any(m is not None for m in minima.values()):
            name = next(n for n, m in minima.items() if m is not None)
            raise ValueError(f"{name}: got {minima[name]!r} with kind='linear', which has none")
        usual = 0.0 if dialect == "zuko" or kind == "linear" else 1e-3
        width, height = (usual if m is None else m for m in minima.values())
        self.min_bin_width = number("min_bin_width", width, 0, 1 / n_bins)
        self.min_bin_height = number("min_bin_height", height, 0, 1 if kind == "quadratic" else 1 / n_bins)
        least = math.ulp(0.0) if dialect == "zuko" else 0
        self.min_derivative = number("min_derivative", min_derivative, least, math.nextafter(1, 0))
        if kind != "rational_quadratic" and self.min_derivative != 1e-3:
            raise ValueError(f"min_derivative: got {min_derivative!r} with kind={kind!r}, which has none")
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
        if isinstance(self.tails, tuple) and (self.event_dim == 3 or len(self.tails) != self.n_moved):
            want = (
                "one for all of an image" if self.event_dim == 3 else f"one for each of {self.n_moved} moved dimensions"
            )
            raise ValueError(f"tails: got {len(self.tails)}, want {want}")

    def _n_params(self) -> int:
        k, closed = self.n_bins, self.tails is None
        if self.kind == "rational_quadratic":
            return 3 * k + {"linear": -1, "circular": 0}.get(str(self.tails), 1)
        return {"linear": k, "quadratic": 2 * k + (1 if closed else -1), "cubic": 2 * k + 2}[self.kind]

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        options = "".join(f", {name}={value!r}" for name, value in self._unusual().items())
        return f"{super().extra_repr()}, n_bins={self.n_bins}, bound={self.bound}{options}"

    def _unusual(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in ("kind", "tails", "dialect")}
        return {name: value for name, value in options.items() if value != getattr(SplineCoupling, name)}

    def saved_options(self) -> dict[str, Any]:
        """The constants of the spline, and what it is where it is no default one."""
        names = ("n_bins", "bound", "min_bin_width", "min_bin_height", "min_derivative")
        unusual = {name: "none" if value is None else value for name, value in self._unusual().items()}
        return {**{name: getattr(self, name) for name in names}, **unusual}

    def transform(self, moved: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map the moved part with the parameters of the kept part."""
        name = "x" if inverse else "z"
        if self.tails is not None and not torch.compiler.is_compiling() and name not in self.seen_inputs:
            warn_outside(name, moved, self)
        params = params.unflatten(-1, (moved.shape[-1], self.n_params_per_dim))
        options: dict[str, Any] = {"bound": self.bound, "tails": self.tails, "inverse": inverse}
        minima: dict[str, Any] = {"min_bin_width": self.min_bin_width, "min_bin_height": self.min_bin_height}
        if self.kind == "linear":
            out, log_det = ops.linear_spline(moved, params, **options)
        elif self.kind == "quadratic":
            out, log_det = ops.quadratic_spline(moved, params=params, **minima, **options)
        elif self.kind == "cubic":
            out, log_det = ops.cubic_spline(moved, params=params, **minima, **options)
        else:
            out, log_det = ops.rational_quadratic_spline(
                moved, params=params, dialect=self.dialect, min_derivative=self.min_derivative, **minima, **options
            )
        return out, log_det.sum(-1)

    def _init_identity(self, bias: Tensor) -> None:
        """A slope of 1 at the knots (equal bins come from zeros)."""
        slopes = 0.0  # of zuko's dialect, and of the other kinds
        if self.kind == "cubic":  # 3 sigmoid = 1
            slopes = -math.log(2)
        elif self.kind == "rational_quadratic" and self.dialect != "zuko":  # min_derivative + softplus = 1
            slopes = math.log(math.expm1(1 - self.min_derivative))
        if slopes:
            with torch.no_grad():
                bias.view(-1, self.n_params_per_dim)[:, 2 * self.n_bins :] = slopes


def _checked_kind(kind: Any, tails: Any, dialect: Any) -> tuple[str, str | tuple[str, ...] | None, str]:
    if kind not in ("rational_quadratic", "cubic", "quadratic", "linear"):
        raise ValueError(f"kind: got {kind!r}, want 'rational_quadratic', 'cubic', 'quadratic' or 'linear'")
    rational = kind == "rational_quadratic"
    if isinstance(tails, (list, tuple)):
        tails = tuple(tails)
    known = (None, "linear", "circular") if rational else (None, "linear")
    each = rational and isinstance(tails, tuple) and all(t in ("linear", "circular") for t in tails)
    if not each and tails not in known:
        want = "'linear', 'circular', None, or a list of the first two" if rational else "'linear' or None"
        raise ValueError(f"tails: got {tails!r}, want {want} for kind={kind!r}")
    if dialect not in (("nflows", "zuko", "pyro") if rational else ("nflows",)):
        want = "'nflows', 'zuko' or 'pyro'" if rational else "'nflows'"
        raise ValueError(f"dialect: got {dialect!r}, want {want} for kind={kind!r}")
    return kind, tails, dialect
