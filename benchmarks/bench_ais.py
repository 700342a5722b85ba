"""Annealed importance sampling and pseudo-likelihood of an RBM, against what a careful user writes in PyTorch."""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from genfast import ops
from genfast.boltzmann import annealing_betas

from .bench_rbm import FLOAT, Machine, random_data, random_machine
from .timing import Case, Contender, Options

STEPS = 145
"""Of the 14,500 betas of the published ladder, in its proportions: the work of a step is the same."""


def cases(options: Options) -> Iterator[Case]:
    """A machine of the usual MNIST size, active like its data."""
    generator = options.generator()
    machine = random_machine(options, 784, 500, 0.13, generator)
    yield _ais(options, machine)
    yield _pseudo_likelihood(machine, random_data(options, 256, 784, 0.13, generator))


@torch.no_grad()
def eager_ais(
    machine: Machine, base: Tensor, betas: Sequence[float], n_runs: int, *, wide: bool = False
) -> tuple[Tensor]:
    """The fields once a step, for the weight and the draw; softplus in float32, or `wide` in float64."""
    W, vbias, hbias = machine
    down, difference = W.t().contiguous(), vbias - base
    v = torch.bernoulli(torch.sigmoid(base).expand(n_runs, -1))
    total = torch.zeros(n_runs, dtype=torch.float64, device=W.device)
    for beta0, beta1 in itertools.pairwise(betas):
        x = torch.addmm(hbias, v, W)
        y = x.double() if wide else x
        hidden = functional.softplus(beta1 * y) - functional.softplus(beta0 * y)
        total += hidden.sum(1).double() + ((beta1 - beta0) * (v @ difference)).double()
        h = torch.bernoulli(torch.sigmoid(beta1 * x))
        v = torch.bernoulli(torch.sigmoid(torch.addmm((1 - beta1) * base + beta1 * vbias, h, down, alpha=beta1)))
    return (total,)


def same_mean(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
    """Weights of other draws; their means must agree within six standard errors."""
    a, b = ours[0], theirs[0]
    error = math.sqrt(float(a.var() / len(a) + b.var() / len(b)))
    difference = abs(float(a.mean() - b.mean()))
    return (
        ""
        if difference < 6 * error
        else f"mean log-weights differ by {difference:.3g}, {difference / error:.1f} errors"
    )


def _ais(options: Options, machine: Machine) -> Case:
    n_runs, (nv, nh) = 100, machine[0].shape
    base, betas = machine[1].clone(), annealing_betas(STEPS)
    ladder = betas.tolist()
    return Case(
        "rbm_ais",
        f"{n_runs} runs, {nv}x{nh}, {STEPS} betas",
        [
            Contender("genfast", lambda: ops.rbm_ais(*machine, base, betas, n_runs=n_runs)[:1]),
            Contender("eager", lambda: eager_ais(machine, base, ladder, n_runs), target=None if options.cuda else 5.0),
            Contender("eager, softplus in float64", lambda: eager_ais(machine, base, ladder, n_runs, wide=True)),
        ],
        # Weights in once, states stay. No arithmetic is stated: what must be computed depends on the density.
        bytes_moved=FLOAT * nv * nh,
        compare=same_mean,
    )


@torch.no_grad()
def eager_pseudo_likelihood(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor]:
    """A rank-one update of the hidden fields for each unit."""
    x = torch.addmm(hbias, v, W)
    here = functional.softplus(x).sum(1)
    signs, total = 1 - 2 * v, torch.zeros_like(here)
    for i in range(v.shape[1]):
        there = functional.softplus(torch.addcmul(x, signs[:, i : i + 1], W[i])).sum(1)
        total -= functional.softplus(torch.addcmul(there - here, signs[:, i], vbias[i]))
    return (total,)


def _pseudo_likelihood(machine: Machine, v: Tensor) -> Case:
    nv, nh = machine[0].shape
    return Case(
        "rbm_pseudo_likelihood",
        f"{len(v)} rows, {nv}x{nh}, all units",
        [
            Contender("genfast", lambda: (ops.rbm_pseudo_likelihood(v, *machine),)),
            Contender("eager, rank-one updates", lambda: eager_pseudo_likelihood(v, *machine)),
        ],
        bytes_moved=FLOAT * (nv * nh + len(v) * nv),
        # A multiply-add and a product for each row, visible and hidden unit.
        flops=3 * len(v) * nv * nh,
    )
