"""Loads the extension module and answers what it can do."""

import functools
import hashlib
import importlib
import importlib.machinery
import os
import platform
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch  # before the extension, so that both use the OpenMP runtime that torch brings


class NativeError(ImportError):
    """The compiled part of genfast could not be loaded."""


@functools.cache
def load() -> Any:
    """The extension module; loaded on first use, so that `import genfast` works and can explain what is wrong.

    Raises:
        NativeError: it is missing, does not load, or lies in two places; the message says why and what to do.
    """
    import genfast

    _refuse_two(extensions(genfast.__path__))
    try:
        module = importlib.import_module("genfast._C")
    except ImportError as error:
        raise NativeError(
            f"genfast's compiled extension does not load: {error}. It was built for one Python version and platform; "
            f"this is Python {platform.python_version()} on {platform.machine()}. Reinstall it here with "
            "`pip install --force-reinstall --no-deps genfast` (from a checkout: `pip install .`), or use plain "
            'PyTorch with `genfast.set_backend("reference")`.'
        ) from error
    if is_stale(module):
        warnings.warn(
            f"genfast's kernels in {module.__file__} were built from other sources than this checkout's csrc/ holds; "
            "build them anew with scripts/dev_build.sh",
            RuntimeWarning,
            stacklevel=2,
        )
    target = os.environ.get("GENFAST_CPU_TARGET")
    if target:
        module.set_cpu_target(target)
    return module


def extensions(folders: Iterable[str]) -> list[Path]:
    """The extension files that this Python could load from these folders, each once."""
    found = (Path(folder) / f"_C{end}" for folder in folders for end in importlib.machinery.EXTENSION_SUFFIXES)
    return sorted({path.resolve() for path in found if path.is_file()})


def _refuse_two(files: list[Path]) -> None:
    if len(files) > 1 and len({path.read_bytes() for path in files}) > 1:
        raise NativeError(
            f"genfast's compiled extension lies in {len(files)} places, and the files differ: "
            f"{', '.join(map(str, files))}. Remove the older one, so that it is clear which kernels run."
        )


def source_hash() -> str | None:
    """The hash of the checkout's sources of the extension, as cmake/source_hash.cmake makes it; None outside of one."""
    root = Path(__file__).parents[1]
    if not (root / "cmake" / "source_hash.cmake").is_file():
        return None
    kinds = {".h", ".cuh", ".cpp", ".cu"}
    names = [p.relative_to(root).as_posix() for p in (root / "csrc").rglob("*") if p.suffix in kinds]
    lines = (f"{hashlib.sha256((root / n).read_bytes()).hexdigest()} {n}\n" for n in sorted([*names, "CMakeLists.txt"]))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_stale(module: Any) -> bool:
    """Whether the extension was built from other sources than the checkout around it holds."""
    here = source_hash()
    return here is not None and module.build_info().get("sources") != here


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
    if is_stale(load()):
        facts["extension"] += " (STALE: built from other sources than csrc/ holds; run scripts/dev_build.sh)"
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
