"""The general machine's parameters, energies and likelihoods."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from genfast._arguments import integer, number
from genfast._module import Configured
from genfast._tracing import is_differentiated
from genfast.boltzmann import _dense
from genfast.boltzmann._dense import Values, checked, log_odds, log_sum
from genfast.boltzmann._enumerate import MAX_UNITS
from genfast.boltzmann._refuse import refuse_gradient
from genfast.boltzmann._schedules import positive


class DenseEnergy(Configured):
    """What a `BoltzmannMachine` is: its parameters and the distribution that they define."""

    chains: Tensor
    #: Number of the first row of a batch and of `chains`: processes that share a run number theirs on.
    first_chain = 0

    def __init__(
        self,
        n_visible: int,
        n_hidden: int = 0,
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
        self.n_visible = integer("n_visible", n_visible)
        self.n_hidden = integer("n_hidden", n_hidden, at_least=0)
        self.n_units = n = n_visible + n_hidden
        if values not in ("01", "pm1"):
            raise ValueError(f"values: got {values!r}, want '01' or 'pm1'")
        self.values: Values = values
        self.temperature = temperature
        self.couplings = nn.Parameter(torch.empty(n, n, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(n, device=device, dtype=dtype))
        self.register_buffer("chains", torch.empty(0, n, device=device, dtype=dtype))
        #: Whether the losses check themselves and the parameters (a synchronisation on CUDA). Inside torch.compile
        #: nothing is checked.
        self.nonfinite_check = True
        self._n_losses = 0
        self.reset_parameters(generator=generator)

    @torch.no_grad()
    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the initial couplings again, set the biases to 0 and forget the persistent chains."""
        nn.init.normal_(self.couplings, 0.0, self.init_std, generator=generator)
        self.couplings.triu_(1)
        nn.init.zeros_(self.bias)
        self.chains = self.chains.new_empty(0, self.n_units)

    def saved_options(self) -> dict[str, Any]:
        """What a state dict must have in common with the machine."""
        names = ("n_visible", "n_hidden", "values", "temperature")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        """Sizes and options, for the printed module."""
        sizes = f"n_visible={self.n_visible}, n_hidden={self.n_hidden}, values={self.values!r}"
        return f"{sizes}, temperature={self.temperature:g}, n_chains={self.n_chains}"

    @property
    def temperature(self) -> float:
        """T of p(s) = exp(-E(s) / T) / Z."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = positive("temperature", value)

    @property
    def J(self) -> Tensor:  # noqa: N802
        """The couplings, `[n, n]`: symmetric, zero on the diagonal, differentiable in `couplings`."""
        return _dense.symmetric(self.couplings)

    # -- energies and likelihoods -------------------------------------------------------------------------------------

    def energy(self, s: Tensor) -> Tensor:
        """E(s) = -s'J s / 2 - c.s of all units, s `[..., n]`; returns `[...]`, float32 for half types.

        Numbers between the two values are taken as expectations of independent units, and E as the energy expected.

        Raises:
            ValueError: the last dimension of s is not n, or values are outside the range of the states.
        """
        J, bias = self._wide()
        s = self._checked("s", s, self.n_units, means=True)
        return -((_dense.matmul(s, J) / 2 + bias) * s).sum(-1)

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -log sum_h exp(-E(v, h) / T), so that p(v) = exp(-F(v)) / Z; without hidden units E(v) / T.

        The sum over 2^n_hidden states is exact and differentiable to any order.

        Args:
            v: states `[..., n_visible]`; without hidden units, expectations too, as in `energy`.

        Returns:
            `[...]`.

        Raises:
            ValueError: more than 25 hidden units.
        """
        if not self.n_hidden:
            return self.energy(self._checked("v", v, self.n_visible, means=True)) / self.temperature
        self._enumerable("free_energy", self.n_hidden, "hidden units", "energy(s) of v and sampled hidden units")
        v = self._checked("v", v, self.n_visible)
        J, bias, nv = *self._scaled(), self.n_visible
        rows = v.reshape(-1, nv)
        fields = _dense.matmul(rows, J[:nv])
        own = ((fields[:, :nv] / 2 + bias[:nv]) * rows).sum(1)
        free = -(own + log_sum(J[nv:, nv:], fields[:, nv:] + bias[nv:], self.values).to(own.dtype))
        return free.reshape(v.shape[:-1])

    def log_partition(self) -> Tensor:
        """The exact log Z, by enumeration of all states, in float64; differentiable to any order.

        Raises:
            ValueError: the machine has more than 25 units.
        """
        self._enumerable("log_partition", self.n_units, "units", "genfast.boltzmann.ais_log_z, an estimate")
        J, bias = self._scaled()
        return log_sum(J, bias[None], self.values)[0]

    def log_prob(self, v: Tensor, *, log_partition: Tensor | float | None = None) -> Tensor:
        """The log-likelihood log p(v) = -F(v) - log Z of v `[..., n_visible]`; returns `[...]`.

        Its gradient is that of exact maximum likelihood. A log Z that is given as a constant says nothing about the
        gradient of log Z: asking for a gradient in the parameters then raises.

        Args:
            v: visible states.
            log_partition: log Z where it is known; computed exactly otherwise (see `log_partition`).

        Raises:
            ValueError: v is not made of states, or more than 25 units are to be enumerated.
        """
        v = self._checked("v", v, self.n_visible)
        if log_partition is None:
            log_partition = self.log_partition()
            free = self.free_energy(v)
        else:
            free = self.free_energy(v)
            if not (isinstance(log_partition, Tensor) and is_differentiated(log_partition)):
                free = refuse_gradient(free, _CONSTANT_LOG_Z)
        return -free - (log_partition.to(free.dtype) if isinstance(log_partition, Tensor) else log_partition)

    def conditional(self, s: Tensor, *, temperature: float | Tensor | None = None) -> Tensor:
        """The probability of each unit's upper state (1) given all others, `[..., n]` to `[..., n]`; one product."""
        J, bias = self._wide()
        fields = _dense.matmul(self._checked("s", s, self.n_units), J) + bias
        T = self._per_chain(temperature)
        return torch.sigmoid(log_odds(fields, self.values) / (T.unsqueeze(-1) if isinstance(T, Tensor) else T))

    # -- internals ----------------------------------------------------------------------------------------------------

    def _wide(self) -> tuple[Tensor, Tensor]:
        """J and bias, in float32 at least."""
        dtype = self._dtype()
        return self.J.to(dtype), self.bias.to(dtype)

    def _scaled(self) -> tuple[Tensor, Tensor]:
        """J / T and bias / T, in float32 at least."""
        J, bias = self._wide()
        return (J, bias) if self.temperature == 1 else (J / self.temperature, bias / self.temperature)

    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.bias.dtype, torch.float32)

    def _checked(self, name: str, s: Tensor, n_units: int, *, means: bool = False) -> Tensor:
        return checked(name, s, n_units, self._dtype(), self.values, means=means)

    def _per_chain(self, temperature: float | Tensor | None) -> float | Tensor:
        """The temperature of a call: the machine's own, another number, or a tensor as it is."""
        if temperature is None:
            return self.temperature
        return temperature if isinstance(temperature, Tensor) else positive("temperature", temperature)

    @staticmethod
    def _enumerable(name: str, count: int, what: str, instead: str) -> None:
        if count > MAX_UNITS:
            raise ValueError(
                f"{name}: the machine has {count} {what}, want at most {MAX_UNITS} for exact enumeration; "
                f"take {instead}"
            )


_CONSTANT_LOG_Z = (
    "log_prob: log_partition was given as a constant, so the gradient in the parameters is unknown; leave "
    "log_partition out (exact, for a small machine), or call log_prob under torch.no_grad()"
)
