"""The joint energy of an RBM's states: exact, and so the same bits everywhere."""

import math
import re

import pytest
import torch

from genfast import ops
from genfast.reference import joint_energy as reference
from tests.harness import Small
from tests.ops.test_rbm_gibbs import machine, states


def given(n, nv, nh, density=0.4, dtype=torch.float64):
    W, vbias, hbias = machine(nv, nh, dtype=dtype)
    v, h = states(n, nv, density, dtype), states(n, nh, 0.5, dtype, seed=1)
    return {"v": v, "h": h, "W": W, "vbias": vbias, "hbias": hbias}


SMALL = {
    "rbm_joint_energy": Small(lambda: given(35, 37, 41), exact=True),
    "rbm_joint_energy (one unit)": Small(lambda: given(3, 1, 1), exact=True),
    "rbm_joint_energy (density 0.05)": Small(lambda: given(130, 150, 137, 0.05), exact=True),
}

# (chains, visible, hidden, density): one unit, odd sizes, around words and panels; sums by rows and by tables; no chain
SIZES = [
    (1, 1, 1, 0.5), (3, 5, 7, 0.5), (17, 33, 64, 0.9), (70, 100, 65, 0.04), (33, 64, 129, 0.5), (0, 4, 3, 0.5),
    (150, 70, 90, 0.3),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_backend_gives_the_same_bits(kernels, size, dtype):
    tensors = given(*size, dtype)
    want = reference.rbm_joint_energy(**tensors)
    got = ops.rbm_joint_energy(**{k: t.to(kernels.device) for k, t in tensors.items()})
    assert got.dtype == torch.float64
    assert torch.equal(got.cpu(), want)


def test_it_is_the_energy(backend):
    """Beside the formula in float64; the rounding to fixed point is that of a float32 product."""
    t = {k: x.to(backend.device) for k, x in given(50, 120, 90).items()}
    want = -(t["v"] @ t["vbias"]) - t["h"] @ t["hbias"] - ((t["v"] @ t["W"]) * t["h"]).sum(1)
    assert torch.allclose(ops.rbm_joint_energy(**t), want, rtol=0, atol=1e-4)
    assert not torch.allclose(ops.rbm_joint_energy(**{**t, "hbias": t["hbias"] + 0.01}), want, rtol=0, atol=1e-4)


def test_a_chain_alone_has_the_energy_that_it_has_among_others(kernels):
    t = {k: x.to(kernels.device) for k, x in given(70, 90, 50, dtype=torch.float32).items()}
    whole = ops.rbm_joint_energy(**t)
    for i in (0, 37, 69):
        assert torch.equal(ops.rbm_joint_energy(**{**t, "v": t["v"][i], "h": t["h"][i]}), whole[i])
    torch.set_num_threads(1)
    assert torch.equal(ops.rbm_joint_energy(**t), whole)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16], ids=str)
def test_state_dtypes(kernels, dtype):
    t = {k: x.to(kernels.device) for k, x in given(21, 40, 35, dtype=torch.float32).items()}
    want = ops.rbm_joint_energy(**t)
    assert torch.equal(ops.rbm_joint_energy(**{**t, "v": t["v"].to(dtype), "h": t["h"].to(dtype)}), want)


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-44, 0.0], ids=str)
def test_weights_of_any_size(kernels, scale):
    t = given(19, 37, 50, dtype=torch.float32)
    t |= {k: t[k] * scale for k in ("W", "vbias", "hbias")}
    want = reference.rbm_joint_energy(**t)
    assert torch.equal(ops.rbm_joint_energy(**{k: x.to(kernels.device) for k, x in t.items()}).cpu(), want)
    assert want.isfinite().all()


def test_very_many_hidden_units_overflow_nothing(native):
    """2^15 large fields and more: their sum leaves every 32-bit number on the way."""
    n_hidden = 33_000
    t = {
        "v": torch.ones(20, 2), "h": torch.ones(20, n_hidden), "W": torch.full((2, n_hidden), -1.0),
        "vbias": torch.zeros(2), "hbias": torch.zeros(n_hidden),
    }  # fmt: skip
    assert torch.equal(ops.rbm_joint_energy(**t), torch.full((20,), 2.0 * n_hidden, dtype=torch.float64))


def test_numbers_that_are_not_finite(backend):
    t = {k: x.to(backend.device) for k, x in given(5, 20, 10, dtype=torch.float32).items()}
    for key in ("W", "vbias", "hbias"):
        bad = {**t, key: t[key].clone()}
        bad[key].view(-1)[2] = math.inf
        assert ops.rbm_joint_energy(**bad).isnan().all()


@pytest.mark.parametrize("key", ["v", "h"])
@pytest.mark.parametrize("value", [2.0, 0.5, -1.0, math.nan])
def test_other_states_are_refused(backend, key, value):
    t = {k: x.to(backend.device) for k, x in given(40, 70, 10, dtype=torch.float32).items()}
    t[key] = t[key].clone()
    t[key][33, 3] = value
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match="v, h: expected states that are 0 or 1, got other values"):
            ops.rbm_joint_energy(**t)
    else:
        assert ops.rbm_joint_energy(**t).isnan().nonzero().tolist() == [[33]]


def test_bad_input(backend):
    t = {k: x.to(backend.device) for k, x in given(5, 4, 3, dtype=torch.float32).items()}
    for change, error, text in (
        ({"h": t["h"][:4]}, ValueError, "h: got shape [4, 3], want [5, 3], a row of n_hidden for each of v"),
        ({"h": t["h"].double()}, TypeError, "h: got torch.float64, want torch.float32 like v"),
        ({"hbias": t["hbias"][:2]}, ValueError, "hbias: got shape [2], want [n_hidden] of W"),
    ):
        with pytest.raises(error, match=re.escape(text)):
            ops.rbm_joint_energy(**{**t, **change})


def test_compiles_and_maps(native):
    t = given(6, 5, 4, dtype=torch.float32)
    want = ops.rbm_joint_energy(**t)
    compiled = torch.compile(lambda **t: ops.rbm_joint_energy(**t), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**t), want)
    rest = {k: t[k] for k in ("W", "vbias", "hbias")}
    mapped = torch.vmap(lambda v, h: ops.rbm_joint_energy(v, h, **rest))(
        t["v"].reshape(2, 3, 5), t["h"].reshape(2, 3, 4)
    )
    assert torch.equal(mapped.flatten(), want)
