"""The recipe of the deep belief network: its phases, and runs that go on inside each of them."""

import pytest
import torch

import genfast
from genfast.training import sample
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint

QUICK = {"device": "cpu", "progress": False, "batch_size": 300, "log_every": 3, "hidden": "12,9", "layer_epochs": 2}
PHASE = 12  # steps: two passes over 1,797 rows


def test_the_phases_follow_each_other(tmp_path):
    """A layer keeps what it was once the next is trained; up-down fine-tuning moves all, and unties the ways."""
    runs = [genfast.fit("dbn", steps=n, **QUICK).model for n in (PHASE, 2 * PHASE, 2 * PHASE + 5)]
    first, second, tuned = (m.state_dict() for m in runs)
    assert torch.equal(first["rbms.0.W"], second["rbms.0.W"])
    assert torch.equal(first["rbms.0.hbias"], second["rbms.0.hbias"])
    assert not torch.equal(first["rbms.1.W"], second["rbms.1.W"])
    assert not bool(second["untied"])
    assert bool(tuned["untied"])
    for k in ("rbms.0.W", "rbms.0.vbias", "rbms.1.W", "rbms.1.hbias"):
        assert not torch.equal(second[k], tuned[k]), k
    assert not torch.equal(tuned["recognition.0.W"], tuned["rbms.0.W"])
    assert torch.equal(second["rbms.0.hbias"], tuned["rbms.0.hbias"]), "the way up has biases of its own"


@pytest.mark.parametrize(
    ("method", "stop"), [("cd", 7), ("cd", PHASE), ("cd", 2 * PHASE), ("pcd", PHASE + 4), ("pcd", 2 * PHASE + 3)]
)
def test_runs_go_on_bit_for_bit_in_every_phase(tmp_path, method, stop):
    total = 2 * PHASE + 6
    options = {**QUICK, "method": method}
    genfast.fit("dbn", out=tmp_path / "whole", steps=total, **options)
    genfast.fit("dbn", out=tmp_path / "parts", steps=stop, **options)
    genfast.fit("dbn", out=tmp_path / "parts", steps=total, resume=True, progress=False, device="cpu")
    a, b = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "parts"))
    for k, value in a.model.items():
        assert torch.equal(value, b.model[k]), k
    for k, value in a.ranks[0].items():
        assert torch.equal(value, b.ranks[0][k]), k


def test_a_run_learns_and_draws(tmp_path):
    result = genfast.fit(
        "dbn", out=tmp_path, epochs=24, **{**QUICK, "hidden": "64,32", "batch_size": 40, "layer_epochs": 8}
    )
    rows = result.history
    assert {r["phase"] for r in rows} == {1, 2, 3}
    assert rows[-1]["reconstruction"] < 0.75 * rows[0]["reconstruction"]
    assert {"samples.png", "filters.png", "reconstructions.png", "learning_curve.png"} <= {
        p.name for p in tmp_path.iterdir()
    }
    drawn, _ = sample(tmp_path, 9, sweeps=20)
    assert drawn.x.shape == (9, 64)
    assert ((drawn.x == 0) | (drawn.x == 1)).all()
    assert "20 sweeps of the top RBM" in drawn.what
    assert torch.equal(sample(tmp_path, 9, sweeps=20)[0].x, drawn.x)
    dbn = genfast.load(tmp_path)
    assert dbn.sizes == [64, 64, 32]
    assert bool(dbn.untied)


@pytest.mark.parametrize("hidden", ["", "12,", "12,0", "a", "-3"])
def test_sizes_that_are_none(hidden):
    with pytest.raises(ValueError, match=r"hidden: got '.*', want numbers of units such as 200,100"):
        genfast.fit("dbn", steps=1, **{**QUICK, "hidden": hidden})


def test_one_layer_is_an_rbm():
    dbn = genfast.fit("dbn", steps=PHASE + 3, **{**QUICK, "hidden": "12"}).model
    assert dbn.n_layers == 1
    assert torch.isfinite(dbn.top.W).all()


def test_other_data_are_refused():
    with pytest.raises(ValueError, match="a deep belief network learns binary images, not moons"):
        genfast.fit("dbn", "moons", steps=1, **QUICK)
    with pytest.raises(ValueError, match=r"a deep belief network wants them in \[0, 1\]"):
        genfast.fit("dbn", torch.randn(20, 6), steps=1, **QUICK)
