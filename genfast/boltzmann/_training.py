"""How a restricted Boltzmann machine is trained: persistent chains, contrastive losses and their gradients."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genfast._arguments import integer, number
from genfast._finite import check_finite
from genfast._module import Module
from genfast._tracing import has_values
from genfast.boltzmann._bits import Parameters
from genfast.boltzmann._chains import alternate
from genfast.boltzmann._contrastive import contrast, contrast_grad_, layered_grad_, product
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
    #: Number of the first row of a batch and of `chains`: processes that share a run number theirs on.
    first_chain = 0
    fast_W: Tensor | None  # noqa: N815
    fast_vbias: Tensor | None
    fast_hbias: Tensor | None
    _n_losses = 0
    _weights: tuple[Any, Tensor] | None = None

    def _parameters_now(self) -> Parameters:
        raise NotImplementedError

    def _assign(self, W: Tensor, vbias: Tensor, hbias: Tensor) -> None:
        raise NotImplementedError

    def _data(self, v: Tensor) -> Tensor:
        """The data of a training step, checked."""
        return self._visible(v)

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
        bias = self.visible.init_from_data(self._visible(v))
        W, _, hbias = self._parameters_now()
        self._assign(W, bias, hbias)

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
        v = self._data(v)
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
        v = self._data(v)
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
        v = self._data(v).reshape(-1, self.n_visible)
        integer("k", k)
        grads = self._gradients()
        v_model = self._fused_step(v, None, k, generator, grads)
        if v_model is None:
            v_model, inputs = self._chains_and_inputs(v, k, generator)
            self._write_gradients(v, v_model, grads, inputs)
        self._place_gradients(grads)
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
        v = self._data(v)
        self._start_chains(v, k, generator)
        grads = self._gradients()
        v_model = self._fused_step(v, self.chains, k, generator, grads)
        if v_model is None:
            v_model = self._next_chains(v, k, generator)
            self._write_gradients(v.reshape(-1, self.n_visible), v_model, grads)
        self._place_gradients(grads)
        self.chains.copy_(v_model)
        return v_model

    def fpcd_loss(
        self,
        v: Tensor,
        k: int = 1,
        *,
        fast_lr: float = 0.01,
        fast_decay: float = 0.95,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of fast persistent contrastive divergence, FPCD-k: PCD whose chains run on weights of their own.

        The chains run on the parameters plus fast ones (buffers `fast_W`, `fast_vbias`, `fast_hbias`), which go down
        the same gradient at the rate `fast_lr` and decay by `fast_decay` at each call. So the energy rises where the
        chains are, and they move on: they mix at learning rates at which those of PCD do not.

        Args:
            v: data `[N, n_visible]`: states, or means of such.
            k: number of Gibbs sweeps.
            fast_lr: learning rate of the fast parameters.
            fast_decay: what is left of them from call to call (19/20 in the paper).
            generator: source of randomness; the default generator otherwise.

        Returns:
            A scalar; see `pcd_loss`.

        Source:
            Tieleman, Hinton 2009, "Using fast weights to improve persistent contrastive divergence".
        """
        v = self._data(v)
        v_model = self._next_fast_chains(v, k, generator)
        loss = self._loss(v, v_model)
        if loss.requires_grad:
            parameters = self._parameters_now()
            found = [torch.empty_like(p) for p in parameters]
            own = [torch.empty_like(p) for p in (*self.visible.parameters(), *self.hidden.parameters())]
            self._write_gradients(v.detach().reshape(-1, self.n_visible), v_model, [*found, *own])
            self._move_fast(found, fast_lr, fast_decay)
        self.chains.copy_(v_model)
        return loss

    def fpcd_backward(
        self,
        v: Tensor,
        k: int = 1,
        *,
        fast_lr: float = 0.01,
        fast_decay: float = 0.95,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Do what `fpcd_loss(v, k).backward()` does to cleared gradients, without a graph and without the loss: faster.

        See `cd_backward`.
        """
        v = self._data(v)
        v_model = self._next_fast_chains(v, k, generator)
        grads = self._gradients()
        self._write_gradients(v.reshape(-1, self.n_visible), v_model, grads)
        self._move_fast(grads, fast_lr, fast_decay)
        self._place_gradients(grads)
        self.chains.copy_(v_model)
        return v_model

    @torch.no_grad()
    def _next_fast_chains(self, v: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        self._start_chains(v, k, generator)
        W, vbias, hbias = self._parameters_now()
        if self.fast_W is None:
            self.fast_W, self.fast_vbias, self.fast_hbias = (torch.zeros_like(p) for p in (W, vbias, hbias))
        assert self.fast_vbias is not None  # noqa: S101
        assert self.fast_hbias is not None  # noqa: S101
        fast = W + self.fast_W, vbias + self.fast_vbias, hbias + self.fast_hbias
        out, _ = alternate(
            self.chains, fast, self.visible, self.hidden, n_steps=k, generator=generator, first_chain=self.first_chain
        )
        return out

    @torch.no_grad()
    def _move_fast(self, grads: Sequence[Tensor], lr: float, decay: float) -> None:
        number("fast_lr", lr, 0, math.inf)
        number("fast_decay", decay, 0, 1)
        for fast, grad in zip((self.fast_W, self.fast_vbias, self.fast_hbias), grads, strict=False):
            if fast is not None:
                fast.mul_(decay).sub_(grad, alpha=lr)

    def weight_penalty(self, *, l1: float = 0.0, l2: float = 0.0) -> Tensor:
        """l1 |W|_1 + l2 / 2 |W|_2^2, to be added to a loss: weight decay of the weights alone, not of the biases.

        Source:
            Hinton 2010, "A practical guide to training restricted Boltzmann machines", section 10.
        """
        W = self._parameters_now()[0]
        return number("l1", l1, 0, math.inf) * W.abs().sum() + 0.5 * number("l2", l2, 0, math.inf) * (W * W).sum()

    def sparsity_penalty(self, v: Tensor, target: float) -> Tensor:
        """sum_j (target - q_j)^2 with q_j the mean of hidden unit j over the data v, to be added to a loss.

        Args:
            v: data `[N, n_visible]`.
            target: what each hidden unit's mean shall be, e.g. 0.05 for 0/1 units.

        Source:
            Lee, Ekanadham, Ng 2008, "Sparse deep belief net model for visual area V2" (who let it act on the hidden
            biases alone: `torch.autograd.grad(penalty, rbm.hbias)`).

        Example:
            >>> rbm, v = RBM(6, 4), torch.ones(3, 6)
            >>> loss = rbm.cd_loss(v) + 0.1 * rbm.sparsity_penalty(v, 0.05) + rbm.weight_penalty(l2=1e-4)
        """
        W, _, hbias = self._parameters_now()
        q = self.hidden.mean(product(self._visible(v), W, hbias)).reshape(-1, self.hidden.size).mean(0)
        return ((number("target", target, -math.inf, math.inf) - q) ** 2).sum()

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

    def _chains_and_inputs(self, v: Tensor, k: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        """The states of chains that start from the data, and the inputs of the hidden units with which they did."""
        if self.visible.bits is not None and self.hidden.bits is not None:
            return self._chains_from(v, k, generator), None
        W, _, hbias = parameters = self._parameters_now()
        start, inputs = self._start(v, generator), torch.addmm(hbias.detach(), v, W.detach())
        v_model, _ = alternate(
            start, parameters, self.visible, self.hidden, n_steps=k, generator=generator,
            first_chain=self.first_chain, inputs=inputs if start is v else None,
        )  # fmt: skip
        return v_model, inputs

    def _fused_step(
        self, v: Tensor, chains: Tensor | None, k: int, generator: torch.Generator | None, grads: list[Tensor]
    ) -> Tensor | None:
        """The states of a step whose gradients are written over `grads`; None where there is no op for it."""
        if type(self.visible) is not Binary or type(self.hidden) is not Binary:
            return None
        return fused_step(self._parameters_now(), v, chains, k, generator, self.first_chain, grads)

    def _start(self, v: Tensor, generator: torch.Generator | None) -> Tensor:
        """States of which v are the means; v itself where it is of states."""
        if v.device.type == "cpu" and has_values(v):
            with contextlib.suppress(ValueError):
                return self.visible.check("v", v, v.dtype, states=True)
        return self.visible.drawn(v.detach(), generator)

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

    def _write_gradients(
        self, v_data: Tensor, v_model: Tensor, grads: list[Tensor], inputs: Tensor | None = None
    ) -> None:
        """Those in W, vbias, hbias and the layers' own parameters, over what `grads` holds."""
        W, _, hbias = self._parameters_now()
        weights = self._mean_weights(v_data.shape[0], v_model.shape[0])
        if type(self.visible) is type(self.hidden) is Binary:
            contrast_grad_(torch.cat([v_data, v_model]), weights, W, hbias, grads)
            return
        inputs = torch.addmm(hbias.detach(), v_data, W.detach()) if inputs is None else inputs
        layered_grad_(v_data, v_model, inputs, W, hbias, grads, self.visible, self.hidden)

    def _place_gradients(self, grads: list[Tensor]) -> None:
        """What is left to do once the gradients are in the memory that `_gradients` gave."""

    def _gradients(self) -> list[Tensor]:
        """The memory of the gradients in W, vbias, hbias and the layers' own parameters."""
        parameters = (*self._parameters_now(), *self.visible.parameters(), *self.hidden.parameters())
        return [gradient_of(p) for p in parameters]

    def _mean_weights(self, n_data: int, n_model: int) -> Tensor:
        """1 / n_data for the rows of data, -1 / n_model for those of the model; kept for the next call."""
        W, keep = self.chains, has_values(self.chains)
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


def gradient_of(p: Tensor) -> Tensor:
    """The memory of a leaf's gradient; new memory, which nobody reads, where it is frozen."""
    if not p.is_leaf:
        raise RuntimeError("a parameter is computed from others (parametrized): use cd_loss or pcd_loss")
    if p.grad is None and p.requires_grad:
        p.grad = torch.empty_like(p)
    return torch.empty_like(p) if p.grad is None or not p.requires_grad else p.grad
