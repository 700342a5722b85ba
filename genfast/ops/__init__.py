"""The ops: functions on tensors, each backed by fused kernels; all but samplers and evaluations are differentiable."""

from genfast.ops.boltzmann import boltzmann_gibbs
from genfast.ops.channel_affine import actnorm, actnorm_conv1x1, invertible_conv1x1, lu_linear
from genfast.ops.coupling import additive_coupling, affine_coupling
from genfast.ops.dbm import dbm_gibbs, dbm_mean_field
from genfast.ops.ising import ising_gibbs
from genfast.ops.ising_lattice import lattice_gibbs
from genfast.ops.joint_energy import rbm_joint_energy
from genfast.ops.masked_autoregressive import masked_autoregressive_inverse, masked_autoregressive_transform
from genfast.ops.mixture_cdf import mixture_of_gaussians_cdf, mixture_of_logistics_cdf
from genfast.ops.planar import planar_constrain_u, planar_flow, planar_flow_inverse
from genfast.ops.poly_spline import cubic_spline, linear_spline, quadratic_spline
from genfast.ops.radial import radial_flow, radial_flow_inverse
from genfast.ops.rbm import rbm_free_energy, rbm_gibbs
from genfast.ops.rbm_ais import rbm_ais
from genfast.ops.rbm_cd import RbmStep, rbm_cd
from genfast.ops.rbm_pseudo_likelihood import rbm_pseudo_likelihood
from genfast.ops.rq_spline import rational_quadratic_spline
from genfast.ops.sylvester import sylvester_flow, sylvester_flow_inverse
from genfast.ops.tempering import exchange_swap, tempering_swap

__all__ = [
    "RbmStep",
    "actnorm",
    "actnorm_conv1x1",
    "additive_coupling",
    "affine_coupling",
    "boltzmann_gibbs",
    "cubic_spline",
    "dbm_gibbs",
    "dbm_mean_field",
    "exchange_swap",
    "invertible_conv1x1",
    "ising_gibbs",
    "lattice_gibbs",
    "linear_spline",
    "lu_linear",
    "masked_autoregressive_inverse",
    "masked_autoregressive_transform",
    "mixture_of_gaussians_cdf",
    "mixture_of_logistics_cdf",
    "planar_constrain_u",
    "planar_flow",
    "planar_flow_inverse",
    "quadratic_spline",
    "radial_flow",
    "radial_flow_inverse",
    "rational_quadratic_spline",
    "rbm_ais",
    "rbm_cd",
    "rbm_free_energy",
    "rbm_gibbs",
    "rbm_joint_energy",
    "rbm_pseudo_likelihood",
    "sylvester_flow",
    "sylvester_flow_inverse",
    "tempering_swap",
]
