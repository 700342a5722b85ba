"""Conditioner networks of coupling layers."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genfast._arguments import floating, integer, number
from genfast._module import Configured
from genfast.flows._transform import needed_context


class MLP(Configured, nn.Sequential):
    """A multilayer perceptron with an activation between linear layers.

    Args:
        n_in: input features; 0 where the context alone speaks.
        hidden: sizes of the hidden layers.
        n_out: output features.
        activation: class of the activation.
        context_features: width of a context `[..., context_features]`, which joins the input as `net(x, context)`.
        zero_init: start the last layer at zero, so that a coupling layer starts as the identity.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer, or a call gives another context than the network takes.

    Example:
        >>> MLP(1, (64, 64), 2)(torch.zeros(5, 1)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        n_out: int,
        *,
        context_features: int | None = None,
        activation: type[nn.Module] = nn.ReLU,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = [n_in, *hidden, n_out]
        for i, size in enumerate(sizes):
            integer(f"size {i} of {sizes}", size, at_least=0 if i == 0 and context_features else 1)
        if context_features is not None:
            sizes[0] += integer("context_features", context_features)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes[:-1]):
            layers += [nn.Linear(a, b, device=device, dtype=dtype), activation()]
        super().__init__(*layers, nn.Linear(sizes[-2], n_out, device=device, dtype=dtype))
        self.context_features = context_features
        self.activation = activation
        self.zero_init = zero_init
        self._zero_last()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map x `[..., n_in]`, and the context where there is one, to `[..., n_out]`."""
        if context is not None or self.context_features is not None:
            x = torch.cat([x, needed_context(context, self.context_features, x.shape[:-1], "MLP")], -1)
        for layer in self:
            x = layer(x)
        return x

    def saved_options(self) -> dict[str, Any]:
        """The activation."""
        return {"activation": self.activation.__name__}

    def reset_parameters(self) -> None:
        """Draw the initial parameters again."""
        super().reset_parameters()
        self._zero_last()

    @property
    def last_bias(self) -> Tensor:
        """The bias of the last layer."""
        bias = self[-1].bias
        assert isinstance(bias, Tensor)  # noqa: S101  (a linear layer)
        return bias

    def _zero_last(self) -> None:
        last = self[-1]
        if self.zero_init and isinstance(last, nn.Linear):
            _zero(last)


class ResidualMLP(Configured):
    """A residual network: a linear layer, blocks h + linear(a(linear(a(h)))), and a linear layer, a the activation.

    The context joins the input, and gates the branch of each block: GLU(branch, linear(context)).

    Args:
        n_in: input features; 0 where the context alone speaks.
        hidden: width of the blocks.
        n_out: output features.
        n_blocks: number of blocks, of two linear layers each.
        activation: class of the activation.
        context_features: width of a context `[..., context_features]`, the second argument of a call.
        dropout: probability at which a number in a block is dropped while training.
        zero_init: start the last layer at zero, so that a coupling layer starts as the identity.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: dropout is no number.
        ValueError: a size is not a positive integer, dropout is not in [0, 1], or a call gives another context than the
            network takes.

    Source:
        The conditioner of Durkan et al. 2019, "Neural spline flows", as in nflows' `ResidualNet`.

    Example:
        >>> ResidualMLP(2, 64, 8, context_features=3)(torch.zeros(5, 2), torch.zeros(5, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        n_in: int,
        hidden: int,
        n_out: int,
        *,
        n_blocks: int = 2,
        activation: type[nn.Module] = nn.ReLU,
        context_features: int | None = None,
        dropout: float = 0.0,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = 0 if context_features is None else integer("context_features", context_features)
        self.n_in = integer("n_in", n_in, at_least=0 if width else 1)
        self.context_features = context_features
        self.dropout = number("dropout", dropout, 0, 1)
        self.activation = activation()
        self.zero_init = zero_init
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        integer("hidden", hidden)
        self.first = nn.Linear(n_in + width, hidden, **options)
        layers = [nn.Linear(hidden, hidden, **options) for _ in range(2 * integer("n_blocks", n_blocks, at_least=0))]
        self.blocks = nn.ModuleList(layers)
        self.gates = nn.ModuleList([nn.Linear(width, hidden, **options) for _ in range(n_blocks)] if width else [])
        self.last = nn.Linear(hidden, integer("n_out", n_out), **options)
        self._start()

    def extra_repr(self) -> str:
        """Options, for the printed module."""
        return f"context_features={self.context_features}, dropout={self.dropout:g}"

    def saved_options(self) -> dict[str, Any]:
        """The activation."""
        return {"activation": type(self.activation).__name__}

    def reset_parameters(self) -> None:
        """Draw the initial parameters again."""
        super().reset_parameters()
        self._start()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map x `[..., n_in]`, and the context where there is one, to `[..., n_out]`."""
        if context is not None or self.context_features is not None:
            context = needed_context(context, self.context_features, x.shape[:-1], "ResidualMLP")
            x = torch.cat([x, context], -1)
        h = self.first(x)
        for i in range(0, len(self.blocks), 2):
            branch = self.blocks[i](self.activation(h))
            branch = self.activation(branch)
            if self.dropout:
                branch = F.dropout(branch, self.dropout, self.training)
            branch = self.blocks[i + 1](branch)
            h = h + (branch if context is None else branch * torch.sigmoid(self.gates[i // 2](context)))
        out: Tensor = self.last(h)
        return out

    @property
    def last_bias(self) -> Tensor:
        """The bias of the last layer."""
        return self.last.bias

    @torch.no_grad()
    def _start(self) -> None:
        for second in self.blocks[1::2]:  # blocks start near the identity, as in nflows
            nn.init.uniform_(second.weight, -1e-3, 1e-3)  # type: ignore[arg-type]
            nn.init.uniform_(second.bias, -1e-3, 1e-3)  # type: ignore[arg-type]
        if self.zero_init:
            _zero(self.last)


class ConvNet(Configured):
    """A convolutional network over images of any size, which it keeps: the conditioner of coupling layers of images.

    The context is added to the first hidden layer, through a linear layer: what a convolution of its constant channels
    would give away from the border.

    Args:
        n_in: input channels.
        hidden: channels of the hidden layers.
        n_out: output channels.
        kernel_size: odd sizes, one a convolution, or one for all; by default 3 at both ends and 1 between, as in Glow.
        activation: class of the activation.
        context_features: width of a context `[..., context_features]`, the second argument of a call.
        zero_init: start the last convolution at zero, so that a coupling layer starts as the identity.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer, a kernel size is even or one is missing, or a call gives another
            context than the network takes, or no images.

    Source:
        Kingma & Dhariwal 2018, "Glow", appendix B.

    Example:
        >>> ConvNet(1, (16, 16), 2)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 2, 8, 8])
    """

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        n_out: int,
        *,
        kernel_size: int | Sequence[int] | None = None,
        activation: type[nn.Module] = nn.ReLU,
        context_features: int | None = None,
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        channels = [n_in, *hidden, n_out]
        for i, size in enumerate(channels):
            integer(f"size {i} of {channels}", size)
        n = len(channels) - 1
        if kernel_size is None:
            kernel_size = [3 if i in (0, n - 1) else 1 for i in range(n)]
        kernels = [kernel_size] * n if isinstance(kernel_size, int) else list(kernel_size)
        if len(kernels) != n or any(integer("kernel_size", k) % 2 == 0 for k in kernels):
            raise ValueError(f"kernel_size: got {kernel_size}, want an odd number, or {n} of them")
        self.n_in = n_in
        self.context_features = context_features
        self.activation = activation()
        self.zero_init = zero_init
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = zip(itertools.pairwise(channels), kernels, strict=True)
        self.convolutions = nn.ModuleList([nn.Conv2d(a, b, k, padding=k // 2, **options) for (a, b), k in sizes])
        self.project = None
        if context_features is not None:
            if n == 1:
                raise ValueError("hidden: got none, want a hidden layer for the context to join")
            integer("context_features", context_features)
            self.project = nn.Linear(context_features, channels[1], bias=False, **options)
        self._start()

    def extra_repr(self) -> str:
        """Options, for the printed module."""
        return f"context_features={self.context_features}"

    def saved_options(self) -> dict[str, Any]:
        """The activation."""
        return {"activation": type(self.activation).__name__}

    def reset_parameters(self) -> None:
        """Draw the initial parameters again."""
        super().reset_parameters()
        self._start()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map images x `[..., n_in, H, W]`, and the context where there is one, to `[..., n_out, H, W]`."""
        floating("x", x)
        if x.ndim < 3 or x.shape[-3] != self.n_in:
            raise ValueError(f"x: got shape {list(x.shape)}, want [..., {self.n_in}, H, W]")
        lead, size = x.shape[:-3], x.shape[-2:]
        if context is not None or self.context_features is not None:
            context = needed_context(context, self.context_features, lead, "ConvNet")
        if len(lead) != 1:
            x = x.reshape(math.prod(lead), self.n_in, *size)
        for i, convolution in enumerate(self.convolutions):
            if i:
                x = self.activation(x)
            x = convolution(x)
            if i == 0 and context is not None and self.project is not None:
                x = x + self.project(context).reshape(x.shape[0], x.shape[1], 1, 1)
        return x if len(lead) == 1 else x.view(*lead, x.shape[1], *size)

    @property
    def last_bias(self) -> Tensor:
        """The bias of the last convolution."""
        bias = self.convolutions[-1].bias
        assert isinstance(bias, Tensor)  # noqa: S101  (convolutions have one)
        return bias

    def _start(self) -> None:
        if self.zero_init:
            _zero(self.convolutions[-1])


class Constant(Configured):
    """Learned numbers that hang on nothing: the conditioner of a layer that moves every dimension.

    Args:
        n_out: how many.
        device: of the parameter.
        dtype: of the parameter.

    Raises:
        ValueError: n_out is not a positive integer.

    Example:
        >>> Constant(4)(torch.zeros(5, 0)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self, n_out: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(integer("n_out", n_out), device=device, dtype=dtype))

    def saved_options(self) -> dict[str, Any]:
        """None beside the type."""
        return {}

    def reset_parameters(self) -> None:
        """Set them to zero again."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The numbers `[..., n_out]` for each row of x `[..., 0]`."""
        return self.bias.to(x.dtype).expand(*x.shape[:-1], -1)

    @property
    def last_bias(self) -> Tensor:
        """The numbers."""
        return self.bias


@torch.no_grad()
def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters(recurse=False):
        parameter.zero_()
