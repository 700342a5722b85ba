"""Runs on disk: `genfast.load` gives the trained model back, `sample` draws from it."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from genfast._errors import RunError, option
from genfast.recipes._base import Recipe, Samples
from genfast.recipes._chains import ChainRecipe
from genfast.recipes._options import MAX_SEED, Field, make
from genfast.training import files
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint
from genfast.training.distributed import Processes, choose_device
from genfast.training.loop import load_weights

SAMPLES = "samples"


def load(folder: str | os.PathLike[str], *, device: str = "cpu") -> nn.Module:
    """The trained model of a run, in eval mode: an `RBM` with its persistent chains, a `Flow`, ...

    Args:
        folder: the `out` of `genfast.fit` or `genfast train`.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: there is no checkpoint, or it is broken.

    Example:
        >>> rbm = genfast.load("runs/rbm")
        >>> rbm.sample(16, n_steps=1000)
    """
    return load_recipe(Path(folder), device).model


def sample(
    folder: str | os.PathLike[str],
    n: int = 100,
    *,
    seed: int = 0,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> tuple[Samples | None, Path]:
    """Draw samples from a run and write samples.npy and the pictures of them: what `genfast sample` does.

    Under torchrun each process calls it. The chains of a Boltzmann machine are then spread over the processes, and are
    the same bits for any number of them; other models are sampled by the first process. The first one writes.

    Args:
        folder: the `out` of `genfast.fit` or `genfast train`.
        n: number of samples.
        seed: of the samples.
        device: "auto", "cpu", "cuda" or "cuda:N".
        out: folder for the files; by default `samples` in the run's folder.
        options: those of the model: `genfast sample DIR --help` lists them.

    Returns:
        The samples (None on other processes than the first), and the folder that holds the files.

    Raises:
        ValueError: an option or the checkpoint is not what it should be.
        OSError: a file cannot be written; then none is.
    """
    Field("n", int, optional=False, default=None, help="", at_least=1).check(n)
    Field("seed", int, optional=False, default=None, help="", at_least=0, at_most=MAX_SEED).check(seed)
    processes = Processes(device)
    try:
        recipe = load_recipe(Path(folder), str(processes.device))
        chosen = make(recipe.SampleOptions, options, model=recipe.name())
        target = Path(folder) / SAMPLES if out is None else Path(out)
        if (target / CHECKPOINT).exists():
            raise RunError(
                f"{option('out')}: {target} holds a run, whose own pictures would be lost; take another folder"
            )
        generator = torch.Generator(processes.device).manual_seed(seed)
        drawn = _draw(recipe, n, chosen, generator, processes)
        if drawn is not None:
            _write(target, drawn)
    finally:
        processes.close()
    return drawn, target


def _draw(recipe: Recipe[Any], n: int, chosen: Any, generator: torch.Generator, processes: Processes) -> Samples | None:
    """The samples, on the first process only."""
    if processes.size == 1 or not isinstance(recipe, ChainRecipe):
        return recipe.sample(n, chosen, generator) if processes.is_first else None
    ends = [n * rank // processes.size for rank in range(processes.size + 1)]
    own = slice(ends[processes.rank], ends[processes.rank + 1])
    states, shown, what = recipe.draw(n, chosen, generator, own)
    parts = processes.gather({"states": states.cpu(), "shown": shown.cpu()})
    if not parts:
        return None
    states, shown = (torch.cat([part[key] for part in parts]) for key in ("states", "shown"))
    return recipe.show(states, shown, what)


def _write(target: Path, drawn: Samples) -> None:
    buffer = io.BytesIO()
    np.save(buffer, drawn.x.cpu().numpy())
    made = not target.exists()
    files.make_folder(target)
    try:
        files.write_together(target, {"samples.npy": buffer.getvalue(), **drawn.pictures})
    except OSError:
        if made:
            target.rmdir()
        raise


def load_recipe(folder: Path, device: str) -> Recipe[Any]:
    """The recipe of a run with its trained model, in eval mode."""
    path = folder / CHECKPOINT
    checkpoint = load_checkpoint(path)
    where = choose_device(device)
    with torch.random.fork_rng(devices=[]):
        recipe = checkpoint.recipe()(checkpoint.options(), dim=checkpoint.dim, shape=checkpoint.shape)
    try:
        load_weights(recipe, checkpoint.model)
        if checkpoint.average is not None:
            load_weights(recipe, {**checkpoint.model, **checkpoint.average})
        recipe.load_state(recipe.merge_states(checkpoint.ranks))
    except RunError as error:
        raise RunError(f"{path}: {error}") from error
    recipe.model.to(where).eval()
    return recipe


def sample_options(folder: str | os.PathLike[str]) -> type[Any] | None:
    """The class of the options that sampling this run takes; None where there is no run to ask."""
    try:
        return load_checkpoint(Path(folder) / CHECKPOINT).recipe().SampleOptions
    except RunError:
        return None
