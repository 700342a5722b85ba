"""One small case of every option of every op: what scripts/gpu_check.sh runs under compute-sanitizer.

A new op needs an entry in CASES, or `test_every_op_has_a_case` fails.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import genfast
from genfast import ops
from tests.conftest import CPU_TARGETS, Backend
from tests.harness import relative_error, with_gradients
from tests.tolerances import tolerance

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
N = 35  # more than a warp, and odd


@dataclasses.dataclass
class Small:
    """Tensors by name of the argument, and the options to try; `exact` where every backend gives the same bits."""

    make: Callable[..., dict[str, Tensor]]
    options: list[dict[str, Any]] = dataclasses.field(default_factory=lambda: [{}])
    exact: bool = False


def normal(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64)


def binary(*size: int, density: float = 0.3) -> Tensor:
    return torch.bernoulli(torch.full(size, density, dtype=torch.float64))


def planar(rows: str, d: int = 5, k: int = 4) -> dict[str, Tensor]:
    w, u = normal(k, d) / d**0.5, normal(k, d) / d**0.5
    return {rows: normal(N, d), "w": w, "u": ops.planar_constrain_u(w, u), "b": normal(k)}


def spline(bins: int = 8) -> dict[str, Tensor]:
    return {
        "x": 2 * normal(N, 3), "widths": normal(N, 3, bins), "heights": normal(N, 3, bins),
        "derivatives": normal(N, 3, bins - 1),
    }  # fmt: skip


def rbm(chains: int = N, visible: int = 37, hidden: int = 41, density: float = 0.3) -> dict[str, Tensor]:
    return {
        "v": binary(chains, visible, density=density), "W": normal(visible, hidden) / 4, "vbias": normal(visible),
        "hbias": normal(hidden),
    }  # fmt: skip


def shared_spline(numbers: tuple[int, ...], lead: tuple[int, ...], bins: int = 8) -> dict[str, Tensor]:
    return {"x": 2 * normal(*numbers), "params": normal(*lead, 3 * bins - 1)}


def clamped_rbm() -> dict[str, Tensor]:
    return {**rbm(), "clamp": binary(37).bool()}


SCALE_MAPS = ("exp", "sigmoid", "softplus", "tanh", "atan", "softclip", "reciprocal_sigmoid")
BOTH = [{"inverse": False}, {"inverse": True}]

CASES = {
    "additive_coupling": Small(lambda: {"x": normal(N, 5), "shift": normal(N, 5)}, BOTH),
    "affine_coupling": Small(
        lambda: {"x": normal(N, 5), "shift": normal(N, 5), "scale": normal(N, 5)},
        [{**direction, "scale_map": name} for direction in BOTH for name in SCALE_MAPS],
    ),
    "affine_coupling (D = 67)": Small(lambda: {"x": normal(N, 67), "shift": normal(N, 67), "scale": normal(N, 67)}),
    "affine_coupling (packed)": Small(
        lambda: {"x": normal(N, 5), "params": normal(N, 10)},
        [{**direction, "layout": layout} for direction in BOTH for layout in ("chunked_shift_scale", "interleaved")],
    ),
    "planar_constrain_u": Small(lambda: {"w": normal(4, 5), "u": normal(4, 5)}),
    "planar_flow": Small(lambda: planar("z")),
    "planar_flow_inverse": Small(lambda: planar("x")),
    **{f"planar_flow (D = {d})": Small(lambda d=d: planar("z", d, 33)) for d in (1, 2, 64, 70)},
    "planar_flow_inverse (D = 70)": Small(lambda: planar("x", 70)),
    "rational_quadratic_spline": Small(spline, BOTH),
    **{
        f"rational_quadratic_spline ({bins} bins)": Small(lambda bins=bins: spline(bins), BOTH)
        for bins in (2, 4, 7, 10, 16, 32)
    },
    "rational_quadratic_spline (one row)": Small(lambda: shared_spline((4500,), ()), BOTH),
    "rational_quadratic_spline (a row a feature)": Small(lambda: shared_spline((150, 3), (3,), 19), BOTH),
    "rational_quadratic_spline (a row a sample)": Small(lambda: shared_spline((90, 3), (90, 1)), BOTH),
    "rbm_free_energy": Small(rbm),
    "rbm_gibbs": Small(
        rbm, [{"seed": 3, "n_steps": n, "beta": beta} for n in (1, 3) for beta in (1.0, 0.5)], exact=True
    ),
    "rbm_gibbs (one chain)": Small(lambda: rbm(1), [{"seed": 4}], exact=True),
    "rbm_gibbs (one unit)": Small(lambda: rbm(N, 1, 1), [{"seed": 5}], exact=True),
    "rbm_gibbs (clamped)": Small(clamped_rbm, [{"seed": 6, "n_steps": 2}], exact=True),
    **{
        f"rbm_gibbs (density {density})": Small(
            lambda density=density: rbm(130, 150, 137, density), [{"seed": 7}], exact=True
        )
        for density in (0.02, 0.7)
    },
}


def function_of(name: str) -> Callable[..., Any]:
    return getattr(ops, name.split(" ", maxsplit=1)[0])


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
        grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents, materialize_grads=True)
        results |= {f"gradient of {k}": g for k, g in zip(leaves, grads, strict=True)}
    return results


def test_every_op_has_a_case():
    assert {name.split(" ")[0] for name in CASES} == set(ops.__all__)


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
