"""Rectified units: normal densities cut off at 0, on one side or on both."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genfast.boltzmann._states import POSITIVE, REALS
from genfast.boltzmann.units import _half_normal
from genfast.boltzmann.units._layer import Layer, Marked, column, log_of
from genfast.boltzmann.units.binary import softplus


def _uniforms(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """In (0, 1], float64."""
    at = like.device if generator is None else generator.device
    return 1 - torch.rand(like.shape, generator=generator, device=at, dtype=torch.float64).to(like.device)


class _Half:
    """The density exp(beta (u x - gamma x^2 / 2)) on x >= 0 of inputs u and gamma = exp(log_precision), in float64."""

    def __init__(self, inputs: Tensor, log_precision: Tensor, beta: float | Tensor) -> None:
        self.log_scale = 0.5 * (log_precision.double() + log_of(column(beta)))
        self.scale = (-self.log_scale).exp()
        self.z = inputs.double() * column(beta) * self.scale

    def log_normaliser(self) -> Tensor:
        return _half_normal.log_integral(self.z) - self.log_scale

    def mean(self) -> Tensor:
        return _half_normal.mean(self.z) * self.scale

    def variance(self) -> Tensor:
        return _half_normal.variance(self.z) * self.scale**2

    def sample(self, generator: torch.Generator | None) -> Tensor:
        return _half_normal.sample(self.z, _uniforms(self.z, generator)) * self.scale


class ReLU(Marked, Layer):
    r"""n units x >= 0 with :math:`E_0(x) = \sum_i \gamma_i x_i^2 / 2`, gamma = exp(log_precision).

    Given inputs u a unit is a normal variable of mean u / gamma and variance 1 / gamma, cut off at 0:
    :math:`A(u) = u^2 / 2\gamma + \log \Phi(u / \sqrt\gamma) + \log(2\pi/\gamma) / 2`. Its mean is near u / gamma for
    large inputs and near -1 / u for very negative ones. Computed in float64, and right however far out the inputs are.

    Source:
        Tubiana, Cocco, Monasson 2019, "Learning protein constitutive motifs from sequence data";
        Nair, Hinton 2010, for rectified units that add noise instead.

    Example:
        >>> ReLU(2).mean(torch.tensor([-50.0, 3.0]))
        tensor([0.0200, 3.0044])
    """

    values = POSITIVE

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.log_precision = nn.Parameter(torch.zeros(n))

    def reset_parameters(self) -> None:
        """gamma = 1 again."""
        nn.init.zeros_(self.log_precision)

    def _half(self, inputs: Tensor, beta: float | Tensor) -> _Half:
        return _Half(inputs, self.log_precision, beta)

    def energy(self, x: Tensor) -> Tensor:
        """The sum of gamma x^2 / 2."""
        return (x * x) @ (0.5 * self.log_precision.exp())

    def log_normaliser(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The sum of the units' log-integrals."""
        return self._half(inputs, beta).log_normaliser().sum(-1).to(inputs.dtype)

    def mean(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The mean of the normal that is cut off."""
        return self._half(inputs, beta).mean().to(inputs.dtype)

    def variance(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """Its variance."""
        return self._half(inputs, beta).variance().to(inputs.dtype)

    def mode(self, inputs: Tensor) -> Tensor:
        """max(u, 0) / gamma."""
        return inputs.clamp(min=0) * (-self.log_precision).exp()

    @torch.no_grad()
    def sample(self, inputs: Tensor, *, beta: float | Tensor = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws, by inversion of the distribution function."""
        return self._half(inputs, beta).sample(generator).to(inputs.dtype)

    def energy_grads(self, x: Tensor) -> tuple[Tensor, ...]:
        """The sum of gamma x^2 / 2, in log_precision."""
        return ((x * x).sum(0).mul_(0.5 * self.log_precision.exp()),)

    def statistics(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The means, and the gradient of A in log_precision: minus half of gamma E[x^2]."""
        half = self._half(inputs, 1.0)
        mean, square = _half_normal.moments(half.z)
        return mean.mul(half.scale).to(inputs.dtype), (square.sum(0).mul_(-0.5).to(inputs.dtype),)

    @torch.no_grad()
    def inputs_of_mean(self, mean: Tensor) -> Tensor:
        """The inputs whose mean is the given one (at least 1e-6 standard deviations), by bisection."""
        root = (0.5 * self.log_precision.double()).exp()
        wanted = (mean.double() * root).clamp(min=1e-6)
        z = _bisect(lambda z: _half_normal.mean(z) < wanted, -1.01 / wanted, wanted)
        return (z * root).to(mean.dtype)

    @torch.no_grad()
    def init_from_data(self, x: Tensor) -> Tensor:
        """Match mean and variance of the data; where they are more spread than an exponential (z < -5), the mean."""
        rows = self.rows(x).double()
        mean = rows.mean(0).clamp(min=1e-6)
        spread = (rows.var(0, correction=0) / mean**2).clamp(min=1e-12)
        low, high = torch.full_like(mean, -5.0), 1 + 2 / spread.sqrt()
        z = _bisect(lambda z: _half_normal.variance(z) / _half_normal.mean(z) ** 2 > spread, low, high)
        root = _half_normal.mean(z) / mean
        self.log_precision.copy_(2 * root.log())
        return (z * root).to(self.log_precision.dtype)


class DoubleReLU(Marked, Layer):
    r"""n real units with a curvature on each side of 0 and a cusp (or a gap) between.

    .. math::
        E_0(x) = \sum_i \gamma^{\pm}_i x_i^2 / 2 - \delta_i |x_i|

    with :math:`\gamma^+` for x > 0 and :math:`\gamma^-` for x < 0, both the exp of a parameter, and delta the parameter
    `shift`. In the parameters of Tubiana et al., :math:`\theta^\pm` = bias +- shift: it interpolates between Gaussian
    (shift 0), rectified and (for a large shift) two-valued units.

    Source:
        Tubiana, Cocco, Monasson 2019, "Learning protein constitutive motifs from sequence data".

    Example:
        >>> DoubleReLU(1).mean(torch.tensor([2.0]))
        tensor([2.])
    """

    values = REALS

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.log_precision_pos = nn.Parameter(torch.zeros(n))
        self.log_precision_neg = nn.Parameter(torch.zeros(n))
        self.shift = nn.Parameter(torch.zeros(n))

    def reset_parameters(self) -> None:
        """A normal of variance 1 again."""
        for p in (self.log_precision_pos, self.log_precision_neg, self.shift):
            nn.init.zeros_(p)

    def _halves(self, inputs: Tensor, beta: float | Tensor) -> tuple[_Half, _Half]:
        u, shift = inputs.double(), self.shift.double()
        return _Half(u + shift, self.log_precision_pos, beta), _Half(shift - u, self.log_precision_neg, beta)

    def energy(self, x: Tensor) -> Tensor:
        """The sum of gamma x^2 / 2 - shift |x|."""
        half = 0.5 * torch.where(x > 0, self.log_precision_pos.exp(), self.log_precision_neg.exp())
        return ((half * x - self.shift * x.sign()) * x).sum(-1)

    def log_normaliser(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The sum of the units' logs of the two integrals' sum."""
        above, below = (half.log_normaliser() for half in self._halves(inputs, beta))
        # logaddexp, whose second derivative overflows; neither of the two is ever far below 0
        return (below + softplus(above - below)).sum(-1).to(inputs.dtype)

    @staticmethod
    def _weights(above: _Half, below: _Half) -> tuple[Tensor, Tensor]:
        difference = above.log_normaliser() - below.log_normaliser()
        return torch.sigmoid(difference), torch.sigmoid(-difference)

    def mean(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The mean over both sides."""
        above, below = self._halves(inputs, beta)
        p, q = self._weights(above, below)
        return (p * above.mean() - q * below.mean()).to(inputs.dtype)

    def variance(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """That within the sides, and that between them."""
        above, below = self._halves(inputs, beta)
        p, q = self._weights(above, below)
        between = p * q * (above.mean() + below.mean()) ** 2
        return (p * above.variance() + q * below.variance() + between).to(inputs.dtype)

    def mode(self, inputs: Tensor) -> Tensor:
        """The higher of the sides' tops."""
        above, below = (inputs + self.shift).clamp(min=0), (self.shift - inputs).clamp(min=0)
        x, y = above * (-self.log_precision_pos).exp(), below * (-self.log_precision_neg).exp()
        return torch.where(above * x >= below * y, x, -y)

    @torch.no_grad()
    def sample(self, inputs: Tensor, *, beta: float | Tensor = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws: of the side, then by inversion of its distribution function."""
        above, below = self._halves(inputs, beta)
        p, _ = self._weights(above, below)
        up = _uniforms(p, generator) <= p
        z, scale = torch.where(up, above.z, below.z), torch.where(up, above.scale, -below.scale)
        x = _half_normal.sample(z, _uniforms(z, generator)) * scale
        return x.add_(p, alpha=0).to(inputs.dtype)

    @torch.no_grad()
    def inputs_of_mean(self, mean: Tensor) -> Tensor:
        """The inputs whose mean is the given one, by bisection."""
        wanted = mean.double()
        steepest = torch.maximum(self.log_precision_pos, self.log_precision_neg).double().exp()
        reach = steepest * wanted.abs() + self.shift.double().abs() + 10 * steepest.sqrt() + 10
        return _bisect(lambda u: self.mean(u) < wanted, -reach, reach).to(mean.dtype)

    @torch.no_grad()
    def init_from_data(self, x: Tensor) -> Tensor:
        """The normal of the data's mean and variance, with no shift."""
        rows = self.rows(x)
        log_precision = -rows.var(0).clamp(min=1e-6).log() if rows.shape[0] > 1 else torch.zeros_like(rows[0])
        self.log_precision_pos.copy_(log_precision)
        self.log_precision_neg.copy_(log_precision)
        nn.init.zeros_(self.shift)
        return rows.mean(0) * log_precision.exp()


def _bisect(is_below: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The point between low and high up to which is_below holds."""
    for _ in range(80):
        middle = (low + high) / 2
        below = is_below(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
