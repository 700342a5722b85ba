"""The one place that talks to torch.library: how a kernel becomes an op of PyTorch.

An op made here works in eager mode, under `torch.compile` (one graph node), under `torch.vmap` and under autocast.
Gradients are not its business: the public function wraps it in an `autograd.Function` (see docs/adding_an_op.md).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

_library = torch.library.Library("genfast", "DEF")

Outputs = Tensor | tuple[Tensor, ...]


def define(
    name: str,
    schema: str,
    impl: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    rows: Sequence[str] = (),
    row_outputs: Sequence[bool] = (),
    autocast: bool = True,
    strided: bool = False,
) -> Any:
    """Define `torch.ops.genfast.<name>` and return it.

    Args:
        name: the op's name, e.g. "planar_forward".
        schema: arguments and results, e.g. "(Tensor z, Tensor w) -> (Tensor, Tensor)".
        impl: allocates the outputs and calls the kernel; serves the CPU and CUDA. Gets contiguous tensors, unless
            `strided`.
        fake: the same outputs without data, for tracing.
        rows: the tensor arguments whose first dimension is the row. If under vmap only these are batched, the batch
            is folded into the rows, and the op runs once; otherwise it runs once a batch entry.
        row_outputs: for each result, whether its first dimension is the row; folding needs all of them True.
        strided: `impl` reads slices, broadcasts and other strided tensors where they lie.
        autocast: under autocast, low-precision arguments are raised to float32.
    """
    qualified = f"genfast::{name}"
    _library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))

    def kernel(*args: Any) -> Any:
        # inductor may hand over other strides than it was promised
        return impl(*(a.contiguous() if isinstance(a, Tensor) else a for a in args))

    for key in ("CPU", "CUDA"):
        _library.impl(name, impl if strided else kernel, key)
    torch.library.register_fake(qualified, fake, lib=_library)
    op = getattr(torch.ops.genfast, name).default

    names = [a.name for a in op._schema.arguments]
    fold = bool(row_outputs) and all(row_outputs)

    def batched(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        if fold and all(d is None or n in rows for n, d in zip(names, in_dims, strict=True)):
            folded = [
                a if n not in rows or a is None else _fold(a, d, size)
                for a, n, d in zip(args, names, in_dims, strict=True)
            ]
            out = op(*folded)
            return _map(out, lambda t: t.unflatten(0, (size, -1)) if t.shape[0] else t.new_empty(size, 0, *t.shape[1:]))
        entries = [
            op(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))) for i in range(size)
        ]
        if isinstance(entries[0], Tensor):
            return torch.stack(entries), 0
        return tuple(torch.stack(t) for t in zip(*entries, strict=True)), tuple(0 for _ in entries[0])

    torch.library.register_vmap(qualified, batched, lib=_library)

    if autocast:
        for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _library.impl(name, _autocast_rule(op, device, key), key)
    return op


def _fold(a: Tensor, dim: int | None, size: int) -> Tensor:
    a = a.expand(size, *a.shape) if dim is None else a.movedim(dim, 0)
    return a.reshape(size * a.shape[1], *a.shape[2:])


def _map(out: Outputs, f: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
    if isinstance(out, Tensor):
        return f(out), 0
    return tuple(f(t) for t in out), tuple(0 for _ in out)


def _autocast_rule(op: Any, device: str, key: str) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    low = (torch.float16, torch.bfloat16)

    def rule(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(
                *(
                    a.float() if isinstance(a, Tensor) and a.dtype in low and a.device.type == device else a
                    for a in args
                )
            )

    return rule


_Function = TypeVar("_Function", bound=type[torch.autograd.Function])


def keep_signature(function: _Function) -> _Function:
    """Class decorator: keep the signature of `forward`, which `apply` otherwise works out at every call (13 us)."""
    forward: Any = function.forward
    forward.__signature__ = inspect.signature(forward)
    return function


def wants_double_backward(*tensors: Tensor | None) -> bool:
    """Whether a backward must itself be differentiable in one of these tensors.

    Grad mode alone does not tell: `torch.func.jacrev` leaves it on after the level of its inputs has ended. A view of
    such an input no longer requires a gradient, and the kernel serves.
    """
    return torch.is_grad_enabled() and any(t is not None and t.view_as(t).requires_grad for t in tensors)


def reference_vjp(
    function: Callable[..., Any], inputs: Sequence[Any], grad_outputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The vector-Jacobian product of a reference function, itself differentiable: double backward of a kernel.

    Args:
        function: of `inputs`, returns a tensor or a tuple of tensors in the order of `grad_outputs`.
        inputs: the saved arguments; those that are tensors requiring a gradient get one.
        grad_outputs: one cotangent for each output; None counts as zero.

    Returns:
        One gradient or None for each input.
    """
    # A new view of each input ends the paths, so that an input computed from another one does not count twice.
    with torch.enable_grad():
        views = [x.view_as(x) if isinstance(x, Tensor) and x.requires_grad else x for x in inputs]
        outputs = function(*views)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if g is not None and o.requires_grad]
        wanted = [i for i, x in enumerate(views) if isinstance(x, Tensor) and x.requires_grad]
        grads: list[Tensor | None] = [None] * len(views)
        if pairs and wanted:
            found = torch.autograd.grad(
                [o for o, _ in pairs],
                [views[i] for i in wanted],
                [g.to(o.dtype) for o, g in pairs],
                create_graph=True,
                allow_unused=True,
            )
            for i, g in zip(wanted, found, strict=True):
                grads[i] = g
    return tuple(grads)
