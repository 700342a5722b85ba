"""Images with names: the digits of scikit-learn, MNIST and Fashion-MNIST, found on disk or fetched."""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from genfast._optional import require
from genfast.data._dataset import DataError, Dataset

Split = Literal["train", "test", "all"]

IMAGES = ("digits", "mnist", "fashion-mnist")

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


def digits(split: Split) -> Dataset:
    sklearn_datasets = require("sklearn.datasets", "the digits data")
    bunch = sklearn_datasets.load_digits()
    x = torch.from_numpy((bunch.data / 16.0).astype(np.float32))
    y = torch.from_numpy(bunch.target.astype(np.int64))
    part = {"train": slice(0, 1500), "test": slice(1500, None), "all": slice(None)}[split]
    return Dataset("digits", x[part].contiguous(), y[part].contiguous(), (8, 8), scale=16.0)


def idx_images(name: str, split: Split) -> Dataset:
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
    return Dataset(name, torch.cat(images), torch.cat(labels), (28, 28), scale=255.0)


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
    except (OSError, EOFError, zlib.error) as error:
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
