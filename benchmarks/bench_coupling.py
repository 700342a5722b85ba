"""Affine coupling of the transformed half: forward and backward against the two lines that everyone writes."""

from collections.abc import Iterator

import torch

from genfast import ops

from .baselines import compiled, differentiable_call, leaves
from .floor import TRANSCENDENTAL_FLOPS
from .timing import Case, Contender, Options, forward_backward

FLOAT = 4


def eager(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The coupling as users of RealNVP write it."""
    return torch.addcmul(shift, x, scale.exp()), scale.sum(-1)


def cases(options: Options) -> Iterator[Case]:
    """4,096 x 64 on a CPU, and 2^20 rows on a GPU."""
    rows, dim = 1 << 20 if options.cuda else 4096, 64
    generator = options.generator()

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=options.device, generator=generator)

    inputs = [randn(rows, dim).requires_grad_(), randn(rows, dim).requires_grad_(), randn(rows, dim)]
    inputs[2] = inputs[2].mul_(0.5).requires_grad_()
    grads = [randn(rows, dim), randn(rows)]
    contenders = [
        Contender(
            "genfast",
            forward_backward(ops.affine_coupling, inputs, grads),
            forward=lambda: ops.affine_coupling(*inputs),
        ),
        Contender(
            "eager",
            forward_backward(eager, inputs, grads),
            target=None if options.cuda else 2.5,
            forward=lambda: eager(*inputs),
        ),
    ]
    if options.compile:
        run = forward_backward(compiled(eager), inputs, grads)
        contenders.append(Contender("torch.compile", run, target=None if options.cuda else 2.5))
    elements = rows * dim
    yield Case(
        "affine_coupling",
        f"{rows:,} x {dim}, forward+backward",
        contenders,
        # Forward: x, shift, scale in, y out. Backward: x, scale, grad of y in, grads of x and scale out (that of shift
        # is the grad of y).
        bytes_moved=FLOAT * (4 + 5) * elements + FLOAT * 2 * rows,
        flops=(2 * TRANSCENDENTAL_FLOPS + 8) * elements,
        inputs=inputs,
    )


def calls(options: Options) -> Iterator[Case]:
    """4 x 8 numbers."""
    inputs = leaves(options, (4, 8), (4, 8), (4, 8), scale=0.5)
    yield differentiable_call(options, "affine_coupling", "4 x 8", ops.affine_coupling, eager, inputs, 1.2)
