import dataclasses

import pytest
import torch

from genfast import ops
from genfast.reference import planar as reference
from tests.harness import BadInput, OpSpec, OpTests, Small, vjp


def make(case, generator):
    n, d, k = case
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    w = randn(k, d) / max(d, 1) ** 0.5
    return {"z": randn(n, d), "w": w, "u": reference.planar_constrain_u(w, randn(k, d)), "b": randn(k)}


# (N, D, K); the first is differentiated numerically
CASES = [(5, 3, 4), (7, 2, 3), (1, 1, 1), (130, 2, 32), (67, 17, 5), (257, 64, 8)]

EXTREME = {
    "large weights": lambda: {
        "z": torch.randn(9, 4) * 100, "w": torch.randn(6, 4) * 1e3, "u": torch.randn(6, 4), "b": torch.randn(6) * 1e3,
    },
    "saturated": lambda: {
        "z": torch.full((3, 2), 1e10), "w": torch.ones(2, 2), "u": torch.ones(2, 2), "b": torch.zeros(2),
    },
    "w = 0": lambda: {"z": torch.randn(3, 2), "w": torch.zeros(2, 2), "u": torch.randn(2, 2), "b": torch.randn(2)},
}  # fmt: skip


def constrained(make):
    def inputs():
        t = make()
        t["u"] = ops.planar_constrain_u(t["w"], t["u"])
        return t

    return inputs


BAD = {
    "scalar rows": BadInput(lambda t: {"z": t["z"][0, 0]}, ValueError, r"z: got a scalar, want rows .*"),
    "wrong D": BadInput(
        lambda t: {"w": t["w"][:, :2]}, ValueError, r"w: got shape \[4, 2\], want \[K, D\] with D = 3 of z"
    ),
    "wrong u": BadInput(lambda t: {"u": t["u"][:2]}, ValueError, r"u: got shape \[2, 3\], want that of w"),
    "wrong b": BadInput(lambda t: {"b": t["b"][:2]}, ValueError, r"b: got shape \[2\], want \[K\] of w"),
}


class TestPlanarFlow(OpTests):
    spec = OpSpec(
        name="planar_flow", function=ops.planar_flow, reference=reference.planar_flow, make=make, cases=CASES,
        rows=["z"], extreme={k: constrained(v) for k, v in EXTREME.items()}, bad=BAD,
        small=[(35, 5, 4), (35, 1, 33), (35, 2, 33), (35, 64, 9), (35, 70, 9)],
        undo=lambda t, _, out: ops.planar_flow_inverse(out[0], t["w"], t["u"], t["b"])[0],
    )  # fmt: skip


class TestPlanarFlowInverse(OpTests):
    spec = dataclasses.replace(
        TestPlanarFlow.spec.inverted(ops.planar_flow_inverse, reference.planar_flow_inverse, "x"),
        small=[(35, 5, 4), (35, 70, 4)],
    )


SMALL = {
    "planar_constrain_u": Small(
        lambda: {"w": torch.randn(4, 5, dtype=torch.float64), "u": torch.randn(4, 5, dtype=torch.float64)}
    )
}


def test_inverse_at_the_edge_of_invertibility(kernels):
    """w.u = -1 exactly: the derivative vanishes at a = 0, and the equation a - tanh(a) = y has a triple root at 0."""
    w = torch.ones(1, 1, dtype=torch.float64, device=kernels.device)
    x = torch.tensor([[0.0], [1e-9], [0.3], [-5.0]], dtype=torch.float64, device=kernels.device)
    z, log_det = ops.planar_flow_inverse(x, w, -w, torch.zeros_like(w[0]))
    assert torch.allclose(z - torch.tanh(z), x, atol=1e-12)
    assert log_det[0] == torch.inf
    assert log_det[2:].isfinite().all()


def test_a_layer_that_cannot_be_inverted_gives_nan(kernels):
    w = torch.ones(1, 2, device=kernels.device)
    z, log_det = ops.planar_flow_inverse(torch.randn(3, 2, device=kernels.device), w, -w, torch.zeros(1).to(w.device))
    assert z.isnan().all()
    assert log_det.isnan().all()


def test_density_integrates_to_one(kernels):
    """The pushforward of a standard normal, scored by the inverse on a grid."""
    t = {k: v.to(kernels.device) for k, v in make((1, 2, 6), torch.Generator().manual_seed(5)).items()}
    axis = torch.linspace(-14, 14, 701, dtype=torch.float64, device=kernels.device)
    grid = torch.cartesian_prod(axis, axis)
    z, log_det = ops.planar_flow_inverse(grid, t["w"], t["u"], t["b"])
    density = torch.exp(torch.distributions.Normal(0, 1).log_prob(z).sum(-1) + log_det)
    total = density.sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(total) - 1) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constrained_u(dtype):
    big = 1e30 if dtype == torch.float32 else 1e200
    w = torch.tensor(
        [[1.0, 2.0], [0.0, 0.0], [10.0, 0.0], [-100.0, 3.0], [1e-30, 0.0], [big, 0.0], [big, big]], dtype=dtype
    )
    u = torch.tensor(
        [[-5.0, 1.0], [3.0, 4.0], [10.0, 0.0], [100.0, 0.5], [1.0, 1.0], [-big, 1.0], [-1.0, -1.0]], dtype=dtype
    )
    w.requires_grad_()
    u.requires_grad_()
    constrained = ops.planar_constrain_u(w, u)
    assert constrained.isfinite().all()
    assert ((w.double() * constrained.double()).sum(-1)[:4] >= -1 - 1e-3).all()
    assert torch.equal(constrained[1], u[1])
    t = torch.tensor(10.0 * 10.0, dtype=torch.float64)
    assert constrained[2, 0].item() == pytest.approx((torch.nn.functional.softplus(t) - 1).item() / 10, rel=1e-6)
    grads = torch.autograd.grad(constrained[:4].sum(), (w, u))
    assert all(g.isfinite().all() for g in grads)


def test_constrained_u_gradients():
    w, u = (
        torch.randn(5, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(5, 3, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(ops.planar_constrain_u, (w, u))


def test_depth_zero_is_the_identity(kernels):
    z = torch.randn(4, 3, device=kernels.device)
    w = torch.empty(0, 3, device=kernels.device)
    for f in (ops.planar_flow, ops.planar_flow_inverse):
        x, log_det = f(z, w, w, w[:, 0])
        assert torch.equal(x, z)
        assert not log_det.any()


@pytest.mark.parametrize("d", [2, 64])
def test_memory_is_one_number_a_layer_and_row_or_less(d):
    n, k = 4096, 32
    t = {key: v.float().requires_grad_() for key, v in make((n, d, k), torch.Generator().manual_seed(0)).items()}
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.setdefault(x.data_ptr(), x), lambda x: x):
        ops.planar_flow(**t)
    kept = sum(x.numel() for p, x in saved.items() if p not in {v.data_ptr() for v in t.values()})
    assert kept == (n * k + n * d if d == 64 else 0)  # a of every layer, and the output


def test_double_backward_is_not_zero(native):
    t = {k: v.requires_grad_() for k, v in make((4, 2, 3), torch.Generator().manual_seed(0)).items()}
    x, log_det = ops.planar_flow(**t)
    (g,) = torch.autograd.grad(x.sum() + log_det.sum(), t["z"], create_graph=True)
    second = torch.autograd.grad(g.square().sum(), list(t.values()))
    assert all(s.abs().max() > 0 for s in second)


def test_reference_backend_gives_the_same(native):
    import genfast

    t = make((20, 3, 4), torch.Generator().manual_seed(0))
    want = vjp(ops.planar_flow, t, {}, [torch.ones(20, 3), torch.ones(20)])
    with genfast.backend("reference"):
        got = vjp(ops.planar_flow, t, {}, [torch.ones(20, 3), torch.ones(20)])
    for a, b in zip([*got[0], *got[1].values()], [*want[0], *want[1].values()], strict=True):
        assert torch.allclose(a, b, atol=1e-10)
