"""Annealed importance sampling of restricted Boltzmann machines: all betas of a ladder in one call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genfast import _native
from genfast._arguments import integer
from genfast._backend import use_reference
from genfast._register import HALF, define, like
from genfast.ops import _checks as check
from genfast.ops._sampling import seed_tensor
from genfast.reference import rbm_ais as reference

# Products (run, visible unit, hidden unit) of one call of the kernel: a second of the slowest one. A longer call is cut
# into several, so that an interrupt is heard in between; the runs are the same, bit for bit.
_SLICE = 2**32


def _outputs(
    v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, base: Tensor, slope: Tensor, betas: Tensor,
    next_betas: Tensor, log_weights: Tensor | None, seed: Tensor, slope_unit: float, first_run: int, first_step: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return v.new_empty(v.shape[0], dtype=torch.float64), like(v)


def _run(
    v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, base: Tensor, slope: Tensor, betas: Tensor,
    next_betas: Tensor, log_weights: Tensor | None, seed: Tensor, slope_unit: float, first_run: int, first_step: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n, steps, products = v.shape[0], betas.shape[0], W.shape[0] * W.shape[1]
    block = max(1, min(n, max(64, _SLICE // products // 64 * 64)))
    segment = max(1, _SLICE // (block * products))
    found = []
    for i in range(0, max(n, 1), block):
        state, weights = v[i : i + block], None if log_weights is None else log_weights[i : i + block]
        for j in range(0, steps, segment):
            part = slice(j, j + segment)
            arguments = (
                state, W, vbias, hbias, base, slope, betas[part], next_betas[part], weights, seed, slope_unit
            )  # fmt: skip
            out_weights, out_v = _outputs(*arguments, 0, 0)
            _native.rbm_ais(*arguments, (first_run + i) & 0xFFFFFFFF, (first_step + j) & 0xFFFFFFFF, out_v, out_weights)
            state, weights = out_v, out_weights
        found.append((weights, state))
    return torch.cat([w for w, _ in found]), torch.cat([s for _, s in found])  # type: ignore[misc]


_op = define("rbm_ais", _outputs, launch=_run, autocast=False)


def rbm_ais(
    W: Tensor,
    vbias: Tensor,
    hbias: Tensor,
    base: Tensor,
    betas: Tensor | Sequence[float],
    *,
    n_runs: int | None = None,
    v: Tensor | None = None,
    log_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    first_run: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Run annealed importance sampling along a ladder of inverse temperatures.

    The path leads from independent visible units of log-odds r (`base`) to the machine,

    .. math::
        f_\beta(v) = e^{(1 - \beta)\, r \cdot v + \beta\, a \cdot v} \prod_j \bigl(1 + e^{\beta (b + vW)_j}\bigr),

    and a run of states :math:`v_0, v_1, \ldots` has the weight
    :math:`\log w = \sum_t \log f_{\beta_{t+1}}(v_t) - \log f_{\beta_t}(v_t)`, where :math:`v_t` is drawn from
    :math:`v_{t-1}` by a sweep of Gibbs sampling at :math:`\beta_t`. From exact draws of :math:`f_0` to
    :math:`\beta = 1` the mean of w is an unbiased estimate of :math:`Z_1 / Z_0` with
    :math:`\log Z_0 = n_\mathrm{hidden} \log 2 + \sum_i \mathrm{softplus}(r_i)`; `genfast.boltzmann.ais_log_z` gives
    log Z with its error. A ladder that falls, from samples v of the machine, is reverse annealing.

    The fields of the hidden units are computed once a step, for its weight and for the draw behind it. Log-weights are
    those of float64 along the same states up to the rounding of the fields in float32: within 1e-4 for a machine of
    784 x 500. **The same seed gives the same log-weights and states, bit for bit, on every backend and device**,
    whatever the number of threads: fields are exact integers as in `rbm_gibbs`, and each hidden unit's part of a weight
    is rounded to an integer by fixed float32 operations, so that sums do not depend on their order.
    `genfast.reference.rbm_ais` states the definition.

    Runs can therefore be split and resumed: `first_run=k` gives the runs from number k on, and `betas[:m + 1]` followed
    by `betas[m:]` with the states, `log_weights` and `first_step=m` what one call gives.

    The op has no gradient.

    Args:
        W: weights `[n_visible, n_hidden]`, float32 or float64 (half types are raised to float32).
        vbias: a, `[n_visible]`.
        hbias: b, `[n_hidden]`.
        base: r, log-odds `[n_visible]` of the visible units at beta = 0; zeros for uniform states.
        betas: at least two numbers in [0, 1], rounded to float32; the run steps from each to the next.
        n_runs: number of runs, which start at exact draws of the base; not with v.
        v: 0/1 states `[n_runs, n_visible]` at the first of the betas, in any dtype, instead of draws.
        log_weights: float64 `[n_runs]`, what the weights are added to; 0 by default.
        generator: torch generator from which the seed is drawn; the default one if not given.
        seed: an int or an int64 tensor of one element on the device of W.
        first_run: number of the first run, for its random numbers.
        first_step: number of the first step, for its random numbers.

    Returns:
        log_weights: float64 `[n_runs]`; NaN where a parameter is not finite.
        v: the states `[n_runs, n_visible]` after the last sweep, in the dtype of the given v or of W.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, betas are not a ladder in [0, 1], or v holds anything but 0 and 1.

    Source:
        Salakhutdinov & Murray, "On the quantitative analysis of deep belief networks", 2008; Neal, "Annealed importance
        sampling", 2001.

    Example:
        >>> W, a, b = torch.randn(784, 500) * 0.1, torch.zeros(784), torch.zeros(500)
        >>> log_w, v = genfast.ops.rbm_ais(W, a, b, torch.zeros(784), torch.linspace(0, 1, 101), n_runs=100, seed=1)
        >>> log_w.shape, v.shape
        (torch.Size([100]), torch.Size([100, 784]))
    """
    check.floating("W", W)
    check.same_dtype_and_device(W, "W", vbias=vbias, hbias=hbias)
    check.shape("W", W, (None, None), "[n_visible, n_hidden]")
    if W.numel() == 0:
        raise ValueError(f"W: got shape {list(W.shape)}, want at least one visible and one hidden unit")
    check.shape("vbias", vbias, W.shape[:1], "[n_visible] of W")
    check.shape("hbias", hbias, W.shape[1:], "[n_hidden] of W")
    check.floating("base", base)
    check.shape("base", base, W.shape[:1], "[n_visible] of W")
    if base.device != W.device:
        raise ValueError(f"base: got a tensor on {base.device}, want {W.device} like W")
    ladder = _ladder(betas)
    for name, number in (("first_run", first_run), ("first_step", first_step)):
        integer(name, number, at_least=0)
    key = seed_tensor(seed, generator, W)
    W, vbias, hbias, base = (t.detach().float() if t.dtype in HALF else t.detach() for t in (W, vbias, hbias, base))
    if not bool(base.isfinite().all()):
        raise ValueError("base: got log-odds that are not finite")
    states = _states(v, n_runs, W, base, key, first_run)
    if log_weights is not None:
        check.tensor("log_weights", log_weights)
        if log_weights.dtype != torch.float64 or log_weights.device != W.device:
            raise TypeError(f"log_weights: got {log_weights.dtype} on {log_weights.device}, want float64 like W")
        check.shape("log_weights", log_weights, states.shape[:1], "[n_runs]")
    if use_reference(W):
        found, out = reference.rbm_ais(
            states, W, vbias, hbias, base, ladder, seed=key, log_weights=log_weights, first_run=first_run,
            first_step=first_step,
        )  # fmt: skip
    else:
        slope, unit = reference.slopes(vbias, base)
        betas, next_betas = ladder[:-1].to(W.device), ladder[1:].to(W.device)
        found, out = _op(
            states, W, vbias, hbias, base.float(), slope, betas, next_betas, log_weights, key, unit, first_run,
            first_step,
        )  # fmt: skip
    return found, out if v is None else out.to(v.dtype)


def _ladder(betas: Tensor | Sequence[float]) -> Tensor:
    """The betas as float32 on the CPU."""
    ladder = torch.as_tensor(betas).detach().cpu().float()
    if ladder.ndim != 1 or ladder.shape[0] < 2:
        raise ValueError(f"betas: got shape {list(ladder.shape)}, want a ladder of at least 2 numbers")
    if not bool(((ladder >= 0) & (ladder <= 1)).all()):
        raise ValueError("betas: got numbers outside [0, 1]")
    return ladder


def _states(v: Tensor | None, n_runs: int | None, W: Tensor, base: Tensor, key: Tensor, first_run: int) -> Tensor:
    """The states that runs start from, in the dtype of W."""
    if v is None:
        if n_runs is None:
            raise ValueError("n_runs, v: got neither, want one of them")
        count = integer("n_runs", n_runs)
        return reference.start(base, count, seed=key, first_run=first_run).to(W.dtype)
    if n_runs is not None:
        raise ValueError("n_runs, v: got both, want one of them")
    check.tensor("v", v)
    check.shape("v", v, (None, W.shape[0]), "[n_runs, n_visible]")
    if v.device != W.device:
        raise ValueError(f"v: got a tensor on {v.device}, want {W.device} like W")
    if not bool(((v == 0) | (v == 1)).all()):
        raise ValueError("v: expected states that are 0 or 1, got other values")
    return v.detach().to(W.dtype)
