"""Flows on data of any scale."""

import math

import numpy as np
import pytest
import torch

import genfast
from genfast.flows import Standardize, StandardNormal
from genfast.recipes._grid import grid_step, grid_steps

QUICK = {"device": "cpu", "progress": False, "log_every": 50}


def gauss(n=2000, mean=(130.0, -4.0), std=(60.0, 0.02)):
    g = torch.Generator().manual_seed(0)
    return torch.tensor(mean) + torch.tensor(std) * torch.randn(n, 2, generator=g)


def test_standardize_is_an_affine_map():
    layer = Standardize(2)
    x = gauss()
    layer.measure(x, torch.zeros(2))
    z, log_det = layer.inverse(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(2), atol=1e-2, rtol=0)
    back, forward_log_det = layer(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(forward_log_det, -log_det)
    assert log_det.shape == (len(x),)
    jacobian = torch.autograd.functional.jacobian(lambda z: layer(z)[0], z[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, forward_log_det[0])


@pytest.mark.parametrize("model", ["planar", "realnvp", "nsf", "flowplusplus"])
def test_data_far_from_the_origin_are_learned_in_their_own_units(model):
    """Against the entropy of the normal that drew them: what any bound of a spline must not spoil."""
    x = gauss()
    result = genfast.fit(model, x, steps=150, batch_size=256, **QUICK)
    entropy = sum(math.log(s * math.sqrt(2 * math.pi * math.e)) for s in (60.0, 0.02))
    assert float(-result.model.log_prob(x).detach().mean()) == pytest.approx(entropy, abs=0.15)
    drawn = result.model.sample(4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0.05, atol=0.005)
    torch.testing.assert_close(drawn.std(0), x.std(0), rtol=0.15, atol=0)


def test_what_was_done_to_the_data_is_said(caplog, tmp_path):
    caplog.set_level("INFO", "genfast")
    pixels = torch.randint(0, 256, (500, 2), generator=torch.Generator().manual_seed(0)).float()
    result = genfast.fit("nsf", pixels, out=tmp_path, steps=2, **QUICK)
    assert result.options.standardize
    said = "\n".join(caplog.messages)
    assert "the values of data lie on a grid: uniform noise of width 1 fills it" in said
    assert "data has values from 0 to 255: columns are standardised inside the flow" in said
    caplog.clear()
    genfast.fit("nsf", pixels, out=tmp_path, overwrite=True, steps=2, standardize=False, dequantize=0.0, **QUICK)
    assert "far from the noise near 0 that the flow starts from; the option standardize" in caplog.text
    caplog.clear()
    genfast.fit("nsf", "moons", out=tmp_path, overwrite=True, steps=2, **QUICK)
    assert not caplog.messages


def test_dequantised_data_have_a_bounded_density():
    """Counts of 0 to 3, uniform: the flow may not do better than log 4 a column, however long it trains."""
    x = torch.randint(0, 4, (2000, 2), generator=torch.Generator().manual_seed(0)).float()
    result = genfast.fit("nsf", x, steps=300, batch_size=256, **QUICK)
    assert result.metrics["loss"] > 2 * math.log(4) - 0.05
    raw = genfast.fit("nsf", x, steps=300, batch_size=256, dequantize=0.0, **QUICK)
    assert raw.metrics["loss"] < 2 * math.log(4) - 0.5, "without noise it climbs the points"


@pytest.mark.parametrize(
    ("x", "step"),
    [
        (torch.randint(0, 256, (500, 3)).float(), 1.0),
        (torch.randint(0, 256, (500, 3)) / 255, 1 / 255),
        (torch.randint(0, 17, (500, 3)) / 16, 1 / 16),
        (torch.randint(0, 100, (500, 1)) * 0.25 - 5, 0.25),
        (torch.randn(500, 3), 0.0),
        (torch.randn(500, 3).round(decimals=1), pytest.approx(0.1, rel=1e-3)),
        (torch.full((500, 3), 2.5), 0.0),
        (torch.tensor([[0.1, 0.7], [0.35, 0.2]]), 0.0),
    ],
)
def test_grids_are_found(x, step):
    assert grid_step(x) == pytest.approx(step) if isinstance(step, float) else grid_step(x) == step


def test_columns_have_grids_of_their_own(caplog, tmp_path):
    caplog.set_level("INFO", "genfast")
    g = torch.Generator().manual_seed(0)
    columns = torch.randn(3000, generator=g), torch.randint(0, 5, (3000,), generator=g), torch.rand(3000, generator=g)
    x = torch.stack([*columns[:2], columns[2].round(decimals=1)], 1)
    assert grid_steps(x).tolist() == pytest.approx([0, 1, 0.1], rel=1e-3)
    whole = genfast.fit("realnvp", x, out=tmp_path, steps=6, layers=2, **QUICK)
    assert "2 of 3 columns of data lie on a grid: uniform noise of width 0.1 and 1 fills it" in caplog.text
    genfast.fit("realnvp", x, out=tmp_path / "parts", steps=2, layers=2, **QUICK)
    parts = genfast.fit("realnvp", x, out=tmp_path / "parts", steps=6, resume=True, **QUICK)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_constant_column_is_named(caplog, tmp_path):
    caplog.set_level("INFO", "genfast")
    x = torch.cat([torch.randn(100, 2), torch.ones(100, 2)], 1)
    genfast.fit("realnvp", x, out=tmp_path, steps=2, layers=2, **QUICK)
    assert "column 2 of data is constant, as are 1 others: its density has no bound" in caplog.text


def test_the_rate_falls_and_gradients_are_clipped():
    from genfast import recipes
    from genfast.training.run import resolve

    recipe_type = recipes.load("realnvp")
    recipe = recipe_type.start(resolve(recipe_type, {"lr": 0.1, "lr_decay": 10}), genfast.data.load("moons"))
    optimizer = recipe.optimizer()
    for p in recipe.model.parameters():
        p.grad = torch.ones_like(p)
    recipe.before_update(optimizer, 30)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 4)
    norm = torch.nn.utils.get_total_norm([p.grad for p in recipe.model.parameters()])
    assert float(norm) == pytest.approx(1.0, rel=1e-4)
    assert optimizer.defaults["fused"]


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_pictures_of_any_width(tmp_path, dim):
    x = torch.randn(300, dim) * 7 + 3
    genfast.fit("planar", x, out=tmp_path, steps=3, layers=2, **QUICK)
    assert (tmp_path / "samples.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_density_on_the_grid_is_that_of_the_flow():
    from genfast.recipes._flow import _on_grid

    density = _on_grid(StandardNormal(2).double().log_prob, (-6.0, 6.0, -6.0, 6.0))
    assert density.sum() * (12 / 300) ** 2 == pytest.approx(1, abs=1e-4)
    assert np.unravel_index(density.argmax(), density.shape) in [(149, 149), (149, 150), (150, 149), (150, 150)]
