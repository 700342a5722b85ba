"""The figure of planar flows of Rezende & Mohamed (2015), with radial and Sylvester flows beside.

    python -m benchmarks.planar_figure --out docs/

Fits flows of 2, 8 and 32 layers to the densities U1 to U4 by the reverse KL divergence, and writes a picture and a page
with the divergence that remains: log Z is known by quadrature, so it is the divergence itself and not a bound.
"""

import argparse
import io
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from genfast import data
from genfast.flows import Flow, PlanarFlow, RadialFlow, SylvesterFlow
from genfast.recipes import _pictures

DENSITIES = ("u1", "u2", "u3", "u4")
LAYERS = (2, 8, 32)
MODELS: dict[str, Callable[..., Flow]] = {"planar": PlanarFlow, "radial": RadialFlow, "Sylvester": SylvesterFlow}
SHOWN = [("planar", 2), ("planar", 8), ("planar", 32), ("radial", 32), ("Sylvester", 32)]
BATCH, RATE, EVALUATED = 512, 2e-2, 100_000
EXTENT = (-4.0, 4.0, -4.0, 4.0)

PAGE = """# Planar, radial and Sylvester flows in the plane

The densities U1 to U4 of Rezende & Mohamed (2015, figure 3), fitted by the reverse KL divergence, KL(q || p), with 2, 8
and 32 layers. Sylvester flows have two units a layer, as many as dimensions. U2, U3 and U4 have no finite integral over
the plane: they are restricted to |z1| <= 4 by a steep wall (`genfast.data.Density`).

![The densities and what flows make of them](planar_figure.png)

The divergence that remains, in nats: the mean of log q(x) - log p(x) over {evaluated:,} samples of the flow, with the
normaliser of p by quadrature; 0 is a perfect fit.

{table}

Each flow was trained once, from seed 0, with {steps:,} steps of Adam on {batch} samples each: rate {rate:g}, falling
to 0 along a cosine; the target's temperature falls from 10 to 1 in the first half. The standard error of a number is at
most {error:.3f}. `--steps` sets another number; the runs share one process and its threads.

```bash
python -m benchmarks.planar_figure --out docs/
```
"""


def fit(model: Callable[..., Flow], layers: int, density: data.Density, steps: int, seed: int = 0) -> Flow:
    """A flow of this many layers, trained on the density."""
    torch.manual_seed(seed)
    flow = model(2, layers)
    optimizer = torch.optim.Adam(flow.parameters(), lr=RATE)
    for step in range(steps):
        heat = min(1.0, 0.1 + 1.8 * step / steps)
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = flow.reverse_kl(lambda x, heat=heat: heat * density.log_prob(x), BATCH)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
    return flow


@torch.no_grad()
def divergence(flow: Flow, density: data.Density, n: int = EVALUATED) -> tuple[float, float]:
    """KL(q || p) and its standard error."""
    torch.manual_seed(1)
    x, log_q = flow.sample_and_log_prob(n)
    terms = (log_q - density.log_prob(x)).double() + density.log_normalizer
    return float(terms.mean()), float(terms.std()) / math.sqrt(n)


def draw(densities: Sequence[data.Density], flows: dict[tuple[str, int, str], Flow], resolution: int = 160) -> bytes:
    """A row for each density, beside it the flows."""
    axis = torch.linspace(EXTENT[0], EXTENT[1], resolution)
    grid = torch.cartesian_prod(axis, axis)[:, [1, 0]]  # rows of the picture are z2
    figure = _pictures.figure(1.5 * (len(SHOWN) + 1), 1.65 * len(densities))
    for row, density in enumerate(densities):
        panels = [(density.name.upper(), density.log_prob)]
        panels += [(f"{model}, K = {k}", flows[model, k, density.name].log_prob) for model, k in SHOWN]
        for column, (title, log_prob) in enumerate(panels):
            axes = figure.add_subplot(len(densities), len(panels), row * len(panels) + column + 1)
            with torch.no_grad():
                shown = log_prob(grid).exp().reshape(resolution, resolution).numpy()
            _pictures.draw_density(axes, "", shown, EXTENT)
            axes.set_title(title if row == 0 or column == 0 else "", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
    return _in_palette(_pictures.png(figure))


def _in_palette(png: bytes) -> bytes:
    """The same picture in 256 colours, a third of the bytes."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(out, "PNG", optimize=True)
    return out.getvalue()


def table(results: dict[tuple[str, int, str], tuple[float, float]], names: Sequence[str]) -> str:
    """The divergences in markdown."""
    models = list(dict.fromkeys(model for model, _, _ in results))
    layers = list(dict.fromkeys(k for _, k, _ in results))
    lines = ["| | " + " | ".join(f"{m}, K = {k}" for m in models for k in layers) + " |"]
    lines.append("|---" * (len(models) * len(layers) + 1) + "|")
    for name in names:
        cells = [f"{results[m, k, name][0]:.3f}" for m in models for k in layers]
        lines.append(f"| {name.upper()} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write planar_figure.png and planar_figure.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the picture and the page")
    parser.add_argument("--steps", type=int, default=2000, help="updates of each flow")
    options = parser.parse_args(arguments)
    densities = [data.load(name) for name in DENSITIES]
    started = time.perf_counter()
    flows: dict[tuple[str, int, str], Flow] = {}
    results: dict[tuple[str, int, str], tuple[float, float]] = {}
    for model, build in MODELS.items():
        for k in LAYERS:
            for density in densities:
                flow = fit(build, k, density, options.steps)
                flows[model, k, density.name] = flow
                results[model, k, density.name] = divergence(flow, density)
                print(f"{model}, K = {k}, {density.name}: {results[model, k, density.name][0]:.3f}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "planar_figure.png").write_bytes(draw(densities, flows))
    page = PAGE.format(
        evaluated=EVALUATED, table=table(results, DENSITIES), steps=options.steps, batch=BATCH, rate=RATE,
        error=max(error for _, error in results.values()),
    )  # fmt: skip
    (options.out / "planar_figure.md").write_text(page)
    seconds, threads = time.perf_counter() - started, torch.get_num_threads()
    print(f"wrote planar_figure.png and planar_figure.md to {options.out}: {seconds:.0f} s on {threads} threads")


if __name__ == "__main__":
    main()
