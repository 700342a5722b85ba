"""The properties that all modules share; see `module_harness`."""

import torch
from torch import nn
from torch.distributions import Independent, Laplace, Normal

from genfast.boltzmann import RBM, BoltzmannMachine, SparseBoltzmannMachine
from genfast.flows import (
    MLP,
    AdditiveCoupling,
    AffineCoupling,
    Flow,
    Permutation,
    Planar,
    SplineCoupling,
    StandardNormal,
    TorchDistribution,
    alternating_mask,
    half_mask,
)
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

DIM = 4


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


def rows(dtype):
    return torch.linspace(-2.0, 2.1, 5 * DIM).reshape(5, DIM).to(dtype)


def binary(dtype):
    return (torch.arange(5 * DIM).reshape(5, DIM) % 3 == 0).to(dtype)


def spins(dtype):
    return 2 * binary(dtype) - 1


def layer(name, family, build, **options):
    both = ("forward", "inverse")
    return ModuleSpec(name, build, rows, both, family, smooth=both, **options)


def flow(name, family, build):
    calls = ("forward", "inverse", "log_prob")
    return ModuleSpec(name, build, rows, calls, family, smooth=calls)


def masked(kind, name, family, mask, **options):
    return layer(name, family, lambda **o: kind(mask(), hidden=(3,), **options, **o))


def base(family, distribution, **options):
    def build(*, dtype, device=None):
        where = {"dtype": dtype, "device": device}
        scale = nn.Parameter(torch.ones(DIM, **where))
        inner = distribution(torch.zeros(DIM, **where), scale, validate_args=False)  # which looks at the numbers
        return TorchDistribution(Independent(inner, 1))

    return ModuleSpec(
        distribution.__name__, build, rows, ("log_prob",), family, smooth=("log_prob",), resets=False, **options
    )


def composed(kind, **options):
    def build(*, dtype, device=None):
        o = {"dtype": dtype, "device": device}
        return Flow(
            StandardNormal(DIM, **o),
            [
                kind(half_mask(DIM), hidden=(3,), **options, **o),
                Permutation("reverse", DIM, device=device),
                kind(alternating_mask(DIM), hidden=(3,), **options, **o),
                Planar(DIM, 2, **o),
            ],
        )

    return build


MASKS = {
    "last": lambda: half_mask(DIM),
    "first": lambda: half_mask(DIM, last=False),
    "odd": lambda: alternating_mask(DIM),
    "even": lambda: alternating_mask(DIM, odd=False),
    "scattered": lambda: [True, False, False, True],
}


class TestFlows(ModuleTests):
    specs = (
        layer("planar", "planar", lambda **o: Planar(DIM, 2, **o)),
        *(masked(AffineCoupling, f"affine, {m}", "affine", MASKS[m]) for m in MASKS),
        masked(AffineCoupling, "affine, one moved", "affine", lambda: [False, False, False, True]),
        masked(AffineCoupling, "affine, exp", "affine", MASKS["last"], scale_map="exp"),
        masked(AffineCoupling, "affine, clamp", "affine", MASKS["odd"], scale_options={"clamp": 0.5}),
        layer(
            "affine, tanh network",
            "affine",
            lambda *, device=None, **o: AffineCoupling(
                half_mask(DIM), MLP(2, (3,), 4, activation=nn.Tanh, device=device, **o), device=device
            ),
        ),
        *(masked(AdditiveCoupling, f"additive, {m}", "additive", MASKS[m]) for m in ("last", "even")),
        *(masked(SplineCoupling, f"spline, {m}", "spline", MASKS[m], n_bins=3) for m in ("last", "even")),
        masked(SplineCoupling, "spline, bound", "spline", MASKS["last"], n_bins=3, bound=2.5),
        masked(SplineCoupling, "spline, minima", "spline", MASKS["last"], n_bins=3, min_bin_width=0.1),
        layer("reverse", "permutation", lambda dtype, **o: Permutation("reverse", DIM, **o)),
        layer("cycle", "permutation", lambda dtype, **o: Permutation([1, 2, 3, 0], **o)),
        flow("affine flow", "flow", composed(AffineCoupling)),
        flow("affine flow, softclip", "flow", composed(AffineCoupling, scale_map="softclip")),
        flow("spline flow", "flow", composed(SplineCoupling, n_bins=3)),
        ModuleSpec("standard normal", lambda **o: StandardNormal(DIM, **o), rows, ("log_prob",), "base",
                   smooth=("log_prob",)),
        base("distribution", Normal),
        base("distribution", Laplace),
    )  # fmt: skip


class TestBoltzmann(ModuleTests):
    specs = (
        ModuleSpec(
            "rbm", lambda **o: RBM(DIM, 3, **o), binary,
            ("free_energy", "log_prob", "hidden_probs", "reconstruct", "energy", "contrastive_loss", "log_partition",
             "gibbs"),
            "rbm",
            smooth=("free_energy", "log_prob", "hidden_probs", "reconstruct", "energy", "contrastive_loss",
                    "log_partition"),
            in_x=False,
        ),
        ModuleSpec("wide rbm", lambda **o: RBM(DIM, 6, **o), binary, ("free_energy", "log_prob"), "rbm",
                   smooth=("log_prob",), in_x=False),
        *(ModuleSpec(
            f"general, {values}", lambda values=values, **o: BoltzmannMachine(DIM, values=values, **o), data,
            ("free_energy", "energy", "conditional", "log_prob", "pseudo_likelihood", "log_partition",
             "contrastive_loss", "gibbs"),
            f"general, {values}",
            smooth=("free_energy", "energy", "conditional", "log_prob", "pseudo_likelihood", "log_partition",
                    "contrastive_loss"),
            in_x=False,
        ) for values, data in (("01", binary), ("pm1", spins))),
        *(ModuleSpec(
            f"sparse, {values}",
            lambda values=values, **o: SparseBoltzmannMachine(DIM, [(0, 1), (1, 2), (2, 3)], values=values, **o),
            data,
            ("free_energy", "energy", "conditional", "log_prob", "pseudo_likelihood", "log_partition",
             "contrastive_loss", "gibbs"),
            f"sparse, {values}",
            smooth=("free_energy", "energy", "conditional", "log_prob", "pseudo_likelihood", "log_partition",
                    "contrastive_loss"),
            in_x=False,
        ) for values, data in (("01", binary), ("pm1", spins))),
        *(ModuleSpec(
            f"general, {n} hidden, T = {T}", lambda n=n, T=T, **o: BoltzmannMachine(DIM, n, temperature=T, **o), binary,
            ("free_energy", "log_prob", "pseudo_likelihood"), "general",
            smooth=("free_energy", "log_prob", "pseudo_likelihood"), in_x=False,
        ) for n, T in ((2, 1.0), (2, 1.7), (3, 1.0))),
    )  # fmt: skip
