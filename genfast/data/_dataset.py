"""What data are: rows of finite float32 numbers, with the shape of the images that they were."""

import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

IMAGE_CHANNELS = (1, 3)


class DataError(ValueError):
    """A data set is unknown, missing or not what it should be; the message says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Samples to learn from.

    Attributes:
        name: what `load` was given.
        x: float32 `[N, D]`; images of bytes have values in [0, 1].
        y: int64 labels `[N]`, or None.
        shape: (height, width) of grey images, (channels, height, width) of others, whose rows lie in that order; or
            None.
        classes: names of the labels 0, 1, ..., where they have any.
        scale: what the values were divided by as they were read: 255 for images of bytes, 16 for the digits.
    """

    name: str
    x: Tensor
    y: Tensor | None = None
    shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    scale: float = 1.0

    def __len__(self) -> int:
        """The number of rows."""
        return self.x.shape[0]

    def binarized(self, threshold: float = 0.5) -> "Dataset":
        """The same with x = 1 where it was above `threshold`, else 0."""
        return dataclasses.replace(self, x=(self.x > threshold).to(self.x.dtype))

    def random_split(self, fraction: float = 0.9, seed: int = 0) -> tuple["Dataset", "Dataset"]:
        """Two parts of the rows, shuffled: `fraction` of them and the rest, at least one row each.

        Args:
            fraction: share of the first part, in (0, 1).
            seed: of the shuffle.

        Raises:
            ValueError: the fraction is not in (0, 1), or there is one row only.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction: got {fraction!r}, want a number in (0, 1)")
        n = len(self)
        if n < 2:
            raise ValueError(f"{self.name} has {n} row, want at least 2 to split")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(self.x.device)
        first = min(max(round(fraction * n), 1), n - 1)
        parts = (order[:first], order[first:])
        a, b = (
            dataclasses.replace(self, x=self.x[part], y=None if self.y is None else self.y[part.to(self.y.device)])
            for part in parts
        )
        return a, b


def from_array(name: str, array: np.ndarray, *, scale: float | None = None) -> Dataset:
    """The rows of an array of numbers `[N, D]`, or of images `[N, height, width]`, with channels before or behind.

    Raises:
        DataError: it holds something else than finite real numbers, or has another shape.
    """
    if array.dtype.kind not in "biuf":
        found = "Python objects" if array.dtype.hasobject else str(array.dtype)
        raise DataError(f"{name} holds {found}, want numbers")
    largest = np.finfo(np.float32).max
    if array.dtype.kind == "f" and array.dtype.itemsize > 4 and array.size:
        beyond = np.isfinite(array) & (np.abs(array) > largest)
        if beyond.any():
            raise DataError(f"{name} holds {array[beyond][0]:g}, want numbers within float32, up to {largest:.2g}")
    return from_tensor(name, torch.from_numpy(np.array(array, np.float32)), array.dtype == np.uint8, scale)


def from_tensor(name: str, x: Tensor, is_bytes: bool, scale: float | None = None) -> Dataset:
    """`from_array` of float32 numbers that were bytes, or were not."""
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise DataError(f"{name} has shape {list(x.shape)}, want [N, D], or images [N, height, width] or {_COLOUR}")
    shape: tuple[int, ...] | None = None
    if x.ndim == 4:
        if x.shape[1] not in IMAGE_CHANNELS:
            if x.shape[3] not in IMAGE_CHANNELS:
                raise DataError(f"{name} has shape {list(x.shape)}, want images with 1 or 3 channels: {_COLOUR}")
            x = x.movedim(3, 1)
        shape = tuple(x.shape[2:] if x.shape[1] == 1 else x.shape[1:])
    elif x.ndim == 3:
        shape = tuple(x.shape[1:])
    x = x.flatten(1).contiguous()
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise DataError(
            f"{name} has {int(bad.sum())} values that are NaN or infinite, the first in row {row}, column {column}"
        )
    if scale is None:
        scale = 255.0 if is_bytes and shape is not None and bool(x.max() > 1) else 1.0
        if scale == 255 and bool(x.max() < 128):
            warnings.warn(
                f"{name}: the brightest pixel is {x.max():g} of 255; where that is white, load with scale={x.max():g}",
                stacklevel=3,
            )
    elif not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: got {scale!r}, want a positive number")
    return Dataset(name, x if scale == 1 else x / scale, shape=shape, scale=scale)


_COLOUR = "[N, channels, height, width] (channels last will do)"


def from_object(name: str, source: Any, *, scale: float | None = None) -> Dataset:
    """The rows of a tensor, an array or what numpy can make one of.

    Raises:
        DataError: see `from_array`.
        TypeError: it is none of these.
    """
    if isinstance(source, Tensor):
        if source.layout != torch.strided or source.is_quantized or source.device.type == "meta":
            raise DataError(f"{name} is a {source.layout} tensor on {source.device}, want a dense one with data")
        if source.is_complex():
            raise DataError(f"{name} holds {str(source.dtype).removeprefix('torch.')}, want numbers")
        source = source.detach()
        if source.dtype == torch.float64:
            return from_array(name, source.cpu().numpy(), scale=scale)
        return from_tensor(name, source.to(torch.float32, copy=True), source.dtype == torch.uint8, scale)
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return from_array(name, np.asarray(source), scale=scale)
    raise TypeError(f"data: got {type(source).__name__}, want a name, a path, a tensor or an array")
