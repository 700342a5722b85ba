"""The joint energy of visible and hidden states of a restricted Boltzmann machine."""

import torch
from torch import Tensor

from genfast import _native
from genfast._backend import use_reference
from genfast._register import define
from genfast.ops import _checks as check
from genfast.ops._sampling import STATES
from genfast.ops.rbm import _machine
from genfast.reference import joint_energy as reference

_NOT_BINARY = 2  # a bit of the kernel's status: see RbmStatus in rbm.h


def _outputs(v: Tensor, h: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    return v.new_empty(v.shape[:1], dtype=torch.float64)


def _energy(v: Tensor, h: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    if v.dtype not in STATES:
        v, h = v.to(torch.int64), h.to(torch.int64)
    if W.dtype not in (torch.float32, torch.float64):
        W, vbias, hbias = W.float(), vbias.float(), hbias.float()
    energy = _outputs(v, h, W, vbias, hbias)
    status: int | None = _native.rbm_joint_energy(v, h, W, vbias, hbias, energy, None)
    if status and status & _NOT_BINARY:
        raise ValueError("v, h: expected states that are 0 or 1, got other values")
    return energy


_energy_op = define("rbm_joint_energy", _outputs, launch=_energy, autocast=False)


def rbm_joint_energy(v: Tensor, h: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    r"""The energy of states, :math:`E(v, h) = -a \cdot v - b \cdot h - v^T W h`, in float64 and to the last bit.

    W, a and b are rounded to fixed point as in `rbm_gibbs`, so this is the energy of the very machine that its chains
    sample, and an exact sum: the same bits on every backend and device, for any number of threads, and for a chain
    alone as among others. Decisions that are made on it, such as `tempering_swap`'s, are the same everywhere too.

    The op has no gradient: see `genfast.boltzmann.RBM.energy` for one that has.

    Args:
        v: visible states `[..., n_visible]`, 0 or 1 in any dtype.
        h: hidden states `[..., n_hidden]`, in the dtype of v.
        W: weights `[n_visible, n_hidden]`, float32 or float64 (half types are raised to float32).
        vbias: a, `[n_visible]`.
        hbias: b, `[n_hidden]`.

    Returns:
        E: `[...]`, float64. NaN where a parameter is NaN or infinite and, on a GPU, where a state is neither 0 nor 1.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit; on the CPU, a state is neither 0 nor 1.

    Source:
        Smolensky 1986.

    Example:
        >>> W, a, b = torch.ones(3, 2), torch.zeros(3), torch.zeros(2)
        >>> genfast.ops.rbm_joint_energy(torch.tensor([[1, 1, 0]]), torch.tensor([[0, 1]]), W, a, b)
        tensor([-2.], dtype=torch.float64)
    """
    rows, batch = _machine(v, W, vbias, hbias)
    check.tensor("h", h)
    if h.device != v.device:
        raise ValueError(f"h: got a tensor on {h.device}, want {v.device} like v")
    if h.dtype != v.dtype:
        raise TypeError(f"h: got {h.dtype}, want {v.dtype} like v")
    check.shape("h", h, (*batch, W.shape[1]), f"{[*batch, W.shape[1]]}, a row of n_hidden for each of v")
    given = [t.detach() if t.requires_grad else t for t in (rows, h.reshape(-1, W.shape[1]), W, vbias, hbias)]
    out: Tensor = reference.rbm_joint_energy(*given) if use_reference(v) else _energy_op(*given)
    return out.reshape(batch)
