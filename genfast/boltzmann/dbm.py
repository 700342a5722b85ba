"""The deep Boltzmann machine with binary units."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import integer, number
from genfast._backend import use_reference
from genfast._finite import check_finite
from genfast._module import Module
from genfast._tracing import has_values
from genfast.boltzmann._annealing import base_log_odds
from genfast.boltzmann._dbm_exact import blocks, hidden_log_sum
from genfast.boltzmann._dbm_path import DeepPath
from genfast.boltzmann._dbm_pretrain import pretrain
from genfast.boltzmann._dbm_statistics import energy_of, entropy_of, statistics_grad_
from genfast.boltzmann._enumerate import log_partition_rbm
from genfast.boltzmann._states import binary, drawn, probabilities
from genfast.boltzmann.rbm import RBM
from genfast.boltzmann.units import Binary
from genfast.ops._sampling import seed_tensor
from genfast.ops.dbm import MAX_LAYERS, flat_gibbs
from genfast.reference.dbm import start_means


class DeepBoltzmannMachine(Module):
    r"""A deep Boltzmann machine: a visible layer and hidden ones of binary (0/1) units, each with weights to the next.

    .. math::
        E(x) = -\sum_l b_l \cdot x_l - \sum_l x_l^T W_l x_{l+1}, \qquad p(x) = e^{-E(x)} / Z

    with x_0 = v, `weights[l] [n_l, n_{l+1}]` and `biases[l] [n_l]`. A unit given the layers beside its own is on with
    probability sigmoid(b_l + x_{l-1} W_{l-1} + W_l x_{l+1}). Even layers have weights to odd ones only, so a sweep of
    Gibbs sampling draws all odd layers at once, then all even ones.

    The posterior p(h | v) is not known in closed form, and is replaced by the best product over units, whose means
    `mean_field` finds. Training follows the gradient of the variational bound on log p(v): data enter by these means,
    the model by persistent chains (`pcd_loss`, or `pcd_backward`, which is faster). `pretrain` first trains layer after
    layer, without which deeper layers may stay unused.

    The persistent chains are the buffer `chains [n_chains, n_units]`, the layers of a chain beside each other
    (`layers(chains)` takes them apart): saved in the state dict and resumed from it.

    **Data** are 0 or 1, in any dtype, or numbers in [0, 1], taken as probabilities. Anything else is refused on the
    CPU, and counts as NaN where looking would wait (on a GPU).

    Args:
        n_visible: number of visible units.
        n_hidden: numbers of units of the hidden layers, 1 to 7 of them; with one the machine is an RBM.
        init_std: standard deviation of the normal that weights start from (biases start at 0).
        generator: draws the initial weights; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer, there are too many layers, or init_std is negative.

    Source:
        Salakhutdinov and Hinton 2009, "Deep Boltzmann machines"; Salakhutdinov and Hinton 2012, "An efficient learning
        procedure for deep Boltzmann machines".

    Example:
        >>> dbm = DeepBoltzmannMachine(64, [100, 50])
        >>> data = torch.bernoulli(torch.full((320, 64), 0.3))
        >>> dbm.pretrain(data, epochs=2)
        >>> optimizer = torch.optim.SGD(dbm.parameters(), lr=0.05)
        >>> for batch in data.split(32):
        ...     dbm.pcd_backward(batch)
        ...     optimizer.step()
        >>> dbm.sample(4, n_steps=100).shape
        torch.Size([4, 64])
    """

    chains: Tensor
    #: Number of the first of `chains`: processes that share a run number theirs on.
    first_chain = 0

    def __init__(
        self,
        n_visible: int,
        n_hidden: Sequence[int],
        *,
        init_std: float = 0.01,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(n_hidden, int) or not 1 <= len(n_hidden) < MAX_LAYERS:
            raise ValueError(f"n_hidden: got {n_hidden!r}, want a list of 1 to {MAX_LAYERS - 1} numbers of units")
        self.init_std = number("init_std", init_std, 0, math.inf)
        self.sizes = (
            integer("n_visible", n_visible),
            *(integer(f"n_hidden[{i}]", n) for i, n in enumerate(n_hidden)),
        )
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        pairs = zip(self.sizes, self.sizes[1:], strict=False)
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(a, b, **options)) for a, b in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(n, **options)) for n in self.sizes)
        self.register_buffer("chains", torch.empty(0, self.n_units, **options))
        #: Whether the losses check themselves and the parameters (a synchronisation on CUDA; turn it off inside
        #: CUDA graphs and call `check_finite` now and then). Inside torch.compile nothing is checked.
        self.nonfinite_check = True
        #: Most iterations of the mean field in training, and the change of a mean at which it is done.
        self.max_iterations, self.tolerance = 30, 1e-3
        self._n_losses = 0
        self.reset_parameters(generator=generator)

    @torch.no_grad()
    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights again, set the biases to 0 and forget the persistent chains."""
        for W in self.weights:
            nn.init.normal_(W, 0.0, self.init_std, generator=generator)
        for b in self.biases:
            nn.init.zeros_(b)
        self.chains = self.chains.new_empty(0, self.n_units)

    @property
    def n_visible(self) -> int:
        """Number of visible units."""
        return self.sizes[0]

    @property
    def n_hidden(self) -> tuple[int, ...]:
        """Numbers of units of the hidden layers."""
        return self.sizes[1:]

    @property
    def n_units(self) -> int:
        """Number of all units."""
        return sum(self.sizes)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"n_visible={self.n_visible}, n_hidden={list(self.n_hidden)}, n_chains={self.n_chains}"

    def layers(self, states: Tensor) -> list[Tensor]:
        """The layers of states `[..., n_units]`, that lie beside each other, as views `[..., n_l]`."""
        return list(states.split(self.sizes, -1))

    # -- energies -----------------------------------------------------------------------------------------------------

    def energy(self, states: Sequence[Tensor]) -> Tensor:
        """E of the states of all layers, `[..., n_l]` each, 0/1 or probabilities; returns `[...]`.

        Raises:
            ValueError: a layer is missing, a shape does not fit, or values are not in [0, 1].
        """
        return energy_of(self._layers("states", states), list(self.weights), list(self.biases))

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -log sum_h exp(-E(v, h)), exact: float64 `[...]`; differentiable.

        The odd or the even hidden layers are enumerated, those of the other kind are summed out. For larger machines,
        `variational_free_energy` is above it.

        Args:
            v: `[..., n_visible]`, 0/1 or probabilities in between.

        Raises:
            ValueError: the even and the odd hidden layers have more than 25 units each.
        """
        rows = self._visible(v).reshape(-1, self.n_visible)
        return -hidden_log_sum(rows, list(self.weights), list(self.biases)).reshape(v.shape[:-1])

    def log_partition(self) -> Tensor:
        """The exact log Z, by enumeration of the smaller of the even and the odd side; float64, differentiable.

        Raises:
            ValueError: both sides have more than 25 units; `genfast.boltzmann.ais_log_z` estimates log Z then.
        """
        W, even, odd = self._rbm_parameters()
        return log_partition_rbm(W, even, odd, Binary(len(even)), Binary(len(odd)))

    def log_prob(self, v: Tensor, *, log_partition: Tensor | float | None = None) -> Tensor:
        """The exact log p(v) = -F(v) - log Z of 0/1 states `[..., n_visible]`: float64 `[...]`.

        Args:
            v: 0/1 states.
            log_partition: log Z where it is known; a tensor that carries its gradient where one is wanted.

        Raises:
            ValueError: v is no 0/1 states, or the machine is too large to be enumerated; `bound` with a log Z of
                `ais_log_z` is a lower bound then.
        """
        v = binary("v", v, self.n_visible, self.weights[0].dtype)
        return -self.free_energy(v) - (self.log_partition() if log_partition is None else log_partition)

    # -- the variational bound ----------------------------------------------------------------------------------------

    def mean_field(
        self,
        v: Tensor,
        *,
        max_iterations: int = 100,
        tolerance: float = 1e-5,
        start: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """The means `[..., n_l]` of the hidden layers under the best factorised posterior of v `[..., n_visible]`.

        See `genfast.ops.dbm_mean_field`. The means carry no gradient.
        """
        with torch.no_grad():
            return ops.dbm_mean_field(
                self._visible(v), list(self.weights), list(self.biases), max_iterations=max_iterations,
                tolerance=tolerance, start=start,
            )[0]  # fmt: skip

    def variational_free_energy(self, v: Tensor, means: Sequence[Tensor] | None = None) -> Tensor:
        """E(v, mu) - H(mu), with the entropy H of independent units of these means: at least F(v); float64 `[...]`.

        Differentiable in the parameters with the means held, which at the mean field is the whole gradient.

        Args:
            v: `[..., n_visible]`, 0/1 or probabilities in between.
            means: of the hidden layers; by default those of `mean_field(v)`.
        """
        v = self._visible(v)
        means = self.mean_field(v) if means is None else self._layers("means", means, first=1)
        states = [x.double() for x in (v, *means)]
        energy = energy_of(states, [W.double() for W in self.weights], [b.double() for b in self.biases])
        return energy - entropy_of(states[1:])

    def bound(self, v: Tensor, log_z: Tensor | float, *, means: Sequence[Tensor] | None = None) -> Tensor:
        """The variational lower bound on log p(v): -(E(v, mu) - H(mu)) - log Z; float64 `[...]`.

        Args:
            v: 0/1 states `[..., n_visible]`.
            log_z: log Z: of `log_partition` or `genfast.boltzmann.ais_log_z(...).log_z`.
            means: of the hidden layers; by default those of `mean_field(v)`. Any means give a lower bound.

        Source:
            Salakhutdinov and Hinton 2009, "Deep Boltzmann machines", eq. 9.

        Example:
            >>> dbm, v = DeepBoltzmannMachine(8, [6, 4], init_std=0.5), torch.eye(8)
            >>> log_z = dbm.log_partition().detach()
            >>> bool((dbm.bound(v, log_z) <= dbm.log_prob(v)).all())
            True
        """
        return -self.variational_free_energy(binary("v", v, self.n_visible, self.weights[0].dtype), means) - log_z

    @torch.no_grad()
    def pseudo_likelihood(self, v: Tensor, *, exact: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """The pseudo-log-likelihood sum_i log p(v_i | the others), by variational free energies.

        Args:
            v: 0/1 states `[..., n_visible]`.
            exact: the sum over all units; by default n_visible times the term of one random unit a row.
            generator: draws the units.

        Returns:
            float64 `[...]`.
        """
        v = binary("v", v, self.n_visible, self.weights[0].dtype)
        rows = v.reshape(-1, self.n_visible)
        means = self.mean_field(rows)
        free = self.variational_free_energy(rows, means)

        def term(unit: Tensor) -> Tensor:
            flipped = rows.clone()
            flipped.scatter_(1, unit[:, None], 1 - rows.gather(1, unit[:, None]))
            other = self.variational_free_energy(flipped, self.mean_field(flipped, start=means))
            return nn.functional.logsigmoid(other - free)

        if exact:
            units = (torch.full((len(rows),), i, device=v.device) for i in range(self.n_visible))
            total = sum((term(unit) for unit in units), torch.zeros_like(free))
        else:
            at = v.device if generator is None else generator.device
            unit = torch.randint(self.n_visible, (len(rows),), device=at, generator=generator).to(v.device)
            total = self.n_visible * term(unit)
        return total.reshape(v.shape[:-1])

    # -- conditionals and chains --------------------------------------------------------------------------------------

    def layer_probs(self, states: Sequence[Tensor | None], layer: int, *, beta: float = 1.0) -> Tensor:
        """p(x_l = 1 | the layers beside it) = sigmoid(beta (b_l + x_{l-1} W_{l-1} + W_l x_{l+1})): `[..., n_l]`.

        Args:
            states: of all layers, `[..., n_l]` each, 0/1 or probabilities; None for those that are not beside it.
            layer: its number; 0 is the visible one.
            beta: inverse temperature.
        """
        if not 0 <= layer < len(self.sizes):
            raise ValueError(f"layer: got {layer}, want 0 to {len(self.sizes) - 1}")
        field: Tensor = self.biases[layer]
        for other in (layer - 1, layer + 1):
            if 0 <= other < len(self.sizes):
                x = states[other] if len(states) > other else None
                if x is None:
                    raise ValueError(f"states: got none of layer {other}, which layer {layer} depends on")
                x = probabilities(f"states[{other}]", x, self.sizes[other], self.weights[0].dtype)
                W = self.weights[min(layer, other)]
                field = field + (x @ W if other < layer else x @ W.t())
        return torch.sigmoid(beta * field)

    def gibbs(
        self,
        states: Sequence[Tensor],
        n_gibbs_steps: int = 1,
        *,
        beta: float | Tensor = 1.0,
        clamp: Sequence[Tensor | bool | None] | None = None,
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
        first_chain: int = 0,
        first_step: int = 0,
    ) -> list[Tensor]:
        """Run block Gibbs chains for n_gibbs_steps sweeps (odd layers, then even ones), in one fused call.

        Args:
            states: 0/1 states of all layers to start from, `[..., n_l]` each, in one dtype.
            n_gibbs_steps: number of sweeps.
            beta: inverse temperature, a number or one a chain.
            clamp: for each layer None, True for a layer that stays as it is, or a bool mask of units that do.
            generator: draws the seed of the chains; the default generator otherwise.
            seed: the seed itself, instead of a generator: the same seed gives the same chains.
            first_chain: number of the first row, for its random numbers.
            first_step: number of the first sweep, for its random numbers.

        Returns:
            The last states of all layers. See `genfast.ops.dbm_gibbs`.
        """
        return ops.dbm_gibbs(
            states, list(self.weights), list(self.biases), n_steps=n_gibbs_steps, beta=beta, clamp=clamp,
            generator=generator, seed=seed, first_chain=first_chain, first_step=first_step,
        )  # fmt: skip

    @torch.no_grad()
    def sample(
        self,
        n_samples: int,
        n_steps: int = 1000,
        *,
        start: Tensor | None = None,
        beta: float | Tensor = 1.0,
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw visible states from n_samples chains of n_steps sweeps.

        Args:
            n_samples: number of chains, and so of samples.
            n_steps: sweeps a chain.
            start: 0/1 visible states `[n_samples, n_visible]` to start from, with hidden layers drawn by one pass up.
                By default all units are drawn from their biases alone.
            beta: inverse temperature.
            clamp: boolean mask of visible units that keep the value they have in `start`: the others are completed.
            generator: source of randomness; the default generator otherwise.

        Returns:
            0/1 states `[n_samples, n_visible]`.

        Raises:
            ValueError: `start` does not fit, or `clamp` comes without `start`.
        """
        if start is None:
            if clamp is not None:
                raise ValueError("clamp: got a mask without start, want start to hold the clamped values")
            states = self.layers(self._random_states(n_samples, generator))
        else:
            v = binary("start", start, self.n_visible, self.weights[0].dtype)
            if v.shape[0] != n_samples:
                raise ValueError(f"start: got {v.shape[0]} rows, want n_samples = {n_samples}")
            states = [v, *(drawn(m, generator) for m in self._pass_up(v))]
        masks = None if clamp is None else [clamp, *[None] * len(self.n_hidden)]
        return self.gibbs(states, n_steps, beta=beta, clamp=masks, generator=generator)[0]

    @torch.no_grad()
    def reconstruct(self, v: Tensor) -> Tensor:
        """The probabilities p(v' = 1 | h1 = mu_1(v)) `[..., n_visible]`, from the mean field of v."""
        return self.layer_probs([None, self.mean_field(v)[0]], 0)

    # -- other machines that this one is ------------------------------------------------------------------------------

    def equivalent_rbm(self) -> RBM:
        """The RBM between the even layers (its visible units, beside each other) and the odd ones, with equal energies.

        For two hidden layers its visible units are [v, h2] and its hidden units h1. With more, weights between layers
        that are no neighbours are 0. Its parameters are copies.
        """
        W, even, odd = (p.detach() for p in self._rbm_parameters())
        rbm = RBM(len(even), len(odd), device=W.device, dtype=W.dtype)
        with torch.no_grad():
            rbm.W.copy_(W)
            rbm.vbias.copy_(even)
            rbm.hbias.copy_(odd)
        return rbm

    def annealing_path(self, base: Tensor | None = None) -> DeepPath:
        """The path of annealed importance sampling over the even layers, with the odd ones summed out.

        It leads from independent units, the visible ones with the rates of `base` and the others uniform, to this
        machine as it is now.

        Args:
            base: data `[N, n_visible]`, log-odds `[n_visible]`, or None. See `genfast.boltzmann.ais_log_z`.

        Source:
            Salakhutdinov and Hinton 2009, "Deep Boltzmann machines", section 3.3.
        """
        return DeepPath(self, base)

    # -- training -----------------------------------------------------------------------------------------------------

    @property
    def n_chains(self) -> int:
        """Number of persistent chains; 0 before the first `pcd_loss` or `reset_chains`."""
        return self.chains.shape[0]

    @torch.no_grad()
    def reset_chains(self, n_chains: int, *, generator: torch.Generator | None = None) -> None:
        """Start n_chains new persistent chains, each unit drawn from its bias alone."""
        self.chains = self._random_states(n_chains, generator)

    @torch.no_grad()
    def init_vbias(self, v: Tensor) -> None:
        """Set b_0 to the log-odds of the units' rates in the data v `[N, n_visible]`; see `RBM.init_vbias`."""
        self.biases[0].copy_(
            base_log_odds(self._visible(v).reshape(-1, self.n_visible), self.biases[0], self.n_visible)
        )

    def pretrain(
        self,
        data: Tensor,
        *,
        epochs: int = 10,
        batch_size: int = 100,
        lr: float = 0.05,
        momentum: float = 0.5,
        k: int = 1,
        generator: torch.Generator | None = None,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> None:
        """Train the pairs of layers one after the other, from below, each as an RBM by CD-k.

        A hidden layer has only one of its inputs then, which is counted twice: the first RBM has its weights doubled
        on the way up, the last one on the way down, and those in between are trained doubled and halved in the end.
        Data go up by probabilities, from which 0/1 states are drawn. Set the visible biases first (`init_vbias`).

        Args:
            data: `[N, n_visible]`, 0/1 or probabilities in between.
            epochs: passes over the data for each pair of layers.
            batch_size: rows an update.
            lr: learning rate.
            momentum: of the descent.
            k: Gibbs sweeps an update.
            generator: source of randomness; the default generator otherwise.
            progress: called as progress(pair, epoch, error of the reconstruction) after each pass.

        Raises:
            ValueError: an argument does not fit.
            NonFiniteError: a parameter is no longer finite.

        Source:
            Salakhutdinov and Hinton 2009, "Deep Boltzmann machines", section 3.1.
        """
        pretrain(
            self, data, epochs=epochs, batch_size=batch_size, lr=lr, momentum=momentum, k=k, generator=generator,
            progress=progress,
        )  # fmt: skip

    def contrastive_loss(self, v: Tensor, states: Sequence[Tensor], *, means: Sequence[Tensor] | None = None) -> Tensor:
        """mean of E(v, mu) - H(mu) over data, minus mean of E over states of the model: its gradient is the bound's.

        It is -<v mu_1'>_data + <v h_1'>_model in W_0, and so on. The value is not the likelihood and need not fall.

        Args:
            v: data `[N, n_visible]`.
            states: of all layers `[M, n_l]`, drawn from the model.
            means: of the hidden layers of the data; by default the mean field, within `self.tolerance`.

        Raises:
            NonFiniteError: the loss or a parameter is not finite (where `nonfinite_check` is set).
        """
        v = self._visible(v)
        means = self._training_means(v) if means is None else means
        weights, biases = list(self.weights), list(self.biases)
        data = (energy_of([v, *means], weights, biases) - entropy_of(means)).mean()
        loss = data - energy_of(self._layers("states", states), weights, biases).mean()
        self._n_losses += 1
        if self.nonfinite_check and has_values(loss):
            value = loss.item()
            if not math.isfinite(value):
                check_finite(self, step=self._n_losses, loss=value)
        return loss

    def pcd_loss(self, v: Tensor, k: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of persistent contrastive divergence with a mean-field posterior.

        The chains of the buffer `chains` run k sweeps and are kept for the next call. The first call starts as many
        as v has rows; `reset_chains` chooses another number. The mean field ends after `self.max_iterations`, or where
        no mean changes by more than `self.tolerance`.

        Args:
            v: data `[N, n_visible]`, 0/1 or probabilities in between.
            k: number of Gibbs sweeps.
            generator: source of randomness; the default generator otherwise.

        Returns:
            A scalar; `backward()` puts the gradient on weights and biases. See `contrastive_loss`.

        Source:
            Salakhutdinov and Hinton 2009, "Deep Boltzmann machines", section 2.2.
        """
        v = self._visible(v)
        chains = self._next_chains(v, k, generator)
        loss = self.contrastive_loss(v, self.layers(chains))
        self.chains.copy_(chains)
        return loss

    @torch.no_grad()
    def pcd_backward(self, v: Tensor, k: int = 1, *, generator: torch.Generator | None = None) -> list[Tensor]:
        """Do what `pcd_loss(v, k).backward()` does to cleared gradients, without a graph and without the loss: faster.

        The gradients' memory is used again from call to call, so `zero_grad` is not needed.

        Returns:
            The means of the hidden layers of v, for `contrastive_loss(v, layers(chains), means=...)` where the loss is
            wanted.

        Raises:
            RuntimeError: a parameter is computed from others (`torch.nn.utils.parametrize`), which it cannot reach.
        """
        v = self._visible(v).reshape(-1, self.n_visible)
        chains = self._next_chains(v, k, generator)
        means = self._training_means(v)
        n, m = len(v), len(chains)
        if n == 0 or m == 0:
            raise ValueError(f"v, chains: got {n} and {m} rows, want at least one of each")
        weights = torch.full((n + m,), 1 / n, dtype=v.dtype, device=v.device)
        weights[n:] = -1 / m
        grads = tuple([_grad_of(p) for p in ps] for ps in (self.weights, self.biases))
        statistics_grad_([v, *means], self.layers(chains), weights, grads)  # type: ignore[arg-type]
        self.chains.copy_(chains)
        return means

    def check_finite(self, step: int | None = None) -> None:
        """Raise `NonFiniteError`, naming the step and the parameter, where a parameter is NaN or infinite."""
        check_finite(self, step=step)

    # -- internals ----------------------------------------------------------------------------------------------------

    def _rbm_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, even and odd biases of the RBM between even and odd layers."""
        weights, biases = list(self.weights), list(self.biases)
        return blocks(weights, biases), torch.cat(biases[::2]), torch.cat(biases[1::2])

    def _visible(self, v: Tensor, name: str = "v") -> Tensor:
        return probabilities(name, v, self.n_visible, self.weights[0].dtype)

    def _layers(self, name: str, states: Sequence[Tensor], *, first: int = 0) -> list[Tensor]:
        if not isinstance(states, list | tuple) or len(states) != len(self.sizes) - first:
            got = f"{len(states)} layers" if isinstance(states, list | tuple) else type(states).__name__
            raise ValueError(f"{name}: got {got}, want a list of {len(self.sizes) - first} layers")
        dtype = self.weights[0].dtype
        pairs = zip(states, self.sizes[first:], strict=True)
        return [probabilities(f"{name}[{i}]", x, n, dtype) for i, (x, n) in enumerate(pairs)]

    def _pass_up(self, v: Tensor) -> list[Tensor]:
        return start_means(v, list(self.weights), list(self.biases))

    def _training_means(self, v: Tensor) -> list[Tensor]:
        return self.mean_field(v, max_iterations=self.max_iterations, tolerance=self.tolerance)

    @torch.no_grad()
    def _next_chains(self, v: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        """The persistent chains after k sweeps; the first call starts one for each row of v."""
        integer("k", k)
        if self.n_chains == 0:
            self.reset_chains(v.numel() // self.n_visible, generator=generator)
        if use_reference(self.chains) or self.weights[0].dtype not in (torch.float32, torch.float64):
            states = self.layers(self.chains)
            return torch.cat(self.gibbs(states, k, generator=generator, first_chain=self.first_chain), 1)
        seed, one = seed_tensor(None, generator, self.chains), self.chains.new_ones(1, dtype=torch.float32)
        return flat_gibbs(
            self.chains, list(self.weights), list(self.biases), seed, n_steps=k, beta=one, first_chain=self.first_chain
        )

    def _random_states(self, n: int, generator: torch.Generator | None) -> Tensor:
        integer("number of chains", n, at_least=0)
        return drawn(torch.sigmoid(torch.cat(list(self.biases)).detach()).expand(n, -1), generator)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "chains")
        if isinstance(saved, Tensor) and saved.ndim == 2 and saved.shape[1] == self.n_units:
            self.chains = self.chains.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _grad_of(p: Tensor) -> Tensor:
    """The memory of a parameter's gradient; of one that wants none, memory to throw away."""
    if not p.is_leaf:
        raise RuntimeError("a parameter is computed from others (parametrized): use pcd_loss")
    if p.grad is None and p.requires_grad:
        p.grad = torch.empty_like(p)
    return torch.empty_like(p) if p.grad is None or not p.requires_grad else p.grad
