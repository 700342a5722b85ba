"""Errors of training runs; each names options the way its reader types them."""

import re

_MARKED = re.compile("\0([a-z0-9_]+)\0")


def option(name: str) -> str:
    """The name of an option in the text of a `Told`: `--batch-size` on the command line, `batch_size` in Python."""
    return f"\0{name}\0"


class Told(Exception):  # noqa: N818  (a part of errors)
    """An exception whose message is one sentence for the user, with options as `option` marks them."""

    def __str__(self) -> str:
        return _MARKED.sub(r"\1", str(self.args[0]) if self.args else "")

    @property
    def command_line(self) -> str:
        """The message with options as they stand on the command line."""
        return _MARKED.sub(lambda found: "--" + found[1].replace("_", "-"), str(self.args[0]) if self.args else "")


class RunError(Told, ValueError):
    """What was asked for cannot be done."""


class WriteError(RunError, OSError):
    """A file or a folder could not be written; nothing is left half-written."""
