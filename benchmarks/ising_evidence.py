"""Ising lattices against what is known exactly: energies, log Z, and the magnetisation.

    python -m benchmarks.ising_evidence --out docs/

Samples periodic lattices with `genfast.boltzmann.IsingLattice`, and writes a page and a picture.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from genfast.boltzmann import IsingLattice, ais_log_z
from genfast.recipes import _pictures

CRITICAL = 2 / math.log(1 + math.sqrt(2))
BETAS = {"0.3": 0.3, "beta_c": 1 / CRITICAL, "0.6": 0.6}
SIZES = (3, 4, 8, 16, 32)
SHOWN = {"T = 2.0": 2.0, "T = 2.269 (critical)": CRITICAL, "T = 3.0": 3.0}

PAGE = """# Ising lattices

What `genfast.boltzmann.IsingLattice` samples, against what is known: periodic square lattices of L x L spins, J = 1, no
field. Exact numbers are Kaufman's formula (`IsingLattice.log_partition`, `mean_energy`), which agrees with the sum over
all states for L = 3 and 4. L = 3 has no checkerboard and runs on `ops.ising_gibbs`, the others on `ops.lattice_gibbs`.
A number in brackets is the standard error, in the last digits; z the deviation from the exact number in such errors.

![Lattices below, at and above the critical temperature](ising.png)

## Energy per site

{chains:,} chains (more of the small ones: 131,072 / L^2), {burn:,} sweeps to forget their start (all spins up at
beta = 0.6, at random else), then a state every {apart} sweeps, {kept} times. The error is that of the chains' means,
which are independent.

{energies}

## log Z

Annealed importance sampling (`ais_log_z`): {runs:,} runs, {steps:,} L evenly spaced betas from independent spins to the
lattice.

{log_z}

## Magnetisation

{magnets} lattices of {large} x {large} spins at T = 2, started with all spins up: after {large_burn:,} sweeps the mean
spin over {large_kept} states, {large_apart} sweeps apart, is **{magnetisation}**; that of the infinite lattice (Yang
1952) is (1 - sinh(2 / T)^-4)^(1/8) = 0.911319, z = {z:+.1f}.

```bash
python -m benchmarks.ising_evidence --out docs/
```
"""


def quoted(value: float, error: float) -> str:
    """A number with its error in brackets: 1.4916(3)."""
    if not error > 0:
        return f"{value:.6f}"
    digits = max(0, math.ceil(-math.log10(error)) + (error * 10 ** math.ceil(-math.log10(error)) < 2))
    return f"{value:.{digits}f}({round(error * 10**digits)})"


def energies(options: argparse.Namespace) -> str:
    """The table of energies per site."""
    lines = ["| L | " + " | ".join(f"beta = {name} | exact | z" for name in BETAS) + " |", "|---" * 10 + "|"]
    for size in SIZES:
        cells = []
        for i, beta in enumerate(BETAS.values()):
            lattice = IsingLattice((size, size), temperature=1 / beta)
            g = torch.Generator().manual_seed(1000 * size + i)
            start = "up" if beta > 0.5 else "random"
            chains = max(options.chains, options.chains * 128 // size**2)
            s = lattice.sample(chains, options.burn, start=start, generator=g)
            total = torch.zeros(chains, dtype=torch.float64)
            for _ in range(options.kept):
                s = lattice.gibbs(s, options.apart, generator=g)
                total += lattice.energy(s).double()
            of_chains = total / options.kept / size**2
            mean, error = float(of_chains.mean()), float(of_chains.std()) / math.sqrt(chains)
            exact = lattice.mean_energy() / size**2
            cells.append(f"{quoted(mean, error)} | {exact:.6f} | {(mean - exact) / error:+.1f}")
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def partition_functions(options: argparse.Namespace) -> str:
    """The table of log Z."""
    lines = ["| L | " + " | ".join(f"beta = {name} | exact | z" for name in BETAS) + " |", "|---" * 10 + "|"]
    for size in SIZES:
        cells = []
        for i, beta in enumerate(BETAS.values()):
            lattice = IsingLattice((size, size), temperature=1 / beta)
            ladder = torch.linspace(0, 1, options.steps * size + 1, dtype=torch.float64)
            found = ais_log_z(lattice, betas=ladder, n_runs=options.runs, seed=10 * size + i)
            exact = float(lattice.log_partition())
            cells.append(
                f"{quoted(found.log_z, found.stderr)} | {exact:.5f} | {(found.log_z - exact) / found.stderr:+.1f}"
            )
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def magnetisation(options: argparse.Namespace) -> dict[str, object]:
    """The mean spin at T = 2."""
    lattice = IsingLattice((options.large, options.large), temperature=2.0)
    g = torch.Generator().manual_seed(2)
    s = torch.ones(options.magnets, options.large, options.large)
    s = lattice.gibbs(s, options.large_burn, generator=g)
    total = torch.zeros(options.magnets, dtype=torch.float64)
    for _ in range(options.large_kept):
        s = lattice.gibbs(s, options.large_apart, generator=g)
        total += s.sum((1, 2), dtype=torch.float64) / lattice.n_units
    of_chains = total / options.large_kept
    mean, error = float(of_chains.mean()), float(of_chains.std()) / math.sqrt(options.magnets)
    exact = (1 - math.sinh(1.0) ** -4) ** 0.125
    return {"magnetisation": quoted(mean, error), "z": (mean - exact) / error}


def draw(size: int) -> bytes:
    """Lattices at three temperatures, from a quench."""
    figure = _pictures.figure(9.0, 3.3)
    for k, (title, temperature) in enumerate(SHOWN.items()):
        lattice = IsingLattice((size, size), temperature=temperature)
        s: Tensor = lattice.sample(1, 4000, generator=torch.Generator().manual_seed(3))
        axes = figure.add_subplot(1, 3, k + 1)
        axes.imshow(s[0].numpy(), cmap="gray", interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    return _pictures.png(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample, and write ising.png and ising.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the picture and the page")
    for name, number in (
        ("chains", 1024), ("burn", 5000), ("kept", 100), ("apart", 20), ("runs", 256), ("steps", 250), ("large", 512),
        ("magnets", 16), ("large_burn", 2000), ("large_kept", 50), ("large_apart", 20), ("picture", 256),
    ):  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=number)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    tables = {"energies": energies(options), "log_z": partition_functions(options), **magnetisation(options)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ising.png").write_bytes(draw(options.picture))
    (options.out / "ising.md").write_text(PAGE.format(**vars(options), **tables))
    seconds, threads = time.perf_counter() - started, torch.get_num_threads()
    print(f"wrote ising.png and ising.md to {options.out}: {seconds:.0f} s on {threads} threads")


if __name__ == "__main__":
    main()
