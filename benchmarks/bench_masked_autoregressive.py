"""Masked autoregressive inverses against libraries that run the network once for each number; steps: bench_steps.py."""

import itertools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch

import genfast
from genfast import ops

from .baselines import differentiable_call, peer
from .floor import TRANSCENDENTAL_FLOPS
from .timing import Case, Contender, Options, forward_backward

FLOAT = 4
ROWS, DIM, HIDDEN, BLOCKS, BINS = 1024, 64, 128, 2, 8

Tensors = Sequence[torch.Tensor]


def weights_in_use(degrees: Sequence[Sequence[int]], n_params: int) -> int:
    """Weights within the masks."""
    layers = [torch.tensor(list(d)) for d in degrees]
    hidden = sum(int((b[:, None] >= a).sum()) for a, b in itertools.pairwise(layers))
    return hidden + n_params * int((layers[0][:, None] > layers[-1]).sum())


def work(rows: int, degrees: Sequence[Sequence[int]], n_params: int, weights: int) -> dict[str, int]:
    """Numbers in and out and all weights, and one product for each weight within the masks and row."""
    units = sum(len(d) for d in degrees)
    each = 2 * weights_in_use(degrees, n_params) + units + len(degrees[0]) * n_params * TRANSCENDENTAL_FLOPS
    return {"bytes_moved": FLOAT * (rows * (2 * len(degrees[0]) + 1) + weights), "flops": rows * each}


def nflows_case(options: Options, nflows: ModuleType, rows: int, *, spline: bool) -> Case:
    """nflows' transform with residual blocks, and the same weights here."""
    torch.manual_seed(options.seed)
    if spline:
        theirs = nflows.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            DIM, HIDDEN, num_blocks=BLOCKS, num_bins=BINS, tails="linear", tail_bound=3.0
        )
        map_options: dict[str, Any] = {"kind": "rational_quadratic"}
    else:
        theirs = nflows.MaskedAffineAutoregressiveTransform(DIM, HIDDEN, num_blocks=BLOCKS)
        map_options = {"scale_map": "softplus", "min_scale": 1e-3, "layout": "interleaved_scale_shift"}
    theirs = theirs.to(options.device)
    made = theirs.autoregressive_net
    layers = [made.initial_layer, *(layer for b in made.blocks for layer in b.linear_layers), made.final_layer]
    degrees = (tuple(range(1, DIM + 1)), *(tuple(layer.degrees.tolist()) for layer in layers[:-1]))
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    z = torch.randn(rows, DIM, device=options.device, generator=options.generator())

    @torch.no_grad()
    def ours() -> Tensors:
        return ops.masked_autoregressive_inverse(z, weights, biases, degrees=degrees, residual=True, **map_options)

    target = (100.0 if spline else 25.0) if not options.cuda else None
    name = f"spline of {BINS} bins" if spline else "affine"
    return Case(
        "masked_autoregressive_inverse",
        f"{name}, {rows:,} x {DIM}, hidden {HIDDEN}, {BLOCKS} residual blocks",
        [Contender("genfast", ours), Contender("nflows", torch.no_grad()(lambda: theirs.inverse(z)), target=target)],
        **work(rows, degrees, 3 * BINS - 1 if spline else 2, sum(w.numel() for w in weights)),
        tolerance=5e-3,  # D steps, each with the rounding of those before
    )


def zuko_case(options: Options, zuko: ModuleType, rows: int) -> Case:
    """zuko's MAF transform of two hidden layers, and the same weights here."""
    torch.manual_seed(options.seed)
    theirs = zuko.flows.MaskedAutoregressiveTransform(DIM, hidden_features=(HIDDEN, HIDDEN)).to(options.device)
    layers = [m for m in theirs.hyper if hasattr(m, "mask")]
    degrees = [list(range(DIM))]
    for layer in layers[:-1]:
        before = torch.tensor(degrees[-1], device=options.device)
        degrees.append([int(before[row].max()) for row in layer.mask])
    weights, biases = [m.weight for m in layers], [m.bias for m in layers]
    z = torch.randn(rows, DIM, device=options.device, generator=options.generator())

    @torch.no_grad()
    def ours() -> Tensors:
        return ops.masked_autoregressive_inverse(z, weights, biases, degrees=degrees, scale_map="softclip")[:1]

    return Case(
        "masked_autoregressive_inverse",
        f"affine, {rows:,} x {DIM}, hidden {HIDDEN} and {HIDDEN}",
        [
            Contender("genfast", ours),
            Contender(
                "zuko", torch.no_grad()(lambda: [theirs().inv(z)]), target=10.0 if not options.cuda else None
            ),
        ],
        **work(rows, degrees, 2, sum(w.numel() for w in weights)),
        tolerance=5e-3,
    )  # fmt: skip


def own_network(options: Options, rows: int, dim: int, hidden: int, layers: int) -> tuple[list[torch.Tensor], Any]:
    """z, weights and biases in one tensor each, and degrees."""
    degrees = [range(1, dim + 1), *[[i % max(dim - 1, 1) + 1 for i in range(hidden)]] * layers]
    widths = [*map(len, degrees), 2 * dim]
    generator = options.generator()

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=options.device, generator=generator)

    weights = torch.cat([randn(b * a) / a**0.5 for a, b in itertools.pairwise(widths)])
    made = [randn(rows, dim), weights, 0.1 * randn(sum(widths[1:]))]
    return [t.requires_grad_() for t in made], degrees


def gradient_case(options: Options, rows: int) -> Case:
    """Forward and backward against the reference, which runs the network for each degree."""
    inputs, degrees = own_network(options, rows, DIM, HIDDEN, 2)
    generator = options.generator()
    grads = [torch.randn(*size, device=options.device, generator=generator) for size in ((rows, DIM), (rows,))]

    def ours(*tensors: torch.Tensor) -> Tensors:
        return ops.masked_autoregressive_inverse(*tensors, degrees=degrees, scale_map="tanh")

    def eager(*tensors: torch.Tensor) -> Tensors:
        with genfast.backend("reference"):
            return ours(*tensors)

    return Case(
        "masked_autoregressive_inverse",
        f"affine, {rows:,} x {DIM}, hidden {HIDDEN} and {HIDDEN}, forward+backward",
        [
            Contender("genfast", forward_backward(ours, inputs, grads)),
            Contender("eager", forward_backward(eager, inputs, grads), target=10.0 if not options.cuda else None),
        ],
        tolerance=5e-3,
    )


def cases(options: Options) -> Iterator[Case]:
    """1,024 x 64 on a CPU, 65,536 x 64 on a GPU."""
    rows = 1 << 16 if options.cuda else ROWS
    nflows = peer("nflows.transforms.autoregressive")
    if nflows is not None:
        for spline in (False, True):
            yield nflows_case(options, nflows, rows, spline=spline)
    zuko = peer("zuko")
    if zuko is not None:
        yield zuko_case(options, zuko, rows)
    yield gradient_case(options, 1024)


def calls(options: Options) -> Iterator[Case]:
    """4 x 8 numbers, hidden 16 and 16, against the reference."""
    inputs, degrees = own_network(options, 4, 8, 16, 2)

    def ours(*tensors: torch.Tensor) -> Tensors:
        return ops.masked_autoregressive_inverse(*tensors, degrees=degrees, scale_map="tanh")

    def eager(*tensors: torch.Tensor) -> Tensors:
        with genfast.backend("reference"):
            return ours(*tensors)

    label = "4 x 8, hidden 16 and 16"
    yield differentiable_call(options, "masked_autoregressive_inverse", label, ours, eager, inputs, 3.0)
