"""Which implementation the ops use."""

import contextlib
import warnings
from collections.abc import Iterator

import torch

from genfast import _native

BACKENDS = ("native", "reference")

_current = "native"
_warned: set[str] = set()


def get_backend() -> str:
    """The backend in use: "native" or "reference"."""
    return _current


def set_backend(name: str) -> None:
    """Choose the backend of all ops of this process.

    "native" (the default) runs genfast's kernels, "reference" the same functions in plain PyTorch. The setting is
    process-wide, so that it holds in autograd's own threads too.

    Raises:
        ValueError: the name is not a backend.
    """
    global _current
    if name not in BACKENDS:
        raise ValueError(f"backend: got {name!r}, want one of {', '.join(map(repr, BACKENDS))}")
    _current = name


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Use another backend inside a `with` block.

    Example:
        >>> with genfast.backend("reference"):
        ...     x, log_det = genfast.ops.planar_flow(z, w, u, b)
    """
    before = get_backend()
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def use_reference(x: torch.Tensor) -> bool:
    """Whether an op on `x` runs the plain PyTorch function: chosen, or because no kernel serves the device."""
    if _current == "reference":
        return True
    if x.is_cpu:
        return False
    kind = x.device.type
    if kind == "meta" or (kind == "cuda" and _native.has_cuda()):
        return False
    _warn_once(kind)
    return True


@torch.compiler.disable
def _warn_once(kind: str) -> None:
    if kind in _warned:
        return
    _warned.add(kind)
    why = (
        "was built without CUDA kernels (reinstall with nvcc on the PATH)"
        if kind == "cuda"
        else f"has no kernels for {kind!r} devices"
    )
    warnings.warn(
        f"genfast {why}; its ops run as plain PyTorch there. `genfast info` shows the build.",
        RuntimeWarning,
        stacklevel=3,
    )
