"""The mean-field fixed point of deep Boltzmann machines."""

import math
import re

import pytest
import torch

import genfast
from genfast import ops
from genfast.reference.dbm import start_means
from tests.harness import Small
from tests.ops.test_dbm_gibbs import machine, to


def data(n, sizes, dtype=torch.float32, seed=0):
    return (torch.rand(n, sizes[0], generator=torch.Generator().manual_seed(seed)) < 0.3).to(dtype)


def damped(v, weights, biases, steps=1500, step=0.5):
    """The fixed point by many short steps of all layers at once in float64: another way than alternation."""
    v, weights, biases = v.double(), [W.double() for W in weights], [b.double() for b in biases]
    means = start_means(v, weights, biases)
    for _ in range(steps):
        layers = [v, *means]
        fields = [biases[i] + layers[i - 1] @ weights[i - 1] for i in range(1, len(layers))]
        fields = [f + (layers[i + 2] @ weights[i + 1].t() if i + 2 < len(layers) else 0) for i, f in enumerate(fields)]
        means = [m + step * (torch.sigmoid(f) - m) for m, f in zip(means, fields, strict=True)]
    return means


SIZES = [(7, 5), (7, 5, 4), (33, 70, 40), (20, 17, 9, 33), (5, 4, 6, 3, 7, 2)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fixed_point_against_damped_iteration(backend, sizes, dtype):
    weights, biases = machine(sizes, 0.4, dtype, backend.device)
    v = data(13, sizes, dtype).to(backend.device)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    means, n = ops.dbm_mean_field(v, weights, biases, max_iterations=500, tolerance=tolerance)
    assert (n < 500).all()
    for m, want in zip(means, damped(v.cpu(), to(weights, "cpu"), to(biases, "cpu")), strict=True):
        assert m.dtype == dtype
        torch.testing.assert_close(m.double().cpu(), want, atol=2e-5 if dtype == torch.float32 else 1e-9, rtol=0)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_what_is_returned_is_near_the_fixed_point(kernels, tolerance):
    """Rows that are done are within a few tolerances of where further iterations take them."""
    sizes = (90, 70, 40)
    weights, biases = machine(sizes, 0.3, device=kernels.device)
    v = data(50, sizes).to(kernels.device)
    means, n = ops.dbm_mean_field(v, weights, biases, max_iterations=300, tolerance=tolerance)
    exact, _ = ops.dbm_mean_field(v, weights, biases, max_iterations=2000, tolerance=1e-7, start=means)
    assert (n < 300).all()
    for m, want in zip(means, exact, strict=True):
        assert (m - want).abs().max() < 20 * tolerance


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_kernels_follow_the_reference(kernels, sizes):
    weights, biases = machine(sizes, 0.3)
    for n in (1, 19, 70):
        v = data(n, sizes)
        for iterations in (1, 2, 7):
            with genfast.backend("reference"):
                want, n_want = ops.dbm_mean_field(v, weights, biases, max_iterations=iterations, tolerance=1e-30)
            d = kernels.device
            got, n_got = ops.dbm_mean_field(
                v.to(d), to(weights, d), to(biases, d), max_iterations=iterations, tolerance=1e-30
            )
            assert torch.equal(n_got.cpu(), n_want)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a.cpu(), b, atol=1e-5, rtol=0)


def test_start_and_probabilities(backend):
    sizes = (9, 7, 5)
    weights, biases = machine(sizes, 0.3, torch.float64, backend.device)
    v = torch.rand(6, 9, dtype=torch.float64).to(backend.device)
    start = [torch.rand(6, n, dtype=torch.float64).to(backend.device) for n in sizes[1:]]
    kept = [s.clone() for s in start]
    a, _ = ops.dbm_mean_field(v, weights, biases, max_iterations=300, tolerance=1e-12, start=start)
    b, n = ops.dbm_mean_field(v, weights, biases, max_iterations=300, tolerance=1e-12)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=1e-8, rtol=0)
    assert all(torch.equal(x, y) for x, y in zip(start, kept, strict=True))
    _, n_again = ops.dbm_mean_field(v, weights, biases, max_iterations=300, tolerance=1e-9, start=b)
    assert (n_again == 1).all()
    assert (n > 1).any()


def test_leading_dimensions_dtypes_and_no_rows(backend):
    sizes = (9, 7, 5)
    weights, biases = machine(sizes, 0.3, device=backend.device)
    v = data(12, sizes).to(backend.device)
    want, n = ops.dbm_mean_field(v, weights, biases)
    for x in (v.bool(), v.long(), v.half(), v.double()):
        got, m = ops.dbm_mean_field(x.reshape(3, 4, 9), weights, biases)
        assert torch.equal(m, n.reshape(3, 4))
        assert all(torch.equal(a, b.reshape(3, 4, -1)) for a, b in zip(got, want, strict=True))
    one, k = ops.dbm_mean_field(v[0], weights, biases)
    assert k.shape == ()
    torch.testing.assert_close(one[0], want[0][0])
    none, m = ops.dbm_mean_field(v[:0], weights, biases)
    assert [x.shape for x in none] == [(0, 7), (0, 5)]
    assert m.shape == (0,)
    half, _ = ops.dbm_mean_field(v, *([p.bfloat16() for p in ps] for ps in (weights, biases)))
    assert half[0].dtype == torch.float32


def test_rows_do_not_depend_on_each_other(kernels):
    sizes = (40, 33, 70)
    weights, biases = machine(sizes, 0.5, device=kernels.device)
    v = data(30, sizes).to(kernels.device)
    means, n = ops.dbm_mean_field(v, weights, biases, tolerance=1e-4)
    assert n.min() < n.max()
    part, m = ops.dbm_mean_field(v[7:19], weights, biases, tolerance=1e-4)
    assert ((n[7:19] - m).abs() <= 1).all(), "products of other sizes may round differently"
    for a, b in zip(part, means, strict=True):
        torch.testing.assert_close(a, b[7:19], atol=1e-3, rtol=0)


def test_nan_stays_in_its_row(kernels):
    sizes = (40, 33, 20)
    weights, biases = machine(sizes, 0.3, device=kernels.device)
    v = data(9, sizes).to(kernels.device)
    v[4, 3] = math.nan
    means, _ = ops.dbm_mean_field(v, weights, biases)
    for m in means:
        assert m[4].isnan().all()
        assert m[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()
    weights[1][2, 3] = math.nan
    assert all(m.isnan().any() for m in ops.dbm_mean_field(data(9, sizes).to(kernels.device), weights, biases)[0])


def test_extreme_fields_stay_finite(kernels):
    sizes = (20, 15, 10)
    weights, biases = machine(sizes, 1e4, device=kernels.device)
    means, _ = ops.dbm_mean_field(data(9, sizes).to(kernels.device), weights, biases)
    assert all(m.isfinite().all() and (m >= 0).all() and (m <= 1).all() for m in means)


def test_no_derivative_is_an_error():
    sizes = (6, 5, 4)
    weights, biases = machine(sizes)
    v = data(3, sizes)
    weights[1].requires_grad_()
    means, n = ops.dbm_mean_field(v, weights, biases)
    with pytest.raises(RuntimeError, match="dbm_mean_field: no derivative of the fixed point is known"):
        means[0].sum().backward()
    with torch.no_grad():
        assert not ops.dbm_mean_field(v, weights, biases)[0][0].requires_grad
    assert not n.requires_grad


BAD = {
    "v of another size": (
        lambda t: {"v": torch.zeros(5, 3)}, ValueError, "v: got shape [5, 3], want [..., 4], the units of layer 0",
    ),
    "v is a list": (lambda t: {"v": [0.0]}, TypeError, "v: got list, want a torch.Tensor"),
    "complex v": (
        lambda t: {"v": t["v"].to(torch.complex64)}, TypeError,
        "v: got torch.complex64, want a real, integer or bool dtype",
    ),
    "v on another device": (
        lambda t: {"v": t["v"].to("meta")}, ValueError, "v: got a tensor on meta, want cpu like weights[0]",
    ),
    "no iterations": (lambda t: {"max_iterations": 0}, ValueError, "max_iterations: got 0, want at least 1"),
    "negative tolerance": (lambda t: {"tolerance": -1.0}, ValueError, "tolerance: got -1.0, want at least 0"),
    "tolerance is NaN": (lambda t: {"tolerance": math.nan}, ValueError, "tolerance: got nan, want at least 0"),
    "start misses a layer": (
        lambda t: {"start": [torch.zeros(5, 3)]}, ValueError,
        "start: got 1 layers, want 2: one for each hidden layer",
    ),
    "start of another size": (
        lambda t: {"start": [torch.zeros(5, 3), torch.zeros(5, 3)]}, ValueError,
        "start[1]: got shape [5, 3] on cpu, want [5, 2] on cpu",
    ),
    "weights that do not fit": (
        lambda t: {"weights": t["weights"][::-1]}, ValueError,
        "weights[1]: got shape [4, 3], want [n_1, n_2] with n_1 = 2 of weights[0]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(native, name):
    change, error, text = BAD[name]
    weights, biases = machine((4, 3, 2))
    given = {"v": data(5, (4, 3, 2)), "weights": weights, "biases": biases}
    with pytest.raises(error, match=re.escape(text) + "$"):
        ops.dbm_mean_field(**{**given, **change(given)})


def small(sizes):
    def make():
        weights, biases = machine(sizes, 0.3, torch.float64)
        given = {f"W{i}": W for i, W in enumerate(weights)} | {f"b{i}": b for i, b in enumerate(biases)}
        return {"v": data(19, sizes, torch.float64), **given}

    def function(v, **given):
        options = {k: given.pop(k) for k in ("max_iterations", "tolerance")}
        weights, biases = (
            [given.pop(f"{k}{i}").detach() for i in range(n)] for k, n in (("W", len(sizes) - 1), ("b", len(sizes)))
        )
        return tuple(ops.dbm_mean_field(v.detach(), weights, biases, **options)[0])

    return Small(make, [{"max_iterations": n, "tolerance": 1e-30} for n in (1, 4)], function=function)


SMALL = {"dbm_mean_field": small((37, 41, 20)), "dbm_mean_field (four layers)": small((9, 70, 3, 33))}
