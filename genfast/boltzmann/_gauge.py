"""The zero-sum gauge of softmax units."""

from torch import Tensor

from genfast.boltzmann._bits import Parameters
from genfast.boltzmann._pseudo import parts
from genfast.boltzmann.units import Layer, Softmax


def zero_sum(W: Tensor, vbias: Tensor, hbias: Tensor, visible: Layer, hidden: Layer) -> Parameters:
    """The parameters of the same distribution with sum 0 over the classes of every softmax unit of either layer.

    Of a unit's classes exactly one is 1. So what is taken from the rows of W of all its classes alike is one number for
    each unit of the other layer, and goes to the biases there; what is taken from its own biases changes log Z alone.
    """
    W, vbias, hbias = _of_rows(W, vbias, hbias, visible)
    W_T, hbias, vbias = _of_rows(W.T, hbias, vbias, hidden)
    return W_T.T, vbias, hbias


def _of_rows(W: Tensor, own: Tensor, other: Tensor, layer: Layer) -> Parameters:
    W, own, other = W.clone(), own.clone(), other.clone()
    for start, part in parts(layer):
        if isinstance(part, Softmax):
            rows = slice(start, start + part.size)
            weights = W[rows].unflatten(0, (part.n, part.n_classes))
            means = weights.mean(1)
            other += means.sum(0)
            W[rows] = (weights - means[:, None]).flatten(0, 1)
            biases = own[rows].unflatten(0, (part.n, part.n_classes))
            own[rows] = (biases - biases.mean(1, keepdim=True)).flatten()
    return W, own, other
