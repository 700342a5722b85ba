"""Arguments that the samplers share: numbers for each chain, clamped units, and seeds."""

import torch
from torch import Tensor

from genfast.ops import _checks as check

#: Dtypes of states 0 and 1 that the kernels read and write.
STATES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool,
)  # fmt: skip
SEEDS = (-(2**63), 2**63 - 1, ())  # the arguments of torch.randint


def per_chain(name: str, value: float | Tensor, v: Tensor, batch: torch.Size) -> Tensor:
    """A number, or one for each chain of `batch`, as float32 `[1]` or `[N]` on the device of v."""
    if not isinstance(value, Tensor):
        return v.new_full((1,), float(value), dtype=torch.float32)
    if value.device != v.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, want {v.device} like v")
    if value.dim() and value.shape != batch:
        raise ValueError(f"{name}: got shape {list(value.shape)}, want a number or one per chain, {list(batch)}")
    return value.detach().reshape(-1).float()


def clamp_mask(clamp: Tensor | None, v: Tensor, units: str = "n_visible") -> Tensor | None:
    """A bool mask `[units]` for all chains, or in the shape of v for each, as `[units]` or rows."""
    if clamp is None:
        return None
    check.tensor("clamp", clamp)
    if clamp.dtype != torch.bool:
        raise TypeError(f"clamp: got {clamp.dtype}, want a torch.bool mask")
    if clamp.device != v.device:
        raise ValueError(f"clamp: got a tensor on {clamp.device}, want {v.device} like v")
    if clamp.shape not in (v.shape, v.shape[-1:]):
        raise ValueError(
            f"clamp: got shape {list(clamp.shape)}, want [{units}] = {list(v.shape[-1:])} or that of v, {list(v.shape)}"
        )
    return clamp if clamp.dim() == 1 else clamp.reshape(-1, clamp.shape[-1])


def seed_tensor(seed: int | Tensor | None, generator: torch.Generator | None, v: Tensor) -> Tensor:
    """The seed of a call as an int64 scalar on the device of v; drawn, from the generator, where none is given."""
    device = v.device
    if seed is None:
        if type(v) is not Tensor:  # a fake tensor: the seed is one too
            return v.new_empty((), dtype=torch.int64).random_(generator=generator)
        at = device if generator is None else generator.device
        drawn = torch.randint(*SEEDS, dtype=torch.int64, device=at, generator=generator)
        return drawn.to(device)
    if generator is not None:
        raise ValueError("generator, seed: got both, want at most one of them")
    if not isinstance(seed, Tensor):
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed: got {type(seed).__name__}, want an int or an int64 tensor")
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed: got {seed}, want 64 bits")
        signed = seed - 2**64 if seed >= 2**63 else seed
        return v.new_full((), signed, dtype=torch.int64)
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise TypeError(f"seed: got {seed.dtype} {list(seed.shape)}, want an int or an int64 tensor of one element")
    if seed.device != device:
        raise ValueError(f"seed: got a tensor on {seed.device}, want {device} like v")
    return seed.reshape(())
