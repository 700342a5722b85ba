"""A stack of Sylvester layers: forward and backward against the layers in PyTorch."""

import dataclasses
from collections.abc import Iterator

import torch

from genfast import ops
from genfast.reference import sylvester as reference

from .baselines import differentiable_call, leaves, stack_case
from .floor import TRANSCENDENTAL_FLOPS
from .timing import Case, Options


def inputs(options: Options, rows: int, layers: int, dim: int, units: int) -> list[torch.Tensor]:
    """Rows, and invertible layers."""
    z, q, r1, r2, b = leaves(options, (rows, dim), (layers, dim, units), *[(layers, units, units)] * 2, (layers, units))
    upper = [(0.5 * r / units**0.5).detach() for r in (r1, r2)]
    for r in upper:
        r.diagonal(dim1=-2, dim2=-1).tanh_()
    return [z, *(t.detach().requires_grad_() for t in (torch.linalg.qr(q).Q, *upper)), b]


def cases(options: Options) -> Iterator[Case]:
    """16 layers of 8 and of 32 units over 32 dimensions: 4,096 rows on a CPU, 2^20 on a GPU."""
    dim = 32
    for units in (8, 32):
        tensors = inputs(options, 1 << 20 if options.cuda else 4096, 16, dim, units)
        # A layer's forward: two products, tanh and log of each unit. Backward: both again and tanh, two products for
        # the gradient of z, two for those of the weights.
        flops = 2 * 8 * dim * units + 3 * units * TRANSCENDENTAL_FLOPS
        case = stack_case(options, ops.sylvester_flow, reference.sylvester_flow, tensors, flops=flops, target=8.0)
        label = f"K=16, D={dim}, M={units}, {tensors[0].shape[0]:,} rows, forward+backward"
        yield dataclasses.replace(case, label=label)


def calls(options: Options) -> Iterator[Case]:
    """One layer of two units over 4 x 2 numbers."""
    tensors = inputs(options, 4, 1, 2, 2)
    yield differentiable_call(
        options, "sylvester_flow", "K=1, M=2, 4 x 2", ops.sylvester_flow, reference.sylvester_flow, tensors, 1.2
    )
