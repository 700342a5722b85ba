"""Draws how much faster genfast is than each contender, case by case."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .timing import Result

__all__ = ["draw"]


def draw(results: Sequence[Result], machine: dict[str, Any], path: Path) -> bool:
    """Saves a bar chart on a logarithmic axis; False where matplotlib is missing or nothing was compared."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bars = [(result, row) for result in results for row in result.rows[1:] if row.speedup is not None]
    if not bars:
        return False
    names = list(dict.fromkeys(row.name for _, row in bars))
    colours = {name: f"C{i % 10}" for i, name in enumerate(names)}
    figure, axes = plt.subplots(figsize=(9.0, 1.4 + 0.32 * len(bars)), layout="constrained")
    labelled: set[str] = set()
    for i, (_, row) in enumerate(bars):
        assert row.speedup is not None
        ratio = row.speedup
        axes.barh(
            i,
            ratio.median,
            xerr=[[ratio.median - ratio.low], [ratio.high - ratio.median]],
            color=colours[row.name],
            ecolor="0.3",
            label=None if row.name in labelled else row.name,
        )
        labelled.add(row.name)
        if row.target is not None:
            axes.plot([row.target, row.target], [i - 0.4, i + 0.4], color="black", linewidth=2)
    axes.axvline(1.0, color="0.5", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(bars)), [f"{result.op} {result.label}" for result, _ in bars], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than (black mark: the goal)")
    axes.set_title(
        f"genfast on {machine['gpu'] or machine['processor']}, {machine['threads']} threads, torch {machine['torch']}",
        fontsize=9,
    )
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
