"""How a fault reaches the user: one sentence and an exit code."""

import functools
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec

from genfast._errors import Told

P = ParamSpec("P")


def sentence(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, Told):
        return " ".join(error.command_line.split())
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    if isinstance(error, MemoryError):
        return "not enough memory"
    asked = re.search(r"you tried to allocate (\d+) bytes", str(error))
    if asked:
        return f"not enough memory for {int(asked[1]):,} bytes"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def complain(text: str) -> None:
    """Print one line on the error stream, with the rank where there are several processes."""
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    print(f"genfast: {'' if rank == '0' else f'process {rank}: '}{text}", file=sys.stderr, flush=True)


def fail(error: BaseException) -> int:
    """Tell an error (with its traceback where GENFAST_DEBUG=1); returns the exit code."""
    if os.environ.get("GENFAST_DEBUG"):
        traceback.print_exception(error)
    complain(f"error: {sentence(error)}")
    return 1


def _show_warning(message: Warning | str, *_where: Any, **_more: Any) -> None:
    """A warning as one line, without the place in the code that the user did not write."""
    complain(f"warning: {' '.join(str(message).split())}")


EXPECTED = (ImportError, OSError, ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError)
"""Errors that say themselves what is wrong. Any other is a fault of ours, and its traceback is shown."""


def guarded(function: Callable[P, None]) -> Callable[P, int]:
    """Turn the faults of a command into one sentence and an exit code."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.default_int_handler)  # imports are over: see genfast.cli.start
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                function(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt:
            complain("interrupted")
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output has left
            return 1
        except EXPECTED as error:
            return fail(error)
        return 0

    return wrapper
