"""Restricted Boltzmann machine with binary units, by contrastive divergence."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from genfast import data
from genfast._errors import RunError
from genfast._errors import option as named
from genfast.boltzmann import RBM
from genfast.recipes import _base, _pictures
from genfast.recipes._options import Options, OptionsBase, option

_SHOWN = 100
_MNIST: dict[str, Any] = {"batch_size": 128, "lr": 0.03, "hidden": 500, "epochs": 15, "method": "pcd"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RBMOptions(Options):
    """The options of `genfast train rbm`."""

    data: str = option("digits", "digits, mnist, fashion-mnist, or a file of values in [0, 1].")
    epochs: int | None = option(60, "Passes over the data.", at_least=1, shown="60; mnist: 15")
    batch_size: int = option(64, "Rows an update, in each process.", at_least=1, shown="64; mnist: 128")
    lr: float = option(0.1, "Learning rate of SGD.", above=0, shown="0.1; mnist: 0.03")
    hidden: int = option(256, "Hidden units.", at_least=1, shown="256; mnist: 500")
    k: int = option(1, "Gibbs sweeps an update.", at_least=1)
    method: str = option("cd", "cd, or pcd: persistent chains.", choices=("pcd", "cd"), shown="cd; mnist: pcd")
    momentum: float = option(0.9, "Of the descent.", at_least=0, below=1, shown="0.9; pcd: 0")
    average: int = option(
        500, "The model is the mean of the parameters over about this many updates; 0 for the last.", at_least=0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RBMSampleOptions(OptionsBase):
    """The options of `genfast sample` for an RBM."""

    sweeps: int | None = option(
        None, "Gibbs sweeps of each chain.", at_least=1, shown="100 from the persistent chains, else 1000"
    )
    fresh: bool = option(False, "Start new chains, though the run kept its persistent ones.")


class Recipe(_base.Recipe[RBMOptions]):
    """CD-k or PCD-k with SGD on binarised images; see `genfast.boltzmann.RBM`."""

    Options = RBMOptions
    SampleOptions = RBMSampleOptions
    loss_name = "contrastive loss"
    model: RBM

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of MNIST; no momentum for persistent chains, which mix too slowly for it."""
        values = dict(_MNIST) if given.get("data") in ("mnist", "fashion-mnist") else {}
        if (given.get("method") or values.get("method")) == "pcd":
            values["momentum"] = 0.0
        return values

    @classmethod
    def start(cls, options: RBMOptions, source: _base.Source) -> "Recipe":
        """Binarise the images and start the visible biases at their means."""
        if isinstance(source, data.Density) or source.name in data.SAMPLES:
            raise RunError(f"an RBM learns binary images, not {source.name}; take digits, mnist or a file")
        low, high = source.x.min().item(), source.x.max().item()
        if not (low >= 0 and high <= 1):
            raise RunError(f"{source.name} has values from {low:g} to {high:g}; an RBM wants them in [0, 1]")
        rows = source.binarized().x
        recipe = cls(options, dim=rows.shape[1], shape=source.shape)
        recipe.rows = rows
        recipe.model.init_vbias(rows)
        if source.name not in data.IMAGES and bool(((source.x > 0) & (source.x < 1)).any()):
            recipe.notes.append(f"grey values of {source.name} count as 1 above 0.5, else as 0")
        return recipe

    def build(self) -> RBM:
        """The machine, with weights of the variance that Glorot and Bengio advise."""
        return RBM(self.dim, self.options.hidden, init_std=math.sqrt(2 / (self.dim + self.options.hidden)))

    # -- training -----------------------------------------------------------------------------------------------------

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.model.parameters(), lr=self.options.lr, momentum=self.options.momentum)

    def loss(self, batch: Tensor) -> Tensor:
        """The CD-k or PCD-k loss of a batch."""
        step = self.model.pcd_loss if self.options.method == "pcd" else self.model.cd_loss
        with self._unchecked():
            return step(batch, self.options.k)

    def direct_step(self, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """The same update with the gradient in closed form; NaN anywhere in the machine reaches the visible bias."""
        step = self.model.pcd_backward if self.options.method == "pcd" else self.model.cd_backward
        self._last = (batch, step(batch, self.options.k))
        optimizer.step()
        return self.model.vbias.detach().sum()

    @torch.no_grad()
    def direct_loss(self) -> float:
        """The contrastive loss of the last batch."""
        with self._unchecked():
            return float(self.model.contrastive_loss(*self._last))

    @contextlib.contextmanager
    def _unchecked(self) -> Iterator[None]:
        """Without the machine's own check: the training loop checks, and names the step."""
        self.model.nonfinite_check = False
        try:
            yield
        finally:
            self.model.nonfinite_check = True

    def metrics(self) -> dict[str, float]:
        """The mean pseudo-log-likelihood of (at most 2,000 rows of) the data, one random unit a row as scikit-learn."""
        if self.rows is None:
            return {}
        generator = torch.Generator(self.rows.device).manual_seed(0)
        rows = self.rows[: _base.EVALUATED_ROWS]
        return {"pseudo_likelihood": float(self.model.pseudo_likelihood(rows, generator=generator).mean())}

    def state(self) -> dict[str, Tensor]:
        """The persistent chains."""
        return {"chains": self.model.chains.detach().cpu()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the persistent chains."""
        chains = state.get("chains")
        fits = isinstance(chains, Tensor) and chains.ndim == 2 and chains.shape[1] == self.dim
        if chains is None or not fits or not bool(((chains == 0) | (chains == 1)).all()):
            raise RunError(f"its persistent chains are not states 0/1 of {self.dim} units")
        self.model.chains = chains.to(self.model.W)

    @classmethod
    def merge_states(cls, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The chains of all processes."""
        return {"chains": torch.cat([state["chains"] for state in states])}

    # -- divergence: the pseudo-likelihood, for the loss of contrastive divergence is no measure of the fit -----------

    def objective(self, loss: float, metrics: Mapping[str, float]) -> float | None:
        """Minus the pseudo-log-likelihood."""
        value = metrics.get("pseudo_likelihood")
        return None if value is None else -value

    def starting_objective(self) -> float:
        """Minus the pseudo-log-likelihood of the untrained machine."""
        return -self.metrics()["pseudo_likelihood"]

    def tolerance(self, start: float) -> float:
        """Twenty times what fair coins would give away: each unit on average at odds of a million to one against."""
        return 20 * math.log(2) * self.dim

    # -- pictures and samples -----------------------------------------------------------------------------------------

    def curve(self) -> tuple[str, str]:
        """The pseudo-likelihood."""
        return "pseudo_likelihood", "pseudo-log-likelihood"

    def pictures(self, generator: torch.Generator) -> dict[str, bytes]:
        """Samples beside data, and the weights."""
        shape = _pictures.image_shape(self.dim, self.shape)
        _, shown, what = self._draw(_SHOWN, RBMSampleOptions(), generator)
        beside = None if self.rows is None else self.rows[:_SHOWN]
        return {
            "samples.png": _pictures.image_samples(shown, shape, title=what, beside=beside),
            "filters.png": _pictures.filters(self.model.W, shape),
        }

    def sample(self, n: int, options: RBMSampleOptions, generator: torch.Generator) -> _base.Samples:
        """States 0/1 at the end of n chains; the picture shows the probabilities that they were drawn from."""
        v, shown, what = self._draw(n, options, generator)
        shape = _pictures.image_shape(self.dim, self.shape)
        picture = _pictures.image_samples(shown[: 20 * 20], shape, title=what)
        return _base.Samples(v, f"{n} states of {self.dim} units, {what}", {"samples.png": picture})

    def evaluated_rows(self, source: data.Dataset) -> Tensor:
        """The images as states."""
        return source.binarized().x

    @torch.no_grad()
    def _draw(self, n: int, options: RBMSampleOptions, generator: torch.Generator) -> tuple[Tensor, Tensor, str]:
        """n states, the probabilities they were drawn from, and where they come from."""
        rbm = self.model
        persistent = rbm.n_chains > 0 and not options.fresh
        sweeps = options.sweeps or (100 if persistent else 1000)
        if persistent:
            order = torch.randperm(rbm.n_chains, generator=generator, device=generator.device)
            start = rbm.chains[order.repeat(-(-n // rbm.n_chains))[:n]]
        else:
            if self.options.method == "pcd" and not options.fresh:
                raise RunError(f"the run kept no persistent chains; give {named('fresh')} to start new ones")
            start = rbm.sample(n, 1, generator=generator)
        v, h = rbm.gibbs(start, sweeps, generator=generator)
        ends = f"{sweeps:,} sweeps from the persistent chains" if persistent else f"{sweeps:,} sweeps of new chains"
        return v, rbm.visible_probs(h), ends
