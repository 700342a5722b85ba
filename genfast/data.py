"""Data sets: small real images, samples in the plane, and the 2-D densities of the flow papers.

`load(name)` gives a `Dataset` (images and samples) or a `Density` (an unnormalised log-density to fit by reverse KL).
"""

import dataclasses
import functools
import gzip
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from genfast._arguments import integer
from genfast._optional import require

Split = Literal["train", "test", "all"]

IMAGES = ("digits", "mnist", "fashion-mnist")
SAMPLES = ("moons", "rings", "pinwheel", "checkerboard")
DENSITIES = ("u1", "u2", "u3", "u4")
NAMES = IMAGES + SAMPLES + DENSITIES


class DataError(ValueError):
    """A data set is unknown, missing or not what it should be; the message says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Samples to learn from.

    Attributes:
        name: what `load` was given.
        x: float32 `[N, D]`; images have values in [0, 1].
        y: int64 labels `[N]`, or None.
        shape: (height, width) of images, or None.
    """

    name: str
    x: Tensor
    y: Tensor | None = None
    shape: tuple[int, int] | None = None

    def binarized(self, threshold: float = 0.5) -> "Dataset":
        """The same with x = 1 where it was above `threshold`, else 0."""
        return dataclasses.replace(self, x=(self.x > threshold).to(self.x.dtype))


@dataclasses.dataclass(frozen=True)
class Density:
    r"""An unnormalised density exp(-U(z)) in the plane, from the figure of Rezende & Mohamed 2015.

    U2, U3 and U4 have no finite integral over the plane: they are restricted to |z1| <= 4 by a steep, differentiable
    wall, (max(0, |z1| - 4) / 0.1)^2 / 2, which `log_prob` adds to U and `energy` does not.

    Attributes:
        name: "u1" to "u4".
        energy: U, a function of z `[..., 2]`.
        walled: whether the wall stands.
    """

    name: str
    energy: Callable[[Tensor], Tensor]
    walled: bool

    def log_prob(self, z: Tensor) -> Tensor:
        """-U(z) minus the wall, not normalised: z `[..., 2]` to `[...]`."""
        if not self.walled:
            return -self.energy(z)
        return -self.energy(z) - 0.5 * (torch.relu(z[..., 0].abs() - 4) / 0.1) ** 2

    @functools.cached_property
    def log_normalizer(self) -> float:
        """The log of the integral of exp(log_prob), by the trapezoidal rule on [-8, 8]^2, in float64."""
        step = 0.01
        axis = torch.arange(-8, 8 + step / 2, step, dtype=torch.float64)
        rows = [
            torch.logsumexp(self.log_prob(torch.stack(torch.meshgrid(part, axis, indexing="ij"), -1)).flatten(), 0)
            for part in axis.split(100)
        ]
        return float(torch.logsumexp(torch.stack(rows), 0) + 2 * math.log(step))


@overload
def load(name: Literal["u1", "u2", "u3", "u4"]) -> Density: ...
@overload
def load(
    name: Literal["digits", "mnist", "fashion-mnist", "moons", "rings", "pinwheel", "checkerboard"],
    *,
    split: Split | None = None,
    n: int = 10000,
    seed: int = 0,
) -> Dataset: ...
@overload
def load(name: str, *, split: Split | None = None, n: int = 10000, seed: int = 0) -> Dataset | Density: ...


def load(name: str, *, split: Split | None = None, n: int = 10000, seed: int = 0) -> Dataset | Density:
    """Load a data set by its name.

    - "digits": 1,797 handwritten digits of 8 x 8 pixels, part of scikit-learn (1,500 to train, 297 to test).
    - "mnist", "fashion-mnist": 60,000 + 10,000 images of 28 x 28. The four idx.gz files are looked for in
      `$GENFAST_DATA_DIR/<name>/`, `$GENFAST_DATA_DIR/` and the cache, else fetched (by pooch, with their SHA-256).
    - "moons", "rings", "pinwheel", "checkerboard": samples in the plane, with mean near 0 and scale near 1.
    - "u1" to "u4": the densities of Rezende & Mohamed 2015, see `Density`.

    Args:
        name: one of these.
        split: "train", "test" or "all" of the images; by default "train", for digits "all".
        n: number of samples in the plane.
        seed: of the samples in the plane.

    Raises:
        DataError: an unknown name, or the files are missing or broken.

    Example:
        >>> load("digits").x.shape
        torch.Size([1797, 64])
        >>> load("u2").log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    if name in DENSITIES:
        return _density(name)
    if name in SAMPLES:
        return Dataset(name, _samples(name, integer("n", n), np.random.default_rng(seed)))
    if name not in IMAGES:
        raise DataError(f"unknown data set {name!r}; there are {', '.join(NAMES)}")
    if split not in (None, "train", "test", "all"):
        raise ValueError(f"split: got {split!r}, want 'train', 'test' or 'all'")
    if name == "digits":
        return _digits(split or "all")
    return _idx_images(name, split or "train")


# -- images -----------------------------------------------------------------------------------------------------------

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_MIRRORS: Mapping[str, tuple[str, ...]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
}
_SHA256: Mapping[str, Mapping[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
}


def _digits(split: Split) -> Dataset:
    sklearn_datasets = require("sklearn.datasets", "the digits data")
    bunch = sklearn_datasets.load_digits()
    x = torch.from_numpy((bunch.data / 16.0).astype(np.float32))
    y = torch.from_numpy(bunch.target.astype(np.int64))
    part = {"train": slice(0, 1500), "test": slice(1500, None), "all": slice(None)}[split]
    return Dataset("digits", x[part].contiguous(), y[part].contiguous(), (8, 8))


def _idx_images(name: str, split: Split) -> Dataset:
    images, labels = [], []
    for part in ("train", "test") if split == "all" else (split,):
        image_file, label_file = (_find(name, file) for file in _FILES[part])
        x, y = read_idx(image_file), read_idx(label_file)
        if x.ndim != 3 or x.shape[1:] != (28, 28) or y.shape != x.shape[:1]:
            raise DataError(
                f"{image_file} and {label_file.name} hold arrays of shapes {list(x.shape)} and {list(y.shape)}, "
                "want [N, 28, 28] and [N]"
            )
        images.append(torch.from_numpy(x.reshape(len(x), -1).astype(np.float32) / 255))
        labels.append(torch.from_numpy(y.astype(np.int64)))
    return Dataset(name, torch.cat(images), torch.cat(labels), (28, 28))


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an idx file of bytes (the format of MNIST), gzipped or not.

    Raises:
        DataError: the file is missing, cut short or no idx file of unsigned bytes.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an idx file of unsigned bytes")
    n_dims = raw[3]
    start = 4 + 4 * n_dims
    if len(raw) < start:
        raise DataError(f"{path} ends within its header")
    shape = struct.unpack(f">{n_dims}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise DataError(f"{path} holds {len(raw) - start} bytes of data, its header says {math.prod(shape)}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def cache_dir() -> Path:
    """Where downloads are kept: `$GENFAST_CACHE_DIR`, or genfast under `$XDG_CACHE_HOME` (by default ~/.cache)."""
    if os.environ.get("GENFAST_CACHE_DIR"):
        return Path(os.environ["GENFAST_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genfast"


def _find(name: str, file: str) -> Path:
    folders = [cache_dir() / name]
    if os.environ.get("GENFAST_DATA_DIR"):
        root = Path(os.environ["GENFAST_DATA_DIR"])
        folders = [root / name, *([root] if name == "mnist" else []), *folders]
    for folder in folders:
        for candidate in (folder / file, folder / file.removesuffix(".gz")):
            if candidate.is_file():
                return candidate
    return _fetch(name, file, folders)


def _fetch(name: str, file: str, looked_in: list[Path]) -> Path:
    pooch = require("pooch", f"downloading {name}")
    pooch.get_logger().setLevel("WARNING")
    reasons = []
    for mirror in _MIRRORS[name]:
        got = _retrieve(pooch, mirror + file, _SHA256[name][file], cache_dir() / name)
        if isinstance(got, Path):
            return got
        reasons.append(f"{mirror}: {got}")
    raise DataError(
        f"{name} is not here and could not be fetched: {file} is neither in "
        f"{' nor in '.join(map(str, looked_in))}, and the mirrors failed ({'; '.join(reasons)}). "
        f"Put the four idx.gz files of {name} into a folder {name} and set GENFAST_DATA_DIR to the folder above it"
    )


def _retrieve(pooch: Any, url: str, sha256: str, folder: Path) -> Path | str:
    """The path of the fetched file, or why there is none: no network, another checksum, no room."""
    try:
        return Path(pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=url.rpartition("/")[2], path=folder))
    except (OSError, ValueError) as error:
        return str(error).splitlines()[0]


# -- samples in the plane ---------------------------------------------------------------------------------------------


def _samples(name: str, n: int, rng: np.random.Generator) -> Tensor:
    if name == "moons":
        t = math.pi * rng.random(n)
        upper = rng.random(n) < 0.5
        x = np.stack([np.where(upper, np.cos(t), 1 - np.cos(t)), np.where(upper, np.sin(t), 0.5 - np.sin(t))], 1)
        x = (x - [0.5, 0.25]) * [1.15, 2.0] + 0.1 * rng.standard_normal((n, 2))
    elif name == "rings":
        radius = rng.choice([0.5, 1.1, 1.7], n) + 0.06 * rng.standard_normal(n)
        t = 2 * math.pi * rng.random(n)
        x = np.stack([radius * np.cos(t), radius * np.sin(t)], 1)
    elif name == "pinwheel":
        arm = rng.integers(5, size=n)
        along, across = 1.2 + 0.4 * rng.standard_normal(n), 0.13 * rng.standard_normal(n)
        turn = 2 * math.pi * arm / 5 + 0.6 * along
        x = np.stack([along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)], 1)
    else:  # checkerboard of 4 x 4 squares, 8 of them filled
        column = rng.integers(4, size=n)
        row = 2 * rng.integers(2, size=n) + column % 2
        x = np.stack([column + rng.random(n), row + rng.random(n)], 1) - 2
    return torch.from_numpy(x.astype(np.float32))


# -- densities in the plane -------------------------------------------------------------------------------------------


def _w1(z: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * z[..., 0] / 4)


def _well(t: Tensor, width: float) -> Tensor:
    return -0.5 * (t / width) ** 2


def _u1(z: Tensor) -> Tensor:
    radius = torch.linalg.vector_norm(z, dim=-1)
    return -_well(radius - 2, 0.4) - torch.logaddexp(_well(z[..., 0] - 2, 0.6), _well(z[..., 0] + 2, 0.6))


def _u2(z: Tensor) -> Tensor:
    return -_well(z[..., 1] - _w1(z), 0.4)


def _u3(z: Tensor) -> Tensor:
    w2 = 3 * torch.exp(_well(z[..., 0] - 1, 0.6))
    t = z[..., 1] - _w1(z)
    return -torch.logaddexp(_well(t, 0.35), _well(t + w2, 0.35))


def _u4(z: Tensor) -> Tensor:
    w3 = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    t = z[..., 1] - _w1(z)
    return -torch.logaddexp(_well(t, 0.4), _well(t + w3, 0.35))


_ENERGIES = {"u1": _u1, "u2": _u2, "u3": _u3, "u4": _u4}


@functools.cache
def _density(name: str) -> Density:
    return Density(name, _ENERGIES[name], walled=name != "u1")
