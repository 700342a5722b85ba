"""Swaps between temperatures: the same decisions everywhere, and the right distribution."""

import math
import re

import pytest
import torch

from genfast import ops
from genfast.reference import tempering as reference
from tests.harness import Small
from tests.ops.test_rbm_gibbs import chi_square_limit


def ladders(n, k, seed=0, spread=4.0):
    g = torch.Generator().manual_seed(seed)
    energies = torch.randn(n, k, generator=g, dtype=torch.float64) * spread
    order = torch.rand(n, k, generator=g).argsort(-1)
    return {"energies": energies, "betas": torch.linspace(0.1, 1.3, k, dtype=torch.float64), "order": order}


SMALL = {
    "tempering_swap": Small(
        lambda: ladders(37, 9), [{"seed": 3, "first_step": s, "first_chain": 11} for s in (0, 1)], exact=True
    ),
    "tempering_swap (one level)": Small(lambda: ladders(5, 1), [{"seed": 3}], exact=True),
    "exchange_swap": Small(
        lambda: {"log_ratio": torch.randn(37, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)},
        [{"seed": 4, "first_step": s} for s in (0, 1)], exact=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (33, 10), (100, 16), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_every_backend_decides_alike(kernels, size, dtype):
    given = ladders(*size)
    given["energies"] = given["energies"].to(dtype)
    here = {k: v.to(kernels.device) for k, v in given.items()}
    for step in (0, 1, 2**32 + 1):
        want = reference.tempering_swap(**given, seed=-7, first_chain=2**32 - 2, first_step=step)
        got = ops.tempering_swap(**here, seed=-7, first_chain=2**32 - 2, first_step=step)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    ratio = torch.randn(size[0], max(size[1] - 1, 0), generator=torch.Generator().manual_seed(2)).to(dtype)
    got = ops.exchange_swap(ratio.to(kernels.device), seed=1)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, reference.exchange_swap(ratio, seed=1), strict=True))


def test_ladders_can_be_split_and_have_leading_dimensions(backend):
    given = {k: v.to(backend.device) for k, v in ladders(12, 5).items()}
    want = ops.tempering_swap(**given, seed=1, first_step=3)
    parts = [
        ops.tempering_swap(given["energies"][i : i + 5], given["betas"], order=given["order"][i : i + 5], seed=1,
                           first_chain=i, first_step=3)
        for i in range(0, 12, 5)
    ]  # fmt: skip
    assert all(torch.equal(torch.cat(a), b) for a, b in zip(zip(*parts, strict=True), want, strict=True))
    shaped = ops.tempering_swap(
        given["energies"].reshape(3, 4, 5), given["betas"], order=given["order"].reshape(3, 4, 5), seed=1, first_step=3
    )
    assert torch.equal(shaped[0], want[0].reshape(3, 4, 5))
    assert torch.equal(shaped[1], want[1].reshape(3, 4, 4))
    listed = ops.tempering_swap(given["energies"], given["betas"].tolist(), order=given["order"], seed=1, first_step=3)
    assert torch.equal(listed[0], want[0])


def test_pairs_are_tried_in_turn_and_downhill_swaps_are_certain(backend):
    """A lower energy at a lower beta always goes up; pairs of the other parity stay."""
    energies = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]], device=backend.device).repeat(64, 1)
    betas = torch.linspace(0, 1, 5, device=backend.device)
    for step, want in ((0, [1, 0, 3, 2, 4]), (1, [0, 2, 1, 4, 3])):
        order, p = ops.tempering_swap(energies, betas, seed=5, first_step=step)
        assert torch.equal(order, torch.tensor(want, device=order.device).repeat(64, 1))
        assert torch.equal(p, torch.ones_like(p))


def test_acceptance_has_the_right_rate(kernels):
    n = 2_000 if kernels.name == "simt" else 50_000
    log_ratio = torch.tensor([0.0, -0.3, -1.0, 2.0, -3.0], device=kernels.device).repeat(n, 1)
    want = log_ratio[0].exp().clamp(max=1).double()
    for step in (0, 1):
        order, p = ops.exchange_swap(log_ratio, seed=9, first_step=step)
        assert torch.allclose(p[0].double(), want, atol=3e-7)
        for i in range(step, 5, 2):
            swapped = int((order[:, i] == i + 1).sum())
            q = want[i].item()
            assert swapped == n if q == 1 else (swapped - n * q) ** 2 / (n * q * (1 - q)) < chi_square_limit(1)
    rounds = torch.stack([ops.exchange_swap(log_ratio[:1], seed=9, first_step=2 * s)[0] for s in range(64)])
    assert len(rounds.unique(dim=0)) > 1, "rounds draw numbers of their own"


def test_swaps_keep_the_product_of_the_distributions(native):
    """Exact draws of every level, swapped: still exact draws of every level, and independent."""
    energy = torch.tensor([0.0, 0.7, 1.5, 3.0], dtype=torch.float64)
    betas = torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64)
    p = torch.softmax(-betas[:, None] * energy, 1)
    n = 60_000
    g = torch.Generator().manual_seed(3)
    states = torch.stack([torch.multinomial(q, n, replacement=True, generator=g) for q in p], 1)
    for step in (0, 1):
        order, _ = ops.tempering_swap(energy[states], betas, seed=4, first_step=step)
        states = states.gather(1, order)
    joint = (p[0][:, None, None] * p[1][None, :, None] * p[2][None, None, :]).flatten()
    counts = torch.bincount(states @ torch.tensor([16, 4, 1]), minlength=64).double()
    assert ((counts - n * joint) ** 2 / (n * joint)).sum().item() < chi_square_limit(63)


def test_the_order_goes_from_call_to_call(backend):
    """Temperatures that move and states that move are the same chain."""
    given = ladders(20, 6)
    energies, betas = given["energies"].to(backend.device), given["betas"].to(backend.device)
    order, moved = None, energies
    for step in range(6):
        order, p = ops.tempering_swap(energies, betas, order=order, seed=2, first_step=step)
        swap, q = ops.tempering_swap(moved, betas, seed=2, first_step=step)
        moved = moved.gather(1, swap)
        assert torch.equal(energies.gather(1, order), moved)
        assert torch.equal(p, q)


def test_nan_and_infinity(backend):
    energies = torch.tensor([[0.0, math.nan, 2.0, 1.0], [0.0, math.inf, -math.inf, 0.0]], device=backend.device)
    for step in (0, 1):
        order, p = ops.tempering_swap(energies, [0.0, 0.3, 0.6, 1.0], seed=1, first_step=step)
        assert p[0, :2].isnan().all()
        assert not p[0, 2].isnan()
        assert p[1, 0] == p[1, 2] == 1
        assert p[1, 1] < 1e-30
        assert order.sort(-1).values.tolist() == [[0, 1, 2, 3]] * 2
    assert ops.tempering_swap(energies, [0.0, 0.3, 0.6, 1.0], seed=1)[0][0, :2].tolist() == [0, 1]


def test_threads_do_not_matter(kernels):
    given = {k: v.to(kernels.device) for k, v in ladders(1000, 20).items()}
    torch.set_num_threads(1)
    want = ops.tempering_swap(**given, seed=1)
    torch.set_num_threads(3)
    assert all(torch.equal(a, b) for a, b in zip(ops.tempering_swap(**given, seed=1), want, strict=True))


def test_compiles_and_maps(native):
    given = ladders(6, 5)
    want = ops.tempering_swap(**given, seed=1)
    got = torch.compile(lambda **t: ops.tempering_swap(**t, seed=1), fullgraph=True, backend="aot_eager")(**given)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    mapped = torch.vmap(lambda e, o: ops.tempering_swap(e, given["betas"], order=o, seed=1)[0])(
        given["energies"].reshape(2, 3, 5), given["order"].reshape(2, 3, 5)
    )
    assert torch.equal(mapped[0], want[0][:3])
    meta = [v.to("meta") for v in given.values()]
    out = torch.ops.genfast.tempering_swap(*meta, torch.empty((), dtype=torch.int64, device="meta"), 0, 0)
    assert [t.shape for t in out] == [(6, 5), (6, 4)]


BAD = {
    "energies": ({"energies": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "energies: got torch.int64, want"),
    "scalar": ({"energies": torch.zeros(())}, ValueError, "energies: got a scalar, want rows"),
    "no level": ({"energies": torch.zeros(3, 0)}, ValueError, "energies: got shape [3, 0], want at least one level"),
    "betas": ({"betas": torch.zeros(3)}, ValueError, "betas: got shape [3], want [4], a number for each level"),
    "order": ({"order": torch.zeros(3, 4)}, TypeError, "order: got torch.float32, want torch.int64"),
    "order's shape": (
        {"order": torch.zeros(4, dtype=torch.int64)}, ValueError, "order: got shape [4], want [3, 4] like energies",
    ),
    "step": ({"first_step": -1}, ValueError, "first_step: got -1, want at least 0"),
    "chain": ({"first_chain": -2}, ValueError, "first_chain: got -2, want at least 0"),
    "seed": ({"seed": 0.5}, TypeError, "seed: got float, want an int or an int64 tensor"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input(backend, what):
    change, error, text = BAD[what]
    arguments = {"energies": torch.zeros(3, 4), "betas": [0.0, 0.2, 0.5, 1.0], **change}
    arguments = {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with pytest.raises(error, match=re.escape(text)):
        ops.tempering_swap(**arguments)


def test_an_order_of_no_replicas_is_refused(native):
    order = torch.tensor([[0, 1, 2], [0, 3, 1]])
    with pytest.raises(ValueError, match=r"order: expected replicas 0 \.\.\. 2, got other numbers"):
        ops.tempering_swap(torch.zeros(2, 3), [0.0, 0.5, 1.0], order=order)
