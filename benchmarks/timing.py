"""Times the same work done by several contenders.

What makes a comparison fair, and is done here for every case:

- The outputs of all contenders are compared first; where they disagree nothing is timed.
- All run in one process on equal threads, after a warm-up, interleaved: a round measures each contender once, and the
  order rotates from round to round. A busy moment of the machine so hits all of them.
- Reported are medians with quartiles. A ratio is taken within a round, and the median of those ratios reported.
- On CUDA, events time the device, and a write larger than the L2 cache precedes each measured call; small calls, where
  the host is what takes time, are timed by its clock.
- The first call, where compilers and caches do their work, is timed apart.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .floor import copy_rate, flop_rate
from .memory import saved_bytes
from .timers import Timer, timer_for

__all__ = ["RAISED", "Case", "Contender", "Options", "Quartiles", "Result", "Row", "forward_backward", "measure"]


RAISED = "raised "
"""How the problem of a contender begins that raised an error instead of returning something else."""


@dataclass(frozen=True)
class Options:
    """What the user asked for; every benchmark builds its cases from it."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 2
    quick: bool = False
    compile: bool = True
    seed: int = 0

    @property
    def cuda(self) -> bool:
        """Whether the work runs on a GPU."""
        return self.device.type == "cuda"

    @property
    def seconds(self) -> float:
        """Time to spend measuring one case."""
        return 1.0 if self.quick else 6.0

    @property
    def min_rounds(self) -> int:
        """Least number of rounds, however long one takes."""
        return 5 if self.quick else 15

    @property
    def slice_seconds(self) -> float:
        """Least duration of one measurement: a fast contender is called several times in it."""
        return 0.004 if self.quick else 0.02

    def generator(self) -> torch.Generator:
        """A generator on the device, seeded the same for every case."""
        return torch.Generator(self.device).manual_seed(self.seed)


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    name: what the table calls it: "genfast", "eager", "torch.compile", or a library.
    run: does the whole work once and returns the tensors by which the contenders are compared.
    target: genfast is meant to be at least this many times faster; None where nothing is promised.
    forward: the forward pass alone, returning outputs with their graph; given where the bytes that a
        forward pass keeps for its backward are reported too.
    saved_target: genfast is meant to keep at most 1 / saved_target of this contender's bytes.
    once: too slow to repeat (a whole training run): measured with one call a round, and few rounds.
    prepare: called, untimed, before every measurement; needs `once`.
    compared: returns the tensors by which the contenders are compared where one run is too random to.
    """

    name: str
    run: Callable[[], Sequence[torch.Tensor]]
    target: float | None = None
    forward: Callable[[], object] | None = None
    saved_target: float | None = None
    once: bool = False
    prepare: Callable[[], object] | None = None
    compared: Callable[[], Sequence[torch.Tensor]] | None = None


@dataclass(frozen=True)
class Case:
    """One piece of work and those who do it; contenders[0] is genfast's.

    op, label: the name of the function and the size and direction of the work, for people.
    bytes_moved, flops: the least that any implementation must move and compute; 0 where not stated.
    small: what counts is the whole cost of a call, so a measurement is many calls in a row, by the host's clock.
    tolerance: largest allowed difference of two outputs, relative to the largest magnitude of the output.
    compare: replaces that comparison where outputs are random: takes the outputs of genfast's contender and of
        another, returns what is wrong, or "" where they agree.
    inputs: tensors that are not counted as saved by a forward pass, since the caller holds them anyway.
    """

    op: str
    label: str
    contenders: Sequence[Contender]
    bytes_moved: int = 0
    flops: int = 0
    small: bool = False
    tolerance: float = 1e-4
    compare: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], str] | None = None
    inputs: Sequence[torch.Tensor] = ()


@dataclass(frozen=True)
class Quartiles:
    """Median with the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles":
        """The quartiles of some values; of a single one, that value."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Row:
    """What was measured of one contender. speedup is its time over genfast's, so above 1 genfast is faster."""

    name: str
    first_call: float
    seconds: Quartiles | None = None
    speedup: Quartiles | None = None
    target: float | None = None
    saved: int | None = None
    saved_target: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class Result:
    """What was measured of one case.

    floor is the time below which no implementation gets on this machine; problem is why there are no rows.
    """

    op: str
    label: str
    rows: Sequence[Row]
    rounds: int = 0
    floor: float | None = None
    floor_kind: str = ""
    problem: str = ""

    @property
    def agrees(self) -> bool:
        """Whether all contenders were measured and returned the same."""
        return not self.problem and not any(row.problem for row in self.rows)

    @classmethod
    def of(cls, document: dict[str, Any]) -> "Result":
        """The result that `dataclasses.asdict` made this of."""

        def quartiles(value: dict[str, float] | None) -> Quartiles | None:
            return None if value is None else Quartiles(**value)

        rows = [
            Row(**{**row, "seconds": quartiles(row["seconds"]), "speedup": quartiles(row["speedup"])})
            for row in document["rows"]
        ]
        return cls(**{**document, "rows": rows})


def forward_backward(
    function: Callable[..., Sequence[torch.Tensor]],
    inputs: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
) -> Callable[[], Sequence[torch.Tensor]]:
    """A `run` for a Contender: the function, then the gradients of every input that requires one."""
    wanted = [t for t in inputs if t.requires_grad]

    def run() -> Sequence[torch.Tensor]:
        outputs = function(*inputs)
        return (*(t.detach() for t in outputs), *torch.autograd.grad(outputs, wanted, grads))

    return run


def difference(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], tolerance: float) -> str:
    """What is wrong with `theirs` if `ours` is right, or an empty string."""
    if len(ours) != len(theirs):
        return f"returned {len(theirs)} tensors, genfast {len(ours)}"
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape:
            return f"output {i} has shape {tuple(b.shape)}, genfast's {tuple(a.shape)}"
        if a.numel() == 0:
            continue
        x, y = a.double(), b.double()
        scale = max(x.abs().max().item(), y.abs().max().item(), 1e-30)
        error = (x - y).abs().max().item() / scale
        if not error <= tolerance:
            return f"output {i} differs from genfast's by {error:.2g} of its scale, {tolerance:.2g} is allowed"
    return ""


def first_calls(case: Case, timer: Timer) -> list[Row]:
    """Calls each contender for the first time, and compares what they return. A rival that raises has a problem."""
    rows: list[Row] = []
    ours: Sequence[torch.Tensor] = ()
    for contender in case.contenders:
        problem = ""
        start = time.perf_counter()
        try:
            if contender.prepare is not None:
                contender.prepare()
                start = time.perf_counter()
            outputs = contender.run()
            timer.wait()
            seconds = time.perf_counter() - start
            if contender.compared is not None:
                outputs = contender.compared()
            if not rows:
                ours = outputs
            else:
                problem = (case.compare or _within(case.tolerance))(ours, outputs)
        except Exception as error:
            if not rows:
                raise
            seconds = time.perf_counter() - start
            problem = " ".join(f"{RAISED}{type(error).__name__}: {error}".split())[:500]
        rows.append(Row(contender.name, seconds, problem=problem))
    return rows


def _within(tolerance: float) -> Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], str]:
    return lambda ours, theirs: difference(ours, theirs, tolerance)


def measure(case: Case, options: Options) -> Result:
    """Compares, then times the contenders of one case; those that raised are not timed."""
    timer = timer_for(options.device, host=case.small)
    rows = first_calls(case, timer)
    if any(row.problem and not row.problem.startswith(RAISED) for row in rows):
        return Result(case.op, case.label, rows)

    fit = [i for i, row in enumerate(rows) if not row.problem]
    contenders = [case.contenders[i] for i in fit]
    repeats = []
    for contender in contenders:
        if contender.once:
            repeats.append(1)
            continue
        timer(contender.run, 3)
        seconds = timer(contender.run, 1)
        if seconds < options.slice_seconds / 20:
            seconds = timer(contender.run, 20)  # a single short call says little
        repeats.append(max(1, math.ceil(options.slice_seconds / seconds)))

    times: list[list[float]] = [[] for _ in contenders]
    min_rounds = 3 if any(contender.once for contender in contenders) else options.min_rounds
    collecting = gc.isenabled()
    start = time.perf_counter()
    while len(times[0]) < min_rounds or time.perf_counter() - start < options.seconds:
        shift = len(times[0]) % len(contenders)
        gc.collect()
        gc.disable()
        try:
            for i in [*range(shift, len(contenders)), *range(shift)]:
                prepare = contenders[i].prepare
                if prepare is not None:
                    prepare()
                times[i].append(timer(contenders[i].run, repeats[i]))
        finally:
            if collecting:
                gc.enable()

    for i, contender, mine in zip(fit, contenders, times, strict=True):
        speedup = Quartiles.of([t / ours for t, ours in zip(mine, times[0], strict=True)])
        saved = None if contender.forward is None else saved_bytes(contender.forward, case.inputs)
        rows[i] = Row(
            contender.name,
            rows[i].first_call,
            seconds=Quartiles.of(mine),
            speedup=speedup if i > 0 else None,
            target=contender.target,
            saved=saved,
            saved_target=contender.saved_target,
        )
    floor, kind = _floor(case, options)
    return Result(case.op, case.label, rows, rounds=len(times[0]), floor=floor, floor_kind=kind)


def _floor(case: Case, options: Options) -> tuple[float | None, str]:
    machine = options.device, options.threads
    candidates = []
    if case.bytes_moved:
        candidates.append((case.bytes_moved / copy_rate(case.bytes_moved, *machine), "memory"))
    if case.flops:
        candidates.append((case.flops / flop_rate(*machine), "arithmetic"))
    return max(candidates, default=(None, ""), key=lambda pair: pair[0] or 0.0)
