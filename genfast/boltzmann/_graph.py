"""Sparse graphs: edges in CSR, and a colouring for parallel Gibbs sampling."""

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def greedy_colouring(row_ptr: Tensor, columns: Tensor) -> Tensor:
    """Colours for the units of a symmetric graph in CSR, no edge within a colour: int64 `[n_units]`.

    Each unit, in the breadth-first order of its component, gets the first colour that none of its neighbours has. A
    graph that two colours are enough for (lattices, layers, trees) gets two; any gets at most one more than the largest
    number of neighbours.

    Args:
        row_ptr: `[n_units + 1]`, where the edges of each unit start.
        columns: `[n_edges]`, the neighbours; every edge stands in both rows.

    Source:
        Welsh and Powell 1967, "An upper bound for the chromatic number of a graph and its application to timetabling
        problems", for greedy colouring.

    Example:
        >>> greedy_colouring(torch.tensor([0, 1, 3, 4]), torch.tensor([1, 0, 2, 1]))
        tensor([0, 1, 0])
    """
    colours = _colours(row_ptr.tolist(), columns.tolist())
    return torch.tensor(colours, dtype=torch.int64, device=row_ptr.device)


def _colours(start: list[int], neighbours: list[int]) -> list[int]:
    n = len(start) - 1
    colours, seen = [-1] * n, bytearray(n)
    for root in range(n):
        if seen[root]:
            continue
        seen[root] = 1
        queue = deque([root])
        while queue:
            unit = queue.popleft()
            around = neighbours[start[unit] : start[unit + 1]]
            taken = {colours[j] for j in around}
            colour = 0
            while colour in taken:
                colour += 1
            colours[unit] = colour
            for j in around:
                if not seen[j]:
                    seen[j] = 1
                    queue.append(j)
    return colours


@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph without a tensor: pairs of units i < j in ascending order, their CSR, and colours; all int64.

    Attributes:
        edges: `[n_edges, 2]`.
        row_ptr: `[n_units + 1]`.
        columns: `[2 n_edges]`; every edge stands in both rows.
        edge_of: `[2 n_edges]`, the edge of each entry.
        colours: `[n_units]`.
    """

    edges: Array
    row_ptr: Array
    columns: Array
    edge_of: Array
    colours: Array

    @classmethod
    def of(cls, edges: Tensor | Sequence[Sequence[int]], n_units: int) -> "Graph":
        """The graph of pairs in any order.

        Raises:
            TypeError: they are no integers.
            ValueError: another shape, a number that is no unit, a unit joined with itself, or a pair that comes twice.
        """
        listed = edges.detach().cpu().numpy() if isinstance(edges, Tensor) else edges
        pairs = np.asarray(listed) if len(listed) else np.zeros((0, 2), np.int64)
        if not np.issubdtype(pairs.dtype, np.integer):
            raise TypeError(f"edges: got {pairs.dtype}, want integers, the numbers of units")
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ValueError(f"edges: got shape {list(pairs.shape)}, want pairs [n_edges, 2]")
        pairs = np.sort(pairs.astype(np.int64), axis=1)
        if len(pairs) and not (pairs.min() >= 0 and pairs.max() < n_units):
            raise ValueError(f"edges: got units from {pairs.min()} to {pairs.max()}, want 0 to {n_units - 1}")
        loops = pairs[pairs[:, 0] == pairs[:, 1]]
        if len(loops):
            raise ValueError(f"edges: unit {loops[0, 0]} is joined with itself")
        pairs = pairs[np.argsort(pairs[:, 0] * n_units + pairs[:, 1], kind="stable")]
        twice = (pairs[1:] == pairs[:-1]).all(1)
        if twice.any():
            i, j = pairs[1:][twice][0]
            raise ValueError(f"edges: units {i} and {j} are joined twice")
        rows, columns = np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]])
        order = np.argsort(rows * n_units + columns)
        row_ptr = np.searchsorted(rows[order], np.arange(n_units + 1)).astype(np.int64)
        columns, edge_of = columns[order], order % max(len(pairs), 1)
        colours = np.asarray(_colours(row_ptr.tolist(), columns.tolist()), np.int64)
        return cls(pairs, row_ptr, columns, edge_of.astype(np.int64), colours)

    def tensors(self, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """The arrays as tensors, by name."""
        names = ("edges", "row_ptr", "columns", "edge_of", "colours")
        return {name: torch.tensor(getattr(self, name), device=device) for name in names}


def lattice_edges(height: int, width: int, periodic: tuple[bool, bool]) -> tuple[Array, Array]:
    """The bonds of a lattice: pairs of sites, and whether a bond lies along y; both of a pair on an axis of two."""
    site = np.arange(height * width).reshape(height, width)
    bonds, along_y = [], []
    for axis, size, around in ((0, height, periodic[0]), (1, width, periodic[1])):
        ahead = np.roll(site, -1, axis)
        here = range(size if around else size - 1)
        pairs = np.stack([site.take(here, axis), ahead.take(here, axis)], -1).reshape(-1, 2)
        bonds.append(pairs)
        along_y.append(np.full(len(pairs), axis == 0))
    return np.concatenate(bonds), np.concatenate(along_y)
