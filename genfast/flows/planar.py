"""Planar flows."""

import math

import torch
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import floating, integer
from genfast.flows._transform import Transform


class Planar(Transform):
    r"""A stack of planar layers f_k(z) = z + u_k tanh(w_k . z + b_k), all evaluated in one kernel.

    .. math::
        \log|\det| = \sum_k \log(1 + (w_k \cdot \hat u_k) (1 - \tanh^2(w_k \cdot z_k + b_k)))

    u is constrained, through w.u_hat = softplus(w.u) - 1 > -1, so that each layer is invertible, whatever finite values
    the parameters take; unlike other libraries' planar flow, this one has its inverse and so scores data. The
    parameters `w`, `u` `[n_layers, dim]` and `b [n_layers]` start as in normflows: u from U(+-sqrt 2), w from
    U(+-sqrt(2 / dim)), b = 0.

    Args:
        dim: number of dimensions.
        n_layers: number of layers K.
        generator: draws the initial parameters; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer.

    Source:
        Rezende & Mohamed 2015, "Variational inference with normalizing flows", section 4.1 and appendix A.1.

    Example:
        >>> x, log_det = Planar(2, 8).forward(torch.randn(5, 2))
        >>> x.shape, log_det.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        dim: int,
        n_layers: int = 1,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        integer("dim", dim)
        integer("n_layers", n_layers)
        self.dim = dim
        self.n_layers = n_layers
        self.w = nn.Parameter(torch.empty(n_layers, dim, device=device, dtype=dtype))
        self.u = nn.Parameter(torch.empty(n_layers, dim, device=device, dtype=dtype))
        self.b = nn.Parameter(torch.empty(n_layers, device=device, dtype=dtype))
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the initial parameters again."""
        nn.init.zeros_(self.b)
        nn.init.uniform_(self.u, -math.sqrt(2), math.sqrt(2), generator=generator)
        nn.init.uniform_(self.w, -math.sqrt(2 / self.dim), math.sqrt(2 / self.dim), generator=generator)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"dim={self.dim}, n_layers={self.n_layers}"

    def constrained_u(self) -> Tensor:
        """u_hat = u + (softplus(w.u) - 1 - w.u) w / |w|^2, `[n_layers, dim]`; safe for any finite w and u."""
        return ops.planar_constrain_u(self.w, self.u)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., dim]` to (x `[..., dim]`, log_det `[...]`)."""
        floating("z", z, self.dim)
        self.check_context(z, context)
        return ops.planar_flow(z, self.w, self.constrained_u(), self.b)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., dim]` to (z `[..., dim]`, log_det `[...]`)."""
        floating("x", x, self.dim)
        self.check_context(x, context)
        return ops.planar_flow_inverse(x, self.w, self.constrained_u(), self.b)
