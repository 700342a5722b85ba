"""Masked autoregressive transforms in plain PyTorch, and their inverse: one pass of the network for each degree."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genfast.reference.coupling import affine_coupling
from genfast.reference.rq_spline import rational_quadratic_spline

#: Activations, in the order in which the kernels number them.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}

#: Maps of one number, in the order in which the kernels number them.
KINDS = ("affine", "rational_quadratic")

#: How the network's outputs lie: all parameters of an input side by side, or (affine) all shifts, then all scales.
LAYOUTS = ("interleaved", "interleaved_scale_shift", "chunked_shift_scale", "chunked_scale_shift")


class Network(NamedTuple):
    """A masked network, but for its numbers: layer 0 is the inputs, 1 ... L are the hidden layers."""

    degrees: tuple[tuple[int, ...], ...]  #: of the inputs and of each hidden layer
    n_params: int  #: of an input
    layout: str
    residual: bool
    context: tuple[bool, ...]  #: whether context adds to a hidden layer

    @property
    def widths(self) -> list[int]:
        """Of the inputs, the hidden layers and the outputs."""
        return [*map(len, self.degrees), len(self.degrees[0]) * self.n_params]

    def outputs(self, i: int) -> list[int]:
        """The rows of the last layer that are the parameters of input i."""
        d, n = len(self.degrees[0]), self.n_params
        if self.layout == "interleaved":
            return [i * n + q for q in range(n)]
        order = (0, 1) if self.layout == "chunked_shift_scale" else (1, 0)
        return [i * n + 1, i * n] if self.layout == "interleaved_scale_shift" else [q * d + i for q in order]

    def masks(self, like: Tensor) -> list[Tensor]:
        """Which weights there are, a bool `[out, in]` for each layer behind the inputs."""
        last = [0] * self.widths[-1]
        for i, degree in enumerate(self.degrees[0]):
            for row in self.outputs(i):
                last[row] = degree
        degrees = [torch.tensor(d, device=like.device) for d in (*self.degrees, last)]
        masks = [b[:, None] >= a for a, b in itertools.pairwise(degrees[:-1])]
        return [*masks, degrees[-1][:, None] > degrees[-2]]

    def layers(self, weights: Tensor, biases: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Masked weight `[out, in]` and bias of each layer, from flat tensors of all of them."""
        widths = self.widths
        shapes = [(b, a) for a, b in itertools.pairwise(widths)]
        ws = weights.split([a * b for a, b in shapes])
        return [
            (torch.where(mask, w.reshape(shape), 0), b)
            for w, shape, mask, b in zip(ws, shapes, self.masks(weights), biases.split(widths[1:]), strict=True)
        ]

    def hidden(
        self, x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], context: Tensor | None, activation: str
    ) -> Tensor:
        """What the last layer reads."""
        act = ACTIVATIONS[activation]
        width = [len(d) for d, c in zip(self.degrees[1:], self.context, strict=True) if c]
        added = iter(() if context is None else context.split(width, -1))
        sums: list[Tensor] = []
        value = x
        for i, (weight, bias) in enumerate(layers[:-1]):
            total = F.linear(value, weight, bias)
            if self.context[i]:
                total = total + next(added)
            if self.residual and i > 0 and i % 2 == 0:
                total = total + sums[i - 2]
            sums.append(total)
            value = total if self.residual and i == len(layers) - 2 else act(total)
        return value


def masked_autoregressive_inverse(
    z: Tensor,
    weights: Tensor,
    biases: Tensor,
    context: Tensor | None,
    network: Network,
    activation: str,
    kind: str,
    inverse: bool,
    options: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.masked_autoregressive_inverse`; the options are those of the map."""
    wide = torch.promote_types(z.dtype, torch.float32)
    z_wide, weights, biases = z.to(wide), weights.to(wide), biases.to(wide)
    context = None if context is None else context.to(wide)
    layers = network.layers(weights, biases)
    zero = torch.zeros_like(z_wide[..., 0])
    columns = [zero] * z.shape[-1]
    log_det = zero
    for degree in sorted(set(network.degrees[0])):
        now = [i for i, d in enumerate(network.degrees[0]) if d == degree]
        hidden = network.hidden(torch.stack(columns, -1), layers, context, activation)
        for i in now:
            rows = network.outputs(i)
            weight, bias = (torch.stack([t[r] for r in rows]) for t in layers[-1])
            x, term = _map(z_wide[..., i], F.linear(hidden, weight, bias), kind, inverse, options)
            columns[i] = x
            log_det = log_det + term
    return torch.stack(columns, -1).to(z.dtype), log_det


def masked_autoregressive_transform(
    x: Tensor,
    weights: Tensor,
    biases: Tensor,
    context: Tensor | None,
    network: Network,
    activation: str,
    kind: str,
    inverse: bool,
    options: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.masked_autoregressive_transform`; the options are those of the map."""
    wide = torch.promote_types(x.dtype, torch.float32)
    layers = network.layers(weights.to(wide), biases.to(wide))
    hidden = network.hidden(x.to(wide), layers, None if context is None else context.to(wide), activation)
    params = F.linear(hidden, *layers[-1])
    rows = torch.tensor([r for i in range(x.shape[-1]) for r in network.outputs(i)], device=x.device)
    params = params.index_select(-1, rows).unflatten(-1, (x.shape[-1], network.n_params))
    z, log_det = _map(x.to(wide), params, kind, inverse, options)
    return z.to(x.dtype), log_det.sum(-1)


def _map(z: Tensor, params: Tensor, kind: str, inverse: bool, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    if kind == "affine":
        x, log_det = affine_coupling(z[..., None], params[..., :1], params[..., 1:], inverse=inverse, **options)
        return x[..., 0], log_det
    bins = (params.shape[-1] + 1) // 3
    logits, slopes = params.split([2 * bins, bins - 1], -1)
    options = dict(options)
    w, h = (logits * options.pop("logit_scale")).chunk(2, -1)
    return rational_quadratic_spline(z, w, h, slopes, inverse=inverse, **options)
