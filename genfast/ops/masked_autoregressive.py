"""Masked autoregressive transforms, and their inverse in about the time of one pass of the network."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genfast import _native
from genfast._differentiable import differentiable
from genfast._register import HALF, like
from genfast.ops import _checks as check
from genfast.ops import coupling, rq_spline
from genfast.ops._masked_plan import Plan, plan, sums_of
from genfast.reference import masked_autoregressive as reference
from genfast.reference.coupling import SCALE_MAPS
from genfast.reference.masked_autoregressive import ACTIVATIONS, KINDS, LAYOUTS, Network

_ACTIVATIONS, _MAPS = tuple(ACTIVATIONS), tuple(SCALE_MAPS)
_AFFINE = ("clamp", "offset", "min_scale", "gain", "max_log_scale")
_SPLINE = ("bound", "min_bin_width", "min_bin_height", "min_derivative", "logit_scale")


# The constants of the op: the degrees of all units and the sizes of the layers that they belong to, [parameters of an
# input, layout, residual, activation, kind, inverse, whether context adds to each hidden layer] with a kind for each
# scale map and one for the spline, and the numbers named above, which belong to the map.
def _outputs(
    z: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, degrees: list[int], sizes: list[int],
    settings: list[int], numbers: list[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return like(z), check.sums(z)


@functools.lru_cache(maxsize=256)
def _network(degrees: tuple[int, ...], sizes: tuple[int, ...], settings: tuple[int, ...]) -> Network:
    ends = list(itertools.accumulate(sizes, initial=0))
    n_params, layout, residual, *_ = settings
    return Network(
        tuple(degrees[a:b] for a, b in itertools.pairwise(ends)), n_params, LAYOUTS[layout], bool(residual),
        tuple(bool(c) for c in settings[6:]),
    )  # fmt: skip


def _forward(
    z: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, degrees: Sequence[int], sizes: Sequence[int],
    settings: Sequence[int], numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, log_det = like(z), check.sums(z)
    if z.shape[0] == 0:
        return x, log_det
    p = plan(_network(tuple(degrees), tuple(sizes), tuple(settings)), False, z.device)
    n_params, _, _, activation, kind, inverse, *_ = settings
    _native.masked_autoregressive_forward(
        z, weights, biases, context, p.vector, p.total, p.rows, p.packed, activation, kind, n_params, bool(inverse),
        *numbers, False, x, log_det, None,
    )  # fmt: skip
    return x, log_det


def _gradients(
    z: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, x: Tensor, grad_x: Tensor,
    grad_log_det: Tensor, need_weights: bool, need_biases: bool, degrees: list[int], sizes: list[int],
    settings: list[int], numbers: list[float],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    needed = need_weights or need_biases
    return (
        like(z), like(weights) if needed else None, like(biases) if needed else None,
        None if context is None else like(context),
    )  # fmt: skip


def _backward(
    z: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, x: Tensor, grad_x: Tensor,
    grad_log_det: Tensor, need_weights: bool, need_biases: bool, degrees: Sequence[int], sizes: Sequence[int],
    settings: Sequence[int], numbers: Sequence[float],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    if z.shape[0] == 0:
        return tuple(None if t is None else torch.zeros_like(t) for t in (z, weights, biases, context))
    p = plan(_network(tuple(degrees), tuple(sizes), tuple(settings)), True, z.device)
    n_params, _, _, activation, kind, inverse, *_ = settings
    grads = _empty_gradients(p, z, weights, biases, context, need_weights or need_biases)
    _native.masked_autoregressive_backward(
        z, weights, biases, context, x, grad_x, grad_log_det, None, p.vector, p.total + p.values + p.sums, p.rows,
        p.packed, activation, kind, n_params, bool(inverse), *numbers, False, p.values, p.sums, p.tiles, *grads,
    )  # fmt: skip
    return grads


def _empty_gradients(
    p: Plan, z: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, needed: bool
) -> tuple[Tensor | None, ...]:
    make = torch.zeros_like if p.idle else torch.empty_like  # for units that no output sees
    grad_context = None if context is None else make(context)
    return like(z), make(weights) if needed else None, make(biases) if needed else None, grad_context


def _reference(
    z: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, degrees: Sequence[int], sizes: Sequence[int],
    settings: Sequence[int], numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return reference.masked_autoregressive_inverse(
        *_described(z, weights, biases, context, degrees, sizes, settings, numbers)
    )


def _described(
    x: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, degrees: Sequence[int], sizes: Sequence[int],
    settings: Sequence[int], numbers: Sequence[float],
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of the reference."""
    network = _network(tuple(degrees), tuple(sizes), tuple(settings))
    _, _, _, activation, kind, inverse, *_ = settings
    affine = kind < len(_MAPS)
    options: dict[str, Any] = dict(zip(_AFFINE if affine else _SPLINE, numbers, strict=True))
    if affine:
        options["scale_map"] = _MAPS[kind]
    return x, weights, biases, context, network, _ACTIVATIONS[activation], KINDS[not affine], bool(inverse), options


_op = differentiable(
    "masked_autoregressive", _outputs, outputs=("x", "log_det"), reference=_reference, launch=_forward,
    backward=_gradients, backward_launch=_backward, rows=("z", "context"),
)  # fmt: skip


# --- the direction in which all numbers are known; of its sums the backward is made


def _pass_outputs(
    x: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, degrees: list[int], sizes: list[int],
    settings: list[int], numbers: list[float], keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    count = sums_of(_network(tuple(degrees), tuple(sizes), tuple(settings)))
    sums = x.new_empty(count, x.shape[0], dtype=check.accumulate_dtype(x)) if keep else None
    return like(x), check.sums(x), sums


def _pass(
    x: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, degrees: Sequence[int], sizes: Sequence[int],
    settings: Sequence[int], numbers: Sequence[float], keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    z, log_det, sums = _pass_outputs(x, weights, biases, context, degrees, sizes, settings, numbers, keep)  # type: ignore[arg-type]
    if x.shape[0] == 0:
        return z, log_det, sums
    p = plan(_network(tuple(degrees), tuple(sizes), tuple(settings)), True, x.device)
    n_params, _, _, activation, kind, inverse, *_ = settings
    _native.masked_autoregressive_forward(
        x, weights, biases, context, p.vector, p.total + (p.sums if keep else 0), p.rows, p.packed_pass, activation,
        kind, n_params, bool(inverse), *numbers, True, z, log_det, sums,
    )  # fmt: skip
    return z, log_det, sums


def _pass_gradients(
    x: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, z: Tensor, sums: Tensor | None, grad_z: Tensor,
    grad_log_det: Tensor, need_weights: bool, need_biases: bool, degrees: list[int], sizes: list[int],
    settings: list[int], numbers: list[float], keep: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    return _gradients(
        x,
        weights,
        biases,
        context,
        z,
        grad_z,
        grad_log_det,
        need_weights,
        need_biases,
        degrees,
        sizes,
        settings,
        numbers,
    )


def _pass_backward(
    x: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, z: Tensor, sums: Tensor | None, grad_z: Tensor,
    grad_log_det: Tensor, need_weights: bool, need_biases: bool, degrees: Sequence[int], sizes: Sequence[int],
    settings: Sequence[int], numbers: Sequence[float], keep: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    if x.shape[0] == 0:
        return tuple(None if t is None else torch.zeros_like(t) for t in (x, weights, biases, context))
    if sums is None or sums.numel() == 0:
        _, _, sums = _pass(x, weights, biases, context, degrees, sizes, settings, numbers, True)
    p = plan(_network(tuple(degrees), tuple(sizes), tuple(settings)), True, x.device)
    n_params, _, _, activation, kind, inverse, *_ = settings
    grads = _empty_gradients(p, x, weights, biases, context, need_weights or need_biases)
    _native.masked_autoregressive_backward(
        x, weights, biases, context, z, grad_z, grad_log_det, sums, p.vector, p.total + p.values + p.sums, p.rows,
        p.packed_pass, activation, kind, n_params, bool(inverse), *numbers, True, p.values, p.sums, p.tiles, *grads,
    )  # fmt: skip
    return grads


def _pass_reference(
    x: Tensor, weights: Tensor, biases: Tensor, context: Tensor | None, degrees: Sequence[int], sizes: Sequence[int],
    settings: Sequence[int], numbers: Sequence[float], keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return reference.masked_autoregressive_transform(
        *_described(x, weights, biases, context, degrees, sizes, settings, numbers)
    )


_pass_op = differentiable(
    "masked_pass", _pass_outputs, outputs=("z", "log_det", "sums"), reference=_pass_reference, launch=_pass,
    backward=_pass_gradients, backward_launch=_pass_backward, row_outputs=False,
)  # fmt: skip


def masked_autoregressive_inverse(
    z: Tensor,
    weights: Tensor | Sequence[Tensor],
    biases: Tensor | Sequence[Tensor],
    context: Tensor | Sequence[Tensor] | None = None,
    *,
    degrees: Sequence[Sequence[int]],
    activation: str = "relu",
    residual: bool = False,
    context_layers: Sequence[int] | None = None,
    kind: str = "affine",
    layout: str = "interleaved",
    map_inverse: bool = True,
    scale_map: str = "exp",
    clamp: float | None = None,
    offset: float | None = None,
    min_scale: float | None = None,
    gain: float | None = None,
    max_log_scale: float = 40.0,
    bound: float = 3.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    r"""Solve :math:`z_i = g(x_i; p_i)` for x, where a masked network (MADE) gives p_i from the numbers before x_i.

    This is how masked autoregressive flows sample (and inverse autoregressive flows score data). Other libraries run
    the network D times. Here units are computed in the order of their degrees, each once, as soon as what it sees is
    known, so that the whole costs about one pass of the network, and no masked weight is read. The backward is the
    same in reverse: one sweep for the cotangents, then one matrix product a layer. It computes the units again; besides
    its arguments and x nothing is kept, and it needs memory for two numbers a unit and row while it runs.

    **The network.** Unit k of a layer has a degree :math:`m_k`. A hidden unit sees those units of the layer before it
    with :math:`m \le m_k`, and the parameters of input i see the last hidden units with :math:`m < m_i`:

    .. math:: a^1 = W^1 x + b^1 + c^1,\quad a^{l+1} = W^{l+1} s(a^l) + b^{l+1} + c^{l+1},\quad p = W^{L+1} s(a^L) +
        b^{L+1},

    with weights outside the masks taken as zero, whatever they hold (their gradient is 0). Degrees may be any whole
    numbers; inputs may share one, and then do not depend on each other; hidden units of a degree below all inputs' see
    the context alone. With `residual`, layers after the first go in pairs (the blocks of nflows' `MADE`): the second
    of a pair adds to it the sum :math:`a` that went into the first, and the outputs read the last sum as it is.

    **The map** g of one number:

    | kind | g(x; p) | p |
    |---|---|---|
    | "affine" | x s(a) + t, with a scale map and its constants as in `affine_coupling` | 2 numbers, see `layout` |
    | "rational_quadratic" | the spline of `rational_quadratic_spline` | [widths, heights, slopes], 3 K - 1 numbers |

    | who | options |
    |---|---|
    | nflows, affine | residual=True, scale_map="softplus", min_scale=1e-3, layout="interleaved_scale_shift" |
    | nflows, spline | residual=True, kind="rational_quadratic", bound=tail_bound |
    | zuko's `MAF` | scale_map="softclip" |
    | Papamakarios et al., :math:`x_i = z_i s_i + t_i` | map_inverse=False |

    Args:
        z: rows `[..., D]`; float32 or float64, or float16/bfloat16 (computed in float32).
        weights: of all layers, each `[out, in]`, in a list; or all their numbers, layer after layer, in one tensor.
        biases: of all layers, each `[out]`, in a list; or in one tensor.
        context: what is added to the sums of hidden layers, `[..., H]` for each of `context_layers`, in a list; or side
            by side in one tensor.
        degrees: of the inputs, and of the units of each hidden layer.
        activation: "relu", "tanh", "elu", "gelu", "gelu_tanh" (its tanh approximation) or "silu".
        residual: whether hidden layers form residual blocks.
        context_layers: the hidden layers that `context` adds to, from 0; by default all.
        kind: the map; see above.
        layout: of the outputs of an affine network: "interleaved" (shift and scale of input 0, those of input 1, ...),
            "interleaved_scale_shift", "chunked_shift_scale" or "chunked_scale_shift".
        map_inverse: whether :math:`x_i = g^{-1}(z_i; p_i)`; if not, :math:`x_i = g(z_i; p_i)`.
        scale_map: of "affine".
        clamp: of "affine".
        offset: of "affine".
        min_scale: of "affine".
        gain: of "affine".
        max_log_scale: of "affine".
        bound: of "rational_quadratic".
        min_bin_width: of "rational_quadratic".
        min_bin_height: of "rational_quadratic".
        min_derivative: of "rational_quadratic".
        logit_scale: of "rational_quadratic": a factor of widths and heights.

    Returns:
        x: `[..., D]`.
        log_det: `[...]`, log|det dx/dz| in nats; float32 for half types.

    Raises:
        TypeError: an argument is not a floating-point tensor, dtypes differ, or a constant is not a number.
        ValueError: sizes do not fit the degrees, residual blocks are not of one width or their degrees decrease, a
            name is unknown, a constant is out of range, or tensors lie on different devices.

    Source:
        Papamakarios, Pavlakou & Murray, "Masked autoregressive flow for density estimation", NeurIPS 2017; Germain et
        al., "MADE", ICML 2015; Kingma et al., "Improved variational inference with inverse autoregressive flow",
        NeurIPS 2016.

    Example:
        >>> made = nflows.transforms.MaskedAffineAutoregressiveTransform(64, 128).autoregressive_net
        >>> linear = [made.initial_layer, *(l for b in made.blocks for l in b.linear_layers), made.final_layer]
        >>> x, log_det = genfast.ops.masked_autoregressive_inverse(
        ...     torch.randn(1024, 64), [l.weight for l in linear], [l.bias for l in linear], residual=True,
        ...     degrees=[range(1, 65), *(l.degrees.tolist() for l in linear[:-1])], layout="interleaved_scale_shift",
        ...     scale_map="softplus", min_scale=1e-3,
        ... )
    """
    arguments, batch = _prepare(
        "z", z, weights, biases, context, degrees=degrees, activation=activation, residual=residual,
        context_layers=context_layers, kind=kind, layout=layout, map_inverse=map_inverse, scale_map=scale_map,
        clamp=clamp, offset=offset, min_scale=min_scale, gain=gain, max_log_scale=max_log_scale, bound=bound,
        min_bin_width=min_bin_width, min_bin_height=min_bin_height, min_derivative=min_derivative,
        logit_scale=logit_scale,
    )  # fmt: skip
    x, log_det = _op(*arguments)
    return check.restore(x, log_det, z, batch)


def masked_autoregressive_transform(
    x: Tensor,
    weights: Tensor | Sequence[Tensor],
    biases: Tensor | Sequence[Tensor],
    context: Tensor | Sequence[Tensor] | None = None,
    *,
    degrees: Sequence[Sequence[int]],
    map_inverse: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    r"""Map x to :math:`z_i = g(x_i; p_i)`, where a masked network (MADE) gives p_i from the numbers before x_i.

    This is the direction in which masked autoregressive flows give densities (and inverse autoregressive flows sample),
    the inverse of `masked_autoregressive_inverse`, where network and maps are described. Network, map and log|det|
    are one kernel: the numbers of a row stay in cache from layer to layer, and only weights within the masks are
    multiplied, half of a dense network's. For the backward the sums of all units are kept.

    On a GPU a row goes through this kernel degree by degree; many rows are faster there by products of matrices with
    masked weights, as `genfast.flows.MADE` does it.

    Args:
        x: rows `[..., D]`; float32 or float64, or float16/bfloat16 (computed in float32).
        weights: as for `masked_autoregressive_inverse`.
        biases: as there.
        context: as there.
        degrees: as there.
        map_inverse: whether :math:`z_i = g^{-1}(x_i; p_i)`.
        options: the others of `masked_autoregressive_inverse`.

    Returns:
        z: `[..., D]`.
        log_det: `[...]`, log|det dz/dx| in nats; float32 for half types.

    Raises:
        TypeError: an argument is not a floating-point tensor, dtypes differ, or an option is no number or unknown.
        ValueError: as for `masked_autoregressive_inverse`.

    Source:
        Papamakarios, Pavlakou & Murray, "Masked autoregressive flow for density estimation", NeurIPS 2017.

    Example:
        >>> degrees = [[1, 2, 3], [1, 2, 1, 2]]
        >>> weights, biases = [torch.randn(4, 3), torch.randn(6, 4)], [torch.zeros(4), torch.zeros(6)]
        >>> x = torch.randn(8, 3)
        >>> z, log_det = genfast.ops.masked_autoregressive_transform(x, weights, biases, degrees=degrees)
        >>> x_again, _ = genfast.ops.masked_autoregressive_inverse(z, weights, biases, degrees=degrees)
    """
    arguments, batch = _prepare("x", x, weights, biases, context, degrees=degrees, map_inverse=map_inverse, **options)
    tensors = [t for t in arguments[:4] if t is not None]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    z, log_det, *_ = _pass_op(*arguments, keep)
    return check.restore(z, log_det, x, batch)


def _prepare(
    name: str, z: Tensor, weights: Any, biases: Any, context: Any, *, degrees: Any, activation: str = "relu",
    residual: bool = False, context_layers: Any = None, kind: str = "affine", layout: str = "interleaved",
    map_inverse: bool, scale_map: str = "exp", clamp: float | None = None, offset: float | None = None,
    min_scale: float | None = None, gain: float | None = None, max_log_scale: float = 40.0, bound: float = 3.0,
    min_bin_width: float = 1e-3, min_bin_height: float = 1e-3, min_derivative: float = 1e-3, logit_scale: float = 1.0,
) -> tuple[tuple[Any, ...], torch.Size]:  # fmt: skip
    """The checked arguments of the ops, and the leading dimensions of z, which is called `name`."""
    check.floating(name, z)
    rows, batch = check.rows(name, z)
    units = _degrees(degrees, z.shape[-1], name)
    if type(residual) is not bool:
        raise TypeError(f"residual: got {type(residual).__name__}, want a bool")
    if residual:
        _check_residual(units)
    added = _context_layers(context_layers, len(units) - 1) if context is not None else ()
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, want one of {', '.join(map(repr, _ACTIVATIONS))}")
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, want one of {', '.join(map(repr, KINDS))}")
    if layout not in LAYOUTS or (kind != "affine" and layout != "interleaved"):
        want = LAYOUTS if kind == "affine" else LAYOUTS[:1]
        raise ValueError(f"layout: got {layout!r}, want one of {', '.join(map(repr, want))} for kind {kind!r}")
    biases, n_params = _flat_biases(z, name, biases, units, kind)
    widths = [*map(len, units), n_params * z.shape[-1]]
    weights = _flat_weights(z, name, weights, widths)
    if context is not None:
        context = _flat_context(z, name, context, [widths[i + 1] for i in added], batch)
        context = context.reshape(rows.shape[0], context.shape[-1])
    numbers: tuple[float, ...]
    if kind == "affine":
        index, *rest = coupling._constants(scale_map, clamp, offset, min_scale, gain, max_log_scale)  # noqa: SLF001
        numbers = tuple(rest)
    else:
        given = {"clamp": clamp, "offset": offset, "min_scale": min_scale, "gain": gain}
        for constant, value in given.items():
            if value is not None:
                raise ValueError(f"{constant}: kind {kind!r} has no such constant")
        rq_spline.check_options(z, (n_params + 1) // 3, bound, min_bin_width, min_bin_height, min_derivative, False)
        index = len(_MAPS)
        numbers = (
            float(bound), float(min_bin_width), float(min_bin_height), float(min_derivative),
            coupling._number("logit_scale", logit_scale, 1.0, 1e-6, 1e6),  # noqa: SLF001
        )  # fmt: skip
    settings = (
        n_params, LAYOUTS.index(layout), int(residual), _ACTIVATIONS.index(activation), index, int(map_inverse),
        *(int(i in added) for i in range(len(units) - 1)),
    )  # fmt: skip
    return (rows, weights, biases, context, sum(units, ()), tuple(map(len, units)), settings, numbers), batch


def _degrees(degrees: Any, d: int, name: str) -> tuple[tuple[int, ...], ...]:
    if type(degrees) is tuple and all(type(u) is tuple for u in degrees):
        found = degrees
    else:
        units = tuple(degrees) if isinstance(degrees, Sequence) else ()
        if not units or any(isinstance(u, int) for u in units):
            raise TypeError("degrees: want a sequence of sequences of ints, of the inputs and of each hidden layer")
        found = tuple(tuple(u.tolist() if isinstance(u, Tensor) else u) for u in units)
    _check_degrees(found)
    if len(found[0]) != d:
        raise ValueError(f"degrees[0]: got {len(found[0])} numbers, want {d}, one for each column of {name}")
    return found


@functools.lru_cache(maxsize=256, typed=True)
def _check_degrees(found: tuple[tuple[int, ...], ...]) -> None:
    if not found:
        raise TypeError("degrees: want a sequence of sequences of ints, of the inputs and of each hidden layer")
    for i, layer in enumerate(found):
        for degree in layer:
            if type(degree) is not int or not -(1 << 31) < degree < 1 << 31:
                raise TypeError(f"degrees[{i}]: got {degree!r} among them, want ints")
        if not layer:
            raise ValueError(f"degrees[{i}]: got no units, want at least 1")


def _check_residual(units: tuple[tuple[int, ...], ...]) -> None:
    if len(units) % 2 == 1:
        raise ValueError(f"residual: got {len(units) - 1} hidden layers, want 1 and two for each block")
    for i in range(3, len(units), 2):
        before, after = units[i - 2], units[i]
        if len(before) != len(after):
            raise ValueError(f"degrees[{i}]: got {len(after)} units, want {len(before)}, those of the block's input")
        if any(b < a for a, b in zip(before, after, strict=True)):
            raise ValueError(f"degrees[{i}]: got less than degrees[{i - 2}] for a unit, want no decrease over a block")


def _context_layers(layers: Any, count: int) -> tuple[int, ...]:
    found = tuple(range(count)) if layers is None else tuple(layers)
    if not found or any(type(i) is not int or not 0 <= i < count for i in found) or list(found) != sorted(set(found)):
        raise ValueError(f"context_layers: got {list(found)}, want increasing numbers below {count}")
    return found


def _flat(z: Tensor, first: str, name: str, given: Any, shapes: list[list[int]]) -> Tensor:
    """One tensor of all numbers, of tensors of these shapes."""
    if len(given) != len(shapes):
        raise ValueError(f"{name}: got {len(given)} tensors, want {len(shapes)}, one a layer")
    for i, (t, shape) in enumerate(zip(given, shapes, strict=True)):
        check.same_dtype_and_device(z, first, **{f"{name}[{i}]": t})
        if list(t.shape) != shape:
            raise ValueError(f"{name}[{i}]: got shape {list(t.shape)}, want {shape}, as degrees say")
    if len({t.dtype for t in given}) > 1:  # under autocast
        given = [t.float() if t.dtype in HALF else t for t in given]
    return torch.cat([t.reshape(-1) for t in given])


def _flat_biases(
    z: Tensor, first: str, biases: Any, units: tuple[tuple[int, ...], ...], kind: str
) -> tuple[Tensor, int]:
    d, hidden = len(units[0]), [len(u) for u in units[1:]]
    listed = isinstance(biases, list | tuple)
    if listed:
        outputs = biases[-1].shape[0] if biases and isinstance(biases[-1], Tensor) and biases[-1].dim() == 1 else 0
    else:
        check.same_dtype_and_device(z, first, biases=biases)
        if biases.dim() != 1:
            raise ValueError(f"biases: got shape {list(biases.shape)}, want one dimension, or a list of tensors")
        outputs = biases.shape[0] - sum(hidden)
    n_params = 2 if kind == "affine" else outputs // d
    if outputs != n_params * d or (kind != "affine" and (n_params < 2 or n_params % 3 != 2)):
        want = f"{2 * d}, 2 for each input" if kind == "affine" else f"{d} times 3 K - 1"
        got = f"{outputs} for the outputs"
        raise ValueError(f"biases: got {got} beside {sum(hidden)} for hidden units, want {want}")
    return (_flat(z, first, "biases", biases, [[w] for w in [*hidden, outputs]]) if listed else biases), n_params


def _flat_weights(z: Tensor, first: str, weights: Any, widths: list[int]) -> Tensor:
    shapes = [[b, a] for a, b in itertools.pairwise(widths)]
    if isinstance(weights, list | tuple):
        return _flat(z, first, "weights", weights, shapes)
    check.same_dtype_and_device(z, first, weights=weights)
    want = sum(a * b for a, b in shapes)
    if list(weights.shape) != [want]:
        sizes = " + ".join(f"{a} x {b}" for a, b in shapes)
        raise ValueError(f"weights: got shape {list(weights.shape)}, want [{want}], {sizes}, or a list of tensors")
    flat: Tensor = weights
    return flat


def _flat_context(z: Tensor, first: str, context: Any, widths: list[int], batch: Sequence[int]) -> Tensor:
    lead = list(batch)
    if isinstance(context, list | tuple):
        if len(context) != len(widths):
            raise ValueError(f"context: got {len(context)} tensors, want {len(widths)}, one for each of context_layers")
        for i, (t, width) in enumerate(zip(context, widths, strict=True)):
            check.same_dtype_and_device(z, first, **{f"context[{i}]": t})
            if list(t.shape) != [*lead, width]:
                raise ValueError(f"context[{i}]: got shape {list(t.shape)}, want {[*lead, width]}")
        return torch.cat(list(context), -1)
    check.same_dtype_and_device(z, first, context=context)
    want = [*lead, sum(widths)]
    if list(context.shape) != want:
        raise ValueError(f"context: got shape {list(context.shape)}, want {want}, the units of the layers it adds to")
    flat: Tensor = context
    return flat
