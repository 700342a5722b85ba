import math
import sys

import pytest
import torch
from torch.nn import functional

import genfast
from genfast import ops
from genfast.boltzmann import annealing_betas
from genfast.boltzmann._enumerate import all_states
from genfast.reference import _gibbs as draws
from genfast.reference import rbm_ais as reference
from tests.harness import RecordOps, Small


def machine(nv, nh, scale=0.3, dtype=torch.float32, device="cpu", seed=0):
    """W, vbias, hbias and base."""
    g = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(*size, generator=g).to(device, dtype) * scale for size in ((nv, nh), (nv,), (nh,), (nv,))]
    tensors[3].clamp_(-5, 5)
    return tensors


def states(n, nv, seed=0):
    return (torch.rand(n, nv, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def ladder(n):
    return torch.linspace(0, 1, n + 1)


def by_reference(*tensors, v=None, **options):
    with genfast.backend("reference"):
        out = ops.rbm_ais(*(t.cpu() for t in tensors), v=None if v is None else v.cpu(), **options)
    return [x.to(tensors[0].device) for x in out]


def same(got, want):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(got, want, strict=True))


def small(n, nv, nh, scale=0.3, betas=(0.0, 0.3, 0.5, 1.0), **options):
    def make():
        W, vbias, hbias, base = machine(nv, nh, scale, torch.float64)
        return {"W": W, "vbias": vbias, "hbias": hbias, "base": base}

    return Small(make, [{"betas": list(betas), "n_runs": n, "seed": 3, **options}], exact=True)


SMALL = {
    "rbm_ais": small(35, 37, 41),
    "rbm_ais (one unit)": small(3, 1, 1),
    "rbm_ais (backwards, strong)": small(18, 70, 65, 2.0, (1.0, 0.9, 0.1, 0.0)),
}


# --- the same bits everywhere -----------------------------------------------------------------------------------------

# (runs, visible, hidden, scale of the weights): one unit, around words and panels, weak to absurd
SIZES = [
    (1, 1, 1, 0.3), (3, 5, 7, 1.0), (17, 33, 64, 0.3), (33, 100, 65, 0.05), (16, 64, 129, 3.0), (5, 20, 9, 1e30),
    (5, 20, 9, 1e-30), (6, 12, 10, 0.0),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_backend_has_the_same_runs(kernels, size, dtype):
    n, nv, nh, scale = size
    tensors = machine(nv, nh, scale, dtype, kernels.device)
    for betas in (ladder(4), annealing_betas(60)[30:40], ladder(3).flip(0)):
        options = {"betas": betas, "n_runs": n, "seed": -5}
        assert same(ops.rbm_ais(*tensors, **options), by_reference(*tensors, **options))


@pytest.mark.parametrize("density", [0.02, 0.6])
def test_both_ways_of_summing(kernels, density):
    """Few active units are added row by row, many by tables, and the sums over hidden units are the same."""
    tensors = machine(150, 137, 0.2, device=kernels.device)
    tensors[1] += math.log(density / (1 - density))
    v = (torch.rand(40, 150, generator=torch.Generator().manual_seed(1)) < density).to(kernels.device, torch.float32)
    options = {"betas": [0.7, 0.8, 0.81, 1.0], "v": v, "seed": 2}
    assert same(ops.rbm_ais(*tensors, **options), by_reference(*tensors, **options))


def test_splits_of_runs_and_of_the_ladder_and_threads(kernels, monkeypatch):
    tensors = machine(70, 66, device=kernels.device)
    betas = ladder(12)
    torch.set_num_threads(1)
    want = ops.rbm_ais(*tensors, betas, n_runs=40, seed=7)
    torch.set_num_threads(3)
    assert same(ops.rbm_ais(*tensors, betas, n_runs=40, seed=7), want)
    parts = [ops.rbm_ais(*tensors, betas, n_runs=n, seed=7, first_run=k) for k, n in ((0, 13), (13, 1), (14, 26))]
    assert same([torch.cat(x) for x in zip(*parts, strict=True)], want)
    w, v = ops.rbm_ais(*tensors, betas[:6], n_runs=40, seed=7)
    assert same(ops.rbm_ais(*tensors, betas[5:], v=v, log_weights=w, seed=7, first_step=5), want)
    monkeypatch.setattr(sys.modules["genfast.ops.rbm_ais"], "_SLICE", 3 * 40 * 70 * 66)  # slices of three betas
    assert same(ops.rbm_ais(*tensors, betas, n_runs=40, seed=7), want)
    monkeypatch.setattr(sys.modules["genfast.ops.rbm_ais"], "_SLICE", 1)  # and of one; blocks of 64 runs
    many = ops.rbm_ais(*tensors, betas[:3], n_runs=70, seed=7)
    assert same([x[:40] for x in many], ops.rbm_ais(*tensors, betas[:3], n_runs=40, seed=7))


def test_half_weights_are_raised(kernels):
    tensors = machine(20, 30, 0.3, torch.bfloat16, kernels.device)
    want = ops.rbm_ais(*(t.float() for t in tensors), ladder(3), n_runs=5, seed=1)
    assert same(ops.rbm_ais(*tensors, ladder(3), n_runs=5, seed=1), want)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float64], ids=str)
def test_states_of_other_dtypes(kernels, dtype):
    tensors, v = machine(20, 30, device=kernels.device), states(5, 20).to(kernels.device)
    w, out = ops.rbm_ais(*tensors, ladder(3), v=v, seed=1)
    assert same(ops.rbm_ais(*tensors, ladder(3), v=v.to(dtype), seed=1), (w, out.to(dtype)))


def test_seeds(backend):
    tensors = machine(30, 20, device=backend.device)
    want = ops.rbm_ais(*tensors, ladder(3), n_runs=6, seed=2**64 - 3)
    assert same(ops.rbm_ais(*tensors, ladder(3), n_runs=6, seed=torch.tensor(-3, device=backend.device)), want)
    assert not same(ops.rbm_ais(*tensors, ladder(3), n_runs=6, seed=2), want)
    torch.manual_seed(5)
    first, second = (ops.rbm_ais(*tensors, ladder(3), n_runs=6) for _ in range(2))
    assert not same(first, second)
    torch.manual_seed(5)
    assert same(ops.rbm_ais(*tensors, ladder(3), n_runs=6), first)


# --- the right numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nv", "nh", "scale", "betas", "limit"),
    [(784, 500, 0.08, annealing_betas(200), 1e-4), (100, 60, 0.5, ladder(5), 1e-4), (60, 50, 3.0, ladder(50), 1e-4),
     (784, 500, 0.08, annealing_betas()[-30:], 1e-8), (40, 30, 1.0, torch.tensor([0, 1.0]), 1e-4)],
    ids=["784x500", "few betas", "strong weights", "steps of 1e-5", "one step"],
)  # fmt: skip
def test_log_weights_are_those_of_float64_along_the_same_states(nv, nh, scale, betas, limit):
    tensors = machine(nv, nh, scale)
    path = []
    key = torch.tensor(1)
    v = reference.start(tensors[3], 8, seed=key).float()
    got, _ = reference.rbm_ais(v, *tensors, betas.float(), seed=key, path=path)
    want = reference.path_log_weights(path, *tensors, betas)
    assert (got - want).abs().max() < limit


def test_the_mean_of_a_logistic_function_keeps_its_digits():
    """Over steps from 1e-6 to 1 and fields from 1e-3 to 80, against float64."""
    unit = 2.0**-20
    x = torch.cat([torch.logspace(-3, 1.9, 400), -torch.logspace(-3, 1.9, 400)])
    field = torch.round(x / unit).to(torch.int64)
    exact = field.double() * unit
    for step in (1e-6, 1e-5, 1e-3, 0.01, 0.1, 0.5, -1e-5, -0.1):
        for beta1 in (0.5, 0.999):
            b1 = float(torch.tensor(beta1))
            b0 = float(torch.tensor(b1 - step))
            if not 0 <= b0 <= 1:
                continue
            t = draws.exp_negative(((field.float() * unit) * b1).abs())
            got = reference.increments(field, unit, t, b0, b1).double() * (2 * unit)
            want = (functional.logsigmoid(-b0 * exact) - functional.logsigmoid(-b1 * exact)) / (b1 - b0)
            assert ((got - want).abs() <= 2 * unit + 1.5e-6 * exact.abs()).all(), (step, beta1)


def test_one_step_is_importance_sampling(backend):
    """By hand: the weight of a draw of the base is f_1 / f_0."""
    W, a, b, base = machine(9, 6, 1.0, torch.float64, backend.device)
    got, _ = ops.rbm_ais(W, a, b, base, [0.0, 1.0], n_runs=50, seed=4)
    key = torch.tensor(4, device=backend.device)
    v = reference.start(base, 50, seed=key).double()
    want = -genfast.reference.rbm.rbm_free_energy(v, W, a, b) - 6 * math.log(2) - v @ base
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_starts_and_ends_follow_their_distributions(native):
    """Chi-square tests on all states, with a false-alarm rate of 1e-6 and a fixed seed."""
    nv, n = 4, 40_000
    W, a, b, base = machine(nv, 3, 1.0)
    v = all_states(nv, 0, 16, device=torch.device("cpu"))
    # thirty sweeps at beta = 0.6 from anywhere: the distribution f_0.6
    _, end = ops.rbm_ais(W, a, b, base, [0.6] * 31, v=states(n, nv), seed=1)
    start = reference.start(base, n, seed=torch.tensor(8)).float()
    f = v @ (0.4 * base + 0.6 * a).double() + functional.softplus(0.6 * (v @ W.double() + b.double())).sum(1)
    for drawn, log_p in ((end, f), (start, v @ base.double())):
        p = torch.softmax(log_p, 0)
        index = (drawn.long() * 2 ** torch.arange(nv)).sum(1)
        counts = torch.bincount(index, minlength=16)
        statistic = ((counts - n * p) ** 2 / (n * p)).sum()
        assert statistic < 58.0, "the quantile of 1 - 1e-6 for 15 degrees of freedom is 57.9"


# --- what cannot be run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["W", "vbias", "hbias"])
def test_parameters_that_are_not_finite(backend, value, which):
    tensors = machine(20, 10, device=backend.device)
    tensors[which].view(-1)[3] = value
    for x in ops.rbm_ais(*tensors, ladder(2), n_runs=4, seed=1):
        assert x.isnan().all()


BAD = {
    "W of integers": (lambda t: {"W": t["W"].long()}, TypeError, "W: got torch.int64, want float32, float64, .*"),
    "vector W": (lambda t: {"W": t["W"][0]}, ValueError, r"W: got shape \[3\], want \[n_visible, n_hidden\]"),
    "no hidden units": (
        lambda t: {"W": t["W"][:, :0], "hbias": t["hbias"][:0]}, ValueError, "W: got shape .*, want at least one .*",
    ),
    "wrong vbias": (lambda t: {"vbias": t["hbias"]}, ValueError, r"vbias: got shape \[3\], want \[n_visible\] of W"),
    "wrong hbias": (lambda t: {"hbias": t["vbias"]}, ValueError, r"hbias: got shape \[4\], want \[n_hidden\] of W"),
    "wrong base": (lambda t: {"base": t["hbias"]}, ValueError, r"base: got shape \[3\], want \[n_visible\] of W"),
    "base of infinity": (
        lambda t: {"base": t["base"] + math.inf}, ValueError, "base: got log-odds that are not finite",
    ),
    "one beta": (lambda t: {"betas": [1.0]}, ValueError, r"betas: got shape \[1\], want a ladder .*"),
    "beta above 1": (lambda t: {"betas": [0, 2.0]}, ValueError, r"betas: got numbers outside \[0, 1\]"),
    "beta of NaN": (lambda t: {"betas": [0, math.nan]}, ValueError, r"betas: got numbers outside \[0, 1\]"),
    "no runs": (lambda t: {"n_runs": 0}, ValueError, "n_runs: got 0, want an integer >= 1"),
    "neither": (lambda t: {"n_runs": None}, ValueError, "n_runs, v: got neither, want one of them"),
    "both": (lambda t: {"v": states(2, 4)}, ValueError, "n_runs, v: got both, want one of them"),
    "grey v": (
        lambda t: {"n_runs": None, "v": states(2, 4) / 2}, ValueError, "v: expected states that are 0 or 1, got .*",
    ),
    "wide v": (
        lambda t: {"n_runs": None, "v": states(2, 5)}, ValueError, r"v: got shape \[2, 5\], want \[n_runs, n_visible\]",
    ),
    "float32 log-weights": (
        lambda t: {"log_weights": torch.zeros(5)}, TypeError, "log_weights: got torch.float32 on cpu, want float64 .*",
    ),
    "few log-weights": (
        lambda t: {"log_weights": torch.zeros(4).double()}, ValueError, r"log_weights: got shape \[4\], want .*",
    ),
    "negative run": (lambda t: {"first_run": -1}, ValueError, "first_run: got -1, want an integer >= 0"),
    "two seeds": (
        lambda t: {"generator": torch.Generator()}, ValueError, "generator, seed: got both, want at most one of them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(native, name):
    change, error, text = BAD[name]
    W, a, b, base = machine(4, 3)
    given = {"W": W, "vbias": a, "hbias": b, "base": base, "betas": [0, 1.0], "n_runs": 5, "seed": 1}
    with pytest.raises(error, match=f"^{text}$"):
        ops.rbm_ais(**{**given, **change(given)})


def test_no_gradient(backend):
    tensors = [t.requires_grad_() for t in machine(4, 3, device=backend.device)]
    for x in ops.rbm_ais(*tensors, ladder(2), n_runs=5):
        assert not x.requires_grad


def test_opcheck(native):
    tensors = machine(4, 3)
    with RecordOps() as record:
        w, v = ops.rbm_ais(*tensors, ladder(2), n_runs=5, seed=1)
        ops.rbm_ais(*tensors, ladder(2), v=v, log_weights=w, seed=1)
    assert len(record.calls) == 2
    for func, args in record.calls:
        torch.library.opcheck(func, args)


@pytest.mark.parametrize("chains", [5, 70])
def test_fields_of_units_that_seldom_change(kernels, chains):
    """Where few units change from step to step their rows are added to the fields kept: the same integers."""
    nv, nh = 130, 150
    W, a, b, base = machine(nv, nh, 0.02, device=kernels.device)
    on = torch.rand(nv, generator=torch.Generator().manual_seed(1)).to(kernels.device) < 0.5
    a = torch.where(on, 4.0, -4.0)
    b = torch.where(torch.arange(nh, device=kernels.device) % 3 == 0, 4.0, -4.0)
    betas = torch.cat([torch.linspace(0.5, 1, 6), torch.tensor([0.2, 0.9, 1.0])])
    v = on.float().expand(chains, nv)
    assert same(ops.rbm_ais(W, a, b, base, betas, v=v, seed=2), by_reference(W, a, b, base, betas, v=v, seed=2))
