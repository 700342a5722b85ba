"""Layers of different kinds beside each other."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfast._arguments import real
from genfast.boltzmann._states import REALS
from genfast.boltzmann.units._layer import Layer, Marked


class Partitioned(Marked, Layer):
    """Several layers beside each other as one: the states of the first one, then those of the second, ...

    As the first layer of a multimodal machine, e.g. of images and their labels:
    `Partitioned([Binary(784), Softmax(1, 10)])`.

    Args:
        layers: the parts.

    Raises:
        TypeError: a part is no layer.
        ValueError: there is none.

    Example:
        >>> layer = Partitioned([Binary(2), Gaussian(1)])
        >>> [part.shape for part in layer.split(torch.zeros(5, 3))]
        [torch.Size([5, 2]), torch.Size([5, 1])]
    """

    values = REALS

    def __init__(self, layers: Sequence[Layer]) -> None:
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{i}]: got {type(layer).__name__}, want a layer of genfast.boltzmann.units")
        super().__init__(sum(layer.n for layer in layers))
        self.parts = nn.ModuleList(layers)
        self.sizes = [layer.size for layer in layers]
        self.size = sum(self.sizes)
        counts = [layer.n_states for layer in layers]
        self.n_states = math.prod(c for c in counts if c is not None) if None not in counts else None
        bits = {layer.bits for layer in layers}
        self.bits = bits.pop() if len(bits) == 1 else None

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.parts)  # type: ignore[arg-type]

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts of x `[..., size]`."""
        return tuple(torch.split(x, self.sizes, -1))

    def _each(self, x: Tensor, method: Callable[[Layer, Tensor], Tensor]) -> list[Tensor]:
        return [method(layer, part) for layer, part in zip(self, self.split(x), strict=True)]

    def _join(self, x: Tensor, method: Callable[[Layer, Tensor], Tensor]) -> Tensor:
        return torch.cat(self._each(x, method), -1)

    def energy(self, x: Tensor) -> Tensor:
        """The sum of the parts'."""
        return torch.stack(self._each(x, lambda layer, part: layer.energy(part))).sum(0)

    def log_normaliser(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The sum of the parts'."""
        return torch.stack(self._each(inputs, lambda layer, part: layer.log_normaliser(part, beta=beta))).sum(0)

    def mean(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """Those of the parts."""
        return self._join(inputs, lambda layer, part: layer.mean(part, beta=beta))

    def variance(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """Those of the parts."""
        return self._join(inputs, lambda layer, part: layer.variance(part, beta=beta))

    def mode(self, inputs: Tensor) -> Tensor:
        """Those of the parts."""
        return self._join(inputs, lambda layer, part: layer.mode(part))

    def sample(self, inputs: Tensor, *, beta: float | Tensor = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Those of the parts."""
        return self._join(inputs, lambda layer, part: layer.sample(part, beta=beta, generator=generator))

    def energy_grads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Those of the parts."""
        return sum((layer.energy_grads(part) for layer, part in zip(self, self.split(x), strict=True)), ())

    def statistics(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Those of the parts."""
        found = [layer.statistics(part) for layer, part in zip(self, self.split(inputs), strict=True)]
        return torch.cat([mean for mean, _ in found], -1), sum((grads for _, grads in found), ())

    def inputs_of_mean(self, mean: Tensor) -> Tensor:
        """Those of the parts."""
        return self._join(mean, lambda layer, part: layer.inputs_of_mean(part))

    def init_from_data(self, x: Tensor) -> Tensor:
        """Fit each part."""
        return self._join(self.rows(x), lambda layer, part: layer.init_from_data(part))

    def _inner_mean(self, rows: Tensor) -> Tensor:
        return self._join(rows, lambda layer, part: layer._inner_mean(part))  # noqa: SLF001

    def drawn(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """States of which x are the means."""
        return self._join(x, lambda layer, part: layer.drawn(part, generator))

    def states(self, index: Tensor) -> Tensor:
        """The states of these numbers, of which the first part's number is the lowest digit."""
        columns = []
        for layer in self:
            columns.append(layer.states(index % layer.n_states if layer.n_states else index))
            index = index // (layer.n_states or 1)
        return torch.cat(columns, -1)

    def check(self, name: str, x: Tensor, dtype: torch.dtype, *, states: bool = False) -> Tensor:
        """Each part's check; the message names the part as a slice of the argument."""
        real(name, x, self.size)
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        given = self.split(x)
        parts = [
            layer.check(f"{name}[..., {end - layer.size}:{end}]", part, dtype, states=states)
            for layer, part, end in zip(self, given, ends, strict=True)
        ]
        return x if all(a is b for a, b in zip(parts, given, strict=True)) else torch.cat(parts, -1)

    def saved_options(self) -> dict[str, Any]:
        """The kinds of the parts, which check their own."""
        return {"parts": [type(layer).__name__ for layer in self], "sizes": self.sizes}

    def extra_repr(self) -> str:
        """Nothing: the parts are printed."""
        return ""
