"""The training step of a machine with binary units as one op."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genfast._register import is_plain
from genfast.ops._sampling import seed_tensor
from genfast.ops.rbm_cd import contrastive_step


@torch.no_grad()
def fused_step(
    parameters: tuple[Tensor, Tensor, Tensor], v: Tensor, chains: Tensor | None, k: int, generator: Any,
    first_chain: int, out: Sequence[Tensor],
) -> Tensor | None:  # fmt: skip
    """Write the gradients of a step in W, vbias, hbias over `out`; returns the model's states.

    None, and nothing is written or drawn, where the op does not apply: another dtype or device, traces and transforms.
    """
    tensors = [v, *parameters, *out, *([] if chains is None else [chains])]
    if torch.compiler.is_compiling() or not is_plain(tensors):
        return None
    if not all(t.is_cpu and t.dtype == torch.float32 and t.is_contiguous() and t.numel() for t in tensors):
        return None
    rows = v if v.dim() == 2 else v.reshape(-1, v.shape[-1])
    return contrastive_step(rows, chains, *parameters, seed_tensor(None, generator, v), k, first_chain, out=out)
