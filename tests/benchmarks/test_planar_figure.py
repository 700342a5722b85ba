import pytest

from benchmarks import planar_figure
from genfast.data._plane import Density
from genfast.flows import Flow, StandardNormal


def test_divergence_of_normals():
    """KL(N(0, 1) || N(0, 4)) = 2 (log 2 + 1/8 - 1/2) in the plane; of equal densities it is 0, sample by sample."""
    flow = Flow(StandardNormal(2), [])
    equal, error = planar_figure.divergence(flow, Density("normal", lambda z: z.square().sum(-1) / 2, False))
    assert equal == pytest.approx(0, abs=1e-5)
    assert error < 1e-6
    wide, error = planar_figure.divergence(flow, Density("wide", lambda z: z.square().sum(-1) / 8, False))
    assert wide == pytest.approx(2 * (0.693147 + 0.125 - 0.5), abs=5 * error + 1e-3)


def test_the_page_and_the_picture_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(planar_figure, "LAYERS", (2,))
    monkeypatch.setattr(planar_figure, "SHOWN", [("planar", 2), ("Sylvester", 2)])
    monkeypatch.setattr(planar_figure, "DENSITIES", ("u1", "u2"))
    planar_figure.main(["--out", str(tmp_path), "--steps", "3"])
    page = (tmp_path / "planar_figure.md").read_text()
    assert "| | planar, K = 2 | radial, K = 2 | Sylvester, K = 2 |" in page
    assert "| U2 |" in page
    assert (tmp_path / "planar_figure.png").read_bytes().startswith(b"\x89PNG")
