"""Boltzmann machines of MNIST, judged by their log-likelihood.

    python -m benchmarks.mnist_rbm --out docs/ --runs runs/mnist

Trains an RBM with 500 hidden units on all 60,000 images, of which each pixel is drawn anew in every batch with its grey
value as the probability of 1, and estimates the log-likelihood of the 10,000 test images (drawn once) by annealed
importance sampling from both sides. A training that was broken off goes on from its last checkpoint; `--updates` sets
another length.
"""

import argparse
import dataclasses
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genfast import data
from genfast.boltzmann import RBM, StandardizedRBM, ais_bracket
from genfast.recipes import _pictures
from genfast.reference.rbm_training import contrastive_step
from genfast.training.files import write_atomically

from .machine import state as machine_state
from .timing import Options

BATCH, CHAINS, SWEEPS, RATE, HIDDEN = 100, 100, 2, 0.1, 500
EVERY = 2000  # updates between checkpoints
PUBLISHED = -86.34

PAGE = """# An RBM of MNIST and its log-likelihood

784 binary visible and {hidden} binary hidden units, trained on the 60,000 training images of MNIST by persistent
contrastive divergence: {updates:,} updates ({epochs:.0f} passes) with batches of {batch}, {chains} chains, {sweeps}
sweeps an update, centred gradients, and a rate that falls from {rate:g} to 0 along a line. Each pixel is drawn anew in
every batch with its grey value as the probability of 1; the test images are drawn once.

| | nats |
|---|---|
| log Z, annealed importance sampling (100 runs, 14,500 temperatures) | {lower:.2f} ± {lower_error:.2f} |
| log Z, reverse annealing from 100 chains of the machine | {upper:.2f} ± {upper_error:.2f} |
| mean log-likelihood of the 10,000 test images, with the first / the second log Z | {test} |
| the same of 10,000 training images | {train} |
| published: Salakhutdinov & Murray (2008), 500 hidden units, CD-25, by the first method | {published} |

The first log Z underestimates on average, so that its log-likelihood flatters; the second one overestimates, as far as
the chains it starts from are samples of the machine. The ± of log Z are standard errors of the estimates, those of the
log-likelihoods of the mean over images.

![Samples beside test images](mnist_rbm_samples.png)

Probabilities of the pixels after {shown_sweeps:,} sweeps of chains that started at random, beside test images.

![Weights of the hidden units](mnist_rbm_filters.png)

Training took {minutes:.0f} minutes on the clock, whatever else ran. A step without centring, in one process and
interleaved with the same step in plain PyTorch (closed-form gradients in place, no autograd): {ours:.2f} ms against
{eager:.2f} ms, {ratio:.2f} times as fast. The 14,500 temperatures took {ais_seconds:.1f} s. {threads} threads,
{processor}, {instruction_set}, torch {torch}.

```bash
python -m benchmarks.mnist_rbm --out docs/ --runs runs/mnist
```
"""


@dataclasses.dataclass
class Training:
    """An RBM in training, and all that a checkpoint holds."""

    machine: StandardizedRBM
    rows: Tensor
    updates: int
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, rows: Tensor, updates: int) -> "Training":
        """An untrained machine."""
        torch.manual_seed(0)
        machine = StandardizedRBM(rows.shape[1], HIDDEN, init_std=0.01)
        machine.init_vbias(rows)
        machine.reset_chains(CHAINS)
        return cls(machine, rows, updates)

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        buffer = io.BytesIO()
        own = {"step": self.step, "seconds": self.seconds, "updates": self.updates}
        torch.save({**own, "machine": self.machine.state_dict(), "rng": torch.get_rng_state()}, buffer)
        write_atomically(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of a run of the same length."""
        saved = torch.load(path, weights_only=True)
        if saved["updates"] != self.updates:
            raise SystemExit(f"{path} is of a run of {saved['updates']} updates, not {self.updates}")
        self.machine.load_state_dict(saved["machine"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        torch.set_rng_state(saved["rng"])

    def batches(self) -> Iterator[Tensor]:
        """The batches from the current step on, binary; their order depends on the epoch alone."""
        epoch, at = divmod(self.step, len(self.rows) // BATCH)
        while True:
            order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(epoch))
            for index in order.split(BATCH)[at : len(self.rows) // BATCH]:
                yield torch.bernoulli(self.rows[index])
            epoch, at = epoch + 1, 0

    def run(self, path: Path) -> RBM:
        """Train to the end, with checkpoints."""
        optimizer = torch.optim.SGD(self.machine.parameters(), lr=RATE)
        began = time.perf_counter()
        for v in self.batches():
            if self.step == self.updates:
                break
            optimizer.param_groups[0]["lr"] = RATE * (1 - self.step / self.updates)
            self.machine.pcd_backward(v, SWEEPS)
            optimizer.step()
            self.step += 1
            if self.step % EVERY == 0 or self.step == self.updates:
                now = time.perf_counter()
                self.seconds, began = self.seconds + now - began, now
                self.machine.check_finite(self.step)
                self.save(path)
                print(f"update {self.step:,} of {self.updates:,}: {self.seconds:,.0f} s", flush=True)
        return self.machine.to_uncentered()


def step_milliseconds(machine: RBM, rows: Tensor, rounds: int = 200) -> tuple[float, float]:
    """Medians of a PCD step with plain SGD: ours, and that of plain PyTorch, in turn; each goes on from `machine`."""
    mine = RBM(*machine.W.shape)
    mine.load_state_dict(machine.state_dict())
    optimizer = torch.optim.SGD(mine.parameters(), lr=1e-3)
    theirs = tuple(p.detach().clone() for p in (machine.W, machine.vbias, machine.hbias))
    velocities = tuple(torch.zeros_like(p) for p in theirs)
    chains = machine.chains.clone()

    def ours(v: Tensor) -> None:
        mine.pcd_backward(v, SWEEPS)
        optimizer.step()

    def eager(v: Tensor) -> None:
        chains.copy_(contrastive_step(v, chains, theirs, velocities, lr=1e-3, k=SWEEPS))

    times: dict[Callable[[Tensor], None], list[float]] = {ours: [], eager: []}
    for i in range(rounds):
        v = torch.bernoulli(rows[i * BATCH % len(rows) :][:BATCH])
        for step, taken in times.items():
            began = time.perf_counter()
            step(v)
            taken.append(1e3 * (time.perf_counter() - began))
    first, second = (statistics.median(taken[rounds // 10 :]) for taken in times.values())
    return first, second


@torch.no_grad()
def evaluate(machine: RBM, rows: Tensor, test: Tensor, *, betas: int | None, sweeps: int) -> dict[str, Any]:
    """The bracket of log Z and the mean log-likelihoods of test and training images."""
    generator = torch.Generator().manual_seed(1)
    held_out = torch.bernoulli(test, generator=generator)
    seen = torch.bernoulli(rows[:: len(rows) // len(test)][: len(test)], generator=generator)
    began = time.perf_counter()
    samples = machine.sample(100, sweeps, generator=generator)
    between = time.perf_counter()
    bracket = ais_bracket(machine, samples=samples, betas=betas, base=rows, seed=2)
    found: dict[str, Any] = {"ais_seconds": (time.perf_counter() - between) / 2, "sampling_seconds": between - began}
    for name, side in (("lower", bracket.lower), ("upper", bracket.upper)):
        found |= {name: side.log_z, f"{name}_error": side.stderr, f"{name}_ess": side.ess}
    for name, v in (("test", held_out), ("train", seen)):
        free = -machine.free_energy(v).double()
        values = [float(free.mean()) - found[side] for side in ("lower", "upper")]
        found[name] = f"{values[0]:.2f} / {values[1]:.2f} ± {float(free.std()) / len(free) ** 0.5:.2f}"
    return found


@torch.no_grad()
def pictures(machine: RBM, test: Tensor, sweeps: int) -> dict[str, bytes]:
    """Samples beside test images, and the weights."""
    shape = (28, 28)
    v = machine.sample(100, sweeps, generator=torch.Generator().manual_seed(3))
    shown = machine.reconstruct(v)
    return {
        "mnist_rbm_samples.png": _pictures.image_samples(
            shown, shape, title=f"{sweeps:,} sweeps of new chains", beside=test[:100]
        ),
        "mnist_rbm_filters.png": _pictures.filters(machine.W.detach(), shape),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, and write mnist_rbm.md with its pictures and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the page and its pictures")
    parser.add_argument("--runs", type=Path, default=Path("runs/mnist"), help="folder for checkpoints")
    parser.add_argument("--updates", type=int, default=100_000, help="of the training")
    parser.add_argument("--betas", type=int, default=None, help="temperatures of AIS; 14,500 by default")
    parser.add_argument("--sweeps", type=int, default=10_000, help="of the chains that give samples")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows, test = (data.load("mnist", split=split).x for split in ("train", "test"))
    options.runs.mkdir(parents=True, exist_ok=True)
    checkpoint = options.runs / "rbm.pt"
    training = Training.begin(rows, options.updates)
    if checkpoint.exists():
        training.load(checkpoint)
    machine = training.run(checkpoint)
    found = evaluate(machine, rows, test, betas=options.betas, sweeps=options.sweeps)
    ours, eager = step_milliseconds(machine, rows)
    about = machine_state(Options(threads=options.threads))
    found |= {"ours": ours, "eager": eager, "ratio": eager / ours, "minutes": training.seconds / 60, "machine": about}
    options.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures(machine, test, options.sweeps).items():
        (options.out / name).write_bytes(picture)
    page = PAGE.format(
        hidden=HIDDEN, updates=options.updates, epochs=options.updates * BATCH / len(rows), batch=BATCH, chains=CHAINS,
        sweeps=SWEEPS, shown_sweeps=options.sweeps, rate=RATE, published=PUBLISHED,
        **{k: v for k, v in found.items() if k != "machine"},
        **{k: about[k] for k in ("threads", "processor", "instruction_set", "torch")},
    )  # fmt: skip
    (options.out / "mnist_rbm.md").write_text(page)
    (options.runs / "rbm.json").write_text(json.dumps(found, indent=1))
    print(f"test log-likelihood {found['test']}; wrote mnist_rbm.md")


if __name__ == "__main__":
    main()
