"""Options: their defaults, presets and limits; and that a file is all that a model needs."""

import dataclasses

import pytest

from genfast import recipes
from genfast._errors import RunError
from genfast.recipes._options import Options, fields, make
from genfast.training.run import resolve


def options(model, **given):
    return resolve(recipes.load(model), given)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_what_it_is(name):
    recipe = recipes.load(name)
    line = recipes.summary(name)
    assert line.endswith(".")
    assert len(line) <= 100
    assert recipe.name() == name
    assert issubclass(recipe.Options, Options)
    for field in [*fields(recipe.Options), *fields(recipe.SampleOptions)]:
        assert field.help.endswith("."), field.name
        assert field.default is None or field.check(field.default) == field.default, field.name
        assert "_" not in field.help, "the command line writes it with dashes"
    made = options(name)
    assert (made.steps is None) != (made.epochs is None), "one of them says how long a run is"


def test_the_presets_of_mnist():
    digits, mnist = options("rbm"), options("rbm", data="mnist")
    assert (digits.method, digits.hidden, digits.momentum, digits.average) == ("cd", 256, 0.9, 500)
    assert (mnist.method, mnist.hidden, mnist.momentum, mnist.average) == ("pcd", 500, 0.0, 500)
    assert options("rbm", data="mnist", method="cd").momentum == 0.9
    assert options("rbm", data="mnist", hidden=3, momentum=0.5).momentum == 0.5
    assert options("rbm", method="pcd").momentum == 0.0


def test_steps_take_the_place_of_epochs():
    assert (options("rbm", steps=3).steps, options("rbm", steps=3).epochs) == (3, None)
    assert (options("nsf", epochs=3).steps, options("nsf", epochs=3).epochs) == (None, 3)


def test_a_number_may_be_written_without_a_point():
    assert options("rbm", lr=1).lr == 1.0
    assert type(options("rbm", lr=1).lr) is float


def test_options_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        options("rbm").hidden = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Empty(Options):
    """No data."""


def test_options_that_a_model_has_not():
    with pytest.raises(RunError, match="colour: mine has no such option; it has data, epochs"):
        make(Empty, {"colour": 3}, model="mine")


def test_a_file_is_a_model(tmp_path, monkeypatch):
    """No list is to be edited: a recipe in the folder is found, described and trained."""
    import genfast
    from genfast.cli import entry

    (tmp_path / "histogram.py").write_text(HISTOGRAM)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    assert "histogram" in recipes.names()
    x = __import__("torch").rand(200, 1) ** 2
    result = genfast.fit("histogram", x, out=tmp_path / "run", steps=200, progress=False, device="cpu", cells=4)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert genfast.load(tmp_path / "run").logits.shape == (4,)
    assert entry.run(["sample", str(tmp_path / "run"), "-n", "7", "--device", "cpu"]) == 0
    assert entry.run(["train", "histogram", "--help"]) == 0


HISTOGRAM = '''"""Histogram: a density on [0, 1] that is constant in each cell."""

import dataclasses
import math

import torch
from torch import nn

from genfast.recipes._base import Recipe as Base
from genfast.recipes._base import Samples
from genfast.recipes._options import Options, option


class Histogram(nn.Module):
    def __init__(self, cells):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(cells))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistogramOptions(Options):
    steps: int | None = option(100, "Updates.", at_least=1)
    lr: float = option(0.05, "Learning rate.", above=0)
    cells: int = option(8, "Cells.", at_least=1)


class Recipe(Base):
    Options = HistogramOptions
    loss_name = "-log p"

    def build(self):
        return Histogram(self.options.cells)

    def loss(self, batch):
        cell = (batch[:, 0] * self.options.cells).long().clamp(max=self.options.cells - 1)
        log_p = self.model.logits.log_softmax(0) + math.log(self.options.cells)
        return -log_p[cell].mean()

    def sample(self, n, options, generator):
        cell = torch.multinomial(self.model.logits.softmax(0).detach(), n, replacement=True, generator=generator)
        x = (cell + torch.rand(n, generator=generator)) / self.options.cells
        return Samples(x[:, None], f"{n} points", {})
'''
