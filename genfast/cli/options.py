"""Options of the command line made from the dataclasses of the recipes."""

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from genfast.recipes._options import Field, OptionsBase, fields


def command(function: Callable[..., int], shared: Sequence[inspect.Parameter], own: type[OptionsBase] | None) -> Any:
    """`function(own_options, **shared)` as typer wants a command: one parameter an option.

    Args:
        function: takes the dataclass's options that were given as a dict, then the shared ones by name.
        shared: parameters that do not depend on the model.
        own: the dataclass.
    """
    known = [] if own is None else fields(own)
    names = {field.name for field in known}

    def run(**given: Any) -> int:
        return function(
            {name: value for name, value in given.items() if name in names},
            **{name: value for name, value in given.items() if name not in names},
        )

    required = [p for p in shared if p.default is inspect.Parameter.empty]
    optional = [p for p in shared if p.default is not inspect.Parameter.empty]
    parameters = [*required, *map(_parameter, known), *optional]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """One parameter of a command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _parameter(field: Field) -> inspect.Parameter:
    shown = field.shown
    if shown is None and field.default is not None and not isinstance(field.default, bool):
        shown = str(field.default)
    text = field.help if shown is None else f"{field.help} (default: {shown})"
    flag = "--" + field.name.replace("_", "-")
    names = (flag,) if field.kind is bool and not field.optional else ()
    return parameter(field.name, Annotated[field.kind | None, typer.Option(*names, help=text)], None)
