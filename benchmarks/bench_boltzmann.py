"""Sequential Gibbs sampling of a general Boltzmann machine, against a loop over units and dwave-samplers."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from genfast import ops

from .baselines import peer
from .timing import Case, Contender, Options

FLOAT = 4


def cases(options: Options) -> Iterator[Case]:
    """Spin glasses of several sizes. The colder one is, the fewer spins turn: few, a quarter, nearly half."""
    for temperature, target in ((0.25, 100.0), (1.0, 100.0), (4.0, None)):
        yield _sweeps(options, 784, 64, temperature, 10, None if options.cuda else target)
    for n, chains in ((64, 64), (256, 1024), (2048, 64), (784, 1)):
        yield _sweeps(options, n, chains, 1.0, 10, None)
    if not options.cuda:
        for temperature, n_sweeps in ((0.25, 100), (1.0, 20), (4.0, 20)):
            yield from _annealer(options, 784, 64, temperature, n_sweeps)


def spin_glass(options: Options, n: int, chains: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Couplings of Sherrington and Kirkpatrick, a bias of zeros, and spins that have come near equilibrium."""
    generator = options.generator()
    A = torch.randn(n, n, device=options.device, generator=generator).triu(1) / math.sqrt(n)
    J, bias = A + A.t(), A.new_zeros(n)
    s = torch.randint(0, 2, (chains, n), device=options.device, generator=generator).float() * 2 - 1
    return (
        ops.boltzmann_gibbs(s, J, bias, n_sweeps=100, temperature=temperature, values="pm1", seed=options.seed),
        J,
        bias,
    )


@torch.no_grad()
def loop_over_units(s: Tensor, J: Tensor, bias: Tensor, temperature: float, n_sweeps: int) -> Tensor:
    """What one writes without genfast: fields are kept, and a spin that turns changes them by a row of couplings.

    Units lie in rows, so that each is one piece of memory, and the random numbers of a sweep are drawn at once, as the
    fields at which a spin points up: sigmoid(2 h / T) > u where h > T logit(u) / 2.
    """
    s = s.t().contiguous()
    fields = torch.addmm(bias[:, None], J, s)
    for _ in range(n_sweeps):
        thresholds = torch.logit(torch.rand_like(s)).mul_(temperature / 2)
        for i in range(s.shape[0]):
            new = torch.gt(fields[i], thresholds[i]).to(s.dtype).mul_(2).sub_(1)
            change = new - s[i]
            s[i] = new
            fields.addr_(J[i], change)
    return s.t()


def energies_differ(J: Tensor, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    """What is wrong with the mean energy a spin, by more than six standard errors."""
    a, b = (-0.5 * ((s @ J) * s).sum(1) / J.shape[0] for s in (ours[0], theirs[0]))
    if a.shape[0] < 16:
        return ""  # too few chains to tell
    error = math.sqrt((a.var() + b.var()).item() / a.shape[0])
    difference = (a.mean() - b.mean()).abs().item()
    return f"the energy a spin differs by {difference:.3g}" if difference > 6 * error else ""


def _turned(s: Tensor, J: Tensor, bias: Tensor, temperature: float) -> float:
    after = ops.boltzmann_gibbs(s, J, bias, temperature=temperature, values="pm1", seed=1)
    return (after != s).float().mean().item()


def _case(s: Tensor, J: Tensor, bias: Tensor, temperature: float, n_sweeps: int, contenders: list[Contender]) -> Case:
    chains, n = s.shape
    turned = _turned(s, J, bias, temperature)
    who = f"{chains:,} chains of {n:,} spins" if chains > 1 else f"one chain of {n:,} spins"
    return Case(
        "boltzmann_gibbs",
        f"{who}, T = {temperature:g} ({100 * turned:.0f}% turn), {n_sweeps} sweeps",
        contenders,
        # States in and out, couplings in. No arithmetic is stated: what must be computed depends on what turns.
        bytes_moved=FLOAT * (2 * s.numel() + J.numel()),
        compare=lambda a, b: energies_differ(J, a, b),
    )


def _sweeps(options: Options, n: int, chains: int, temperature: float, n_sweeps: int, target: float | None) -> Case:
    s, J, bias = spin_glass(options, n, chains, temperature)

    def ours() -> Sequence[Tensor]:
        return [ops.boltzmann_gibbs(s, J, bias, n_sweeps=n_sweeps, temperature=temperature, values="pm1")]

    def loop() -> Sequence[Tensor]:
        return [loop_over_units(s, J, bias, temperature, n_sweeps)]

    contenders = [Contender("genfast", ours), Contender("eager, a loop over units", loop, target=target)]
    return _case(s, J, bias, temperature, n_sweeps, contenders)


def _annealer(options: Options, n: int, chains: int, temperature: float, n_sweeps: int) -> Iterator[Case]:
    """One core each: dwave-samplers has no threads.

    Its kernel is called directly, for so many sweeps that what it does before them hardly counts.
    """
    module = peer("dwave.samplers.sa.simulated_annealing")
    if module is None:
        return
    s, J, bias = spin_glass(options, n, chains, temperature)
    row, column = torch.triu_indices(n, n, 1).to(torch.int32)
    weights, fields = -J[row.long(), column.long()].double().numpy(), -bias.double().numpy()  # E = +h.s + sum J s s
    betas = torch.full((n_sweeps,), 1 / temperature, dtype=torch.float64).numpy()
    seeds = itertools.count(1)

    def annealer(rule: str) -> Callable[[], Sequence[Tensor]]:
        def run() -> Sequence[Tensor]:
            states = s.to(torch.int8).numpy().copy()
            module.simulated_annealing(
                chains, fields, row.numpy(), column.numpy(), weights, 1, betas, next(seeds), states, False, rule, None
            )  # fmt: skip
            return [torch.from_numpy(states).float()]

        return run

    def ours() -> Sequence[Tensor]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        out = ops.boltzmann_gibbs(s, J, bias, n_sweeps=n_sweeps, temperature=temperature, values="pm1")
        torch.set_num_threads(threads)
        return [out]

    contenders = [
        Contender("genfast, one core", ours),
        Contender("dwave-samplers, Gibbs, one core", annealer("Gibbs"), target=3.0),
        Contender("dwave-samplers, Metropolis, one core", annealer("Metropolis")),
    ]
    yield _case(s, J, bias, temperature, n_sweeps, contenders)


def calls(options: Options) -> Iterator[Case]:
    """8 chains of a machine of 16 units, one sweep."""
    s, J, bias = spin_glass(options, 16, 8, 1.0)

    def many(run: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
        return lambda: [torch.cat([run()[0] for _ in range(50)])]

    def ours() -> Sequence[Tensor]:
        return [ops.boltzmann_gibbs(s, J, bias, values="pm1")]

    def loop() -> Sequence[Tensor]:
        return [loop_over_units(s, J, bias, 1.0, 1)]

    yield Case(
        "boltzmann_gibbs",
        "8 chains of 16 spins, one sweep",
        [Contender("genfast", ours, compared=many(ours)), Contender("eager", loop, compared=many(loop))],
        small=True,
        compare=lambda a, b: energies_differ(J, a, b),
    )
