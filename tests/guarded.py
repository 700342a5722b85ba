"""Runs the small cases with every tensor between pages that must not be touched: `python -m tests.guarded simt end`.

A kernel that reads or writes one element past the end (or before the start) of an input, output or workspace kills the
process; the last line printed names the case. Outputs are NaN before the kernel runs, so that an element that nobody
writes shows too. Used by test_bounds.py, in a process of its own.
"""

import ctypes
import math
import mmap
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genfast import _native
from tests.conftest import Backend
from tests.harness import relative_error
from tests.test_small_cases import CASES, cast, run

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
kept: list[mmap.mmap] = []  # for as long as the process lives: tensors point into them


def guarded(shape: tuple[int, ...], dtype: torch.dtype, side: str) -> Tensor:
    """A tensor full of 0xff bytes that ends (or starts) at a page without access."""
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for forbidden in (start, start + (pages + 1) * PAGE):
        if libc.mprotect(forbidden, PAGE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    first = start + PAGE + (pages * PAGE - size if side == "end" else 0)
    ctypes.memset(first, 0xFF, size)
    buffer = (ctypes.c_char * size).from_address(first)
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


def new_empty(side: str) -> Callable[..., Tensor]:
    """`Tensor.new_empty` with guarded memory: all other outputs and workspaces are allocated by it."""

    def allocate(self: Tensor, *size: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        return guarded(shape, dtype or self.dtype, side)

    return allocate


def empty_like(side: str) -> Callable[..., Tensor]:
    """`torch.empty_like` with guarded memory: how outputs of the shape of an argument are allocated."""
    return lambda x, **_: guarded(tuple(x.shape), x.dtype, side)


def copy(x: Tensor, side: str) -> Tensor:
    """The same values in guarded memory."""
    out = guarded(tuple(x.shape), x.dtype, side)
    return out.copy_(x)


def main(backend: str, side: str) -> None:
    """Runs every case on one backend and compares with the same run in ordinary memory."""
    ordinary = torch.Tensor.new_empty, torch.empty_like
    _native.load().set_keep_workspaces(False)  # one that was kept has no guard
    for name, case in CASES.items():
        for options in case.options:
            for dtype in (torch.float32, torch.bfloat16):
                print(name, options, dtype, flush=True)
                tensors = cast(case.make(), dtype)
                with Backend(backend).use():
                    results = []
                    for place in (None, side):
                        here = tensors if place is None else {k: copy(v, place) for k, v in tensors.items()}
                        torch.Tensor.new_empty = ordinary[0] if place is None else new_empty(place)
                        torch.empty_like = ordinary[1] if place is None else empty_like(place)
                        results.append(run(name, here, options))
                for k, a in results[0].items():
                    b = results[1][k]
                    rounding = torch.finfo(dtype).eps * (10 if not case.exact else 0)  # products of torch round so
                    if not (torch.equal(a, b) or relative_error(a, b) < rounding):
                        raise SystemExit(f"{k} depends on where the tensors lie, or is not written whole")
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
