"""A folder of images: all grey or all RGB, of one size, with sub-folders as labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genfast._optional import require
from genfast.data._dataset import DataError, Dataset

SUFFIXES = frozenset(".png .jpg .jpeg .bmp .gif .tif .tiff .webp .pbm .pgm .ppm .pnm".split())
_GREY = {"1", "L", "LA", "I;16", "I;16B", "I;16L"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def read_folder(folder: Path, *, size: tuple[int, int] | None = None, grey: bool | None = None) -> Dataset:
    """The images of a folder in the order of their names, with values in [0, 1].

    Args:
        folder: with images, or with sub-folders of images, whose names in order are the labels 0, 1, ....
        size: (height, width) to bring them to: cut about the centre to that form, then resized.
        grey: whether to take them as grey or as RGB; by default grey where all of them are.

    Raises:
        DataError: no images, one that cannot be read, or sizes that differ where none is asked for.
    """
    pillow = require("PIL.Image", "reading images")
    paths, labels, classes = _find(folder)
    if grey is None:
        grey = all(_read(pillow, path, lambda image: image.mode) in _GREY for path in paths)
    arrays: list[np.ndarray] = []
    for path in paths:
        array = _read(pillow, path, lambda image: _pixels(pillow, image, grey, size))
        if arrays and array.shape != arrays[0].shape:
            (h, w), (h0, w0) = array.shape[:2], arrays[0].shape[:2]
            raise DataError(
                f"{folder}: images of different sizes, {path.name} of {h} x {w} and {paths[0].name} of {h0} x {w0}; "
                "load with size=(height, width) to resize them"
            )
        arrays.append(array)
    stack = torch.from_numpy(np.stack(arrays))
    if stack.ndim == 4:
        stack = stack.movedim(3, 1)
    return Dataset(
        str(folder),
        stack.flatten(1).contiguous(),
        None if labels is None else torch.tensor(labels),
        tuple(stack.shape[1:]),
        classes,
        scale=255.0,
    )


def _find(folder: Path) -> tuple[list[Path], list[int] | None, tuple[str, ...] | None]:
    """The images, with their labels and the names of these where they lie in sub-folders."""

    def images(where: Path) -> list[Path]:
        return sorted(p for p in where.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file())

    own = images(folder)
    below = {p: images(p) for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != "."}
    below = {p: found for p, found in below.items() if found}
    if own and below:
        raise DataError(f"{folder} holds images and also sub-folders of images ({next(iter(below)).name}), want either")
    if not own and not below:
        raise DataError(f"{folder} holds no images, nor do its sub-folders ({', '.join(sorted(SUFFIXES))})")
    if own:
        return own, None, None
    labels = [label for label, found in enumerate(below.values()) for _ in found]
    return [p for found in below.values() for p in found], labels, tuple(p.name for p in below)


def _read(pillow: Any, path: Path, use: Callable[[Any], Any]) -> Any:
    """What `use` makes of an image."""
    try:
        with pillow.open(path) as image:
            _check(path, image)
            return use(image)
    except DataError:
        raise
    except Exception as error:  # decoders of many formats raise what they please
        reason = "it is not an image" if isinstance(error, pillow.UnidentifiedImageError) else f"it is broken ({error})"
        raise DataError(f"cannot read {path}: {reason}") from error


def _check(path: Path, image: Any) -> None:
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{path} holds {image.n_frames} pictures, want one")
    if image.mode not in _GREY | _COLOUR:
        raise DataError(f"{path} has pixels of mode {image.mode}, want grey of 1, 8 or 16 bits, or colour")


def _pixels(pillow: Any, image: Any, grey: bool, size: tuple[int, int] | None) -> np.ndarray:
    """float32 `[height, width]` or `[height, width, 3]` in [0, 1], turned as the camera was held, on white."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image, white = pillow.fromarray(np.asarray(image).astype(np.float32)), 65535
    else:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)
        image, white = image.convert("L" if grey else "RGB"), 255
    if size is not None:
        image = ImageOps.fit(image, (size[1], size[0]), pillow.Resampling.BICUBIC)
    array = (np.asarray(image, np.float32) / white).clip(0, 1)
    return array if grey or array.ndim == 3 else np.repeat(array[..., None], 3, -1)
