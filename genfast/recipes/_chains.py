"""Recipes of machines that are trained and sampled by Markov chains: the same chains on one process or on several."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from genfast import data
from genfast._errors import RunError
from genfast._errors import option as named
from genfast.recipes import _pictures
from genfast.recipes._base import O, Recipe, Samples
from genfast.recipes._options import OptionsBase, option

_SEEDS = "chain_seeds"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainSampleOptions(OptionsBase):
    """The options of `genfast sample` for a machine with chains."""

    sweeps: int | None = option(
        None, "Gibbs sweeps of each chain.", at_least=1, shown="100 from the persistent chains, else 1000"
    )
    fresh: bool = option(False, "Start new chains, though the run kept its persistent ones.")


class ChainRecipe(Recipe[O]):
    """A recipe whose model has `chains`, numbered over all processes from `first_chain` on.

    The random numbers of a chain depend on its number, its step, and the seed of the call, which comes from a generator
    that all processes have in the same state. So the chains of one process are those of several with as many in all, as
    long as the parameters are the same bits.
    """

    #: Sweeps of a sample, from persistent chains and from new ones.
    default_sweeps: ClassVar[tuple[int, int]] = (100, 1000)
    SampleOptions: ClassVar[type[OptionsBase]] = ChainSampleOptions

    def __init__(self, options: O, *, dim: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(options, dim=dim, shape=shape)
        #: Draws the seeds of the chains; None in runs of versions that drew them from the default generator.
        self.seeds = self.new_seeds(options.seed)
        #: What `contrastive_loss` takes for the last `direct_step`.
        self._last: Any = None

    @staticmethod
    def new_seeds(seed: int) -> torch.Generator | None:
        """The generator of a new run."""
        return torch.Generator().manual_seed(seed)

    def number_chains(self, n_chains: int) -> None:
        """Say which of all chains are this process's, n_chains in each."""
        model: Any = self.model
        model.first_chain = self.rank * n_chains

    def start_chains(self, n_chains: int) -> None:
        """Start n_chains new persistent chains here and in each other process."""
        model: Any = self.model
        device = model.chains.device
        generator = torch.Generator(device).manual_seed(self.options.seed)
        model.reset_chains(n_chains * self.n_ranks, generator=generator)
        model.chains = model.chains[self.rank * n_chains : (self.rank + 1) * n_chains].clone()
        self.number_chains(n_chains)

    # -- state --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The persistent chains and the generator of their seeds."""
        chains: Any = self.model.chains
        seeds = {} if self.seeds is None else {_SEEDS: self.seeds.get_state()}
        return {"chains": chains.detach().cpu(), **seeds}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take them."""
        model: Any = self.model
        chains = state.get("chains")
        units = model.chains.shape[1]
        fits = isinstance(chains, Tensor) and chains.ndim == 2 and chains.shape[1] == units
        if chains is None or not fits or not self.are_states(chains):
            raise RunError(f"its persistent chains are not states {self.kind_of_states()} of {units} units")
        model.chains = chains.to(model.chains)
        self.number_chains(len(chains))
        self.seeds = None
        if _SEEDS in state:
            try:
                self.seeds = torch.Generator()
                self.seeds.set_state(state[_SEEDS])
            except (RuntimeError, TypeError) as error:
                raise RunError(f"the generator of its chains is damaged: {error}") from error

    def are_states(self, chains: Tensor) -> bool:
        """Whether these are states of the model's units; by default 0 and 1."""
        return bool(((chains == 0) | (chains == 1)).all())

    def kind_of_states(self) -> str:
        """What the states are, in words."""
        return "0/1"

    @classmethod
    def merge_states(cls, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The chains of all processes; the rest is the same in all of them."""
        return {**states[0], "chains": torch.cat([state["chains"] for state in states])}

    # -- training -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def unchecked(self) -> Iterator[None]:
        """Without the machine's own check: the training loop checks, and names the step."""
        model: Any = self.model
        model.nonfinite_check = False
        try:
            yield
        finally:
            model.nonfinite_check = True

    @torch.no_grad()
    def direct_loss(self) -> float:
        """The contrastive loss of the last batch."""
        model: Any = self.model
        with self.unchecked():
            return float(model.contrastive_loss(*self._last))

    # -- divergence: the pseudo-likelihood, for the loss of contrastive divergence is no measure of the fit -----------

    def objective(self, loss: float, metrics: Mapping[str, float]) -> float | None:
        """Minus the pseudo-log-likelihood."""
        value = metrics.get("pseudo_likelihood")
        return None if value is None else -value

    def starting_objective(self) -> float:
        """Minus the pseudo-log-likelihood of the untrained machine."""
        return -self.metrics()["pseudo_likelihood"]

    def tolerance(self, start: float) -> float:
        """Twenty times what fair coins would give away: each unit on average at odds of a million to one against."""
        return 20 * math.log(2) * self.dim

    def curve(self) -> tuple[str, str]:
        """The pseudo-likelihood."""
        return "pseudo_likelihood", "pseudo-log-likelihood"

    def evaluated_rows(self, source: data.Dataset) -> Tensor:
        """The images as states."""
        return source.binarized().x

    # -- samples ------------------------------------------------------------------------------------------------------

    def new_chains(self, n: int, generator: torch.Generator) -> Tensor:
        """States of n chains to start from, where there are no persistent ones."""
        raise NotImplementedError

    def run_chains(
        self, start: Tensor, sweeps: int, options: Any, generator: torch.Generator, first_chain: int
    ) -> tuple[Tensor, Tensor]:
        """The states of chains after so many sweeps, and what to show of them."""
        raise NotImplementedError

    def keeps_chains(self) -> bool:
        """Whether a run with these options has persistent chains when it is done."""
        return True

    @torch.no_grad()
    def draw(
        self, n: int, options: Any, generator: torch.Generator, part: slice | None = None
    ) -> tuple[Tensor, Tensor, str]:
        """The states at the ends of n chains, what to show of them, and where they come from.

        Args:
            n: number of chains.
            options: an instance of `SampleOptions`.
            generator: in the same state in all processes.
            part: those of the n chains that this process runs; by default all.

        Raises:
            RunError: the run should have kept persistent chains, and has not.
        """
        model: Any = self.model
        persistent = model.n_chains > 0 and not options.fresh
        sweeps = options.sweeps or self.default_sweeps[0 if persistent else 1]
        if not (persistent or options.fresh) and self.keeps_chains():
            raise RunError(f"the run kept no persistent chains; give {named('fresh')} to start new ones")
        start = self.kept_chains(n, generator) if persistent else self.new_chains(n, generator)
        own = part or slice(0, n)
        states, shown = self.run_chains(start[own], sweeps, options, generator, own.start)
        ends = f"{sweeps:,} sweeps from the persistent chains" if persistent else f"{sweeps:,} sweeps of new chains"
        return states, shown, ends

    def kept_chains(self, n: int, generator: torch.Generator) -> Tensor:
        """States of n chains to start from: the persistent ones in random order, each as often as it needs."""
        chains: Tensor = self.model.chains  # type: ignore[assignment]
        order = torch.randperm(len(chains), generator=generator, device=generator.device)
        return chains[order.repeat(-(-n // len(chains)))[:n]]

    def show(self, states: Tensor, shown: Tensor, what: str) -> Samples:
        """The samples, and the picture of what is to be shown of them."""
        shape = _pictures.image_shape(self.dim, self.shape)
        picture = _pictures.image_samples(shown[: 20 * 20], shape, title=what)
        return Samples(states, f"{len(states)} states of {states.shape[1]} units, {what}", {"samples.png": picture})

    def sample(self, n: int, options: Any, generator: torch.Generator) -> Samples:
        """States at the end of n chains; the picture shows the means that they were drawn from (0/1: probabilities)."""
        return self.show(*self.draw(n, options, generator))
