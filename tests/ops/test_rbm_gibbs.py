import itertools
import math
import re

import pytest
import torch

import genfast
from genfast import ops
from genfast.reference import _gibbs as draws
from genfast.reference import rbm as reference
from tests.harness import OpSpec, OpTests, RecordOps, Small

# Chi-square tests are passed by a right sampler except with this probability; the seeds are fixed.
FALSE_ALARM = 1e-6


def machine(nv, nh, scale=0.3, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    tensors = (torch.randn(nv, nh, generator=g), torch.randn(nv, generator=g), torch.randn(nh, generator=g))
    return [t.to(device, dtype) * scale for t in tensors]


def states(n, nv, density=0.5, dtype=torch.float32, device="cpu", seed=0):
    return (torch.rand(n, nv, generator=torch.Generator().manual_seed(seed)) < density).to(device, dtype)


def by_reference(v, *parameters, **options):
    with genfast.backend("reference"):
        out = ops.rbm_gibbs(v.cpu(), *(p.cpu() for p in parameters), **options)
    return [x.to(v.device) for x in out]


def same(got, want):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, want, strict=True))


def chi_square_limit(degrees):
    """The quantile of 1 - FALSE_ALARM (Wilson & Hilferty; z = 4.7534)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3


def make(case, generator):
    n, nv, nh, density = case
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64) * 0.3  # noqa: E731
    v = (torch.rand(n, nv, generator=generator) < density).double()
    return {"v": v, "W": randn(nv, nh), "vbias": randn(nv), "hbias": randn(nh)}


def gibbs(v, W, vbias, hbias, **options):
    return ops.rbm_gibbs(v, W, vbias, hbias, **options)


class TestGibbs(OpTests):
    spec = OpSpec(
        name="rbm_gibbs", function=gibbs, reference=reference.rbm_gibbs, make=make, outputs=["states", "states"],
        cases=[(5, 7, 3, 0.5), (3, 33, 40, 0.3), (130, 70, 65, 0.2)], rows=["v"], like="W", any_dtype=["v"],
        variants={"one sweep": {"seed": 5}, "three sweeps": {"seed": 6, "n_steps": 3, "beta": 0.5}},
    )  # fmt: skip


def small(n=35, nv=37, nh=41, density=0.3, clamp=False, options=({},)):
    """A small case; every backend draws the same chain."""

    def make():
        W, vbias, hbias = machine(nv, nh, dtype=torch.float64)
        v = states(n, nv, density, torch.float64)
        given = {"v": v, "W": W, "vbias": vbias, "hbias": hbias}
        return given | {"clamp": states(1, nv, 0.3)[0].bool()} if clamp else given

    return Small(make, options, exact=True)


SMALL = {
    "rbm_gibbs": small(options=[{"seed": 3, "n_steps": n, "beta": beta} for n in (1, 3) for beta in (1.0, 0.5)]),
    "rbm_gibbs (one chain)": small(1, options=[{"seed": 4}]),
    "rbm_gibbs (one unit)": small(35, 1, 1, options=[{"seed": 5}]),
    "rbm_gibbs (clamped)": small(clamp=True, options=[{"seed": 6, "n_steps": 2}]),
    "rbm_gibbs (density 0.02)": small(130, 150, 137, 0.02, options=[{"seed": 7}]),
    "rbm_gibbs (density 0.7)": small(130, 150, 137, 0.7, options=[{"seed": 7}]),
}


# --- the same bits everywhere -----------------------------------------------------------------------------------------

# (chains, visible, hidden, density): one unit, odd sizes, just around words and panels, sparse and dense; no chain; so
# many that a GPU's blocks take 32 chains
SIZES = [
    (1, 1, 1, 0.5), (3, 5, 7, 0.5), (17, 33, 64, 0.9), (70, 100, 65, 0.04), (33, 64, 129, 0.5), (0, 4, 3, 0.5),
    (2070, 9, 5, 0.5),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", ["plain", "beta and clamp per chain", "one beta and clamp"])
def test_every_backend_draws_the_same_chain(kernels, size, options):
    n, nv, nh, density = size
    v, parameters = states(n, nv, density, device=kernels.device), machine(nv, nh, device=kernels.device)
    g = torch.Generator().manual_seed(1)
    beta, clamp = 2 * torch.rand(n, generator=g), torch.rand(n, nv, generator=g) < 0.3
    kwargs = {
        "plain": {},
        "beta and clamp per chain": {"beta": beta, "clamp": clamp},
        "one beta and clamp": {"beta": 0.7, "clamp": clamp[0] if n else torch.ones(nv, dtype=torch.bool)},
    }[options]
    want = by_reference(v, *parameters, n_steps=3, seed=-5, **kwargs)
    on_device = {k: x.to(kernels.device) if isinstance(x, torch.Tensor) else x for k, x in kwargs.items()}
    got = ops.rbm_gibbs(v, *parameters, n_steps=3, seed=-5, **on_device)
    assert same(got, want)
    if options != "plain":
        held = kwargs["clamp"].to(kernels.device).expand(n, nv)
        assert torch.equal(got[0][held], v[held])


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
     torch.bool],
    ids=str,
)  # fmt: skip
def test_state_dtypes(kernels, dtype):
    v, parameters = states(21, 40, device=kernels.device), machine(40, 35, device=kernels.device)
    want = ops.rbm_gibbs(v, *parameters, seed=3)
    got = ops.rbm_gibbs(v.to(dtype), *parameters, seed=3)
    assert same(got, [x.to(dtype) for x in want])


@pytest.mark.parametrize("scale", [1e30, 3e37, 1.0, 1e-6, 1e-30, 1e-44, 0.0], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_of_any_size(kernels, scale, dtype):
    v, parameters = states(19, 37, device=kernels.device), machine(37, 50, scale, dtype, kernels.device)
    assert same(ops.rbm_gibbs(v, *parameters, seed=8), by_reference(v, *parameters, seed=8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_weights_are_raised(kernels, dtype):
    v, parameters = states(9, 20, device=kernels.device), machine(20, 30, 0.3, dtype, kernels.device)
    assert same(ops.rbm_gibbs(v, *parameters, seed=8), ops.rbm_gibbs(v, *(p.float() for p in parameters), seed=8))


def test_float64_beyond_float32(kernels):
    v, parameters = states(19, 37, device=kernels.device), machine(37, 50, 1e200, torch.float64, kernels.device)
    assert same(ops.rbm_gibbs(v, *parameters, seed=8), by_reference(v, *parameters, seed=8))


def test_one_heavy_weight_and_ties(kernels):
    """Multiples of half a unit round to even; the largest weight needs its three bytes to the last value."""
    W = torch.full((40, 40), 0.5) * torch.arange(-800, 800).reshape(40, 40)
    W[3, 4] = 2.0**23 - 0.5
    v, zero = states(16, 40, device=kernels.device), torch.zeros(40, device=kernels.device)
    args = (v, W.to(kernels.device), zero, zero)
    assert same(ops.rbm_gibbs(*args, seed=1, beta=1e-3), by_reference(*args, seed=1, beta=1e-3))


def test_large_batch_and_many_units(kernels):
    """Several blocks of chains and panels of units, on both ways of summing."""
    n, nv, nh = (150, 90, 70) if kernels.name == "simt" else (1100, 260, 200)
    parameters = machine(nv, nh, 0.1, device=kernels.device)
    for density in (0.03, 0.6):
        v = states(n, nv, density, device=kernels.device)
        assert same(ops.rbm_gibbs(v, *parameters, seed=2, n_steps=2), by_reference(v, *parameters, seed=2, n_steps=2))


# --- splitting and resuming -------------------------------------------------------------------------------------------


def test_threads_do_not_matter(kernels):
    v, parameters = states(200, 150, 0.2, device=kernels.device), machine(150, 130, device=kernels.device)
    torch.set_num_threads(1)
    want = ops.rbm_gibbs(v, *parameters, seed=1, n_steps=2)
    torch.set_num_threads(3)
    assert same(ops.rbm_gibbs(v, *parameters, seed=1, n_steps=2), want)


def test_chains_can_be_split_and_resumed(backend):
    v, parameters = states(40, 30, device=backend.device), machine(30, 20, device=backend.device)
    want = ops.rbm_gibbs(v, *parameters, seed=7, n_steps=5)
    parts = [ops.rbm_gibbs(v[k : k + 13], *parameters, seed=7, n_steps=5, first_chain=k) for k in range(0, 40, 13)]
    assert same([torch.cat(x) for x in zip(*parts, strict=True)], want)
    middle, _ = ops.rbm_gibbs(v, *parameters, seed=7, n_steps=2)
    assert same(ops.rbm_gibbs(middle, *parameters, seed=7, n_steps=3, first_step=2), want)


def test_leading_dimensions_and_strides(backend):
    parameters = machine(6, 5, device=backend.device)
    v = states(12, 6, device=backend.device)
    want_v, want_h = ops.rbm_gibbs(v, *parameters, seed=1)
    got_v, got_h = ops.rbm_gibbs(v.reshape(3, 4, 6), *parameters, seed=1)
    assert torch.equal(got_v, want_v.reshape(3, 4, 6))
    assert torch.equal(got_h, want_h.reshape(3, 4, 5))
    wide = torch.zeros(12, 12, device=backend.device)
    wide[:, ::2] = v
    W = parameters[0].t().contiguous().t()
    assert same(ops.rbm_gibbs(wide[:, ::2], W, *parameters[1:], seed=1), (want_v, want_h))
    assert same(ops.rbm_gibbs(v[0], *parameters, seed=1), (want_v[0], want_h[0]))
    one = ops.rbm_gibbs(v[:1].expand(12, 6), *parameters, seed=1)
    assert same(ops.rbm_gibbs(v[:1].repeat(12, 1), *parameters, seed=1), one)
    assert ops.rbm_gibbs(v.reshape(2, 0, 6) if v.numel() == 0 else v[:0], *parameters)[1].shape == (0, 5)


# --- the seed ---------------------------------------------------------------------------------------------------------


def test_seed(backend):
    v, parameters = states(8, 30, device=backend.device), machine(30, 20, device=backend.device)
    want = ops.rbm_gibbs(v, *parameters, seed=2**64 - 3)
    tensor = torch.tensor(-3, device=backend.device)
    assert same(ops.rbm_gibbs(v, *parameters, seed=tensor), want)
    assert same(ops.rbm_gibbs(v, *parameters, seed=tensor[None]), want)
    assert not same(ops.rbm_gibbs(v, *parameters, seed=2**32 - 3), want), "the high word counts"
    torch.manual_seed(5)
    first, second = ops.rbm_gibbs(v, *parameters), ops.rbm_gibbs(v, *parameters)
    assert not same(first, second)
    torch.manual_seed(5)
    assert same(ops.rbm_gibbs(v, *parameters), first)
    generators = [torch.Generator(backend.device).manual_seed(9) for _ in range(2)]
    drawn = [ops.rbm_gibbs(v, *parameters, generator=g) for g in generators]
    assert same(*drawn)


def test_philox_known_answers():
    """The vectors that Random123 publishes (kat_vectors)."""
    full = 0xFFFFFFFF
    vectors = [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((full,) * 4, (full,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for counter, key, want in vectors:
        words = draws.philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
        assert " ".join(f"{int(w):08x}" for w in words) == want


def test_exponential_of_the_acceptance():
    a = torch.linspace(0, 79, 1_000_001)
    error = (draws.exp_negative(a).double() / torch.exp(-a.double()) - 1).abs().max()
    assert error < 3e-7
    assert draws.exp_negative(torch.tensor([0.0])).item() == 1.0


def test_fixed_point_error_is_that_of_a_float32_product():
    W, a, b = machine(784, 500, 0.1)
    v = states(64, 784, 0.5)
    qw, _, qb, e = reference.quantise(W, a, b)
    exact = v.double() @ W.double() + b.double()
    ours = (v.double() @ qw.double() + qb.double()) * 2.0**e
    assert (ours - exact).abs().max() <= 4 * (torch.addmm(b, v, W) - exact).abs().max()
    assert (qw.abs().sum(0) + qb.abs()).max() < 2**31


# --- the right distribution -------------------------------------------------------------------------------------------


def enumerate_states(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_stationary_distribution(kernels, beta):
    """Independent chains after many sweeps, against the enumerated machine."""
    nv, nh = 4, 3
    W, a, b = machine(nv, nh, 0.8, torch.float64)
    visible, hidden = enumerate_states(nv), enumerate_states(nh)
    energy = -(visible @ a)[:, None] - hidden @ b - visible @ W @ hidden.t()
    p = torch.softmax(-beta * energy.flatten(), 0).reshape(energy.shape)
    n = 512 if kernels.name == "simt" else 40_000
    v, h = ops.rbm_gibbs(
        torch.zeros(n, nv, device=kernels.device), *(x.to(kernels.device) for x in (W, a, b)), n_steps=40, beta=beta,
        seed=11,
    )  # fmt: skip
    # (v, h) of one sweep is no sample of the joint: v was drawn after h. Both marginals are exact.
    for states_, q in ((v, p.sum(1)), (h, p.sum(0))):
        index = (states_.double().cpu() @ 2.0 ** torch.arange(states_.shape[1] - 1, -1, -1, dtype=torch.float64)).long()
        counts = torch.bincount(index, minlength=len(q)).double()
        statistic = ((counts - n * q) ** 2 / (n * q)).sum().item()
        assert statistic < chi_square_limit(len(q) - 1)


def test_one_sweep_follows_the_conditionals(native):
    """Hidden units are independent given v: pair counts of two units against the product of sigmoids."""
    W, a, b = machine(5, 6, 0.9, torch.float64, seed=3)
    v = states(1, 5, seed=4, dtype=torch.float64)
    n = 100_000
    _, h = ops.rbm_gibbs(v.expand(n, 5), W, a, b, seed=21)
    p = torch.sigmoid(v @ W + b)[0]
    for i, j in itertools.combinations(range(6), 2):
        counts = torch.bincount((2 * h[:, i] + h[:, j]).long(), minlength=4).double()
        q = torch.stack([(1 - p[i]) * (1 - p[j]), (1 - p[i]) * p[j], p[i] * (1 - p[j]), p[i] * p[j]])
        assert ((counts - n * q) ** 2 / (n * q)).sum().item() < chi_square_limit(3)


def test_clamped_units_give_the_conditional_distribution(native):
    W, a, b = machine(5, 4, 0.8, torch.float64, seed=5)
    clamp = torch.tensor([True, False, True, False, False])
    start = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    visible = enumerate_states(5)
    weight = torch.exp(-reference.rbm_free_energy(visible, W, a, b))
    weight[(visible[:, clamp] != start[clamp]).any(1)] = 0
    n = 40_000
    v, _ = ops.rbm_gibbs(start.expand(n, 5), W, a, b, n_steps=40, clamp=clamp, seed=2)
    counts = torch.bincount((v @ 2.0 ** torch.arange(4, -1, -1, dtype=torch.float64)).long(), minlength=32).double()
    q = weight / weight.sum()
    possible = q > 0
    assert counts[~possible].sum() == 0
    statistic = ((counts - n * q)[possible] ** 2 / (n * q)[possible]).sum().item()
    assert statistic < chi_square_limit(int(possible.sum()) - 1)


# --- what cannot be drawn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["W", "vbias", "hbias"])
def test_weights_that_are_not_finite(backend, value, which):
    v, parameters = states(5, 20, device=backend.device), machine(20, 10, device=backend.device)
    parameters[which].view(-1)[3] = value
    for x in ops.rbm_gibbs(v, *parameters, seed=1):
        assert x.isnan().all()
    with pytest.raises(ValueError, match=r"W, vbias, hbias, beta: expected finite values, because torch\.bool states"):
        ops.rbm_gibbs(v.bool(), *parameters, seed=1)


def test_beta_that_is_not_finite(backend):
    v, parameters = states(5, 20, device=backend.device), machine(20, 10, device=backend.device)
    beta = torch.tensor([1.0, math.nan, 0.5, math.inf, 2.0], device=backend.device)
    want = ops.rbm_gibbs(v, *parameters, seed=1, beta=beta.nan_to_num(1.0, 1.0))
    for x, y in zip(ops.rbm_gibbs(v, *parameters, seed=1, beta=beta), want, strict=True):
        assert x[[1, 3]].isnan().all()
        assert torch.equal(x[[0, 2, 4]], y[[0, 2, 4]])
    with pytest.raises(ValueError, match=r"expected finite values, because torch\.int64 states cannot express NaN"):
        ops.rbm_gibbs(v.long(), *parameters, seed=1, beta=beta)


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, math.nan, math.inf])
def test_states_that_are_not_binary(backend, value):
    v, parameters = states(5, 70, device=backend.device), machine(70, 10, device=backend.device)
    v[2, 40] = value
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match="v: expected states that are 0 or 1, got other values"):
            ops.rbm_gibbs(v, *parameters, seed=1)
    else:
        got, _ = ops.rbm_gibbs(v, *parameters, seed=1)
        assert got.isnan().any(1).tolist() == [False, False, True, False, False]


def test_negative_zero_is_zero(backend):
    v, parameters = states(5, 20, device=backend.device), machine(20, 10, device=backend.device)
    assert same(ops.rbm_gibbs(torch.where(v == 0, -0.0, v), *parameters, seed=1), ops.rbm_gibbs(v, *parameters, seed=1))


BAD = {
    "v is a list": (lambda t: {"v": [0.0]}, TypeError, "v: got list, want a torch.Tensor"),
    "complex states": (
        lambda t: {"v": t["v"].to(torch.complex64)},
        TypeError,
        "v: got torch.complex64, want states in a real, integer or bool dtype",
    ),
    "integer weights": (
        lambda t: {"W": t["W"].long()},
        TypeError,
        "W: got torch.int64, want float32, float64, float16 or bfloat16",
    ),
    "dtypes differ": (
        lambda t: {"hbias": t["hbias"].double()},
        TypeError,
        "hbias: got torch.float64, want torch.float32 like W",
    ),
    "transposed W": (
        lambda t: {"W": t["W"].t()},
        ValueError,
        "W: got shape [3, 4], want [n_visible, n_hidden] with n_visible = 4 of v",
    ),
    "wrong vbias": (lambda t: {"vbias": t["hbias"]}, ValueError, "vbias: got shape [3], want [n_visible] of W"),
    "wrong hbias": (lambda t: {"hbias": t["vbias"]}, ValueError, "hbias: got shape [4], want [n_hidden] of W"),
    "no hidden units": (
        lambda t: {"W": t["W"][:, :0], "hbias": t["hbias"][:0]},
        ValueError,
        "W: got shape [4, 0], want at least one visible and one hidden unit",
    ),
    "another device": (
        lambda t: {"v": t["v"].to("meta")},
        ValueError,
        "v: got a tensor on meta, want cpu like W",
    ),
    "no steps": (lambda t: {"n_steps": 0}, ValueError, "n_steps: got 0, want at least 1"),
    "negative chain": (lambda t: {"first_chain": -1}, ValueError, "first_chain: got -1, want at least 0"),
    "wrong beta": (
        lambda t: {"beta": torch.ones(4)},
        ValueError,
        "beta: got shape [4], want a number or one per chain, [5]",
    ),
    "clamp of floats": (
        lambda t: {"clamp": torch.ones(4)},
        TypeError,
        "clamp: got torch.float32, want a torch.bool mask",
    ),
    "wrong clamp": (
        lambda t: {"clamp": torch.ones(3, dtype=torch.bool)},
        ValueError,
        "clamp: got shape [3], want [n_visible] = [4] or that of v, [5, 4]",
    ),
    "two seeds": (
        lambda t: {"seed": 1, "generator": torch.Generator()},
        ValueError,
        "generator, seed: got both, want at most one of them",
    ),
    "seed of floats": (
        lambda t: {"seed": torch.ones(())},
        TypeError,
        "seed: got torch.float32 [], want an int or an int64 tensor of one element",
    ),
    "seed too large": (lambda t: {"seed": 2**64}, ValueError, f"seed: got {2**64}, want 64 bits"),
    "seed is a string": (lambda t: {"seed": "1"}, TypeError, "seed: got str, want an int or an int64 tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(native, name):
    change, error, text = BAD[name]
    W, a, b = machine(4, 3)
    tensors = {"v": states(5, 4), "W": W, "vbias": a, "hbias": b}
    before = [t.clone() for t in tensors.values()]
    with pytest.raises(error, match=re.escape(text) + "$"):
        ops.rbm_gibbs(**{**tensors, **change(tensors)})
    assert same(list(tensors.values()), before)


# --- as an op of PyTorch ----------------------------------------------------------------------------------------------


def test_no_gradient(backend):
    parameters = [p.requires_grad_() for p in machine(4, 3, device=backend.device)]
    v, h = ops.rbm_gibbs(states(5, 4, device=backend.device).requires_grad_(), *parameters)
    assert not v.requires_grad
    assert not h.requires_grad


def test_opcheck(native):
    with RecordOps() as record:
        v, clamp = states(5, 4), torch.tensor([True, False, False, False])
        ops.rbm_gibbs(v, *machine(4, 3), seed=1)
        ops.rbm_gibbs(v.bool(), *machine(4, 3), seed=1, beta=torch.ones(5), clamp=clamp)
    assert len(record.calls) == 2
    for func, args in record.calls:
        torch.library.opcheck(func, args)


def test_compile(native):
    parameters = machine(9, 7)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda v, *p, seed: ops.rbm_gibbs(v, *p, seed=seed, n_steps=2, beta=0.5), fullgraph=True, dynamic=True
    )
    for n in (6, 11):
        v, seed = states(n, 9), torch.tensor(n)
        assert same(compiled(v, *parameters, seed=seed), ops.rbm_gibbs(v, *parameters, seed=seed, n_steps=2, beta=0.5))
    fresh = torch.compile(lambda v, *p: ops.rbm_gibbs(v, *p), fullgraph=True)
    v = states(30, 9)
    assert not same(fresh(v, *parameters), fresh(v, *parameters)), "compiled graphs draw fresh numbers"
    torch._dynamo.reset()


def test_vmap_is_one_call_an_entry(native):
    W, a, b = machine(4, 3)
    v, weights = states(6, 4).reshape(2, 3, 4), torch.stack([W, -W])
    for dims, args in (((0, None), (v, W)), ((None, 0), (v[0], weights)), ((0, 0), (v, weights))):
        got = torch.vmap(lambda v, W: ops.rbm_gibbs(v, W, a, b, seed=4), in_dims=dims)(*args)
        for i in range(2):
            one = ops.rbm_gibbs(*(x[i] if d == 0 else x for x, d in zip(args, dims, strict=True)), a, b, seed=4)
            assert same([x[i] for x in got], one)
    seeds = torch.tensor([1, 2])
    got = torch.vmap(lambda s: ops.rbm_gibbs(v[0], W, a, b, seed=s))(seeds)
    assert same([x[1] for x in got], ops.rbm_gibbs(v[0], W, a, b, seed=2))


def test_autocast_changes_nothing(kernels):
    v, parameters = states(5, 8, dtype=torch.bfloat16, device=kernels.device), machine(8, 6, device=kernels.device)
    want = ops.rbm_gibbs(v, *parameters, seed=1)
    with torch.autocast(kernels.device.type, dtype=torch.bfloat16):
        assert same(ops.rbm_gibbs(v, *parameters, seed=1), want)


@pytest.mark.cuda
def test_cuda_graph_replays_draw_from_the_seed():
    v, parameters = states(64, 40, device="cuda"), machine(40, 30, device="cuda")
    seed = torch.tensor(1, device="cuda")
    ops.rbm_gibbs(v, *parameters, seed=seed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.rbm_gibbs(v, *parameters, seed=seed, n_steps=3)
    for value in (1, 2):
        seed.fill_(value)
        graph.replay()
        assert same(out, ops.rbm_gibbs(v, *parameters, seed=value, n_steps=3))
