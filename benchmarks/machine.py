"""The state of the machine at the time of a measurement."""

import datetime
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import genfast
from genfast import _native

from .timing import Options

__all__ = ["busy_fraction", "state", "warning"]

BUSY = 0.15
"""Share of the processor that others may use before a measurement is called disturbed."""


def busy_fraction(seconds: float = 0.5) -> float | None:
    """Share of all processor time that is in use while this process sleeps; None where the system does not tell."""

    def ticks() -> tuple[int, int]:
        fields = [int(x) for x in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
        return sum(fields), fields[3] + fields[4]

    try:
        total, idle = ticks()
        time.sleep(seconds)
        total_later, idle_later = ticks()
    except (OSError, ValueError, IndexError):
        return None
    return 1.0 - (idle_later - idle) / max(total_later - total, 1)


def state(options: Options) -> dict[str, Any]:
    """Everything a reader needs to judge or repeat the numbers."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "genfast": genfast.__version__,
        "commit": _commit(),
        "instruction_set": _native.load().build_info()["cpu_target"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "device": str(options.device),
        "gpu": torch.cuda.get_device_name(options.device) if options.cuda else None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "busy": busy_fraction(),
        "quick": options.quick,
    }


def warning(machine: dict[str, Any]) -> str:
    """A line to print where others use the machine, or an empty string."""
    busy = machine["busy"]
    if busy is None or busy <= BUSY:
        return ""
    return (
        f"warning: other processes use {busy:.0%} of this machine (load average {machine['load_average']}): "
        "ratios are taken within a round and hold roughly, times do not"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
