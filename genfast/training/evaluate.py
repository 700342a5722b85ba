"""`evaluate` tells how good the machine of a run is: log Z from both sides, likelihoods in nats, in one JSON file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genfast import data
from genfast._errors import RunError
from genfast.boltzmann import BoltzmannMachine, LogLikelihood, LogPartition, ais_bracket, exact_log_z, log_likelihood
from genfast.boltzmann import pseudo_log_likelihood as pseudo
from genfast.recipes._options import MAX_SEED, Field
from genfast.training import files
from genfast.training.saved import load_recipe

EVALUATION = "evaluation.json"
_SUMMED_HIDDEN = 10  # up to so many hidden units of a general machine a pseudo-likelihood sums them out
_EXACT_UNITS = 20  # up to so many units of the smaller layer log Z is enumerated: a second or two


def evaluate(
    folder: str | os.PathLike[str],
    *,
    runs: int = 100,
    betas: int = 14_500,
    sweeps: int = 1000,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate the machine of a run on its data and write evaluation.json: what `genfast evaluate` does.

    log Z is exact where the smaller layer has at most 20 units. Otherwise it is `ais_log_z` from the base rates of the
    training data, with `reverse_ais_log_z` from the other side: its samples are chains from rows of that data.

    Args:
        folder: the `out` of `genfast.fit` or `genfast train`.
        runs: AIS runs from either side.
        betas: steps of the ladder.
        sweeps: of the chains from which reverse AIS starts.
        seed: of everything random.
        device: "auto", "cpu", "cuda" or "cuda:N".
        progress: see `genfast.boltzmann.ais_log_z`.

    Returns:
        What the file holds: `log_z` (with the bracket), and for `train` and, where the data have them, `test` rows the
        mean log-likelihood and pseudo-log-likelihood with their standard errors.

    Raises:
        ValueError: an option or the checkpoint is not what it should be, or the model has no such likelihood.
        OSError: the file cannot be written.
    """
    for name, value, least in (("runs", runs, 2), ("betas", betas, 1), ("sweeps", sweeps, 1)):
        Field(name, int, optional=False, default=None, help="", at_least=least).check(value)
    Field("seed", int, optional=False, default=None, help="", at_least=0, at_most=MAX_SEED).check(seed)
    recipe = load_recipe(Path(folder), device)
    model: Any = recipe.model
    rows = {}
    for split in ("train", "test") if recipe.options.data in ("mnist", "fashion-mnist") else ("train",):
        options = {"split": split} if split == "test" else {}
        source: Any = data.load(recipe.options.data, **options)
        states = recipe.evaluated_rows(source)
        if states is None:
            raise RunError(f"{recipe.name()} has no likelihood that genfast evaluate knows")
        rows[split] = states.to(next(model.parameters()).device)
    log_z, found = _log_z(model, rows["train"], runs, betas, sweeps, seed, progress)
    for split, states in rows.items():
        found[split] = {
            "rows": len(states),
            "log_likelihood": _told(log_likelihood(model, states, log_z)),
            "pseudo_log_likelihood": _told(pseudo(model, states, exact=_sums_hidden(model))),
        }
    files.write_atomically(Path(folder) / EVALUATION, (json.dumps(found, indent=2) + "\n").encode())
    return found


def _log_z(
    model: Any, rows: Tensor, runs: int, betas: int, sweeps: int, seed: int, progress: Callable[[int, int], None] | None
) -> tuple[float | LogPartition, dict[str, Any]]:
    """The log Z that likelihoods take, and what is told of it."""
    if _is_small(model):
        value = exact_log_z(model)
        return value, {"log_z": {"method": "exact", "log_z": value}}
    generator = torch.Generator(rows.device).manual_seed(seed)
    start = rows[torch.randint(len(rows), (runs,), generator=generator, device=rows.device)]
    samples = model.sample(runs, sweeps, start=start, generator=generator)
    bracket = ais_bracket(model, samples=samples, betas=betas, n_runs=runs, base=rows, seed=seed + 1, progress=progress)
    sides = {
        name: {"method": side.method, "log_z": side.log_z, "stderr": side.stderr, "ess": side.ess}
        for name, side in (("lower", bracket.lower), ("upper", bracket.upper))
    }
    return bracket.lower, {"log_z": {**sides["lower"], **sides, "gap": bracket.gap, "runs": runs, "betas": betas}}


def _is_small(model: Any) -> bool:
    """Whether the smaller layer, or the only one, can be enumerated at once; of a general machine all units."""
    if isinstance(model, BoltzmannMachine):
        return model.n_units <= _EXACT_UNITS
    sizes = [n for n in (model.n_visible, getattr(model, "n_hidden", 0)) if n]
    return all(isinstance(n, int) for n in sizes) and min(sizes) <= _EXACT_UNITS


def _sums_hidden(model: Any) -> bool:
    """Whether a pseudo-likelihood is a sum over hidden states, not an estimate by samples of them."""
    return not isinstance(model, BoltzmannMachine) or model.n_hidden <= _SUMMED_HIDDEN


def _told(x: LogLikelihood) -> dict[str, float | str]:
    return {"mean": x.mean, "stderr": x.stderr, "method": x.method}
