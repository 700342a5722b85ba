"""CDFs of logistic and Gaussian mixtures: each direction and each gradient in one kernel."""

from typing import Any

from torch import Tensor

from genfast._differentiable import differentiable
from genfast._register import like
from genfast.ops import _checks as check
from genfast.ops import _shared_rows as shared
from genfast.reference import mixture_cdf as reference

_OUTPUTS = ("probability", "logit", "probit")  # csrc/ops/mixture_cdf/mixture_cdf.h


def _outputs(
    x: Tensor, logits: Tensor | None, means: Tensor | None, log_scales: Tensor | None, params: Tensor | None,
    inner: int, normal: bool, output: int, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return like(x), x.new_empty(x.shape, dtype=check.accumulate_dtype(x))


# y is given in the inverse, which solves for it once.
def _gradients(
    x: Tensor, logits: Tensor | None, means: Tensor | None, log_scales: Tensor | None, params: Tensor | None,
    y: Tensor | None, grad_y: Tensor, grad_log_det: Tensor, inner: int, normal: bool, output: int, inverse: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    return like(x), *(None if p is None else like(p) for p in (logits, means, log_scales, params))  # type: ignore[return-value]


def _save(args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    return (*args[:5], outputs[0] if args[-1] else None)


def _reference(
    x: Tensor, logits: Tensor | None, means: Tensor | None, log_scales: Tensor | None, params: Tensor | None,
    inner: int, normal: bool, output: int, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    parts = (logits, means, log_scales) if params is None else params.split(params.shape[-1] // 3, -1)
    logits, means, log_scales = (p[:, None, :, None] for p in parts if p is not None)
    groups, _, rows = logits.shape[:3]
    function = reference.mixture_of_gaussians_cdf if normal else reference.mixture_of_logistics_cdf
    x_in_rows = x.reshape(groups, x.shape[1] // max(rows * inner, 1), rows, inner)
    y, log_det = function(x_in_rows, logits, means, log_scales, output=_OUTPUTS[output], inverse=inverse)
    return y.reshape(x.shape), log_det.reshape(x.shape)


_op = differentiable(
    "mixture_cdf", _outputs, outputs=("y", "log_det"), reference=_reference, backward=_gradients, save=_save,
    rows=("x", "logits", "means", "log_scales", "params"),
)  # fmt: skip


def _mixture(
    x: Tensor, logits: Any, means: Any, log_scales: Any, params: Any, normal: bool, output: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    check.floating("x", x)
    if params is None:
        given = _separate(x, logits, means, log_scales)
    elif logits is None and means is None and log_scales is None:
        given = _packed(x, params)
    else:
        raise TypeError("params: got it and logits, means or log_scales too, want one or the other")
    known = _OUTPUTS if normal else _OUTPUTS[:2]
    if output not in known:
        raise ValueError(f"output: got {output!r}, want one of {', '.join(map(repr, known))}")
    if type(inverse) is not bool:
        raise TypeError(f"inverse: got {type(inverse).__name__}, want a bool")
    numbers, rows, inner = shared.flatten(x, given)
    parameters = (*rows, None) if params is None else (None, None, None, *rows)
    y, log_det = _op(numbers, *parameters, inner, normal, _OUTPUTS.index(output), inverse)
    return (y, log_det) if x.dim() == 2 and numbers is x else (y.reshape(x.shape), log_det.reshape(x.shape))


def _separate(x: Tensor, logits: Any, means: Any, log_scales: Any) -> tuple[Tensor, ...]:
    check.same_dtype_and_device(x, "x", logits=logits, means=means, log_scales=log_scales)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: got shape {list(logits.shape)}, want [..., K] with K >= 1")
    count = int(logits.shape[-1])
    shared.check_shape("logits", logits, x, count, "K")
    shared.check_shape("means", means, x, count, f"K = {count} of logits")
    shared.check_shape("log_scales", log_scales, x, count, f"K = {count} of logits")
    return logits, means, log_scales


def _packed(x: Tensor, params: Any) -> tuple[Tensor, ...]:
    check.same_dtype_and_device(x, "x", params=params)
    size = params.shape[-1] if params.dim() else 0
    if size == 0 or size % 3 != 0:
        raise ValueError(f"params: got shape {list(params.shape)}, want [..., 3 K] with K >= 1")
    shared.check_shape("params", params, x, size, f"{size}")
    return (params,)


def mixture_of_logistics_cdf(
    x: Tensor,
    logits: Tensor | None = None,
    means: Tensor | None = None,
    log_scales: Tensor | None = None,
    *,
    params: Tensor | None = None,
    output: str = "probability",
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Map each number through the CDF of a mixture of logistic distributions of its own, or through its logit.

    With :math:`\pi = \mathrm{softmax}(\text{logits})`, means :math:`\mu` and log-scales s,

    .. math:: F(x) = \sum_k \pi_k\, \sigma\bigl((x - \mu_k)\, e^{-s_k}\bigr),

    a map onto (0, 1). A flow wants `output="logit"`, :math:`y = \log F(x) - \log(1 - F(x))`, a map onto all numbers
    whose slope tends to that of the widest component: Flow++ is :math:`x \mapsto y\, e^a + b`. Never take the logit of
    the probability: in float32 it is infinite from y = 17. Here both tails are sums of their own, and y and log_det are
    accurate to rounding however far x lies, where F and its density underflow too.

    The inverse finds the root by a safeguarded Newton iteration in the kernel, between the components' own roots; it
    ends whatever the parameters are, and its derivatives are those of the root.

    Any finite arguments give finite results and gradients: scales count within :math:`e^{\pm 24}`, distances
    :math:`|x - \mu_k| e^{-s_k}` up to 1e12, logits up to 1e30. A logit of -inf means a component that is absent; of
    +inf, or -inf in all, NaN.

    Args:
        x: numbers of any shape `[...]`; float32 or float64, or float16/bfloat16 (computed in float32).
        logits: unnormalised log-weights `[..., K]`; the leading dimensions are those of x or broadcast to them. A row
            of parameters that many numbers share (`[K]`: one mixture for all, `[D, K]`: one for each feature of x
            `[N, D]`) is read where it lies, and its gradient summed as it arises.
        means: `[..., K]`.
        log_scales: logs of the components' scales `[..., K]`.
        params: in place of the three, one tensor `[..., 3 K]` of rows [logits | means | log_scales], as a network puts
            it out. It is read, and its gradient written, without taking it apart.
        output: "probability" for F(x), "logit" for log F(x) - log(1 - F(x)).
        inverse: apply the inverse map, from what `output` says to x. Probabilities outside [0, 1] give NaN; 0 and 1, to
            which F rounds in the tails, count as the numbers next to them.

    Returns:
        y: `[...]`, the mapped numbers. NaN where x or a parameter is NaN.
        log_det: `[...]`, log dy/dx in nats, of a probability the log-density; float32 for half types.

    Raises:
        TypeError: an argument is missing or is not a floating-point tensor, or dtypes differ.
        ValueError: a shape does not fit, tensors lie on different devices, or `output` is not known.

    Source:
        Ho, Chen, Srinivas, Duan & Abbeel, "Flow++: Improving flow-based generative models with variational
        dequantization and architecture design", ICML 2019, section 3.2.

    Example:
        >>> x, logits, means, log_scales = torch.randn(64, 2), *torch.randn(3, 64, 2, 8)
        >>> y, log_det = genfast.ops.mixture_of_logistics_cdf(x, logits, means, log_scales, output="logit")
        >>> x_again, _ = genfast.ops.mixture_of_logistics_cdf(
        ...     y, logits, means, log_scales, output="logit", inverse=True
        ... )
        >>> y.shape, log_det.shape
        (torch.Size([64, 2]), torch.Size([64, 2]))
    """
    return _mixture(x, logits, means, log_scales, params, False, output, inverse)


def mixture_of_gaussians_cdf(
    x: Tensor,
    logits: Tensor | None = None,
    means: Tensor | None = None,
    log_scales: Tensor | None = None,
    *,
    params: Tensor | None = None,
    output: str = "probability",
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Map each number through the CDF of a mixture of Gaussians of its own, or through its logit or probit.

    :math:`F(x) = \sum_k \pi_k\, \Phi\bigl((x - \mu_k)\, e^{-s_k}\bigr)`. A flow to a Gaussian wants `output="probit"`,
    :math:`y = \Phi^{-1}(F(x))`, which is affine for one component; "logit" is there too. Everything else is as in
    `mixture_of_logistics_cdf`.

    Args:
        x: numbers of any shape `[...]`.
        logits: unnormalised log-weights `[..., K]`, broadcast to x.
        means: `[..., K]`.
        log_scales: logs of the standard deviations `[..., K]`.
        params: in place of the three, one tensor `[..., 3 K]` of rows [logits | means | log_scales].
        output: "probability" for F(x), "logit" for log F(x) - log(1 - F(x)), "probit" for the standard normal quantile
            of F(x).
        inverse: apply the inverse map, from what `output` says to x.

    Returns:
        y: `[...]`, the mapped numbers.
        log_det: `[...]`, log dy/dx of the map just applied, in nats; float32 for half types.

    Raises:
        TypeError, ValueError: as `mixture_of_logistics_cdf`.

    Source:
        Ho et al. 2019, as `mixture_of_logistics_cdf`; with the probit, Meng, Song, Song & Ermon, "Gaussianization
        flows", AISTATS 2020.

    Example:
        >>> x, params = torch.randn(64, 2), torch.randn(2, 3 * 8)
        >>> y, log_det = genfast.ops.mixture_of_gaussians_cdf(x, params=params, output="probit")
        >>> log_prob = torch.distributions.Normal(0, 1).log_prob(y) + log_det  # of the mixture at x
    """
    return _mixture(x, logits, means, log_scales, params, True, output, inverse)
