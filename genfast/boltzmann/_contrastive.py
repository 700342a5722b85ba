"""The loss of contrastive divergence with its gradient computed at once."""

import functools
from typing import Any

import torch
from torch import Tensor

from genfast import ops
from genfast._backend import use_reference
from genfast._tracing import has_values, transform_active
from genfast.ops.rbm import state_product
from genfast.reference.rbm import rbm_free_energy


class _Contrast(torch.autograd.Function):
    """weights . F(v), whose gradient is ready before backward asks: one graph node where autograd would need ten."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
        energy, p = torch.ops.genfast.rbm_free_energy_forward.default(v, W, vbias, hbias)
        _, *grads = torch.ops.genfast.rbm_free_energy_backward.default(v, W, vbias, p, weights, False, True)
        ctx.save_for_backward(v, weights, W, vbias, hbias, *grads)
        loss: Tensor = energy @ weights
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, weights, *parameters = ctx.saved_tensors[:5]
        grads = ctx.saved_tensors[5:]
        if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
            grads = torch.func.vjp(functools.partial(_weighted_energy, v, weights), *parameters)[1](grad)
            return None, None, *grads
        return (None, None, *(grad * g for g in grads))


def _weighted_energy(v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    return (rbm_free_energy(v, W, vbias, hbias) * weights).sum()


@torch.no_grad()
def contrast_grad_(
    v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, grads: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Write the gradients of `contrast` in W, vbias and hbias over the contents of `grads`."""
    grad_W, grad_vbias, grad_hbias = grads
    if use_reference(v) or not has_values(v):
        p = torch.addmm(hbias, v, W).sigmoid_()
        torch.mm((v * -weights[:, None]).t(), p, out=grad_W)
    else:
        p = state_product(v, W, init=hbias).sigmoid_()
        state_product(v, p, scale=weights, out=grad_W)
    torch.mv(p.t(), weights, out=grad_hbias).neg_()
    torch.mv(v.t(), weights, out=grad_vbias).neg_()


def contrast(v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    """The sum of weights times F(v) for v `[N, n_visible]` and weights `[N]`, differentiable in W, vbias and hbias.

    Where the kernels serve, no gradient of v is wanted and no transform of torch.func is at work, the gradient comes
    with the value.
    """
    plain = (
        torch.compiler.is_compiling()
        or use_reference(v)
        or transform_active()
        or v.requires_grad
        or not (v.dtype == W.dtype == vbias.dtype == hbias.dtype and v.dtype in (torch.float32, torch.float64))
        or not torch.is_grad_enabled()
    )
    if plain:
        return (ops.rbm_free_energy(v, W, vbias, hbias) * weights).sum()
    loss: Tensor = _Contrast.apply(v, weights, W, vbias, hbias)
    return loss
