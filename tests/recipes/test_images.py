"""Flows on images: dequantisation, the logit, bits per dimension, pictures; and the warped grid of the plane."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import genfast
from genfast import data, recipes
from genfast._errors import RunError
from genfast.flows import AffineCoupling, AffineTransform, Flow, Logit, Uniform, checkerboard_mask
from genfast.recipes._flow import FlowOptions, FlowRecipe
from genfast.training.checkpoint import load_checkpoint
from genfast.training.run import resolve

QUICK = {"device": "cpu", "progress": False, "log_every": 10}
SMALL = {"layers": 2, "hidden": 16, "batch_size": 64}


def started(model="nsf", source="digits", **given):
    recipe = recipes.load(model)
    return recipe.start(resolve(recipe, {"data": source, **SMALL, **given}), data.load(source))


def test_digits_are_learned_in_bits_per_dimension(tmp_path):
    result = genfast.fit("nsf", "digits", out=tmp_path, steps=40, **SMALL, **QUICK)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    bits = [row["bits_per_dim"] for row in rows]
    assert bits[-1] < bits[0] < 6
    assert 1 < bits[-1] < math.log2(17), "better than equal pixels, whose bits are log2 17"
    assert result.metrics["bits_per_dim"] == bits[-1]
    assert {"samples.png", "learning_curve.png"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "warped_grid.png").exists()
    model = genfast.load(tmp_path)
    assert isinstance(model.transforms[-2], Logit)
    assert isinstance(model.transforms[-1], AffineTransform)
    x = model.sample(5)
    assert x.shape == (5, 64)
    assert (x > -0.1).all()
    assert (x < 1.2).all()


def test_bits_per_dimension_of_equal_pixels():
    """A flow that is uniform on [0, 17/16] gives each of the 17 values of a digit's pixel the same probability."""
    recipe = started()
    recipe.model = Flow(Uniform(64, 0.0, 17 / 16), [])
    assert recipe.metrics() == {"bits_per_dim": pytest.approx(math.log2(17), rel=1e-5)}
    state = torch.random.get_rng_state()
    recipe.metrics()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_density_is_in_units_of_the_data():
    """log p of the flow against its inner part by the change of variables, in float64."""
    recipe = started(logit=0.1)
    model = recipe.model.double()
    assert float(model.transforms[-1].scale) == pytest.approx(17 / 16)
    x = (recipe.rows[:5].double() + torch.rand(5, 64, dtype=torch.float64) / 16).requires_grad_()
    z = torch.logit(0.1 + 0.8 * x * 16 / 17)
    inner = Flow(copy.deepcopy(model.base), list(model.transforms[:-2]))
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(model.log_prob(x), inner.log_prob(z) + slope.log().sum(1))


def test_a_resumed_run_on_images_is_the_same(tmp_path):
    whole = genfast.fit("realnvp", "digits", out=tmp_path / "whole", steps=12, **SMALL, **QUICK)
    genfast.fit("realnvp", "digits", out=tmp_path / "parts", steps=5, **SMALL, **QUICK)
    parts = genfast.fit("realnvp", out=tmp_path / "parts", steps=12, resume=True, **QUICK)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)


class ImageRecipe(FlowRecipe):
    """A recipe whose layers take images."""

    Options = FlowOptions

    def layers(self):
        return [AffineCoupling(checkerboard_mask(self.image_shape, odd=i % 2 == 0), hidden=(4,)) for i in range(2)]


@pytest.mark.parametrize("options", [{}, {"logit": 0.0}, {"standardize": True}], ids=str)
def test_layers_may_take_images(options):
    torch.manual_seed(0)
    recipe = ImageRecipe.start(FlowOptions(data="digits", **options), data.load("digits"))
    assert recipe.model.event_dim_out == 3
    loss = recipe.loss(recipe.rows[:50])
    loss.backward()
    assert all(p.grad is not None for p in recipe.model.parameters())
    assert loss.isfinite()
    assert recipe.metrics()["bits_per_dim"] < 8
    drawn = recipe.sample(7, None, torch.Generator().manual_seed(0))
    assert drawn.x.shape == (7, 64)
    assert drawn.what == "7 images of 8 x 8 pixels"
    assert drawn.pictures["samples.png"][:4] == b"\x89PNG"


def test_images_of_colour(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (100, 3, 4, 4), dtype=np.uint8)
    result = genfast.fit("nsf", x, out=tmp_path, steps=10, **SMALL, **QUICK)
    assert result.options.logit == 0.05
    assert result.metrics["bits_per_dim"] == pytest.approx(8, abs=3)


def test_a_run_from_before_the_logit_loads_as_it_was(tmp_path):
    """Its options have no `logit`, and its images were standardised."""
    x = np.random.default_rng(0).integers(0, 256, (100, 4, 4), dtype=np.uint8)
    genfast.fit("nsf", x, out=tmp_path, steps=6, standardize=True, **SMALL, **QUICK)
    want = genfast.load(tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
    config = {name: value for name, value in checkpoint.config.items() if name != "logit"}
    dataclasses.replace(checkpoint, config=config).save(tmp_path / "checkpoint.pt")
    got = genfast.load(tmp_path)
    rows = torch.rand(3, 16)
    torch.testing.assert_close(got.log_prob(rows), want.log_prob(rows))
    on = genfast.fit("nsf", x, out=tmp_path, resume=True, steps=8, **QUICK)
    assert on.step == 8


def test_mnist_is_scored_on_its_test_images(monkeypatch):
    torch.manual_seed(0)
    x = (torch.rand(50, 784) * 255).round() / 255
    mnist = data.Dataset("mnist", x, shape=(28, 28), scale=255.0)
    monkeypatch.setattr(data, "load", lambda name, split="train": dataclasses.replace(mnist, x=x.flip(1)))
    recipe = recipes.load("nsf")
    run = recipe.start(resolve(recipe, {"data": "mnist", **SMALL}), mnist)
    found = run.metrics()
    assert found.keys() == {"bits_per_dim", "test_bits_per_dim"}
    assert found["bits_per_dim"] != found["test_bits_per_dim"]
    assert run.curve() == ("bits_per_dim", "bits per dimension")


def test_the_plane_has_a_warped_grid(tmp_path):
    genfast.fit("planar", "u1", out=tmp_path, steps=3, layers=2, **QUICK)
    assert (tmp_path / "warped_grid.png").read_bytes()[:4] == b"\x89PNG"
    genfast.fit("planar", torch.randn(50, 3), out=tmp_path / "space", steps=3, layers=2, **QUICK)
    assert not (tmp_path / "space" / "warped_grid.png").exists()


@pytest.mark.parametrize("model", ["nice", "realnvp", "nsf", "flowplusplus"])
@pytest.mark.parametrize("source", ["moons", "digits"])
def test_models_of_couplings_train(tmp_path, model, source):
    result = genfast.fit(model, source, out=tmp_path, steps=20, **SMALL, **QUICK)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert type(result.model) is Flow


def test_convolutions_are_for_images(tmp_path):
    result = genfast.fit("realnvp", "digits", network="conv", out=tmp_path, steps=2, **{**SMALL, "hidden": 4}, **QUICK)
    assert result.model.sample(3).shape == (3, 1, 8, 8)
    with pytest.raises(RunError, match="network: moons holds no images, want mlp"):
        genfast.fit("realnvp", "moons", network="conv", steps=2, **QUICK)
