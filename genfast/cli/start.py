"""The first moments of a command: signals and streams, before anything heavy is imported."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; one sentence, and no traceback, where something is wrong."""
    _end_at_once_on_interrupt()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only still gets every path
    arguments = list(sys.argv[1:] if argv is None else argv)
    from genfast.cli import entry

    sys.exit(entry.run(arguments))


def _end_at_once_on_interrupt() -> None:
    """Until a command begins there is nothing to save, and a KeyboardInterrupt may be lost in the imports of others."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"genfast: interrupted\n")
    os._exit(130)
