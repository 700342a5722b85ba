"""Units of two states."""

import torch
import torch.nn.functional as F
from torch import Tensor

from genfast.boltzmann._states import BITS, SPINS, uniform
from genfast.boltzmann.units._layer import Layer, Marked, column, margin


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) without torch's linear cut-off."""
    return -F.logsigmoid(-x)


class _TwoStates(Layer):
    """Units whose states are scale * b + offset with b of 0 and 1."""

    bits: tuple[float, float]

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.n_states = 1 << n

    def states(self, index: Tensor) -> Tensor:
        """The states of these numbers, unit 0 the lowest bit."""
        b, (scale, offset) = ((index[:, None] >> torch.arange(self.n, device=index.device)) & 1).double(), self.bits
        return b if (scale, offset) == (1, 0) else scale * b + offset

    @torch.no_grad()
    def sample(self, inputs: Tensor, *, beta: float | Tensor = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws of x given the inputs `[..., size]`."""
        return self.drawn(self.mean(inputs, beta=beta), generator)

    def drawn(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """States of which x are the means; states stay as they are, and NaN stays NaN."""
        scale, offset = self.bits
        p = x if (scale, offset) == (1, 0) else (x - offset) / scale
        out = (uniform(x.shape, generator, p) < p).to(x.dtype)
        if (scale, offset) != (1, 0):
            out = out.mul_(scale).add_(offset)
        return out.add_(x, alpha=0)


class Binary(_TwoStates):
    """n units of 0 and 1: A(u) = sum of log(1 + e^u), mean sigmoid(u).

    Example:
        >>> Binary(3).mean(torch.zeros(3))
        tensor([0.5000, 0.5000, 0.5000])
    """

    values = BITS
    bits = (1.0, 0.0)

    def log_normaliser(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The sum of softplus(beta u)."""
        return softplus(column(beta) * inputs).sum(-1)

    def mean(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """sigmoid(beta u)."""
        return torch.sigmoid(column(beta) * inputs)

    def variance(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """p (1 - p) for p = sigmoid(beta u)."""
        x = column(beta) * inputs
        return torch.sigmoid(x) * torch.sigmoid(-x)

    def mode(self, inputs: Tensor) -> Tensor:
        """1 where u > 0."""
        return (inputs > 0).to(inputs.dtype)

    def inputs_of_mean(self, mean: Tensor) -> Tensor:
        """The log-odds."""
        return torch.logit(mean)

    def _inner_mean(self, rows: Tensor) -> Tensor:
        return rows.mean(0).clamp(margin(rows), 1 - margin(rows))


class Spin(Marked, _TwoStates):
    """n units of -1 and 1: A(u) = sum of log(2 cosh u), mean tanh(u).

    Example:
        >>> Spin(2).mode(torch.tensor([0.3, -2.0]))
        tensor([ 1., -1.])
    """

    values = SPINS
    bits = (2.0, -1.0)

    def log_normaliser(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The sum of log(2 cosh(beta u)) = softplus(2 beta u) - beta u."""
        x = column(beta) * inputs
        return (softplus(-2 * x) + x).sum(-1)

    def mean(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """tanh(beta u)."""
        return torch.tanh(column(beta) * inputs)

    def variance(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """1 - tanh(beta u)^2."""
        x = 2 * column(beta) * inputs
        return 4 * torch.sigmoid(x) * torch.sigmoid(-x)

    def mode(self, inputs: Tensor) -> Tensor:
        """The sign of u."""
        return torch.where(inputs > 0, 1.0, -1.0).to(inputs.dtype)

    def inputs_of_mean(self, mean: Tensor) -> Tensor:
        """Artanh of the mean."""
        return torch.atanh(mean)

    def _inner_mean(self, rows: Tensor) -> Tensor:
        return rows.mean(0).clamp(2 * margin(rows) - 1, 1 - 2 * margin(rows))
