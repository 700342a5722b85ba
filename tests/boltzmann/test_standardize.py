"""Machines in standardised units: the same distributions as without, and centred gradients."""

import copy

import pytest
import torch

from genfast.boltzmann import RBM, StandardizedRBM
from genfast.boltzmann.units import Gaussian, ReLU, Softmax, Spin

KINDS = {
    "binary": lambda: (5, 4),
    "spin": lambda: (Spin(5), Spin(4)),
    "gaussian": lambda: (Gaussian(3), 4),
    "potts and relu": lambda: (Softmax(2, 3), ReLU(3)),
}


def machine(kind="binary", *, scaled=False, decay=0.9) -> StandardizedRBM:
    generator = torch.Generator().manual_seed(0)
    options = {"scaled": scaled, "decay": decay, "init_std": 0.7, "generator": generator, "dtype": torch.float64}
    rbm = StandardizedRBM(*KINDS[kind](), **options)
    with torch.no_grad():
        rbm.centered_vbias.normal_(0, 0.5, generator=generator)
        rbm.centered_hbias.normal_(0, 0.5, generator=generator)
    return rbm


def data(rbm, rows=40, seed=0):
    inputs = torch.linspace(-1, 1, rbm.n_visible, dtype=torch.float64).expand(rows, -1)
    return rbm.visible.sample(inputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_moving_offsets_does_not_change_the_distribution(kind, scaled):
    rbm = machine(kind, scaled=scaled)
    v = data(rbm)
    before, W = rbm.log_prob(v).detach(), rbm.W.detach().clone()
    for seed in range(4):
        rbm.update_offsets(data(rbm, seed=seed))
    assert rbm.visible_offset.abs().max() > 0.05
    assert scaled == bool((rbm.hidden_scale != 1).any())
    torch.testing.assert_close(rbm.log_prob(v), before)
    torch.testing.assert_close(rbm.W, W)
    rbm.zero_sum_()
    torch.testing.assert_close(rbm.log_prob(v), before)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_machine_without_offsets(kind, scaled):
    rbm = machine(kind, scaled=scaled)
    v = data(rbm)
    rbm.update_offsets(v)
    rbm.reset_chains(3)
    plain = rbm.to_uncentered()
    assert type(plain) is RBM
    torch.testing.assert_close(plain.log_prob(v), rbm.log_prob(v))
    torch.testing.assert_close(plain.hidden_mean(v), rbm.hidden_mean(v))
    assert torch.equal(plain.gibbs(v, 3, seed=1)[0], rbm.gibbs(v, 3, seed=1)[0])
    assert torch.equal(plain.chains, rbm.chains)
    h = rbm.hidden.sample(torch.zeros(len(v), rbm.n_hidden, dtype=torch.float64))
    couple = (v - rbm.visible_offset) / rbm.visible_scale @ rbm.centered_W * (h - rbm.hidden_offset) / rbm.hidden_scale
    own = rbm.visible.energy(v) + rbm.hidden.energy(h) - v @ rbm.centered_vbias - h @ rbm.centered_hbias
    difference = rbm.energy(v, h) - (own - couple.sum(1))
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_centred(kind, scaled):
    rbm = machine(kind, scaled=scaled)
    v, v_model = data(rbm), data(rbm, 30, seed=1)
    rbm.update_offsets(v)
    rbm.contrastive_loss(v, v_model).backward()
    want = 0
    for x, sign in ((v, -1), (v_model, 1)):
        h = rbm.hidden_mean(x).detach()
        left = (x - rbm.visible_offset) / rbm.visible_scale
        want = want + sign * left.T @ ((h - rbm.hidden_offset) / rbm.hidden_scale) / len(x)
    torch.testing.assert_close(rbm.centered_W.grad, want)
    torch.testing.assert_close(rbm.centered_vbias.grad, v_model.mean(0) - v.mean(0))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("method", ["cd", "pcd"])
@pytest.mark.parametrize("kind", KINDS)
def test_backward_without_a_graph_is_the_backward_of_the_loss(kind, method, scaled):
    rbm = machine(kind, scaled=scaled)
    other, v = copy.deepcopy(rbm), data(rbm)
    for seed in (4, 5):
        rbm.zero_grad()
        getattr(rbm, f"{method}_loss")(v, 2, generator=torch.Generator().manual_seed(seed)).backward()
        getattr(other, f"{method}_backward")(v, 2, generator=torch.Generator().manual_seed(seed))
        assert rbm.n_offsets == other.n_offsets == seed - 3
        for name, p in rbm.named_parameters():
            torch.testing.assert_close(other.get_parameter(name).grad, p.grad, msg=name)


def test_offsets_stay_in_evaluation_mode_and_where_no_gradient_is_wanted():
    rbm = machine()
    v = data(rbm)
    rbm.eval()
    rbm.cd_loss(v)
    rbm.train()
    with torch.no_grad():
        rbm.pcd_loss(v)
    assert rbm.n_offsets == 0
    rbm.cd_loss(v)
    torch.testing.assert_close(rbm.visible_offset, v.mean(0))
    before = rbm.visible_offset.clone()
    rbm.cd_loss(1 - v)
    torch.testing.assert_close(rbm.visible_offset, 0.9 * before + 0.1 * (1 - v).mean(0))


def test_flipped_bits_learn_the_same():
    """What centring is for: a machine that sees 1 - v learns what one that sees v learns, step by step."""
    one = machine()
    flipped = machine()
    v = data(one, 60)
    with torch.no_grad():
        flipped.centered_W.copy_(-one.centered_W)
        flipped.centered_vbias.copy_(-one.centered_vbias)
        flipped.centered_hbias.copy_(one.centered_hbias + one.centered_W.sum(0))
    one.update_offsets(v)
    flipped.update_offsets(1 - v)
    torch.testing.assert_close(flipped.log_prob(1 - v), one.log_prob(v))
    for rbm, x in ((one, v), (flipped, 1 - v)):
        optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            (-rbm.log_prob(x).mean()).backward()
            optimizer.step()
    torch.testing.assert_close(flipped.log_prob(1 - v), one.log_prob(v))


def test_its_state_is_saved_and_that_of_a_plain_machine_refused():
    rbm = machine(scaled=True)
    rbm.pcd_loss(data(rbm))
    other = machine(scaled=True)
    other.load_state_dict(rbm.state_dict())
    v = data(rbm)
    losses = [m.pcd_loss(v, generator=torch.Generator().manual_seed(0)).item() for m in (rbm, other)]
    assert losses[0] == losses[1]
    with pytest.raises(RuntimeError, match=r"Missing key.*centered_W"):
        other.load_state_dict(RBM(5, 4, dtype=torch.float64).state_dict())
    with pytest.raises(ValueError, match="decay: got 2, want a number from 0 to 1"):
        StandardizedRBM(3, 2, decay=2)


def test_training_learns_the_data():
    rbm = machine(decay=0.99)
    v = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 1, 1, 1.0]], dtype=torch.float64).repeat(20, 1)
    optimizer = torch.optim.Adam(rbm.parameters(), lr=0.03)
    rbm.reset_chains(100, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        rbm.pcd_backward(v, 2, generator=generator)
        optimizer.step()
    assert rbm.log_prob(v).mean() > -1.1, "log 2 = 0.69 is the best"
