"""The coupling layer of Flow++: the CDF of a mixture, then scale and shift."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import integer
from genfast.flows._coupling import Coupling

_SPREAD = 0.4  # of the components' means at the start, in units of the quantiles they stand at

_KINDS = {
    "logistic": (ops.mixture_of_logistics_cdf, "logit"),
    "gaussian": (ops.mixture_of_gaussians_cdf, "probit"),
}


class LogisticMixtureCoupling(Coupling):
    r"""z_moved = s(a) logit F(x_moved) + b with F the CDF of a mixture of logistics, all parameters from the kept part.

    Noise is what data x are mapped to by formula, so densities are the cheap direction; `forward`, which samples, finds
    x by a safeguarded Newton iteration in the kernel. Both tails are exact: no data lie too far out. With "gaussian"
    components, :math:`\Phi^{-1}(F)` takes the place of the logit.

    The conditioner's output is, for each moved dimension, [b | a | n_components logits | n_components means |
    n_components log-scales]. The layer starts near the identity, its slope within 8% of 1 on [-5, 5], and its
    components apart, so that they learn different things.

    Args:
        mask: bool `[D]`, True where a dimension is transformed; of images see `Coupling`.
        conditioner: module `[..., n_kept]` to `[..., n_moved * (3 n_components + 2)]`; by default an MLP.
        n_components: number of components of a mixture.
        mixture: "logistic" or "gaussian".
        scale_map: of a to the scale s(a) > 0, see `genfast.ops.affine_coupling`; "tanh" keeps |log s| below 2.
        scale_options: constants of the scale map, as `genfast.ops.affine_coupling` takes them.
        hidden: hidden layer sizes of the default conditioner.
        context_features: width of the context `[..., context_features]` that the conditioner takes as its second
            argument; by default what the given conditioner says of itself.
        event_dim: 1 for vectors, 3 for images.
        device: of the buffers and the default conditioner.
        dtype: of the default conditioner.

    Raises:
        ValueError: a bad mask, n_components < 1, an unknown mixture or (on the first call) scale map, or a conditioner
            of another width.

    Source:
        Ho et al. 2019, "Flow++: Improving flow-based generative models with variational dequantization and architecture
        design", section 3.2.

    Example:
        >>> layer = LogisticMixtureCoupling(half_mask(2), n_components=8)
        >>> z, log_det = layer.inverse(torch.randn(5, 2))
        >>> x, _ = layer.forward(z)
    """

    def __init__(
        self,
        mask: Tensor | Sequence[bool],
        conditioner: nn.Module | None = None,
        *,
        n_components: int = 8,
        mixture: str = "logistic",
        scale_map: str = "tanh",
        scale_options: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (64, 64),
        context_features: int | None = None,
        event_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.n_components = integer("n_components", n_components)
        self.n_params_per_dim = 3 * self.n_components + 2
        if mixture not in _KINDS:
            raise ValueError(f"mixture: got {mixture!r}, want one of {', '.join(map(repr, _KINDS))}")
        self.mixture = mixture
        self.scale_map = scale_map
        self.scale_options: dict[str, Any] = dict(scale_options or {})
        super().__init__(
            mask,
            conditioner,
            hidden=hidden,
            context_features=context_features,
            event_dim=event_dim,
            device=device,
            dtype=dtype,
        )

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        options = "".join(f", {name}={value}" for name, value in self.scale_options.items())
        return (
            f"{super().extra_repr()}, n_components={self.n_components}, mixture={self.mixture!r}, "
            f"scale_map={self.scale_map!r}{options}"
        )

    def saved_options(self) -> dict[str, Any]:
        """The mixture, the scale map and its constants."""
        names = ("n_components", "mixture", "scale_map", "scale_options")
        return {name: getattr(self, name) for name in names}

    def transform(self, moved: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map the moved part with the parameters of the kept part."""
        cdf, output = _KINDS[self.mixture]
        params = params.unflatten(-1, (moved.shape[-1], self.n_params_per_dim))
        affine, mixture = params.split([2, 3 * self.n_components], -1)

        def scale(t: Tensor) -> tuple[Tensor, Tensor]:
            shift, raw = (p.to(t.dtype) for p in affine.unbind(-1))
            return ops.affine_coupling(
                t, shift, raw, scale_map=self.scale_map, inverse=not inverse, **self.scale_options
            )

        if inverse:
            out, log_det = cdf(moved, params=mixture, output=output)
            out, log_scale = scale(out)
        else:
            out, log_scale = scale(moved)
            out, log_det = cdf(out, params=mixture.to(out.dtype), output=output, inverse=True)
        return out, log_det.sum(-1) + log_scale

    def _init_identity(self, bias: Tensor) -> None:
        """Means at quantiles of the middle of the distribution, and scales that make up its variance."""
        k = self.n_components
        places = [(i + 0.5) / k for i in range(k)]
        if self.mixture == "logistic":
            means, variance = [_SPREAD * math.log(p / (1 - p)) for p in places], math.pi**2 / 3
        else:
            means, variance = [_SPREAD * NormalDist().inv_cdf(p) for p in places], 1.0
        with torch.no_grad():
            rows = bias.view(-1, self.n_params_per_dim)
            rows[:, 2 + k : 2 + 2 * k] = torch.tensor(means, dtype=bias.dtype, device=bias.device)
            rows[:, 2 + 2 * k :] = 0.5 * math.log1p(-sum(m * m for m in means) / k / variance)
