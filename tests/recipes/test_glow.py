"""Glow on images: what it refuses, what sets its scales, and that it learns."""

import json
import math

import pytest
import torch

import genfast
from genfast._errors import RunError
from genfast.flows import ActNormConv1x1

QUICK = {"device": "cpu", "progress": False, "log_every": 10, "depth": 2, "hidden": 16}


def test_a_short_run_learns_digits(tmp_path):
    result = genfast.fit("glow", "digits", out=tmp_path, steps=40, batch_size=64, **QUICK)
    bits = [json.loads(line)["bits_per_dim"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert bits[-1] < bits[0]
    assert 1 < bits[-1] < math.log2(17), "better than equal pixels, whose bits are log2 17"
    assert (tmp_path / "samples.png").stat().st_size > 1000
    model = genfast.load(tmp_path)
    x = genfast.data.load("digits").x[:8].view(8, 1, 8, 8)
    torch.testing.assert_close(model.log_prob(x), result.model.log_prob(x))
    assert model.sample(3).shape == (3, 1, 8, 8)


def test_data_set_the_scales_before_the_first_update():
    """So that a run that goes on, an average of parameters and several processes have the same."""
    result = genfast.fit("glow", "digits", steps=1, lr=1e-30, batch_size=8, average=0, **QUICK)
    norms = [m for m in result.model.modules() if isinstance(m, ActNormConv1x1)]
    assert all(m.initialized for m in norms)
    with torch.no_grad():
        z, _ = result.model.inverse(genfast.data.load("digits").x[:512].view(512, 1, 8, 8))
    assert 0.5 < float(z.std()) < 2


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        ("moons", {}, "glow learns images; moons holds none"),
        ("u1", {}, "glow learns images; u1 holds none"),
        ("digits", {"levels": 4}, "levels: got 4, but images of 8 x 8 pixels cannot be halved as often"),
    ],
)
def test_what_is_no_image_is_refused(source, options, text):
    with pytest.raises(RunError, match=text):
        genfast.fit("glow", source, steps=1, **QUICK, **options)
