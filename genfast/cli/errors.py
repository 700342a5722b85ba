"""How a fault reaches the user: one sentence and an exit code."""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

from genfast._finite import NonFiniteError
from genfast._optional import MissingPackageError

P = ParamSpec("P")


class CommandError(Exception):
    """What was asked for cannot be done; the message is the one sentence that the user sees."""


class Interrupted(Exception):  # noqa: N818  (no fault)
    """A signal ended the command after it had saved its work."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


EXPECTED = (
    CommandError,
    MissingPackageError,
    NonFiniteError,
    ImportError,
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
)


def sentence(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, OSError) and error.strerror and not isinstance(error, CommandError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def complain(text: str) -> None:
    """Print one line on the error stream, with the rank where there are several processes."""
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    print(f"genfast: {'' if rank == '0' else f'process {rank}: '}{text}", file=sys.stderr, flush=True)


def guarded(function: Callable[P, None]) -> Callable[P, int]:
    """Turn the faults of a command into one sentence and an exit code (GENFAST_DEBUG=1 shows the traceback too)."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            function(*args, **kwargs)
        except Interrupted as stop:
            complain(str(stop))
            return stop.exit_code
        except KeyboardInterrupt:
            complain("interrupted")
            return 130
        except EXPECTED as error:
            if os.environ.get("GENFAST_DEBUG"):
                traceback.print_exc()
            complain(f"error: {sentence(error)}")
            return 1
        return 0

    return wrapper
