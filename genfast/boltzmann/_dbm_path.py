"""The annealing path of a deep Boltzmann machine."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genfast.boltzmann._annealing import BinaryPath, base_log_odds
from genfast.boltzmann._states import binary

if TYPE_CHECKING:
    from genfast.boltzmann.dbm import DeepBoltzmannMachine

_SWEEPS = 200


class DeepPath(BinaryPath):
    """The path of `BinaryPath` for the RBM between even and odd layers: over the even layers, the odd ones summed out.

    Visible units have the log-odds of the base at beta = 0, the other even ones 0.
    """

    def __init__(self, machine: "DeepBoltzmannMachine", base: Tensor | None = None) -> None:
        rbm = machine.equivalent_rbm()
        log_odds = rbm.vbias.new_zeros(rbm.n_visible)
        log_odds[: machine.n_visible] = base_log_odds(base, rbm.W, machine.n_visible)
        super().__init__(rbm.W, rbm.vbias, rbm.hbias, log_odds)
        self.machine = machine

    def from_samples(self, v: Tensor, *, seed: int, first_run: int) -> Tensor:
        """The even layers: v, and hidden ones drawn given v by sweeps that start at the mean field.

        The samples of reverse AIS should be exact draws of the machine; these are as far as the sweeps have come to
        p(h | v), which is where the mean field nearly is.
        """
        machine = self.machine
        v = binary("samples", v, machine.n_visible, self.W.dtype)
        states = [v, *((m > 0.5).to(v.dtype) for m in machine.mean_field(v))]
        clamp = [True, *[None] * len(machine.n_hidden)]
        states = machine.gibbs(states, _SWEEPS, clamp=clamp, seed=seed, first_chain=first_run)
        return torch.cat(states[::2], 1)
