"""Whether Markov chains have run long enough: autocorrelation time, effective sample size, R-hat."""

import dataclasses
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from genfast._arguments import real

__all__ = ["Diagnostics", "diagnostics"]

_LEAST = 4  # steps: two for either half of a chain


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """What `diagnostics` found, one number for each statistic, float64 in the statistic's shape.

    Attributes:
        autocorrelation_time: integrated autocorrelation time in steps, n_chains n_steps / ess: so many steps of a chain
            are worth one independent draw.
        ess: effective sample size of the mean over all chains.
        r_hat: split R-hat, near 1 where all chains have the same distribution from their first half on.
        source: "arviz", or "genfast" where ArviZ is not installed.
    """

    autocorrelation_time: Tensor
    ess: Tensor
    r_hat: Tensor
    source: str


@torch.no_grad()
def diagnostics(chains: Tensor, *, use_arviz: bool | None = None) -> Diagnostics:
    r"""Autocorrelation time, effective sample size and R-hat of statistics of Markov chains.

    Each chain is split in halves, which are compared as 2 m chains of n steps:
    :math:`\hat R = \sqrt{\mathrm{var}^+ / W}` with W the mean variance within a chain, B / n that of the chains' means,
    and :math:`\mathrm{var}^+ = \frac{n - 1}{n} W + \frac{B}{n}`. The effective sample size is
    :math:`2 m n / \tau` with :math:`\tau = -1 + 2 \sum_k P_k`, where :math:`P_k = \rho_{2k} + \rho_{2k+1}` are sums of
    two neighbouring autocorrelations, summed while positive and made monotone (Geyer).

    Args:
        chains: `[n_chains, n_steps, ...]`: a statistic (an energy, a magnetisation, units themselves) of every chain
            after each step, at least 4 steps; scalar or with dimensions of its own.
        use_arviz: take ArviZ's `ess(method="mean")` and `rhat(method="split")`; by default where it is installed.

    Returns:
        The numbers. A statistic that is constant has NaN for all of them.

    Raises:
        TypeError: no tensor of real numbers.
        ValueError: fewer than two dimensions, no chains, fewer than 4 steps, or numbers that are not finite.
        ImportError: use_arviz without ArviZ.

    Source:
        Vehtari, Gelman, Simpson, Carpenter & Buerkner 2021, "Rank-normalization, folding, and localization: an improved
        R-hat"; Geyer 1992, "Practical Markov chain Monte Carlo".

    Example:
        >>> rbm = RBM(20, 10)
        >>> v, energies = rbm.sample(8, n_steps=1), []
        >>> for _ in range(100):
        ...     v, h = rbm.gibbs(v)
        ...     energies.append(rbm.free_energy(v).detach())
        >>> found = diagnostics(torch.stack(energies, 1))
        >>> found.r_hat.item() < 1.1
        True
    """
    real("chains", chains)
    if chains.ndim < 2 or chains.shape[0] < 1:
        raise ValueError(f"chains: got shape {list(chains.shape)}, want [n_chains, n_steps, ...]")
    if chains.shape[1] < _LEAST:
        raise ValueError(f"chains: got {chains.shape[1]} steps a chain, want at least {_LEAST} (two for either half)")
    if chains.numel() == 0:
        raise ValueError(f"chains: got shape {list(chains.shape)}, want at least one statistic")
    x = chains.detach().double()
    if not bool(x.isfinite().all()):
        raise ValueError("chains: got NaN or infinity")
    if use_arviz is None:
        use_arviz = importlib.util.find_spec("arviz") is not None
    statistics = x.reshape(*x.shape[:2], -1)
    ess, r_hat = _by_arviz(statistics) if use_arviz else (_ess(statistics), _r_hat(statistics))
    shape, draws = x.shape[2:], x.shape[0] * x.shape[1]
    return Diagnostics(
        (draws / ess).reshape(shape), ess.reshape(shape), r_hat.reshape(shape), "arviz" if use_arviz else "genfast"
    )


def _by_arviz(x: Tensor) -> tuple[Tensor, Tensor]:
    try:
        arviz: Any = importlib.import_module("arviz")
    except ModuleNotFoundError as error:
        raise ImportError("use_arviz: got True, but ArviZ is not installed; run: pip install arviz") from error
    columns = [x[:, :, i].cpu().numpy() for i in range(x.shape[2])]
    ess = torch.tensor([float(arviz.ess(c, method="mean")) for c in columns], dtype=torch.float64, device=x.device)
    ess = torch.where((x == x[:1, :1]).all(0).all(0), torch.nan, ess)
    if x.shape[0] == 1:  # of which ArviZ compares no halves
        return ess, _r_hat(x)
    r_hat = [float(arviz.rhat(c, method="split")) for c in columns]
    return ess, torch.tensor(r_hat, dtype=torch.float64, device=x.device)


def _split(x: Tensor) -> Tensor:
    """Both halves of every chain `[m, n, k]` as chains; the middle step of an odd number is left out."""
    half = x.shape[1] // 2
    return torch.cat([x[:, :half], x[:, -half:]])


def _variances(x: Tensor) -> tuple[Tensor, Tensor]:
    """W and var+ of chains `[m, n, k]`, m at least 2."""
    n = x.shape[1]
    within = x.var(1).mean(0)
    return within, within * (n - 1) / n + x.mean(1).var(0)


def _r_hat(x: Tensor) -> Tensor:
    within, total = _variances(_split(x))
    return torch.where(total > 0, torch.sqrt(total / within), torch.nan)


def _ess(x: Tensor) -> Tensor:
    x = _split(x)
    m, n, count = x.shape
    within, total = _variances(x)
    size = 1 << (2 * n - 1).bit_length()
    transform = torch.fft.rfft(x - x.mean(1, keepdim=True), size, dim=1)
    covariance = torch.fft.irfft(transform.abs() ** 2, size, dim=1)[:, :n].mean(0) / n  # [n, k], mean over chains
    # the autocorrelation, with the variance between chains counted as correlation that stays
    rho = 1 - (within - covariance) / total
    rho[0] = 1
    draws = m * n
    found = torch.full((count,), math.nan, dtype=torch.float64, device=x.device)
    for k in range(count):
        if float(total[k]) > 0:
            found[k] = draws / max(_tau(rho[:, k]), 1 / math.log10(draws))
    return found


def _tau(rho: Tensor) -> float:
    """-1 + 2 sum P_k over Geyer's initial monotone sequence, and the next even term (at least 0 in a negative pair)."""
    n = len(rho)
    last = max((n - 1) // 2 - 1, 0)  # the last lags are estimated from too few terms
    pairs = rho[: 2 * last + 2].reshape(-1, 2).sum(1)
    fallen = torch.nonzero(pairs <= 0)
    stop = int(fallen[0]) if len(fallen) else last
    rest = rho[2 * stop] if pairs[stop] >= 0 else rho[2 * stop].clamp(min=0)
    return -1 + 2 * float(pairs[:stop].cummin(0).values.sum()) + float(rest)
