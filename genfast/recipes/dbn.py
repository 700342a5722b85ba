"""Deep belief network of binary units: greedy layers, then up-down fine-tuning."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genfast._errors import RunError
from genfast.boltzmann import DeepBeliefNetwork
from genfast.recipes import _base, _binary, _pictures
from genfast.recipes._options import Options, OptionsBase, option

_SHOWN = 100
_MNIST: dict[str, Any] = {"batch_size": 128, "lr": 0.05, "hidden": "500,500", "layer_epochs": 5, "epochs": 15}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DBNOptions(Options):
    """The options of `genfast train dbn`."""

    data: str = option("digits", "digits, mnist, fashion-mnist, or a file of values in [0, 1].")
    epochs: int | None = option(60, "Passes over the data in all.", at_least=1, shown="60; mnist: 15")
    batch_size: int = option(32, "Rows an update, in each process.", at_least=1, shown="32; mnist: 128")
    lr: float = option(0.1, "Learning rate of SGD; a tenth of it while fine-tuning.", above=0, shown="0.1; mnist: 0.05")
    hidden: str = option("200,100", "Units of the hidden layers, from the lowest.", shown="200,100; mnist: 500,500")
    layer_epochs: int = option(
        20, "Passes for each layer; what is left of epochs is up-down fine-tuning.", at_least=1, shown="20; mnist: 5"
    )
    k: int = option(1, "Gibbs sweeps an update.", at_least=1)
    method: str = option("cd", "cd, or pcd: persistent chains, of each layer in turn.", choices=("pcd", "cd"))
    momentum: float = option(0.5, "Of the descent.", at_least=0, below=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DBNSampleOptions(OptionsBase):
    """The options of `genfast sample` for a deep belief network."""

    sweeps: int = option(1000, "Gibbs sweeps of the top RBM.", at_least=1)


class Recipe(_base.Recipe[DBNOptions]):
    """One layer after another by CD-k or PCD-k, then all by contrastive wake-sleep; see `DeepBeliefNetwork`.

    The phase follows from the step alone. A layer is prepared by its first step, and the ways up and down are untied by
    the first step of fine-tuning.
    """

    Options = DBNOptions
    SampleOptions = DBNSampleOptions
    loss_name = "reconstruction"
    model: DeepBeliefNetwork

    def __init__(self, options: DBNOptions, *, dim: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(options, dim=dim, shape=shape)
        self._step = 0
        self._last: Tensor | None = None

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of MNIST."""
        return dict(_MNIST) if given.get("data") in ("mnist", "fashion-mnist") else {}

    @classmethod
    def start(cls, options: DBNOptions, source: _base.Source) -> "Recipe":
        """Binarise the images."""
        source = _binary.images(source, "a deep belief network")
        rows = source.binarized().x
        recipe = cls(options, dim=rows.shape[1], shape=source.shape)
        recipe.rows = rows
        recipe.model.init_layer(0, rows)
        recipe.notes += _binary.notes(source)
        return recipe

    def build(self) -> DeepBeliefNetwork:
        """The network, with weights of about the variance that Glorot and Bengio advise."""
        sizes = _binary.layer_sizes(self.options.hidden, "numbers of units such as 200,100")
        return DeepBeliefNetwork(self.dim, sizes, init_std=math.sqrt(2 / (self.dim + sizes[0])))

    # -- phases -------------------------------------------------------------------------------------------------------

    def _steps_of_a_layer(self) -> int:
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        rows = 1 if self.rows is None else len(self.rows)
        return self.options.layer_epochs * -(-rows // (self.options.batch_size * processes))

    def phase(self, step: int) -> int:
        """The layer that update number `step` (from 0) trains; the number of layers stands for up-down fine-tuning."""
        return min(step // self._steps_of_a_layer(), self.model.n_layers)

    def _prepare(self) -> int:
        """The phase of the update to come, begun where this is its first one."""
        phase = self.phase(self._step)
        if self._step > 0 and self.phase(self._step - 1) != phase:
            if phase == self.model.n_layers:
                self.model.untie()
            elif self.rows is not None:
                self.model.init_layer(phase, self.rows)
        return phase

    def _rest(self, phase: int, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradients, and the momentum, of what the phase does not train; set its learning rate."""
        tuning = phase == self.model.n_layers
        trained = set(self.model.parameters() if tuning else self.model.layer(phase).parameters())
        for p in self.model.parameters():
            if p not in trained:
                p.grad = None
        for group in optimizer.param_groups:
            group["lr"] = self.options.lr / (10 if tuning else 1)

    # -- training -----------------------------------------------------------------------------------------------------

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.model.parameters(), lr=self.options.lr, momentum=self.options.momentum)

    def loss(self, batch: Tensor) -> Tensor:
        """The loss of the phase that the step belongs to."""
        phase, k, persistent = self._prepare(), self.options.k, self.options.method == "pcd"
        for i in range(self.model.n_layers):
            self.model.layer(i).nonfinite_check = False
        try:
            if phase == self.model.n_layers:
                loss = self.model.up_down_loss(batch, k, persistent=persistent)
            else:
                loss = self.model.layer_loss(batch, phase, k, persistent=persistent)
        finally:
            for i in range(self.model.n_layers):
                self.model.layer(i).nonfinite_check = True
        # every parameter takes part, as averaging over processes wants it
        return loss + sum((p.sum() for p in self.model.parameters()), torch.zeros(())) * 0

    def before_update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Only the phase's parameters move."""
        self._rest(self.phase(step), optimizer)
        self._step = step + 1

    def direct_step(self, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """The same update with gradients in closed form."""
        phase, k, persistent = self._prepare(), self.options.k, self.options.method == "pcd"
        self._rest(phase, optimizer)
        if phase == self.model.n_layers:
            self.model.up_down_backward(batch, k, persistent=persistent)
            sign = self.model.layer(0).vbias
        else:
            self.model.layer_backward(batch, phase, k, persistent=persistent)
            sign = self.model.layer(phase).vbias
        optimizer.step()
        self._step += 1
        self._last = batch
        return sign.detach().sum()

    @torch.no_grad()
    def direct_loss(self) -> float:
        """The cross-entropy of the last batch with its reconstruction, in nats a row."""
        return math.nan if self._last is None else self._reconstruction(self._last)

    def _depth(self) -> int:
        """Layers that have been trained, or are being."""
        return min(self.phase(max(self._step - 1, 0)) + 1, self.model.n_layers)

    @torch.no_grad()
    def _reconstruction(self, rows: Tensor) -> float:
        p = self.model.reconstruct(rows, self._depth()).clamp(1e-6, 1 - 1e-6)
        return float(functional.binary_cross_entropy(p, rows, reduction="sum") / len(rows))

    def metrics(self) -> dict[str, float]:
        """The phase (a layer from 1, then up-down), the reconstruction, and the pseudo-likelihood of its layer."""
        if self.rows is None:
            return {}
        rows, depth = self.rows[: _base.EVALUATED_ROWS], self._depth()
        generator = torch.Generator(rows.device).manual_seed(0)
        x = self.model.sample_up(rows, depth - 1, generator=generator)
        likelihood = self.model.layer(depth - 1).pseudo_likelihood(x, generator=generator)
        return {
            "phase": float(self.phase(max(self._step - 1, 0)) + 1),
            "reconstruction": self._reconstruction(rows),
            "pseudo_likelihood": float(likelihood.mean()),
        }

    def state(self) -> dict[str, Tensor]:
        """The number of updates done, and the persistent chains of each layer."""
        chains = {f"chains{i}": self.model.layer(i).chains.detach().cpu() for i in range(self.model.n_layers)}
        return {"updates": torch.tensor(self._step), **chains}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take them."""
        for i in range(self.model.n_layers):
            rbm, chains = self.model.layer(i), state.get(f"chains{i}")
            fits = isinstance(chains, Tensor) and chains.ndim == 2 and chains.shape[1] == rbm.n_visible
            if chains is None or not fits or not bool(((chains == 0) | (chains == 1)).all()):
                raise RunError(f"the persistent chains of layer {i + 1} are not states 0/1 of {rbm.n_visible} units")
            rbm.chains = chains.to(rbm.W)
        updates = state.get("updates")
        if not isinstance(updates, Tensor) or updates.numel() != 1:
            raise RunError("the number of its updates is missing")
        self._step = int(updates)

    @classmethod
    def merge_states(cls, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The chains of all processes."""
        chains = {k: torch.cat([state[k] for state in states]) for k in states[0] if k.startswith("chains")}
        return {"updates": states[0]["updates"], **chains}

    # -- divergence: the reconstruction, for contrastive losses are no measure of the fit ------------------------------

    def objective(self, loss: float, metrics: Mapping[str, float]) -> float | None:
        """The reconstruction's cross-entropy."""
        return metrics.get("reconstruction")

    def starting_objective(self) -> float:
        """The same of the untrained network."""
        return self.metrics()["reconstruction"]

    def tolerance(self, start: float) -> float:
        """Twenty times what fair coins would cost."""
        return 20 * math.log(2) * self.dim

    # -- pictures and samples -----------------------------------------------------------------------------------------

    def curve(self) -> tuple[str, str]:
        """The reconstruction, which rises a little whenever a layer is added."""
        return "reconstruction", "cross-entropy of the reconstruction (nats)"

    def pictures(self, generator: torch.Generator) -> dict[str, bytes]:
        """Samples beside data, reconstructions beside their data, and the weights of the lowest layer."""
        shape = _pictures.image_shape(self.dim, self.shape)
        samples = self.sample(_SHOWN, DBNSampleOptions(), generator).pictures
        shown = {**samples, "filters.png": _pictures.filters(self.model.layer(0).W, shape)}
        if self.rows is not None:
            rows = self.rows[:_SHOWN]
            with torch.no_grad():
                again = self.model.reconstruct(rows, self._depth())
            shown["reconstructions.png"] = _pictures.image_samples(again, shape, title="reconstructions", beside=rows)
        return shown

    @torch.no_grad()
    def sample(self, n: int, options: DBNSampleOptions, generator: torch.Generator) -> _base.Samples:
        """States 0/1 drawn by the top RBM and the way down; the picture shows the probabilities of the last step."""
        h = self.model.top.sample(n, options.sweeps, generator=generator)
        if self.model.n_layers == 1:
            p = self.model.top.visible_probs(self.model.top.sample_hidden(h, generator=generator))
        else:
            p = self.model.sample_down(h, means=True, generator=generator)
        v = torch.bernoulli(p, generator=generator)
        shape = _pictures.image_shape(self.dim, self.shape)
        what = f"{options.sweeps:,} sweeps of the top RBM"
        beside = None if self.rows is None else self.rows[: len(p)]
        picture = _pictures.image_samples(p[: 20 * 20], shape, title=what, beside=beside)
        return _base.Samples(v, f"{n} states of {self.dim} units, {what} and the way down", {"samples.png": picture})
