"""Gibbs sampling of Ising models: lattices and graphs, against PyTorch, a loop in Numba, and dwave-samplers."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from genfast.boltzmann import IsingLattice, SparseBoltzmannMachine
from genfast.boltzmann._graph import lattice_edges

from .timing import Case, Contender, Options

T = 3.0
"""A temperature at which a lattice forgets its start in some sweeps, so that contenders can be compared."""


def cases(options: Options) -> Iterator[Case]:
    """Many small lattices, a large one, and spin glasses on a graph."""
    yield _lattice(options, 64, 64, 50, (50.0, 10.0))
    yield _lattice(options, 4096 if options.cuda else 1, 64 if options.cuda else 1024, 20, (20.0, None))
    yield _glass(options, 64, 64, 50)


def eager_lattice(s: Tensor, black: Tensor, sweeps: int, T: float) -> Tensor:
    """What one writes without genfast: the neighbours by rolls, both colours by a mask."""
    for _ in range(sweeps):
        for colour in (black, ~black):
            field = s.roll(1, -1) + s.roll(-1, -1) + s.roll(1, -2) + s.roll(-1, -2)
            drawn = 2 * (torch.rand_like(s) < torch.sigmoid(2 / T * field)).to(s.dtype) - 1
            s = torch.where(colour, drawn, s)
    return s


def numba_lattice() -> Callable[[Any, int, float, int], None] | None:
    """A checkerboard loop in Numba over int8 spins, lattices or rows in parallel; None where Numba is missing."""
    try:
        import numba
        import numpy as np
    except ImportError:
        return None

    @numba.njit(inline="always")
    def draw(s: Any, c: int, y: int, colour: int, table: Any, state: Any) -> Any:
        height, width = s.shape[1], s.shape[2]
        up, down = y - 1 if y > 0 else height - 1, y + 1 if y + 1 < height else 0
        for x in range((y + colour) % 2, width, 2):
            left, right = x - 1 if x > 0 else width - 1, x + 1 if x + 1 < width else 0
            field = s[c, up, x] + s[c, down, x] + s[c, y, left] + s[c, y, right]
            state ^= state << np.uint64(13)
            state ^= state >> np.uint64(7)
            state ^= state << np.uint64(17)
            s[c, y, x] = 1 if np.uint32(state >> np.uint64(32)) < table[(field + 4) >> 1] else -1
        return state

    @numba.njit(parallel=True)
    def chains(s: Any, sweeps: int, table: Any, seeds: Any) -> None:
        for c in numba.prange(s.shape[0]):
            state = seeds[c, 0]
            for _ in range(sweeps):
                for colour in range(2):
                    for y in range(s.shape[1]):
                        state = draw(s, c, y, colour, table, state)

    @numba.njit(parallel=True)
    def rows(s: Any, sweeps: int, table: Any, seeds: Any) -> None:
        for c in range(s.shape[0]):
            for _ in range(sweeps):
                for colour in range(2):
                    for y in numba.prange(s.shape[1]):
                        seeds[c, y] = draw(s, c, y, colour, table, seeds[c, y])

    def run(s: Any, sweeps: int, T: float, seed: int) -> None:
        fields = np.arange(-4, 5, 2)
        table = np.floor(2.0**32 / (1 + np.exp(-2 * fields / T))).astype(np.uint64)
        seeds = np.random.default_rng(seed).integers(1, 2**63, size=s.shape[:2], dtype=np.uint64)
        (chains if s.shape[0] > 1 else rows)(s, sweeps, table, seeds)

    return run


def dwave_sampler(edges: Sequence[tuple[int, int]], weights: Sequence[float], n: int, chains: int, sweeps: int) -> Any:
    """dwave-samplers' Gibbs sampler at one temperature, on one core; None where it is missing."""
    try:
        import dimod
        from dwave.samplers import SimulatedAnnealingSampler
    except ImportError:
        return None
    couplings: dict[tuple[int, int], float] = {}
    for edge, w in zip(edges, weights, strict=True):
        couplings[edge] = couplings.get(edge, 0.0) - w  # their energy has the other sign
    model = dimod.BinaryQuadraticModel(dict.fromkeys(range(n), 0.0), couplings, "SPIN")
    sampler = SimulatedAnnealingSampler()

    def run() -> Tensor:
        found = sampler.sample(
            model, num_reads=chains, num_sweeps=sweeps, beta_schedule_type="custom", beta_schedule=[1 / T] * sweeps,
            proposal_acceptance_criteria="Gibbs", randomize_order=False,
        )  # fmt: skip
        return torch.from_numpy(found.record.energy / n).float()

    return run


def same_energy(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    """Samples differ; the energy per site must not, by more than six standard errors."""
    a, b = (x[0].double().flatten() for x in (ours, theirs))
    if a.numel() != b.numel():
        return f"{a.numel()} and {b.numel()} energies"
    spread = float(a.std()) if a.numel() > 1 else 2.0 / 1024
    difference = abs(float(a.mean() - b.mean()))
    return f"the energy per site differs by {difference:.2g}" if difference > 6 * spread * math.sqrt(2 / len(a)) else ""


def _lattice(options: Options, chains: int, size: int, sweeps: int, targets: tuple[float, float | None]) -> Case:
    lattice = IsingLattice((size, size), temperature=T)
    start = torch.ones(chains, size, size, device=options.device)
    black = (torch.arange(size)[:, None] + torch.arange(size)).to(options.device) % 2 == 0
    energy = lambda s: (lattice.energy(s) / size**2,)  # noqa: E731
    once = start.cpu()[0].to(torch.int8)
    contenders = [
        Contender(
            "genfast", lambda: (lattice.gibbs(start, sweeps),),
            compared=lambda: energy(lattice.gibbs(start, sweeps)),
        ),
        Contender(
            "eager", lambda: (eager_lattice(start, black, sweeps, T),), target=targets[0],
            compared=lambda: energy(eager_lattice(start, black, sweeps, T)),
        ),
    ]  # fmt: skip
    loop = None if options.cuda else numba_lattice()
    if loop is not None:

        def by_numba() -> Tensor:
            s = once.expand(chains, size, size).contiguous()
            loop(s.numpy(), sweeps, T, 1)
            return s

        contenders.append(
            Contender("Numba", lambda: (by_numba(),), target=targets[1], compared=lambda: energy(by_numba().float()))
        )
    if not options.cuda and chains > 1:
        pairs, _ = lattice_edges(size, size, (True, True))
        run = dwave_sampler([(int(i), int(j)) for i, j in pairs], [1.0] * len(pairs), size**2, chains, sweeps)
        if run is not None:
            contenders.append(
                Contender("dwave-samplers, one core", lambda: (run(),), target=6.0, compared=lambda: (run(),))
            )
    return Case(
        "lattice_gibbs", f"{chains:,} x {size} x {size}, {sweeps} sweeps", contenders, compare=same_energy,
        bytes_moved=2 * start.nbytes,
    )  # fmt: skip


def eager_graph(s: Tensor, classes: Sequence[Tensor], rows: Sequence[Tensor], sweeps: int) -> Tensor:
    """What one writes without genfast: s `[n_units, chains]`, for each colour a product with its rows of J."""
    s = s.clone()
    for _ in range(sweeps):
        for units, of_colour in zip(classes, rows, strict=True):
            p = torch.sigmoid(2 / T * (of_colour @ s))
            s[units] = 2 * (torch.rand_like(p) < p).to(s.dtype) - 1
    return s


def _glass(options: Options, chains: int, size: int, sweeps: int) -> Case:
    """Couplings +1 and -1 on a square lattice: the Edwards-Anderson spin glass."""
    n = size**2
    pairs, _ = lattice_edges(size, size, (True, True))
    machine = SparseBoltzmannMachine(n, pairs, values="pm1", temperature=T, device=options.device)
    with torch.no_grad():
        signs = torch.randint(2, (machine.n_edges,), generator=torch.Generator().manual_seed(0))
        machine.weights.copy_(2.0 * signs - 1)
    start = torch.ones(chains, n, device=options.device)
    classes = [(machine.colours == c).nonzero()[:, 0] for c in range(machine.n_colours)]
    J = machine.J.detach()
    rows = [J[units].to_sparse_csr() for units in classes]
    transposed = start.T.contiguous()
    energy = lambda s: (machine.energy(s).detach() / n,)  # noqa: E731
    eager = lambda: eager_graph(transposed, classes, rows, sweeps)  # noqa: E731
    contenders = [
        Contender(
            "genfast", lambda: (machine.gibbs(start, sweeps),), compared=lambda: energy(machine.gibbs(start, sweeps))
        ),
        Contender("eager", lambda: (eager(),), target=5.0, compared=lambda: energy(eager().T)),
    ]
    if not options.cuda:
        edges = [(int(i), int(j)) for i, j in machine.edges]
        run = dwave_sampler(edges, machine.weights.tolist(), n, chains, sweeps)
        if run is not None:
            contenders.append(
                Contender("dwave-samplers, one core", lambda: (run(),), target=6.0, compared=lambda: (run(),))
            )
    return Case(
        "ising_gibbs", f"spin glass on {size} x {size}, {chains} chains, {sweeps} sweeps", contenders,
        compare=same_energy, bytes_moved=2 * start.nbytes,
    )  # fmt: skip
