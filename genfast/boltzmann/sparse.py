"""The Boltzmann machine on a sparse graph."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import integer, number, real
from genfast._finite import check_finite
from genfast._module import Configured
from genfast._tracing import has_values, is_differentiated
from genfast.boltzmann._dense import Values, checked, from_bits, log_odds, log_sum, to_bits
from genfast.boltzmann._dense_path import DensePath, base_fields
from genfast.boltzmann._enumerate import MAX_UNITS
from genfast.boltzmann._graph import Graph
from genfast.boltzmann._refuse import refuse_gradient
from genfast.boltzmann._schedules import positive, schedule


class SparseBoltzmannMachine(Configured):
    r"""A Boltzmann machine of n visible units whose couplings are the edges of a graph.

    .. math::
        E(s) = -\sum_{(i, j)} w_{ij} s_i s_j - c \cdot s, \qquad p(s) = e^{-E(s) / T} / Z

    summed over edges, each once, with units that are 0 or 1 (`values="01"`) or -1 or 1 (`values="pm1"`). That is
    `BoltzmannMachine` with a J that is zero off the edges, and its conventions; memory and work grow with the edges
    alone. A greedy colouring, made once, tells which units are drawn together (`genfast.ops.ising_gibbs`).

    **Parameters.** `weights` (w) `[n_edges]`, in the order of `edges`, and `bias` (c) `[n_units]`. The gradient of
    -log p in a weight is (<s_i s_j> of the model - <s_i s_j> of the data) / T.

    Args:
        n_units: number of units.
        edges: pairs of units `[n_edges, 2]`, each pair once; kept in ascending order.
        values: "01" or "pm1".
        temperature: T > 0, of the distribution that the machine is; methods that sample take another one.
        init_std: standard deviation of the normal that the weights start from (biases start at 0).
        generator: draws the initial weights; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: edges are no integers.
        ValueError: n_units is no positive integer, an edge joins no two units or comes twice, values is another word,
            T <= 0, or init_std < 0.

    Source:
        Ackley, Hinton and Sejnowski 1985, "A learning algorithm for Boltzmann machines".

    Example:
        >>> machine = SparseBoltzmannMachine(6, [(i, (i + 1) % 6) for i in range(6)], values="pm1")
        >>> v = torch.ones(32, 6)
        >>> machine.pcd_loss(v, k=2).backward()
        >>> machine.weights.grad.shape
        torch.Size([6])
        >>> machine.sample(4, n_steps=50).shape
        torch.Size([4, 6])
    """

    edges: Tensor
    row_ptr: Tensor
    columns: Tensor
    edge_of: Tensor
    colours: Tensor
    chains: Tensor
    n_hidden = 0

    def __init__(
        self,
        n_units: int,
        edges: Tensor | Sequence[Sequence[int]],
        *,
        values: Values = "01",
        temperature: float = 1.0,
        init_std: float = 0.01,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.init_std = number("init_std", init_std, 0, math.inf)
        self.n_units = self.n_visible = integer("n_units", n_units)
        if values not in ("01", "pm1"):
            raise ValueError(f"values: got {values!r}, want '01' or 'pm1'")
        self.values: Values = values
        self.temperature = temperature
        self._graph = Graph.of(edges, n_units)
        for name, x in self._graph.tensors(device).items():
            self.register_buffer(name, x)
        self.weights = nn.Parameter(torch.empty(len(self._graph.edges), device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(n_units, device=device, dtype=dtype))
        self.register_buffer("chains", torch.empty(0, n_units, device=device, dtype=dtype))
        #: Whether the losses check themselves and the parameters (a synchronisation on CUDA). Inside torch.compile
        #: nothing is checked.
        self.nonfinite_check = True
        self._n_losses = 0
        self.reset_parameters(generator=generator)

    @torch.no_grad()
    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights again, set the biases to 0 and forget the persistent chains."""
        nn.init.normal_(self.weights, 0.0, self.init_std, generator=generator)
        nn.init.zeros_(self.bias)
        for name, x in self._graph.tensors().items():  # a machine that was made on the meta device has none yet
            getattr(self, name).copy_(x)
        self.chains = self.chains.new_empty(0, self.n_units)

    def saved_options(self) -> dict[str, Any]:
        """What a state dict must have in common with the machine; its graph is part of the state."""
        return {"n_units": self.n_units, "values": self.values, "temperature": self.temperature}

    def extra_repr(self) -> str:
        """Sizes and options, for the printed module."""
        sizes = f"n_units={self.n_units}, n_edges={self.n_edges}, n_colours={self.n_colours}, values={self.values!r}"
        return f"{sizes}, temperature={self.temperature:g}, n_chains={self.n_chains}"

    @property
    def temperature(self) -> float:
        """T of p(s) = exp(-E(s) / T) / Z."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = positive("temperature", value)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return self.edges.shape[0]

    @property
    def n_colours(self) -> int:
        """Number of colours, which is that of the steps of a sweep."""
        return int(self.colours.max()) + 1

    @property
    def J(self) -> Tensor:  # noqa: N802
        """The couplings as a dense symmetric `[n, n]`, differentiable in `weights`; for small machines."""
        i, j = self.edges.T
        upper = self.weights.new_zeros(self.n_units, self.n_units).index_put((i, j), self.weights)
        return upper + upper.mT

    # -- energies and likelihoods -------------------------------------------------------------------------------------

    def energy(self, s: Tensor) -> Tensor:
        """E(s) of s `[..., n_units]`; returns `[...]`. Means of independent units give the energy expected.

        Raises:
            ValueError: the last dimension of s is not n_units, or values are outside the range of the states.
        """
        s = self._checked("s", s, means=True)
        return -(self._bonds(s) @ self.weights + s @ self.bias)

    def free_energy(self, v: Tensor) -> Tensor:
        """E(v) / T, so that p(v) = exp(-F(v)) / Z: no unit is hidden. Takes and returns what `energy` does."""
        return self.energy(v) / self.temperature

    def fields(self, s: Tensor) -> Tensor:
        """J s + c: `[..., n_units]` to `[..., n_units]`."""
        s = self._checked("s", s, means=True)
        rows = torch.repeat_interleave(self.row_ptr.diff(), output_size=len(self.columns))
        terms = s[..., self.columns] * self.weights[self.edge_of]
        return self.bias.expand(s.shape).index_add(-1, rows, terms)

    def conditional(self, s: Tensor, *, temperature: float | None = None) -> Tensor:
        """The probability of each unit's upper state (1) given all others, `[..., n_units]`."""
        return torch.sigmoid(log_odds(self.fields(s), self.values) / (temperature or self.temperature))

    def log_partition(self) -> Tensor:
        """The exact log Z, by enumeration of all states, in float64; differentiable to any order.

        Raises:
            ValueError: the machine has more than 25 units.
        """
        if self.n_units > MAX_UNITS:
            raise ValueError(
                f"log_partition: the machine has {self.n_units} units, want at most {MAX_UNITS} for exact enumeration; "
                "genfast.boltzmann.ais_log_z estimates log Z of larger machines"
            )
        return log_sum(self.J.double() / self.temperature, self.bias.double()[None] / self.temperature, self.values)[0]

    def log_prob(self, v: Tensor, *, log_partition: Tensor | float | None = None) -> Tensor:
        """The log-likelihood -E(v) / T - log Z of states v `[..., n_units]`; returns `[...]`.

        A log Z that is given as a constant says nothing about its gradient: asking for one then raises.

        Raises:
            ValueError: v is not made of states, or more than 25 units are to be enumerated.
        """
        value = -self.energy(self._checked("v", v)) / self.temperature
        if log_partition is None:
            log_partition = self.log_partition()
        elif not (isinstance(log_partition, Tensor) and is_differentiated(log_partition)):
            value = refuse_gradient(value, _CONSTANT_LOG_Z)
        return value - (log_partition.to(value.dtype) if isinstance(log_partition, Tensor) else log_partition)

    def pseudo_likelihood(self, v: Tensor) -> Tensor:
        """The pseudo-log-likelihood sum_i log p(v_i | v_-i) of v `[..., n_units]`; returns `[...]`, differentiable.

        Source:
            Besag 1975, "Statistical analysis of non-lattice data".
        """
        v = self._checked("v", v)
        signs = 2 * to_bits(v, self.values) - 1
        return F.logsigmoid(signs * log_odds(self.fields(v), self.values) / self.temperature).sum(-1)

    def pseudo_likelihood_loss(self, v: Tensor) -> Tensor:
        """-mean of `pseudo_likelihood(v)`, to be minimised: consistent, and without any sampling."""
        if v.numel() == 0:
            raise ValueError("v: got no rows, want at least one")
        return self._watched(-self.pseudo_likelihood(v).mean())

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
        """Run chains of n_gibbs_steps sweeps, colour by colour, in one call.

        Args:
            s: states to start from, `[..., n_units]`, one chain a row, in any dtype.
            n_gibbs_steps: number of sweeps.
            temperature: T, a number, one a chain, or a schedule `[n_gibbs_steps, 1 or the chains]`; the machine's own
                by default.
            clamp: boolean mask of units that keep their value, `[n_units]` or that of s.
            generator: draws the seed of the chains; the default generator otherwise.
            seed: the seed itself, instead of a generator: the same seed gives the same chains.
            first_chain: number of the first row among all chains of a run.
            first_step: number of the first sweep among all sweeps of a run.

        Returns:
            The last states, in the shape and dtype of s. See `genfast.ops.ising_gibbs`.
        """
        real("s", s, self.n_units)
        try:
            return self._sweeps(
                s, self.weights, self.bias, n_sweeps=n_gibbs_steps, clamp=clamp, generator=generator, seed=seed,
                temperature=self.temperature if temperature is None else temperature, first_chain=first_chain,
                first_step=first_step,
            )  # fmt: skip
        except ValueError:
            self._checked("s", s)  # says more, where it is s
            if self.nonfinite_check:
                check_finite(self)  # or a parameter
            raise

    @torch.no_grad()
    def initial_states(self, n_chains: int, *, generator: torch.Generator | None = None) -> Tensor:
        """States `[n_chains, n_units]` of independent units in the fields of their biases alone."""
        integer("number of chains", n_chains, at_least=0)
        p = torch.sigmoid(log_odds(self.bias.detach(), self.values) / self.temperature).expand(n_chains, -1)
        at = p.device if generator is None else generator.device
        u = torch.rand(p.shape, generator=generator, device=at, dtype=p.dtype).to(p.device)
        return from_bits((u < p).to(p.dtype), self.values)

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
        """Draw states `[n_samples, n_units]` from chains of n_steps sweeps.

        Args:
            n_samples: number of chains, and so of samples.
            n_steps: sweeps a chain.
            start: states `[n_samples, n_units]` to start from; by default `initial_states`.
            temperature: as in `gibbs`.
            clamp: boolean mask of units that keep the value they have in `start`.
            generator: source of randomness; the default generator otherwise.

        Raises:
            ValueError: `start` does not fit, or `clamp` comes without `start`.
        """
        s = self._start(n_samples, start, clamp, generator)
        return self.gibbs(s, n_steps, temperature=temperature, clamp=clamp, generator=generator)

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

        Returns:
            The last states `[n_samples, n_units]`, and their energies `[n_samples]`.

        Source:
            Kirkpatrick, Gelatt and Vecchi 1983, "Optimization by simulated annealing".
        """
        ladder = schedule("temperatures", temperatures).repeat_interleave(integer("n_sweeps", n_sweeps))
        s = self._start(n_samples, start, clamp, generator)
        if len(ladder):
            ladder = ladder.to(s.device)[:, None]
            s = self.gibbs(s, len(ladder), temperature=ladder, clamp=clamp, generator=generator)
        return s, self.energy(s)

    # -- training -----------------------------------------------------------------------------------------------------

    @property
    def n_chains(self) -> int:
        """Number of persistent chains; 0 before the first `pcd_loss` or `reset_chains`."""
        return self.chains.shape[0]

    @torch.no_grad()
    def reset_chains(self, n_chains: int, *, generator: torch.Generator | None = None) -> None:
        """Start n_chains new persistent chains from `initial_states`."""
        self.chains = self.initial_states(n_chains, generator=generator)

    @torch.no_grad()
    def init_from_data(self, v: Tensor) -> None:
        """Set the biases to the rates of data v `[N, n_units]`: the best independent model.

        Rates are kept 1 / (N + 1) away from 0 and 1.
        """
        rows = self._checked("v", v, means=True).reshape(-1, self.n_units)
        fields = base_fields(rows, self.n_units, self.bias, self.values)
        self.bias.copy_(self.temperature * fields)

    def contrastive_loss(self, v_data: Tensor, v_model: Tensor) -> Tensor:
        """The loss (mean E(v_data) - mean E(v_model)) / T of rows `[..., n_units]`, held constant.

        Its gradient in a weight is (<s_i s_j>_model - <s_i s_j>_data) / T, in a bias (<s_i>_model - <s_i>_data) / T.
        The value itself is not the likelihood and need not fall.

        Raises:
            ValueError: a shape does not fit, there are no rows, or values are out of the states' range.
            NonFiniteError: the loss or a parameter is not finite (where `nonfinite_check` is set).
        """
        sides = []
        for name, v in (("v_data", v_data), ("v_model", v_model)):
            rows = self._checked(name, v.detach(), means=True).reshape(-1, self.n_units)
            if not len(rows):
                raise ValueError(f"{name}: got no rows, want at least one")
            sides.append((self._bonds(rows).mean(0), rows.mean(0)))
        (bonds, units), (model_bonds, model_units) = sides
        loss = (model_bonds - bonds) @ self.weights + (model_units - units) @ self.bias
        return self._watched(loss / self.temperature)

    def cd_loss(self, v: Tensor, k: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of contrastive divergence, CD-k: the chains start from the data v `[N, n_units]`.

        Source:
            Hinton 2002, "Training products of experts by minimizing contrastive divergence".
        """
        v = self._checked("v", v)
        return self.contrastive_loss(v, self.gibbs(v.detach(), integer("k", k), generator=generator))

    def pcd_loss(self, v: Tensor, k: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of persistent contrastive divergence, PCD-k.

        The chains of the buffer `chains` run k sweeps and are kept for the next call. The first call starts as many
        as v has rows; `reset_chains` chooses another number.

        Args:
            v: data `[N, n_units]`: states, or means of such.
            k: number of sweeps.
            generator: source of randomness; the default generator otherwise.

        Returns:
            A scalar; `backward()` puts the gradient on `weights` and `bias`. See `contrastive_loss`.

        Source:
            Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient".
        """
        v = self._checked("v", v, means=True)
        integer("k", k)
        if self.n_chains == 0:
            self.reset_chains(v.numel() // self.n_units, generator=generator)
        model = self.gibbs(self.chains, k, generator=generator)
        loss = self.contrastive_loss(v, model)
        self.chains.copy_(model)
        return loss

    def check_finite(self, step: int | None = None) -> None:
        """Raise `NonFiniteError`, naming the step and the parameter, where a parameter is NaN or infinite."""
        check_finite(self, step=step)

    def annealing_path(self, base: Tensor | None = None) -> "SparsePath":
        """The path of annealed importance sampling from independent units to this machine, as it is now.

        Args:
            base: data `[N, n_units]`, whose rates the units have at the start; log-odds of the upper states
                `[n_units]`; None for fair coins. See `genfast.boltzmann.ais_log_z`.
        """
        weights, bias = self.weights.detach() / self.temperature, self.bias.detach() / self.temperature
        return SparsePath(
            weights, bias, base_fields(base, self.n_units, self.bias, self.values), self.n_units, self.values, self
        )

    # -- internals ----------------------------------------------------------------------------------------------------

    def _checked(self, name: str, s: Tensor, *, means: bool = False) -> Tensor:
        return checked(name, s, self.n_units, self.bias.dtype, self.values, means=means)

    def _bonds(self, s: Tensor) -> Tensor:
        """s_i s_j of every edge: `[..., n_edges]`."""
        return s[..., self.edges[:, 0]] * s[..., self.edges[:, 1]]

    def _sweeps(self, s: Tensor, weights: Tensor, bias: Tensor, **options: Any) -> Tensor:
        # every edge has one weight: what would be looked for is so
        both = weights.detach()[self.edge_of]
        return ops.ising_gibbs(
            s, self.row_ptr, self.columns, both, bias.detach(), self.colours, values=self.values, validate=False,
            **options,
        )  # fmt: skip

    def _start(self, n: int, start: Tensor | None, clamp: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if start is None:
            if clamp is not None:
                raise ValueError("clamp: got a mask without start, want start to hold the clamped values")
            return self.initial_states(n, generator=generator)
        start = self._checked("start", start)
        if start.shape != (n, self.n_units):
            raise ValueError(f"start: got shape {list(start.shape)}, want [n_samples, n_units] = {[n, self.n_units]}")
        return start

    def _watched(self, loss: Tensor) -> Tensor:
        self._n_losses += 1
        if self.nonfinite_check and has_values(loss):
            value = loss.item()
            if not math.isfinite(value):
                check_finite(self, step=self._n_losses, loss=value)
        return loss

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "chains")
        if isinstance(saved, Tensor) and saved.ndim == 2 and saved.shape[1] == self.n_units:
            self.chains = self.chains.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if has_values(self.edges):
            self._graph = Graph.of(self.edges, self.n_units)


@dataclasses.dataclass(frozen=True)
class SparsePath(DensePath):
    """The path of `DensePath` where J holds the weights of edges `[n_edges]`."""

    machine: SparseBoltzmannMachine

    def log_weight(self, state: Tensor, beta0: float, beta1: float) -> Tensor:
        """log f_beta1 - log f_beta0 at the states: float64 `[N]`."""
        s = state.double()
        bonds = self.machine._bonds(s) @ self.J.double()  # noqa: SLF001
        return (beta1 - beta0) * (bonds + s @ (self.bias.double() - self.base))

    def step(self, state: Tensor, beta: float, *, seed: int | Tensor, first_run: int = 0, step: int = 0) -> Tensor:
        """A sweep that leaves f_beta invariant."""
        bias = (self.bias.double() * beta + self.base * (1 - beta)).to(self.bias.dtype)
        return self.machine._sweeps(  # noqa: SLF001
            state, self.J * beta, bias, temperature=1.0, seed=seed, first_chain=first_run, first_step=step
        )


_CONSTANT_LOG_Z = (
    "log_prob: log_partition was given as a constant, so the gradient in the parameters is unknown; leave "
    "log_partition out (exact, for a small machine), or call log_prob under torch.no_grad()"
)
