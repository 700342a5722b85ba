"""Checkpoints: torch files of tensors, numbers, text, lists and dicts only, looked at closely before they are used."""

import dataclasses
import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genfast import recipes
from genfast._errors import RunError
from genfast.recipes._base import Recipe, is_shape
from genfast.recipes._options import Options, make
from genfast.training.files import write_atomically

CHECKPOINT = "checkpoint.pt"
FORMAT = 2
_OLDEST = 1


@dataclasses.dataclass
class Checkpoint:
    """A run at the end of a step.

    Attributes:
        config: the model's name and its options.
        dim: values in a row of the data.
        shape: (height, width) or (channels, height, width) of a row, or None.
        step: updates done.
        seconds: that they took.
        start: the objective before the first update, from which divergence is told; None in format 1.
        fingerprint: of the data, None in format 1.
        model: state dict of the model.
        optimizer: state dict of the optimiser.
        average: mean of the parameters by name, which is then the model; None for the parameters themselves.
        ranks: what each process has of its own: generators, chains.
    """

    config: dict[str, Any]
    dim: int
    shape: tuple[int, ...] | None
    step: int
    seconds: float
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    ranks: list[dict[str, Tensor]]
    average: dict[str, Tensor] | None = None
    start: float | None = None
    fingerprint: str | None = None

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}}, buffer)
        write_atomically(path, buffer.getvalue())

    def recipe(self) -> type[Recipe[Any]]:
        """The recipe of its model."""
        return recipes.load(self.config["model"])

    def options(self) -> Options:
        """The options of its run."""
        recipe = self.recipe()
        given = {name: value for name, value in self.config.items() if name != "model"}
        unknown = given.keys() - {field.name for field in dataclasses.fields(recipe.Options)}
        if unknown:
            raise RunError(f"{recipe.name()} has no option {min(unknown)!r}")
        options = make(recipe.Options, given, model=recipe.name())
        # None is a value here: it tells steps from epochs.
        return dataclasses.replace(options, **given)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU without running code from it.

    Raises:
        RunError: there is none, it is broken, it was altered, or it holds code.
    """
    if not path.is_file():
        raise RunError(f"there is no checkpoint {path}")
    state = _read(path)
    if not isinstance(state, dict) or "format" not in state or "config" not in state:
        raise RunError(f"{path} is no checkpoint of genfast")
    found = state.pop("format")
    if found not in range(_OLDEST, FORMAT + 1):
        raise RunError(f"the checkpoint {path} has format {found!r}, this genfast reads formats {_OLDEST} to {FORMAT}")
    try:
        return _checked(state, found)
    except RunError as error:
        raise RunError(f"the checkpoint {path} does not fit: {error}") from error


def _read(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        state = torch.load(path, map_location="cpu", weights_only=True) if broken is None else None
    except pickle.UnpicklingError as error:
        raise RunError(
            f"the checkpoint {path} holds more than tensors, numbers and text: as it may run code, it stays unread"
        ) from error
    except OSError as error:
        raise RunError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    except Exception as error:  # readers of broken files raise what they please
        raise RunError(f"the checkpoint {path} is broken or no checkpoint of genfast") from error
    if broken is not None:
        raise RunError(f"the checkpoint {path} is broken: the checksum of {broken} does not fit")
    return state


def _checked(state: dict[str, Any], found: int) -> Checkpoint:
    """The fields, each of the type it should have."""
    names = {f.name for f in dataclasses.fields(Checkpoint)}
    missing = names - state.keys() - ({"start", "fingerprint", "average"} if found == 1 else set())
    for what, odd in (("has no field", missing), ("has an unknown field", state.keys() - names)):
        if odd:
            raise RunError(f"it {what} {min(odd)!r}")
    state = dict(state)
    if isinstance(state["shape"], list | tuple):
        state["shape"] = tuple(state["shape"])
    checkpoint = Checkpoint(**state)
    for name, fits, want in (
        ("config", _is_config(checkpoint.config), "a model with its options"),
        ("dim", _is_integer(checkpoint.dim, 1), "an integer of at least 1"),
        ("shape", is_shape(checkpoint.shape, checkpoint.dim), f"None or sizes with product {checkpoint.dim!r}"),
        ("step", _is_integer(checkpoint.step, 0), "an integer of at least 0"),
        ("seconds", _is_number(checkpoint.seconds) and checkpoint.seconds >= 0, "a number of at least 0"),
        ("start", checkpoint.start is None or _is_number(checkpoint.start), "a number or None"),
        ("fingerprint", isinstance(checkpoint.fingerprint, str | None), "text or None"),
        ("model", _is_tensors(checkpoint.model), "named tensors"),
        ("average", checkpoint.average is None or _is_tensors(checkpoint.average), "named tensors or None"),
        ("optimizer", _is_optimizer(checkpoint.optimizer), "the state of an optimiser"),
        ("ranks", _is_ranks(checkpoint.ranks), "a list of what each process has"),
    ):
        if not fits:
            raise RunError(f"its field {name!r} is {_short(getattr(checkpoint, name))}, want {want}")
    if found == 1:
        recipe = checkpoint.recipe()
        checkpoint.config = {"model": recipe.name(), **recipe.upgrade(checkpoint.config)}
    checkpoint.options()
    return checkpoint


def _is_integer(x: object, least: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= least


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _is_config(x: object) -> bool:
    return isinstance(x, dict) and isinstance(x.get("model"), str) and all(isinstance(name, str) for name in x)


def _is_tensors(x: object) -> bool:
    return isinstance(x, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in x.items())


def _is_optimizer(x: object) -> bool:
    return isinstance(x, dict) and isinstance(x.get("state"), dict) and isinstance(x.get("param_groups"), list)


def _is_ranks(x: object) -> bool:
    return isinstance(x, list) and bool(x) and all(_is_tensors(rank) and "rng" in rank for rank in x)


def _short(x: object) -> str:
    text = repr(x)
    return text if len(text) <= 60 and "\n" not in text else f"of type {type(x).__name__}"
