"""Exact partition functions of square Ising lattices."""

import math

import torch
from torch import Tensor


def kaufman_log_z(k_y: Tensor, k_x: Tensor, height: int, width: int) -> Tensor:
    r"""log Z of the periodic lattice without a field, for couplings over T above 0; float64, differentiable.

    With K = k_y and K' = k_x, n = height rows of m = width sites, tanh K* = exp(-2 K) and

    .. math::
        \cosh \gamma_r = \cosh 2K^* \cosh 2K' - \sinh 2K^* \sinh 2K' \cos(\pi r / m), \quad \gamma_0 = 2 (K' - K^*)

    it is Z = (2 sinh 2K)^{nm/2} / 2 times the sum of the products of 2 cosh(n gamma_r / 2) and of 2 sinh(n gamma_r / 2)
    over r = 1, 3, ..., 2m - 1 and over r = 0, 2, ..., 2m - 2.

    Source:
        Kaufman 1949, "Crystal statistics II. Partition function evaluated by spinor analysis".
    """
    k_y, k_x = k_y.double(), k_x.double()
    dual = -torch.log(torch.tanh(k_y)) / 2
    r = torch.arange(2 * width, dtype=torch.float64)
    # cosh(gamma) - 1 without cancellation: cosh(a - b) - 1 + sinh a sinh b (1 - cos)
    a, b = 2 * dual, 2 * k_x
    excess = (
        2 * torch.sinh((a - b) / 2) ** 2 + 2 * torch.sinh(a) * torch.sinh(b) * torch.sin(math.pi * r / width / 2) ** 2
    )
    gamma = 2 * torch.asinh(torch.sqrt(excess[1:] / 2))
    gamma = torch.cat([(b - a)[None], gamma])
    x = height * gamma / 2

    def products(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = x.abs()
        log_cosh = (size + torch.log1p(torch.exp(-2 * size))).sum()
        log_sinh = (size + torch.log(-torch.expm1(-2 * size).clamp(max=-torch.finfo(torch.float64).tiny))).sum()
        return log_cosh, log_sinh, torch.sign(x).prod()

    cosh_odd, sinh_odd, _ = products(x[1::2])
    cosh_even, sinh_even, sign = products(x[::2])
    top = torch.stack([cosh_odd, sinh_odd, cosh_even, sinh_even]).detach().max()
    total = sum(torch.exp(t - top) for t in (cosh_odd, sinh_odd, cosh_even)) + sign * torch.exp(sinh_even - top)
    log_2sinh = 2 * k_y + torch.log(-torch.expm1(-4 * k_y))
    return height * width / 2 * log_2sinh - math.log(2) + top + torch.log(total)


MAX_OPEN, MAX_RING = 16, 10  # sites of a row: vectors of 2^16 numbers, matrices of 2^10 x 2^10


def transfer_log_z(k_y: float, k_x: float, h: float, height: int, width: int, periodic: tuple[bool, bool]) -> Tensor:
    """log Z by the transfer matrix from row to row, with couplings and field over T; float64.

    Rows are along the shorter axis, or along the one whose other axis is open; a ring of rows is the trace of a power.

    Raises:
        ValueError: rows are too long: more than 16 sites, or 10 where the rows are a ring.
    """
    options = [(k_y, k_x, height, width, periodic), (k_x, k_y, width, height, (periodic[1], periodic[0]))]
    possible = [o for o in options if o[3] <= (MAX_RING if o[4][0] else MAX_OPEN)]
    if not possible:
        raise ValueError(
            f"log_partition: got a lattice of {height} x {width}, want one side of at most {MAX_RING} sites, or of "
            f"{MAX_OPEN} beside an open axis (without a field a periodic lattice may have any size); "
            "genfast.boltzmann.ais_log_z estimates log Z of the others"
        )
    k_y, k_x, rows, sites, (ring, around) = min(possible, key=lambda o: (o[4][0], o[3]))
    states = 2.0 * ((torch.arange(2**sites)[:, None] >> torch.arange(sites)) & 1).double() - 1
    bonds = states * states.roll(-1, 1)
    own = k_x * (bonds if around else bonds[:, :-1]).sum(1) + h * states.sum(1)

    def between(x: Tensor) -> Tensor:
        """Times the matrix of exp(k_y s.s'), site by site."""
        up, down = math.exp(k_y - abs(k_y)), math.exp(-k_y - abs(k_y))
        for i in range(sites):
            pairs = x.reshape(2 ** (sites - 1 - i), 2, 2**i, -1)
            low, high = pairs[:, 0], pairs[:, 1]
            x = torch.stack([up * low + down * high, down * low + up * high], 1).reshape(x.shape)
        return x

    scale = own.max()
    weight = torch.exp(own - scale)
    if not ring:
        x, log = weight.clone(), torch.zeros((), dtype=torch.float64)
        for _ in range(rows - 1):
            x = weight * between(x)
            log = log + torch.log(x.max())
            x = x / x.max()
        return log + torch.log(x.sum()) + rows * scale + (rows - 1) * sites * abs(k_y)
    half = weight.sqrt()
    step = half[:, None] * between(torch.diag(half))
    power, log_power = _power(step, rows)
    return torch.log(power.trace()) + log_power + rows * scale + rows * sites * abs(k_y)


def _power(step: Tensor, count: int) -> tuple[Tensor, float]:
    """step^count by squaring, as a matrix whose largest entry is 1 and the log of what it is to be multiplied by."""
    power, log_power, log_step = torch.eye(len(step), dtype=step.dtype), 0.0, 0.0
    while True:
        if count & 1:
            power, log_power = power @ step, log_power + log_step
            top = float(power.max())
            power, log_power = power / top, log_power + math.log(top)
        count >>= 1
        if not count:
            return power, log_power
        step = step @ step
        top = float(step.max())
        step, log_step = step / top, 2 * log_step + math.log(top)
