"""The linear, quadratic and cubic splines against nflows: forward, forward+backward and inverse.

Where nflows is not installed, the reference takes its place.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from genfast import ops
from genfast.reference import poly_spline as reference

from .baselines import compiled, differentiable_call, leaves, peer
from .floor import TRANSCENDENTAL_FLOPS
from .timing import Case, Contender, Options, forward_backward

FLOAT = 4
BINS = 8
KINDS = ("linear", "quadratic", "cubic")

Tensors = Sequence[torch.Tensor]
Spline = Callable[..., Tensors]


def sizes(kind: str) -> list[int]:
    """How many parameters a number has, by tensor."""
    return {"linear": [BINS], "quadratic": [BINS, BINS - 1], "cubic": [BINS, BINS, 2]}[kind]


def work(kind: str, elements: int, *, backward: bool) -> dict[str, int]:
    """Bytes and operations that any implementation needs."""
    parameters, passes = sum(sizes(kind)), 1 + backward
    return {
        "bytes_moved": FLOAT * elements * (passes * (1 + parameters) + 2 + backward * (3 + parameters)),
        # an exponential or softplus of each parameter, and a logarithm
        "flops": elements * passes * ((parameters + 1) * TRANSCENDENTAL_FLOPS + 6 * BINS),
    }


def nflows_of(kind: str) -> Spline | None:
    """nflows' function, called as ours."""
    if peer("nflows.transforms.splines") is None:
        return None
    module = importlib.import_module(f"nflows.transforms.splines.{kind}")
    function = getattr(module, f"unconstrained_{kind}_spline")

    def spline(x: torch.Tensor, *given: torch.Tensor, **options: Any) -> Tensors:
        if kind == "cubic":
            given = (*given[:2], given[2][..., :1], given[2][..., 1:])
        found: Tensors = function(x, *given, tail_bound=3.0, **options)
        return found

    return spline


def cases(options: Options) -> Iterator[Case]:
    """65,536 elements on a CPU, 2^20 on a GPU, 8 bins."""
    elements = 1 << 20 if options.cuda else 1 << 16
    for kind in KINDS:
        name = f"{kind}_spline"
        ours: Spline = getattr(ops, name)
        eager: Spline = getattr(reference, name)
        nflows = nflows_of(kind)
        rivals: list[tuple[str, Spline, float | None]] = [("genfast", ours, None)]
        rivals.append(("eager", eager, None) if nflows is None else ("nflows", nflows, None if options.cuda else 5.0))
        generator = options.generator()
        randn = lambda *shape, g=generator: torch.randn(*shape, device=options.device, generator=g)  # noqa: E731
        inputs = [randn(elements) * 1.5, *(randn(elements, size) for size in sizes(kind))]
        grads = [randn(elements) for _ in range(2)]
        for label, inverse, backward in (
            ("forward", False, False), ("forward+backward", False, True), ("inverse", True, False)
        ):  # fmt: skip
            if options.compile and backward and kind != "linear":  # its gradient is wrong (torch 2.13, on a CPU)
                rivals.append(("torch.compile", compiled(eager), None))
            contenders: list[Contender] = []
            held: list[torch.Tensor] = []
            for who, function, target in rivals:
                tensors = [t.clone().requires_grad_(backward) for t in inputs]
                held += tensors

                def run(*given: torch.Tensor, f: Spline = function, inverse: bool = inverse) -> Tensors:
                    return f(*given, inverse=inverse)

                def forward(run: Spline = run, tensors: list[torch.Tensor] = tensors) -> Tensors:
                    return run(*tensors)

                contenders.append(
                    Contender(
                        who, forward_backward(run, tensors, grads) if backward else forward, target=target,
                        forward=forward if backward else None,
                    )
                )  # fmt: skip
            rivals = [r for r in rivals if r[0] != "torch.compile"]
            # nflows loses digits: its knots are float32 sums, the last one 1e-6 too high, its roots of differences
            yield Case(
                name, f"{elements:,} elements, {BINS} bins, {label}", contenders,
                **work(kind, elements, backward=backward), inputs=held, tolerance=2e-2 if inverse else 2e-3,
            )  # fmt: skip


def calls(options: Options) -> Iterator[Case]:
    """4 x 8 numbers, 8 bins, against the reference."""
    for kind in KINDS:
        inputs = leaves(options, (4, 8), *((4, 8, size) for size in sizes(kind)))
        name = f"{kind}_spline"
        yield differentiable_call(options, name, "4 x 8, 8 bins", getattr(ops, name), getattr(reference, name), inputs)
