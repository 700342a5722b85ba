"""The Python examples of the documents run as they stand."""

import re
from pathlib import Path

import pytest
import torch

import genfast

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/guide.md")


def blocks(path):
    """The Python blocks of a document, each with the line it starts at."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text[: match.start()].count("\n") + 2, match.group(1)


@pytest.mark.parametrize("path", DOCUMENTS)
def test_examples_run(path, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the examples train on scikit-learn's digits")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "example", "torch": torch, "genfast": genfast}
    found = 0
    try:
        for line, source in blocks(path):
            # Compiled with the line's number, so that a failure points into the document.
            exec(compile("\n" * (line - 1) + source, str(ROOT / path), "exec"), namespace)
            found += 1
    finally:
        genfast.set_backend("native")
    assert found >= 2
