"""The pictures of a run, drawn by matplotlib and written whole."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast import data
from genfast._optional import require
from genfast.boltzmann import RBM
from genfast.cli.files import write_atomically
from genfast.flows import Flow

_SPAN = 4.0


def _figure(width: float, height: float) -> Any:
    return require("matplotlib.figure", "pictures").Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def image_shape(n_pixels: int, shape: Sequence[int] | None = None) -> tuple[int, int]:
    """(height, width) to draw n_pixels values in: the known shape, else a square or the widest flat rectangle."""
    if shape is not None:
        return shape[0], shape[1]
    height = math.isqrt(n_pixels)
    while n_pixels % height:
        height -= 1
    return height, n_pixels // height


def _mosaic(images: Tensor, shape: tuple[int, int], columns: int, *, border: float) -> np.ndarray:
    """Images `[N, pixels]` as one array, in rows of `columns`, with a border of one pixel."""
    height, width = shape
    rows = -(-len(images) // columns)
    out = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), border, np.float32)
    for i, image in enumerate(images.reshape(-1, height, width).cpu().numpy()):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        out[top : top + height, left : left + width] = image
    return out


def image_samples(path: Path, samples: Tensor, shape: tuple[int, int], *, beside: Tensor | None = None) -> None:
    """samples.png: a grid of samples, beside a grid of data where there is one."""
    panels = (
        [("drawn by the model", samples)] if beside is None else [("data", beside), ("drawn by the model", samples)]
    )
    columns = max(1, math.isqrt(len(samples)))
    figure = _figure(4.2 * len(panels), 4.6)
    for i, (title, images) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        axes.imshow(_mosaic(images[: len(samples)], shape, columns, border=0.5), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
        axes.axis("off")
    _save(figure, path)


def filters(path: Path, rbm: RBM, shape: tuple[int, int], *, n: int = 100) -> None:
    """filters.png: the weights of the n hidden units with the largest ones, red for positive, blue for negative."""
    figure = _figure(5.4, 4.8)
    axes = figure.add_subplot()
    figure.colorbar(_draw_filters(axes, rbm, shape, n), ax=axes, shrink=0.7)
    _save(figure, path)


def _draw_filters(axes: Any, rbm: RBM, shape: tuple[int, int], n: int) -> Any:
    weights = rbm.W.detach().T
    weights = weights[weights.norm(dim=1).argsort(descending=True)[:n]]
    scale = float(weights.abs().max()) or 1.0
    columns = max(1, math.ceil(math.sqrt(len(weights))))
    colours = require("matplotlib", "pictures").colormaps["RdBu_r"].with_extremes(bad="0.25")
    shown = axes.imshow(_mosaic(weights, shape, columns, border=math.nan), cmap=colours, vmin=-scale, vmax=scale)
    axes.set_title(f"weights of {len(weights)} hidden units")
    axes.axis("off")
    return shown


def demo(
    path: Path,
    rbm: RBM,
    shape: tuple[int, int],
    *,
    digits: Tensor,
    samples: Tensor,
    curves: dict[str, list[tuple[float, float]]],
) -> None:
    """The picture of `genfast demo`: data, samples, filters, and pseudo-likelihood against time for each contender."""
    figure = _figure(13.6, 3.3)
    axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.15])
    for panel, title, images in ((axes[0], "handwritten digits", digits), (axes[1], "drawn by the machine", samples)):
        panel.imshow(_mosaic(images[:100], shape, 10, border=0.5), cmap="gray", vmin=0, vmax=1)
        panel.set_title(title)
        panel.axis("off")
    _draw_filters(axes[2], rbm, shape, 100)
    for name, points in curves.items():
        axes[3].plot([p[0] for p in points], [p[1] for p in points], label=name)
    axes[3].set_xlabel("seconds of training")
    axes[3].set_ylabel("pseudo-log-likelihood")
    axes[3].grid(alpha=0.3)
    axes[3].legend()
    _save(figure, path)


def learning_curve(path: Path, rows: list[dict[str, Any]], loss_name: str) -> None:
    """learning_curve.png: the pseudo-likelihood (Boltzmann machines) or the loss (flows) against the step."""
    key, label = (
        ("pseudo_likelihood", "pseudo-log-likelihood") if "pseudo_likelihood" in rows[-1] else ("loss", loss_name)
    )
    points = [(row["step"], row[key]) for row in rows if key in row]
    figure = _figure(5.6, 3.6)
    axes = figure.add_subplot()
    axes.plot([p[0] for p in points], [p[1] for p in points])
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    _save(figure, path)


def _grid(n: int) -> tuple[Tensor, tuple[float, float, float, float]]:
    axis = torch.linspace(-_SPAN, _SPAN, n)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    return grid, (-_SPAN, _SPAN, -_SPAN, _SPAN)


def flow_samples(
    path: Path, flow: Flow, samples: Tensor, *, target: data.Density | None = None, beside: Tensor | None = None
) -> None:
    """samples.png of a flow; of more than two dimensions the first two are drawn, without densities."""
    if samples.shape[1] == 2:
        _plane(path, flow, samples, target=target, beside=beside)
        return
    figure = _figure(4.2, 4.2)
    axes = figure.add_subplot()
    for x, name in ((beside, "data"), (samples, "samples")):
        if x is not None:
            points = torch.cat([x, torch.zeros(len(x), 1, device=x.device)], 1)[: len(samples), :2].cpu().numpy()
            axes.scatter(points[:, 0], points[:, 1], s=1.5, alpha=0.5, linewidths=0, label=name)
    axes.set_title(f"first 2 of {samples.shape[1]} dimensions")
    axes.legend(markerscale=5)
    _save(figure, path)


@torch.no_grad()
def _plane(
    path: Path, flow: Flow, samples: Tensor, *, target: data.Density | None = None, beside: Tensor | None = None
) -> None:
    """samples.png of a flow in the plane: the target (density or data), the flow's density, its samples."""
    grid, extent = _grid(200)
    device = samples.device
    density = flow.log_prob(grid.flatten(0, 1).to(device)).exp().reshape(grid.shape[:-1]).cpu().numpy()
    figure = _figure(11.4, 4.0)
    panels: list[tuple[str, Any]] = [("density of the flow", density), ("samples of the flow", samples)]
    if target is not None:
        exact = (target.log_prob(grid) - target.log_normalizer).exp().numpy()
        panels.insert(0, (f"target {target.name}", exact))
    elif beside is not None:
        panels.insert(0, ("data", beside[: len(samples)]))
    for i, (title, content) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        if isinstance(content, Tensor):
            x, y = content.cpu().numpy().T
            axes.scatter(x, y, s=1.5, alpha=0.5, linewidths=0)
        else:
            axes.imshow(content, origin="lower", extent=extent, cmap="viridis")
        axes.set_xlim(-_SPAN, _SPAN)
        axes.set_ylim(-_SPAN, _SPAN)
        axes.set_aspect("equal")
        axes.set_title(title)
    _save(figure, path)
