"""Models kept on the way of a run, at steps that grow by equal factors."""

import os
from pathlib import Path

from torch import Tensor

from genfast._errors import RunError
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint

FOLDER = "snapshots"


def next_snapshot(step: int, per_doubling: int) -> int:
    """The first step after `step` of those nearest to 2^(i / per_doubling), i = 0, 1, ..."""
    i = 0
    while round(2 ** (i / per_doubling)) <= step:
        i += 1
    return round(2 ** (i / per_doubling))


def snapshot_path(folder: Path, step: int) -> Path:
    """Where the snapshot of a step lies; names sort by step."""
    return folder / FOLDER / f"{step:010d}.pt"


def remove_snapshots(folder: Path) -> None:
    """Take away those of a run that is replaced."""
    for path in (folder / FOLDER).glob("*.pt"):
        path.unlink()


def snapshots(folder: str | os.PathLike[str]) -> list[dict[str, Tensor]]:
    """The state dicts of the models that a run kept with `snapshots`, in the order of steps, its last one included.

    For `genfast.boltzmann.TrajectoryTempering`.

    Args:
        folder: the `out` of `genfast.fit` or `genfast train`.

    Raises:
        ValueError: there are none, or one is broken.

    Example:
        >>> result = genfast.fit("rbm", out="runs/rbm", snapshots=4)
        >>> models = genfast.training.snapshots("runs/rbm")
        >>> chains = genfast.boltzmann.TrajectoryTempering.select(models)
    """
    folder = Path(folder)
    kept = [load_checkpoint(path) for path in sorted((folder / FOLDER).glob("*.pt"))]
    if not kept:
        raise RunError(f"{folder} has no snapshots; train with snapshots=4, or --snapshots 4, to keep some")
    last = load_checkpoint(folder / CHECKPOINT)
    if last.step > kept[-1].step:
        kept.append(last)
    return [{**c.model, **(c.average or {})} for c in kept]
