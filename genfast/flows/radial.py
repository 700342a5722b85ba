"""Radial flows."""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from genfast import ops
from genfast._arguments import floating, integer
from genfast.flows._transform import Transform


class Radial(Transform):
    r"""A stack of radial layers f_k(z) = z + beta_k (z - c_k) / (alpha_k + |z - c_k|), all evaluated in one kernel.

    .. math::
        \log|\det| = \sum_k (D - 1) \log(1 + \beta_k h_k) + \log(1 + \alpha_k \beta_k h_k^2),
        \quad h_k = 1 / (\alpha_k + |z_k - c_k|)

    From the parameters `alpha` and `beta` `[n_layers]` come alpha = softplus(`alpha`) > 0 and beta = softplus(`beta`) -
    alpha > -alpha, so that each layer is invertible, whatever finite values the parameters take. (normflows takes
    alpha = |`alpha`|, which is 0 at 0.) `center` `[n_layers, dim]` starts standard normal, the others from
    U(+-1 / dim), near the identity.

    Args:
        dim: number of dimensions.
        n_layers: number of layers K.
        generator: draws the initial parameters; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer.

    Source:
        Rezende & Mohamed 2015, "Variational inference with normalizing flows", section 4.1 and appendix A.2.

    Example:
        >>> x, log_det = Radial(2, 8).forward(torch.randn(5, 2))
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
        self.center = nn.Parameter(torch.empty(n_layers, dim, device=device, dtype=dtype))
        self.alpha = nn.Parameter(torch.empty(n_layers, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.empty(n_layers, device=device, dtype=dtype))
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the initial parameters again."""
        nn.init.normal_(self.center, generator=generator)
        for parameter in (self.alpha, self.beta):
            nn.init.uniform_(parameter, -1 / self.dim, 1 / self.dim, generator=generator)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"dim={self.dim}, n_layers={self.n_layers}"

    def constrained(self) -> tuple[Tensor, Tensor]:
        """alpha and beta of the layers, each `[n_layers]`; alpha is a normal number, however small softplus is."""
        alpha = softplus(self.alpha).clamp(min=torch.finfo(self.alpha.dtype).tiny)
        return alpha, softplus(self.beta) - alpha

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., dim]` to (x `[..., dim]`, log_det `[...]`)."""
        floating("z", z, self.dim)
        self.check_context(z, context)
        return ops.radial_flow(z, self.center, *self.constrained())

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., dim]` to (z `[..., dim]`, log_det `[...]`)."""
        floating("x", x, self.dim)
        self.check_context(x, context)
        return ops.radial_flow_inverse(x, self.center, *self.constrained())
