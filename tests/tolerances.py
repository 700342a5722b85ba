"""How far a result may lie from the float64 reference, relative to the largest entry of that result.

One table, each entry with its reason. The defaults are the contract of the design: 1e-5 in float32. Half types are
computed in float32 and rounded once, so half an ulp of the storage type (2^-11, 2^-8) and a margin for sums.
"""

import torch

DEFAULT = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

# (op, dtype) -> (tolerance of values, tolerance of gradients, reason)
TABLE: dict[tuple[str, torch.dtype], tuple[float, float, str]] = {
    ("planar_flow_inverse", torch.float32): (
        2e-5,
        1e-4,
        "condition: where w.u is near -1 and a near 0, da/dx = 1 / (1 + w.u h') is large in every layer",
    ),
    ("planar_flow_inverse", torch.float64): (1e-11, 1e-10, "the same condition"),
    ("radial_flow", torch.float32): (
        1e-5,
        2e-5,
        "32 layers: the rounding of the reference, which the kernels undercut",
    ),
    ("actnorm_conv1x1", torch.float32): (
        1e-5,
        3e-5,
        "the gradient of lower is one number of two channels, a sum of hundreds of numbers of both signs",
    ),
    ("rational_quadratic_spline", torch.float32): (
        2e-5,
        5e-4,
        "condition: where the map is steep (slopes up to 1000) the float32 rounding of the knots shows in y, and the "
        "inverse's gradients go with the slope squared",
    ),
    **{
        (name, dtype): (*limits, "condition: the inverse's gradients go with the inverse slope squared")
        for name in ("linear_spline", "quadratic_spline", "cubic_spline")
        for dtype, limits in ((torch.float32, (2e-5, 1e-4)), (torch.float64, (1e-12, 1e-11)))
    },
    ("rational_quadratic_spline", torch.float64): (1e-12, 1e-11, "the same condition"),
}


def tolerance(op: str, dtype: torch.dtype, *, gradient: bool = False) -> float:
    """The tolerance of values or gradients of an op in a dtype."""
    entry = TABLE.get((op, dtype))
    return entry[1 if gradient else 0] if entry else DEFAULT[dtype]
