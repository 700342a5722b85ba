"""`genfast evaluate`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from genfast._optional import require
from genfast.training.evaluate import EVALUATION
from genfast.training.evaluate import evaluate as run


def evaluate(folder: Path, **options: Any) -> None:
    """Evaluate a run and print what was found."""
    with _bar() as progress:
        found = run(folder, progress=progress, **options)
    print("\n".join(_lines(found)))
    print(f"written to {folder / EVALUATION}")


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    tqdm = require("tqdm", "the progress bar")
    with tqdm.tqdm(unit="beta", disable=None, dynamic_ncols=True, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            if done < bar.n:  # the other side begins
                bar.reset()
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _lines(found: dict[str, Any]) -> Iterator[str]:
    log_z = found["log_z"]
    if log_z["method"] == "exact":
        yield f"log Z      {log_z['log_z']:.4f}, exact"
    else:
        for name in ("lower", "upper"):
            side = log_z[name]
            yield (
                f"log Z      {side['log_z']:.3f} +- {side['stderr']:.3f}, {side['method']}, {log_z['runs']} runs "
                f"({side['ess']:.1f} effective), {log_z['betas']:,} betas"
            )
        yield f"           the truth lies between them, on average: a gap of {log_z['gap']:.3f} nats"
    for split in ("train", "test"):
        if split in found:
            part = found[split]
            for key, name in (("log_likelihood", "log-likelihood"), ("pseudo_log_likelihood", "pseudo-log-likelihood")):
                value = part[key]
                what = f"variational bound on the {name}" if "bound" in value["method"] else name
                yield (
                    f"{split:10} {value['mean']:.3f} +- {value['stderr']:.3f} nats, {what} of a row, "
                    f"{part['rows']:,} rows"
                )
