"""Whether Python sees numbers, or a trace or transform that stands for them."""

import torch
from torch import Tensor, nn


def has_values(t: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at: not on the meta device, not in a trace or transform."""
    return (
        not torch.compiler.is_compiling()
        and type(t) in (Tensor, nn.Parameter)
        and t.device.type != "meta"
        and not is_transformed(t)
    )


def is_transformed(t: Tensor) -> bool:
    """Whether t is that of a transform of torch.func: batched, or differentiated."""
    return torch._C._functorch.is_functorch_wrapped_tensor(t)  # noqa: SLF001


def is_differentiated(t: Tensor) -> bool:
    """Whether a transform of torch.func takes a derivative in t."""
    return torch._C._functorch.is_gradtrackingtensor(t)  # noqa: SLF001
