"""Whatever is wrong: one sentence, an exit code, no traceback, and files that are whole."""

import json
import os
import resource
import signal
import time

import numpy as np
import pytest
import torch

from genfast._errors import WriteError
from genfast.cli import entry
from genfast.training import files
from genfast.training.checkpoint import CHECKPOINT, FORMAT, load_checkpoint
from genfast.training.metrics import METRICS
from tests.cli.conftest import start

QUICK = ("--hidden", 8, "--steps", 4, "--batch-size", 16, "--device", "cpu")


@pytest.fixture
def finished(run, tmp_path):
    """A finished run."""
    assert run("train", "rbm", *QUICK, "--out", tmp_path / "run")[0] == 0
    return tmp_path / "run"


def refused(result, *words, code=1):
    """Check that a command said no in one sentence."""
    got, _, err = result
    assert got == code
    assert "Traceback" not in err
    for word in words:
        assert word in err
    if code == 1:
        assert err.count("\n") == 1, err
        assert err.startswith("genfast: error: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "gan"], ["unknown model 'gan'", ", planar, "]),
        (["train", "rbm", "--data", "cifar"], ["unknown data set 'cifar'", "digits"]),
        (["train", "rbm", "--data", "u1"], ["an RBM learns binary images, not u1"]),
        (["train", "planar", "--data", "u1", "--logit", "0.1"], ["--logit: u1 is a density, want rows of data"]),
        (["train", "nsf", "--data", "moons", "--logit", "0.1"], ["--logit: moons has values from", "want [0, 1]"]),
        (["train", "nsf", "--logit", "0.1", "--standardize"], ["--logit and --standardize: got both"]),
        (["train", "rbm", "--data", "missing.npy"], ["there is no file missing.npy"]),
        (["train", "rbm", "--epochs", "0"], ["--epochs: got 0, want at least 1"]),
        (["train", "rbm", "--batch-size", "-3"], ["--batch-size: got -3"]),
        (["train", "rbm", "--hidden", "0"], ["--hidden: got 0"]),
        (["train", "rbm", "--lr", "nan"], ["--lr: got nan"]),
        (["train", "rbm", "--lr", "0"], ["--lr: got 0"]),
        (["train", "rbm", "--method", "ml"], ["--method: got 'ml'", "pcd, cd"]),
        (["train", "rbm", "--momentum", "1"], ["--momentum: got 1.0"]),
        (["train", "--steps", "3", "rbm"], ["name the model first: genfast train MODEL --steps"]),
        (["train", "rbm", "--steps", "3", "--epochs", "3"], ["give --steps or --epochs, not both"]),
        (["train", "planar", "--data", "u1", "--epochs", "3"], ["u1 is a density without epochs; give --steps"]),
        (["train", "rbm", "--device", "tpu"], ["--device: got 'tpu'"]),
        (["train", "rbm", "--device", "gpu?"], ["--device: got 'gpu?'"]),
        (["train", "rbm", "--threads", "0"], ["--threads: got 0"]),
        (["train", "rbm", "--checkpoint-every", "0"], ["--checkpoint-every: got 0"]),
        (["train", "rbm", "--resume", "--overwrite"], ["give --resume or --overwrite, not both"]),
        (["train", "rbm", "--resume"], ["there is no checkpoint"]),
        (["train", "rbm", "--seed", "-1"], ["--seed: got -1, want at least 0 and at most 18446744073709551615"]),
        (["train", "rbm", "--seed", str(2**64)], [f"--seed: got {2**64}, want at least 0"]),
        (["train", "nsf", "--standardize", "--data", "u1", "--steps", "3"], ["--standardize: u1 is a density"]),
    ],
    ids=lambda a: " ".join(a[1:]) if a[0] == "train" else "",
)
def test_bad_options(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused(run(*arguments, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists(), "a refused call changes nothing"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["train", "rbm"], "--out"),
        (["train", "rbm", "--out", "x", "--epochs", "many"], "--epochs"),
        (["train", "rbm", "--out", "x", "--backend", "fast"], "fast"),
        (["dance"], "dance"),
        (["train", "rbm", "--out", "x", "--colour", "red"], "--colour"),
        (["train", "rbm", "--out", "x", "--layers", "3"], "--layers"),
        (["train", "planar", "--out", "x", "--hidden", "3"], "--hidden"),
        (["sample", "x", "--seed", "one"], "--seed"),
    ],
)
def test_usage_errors(run, tmp_path, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    refused(run(*arguments), word, code=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((5, 4), np.nan), ["20 values that are NaN or infinite", "row 0, column 0"]),
        (np.array([[0.0, 1.0], [1.0, np.inf]]), ["1 values that are NaN or infinite", "row 1, column 1"]),
        (np.zeros(5), ["shape [5], want [N, D]"]),
        (np.zeros((0, 5)), ["shape [0, 5]"]),
        (np.zeros((2, 2, 4, 5)), ["shape [2, 2, 4, 5]"]),
        (np.array([["a", "b"]]), ["want numbers"]),
        (np.array([[1j, 2j]]), ["want numbers"]),
        (np.array([[0.0, 255.0]]), ["values from 0 to 255; an RBM wants them in [0, 1]"]),
        (np.array([[{}, 1]], dtype=object), ["cannot read"]),
    ],
)
def test_bad_arrays(run, tmp_path, array, words):
    path = tmp_path / "data.npy"
    np.save(path, array, allow_pickle=True)
    refused(run("train", "rbm", "--data", path, *QUICK, "--out", tmp_path / "out"), *words)


def test_a_file_that_is_no_array(run, tmp_path):
    path = tmp_path / "data.npy"
    path.write_text("hello")
    refused(run("train", "rbm", "--data", path, "--out", tmp_path / "out"), "cannot read", "data.npy")


def test_one_dimension_is_too_few_for_a_coupling(run, tmp_path):
    np.save(tmp_path / "line.npy", np.zeros((9, 1)))
    result = run("train", "realnvp", "--data", tmp_path / "line.npy", "--out", tmp_path / "out")
    refused(result, "has 1, want at least 2")


def test_an_existing_run_is_kept(run, finished):
    before = {p.name: p.read_bytes() for p in finished.iterdir()}
    refused(run("train", "rbm", *QUICK, "--out", finished), "holds a run already", "--resume", "--overwrite")
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["rbm", "--hidden", 9], ["the run's --hidden is 8, not 9"]),
        (["rbm", "--seed", 1], ["the run's --seed is 0, not 1"]),
        (["rbm", "--lr", 0.5], ["the run's --lr is 0.1, not 0.5"]),
        (["planar"], ["the run is rbm, not planar"]),
    ],
)
def test_resume_refuses_to_become_another_run(run, finished, options, words):
    refused(run("train", *options, "--resume", "--out", finished), *words)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "text":
        content = bytearray(b"not a checkpoint")
    elif how == "flip":
        content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "empty", "text", "flip"])
@pytest.mark.parametrize("command", ["resume", "sample"])
def test_broken_checkpoints(run, finished, how, command):
    path = finished / CHECKPOINT
    damage(path, how)
    before = path.read_bytes()
    result = run("sample", finished) if command == "sample" else run("train", "rbm", "--resume", "--out", finished)
    refused(result, str(path), "broken")
    assert path.read_bytes() == before


def test_a_checkpoint_that_would_run_code_is_refused(run, finished, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"format": 1, "config": Evil()}, finished / CHECKPOINT)
    result = run("sample", finished)
    refused(result, "holds more than tensors, numbers and text")
    assert "weights_only" not in result[2]
    assert not (tmp_path / "owned").exists()


def test_checkpoints_of_another_kind(run, finished):
    path = finished / CHECKPOINT
    good = vars(load_checkpoint(path))
    torch.save({"weights": torch.zeros(3)}, path)
    refused(run("sample", finished), "no checkpoint of genfast")
    torch.save({**good, "format": 99}, path)
    refused(run("sample", finished), "has format 99")
    torch.save({**good, "format": FORMAT, "model": {**good["model"], "W": torch.zeros(3, 3)}}, path)
    refused(run("sample", finished), "does not fit the model")
    refused(run("train", "rbm", "--resume", "--steps", 9, "--out", finished), "does not fit the model")


def test_sample_of_nothing(run, tmp_path):
    refused(run("sample", tmp_path / "nowhere"), "there is no checkpoint")
    refused(run("sample", tmp_path, "-n", 0), "--n: got 0")


def test_out_is_a_file(run, tmp_path):
    (tmp_path / "file").write_text("")
    refused(run("train", "rbm", *QUICK, "--out", tmp_path / "file"), "file", "folder")
    refused(run("train", "rbm", *QUICK, "--out", tmp_path / "file" / "below"), "cannot write")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_out_is_read_only(run, tmp_path):
    tmp_path.chmod(0o500)
    refused(run("train", "rbm", *QUICK, "--out", tmp_path / "run"), "cannot write")


def test_a_diverging_run_names_the_step_and_keeps_the_last_checkpoint(run, tmp_path):
    options = ("--hidden", 8, "--batch-size", 16, "--checkpoint-every", 2, "--method", "cd")
    refused(
        run("train", "rbm", *options, "--steps", 50, "--lr", 1e38, "--out", tmp_path),
        "step ",
        "the loss is not finite",
        "lower --lr",
    )
    path = tmp_path / CHECKPOINT
    if path.exists():
        assert all(bool(p.isfinite().all()) for p in load_checkpoint(path)["model"].values())


def test_atomic_write_leaves_the_old_file_where_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"cannot write .*file: No space left on device"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))


def test_a_disk_without_room(tmp_path):
    """No file may grow past 8,000 bytes, and the checkpoint would: what a full disk does, but for the number."""
    process = start("train", "rbm", *QUICK, "--hidden", 64, "--out", tmp_path, preexec_fn=_small_files)
    _, err = process.communicate(timeout=120)
    refused((process.returncode, "", err), f"cannot write {tmp_path / CHECKPOINT}: File too large")
    assert not (tmp_path / CHECKPOINT).exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(run, tmp_path, number):
    options = ("train", "rbm", "--hidden", 8, "--batch-size", 16, "--log-every", 10, "--threads", 1, "--device", "cpu")
    folder = tmp_path / "run"
    process = start(*options, "--steps", 1000000, "--out", folder)
    deadline = time.monotonic() + 90
    while not (folder / METRICS).exists() or (folder / METRICS).stat().st_size == 0:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} after step" in err
    assert "--resume goes on" in err
    assert "Traceback" not in err
    saved = load_checkpoint(folder / CHECKPOINT)
    for line in (folder / METRICS).read_text().splitlines():
        json.loads(line)
    steps = saved.step + 7
    threads = torch.get_num_threads()
    try:
        assert run("train", "rbm", "--resume", "--steps", steps, "--threads", 1, "--out", folder)[0] == 0
        assert run(*options, "--steps", steps, "--out", tmp_path / "whole")[0] == 0
    finally:
        torch.set_num_threads(threads)
    got, want = (load_checkpoint(f / CHECKPOINT) for f in (folder, tmp_path / "whole"))
    assert got.step == steps
    for name, value in want.model.items():
        assert torch.equal(got.model[name], value), name


def test_a_missing_extra_says_how_to_install_it(run, tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "tqdm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    import importlib

    load = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: (without if name == "tqdm" else load)(name))
    refused(run("train", "rbm", *QUICK, "--out", tmp_path / "run"), "tqdm", "pip install 'genfast[train]'")


def test_info_and_errors_without_typer(run, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "typer", None)
    assert entry.run(["info"]) == 0
    capsys.readouterr()
    assert entry.run(["train", "rbm"]) == 1
    assert "pip install 'genfast[train]'" in capsys.readouterr().err
