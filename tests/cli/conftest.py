"""The command line, in this process and in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import genfast
from genfast.cli import entry

ROOT = Path(genfast.__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def _packages():
    """Skip where a package that training needs is missing; at the top of a conftest that would be an error."""
    for name in ("typer", "matplotlib", "lightning_fabric", "safetensors"):
        pytest.importorskip(name)


@pytest.fixture(autouse=True)
def _restore_globals():
    """A command sets the backend and the generator of the whole process."""
    state = torch.get_rng_state()
    yield
    genfast.set_backend("native")
    torch.set_rng_state(state)


@pytest.fixture
def run(capsys):
    """Run a command line; returns (exit code, output, errors)."""

    def call(*arguments):
        code = entry.run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def environment(**more):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def start(*arguments, command=("-m", "genfast"), env=None, **options):
    """A process of its own."""
    return subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)],
        env=env or environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
