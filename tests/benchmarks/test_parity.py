import pytest
import torch

from benchmarks import parity


@pytest.fixture(params=parity.PAIRS, ids="-".join)
def pair(request):
    """How to build a pair, where its peer is installed."""
    model, name = request.param
    return parity.build(model, pytest.importorskip(name))


def test_flows_of_the_same_weights_stay_together(pair):
    training, held_out = parity.points()
    made = pair(0)
    run = parity.train(made, training, held_out[:2000], 5, 0)
    mine, other = run.likelihoods
    assert mine == pytest.approx(other, abs=1e-4)
    assert mine > run.before + 0.02  # and they learn
    assert len(run.seconds) == 5
    double = parity.train(pair(0).double(), training.double(), held_out[:2000].double(), 5, 0)
    assert double.likelihoods[0] == pytest.approx(double.likelihoods[1], abs=1e-9)
    assert all(s > 0 for step in run.seconds for s in step)


def test_other_weights_are_told_apart(monkeypatch):
    """The check before the training is one that fails."""
    library = pytest.importorskip("zuko")
    maf = parity.PAIRS["MAF", "zuko"]

    def spoilt(zuko):
        made = maf(zuko)
        with torch.no_grad():
            next(made.ours.parameters()).add_(0.01)
        return made

    monkeypatch.setitem(parity.PAIRS, ("MAF", "zuko"), spoilt)
    with pytest.raises(RuntimeError, match="differ by"):
        parity.build("MAF", library)(0)


def test_verdict():
    """Differences beyond the spread of the seeds are called so."""
    near = [parity.Run(-11.0, (-10.0 + seed, -10.001 + seed), [(1e-3, 4e-3)]) for seed in range(3)]
    far = [parity.Run(-11.0, (-10.0 + seed, -15.0 + seed), [(1e-3, 4e-3)]) for seed in range(3)]
    exact = parity.Run(-11.0, (-10.0, -10.0 + 3e-9), [(1e-3, 4e-3)])
    good, bad = parity.summary("MAF", "zuko", near, exact), parity.summary("NSF", "nflows", far, exact)
    assert good.within_noise
    assert good.difference == pytest.approx(0.001)
    assert good.noise[0] == pytest.approx(1.0)
    assert good.ratio == pytest.approx(4.0)
    assert not bad.within_noise
    assert parity.verdict([good]).startswith("All differences are within noise")
    assert parity.verdict([good]).endswith("in float64 the largest is 3e-09.")
    assert parity.verdict([good, bad]) == "**Not within noise**: NSF of nflows."
    assert "| 3e-09 | 1.00 ms | 4.00 ms | 4.0x | 25% |" in parity.table([good])


def test_the_page_is_written(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    pytest.importorskip("normflows")
    monkeypatch.setattr(parity, "PAIRS", {("RealNVP", "normflows"): parity.PAIRS["RealNVP", "normflows"]})
    try:
        parity.main(["--out", str(tmp_path), "--steps", "2", "--threads", str(threads)])
    finally:
        torch.set_num_threads(threads)
    page = (tmp_path / "parity.md").read_text()
    assert "| RealNVP | normflows | -1" in page
    assert "2 steps" in page
