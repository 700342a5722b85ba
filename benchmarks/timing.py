"""Times the same work done by several contenders.

What makes a comparison fair, and is done here for every case:

- The outputs of all contenders are compared first; where they disagree nothing is timed.
- All run in one process on equal threads, after a warm-up, interleaved: a round measures each contender once, and the
  order rotates from round to round. A busy moment of the machine so hits all of them.
- Reported are medians with quartiles. A ratio is taken within a round, and the median of those ratios reported.
- On CUDA, events time the device, and a write larger than the L2 cache precedes each measured call.
- The first call, where compilers and caches do their work, is timed apart.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .memory import saved_bytes

__all__ = ["Case", "Contender", "Options", "Quartiles", "Result", "Row", "forward_backward", "measure", "timer_for"]


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
    compiled: goes through torch.compile (left out by --no-compile).
    forward: the forward pass alone, returning outputs with their graph; given where the bytes that a
        forward pass keeps for its backward are reported too.
    saved_target: genfast is meant to keep at most 1 / saved_target of this contender's bytes.
    once: too slow to repeat (a whole training run): measured with one call a round, and few rounds.
    prepare: called, untimed, before every measurement; needs `once`.
    """

    name: str
    run: Callable[[], Sequence[torch.Tensor]]
    target: float | None = None
    compiled: bool = False
    forward: Callable[[], object] | None = None
    saved_target: float | None = None
    once: bool = False
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True)
class Case:
    """One piece of work and those who do it; contenders[0] is genfast's.

    op, label: the name of the function and the size and direction of the work, for people.
    bytes_moved, flops: the least that any implementation must move and compute; 0 where not stated.
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
    """What was measured of one case. floor is the time below which no implementation gets on this machine."""

    op: str
    label: str
    rows: Sequence[Row]
    rounds: int = 0
    floor: float | None = None
    floor_kind: str = ""

    @property
    def agrees(self) -> bool:
        """Whether all contenders returned the same."""
        return not any(row.problem for row in self.rows)


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


class CpuTimer:
    """Wall-clock time of a number of calls."""

    def __call__(self, run: Callable[[], object], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats

    def wait(self) -> None:
        """Nothing runs behind our back on a CPU."""


class CudaTimer:
    """Device time of a number of calls, each with a cold L2 cache."""

    def __init__(self, device: torch.device) -> None:
        size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 64 << 20)
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], object], repeats: int) -> float:
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
        torch.cuda.synchronize(self._flush.device)


Timer = CpuTimer | CudaTimer


def timer_for(device: torch.device) -> Timer:
    """The timer of a device."""
    return CudaTimer(device) if device.type == "cuda" else CpuTimer()


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


def first_calls(case: Case, timer: Timer) -> tuple[list[Row], bool]:
    """Calls each contender for the first time, and compares what they return."""
    rows: list[Row] = []
    ours: Sequence[torch.Tensor] = ()
    for contender in case.contenders:
        if contender.prepare is not None:
            contender.prepare()
        start = time.perf_counter()
        outputs = contender.run()
        timer.wait()
        seconds = time.perf_counter() - start
        problem = ""
        if not rows:
            ours = outputs
        elif case.compare is not None:
            problem = case.compare(ours, outputs)
        else:
            problem = difference(ours, outputs, case.tolerance)
        rows.append(Row(contender.name, seconds, problem=problem))
    return rows, not any(row.problem for row in rows)


def measure(case: Case, options: Options) -> Result:
    """Compares, then times the contenders of one case."""
    timer = timer_for(options.device)
    rows, agree = first_calls(case, timer)
    if not agree:
        return Result(case.op, case.label, rows)

    contenders = case.contenders
    repeats = []
    for contender in contenders:
        if contender.once:
            repeats.append(1)
            continue
        timer(contender.run, 3)
        repeats.append(max(1, math.ceil(options.slice_seconds / timer(contender.run, 1))))

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

    done = []
    for contender, row, mine in zip(contenders, rows, times, strict=True):
        speedup = Quartiles.of([t / ours for t, ours in zip(mine, times[0], strict=True)])
        saved = None if contender.forward is None else saved_bytes(contender.forward, case.inputs)
        done.append(
            Row(
                contender.name,
                row.first_call,
                seconds=Quartiles.of(mine),
                speedup=speedup if contender is not contenders[0] else None,
                target=contender.target,
                saved=saved,
                saved_target=contender.saved_target,
            )
        )
    floor, kind = _floor(case, options)
    return Result(case.op, case.label, done, rounds=len(times[0]), floor=floor, floor_kind=kind)


def _floor(case: Case, options: Options) -> tuple[float | None, str]:
    from .floor import copy_rate, flop_rate  # floor measures with the timers of this file

    candidates = []
    if case.bytes_moved:
        candidates.append((case.bytes_moved / copy_rate(case.bytes_moved, options), "memory"))
    if case.flops:
        candidates.append((case.flops / flop_rate(options), "arithmetic"))
    return max(candidates, default=(None, ""), key=lambda pair: pair[0] or 0.0)
