"""A flow: a base distribution pushed through a chain of invertible transforms."""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from genfast._arguments import real
from genfast.flows._base import sample_shape
from genfast.flows._chain import Chain
from genfast.flows._distribution import FlowDistribution, distribution_type
from genfast.flows._outside import one_warning
from genfast.flows._transform import common_context, wants_context
from genfast.flows.base import TorchDistribution


class Flow(Chain):
    r"""The distribution of x = f_K(... f_1(z)) with z from a base distribution.

    .. math::
        \log p(x) = \log p_{base}(z) - \sum_k \log|\det \partial f_k|

    `forward` maps noise z to data x, `inverse` maps x to z; each returns `(output, log_abs_det)` of the map it just
    applied, `log_abs_det` one number a row. A flow is a transform itself, and may stand in the chain of another.

    *Context.* Where parts of the flow take a context (`context_features`), every call has the argument `context`
    `[..., context_features]`, and the flow is the distribution of x given the context. The shapes are those of
    `torch.distributions`: `log_prob(x, context)` broadcasts the leading dimensions of x and context against each
    other; `sample(n, context)` of a context `[B, C]` gives `[n, B, D]`, n samples for each of its rows.

    Args:
        base: the distribution of z: `StandardNormal` or another of this package, any module with `sample(n)` and
            `log_prob(z)`, or a `torch.distributions.Distribution` over vectors, which is wrapped in
            `TorchDistribution`: its tensors become parameters (where they require a gradient) and buffers of the flow.
        transforms: modules with `forward` and `inverse` as above; the first one acts on z.

    Raises:
        TypeError: a transform has no `inverse`, the base is no module or has no `sample` or `log_prob`, or its tensors
            are computed from others that require a gradient.
        ValueError: neighbours do not agree on the dimensions of an event, or parts on the width of the context.

    Source:
        Rezende & Mohamed 2015; Papamakarios et al. 2021, "Normalizing flows for probabilistic modeling and inference".

    Example:
        >>> flow = Flow(StandardNormal(2), [Planar(2, n_layers=16)])
        >>> x = flow.sample(100)
        >>> loss = -flow.log_prob(x).mean()                      # maximum likelihood, where there are samples
        >>> loss = flow.reverse_kl(lambda x: -x.abs().sum(-1), 256)  # where there is an unnormalised log-density
    """

    base: nn.Module
    transforms: nn.ModuleList

    def __init__(self, base: nn.Module | Distribution, transforms: Iterable[nn.Module]) -> None:
        for method in ("sample", "log_prob"):
            if not callable(getattr(base, method, None)):
                raise TypeError(f"base: got {type(base).__name__} without a method {method}")
        if isinstance(base, Distribution):
            base = TorchDistribution(base)
        elif not isinstance(base, nn.Module):
            raise TypeError(f"base: got {type(base).__name__}, want a module or a torch.distributions.Distribution")
        super().__init__(transforms, base=base)
        self.base = base
        self._modules["transforms"] = self._modules.pop("transforms")  # the order that saved optimisers count by
        self._called: set[str] = set()

    @property
    def context_features(self) -> int | None:  # type: ignore[override]
        """The width of the context that the parts take; None where none takes one."""
        return common_context(self.base, *self.transforms)

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """Trailing dimensions of one event of noise: those of the first transform that says so, or of the base."""
        for part in (*self.transforms, self.base):
            dim: int | None = getattr(part, "event_dim", None)
            if dim is not None:
                return dim
        return 1

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise z `[..., D]` to data: (x, log|det dx/dz|)."""
        return self._chain("z", z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data x `[..., D]` to noise: (z, log|det dz/dx|)."""
        return self._chain("x", x, context)

    def _chain(self, name: str, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        real(name, x)
        if x.ndim == 0:
            raise ValueError(f"{name}: got a scalar, want rows [..., D]")
        one: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if not torch.compiler.is_compiling() and name not in self._called:
            self._called.add(name)
            one = one_warning()
        with one:
            return self.apply_all(x, context, inverse=name == "x")

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density log p(x) of x `[..., D]`, given the context `[..., C]` where the flow takes one.

        Returns:
            `[...]`, the leading dimensions of x and context broadcast against each other.
        """
        z, log_det = self.inverse(x, context)
        return self._base_log_prob(z, context) + log_det

    @torch.no_grad()
    def sample(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw samples `[n, D]`, without a graph; `[n, B, D]` given a context `[B, C]`.

        Args:
            n: number of samples, or the leading dimensions of them, as in torch.distributions.
            context: `[..., C]`, where the flow takes one: n samples for each row of it.
            generator: source of randomness (a module base only); the default generator otherwise.
        """
        return self.forward(self._base_sample(n, context, generator), context)[0]

    def rsample(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`sample` with a graph: differentiable in the parameters and the context.

        Raises:
            ValueError: the gradient of the base's samples in its parameters is unknown.
        """
        self._want_reparametrised("samples")
        return self.forward(self._base_sample(n, context, generator), context)[0]

    def sample_and_log_prob(
        self,
        n: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw samples and their log-density in one pass: (x `[n, D]`, log p(x) `[n]`), differentiable.

        n, context and generator are those of `sample`.
        """
        z = self._base_sample(n, context, generator)
        x, log_det = self.forward(z, context)
        return x, self._base_log_prob(z, context) - log_det

    def to_distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The flow as a `torch.distributions.Distribution`, over x given the context.

        Its batch shape is `context.shape[:-1]`. It has `rsample` where the base has, `expand`, and
        `rsample_and_log_prob`, and it shares the parameters of the flow. Where Pyro is imported, it is one of Pyro's
        distributions as well, for `pyro.sample`.

        Raises:
            ValueError: the flow wants a context and gets none, or the reverse, or one of another width.

        Example:
            >>> flow = Flow(StandardNormal(2), [AffineCoupling(half_mask(2), context_features=3)])
            >>> given = flow.to_distribution(torch.randn(5, 3))
            >>> given.batch_shape, given.event_shape, given.rsample((4,)).shape
            (torch.Size([5]), torch.Size([2]), torch.Size([4, 5, 2]))
        """
        return distribution_type()(self, context)

    def data_shape(self) -> torch.Size:
        """The shape of one event of data, found by mapping no rows."""
        width = self.context_features
        with torch.no_grad():
            z = self._base_sample(0, None if width is None else self._no_context(width), None)
            x, _ = self.apply_all(z, None if width is None else self._no_context(width), inverse=False)
        return x.shape[1:]

    def _no_context(self, width: int) -> Tensor:
        like = next((t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point()), torch.empty(0))
        return like.new_zeros(width)

    @property
    def reparametrised(self) -> bool:
        """Whether samples carry the gradient of all parameters that want one."""
        said: bool = getattr(self.base, "reparametrised", True)
        return said

    def forward_kl(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The maximum-likelihood loss -mean log p(x), up to a constant the KL divergence from the data to the flow."""
        return -self.log_prob(x, context).mean()

    def reverse_kl(
        self,
        target_log_prob: Callable[[Tensor], Tensor],
        n: int | Sequence[int],
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean of log q(x) - log p(x) over n samples x of the flow q: the KL divergence to p, up to log Z.

        Args:
            target_log_prob: maps `[n, D]` to the log-density of the target, which need not be normalised, `[n]`.
            n: number of samples.
            context: see `sample`; the target then gets `[n, B, D]`.
            generator: source of randomness; the default generator otherwise.

        Returns:
            A scalar: -log Z at the best, where Z is the integral of the target.

        Raises:
            ValueError: the target does not return one number a row, or the base is a distribution with parameters but
                without `rsample`: the gradient of its samples is then unknown.
        """
        self._want_reparametrised("the reverse KL divergence")
        x, log_q = self.sample_and_log_prob(n, context, generator=generator)
        log_p = target_log_prob(x)
        if log_p.shape != log_q.shape:
            raise ValueError(f"target_log_prob: returned shape {list(log_p.shape)}, want {list(log_q.shape)}")
        return (log_q - log_p).mean()

    def _want_reparametrised(self, what: str) -> None:
        if not self.reparametrised:
            raise ValueError(
                f"base: the gradient of {what} in its parameters needs samples with a gradient, and the distribution "
                "has no rsample; freeze the base (requires_grad_(False)) or take another"
            )

    def _base_sample(self, n: int | Sequence[int], context: Tensor | None, generator: torch.Generator | None) -> Tensor:
        shape = sample_shape(n)
        options: dict[str, Any] = {}
        if generator is not None:
            if isinstance(self.base, TorchDistribution):
                raise ValueError("generator: torch.distributions take none; use genfast.flows.StandardNormal")
            options["generator"] = generator
        draw: Any = getattr(self.base, "rsample", None) or self.base.sample
        if context is not None:
            real("context", context)
            if wants_context(self.base):
                given: Tensor = draw(shape, context, **options)
                return given
            shape = (*shape, *context.shape[:-1])
        z: Tensor = draw(math.prod(shape), **options)
        return z if len(shape) == 1 else z.unflatten(0, shape) if shape else z[0]

    def _base_log_prob(self, z: Tensor, context: Tensor | None) -> Tensor:
        log_prob: Tensor
        if context is not None and wants_context(self.base):
            log_prob = self.base.log_prob(z, context)  # type: ignore[operator]
        else:
            log_prob = self.base.log_prob(z)  # type: ignore[operator]
        want = z.shape[: z.ndim - self.event_dim]
        if log_prob.shape != want:
            raise ValueError(
                f"base: log_prob returned shape {list(log_prob.shape)} for z of shape {list(z.shape)}, want "
                f"{list(want)} (wrap a torch distribution of scalars in Independent)"
            )
        return log_prob
