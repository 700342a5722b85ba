"""`genfast demo`: an RBM learns handwritten digits, once by the kernels and once in plain PyTorch."""

from pathlib import Path

import torch

from genfast._optional import require
from genfast.recipes._options import MAX_SEED, Field
from genfast.training import demo as training
from genfast.training import files


def demo(out: Path, *, device: str, seed: int) -> None:
    """Train both, in turn epoch by epoch, then draw and report."""
    Field("seed", int, optional=False, default=0, help="", at_least=0, at_most=MAX_SEED).check(seed)
    require("matplotlib", "the pictures")
    tqdm = require("tqdm", "the progress bar")
    files.make_folder(out)
    race = training.Race(device=device, seed=seed)
    print(
        f"A Restricted Boltzmann Machine with {race.v.shape[1]} visible and {training.HIDDEN} hidden units learns "
        f"{len(race.v):,} handwritten digits\nby contrastive divergence: "
        f"{training.EPOCHS} passes, batches of {training.BATCH}, {training.SWEEPS} Gibbs sweeps an update, "
        f"on {race.device}, {torch.get_num_threads()} threads.",
        flush=True,
    )
    with tqdm.tqdm(range(training.EPOCHS), unit="epoch", disable=None, dynamic_ncols=True) as bar:
        for _ in bar:
            race.epoch()
            bar.set_postfix_str(", ".join(f"{c.name} {c.seconds:.2f} s" for c in (race.fused, race.plain)))
    print(_report(race, race.draw(out)))


def _report(race: training.Race, picture: Path) -> str:
    fused, plain = race.fused, race.plain
    lines = ["", f"{'':15}{'seconds':>9}{'ms an update':>15}{'pseudo-log-likelihood':>24}"]
    lines += [
        f"{c.name:15}{c.seconds:9.2f}{1000 * c.seconds / race.n_updates:15.3f}{c.curve[-1][1]:24.2f}"
        for c in (fused, plain)
    ]
    gap = abs(fused.curve[-1][1] - plain.curve[-1][1])
    learned = f"from {fused.curve[0][1]:.1f} to {fused.curve[-1][1]:.1f}"
    ratio = race.ratio
    faster = f"{ratio:.1f} times faster than" if ratio >= 1 else f"{1 / ratio:.1f} times slower than"
    lines += [
        "",
        f"The machine learned: the pseudo-log-likelihood of a digit rose {learned}.",
        f"genfast trained it {faster} plain PyTorch (median over the passes), to the same likelihood "
        f"(they differ by {gap:.2f}).",
        f"See what it draws: {picture}",
    ]
    return "\n".join(lines)
