"""Restricted Boltzmann machine with units of any kind, by contrastive divergence."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genfast import data
from genfast._errors import RunError
from genfast._errors import option as named
from genfast.boltzmann import RBM, RBMClassifier, StandardizedRBM, units
from genfast.recipes import _base, _binary, _pictures
from genfast.recipes._chains import ChainRecipe, ChainSampleOptions
from genfast.recipes._options import Options, option

_SHOWN = 100
_FAST = ("fast_W", "fast_vbias", "fast_hbias")
_VISIBLE: dict[str, type[units.Layer]] = {"binary": units.Binary, "spin": units.Spin, "gaussian": units.Gaussian}
_HIDDEN: dict[str, type[units.Layer]] = {**_VISIBLE, "relu": units.ReLU, "double-relu": units.DoubleReLU}
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
    method: str = option(
        "cd", "cd; pcd: persistent chains; fpcd: these with fast weights.", choices=("pcd", "cd", "fpcd"),
        shown="cd; mnist: pcd",
    )  # fmt: skip
    momentum: float = option(0.9, "Of the descent.", at_least=0, below=1, shown="0.9; pcd, fpcd: 0")
    fast_lr: float = option(0.01, "Learning rate of the fast weights of fpcd.", above=0)
    visible: str = option(
        "binary", "Kind of the visible units: binary, spin, or gaussian (values as they are).",
        choices=("binary", "spin", "gaussian"),
    )  # fmt: skip
    hidden_units: str = option(
        "binary", "Kind of the hidden units: binary, spin, gaussian, relu, or double-relu.", choices=tuple(_HIDDEN)
    )
    centered: bool = option(False, "Centred gradients: units relative to running means.")
    scaled: bool = option(False, "Centred gradients, and units scaled by their deviations.")
    weight_decay: float = option(0.0, "Half of the penalty's factor on squared weights (L2).", at_least=0)
    l1: float = option(0.0, "Penalty on absolute weights (L1).", at_least=0)
    sparsity: float | None = option(None, "Mean that each hidden unit shall have over a batch.", shown="none")
    sparsity_cost: float = option(1.0, "Weight of the squared distance to it.", at_least=0)
    labels: int = option(0, "Number of classes to learn with the data, for a model that predicts them.", at_least=0)
    generative: float = option(0.01, "Weight of the contrastive loss beside the labels' likelihood.", at_least=0)
    average: int = option(
        500, "The model is the mean of the parameters over about this many updates; 0 for the last.", at_least=0,
        shown="500; centered, scaled: 0",
    )  # fmt: skip


class Recipe(ChainRecipe[RBMOptions]):
    """CD-k, PCD-k or fast PCD-k with SGD, by default on binarised images; see `genfast.boltzmann.RBM`."""

    Options = RBMOptions
    loss_name = "contrastive loss"
    model: RBM

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of MNIST; no momentum for persistent chains, which mix too slowly for it.

        Real units want smaller steps, and parameters that are relative to moving offsets have no mean.
        """
        values = dict(_MNIST) if given.get("data") in ("mnist", "fashion-mnist") else {}
        if (given.get("method") or values.get("method")) in ("pcd", "fpcd"):
            values["momentum"] = 0.0
        real = ("gaussian", "relu", "double-relu")
        if given.get("visible") in real or given.get("hidden_units") in real:
            values["lr"] = 0.003
        if given.get("centered") or given.get("scaled"):
            values["average"] = 0
        return values

    @classmethod
    def start(cls, options: RBMOptions, source: _base.Source) -> "Recipe":
        """Bring the data to the values of the units, and start the visible biases at their means."""
        real = options.visible == "gaussian"
        if not real:
            source = _binary.images(source, "an RBM", instead=f", or {named('visible')} gaussian")
        elif isinstance(source, data.Density):
            raise RunError(f"an RBM learns binary images, not {source.name}; take digits, mnist or a file")
        if (options.centered or options.scaled) and options.average:
            raise RunError(f"{named('average')}: got {options.average}, but centred parameters have no mean: want 0")
        if (options.centered or options.scaled) and options.labels:
            raise RunError(f"{named('labels')}: not together with {named('centered')} or {named('scaled')}")
        recipe = cls(options, dim=source.x.shape[1], shape=source.shape)
        recipe.rows = recipe.evaluated_rows(source)
        recipe.model.init_from_data(recipe.rows)
        if real:
            recipe._to_the_scale_of(source.x)
        else:
            recipe.notes += _binary.notes(source)
        return recipe

    def _units_of(self, source: data.Dataset) -> Tensor:
        """The rows of data as states of the visible units."""
        if self.options.visible == "gaussian":
            return source.x
        x = source.binarized().x
        return 2 * x - 1 if self.options.visible == "spin" else x

    @torch.no_grad()
    def _to_the_scale_of(self, x: Tensor) -> None:
        """Let weights and hidden biases start for real data as they would for the same data standardised."""
        model, deviation = self.model, x.std(0, correction=0)
        W, vbias, hbias = (p.clone() for p in model._parameters_now())  # noqa: SLF001
        W[: self.dim] /= deviation.clamp(min=max(0.1 * float(deviation.max()), 1e-6))[:, None]
        model._assign(W, vbias, hbias - x.mean(0) @ W[: self.dim])  # noqa: SLF001

    def _labelled(self, rows: Tensor, source: data.Dataset) -> Tensor:
        if source.y is None:
            raise RunError(f"{named('labels')}: {source.name} has no labels")
        low, high, n = int(source.y.min()), int(source.y.max()), self.options.labels
        if low < 0 or high >= n:
            raise RunError(f"{named('labels')}: got {n}, but {source.name} has labels from {low} to {high}")
        return torch.cat([rows, torch.nn.functional.one_hot(source.y, n).to(rows)], 1)

    def build(self) -> RBM:
        """The machine, with weights of the variance that Glorot and Bengio advise."""
        o, std = self.options, math.sqrt(2 / (self.dim + self.options.hidden))
        visible, hidden = _VISIBLE[o.visible](self.dim), _HIDDEN[o.hidden_units](o.hidden)
        if o.labels:
            return RBMClassifier(visible, hidden, n_classes=o.labels, init_std=std)
        if o.centered or o.scaled:
            return StandardizedRBM(visible, hidden, scaled=o.scaled, init_std=std)
        return RBM(visible, hidden, init_std=std)

    # -- training -----------------------------------------------------------------------------------------------------

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.model.parameters(), lr=self.options.lr, momentum=self.options.momentum)

    def loss(self, batch: Tensor) -> Tensor:
        """The CD-k, PCD-k or fast PCD-k loss of a batch, with the penalties and the labels' likelihood."""
        step = getattr(self.model, f"{self.options.method}_loss")
        self._number(batch)
        with self.unchecked():
            loss: Tensor = step(batch, self.options.k, generator=self.seeds, **self._fast())
            if self.options.labels:
                loss = self.options.generative * loss
            more = self._more(batch)
            return loss if more is None else loss + more

    def direct_step(self, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """The same update with the gradient in closed form; NaN anywhere in the machine reaches the visible bias."""
        step = getattr(self.model, f"{self.options.method}_backward")
        self._number(batch)
        self._last = (batch, step(batch, self.options.k, generator=self.seeds, **self._fast()))
        if self.options.labels:
            torch._foreach_mul_(
                [p.grad for p in self.model.parameters() if p.grad is not None], self.options.generative
            )
        more = self._more(batch)
        if more is not None:
            more.backward()
        optimizer.step()
        return self.model.vbias.detach().sum()

    def _number(self, batch: Tensor) -> None:
        """Number the chains; start the persistent ones, one for each row of a batch, where there are none."""
        if self.options.method == "cd":
            self.number_chains(len(batch))
        elif self.model.n_chains == 0:
            self.start_chains(len(batch))

    def _fast(self) -> dict[str, float]:
        return {"fast_lr": self.options.fast_lr} if self.options.method == "fpcd" else {}

    def _more(self, batch: Tensor) -> Tensor | None:
        """What is added to the contrastive loss."""
        o, model, terms = self.options, self.model, []
        if o.weight_decay or o.l1:
            terms.append(model.weight_penalty(l1=o.l1, l2=o.weight_decay))
        if o.sparsity is not None:
            terms.append(o.sparsity_cost * model.sparsity_penalty(batch, o.sparsity))
        if isinstance(model, RBMClassifier):
            terms.append(model.discriminative_loss(*model.split(batch)))
        return torch.stack(terms).sum() if terms else None

    def metrics(self) -> dict[str, float]:
        """How well (at most 2,000 rows of) the data are modelled.

        The mean pseudo-log-likelihood, with one random unit a row as scikit-learn has it, and the accuracy where there
        are labels; the mean squared error of reconstructions where units are real.
        """
        if self.rows is None:
            return {}
        rows, found = self.rows[: _base.EVALUATED_ROWS], {}
        if self.model.visible.n_states is None:
            with torch.no_grad():
                found["reconstruction_error"] = float((self.model.reconstruct(rows) - rows).square().mean())
        else:
            generator = torch.Generator(self.rows.device).manual_seed(0)
            found["pseudo_likelihood"] = float(self.model.pseudo_likelihood(rows, generator=generator).mean())
        if isinstance(self.model, RBMClassifier):
            found["accuracy"] = self.model.score(*self.model.split(rows))
        return found

    def state(self) -> dict[str, Tensor]:
        """The persistent chains, and the fast weights."""
        fast = {name: getattr(self.model, name) for name in _FAST}
        return {**super().state(), **{name: t.detach().cpu() for name, t in fast.items() if t is not None}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take them."""
        super().load_state(state)
        for name in _FAST:
            setattr(self.model, name, state[name].to(self.model.chains) if name in state else None)

    def are_states(self, chains: Tensor) -> bool:
        """Whether the visible units have such states."""
        try:
            self.model.visible.check("chains", chains, self.model.chains.dtype, states=True)
        except (ValueError, TypeError):
            return False
        return True

    def kind_of_states(self) -> str:
        """0/1, or what the kind is called."""
        return "0/1" if self.options.visible == "binary" else f"of {self.options.visible} units"

    # -- divergence: the pseudo-likelihood, for the loss of contrastive divergence is no measure of the fit -----------

    def objective(self, loss: float, metrics: Mapping[str, float]) -> float | None:
        """Minus the pseudo-log-likelihood, or the error of reconstructions."""
        if "reconstruction_error" in metrics:
            return metrics["reconstruction_error"]
        return super().objective(loss, metrics)

    def starting_objective(self) -> float:
        """The same of the untrained machine."""
        return float(self.objective(0.0, self.metrics()) or 0.0)

    def tolerance(self, start: float) -> float:
        """Twenty times what fair coins would give away: each unit on average at odds of a million to one against.

        Reconstructions: a hundred times the error at the start.
        """
        return 100 * start if self.model.visible.n_states is None else super().tolerance(start)

    # -- pictures and samples -----------------------------------------------------------------------------------------

    def curve(self) -> tuple[str, str]:
        """The pseudo-likelihood, or the error of reconstructions."""
        if self.model.visible.n_states is None:
            return "reconstruction_error", "mean squared error of reconstructions"
        return super().curve()

    def pictures(self, generator: torch.Generator) -> dict[str, bytes]:
        """Samples beside data, and the weights."""
        shape = _pictures.image_shape(self.dim, self.shape)
        _, shown, what = self.draw(_SHOWN, ChainSampleOptions(), generator)
        beside = None if self.rows is None else self._pixels(self.rows[:_SHOWN])
        return {
            "samples.png": _pictures.image_samples(shown, shape, title=what, beside=beside),
            "filters.png": _pictures.filters(self.model.W[: self.dim], shape),
        }

    def evaluated_rows(self, source: data.Dataset) -> Tensor:
        """The data as states."""
        rows = self._units_of(source)
        return self._labelled(rows, source) if self.options.labels else rows

    def _pixels(self, v: Tensor) -> Tensor:
        """States or means of visible units as values of the data, without the labels."""
        x = v[:, : self.dim]
        return (x + 1) / 2 if self.options.visible == "spin" else x

    def keeps_chains(self) -> bool:
        """Persistent methods do."""
        return self.options.method != "cd"

    def new_chains(self, n: int, generator: torch.Generator) -> Tensor:
        """A sweep from the visible biases alone."""
        return self.model.sample(n, 1, generator=generator)

    def run_chains(
        self, start: Tensor, sweeps: int, options: ChainSampleOptions, generator: torch.Generator, first_chain: int
    ) -> tuple[Tensor, Tensor]:
        """States, labels in the last columns, and the means (0/1: probabilities) that they were drawn from."""
        v, h = self.model.gibbs(start, sweeps, generator=generator, first_chain=first_chain)
        return v, self._pixels(self.model.visible_mean(h))
