"""Where the command line starts: what works without the packages of the `train` extra, and what needs them."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genfast._optional import require
from genfast.cli.errors import CommandError, complain, guarded


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    if list(arguments) == ["info"]:
        return info()
    if arguments and arguments[0] == "bench":
        return bench(list(arguments[1:]))
    try:
        require("typer", "the command line")
    except ImportError as error:
        complain(f"error: {error}")
        return 1
    from genfast.cli.app import app

    return _exit_code(app, arguments)


def _exit_code(app: Any, arguments: Sequence[str]) -> int:
    """Run a typer application and take its exit code."""
    import typer

    command = typer.main.get_command(app)
    try:
        code = command.main(list(arguments), prog_name="genfast", standalone_mode=False)
    except SystemExit as stop:
        code = stop.code
    except Exception as error:  # a usage error, whose class has moved between typer's versions
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        code = getattr(error, "exit_code", 2)
    return code if isinstance(code, int) else 0


@guarded
def info() -> None:
    """Print versions, the instruction set in use, the CUDA build and the GPUs: the start of every bug report."""
    from genfast import _native

    facts = _native.info()
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        print(f"{name:<{width}}{value}")


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
        raise CommandError("the benchmark suite is not installed; get a checkout of genfast and run `make bench`")
    sys.path.insert(0, str(checkout))
    return importlib.import_module("benchmarks.__main__")
