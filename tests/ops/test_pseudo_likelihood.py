import functools
import math
import sys

import pytest
import torch
from torch.nn import functional

import genfast
from genfast import ops
from genfast.reference import rbm as rbm_reference
from genfast.reference import rbm_pseudo_likelihood as reference
from tests.harness import RecordOps, Small, relative_error

# (rows, visible, hidden, scale of the weights); widths around registers, rows around blocks
SIZES = [
    (1, 1, 1, 1.0), (5, 4, 3, 0.5), (3, 7, 16, 2.0), (9, 33, 31, 0.3), (70, 65, 40, 0.1), (300, 6, 17, 1.0),
    (4, 40, 100, 5.0), (6, 30, 20, 30.0), (0, 4, 3, 0.5),
]  # fmt: skip


def make(n, nv, nh, scale, dtype=torch.float32, device="cpu", density=0.4):
    g = torch.Generator().manual_seed(n + nv)
    W, a, b = (torch.randn(*size, generator=g).to(device, dtype) * scale for size in ((nv, nh), (nv,), (nh,)))
    return (torch.rand(n, nv, generator=g) < density).to(device, dtype), W, a, b


def by_flipping(v, W, a, b):
    """Every unit flipped in turn, in float64, by the free energy."""
    v, W, a, b = (t.double() for t in (v, W, a, b))
    free = rbm_reference.rbm_free_energy(v, W, a, b)
    total = torch.zeros_like(free)
    for i in range(v.shape[1]):
        flipped = v.clone()
        flipped[:, i] = 1 - flipped[:, i]
        total += functional.logsigmoid(rbm_reference.rbm_free_energy(flipped, W, a, b) - free)
    return total


def small(*size):
    names = ("v", "W", "vbias", "hbias")
    return Small(lambda: dict(zip(names, make(*size, dtype=torch.float64), strict=True)))


SMALL = {
    "rbm_pseudo_likelihood": small(35, 37, 41, 0.3),
    "rbm_pseudo_likelihood (strong)": small(5, 9, 35, 200.0),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_flipping_every_unit(backend, size, dtype):
    tensors = make(*size, dtype=dtype, device=backend.device)
    got, want = ops.rbm_pseudo_likelihood(*tensors), by_flipping(*tensors)
    assert got.dtype == dtype
    assert got.shape == want.shape
    if size[0]:
        limit = 1e-5 if dtype == torch.float32 else 1e-12
        assert ((got - want).abs() <= limit * (want.abs() + size[1] * size[3])).all()


@pytest.mark.parametrize("scale", [40.0, 100.0, 1e4, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_weights(backend, scale, dtype):
    """Where a factor leaves the range of the dtype, and just before."""
    for s in (1, -1):
        v, W, a, b = make(6, 12, 9, 1.0, dtype, backend.device)
        W, a, b = s * scale * W, scale * a, scale * b
        got = ops.rbm_pseudo_likelihood(v, W, a, b)
        want = by_flipping(v, W, a, b)
        assert got.isfinite().all()
        limit = 3e-5 if dtype == torch.float32 else 1e-12
        assert (got - want).abs().max() <= limit * max(want.abs().max().item(), scale)


def test_one_pass_agrees_with_the_reference_on_mnist_sizes(native):
    tensors = make(10, 784, 500, 0.08)
    tensors[2][:] -= 1
    got = ops.rbm_pseudo_likelihood(*tensors)
    assert relative_error(got, reference.rbm_pseudo_likelihood(*(t.double() for t in tensors))) < 1e-6


def test_rows_do_not_depend_on_their_block_or_on_threads(kernels, monkeypatch):
    tensors = make(300, 40, 37, 0.5, device=kernels.device)
    torch.set_num_threads(1)
    want = ops.rbm_pseudo_likelihood(*tensors)
    torch.set_num_threads(3)
    near = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=0)  # the fields are torch's product
    near(ops.rbm_pseudo_likelihood(*tensors), want)
    monkeypatch.setattr(sys.modules["genfast.ops.rbm_pseudo_likelihood"], "_SLICE", 40 * 37 * 50)
    near(ops.rbm_pseudo_likelihood(*tensors), want)


def test_leading_dimensions_dtypes_and_strides(backend):
    v, W, a, b = make(12, 6, 5, 0.5, device=backend.device)
    want = ops.rbm_pseudo_likelihood(v, W, a, b)
    assert torch.equal(ops.rbm_pseudo_likelihood(v.reshape(3, 4, 6), W, a, b), want.reshape(3, 4))
    assert torch.equal(ops.rbm_pseudo_likelihood(v.bool(), W.t().contiguous().t(), a, b), want)
    assert ops.rbm_pseudo_likelihood(v[0], W, a, b).shape == ()
    half = [t.bfloat16() for t in (W, a, b)]
    got = ops.rbm_pseudo_likelihood(v.bfloat16(), *half)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, ops.rbm_pseudo_likelihood(v, *(t.float() for t in half)))


def test_what_is_no_number_stays_none(backend):
    v, W, a, b = make(5, 6, 7, 0.5, device=backend.device)
    for value in (0.5, math.nan, 2.0):
        bad = v.clone()
        bad[2, 3] = value
        assert ops.rbm_pseudo_likelihood(bad, W, a, b).isnan().tolist() == [False, False, True, False, False]
    for at, t in ((W, W.clone()), (a, a.clone()), (b, b.clone())):
        t.view(-1)[1] = math.nan
        args = [t if x is at else x for x in (W, a, b)]
        assert ops.rbm_pseudo_likelihood(v, *args).isnan().all()


def test_no_gradient_and_opcheck(native):
    tensors = [t.requires_grad_() for t in make(5, 4, 3, 0.5)]
    with RecordOps() as record:
        assert not ops.rbm_pseudo_likelihood(*tensors).requires_grad
    for func, args in record.calls:
        torch.library.opcheck(func, args)
    assert len(record.calls) == 1


def test_bad_input(native):
    v, W, a, b = make(5, 4, 3, 0.5)
    with pytest.raises(ValueError, match=r"W: got shape \[3, 4\], want \[n_visible, n_hidden\] with .*"):
        ops.rbm_pseudo_likelihood(v, W.t(), a, b)
    with pytest.raises(ValueError, match=r"vbias: got shape \[3\], want \[n_visible\] of W"):
        ops.rbm_pseudo_likelihood(v, W, b, b)
    with pytest.raises(TypeError, match=r"hbias: got torch.float64, want torch.float32 like W"):
        ops.rbm_pseudo_likelihood(v, W, a, b.double())


def test_the_machine_uses_it(backend):
    rbm = genfast.boltzmann.RBM(12, 7, init_std=0.5).to(backend.device)
    v = make(5, 12, 7, 1.0, device=backend.device)[0]
    got = rbm.pseudo_likelihood(v, exact=True)
    want = by_flipping(v, *(p.detach() for p in (rbm.W, rbm.vbias, rbm.hbias)))
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)
