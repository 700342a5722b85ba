"""Greedy pretraining of a deep Boltzmann machine: layer after layer, each pair as an RBM with doubled weights.

In the machine a hidden layer gets input from below and from above; while it is trained, half of it is missing, and what
there is counts twice (Salakhutdinov and Hinton 2009). The first pair is an RBM with two copies of its visible units and
tied weights: p(h | v) = sigmoid(b + 2 v W), p(v | h) = sigmoid(a + W h). The last one has two copies of its hidden
units. One in between is an ordinary RBM with weights 2 W. A hidden layer's bias in the machine is the mean of the two
it has, as the hidden layer of one RBM and the visible one of the next: so p(h_1) of the machine is the geometric mean
of what the two RBMs say.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genfast import ops
from genfast._arguments import integer, number
from genfast.boltzmann._states import drawn, probabilities
from genfast.ops.rbm import parameter_gradients, state_product

if TYPE_CHECKING:
    from genfast.boltzmann.dbm import DeepBoltzmannMachine


class Pretraining:
    """What greedy pretraining keeps beside the machine: visible biases of all pairs but the first, and momenta."""

    def __init__(self, machine: "DeepBoltzmannMachine", *, momentum: float = 0.0) -> None:
        self.machine = machine
        self.momentum = momentum
        #: The bias of layer l as the visible layer of pair l; that of layer 0 is the machine's own.
        self.below = [b.detach() if i == 0 else torch.zeros_like(b) for i, b in enumerate(machine.biases[:-1])]
        self.velocity = [
            [torch.zeros_like(p) for p in (W, a, b)]
            for W, a, b in zip(machine.weights, self.below, machine.biases[1:], strict=True)
        ]

    @property
    def pairs(self) -> int:
        """Number of pairs of layers."""
        return len(self.machine.weights)

    def _factors(self, pair: int) -> tuple[float, float]:
        """By what the weights of a pair are multiplied on the way up, and on the way down."""
        return (2.0 if pair + 1 < self.pairs else 1.0), (2.0 if pair > 0 else 1.0)

    @torch.no_grad()
    def up(self, v: Tensor, pair: int) -> Tensor:
        """The probabilities of layer `pair` of data v, by the passes up of the pairs below it."""
        for i in range(pair):
            v = torch.sigmoid(torch.addmm(self.machine.biases[i + 1], v, self.machine.weights[i], alpha=2.0))
        return v

    @torch.no_grad()
    def step(
        self,
        v: Tensor,
        pair: int,
        *,
        lr: float,
        k: int = 1,
        generator: torch.Generator | None = None,
        reduce: Callable[[Tensor], None] | None = None,
    ) -> float:
        """One update of a pair from data v `[N, n_visible]` by CD-k; returns the error of its reconstruction.

        `reduce` gets every gradient before it is used: to average it over processes.
        """
        W, b, a = self.machine.weights[pair], self.machine.biases[pair + 1], self.below[pair]
        data = drawn(self.up(v, pair), generator)
        up, down = self._factors(pair)
        # Two copies of one side are two copies of its units; both sides double are twice the weights.
        both = up == down == 2.0
        copies = (1 if both else int(up), 1 if both else int(down))
        scale = 2.0 if both else 1.0
        model = ops.rbm_gibbs(
            data.repeat(1, copies[0]), (scale * W).repeat(*copies), a.repeat(copies[0]), b.repeat(copies[1]),
            n_steps=k, generator=generator,
        )[0]  # fmt: skip
        model = model.unflatten(1, (copies[0], -1)).sum(1)
        rows = torch.cat([data * copies[0], model])
        n = len(data)
        weights = torch.full((2 * n,), 1 / n, dtype=W.dtype, device=W.device)
        weights[n:] = -1 / n
        grads = parameter_gradients(rows, state_product(rows, scale * W, init=b).sigmoid_(), weights)
        grads[0].mul_(scale * copies[1])
        grads[2].mul_(copies[1])
        for p, g, velocity in zip((W, a, b), grads, self.velocity[pair], strict=True):
            if reduce is not None:
                reduce(g)
            velocity.mul_(self.momentum).add_(g)
            p.sub_(velocity, alpha=lr)
        return float((data - model / copies[0]).square().sum(1).mean())

    @torch.no_grad()
    def finish(self) -> None:
        """Put the machine together from its pairs."""
        for b, below in zip(self.machine.biases[1:-1], self.below[1:], strict=True):
            b.add_(below).mul_(0.5)

    def state(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        return {name: t.detach().cpu() for name, t in self._tensors()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        for name, t in self._tensors():
            saved = state.get(name)
            if not isinstance(saved, Tensor) or saved.shape != t.shape:
                raise ValueError(f"state: got no tensor {name} of shape {list(t.shape)}")
            t.copy_(saved)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for i, b in enumerate(self.below[1:], 1):
            yield f"below.{i}", b
        for i, parts in enumerate(self.velocity):
            for name, t in zip(("W", "below", "above"), parts, strict=True):
                yield f"velocity.{i}.{name}", t


def pretrain(
    machine: "DeepBoltzmannMachine",
    data: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    k: int,
    generator: torch.Generator | None,
    progress: Callable[[int, int, float], None] | None,
) -> None:
    """Train all pairs, one after the other; see `DeepBoltzmannMachine.pretrain`."""
    integer("epochs", epochs), integer("batch_size", batch_size), integer("k", k)
    rows = probabilities("data", data, machine.n_visible, machine.weights[0].dtype).reshape(-1, machine.n_visible)
    if len(rows) == 0:
        raise ValueError("data: got no rows, want at least one")
    lr = number("lr", lr, 0, float("inf"))
    work = Pretraining(machine, momentum=number("momentum", momentum, 0, 1))
    at = rows.device if generator is None else generator.device
    for pair in range(work.pairs):
        for epoch in range(epochs):
            order = torch.randperm(len(rows), generator=generator, device=at).to(rows.device)
            errors = [work.step(rows[i], pair, lr=lr, k=k, generator=generator) for i in order.split(batch_size)]
            machine.check_finite()
            if progress is not None:
                progress(pair, epoch, sum(errors) / len(errors))
    work.finish()
