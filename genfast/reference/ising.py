"""Ising models and sparse Boltzmann machines in plain PyTorch: Gibbs sampling, colour by colour.

The energy of units s, -1 and 1 (spins) or 0 and 1, is E(s) = -s'Js/2 - c.s with symmetric J; p is proportional to
exp(-E / T). Units of one colour have no neighbour among themselves, so they are drawn at once; a sweep draws the
colours in order. As with every Gibbs sampler here, a chain is defined to the last bit; beta is float32(1 / T).

**Graphs.** The field of unit i is its bias, to which the weights of its edges times the states of its neighbours are
added in the order of the row, in float32, rounded after every addition. For spins z = (2 field) beta, else field beta;
a unit becomes 1 by the acceptance of `genfast/reference/_gibbs.py` applied to z. Its random word is that of its place
in the order of (colour, number): word `place % 4` of Philox at (chain, place // 4, step, 5).

**Lattices.** A site's conditional depends on the sums m_y, m_x of its neighbours along the axes alone. In float64,
f = (m_y J_y + m_x J_x) + h; z = float32(2 f) beta for spins, else float32(f) beta; t = exp(-|z|) by `exp_negative`,
p = t r in float64 with r = 1 / (1 + t) by `_reciprocal`, and T = floor(2^32 p + 1/2). With 32 random bits U a site
becomes 1 where (U < T) != (z > 0). Bit 31 - b of U is bit `bit` of word b % 4 of Philox at
(chain, colour * n_words + word, step, 5 + 2^16 (1 + b // 4)), where `lattice_bits` says which word and bit a site has.
"""

import torch
from torch import Tensor

from genfast.reference._gibbs import accept_logit, exp_negative, philox4x32, uniform_words

__all__ = ["check_graph", "graph_fields", "ising_gibbs", "lattice_bits", "lattice_gibbs"]

STREAM = 5
_MASK = 0xFFFFFFFF


BAD_GRAPH = (
    "row_ptr, columns: expected a graph in CSR: row_ptr ascends from 0 to the number of edges, and the columns of "
    "every row are unit numbers in ascending order, each once"
)
BAD_COLOURS = "colours: expected a colouring: an edge joins two units of one colour, or a unit with itself"
ASYMMETRIC = (
    "columns, weights: expected a symmetric graph: for every edge from i to j one from j to i of the same weight"
)
NOT_FINITE = "weights, bias: expected finite values, whose sums float32 can hold; got others"
NOT_STATES = "s: expected states of the set that `values` names, got other values"
BAD_TEMPERATURE = "temperature: expected positive, finite numbers, got others"


# --- lattices ---------------------------------------------------------------------------------------------------------


def lattice_bits(height: int, width: int, periodic: tuple[bool, bool]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Where sites lie: colour, word and bit of each `[height, width]`, and the number of words of a colour.

    The colour of row y and column x is (x + y) % 2, and k = x // 2 numbers the sites of a row and colour, K of them at
    most. Rows are whole words (word y * ceil(K / 32) + k // 32, bit k % 32); but where the lattice is periodic along
    both axes, R rows share a word, R the largest power of two that divides the height with R K <= 32 (word y // R, bit
    k + 32 // R * (y % R)).
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    k, most = x // 2, (width + 1) // 2
    shared = 1
    while all(periodic) and height % (2 * shared) == 0 and 2 * shared * most <= 32:
        shared *= 2
    row_words = (most + 31) // 32
    word = y // shared * row_words + k // 32
    bit = k % 32 + 32 // shared * (y % shared)
    return (x + y) % 2, word, bit, height // shared * row_words


def _uniforms(seed: Tensor, chains: Tensor, words: Tensor, bits: Tensor, step: int) -> Tensor:
    """U of sites in words of both colours, int64 [n, height, width] in [0, 2^32)."""
    key = (seed & _MASK, (seed >> 32) & _MASK)
    numbers = torch.arange(int(words.max()) + 1, device=seed.device)
    u = torch.zeros(len(chains), *words.shape, dtype=torch.int64, device=seed.device)
    now = torch.full((), step & _MASK, dtype=torch.int64, device=seed.device)
    for group in range(8):
        stream = torch.full((), STREAM + ((1 + group) << 16), dtype=torch.int64, device=seed.device)
        for plane in philox4x32((chains[:, None] & _MASK, numbers, now, stream), key):
            u = 2 * u + ((plane[:, words] >> bits) & 1)
    return u


def _reciprocal(d: Tensor) -> Tensor:
    """1 / d for float64 d from 1 to 2: a line within 1/17, and four steps of Newton."""
    r = 24.0 / 17.0 - (8.0 / 17.0) * d
    for _ in range(4):
        r = r * (2.0 - d * r)
    return r


def _axis_sums(s: Tensor, dim: int, periodic: bool) -> Tensor:
    """The sum of the two neighbours along an axis, or of the one at a boundary."""
    ahead, behind = s.roll(-1, dim), s.roll(1, dim)
    if not periodic:
        ahead.select(dim, -1).zero_()
        behind.select(dim, 0).zero_()
    return ahead + behind


def lattice_gibbs(
    s: Tensor,
    coupling: tuple[float, float],
    field: float,
    *,
    beta: Tensor,
    seed: int | Tensor,
    n_sweeps: int = 1,
    periodic: tuple[bool, bool] = (True, True),
    clamp: Tensor | None = None,
    spin: bool = True,
    first_chain: int = 0,
    first_step: int = 0,
) -> Tensor:
    """Runs sweeps over lattices s `[n, height, width]`: the sites of colour 0, then those of colour 1.

    `coupling` is along y and along x; `beta` is `[1 or n_sweeps, 1 or n]`, float32. Returns the states in the dtype of
    s; chains that cannot be drawn are NaN, or refused, as `genfast.ops.lattice_gibbs` says.
    """
    with torch.no_grad():
        values = s.double()
        bad = ((values != 1) & (values != (-1 if spin else 0))).flatten(1).any(1)
        state = torch.where(values == 1, 1.0, -1.0 if spin else 0.0).double()
        colour, word, bit, n_words = lattice_bits(s.shape[1], s.shape[2], periodic)
        colour, word, bit = (t.to(s.device) for t in (colour, word, bit))
        hot = ~(beta.isfinite() & (beta > 0)).expand(-1, len(s)).all(0)
        refuse(s, bad, hot)
        seed = torch.as_tensor(seed, dtype=torch.int64, device=s.device).reshape(())
        chains = torch.arange(len(s), device=s.device) + first_chain
        start = state.clone()
        for step in range(n_sweeps):
            b = beta[step if beta.shape[0] > 1 else 0][:, None, None]
            u = _uniforms(seed, chains, colour * n_words + word, bit, first_step + step)
            for c in (0, 1):
                along_y, along_x = _axis_sums(state, 1, periodic[0]), _axis_sums(state, 2, periodic[1])
                f = (along_y * coupling[0] + along_x * coupling[1]) + field
                z = (2 * f if spin else f).float() * b
                t = exp_negative(z.abs()).double()
                threshold = (t * _reciprocal(1.0 + t) * 2.0**32 + 0.5).long()
                one = (u < threshold) ^ (z > 0)
                drawn = torch.where(one, 1.0, -1.0 if spin else 0.0).double()
                state = torch.where(colour == c, drawn, state)
                if clamp is not None:
                    state = torch.where(clamp, start, state)
        return _finished(state, s, bad | hot)


def refuse(s: Tensor, bad: Tensor, hot: Tensor) -> None:
    """Raises where states or temperatures are faulty and the result cannot say so: on the CPU, or without NaN."""
    if s.device.type != "cpu" and s.is_floating_point():
        return
    if bool(bad.any()):
        raise ValueError(NOT_STATES)
    if bool(hot.any()):
        raise ValueError(BAD_TEMPERATURE)


def _finished(state: Tensor, like: Tensor, lost: Tensor) -> Tensor:
    out = state.to(like.dtype)
    return out.masked_fill(lost.reshape(-1, *[1] * (out.dim() - 1)), torch.nan) if out.is_floating_point() else out


# --- graphs -----------------------------------------------------------------------------------------------------------


def check_graph(
    row_ptr: Tensor, columns: Tensor, weights: Tensor, bias: Tensor, colours: Tensor, *, validate: bool = True
) -> None:
    """Raises where edges are no symmetric graph in CSR with a colouring and finite weights."""
    n, edges = len(bias), len(columns)
    counts = row_ptr.diff()
    if int(row_ptr[0]) != 0 or int(row_ptr[-1]) != edges or bool((counts < 0).any()):
        raise ValueError(BAD_GRAPH)
    row = torch.repeat_interleave(torch.arange(n, device=columns.device), counts)
    number = row * n + columns
    if bool(((columns < 0) | (columns >= n)).any()) or bool((number.diff() <= 0).any()):
        raise ValueError(BAD_GRAPH)
    if bool((colours[row] == colours[columns]).any()):
        raise ValueError(BAD_COLOURS)
    total = bias.float().abs().index_add(0, row, weights.float().abs())
    if not bool(total.isfinite().all()):
        raise ValueError(NOT_FINITE)
    if validate:
        like = columns * n + row
        order = like.argsort()
        if not torch.equal(like[order], number) or not torch.equal(weights.float()[order], weights.float()):
            raise ValueError(ASYMMETRIC)


def graph_fields(
    state: Tensor, units: Tensor, row_ptr: Tensor, columns: Tensor, weights: Tensor, bias: Tensor
) -> Tensor:
    """The fields of `units` given float32 states `[n, n_units]`, added up edge by edge; float32 `[n, len(units)]`."""
    field = bias.float()[units].expand(state.shape[0], -1)
    begin, end = row_ptr[units], row_ptr[units + 1]
    for j in range(int((end - begin).max()) if len(units) else 0):
        here = begin + j < end
        at = torch.where(here, begin + j, 0)
        field = torch.where(here, field + weights.float()[at] * state[:, columns[at]], field)
    return field


def ising_gibbs(
    s: Tensor,
    row_ptr: Tensor,
    columns: Tensor,
    weights: Tensor,
    bias: Tensor,
    colours: Tensor,
    *,
    beta: Tensor,
    seed: int | Tensor,
    n_sweeps: int = 1,
    clamp: Tensor | None = None,
    spin: bool = True,
    first_chain: int = 0,
    first_step: int = 0,
) -> Tensor:
    """Runs sweeps over graphs: s `[n, n_units]`, edges in CSR; `beta` as in `lattice_gibbs`."""
    with torch.no_grad():
        values = s.double()
        bad = ((values != 1) & (values != (-1 if spin else 0))).any(1)
        state = torch.where(values == 1, 1.0, -1.0 if spin else 0.0).float()
        hot = ~(beta.isfinite() & (beta > 0)).expand(-1, len(s)).all(0)
        refuse(s, bad, hot)
        seed = torch.as_tensor(seed, dtype=torch.int64, device=s.device).reshape(())
        chains = torch.arange(len(s), device=s.device) + first_chain
        order = torch.argsort(colours, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=s.device)
        classes = [(colours == c).nonzero()[:, 0] for c in torch.unique(colours)]
        start = state.clone()
        for step in range(n_sweeps):
            b = beta[step if beta.shape[0] > 1 else 0][:, None]
            words = uniform_words(seed, chains, s.shape[1], first_step + step, STREAM)
            for units in classes:
                field = graph_fields(state, units, row_ptr, columns, weights, bias)
                one = accept_logit((field * 2.0 if spin else field) * b, words[:, place[units]])
                state = state.clone()
                state[:, units] = torch.where(one, 1.0, -1.0 if spin else 0.0).float()
                if clamp is not None:
                    state = torch.where(clamp, start, state)
        return _finished(state, s, bad | hot)
