"""Fused CUDA and C++ kernels for the classic generative models of PyTorch."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from genfast import ops
    from genfast._backend import backend, get_backend, set_backend
    from genfast.training import fit, load

# Each is imported when it is first used: `genfast --help` need not wait for torch.
_HOMES = {
    "backend": "genfast._backend",
    "get_backend": "genfast._backend",
    "set_backend": "genfast._backend",
    "fit": "genfast.training",
    "load": "genfast.training",
}

__all__ = ["__version__", "backend", "fit", "get_backend", "load", "ops", "set_backend"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"genfast.{name}") is not None:
        return importlib.import_module(f"genfast.{name}")  # ops, flows, data, ...
    raise AttributeError(f"module 'genfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
