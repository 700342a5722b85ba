"""The standard normal, and torch distributions, as base distributions of flows."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from genfast._arguments import real
from genfast._module import Configured
from genfast._tracing import has_values
from genfast.flows._base import Reparametrised


class StandardNormal(Reparametrised):
    """The standard normal N(0, I) on `dim` dimensions: log p(z) = -|z|^2 / 2 - dim log(2 pi) / 2.

    Args:
        dim: number of dimensions, or the shape of one event: (C, H, W) for images.
        device: where samples are drawn (moved by `.to()`).
        dtype: of the samples.

    Raises:
        ValueError: dim is not a positive integer.

    Example:
        >>> StandardNormal(3).sample(5).shape
        torch.Size([5, 3])
    """

    like: Tensor

    def __init__(
        self,
        dim: int | Sequence[int],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim)
        self.register_buffer("like", torch.empty(0, device=device, dtype=dtype), persistent=False)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        size = (*shape, *self.shape)
        return torch.randn(size, device=self.like.device, dtype=self.like.dtype, generator=generator)

    def _log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * self._sum(z * z) - 0.5 * self.dim * math.log(2 * math.pi)


class TorchDistribution(Configured):
    """A `torch.distributions.Distribution` whose tensors are those of a module.

    They follow `.to()`, are saved in the state dict, and are parameters where they require a gradient, buffers
    otherwise; modules inside the distribution become submodules. `Flow` wraps a distribution in this by itself.

    Args:
        distribution: over vectors, that is with an event shape of one dimension (see `Independent`).

    Raises:
        TypeError: no distribution, or one whose tensors are computed from others that require a gradient: these the
            module could not train.

    Example:
        >>> scale = torch.nn.Parameter(torch.ones(3))
        >>> normal = torch.distributions.Normal(torch.zeros(3), scale)
        >>> base = TorchDistribution(torch.distributions.Independent(normal, 1))
        >>> [name for name, _ in base.named_parameters()], [name for name, _ in base.named_buffers()]
        (['base_dist_scale'], ['base_dist_loc'])
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        if not isinstance(distribution, Distribution):
            raise TypeError(f"distribution: got {type(distribution).__name__}, want a torch.distributions.Distribution")
        found = {path: t for path, t in _leaves(distribution) if isinstance(t, Tensor)}
        for path, part in _leaves(distribution):
            if isinstance(part, nn.Module):
                self.add_module(_name(path), part)
        self._shapes = {path: t.shape for path, t in found.items()}
        for path, t in found.items():
            name = _name(path)
            if not t.requires_grad:
                self.register_buffer(name, t.detach().clone(memory_format=torch.contiguous_format))
                continue
            leaf = t if t.is_leaf else t._base  # noqa: SLF001
            if leaf is None or not leaf.is_leaf or leaf.broadcast_to(t.shape).data_ptr() != t.data_ptr():
                raise TypeError(
                    f"base: {name} of {type(distribution).__name__} is computed from tensors that require a gradient; "
                    "give a module with sample(n) and log_prob(z) that computes it in each call"
                )
            self.register_parameter(name, leaf if isinstance(leaf, nn.Parameter) else nn.Parameter(leaf))
        registered = itertools.chain(self.named_parameters(recurse=False), self.named_buffers(recurse=False))
        self._initial = {name: t.detach().clone() for name, t in registered if has_values(t)}
        self._skeleton = _rebuilt(distribution, dict.fromkeys(found))
        self.event_dim = len(distribution.event_shape) or None  # None: Flow.log_prob says what is wrong

    @property
    def distribution(self) -> Distribution:
        """The distribution of the tensors that the module has now."""
        now = {path: getattr(self, _name(path)).expand(shape) for path, shape in self._shapes.items()}
        made: Distribution = _rebuilt(self._skeleton, now)
        return made

    @property
    def reparametrised(self) -> bool:
        """Whether samples carry the gradient of the parameters, if any parameter wants one."""
        return self._skeleton.has_rsample or not any(p.requires_grad for p in self.parameters())

    def extra_repr(self) -> str:
        """The type, for the printed module."""
        return _type_names(self._skeleton)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Give the tensors the values of the distribution that the module was made of.

        Raises:
            RuntimeError: it was made on the meta device, without values.
        """
        for name in map(_name, self._shapes):
            if name not in self._initial:
                raise RuntimeError(f"{name}: was made on the meta device, want its values from load_state_dict")
            getattr(self, name).copy_(self._initial[name])
        super().reset_parameters()

    def saved_options(self) -> dict[str, Any]:
        """The type of the distribution and its parts, and its shape."""
        return {"distribution": _type_names(self._skeleton), "event_shape": list(self._skeleton.event_shape)}

    def sample(self, n: int) -> Tensor:
        """Draw n samples, `[n, D]`; by `rsample`, with gradients in the parameters, where the distribution has it."""
        distribution = self.distribution
        draw = distribution.rsample if distribution.has_rsample else distribution.sample
        z: Tensor = draw(torch.Size((n,)))
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of z `[..., D]`; returns `[...]`, in float32 or wider."""
        real("z", z)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if z.numel() == 0:  # Independent reshapes to -1
            return (0 * z).sum(-1)
        distribution = self.distribution
        if not has_values(z):
            _trust(distribution)
        log_prob: Tensor = distribution.log_prob(z)
        return log_prob


Path = tuple[str | int, ...]


def _name(path: Path) -> str:
    return "_".join(map(str, path))


def _parts(x: Any) -> dict[Any, Any]:
    """What a distribution, a transform or a container consists of."""
    if isinstance(x, Transform):  # without what it remembers of its last call
        return {k: v for k, v in vars(x).items() if k not in ("_cached_x_y", "_inv")}
    if isinstance(x, Distribution):
        return vars(x)
    if isinstance(x, dict):
        return x
    return dict(enumerate(x)) if isinstance(x, list | tuple) else {}


def _leaves(x: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for name, part in _parts(x).items():
        if isinstance(part, Tensor | nn.Module):
            yield (*path, name), part
        else:
            yield from _leaves(part, (*path, name))


def _rebuilt(x: Any, tensors: Mapping[Path, Any], path: Path = ()) -> Any:
    """A copy with other tensors."""
    if path in tensors:
        return tensors[path]
    parts = {name: _rebuilt(part, tensors, (*path, name)) for name, part in _parts(x).items()}
    if isinstance(x, Distribution | Transform):
        copied = object.__new__(type(x))
        copied.__dict__.update(vars(x) | parts)
        if isinstance(x, Transform):
            copied.__dict__.update(_cached_x_y=(None, None), _inv=None)
        return copied
    if isinstance(x, list | tuple) and not isinstance(x, torch.Size):
        return type(x)(parts.values())
    return parts if isinstance(x, dict) else x


def _trust(x: Any) -> None:
    """Switch off the checks of a distribution and its parts, which look at the numbers."""
    if isinstance(x, Distribution):
        x._validate_args = False  # noqa: SLF001
    for part in _parts(x).values():
        _trust(part)


def _type_names(x: Any) -> str:
    """The types of a distribution and of what it is made of, as in Independent(Normal)."""
    inside = ", ".join(filter(None, (_type_names(part) for part in _parts(x).values())))
    name = type(x).__name__ if isinstance(x, Distribution | Transform) else ""
    return f"{name}({inside})" if name and inside else name or inside
