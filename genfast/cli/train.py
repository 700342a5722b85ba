"""`genfast train`."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from genfast.cli.errors import complain
from genfast.training.loop import Interrupted
from genfast.training.run import FitResult, fit


def train(model: str, given: dict[str, Any], *, out: Path, backend: Enum, **shared: Any) -> None:
    """Train a model, or go on with it; say what came of it.

    Raises:
        SystemExit: a signal ended the run, after it had saved its work.
    """
    try:
        with _notes():
            result = fit(model, out=out, backend=backend.value, **shared, **given)
    except Interrupted as stop:
        complain(stop.command_line)
        raise SystemExit(128 + stop.signal_number) from None
    if result.is_first:
        print(_summary(result))


class _Formatter(logging.Formatter):
    """`note: ...` or `warning: ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return f"{'warning' if record.levelno >= logging.WARNING else 'note'}: {record.getMessage()}"


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Print what the training has to say besides its progress."""
    log = logging.getLogger("genfast")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _summary(result: FitResult) -> str:
    lines = [] if result.new_steps else [f"{result.path} has its {result.step} steps already; more make it longer"]
    speed = f", {result.samples_per_second:,.0f} samples/s" if result.new_steps else ""
    lines.append(
        f"{result.name} on {result.options.data}: step {result.step} ({result.new_steps} now), "
        f"{result.seconds:.1f} s{speed}"
    )
    if result.score is not None:
        name, value = result.score
        lines.append(f"{name}: {value:.3f}")
    lines.append(f"in {result.path}: {', '.join(result.files)}")
    return "\n".join(lines)
