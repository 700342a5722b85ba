"""`genfast evaluate`: what it prints and writes, and what it refuses."""

import json

import numpy as np
import pytest

import genfast
from genfast.boltzmann import exact_log_z

TRAIN = ("train", "rbm", "--steps", 30, "--batch-size", 32, "--device", "cpu")
EVALUATE = ("--runs", 20, "--betas", 200, "--sweeps", 20, "--device", "cpu")


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((80, 5, 6)) < 0.3)
    return tmp_path / "images.npy"


def test_a_small_machine_is_evaluated_exactly(run, tmp_path, images):
    folder = tmp_path / "run"
    assert run(*TRAIN, "--data", images, "--hidden", 8, "--out", folder)[0] == 0
    code, out, err = run("evaluate", folder, *EVALUATE)
    assert code == 0, err
    found = json.loads((folder / "evaluation.json").read_text())
    log_z = exact_log_z(genfast.load(folder))
    assert found["log_z"] == {"method": "exact", "log_z": pytest.approx(log_z)}
    assert f"log Z      {log_z:.4f}, exact" in out
    rows = found["train"]
    assert rows["rows"] == 80
    assert -30 < rows["log_likelihood"]["mean"] < -10
    assert rows["pseudo_log_likelihood"]["mean"] > rows["log_likelihood"]["mean"] - 1
    assert "test" not in found


def test_a_larger_machine_is_bracketed(run, tmp_path, images):
    folder = tmp_path / "run"
    assert run(*TRAIN, "--data", images, "--hidden", 21, "--out", folder)[0] == 0
    printed = [run("evaluate", folder, *EVALUATE)[1] for _ in range(2)]
    assert printed[0] == printed[1], "the seed decides"
    found = json.loads((folder / "evaluation.json").read_text())["log_z"]
    exact = exact_log_z(genfast.load(folder))
    assert found["method"] == "AIS"
    assert found["log_z"] == found["lower"]["log_z"] == pytest.approx(exact, abs=0.2)
    assert found["upper"]["log_z"] == pytest.approx(exact, abs=0.2)
    assert "reverse AIS, 20 runs" in printed[0]
    assert "200 betas" in printed[0]


def test_faults(run, tmp_path, images):
    code, _, err = run("evaluate", tmp_path / "nothing")
    assert code == 1
    assert "checkpoint.pt" in err
    assert run(*TRAIN, "--data", images, "--hidden", 4, "--out", tmp_path / "run")[0] == 0
    code, _, err = run("evaluate", tmp_path / "run", "--runs", 1)
    assert code == 1
    assert "--runs" in err
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(50, 2)))
    flow = ("train", "planar", "--data", tmp_path / "points.npy", "--steps", 2, "--layers", 1, "--batch-size", 8)
    assert run(*flow, "--device", "cpu", "--out", tmp_path / "flow")[0] == 0
    code, _, err = run("evaluate", tmp_path / "flow")
    assert code == 1
    assert "planar has no likelihood that genfast evaluate knows" in err
