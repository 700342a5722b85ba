"""`genfast bench`: hands over to the benchmark suite."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genfast._errors import RunError
from genfast.cli.errors import guarded


def bench(arguments: Sequence[str]) -> int:
    """Run the benchmark suite with its own options; returns its exit code."""
    codes: list[int] = []

    @guarded
    def forward() -> None:
        try:
            codes.append(int(_benchmarks().main(list(arguments)) or 0))
        except SystemExit as stop:  # from its own --help and usage errors
            codes.append(stop.code if isinstance(stop.code, int) else 0)

    return forward() or codes[0]


def _benchmarks() -> Any:
    """The command line of the benchmark suite: installed with genfast, or beside it in a checkout."""
    if importlib.util.find_spec("genfast.benchmarks") is not None:
        return importlib.import_module("genfast.benchmarks.__main__")
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "benchmarks" / "__main__.py").is_file():
        raise RunError("the benchmark suite is not installed; get a checkout of genfast and run `make bench`")
    sys.path.insert(0, str(checkout))
    return importlib.import_module("benchmarks.__main__")
