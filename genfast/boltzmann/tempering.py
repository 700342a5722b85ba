"""Parallel tempering: chains at several temperatures that exchange their states."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import integer, real
from genfast._finite import NonFiniteError, check_finite
from genfast.boltzmann._exchange import Exchange, bridge, standard_error
from genfast.boltzmann._tempered import TemperedRBM, tempered

_SMALLEST_REJECTION = 1e-3


class ParallelTempering(Exchange):
    r"""Parallel tempering (replica exchange): chains that cross the barriers between a machine's modes.

    Each of `n_chains` independent ladders has a replica at every inverse temperature :math:`\beta_1 < ... < \beta_k`,
    with the distribution :math:`p_i \propto e^{-\beta_i E}`. A round is `n_gibbs_steps` sweeps of all replicas, in one
    call, and a try to exchange the replicas at neighbouring temperatures, accepted with probability
    :math:`\min(1, e^{(\beta_i - \beta_{i+1})(E(x) - E(y))})`. So states that formed where all is fluid come down to the
    last level, whose states are the samples.

    E is the energy of the whole state: of an RBM E(v, h), where swaps on the free energy of v alone would sample
    another distribution. Of an RBM with binary units energies and swaps are exact, and the chains the same bits on
    every backend and device. The bits of a ladder depend on the seed and its number only: ladders 100 to 199 of one
    object are those of another with `first_chain=100`, on another process for instance.

    The states, the temperatures and the statistics are buffers, and the machine is not: a state dict resumes the chains
    bit for bit, and `machine` is saved with what it belongs to.

    Args:
        machine: an `RBM`, a `BoltzmannMachine`, or any machine with `energy` and with `gibbs` that takes `beta` or
            `temperature` for each chain.
        betas: inverse temperatures, increasing, relative to the machine's own, which is 1; a number stands for so many
            evenly from 0 to 1. At 0 replicas forget their state in one round. See `adapt`.
        n_chains: number of ladders, and so of states that a round gives.
        n_gibbs_steps: sweeps a round.
        start: states to start from, `[n_chains, n_visible]`, the same at all temperatures; by default each replica
            starts from independent units, those of an RBM with the odds of beta a.
        clamp: boolean mask of units that keep the value they have in `start`.
        seed: of the chains; drawn from the generator if not given.
        generator: the default generator otherwise.
        first_chain: number of the first ladder.

    Raises:
        TypeError: the machine has no `energy`, or a `gibbs` without temperatures.
        ValueError: betas are not increasing or negative (or 0, for a machine that takes temperatures), or a shape does
            not fit.

    Source:
        Swendsen and Wang 1986; Geyer 1991. For RBMs: Desjardins et al. 2010, "Tempered Markov chain Monte Carlo for
        training of restricted Boltzmann machines"; Salakhutdinov 2009.

    Example:
        >>> rbm = RBM(64, 100)
        >>> chains = ParallelTempering(rbm, betas=8, n_chains=32, seed=1)
        >>> chains.run(100)
        >>> chains.states().shape, chains.acceptance_rates.shape
        (torch.Size([32, 64]), torch.Size([7]))
    """

    betas: Tensor
    chains: Tensor
    machine: nn.Module

    def __init__(
        self,
        machine: nn.Module,
        betas: int | Sequence[float] | Tensor = 10,
        n_chains: int = 100,
        *,
        n_gibbs_steps: int = 1,
        start: Tensor | None = None,
        clamp: Tensor | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        first_chain: int = 0,
    ) -> None:
        adapter = tempered(machine)
        levels = _levels(betas, zero=isinstance(adapter, TemperedRBM) or adapter.by == "beta")
        integer("n_chains", n_chains)
        integer("first_chain", first_chain, at_least=0)
        device = next(machine.parameters()).device
        super().__init__(n_chains, len(levels), seed, generator, device, first_chain)
        self.__dict__["machine"] = machine  # not a part of this module: the state dict is that of the chains
        self._adapter = adapter
        self.n_gibbs_steps = integer("n_gibbs_steps", n_gibbs_steps)
        #: The inverse temperatures of the levels, float64, rounded to float32.
        self.register_buffer("betas", levels.to(device))
        if start is None:
            if clamp is not None:
                raise ValueError("clamp: got a mask without start, want start to hold the clamped values")
            each = self.betas.repeat(n_chains)
            states = adapter.start(each, int(self.seed), first_chain * self.n_levels)
        else:
            real("start", start)
            if start.ndim != 2 or start.shape[0] != n_chains:
                raise ValueError(f"start: got shape {list(start.shape)}, want [n_chains = {n_chains}, n_visible]")
            states = start.detach().to(device).repeat_interleave(self.n_levels, 0)
        #: The replicas' states, `[n_chains, n_levels, n_visible]`; `replicas` says at which level they are.
        self.register_buffer("chains", states.reshape(n_chains, self.n_levels, -1))
        self.clamp = clamp

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"n_chains={self.n_chains}, n_levels={self.n_levels}, n_gibbs_steps={self.n_gibbs_steps}"

    # -- chains -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, n_rounds: int = 1) -> None:
        """Do so many rounds: sweeps of all replicas, and one try to exchange neighbours each.

        Raises:
            NonFiniteError: an energy is NaN or infinite.
        """
        for _ in range(integer("n_rounds", n_rounds, at_least=0)):
            self._round()

    def _round(self) -> Tensor:
        """One round; returns the energies of the replicas before the swap, `[n_chains, n_levels]`."""
        seed, done = int(self.seed), int(self.n_rounds)
        betas = torch.empty_like(self.replicas, dtype=torch.float32)
        betas.scatter_(1, self.replicas, self.betas.float().expand(self.n_chains, -1))
        swept = self._adapter.sweep(
            self.chains.flatten(0, 1), betas.flatten(), self.n_gibbs_steps, self.clamp, seed,
            self.first_chain * self.n_levels, done * self.n_gibbs_steps,
        )  # fmt: skip
        energy = swept.energy.reshape(self.n_chains, self.n_levels)
        order, probability = ops.tempering_swap(
            energy, self.betas, order=self.replicas, seed=seed, first_chain=self.first_chain, first_step=done
        )
        if not bool(energy.isfinite().all()):
            check_finite(self.machine, step=done + 1)
            raise NonFiniteError(f"round {done + 1}: an energy is not finite")
        self.chains = swept.v.reshape(self.chains.shape)
        self._record(order, probability)
        return energy

    def states(self, level: int = -1) -> Tensor:
        """The states at a level, by default the last: `[n_chains, n_visible]`.

        Raises:
            IndexError: there is no such level.
        """
        at = self.replicas[:, level]
        return self.chains[torch.arange(self.n_chains, device=at.device), at]

    @torch.no_grad()
    def sample(self, n_samples: int, *, n_steps: int = 1000, every: int = 10) -> Tensor:
        """Draw states of the machine: those of all ladders at the last level after n_steps rounds, then every so many.

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
        taken = [self.states()]
        for _ in range(-(-n_samples // self.n_chains) - 1):
            self.run(every)
            taken.append(self.states())
        return torch.cat(taken)[:n_samples]

    @torch.no_grad()
    def adapt(self, n_steps: int = 100, n_rounds: int = 8) -> Tensor:
        """Move the inner temperatures until all swaps are rejected equally often. To be done before sampling.

        With r_i the rejection rate between levels i and i + 1, Lambda(beta) = sum of r_i up to beta is the
        communication barrier; the new levels are evenly spaced in it. The states go on. Statistics begin anew. The
        rates are those of this object's ladders, so ladders elsewhere want the same `betas`, not an adaptation of their
        own.

        Args:
            n_steps: rounds of the chains between two moves.
            n_rounds: moves.

        Returns:
            The new betas.

        Source:
            Syed, Bouchard-Cote, Deligiannidis, Doucet 2022, "Non-reversible parallel tempering: a scalable highly
            parallel MCMC scheme", algorithm 2.
        """
        for _ in range(integer("n_rounds", n_rounds)):
            self.reset_statistics()
            self.run(integer("n_steps", n_steps))
            rejected = (1 - self.acceptance_rates).clamp(min=_SMALLEST_REJECTION)
            barrier = torch.cat([rejected.new_zeros(1), rejected.cumsum(0)])
            even = torch.linspace(0, 1, self.n_levels, dtype=torch.float64, device=barrier.device) * barrier[-1]
            self.betas = _increasing(_interpolated(even, barrier, self.betas))
        self.reset_statistics()
        return self.betas

    @torch.no_grad()
    def log_z(self, n_rounds: int = 1000) -> tuple[float, float]:
        """log Z of the machine, from n_rounds more rounds, with its standard error.

        log Z at beta = 0 is known; the ratios of neighbours are Bennett's, from the energies at both. The error is told
        by the scatter of the ladders, which are independent, and knows nothing of a mode that none has found.

        Raises:
            TypeError: the machine is no RBM with binary units.
            ValueError: betas do not begin at 0 and end at 1, or units are clamped.
        """
        if not isinstance(self._adapter, TemperedRBM):
            raise TypeError("log_z: want an RBM with binary units, whose log Z at beta = 0 is known")
        if float(self.betas[0]) != 0 or float(self.betas[-1]) != 1 or self.clamp is not None:
            raise ValueError("log_z: want betas that begin at 0 and end at 1, and no clamped units")
        integer("n_rounds", n_rounds)
        rows = []
        for _ in range(n_rounds):
            at_level = self.replicas
            rows.append(self._round().gather(1, at_level))
        energy = torch.stack(rows)
        steps = self.betas.diff()
        c, influences = bridge(steps * energy[..., :-1], steps * energy[..., 1:])
        n_units = sum(self._adapter.rbm.W.shape)
        zero = n_units * torch.tensor(2.0, dtype=torch.float64).log()
        return float(zero + c.sum()), standard_error(influences)

    # -- training -----------------------------------------------------------------------------------------------------

    def pcd_loss(self, v: Tensor, k: int = 1) -> Tensor:
        """The loss of persistent contrastive divergence with the states of the last level, after k more rounds.

        What `RBM.pcd_loss` is, by chains that cross barriers: weights that grow slow down chains at beta = 1, and those
        at smaller betas go on. See `RBM.contrastive_loss`.

        Args:
            v: data `[N, n_visible]`.
            k: rounds.

        Example:
            >>> rbm = RBM(64, 100)
            >>> chains = ParallelTempering(rbm, betas=5, n_chains=16)
            >>> chains.pcd_loss(torch.bernoulli(torch.full((32, 64), 0.3))).backward()
        """
        self.run(k)
        machine: Any = self.machine
        loss: Tensor = machine.contrastive_loss(v, self.states())
        return loss


def _levels(betas: int | Sequence[float] | Tensor, *, zero: bool) -> Tensor:
    if isinstance(betas, int):
        integer("betas", betas, at_least=2)
        if not zero:
            raise ValueError("betas: got a number, want a list that begins above 0: this machine takes temperatures")
        return torch.linspace(0, 1, betas, dtype=torch.float64).float().double()
    levels = torch.as_tensor(betas, dtype=torch.float64, device="cpu").detach().float().double()
    if levels.ndim != 1 or len(levels) == 0:
        raise ValueError(f"betas: got shape {list(levels.shape)}, want [n_levels] with at least one")
    if not bool(levels.isfinite().all()) or float(levels[0]) < 0 or not bool((levels.diff() > 0).all()):
        raise ValueError(f"betas: got {levels.tolist()}, want increasing numbers of at least 0")
    if not zero and float(levels[0]) == 0:
        raise ValueError("betas: got 0 as the first, want more: this machine takes temperatures")
    return levels


def _interpolated(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The piecewise linear function through (xs, ys), xs increasing, at x."""
    at = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    share = (x - xs[at - 1]) / (xs[at] - xs[at - 1])
    return ys[at - 1] + share * (ys[at] - ys[at - 1])


def _increasing(betas: Tensor) -> Tensor:
    """Rounded to float32, in which the chains take them; equal ones are moved apart."""
    rounded = betas.float().double()
    for i in range(1, len(rounded)):
        if rounded[i] <= rounded[i - 1]:
            rounded[i] = torch.nextafter(rounded[i - 1].float(), torch.tensor(torch.inf)).double()
    return rounded
