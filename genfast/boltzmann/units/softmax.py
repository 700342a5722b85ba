"""Units of several classes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genfast._arguments import integer
from genfast.boltzmann._states import one_hot_values, uniform
from genfast.boltzmann.units._layer import Layer, Marked, column, margin


class Softmax(Marked, Layer):
    """n units of n_classes classes each (Potts units), as one-hot vectors beside each other: size = n * n_classes.

    A(u) = sum over the units of log sum_c e^u_c; the mean is the softmax of a unit's inputs. Adding the same number to
    all inputs of a unit changes nothing: `RBM.zero_sum_` chooses, among the weights that make the same distribution,
    those that sum to 0 over the classes.

    Args:
        n: number of units.
        n_classes: classes of each.

    Example:
        >>> layer = Softmax(2, 3)
        >>> x = layer.one_hot(torch.tensor([[0, 2]]))
        >>> x, layer.labels(x)
        (tensor([[1., 0., 0., 0., 0., 1.]]), tensor([[0, 2]]))
    """

    def __init__(self, n: int, n_classes: int) -> None:
        super().__init__(n)
        self.n_classes = integer("n_classes", n_classes, at_least=2)
        self.size = n * n_classes
        self.n_states = n_classes**n
        self.values = one_hot_values(n_classes)

    def one_hot(self, labels: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """States `[..., size]` of the classes' numbers `[..., n]`."""
        if labels.is_floating_point() or labels.shape[-1:] != (self.n,):
            raise ValueError(f"labels: got {labels.dtype} {list(labels.shape)}, want integers [..., {self.n}]")
        low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
        if low < 0 or high >= self.n_classes:
            raise ValueError(f"labels: got classes {low} to {high}, want 0 to {self.n_classes - 1}")
        return self._vectors(labels.long(), dtype)

    def _vectors(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        return functional.one_hot(labels, self.n_classes).to(dtype).flatten(-2)

    def labels(self, x: Tensor) -> Tensor:
        """The classes' numbers `[..., n]` of states `[..., size]`, the largest where they are probabilities."""
        return self._units(x).argmax(-1)

    def _units(self, x: Tensor) -> Tensor:
        units: Tensor = x.unflatten(-1, (self.n, self.n_classes))
        return units

    def log_normaliser(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The sum of the units' logsumexp(beta u)."""
        return self._units(column(beta) * inputs).logsumexp(-1).sum(-1)

    def mean(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """The softmax of each unit's beta u."""
        return self._units(column(beta) * inputs).softmax(-1).flatten(-2)

    def variance(self, inputs: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
        """p (1 - p) of each class."""
        p = self.mean(inputs, beta=beta)
        return p * (1 - p)

    def mode(self, inputs: Tensor) -> Tensor:
        """The class of the largest input of each unit."""
        return self._vectors(self.labels(inputs), inputs.dtype)

    @torch.no_grad()
    def sample(self, inputs: Tensor, *, beta: float | Tensor = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draws of each unit's class."""
        return self.drawn(self.mean(inputs, beta=beta), generator)

    def drawn(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """One-hot states of which x are the probabilities; such states stay as they are, and NaN stays NaN."""
        ends = self._units(x).cumsum(-1)  # the class is the first one that ends beyond a uniform part of the sum
        at = uniform(ends[..., :1].shape, generator, x) * ends[..., -1:]
        index = (ends <= at).sum(-1).clamp(max=self.n_classes - 1)
        return self._vectors(index, x.dtype).add_(x, alpha=0)

    def inputs_of_mean(self, mean: Tensor) -> Tensor:
        """The logs, with sum 0 in each unit."""
        logs = self._units(mean.log())
        return (logs - logs.mean(-1, keepdim=True)).flatten(-2)

    def _inner_mean(self, rows: Tensor) -> Tensor:
        p = rows.mean(0).clamp(min=margin(rows))
        return (self._units(p) / self._units(p).sum(-1, keepdim=True)).flatten(-2)

    def states(self, index: Tensor) -> Tensor:
        """The states of these numbers, of which unit 0 is the lowest digit to the base n_classes."""
        powers = torch.tensor([self.n_classes**i for i in range(self.n)], device=index.device)
        return self._vectors(index[:, None] // powers % self.n_classes, torch.float64)

    def saved_options(self) -> dict[str, Any]:
        """Number of units and classes."""
        return {"n": self.n, "n_classes": self.n_classes}

    def extra_repr(self) -> str:
        """Both numbers."""
        return f"{self.n}, n_classes={self.n_classes}"
