"""Whatever an RBM returns with a gradient has the right one; what has none says so."""

import copy
import itertools

import pytest
import torch

from genfast.boltzmann import RBM, _enumerate
from tests.boltzmann.test_rbm import binary, machine, states

NAMES = ("W", "vbias", "hbias")


def as_function(rbm, method, *args, **kwargs):
    """A method as a function of the parameters."""

    class Method(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rbm = rbm

        def forward(self):
            return getattr(self.rbm, method)(*args, **kwargs)

    module = Method()
    return lambda *p: torch.func.functional_call(module, {f"rbm.{n}": x for n, x in zip(NAMES, p, strict=True)}, ())


def leaves(rbm):
    return tuple(p.detach().clone().requires_grad_() for p in rbm.parameters())


def enumerated(rbm, v):
    """-F(v) - log Z by the plainest sums there are, in autograd's own operations."""
    h = states(rbm.n_hidden)
    everything = states(rbm.n_visible)

    def minus_free_energy(v):
        joint = (v @ rbm.vbias)[:, None] + (h @ rbm.hbias)[None] + v @ rbm.W @ h.T
        return torch.logsumexp(joint, 1)

    return minus_free_energy(v) - torch.logsumexp(minus_free_energy(everything), 0)


@pytest.mark.parametrize("chunk", [4, 1 << 12])
def test_log_prob_has_the_gradient_of_the_likelihood(monkeypatch, chunk):
    monkeypatch.setattr(_enumerate, "_CHUNK", chunk)
    for n_visible, n_hidden in ((5, 4), (3, 6)):
        rbm = machine(n_visible, n_hidden)
        v = binary(6, n_visible)
        got = torch.autograd.grad(rbm.log_prob(v).mean(), list(rbm.parameters()))
        want = torch.autograd.grad(enumerated(rbm, v).mean(), list(rbm.parameters()))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("method", "args"), [("log_partition", ()), ("log_prob", (binary(3, 4),))])
def test_first_and_second_derivatives(monkeypatch, method, args):
    monkeypatch.setattr(_enumerate, "_CHUNK", 3)
    rbm = machine(4, 3)
    f = as_function(rbm, method, *args)
    assert torch.autograd.gradcheck(f, leaves(rbm))
    assert torch.autograd.gradgradcheck(f, leaves(rbm))


def test_log_partition_under_transforms(monkeypatch):
    monkeypatch.setattr(_enumerate, "_CHUNK", 3)
    rbm = machine(4, 3)
    f, parameters = as_function(rbm, "log_partition"), tuple(rbm.parameters())  # they require gradients
    everything, h = states(4), states(3)

    def plain(W, a, b):
        return torch.logsumexp(((everything @ a)[:, None] + (h @ b)[None] + everything @ W @ h.T).flatten(), 0)

    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        got, want = (transform(g, argnums=(0, 1, 2))(*parameters) for g in (f, plain))
        torch.testing.assert_close(got, want)
    jacrev, jacfwd = torch.func.jacrev, torch.func.jacfwd
    for first, *others in ((jacfwd, jacfwd), (jacrev, jacfwd), (jacrev, jacfwd, jacfwd), (jacfwd, jacrev, jacfwd)):
        got, want = first(f, argnums=(0, 1, 2)), first(plain, argnums=(0, 1, 2))
        for transform in others:
            got, want = transform(got, argnums=1), transform(want, argnums=1)
        torch.testing.assert_close(got(*parameters), want(*parameters))
    assert torch.autograd.gradcheck(f, leaves(rbm), check_forward_ad=True, check_backward_ad=False)
    stacked = tuple(torch.stack([p, 2 * p]).detach() for p in parameters)
    torch.testing.assert_close(
        torch.vmap(torch.func.grad(f))(*stacked)[1], torch.func.grad(plain)(*(2 * p.detach() for p in parameters))
    )


def test_training_on_the_exact_likelihood_learns():
    """What went from 6.9 to 2,061 nats while log Z had no gradient."""
    torch.manual_seed(0)
    rbm = RBM(10, 6)
    v = torch.bernoulli(torch.full((8, 10), 0.3))
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.5)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = -rbm.log_prob(v).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(6.9, abs=0.1)
    assert losses[-1] < 4.5, "8 rows can be learnt to log 8 = 2.08; independent units reach 5.3"
    assert all(b < a + 0.5 for a, b in itertools.pairwise(losses))


def test_memory_of_the_gradient_does_not_grow_with_the_number_of_states():
    rbm = RBM(400, 15)
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.setdefault(x.data_ptr(), x), lambda x: x):
        log_z = rbm.log_partition()
    assert sum(x.numel() for x in saved.values()) < 4 * rbm.W.numel(), "2^15 states times 400 units are 13 million"
    log_z.backward()
    assert rbm.W.grad.isfinite().all()


def kept_by(tensors):
    """What the graph of these holds: the hooks that would say so do not go with torch.func's vjp in a backward."""
    nodes, seen, tensors_of = [t.grad_fn for t in tensors], set(), {}
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [n for n, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                value = getattr(node, name)
                for x in value if isinstance(value, tuple) else (value,):
                    if isinstance(x, torch.Tensor):
                        tensors_of[x.data_ptr()] = x
    return tensors_of.values()


def test_memory_of_higher_derivatives_does_not_either():
    rbm = RBM(400, 15)
    grads = torch.autograd.grad(rbm.log_partition(), list(rbm.parameters()), create_graph=True)
    # the sums of 8 chunks, each with three gradients, are all
    assert sum(x.numel() for x in kept_by(grads)) < 40 * rbm.W.numel(), "2^15 states times 400 units are 13 million"
    sum(g.sum() for g in grads).backward()
    assert rbm.W.grad.isfinite().all()


def test_a_constant_log_partition_has_no_gradient_and_says_so():
    rbm = machine(5, 4)
    v = binary(3, 5)
    for given in (2.5, torch.tensor(2.5, dtype=torch.float64)):
        log_p = rbm.log_prob(v, log_partition=given)
        torch.testing.assert_close(log_p.detach(), -rbm.free_energy(v).detach() - 2.5)
        with pytest.raises(RuntimeError, match="log_prob: log_partition was given as a constant"):
            log_p.sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(rbm.log_prob(v, log_partition=given), log_p.detach())
        f = as_function(rbm, "log_prob", v, log_partition=given)
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            with pytest.raises(RuntimeError, match="log_partition was given as a constant"):
                transform(f)(*leaves(rbm))
    x = v.clone().requires_grad_()  # the gradient in v is right: log Z does not depend on v
    (got,) = torch.autograd.grad(rbm.log_prob(x, log_partition=2.5).sum(), x)
    (want,) = torch.autograd.grad(rbm.log_prob(x).sum(), x)
    torch.testing.assert_close(got, want)


def test_a_log_partition_with_a_gradient_brings_it_along():
    rbm = machine(5, 4)
    v = binary(3, 5)
    got = torch.autograd.grad(rbm.log_prob(v, log_partition=rbm.log_partition()).sum(), list(rbm.parameters()))
    want = torch.autograd.grad(rbm.log_prob(v).sum(), list(rbm.parameters()))
    torch.testing.assert_close(got, want)


def test_a_log_partition_that_any_level_differentiates_brings_its_gradient_along():
    """Also where the innermost transform is another one."""
    rbm = machine(4, 3)
    v, stacked = binary(3, 4), torch.stack([rbm.W, 2 * rbm.W]).detach()

    def given(W, v):
        values = {"W": W, "vbias": rbm.vbias.detach(), "hbias": rbm.hbias.detach()}
        return torch.func.functional_call(WithLogPartition(), {f"rbm.{n}": x for n, x in values.items()}, (v,))

    class WithLogPartition(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rbm = rbm

        def forward(self, v):
            return self.rbm.log_prob(v, log_partition=self.rbm.log_partition()).sum()

    def own(W, v):
        return torch.func.functional_call(rbm, {"W": W}, (v,)).sum()

    rbm.forward = rbm.log_prob
    for outer, inner in itertools.product((torch.func.jacrev, torch.func.jacfwd), repeat=2):
        got, want = (outer(inner(f, argnums=1), argnums=0)(rbm.W.detach(), v) for f in (given, own))
        torch.testing.assert_close(got, want)
        got, want = (outer(torch.vmap(f, (0, None)))(stacked, v) for f in (given, own))
        torch.testing.assert_close(got, want)


def test_log_prob_keeps_its_dtype():
    rbm = machine(5, 4).float()
    for v in (binary(3, 5).float(), binary(3, 5).float()[0]):
        assert rbm.log_prob(v).dtype == torch.float32
    assert rbm.log_partition().dtype == torch.float64


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("free_energy", (binary(3, 4),)),
        ("energy", (binary(3, 4), binary(3, 3, seed=1))),
        ("hidden_probs", (binary(3, 4),)),
        ("visible_probs", (binary(3, 3),)),
        ("reconstruct", (binary(3, 4),)),
        ("contrastive_loss", (binary(6, 4), binary(5, 4, seed=1))),
    ],
)
def test_gradients_of_the_other_methods(method, args):
    rbm = machine(4, 3)
    f = as_function(rbm, method, *args)
    assert torch.autograd.gradcheck(f, leaves(rbm))
    assert torch.autograd.gradgradcheck(f, leaves(rbm))


def test_the_loss_is_right_where_v_and_the_weights_require_gradients():
    rbm = machine(4, 3)
    v_data, v_model = 0.1 + 0.8 * binary(6, 4), binary(5, 4, seed=1)
    assert torch.autograd.gradcheck(lambda v: rbm.contrastive_loss(v, v_model), (v_data.requires_grad_(),))
    grad = torch.func.grad(lambda v: rbm.contrastive_loss(v, v_model))(v_data.detach())
    want = torch.autograd.grad(rbm.free_energy(v_data).mean(), v_data)[0]
    torch.testing.assert_close(grad, want)


def test_what_draws_states_has_no_gradient():
    rbm = machine(4, 3)
    v = binary(6, 4)
    for out in (*rbm.gibbs(v), rbm.sample_hidden(v), rbm.sample_visible(binary(6, 3)), rbm.sample(3, 2)):
        assert not out.requires_grad
    assert not rbm.pseudo_likelihood(v).requires_grad
    f = as_function(rbm, "pseudo_likelihood", v, exact=True)
    stacked = [torch.stack([p, p]) for p in leaves(rbm)]
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        for asked, at in ((f, leaves(rbm)), (torch.vmap(f), stacked)):
            with pytest.raises(RuntimeError, match="pseudo_likelihood: has no gradient"):
                transform(asked)(*at)
    torch.testing.assert_close(torch.vmap(f)(*stacked)[1], f(*leaves(rbm)))

    def beside(x):  # neither the live module nor what is made inside of a transform is differentiated by it
        return x.sum() + rbm.pseudo_likelihood(1 - torch.zeros(2, 4)).sum()

    torch.testing.assert_close(torch.func.grad(beside)(v), torch.ones_like(v))


def test_the_kept_weights_of_the_loss_are_right_after_any_use():
    """They are no part of the state, but must not outlive what they were made for."""
    rbm = machine(4, 3)
    v_data, v_model = binary(6, 4), binary(5, 4, seed=1)
    want = rbm.contrastive_loss(v_data, v_model).item()
    fresh = machine(4, 3)
    with torch.inference_mode():
        fresh.contrastive_loss(v_data, v_model)
    fresh.contrastive_loss(v_data, v_model).backward()
    assert fresh.contrastive_loss(v_data, v_model).item() == want
    fresh = copy.deepcopy(rbm).to("meta")
    assert fresh.contrastive_loss(v_data.to("meta"), v_model.to("meta")).is_meta
    torch.func.grad(as_function(rbm, "contrastive_loss", v_data, v_model))(*leaves(rbm))
    assert rbm.contrastive_loss(v_data, v_model).item() == want
    assert rbm.float().contrastive_loss(v_data, v_model).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("method", ["cd_backward", "pcd_backward"])
def test_backward_without_a_graph_reaches_parameters_or_refuses(method):
    rbm, v = machine(4, 3), binary(6, 4)
    rbm.hbias.requires_grad_(False)
    getattr(rbm, method)(v)
    assert rbm.hbias.grad is None, "it is frozen"
    assert rbm.W.grad.abs().sum() > 0
    torch.nn.utils.parametrizations.weight_norm(rbm, "W")
    with pytest.raises(RuntimeError, match=r"computed from others .* use cd_loss or pcd_loss"):
        getattr(rbm, method)(v)
    rbm.cd_loss(v).backward()
    assert rbm.parametrizations.W.original1.grad.abs().sum() > 0
    before = rbm.chains.clone()
    with pytest.raises(ValueError, match="k: got 0, want an integer >= 1"):
        rbm.pcd_loss(v, 0)
    assert torch.equal(rbm.chains, before)
