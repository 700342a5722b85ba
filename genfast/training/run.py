"""`genfast.fit`: one training run, from its options to its pictures."""

import contextlib
import dataclasses
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genfast import __version__, recipes
from genfast._backend import backend as using
from genfast._backend import get_backend
from genfast._errors import RunError, option
from genfast._optional import require
from genfast.data import load as load_data
from genfast.recipes import _pictures
from genfast.recipes._base import Recipe, Source
from genfast.recipes._options import Field, Options, make
from genfast.training import files
from genfast.training.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from genfast.training.distributed import Processes
from genfast.training.kept import remove_snapshots
from genfast.training.lock import RunLock
from genfast.training.loop import Trainer, config_of
from genfast.training.metrics import METRICS, Metrics

CONFIG = "config.json"
CURVE = "learning_curve.png"
_OUTPUTS = (CHECKPOINT, METRICS, CONFIG)
_ARRAY = "data"  # as genfast.data.load calls rows that have no name
_log = logging.getLogger("genfast")


@dataclasses.dataclass
class FitResult:
    """A finished run.

    Attributes:
        model: the trained module, in eval mode.
        name: of the model: "rbm", ...
        options: of the run, all of them.
        history: the lines of metrics.jsonl.
        metrics: the last of them.
        step: updates done in all.
        new_steps: updates done by this call.
        seconds: of training in all.
        path: the folder of the run, or None.
        files: what lies in it.
        score: what the run is judged by and its value, None where no line was logged.
        samples_per_second: rows that were learned from, over the time of training.
        is_first: whether this process is the one that writes, of several.
    """

    model: nn.Module
    name: str
    options: Options
    history: list[dict[str, Any]]
    step: int
    new_steps: int
    seconds: float
    path: Path | None
    files: list[str]
    score: tuple[str, float] | None
    samples_per_second: float
    is_first: bool

    @property
    def metrics(self) -> dict[str, Any]:
        """The last line of the history; {} where there is none."""
        return self.history[-1] if self.history else {}


def fit(
    model: str,
    data: str | os.PathLike[str] | Tensor | np.ndarray | Source | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    backend: str | None = None,
    threads: int | None = None,
    checkpoint_every: int | None = None,
    snapshots: int | None = None,
    log_every: int | None = None,
    progress: bool = True,
    **options: Any,
) -> FitResult:
    """Train a model: what `genfast train` does, with the same files and the same numbers.

    Under torchrun each process calls it. The default generators of torch are left as they were.

    Args:
        model: the name of a recipe: "rbm", "planar", "realnvp", "nsf", ...
        data: a name or a file as `genfast.data.load` takes it, or rows, as tensor, array or
            `Dataset`; by default what the model's recipe says.
        out: folder for checkpoint, metrics and pictures; None writes nothing.
        resume: go on from the checkpoint in `out`, bit for bit; options must be those of the run, but for a greater
            `steps` or `epochs`.
        overwrite: replace the run in `out`.
        device: "auto", "cpu", "cuda" or "cuda:N".
        backend: "native" or "reference"; by default the one in use.
        threads: CPU threads; torch's choice by default.
        checkpoint_every: steps between checkpoints; about 30 seconds by default.
        snapshots: keep models in `out`/snapshots, so many for each doubling of the steps: see
            `genfast.training.snapshots`.
        log_every: steps between lines of metrics.
        progress: show a bar, on a terminal.
        options: those of the model (`genfast train MODEL --help` lists them): epochs, steps, batch_size, lr, seed, ...

    Raises:
        ValueError: an option, the data or the checkpoint are not what they should be; names what is wanted.
        FloatingPointError: the run diverged; the last good checkpoint is kept.
        OSError: a file could not be written.

    Example:
        >>> result = genfast.fit("rbm", data="digits", out="runs/rbm", epochs=5, hidden=64)
        >>> result.metrics["pseudo_likelihood"]
        >>> rbm = genfast.load("runs/rbm")
    """
    recipe = recipes.load(model)
    counts = {"checkpoint_every": checkpoint_every, "snapshots": snapshots, "log_every": log_every, "threads": threads}
    for name, value in counts.items():
        Field(name, int, optional=True, default=None, help="", at_least=1).check(value)
    folder = None if out is None else Path(out)
    if resume and overwrite:
        raise RunError(f"give {option('resume')} or {option('overwrite')}, not both")
    if folder is None and snapshots is not None:
        raise RunError(f"{option('snapshots')}: wants {option('out')}, the folder of the run")
    if folder is None and (resume or overwrite):
        raise RunError(f"{option('resume' if resume else 'overwrite')}: wants {option('out')}, the folder of the run")
    given = {**options, "data": data if isinstance(data, str | None) else None}
    source: Source | None = None
    if isinstance(data, os.PathLike):
        given["data"] = os.fspath(data)
    elif data is not None and not isinstance(data, str):
        source = load_data(data)
        given["data"] = source.name
    require("matplotlib", "the pictures of a run")
    require("tqdm", "the progress bar")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_own_settings(threads, backend))
        lock = stack.enter_context(RunLock(folder)) if folder is not None and folder.is_dir() and _is_first() else None
        resolved, checkpoint = _plan(recipe, given, folder, go_on=resume, overwrite=overwrite)
        if source is None:
            source = _load_source(resolved, go_on=resume)
        processes = Processes(device)
        stack.callback(processes.close)
        trainer = Trainer(
            Trainer.start(recipe, resolved, source),
            processes,
            folder=folder,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            snapshots=snapshots,
            log_every=log_every,
            quiet=not progress,
        )
        _check_length(trainer)
        if folder is not None and processes.is_first:
            files.make_folder(folder)
            if lock is None:
                stack.enter_context(RunLock(folder))
                _check_free(folder, overwrite=overwrite)
            _begin(trainer, folder, new=checkpoint is None)
        return _run(trainer, folder)


def resolve(recipe: type[Recipe[Any]], given: Mapping[str, Any]) -> Options:
    """The options of a new run: those that were given (None is not), and defaults for the rest.

    Raises:
        RunError: an option that the model has not, or a value that makes no sense.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if "steps" in given and "epochs" in given:
        raise RunError(f"give {option('steps')} or {option('epochs')}, not both")
    options = make(recipe.Options, {**recipe.presets(given), **given}, model=recipe.name())
    if "steps" in given:
        return dataclasses.replace(options, epochs=None)
    if "epochs" in given:
        return dataclasses.replace(options, steps=None)
    return options


def _resume(recipe: type[Recipe[Any]], given: Mapping[str, Any], checkpoint: Checkpoint) -> Options:
    """The options of a run that goes on: the saved ones, with another length where one was given."""
    resolve(recipe, given)  # refuses what no run could have
    saved = checkpoint.options()
    advice = f"leave it out, or start anew with {option('overwrite')}"
    if checkpoint.recipe() is not recipe:
        raise RunError(
            f"{option('resume')}: the run is {checkpoint.recipe().name()}, not {recipe.name()}; "
            f"start anew with {option('overwrite')}"
        )
    for name, value in given.items():
        if name in ("steps", "epochs") or value is None:
            continue
        if getattr(saved, name) != value:
            raise RunError(
                f"{option('resume')}: the run's {option(name)} is {getattr(saved, name)}, not {value}; {advice}"
            )
    steps, epochs = given.get("steps"), given.get("epochs")
    return saved if steps is None and epochs is None else dataclasses.replace(saved, steps=steps, epochs=epochs)


def _plan(
    recipe: type[Recipe[Any]], given: Mapping[str, Any], folder: Path | None, *, go_on: bool, overwrite: bool
) -> tuple[Options, Checkpoint | None]:
    """The options of the run and the checkpoint that it goes on from, None for a new run; changes no file."""
    if go_on and folder is not None:
        checkpoint = load_checkpoint(folder / CHECKPOINT)
        return _resume(recipe, given, checkpoint), checkpoint
    options = resolve(recipe, given)
    if folder is not None:
        _check_free(folder, overwrite=overwrite)
    return options, None


def _check_free(folder: Path, *, overwrite: bool) -> None:
    if not overwrite and any((folder / name).exists() for name in _OUTPUTS):
        raise RunError(
            f"{folder} holds a run already; go on with {option('resume')}, replace it with {option('overwrite')}"
        )


def _check_length(trainer: Trainer) -> None:
    if trainer.step > trainer.total_steps:
        name = "epochs" if trainer.options.steps is None else "steps"
        epochs = f" ({trainer.step / trainer.steps_per_epoch:.4g} epochs)" if trainer.steps_per_epoch else ""
        raise RunError(
            f"{option(name)}: got {getattr(trainer.options, name)}, but the run has done {trainer.step} steps{epochs} "
            "already; give more"
        )


def _load_source(options: Options, *, go_on: bool) -> Source:
    if go_on and options.data == _ARRAY:
        raise RunError(f"{option('resume')}: the run learned from an array; give it again as data")
    return load_data(options.data)


@contextlib.contextmanager
def _own_settings(threads: int | None, backend: str | None) -> Iterator[None]:
    """Threads, backend and generators of this run; those of the process come back after it."""
    before = torch.get_num_threads()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with using(backend or get_backend()), torch.random.fork_rng(devices=list(devices)):
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _is_first() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _begin(trainer: Trainer, folder: Path, *, new: bool) -> None:
    """Say what the recipe did to the data; write the config; take away what is left of a run that is replaced."""
    for note in trainer.recipe.notes:
        _log.info("%s", note)
    if new:
        for name in _OUTPUTS:
            (folder / name).unlink(missing_ok=True)
        remove_snapshots(folder)
    versions = {"genfast": __version__, "torch": torch.__version__, "python": platform.python_version()}
    about = {"device": str(trainer.device), "processes": trainer.processes.size, "notes": trainer.recipe.notes}
    files.write_json(folder / CONFIG, {**config_of(trainer.recipe), **about, "versions": versions})


def _run(trainer: Trainer, folder: Path | None) -> FitResult:
    recipe, first = trainer.recipe, trainer.processes.is_first
    before = trainer.step
    metrics = Metrics(folder, until_step=before) if first else None
    trainer.run(metrics)
    names: list[str] = []
    key, label = recipe.curve()
    if trainer.average is not None:
        trainer.average.settle()
    recipe.model.eval()
    rows = metrics.rows if metrics is not None else []
    if folder is not None and first:
        generator = torch.Generator(trainer.device).manual_seed(trainer.options.seed)
        pictures = recipe.pictures(generator)
        if any(key in row for row in rows):
            pictures[CURVE] = _pictures.learning_curve(rows, key, label)
        files.write_together(folder, pictures)
        names = [*pictures, METRICS, CONFIG, CHECKPOINT]
    return FitResult(
        model=recipe.model,
        name=recipe.name(),
        options=trainer.options,
        history=rows,
        step=trainer.step,
        new_steps=trainer.step - before,
        seconds=trainer.seconds,
        path=folder,
        files=names,
        score=(label, rows[-1][key]) if rows and key in rows[-1] else None,
        samples_per_second=trainer.step * trainer.options.batch_size * trainer.processes.size / (trainer.seconds or 1),
        is_first=first,
    )
