"""Data: small real images, samples and densities of the plane, and files, folders and arrays of one's own.

`load` gives a `Dataset` (images and samples) or a `Density` (an unnormalised log-density to fit by reverse KL).
"""

import os
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from genfast._arguments import integer
from genfast.data._dataset import DataError, Dataset, from_object
from genfast.data._files import read_csv, read_npy, read_npz
from genfast.data._folder import SUFFIXES, read_folder
from genfast.data._images import IMAGES, Split, cache_dir, digits, idx_images, read_idx
from genfast.data._patterns import PATTERNS, bars_and_stripes
from genfast.data._plane import DENSITIES, SAMPLES, Density, density, samples

__all__ = [
    "DENSITIES",
    "IMAGES",
    "NAMES",
    "PATTERNS",
    "SAMPLES",
    "DataError",
    "Dataset",
    "Density",
    "Split",
    "bars_and_stripes",
    "cache_dir",
    "load",
    "read_idx",
]

NAMES = IMAGES + PATTERNS + SAMPLES + DENSITIES
_FILES = ".npy, .npz or .csv file or a folder of images"


@overload
def load(source: Literal["u1", "u2", "u3", "u4"]) -> Density: ...
@overload
def load(
    source: Literal[
        "digits", "mnist", "fashion-mnist", "bars-and-stripes", "moons", "rings", "pinwheel", "checkerboard"
    ],
    *,
    split: Split | None = None,
    n: int | None = None,
    seed: int = 0,
) -> Dataset: ...
@overload
def load(
    source: os.PathLike[str] | np.ndarray,
    *,
    size: int | tuple[int, int] | None = None,
    grey: bool | None = None,
    header: bool | None = None,
    scale: float | None = None,
) -> Dataset: ...
@overload
def load(
    source: Any,
    *,
    split: Split | None = None,
    n: int | None = None,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    grey: bool | None = None,
    header: bool | None = None,
    scale: float | None = None,
) -> Dataset | Density: ...


def load(
    source: Any,
    *,
    split: Split | None = None,
    n: int | None = None,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    grey: bool | None = None,
    header: bool | None = None,
    scale: float | None = None,
) -> Dataset | Density:
    """Load data by a name, from a path, or from a tensor or array.

    Names:

    - "digits": 1,797 handwritten digits of 8 x 8 pixels, part of scikit-learn (1,500 to train, 297 to test).
    - "mnist", "fashion-mnist": 60,000 + 10,000 images of 28 x 28. The four idx.gz files are looked for in
      `$GENFAST_DATA_DIR/<name>/`, `$GENFAST_DATA_DIR/` and the cache, else fetched (by pooch, with their SHA-256).
    - "bars-and-stripes": the 16 patterns of 3 x 3 units, see `bars_and_stripes`.
    - "moons", "rings", "pinwheel", "checkerboard": samples in the plane, with mean near 0 and scale near 1.
    - "u1" to "u4": the densities of Rezende & Mohamed 2015, see `Density`.

    Paths:

    - "file.npy", "file.npz:array" (the name may be left out where there is one array): numbers `[N, D]`, or images
      `[N, height, width]`, `[N, channels, height, width]` or `[N, height, width, channels]`, which become rows and
      keep their shape. Nothing is ever unpickled.
    - "file.csv": numbers, a row a line, with or without a line of names. A tab, semicolon, comma, bar or blanks
      between them; UTF-8; decimal points.
    - a folder of images (Pillow): grey where all are grey, else RGB; transparent parts are white. Sub-folders are
      labels, in the order of their names.

    Tensors and arrays are read as .npy files are, and copied. A `Dataset` or `Density` comes back as it is.

    Values are kept, as float32. Only images are scaled: a folder's to [0, 1], and so arrays of uint8 with an image
    shape where some value is above 1. `Dataset.scale` says by what. No data of one's own are split; `split` is for
    the named images, and `Dataset.random_split` for all.

    Args:
        source: one of these.
        split: "train", "test" or "all" of the named images; by default "train", for digits "all".
        n: number of samples in the plane, by default 10,000.
        seed: of the samples in the plane.
        size: of a folder's images, (height, width) or one number for both: each is cut about its centre to that form
            and resized. Without it they must agree.
        grey: True or False takes a folder's images as grey or as RGB.
        header: whether a .csv file begins with a line of names; by default it does where that holds no number.
        scale: divides the numbers of a file, tensor or array.

    Raises:
        DataError: an unknown name; files that are missing, broken, empty, or hold something else than finite numbers.
        TypeError: `source` is of another type.
        ValueError: an option is wrong, or says nothing about this source.

    Example:
        >>> load("digits").x.shape
        torch.Size([1797, 64])
        >>> load("u2").log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
        >>> load(torch.zeros(5, 3, 32, 32)).shape
        (3, 32, 32)
    """
    given = {"split": split, "n": n, "size": size, "grey": grey, "header": header, "scale": scale}
    if isinstance(source, Dataset | Density):
        _refuse_others(given, "loaded data")
        return source
    if isinstance(source, str) and source in NAMES:
        return _named(source, given, seed)
    if isinstance(source, str | os.PathLike):
        return _path(source, given)
    _refuse_others(given, "a tensor or array", "scale")
    return from_object("data", source, scale=scale)


def _refuse_others(given: dict[str, Any], kind: str, *allowed: str) -> None:
    """An option that would change nothing is an error, not silence."""
    for name, value in given.items():
        if value is not None and name not in allowed:
            hint = "; divide it with Dataset.random_split" if name == "split" else ""
            raise ValueError(f"{name}: got {value!r}, which is no option of {kind}{hint}")


def _named(name: str, given: dict[str, Any], seed: int) -> Dataset | Density:
    if name in DENSITIES:
        _refuse_others(given, f"the density {name}")
        return density(name)
    if name in PATTERNS:
        _refuse_others(given, f"the patterns {name}")
        return Dataset(name, bars_and_stripes(3), shape=(3, 3))
    if name in SAMPLES:
        _refuse_others(given, f"the samples {name}", "n")
        count = 10000 if given["n"] is None else integer("n", given["n"])
        return Dataset(name, samples(name, count, np.random.default_rng(seed)))
    _refuse_others(given, f"the images {name}", "split")
    split = given["split"]
    if split not in (None, "train", "test", "all"):
        raise ValueError(f"split: got {split!r}, want 'train', 'test' or 'all'")
    return digits(split or "all") if name == "digits" else idx_images(name, split or "train")


def _path(source: str | os.PathLike[str], given: dict[str, Any]) -> Dataset:
    text = os.fspath(source)
    path, key = Path(text).expanduser(), None
    if ".npz:" in text and not path.exists():
        head, _, key = text.rpartition(".npz:")
        path = Path(f"{head}.npz").expanduser()
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            _refuse_others(given, f"the folder {path}", "size", "grey")
            return read_folder(path, size=_size(given["size"]), grey=given["grey"])
        if not path.exists():
            if suffix or os.sep in text:
                raise DataError(f"there is no file {path}")
            raise DataError(f"unknown data set {text!r}; there are {', '.join(NAMES)}, or give a {_FILES}")
        if suffix == ".npy":
            _refuse_others(given, f"the file {path}", "scale")
            return read_npy(path, scale=given["scale"])
        if suffix == ".npz":
            _refuse_others(given, f"the file {path}", "scale")
            return read_npz(path, key, scale=given["scale"])
        if suffix in (".csv", ".tsv", ".txt"):
            _refuse_others(given, f"the file {path}", "header", "scale")
            return read_csv(path, header=given["header"], scale=given["scale"])
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if suffix in SUFFIXES:
        raise DataError(f"{path} is one image, want the folder of all")
    raise DataError(f"{path} is not a {_FILES}")


def _size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = size if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"size: got {size!r}, want (height, width) or one number")
    return integer("size", pair[0]), integer("size", pair[1])
