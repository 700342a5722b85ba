"""CDFs of logistic and Gaussian mixtures (Ho et al., Flow++, 2019) and their inverses in plain PyTorch."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_LOG_SCALE, MAX_DISTANCE, MAX_LOGIT = 24.0, 1e12, 1e30
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def mixture_of_logistics_cdf(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, *, output: str = "probability", inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.mixture_of_logistics_cdf`; x [...], parameters [..., K] that broadcast to it."""
    return _mixture(x, logits, means, log_scales, _Logistic, output, inverse)


def mixture_of_gaussians_cdf(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, *, output: str = "probability", inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.mixture_of_gaussians_cdf`."""
    return _mixture(x, logits, means, log_scales, _Normal, output, inverse)


class _Logistic:
    log_cdf = staticmethod(F.logsigmoid)

    @staticmethod
    def log_hazard(u: Tensor) -> Tensor:
        """The log of the density over the CDF."""
        return F.logsigmoid(-u)

    @staticmethod
    def quantile(logit: Tensor) -> Tensor:
        return logit.clamp(-MAX_DISTANCE, MAX_DISTANCE)


class _Normal:
    log_cdf = staticmethod(torch.special.log_ndtr)

    @staticmethod
    def log_hazard(u: Tensor) -> Tensor:
        # log phi - log Phi, of which neither is small where u is very negative: there, by erfcx
        below = torch.where(u < 0, u, 0)
        above = torch.where(u < 0, 0, u)
        left = -(math.sqrt(math.pi / 2) * torch.special.erfcx(-below / math.sqrt(2))).log()
        right = -0.5 * above * above - _LOG_SQRT_2PI - torch.special.log_ndtr(above)
        return torch.where(u < 0, left, right)

    @staticmethod
    def quantile(logit: Tensor) -> Tensor:
        return torch.where(logit < 0, -1.0, 1.0) * _tail_quantile(F.logsigmoid(-logit.abs()))


def _log_tail(a: Tensor) -> Tensor:
    """The log of Phi(-a) e^(a^2 / 2)."""
    tail: Tensor = torch.special.erfcx(a / math.sqrt(2))
    return tail.log() - math.log(2)


def _tail_quantile(log_p: Tensor) -> Tensor:
    """The a >= 0 of log Phi(-a) = log_p."""
    with torch.no_grad():
        t = (-2 * log_p).sqrt()
        a = t - (2.515517 + t * (0.802853 + 0.010328 * t)) / (1 + t * (1.432788 + t * (0.189269 + 0.001308 * t)))
        a = a.clamp(min=0)
    for _ in range(3):  # of Newton, which carry derivatives: the last two those of the root, also the second ones
        log_tail = _log_tail(a)
        a = a + (log_tail - 0.5 * a * a - log_p) * (log_tail + _LOG_SQRT_2PI).exp()
    return a


def _standardised(x: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """(x - mean) / scale within the limit, with the derivatives of what has none, and the log-scales within theirs."""
    s = log_scales.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    scale = (-s).exp()
    d = x.unsqueeze(-1) - means
    far = (d * scale).abs().detach() > MAX_DISTANCE
    fixed = MAX_DISTANCE * d.detach().sign()
    moves = (x - x.detach()).unsqueeze(-1) - (means - means.detach())
    limit = fixed + moves * scale.detach() - fixed * (s - s.detach())
    return torch.where(far, limit, torch.where(far, 0.0, d) * scale), s


def _forward(
    x: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor, kind: type[_Logistic] | type[_Normal], output: str
) -> tuple[Tensor, Tensor]:
    u, s = _standardised(x, means, log_scales)
    below, above = log_pi + kind.log_cdf(u), log_pi + kind.log_cdf(-u)
    log_below, log_above = torch.logsumexp(below, -1), torch.logsumexp(above, -1)
    low = (log_below < log_above).detach()  # whether the CDF is the lesser of the two tails
    sign = torch.where(low, 1.0, -1.0).to(x.dtype)
    log_small, log_big = torch.where(low, log_below, log_above), torch.where(low, log_above, log_below)
    # the density over the lesser tail: a mean over the components' shares of that tail
    shares = torch.where(low.unsqueeze(-1), below, above).log_softmax(-1)
    log_hazard = torch.logsumexp(shares + kind.log_hazard(sign.unsqueeze(-1) * u) - s, -1)
    if output == "probability":
        return torch.where(low, log_small, log_big).exp(), log_hazard + log_small
    if output == "logit":
        return sign * (log_small - log_big), log_hazard - log_big
    a = _tail_quantile(log_small)
    return -sign * a, log_hazard + _log_tail(a) + _LOG_SQRT_2PI


def _mixture(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, kind: type[_Logistic] | type[_Normal], output: str,
    inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    log_pi = logits.log_softmax(-1)
    if not inverse:
        return _forward(x, log_pi, means, log_scales, kind, output)
    if output == "probability":
        info = torch.finfo(x.dtype)
        p = torch.where((x >= 0) & (x <= 1), x, torch.nan).clamp(info.tiny, 1 - info.eps / 2)
        target, quantile = p.log() - (-p).log1p(), None
    elif output == "logit":
        target, quantile = x.clamp(-MAX_LOGIT, MAX_LOGIT), None
    else:
        quantile = x.clamp(-MAX_DISTANCE, MAX_DISTANCE)
        log_small = torch.special.log_ndtr(-quantile.abs())
        target = torch.where(quantile < 0, 1.0, -1.0) * (log_small - (-log_small.exp()).log1p())
    with torch.no_grad():
        root = _solve(target, quantile, log_pi, means, log_scales, kind)
    # Two Newton steps carry the first and second derivatives of the root.
    for _ in range(2):
        logit, log_rate = _forward(root, log_pi, means, log_scales, kind, "logit")
        root = root - (logit - target) * (-log_rate).exp()
    return root, -_forward(root, log_pi, means, log_scales, kind, output)[1]


def _solve(
    target: Tensor, quantile: Tensor | None, log_pi: Tensor, means: Tensor, log_scales: Tensor,
    kind: type[_Logistic] | type[_Normal],
) -> Tensor:  # fmt: skip
    """The x of this logit by halving thrice, between the components' own; without derivatives."""
    quantile = kind.quantile(target) if quantile is None else quantile
    target, quantile, log_pi, means = (v.detach() for v in (target, quantile, log_pi, means))
    scale = (-log_scales.detach().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)).exp()
    own = means + quantile.unsqueeze(-1) / scale
    present = log_pi > -torch.inf
    low = torch.where(present, own, torch.inf).amin(-1)
    high = torch.where(present, own, -torch.inf).amax(-1)
    # Eighths of the interval at a time; two Newton steps by the caller give the last digits.
    eighths = torch.arange(1, 8, dtype=low.dtype, device=low.device) / 8
    log_pi, means, scale, wanted = (v.unsqueeze(-2) for v in (log_pi, means, scale, target.unsqueeze(-1)))
    for _ in range(20):
        points = low.unsqueeze(-1) * (1 - eighths) + high.unsqueeze(-1) * eighths
        u = ((points.unsqueeze(-1) - means) * scale).clamp(-MAX_DISTANCE, MAX_DISTANCE)
        logit = torch.logsumexp(log_pi + kind.log_cdf(u), -1) - torch.logsumexp(log_pi + kind.log_cdf(-u), -1)
        left = (logit <= wanted.squeeze(-2)).sum(-1) / 8
        right = left + 1 / 8
        low, high = low * (1 - left) + high * left, low * (1 - right) + high * right
    return torch.where(target.isnan(), target, 0.5 * low + 0.5 * high)
