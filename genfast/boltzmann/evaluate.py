"""How good a Boltzmann machine is: its normalising constant, exactly or with an error that is told, and likelihoods."""

import dataclasses
import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfast._arguments import integer, real
from genfast._finite import check_finite
from genfast.boltzmann._annealing import advance
from genfast.ops._sampling import seed_tensor

__all__ = [
    "Bracket", "LogLikelihood", "LogPartition", "ais_bracket", "ais_log_z", "annealing_betas", "exact_log_z",
    "log_likelihood", "pseudo_log_likelihood", "reverse_ais_log_z",
]  # fmt: skip

Progress = Callable[[int, int], None]
_ROWS = 4096  # of data at a time
_SEGMENT = 100  # steps between two calls of `progress`
_NODES = ((0.0, 0.0), (500 / 14500, 0.5), (4500 / 14500, 0.9), (1.0, 1.0))


@dataclasses.dataclass(frozen=True)
class LogPartition:
    """An estimate of log Z.

    Attributes:
        log_z: the estimate.
        stderr: its standard error, by the delta method: that of the mean weight over the mean weight.
        ess: effective number of runs, (sum w)^2 / sum w^2.
        log_weights: those of the runs, float64 `[n_runs]`.
        interval: the estimate with the mean weight three standard errors lower and higher; -inf (or inf) where that is
            not positive, and says nothing.
        method: "AIS" or "reverse AIS".
    """

    log_z: float
    stderr: float
    ess: float
    log_weights: Tensor
    interval: tuple[float, float]
    method: str


@dataclasses.dataclass(frozen=True)
class Bracket:
    """Two estimates of log Z that lie, on average, on either side of it.

    Attributes:
        lower: by annealed importance sampling; log Z is underestimated on average.
        upper: by reverse annealed importance sampling; overestimated on average, if its samples are the machine's.
    """

    lower: LogPartition
    upper: LogPartition

    @property
    def gap(self) -> float:
        """The distance of the estimates, in nats."""
        return self.upper.log_z - self.lower.log_z

    @property
    def interval(self) -> tuple[float, float]:
        """From the lower end of the lower estimate's interval to the upper end of the upper one's."""
        return min(self.lower.interval[0], self.upper.interval[0]), max(self.lower.interval[1], self.upper.interval[1])


@dataclasses.dataclass(frozen=True)
class LogLikelihood:
    """The mean log-likelihood of data, in nats.

    Attributes:
        mean: over the rows.
        stderr: of the mean, from the spread of the rows alone.
        per_row: float64 `[N]`.
        log_z: the log Z that was used; None for a pseudo-likelihood, which needs none.
        log_z_stderr: its standard error, which all rows share; 0 where it is exact or was given as a number.
        method: where log Z is from: "exact", "AIS", "reverse AIS", "given"; or "pseudo-likelihood". With ", variational
            bound" where the machine cannot sum its hidden units out: log p is then at least this, given log Z.
    """

    mean: float
    stderr: float
    per_row: Tensor
    log_z: float | None
    log_z_stderr: float
    method: str


# --- log Z ------------------------------------------------------------------------------------------------------------


def exact_log_z(model: Any) -> float:
    """The exact log Z of a small machine, by enumeration in float64.

    It is `model.log_partition()` as a number; for an RBM the smaller layer is enumerated and the larger one summed out.

    Raises:
        TypeError: the machine has no `log_partition`.
        ValueError: more than 25 units would have to be enumerated.

    Example:
        >>> round(exact_log_z(RBM(3, 2, init_std=0.0)), 6)  # 2^5 states of energy 0
        3.465736
    """
    _needs(model, "log_partition")
    with torch.no_grad():
        return float(model.log_partition())


def annealing_betas(n: int = 14_500) -> Tensor:
    """The inverse temperatures of Salakhutdinov & Murray (2008), from 0 to 1 in n steps: float64 `[n + 1]`.

    Theirs are n = 14,500: steps of 1e-3 up to 0.5, 1e-4 up to 0.9, 1e-5 up to 1. Other numbers keep the proportions.

    Example:
        >>> annealing_betas(29).shape
        torch.Size([30])
    """
    u = torch.linspace(0, 1, integer("n", n) + 1, dtype=torch.float64)
    betas = torch.zeros_like(u)
    for (u0, b0), (u1, b1) in itertools.pairwise(_NODES):
        betas = torch.where(u > u0, b0 + (u - u0) * ((b1 - b0) / (u1 - u0)), betas)
    betas[-1] = 1
    return betas


@torch.no_grad()
def ais_log_z(
    model: Any,
    *,
    betas: Tensor | Sequence[float] | int | None = None,
    n_runs: int = 100,
    base: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    distributed: bool = False,
    progress: Progress | None = None,
) -> LogPartition:
    r"""Estimate log Z by annealed importance sampling.

    Each run starts at an exact draw of a base distribution, whose normalising constant is known, and follows the
    machine's annealing path :math:`f_{\beta_0}, f_{\beta_1}, \ldots, f_{\beta_K}` with transitions that leave each
    distribution as it is. The mean of the weights :math:`w = \prod_t f_{\beta_{t+1}}(x_t) / f_{\beta_t}(x_t)` is an
    unbiased estimate of :math:`Z / Z_\mathrm{base}`; its logarithm underestimates on average, badly so where the runs
    miss a mode of the machine. `ais_bracket` closes the other side.

    The result depends on the seed alone: neither on threads nor, `distributed`, on the number of processes.

    Args:
        model: a machine with `annealing_path`.
        betas: from 0 to 1: increasing numbers; how many steps of `annealing_betas`; or None for all of its 14,500.
        n_runs: number of runs, at least 2.
        base: data `[N, n_visible]`, from whose rates of each unit the runs start (a far better choice than None for
            images); log-odds `[n_visible]`; or None for the machine's own choice, most often the uniform distribution.
        generator: draws the seed; the default generator otherwise.
        seed: the seed itself.
        distributed: spread the runs over the processes of torch.distributed, all of which make this call. Each gets the
            result of all runs. The seed is that of rank 0.
        progress: called as progress(steps done, steps in all) now and then.

    Returns:
        The estimate. One with fewer effective runs than a tenth of the runs is told by a warning.

    Raises:
        TypeError: the machine has no annealing path.
        NonFiniteError: a parameter is NaN or infinite.
        ValueError: betas do not lead from 0 to 1, n_runs is below 2, base does not fit, or `distributed` without a
            group of processes.

    Source:
        Neal 2001, "Annealed importance sampling"; Salakhutdinov & Murray 2008, "On the quantitative analysis of deep
        belief networks".

    Example:
        >>> rbm = RBM(20, 10, init_std=0.5)
        >>> estimate = ais_log_z(rbm, betas=1000, seed=1)
        >>> abs(estimate.log_z - exact_log_z(rbm)) < 0.2
        True
    """
    _needs(model, "annealing_path")
    ladder, count = _ladder(betas), integer("n_runs", n_runs, at_least=2)
    path, key = _path(model, base), _seed(seed, generator, distributed)

    def run(first: int, n: int) -> Tensor:
        return _follow(path, path.start(n, seed=key, first_run=first), ladder, key, first, progress)

    return _estimate(path.log_z_base, _spread(run, count, distributed), reverse=False)


@torch.no_grad()
def reverse_ais_log_z(
    model: Any,
    samples: Tensor,
    *,
    betas: Tensor | Sequence[float] | int | None = None,
    base: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    distributed: bool = False,
    progress: Progress | None = None,
) -> LogPartition:
    """Estimate log Z by annealed importance sampling from the machine to the base, one run from each sample.

    The mean weight of these runs estimates Z_base / Z without bias if the samples are exact draws of the machine, so
    that log Z is overestimated on average: with `ais_log_z` from below, the truth lies in between. Samples of chains
    that have not mixed void this, and a gap of the two that does not close shows it.

    Args:
        model: a machine with `annealing_path`.
        samples: visible states `[n_runs, n_visible]` drawn from the machine, at least 2; such as
            `model.sample(n_runs, n_steps)` with many steps.
        betas: as in `ais_log_z`, from 0 to 1; they are followed backwards.
        base: as in `ais_log_z`.
        generator: draws the seed; the default generator otherwise.
        seed: the seed itself. Not the one that drew the samples.
        distributed: spread the runs over processes; all of them give the same samples.
        progress: as in `ais_log_z`.

    Returns:
        The estimate.

    Raises:
        TypeError: the machine has no annealing path.
        ValueError: an argument does not fit.

    Source:
        Burda, Grosse & Salakhutdinov 2015, "Accurate and conservative estimates of MRF log-likelihood using reverse
        annealing"; Grosse, Ghahramani & Adams 2015, "Sandwiching the marginal likelihood using bidirectional Monte
        Carlo".
    """
    _needs(model, "annealing_path")
    ladder = _ladder(betas).flip(0)
    real("samples", samples)
    if samples.ndim != 2 or samples.shape[0] < 2:
        raise ValueError(
            f"samples: got shape {list(samples.shape)}, want states [n_runs, n_visible] with at least 2 rows"
        )
    path, key = _path(model, base), _seed(seed, generator, distributed)

    def run(first: int, n: int) -> Tensor:
        state = path.from_samples(samples[first : first + n], seed=key, first_run=first)
        return _follow(path, state, ladder, key, first, progress)

    return _estimate(path.log_z_base, _spread(run, samples.shape[0], distributed), reverse=True)


def ais_bracket(
    model: Any,
    *,
    samples: Tensor | None = None,
    betas: Tensor | Sequence[float] | int | None = None,
    n_runs: int = 100,
    n_steps: int = 10_000,
    base: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    distributed: bool = False,
    progress: Progress | None = None,
) -> Bracket:
    """Estimate log Z from both sides: `ais_log_z`, and `reverse_ais_log_z` from samples of the machine.

    Args:
        model: a machine with `annealing_path` (and `sample`, where no samples are given).
        samples: visible states `[N, n_visible]` drawn from the machine; by default the ends of n_runs chains.
        betas: as in `ais_log_z`.
        n_runs: number of runs from the base.
        n_steps: sweeps of the chains that give the samples.
        base: as in `ais_log_z`.
        generator: draws the seeds; the default generator otherwise.
        seed: of all three parts.
        distributed: as in `ais_log_z`.
        progress: as in `ais_log_z`; called for either side in turn.

    Returns:
        Both estimates. A gap of well below a nat says that both can be trusted; a large one, that the ladder is too
        short or that chains do not reach all modes.

    Raises:
        TypeError: the machine has no annealing path, or cannot be sampled.
        ValueError: an argument does not fit.

    Example:
        >>> rbm = RBM(20, 10, init_std=0.5)
        >>> bracket = ais_bracket(rbm, betas=1000, n_steps=1000, seed=1)
        >>> low, high = bracket.interval
        >>> low <= exact_log_z(rbm) <= high
        True
    """
    # Each part has a seed of its own: the samples must not share numbers with the runs that start from them.
    source = torch.Generator().manual_seed(_seed(seed, generator, distributed))
    seeds = [int(s) for s in torch.randint(-(2**63), 2**63 - 1, (3,), generator=source)]
    lower = ais_log_z(
        model, betas=betas, n_runs=n_runs, base=base, seed=seeds[0], distributed=distributed, progress=progress
    )
    if samples is None:
        _needs(model, "sample")
        where = next(model.parameters()).device
        samples = model.sample(n_runs, n_steps, generator=torch.Generator(where).manual_seed(seeds[1]))
    upper = reverse_ais_log_z(
        model, samples, betas=betas, base=base, seed=seeds[2], distributed=distributed, progress=progress
    )
    return Bracket(lower, upper)


# --- likelihoods ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_likelihood(
    model: Any,
    data: Tensor,
    log_z: float | Tensor | LogPartition | None = None,
    *,
    generator: torch.Generator | None = None,
    **ais: Any,
) -> LogLikelihood:
    """The mean of log p(v) = -F(v) - log Z over data, with log Z exact where the machine is small enough.

    Args:
        model: a machine with `free_energy`.
        data: visible states `[N, n_visible]`.
        log_z: log Z where it is known: a number or the result of `ais_log_z`. By default that of `exact_log_z`, or of
            `ais_log_z` where the machine is too large to be enumerated; `method` of the result says which.
        generator: source of randomness of `ais_log_z`.
        ais: options of `ais_log_z`; the base is by default the data's rates.

    Returns:
        Mean and standard error, in nats, and log p of each row. An error e of log Z moves all rows by -e alike, and an
        AIS that underestimates log Z makes the likelihood look better than it is.

    Raises:
        TypeError: the machine has no `free_energy`.
        ValueError: data does not fit or has no rows.

    Example:
        >>> rbm, data = RBM(20, 10), torch.bernoulli(torch.full((50, 20), 0.3))
        >>> result = log_likelihood(rbm, data)
        >>> result.method, result.per_row.shape
        ('exact', torch.Size([50]))
    """
    _needs(model, "free_energy")
    rows = _rows(data)
    if isinstance(log_z, LogPartition):
        value, stderr, method = log_z.log_z, log_z.stderr, log_z.method
    elif log_z is not None:
        value, stderr, method = float(log_z), 0.0, "given"
    else:
        try:
            value, stderr, method = exact_log_z(model), 0.0, "exact"
        except (TypeError, ValueError):
            estimate = ais_log_z(model, generator=generator, **{"base": rows, **ais})
            value, stderr, method = estimate.log_z, estimate.stderr, estimate.method
    energies, is_bound = _free_energies(model, rows)
    return _summary(-energies - value, value, stderr, f"{method}, variational bound" if is_bound else method)


@torch.no_grad()
def pseudo_log_likelihood(
    model: Any, data: Tensor, *, exact: bool = True, generator: torch.Generator | None = None
) -> LogLikelihood:
    """The mean over data of the pseudo-log-likelihood sum_i log p(v_i | the other units), which needs no log Z.

    Args:
        model: a machine with `pseudo_likelihood`.
        data: visible states `[N, n_visible]`.
        exact: sum over all units, where the machine's method lets one choose; otherwise one unit a row is drawn.
        generator: draws those units.

    Raises:
        TypeError: the machine has no `pseudo_likelihood`.
        ValueError: data does not fit or has no rows.

    Source:
        Besag 1975, "Statistical analysis of non-lattice data".
    """
    _needs(model, "pseudo_likelihood")
    taken = inspect.signature(model.pseudo_likelihood).parameters
    options = {k: v for k, v in {"exact": exact, "generator": generator}.items() if k in taken}
    parts = [model.pseudo_likelihood(part, **options).double() for part in _rows(data).split(_ROWS)]
    return _summary(torch.cat(parts), None, 0.0, "pseudo-likelihood")


# --- internals --------------------------------------------------------------------------------------------------------


def _needs(model: Any, method: str) -> None:
    if not callable(getattr(model, method, None)):
        raise TypeError(f"model: got {type(model).__name__}, which has no {method}")


def _path(model: Any, base: Tensor | None) -> Any:
    if isinstance(model, nn.Module):
        check_finite(model)
    return model.annealing_path(base)


def _free_energies(model: Any, rows: Tensor) -> tuple[Tensor, bool]:
    """F of the rows, float64, or where the machine cannot sum its hidden units out, bounds above it; and which."""
    energy, is_bound = model.free_energy, False
    try:
        energy(rows[:1])
    except ValueError:
        if not hasattr(model, "variational_free_energy"):
            raise
        energy, is_bound = model.variational_free_energy, True
    return torch.cat([energy(part).double() for part in rows.split(_ROWS)]), is_bound


def _rows(data: Tensor) -> Tensor:
    real("data", data)
    if data.ndim != 2 or data.shape[0] == 0:
        raise ValueError(f"data: got shape {list(data.shape)}, want [N, n_visible] with at least one row")
    return data


def _ladder(betas: Tensor | Sequence[float] | int | None) -> Tensor:
    """The betas that are wanted: increasing from 0 to 1, float64 on the CPU."""
    if betas is None or isinstance(betas, int):
        return annealing_betas() if betas is None else annealing_betas(integer("betas", betas))
    ladder = torch.as_tensor(betas, dtype=torch.float64, device="cpu").detach()
    if ladder.ndim != 1 or len(ladder) < 2:
        raise ValueError(f"betas: got shape {list(ladder.shape)}, want a ladder of at least 2 numbers")
    if not (ladder[0] == 0 and ladder[-1] == 1 and bool((ladder.diff() > 0).all())):
        raise ValueError("betas: got a ladder that does not increase from 0 to 1")
    return ladder


def _seed(seed: int | None, generator: torch.Generator | None, distributed: bool) -> int:
    key = int(seed_tensor(seed, generator, torch.empty(0)))
    return key if not distributed else int(_gathered(key)[0])


def _gathered(x: Any) -> list[Any]:
    """What every process gives, in the order of ranks."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "distributed: got True without a group of processes; start them with torchrun and call "
            "torch.distributed.init_process_group() first"
        )
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, x)
    return found


def _spread(run: Callable[[int, int], Tensor], n_runs: int, distributed: bool) -> Tensor:
    """The log-weights of runs 0 ... n_runs - 1, of which this process may do a part."""
    if not distributed:
        return run(0, n_runs)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    first, last = n_runs * rank // size, n_runs * (rank + 1) // size
    mine = run(first, last - first).cpu() if last > first else torch.empty(0, dtype=torch.float64)
    return torch.cat(_gathered(mine))


def _follow(path: Any, state: Any, ladder: Tensor, seed: int, first_run: int, progress: Progress | None) -> Tensor:
    """The log-weights of runs along the ladder from a state at its first beta."""
    betas, steps = ladder.tolist(), len(ladder) - 1
    log_weights: Tensor | None = None
    segment = _SEGMENT if progress is not None else steps
    for i in range(0, steps, segment):
        part = betas[i : i + segment + 1]
        log_weights, state = advance(path, state, log_weights, part, seed=seed, first_run=first_run, step=i)
        if progress is not None:
            progress(i + len(part) - 1, steps)
    assert log_weights is not None  # noqa: S101  (a ladder has steps)
    return log_weights


def _estimate(log_z_base: float, log_weights: Tensor, *, reverse: bool) -> LogPartition:
    """log Z from the weights of runs: that of the base plus the log of their mean, or minus it."""
    n = len(log_weights)
    method = "reverse AIS" if reverse else "AIS"
    top = float(log_weights.max())
    if not math.isfinite(top) or bool(log_weights.isnan().any()):
        raise ValueError(f"model: its parameters give log-weights that are not finite ({method})")
    w = torch.exp(log_weights - top)
    mean = float(w.mean())
    stderr = float(w.std()) / math.sqrt(n) / mean
    ess = float(w.sum() ** 2 / (w**2).sum())
    sign = -1 if reverse else 1
    log_z = log_z_base + sign * (top + math.log(mean))
    low = math.log1p(-3 * stderr) if 3 * stderr < 1 else -math.inf
    ends = sorted((log_z + sign * low, log_z + sign * math.log1p(3 * stderr)))
    if ess < n / 10:
        warnings.warn(
            f"{method}: {ess:.1f} of {n} runs count (effective sample size); the estimate of log Z and its standard "
            "error cannot be trusted: use more betas, or base rates of the data",
            stacklevel=3,
        )
    return LogPartition(log_z, stderr, ess, log_weights, (ends[0], ends[1]), method)


def _summary(per_row: Tensor, log_z: float | None, log_z_stderr: float, method: str) -> LogLikelihood:
    n = len(per_row)
    stderr = float(per_row.std()) / math.sqrt(n) if n > 1 else math.nan
    return LogLikelihood(float(per_row.mean()), stderr, per_row, log_z, log_z_stderr, method)
