"""Affine maps of channels: ActNorm with the 1x1 convolution of Glow, and the LU layer, against plain PyTorch."""

from collections.abc import Callable, Iterator

import torch

from genfast import ops
from genfast.reference import channel_affine as reference

from .baselines import differentiable_call, forward_backward, leaves
from .timing import Case, Contender, Options

Function = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def step_inputs(options: Options, rows: int, channels: int, side: int, *, last: bool) -> list[torch.Tensor]:
    """Images and the parameters of a step of Glow; images whose channels lie last in memory, or not."""
    n = channels
    x, log_scale, bias, lower, upper, log_diag = leaves(
        options, (rows, n, side, side), (n,), (n,), (n, n), (n, n), (n,), scale=0.1
    )
    if last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    sign = torch.ones(n, device=options.device)
    sign[::2] = -1
    return [x, log_scale, bias, lower, upper, log_diag, sign]


def step(function: Function, sign: torch.Tensor) -> Function:
    """A step with the channels reversed, as a function of what has a gradient."""
    order = torch.arange(len(sign) - 1, -1, -1, device=sign.device)
    return lambda *inputs: function(*inputs, sign, order)


def case_of(
    options: Options, op: str, label: str, ours: Function, theirs: Function, inputs: list[torch.Tensor], target: float
) -> Case:  # fmt: skip
    """Forward and backward."""
    generator = options.generator().manual_seed(options.seed + 1)
    grads = [torch.randn(t.shape, device=options.device, generator=generator) for t in theirs(*inputs)]
    x = inputs[0]
    pixels, channels = x.numel() // x.shape[1], x.shape[1]
    return Case(
        op, f"{label}, forward+backward",
        [
            Contender("genfast", forward_backward(ours, inputs, grads)),
            Contender("eager", forward_backward(theirs, inputs, grads), target=None if options.cuda else target),
        ],
        bytes_moved=5 * x.numel() * x.element_size(), flops=8 * pixels * channels * channels, inputs=inputs,
    )  # fmt: skip


def cases(options: Options) -> Iterator[Case]:
    """Steps on images of several sizes, in both orders of memory, and the LU layer; 64 times the images on a GPU."""
    more = 64 if options.cuda else 1
    for rows, channels, side in ((128, 4, 4), (64, 12, 16), (64, 48, 8)):
        for last in (False, True):
            *inputs, sign = step_inputs(options, more * rows, channels, side, last=last)
            label = f"{more * rows} x {channels} x {side} x {side}{', channels last' if last else ''}"
            ours, theirs = step(ops.actnorm_conv1x1, sign), step(reference.actnorm_conv1x1, sign)
            yield case_of(options, "actnorm_conv1x1", label, ours, theirs, inputs, 2.0)
    n = 64
    inputs = leaves(options, (4096 * more, n), (n, n), (n, n), (n,), (n,), scale=0.1)
    yield case_of(options, "lu_linear", f"{4096 * more} x {n}", ops.lu_linear, reference.lu_linear, inputs, 1.5)


def calls(options: Options) -> Iterator[Case]:
    """A step on 4 images of 4 x 2 x 2."""
    *inputs, sign = step_inputs(options, 4, 4, 2, last=False)
    yield differentiable_call(
        options, "actnorm_conv1x1", "4 x 4 x 2 x 2", step(ops.actnorm_conv1x1, sign),
        step(reference.actnorm_conv1x1, sign), inputs, 3.0,
    )  # fmt: skip
