"""A flow: a base distribution pushed through a chain of invertible transforms."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from genfast._arguments import integer, real
from genfast._module import Module
from genfast.flows._outside import one_warning
from genfast.flows.base import TorchDistribution


class Flow(Module):
    r"""The distribution of x = f_K(... f_1(z)) with z from a base distribution.

    .. math::
        \log p(x) = \log p_{base}(z) - \sum_k \log|\det \partial f_k|

    `forward` maps noise z to data x, `inverse` maps x to z; each returns `(output, log_abs_det)` of the map it just
    applied, `log_abs_det` one number a row.

    Args:
        base: the distribution of z: `StandardNormal`, any module with `sample(n)` and `log_prob(z)`, or a
            `torch.distributions.Distribution` over vectors, which is wrapped in `TorchDistribution`: its tensors become
            parameters (where they require a gradient) and buffers of the flow.
        transforms: modules with `forward` and `inverse` as above; the first one acts on z.

    Raises:
        TypeError: a transform has no `inverse`, the base is no module or has no `sample` or `log_prob`, or its tensors
            are computed from others that require a gradient.

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
        super().__init__()
        for method in ("sample", "log_prob"):
            if not callable(getattr(base, method, None)):
                raise TypeError(f"base: got {type(base).__name__} without a method {method}")
        steps = list(transforms)
        for i, step in enumerate(steps):
            if not callable(step) or not callable(getattr(step, "inverse", None)):
                raise TypeError(f"transforms[{i}]: got {type(step).__name__}, want a module with forward and inverse")
        if isinstance(base, Distribution):
            base = TorchDistribution(base)
        elif not isinstance(base, nn.Module):
            raise TypeError(f"base: got {type(base).__name__}, want a module or a torch.distributions.Distribution")
        self.base = base
        self.transforms = nn.ModuleList(steps)
        self._called: set[str] = set()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise z `[..., D]` to data: (x, log|det dx/dz|)."""
        return self._chain("z", z, self.transforms)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data x `[..., D]` to noise: (z, log|det dz/dx|)."""
        return self._chain("x", x, [t.inverse for t in reversed(self.transforms)])

    def _chain(self, name: str, x: Tensor, maps: Iterable[Any]) -> tuple[Tensor, Tensor]:
        real(name, x)
        if x.ndim == 0:
            raise ValueError(f"{name}: got a scalar, want rows [..., D]")
        context: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if not torch.compiler.is_compiling() and name not in self._called:
            self._called.add(name)
            context = one_warning()
        total: Tensor | None = None
        with context:
            for one in maps:
                x, log_det = one(x)
                total = log_det if total is None else total + log_det
        if total is None:
            total = x.new_zeros(x.shape[:-1], dtype=torch.promote_types(x.dtype, torch.float32))
        return x, total

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density log p(x) of x `[..., D]`; returns `[...]`."""
        z, log_det = self.inverse(x)
        return self._base_log_prob(z) + log_det

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw n samples `[n, D]`, without a graph.

        Args:
            n: number of samples.
            generator: source of randomness (a module base only); the default generator otherwise.
        """
        return self.forward(self._base_sample(n, generator))[0]

    def sample_and_log_prob(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n samples and their log-density in one pass: (x `[n, D]`, log p(x) `[n]`), differentiable."""
        z = self._base_sample(n, generator)
        x, log_det = self.forward(z)
        return x, self._base_log_prob(z) - log_det

    def forward_kl(self, x: Tensor) -> Tensor:
        """The maximum-likelihood loss -mean log p(x), up to a constant the KL divergence from the data to the flow."""
        return -self.log_prob(x).mean()

    def reverse_kl(
        self, target_log_prob: Callable[[Tensor], Tensor], n: int, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The mean of log q(x) - log p(x) over n samples x of the flow q: the KL divergence to p, up to log Z.

        Args:
            target_log_prob: maps `[n, D]` to the log-density of the target, which need not be normalised, `[n]`.
            n: number of samples.
            generator: source of randomness; the default generator otherwise.

        Returns:
            A scalar: -log Z at the best, where Z is the integral of the target.

        Raises:
            ValueError: the target does not return one number a row, or the base is a distribution with parameters but
                without `rsample`: the gradient of its samples is then unknown.
        """
        if isinstance(self.base, TorchDistribution) and not self.base.reparametrised:
            raise ValueError(
                "base: the gradient of the reverse KL divergence in its parameters needs samples with a gradient, and "
                "the distribution has no rsample; freeze the base (requires_grad_(False)) or take another"
            )
        x, log_q = self.sample_and_log_prob(n, generator=generator)
        log_p = target_log_prob(x)
        if log_p.shape != log_q.shape:
            raise ValueError(f"target_log_prob: returned shape {list(log_p.shape)}, want {list(log_q.shape)}")
        return (log_q - log_p).mean()

    def _base_sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        integer("n", n, at_least=0)
        if generator is None:
            z: Tensor = self.base.sample(n)  # type: ignore[operator]
        elif isinstance(self.base, TorchDistribution):
            raise ValueError("generator: torch.distributions take none; use genfast.flows.StandardNormal")
        else:
            z = self.base.sample(n, generator=generator)  # type: ignore[operator]
        return z

    def _base_log_prob(self, z: Tensor) -> Tensor:
        log_prob: Tensor = self.base.log_prob(z)  # type: ignore[operator]
        if log_prob.shape != z.shape[:-1]:
            raise ValueError(
                f"base: log_prob returned shape {list(log_prob.shape)} for z of shape {list(z.shape)}, want "
                f"{list(z.shape[:-1])} (wrap a torch distribution of scalars in Independent)"
            )
        return log_prob
