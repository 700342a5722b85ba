import pytest
import torch

from genfast import ops
from genfast.reference import sylvester as reference
from tests.harness import BadInput, OpSpec, OpTests, relative_error, vjp


def make(case, generator):
    n, d, m, k = case
    randn = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    # diagonals within (-0.9, 0.9); below them are numbers that are not to be read
    r1, r2 = (0.5 * randn(k, m, m) / m**0.5 for _ in range(2))
    for r in (r1, r2):
        r.diagonal(dim1=-2, dim2=-1).mul_(4 * m**0.5).tanh_().mul_(0.9)
    return {"z": randn(n, d), "q": torch.linalg.qr(randn(k, d, m)).Q, "r1": r1, "r2": r2, "b": randn(k, m)}


def layers(z=0.0, r1=0.5, r2=0.5, b=0.0, k=2):
    """Three rows of four numbers, and k equal layers of two units along two of the axes."""
    upper = torch.ones(2, 2).triu()
    return {
        "z": torch.full((3, 4), z), "q": torch.eye(4)[:, 1:3].expand(k, 4, 2), "r1": (r1 * upper).expand(k, 2, 2),
        "r2": (r2 * upper).expand(k, 2, 2), "b": torch.full((k, 2), b),
    }  # fmt: skip


EXTREME = {
    "zero": lambda: layers(),
    "far": lambda: layers(1e25, 1e5),
    "steep": lambda: layers(0.5, 1e10, 1e10),
    "large factors": lambda: layers(1e-20, 1e13, 1e13, k=1),  # 1e26 twice: more than float32 holds
    "flat": lambda: layers(0.5, 1e-30, 1e-30),
    "saturated": lambda: layers(0.5, b=1e30),
    "edge": lambda: layers(1.0, -1.0, 1.0),
}
BAD = {
    "scalar rows": BadInput(lambda t: {"z": t["z"][0, 0]}, ValueError, r"z: got a scalar, want rows .*"),
    "wrong D": BadInput(
        lambda t: {"q": t["q"][:, :2]}, ValueError,
        r"q: got shape \[2, 2, 2\], want \[K, D, M\] with D = 3 of z",
    ),
    "more columns than rows": BadInput(
        lambda t: {"q": t["q"].repeat(1, 1, 2)}, ValueError,
        r"q: got shape \[2, 3, 4\], want \[K, D, M\] with M <= D orthonormal columns",
    ),
    "wrong r1": BadInput(lambda t: {"r1": t["r1"][:1]}, ValueError, r"r1: got shape \[1, 2, 2\], want \[K, M, M\] .*"),
    "wrong r2": BadInput(lambda t: {"r2": t["r2"][0]}, ValueError, r"r2: got shape \[2, 2\], want \[K, M, M\] of q"),
    "wrong b": BadInput(lambda t: {"b": t["b"][:, :1]}, ValueError, r"b: got shape \[2, 1\], want \[K, M\] of q"),
}  # fmt: skip


class TestSylvesterFlow(OpTests):
    spec = OpSpec(
        name="sylvester_flow", function=ops.sylvester_flow, reference=reference.sylvester_flow, make=make, rows=["z"],
        cases=[(3, 3, 2, 2), (7, 2, 2, 3), (1, 1, 1, 1), (130, 9, 9, 4), (67, 17, 5, 2), (9, 150, 35, 1)],
        small=[(35, 5, 3, 2), (35, 33, 6, 2), (131, 64, 3, 1), (35, 150, 35, 1)], extreme=EXTREME, bad=BAD,
        undo=lambda t, _, out: ops.sylvester_flow_inverse(out[0], *list(t.values())[1:])[0],
    )  # fmt: skip


class TestSylvesterFlowInverse(OpTests):
    spec = TestSylvesterFlow.spec.inverted(ops.sylvester_flow_inverse, reference.sylvester_flow_inverse, "x")


def test_one_layer_by_hand(backend):
    """Q the first two axes, R2 = [[1, 2], [0, -1]], R1 = [[0.5, 1], [0, 3]], b = 0, z = (1, -0.5, 7)."""
    z, q, r1, r2, b = (
        torch.tensor(t, dtype=torch.float64, device=backend.device)
        for t in (
            [[1.0, -0.5, 7.0]],
            [[[1, 0], [0, 1], [0, 0]]],
            [[[0.5, 1], [9, 3]]],
            [[[1, 2], [9, -1]]],
            [[0.0, 0.0]],
        )
    )
    x, log_det = ops.sylvester_flow(z, q, r1, r2, b)
    h = torch.tensor([0.0, 0.5], dtype=torch.float64).tanh()  # a = (1 - 1, 0.5)
    want = torch.tensor([[1 + h[1], -0.5 + 3 * h[1], 7]], dtype=torch.float64)
    assert torch.allclose(x.cpu(), want, rtol=1e-14)
    slopes = 1 - h * h
    want = torch.log((1 + 0.5 * slopes[0]) * (1 - 3 * slopes[1]).abs())
    assert torch.allclose(log_det.cpu(), want, rtol=1e-14)


def test_one_unit_is_a_planar_layer(backend):
    """M = 1: w = r2 q and u = r1 q."""
    t = {k: v.to(backend.device) for k, v in make((9, 5, 1, 4), torch.Generator().manual_seed(2)).items()}
    q = t["q"].squeeze(-1)
    planar = q * t["r2"].squeeze(-1), q * t["r1"].squeeze(-1), t["b"].squeeze(-1)
    pairs = (ops.sylvester_flow, ops.planar_flow), (ops.sylvester_flow_inverse, ops.planar_flow_inverse)
    for ours, theirs in pairs:
        for a, b in zip(ours(*t.values()), theirs(t["z"], *planar), strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_edge_of_invertibility(kernels, dtype):
    """r1 r2 = -1: where a = 0 the layer flattens, and what rounding put below -1 counts as the edge."""
    edge = torch.tensor(3.0, dtype=dtype)
    t = {k: v.to(kernels.device, dtype) for k, v in layers(0.0, -1 / edge, edge, k=1).items()}
    z, log_det = ops.sylvester_flow_inverse(*t.values())
    assert torch.equal(z, torch.zeros_like(z))
    assert (log_det == torch.inf).all() or (log_det > 10).all()
    t["z"] = torch.full_like(t["z"], 0.5)
    z, log_det = ops.sylvester_flow_inverse(*t.values())
    assert log_det.isfinite().all()
    x, _ = ops.sylvester_flow(z, *list(t.values())[1:])
    assert torch.allclose(x, t["z"], atol=4 * torch.finfo(dtype).eps)


def test_a_layer_that_cannot_be_inverted_gives_nan(backend):
    t = {k: v.to(backend.device) for k, v in layers(0.5, -1.1, 1.0).items()}
    assert all(out.isnan().all() for out in ops.sylvester_flow_inverse(*t.values()))
    assert all(out.isfinite().all() for out in ops.sylvester_flow(*t.values()))


def test_density_integrates_to_one(kernels):
    """The pushforward of a standard normal, scored by the inverse on a grid."""
    t = {k: v.to(kernels.device) for k, v in make((1, 2, 2, 6), torch.Generator().manual_seed(5)).items()}
    axis = torch.linspace(-12, 12, 801, dtype=torch.float64, device=kernels.device)
    z, log_det = ops.sylvester_flow_inverse(torch.cartesian_prod(axis, axis), *list(t.values())[1:])
    density = torch.exp(torch.distributions.Normal(0, 1).log_prob(z).sum(-1) + log_det)
    assert abs(float(density.sum() * (axis[1] - axis[0]) ** 2) - 1) < 1e-3


def test_gradients_of_many_layers(kernels):
    """32 layers: z is kept and not rebuilt, so that the gradients are as good as the reference's in float64."""
    t = {k: v.float() for k, v in make((33, 8, 4, 32), torch.Generator().manual_seed(3)).items()}
    cotangents = [torch.zeros(33, 8), torch.ones(33)]
    _, want = vjp(reference.sylvester_flow, {k: v.double() for k, v in t.items()}, {}, cotangents)
    _, got = vjp(ops.sylvester_flow, {k: v.to(kernels.device) for k, v in t.items()}, {}, cotangents)
    for k in want:
        assert relative_error(got[k], want[k]) < 1e-5, k


def test_what_is_below_the_diagonal_is_not_read(native):
    t = make((5, 4, 3, 2), torch.Generator().manual_seed(4))
    upper = {**t, "r1": t["r1"].triu(), "r2": t["r2"].triu()}
    for function, name in ((ops.sylvester_flow, "z"), (ops.sylvester_flow_inverse, "x")):
        named = {(name if k == "z" else k): v for k, v in t.items()}
        outputs, grads = vjp(function, named, {}, [torch.ones(5, 4), torch.ones(5)])
        for a, b in zip(outputs, function(*upper.values()), strict=True):
            assert torch.equal(a, b)
        for k in ("r1", "r2"):
            assert not grads[k].tril(-1).any()


def test_more_rows_than_a_chunk(kernels):
    """Chunks of more than 128 rows, of which the last is not full, against the sum of two halves."""
    if kernels.name == "simt":
        pytest.skip("70,000 rows are too many for the emulation")
    t = {k: v.float().to(kernels.device) for k, v in make((70_001, 2, 1, 1), torch.Generator().manual_seed(6)).items()}
    cotangents = [torch.ones(70_001, 2), torch.ones(70_001)]
    _, got = vjp(ops.sylvester_flow, t, {}, cotangents)
    _, want = vjp(reference.sylvester_flow, {k: v.double().cpu() for k, v in t.items()}, {}, cotangents)
    for k in want:
        assert relative_error(got[k], want[k]) < 1e-5, k


def test_rows_beyond_shared_memory_are_refused(kernels):
    if kernels.name not in ("simt", "cuda"):
        pytest.skip("a CPU has room for any D")
    z = torch.zeros(1, 1_600, device=kernels.device)
    q, one = torch.zeros(1, 1_600, 1, device=kernels.device), torch.ones(1, 1, 1, device=kernels.device)
    with pytest.raises(ValueError, match=r"sylvester_flow on CUDA: D \+ 2M is too large; 1547 is the most"):
        ops.sylvester_flow(z, q, one, one, one[0])
