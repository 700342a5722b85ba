"""Orders and masks of the dimensions between coupling layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from genfast._arguments import integer, real
from genfast.flows._index import IndexModule
from genfast.flows._transform import Transform


class Permutation(IndexModule, Transform):
    """Reorder the dimensions of vectors, or the channels of images: x_i = z_perm(i), log|det| = 0.

    Args:
        permutation: the order, a permutation of 0 ... D-1; or "reverse" or "random" (drawn once, here, and saved with
            the model), which need `dim`.
        dim: number of dimensions, or of channels.
        event_dim: 1 for vectors `[..., D]`, 3 for images `[..., C, H, W]`.
        generator: draws a "random" order; the default generator otherwise.
        device: of the buffers.

    Raises:
        ValueError: not a permutation, an unknown name, a missing dim, or an event_dim that is neither 1 nor 3.

    Example:
        >>> Permutation([2, 0, 1]).forward(torch.tensor([[10.0, 11.0, 12.0]]))[0]
        tensor([[12., 10., 11.]])
    """

    source = "permutation"
    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(
        self,
        permutation: Sequence[int] | str,
        dim: int | None = None,
        *,
        event_dim: int = 1,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if event_dim not in (1, 3):
            raise ValueError(f"event_dim: got {event_dim!r}, want 1 for vectors or 3 for images")
        self.event_dim = event_dim
        if isinstance(permutation, str):
            if dim is None:
                raise ValueError(f"dim: got None, want the number of dimensions for the order {permutation!r}")
            integer("dim", dim)
            if permutation == "reverse":
                order = list(range(dim - 1, -1, -1))
            elif permutation == "random":
                at = "cpu" if generator is None else generator.device
                order = torch.randperm(dim, generator=generator, device=at).tolist()
            else:
                raise ValueError(f"permutation: got {permutation!r}, want 'reverse', 'random' or a list of integers")
        else:
            order = [int(i) for i in permutation]
            if sorted(order) != list(range(len(order))):
                raise ValueError(f"permutation: got {order}, want a permutation of 0 to {len(order) - 1}")
            if dim is not None and dim != len(order):
                raise ValueError(f"dim: got {dim}, want {len(order)}, the length of the permutation")
        self._register(
            order, torch.tensor(order, dtype=torch.int64, device=device), persistent=("inverse_permutation",)
        )

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"dim={len(self.permutation)}" + (", event_dim=3" if self.event_dim == 3 else "")

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., D]`, or images `[..., C, H, W]`, to (x, log_det = 0)."""
        return self._reorder("z", z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., D]`, or images `[..., C, H, W]`, to (z, log_det = 0)."""
        return self._reorder("x", x, context, inverse=True)

    def _reorder(self, name: str, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        size, at = self.permutation.shape[-1], -self.event_dim
        real(name, x, size if at == -1 else None)
        if x.ndim < -at or x.shape[at] != size:
            raise ValueError(f"{name}: got shape {list(x.shape)}, want [..., {size}, H, W]")
        self.check_context(x, context)
        order = self.permutation
        if inverse:
            order = self.inverse_permutation if self._follow() else torch.argsort(order)
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.index_select(at, order), x.new_zeros(x.shape[: x.ndim + at], dtype=wide)

    def _derive(self, values: list[int]) -> dict[str, list[int]]:
        return {"inverse_permutation": sorted(range(len(values)), key=values.__getitem__)}

    def _fault(self, values: list[int]) -> str:
        n = self.permutation.shape[-1]
        return "" if sorted(values) == list(range(n)) else f"got {values}, want a permutation of 0 to {n - 1}"


def alternating_mask(dim: int, *, odd: bool = True) -> Tensor:
    """The checkerboard mask of a coupling layer: the odd (or the even) dimensions are transformed; bool `[dim]`.

    It lies on the CPU, whatever the default device: a layer puts its own copy where it lives itself.
    """
    return _mask([(i % 2 == 1) == odd for i in range(integer("dim", dim))])


def half_mask(dim: int, *, last: bool = True) -> Tensor:
    """The half mask of a coupling layer: the last (or the first) half is transformed; bool `[dim]`.

    With an odd dim, the last half is the larger by one. It lies on the CPU, whatever the default device: a layer puts
    its own copy where it lives itself.
    """
    return _mask([(i >= dim // 2) == last for i in range(integer("dim", dim))])


def checkerboard_mask(shape: Sequence[int], *, odd: bool = True) -> Tensor:
    """The checkerboard mask of images (C, H, W): the pixels of odd (or even) row + column move; bool `[C, H, W]`.

    It lies on the CPU, whatever the default device: a layer puts its own copy where it lives itself.

    Raises:
        ValueError: the shape is not of three positive integers.

    Example:
        >>> checkerboard_mask((1, 2, 3)).int()
        tensor([[[0, 1, 0],
                 [1, 0, 1]]], dtype=torch.int32)
    """
    if len(shape) != 3:
        raise ValueError(f"shape: got {list(shape)}, want [C, H, W]")
    c, h, w = (integer("shape", size) for size in shape)
    return _mask([[[(i + j) % 2 == int(odd) for j in range(w)] for i in range(h)] for _ in range(c)])


def _mask(values: list[Any]) -> Tensor:
    with _disable_current_modes():  # also under FakeTensorMode a mask has values
        return torch.tensor(values, dtype=torch.bool, device="cpu")
