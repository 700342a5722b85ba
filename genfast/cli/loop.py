"""The training loop: steps, metrics, checkpoints, signals."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from genfast._finite import NonFiniteError, check_finite, describe_nonfinite
from genfast._optional import require
from genfast.boltzmann import RBM
from genfast.cli import files
from genfast.cli.config import Config
from genfast.cli.distributed import Processes
from genfast.cli.errors import CommandError, Interrupted
from genfast.cli.tasks import RBMObjective, Task, build

_EVALUATED_ROWS = 2000


class Trainer:
    """One training run, from its config or from a checkpoint, in one process or in one of several."""

    def __init__(
        self,
        config: Config,
        processes: Processes,
        *,
        folder: Path | None,
        checkpoint: dict[str, Any] | None = None,
        checkpoint_every: int | None = None,
        log_every: int | None = None,
        quiet: bool = False,
    ) -> None:
        """Prepare a run; it starts with `run`.

        Args:
            config: the options of the run.
            processes: this process among its peers.
            folder: where checkpoints and metrics go; None keeps nothing.
            checkpoint: a loaded checkpoint to go on from.
            checkpoint_every: steps between checkpoints; about 30 seconds by default.
            log_every: steps between lines of metrics; by default a hundredth of the run, from 20 to 100.
            quiet: no progress bar.
        """
        self.config = config
        self.processes = processes
        self.folder = folder
        self.checkpoint_every = checkpoint_every
        self.quiet = quiet
        self.device = processes.device
        torch.manual_seed(config.seed)
        self.task: Task = build(config)
        self.objective = self.task.objective.to(self.device)
        self.data = None if self.task.dataset is None else self.task.dataset.x.to(self.device)
        self.total_steps = self._total_steps()
        self.log_every = log_every or min(100, max(20, self.total_steps // 100))
        self.step = 0
        self.seconds = 0.0
        self.loss = math.nan
        self.optimizer = self.task.optimizer()
        if checkpoint is not None:
            self._restore_shared(checkpoint)
        self._wrapped, self._stepper = processes.wrap(self.objective, self.optimizer)
        torch.manual_seed(config.seed + 7919 * processes.rank)
        if checkpoint is not None:
            self._restore_own(checkpoint)
        self._batches = self.batches()
        self._last: tuple[Tensor, Tensor] | None = None
        self._signal: int | None = None

    # -- the loop -----------------------------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps that see every row once, the last batch filled up from the start; None without a data set."""
        if self.data is None:
            return None
        return -(-self.data.shape[0] // (self.config.batch_size * self.processes.size))

    def _total_steps(self) -> int:
        if self.config.steps is not None:
            return self.config.steps
        if self.config.epochs is None or self.steps_per_epoch is None:
            raise CommandError(f"{self.config.data} is a density without epochs; give --steps")
        return self.config.epochs * self.steps_per_epoch

    def batches(self) -> Iterator[Tensor]:
        """The batches from the current step on. Their order depends on the seed and the step alone."""
        size, rank = self.config.batch_size, self.processes.rank
        if self.data is None:
            while True:
                yield torch.randn(size, 2, device=self.device)
        n, per_epoch = self.data.shape[0], self.steps_per_epoch
        assert per_epoch is not None  # noqa: S101  (there is a data set)
        epoch, offset = divmod(self.step, per_epoch)
        while True:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(self.config.seed * 1000003 + epoch))
            needed = per_epoch * size * self.processes.size
            order = order.repeat(-(-needed // n))[:needed].to(self.device)
            own = order.view(per_epoch, self.processes.size, size)[:, rank]
            for rows in own[offset:]:
                yield self.data.index_select(0, rows)
            epoch, offset = epoch + 1, 0

    def run(self) -> None:
        """Train to the end.

        Raises:
            NonFiniteError: the loss or a parameter stopped being finite; names the step and the parameter.
            Interrupted: SIGINT or SIGTERM came; the checkpoint of the last step is written.
            CommandError: a file could not be written.
        """
        if self.step >= self.total_steps:
            return
        writes = self.folder is not None and self.processes.is_first
        metrics = files.Metrics(self.folder / files.METRICS, until_step=self.step) if self.folder and writes else None
        with self._signals(), self._progress() as bar:
            saved_at = time.monotonic()
            while self.step < self.total_steps:
                n = min(self._until_pause(), self.total_steps - self.step)
                started = time.perf_counter()
                signs, done = self._steps(n)
                self._check(signs)
                elapsed = time.perf_counter() - started
                self.seconds += elapsed
                speed = done * self.config.batch_size * self.processes.size / elapsed
                bar.update(done)
                bar.set_postfix_str(f"{self.task.loss_name} {self.loss:.3f}, {speed:,.0f} samples/s")
                due = time.monotonic() - saved_at > 30 if self.checkpoint_every is None else self._at_checkpoint()
                stop, due = self.processes.agree(self._signal is not None, due)
                if metrics is not None and (self.step % self.log_every == 0 or self.step == self.total_steps):
                    metrics.append(self._row(speed))
                if due or stop or self.step == self.total_steps:
                    self.save()
                    saved_at = time.monotonic()
                if stop:
                    self._stop()

    def _until_pause(self) -> int:
        """Steps to the next line of metrics or checkpoint, whichever comes first."""
        n = self.log_every - self.step % self.log_every
        if self.checkpoint_every is not None:
            n = min(n, self.checkpoint_every - self.step % self.checkpoint_every)
        return n

    def _at_checkpoint(self) -> bool:
        return self.checkpoint_every is not None and self.step % self.checkpoint_every == 0

    def _steps(self, n: int) -> tuple[list[float], int]:
        """Take n steps, fewer where a signal comes to a lone process; what they leave is read once, at the end.

        Returns:
            One number a step, finite as long as the training is (the loss, where it is at hand), and their count.
        """
        signs: list[Tensor] = []
        alone = self.processes.size == 1
        step = self._rbm_step if alone and isinstance(self.task.objective, RBMObjective) else self._autograd_step
        for _ in range(n):
            signs.append(step(next(self._batches)))
            if alone and self._signal is not None:
                break
        self.step += len(signs)
        values = torch.stack(signs).tolist()
        self.loss = sum(values) / len(values)
        if self._last is not None:
            with torch.no_grad():
                self.loss = float(self._rbm().contrastive_loss(*self._last))
        return values, len(signs)

    def _autograd_step(self, batch: Tensor) -> Tensor:
        loss: Tensor = self._wrapped(batch)
        self._stepper.zero_grad(set_to_none=True)
        self.processes.backward(loss)
        self._stepper.step()
        return loss.detach()

    def _rbm_step(self, batch: Tensor) -> Tensor:
        """The same step with the gradient in closed form; NaN anywhere in the machine reaches the visible bias."""
        objective = self.task.objective
        assert isinstance(objective, RBMObjective)  # noqa: S101  (see _steps)
        self._last = (batch, objective.backward(batch))
        self.optimizer.step()
        return objective.model.vbias.detach().sum()

    def _check(self, signs: list[float]) -> None:
        """Raise where the training has left the finite numbers, naming the first such step."""
        for i, sign in enumerate(signs):
            if not math.isfinite(sign):
                fault = describe_nonfinite(self.task.objective.model)
                raise NonFiniteError(
                    f"step {self.step - len(signs) + i + 1}: the loss is not finite; "
                    f"{fault or 'all parameters are finite'} "
                    "(a lower --lr usually helps; the last checkpoint is from before)"
                )
        check_finite(self.task.objective.model, step=self.step, loss=self.loss)

    def _row(self, speed: float) -> dict[str, Any]:
        row: dict[str, Any] = {
            "step": self.step,
            "loss": self.loss,
            "seconds": round(self.seconds, 4),
            "samples_per_second": round(speed, 1),
        }
        if self.steps_per_epoch is not None:
            row["epoch"] = round(self.step / self.steps_per_epoch, 4)
        if self.config.model == "rbm":
            row["pseudo_likelihood"] = self.pseudo_likelihood()
        return row

    def _rbm(self) -> RBM:
        model = self.task.objective.model
        if not isinstance(model, RBM):
            raise CommandError(f"{self.config.model} is no Boltzmann machine")
        return model

    def pseudo_likelihood(self) -> float:
        """The mean pseudo-log-likelihood of (at most 2,000 rows of) the data, one random unit a row as scikit-learn."""
        if self.data is None:
            raise CommandError("a density has no pseudo-likelihood")
        rbm = self._rbm()
        generator = torch.Generator(self.device).manual_seed(0)
        return float(rbm.pseudo_likelihood(self.data[:_EVALUATED_ROWS], generator=generator).mean())

    # -- signals and progress -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the current step; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _frame: FrameType | None) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        number = self._signal or signal.SIGTERM
        where = f"; --resume goes on from step {self.step} in {self.folder}" if self.folder else ""
        raise Interrupted(f"stopped by {signal.Signals(number).name} after step {self.step}{where}", 128 + number)

    def _progress(self) -> Any:
        tqdm = require("tqdm", "the progress bar")
        return tqdm.tqdm(
            total=self.total_steps,
            initial=self.step,
            unit="step",
            desc=f"{self.config.model} on {Path(self.config.data).name}",
            dynamic_ncols=True,
            mininterval=0.1,
            disable=self.quiet or not self.processes.is_first or None,
        )

    # -- state --------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint of this step (all processes together; rank 0 writes)."""
        if self.folder is None:
            return
        own: dict[str, Any] = {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        if self.config.model == "rbm":
            own["chains"] = self.task.objective.model.get_buffer("chains").cpu()
        ranks = self.processes.gather(own)
        if self.processes.is_first:
            files.save_checkpoint(
                self.folder / files.CHECKPOINT,
                {
                    "config": self.config.to_json(),
                    "dim": self.task.dim,
                    "shape": None if self.task.dataset is None else self.task.dataset.shape,
                    "step": self.step,
                    "seconds": self.seconds,
                    "model": self.task.objective.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "ranks": ranks,
                },
            )

    def _restore_shared(self, checkpoint: dict[str, Any]) -> None:
        ranks = len(checkpoint["ranks"])
        if ranks != self.processes.size:
            raise CommandError(f"--resume: the run had {ranks} processes, now there are {self.processes.size}")
        try:
            self.task.objective.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.step, self.seconds = int(checkpoint["step"]), float(checkpoint["seconds"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise CommandError(f"the checkpoint does not fit the model: {reason}") from error

    def _restore_own(self, checkpoint: dict[str, Any]) -> None:
        own = checkpoint["ranks"][self.processes.rank]
        torch.set_rng_state(own["rng"])
        if self.device.type == "cuda":
            if "cuda_rng" not in own:
                raise CommandError("--resume: the run was on the CPU; give --device cpu to go on bit for bit")
            torch.cuda.set_rng_state(own["cuda_rng"], self.device)
        if "chains" in own:
            self.task.objective.model.chains = own["chains"].to(self.device)
