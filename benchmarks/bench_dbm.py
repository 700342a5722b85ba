"""Deep Boltzmann machines: mean field, sweeps of all layers and a training step, against products and torch.bernoulli.

Both sides run the same algorithm: the same pass up to start from, the same order of layers, and a mean field that ends
at the same tolerance (or after the same number of iterations, where the tolerance is 0).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from genfast import ops
from genfast.boltzmann import DeepBoltzmannMachine

from .timing import Case, Contender, Options

SIZES = (784, 500, 1000)
FLOAT = 4


def cases(options: Options) -> Iterator[Case]:
    """The machine of Salakhutdinov and Hinton (2009) at batches of 100."""
    weights, biases, v, states = machine_and_data(options)
    for tolerance, most in ((1e-3, 50), (0.0, 10)):
        yield _mean_field(v, weights, biases, tolerance, most)
    yield Case(
        "dbm_gibbs",
        "100 chains, 784-500-1000, one sweep",
        [
            Contender("genfast", lambda: ops.dbm_gibbs(states, weights, biases)),
            Contender("eager", lambda: eager_sweep(states, weights, biases)),
        ],
        bytes_moved=FLOAT * (2 * sum(s.numel() for s in states) + sum(W.numel() for W in weights)),
        compare=same_activity,
    )
    for tolerance, most, target in ((1e-3, 50, 3.0), (0.0, 10, None)):
        yield _training_step(v, states, weights, biases, tolerance, most, target)


def machine_and_data(options: Options) -> tuple[list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    """Weights, biases, data and chains with the activities of a machine trained on MNIST: 0.13, 0.4 and 0.1."""
    g, device = options.generator(), options.device
    activities = (0.13, 0.4, 0.1)
    weights = [0.1 * torch.randn(a, b, device=device, generator=g) for a, b in itertools.pairwise(SIZES)]
    biases = [torch.full((n,), math.log(p / (1 - p)), device=device) for n, p in zip(SIZES, activities, strict=True)]
    states = [
        (torch.rand(100, n, device=device, generator=g) < p).float() for n, p in zip(SIZES, activities, strict=True)
    ]
    v = (torch.rand(100, SIZES[0], device=device, generator=g) < activities[0]).float()
    return weights, biases, v, states


def eager_mean_field(
    v: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], tolerance: float, most: int
) -> tuple[Tensor, Tensor]:
    """Two hidden layers: what comes from v is computed once, and every product once."""
    (W0, W1), (_, b1, b2) = weights, biases
    field = torch.addmm(b1, v, W0)
    m1 = torch.sigmoid(2 * field - b1)
    m2 = torch.sigmoid(torch.addmm(b2, m1, W1))
    for _ in range(most):
        n1 = torch.sigmoid(torch.addmm(field, m2, W1.t()))
        n2 = torch.sigmoid(torch.addmm(b2, n1, W1))
        done = tolerance > 0 and bool(torch.maximum((n1 - m1).abs_().max(), (n2 - m2).abs_().max()) <= tolerance)
        m1, m2 = n1, n2
        if done:
            break
    return m1, m2


def eager_sweep(states: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """h1 given v and h2, then v and h2 given h1."""
    v, _, h2 = states
    h1 = torch.bernoulli(torch.sigmoid(torch.addmm(torch.addmm(biases[1], v, weights[0]), h2, weights[1].t())))
    v = torch.bernoulli(torch.sigmoid(torch.addmm(biases[0], h1, weights[0].t())))
    return [v, h1, torch.bernoulli(torch.sigmoid(torch.addmm(biases[2], h1, weights[1])))]


def same_activity(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    """Samples differ; the share of active units of a layer must not, by more than six standard errors."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        difference = abs(a.mean().item() - b.mean().item())
        if difference > 6 * math.sqrt(2 * 0.25 / a.numel()):
            return f"layer {i}: the activity differs by {difference:.3g}"
    return ""


def _close(limit: float, what: str) -> Callable[[Sequence[Tensor], Sequence[Tensor]], str]:
    def compare(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
        worst = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
        return "" if worst <= limit else f"{what} differ by {worst:.3g}"

    return compare


def _mean_field(v: Tensor, weights: list[Tensor], biases: list[Tensor], tolerance: float, most: int) -> Case:
    until = f"to {tolerance:g}" if tolerance else f"{most} iterations"
    return Case(
        "dbm_mean_field",
        f"100 rows, 784-500-1000, {until}",
        [
            Contender(
                "genfast",
                lambda: ops.dbm_mean_field(v, weights, biases, max_iterations=most, tolerance=tolerance)[0],
            ),
            Contender("eager", lambda: eager_mean_field(v, weights, biases, tolerance, most)),
        ],
        bytes_moved=FLOAT * (v.numel() + sum(W.numel() for W in weights) + 100 * sum(SIZES[1:])),
        compare=_close(20 * tolerance or 1e-4, "means"),
    )


def _training_step(
    v: Tensor, states: list[Tensor], weights: list[Tensor], biases: list[Tensor], tolerance: float, most: int,
    target: float | None,
) -> Case:  # fmt: skip
    """A mean field, one sweep of 100 chains, the gradients and an update by SGD."""
    dbm = DeepBoltzmannMachine(SIZES[0], SIZES[1:], device=v.device)
    dbm.max_iterations, dbm.tolerance = most, tolerance
    with torch.no_grad():
        for p, value in zip(dbm.parameters(), [*weights, *biases], strict=True):
            p.copy_(value)
    dbm.chains = torch.cat(states, 1)
    ours = torch.optim.SGD(dbm.parameters(), lr=1e-6)
    parameters = [p.clone().requires_grad_() for p in (*weights, *biases)]
    theirs = torch.optim.SGD(parameters, lr=1e-6)
    chains = [s.clone() for s in states]

    def fused() -> list[Tensor]:
        dbm.pcd_backward(v)
        ours.step()
        return [p.grad for p in dbm.parameters() if p.grad is not None]

    @torch.no_grad()
    def eager() -> list[Tensor]:
        W, b = parameters[:2], parameters[2:]
        data = [v, *eager_mean_field(v, W, b, tolerance, most)]
        chains[:] = eager_sweep(chains, W, b)
        for i in range(2):
            parameters[i].grad = torch.addmm(
                chains[i].t() @ chains[i + 1], data[i].t(), data[i + 1], beta=0.01, alpha=-0.01
            )
        for i in range(3):
            parameters[2 + i].grad = chains[i].mean(0) - data[i].mean(0)
        theirs.step()
        return [p.grad for p in parameters if p.grad is not None]

    until = f"mean field to {tolerance:g}" if tolerance else f"{most} iterations of the mean field"
    return Case(
        "DeepBoltzmannMachine.pcd_backward",
        f"batch 100, 100 chains, 784-500-1000, {until}",
        [Contender("genfast", fused), Contender("eager", eager, target=target)],
        bytes_moved=FLOAT * 3 * sum(W.numel() for W in weights),
        compare=_close(0.8, "gradients of two draws of the chains"),
    )
