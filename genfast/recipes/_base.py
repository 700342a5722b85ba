"""What a recipe tells the training loop, and what it may leave as it is."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from genfast import data
from genfast._errors import RunError
from genfast.recipes._options import Options, OptionsBase

O = TypeVar("O", bound=Options)  # noqa: E741
Source = data.Dataset | data.Density
EVALUATED_ROWS = 2000


@dataclasses.dataclass
class Samples:
    """What sampling gives.

    Attributes:
        x: the samples, one a row.
        what: what they are, in words.
        pictures: PNG files by name.
    """

    x: Tensor
    what: str
    pictures: dict[str, bytes]


class Recipe(Generic[O]):
    """How one model is trained; an instance is one run of it.

    A subclass named `Recipe` in `genfast/recipes/<model>.py` sets `Options` and `loss_name` and gives `build`, `loss`,
    `pictures` and `sample`; `start` where the data need a look first. The rest has defaults.

    Args:
        options: of the run.
        dim: number of values in a row of the data.
        shape: (height, width) or (channels, height, width) of a row, where the rows are images.

    Raises:
        RunError: the shape is not that of a row.
    """

    Options: ClassVar[type[Options]] = Options
    SampleOptions: ClassVar[type[OptionsBase]] = OptionsBase
    #: What the loss is called in progress and pictures.
    loss_name: ClassVar[str] = "loss"

    def __init__(self, options: O, *, dim: int, shape: tuple[int, ...] | None = None) -> None:
        if not is_shape(shape, dim):
            raise RunError(f"data: rows of {dim} values with shape {shape!r}, want None or sizes with product {dim}")
        self.options = options
        self.dim = dim
        self.shape = shape
        #: What `genfast.load` returns and the checkpoint holds.
        self.model: nn.Module = self.build()
        #: The data set, [N, dim], on the device of the run; None for a density and for a model that is only sampled.
        self.rows: Tensor | None = None
        #: The density to fit, where there is no data set.
        self.density: data.Density | None = None
        #: What the recipe did to the data, in sentences for the user.
        self.notes: list[str] = []
        #: This process among those of the run.
        self.rank, self.n_ranks = 0, 1

    @classmethod
    def name(cls) -> str:
        """The model's name: that of the file."""
        return cls.__module__.rpartition(".")[2]

    # -- options ------------------------------------------------------------------------------------------------------

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that depend on other options, e.g. on `given.get("data")`; by default none."""
        return {}

    @classmethod
    def upgrade(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The options of a checkpoint of format 1, as today's options give the same run."""
        names = {field.name for field in dataclasses.fields(cls.Options)}
        return {**{name: value for name, value in config.items() if name in names}, "average": 0}

    # -- the model and its data ---------------------------------------------------------------------------------------

    @classmethod
    def start(cls, options: O, source: Source) -> "Recipe[O]":
        """The untrained model for these data.

        Raises:
            RunError: the model is not for such data.
        """
        if isinstance(source, data.Density):
            raise RunError(f"{cls.name()} learns from rows of data, not from the density {source.name}")
        recipe = cls(options, dim=source.x.shape[1], shape=source.shape)
        recipe.rows = source.x
        return recipe

    def build(self) -> nn.Module:
        """The untrained model over `self.dim` dimensions."""
        raise NotImplementedError

    def noise(self, n: int, device: torch.device) -> Tensor:
        """A batch where there is no data set: by default standard normal, `[n, dim]`."""
        return torch.randn(n, self.dim, device=device)

    # -- training -----------------------------------------------------------------------------------------------------

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the model's parameters; by default Adam."""
        return adam(self.model.parameters(), self.options.lr)

    def loss(self, batch: Tensor) -> Tensor:
        """The loss of a batch `[batch_size, dim]`, differentiable."""
        raise NotImplementedError

    def before_update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Called with the gradients in place, before update number `step` (from 0): schedules and clipping."""

    def direct_step(self, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """One whole update by a faster way than by `loss`, on a single process; None where there is none.

        Returns a number that is finite as long as the training is; `direct_loss` then gives the loss.
        """
        return None

    def direct_loss(self) -> float:
        """The loss of the last `direct_step`."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """What a line of metrics.jsonl holds beside the loss. Draws nothing from the default generator."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What each process has of its own, beside the model and the random numbers."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave.

        Raises:
            RunError: it does not fit the model.
        """

    @classmethod
    def merge_states(cls, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One state from those of all processes, for the model that `genfast.load` returns; by default the first."""
        return states[0]

    # -- divergence ---------------------------------------------------------------------------------------------------

    def objective(self, loss: float, metrics: Mapping[str, float]) -> float | None:
        """The number that tells whether a run has left its start for good, lower is better; by default the loss.

        Args:
            loss: the median of the last 20 updates'.
            metrics: those of the last line of metrics.jsonl, where this is the step of one.
        """
        return loss

    def starting_objective(self) -> float:
        """The same for the model as it is: by default the loss of a batch, without touching the default generator."""
        with torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(self.model)):
            torch.manual_seed(0)
            device = next(self.model.parameters()).device
            batch = self.noise(EVALUATED_ROWS, device) if self.rows is None else self.rows[:EVALUATED_ROWS]
            return float(self.loss(batch))

    def tolerance(self, start: float) -> float:
        """How far above its start the objective may rise before the run counts as diverged."""
        return 100.0 * (abs(start) + self.dim)

    # -- what a run shows ---------------------------------------------------------------------------------------------

    def pictures(self, generator: torch.Generator) -> dict[str, bytes]:
        """The pictures of a finished run, PNG files by name."""
        return {}

    def curve(self) -> tuple[str, str]:
        """The number drawn in learning_curve.png: its key in metrics.jsonl and its name."""
        return "loss", self.loss_name

    def evaluated_rows(self, source: data.Dataset) -> Tensor | None:
        """Rows of a data set as the model takes them, for `genfast evaluate`; None where it has no such likelihood."""
        return None

    def sample(self, n: int, options: Any, generator: torch.Generator) -> Samples:
        """n samples of the trained model; options is an instance of `SampleOptions`."""
        raise NotImplementedError


def is_shape(x: object, dim: int) -> bool:
    """Whether x is what `shape` may be for rows of `dim` values: sizes of images, or None."""
    if not isinstance(x, tuple):
        return x is None
    return len(x) in (2, 3) and all(type(n) is int and n > 0 for n in x) and math.prod(x) == dim


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Adam:
    """Adam, as one kernel over all parameters where torch has it."""
    parameters = list(parameters)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(parameters, lr=lr, fused=fused)
