"""The common part of coupling layers: what is kept, what moves, and what the conditioner says."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from genfast._arguments import floating
from genfast._module import Configured, reset
from genfast._tracing import is_channels_last
from genfast.flows._index import IndexModule
from genfast.flows._transform import Transform, common_context
from genfast.flows.nets import MLP, Constant, ConvNet


class Places(NamedTuple):
    """Where the parts of a vector belong: as halves, or by indices."""

    halves: str | None
    order: Tensor
    kept: Tensor
    moved: Tensor


class Coupling(IndexModule, Configured, Transform):
    """The common part of the coupling layers: x_kept = z_kept, x_moved = g(z_moved; conditioner(z_kept)).

    A subclass gives `n_params_per_dim` and `transform(moved, params, inverse) -> (moved, log_det)`.

    The mask is saved in the state dict, and the layer follows the one it loads; a mask of other sizes, or the state of
    a layer with other options, is refused.

    | events | mask | conditioner |
    |---|---|---|
    | vectors `[..., D]` | `[D]` | `[..., n_kept]` to `[..., n_moved * n_params_per_dim]` |
    | images, by channel | `[C]` and event_dim=3 | `[..., n_kept, H, W]` to `[..., n_moved * n_params_per_dim, H, W]` |
    | images, by pixel | `[C, H, W]` | the image, zero where it moves, to `[..., C * n_params_per_dim, H, W]` |

    Where all of a vector moves, the parameters come from the context alone, or else are learned numbers.

    Args:
        mask: True where a dimension is transformed; see `half_mask`, `alternating_mask` and `checkerboard_mask`.
        conditioner: any module as above; by default an `MLP`, or a `ConvNet` for images, that starts the layer as the
            identity.
        hidden: hidden layer sizes of the default conditioner.
        context_features: width of the context `[..., context_features]` that the conditioner takes as its second
            argument; by default what the given conditioner says of itself.
        event_dim: 1 for vectors, 3 for images; by default 3 for a mask `[C, H, W]`.
        device: of the buffers and the default conditioner.
        dtype: of the default conditioner.

    Raises:
        ValueError: the mask is not a bool tensor of the shapes above, moves nothing, or all of an image, or it has no
            values (on the meta device).
    """

    source = "mask"
    n_params_per_dim = 1
    #: Whether the parameters of one dimension follow each other, `[D, n_params_per_dim]`, or lie a map of all
    #: dimensions each, `[n_params_per_dim, D]`.
    params_by_dim = True
    mask: Tensor
    kept: Tensor
    moved: Tensor
    order: Tensor

    def __init__(
        self,
        mask: Tensor | Sequence[bool],
        conditioner: nn.Module | None = None,
        *,
        hidden: Sequence[int] = (64, 64),
        context_features: int | None = None,
        event_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        given, values, self._shape = _mask_values(mask)
        self.by_pixel = len(self._shape) == 3
        if event_dim not in (None, 1, 3) or (event_dim == 1 and self.by_pixel):
            raise ValueError(f"event_dim: got {event_dim!r}, want 1 for vectors or 3 for images")
        if event_dim == 3 or self.by_pixel:
            self.event_dim = 3
        if device is None and isinstance(mask, Tensor) and mask.device.type != "cpu":
            device = mask.device
        self.n_moved = sum(values)
        self.n_kept = len(values) - self.n_moved
        if not self.n_moved or (self.event_dim == 3 and not self.n_kept):
            want = "at least one True (moved)" + (" and one False (kept)" if self.event_dim == 3 else "")
            raise ValueError(f"mask: got {given}, want {want}")
        self._register(values, torch.tensor(given, dtype=torch.bool, device=device))
        self.default_conditioner = conditioner is None
        self.conditioner = conditioner or self._default(hidden, context_features, device=device, dtype=dtype)
        self.context_features = common_context(self.conditioner, given=context_features)

    def _default(self, hidden: Sequence[int], context_features: int | None, **options: Any) -> nn.Module:
        n_in, n_out = self.n_kept, self.n_moved
        if self.by_pixel:
            n_in = n_out = self._shape[0]
        n_out *= self.n_params_per_dim
        net: MLP | ConvNet | Constant
        if self.event_dim == 3:
            net = ConvNet(n_in, hidden, n_out, context_features=context_features, **options)
        elif n_in or context_features:
            net = MLP(n_in, hidden, n_out, context_features=context_features, **options)
        else:
            net = Constant(n_out, **options)
        self._init_identity(net.last_bias)
        return net

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"n_kept={self.n_kept}, n_moved={self.n_moved}" + (", event_dim=3" if self.event_dim == 3 else "")

    def saved_options(self) -> dict[str, Any]:
        """None beside the type of the layer."""
        return {}

    def reset_parameters(self) -> None:
        """Draw the conditioner's parameters again; with the default conditioner the layer is then the identity."""
        reset(self.conditioner)
        if self.default_conditioner:
            self._init_identity(self.conditioner.last_bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map z `[..., D]`, or images `[..., C, H, W]`, to (x of the same shape, log_det `[...]`)."""
        apply = self._apply_map if self.event_dim == 1 else self._apply_to_image
        return apply("z", z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map x `[..., D]`, or images `[..., C, H, W]`, to (z of the same shape, log_det `[...]`)."""
        apply = self._apply_map if self.event_dim == 1 else self._apply_to_image
        return apply("x", x, context, inverse=True)

    def transform(self, moved: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map the moved part `[..., n]` with params `[..., n * n_params_per_dim]`; n is n_moved, times the pixels."""
        raise NotImplementedError

    def _init_identity(self, bias: Tensor) -> None:
        """Set the bias of the default conditioner's last layer so that the layer starts as the identity."""

    # -- vectors ------------------------------------------------------------------------------------------------------

    def _apply_map(self, name: str, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        floating(name, x, self.n_kept + self.n_moved)
        context = self.check_context(x, context)
        kept, moved, places = self.split(x)
        params = self.parameters_for(kept, context)
        moved, log_det = self.transform(moved, params, inverse=inverse)
        return self.join(kept, moved, places), log_det

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Places]:
        """The parts of a vector that are kept and that move, and where they belong, for `join`."""
        if self._follow():
            places = Places(self._halves, self.order, self.kept, self.moved)
        else:
            places = Places(None, *self._orders())
        if places.halves == "last":
            return x[..., : self.n_kept], x[..., self.n_kept :], places
        if places.halves == "first":
            return x[..., self.n_moved :], x[..., : self.n_moved], places
        return x.index_select(-1, places.kept), x.index_select(-1, places.moved), places

    def parameters_for(self, kept: Tensor, context: Tensor | None) -> Tensor:
        """What the conditioner says of the kept part of a vector."""
        params: Tensor = self.conditioner(kept) if context is None else self.conditioner(kept, context)
        want = (*kept.shape[:-1], self.n_moved * self.n_params_per_dim)
        if params.shape != want:
            raise ValueError(
                f"conditioner: returned shape {list(params.shape)}, want {list(want)} "
                f"({self.n_params_per_dim} a moved dimension)"
            )
        return params

    def join(self, kept: Tensor, moved: Tensor, places: Places) -> Tensor:
        """The vector of these parts."""
        if places.halves == "last":
            return torch.cat([kept, moved], -1)
        if places.halves == "first":
            return torch.cat([moved, kept], -1)
        return torch.cat([kept, moved], -1).index_select(-1, places.order)

    # -- images -------------------------------------------------------------------------------------------------------

    def _apply_to_image(self, name: str, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        floating(name, x)
        shape = self._shape if self.by_pixel else (*self._shape, "H", "W")
        if x.ndim < 3 or x.shape[-3] != shape[0] or (self.by_pixel and x.shape[-3:] != self._shape):
            raise ValueError(f"{name}: got shape {list(x.shape)}, want [..., {', '.join(map(str, shape))}]")
        context = self.check_context(x, context)
        if self._follow():
            halves, (order, kept_at, moved_at) = self._halves, (self.order, self.kept, self.moved)
        else:
            halves, (order, kept_at, moved_at) = None, self._orders()
        if self.by_pixel:
            return self._by_pixel(x, context, moved_at, inverse=inverse)
        if halves == "last":
            kept, moved = x[..., : self.n_kept, :, :], x[..., self.n_kept :, :, :]
        elif halves == "first":
            moved, kept = x[..., : self.n_moved, :, :], x[..., self.n_moved :, :, :]
        else:
            kept, moved = x.index_select(-3, kept_at), x.index_select(-3, moved_at)
        if is_channels_last(x):
            # pixels are rows, which lie where they are
            params = self._conditioned(kept, context, self.n_moved).movedim(-3, -1)
            out, log_det = self.transform(moved.movedim(-3, -1), params, inverse=inverse)
            moved, log_det = out.movedim(-1, -3), log_det.sum((-2, -1))
        else:
            params = self._image_params(kept, context, self.n_moved).flatten(-2)
            out, log_det = self.transform(moved.flatten(-3), params, inverse=inverse)
            moved = out.view(moved.shape)
        if halves == "last":
            return torch.cat([kept, moved], -3), log_det
        if halves == "first":
            return torch.cat([moved, kept], -3), log_det
        return torch.cat([kept, moved], -3).index_select(-3, order), log_det

    def _by_pixel(self, x: Tensor, context: Tensor | None, moved_at: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        params = self._image_params(x.masked_fill(self.mask, 0), context, x.shape[-3])
        params = params.index_select(-2 if self.params_by_dim else -1, moved_at).flatten(-2)
        flat = x.flatten(-3)
        moved, log_det = self.transform(flat.index_select(-1, moved_at), params, inverse=inverse)
        return flat.to(moved.dtype).index_copy(-1, moved_at, moved).view(x.shape), log_det

    def _conditioned(self, kept: Tensor, context: Tensor | None, channels: int) -> Tensor:
        """What the conditioner of images says, `[..., channels * n_params_per_dim, H, W]`."""
        params: Tensor = self.conditioner(kept) if context is None else self.conditioner(kept, context)
        n, size = self.n_params_per_dim, kept.shape[-2:]
        want = (*kept.shape[:-3], channels * n, *size)
        if params.shape != want:
            raise ValueError(
                f"conditioner: returned shape {list(params.shape)}, want {list(want)} ({n} a moved channel)"
            )
        return params

    def _image_params(self, kept: Tensor, context: Tensor | None, channels: int) -> Tensor:
        """The parameters of all pixels of a number of channels: `[..., n, P]` or, not by_dim, `[..., P, n]`."""
        params, n, size = self._conditioned(kept, context, channels), self.n_params_per_dim, kept.shape[-2:]
        if not self.params_by_dim:
            return params.reshape(*kept.shape[:-3], n, channels * size.numel())
        by_dim: Tensor = params.unflatten(-3, (channels, n)).movedim(-3, -1).flatten(-4, -2)
        return by_dim

    # -- the mask -----------------------------------------------------------------------------------------------------

    def _orders(self) -> tuple[Tensor, Tensor, Tensor]:
        """order, kept and moved in tensor operations."""
        both = torch.argsort(self.mask.flatten().to(torch.int8), stable=True)
        return torch.argsort(both), both[: self.n_kept], both[self.n_kept :]

    def _derive(self, values: list[int]) -> dict[str, list[int]]:
        kept = [i for i, moves in enumerate(values) if not moves]
        moved = [i for i, moves in enumerate(values) if moves]
        both = kept + moved
        steps = sum(a != b for a, b in zip(values[1:], values, strict=False))
        whole = steps == 0 and bool(values[0])
        self._halves = "last" if whole else None if steps != 1 else "last" if values[-1] else "first"
        return {"kept": kept, "moved": moved, "order": sorted(range(len(both)), key=both.__getitem__)}

    def _fault(self, values: list[int]) -> str:
        size, n_moved = self.n_kept + self.n_moved, sum(map(bool, values))
        if len(values) == size and n_moved == self.n_moved:
            return ""
        return f"got {n_moved} moved of {len(values)} dimensions, want {self.n_moved} of {size} for this conditioner"


def _mask_values(mask: Tensor | Sequence[bool]) -> tuple[list[Any], list[int], torch.Size]:
    """The values of the mask, nested as given and flat, and its shape."""
    with _disable_current_modes():
        if isinstance(mask, Tensor) and (type(mask) is not Tensor or mask.device.type == "meta"):
            raise ValueError(f"mask: got a {type(mask).__name__} on {mask.device} without values, want a list of bools")
        given = torch.as_tensor(mask, device="cpu")
        if given.dtype != torch.bool or given.ndim not in (1, 3):
            raise ValueError(
                f"mask: got {given.dtype} of shape {list(given.shape)}, want a bool vector [D], or bool [C, H, W]"
            )
        return given.tolist(), given.flatten().tolist(), given.shape
