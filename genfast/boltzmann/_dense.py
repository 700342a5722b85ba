"""The mathematics of a fully connected machine: its couplings, its states, exact sums over them, second moments."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from genfast import _native
from genfast._arguments import floating
from genfast._backend import use_reference
from genfast._tracing import has_values
from genfast.boltzmann import _states
from genfast.boltzmann._enumerate import _recomputed, all_states

Values = Literal["01", "pm1"]

# -- couplings --------------------------------------------------------------------------------------------------------


def symmetric(upper: Tensor) -> Tensor:
    """J, symmetric to the last bit and with a zero diagonal: the strict upper triangle and its mirror image."""
    upper = upper.triu(1)
    return upper + upper.mT


_BLOCK = 256  # so that a block and its mirror image lie in the second cache


def mirror(upper: Tensor, out: Tensor) -> Tensor:
    """`symmetric`, written over `out`."""
    n = upper.shape[0]
    torch.triu(upper, 1, out=out)
    for i in range(0, n, _BLOCK):
        rows = slice(i, i + _BLOCK)
        out[rows, rows] += out[rows, rows].mT.clone()
        for j in range(i + _BLOCK, n, _BLOCK):
            columns = slice(j, j + _BLOCK)
            out[columns, rows] = out[rows, columns].mT
    return out


def check_couplings(J: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """J `[n, n]` and bias `[n]`, where they are those of a machine; J is symmetric up to the rounding of its dtype.

    Raises:
        TypeError: not dense floating-point tensors.
        ValueError: another shape, an asymmetric J, a diagonal that is not zero, or numbers that are not finite.
    """
    for name, x in (("J", J), ("bias", bias)):
        floating(name, x)
    J, bias = J.detach(), bias.detach()
    if J.ndim != 2 or J.shape[0] != J.shape[1] or J.shape[0] == 0:
        raise ValueError(f"J: got shape {list(J.shape)}, want a square [n, n] of at least one unit")
    if bias.shape != J.shape[:1]:
        raise ValueError(f"bias: got shape {list(bias.shape)}, want [n] = {list(J.shape[:1])} of J")
    if bias.dtype != J.dtype or bias.device != J.device:
        raise ValueError(f"bias: got {bias.dtype} on {bias.device}, want {J.dtype} on {J.device} like J")
    for name, x in (("J", J), ("bias", bias)):
        bad = int((~x.isfinite()).sum())
        if bad:
            raise ValueError(f"{name}: got {bad} values that are NaN or infinite, want finite numbers")
    if bool(J.diagonal().any()):
        i = int(J.diagonal().abs().argmax())
        raise ValueError(
            f"J: got J[{i}, {i}] = {float(J[i, i]):g}, want a zero diagonal (a unit has no coupling to itself; "
            "for units of 0 and 1 it is half of that in the bias)"
        )
    off = (J - J.mT).abs()
    if float(off.max()) > 8 * torch.finfo(J.dtype).eps * float(J.abs().max()):
        i, j = divmod(int(off.argmax()), J.shape[0])
        raise ValueError(
            f"J: is not symmetric: J[{i}, {j}] = {float(J[i, j]):g} but J[{j}, {i}] = {float(J[j, i]):g}; of the "
            "sum of s_i A_ij s_j over all pairs (i, j) take J = A + A^T without its diagonal"
        )
    return J, bias


# -- states -----------------------------------------------------------------------------------------------------------


def checked(name: str, s: Tensor, n_units: int, dtype: torch.dtype, values: Values, *, means: bool = False) -> Tensor:
    """s `[..., n_units]` in dtype: states of the value set, or with `means` expectations of them too.

    As in `_states`: looked at on the CPU, elsewhere and in transforms what is no state becomes NaN.

    Raises:
        TypeError: no tensor of real numbers.
        ValueError: another last dimension, or other values.
    """
    kind = _states.BITS if values == "01" else _states.SPINS
    return _states.checked(name, s, n_units, dtype, kind, states=not means)


def to_bits(s: Tensor, values: Values) -> Tensor:
    """States, or their means, as 0/1 or the probability of the upper state."""
    return s if values == "01" else (s + 1) / 2


def from_bits(x: Tensor, values: Values) -> Tensor:
    """The reverse of `to_bits`."""
    return x if values == "01" else 2 * x - 1


def log_odds(fields: Tensor, values: Values) -> Tensor:
    """The log-odds of the upper state of a unit in a field: the field between 0 and 1, twice that between -1 and 1."""
    return fields if values == "01" else 2 * fields


# -- sums over all states ---------------------------------------------------------------------------------------------

_LOW = 12
_TERMS = 1 << 18


def log_sum(J: Tensor, fields: Tensor, values: Values) -> Tensor:
    r"""The log of sum_s exp(s'J s / 2 + f.s) over all states s, for each row f of fields `[N, n]`: float64 `[N]`.

    States are pairs (a, b) of the low 12 units and the others: for each b the low units see the fields f_a + J_ab b, so
    a state costs one term of a product with 12 numbers and one exponential. Differentiable to any order; chunks keep
    nothing for the backward (see `_recomputed`).
    """
    J, fields = J.double(), fields.double()
    n = fields.shape[1]
    low, device = min(n, _LOW), J.device
    high = 1 << (n - low)
    rows = max(1, _TERMS >> low)
    step = max(1, rows // max(1, min(rows, fields.shape[0])))

    def chunk(first: int) -> Callable[..., tuple[Tensor]]:
        def part(J: Tensor, fields: Tensor) -> tuple[Tensor]:
            a = from_bits(all_states(low, 0, 1 << low, device=device), values)
            b = from_bits(all_states(n - low, first, min(first + step, high), device=device), values)
            of_a, of_b = ((x @ block * x).sum(1) / 2 for x, block in ((a, J[:low, :low]), (b, J[low:, low:])))
            seen = fields[:, None, :low] + b @ J[low:, :low]
            inner = torch.logsumexp(seen @ a.T + of_a, 2)
            return (torch.logsumexp(inner + (fields[:, low:] @ b.T + of_b), 1),)

        return part

    sums = []
    for some in fields.split(rows):
        if step >= high and fields.shape[0] <= rows:  # one chunk needs no saving
            return chunk(0)(J, some)[0]
        parts = [_recomputed(chunk(first), J, some)[0] for first in range(0, high, step)]
        sums.append(parts[0] if len(parts) == 1 else torch.logsumexp(torch.stack(parts), 0))
    return sums[0] if len(sums) == 1 else torch.cat(sums)


# -- products ---------------------------------------------------------------------------------------------------------

_SPARSE_FROM = 60  # columns, as in ops/rbm.py
_STRIPE = 192


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, in the arguments' own precision under autocast too."""
    device = a.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return a @ b
    return a @ b


def moments(rows: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """The strict upper triangle of -sum_r weights_r s_r s_r' over rows s `[N, n]`; what lies below is 0.

    Few active units are few sums; else the product goes by stripes, of which each leaves out what lies below.
    """
    n = rows.shape[1]
    if not has_values(rows) or rows.requires_grad:
        return -matmul((rows * weights[:, None]).mT, rows).triu(1)
    out = rows.new_empty(n, n) if out is None else out
    plain = rows.is_cpu and rows.dtype == torch.float32 and not use_reference(rows)
    if plain and n > _SPARSE_FROM and _native.rbm_sparse_product(rows, rows, weights, None, True, out):
        return out.triu_(1)
    weighted = rows * -weights[:, None]
    stripe = _STRIPE if rows.is_cpu else n
    for i in range(0, n, stripe):
        out[i : i + stripe, i:] = matmul(weighted[:, i : i + stripe].mT, rows[:, i:])
    return out.triu_(1)
