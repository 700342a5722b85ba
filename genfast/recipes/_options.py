"""Options of a model: a dataclass whose fields carry their help and their limits."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from genfast._errors import RunError
from genfast._errors import option as named

T = TypeVar("T", bound="OptionsBase")
MAX_SEED = 2**64 - 1
_WORDS = {int: "an integer", float: "a number", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Field:
    """What is known of one option: its type, default, help and limits."""

    name: str
    kind: type
    optional: bool
    default: Any
    help: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    shown: str | None = None
    """The default as the help shows it, where it is not a plain value."""

    def check(self, value: Any) -> Any:
        """`value` in the option's type.

        Raises:
            RunError: another type, or outside the limits; names the option.
        """
        if value is None and self.optional:
            return None
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not self.kind:
            raise self._refuse(value, _WORDS.get(self.kind, "text"))
        if self.choices and value not in self.choices:
            raise self._refuse(value, f"one of {', '.join(self.choices)}")
        if isinstance(value, int | float) and not self._within(value):
            raise self._refuse(value, self._limits())
        return value

    def _within(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _limits(self) -> str:
        low = f"at least {self.at_least}" if self.at_least is not None else None
        low = f"above {self.above}" if self.above is not None else low
        high = f"at most {self.at_most}" if self.at_most is not None else None
        high = f"below {self.below}" if self.below is not None else high
        return " and ".join(filter(None, (low, high))) or "a finite number"

    def _refuse(self, value: Any, want: str) -> RunError:
        return RunError(f"{named(self.name)}: got {value!r}, want {want}")


def option(
    default: Any,
    help: str,  # noqa: A002  (as typer and argparse call it)
    **limits: Any,
) -> Any:
    """A field of an options class: its default, its help, and any of `Field`'s limits."""
    return dataclasses.field(default=default, metadata={"help": help, **limits})


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionsBase:
    """A set of options; checked when it is made."""

    def __post_init__(self) -> None:
        for field in fields(type(self)):
            object.__setattr__(self, field.name, field.check(getattr(self, field.name)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(OptionsBase):
    """The options that every model has. Equal options on one device make equal models, bit for bit."""

    data: str = option("", "What to learn from.")
    epochs: int | None = option(None, "Passes over the data.", at_least=1)
    steps: int | None = option(None, "Updates, instead of epochs.", at_least=1)
    batch_size: int = option(64, "Rows an update, in each process.", at_least=1)
    lr: float = option(1e-3, "Learning rate.", above=0)
    average: int = option(
        0, "The model is the mean of the parameters over about this many updates; 0 for the last.", at_least=0
    )
    seed: int = option(0, "Of everything random.", at_least=0, at_most=MAX_SEED)


def fields(options: type[OptionsBase]) -> list[Field]:
    """The options of a class: what every model has to begin and to end with, its own between."""
    hints = typing.get_type_hints(options)
    result = []
    for field in sorted(dataclasses.fields(options), key=lambda field: field.name in ("average", "seed")):
        kind, optional = hints[field.name], False
        if isinstance(kind, types.UnionType):
            (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
            optional = True
        result.append(Field(field.name, kind, optional, field.default, **field.metadata))
    return result


def make(options: type[T], given: Mapping[str, Any], *, model: str) -> T:
    """Options from those that were given (None is not), defaults for the rest.

    Raises:
        RunError: the model has no such option, or a value is outside its limits.
    """
    known = [field.name for field in fields(options)]
    values = {name: value for name, value in given.items() if value is not None}
    for name in values:
        if name not in known:
            has = f"; it has {', '.join(map(named, known))}" if known else ""
            raise RunError(f"{named(name)}: {model} has no such option{has}")
    return options(**values)
