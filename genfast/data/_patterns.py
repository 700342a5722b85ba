"""Patterns: small sets of which every member is known, to judge a model by its exact likelihood."""

import torch
from torch import Tensor

from genfast._arguments import integer

PATTERNS = ("bars-and-stripes",)
_LARGEST = 16


def bars_and_stripes(n: int, *, repeats: bool = True) -> Tensor:
    """All images of n x n units whose rows are alike (bars) or whose columns are (stripes): float32 `[N, n * n]`.

    With repeats there are 2^(n + 1), the empty and the full image twice, as either kind; else 2^(n + 1) - 2. No model
    gives the rows a log-likelihood above -41.589 for the 16 of n = 3, and -102.036 for the 30 of n = 4 without repeats.

    Args:
        n: side of the images, at most 16.
        repeats: whether the empty and the full image come twice.

    Raises:
        ValueError: n is not an integer from 1 to 16.

    Source:
        MacKay 2003, "Information theory, inference, and learning algorithms", section 43; Fischer & Igel 2012.

    Example:
        >>> bars_and_stripes(3).shape
        torch.Size([16, 9])
    """
    if integer("n", n) > _LARGEST:
        raise ValueError(f"n: got {n}, want at most {_LARGEST}")
    lines = ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).float()
    bars = lines[:, :, None].expand(-1, n, n).flatten(1)
    stripes = lines[:, None, :].expand(-1, n, n).flatten(1)
    return torch.cat([bars, stripes if repeats else stripes[1:-1]])
