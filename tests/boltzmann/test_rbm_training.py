"""What helps to train a restricted Boltzmann machine: fast weights, weight decay, a sparsity target."""

import copy

import pytest
import torch

from genfast.boltzmann import RBM, StandardizedRBM
from genfast.boltzmann.units import Gaussian, Spin

KINDS = {
    "binary": lambda **o: RBM(6, 4, **o),
    "spin": lambda **o: RBM(Spin(6), Spin(4), **o),
    "gaussian": lambda **o: RBM(Gaussian(6), 4, **o),
    "standardised": lambda **o: StandardizedRBM(6, 4, **o),
}


def machine(kind: str) -> RBM:
    return KINDS[kind](init_std=0.5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def data(rbm: RBM, rows: int = 20) -> torch.Tensor:
    inputs = torch.linspace(-1, 1, rbm.n_visible, dtype=torch.float64).expand(rows, -1)
    return rbm.visible.sample(inputs, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_fast_chains_run_on_the_sum_of_both_weights(kind):
    rbm = machine(kind)
    v = data(rbm)
    want = {name: torch.zeros_like(getattr(rbm, name)) for name in ("W", "vbias", "hbias")}
    rbm.reset_chains(8, generator=torch.Generator().manual_seed(2))
    for seed in range(4):
        rbm.zero_grad()
        if kind == "standardised":
            rbm.update_offsets(v)
        with torch.no_grad():
            both = RBM(copy.deepcopy(rbm.visible), copy.deepcopy(rbm.hidden), dtype=torch.float64)
            for name, value in want.items():
                getattr(both, name).copy_(getattr(rbm, name) + value)
        chains, _ = both.gibbs(rbm.chains, 2, generator=torch.Generator().manual_seed(seed))
        plain = rbm.to_uncentered() if kind == "standardised" else copy.deepcopy(rbm)
        plain.zero_grad()
        plain.contrastive_loss(v, chains).backward()
        rbm.train(kind != "standardised")
        rbm.fpcd_loss(v, 2, fast_lr=0.3, fast_decay=0.8, generator=torch.Generator().manual_seed(seed)).backward()
        torch.testing.assert_close(rbm.chains, chains)
        for name, value in want.items():
            want[name] = 0.8 * value - 0.3 * getattr(plain, name).grad
            torch.testing.assert_close(getattr(rbm, f"fast_{name}"), want[name])


@pytest.mark.parametrize("kind", KINDS)
def test_fast_backward_without_a_graph_is_that_of_the_loss_and_resumes(kind):
    rbm = machine(kind)
    other, v = copy.deepcopy(rbm), data(rbm)
    for seed in range(3):
        rbm.zero_grad()
        rbm.fpcd_loss(v, generator=torch.Generator().manual_seed(seed)).backward()
        other.fpcd_backward(v, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(rbm.chains, other.chains)
        torch.testing.assert_close(rbm.fast_W, other.fast_W)
        for name, p in rbm.named_parameters():
            torch.testing.assert_close(other.get_parameter(name).grad, p.grad, msg=name)
    resumed = machine(kind)
    resumed.load_state_dict(rbm.state_dict())
    losses = [m.fpcd_loss(v, generator=torch.Generator().manual_seed(9)).item() for m in (rbm, resumed)]
    assert losses[0] == losses[1]
    assert torch.equal(resumed.fast_W, rbm.fast_W)
    rbm.reset_parameters()
    assert rbm.fast_W is None
    assert "fast_W" not in rbm.state_dict()
    resumed.load_state_dict(rbm.state_dict())
    assert resumed.fast_W is None


def test_fast_weights_move_chains_out_of_a_mode():
    """Two far modes, 0s and 1s, and all chains in one of them: those of PCD stay there, the fast ones visit both."""
    visited = {}
    for method in ("pcd_backward", "fpcd_backward"):
        rbm = RBM(16, 4, dtype=torch.float64)
        with torch.no_grad():
            rbm.W.fill_(1.5)
            rbm.vbias.fill_(-3.0)
            rbm.hbias.fill_(-12.0)
        rbm.chains = torch.zeros(50, 16, dtype=torch.float64)
        v = torch.cat([torch.zeros(25, 16), torch.ones(25, 16)]).double()
        options = {"fast_lr": 0.2} if method == "fpcd_backward" else {}
        generator, fractions = torch.Generator().manual_seed(0), []
        for _ in range(60):
            getattr(rbm, method)(v, generator=generator, **options)
            fractions.append((rbm.chains.mean(1) > 0.5).double().mean().item())
        visited[method] = max(fractions)
    assert visited["pcd_backward"] < 0.1
    assert visited["fpcd_backward"] > 0.4


def test_penalties_are_their_formulas():
    rbm = machine("binary")
    v = data(rbm)
    W = rbm.W.detach()
    penalty = rbm.weight_penalty(l1=0.3, l2=0.2)
    torch.testing.assert_close(penalty, 0.3 * W.abs().sum() + 0.1 * (W**2).sum())
    penalty.backward()
    torch.testing.assert_close(rbm.W.grad, 0.3 * W.sign() + 0.2 * W)
    assert rbm.vbias.grad is None
    q = rbm.hidden_probs(v).mean(0)
    torch.testing.assert_close(rbm.sparsity_penalty(v, 0.1), ((0.1 - q) ** 2).sum())
    with pytest.raises(ValueError, match="l1: got -1"):
        rbm.weight_penalty(l1=-1)
    with pytest.raises(ValueError, match="fast_decay: got 2, want a number from 0 to 1"):
        rbm.fpcd_loss(v, fast_decay=2)


def test_a_sparsity_target_is_reached():
    rbm = machine("binary")
    v = data(rbm, 200)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.5)
    for seed in range(200):
        optimizer.zero_grad()
        loss = rbm.cd_loss(v, generator=torch.Generator().manual_seed(seed)) + 10 * rbm.sparsity_penalty(v, 0.1)
        loss.backward()
        optimizer.step()
    assert (rbm.hidden_probs(v).mean(0) - 0.1).abs().max() < 0.05
