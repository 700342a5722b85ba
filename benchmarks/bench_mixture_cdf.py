"""The CDF of mixtures, its gradients and its inverse against PyTorch, and against the bisection that people write."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn import functional as F

from genfast import ops
from genfast.reference import mixture_cdf as reference

from .baselines import compiled, differentiable_call
from .floor import TRANSCENDENTAL_FLOPS
from .timing import Case, Contender, Options, forward_backward

FLOAT = 4
NEWTON_STEPS = 7  # of the inverse, about

Tensors = Sequence[torch.Tensor]


def work(elements: int, components: int, *, backward: bool, evaluations: int = 1) -> dict[str, int]:
    """Bytes and operations that any implementation needs."""
    parameters, passes = 3 * components, 1 + backward
    return {
        "bytes_moved": FLOAT * elements * (passes * (1 + parameters) + 2 + backward * (3 + parameters)),
        # Exponentials of weight and scale, and in each evaluation that of the distance; about 20 operations more.
        "flops": elements * passes * components * (2 + evaluations) * (TRANSCENDENTAL_FLOPS + 10),
    }


def data(options: Options, elements: int, components: int) -> list[torch.Tensor]:
    """Numbers, and mixtures as a network puts them out."""
    generator = options.generator()

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=options.device, generator=generator)

    means = randn(elements, components) * 2
    return [randn(elements) * 2, randn(elements, components), means, randn(elements, components) * 0.3 - 0.3]


def bisection(y: torch.Tensor, logits: torch.Tensor, means: torch.Tensor, log_scales: torch.Tensor) -> Tensors:
    """The inverse as implementations of Flow++ have it: halve an interval that holds the root, on the logit here."""
    log_pi = logits.log_softmax(-1)
    scale = (-log_scales).exp()
    reach = y.unsqueeze(-1) / scale
    low, high = (means + reach).amin(-1), (means + reach).amax(-1)
    for _ in range(28):  # to the digits of float32, which the logit of the outputs is compared in
        x = 0.5 * (low + high)
        u = (x.unsqueeze(-1) - means) * scale
        logit = torch.logsumexp(log_pi + F.logsigmoid(u), -1) - torch.logsumexp(log_pi + F.logsigmoid(-u), -1)
        above = logit > y
        low, high = torch.where(above, low, x), torch.where(above, x, high)
    x = 0.5 * (low + high)
    return x, -reference.mixture_of_logistics_cdf(x, logits, means, log_scales, output="logit")[1]


def forward_cases(
    options: Options, elements: int, components: int, output: str, ours: Callable[..., Tensors],
    theirs: Callable[..., Tensors],
) -> Iterator[Case]:  # fmt: skip
    """Forward, and forward with backward."""
    generator = options.generator().manual_seed(options.seed + 1)
    grads = [torch.randn(elements, device=options.device, generator=generator) for _ in range(2)]
    for name, backward in (("forward", False), ("forward+backward", True)):
        inputs = [t.requires_grad_(backward) for t in data(options, elements, components)]
        contenders = []
        for who, function, target in (("genfast", ours, None), ("eager", theirs, 8.0)):

            def forward(function=function, inputs=inputs) -> Tensors:  # noqa: ANN001 (bound to this turn of the loop)
                return function(*inputs, output=output)

            contenders.append(
                Contender(
                    who,
                    forward_backward(lambda *t, f=function: f(*t, output=output), inputs, grads)
                    if backward
                    else forward,
                    target=None if options.cuda else target,
                    forward=forward if backward else None,
                )
            )
        if options.compile:
            function = compiled(lambda *t: theirs(*t, output=output))
            run = forward_backward(function, inputs, grads) if backward else lambda f=function, t=inputs: f(*t)
            contenders.append(Contender("torch.compile", run, target=None if options.cuda else 2.0))
        yield Case(
            ours.__name__, f"{elements:,} elements, {components} components, {output}, {name}", contenders,
            **work(elements, components, backward=backward), inputs=inputs, tolerance=1e-4,
        )  # fmt: skip


def inverse_case(options: Options, elements: int, components: int) -> Case:
    """The inverse of the logit."""
    x, *parameters = data(options, elements, components)

    def ours() -> Tensors:
        return ops.mixture_of_logistics_cdf(x, *parameters, output="logit", inverse=True)

    contenders = [
        Contender("genfast", ours),
        Contender("bisection", lambda: bisection(x, *parameters), target=None if options.cuda else 20.0),
    ]
    if options.compile:
        function = compiled(bisection)
        run = lambda: function(x, *parameters)  # noqa: E731
        contenders.append(Contender("torch.compile", run, target=None if options.cuda else 4.0))
    return Case(
        "mixture_of_logistics_cdf", f"{elements:,} elements, {components} components, logit, inverse", contenders,
        **work(elements, components, backward=False, evaluations=NEWTON_STEPS), inputs=[x, *parameters], tolerance=1e-3,
    )  # fmt: skip


def cases(options: Options) -> Iterator[Case]:
    """65,536 elements on a CPU, 2^20 on a GPU."""
    elements = 1 << 20 if options.cuda else 1 << 16
    for components in (8, 32):
        yield from forward_cases(
            options, elements, components, "logit", ops.mixture_of_logistics_cdf, reference.mixture_of_logistics_cdf
        )
        yield inverse_case(options, elements, components)
    yield from forward_cases(
        options, elements, 8, "probit", ops.mixture_of_gaussians_cdf, reference.mixture_of_gaussians_cdf
    )


def calls(options: Options) -> Iterator[Case]:
    """4 x 8 numbers, 8 components, against the reference."""
    generator = options.generator()
    shapes = ((4, 8), (4, 8, 8), (4, 8, 8), (4, 8, 8))
    inputs = [torch.randn(*s, device=options.device, generator=generator).requires_grad_() for s in shapes]

    def ours(*tensors: torch.Tensor) -> Tensors:
        return ops.mixture_of_logistics_cdf(*tensors, output="logit")

    def theirs(*tensors: torch.Tensor) -> Tensors:
        return reference.mixture_of_logistics_cdf(*tensors, output="logit")

    label = "4 x 8, 8 components, logit"
    yield differentiable_call(options, "mixture_of_logistics_cdf", label, ours, theirs, inputs)
