"""The restricted Boltzmann machine against exact enumeration and against its own definition."""

import copy

import pytest
import torch
import torch.nn.functional as F

from genfast._finite import NonFiniteError, check_finite
from genfast.boltzmann import RBM
from genfast.boltzmann._enumerate import all_states


def machine(n_visible: int = 5, n_hidden: int = 4, *, std: float = 0.8, seed: int = 0) -> RBM:
    generator = torch.Generator().manual_seed(seed)
    rbm = RBM(n_visible, n_hidden, init_std=std, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        rbm.vbias.normal_(0, 0.5, generator=generator)
        rbm.hbias.normal_(0, 0.5, generator=generator)
    return rbm


def states(n: int) -> torch.Tensor:
    return all_states(n, 0, 1 << n, device=torch.device("cpu"))


def binary(rows: int, n: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (rows, n), generator=generator).double()


@pytest.mark.parametrize(("n_visible", "n_hidden"), [(5, 4), (3, 7), (1, 1), (13, 3)])
def test_log_partition_is_the_sum_over_all_states(n_visible, n_hidden):
    rbm = machine(n_visible, n_hidden)
    v, h = states(n_visible), states(n_hidden)
    energy = rbm.energy(v[:, None, :].expand(-1, len(h), -1), h.expand(len(v), -1, -1))
    torch.testing.assert_close(rbm.log_partition(), torch.logsumexp(-energy.flatten(), 0))
    torch.testing.assert_close(rbm.free_energy(v), -torch.logsumexp(-energy, 1))
    torch.testing.assert_close(rbm.log_prob(v).exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_log_partition_refuses_a_large_machine():
    with pytest.raises(ValueError, match="smaller layer has 26 units, want at most 25"):
        RBM(30, 26).log_partition()


def test_pseudo_likelihood_exact_and_unbiased():
    rbm = machine()
    v = binary(3, 5)
    log_p = rbm.log_prob(states(5))
    weights = 2 ** torch.arange(5)
    want = torch.zeros(3, dtype=torch.float64)
    for i in range(5):
        flipped = v.clone()
        flipped[:, i] = 1 - flipped[:, i]
        here, there = log_p[(v.long() * weights).sum(1)], log_p[(flipped.long() * weights).sum(1)]
        want += here - torch.logaddexp(here, there)
    torch.testing.assert_close(rbm.pseudo_likelihood(v, exact=True), want)
    rows = v.repeat_interleave(20000, 0)
    estimate = rbm.pseudo_likelihood(rows, generator=torch.Generator().manual_seed(1)).view(3, -1)
    error = (estimate.mean(1) - want).abs() / (estimate.std(1) / 20000**0.5)
    assert error.max() < 5.2, "a two-sided normal test at 1e-6 for three rows"


def test_pseudo_likelihood_is_that_of_scikit_learn():
    neural_network = pytest.importorskip("sklearn.neural_network")
    v = binary(40, 6)
    peer = neural_network.BernoulliRBM(n_components=3, n_iter=2, random_state=0).fit(v.numpy())
    rbm = RBM(6, 3, dtype=torch.float64)
    with torch.no_grad():
        rbm.W.copy_(torch.from_numpy(peer.components_.T.copy()))
        rbm.vbias.copy_(torch.from_numpy(peer.intercept_visible_))
        rbm.hbias.copy_(torch.from_numpy(peer.intercept_hidden_))
    torch.testing.assert_close(rbm.hidden_probs(v).detach(), torch.from_numpy(peer.transform(v.numpy())))
    # scikit-learn flips the unit that its random_state picks: so may a row of ours; compare the sets of terms.
    terms = torch.stack([6 * F.logsigmoid(rbm.free_energy((v - e).abs()) - rbm.free_energy(v)) for e in torch.eye(6)])
    theirs = torch.from_numpy(peer.score_samples(v.numpy()))
    assert ((terms - theirs).abs().min(0).values < 1e-9).all()
    ours = rbm.pseudo_likelihood(v)
    assert ((terms - ours).abs().min(0).values < 1e-9).all()


def manual_statistics(rbm: RBM, v_data: torch.Tensor, v_model: torch.Tensor) -> dict[str, torch.Tensor]:
    h_data, h_model = rbm.hidden_probs(v_data), rbm.hidden_probs(v_model)
    n, m = len(v_data), len(v_model)
    return {
        "W": v_model.T @ h_model / m - v_data.T @ h_data / n,
        "vbias": v_model.mean(0) - v_data.mean(0),
        "hbias": h_model.mean(0) - h_data.mean(0),
    }


@pytest.mark.parametrize("k", [1, 3])
def test_cd_gradient_is_the_difference_of_statistics(k):
    rbm = machine(7, 5)
    v = binary(11, 7)
    rbm.cd_loss(v, k, generator=torch.Generator().manual_seed(4)).backward()
    v_model, _ = rbm.gibbs(v, k, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        want = manual_statistics(rbm, v, v_model)
    for name, parameter in rbm.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["cd", "pcd"])
def test_backward_without_a_graph_is_the_backward_of_the_loss(method, dtype):
    rbm = machine(7, 5).to(dtype)
    v = binary(11, 7).to(dtype)
    rbm.reset_chains(6, generator=torch.Generator().manual_seed(1))
    other = copy.deepcopy(rbm)
    for seed in (4, 5):  # the second call writes over the gradients of the first
        rbm.zero_grad()
        loss = getattr(rbm, f"{method}_loss")(v, 2, generator=torch.Generator().manual_seed(seed))
        loss.backward()
        states = getattr(other, f"{method}_backward")(v, 2, generator=torch.Generator().manual_seed(seed))
        for name, parameter in rbm.named_parameters():
            torch.testing.assert_close(other.get_parameter(name).grad, parameter.grad, msg=name)
        assert torch.equal(rbm.chains, other.chains)
        torch.testing.assert_close(other.contrastive_loss(v, states), loss)


def test_second_derivatives_of_the_loss():
    rbm = machine(4, 3)
    v_data, v_model = binary(6, 4), binary(5, 4, seed=1)

    def loss(W, vbias, hbias):
        return torch.func.functional_call(
            rbm, {"W": W, "vbias": vbias, "hbias": hbias}, (v_data, v_model), {}, tie_weights=False
        )

    rbm.forward = rbm.contrastive_loss
    rbm.nonfinite_check = False
    parameters = tuple(p.detach().clone().requires_grad_() for p in rbm.parameters())
    assert torch.autograd.gradcheck(loss, parameters)
    assert torch.autograd.gradgradcheck(loss, parameters)


def test_leading_dimensions_of_the_data():
    rbm = machine(4, 3)
    v = binary(6, 4)
    losses = [rbm.cd_loss(x, generator=torch.Generator().manual_seed(0)).item() for x in (v, v.view(2, 3, 4))]
    assert losses[0] == losses[1]
    rbm.cd_backward(v.view(2, 3, 4), generator=torch.Generator().manual_seed(0))
    flat = rbm.W.grad.clone()
    rbm.cd_backward(v, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flat, rbm.W.grad)


def test_contrastive_gradient_over_exact_model_samples_is_the_likelihood_gradient():
    """With the model's own distribution as v_model, the loss has the gradient of -mean log p(v)."""
    rbm = machine(4, 3)
    v = binary(6, 4)
    everything = states(4)
    p = rbm.log_prob(everything).exp().detach()
    (rbm.free_energy(v).mean() - (p * rbm.free_energy(everything)).sum()).backward()
    got = {name: parameter.grad.clone() for name, parameter in rbm.named_parameters()}
    rbm.zero_grad()
    hidden = states(3)
    energy = rbm.energy(everything[:, None, :].expand(-1, len(hidden), -1), hidden.expand(len(everything), -1, -1))
    log_likelihood = -rbm.free_energy(v).mean() - torch.logsumexp(-energy.flatten(), 0)
    (-log_likelihood).backward()
    for name, parameter in rbm.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, msg=name)


def test_pcd_chains_go_on_and_move_by_gibbs():
    rbm = machine(6, 4)
    v = binary(8, 6)
    assert rbm.n_chains == 0
    rbm.reset_chains(5, generator=torch.Generator().manual_seed(0))
    before = rbm.chains.clone()
    rbm.pcd_loss(v, 2, generator=torch.Generator().manual_seed(3)).backward()
    want, _ = rbm.gibbs(before, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(rbm.chains, want)
    with torch.no_grad():
        statistics = manual_statistics(rbm, v, want)
    torch.testing.assert_close(rbm.W.grad, statistics["W"])
    assert rbm.chains.shape == (5, 6), "the number of chains need not be that of the data rows"


def test_first_pcd_loss_starts_one_chain_a_row():
    rbm = machine(6, 4)
    rbm.pcd_loss(binary(8, 6))
    assert rbm.n_chains == 8


def test_chains_are_saved_and_resumed(tmp_path):
    rbm = machine(6, 4)
    v = binary(8, 6)
    rbm.pcd_loss(v)
    torch.save(rbm.state_dict(), tmp_path / "rbm.pt")
    copied = RBM(6, 4, dtype=torch.float64)
    copied.load_state_dict(torch.load(tmp_path / "rbm.pt", weights_only=True))
    assert torch.equal(copied.chains, rbm.chains)
    losses = [m.pcd_loss(v, generator=torch.Generator().manual_seed(9)).item() for m in (rbm, copied)]
    assert losses[0] == losses[1]
    assert torch.equal(copied.chains, rbm.chains)


def test_a_state_dict_of_another_machine_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        RBM(6, 4).load_state_dict(RBM(7, 4).state_dict())


def test_sampling_converges_to_the_exact_distribution():
    rbm = machine(3, 2)
    n = 40000
    samples = rbm.sample(n, n_steps=60, generator=torch.Generator().manual_seed(2))
    counts = torch.bincount((samples.long() * (2 ** torch.arange(3))).sum(1), minlength=8)
    expected = n * rbm.log_prob(states(3)).exp().detach()
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 41.0, "chi-square with 7 degrees of freedom at a false-alarm rate of 1e-6"


def test_conditionals_have_their_means():
    rbm = machine(3, 4)
    n = 40000
    v = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64).expand(n, -1)
    h = rbm.sample_hidden(v, generator=torch.Generator().manual_seed(0))
    p = rbm.hidden_probs(v[:1])[0].detach()
    assert set(h.unique().tolist()) <= {0.0, 1.0}
    assert (((h.mean(0) - p) / (p * (1 - p) / n).sqrt()).abs() < 5.2).all()
    x = rbm.sample_visible(h[:1].expand(n, -1), generator=torch.Generator().manual_seed(0))
    q = rbm.visible_probs(h[:1])[0].detach()
    assert (((x.mean(0) - q) / (q * (1 - q) / n).sqrt()).abs() < 5.2).all()


def test_clamped_units_keep_their_value():
    rbm = machine(6, 4)
    start = binary(50, 6)
    clamp = torch.tensor([True, True, False, False, True, False])
    out = rbm.sample(50, 20, start=start, clamp=clamp)
    assert torch.equal(out[:, clamp], start[:, clamp])
    assert not torch.equal(out[:, ~clamp], start[:, ~clamp])


def test_seed_reproduces_chains():
    rbm = machine(6, 4)
    v = binary(50, 6)
    first, second, other = (rbm.gibbs(v, 5, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_reconstruct_is_the_mean_field_pass():
    rbm = machine(6, 4)
    v = binary(5, 6)
    torch.testing.assert_close(
        rbm.reconstruct(v), torch.sigmoid(torch.sigmoid(v @ rbm.W + rbm.hbias) @ rbm.W.T + rbm.vbias)
    )


def test_init_vbias_is_the_best_independent_model():
    rbm = RBM(3, 2, dtype=torch.float64)
    v = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 1]]).double()
    rbm.init_vbias(v)
    torch.testing.assert_close(torch.sigmoid(rbm.vbias.detach()), torch.tensor([0.8, 0.2, 0.5], dtype=torch.float64))


def test_training_learns_bars_and_stripes():
    """2 x 2 bars and stripes, 6 patterns: the best mean log-likelihood is -log 6 = -1.79, a uniform guess -2.77."""
    patterns = torch.tensor(
        [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.float32
    )
    torch.manual_seed(0)
    rbm = RBM(4, 8, init_std=1.0)
    rbm.reset_chains(600)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.3)
    for _ in range(1500):
        optimizer.zero_grad()
        rbm.pcd_loss(patterns, 2).backward()
        optimizer.step()
    assert rbm.log_prob(patterns).mean() > -2.0


@pytest.mark.parametrize("name", ["W", "vbias", "hbias"])
def test_a_nonfinite_parameter_is_named(name):
    rbm = machine()
    with torch.no_grad():
        getattr(rbm, name).view(-1)[1] = torch.nan
    with pytest.raises(NonFiniteError, match=rf"step 1: the loss is nan; parameter {name} has 1 non-finite values"):
        rbm.contrastive_loss(binary(4, 5), binary(4, 5))
    with pytest.raises(NonFiniteError, match=f"step 17: parameter {name}"):
        rbm.check_finite(17)
    rbm.nonfinite_check = False
    rbm.contrastive_loss(binary(4, 5), binary(4, 5))


def test_check_finite_accepts_finite_numbers():
    check_finite(machine(), step=1, loss=1e300)
    with pytest.raises(NonFiniteError, match="the loss is inf"):
        check_finite(machine(), loss=float("inf"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rbm: RBM(0, 3), "n_visible: got 0, want an integer >= 1"),
        (lambda rbm: RBM(3, 2.5), "n_hidden: got 2.5"),
        (lambda rbm: RBM(3, 2, init_std=-1), "init_std: got -1"),
        (lambda rbm: rbm.energy(torch.zeros(2, 4), torch.zeros(2, 4)), r"v: got shape \[2, 4\], want \[..., 5\]"),
        (lambda rbm: rbm.energy(torch.zeros(2, 5), torch.zeros(2, 5)), r"h: got shape \[2, 5\], want \[..., 4\]"),
        (lambda rbm: rbm.cd_loss(torch.zeros(2, 4)), r"v: got shape \[2, 4\]"),
        (lambda rbm: rbm.pcd_loss(torch.zeros(2, 4)), r"v: got shape \[2, 4\]"),
        (lambda rbm: rbm.free_energy(torch.tensor(1.0)), r"v: got shape \[\]"),
        (lambda rbm: rbm.sample(3, 1, start=torch.zeros(2, 5)), "start: got 2 rows, want n_samples = 3"),
        (lambda rbm: rbm.sample(3, 1, clamp=torch.ones(5).bool()), "clamp: got a mask without start"),
        (lambda rbm: rbm.reset_chains(-1), "number of chains: got -1"),
        (lambda rbm: rbm.init_vbias(torch.zeros(0, 5)), "v: got no rows"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(call, message):
    rbm = machine()
    before = copy.deepcopy(rbm.state_dict())
    with pytest.raises(ValueError, match=message):
        call(rbm)
    for name, value in rbm.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_list_is_refused_by_name():
    with pytest.raises(TypeError, match="v: got list, want a tensor"):
        machine().free_energy([[0.0] * 5])
