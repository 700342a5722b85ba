"""The deep Boltzmann machine against exact enumeration and against its own definition."""

import copy
import itertools
import math

import pytest
import torch

import genfast
from genfast._finite import NonFiniteError
from genfast.boltzmann import RBM, DeepBoltzmannMachine, ais_bracket, ais_log_z
from genfast.boltzmann._dbm_pretrain import Pretraining
from genfast.boltzmann._enumerate import all_states


def machine(*sizes: int, std: float = 0.8, seed: int = 0, dtype: torch.dtype = torch.float64) -> DeepBoltzmannMachine:
    generator = torch.Generator().manual_seed(seed)
    dbm = DeepBoltzmannMachine(sizes[0], sizes[1:], init_std=std, generator=generator, dtype=dtype)
    with torch.no_grad():
        for b in dbm.biases:
            b.normal_(0, 0.5, generator=generator)
    return dbm


def states(n: int) -> torch.Tensor:
    return all_states(n, 0, 1 << n, device=torch.device("cpu"))


def binary(rows: int, n: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, (rows, n), generator=torch.Generator().manual_seed(seed)).double()


SIZES = [(4, 3), (4, 3, 2), (3, 2, 4), (3, 2, 2, 3), (2, 3, 2, 1, 2)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_exact_sums_are_those_over_all_states(sizes):
    dbm = machine(*sizes)
    joint = states(sum(sizes))
    energy = dbm.energy(dbm.layers(joint)).detach()
    log_z = torch.logsumexp(-energy, 0)
    torch.testing.assert_close(dbm.log_partition().detach(), log_z)
    v = states(sizes[0])
    index = (joint[:, : sizes[0]] @ 2.0 ** torch.arange(sizes[0], dtype=torch.float64)).long()
    want = torch.stack([torch.logsumexp(-energy[index == i], 0) for i in range(len(v))])
    torch.testing.assert_close(-dbm.free_energy(v).detach(), want)
    torch.testing.assert_close(dbm.log_prob(v).detach(), want - log_z)


def test_either_side_of_hidden_layers_can_be_enumerated():
    """The wider of two hidden layers is summed out: h2 or h1, whichever it is."""
    for sizes in ((3, 2, 12), (3, 12, 2)):
        dbm = machine(*sizes)
        v = states(3)
        h1, h2 = (states(n) for n in sizes[1:])
        x = [v[:, None, None], h1[None, :, None], h2[None, None, :]]
        energy = dbm.energy([t.expand(8, len(h1), len(h2), -1) for t in x])
        torch.testing.assert_close(-dbm.free_energy(v), torch.logsumexp(-energy.flatten(1), 1))


def test_the_gradient_of_log_prob_is_exact():
    dbm = machine(3, 2, 3)
    v = binary(4, 3)
    parameters = tuple(p.detach().clone().requires_grad_() for p in dbm.parameters())
    names = [n for n, _ in dbm.named_parameters()]

    def log_prob(*values):
        return torch.func.functional_call(dbm, dict(zip(names, values, strict=True)), (v,))

    dbm.forward = dbm.log_prob
    assert torch.autograd.gradcheck(log_prob, parameters)


def test_a_large_machine_says_what_to_use_instead():
    with pytest.raises(ValueError, match=r"smaller layer has 26 units, want at most 25.*ais_log_z"):
        DeepBoltzmannMachine(20, [26, 10]).log_partition()
    with pytest.raises(ValueError, match=r"odd hidden layers have 26 units and the even ones 27.*bound\(\) needs none"):
        DeepBoltzmannMachine(5, [26, 27]).free_energy(torch.zeros(1, 5))


def test_one_hidden_layer_is_an_rbm():
    dbm = machine(5, 4)
    rbm = dbm.equivalent_rbm()
    assert torch.equal(rbm.W, dbm.weights[0])
    v = binary(6, 5)
    torch.testing.assert_close(dbm.free_energy(v), rbm.free_energy(v))
    torch.testing.assert_close(dbm.mean_field(v)[0], rbm.hidden_probs(v).detach())
    torch.testing.assert_close(dbm.bound(v, dbm.log_partition()), rbm.log_prob(v), msg="the bound is tight")


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equivalent_rbm_has_the_same_energies(sizes):
    dbm = machine(*sizes)
    rbm, joint = dbm.equivalent_rbm(), states(sum(sizes))
    layers = dbm.layers(joint)
    even, odd = torch.cat(layers[::2], 1), torch.cat(layers[1::2], 1)
    torch.testing.assert_close(rbm.energy(even, odd), dbm.energy(layers))
    assert isinstance(rbm, RBM)


# --- the mean field and its bound -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_bound_is_below_the_likelihood_and_rises(sizes):
    dbm, v = machine(*sizes, std=1.5), states(sizes[0])
    log_z, exact = dbm.log_partition(), dbm.log_prob(v)
    last = torch.full((len(v),), -math.inf, dtype=torch.float64)
    start = [torch.rand(len(v), n, dtype=torch.float64) for n in sizes[1:]]
    for iterations in (1, 2, 3, 5, 9, 40):
        means = dbm.mean_field(v, max_iterations=iterations, tolerance=0, start=start)
        bound = dbm.bound(v, log_z, means=means)
        assert (bound <= exact + 1e-9).all()
        assert (bound >= last - 1e-9).all(), "no iteration makes it fall"
        last = bound
    assert (dbm.bound(v, log_z) > last - 0.5).all()


def test_any_means_give_a_lower_bound():
    dbm, v = machine(4, 3, 2), states(4)
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        means = [torch.rand(16, n, generator=g, dtype=torch.float64) for n in (3, 2)]
        assert (dbm.bound(v, dbm.log_partition(), means=means) < dbm.log_prob(v)).all()


def test_gradient_of_the_variational_free_energy_is_that_of_the_minimum():
    """The means are held; where they are the fixed point this is the whole derivative (the envelope theorem)."""
    dbm, v = machine(4, 3, 2), binary(5, 4)
    dbm.variational_free_energy(v, dbm.mean_field(v, max_iterations=2000, tolerance=1e-14)).sum().backward()
    W = dbm.weights[0]
    step = 1e-5
    for at in ((0, 0), (2, 1)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                W[at] += sign * step
                means = dbm.mean_field(v, max_iterations=2000, tolerance=1e-14)
                values.append(dbm.variational_free_energy(v, means).sum().item())
                W[at] -= sign * step
        assert abs((values[0] - values[1]) / (2 * step) - W.grad[at].item()) < 1e-6


def test_pseudo_likelihood_of_an_rbm_is_exact():
    dbm = machine(5, 4)
    v = binary(6, 5)
    want = dbm.equivalent_rbm().pseudo_likelihood(v, exact=True).detach()
    torch.testing.assert_close(dbm.pseudo_likelihood(v, exact=True), want)
    deep, rows = machine(4, 3, 2, std=0.3), binary(3, 4)
    exact = deep.pseudo_likelihood(rows, exact=True)
    many = rows.repeat_interleave(2000, 0)
    estimate = deep.pseudo_likelihood(many, generator=torch.Generator().manual_seed(1)).view(3, -1)
    assert ((estimate.mean(1) - exact).abs() < 5.2 * estimate.std(1) / 2000**0.5).all()


# --- chains -----------------------------------------------------------------------------------------------------------


def counts_of(v: torch.Tensor) -> torch.Tensor:
    index = (v.double() @ 2.0 ** torch.arange(v.shape[1], dtype=torch.float64)).long()
    return torch.bincount(index, minlength=1 << v.shape[1]).double()


def test_sampling_converges_to_the_exact_distribution():
    dbm, n = machine(3, 2, 2), 40000
    samples = dbm.sample(n, n_steps=60, generator=torch.Generator().manual_seed(2))
    expected = n * dbm.log_prob(states(3)).exp().detach()
    chi2 = ((counts_of(samples) - expected) ** 2 / expected).sum()
    assert chi2 < 41.0, "chi-square with 7 degrees of freedom at a false-alarm rate of 1e-6"


def test_completion_follows_the_conditional_distribution():
    dbm, n = machine(3, 2, 2), 40000
    clamp = torch.tensor([True, False, False])
    start = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).expand(n, 3)
    out = dbm.sample(n, 60, start=start, clamp=clamp, generator=torch.Generator().manual_seed(2))
    p = dbm.log_prob(states(3)).exp().detach() * (states(3)[:, 0] == 1)
    counts = counts_of(out)
    assert counts[p == 0].sum() == 0
    expected = n * (p / p.sum())[p > 0]
    assert ((counts[p > 0] - expected) ** 2 / expected).sum() < 31.0, "3 degrees of freedom at 1e-6: 30.7"


def test_layer_probs_are_the_conditionals_of_the_chain():
    dbm, n = machine(3, 4, 2, 3), 20000
    x = [binary(1, k, seed=k).expand(n, -1) for k in dbm.sizes]
    for layer in range(4):
        clamp = [None if i == layer else True for i in range(4)]
        drawn = dbm.gibbs(x, 1, clamp=clamp, seed=layer)[layer]
        p = dbm.layer_probs([t[:1] for t in x], layer)[0].detach()
        assert (((drawn.mean(0) - p) / (p * (1 - p) / n).sqrt()).abs() < 5.5).all()


def test_reconstruct():
    dbm, v = machine(5, 4, 3), binary(4, 5)
    torch.testing.assert_close(
        dbm.reconstruct(v), torch.sigmoid(dbm.mean_field(v)[0] @ dbm.weights[0].T + dbm.biases[0]).detach()
    )


def test_sampling_and_loss_on_the_reference_backend_are_the_same():
    dbm = machine(6, 5, 3)
    other = copy.deepcopy(dbm)
    v = binary(7, 6)
    for m, backend in ((dbm, "native"), (other, "reference")):
        with genfast.backend(backend):
            m.reset_chains(5, generator=torch.Generator().manual_seed(1))
            m.pcd_backward(v, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(dbm.chains, other.chains)
    for p, q in zip(dbm.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=2e-3, rtol=0)


# --- training ---------------------------------------------------------------------------------------------------------


def test_pcd_gradient_is_the_difference_of_statistics():
    dbm = machine(7, 5, 4, 3)
    v = binary(11, 7)
    dbm.reset_chains(6, generator=torch.Generator().manual_seed(0))
    before = dbm.chains.clone()
    dbm.pcd_loss(v, 2, generator=torch.Generator().manual_seed(4)).backward()
    want = dbm.gibbs(dbm.layers(before), 2, generator=torch.Generator().manual_seed(4))
    assert torch.equal(dbm.chains, torch.cat(want, 1))
    data = [v, *dbm.mean_field(v, max_iterations=dbm.max_iterations, tolerance=dbm.tolerance)]
    for i, W in enumerate(dbm.weights):
        torch.testing.assert_close(W.grad, want[i].T @ want[i + 1] / 6 - data[i].T @ data[i + 1] / 11)
    for i, b in enumerate(dbm.biases):
        torch.testing.assert_close(b.grad, want[i].mean(0) - data[i].mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backward_without_a_graph_is_the_backward_of_the_loss(dtype):
    dbm = machine(70, 65, 61, dtype=dtype, std=0.1)
    v = (torch.rand(11, 70, generator=torch.Generator().manual_seed(0)) < 0.1).to(dtype)
    dbm.reset_chains(6, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(dbm)
    for seed in (4, 5):  # the second call writes over the gradients of the first
        dbm.zero_grad()
        loss = dbm.pcd_loss(v, 2, generator=torch.Generator().manual_seed(seed))
        loss.backward()
        means = other.pcd_backward(v, 2, generator=torch.Generator().manual_seed(seed))
        for name, parameter in dbm.named_parameters():
            torch.testing.assert_close(other.get_parameter(name).grad, parameter.grad, msg=name)
        assert torch.equal(dbm.chains, other.chains)
        torch.testing.assert_close(other.contrastive_loss(v, other.layers(other.chains), means=means), loss)


def test_contrastive_gradient_over_exact_samples_is_that_of_the_bound():
    """With the enumerated model as states, the gradient is that of mean bound, log Z included."""
    dbm, v = machine(3, 2, 2), binary(6, 3)
    means = dbm.mean_field(v, max_iterations=1000, tolerance=1e-13)
    (-dbm.bound(v, dbm.log_partition(), means=means).mean()).backward()
    want = [p.grad.clone() for p in dbm.parameters()]
    dbm.zero_grad()
    joint = states(7)
    p = torch.softmax(-dbm.energy(dbm.layers(joint)).detach(), 0)
    loss = dbm.variational_free_energy(v, means).mean() - (p * dbm.energy(dbm.layers(joint))).sum()
    loss.backward()
    for a, b in zip(dbm.parameters(), want, strict=True):
        torch.testing.assert_close(a.grad, b)


def test_chains_are_saved_and_resumed(tmp_path):
    dbm = machine(6, 4, 3)
    v = binary(8, 6)
    dbm.pcd_loss(v)
    assert dbm.n_chains == 8
    torch.save(dbm.state_dict(), tmp_path / "dbm.pt")
    copied = DeepBoltzmannMachine(6, [4, 3], dtype=torch.float64)
    copied.load_state_dict(torch.load(tmp_path / "dbm.pt", weights_only=True))
    assert torch.equal(copied.chains, dbm.chains)
    losses = [m.pcd_loss(v, generator=torch.Generator().manual_seed(9)).item() for m in (dbm, copied)]
    assert losses[0] == losses[1]
    assert torch.equal(copied.chains, dbm.chains)
    with pytest.raises(RuntimeError, match="size mismatch"):
        DeepBoltzmannMachine(6, [5, 3]).load_state_dict(dbm.state_dict())


def bars_and_stripes(n: int) -> torch.Tensor:
    """All images of which every column or every row is of one colour, with the two uniform ones twice."""
    lines = states(n)
    return torch.cat([lines[:, :, None].expand(-1, n, n), lines[:, None, :].expand(-1, n, n)]).flatten(1)


def test_pretraining_and_pcd_learn_bars_and_stripes():
    """3 x 3: the best possible log-likelihood of the 16 patterns is -41.589; within 5% of it, evaluated exactly."""
    patterns = bars_and_stripes(3).float()
    best = -41.589
    torch.manual_seed(0)
    dbm = DeepBoltzmannMachine(9, [16, 8], init_std=0.1)
    dbm.init_vbias(patterns)
    dbm.pretrain(patterns.repeat(4, 1), epochs=60, batch_size=64, lr=0.1)
    started = float(dbm.log_prob(patterns).detach().sum())
    dbm.reset_chains(800)
    dbm.tolerance, steps, lr = 1e-2, 2500, 0.3
    optimizer = torch.optim.SGD(dbm.parameters(), lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps)) + 1e-4
        dbm.pcd_backward(patterns, 3)
        optimizer.step()
    found = float(dbm.log_prob(patterns).detach().sum())
    assert found > 1.05 * best, f"{found:.2f}, after pretraining {started:.2f}"
    bound = float(dbm.bound(patterns, dbm.log_partition()).detach().sum())
    assert bound < found


@pytest.mark.parametrize("sizes", [(6, 5), (6, 5, 4), (6, 5, 4, 3), (6, 5, 4, 3, 2)], ids=str)
def test_pretraining_follows_the_likelihood_of_the_doubled_rbms(sizes):
    """With the chains of many steps, the update of a pair is that of exact maximum likelihood of its RBM of copies."""
    dbm = machine(*sizes, std=0.3)
    work = Pretraining(dbm)
    v = binary(8, sizes[0]).repeat(4000, 1)
    for pair in range(len(sizes) - 1):
        W, b, a = (t.detach().clone() for t in (dbm.weights[pair], dbm.biases[pair + 1], work.below[pair]))
        up, down = (2 if pair + 1 < work.pairs else 1), (2 if pair else 1)
        data = torch.bernoulli(work.up(v, pair), generator=torch.Generator().manual_seed(pair))
        # the RBM of copies, exactly: its free energy over data, and log Z by enumeration of the upper layer
        leaves = [t.requires_grad_() for t in (W, a, b)]
        scale, copies = (2.0, (1, 1)) if up == down == 2 else (1.0, (up, down))
        big = RBM(copies[0] * W.shape[0], copies[1] * W.shape[1], dtype=torch.float64)
        given = {"W": (scale * W).repeat(*copies), "vbias": a.repeat(copies[0]), "hbias": b.repeat(copies[1])}
        big.forward = big.log_prob
        log_prob = torch.func.functional_call(big, given, (data.repeat(1, copies[0]),))
        want = torch.autograd.grad(-log_prob.mean(), leaves)
        before = [t.detach().clone() for t in (dbm.weights[pair], work.below[pair], dbm.biases[pair + 1])]
        work.step(v, pair, lr=1.0, k=20, generator=torch.Generator().manual_seed(pair))
        after = (dbm.weights[pair], work.below[pair], dbm.biases[pair + 1])
        for p, q, g in zip(before, after, want, strict=True):
            torch.testing.assert_close(p - q.detach(), g, atol=0.03, rtol=0)
        assert max(g.abs().max() for g in want) > 0.09, "there is something to see"


def test_pretraining_can_be_resumed():
    v = binary(40, 6)
    machines = []
    for parts in (False, True):
        dbm = machine(6, 5, 4)
        work = Pretraining(dbm, momentum=0.5)
        for i, pair in enumerate((0, 0, 1, 1)):
            if parts and i in (1, 3):
                saved = {k: t.clone() for k, t in work.state().items()}
                dbm = copy.deepcopy(dbm)
                work = Pretraining(dbm, momentum=0.5)
                work.load_state(saved)
            work.step(v, pair, lr=0.1, generator=torch.Generator().manual_seed(i))
        work.finish()
        machines.append(dbm)
    for p, q in zip(*(m.parameters() for m in machines), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(ValueError, match=r"state: got no tensor below\.1"):
        Pretraining(machine(6, 5, 4)).load_state({})


def test_hidden_biases_of_pretraining_are_the_mean_of_both():
    dbm = machine(6, 5, 4)
    work = Pretraining(dbm)
    work.below[1].fill_(3.0)
    before = dbm.biases[1].detach().clone()
    top = dbm.biases[2].detach().clone()
    work.finish()
    torch.testing.assert_close(dbm.biases[1].detach(), (before + 3) / 2)
    assert torch.equal(dbm.biases[2], top)


# --- annealed importance sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(8, 6, 5), (6, 5, 4, 3)], ids=str)
@pytest.mark.parametrize("with_base", [False, True], ids=["uniform", "base rates"])
def test_ais_finds_the_exact_log_z(sizes, with_base):
    dbm = machine(*sizes, std=0.8)
    base = binary(20, sizes[0]) if with_base else None
    estimate = ais_log_z(dbm, betas=300, n_runs=200, base=base, seed=1)
    exact = float(dbm.log_partition().detach())
    assert abs(estimate.log_z - exact) < 5 * estimate.stderr
    assert estimate.stderr < 0.05


def test_the_bracket_closes():
    dbm = machine(8, 6, 5, std=0.8)
    bracket = ais_bracket(dbm, betas=300, n_runs=200, n_steps=500, seed=1)
    exact = float(dbm.log_partition().detach())
    assert bracket.interval[0] < exact < bracket.interval[1]
    assert abs(bracket.gap) < 0.1


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.0", "weights.1", "biases.2"])
def test_a_nonfinite_parameter_is_named(name):
    dbm = machine(5, 4, 3)
    with torch.no_grad():
        dbm.get_parameter(name).view(-1)[1] = torch.nan
    x = dbm.layers(binary(4, 12))
    with pytest.raises(NonFiniteError, match=rf"step 1: the loss is nan; parameter {name} has 1 non-finite values"):
        dbm.contrastive_loss(binary(4, 5), x)
    with pytest.raises(NonFiniteError, match=f"step 17: parameter {name}"):
        dbm.check_finite(17)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda dbm: DeepBoltzmannMachine(0, [3]), "n_visible: got 0, want an integer >= 1"),
        (lambda dbm: DeepBoltzmannMachine(3, [2, 2.5]), r"n_hidden\[1\]: got 2.5"),
        (lambda dbm: DeepBoltzmannMachine(3, 2), "n_hidden: got 2, want a list of 1 to 7 numbers of units"),
        (lambda dbm: DeepBoltzmannMachine(3, []), r"n_hidden: got \[\], want a list of 1 to 7 numbers of units"),
        (lambda dbm: DeepBoltzmannMachine(3, [2], init_std=-1), "init_std: got -1"),
        (lambda dbm: dbm.energy([torch.zeros(2, 5)]), "states: got 1 layers, want a list of 3 layers"),
        (lambda dbm: dbm.energy(torch.zeros(2, 5)), "states: got Tensor, want a list of 3 layers"),
        (
            lambda dbm: dbm.energy([torch.zeros(2, 5), torch.zeros(2, 3), torch.zeros(2, 3)]),
            r"states\[1\]: got shape \[2, 3\], want \[..., 4\]",
        ),
        (lambda dbm: dbm.pcd_loss(torch.zeros(2, 4)), r"v: got shape \[2, 4\]"),
        (lambda dbm: dbm.pcd_backward(torch.full((2, 5), 2.0)), "v: got values from 2 to 2"),
        (lambda dbm: dbm.pcd_backward(torch.zeros(0, 5)), "v, chains: got 0 and 0 rows"),
        (lambda dbm: dbm.log_prob(torch.full((2, 5), 0.5)), "v: got values between 0 and 1"),
        (lambda dbm: dbm.sample(3, 1, start=torch.zeros(2, 5)), "start: got 2 rows, want n_samples = 3"),
        (lambda dbm: dbm.sample(3, 1, clamp=torch.ones(5).bool()), "clamp: got a mask without start"),
        (lambda dbm: dbm.reset_chains(-1), "number of chains: got -1"),
        (lambda dbm: dbm.layer_probs([None, None, None], 1), "states: got none of layer 0, which layer 1 depends on"),
        (lambda dbm: dbm.layer_probs([None, None, None], 3), "layer: got 3, want 0 to 2"),
        (lambda dbm: dbm.pretrain(torch.zeros(0, 5)), "data: got no rows"),
        (lambda dbm: dbm.pretrain(torch.zeros(3, 5), lr=-1.0), "lr: got -1"),
        (lambda dbm: dbm.pretrain(torch.zeros(3, 5), epochs=0), "epochs: got 0"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(call, message):
    dbm = machine(5, 4, 3)
    before = copy.deepcopy(dbm.state_dict())
    with pytest.raises(ValueError, match=message):
        call(dbm)
    for name, value in dbm.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_pairs_of_sizes():
    dbm = machine(5, 4, 3)
    assert (dbm.n_visible, dbm.n_hidden, dbm.n_units) == (5, (4, 3), 12)
    assert [tuple(W.shape) for W in dbm.weights] == list(itertools.pairwise(dbm.sizes))
    assert "n_hidden=[4, 3]" in repr(dbm)
