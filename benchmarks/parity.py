"""Parity: flows trained here and with peers from the same weights, on the same batches, in a fraction of the time.

    python -m benchmarks.parity --out docs/

Each pair is one architecture with one set of weights, in genfast and in another library. The two are trained in turn, a
step of each, so that both meet the same machine; a page is written with their held-out log-likelihoods and step times.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genfast import data
from genfast.flows import MAF, AffineCoupling, Flow, RealNVP, ResidualMLP, SplineCoupling, StandardNormal
from genfast.flows._transform import Transform

from . import machine
from .baselines import peer
from .timing import Options

PLANES = ("moons", "rings", "pinwheel", "checkerboard")
DIM, TRAINING, HELD_OUT = 2 * len(PLANES), 20_000, 10_000
LAYERS, HIDDEN, BINS, BOUND = 6, 64, 8, 5.0
BATCH, RATE, SEEDS, WARM_UP, EXACT_STEPS = 512, 1e-3, (0, 1, 2), 10, 100
SAME = 1e-4
"""Log-densities of loaded weights agree to this, relative to their size."""

PAGE = """# The same training, here and with peers

RealNVP, MAF and NSF, trained here and with another library from the same weights on the same batches. They reach the
same held-out log-likelihood: what differs is the time.

{table}

{verdict}

- **Data** have {dim} dimensions: {planes} of `genfast.data` side by side, mixed by a fixed
  rotation; {training:,} points to train on, and {held_out:,} others held out. Before training, log-likelihoods are
  between {before}.
- **Training**: {steps} steps of fused Adam (rate {rate:g}, falling to 0 along a cosine) on batches of {batch},
  {seeds} seeds. A seed draws the peer's weights, which are loaded into the flow here, and the batches of both.
- **Log-likelihood** is the mean over the held-out points in nats, then over the seeds, ± the standard deviation between
  seeds: the noise. **Difference** is the largest, over the seeds, between the two flows of one seed; **in float64** is
  that of the first seed after {exact_steps} steps in float64. It shows that both compute the same. Training
  of the splines multiplies a difference about tenfold every 20 steps, so that long runs part in any arithmetic.
- **Step time** is the median of all seeds' steps: gradients to zero, loss, backward and Adam, a step of each in turn.
  **Faster by** is the median of the ratios within a turn, and **time** its inverse: the fraction of the peer's.
- **Architectures**: {layers} layers, {hidden} hidden units. RealNVP and NSF are couplings, with networks of two hidden
  layers (nflows': of two residual blocks), NSF with {bins} bins. normflows' RealNVP has the scale exp, zuko's its soft
  clip. The networks of couplings are PyTorch's here and there, and most of RealNVP's step is theirs.

Measured {date} on {processor}, {threads} threads, torch {torch}, instruction set {instruction_set}.
{disturbed}
```bash
python -m benchmarks.parity --out docs/
```
"""

LogProb = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """The same flow here and there."""

    ours: Flow
    theirs: nn.Module
    log_prob: LogProb
    """Of theirs."""

    def double(self) -> "Pair":
        """The same in float64."""
        return Pair(self.ours.double(), self.theirs.double(), self.log_prob)


@dataclass(frozen=True)
class Run:
    """One seed's training of a pair: log-likelihoods of genfast and the peer, and seconds of each step."""

    before: float
    likelihoods: tuple[float, float]
    seconds: list[tuple[float, float]]


class Turned(Transform):
    """A transform in the other direction: nflows' and zuko's couplings map data to noise by their forward formula."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the inverse."""
        return self.transform.inverse(z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the forward map."""
        return self.transform.forward(x, context)


class Scaled(nn.Module):
    """A conditioner of splines whose widths and heights are divided by sqrt(hidden), as in nflows."""

    factor: Tensor

    def __init__(self, net: nn.Module, n_moved: int) -> None:
        super().__init__()
        self.net = net
        row = torch.ones(3 * BINS - 1)
        row[: 2 * BINS] = HIDDEN**-0.5
        self.register_buffer("factor", row.repeat(n_moved))

    def forward(self, x: Tensor) -> Tensor:
        """The network's output, scaled."""
        out: Tensor = self.net(x) * self.factor
        return out


def linears(module: nn.Module) -> list[Any]:
    """The linear layers, in the order in which they are applied."""
    return [m for m in module.modules() if getattr(m, "weight", None) is not None]


@torch.no_grad()
def load(ours: nn.Module, theirs: nn.Module, *, interleaved: bool = False) -> None:
    """The peer's weights; interleaved: its last layer gives shift, scale, shift, ..., ours all shifts, then scales."""
    mine, others = linears(ours), linears(theirs)
    for own, other in zip(mine, others, strict=True):
        weight, bias = other.weight, other.bias
        if interleaved and other is others[-1]:
            weight, bias = (torch.cat([t[0::2], t[1::2]]) for t in (weight, bias))
        own.weight.copy_(weight)
        own.bias.copy_(bias)


def normflows_realnvp(normflows: ModuleType) -> Pair:
    """normflows' affine couplings of halves that swap."""
    layers = []
    for _ in range(LAYERS):
        net = normflows.nets.MLP([DIM // 2, HIDDEN, HIDDEN, DIM])
        layers += [normflows.flows.AffineCouplingBlock(net), normflows.flows.Permute(DIM, mode="swap")]
    theirs = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(DIM, trainable=False), layers)
    ours = RealNVP(DIM, LAYERS, (HIDDEN, HIDDEN), scale_map="exp")
    for layer, block in zip(ours.transforms, layers[::2], strict=True):
        load(layer.conditioner, block, interleaved=True)
    return Pair(ours, theirs, theirs.log_prob)


def zuko_couplings(zuko: ModuleType, *, spline: bool) -> Pair:
    """zuko's couplings, of which RealNVP has affine maps; with splines they are the NSF of couplings."""
    options: dict[str, Any] = {}
    if spline:
        options = {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": [(BINS,), (BINS,), (BINS - 1,)]}
    theirs = zuko.flows.RealNVP(DIM, transforms=LAYERS, hidden_features=(HIDDEN, HIDDEN), **options)
    layers = []
    for coupling in theirs.transform.transforms:
        moved, hidden = ~coupling.mask, (HIDDEN, HIDDEN)
        layer: SplineCoupling | AffineCoupling
        if spline:
            layer = SplineCoupling(moved, hidden=hidden, n_bins=BINS, bound=BOUND, dialect="zuko")
        else:
            layer = AffineCoupling(moved, hidden=hidden, scale_map="softclip")
        load(layer.conditioner, coupling.hyper, interleaved=not spline)
        layers.append(Turned(layer))
    return Pair(Flow(StandardNormal(DIM), layers[::-1]), theirs, lambda x: theirs().log_prob(x))


def zuko_maf(zuko: ModuleType) -> Pair:
    """zuko's MAF, of two hidden layers."""
    theirs = zuko.flows.MAF(DIM, transforms=LAYERS, hidden_features=(HIDDEN, HIDDEN))
    ours = MAF(DIM, LAYERS, (HIDDEN, HIDDEN))
    for layer, transform in zip(reversed(ours.transforms), theirs.transform.transforms, strict=True):
        masked = [m for m in transform.hyper if hasattr(m, "mask")]
        degrees = [transform.order.tolist()]
        for own, other in zip(layer.conditioner.linears, masked, strict=True):
            own.load_state_dict({"weight": other.weight, "bias": other.bias})
            before = torch.tensor(degrees[-1])
            degrees.append([int(before[row].max()) if row.any() else -1 for row in other.mask])
        layer.conditioner.degrees.copy_(torch.tensor([d + 1 for part in degrees[:-1] for d in part]))
    return Pair(ours, theirs, lambda x: theirs().log_prob(x))


def nflows_nsf(nflows: ModuleType) -> Pair:
    """nflows' spline couplings of the even and the odd dimensions in turn."""
    names = ("transforms", "nn.nets", "flows", "distributions")
    transforms, nets, flows, distributions = (import_module(f"{nflows.__name__}.{name}") for name in names)
    made, layers = [], []
    for i in range(LAYERS):
        mask = torch.arange(DIM) % 2 == i % 2
        theirs = transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask.int(), lambda n, m: nets.ResidualNet(n, m, HIDDEN, num_blocks=2), BINS, tails="linear",
            tail_bound=BOUND,
        )  # fmt: skip
        n_moved = int(mask.sum())
        net = ResidualMLP(DIM - n_moved, HIDDEN, n_moved * (3 * BINS - 1), n_blocks=2)
        load(net, theirs.transform_net)
        made.append(theirs)
        layers.append(Turned(SplineCoupling(mask, Scaled(net, n_moved), n_bins=BINS, bound=BOUND)))
    flow = flows.Flow(transforms.CompositeTransform(made), distributions.StandardNormal([DIM]))
    return Pair(Flow(StandardNormal(DIM), layers[::-1]), flow, flow.log_prob)


PAIRS: dict[tuple[str, str], Callable[[ModuleType], Pair]] = {
    ("RealNVP", "normflows"): normflows_realnvp,
    ("RealNVP", "zuko"): lambda zuko: zuko_couplings(zuko, spline=False),
    ("MAF", "zuko"): zuko_maf,
    ("NSF", "nflows"): nflows_nsf,
    ("NSF", "zuko"): lambda zuko: zuko_couplings(zuko, spline=True),
}


def build(model: str, library: ModuleType) -> Callable[[int], Pair]:
    """The pair of a seed, whose flows are checked to be the same."""

    def made(seed: int) -> Pair:
        torch.manual_seed(seed)
        pair = PAIRS[model, library.__name__](library)
        x = 2 * torch.randn(1000, DIM)  # beyond the splines' bounds too
        with torch.no_grad():
            mine, other = pair.ours.log_prob(x), pair.log_prob(x)
        apart = float(((mine - other).abs() / (1 + other.abs())).max())
        if not apart < SAME:
            raise RuntimeError(f"{model}, {library.__name__}: log-densities of the same weights differ by {apart:.1e}")
        return pair

    return made


def points() -> tuple[Tensor, Tensor]:
    """Those to train on, and those held out."""
    n = TRAINING + HELD_OUT
    x = torch.cat([data.load(name, n=n, seed=seed).x for seed, name in enumerate(PLANES)], -1)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM)))
    x = (x - x.mean(0)) @ torch.from_numpy(rotation.astype(np.float32))
    return x[:TRAINING], x[TRAINING:]


def stepper(module: nn.Module, log_prob: LogProb) -> Callable[[Tensor, float], float]:
    """A training step on a batch, at a rate, that returns its seconds."""
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE, fused=True)

    def step(x: Tensor, rate: float) -> float:
        optimizer.param_groups[0]["lr"] = rate
        started = time.perf_counter()
        optimizer.zero_grad()
        (-log_prob(x).mean()).backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


@torch.no_grad()
def likelihood(log_prob: LogProb, x: Tensor) -> float:
    """The mean log-density in nats."""
    return float(log_prob(x).double().mean())


def train(pair: Pair, training: Tensor, held_out: Tensor, steps: int, seed: int) -> Run:
    """Both flows on the same batches, a step of each in turn; who is first alternates."""
    before = likelihood(pair.ours.log_prob, held_out)
    mine, other = stepper(pair.ours, pair.ours.log_prob), stepper(pair.theirs, pair.log_prob)
    generator = torch.Generator().manual_seed(seed)
    seconds = []
    for i in range(steps):
        x = training[torch.randint(len(training), (BATCH,), generator=generator)]
        rate = 0.5 * RATE * (1 + math.cos(math.pi * i / steps))
        if i % 2 == 0:
            seconds.append((mine(x, rate), other(x, rate)))
        else:
            late = other(x, rate)
            seconds.append((mine(x, rate), late))
    after = likelihood(pair.ours.log_prob, held_out), likelihood(pair.log_prob, held_out)
    return Run(before, after, seconds)


@dataclass(frozen=True)
class Row:
    """A pair's runs of all seeds, summed up. Pairs of numbers are those of genfast and of the peer."""

    model: str
    library: str
    before: list[float]
    means: tuple[float, float]
    noise: tuple[float, float]
    difference: float
    exact: float
    """The difference of seed 0 after a shorter training in float64."""
    milliseconds: tuple[float, float]
    ratio: float

    @property
    def within_noise(self) -> bool:
        """Whether the flows of one seed are closer than those of two seeds."""
        return self.difference < min(self.noise)


def summary(model: str, library: str, runs: Sequence[Run], exact: Run) -> Row:
    """The row of a table, of the runs of all seeds, and one in float64."""
    mine, other = zip(*(r.likelihoods for r in runs), strict=True)
    timed = [pair for r in runs for pair in (r.seconds[WARM_UP:] or r.seconds)]
    times = [1e3 * statistics.median(t) for t in zip(*timed, strict=True)]
    return Row(
        model,
        library,
        [r.before for r in runs],
        (statistics.fmean(mine), statistics.fmean(other)),
        (statistics.stdev(mine), statistics.stdev(other)),
        max(abs(a - b) for a, b in zip(mine, other, strict=True)),
        abs(exact.likelihoods[0] - exact.likelihoods[1]),
        (times[0], times[1]),
        statistics.median(theirs / ours for ours, theirs in timed),
    )


def table(rows: Sequence[Row]) -> str:
    """The rows in markdown."""
    lines = [
        "| model | peer | log-likelihood here | the peer's | difference | in float64 | step here | the peer's "
        "| faster by | time |",
        "|---" * 10 + "|",
    ]
    for r in rows:
        likelihoods = [f"{m:.3f} ± {n:.3f}" for m, n in zip(r.means, r.noise, strict=True)]
        times = [f"{t:.2f} ms" for t in r.milliseconds]
        cells = [r.model, r.library, *likelihoods, f"{r.difference:.1g}", _small(r.exact), *times, f"{r.ratio:.1f}x"]
        lines.append("| " + " | ".join([*cells, f"{1 / r.ratio:.0%}"]) + " |")
    return "\n".join(lines)


def verdict(rows: Sequence[Row]) -> str:
    """What the table says."""
    beyond = [f"{r.model} of {r.library}" for r in rows if not r.within_noise]
    if beyond:
        return f"**Not within noise**: {', '.join(beyond)}."
    percent = max(1, math.ceil(100 * max(r.difference / min(r.noise) for r in rows)))
    said = f"All differences are within noise: at most {percent}% of the standard deviation between seeds."
    exact = max(r.exact for r in rows)
    if exact < SAME:
        said += f"\nThey are rounding, which training amplifies: in float64 the largest is {_small(exact)}."
    return said


def _small(x: float) -> str:
    """One digit, of what a mean of float64 resolves."""
    return "< 1e-14" if x < 1e-14 else f"{x:.0e}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write parity.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the page")
    parser.add_argument("--steps", type=int, default=400, help="updates of each flow")
    parser.add_argument("--threads", type=int, default=2, help="threads of both")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    state = machine.state(Options(threads=options.threads))
    warning = machine.warning(state)
    if warning:
        print(warning)
    training, held_out = points()
    wide = training.double(), held_out.double()
    rows = []
    for model, name in PAIRS:
        library = peer(name)
        if library is None:
            continue
        made = build(model, library)
        runs = [train(made(seed), training, held_out, options.steps, seed) for seed in SEEDS]
        exact = train(made(SEEDS[0]).double(), *wide, min(options.steps, EXACT_STEPS), SEEDS[0])
        rows.append(summary(model, name, runs, exact))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    if not rows:
        raise SystemExit("no peer is installed: pip install 'genfast[bench]'")
    before = [b for r in rows for b in r.before]
    page = PAGE.format(
        table=table(rows), verdict=verdict(rows), dim=DIM, planes=", ".join(PLANES[:-1]) + " and " + PLANES[-1],
        training=TRAINING, held_out=HELD_OUT, before=f"{min(before):.1f} and {max(before):.1f}", steps=options.steps,
        exact_steps=min(options.steps, EXACT_STEPS), rate=RATE, batch=BATCH, seeds=len(SEEDS), layers=LAYERS,
        hidden=HIDDEN, bins=BINS, date=state["date"][:10], processor=state["processor"], threads=options.threads,
        torch=state["torch"], instruction_set=state["instruction_set"],
        disturbed="Other processes were at work: ratios hold roughly, times do not.\n" if warning else "",
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "parity.md").write_text(page, encoding="utf-8")
    print(f"wrote parity.md to {options.out}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
