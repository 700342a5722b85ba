"""`genfast train` and `genfast sample`: what they write, and that a resumed run is the run it resumes."""

import json

import numpy as np
import pytest
import torch

from genfast.training.checkpoint import CHECKPOINT, load_checkpoint
from genfast.training.metrics import read_metrics

RBM = ("train", "rbm", "--hidden", 16, "--batch-size", 32, "--log-every", 5, "--device", "cpu")
FLOW = ("--batch-size", 64, "--log-every", 5, "--device", "cpu")


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


def same(a, b):
    """Equal, bit for bit, all the way down."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def state(folder):
    checkpoint = load_checkpoint(folder / CHECKPOINT)
    return {k: getattr(checkpoint, k) for k in ("step", "model", "average", "optimizer", "ranks")}


def test_rbm_run_writes_everything(run, tmp_path):
    code, out, err = run(*RBM, "--steps", 20, "--out", tmp_path / "run")
    assert code == 0, err
    assert "step 20" in out
    assert "pseudo-log-likelihood" in out
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["checkpoint.pt", "config.json", "filters.png", "learning_curve.png", "metrics.jsonl", "samples.png"]
    )
    for name in ("samples.png", "filters.png", "learning_curve.png"):
        assert is_png(folder / name), name
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert all({"loss", "seconds", "samples_per_second", "epoch", "pseudo_likelihood"} <= row.keys() for row in rows)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"], config["data"], config["hidden"], config["steps"]) == ("rbm", "digits", 16, 20)


@pytest.mark.parametrize(
    ("model", "data"),
    [("planar", "u1"), ("planar", "moons"), ("realnvp", "checkerboard"), ("nsf", "u4"), ("nsf", "rings")],
)
def test_flow_runs(run, tmp_path, model, data):
    code, out, err = run("train", model, "--data", data, "--layers", 2, *FLOW, "--steps", 6, "--out", tmp_path)
    assert code == 0, err
    assert "step 6" in out
    assert is_png(tmp_path / "samples.png")
    assert is_png(tmp_path / "learning_curve.png")
    code, out, err = run("sample", tmp_path, "-n", 50, "--out", tmp_path / "drawn")
    assert code == 0, err
    samples = np.load(tmp_path / "drawn" / "samples.npy")
    assert samples.shape == (50, 2)
    assert np.isfinite(samples).all()
    assert is_png(tmp_path / "drawn" / "samples.png")


@pytest.mark.parametrize("method", ["pcd", "cd"])
def test_rbm_resumes_bit_for_bit_in_the_middle_of_an_epoch(run, tmp_path, method):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = (*RBM, "--method", method, "--seed", 3, "--k", 2)
    assert run(*options, "--steps", 80, "--out", whole)[0] == 0
    assert run(*options, "--steps", 35, "--out", parts)[0] == 0
    torch.manual_seed(99)  # the process's own state must not matter
    assert run("train", "rbm", "--resume", "--log-every", 5, "--steps", 70, "--out", parts)[0] == 0
    assert run("train", "rbm", "--resume", "--log-every", 5, "--steps", 80, "--out", parts)[0] == 0
    assert same(state(whole), state(parts))
    losses = [{row["step"]: row["loss"] for row in read_metrics(f / "metrics.jsonl")} for f in (whole, parts)]
    assert losses[0][80] != losses[0][75]
    assert {step: losses[1][step] for step in (5, 60, 80)} == {step: losses[0][step] for step in (5, 60, 80)}
    if method == "pcd":
        assert state(parts)["ranks"][0]["chains"].shape == (32, 64)


@pytest.mark.parametrize(("model", "data"), [("planar", "u2"), ("realnvp", "moons")])
def test_flow_resumes_bit_for_bit(run, tmp_path, model, data):
    options = ("train", model, "--data", data, "--layers", 2, *FLOW)
    assert run(*options, "--steps", 15, "--out", tmp_path / "whole")[0] == 0
    assert run(*options, "--steps", 7, "--out", tmp_path / "parts")[0] == 0
    assert run("train", model, "--resume", "--steps", 15, "--out", tmp_path / "parts")[0] == 0
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_resume_of_a_finished_run_says_so_and_changes_no_state(run, tmp_path):
    assert run(*RBM, "--steps", 5, "--out", tmp_path)[0] == 0
    before = state(tmp_path)
    code, out, _ = run("train", "rbm", "--resume", "--out", tmp_path)
    assert code == 0
    assert "has its 5 steps already" in out
    assert same(before, state(tmp_path))


def test_resume_drops_metrics_past_the_checkpoint(run, tmp_path):
    assert run(*RBM, "--steps", 10, "--out", tmp_path)[0] == 0
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "loss": 1.0}\n{"step": 20, "lo')
    assert run("train", "rbm", "--resume", "--steps", 20, "--log-every", 5, "--out", tmp_path)[0] == 0
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert rows[2]["loss"] != 1.0


def test_seeds_choose_the_run(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(*RBM, "--steps", 5, "--seed", seed, "--out", tmp_path / name)[0] == 0
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))
    assert not torch.equal(state(tmp_path / "a")["model"]["W"], state(tmp_path / "c")["model"]["W"])


def test_backend_reference_is_the_same_run(run, tmp_path):
    for name in ("native", "reference"):
        assert run(*RBM, "--steps", 10, "--backend", name, "--out", tmp_path / name)[0] == 0
    native, reference = (state(tmp_path / name) for name in ("native", "reference"))
    assert torch.equal(native["ranks"][0]["chains"], reference["ranks"][0]["chains"])
    torch.testing.assert_close(native["model"]["W"], reference["model"]["W"], rtol=1e-4, atol=1e-6)


def test_training_raises_the_pseudo_likelihood(run, tmp_path):
    code, _, err = run("train", "rbm", "--hidden", 64, "--epochs", 12, "--method", "cd", "--out", tmp_path)
    assert code == 0, err
    values = [row["pseudo_likelihood"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert values[-1] > values[0] + 2


def test_a_file_of_images(run, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.random((60, 5, 7)) < 0.4)
    data = tmp_path / "images.npy"
    assert run(*RBM, "--data", data, "--steps", 5, "--out", tmp_path / "run")[0] == 0
    data.unlink()
    code, _, err = run("sample", tmp_path / "run", "-n", 9, "--sweeps", 5)
    assert code == 0, err
    samples = np.load(tmp_path / "run" / "samples" / "samples.npy")
    assert samples.shape == (9, 35)
    assert set(np.unique(samples)) <= {0.0, 1.0}


def test_a_file_of_points_in_more_dimensions(run, tmp_path):
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(100, 3)))
    code, _, err = run(
        "train",
        "realnvp",
        "--data",
        tmp_path / "points.npy",
        "--layers",
        2,
        *FLOW,
        "--epochs",
        2,
        "--out",
        tmp_path / "r",
    )
    assert code == 0, err
    assert is_png(tmp_path / "r" / "samples.png")


def test_samples_follow_their_seed(run, tmp_path):
    assert run(*RBM, "--steps", 5, "--out", tmp_path)[0] == 0
    drawn = []
    for seed in (0, 0, 1):
        assert run("sample", tmp_path, "-n", 20, "--sweeps", 10, "--seed", seed)[0] == 0
        drawn.append(np.load(tmp_path / "samples" / "samples.npy"))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_overwrite_starts_anew(run, tmp_path):
    assert run(*RBM, "--steps", 5, "--out", tmp_path)[0] == 0
    assert run(*RBM, "--steps", 10, "--seed", 5, "--overwrite", "--out", tmp_path)[0] == 0
    assert state(tmp_path)["step"] == 10
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [5, 10]


def test_info(run):
    code, out, _ = run("info")
    assert code == 0
    for word in ("genfast", "torch", "CPU kernels", "OpenMP", "CUDA kernels"):
        assert word in out


def test_bench_forwards_its_options(run):
    code, _, err = run("bench", "--help")
    assert code == 0, err
    code, _, err = run("bench", "no-such-benchmark")
    assert code == 2
    assert "no benchmark is called 'no-such-benchmark'" in err


def test_demo(run, tmp_path, monkeypatch):
    from genfast.training import demo

    monkeypatch.setattr(demo, "EPOCHS", 3)
    code, out, err = run("demo", "--out", tmp_path)
    assert code == 0, err
    assert is_png(tmp_path / "demo.png")
    assert "times" in out
    assert "than plain PyTorch" in out
