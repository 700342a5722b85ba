"""General Boltzmann machine, all units coupled, by PCD, CD, pseudo- or exact likelihood."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genfast import data
from genfast._errors import RunError
from genfast._errors import option as named
from genfast._finite import NonFiniteError
from genfast.boltzmann import BoltzmannMachine
from genfast.recipes import _base, _binary, _pictures
from genfast.recipes._chains import ChainRecipe, ChainSampleOptions
from genfast.recipes._options import Options, option

_SHOWN = 100
_ENUMERATED = 20  # units of a machine whose log-likelihood is exact in metrics.jsonl
_TERMS = 2**24  # of the pseudo-likelihood's sum over hidden units, at most; beyond them they are sampled
_SAMPLED_ROWS, _SAMPLED_SWEEPS = 500, 20
_PL_HIDDEN = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class BMOptions(Options):
    """The options of `genfast train bm`."""

    data: str = option("digits", "digits, bars-and-stripes, mnist, or a file of values in [0, 1].")
    epochs: int | None = option(60, "Passes over the data.", at_least=1, shown="60; bars-and-stripes: 2000")
    batch_size: int = option(64, "Rows an update, in each process.", at_least=1)
    lr: float = option(0.005, "Learning rate of Adam.", above=0, shown="0.005; bars-and-stripes: 0.01")
    hidden: int = option(64, "Hidden units; 0 for none.", at_least=0, shown="64; pl: 0; bars-and-stripes: 6")
    method: str = option(
        "pcd",
        "pcd: persistent chains; cd; pl: pseudo-likelihood, without sampling; ml: exact, up to 20 units in all.",
        choices=("pcd", "cd", "pl", "ml"),
    )
    k: int = option(5, "Sweeps of the free phase an update.", at_least=1, shown="5; bars-and-stripes: 10")
    k_data: int = option(
        5, "Sweeps of the hidden units with the data clamped.", at_least=1, shown="5; bars-and-stripes: 10"
    )
    chains: int = option(256, "Persistent chains, in each process.", at_least=1, shown="256; bars-and-stripes: 500")
    temperature: float = option(1.0, "T of p(s) = exp(-E(s) / T) / Z.", above=0)
    average: int = option(
        500, "The model is the mean of the parameters over about this many updates; 0 for the last.", at_least=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BMSampleOptions(ChainSampleOptions):
    """The options of `genfast sample` for a general machine."""

    temperature: float | None = option(None, "Of the sampling.", above=0, shown="that of the machine")


class Recipe(ChainRecipe[BMOptions]):
    """One of four likelihoods, with Adam, on binarised images; see `genfast.boltzmann.BoltzmannMachine`."""

    Options = BMOptions
    SampleOptions = BMSampleOptions
    loss_name = "loss"
    model: BoltzmannMachine

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """No hidden units for the pseudo-likelihood; many updates for the few rows of bars and stripes."""
        values: dict[str, Any] = {"hidden": 0} if given.get("method") == "pl" else {}
        if given.get("data") in data.PATTERNS:
            values = {"hidden": 6, "epochs": 2000, "lr": 0.01, "k": 10, "k_data": 10, "chains": 500, **values}
        return values

    @classmethod
    def start(cls, options: BMOptions, source: _base.Source) -> "Recipe":
        """Binarise the images and start the visible biases at their means."""
        source = _binary.images(source, "a Boltzmann machine")
        if options.method == "pl" and options.hidden > _PL_HIDDEN:
            raise RunError(
                f"{named('hidden')}: got {options.hidden}, want at most {_PL_HIDDEN} with {named('method')} pl, which "
                "sums over all of their states"
            )
        if options.method == "ml" and source.x.shape[1] + options.hidden > _ENUMERATED:
            raise RunError(
                f"{named('method')} ml: got {source.x.shape[1]} visible and {options.hidden} hidden units, want at "
                f"most {_ENUMERATED} in all, whose states can be enumerated"
            )
        recipe = cls(options, dim=source.x.shape[1], shape=source.shape)
        recipe.rows = recipe.evaluated_rows(source)
        recipe.model.init_from_data(recipe.rows)
        recipe.notes += _binary.notes(source)
        return recipe

    def build(self) -> BoltzmannMachine:
        """The machine, with couplings small beside the field that all units together make."""
        o = self.options
        std = 0.5 / math.sqrt(self.dim + o.hidden)
        return BoltzmannMachine(self.dim, o.hidden, temperature=o.temperature, init_std=std)

    # -- training -----------------------------------------------------------------------------------------------------

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        return _base.adam(self.model.parameters(), self.options.lr)

    def loss(self, batch: Tensor) -> Tensor:
        """The loss of a batch by the chosen method."""
        with self.unchecked():
            if self.options.method == "pl":
                return self.model.pseudo_likelihood_loss(batch)
            if self.options.method == "ml":
                return -self.model.log_prob(batch).mean()
            step = self.model.pcd_loss if self._persistent(batch) else self.model.cd_loss
            return step(batch, self.options.k, k_data=self.options.k_data, generator=self.seeds)

    def _persistent(self, batch: Tensor) -> bool:
        """Number the chains; whether they are persistent ones, which are started where there are none."""
        persistent = self.options.method == "pcd"
        if persistent and self.model.n_chains == 0:
            self.start_chains(self.options.chains)
        if not persistent:
            self.number_chains(len(batch))
        return persistent

    def direct_step(self, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """The same update with the gradient in closed form; NaN anywhere in the machine reaches the biases' sum."""
        if self.options.method in ("pl", "ml"):
            return None
        step = self.model.pcd_backward if self._persistent(batch) else self.model.cd_backward
        try:
            self._last = step(batch, self.options.k, k_data=self.options.k_data, generator=self.seeds)
        except NonFiniteError:
            return self.model.bias.new_full((), math.nan)  # the training loop names the step
        optimizer.step()
        return self.model.bias.detach().sum()

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """The mean pseudo-log-likelihood of the data, and the log-likelihood where the machine can be enumerated.

        Of at most 2,000 rows; where there are too many hidden units to sum over, of 500, one random unit a row.
        """
        if self.rows is None:
            return {}
        machine, rows = self.model, self.rows[: _base.EVALUATED_ROWS]
        if len(rows) * (machine.n_visible + 1) << machine.n_hidden <= _TERMS or not machine.n_hidden:
            pseudo = machine.pseudo_likelihood(rows)
        else:
            generator = torch.Generator(rows.device).manual_seed(0)
            some = rows[:_SAMPLED_ROWS]
            pseudo = machine.pseudo_likelihood(some, exact=False, n_sweeps=_SAMPLED_SWEEPS, generator=generator)
        found = {"pseudo_likelihood": float(pseudo.mean())}
        if machine.n_units <= _ENUMERATED:
            found["log_likelihood"] = float(machine.log_prob(rows).mean())
        return found

    # -- pictures and samples -----------------------------------------------------------------------------------------

    def curve(self) -> tuple[str, str]:
        """The log-likelihood where it is known, else the pseudo-likelihood."""
        if self.model.n_units <= _ENUMERATED:
            return "log_likelihood", "log-likelihood"
        return super().curve()

    def pictures(self, generator: torch.Generator) -> dict[str, bytes]:
        """Samples beside data, completions of half images, and the couplings."""
        shape = _pictures.image_shape(self.dim, self.shape)
        _, shown, what = self.draw(_SHOWN, BMSampleOptions(), generator)
        rows = self.rows
        found = {
            "samples.png": _pictures.image_samples(
                shown, shape, title=what, beside=None if rows is None else rows[:_SHOWN]
            ),
            "couplings.png": _pictures.couplings(self.model.J.detach(), self.model.n_visible),
        }
        if rows is not None:
            found["completions.png"] = self._completions(rows[:10], shape, generator)
        return found

    def _completions(self, rows: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> bytes:
        """Images, what is left of them (the left or the upper half), and three completions of each."""
        halves = []
        for side in (-1, -2):
            mask = torch.zeros(shape, dtype=torch.bool, device=rows.device)
            mask.narrow(side, 0, max(1, shape[side] // 2)).fill_(True)
            known = mask.flatten()
            drawn = [self.model.complete(rows, known, n_steps=300, generator=generator) for _ in range(3)]
            grey = torch.where(known, rows, torch.full_like(rows, 0.5))
            halves.append(torch.stack([rows, grey, *drawn]))
        return _pictures.completions(halves, shape, ("left half known", "upper half known"))

    def keeps_chains(self) -> bool:
        """PCD does."""
        return self.options.method == "pcd"

    def new_chains(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent units."""
        return self.model.initial_states(n, generator=generator)

    def run_chains(
        self, start: Tensor, sweeps: int, options: BMSampleOptions, generator: torch.Generator, first_chain: int
    ) -> tuple[Tensor, Tensor]:
        """States 0/1, and the units' probabilities given all others."""
        T = options.temperature
        s = self.model.gibbs(start, sweeps, temperature=T, generator=generator, first_chain=first_chain)
        p = self.model.conditional(s, temperature=T)
        return s[:, : self.dim], p[:, : self.dim]
