"""Planar flows: all layers in one kernel, with an inverse."""

from typing import Any

import torch
from torch import Tensor

from genfast import _native
from genfast._differentiable import differentiable
from genfast._register import like
from genfast.ops import _checks as check
from genfast.reference import planar as reference

# Up to this width a layer is so cheap that its backward computes a = w.z + b anew; then nothing but the input is kept.
_RECOMPUTE_WIDTH = 8


def _outputs(
    input: Tensor, w: Tensor, u: Tensor, b: Tensor, inverse: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    a = input.new_empty(w.shape[0], input.shape[0], dtype=check.accumulate_dtype(input)) if save else None
    return like(input), check.sums(input), a


def _forward(input: Tensor, w: Tensor, u: Tensor, b: Tensor, inverse: bool, save: bool) -> tuple[Tensor | None, ...]:
    output, log_det, a = _outputs(input, w, u, b, inverse, save)
    _native.planar_forward(input, w, u, b, inverse, output, log_det, a)
    return output, log_det, a


def _gradients(
    input: Tensor, output: Tensor | None, a: Tensor | None, w: Tensor, u: Tensor, b: Tensor, grad_output: Tensor,
    grad_log_det: Tensor, inverse: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return like(input), like(w), like(u), like(b)


def _backward(
    input: Tensor, output: Tensor | None, a: Tensor | None, w: Tensor, u: Tensor, b: Tensor, grad_output: Tensor,
    grad_log_det: Tensor, inverse: bool, save: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    if inverse and a is None:
        output, _, a = _forward(input, w, u, b, inverse, True)
    grads = _gradients(input, output, a, w, u, b, grad_output, grad_log_det, inverse, save)
    _native.planar_backward(input, output, a, w, u, b, grad_output, grad_log_det, inverse, *grads)
    return grads


def _save(args: tuple[Any, ...], out: tuple[Tensor, ...]) -> tuple[Any, ...]:
    input, w, u, b, _, save = args
    return (input, *((out[0], out[2]) if save else (None, None)), w, u, b)


def _reference(input: Tensor, w: Tensor, u: Tensor, b: Tensor, inverse: bool, save: bool) -> tuple[Tensor, Tensor]:
    return (reference.planar_flow_inverse if inverse else reference.planar_flow)(input, w, u, b)


_op = differentiable(
    "planar", _outputs, outputs=("output", "log_det", "a"), reference=_reference, launch=_forward, backward=_gradients,
    backward_launch=_backward, save=_save, row_outputs=False,
)  # fmt: skip


def _planar(z: Tensor, w: Tensor, u: Tensor, b: Tensor, inverse: bool, name: str) -> tuple[Tensor, Tensor]:
    check.floating(name, z)
    check.same_dtype_and_device(z, name, w=w, u=u, b=b)
    rows, batch = check.rows(name, z)
    check.shape("w", w, (None, rows.shape[1]), "[K, D] with D = {} of " + name, rows.shape[1])
    check.shape("u", u, w.shape, "that of w")
    check.shape("b", b, w.shape[:1], "[K] of w")
    keep = (inverse or rows.shape[1] > _RECOMPUTE_WIDTH) and torch.is_grad_enabled()
    save = keep and (z.requires_grad or w.requires_grad or u.requires_grad or b.requires_grad)
    out, log_det, *_ = _op(rows, w, u, b, inverse, save)
    return check.restore(out, log_det, z, batch)


def planar_flow(z: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Push rows through K planar layers.

    Layer k is :math:`z_k = z_{k-1} + u_k \tanh(a_k)` with :math:`a_k = w_k \cdot z_{k-1} + b_k`, and
    :math:`\log|\det| = \sum_k \log|1 + (1 - \tanh^2 a_k)\, w_k \cdot u_k|`. All layers run in one kernel. The
    backward rebuilds every z from one number a layer and row; up to D = 8 it computes that one anew too, and nothing
    but the input is kept.

    A layer is invertible where :math:`w_k \cdot u_k \ge -1`; `planar_constrain_u` brings any u there.

    Args:
        z: rows `[..., D]`; float32 or float64, or float16/bfloat16 (computed in float32).
        w: `[K, D]`.
        u: `[K, D]`.
        b: `[K]`.

    Returns:
        x: `[..., D]`, the rows after layer K.
        log_det: `[...]`, log|det dx/dz| in nats; float32 for half types.

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
        ValueError: a shape does not fit, tensors lie on different devices, or (on a GPU) a row and its gradient do not
            fit in a block's shared memory: D above 25,600 in float32.

    Source:
        Rezende & Mohamed, "Variational inference with normalizing flows", ICML 2015, eq. 10-13.

    Example:
        >>> z, w, u, b = torch.randn(4096, 2), torch.randn(32, 2), torch.randn(32, 2), torch.zeros(32)
        >>> x, log_det = genfast.ops.planar_flow(z, w, genfast.ops.planar_constrain_u(w, u), b)
        >>> x.shape, log_det.shape
        (torch.Size([4096, 2]), torch.Size([4096]))
    """
    return _planar(z, w, u, b, False, "z")


def planar_flow_inverse(x: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Pull rows back through K planar layers: the inverse of `planar_flow`, differentiable in all arguments.

    Layer by layer from the last, the scalar monotone equation :math:`a + (w \cdot u) \tanh a = w \cdot x + b` is solved
    by a safeguarded Newton iteration; then :math:`z = x - u \tanh a`. Gradients come from the implicit function
    theorem, so they do not depend on the number of iterations.

    Args:
        x: rows `[..., D]`.
        w: `[K, D]`.
        u: `[K, D]`, with :math:`w_k \cdot u_k \ge -1` for every k (see `planar_constrain_u`). Otherwise the layer has
            no inverse, and the results are NaN.
        b: `[K]`.

    Returns:
        z: `[..., D]` with `planar_flow(z, w, u, b) = x`.
        log_det: `[...]`, log|det dz/dx| in nats.

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
        ValueError: a shape does not fit, tensors lie on different devices, or (on a GPU) a row and its gradient do not
            fit in a block's shared memory: D above 25,600 in float32.

    Source:
        The flow: Rezende & Mohamed 2015; invertibility: its appendix A.1.

    Example:
        >>> z, log_det = genfast.ops.planar_flow_inverse(x, w, u, b)
        >>> log_prob = torch.distributions.Normal(0, 1).log_prob(z).sum(-1) + log_det
    """
    return _planar(x, w, u, b, True, "x")


def planar_constrain_u(w: Tensor, u: Tensor) -> Tensor:
    r"""Move each u along its w so that the planar layer is invertible.

    :math:`\hat u = u + (m(w \cdot u) - w \cdot u)\, w / |w|^2` with :math:`m(t) = \mathrm{softplus}(t) - 1`, so that
    :math:`w \cdot \hat u = m(w \cdot u) > -1`. This holds for :math:`\hat u` as it is stored, for finite arguments of
    any size: where m is within the rounding of :math:`\hat u` of -1, it is moved above. Where w = 0 (or below the
    smallest normal number) every u is invertible, and u is returned.

    Args:
        w: `[..., D]`.
        u: `[..., D]`.

    Returns:
        u_hat: `[..., D]`.

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
        ValueError: the shapes differ.

    Source:
        Rezende & Mohamed 2015, appendix A.1.

    Example:
        >>> u = genfast.ops.planar_constrain_u(w, u)
        >>> bool(((w * u).sum(-1) >= -1).all())
        True
    """
    check.floating("w", w)
    check.same_dtype_and_device(w, "w", u=u)
    check.shape("u", u, tuple(w.shape), "that of w")
    return reference.planar_constrain_u(w, u)
