"""What every kind of units offers."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genfast._arguments import integer
from genfast._module import Configured, Module
from genfast.boltzmann._states import Values, checked


class Layer(Module):
    r"""A layer of independent units of one kind, given their inputs.

    With inputs u (biases and what other layers add to them) the states x of the layer have the density

    .. math::
        p(x | u) = \exp(\beta (u \cdot x - E_0(x)) - A(u)), \qquad
        A(u) = \log \int \exp(\beta (u \cdot x - E_0(x))) dx

    (a sum over x for discrete units), and A is the cumulant generating function: its derivatives are the mean and the
    variance of x at beta = 1. A layer knows the kind of its states and E_0, with the parameters that E_0 has; the
    biases belong to the machine.

    Attributes:
        n: number of units.
        size: length of a vector of states.
        n_states: number of states of the layer; None where they are not discrete.
        bits: (scale, offset) where states are scale * b + offset with b of 0 and 1; None otherwise.
    """

    n: int
    size: int
    n_states: int | None = None
    bits: tuple[float, float] | None = None
    values: Values

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = integer("n", n)
        self.size = n

    def forward(self, x: Tensor, method: str = "log_normaliser") -> Tensor:
        """A method by its name: what `torch.func.functional_call` calls."""
        out: Tensor = getattr(self, method)(x)
        return out

    def energy(self, x: Tensor) -> Tensor:
        """E_0(x) of states x `[..., size]`, without the biases' part; returns `[...]`."""
        return x.new_zeros(x.shape[:-1])

    def log_normaliser(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """A(u), summed over the units, of inputs `[..., size]`; returns `[...]`.

        `beta` is a number, or a tensor `[...]` with one for each row; the same holds for the other methods.
        """
        raise NotImplementedError

    def mean(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The mean of x given the inputs `[..., size]`, of the same shape."""
        raise NotImplementedError

    def variance(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The variance of each component of x given the inputs `[..., size]`, of the same shape."""
        raise NotImplementedError

    def mode(self, inputs: Tensor) -> Tensor:
        """The most likely x given the inputs `[..., size]`, of the same shape."""
        raise NotImplementedError

    def sample(self, inputs: Tensor, *, beta: float | Tensor = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws of x given the inputs `[..., size]`, of the same shape and dtype; without a gradient."""
        raise NotImplementedError

    def energy_grads(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the sum of E_0 over rows x `[N, size]`, in the layer's own parameters."""
        return _own_grads(self, x, "energy")

    def statistics(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The means of rows of inputs `[N, size]`, and the gradients of the sum of A in the layer's own parameters."""
        return self.mean(inputs), _own_grads(self, inputs, "log_normaliser")

    def inputs_of_mean(self, mean: Tensor) -> Tensor:
        """The inputs u whose mean is the given one, `[..., size]`; finite for means inside of the states' range."""
        raise NotImplementedError

    @torch.no_grad()
    def inputs_of_data(self, x: Tensor) -> Tensor:
        """The inputs `[size]` whose mean is that of the data x `[N, size]`, kept off the ends of discrete units."""
        return self.inputs_of_mean(self._inner_mean(self.rows(x)))

    def init_from_data(self, x: Tensor) -> Tensor:
        """Fit the layer's own parameters to the data x `[N, size]`, and return the fitting biases `[size]`."""
        return self.inputs_of_data(x)

    def states(self, index: Tensor) -> Tensor:
        """The states of the numbers 0 to n_states - 1 in `index [K]`, of a discrete layer: float64 `[K, size]`."""
        raise NotImplementedError(f"{type(self).__name__}: its states are not discrete")

    def drawn(self, x: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """States of which x are the means; x itself where the values of x are states as they are."""
        return x

    def check(self, name: str, x: Tensor, dtype: torch.dtype, *, states: bool = False) -> Tensor:
        """x `[..., size]` in dtype, checked to be states of this kind or, but for `states`, means of such.

        On the CPU others are refused; on a GPU and inside of transforms they become NaN.

        Raises:
            TypeError: no tensor of real numbers.
            ValueError: another last dimension, or other values.
        """
        return checked(name, x, self.size, dtype, self.values, states=states)

    def rows(self, x: Tensor) -> Tensor:
        """Data x `[..., size]` as rows of the default or the layer's dtype; at least one."""
        dtype = next((p.dtype for p in self.parameters()), x.dtype if x.is_floating_point() else torch.float32)
        rows = self.check("v", x, dtype).reshape(-1, self.size)
        if rows.shape[0] == 0:
            raise ValueError("v: got no rows, want at least one")
        return rows

    def _inner_mean(self, rows: Tensor) -> Tensor:
        return rows.mean(0)

    def extra_repr(self) -> str:
        """The number of units, for the printed module."""
        return str(self.n)


class Marked(Configured):
    """The mark of a kind of units in a machine's state dict, without which no state is loaded.

    0/1 units are what a machine has where nothing else is said, and leave none.
    """

    n: int

    def saved_options(self) -> dict[str, Any]:
        """What a layer has in common with the one whose state it loads."""
        return {"n": self.n}

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        *args: Any,
    ) -> None:  # fmt: skip
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *args)
        key = prefix + "_extra_state"
        if key not in state_dict:
            missing_keys.append(key)


def _own_grads(layer: Layer, x: Tensor, method: str) -> tuple[Tensor, ...]:
    own = {name: p.detach().requires_grad_() for name, p in layer.named_parameters()}
    if not own:
        return ()
    with torch.enable_grad():
        value = torch.func.functional_call(layer, own, (x, method)).sum()
    return torch.autograd.grad(value, list(own.values()))


def column(beta: float | Tensor) -> float | Tensor:
    """beta as it multiplies inputs `[..., size]`."""
    return beta.unsqueeze(-1) if isinstance(beta, Tensor) and beta.dim() else beta


def log_of(beta: float | Tensor) -> float | Tensor:
    """The log of beta."""
    return beta.log() if isinstance(beta, Tensor) else math.log(beta)


def margin(rows: Tensor) -> float:
    """How far means of so many rows are kept from the ends of their range: that of one more row."""
    return 1 / (rows.shape[0] + 1)
