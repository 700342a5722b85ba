"""Files that are whole or not there: atomic writes, checkpoints, metrics."""

import io
import json
import math
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from genfast.cli.errors import CommandError

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
CONFIG = "config.json"
FORMAT = 1
_KEYS = {"format", "config", "dim", "shape", "step", "seconds", "model", "optimizer", "ranks"}


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file `path` by `content` so that a reader, or a crash at any moment, meets the old or the new whole.

    Raises:
        CommandError: it cannot be written; the old file is untouched and nothing is left behind.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last, on systems that let a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Create `folder` and make sure that files can be written to it.

    Raises:
        CommandError: it is a file, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise CommandError(f"{folder} is a file, want a folder to write to") from error
    except OSError as error:
        raise CommandError(f"cannot write to the folder {folder}: {error.strerror or error}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint: a torch file of tensors, numbers, strings, lists and dicts only."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running code from it (`weights_only`).

    Raises:
        CommandError: there is none, or it is broken.
    """
    if not path.is_file():
        raise CommandError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise CommandError(f"the checkpoint {path} is broken: the checksum of {broken} does not fit")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CommandError(f"the checkpoint {path} is broken or no checkpoint of genfast: {reason}") from error
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        raise CommandError(f"{path} is no checkpoint of genfast train")
    if state["format"] != FORMAT:
        raise CommandError(f"the checkpoint {path} has format {state['format']}, this genfast reads format {FORMAT}")
    return state


class Metrics:
    """The lines of metrics.jsonl: one JSON object a log interval, appended whole."""

    def __init__(self, path: Path, *, until_step: int) -> None:
        """Keep the lines of steps up to `until_step` (those that a resumed run does not repeat); drop the others."""
        self.path = path
        self.rows = [row for row in read_metrics(path) if row["step"] <= until_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Add a line."""
        row = {k: v for k, v in row.items() if not (isinstance(v, float) and not math.isfinite(v))}
        self.rows.append(row)
        try:
            with self.path.open("ab") as file:
                file.write((json.dumps(row) + "\n").encode())
        except OSError as error:
            raise CommandError(f"cannot write {self.path}: {error.strerror or error}") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that was cut short is left out; [] where there is no file."""
    rows = []
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return []
    for line in text.splitlines():
        row = _row(line)
        if row is not None:
            rows.append(row)
    return rows


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
