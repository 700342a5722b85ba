"""`genfast train` and `genfast sample`."""

import io
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast import __version__, data
from genfast._backend import set_backend
from genfast._optional import require
from genfast.boltzmann import RBM
from genfast.cli import files, pictures
from genfast.cli.config import Config, flag, resolve, resume
from genfast.cli.distributed import Processes, choose_device
from genfast.cli.errors import CommandError
from genfast.cli.loop import Trainer
from genfast.cli.tasks import Task, build_model

N_SAMPLES = 100
_SWEEPS = 500
_OUTPUTS = (files.CHECKPOINT, files.METRICS, files.CONFIG)


def train(
    model: str,
    given: dict[str, Any],
    *,
    out: Path,
    go_on: bool,
    overwrite: bool,
    device: str,
    backend: str,
    threads: int | None,
    checkpoint_every: int | None,
    log_every: int | None,
) -> None:
    """Train a model, or go on with it, and draw its pictures."""
    for name, value in (("checkpoint_every", checkpoint_every), ("log_every", log_every), ("threads", threads)):
        if value is not None and value < 1:
            raise CommandError(f"{flag(name)}: got {value}, want at least 1")
    if threads is not None:
        torch.set_num_threads(threads)
    set_backend(backend)
    config, checkpoint = _plan(model, given, out, go_on=go_on, overwrite=overwrite)
    require("matplotlib", "the pictures of a run")
    require("tqdm", "the progress bar")
    processes = Processes(device)
    try:
        _train(config, checkpoint, processes, out, checkpoint_every=checkpoint_every, log_every=log_every)
    finally:
        processes.close()


def _plan(
    model: str, given: dict[str, Any], out: Path, *, go_on: bool, overwrite: bool
) -> tuple[Config, dict[str, Any] | None]:
    """The config of the run and the checkpoint that it goes on from, None for a new run; changes no file."""
    if go_on and overwrite:
        raise CommandError("give --resume or --overwrite, not both")
    path = out / files.CHECKPOINT
    if go_on:
        checkpoint = files.load_checkpoint(path)
        return resume(model, given, checkpoint["config"]), checkpoint
    config = resolve(model, given)
    if any((out / name).exists() for name in _OUTPUTS) and not overwrite:
        raise CommandError(f"{out} holds a run already; go on with --resume, replace it with --overwrite")
    return config, None


def _train(
    config: Config,
    checkpoint: dict[str, Any] | None,
    processes: Processes,
    out: Path,
    *,
    checkpoint_every: int | None,
    log_every: int | None,
) -> None:
    trainer = Trainer(
        config,
        processes,
        folder=out,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
    )
    if processes.is_first:
        files.make_folder(out)
        if checkpoint is None:
            for name in _OUTPUTS:
                (out / name).unlink(missing_ok=True)
        versions = {"genfast": __version__, "torch": torch.__version__, "python": platform.python_version()}
        files.write_json(
            out / files.CONFIG,
            {**config.to_json(), "device": str(trainer.device), "processes": processes.size, "versions": versions},
        )
    first_step = trainer.step
    if first_step >= trainer.total_steps and processes.is_first:
        print(f"{out} has its {trainer.total_steps} steps already; --steps or --epochs makes it longer")
    trainer.run()
    if processes.is_first:
        draw(trainer.task, out, trainer.device, files.read_metrics(out / files.METRICS))
        print(_summary(trainer, out, trainer.step - first_step))


def _summary(trainer: Trainer, out: Path, steps: int) -> str:
    rate = f", {trainer.step * trainer.config.batch_size * trainer.processes.size / trainer.seconds:,.0f} samples/s"
    lines = [
        f"{trainer.config.model} on {trainer.config.data}: step {trainer.step} ({steps} now), {trainer.seconds:.1f} s"
    ]
    lines[0] += rate if trainer.seconds else ""
    if trainer.config.model == "rbm":
        lines.append(f"pseudo-log-likelihood of the data: {trainer.pseudo_likelihood():.2f}")
    elif steps:
        lines.append(f"{trainer.task.loss_name}: {trainer.loss:.3f}")
    names = ["samples.png", *(["filters.png"] if trainer.config.model == "rbm" else []), "learning_curve.png"]
    lines.append(f"in {out}: {', '.join([*names, files.METRICS, files.CONFIG, files.CHECKPOINT])}")
    return "\n".join(lines)


def draw(task: Task, out: Path, device: torch.device, rows: list[dict[str, Any]]) -> None:
    """Write the pictures of a run."""
    model = task.objective.model
    generator = torch.Generator(device).manual_seed(task.config.seed)
    if isinstance(model, RBM):
        shape = pictures.image_shape(model.n_visible, task.dataset.shape if task.dataset else None)
        _, shown = sample_rbm(model, N_SAMPLES, _SWEEPS, generator)
        beside = task.dataset.x[:N_SAMPLES] if task.dataset else None
        pictures.image_samples(out / "samples.png", shown, shape, beside=beside)
        pictures.filters(out / "filters.png", model, shape)
    else:
        samples = model.sample(2000, generator=generator)
        beside = task.dataset.x if task.dataset else None
        pictures.flow_samples(out / "samples.png", model, samples, target=task.density, beside=beside)
    if rows:
        pictures.learning_curve(out / "learning_curve.png", rows, task.loss_name)


def sample_rbm(rbm: RBM, n: int, sweeps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n states 0/1 and, for the eye, the probabilities they were drawn from."""
    start = rbm.sample(n, 1, generator=generator)
    v, h = rbm.gibbs(start, sweeps, generator=generator)
    return v, rbm.visible_probs(h).detach()


def sample(folder: Path, *, n: int, sweeps: int, seed: int, device: str, out: Path | None) -> None:
    """Draw samples from the checkpoint in `folder`."""
    for name, value in (("n", n), ("sweeps", sweeps)):
        if value < 1:
            raise CommandError(f"{flag(name)}: got {value}, want at least 1")
    checkpoint = files.load_checkpoint(folder / files.CHECKPOINT)
    where = choose_device(device)
    try:
        config = Config(**checkpoint["config"])
        model = build_model(config, checkpoint["dim"])
        model.load_state_dict(checkpoint["model"])
    except (TypeError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CommandError(f"the checkpoint in {folder} does not fit the model: {reason}") from error
    model.to(where)
    target = folder if out is None else out
    files.make_folder(target)
    generator = torch.Generator(where).manual_seed(seed)
    if isinstance(model, RBM):
        samples, shown = sample_rbm(model, n, sweeps, generator)
        shape = pictures.image_shape(model.n_visible, checkpoint["shape"])
        pictures.image_samples(target / "samples.png", shown[: 20 * 20], shape)
        what = f"{n} states of {model.n_visible} units, each the end of a chain of {sweeps} sweeps"
    else:
        samples = model.sample(n, generator=generator)
        density = data.load(config.data) if config.data in data.DENSITIES else None
        known = density if isinstance(density, data.Density) else None
        pictures.flow_samples(target / "samples.png", model, samples[:20000], target=known)
        what = f"{n} points of {samples.shape[1]} dimensions"
    buffer = io.BytesIO()
    np.save(buffer, samples.cpu().numpy())
    files.write_atomically(target / "samples.npy", buffer.getvalue())
    print(f"{what}: {target / 'samples.npy'}, {target / 'samples.png'}")
