"""The recipe of the general machine: what it learns, its chains, pictures, samples, and a run that was killed."""

import math
import os
import signal
import time

import pytest
import torch

import genfast
from genfast import data
from genfast._errors import RunError
from genfast.cli import entry
from genfast.training import sample
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint
from genfast.training.evaluate import evaluate
from genfast.training.run import resolve
from tests.cli.conftest import start as start_command

QUICK = {"device": "cpu", "progress": False, "batch_size": 16, "log_every": 10, "hidden": 6, "chains": 20}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bm")
    genfast.fit("bm", out=folder, steps=30, **QUICK)
    return folder


def test_a_run_has_pictures_and_chains(digits):
    names = {"samples.png", "couplings.png", "completions.png", "learning_curve.png"}
    assert all((digits / name).stat().st_size > 1000 for name in names)
    machine = genfast.load(digits)
    assert (machine.n_visible, machine.n_hidden, machine.n_chains) == (64, 6, 20)
    checkpoint = load_checkpoint(digits / CHECKPOINT)
    assert not torch.equal(checkpoint.average["bias"], checkpoint.model["bias"])
    assert torch.equal(machine.bias, checkpoint.average["bias"])


def test_samples_start_from_the_persistent_chains(digits, tmp_path):
    machine = genfast.load(digits)
    drawn, _ = sample(digits, 16, sweeps=3, out=tmp_path)
    g = torch.Generator().manual_seed(0)
    start = machine.chains[torch.randperm(20, generator=g)[:16]]
    assert torch.equal(drawn.x, machine.gibbs(start, 3, generator=g)[:, :64])
    assert "16 states of 64 units, 3 sweeps from the persistent chains" in drawn.what
    fresh, _ = sample(digits, 16, sweeps=3, fresh=True, temperature=0.5, out=tmp_path)
    assert "3 sweeps of new chains" in fresh.what
    assert len(sample(digits, 50, sweeps=20, out=tmp_path)[0].x.unique(dim=0)) == 50


@pytest.mark.parametrize("method", ["pcd", "cd", "pl"])
def test_every_method_learns(method):
    """Digits from independent units at their rates, -24.5 nats of pseudo-likelihood."""
    options = {"hidden": 0} if method == "pl" else {"hidden": 8}
    history = genfast.fit("bm", steps=120, method=method, lr=0.02, average=0, **{**QUICK, **options}).history
    assert history[-1]["pseudo_likelihood"] > history[0]["pseudo_likelihood"] + 2
    assert "log_likelihood" not in history[-1], "72 units are not enumerated"


BEST = (12 * math.log(1 / 16) + 4 * math.log(2 / 16)) / 16


def test_bars_and_stripes_have_their_exact_likelihood():
    result = genfast.fit("bm", data="bars-and-stripes", steps=400, progress=False, device="cpu")
    rows, history = data.load("bars-and-stripes").x, result.history
    assert history[0]["log_likelihood"] < history[-1]["log_likelihood"] < BEST
    assert history[-1]["log_likelihood"] == pytest.approx(float(result.model.log_prob(rows).detach().mean()), abs=1e-4)
    assert history[-1]["log_likelihood"] > -3.8, "uniform guesses reach -6.24"
    assert result.score[0] == "log-likelihood"


def test_exact_likelihood_reaches_the_best():
    result = genfast.fit(
        "bm", data="bars-and-stripes", steps=200, lr=0.1, average=0, method="ml", progress=False, device="cpu"
    )
    assert 1.05 * BEST < result.metrics["log_likelihood"] < BEST


def test_temperature():
    """The same distribution at another temperature, with couplings and fields that are larger in proportion."""
    machine = genfast.fit("bm", steps=3, temperature=2.0, **QUICK).model
    assert machine.temperature == 2.0
    v = data.load("digits").binarized().x
    p = machine.conditional(machine.sample_hidden(v[:500], 1)).detach()[:, :64]
    assert float((p.mean(0) - v.mean(0)).abs().max()) < 0.2


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    arguments = ["train", "bm", "--steps", "60", "--checkpoint-every", "10", "--device", "cpu", "--hidden", "6"]
    more = ["--batch-size", "16", "--chains", "20", "--threads", "1", "--out"]
    process = start_command(*arguments[:3], "100000", *arguments[4:], *more, str(tmp_path / "parts"))
    deadline = time.monotonic() + 60
    while not (tmp_path / "parts" / CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    at = load_checkpoint(tmp_path / "parts" / CHECKPOINT).step
    options = {**QUICK, "log_every": None, "checkpoint_every": 10, "threads": 1}
    genfast.fit("bm", out=tmp_path / "whole", steps=at + 20, **options)
    genfast.fit("bm", out=tmp_path / "parts", steps=at + 20, resume=True, progress=False, device="cpu", threads=1)
    a, b = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "parts"))
    assert a.step == b.step == at + 20
    for x, y in ((a.model, b.model), (a.average, b.average)):
        assert all(torch.equal(value, y[name]) for name, value in x.items())
    assert torch.equal(genfast.load(tmp_path / "whole").chains, genfast.load(tmp_path / "parts").chains)


def test_evaluation(digits, tmp_path):
    """A large machine by annealed importance sampling and its bound, a small one exactly."""
    large = evaluate(digits, runs=4, betas=50, sweeps=20)
    assert large["log_z"]["upper"]["method"] == "reverse AIS"
    assert large["train"]["rows"] == 1797
    assert large["train"]["log_likelihood"]["mean"] < 0
    assert "bound" not in large["train"]["log_likelihood"]["method"], "6 hidden units are summed out"
    assert large["train"]["pseudo_log_likelihood"]["method"] == "pseudo-likelihood"
    small = genfast.fit("bm", data="bars-and-stripes", out=tmp_path, steps=40, progress=False, device="cpu")
    found = evaluate(tmp_path)
    assert found["log_z"]["method"] == "exact"
    for key, name in (("log_likelihood", "log_likelihood"), ("pseudo_log_likelihood", "pseudo_likelihood")):
        assert found["train"][key]["mean"] == pytest.approx(small.metrics[name], abs=1e-4)


def test_a_bound_is_called_one(tmp_path, capsys):
    genfast.fit("bm", out=tmp_path, steps=3, **{**QUICK, "hidden": 30})
    assert entry.run(["evaluate", str(tmp_path), "--runs", "3", "--betas", "10", "--sweeps", "3"]) == 0
    assert "nats, variational bound on the log-likelihood of a row" in capsys.readouterr().out


def test_divergence_names_the_step_and_the_parameter():
    with pytest.raises(FloatingPointError, match=r"step \d+: .*(couplings|bias|diverged)"):
        genfast.fit("bm", steps=50, **{**QUICK, "lr": 1e30})


def test_a_machine_of_colour_images(tmp_path):
    images = (torch.rand(40, 3, 4, 5) < 0.4).float()
    genfast.fit("bm", images, out=tmp_path, steps=3, **QUICK)
    drawn, folder = sample(tmp_path, 4, sweeps=2)
    assert drawn.x.shape == (4, 60)
    assert (folder / "samples.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "moons"}, "learns binary images, not moons"),
        ({"data": torch.randn(9, 4)}, "a Boltzmann machine wants them in"),
        ({"method": "pl", "hidden": 11}, "hidden: got 11, want at most 10 with method pl"),
        ({"method": "exact"}, "method: got 'exact', want one of pcd, cd, pl, ml"),
        ({"method": "ml"}, "method ml: got 64 visible and 64 hidden units, want at most 20 in all"),
        ({"temperature": 0.0}, "temperature: got 0.0, want above 0"),
        ({"k": 0}, "k: got 0, want at least 1"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(RunError, match=message):
        genfast.fit("bm", **{"steps": 2, "progress": False, **options})


def test_presets():
    from genfast.recipes.bm import Recipe

    assert resolve(Recipe, {}).hidden == 64
    assert resolve(Recipe, {"method": "pl"}).hidden == 0
    assert resolve(Recipe, {"data": "bars-and-stripes"}).hidden == 6
    assert resolve(Recipe, {"data": "bars-and-stripes", "method": "pl"}).hidden == 0
    assert resolve(Recipe, {"data": "bars-and-stripes", "hidden": 3}).hidden == 3
