"""What the Gibbs samplers share in plain PyTorch: random words, and the draw of a unit from its integer field.

A field is a sum of weights in fixed point, integer multiples of 2^e, and exact in any order. From it a unit is drawn to
the last bit alike on every backend:

1. **Logit.** z = (float32(field) * float32(2^min(e, 100))) * beta, in float32.
2. **Random word.** r is word `unit % 4` of Philox4x32-10 with counter (chain, unit // 4, step, stream) and the seed's
   low and high 32 bits as key; each purpose has a stream of its own.
3. **Acceptance.** With t = exp(-|z|) the less likely of the two states has probability t / (1 + t); it is taken where
   u (1 + t) < t for u = float32(r >> 1) * 2^-31 + 2^-32. `exp_negative` states the operations of the exponential. All
   of it is float32 addition and multiplication, each correctly rounded, none contracted.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["accept", "accept_logit", "exp_negative", "fixed_point_exponent", "philox4x32", "uniform_words"]

_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in int64 arithmetic.

    Args:
        counter: four int64 tensors in [0, 2^32) that broadcast together.
        key: two int64 tensors in [0, 2^32).

    Returns:
        Four int64 tensors of random words in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2^64: the high words survive an arithmetic shift and a mask
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def uniform_words(seed: Tensor, chains: Tensor, n_units: int, step: int, stream: int) -> Tensor:
    """The random words of `n_units` units of every chain at one step: int64 [N, n_units] in [0, 2^32)."""
    blocks = torch.arange((n_units + 3) // 4, device=seed.device)
    now, which = (torch.full((), c, dtype=torch.int64, device=seed.device) for c in (step & _MASK, stream))
    words = philox4x32((chains[:, None] & _MASK, blocks, now, which), (seed & _MASK, (seed >> 32) & _MASK))
    return torch.stack(words, -1).flatten(1)[:, :n_units]


def exp_negative(a: Tensor) -> Tensor:
    """exp(-a) for float32 a >= 0 within 3e-7, by correctly rounded additions and multiplications in a fixed order.

    a is clamped to 80, n = rint(a / ln 2), f = n ln 2 - a, and exp(-a) = 2^-n exp(f) with a polynomial in f.
    """
    a = a.clamp(max=80.0)
    n = (a * float.fromhex("0x1.715476p0") + 12582912.0) - 12582912.0
    f = (n * 0.693359375 - a) + n * float.fromhex("-0x1.bd0106p-13")
    p = f * float.fromhex("0x1.10627ap-7") + float.fromhex("0x1.572a06p-5")
    p = p * f + float.fromhex("0x1.5557aep-3")
    p = p * f + float.fromhex("0x1.fffdfcp-2")
    p = (p * f) * f + f
    return (p + 1.0) * ((127 - n.to(torch.int32)) << 23).view(torch.float32)


def accept(field: Tensor, scale: float, beta: Tensor, words: Tensor) -> Tensor:
    """The new states, bools, of units with exact integer fields and a random word each."""
    return accept_logit((field.float() * scale) * beta, words)


def accept_logit(z: Tensor, words: Tensor) -> Tensor:
    """The new states, bools, of units with float32 logits z and a random word each."""
    u = (words >> 1).float() * 2.0**-31 + 2.0**-32
    t = exp_negative(z.abs())
    drawn: Tensor = (z > 0) ^ (u * (1.0 + t) < t)
    return drawn


def fixed_point_exponent(weights: Tensor, biases: Sequence[Tensor], sums: Sequence[tuple[int, Tensor]]) -> int:
    """The exponent e for which finite weights and biases become integers round(x 2^-e) without overflow of a field.

    The choice uses integers and maxima only, so it depends on no order of summation: with every magnitude below 2^E,
    the bound of x in units of 2^(E - r) is floor(|x| 2^(r - E)) + 1, where r = 30 - ceil(log2(n + 1)) and n is the most
    weights that a unit has. B is the largest sum of such bounds over a unit's weights with its bias, and k the largest
    number with 2^k B + n + 1 <= 2^31 - 1. Of the weights alone, with every magnitude below 2^F, c = F - 23, or F - 22
    where the largest would round to more than 0x7F7F7F. Then e = max(E - r - k, c, -100).

    Args:
        weights: float32 or float64, `[...]`.
        biases: those of all units, float32 or float64.
        sums: for each group of units, the dimension of `weights` to sum over, and their biases.
    """
    n = max(*weights.shape, 1)
    r = 30 - n.bit_length()  # ceil(log2(n + 1)) for n >= 1
    largest = max((float(x.abs().max()) for x in (weights, *biases) if x.numel()), default=0.0)
    exponent = max(math.frexp(largest)[1], -90)

    def bounds(x: Tensor) -> Tensor:
        return (x.abs() * math.ldexp(1.0, r - exponent)).to(torch.int64) + 1

    totals = [bounds(weights).sum(dim) + bounds(bias) for dim, bias in sums]
    bound = max((int(s.max()) for s in totals if s.numel()), default=1)
    k = int((2**31 - 2 - n) // bound).bit_length() - 1
    largest = float(weights.abs().max()) if weights.numel() else 0.0
    c = math.frexp(largest)[1] - 23 if largest else -100
    if c > -100 and round(largest * 2.0**-c) > 0x7F7F7F:
        c += 1
    e: int = max(exponent - r - k, c, -100)
    return e
