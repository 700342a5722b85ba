import pytest
import torch

from genfast import ops
from genfast.reference import radial as reference
from tests.harness import BadInput, OpSpec, OpTests, relative_error, vjp


def make(case, generator):
    n, d, k = case
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    alpha = torch.nn.functional.softplus(randn(k))
    return {"z": randn(n, d), "center": randn(k, d), "alpha": alpha, "beta": torch.exp(randn(k)) - 0.9 * alpha}


def layer(z=0.0, center=0.0, alpha=1.0, beta=0.5, k=2):
    """Three rows of four numbers, and k equal layers."""
    return {
        "z": torch.full((3, 4), z), "center": torch.full((k, 4), center), "alpha": torch.full((k,), alpha),
        "beta": torch.full((k,), beta),
    }  # fmt: skip


EXTREME = {
    "at the center": lambda: layer(),
    "far": lambda: layer(z=1e25),
    "near": lambda: layer(z=1e-30),
    "wide": lambda: layer(1.0, alpha=1e30, beta=1e30),
    "narrow": lambda: layer(1.0, alpha=1e-30, beta=1e-30),
    "edge": lambda: layer(1.0, alpha=2.0, beta=-2.0),
    "far center": lambda: layer(1.0, -1e18, 1e18, 1e18),
}
BAD = {
    "scalar rows": BadInput(lambda t: {"z": t["z"][0, 0]}, ValueError, r"z: got a scalar, want rows .*"),
    "wrong D": BadInput(
        lambda t: {"center": t["center"][:, :2]}, ValueError,
        r"center: got shape \[4, 2\], want \[K, D\] with D = 3 of z",
    ),
    "wrong alpha": BadInput(lambda t: {"alpha": t["alpha"][:2]}, ValueError, r"alpha: got shape \[2\], want \[K\] .*"),
    "wrong beta": BadInput(lambda t: {"beta": t["beta"][:2]}, ValueError, r"beta: got shape \[2\], want \[K\] .*"),
}  # fmt: skip


class TestRadialFlow(OpTests):
    spec = OpSpec(
        name="radial_flow", function=ops.radial_flow, reference=reference.radial_flow, make=make, rows=["z"],
        cases=[(5, 3, 4), (7, 2, 3), (1, 1, 1), (130, 2, 32), (67, 17, 5), (257, 64, 8), (9, 1500, 2)],
        small=[(35, 5, 4), (35, 1, 33), (35, 2, 33), (35, 64, 9), (35, 1030, 2)], extreme=EXTREME, bad=BAD,
        undo=lambda t, _, out: ops.radial_flow_inverse(out[0], t["center"], t["alpha"], t["beta"])[0],
    )  # fmt: skip


class TestRadialFlowInverse(OpTests):
    spec = TestRadialFlow.spec.inverted(ops.radial_flow_inverse, reference.radial_flow_inverse, "x")


def test_one_layer_by_hand(backend):
    """z - c = (3, 4): r = 5, h = 1 / (5 + 5); with beta = -2, q = 0.8 and dr'/dr = 1 - 5 * 2 / 100."""
    z, center, alpha, beta = (
        torch.tensor(t, dtype=torch.float64, device=backend.device)
        for t in ([[4.0, 2.0]], [[1.0, -2.0]], [5.0], [-2.0])
    )
    x, log_det = ops.radial_flow(z, center, alpha, beta)
    assert torch.allclose(x, torch.tensor([[3.4, 1.2]], dtype=x.dtype, device=x.device), rtol=1e-14)
    assert torch.allclose(log_det, torch.tensor([0.8 * 0.9], dtype=x.dtype, device=x.device).log(), rtol=1e-14)


def test_edge_of_invertibility(backend):
    """beta = -alpha: the distance r becomes r^2 / (alpha + r), so that the center's neighbourhood is flattened."""
    y = torch.tensor([0.0, 1e-12, 0.5, 1e6], dtype=torch.float64, device=backend.device)
    center, alpha = torch.tensor([[0.25]]).to(y), torch.tensor([2.0]).to(y)
    z, log_det = ops.radial_flow_inverse(y[:, None] + center, center, alpha, -alpha)
    r = (z - center).squeeze(-1)
    assert torch.allclose(r, (y + torch.sqrt(y * y + 8 * y)) / 2, rtol=1e-4, atol=0)
    assert log_det[0] == torch.inf
    x, back = ops.radial_flow(z, center, alpha, -alpha)
    assert torch.allclose(x.squeeze(-1) - center[0], y, rtol=1e-4, atol=1e-15)
    assert torch.equal(x[0], center[0])
    assert torch.allclose(back[1:], -log_det[1:], rtol=1e-4)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (-1.0, 2.0), (1.0, -1.0001)])
def test_a_layer_that_cannot_be_inverted_gives_nan(backend, alpha, beta):
    z, *parameters = (t.to(backend.device) for t in layer(1.0, 0.0, alpha, beta).values())
    assert all(out.isnan().all() for out in ops.radial_flow_inverse(z, *parameters))


def test_density_integrates_to_one(kernels):
    """The pushforward of a standard normal, scored by the inverse on a grid."""
    t = {k: v.to(kernels.device) for k, v in make((1, 2, 6), torch.Generator().manual_seed(5)).items()}
    axis = torch.linspace(-20, 20, 801, dtype=torch.float64, device=kernels.device)
    z, log_det = ops.radial_flow_inverse(torch.cartesian_prod(axis, axis), t["center"], t["alpha"], t["beta"])
    density = torch.exp(torch.distributions.Normal(0, 1).log_prob(z).sum(-1) + log_det)
    assert abs(float(density.sum() * (axis[1] - axis[0]) ** 2) - 1) < 1e-3


def test_gradients_survive_a_strong_contraction(kernels):
    """32 layers bring rows 40,000 times nearer to a center; z, rebuilt from there, would have lost half its digits."""
    t = {**layer(center=1.0, alpha=2.0, beta=-0.6, k=32), "z": 1 + torch.randn(64, 4) / 2}
    cotangents = [torch.zeros(64, 4), torch.ones(64)]
    _, want = vjp(reference.radial_flow, {k: v.double() for k, v in t.items()}, {}, cotangents)
    _, got = vjp(ops.radial_flow, {k: v.to(kernels.device) for k, v in t.items()}, {}, cotangents)
    for k in ("z", "alpha", "beta"):  # that of the center sums what has come near it
        assert relative_error(got[k], want[k]) < 1e-5, k


def test_rows_beyond_shared_memory_are_refused(kernels):
    if kernels.name not in ("simt", "cuda"):
        pytest.skip("a CPU has room for any D")
    z, one = torch.zeros(1, 60_000, device=kernels.device), torch.ones(1, device=kernels.device)
    with pytest.raises(ValueError, match=r"radial_flow on CUDA: D is too large; 51200 is the most"):
        ops.radial_flow(z, z, one, one)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_as_normflows(scale):
    normflows = pytest.importorskip("normflows", reason="normflows is not installed")
    torch.manual_seed(0)
    theirs = normflows.flows.Radial((3,)).double()
    z = scale * torch.randn(7, 3, dtype=torch.float64)
    want, want_log_det = theirs(z)
    alpha = theirs.alpha.abs()
    beta = torch.nn.functional.softplus(theirs.beta) - alpha
    got, log_det = ops.radial_flow(z, theirs.z_0.reshape(1, 3), alpha, beta)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(log_det, want_log_det, rtol=1e-9, atol=1e-12)
