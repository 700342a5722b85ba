"""Calls so small that what surrounds the arithmetic is what they cost, against the eager operations they replace."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from genfast import ops
from genfast.reference import rbm_training
from genfast.reference.rq_spline import rational_quadratic_spline as reference_spline

from . import bench_coupling
from .bench_rbm import (
    autograd_trainer,
    eager_sweep,
    gradients_differ,
    module_trainer,
    random_data,
    random_machine,
    same_distribution,
)
from .timing import Case, Contender, Options, forward_backward

REPEATS = 400
"""Draws or steps whose mean is compared where a single small one says nothing."""

Run = Callable[[], Sequence[Tensor]]


def eager_planar(z: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """One planar layer, w and u `[1, D]`, b `[1]`."""
    h = torch.tanh(functional.linear(z, w, b))
    return torch.addmm(z, h, u), torch.log(torch.abs(1 + (1 - h * h) * (w * u).sum())).squeeze(-1)


def eager_free_energy(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor]:
    """-a.v - sum_j softplus(b + W'v)_j."""
    return (-(v @ vbias) - functional.softplus(torch.addmm(hbias, v, W)).sum(-1),)


def differentiable(
    label: str,
    ours: Callable[..., Sequence[Tensor]],
    theirs: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    target: float | None = None,
) -> Case:
    """Forward and backward with given cotangents."""
    grads = [torch.randn_like(output) for output in theirs(*inputs)]
    op = getattr(ours, "__name__", "")
    contenders = [
        Contender("genfast", forward_backward(ours, inputs, grads)),
        Contender("eager", forward_backward(theirs, inputs, grads), target=target),
    ]
    return Case(op, f"{label}, forward+backward", contenders, small=True)


def cases(options: Options) -> Iterator[Case]:
    """Toy sizes of every op, and a CD-1 step of a 64 x 64 machine. The goals are those of a CPU."""
    generator = options.generator()

    def goal(times: float) -> float | None:
        return None if options.cuda else times

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, device=options.device, generator=generator)).requires_grad_()

    yield differentiable(
        "4 x 8", ops.affine_coupling, bench_coupling.eager, [leaf(4, 8), leaf(4, 8), leaf(4, 8, scale=0.5)], goal(1.2)
    )
    with torch.no_grad():
        w, u = leaf(1, 2), leaf(1, 2)
        u = ops.planar_constrain_u(w, u)
    yield differentiable(
        "K=1, 4 x 2", ops.planar_flow, eager_planar, [leaf(4, 2), w, u.requires_grad_(), leaf(1)], goal(1.2)
    )
    yield differentiable(
        "4 x 8, 8 bins", ops.rational_quadratic_spline, reference_spline,
        [leaf(4, 8), leaf(4, 8, 8), leaf(4, 8, 8), leaf(4, 8, 7)],
    )  # fmt: skip

    machine = random_machine(options, 16, 8, 0.5, generator)
    v = random_data(options, 8, 16, 0.5, generator)

    def rbm_free_energy(*tensors: Tensor) -> tuple[Tensor]:
        return (ops.rbm_free_energy(*tensors),)

    leaves = [v, *(p.clone().requires_grad_() for p in machine)]
    yield differentiable("8 chains, 16x8", rbm_free_energy, eager_free_energy, leaves)
    yield _sweep(machine, v, goal(1.0))
    yield _training_step(options, goal(2.0))


def _sweep(machine: tuple[Tensor, Tensor, Tensor], v: Tensor, target: float | None) -> Case:
    def ours() -> Sequence[Tensor]:
        return ops.rbm_gibbs(v, *machine)

    def theirs() -> Sequence[Tensor]:
        return eager_sweep(v, *machine)

    def many(run: Run) -> Run:
        return lambda: [torch.cat(outputs) for outputs in zip(*(run() for _ in range(REPEATS)), strict=True)]

    contenders = [
        Contender("genfast", ours, compared=many(ours)),
        Contender("eager", theirs, target=target, compared=many(theirs)),
    ]
    return Case("rbm_gibbs", "8 chains, 16x8, one sweep", contenders, small=True, compare=same_distribution)


def _training_step(options: Options, target: float | None) -> Case:
    n, units = 64, 64
    generator = options.generator()
    machine = random_machine(options, units, units, 0.3, generator)
    data = random_data(options, n, units, 0.3, generator)

    def mean(run: Run) -> Run:
        def averaged() -> list[Tensor]:
            steps = [[gradient.clone() for gradient in run()] for _ in range(REPEATS)]
            return [torch.stack(gradients).mean(0) for gradients in zip(*steps, strict=True)]

        return averaged

    contenders = [
        Contender(name, run, target=goal, compared=mean(run))
        for name, run, goal in (
            ("genfast", module_trainer(machine, data), None),
            ("eager", autograd_trainer(machine, data), target),
            ("eager, gradients by hand", _by_hand(machine, data), target),
        )
    ]
    return Case(
        "RBM training",
        f"CD-1 step, {units}x{units}, batch {n}, SGD",
        contenders,
        small=True,
        compare=lambda a, b: gradients_differ(a, b, n * REPEATS),
    )


def _by_hand(machine: tuple[Tensor, Tensor, Tensor], data: Tensor) -> Run:
    """The step without autograd and without an optimiser, in place: what a careful user arrives at."""
    W, vbias, hbias = (p.clone() for p in machine)
    velocities = tuple(torch.zeros_like(p) for p in machine)

    def run() -> Sequence[Tensor]:
        rbm_training.contrastive_step(data, data, (W, vbias, hbias), velocities, lr=1e-4)
        return [-velocity for velocity in velocities]

    return run
