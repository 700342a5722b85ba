"""ActNorm: channels scaled and shifted, at first so that the data have mean 0 and deviation 1."""

import warnings
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import floating, integer
from genfast._module import Configured
from genfast._tracing import has_values
from genfast.flows._transform import Transform


class DataInitialised(Configured, Transform):
    """Scales and shifts `log_scale` and `bias` of channels that the first batch of training data sets.

    Args:
        n_channels: number of channels.
        event_dim: 1 for vectors, 3 for images.
        device: of the parameters.
        dtype: of the parameters.
    """

    initialized: Tensor

    def __init__(
        self, n_channels: int, event_dim: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.n_channels = integer("n_channels", n_channels)
        if event_dim not in (1, 3):
            raise ValueError(f"event_dim: got {event_dim!r}, want 1 for vectors or 3 for images")
        self.event_dim = event_dim
        self.log_scale = nn.Parameter(torch.zeros(n_channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(n_channels, device=device, dtype=dtype))
        self.register_buffer("initialized", torch.zeros((), device=device, dtype=torch.bool))
        self._seen: tuple[Tensor, int] | None = None  # the flag, where it was found set
        self._warned = False

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"{self.n_channels}, event_dim={self.event_dim}"

    def saved_options(self) -> dict[str, Any]:
        """The dimensions of an event."""
        return {"event_dim": self.event_dim}

    def reset_parameters(self) -> None:
        """Set scales and shifts to 1 and 0, and wait for the first batch again."""
        nn.init.zeros_(self.log_scale)
        nn.init.zeros_(self.bias)
        self.initialized.fill_(False)
        self._seen = None

    def check_channels(self, name: str, x: Tensor) -> None:
        """Refuse what has other channels."""
        floating(name, x)
        if x.ndim < self.event_dim or x.shape[-self.event_dim] != self.n_channels:
            after = ", H, W" if self.event_dim == 3 else ""
            raise ValueError(f"{name}: got shape {list(x.shape)}, want [..., {self.n_channels}{after}]")

    def prepare(self, x: Tensor, *, inverse: bool) -> None:
        """Let the first batch of training data, or of noise, set the parameters; x is what is given."""
        if self._is_set() or x.numel() == 0:
            return
        if self.training:
            if has_values(x) and has_values(self.log_scale) and has_values(self.initialized):
                self._initialise(x, inverse=inverse)
            elif torch.compiler.is_compiling():
                raise RuntimeError(
                    f"{type(self).__name__}: show it a batch of training data, which sets its scales, before it "
                    "is compiled"
                )
        elif has_values(self.initialized) and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__}: no batch of training data has set its scales yet, so they are 1",
                UserWarning,
                stacklevel=3,
            )

    def mark_initialized(self) -> None:
        """Say that scales and shifts are set, by hand: the next batch will not set them."""
        self.initialized.fill_(True)
        self._is_set()

    def _is_set(self) -> bool:
        flag = self.initialized
        if self._seen is not None:
            if torch.compiler.is_compiling() or (self._seen[0] is flag and self._seen[1] == _version(flag)):
                return True
            self._seen = None
        if not has_values(flag) or not bool(flag):
            return False
        self._seen = (flag, _version(flag))
        return True

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._is_set()

    @torch.no_grad()
    def _initialise(self, x: Tensor, *, inverse: bool) -> None:
        """Mean 0 and deviation 1 of each channel of what comes out, over the batches of all processes."""
        wide = torch.promote_types(self.log_scale.dtype, torch.float32)
        rows = x.detach().to(wide).movedim(-self.event_dim, -1).reshape(-1, self.n_channels)
        count = rows.new_tensor([rows.shape[0]])
        mean = _sum_of_processes(torch.cat([rows.sum(0), count]))
        mean, n = mean[:-1] / mean[-1], mean[-1]
        var = _sum_of_processes((rows - mean).square().sum(0)) / n
        log_std = 0.5 * torch.log(var + 1e-12)
        if inverse:  # (x - mean) / std = x exp(log_scale) + bias
            self.log_scale.copy_(-log_std)
            self.bias.copy_(-mean * torch.exp(-log_std))
        else:  # (z - bias) exp(-log_scale)
            self.log_scale.copy_(log_std)
            self.bias.copy_(mean)
        self.initialized.fill_(True)


class ActNorm(DataInitialised):
    r"""Scale and shift each channel; read from data to noise, z = x exp(log_scale) + bias.

    The first batch in training mode sets scale and shift so that what comes out has mean 0 and deviation 1, in either
    direction, over the batches of all processes where there are several; `initialized` is saved, so that this happens
    once. In evaluation mode nothing is set: before the first batch the layer is the identity, and warns. Under
    `torch.compile` in training mode an uninitialised layer is an error.

    Args:
        n_channels: number of channels, or of dimensions of vectors.
        event_dim: 3 for images `[..., C, H, W]`, 1 for vectors `[..., C]`.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: n_channels is not a positive integer, event_dim is neither 1 nor 3, or data have other channels.

    Source:
        Kingma & Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions", NeurIPS 2018, section 3.1.

    Example:
        >>> layer = ActNorm(3)
        >>> z, log_det = layer.inverse(5 + 2 * torch.randn(16, 3, 4, 4))
        >>> z.mean((0, 2, 3)).abs() < 1e-5, (z.std((0, 2, 3)) - 1).abs() < 0.01
        (tensor([True, True, True]), tensor([True, True, True]))
    """

    def __init__(
        self,
        n_channels: int,
        *,
        event_dim: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(n_channels, event_dim, device, dtype)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z to ((z - bias) exp(-log_scale), log_det)."""
        return self._apply_map("z", z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x to (x exp(log_scale) + bias, log_det)."""
        return self._apply_map("x", x, context, inverse=True)

    def _apply_map(self, name: str, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        self.check_channels(name, x)
        self.check_context(x, context)
        self.prepare(x, inverse=inverse)
        return ops.actnorm(x, self.log_scale, self.bias, inverse=not inverse, event_dim=self.event_dim)


def _sum_of_processes(t: Tensor) -> Tensor:
    """The sum over the processes of torch.distributed, where it runs."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(t)
    return t


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version  # noqa: SLF001
