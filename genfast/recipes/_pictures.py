"""Pictures, drawn by matplotlib, as the bytes of PNG files."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast._optional import require


def figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches."""
    return require("matplotlib.figure", "pictures").Figure(figsize=(width, height), layout="constrained")


def png(drawn: Any) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


# -- images -----------------------------------------------------------------------------------------------------------


def image_shape(n_pixels: int, shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """The shape to draw n_pixels values in: that of an image, else a square or the widest flat rectangle."""
    if shape is not None and (len(shape) == 2 or shape[0] in (1, 3)):
        return tuple(shape)
    height = math.isqrt(n_pixels)
    while n_pixels % height:
        height -= 1
    return height, n_pixels // height


def _mosaic(images: Tensor, shape: tuple[int, ...], columns: int, *, border: float) -> np.ndarray:
    """Images `[N, pixels]` as one array, in rows of `columns`, with a border of one pixel; channels come last."""
    *channels, height, width = shape
    rows = -(-len(images) // columns)
    out = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, *channels), border, np.float32)
    for i, image in enumerate(images.reshape(-1, *shape).cpu().numpy()):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        out[top : top + height, left : left + width] = np.moveaxis(image, 0, -1) if channels else image
    return out


def draw_images(axes: Any, title: str, images: Tensor, shape: tuple[int, ...], columns: int) -> None:
    """A grid of grey images with values in [0, 1]."""
    axes.imshow(_mosaic(images, shape, columns, border=0.5), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=11)
    axes.axis("off")


def image_samples(samples: Tensor, shape: tuple[int, ...], *, title: str, beside: Tensor | None = None) -> bytes:
    """A grid of samples, beside a grid of data where there is one."""
    panels = [] if beside is None else [("data", beside[: len(samples)])]
    panels.append((title, samples))
    columns = max(1, math.isqrt(len(samples)))
    drawn = figure(4.4 * len(panels), 4.9)
    for i, (name, images) in enumerate(panels):
        draw_images(drawn.add_subplot(1, len(panels), i + 1), name, images, shape, columns)
    return png(drawn)


def draw_filters(axes: Any, W: Tensor, shape: tuple[int, ...], n: int = 100) -> Any:
    """The columns of W `[pixels, units]` with the n largest norms, red for positive, blue for negative."""
    weights = W.detach().T
    if len(shape) == 3:
        weights, shape = weights.reshape(-1, *shape).mean(1).flatten(1), shape[1:]  # of the mean over the channels
    weights = weights[weights.norm(dim=1).argsort(descending=True)[:n]]
    # The few largest weights may saturate: a scale for them would leave the others pale.
    scale = float(np.quantile(weights.abs().cpu().numpy(), 0.995)) or 1.0
    columns = max(1, math.ceil(math.sqrt(len(weights))))
    colours = require("matplotlib", "pictures").colormaps["RdBu_r"].with_extremes(bad="0.25")
    shown = axes.imshow(_mosaic(weights, shape, columns, border=math.nan), cmap=colours, vmin=-scale, vmax=scale)
    axes.set_title(f"weights of {len(weights)} hidden units", fontsize=11)
    axes.axis("off")
    return shown


def filters(W: Tensor, shape: tuple[int, ...]) -> bytes:
    """The weights of the hidden units with the largest ones."""
    drawn = figure(5.4, 4.8)
    axes = drawn.add_subplot()
    drawn.colorbar(draw_filters(axes, W, shape), ax=axes, shrink=0.7, extend="both")
    return png(drawn)


def couplings(J: Tensor, n_visible: int) -> bytes:
    """The couplings J `[n, n]` of a general machine, red for positive, blue for negative; lines part hidden units."""
    drawn = figure(5.4, 4.8)
    axes = drawn.add_subplot()
    scale = float(np.quantile(J.abs().cpu().numpy(), 0.995)) or 1.0
    shown = axes.imshow(J.cpu().numpy(), cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
    if n_visible < len(J):
        for line in (axes.axhline, axes.axvline):
            line(n_visible - 0.5, color="0.25", linewidth=0.8)
    axes.set_title("couplings" if n_visible == len(J) else "couplings; hidden units last", fontsize=11)
    axes.set_xlabel("unit")
    drawn.colorbar(shown, ax=axes, shrink=0.8, extend="both")
    return png(drawn)


def completions(panels: Sequence[Tensor], shape: tuple[int, ...], titles: Sequence[str]) -> bytes:
    """A panel for each `[k, N, pixels]`: an image a column, below it what is known of it, and its completions."""
    k, n = panels[0].shape[:2]
    drawn = figure(0.55 * n * len(panels) + 0.4, 0.55 * k + 0.5)
    for i, (images, title) in enumerate(zip(panels, titles, strict=True)):
        axes = drawn.add_subplot(1, len(panels), i + 1)
        draw_images(axes, f"data, {title}, completions", images.flatten(0, 1), shape, n)
    return png(drawn)


# -- curves and points ------------------------------------------------------------------------------------------------


def learning_curve(rows: Sequence[dict[str, Any]], key: str, label: str) -> bytes:
    """A number of metrics.jsonl against the step."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    drawn = figure(5.6, 3.6)
    axes = drawn.add_subplot()
    axes.plot([p[0] for p in points], [p[1] for p in points], marker="o" if len(points) < 5 else None)
    _focus(axes, np.array([p[1] for p in points]))
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    return png(drawn)


def _focus(axes: Any, values: np.ndarray) -> None:
    """Leave the first steep steps out of view where they would squeeze all others into a line."""
    if len(values) < 20:
        return
    rest = values[len(values) // 20 + 1 :]
    low, high = rest.min(), rest.max()
    margin = 0.08 * (high - low)
    inside = (values >= low - margin) & (values <= high + margin)
    if margin > 0 and not inside.all():
        axes.set_ylim(low - margin, high + margin)


def draw_points(axes: Any, title: str, x: Tensor, extent: tuple[float, float, float, float]) -> None:
    """The first two columns of x as dots."""
    points = x.cpu().numpy()
    axes.scatter(points[:, 0], points[:, 1], s=2.5, alpha=0.45, linewidths=0)
    _frame(axes, title, extent)


def draw_density(axes: Any, title: str, density: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    """A density on a grid."""
    # A narrow ridge may be very high: the colours end where nearly all of the mass lies below.
    mass = np.sort(density, axis=None)
    top = mass[min(np.searchsorted(np.cumsum(mass), 0.98 * mass.sum()), mass.size - 1)] or None
    axes.imshow(density, origin="lower", extent=extent, cmap="viridis", vmin=0, vmax=top, interpolation="bilinear")
    _frame(axes, title, extent)


def grid_lines(low: float, high: float, n: int = 25, points: int = 300) -> Tensor:
    """n horizontal and n vertical lines of the square [low, high]^2 as points, `[2, n, points, 2]`, in float64."""
    at = torch.linspace(low, high, n, dtype=torch.float64)
    along = torch.linspace(low, high, points, dtype=torch.float64)
    horizontal = torch.stack(torch.meshgrid(along, at, indexing="xy"), -1)
    return torch.stack([horizontal, horizontal.flip(-1)])


def draw_grid(axes: Any, title: str, lines: Tensor, extent: tuple[float, float, float, float]) -> None:
    """The lines of `grid_lines`, or what a map makes of them: one colour a family."""
    for family, colour in zip(lines.numpy(), ("tab:red", "tab:orange"), strict=True):
        for line in family:
            axes.plot(line[:, 0], line[:, 1], color=colour, linewidth=0.7, alpha=0.8)
    _frame(axes, title, extent)


def _frame(axes: Any, title: str, extent: tuple[float, float, float, float]) -> None:
    axes.set_xlim(*extent[:2])
    axes.set_ylim(*extent[2:])
    axes.set_aspect("equal" if _alike(extent) else "auto")
    axes.set_title(title, fontsize=11)


def _alike(extent: tuple[float, float, float, float]) -> bool:
    ratio = (extent[1] - extent[0]) / (extent[3] - extent[2])
    return 1 / 3 < ratio < 3
