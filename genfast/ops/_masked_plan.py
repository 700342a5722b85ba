"""In which order the kernels compute the inverse of a masked network, for masked_autoregressive_plan.h to read."""

import dataclasses
import functools
import itertools

import torch
from torch import Tensor

from genfast.reference.masked_autoregressive import Network

_HEADER, _RECORD, _TILE = 8, 16, 32


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan, on the device of the tensors, and the sizes that a launch needs.

    Attributes:
        vector: int32, what the kernels read.
        total: the sum of the sizes of the tensors that the plan is for: columns of z, weights, biases, columns of the
            context, and the plan itself.
        rows: numbers of a sample in the buffer.
        packed: numbers of the packed weights.
        packed_pass: at most as many those of a pass, in the direction of the plan.
        values: inputs and hidden units that are computed.
        sums: hidden units and outputs that are computed.
        tiles: blocks of the kernel of the gradients on CUDA.
        idle: whether some hidden units are never computed, because no output sees them.
    """

    vector: Tensor
    total: int
    rows: int
    packed: int
    packed_pass: int
    values: int
    sums: int
    tiles: int
    idle: bool


@functools.lru_cache(maxsize=256)
def sums_of(network: Network) -> int:
    """Hidden units that some output sees, and outputs."""
    top = max(network.degrees[0])
    return sum(d < top for layer in network.degrees[1:] for d in layer) + network.widths[-1]


@functools.lru_cache(maxsize=256)
def plan(network: Network, backward: bool, device: torch.device) -> Plan:
    """The plan of a network, made once."""
    degrees, widths = network.degrees, network.widths
    n_layers = len(degrees) - 1
    top = max(degrees[0])
    # Hidden units of the highest degree and above are seen by no parameter.
    used = [[u for u, d in enumerate(layer) if i == 0 or d < top] for i, layer in enumerate(degrees)]
    order = [sorted(units, key=layer.__getitem__) for units, layer in zip(used, degrees, strict=True)]
    stages = sorted({layer[u] for units, layer in zip(used, degrees, strict=True) for u in units})
    starts = [[sum(layer[u] < s for u in units) for s in stages] + [len(units)]
              for units, layer in zip(used, degrees, strict=True)]  # fmt: skip
    starts.append([s * network.n_params for s in starts[0]])
    order.append([row for i in order[0] for row in network.outputs(i)])

    # offsets of the packed weights
    size = 0
    packed: list[list[int]] = [[], []]
    for s in range(len(stages)):
        packed[0].append(size)
        size += (starts[-1][s + 1] - starts[-1][s]) * (starts[n_layers][s] + 1)
        for a, b in itertools.pairwise(starts[:-1]):
            size += (b[s + 1] - b[s]) * (a[s + 1] + 1)
    for s in range(len(stages) if backward else 0):
        packed[1].append(size)
        for layer in range(n_layers + 1):
            after = starts[layer + 1]
            size += (starts[layer][s + 1] - starts[layer][s]) * (after[-1] - after[s + (layer == n_layers)] + 1)

    vector = [n_layers, len(stages), 0, 0, 0, 0, 0, 0] + [0] * (_RECORD * (n_layers + 2))

    def put(values: list[int]) -> int:
        vector.extend(values)
        return len(vector) - len(values)

    vector[2], vector[3] = put(packed[0]), put(packed[1])
    rows = 0

    def take(count: int) -> int:
        nonlocal rows
        rows += count
        return rows - count

    weights_at = biases_at = context_at = values_at = sums_at = tiles = 0
    for i, (units, starts_of) in enumerate(zip(order, starts, strict=True)):
        is_hidden = 0 < i <= n_layers
        skips = network.residual and is_hidden and i % 2 == 1  # its sum takes part in that two layers behind
        active = is_hidden and not (network.residual and i == n_layers)
        skip = skipped = context = -1
        if skips and i > 1:
            at = {u: j for j, u in enumerate(order[i - 2])}
            skip = put([at[u] for u in units])
        if skips and i < n_layers:
            at = {u: j for j, u in enumerate(order[i + 2])}
            skipped = put([at.get(u, -1) for u in units])
        if is_hidden and network.context[i - 1]:
            context, context_at = context_at, context_at + widths[i]
        if i > n_layers and not backward:
            before = value = take(max(b - a for a, b in itertools.pairwise(starts_of)))
        else:
            before = take(len(units))
            value = take(len(units)) if active and (backward or skips) else before
        # the cotangents of the parameters take the place of the parameters
        adjoint = -1 if not backward else value if i > n_layers else take(len(units))
        sees: list[int] = []
        for s in range(len(stages) if i > 0 else 0):
            sees += [starts[i - 1][s + is_hidden]] * (starts_of[s + 1] - starts_of[s])
        record = [
            widths[i], len(units), put(starts_of), put(units), weights_at, biases_at, context, skip, skipped, active,
            value, before, adjoint, values_at, sums_at, put(sees),
        ]  # fmt: skip
        vector[_HEADER + _RECORD * i : _HEADER + _RECORD * (i + 1)] = record
        values_at += len(units) if i <= n_layers else 0
        if i > 0:
            weights_at, biases_at = weights_at + widths[i] * widths[i - 1], biases_at + widths[i]
            sums_at += len(units)
            tiles += -(-len(units) // _TILE) * (len(order[i - 1]) // _TILE + 1)
    if max(weights_at, size) >= 1 << 31:
        raise ValueError(f"weights: got {weights_at} numbers, want fewer than 2^31")
    total = widths[0] + weights_at + biases_at + context_at + len(vector)
    return Plan(
        torch.tensor(vector, dtype=torch.int32, device=device), total, rows, size,
        max(size, weights_at + biases_at + backward * sum(widths[:-1])), values_at, sums_at, tiles,
        sum(map(len, order)) < sum(widths),
    )  # fmt: skip
