"""Sylvester flows: all layers in one kernel, with an inverse."""

from torch import Tensor

from genfast._differentiable import differentiable
from genfast._register import like
from genfast.ops import _checks as check
from genfast.reference import sylvester as reference


def _outputs(input: Tensor, q: Tensor, r1: Tensor, r2: Tensor, b: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    return like(input), check.sums(input)


_op = differentiable(
    "sylvester", _outputs, outputs=("output", "log_det"), rows=("input",),
    reference=lambda *args: (reference.sylvester_flow_inverse if args[-1] else reference.sylvester_flow)(*args[:-1]),
)  # fmt: skip


def _sylvester(
    z: Tensor, q: Tensor, r1: Tensor, r2: Tensor, b: Tensor, inverse: bool, name: str
) -> tuple[Tensor, Tensor]:
    check.floating(name, z)
    check.same_dtype_and_device(z, name, q=q, r1=r1, r2=r2, b=b)
    rows, batch = check.rows(name, z)
    dim = rows.shape[1]
    check.shape("q", q, (None, dim, None), "[K, D, M] with D = {} of " + name, dim)
    layers, _, units = q.shape
    if units > dim:
        raise ValueError(f"q: got shape {list(q.shape)}, want [K, D, M] with M <= D orthonormal columns")
    check.shape("r1", r1, (layers, units, units), "[K, M, M] of q")
    check.shape("r2", r2, (layers, units, units), "[K, M, M] of q")
    check.shape("b", b, (layers, units), "[K, M] of q")
    out, log_det = _op(rows, q, r1, r2, b, inverse)
    return check.restore(out, log_det, z, batch)


def sylvester_flow(z: Tensor, q: Tensor, r1: Tensor, r2: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Push rows through K Sylvester layers, each of which is a planar layer of M units.

    Layer k is :math:`z_k = z_{k-1} + Q_k R^1_k \tanh(a_k)` with :math:`a_k = R^2_k Q_k^T z_{k-1} + b_k`, and
    :math:`\log|\det| = \sum_k \sum_i \log|1 + (1 - \tanh^2 a_{ki})\, r^1_{kii} r^2_{kii}|`. All layers run in one
    kernel, at 2 D M multiply-adds a row and layer, and the backward keeps the arguments alone.

    The columns of Q are taken to be orthonormal; where they are not, log|det| is that of other columns. Entries of R1
    and R2 below the diagonal are not read. A layer is invertible where :math:`r^1_{ii} r^2_{ii} \ge -1` for every i.

    Args:
        z: rows `[..., D]`; float32 or float64, or float16/bfloat16 (computed in float32).
        q: `[K, D, M]` with M <= D orthonormal columns.
        r1: `[K, M, M]`, upper triangular.
        r2: `[K, M, M]`, upper triangular.
        b: `[K, M]`.

    Returns:
        x: `[..., D]`, the rows after layer K.
        log_det: `[...]`, log|det dx/dz| in nats; float32 for half types.

    Raises:
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
        ValueError: a shape does not fit, tensors lie on different devices, or (on a GPU) a tile of rows does not fit in
            a block's shared memory: D + 2M above 1,547 in float32.

    Source:
        van den Berg, Hasenclever, Tomczak & Welling, "Sylvester normalizing flows for variational inference", UAI 2018.

    Example:
        >>> z, q = torch.randn(4096, 32), torch.linalg.qr(torch.randn(16, 32, 8)).Q
        >>> r1, r2 = torch.rand(16, 8, 8).triu(), torch.rand(16, 8, 8).triu()
        >>> x, log_det = genfast.ops.sylvester_flow(z, q, r1, r2, torch.zeros(16, 8))
        >>> x.shape, log_det.shape
        (torch.Size([4096, 32]), torch.Size([4096]))
    """
    return _sylvester(z, q, r1, r2, b, False, "z")


def sylvester_flow_inverse(x: Tensor, q: Tensor, r1: Tensor, r2: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Pull rows back through K Sylvester layers: the inverse of `sylvester_flow`, differentiable in all arguments.

    Layer by layer from the last, :math:`a + R^2 R^1 \tanh(a) = R^2 Q^T x + b` is solved from its last unit to the
    first, each a scalar monotone equation, by a safeguarded Newton iteration; then :math:`z = x - Q R^1 \tanh(a)`.
    Gradients come from the implicit function theorem, so they do not depend on the number of iterations.

    Args:
        x: rows `[..., D]`.
        q: `[K, D, M]` with orthonormal columns.
        r1: `[K, M, M]`, upper triangular. Where :math:`r^1_{ii} r^2_{ii} < -1`, a layer has no inverse: all rows are
            NaN.
        r2: `[K, M, M]`, upper triangular.
        b: `[K, M]`.

    Returns:
        z: `[..., D]` with `sylvester_flow(z, q, r1, r2, b) = x`.
        log_det: `[...]`, log|det dz/dx| in nats.

    Raises:
        TypeError, ValueError: as `sylvester_flow`.

    Source:
        The flow: van den Berg et al. 2018; invertibility: its theorem 2.

    Example:
        >>> z, log_det = genfast.ops.sylvester_flow_inverse(x, q, r1, r2, b)
        >>> log_prob = torch.distributions.Normal(0, 1).log_prob(z).sum(-1) + log_det
    """
    return _sylvester(x, q, r1, r2, b, True, "x")
