"""Paths of distributions from one whose normalising constant is known to a machine's own."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from genfast import ops
from genfast._arguments import real
from genfast.boltzmann._states import binary, probabilities
from genfast.reference import rbm_ais as reference


@runtime_checkable
class AnnealingPath(Protocol):
    """What annealed importance sampling asks of a machine: `machine.annealing_path(base)` returns one.

    The path's unnormalised distributions f_beta lead from the base at beta = 0 to the machine at beta = 1. A state is
    what the path makes of it, for all runs at once; the random numbers of run r are those of (seed, r, step) alone.

    Attributes:
        log_z_base: the exact log of the sum of f_0 over all states.
    """

    log_z_base: float

    def start(self, n_runs: int, *, seed: int, first_run: int) -> Any:
        """Exact draws of the base."""

    def from_samples(self, v: Tensor, *, seed: int, first_run: int) -> Any:
        """A state at beta = 1 from samples v `[n_runs, n_visible]` of the machine."""

    def log_weight(self, state: Any, beta0: float, beta1: float) -> Tensor:
        """log f_beta1 - log f_beta0 at the state: float64 `[n_runs]`."""

    def step(self, state: Any, beta: float, *, seed: int, first_run: int, step: int) -> Any:
        """A transition that leaves f_beta as it is."""


def advance(
    path: Any, state: Any, log_weights: Tensor | None, betas: Sequence[float], *, seed: int, first_run: int, step: int
) -> tuple[Tensor, Any]:
    """Go along the betas from a state at the first: the weights, added to those given, and the state at the last.

    A path with a fused op has a method `advance` of its own, with the same results as in one call or in several.
    """
    if hasattr(path, "advance"):
        found: tuple[Tensor, Any] = path.advance(
            state, log_weights, betas, seed=seed, first_run=first_run, first_step=step
        )
        return found
    for i in range(len(betas) - 1):
        more = path.log_weight(state, betas[i], betas[i + 1])
        log_weights = more if log_weights is None else log_weights + more
        state = path.step(state, betas[i + 1], seed=seed, first_run=first_run, step=step + i)
    assert log_weights is not None  # noqa: S101  (a ladder has steps)
    return log_weights, state


def base_log_odds(base: Tensor | None, like: Tensor, n_visible: int) -> Tensor:
    """The log-odds `[n_visible]` of independent visible units, in the dtype of `like`.

    Args:
        base: data `[N, n_visible]`, whose rates are kept 1 / (N + 1) away from 0 and 1; log-odds `[n_visible]`; None
            for the uniform distribution.
        like: a parameter of the machine.
        n_visible: number of visible units.

    Raises:
        TypeError: no tensor of real numbers.
        ValueError: another shape, no rows, data outside [0, 1], or log-odds that are not finite.
    """
    if base is None:
        return like.new_zeros(n_visible)
    real("base", base)
    if base.ndim == 1:
        if base.shape[0] != n_visible:
            raise ValueError(f"base: got {base.shape[0]} log-odds, want n_visible = {n_visible}")
        if not bool(base.isfinite().all()):
            raise ValueError("base: got log-odds that are not finite")
        return base.detach().to(like)
    rows = probabilities("base", base, n_visible, torch.float64).reshape(-1, n_visible)
    if rows.shape[0] == 0:
        raise ValueError("base: got no rows, want data [N, n_visible] with at least one, or log-odds [n_visible]")
    margin = 1 / (rows.shape[0] + 1)
    return torch.logit(rows.mean(0).clamp(margin, 1 - margin)).to(like)


class BinaryPath:
    """The path of Salakhutdinov & Murray (2008) to an RBM with binary units, from independent visible units.

    f_beta(v) = exp((1 - beta) base.v + beta a.v) prod_j (1 + exp(beta (b + vW)_j)); transitions draw h, then v.
    """

    def __init__(self, W: Tensor, vbias: Tensor, hbias: Tensor, base: Tensor | None = None) -> None:
        self.W, self.vbias, self.hbias = W.detach(), vbias.detach(), hbias.detach()
        self.base = base_log_odds(base, self.W, W.shape[0])
        # every hidden unit has two states, whatever its field, where beta is 0
        self.log_z_base = float(-functional.logsigmoid(-self.base.double()).sum()) + W.shape[1] * math.log(2)

    def start(self, n_runs: int, *, seed: int, first_run: int) -> Tensor:
        """Visible states `[n_runs, n_visible]` of independent units."""
        key = torch.tensor(seed, dtype=torch.int64, device=self.W.device)
        return reference.start(self.base, n_runs, seed=key, first_run=first_run).to(self.W.dtype)

    def from_samples(self, v: Tensor, *, seed: int, first_run: int) -> Tensor:  # noqa: ARG002
        """The samples themselves."""
        return binary("samples", v, self.W.shape[0], self.W.dtype)

    def log_weight(self, state: Tensor, beta0: float, beta1: float) -> Tensor:
        """log f_beta1 - log f_beta0, in float64."""
        v, W = state.double(), self.W.double()
        x = torch.addmm(self.hbias.double(), v, W)
        # -logsigmoid(-x) is softplus without torch's linear cut-off
        hidden = functional.logsigmoid(-beta0 * x) - functional.logsigmoid(-beta1 * x)
        return hidden.sum(1) + (beta1 - beta0) * (v @ (self.vbias.double() - self.base.double()))

    def step(self, state: Tensor, beta: float, *, seed: int, first_run: int, step: int) -> Tensor:
        """A sweep of the machine that f_beta is the marginal of."""
        vbias = (1 - beta) * self.base + beta * self.vbias
        return ops.rbm_gibbs(
            state, beta * self.W, vbias, beta * self.hbias, seed=seed, first_chain=first_run, first_step=step
        )[0]

    def advance(
        self, state: Tensor, log_weights: Tensor | None, betas: Sequence[float], *, seed: int, first_run: int,
        first_step: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Weights and states at the end of a part of the ladder, in one fused call."""
        return ops.rbm_ais(
            self.W, self.vbias, self.hbias, self.base, betas, v=state, log_weights=log_weights, seed=seed,
            first_run=first_run, first_step=first_step,
        )  # fmt: skip
