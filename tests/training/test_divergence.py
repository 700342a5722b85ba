"""A run that leaves its start for numbers without meaning says so; a slow or noisy one does not."""

import pytest
import torch

import genfast
from genfast._finite import DivergenceError, check_finite, parameter_norm
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint

QUICK = {"device": "cpu", "log_every": 10, "progress": False}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("rbm", {"lr": 1e30}),
        ("rbm", {"lr": 1e4}),
        ("rbm", {"lr": 1e30, "method": "pcd"}),
        ("planar", {"lr": 1e30}),
        ("realnvp", {"lr": 1e30}),
        ("realnvp", {"lr": 1e3}),
        ("nsf", {"lr": 1e30}),
    ],
)
def test_a_diverging_run_says_so(tmp_path, model, options):
    with pytest.raises(DivergenceError, match=r"^step \d+: .*\(a lower lr usually helps; no checkpoint was written\)$"):
        genfast.fit(model, out=tmp_path, steps=60, **QUICK, **options)
    assert not (tmp_path / CHECKPOINT).exists()


def test_the_last_good_checkpoint_is_kept(tmp_path):
    genfast.fit("rbm", out=tmp_path, hidden=8, steps=20, **QUICK)
    path = tmp_path / CHECKPOINT
    checkpoint = load_checkpoint(path)
    checkpoint.optimizer["param_groups"][0]["lr"] = 1e30
    checkpoint.save(path)
    before = path.read_bytes()
    with pytest.raises(DivergenceError, match="the checkpoint of step 20 is from before"):
        genfast.fit("rbm", out=tmp_path, resume=True, steps=60, **QUICK)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("rbm", {"lr": 2.0}),
        ("rbm", {"lr": 1.0, "batch_size": 1}),
        ("rbm", {"lr": 1e-12}),
        ("planar", {"lr": 0.3, "batch_size": 4, "clip": 0.0}),
        ("realnvp", {"lr": 0.03, "batch_size": 4, "clip": 0.0}),
        ("nsf", {"lr": 0.03, "batch_size": 4, "clip": 0.0}),
        ("nsf", {"lr": 1e-12}),
    ],
)
def test_a_slow_or_noisy_run_is_no_alarm(model, options):
    assert genfast.fit(model, steps=100, **QUICK, **options).step == 100


def test_outliers_are_no_alarm():
    """Cauchy data: now and then a row a thousand deviations out."""
    torch.manual_seed(0)
    x = torch.distributions.Cauchy(0.0, 1.0).sample((500, 2))
    assert genfast.fit("realnvp", x, steps=60, batch_size=32, **QUICK).step == 60


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_norm_sees_every_value(value):
    module = torch.nn.Sequential(torch.nn.Linear(40, 33), torch.nn.Linear(33, 1).half())
    assert parameter_norm(module) < 100
    for parameter in module.parameters():
        with torch.no_grad():
            before = parameter.flatten()[-1].item()
            parameter.view(-1)[-1] = value
            with pytest.raises(FloatingPointError, match="1 non-finite values"):
                check_finite(module)
            parameter.view(-1)[-1] = before


def test_large_finite_parameters_are_finite():
    """Their norm is past float32, which is no fault of theirs."""
    module = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(module.weight, 1e38)
    check_finite(module)
