"""Boltzmann machines from and to other libraries: scikit-learn, rbms, and D-Wave's binary quadratic models.

What is read is read by its attributes, so none of these packages is needed for it; what is written needs its package.
Energies are the same on both sides, the offset included.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genfast._optional import require
from genfast.boltzmann.rbm import RBM
from genfast.boltzmann.units import Binary

__all__ = ["Quadratic", "from_bqm", "from_rbms", "from_sklearn", "rbm_to_bqm", "to_bqm", "to_rbms", "to_sklearn"]

_VALUES = {"01": "BINARY", "pm1": "SPIN"}


def _as_tensor(name: str, x: Any) -> Tensor:
    t = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
    if not t.is_floating_point():
        raise TypeError(f"{name}: got {t.dtype}, want floating-point numbers")
    return t.clone()


def _rbm(W: Tensor, vbias: Tensor, hbias: Tensor, source: str) -> RBM:
    if W.ndim != 2 or vbias.shape != W.shape[:1] or hbias.shape != W.shape[1:]:
        raise ValueError(
            f"{source}: got weights {list(W.shape)} with biases {list(vbias.shape)} and {list(hbias.shape)}, "
            "want [n_visible, n_hidden] with [n_visible] and [n_hidden]"
        )
    rbm = RBM(W.shape[0], W.shape[1], device=W.device, dtype=W.dtype)
    with torch.no_grad():
        for parameter, value in ((rbm.W, W), (rbm.vbias, vbias), (rbm.hbias, hbias)):
            parameter.copy_(value)
    return rbm


def _binary(rbm: RBM) -> tuple[Tensor, Tensor, Tensor]:
    if type(rbm.visible) is not Binary or type(rbm.hidden) is not Binary:
        kinds = f"{type(rbm.visible).__name__} and {type(rbm.hidden).__name__}"
        raise ValueError(f"rbm: got {kinds} units, want Binary ones")
    return rbm.W.detach().clone(), rbm.vbias.detach().clone(), rbm.hbias.detach().clone()


def from_sklearn(estimator: Any) -> RBM:
    """The machine of a fitted `BernoulliRBM`, scikit-learn's or ours, in its dtype.

    Its `h_samples_` are hidden states, and `RBM` keeps visible ones: persistent chains start anew.

    Raises:
        ValueError: the estimator is not fitted.

    Example:
        >>> from genfast.boltzmann.convert import from_sklearn, to_sklearn
        >>> from_sklearn(to_sklearn(RBM(6, 3))).n_hidden
        3
    """
    if not hasattr(estimator, "components_"):
        raise ValueError("estimator: got one that is not fitted, want components_ and intercepts")
    names = ("components_", "intercept_visible_", "intercept_hidden_")
    W, a, b = (_as_tensor(name, getattr(estimator, name)) for name in names)
    return _rbm(W.T.contiguous(), a, b, "estimator")


def to_sklearn(rbm: RBM, **parameters: Any) -> Any:
    """A fitted `sklearn.neural_network.BernoulliRBM` with the machine's weights.

    Args:
        rbm: of 0/1 units.
        parameters: other parameters of the estimator, such as `learning_rate`; its chains start at zero.

    Raises:
        ValueError: the units are not 0/1.
        ImportError: scikit-learn is not installed.
    """
    W, a, b = (x.cpu().numpy() for x in _binary(rbm))
    estimator = require("sklearn.neural_network", "to_sklearn").BernoulliRBM(n_components=W.shape[1], **parameters)
    estimator.components_ = np.asarray(W.T, order="F")
    estimator.intercept_visible_, estimator.intercept_hidden_ = a, b
    estimator.h_samples_ = np.zeros((estimator.batch_size, W.shape[1]), dtype=W.dtype)
    estimator.n_features_in_, estimator._n_features_out = W.shape  # noqa: SLF001
    return estimator


def from_rbms(parameters: Any) -> RBM:
    """The machine of an `rbms.BBRBM` (or of anything with `weight_matrix [n_visible, n_hidden]`, `vbias`, `hbias`).

    Raises:
        ValueError: the units are of another kind, or shapes do not fit.
    """
    name = getattr(parameters, "name", "BBRBM")
    if name != "BBRBM":
        raise ValueError(f"parameters: got {name}, want a BBRBM, whose units are 0 or 1")
    names = ("weight_matrix", "vbias", "hbias")
    W, a, b = (_as_tensor(n, getattr(parameters, n)) for n in names)
    return _rbm(W, a, b, "parameters")


def to_rbms(rbm: RBM) -> Any:
    """An `rbms.BBRBM` with the machine's weights.

    Raises:
        ValueError: the units are not 0/1.
        ImportError: rbms is not installed.
    """
    parameters = _binary(rbm)
    return require("rbms.bernoulli_bernoulli.classes", "to_rbms", extra="bench").BBRBM(*parameters)


class Quadratic(NamedTuple):
    """A general machine E(s) = -s'Js/2 - bias.s + offset, J symmetric with zero diagonal."""

    J: Tensor
    bias: Tensor
    offset: float
    values: str
    labels: list[Hashable]


def to_bqm(
    J: Tensor, bias: Tensor, *, values: str = "01", offset: float = 0.0, labels: Sequence[Hashable] | None = None
) -> Any:
    """D-Wave's `dimod.BinaryQuadraticModel` of E(s) = -s'Js/2 - bias.s + offset; D-Wave's signs are the other way.

    Args:
        J: symmetric couplings `[N, N]` with zero diagonal.
        bias: `[N]`.
        values: "01" (BINARY) or "pm1" (SPIN).
        offset: added to all energies.
        labels: names of the variables; 0 ... N - 1 otherwise.

    Raises:
        ValueError: J is not symmetric with zero diagonal, shapes do not fit, or values are of another kind.
        ImportError: dimod is not installed.
    """
    if values not in _VALUES:
        raise ValueError(f"values: got {values!r}, want '01' or 'pm1'")
    J, bias = J.detach().cpu().double(), bias.detach().cpu().double()
    n = bias.shape[0] if bias.ndim == 1 else -1
    if J.shape != (n, n):
        raise ValueError(f"J, bias: got shapes {list(J.shape)} and {list(bias.shape)}, want [N, N] and [N]")
    if not torch.equal(J, J.T) or bool(J.diagonal().any()):
        raise ValueError("J: got a matrix that is not symmetric with zero diagonal")
    names = list(range(n)) if labels is None else list(labels)
    if len(set(names)) != n or len(names) != n:
        raise ValueError(f"labels: got {len(set(names))} different ones of {len(names)}, want {n}")
    rows, columns = torch.nonzero(J.triu(1), as_tuple=True)
    quadratic = {
        (names[i], names[j]): -x
        for i, j, x in zip(rows.tolist(), columns.tolist(), J[rows, columns].tolist(), strict=True)
    }
    linear = {name: -x for name, x in zip(names, bias.tolist(), strict=True)}
    # dimod orders variables as they come, and takes those of the quadratic terms first
    bqm = require("dimod", "to_bqm", extra="bench").BinaryQuadraticModel(linear, {}, offset, _VALUES[values])
    bqm.add_quadratic_from(quadratic)
    return bqm


def rbm_to_bqm(rbm: RBM) -> Any:
    """The BQM (BINARY) of the joint energy E(v, h) of an RBM: variables ("v", i) and ("h", j).

    Raises:
        ValueError: the units are not 0/1.
        ImportError: dimod is not installed.
    """
    W, a, b = _binary(rbm)
    n, m = W.shape
    J = W.new_zeros(n + m, n + m)
    J[:n, n:], J[n:, :n] = W, W.T
    labels: list[Hashable] = [*(("v", i) for i in range(n)), *(("h", j) for j in range(m))]
    return to_bqm(J, torch.cat([a, b]), labels=labels)


def from_bqm(bqm: Any, *, values: str | None = None, dtype: torch.dtype = torch.float64) -> Quadratic:
    """The general machine of a BQM, in its own values or, with the energies kept, in the others.

    With s = 2 x - 1 for spins s and x in {0, 1}, h s = 2 h x - h and J s s' = 4 J x x' - 2 J x - 2 J x' + J.

    Args:
        bqm: a `dimod.BinaryQuadraticModel`, or anything with its `linear`, `quadratic`, `offset` and `vartype`.
        values: "01" or "pm1"; those of the BQM otherwise.
        dtype: of J and bias.

    Returns:
        J, bias, offset, values and labels (the BQM's variables in order): E(s) = -s'Js/2 - bias.s + offset.

    Raises:
        ValueError: the values are of another kind.
    """
    kind = getattr(bqm.vartype, "name", bqm.vartype)
    own = {"BINARY": "01", "SPIN": "pm1"}.get(kind)
    if own is None:
        raise ValueError(f"bqm: got vartype {kind!r}, want BINARY or SPIN")
    values = own if values is None else values
    if values not in _VALUES:
        raise ValueError(f"values: got {values!r}, want '01' or 'pm1'")
    labels = list(bqm.linear)
    place = {name: i for i, name in enumerate(labels)}
    J = torch.zeros(len(labels), len(labels), dtype=torch.float64)
    bias = torch.tensor([-float(bqm.linear[name]) for name in labels], dtype=torch.float64)
    for (u, v), x in bqm.quadratic.items():
        i, j = place[u], place[v]
        J[i, j] -= float(x)
        J[j, i] -= float(x)
    offset = float(bqm.offset)
    if values != own:
        # substituting s = scale t + shift
        scale, shift = (2.0, -1.0) if own == "pm1" else (0.5, 0.5)
        fields = J.sum(1)
        offset -= shift * shift * float(fields.sum()) / 2 + shift * float(bias.sum())
        J, bias = scale * scale * J, scale * (bias + shift * fields)
    return Quadratic(J.to(dtype), bias.to(dtype), offset, values, labels)
