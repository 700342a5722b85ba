"""Deep Boltzmann machine with binary units: greedy pretraining, then PCD with a mean field."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genfast._errors import RunError
from genfast.boltzmann import DeepBoltzmannMachine
from genfast.boltzmann._dbm_pretrain import Pretraining
from genfast.recipes import _base, _binary, _pictures
from genfast.recipes._chains import ChainRecipe, ChainSampleOptions
from genfast.recipes._options import Options, option

_SHOWN = 100
_EVALUATED = 500  # rows: a mean field costs more than a free energy
_MNIST: dict[str, Any] = {
    "batch_size": 100, "hidden": "500,1000", "epochs": 40, "pretrain_steps": 6000, "lr": 0.005, "k": 5,
    "lr_half_life": 6000,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class DBMOptions(Options):
    """The options of `genfast train dbm`."""

    data: str = option("digits", "digits, mnist, fashion-mnist, or a file of values in [0, 1].")
    epochs: int | None = option(150, "Passes over the data, pretraining included.", at_least=1, shown="150; mnist: 40")
    batch_size: int = option(64, "Rows an update, in each process.", at_least=1, shown="64; mnist: 100")
    lr: float = option(0.02, "Learning rate of the joint training.", above=0, shown="0.02; mnist: 0.005")
    lr_half_life: int = option(
        2000, "Joint updates after which the rate is half: it falls as 1 / (1 + t / half life).", at_least=1,
        shown="2000; mnist: 6000",
    )  # fmt: skip
    hidden: str = option("128,64", "Units of the hidden layers, from below.", shown="128,64; mnist: 500,1000")
    pretrain_steps: int = option(
        800,
        "Updates of each pair of layers before the joint training; 0 for none.",
        at_least=0,
        shown="800; mnist: 6000",
    )
    pretrain_lr: float = option(0.05, "Learning rate of the pretraining, with momentum 0.5.", above=0)
    k: int = option(2, "Gibbs sweeps an update.", at_least=1, shown="2; mnist: 5")
    mean_field_steps: int = option(30, "Most iterations of the mean field in training.", at_least=1)
    tolerance: float = option(1e-3, "Change of a mean at which the mean field is done.", at_least=0)
    average: int = option(
        500, "The model is the mean of the parameters over about this many updates; 0 for the last.", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes(self.hidden)


def sizes(hidden: str) -> list[int]:
    """The numbers in "500,1000"."""
    return _binary.layer_sizes(hidden, "1 to 7 numbers of units such as 500,1000", most=7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DBMSampleOptions(ChainSampleOptions):
    """The options of `genfast sample` for a deep Boltzmann machine."""

    sweeps: int | None = option(
        None, "Gibbs sweeps of each chain.", at_least=1, shown="200 from the persistent chains, else 2000"
    )


class Recipe(ChainRecipe[DBMOptions]):
    """Greedy pretraining, then PCD-k with SGD, on binarised images; see `genfast.boltzmann.DeepBoltzmannMachine`."""

    Options = DBMOptions
    SampleOptions = DBMSampleOptions
    loss_name = "contrastive loss"
    default_sweeps = (200, 2000)
    model: DeepBoltzmannMachine

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of MNIST."""
        return dict(_MNIST) if given.get("data") in ("mnist", "fashion-mnist") else {}

    @classmethod
    def start(cls, options: DBMOptions, source: _base.Source) -> "Recipe":
        """Binarise the images and start the visible biases at their means."""
        source = _binary.images(source, "a DBM")
        recipe = cls(options, dim=source.x.shape[1], shape=source.shape)
        recipe.rows = recipe.evaluated_rows(source)
        recipe.model.init_vbias(recipe.rows)
        recipe.notes += _binary.notes(source)
        return recipe

    def build(self) -> DeepBoltzmannMachine:
        """The machine."""
        model = DeepBoltzmannMachine(self.dim, sizes(self.options.hidden), init_std=0.01)
        model.max_iterations, model.tolerance = self.options.mean_field_steps, self.options.tolerance
        self._updates, self._error = 0, 0.0
        self._pretraining: Pretraining | None = None
        return model

    # -- training -----------------------------------------------------------------------------------------------------

    @property
    def _pretrain_updates(self) -> int:
        return self.options.pretrain_steps * len(self.model.weights)

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD, of the joint training."""
        return torch.optim.SGD(self.model.parameters(), lr=self.options.lr)

    def loss(self, batch: Tensor) -> Tensor:
        """The PCD loss of a batch; while pairs are trained, 0, and the pair has taken its step."""
        if self._updates < self._pretrain_updates:
            self._pretrain(batch)
            return sum((p.sum() * 0 for p in self.model.parameters()), batch.new_zeros(()))
        self._updates += 1
        with self.unchecked():
            self._chains_for(batch)
            return self.model.pcd_loss(batch, self.options.k, generator=self.seeds)

    def _chains_for(self, batch: Tensor) -> None:
        """Start the persistent chains, one for each row of a batch, where there are none."""
        if self.model.n_chains == 0:
            self.start_chains(len(batch))

    def before_update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of the joint training."""
        t = max(0, self._updates - 1 - self._pretrain_updates)
        for group in optimizer.param_groups:
            group["lr"] = self.options.lr / (1 + t / self.options.lr_half_life)

    def direct_step(self, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """The same update with the gradient in closed form; NaN anywhere in the machine reaches the visible bias."""
        if self._updates < self._pretrain_updates:
            self._last = (batch, None)
            self._pretrain(batch)
        else:
            self._updates += 1
            self._chains_for(batch)
            self._last = (batch, self.model.pcd_backward(batch, self.options.k, generator=self.seeds))
            self.before_update(optimizer, self._updates)
            optimizer.step()
        return torch.stack([b.detach().sum() for b in self.model.biases]).sum()

    def direct_loss(self) -> float:
        """The contrastive loss of the last batch; the reconstruction error of its pair while pairs are trained."""
        batch, means = self._last
        if means is None:
            return self._error
        with self.unchecked(), torch.no_grad():
            return float(self.model.contrastive_loss(batch, self.model.layers(self.model.chains), means=means))

    def _pretrain(self, batch: Tensor) -> None:
        """One update of the pair whose turn it is."""
        if self._pretraining is None:
            self._pretraining = Pretraining(self.model, momentum=0.5)
        pair = self._updates // self.options.pretrain_steps
        self._error = self._pretraining.step(batch, pair, lr=self.options.pretrain_lr, reduce=_mean_of_processes)
        self._updates += 1
        if self._updates == self._pretrain_updates:
            self._pretraining.finish()
            self._pretraining = None

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Of at most 500 rows of the data: pseudo-log-likelihood, the bound plus log Z, squared error of the images."""
        if self.rows is None:
            return {}
        rows = self.rows[:_EVALUATED]
        generator = torch.Generator(rows.device).manual_seed(0)
        means = self.model.mean_field(rows, tolerance=1e-4)
        again = self.model.layer_probs([None, means[0]], 0)
        return {
            "pseudo_likelihood": float(self.model.pseudo_likelihood(rows, generator=generator).mean()),
            "bound_plus_log_z": float(-self.model.variational_free_energy(rows, means).mean()),
            "reconstruction_error": float((again - rows).square().sum(1).mean()),
        }

    def state(self) -> dict[str, Tensor]:
        """The persistent chains, the number of updates, and what the pretraining keeps while it lasts."""
        kept = {} if self._pretraining is None else self._pretraining.state()
        return {
            **super().state(),
            "updates": torch.tensor(self._updates),
            **{f"pretraining.{name}": t for name, t in kept.items()},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take chains, number and pretraining."""
        super().load_state(state)
        updates = state.get("updates")
        if not isinstance(updates, Tensor) or updates.numel() != 1:
            raise RunError("it does not say how many updates were made")
        self._updates, self._pretraining = int(updates), None
        if 0 < self._updates < self._pretrain_updates:
            self._pretraining = Pretraining(self.model, momentum=0.5)
            prefix = "pretraining."
            kept = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            try:
                self._pretraining.load_state(kept)
            except ValueError as error:
                raise RunError(f"its pretraining does not fit: {error}") from error

    # -- divergence ---------------------------------------------------------------------------------------------------

    def objective(self, loss: float, metrics: Mapping[str, float]) -> float | None:
        """Minus the pseudo-log-likelihood of the whole machine, which there is once its pairs are trained."""
        return None if self._updates < self._pretrain_updates else super().objective(loss, metrics)

    # -- pictures and samples -----------------------------------------------------------------------------------------

    def pictures(self, generator: torch.Generator) -> dict[str, bytes]:
        """Samples beside data, the weights of the first hidden layer, and reconstructions beside data."""
        shape = _pictures.image_shape(self.dim, self.shape)
        _, shown, what = self.draw(_SHOWN, DBMSampleOptions(), generator)
        beside = None if self.rows is None else self.rows[:_SHOWN]
        drawn = {
            "samples.png": _pictures.image_samples(shown, shape, title=what, beside=beside),
            "filters.png": _pictures.filters(self.model.weights[0], shape),
        }
        if beside is not None:
            again = self.model.reconstruct(beside)
            drawn["reconstructions.png"] = _pictures.image_samples(
                again, shape, title="from the mean field of h1", beside=beside
            )
        return drawn

    def keeps_chains(self) -> bool:
        """Not before the pairs are trained; new ones serve too."""
        return False

    def new_chains(self, n: int, generator: torch.Generator) -> Tensor:
        """Each unit drawn from its bias alone."""
        p = torch.sigmoid(torch.cat(list(self.model.biases))).expand(n, -1)
        return torch.bernoulli(p.to(generator.device), generator=generator).to(self.model.chains)

    def run_chains(
        self, start: Tensor, sweeps: int, options: DBMSampleOptions, generator: torch.Generator, first_chain: int
    ) -> tuple[Tensor, Tensor]:
        """States 0/1, and the probabilities that they were drawn from."""
        dbm = self.model
        states = dbm.gibbs(dbm.layers(start), sweeps, generator=generator, first_chain=first_chain)
        return states[0], dbm.layer_probs(states, 0)


def _mean_of_processes(t: Tensor) -> None:
    """Replace a tensor by its mean over all processes, where there are several."""
    dist = torch.distributed
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(t)
        t.div_(dist.get_world_size())
