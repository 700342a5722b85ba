import pytest
import torch

import genfast
from genfast._errors import RunError

QUICK = {"device": "cpu", "progress": False, "log_every": 50}


@pytest.mark.parametrize(
    ("model", "options"),
    [("radial", {}), ("sylvester", {"layers": 8}), ("sylvester", {"layers": 8, "variant": "householder"})],
)
def test_a_run_learns(model, options):
    x = genfast.data.load("moons").x
    result = genfast.fit(model, x, steps=120, batch_size=256, **options, **QUICK)
    normal = 0.5 * float(torch.logdet(2 * torch.pi * torch.e * x.T.cov()))
    assert float(-result.model.log_prob(x).detach().mean()) < normal - 0.1


@pytest.mark.parametrize("model", ["radial", "sylvester"])
def test_a_density_is_fitted(model):
    result = genfast.fit(model, "u2", steps=60, layers=4, **QUICK)
    assert result.metrics["loss"] < 3


def test_more_units_than_dimensions_are_refused():
    with pytest.raises(RunError, match="units: got 3, want at most the 2 dimensions of the data"):
        genfast.fit("sylvester", "moons", steps=1, units=3, **QUICK)
