"""How a kernel becomes an op of PyTorch: the one place, with `_differentiable`, that talks to torch.library.

`define` makes an op without gradients, `genfast._differentiable.differentiable` one with all of them. Either way the op
has a fake for tracing and meta tensors, a batching rule and an autocast rule, and an ordinary call, which no transform,
mode or tracing looks at, goes straight to the kernel. See docs/adding_an_op.md.
"""

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from genfast import _native

library = torch.library.Library("genfast", "DEF")
HALF = (torch.float16, torch.bfloat16)

_C = torch._C
_TYPES = {
    Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", float: "float", bool: "bool", list[int]: "int[]",
    list[float]: "float[]",
}  # fmt: skip


def define(
    name: str,
    allocate: Callable[..., Any],
    *,
    launch: Callable[..., Any] | None = None,
    autocast: bool = True,
) -> Any:
    """Define `torch.ops.genfast.<name>`, an op without gradients, and return a function that calls it.

    The function's attribute `op` is the op itself; an ordinary call goes straight to the kernel. Under vmap the op runs
    once a batch entry.

    Args:
        name: the op's name, and the kernel's in the extension.
        allocate: the arguments, annotated, to new outputs, whose values are not set. Also traces the op.
        launch: the arguments to outputs with values; by default `allocate`, then the kernel `name` with arguments and
            outputs. Gets contiguous tensors.
        autocast: under autocast, low-precision arguments are raised to float32.
    """
    launch = launch or launcher(name, allocate)
    op = add(name, allocate, launch, autocast=autocast)
    rule = batching_rule(op)

    def batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        out = rule(info.batch_size, in_dims, *args)
        return out, 0 if isinstance(out, Tensor) else (0,) * len(out)

    torch.library.register_vmap(f"genfast::{name}", batched, lib=library)
    kernel = contiguous(launch)

    def call(*args: Any) -> Any:
        first: Tensor = args[0]
        if torch.compiler.is_compiling() or first.is_meta or (autocast and autocast_to_float32(first)):
            return op(*args)
        return kernel(*args) if is_plain([a for a in args if isinstance(a, Tensor)]) else op(*args)

    call.op = op  # type: ignore[attr-defined]
    return call


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """The names of a function's arguments, with their annotations."""
    hints = typing.get_type_hints(function)
    hints |= getattr(function, "hints", {})
    return {n: hints[n] for n in inspect.signature(function).parameters}


def add(
    name: str, allocate: Callable[..., Any], launch: Callable[..., Any], *, autocast: bool = True, strided: bool = False
) -> Any:
    """Define an op without derivatives and batching rule. Outputs that `allocate` leaves out are empty."""
    taken = ", ".join(f"{_TYPES[kind]} {n}" for n, kind in arguments(allocate).items())
    result = inspect.signature(allocate).return_annotation
    n_outputs = 1 if result is Tensor else len(typing.get_args(result))
    returned = "Tensor" if n_outputs == 1 else f"({', '.join(['Tensor'] * n_outputs)})"
    library.define(f"{name}({taken}) -> {returned}", tags=(torch.Tag.pt2_compliant_tag,))
    kernel = launch if strided else contiguous(launch)
    for key in ("CPU", "CUDA"):
        library.impl(name, filled(kernel), key)
    torch.library.register_fake(f"genfast::{name}", filled(allocate), lib=library)
    op = getattr(torch.ops.genfast, name).default
    if autocast:
        for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            library.impl(name, _autocast_rule(op, device, key), key)
    return op


def filled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with an empty tensor for each result that it leaves out: an op returns tensors only."""

    def call(*args: Any) -> Any:
        out = function(*args)
        if isinstance(out, Tensor):
            return out
        return tuple(args[0].new_empty(0) if t is None else t for t in out)

    return call


def contiguous(launch: Callable[..., Any]) -> Callable[..., Any]:
    """`launch` with contiguous tensors."""

    def kernel(*args: Any) -> Any:
        for a in args:
            # gradients of a sum have strides of 0; inductor may hand over other strides than it was promised
            if isinstance(a, Tensor) and not a.is_contiguous():
                return launch(*(a.contiguous() if isinstance(a, Tensor) else a for a in args))
        return launch(*args)

    return kernel


def launcher(name: str, allocate: Callable[..., Any]) -> Callable[..., Any]:
    """`allocate`, then the kernel `name` with arguments and outputs in its own order, which is that of the op."""
    names = list(arguments(allocate))
    kernel: Any = None
    takes: list[int] | None = None  # positions of the arguments that the kernel takes; None: all

    def find() -> None:
        nonlocal kernel, takes
        wanted = _native.kernels()[name]
        takes = [i for i, n in enumerate(names) if n in wanted]
        if [names[i] for i in takes] != list(wanted[: len(takes)]):
            raise RuntimeError(f"{name}: the op has arguments {names}, the kernel {list(wanted)}")
        if len(takes) == len(names):
            takes = None
        kernel = getattr(_native, name)

    def launch(*args: Any) -> Any:
        if kernel is None:
            find()
        out = allocate(*args)
        given = args if takes is None else [args[i] for i in takes]
        if isinstance(out, Tensor):
            kernel(*given, out)
        else:
            kernel(*given, *out)
        return out

    return launch


def _autocast_rule(op: Any, device: str, key: str) -> Callable[..., Any]:
    keys = _C.DispatchKeySet(getattr(_C.DispatchKey, key))

    def rule(*args: Any) -> Any:
        with _C._ExcludeDispatchKeyGuard(keys):
            return op(
                *(
                    a.float() if isinstance(a, Tensor) and a.dtype in HALF and a.device.type == device else a
                    for a in args
                )
            )

    return rule


def batching_rule(op: Any, rows: Sequence[str] = (), row_outputs: bool = False) -> Callable[..., Any]:
    """A rule for vmap: (batch size, batch dimension of each argument, *arguments) to outputs, batched in front.

    If only arguments in `rows`, those whose first dimension is the row, are batched, the batch is folded into the rows,
    and the op runs once; otherwise it runs once a batch entry. Folding needs outputs whose first dimension is the row.
    """
    names = [a.name for a in op._schema.arguments]

    def rule(size: int, in_dims: Sequence[int | None], *args: Any) -> Any:
        if row_outputs and all(d is None or n in rows for n, d in zip(names, in_dims, strict=True)):
            folded = [
                a if n not in rows or a is None else _fold(a, d, size)
                for a, n, d in zip(args, names, in_dims, strict=True)
            ]
            outputs = [
                t.unflatten(0, (size, -1)) if t.shape[0] else t.new_empty(size, 0, *t.shape[1:])
                for t in as_tuple(op(*folded))
            ]
        else:
            entries = [
                as_tuple(op(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))))
                for i in range(size)
            ]
            outputs = [torch.stack(t) for t in zip(*entries, strict=True)]
        return outputs[0] if len(op._schema.returns) == 1 else tuple(outputs)

    return rule


def _fold(a: Tensor, dim: int | None, size: int) -> Tensor:
    a = a.expand(size, *a.shape) if dim is None else a.movedim(dim, 0)
    return a.reshape(size * a.shape[1], *a.shape[2:])


def like(x: Tensor) -> Tensor:
    """A new contiguous tensor of the shape, dtype and device of x (twice as fast as `x.new_empty(x.shape)`)."""
    return torch.empty_like(x) if x.is_contiguous() else x.new_empty(x.shape)


def as_tuple(out: Any) -> tuple[Any, ...]:
    """Outputs of an op as a tuple."""
    return (out,) if isinstance(out, Tensor) else tuple(out)


def autocast_to_float32(x: Tensor) -> bool:
    """Whether autocast is on where x lies: half arguments are then raised to float32, and so are the results."""
    if x.is_cpu:
        return torch.is_autocast_enabled("cpu")
    kind = x.device.type
    return kind != "meta" and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def is_plain(tensors: Sequence[Tensor | None]) -> bool:
    """Whether nothing but autograd looks at operations on these tensors: no transform, mode, tracing or subclass."""
    if (
        _C._are_functorch_transforms_active()
        or _C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
        or _C._get_tracing_state() is not None
    ):
        return False
    for t in tensors:
        if t is None:
            continue
        kind = type(t)
        if kind is not Tensor and kind is not Parameter:
            return False
        # left over from a transform that ended; batched gradients, by the vmap that came before torch.func; negated in
        # name only, as the imaginary part of a conjugate is
        if _C._functorch.is_functorch_wrapped_tensor(t) or _C._functorch.is_legacy_batchedtensor(t) or t.is_neg():
            return False
    return True
