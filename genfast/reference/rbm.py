"""Restricted Boltzmann machines in plain PyTorch: block Gibbs sampling and the free energy.

The energy of visible and hidden units in {0, 1} is E(v, h) = -a.v - b.h - v'Wh with `W [n_visible, n_hidden]`, and the
machine's distribution is proportional to exp(-beta E).

The Gibbs chain is defined to the last bit, so that every backend draws the same states from the same seed:

1. **Weights.** `quantise` rounds W, a (vbias) and b (hbias) to multiples of a power of two, s = 2^e: the smallest for
   which no sum of |W| over a row or a column plus the bias leaves int32, and W itself fits three signed bytes. The
   field of a unit is then an exact integer.
2. **Logit.** z = (float32(field) * float32(2^min(e, 100))) * beta, in float32.
3. **Random word.** r is word `unit % 4` of Philox4x32-10 with counter (chain, unit // 4, step, stream) and the seed's
   low and high 32 bits as key; the stream is 1 for hidden and 2 for visible units.
4. **Acceptance.** With t = exp(-|z|) the less likely of the two states has probability t / (1 + t); it is taken where
   u (1 + t) < t for u = float32(r >> 1) * 2^-31 + 2^-32. `exp_negative` states the operations of the exponential. All
   of it is float32 addition and multiplication, each correctly rounded, none contracted.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["exp_negative", "philox4x32", "quantise", "rbm_free_energy", "rbm_gibbs", "uniform_words"]

HIDDEN_STREAM, VISIBLE_STREAM = 1, 2
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


def quantise(W: Tensor, vbias: Tensor, hbias: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rounds finite weights and biases to integer multiples of 2^e, half to even.

    The choice of e uses integers and maxima only, so it depends on no order of summation: with every magnitude below
    2^E, its bound in units of 2^(E - r) is floor(|x| 2^(r - E)) + 1, where r = 30 - ceil(log2(n + 1)) and n is the
    larger of the two layers. B is the largest sum of such bounds over a row or column with its bias, and k the largest
    number with 2^k B + n + 1 <= 2^31 - 1. Of W alone, with every magnitude below 2^F, c = F - 23, or F - 22 where the
    largest would round to more than 0x7F7F7F. Then e = max(E - r - k, c, -100).

    Returns:
        The integers of W, vbias and hbias as int64, and e.
    """
    W, vbias, hbias = (x if x.dtype == torch.float64 else x.float() for x in (W, vbias, hbias))
    n = max(*W.shape, 1)
    r = 30 - n.bit_length()  # ceil(log2(n + 1)) for n >= 1
    largest = max((float(x.abs().max()) for x in (W, vbias, hbias) if x.numel()), default=0.0)
    exponent = max(math.frexp(largest)[1], -90)
    bw, bv, bh = ((x.abs() * 2.0 ** (r - exponent)).to(torch.int64) + 1 for x in (W, vbias, hbias))
    sums = [(bw.sum(0) + bh), (bw.sum(1) + bv)]
    bound = max((int(s.max()) for s in sums if s.numel()), default=1)
    k = ((2**31 - 2 - n) // bound).bit_length() - 1
    largest = float(W.abs().max()) if W.numel() else 0.0
    c = math.frexp(largest)[1] - 23 if largest else -100
    if c > -100 and round(largest * 2.0**-c) > 0x7F7F7F:
        c += 1
    e = max(exponent - r - k, c, -100)
    qw, qv, qh = (torch.round(x * 2.0**-e).to(torch.int64) for x in (W, vbias, hbias))
    return qw, qv, qh, e


def _sample(
    state: Tensor,
    weights: Tensor,
    bias: Tensor,
    scale: float,
    beta: Tensor,
    words: Tensor,
) -> Tensor:
    # Sums of integers below 2^31 are exact in float64, in any order.
    field = state.double() @ weights.double() + bias.double()
    z = (field.float() * scale) * beta[:, None]
    u = (words >> 1).float() * 2.0**-31 + 2.0**-32
    t = exp_negative(z.abs())
    return (z > 0) ^ (u * (1.0 + t) < t)


def rbm_gibbs(
    v: Tensor,
    W: Tensor,
    vbias: Tensor,
    hbias: Tensor,
    *,
    seed: int | Tensor,
    n_steps: int = 1,
    beta: float | Tensor = 1.0,
    clamp: Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> tuple[Tensor, Tensor]:
    """Runs `n_steps` sweeps of block Gibbs sampling: hidden given visible, then visible given hidden.

    The arguments are those of `genfast.ops.rbm_gibbs`, with `v [N, n_visible]` and a seed that is given.

    Returns:
        The last visible states `[N, n_visible]` and the hidden states `[N, n_hidden]` they were drawn from, in the
        dtype of `v`. Floating states come out as NaN where the weights are not finite, and in a chain whose `beta` is
        not finite or (on other devices than the CPU) whose `v` holds anything but 0 and 1.

    Raises:
        ValueError: on the CPU, `v` holds something else than 0 and 1; or what makes floating states NaN happens to
            integer or boolean ones.
    """
    with torch.no_grad():
        binary = (v == 0) | (v == 1)
        if v.device.type == "cpu" and not bool(binary.all()):
            raise ValueError("v: expected states that are 0 or 1, got other values")
        beta = torch.as_tensor(beta, dtype=torch.float32, device=v.device).expand(v.shape[0])
        good = binary.all(1) & beta.isfinite()
        finite = all(bool(x.isfinite().all()) for x in (W, vbias, hbias))
        if not v.is_floating_point() and not (finite and bool(good.all())):
            raise ValueError(
                f"W, vbias, hbias, beta: expected finite values, because {v.dtype} states cannot express NaN; "
                "got NaN or infinity"
            )
        if not finite:
            return v.new_full(v.shape, torch.nan), v.new_full((v.shape[0], W.shape[1]), torch.nan)
        qw, qv, qh, e = quantise(W, vbias, hbias)
        scale = 2.0 ** min(e, 100)
        seed = torch.as_tensor(seed, dtype=torch.int64, device=v.device).reshape(())
        chains = torch.arange(v.shape[0], device=v.device) + first_chain
        start = visible = v != 0
        hidden = visible.new_zeros(v.shape[0], W.shape[1])
        for step in range(first_step, first_step + n_steps):
            words = uniform_words(seed, chains, W.shape[1], step, HIDDEN_STREAM)
            hidden = _sample(visible, qw, qh, scale, beta, words)
            words = uniform_words(seed, chains, W.shape[0], step, VISIBLE_STREAM)
            visible = _sample(hidden, qw.t(), qv, scale, beta, words)
            if clamp is not None:
                visible = torch.where(clamp, start, visible)
        out_v, out_h = visible.to(v.dtype), hidden.to(v.dtype)
        if v.is_floating_point():
            out_v, out_h = (x.masked_fill(~good[:, None], torch.nan) for x in (out_v, out_h))
        return out_v, out_h


def rbm_free_energy(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    """F(v) = -a.v - sum_j softplus(b_j + (v W)_j), so that the marginal of v is proportional to exp(-F(v)).

    Args:
        v: visible states `[..., n_visible]`, of any real values.
        W: weights `[n_visible, n_hidden]`.
        vbias: a, `[n_visible]`.
        hbias: b, `[n_hidden]`.

    Returns:
        The free energies `[...]`.
    """
    # -logsigmoid(-x) is softplus without torch's linear cut-off, and its derivatives are stable to second order.
    return -(v @ vbias) + functional.logsigmoid(-(v @ W + hbias)).sum(-1)
