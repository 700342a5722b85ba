"""The rational-quadratic spline against nflows (forward, forward+backward, inverse) and zuko.

Where nflows is not installed, the reference takes its place.
"""

from collections.abc import Iterator, Sequence
from types import ModuleType

import torch

from genfast import ops
from genfast.reference.rq_spline import rational_quadratic_spline as reference

from .baselines import differentiable_call, leaves, peer
from .floor import TRANSCENDENTAL_FLOPS
from .timing import Case, Contender, Options, forward_backward

FLOAT = 4
BINS = 8

Tensors = Sequence[torch.Tensor]


def work(elements: int, *, backward: bool) -> dict[str, int]:
    """Bytes and operations that any implementation needs."""
    parameters = 3 * BINS - 1
    passes = 1 + backward
    return {
        "bytes_moved": FLOAT * elements * (passes * (1 + parameters) + 2 + backward * (3 + parameters)),
        # Two softmaxes over the bins, two softplus, one log; in the backward those of the softmaxes again.
        "flops": elements * passes * ((2 * BINS + 3) * TRANSCENDENTAL_FLOPS + 6 * BINS),
    }


def data(options: Options, elements: int) -> list[torch.Tensor]:
    """Points of which a few lie in the tails, and raw parameters as a network puts them out at first."""
    generator = options.generator()

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=options.device, generator=generator)

    return [randn(elements) * 1.5, randn(elements, BINS), randn(elements, BINS), randn(elements, BINS - 1)]


def nflows_cases(options: Options, nflows: ModuleType | None, elements: int) -> Iterator[Case]:
    """The three passes with nflows' conventions, which are ours; against the reference where nflows is missing."""
    rival = "eager" if nflows is None else "nflows"
    target = {"forward": 25.0, "forward+backward": 15.0, "inverse": 20.0}
    inputs = data(options, elements)
    generator = options.generator()
    grads = [torch.randn(elements, device=options.device, generator=generator) for _ in range(2)]
    for name, inverse, backward in (
        ("forward", False, False),
        ("forward+backward", False, True),
        ("inverse", True, False),
    ):

        def ours(x: torch.Tensor, w: torch.Tensor, h: torch.Tensor, d: torch.Tensor, inv: bool = inverse) -> Tensors:
            return ops.rational_quadratic_spline(x, w, h, d, bound=3.0, inverse=inv)

        def theirs(x: torch.Tensor, w: torch.Tensor, h: torch.Tensor, d: torch.Tensor, inv: bool = inverse) -> Tensors:
            if nflows is None:
                return reference(x, w, h, d, bound=3.0, inverse=inv)
            return nflows.unconstrained_rational_quadratic_spline(x, w, h, d, inverse=inv, tail_bound=3.0)

        contenders: list[Contender] = []
        held: list[torch.Tensor] = []
        for who, function in (("genfast", ours), (rival, theirs)):
            leaves = [t.clone().requires_grad_(backward) for t in inputs]
            held += leaves

            def forward(function=function, leaves=leaves) -> Tensors:  # noqa: ANN001 (bound to this turn of the loop)
                return function(*leaves)

            contenders.append(
                Contender(
                    who,
                    forward_backward(function, leaves, grads) if backward else forward,
                    target=target[name] if who == rival and not options.cuda else None,
                    forward=forward if backward else None,
                )
            )
        yield Case(
            "rational_quadratic_spline",
            f"{elements:,} elements, {BINS} bins, {name}",
            contenders,
            **work(elements, backward=backward),
            inputs=held,
            tolerance=2e-3,  # nflows loses digits: its knots are differences of float32 sums
        )


def zuko_case(options: Options, zuko: ModuleType, elements: int) -> Case:
    """Forward and backward of zuko's splines, in its dialect, with the gradients of all parameters.

    torch.compile of it (2.13, on a CPU) is left out: its gradients of widths and heights are wrong.
    """
    generator = options.generator()
    inputs = data(options, elements)
    ours, theirs = ([t.clone().requires_grad_() for t in inputs] for _ in range(2))
    grads = [torch.randn(elements, device=options.device, generator=generator) for _ in range(2)]

    def spline(x: torch.Tensor, w: torch.Tensor, h: torch.Tensor, d: torch.Tensor) -> Tensors:
        return ops.rational_quadratic_spline(x, w, h, d, bound=5.0, dialect="zuko")

    def zukos(x: torch.Tensor, w: torch.Tensor, h: torch.Tensor, d: torch.Tensor) -> Tensors:
        return zuko.MonotonicRQSTransform(w, h, d, bound=5.0).call_and_ladj(x)

    contenders = [
        Contender("genfast", forward_backward(spline, ours, grads)),
        Contender("zuko", forward_backward(zukos, theirs, grads), target=None if options.cuda else 15.0),
    ]
    return Case(
        "rational_quadratic_spline",
        f"{elements:,} elements, {BINS} bins, forward+backward, zuko's spline",
        contenders,
        **work(elements, backward=True),
        tolerance=2e-3,
    )


def cases(options: Options) -> Iterator[Case]:
    """65,536 elements on a CPU, 2^20 on a GPU."""
    elements = 1 << 20 if options.cuda else 1 << 16
    nflows = peer("nflows.transforms.splines.rational_quadratic")
    yield from nflows_cases(options, nflows, elements)
    zuko = peer("zuko.transforms")
    if zuko is not None:
        yield zuko_case(options, zuko, elements)


def calls(options: Options) -> Iterator[Case]:
    """4 x 8 numbers, 8 bins, against the reference."""
    inputs = leaves(options, (4, 8), (4, 8, BINS), (4, 8, BINS), (4, 8, BINS - 1))
    function = ops.rational_quadratic_spline
    yield differentiable_call(options, "rational_quadratic_spline", "4 x 8, 8 bins", function, reference, inputs)
