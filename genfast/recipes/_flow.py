"""What the recipes of flows share: rows or images, maximum likelihood, and the fit to a density of the plane."""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from genfast import data
from genfast._errors import RunError
from genfast._errors import option as named
from genfast.flows import AffineTransform, Flow, Logit, Standardize, StandardNormal
from genfast.recipes import _base, _pictures
from genfast.recipes._grid import noise_widths
from genfast.recipes._options import Options, option

_SHOWN = 4000
_IMAGES = 64
_EVALUATED = 1000
_ALPHA = 0.05
_PLANE = (-4.0, 4.0, -4.0, 4.0)
DATA_HELP = (
    "The densities u1 to u4, the samples moons, rings, pinwheel, checkerboard, the images digits, mnist, "
    "fashion-mnist, or a file of rows."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowOptions(Options):
    """The options of every flow."""

    batch_size: int = option(512, "Rows an update, in each process.", at_least=1)
    lr_decay: int = option(
        500, "Steps after which the rate is half, after twice as many a third, and so on; 0 keeps it.", at_least=0
    )
    clip: float = option(1.0, "Largest norm of a gradient; 0 clips none.", at_least=0)
    standardize: bool | None = option(
        None, "Scale the columns to mean 0 and deviation 1 inside the flow.", shown="for rows of files and arrays"
    )
    logit: float | None = option(
        None,
        "Take the logit of alpha + (1 - 2 alpha) x of data in [0, 1] inside the flow, with this alpha; 0 for none.",
        at_least=0,
        below=0.5,
        shown=f"{_ALPHA} for images",
    )
    dequantize: float | None = option(
        None,
        "Width of uniform noise added to all columns; 0 for none.",
        at_least=0,
        shown="that of a column's grid",
    )


O = TypeVar("O", bound=FlowOptions)  # noqa: E741


class FlowRecipe(_base.Recipe[O]):
    """Maximum likelihood on rows of data or on images, or the reverse KL divergence to a density in the plane.

    A subclass sets `Options` and gives `layers`. Where their last one gives images (its `event_dim_out` is 3), the
    model is over `self.image_shape`, and rows are reshaped for it.
    """

    Options = FlowOptions
    loss_name = "-log p"
    model: Flow
    #: The least number of dimensions.
    min_dim = 2
    #: Options that have other defaults for digits, mnist and fashion-mnist.
    image_presets: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, options: O, *, dim: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(options, dim=dim, shape=shape)
        self._width = torch.zeros(dim)  # of the noise that each column gets
        self._noisy = False
        self._test: tuple[str, Tensor] | None = None

    def layers(self) -> list[nn.Module]:
        """The transforms, the first one acts on noise; that which brings data near it, `build` adds."""
        raise NotImplementedError

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of a row, where the rows are images."""
        if self.shape is None:
            return None
        channels, height, width = self.shape if len(self.shape) == 3 else (1, *self.shape)
        return channels, height, width

    @classmethod
    def presets(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of images."""
        return dict(cls.image_presets) if given.get("data") in data.IMAGES else {}

    @classmethod
    def upgrade(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Runs of format 1 had a constant rate and took the data as they were."""
        as_it_was = {"lr_decay": 0, "clip": 0.0, "standardize": False, "dequantize": 0.0}
        return {**super().upgrade(config), **as_it_was}

    @classmethod
    def start(cls, options: O, source: _base.Source) -> "FlowRecipe[O]":
        """Look at the scale of the data, and build the flow for it."""
        if isinstance(source, data.Density):
            for name in ("standardize", "dequantize", "logit"):
                if not getattr(options, name):
                    continue
                word = named(name)
                raise RunError(f"{word}: {source.name} is a density, want rows of data")
            recipe = cls(dataclasses.replace(options, standardize=False, dequantize=0.0), dim=2)
            recipe.density = source
            return recipe
        dim = source.x.shape[1]
        if dim < cls.min_dim:
            raise RunError(f"{cls.name()} splits its dimensions; {source.name} has {dim}, want at least {cls.min_dim}")
        recipe = cls(_scaling(options, source), dim=dim, shape=source.shape)
        if options.dequantize is not None:
            recipe._width = torch.full((dim,), options.dequantize)
        elif source.name not in data.SAMPLES:
            recipe._width = noise_widths(source)
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
        if self.options.logit:
            if low < 0 or high > 1:
                raise RunError(f"{named('logit')}: {source.name} has values from {low:g} to {high:g}, want [0, 1]")
            top = max(1.0, float((x.amax(0) + width).max()))  # noise lies above the pixels
            last = self.model.transforms[-1]
            assert isinstance(last, AffineTransform)  # noqa: S101  (see build)
            last.scale.fill_(top)
            self.notes.append(
                f"{source.name}: the flow works on the logit of {self.options.logit:g} + "
                f"{1 - 2 * self.options.logit:g} x / {top:g}, log p and samples are in units of the data"
            )
        elif self.options.standardize:
            last = self.model.transforms[-1]
            assert isinstance(last, Standardize)  # noqa: S101  (see build)
            last.measure(self.events(x), self.events(width))
            self.notes.append(
                f"{source.name} has values from {low:g} to {high:g}: columns are standardised inside the flow, "
                "log p and samples are in units of the data"
            )
        elif max(-low, high) > 10:
            self.notes.append(
                f"{source.name} has values from {low:g} to {high:g}, far from the noise near 0 that the flow starts "
                f"from; the option standardize brings them there"
            )

    def build(self) -> Flow:
        """The flow, with the scale of the data as its last layers where it is to have one."""
        layers = self.layers()
        takes = getattr(layers[0], "event_dim", 1)
        gives = getattr(layers[-1], "event_dim_out", takes)
        noise, shape = ((self.image_shape or (self.dim,)) if dim == 3 else (self.dim,) for dim in (takes, gives))
        scale: list[nn.Module] = []
        if self.options.logit:
            scale = [Logit(self.options.logit, event_dim=gives), AffineTransform(event_dim=gives)]
        elif self.options.standardize:
            scale = [Standardize(shape)]
        return Flow(StandardNormal(noise), [*layers, *scale])

    def events(self, rows: Tensor) -> Tensor:
        """Rows `[..., dim]` as the model takes them: images, where it does."""
        shape = self.image_shape
        return rows if self.model.event_dim_out == 1 or shape is None else rows.unflatten(-1, shape)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n samples as rows `[n, dim]`."""
        return self.model.sample(n, generator=generator).reshape(n, self.dim)

    # -- training -----------------------------------------------------------------------------------------------------

    def loss(self, batch: Tensor) -> Tensor:
        """-mean log p of the rows; of a batch of noise, the reverse KL divergence over its images."""
        if self.density is None:
            if self._noisy:
                batch = torch.addcmul(batch, self._width.to(batch.device), torch.rand_like(batch))
            return self.model.forward_kl(self.events(batch))
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

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Bits per dimension of (at most 1,000) images, and of the test images of mnist and fashion-mnist.

        With noise u that fills the steps w of the grid, E_u[log p(x + u)] + sum log w bounds the log-probability of the
        pixels from below (Theis et al. 2016, section 3.1).
        """
        if self.rows is None or not self.metrics_are_bits():
            return {}
        found = {"bits_per_dim": self._bits_per_dim(self.rows)}
        if self.options.data in ("mnist", "fashion-mnist"):
            if self._test is None or self._test[0] != self.options.data:
                source = data.load(self.options.data, split="test")
                assert isinstance(source, data.Dataset)  # noqa: S101  (not a density)
                self._test = (self.options.data, source.x)
            found["test_bits_per_dim"] = self._bits_per_dim(self._test[1])
        return found

    def _bits_per_dim(self, rows: Tensor) -> float:
        width = self._width.to(self.rows.device if self.rows is not None else rows.device)
        x = rows[:_EVALUATED].to(width.device)
        noise = torch.rand(x.shape, generator=torch.Generator(x.device).manual_seed(0), device=x.device)
        nats = -float(self.model.log_prob(self.events(torch.addcmul(x, width, noise))).mean()) - float(
            width.log().sum()
        )
        return nats / (self.dim * math.log(2))

    # -- pictures and samples -----------------------------------------------------------------------------------------

    def curve(self) -> tuple[str, str]:
        """Bits per dimension of images; else the loss, by the name of what it measures."""
        if self.metrics_are_bits():
            return "bits_per_dim", "bits per dimension"
        return "loss", "reverse KL divergence" if self._fits_density() else self.loss_name

    def metrics_are_bits(self) -> bool:
        """Whether `metrics` gives bits per dimension."""
        return self.shape is not None and bool((self._width > 0).all())

    def _fits_density(self) -> bool:
        return self.options.data in data.DENSITIES

    def pictures(self, generator: torch.Generator) -> dict[str, bytes]:
        """Images beside data; or the target (density or data), the flow's density, its samples, and a warped grid."""
        if self.shape is not None:
            samples = self.draw(_IMAGES, generator).clamp(0, 1)
            picture = _pictures.image_samples(samples, self.shape, title="samples of the flow", beside=self.rows)
            return {"samples.png": picture}
        samples = self.draw(_SHOWN, generator)
        drawn = {"samples.png": self._picture(samples, self.rows)}
        if self.dim == 2:
            drawn["warped_grid.png"] = self._warped_grid(samples if self.rows is None else self.rows)
        return drawn

    def sample(self, n: int, options: Any, generator: torch.Generator) -> _base.Samples:
        """n independent points, or images with values in [0, 1]."""
        x = self.draw(n, generator)
        if self.shape is not None:
            x, size = x.clamp(0, 1), " x ".join(map(str, self.shape))
            picture = _pictures.image_samples(x[:_IMAGES], self.shape, title="samples of the flow")
            return _base.Samples(x, f"{n} images of {size} pixels", {"samples.png": picture})
        what = f"{n} points of {self.dim} dimensions"
        return _base.Samples(x, what, {"samples.png": self._picture(x[:20000], None)})

    def _warped_grid(self, points: Tensor) -> bytes:
        """Lines of noise from -3 to 3, and what the flow makes of them, over its density."""
        extent = self._extent(points)
        flow = copy.deepcopy(self.model).cpu().double()
        lines = _pictures.grid_lines(-3.0, 3.0)
        with torch.no_grad():
            warped = flow(lines)[0]
        drawn = _pictures.figure(8.2, 4.0)
        _pictures.draw_grid(drawn.add_subplot(1, 2, 1), "a grid of noise", lines, (-3.2, 3.2, -3.2, 3.2))
        axes = drawn.add_subplot(1, 2, 2)
        _pictures.draw_density(axes, "", _on_grid(flow.log_prob, extent), extent)
        _pictures.draw_grid(axes, "the grid under the flow, over its density", warped, extent)
        return _pictures.png(drawn)

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


def _scaling(options: O, source: data.Dataset) -> O:
    """The options with what is done to the scale of the data: the logit for images, else columns are standardised."""
    if options.logit and options.standardize:
        raise RunError(f"{named('logit')} and {named('standardize')}: got both, want one of them")
    image = source.shape is not None and 0 <= float(source.x.min()) <= float(source.x.max()) <= 1
    if options.logit is None and options.standardize is None and image:
        return dataclasses.replace(options, logit=_ALPHA, standardize=False)
    if options.standardize is None:
        return dataclasses.replace(options, standardize=source.name not in data.SAMPLES and not options.logit)
    return options


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
