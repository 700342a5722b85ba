"""Data of binary units: what recipes of Boltzmann machines take, and how they say what they made of it."""

from genfast import data
from genfast._errors import RunError
from genfast._errors import option as named
from genfast.recipes._base import Source


def images(source: Source, who: str, *, instead: str = "") -> data.Dataset:
    """The source, where it is rows of values in [0, 1].

    Args:
        source: what a run is given to learn from.
        who: the model, with its article, for the error.
        instead: what else the user may do, with a comma before.

    Raises:
        RunError: it is a density, samples of one, or has other values.
    """
    if isinstance(source, data.Density) or source.name in data.SAMPLES:
        raise RunError(f"{who} learns binary images, not {source.name}; take digits, mnist or a file")
    low, high = source.x.min().item(), source.x.max().item()
    if not (low >= 0 and high <= 1):
        raise RunError(f"{source.name} has values from {low:g} to {high:g}; {who} wants them in [0, 1]{instead}")
    return source


def notes(source: data.Dataset) -> list[str]:
    """What is told of values in between, but for data sets that are known to be grey images."""
    if source.name in data.IMAGES or not bool(((source.x > 0) & (source.x < 1)).any()):
        return []
    return [f"grey values of {source.name} count as 1 above 0.5, else as 0"]


def layer_sizes(text: str, wanted: str, most: int | None = None) -> list[int]:
    """The numbers of units in "500,1000".

    Raises:
        RunError: it holds anything else, or more than `most` numbers.
    """
    parts = text.replace(" ", "").split(",")
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if len(numbers) < len(parts) or min(numbers) < 1 or (most is not None and len(numbers) > most):
        raise RunError(f"{named('hidden')}: got {text!r}, want {wanted}")
    return numbers
