"""A stack of radial layers: forward and backward against the layers in PyTorch."""

from collections.abc import Iterator

import torch

from genfast import ops
from genfast.reference import radial as reference

from .baselines import differentiable_call, leaves, stack_case
from .floor import TRANSCENDENTAL_FLOPS
from .timing import Case, Options


def parameters(options: Options, layers: int, dim: int) -> list[torch.Tensor]:
    """Center, alpha and beta of invertible layers."""
    center, alpha, beta = leaves(options, (layers, dim), (layers,), (layers,))
    return [t.detach().requires_grad_() for t in (center, 0.5 + alpha.sigmoid(), beta.sigmoid() - 0.5)]


def cases(options: Options) -> Iterator[Case]:
    """32 layers over 2 and 64 dimensions: 4,096 rows on a CPU, 2^20 on a GPU."""
    layers, rows = 32, options.rows(4096, 1 << 20)
    for dim, target in ((2, 10.0), (64, 6.0)):
        inputs = [*leaves(options, (rows, dim)), *parameters(options, layers, dim)]
        # Forward: distance and step. Backward: the forward, two products with a row, and grads of z and center.
        flops = rows * layers * (6 * dim + 18 * dim + 4 * TRANSCENDENTAL_FLOPS)
        yield stack_case(options, ops.radial_flow, reference.radial_flow, inputs, layers, flops, target)


def calls(options: Options) -> Iterator[Case]:
    """One layer over 4 x 2 numbers."""
    inputs = [*leaves(options, (4, 2)), *parameters(options, 1, 2)]
    yield differentiable_call(options, "radial_flow", "K=1, 4 x 2", ops.radial_flow, reference.radial_flow, inputs, 1.2)
