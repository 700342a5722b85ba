"""Kinds of units, of which the layers of Boltzmann machines are made."""

from genfast.boltzmann.units._layer import Layer
from genfast.boltzmann.units.binary import Binary, Spin
from genfast.boltzmann.units.gaussian import Gaussian
from genfast.boltzmann.units.partitioned import Partitioned
from genfast.boltzmann.units.relu import DoubleReLU, ReLU
from genfast.boltzmann.units.softmax import Softmax

__all__ = ["Binary", "DoubleReLU", "Gaussian", "Layer", "Partitioned", "ReLU", "Softmax", "Spin"]
