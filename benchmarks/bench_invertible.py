"""A stack of couplings that rebuilds its activations against the same layers as a sequence: time and memory."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genfast.flows import AffineCoupling, InvertibleSequential, half_mask

from .timing import Case, Contender, Options, forward_backward


class Sequence(nn.Module):
    """The layers one after the other, as nn.Sequential has them, with the sum of their log-determinants."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise."""
        total = x.new_zeros(x.shape[0])
        for layer in reversed(self.layers):
            x, log_det = layer.inverse(x)  # type: ignore[operator]
            total = total + log_det
        return x, total


def cases(options: Options) -> Iterator[Case]:
    """32 couplings of 64 dimensions, 1,024 rows; 2^16 on a GPU."""
    rows, dim, depth = 1 << 16 if options.cuda else 1024, 64, 32
    generator = options.generator()
    torch.manual_seed(options.seed)
    layers: list[nn.Module] = [
        AffineCoupling(half_mask(dim, last=i % 2 == 0), hidden=(128, 128), device=options.device) for i in range(depth)
    ]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, device=options.device, generator=generator))
    stack, sequence = InvertibleSequential(layers), Sequence(layers)
    x = torch.randn(rows, dim, device=options.device, generator=generator).requires_grad_()
    grads = [
        torch.randn(rows, dim, device=options.device, generator=generator),
        torch.ones(rows, device=options.device),
    ]
    yield Case(
        "InvertibleSequential",
        f"{depth} couplings, {rows:,} x {dim}, forward+backward",
        [
            Contender("genfast", forward_backward(stack.inverse, [x], grads), forward=lambda: stack.inverse(x)),
            Contender(
                "nn.Sequential", forward_backward(sequence, [x], grads), forward=lambda: sequence(x), saved_target=10
            ),
        ],
        tolerance=5e-3,  # the rounding of activations that 32 inverses rebuild
        inputs=[x, *stack.parameters(), *stack.buffers()],
    )
