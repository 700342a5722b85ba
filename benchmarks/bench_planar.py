"""A stack of planar layers: forward and backward, and what the forward pass keeps, against the layers in PyTorch."""

from collections.abc import Iterator

import torch
from torch.nn import functional

from genfast import ops
from genfast.reference import planar as reference

from .baselines import differentiable_call, leaves, stack_case
from .floor import TRANSCENDENTAL_FLOPS
from .timing import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """32 layers over 2 and 64 dimensions: 4,096 rows on a CPU, 2^20 on a GPU."""
    layers, rows = 32, 1 << 20 if options.cuda else 4096
    for dim in (2, 64):
        generator = options.generator()

        def randn(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*shape, device=options.device, generator=generator)

        w = randn(layers, dim) / dim**0.5
        u = ops.planar_constrain_u(w, randn(layers, dim) / dim**0.5)
        inputs = [t.requires_grad_() for t in (randn(rows, dim), w, u, randn(layers))]
        # A layer's forward: two products with a row, tanh and log. Backward: rebuilding z, grads of z, w and u. One
        # number a layer and row is kept.
        flops = 4 * dim + 10 * dim + 3 * TRANSCENDENTAL_FLOPS
        yield stack_case(options, ops.planar_flow, reference.planar_flow, inputs, flops=flops, kept=layers)


def eager_layer(
    z: torch.Tensor, w: torch.Tensor, u: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A single layer as one writes it, w and u `[1, D]`, b `[1]`."""
    h = torch.tanh(functional.linear(z, w, b))
    return torch.addmm(z, h, u), torch.log(torch.abs(1 + (1 - h * h) * (w * u).sum())).squeeze(-1)


def calls(options: Options) -> Iterator[Case]:
    """One layer over 4 x 2 numbers."""
    z, w, u, b = leaves(options, (4, 2), (1, 2), (1, 2), (1,))
    u = ops.planar_constrain_u(w, u).detach().requires_grad_()
    yield differentiable_call(options, "planar_flow", "K=1, 4 x 2", ops.planar_flow, eager_layer, [z, w, u, b], 1.2)
