"""`genfast.fit` and `genfast.load`: the command's files and numbers, from Python."""

import json

import numpy as np
import pytest
import torch

import genfast
import genfast.data
from genfast.boltzmann import RBM
from genfast.cli import entry
from genfast.data import Dataset
from genfast.training import sample
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint
from genfast.training.metrics import METRICS, read_metrics

QUICK = {"device": "cpu", "batch_size": 32, "log_every": 5, "progress": False}


def equal_models(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize(
    ("model", "options"),
    [("rbm", {"hidden": 8, "epochs": 1}), ("rbm", {"hidden": 8, "steps": 30, "method": "pcd"}), ("nsf", {"steps": 4})],
)
def test_fit_does_what_the_command_does(tmp_path, model, options):
    pytest.importorskip("typer")
    result = genfast.fit(model, out=tmp_path / "python", **QUICK, **options)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    common = ["--batch-size=32", "--log-every=5", "--device=cpu", f"--out={tmp_path / 'command'}"]
    assert entry.run(["train", model, *words, *common]) == 0
    a, b = tmp_path / "python", tmp_path / "command"
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir()) == sorted(result.files)
    one, two = load_checkpoint(a / CHECKPOINT), load_checkpoint(b / CHECKPOINT)
    equal_models(one.model, two.model)
    assert one.config == two.config
    assert [row["loss"] for row in read_metrics(a / METRICS)] == [row["loss"] for row in read_metrics(b / METRICS)]
    for name in result.files:
        if name.endswith(".png"):
            assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert result.history == read_metrics(a / METRICS)


def test_fit_gives_the_trained_module(tmp_path):
    result = genfast.fit("rbm", data="digits", out=tmp_path, hidden=8, steps=10, **QUICK)
    assert isinstance(result.model, RBM)
    assert not result.model.training
    assert (result.name, result.step, result.new_steps, result.path) == ("rbm", 10, 10, tmp_path)
    assert result.options.hidden == 8
    assert result.metrics["step"] == 10
    assert result.metrics["pseudo_likelihood"] == result.score[1]
    assert json.loads((tmp_path / "config.json").read_text())["hidden"] == 8


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = genfast.fit("planar", steps=10, layers=2, **QUICK)
    assert list(tmp_path.iterdir()) == []
    assert result.path is None
    assert [row["step"] for row in result.history] == [5, 10]


def test_the_process_keeps_its_own_settings(tmp_path):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    genfast.fit("rbm", out=tmp_path, hidden=4, steps=5, threads=1, backend="reference", **QUICK)
    genfast.load(tmp_path)
    sample(tmp_path, 5, sweeps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert genfast.get_backend() == "native"


@pytest.mark.parametrize("kind", ["tensor", "array", "dataset"])
def test_rows_of_ones_own(tmp_path, kind):
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 20 + 100
    rows = {"tensor": x, "array": x.numpy(), "dataset": Dataset("mine", x)}[kind]
    result = genfast.fit("realnvp", rows, out=tmp_path, steps=20, layers=2, **QUICK)
    flow = genfast.load(tmp_path)
    drawn = flow.sample(2000, generator=torch.Generator().manual_seed(0))
    assert (drawn.mean(0) - 100).abs().max() < 20, "in the units of the data"
    assert torch.equal(flow.log_prob(x), result.model.log_prob(x))
    again = genfast.fit("realnvp", rows, out=tmp_path, resume=True, steps=25, **QUICK)
    assert (again.step, again.new_steps) == (25, 5)
    with pytest.raises(ValueError, match=r"resume: the data of \w+ are not those that the run began with"):
        genfast.fit("realnvp", type(rows)("mine", x + 1) if kind == "dataset" else rows + 1, out=tmp_path, resume=True)
    if kind != "dataset":
        with pytest.raises(ValueError, match="the run learned from an array; give it again as data"):
            genfast.fit("realnvp", out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("gan",), {}, "unknown model 'gan'; there are "),
        (("rbm",), {"layers": 3}, "layers: rbm has no such option; it has data, epochs, steps, batch_size, lr, hidden"),
        (("rbm",), {"lr": "fast"}, "lr: got 'fast', want a number"),
        (("rbm",), {"hidden": 2.5}, "hidden: got 2.5, want an integer"),
        (("rbm",), {"hidden": True}, "hidden: got True, want an integer"),
        (("rbm",), {"lr": float("inf")}, "lr: got inf, want above 0"),
        (("rbm",), {"batch_size": 0}, "batch_size: got 0, want at least 1"),
        (("rbm",), {"method": "ml"}, "method: got 'ml', want one of pcd, cd"),
        (("rbm",), {"steps": 1, "epochs": 1}, "give steps or epochs, not both"),
        (("rbm",), {"resume": True}, "resume: wants out, the folder of the run"),
        (("rbm",), {"threads": 0}, "threads: got 0, want at least 1"),
        (("rbm",), {"device": "tpu"}, "device: got 'tpu'"),
        (("rbm", np.full((3, 4), np.nan)), {}, "NaN or infinite"),
        (("rbm", torch.zeros(3)), {}, r"shape \[3\]"),
        (("rbm", Dataset("mine", torch.zeros(5, 64), shape=(4, 4))), {}, r"shape \(4, 4\), want None or sizes with"),
        (("nsf", Dataset("mine", torch.zeros(5, 64), shape=(64,))), {}, r"shape \(64,\), want None or sizes with"),
        (("planar", "u1"), {"epochs": 3}, "u1 is a density without epochs; give steps"),
    ],
)
def test_refusals_name_the_argument(arguments, options, message):
    with pytest.raises(ValueError, match=message) as info:
        genfast.fit(*arguments, **options)
    assert "\0" not in str(info.value)
    assert "--" not in str(info.value)


def test_load_takes_the_chains_of_all_processes(tmp_path):
    genfast.fit("rbm", out=tmp_path, hidden=4, steps=5, method="pcd", **QUICK)
    path = tmp_path / CHECKPOINT
    checkpoint = load_checkpoint(path)
    other = {**checkpoint.ranks[0], "chains": 1 - checkpoint.ranks[0]["chains"]}
    checkpoint.ranks.append(other)
    checkpoint.save(path)
    chains = genfast.load(tmp_path).chains
    assert torch.equal(chains, torch.cat([checkpoint.ranks[0]["chains"], other["chains"]]))


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint"):
        genfast.load(tmp_path)


def test_resume_to_less_is_refused_and_changes_nothing(tmp_path):
    genfast.fit("rbm", out=tmp_path, hidden=4, steps=20, **QUICK)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"steps: got 10, but the run has done 20 steps \(0.3509 epochs\) already"):
        genfast.fit("rbm", out=tmp_path, resume=True, steps=10)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    genfast.fit("rbm", out=tmp_path, overwrite=True, hidden=4, epochs=2, **QUICK)
    with pytest.raises(ValueError, match=r"epochs: got 1, but the run has done 114 steps \(2 epochs\) already"):
        genfast.fit("rbm", out=tmp_path, resume=True, epochs=1)
