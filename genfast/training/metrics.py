"""The lines of metrics.jsonl: one JSON object a log interval."""

import json
import math
from pathlib import Path
from typing import Any

from genfast._errors import WriteError
from genfast.training.files import write_atomically

METRICS = "metrics.jsonl"


class Metrics:
    """The rows of a run, kept in memory and, where there is a folder, appended whole to its metrics.jsonl."""

    def __init__(self, folder: Path | None, *, until_step: int) -> None:
        """Keep the lines of steps up to `until_step` (those that a resumed run does not repeat); drop the others."""
        self.path = None if folder is None else folder / METRICS
        self.rows: list[dict[str, Any]] = []
        if self.path is not None:
            self.rows = [row for row in read_metrics(self.path) if row["step"] <= until_step]
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Add a line.

        Raises:
            WriteError: the disk is full, say.
        """
        row = {k: v for k, v in row.items() if not (isinstance(v, float) and not math.isfinite(v))}
        self.rows.append(row)
        if self.path is None:
            return
        try:
            with self.path.open("ab") as file:
                file.write((json.dumps(row) + "\n").encode())
        except OSError as error:
            raise WriteError(f"cannot write {self.path}: {error.strerror or error}") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that was cut short is left out; [] where there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    return [row for row in map(_row, text.splitlines()) if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
