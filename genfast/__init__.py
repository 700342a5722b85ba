"""Fused CUDA and C++ kernels for the classic generative models of PyTorch."""

__version__ = "0.1.0"

from genfast import ops
from genfast._backend import backend, get_backend, set_backend

__all__ = ["__version__", "backend", "get_backend", "ops", "set_backend"]
