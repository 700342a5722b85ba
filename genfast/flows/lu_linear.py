"""Linear layers by their LU decomposition."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import floating, integer, number
from genfast._module import Configured
from genfast.flows._transform import Transform


class LULinear(Configured, Transform):
    r"""Multiply vectors by a matrix and shift them; read from data to noise, z = L U x + b.

    L has ones on its diagonal, and U softplus(raw_diag) + min_diag, so that the matrix is never singular. Sampling
    solves with L and U.

    Args:
        dim: number of dimensions.
        min_diag: least number on the diagonal of U.
        identity_init: start as the identity; else with small random numbers.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: min_diag is no number.
        ValueError: dim is not a positive integer, min_diag is not in [1e-30, 1), or vectors have another dimension.

    Source:
        Durkan et al., "Neural spline flows", NeurIPS 2019, section 3.2; parametrised as in nflows, whose forward is
        `inverse` here.

    Example:
        >>> layer = LULinear(4, identity_init=False)
        >>> x, log_det = layer.forward(torch.randn(5, 4))
        >>> z, _ = layer.inverse(x)
    """

    def __init__(
        self,
        dim: int,
        *,
        min_diag: float = 1e-3,
        identity_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = integer("dim", dim)
        self.min_diag = number("min_diag", min_diag, 1e-30, math.nextafter(1, 0))
        self.identity_init = identity_init
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.lower = nn.Parameter(torch.empty(dim, dim, **options))
        self.upper = nn.Parameter(torch.empty(dim, dim, **options))
        self.raw_diag = nn.Parameter(torch.empty(dim, **options))
        self.bias = nn.Parameter(torch.empty(dim, **options))
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"{self.dim}, min_diag={self.min_diag:g}"

    def saved_options(self) -> dict[str, Any]:
        """The least number of the diagonal."""
        return {"min_diag": self.min_diag}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start again."""
        nn.init.zeros_(self.bias)
        if self.identity_init:
            nn.init.zeros_(self.lower)
            nn.init.zeros_(self.upper)
            nn.init.constant_(self.raw_diag, math.log(math.expm1(1 - self.min_diag)))
            return
        bound = 1 / math.sqrt(self.dim)
        nn.init.uniform_(self.raw_diag, -bound, bound)
        self.lower.copy_(torch.tril(nn.init.uniform_(torch.empty_like(self.lower), -bound, bound), -1))
        self.upper.copy_(torch.triu(nn.init.uniform_(torch.empty_like(self.upper), -bound, bound), 1))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., D]` to ((L U)^-1 (z - b), log_det)."""
        return self._apply_map("z", z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., D]` to (L U x + b, log_det)."""
        return self._apply_map("x", x, context, inverse=True)

    def _apply_map(self, name: str, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        floating(name, x, self.dim)
        self.check_context(x, context)
        return ops.lu_linear(
            x, self.lower, self.upper, self.raw_diag, self.bias, min_diag=self.min_diag, inverse=not inverse
        )
