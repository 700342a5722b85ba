"""The loss of contrastive divergence with its gradient computed at once."""

import torch
from torch import Tensor

from genfast import ops
from genfast.ops.rbm import parameter_gradients, rbm_contrast, state_product


@torch.no_grad()
def contrast_grad_(v: Tensor, weights: Tensor, W: Tensor, hbias: Tensor, grads: tuple[Tensor, Tensor, Tensor]) -> None:
    """Write the gradients of `contrast` in W, vbias and hbias over the contents of `grads`."""
    p = state_product(v, W, init=hbias).sigmoid_()
    parameter_gradients(v, p, weights, grads)


def contrast(v: Tensor, weights: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    """The sum of weights times F(v) for v `[N, n_visible]` and weights `[N]`, differentiable in W, vbias and hbias.

    Where a gradient may be wanted, it is computed together with the value.
    """
    same = v.dtype == W.dtype == vbias.dtype == hbias.dtype and v.dtype in (torch.float32, torch.float64)
    if same and torch.is_grad_enabled():
        return rbm_contrast(v, weights, W, vbias, hbias)
    return (ops.rbm_free_energy(v, W, vbias, hbias) * weights).sum()
