import itertools
import math
import re

import pytest
import torch

import genfast
from genfast import ops
from genfast.reference import boltzmann as reference
from tests.harness import OpSpec, OpTests, RecordOps, Small


def machine(n, scale=0.3, dtype=torch.float32, device="cpu", seed=0):
    """Couplings and biases of the size `scale`."""
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=g, dtype=torch.float64).triu(1) * scale
    c = torch.randn(n, generator=g, dtype=torch.float64) * scale
    J = A.to(dtype)
    return (J + J.t()).to(device), c.to(device, dtype)


def states(n, d, density=0.5, values="01", dtype=torch.float32, device="cpu", seed=0):
    s = (torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) < density).to(torch.int64)
    return (s if values == "01" else 2 * s - 1).to(device, dtype)


def by_reference(s, *parameters, **options):
    with genfast.backend("reference"):
        options = {k: x.cpu() if isinstance(x, torch.Tensor) else x for k, x in options.items()}
        return ops.boltzmann_gibbs(s.cpu(), *(p.cpu() for p in parameters), **options).to(s.device)


def same(got, want):
    return got.dtype == want.dtype and torch.equal(got, want)


def make(case, generator):
    n, d, density = case
    A = torch.randn(d, d, generator=generator, dtype=torch.float64).triu(1) * 0.3
    s = (torch.rand(n, d, generator=generator) < density).double()
    return {"s": s, "J": A + A.t(), "bias": torch.randn(d, generator=generator, dtype=torch.float64) * 0.3}


def gibbs(s, J, bias, **options):
    return (ops.boltzmann_gibbs(s, J, bias, **options),)


def gibbs_reference(s, J, bias, **options):
    return (reference.boltzmann_gibbs(s, J, bias, **options),)


class TestGibbs(OpTests):
    spec = OpSpec(
        name="boltzmann_gibbs", function=gibbs, reference=gibbs_reference, make=make, outputs=["states"],
        cases=[(5, 7, 0.5), (3, 33, 0.3), (70, 65, 0.2)], rows=["s"], like="J", any_dtype=["s"],
        variants={
            "one sweep": {"seed": 5},
            "three sweeps": {"seed": 6, "n_sweeps": 3, "temperature": 2.0, "order": "random"},
        },
    )  # fmt: skip


def small(n=35, d=37, values="01", clamp=False, options=({},)):
    """A small case; every backend draws the same chain."""

    def make():
        J, bias = machine(d, dtype=torch.float64)
        given = {"s": states(n, d, 0.4, values, torch.float64), "J": J, "bias": bias}
        return given | {"clamp": states(1, d, 0.3)[0].bool()} if clamp else given

    return Small(make, [{"values": values, **o} for o in options], exact=True)


SMALL = {
    "boltzmann_gibbs": small(
        options=[{"seed": 3, "n_sweeps": n, "temperature": t} for n in (1, 3) for t in (1.0, 2.0)]
    ),
    "boltzmann_gibbs (one chain)": small(1, 65, options=[{"seed": 4}]),
    "boltzmann_gibbs (one unit)": small(35, 1, options=[{"seed": 5}]),
    "boltzmann_gibbs (spins, clamped)": small(19, 41, "pm1", clamp=True, options=[{"seed": 6, "n_sweeps": 2}]),
    "boltzmann_gibbs (random order)": small(19, 70, options=[{"seed": 7, "n_sweeps": 2, "order": "random"}]),
}


# --- the same bits everywhere -----------------------------------------------------------------------------------------

# (chains, units, density): one unit, odd sizes, around blocks of 32 units, quads and registers, no chain, several tasks
SIZES = [
    (1, 1, 0.5),
    (3, 5, 0.5),
    (17, 33, 0.9),
    (70, 100, 0.04),
    (33, 64, 0.5),
    (0, 4, 0.5),
    (40, 31, 0.5),
    (5, 290, 0.3),
]
OPTIONS = {
    "01": {},
    "spins": {"values": "pm1"},
    "random order": {"order": "random"},
    "spins, random order, all per chain": {"values": "pm1", "order": "random", "per chain": True},
    "temperature, schedule and clamp": {
        "temperature": 0.7, "schedule": torch.tensor([1.5, 0.5, 0.1]), "per chain": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_backend_draws_the_same_chain(kernels, size, options):
    n, d, density = size
    options = dict(OPTIONS[options])
    s = states(n, d, density, options.get("values", "01"), device=kernels.device)
    parameters = machine(d, device=kernels.device)
    g = torch.Generator().manual_seed(1)
    temperature, clamp = 0.2 + 2 * torch.rand(n, generator=g), torch.rand(n, d, generator=g) < 0.3
    if "per chain" in options:
        options |= {"temperature": temperature, "clamp": clamp} if options.pop("per chain") else {"clamp": clamp.any(0)}
    options.setdefault("n_sweeps", 3)
    want = by_reference(s, *parameters, seed=-5, **options)
    on_device = {k: x.to(kernels.device) if isinstance(x, torch.Tensor) else x for k, x in options.items()}
    got = ops.boltzmann_gibbs(s, *parameters, seed=-5, **on_device)
    assert same(got, want)
    if "clamp" in options:
        held = on_device["clamp"].expand(n, d)
        assert torch.equal(got[held], s[held])


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
     torch.bool],
    ids=str,
)  # fmt: skip
def test_state_dtypes(kernels, dtype):
    parameters = machine(70, device=kernels.device)
    for values in ["01"] if dtype in (torch.bool, torch.uint8) else ["01", "pm1"]:
        s = states(21, 70, values=values, device=kernels.device)
        want = ops.boltzmann_gibbs(s, *parameters, seed=3, values=values)
        assert same(ops.boltzmann_gibbs(s.to(dtype), *parameters, seed=3, values=values), want.to(dtype))


@pytest.mark.parametrize("scale", [1e30, 3e37, 1.0, 1e-6, 1e-30, 1e-44, 0.0], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("values", ["01", "pm1"])
def test_weights_of_any_size(kernels, scale, dtype, values):
    s, parameters = states(19, 37, 0.5, values, device=kernels.device), machine(37, scale, dtype, kernels.device)
    got = ops.boltzmann_gibbs(s, *parameters, seed=8, values=values)
    assert same(got, by_reference(s, *parameters, seed=8, values=values))


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e3, 1e38])
def test_any_temperature(kernels, temperature):
    s, parameters = states(19, 37, device=kernels.device), machine(37, device=kernels.device)
    options = {"seed": 8, "temperature": temperature, "schedule": [1e-25, 1.0, 3e-3, 1e20], "values": "01"}
    assert same(ops.boltzmann_gibbs(s, *parameters, **options), by_reference(s, *parameters, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_weights_are_raised(kernels, dtype):
    s, parameters = states(9, 20, device=kernels.device), machine(20, 0.3, dtype, kernels.device)
    want = ops.boltzmann_gibbs(s, *(p.float() for p in parameters), seed=8)
    assert same(ops.boltzmann_gibbs(s, *parameters, seed=8), want)


def test_float64_beyond_float32(kernels):
    s, parameters = states(19, 37, device=kernels.device), machine(37, 1e200, torch.float64, kernels.device)
    assert same(ops.boltzmann_gibbs(s, *parameters, seed=8), by_reference(s, *parameters, seed=8))


def test_one_heavy_weight_and_ties(kernels):
    """Multiples of half a unit round to even; the largest weight needs its three bytes to the last value."""
    J = (torch.full((40, 40), 0.5) * torch.arange(-800, 800).reshape(40, 40)).triu(1)
    J[3, 14] = 2.0**23 - 0.5
    s, J = states(16, 40, device=kernels.device), (J + J.t()).to(kernels.device)
    for values in ("01", "pm1"):
        args = (2 * s - 1 if values == "pm1" else s, J, torch.zeros(40, device=kernels.device))
        options = {"seed": 1, "temperature": 1e3, "values": values}
        assert same(ops.boltzmann_gibbs(*args, **options), by_reference(*args, **options))


def test_many_units(kernels):
    """So many that a chain of a GPU lives in global memory; the emulation says so from 1,200 units on."""
    d = 1250 if kernels.name == "simt" else 2050
    s, parameters = states(3, d, 0.1, device=kernels.device), machine(d, 0.1, device=kernels.device)
    options = {"seed": 1, "temperature": 2.0}
    assert same(ops.boltzmann_gibbs(s, *parameters, **options), by_reference(s, *parameters, **options))


# --- splitting and resuming -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_threads_do_not_matter(kernels, order):
    s, parameters = states(200, 150, 0.2, device=kernels.device), machine(150, device=kernels.device)
    torch.set_num_threads(1)
    want = ops.boltzmann_gibbs(s, *parameters, seed=1, n_sweeps=5, order=order)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert same(ops.boltzmann_gibbs(s, *parameters, seed=1, n_sweeps=5, order=order), want)


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_chains_can_be_split_and_resumed(backend, order):
    s, parameters = states(40, 30, device=backend.device), machine(30, device=backend.device)
    schedule = torch.linspace(2, 0.5, 5, device=backend.device)
    run = lambda s, T=schedule, **o: ops.boltzmann_gibbs(s, *parameters, seed=7, schedule=T, order=order, **o)  # noqa: E731
    want = run(s)
    parts = [run(s[k : k + 13], first_chain=k) for k in range(0, 40, 13)]
    assert same(torch.cat(parts), want)
    assert same(run(run(s, schedule[:2]), schedule[2:], first_step=2), want)


def test_long_calls_are_cut(native, monkeypatch):
    """Slices of chains and sweeps put together are the whole."""
    s, parameters = states(200, 20), machine(20)
    g = torch.Generator().manual_seed(1)
    options = {
        "seed": 7, "schedule": torch.linspace(2, 0.5, 9), "temperature": 0.5 + torch.rand(200, generator=g),
        "clamp": torch.rand(200, 20, generator=g) < 0.2,
    }  # fmt: skip
    want = ops.boltzmann_gibbs(s, *parameters, **options)
    calls = []
    kernel = genfast._native.boltzmann_gibbs
    monkeypatch.setattr(genfast._native, "boltzmann_gibbs", lambda *a: calls.append(a[0].shape[0]) or kernel(*a))
    monkeypatch.setattr("genfast.ops.boltzmann._SLICE", 2 * 64 * 20 * 84)
    monkeypatch.setattr("genfast.ops.boltzmann._CHAINS", 64)
    assert same(ops.boltzmann_gibbs(s, *parameters, **options), want)
    assert calls == [64] * 15 + [8] * 5
    assert same(ops.boltzmann_gibbs(s.to(torch.int16), *parameters, **options), want.to(torch.int16))


def test_leading_dimensions_and_strides(backend):
    parameters = machine(6, device=backend.device)
    s = states(12, 6, device=backend.device)
    want = ops.boltzmann_gibbs(s, *parameters, seed=1)
    temperature = torch.linspace(1, 2, 12, device=backend.device)
    assert torch.equal(ops.boltzmann_gibbs(s.reshape(3, 4, 6), *parameters, seed=1), want.reshape(3, 4, 6))
    hot = ops.boltzmann_gibbs(s, *parameters, seed=1, temperature=temperature)
    got = ops.boltzmann_gibbs(s.reshape(3, 4, 6), *parameters, seed=1, temperature=temperature.reshape(3, 4))
    assert torch.equal(got, hot.reshape(3, 4, 6))
    wide = torch.zeros(12, 12, device=backend.device)
    wide[:, ::2] = s
    assert same(ops.boltzmann_gibbs(wide[:, ::2], *parameters, seed=1), want)
    assert same(ops.boltzmann_gibbs(s[0], *parameters, seed=1), want[0])
    assert ops.boltzmann_gibbs(s[:0], *parameters).shape == (0, 6)


def test_seed(backend):
    s, parameters = states(8, 30, device=backend.device), machine(30, device=backend.device)
    want = ops.boltzmann_gibbs(s, *parameters, seed=2**64 - 3)
    assert same(ops.boltzmann_gibbs(s, *parameters, seed=torch.tensor(-3, device=backend.device)), want)
    assert not same(ops.boltzmann_gibbs(s, *parameters, seed=2**32 - 3), want), "the high word counts"
    torch.manual_seed(5)
    first, second = ops.boltzmann_gibbs(s, *parameters), ops.boltzmann_gibbs(s, *parameters)
    assert not same(first, second)
    torch.manual_seed(5)
    assert same(ops.boltzmann_gibbs(s, *parameters), first)


# --- the right distribution -------------------------------------------------------------------------------------------


def probabilities(J, c, temperature, values):
    """The distribution of all states, by enumeration; state k is k in binary, the first unit its lowest bit."""
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=J.shape[0])), dtype=torch.float64).flip(1)
    s = every if values == "01" else 2 * every - 1
    energy = -0.5 * torch.einsum("ki,ij,kj->k", s, J.double(), s) - s @ c.double()
    return every, torch.softmax(-energy / temperature, 0)


def follows(s, p):
    """Whether independent samples have the distribution p: total variation below 0.002, and a chi-square test that a
    right sampler fails with a probability of 1e-6."""
    index = ((s > 0).double() @ 2.0 ** torch.arange(s.shape[1], dtype=torch.float64)).long()
    n, counts, possible = len(s), torch.bincount(index, minlength=len(p)).double(), p > 0
    assert 0.5 * (counts / n - p).abs().sum() < 0.002
    assert counts[~possible].sum() == 0
    degrees = int(possible.sum()) - 1  # the quantile of Wilson & Hilferty; z = 4.7534
    limit = degrees * (1 - 2 / (9 * degrees) + 4.7534 * math.sqrt(2 / (9 * degrees))) ** 3
    assert ((counts - n * p)[possible] ** 2 / (n * p)[possible]).sum() < limit


N = 1_000_000


@pytest.mark.parametrize("values", ["01", "pm1"])
@pytest.mark.parametrize("order", ["fixed", "random"])
def test_total_variation(native, values, order):
    """A million independent chains, started anywhere, against the enumerated machine; below 0.002."""
    J, c = machine(4, 0.6, seed=1)
    p = probabilities(J, c, 1.5, values)[1]
    s = ops.boltzmann_gibbs(
        torch.full((N, 4), reference.VALUES[values][0], dtype=torch.int32), J, c, n_sweeps=15, temperature=1.5,
        values=values, order=order, seed=11,
    )  # fmt: skip
    follows(s, p)


@pytest.mark.parametrize("values", ["01", "pm1"])
def test_clamped_units_give_the_conditional_distribution(native, values):
    J, c = machine(6, 0.5, seed=2)
    clamp, low = torch.tensor([True, False, False, True, False, False]), reference.VALUES[values][0]
    start = torch.tensor([1, low, low, low, low, low], dtype=torch.float32)
    every, p = probabilities(J, c, 2.0, values)
    p = torch.where((every[:, 0] == 1) & (every[:, 3] == 0), p, 0)
    s = ops.boltzmann_gibbs(start.expand(N, 6), J, c, n_sweeps=20, temperature=2.0, clamp=clamp, values=values, seed=12)
    follows(s, p / p.sum())


def test_each_chain_has_its_temperature(native):
    J, c = machine(4, 0.8, seed=3)
    temperatures = torch.tensor([0.8, 2.5])
    s = ops.boltzmann_gibbs(
        torch.zeros(2 * N, 4, dtype=torch.uint8), J, c, n_sweeps=15, temperature=temperatures.repeat(N), seed=13
    )  # fmt: skip
    for k, T in enumerate(temperatures.tolist()):
        follows(s[k::2], probabilities(J, c, T, "01")[1])


def test_one_sweep_draws_unit_after_unit(native):
    """From a given state, the distribution after a sweep is the product of the units' conditionals, in order."""
    J, c = machine(4, 0.9, seed=3)
    start = torch.tensor([1.0, 0.0, 1.0, 1.0])
    every, _ = probabilities(J, c, 1.0, "01")
    want = torch.ones(len(every), dtype=torch.float64)
    for k, final in enumerate(every):
        s = start.double().clone()
        for i in range(4):
            on = torch.sigmoid(J[i].double() @ s + c[i].double())
            want[k] *= on if final[i] else 1 - on
            s[i] = final[i]
    s = ops.boltzmann_gibbs(start.expand(N, 4), J, c, seed=21)
    follows(s, want)


def test_a_schedule_cools(native):
    """The last sweeps of a schedule decide; its factors multiply the temperature."""
    J, c = machine(4, 0.8, seed=4)
    schedule = torch.cat([torch.linspace(10, 1, 8), torch.ones(12)])
    s = ops.boltzmann_gibbs(torch.zeros(N, 4, dtype=torch.uint8), J, c, temperature=0.7, schedule=schedule, seed=14)
    follows(s, probabilities(J, c, 0.7, "01")[1])
    J, c = machine(12, seed=5)
    every, p = probabilities(J, c, 0.01, "pm1")
    ground = 2 * every[p.argmax()] - 1
    s = torch.ones(64, 12)
    s = ops.boltzmann_gibbs(s, J, c, schedule=torch.logspace(1, -3, 200), values="pm1", order="random", seed=15)
    assert (s == ground).all(1).float().mean() > 0.5, "annealing finds the ground state"


def test_random_orders_are_permutations():
    seed = torch.tensor(3)
    orders = torch.tensor([reference.random_order(seed, 6, step) for step in range(1200)])
    assert torch.equal(orders.sort(1).values, torch.arange(6).expand(1200, 6))
    for place in range(6):
        counts = torch.bincount(orders[:, place], minlength=6).double()
        assert ((counts - 200) ** 2 / 200).sum() < 36.5  # the quantile of 1 - 1e-6, 5 degrees of freedom


# --- what cannot be drawn ---------------------------------------------------------------------------------------------


def spoilt(t, name, at, value):
    x = t[name].clone()
    x[at] = value
    return {name: x}


FAULTS = {
    "asymmetric": (
        lambda t: spoilt(t, "J", (40, 3), 2.5),
        "J: got J[3, 40] = 0 and J[40, 3] = 2.5, want a symmetric matrix",
    ),
    "diagonal": (
        lambda t: spoilt(t, "J", (44, 44), -1.0),
        "J: got J[44, 44] = -1, want zeros on the diagonal (a unit's own field is its bias)",
    ),
    "NaN in J": (lambda t: spoilt(t, "J", (2, 1), math.nan), "J: got NaN or infinity, want finite numbers"),
    "infinity in bias": (lambda t: spoilt(t, "bias", 44, -math.inf), "bias: got NaN or infinity, want finite numbers"),
    "temperature 0": (lambda t: {"temperature": torch.tensor(0.0)}, "temperature: got 0, want positive finite numbers"),
    "a negative factor": (
        lambda t: {"schedule": torch.tensor([1.0, -2.0])},
        "schedule: got -2, want positive finite numbers",
    ),
}  # fmt: skip
CHAIN_FAULTS = {
    "temperature NaN": (
        lambda t: {"temperature": torch.tensor([1.0, 1.0, math.nan, 1.0, 1.0])},
        "temperature: got nan, want positive finite numbers",
    ),
    "infinite": (
        lambda t: {"temperature": torch.tensor([1.0, 1.0, math.inf, 1.0, 1.0])},
        "temperature: got inf, want positive finite numbers",
    ),
    "the inverse is infinite": (
        lambda t: {"temperature": torch.tensor([1.0, 1.0, 1e-39, 1.0, 1.0])},
        "temperature: got 1e-39, want positive finite numbers",
    ),
    "a state of one half": (lambda t: spoilt(t, "s", (2, 40), 0.5), "s: got 0.5, want states that are 0 or 1"),
    "a state of NaN": (lambda t: spoilt(t, "s", (2, 3), math.nan), "s: got nan, want states that are 0 or 1"),
    "a spin": (lambda t: spoilt(t, "s", (2, 44), -1.0), "s: got -1, want states that are 0 or 1"),
    "no spin": (lambda t: spoilt({"s": 2 * t["s"] - 1}, "s", (2, 33), 0.0) | {"values": "pm1"},
                "s: got 0, want states that are -1 or 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FAULTS, *CHAIN_FAULTS])
def test_what_cannot_be_drawn(backend, name):
    change, text = {**FAULTS, **CHAIN_FAULTS}[name]
    J, c = torch.zeros(45, 45), torch.zeros(45)
    good = {"s": states(5, 45), "J": J, "bias": c, "seed": 1}
    arguments = {
        k: x.to(backend.device) if isinstance(x, torch.Tensor) else x for k, x in {**good, **change(good)}.items()
    }
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match=re.escape(text) + "$"):
            ops.boltzmann_gibbs(**arguments)
        return
    got = ops.boltzmann_gibbs(**arguments).isnan().all(1).tolist()
    assert got == ([False, False, True, False, False] if name in CHAIN_FAULTS else [True] * 5)
    if name not in ("a state of one half", "a state of NaN"):
        with pytest.raises(ValueError, match=re.escape(text) + "$"):
            ops.boltzmann_gibbs(**{**arguments, "s": arguments["s"].to(torch.int8)})


@pytest.mark.parametrize("d", [3, 40, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_place_of_an_asymmetry_is_seen(kernels, d, dtype):
    J, c = machine(d, dtype=dtype, device=kernels.device)
    s = states(2, d, device=kernels.device)
    for k in range(0, d * d, 1 if d < 10 else 97):
        i, j = divmod(k, d)
        bad = J.clone()
        bad[i, j] += 0.5
        if kernels.device.type == "cpu":
            with pytest.raises(ValueError, match=r"zeros on the diagonal|want a symmetric matrix"):
                ops.boltzmann_gibbs(s, bad, c, seed=1)
        else:
            assert ops.boltzmann_gibbs(s, bad, c, seed=1).isnan().all()


def test_negative_zero_is_zero(backend):
    s, (J, c) = states(5, 40, device=backend.device), machine(40, device=backend.device)
    J[J.abs() < 0.1] = 0.0
    signed = torch.where((J == 0) & (torch.rand(40, 40, device=J.device) < 0.5), -0.0, J)
    want = ops.boltzmann_gibbs(s, J, c, seed=1)
    assert same(ops.boltzmann_gibbs(torch.where(s == 0, -0.0, s), signed, c, seed=1), want)


BAD = {
    "s is a list": (lambda t: {"s": [0.0]}, TypeError, "s: got list, want a torch.Tensor"),
    "sparse couplings": (
        lambda t: {"J": t["J"].to_sparse()},
        TypeError,
        "J: got a tensor of layout torch.sparse_coo, want a dense one: x.to_dense()",
    ),
    "complex states": (
        lambda t: {"s": t["s"].to(torch.complex64)},
        TypeError,
        "s: got torch.complex64, want states in a real, integer or bool dtype",
    ),
    "integer weights": (
        lambda t: {"J": t["J"].long()},
        TypeError,
        "J: got torch.int64, want float32, float64, float16 or bfloat16",
    ),
    "dtypes differ": (
        lambda t: {"bias": t["bias"].double()},
        TypeError,
        "bias: got torch.float64, want torch.float32 like J",
    ),
    "J is not square": (
        lambda t: {"J": t["J"][:3]},
        ValueError,
        "J: got shape [3, 4], want [n, n] with n = 4 of s",
    ),
    "wrong bias": (lambda t: {"bias": t["bias"][:3]}, ValueError, "bias: got shape [3], want [n] of J"),
    "no units": (
        lambda t: {"s": t["s"][:, :0], "J": t["J"][:0, :0], "bias": t["bias"][:0]},
        ValueError,
        "J: got shape [0, 0], want at least one unit",
    ),
    "another device": (lambda t: {"s": t["s"].to("meta")}, ValueError, "s: got a tensor on meta, want cpu like J"),
    "no sweeps": (lambda t: {"n_sweeps": 0}, ValueError, "n_sweeps: got 0, want at least 1"),
    "negative chain": (lambda t: {"first_chain": -1}, ValueError, "first_chain: got -1, want at least 0"),
    "temperature 0": (lambda t: {"temperature": 0}, ValueError, "temperature: got 0, want positive finite numbers"),
    "wrong temperature": (
        lambda t: {"temperature": torch.ones(4)},
        ValueError,
        "temperature: got shape [4], want a number or one per chain, [5]",
    ),
    "infinite factor": (
        lambda t: {"schedule": [1.0, math.inf]},
        ValueError,
        "schedule: got inf, want positive finite numbers",
    ),
    "schedule and sweeps": (
        lambda t: {"schedule": torch.ones(4), "n_sweeps": 3},
        ValueError,
        "schedule: got shape [4], want [n_sweeps] = [3]",
    ),
    "a schedule for each chain": (
        lambda t: {"schedule": torch.ones(5, 2)},
        ValueError,
        "schedule: got shape [5, 2], want [n_sweeps], a factor for each sweep",
    ),
    "clamp of floats": (
        lambda t: {"clamp": torch.ones(4)},
        TypeError,
        "clamp: got torch.float32, want a torch.bool mask",
    ),
    "wrong clamp": (
        lambda t: {"clamp": torch.ones(3, dtype=torch.bool)},
        ValueError,
        "clamp: got shape [3], want [n] = [4] or that of v, [5, 4]",
    ),
    "unknown values": (lambda t: {"values": "spin"}, ValueError, 'values: got \'spin\', want "01" or "pm1"'),
    "unknown order": (lambda t: {"order": "any"}, ValueError, 'order: got \'any\', want "fixed" or "random"'),
    "bool spins": (
        lambda t: {"s": t["s"].bool(), "values": "pm1"},
        TypeError,
        's: got torch.bool, want a dtype that has -1 for values="pm1"',
    ),
    "two seeds": (
        lambda t: {"seed": 1, "generator": torch.Generator()},
        ValueError,
        "generator, seed: got both, want at most one of them",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(native, name):
    change, error, text = BAD[name]
    J, c = machine(4)
    tensors = {"s": states(5, 4), "J": J, "bias": c}
    before = [t.clone() for t in tensors.values()]
    with pytest.raises(error, match=re.escape(text) + "$"):
        ops.boltzmann_gibbs(**{**tensors, **change(tensors)})
    assert all(same(a, b) for a, b in zip(tensors.values(), before, strict=True))


# --- as an op of PyTorch ----------------------------------------------------------------------------------------------


def test_no_gradient(backend):
    J, c = (p.requires_grad_() for p in machine(4, device=backend.device))
    assert not ops.boltzmann_gibbs(states(5, 4, device=backend.device).requires_grad_(), J, c).requires_grad


def test_opcheck(native):
    with RecordOps() as record:
        s, clamp = states(5, 4), torch.tensor([True, False, False, False])
        ops.boltzmann_gibbs(s, *machine(4), seed=1)
        ops.boltzmann_gibbs(s.bool(), *machine(4), seed=1, temperature=torch.ones(5), clamp=clamp, order="random")
    assert len(record.calls) == 2
    for func, args in record.calls:
        torch.library.opcheck(func, args)


def test_compile(native):
    parameters = machine(9)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda s, *p, seed: ops.boltzmann_gibbs(s, *p, seed=seed, n_sweeps=2, temperature=2.0), fullgraph=True,
        dynamic=True,
    )  # fmt: skip
    for n in (6, 11):
        s, seed = states(n, 9), torch.tensor(n)
        want = ops.boltzmann_gibbs(s, *parameters, seed=seed, n_sweeps=2, temperature=2.0)
        assert same(compiled(s, *parameters, seed=seed), want)
    torch._dynamo.reset()


def test_vmap_is_one_call_an_entry(native):
    J, c = machine(4)
    s, weights = states(6, 4).reshape(2, 3, 4), torch.stack([J, -J])
    for dims, args in (((0, None), (s, J)), ((None, 0), (s[0], weights)), ((0, 0), (s, weights))):
        got = torch.vmap(lambda s, J: ops.boltzmann_gibbs(s, J, c, seed=4), in_dims=dims)(*args)
        for i in range(2):
            one = ops.boltzmann_gibbs(*(x[i] if d == 0 else x for x, d in zip(args, dims, strict=True)), c, seed=4)
            assert same(got[i], one)


@pytest.mark.cuda
def test_cuda_graph_replays_draw_from_the_seed():
    s, parameters = states(64, 40, device="cuda"), machine(40, device="cuda")
    seed = torch.tensor(1, device="cuda")
    ops.boltzmann_gibbs(s, *parameters, seed=seed, order="random")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.boltzmann_gibbs(s, *parameters, seed=seed, n_sweeps=3, order="random")
    for value in (1, 2):
        seed.fill_(value)
        graph.replay()
        assert same(out, ops.boltzmann_gibbs(s, *parameters, seed=value, n_sweeps=3, order="random"))
