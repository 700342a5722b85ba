"""Glow on images of the digits' size: a training step and sampling, against normflows' Glow with the same weights."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from genfast.flows import AffineCoupling, Glow
from genfast.flows.conv1x1 import ActNormConv1x1
from genfast.flows.multiscale import Split

from .timing import Case, Contender, Options

SHAPE, LEVELS, STEPS, HIDDEN, BATCH = (1, 8, 8), 2, 8, 64, 128


def peer(shape: Sequence[int], n_levels: int, n_steps: int, hidden: int) -> nn.Module:
    """Glow as normflows' documentation builds it, with a standard normal base."""
    import normflows as nf

    c, h, w = shape
    bases, flows, merges = [], [], []
    for i in range(n_levels):
        blocks = [nf.flows.GlowBlock(c * 2 ** (n_levels + 1 - i), hidden) for _ in range(n_steps)]
        flows.append([*blocks, nf.flows.Squeeze()])
        depth = n_levels - i
        if i:
            merges.append(nf.flows.Merge())
        channels = c * 2 ** (depth if i else depth + 1)
        bases.append(nf.distributions.DiagGaussian((channels, h // 2**depth, w // 2**depth), trainable=False))
    return nf.MultiscaleFlow(bases, flows, merges, class_cond=False)


@torch.no_grad()
def load_peer(model: Glow, other: nn.Module) -> None:
    """Give our model the weights of normflows'."""
    layers: Sequence[nn.Module] = list(model.transforms)
    for blocks in reversed(other.flows):  # type: ignore[arg-type]
        first, *steps, _ = layers
        for i, block in enumerate(blocks[:-1]):
            coupling, of_conv = steps[2 * i], steps[2 * i + 1]
            assert isinstance(coupling, AffineCoupling)
            assert isinstance(of_conv, ActNormConv1x1)
            theirs, conv, norm = block.flows
            net = [m for m in theirs.flows[1].param_map.net if isinstance(m, nn.Conv2d)]
            for a, b in zip(coupling.conditioner.convolutions, net, strict=True):  # type: ignore[arg-type]
                a.weight.copy_(b.weight)
                a.bias.copy_(b.bias)
            last = coupling.conditioner.convolutions[-1]  # type: ignore[index]
            for ours, given in ((last.weight, net[-1].weight), (last.bias, net[-1].bias)):
                ours.copy_(torch.cat([given[0::2], given[1::2]]))  # theirs: shift and scale in turn
            of_conv.lower.copy_(conv.L)
            of_conv.upper.copy_(conv.U)
            of_conv.log_diag.copy_(conv.log_S)
            of_conv.sign_diag.copy_(conv.sign_S)
            of_conv.permutation.copy_(conv.P.argmax(1))
            of_conv.log_scale.copy_(-norm.s.flatten())
            of_conv.bias.copy_(-norm.t.flatten() * torch.exp(-norm.s.flatten()))
            of_conv.mark_initialized()
        layers = list(first.transforms) if isinstance(first, Split) else []


def pair(options: Options) -> tuple[Glow, nn.Module, torch.Tensor]:
    """Both models with the same weights, initialised by a batch, whose couplings are no identities, and the batch."""
    generator = options.generator()
    x = torch.randn(BATCH, *SHAPE, device=options.device, generator=generator)
    other = peer(SHAPE, LEVELS, STEPS, HIDDEN).to(options.device)
    with torch.no_grad():
        other.log_prob(x, None)
        for name, p in other.named_parameters():
            if "param_map" in name:
                p.add_(0.02 * torch.randn(p.shape, device=p.device, generator=generator))
    model = Glow(SHAPE, LEVELS, STEPS, HIDDEN, learn_prior=False, device=options.device)
    load_peer(model, other)
    return model, other, x


def trained(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """A step of Adam; the same fused one for all."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)

    def step() -> list[torch.Tensor]:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return [value.detach()]

    return step


def cases(options: Options) -> Iterator[Case]:
    """Two levels of eight steps, 64 hidden channels, 128 images."""
    if importlib.util.find_spec("normflows") is None:
        return
    model, other, x = pair(options)
    label = f"{BATCH} x {' x '.join(map(str, SHAPE))}, {LEVELS} levels of {STEPS} steps, hidden {HIDDEN}"
    target = None if options.cuda else 2.0
    with torch.no_grad():
        z = model.inverse(x)[0]
    first, second = z.tensor_split(2, -1)
    parts = [first.unflatten(-1, (8, 2, 2)), second.unflatten(-1, (2, 4, 4))]

    def sample_ours() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(z)[0]]

    def sample_theirs() -> list[torch.Tensor]:
        with torch.no_grad():
            return [other.forward_and_log_det([p.clone() for p in parts])[0]]  # type: ignore[operator]

    yield Case(
        "Glow", f"sampling, {label}",
        [Contender("genfast", sample_ours), Contender("normflows", sample_theirs, target=target)], tolerance=1e-3,
    )  # fmt: skip
    yield Case(
        "Glow", f"training step, {label}",
        [
            Contender("genfast", trained(model, lambda: model.forward_kl(x))),
            Contender("normflows", trained(other, lambda: other.forward_kld(x)), target=target),  # type: ignore[operator]
        ],
        tolerance=1e-3,
    )  # fmt: skip
