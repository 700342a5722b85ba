"""Training runs: the loop, checkpoints, resume, several processes."""

from genfast.training.kept import snapshots
from genfast.training.run import FitResult, fit
from genfast.training.saved import load, sample

__all__ = ["FitResult", "fit", "load", "sample", "snapshots"]
