"""Deep Boltzmann machines in plain PyTorch: layered Gibbs sweeps and the mean-field fixed point.

Layers x_0 (visible), x_1, ..., x_L of units in {0, 1} have the energy

    E(x) = - sum_l b_l . x_l - sum_l x_l' W_l x_(i+1),        W_l [n_l, n_(i+1)],

and the machine's distribution is proportional to exp(-beta E). Even layers have weights to odd ones only: the machine
is a restricted Boltzmann machine between all even and all odd units, whose weights between layers that are no
neighbours are 0.

The Gibbs chain is defined to the last bit, as that of `genfast/reference/rbm.py`: `quantise` rounds all weights and
biases to multiples of one power of two for the whole machine, the one that this RBM gets, and from the exact integer
field a unit is drawn as `genfast/reference/_gibbs.py` says. The stream of random words is 16 + l for layer l.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from genfast.reference._gibbs import accept, fixed_point_exponent, uniform_words

__all__ = ["dbm_gibbs", "dbm_mean_field", "quantise"]

LAYER_STREAM = 16


def quantise(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], int]:
    """Rounds finite weights and biases to integer multiples of 2^e, half to even.

    e is `fixed_point_exponent` of the RBM between even and odd units, zeros included.

    Returns:
        The integers of weights and biases as int64, and e.
    """
    weights, biases = ([x if x.dtype == torch.float64 else x.float() for x in xs] for xs in (weights, biases))
    even, odd = torch.cat(biases[::2]), torch.cat(biases[1::2])
    blocks = even.new_zeros(len(even), len(odd))
    starts = [sum(len(b) for b in biases[i % 2 : i : 2]) for i in range(len(biases))]
    for i, W in enumerate(weights):
        rows, columns = (i, i + 1) if i % 2 == 0 else (i + 1, i)
        block = blocks[starts[rows] :, starts[columns] :]
        block[: len(biases[rows]), : len(biases[columns])] = W if rows == i else W.t()
    e = fixed_point_exponent(blocks, (even, odd), ((0, odd), (1, even)))
    q_weights, q_biases = ([torch.round(x * 2.0**-e).to(torch.int64) for x in xs] for xs in (weights, biases))
    return q_weights, q_biases, e


def _field(states: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor], layer: int) -> Tensor:
    """The sum of a layer's bias and of what it gets from the layers below and above."""
    field = biases[layer]
    if layer > 0:
        field = field + states[layer - 1] @ weights[layer - 1]
    if layer < len(weights):
        field = field + states[layer + 1] @ weights[layer].t()
    return field


def dbm_gibbs(
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    seed: int | Tensor,
    n_steps: int = 1,
    beta: float | Tensor = 1.0,
    clamp: Sequence[Tensor | bool | None] | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> list[Tensor]:
    """Runs `n_steps` sweeps of block Gibbs sampling: all odd layers given the even ones, then all even ones.

    The arguments are those of `genfast.ops.dbm_gibbs`, with states `[N, n_l]` and a seed that is given.

    Returns:
        The last states `[N, n_l]`, in the dtype they were given in. Floating states come out as NaN where the weights
        are not finite, and in a chain whose `beta` is not finite or (on other devices than the CPU) whose states hold
        anything but 0 and 1.

    Raises:
        ValueError: on the CPU, states other than 0 and 1; or what makes floating states NaN happens to integer or
            boolean ones.
    """
    with torch.no_grad():
        first = states[0]
        binary = torch.stack([((x == 0) | (x == 1)).all(1) for x in states]).all(0)
        if first.device.type == "cpu" and not bool(binary.all()):
            raise ValueError("states: expected 0 or 1, got other values")
        beta = torch.as_tensor(beta, dtype=torch.float32, device=first.device).expand(first.shape[0])
        good = binary & beta.isfinite()
        finite = all(bool(x.isfinite().all()) for x in (*weights, *biases))
        if not first.is_floating_point() and not (finite and bool(good.all())):
            raise ValueError(
                f"weights, biases, beta: expected finite values, because {first.dtype} states cannot express NaN; "
                "got NaN or infinity"
            )
        if not finite:
            return [torch.full_like(x, torch.nan) for x in states]
        q_weights, q_biases, e = quantise(weights, biases)
        # Sums of integers below 2^31 are exact in float64, in any order.
        q_weights, q_biases = [w.double() for w in q_weights], [b.double() for b in q_biases]
        seed = torch.as_tensor(seed, dtype=torch.int64, device=first.device).reshape(())
        chains = torch.arange(first.shape[0], device=first.device) + first_chain
        now = [x.double() for x in states]
        for step in range(first_step, first_step + n_steps):
            for layer in (*range(1, len(now), 2), *range(0, len(now), 2)):
                held = clamp[layer] if clamp is not None else None
                if held is True:
                    continue
                words = uniform_words(seed, chains, now[layer].shape[1], step, LAYER_STREAM + layer)
                field = _field(now, q_weights, q_biases, layer)
                new = accept(field, 2.0 ** min(e, 100), beta[:, None], words).double()
                now[layer] = torch.where(held, now[layer], new) if isinstance(held, Tensor) else new
        out = [x.to(first.dtype) for x in now]
        return [x.masked_fill(~good[:, None], torch.nan) for x in out] if first.is_floating_point() else out


def dbm_mean_field(
    v: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    start: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Mean-field inference: the fixed point of mu_l = sigmoid(b_l + mu_(i-1) W_(i-1) + mu_(i+1) W_l'), mu_0 = v.

    The arguments are those of `genfast.ops.dbm_mean_field`, with v `[N, n_visible]`.

    Returns:
        The means `[N, n_l]` of the hidden layers, and the number of iterations of each row, int64 `[N]`.
    """
    with torch.no_grad():
        biases = list(biases)
        means = start_means(v, weights, biases) if start is None else [m.clone() for m in start]
        iterations = torch.zeros(v.shape[0], dtype=torch.int64, device=v.device)
        active = torch.ones(v.shape[0], dtype=torch.bool, device=v.device)
        for _ in range(max_iterations):
            if not bool(active.any()):
                break
            change = v.new_zeros(v.shape[0])
            before = means
            now = [v, *means]
            for layer in (*range(1, len(now), 2), *range(2, len(now), 2)):
                new = torch.sigmoid(_field(now, weights, biases, layer))
                change = torch.maximum(change, (new - now[layer]).abs().amax(1))
                now[layer] = new
            means = [torch.where(active[:, None], new, old) for new, old in zip(now[1:], before, strict=True)]
            iterations += active
            active = active & ~(change <= tolerance)
        return means, iterations


def start_means(v: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """A pass from v up in which every layer but the last counts its input from below twice, for the one from above."""
    means, below = [], v
    for i, W in enumerate(weights):
        below = torch.sigmoid(biases[i + 1] + (below @ W) * (2.0 if i + 1 < len(weights) else 1.0))
        means.append(below)
    return means
