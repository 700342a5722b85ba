"""The shapes of multi-scale flows of images: squeezing, flat noise, and channels that are done early."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfast._arguments import floating, integer
from genfast._module import Configured
from genfast._tracing import is_transformed
from genfast.flows._chain import Chain
from genfast.flows._transform import Transform


class Squeeze(Configured, Transform):
    r"""Space to depth: read from data to noise, each square of factor x factor pixels becomes one of more channels.

    Of images x `[..., C, f H, f W]`, pixel (f i + a, f j + b) of channel c becomes pixel (i, j) of channel
    :math:`f^2 c + f a + b` of z `[..., f^2 C, H, W]`, as in `torch.nn.functional.pixel_unshuffle` and in normflows.
    log|det| = 0. The squeezed image lies in memory with its channels last (`torch.channels_last`).

    Args:
        factor: f.

    Raises:
        ValueError: factor is not an integer of at least 2; the height or width of x is no multiple of it, or the
            channels of z none of its square.

    Example:
        >>> Squeeze().inverse(torch.zeros(5, 1, 8, 8))[0].shape
        torch.Size([5, 4, 4, 4])
    """

    event_dim = 3

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = integer("factor", factor, at_least=2)

    def extra_repr(self) -> str:
        """The factor, for the printed module."""
        return f"{self.factor}"

    def saved_options(self) -> dict[str, Any]:
        """The factor."""
        return {"factor": self.factor}

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., f^2 C, H, W]` to (x `[..., C, f H, f W]`, log_det = 0)."""
        f = self.factor
        _want_image("z", z)
        self.check_context(z, context)
        *lead, c, h, w = z.shape
        if c % f**2:
            raise ValueError(f"z: got {c} channels, want a multiple of {f**2} to spread over {f} x {f} pixels")
        parts = z.reshape(*lead, c // f**2, f, f, h, w)
        n = len(lead)
        x = parts.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2).reshape(*lead, c // f**2, f * h, f * w)
        return x, _zeros(x, 3)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., C, f H, f W]` to (z `[..., f^2 C, H, W]`, log_det = 0)."""
        f = self.factor
        _want_image("x", x)
        self.check_context(x, context)
        *lead, c, h, w = x.shape
        if h % f or w % f:
            raise ValueError(f"x: got images of {h} x {w} pixels, want a height and width that {f} divides")
        parts = x.reshape(*lead, c, h // f, f, w // f, f)
        n = len(lead)
        last = parts.permute(*range(n), n + 1, n + 3, n, n + 2, n + 4).reshape(*lead, h // f, w // f, c * f**2)
        return last.movedim(-1, -3), _zeros(x, 3)


class Unflatten(Configured, Transform):
    """Flat noise `[..., C H W]` as images `[..., C, H, W]`, in this order; log|det| = 0.

    Args:
        shape: (C, H, W).

    Raises:
        ValueError: shape is not three positive integers, or data have another one.

    Example:
        >>> Unflatten((2, 4, 4)).forward(torch.zeros(5, 32))[0].shape
        torch.Size([5, 2, 4, 4])
    """

    event_dim = 1

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = image_shape(shape)

    @property
    def event_dim_out(self) -> int:
        """Data are images."""
        return 3

    def extra_repr(self) -> str:
        """The shape, for the printed module."""
        return f"{self.shape}"

    def saved_options(self) -> dict[str, Any]:
        """The shape."""
        return {"shape": list(self.shape)}

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., C H W]` to (x `[..., C, H, W]`, log_det = 0)."""
        floating("z", z, math.prod(self.shape))
        self.check_context(z, context)
        return _channels_last(z.unflatten(-1, self.shape)), _zeros(z, 1)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., C, H, W]` to (z `[..., C H W]`, log_det = 0)."""
        _want_image("x", x, self.shape)
        self.check_context(x, context, 3)
        return x.flatten(-3), _zeros(x, 3)


class Split(Configured, Chain):
    r"""Channels that are done early: read from data to noise, the last half of the channels is noise already.

    Of images x `[..., C, H, W]`, the first C/2 channels go on through `transforms`, whose noise is flat; z is that
    noise, and after it the other channels, flat in the order [C/2, H, W]. So a flow of several scales has a base over
    vectors.

    What the first half knows of the second, the learned prior of Glow, is a coupling in front of the split: see `Glow`.

    Args:
        shape: (C, H, W), with an even C.
        transforms: from flat noise `[..., C/2 H W]` to images `[..., C/2, H, W]`; the first one acts on noise.

    Raises:
        TypeError: a transform has no `inverse`.
        ValueError: shape is not three positive integers, C is odd, or the transforms do not map vectors to images.

    Source:
        Dinh et al., "Density estimation using Real NVP", ICLR 2017, section 3.6.

    Example:
        >>> Split((4, 2, 2), [Unflatten((2, 2, 2)), ActNorm(2)]).forward(torch.zeros(5, 16))[0].shape
        torch.Size([5, 4, 2, 2])
    """

    def __init__(self, shape: Sequence[int], transforms: Iterable[nn.Module]) -> None:
        super().__init__(transforms)
        self.shape = image_shape(shape)
        if self.shape[0] % 2:
            raise ValueError(f"shape: got {self.shape[0]} channels, want an even number")
        if self.event_dim != 1 or self.event_dim_out != 3:
            raise ValueError(
                f"transforms: got a map of events of {self.event_dim} dimensions to such of {self.event_dim_out}, want "
                "vectors to images"
            )

    def extra_repr(self) -> str:
        """The shape, for the printed module."""
        return f"{self.shape}"

    def saved_options(self) -> dict[str, Any]:
        """The shape."""
        return {"shape": list(self.shape)}

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., C H W]` to (x `[..., C, H, W]`, log_det)."""
        floating("z", z, math.prod(self.shape))
        context = self.check_context(z, context)
        first, second = z.tensor_split(2, -1)
        x, log_det = self.apply_all(first, context, inverse=False)
        c, h, w = self.shape
        second = _channels_last(second.unflatten(-1, (c // 2, h, w)))
        return _channels_last(torch.cat([x, second], -3)), log_det

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., C, H, W]` to (z `[..., C H W]`, log_det)."""
        _want_image("x", x, self.shape)
        context = self.check_context(x, context, 3)
        first, second = x.tensor_split(2, -3)
        z, log_det = self.apply_all(first, context, inverse=True)
        return torch.cat([z, second.flatten(-3)], -1), log_det


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) as it is, where it is that."""
    sizes: list[Any] = list(shape) if isinstance(shape, tuple | list | torch.Size) else []
    if len(sizes) != 3 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
        raise ValueError(f"shape: got {shape!r}, want (C, H, W), three positive integers")
    return sizes[0], sizes[1], sizes[2]


def _channels_last(x: Tensor) -> Tensor:
    """Images in the order of memory in which convolutions and couplings work fastest."""
    return x if x.ndim != 4 or is_transformed(x) else x.contiguous(memory_format=torch.channels_last)


def _want_image(name: str, x: Tensor, shape: tuple[int, int, int] | None = None) -> None:
    floating(name, x)
    if x.ndim < 3 or (shape is not None and tuple(x.shape[-3:]) != shape):
        want = "C, H, W" if shape is None else ", ".join(map(str, shape))
        raise ValueError(f"{name}: got shape {list(x.shape)}, want [..., {want}]")


def _zeros(x: Tensor, event_dim: int) -> Tensor:
    return x.new_zeros(x.shape[: x.ndim - event_dim], dtype=torch.promote_types(x.dtype, torch.float32))
