"""Layered Gibbs sweeps of deep Boltzmann machines: the same bits everywhere, and the enumerated distribution."""

import itertools
import math
import re

import pytest
import torch

import genfast
from genfast import ops
from genfast.reference import dbm as reference
from genfast.reference import rbm
from tests.harness import RecordOps, Small


def machine(sizes, scale=0.3, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(a, b, generator=g) for a, b in itertools.pairwise(sizes)]
    biases = [torch.randn(n, generator=g) for n in sizes]
    return tuple([(x * scale).to(device, dtype) for x in xs] for xs in (weights, biases))


def states(n, sizes, density=0.5, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.rand(n, units, generator=g) < density).to(device, dtype) for units in sizes]


def to(xs, device):
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in xs]


def by_reference(x, weights, biases, **options):
    with genfast.backend("reference"):
        return ops.dbm_gibbs(to(x, "cpu"), to(weights, "cpu"), to(biases, "cpu"), **options)


def same(got, want):
    return len(got) == len(want) and all(
        a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, want, strict=True)
    )


# --- the same bits everywhere -----------------------------------------------------------------------------------------

# (chains, layers, density): one unit each, odd sizes, around words and panels, sparse and dense, no chain, more chains
# than a GPU's block of 16 takes, every number of layers
SIZES = [
    (1, (1, 1), 0.5), (3, (5, 7, 1), 0.5), (17, (33, 64, 20), 0.9), (70, (100, 65, 40), 0.04),
    (33, (64, 129, 65, 3), 0.5), (0, (4, 3, 2), 0.5), (2070, (9, 5, 4), 0.5), (19, (9, 40, 2, 70, 5), 0.3),
    (5, (3, 4, 5, 6, 7, 6, 5, 33), 0.5),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", ["plain", "beta and clamp per chain", "one beta and clamp", "whole layers"])
def test_every_backend_draws_the_same_chain(kernels, size, options):
    n, sizes, density = size
    x, (weights, biases) = states(n, sizes, density), machine(sizes)
    g = torch.Generator().manual_seed(1)
    masks = [torch.rand(n, units, generator=g) < 0.3 for units in sizes]
    whole = [i % 3 == 0 for i in range(len(sizes))]
    kwargs = {
        "plain": {},
        "beta and clamp per chain": {"beta": 2 * torch.rand(n, generator=g), "clamp": masks},
        "one beta and clamp": {"beta": 0.7, "clamp": [m[0] if n else m.any(0) for m in masks[:-1]] + [None]},
        "whole layers": {"clamp": [w or (None if i == 1 else masks[i]) for i, w in enumerate(whole)]},
    }[options]
    want = by_reference(x, weights, biases, n_steps=3, seed=-5, **kwargs)
    d = kernels.device
    on_device = {k: to(v, d) if isinstance(v, list) else to([v], d)[0] for k, v in kwargs.items()}
    got = ops.dbm_gibbs(to(x, d), to(weights, d), to(biases, d), n_steps=3, seed=-5, **on_device)
    assert same(got, want)
    for i, mask in enumerate(kwargs.get("clamp", [])):
        if mask is not None:
            held = torch.full((n, sizes[i]), True) if mask is True else mask.expand(n, -1)
            assert torch.equal(got[i].cpu()[held], x[i][held])


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool],
    ids=str,
)
def test_state_dtypes(kernels, dtype):
    sizes = (40, 35, 21)
    x, (weights, biases) = states(21, sizes, device=kernels.device), machine(sizes, device=kernels.device)
    want = ops.dbm_gibbs(x, weights, biases, seed=3)
    assert same(
        ops.dbm_gibbs([s.to(dtype) for s in x], weights, biases, seed=3), [w.to(dtype) for w in want]
    )  # fmt: skip


@pytest.mark.parametrize("scale", [1e30, 1.0, 1e-30, 1e-44, 0.0], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_of_any_size(kernels, scale, dtype):
    sizes = (37, 50, 20, 9)
    x, (weights, biases) = states(19, sizes, device=kernels.device), machine(sizes, scale, dtype, kernels.device)
    assert same(ops.dbm_gibbs(x, weights, biases, seed=8), by_reference(x, weights, biases, seed=8))


def test_half_weights_are_raised(kernels):
    sizes, d = (20, 30, 10), kernels.device
    x, (weights, biases) = states(9, sizes, device=d), machine(sizes, 0.3, torch.bfloat16, d)
    wide = [[p.float() for p in ps] for ps in (weights, biases)]
    assert same(ops.dbm_gibbs(x, weights, biases, seed=8), ops.dbm_gibbs(x, *wide, seed=8))


def test_two_hidden_layers_are_an_rbm(native):
    """Between the odd layer and the even ones beside each other: the same fixed point, and the same conditionals."""
    sizes = (13, 9, 6)
    weights, biases = machine(sizes, 0.7)
    q_weights, q_biases, e = reference.quantise(weights, biases)
    W = torch.cat([weights[0], weights[1].t()])
    qw, qv, qh, rbm_e = rbm.quantise(W, torch.cat(biases[::2]), biases[1])
    assert e == rbm_e
    assert torch.equal(qw, torch.cat([q_weights[0], q_weights[1].t()]))
    assert torch.equal(qv, torch.cat(q_biases[::2]))
    assert torch.equal(qh, q_biases[1])


def test_large_batch_and_many_units(kernels):
    """Several blocks of chains and panels of units, on both ways of summing."""
    n, sizes = (150, (90, 70, 130)) if kernels.name == "simt" else (1100, (260, 200, 150))
    weights, biases = machine(sizes, 0.1, device=kernels.device)
    for density in (0.03, 0.6):
        x = states(n, sizes, density, device=kernels.device)
        assert same(
            ops.dbm_gibbs(x, weights, biases, seed=2, n_steps=2), by_reference(x, weights, biases, seed=2, n_steps=2)
        )


def small(sizes=(37, 41, 20), n=35, clamp=False, options=({},)):
    """A small case; every backend draws the same chain."""
    layers = len(sizes)

    def make():
        weights, biases = machine(sizes, dtype=torch.float64)
        x = states(n, sizes, 0.3, torch.float64)
        given = {f"x{i}": s for i, s in enumerate(x)} | {f"W{i}": W for i, W in enumerate(weights)}
        given |= {f"b{i}": b for i, b in enumerate(biases)}
        return given | {f"clamp{i}": m[0].bool() for i, m in enumerate(x)} if clamp else given

    def function(**given):
        lists = [[given.pop(f"{kind}{i}") for i in range(n)] for kind, n in zip("xWb", sizes_of, strict=True)]
        masks = [given.pop(f"clamp{i}") for i in range(layers)] if clamp else None
        return tuple(ops.dbm_gibbs(*lists, clamp=masks, **given))

    sizes_of = (layers, layers - 1, layers)
    return Small(make, options, exact=True, function=function)


SMALL = {
    "dbm_gibbs": small(options=[{"seed": 3, "n_steps": n, "beta": beta} for n in (1, 3) for beta in (1.0, 0.5)]),
    "dbm_gibbs (one chain)": small(n=1, options=[{"seed": 4}]),
    "dbm_gibbs (one unit a layer)": small((1, 1, 1, 1), options=[{"seed": 5}]),
    "dbm_gibbs (clamped)": small(clamp=True, options=[{"seed": 6, "n_steps": 2}]),
    "dbm_gibbs (eight layers)": small((5, 70, 3, 33, 9, 4, 65, 2), options=[{"seed": 7, "n_steps": 2}]),
}


# --- splitting and resuming -------------------------------------------------------------------------------------------


def test_threads_do_not_matter(kernels):
    sizes = (150, 130, 70)
    x, (weights, biases) = states(200, sizes, 0.2, device=kernels.device), machine(sizes, device=kernels.device)
    torch.set_num_threads(1)
    want = ops.dbm_gibbs(x, weights, biases, seed=1, n_steps=2)
    torch.set_num_threads(3)
    assert same(ops.dbm_gibbs(x, weights, biases, seed=1, n_steps=2), want)


def test_chains_can_be_split_and_resumed(backend):
    sizes = (30, 20, 25, 4)
    x, (weights, biases) = states(40, sizes, device=backend.device), machine(sizes, device=backend.device)
    want = ops.dbm_gibbs(x, weights, biases, seed=7, n_steps=5)
    parts = [
        ops.dbm_gibbs([s[k : k + 13] for s in x], weights, biases, seed=7, n_steps=5, first_chain=k)
        for k in range(0, 40, 13)
    ]
    assert same([torch.cat(p) for p in zip(*parts, strict=True)], want)
    middle = ops.dbm_gibbs(x, weights, biases, seed=7, n_steps=2)
    assert same(ops.dbm_gibbs(middle, weights, biases, seed=7, n_steps=3, first_step=2), want)


def test_long_calls_are_cut_without_a_trace(native, monkeypatch):
    sizes = (12, 9, 5)
    x, (weights, biases) = states(150, sizes), machine(sizes)
    g = torch.Generator().manual_seed(0)
    options = {"clamp": [torch.rand(150, n, generator=g) < 0.2 for n in sizes], "beta": torch.rand(150, generator=g)}
    want = ops.dbm_gibbs(x, weights, biases, seed=7, n_steps=5, **options)
    monkeypatch.setattr(genfast.ops.dbm, "_SLICE", 70 * (12 * 9 + 9 * 5) * 2)
    assert same(ops.dbm_gibbs(x, weights, biases, seed=7, n_steps=5, **options), want)


def test_leading_dimensions_and_strides(backend):
    sizes, d = (6, 5, 4), backend.device
    weights, biases = machine(sizes, device=d)
    x = states(12, sizes, device=d)
    want = ops.dbm_gibbs(x, weights, biases, seed=1)
    got = ops.dbm_gibbs([s.reshape(3, 4, -1) for s in x], weights, biases, seed=1)
    assert same(got, [w.reshape(3, 4, -1) for w in want])
    strided = [torch.stack([s, s.new_full(s.shape, torch.nan)], -1)[..., 0] for s in x]
    turned = [W.t().contiguous().t() for W in weights]
    assert same(ops.dbm_gibbs(strided, turned, biases, seed=1), want)
    assert same(ops.dbm_gibbs([s[0] for s in x], weights, biases, seed=1), [w[0] for w in want])
    empty = ops.dbm_gibbs([s[:0].reshape(2, 0, s.shape[1]) for s in x], weights, biases)
    assert [e.shape for e in empty] == [(2, 0, n) for n in sizes]


def test_seed(backend):
    sizes = (30, 20, 10)
    x, (weights, biases) = states(8, sizes, device=backend.device), machine(sizes, device=backend.device)
    want = ops.dbm_gibbs(x, weights, biases, seed=2**64 - 3)
    assert same(ops.dbm_gibbs(x, weights, biases, seed=torch.tensor(-3, device=backend.device)), want)
    torch.manual_seed(5)
    first, second = ops.dbm_gibbs(x, weights, biases), ops.dbm_gibbs(x, weights, biases)
    assert not same(first, second)
    torch.manual_seed(5)
    assert same(ops.dbm_gibbs(x, weights, biases), first)


# --- the right distribution -------------------------------------------------------------------------------------------


def enumerated(sizes, weights, biases, beta=1.0):
    """All joint states `[2^units, units]` and their probabilities."""
    joint = torch.tensor(list(itertools.product([0.0, 1.0], repeat=sum(sizes))), dtype=torch.float64)
    layers = joint.split(sizes, 1)
    energy = -sum(x @ b for x, b in zip(layers, biases, strict=True))
    energy = energy - sum(((x @ W) * y).sum(1) for x, W, y in zip(layers, weights, layers[1:], strict=False))
    return joint, torch.softmax(-beta * energy, 0)


def total_variation(samples, p):
    units = samples.shape[1]
    index = (samples.double() @ 2.0 ** torch.arange(units - 1, -1, -1, dtype=torch.float64)).long()
    return 0.5 * (torch.bincount(index, minlength=len(p)).double() / len(samples) - p).abs().sum().item()


def limit(p, n):
    """Of the total variation of n independent samples, passed by a right sampler but at 1e-6.

    Its mean is at most sum sqrt(p (1 - p) / n) / 2, and one sample moves it by at most 1 / n (McDiarmid).
    """
    return 0.5 * (p * (1 - p) / n).sqrt().sum().item() + math.sqrt(math.log(1e6) / (2 * n))


@pytest.mark.parametrize("sizes", [(2, 2, 1), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("clamped", [False, True], ids=["free", "clamped"])
def test_joint_distribution(native, sizes, clamped):
    """Many chains, looked at twelve times, all layers together: below 0.002 of the enumerated machine."""
    weights, biases = machine(sizes, 0.8, torch.float64, seed=2)
    joint, p = enumerated(sizes, weights, biases, beta=0.9)
    n = 250_000
    options, x = {"beta": 0.9, "seed": 11}, [torch.zeros(n, units, dtype=torch.uint8) for units in sizes]
    if clamped:
        options["clamp"] = masks = [torch.arange(units) == 0 for units in sizes[:-1]] + [None]
        x[0] = torch.ones_like(x[0])
        held = torch.cat([torch.zeros(sizes[-1]).bool() if m is None else m for m in masks])
        first = torch.cat([s[0] for s in x]).double()
        p = torch.where((joint[:, held] == first[held]).all(1), p, 0)
        p = p / p.sum()
    seen = []
    for step in range(12, 36, 2):
        x = ops.dbm_gibbs(x, weights, biases, n_steps=12 if step == 12 else 2, first_step=step, **options)
        seen.append(torch.cat(x, 1))
    assert total_variation(torch.cat(seen), p) < 0.002


def test_joint_distribution_on_every_backend(kernels):
    sizes, d = (3, 2, 2), kernels.device
    weights, biases = machine(sizes, 0.8, torch.float64, seed=2)
    _, p = enumerated(sizes, weights, biases)
    n = 1000 if kernels.name == "simt" else 100_000
    out = ops.dbm_gibbs(states(n, sizes, 0, device=d), to(weights, d), to(biases, d), n_steps=30, seed=11)
    assert total_variation(torch.cat(out, 1).cpu(), p) < limit(p, n)


def test_hidden_layers_given_the_visible_one(native):
    """Whole layer clamped: the data-dependent phase."""
    sizes = (3, 2, 3)
    weights, biases = machine(sizes, 0.8, torch.float64, seed=4)
    joint, p = enumerated(sizes, weights, biases)
    v = torch.tensor([1, 0, 1])
    p = torch.where((joint[:, :3] == v).all(1), p, 0)
    p, n = p / p.sum(), 200_000
    start = [v.expand(n, 3), torch.zeros(n, 2, dtype=torch.int64), torch.zeros(n, 3, dtype=torch.int64)]
    out = ops.dbm_gibbs(start, weights, biases, n_steps=20, clamp=[True, None, None], seed=1)
    assert total_variation(torch.cat(out, 1), p) < limit(p, n)


# --- what cannot be drawn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["weights 0", "weights 1", "biases 2"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite(backend, value, which):
    sizes = (20, 10, 7)
    x, (weights, biases) = states(5, sizes, device=backend.device), machine(sizes, device=backend.device)
    kind, at = which.split()
    (weights if kind == "weights" else biases)[int(at)].view(-1)[3] = value
    assert all(s.isnan().all() for s in ops.dbm_gibbs(x, weights, biases, seed=1))
    with pytest.raises(ValueError, match=r"weights, biases, beta: expected finite values, because torch\.bool states"):
        ops.dbm_gibbs([s.bool() for s in x], weights, biases, seed=1)


def test_beta_that_is_not_finite(backend):
    sizes = (20, 10, 7)
    x, (weights, biases) = states(5, sizes, device=backend.device), machine(sizes, device=backend.device)
    beta = torch.tensor([1.0, math.nan, 0.5, math.inf, 2.0], device=backend.device)
    want = ops.dbm_gibbs(x, weights, biases, seed=1, beta=beta.nan_to_num(1.0, 1.0))
    for a, b in zip(ops.dbm_gibbs(x, weights, biases, seed=1, beta=beta), want, strict=True):
        assert a[[1, 3]].isnan().all()
        assert torch.equal(a[[0, 2, 4]], b[[0, 2, 4]])


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("value", [0.5, -1.0, math.nan])
def test_states_that_are_not_binary(backend, layer, value):
    sizes = (70, 10, 40)
    x, (weights, biases) = states(5, sizes, device=backend.device), machine(sizes, device=backend.device)
    x[layer][2, 7] = value
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match="states: expected 0 or 1, got other values"):
            ops.dbm_gibbs(x, weights, biases, seed=1)
    else:
        got = ops.dbm_gibbs(x, weights, biases, seed=1)[0]
        assert got.isnan().any(1).tolist() == [False, False, True, False, False]


def without(xs, i):
    return [x for j, x in enumerate(xs) if j != i]


def changed(xs, i, x):
    return [x if j == i else y for j, y in enumerate(xs)]


BAD = {
    "states are one tensor": (
        lambda t: {"states": t["states"][0]}, TypeError, "states: got Tensor, want a list of tensors",
    ),
    "a state is a list": (
        lambda t: {"states": changed(t["states"], 1, [0.0])}, TypeError, "states[1]: got list, want a torch.Tensor",
    ),
    "a layer is missing": (
        lambda t: {"states": t["states"][:2]}, ValueError, "states: got 2 layers, want 3: one more than weights",
    ),
    "a layer of another size": (
        lambda t: {"states": changed(t["states"], 1, torch.zeros(5, 4))}, ValueError,
        "states[1]: got shape [5, 4], want [..., 3], the units of layer 1 and leading dimensions as states[0]",
    ),
    "another number of chains": (
        lambda t: {"states": changed(t["states"], 2, torch.zeros(6, 2))}, ValueError,
        "states[2]: got shape [6, 2], want [..., 2], the units of layer 2 and leading dimensions as states[0]",
    ),
    "states of two dtypes": (
        lambda t: {"states": changed(t["states"], 2, t["states"][2].long())}, TypeError,
        "states[2]: got torch.int64, want torch.float32 like states[0]",
    ),
    "complex states": (
        lambda t: {"states": [x.to(torch.complex64) for x in t["states"]]}, TypeError,
        "states[0]: got torch.complex64, want states in a real, integer or bool dtype",
    ),
    "states on another device": (
        lambda t: {"states": changed(t["states"], 0, t["states"][0].to("meta"))}, ValueError,
        "states[0]: got a tensor on meta, want cpu like weights[0]",
    ),
    "sparse states": (
        lambda t: {"states": changed(t["states"], 0, t["states"][0].to_sparse())}, TypeError,
        "states[0]: got a tensor of layout torch.sparse_coo, want a dense one: x.to_dense()",
    ),
    "an array": (
        lambda t: {"weights": changed(t["weights"], 1, t["weights"][1].numpy())}, TypeError,
        "weights[1]: got ndarray, want a torch.Tensor: torch.from_numpy makes one",
    ),
    "no weights": (
        lambda t: {"weights": []}, ValueError,
        "weights: got 0 matrices, want 1 to 7: one between each layer and the next",
    ),
    "too many layers": (
        lambda t: {"weights": t["weights"] * 4}, ValueError,
        "weights: got 8 matrices, want 1 to 7: one between each layer and the next",
    ),
    "integer weights": (
        lambda t: {"weights": [W.long() for W in t["weights"]]}, TypeError,
        "weights[0]: got torch.int64, want float32, float64, float16 or bfloat16",
    ),
    "dtypes differ": (
        lambda t: {"biases": changed(t["biases"], 2, t["biases"][2].double())}, TypeError,
        "biases[2]: got torch.float64, want torch.float32 like weights[0]",
    ),
    "weights that do not fit": (
        lambda t: {"weights": changed(t["weights"], 1, t["weights"][1].t())}, ValueError,
        "weights[1]: got shape [2, 3], want [n_1, n_2] with n_1 = 3 of weights[0]",
    ),
    "an empty layer": (
        lambda t: {"weights": changed(t["weights"], 1, torch.zeros(3, 0))}, ValueError,
        "weights[1]: got shape [3, 0], want at least one unit in every layer",
    ),
    "a bias is missing": (
        lambda t: {"biases": t["biases"][:2]}, ValueError, "biases: got 2 vectors, want 3: one more than weights",
    ),
    "a bias of another size": (
        lambda t: {"biases": t["biases"][::-1]}, ValueError,
        "biases[0]: got shape [2], want [4], the units of layer 0",
    ),
    "no steps": (lambda t: {"n_steps": 0}, ValueError, "n_steps: got 0, want at least 1"),
    "negative chain": (lambda t: {"first_chain": -1}, ValueError, "first_chain: got -1, want at least 0"),
    "wrong beta": (
        lambda t: {"beta": torch.ones(4)}, ValueError, "beta: got shape [4], want a number or one per chain, [5]",
    ),
    "clamp is one mask": (
        lambda t: {"clamp": torch.ones(4).bool()}, TypeError,
        "clamp: got Tensor, want a list of masks, one for each layer",
    ),
    "too few masks": (
        lambda t: {"clamp": [True]}, ValueError, "clamp: got 1 masks, want 3, one (or None, or True) for each layer",
    ),
    "clamp of floats": (
        lambda t: {"clamp": [None, torch.ones(3), None]}, TypeError,
        "clamp[1]: got torch.float32, want a torch.bool mask, None or True",
    ),
    "wrong clamp": (
        lambda t: {"clamp": [None, torch.ones(4).bool(), None]}, ValueError,
        "clamp[1]: got shape [4], want [3], the units of layer 1, or [5, 3] like states[1]",
    ),
    "two seeds": (
        lambda t: {"seed": 1, "generator": torch.Generator()}, ValueError,
        "generator, seed: got both, want at most one of them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(native, name):
    change, error, text = BAD[name]
    sizes = (4, 3, 2)
    weights, biases = machine(sizes)
    given = {"states": states(5, sizes), "weights": weights, "biases": biases}
    before = [t.clone() for ts in given.values() for t in ts]
    with pytest.raises(error, match=re.escape(text) + "$"):
        ops.dbm_gibbs(**{**given, **change(given)})
    assert same([t for ts in given.values() for t in ts], before)


# --- as an op of PyTorch ----------------------------------------------------------------------------------------------


def test_no_gradient_and_no_change_of_arguments(backend):
    sizes = (4, 3, 2)
    weights, biases = machine(sizes, device=backend.device)
    x = states(5, sizes, device=backend.device)
    before = [t.clone() for t in (*x, *weights, *biases)]
    for t in (*x, *weights, *biases):
        t.requires_grad_()
    assert not any(s.requires_grad for s in ops.dbm_gibbs(x, weights, biases))
    assert same([t.detach() for t in (*x, *weights, *biases)], before)


def test_opcheck(native):
    sizes = (5, 4, 3)
    x, (weights, biases) = states(6, sizes), machine(sizes)
    with RecordOps() as record:
        ops.dbm_gibbs(x, weights, biases, seed=1)
        clamp = [torch.tensor([True, False, False, False, False]), None, True]
        ops.dbm_gibbs([s.bool() for s in x], weights, biases, seed=1, beta=torch.ones(6), clamp=clamp)
    assert len(record.calls) == 2
    for func, args in record.calls:
        torch.library.opcheck(func, args)


def test_meta_tensors(native):
    sizes = (5, 4, 3)
    x, (weights, biases) = states(6, sizes, device="meta"), machine(sizes, device="meta")
    out = ops.dbm_gibbs(x, weights, biases, n_steps=2)
    assert [(s.shape, s.device.type) for s in out] == [((6, n), "meta") for n in sizes]


def test_compile(native):
    sizes = (9, 7, 4)
    weights, biases = machine(sizes)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, w, b, seed: ops.dbm_gibbs(x, w, b, seed=seed, n_steps=2, beta=0.5),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for n in (6, 11):
        x, seed = states(n, sizes), torch.tensor(n)
        want = ops.dbm_gibbs(x, weights, biases, seed=seed, n_steps=2, beta=0.5)
        assert same(compiled(x, weights, biases, seed), want)
    torch._dynamo.reset()


def test_vmap_is_one_call_an_entry(native):
    sizes = (4, 3, 2)
    weights, biases = machine(sizes)
    x = [s.reshape(2, 3, -1) for s in states(6, sizes)]
    got = torch.vmap(lambda *x: tuple(ops.dbm_gibbs(x, weights, biases, seed=4)))(*x)
    for i in range(2):
        assert same([g[i] for g in got], ops.dbm_gibbs([s[i] for s in x], weights, biases, seed=4))


@pytest.mark.cuda
def test_cuda_graph_replays_draw_from_the_seed():
    sizes = (40, 30, 20)
    x, (weights, biases) = states(64, sizes, device="cuda"), machine(sizes, device="cuda")
    seed = torch.tensor(1, device="cuda")
    ops.dbm_gibbs(x, weights, biases, seed=seed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.dbm_gibbs(x, weights, biases, seed=seed, n_steps=3)
    for value in (1, 2):
        seed.fill_(value)
        graph.replay()
        assert same(out, ops.dbm_gibbs(x, weights, biases, seed=value, n_steps=3))
