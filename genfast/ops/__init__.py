"""The ops: differentiable functions on tensors, each backed by one fused kernel."""

from genfast.ops.planar import planar_constrain_u, planar_flow, planar_flow_inverse

__all__ = [
    "planar_constrain_u",
    "planar_flow",
    "planar_flow_inverse",
]
