"""The one place that talks to torch.library: how a kernel becomes an op of PyTorch.

`differentiable` makes, from a function that allocates the outputs, a kernel and a reference, all that PyTorch can ask
of an op: gradients of every order, forward mode, `torch.func` transforms, `torch.compile` and `torch.export`, meta and
fake tensors, autocast. `define` makes an op without gradients. See docs/adding_an_op.md.

The order of the dispatcher does the work, and nothing is detected or guessed:

* An op has a kernel at the Autograd key, which applies an `autograd.Function`, and one at the key at which `torch.func`
  takes over, which peels one level of transforms: a Function at a level of reverse mode, the batching rule at one of
  vmap. So the op itself is differentiable, and a graph that holds it (compiled, exported, traced) is as well.
* The Function's backward is the op `<name>_backward`, which is differentiable in the same way: its own backward is the
  vector-Jacobian product of the reference's.
* At a level of forward mode the op is its reference, whose operations carry tangents to any depth. (A Function's own
  jvp would not do: within it PyTorch drops the tangents of the levels around.)
* In an ordinary call, where no transform, tracing or mode is active, none of this is needed, and the public call goes
  to an old-style Function or straight to the kernel.
"""

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import Function, _SingleLevelFunction
from torch.nn import Parameter

from genfast import _native
from genfast._backend import use_reference

_library = torch.library.Library("genfast", "DEF")
_C = torch._C
_HALF = (torch.float16, torch.bfloat16)
_TENSOR = (Tensor, Tensor | None)  # annotations
_HOLE = object()  # where a tensor stood among the constants of a Function

Outputs = Tensor | tuple[Tensor, ...]


# --- ops --------------------------------------------------------------------------------------------------------------


def define(
    name: str,
    allocate: Callable[..., Any],
    *,
    launch: Callable[..., Any] | None = None,
    rows: Sequence[str] = (),
    row_outputs: Sequence[bool] | bool = False,
    autocast: bool = True,
    strided: bool = False,
) -> Any:
    """Define `torch.ops.genfast.<name>`, an op without gradients, and return a function that calls it.

    The function's attribute `op` is the op itself; an ordinary call goes straight to the kernel.

    Args:
        name: the op's name, and the kernel's in the extension.
        allocate: the arguments, annotated, to new outputs; their values are not set. Also traces the op.
        launch: the arguments to outputs with values; by default `allocate`, then the kernel `name` with arguments and
            outputs. Gets contiguous tensors, unless `strided`.
        rows: the tensor arguments whose first dimension is the row. If under vmap only these are batched, the batch
            is folded into the rows, and the op runs once; otherwise it runs once a batch entry.
        row_outputs: for each result (or all), whether its first dimension is the row; folding needs all of them True.
        autocast: under autocast, low-precision arguments are raised to float32.
        strided: the kernel reads slices, broadcasts and other strided tensors where they lie.
    """
    launch = launch or _launch(name, allocate)
    op = _define(name, _schema(allocate), launch, allocate, autocast, strided)
    batched = _vmap_rule(op, rows, row_outputs)
    torch.library.register_vmap(
        f"genfast::{name}", lambda info, in_dims, *args: batched(info.batch_size, in_dims, *args), lib=_library
    )
    kernel = launch if strided else _contiguous(launch)

    def call(*args: Any) -> Any:
        first: Tensor = args[0]
        if torch.compiler.is_compiling() or first.is_meta or (autocast and autocast_to_float32(first)):
            return op(*args)
        return kernel(*args) if is_plain([a for a in args if isinstance(a, Tensor)]) else op(*args)

    call.op = op  # type: ignore[attr-defined]
    return call


def _schema(function: Callable[..., Any]) -> str:
    return str(torch.library.infer_schema(function, mutates_args=()))


def _define(
    name: str, schema: str, launch: Callable[..., Any], fake: Callable[..., Any], autocast: bool, strided: bool
) -> Any:
    _library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    kernel = launch if strided else _contiguous(launch)
    for key in ("CPU", "CUDA"):
        _library.impl(name, kernel, key)
    torch.library.register_fake(f"genfast::{name}", fake, lib=_library)
    op = getattr(torch.ops.genfast, name).default
    if autocast:
        for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            _library.impl(name, _autocast_rule(op, device, key), key)
    return op


def _contiguous(launch: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        # gradients of a sum have strides of 0; inductor may hand over other strides than it was promised
        return launch(*(a.contiguous() if isinstance(a, Tensor) else a for a in args))

    return kernel


def _launch(name: str, allocate: Callable[..., Any], *, of_inputs: int = 0) -> Callable[..., Any]:
    """The kernel `name`, called with the arguments and outputs in its own order, which is that of the op.

    With `of_inputs` outputs belong to that many first arguments, and those of absent arguments are absent.
    """
    names = list(inspect.signature(allocate).parameters)
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
        results = (out,) if isinstance(out, Tensor) else out
        if of_inputs and None in args[:of_inputs]:
            results = [None if a is None else t for a, t in zip(args[:of_inputs], results, strict=True)]
        kernel(*given, *results)
        return out

    return launch


def _autocast_rule(op: Any, device: str, key: str) -> Callable[..., Any]:
    keys = _C.DispatchKeySet(getattr(_C.DispatchKey, key))

    def rule(*args: Any) -> Any:
        with _C._ExcludeDispatchKeyGuard(keys):
            return op(
                *(
                    a.float() if isinstance(a, Tensor) and a.dtype in _HALF and a.device.type == device else a
                    for a in args
                )
            )

    return rule


def _vmap_rule(op: Any, rows: Sequence[str], row_outputs: Sequence[bool] | bool) -> Callable[..., Any]:
    names = [a.name for a in op._schema.arguments]
    fold = row_outputs if isinstance(row_outputs, bool) else all(row_outputs)

    def rule(size: int, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        if fold and all(d is None or n in rows for n, d in zip(names, in_dims, strict=True)):
            folded = [
                a if n not in rows or a is None else _fold(a, d, size)
                for a, n, d in zip(args, names, in_dims, strict=True)
            ]
            outputs = [
                t.unflatten(0, (size, -1)) if t.shape[0] else t.new_empty(size, 0, *t.shape[1:])
                for t in _tuple(op(*folded))
            ]
        else:
            entries = [
                _tuple(op(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))))
                for i in range(size)
            ]
            outputs = [torch.stack(t) for t in zip(*entries, strict=True)]
        return (outputs[0], 0) if len(op._schema.returns) == 1 else (tuple(outputs), (0,) * len(outputs))

    return rule


def _fold(a: Tensor, dim: int | None, size: int) -> Tensor:
    a = a.expand(size, *a.shape) if dim is None else a.movedim(dim, 0)
    return a.reshape(size * a.shape[1], *a.shape[2:])


def _tuple(out: Outputs) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else out


# --- differentiable ops -----------------------------------------------------------------------------------------------


class Differentiable:
    """What `differentiable` returns: call it with the arguments of the op, in order, for the op's outputs.

    Attributes:
        op: `torch.ops.genfast.<name>`; differentiable as well, a few microseconds slower.
        backward_op: its backward.
    """

    def __init__(
        self,
        name: str,
        allocate: Callable[..., Any],
        *,
        outputs: Sequence[str],
        reference: Callable[..., Any],
        backward: Callable[..., Any] | None,
        save: Callable[..., tuple[Any, ...]] | None,
        gradients: Callable[..., Sequence[Tensor | None]] | None,
        backward_reference: Callable[..., Any] | None,
        launch: Callable[..., Any] | None,
        backward_launch: Callable[..., Any] | None,
        rows: Sequence[str],
        row_outputs: bool,
        strided: bool,
    ) -> None:
        self.name, self._strided, self._reference = name, strided, reference
        names = list(inspect.signature(allocate).parameters)
        hints = typing.get_type_hints(allocate)
        # Arguments that have a gradient: all tensors. Outputs that have one: those that the reference returns.
        self._tensors = [i for i, n in enumerate(names) if hints[n] in _TENSOR]
        self._n_outputs = len(outputs)
        of_inputs = 0 if backward else len(self._tensors)
        backward = backward or _like_the_inputs(allocate, outputs)
        lead, places = _backward_arguments(backward, names, outputs)
        self._places = places
        self._n_grads = sum(kind == "grad" for kind, _ in places)
        self._save = save or _save_by_name(lead, names, outputs)
        self._gradients = gradients or _pass_on
        self._backward_reference = backward_reference or self._vjp_of_reference(lead, names)

        self._run = launch or _launch(f"{name}_forward", allocate)
        self._run_backward = backward_launch or _launch(f"{name}_backward", backward, of_inputs=of_inputs)
        rows_backward = [*rows, *outputs, *(f"grad_{o}" for o in outputs)] if row_outputs else ()
        self.op = _define(f"{name}_forward", _schema(allocate), self._run, allocate, True, strided)
        self.backward_op = _define(f"{name}_backward", _schema(backward), self._run_backward, backward, True, strided)
        forward_rule = _vmap_rule(self.op, rows, row_outputs)
        only_rows = row_outputs and all(names[i] in rows for i in self._tensors)
        backward_rule = _vmap_rule(self.backward_op, rows_backward, only_rows)
        if not strided:
            self._run, self._run_backward = _contiguous(self._run), _contiguous(self._run_backward)
        _connect(self.op, self._transformed(), self._forward_mode(allocate), forward_rule)
        backward_mode = _like_the_op(self._backward_reference, backward)
        _connect(self.backward_op, self._transformed_backward(), backward_mode, backward_rule)
        self._ordinary = self._ordinary_function()

    def __call__(self, *args: Any) -> Any:
        first: Tensor = args[0]
        autocast = autocast_to_float32(first)
        if autocast:
            args = tuple(a.float() if isinstance(a, Tensor) and a.dtype in _HALF else a for a in args)
        if use_reference(first):
            return self._call_reference(args, autocast)
        if torch.compiler.is_compiling() or first.is_meta:
            return self.op(*args)
        tensors = [args[i] for i in self._tensors]
        if not is_plain(tensors):
            return self.op(*args)
        if torch.is_grad_enabled() and _requires_grad(tensors):
            return self._ordinary.apply(*args)
        return self._run(*args)

    def _call_reference(self, args: tuple[Any, ...], autocast: bool) -> Any:
        if not autocast:
            return self._reference(*args)
        with torch.autocast(args[0].device.type, enabled=False):
            return self._reference(*args)

    # What the backward takes: saved inputs, outputs and constants, cotangents, and whether a gradient is needed.

    def _assemble(self, values: Sequence[Any], grads: Sequence[Tensor], needs: Sequence[bool]) -> list[Any]:
        return [values[i] if kind == "value" else grads[i] if kind == "grad" else needs[i] for kind, i in self._places]

    def _keep(self, ctx: Any, args: tuple[Any, ...], out: Outputs) -> None:
        outputs = (out,) if isinstance(out, Tensor) else out
        values = self._save(args, outputs)
        tensors = [v for v in values if isinstance(v, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.values = [_HOLE if isinstance(v, Tensor) else v for v in values]
        if len(outputs) > self._n_grads:
            ctx.mark_non_differentiable(*outputs[self._n_grads :])

    @staticmethod
    def _kept(ctx: Any) -> list[Any]:
        tensors = iter(ctx.saved_tensors)
        return [next(tensors) if v is _HOLE else v for v in ctx.values]

    def _to_inputs(self, needs: Sequence[bool], found: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Gradients of the tensor arguments as one entry, or None, for each argument."""
        grads: list[Tensor | None] = [None] * len(needs)
        for i, g in zip(self._tensors, found, strict=True):
            if needs[i]:
                grads[i] = g
        return tuple(grads)

    def _vjp_of_reference(self, lead: list[str], names: list[str]) -> Callable[..., tuple[Tensor, ...]]:
        """The backward in plain PyTorch, with its arguments: what second derivatives and forward mode go through."""
        missing = [n for n in names if n not in lead]
        if missing:
            raise TypeError(f"{self.name}: the backward does not get {missing}; give backward_reference")
        at = [lead.index(n) for n in names]

        def pull_back(*args: Any) -> tuple[Tensor, ...]:
            values = {i: a for (kind, i), a in zip(self._places, args, strict=True) if kind == "value"}
            grads = [a for (kind, _), a in zip(self._places, args, strict=True) if kind == "grad"]
            inputs = [values[i] for i in at]
            wanted = [i for i in self._tensors if inputs[i] is not None]

            def function(*tensors: Tensor) -> tuple[Tensor, ...]:
                full = list(inputs)
                for i, t in zip(wanted, tensors, strict=True):
                    full[i] = t
                return _tuple(self._reference(*full))

            found = iter(_vjp(function, [inputs[i] for i in wanted], grads))
            return tuple(next(found) if i in wanted else grads[0].new_empty(0) for i in self._tensors)

        return pull_back

    def _forward_mode(self, allocate: Callable[..., Any]) -> Callable[..., Any]:
        """The reference with the op's outputs; those without a gradient are not set."""

        def reference(*args: Any) -> Any:
            out = _tuple(self._reference(*args))
            return (*out, *_tuple(allocate(*args))[len(out) :]) if self._n_outputs > 1 else out[0]

        return reference

    # The Functions. The ordinary one serves calls without transforms; the others are what the ops themselves apply.

    def _ordinary_function(self) -> type[Function]:
        operation = self

        class Ordinary(Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                out = operation._run(*args)
                operation._keep(ctx, args, out)
                return out

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
                values, needs = operation._kept(ctx), ctx.needs_input_grad
                args = operation._assemble(values, grads, needs)
                direct = is_plain(grads) and not (torch.is_grad_enabled() and _requires_grad(args))
                found = _tuple((operation._run_backward if direct else operation.backward_op)(*args))
                return operation._to_inputs(needs, operation._gradients(values, grads, found))

        Ordinary.__name__ = Ordinary.__qualname__ = f"genfast_{self.name}"
        return Ordinary

    def _transformed(self) -> type[Function]:
        operation = self

        class Transformed(Function):
            @staticmethod
            def forward(*args: Any) -> Any:
                return operation.op(*args)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
                operation._keep(ctx, inputs, output)

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
                values, needs = operation._kept(ctx), ctx.needs_input_grad
                found = _tuple(operation.backward_op(*operation._assemble(values, grads, needs)))
                return operation._to_inputs(needs, operation._gradients(values, grads, found))

        Transformed.__name__ = Transformed.__qualname__ = f"genfast_{self.name}"
        return Transformed

    def _transformed_backward(self) -> type[Function]:
        operation = self

        class TransformedBackward(Function):
            @staticmethod
            def forward(*args: Any) -> Any:
                return operation.backward_op(*args)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:  # noqa: ARG004
                ctx.save_for_backward(*(a for a in inputs if isinstance(a, Tensor)))
                ctx.values = [_HOLE if isinstance(a, Tensor) else a for a in inputs]

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
                found = iter(_vjp(operation._of_tensors(ctx), ctx.saved_tensors, grads))
                return tuple(next(found) if v is _HOLE else None for v in ctx.values)

        TransformedBackward.__name__ = TransformedBackward.__qualname__ = f"genfast_{self.name}_backward"
        return TransformedBackward

    def _of_tensors(self, ctx: Any) -> Callable[..., tuple[Tensor, ...]]:
        """The reference backward as a function of its tensor arguments alone."""

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            left = iter(tensors)
            return _tuple(self._backward_reference(*(next(left) if v is _HOLE else v for v in ctx.values)))

        return function


def differentiable(
    name: str,
    allocate: Callable[..., Any],
    *,
    outputs: Sequence[str],
    reference: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    save: Callable[..., tuple[Any, ...]] | None = None,
    gradients: Callable[..., Sequence[Tensor | None]] | None = None,
    backward_reference: Callable[..., Any] | None = None,
    launch: Callable[..., Any] | None = None,
    backward_launch: Callable[..., Any] | None = None,
    rows: Sequence[str] = (),
    row_outputs: bool = True,
    strided: bool = False,
) -> Differentiable:
    """Define `genfast::<name>_forward` and `genfast::<name>_backward`, and what makes them differentiable.

    Only `allocate`, `outputs` and `reference` are needed; the kernels `<name>_forward` and `<name>_backward` of the
    extension then take the arguments and outputs by the names used here.

    Args:
        name: stem of the op's and the kernels' names.
        allocate: the arguments, annotated (the first one a tensor), to new outputs without values.
        outputs: the outputs' names.
        reference: the same arguments to the outputs that have a gradient, in plain PyTorch, twice differentiable.
        backward: as `allocate`, for the gradients of all tensor arguments. Its arguments are those of the forward,
            outputs, `grad_<output>` for each output with a gradient, and `need_<argument>` (whether its gradient is
            needed), found by name. By default all arguments and all cotangents, to a gradient like each tensor.
        save: (arguments, outputs) to the values of the backward's arguments, without cotangents and needs; for a
            backward that does not always want the same ones. By default those of the same name.
        gradients: (saved values, cotangents, results of the backward) to the gradients of the tensor arguments, for a
            backward that leaves some of them out.
        backward_reference: the backward in differentiable PyTorch; by default from the reference. Needed where the
            backward does not get all arguments of the forward.
        launch: (arguments) to outputs, in place of `allocate` and the kernel.
        backward_launch: the same for the backward.
        rows: arguments whose first dimension is the row; see `define`.
        row_outputs: whether every output's first dimension is the row.
        strided: the kernels read strided tensors where they lie.
    """
    return Differentiable(
        name, allocate, outputs=outputs, reference=reference, backward=backward, save=save, gradients=gradients,
        backward_reference=backward_reference, launch=launch, backward_launch=backward_launch, rows=rows,
        row_outputs=row_outputs, strided=strided,
    )  # fmt: skip


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
        kind = type(t)
        if kind is not Tensor and kind is not Parameter and t is not None:
            return False
        # left over from a transform that ended; or batched gradients, by the vmap that came before torch.func
        if t is not None and (_C._functorch.is_functorch_wrapped_tensor(t) or _C._functorch.is_legacy_batchedtensor(t)):
            return False
    return True


def _requires_grad(args: Sequence[Any]) -> bool:
    return any(isinstance(a, Tensor) and a.requires_grad for a in args)


def _connect(
    op: Any, function: type[Function], forward_mode: Callable[..., Any], batched: Callable[..., Any]
) -> None:
    """Give an op its derivatives.

    Args:
        op: the op.
        function: applies it, with its backward.
        forward_mode: the same in operations that carry tangents.
        batched: its batching rule.
    """
    below = _C._AutoDispatchBelowAutograd
    name = op._schema.name.removeprefix("genfast::")

    def autograd(*args: Any) -> Any:
        if _C._is_fwd_grad_enabled() and forward_ad._current_level >= 0 and _has_tangent(args):
            return forward_mode(*args)
        if torch.is_grad_enabled() and _requires_grad(args):
            return function.apply(*args)
        with below():
            return op(*args)

    def transform(*args: Any) -> Any:
        level = retrieve_current_functorch_interpreter()
        if level.key() == TransformType.Grad:
            return _at_level(op, function, level, args)
        if level.key() == TransformType.Vmap:
            return _batched_at_level(op, batched, level, args)
        if level.key() == TransformType.Jvp:
            return forward_mode(*args)
        raise NotImplementedError(f"genfast::{name}: torch.func's {level.key()} is not supported")

    _library.impl(name, autograd, "Autograd")
    _library.impl(name, transform, "FuncTorchDynamicLayerFrontMode")


def _has_tangent(args: Sequence[Any]) -> bool:
    return any(isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args)


def _at_level(op: Any, function: type[Function], level: Any, args: tuple[Any, ...]) -> Any:
    """One level of reverse mode: `function` on what this level sees, the op on what lies below it."""
    number = level.level()

    def forward(*outer: Any) -> Any:
        inner = [_C._functorch._unwrap_for_grad(a, number) if isinstance(a, Tensor) else a for a in outer]
        # A Function turns both modes off; the levels below want them on.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), level.lower():
            out = op(*inner)
        wrapped = tuple(_C._functorch._wrap_for_grad(o, number) for o in _tuple(out))
        return wrapped[0] if isinstance(out, Tensor) else wrapped

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(function.setup_context),
        "backward": staticmethod(function.backward),
    }
    with enable_single_level_autograd_function():
        return type(function.__name__, (_SingleLevelFunction,), members).apply(*args)


def _batched_at_level(op: Any, rule: Callable[..., Any], level: Any, args: tuple[Any, ...]) -> Any:
    number = level.level()
    pairs = [_C._functorch._unwrap_batched(a, number) if isinstance(a, Tensor) else (a, None) for a in args]
    with level.lower():
        if all(dim is None for _, dim in pairs):
            return op(*args)
        out, _ = rule(level.batch_size(), [dim for _, dim in pairs], *(a for a, _ in pairs))
    wrapped = tuple(_C._functorch._add_batch_dim(o, 0, number) for o in _tuple(out))
    return wrapped[0] if isinstance(out, Tensor) else wrapped


def _vjp(
    function: Callable[..., Any], primals: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """The vector-Jacobian product, in the primals' dtypes; differentiable, and composable with all transforms."""
    if autocast_to_float32(primals[0]):
        with torch.autocast(primals[0].device.type, enabled=False):
            return _vjp(function, primals, cotangents)
    outputs, pull_back, *_ = torch.func.vjp(function, *primals)
    found: tuple[Tensor, ...] = pull_back(
        tuple(
            # another shape: that of a gradient which the backward was told not to compute
            torch.zeros_like(o) if c is None or c.shape != o.shape else c.to(o.dtype)
            for o, c in zip(outputs, cotangents, strict=True)
        )
    )
    return found


def _pass_on(values: Sequence[Any], grads: Sequence[Tensor], found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    del values, grads
    return found


def _like_the_inputs(allocate: Callable[..., Any], outputs: Sequence[str]) -> Callable[..., Any]:
    """The allocation of a backward that takes all arguments and cotangents: one gradient like each tensor."""
    parameters = list(inspect.signature(allocate).parameters.values())
    hints = typing.get_type_hints(allocate)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    typed = [p.replace(annotation=hints[p.name]) for p in parameters]
    tensors = [p for p in typed if p.annotation in _TENSOR]
    others = [p for p in typed if p.annotation not in _TENSOR]
    grads = [inspect.Parameter(f"grad_{o}", kind, annotation=Tensor) for o in outputs]

    def backward(*args: Any) -> Any:
        out = tuple(args[0].new_empty(0 if t is None else t.shape) for t in args[: len(tensors)])
        return out if len(out) > 1 else out[0]

    result = tuple[(Tensor,) * len(tensors)] if len(tensors) > 1 else Tensor  # type: ignore[misc]
    backward.__signature__ = inspect.Signature([*tensors, *grads, *others], return_annotation=result)  # type: ignore[attr-defined]
    return backward


def _like_the_op(reference: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """The reference backward with empty gradients where the op, too, has them: those that are not needed."""

    def function(*args: Any) -> Any:
        pairs = zip(_tuple(reference(*args)), _tuple(backward(*args)), strict=True)
        out = tuple(a if a.shape == b.shape else b for a, b in pairs)
        return out if len(out) > 1 else out[0]

    return function


def _backward_arguments(
    backward: Callable[..., Any], names: Sequence[str], outputs: Sequence[str]
) -> tuple[list[str], list[tuple[str, int]]]:
    """The names of the saved arguments of a backward, and for each argument its kind and number in that kind."""
    lead: list[str] = []
    places = []
    for n in inspect.signature(backward).parameters:
        if n.startswith("grad_"):
            places.append(("grad", list(outputs).index(n.removeprefix("grad_"))))
        elif n.startswith("need_"):
            places.append(("need", list(names).index(n.removeprefix("need_"))))
        else:
            places.append(("value", len(lead)))
            lead.append(n)
    return lead, places


def _save_by_name(lead: Sequence[str], names: Sequence[str], outputs: Sequence[str]) -> Callable[..., tuple[Any, ...]]:
    at = [(True, list(names).index(n)) if n in names else (False, list(outputs).index(n)) for n in lead]

    def save(args: tuple[Any, ...], out: tuple[Tensor, ...]) -> tuple[Any, ...]:
        return tuple(args[i] if is_input else out[i] for is_input, i in at)

    return save
