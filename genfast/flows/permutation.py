"""Orders and masks of the dimensions between coupling layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genfast._arguments import integer


class Permutation(nn.Module):
    """Reorder the dimensions: x_i = z_perm(i), log|det| = 0.

    Args:
        permutation: the order, a permutation of 0 ... D-1; or "reverse" or "random" (drawn once, here, and saved with
            the model), which need `dim`.
        dim: number of dimensions.
        generator: draws a "random" order; the default generator otherwise.

    Raises:
        ValueError: not a permutation, an unknown name, or a missing dim.

    Example:
        >>> Permutation([2, 0, 1]).forward(torch.tensor([[10.0, 11.0, 12.0]]))[0]
        tensor([[12., 10., 11.]])
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(
        self, permutation: Sequence[int] | str, dim: int | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if isinstance(permutation, str):
            if dim is None:
                raise ValueError(f"dim: got None, want the number of dimensions for the order {permutation!r}")
            integer("dim", dim)
            if permutation == "reverse":
                order = torch.arange(dim - 1, -1, -1)
            elif permutation == "random":
                order = torch.randperm(dim, generator=generator)
            else:
                raise ValueError(f"permutation: got {permutation!r}, want 'reverse', 'random' or a list of integers")
        else:
            order = torch.as_tensor(list(permutation), dtype=torch.int64)
            if order.ndim != 1 or not torch.equal(order.sort().values, torch.arange(len(order))):
                raise ValueError(f"permutation: got {list(permutation)}, want a permutation of 0 to {len(order) - 1}")
            if dim is not None and dim != len(order):
                raise ValueError(f"dim: got {dim}, want {len(order)}, the length of the permutation")
        self.register_buffer("permutation", order)
        self.register_buffer("inverse_permutation", torch.argsort(order))

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"dim={len(self.permutation)}"

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map z `[..., D]` to (x, log_det = 0)."""
        return z.index_select(-1, self.permutation), z.new_zeros(z.shape[:-1])

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x `[..., D]` to (z, log_det = 0)."""
        return x.index_select(-1, self.inverse_permutation), x.new_zeros(x.shape[:-1])


def alternating_mask(dim: int, *, odd: bool = True) -> Tensor:
    """The checkerboard mask of a coupling layer: the odd (or the even) dimensions are transformed; bool `[dim]`."""
    integer("dim", dim)
    return (torch.arange(dim) % 2).bool() == odd


def half_mask(dim: int, *, last: bool = True) -> Tensor:
    """The half mask of a coupling layer: the last (or the first) half is transformed; bool `[dim]`.

    With an odd dim, the last half is the larger by one.
    """
    integer("dim", dim)
    return (torch.arange(dim) >= dim // 2) == last
