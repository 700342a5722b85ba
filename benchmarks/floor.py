"""What this machine can do at best: the rates behind the "x floor" column.

The floor of a case is the larger of two times: moving its bytes at the rate of a plain copy of as many bytes (so a
working set that fits a cache is judged by that cache), and doing its arithmetic at the rate of a matrix product.
"""

import functools
import statistics

import torch

from .timers import timer_for

__all__ = ["TRANSCENDENTAL_FLOPS", "copy_rate", "flop_rate"]

TRANSCENDENTAL_FLOPS = 20
"""Operations counted for one exp, log or tanh in float32: about ten fused multiply-adds of a polynomial."""


def copy_rate(nbytes: int, device: torch.device, threads: int) -> float:
    """Bytes read and written a second by a copy that moves about `nbytes` in all."""
    size = 1 << max(12, (max(nbytes, 2) - 1).bit_length())
    return _copy_rate(size, device, threads)


@functools.cache
def _copy_rate(size: int, device: torch.device, threads: int) -> float:
    source = torch.zeros(size // 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    timer = timer_for(device)
    repeats = max(3, (1 << 26) // size)
    timer(lambda: target.copy_(source), repeats)
    return size / statistics.median(timer(lambda: target.copy_(source), repeats) for _ in range(9))


@functools.cache
def flop_rate(device: torch.device, threads: int) -> float:
    """Float32 operations a second of a large matrix product, a fused multiply-add counted as two."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.ones(n, n, device=device)
    out = torch.empty_like(a)
    timer = timer_for(device)
    timer(lambda: torch.mm(a, a, out=out), 3)
    return 2.0 * n**3 / statistics.median(timer(lambda: torch.mm(a, a, out=out), 2) for _ in range(9))
