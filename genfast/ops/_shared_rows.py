"""Rows of parameters that several numbers read: `[..., P]` that broadcast to numbers `[...]`.

The kernels' side of it is csrc/common/shared_rows.h.
"""

import math

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
    shared = {i for i in range(len(shape)) if all(lead[i] == 1 for lead in leads)}
    blocks: list[list[int]] = []
    for i in (i for i, n in enumerate(shape) if n != 1):
        if blocks and (blocks[-1][0] in shared) == (i in shared):
            blocks[-1].append(i)
        else:
            blocks.append([i])

    def size(block: list[int]) -> int:
        return math.prod([shape[i] for i in block])

    while len(blocks) > 3 and (len(blocks) > 4 or blocks[0][0] in shared):
        k = -1  # the smallest; torch.compile takes no min(key=)
        for i, block in enumerate(blocks):
            if block[0] in shared and (k < 0 or size(block) < size(blocks[k])):
                k = i
        shared -= set(blocks[k])
        around = slice(max(k - 1, 0), k + 2)
        blocks[around] = [[i for block in blocks[around] for i in block]]
    inner = max(size(blocks.pop()), 1) if blocks and blocks[-1][0] in shared else 1
    rows = size(blocks.pop()) if blocks else 1
    if blocks:
        blocks.pop()  # the repeats
    groups = size(blocks.pop()) if blocks else 1
    own = [1 if i in shared else n for i, n in enumerate(shape)]
    flat = [
        (p if list(lead) == own else p.expand(*own, p.shape[-1])).reshape(groups, rows, p.shape[-1])
        for p, lead in zip(parameters, leads, strict=True)
    ]
    return x.reshape(groups, x.numel() // groups if groups else 0), flat, inner
