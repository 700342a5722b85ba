"""Diagnostics of chains against processes whose autocorrelation is known, and against ArviZ where it is installed."""

import math

import pytest
import torch

from genfast.boltzmann import RBM, diagnostics


def autoregressive(phi, n_chains, n_steps, seed=0, columns=()):
    """x_t = phi x_(t-1) + noise, stationary: autocorrelation time (1 + phi) / (1 - phi)."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_chains, n_steps, *columns, generator=g, dtype=torch.float64)
    x = [noise[:, 0] / math.sqrt(1 - phi**2)]
    for t in range(1, n_steps):
        x.append(phi * x[-1] + noise[:, t])
    return torch.stack(x, 1)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.4])
def test_autocorrelation_time_of_an_autoregressive_process(phi):
    found = diagnostics(autoregressive(phi, 16, 4000), use_arviz=False)
    assert found.autocorrelation_time.item() == pytest.approx((1 + phi) / (1 - phi), rel=0.1)
    assert found.ess.item() == pytest.approx(16 * 4000 / found.autocorrelation_time.item())
    assert found.r_hat.item() == pytest.approx(1, abs=0.01)
    assert found.source == "genfast"


def test_the_error_of_the_mean_is_that_of_ess_draws():
    x = autoregressive(0.8, 400, 500)
    means = x.mean(1)
    per_chain = diagnostics(x, use_arviz=False).ess / 400
    assert means.std().item() == pytest.approx((x.var() / per_chain).sqrt().item(), rel=0.1)


def test_chains_that_differ_are_told():
    x = autoregressive(0.3, 4, 200)
    x[0] += 3
    assert diagnostics(x).r_hat > 1.3
    drift = autoregressive(0.3, 4, 200) + torch.linspace(0, 8, 200)
    assert diagnostics(drift).r_hat > 1.3, "halves of the same chains differ"
    assert diagnostics(autoregressive(0.3, 1, 200)).r_hat < 1.1, "one chain has two halves"


def test_vectors_of_statistics():
    x = autoregressive(0.5, 3, 101, columns=(2, 3))
    found = diagnostics(x, use_arviz=False)
    assert found.ess.shape == found.r_hat.shape == found.autocorrelation_time.shape == (2, 3)
    one = diagnostics(x[:, :, 1, 2], use_arviz=False)
    torch.testing.assert_close(found.ess[1, 2], one.ess)
    torch.testing.assert_close(found.r_hat[1, 2], one.r_hat)


@pytest.mark.parametrize("shape", [(1, 4), (2, 5), (3, 6), (4, 7), (2, 8), (5, 33), (4, 500), (1, 1001)])
@pytest.mark.parametrize("phi", [0.0, 0.7, 0.99, -0.7])
def test_arviz_has_the_same_numbers(shape, phi):
    pytest.importorskip("arviz")
    x = autoregressive(phi, *shape, seed=shape[1])
    ours, theirs = (diagnostics(x, use_arviz=use) for use in (False, True))
    assert theirs.source == "arviz"
    for a, b in ((ours.ess, theirs.ess), (ours.r_hat, theirs.r_hat)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_a_constant_statistic_says_nothing():
    x = torch.stack([torch.ones(3, 20), torch.randn(3, 20)], -1)
    found = diagnostics(x)
    assert found.ess.isnan().tolist() == found.r_hat.isnan().tolist() == [True, False]
    frozen = torch.arange(3.0)[:, None].expand(3, 20)
    assert diagnostics(frozen, use_arviz=False).r_hat.item() == math.inf


def test_chains_of_a_machine():
    rbm = RBM(12, 6, init_std=0.3, generator=torch.Generator().manual_seed(0))
    v, energies = rbm.sample(6, 50, generator=torch.Generator().manual_seed(1)), []
    for step in range(200):
        v, _ = rbm.gibbs(v, seed=step)
        energies.append(rbm.free_energy(v).detach())
    found = diagnostics(torch.stack(energies, 1))
    assert found.r_hat < 1.05
    assert 200 < found.ess < 2000


BAD = {
    "a list": ([[1.0]], TypeError, "chains: got list, want a tensor"),
    "one dimension": (torch.ones(5), ValueError, r"chains: got shape \[5\], want \[n_chains, n_steps, ...\]"),
    "no chains": (torch.ones(0, 5), ValueError, r"chains: got shape \[0, 5\], want \[n_chains, n_steps, ...\]"),
    "three steps": (torch.ones(5, 3), ValueError, "chains: got 3 steps a chain, want at least 4"),
    "no statistics": (torch.ones(5, 8, 0), ValueError, "want at least one statistic"),
    "NaN": (torch.full((5, 8), math.nan), ValueError, "chains: got NaN or infinity"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    x, error, text = BAD[name]
    with pytest.raises(error, match=text):
        diagnostics(x)


def test_arviz_that_is_not_installed(monkeypatch):
    import importlib

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match="ArviZ is not installed; run: pip install arviz"):
        diagnostics(torch.randn(3, 20), use_arviz=True)
