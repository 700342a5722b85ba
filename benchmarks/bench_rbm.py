"""Restricted Boltzmann machines: Gibbs sweeps and a training step, against products and torch.bernoulli."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from genfast import ops
from genfast.boltzmann import RBM
from genfast.reference import rbm as reference
from genfast.reference import rbm_training

from .baselines import compiled, differentiable_call
from .timing import Case, Contender, Options

FLOAT = 4
REPEATS = 400
"""Draws or steps whose mean is compared where a single small one says nothing."""

Run = Callable[[], Sequence[Tensor]]
Machine = tuple[Tensor, Tensor, Tensor]


def cases(options: Options) -> Iterator[Case]:
    """One sweep of many chains at two densities, and one CD-1 step at the size of the usual MNIST machine."""
    chains = 4096 if options.cuda else 2048
    for density, target in ((0.13, 5.0), (0.5, 3.0)):
        yield _sweep(options, chains, 784, 1024, density, 8.0 if options.cuda else target)
    yield _sweep(options, 128, 784, 500, 0.13, None)
    yield _training_step(options)


def random_machine(options: Options, nv: int, nh: int, density: float, generator: torch.Generator) -> Machine:
    """Weights of a young machine whose units are active with about the given probability."""
    W = 0.05 * torch.randn(nv, nh, device=options.device, generator=generator)
    bias = math.log(density / (1 - density))
    return W, torch.full((nv,), bias, device=options.device), torch.full((nh,), bias, device=options.device)


def random_data(options: Options, n: int, nv: int, density: float, generator: torch.Generator) -> Tensor:
    """0/1 rows, each unit 1 with probability `density`."""
    return (torch.rand(n, nv, device=options.device, generator=generator) < density).float()


def eager_sweep(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes without genfast."""
    h = torch.bernoulli(torch.sigmoid(torch.addmm(hbias, v, W)))
    return torch.bernoulli(torch.sigmoid(torch.addmm(vbias, h, W.t()))), h


def same_distribution(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    """Samples differ; the share of active units must not, by more than six standard errors."""
    for name, a, b in zip(("v", "h"), ours, theirs, strict=True):
        if a.shape != b.shape:
            return f"{name}: shapes {list(a.shape)} and {list(b.shape)}"
        for what, dims in (("a unit", 0), ("all units", (0, 1))):
            difference = (a.mean(dims) - b.mean(dims)).abs().max().item()
            count = a.shape[0] if dims == 0 else a.numel()
            if difference > 6 * math.sqrt(2 * 0.25 / count):
                return f"{name}: the activity of {what} differs by {difference:.3g}"
    return ""


def _sweep(options: Options, n: int, nv: int, nh: int, density: float, target: float | None) -> Case:
    generator = options.generator()
    machine = random_machine(options, nv, nh, density, generator)
    v = random_data(options, n, nv, density, generator)
    contenders = [
        Contender("genfast", lambda: ops.rbm_gibbs(v, *machine)),
        Contender("eager", lambda: eager_sweep(v, *machine), target=target),
    ]
    if options.compile:
        function = compiled(eager_sweep)
        contenders.append(Contender("torch.compile", lambda: function(v, *machine)))
    return Case(
        "rbm_gibbs",
        f"{n:,} chains, {nv}x{nh}, density {density:g}, one sweep",
        contenders,
        # States in and out, weights in. No arithmetic is stated: what must be computed depends on the density.
        bytes_moved=FLOAT * (n * (2 * nv + nh) + nv * nh),
        compare=same_distribution,
    )


def _trainer(machine: Machine, step: Callable[[list[Tensor]], None]) -> Callable[[], Sequence[Tensor]]:
    parameters = [p.clone().requires_grad_() for p in machine]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)

    def run() -> Sequence[Tensor]:
        optimizer.zero_grad()
        step(parameters)
        optimizer.step()
        return [p.grad for p in parameters if p.grad is not None]

    return run


def module_trainer(machine: Machine, data: Tensor) -> Callable[[], Sequence[Tensor]]:
    """The CD-1 step as a user of `RBM` writes it."""
    rbm = RBM(machine[0].shape[0], machine[0].shape[1], device=data.device)
    with torch.no_grad():
        for parameter, value in zip((rbm.W, rbm.vbias, rbm.hbias), machine, strict=True):
            parameter.copy_(value)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=1e-4)

    def run() -> Sequence[Tensor]:
        rbm.cd_backward(data)
        optimizer.step()
        return [p.grad for p in (rbm.W, rbm.vbias, rbm.hbias) if p.grad is not None]

    return run


def autograd_trainer(machine: Machine, data: Tensor) -> Callable[[], Sequence[Tensor]]:
    """The CD-1 step as a user of autograd writes it: the difference of two free energies."""

    def step(p: list[Tensor]) -> None:
        with torch.no_grad():
            samples, _ = eager_sweep(data, *p)
        (reference.rbm_free_energy(data, *p).mean() - reference.rbm_free_energy(samples, *p).mean()).backward()

    return _trainer(machine, step)


def gradients_differ(ours: Sequence[Tensor], theirs: Sequence[Tensor], n: int) -> str:
    """What is wrong with gradients whose negative phase is a mean over n samples of products of numbers in [0, 1]."""
    for name, x, y in zip(("W", "vbias", "hbias"), ours, theirs, strict=True):
        difference = (x - y).abs().max().item()
        if not difference <= 8 * math.sqrt(2 * 0.25 / n):
            return f"gradient of {name}: differs by {difference:.3g}"
    return ""


def _training_step(options: Options) -> Case:
    n, nv, nh, density = 128, 784, 500, 0.13
    generator = options.generator()
    machine = random_machine(options, nv, nh, density, generator)
    data = random_data(options, n, nv, density, generator)

    def ours(p: list[Tensor]) -> None:
        samples, _ = ops.rbm_gibbs(data, *p)
        both = ops.rbm_free_energy(torch.stack([data, samples]), *p)
        (both[0] - both[1]).mean().backward()

    @torch.no_grad()
    def by_hand(p: list[Tensor]) -> None:
        W, vbias, hbias = p
        before = torch.sigmoid(torch.addmm(hbias, data, W))
        h = torch.bernoulli(before)
        samples = torch.bernoulli(torch.sigmoid(torch.addmm(vbias, h, W.t())))
        after = torch.sigmoid(torch.addmm(hbias, samples, W))
        W.grad = (samples.t() @ after).addmm_(data.t(), before, alpha=-1).div_(n)
        vbias.grad, hbias.grad = (samples - data).mean(0), (after - before).mean(0)

    return Case(
        "RBM training",
        f"CD-1 step, {nv}x{nh}, batch {n}, SGD",
        [
            Contender("genfast", module_trainer(machine, data)),
            Contender("genfast, the two ops and autograd", _trainer(machine, ours)),
            Contender("eager", autograd_trainer(machine, data), target=None if options.cuda else 3.0),
            Contender("eager, gradients by hand", _trainer(machine, by_hand)),
        ],
        # Weights in twice (two kernels), gradient out and in, weights out; states.
        bytes_moved=FLOAT * (5 * nv * nh + n * (4 * nv + 3 * nh)),
        compare=lambda a, b: gradients_differ(a, b, n),
    )


def calls(options: Options) -> Iterator[Case]:
    """8 chains of a toy machine: the free energy and a sweep; and a CD-1 step of a 64 x 64 machine."""

    def energy(*tensors: Tensor) -> tuple[Tensor]:
        return (ops.rbm_free_energy(*tensors),)

    generator = options.generator()
    machine = random_machine(options, 16, 8, 0.5, generator)
    v = random_data(options, 8, 16, 0.5, generator)
    inputs = [v, *(p.clone().requires_grad_() for p in machine)]
    yield differentiable_call(options, "rbm_free_energy", "8 chains, 16x8", energy, eager_free_energy, inputs)
    yield _small_sweep(machine, v, None if options.cuda else 1.0)
    yield _small_training_step(options, None if options.cuda else 2.0)


def eager_free_energy(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor]:
    """-a.v - sum_j softplus(b + W'v)_j."""
    return (-(v @ vbias) - functional.softplus(torch.addmm(hbias, v, W)).sum(-1),)


def _small_sweep(machine: Machine, v: Tensor, target: float | None) -> Case:
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


def _small_training_step(options: Options, target: float | None) -> Case:
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


def _by_hand(machine: Machine, data: Tensor) -> Run:
    """The step without autograd and without an optimiser, in place: what a careful user arrives at."""
    W, vbias, hbias = (p.clone() for p in machine)
    velocities = tuple(torch.zeros_like(p) for p in machine)

    def run() -> Sequence[Tensor]:
        rbm_training.contrastive_step(data, data, (W, vbias, hbias), velocities, lr=1e-4)
        return [-velocity for velocity in velocities]

    return run
