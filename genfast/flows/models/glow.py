"""Glow: a flow of images of several scales."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from genfast._arguments import integer
from genfast.flows.base import StandardNormal
from genfast.flows.conv1x1 import ActNormConv1x1
from genfast.flows.coupling import AffineCoupling
from genfast.flows.flow import Flow
from genfast.flows.multiscale import Split, Squeeze, Unflatten, image_shape
from genfast.flows.nets import ConvNet
from genfast.flows.permutation import half_mask


class Glow(Flow):
    r"""Glow: steps of ActNorm, invertible 1x1 convolution and affine coupling, on several scales.

    Read from data to noise, a level squeezes the image, takes `n_steps` steps, and splits: half of the channels are
    noise, the others go on to the next level. A coupling's network is a `ConvNet` of the other half of the channels,
    with convolutions 3x3, 1x1, 3x3. With `learn_prior`, what is split off is first shifted and scaled by a 3x3
    convolution of the half that goes on, which is the learned prior of the paper. Noise is flat, `[..., C H W]`: the
    deepest level first, then what the others split off (see `Split`). The classes of conditional models are a context:
    `torch.nn.functional.one_hot(labels, n_classes).float()`.

    Show the model a batch of data before the first sample or evaluation: `flow.log_prob(x)` in training mode sets the
    scales (see `ActNorm`).

    Args:
        shape: (C, H, W) of the data; H and W multiples of 2^n_levels.
        n_levels: number of levels.
        n_steps: steps of each level.
        hidden: channels of the hidden layers of the couplings' networks.
        base: of the flat noise; by default `StandardNormal`.
        learn_prior: shift and scale what is split off.
        scale_map: of the couplings, see `genfast.ops.affine_coupling`; by default x = (z - ...) / sigmoid(a + 2), so
            that data shrink on the way to noise, as in the paper.
        context_features: width of the context `[..., context_features]` that all couplings take.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: shape is not three positive integers, H or W cannot be halved n_levels times, or a size is not a
            positive integer.

    Source:
        Kingma & Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions", NeurIPS 2018.

    Example:
        >>> flow = Glow((1, 8, 8), n_levels=2, n_steps=4, hidden=32)
        >>> loss = -flow.log_prob(torch.randn(64, 1, 8, 8)).mean()
        >>> flow.sample(16).shape
        torch.Size([16, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        n_levels: int = 2,
        n_steps: int = 8,
        hidden: int = 64,
        *,
        base: nn.Module | Distribution | None = None,
        learn_prior: bool = True,
        scale_map: str = "reciprocal_sigmoid",
        context_features: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        c, h, w = image_shape(shape)
        for name, value in (("n_levels", n_levels), ("n_steps", n_steps), ("hidden", hidden)):
            integer(name, value)
        if h % 2**n_levels or w % 2**n_levels:
            raise ValueError(
                f"shape: got images of {h} x {w} pixels, want a height and width that can be halved "
                f"n_levels={n_levels} times"
            )
        options: dict[str, Any] = {"device": device, "dtype": dtype}

        def coupling(channels: int, sizes: Sequence[int], scale: str, context: int | None) -> AffineCoupling:
            kept = channels // 2
            net = ConvNet(kept, sizes, 2 * kept, context_features=context, kernel_size=_KERNELS[len(sizes)], **options)
            return AffineCoupling(half_mask(channels), net, event_dim=3, scale_map=scale, device=device)

        def level(i: int, c: int, h: int, w: int) -> list[nn.Module]:
            c, h, w = 4 * c, h // 2, w // 2
            layers: list[nn.Module] = []
            if i == n_levels:
                layers.append(Unflatten((c, h, w)))
            else:
                layers.append(Split((c, h, w), level(i + 1, c // 2, h, w)))
                if learn_prior:
                    layers.append(coupling(c, (), "exp", None))
            for _ in range(n_steps):
                layers.append(coupling(c, (hidden, hidden), scale_map, context_features))
                layers.append(ActNormConv1x1(c, **options))
            return [*layers, Squeeze()]

        super().__init__(
            StandardNormal(c * h * w, device=device, dtype=dtype) if base is None else base, level(1, c, h, w)
        )


_KERNELS = {0: (3,), 2: (3, 1, 3)}  # by the number of hidden layers
