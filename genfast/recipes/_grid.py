"""The grid on which values of data lie, and the noise that fills it."""

import torch
from torch import Tensor

from genfast import data

_MOST_COLUMNS = 1000


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


def noise_widths(source: data.Dataset) -> Tensor:
    """The width of the noise that makes the columns of a data set continuous, `[D]`; 0 where they are."""
    if source.shape is not None and source.scale > 1:  # images that were whole numbers: the step is known
        some = source.x[:1000].double() * source.scale
        if float((some - some.round()).abs().max()) < 1e-3:
            return torch.full(source.x.shape[1:], 1 / source.scale)
    return grid_steps(source.x)
