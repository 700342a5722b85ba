"""Clocks: of the host for a CPU and for small calls, of the device for a GPU."""

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["CpuTimer", "CudaHostTimer", "CudaTimer", "Timer", "timer_for"]


class CpuTimer:
    """Wall-clock time of a number of calls."""

    def __call__(self, run: Callable[[], object], repeats: int) -> float:
        """Seconds a call."""
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        self.wait()
        return (time.perf_counter() - start) / repeats

    def wait(self) -> None:
        """Nothing runs behind our back on a CPU."""


class CudaHostTimer(CpuTimer):
    """Wall-clock time of a number of calls, until the device has done them all."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def wait(self) -> None:
        """Until the device has done all it was given."""
        torch.cuda.synchronize(self._device)


class CudaTimer:
    """Device time of a number of calls, each with a cold L2 cache."""

    def __init__(self, device: torch.device) -> None:
        size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 64 << 20)
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], object], repeats: int) -> float:
        """Seconds a call, the median."""
        events = []
        for _ in range(repeats):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._flush.zero_()
            start.record()
            run()
            end.record()
            events.append((start, end))
        self.wait()
        return statistics.median(start.elapsed_time(end) for start, end in events) * 1e-3

    def wait(self) -> None:
        """Until the device has done all it was given."""
        torch.cuda.synchronize(self._flush.device)


Timer = CpuTimer | CudaHostTimer | CudaTimer


def timer_for(device: torch.device, *, host: bool = False) -> Timer:
    """The timer of a device; on a GPU the device's clock, or the host's."""
    if device.type != "cuda":
        return CpuTimer()
    return CudaHostTimer(device) if host else CudaTimer(device)
