"""Whether Python sees numbers, or a trace or transform that stands for them."""

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad

_C = torch._C


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
    return _C._functorch.is_functorch_wrapped_tensor(t)


def is_differentiated(t: Tensor, *, by_graph: bool = True) -> bool:
    """Whether a derivative is taken in t: at any level of torch.func, in forward mode or, `by_graph`, by autograd."""
    if not _C._are_functorch_transforms_active():
        return (by_graph and t.requires_grad) or _has_tangent(t)
    level = retrieve_current_functorch_interpreter()
    mine = is_transformed(t) and _C._functorch.maybe_get_level(t) == level.level()
    if mine and level.key() != TransformType.Vmap and (t.requires_grad or _has_tangent(t)):
        return True
    with level.lower():
        return is_differentiated(_C._functorch.get_unwrapped(t) if mine else t, by_graph=by_graph)


def _has_tangent(t: Tensor) -> bool:
    return forward_ad.unpack_dual(t).tangent is not None


def is_channels_last(x: Tensor) -> bool:
    """Whether images [N, C, H, W] lie in memory with their channels last, and not also the usual way."""
    if x.ndim != 4 or is_transformed(x) or x.is_contiguous():  # a transform cannot tell
        return False
    return x.is_contiguous(memory_format=torch.channels_last)
