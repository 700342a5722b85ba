"""The pseudo-log-likelihood of restricted Boltzmann machines, all visible units in one pass."""

import math

import torch
from torch import Tensor

from genfast import _native
from genfast._backend import use_reference
from genfast._register import HALF, define
from genfast.ops import _checks as check
from genfast.ops.rbm import _machine, state_product
from genfast.reference import rbm_pseudo_likelihood as reference

# Products (row, visible unit, hidden unit) of one call of the kernel: less than half a second of the slowest one.
_SLICE = 2**30
# A product of positive factors is taken while it stays a normal number: log of the range, with a margin.
_RANGE = {torch.float32: 80.0, torch.float64: 650.0}


def _outputs(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    return v.new_empty(v.shape[:1])


def _launch(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    largest = float(W.abs().max())
    # A factor lies in [exp(-M) / 2, exp(M)] with M the largest weight; NaN and infinity compare false.
    factors = int(_RANGE[W.dtype] / (largest + math.log(2))) if largest < _RANGE[W.dtype] else 0
    weights = W.exp() if factors else W
    row_sums, out = W.sum(1), _outputs(v, W, vbias, hbias)
    block = max(1, _SLICE // W.numel())
    for part, found in zip(v.split(block), out.split(block), strict=True):
        fields = state_product(part, W, init=hbias)
        _native.rbm_pseudo_likelihood(part, vbias, fields, weights, row_sums, factors, found)
    return out


_op = define("rbm_pseudo_likelihood", _outputs, launch=_launch)


def rbm_pseudo_likelihood(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    r"""The pseudo-log-likelihood of visible states, summed over all units.

    .. math::
        \mathrm{PL}(v) = \sum_i \log p(v_i \mid v_{-i}) = \sum_i \log \sigma\bigl(F(v \oplus e_i) - F(v)\bigr)

    with :math:`v \oplus e_i` the state v with unit i flipped. Flipping one unit changes the hidden fields
    :math:`x = b + vW` by :math:`\pm W_i`, so all units cost one pass over row, visible and hidden unit, not a free
    energy each:

    .. math::
        F(v) - F(v \oplus e_i) = s_i a_i + \sum_j \log\bigl(1 - p_j + p_j e^{s_i W_{ij}}\bigr), \qquad
        s = 1 - 2 v, \quad p = \sigma(x)

    and there is one multiply-add and one product in it, with a logarithm for many of them.

    A measure of the fit, the op has no gradient.

    Args:
        v: visible states `[..., n_visible]`, 0 or 1 in any dtype.
        W: weights `[n_visible, n_hidden]`; float32 or float64, or float16/bfloat16 (computed in float32).
        vbias: a, `[n_visible]`.
        hbias: b, `[n_hidden]`.

    Returns:
        The pseudo-log-likelihoods `[...]`; float32 for half types, NaN for rows of other values than 0 and 1.

    Raises:
        TypeError: an argument is not a tensor of a floating dtype, or dtypes differ.
        ValueError: a shape does not fit, or tensors lie on different devices.

    Source:
        Besag, "Statistical analysis of non-lattice data", 1975.

    Example:
        >>> W, a, b = torch.randn(784, 500) * 0.1, torch.zeros(784), torch.zeros(500)
        >>> v = torch.bernoulli(torch.full((16, 784), 0.2))
        >>> genfast.ops.rbm_pseudo_likelihood(v, W, a, b).shape
        torch.Size([16])
    """
    rows, batch = _machine(v, W, vbias, hbias)
    rows = torch.where((rows == 0) | (rows == 1), rows.to(W.dtype), torch.nan)
    arguments = tuple(t.detach().float() if t.dtype in HALF else t.detach() for t in (rows, W, vbias, hbias))
    check.tensor("v", v)
    out: Tensor = reference.rbm_pseudo_likelihood(*arguments) if use_reference(v) else _op(*arguments)
    return out.reshape(batch)
