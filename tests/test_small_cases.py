"""The small cases of every op on every backend: what scripts/gpu_check.sh runs under compute-sanitizer.

They come from the specs of the ops (tests/harness/collect.py); `test_every_op_has_a_case` fails where one has none.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import genfast
from genfast import ops
from tests.conftest import CPU_TARGETS, Backend
from tests.harness import relative_error, with_gradients
from tests.harness.collect import small_cases
from tests.tolerances import tolerance

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


CASES = small_cases()


def function_of(name: str) -> Callable[..., Any]:
    return CASES[name].function or getattr(ops, name.split(" ", maxsplit=1)[0])


def call(name: str, **arguments: Any) -> tuple[Tensor, ...]:
    out = function_of(name)(**arguments)
    return (out,) if isinstance(out, Tensor) else out


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}


def run(name: str, tensors: dict[str, Tensor], options: dict[str, Any], cotangents: Any = None) -> dict[str, Tensor]:
    """Outputs and, where there are any, gradients of one call, by name; cotangents are ones unless given."""
    leaves = with_gradients(tensors)
    out = call(name, **leaves, **options)
    results = {f"output {i}": o.detach() for i, o in enumerate(out)}
    pairs = [(o, torch.ones_like(o) if cotangents is None else cotangents[i].to(o)) for i, o in enumerate(out)]
    pairs = [(o, c) for o, c in pairs if o.requires_grad]
    if pairs:
        outputs, cotangents = zip(*pairs, strict=True)
        wanted = {k: v for k, v in leaves.items() if v.requires_grad}
        grads = torch.autograd.grad(outputs, list(wanted.values()), cotangents, materialize_grads=True)
        results |= {f"gradient of {k}": g for k, g in zip(wanted, grads, strict=True)}
    return results


def test_every_op_has_a_case():
    functions = {name for name in ops.__all__ if not isinstance(getattr(ops, name), type)}
    assert {name.split(" ")[0] for name in CASES} == functions


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", CASES)
def test_small_case(kernels, name, dtype):
    case = CASES[name]
    tensors = cast(case.make(), dtype)
    wide = tensors if case.exact else cast(tensors, torch.float64)
    here = {k: v.to(kernels.device) for k, v in tensors.items()}
    for options in case.options:
        with genfast.backend("reference"):
            cotangents = [torch.randn_like(o, dtype=torch.float64) for o in call(name, **wide, **options)]
            want = run(name, wide, options, cotangents)
        with genfast.backend("native"):
            got = run(name, here, options, cotangents)
        assert got.keys() == want.keys()
        for k, b in want.items():
            a = got[k].cpu()
            limit = tolerance(name.split(" ")[0], dtype, gradient=k.startswith("gradient"))
            assert torch.equal(a, b) if case.exact else relative_error(a, b) <= limit, (k, options)


@pytest.mark.skipif("simt" not in CPU_TARGETS, reason="a build without simt")
@pytest.mark.parametrize("name", CASES)
def test_order_of_threads_does_not_matter(name, monkeypatch):
    """CUDA threads and blocks in another order give the same bits: no barrier is missing, no sum depends on a race."""
    case = CASES[name]
    tensors = cast(case.make(), torch.float32)
    for options in case.options:
        results = {}
        for order in ("forward", "reverse", "random"):
            monkeypatch.setenv("GENFAST_SIMT_ORDER", order)
            with Backend("simt").use():
                results[order] = run(name, tensors, options)
        for order in ("reverse", "random"):
            for k, a in results["forward"].items():
                assert torch.equal(a, results[order][k]), (k, options, order)
