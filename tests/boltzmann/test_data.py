"""What an RBM takes as data: the same in every method."""

import copy

import pytest
import torch

from genfast._finite import NonFiniteError
from genfast.boltzmann import RBM
from genfast.boltzmann._states import drawn
from tests.boltzmann.test_rbm import binary, machine

# by name: (call, name of the argument); those of states alone, and those that take probabilities too
STATES = {
    "log_prob": (lambda m, v: m.log_prob(v), "v"),
    "pseudo_likelihood": (lambda m, v: m.pseudo_likelihood(v), "v"),
    "pseudo_likelihood, exact": (lambda m, v: m.pseudo_likelihood(v, exact=True), "v"),
    "gibbs": (lambda m, v: m.gibbs(v), "v"),
    "sample": (lambda m, v: m.sample(len(v), 2, start=v), "start"),
}
PROBABILITIES = {
    "energy": (lambda m, v: m.energy(v, torch.ones(len(v), 4)), "v"),
    "free_energy": (lambda m, v: m.free_energy(v), "v"),
    "hidden_probs": (lambda m, v: m.hidden_probs(v), "v"),
    "sample_hidden": (lambda m, v: m.sample_hidden(v), "v"),
    "reconstruct": (lambda m, v: m.reconstruct(v), "v"),
    "init_vbias": (lambda m, v: m.init_vbias(v), "v"),
    "contrastive_loss": (lambda m, v: m.contrastive_loss(v, v), "v_data"),
    "contrastive_loss, model": (lambda m, v: m.contrastive_loss(torch.ones(2, 5), v), "v_model"),
    "cd_loss": (lambda m, v: m.cd_loss(v), "v"),
    "pcd_loss": (lambda m, v: m.pcd_loss(v), "v"),
    "cd_backward": (lambda m, v: m.cd_backward(v), "v"),
    "pcd_backward": (lambda m, v: m.pcd_backward(v), "v"),
}
HIDDEN = {
    "energy of h": lambda m, h: m.energy(torch.ones(len(h), 5), h),
    "visible_probs": lambda m, h: m.visible_probs(h),
    "sample_visible": lambda m, h: m.sample_visible(h),
}
ALL = {**STATES, **PROBABILITIES}


def snapshot(rbm: RBM):
    return copy.deepcopy(rbm.state_dict()), [None if p.grad is None else p.grad.clone() for p in rbm.parameters()]


def unchanged(rbm: RBM, before) -> None:
    state, grads = before
    assert all(torch.equal(v, state[k]) for k, v in rbm.state_dict().items())
    assert all((p.grad is None) == (g is None) for p, g in zip(rbm.parameters(), grads, strict=True))


BAD = {
    "pixels": (lambda: torch.randint(0, 256, (6, 5)).float(), "values from 0 to 2"),
    "integer pixels": (lambda: torch.randint(0, 256, (6, 5), dtype=torch.uint8), "values from 0 to 2"),
    "negative": (lambda: -binary(6, 5), "values from -1 to -?0"),
    "spins": (lambda: (2 * binary(6, 5) - 1).long(), "values from -1 to 1"),
    "nan": (lambda: binary(6, 5).index_fill(0, torch.tensor([2]), torch.nan), "NaN"),
    "infinity": (lambda: binary(6, 5).index_fill(0, torch.tensor([2]), torch.inf), "values from 0 to inf"),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", BAD)
def test_what_the_model_is_not_defined_for_is_refused(native, name, kind):
    make, got = BAD[kind]
    rbm = machine().float()
    x = make()
    if kind in ("pixels", "integer pixels"):
        x[0, 0], x[0, 1] = 0, 255
    before = snapshot(rbm)
    call, argument = ALL[name]
    wanted = "0 or 1, or probabilities in between" if name in PROBABILITIES else "0 or 1"
    with pytest.raises(
        ValueError, match=rf"^{argument}: got {got}.*, want {wanted} \(genfast\.data\.Dataset\.binarized"
    ):
        call(rbm, x)
    unchanged(rbm, before)


@pytest.mark.parametrize("name", STATES)
def test_probabilities_are_refused_where_a_state_is_wanted(native, name):
    call, argument = ALL[name]
    with pytest.raises(ValueError, match=rf"^{argument}: got values between 0 and 1, want 0 or 1 alone"):
        call(machine().float(), torch.full((6, 5), 0.5))


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_states_are_checked_too(name):
    rbm = machine().float()
    with pytest.raises(ValueError, match=r"^h: got values from 0 to 7, want 0 or 1, or probabilities in between"):
        HIDDEN[name](rbm, torch.tensor([[0, 1, 7, 0]]))
    for dtype in (torch.bool, torch.int64, torch.float64):
        torch.manual_seed(0)
        got = HIDDEN[name](rbm, torch.tensor([[0, 1, 1, 0]]).to(dtype))
        torch.manual_seed(0)
        torch.testing.assert_close(got, HIDDEN[name](rbm, torch.tensor([[0.0, 1, 1, 0]])))


def outcome(name, rbm, x):
    torch.manual_seed(3)
    out = ALL[name][0](rbm, x)
    out = out if isinstance(out, tuple) else () if out is None else (out,)
    return [*out, *rbm.parameters(), *[p.grad for p in rbm.parameters() if p.grad is not None], rbm.chains]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float64], ids=str
)
def test_states_in_every_dtype(backend, name, dtype):
    x = binary(6, 5)
    want = outcome(name, machine().float().to(backend.device), x.float().to(backend.device))
    got = outcome(name, machine().float().to(backend.device), x.to(backend.device, dtype))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, rtol=0, atol=0)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_where_the_formula_is_an_expectation(backend, name):
    torch.manual_seed(0)
    x = torch.rand(6, 5).to(backend.device)
    for t in outcome(name, machine().float().to(backend.device), x):
        assert t.isfinite().all()


def test_grey_data_enters_the_positive_statistics_and_starts_chains_as_draws(native):
    rbm = machine()
    p = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).double()
    n = 20000
    for backward in (rbm.cd_backward, rbm.pcd_backward):
        states = backward(p.expand(n, -1), generator=torch.Generator().manual_seed(0))
        assert set(states.unique().tolist()) == {0.0, 1.0}
        torch.testing.assert_close(rbm.vbias.grad, states.mean(0) - p)
        got = rbm.W.grad.clone()
        rbm.zero_grad()
        (rbm.free_energy(p) - rbm.free_energy(states).mean()).backward()
        torch.testing.assert_close(got, rbm.W.grad)
    start = drawn(p.expand(n, -1), torch.Generator().manual_seed(0))
    error = (start.mean(0) - p).abs()
    assert error[0] == error[4] == 0
    assert (error <= 5.2 * (p * (1 - p) / n).sqrt()).all(), "five two-sided normal tests at 1e-6"
    assert torch.equal(drawn(binary(50, 5), None), binary(50, 5))


def test_where_looking_cannot_be_done_bad_data_is_nan():
    rbm = machine()
    rbm.nonfinite_check = False
    good, bad = binary(3, 5), 255 * binary(3, 5)
    bad[:, 0] = 255
    stacked = torch.stack([good, bad])
    for method in (rbm.free_energy, rbm.log_prob, lambda v: rbm.contrastive_loss(v, good), rbm.reconstruct):
        got = torch.vmap(method)(stacked)
        torch.testing.assert_close(got[0], method(good))
        assert got[1].isnan().any()
        assert got[1].flatten()[0].isnan()


@pytest.mark.cuda
def test_on_a_gpu_bad_data_is_nan_without_waiting():
    rbm = machine().float().cuda()
    rbm.nonfinite_check = False
    bad = torch.full((6, 5), 255.0, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        rbm.pcd_backward(bad)
        loss = rbm.pcd_loss(bad)
        rbm.cd_backward(bad)
        grey = rbm.cd_loss(torch.full((6, 5), 0.5, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert rbm.W.grad.isnan().all()
    assert loss.isnan()
    assert grey.isfinite()


def test_chains_start_one_for_each_row_of_any_shape():
    for v, n in ((binary(6, 5).view(2, 3, 5), 6), (binary(6, 5)[0], 1)):
        for method in ("pcd_loss", "pcd_backward"):
            rbm = machine()
            getattr(rbm, method)(v)
            assert rbm.n_chains == n


def test_nan_parameters_are_named_and_not_the_states_they_make():
    rbm = machine()
    with torch.no_grad():
        rbm.W[0, 0] = torch.nan
    for method in (rbm.cd_loss, rbm.pcd_loss):
        with pytest.raises(NonFiniteError, match="parameter W has 1 non-finite"):
            method(binary(4, 5))


def test_the_check_costs_one_pass(native):
    """No more than one reduction over the data and two numbers read, for a CD-1 step."""
    rbm = machine(64, 64).float()
    v = binary(64, 64).float()
    rbm.cd_backward(v)
    with torch.profiler.profile() as profile:
        rbm.cd_backward(v)
    counts = {e.key: e.count for e in profile.key_averages()}
    assert counts["aten::aminmax"] == 1
    assert counts.get("aten::eq", 0) == counts.get("aten::ne", 0) == counts.get("aten::all", 0) == 0
