import itertools
import math
import re

import pytest
import torch

import genfast
from genfast import ops
from tests.harness import OpSpec, OpTests, Small

FALSE_ALARM = 1e-6  # of the chi-square tests, whose seeds are fixed


def states(*size, spin=True, density=0.5, device="cpu", dtype=torch.float32, seed=0):
    s = (torch.rand(*size, generator=torch.Generator().manual_seed(seed)) < density).float()
    return (2 * s - 1 if spin else s).to(device, dtype)


def graph(pairs, n, weights=None, seed=0):
    """row_ptr, columns and weights of an undirected graph, and a greedy colouring."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(pairs), generator=g, dtype=torch.float64) if weights is None else torch.tensor(weights)
    J = torch.zeros(n, n, dtype=torch.float64)
    for (i, j), w in zip(pairs, weights, strict=True):
        J[i, j] += w
        J[j, i] += w
    row, columns = J.nonzero(as_tuple=True)
    row_ptr = torch.searchsorted(row, torch.arange(n + 1))
    colours = torch.zeros(n, dtype=torch.int64)
    for i in range(n):
        taken = {int(colours[j]) for j in range(i) if J[i, j] != 0}
        colours[i] = next(c for c in itertools.count() if c not in taken)
    return row_ptr, columns, J[row, columns], colours


def random_pairs(n, p, seed=0):
    chosen = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < p
    return [(i, j) for i in range(n) for j in range(i + 1, n) if chosen[i, j]]


def bonds(height, width, periodic=(True, True)):
    """The bonds of a lattice; both of a pair where a periodic axis has two sites."""
    at = lambda y, x: y % height * width + x % width  # noqa: E731
    found = []
    for y, x in itertools.product(range(height), range(width)):
        if y + 1 < height or periodic[0]:
            found.append((at(y, x), at(y + 1, x)))
        if x + 1 < width or periodic[1]:
            found.append((at(y, x), at(y, x + 1)))
    return found


# --- what every op has ------------------------------------------------------------------------------------------------


def lattice(s, coupling=1.0, **options):
    return (ops.lattice_gibbs(s, coupling, **options),)


def lattice_reference(s, **options):
    with genfast.backend("reference"):
        return lattice(s, **options)


def make_lattice(case, generator):
    return {"s": torch.where(torch.rand(*case, generator=generator) < 0.5, -1.0, 1.0).double()}


class TestLattice(OpTests):
    spec = OpSpec(
        name="lattice_gibbs", function=lattice, reference=lattice_reference, make=make_lattice, outputs=["states"],
        cases=[(5, 8, 6), (3, 4, 70), (33, 16, 16)], rows=["s"], any_dtype=["s"],
        variants={
            "one sweep": {"coupling": 1.0, "temperature": 2.3, "seed": 5},
            "open, three sweeps": {"coupling": (0.5, -1.0), "field": 0.2, "periodic": False, "n_sweeps": 3, "seed": 6},
        },
        small=[(3, 8, 6), (35, 4, 4), (3, 6, 66), (1, 64, 10)],
        small_options=[
            {"coupling": 1.0, "temperature": 2.3, "seed": 5, "n_sweeps": 2},
            {"coupling": 1.0, "field": 0.1, "seed": 5},
            {"coupling": (0.5, -1.0), "field": 0.2, "periodic": False, "n_sweeps": 2, "seed": 6},
        ],
    )  # fmt: skip


def ring(n):
    """A ring of units with a chord, and a unit without edges."""
    return graph([(i, i + 1) for i in range(n - 2)] + ([(0, n - 2)] if n > 4 else []), n)


def path(n, like):
    """row_ptr, columns and colours of a path through all units but the last, without a look at any number."""
    real = type(like) is torch.Tensor
    ones = torch.ones(n + 1, dtype=torch.int64, device=like.device) if real else like.new_ones(n + 1, dtype=torch.int64)
    number = ones.cumsum(0) - 1
    columns = torch.stack([number[1 : n - 1], number[: n - 2]], 1).flatten() if n > 2 else number[:0]
    return (2 * number - 1).clamp(0, max(2 * n - 4, 0)), columns, number[:n] % 2


def on_path(s, weights, bias, **options):
    like = s if isinstance(s, torch.Tensor) else bias
    row_ptr, columns, colours = path(like.shape[-1], like)
    return (ops.ising_gibbs(s, row_ptr, columns, weights, bias, colours, **options),)


def on_path_reference(s, weights, bias, **options):
    with genfast.backend("reference"):
        return on_path(s, weights, bias, **options)


def make_path(case, generator):
    n, units = case
    s = torch.where(torch.rand(n, units, generator=generator) < 0.5, -1.0, 1.0).double()
    weights = torch.randn(max(units - 2, 0), generator=generator).double().repeat_interleave(2)
    return {"s": s, "weights": weights, "bias": torch.randn(units, generator=generator).double()}


class TestGraph(OpTests):
    spec = OpSpec(
        name="ising_gibbs", function=on_path, reference=on_path_reference, make=make_path, outputs=["states"],
        cases=[(5, 7), (3, 40), (37, 66)], rows=["s"], like="weights", any_dtype=["s"],
        variants={
            "one sweep": {"seed": 5}, "three sweeps": {"seed": 6, "n_sweeps": 3, "temperature": 2.0},
        },
    )  # fmt: skip


def small_lattice():
    return {"s": states(5, 8, 12), "clamp": states(5, 8, 12, seed=1) > 0}


def small_graph(n=35, units=30, p=0.2, clamp=True):
    def make():
        row_ptr, columns, weights, colours = graph(random_pairs(units, p), units)
        tensors = {"s": states(n, units, spin=False), "row_ptr": row_ptr, "columns": columns, "weights": weights}
        tensors |= {"bias": weights.new_zeros(units), "colours": colours}
        return tensors | ({"clamp": states(n, units, seed=1) > 0} if clamp else {})

    return Small(make, [{"values": "01", "seed": 1, "n_sweeps": 2}], exact=True)


SMALL = {
    "lattice_gibbs (clamped)": Small(small_lattice, [{"coupling": 1.0, "seed": 1, "n_sweeps": 2}], exact=True),
    "ising_gibbs (clamped)": small_graph(),
    "ising_gibbs (one unit)": small_graph(1, 1, 0.0, clamp=False),
    "ising_gibbs (dense)": small_graph(37, 41, 0.9, clamp=False),
}


# --- the same bits everywhere -----------------------------------------------------------------------------------------


def same_as_reference(function, s, *args, **options):
    with genfast.backend("reference"):
        cpu = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        want = function(s.cpu(), *(a.cpu() if isinstance(a, torch.Tensor) else a for a in args), **cpu)
    there = lambda x: x.to(s.device) if isinstance(x, torch.Tensor) else x  # noqa: E731
    got = function(s, *map(there, args), **{k: there(v) for k, v in options.items()})
    assert got.dtype == want.dtype == s.dtype
    assert torch.equal(got.cpu(), want)
    return got


# One row and one column of sites, both bonds of a pair, rows that share words and that fill them to the last bit, rows
# of several words, odd sizes and cylinders; more chains than lanes, strips of one lattice in several lanes.
SIZES = [
    (3, 2, 2, True), (5, 8, 8, True), (2, 6, 10, True), (33, 16, 16, True), (2, 64, 64, True), (1, 32, 130, True),
    (3, 12, 36, True), (0, 4, 4, True), (2, 1, 1, False), (3, 1, 7, False), (2, 7, 1, False), (3, 3, 3, False),
    (2, 5, 66, False), (1, 64, 65, False), (2, 4, 5, (True, False)), (2, 5, 4, (False, True)),
    (1, 64, 128, (False, True)),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", ["even", "field", "per chain", "annealed"])
def test_every_backend_draws_the_same_lattices(kernels, size, options):
    n, height, width, periodic = size
    g = torch.Generator().manual_seed(1)
    coupling, kwargs = {
        "even": (-1.0, {"temperature": 2.3}),
        "field": (0.7, {"field": 0.3, "values": "01", "clamp": torch.rand(height, width, generator=g) < 0.3}),
        "per chain": (
            (0.7, 1.1),
            {
                "temperature": 3 * torch.rand(n, generator=g) + 0.5,
                "clamp": torch.rand(n, height, width, generator=g) < 0.3,
            },
        ),
        "annealed": (0.1, {"temperature": torch.rand(3, n, generator=g) + 0.05, "field": -0.2}),
    }[options]
    s = states(n, height, width, spin="values" not in kwargs, device=kernels.device)
    got = same_as_reference(
        ops.lattice_gibbs, s, coupling, n_sweeps=3, seed=-5, periodic=periodic, first_chain=3, first_step=2, **kwargs
    )
    if "clamp" in kwargs:
        held = kwargs["clamp"].expand(n, height, width).to(s.device)
        assert torch.equal(got[held], s[held])


GRAPHS = [(1, 1, 0.0), (5, 7, 0.4), (33, 40, 0.1), (70, 101, 0.05), (17, 30, 0.9), (0, 5, 0.5)]


@pytest.mark.parametrize("size", GRAPHS, ids=str)
@pytest.mark.parametrize("options", ["pm1", "01", "per chain", "annealed"])
def test_every_backend_draws_the_same_graphs(kernels, size, options):
    n, units, p = size
    g = torch.Generator().manual_seed(1)
    kwargs = {
        "pm1": {"temperature": 2.0},
        "01": {"values": "01", "clamp": torch.rand(units, generator=g) < 0.3},
        "per chain": {
            "temperature": torch.rand(n, generator=g) + 0.5,
            "clamp": torch.rand(n, units, generator=g) < 0.3,
        },
        "annealed": {"temperature": torch.rand(3, n, generator=g) + 0.5, "values": "01"},
    }[options]
    row_ptr, columns, weights, colours = graph(random_pairs(units, p), units)
    s = states(n, units, spin="values" not in kwargs, device=kernels.device)
    bias = torch.randn(units, generator=g)
    got = same_as_reference(
        ops.ising_gibbs, s, row_ptr, columns, weights.float(), bias, colours, n_sweeps=3, seed=-5, first_chain=3,
        first_step=2, **kwargs,
    )  # fmt: skip
    if "clamp" in kwargs:
        held = kwargs["clamp"].expand(n, units).to(s.device)
        assert torch.equal(got[held], s[held])


def test_more_than_shared_memory_holds(kernels):
    """On a GPU states then lie in global memory; on the CPU threads share a lattice."""
    s = states(1, 2, 84_000, device=kernels.device)
    same_as_reference(ops.lattice_gibbs, s, 1.0, seed=1, clamp=states(2, 84_000, seed=2) > 0)
    units = 10_500
    pairs = [(i, i + 1) for i in range(units - 1)]
    row = torch.arange(units).repeat_interleave(2)[1:-1]
    columns = torch.stack([torch.arange(units - 1) + 1, torch.arange(units - 1)], 1).flatten()
    row_ptr = torch.searchsorted(row, torch.arange(units + 1))
    arguments = (row_ptr, columns, torch.ones(2 * len(pairs)), torch.zeros(units), torch.arange(units) % 2)
    same_as_reference(ops.ising_gibbs, states(3, units, device=kernels.device), *arguments, seed=2)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
     torch.bool],
    ids=str,
)  # fmt: skip
def test_state_dtypes(kernels, dtype):
    spin = dtype not in (torch.uint8, torch.bool)
    values = {"values": "pm1" if spin else "01", "seed": 3}
    s = states(9, 6, 40, spin=spin, device=kernels.device)
    got = ops.lattice_gibbs(s.to(dtype), 1.0, **values)
    assert got.dtype == dtype
    assert torch.equal(got, ops.lattice_gibbs(s, 1.0, **values).to(dtype))
    row_ptr, columns, weights, colours = (t.to(kernels.device) for t in ring(40))
    arguments = (row_ptr.int(), columns.int(), weights, weights.new_zeros(40), colours.int())
    got = ops.ising_gibbs(s[0].to(dtype), *arguments, **values)
    assert torch.equal(got, ops.ising_gibbs(s[0], *arguments, **values).to(dtype))


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e3, 1e30], ids=str)
def test_extreme_temperatures(kernels, temperature):
    s = states(20, 8, 8, device=kernels.device)
    same_as_reference(ops.lattice_gibbs, s, 1.0, 0.1, temperature=temperature, seed=1, n_sweeps=2)
    row_ptr, columns, weights, colours = ring(64)
    arguments = (row_ptr, columns, weights.float(), torch.zeros(64), colours)
    same_as_reference(ops.ising_gibbs, s.reshape(20, 64), *arguments, temperature=temperature, seed=1, n_sweeps=2)


def test_threads_batches_and_time_do_not_matter(kernels):
    s = states(70, 8, 36, device=kernels.device)
    row_ptr, columns, weights, colours = (t.to(kernels.device) for t in ring(288))
    arguments = (row_ptr, columns, weights, weights.new_zeros(288), colours)
    temperature = torch.linspace(1.0, 3.0, 5, device=kernels.device)[:, None]
    for run, x in (
        (lambda x, **o: ops.lattice_gibbs(x, 1.0, seed=7, **o), s),
        (lambda x, **o: ops.ising_gibbs(x, *arguments, seed=7, **o), s.flatten(1)),
    ):
        want = run(x, n_sweeps=5, temperature=temperature)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(run(x, n_sweeps=5, temperature=temperature), want)
        parts = [run(x[k : k + 23], n_sweeps=5, temperature=temperature, first_chain=k) for k in range(0, 70, 23)]
        assert torch.equal(torch.cat(parts), want)
        middle = run(x, n_sweeps=2, temperature=temperature[:2])
        assert torch.equal(run(middle, n_sweeps=3, temperature=temperature[2:], first_step=2), want)


def test_long_calls_are_cut(native, monkeypatch):
    from genfast.ops import _ising

    s = states(150, 8, 8)
    row_ptr, columns, weights, colours = ring(64)
    arguments = (row_ptr, columns, weights, weights.new_zeros(64), colours)
    temperature = torch.rand(6, 150, generator=torch.Generator().manual_seed(0)) + 1
    clamp = states(150, 8, 8, seed=4) > 0
    runs = (
        lambda: ops.lattice_gibbs(s, 1.0, seed=7, n_sweeps=6, temperature=temperature, clamp=clamp),
        lambda: ops.ising_gibbs(s.flatten(1), *arguments, seed=7, n_sweeps=6, temperature=temperature),
    )
    want = [run() for run in runs]
    monkeypatch.setattr(_ising, "SLICE", 2**14)
    for run, w in zip(runs, want, strict=True):
        assert torch.equal(run(), w)


def test_leading_dimensions_and_seeds(backend):
    s = states(6, 4, 8, device=backend.device)
    want = ops.lattice_gibbs(s, 1.0, seed=2**64 - 3)
    assert torch.equal(ops.lattice_gibbs(s.reshape(2, 3, 4, 8), 1.0, seed=-3).reshape(6, 4, 8), want)
    assert torch.equal(ops.lattice_gibbs(s[0], 1.0, seed=torch.tensor(-3, device=s.device)), want[0])
    assert not torch.equal(ops.lattice_gibbs(s, 1.0, seed=2**32 - 3), want), "the high word counts"
    single = torch.tensor([1.0, 2.0], device=s.device)
    assert torch.equal(
        ops.lattice_gibbs(s[0], 1.0, seed=1, n_sweeps=2, temperature=single),
        ops.lattice_gibbs(s[:1], 1.0, seed=1, n_sweeps=2, temperature=single[:, None])[0],
    )
    torch.manual_seed(5)
    first, second = ops.lattice_gibbs(s, 1.0), ops.lattice_gibbs(s, 1.0)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(ops.lattice_gibbs(s, 1.0), first)


def test_a_colouring_that_changes(native):
    """Which units a colour has is kept with the tensor of colours, as long as that does not change."""
    row_ptr, columns, weights, colours = ring(9)
    arguments = (row_ptr, columns, weights, weights.new_zeros(9))
    s = states(50, 9)
    before = ops.ising_gibbs(s, *arguments, colours, seed=1)
    colours.neg_().add_(1)
    after = ops.ising_gibbs(s, *arguments, colours, seed=1)
    assert not torch.equal(before, after)
    assert torch.equal(after, ops.ising_gibbs(s, *arguments, colours.clone(), seed=1))


# --- the right distribution -------------------------------------------------------------------------------------------


def all_states(n, spin):
    bits = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1
    return (2 * bits - 1 if spin else bits).double()


def exact(n, pairs, weights, bias, temperature, spin=True):
    """The distribution over all states, bond by bond."""
    s = all_states(n, spin)
    energy = -s @ bias.double()
    for (i, j), w in zip(pairs, weights, strict=True):
        energy -= w * s[:, i] * s[:, j]
    return torch.softmax(-energy / temperature, 0)


def visited(run, s, n_units, sweeps, apart=2):
    """How often each state is met by the chains, `apart` sweeps apart."""
    powers = 2.0 ** torch.arange(n_units)
    counts = torch.zeros(2**n_units, dtype=torch.float64)
    s = run(s, n_sweeps=30, first_step=0)
    for i in range(sweeps):
        s = run(s, n_sweeps=apart, first_step=30 + apart * i)
        counts += torch.bincount(((s.flatten(1) > 0).float() @ powers).long(), minlength=2**n_units)
    return counts


def total_variation(counts, p):
    return 0.5 * float((counts / counts.sum() - p).abs().sum())


def chi_square_limit(degrees):
    """The quantile of 1 - FALSE_ALARM (Wilson & Hilferty; z = 4.7534)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize(
    ("height", "width", "periodic", "temperature"),
    [(2, 4, (True, True), 4.0), (3, 2, (False, False), 2.0), (2, 3, (True, False), 2.5), (3, 2, (False, True), 2.5)],
)
def test_lattices_are_distributed_as_enumerated(native, height, width, periodic, temperature):
    n = height * width
    J, h = (0.8, 1.1), 0.1 if n == 6 else 0.0
    pairs = bonds(height, width, periodic)
    weights = [J[0] if abs(i - j) % width == 0 and i != j else J[1] for i, j in pairs]
    p = exact(n, pairs, weights, torch.full((n,), h), temperature)
    run = lambda s, **o: ops.lattice_gibbs(  # noqa: E731
        s, J, h, temperature=temperature, periodic=periodic, seed=11, **o
    )
    counts = visited(run, states(100_000, height, width), n, 80)
    if h == 0:  # up and down are alike: twice the counts for half the states
        counts = counts + counts.flip(0)
    assert total_variation(counts, p) < 0.002


@pytest.mark.parametrize(("height", "width"), [(3, 3), (3, 4)])
def test_odd_rings_are_distributed_as_enumerated(native, height, width):
    """A periodic lattice of odd height has no two colours; as a graph it has three or more."""
    n, temperature = height * width, 1 / 0.44068679 if height == width else 3.0
    pairs = bonds(height, width)
    row_ptr, columns, weights, colours = graph(pairs, n, [1.0] * len(pairs))
    assert int(colours.max()) >= 2
    arguments = (row_ptr, columns, weights, weights.new_zeros(n), colours)
    run = lambda s, **o: ops.ising_gibbs(s, *arguments, temperature=temperature, seed=3, **o)  # noqa: E731
    p = exact(n, pairs, [1.0] * len(pairs), torch.zeros(n), temperature)
    counts = visited(run, states(200_000, n), n, 25 if n == 9 else 20)
    # up and down are alike: twice the counts for half the states
    assert total_variation(counts + counts.flip(0), p) < (0.002 if n == 9 else 0.006)


@pytest.mark.parametrize("values", ["pm1", "01"])
def test_graphs_are_distributed_as_enumerated(native, values):
    """Random couplings and biases, with a unit that has no edges and temperatures of their own for the chains."""
    n, spin = 6, values == "pm1"
    pairs = [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4)]
    J = (torch.randn(5, generator=torch.Generator().manual_seed(1)) * 0.7).tolist()
    row_ptr, columns, weights, colours = graph(pairs, n, J)
    bias = torch.randn(n, generator=torch.Generator().manual_seed(3)).double() * 0.5
    s = states(160_000, n, spin=spin)
    temperature = torch.where(torch.arange(len(s)) % 2 == 0, 1.0, 2.5)
    arguments = (row_ptr, columns, weights, bias, colours)
    counts, powers = torch.zeros(2, 2**n, dtype=torch.float64), 2.0 ** torch.arange(n)
    for i in range(60):
        s = ops.ising_gibbs(
            s, *arguments, temperature=temperature, values=values, seed=3, n_sweeps=2 if i else 40,
            first_step=38 + 2 * i if i else 0,
        )  # fmt: skip
        visits = ((s > 0).float() @ powers).long()
        for k in range(2):
            counts[k] += torch.bincount(visits[k::2], minlength=2**n)
    for k, t in enumerate((1.0, 2.5)):
        assert total_variation(counts[k], exact(n, pairs, J, bias, t, spin)) < 0.002


def test_clamped_sites_give_the_conditional_distribution(kernels):
    n = 8
    pairs = bonds(2, 4)
    p = exact(n, pairs, [1.0] * len(pairs), torch.zeros(n), 3.0)
    start = states(1, 2, 4, seed=5)
    clamp = torch.tensor([[True, False, False, True], [False, False, True, False]])
    possible = (all_states(n, True)[:, clamp.flatten()] == start[0][clamp]).all(1)
    q = torch.where(possible, p, 0) / p[possible].sum()
    count = 2_000 if kernels.name == "simt" else 40_000
    s = ops.lattice_gibbs(
        start.expand(count, 2, 4).to(kernels.device), 1.0, temperature=3.0, n_sweeps=40, seed=2,
        clamp=clamp.to(kernels.device),
    )  # fmt: skip
    counts = torch.bincount(((s.cpu().flatten(1) > 0).float() @ 2.0 ** torch.arange(n)).long(), minlength=2**n).double()
    assert counts[~possible].sum() == 0
    statistic = ((counts - count * q)[possible] ** 2 / (count * q)[possible]).sum()
    assert statistic < chi_square_limit(int(possible.sum()) - 1)


def test_rare_flips_have_their_probability(native):
    """At T = 0.8 a site against four neighbours is drawn with probability 4.5e-5; a word's other sites are settled."""
    n, sites = 2_000, 64 * 64
    s = ops.lattice_gibbs(torch.ones(n, 64, 64, dtype=torch.int8), 1.0, temperature=0.8, seed=1)
    p = 1 / (1 + math.exp(8 / 0.8))
    black = s[:, ::2, ::2].eq(-1).sum() + s[:, 1::2, 1::2].eq(-1).sum()  # drawn first, beside ones alone
    mean = n * sites / 2 * p
    assert abs(int(black) - mean) < 4.9 * math.sqrt(mean)


# --- what cannot be drawn ---------------------------------------------------------------------------------------------

J3 = (torch.tensor([0, 1, 3, 4]), torch.tensor([1, 0, 2, 1]), torch.tensor([1.0, 1.0, 2.0, 2.0]))
GRAPH = (
    "row_ptr, columns: expected a graph in CSR: row_ptr ascends from 0 to the number of edges, and the columns of "
    "every row are unit numbers in ascending order, each once"
)
COLOURS = "colours: expected a colouring: an edge joins two units of one colour, or a unit with itself"
ASYMMETRIC = (
    "columns, weights: expected a symmetric graph: for every edge from i to j one from j to i of the same weight"
)
STATES = "s: expected states of the set that `values` names, got other values"
FINITE = "weights, bias: expected finite values, whose sums float32 can hold; got others"
POSITIVE = "temperature: expected positive, finite numbers, got others"

BAD_GRAPHS = {
    "a pointer past the end": ({"row_ptr": torch.tensor([0, 1, 3, 5])}, GRAPH),
    "pointers that fall": ({"row_ptr": torch.tensor([0, 3, 1, 4])}, GRAPH),
    "a column that is no unit": ({"columns": torch.tensor([1, 0, 3, 1])}, GRAPH),
    "a negative column": ({"columns": torch.tensor([-1, 0, 2, 1])}, GRAPH),
    "columns that fall": ({"columns": torch.tensor([1, 2, 0, 1])}, GRAPH),
    "an edge twice": ({"columns": torch.tensor([1, 0, 0, 1])}, GRAPH),
    "an edge inside a colour": ({"colours": torch.tensor([0, 1, 1])}, COLOURS),
    "a unit with itself": ({"columns": torch.tensor([0, 0, 2, 1])}, COLOURS),
    "asymmetric weights": ({"weights": torch.tensor([1.0, 1.0, 2.0, 2.5])}, ASYMMETRIC),
    "an edge in one direction": (
        {"row_ptr": torch.tensor([0, 1, 2, 2]), "columns": torch.tensor([1, 2]), "weights": torch.ones(2)}, ASYMMETRIC
    ),
    "a weight that is not finite": ({"weights": torch.tensor([1.0, 1.0, math.nan, math.nan])}, FINITE),
    "a bias that is not finite": ({"bias": torch.tensor([0.0, math.inf, 0.0])}, FINITE),
    "weights whose sum is not finite": ({"weights": torch.full((4,), 3e38)}, FINITE),
    "states of the other set": ({"s": torch.zeros(2, 3)}, STATES),
    "NaN": ({"s": torch.full((2, 3), math.nan)}, STATES),
    "a temperature of 0": ({"temperature": torch.tensor([1.0, 0.0])}, POSITIVE),
    "a negative temperature": ({"temperature": torch.tensor([1.0, -1.0])}, POSITIVE),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_graphs_that_are_refused(backend, bad, dtype):
    change, text = BAD_GRAPHS[bad]
    arguments = {"s": torch.ones(2, 3), "row_ptr": J3[0], "columns": J3[1], "weights": J3[2], "bias": torch.zeros(3)}
    arguments |= {"colours": torch.tensor([0, 1, 0]), "seed": 1} | change
    if dtype == torch.int64 and bool(arguments["s"].isnan().any()):
        return
    arguments["s"] = arguments["s"].to(dtype)
    arguments = {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    if backend.device.type != "cpu" and dtype == torch.float32:
        assert ops.ising_gibbs(**arguments).isnan().any()
        return
    with pytest.raises(ValueError, match=re.escape(text)):
        ops.ising_gibbs(**arguments)


def test_symmetry_is_looked_for_unless_told_not_to(backend):
    weights = torch.tensor([1.0, 1.0, 2.0, 2.5], device=backend.device)
    arguments = [t.to(backend.device) for t in (torch.ones(2, 3), *J3[:2])]
    ops.ising_gibbs(*arguments, weights, weights.new_zeros(3), (arguments[1][:3] % 2).sort()[0].new_tensor([0, 1, 0]),
                    validate=False)  # fmt: skip


@pytest.mark.parametrize("value", [0.0, 0.5, 2.0, math.nan, math.inf])
def test_lattice_states_that_are_refused(backend, value):
    s = states(3, 4, 70, device=backend.device)
    s[1, 2, 33] = value
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match=re.escape(STATES)):
            ops.lattice_gibbs(s, 1.0)
    else:
        assert ops.lattice_gibbs(s, 1.0).isnan().flatten(1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_lattice_temperatures_that_are_refused(backend, value):
    s = states(3, 4, 8, device=backend.device)
    temperature = torch.tensor([1.0, value, 2.0], device=backend.device)
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match=re.escape(POSITIVE)):
            ops.lattice_gibbs(s, 1.0, temperature=temperature)
    else:
        assert ops.lattice_gibbs(s, 1.0, temperature=temperature).isnan().flatten(1).any(1).tolist() == [0, 1, 0]


def test_negative_zero_is_zero(backend):
    s = states(5, 4, 8, spin=False, device=backend.device)
    want = ops.lattice_gibbs(s, 1.0, values="01", seed=1)
    assert torch.equal(ops.lattice_gibbs(torch.where(s == 0, -0.0, s), 1.0, values="01", seed=1), want)


LATTICE = {"s": torch.ones(2, 4, 6), "coupling": 1.0}
RING = {"s": torch.ones(2, 3), "row_ptr": J3[0], "columns": J3[1], "weights": J3[2], "bias": torch.zeros(3)}
RING |= {"colours": torch.tensor([0, 1, 0])}
BAD = {
    "an odd ring": (
        ops.lattice_gibbs, {**LATTICE, "s": torch.ones(2, 3, 6)}, ValueError,
        "s: got a periodic height of 3, want an even one: an odd ring has no two colours (ising_gibbs takes any graph)",
    ),
    "one dimension": (
        ops.lattice_gibbs, {**LATTICE, "s": torch.ones(6)}, ValueError, "s: got shape [6], want [..., height, width]"
    ),
    "no sites": (
        ops.lattice_gibbs, {**LATTICE, "s": torch.ones(2, 0, 6)}, ValueError,
        "s: got shape [2, 0, 6], want a lattice of at least one site",
    ),
    "couplings of bonds": (
        ops.lattice_gibbs, {**LATTICE, "coupling": torch.ones(4, 6)}, TypeError,
        "coupling: got Tensor, want a number (ising_gibbs takes couplings that differ)",
    ),
    "three couplings": (
        ops.lattice_gibbs, {**LATTICE, "coupling": (1.0, 1.0, 1.0)}, ValueError,
        "coupling: got 3 values, want one, or one along each axis",
    ),
    "an infinite field": (
        ops.lattice_gibbs, {**LATTICE, "field": math.inf}, ValueError, "field: got inf, want a finite number"
    ),
    "a set of states that is none": (
        ops.lattice_gibbs, {**LATTICE, "values": "spin"}, ValueError, "values: got 'spin', want 'pm1' or '01'"
    ),
    "spins in bytes": (
        ops.lattice_gibbs, {**LATTICE, "s": torch.ones(2, 4, 6, dtype=torch.uint8)}, TypeError,
        "s: got torch.uint8, which cannot be -1; want another dtype, or values='01'",
    ),
    "no sweeps": (
        ops.lattice_gibbs, {**LATTICE, "n_sweeps": 0}, ValueError, "n_sweeps: got 0, want an integer of at least 1"
    ),
    "a temperature of 0": (
        ops.lattice_gibbs, {**LATTICE, "temperature": 0.0}, ValueError, "temperature: got 0.0, want a positive number"
    ),
    "a schedule of another length": (
        ops.lattice_gibbs, {**LATTICE, "temperature": torch.ones(3, 1), "n_sweeps": 4}, ValueError,
        "temperature: got shape [3, 1], want a number, one per chain [2], or a schedule [n_sweeps = 4, 1 or the "
        "chains]",
    ),
    "a clamp of another shape": (
        ops.lattice_gibbs, {**LATTICE, "clamp": torch.ones(6, 4, dtype=torch.bool)}, ValueError,
        "clamp: got shape [6, 4], want [height, width] = [4, 6] or that of s, [2, 4, 6]",
    ),
    "pointers of another length": (
        ops.ising_gibbs, {**RING, "row_ptr": torch.tensor([0, 4])}, ValueError,
        "row_ptr: got shape [2], want [n_units + 1] with n_units = 3 of s",
    ),
    "columns that are no integers": (
        ops.ising_gibbs, {**RING, "columns": J3[1].float()}, TypeError,
        "columns: got torch.float32, want int64 or int32",
    ),
    "colours of other units": (
        ops.ising_gibbs, {**RING, "colours": torch.zeros(4, dtype=torch.int64)}, ValueError,
        "colours: got shape [4], want [n_units] = [3] of s",
    ),
    "fewer weights": (
        ops.ising_gibbs, {**RING, "weights": torch.ones(3)}, ValueError,
        "weights: got shape [3], want [n_edges] like columns, [4]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused_in_a_sentence(native, bad):
    function, arguments, error, text = BAD[bad]
    with pytest.raises(error) as caught:
        function(**arguments)
    assert str(caught.value) == text
