"""Invertible 1x1 convolutions, alone and with the ActNorm of a step of Glow."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import floating, integer
from genfast._module import Configured
from genfast._tracing import has_values
from genfast.flows._transform import Transform
from genfast.flows.actnorm import DataInitialised


class _Factors(Configured, Transform):
    """The factors of W = P L U, at first of a random rotation."""

    permutation: Tensor
    sign_diag: Tensor
    n_channels: int

    def _register(self, n_channels: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.lower = nn.Parameter(torch.empty(n_channels, n_channels, **options))
        self.upper = nn.Parameter(torch.empty(n_channels, n_channels, **options))
        self.log_diag = nn.Parameter(torch.empty(n_channels, **options))
        self.register_buffer("sign_diag", torch.empty(n_channels, **options))
        self.register_buffer("permutation", torch.empty(n_channels, device=device, dtype=torch.int64))
        self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        n, wide = self.n_channels, torch.promote_types(self.log_diag.dtype, torch.float32)
        rotation, r = torch.linalg.qr(torch.randn(n, n, device=self.log_diag.device, dtype=wide))
        p, lower, upper = torch.linalg.lu(rotation * torch.sign(r.diagonal()))  # uniform over rotations and reflections
        self.lower.copy_(torch.tril(lower, -1))
        self.upper.copy_(torch.triu(upper, 1))
        self.log_diag.copy_(upper.diagonal().abs().log())
        self.sign_diag.copy_(upper.diagonal().sign())
        self.permutation.copy_(p.argmax(1))

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        order, signs = state_dict.get(prefix + "permutation"), state_dict.get(prefix + "sign_diag")
        if isinstance(order, Tensor) and has_values(order) and sorted(order.tolist()) != list(range(self.n_channels)):
            error_msgs.append(
                f"{prefix}permutation: got {order.tolist()}, want each of 0 to {self.n_channels - 1} once"
            )
        elif isinstance(signs, Tensor) and has_values(signs) and not bool((signs != 0).all()):
            error_msgs.append(f"{prefix}sign_diag: got {signs.tolist()}, want no 0: the weight would be singular")
        else:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Lower, upper, log_diag, sign_diag and permutation, as `genfast.ops.invertible_conv1x1` takes them."""
        return self.lower, self.upper, self.log_diag, self.sign_diag, self.permutation

    @property
    def weight(self) -> Tensor:
        """W = P L U `[C, C]`."""
        eye = torch.eye(self.n_channels, device=self.lower.device, dtype=self.lower.dtype)
        lower = torch.tril(self.lower, -1) + eye
        upper = torch.triu(self.upper, 1) + torch.diag(self.sign_diag * self.log_diag.exp())
        return (lower @ upper).index_select(0, self.permutation)


class InvertibleConv1x1(_Factors):
    r"""Multiply the channels of each pixel by a matrix; read from data to noise, z = W x.

    W = P L U with a fixed permutation P, L with ones on its diagonal, and U with diag(U) = sign exp(log_diag), the
    signs fixed too: so W can never become singular. It starts as a random rotation. Sampling solves with L and U.

    Args:
        n_channels: number of channels.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: W `[C, C]`.

    Raises:
        ValueError: n_channels is not a positive integer, or images have other channels.

    Source:
        Kingma & Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions", NeurIPS 2018, section 3.2. As in
        normflows, `inverse` multiplies by W.

    Example:
        >>> layer = InvertibleConv1x1(3)
        >>> x, log_det = layer.forward(torch.randn(5, 3, 4, 4))
        >>> z, _ = layer.inverse(x)
    """

    event_dim = 3

    def __init__(
        self, n_channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.n_channels = integer("n_channels", n_channels)
        self._register(n_channels, device, dtype)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"{self.n_channels}"

    def saved_options(self) -> dict[str, Any]:
        """None beside the type."""
        return {}

    def reset_parameters(self) -> None:
        """Draw another rotation."""
        self._draw()

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images z `[..., C, H, W]` to (W^-1 z, log_det)."""
        return self._apply_map("z", z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images x `[..., C, H, W]` to (W x, log_det)."""
        return self._apply_map("x", x, context, inverse=True)

    def _apply_map(self, name: str, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        floating(name, x)
        if x.ndim < 3 or x.shape[-3] != self.n_channels:
            raise ValueError(f"{name}: got shape {list(x.shape)}, want [..., {self.n_channels}, H, W]")
        self.check_context(x, context)
        return ops.invertible_conv1x1(x, *self.factors, inverse=not inverse)


class ActNormConv1x1(_Factors, DataInitialised):
    r"""`ActNorm` and `InvertibleConv1x1` in one pass over the image; read from data to noise, z = W (x e^s + b).

    The two layers with which a step of Glow begins: this one stands for `[InvertibleConv1x1, ActNorm]` in the list of
    transforms of a flow, whose first transform acts on noise. Scales s and shifts b are those of `ActNorm`, and are set
    by the first batch as there; where that is noise, as what comes out of W^-1 has them.

    Args:
        n_channels: number of channels.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: W `[C, C]`.

    Raises:
        ValueError: n_channels is not a positive integer, or images have other channels.

    Source:
        Kingma & Dhariwal 2018, figure 2.

    Example:
        >>> step = [AffineCoupling(half_mask(4), event_dim=3), ActNormConv1x1(4)]
    """

    def __init__(
        self, n_channels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(n_channels, 3, device, dtype)
        self._register(n_channels, device, dtype)

    def reset_parameters(self) -> None:
        """Draw another rotation, and wait for the first batch again."""
        super().reset_parameters()
        self._draw()

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images z `[..., C, H, W]` to ((W^-1 z - b) e^-s, log_det)."""
        self.check_channels("z", z)
        self.check_context(z, context)
        if self.training and not self._is_set():
            self.prepare(ops.invertible_conv1x1(z.detach(), *self.factors, inverse=True)[0], inverse=False)
        else:
            self.prepare(z, inverse=False)
        return ops.actnorm_conv1x1(z, self.log_scale, self.bias, *self.factors, inverse=True)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images x `[..., C, H, W]` to (W (x e^s + b), log_det)."""
        self.check_channels("x", x)
        self.check_context(x, context)
        self.prepare(x, inverse=True)
        return ops.actnorm_conv1x1(x, self.log_scale, self.bias, *self.factors)
