"""Recipes, trained."""

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
