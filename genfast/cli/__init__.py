"""The command line: `genfast info | train | sample | evaluate | demo | bench`. It parses and prints."""

from genfast.cli.start import main

__all__ = ["main"]
