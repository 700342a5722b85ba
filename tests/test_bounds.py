"""No kernel touches memory beside its tensors: every small case between guard pages (see guarded.py)."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CPU_TARGETS

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize("target", CPU_TARGETS)
def test_stays_inside_its_tensors(target, side):
    done = subprocess.run(
        [sys.executable, "-m", "tests.guarded", target, side],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines() or ["(nothing)"]
    assert lines[-1] == "done", f"exit code {done.returncode} at: {lines[-1]}\n{done.stderr}"
    assert done.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize(("side", "offset"), [("end", 20), ("start", -1)])
def test_guard_pages_stop_the_process(side, offset):
    code = (
        "import ctypes, torch; from tests.guarded import guarded\n"
        f"x = guarded((5,), torch.float32, {side!r}).zero_(); print(x.sum().item(), flush=True)\n"
        f"ctypes.string_at(x.data_ptr() + {offset}, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "0.0\n"
    assert done.returncode == -signal.SIGSEGV
