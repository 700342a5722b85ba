"""Runs benchmarks case by case: a case that fails, hangs or ends the process costs its own result and no other."""

import collections
import contextlib
import dataclasses
import faulthandler
import importlib
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch

from genfast._optional import MissingPackageError

from . import report
from .journal import Journal
from .timing import Case, Options, Result, measure

__all__ = ["LOST", "USAGE", "Limits", "available", "empty_compile_cache", "module", "run", "survive"]

USAGE, LOST = 2, 3
"""Exit codes: of wrong arguments, and of a run that needs a fresh process."""


def available() -> list[str]:
    """Names of the benchmarks: the files bench_<name>.py beside this one."""
    folder = str(Path(__file__).parent)
    return sorted(m.name.removeprefix("bench_") for m in pkgutil.iter_modules([folder]) if m.name.startswith("bench_"))


def module(name: str) -> ModuleType:
    """The file of a benchmark."""
    return importlib.import_module(f".bench_{name}", __package__)


@dataclasses.dataclass
class Limits:
    """Seconds for the whole run and for one case; 0 is no limit."""

    seconds: float = 0
    case: float = 0
    started: float = dataclasses.field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds until no further case may begin."""
        return max(0.0, self.seconds - (time.monotonic() - self.started)) if self.seconds > 0 else float("inf")

    @contextlib.contextmanager
    def of_case(self) -> Iterator[None]:
        """A case that takes longer, or hangs, ends the process with a traceback."""
        if self.case > 0:
            faulthandler.dump_traceback_later(self.case, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


@dataclasses.dataclass
class Benchmark:
    """The cases of one file, and how far it got."""

    name: str
    cases: Iterator[Case]
    index: int = 0
    over: bool = False


@contextlib.contextmanager
def empty_compile_cache() -> Iterator[None]:
    """A first call of torch.compile is timed as a user meets it, so without what an earlier run left."""
    name = "TORCHINDUCTOR_CACHE_DIR"  # torch sets it too, to a folder that outlives the process
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="genfast-bench-") as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def run(names: Sequence[str], options: Options, journal: Journal, limits: Limits) -> bool:
    """Measures the named benchmarks, printing each case as it is done; False where the device was lost."""
    # What the first use of torch costs is nobody's first call.
    x = torch.ones(64, 64, device=options.device, requires_grad=True)
    torch.autograd.grad((x @ x).exp().sum(), [x])
    waiting = collections.deque(
        Benchmark(name, module(name).cases(options)) for name in names if not journal.ended(name)
    )
    while waiting and limits.left() > 0:
        benchmark = waiting.popleft()
        with limits.of_case():
            result = step(benchmark, options, journal)
        if result is not None:
            print(report.format_case(result), flush=True)
            if result.problem and device_lost(options.device):
                return False
        if not benchmark.over:
            # With little time, a case of each benchmark comes before the second of any.
            (waiting.append if limits.seconds else waiting.appendleft)(benchmark)
    if waiting:
        print(
            f"NO TIME LEFT after {limits.seconds:.0f} s for all cases of {', '.join(sorted(b.name for b in waiting))}"
        )
    return True


def step(benchmark: Benchmark, options: Options, journal: Journal) -> Result | None:
    """Measures the next case; its result, if there is a case and it has none from before."""
    name, index = benchmark.name, benchmark.index
    benchmark.index += 1
    known = journal.has(name, index)
    if not known:
        journal.prepare(name, index)
    try:
        case = next(benchmark.cases, None)
    except MissingPackageError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        benchmark.over = True
        journal.end(name, index)
        return None
    except Exception as error:  # noqa: BLE001 (what fails here is a result)
        result = failed(name, f"case {index + 1}", error)
        benchmark.over = True  # a generator that raised is
    else:
        if case is None:
            benchmark.over = True
            journal.end(name, index)
            return None
        if known:
            return None
        journal.measure(name, index, case)
        try:
            result = measure(case, options)
        except Exception as error:  # noqa: BLE001
            result = failed(case.op, case.label, error)
    journal.done(name, index, result)
    if benchmark.over:
        journal.end(name, index + 1)
    return result


def failed(op: str, label: str, error: Exception) -> Result:
    """The result of a case that raised."""
    traceback.print_exception(error)
    return Result(op, label, [], problem=" ".join(f"{type(error).__name__}: {error}".split())[:500])


def device_lost(device: torch.device) -> bool:
    """Whether a GPU refuses all further work of this process, as after an illegal access."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def survive(path: Path, limits: Limits) -> tuple[int, bool]:
    """Runs this command in a process of its own, and again behind a case that ended it; each goes on with the journal.

    Returns:
        The last exit code, and whether there is nothing to tell: that run came to its end, or none has begun.
    """
    command = ["--resume" if word == "--survive" else word for word in sys.orig_argv]
    measured = -1
    while True:
        rest = ["--time-limit", f"{max(limits.left(), 0.001):.3f}"] if limits.seconds else []
        code = subprocess.run([*command, *rest], check=False).returncode
        journal = Journal(path, "read")
        if journal.finished:
            return code, True
        stuck = len(journal.results()) == measured
        measured = len(journal.results())
        if code == USAGE or stuck or limits.left() == 0:
            print(f"the benchmarks ended with {code}", file=sys.stderr)
            return code or 1, not journal.state
        print(f"the benchmarks ended with {code}; going on behind that case", file=sys.stderr, flush=True)
