"""Normalizing flows: x = f_K(... f_1(z)) of simple noise z, with the density of x."""

from genfast.flows._coupling import Coupling
from genfast.flows._distribution import FlowDistribution
from genfast.flows._transform import Transform
from genfast.flows.actnorm import ActNorm
from genfast.flows.affine import AffineTransform, Standardize
from genfast.flows.autoregressive import InverseAutoregressive, MaskedAutoregressive
from genfast.flows.base import StandardNormal, TorchDistribution
from genfast.flows.bases import DiagonalNormal, GaussianMixture, Normal, StudentT, Uniform
from genfast.flows.conv1x1 import ActNormConv1x1, InvertibleConv1x1
from genfast.flows.coupling import AdditiveCoupling, AffineCoupling, SplineCoupling
from genfast.flows.flow import Flow
from genfast.flows.invertible import InvertibleSequential
from genfast.flows.logit import Logit
from genfast.flows.lu_linear import LULinear
from genfast.flows.made import MADE
from genfast.flows.mixture import LogisticMixtureCoupling
from genfast.flows.models.flowplusplus import FlowPlusPlus
from genfast.flows.models.glow import Glow
from genfast.flows.models.maf import IAF, MAF, AutoregressiveNSF
from genfast.flows.models.nice import NICE
from genfast.flows.models.nsf import NSF
from genfast.flows.models.planar import PlanarFlow
from genfast.flows.models.radial import RadialFlow
from genfast.flows.models.realnvp import RealNVP
from genfast.flows.models.sylvester import SylvesterFlow
from genfast.flows.multiscale import Split, Squeeze, Unflatten
from genfast.flows.nets import MLP, Constant, ConvNet, ResidualMLP
from genfast.flows.permutation import Permutation, alternating_mask, checkerboard_mask, half_mask
from genfast.flows.planar import Planar
from genfast.flows.radial import Radial
from genfast.flows.sylvester import Sylvester

__all__ = [
    "IAF",
    "MADE",
    "MAF",
    "MLP",
    "NICE",
    "NSF",
    "ActNorm",
    "ActNormConv1x1",
    "AdditiveCoupling",
    "AffineCoupling",
    "AffineTransform",
    "AutoregressiveNSF",
    "Constant",
    "ConvNet",
    "Coupling",
    "DiagonalNormal",
    "Flow",
    "FlowDistribution",
    "FlowPlusPlus",
    "GaussianMixture",
    "Glow",
    "InverseAutoregressive",
    "InvertibleConv1x1",
    "InvertibleSequential",
    "LULinear",
    "LogisticMixtureCoupling",
    "Logit",
    "MaskedAutoregressive",
    "Normal",
    "Permutation",
    "Planar",
    "PlanarFlow",
    "Radial",
    "RadialFlow",
    "RealNVP",
    "ResidualMLP",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "StandardNormal",
    "Standardize",
    "StudentT",
    "Sylvester",
    "SylvesterFlow",
    "TorchDistribution",
    "Transform",
    "Unflatten",
    "Uniform",
    "alternating_mask",
    "checkerboard_mask",
    "half_mask",
]
