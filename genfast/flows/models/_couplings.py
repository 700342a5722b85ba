"""What ready models of coupling layers share: their masks, and how they are stacked."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from genfast.flows._base import event_shape
from genfast.flows.invertible import InvertibleSequential
from genfast.flows.permutation import alternating_mask, checkerboard_mask, half_mask


def masks(dim: int | Sequence[int], n_layers: int, *, alternating: bool = False) -> list[Tensor]:
    """The masks of n_layers couplings of vectors or, where dim is (C, H, W), of images.

    Vectors: the last and the first half in turn, or the odd and the even dimensions; all of a single dimension. Images:
    two checkerboards, the odd and the even rows, and so on: the odd and even rows are what a squeeze makes of channels.

    Raises:
        ValueError: dim is neither a positive integer nor three of them, or an image has too few pixels to split.
    """
    shape = event_shape(dim)
    if len(shape) == 1:
        if shape[0] == 1:
            return [torch.tensor([True])] * n_layers
        if alternating:
            return [alternating_mask(shape[0], odd=i % 2 == 0) for i in range(n_layers)]
        return [half_mask(shape[0], last=i % 2 == 0) for i in range(n_layers)]
    if len(shape) != 3:
        raise ValueError(f"dim: got {dim!r}, want a number of dimensions, or (C, H, W) of images")
    if shape[1] == 1:
        raise ValueError(f"dim: got {dim!r}, want images of two rows or more")
    return [_of_image(shape, rows=i // 2 % 2 == 1, odd=i % 2 == 0) for i in range(n_layers)]


def _of_image(shape: tuple[int, ...], *, rows: bool, odd: bool) -> Tensor:
    if not rows:
        return checkerboard_mask(shape, odd=odd)
    c, h, w = shape
    return checkerboard_mask((c, h, 1), odd=odd).expand(c, h, w)


def stacked(layers: Iterable[nn.Module], *, rebuild: bool) -> list[nn.Module]:
    """The layers, or one stack of them that rebuilds its activations."""
    return [InvertibleSequential(layers)] if rebuild else list(layers)
