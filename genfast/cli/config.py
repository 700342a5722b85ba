"""What a training run is: its options, their defaults, and what a resumed run may change."""

import dataclasses
import math
from typing import Any

from genfast.cli.errors import CommandError

MODELS = ("rbm", "planar", "realnvp", "nsf")
METHODS = ("pcd", "cd")


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run. Two runs with equal configs on one device make equal models, bit for bit."""

    model: str
    data: str
    seed: int
    batch_size: int
    lr: float
    hidden: int
    steps: int | None = None
    epochs: int | None = None
    layers: int = 0
    k: int = 1
    method: str = "cd"
    momentum: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON and checkpoints hold them."""
        return dataclasses.asdict(self)


_DEFAULTS: dict[str, dict[str, Any]] = {
    "rbm": {"data": "digits", "batch_size": 64, "lr": 0.1, "hidden": 128, "epochs": 40, "momentum": 0.9},
    "planar": {"data": "u2", "batch_size": 512, "lr": 5e-3, "hidden": 0, "layers": 32, "steps": 4000},
    "realnvp": {"data": "moons", "batch_size": 512, "lr": 1e-3, "hidden": 64, "layers": 8, "steps": 3000},
    "nsf": {"data": "moons", "batch_size": 512, "lr": 1e-3, "hidden": 64, "layers": 4, "steps": 2000},
}
_MNIST: dict[str, Any] = {"batch_size": 128, "lr": 0.03, "hidden": 500, "epochs": 15, "method": "pcd"}
_ONLY_RBM = ("k", "method", "momentum")
_AT_LEAST = {"steps": 1, "epochs": 1, "batch_size": 1, "hidden": 1, "layers": 1, "k": 1, "seed": 0}


def _check(model: str, given: dict[str, Any]) -> None:
    """Refuse an option that makes no sense, by its name on the command line."""
    if model not in MODELS:
        raise CommandError(f"unknown model {model!r}; there are {', '.join(MODELS)}")
    for name, least in _AT_LEAST.items():
        if given.get(name) is not None and given[name] < least:
            raise CommandError(f"{flag(name)}: got {given[name]}, want at least {least}")
    lr = given.get("lr")
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise CommandError(f"--lr: got {lr}, want a number above 0")
    momentum = given.get("momentum")
    if momentum is not None and not 0 <= momentum < 1:
        raise CommandError(f"--momentum: got {momentum}, want a number from 0 to below 1")
    if given.get("method") not in (None, *METHODS):
        raise CommandError(f"--method: got {given['method']!r}, want one of {', '.join(METHODS)}")
    if given.get("steps") is not None and given.get("epochs") is not None:
        raise CommandError("give --steps or --epochs, not both")
    foreign = _ONLY_RBM if model != "rbm" else ("layers",)
    for name in (*foreign, *(("hidden",) if model == "planar" else ())):
        if given.get(name) is not None:
            raise CommandError(f"{flag(name)}: {model} has no such option")


def flag(name: str) -> str:
    """The option's name on the command line."""
    return "--" + name.replace("_", "-")


def resolve(model: str, given: dict[str, Any]) -> Config:
    """The config of a new run: the options that were given, and defaults for those that are None."""
    _check(model, given)
    values = dict(_DEFAULTS[model])
    if model == "rbm" and given.get("data") in ("mnist", "fashion-mnist"):
        values.update(_MNIST)
    if given.get("steps") is not None:
        values["epochs"] = None
    if given.get("epochs") is not None:
        values["steps"] = None
    if (given.get("method") or values.get("method")) == "pcd":
        values["momentum"] = 0.0  # persistent chains mix too slowly for it
    values.update({k: v for k, v in given.items() if v is not None})
    return Config(model=model, **{"seed": 0, **values})


def resume(model: str, given: dict[str, Any], saved: dict[str, Any]) -> Config:
    """The config of a run that goes on: the saved one, with another length where one was given.

    Raises:
        CommandError: an option differs from that of the run, so that it would become another run.
    """
    _check(model, given)
    try:
        config = Config(**saved)
    except TypeError as error:
        raise CommandError(f"the checkpoint's options are not those of this genfast: {error}") from error
    for name, value in {"model": model, **given}.items():
        if name in ("steps", "epochs") or value is None:
            continue
        if getattr(config, name) != value:
            what = "the run" if name == "model" else f"the run's {flag(name)}"
            raise CommandError(
                f"--resume: {what} is {getattr(config, name)}, not {value}; leave it out, or start with --overwrite"
            )
    if given.get("steps") is not None or given.get("epochs") is not None:
        config = dataclasses.replace(config, steps=given.get("steps"), epochs=given.get("epochs"))
    return config
