"""Fixed scales and shifts of the data."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from genfast._arguments import floating, integer
from genfast.flows._base import event_shape
from genfast.flows._transform import Transform


class AffineTransform(Transform):
    r"""x = loc + scale z with fixed numbers; log\|det\| = sum log\|scale\|.

    Args:
        loc: a number, or a tensor that broadcasts to one event.
        scale: likewise; no entry is 0.
        event_dim: trailing dimensions of one event: 1 for vectors, 3 for images.
        device: of the buffers.
        dtype: of the buffers.

    Raises:
        ValueError: loc or scale is not finite, scale is 0 somewhere, or they have more dimensions than an event.

    Example:
        >>> x, log_det = AffineTransform(0.5, 2.0).forward(torch.zeros(1, 3))
        >>> x, log_det
        (tensor([[0.5000, 0.5000, 0.5000]]), tensor([2.0794]))
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        loc: float | Sequence[float] | Tensor = 0.0,
        scale: float | Sequence[float] | Tensor = 1.0,
        *,
        event_dim: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.event_dim = integer("event_dim", event_dim)
        self._initial = {"loc": _numbers("loc", loc, event_dim), "scale": _numbers("scale", scale, event_dim)}
        for name, value in self._initial.items():
            values = torch.tensor(value, device=device, dtype=dtype or torch.get_default_dtype())
            self.register_buffer(name, values)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"event_dim={self.event_dim}"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The numbers of the start again."""
        for name, value in self._initial.items():
            buffer = self.get_buffer(name)
            buffer.copy_(torch.tensor(value, device=buffer.device, dtype=buffer.dtype))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., *event]` to (x of the same shape, log_det `[...]`)."""
        log_det = self._log_det("z", z, context)
        return torch.addcmul(self.loc, z, self.scale), log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., *event]` to (z of the same shape, log_det `[...]`)."""
        log_det = self._log_det("x", x, context)
        return (x - self.loc) / self.scale, -log_det

    def _log_det(self, name: str, x: Tensor, context: Tensor | None) -> Tensor:
        floating(name, x)
        self.check_context(x, context)
        event = x.shape[max(x.ndim - self.event_dim, 0) :]
        try:
            fits = len(event) == self.event_dim and torch.broadcast_shapes(self.scale.shape, self.loc.shape, event)
        except RuntimeError:
            fits = False
        if fits != event:
            want = f"that {list(self.loc.shape)} and {list(self.scale.shape)} broadcast to"
            raise ValueError(f"{name}: got shape {list(x.shape)}, want events of {self.event_dim} dimensions {want}")
        wide = torch.promote_types(self.scale.dtype, torch.float32)
        log_scale = self.scale.to(wide).abs().log().sum() * (math.prod(event) / max(self.scale.numel(), 1))
        return log_scale.expand(x.shape[: x.ndim - self.event_dim])


class Standardize(Transform):
    """x = mean + std z: data of any scale behind a flow that lives near the origin; log|det| = sum log std.

    Made with mean 0 and deviation 1; `measure` takes those of data.

    Args:
        dim: number of dimensions, or the shape of one event.
        device: of the buffers.
        dtype: of the buffers.

    Raises:
        ValueError: a size is no positive integer.

    Example:
        >>> scale = Standardize(3)
        >>> scale.measure(torch.randn(100, 3) * 20 + 5)
        >>> z, log_det = scale.inverse(torch.randn(5, 3) * 20 + 5)
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, dim: int | Sequence[int], *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.shape = event_shape(dim)
        self.event_dim = len(self.shape)
        self.register_buffer("mean", torch.zeros(self.shape, device=device, dtype=dtype))
        self.register_buffer("std", torch.ones(self.shape, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"dim={self.shape[0] if self.event_dim == 1 else self.shape}"

    def reset_parameters(self) -> None:
        """Mean 0 and deviation 1 again."""
        self.mean.zero_()
        self.std.fill_(1)

    @torch.no_grad()
    def measure(self, x: Tensor, width: Tensor | float = 0.0) -> None:
        """Take mean and deviation of the rows x `[N, *shape]`; a constant dimension keeps 1.

        Args:
            x: data.
            width: of uniform noise that is going to be added to x: it moves the mean by half of it.

        Raises:
            ValueError: x has another shape, or no rows.
        """
        if x.shape[1:] != self.shape or len(x) == 0:
            raise ValueError(f"x: got shape {list(x.shape)}, want [N, {str(list(self.shape))[1:]} with N > 0")
        rows = x.double()
        self.mean.copy_(rows.mean(0) + width / 2)
        std = (rows.var(0, correction=0) + width**2 / 12).sqrt()
        self.std.copy_(torch.where(std > 1e-7 * rows.abs().amax(0).clamp(min=1e-30), std, torch.ones_like(std)))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., *shape]` to (x, log_det)."""
        log_det = self._log_det("z", z, context)
        return torch.addcmul(self.mean, z, self.std), log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., *shape]` to (z, log_det)."""
        log_det = self._log_det("x", x, context)
        return (x - self.mean) / self.std, -log_det

    def _log_det(self, name: str, x: Tensor, context: Tensor | None) -> Tensor:
        floating(name, x)
        at = x.ndim - self.event_dim
        if at < 0 or x.shape[at:] != self.shape:
            raise ValueError(f"{name}: got shape {list(x.shape)}, want [..., {str(list(self.shape))[1:]}")
        self.check_context(x, context)
        return self.std.to(torch.promote_types(self.std.dtype, torch.float32)).log().sum().expand(x.shape[:at])


def _numbers(name: str, value: float | Sequence[float] | Tensor, event_dim: int) -> list[float] | float:
    """The values, nested as given, where all of them serve."""
    with _disable_current_modes():
        given = torch.as_tensor(value, device="cpu").detach().double()
        if given.ndim > event_dim:
            raise ValueError(f"{name}: got shape {list(given.shape)}, want at most {event_dim} dimensions")
        if not bool(given.isfinite().all()) or (name == "scale" and not bool(given.all())):
            want = "finite numbers other than 0" if name == "scale" else "finite numbers"
            raise ValueError(f"{name}: got {value!r}, want {want}")
        values: list[float] | float = given.tolist()
        return values
