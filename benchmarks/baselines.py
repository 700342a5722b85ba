"""What genfast is compared with: helpers that several benchmarks share.

A baseline is what a careful user of PyTorch would write, not a straw man: no needless copies, no Python loop where one
operation does, and torch.compile at its best (static shapes, nothing left over from the previous case).
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch

from .timing import Case, Contender, Options, forward_backward

__all__ = ["compiled", "differentiable_call", "leaves", "peer", "stack_case"]

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """torch.compile of a function, for one shape, in one graph, compiled afresh."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def peer(name: str) -> ModuleType | None:
    """The module of another library, or None, said once, where it or what it needs is not installed.

    Raises:
        ImportError: it is a part of genfast that is not there.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or getattr(error.__cause__, "name", None) or name
        library = missing.split(".", 1)[0]
        if library in {"genfast", "benchmarks"}:
            raise
        print(f"{library} is not installed and is left out (pip install 'genfast[bench]')", file=sys.stderr)
        return None


def leaves(options: Options, *shapes: tuple[int, ...], scale: float = 1.0) -> list[torch.Tensor]:
    """Normal tensors that require gradients."""
    generator = options.generator()
    made = [scale * torch.randn(*shape, device=options.device, generator=generator) for shape in shapes]
    return [t.requires_grad_() for t in made]


def differentiable_call(
    options: Options,
    op: str,
    label: str,
    ours: Callable[..., Sequence[torch.Tensor]],
    theirs: Callable[..., Sequence[torch.Tensor]],
    inputs: Sequence[torch.Tensor],
    target: float | None = None,
) -> Case:
    """Forward and backward of a small call with given cotangents; the target is that of a CPU."""
    generator = options.generator().manual_seed(options.seed + 1)
    grads = [torch.randn(t.shape, device=options.device, generator=generator) for t in theirs(*inputs)]
    contenders = [
        Contender("genfast", forward_backward(ours, inputs, grads)),
        Contender("eager", forward_backward(theirs, inputs, grads), target=None if options.cuda else target),
    ]
    return Case(op, f"{label}, forward+backward", contenders, small=True)


def stack_case(
    options: Options,
    ours: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    theirs: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    inputs: Sequence[torch.Tensor],
    *,
    flops: int,
    kept: int = 0,
    target: float = 10.0,
) -> Case:
    """Forward and backward of a stack of layers `[K, D]` over rows `[N, D]`, the first two inputs, and what it keeps.

    flops: of one layer and row, both ways.
    kept: numbers a row that the forward leaves for the backward beside its input.
    target: goal against eager on a CPU.
    """
    (rows, dim), layers = inputs[0].shape, len(inputs[1])
    grads = [
        torch.randn(*size, device=options.device, generator=options.generator()) for size in ((rows, dim), (rows,))
    ]

    def forward(function: Callable[..., object]) -> Callable[[], object]:
        return lambda: function(*inputs)

    contenders = [
        Contender("genfast", forward_backward(ours, inputs, grads), forward=forward(ours)),
        Contender(
            "eager",
            forward_backward(theirs, inputs, grads),
            target=None if options.cuda else target,
            forward=forward(theirs),
            saved_target=10.0,
        ),
    ]
    if options.compile:
        run = forward_backward(compiled(theirs), inputs, grads)
        contenders.append(Contender("torch.compile", run, target=None if options.cuda else 4.0))
    return Case(
        ours.__name__,
        f"K={layers}, D={dim}, {rows:,} rows, forward+backward",
        contenders,
        # Forward: z in, x and log_det out. Backward: z or x, grads of x and log_det in, grad of z out. What is kept is
        # written and read again.
        bytes_moved=4 * rows * (2 * dim + 1 + 3 * dim + 1 + 2 * kept),
        flops=rows * layers * flops,
        inputs=inputs,
    )
