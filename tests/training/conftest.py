"""Training from Python."""

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
