"""Files that are whole or not there."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genfast._errors import WriteError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file `path` by `content` so that a reader, or a crash at any moment, meets the old or the new whole.

    Raises:
        WriteError: it cannot be written; the old file is untouched and nothing is left behind.
    """
    write_together(path.parent, {path.name: content})


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace several files of `folder`; where one cannot be written (a full disk), none is replaced.

    Raises:
        WriteError: names the file; every old file is untouched and nothing is left behind.
    """
    written: dict[str, Path] = {}
    name = ""
    try:
        for name, content in contents.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
            written[name] = Path(temporary)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            written[name].chmod(0o666 & ~_umask())
        for name in contents:
            written[name].replace(folder / name)
            del written[name]
        _sync_folder(folder)
    except OSError as error:
        raise WriteError(f"cannot write {folder / name}: {error.strerror or error}") from error
    finally:
        for temporary_file in written.values():
            with contextlib.suppress(OSError):
                temporary_file.unlink()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


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
        WriteError: it is a file, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise WriteError(f"{folder} is a file, want a folder to write to") from error
    except OSError as error:
        raise WriteError(f"cannot write to the folder {folder}: {error.strerror or error}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
