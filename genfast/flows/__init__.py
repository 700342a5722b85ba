"""Normalizing flows: x = f_K(... f_1(z)) of simple noise z, with the density of x."""

from genfast.flows._coupling import Coupling
from genfast.flows._distribution import FlowDistribution
from genfast.flows._transform import Transform
from genfast.flows.base import StandardNormal, TorchDistribution
from genfast.flows.coupling import AdditiveCoupling, AffineCoupling, SplineCoupling
from genfast.flows.flow import Flow
from genfast.flows.nets import MLP, Constant, ConvNet, ResidualMLP
from genfast.flows.permutation import Permutation, alternating_mask, checkerboard_mask, half_mask
from genfast.flows.planar import Planar

__all__ = [
    "MLP",
    "AdditiveCoupling",
    "AffineCoupling",
    "Constant",
    "ConvNet",
    "Coupling",
    "Flow",
    "FlowDistribution",
    "Permutation",
    "Planar",
    "ResidualMLP",
    "SplineCoupling",
    "StandardNormal",
    "TorchDistribution",
    "Transform",
    "alternating_mask",
    "checkerboard_mask",
    "half_mask",
]
