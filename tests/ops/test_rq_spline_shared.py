"""Splines whose parameters broadcast: rows that several numbers read."""

import contextlib
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.harness import BadInput, OpSpec, OpTests, relative_error, vjp, with_gradients
from tests.ops.test_rq_spline import extreme, inputs, packed_reference, spline


def make_shared(case, generator):
    """Packed rows that several numbers read; the case is (shape of x, leading shape of params, K)."""
    numbers, lead, k = case
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    return {"x": randn(*numbers) * 2.5, "params": randn(*lead, 3 * k - 1) * 0.3}


class TestSharedParameters(OpTests):
    spec = OpSpec(
        name="rational_quadratic_spline", function=spline, reference=packed_reference, make=make_shared, rows=["x"],
        cases=[
            ((6, 3), (3,), 5), ((5, 4), (5, 1), 3), ((40,), (), 8), ((300, 2), (2,), 10), ((3, 70), (3, 1), 4),
            ((2, 40, 3), (2, 1, 3), 16), ((2, 3, 2, 40), (2, 1, 2, 1), 8), ((40, 3, 5), (3, 1), 40),
        ],
        variants={"forward": {}, "inverse": {"inverse": True}},
        small=[((4500,), (), 8), ((150, 3), (3,), 19), ((90, 3), (90, 1), 8)],
        extreme={
            f"{size:g}, {lead}": lambda size=size, lead=lead: {
                **{k: v[: math.prod(lead)].reshape(*lead, -1) for k, v in extreme(size)().items()},
                "x": extreme(size)()["x"].reshape(32, 2),
            }
            for size in (1e4, 3e38) for lead in ((1, 2), (1, 1), (32, 1))
        },
        bad={
            "as many rows as no dimension has": BadInput(
                lambda t: {"params": t["params"][:2]}, ValueError,
                r"params: got shape \[2, 14\], want \[6, 3, 14\], or what broadcasts to it",
            ),
            "more dimensions than x": BadInput(
                lambda t: {"params": t["params"].expand(1, 6, 3, 14)}, ValueError,
                r"params: got shape \[1, 6, 3, 14\], want \[6, 3, 14\], or what broadcasts to it",
            ),
        },
    )  # fmt: skip


# Shape of x, and the leading shapes of widths, heights and derivatives: the dimensions that share and those that do not
# alternate in up to five blocks, and each block is short or longer than any register, chunk or tile.
SHARED = {
    "one row": ((70,), (), (), ()),
    "one row, chunks": ((9000,), (1,), (1,), (1,)),
    "features": ((50, 7), (7,), (7,), (7,)),
    "features, chunks": ((5000, 3), (3,), (1, 3), (3,)),
    "many features": ((3, 600), (600,), (600,), (600,)),
    "samples": ((50, 3), (50, 1), (50, 1), (50, 1)),
    "samples, long": ((3, 700), (3, 1), (3, 1), (3, 1)),
    "channels": ((4, 5, 33), (5, 1), (5, 1), (5, 1)),
    "groups": ((4, 5, 6, 7), (4, 1, 6, 1), (4, 1, 6, 1), (4, 1, 6, 1)),
    "not alike": ((6, 40, 5), (5,), (6, 1, 1), ()),
    "some have their own": ((60, 5), (60, 5), (5,), ()),
    "too many blocks": ((3, 4, 5, 6, 7), (3, 1, 5, 1, 7), (3, 1, 5, 1, 7), (3, 1, 5, 1, 7)),
    "too many blocks, shared first": ((2, 3, 4, 5), (3, 1, 5), (3, 1, 5), (3, 1, 5)),
    "dimensions of 1": ((1, 8, 1, 3), (1, 8, 1, 1), (8, 1, 1), (8, 1, 1)),
    "a scalar": ((), (), (), ()),
    "no numbers": ((0, 3), (3,), (3,), (3,)),
    "no rows": ((0, 3), (0, 1), (0, 1), (0, 1)),
}


def shared_inputs(form, k, kernels, dtype=torch.float64):
    numbers, *leads = SHARED[form]
    g = torch.Generator().manual_seed(k)
    t = {"x": torch.randn(numbers, generator=g, dtype=torch.float64) * 2}
    for name, lead, count in zip(("widths", "heights", "derivatives"), leads, (k, k, k), strict=True):
        t[name] = torch.randn(*lead, count, generator=g, dtype=torch.float64) / 2
    return {name: v.to(kernels.device, dtype) for name, v in t.items()}


def expanded(x, **parameters):
    return {"x": x, **{k: v.expand(*x.shape, v.shape[-1]).contiguous() for k, v in parameters.items()}}


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("form", SHARED)
def test_shared_rows_equal_expanded_ones(backend, form, inverse):
    for k in (1, 8, 19, 40):
        for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
            t = shared_inputs(form, k, backend, dtype)
            cotangents = [torch.randn_like(t["x"]) for _ in range(2)]
            got, got_grads = vjp(spline, t, {"inverse": inverse}, cotangents)
            wide, wide_cotangents = {n: v.double() for n, v in t.items()}, [c.double() for c in cotangents]
            separate = lambda **t: spline(**expanded(**t), inverse=inverse)  # noqa: E731
            want, want_grads = vjp(separate, wide, {}, wide_cotangents)
            for i, (a, b) in enumerate(zip(got, want, strict=True)):
                assert a.shape == b.shape
                assert ((a - b).abs() <= limit * 0.1 * (1 + b.abs())).all(), (i, k, dtype)
            for name, b in want_grads.items():
                a = got_grads[name]
                assert (a.shape, a.dtype) == (b.shape, dtype)
                assert a.numel() == 0 or (a - b).abs().max() <= limit * (1 + b.abs().max()), (name, k, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("form", ["one row, chunks", "features", "samples", "samples, long"])
def test_shared_rows_of_half_types(kernels, form, dtype):
    """Sums over numbers are not rounded on the way: only the result is."""
    t = shared_inputs(form, 8, kernels, dtype)
    cotangents = [torch.ones_like(t["x"]), torch.ones_like(t["x"], dtype=torch.float32)]
    got, got_grads = vjp(spline, t, {}, cotangents)
    want, want_grads = vjp(spline, {k: v.float() for k, v in t.items()}, {}, [c.float() for c in cotangents])
    assert torch.equal(got[0], want[0].to(dtype))
    assert torch.equal(got[1], want[1])
    for name, g in got_grads.items():
        assert torch.equal(g, want_grads[name].to(dtype)), name


@pytest.mark.parametrize("inverse", [False, True])
def test_gradient_of_one_row_for_two_million_numbers(native, inverse):
    g = torch.Generator().manual_seed(11)
    t = {"x": torch.randn(2**21, generator=g) * 2, "params": torch.randn(23, generator=g)}
    cotangents = [torch.randn(2**21, generator=g) for _ in range(2)]
    _, got = vjp(spline, t, {"inverse": inverse}, cotangents)
    _, want = vjp(spline, {k: v.double() for k, v in t.items()}, {"inverse": inverse}, [c.double() for c in cotangents])
    assert relative_error(got["params"], want["params"]) <= 1e-5


@pytest.mark.parametrize("form", ["one row, chunks", "features, chunks", "many features", "samples"])
def test_threads_do_not_change_the_sums(kernels, form):
    t = shared_inputs(form, 8, kernels, torch.float32)
    cotangents = [torch.randn_like(t["x"]) for _ in range(2)]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([g for out in vjp(spline, t, {}, cotangents)[1:] for g in out.values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("numbers", "lead"), [((2**15,), ()), ((2**12, 8), (8,)), ((2**12, 8), (2**12, 1)), ((2, 2**14), (2, 1))]
)
def test_shared_rows_take_no_memory_for_each_number(kernels, monkeypatch, numbers, lead):
    """Neither saved, nor made by PyTorch's operations, nor as the kernel's workspace (whose size x does not change)."""
    t = {"x": torch.randn(numbers, device=kernels.device), "params": torch.randn(*lead, 23, device=kernels.device)}
    t = with_gradients(t)
    cotangents = [torch.randn_like(t["x"]) for _ in range(2)]
    most = max(t["x"].nbytes, t["params"].nbytes)
    sizes, saved = [], []
    new_empty = torch.Tensor.new_empty

    def count(self, *args, **kwargs):
        out = new_empty(self, *args, **kwargs)
        sizes.append(out.nbytes)
        return out

    class Storages(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(o.untyped_storage().nbytes() for o in torch.utils._pytree.tree_leaves(out))
            return out

    monkeypatch.setattr(torch.Tensor, "new_empty", count)
    keep = lambda s: saved.append(s.untyped_storage().data_ptr()) or s  # noqa: E731
    for mode in (contextlib.nullcontext(), Storages()):
        with mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda s: s):
            torch.autograd.grad(spline(**t), list(t.values()), cotangents)
    assert set(saved) == {v.data_ptr() for v in t.values()}
    workspaces = [s for s in sizes if s > most]
    assert max(workspaces, default=0) <= (2**23 if kernels.name in ("simt", "cuda") else 0), workspaces


def test_a_slope_that_no_number_reads_has_no_gradient(kernels):
    t = {k: v[0] for k, v in inputs((1, 8, 0), kernels, dtype=torch.float32).items()}
    t["x"] = torch.linspace(2.5, 4, 99, device=kernels.device)
    t["widths"] = torch.zeros(8, device=kernels.device)
    t["derivatives"][0] = torch.nan
    out, grads = vjp(spline, t, {}, [torch.ones_like(t["x"])] * 2)
    assert all(o.isfinite().all() for o in out)
    assert not grads["derivatives"][:5].any()
    assert all(g.isfinite().all() for g in grads.values())


def test_nan_in_a_shared_row(kernels):
    """It comes out of the numbers that read it, and of no others."""
    t = {"x": torch.full((40, 3), 0.5), "params": torch.randn(3, 23)}
    t = {k: v.to(kernels.device) for k, v in t.items()}
    t["params"][1, 2] = torch.nan
    t["x"][0, 0] = torch.nan
    out, grads = vjp(spline, t, {}, [torch.ones_like(t["x"])] * 2)
    for o in out:
        assert o[:, 1].isnan().all()
        assert o[0, 0].isnan()
        assert o[1:, [0, 2]].isfinite().all()
    assert grads["params"][1, :16].isnan().all()
    assert grads["params"][[0, 2]].isfinite().all()


def test_many_blocks_compile(native):
    """Where parameters are expanded along a block, too, a call is one graph."""
    t = shared_inputs("too many blocks", 5, native)
    function = torch.compile(lambda **t: spline(**t), backend="aot_eager", fullgraph=True, dynamic=True)
    for got, want in zip(function(**t), spline(**t), strict=True):
        assert torch.equal(got, want)
