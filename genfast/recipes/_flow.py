"""What the recipes of flows share: data in the plane or of any width, maximum likelihood, and the fit to a density."""

import copy
import dataclasses
import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from genfast import data
from genfast._errors import RunError
from genfast._errors import option as named
from genfast.flows import Flow, Standardize, StandardNormal
from genfast.recipes import _base, _pictures
from genfast.recipes._options import Options, option

_SHOWN = 4000
_MOST_COLUMNS = 1000
_PLANE = (-4.0, 4.0, -4.0, 4.0)
DATA_HELP = "The densities u1 to u4, the samples moons, rings, pinwheel, checkerboard, or a file of rows."


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowOptions(Options):
    """The options of every flow."""

    batch_size: int = option(512, "Rows an update, in each process.", at_least=1)
    lr_decay: int = option(
        500, "Steps after which the rate is half, after twice as many a third, and so on; 0 keeps it.", at_least=0
    )
    clip: float = option(1.0, "Largest norm of a gradient; 0 clips none.", at_least=0)
    standardize: bool | None = option(
        None, "Scale the columns to mean 0 and deviation 1 inside the flow.", shown="for files and arrays"
    )
    dequantize: float | None = option(
        None,
        "Width of uniform noise added to all columns; 0 for none.",
        at_least=0,
        shown="that of a column's grid",
    )


O = TypeVar("O", bound=FlowOptions)  # noqa: E741


def grid_step(x: Tensor) -> float:
    """The step of the grid on which the values of x lie (1 for whole numbers, 1/255 for pixels), 0 where on none.

    A grid has far fewer values than x has entries, all of them whole multiples of the least distance.
    """
    values = torch.unique(x)
    if not 2 <= len(values) <= min(4096, x.numel() // 3):
        return 0.0
    values = values.double()
    step = float(values.diff().min())
    off = (values / step - (values / step).round()).abs().max()
    return step if float(off) < 1e-2 else 0.0


def grid_steps(x: Tensor) -> Tensor:
    """`grid_step` of all columns together, or of each one where they have none in common: `[D]`."""
    common = grid_step(x)
    if common or x.shape[1] > _MOST_COLUMNS:
        return torch.full(x.shape[1:], common)
    return torch.tensor([grid_step(column) for column in x.T])


class FlowRecipe(_base.Recipe[O]):
    """Maximum likelihood on rows of data, or the reverse KL divergence to a density in the plane.

    A subclass sets `Options` and gives `layers`.
    """

    Options = FlowOptions
    loss_name = "-log p"
    model: Flow
    #: The least number of dimensions.
    min_dim = 2

    def __init__(self, options: O, *, dim: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(options, dim=dim, shape=shape)
        self._width = torch.zeros(dim)  # of the noise that each column gets
        self._noisy = False

    def layers(self) -> list[nn.Module]:
        """The transforms, the first one acts on noise."""
        raise NotImplementedError

    @classmethod
    def upgrade(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Runs of format 1 had a constant rate and took the data as they were."""
        as_it_was = {"lr_decay": 0, "clip": 0.0, "standardize": False, "dequantize": 0.0}
        return {**super().upgrade(config), **as_it_was}

    @classmethod
    def start(cls, options: O, source: _base.Source) -> "FlowRecipe[O]":
        """Look at the scale of the data, and build the flow for it."""
        if isinstance(source, data.Density):
            if options.standardize or options.dequantize:
                word = named("standardize" if options.standardize else "dequantize")
                raise RunError(f"{word}: {source.name} is a density, want rows of data")
            recipe = cls(dataclasses.replace(options, standardize=False, dequantize=0.0), dim=2)
            recipe.density = source
            return recipe
        if source.name in data.IMAGES:
            choices = ", ".join(data.SAMPLES + data.DENSITIES)
            raise RunError(f"{cls.name()} trains on the plane, not on {source.name}; take one of {choices} or a file")
        dim = source.x.shape[1]
        if dim < cls.min_dim:
            raise RunError(f"{cls.name()} splits its dimensions; {source.name} has {dim}, want at least {cls.min_dim}")
        ours = source.name in data.SAMPLES
        scaled = not ours if options.standardize is None else options.standardize
        recipe = cls(dataclasses.replace(options, standardize=scaled), dim=dim, shape=source.shape)
        if options.dequantize is not None:
            recipe._width = torch.full((dim,), options.dequantize)
        elif not ours:
            recipe._width = grid_steps(source.x)
        recipe.rows = source.x
        recipe._noisy = bool(recipe._width.any())
        recipe._look(source)
        return recipe

    def _look(self, source: data.Dataset) -> None:
        """Fit the scale to the data and say what was done, and what stays odd."""
        x, width = source.x, self._width
        noisy = width.nonzero()[:, 0].tolist()
        if noisy:
            where = "the values" if len(noisy) == self.dim else f"{len(noisy)} of {self.dim} columns"
            wide = " and ".join(sorted({f"{w:g}" for w in (width[noisy].min(), width[noisy].max())}))
            self.notes.append(f"{where} of {source.name} lie on a grid: uniform noise of width {wide} fills it")
        constant = ((x == x[0]).all(0) & (width == 0)).nonzero()[:, 0].tolist()
        if constant:
            self.notes.append(
                f"column {constant[0]} of {source.name} is constant"
                f"{f', as are {len(constant) - 1} others' if len(constant) > 1 else ''}: its density has no bound"
            )
        low, high = float(x.min()), float(x.max())
        if self.options.standardize:
            self._standardize().measure(x, width)
            self.notes.append(
                f"{source.name} has values from {low:g} to {high:g}: columns are standardised inside the flow, "
                "log p and samples are in units of the data"
            )
        elif max(-low, high) > 10:
            self.notes.append(
                f"{source.name} has values from {low:g} to {high:g}, far from the noise near 0 that the flow starts "
                f"from; the option standardize brings them there"
            )

    def _standardize(self) -> Standardize:
        last = self.model.transforms[-1]
        assert isinstance(last, Standardize)  # noqa: S101  (see build)
        return last

    def build(self) -> Flow:
        """The flow, with the scale of the data as its last layer where it is to have one."""
        scale = [Standardize(self.dim)] if self.options.standardize else []
        return Flow(StandardNormal(self.dim), [*self.layers(), *scale])

    # -- training -----------------------------------------------------------------------------------------------------

    def loss(self, batch: Tensor) -> Tensor:
        """-mean log p of the rows; of a batch of noise, the reverse KL divergence over its images."""
        if self.density is None:
            if self._noisy:
                batch = torch.addcmul(batch, self._width.to(batch.device), torch.rand_like(batch))
            return self.model.forward_kl(batch)
        x, log_det = self.model(batch)
        log_q = self.model.base.log_prob(batch) - log_det  # type: ignore[operator]
        loss: Tensor = (log_q - self.density.log_prob(x)).mean() + self.density.log_normalizer
        return loss

    def before_update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Clip the gradient; lower the rate as 1 / (1 + step / lr_decay), which knows nothing of the run's end."""
        if self.options.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        if self.options.lr_decay:
            for group in optimizer.param_groups:
                group["lr"] = self.options.lr / (1 + step / self.options.lr_decay)

    # -- pictures and samples -----------------------------------------------------------------------------------------

    def curve(self) -> tuple[str, str]:
        """The loss, by the name of what it measures."""
        return "loss", "reverse KL divergence" if self._fits_density() else self.loss_name

    def _fits_density(self) -> bool:
        return self.options.data in data.DENSITIES

    def pictures(self, generator: torch.Generator) -> dict[str, bytes]:
        """The target (density or data), the flow's density, its samples."""
        samples = self.model.sample(_SHOWN, generator=generator)
        return {"samples.png": self._picture(samples, self.rows)}

    def sample(self, n: int, options: Any, generator: torch.Generator) -> _base.Samples:
        """n independent points."""
        x = self.model.sample(n, generator=generator)
        what = f"{n} points of {self.dim} dimensions"
        return _base.Samples(x, what, {"samples.png": self._picture(x[:20000], None)})

    def _picture(self, samples: Tensor, rows: Tensor | None) -> bytes:
        extent = self._extent(samples if rows is None else rows)
        panels: list[tuple[str, Any]] = []
        if self._fits_density():
            target = data.load(self.options.data)
            assert isinstance(target, data.Density)  # noqa: S101  (see _fits_density)
            panels.append(
                (f"target {target.name}", _on_grid(target.log_prob, extent) / math.exp(target.log_normalizer))
            )
        elif rows is not None:
            panels.append(("data", rows[: len(samples)]))
        if self.dim == 2:
            # In float64: where a layer squeezes the plane, float32 leaves specks in its inverse.
            flow = copy.deepcopy(self.model).cpu().double()
            panels.append(("density of the flow", _on_grid(flow.log_prob, extent)))
        of = "" if self.dim == 2 else f", columns 0 and 1 of {self.dim}" if self.dim > 2 else ", against row number"
        panels.append((f"samples of the flow{of}", samples))
        drawn = _pictures.figure(3.9 * len(panels), 4.0)
        for i, (title, content) in enumerate(panels):
            axes = drawn.add_subplot(1, len(panels), i + 1)
            if isinstance(content, Tensor):
                _pictures.draw_points(axes, title, _plane(content), extent)
            else:
                _pictures.draw_density(axes, title, content, extent)
        return _pictures.png(drawn)

    def _extent(self, x: Tensor) -> tuple[float, float, float, float]:
        """The part of the plane to draw: the usual square, or where (nearly) all of the rows lie."""
        if not self.options.standardize:
            return _PLANE
        points = _plane(x).cpu().numpy()
        low, high = np.quantile(points, 0.002, axis=0), np.quantile(points, 0.998, axis=0)
        margin = np.maximum(0.15 * (high - low), 1e-3)
        low, high = low - margin, high + margin
        return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def _plane(x: Tensor) -> Tensor:
    """The first two columns; a single column against the number of its row."""
    if x.shape[1] > 1:
        return x[:, :2]
    return torch.cat([torch.linspace(0, 1, len(x), device=x.device)[:, None], x], 1)


@torch.no_grad()
def _on_grid(log_prob: Any, extent: tuple[float, float, float, float], n: int = 300) -> np.ndarray:
    """exp(log_prob) on the middles of n x n cells, in float64."""
    left, right, bottom, top = extent
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x, y = left + (right - left) * middles, bottom + (top - bottom) * middles
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
    density: np.ndarray = log_prob(grid).exp().reshape(n, n).numpy()
    return density
