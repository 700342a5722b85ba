"""How a machine is swept at an inverse temperature for each chain, and what the energies of its states are."""

import inspect
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from genfast import ops
from genfast.boltzmann.rbm import RBM
from genfast.boltzmann.units import Binary
from genfast.reference._gibbs import accept_logit, uniform_words

_START_STREAM = 7  # kStreamStart of philox.h


class Swept(NamedTuple):
    """The states of chains after some sweeps: those that go on, and the energies of the whole states, in float64."""

    v: Tensor
    energy: Tensor


class TemperedRBM:
    """An RBM with binary units; energies are exact, and so swaps are the same bits everywhere."""

    def __init__(self, rbm: RBM) -> None:
        self.rbm = rbm

    def start(self, betas: Tensor, seed: int, first: int) -> Tensor:
        """Independent visible units with the log-odds beta a, a chain for each beta `[N]`."""
        vbias = self.rbm.vbias.detach()
        key = torch.tensor(seed, dtype=torch.int64, device=vbias.device)
        chains = torch.arange(len(betas), device=vbias.device) + first
        words = uniform_words(key, chains, len(vbias), 0, _START_STREAM)
        return accept_logit(betas[:, None].float() * vbias.float(), words).to(vbias.dtype)

    def sweep(
        self, v: Tensor, betas: Tensor, n_steps: int, clamp: Tensor | None, seed: int, first: int, step: int
    ) -> Swept:
        """n_steps sweeps of the chains v at their betas; chain numbers from `first`, steps from `step`."""
        parameters = (self.rbm.W.detach(), self.rbm.vbias.detach(), self.rbm.hbias.detach())
        v, h = ops.rbm_gibbs(
            v, *parameters, n_steps=n_steps, beta=betas, clamp=clamp, seed=seed, first_chain=first, first_step=step
        )
        return Swept(v, ops.rbm_joint_energy(v, h, *parameters))


class TemperedMachine:
    """Any machine with `energy` and with `gibbs(state, n, beta=... or temperature=..., seed=..., first_chain=...)`."""

    def __init__(self, machine: nn.Module) -> None:
        gibbs = getattr(machine, "gibbs", None)
        takes = inspect.signature(gibbs).parameters if callable(gibbs) else {}
        self.by = next((name for name in ("beta", "temperature") if name in takes), None)
        if self.by is None or not callable(getattr(machine, "energy", None)):
            raise TypeError(
                f"machine: got {type(machine).__name__}, want one with energy() and with gibbs() that takes an inverse "
                "temperature for each chain"
            )
        self.machine: Any = machine
        self.options = {"first_chain", "first_step"} & takes.keys()

    def start(self, betas: Tensor, seed: int, first: int) -> Tensor:
        """Fair coins; an RBM's visible units under their biases alone, for this number of chains."""
        if isinstance(self.machine, RBM):
            generator = torch.Generator(self.machine.W.device).manual_seed((seed + first) % 2**63)
            return self.machine._random_visible(len(betas), generator)  # noqa: SLF001
        values = getattr(self.machine, "values", None)
        if values not in ("01", "pm1"):
            raise ValueError(f"start: want states to start from, for a {type(self.machine).__name__}")
        like = next(self.machine.parameters())
        n_units = getattr(self.machine, "n_units", None) or self.machine.n_visible
        key = torch.tensor(seed, dtype=torch.int64, device=like.device)
        chains = torch.arange(len(betas), device=like.device) + first
        bits = (uniform_words(key, chains, n_units, 0, _START_STREAM) >> 31).to(like.dtype)
        return 2 * bits - 1 if values == "pm1" else bits

    def sweep(
        self, v: Tensor, betas: Tensor, n_steps: int, clamp: Tensor | None, seed: int, first: int, step: int
    ) -> Swept:
        """As of `TemperedRBM`."""
        own = float(getattr(self.machine, "temperature", 1.0))  # p ~ exp(-E / own) at beta = 1
        options: dict[str, Any] = {"first_chain": first} if "first_chain" in self.options else {}
        if "first_step" in self.options:
            options |= {"seed": seed, "first_step": step}
        else:
            options["seed"] = mixed(seed, step)
        if clamp is not None:
            options["clamp"] = clamp
        at = betas if self.by == "beta" else own / betas
        out = self.machine.gibbs(v, n_steps, **{str(self.by): at}, **options)
        state = out if isinstance(out, tuple) else (out,)
        with torch.no_grad():
            energy = self.machine.energy(*state).double()
        return Swept(state[0], energy if self.by == "beta" else energy / own)


def mixed(seed: int, step: int) -> int:
    """Another seed for each step: the finaliser of SplitMix64."""
    x = (seed + 0x9E3779B97F4A7C15 * (step + 1)) & (2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & (2**64 - 1)
    return x ^ (x >> 31)


def tempered(machine: nn.Module) -> TemperedRBM | TemperedMachine:
    """What sweeps a machine."""
    binary = isinstance(machine, RBM) and type(machine.visible) is type(machine.hidden) is Binary
    return TemperedRBM(cast("RBM", machine)) if binary else TemperedMachine(machine)
