"""Affine maps of channels: ActNorm, invertible 1x1 convolutions and LU layers, each in one pass."""

from typing import Any

import torch
from torch import Tensor

from genfast import _native
from genfast._arguments import number as check_number
from genfast._differentiable import differentiable
from genfast._tracing import has_values
from genfast.ops import _channel_products as products
from genfast.ops import _checks as check
from genfast.reference import channel_affine as reference

_CHANNELS_LAST = torch.channels_last


# Tensors are images [N, C, H, W], in this order of memory or with the channels last, and keep it.
def _like(x: Tensor) -> Tensor:
    if x.is_contiguous():
        return torch.empty_like(x)
    if x.is_contiguous(memory_format=_CHANNELS_LAST):
        return torch.empty_like(x, memory_format=_CHANNELS_LAST)
    return x.new_empty(x.shape)


def _outputs(
    input: Tensor, lower: Tensor | None, upper: Tensor | None, diag: Tensor | None, sign: Tensor | None,
    permutation: Tensor | None, log_scale: Tensor | None, shift: Tensor | None, bias: Tensor | None, softplus: bool,
    min_diag: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _like(input), check.sums(input)


def _whole(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.is_contiguous() else t.contiguous()


def _forward(input: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    out, log_det = _outputs(input, *args)
    if products.are_faster(input, args[0]):
        products.forward(out, log_det, input, *args)
        return out, log_det
    parameters = [_whole(t) for t in args[:8]]
    if out.is_contiguous():
        _native.channel_affine_forward(_whole(input), *parameters, *args[8:], False, out, log_det)
    else:
        there, back = input.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
        _native.channel_affine_forward(there, *parameters, *args[8:], True, back, log_det)
    return out, log_det


def _gradients(
    grad_output: Tensor, grad_log_det: Tensor, kept: Tensor, lower: Tensor | None, upper: Tensor | None,
    diag: Tensor | None, sign: Tensor | None, permutation: Tensor | None, log_scale: Tensor | None,
    shift: Tensor | None, bias: Tensor | None, softplus: bool, min_diag: float, inverse: bool,
) -> tuple[
    Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None
]:  # fmt: skip
    new = [None if t is None else t.new_empty(t.shape) for t in (lower, upper, diag, log_scale, shift, bias)]
    return (_like(kept), *new)  # type: ignore[return-value]


def _backward(grad_output: Tensor, grad_log_det: Tensor, kept: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
    grad_input, *grads = _gradients(grad_output, grad_log_det, kept, *args)
    if products.are_faster(kept, args[0]):
        products.backward((grad_input, *grads), grad_output, grad_log_det, kept, *args)
        return grad_input, *grads
    parameters = [_whole(t) for t in args[:8]]
    grad_log_det = grad_log_det.contiguous()
    if grad_input.is_contiguous():
        _native.channel_affine_backward(
            grad_output.contiguous(), grad_log_det, _whole(kept), *parameters, *args[8:], False, grad_input, *grads
        )
    else:
        last = [t.contiguous(memory_format=_CHANNELS_LAST).permute(0, 2, 3, 1) for t in (grad_output, kept, grad_input)]
        _native.channel_affine_backward(last[0], grad_log_det, last[1], *parameters, *args[8:], True, last[2], *grads)
    return grad_input, *grads


# Kept is the side of the map before scale and shift: the input of the forward, the inverse's output.
def _save(args: tuple[Any, ...], out: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (out[0] if args[-1] else args[0], *args[1:9])


def _to_arguments(
    saved: Any, constants: Any, grads: Any, found: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    x, lower, upper, diag, log_scale, shift, bias = found
    return x, lower, upper, diag, None, None, log_scale, shift, bias


def _reference(
    x: Tensor, lower: Any, upper: Any, diag: Any, sign: Any, permutation: Any, log_scale: Any, shift: Any, bias: Any,
    softplus: bool, min_diag: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if permutation is not None and permutation.device.type == "cpu" and has_values(permutation):
        order = permutation.tolist()
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"permutation: got {order}, want each of 0 to {len(order) - 1} once")
    if lower is None:
        return reference.actnorm(x, log_scale, shift, inverse=inverse)
    if softplus:
        y, log_det = reference.lu_linear(x[:, :, 0, 0], lower, upper, diag, bias, min_diag=min_diag, inverse=inverse)
        return y[:, :, None, None], log_det
    weights = (lower, upper, diag, sign, permutation)
    if log_scale is None:
        return reference.invertible_conv1x1(x, *weights, inverse=inverse)
    return reference.actnorm_conv1x1(x, log_scale, shift, *weights, inverse=inverse)


def _backward_reference(
    grad_output: Tensor, grad_log_det: Tensor, kept: Tensor, *args: Any
) -> tuple[Tensor | None, ...]:
    """The vector-Jacobian product of the reference, at the argument that `kept` is mapped to or comes from."""
    parameters, constants = args[:8], args[8:]
    inverse = constants[-1]
    x = kept
    if inverse:
        forward = (*args[:-1], False)
        x, _ = _reference(kept, *forward)
    wanted = [i for i in (0, 1, 2, 5, 6, 7) if parameters[i] is not None]

    def function(x: Tensor, *some: Tensor) -> tuple[Tensor, Tensor]:
        full = list(parameters)
        for i, t in zip(wanted, some, strict=True):
            full[i] = t
        return _reference(x, *full, *constants)

    outputs, pull_back, *_ = torch.func.vjp(function, x, *(parameters[i] for i in wanted))
    grad_x, *found = pull_back((grad_output.to(outputs[0].dtype), grad_log_det.to(outputs[1].dtype)))
    grads = dict(zip(wanted, found, strict=True))
    return grad_x, *(grads.get(i) for i in (0, 1, 2, 5, 6, 7))


_op = differentiable(
    "channel_affine", _outputs, outputs=("output", "log_det"), reference=_reference, launch=_forward,
    backward=_gradients, backward_launch=_backward, backward_reference=_backward_reference, save=_save,
    gradients=_to_arguments, rows=("input", "kept"), strided=True,
)  # fmt: skip


def _images(name: str, x: Any) -> Tensor:
    """x as images [N, C, H, W]."""
    check.floating(name, x)
    if x.dim() < 3:
        raise ValueError(f"{name}: got shape {list(x.shape)}, want images [..., C, H, W]")
    images: Tensor = x if x.dim() == 4 else x.reshape(-1 if x.numel() else _leading(x), *x.shape[-3:])
    return images


def _leading(x: Tensor) -> int:
    n = 1
    for s in x.shape[:-3]:
        n *= s
    return n


def _restored(found: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    out, log_det = found
    return (out, log_det) if x.dim() == 4 else (out.reshape(x.shape), log_det.reshape(x.shape[:-3]))


def _vectors(n: int, **vectors: Tensor) -> None:
    for name, t in vectors.items():
        check.shape(name, t, (n,), "[C] with C = {} channels of x", n)


def _check_weights(x: Tensor, lower: Tensor, upper: Tensor, log_diag: Any, sign_diag: Any, permutation: Any) -> None:
    n = x.shape[-3]
    check.same_dtype_and_device(x, "x", lower=lower, upper=upper, log_diag=log_diag, sign_diag=sign_diag)
    check.shape("lower", lower, (n, n), "[C, C] with C = {} channels of x", n)
    check.shape("upper", upper, (n, n), "[C, C] with C = {} channels of x", n)
    _vectors(n, log_diag=log_diag, sign_diag=sign_diag)
    if permutation is None:
        return
    check.tensor("permutation", permutation)
    if permutation.dtype != torch.int64:
        raise TypeError(f"permutation: got {permutation.dtype}, want torch.int64")
    if permutation.device != x.device:
        raise ValueError(f"permutation: got a tensor on {permutation.device}, want {x.device} like x")
    _vectors(n, permutation=permutation)


def actnorm(
    x: Tensor, log_scale: Tensor, bias: Tensor, *, inverse: bool = False, event_dim: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Scale and shift each channel: the activation normalisation of Glow.

    Forward :math:`y = x\, e^{s} + b` with :math:`\log|\det| = H W \sum_c s_c`, where s is `log_scale`; inverse
    :math:`x = (y - b)\, e^{-s}`. One pass forward, one backward. s saturates at :math:`\pm 80`, with gradient 0 beyond,
    so that both scales are normal numbers.

    Args:
        x: vectors `[N, C]` or images `[N, C, H, W]` (y for the inverse), channels second; float32 or float64, or
            float16/bfloat16 (computed in float32). Images may lie in memory with the channels last, as
            `torch.channels_last` has them, and the result then does too.
        log_scale: `[C]`.
        bias: `[C]`.
        inverse: apply the inverse.
        event_dim: 1 for vectors `[..., C]`, 3 for images `[..., C, H, W]`; needed where x has neither 2 nor 4
            dimensions.

    Returns:
        y: as x.
        log_det: `[N]` (the leading dimensions of x), in nats; float32 for half types.

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
        ValueError: a shape does not fit, or tensors lie on different devices.

    Source:
        Kingma & Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions", NeurIPS 2018, section 3.1; the
        signs are those of nflows.

    Example:
        >>> x, log_scale, bias = torch.randn(8, 3, 4, 4), torch.zeros(3), torch.ones(3)
        >>> y, log_det = genfast.ops.actnorm(x, log_scale, bias)
        >>> y.shape, log_det.shape
        (torch.Size([8, 3, 4, 4]), torch.Size([8]))
    """
    check.floating("x", x)
    check.same_dtype_and_device(x, "x", log_scale=log_scale, bias=bias)
    if event_dim is None:
        if x.dim() not in (2, 4):
            raise ValueError(
                f"event_dim: x of shape {list(x.shape)} is neither [N, C] nor [N, C, H, W]; want 1 for "
                "vectors or 3 for images"
            )
        event_dim = x.dim() - 1
    elif event_dim not in (1, 3):
        raise ValueError(f"event_dim: got {event_dim!r}, want 1 for vectors or 3 for images")
    if event_dim == 3:
        images = _images("x", x)
        _vectors(images.shape[1], log_scale=log_scale, bias=bias)
        return _restored(_op(images, None, None, None, None, None, log_scale, bias, None, False, 0.0, bool(inverse)), x)
    rows, batch = check.rows("x", x)
    _vectors(rows.shape[1], log_scale=log_scale, bias=bias)
    out, log_det = _op(
        rows[:, :, None, None], None, None, None, None, None, log_scale, bias, None, False, 0.0, bool(inverse)
    )
    return check.restore(out.flatten(1), log_det, x, batch)


def invertible_conv1x1(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diag: Tensor,
    sign_diag: Tensor,
    permutation: Tensor | None = None,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Multiply the channels of each pixel by :math:`W = P L U`: the invertible 1x1 convolution of Glow.

    L has ones on its diagonal and the part of `lower` below it; U has :math:`d = \pm e^{a}` on its diagonal, where a is
    `log_diag`, and the part of `upper` above it; :math:`(P v)_i = v_{p(i)}`. Forward :math:`y = W x` with
    :math:`\log|\det| = H W \sum_c \log|d_c|`. The inverse solves with L and U. Neither W nor its inverse is formed: the
    triangles take a multiply-add for each pair of channels, as W would. One pass forward, one backward; besides its
    arguments the backward keeps nothing (for the inverse: its output).

    With more than 256 channels (on a GPU 80, or 56 in float64) the products are PyTorch's own.

    Args:
        x: images `[..., C, H, W]` (y for the inverse), of any height and width; float32 or float64, or float16/bfloat16
            (computed in float32). They may lie in memory with the channels last, and the result then does too.
        lower: `[C, C]`, of which the part below the diagonal counts.
        upper: `[C, C]`, of which the part above the diagonal counts.
        log_diag: `[C]`; saturates at :math:`\pm 80`, with gradient 0 beyond.
        sign_diag: `[C]`, of which the sign counts, and which gets no gradient. Where it is 0, W is singular: log_det is
            then minus infinity, and the inverse not finite.
        permutation: int64 `[C]`, p; None: P is the identity. `torch.linalg.lu` gives P as a matrix, `P.argmax(1)` is p.
        inverse: apply the inverse.

    Returns:
        y: as x.
        log_det: `[...]`, log|det| of the map applied, in nats; float32 for half types.

    Raises:
        TypeError: an argument is not a floating-point tensor, dtypes differ, or the permutation does not hold int64.
        ValueError: a shape does not fit, tensors lie on different devices, or `permutation` is not one of
            0 ... C - 1. (On a GPU that cannot be told without waiting: the result is NaN.)

    Source:
        Kingma & Dhariwal, "Glow: Generative flow with invertible 1x1 convolutions", NeurIPS 2018, section 3.2.

    Example:
        >>> p, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(3, 3)).Q)
        >>> diag = upper.diagonal()
        >>> weights = lower, upper, diag.abs().log(), diag.sign(), p.argmax(1)
        >>> y, log_det = genfast.ops.invertible_conv1x1(torch.randn(8, 3, 4, 4), *weights)
        >>> x, _ = genfast.ops.invertible_conv1x1(y, *weights, inverse=True)
    """
    images = _images("x", x)
    _check_weights(images, lower, upper, log_diag, sign_diag, permutation)
    weights = (lower, upper, log_diag, sign_diag, permutation)
    return _restored(_op(images, *weights, None, None, None, False, 0.0, bool(inverse)), x)


def actnorm_conv1x1(
    x: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_diag: Tensor,
    sign_diag: Tensor,
    permutation: Tensor | None = None,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""`actnorm` followed by `invertible_conv1x1`, in one pass over the image: :math:`y = P L U (x\, e^{s} + b)`.

    This is how a step of Glow begins, read from data to noise. The inverse undoes both, also in one pass.

    Args:
        x: images `[..., C, H, W]` (y for the inverse).
        log_scale: `[C]`, s of `actnorm`.
        bias: `[C]`, b of `actnorm`.
        lower: as in `invertible_conv1x1`, as are the others.
        upper: `[C, C]`.
        log_diag: `[C]`.
        sign_diag: `[C]`.
        permutation: int64 `[C]`, or None.
        inverse: apply the inverse.

    Returns:
        y: as x.
        log_det: `[...]`, log|det| of the map applied, in nats; float32 for half types.

    Raises:
        TypeError, ValueError: as `actnorm` and `invertible_conv1x1`.

    Source:
        Kingma & Dhariwal 2018, figure 2.

    Example:
        >>> y, log_det = genfast.ops.actnorm_conv1x1(x, log_scale, bias, lower, upper, log_diag, sign_diag, permutation)
    """
    images = _images("x", x)
    check.same_dtype_and_device(x, "x", log_scale=log_scale, bias=bias)
    _vectors(images.shape[1], log_scale=log_scale, bias=bias)
    _check_weights(images, lower, upper, log_diag, sign_diag, permutation)
    weights = (lower, upper, log_diag, sign_diag, permutation)
    return _restored(_op(images, *weights, log_scale, bias, None, False, 0.0, bool(inverse)), x)


def lu_linear(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    raw_diag: Tensor,
    bias: Tensor,
    *,
    min_diag: float = 1e-3,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Multiply rows by :math:`L U` and shift them: the LU layer of neural spline flows.

    L has ones on its diagonal and the part of `lower` below it; U has :math:`d = \mathrm{softplus}(a) + \epsilon` on
    its diagonal, where a is `raw_diag` and :math:`\epsilon` is `min_diag`, and the part of `upper` above it. Forward
    :math:`y = L U x + b` with :math:`\log|\det| = \sum_i \log d_i`; the inverse solves with L and U. One pass forward,
    one backward.

    With D above 256 (on a GPU 80, or 56 in float64) the products are PyTorch's own.

    Args:
        x: rows `[..., D]` (y for the inverse); float32 or float64, or float16/bfloat16 (computed in float32).
        lower: `[D, D]`, of which the part below the diagonal counts.
        upper: `[D, D]`, of which the part above the diagonal counts.
        raw_diag: `[D]`.
        bias: `[D]`.
        min_diag: the least number of the diagonal, from 1e-30 to 1e6.
        inverse: apply the inverse.

    Returns:
        y: `[..., D]`.
        log_det: `[...]`, log|det| of the map applied, in nats; float32 for half types.

    Raises:
        TypeError: an argument is not a floating-point tensor, dtypes differ, or min_diag is no number.
        ValueError: a shape does not fit, tensors lie on different devices, or min_diag is out of range.

    Source:
        Oliva et al., "Transformation autoregressive networks", ICML 2018; Durkan et al., "Neural spline flows",
        NeurIPS 2019; the parametrisation is that of nflows' LULinear.

    Example:
        >>> x, lower, upper = torch.randn(64, 5), torch.randn(5, 5), torch.randn(5, 5)
        >>> y, log_det = genfast.ops.lu_linear(x, lower, upper, torch.zeros(5), torch.zeros(5))
        >>> y.shape, log_det.shape
        (torch.Size([64, 5]), torch.Size([64]))
    """
    check.floating("x", x)
    rows, batch = check.rows("x", x)
    n = rows.shape[1]
    check.same_dtype_and_device(x, "x", lower=lower, upper=upper, raw_diag=raw_diag, bias=bias)
    check.shape("lower", lower, (n, n), "[D, D] with D = {} of x", n)
    check.shape("upper", upper, (n, n), "[D, D] with D = {} of x", n)
    check.shape("raw_diag", raw_diag, (n,), "[D] with D = {} of x", n)
    check.shape("bias", bias, (n,), "[D] with D = {} of x", n)
    least = check_number("min_diag", min_diag, 1e-30, 1e6)
    out, log_det = _op(
        rows[:, :, None, None], lower, upper, raw_diag, None, None, None, None, bias, True, least, bool(inverse)
    )
    return check.restore(out.flatten(1), log_det, x, batch)
