import itertools

import pytest
import torch

import genfast
from genfast import ops
from genfast.reference import rbm as reference
from tests.harness import BadInput, OpSpec, OpTests, relative_error, vjp


def make(case, generator):
    n, nv, nh, density = case
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    v = randn(n, nv)
    if density < 1:
        v = (torch.rand(n, nv, generator=generator) < density).double()
    return {"v": v, "W": randn(nv, nh) / nv**0.5, "vbias": randn(nv), "hbias": randn(nh)}


def as_tuple(function):
    return lambda **tensors: (function(**tensors),)


# (rows, visible, hidden, density; 1: real numbers); the first is differentiated numerically
CASES = [
    (5, 4, 3, 1), (1, 1, 1, 1), (7, 4, 3, 0.5), (33, 20, 17, 0.3), (40, 130, 150, 0.1), (20, 50, 300, 1),
    (67, 100, 131, 0.1),
]  # fmt: skip

EXTREME = {
    "large fields": lambda: {
        "v": torch.ones(3, 4), "W": torch.full((4, 5), 1e30), "vbias": torch.ones(4), "hbias": torch.ones(5),
    },
    "small fields": lambda: {
        "v": torch.ones(3, 4), "W": torch.full((4, 5), -1e30), "vbias": torch.ones(4), "hbias": torch.ones(5),
    },
    "zeros": lambda: {
        "v": torch.zeros(3, 4), "W": torch.zeros(4, 5), "vbias": torch.zeros(4), "hbias": torch.zeros(5),
    },
}  # fmt: skip

BAD = {
    "scalar v": BadInput(lambda t: {"v": t["v"][0, 0]}, ValueError, r"v: got a scalar, want rows .*"),
    "transposed W": BadInput(
        lambda t: {"W": t["W"].t()},
        ValueError,
        r"W: got shape \[3, 4\], want \[n_visible, n_hidden\] with n_visible = 4 of v",
    ),
    "wrong vbias": BadInput(
        lambda t: {"vbias": t["vbias"][:2]}, ValueError, r"vbias: got shape \[2\], want \[n_visible\] of W"
    ),
    "wrong hbias": BadInput(
        lambda t: {"hbias": t["hbias"][:2]}, ValueError, r"hbias: got shape \[2\], want \[n_hidden\] of W"
    ),
}


class TestFreeEnergy(OpTests):
    spec = OpSpec(
        name="rbm_free_energy", function=as_tuple(ops.rbm_free_energy),
        reference=as_tuple(reference.rbm_free_energy), make=make, cases=CASES, rows=["v"], outputs=["number"],
        extreme=EXTREME, bad=BAD, like="W", any_dtype=["v"], half_cases=[(33, 20, 17, 0.3)],
        small=[(35, 37, 41, 0.3)],
    )  # fmt: skip


@pytest.mark.parametrize("density", [0.0, 0.1, 0.34, 0.6, 1.0])
@pytest.mark.parametrize("size", [(50, 70, 3), (50, 70, 9), (1, 33, 129), (40, 64, 260)], ids=str)
def test_sparse_and_dense_rows(kernels, size, density):
    """Around the share of active units where one product gives way to the other, and at every width of a tile."""
    n, nv, nh = size
    tensors = make((n, nv, nh, density), torch.Generator().manual_seed(0))
    if density == 1.0:
        tensors["v"] = torch.ones(n, nv, dtype=torch.float64)
    single = {k: t.to(kernels.device, torch.float32) for k, t in tensors.items()}
    exact = {k: t.to(kernels.device).double() for k, t in single.items()}
    cotangent = [torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(kernels.device)]
    out, grads = vjp(as_tuple(ops.rbm_free_energy), single, {}, cotangent)
    want, want_grads = vjp(as_tuple(reference.rbm_free_energy), exact, {}, cotangent)
    assert relative_error(out[0], want[0]) < 1e-5
    for k, g in want_grads.items():
        assert relative_error(grads[k], g) < 1e-5, k


def test_enumeration(backend):
    """exp(-F) is the sum over all hidden states of exp(-E)."""
    nv, nh = 4, 5
    tensors = {k: t.to(backend.device) for k, t in make((1, nv, nh, 1), torch.Generator().manual_seed(3)).items()}
    W, a, b = tensors["W"], tensors["vbias"], tensors["hbias"]
    table = lambda n: torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=W.dtype, device=W.device)  # noqa: E731
    v, h = table(nv), table(nh)
    energy = -(v @ a)[:, None] - h @ b - v @ W @ h.t()
    assert torch.allclose(ops.rbm_free_energy(v, W, a, b), -torch.logsumexp(-energy, 1), rtol=1e-12)


def test_gradient_is_the_statistics_of_contrastive_divergence(kernels):
    tensors = {k: t.to(kernels.device) for k, t in make((6, 8, 7, 0.5), torch.Generator().manual_seed(3)).items()}
    leaves = {k: t.requires_grad_(k != "v") for k, t in tensors.items()}
    ops.rbm_free_energy(**leaves).mean().backward()
    v, W, _, b = (t.detach() for t in tensors.values())
    p = torch.sigmoid(b + v @ W)
    assert torch.allclose(leaves["W"].grad, -(v.t() @ p) / 6, rtol=1e-12)
    assert torch.allclose(leaves["vbias"].grad, -v.mean(0), rtol=1e-12)
    assert torch.allclose(leaves["hbias"].grad, -p.mean(0), rtol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_zeros_do_not_hide_what_is_not_finite(kernels, value):
    """0 times NaN is NaN, also where rows of inactive units are not read."""
    v = torch.zeros(40, 50, device=kernels.device)
    v[:, :3] = 1
    W = torch.zeros(50, 20, device=kernels.device)
    W[30, 7] = value
    zeros = torch.zeros(50, device=kernels.device), torch.zeros(20, device=kernels.device)
    assert ops.rbm_free_energy(v, W, *zeros).isnan().all()
    W = torch.zeros(50, 20, device=kernels.device, requires_grad=True)
    (ops.rbm_free_energy(v, W, *zeros) * torch.tensor(value, device=kernels.device)).sum().backward()
    assert W.grad[3:].isnan().all()
    assert not W.grad[:3].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
def test_states_of_other_dtypes(backend, dtype):
    tensors = {
        k: t.to(backend.device).float() for k, t in make((6, 8, 7, 0.5), torch.Generator().manual_seed(3)).items()
    }
    want = ops.rbm_free_energy(**tensors)
    got = ops.rbm_free_energy(**{**tensors, "v": tensors["v"].to(dtype)})
    assert torch.equal(got, want)


def test_only_what_is_needed_is_differentiated(native):
    tensors = make((6, 8, 7, 0.5), torch.Generator().manual_seed(3))
    for wanted in (["v"], ["W"], ["hbias"], ["v", "vbias"]):
        leaves = {k: t.clone().requires_grad_(k in wanted) for k, t in tensors.items()}
        ops.rbm_free_energy(**leaves).sum().backward()
        with genfast.backend("reference"):
            other = {k: t.clone().requires_grad_(k in wanted) for k, t in tensors.items()}
            ops.rbm_free_energy(**other).sum().backward()
        for k in tensors:
            assert (leaves[k].grad is None) == (k not in wanted)
            if k in wanted:
                assert torch.allclose(leaves[k].grad, other[k].grad, rtol=1e-12)
