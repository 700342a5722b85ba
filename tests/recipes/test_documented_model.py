"""The recipe in docs/adding_a_model.md is one: it trains, resumes and samples as it stands there."""

import re
from pathlib import Path

import pytest
import torch

import genfast
from genfast import recipes
from genfast.recipes import _base
from genfast.training import sample
from genfast.training.checkpoint import CHECKPOINT, load_checkpoint

DOCUMENT = Path(genfast.__file__).resolve().parents[1] / "docs" / "adding_a_model.md"
QUICK = {"device": "cpu", "progress": False, "log_every": 20}


@pytest.fixture
def _mixture(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("recipes")
    (source,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (folder / "mixture.py").write_text(source)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(folder)])
    yield
    monkeypatch.undo()
    import sys

    sys.modules.pop("genfast.recipes.mixture", None)


@pytest.mark.usefixtures("_mixture")
def test_the_documented_recipe_works(tmp_path):
    whole = genfast.fit("mixture", out=tmp_path / "whole", steps=400, **QUICK)
    assert whole.score[0] == "-log p"
    assert whole.metrics["loss"] < 1.9, "16 Gaussians on the moons; one alone has 2.8"
    genfast.fit("mixture", out=tmp_path / "parts", steps=130, **QUICK)
    genfast.fit("mixture", out=tmp_path / "parts", steps=400, resume=True, **QUICK)
    a, b = (load_checkpoint(tmp_path / name / CHECKPOINT).model for name in ("whole", "parts"))
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
    drawn, folder = sample(tmp_path / "whole", 300)
    assert torch.isfinite(drawn.x).all()
    assert (folder / "samples.png").exists()
    assert recipes.summary("mixture").startswith("Mixture of Gaussians")


def test_the_document_names_every_hook():
    text = DOCUMENT.read_text(encoding="utf-8")
    hooks = [name for name, value in vars(_base.Recipe).items() if not name.startswith("_") and callable(value)]
    hooks += [name for name, value in vars(_base.Recipe).items() if isinstance(value, classmethod)]
    for name in set(hooks) - {"name", "upgrade", "noise"}:
        assert name in text, name
