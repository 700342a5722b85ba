"""A stack of radial layers: forward and backward against the layers in PyTorch."""

from collections.abc import Iterator

import torch

from genfast import ops
from genfast.reference import radial as reference

from .baselines import differentiable_call, leaves, stack_case
from .floor import TRANSCENDENTAL_FLOPS
from .timing import Case, Options


def inputs(options: Options, rows: int, layers: int, dim: int) -> list[torch.Tensor]:
    """Rows, and invertible layers."""
    z, center, alpha, beta = leaves(options, (rows, dim), (layers, dim), (layers,), (layers,))
    return [z, center, *(t.detach().requires_grad_() for t in (0.5 + alpha.sigmoid(), beta.sigmoid() - 0.5))]


def cases(options: Options) -> Iterator[Case]:
    """32 layers over 2 and 64 dimensions, 16 over 32: 4,096 rows on a CPU, 2^20 on a GPU."""
    for layers, dim, target in ((32, 2, 10.0), (32, 64, 6.0), (16, 32, 8.0)):
        tensors = inputs(options, 1 << 20 if options.cuda else 4096, layers, dim)
        # A layer's forward: distance and step, two logs. Backward: both again, two products, grads of z and center.
        flops = 6 * dim + 6 * dim + 4 * dim + 8 * dim + 4 * TRANSCENDENTAL_FLOPS
        yield stack_case(options, ops.radial_flow, reference.radial_flow, tensors, flops=flops, target=target)


def calls(options: Options) -> Iterator[Case]:
    """One layer over 4 x 2 numbers."""
    tensors = inputs(options, 4, 1, 2)
    yield differentiable_call(
        options, "radial_flow", "K=1, 4 x 2", ops.radial_flow, reference.radial_flow, tensors, 1.2
    )
