"""General Boltzmann machines: a training step, against a loop over the units in plain PyTorch."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from genfast.boltzmann import BoltzmannMachine

from .timing import Case, Contender, Options

FLOAT = 4


def cases(options: Options) -> Iterator[Case]:
    """A PCD-1 step: all units visible, as many as MNIST has pixels; and the default of `genfast train bm` on digits."""
    yield _training_step(options, 784, 0, batch=64, chains=64, k_data=1)
    yield _training_step(options, 64, 64, batch=64, chains=256, k_data=5)


def eager_sweep(s: Tensor, J: Tensor, bias: Tensor, first: int = 0) -> None:
    """A sweep of the units from number `first` on, in place, s `[n, chains]`: a rank-one update of all fields a unit.

    Chains lie side by side, so that a unit's states are one row, and random numbers are drawn at once.
    """
    fields = torch.addmm(bias[:, None], J, s)
    bars = torch.rand_like(s[first:]).logit_()
    for i in range(first, s.shape[0]):
        new = (bars[i - first] < fields[i]).to(s.dtype)
        fields.addr_(J[i], new - s[i])
        s[i] = new


def eager_trainer(machine: BoltzmannMachine, data: Tensor, k_data: int) -> Callable[[], Sequence[Tensor]]:
    """The step as a careful user writes it: J kept symmetric by a symmetric gradient, chains updated in place."""
    J, bias, nv = machine.J.detach().clone(), machine.bias.detach().clone(), machine.n_visible
    chains, clamped = machine.chains.T.contiguous(), data.T.contiguous()
    hidden = bias[nv:, None].sigmoid().expand(-1, len(data))
    n, m = len(data), chains.shape[1]

    @torch.no_grad()
    def run() -> Sequence[Tensor]:
        s = torch.cat([clamped, torch.bernoulli(hidden)])
        if machine.n_hidden:
            for _ in range(k_data):
                eager_sweep(s, J, bias, nv)
        eager_sweep(chains, J, bias)
        grad = torch.addmm(s @ s.T, chains, chains.T, beta=-1 / n, alpha=1 / m).fill_diagonal_(0)
        of_bias = chains.mean(1) - s.mean(1)
        J.sub_(grad, alpha=1e-4)
        bias.sub_(of_bias, alpha=1e-4)
        return [grad.triu(), of_bias]

    return run


def module_trainer(machine: BoltzmannMachine, data: Tensor, k_data: int) -> Callable[[], Sequence[Tensor]]:
    """The step as a user of `BoltzmannMachine` writes it."""
    optimizer = torch.optim.SGD(machine.parameters(), lr=1e-4)

    def run() -> Sequence[Tensor]:
        machine.pcd_backward(data, 1, k_data=k_data)
        optimizer.step()
        return [p.grad for p in machine.parameters() if p.grad is not None]

    return run


def gradients_differ(ours: Sequence[Tensor], theirs: Sequence[Tensor], n: int) -> str:
    """What is wrong with gradients that are differences of means over n samples of products of numbers in [0, 1]."""
    for name, x, y in zip(("couplings", "bias"), ours, theirs, strict=True):
        difference = (x - y).abs().max().item()
        if not difference <= 8 * math.sqrt(4 * 0.25 / n):
            return f"gradient of {name}: differs by {difference:.3g}"
    return ""


def _training_step(options: Options, nv: int, nh: int, *, batch: int, chains: int, k_data: int) -> Case:
    generator, density = options.generator(), 0.13
    machine = BoltzmannMachine(nv, nh, init_std=0.05, generator=generator, device=options.device)
    torch.nn.init.constant_(machine.bias, math.log(density / (1 - density)))
    data = (torch.rand(batch, nv, device=options.device, generator=generator) < density).float()
    machine.reset_chains(chains, generator=generator)
    n = machine.n_units
    sizes = f"{nv} units" if not nh else f"{nv} units and {nh} hidden"
    return Case(
        "BoltzmannMachine training",
        f"PCD-1 step, {sizes}, batch {batch}, {chains} chains, SGD",
        [
            Contender("genfast", module_trainer(machine, data, k_data)),
            Contender("eager", eager_trainer(machine, data, k_data), target=10.0),
        ],
        # Couplings read, gradient out and in, couplings out; states.
        bytes_moved=FLOAT * (4 * n * n + 2 * n * (batch + chains)),
        compare=lambda a, b: gradients_differ(a, b, min(batch, chains)),
    )
