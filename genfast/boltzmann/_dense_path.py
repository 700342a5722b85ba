"""The path of annealed importance sampling of a dense machine, over all of its units."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from genfast import ops
from genfast._arguments import real
from genfast.boltzmann._annealing import base_log_odds
from genfast.boltzmann._dense import Values, checked, from_bits, log_odds, log_sum, to_bits
from genfast.ops._sampling import seed_tensor
from genfast.reference._gibbs import accept_logit, uniform_words

_START = 7  # the stream of random words that draw the states chains start from: kStreamStart in philox.h
_EXACT_HIDDEN, _SWEEPS = 16, 200
_LATE = 1 << 30  # a step that no ladder comes to: random numbers of its own


def base_fields(base: Tensor | None, n_visible: int, bias: Tensor, values: Values) -> Tensor:
    """The fields `[n]`, in units of T, of the independent units that a path starts from; hidden units are fair coins.

    Args:
        base: data `[N, n_visible]`, whose rates are kept 1 / (N + 1) away from 0 and 1; log-odds of the upper state,
            `[n_visible]`; or None, fair coins.
        n_visible: number of visible units.
        bias: of the machine.
        values: of its units.
    """
    like = bias.detach().double()
    if base is not None and base.ndim != 1:
        base = to_bits(checked("base", base.detach(), n_visible, torch.float64, values, means=True), values)
    odds = base_log_odds(base, like, n_visible)
    fields = torch.zeros_like(like)
    fields[:n_visible] = odds if values == "01" else odds / 2
    return fields


@dataclasses.dataclass(frozen=True)
class DensePath:
    r"""log f_beta(s) = beta (s'J s / 2 + c.s) / T + (1 - beta) a.s, from independent units to the machine.

    Attributes:
        J: couplings over T, `[n, n]`, of the dtype that chains run in.
        bias: biases over T, `[n]`.
        base: a, `[n]`, float64.
        n_visible: number of visible units.
        values: of the units.
    """

    J: Tensor
    bias: Tensor
    base: Tensor
    n_visible: int
    values: Values

    @property
    def log_z_base(self) -> float:
        """The log of sum_s f_0(s), exactly."""
        odds = log_odds(self.base, self.values)
        shift = 0 if self.values == "01" else self.base
        return float((torch.logaddexp(odds, torch.zeros_like(odds)) - shift).sum())

    def start(self, n_runs: int, *, seed: int | Tensor, first_run: int = 0) -> Tensor:
        """Exact draws of f_0, `[n_runs, n]`; a run's depends on the seed and its number alone."""
        return self._independent(log_odds(self.base, self.values).expand(n_runs, -1), seed, first_run)

    def log_weight(self, state: Tensor, beta0: float, beta1: float) -> Tensor:
        """log f_beta1 - log f_beta0 at the states: float64 `[N]`."""
        s = state.double()
        return (beta1 - beta0) * ((s @ (self.J.double() / 2) + self.bias.double() - self.base) * s).sum(1)

    def step(self, state: Tensor, beta: float, *, seed: int | Tensor, first_run: int = 0, step: int = 0) -> Tensor:
        """A sweep that leaves f_beta invariant."""
        bias = (self.bias.double() * beta + self.base * (1 - beta)).to(self.bias.dtype)
        return self._sweep(state, self.J * beta, bias, seed, first_run, step)

    def _sweep(
        self, s: Tensor, J: Tensor, bias: Tensor, seed: int | Tensor, first: int, step: int, **options: Any
    ) -> Tensor:
        out: Tensor = ops.boltzmann_gibbs(
            s, J, bias, values=self.values, seed=seed, first_chain=first, first_step=step, **options
        )
        return out

    def from_samples(self, v: Tensor, *, seed: int | Tensor, first_run: int = 0) -> Tensor:
        """Draws of f_1 from samples of the machine, for reverse annealing.

        Args:
            v: samples of all units `[N, n]`, or of the visible ones `[N, n_visible]`. To these up to 16 hidden units
                are drawn from their exact conditional distribution; more are as far as 200 sweeps, with v clamped,
                have come to it.
            seed: of the hidden units.
            first_run: number of the first row.
        """
        n, nv = len(self.base), self.n_visible
        real("v", v, n if v.shape[-1] == n else nv)
        v = checked("v", v, v.shape[-1], self.J.dtype, self.values)
        if v.shape[-1] == n:
            return v
        if n - nv > _EXACT_HIDDEN:
            odds = log_odds(self.bias[nv:].double(), self.values).expand(len(v), -1)
            s = torch.cat([v, self._independent(odds, seed, first_run, unit=nv)], 1)
            clamp = torch.arange(n, device=v.device) < nv
            return self._sweep(s, self.J, self.bias, seed, first_run, _LATE, n_sweeps=_SWEEPS, clamp=clamp)
        # one hidden unit after the other, each given those before it: the rest is summed out
        s = torch.cat([v, v.new_zeros(len(v), n - nv)], 1)
        for i in range(nv, n):
            fields = s[:, :i].double() @ self.J[:i, i:].double() + self.bias[i:].double()
            rest, beyond = self.J[i + 1 :, i + 1 :], self.J[i, i + 1 :].double()
            low, high = from_bits(torch.tensor([0.0, 1.0], dtype=torch.float64), self.values).tolist()
            odds = (high - low) * fields[:, 0] + (
                log_sum(rest, fields[:, 1:] + high * beyond, self.values)
                - log_sum(rest, fields[:, 1:] + low * beyond, self.values)
            )
            s[:, i] = self._independent(odds[:, None], seed, first_run, unit=i)[:, 0]
        return s

    def _independent(self, odds: Tensor, seed: int | Tensor, first_run: int, unit: int = 0) -> Tensor:
        """Units with these log-odds `[N, k]`, by the random words of units `unit` and on."""
        key = seed_tensor(seed, None, self.J)
        runs = torch.arange(first_run, first_run + len(odds), device=self.J.device)
        words = uniform_words(key, runs, unit + odds.shape[1], 0, _START)[:, unit:]
        return from_bits(accept_logit(odds.float(), words).to(self.J.dtype), self.values)
