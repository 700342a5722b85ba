"""Loads the extension module and answers what it can do."""

import functools
import importlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch  # before the extension, so that both use the OpenMP runtime that torch brings


class NativeError(ImportError):
    """The compiled part of genfast could not be loaded."""


@functools.cache
def load() -> Any:
    """The extension module; loaded on first use, so that `import genfast` works and can explain what is wrong.

    Raises:
        NativeError: it is missing or does not load; the message says why and what to do.
    """
    try:
        module = importlib.import_module("genfast._C")
    except ImportError as error:
        raise NativeError(
            f"genfast's compiled extension does not load: {error}. It was built for one Python version and platform; "
            f"this is Python {platform.python_version()} on {platform.machine()}. Reinstall it here with "
            "`pip install --force-reinstall --no-deps genfast` (from a checkout: `pip install .`), or use plain "
            'PyTorch with `genfast.set_backend("reference")`.'
        ) from error
    target = os.environ.get("GENFAST_CPU_TARGET")
    if target:
        module.set_cpu_target(target)
    return module


def __getattr__(name: str) -> Any:
    """Functions of the extension: `_native.planar_forward(...)`."""
    if name.startswith("__"):
        raise AttributeError(name)
    value = getattr(load(), name)
    globals()[name] = value  # next time an ordinary attribute
    return value


@functools.cache
def has_cuda() -> bool:
    """Whether this build has CUDA kernels."""
    return bool(load().build_info()["cuda"])


def _libgomp() -> str:
    try:
        with Path("/proc/self/maps").open() as maps:
            paths = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}
    except OSError:
        return "unknown"
    return ", ".join(sorted(paths)) or "none"


def info() -> dict[str, Any]:
    """Versions, instruction set, CUDA build and devices: what a bug report starts with."""
    from genfast import __version__

    facts: dict[str, Any] = {
        "genfast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda or "none",
        "torch threads": torch.get_num_threads(),
    }
    try:
        build = load().build_info()
    except NativeError as error:
        facts["extension"] = f"NOT LOADED: {error}"
        return facts
    facts["extension"] = str(getattr(sys.modules.get("genfast._C"), "__file__", "?"))
    facts["compiler"] = build["compiler"]
    facts["CPU kernels"] = f"{build['cpu_target']} (of {', '.join(build['cpu_targets'])})"
    facts["OpenMP"] = f"{build['threads']} threads, {_libgomp()}" if build["openmp"] else "no"
    facts["CUDA kernels"] = (
        f"nvcc {build['cuda_compiler']}, architectures {build['cuda_archs']}" if build["cuda"] else "not built"
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            facts[f"GPU {i}"] = f"{p.name}, compute capability {p.major}.{p.minor}, {p.total_memory / 2**30:.0f} GiB"
    else:
        facts["GPU"] = "none visible to torch"
    return facts
