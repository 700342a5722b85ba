"""`rbm_cd`: one step of contrastive divergence, against its definition and the sampler it shares its chains with."""

import sys

import pytest
import torch

import genfast
from genfast import ops
from genfast.boltzmann import RBM
from genfast.reference import rbm as reference
from tests.harness import Small

SIZES = [(1, 1, 1), (3, 5, 2), (64, 32, 9), (70, 33, 40), (257, 129, 130)]


def machine(n_visible, n_hidden, dtype=torch.float32, scale=0.2, seed=0):
    g = torch.Generator().manual_seed(seed)
    W = scale * torch.randn(n_visible, n_hidden, generator=g)
    return tuple(x.to(dtype) for x in (W, torch.randn(n_visible, generator=g), torch.randn(n_hidden, generator=g)))


def states(n, units, density=0.4, seed=1):
    return (torch.rand(n, units, generator=torch.Generator().manual_seed(seed)) < density).float()


def expected(v, parameters, chains=None, **options):
    """In float64, from the states that the sampler of the same backend draws with the same seed."""
    start = v if chains is None else chains
    k = options.pop("k", 1)
    model, _ = ops.rbm_gibbs(start, *parameters, n_steps=k, **options)
    wide = [p.double().requires_grad_() for p in parameters]
    loss = reference.rbm_free_energy(v.double(), *wide).mean() - reference.rbm_free_energy(model.double(), *wide).mean()
    return *torch.autograd.grad(loss, wide), model, loss.detach()


def assert_step(got, want, tolerance=2e-6):
    """The tolerance is that of means of numbers in [0, 1], of which gradients are differences."""
    assert torch.equal(got.v, want[3]), "the chains are those of rbm_gibbs, bit for bit"
    for name, a, b in zip(("W", "vbias", "hbias"), got[:3], want[:3], strict=True):
        difference = (a.double() - b).abs().max().item()
        assert difference <= tolerance, name
    assert abs(got.loss.item() - want[4].item()) <= max(5e-5, 1e-6 * abs(want[4].item())), "means of free energies"


def eighths(n_visible, n_hidden, n):
    """Parameters that are the same numbers in every dtype, and so the same chains."""
    W, a, b = (x.mul(40).round().clamp(-6, 6) / 8 for x in machine(n_visible, n_hidden))
    return {"v": states(n, n_visible), "W": W, "vbias": a, "hbias": b}


SMALL = {
    f"rbm_cd ({n_visible} x {n_hidden}, {n} rows)": Small(
        lambda size=(n_visible, n_hidden, n): eighths(*size),
        [{"seed": 5}, {"seed": 5, "k": 3, "first_chain": 2}],
        function=lambda **arguments: ops.rbm_cd(**arguments)[:4],
    )
    for n_visible, n_hidden, n in [(37, 20, 9), (65, 70, 33)]
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("persistent", [False, True])
def test_gradients_and_chains(backend, size, k, persistent):
    n_visible, n_hidden, n = size
    parameters = machine(n_visible, n_hidden)
    v = states(n, n_visible)
    chains = states(n + 3, n_visible, 0.5, seed=2) if persistent else None
    options = {"seed": 7, "first_chain": 2**31 + 5, "first_step": 11, "k": k}
    got = ops.rbm_cd(v, *parameters, chains=chains, **options)
    assert_step(got, expected(v, parameters, chains, **options))


@pytest.mark.parametrize("density", [0.02, 0.13, 0.5, 0.9])
@pytest.mark.parametrize("n", [10, 300])
def test_every_density(kernels, density, n):
    """Few active units are rows to add, many are tables of sums."""
    parameters = machine(200, 150, scale=0.05)
    parameters[1].fill_(torch.logit(torch.tensor(density)))
    v = states(n, 200, density)
    assert_step(ops.rbm_cd(v, *parameters, seed=3), expected(v, parameters, seed=3))


def test_float64_and_half(kernels):
    parameters = machine(40, 30, torch.float64)
    v = states(8, 40).double()
    assert_step(ops.rbm_cd(v, *parameters, seed=3), expected(v, parameters, seed=3), 1e-12)
    half = tuple(p.half() for p in parameters)
    got = ops.rbm_cd(v.half(), *half, seed=3)
    assert got.grad_W.dtype == got.v.dtype == torch.float16
    want = expected(v.float(), tuple(p.float() for p in half), seed=3)
    assert torch.equal(got.v.float(), want[3])
    torch.testing.assert_close(got.grad_W.double(), want[0], atol=1e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_dtypes_of_data(native, dtype):
    parameters, v = machine(20, 9), states(6, 20)
    got, want = (ops.rbm_cd(x, *parameters, seed=1) for x in (v.to(dtype), v))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("persistent", [False, True])
def test_probabilities_enter_the_statistics_and_are_drawn_for_the_chains(backend, persistent):
    parameters = machine(90, 40)
    v = torch.rand(12, 90, generator=torch.Generator().manual_seed(4))
    v[3] = v[3].round()
    chains = states(12, 90) if persistent else None
    got = ops.rbm_cd(v, *parameters, chains=chains, seed=5, k=2, first_chain=9, first_step=3)
    start = reference.drawn_states(v, 5, 9, 3) if chains is None else chains
    if not persistent:
        assert torch.equal(start[3], v[3])
    assert_step(got, expected(v, parameters, start, seed=5, k=2, first_chain=9, first_step=3))


def test_drawn_states_follow_the_probabilities():
    p = torch.tensor([0.0, 0.1, 0.5, 0.97, 1.0])
    n = 200_000
    mean = reference.drawn_states(p.expand(n, 5).contiguous(), 3).mean(0)
    assert mean[[0, 4]].tolist() == [0, 1]
    error = 5.2 * (p * (1 - p) / n).sqrt()  # false-alarm rate 1e-6 for three units
    assert ((mean - p).abs() <= error).all()


def test_large_weights_keep_the_accuracy_of_the_others(kernels):
    """One heavy column makes the fixed point coarse; the statistics of the others are then not taken from it."""
    parameters = machine(60, 40)
    parameters[0][:, 0] = 3e4
    v = states(16, 60)
    assert_step(ops.rbm_cd(v, *parameters, seed=3), expected(v, parameters, seed=3), 1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_parameters_that_are_not_finite(backend, value, which):
    parameters = machine(8, 6)
    parameters[which].view(-1)[0] = value
    got = ops.rbm_cd(states(4, 8), *parameters, seed=1)
    assert all(x.isnan().all() for x in (got.v, got.grad_vbias, got.loss))
    assert got.grad_W.isnan().any()
    assert got.grad_hbias.isnan().any()


def test_threads_and_slices_do_not_matter(native, monkeypatch):
    parameters, v = machine(300, 200, scale=0.05), states(200, 300)
    outputs = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            outputs.append(ops.rbm_cd(v, *parameters, seed=1, k=2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    for module in ("rbm", "rbm_cd"):
        monkeypatch.setattr(sys.modules[f"genfast.ops.{module}"], "SLICE", 2**20)
    assert torch.equal(ops.rbm_cd(v, *parameters, seed=1, k=2).v, outputs[0].v)


def test_strided_parameters_and_data(native):
    W, a, b = machine(40, 20)
    v = states(6, 40)
    want = ops.rbm_cd(v, W, a, b, seed=1)
    got = ops.rbm_cd(v.t().contiguous().t(), W.t().contiguous().t(), a.repeat(2, 1).t()[:, 0], b, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_parameters_may_require_gradients_and_get_none(native):
    parameters = [p.requires_grad_() for p in machine(10, 5)]
    assert not any(x.requires_grad for x in ops.rbm_cd(states(4, 10), *parameters, seed=1))


BAD = {
    "k": (lambda a: {**a, "k": 0}, ValueError, "k: got 0, want at least 1"),
    "rows": (lambda a: {**a, "v": a["v"][:0]}, ValueError, "v: got no rows, want at least one"),
    "pixels": (lambda a: {**a, "v": a["v"] * 255}, ValueError, "v: expected 0 or 1, or probabilities in between"),
    "nan": (lambda a: {**a, "v": a["v"] * torch.nan}, ValueError, "v: expected 0 or 1, or probabilities in between"),
    "chains": (lambda a: {**a, "chains": a["v"] * 0.5}, ValueError, "v: expected states that are 0 or 1"),
    "pixels with chains": (
        lambda a: {**a, "v": a["v"] * 3, "chains": a["v"]}, ValueError, "v: expected 0 or 1, or probabilities in",
    ),
    "width of chains": (
        lambda a: {**a, "chains": torch.zeros(2, 3)}, ValueError,
        "chains: got shape [2, 3], want [M, n_visible] with n_visible = 8 of W",
    ),
    "array": (lambda a: {**a, "v": a["v"].numpy()}, TypeError, "v: got ndarray, want a torch.Tensor"),
    "both": (
        lambda a: {**a, "seed": 1, "generator": torch.Generator()}, ValueError, "generator, seed: got both",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(kernels, name):
    change, error, text = BAD[name]
    W, a, b = machine(8, 5)
    arguments = change({"v": states(4, 8).clamp(min=0.0) + 0, "W": W, "vbias": a, "hbias": b})
    with pytest.raises(error) as caught:
        ops.rbm_cd(**arguments)
    assert text in str(caught.value)


def test_opcheck_compile_and_vmap(native):
    W, a, b = machine(12, 7)
    v, seed = states(6, 12), torch.tensor(3)
    torch.library.opcheck(torch.ops.genfast.rbm_cd.default, (v, None, W, a, b, seed, 1, 0, 0))
    want = ops.rbm_cd(v, W, a, b, seed=seed)
    got = torch.compile(lambda *x: ops.rbm_cd(*x, seed=seed), backend="aot_eager", fullgraph=True)(v, W, a, b)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    batch = torch.vmap(lambda x: ops.rbm_cd(x, W, a, b, seed=seed).grad_W)(torch.stack([v, 1 - v]))
    assert torch.equal(batch[0], want.grad_W)


# --- the module's use of it


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("grey", [False, True])
def test_backward_of_the_module_is_that_of_its_loss(native, persistent, grey):
    rbm = RBM(30, 20, generator=torch.Generator().manual_seed(0))
    v = torch.rand(8, 30, generator=torch.Generator().manual_seed(1))
    v = v if grey else v.round()
    if persistent:
        rbm.reset_chains(5, generator=torch.Generator().manual_seed(2))
    step = rbm.pcd_backward if persistent else rbm.cd_backward
    model = step(v, 2, generator=torch.Generator().manual_seed(3))
    got = [p.grad.clone() for p in rbm.parameters()]
    rbm.zero_grad()
    rbm.contrastive_loss(v, model).backward()
    for a, b in zip(got, rbm.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, atol=1e-6, rtol=1e-5)


def test_weights_changed_behind_the_version_counter_are_seen(native):
    """No result may depend on a number that W held before: nothing is kept from call to call."""
    W, a, b = machine(20, 10)
    v = states(5, 20)
    ops.rbm_cd(v, W, a, b, seed=1)
    version = W._version
    W.data.mul_(-2)
    W.numpy()[0] = 1.0
    assert W._version == version
    with genfast.backend("reference"):
        want = ops.rbm_cd(v, W, a, b, seed=1)
    assert_step(ops.rbm_cd(v, W, a, b, seed=1), [*(x.double() for x in want[:3]), want.v, want.loss], 1e-5)
