"""Block Gibbs chains of a restricted Boltzmann machine of any kinds of units."""

import torch
from torch import Tensor

from genfast import ops
from genfast._arguments import integer
from genfast._tracing import has_values
from genfast.boltzmann._bits import Parameters, as_bits
from genfast.boltzmann._contrastive import product
from genfast.boltzmann.units import Layer
from genfast.ops._sampling import clamp_mask, seed_tensor

_01 = (1.0, 0.0)


@torch.no_grad()
def alternate(
    v: Tensor, parameters: Parameters, visible: Layer, hidden: Layer, *, n_steps: int, beta: float | Tensor = 1.0,
    clamp: Tensor | None = None, generator: torch.Generator | None = None, seed: int | Tensor | None = None,
    first_chain: int = 0, first_step: int = 0, inputs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The last (v, h) of chains that start at v `[..., n_visible]`, n_steps sweeps of h given v and v given h.

    Units of two values run on `ops.rbm_gibbs`. The others are drawn by torch, from a generator whose seed is made of
    `seed`, `first_chain` and `first_step`. Where v is known to be of states, `inputs` may be the hidden units' at v.

    Raises:
        ValueError: v is not of states.
    """
    W, vbias, hbias = parameters
    if visible.bits is not None and hidden.bits is not None:
        plain = visible.bits == hidden.bits == _01
        machine = parameters if plain else as_bits(W, vbias, hbias, visible.bits, hidden.bits)
        start = v if plain else _to_bits(v if v.is_floating_point() else v.to(W.dtype), visible.bits)
        out_v, out_h = ops.rbm_gibbs(
            start, *machine, n_steps=n_steps, beta=beta, clamp=clamp, generator=generator, seed=seed,
            first_chain=first_chain, first_step=first_step,
        )  # fmt: skip
        if plain:
            return out_v, out_h
        out_v, out_h = _from_bits(out_v, visible.bits), _from_bits(out_h, hidden.bits)
        return (out_v.to(v.dtype), out_h.to(v.dtype)) if v.dtype.is_signed else (out_v, out_h)
    integer("n_steps", n_steps)
    clamp = clamp_mask(clamp, v)
    clamp = clamp if clamp is None or clamp.dim() == 1 else clamp.reshape(v.shape)
    start = x = visible.check("v", v, W.dtype, states=True).detach() if inputs is None else v
    if isinstance(beta, Tensor) and beta.dim() and beta.shape != v.shape[:-1]:
        raise ValueError(f"beta: got shape {list(beta.shape)}, want a number or one per chain, {list(v.shape[:-1])}")
    if visible.n_states is None or hidden.n_states is None:
        _check_beta(beta)
    generator = seeded(v, seed, generator, first_chain, first_step)
    for _ in range(n_steps):
        h = hidden.sample(product(x, W, hbias) if inputs is None else inputs, beta=beta, generator=generator)
        inputs = None
        x = visible.sample(product(h, W.T, vbias), beta=beta, generator=generator)
        x = x if clamp is None else torch.where(clamp, start, x)
    dtype = v.dtype if v.is_floating_point() else W.dtype
    return x.to(dtype), h.to(dtype)


def _check_beta(beta: float | Tensor) -> None:
    """Real units have a distribution where beta is above 0."""
    if isinstance(beta, Tensor) and (beta.device.type != "cpu" or not has_values(beta)):
        return
    least = float(beta.min()) if isinstance(beta, Tensor) else beta
    if not least > 0:
        raise ValueError(f"beta: got {least:g}, want numbers above 0: real units have no distribution at beta = 0")


def _to_bits(x: Tensor, bits: tuple[float, float]) -> Tensor:
    return x if bits == _01 else (x - bits[1]) / bits[0]


def _from_bits(x: Tensor, bits: tuple[float, float]) -> Tensor:
    return x if bits == _01 else x.mul_(bits[0]).add_(bits[1])


def independent(
    n: int, layer: Layer, inputs: Tensor, *, generator: torch.Generator | None = None, seed: int | Tensor | None = None,
    first_chain: int = 0,
) -> Tensor:  # fmt: skip
    """n draws of a layer's states under its inputs `[size]` alone: `[n, size]`."""
    rows = inputs.detach().expand(n, -1)
    if seed is None or layer.bits is None:
        return layer.sample(rows, generator=seeded(rows, seed, generator, first_chain, 0))
    scale, offset = layer.bits
    nothing, start = inputs.new_zeros(layer.size, 1), torch.zeros_like(rows)
    machine = (nothing, scale * inputs.detach(), inputs.new_zeros(1))
    b, _ = ops.rbm_gibbs(start, *machine, seed=seed, first_chain=first_chain)
    return b.mul_(scale).add_(offset)


def seeded(
    like: Tensor, seed: int | Tensor | None, generator: torch.Generator | None, first_chain: int, first_step: int
) -> torch.Generator | None:
    """The generator to draw from: the given one, or one whose seed is mixed of the three numbers."""
    if seed is None:
        return generator
    key = int(seed_tensor(seed, generator, like))
    for number in (first_chain, first_step):  # the mixing function of SplitMix64 (Steele, Lea, Flood 2014)
        key = (key + 0x9E3779B97F4A7C15 * (number + 1)) & _WORD
        key = ((key ^ key >> 30) * 0xBF58476D1CE4E5B9) & _WORD
        key = ((key ^ key >> 27) * 0x94D049BB133111EB) & _WORD
        key ^= key >> 31
    return torch.Generator(like.device).manual_seed(key)


_WORD = 2**64 - 1
