import itertools
import math

import pytest
import torch

from genfast._finite import NonFiniteError
from genfast.boltzmann import (
    BoltzmannMachine,
    IsingLattice,
    SparseBoltzmannMachine,
    ais_log_z,
    geometric_schedule,
    greedy_colouring,
)
from genfast.boltzmann._graph import Graph, lattice_edges

CRITICAL = 2 / math.log(1 + math.sqrt(2))
# periodic, J = 1: log Z at beta = 0.3, at the critical one and at 0.6, and E/N at the critical one (brute force for 3
# and 4, Kaufman's formula by other code)
EXACT = {
    3: (7.3469159029, 9.0202134009, 11.5876950134, -1.61124638),
    4: (12.7855233257, 15.5219154588, 20.0565328843, -1.56562379),
    8: (50.60933050, 60.14178079, None, -1.491589),
    16: (202.38323, 238.64226, None, -1.453065),
    32: (809.53249, 952.64808, None, -1.433658),
}


def spins(n):
    return 2.0 * ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).double() - 1


# --- lattices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", EXACT)
def test_exact_numbers(size):
    lattice = IsingLattice((size, size))
    cold, critical, hot, energy = EXACT[size]
    for beta, want in ((0.3, cold), (1 / CRITICAL, critical), (0.6, hot)):
        if want is not None:
            assert float(lattice.log_partition(temperature=1 / beta)) == pytest.approx(want, abs=1e-5, rel=1e-9)
    assert lattice.mean_energy(temperature=CRITICAL) / size**2 == pytest.approx(energy, abs=1e-6)


LATTICES = [
    ((3, 3), {}), ((2, 4), {}), ((2, 2), {"coupling": -0.5}), ((3, 4), {"field": 0.2}), ((3, 4), {"periodic": False}),
    ((2, 5), {"periodic": (False, True), "field": -0.3}), ((5, 2), {"periodic": (True, False), "field": 0.1}),
    ((3, 3), {"coupling": -1.0}), ((1, 5), {}), ((1, 1), {"field": 0.4}), ((4, 3), {"coupling": (-1.0, 0.6)}),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "options"), LATTICES, ids=str)
def test_log_partition_is_the_sum_over_all_states(shape, options):
    lattice = IsingLattice(shape, **{"coupling": (1.0, 0.7), "temperature": 1.5, **options})
    energies = lattice.energy(spins(lattice.n_units).reshape(-1, *shape))
    want = torch.logsumexp(-energies / lattice.temperature, 0)
    assert float(lattice.log_partition()) == pytest.approx(float(want), abs=1e-10)
    p = torch.softmax(-energies / lattice.temperature, 0)
    assert lattice.mean_energy() == pytest.approx(float(p @ energies), abs=1e-6)
    s = spins(lattice.n_units).reshape(-1, *shape)[:5]
    assert torch.allclose(lattice.log_prob(s), torch.log(p[:5]))


@pytest.mark.parametrize(("shape", "options"), LATTICES, ids=str)
def test_chains_have_the_exact_mean_energy(shape, options):
    """Odd rings too, which run as graphs."""
    lattice = IsingLattice(shape, **{"coupling": (1.0, 0.7), "temperature": 4.0, **options})
    generator = torch.Generator().manual_seed(4)
    energies = lattice.energy(lattice.sample(40_000, 60, generator=generator)).double()
    error = float(energies.std()) / math.sqrt(len(energies))
    assert abs(float(energies.mean()) - lattice.mean_energy()) <= 4.9 * error + 1e-9


def test_long_rows_by_the_transfer_matrix():
    """An open strip of 16 sites beside a periodic axis; without coupling along it, rings by themselves."""
    strip = IsingLattice((16, 40), (0.0, 1.0), temperature=2.0, periodic=(True, False))
    chain = math.log(2) + 39 * math.log(2 * math.cosh(0.5))
    assert float(strip.log_partition()) == pytest.approx(16 * chain, rel=1e-12)
    with pytest.raises(ValueError, match=r"got a lattice of 12 x 14, want one side of at most 10 sites, or of 16"):
        IsingLattice((12, 14), field=0.1).log_partition()


def test_magnetisation_below_the_critical_temperature():
    lattice = IsingLattice((256, 256), temperature=2.0)
    s = lattice.sample(16, 300, start="up", generator=torch.Generator().manual_seed(0))
    m = lattice.magnetisation(s).double()
    assert abs(float(m.mean()) - 0.911319) < 4.9 * float(m.std()) / 4


def test_annealed_importance_sampling_of_a_lattice():
    for shape in ((4, 4), (3, 3)):
        lattice = IsingLattice(shape, temperature=CRITICAL)
        found = ais_log_z(lattice, betas=200, n_runs=2000, seed=1)
        assert abs(found.log_z - float(lattice.log_partition())) < 4.9 * found.stderr
        assert found.stderr < 0.03


def test_chains_of_a_lattice_split_and_resume():
    for shape in ((4, 6), (3, 5)):
        lattice = IsingLattice(shape, temperature=2.0)
        s = lattice.sample(9, 1, generator=torch.Generator().manual_seed(0))
        want = lattice.gibbs(s, 5, seed=3)
        assert torch.equal(lattice.gibbs(lattice.gibbs(s, 2, seed=3), 3, seed=3, first_step=2), want)
        parts = [lattice.gibbs(s[k : k + 4], 5, seed=3, first_chain=k) for k in (0, 4, 8)]
        assert torch.equal(torch.cat(parts), want)
        held = torch.zeros(shape, dtype=torch.bool)
        held[1] = True
        assert torch.equal(lattice.gibbs(s, 5, clamp=held)[:, held], s[:, held])


def test_lattices_that_are_refused():
    lattice = IsingLattice((4, 6))
    for call, error, text in [
        (lambda: IsingLattice((4,)), ValueError, r"shape: got \(4,\), want \(height, width\)"),
        (lambda: IsingLattice((4, 0)), ValueError, "width: got 0, want an integer >= 1"),
        (lambda: IsingLattice((4, 4), temperature=0.0), ValueError, "temperature: got 0.0, want a finite number > 0"),
        (lambda: IsingLattice((4, 4), math.inf), ValueError, "coupling: got inf, want a finite number"),
        (lambda: IsingLattice((4, 4), periodic=1), TypeError, "periodic: got 1, want a bool, or one for each axis"),
        (lambda: lattice.energy(torch.ones(6, 4)), ValueError, r"s: got shape \[6, 4\], want \[..., 6\]"),
        (lambda: lattice.energy(torch.full((4, 6), 2.0)), ValueError, "s: got .*, want -1 or 1"),
        (lambda: lattice.log_prob(torch.zeros(4, 6)), ValueError, "v: got .*, want -1 or 1"),
        (lambda: lattice.sample(3, start="down"), ValueError, "start: got 'down', want states, 'random' or 'up'"),
        (lambda: lattice.sample(3, start=torch.ones(2, 4, 6)), ValueError, r"start: got shape \[2, 4, 6\]"),
        (lambda: lattice.sample(3, clamp=torch.ones(4, 6).bool()), ValueError, "clamp: got a mask without start"),
    ]:
        with pytest.raises(error, match=text):
            call()


# --- machines on graphs -----------------------------------------------------------------------------------------------

EDGES = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (5, 4), (0, 5)]


def machine(values="pm1", temperature=1.3, n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = SparseBoltzmannMachine(
        n, EDGES, values=values, temperature=temperature, init_std=1.0, generator=generator, dtype=torch.float64
    )
    with torch.no_grad():
        made.bias.normal_(0, 0.5, generator=generator)
    return made


def dense(sparse):
    with torch.no_grad():
        return BoltzmannMachine.from_couplings(
            sparse.J, sparse.bias, values=sparse.values, temperature=sparse.temperature
        )


@pytest.mark.parametrize("values", ["01", "pm1"])
def test_it_is_the_dense_machine_with_zeros(values):
    sparse = machine(values)
    other = dense(sparse)
    v = torch.tensor(list(itertools.product((0.0, 1.0), repeat=7)), dtype=torch.float64)
    v = 2 * v - 1 if values == "pm1" else v
    for name in ("energy", "conditional", "log_prob", "pseudo_likelihood", "free_energy"):
        assert torch.allclose(getattr(sparse, name)(v), getattr(other, name)(v)), name
    assert torch.allclose(sparse.log_partition(), other.log_partition())
    assert torch.allclose(torch.logsumexp(sparse.log_prob(v), 0), torch.zeros((), dtype=torch.float64), atol=1e-12)
    # gradients: of pairs that are edges alone
    data = v[torch.randint(128, (20,), generator=torch.Generator().manual_seed(1))]
    i, j = sparse.edges.T
    for loss in (lambda m: -m.log_prob(data).mean(), lambda m: m.pseudo_likelihood_loss(data)):
        sparse.zero_grad()
        other.zero_grad()
        loss(sparse).backward()
        loss(other).backward()
        assert torch.allclose(sparse.weights.grad, other.couplings.grad[i, j])
        assert torch.allclose(sparse.bias.grad, other.bias.grad)


@pytest.mark.parametrize("values", ["01", "pm1"])
def test_contrastive_gradients_are_differences_of_moments(values):
    sparse = machine(values)
    g = torch.Generator().manual_seed(1)
    data, model = sparse.initial_states(50, generator=g), sparse.initial_states(30, generator=g)
    sparse.contrastive_loss(data, model).backward()
    i, j = sparse.edges.T
    moments = [(x[:, i] * x[:, j]).mean(0) for x in (data, model)]
    assert torch.allclose(sparse.weights.grad, (moments[1] - moments[0]) / 1.3)
    assert torch.allclose(sparse.bias.grad, (model.mean(0) - data.mean(0)) / 1.3)


@pytest.mark.parametrize("values", ["01", "pm1"])
def test_samples_have_the_exact_moments(values):
    sparse = machine(values)
    log_z = sparse.log_partition()
    of_weights, of_bias = torch.autograd.grad(log_z, (sparse.weights, sparse.bias))
    v = sparse.sample(40_000, 60, generator=torch.Generator().manual_seed(2))
    i, j = sparse.edges.T
    for x, want in ((v[:, i] * v[:, j], of_weights * 1.3), (v, of_bias * 1.3)):
        error = x.std(0) / 200
        assert ((x.mean(0) - want).abs() < 5.5 * error).all()  # 14 numbers, 1e-6 together


def test_training_fits_a_distribution():
    target, fitted = machine(seed=3), SparseBoltzmannMachine(7, EDGES, values="pm1", dtype=torch.float64)
    g = torch.Generator().manual_seed(5)
    data = target.sample(20_000, 100, generator=g)
    fitted.init_from_data(data)
    optimizer = torch.optim.Adam(fitted.parameters(), lr=0.02)
    fitted.reset_chains(1000, generator=g)
    for _ in range(300):
        optimizer.zero_grad()
        fitted.pcd_loss(data, generator=g).backward()
        optimizer.step()
    with torch.no_grad():
        gap = target.log_prob(data).mean() - fitted.log_prob(data).mean()
    assert abs(float(gap)) < 0.01


def test_annealing_finds_the_ground_state_and_log_z():
    sparse = machine(temperature=0.7)
    g = torch.Generator().manual_seed(1)
    states, energies = sparse.anneal(200, geometric_schedule(5.0, 0.05, 60), generator=g)
    lowest = sparse.energy(spins(7)).min()
    assert torch.allclose(energies.min(), lowest)
    assert torch.allclose(sparse.energy(states), energies)
    for base in (None, sparse.sample(500, 50, generator=g)):
        found = ais_log_z(sparse, betas=200, n_runs=2000, base=base, seed=1)
        assert abs(found.log_z - float(sparse.log_partition().detach())) < 4.9 * found.stderr


def test_chains_are_saved_and_resumed():
    first = machine()
    v = first.initial_states(20, generator=torch.Generator().manual_seed(1))
    first.pcd_loss(v, generator=torch.Generator().manual_seed(2))
    second = machine(seed=9)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.chains, first.chains)
    for m in (first, second):
        m.pcd_loss(v, generator=torch.Generator().manual_seed(3))
    assert torch.equal(second.chains, first.chains)
    with pytest.raises(RuntimeError, match=r"values='pm1'.*values='01'"):
        machine("01").load_state_dict(first.state_dict())


def test_the_state_dict_brings_its_graph():
    other = SparseBoltzmannMachine(7, [(0, j) for j in range(1, 7)] + [(1, 2)], values="pm1", temperature=1.3).double()
    first = machine()
    v = spins(7)[:40]
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.gibbs(v, 3, seed=1), first.gibbs(v, 3, seed=1))
    assert torch.equal(other.energy(v), first.energy(v))


@pytest.mark.parametrize(("shape", "periodic", "colours"), [((4, 6), True, 2), ((5, 7), False, 2), ((5, 5), True, 3)])
def test_colourings(shape, periodic, colours):
    pairs, _ = lattice_edges(*shape, (periodic, periodic))
    graph = Graph.of(pairs, shape[0] * shape[1]).tensors()
    found = greedy_colouring(graph["row_ptr"], graph["columns"])
    assert torch.equal(found, graph["colours"])
    rows = torch.repeat_interleave(graph["row_ptr"].diff())
    assert (found[rows] != found[graph["columns"]]).all()
    assert 2 <= int(found.max()) + 1 <= (2 if colours == 2 else 5)
    assert torch.equal(torch.stack([rows, graph["columns"]], 1).sort(1)[0], graph["edges"][graph["edge_of"]])


def test_machines_that_are_refused():
    build = SparseBoltzmannMachine
    sparse = machine()
    for call, error, text in [
        (lambda: build(0, []), ValueError, "n_units: got 0, want an integer >= 1"),
        (lambda: build(3, [(0, 3)]), ValueError, "edges: got units from 0 to 3, want 0 to 2"),
        (lambda: build(3, [(1, 1)]), ValueError, "edges: unit 1 is joined with itself"),
        (lambda: build(3, [(0, 1), (1, 0)]), ValueError, "edges: units 0 and 1 are joined twice"),
        (
            lambda: build(3, torch.ones(2, 2)),
            TypeError,
            "edges: got float32, want integers, the numbers of units",
        ),
        (lambda: build(3, [(0, 1, 2)]), ValueError, r"edges: got shape \[1, 3\], want pairs \[n_edges, 2\]"),
        (lambda: build(3, [], values="spin"), ValueError, "values: got 'spin', want '01' or 'pm1'"),
        (lambda: build(3, [], temperature=-1.0), ValueError, "temperature: got -1.0, want a finite number > 0"),
        (lambda: sparse.energy(torch.ones(2, 6)), ValueError, r"s: got shape \[2, 6\], want \[..., 7\]"),
        (lambda: sparse.gibbs(torch.zeros(2, 7)), ValueError, "s: got .*, want -1 or 1"),
        (lambda: sparse.sample(3, start=torch.ones(2, 7)), ValueError, r"start: got shape \[2, 7\], want"),
        (lambda: sparse.sample(3, clamp=torch.ones(7).bool()), ValueError, "clamp: got a mask without start"),
        (lambda: build(26, []).log_partition(), ValueError, "has 26 units, want at most 25 .*ais_log_z"),
        (lambda: sparse.pcd_loss(torch.ones(2, 7), k=0), ValueError, "k: got 0, want an integer >= 1"),
    ]:
        with pytest.raises(error, match=text):
            call()
    with torch.no_grad():
        sparse.weights[2] = math.nan
    with pytest.raises(NonFiniteError, match="parameter weights has 1 non-finite values of 7"):
        sparse.gibbs(torch.ones(2, 7))
    with pytest.raises(NonFiniteError, match="step 1: "):
        sparse.contrastive_loss(torch.ones(2, 7), torch.ones(2, 7))


def test_a_machine_without_edges():
    loose = SparseBoltzmannMachine(4, [], dtype=torch.float64)
    v = loose.sample(1000, 2, generator=torch.Generator().manual_seed(0))
    assert abs(float(v.mean()) - 0.5) < 0.04
    assert float(loose.log_partition().detach()) == pytest.approx(4 * math.log(2))
    loose.pcd_loss(v).backward()
    assert loose.weights.grad.shape == (0,)
