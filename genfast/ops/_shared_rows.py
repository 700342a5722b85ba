"""Rows of parameters that several numbers read: `[..., P]` that broadcast to numbers `[...]`.

The kernels' side of it is csrc/common/shared_rows.h.
"""

import math
from typing import Any

from torch import Tensor


def check_shape(name: str, p: Tensor, x: Tensor, count: int | None, meaning: str) -> None:
    """Refuse rows of another length than `count`, which is called `meaning`, or that do not broadcast to x."""
    lead, want = p.shape[:-1], x.shape
    ok = p.dim() > 0 and (count is None or p.shape[-1] == count) and len(lead) <= len(want)
    if ok and lead != want:
        ok = all(s in (1, w) for s, w in zip(lead, want[len(want) - len(lead) :], strict=True))
    if not ok:
        shape = ", ".join(map(str, [*want, meaning]))
        raise ValueError(f"{name}: got shape {list(p.shape)}, want [{shape}], or what broadcasts to it")


def flatten(x: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor], int]:
    """Numbers `[G, M]`, parameters `[G, P, ...]` and the number of neighbours that share a row.

    Of the dimensions of x, those that broadcast the parameters and those that do not alternate in blocks. The op takes
    G (repeats) P (inner); where there are more blocks, parameters are expanded along the smallest.
    """
    shape = x.shape
    first = parameters[0].shape[:-1]
    if first == shape and all(p.shape[:-1] == first for p in parameters):  # each number has its own row
        if len(shape) == 2:
            return x, list(parameters), 1
        n = x.numel()
        return x.reshape(1, n), [p.reshape(1, n, p.shape[-1]) for p in parameters], 1
    leads = [(1,) * (len(shape) + 1 - p.dim()) + tuple(p.shape[:-1]) for p in parameters]
    blocks: list[list[Any]] = []  # [is shared, size, the dimensions]
    for i, size in enumerate(shape):
        if size == 1:
            continue
        shared = all(lead[i] == 1 for lead in leads)
        if blocks and blocks[-1][0] == shared:
            blocks[-1][1] *= size
            blocks[-1][2].append(i)
        else:
            blocks.append([shared, size, [i]])
    while len(blocks) > 3 and (len(blocks) > 4 or blocks[0][0]):
        k = min((k for k, b in enumerate(blocks) if b[0]), key=lambda k: blocks[k][1])
        around = blocks[max(k - 1, 0) : k + 2]
        joined = [False, math.prod(b[1] for b in around), [i for b in around for i in b[2]]]
        blocks[max(k - 1, 0) : k + 2] = [joined]
    own = {i for b in blocks if not b[0] for i in b[2]}
    kinds = [b[0] for b in blocks]
    sizes = [b[1] for b in blocks]
    inner = max(sizes.pop(), 1) if kinds and kinds[-1] else 1
    rows = sizes.pop() if sizes else 1
    if sizes:
        sizes.pop()
    groups = sizes.pop() if sizes else 1
    lead_all = [size if i in own else 1 for i, size in enumerate(shape)]
    flat = []
    for p, lead in zip(parameters, leads, strict=True):
        q = p if list(lead) == lead_all else p.expand(*lead_all, p.shape[-1])
        flat.append(q.reshape(groups, rows, p.shape[-1]))
    return x.reshape(groups, x.numel() // groups if groups else 0), flat, inner
