"""Runs a command line: what works without the packages of the `train` extra first, then the typer application."""

from collections.abc import Sequence
from typing import Any

from genfast import recipes
from genfast._errors import RunError
from genfast._optional import require
from genfast.cli import narrow
from genfast.cli.bench import bench
from genfast.cli.errors import fail
from genfast.cli.info import info


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    if list(arguments) == ["info"]:
        return info()
    if arguments and arguments[0] == "bench":
        return bench(list(arguments[1:]))
    try:
        require("typer", "the command line")
        _check_model(arguments)
        from genfast.cli.app import build

        app = build(arguments)
    except (ImportError, RunError) as error:
        return fail(error)
    return _exit_code(app, arguments)


def _check_model(arguments: Sequence[str]) -> None:
    """Raise where `train` is not followed by a model."""
    if len(arguments) < 2 or arguments[0] != "train" or arguments[1] == "--help":
        return
    if arguments[1].startswith("-"):
        raise RunError(f"name the model first: genfast train MODEL {arguments[1]} ...; see genfast train --help")
    recipes.load(arguments[1])


def _exit_code(app: Any, arguments: Sequence[str]) -> int:
    """Run a typer application and take its exit code."""
    import typer

    command = typer.main.get_command(app)
    columns = narrow.width()
    if columns is not None:
        narrow.stack(command, columns)
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
