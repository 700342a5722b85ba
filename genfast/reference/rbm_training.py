"""Training of an RBM in plain PyTorch, as a careful user would write it: the baseline of `genfast demo`.

No autograd: the gradient is known in closed form. Products are fused with their bias (addmm), states are drawn by
torch.bernoulli, and the parameters are updated in place.
"""

import torch
from torch import Tensor

__all__ = ["contrastive_step", "gibbs"]


def gibbs(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, n_steps: int) -> Tensor:
    """`n_steps` sweeps of block Gibbs sampling from the states v `[N, n_visible]`; the last visible states."""
    for _ in range(n_steps):
        h = torch.bernoulli(torch.addmm(hbias, v, W).sigmoid_())
        v = torch.bernoulli(torch.addmm(vbias, h, W.T).sigmoid_())
    return v


def contrastive_step(
    v_data: Tensor,
    chains: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor],
    velocities: tuple[Tensor, Tensor, Tensor],
    *,
    lr: float,
    momentum: float = 0.0,
    k: int = 1,
) -> Tensor:
    """One step of contrastive divergence by gradient descent, changing parameters and velocities in place.

    Args:
        v_data: 0/1 data `[N, n_visible]`.
        chains: states to start from `[M, n_visible]`: the data for CD-k, the last chains for PCD-k.
        parameters: weights `[n_visible, n_hidden]`, vbias `[n_visible]` and hbias `[n_hidden]`.
        velocities: of the same shapes, zero at the start.
        lr: learning rate.
        momentum: of the descent, as in torch.optim.SGD.
        k: Gibbs sweeps.

    Returns:
        The chains after k sweeps.
    """
    W, vbias, hbias = parameters
    vel_W, vel_vbias, vel_hbias = velocities
    with torch.no_grad():
        v_model = gibbs(chains, W, vbias, hbias, k)
        h_data = torch.addmm(hbias, v_data, W).sigmoid_()
        h_model = torch.addmm(hbias, v_model, W).sigmoid_()
        per_data, per_model = 1 / v_data.shape[0], 1 / v_model.shape[0]
        vel_W.mul_(momentum).addmm_(v_data.T, h_data, alpha=per_data).addmm_(v_model.T, h_model, alpha=-per_model)
        vel_vbias.mul_(momentum).add_(v_data.sum(0), alpha=per_data).sub_(v_model.sum(0), alpha=per_model)
        vel_hbias.mul_(momentum).add_(h_data.sum(0), alpha=per_data).sub_(h_model.sum(0), alpha=per_model)
        for parameter, velocity in zip(parameters, velocities, strict=True):
            parameter.add_(velocity, alpha=lr)
    return v_model
