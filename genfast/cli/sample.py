"""`genfast sample`."""

from pathlib import Path
from typing import Any

from genfast.training.saved import sample as draw


def sample(given: dict[str, Any], *, folder: Path, **shared: Any) -> None:
    """Draw samples and say where they are."""
    drawn, target = draw(folder, **shared, **given)
    if drawn is None:  # another process tells
        return
    names = ["samples.npy", *drawn.pictures]
    print(f"{drawn.what}: {', '.join(str(target / name) for name in names)}")
