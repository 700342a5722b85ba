"""The Ising model on a square lattice."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genfast import ops
from genfast._arguments import integer, number, real
from genfast._module import Configured
from genfast.boltzmann import _states
from genfast.boltzmann._graph import Graph, lattice_edges
from genfast.boltzmann._lattice_exact import kaufman_log_z, transfer_log_z
from genfast.boltzmann._schedules import positive


class IsingLattice(Configured):
    r"""The Ising model on a square lattice of spins -1 and 1 with uniform couplings.

    .. math::
        E(s) = -J_y \sum s_{y,x} s_{y+1,x} - J_x \sum s_{y,x} s_{y,x+1} - h \sum s_{y,x}, \qquad
        p(s) = e^{-E(s) / T} / Z

    with every bond once; on a periodic axis of two sites both bonds of a pair count. States are `[..., height, width]`.
    It has no parameters to learn: `SparseBoltzmannMachine` has, and takes any graph.

    Sweeps draw the sites of one colour of the checkerboard given the other, 32 at a time (`genfast.ops.lattice_gibbs`).
    Periodic axes of odd length need more colours; then, and only then, `genfast.ops.ising_gibbs` runs the chains.

    Args:
        shape: (height, width).
        coupling: J, or (J_y, J_x): between rows, and within them. Positive couplings align.
        field: h.
        temperature: T > 0. The critical one of J = 1 is 2 / log(1 + sqrt 2) = 2.269185.
        periodic: whether opposite sides are neighbours; or for each of the axes (y, x).

    Raises:
        TypeError: a number is none.
        ValueError: a size is no positive integer, T <= 0, or a number is not finite.

    Source:
        Ising 1925; Onsager 1944, "Crystal statistics I"; Kaufman 1949, "Crystal statistics II".

    Example:
        >>> lattice = IsingLattice((32, 32), temperature=2.0)
        >>> s = lattice.sample(64, n_steps=200, start="up")
        >>> lattice.magnetisation(s).shape, lattice.energy(s).shape
        (torch.Size([64]), torch.Size([64]))
        >>> round(float(lattice.log_partition()), 3)
        1051.105
    """

    n_hidden = 0

    def __init__(
        self,
        shape: tuple[int, int],
        coupling: float | tuple[float, float] = 1.0,
        field: float = 0.0,
        *,
        temperature: float = 1.0,
        periodic: bool | tuple[bool, bool] = True,
    ) -> None:
        super().__init__()
        if len(shape) != 2:
            raise ValueError(f"shape: got {tuple(shape)}, want (height, width)")
        self.height, self.width = integer("height", shape[0]), integer("width", shape[1])
        self.n_units = self.n_visible = self.height * self.width
        couplings = tuple(coupling) if isinstance(coupling, (tuple, list)) else (coupling, coupling)
        if len(couplings) != 2:
            raise ValueError(f"coupling: got {len(couplings)} numbers, want one, or (J_y, J_x)")
        self.coupling = (_finite("coupling", couplings[0]), _finite("coupling", couplings[1]))
        self.field = _finite("field", field)
        self.temperature = temperature
        around = tuple(periodic) if isinstance(periodic, (tuple, list)) else (periodic, periodic)
        if len(around) != 2 or not all(isinstance(p, bool) for p in around):
            raise TypeError(f"periodic: got {periodic!r}, want a bool, or one for each axis")
        self.periodic = (around[0], around[1])
        #: Whether the checkerboard has two colours: no periodic axis is odd.
        self.is_bipartite = not any(p and n % 2 for p, n in zip(self.periodic, shape, strict=True))
        self._graph: tuple[Tensor, ...] | None = None

    def saved_options(self) -> dict[str, Any]:
        """What a state dict must have in common with the lattice: everything, for it has no parameters."""
        names = ("height", "width", "coupling", "field", "temperature", "periodic")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Size and options, for the printed module."""
        options = f"coupling={self.coupling}, field={self.field:g}, temperature={self.temperature:g}"
        return f"{self.height} x {self.width}, {options}, periodic={self.periodic}"

    @property
    def temperature(self) -> float:
        """T of p(s) = exp(-E(s) / T) / Z."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = positive("temperature", value)

    # -- observables --------------------------------------------------------------------------------------------------

    def energy(self, s: Tensor) -> Tensor:
        """E(s) of s `[..., height, width]`; returns `[...]`, in float32 at least.

        Means of independent spins, between -1 and 1, give the energy expected.

        Raises:
            ValueError: another shape, or values outside [-1, 1].
        """
        s = self._checked("s", s, means=True)
        bonds = [
            (s * s.roll(-1, axis) if around else s.narrow(axis, 1, n - 1) * s.narrow(axis, 0, n - 1)).sum((-2, -1))
            for axis, n, around in ((-2, self.height, self.periodic[0]), (-1, self.width, self.periodic[1]))
        ]
        return -self.coupling[0] * bonds[0] - self.coupling[1] * bonds[1] - self.field * s.sum((-2, -1))

    def magnetisation(self, s: Tensor) -> Tensor:
        """The mean spin of s `[..., height, width]`; returns `[...]`."""
        return self._checked("s", s, means=True).mean((-2, -1))

    # -- exact --------------------------------------------------------------------------------------------------------

    def log_partition(self, *, temperature: float | None = None) -> Tensor:
        """The exact log Z, in float64.

        By Kaufman's formula on a periodic lattice of any size without a field and with couplings that align (or an even
        side along each that does not); by the transfer matrix else, where one side has at most 16 sites beside an open
        axis, or 10.

        Args:
            temperature: T; the lattice's own by default.

        Raises:
            ValueError: the lattice is too large for the transfer matrix.
        """
        T = self.temperature if temperature is None else positive("temperature", temperature)
        if self._is_kaufman():
            K = torch.tensor(self.coupling, dtype=torch.float64).abs() / T
            return kaufman_log_z(K[0], K[1], self.height, self.width)
        k_y, k_x = (J / T for J in self.coupling)
        return transfer_log_z(k_y, k_x, self.field / T, self.height, self.width, self.periodic)

    def mean_energy(self, *, temperature: float | None = None) -> float:
        """The exact expectation of E, from the derivative of `log_partition` in 1 / T.

        Raises:
            ValueError: see `log_partition`.
        """
        T = self.temperature if temperature is None else positive("temperature", temperature)
        if not self._is_kaufman():
            step = 1e-5
            ends = [float(self.log_partition(temperature=1 / (1 / T + d))) for d in (step / T, -step / T)]
            return -(ends[0] - ends[1]) / (2 * step / T)
        beta = torch.tensor(1 / T, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            k_y, k_x = (abs(J) * beta for J in self.coupling)
            log_z = kaufman_log_z(k_y, k_x, self.height, self.width)
            return -float(torch.autograd.grad(log_z, beta)[0])

    def log_prob(self, v: Tensor, *, log_partition: Tensor | float | None = None) -> Tensor:
        """-E(v) / T - log Z of states v `[..., height, width]`; returns float64 `[...]`."""
        log_z = float(self.log_partition() if log_partition is None else log_partition)
        return -self.energy(self._checked("v", v).double()) / self.temperature - log_z

    # -- chains -------------------------------------------------------------------------------------------------------

    def gibbs(
        self,
        s: Tensor,
        n_gibbs_steps: int = 1,
        *,
        temperature: float | Tensor | None = None,
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
        first_chain: int = 0,
        first_step: int = 0,
    ) -> Tensor:
        """Run chains of n_gibbs_steps sweeps in one call.

        Args:
            s: states to start from, `[..., height, width]`, in any signed dtype.
            n_gibbs_steps: number of sweeps.
            temperature: T, a number, one a chain, or a schedule `[n_gibbs_steps, 1 or the chains]`; by default the
                lattice's own.
            clamp: boolean mask of sites that keep their value, `[height, width]` or that of s.
            generator: draws the seed of the chains; the default generator otherwise.
            seed: the seed itself, instead of a generator: the same seed gives the same chains.
            first_chain: number of the first lattice among all chains of a run.
            first_step: number of the first sweep among all sweeps of a run.

        Returns:
            The last states, in the shape and dtype of s.
        """
        self._fits("s", s)
        options: dict[str, Any] = {
            "n_sweeps": n_gibbs_steps, "temperature": self.temperature if temperature is None else temperature,
            "generator": generator, "seed": seed, "first_chain": first_chain, "first_step": first_step,
        }  # fmt: skip
        if self.is_bipartite:
            return ops.lattice_gibbs(s, self.coupling, self.field, periodic=self.periodic, clamp=clamp, **options)
        graph = self._odd_graph(s.device)
        mask = None if clamp is None else clamp.flatten(-2)
        return ops.ising_gibbs(s.flatten(-2), *graph, clamp=mask, validate=False, **options).reshape(s.shape)

    @torch.no_grad()
    def sample(
        self,
        n_samples: int,
        n_steps: int = 1000,
        *,
        start: Tensor | str = "random",
        temperature: float | Tensor | None = None,
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw states `[n_samples, height, width]` from chains of n_steps sweeps.

        Below the critical temperature a large lattice that starts at random is long in domains; start it "up" for one
        of its two phases.

        Args:
            n_samples: number of chains, and so of samples.
            n_steps: sweeps a chain.
            start: states to start from, "random", or "up": all spins 1.
            temperature: as in `gibbs`.
            clamp: boolean mask of sites that keep the value they have in a `start` of states.
            generator: source of randomness; the default generator otherwise.
            device: where the chains run.

        Raises:
            ValueError: `start` does not fit, or `clamp` comes without states to start from.
        """
        if isinstance(start, str):
            if clamp is not None:
                raise ValueError("clamp: got a mask without start, want start to hold the clamped values")
            if start not in ("random", "up"):
                raise ValueError(f"start: got {start!r}, want states, 'random' or 'up'")
            integer("n_samples", n_samples, at_least=0)
            s = torch.ones(n_samples, self.height, self.width, device=device)
            start = self._uniform(s, generator=generator) if start == "random" else s
        elif start.shape != (n_samples, self.height, self.width):
            raise ValueError(
                f"start: got shape {list(start.shape)}, want [n_samples, height, width] = "
                f"{[n_samples, self.height, self.width]}"
            )
        return self.gibbs(start, n_steps, temperature=temperature, clamp=clamp, generator=generator)

    def annealing_path(self, base: None = None) -> "LatticePath":
        """The path of annealed importance sampling from independent spins: f_beta = exp(-beta E / T).

        Args:
            base: None, fair coins: a lattice has no data to take rates from.
        """
        if base is not None:
            raise ValueError("base: got base rates, want None: a lattice's path starts from fair coins")
        return LatticePath(self)

    # -- internals ----------------------------------------------------------------------------------------------------

    def _is_kaufman(self) -> bool:
        aligned = all(
            J > 0 or (J < 0 and n % 2 == 0) for J, n in zip(self.coupling, (self.height, self.width), strict=True)
        )
        return all(self.periodic) and self.field == 0 and aligned

    def _fits(self, name: str, s: Tensor) -> None:
        real(name, s, self.width)
        if s.ndim < 2 or s.shape[-2] != self.height:
            raise ValueError(f"{name}: got shape {list(s.shape)}, want [..., {self.height}, {self.width}]")

    def _checked(self, name: str, s: Tensor, *, means: bool = False) -> Tensor:
        self._fits(name, s)
        dtype = torch.float64 if s.dtype == torch.float64 else torch.float32
        return _states.checked(name, s, self.width, dtype, _states.SPINS, states=not means)

    def _odd_graph(self, device: torch.device) -> tuple[Tensor, ...]:
        """CSR, bias and colours of a lattice with an odd ring."""
        if self._graph is None or self._graph[0].device != device:
            bonds, along_y = lattice_edges(self.height, self.width, self.periodic)
            pairs, number = np.unique(np.sort(bonds, 1), axis=0, return_inverse=True)
            weights = np.zeros(len(pairs))
            np.add.at(weights, number.ravel(), np.where(along_y, *self.coupling))
            keep = pairs[:, 0] != pairs[:, 1]  # a ring of one site is its own neighbour, whatever its state
            graph = Graph.of(pairs[keep], self.n_units)
            t = graph.tensors(device)
            J = torch.tensor(weights[keep][graph.edge_of], device=device)
            bias = torch.full((self.n_units,), self.field, dtype=torch.float64, device=device)
            self._graph = (t["row_ptr"], t["columns"], J, bias, t["colours"])
        return self._graph

    def _uniform(self, s: Tensor, **options: Any) -> Tensor:
        """Spins that are fair coins, in place of those of s."""
        return ops.lattice_gibbs(s, 0.0, periodic=False, **options)


class LatticePath:
    """The annealing path of a lattice; states are `[n_runs, height, width]`."""

    def __init__(self, lattice: IsingLattice) -> None:
        self.lattice = lattice
        self.log_z_base = lattice.n_units * math.log(2)

    def start(self, n_runs: int, *, seed: int, first_run: int = 0) -> Tensor:
        """Fair coins."""
        s = torch.ones(n_runs, self.lattice.height, self.lattice.width)
        # the last number of a sweep, which no transition has
        return self.lattice._uniform(s, seed=seed, first_chain=first_run, first_step=2**32 - 1)  # noqa: SLF001

    def from_samples(self, v: Tensor, *, seed: int, first_run: int = 0) -> Tensor:  # noqa: ARG002
        """The samples themselves."""
        return v

    def log_weight(self, state: Tensor, beta0: float, beta1: float) -> Tensor:
        """log f_beta1 - log f_beta0 at the states, float64 `[n_runs]`."""
        return (beta0 - beta1) / self.lattice.temperature * self.lattice.energy(state).double()

    def step(self, state: Tensor, beta: float, *, seed: int, first_run: int = 0, step: int = 0) -> Tensor:
        """A sweep that leaves f_beta invariant."""
        return self.lattice.gibbs(
            state, temperature=self.lattice.temperature / beta, seed=seed, first_chain=first_run, first_step=step
        )


def _finite(name: str, value: object) -> float:
    result = number(name, value, -math.inf, math.inf)
    if not math.isfinite(result):
        raise ValueError(f"{name}: got {value!r}, want a finite number")
    return result
