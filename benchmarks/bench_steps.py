"""Whole training steps of flows, and their samples, against zuko, normflows and plain PyTorch.

A step is the loss, its gradients and a fused Adam. Peers' flows have layers of the same kind and number, as many bins
and hidden units (normflows' networks are residual: two blocks of 128), and weights of their own; their loss on standard
normal data is compared roughly. The affine couplings of plain PyTorch have our weights, and are to have our loss.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import torch
from torch import nn

from genfast.flows import MAF, NSF, Flow, RealNVP

from .baselines import compiled, peer
from .timing import Case, Contender, Options

DIM, ROWS, SAMPLES, LAYERS, COUPLINGS, HIDDEN, BINS = 32, 512, 10_000, 10, 8, (128, 128), 8

STEP_TARGETS = {"NSF": (5.0, 1.5), "MAF": (1.5, 1.0)}
"""Against zuko, and torch.compile of it."""

SAMPLE_TARGETS = {"NSF": 15.0, "MAF": 20.0}
"""Against zuko."""

Tensors = Sequence[torch.Tensor]
Loss = Callable[[torch.Tensor], torch.Tensor]


class PlainRealNVP(nn.Module):
    """The flow `RealNVP` as a careful user of PyTorch writes it, from data to noise."""

    def __init__(self, flow: RealNVP) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(
                *(nn.Linear(a, b) if i % 2 == 0 else nn.ReLU() for i, (a, b) in enumerate(self.sizes()))
            ) for _ in flow.transforms
        )  # fmt: skip
        self.last = [bool(layer.mask[-1]) for layer in flow.transforms]
        for net, layer in zip(self.nets, flow.transforms, strict=True):
            ours = [m for m in layer.conditioner.modules() if isinstance(m, nn.Linear)]
            for mine, other in zip((m for m in net if isinstance(m, nn.Linear)), ours, strict=True):
                mine.load_state_dict(other.state_dict())

    @staticmethod
    def sizes() -> list[tuple[int, int]]:
        """In and out of each linear layer and, between them, of the activations."""
        widths = [DIM // 2, *HIDDEN, DIM]
        pairs = list(itertools.pairwise(widths))
        return [p for pair in pairs for p in (pair, pair)][:-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """-mean log p."""
        log_det = x.new_zeros(len(x))
        for net, last in zip(reversed(self.nets), reversed(self.last), strict=True):
            first, second = x.chunk(2, -1)
            kept, moved = (first, second) if last else (second, first)
            shift, raw = net(kept).chunk(2, -1)
            log_scale = 2 * torch.tanh(raw / 2)
            moved = (moved - shift) * torch.exp(-log_scale)
            log_det = log_det - log_scale.sum(-1)
            x = torch.cat([kept, moved] if last else [moved, kept], -1)
        log_p = -0.5 * (x * x).sum(-1) - 0.5 * DIM * math.log(2 * math.pi)
        return -(log_p + log_det).mean()


def step(module: nn.Module, loss: Loss, x: torch.Tensor) -> Callable[[], Tensors]:
    """One training step, giving the loss before it."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)

    def run() -> Tensors:
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        optimizer.step()
        return [value.detach()]

    return run


def near(mine: Tensors, other: Tensors) -> str:
    """Flows that start near the identity, whatever their weights, are about as good."""
    a, b = float(mine[0]), float(other[0])
    return "" if abs(a - b) < 0.25 * abs(a) else f"the losses are {a:.3g} and {b:.3g}"


def alike(mine: Tensors, other: Tensors) -> str:
    """Samples of the same shape, finite."""
    fine = mine[0].shape == other[0].shape and bool(other[0].isfinite().all())
    return "" if fine else f"samples of shape {list(other[0].shape)}, or not finite"


def normflows_nsf(normflows: ModuleType) -> nn.Module:
    """normflows' coupling NSF, as its examples have it."""
    flows = normflows.flows
    layers = [
        flows.CoupledRationalQuadraticSpline(DIM, 2, HIDDEN[0], num_bins=BINS, tail_bound=5.0, reverse_mask=i % 2 == 1)
        for i in range(LAYERS)
    ]
    made: nn.Module = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(DIM, trainable=False), layers)
    return made


def step_case(
    options: Options,
    name: str,
    flow: Flow,
    peers: dict[str, tuple[nn.Module, Loss, float | None]],
    compare: Callable[[Tensors, Tensors], str] | None = near,
) -> Case:
    """One step of our flow and of the others."""
    x = torch.randn(ROWS, DIM, device=options.device, generator=options.generator())
    contenders = [Contender("genfast", step(flow, lambda x: -flow.log_prob(x).mean(), x))]
    for who, (module, loss, target) in peers.items():
        contenders.append(Contender(who, step(module, loss, x), target=None if options.cuda else target))
    return Case(name, f"a training step, {ROWS} x {DIM}, {len(flow.transforms)} layers", contenders, compare=compare)


def sample_case(name: str, flow: Flow, peers: dict[str, tuple[Callable[[], torch.Tensor], float]]) -> Case:
    """Samples of our flow and of the others."""

    def drawn(draw: Callable[[], torch.Tensor]) -> Callable[[], Tensors]:
        def run() -> Tensors:
            with torch.no_grad():
                return [draw()]

        return run

    contenders = [Contender("genfast", drawn(lambda: flow.sample(SAMPLES)))]
    contenders += [Contender(who, drawn(draw), target=target) for who, (draw, target) in peers.items()]
    return Case(name, f"{SAMPLES:,} samples of {DIM}, {len(flow.transforms)} layers", contenders, compare=alike)


def cases(options: Options) -> Iterator[Case]:
    """Steps of RealNVP, NSF and MAF, then samples of the two."""
    zuko, normflows = peer("zuko"), peer("normflows")

    def made(build: Callable[[], nn.Module]) -> nn.Module:
        torch.manual_seed(options.seed)
        return build().to(options.device)

    real = made(lambda: RealNVP(DIM, COUPLINGS, HIDDEN))
    plain, again = made(lambda: PlainRealNVP(real)), made(lambda: PlainRealNVP(real))
    others = {"eager": (plain, plain, None)}
    if options.compile:
        others["torch.compile"] = (again, compiled(again), None)
    yield step_case(options, "RealNVP", real, others, compare=None)

    zukos: dict[str, Callable[[], nn.Module]] = {}
    if zuko is not None:
        shape = {"transforms": LAYERS, "hidden_features": HIDDEN}
        zukos["NSF"] = lambda: zuko.flows.NSF(DIM, bins=BINS, passes=2, **shape)
        zukos["MAF"] = lambda: zuko.flows.MAF(DIM, **shape)
    builders = {
        "NSF": lambda: NSF(DIM, LAYERS, HIDDEN, n_bins=BINS),
        "MAF": lambda: MAF(DIM, LAYERS, HIDDEN, scale_map="softclip"),
    }
    for name, build in builders.items():
        others = {}
        if zuko is not None:
            module, again = made(zukos[name]), made(zukos[name])
            others["zuko"] = (module, lambda x, flow=module: -flow().log_prob(x).mean(), STEP_TARGETS[name][0])
            if options.compile:  # not in one graph: its distributions check their arguments
                loss = torch.compile(lambda x, flow=again: -flow().log_prob(x).mean(), dynamic=False)
                others["torch.compile of zuko"] = (again, loss, STEP_TARGETS[name][1])
        if normflows is not None and name == "NSF":
            module = made(lambda: normflows_nsf(normflows))
            others["normflows"] = (module, module.forward_kld, None)
        yield step_case(options, name, made(build), others)

    for name, build in builders.items():
        draws: dict[str, tuple[Callable[[], torch.Tensor], float]] = {}
        if zuko is not None:
            module = made(zukos[name])
            draws["zuko"] = (lambda flow=module: flow().sample((SAMPLES,)), SAMPLE_TARGETS[name])
        if normflows is not None and name == "NSF":
            module = made(lambda: normflows_nsf(normflows))
            draws["normflows"] = (lambda flow=module: flow.sample(SAMPLES)[0], 8.0)
        yield sample_case(name, made(build), draws)
