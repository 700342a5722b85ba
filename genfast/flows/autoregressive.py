"""Masked and inverse autoregressive transforms."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genfast import ops
from genfast._arguments import floating, integer, number
from genfast._module import Configured
from genfast.flows._outside import warn_outside
from genfast.flows._transform import Transform
from genfast.flows.coupling import BOUNDS
from genfast.flows.made import MADE

KINDS = ("affine", "rational_quadratic")


class _Autoregressive(Configured, Transform):
    """g(x_i; p_i) for each number, with p_i from the numbers before it: one pass of the network, or its inverse."""

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        *,
        kind: str = "affine",
        scale_map: str = "softclip",
        scale_options: Mapping[str, Any] | None = None,
        n_bins: int = 8,
        bound: float = 3.0,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
        activation: str = "relu",
        residual: bool = False,
        order: str | Sequence[int] = "natural",
        random_masks: bool = False,
        context_features: int | None = None,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind: got {kind!r}, want one of {', '.join(map(repr, KINDS))}")
        self.dim, self.kind = dim, kind
        self.context_features = context_features
        self.seen_inputs: set[str] = set()
        self.scale_map, self.scale_options = scale_map, dict(scale_options or {})
        self.n_bins = integer("n_bins", n_bins, at_least=2)
        self.bound = number("bound", bound, *BOUNDS)
        self.min_bin_width = number("min_bin_width", min_bin_width, 0, 1 / n_bins)
        self.min_bin_height = number("min_bin_height", min_bin_height, 0, 1 / n_bins)
        self.min_derivative = number("min_derivative", min_derivative, 0, math.nextafter(1, 0))
        self.zero_init = zero_init
        self.conditioner = MADE(
            dim, hidden, 2 if kind == "affine" else 3 * n_bins - 1, activation=activation, residual=residual,
            order=order, random_masks=random_masks, context_features=context_features, zero_init=zero_init,
            device=device, dtype=dtype,
        )  # fmt: skip
        self._start()

    def extra_repr(self) -> str:
        """The map, for the printed module."""
        return ", ".join([f"kind={self.kind!r}", *(f"{k}={v!r}" for k, v in self._map_options().items())])

    def saved_options(self) -> dict[str, Any]:
        """The map and its constants."""
        return {"kind": self.kind, **self._map_options()}

    def reset_parameters(self) -> None:
        """Draw the network's parameters again; the order stays."""
        self.conditioner.reset_parameters()
        self._start()

    def _map_options(self) -> dict[str, Any]:
        if self.kind == "affine":
            return {"scale_map": self.scale_map, **self.scale_options}
        names = ("bound", "min_bin_width", "min_bin_height", "min_derivative")
        return {"n_bins": self.n_bins, **{name: getattr(self, name) for name in names}}

    @torch.no_grad()
    def _start(self) -> None:
        """Slope 1 at the inner knots: min_derivative + softplus(bias) = 1 (equal bins come from zeros)."""
        if self.kind != "affine" and self.zero_init and self.min_derivative < 1:
            bias = self.conditioner.last_bias.view(self.dim, -1)
            bias[:, 2 * self.n_bins :] = math.log(math.expm1(1 - self.min_derivative))

    def _checked(self, name: str, x: Tensor, context: Tensor | None) -> Tensor | None:
        floating(name, x, self.dim)
        if self.kind != "affine" and not torch.compiler.is_compiling() and name not in self.seen_inputs:
            warn_outside(name, x, self)
        return self.check_context(x, context)

    def _map(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        options = self._map_options()
        if self.kind == "affine":
            return ops.affine_coupling(x, params=params, layout="interleaved", inverse=inverse, **options)
        del options["n_bins"]
        params = params.unflatten(-1, (self.dim, 3 * self.n_bins - 1))
        out, log_det = ops.rational_quadratic_spline(x, params=params, inverse=inverse, **options)
        return out, log_det.sum(-1)

    def _pass(self, name: str, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """g(x; p(x)): one pass of the network, on the CPU within one op; a GPU is faster at products of matrices."""
        context = self._checked(name, x, context)
        if x.device.type != "cpu" or not self.conditioner._follow():  # noqa: SLF001
            return self._map(x, self.conditioner(x, context), inverse=False)
        return self._within_op(ops.masked_autoregressive_transform, x, context)

    def _solve(self, name: str, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The x of z = g(x; p(x))."""
        context = self._checked(name, z, context)
        if not self.conditioner._follow():  # noqa: SLF001
            return self._solve_by_passes(z, context)
        return self._within_op(ops.masked_autoregressive_inverse, z, context)

    def _within_op(
        self, op: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        net, options = self.conditioner, self._map_options()
        options.pop("n_bins", None)
        terms = net.context_terms(context, x)
        linears = net.linears
        return op(
            x, [p.weight for p in linears], [p.bias for p in linears], terms or None, degrees=net.unit_degrees,
            activation=net.activation, residual=net.residual, context_layers=net.context_layers if terms else None,
            kind=self.kind, **options,
        )  # fmt: skip

    def _solve_by_passes(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same, of networks of several orders at once, as torch.vmap over stacked modules has them."""
        place = self.conditioner.degrees[: self.dim]
        x = torch.zeros_like(z)
        for i in range(1, self.dim + 1):
            found, log_det = self._map(z, self.conditioner(x, context), inverse=True)
            x = torch.where(place <= i, found, 0)
        return x, log_det


class MaskedAutoregressive(_Autoregressive):
    r"""z_i = g(x_i; p_i) with p_i from the dimensions of x before i: the layer of MAF.

    `inverse`, the density's direction, is one pass of the network. `forward`, the sampling, solves for one dimension
    after the other, and costs about as much here, whatever D (`genfast.ops.masked_autoregressive_inverse`). With
    "affine" g is x s(a) + t, with "rational_quadratic" a monotone spline; both log-determinants come with the map.

    Args:
        dim: number of dimensions D.
        hidden: sizes of the hidden layers of the network.
        kind: "affine" or "rational_quadratic".
        scale_map: of "affine"; see `genfast.ops.affine_coupling`.
        scale_options: of "affine": constants of the scale map, as `genfast.ops.affine_coupling` takes them.
        n_bins: of "rational_quadratic": number of bins.
        bound: of "rational_quadratic": the splines live on [-bound, bound], outside they are the identity.
        min_bin_width: of "rational_quadratic": least width of a bin, as a fraction of the interval.
        min_bin_height: of "rational_quadratic": least height of a bin, as a fraction of the interval.
        min_derivative: of "rational_quadratic": least slope at a knot.
        activation: of the network; see `MADE`.
        residual: whether the network has residual blocks; see `MADE`.
        order: "natural", "reverse", "random", or the place of each dimension; see `MADE`.
        random_masks: draw the degrees of hidden units; see `MADE`.
        context_features: width of the context `[..., context_features]` that the network takes.
        zero_init: start as the identity.
        device: of the network.
        dtype: of the network.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range or unknown, or the order is no permutation; an unknown scale map shows on
            the first call.

    Source:
        Papamakarios, Pavlakou & Murray 2017, "Masked autoregressive flow for density estimation"; the spline: Durkan et
        al. 2019, "Neural spline flows".

    Example:
        >>> layer = MaskedAutoregressive(5, (64, 64))
        >>> z, log_det = layer.inverse(torch.randn(8, 5))
        >>> x, _ = layer.forward(z)
    """

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., D]` to (x `[..., D]`, log_det `[...]`), dimension by dimension."""
        return self._solve("z", z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., D]` to (z `[..., D]`, log_det `[...]`) in one pass of the network."""
        return self._pass("x", x, context)


class InverseAutoregressive(_Autoregressive):
    r"""x_i = g(z_i; p_i) with p_i from the dimensions of z before i: the layer of IAF.

    `forward`, the sampling, is one pass of the network. `inverse`, of which the density of given data is made, solves
    for one dimension after the other, and costs about as much here, whatever D; it is differentiable, so such a flow
    can also be trained by maximum likelihood.

    It takes the arguments of `MaskedAutoregressive`.

    Source:
        Kingma et al. 2016, "Improved variational inference with inverse autoregressive flow".

    Example:
        >>> layer = InverseAutoregressive(5, (64, 64))
        >>> x, log_det = layer.forward(torch.randn(8, 5))
        >>> z, _ = layer.inverse(x)
    """

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., D]` to (x `[..., D]`, log_det `[...]`) in one pass of the network."""
        return self._pass("z", z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., D]` to (z `[..., D]`, log_det `[...]`), dimension by dimension."""
        return self._solve("x", x, context)
