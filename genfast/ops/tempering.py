"""Replica exchange: swaps between the neighbouring temperatures, or models, of many ladders of chains."""

from collections.abc import Sequence

import torch
from torch import Tensor

from genfast import _native
from genfast._backend import use_reference
from genfast._register import define
from genfast.ops import _checks as check
from genfast.ops._sampling import seed_tensor
from genfast.reference import tempering as reference


def _outputs(
    energies: Tensor, betas: Tensor | None, order: Tensor | None, seed: Tensor, first_chain: int, first_step: int
) -> tuple[Tensor, Tensor]:
    n, k = energies.shape
    return energies.new_empty(n, k, dtype=torch.int64), energies.new_empty(n, max(k - 1, 0), dtype=torch.float32)


def _swap(
    energies: Tensor, betas: Tensor | None, order: Tensor | None, seed: Tensor, first_chain: int, first_step: int
) -> tuple[Tensor, Tensor]:
    out, probability = _outputs(energies, betas, order, seed, first_chain, first_step)
    status: int | None = _native.tempering_swap(
        energies, betas, order, seed, first_chain & 0xFFFFFFFF, first_step & 0xFFFFFFFF, out, probability, None
    )
    if status:
        raise ValueError(f"order: expected replicas 0 ... {energies.shape[1] - 1}, got other numbers")
    return out, probability


_swap_op = define("tempering_swap", _outputs, launch=_swap, autocast=False)


def tempering_swap(
    energies: Tensor,
    betas: Tensor | Sequence[float],
    *,
    order: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Exchange the replicas at neighbouring temperatures of many independent ladders (parallel tempering).

    A ladder has a replica at each of its levels; that at level i is to have the distribution
    :math:`p_i(x) \propto e^{-\beta_i E(x)}`. Replicas x and y at levels i and i + 1 are exchanged with probability

    .. math:: \min(1, \exp((\beta_i - \beta_{i+1}) (E(x) - E(y)))),

    which leaves :math:`\prod_i p_i` invariant. One call tries the pairs with i = `first_step` (mod 2): even and odd
    pairs in turn, when steps are counted.

    E must be the energy of the whole state. Of an RBM that is E(v, h): the free energy F(v) will not do, because the
    marginal of v at beta is not :math:`e^{-\beta F(v)}`, and chains that swap on it have the wrong distribution.

    Instead of moving states, keep them and move their temperatures: `order` says which replica is at which level, and
    goes from call to call. `betas` of the replicas are then `torch.empty(...).scatter_(-1, order, betas.expand(...))`.

    The same energies and seed give the same swaps, bit for bit, on every backend and device, for any number of threads;
    rows `k:` are the ladders from `first_chain=k`. The op has no gradient.

    Args:
        energies: E of each replica, `[..., k]`, floating; one ladder a row.
        betas: inverse temperatures of the levels, k numbers.
        order: the replica at each level `[..., k]`, int64; by default replica i is at level i.
        generator: torch generator from which the seed is drawn; the default one if not given.
        seed: an int or an int64 tensor of one element on the device of `energies`. If not given it is drawn anew.
        first_chain: number of the first ladder, for its random numbers.
        first_step: number of the round: its parity tells which pairs are tried.

    Returns:
        order: `[..., k]`, int64: the replica that is at each level now.
        probability: `[..., k - 1]`, float32: the acceptance probability of every pair, tried or not, before the call.

        The mean of the probabilities estimates the acceptance rate with less noise than counts do. They are NaN where
        an energy is NaN, and nothing is swapped there.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, or (on the CPU) `order` holds numbers that are no replicas; on a GPU
            these count as NaN.

    Source:
        Swendsen and Wang, "Replica Monte Carlo simulation of spin-glasses", 1986; Geyer 1991. Even and odd pairs in
        turn: Okabe et al. 2001; Syed et al., "Non-reversible parallel tempering", 2022.

    Example:
        >>> betas = torch.linspace(0, 1, 10)
        >>> order, probability = genfast.ops.tempering_swap(torch.randn(100, 10), betas, seed=1)
        >>> order.shape, probability.shape
        (torch.Size([100, 10]), torch.Size([100, 9]))
    """
    check.floating("energies", energies)
    rows, batch = check.rows("energies", energies)
    k = rows.shape[1]
    if k == 0:
        raise ValueError(f"energies: got shape {list(energies.shape)}, want at least one level")
    if not isinstance(betas, Tensor):
        betas = torch.tensor(betas, dtype=torch.float64, device=energies.device)
    if betas.device != energies.device:
        raise ValueError(f"betas: got a tensor on {betas.device}, want {energies.device} like energies")
    check.shape("betas", betas, (k,), f"[{k}], a number for each level of energies")
    if order is not None:
        check.tensor("order", order)
        if order.dtype != torch.int64:
            raise TypeError(f"order: got {order.dtype}, want torch.int64")
        if order.device != energies.device:
            raise ValueError(f"order: got a tensor on {order.device}, want {energies.device} like energies")
        check.shape("order", order, energies.shape, f"{list(energies.shape)} like energies")
        order = order.reshape(rows.shape)
    key = _seed_of(energies, seed, generator, first_chain, first_step)
    if use_reference(energies):
        out, p = reference.tempering_swap(
            rows.detach(), betas.detach(), seed=key, order=order, first_chain=first_chain, first_step=first_step
        )
    else:
        out, p = _swap_op(rows.detach().double(), betas.detach().double(), order, key, first_chain, first_step)
    return out.reshape(energies.shape), p.reshape(*batch, k - 1)


def exchange_swap(
    log_ratio: Tensor,
    *,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Exchange states between neighbouring distributions of any kind, from the log ratios of the exchanges.

    States x and y of neighbours with :math:`p_i \propto e^{-E_i}` are exchanged with probability min(1, exp(r)),
    :math:`r = E_i(x) + E_{i+1}(y) - E_i(y) - E_{i+1}(x)`. For levels that differ in more than a temperature: models of
    a training run, for instance. See `tempering_swap`, whose decisions these are.

    Args:
        log_ratio: r of each pair of neighbours, `[..., k - 1]`, floating (rounded to float32).
        generator: as in `tempering_swap`.
        seed: as in `tempering_swap`.
        first_chain: as in `tempering_swap`.
        first_step: as in `tempering_swap`.

    Returns:
        order: `[..., k]`, int64: which level's state comes to each level.
        probability: `[..., k - 1]`, float32: min(1, exp(r)).

        `torch.take_along_dim(x, order[..., None], -2)` exchanges states x `[..., k, n_units]`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a device does not fit.

    Example:
        >>> order, probability = genfast.ops.exchange_swap(torch.zeros(1, 3), seed=1)
        >>> order, probability
        (tensor([[1, 0, 3, 2]]), tensor([[1., 1., 1.]]))
    """
    check.floating("log_ratio", log_ratio)
    rows, batch = check.rows("log_ratio", log_ratio)
    key = _seed_of(log_ratio, seed, generator, first_chain, first_step)
    if use_reference(log_ratio):
        out, p = reference.exchange_swap(rows.detach(), seed=key, first_chain=first_chain, first_step=first_step)
    else:
        padded = torch.nn.functional.pad(rows.detach().double(), (0, 1))
        out, p = _swap_op(padded, None, None, key, first_chain, first_step)
    return out.reshape(*batch, rows.shape[1] + 1), p.reshape(log_ratio.shape)


def _seed_of(
    x: Tensor, seed: int | Tensor | None, generator: torch.Generator | None, first_chain: int, first_step: int
) -> Tensor:
    for name, number in (("first_chain", first_chain), ("first_step", first_step)):
        if number < 0:
            raise ValueError(f"{name}: got {number}, want at least 0")
    return seed_tensor(seed, generator, x)
