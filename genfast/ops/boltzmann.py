"""General Boltzmann machines: sequential Gibbs sampling of many chains, many sweeps in one call."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genfast import _native
from genfast._backend import use_reference
from genfast._register import define, like
from genfast.ops import _checks as check
from genfast.ops._sampling import STATES, clamp_mask, per_chain, seed_tensor
from genfast.reference import boltzmann as reference

_UNSIGNED = (torch.bool, torch.uint8)
_ORDERS = ("fixed", "random")

# Products (chain, unit, unit) of one call of the kernel, with 64 for each draw: about a second of the slowest one. A
# longer call is cut into several, so that an interrupt is heard in between; the chain is the same, bit for bit. A call
# begins with the fields of its states, which costs some sweeps: so it is cut into blocks of chains first.
_SLICE, _SWEEPS, _CHAINS = 2**33, 64, 256


def _outputs(
    s: Tensor, J: Tensor, bias: Tensor, temperature: Tensor, schedule: Tensor, clamp: Tensor | None, seed: Tensor,
    spins: bool, random_order: bool, first_chain: int, first_step: int,
) -> Tensor:  # fmt: skip
    return like(s)


def _gibbs(
    s: Tensor, J: Tensor, bias: Tensor, temperature: Tensor, schedule: Tensor, clamp: Tensor | None, seed: Tensor,
    spins: bool, random_order: bool, first_chain: int, first_step: int,
) -> Tensor:  # fmt: skip
    states = s if s.dtype in STATES else s.to(torch.int64)
    if not J.dtype == bias.dtype == torch.float64:
        J, bias = J.float(), bias.float()
    n, d, n_sweeps = s.shape[0], s.shape[1], schedule.shape[0]
    work = d * (d + 64)
    if n * n_sweeps * work <= _SLICE:
        out = _slice(
            states, J, bias, temperature, schedule, clamp, seed, spins, random_order, first_chain, first_step
        )  # fmt: skip
        return out if states is s else out.to(s.dtype)
    out = like(states)
    block = max(_CHAINS, _SLICE // (work * min(n_sweeps, _SWEEPS)) // 64 * 64)
    sweeps = max(1, _SLICE // (min(n, block) * work))
    for i in range(0, n, block):
        part = slice(i, i + block)
        rows = states[part]
        temperatures = temperature[part] if temperature.shape[0] == n else temperature
        held = clamp[part] if clamp is not None and clamp.dim() == 2 else clamp
        for j in range(0, n_sweeps, sweeps):
            rows = _slice(
                rows, J, bias, temperatures, schedule[j : j + sweeps], held, seed, spins, random_order,
                first_chain + i, first_step + j,
            )  # fmt: skip
        out[part] = rows
    return out if states is s else out.to(s.dtype)


def _slice(
    s: Tensor, J: Tensor, bias: Tensor, temperature: Tensor, schedule: Tensor, clamp: Tensor | None, seed: Tensor,
    spins: bool, random_order: bool, first_chain: int, first_step: int,
) -> Tensor:  # fmt: skip
    out = like(s)
    # A GPU's status lies in memory, and looking at it waits; so it is looked at only where NaN cannot tell.
    status = seed.new_empty(1, dtype=torch.int32) if s.is_cuda and not s.is_floating_point() else None
    returned: int | None = _native.boltzmann_gibbs(
        s, J, bias, temperature, schedule, clamp, seed, spins, random_order, first_chain & 0xFFFFFFFF,
        first_step & 0xFFFFFFFF, out, status,
    )  # fmt: skip
    if status is not None:
        returned = int(status)
    if returned:
        wrong = reference.refusal(s, J, bias, temperature, schedule, "pm1" if spins else "01")
        raise ValueError(wrong or f"boltzmann_gibbs: the kernel refused its arguments with status {returned}")
    return out


# Weights are raised to float32 anyway, and states keep their dtype.
_gibbs_op = define("boltzmann_gibbs", _outputs, launch=_gibbs, autocast=False)


def _factors(schedule: Tensor | Sequence[float] | None, n_sweeps: int, s: Tensor) -> Tensor:
    """The factor of each sweep's temperature as float32 `[n_sweeps]` on the device of s."""
    if n_sweeps < 1:
        raise ValueError(f"n_sweeps: got {n_sweeps}, want at least 1")
    if schedule is None:
        return s.new_ones(n_sweeps, dtype=torch.float32)
    if isinstance(schedule, Tensor):
        if schedule.device != s.device:
            raise ValueError(f"schedule: got a tensor on {schedule.device}, want {s.device} like s")
        factors = schedule.detach().float()
    else:
        for x in schedule:
            _positive("schedule", x)
        factors = torch.tensor(list(schedule), dtype=torch.float32, device=s.device)
    if factors.dim() != 1 or factors.shape[0] == 0 or n_sweeps not in (1, factors.shape[0]):
        want = "[n_sweeps], a factor for each sweep" if n_sweeps == 1 else f"[n_sweeps] = [{n_sweeps}]"
        raise ValueError(f"schedule: got shape {list(factors.shape)}, want {want}")
    return factors


def _positive(name: str, number: float | Tensor) -> None:
    if not isinstance(number, Tensor) and not 0 < number < math.inf:
        raise ValueError(f"{name}: got {number:g}, want positive finite numbers")


def boltzmann_gibbs(
    s: Tensor,
    J: Tensor,
    bias: Tensor,
    *,
    n_sweeps: int = 1,
    temperature: float | Tensor = 1.0,
    schedule: Tensor | Sequence[float] | None = None,
    clamp: Tensor | None = None,
    values: str = "01",
    order: str = "fixed",
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> Tensor:
    r"""Run sweeps of sequential Gibbs sampling in a general Boltzmann machine.

    The machine's energy is :math:`E(s) = -\tfrac{1}{2} s^\top J s - c \cdot s` with symmetric couplings J without a
    diagonal, and its distribution is proportional to :math:`e^{-E(s) / T}`. A sweep draws every unit once, given all
    others as they are then: :math:`p(s_i = 1 \mid \text{others}) = \sigma((Js + c)_i / T)` for units that are 0 or 1,
    and :math:`\sigma(2 (Js + c)_i / T)` for spins that are -1 or 1. All sweeps of all chains run in one call.

    **The same seed gives the same chain, bit for bit, on every backend and device**, whatever the number of threads:
    weights are rounded once to fixed point (an error near that of a float32 product), fields are exact integers, and
    the random numbers are Philox4x32-10 at (chain, place in the order, step). `genfast.reference.boltzmann` states the
    definition to the last bit. A chain can therefore be split and resumed: rows `k:` of a batch are the chains from
    `first_chain=k`, and n sweeps are m sweeps followed by n - m sweeps from `first_step=m`, with the same seed.

    Between draws only the fields of units that were turned are brought up to date, so the colder a machine the faster
    its sweeps.

    The op is a function of its arguments and has no gradient. Under `torch.vmap` each entry of the batch is one call
    with its own seed, if `seed` is batched or drawn, or with the same seed otherwise.

    Args:
        s: states of the chains `[..., n]`, in any dtype that has the two values.
        J: couplings `[n, n]`, symmetric with zeros on the diagonal; float32 or float64 (half types are raised to
            float32).
        bias: c, `[n]`.
        n_sweeps: number of sweeps, at least 1.
        temperature: T, a number or one for each chain `[...]`.
        schedule: factors `[n_sweeps]` of the temperature, one for each sweep: sweep t is run at `temperature *
            schedule[t]`. Its length is the number of sweeps, and `n_sweeps` may be left out.
        clamp: bool mask `[n]` or `[..., n]` of units that stay as they are in `s`.
        values: "01" for units that are 0 or 1, "pm1" for spins that are -1 or 1.
        order: "fixed" visits the units in the order of their indices; "random" in a permutation drawn anew for each
            sweep, the same for all chains.
        generator: torch generator from which the seed is drawn; the default one if not given.
        seed: an int or an int64 tensor of one element on the device of `s`, read by the kernel. If not given it is
            drawn anew at each call.
        first_chain: number of the first row, for its random numbers.
        first_step: number of the first sweep, for its random numbers.

    Returns:
        s: `[..., n]` after the last sweep, in the dtype of `s`. On a GPU, where looking would wait, nothing of what
        follows is refused for floating states: a `J` that is not symmetric, has a diagonal or is not finite, a bias
        that is not finite, and a bad schedule make all states NaN, a bad temperature or other values in `s` those of
        their chain.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, n_sweeps < 1, an unknown option; `J` is not symmetric, has a
            diagonal or is not finite, or `bias` is not finite; `s` holds other values; a temperature is not positive
            and finite. For integers and bools a call on a GPU waits for the result, and raises this too.

    Source:
        Ackley, Hinton & Sejnowski, "A learning algorithm for Boltzmann machines", 1985; Geman & Geman, "Stochastic
        relaxation, Gibbs distributions, and the Bayesian restoration of images", 1984. Philox: Salmon et al.,
        "Parallel random numbers: as easy as 1, 2, 3", 2011.

    Example:
        >>> A = torch.randn(100, 100) / 10
        >>> J, c = (A + A.T).fill_diagonal_(0), torch.zeros(100)
        >>> spins = torch.randint(0, 2, (64, 100)).float() * 2 - 1
        >>> spins = genfast.ops.boltzmann_gibbs(spins, J, c, n_sweeps=10, values="pm1", seed=1)
        >>> cooled = genfast.ops.boltzmann_gibbs(spins, J, c, schedule=torch.linspace(2, 0.1, 50), values="pm1", seed=2)
        >>> cooled.shape
        torch.Size([64, 100])
    """
    check.floating("J", J)
    check.same_dtype_and_device(J, "J", bias=bias)
    check.tensor("s", s)
    if s.device != J.device:
        raise ValueError(f"s: got a tensor on {s.device}, want {J.device} like J")
    if s.is_complex():
        raise TypeError(f"s: got {s.dtype}, want states in a real, integer or bool dtype")
    rows, batch = check.rows("s", s)
    check.shape("J", J, (rows.shape[1], rows.shape[1]), "[n, n] with n = {} of s", rows.shape[1])
    if J.numel() == 0:
        raise ValueError(f"J: got shape {list(J.shape)}, want at least one unit")
    check.shape("bias", bias, J.shape[:1], "[n] of J")
    if values not in reference.VALUES:
        raise ValueError(f'values: got {values!r}, want "01" or "pm1"')
    if values == "pm1" and s.dtype in _UNSIGNED:
        raise TypeError(f's: got {s.dtype}, want a dtype that has -1 for values="pm1"')
    if order not in _ORDERS:
        raise ValueError(f'order: got {order!r}, want "fixed" or "random"')
    for name, number in (("first_chain", first_chain), ("first_step", first_step)):
        if number < 0:
            raise ValueError(f"{name}: got {number}, want at least 0")
    _positive("temperature", temperature)
    factors = _factors(schedule, n_sweeps, s)
    temperatures, mask = per_chain("temperature", temperature, s, batch), clamp_mask(clamp, s, "n")
    key = seed_tensor(seed, generator, s)
    rows, J, bias = (t.detach() if t.requires_grad else t for t in (rows, J, bias))
    if use_reference(s):
        out = reference.boltzmann_gibbs(
            rows, J, bias, seed=key, n_sweeps=factors.shape[0], temperature=temperatures, schedule=factors, clamp=mask,
            values=values, order=order, first_chain=first_chain, first_step=first_step,
        )  # fmt: skip
    else:
        out = _gibbs_op(
            rows, J, bias, temperatures, factors, mask, key, values == "pm1", order == "random", first_chain,
            first_step,
        )  # fmt: skip
    return out.reshape(s.shape)
