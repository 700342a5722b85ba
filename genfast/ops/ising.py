"""Boltzmann machines on sparse graphs: many sweeps of Gibbs sampling, colour by colour, in one call."""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from genfast import _native
from genfast._backend import use_reference
from genfast._register import define, like
from genfast._tracing import has_values
from genfast.ops import _checks as check
from genfast.ops._ising import counts, inverse_temperatures, is_spin, refuse, sliced
from genfast.ops._sampling import STATES, clamp_mask, seed_tensor
from genfast.reference import ising as reference

_classes_of = WeakTensorKeyDictionary()  # of a colouring: its version, the order of units, and where colours start


def _classes(colours: Tensor) -> tuple[Tensor, Tensor]:
    """The units colour by colour, and where each colour starts; kept as long as the tensor is."""
    found, version = _classes_of.get(colours), colours._version  # noqa: SLF001
    if found is None or found[0] != version:
        order = torch.argsort(colours, stable=True)
        _, sizes = torch.unique_consecutive(colours[order], return_counts=True)
        found = (version, order, torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))
        _classes_of[colours] = found
    return found[1], found[2]


def _outputs(
    s: Tensor, row_ptr: Tensor, columns: Tensor, weights: Tensor, bias: Tensor, colours: Tensor, beta: Tensor,
    clamp: Tensor | None, seed: Tensor, spin: bool, validate: bool, n_sweeps: int, first_chain: int, first_step: int,
) -> Tensor:  # fmt: skip
    return like(s)


def _gibbs(
    s: Tensor, row_ptr: Tensor, columns: Tensor, weights: Tensor, bias: Tensor, colours: Tensor, beta: Tensor,
    clamp: Tensor | None, seed: Tensor, spin: bool, validate: bool, n_sweeps: int, first_chain: int, first_step: int,
) -> Tensor:  # fmt: skip
    states = s if s.dtype in STATES else s.to(torch.int64)
    order, offsets = _classes(colours)
    row_ptr, columns = row_ptr.long(), columns.long()
    weights, bias = weights.float(), bias.float()
    checked = False

    def run(s: Tensor, beta: Tensor, clamp: Tensor | None, sweeps: int, chain: int, step: int) -> Tensor:
        nonlocal checked
        out = like(s)
        # A GPU's status lies in memory, and looking at it waits; so it is looked at only where NaN cannot tell.
        status = s.new_empty(1, dtype=torch.int32) if s.is_cuda and not s.is_floating_point() else None
        returned: int | None = _native.ising_gibbs(
            s, row_ptr, columns, weights, bias, order, offsets, beta, clamp, seed, spin, validate and not checked,
            offsets.shape[0] - 1, sweeps, (first_chain + chain) & 0xFFFFFFFF, (first_step + step) & 0xFFFFFFFF, out,
            status,
        )  # fmt: skip
        if status is not None:
            returned = int(status)
        if returned:
            refuse(returned)
        checked = status is not None or not s.is_cuda  # else what is refused is NaN in every part
        return out

    out = sliced(s.shape[0], n_sweeps, 8 * s.shape[1] + 2 * columns.shape[0], states, beta, clamp, run)
    return out if states is s else out.to(s.dtype)


_gibbs_op = define("ising_gibbs", _outputs, launch=_gibbs, autocast=False)


def _indices(name: str, x: Tensor, s: Tensor) -> None:
    check.tensor(name, x)
    if x.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: got {x.dtype}, want int64 or int32")
    if x.device != s.device:
        raise ValueError(f"{name}: got a tensor on {x.device}, want {s.device} like s")


def ising_gibbs(
    s: Tensor,
    row_ptr: Tensor,
    columns: Tensor,
    weights: Tensor,
    bias: Tensor,
    colours: Tensor,
    *,
    n_sweeps: int = 1,
    temperature: float | Tensor = 1.0,
    clamp: Tensor | None = None,
    values: str = "pm1",
    validate: bool = True,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> Tensor:
    r"""Run sweeps of Gibbs sampling in Boltzmann machines whose couplings are a sparse graph.

    The energy is :math:`E(s) = -\tfrac12 s^T J s - c \cdot s` and :math:`p(s) \propto e^{-E(s)/T}`, with a symmetric J
    given by its non-zeros in CSR. Units of one colour have no edges among themselves, so a sweep draws all units of the
    first colour given the others, then those of the second, and so on: with f = J s + c, a unit becomes 1 with
    probability :math:`\sigma(2 f_i / T)` for states -1 and 1, :math:`\sigma(f_i / T)` for 0 and 1.

    **The same seed gives the same chain, bit for bit, on every backend and device**, whatever the number of threads:
    `genfast.reference.ising` states the definition. Rows `k:` of a batch are the chains from `first_chain=k`, and n
    sweeps are m sweeps followed by n - m from `first_step=m`.

    The op is a function of its arguments and has no gradient. Many chains are drawn together, a weight is read once for
    all lanes of a register: use as many as a multiple of 16. `lattice_gibbs` is faster by far on square lattices with
    uniform couplings.

    Args:
        s: states of the chains `[..., n_units]`, -1 and 1 (or 0 and 1, see `values`) in any dtype.
        row_ptr: `[n_units + 1]`, int64 or int32; the edges of unit i are row_ptr[i] ... row_ptr[i + 1] - 1. That of
            `torch.Tensor.to_sparse_csr()` or of a SciPy matrix with sorted indices.
        columns: `[n_edges]`, the other unit of each edge, ascending in each row. Every edge stands in both rows.
        weights: `[n_edges]`, in float32 (other floating dtypes are rounded to it).
        bias: c, `[n_units]`, in the dtype of `weights`.
        colours: `[n_units]`, int64 or int32, no edge within a colour; `genfast.boltzmann.greedy_colouring` makes one.
        n_sweeps: number of sweeps, at least 1.
        temperature: T, a number, one for each chain `[...]`, or a schedule of sweeps `[n_sweeps, 1 or the chains]`
            (for a single chain `[n_sweeps]`).
        clamp: bool mask `[n_units]` or in the shape of s, of units that stay as they are.
        values: "pm1" for states -1 and 1, "01" for 0 and 1.
        validate: whether to look for the like of every edge in the other direction. All else is always checked.
        generator: torch generator from which the seed is drawn; the default one if not given.
        seed: an int or an int64 tensor of one element on the device of s, read by the kernel.
        first_chain: number of the first row, for its random numbers.
        first_step: number of the first sweep, for its random numbers.

    Returns:
        The states after the last sweep, in shape and dtype of s. On a GPU (where looking would wait) floating states
        are NaN where the graph is refused, and those of a chain where its temperature or states are.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, n_sweeps < 1; a graph that is no CSR, is asymmetric or not finite; a
            colouring with an edge inside a colour; states that are not in the set, or temperatures that are not
            positive and finite. (On a GPU the values are looked at for integer or bool states only, and a call waits.)

    Source:
        Geman and Geman 1984, "Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images";
        Gonzalez, Low, Gretton and Guestrin 2011, "Parallel Gibbs sampling: from colored fields to thin junction trees".

    Example:
        >>> J = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, -0.5], [0.0, -0.5, 0.0]]).to_sparse_csr()
        >>> graph = J.crow_indices(), J.col_indices(), J.values()
        >>> s = genfast.ops.ising_gibbs(torch.ones(8, 3), *graph, torch.zeros(3), torch.tensor([0, 1, 0]), n_sweeps=10)
        >>> s.shape
        torch.Size([8, 3])
    """
    check.floating("weights", weights)
    check.same_dtype_and_device(weights, "weights", bias=bias)
    check.tensor("s", s)
    if s.device != weights.device:
        raise ValueError(f"s: got a tensor on {s.device}, want {weights.device} like weights")
    spin = is_spin(values, s)
    for name, x in (("row_ptr", row_ptr), ("columns", columns), ("colours", colours)):
        _indices(name, x, s)
    rows, batch = check.rows("s", s)
    units = rows.shape[1]
    if units == 0:
        raise ValueError(f"s: got shape {list(s.shape)}, want at least one unit")
    check.shape("row_ptr", row_ptr, (units + 1,), "[n_units + 1] with n_units = {} of s", units)
    check.shape("columns", columns, (None,), "[n_edges]")
    check.shape("weights", weights, columns.shape, "[n_edges] like columns, {}", list(columns.shape))
    check.shape("bias", bias, (units,), "[n_units] = [{}] of s", units)
    check.shape("colours", colours, (units,), "[n_units] = [{}] of s", units)
    counts(n_sweeps, first_chain, first_step)
    beta = inverse_temperatures(temperature, s, batch, n_sweeps)
    mask, key = clamp_mask(clamp, s, "n_units"), seed_tensor(seed, generator, s)
    rows, weights, bias = (t.detach() if t.requires_grad else t for t in (rows, weights, bias))
    if use_reference(s):
        if has_values(s):
            reference.check_graph(row_ptr, columns, weights, bias, colours, validate=validate)
        out = reference.ising_gibbs(
            rows, row_ptr, columns, weights, bias, colours, beta=beta, seed=key, n_sweeps=n_sweeps, clamp=mask,
            spin=spin, first_chain=first_chain, first_step=first_step,
        )  # fmt: skip
    else:
        out = _gibbs_op(
            rows, row_ptr, columns, weights, bias, colours, beta, mask, key, spin, validate, n_sweeps, first_chain,
            first_step,
        )  # fmt: skip
    return out.reshape(s.shape)
