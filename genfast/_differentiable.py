"""Ops with derivatives of every order, made from an allocation, a kernel and a reference.

`differentiable` gives an op all that PyTorch can ask of it: gradients of every order, forward mode, `torch.func`
transforms, `torch.compile` and `torch.export`, meta and fake tensors, autocast. The dispatcher's order does the work;
nothing is detected or guessed:

* An op has a kernel at the Autograd key, which applies an `autograd.Function`, and one at the key at which `torch.func`
  takes over, which peels one level of transforms: a Function at a level of reverse mode, the batching rule at one of
  vmap. So the op itself is differentiable, and a graph that holds it (compiled, exported, traced) is as well.
* The Function's backward is the op `<name>_backward`, which is differentiable in the same way: its own backward is the
  vector-Jacobian product of the reference's.
* At a level of forward mode the op is its reference, whose operations carry tangents to any depth. (A Function's own
  jvp would not do: within it PyTorch drops the tangents of the levels around.)
* In an ordinary call, where no transform, tracing or mode is active, none of this is needed, and the public call goes
  to a Function that runs the kernels directly, or to the kernel.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._functorch.utils import enable_single_level_autograd_function, unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.autograd.function import Function, _SingleLevelFunction

from genfast._backend import use_reference
from genfast._register import (
    HALF,
    add,
    arguments,
    as_tuple,
    autocast_to_float32,
    batching_rule,
    contiguous,
    filled,
    is_plain,
    launcher,
    library,
    like,
)  # fmt: skip

_C = torch._C
_HOLE = object()  # where a tensor stood
_TENSOR = (Tensor, Tensor | None)  # annotations of arguments that have a gradient


class Differentiable:
    """What `differentiable` returns: call it with the arguments of the op, in order, for the op's outputs.

    Attributes:
        op: `torch.ops.genfast.<name>_forward`; differentiable as well, a few microseconds slower.
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
        save: Callable[..., tuple[Tensor | None, ...]] | None,
        gradients: Callable[..., tuple[Tensor | None, ...]] | None,
        backward_reference: Callable[..., Any] | None,
        launch: Callable[..., Any] | None,
        backward_launch: Callable[..., Any] | None,
        rows: Sequence[str],
        row_outputs: bool,
        strided: bool,
    ) -> None:
        self.name, self._reference, self._n_outputs = name, _in_float32(reference, allocate), len(outputs)
        kinds = arguments(allocate)
        names = list(kinds)
        self._n_tensors = sum(kind in _TENSOR for kind in kinds.values())
        if any(kind in _TENSOR for kind in list(kinds.values())[self._n_tensors :]):
            raise TypeError(f"{name}: tensors come first among the arguments, then constants")
        backward = backward or _like_the_inputs(kinds, outputs)
        self._describe(backward, names, outputs)
        self._save = save or self._save_by_name(names, outputs)
        self._gradients = gradients
        if backward_reference is None:
            backward_reference = self._vjp_of_reference(names)
        self._backward_reference = filled(_in_float32(backward_reference, backward))

        self._run = launch or launcher(f"{name}_forward", allocate)
        self._run_backward = backward_launch or launcher(f"{name}_backward", backward)
        self.op = add(f"{name}_forward", allocate, self._run, strided=strided)
        self.backward_op = add(f"{name}_backward", backward, self._run_backward, strided=strided)
        if not strided:
            self._run, self._run_backward = contiguous(self._run), contiguous(self._run_backward)
        only_rows = row_outputs and all(n in rows for n in names[: self._n_tensors])
        rows_backward = [*rows, *outputs, *(f"grad_{o}" for o in outputs)]
        _connect(
            self.op,
            self._function(),
            _like_the_op(self._reference, allocate),
            batching_rule(self.op, rows, row_outputs),
        )
        _connect(
            self.backward_op, self._function_of_backward(), _like_the_op(self._backward_reference, backward),
            batching_rule(self.backward_op, rows_backward, only_rows),
        )  # fmt: skip
        # Function.apply asks whether a transform is active, which is known here; what lies below it does the work.
        ordinary: Any = self._ordinary_function()
        self._apply: Callable[..., Any] = super(Function, ordinary).apply  # type: ignore[misc]

    def __call__(self, *args: Any) -> Any:
        first: Tensor = args[0]
        autocast = autocast_to_float32(first)
        if autocast:
            args = tuple(a.float() if isinstance(a, Tensor) and a.dtype in HALF else a for a in args)
        if use_reference(first):
            return self._call_reference(args, autocast)
        if torch.compiler.is_compiling() or first.is_meta:
            return self.op(*args)
        tensors = args[: self._n_tensors]
        if not is_plain(tensors):
            return self.op(*args)
        if torch.is_grad_enabled():
            for t in tensors:
                if t is not None and t.requires_grad:
                    return self._apply(*tensors, args[self._n_tensors :])
        return self._run(*args)

    def _call_reference(self, args: tuple[Any, ...], autocast: bool) -> Any:
        if not autocast:
            return self._reference(*args)
        with torch.autocast(args[0].device.type, enabled=False):
            return self._reference(*args)

    # --- what the backward takes: saved tensors, cotangents, whether a gradient is needed, constants

    def _describe(self, backward: Callable[..., Any], names: list[str], outputs: Sequence[str]) -> None:
        kinds = arguments(backward)
        constants = names[self._n_tensors :]
        self._saved = [n for n in kinds if n not in constants and not n.startswith(("grad_", "need_"))]
        cotangents = [n for n in kinds if n.startswith("grad_")]
        needs = [n for n in kinds if n.startswith("need_")]
        if [n for n in kinds if n in constants] != constants:
            raise TypeError(f"{self.name}: the backward takes all constants of the forward, in its order")
        if cotangents != [f"grad_{o}" for o in outputs[: len(cotangents)]]:
            raise TypeError(f"{self.name}: the backward takes grad_<output> for the first outputs, in their order")
        self._n_grads = len(cotangents)
        self._needs = [names.index(n.removeprefix("need_")) for n in needs]
        order = [*self._saved, *cotangents, *needs, *constants]
        self._arrange = operator.itemgetter(*(order.index(n) for n in kinds))
        self._position = {n: i for i, n in enumerate(kinds)}

    def _arguments(self, ctx: Any, saved: tuple[Any, ...], grads: tuple[Tensor, ...]) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        given: tuple[Any, ...] = self._arrange((*saved, *grads[: self._n_grads], *[needs[i] for i in self._needs],
                                                *ctx.constants))  # fmt: skip
        return given

    def _save_by_name(self, names: list[str], outputs: Sequence[str]) -> Callable[..., tuple[Tensor | None, ...]]:
        both = [*names, *outputs]
        unknown = [n for n in self._saved if n not in both]
        if unknown:
            raise TypeError(f"{self.name}: the backward wants {unknown}, neither argument nor output; give `save`")
        pick = operator.itemgetter(*(both.index(n) for n in self._saved))
        return (
            (lambda args, out: pick((*args, *out)))
            if len(self._saved) > 1
            else lambda args, out: (pick((*args, *out)),)
        )

    def _keep(self, ctx: Any, args: tuple[Any, ...], out: Any) -> None:
        outputs = (out,) if isinstance(out, Tensor) else out
        ctx.save_for_backward(*self._save(args, outputs))
        ctx.constants = args[self._n_tensors :]
        if self._n_outputs > self._n_grads:
            ctx.mark_non_differentiable(*(o for o in outputs[self._n_grads :] if o is not None))

    def _of_tensors(
        self, ctx: Any, saved: tuple[Any, ...], grads: tuple[Tensor, ...], found: Any
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the tensor arguments, from the results of the backward."""
        if isinstance(found, Tensor):
            found = (found,)
        if self._gradients is None:
            return found  # type: ignore[no-any-return]
        return self._gradients(saved, ctx.constants, grads, found)

    def _vjp_of_reference(self, names: list[str]) -> Callable[..., tuple[Tensor | None, ...]]:
        """The backward in plain PyTorch, with its arguments: what second derivatives and forward mode go through."""
        missing = [n for n in names if n not in self._position]
        if missing:
            raise TypeError(f"{self.name}: the backward does not get {missing}; give `backward_reference`")
        at = [self._position[n] for n in names]
        grads_at = [i for n, i in self._position.items() if n.startswith("grad_")]

        def pull_back(*args: Any) -> tuple[Tensor | None, ...]:
            inputs, grads = [args[i] for i in at], [args[i] for i in grads_at]
            wanted = [i for i in range(self._n_tensors) if inputs[i] is not None]

            def function(*tensors: Tensor) -> tuple[Tensor, ...]:
                full = list(inputs)
                for i, t in zip(wanted, tensors, strict=True):
                    full[i] = t
                return as_tuple(self._reference(*full))

            found = iter(_vjp(function, [inputs[i] for i in wanted], grads))
            return tuple(next(found) if i in wanted else None for i in range(self._n_tensors))

        return pull_back

    # --- the Functions: one for ordinary calls, one that the op applies, and one that the backward op applies

    def _ordinary_function(self) -> type[Function]:
        operation = self

        class Ordinary(Function):
            # All constants are one argument: each argument of a Function costs.
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                *tensors, constants = args
                out = operation._run(*tensors, *constants)
                operation._keep(ctx, (*tensors, *constants), out)
                return out

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
                saved = ctx.saved_tensors
                args = operation._arguments(ctx, saved, grads)
                if is_plain(grads) and not (torch.is_grad_enabled() and _requires_grad(args)):
                    return (*operation._of_tensors(ctx, saved, grads, operation._run_backward(*args)), None)
                found = operation._of_tensors(ctx, saved, grads, operation.backward_op(*args))
                return (*(g if n else None for g, n in zip(found, ctx.needs_input_grad, strict=False)), None)

        Ordinary.__name__ = Ordinary.__qualname__ = f"genfast_{self.name}"
        return Ordinary

    def _function(self) -> type[Function]:
        operation = self

        class OfOp(Function):
            @staticmethod
            def forward(*args: Any) -> Any:
                return operation.op(*args)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
                operation._keep(ctx, inputs, output)

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
                saved = ctx.saved_tensors
                found = operation.backward_op(*operation._arguments(ctx, saved, grads))
                found = (*operation._of_tensors(ctx, saved, grads, found), *[None] * len(ctx.constants))
                # the op fills in what its kernel leaves out
                return tuple(g if n else None for g, n in zip(found, ctx.needs_input_grad, strict=True))

        OfOp.__name__ = OfOp.__qualname__ = f"genfast_{self.name}"
        return OfOp

    def _function_of_backward(self) -> type[Function]:
        operation = self

        class OfBackwardOp(Function):
            @staticmethod
            def forward(*args: Any) -> Any:
                return operation.backward_op(*args)

            @staticmethod
            def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
                ctx.save_for_backward(*(a for a in inputs if isinstance(a, Tensor)))
                ctx.constants = [a if not isinstance(a, Tensor) else _HOLE for a in inputs]

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
                saved = iter(ctx.saved_tensors)
                args = [next(saved) if c is _HOLE else c for c in ctx.constants]
                wanted = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]

                def function(*tensors: Tensor) -> tuple[Tensor, ...]:
                    full = list(args)
                    for i, t in zip(wanted, tensors, strict=True):
                        full[i] = t
                    return as_tuple(operation._backward_reference(*full))

                found = iter(_vjp(function, [args[i] for i in wanted], grads))
                return tuple(next(found) if i in wanted else None for i in range(len(args)))

        OfBackwardOp.__name__ = OfBackwardOp.__qualname__ = f"genfast_{self.name}_backward"
        return OfBackwardOp


def differentiable(
    name: str,
    allocate: Callable[..., Any],
    *,
    outputs: Sequence[str],
    reference: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    save: Callable[..., tuple[Tensor | None, ...]] | None = None,
    gradients: Callable[..., tuple[Tensor | None, ...]] | None = None,
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
        allocate: the arguments, annotated, tensors first, to new outputs whose values are not set.
        outputs: the outputs' names.
        reference: the same arguments to those outputs, the first ones, that have a gradient; in plain PyTorch, twice
            differentiable.
        backward: as `allocate`, for the gradients of all tensor arguments, None where there is none. It takes, by name,
            tensor arguments and outputs, `grad_<output>` for the outputs with a gradient, `need_<argument>` (whether
            its gradient is needed), and all constants. By default all arguments and cotangents, to a gradient like
            each tensor.
        save: (arguments, outputs) to the tensors of the backward, without cotangents, for a backward that does not
            always want the same ones. By default those of the same name.
        gradients: (saved tensors, constants, cotangents, results of the backward) to the gradients of the tensor
            arguments, for a backward that leaves some of them out.
        backward_reference: the backward in differentiable PyTorch; by default made from the reference. Needed where the
            backward does not get all arguments of the forward.
        launch: the arguments to outputs with values, in place of `allocate` and the kernel.
        backward_launch: the same for the backward.
        rows: arguments whose first dimension is the row, which vmap folds its batch into.
        row_outputs: whether every output's first dimension is the row.
        strided: the kernels read strided tensors where they lie.
    """
    return Differentiable(
        name, allocate, outputs=outputs, reference=reference, backward=backward, save=save, gradients=gradients,
        backward_reference=backward_reference, launch=launch, backward_launch=backward_launch, rows=rows,
        row_outputs=row_outputs, strided=strided,
    )  # fmt: skip


def _requires_grad(args: Sequence[Any]) -> bool:
    return any(isinstance(a, Tensor) and a.requires_grad for a in args)


def _has_tangent(args: Sequence[Any]) -> bool:
    return any(isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args)


def _connect(op: Any, function: type[Function], forward_mode: Callable[..., Any], batched: Callable[..., Any]) -> None:
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
        args = unwrap_dead_wrappers(args)  # saved tensors of transforms that have ended
        level = retrieve_current_functorch_interpreter()
        if level.key() == TransformType.Grad:
            return _at_level(op, function, level, args)
        if level.key() == TransformType.Vmap:
            return _batched_at_level(op, batched, level, args)
        if level.key() == TransformType.Jvp:
            return forward_mode(*args)
        raise NotImplementedError(f"genfast::{name}: torch.func's {level.key()} is not supported")

    library.impl(name, autograd, "Autograd")
    library.impl(name, transform, "FuncTorchDynamicLayerFrontMode")


def _at_level(op: Any, function: type[Function], level: Any, args: tuple[Any, ...]) -> Any:
    """One level of reverse mode: `function` on what this level sees, the op on what lies below it."""
    number = level.level()

    def forward(*outer: Any) -> Any:
        inner = [_C._functorch._unwrap_for_grad(a, number) if isinstance(a, Tensor) else a for a in outer]
        # A Function turns both modes off; the levels below want them on.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), level.lower():
            out = op(*inner)
        wrapped = tuple(_C._functorch._wrap_for_grad(o, number) for o in as_tuple(out))
        return wrapped[0] if isinstance(out, Tensor) else wrapped

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(function.setup_context),
        "backward": staticmethod(function.backward),
    }
    with enable_single_level_autograd_function():
        single: Any = type(function.__name__, (_SingleLevelFunction,), members)
        return single.apply(*args)


def _batched_at_level(op: Any, rule: Callable[..., Any], level: Any, args: tuple[Any, ...]) -> Any:
    number = level.level()
    pairs = [_C._functorch._unwrap_batched(a, number) if isinstance(a, Tensor) else (a, None) for a in args]
    with level.lower():
        if all(dim is None for _, dim in pairs):
            return op(*args)
        out = rule(level.batch_size(), [dim for _, dim in pairs], *(a for a, _ in pairs))
    wrapped = tuple(_C._functorch._add_batch_dim(o, 0, number) for o in as_tuple(out))
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


def _like_the_inputs(kinds: dict[str, Any], outputs: Sequence[str]) -> Callable[..., Any]:
    """The allocation of a backward that takes all arguments and cotangents: one gradient like each tensor."""
    tensors = {n: kind for n, kind in kinds.items() if kind in _TENSOR}
    others = {n: kind for n, kind in kinds.items() if kind not in _TENSOR}
    count = len(tensors)

    def backward(*args: Any) -> Any:
        out = tuple(None if t is None else like(t) for t in args[:count])
        return out if count > 1 else out[0]

    parameter, kind = inspect.Parameter, inspect.Parameter.POSITIONAL_OR_KEYWORD
    hints = {**tensors, **{f"grad_{o}": Tensor for o in outputs}, **others}
    backward.hints = hints  # type: ignore[attr-defined]
    backward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter(n, kind, annotation=hint) for n, hint in hints.items()],
        return_annotation=tuple[(Tensor,) * count] if count > 1 else Tensor,  # type: ignore[misc]
    )
    return backward


def _like_the_op(reference: Callable[..., Any], allocate: Callable[..., Any]) -> Callable[..., Any]:
    """The reference with the op's outputs; those that it lacks, and gradients that are not needed, are not set."""
    allocate = filled(allocate)

    def function(*args: Any) -> Any:
        outputs = as_tuple(allocate(*args))
        found = as_tuple(reference(*args))
        out = (*(a if a.shape == b.shape else b for a, b in zip(found, outputs, strict=False)), *outputs[len(found) :])
        return out if len(out) > 1 else out[0]

    return function


def _in_float32(reference: Callable[..., Any], allocate: Callable[..., Any]) -> Callable[..., Any]:
    """The reference as the kernels treat half types: computed in float32, with results of the dtypes of the op's."""

    def function(*args: Any) -> Any:
        if args[0].dtype not in HALF:
            return reference(*args)
        found = reference(*(a.float() if isinstance(a, Tensor) and a.dtype in HALF else a for a in args))
        out = tuple(
            None if a is None or b is None else a.to(b.dtype)
            for a, b in zip(as_tuple(found), as_tuple(allocate(*args)), strict=False)
        )
        return out[0] if isinstance(found, Tensor) else out

    return function
