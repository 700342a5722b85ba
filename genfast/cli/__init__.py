"""The command line: `genfast info | train | sample | demo | bench`."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; one sentence, and no traceback, where something is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    from genfast.cli import entry

    sys.exit(entry.run(arguments))
