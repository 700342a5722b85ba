"""The recipes of autoregressive flows."""

import math

import pytest
import torch

import genfast

QUICK = {"device": "cpu", "progress": False, "log_every": 50}


@pytest.mark.parametrize("model", ["maf", "iaf", "nsf_autoregressive"])
def test_a_normal_with_correlations_is_learned(model):
    """Against the entropy of the normal that drew the data, in its units."""
    g = torch.Generator().manual_seed(0)
    mix = torch.tensor([[20.0, 0.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.5, 0.1]])
    x = torch.randn(4000, 3, generator=g) @ mix.T + 50
    result = genfast.fit(model, x, steps=150, batch_size=256, layers=3, hidden=32, **QUICK)
    entropy = 1.5 * math.log(2 * math.pi * math.e) + math.log(20.0 * 1.0 * 0.1)
    assert float(-result.model.log_prob(x).detach().mean()) == pytest.approx(entropy, abs=0.15)
    drawn = result.model.sample(4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(x.T), rtol=0.3, atol=0.5)


@pytest.mark.parametrize("model", ["maf", "iaf"])
def test_a_density_of_the_plane_and_one_dimension(model, tmp_path):
    result = genfast.fit(model, "u1", out=tmp_path, steps=3, batch_size=64, layers=2, hidden=8, **QUICK)
    assert math.isfinite(result.metrics["loss"])
    assert (tmp_path / "samples.png").exists() or list(tmp_path.glob("**/*.png"))
    line = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    assert math.isfinite(genfast.fit(model, line, steps=3, layers=2, hidden=8, **QUICK).metrics["loss"])
