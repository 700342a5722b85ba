"""The restricted Boltzmann machine with binary units."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import integer, number, real
from genfast._finite import check_finite
from genfast._module import Module
from genfast._tracing import has_values, is_differentiated
from genfast.boltzmann._annealing import BinaryPath
from genfast.boltzmann._contrastive import contrast, contrast_grad_
from genfast.boltzmann._enumerate import log_partition_rbm
from genfast.boltzmann._refuse import refuse_gradient
from genfast.boltzmann._states import binary, drawn, probabilities


class RBM(Module):
    r"""A restricted Boltzmann machine with binary (0/1) visible and hidden units.

    .. math::
        E(v, h) = -a \cdot v - b \cdot h - v^T W h, \qquad p(v, h) = e^{-E(v, h)} / Z

    with `W [n_visible, n_hidden]`, `vbias` (a) and `hbias` (b). Then p(h=1|v) = sigmoid(b + v W) and
    p(v=1|h) = sigmoid(a + W h); the free energy is F(v) = -a.v - sum_j softplus(b + v W)_j, with p(v) = e^-F(v) / Z.

    Training minimises `cd_loss` (contrastive divergence) or `pcd_loss` (persistent chains) with any torch optimiser.
    The persistent chains are the buffer `chains`: saved in the state dict and resumed from it.

    **Data.** Units are 0 or 1, in any dtype, bool and integers too. Where a formula is an expectation over independent
    units, numbers in [0, 1] are taken as their probabilities (grey pixels, hidden activations; "mean field"): in
    `energy`, `free_energy`, the conditionals, `reconstruct`, `init_vbias`, and as the data of all losses, whose
    positive statistics they enter as they are, while the chains of CD start at states drawn from them. `log_prob`,
    `pseudo_likelihood`, `gibbs` and `sample` speak of states, and take 0 and 1 alone. Anything else, such as pixels of
    0 ... 255 or NaN, is refused on the CPU; where looking would wait (on a GPU) or cannot be done (inside
    `torch.compile`, `vmap`), it counts as NaN, and so do the results.

    For users of scikit-learn's `BernoulliRBM`: `components_` is `W.T`, `intercept_visible_` is `vbias`,
    `intercept_hidden_` is `hbias`; `transform(v)` is `hidden_probs(v)`; `gibbs(v)` is `gibbs(v)[0]`;
    `score_samples(v)` is `pseudo_likelihood(v)`; `fit` is PCD-1 with `batch_size` chains and no shuffling.

    Args:
        n_visible: number of visible units.
        n_hidden: number of hidden units.
        init_std: standard deviation of the normal that W starts from (biases start at 0).
        generator: draws the initial W; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer, or init_std is negative.

    Source:
        Smolensky 1986; Hinton 2002, "Training products of experts by minimizing contrastive divergence";
        Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient".

    Example:
        >>> rbm = RBM(64, 100)
        >>> optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
        >>> v = torch.bernoulli(torch.full((32, 64), 0.3))
        >>> rbm.pcd_loss(v, k=1).backward()
        >>> optimizer.step()
        >>> rbm.sample(4, n_steps=100).shape
        torch.Size([4, 64])
    """

    chains: Tensor

    def __init__(
        self,
        n_visible: int,
        n_hidden: int,
        *,
        init_std: float = 0.01,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.init_std = number("init_std", init_std, 0, math.inf)
        self.n_visible = integer("n_visible", n_visible)
        self.n_hidden = integer("n_hidden", n_hidden)
        self.W = nn.Parameter(torch.empty(n_visible, n_hidden, device=device, dtype=dtype))
        self.vbias = nn.Parameter(torch.empty(n_visible, device=device, dtype=dtype))
        self.hbias = nn.Parameter(torch.empty(n_hidden, device=device, dtype=dtype))
        self.register_buffer("chains", torch.empty(0, n_visible, device=device, dtype=dtype))
        #: Whether the losses check themselves and the parameters (a synchronisation on CUDA; turn it off inside
        #: CUDA graphs and call `check_finite` now and then). Inside torch.compile nothing is checked.
        self.nonfinite_check = True
        self._n_losses = 0
        self._weights: tuple[Any, Tensor] | None = None
        self.reset_parameters(generator=generator)

    @torch.no_grad()
    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the initial W again, set the biases to 0 and forget the persistent chains."""
        nn.init.normal_(self.W, 0.0, self.init_std, generator=generator)
        nn.init.zeros_(self.vbias)
        nn.init.zeros_(self.hbias)
        self.chains = self.chains.new_empty(0, self.n_visible)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"n_visible={self.n_visible}, n_hidden={self.n_hidden}, n_chains={self.n_chains}"

    # -- energies -----------------------------------------------------------------------------------------------------

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """E(v, h) = -a.v - b.h - v'W h of v `[..., n_visible]` and h `[..., n_hidden]`; returns `[...]`.

        Raises:
            ValueError: a last dimension does not fit, or values are not in [0, 1].
        """
        v, h = self._visible(v), self._hidden(h)
        return -(v @ self.vbias) - h @ self.hbias - ((v @ self.W) * h).sum(-1)

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -a.v - sum_j softplus(b + v W)_j = -log sum_h exp(-E(v, h)), differentiable.

        Args:
            v: `[..., n_visible]`, 0/1 or probabilities in between.

        Returns:
            `[...]`.

        Raises:
            ValueError: the last dimension of v is not n_visible, or values are not in [0, 1].
        """
        return ops.rbm_free_energy(self._visible(v), self.W, self.vbias, self.hbias)

    def log_partition(self) -> Tensor:
        """The exact log Z, by enumeration of the smaller layer, in float64; differentiable to any order.

        The work is 2^min(n_visible, n_hidden) times the larger layer, and twice that again for the gradient, which is
        the model's expectation. Memory does not grow with the number of states.

        Raises:
            ValueError: the smaller layer has more than 25 units; `genfast.boltzmann.ais_log_z` estimates log Z then.
        """
        return log_partition_rbm(self.W, self.vbias, self.hbias)

    def log_prob(self, v: Tensor, *, log_partition: Tensor | float | None = None) -> Tensor:
        """The log-likelihood log p(v) = -F(v) - log Z of v `[..., n_visible]`; returns `[...]`.

        Its gradient is that of exact maximum likelihood, with log Z computed here. A log Z that is given as a constant
        says nothing about the gradient of log Z: the result then has no gradient in the parameters, and asking for one
        raises. A tensor that requires a gradient brings that of log Z along.

        Args:
            v: visible states, 0 or 1.
            log_partition: log Z where it is known; computed exactly otherwise (see `log_partition`).

        Raises:
            ValueError: the last dimension of v is not n_visible, v holds anything but 0 and 1, or log Z is asked of a
                machine with more than 25 units in the smaller layer.
        """
        v = binary("v", v, self.n_visible, self.W.dtype)
        W, vbias, hbias = self._parameters_now()
        if log_partition is None:
            log_partition = self.log_partition()
        elif _is_constant(log_partition):
            W, vbias, hbias = (refuse_gradient(x, _CONSTANT_LOG_Z) for x in (W, vbias, hbias))
        free = ops.rbm_free_energy(v, W, vbias, hbias)
        return -free - (log_partition.to(free.dtype) if isinstance(log_partition, Tensor) else log_partition)

    @torch.no_grad()
    def pseudo_likelihood(self, v: Tensor, *, exact: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Pseudo-log-likelihood sum_i log p(v_i | v_-i) of binary v `[..., n_visible]`; returns `[...]`.

        log p(v_i | v_-i) = log sigmoid(F(v with unit i flipped) - F(v)). As in scikit-learn's `score_samples`, one
        random unit a row stands for all and its term is multiplied by n_visible; this estimate is unbiased. A measure
        of progress, it has no gradient.

        Args:
            v: 0/1 states.
            exact: flip every unit in turn instead, at n_visible times the work.
            generator: draws the flipped units; the default generator otherwise.

        Source:
            Besag 1975, "Statistical analysis of non-lattice data".
        """
        v = binary("v", v, self.n_visible, self.W.dtype)
        parameters = self._parameters_now()
        if any(is_differentiated(x, by_graph=False) for x in (v, *parameters)):
            raise RuntimeError("pseudo_likelihood: has no gradient, but a transform or forward mode asks for one")
        free = ops.rbm_free_energy(v, *parameters)

        def term(unit: Tensor) -> Tensor:
            flipped = v.scatter(-1, unit, 1 - v.gather(-1, unit))
            return F.logsigmoid(ops.rbm_free_energy(flipped, *parameters) - free)

        each = (*v.shape[:-1], 1)
        if exact:
            total = torch.zeros_like(free)
            for i in range(self.n_visible):
                total += term(torch.full(each, i, device=v.device))
            return total
        at = v.device if generator is None else generator.device
        return self.n_visible * term(torch.randint(self.n_visible, each, device=at, generator=generator).to(v.device))

    # -- conditionals and chains --------------------------------------------------------------------------------------

    def hidden_probs(self, v: Tensor, *, beta: float = 1.0) -> Tensor:
        """p(h=1|v) = sigmoid(beta (b + v W)): `[..., n_visible]` to `[..., n_hidden]`."""
        return torch.sigmoid(beta * F.linear(self._visible(v), self.W.T, self.hbias))

    def visible_probs(self, h: Tensor, *, beta: float = 1.0) -> Tensor:
        """p(v=1|h) = sigmoid(beta (a + W h)): `[..., n_hidden]` to `[..., n_visible]`."""
        return torch.sigmoid(beta * F.linear(self._hidden(h), self.W, self.vbias))

    @torch.no_grad()
    def sample_hidden(self, v: Tensor, *, beta: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw h ~ p(h|v): 0/1 states `[..., n_hidden]`."""
        return torch.bernoulli(self.hidden_probs(v, beta=beta), generator=generator)

    @torch.no_grad()
    def sample_visible(self, h: Tensor, *, beta: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw v ~ p(v|h): 0/1 states `[..., n_visible]`."""
        return torch.bernoulli(self.visible_probs(h, beta=beta), generator=generator)

    def gibbs(
        self,
        v: Tensor,
        n_gibbs_steps: int = 1,
        *,
        beta: float | Tensor = 1.0,
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run block Gibbs chains for n_gibbs_steps sweeps (h given v, then v given h), in one fused call.

        Args:
            v: 0/1 states to start from, `[..., n_visible]`, one chain a row, in any dtype.
            n_gibbs_steps: number of sweeps.
            beta: inverse temperature, a number or one a chain.
            clamp: boolean mask of visible units that keep their value.
            generator: draws the seed of the chains; the default generator otherwise.
            seed: the seed itself, instead of a generator: the same seed gives the same chains.

        Returns:
            The last pair (v, h), in the dtype of v. See `genfast.ops.rbm_gibbs`.
        """
        real("v", v, self.n_visible)
        try:
            return ops.rbm_gibbs(
                v, self.W, self.vbias, self.hbias, n_steps=n_gibbs_steps, beta=beta, clamp=clamp, generator=generator,
                seed=seed,
            )  # fmt: skip
        except ValueError:
            binary("v", v, self.n_visible, self.W.dtype)  # says more, where it is v
            raise

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

        The chains start from the product of Bernoulli(sigmoid(a)) where no `start` is given. They converge to the
        machine's distribution as n_steps grows; a machine with separate modes may need very many.

        Args:
            n_samples: number of chains, and so of samples.
            n_steps: sweeps a chain.
            start: 0/1 states `[n_samples, n_visible]` to start from.
            beta: inverse temperature.
            clamp: boolean mask of visible units that keep the value they have in `start`.
            generator: source of randomness; the default generator otherwise.

        Returns:
            0/1 states `[n_samples, n_visible]`.

        Raises:
            ValueError: `start` does not fit, or `clamp` comes without `start`.
        """
        if start is None:
            if clamp is not None:
                raise ValueError("clamp: got a mask without start, want start to hold the clamped values")
            start = self._random_visible(n_samples, generator)
        start = binary("start", start, self.n_visible, self.W.dtype)
        if start.shape[0] != n_samples:
            raise ValueError(f"start: got {start.shape[0]} rows, want n_samples = {n_samples}")
        return self.gibbs(start, n_steps, beta=beta, clamp=clamp, generator=generator)[0]

    def reconstruct(self, v: Tensor) -> Tensor:
        """The mean-field reconstruction p(v'=1 | h = p(h=1|v)): probabilities `[..., n_visible]`."""
        return self.visible_probs(self.hidden_probs(v))

    def annealing_path(self, base: Tensor | None = None) -> BinaryPath:
        """The path of annealed importance sampling from independent visible units to this machine, as it is now.

        Args:
            base: data `[N, n_visible]`, whose rates the units have at the start; log-odds `[n_visible]`; None for
                uniform states. See `genfast.boltzmann.ais_log_z`.
        """
        return BinaryPath(*self._parameters_now(), base)

    # -- training -----------------------------------------------------------------------------------------------------

    @property
    def n_chains(self) -> int:
        """Number of persistent chains; 0 before the first `pcd_loss` or `reset_chains`."""
        return self.chains.shape[0]

    @torch.no_grad()
    def reset_chains(self, n_chains: int, *, generator: torch.Generator | None = None) -> None:
        """Start n_chains new persistent chains from Bernoulli(sigmoid(a))."""
        self.chains = self._random_visible(n_chains, generator)

    @torch.no_grad()
    def init_vbias(self, v: Tensor) -> None:
        """Set a_i = log(p_i / (1 - p_i)) with p_i the mean of unit i in the data v `[N, n_visible]`.

        The machine then starts from the best independent model. p is kept 1 / (N + 1) away from 0 and 1.

        Source:
            Hinton 2010, "A practical guide to training restricted Boltzmann machines", section 8.1.
        """
        rows = self._visible(v).reshape(-1, self.n_visible)
        if rows.shape[0] == 0:
            raise ValueError("v: got no rows, want at least one")
        margin = 1 / (rows.shape[0] + 1)
        self.vbias.copy_(torch.logit(rows.mean(0).clamp(margin, 1 - margin)))

    def contrastive_loss(self, v_data: Tensor, v_model: Tensor) -> Tensor:
        """The loss mean F(v_data) - mean F(v_model), v_model held constant: positive against negative statistics.

        Its gradient is exactly <dF/dtheta>_data - <dF/dtheta>_model, for W: -<v h'>_data + <v h'>_model with h the
        probabilities p(h=1|v). The value itself is not the likelihood and need not fall.

        Raises:
            ValueError: a shape does not fit, or values are not in [0, 1].
            NonFiniteError: the loss or a parameter is not finite (where `nonfinite_check` is set).
        """
        return self._loss(self._visible(v_data, "v_data"), self._visible(v_model, "v_model"))

    def cd_loss(self, v: Tensor, k: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of contrastive divergence, CD-k: the chains start from the data and run k sweeps.

        Args:
            v: data `[N, n_visible]`, 0/1 or probabilities in between; of these the chains' first states are drawn.
            k: number of Gibbs sweeps.
            generator: source of randomness; the default generator otherwise.

        Returns:
            A scalar; `backward()` puts the CD-k gradient on W, vbias and hbias. See `contrastive_loss`.

        Source:
            Hinton 2002, "Training products of experts by minimizing contrastive divergence".

        Example:
            >>> RBM(6, 3).cd_loss(torch.ones(4, 6), k=2).backward()
        """
        v = self._visible(v)
        return self._loss(v, self._chains_from(v, k, generator))

    def pcd_loss(self, v: Tensor, k: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of persistent contrastive divergence, PCD-k (stochastic maximum likelihood).

        The chains of the buffer `chains` run k sweeps and are kept for the next call. The first call starts as many
        as v has rows; `reset_chains` chooses another number.

        Args:
            v: data `[N, n_visible]`, 0/1 or probabilities in between.
            k: number of Gibbs sweeps.
            generator: source of randomness; the default generator otherwise.

        Returns:
            A scalar; `backward()` puts the PCD-k gradient on W, vbias and hbias. See `contrastive_loss`.

        Source:
            Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient".
        """
        v = self._visible(v)
        v_model = self._next_chains(v, k, generator)
        loss = self._loss(v, v_model)
        self.chains.copy_(v_model)
        return loss

    def cd_backward(self, v: Tensor, k: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """Do what `cd_loss(v, k).backward()` does to cleared gradients, without a graph and without the loss: faster.

        The gradients' memory is used again from call to call, so `zero_grad` is not needed.

        Returns:
            The model's states `[N, n_visible]`, for `contrastive_loss(v, states)` where the loss is wanted.

        Raises:
            RuntimeError: a parameter is computed from others (`torch.nn.utils.parametrize`), which it cannot reach.
        """
        v = self._visible(v)
        return self._contrast_backward(v, self._chains_from(v, k, generator).reshape(-1, self.n_visible))

    def pcd_backward(self, v: Tensor, k: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """Do what `pcd_loss(v, k).backward()` does to cleared gradients, without a graph and without the loss: faster.

        See `cd_backward`.

        Example:
            >>> rbm = RBM(64, 100)
            >>> optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
            >>> for batch in torch.bernoulli(torch.full((320, 64), 0.3)).split(32):
            ...     _ = rbm.pcd_backward(batch)
            ...     optimizer.step()
        """
        v = self._visible(v)
        v_model = self._contrast_backward(v, self._next_chains(v, k, generator))
        self.chains.copy_(v_model)
        return v_model

    def check_finite(self, step: int | None = None) -> None:
        """Raise `NonFiniteError`, naming the step and the parameter, where a parameter is NaN or infinite."""
        check_finite(self, step=step)

    # -- internals ----------------------------------------------------------------------------------------------------

    def _parameters_now(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.W, self.vbias, self.hbias

    def _visible(self, v: Tensor, name: str = "v") -> Tensor:
        return probabilities(name, v, self.n_visible, self.W.dtype)

    def _hidden(self, h: Tensor) -> Tensor:
        return probabilities("h", h, self.n_hidden, self.W.dtype)

    def _chains_from(self, v: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        """The states of chains that start from the data, after k sweeps."""
        integer("k", k)
        if v.device.type != "cpu" or not has_values(v):
            return self.gibbs(drawn(v, generator), k, generator=generator)[0]
        try:
            return ops.rbm_gibbs(v, self.W, self.vbias, self.hbias, n_steps=k, generator=generator)[0]
        except ValueError:  # the kernel sees at no cost whether there are probabilities
            return self.gibbs(drawn(v.detach(), generator), k, generator=generator)[0]

    def _next_chains(self, v: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        """The persistent chains after k sweeps; the first call starts one for each row of v."""
        integer("k", k)
        if self.n_chains == 0:
            self.reset_chains(v.numel() // self.n_visible, generator=generator)
        return self.gibbs(self.chains, k, generator=generator)[0]

    def _loss(self, v_data: Tensor, v_model: Tensor) -> Tensor:
        rows = [v.reshape(-1, self.n_visible) for v in (v_data, v_model.detach())]
        loss = contrast(torch.cat(rows), self._mean_weights(len(rows[0]), len(rows[1])), self.W, self.vbias, self.hbias)
        self._n_losses += 1
        if self.nonfinite_check and has_values(loss):
            value = loss.item()
            if not math.isfinite(value):
                check_finite(self, step=self._n_losses, loss=value)
        return loss

    def _contrast_backward(self, v_data: Tensor, v_model: Tensor) -> Tensor:
        parameters = self._parameters_now()
        grads = []
        for p in parameters:
            if not p.is_leaf:
                raise RuntimeError("a parameter is computed from others (parametrized): use cd_loss or pcd_loss")
            if p.grad is None and p.requires_grad:
                p.grad = torch.empty_like(p)
            grads.append(torch.empty_like(p) if p.grad is None or not p.requires_grad else p.grad)
        rows = torch.cat([v_data.reshape(-1, self.n_visible), v_model])
        weights = self._mean_weights(rows.shape[0] - v_model.shape[0], v_model.shape[0])
        contrast_grad_(rows, weights, parameters[0], parameters[2], (grads[0], grads[1], grads[2]))
        return v_model

    def _mean_weights(self, n_data: int, n_model: int) -> Tensor:
        """1 / n_data for the rows of data, -1 / n_model for those of the model; kept for the next call."""
        W, keep = self.W, has_values(self.W)
        key = (n_data, n_model, W.dtype, W.device, keep and torch.is_inference_mode_enabled())
        if keep and self._weights is not None and self._weights[0] == key:
            return self._weights[1]
        if n_data == 0 or n_model == 0:
            raise ValueError(f"v_data, v_model: got {n_data} and {n_model} rows, want at least one of each")
        weights = torch.full((n_data + n_model,), 1 / n_data, dtype=W.dtype, device=W.device)
        weights[n_data:] = -1 / n_model
        if keep and has_values(weights):
            self._weights = (key, weights)
        return weights

    def _random_visible(self, n: int, generator: torch.Generator | None) -> Tensor:
        integer("number of chains", n, at_least=0)
        probs = torch.sigmoid(self.vbias.detach()).expand(n, -1)
        return torch.bernoulli(probs, generator=generator)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "chains")
        if isinstance(saved, Tensor) and saved.ndim == 2 and saved.shape[1] == self.n_visible:
            self.chains = self.chains.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


_CONSTANT_LOG_Z = (
    "log_prob: log_partition was given as a constant, so the gradient in the parameters is unknown; leave "
    "log_partition out (exact, for a small machine), or call log_prob under torch.no_grad()"
)


def _is_constant(t: Tensor | float) -> bool:
    return not isinstance(t, Tensor) or not is_differentiated(t)
