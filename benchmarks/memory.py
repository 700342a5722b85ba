"""Counts what a forward pass keeps for its backward."""

from collections.abc import Callable, Sequence

import torch

__all__ = ["saved_bytes"]


def saved_bytes(forward: Callable[[], object], inputs: Sequence[torch.Tensor]) -> int:
    """Bytes of the distinct storages that `forward` saves for its backward, those of `inputs` left out."""
    held = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = forward()
    total = sum(storage.nbytes() for storage in storages.values())
    del outputs
    return total
