"""MADE: a network whose outputs for one input see the inputs before it alone."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genfast._arguments import floating, integer
from genfast._module import Configured, reset
from genfast.flows._index import IndexModule
from genfast.flows._transform import needed_context
from genfast.reference.masked_autoregressive import ACTIVATIONS


class MADE(IndexModule, Configured):
    """A masked network: the parameters of one input depend on the inputs that come before it in an order.

    The inputs have degrees 1 ... D in that order, and so do hidden units, in turn (those that are to see the context
    alone have 0): a unit sees units of the layer before it of its degree or less, and the parameters of an input see
    hidden units of smaller degree. The degrees are saved in the state dict, and the network follows those it loads;
    masks are made from them. Outputs of one input lie side by side, `[D, n_params_per_dim]`.

    Args:
        dim: number of inputs D.
        hidden: sizes of the hidden layers.
        n_params_per_dim: outputs for each input.
        activation: "relu", "tanh", "elu", "gelu", "gelu_tanh" or "silu".
        residual: hidden layers after the first form blocks of two, as in nflows: h + linear(a(linear(a(h)))). Their
            number is odd then, and their sizes are equal.
        order: "natural", "reverse", "random" (drawn once, here), or a list with the place of each input, a permutation
            of 0 ... D-1.
        random_masks: draw the degrees of hidden units instead of dealing them out in turn; not with `residual`.
        context_features: width of a context `[..., context_features]`, of which a linear map is added to the sums of
            the first hidden layer, and of the first layer of each block.
        zero_init: start the last layer at zero, so that a flow starts as the identity.
        device: of the parameters and masks.
        dtype: of the parameters and masks.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: a size is not a positive integer, the order is no permutation, a name is unknown, hidden layers do
            not form blocks, or there is a context but no hidden layer.

    Source:
        Germain et al. 2015, "MADE: masked autoencoder for distribution estimation"; blocks and degrees as in nflows.

    Example:
        >>> net = MADE(3, (32, 32), n_params_per_dim=2)
        >>> shift, log_scale = net(torch.randn(5, 3)).unflatten(-1, (3, 2)).unbind(-1)
    """

    source = "degrees"
    degrees: Tensor

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64, 64),
        n_params_per_dim: int = 2,
        *,
        activation: str = "relu",
        residual: bool = False,
        order: str | Sequence[int] = "natural",
        random_masks: bool = False,
        context_features: int | None = None,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.hidden = integer("dim", dim), tuple(integer(f"hidden[{i}]", h) for i, h in enumerate(hidden))
        self.n_params_per_dim = integer("n_params_per_dim", n_params_per_dim)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: got {activation!r}, want one of {', '.join(map(repr, ACTIVATIONS))}")
        if residual and (len(self.hidden) % 2 == 0 or len(set(self.hidden)) > 1):
            raise ValueError(f"hidden: got {list(self.hidden)}, want an odd number of equal sizes for residual blocks")
        if residual and random_masks:
            raise ValueError("random_masks: got True, want False with residual, whose blocks keep their degrees")
        if context_features is not None and not self.hidden:
            raise ValueError("hidden: got no layer, want one that the context is added to")
        self.activation, self.residual, self.zero_init = activation, bool(residual), zero_init
        self.context_features = None if context_features is None else integer("context_features", context_features)

        values = [place + 1 for place in _places(order, dim)]
        lowest = 0 if context_features is not None or dim == 1 else 1
        before = lowest
        for size in self.hidden:
            if random_masks:
                drawn = torch.randint(min(before, dim - 1), dim, (size,), device="cpu").tolist()
                before = min(drawn)
                values += drawn
            else:
                values += [i % (dim - lowest) + lowest for i in range(size)]
        self._register(values, torch.tensor(values, dtype=torch.int64, device=device))
        widths = [dim, *self.hidden, dim * n_params_per_dim]
        self.layers = nn.ModuleList(
            nn.Linear(a, b, device=device, dtype=dtype) for a, b in itertools.pairwise(widths)
        )  # fmt: skip
        #: The hidden layers to whose sums a linear map of the context is added.
        self.context_layers: tuple[int, ...] = ()
        if context_features is not None:
            self.context_layers = (0, *range(1, len(self.hidden) if residual else 1, 2))
        self.context_maps = nn.ModuleList(
            nn.Linear(context_features, self.hidden[i], bias=False, device=device, dtype=dtype)
            for i in self.context_layers
            if context_features is not None
        )
        for i, mask in enumerate(self._masks_of(self.degrees)):
            self.register_buffer(f"mask_{i}", mask.to(self.last_bias.dtype), persistent=False)
        self._start()

    @property
    def unit_degrees(self) -> tuple[tuple[int, ...], ...]:
        """The degrees of the inputs and of each hidden layer."""
        return self._units

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers, whose weights are taken within the masks alone."""
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def last_bias(self) -> Tensor:
        """The bias of the last layer."""
        bias = self.layers[-1].bias
        assert isinstance(bias, Tensor)  # noqa: S101  (a linear layer)
        return bias

    def extra_repr(self) -> str:
        """Options, for the printed module."""
        return f"dim={self.dim}, activation={self.activation!r}, residual={self.residual}"

    def saved_options(self) -> dict[str, Any]:
        """The activation, and whether there are blocks."""
        return {"activation": self.activation, "residual": self.residual}

    def reset_parameters(self) -> None:
        """Draw the initial parameters again; the degrees stay."""
        for part in (*self.layers, *self.context_maps):
            reset(part)
        self._start()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map x `[..., D]`, and the context where there is one, to `[..., D * n_params_per_dim]`."""
        floating("x", x, self.dim)
        terms = dict(zip(self.context_layers, self.context_terms(context, x), strict=True))
        act = ACTIVATIONS[self.activation]
        masks = self._masks()
        last = len(self.layers) - 1
        kept = value = x
        for i, (layer, mask) in enumerate(zip(self.linears, masks, strict=True)):
            total = F.linear(value, layer.weight * mask, layer.bias)
            if i == last:
                return total
            if i in terms:
                total = total + terms[i]
            if self.residual and i % 2 == 0:
                total = kept = total if i == 0 else total + kept
            value = total if self.residual and i == last - 1 else act(total)
        raise AssertionError("a network has a last layer")

    def context_terms(self, context: Tensor | None, x: Tensor) -> list[Tensor]:
        """What the context adds to the sums of `context_layers`, for rows x."""
        if context is None and self.context_features is None:
            return []
        context = needed_context(context, self.context_features, x.shape[:-1], "MADE")
        return [part(context) for part in self.context_maps]

    # -- degrees and masks

    def _derive(self, values: list[int]) -> dict[str, list[int]]:
        ends = itertools.accumulate([self.dim, *self.hidden], initial=0)
        self._units = tuple(tuple(values[a:b]) for a, b in itertools.pairwise(ends))
        return {}

    def _fault(self, values: list[int]) -> str:
        size = self.dim + sum(self.hidden)
        if len(values) != size:
            return f"got {len(values)} degrees, want {size}, of {self.dim} inputs and {sum(self.hidden)} hidden units"
        if sorted(values[: self.dim]) != list(range(1, self.dim + 1)):
            return f"got {values[: self.dim]} for the inputs, want a permutation of 1 to {self.dim}"
        if self.residual:
            h = self.hidden[0]
            for at in range(self.dim, size - 2 * h, 2 * h):
                if any(b < a for a, b in zip(values[at : at + h], values[at + 2 * h : at + 3 * h], strict=True)):
                    return "got a residual block whose degrees decrease"
        return ""

    @torch.no_grad()
    def _write(self, values: list[int]) -> None:
        super()._write(values)
        vector = torch.tensor(values, device=self._buffers["degrees"].device)  # type: ignore[union-attr]
        for i, mask in enumerate(self._masks_of(vector)):
            name = f"mask_{i}"
            old, new = self._buffers[name], mask.to(self.last_bias.dtype)
            if old is None or old.device != new.device or old.dtype != new.dtype or old.is_inference():
                self._buffers[name] = new
            else:
                old.copy_(new)

    def _masks_of(self, vector: Tensor) -> list[Tensor]:
        """Which weights there are, a bool `[out, in]` for each layer."""
        degrees = vector.split([self.dim, *self.hidden], -1)
        masks = [b[:, None] >= a for a, b in itertools.pairwise(degrees)]
        return [*masks, degrees[0].repeat_interleave(self.n_params_per_dim)[:, None] > degrees[-1]]

    def _masks(self) -> list[Tensor]:
        if self._follow():
            return [getattr(self, f"mask_{i}") for i in range(len(self.layers))]
        return [m.to(self.last_bias.dtype) for m in self._masks_of(self.degrees)]

    @torch.no_grad()
    def _start(self) -> None:
        if self.residual:  # blocks start near the identity, as in nflows
            for layer in self.linears[2:-1:2]:
                layer.weight.uniform_(-1e-3, 1e-3)
                layer.bias.uniform_(-1e-3, 1e-3)
        if self.zero_init:
            self.linears[-1].weight.zero_()
            self.last_bias.zero_()


def _places(order: str | Sequence[int], dim: int) -> list[int]:
    """The place of each input."""
    if isinstance(order, str):
        if order == "natural":
            return list(range(dim))
        if order == "reverse":
            return list(range(dim - 1, -1, -1))
        if order == "random":
            return [int(i) for i in torch.randperm(dim, device="cpu").tolist()]
        raise ValueError(f"order: got {order!r}, want 'natural', 'reverse', 'random' or a list of integers")
    places = [int(i) for i in order]
    if sorted(places) != list(range(dim)):
        raise ValueError(f"order: got {places}, want a permutation of 0 to {dim - 1}")
    return places
