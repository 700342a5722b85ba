"""Exact sums over the hidden states of a small deep Boltzmann machine, and the RBM that a deep machine is."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from genfast.boltzmann._enumerate import MAX_UNITS, _recomputed, all_states

_CHUNK = 1 << 12
_ROWS = 64


def blocks(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """The weights between all even and all odd units, `[even, odd]`; 0 between layers that are no neighbours."""
    sizes = [len(b) for b in biases]
    rows = []
    for even in range(0, len(sizes), 2):
        row = []
        for odd in range(1, len(sizes), 2):
            if odd == even + 1:
                row.append(weights[even])
            elif odd == even - 1:
                row.append(weights[odd].t())
            else:
                row.append(weights[0].new_zeros(sizes[even], sizes[odd]))
        rows.append(torch.cat(row, 1))
    return torch.cat(rows)


def _softplus_sum(x: Tensor) -> Tensor:
    return -functional.logsigmoid(-x).sum(-1)  # softplus without torch's linear cut-off


def hidden_log_sum(v: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """log sum_h exp(-E(v, h)) of v `[N, n_visible]`, float64 `[N]`; differentiable.

    The hidden layers of one side are enumerated, whichever is less work, and those of the other are summed out.

    Raises:
        ValueError: both sides have more than 25 hidden units.
    """
    v, weights, biases = v.double(), [W.double() for W in weights], [b.double() for b in biases]
    constant, first = v @ biases[0], torch.addmm(biases[1], v, weights[0])
    if len(weights) == 1:
        return constant + _softplus_sum(first)
    odd_units = sum(len(b) for b in biases[1::2])
    even_units = sum(len(b) for b in biases[2::2])
    if min(odd_units, even_units) > MAX_UNITS:
        raise ValueError(
            f"free_energy: the odd hidden layers have {odd_units} units and the even ones {even_units}, want at most "
            f"{MAX_UNITS} of one of them for exact enumeration; bound() needs none"
        )
    W = blocks(weights[1:], biases[1:])  # [odd, even] hidden units
    rest, even = torch.cat([biases[1].new_zeros(0), *biases[3::2]]), torch.cat(biases[2::2])
    n_first = len(biases[1])
    n, device = len(v), v.device

    def by_odd(start: int, first: Tensor, rest: Tensor, W: Tensor, even: Tensor) -> tuple[Tensor]:
        s = all_states(odd_units, start, min(start + _CHUNK, 1 << odd_units), device=device)
        fixed = s[:, n_first:] @ rest + _softplus_sum(torch.addmm(even, s, W))
        return (torch.logsumexp(torch.addmm(fixed, first, s[:, :n_first].t()), 1),)

    def by_even(start: int, first: Tensor, rest: Tensor, W: Tensor, even: Tensor) -> tuple[Tensor]:
        s = all_states(even_units, start, min(start + _CHUNK // _ROWS, 1 << even_units), device=device)
        fields = torch.cat([first, rest.expand(len(first), -1)], 1)[:, None] + s @ W.t()
        return (torch.logsumexp(s @ even + _softplus_sum(fields), 1),)

    odd_work = 2.0**odd_units * (even_units + n) if odd_units <= MAX_UNITS else float("inf")
    even_work = 2.0**even_units * n * odd_units if even_units <= MAX_UNITS else float("inf")
    if odd_work <= even_work:
        total = _chunks(by_odd, 1 << odd_units, _CHUNK, first, rest, W, even)
    else:
        parts = first.split(_ROWS) if n else (first,)
        total = torch.cat([_chunks(by_even, 1 << even_units, _CHUNK // _ROWS, x, rest, W, even) for x in parts])
    return constant + total


def _chunks(function: Callable[..., tuple[Tensor]], states: int, size: int, *tensors: Tensor) -> Tensor:
    """The log of the sum over states, `size` at a time, of which the backward keeps the arguments alone."""
    sums: list[Tensor] = []
    for start in range(0, states, size):
        sums += _recomputed(lambda *t, start=start: function(start, *t), *tensors)
    return sums[0] if len(sums) == 1 else torch.logsumexp(torch.stack(sums), 0)
