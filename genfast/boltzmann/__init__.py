"""Boltzmann machines."""

from genfast.boltzmann import units
from genfast.boltzmann._graph import greedy_colouring
from genfast.boltzmann._schedules import geometric_schedule, linear_schedule
from genfast.boltzmann.classify import RBMClassifier
from genfast.boltzmann.dbm import DeepBoltzmannMachine
from genfast.boltzmann.dbn import DeepBeliefNetwork
from genfast.boltzmann.diagnostics import Diagnostics, diagnostics
from genfast.boltzmann.evaluate import (
    Bracket,
    LogLikelihood,
    LogPartition,
    ais_bracket,
    ais_log_z,
    annealing_betas,
    exact_log_z,
    log_likelihood,
    pseudo_log_likelihood,
    reverse_ais_log_z,
)
from genfast.boltzmann.ising import IsingLattice
from genfast.boltzmann.machine import BoltzmannMachine
from genfast.boltzmann.rbm import RBM
from genfast.boltzmann.sparse import SparseBoltzmannMachine
from genfast.boltzmann.standardize import StandardizedRBM
from genfast.boltzmann.tempering import ParallelTempering
from genfast.boltzmann.trajectory import TrajectoryTempering

__all__ = [
    "RBM",
    "BoltzmannMachine",
    "Bracket",
    "DeepBeliefNetwork",
    "DeepBoltzmannMachine",
    "Diagnostics",
    "IsingLattice",
    "LogLikelihood",
    "LogPartition",
    "ParallelTempering",
    "RBMClassifier",
    "SparseBoltzmannMachine",
    "StandardizedRBM",
    "TrajectoryTempering",
    "ais_bracket",
    "ais_log_z",
    "annealing_betas",
    "diagnostics",
    "exact_log_z",
    "geometric_schedule",
    "greedy_colouring",
    "linear_schedule",
    "log_likelihood",
    "pseudo_log_likelihood",
    "reverse_ais_log_z",
    "units",
]
