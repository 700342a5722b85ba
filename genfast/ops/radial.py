"""Radial flows: all layers in one kernel, with an inverse."""

from torch import Tensor

from genfast._differentiable import differentiable
from genfast._register import like
from genfast.ops import _checks as check
from genfast.reference import radial as reference


def _outputs(input: Tensor, center: Tensor, alpha: Tensor, beta: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    return like(input), check.sums(input)


_op = differentiable(
    "radial", _outputs, outputs=("output", "log_det"), rows=("input",),
    reference=lambda *args: (reference.radial_flow_inverse if args[-1] else reference.radial_flow)(*args[:-1]),
)  # fmt: skip


def _radial(z: Tensor, center: Tensor, alpha: Tensor, beta: Tensor, inverse: bool, name: str) -> tuple[Tensor, Tensor]:
    check.floating(name, z)
    check.same_dtype_and_device(z, name, center=center, alpha=alpha, beta=beta)
    rows, batch = check.rows(name, z)
    check.shape("center", center, (None, rows.shape[1]), "[K, D] with D = {} of " + name, rows.shape[1])
    check.shape("alpha", alpha, center.shape[:1], "[K] of center")
    check.shape("beta", beta, center.shape[:1], "[K] of center")
    out, log_det = _op(rows, center, alpha, beta, inverse)
    return check.restore(out, log_det, z, batch)


def radial_flow(z: Tensor, center: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    r"""Push rows through K radial layers, each of which contracts or expands around a point.

    Layer k is :math:`z_k = z_{k-1} + \beta_k h_k (z_{k-1} - c_k)` with :math:`h_k = 1 / (\alpha_k + r_k)` and
    :math:`r_k = |z_{k-1} - c_k|`, and :math:`\log|\det| = \sum_k (D - 1) \log|1 + \beta_k h_k| +
    \log|1 + \alpha_k \beta_k h_k^2|`. All layers run in one kernel, and the backward keeps the arguments alone.

    A layer is invertible where :math:`\alpha_k > 0` and :math:`\beta_k \ge -\alpha_k`; the parameters are taken as they
    are. With raw a and b, :math:`\alpha = \mathrm{softplus}(a)` and :math:`\beta = \mathrm{softplus}(b) - \alpha` are.

    Args:
        z: rows `[..., D]`; float32 or float64, or float16/bfloat16 (computed in float32).
        center: `[K, D]`.
        alpha: `[K]`.
        beta: `[K]`.

    Returns:
        x: `[..., D]`, the rows after layer K.
        log_det: `[...]`, log|det dx/dz| in nats; float32 for half types. Its gradient at a center, a kink, is 0.

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
        ValueError: a shape does not fit, tensors lie on different devices, or (on a GPU) a row does not fit in a
            block's shared memory: D above 51,200 in float32.

    Source:
        Rezende & Mohamed, "Variational inference with normalizing flows", ICML 2015, eq. 14.

    Example:
        >>> z, center, alpha = torch.randn(4096, 2), torch.randn(32, 2), torch.rand(32) + 0.5
        >>> x, log_det = genfast.ops.radial_flow(z, center, alpha, torch.rand(32) - alpha)
        >>> x.shape, log_det.shape
        (torch.Size([4096, 2]), torch.Size([4096]))
    """
    return _radial(z, center, alpha, beta, False, "z")


def radial_flow_inverse(x: Tensor, center: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    r"""Pull rows back through K radial layers: the inverse of `radial_flow`, differentiable in all arguments.

    Layer by layer from the last, the distance r before the layer is the root of
    :math:`r^2 + (\alpha + \beta - y) r = \alpha y` with :math:`y = |x - c|`, a closed formula.

    Args:
        x: rows `[..., D]`.
        center: `[K, D]`.
        alpha: `[K]`. Where it is not positive, or beta less than -alpha, a layer has no inverse: all rows are NaN.
        beta: `[K]`.

    Returns:
        z: `[..., D]` with `radial_flow(z, center, alpha, beta) = x`.
        log_det: `[...]`, log|det dz/dx| in nats.

    Raises:
        TypeError, ValueError: as `radial_flow`.

    Source:
        Rezende & Mohamed 2015; invertibility: its appendix A.2.

    Example:
        >>> z, log_det = genfast.ops.radial_flow_inverse(x, center, alpha, beta)
        >>> log_prob = torch.distributions.Normal(0, 1).log_prob(z).sum(-1) + log_det
    """
    return _radial(x, center, alpha, beta, True, "x")
