"""Boltzmann machines."""

from genfast.boltzmann.rbm import RBM

__all__ = ["RBM"]
