"""How the general Boltzmann machine is trained, and what it refuses."""

import copy
import math

import pytest
import torch

from genfast._finite import NonFiniteError
from genfast.boltzmann import BoltzmannMachine, _dense
from genfast.data import bars_and_stripes
from tests.boltzmann.test_machine import KINDS, binary, chi2_bound, index, joint, machine, states

# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "temperature"), KINDS)
@pytest.mark.parametrize("n_hidden", [0, 2])
def test_the_contrastive_gradient_is_that_of_the_likelihood(values, temperature, n_hidden):
    """With the clamped and the free distribution enumerated, by rows repeated as often as they are likely."""
    m = machine(3, n_hidden, values=values, temperature=temperature)
    v, s = binary(4, 3, values), states(m.n_units, values)
    log_p = joint(m).detach()
    want = torch.autograd.grad(-m.log_prob(v).mean(), list(m.parameters()))
    weights = []
    for row in v:  # p(h | v) of each row, in the order of all states
        own = (s[:, :3] == row).all(1)
        weights.append(torch.softmax(log_p.flatten().masked_fill(~own, -torch.inf), 0))
    data, model = torch.stack(weights).mean(0), log_p.exp().flatten()
    got = torch.autograd.grad(((data - model) * m.energy(s)).sum() / temperature, list(m.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    a, b = binary(9, m.n_units, values), binary(7, m.n_units, values, seed=1)
    loss, plain = m.contrastive_loss(a, b), (m.energy(a).mean() - m.energy(b).mean()) / temperature
    torch.testing.assert_close(loss, plain)
    for x, y in zip(*(torch.autograd.grad(f, list(m.parameters())) for f in (loss, plain)), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "n_hidden", "clamped"), [
    ("pcd", 0, "gibbs"), ("cd", 0, "gibbs"), ("pcd", 3, "gibbs"), ("cd", 3, "gibbs"), ("pcd", 3, "mean_field"),
    ("cd", 70, "mean_field"),
])  # fmt: skip
def test_backward_without_a_graph_is_the_backward_of_the_loss(method, n_hidden, clamped, dtype):
    m = machine(7, n_hidden, dtype=dtype, std=0.1)
    v = binary(11, 7).to(dtype)
    m.reset_chains(6, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(m)
    for seed in (4, 5):  # the second call writes over the gradients of the first
        m.zero_grad()
        options = {"k": 2, "k_data": 3, "clamped": clamped}
        loss = getattr(m, f"{method}_loss")(v, generator=torch.Generator().manual_seed(seed), **options)
        loss.backward()
        both = getattr(other, f"{method}_backward")(v, generator=torch.Generator().manual_seed(seed), **options)
        for name, parameter in m.named_parameters():
            torch.testing.assert_close(other.get_parameter(name).grad, parameter.grad, msg=name)
        assert torch.equal(m.chains, other.chains)
        torch.testing.assert_close(other.contrastive_loss(*both), loss)


@pytest.mark.parametrize("density", [0.05, 0.5])
def test_second_moments_by_sparse_sums_and_by_stripes(density):
    g = torch.Generator().manual_seed(0)
    rows, weights = (torch.rand(40, 500, generator=g) < density).float(), torch.randn(40, generator=g)
    want = -((rows * weights[:, None]).double().T @ rows.double()).triu(1)
    torch.testing.assert_close(_dense.moments(rows, weights).double(), want, rtol=1e-5, atol=1e-5)
    spins = 2 * rows - 1
    want = -((spins * weights[:, None]).double().T @ spins.double()).triu(1)
    torch.testing.assert_close(_dense.moments(spins, weights).double(), want, rtol=1e-5, atol=1e-5)


def test_pseudo_likelihood_has_its_gradient():
    for n_hidden in (0, 2):
        m = machine(3, n_hidden, values="pm1", temperature=1.3)
        v = binary(5, 3, "pm1")

        def f(couplings, bias, m=m, v=v):
            state = {"couplings": couplings, "bias": bias}
            return torch.func.functional_call(m, state, (v,), {}, tie_weights=False)

        m.forward = m.pseudo_likelihood
        leaves = tuple(p.detach().clone().requires_grad_() for p in m.parameters())
        assert torch.autograd.gradcheck(f, leaves)


def test_the_clamped_phase_samples_the_hidden_units():
    m, n = machine(3, 3, std=1.2), 40_000
    v = binary(1, 3, seed=2).expand(n, -1)
    s = m.sample_hidden(v, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(s[:, :3], v)
    p = torch.softmax(joint(m)[:, int(index(v[0]))].detach(), 0)
    counts = torch.bincount(index(s[:, 3:]), minlength=8)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < chi2_bound(7)


def test_persistent_hidden_states_are_left_in_their_tensor():
    m, v = machine(4, 3), binary(6, 4)
    h, before = (x := binary(6, 3, seed=1)), x.clone()
    m.reset_chains(5)
    m.pcd_loss(v, k_data=2, h=h, generator=torch.Generator().manual_seed(0))
    want = m.sample_hidden(v, 2, h=before, generator=torch.Generator().manual_seed(0))
    assert torch.equal(h, want[:, 4:])


@pytest.mark.parametrize("values", ["01", "pm1"])
def test_mean_field_of_independent_hidden_units_is_exact(values):
    """Hidden units without couplings among themselves: a restricted machine."""
    m = machine(4, 3, values=values, temperature=1.4)
    with torch.no_grad():
        m.couplings[4:, 4:] = 0
    v = states(4, values)
    p = (joint(m) - torch.logsumexp(joint(m), 0)).exp()  # p(h | v), [8, 16]
    torch.testing.assert_close(m.mean_field(v), p.T @ states(3, values))
    m = machine(4, 3, values=values)
    mean = m.mean_field(v, 1000, tolerance=1e-12)
    J, bias = m.J, m.bias
    fields = v @ J[:4, 4:] + mean @ J[4:, 4:] + bias[4:]
    want = torch.sigmoid(fields) if values == "01" else torch.tanh(fields)
    torch.testing.assert_close(mean, want, rtol=1e-6, atol=1e-9)


def test_chains_are_saved_and_resumed(tmp_path):
    m, v = machine(6, 2), binary(8, 6)
    m.pcd_loss(v)
    assert m.n_chains == 8
    torch.save(m.state_dict(), tmp_path / "m.pt")
    copied = machine(6, 2, seed=1)
    copied.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    losses = [x.pcd_loss(v, generator=torch.Generator().manual_seed(9)).item() for x in (m, copied)]
    assert losses[0] == losses[1]
    assert torch.equal(copied.chains, m.chains)


def test_the_bias_of_the_best_independent_model():
    v = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 1]]).double()
    want = torch.tensor([0.8, 0.2, 0.5], dtype=torch.float64)
    for values, temperature in KINDS:
        m = BoltzmannMachine(3, 2, values=values, temperature=temperature, init_std=0, dtype=torch.float64)
        m.init_from_data(v if values == "01" else 2 * v - 1)
        torch.testing.assert_close(m.conditional(binary(1, 5, values))[0, :3], want)


BEST = 12 * math.log(1 / 16) + 4 * math.log(2 / 16)


def test_exact_likelihood_learns_bars_and_stripes():
    """3 x 3, 16 patterns with repeats: within 5% of the best possible log-likelihood, -41.589."""
    torch.manual_seed(0)
    v = bars_and_stripes(3)
    m = BoltzmannMachine(9, 4, init_std=0.3)
    optimizer = torch.optim.Adam(m.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (-m.log_prob(v).mean()).backward()
        optimizer.step()
    assert pytest.approx(-41.589, abs=1e-3) == BEST
    assert 1.05 * BEST < float(m.log_prob(v).detach().sum()) < BEST


def test_persistent_chains_learn_bars_and_stripes():
    """The same by sampling alone: clamped and free phases, judged by the exact likelihood."""
    torch.manual_seed(0)
    v = bars_and_stripes(3)
    m = BoltzmannMachine(9, 6, init_std=0.3)
    m.reset_chains(500)
    data, steps = v.repeat(8, 1), 500
    h = torch.randint(2, (len(data), 6)).float()
    optimizer = torch.optim.SGD(m.parameters(), lr=2.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, 2 - 2 * t / steps))
    for _ in range(steps):
        m.pcd_backward(data, 10, k_data=10, h=h)
        optimizer.step()
        schedule.step()
    assert 1.05 * BEST < float(m.log_prob(v).detach().sum()) < BEST


def test_pseudo_likelihood_finds_the_couplings():
    """Consistent: from 20,000 exact samples of a machine back to it."""
    true = machine(6, 0, values="pm1", std=0.5, temperature=1.3)
    p = joint(true).exp().flatten().detach()
    rows = torch.multinomial(p, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    v = states(6, "pm1")[rows]
    m = BoltzmannMachine(6, values="pm1", temperature=1.3, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(m.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = m.pseudo_likelihood_loss(v)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float((m.J - true.J).detach().abs().max()) < 0.08
    assert float((m.bias - true.bias).detach().abs().max()) < 0.08


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["couplings", "bias"])
def test_a_nonfinite_parameter_is_named(name):
    m = machine()
    with torch.no_grad():
        getattr(m, name).view(-1)[1] = torch.nan
    with pytest.raises(NonFiniteError, match=rf"step 1: the loss is nan; parameter {name} has 1 non-finite values"):
        m.contrastive_loss(binary(4, 6), binary(4, 6))
    with pytest.raises(NonFiniteError, match=f"step 2: .*parameter {name}"):
        m.pseudo_likelihood_loss(binary(4, 4))
    with pytest.raises(NonFiniteError, match=f"step 17: parameter {name}"):
        m.check_finite(17)
    m.nonfinite_check = False
    m.contrastive_loss(binary(4, 6), binary(4, 6))


KNOWN = torch.tensor([True, False, True, False])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: BoltzmannMachine(0), "n_visible: got 0, want an integer >= 1"),
        (lambda m: BoltzmannMachine(3, -1), "n_hidden: got -1, want an integer >= 0"),
        (lambda m: BoltzmannMachine(3, values="spin"), "values: got 'spin', want '01' or 'pm1'"),
        (lambda m: BoltzmannMachine(3, temperature=0), "temperature: got 0, want a finite number > 0"),
        (lambda m: BoltzmannMachine(3, temperature=math.nan), "temperature: got nan"),
        (lambda m: setattr(m, "temperature", -1.0), "temperature: got -1.0, want a finite number > 0"),
        (lambda m: m.gibbs(binary(2, 6), temperature=0.0), "temperature: got 0.0, want a finite number > 0"),
        (lambda m: m.gibbs(binary(2, 6), temperature=torch.tensor([1.0, -1.0])), "temperature: .*-1"),
        (lambda m: m.gibbs(binary(2, 6) + 1), "s: got values from 1 to 2|s: got values from"),
        (lambda m: m.gibbs(binary(2, 6) / 2), "s: got values between 0 and 1, want 0 or 1 alone"),
        (lambda m: m.gibbs(binary(2, 4)), r"s: got shape \[2, 4\], want \[..., 6\]"),
        (lambda m: m.energy(2 * binary(2, 6) - 1), "s: got values from -1 to 1"),
        (lambda m: m.log_prob(binary(2, 4) * 0.5), "v: got values between 0 and 1"),
        (lambda m: machine(values="pm1").log_prob(binary(2, 4)), "v: got values between -1 and 1, want -1 or 1 alone"),
        (lambda m: machine(values="pm1").energy(3 * binary(2, 6)), "s: got values from 0 to 3, want -1 or 1, or means"),
        (lambda m: m.pcd_loss(binary(2, 6)), r"v: got shape \[2, 6\], want \[..., 4\]"),
        (lambda m: m.pcd_loss(binary(2, 4), 0), "k: got 0"),
        (lambda m: m.pcd_loss(binary(2, 4), k_data=0), "k_data: got 0"),
        (lambda m: m.pcd_loss(binary(2, 4), clamped="exact"), "clamped: got 'exact', want 'gibbs' or 'mean_field'"),
        (lambda m: m.pcd_loss(binary(2, 4), h=binary(3, 2)), r"h: got shape \[3, 2\], want \[N, n_hidden\] = \[2, 2\]"),
        (lambda m: machine(4, 0).pcd_loss(binary(2, 4), h=binary(2, 2)), "h: .*the machine has no hidden units"),
        (lambda m: m.contrastive_loss(binary(2, 6), binary(0, 6)), "s_data, s_model: got 2 and 0 rows"),
        (lambda m: m.sample(3, 1, start=binary(2, 4)), "start: got 2 rows, want n_samples = 3"),
        (lambda m: m.sample(3, 1, start=binary(3, 5)), r"start: got shape \[3, 5\]"),
        (lambda m: m.sample(3, 1, clamp=KNOWN), "clamp: got a mask without start"),
        (lambda m: m.sample(3, 1, start=binary(3, 4), clamp=KNOWN[:3]), r"clamp: got shape \[3\], want \[6\] or"),
        (lambda m: m.complete(binary(2, 4).fill_(torch.nan), KNOWN), "v, mask: contradict each other in row 0, unit 0"),
        (lambda m: m.complete(binary(2, 4) + 4, KNOWN), "v: got values from"),
        (lambda m: m.complete(binary(2, 4), KNOWN[:2]), r"mask: got shape \[2\], want \[4\] or \[2, 4\]"),
        (lambda m: m.anneal(2, torch.tensor([2.0, 0.0])), "temperatures: got 0 at 1, want finite numbers > 0"),
        (lambda m: m.anneal(2, torch.tensor(2.0)), r"temperatures: got shape \[\], want \[K\]"),
        (lambda m: m.mean_field(binary(2, 4), damping=1.0), "damping: got 1.0"),
        (lambda m: m.reset_chains(-1), "number of chains: got -1"),
        (lambda m: m.init_from_data(binary(0, 4)), "base: got no rows|v: got no rows"),
        (lambda m: m.annealing_path(torch.zeros(3)), "base: got 3 log-odds, want n_visible = 4"),
        (lambda m: m.annealing_path(torch.full((4,), torch.inf)), "base: got log-odds that are not finite"),
        (lambda m: m.pseudo_likelihood_loss(binary(0, 4)), "v: got no rows"),
        (lambda m: BoltzmannMachine.from_couplings(m.J, m.bias, n_hidden=6), "n_hidden: got 6, want fewer than the 6"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_changes_nothing(call, message):
    m = machine()
    before = copy.deepcopy(m.state_dict())
    with pytest.raises(ValueError, match=message):
        call(m)
    for name, value in m.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_wrong_types_are_named():
    m = machine()
    with pytest.raises(TypeError, match="v: got list, want a tensor"):
        m.log_prob([[0.0] * 4])
    with pytest.raises(TypeError, match=r"mask: got torch\.float64, want a torch\.bool mask"):
        m.complete(binary(2, 4), binary(1, 4)[0])
    with pytest.raises(TypeError, match="temperature: got str, want a number"):
        m.gibbs(binary(2, 6), temperature="hot")
    torch.nn.utils.parametrizations.weight_norm(m, "couplings")
    with pytest.raises(RuntimeError, match="parametrized"):
        m.pcd_backward(binary(2, 4))


def test_a_constant_log_partition_has_no_gradient_and_says_so():
    m, v = machine(), binary(3, 4)
    torch.testing.assert_close(m.log_prob(v, log_partition=m.log_partition().item()), m.log_prob(v))
    with pytest.raises(RuntimeError, match="log_partition was given as a constant"):
        m.log_prob(v, log_partition=1.0).sum().backward()
    m.log_prob(v, log_partition=m.log_partition()).sum().backward()
    assert m.couplings.grad.isfinite().all()
