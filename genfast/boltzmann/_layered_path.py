"""The path of annealed importance sampling to a restricted Boltzmann machine."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genfast._arguments import real
from genfast.boltzmann._chains import alternate, independent
from genfast.boltzmann._contrastive import product

if TYPE_CHECKING:
    from genfast.boltzmann.rbm import RBM


class LayeredPath:
    r"""Distributions :math:`f_\beta(v)` from a machine of independent units (beta = 0) to an RBM (beta = 1).

    .. math::
        \log f_\beta(v) = ((1 - \beta) a_0 + \beta a) \cdot v - E_v(v) + A_h(\beta (b + v W))

    that is, the machine with W and b times beta and visible biases between those of the base, a_0, and its own; the
    layers' own energies stay. At beta = 0 all units are independent and log Z is the sum of the layers' log-normalisers
    at a_0 and 0. Where exp(-E) of the machine has a finite integral, so has every f_beta: the coupling's quadratic
    form, times beta, is between that of the layers alone and that of the machine.

    Args:
        rbm: the machine, with the parameters that it has now.
        base: data `[N, n_visible]` with whose means the base starts, its inputs `[n_visible]`, or None for 0.

    Attributes:
        log_z_base: log Z at beta = 0.

    Raises:
        ValueError: the base does not fit.

    Source:
        Neal 2001, "Annealed importance sampling"; Salakhutdinov, Murray 2008, "On the quantitative analysis of deep
        belief networks", section 3.2.
    """

    log_z_base: float

    @torch.no_grad()
    def __init__(self, rbm: "RBM", base: Tensor | None = None) -> None:
        self.visible, self.hidden = rbm.visible, rbm.hidden
        W, vbias, hbias = (p.detach() for p in rbm._parameters_now())  # noqa: SLF001
        self.W, self.vbias, self.hbias = W, vbias, hbias
        if base is None:
            self.base = torch.zeros_like(vbias)
        else:
            real("base", base, rbm.n_visible)
            self.base = (self.visible.inputs_of_data(base) if base.dim() > 1 else base.detach()).to(W)
            if not bool(self.base.isfinite().all()):
                raise ValueError("base: got NaN or infinite values, want finite ones")
        of_hidden = self.hidden.log_normaliser(torch.zeros_like(hbias, dtype=torch.float64))
        self.log_z_base = float(self.visible.log_normaliser(self.base.double()) + of_hidden)

    def start(self, n_runs: int, *, seed: int, first_run: int = 0) -> Tensor:
        """Exact draws of the base, `[n_runs, n_visible]`."""
        return independent(n_runs, self.visible, self.base, seed=seed, first_chain=first_run)

    @torch.no_grad()
    def log_weight(self, state: Tensor, beta0: float, beta1: float) -> Tensor:
        """log f_beta1 - log f_beta0 at the states, float64 `[n_runs]`."""
        v = state.double()
        inputs, linear = product(v, self.W.double(), self.hbias.double()), v @ (self.vbias - self.base).double()
        of_hidden = self.hidden.log_normaliser(beta1 * inputs) - self.hidden.log_normaliser(beta0 * inputs)
        return (beta1 - beta0) * linear + of_hidden

    @torch.no_grad()
    def step(self, state: Tensor, beta: float, *, seed: int, first_run: int = 0, step: int = 0) -> Tensor:
        """One Gibbs sweep at beta: states of which f_beta is the distribution keep it."""
        machine = beta * self.W, torch.lerp(self.base, self.vbias, beta), beta * self.hbias
        v, _ = alternate(
            state, machine, self.visible, self.hidden, n_steps=1, seed=seed, first_chain=first_run, first_step=step + 1
        )
        return v

    def from_samples(self, v: Tensor, *, seed: int, first_run: int = 0) -> Tensor:  # noqa: ARG002
        """The states at which chains from samples of the machine start: the samples themselves."""
        return self.visible.check("samples", v, self.W.dtype, states=True)
