"""Parallel trajectory tempering: replica exchange between the models of a training run."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from genfast import ops
from genfast._arguments import integer, number
from genfast._finite import NonFiniteError
from genfast.boltzmann._exchange import Exchange, bridge
from genfast.boltzmann._tempered import mixed
from genfast.boltzmann.rbm import RBM
from genfast.boltzmann.units import Binary
from genfast.reference._gibbs import accept_logit, uniform_words

_START_STREAM = 7  # kStreamStart of philox.h

Parameters = tuple[Tensor, Tensor, Tensor]
Model = RBM | Mapping[str, Tensor]


class TrajectoryTempering(Exchange):
    r"""Parallel trajectory tempering: chains of a trained RBM that come down the models of its training run.

    The levels are models of the run, each an RBM of 0/1 units and of the same size, from an early one to the last, and
    before them one of independent units (W = 0, with the biases of the first), which is drawn anew at each round. A
    round is `n_gibbs_steps` sweeps of every level under its model and a try to exchange neighbours: states x at model t
    and y at t + 1 with probability :math:`\min(1, e^{E_t(x) + E_{t+1}(y) - E_t(y) - E_{t+1}(x)})`, where x and y are
    pairs (v, h). While it is trained a machine acquires its modes one after another by continuous transitions, where
    temperatures may cross a jump: fewer levels mix better.

    Energies, and so swaps, are exact, and chains the same bits on every backend; those of a ladder depend on the seed
    and its number only. The states and statistics are buffers; the models are not.

    Args:
        models: RBMs, or state dicts of such, in the order of training; the last is the one to sample. See `select`.
        n_chains: number of ladders, and so of states that a round gives.
        n_gibbs_steps: sweeps a round.
        seed: of the chains; drawn from the generator if not given.
        generator: the default generator otherwise.
        first_chain: number of the first ladder.

    Raises:
        TypeError: a model is no RBM with 0/1 units.
        ValueError: there is no model, or sizes differ.

    Source:
        Bereux, Decelle, Furtlehner, Rosset, Seoane 2024, "Fast training and sampling of restricted Boltzmann machines".

    Example:
        >>> rbm, models = RBM(20, 10), []
        >>> optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
        >>> for _ in range(30):
        ...     _ = rbm.pcd_backward(torch.bernoulli(torch.full((32, 20), 0.3)))
        ...     optimizer.step()
        ...     models.append({k: v.clone() for k, v in rbm.state_dict().items()})
        >>> chains = TrajectoryTempering(models[::10] + models[-1:], n_chains=16, seed=1)
        >>> chains.run(20)
        >>> chains.states().shape
        torch.Size([16, 20])
    """

    chains: Tensor

    def __init__(
        self,
        models: Sequence[Model],
        n_chains: int = 100,
        *,
        n_gibbs_steps: int = 1,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_chain: int = 0,
    ) -> None:
        parameters = [_parameters(m) for m in models]
        if not parameters:
            raise ValueError("models: got none, want at least one")
        W, vbias, hbias = parameters[0]
        if any(p[0].shape != W.shape for p in parameters):
            raise ValueError(f"models: got sizes {[list(p[0].shape) for p in parameters]}, want models of one size")
        integer("n_chains", n_chains)
        integer("first_chain", first_chain, at_least=0)
        super().__init__(n_chains, len(parameters) + 1, seed, generator, W.device, first_chain)
        self.levels: list[Parameters] = [(torch.zeros_like(W), vbias, hbias), *parameters]
        self.n_gibbs_steps = integer("n_gibbs_steps", n_gibbs_steps)
        numbers = torch.arange(n_chains * self.n_levels, device=W.device) + first_chain * self.n_levels
        words = uniform_words(self.seed, numbers, W.shape[0], 0, _START_STREAM)
        start = accept_logit(vbias.float().expand(len(numbers), -1), words).to(W.dtype)
        #: The states at the levels, `[n_chains, n_levels, n_visible]`.
        self.register_buffer("chains", start.reshape(n_chains, self.n_levels, -1))

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"n_chains={self.n_chains}, n_levels={self.n_levels}, n_gibbs_steps={self.n_gibbs_steps}"

    @torch.no_grad()
    def run(self, n_rounds: int = 1) -> None:
        """Do so many rounds.

        Raises:
            NonFiniteError: an energy is NaN or infinite.
        """
        for _ in range(integer("n_rounds", n_rounds, at_least=0)):
            self._round()

    def _round(self) -> tuple[Tensor, Tensor]:
        """One round; returns E_{t+1} - E_t of the states at t and of those at t + 1, `[n_chains, n_levels - 1]`."""
        seed, done = int(self.seed), int(self.n_rounds)
        states = [
            ops.rbm_gibbs(
                self.chains[:, t], *p, n_steps=self.n_gibbs_steps, seed=mixed(seed, t), first_chain=self.first_chain,
                first_step=done * self.n_gibbs_steps,
            )
            for t, p in enumerate(self.levels)
        ]  # fmt: skip
        lower, upper = (torch.stack(x, 1) for x in zip(*self._differences(states), strict=True))
        if not bool((upper - lower).isfinite().all()):
            raise NonFiniteError(f"round {done + 1}: an energy is not finite; a model's parameters may not be")
        order, probability = ops.exchange_swap(upper - lower, seed=seed, first_chain=self.first_chain, first_step=done)
        chains = torch.stack([v for v, _ in states], 1)
        self.chains = torch.take_along_dim(chains, order[..., None], 1)
        self._record(self.replicas.gather(1, order), probability)
        return lower, upper

    def _differences(self, states: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        own = [ops.rbm_joint_energy(*x, *p) for x, p in zip(states, self.levels, strict=True)]
        return [
            (
                ops.rbm_joint_energy(*states[t], *self.levels[t + 1]) - own[t],
                own[t + 1] - ops.rbm_joint_energy(*states[t + 1], *self.levels[t]),
            )
            for t in range(self.n_levels - 1)
        ]

    def states(self, level: int = -1) -> Tensor:
        """The states at a level, by default the last: `[n_chains, n_visible]`; level 0 is that of independent units.

        Raises:
            IndexError: there is no such level.
        """
        return self.chains[:, level]

    @torch.no_grad()
    def sample(self, n_samples: int, *, n_steps: int = 1000, every: int = 10) -> Tensor:
        """Draw states of the last model: those of all ladders after n_steps rounds, then every so many rounds.

        Args:
            n_samples: number of states; up to n_chains of them come from ladders of their own.
            n_steps: rounds before the first are taken.
            every: rounds between those of one ladder.

        Returns:
            States `[n_samples, n_visible]`.
        """
        integer("n_samples", n_samples)
        integer("every", every)
        self.run(n_steps)
        taken = [self.states().clone()]
        for _ in range(-(-n_samples // self.n_chains) - 1):
            self.run(every)
            taken.append(self.states().clone())
        return torch.cat(taken)[:n_samples]

    @torch.no_grad()
    def log_z(self, n_rounds: int = 1000) -> tuple[Tensor, Tensor]:
        """log Z of every level from n_rounds more rounds, and the standard errors: float64 `[n_levels]` each.

        That of independent units is known; the ratios of neighbours are Bennett's acceptance ratios, from the energy
        differences of the states at both. The errors are told by the scatter of the ladders, which are independent, and
        know nothing of a mode that none has found.
        """
        integer("n_rounds", n_rounds)
        lower, upper = (torch.stack(x) for x in zip(*(self._round() for _ in range(n_rounds)), strict=True))
        c, influences = bridge(lower, upper)
        _, vbias, hbias = self.levels[0]
        zero = functional.softplus(vbias.double()).sum() + functional.softplus(hbias.double()).sum()
        log_z = torch.cat([zero[None], zero + c.cumsum(0)])
        errors = influences.cumsum(1).std(0) / self.n_chains**0.5
        return log_z, torch.cat([errors.new_zeros(1), errors])

    @classmethod
    @torch.no_grad()
    def select(
        cls,
        models: Sequence[Model],
        n_chains: int = 100,
        *,
        acceptance: float = 0.25,
        n_rounds: int = 50,
        n_gibbs_steps: int = 1,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> "TrajectoryTempering":
        """The chains over as few of the models as keep every swap's acceptance above a target, ready to be run.

        From the first on: the ladder so far runs n_rounds rounds, and the next level is the latest model with which its
        last would swap with at least this probability, found by bisection; that model's states are taken from
        those of the last after n_rounds sweeps. Where even the next model is farther away, it is taken all the same:
        look at `acceptance_rates`, and keep more models of the run.

        Args:
            models: as many as were kept, in the order of training; the last is always taken.
            n_chains: number of ladders.
            acceptance: the target, between 0 and 1.
            n_rounds: rounds, and sweeps, before a level is judged.
            n_gibbs_steps: sweeps a round.
            seed: of the chains; drawn from the generator if not given.
            generator: the default generator otherwise.
        """
        number("acceptance", acceptance, 0, 1)
        options = {"n_gibbs_steps": n_gibbs_steps, "seed": seed}
        first = cls(models[:1], n_chains, n_gibbs_steps=n_gibbs_steps, seed=seed, generator=generator)
        options["seed"] = int(first.seed)
        every = [_parameters(m) for m in models]
        taken, ladder = [0], first
        while True:
            ladder.run(integer("n_rounds", n_rounds))
            last = taken[-1]
            if last == len(models) - 1:
                ladder.reset_statistics()
                return ladder
            low, high = last + 1, len(models) - 1
            while low < high:
                middle = (low + high + 1) // 2
                if ladder._acceptance_with(every[middle], n_rounds) >= acceptance:  # noqa: SLF001
                    low = middle
                else:
                    high = middle - 1
            taken.append(low)
            grown = cls([models[i] for i in taken], n_chains, **options)  # type: ignore[arg-type]
            v = ops.rbm_gibbs(ladder.states(), *every[low], n_steps=n_rounds, seed=mixed(int(first.seed), -low))[0]
            grown.chains = torch.cat([ladder.chains, v[:, None]], 1)
            grown.n_rounds += ladder.n_rounds
            ladder = grown

    def _acceptance_with(self, model: Parameters, n_steps: int) -> float:
        """The mean acceptance probability of swaps between the last level and a model."""
        seed, here = int(self.seed), self.levels[-1]
        x = ops.rbm_gibbs(self.states(), *here, seed=mixed(seed, -1))
        y = ops.rbm_gibbs(x[0], *model, n_steps=n_steps, seed=mixed(seed, -2))
        energy = ops.rbm_joint_energy
        ratio = energy(*x, *here) + energy(*y, *model) - energy(*y, *here) - energy(*x, *model)
        return float(ratio.clamp(max=0).exp().mean())


def _parameters(model: Model) -> Parameters:
    """W, vbias and hbias of a model, copies."""
    if isinstance(model, RBM):
        if not type(model.visible) is type(model.hidden) is Binary:
            raise TypeError("models: want RBMs with 0/1 units in both layers")
        found = (model.W, model.vbias, model.hbias)
    else:
        if not {"W", "vbias", "hbias"} <= set(model):
            raise TypeError("models: want RBMs, or their state dicts with W, vbias and hbias")
        found = (model["W"], model["vbias"], model["hbias"])
    W, vbias, hbias = (t.detach().clone() for t in found)
    return W, vbias, hbias
