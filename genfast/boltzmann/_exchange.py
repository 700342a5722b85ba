"""What replica exchange keeps of its swaps, and the ratios of normalising constants that neighbours give."""

import torch
from torch import Tensor

from genfast._module import Module
from genfast.ops._sampling import seed_tensor


class Exchange(Module):
    """Ladders of levels between which replicas are exchanged: who is where, how often swaps are accepted, round trips.

    The seed and the number of the round are part of the state dict, so that a chain goes on as if it had not stopped.
    """

    seed: Tensor
    n_rounds: Tensor
    replicas: Tensor
    direction: Tensor
    round_trips: Tensor
    accepted: Tensor
    counted: Tensor

    def __init__(
        self, n_chains: int, n_levels: int, seed: int | Tensor | None, generator: torch.Generator | None,
        device: torch.device, first_chain: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_chains, self.n_levels, self.first_chain = n_chains, n_levels, first_chain
        like = torch.empty(0, dtype=torch.int64, device=device)
        self.register_buffer("seed", seed_tensor(seed, generator, like))
        #: Rounds done, a sweep and a swap each.
        self.register_buffer("n_rounds", like.new_zeros(()))
        replicas = torch.arange(n_levels, device=device).repeat(n_chains, 1)
        #: The replica at each level, `[n_chains, n_levels]`.
        self.register_buffer("replicas", replicas)
        # of each replica: 0 before it was at the first level, 1 on its way to the last, 2 on its way back
        self.register_buffer("direction", like.new_zeros(n_chains, n_levels, dtype=torch.uint8))
        #: Of each ladder, how often one of its replicas went from the first level to the last and back, `[n_chains]`.
        self.register_buffer("round_trips", like.new_zeros(n_chains))
        self.register_buffer("accepted", like.new_zeros(n_levels - 1, dtype=torch.float64))
        self.register_buffer("counted", like.new_zeros(()))
        self._note_ends()

    @property
    def acceptance_rates(self) -> Tensor:
        """The mean acceptance probability of a swap between each level and the next, `[n_levels - 1]`, float64.

        Over all ladders and all rounds since `reset_statistics`; NaN before the first.
        """
        return self.accepted / self.counted

    @torch.no_grad()
    def reset_statistics(self) -> None:
        """Forget acceptance rates and round trips, not the states."""
        for kept in (self.accepted, self.counted, self.direction, self.round_trips):
            kept.zero_()
        self._note_ends()

    def _record(self, replicas: Tensor, probability: Tensor) -> None:
        """Takes what a swap gave."""
        self.replicas = replicas
        self.accepted += probability.double().mean(0)
        self.counted += 1
        self.n_rounds += 1
        self._note_ends()

    def _note_ends(self) -> None:
        if self.n_levels < 2:
            return
        first, last = self.replicas[:, :1], self.replicas[:, -1:]
        self.round_trips += (self.direction.gather(1, first) == 2)[:, 0]
        self.direction.scatter_(1, first, 1)
        at_last = self.direction.gather(1, last)
        self.direction.scatter_(1, last, torch.where(at_last == 1, 2, at_last))


def bridge(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """log Z_{t+1} - log Z_t of neighbours, by Bennett's acceptance ratio, and what each ladder adds to its error.

    Args:
        lower: E_{t+1}(x) - E_t(x) at states x of level t, `[n_rounds, n_chains, n_pairs]`, float64.
        upper: the same at states of level t + 1.

    Returns:
        The c that solves sum sigmoid(-(lower + c)) = sum sigmoid(upper + c), `[n_pairs]`, and the ladders' influences
        on it, `[n_chains, n_pairs]`: by the delta method the standard error of any sum of the c is that of the mean of
        the same sum of influences over independent ladders, whatever the correlations within one.

    Source:
        Bennett, "Efficient estimation of free energy differences from Monte Carlo data", 1976; Shirts et al. 2003.
    """
    low = -torch.maximum(lower.amax((0, 1)), upper.amax((0, 1))) - 1
    high = -torch.minimum(lower.amin((0, 1)), upper.amin((0, 1))) + 1
    for _ in range(80):  # the difference falls with c: bisection
        c = (low + high) / 2
        above = (torch.sigmoid(-(lower + c)) - torch.sigmoid(upper + c)).sum((0, 1)) > 0
        low, high = torch.where(above, c, low), torch.where(above, high, c)
    c = (low + high) / 2
    p, q = torch.sigmoid(-(lower + c)), torch.sigmoid(upper + c)
    slope = (p * (1 - p) + q * (1 - q)).mean((0, 1))
    return c, (p - q).mean(0) / slope


def standard_error(influences: Tensor) -> float:
    """Of the sum over pairs, from the influences of independent ladders `[n_chains, n_pairs]`."""
    n = influences.shape[0]
    return float(influences.sum(1).std() / n**0.5) if n > 1 else float("nan")
