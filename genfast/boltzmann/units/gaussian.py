"""Gaussian units."""

import math

import torch
from torch import Tensor, nn

from genfast.boltzmann._states import REALS
from genfast.boltzmann.units._layer import Layer, Marked, column, log_of


class Gaussian(Marked, Layer):
    r"""n real units: :math:`E_0(x) = \sum_i \gamma_i x_i^2 / 2` with the learned precision gamma = exp(log_precision).

    Given inputs u a unit is normal with mean u / gamma and variance 1 / gamma. In the form of Cho et al. (2011),
    :math:`(x - a)^2 / 2 \sigma^2 - x W h / \sigma^2`, gamma is :math:`1/\sigma^2`, and the bias and the weights of this
    library are :math:`a / \sigma^2` and :math:`W / \sigma^2`.

    Args:
        n: number of units.
        learn_precision: whether log_precision is trained; otherwise it stays what it is set to (0, so a variance of 1).

    Example:
        >>> layer = Gaussian(2)
        >>> layer.init_from_data(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
        tensor([1.0000, 0.7500])
    """

    values = REALS

    def __init__(self, n: int, *, learn_precision: bool = True) -> None:
        super().__init__(n)
        self.log_precision = nn.Parameter(torch.zeros(n), requires_grad=learn_precision)

    def reset_parameters(self) -> None:
        """Variance 1 again."""
        nn.init.zeros_(self.log_precision)

    def energy(self, x: Tensor) -> Tensor:
        """The sum of gamma x^2 / 2."""
        return (x * x) @ (0.5 * self.log_precision.to(x.dtype).exp())

    def log_normaliser(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The sum of beta u^2 / 2 gamma + log(2 pi / beta gamma) / 2."""
        log_precision = self.log_precision.to(inputs.dtype)
        quadratic = (inputs * inputs) @ (0.5 * (-log_precision).exp())
        logs = math.log(2 * math.pi) - log_of(beta)
        return beta * quadratic + 0.5 * (self.n * logs - log_precision.sum())

    def mean(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:  # noqa: ARG002
        """u / gamma, at every beta."""
        return inputs * (-self.log_precision).exp()

    def variance(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """1 / (beta gamma)."""
        return ((-self.log_precision).exp() / column(beta)).expand_as(inputs)

    def mode(self, inputs: Tensor) -> Tensor:
        """The mean."""
        return self.mean(inputs)

    @torch.no_grad()
    def sample(self, inputs: Tensor, *, beta: float | Tensor = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draws of the normal."""
        at = inputs.device if generator is None else generator.device
        noise = torch.randn(inputs.shape, generator=generator, device=at, dtype=inputs.dtype).to(inputs.device)
        deviation = (-0.5 * self.log_precision).exp() / column(beta) ** 0.5
        return noise.mul_(deviation).add_(self.mean(inputs))

    def energy_grads(self, x: Tensor) -> tuple[Tensor, ...]:
        """The sum of gamma x^2 / 2, in log_precision."""
        return ((x * x).sum(0).mul_(0.5 * self.log_precision.exp()),)

    def statistics(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The means, and the gradient of A in log_precision: minus half of gamma E[x^2]."""
        mean = self.mean(inputs)
        return mean, (((mean * mean).sum(0).mul_(self.log_precision.exp()).add_(len(mean)).mul_(-0.5)),)

    def inputs_of_mean(self, mean: Tensor) -> Tensor:
        """The mean times gamma."""
        return mean * self.log_precision.exp()

    @torch.no_grad()
    def init_from_data(self, x: Tensor) -> Tensor:
        """Variances (where they are trained) and means of the data; a variance of 0 counts as 1e-6."""
        rows = self.rows(x)
        if self.log_precision.requires_grad and rows.shape[0] > 1:
            self.log_precision.copy_(-rows.var(0).clamp(min=1e-6).log())
        return self.inputs_of_mean(rows.mean(0))
