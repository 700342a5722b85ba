"""Base distributions with parameters."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from genfast._arguments import integer, number
from genfast.flows._base import LARGEST_LOG_SCALE, Base, Reparametrised, sample_shape
from genfast.flows._transform import broadcast_context, needed_context
from genfast.flows.nets import MLP

_LOG_2PI = math.log(2 * math.pi)


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _saturated(log_scale: Tensor) -> Tensor:
    return _wide(log_scale).clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, device=like.device, dtype=like.dtype, generator=generator)


class DiagonalNormal(Reparametrised):
    r"""A normal with independent dimensions: z = loc + exp(log_scale) eps, eps standard normal; both are learned.

    log_scale saturates at :math:`\pm 40`. With a context, an MLP of it is added to both.

    Args:
        dim: number of dimensions, or the shape of one event.
        context_features: width of a context `[..., context_features]` that the distribution hangs on.
        hidden: hidden layer sizes of the context's MLP.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is no positive integer.

    Example:
        >>> base = DiagonalNormal(3)
        >>> base.log_prob(base.rsample(5)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        *,
        context_features: int | None = None,
        hidden: Sequence[int] = (64, 64),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim)
        self.loc = nn.Parameter(torch.zeros(self.shape, device=device, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(self.shape, device=device, dtype=dtype))
        self.context_features = context_features
        self.encoder = None
        if context_features is not None:
            self.encoder = MLP(0, hidden, 2 * self.dim, context_features=context_features, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """The standard normal again."""
        super().reset_parameters()
        nn.init.zeros_(self.loc)
        nn.init.zeros_(self.log_scale)

    def sample(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw samples `[n, *shape]`, without a graph; `[n, B, *shape]` given a context `[B, C]`."""
        with torch.no_grad():
            return self.rsample(n, context, generator=generator)

    def rsample(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`sample` with a graph: differentiable in the parameters and the context."""
        loc, log_scale = self._parameters_at(context)
        noise = _normal((*sample_shape(n), *loc.shape), self.loc, generator)
        return torch.addcmul(loc, log_scale.exp(), noise).to(self.loc.dtype)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density of z `[..., *shape]`, whose leading dimensions and the context's broadcast."""
        z = self._checked(z)
        if context is not None and self.context_features is not None:
            z, context = broadcast_context(z, context, self.event_dim)
        loc, log_scale = self._parameters_at(context)
        deviation = (z - loc) * torch.exp(-log_scale)
        return self._sum(-0.5 * deviation * deviation - log_scale) - 0.5 * self.dim * _LOG_2PI

    def _parameters_at(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        loc, log_scale = _wide(self.loc), self.log_scale
        if context is not None or self.context_features is not None:
            lead = context.shape[:-1] if isinstance(context, Tensor) else ()
            context = needed_context(context, self.context_features, lead, type(self).__name__)
            assert self.encoder is not None  # noqa: S101  (made where a context is taken)
            said = self.encoder(context[..., :0], context).unflatten(-1, (2, *self.shape))
            a, b = said.unbind(-1 - self.event_dim)
            loc, log_scale = loc + a, log_scale + b
        return loc, _saturated(log_scale)


class Normal(Reparametrised):
    r"""A normal with any covariance: z = loc + L eps, eps standard normal, L lower triangular; loc and L are learned.

    The diagonal of L is exp(log_diagonal), saturating at :math:`\pm 40`; below it stands `lower`, of which the rest is
    not used.

    Args:
        dim: number of dimensions.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: dim is no positive integer.

    Example:
        >>> base = Normal(3)
        >>> base.covariance().shape, base.log_prob(base.rsample(5)).shape
        (torch.Size([3, 3]), torch.Size([5]))
    """

    def __init__(self, dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(integer("dim", dim))
        self.loc = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))
        self.log_diagonal = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))
        self.lower = nn.Parameter(torch.zeros(dim, dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """The standard normal again."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def scale_tril(self) -> Tensor:
        """L, `[dim, dim]`."""
        return _wide(self.lower).tril(-1) + torch.diag_embed(_saturated(self.log_diagonal).exp())

    def covariance(self) -> Tensor:
        """L L^T, `[dim, dim]`."""
        scale = self.scale_tril()
        return scale @ scale.mT

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        noise = _wide(_normal((*shape, self.dim), self.loc, generator))
        z: Tensor = (_wide(self.loc) + noise @ self.scale_tril().mT).to(self.loc.dtype)
        return z

    def _log_prob(self, z: Tensor) -> Tensor:
        rows = (z - _wide(self.loc)).reshape(math.prod(z.shape[:-1]), self.dim)
        scale = self.scale_tril().to(rows.dtype)
        deviation = torch.linalg.solve_triangular(scale, rows.mT, upper=False)
        half: Tensor = -0.5 * (deviation * deviation).sum(0).reshape(z.shape[:-1])
        return half - _saturated(self.log_diagonal).sum() - 0.5 * self.dim * _LOG_2PI


_DF = (1e-2, 1e6)


class StudentT(Reparametrised):
    r"""Independent Student t: heavy tails; the degrees of freedom exp(log_df), loc and exp(log_scale) are learned.

    log_df saturates at log 0.01 and log 1e6, log_scale at :math:`\pm 40`. Samples carry gradients in all three.

    Args:
        dim: number of dimensions, or the shape of one event.
        df: degrees of freedom at the start, from 0.01 to 1e6.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is no positive integer, or df is out of range.

    Source:
        Alexanderson & Henter 2020, "Robust model training and generalisation with Studentising flows".

    Example:
        >>> base = StudentT(3, df=5.0)
        >>> base.log_prob(base.rsample(5)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        dim: int | Sequence[int],
        *,
        df: float = 10.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim)
        self.df = number("df", df, *_DF)
        self.loc = nn.Parameter(torch.zeros(self.shape, device=device, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(self.shape, device=device, dtype=dtype))
        self.log_df = nn.Parameter(torch.full(self.shape, math.log(df), device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """The initial parameters again."""
        nn.init.zeros_(self.loc)
        nn.init.zeros_(self.log_scale)
        nn.init.constant_(self.log_df, math.log(self.df))

    def _degrees(self) -> Tensor:
        return _wide(self.log_df).clamp(math.log(_DF[0]), math.log(_DF[1])).exp()

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        noise, df = _wide(_normal((*shape, *self.shape), self.loc, generator)), self._degrees()
        gamma = torch._standard_gamma((0.5 * df).expand(noise.shape), generator=generator)  # noqa: SLF001
        t = noise * torch.rsqrt(2 * gamma.clamp(min=torch.finfo(gamma.dtype).tiny) / df)
        return torch.addcmul(_wide(self.loc), _saturated(self.log_scale).exp(), t).to(self.loc.dtype)

    def _log_prob(self, z: Tensor) -> Tensor:
        df, log_scale = self._degrees(), _saturated(self.log_scale)
        v = df.double()  # the difference of two log-gammas of 1e6 leaves nothing of float32
        norm = torch.lgamma(0.5 * (v + 1)) - torch.lgamma(0.5 * v) - 0.5 * torch.log(math.pi * v)
        t = ((z - _wide(self.loc)) * torch.exp(-log_scale)).abs() * torch.rsqrt(df)
        far = t > 1e9  # where log(1 + t^2) is 2 log t, and t^2 may not be a number
        log1p = torch.where(far, 2 * torch.where(far, t, 1.0).log(), torch.log1p(torch.where(far, 0.0, t).square()))
        return self._sum(norm.to(df.dtype) - log_scale - 0.5 * (df + 1) * log1p)


class GaussianMixture(Base):
    r"""A mixture of normals with independent dimensions: weights, means and scales are learned.

    log p(z) = logsumexp_k(log softmax(logits)_k + log N(z; loc_k, exp(log_scale_k))), log_scale saturating at
    :math:`\pm 40`. Samples carry no gradient in the parameters; the likelihood does.

    Args:
        dim: number of dimensions, or the shape of one event.
        n_components: number of normals.
        spread: deviation of the normal that the means are drawn from.
        generator: draws them; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is no positive integer.

    Example:
        >>> base = GaussianMixture(2, 8)
        >>> base.log_prob(base.sample(5)).shape
        torch.Size([5])
    """

    has_rsample = False

    def __init__(
        self,
        dim: int | Sequence[int],
        n_components: int,
        *,
        spread: float = 1.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim)
        self.n_components = integer("n_components", n_components)
        self.spread = number("spread", spread, 0, 1e9)
        self.logits = nn.Parameter(torch.zeros(n_components, device=device, dtype=dtype))
        self.loc = nn.Parameter(torch.empty(n_components, *self.shape, device=device, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(n_components, *self.shape, device=device, dtype=dtype))
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the initial means again; equal weights and scales of 1."""
        nn.init.zeros_(self.logits)
        nn.init.normal_(self.loc, 0.0, self.spread, generator=generator)
        nn.init.zeros_(self.log_scale)

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"{super().extra_repr()}, n_components={self.n_components}"

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        n = math.prod(shape)
        weights = _wide(self.logits).softmax(0)
        k = torch.multinomial(weights, n, replacement=True, generator=generator) if n else weights.new_empty(0).long()
        noise = _normal((n, *self.shape), self.loc, generator)
        z = torch.addcmul(_wide(self.loc)[k], _saturated(self.log_scale)[k].exp(), noise).to(self.loc.dtype)
        return z.reshape(*shape, *self.shape)

    def _log_prob(self, z: Tensor) -> Tensor:
        log_scale = _saturated(self.log_scale)
        deviation = (z.unsqueeze(-1 - self.event_dim) - _wide(self.loc)) * torch.exp(-log_scale)
        each = self._sum(-0.5 * deviation * deviation - log_scale) + F.log_softmax(_wide(self.logits), 0)
        return torch.logsumexp(each, -1) - 0.5 * self.dim * _LOG_2PI


class Uniform(Reparametrised):
    """The uniform distribution on a box; its log-density is -inf outside.

    Args:
        dim: number of dimensions, or the shape of one event.
        low: lower corner, a number or a tensor of the shape of one event.
        high: upper corner, likewise.
        device: of the buffers.
        dtype: of the buffers and samples.

    Raises:
        ValueError: a size is no positive integer, or low is not below high everywhere.

    Example:
        >>> Uniform(2, -1.0, 1.0).log_prob(torch.zeros(5, 2))
        tensor([-1.3863, -1.3863, -1.3863, -1.3863, -1.3863])
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        dim: int | Sequence[int],
        low: float | Tensor = 0.0,
        high: float | Tensor = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim)
        with _disable_current_modes():  # also under FakeTensorMode corners have values
            corners = [_corner(name, value, self.shape) for name, value in (("low", low), ("high", high))]
            if not bool((corners[0] < corners[1]).all() and (corners[1] - corners[0]).isfinite().all()):
                raise ValueError(f"low: got {low!r} and high {high!r}, want finite corners, low below high")
            self._initial = [corner.tolist() for corner in corners]
        for name, corner in zip(("low", "high"), self._initial, strict=True):
            self.register_buffer(name, torch.tensor(corner, device=device, dtype=dtype or torch.get_default_dtype()))

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        """The box."""
        return constraints.interval(self.low, self.high)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The corners of the start again."""
        for corner, value in zip((self.low, self.high), self._initial, strict=True):
            corner.copy_(torch.tensor(value, dtype=corner.dtype, device=corner.device))

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        at = torch.rand((*shape, *self.shape), device=self.low.device, dtype=self.low.dtype, generator=generator)
        return torch.lerp(self.low, self.high, at)

    def _log_prob(self, z: Tensor) -> Tensor:
        low, high = _wide(self.low), _wide(self.high)
        outside = (z < low) | (z > high)
        inside = torch.where(z.isnan(), z, -torch.log(high - low))
        return self._sum(torch.where(outside, -torch.inf, inside))


def _corner(name: str, value: float | Tensor, shape: tuple[int, ...]) -> Tensor:
    corner = torch.as_tensor(value, device="cpu").detach().double()
    if corner.shape not in ((), shape):
        raise ValueError(f"{name}: got shape {list(corner.shape)}, want a number or {list(shape)}")
    return corner.expand(shape)
