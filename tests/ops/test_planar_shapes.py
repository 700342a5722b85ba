"""The GPU kernels of planar flows choose among layouts of rows and tiles of layers; every choice is taken here."""

import pytest
import torch

from genfast import ops
from genfast.reference import planar as reference
from tests.harness import relative_error, vjp
from tests.ops.test_planar import make
from tests.tolerances import tolerance

# N, D and K of each
SHAPES = [
    pytest.param((9, 3, 3), id="padded"),
    pytest.param((130, 17, 2), id="backward in two threads a row"),
    pytest.param((70, 33, 3), id="two threads a row"),
    pytest.param((9, 200, 4), id="eight threads a row"),
    pytest.param((3, 512, 2), id="a warp a row"),
    pytest.param((5, 20, 500), id="several tiles of layers"),
    pytest.param((3, 300, 60), id="wide rows and several tiles"),
    pytest.param((3, 1000, 2), id="backward in shared memory"),
    pytest.param((3, 1100, 3), id="in shared memory"),
    pytest.param((66_000, 1, 2), id="chunks of more rows than a block"),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_layout_of_rows(kernels, shape, dtype):
    if kernels.name in ("baseline", "avx2"):
        pytest.skip("the layouts of the CPU do not depend on these sizes")
    tensors = {k: v.to(dtype) for k, v in make(shape, torch.Generator().manual_seed(0)).items()}
    exact = {k: v.double() for k, v in tensors.items()}
    # Deep stacks amplify rounding: keep the layers gentle.
    for t in (tensors, exact):
        t["u"] = t["u"] * (1 if shape[2] < 50 else 2**-6)
    n, d, _ = shape
    cotangents = [torch.randn(n, d, dtype=torch.float64), torch.randn(n, dtype=torch.float64)]
    want, want_grads = vjp(reference.planar_flow, exact, {}, cotangents)
    here = {k: v.to(kernels.device) for k, v in tensors.items()}
    got, grads = vjp(ops.planar_flow, here, {}, [c.to(kernels.device) for c in cotangents])
    for a, b in zip([*got, *grads.values()], [*want, *want_grads.values()], strict=True):
        assert relative_error(a, b) <= 4 * tolerance("planar_flow", dtype)


@pytest.mark.parametrize("d", [3, 40, 1100])
def test_inverse_of_every_layout(kernels, d):
    t = {k: v.to(kernels.device) for k, v in make((20, d, 3), torch.Generator().manual_seed(1)).items()}
    x, log_det = ops.planar_flow(**t)
    cotangents = [torch.randn(20, d).to(x), torch.randn(20).to(x)]
    inputs = {"x": x, "w": t["w"], "u": t["u"], "b": t["b"]}
    (z, back), grads = vjp(ops.planar_flow_inverse, inputs, {}, cotangents)
    assert relative_error(z, t["z"]) < 1e-9
    assert relative_error(back, -log_det) < 1e-9
    inputs = {k: v.cpu() for k, v in inputs.items()}
    _, want = vjp(reference.planar_flow_inverse, inputs, {}, [c.cpu() for c in cotangents])
    for k, g in grads.items():
        assert relative_error(g, want[k]) < 1e-8


def test_rows_beyond_shared_memory_are_refused(kernels):
    if kernels.name not in ("simt", "cuda"):
        pytest.skip("a CPU has room for any D")
    z, w, b = torch.zeros(1, 60_000), torch.zeros(1, 60_000), torch.zeros(1)
    with pytest.raises(ValueError, match=r"planar_flow on CUDA: D is too large; 25600 is the most"):
        ops.planar_flow(*(t.to(kernels.device) for t in (z, w, w, b)))
