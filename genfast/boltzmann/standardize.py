"""Restricted Boltzmann machines in standardised units, whose gradients are centred (and scaled)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from genfast._arguments import number
from genfast.boltzmann._bits import Parameters
from genfast.boltzmann._training import gradient_of
from genfast.boltzmann.rbm import RBM
from genfast.boltzmann.units import Layer

_LEAST = 0.1  # of scales, so that a unit that never changes does not blow up its weights


class StandardizedRBM(RBM):
    r"""An RBM whose coupling is between standardised units, so that its gradients are centred.

    .. math::
        E(v, h) = E_v(v) + E_h(h) - a \cdot v - b \cdot h - (v - \mu) / \sigma \, W \, (h - \lambda) / \tau

    with W, a, b the parameters `centered_W`, `centered_vbias`, `centered_hbias`; the offsets mu and lambda follow the
    means of the data and of the hidden units given the data, and where `scaled` the scales sigma and tau follow their
    standard deviations (they are 1 otherwise). The gradient in `centered_W` is then that of the centring trick,
    -<(v - mu)(h - lambda)'>, under any optimiser: it does not depend on whether units are counted as 0/1 or 1/0, and is
    much better conditioned.

    Every machine is one without offsets, and `W`, `vbias` and `hbias` are the parameters of that: W / (sigma tau),
    a - W lambda and b - W'mu. All of `RBM` works on them. The losses of a module in training mode move the offsets by
    their data first, and the parameters so that the distribution stays the same; so do several processes together.

    Args:
        n_visible: number of visible 0/1 units, or the visible layer.
        n_hidden: number of hidden 0/1 units, or the hidden layer.
        scaled: whether units are scaled too.
        decay: weight of the past in the running means; the first data sets them.
        **options: those of `RBM`.

    Source:
        Montavon, Mueller 2012, "Deep Boltzmann machines and the centering trick"; Melchior, Fischer, Wiskott 2016,
        "How to center deep Boltzmann machines".

    Example:
        >>> rbm = StandardizedRBM(64, 100)
        >>> rbm.pcd_loss(torch.bernoulli(torch.full((32, 64), 0.3))).backward()
        >>> rbm.centered_W.grad.shape
        torch.Size([64, 100])
        >>> type(rbm.to_uncentered()).__name__
        'RBM'
    """

    centered_W: Tensor  # noqa: N815
    centered_vbias: Tensor
    centered_hbias: Tensor
    visible_offset: Tensor
    visible_scale: Tensor
    hidden_offset: Tensor
    hidden_scale: Tensor
    n_offsets: Tensor
    scaled = False

    def __init__(
        self,
        n_visible: int | Layer,
        n_hidden: int | Layer,
        *,
        scaled: bool = False,
        decay: float = 0.99,
        **options: Any,
    ) -> None:
        super().__init__(n_visible, n_hidden, **options)
        self.scaled, self.decay = bool(scaled), number("decay", decay, 0, 1)

    def _new_parameters(self) -> None:
        n, m = self.n_visible, self.n_hidden
        for name, shape in (("centered_W", (n, m)), ("centered_vbias", (n,)), ("centered_hbias", (m,))):
            self.register_parameter(name, nn.Parameter(self.chains.new_empty(shape)))
        for name, size in (("visible", n), ("hidden", m)):
            self.register_buffer(f"{name}_offset", self.chains.new_zeros(size))
            self.register_buffer(f"{name}_scale", self.chains.new_ones(size))
        self.register_buffer("n_offsets", torch.zeros((), dtype=torch.int64, device=self.chains.device))

    @torch.no_grad()
    def _reset(self, generator: torch.Generator | None) -> None:
        nn.init.normal_(self.centered_W, 0.0, self.init_std, generator=generator)
        for zero in (self.centered_vbias, self.centered_hbias, self.visible_offset, self.hidden_offset, self.n_offsets):
            zero.zero_()
        self.visible_scale.fill_(1)
        self.hidden_scale.fill_(1)
        self._forget_chains()

    # -- the machine without offsets ----------------------------------------------------------------------------------

    @property
    def W(self) -> Tensor:  # type: ignore[override]  # noqa: N802
        """The weights between units as they are, `[n_visible, n_hidden]`."""
        if not self.scaled:
            return self.centered_W
        return self.centered_W / self.visible_scale[:, None] / self.hidden_scale

    @property
    def vbias(self) -> Tensor:  # type: ignore[override]
        """The visible biases of the machine without offsets."""
        return self.centered_vbias - self.W @ self.hidden_offset

    @property
    def hbias(self) -> Tensor:  # type: ignore[override]
        """The hidden biases of the machine without offsets."""
        return self.centered_hbias - self.visible_offset @ self.W

    def _parameters_now(self) -> Parameters:
        W = self.W
        return W, self.centered_vbias - W @ self.hidden_offset, self.centered_hbias - self.visible_offset @ W

    @torch.no_grad()
    def _assign(self, W: Tensor, vbias: Tensor, hbias: Tensor) -> None:
        self.centered_vbias.copy_(vbias + W @ self.hidden_offset)
        self.centered_hbias.copy_(hbias + self.visible_offset @ W)
        if self.scaled or W is not self.centered_W:
            self.centered_W.copy_(W * self.visible_scale[:, None] * self.hidden_scale)

    @torch.no_grad()
    def to_uncentered(self) -> RBM:
        """The RBM of the same distribution, with the same layers and chains, copied."""
        W, vbias, hbias = self._parameters_now()
        visible, hidden = copy.deepcopy(self.visible), copy.deepcopy(self.hidden)
        rbm = RBM(visible, hidden, init_std=self.init_std, device=W.device, dtype=W.dtype)
        rbm._assign(W, vbias, hbias)  # noqa: SLF001
        rbm.chains = self.chains.clone()
        return rbm.train(self.training)

    # -- offsets ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update_offsets(self, v: Tensor) -> None:
        """Move offsets and scales towards those of the data v `[N, n_visible]`; the distribution stays the same.

        Where torch.distributed runs, towards those of the data of all processes.
        """
        rows = self._visible(v).reshape(-1, self.n_visible)
        W, vbias, hbias = self._parameters_now()
        inputs = torch.addmm(hbias, rows, W)
        h = self.hidden.mean(inputs)
        found = [rows.mean(0), h.mean(0)]
        if self.scaled:
            within = self.hidden.variance(inputs).mean(0)
            found += [rows.var(0, correction=0), h.var(0, correction=0) + within]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            flat = torch.cat(found)
            torch.distributed.all_reduce(flat)
            found = list(flat.div_(torch.distributed.get_world_size()).split([len(x) for x in found]))
        weight = torch.where(self.n_offsets == 0, 1.0, 1 - self.decay).to(rows.dtype)
        W = W.clone() if self.scaled else W
        self.visible_offset.lerp_(found[0], weight)
        self.hidden_offset.lerp_(found[1], weight)
        for scale, variance in zip((self.visible_scale, self.hidden_scale), found[2:], strict=False):
            scale.copy_(torch.lerp(scale**2, variance.clamp(min=_LEAST**2), weight).sqrt())
        self.n_offsets += 1
        self._assign(W, vbias, hbias)

    def _data(self, v: Tensor) -> Tensor:
        v = super()._data(v)
        if self.training and torch.is_grad_enabled():
            self.update_offsets(v)
        return v

    # -- gradients in closed form -------------------------------------------------------------------------------------

    def _gradients(self) -> list[Tensor]:
        own = [gradient_of(p) for p in (*self.visible.parameters(), *self.hidden.parameters())]
        return [*(torch.empty_like(p) for p in (self.centered_W, self.centered_vbias, self.centered_hbias)), *own]

    @torch.no_grad()
    def _place_gradients(self, grads: list[Tensor]) -> None:
        """From those in W, vbias and hbias by the chain rule."""
        of_W, of_vbias, of_hbias = grads[:3]
        of_W.addr_(of_vbias, self.hidden_offset, alpha=-1).addr_(self.visible_offset, of_hbias, alpha=-1)
        if self.scaled:
            of_W.div_(self.visible_scale[:, None]).div_(self.hidden_scale)
        for p, grad in zip((self.centered_W, self.centered_vbias, self.centered_hbias), grads, strict=False):
            gradient_of(p).copy_(grad)

    def extra_repr(self) -> str:
        """Sizes and options, for the printed module."""
        return f"{super().extra_repr()}, scaled={self.scaled}, decay={self.decay:g}"
