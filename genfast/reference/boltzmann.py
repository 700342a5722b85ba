"""General Boltzmann machines in plain PyTorch: sequential Gibbs sampling.

The energy is E(s) = -s'Js/2 - c.s, with J symmetric and without a diagonal, over units that are 0 or 1, or spins that
are -1 or 1, and the distribution is proportional to exp(-E / T). Given the others, unit i has the field h = (Js + c)_i
and is high with probability sigmoid(h / T), a spin with probability sigmoid(2 h / T).

The chain is defined to the last bit, so that every backend draws the same states from the same seed. J and c (the bias)
are rounded to multiples of 2^e (`fixed_point_exponent` of `genfast/reference/_gibbs.py`), and a field is an exact
integer. In a sweep unit after unit is drawn as `accept` says, with beta = min((1 / T) (1 / f), the largest float32) for
the temperature T of the chain and the factor f of the sweep, and, of spins, a scale that is doubled. The unit at place
k of the sweep's order has the random word k of stream 3. A random order is the shuffle of Fisher and Yates with the
words of stream 4 of chain 0: from the identity, for i = n - 1 ... 1 the units at i and at floor(word_i (i + 1) / 2^32)
trade places.
"""

import torch
from torch import Tensor

from genfast.reference._gibbs import accept, fixed_point_exponent, uniform_words

__all__ = ["boltzmann_gibbs", "random_order", "refusal"]

UNITS_STREAM, ORDER_STREAM = 3, 4
VALUES = {"01": (0, 1), "pm1": (-1, 1)}


def random_order(seed: Tensor, n_units: int, step: int) -> list[int]:
    """The order in which a sweep visits the units, the same for all chains."""
    chain = torch.zeros(1, dtype=torch.int64, device=seed.device)
    words = uniform_words(seed, chain, n_units, step, ORDER_STREAM)[0].tolist()
    order = list(range(n_units))
    for i in range(n_units - 1, 0, -1):
        j = words[i] * (i + 1) >> 32
        order[i], order[j] = order[j], order[i]
    return order


def _inverse(temperature: Tensor) -> tuple[Tensor, Tensor]:
    """1 / T, and where that and T are positive and finite."""
    beta = 1.0 / temperature
    return beta, (temperature > 0) & temperature.isfinite() & beta.isfinite()


def refusal(s: Tensor, J: Tensor, bias: Tensor, temperature: Tensor, schedule: Tensor, values: str) -> str | None:
    """The sentence that says why states cannot be drawn, or None where they can."""
    for name, x in (("J", J), ("bias", bias)):
        if not bool(x.isfinite().all()):
            return f"{name}: got NaN or infinity, want finite numbers"
    if bool(J.diagonal().any()):
        i = int(J.diagonal().ne(0).nonzero()[0])
        return f"J: got J[{i}, {i}] = {J[i, i].item():g}, want zeros on the diagonal (a unit's own field is its bias)"
    if not torch.equal(J, J.t()):
        i, j = J.ne(J.t()).nonzero()[0].tolist()
        return f"J: got J[{i}, {j}] = {J[i, j].item():g} and J[{j}, {i}] = {J[j, i].item():g}, want a symmetric matrix"
    for name, t in (("temperature", temperature), ("schedule", schedule)):
        good = _inverse(t)[1]
        if not bool(good.all()):
            return f"{name}: got {t[~good][0].item():g}, want positive finite numbers"
    low, high = VALUES[values]
    good = (s == low) | (s == high)
    if not bool(good.all()):
        return f"s: got {s[~good][0].item():g}, want states that are {low} or {high}"
    return None


def boltzmann_gibbs(
    s: Tensor,
    J: Tensor,
    bias: Tensor,
    *,
    seed: int | Tensor,
    n_sweeps: int = 1,
    temperature: float | Tensor = 1.0,
    schedule: Tensor | None = None,
    clamp: Tensor | None = None,
    values: str = "01",
    order: str = "fixed",
    first_chain: int = 0,
    first_step: int = 0,
) -> Tensor:
    """Runs `n_sweeps` sweeps of Gibbs sampling, unit after unit.

    The arguments are those of `genfast.ops.boltzmann_gibbs`, with `s [N, n]`, a seed that is given and a schedule that
    has a factor for each sweep.

    Returns:
        The last states `[N, n]` in the dtype of `s`. On other devices than the CPU floating states are NaN where they
        cannot be drawn: in all chains because of J, the bias or the schedule, in one because of its temperature or its
        states.

    Raises:
        ValueError: states cannot be drawn, and lie on the CPU or are integers or bools.
    """
    with torch.no_grad():
        n, device = s.shape[0], s.device
        J, bias = (x if x.dtype == torch.float64 else x.float() for x in (J, bias))
        T = torch.as_tensor(temperature, dtype=torch.float32, device=device).expand(n)
        factors = torch.ones(n_sweeps, device=device) if schedule is None else schedule.float()
        if device.type == "cpu" or not s.is_floating_point():
            wrong = refusal(s, J, bias, T, factors, values)
            if wrong is not None:
                raise ValueError(wrong)
        low, high = VALUES[values]
        (betas, good), (steps, possible) = _inverse(T), _inverse(factors)
        good = good & ((s == low) | (s == high)).all(1)
        machine = bool(J.isfinite().all() & bias.isfinite().all() & possible.all())
        if not machine or bool(J.diagonal().any()) or not torch.equal(J, J.t()):
            return s.new_full(s.shape, torch.nan)

        e = fixed_point_exponent(J, (bias,), ((0, bias),))
        # Sums of integers below 2^31 are exact in float64, in any order.
        weights, offset = (torch.round(x * 2.0**-e).double() for x in (J, bias))
        scale = 2.0 ** (min(e, 100) + (values == "pm1"))
        key = torch.as_tensor(seed, dtype=torch.int64, device=device).reshape(())
        chains = torch.arange(n, device=device) + first_chain
        states = torch.where(s == high, high, low).double()
        fields = states @ weights + offset
        for t in range(n_sweeps):
            step = first_step + t
            words = uniform_words(key, chains, J.shape[0], step, UNITS_STREAM)
            beta = (betas * steps[t]).clamp(max=torch.finfo(torch.float32).max)
            visited = random_order(key, J.shape[0], step) if order == "random" else range(J.shape[0])
            for place, i in enumerate(visited):
                new = torch.where(accept(fields[:, i], scale, beta, words[:, place]), high, low).double()
                if clamp is not None:
                    new = torch.where(clamp[..., i], states[:, i], new)
                fields += torch.outer(new - states[:, i], weights[i])
                states[:, i] = new
        out = states.to(s.dtype)
        return out.masked_fill(~good[:, None], torch.nan) if s.is_floating_point() else out
