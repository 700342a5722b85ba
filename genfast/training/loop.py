"""The training loop: steps, metrics, checkpoints."""

import contextlib
import copy
import logging
import math
import signal
import statistics
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genfast._errors import RunError, Told, option
from genfast._finite import DivergenceError, NonFiniteError, check_finite, describe_nonfinite, parameter_norm
from genfast._optional import require
from genfast.recipes._base import Recipe
from genfast.recipes._options import MAX_SEED
from genfast.training.averaging import Average
from genfast.training.checkpoint import CHECKPOINT, Checkpoint
from genfast.training.distributed import Processes
from genfast.training.files import make_folder
from genfast.training.kept import next_snapshot, snapshot_path
from genfast.training.metrics import Metrics
from genfast.training.signals import Signals

_log = logging.getLogger("genfast")

_LARGEST_RMS = 1e5
"""Root mean square of the parameters past which float32 sums of their products have no digits left for the data."""
_LONG_STEP = 0.2
"""Seconds after which a step counts as long: the state before the next one is then kept, in case it is broken off."""


class Interrupted(Told):
    """A signal ended a run after it had saved its work."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Objective(nn.Module):
    """The loss of a recipe as a module, for wrappers that average gradients over processes."""

    def __init__(self, recipe: Recipe[Any]) -> None:
        super().__init__()
        self.model = recipe.model
        self._loss = recipe.loss

    def forward(self, batch: Tensor) -> Tensor:
        """A batch to its loss."""
        return self._loss(batch)


class Trainer:
    """One training run, from its start or from a checkpoint, in one process or in one of several.

    Args:
        recipe: the model and its data, seeded and untrained; see `start`.
        processes: this process among its peers.
        folder: where checkpoints go; None keeps none.
        checkpoint: to go on from.
        checkpoint_every: steps between checkpoints; about 30 seconds by default.
        snapshots: models to keep for each doubling of the steps; None keeps none.
        log_every: steps between lines of metrics; by default a hundredth of the run, from 20 to 100.
        quiet: no progress bar.
    """

    def __init__(
        self,
        recipe: Recipe[Any],
        processes: Processes,
        *,
        folder: Path | None = None,
        checkpoint: Checkpoint | None = None,
        checkpoint_every: int | None = None,
        snapshots: int | None = None,
        log_every: int | None = None,
        quiet: bool = False,
    ) -> None:
        self.recipe = recipe
        self.options = recipe.options
        self.processes = processes
        self.folder = folder
        self.checkpoint_every = checkpoint_every
        self.snapshots = snapshots
        self.quiet = quiet
        self.device = processes.device
        self.fingerprint = _fingerprint(recipe.rows)
        recipe.model.to(self.device)
        recipe.rank, recipe.n_ranks = processes.rank, processes.size
        if recipe.rows is not None:
            recipe.rows = recipe.rows.to(self.device)
        self.total_steps = self._total_steps()
        self.log_every = log_every or min(100, max(20, self.total_steps // 100))
        self.step = 0
        self.seconds = 0.0
        self.loss = math.nan
        self.optimizer = recipe.optimizer()
        self.average = Average(recipe.model, self.options.average) if self.options.average else None
        if checkpoint is not None:
            self._restore_shared(checkpoint)
        self._start = checkpoint.start if checkpoint is not None else recipe.starting_objective()
        self._wrapped, self._stepper = processes.wrap(Objective(recipe), self.optimizer)
        torch.manual_seed((self.options.seed + 7919 * processes.rank) & MAX_SEED)
        if checkpoint is not None:
            self._restore_own(checkpoint)
        self._batches = self.batches()
        self._direct = False
        self._recent: deque[float] = deque(maxlen=20)
        self._signals = Signals()
        self._long = True
        self._saved_step: int | None = self.step if checkpoint is not None else None

    @staticmethod
    def start(recipe: type[Recipe[Any]], options: Any, source: Any) -> Recipe[Any]:
        """The untrained model of a run; what is random in it follows from the seed."""
        torch.manual_seed(options.seed)
        return recipe.start(options, source)

    # -- the loop -----------------------------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps that see every row once, the last batch filled up from the start; None without a data set."""
        if self.recipe.rows is None:
            return None
        return -(-len(self.recipe.rows) // int(self.options.batch_size * self.processes.size))

    def _total_steps(self) -> int:
        if self.options.steps is not None:
            return int(self.options.steps)
        if self.options.epochs is None or self.steps_per_epoch is None:
            raise RunError(f"{self.options.data} is a density without epochs; give {option('steps')}")
        return int(self.options.epochs * self.steps_per_epoch)

    def batches(self) -> Iterator[Tensor]:
        """The batches from the current step on. Their order depends on the seed and the step alone."""
        size, rank = self.options.batch_size, self.processes.rank
        rows, per_epoch = self.recipe.rows, self.steps_per_epoch
        if rows is None or per_epoch is None:
            while True:
                yield self.recipe.noise(size, self.device)
        n = rows.shape[0]
        epoch, offset = divmod(self.step, per_epoch)
        while True:
            seed = (self.options.seed * 1000003 + epoch) & MAX_SEED
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
            needed = per_epoch * size * self.processes.size
            order = order.repeat(-(-needed // n))[:needed].to(self.device)
            own = order.view(per_epoch, self.processes.size, size)[:, rank]
            for index in own[offset:]:
                yield rows.index_select(0, index)
            epoch, offset = epoch + 1, 0

    def run(self, metrics: Metrics | None = None) -> None:
        """Train to the end.

        Args:
            metrics: takes the lines; given on the first process only.

        Raises:
            NonFiniteError: the loss or a parameter stopped being finite; names the step and the parameter.
            DivergenceError: the loss or a parameter left its start by orders of magnitude.
            Interrupted: SIGINT or SIGTERM came; the checkpoint of the last step is written.
            WriteError: a file could not be written.
        """
        if self.step >= self.total_steps:
            return
        with self._signals.noted(), self._progress() as bar:
            saved_at = time.monotonic()
            while self.step < self.total_steps:
                n = min(self._until_pause(), self.total_steps - self.step)
                started = time.perf_counter()
                signs, done = self._steps(n)
                self._check(signs)
                elapsed = time.perf_counter() - started
                self.seconds += elapsed
                speed = done * self.options.batch_size * self.processes.size / elapsed
                bar.update(done)
                bar.set_postfix_str(f"{self.recipe.loss_name} {self.loss:.3f}, {speed:,.0f} samples/s")
                due = time.monotonic() - saved_at > 30 if self.checkpoint_every is None else self._at_checkpoint()
                row: dict[str, Any] = {}
                if metrics is not None and (self.step % self.log_every == 0 or self.step == self.total_steps):
                    row = self._row(speed)
                fault = self._divergence(row)
                stop, due, lost = self.processes.agree(self._signals.number is not None, due, fault is not None)
                if lost:
                    raise DivergenceError(fault or "another process found that the run diverged")
                if metrics is not None and row:
                    metrics.append(row)
                self._keep_snapshot()
                if due or stop or self.step == self.total_steps:
                    self.save(self.state())
                    saved_at = time.monotonic()
                if stop:
                    raise self._stopped(f"after step {self.step}", self.step)

    def _until_pause(self) -> int:
        """Steps to the next line of metrics or checkpoint, whichever comes first."""
        n = self.log_every - self.step % self.log_every
        if self.checkpoint_every is not None:
            n = min(n, self.checkpoint_every - self.step % self.checkpoint_every)
        if self.snapshots is not None:
            n = min(n, next_snapshot(self.step, self.snapshots) - self.step)
        return n

    def _keep_snapshot(self) -> None:
        """Write the model of this step for good, where it is one of those to keep."""
        if self.snapshots is None or next_snapshot(self.step - 1, self.snapshots) != self.step:
            return
        checkpoint = self.state()
        if self.folder is not None and self.processes.is_first:
            path = snapshot_path(self.folder, self.step)
            make_folder(path.parent)
            checkpoint.save(path)

    def _at_checkpoint(self) -> bool:
        return self.checkpoint_every is not None and self.step % self.checkpoint_every == 0

    def _steps(self, n: int) -> tuple[list[float], int]:
        """Take n steps, fewer where a signal comes to a lone process; what they leave is read once, at the end.

        Returns:
            One number a step, finite as long as the training is (the loss, where it is at hand), and their count.
        """
        signs: list[Tensor] = []
        alone = self.processes.size == 1
        before: Checkpoint | None = None
        first = self.step
        try:
            for _ in range(n):
                keep = alone and self._long and self.folder is not None
                before = copy.deepcopy(self.state()) if keep else None
                began = time.perf_counter()
                with self._signals.step() if alone else contextlib.nullcontext():
                    signs.append(self._step(next(self._batches)))
                self.step += 1
                if self.average is not None:
                    self.average.update(self.step)
                self._long = time.perf_counter() - began > _LONG_STEP
                if alone and self._signals.number is not None:
                    break
        except KeyboardInterrupt:
            raise self._broken_off(before) from None
        values = torch.stack(signs).tolist()
        if self._direct:
            self.loss = self.recipe.direct_loss()
        else:
            self.loss = sum(values) / len(values)
            self._recent.extend(values)
        return values, self.step - first

    def _step(self, batch: Tensor) -> Tensor:
        if self.processes.size == 1:
            sign = self.recipe.direct_step(batch, self.optimizer)
            if sign is not None:
                self._direct = True
                return sign
        loss: Tensor = self._wrapped(batch)
        self._stepper.zero_grad(set_to_none=True)
        self.processes.backward(loss)
        self.recipe.before_update(self.optimizer, self.step)
        self._stepper.step()
        return loss.detach()

    def _row(self, speed: float) -> dict[str, Any]:
        row: dict[str, Any] = {
            "step": self.step,
            "loss": self.loss,
            "seconds": round(self.seconds, 4),
            "samples_per_second": round(speed, 1),
        }
        if self.steps_per_epoch is not None:
            row["epoch"] = round(self.step / self.steps_per_epoch, 4)
        with self.final_model():
            return {**row, **self.recipe.metrics()}

    def final_model(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the model is what the run is for: with the mean of its parameters, where there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def _progress(self) -> Any:
        tqdm = require("tqdm", "the progress bar")
        return tqdm.tqdm(
            total=self.total_steps,
            initial=self.step,
            unit="step",
            desc=f"{self.recipe.name()} on {Path(self.options.data).name}",
            dynamic_ncols=True,
            mininterval=0.1,
            disable=self.quiet or not self.processes.is_first or None,
        )

    # -- how a run goes wrong -----------------------------------------------------------------------------------------

    def _check(self, signs: list[float]) -> None:
        """Raise where the training has left the finite numbers, naming the first such step."""
        for i, sign in enumerate(signs):
            if not math.isfinite(sign):
                fault = describe_nonfinite(self.recipe.model)
                raise NonFiniteError(
                    f"step {self.step - len(signs) + i + 1}: the loss is not finite; "
                    f"{fault or 'all parameters are finite'} {self._advice()}"
                )
        check_finite(self.recipe.model, step=self.step, loss=self.loss)

    def _divergence(self, row: dict[str, Any]) -> str | None:
        """Why the run counts as diverged, though its numbers are finite; None where it does not."""
        count = sum(p.numel() for p in self.recipe.model.parameters())
        rms = parameter_norm(self.recipe.model) / math.sqrt(max(1, count))
        if rms > _LARGEST_RMS:
            return (
                f"step {self.step}: the run diverged: its parameters have grown to {rms:.2g} (root mean square), "
                f"past {_LARGEST_RMS:g} float32 has no digits left {self._advice()}"
            )
        if not self._direct and len(self._recent) < 10 and self.step < self.total_steps:
            return None  # an outlier or two are no divergence
        value = self.recipe.objective(statistics.median(self._recent) if self._recent else self.loss, row)
        if value is None or self._start is None or not math.isfinite(self._start):
            return None
        worse = value - self._start
        if worse > self.recipe.tolerance(self._start):
            return f"step {self.step}: the run diverged: {self._compare(value)} {self._advice()}"
        if worse > max(1.0, 0.1 * abs(self._start)) and self.step == self.total_steps:
            _log.warning("the run ended worse than it began: %s; a lower lr usually helps", self._compare(value))
        return None

    def _compare(self, value: float) -> str:
        """The objective beside what it was, in the sign that people know it by."""
        key, name = self.recipe.curve()
        sign = 1 if key == "loss" else -1
        return f"{name} is {sign * value:.4g}, it was {sign * (self._start or 0):.4g} before training"

    def _advice(self) -> str:
        kept = "; no checkpoint was written" if self.folder is not None else ""
        if self._saved_step is not None:
            kept = f"; the checkpoint of step {self._saved_step} is from before"
        return f"(a lower {option('lr')} usually helps{kept})"

    def _stopped(self, when: str, saved: int | None) -> Interrupted:
        number = self._signals.number or signal.SIGINT
        where = ""
        if self.folder is not None:
            where = (
                "; no checkpoint was written"
                if saved is None
                else f"; {option('resume')} goes on from step {saved} in {self.folder}"
            )
        return Interrupted(f"stopped by {signal.Signals(number).name} {when}{where}", number)

    def _broken_off(self, before: Checkpoint | None) -> Interrupted:
        """Save the state before the step that was broken off, where it was kept."""
        if before is not None:
            self.save(before)
        return self._stopped(f"within step {self.step + 1}", self._saved_step)

    # -- state --------------------------------------------------------------------------------------------------------

    def state(self) -> Checkpoint:
        """The checkpoint of this step (all processes together)."""
        own: dict[str, Tensor] = {"rng": torch.get_rng_state(), **self.recipe.state()}
        if self.device.type == "cuda":
            own["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return Checkpoint(
            config=config_of(self.recipe),
            dim=self.recipe.dim,
            shape=self.recipe.shape,
            step=self.step,
            seconds=self.seconds,
            start=self._start,
            fingerprint=self.fingerprint,
            model=self.recipe.model.state_dict(),
            average=None if self.average is None else self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            ranks=self.processes.gather(own),
        )

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint (the first process does)."""
        if self.folder is not None and self.processes.is_first:
            checkpoint.save(self.folder / CHECKPOINT)
        self._saved_step = checkpoint.step

    def _restore_shared(self, checkpoint: Checkpoint) -> None:
        ranks = len(checkpoint.ranks)
        if ranks != self.processes.size:
            raise RunError(f"{option('resume')}: the run had {ranks} processes, now there are {self.processes.size}")
        if checkpoint.fingerprint not in (None, self.fingerprint):
            raise RunError(
                f"{option('resume')}: the data of {self.options.data} are not those that the run began with; "
                f"start anew with {option('overwrite')}"
            )
        load_weights(self.recipe, checkpoint.model)
        if self.average is not None:
            self.average.load_state_dict(checkpoint.average or {})
        try:
            self.optimizer.load_state_dict(checkpoint.optimizer)
            _check_optimizer(self.optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"the checkpoint does not fit the optimiser: {' '.join(str(error).split())}") from error
        self.step, self.seconds = checkpoint.step, float(checkpoint.seconds)

    def _restore_own(self, checkpoint: Checkpoint) -> None:
        own = checkpoint.ranks[self.processes.rank]
        if self.device.type == "cuda" and "cuda_rng" not in own:
            raise RunError(
                f"{option('resume')}: the run was on the CPU; give {option('device')} cpu to go on bit for bit"
            )
        try:
            self.recipe.load_state(own)
            torch.set_rng_state(own["rng"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda_rng"], self.device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"the checkpoint does not fit the run: {' '.join(str(error).split())}") from error


def config_of(recipe: Recipe[Any]) -> dict[str, Any]:
    """A model's name and its options, as checkpoints and config.json hold them."""
    return {"model": recipe.name(), **vars(recipe.options)}


def load_weights(recipe: Recipe[Any], weights: dict[str, Tensor]) -> None:
    """Put a checkpoint's weights into a recipe's model.

    Raises:
        RunError: they do not fit it, or are not finite.
    """
    try:
        recipe.model.load_state_dict(weights)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"the checkpoint does not fit the model: {' '.join(str(error).split())}") from error
    fault = describe_nonfinite(recipe.model)
    if fault:
        raise RunError(f"the checkpoint does not fit the model: {fault}")


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where a saved tensor has not the shape of its parameter; torch would find out too late."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} has shape {list(value.shape)}, its parameter {list(parameter.shape)}")


def _fingerprint(rows: Tensor | None) -> str | None:
    """What tells one data set from another: its shape and a checksum."""
    if rows is None:
        return None
    checksum = zlib.crc32(rows.detach().cpu().contiguous().numpy().data)
    return f"{'x'.join(map(str, rows.shape))} crc32 {checksum:08x}"
