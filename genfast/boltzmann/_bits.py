"""Units of two values as units of 0 and 1: an exact change of variables."""

from torch import Tensor

Bits = tuple[float, float]
Parameters = tuple[Tensor, Tensor, Tensor]


def hidden_as_bits(W: Tensor, vbias: Tensor, hbias: Tensor, bits: Bits) -> tuple[Parameters, Tensor | None]:
    """The machine with h = scale * b + offset for b of 0 and 1, and the constant that its energy has besides.

    a.v + b.h + v'W h = (a + offset W 1).v + (scale hbias).b + v'(scale W) b + offset sum(hbias).
    """
    scale, offset = bits
    if (scale, offset) == (1, 0):
        return (W, vbias, hbias), None
    return (scale * W, vbias + offset * W.sum(1), scale * hbias), -offset * hbias.sum()


def as_bits(W: Tensor, vbias: Tensor, hbias: Tensor, visible: Bits, hidden: Bits) -> Parameters:
    """The machine with both layers so, up to a constant of the energy."""
    (W, vbias, hbias), _ = hidden_as_bits(W, vbias, hbias, hidden)
    (W_T, hbias, vbias), _ = hidden_as_bits(W.T, hbias, vbias, visible)
    return W_T.T, vbias, hbias
