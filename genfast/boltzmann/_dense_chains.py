"""The general machine's chains: Gibbs sampling, completion, annealing."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genfast import ops
from genfast._arguments import integer, real
from genfast._finite import check_finite
from genfast._tracing import has_values
from genfast.boltzmann import _dense
from genfast.boltzmann._dense import from_bits, log_odds
from genfast.boltzmann._dense_energy import DenseEnergy
from genfast.boltzmann._schedules import schedule
from genfast.ops._sampling import seed_tensor


class DenseChains(DenseEnergy):
    """How a `BoltzmannMachine` is sampled."""

    _room: Tensor | None = None

    def gibbs(
        self,
        s: Tensor,
        n_gibbs_steps: int = 1,
        *,
        temperature: float | Tensor | None = None,
        clamp: Tensor | None = None,
        order: str = "fixed",
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
        first_chain: int = 0,
        first_step: int = 0,
    ) -> Tensor:
        """Run chains of n_gibbs_steps sweeps, in each of which every unit is drawn given all others, in one call.

        Args:
            s: states of all units to start from, `[..., n]`, one chain a row, in any dtype.
            n_gibbs_steps: number of sweeps.
            temperature: T, a number or one a chain; the machine's own by default.
            clamp: boolean mask of units that keep their value, `[n]` or that of s.
            order: of the units in a sweep, "fixed" or "random".
            generator: draws the seed of the chains; the default generator otherwise.
            seed: the seed itself, instead of a generator: the same seed gives the same chains.
            first_chain: number of the first row among all chains of a run.
            first_step: number of the first sweep among all sweeps of a run.

        Returns:
            The last states, in the shape and dtype of s. See `genfast.ops.boltzmann_gibbs`.
        """
        real("s", s, self.n_units)
        return self._sweeps(
            s, n_sweeps=n_gibbs_steps, temperature=temperature, clamp=clamp, order=order, generator=generator,
            seed=seed, first_chain=first_chain, first_step=first_step,
        )  # fmt: skip

    @torch.no_grad()
    def initial_states(
        self, n_chains: int, *, generator: torch.Generator | None = None, first_chain: int = 0
    ) -> Tensor:
        """States `[n_chains, n]` of independent units in the fields of their biases alone: where new chains start.

        Rows k: of a batch are those of `first_chain=k` from a generator in the same state.
        """
        integer("number of chains", n_chains, at_least=0)
        p = torch.sigmoid(log_odds(self._wide()[1], self.values) / self.temperature)
        own = torch.Generator().manual_seed(int(seed_tensor(None, generator, p)) & (2**63 - 1))
        u = torch.rand(first_chain + n_chains, len(p), generator=own, dtype=p.dtype)[first_chain:].to(p.device)
        return from_bits((u < p).to(self.bias.dtype), self.values)

    @torch.no_grad()
    def sample(
        self,
        n_samples: int,
        n_steps: int = 1000,
        *,
        start: Tensor | None = None,
        temperature: float | Tensor | None = None,
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw visible states from n_samples chains of n_steps sweeps.

        Where no `start` is given the chains start from independent units in the fields of their biases alone. They
        converge to the machine's distribution as n_steps grows; a machine with separate modes may need very many, or
        `anneal`.

        Args:
            n_samples: number of chains, and so of samples.
            n_steps: sweeps a chain.
            start: states to start from, `[n_samples, n]` or, the hidden ones drawn, `[n_samples, n_visible]`.
            temperature: T, a number or one a chain; the machine's own by default.
            clamp: boolean mask, of all units or of the visible ones, that keep the value they have in `start`.
            generator: source of randomness; the default generator otherwise.

        Returns:
            States `[n_samples, n_visible]`.

        Raises:
            ValueError: `start` or `clamp` do not fit, or `clamp` comes without `start`.
        """
        s, clamp = self._start(n_samples, start, clamp, generator)
        return self.gibbs(s, n_steps, temperature=temperature, clamp=clamp, generator=generator)[:, : self.n_visible]

    @torch.no_grad()
    def complete(
        self,
        v: Tensor,
        mask: Tensor | None = None,
        *,
        n_steps: int = 1000,
        temperature: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw the unknown visible units given the known ones; hidden units are free.

        Args:
            v: `[..., n_visible]`; what it holds at unknown units is not looked at, NaN for instance.
            mask: True where v is known, `[n_visible]` or in the shape of v; by default where v is not NaN.
            n_steps: sweeps of the unknown and hidden units, from independent ones in the fields of their biases.
            temperature: T, a number or one a row; the machine's own by default.
            generator: source of randomness; the default generator otherwise.

        Returns:
            States `[..., n_visible]` that agree with v where it is known.

        Raises:
            TypeError: mask is not boolean.
            ValueError: a shape does not fit, or a unit that the mask calls known has no state (NaN, or another value).
        """
        real("v", v, self.n_visible)
        rows = v.reshape(-1, self.n_visible)
        shapes = (v.shape[-1:], v.shape)
        clamp = self._mask("mask", ~v.isnan() if mask is None else mask, shapes).expand(*v.shape[:-1], self.n_units)
        clamp = clamp.reshape(-1, self.n_units)
        known, s = clamp[:, : self.n_visible], self.initial_states(len(rows), generator=generator)
        at = (known & rows.isnan()).nonzero() if has_values(v) else rows.new_empty(0)
        if len(at):
            raise ValueError(f"v, mask: contradict each other in row {at[0, 0]}, unit {at[0, 1]}: known, but NaN")
        s[:, : self.n_visible] = torch.where(known, rows.to(s.dtype), s[:, : self.n_visible])
        self._checked("v", s, self.n_units)
        s = self.gibbs(s, n_steps, temperature=temperature, clamp=clamp, generator=generator)
        return s[:, : self.n_visible].reshape(v.shape)

    @torch.no_grad()
    def anneal(
        self,
        n_samples: int,
        temperatures: Tensor,
        *,
        n_sweeps: int = 1,
        start: Tensor | None = None,
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Simulated annealing: n_samples chains, n_sweeps sweeps at each of the temperatures in turn.

        Args:
            n_samples: number of chains.
            temperatures: `[K]`, each > 0; see `geometric_schedule` and `linear_schedule`.
            n_sweeps: sweeps at each temperature.
            start: states to start from, as in `sample`.
            clamp: boolean mask of units that keep the value they have in `start`, as in `sample`.
            generator: source of randomness; the default generator otherwise.

        Returns:
            The last states of all units `[n_samples, n]`, and their energies `[n_samples]`.

        Raises:
            ValueError: a temperature is not positive and finite, or see `sample`.

        Source:
            Kirkpatrick, Gelatt & Vecchi 1983, "Optimization by simulated annealing".

        Example:
            >>> machine = BoltzmannMachine(30, init_std=1.0)
            >>> states, energies = machine.anneal(8, geometric_schedule(5.0, 0.1, 100))
            >>> states[energies.argmin()].shape
            torch.Size([30])
        """
        factors = schedule("temperatures", temperatures).repeat_interleave(integer("n_sweeps", n_sweeps))
        s, clamp = self._start(n_samples, start, clamp, generator)
        if len(factors):
            s = self._sweeps(s, temperature=1.0, schedule=factors.to(s.device), clamp=clamp, generator=generator)
        return s, self.energy(s)

    # -- internals ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _couplings_now(self) -> Iterator[Tensor]:
        """J without a graph, in memory that the next block uses again: new pages cost more than the numbers in them.

        A block takes the memory away, so that one in another thread gets its own.
        """
        upper, (room, self._room) = self.couplings.detach(), (self._room, None)
        if not has_values(upper) or upper.device.type != "cpu":
            yield _dense.symmetric(upper)
            return
        fits = room is not None and room.shape == upper.shape and room.dtype == upper.dtype
        if room is None or not fits or room.is_inference() != torch.is_inference_mode_enabled():
            room = torch.empty(upper.shape, dtype=upper.dtype)
        try:
            yield _dense.mirror(upper, room)
        finally:
            self._room = room

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files hold: all but memory to use again."""
        return {**self.__dict__, "_room": None}

    def _sweeps(
        self, s: Tensor, *, J: Tensor | None = None, temperature: float | Tensor | None = None, **options: Any
    ) -> Tensor:
        """`ops.boltzmann_gibbs`; J is that of the machine, where the caller has it already."""
        T = self._per_chain(temperature)
        if J is None:
            with self._couplings_now() as J:
                return self._sweeps(s, J=J, temperature=T, **options)
        try:
            out: Tensor = ops.boltzmann_gibbs(s, J, self.bias, values=self.values, temperature=T, **options)
        except ValueError:
            self._checked("s", s, self.n_units)  # says more, where it is s
            if self.nonfinite_check:
                check_finite(self)  # or a parameter
            raise
        return out

    def _with_hidden(self, v: Tensor, generator: torch.Generator | None) -> Tensor:
        """v `[N, n_visible]` with hidden units drawn in the fields of their biases."""
        if not self.n_hidden:
            return v
        hidden = self.initial_states(len(v), generator=generator, first_chain=self.first_chain)[:, self.n_visible :]
        return torch.cat([v, hidden.to(v.dtype)], 1)

    def _mask(self, name: str, mask: object, shapes: tuple[torch.Size, ...]) -> Tensor:
        """A mask of visible units as one of all units, the hidden ones free; a mask of all units as it is.

        Raises:
            TypeError: it is not a boolean tensor.
            ValueError: it has none of the shapes.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{name}: got {got}, want a torch.bool mask")
        if mask.shape not in shapes:
            wanted = " or ".join(str(list(s)) for s in shapes)
            raise ValueError(f"{name}: got shape {list(mask.shape)}, want {wanted}")
        if mask.shape[-1] == self.n_units:
            return mask
        return torch.cat([mask, mask.new_zeros(*mask.shape[:-1], self.n_hidden)], -1)

    def _start(
        self, n: int, start: Tensor | None, clamp: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """The states that n chains start from, and the mask of clamped units, both of all units."""
        if start is None:
            if clamp is not None:
                raise ValueError("clamp: got a mask without start, want start to hold the clamped values")
            return self.initial_states(n, generator=generator), None
        real("start", start)
        sizes = (self.n_units, self.n_visible)
        if start.ndim != 2 or start.shape[1] not in sizes:
            raise ValueError(f"start: got shape {list(start.shape)}, want [n_samples, {sizes[0]}] or [.., {sizes[1]}]")
        if start.shape[0] != n:
            raise ValueError(f"start: got {start.shape[0]} rows, want n_samples = {n}")
        s = self._checked("start", start, start.shape[1]).to(self.bias.dtype)
        if s.shape[1] != self.n_units:
            s = self._with_hidden(s, generator)
        if clamp is not None:
            shapes = tuple(torch.Size(x) for k in dict.fromkeys(sizes) for x in ((k,), (n, k)))
            clamp = self._mask("clamp", clamp, shapes)
        return s, clamp
