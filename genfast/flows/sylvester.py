"""Sylvester flows."""

from typing import Any

import torch
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import floating, integer
from genfast._module import Configured
from genfast.flows._transform import Transform

VARIANTS = ("orthogonal", "householder", "triangular")
_STEEPEST = 0.999  # of |r_ii|: then 1 + h' r1_ii r2_ii > 0.001, and no unit folds


class Sylvester(Configured, Transform):
    r"""A stack of Sylvester layers f_k(z) = z + Q_k R1_k tanh(R2_k Q_k^T z + b_k), all evaluated in one kernel.

    .. math::
        \log|\det| = \sum_k \sum_i \log(1 + (1 - \tanh^2 a_{ki})\, r^1_{kii} r^2_{kii}),
        \quad a_k = R^2_k Q_k^T z_k + b_k

    A layer is a planar layer of `n_units` units. R1 and R2 are upper triangular with 0.999 tanh(.) of the parameters on
    the diagonals, so that each layer is invertible, whatever finite values the parameters take; and the inverse is here
    too. The columns of Q are orthonormal:

    - "orthogonal": the Q of the QR decomposition of the parameter `v` `[n_layers, dim, n_units]`, whose columns should
      stay independent, for the gradient. (The paper's iteration gives a Q that is orthonormal up to a tolerance.)
    - "householder": the first columns of a product of `n_reflections` reflections, along the rows of the parameter `v`
      `[n_layers, n_reflections, dim]`.
    - "triangular": the first columns of the identity, and in every other layer of the reversal; no parameter.

    Half types are computed in float32, from the parameters on.

    Args:
        dim: number of dimensions.
        n_layers: number of layers K.
        n_units: units of a layer M, at most `dim`; by default all, up to 32.
        variant: what Q is made of.
        n_reflections: reflections of a layer, of variant "householder".
        generator: draws the initial parameters; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer, `n_units` is more than `dim`, or there is no such variant.

    Source:
        van den Berg, Hasenclever, Tomczak & Welling 2018, "Sylvester normalizing flows for variational inference".

    Example:
        >>> x, log_det = Sylvester(8, 4, n_units=3).forward(torch.randn(5, 8))
        >>> x.shape, log_det.shape
        (torch.Size([5, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 1,
        n_units: int | None = None,
        *,
        variant: str = "orthogonal",
        n_reflections: int = 8,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        integer("dim", dim)
        integer("n_layers", n_layers)
        n_units = min(dim, 32) if n_units is None else n_units
        integer("n_units", n_units)
        if n_units > dim:
            raise ValueError(f"n_units: got {n_units}, want at most dim = {dim}")
        if variant not in VARIANTS:
            raise ValueError(f"variant: got {variant!r}, want one of {', '.join(map(repr, VARIANTS))}")
        integer("n_reflections", n_reflections)
        self.dim = dim
        self.n_layers = n_layers
        self.n_units = n_units
        self.variant = variant
        self.n_reflections = n_reflections
        shapes = {"orthogonal": (dim, n_units), "householder": (n_reflections, dim)}
        v = torch.empty(n_layers, *shapes[variant], device=device, dtype=dtype) if variant in shapes else None
        self.v = None if v is None else nn.Parameter(v)
        self.r1 = nn.Parameter(torch.empty(n_layers, n_units, n_units, device=device, dtype=dtype))
        self.r2 = nn.Parameter(torch.empty(n_layers, n_units, n_units, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.empty(n_layers, n_units, device=device, dtype=dtype))
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the initial parameters again: `v` normal, R1 and R2 from U(+-1 / sqrt(n_units)), b = 0."""
        if self.v is not None:
            nn.init.normal_(self.v, generator=generator)
        for r in (self.r1, self.r2):
            nn.init.uniform_(r, -(self.n_units**-0.5), self.n_units**-0.5, generator=generator)
        nn.init.zeros_(self.b)

    def saved_options(self) -> dict[str, Any]:
        """The variant; what follows from it shapes do not tell."""
        return {"variant": self.variant}

    def extra_repr(self) -> str:
        """Options, for the printed module."""
        return f"dim={self.dim}, n_layers={self.n_layers}, n_units={self.n_units}, variant={self.variant!r}"

    def orthonormal(self) -> Tensor:
        """Q of the layers, `[n_layers, dim, n_units]`, float32 or wider."""
        eye = torch.eye(self.dim, self.n_units, device=self.b.device, dtype=_computed_in(self.b.dtype))
        if self.v is None:
            return torch.stack([eye if k % 2 == 0 else eye.flip(0) for k in range(self.n_layers)])
        v = self.v.to(eye.dtype)
        if self.variant == "orthogonal":
            # in units of the largest entry, whose value does not matter: no square overflows
            columns: Tensor = torch.linalg.qr(v / _largest(v, (-2, -1))).Q
            return columns
        v = v / _largest(v, (-1,))
        square = (v * v).sum(-1, keepdim=True)
        scaled = v * (2 / torch.where(square == 0, 1, square))  # along nothing: no reflection
        q = eye.expand(self.n_layers, -1, -1)
        for i in range(self.n_reflections):
            along = v[:, i, None] @ q
            q = q - scaled[:, i, :, None] * along
        return q

    def constrained(self) -> tuple[Tensor, Tensor, Tensor]:
        """R1 and R2 of the layers, `[n_layers, n_units, n_units]`, and b, float32 or wider."""
        dtype = _computed_in(self.b.dtype)
        r1, r2 = (r.to(dtype) for r in (self.r1, self.r2))
        r1, r2 = (r.triu(1) + torch.diag_embed(_STEEPEST * _diagonal(r).tanh()) for r in (r1, r2))
        return r1, r2, self.b.to(dtype)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., dim]` to (x `[..., dim]`, log_det `[...]`)."""
        floating("z", z, self.dim)
        self.check_context(z, context)
        x, log_det = ops.sylvester_flow(z.to(_computed_in(z.dtype)), self.orthonormal(), *self.constrained())
        return x.to(z.dtype), log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., dim]` to (z `[..., dim]`, log_det `[...]`)."""
        floating("x", x, self.dim)
        self.check_context(x, context)
        z, log_det = ops.sylvester_flow_inverse(x.to(_computed_in(x.dtype)), self.orthonormal(), *self.constrained())
        return z.to(x.dtype), log_det


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _diagonal(r: Tensor) -> Tensor:
    return r.diagonal(dim1=-2, dim2=-1)


def _largest(v: Tensor, dim: tuple[int, ...]) -> Tensor:
    """The largest magnitude, held fixed; 1 where there is none."""
    largest = v.detach().abs().amax(dim, keepdim=True)
    return torch.where(largest < torch.finfo(v.dtype).tiny, 1, largest)
