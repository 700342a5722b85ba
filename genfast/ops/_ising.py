"""What the samplers of lattices and of graphs share: values, temperatures, and why states cannot be drawn."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genfast.ops import _checks as check
from genfast.reference import ising as reference

VALUES = ("pm1", "01")
# Bits of the kernels' status (IsingStatus in csrc/ops/ising/ising_status.h), with what they mean.
_FAULTS = (
    (8, reference.BAD_GRAPH), (16, reference.BAD_COLOURS), (4, reference.NOT_FINITE), (32, reference.ASYMMETRIC),
    (1, reference.NOT_STATES), (2, reference.BAD_TEMPERATURE),
)  # fmt: skip


def refuse(status: int) -> None:
    """Raise what a status that is not 0 means, the gravest fault first."""
    for bit, text in _FAULTS:
        if status & bit:
            raise ValueError(text)


def is_spin(values: str, s: Tensor) -> bool:
    """Whether states are -1 and 1, in a dtype that can be."""
    if values not in VALUES:
        raise ValueError(f"values: got {values!r}, want 'pm1' or '01'")
    spin = values == "pm1"
    if spin and s.dtype in (torch.bool, torch.uint8):
        raise TypeError(f"s: got {s.dtype}, which cannot be -1; want another dtype, or values='01'")
    if s.is_complex():
        raise TypeError(f"s: got {s.dtype}, want states in a real, integer or bool dtype")
    return spin


def inverse_temperatures(temperature: float | Tensor, s: Tensor, batch: torch.Size, n_sweeps: int) -> Tensor:
    """1 / T as float32 `[1 or n_sweeps, 1 or N]`, of a number, one a chain `batch`, or a schedule `[n_sweeps, ...]`."""
    if not isinstance(temperature, Tensor):
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
            raise TypeError(f"temperature: got {type(temperature).__name__}, want a number or a tensor")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: got {temperature}, want a positive number")
        return s.new_full((1, 1), 1.0 / temperature, dtype=torch.float32)
    check.tensor("temperature", temperature)
    if temperature.device != s.device:
        raise ValueError(f"temperature: got a tensor on {temperature.device}, want {s.device} like s")
    if temperature.is_complex():
        raise TypeError(f"temperature: got {temperature.dtype}, want real numbers")
    shape, n = temperature.shape, math.prod(batch)
    beta = (1.0 / temperature.detach().double()).float()
    if temperature.dim() == 0:
        return beta.reshape(1, 1)
    if shape == batch:
        return beta.reshape(1, -1)
    if len(shape) == len(batch) + 1 and shape[0] == n_sweeps:
        if all(size == 1 for size in shape[1:]):
            return beta.reshape(n_sweeps, 1)
        if shape[1:] == batch:
            return beta.reshape(n_sweeps, n)
    raise ValueError(
        f"temperature: got shape {list(shape)}, want a number, one per chain {list(batch)}, or a schedule "
        f"[n_sweeps = {n_sweeps}, 1 or the chains]"
    )


def counts(n_sweeps: int, first_chain: int, first_step: int) -> None:
    """Refuse numbers of sweeps, chains and steps that are too small."""
    for name, number, least in (
        ("n_sweeps", n_sweeps, 1), ("first_chain", first_chain, 0), ("first_step", first_step, 0),
    ):  # fmt: skip
        if isinstance(number, (bool, float)) or number < least:
            raise ValueError(f"{name}: got {number}, want an integer of at least {least}")


# Sites drawn by one call of a kernel: half a second of one thread. A longer call is cut into several, so that an
# interrupt is heard in between; the chain is the same, bit for bit.
SLICE = 2**30


def sliced(
    n: int, n_sweeps: int, units: int, states: Tensor, beta: Tensor, clamp: Tensor | None,
    run: Callable[[Tensor, Tensor, Tensor | None, int, int, int], Tensor],
) -> Tensor:  # fmt: skip
    """run(states, beta, clamp, sweeps, first chain, first sweep) over blocks of chains and of sweeps."""
    if n * n_sweeps * units <= SLICE:
        return run(states, beta, clamp, n_sweeps, 0, 0)
    block = min(n, max(64, SLICE // units // 64 * 64))
    steps = max(1, SLICE // (block * units))
    parts = []
    for i in range(0, n, block):
        part = slice(i, i + block)
        out, beta_i = states[part], beta[:, part] if beta.shape[1] == n else beta
        clamp_i = clamp[part] if clamp is not None and clamp.dim() == states.dim() else clamp
        for j in range(0, n_sweeps, steps):
            k = min(steps, n_sweeps - j)
            beta_ij = beta_i[j : j + k] if beta.shape[0] > 1 else beta_i
            out = run(out, beta_ij.contiguous(), clamp_i, k, i, j)
        parts.append(out)
    return torch.cat(parts)
