"""How a restricted Boltzmann machine is trained: persistent chains, contrastive losses and their gradients."""

import math
from typing import Any

import torch
from torch import Tensor

from genfast._arguments import integer
from genfast._finite import check_finite
from genfast._module import Module
from genfast._tracing import has_values
from genfast.boltzmann._bits import Parameters
from genfast.boltzmann._contrastive import contrast, contrast_grad_
from genfast.boltzmann._fused import fused_step
from genfast.boltzmann.units import Binary, Layer


class Trained(Module):
    """The training of an RBM, which gives the rest."""

    chains: Tensor
    visible: Layer
    hidden: Layer
    n_visible: int
    W: Tensor
    vbias: Tensor
    hbias: Tensor
    nonfinite_check: bool
    _n_losses = 0
    _weights: tuple[Any, Tensor] | None = None

    def _parameters_now(self) -> Parameters:
        raise NotImplementedError

    def _visible(self, v: Tensor, name: str = "v") -> Tensor:
        raise NotImplementedError

    def _advance(self, v: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        """Chains at v after k sweeps."""
        raise NotImplementedError

    def _random_visible(self, n: int, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    @property
    def n_chains(self) -> int:
        """Number of persistent chains; 0 before the first `pcd_loss` or `reset_chains`."""
        return self.chains.shape[0]

    @torch.no_grad()
    def reset_chains(self, n_chains: int, *, generator: torch.Generator | None = None) -> None:
        """Start n_chains new persistent chains from the visible units' distribution under their biases alone."""
        self.chains = self._random_visible(n_chains, generator)

    @torch.no_grad()
    def init_from_data(self, v: Tensor) -> None:
        """Set the visible biases, and the visible layer's own parameters, to the best independent model of the data.

        For 0/1 units a_i = log(p_i / (1 - p_i)) with p_i the mean of unit i in v `[N, n_visible]`, kept 1 / (N + 1)
        away from 0 and 1; the others match the mean and, where they can, the variance.

        Source:
            Hinton 2010, "A practical guide to training restricted Boltzmann machines", section 8.1.
        """
        self.vbias.copy_(self.visible.init_from_data(self._visible(v)))

    def init_vbias(self, v: Tensor) -> None:
        """`init_from_data`."""
        self.init_from_data(v)

    def contrastive_loss(self, v_data: Tensor, v_model: Tensor) -> Tensor:
        """The loss mean F(v_data) - mean F(v_model), v_model held constant: positive against negative statistics.

        Its gradient is exactly <dF/dtheta>_data - <dF/dtheta>_model, for W: -<v h'>_data + <v h'>_model with h the
        means of p(h|v). The value itself is not the likelihood and need not fall.

        Raises:
            ValueError: a shape does not fit, or values are not those of the visible units.
            NonFiniteError: the loss or a parameter is not finite (where `nonfinite_check` is set).
        """
        return self._loss(self._visible(v_data, "v_data"), self._visible(v_model, "v_model"))

    def cd_loss(self, v: Tensor, k: int = 1, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of contrastive divergence, CD-k: the chains start from the data and run k sweeps.

        Args:
            v: data `[N, n_visible]`: states, or means of such (0/1 units: probabilities), of which the chains' first
                states are drawn.
            k: number of Gibbs sweeps.
            generator: source of randomness; the default generator otherwise.

        Returns:
            A scalar; `backward()` puts the CD-k gradient on the parameters. See `contrastive_loss`.

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
            v: data `[N, n_visible]`: states, or means of such.
            k: number of Gibbs sweeps.
            generator: source of randomness; the default generator otherwise.

        Returns:
            A scalar; `backward()` puts the PCD-k gradient on the parameters. See `contrastive_loss`.

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
        integer("k", k)
        grads = self._gradients()
        v_model = self._fused_step(v, None, k, generator, grads)
        if v_model is None:
            v_model = self._chains_from(v, k, generator).reshape(-1, self.n_visible)
            self._contrast_backward(v, v_model, grads)
        return v_model

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
        self._start_chains(v, k, generator)
        grads = self._gradients()
        v_model = self._fused_step(v, self.chains, k, generator, grads)
        if v_model is None:
            v_model = self._next_chains(v, k, generator)
            self._contrast_backward(v, v_model, grads)
        self.chains.copy_(v_model)
        return v_model

    def check_finite(self, step: int | None = None) -> None:
        """Raise `NonFiniteError`, naming the step and the parameter, where a parameter is NaN or infinite."""
        check_finite(self, step=step)

    # -- internals ----------------------------------------------------------------------------------------------------

    def _chains_from(self, v: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        """The states of chains that start from the data, after k sweeps."""
        integer("k", k)
        if v.device.type != "cpu" or not has_values(v):
            return self._advance(self.visible.drawn(v, generator), k, generator)
        try:  # what runs the chains sees at no cost whether there are means
            return self._advance(v, k, generator)
        except ValueError:
            return self._advance(self.visible.drawn(v.detach(), generator), k, generator)

    def _start_chains(self, v: Tensor, k: int, generator: torch.Generator | None) -> None:
        """Start a persistent chain for each row of v where there are none."""
        integer("k", k)
        if self.n_chains == 0:
            self.reset_chains(v.numel() // self.n_visible, generator=generator)

    def _next_chains(self, v: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        """The persistent chains after k sweeps; the first call starts one for each row of v."""
        self._start_chains(v, k, generator)
        return self._advance(self.chains, k, generator)

    def _loss(self, v_data: Tensor, v_model: Tensor) -> Tensor:
        rows = [v.reshape(-1, self.n_visible) for v in (v_data, v_model.detach())]
        weights = self._mean_weights(len(rows[0]), len(rows[1]))
        loss = contrast(torch.cat(rows), weights, self._parameters_now(), self.visible, self.hidden)
        self._n_losses += 1
        if self.nonfinite_check and has_values(loss):
            value = loss.item()
            if not math.isfinite(value):
                check_finite(self, step=self._n_losses, loss=value)
        return loss

    def _fused_step(
        self, v: Tensor, chains: Tensor | None, k: int, generator: torch.Generator | None, grads: list[Tensor]
    ) -> Tensor | None:
        """The states of a step whose gradients are written over `grads`; None where there is no op for it."""
        if type(self.visible) is not Binary or type(self.hidden) is not Binary:
            return None
        return fused_step(self._parameters_now(), v, chains, k, generator, grads)

    def _gradients(self) -> list[Tensor]:
        """Where a backward writes the gradients of W, vbias, hbias and the layers' own parameters."""
        grads = []
        for p in (*self._parameters_now(), *self.visible.parameters(), *self.hidden.parameters()):
            if not p.is_leaf:
                raise RuntimeError("a parameter is computed from others (parametrized): use cd_loss or pcd_loss")
            if p.grad is None and p.requires_grad:
                p.grad = torch.empty_like(p)
            grads.append(torch.empty_like(p) if p.grad is None or not p.requires_grad else p.grad)
        return grads

    def _contrast_backward(self, v_data: Tensor, v_model: Tensor, grads: list[Tensor]) -> None:
        W, _, hbias = self._parameters_now()
        rows = torch.cat([v_data.reshape(-1, self.n_visible), v_model])
        weights = self._mean_weights(rows.shape[0] - v_model.shape[0], v_model.shape[0])
        contrast_grad_(rows, weights, W, hbias, grads, self.visible, self.hidden)

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
