"""Free energies, and the loss of contrastive divergence with its gradient computed at once, for layers of any kind."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from genfast import ops
from genfast.boltzmann._bits import Parameters, hidden_as_bits
from genfast.boltzmann.units import Layer
from genfast.ops.rbm import parameter_gradients, rbm_contrast, state_product

Wrap = Callable[[Tensor], Tensor]


def product(x: Tensor, W: Tensor, bias: Tensor) -> Tensor:
    """bias + x W, in full precision under autocast too."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return functional.linear(x, W.T, bias)
    with torch.autocast(x.device.type, enabled=False):
        return functional.linear(x, W.T, bias)


def free_energy(
    v: Tensor, parameters: Parameters, visible: Layer, hidden: Layer, *, wrap: Wrap | None = None
) -> Tensor:
    """F(v) = E_0(v) - a.v - A_h(b + v W) of v `[..., n_visible]`; the layers' own parameters go through `wrap`."""
    W, vbias, hbias = parameters
    if hidden.bits is not None:
        machine, constant = hidden_as_bits(W, vbias, hbias, hidden.bits)
        free = ops.rbm_free_energy(v, *machine)
        free = free if constant is None else free + constant
    else:
        free = -(v @ vbias) - _call(hidden, product(v, W, hbias), "log_normaliser", wrap)
    return free if visible.n_states is not None else free + _call(visible, v, "energy", wrap)


def _call(layer: Layer, x: Tensor, method: str, wrap: Wrap | None) -> Tensor:
    own = {} if wrap is None else {name: wrap(p) for name, p in layer.named_parameters()}
    out: Tensor = torch.func.functional_call(layer, own, (x, method)) if own else layer(x, method)
    return out


@torch.no_grad()
def contrast_grad_(v: Tensor, weights: Tensor, W: Tensor, hbias: Tensor, grads: Sequence[Tensor]) -> None:
    """Write the gradients of `contrast` in W, vbias and hbias, of a machine of 0/1 units, over those in `grads`."""
    p = state_product(v, W, init=hbias).sigmoid_()
    parameter_gradients(v, p, weights, (grads[0], grads[1], grads[2]))


@torch.no_grad()
def layered_grad_(
    v_data: Tensor, v_model: Tensor, inputs: Tensor, W: Tensor, hbias: Tensor, grads: Sequence[Tensor], visible: Layer,
    hidden: Layer,
) -> None:  # fmt: skip
    """The same for mean F(v_data) - mean F(v_model) of layers of any kind, and for the layers' own parameters.

    With F = E_0(v) - a.v - A(b + v W) the first three are of the means of h, for A' is the mean. `inputs` are the
    hidden units' given the data.
    """
    of_W, of_vbias, of_hbias, *of_layers = grads
    for grad in (of_vbias, of_hbias, *of_layers):
        grad.zero_()
    for v, x, weight in ((v_data, inputs, 1 / len(v_data)), (v_model, None, -1 / len(v_model))):
        h, of_hidden = hidden.statistics(torch.addmm(hbias, v, W) if x is None else x)
        torch.addmm(of_W, v.t(), h, beta=1 if x is None else 0, alpha=-weight, out=of_W)
        of_vbias.sub_(v.sum(0), alpha=weight)
        of_hbias.sub_(h.sum(0), alpha=weight)
        own = (*visible.energy_grads(v), *(-g for g in of_hidden))
        for total, grad in zip(of_layers, own, strict=True):
            total.add_(grad, alpha=weight)


def contrast(v: Tensor, weights: Tensor, parameters: Parameters, visible: Layer, hidden: Layer) -> Tensor:
    """The sum of weights times F(v) for v `[N, n_visible]` and weights `[N]` of sum 0, differentiable.

    Where a gradient may be wanted, it is computed together with the value.
    """
    same = all(t.dtype == v.dtype for t in parameters) and v.dtype in (torch.float32, torch.float64)
    if hidden.bits is None or not (same and torch.is_grad_enabled()):
        return (free_energy(v, parameters, visible, hidden) * weights).sum()
    machine, _ = hidden_as_bits(*parameters, hidden.bits)  # a constant has weight 0
    loss = rbm_contrast(v, weights, *machine)
    return loss if visible.n_states is not None else loss + (visible.energy(v) * weights).sum()
