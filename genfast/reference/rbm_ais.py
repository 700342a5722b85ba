"""Annealed importance sampling of a restricted Boltzmann machine in plain PyTorch.

The path is that of Salakhutdinov & Murray (2008) from independent visible units of log-odds r (`base`) to the machine:

    log f_beta(v) = (1 - beta) r.v + beta a.v + sum_j softplus(beta x_j),  x = b + vW.

A run is defined to the last bit, as a Gibbs chain is (`genfast/reference/rbm.py`): fields are exact integers in units
of s = 2^e, and step t of a run, from beta0 to beta1 (all betas are float32 numbers), is

1. **Weight.** log w += (beta1 - beta0) (2 s sum_j y_j + u D) in float64. D is the sum of a - r over the active units,
   with a - r truncated to integers in units of u (`slopes`). y_j is x_j times the mean of the logistic function between
   beta0 x_j and beta1 x_j, rounded to an integer in units of 2 s (`increments`); sums of integers are exact.
2. **Hidden units** at beta1, drawn from z = (float32(field) * s) * beta1, stream 8.
3. **Visible units** at beta1, drawn from z = (float32(field) * s) * beta1 + (1 - beta1) * float32(r), stream 9.

`genfast/reference/_gibbs.py` says how a unit is drawn from z; here s is limited to 2^96, so that z is finite.
"""

import itertools
import math

import torch
from torch import Tensor

from genfast.reference._gibbs import accept_logit, exp_negative, uniform_words
from genfast.reference.rbm import quantise

__all__ = ["increments", "path_log_weights", "rbm_ais", "slopes", "start"]

START_STREAM, HIDDEN_STREAM, VISIBLE_STREAM = 7, 8, 9


def start(base: Tensor, n_runs: int, *, seed: Tensor, first_run: int = 0) -> Tensor:
    """Exact draws of independent units of log-odds base: bools `[n_runs, n_visible]`, from stream 7 at step 0."""
    runs = torch.arange(n_runs, device=base.device) + first_run
    words = uniform_words(seed, runs, base.shape[0], 0, START_STREAM)
    return accept_logit(base.float().expand(n_runs, -1), words)


def slopes(vbias: Tensor, base: Tensor) -> tuple[Tensor, float]:
    """a - r as int64 in units of a power of two for which no sum of them leaves int64; and that unit."""
    difference = vbias.double() - base.double()
    largest = float(difference.abs().max())
    exponent = max(math.frexp(largest)[1], -800) - 62 + difference.shape[0].bit_length()
    if not math.isfinite(largest):
        return difference.new_zeros(difference.shape, dtype=torch.int64), 1.0
    return (difference * 2.0**-exponent).to(torch.int64), 2.0**exponent


def increments(field: Tensor, scale: float, t: Tensor, beta0: float, beta1: float) -> Tensor:
    """y of integer fields, in units of twice theirs, from t = exp(-beta1 |x|): float32, each operation rounded.

    The mean g of the logistic function s between z - d and z, z = beta1 x and d = (beta1 - beta0) x: by its derivatives
    at z where |d| <= 1/8, which loses no digits to the smallest of steps, and else by the difference of
    softplus(z) = max(z, 0) + log(1 + t).
    """
    field = field.float()
    x = field * scale
    d = x * (torch.tensor(beta1, dtype=torch.float32) - torch.tensor(beta0, dtype=torch.float32)).to(x.device)
    positive = x > 0
    w = 1.0 / (1.0 + t)
    s = torch.where(positive, w, t * w)
    other = torch.where(positive, t * w, w)
    slope, c = s * other, other - s
    p = (c * (1.0 + slope * -12.0)) * _f32(-1 / 120)
    p = p * d + (1.0 + slope * -6.0) * _f32(1 / 24)
    p = p * d + c * _f32(-1 / 6)
    p = p * d + 0.5
    near = s - (slope * d) * p
    far = d.abs() > 0.125
    gap = _log1p_unit(t) - _log1p_unit(exp_negative((x * beta0).abs()))
    g = torch.where(far, positive.float() + gap / torch.where(far, d, 1.0), near)
    return torch.round(field * 0.5 * g).to(torch.int64)


def _f32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


def _log1p_unit(t: Tensor) -> Tensor:
    """log(1 + t) for t from 0 to 1 as 2 atanh(s), s = t / (2 + t)."""
    s = t / (t + 2.0)
    u = s * s
    q = _f32(0.28024464) * u + _f32(0.279991401)
    q = q * u + _f32(0.400216991)
    q = q * u + _f32(0.666664131)
    return (q * u) * s + (s + s)


def rbm_ais(
    v: Tensor,
    W: Tensor,
    vbias: Tensor,
    hbias: Tensor,
    base: Tensor,
    betas: Tensor,
    *,
    seed: Tensor,
    log_weights: Tensor | None = None,
    first_run: int = 0,
    first_step: int = 0,
    path: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Follows runs from states v `[n_runs, n_visible]` at the first of the betas to the last of them.

    Args:
        v: 0/1 states.
        W: weights `[n_visible, n_hidden]`.
        vbias: a, `[n_visible]`.
        hbias: b, `[n_hidden]`.
        base: r, `[n_visible]`.
        betas: float32 `[n_betas]`.
        seed: int64 scalar.
        log_weights: float64 `[n_runs]`, what is added to; 0 by default.
        first_run: number of the first run, for its random numbers.
        first_step: number of the first step, likewise.
        path: gets the states at each beta but the last.

    Returns:
        The log-weights, float64 `[n_runs]`, and the states drawn at the last beta, in the dtype of v. NaN where a
        parameter is not finite.
    """
    with torch.no_grad():
        n = v.shape[0]
        total = v.new_zeros(n, dtype=torch.float64) if log_weights is None else log_weights.clone()
        if not all(bool(x.isfinite().all()) for x in (W, vbias, hbias)):
            return torch.full_like(total, torch.nan), v.new_full(v.shape, torch.nan)
        qw, qv, qh, e = quantise(W, vbias, hbias)
        scale, slope = 2.0 ** min(e, 96), slopes(vbias, base)
        runs = torch.arange(n, device=v.device) + first_run
        visible, ladder, offset = v != 0, betas.float().tolist(), base.float()
        for i, (beta0, beta1) in enumerate(itertools.pairwise(ladder)):
            if path is not None:
                path.append(visible.to(v.dtype))
            step = first_step + i
            field = visible.double() @ qw.double() + qh.double()
            z = (field.float() * scale) * beta1
            y = increments(field, scale, exp_negative(z.abs()), beta0, beta1).sum(1)
            D = torch.where(visible, slope[0], 0).sum(1)
            total = total + (beta1 - beta0) * (y.double() * 2.0 ** (e + 1) + D.double() * slope[1])
            hidden = accept_logit(z, uniform_words(seed, runs, W.shape[1], step, HIDDEN_STREAM))
            field = hidden.double() @ qw.double().t() + qv.double()
            rest = torch.tensor(1.0) - torch.tensor(beta1, dtype=torch.float32)
            z = (field.float() * scale) * beta1 + rest.to(offset.device) * offset
            visible = accept_logit(z, uniform_words(seed, runs, W.shape[0], step, VISIBLE_STREAM))
        return total, visible.to(v.dtype)


def path_log_weights(
    states: list[Tensor], W: Tensor, vbias: Tensor, hbias: Tensor, base: Tensor, betas: Tensor
) -> Tensor:
    """The log-weights of runs through given states, one for each beta but the last, by the formula in float64."""
    W, vbias, hbias, base = W.double(), vbias.double(), hbias.double(), base.double()
    total = W.new_zeros(states[0].shape[0])
    ladder = betas.float().double().tolist()
    for v, beta0, beta1 in zip(states, ladder[:-1], ladder[1:], strict=True):
        x = v.double() @ W + hbias
        hidden = torch.nn.functional.logsigmoid(-beta0 * x) - torch.nn.functional.logsigmoid(-beta1 * x)
        total = total + hidden.sum(1) + (beta1 - beta0) * (v.double() @ (vbias - base))
    return total
