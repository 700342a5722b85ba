"""Deep belief networks: exact likelihoods of small ones, gradients, the bound, samples, and what a classifier gains."""

import math
import re

import pytest
import torch
from torch import nn

from genfast.boltzmann import RBM, DeepBeliefNetwork
from genfast.boltzmann._enumerate import all_states
from genfast.data import load
from tests.boltzmann.test_tempering import number_of, total_variation, visible_distribution


def states(n):
    return all_states(n, 0, 1 << n, device=torch.device("cpu"))


def network(hidden=(3, 4, 2), n_visible=4, std=1.2, seed=0, untied=True):
    g = torch.Generator().manual_seed(seed)
    dbn = DeepBeliefNetwork(n_visible, list(hidden), dtype=torch.float64)
    with torch.no_grad():
        for i in range(dbn.n_layers):
            for p in dbn.layer(i).parameters():
                p.normal_(0, std, generator=g)
        if untied:
            dbn.untie()
            for p in dbn.recognition.parameters():
                p.add_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.3)
    return dbn


@torch.no_grad()
def exact_distribution(dbn):
    """p(v) of all visible states, by enumeration: from the top down."""
    p = visible_distribution(dbn.top)
    for i in reversed(range(dbn.n_layers - 1)):
        rbm = dbn.layer(i)
        on = torch.sigmoid(states(rbm.n_hidden) @ rbm.W.T + rbm.vbias)  # [2^n_hidden, n_visible]
        x = states(rbm.n_visible)
        each = (x[None] * on[:, None] + (1 - x[None]) * (1 - on[:, None])).prod(-1)
        p = p @ each
    return p


# --- the distribution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(3,), (3, 3), (3, 4, 2)], ids=str)
def test_samples_have_the_enumerated_distribution(hidden):
    dbn, n = network(hidden, std=0.8), 200_000
    v = dbn.sample(n, 25, generator=torch.Generator().manual_seed(1))
    assert total_variation(torch.bincount(number_of(v), minlength=16).double(), exact_distribution(dbn)) < 0.004


def test_sampling_with_a_clamped_top():
    dbn = network((3, 3, 2), std=0.8)
    clamp = torch.tensor([True, False, False])
    start = torch.ones(5000, 3, dtype=torch.float64)
    h = dbn.top.sample(5000, 30, start=start, clamp=clamp)
    assert (h[:, 0] == 1).all()
    torch.manual_seed(3)
    v = dbn.sample(5000, 30, start=start, clamp=clamp)
    torch.manual_seed(3)
    means = dbn.sample(5000, 30, start=start, clamp=clamp, means=True)
    assert v.shape == means.shape == (5000, 4)
    assert ((means > 0) & (means < 1)).all()
    assert (v.mean(0) - means.mean(0)).abs().max() < 4.9 * 0.5 / 5000**0.5


# --- the bound --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(3,), (3, 3), (3, 4, 2)], ids=str)
def test_the_bound_is_below_log_p_and_weighting_closes_it(hidden):
    dbn = network(hidden, std=0.8)
    v, exact = states(4), exact_distribution(dbn).log()
    g = torch.Generator().manual_seed(0)
    bound = dbn.variational_bound(v, 500, generator=g)
    tight = dbn.variational_bound(v.repeat(50, 1), 80, importance_weighted=True, generator=g)
    if len(hidden) == 1:
        assert torch.allclose(bound, exact)
    else:
        assert (bound < exact).all()
        assert (bound > exact - 5).all()
    tight = torch.logsumexp(tight.reshape(50, 16), 0) - math.log(50)
    assert torch.allclose(tight, exact, atol=0.15)


def test_the_bound_is_the_expectation_that_it_says():
    dbn = network((3, 3), std=0.8)
    v, h = states(4), states(3)
    logits = v @ dbn.recognition[0].W + dbn.recognition[0].bias
    q = (h[None] * torch.sigmoid(logits)[:, None] + (1 - h[None]) * torch.sigmoid(-logits)[:, None]).prod(-1)
    rbm = dbn.layer(0)
    on = torch.sigmoid(h @ rbm.W.T + rbm.vbias)
    likelihood = (v[:, None] * on[None] + (1 - v[:, None]) * (1 - on[None])).prod(-1).log()
    want = (q * (likelihood + visible_distribution(dbn.top).log() - q.log())).sum(-1)
    draws = torch.stack([dbn.variational_bound(v, 50, generator=torch.Generator().manual_seed(s)) for s in range(40)])
    error = draws.std(0) / 40**0.5
    assert ((draws.mean(0) - want).abs() < 5.5 * error).all()


def test_a_layer_turned_over_changes_nothing():
    """Where a new layer starts as the old one turned over, the network is the RBM, and the bound is tight."""
    rbm_only = network((3,))
    dbn = DeepBeliefNetwork(4, [3, 4], dtype=torch.float64)
    dbn.layer(0).load_state_dict(rbm_only.layer(0).state_dict())
    dbn.init_layer(1, states(4))
    assert torch.allclose(exact_distribution(dbn), exact_distribution(rbm_only))
    bound = dbn.variational_bound(states(4), 3)
    assert torch.allclose(bound, exact_distribution(dbn).log())


def bars_and_stripes(n=3):
    bits = states(n).float()
    bars = bits[:, None, :].expand(-1, n, -1).reshape(-1, n * n)
    stripes = bits[:, :, None].expand(-1, -1, n).reshape(-1, n * n)
    return torch.cat([bars, stripes])


def test_a_second_layer_raises_the_bound():
    """Bars and stripes: a layer that starts as the first turned over gains on it, in the bound and in likelihood."""
    data = bars_and_stripes()
    dbn = DeepBeliefNetwork(9, [6, 9], generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)

    def train(layer, steps, lr, **options):
        sgd = torch.optim.SGD(dbn.layer(layer).parameters(), lr=lr)
        for _ in range(steps):
            dbn.layer_backward(data, layer, generator=g, **options)
            sgd.step()

    train(0, 1000, 0.1)
    first = float(dbn.layer(0).log_prob(data).detach().sum())
    dbn.init_layer(1, data)
    assert float(dbn.variational_bound(data, 2, generator=g).sum()) == pytest.approx(first, abs=1e-3)
    dbn.layer(1).reset_chains(100, generator=g)
    train(1, 1500, 0.05, k=5, persistent=True)
    second = float(dbn.variational_bound(data, 200, generator=g).sum())
    log_p = exact_distribution(dbn.double()).log()[number_of(data)]
    assert first + 0.15 < second < float(log_p.sum())


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("persistent", [False, True])
def test_backward_is_the_gradient_of_the_loss(persistent):
    v = (torch.rand(30, 4, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    a, b = network(), network()
    for step in range(2):
        loss = a.up_down_loss(v, 2, persistent=persistent, generator=torch.Generator().manual_seed(step))
        a.zero_grad()
        loss.backward()
        b.up_down_backward(v, 2, persistent=persistent, generator=torch.Generator().manual_seed(step))
        grads = {k: p.grad for k, p in b.named_parameters() if p.grad is not None}
        assert {k for k, p in a.named_parameters() if p.grad is not None} == grads.keys()
        assert "rbms.0.hbias" not in grads
        for k, p in a.named_parameters():
            if p.grad is not None:
                assert torch.allclose(p.grad, grads[k], atol=1e-12), k
        for i in range(2):
            loss = a.layer_loss(v, i, generator=torch.Generator().manual_seed(9), persistent=persistent)
            a.zero_grad()
            loss.backward()
            b.zero_grad()
            b.layer_backward(v, i, generator=torch.Generator().manual_seed(9), persistent=persistent)
            assert {k for k, p in a.named_parameters() if p.grad is not None} == {
                f"rbms.{i}.{n}" for n in ("W", "vbias", "hbias")
            }
            for p, q in zip(a.layer(i).parameters(), b.layer(i).parameters(), strict=True):
                assert torch.allclose(p.grad, q.grad, atol=1e-12)
            b.zero_grad()


def test_wake_teaches_the_way_down_and_sleep_the_way_up():
    """The gradients are those of the two expectations, beside their exact values on a small network."""
    dbn, n = network((3, 2), std=0.7), 200_000
    v = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    dbn.top.reset_chains(n, generator=g)
    dbn.top.chains = dbn.top.gibbs(dbn.top.chains, 50, generator=g)[0]
    dbn.up_down_backward(v.expand(n, 4), 1, persistent=True, generator=g)
    h, x = states(3), states(4)
    q = torch.sigmoid(v @ dbn.recognition[0].W + dbn.recognition[0].bias)
    q = (h * q + (1 - h) * (1 - q)).prod(-1)
    on = torch.sigmoid(h @ dbn.layer(0).W.T + dbn.layer(0).vbias)
    want = torch.einsum("s,sv,sh->vh", q, on - v, h)
    assert (dbn.layer(0).W.grad - want).abs().max() < 5.5 / n**0.5
    p = visible_distribution(dbn.top)[:, None] * (x[None] * on[:, None] + (1 - x[None]) * (1 - on[:, None])).prod(-1)
    up = torch.sigmoid(x @ dbn.recognition[0].W + dbn.recognition[0].bias)
    want = torch.einsum("hv,vi,hvj->ij", p, x, up[None] - h[:, None])
    assert (dbn.recognition[0].W.grad - want).abs().max() < 5.5 / n**0.5


def test_fit_trains_every_layer_and_repeats():
    data = load("digits").binarized().x[:300]
    seen = []
    nets = [DeepBeliefNetwork(64, [30, 20], generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    start = {k: v.clone() for k, v in nets[0].state_dict().items()}
    for dbn in nets:
        g = torch.Generator().manual_seed(1)
        dbn.fit(data, epochs=12, fine_tune=2, batch_size=10, generator=g, progress=lambda *a: seen.append(a))
    layers = [(f"layer {layer}", epoch, 12) for layer in (1, 2) for epoch in range(1, 13)]
    assert seen == 2 * [*layers, ("up-down", 1, 2), ("up-down", 2, 2)]
    for k, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[k])
        assert k.endswith("chains") or not torch.equal(value, start[k]), k
    error = (nets[0].reconstruct(data) - data).square().mean()
    base = (data.mean(0) - data).square().mean()
    assert error < 0.85 * base


def test_the_ways_up_and_down_are_tied_until_they_are_untied():
    dbn = network(untied=False)
    v = states(4)
    before = dbn.transform(v, 1)
    with torch.no_grad():
        dbn.layer(0).W.add_(1)
    assert not torch.allclose(dbn.transform(v, 1), before), "tied: the RBM's weights count"
    dbn.untie()
    kept = dbn.transform(v, 1)
    with torch.no_grad():
        dbn.layer(0).W.sub_(1)
    assert torch.equal(dbn.transform(v, 1), kept)
    dbn.untie()
    assert torch.equal(dbn.transform(v, 1), kept), "once is enough"
    other = network(untied=False, seed=5)
    other.load_state_dict(dbn.state_dict())
    assert torch.equal(other.transform(v), dbn.transform(v))


def test_states_go_up_with_the_means_of_their_layer():
    dbn, n = network((3, 2)), 100_000
    v = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    h = dbn.sample_up(v.expand(n, 4), 1, generator=torch.Generator().manual_seed(2))
    assert (h.mean(0) - dbn.transform(v, 1)).abs().max() < 5.5 * 0.5 / n**0.5
    assert torch.equal(dbn.transform(v, 0), v)
    assert dbn.transform(v.expand(2, 3, 4)).shape == (2, 3, 2)


# --- a classifier -----------------------------------------------------------------------------------------------------


def test_a_classifier_begins_as_the_way_up():
    dbn = network()
    net = dbn.to_classifier(5)
    v = states(4)
    assert torch.allclose(net[:-1](v), dbn.transform(v))
    assert [type(m) for m in net] == [nn.Linear, nn.Sigmoid] * 3 + [nn.Linear]
    assert net(v).shape == (16, 5)
    with torch.no_grad():
        net[0].weight.zero_()
    assert not torch.allclose(net[:-1](v), dbn.transform(v)), "the weights are copies"


def test_pretraining_helps_where_labels_are_few():
    data = load("digits")
    x, labels = data.binarized().x, torch.as_tensor(pytest.importorskip("sklearn.datasets").load_digits().target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    few, test = order[:100], order[1000:]
    dbn = DeepBeliefNetwork(64, [200, 100], generator=torch.Generator().manual_seed(0))
    dbn.fit(x[order[:1000]], epochs=30, batch_size=20, lr=0.1, generator=torch.Generator().manual_seed(1))

    def accuracy(net):
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[few]), labels[few]).backward()
            optimizer.step()
        return float((net(x[test]).argmax(1) == labels[test]).float().mean())

    torch.manual_seed(0)
    trained = accuracy(dbn.to_classifier(10))
    fresh = accuracy(DeepBeliefNetwork(64, [200, 100], init_std=0.1).to_classifier(10))
    assert trained > 0.75
    assert trained > fresh + 0.03


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "no layers": (lambda d: DeepBeliefNetwork(4, []), "hidden: got no sizes, want that of at least one hidden layer"),
    "size": (lambda d: DeepBeliefNetwork(4, [3, 0]), "hidden: got 0, want an integer >= 1"),
    "layer": (lambda d: d.layer_loss(torch.ones(2, 4), 3), "layer: got 3, want at most 2"),
    "depth": (lambda d: d.transform(torch.ones(2, 4), 4), "n_layers: got 4, want at most 3"),
    "data": (lambda d: d.transform(2 * torch.ones(2, 4)), "v: got values from 2 to 2, want 0 or 1"),
    "width": (lambda d: d.transform(torch.ones(2, 5)), "v: got shape [2, 5], want [..., 4]"),
    "grey": (lambda d: d.variational_bound(torch.full((2, 4), 0.5)), "v: got values between 0 and 1"),
    "way down": (lambda d: d.sample_down(torch.ones(2, 2)), "h: got shape [2, 2], want [..., 4]"),
    "too large": (
        lambda d: DeepBeliefNetwork(4, [40, 40]).variational_bound(torch.ones(2, 4)), "the smaller layer has 40 units",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    call, text = BAD[what]
    with pytest.raises(ValueError, match=re.escape(text)):
        call(network())


def test_a_network_that_is_not_finite_says_so():
    dbn = network()
    nn.init.constant_(dbn.layer(1).W, torch.nan)
    with pytest.raises(FloatingPointError, match=r"step 4: parameter rbms\.1\.W has 12 non-finite values of 12"):
        dbn.check_finite(step=4)
    assert isinstance(dbn.top, RBM)
