"""Square Ising lattices: many sweeps of checkerboard Gibbs sampling in one call, 32 sites a word."""

import math

import torch
from torch import Tensor

from genfast import _native
from genfast._backend import use_reference
from genfast._register import define, like
from genfast.ops import _checks as check
from genfast.ops._ising import counts, inverse_temperatures, is_spin, refuse, sliced
from genfast.ops._sampling import STATES, seed_tensor
from genfast.reference import ising as reference


def _outputs(
    s: Tensor, beta: Tensor, clamp: Tensor | None, seed: Tensor, spin: bool, periodic_y: bool, periodic_x: bool,
    coupling_y: float, coupling_x: float, field: float, n_sweeps: int, first_chain: int, first_step: int,
) -> Tensor:  # fmt: skip
    return like(s)


def _gibbs(
    s: Tensor, beta: Tensor, clamp: Tensor | None, seed: Tensor, spin: bool, periodic_y: bool, periodic_x: bool,
    coupling_y: float, coupling_x: float, field: float, n_sweeps: int, first_chain: int, first_step: int,
) -> Tensor:  # fmt: skip
    states = s if s.dtype in STATES else s.to(torch.int64)

    def run(s: Tensor, beta: Tensor, clamp: Tensor | None, sweeps: int, chain: int, step: int) -> Tensor:
        out = like(s)
        # A GPU's status lies in memory, and looking at it waits; so it is looked at only where NaN cannot tell.
        status = s.new_empty(1, dtype=torch.int32) if s.is_cuda and not s.is_floating_point() else None
        returned: int | None = _native.lattice_gibbs(
            s, beta, clamp, seed, spin, periodic_y, periodic_x, coupling_y, coupling_x, field, sweeps,
            (first_chain + chain) & 0xFFFFFFFF, (first_step + step) & 0xFFFFFFFF, out, status,
        )  # fmt: skip
        if status is not None:
            returned = int(status)
        if returned:
            refuse(returned)
        return out

    out = sliced(s.shape[0], n_sweeps, s.shape[1] * s.shape[2], states, beta, clamp, run)
    return out if states is s else out.to(s.dtype)


_gibbs_op = define("lattice_gibbs", _outputs, launch=_gibbs, autocast=False)


def _pair(name: str, value: object, kind: type) -> tuple[float, float]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}: got {len(pair)} values, want one, or one along each axis")
    return _number(name, pair[0], kind), _number(name, pair[1], kind)


def _number(name: str, x: object, kind: type) -> float:
    if isinstance(x, Tensor) and x.numel() == 1 and not x.is_complex():
        x = x.item()
    if kind is bool:
        if not isinstance(x, bool):
            raise TypeError(f"{name}: got {type(x).__name__}, want a bool, or one for each axis")
        return x
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name}: got {type(x).__name__}, want a number (ising_gibbs takes couplings that differ)")
    if not -math.inf < x < math.inf:
        raise ValueError(f"{name}: got {x}, want a finite number")
    return float(x)


def lattice_gibbs(
    s: Tensor,
    coupling: float | tuple[float, float],
    field: float = 0.0,
    *,
    n_sweeps: int = 1,
    temperature: float | Tensor = 1.0,
    periodic: bool | tuple[bool, bool] = True,
    clamp: Tensor | None = None,
    values: str = "pm1",
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> Tensor:
    r"""Run sweeps of Gibbs sampling on square Ising lattices with uniform couplings.

    The energy is :math:`E(s) = -J_y \sum s_{y,x} s_{y+1,x} - J_x \sum s_{y,x} s_{y,x+1} - h \sum s_{y,x}`, every bond
    once, and :math:`p(s) \propto e^{-E(s) / T}`. A sweep draws all sites with even x + y given the others, then those
    with odd x + y. On a periodic axis of 2 sites both bonds of a pair count.

    States are bits, 32 sites to a word, for which one comparison of random bits with thresholds draws all of them: a
    billion sites a second and more on one processor core. **The same seed gives the same chain, bit for bit, on every
    backend and device**, whatever the number of threads: `genfast.reference.ising` states the definition. Rows `k:` of
    a batch are the chains from `first_chain=k`, and n sweeps are m sweeps followed by n - m from `first_step=m`.

    The op is a function of its arguments and has no gradient. Couplings that differ from bond to bond, fields that
    differ from site to site and periodic axes of odd length, which have no two colours, are the business of
    `ising_gibbs`.

    Args:
        s: states `[..., height, width]`, -1 and 1 (or 0 and 1, see `values`) in any dtype.
        coupling: J, or (J_y, J_x): between rows, and within them.
        field: h.
        n_sweeps: number of sweeps, at least 1.
        temperature: T, a number, one for each chain `[...]`, or a schedule of sweeps `[n_sweeps, 1 or the chains]`
            (for a single lattice `[n_sweeps]`).
        periodic: whether opposite sides are neighbours; or for each of the axes (y, x).
        clamp: bool mask `[height, width]` or in the shape of s, of sites that stay as they are.
        values: "pm1" for states -1 and 1, "01" for 0 and 1.
        generator: torch generator from which the seed is drawn; the default one if not given.
        seed: an int or an int64 tensor of one element on the device of s, read by the kernel.
        first_chain: number of the first lattice, for its random numbers.
        first_step: number of the first sweep, for its random numbers.

    Returns:
        The states after the last sweep, in shape and dtype of s. On a GPU (where looking would wait) floating states of
        a chain are NaN where its temperature is not positive or its states are no states.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, n_sweeps < 1, a periodic axis of odd length; states that are not in
            the set or temperatures that are not positive and finite (on a GPU: of integer or bool states, for which a
            call waits for the result).

    Source:
        Multi-spin coding: Friedberg and Cameron 1970; Zorn, Herrmann and Rebbi 1981, "Tests of the multi-spin-coding
        technique in Monte Carlo simulations of statistical systems".

    Example:
        >>> s = torch.ones(64, 32, 32)
        >>> s = genfast.ops.lattice_gibbs(s, 1.0, temperature=2.269, n_sweeps=100, seed=1)
        >>> s.shape
        torch.Size([64, 32, 32])
    """
    check.tensor("s", s)
    if s.dim() < 2:
        raise ValueError(f"s: got shape {list(s.shape)}, want [..., height, width]")
    spin = is_spin(values, s)
    height, width = s.shape[-2:]
    if not height or not width:
        raise ValueError(f"s: got shape {list(s.shape)}, want a lattice of at least one site")
    coupling_y, coupling_x = _pair("coupling", coupling, float)
    periodic_y, periodic_x = (bool(p) for p in _pair("periodic", periodic, bool))
    for axis, size, around in (("height", height, periodic_y), ("width", width, periodic_x)):
        if around and size % 2:
            raise ValueError(
                f"s: got a periodic {axis} of {size}, want an even one: an odd ring has no two colours "
                "(ising_gibbs takes any graph)"
            )
    counts(n_sweeps, first_chain, first_step)
    batch, h = s.shape[:-2], _number("field", field, float)
    beta = inverse_temperatures(temperature, s, batch, n_sweeps)
    mask = _clamp(clamp, s)
    key = seed_tensor(seed, generator, s)
    rows = s.detach().reshape(-1, height, width)
    if use_reference(s):
        out = reference.lattice_gibbs(
            rows, (coupling_y, coupling_x), h, beta=beta, seed=key, n_sweeps=n_sweeps,
            periodic=(periodic_y, periodic_x), clamp=mask, spin=spin, first_chain=first_chain, first_step=first_step,
        )  # fmt: skip
    else:
        out = _gibbs_op(
            rows, beta, mask, key, spin, periodic_y, periodic_x, coupling_y, coupling_x, h, n_sweeps, first_chain,
            first_step,
        )  # fmt: skip
    return out.reshape(s.shape)


def _clamp(clamp: Tensor | None, s: Tensor) -> Tensor | None:
    if clamp is None:
        return None
    check.tensor("clamp", clamp)
    if clamp.dtype != torch.bool:
        raise TypeError(f"clamp: got {clamp.dtype}, want a torch.bool mask")
    if clamp.device != s.device:
        raise ValueError(f"clamp: got a tensor on {clamp.device}, want {s.device} like s")
    if clamp.shape not in (s.shape, s.shape[-2:]):
        raise ValueError(
            f"clamp: got shape {list(clamp.shape)}, want [height, width] = {list(s.shape[-2:])} or that of s, "
            f"{list(s.shape)}"
        )
    return clamp if clamp.dim() == 2 else clamp.reshape(-1, *s.shape[-2:])
