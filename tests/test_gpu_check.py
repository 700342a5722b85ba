"""What scripts/gpu_check.sh says where it cannot check anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.sh"


def run(*arguments, python=sys.executable):
    environment = {**os.environ, "PYTHON": python}
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def refused(done, sentence):
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"gpu_check: {sentence}")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path):
    refused(run("--out", tmp_path / "new"), "nothing to check: torch sees no GPU on this machine")


def test_bad_arguments(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refused(run("--fast"), "unknown argument '--fast'")
    refused(run("--out"), "--out needs a folder")
    refused(run("--out", file), f"cannot write to {file}")
    refused(run("--out", tmp_path, python="/no/python"), "no Python called '/no/python'")


def test_help():
    done = run("--help")
    assert done.returncode == 0
    assert "scripts/gpu_check.sh [--out DIR]" in done.stdout
