"""A stack of transforms whose backward pass rebuilds activations by inversion."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from genfast._arguments import number, real
from genfast._tracing import has_values
from genfast.flows._chain import Chain, apply
from genfast.flows._coupling import Coupling


class InvertibleSequential(Chain):
    r"""Transforms one after the other, whose activation memory does not grow with their number.

    What `nn.Sequential` keeps for the backward pass, this rebuilds: the input of a layer is the inverse of its output,
    so that the first input and the last output of the whole stack are all that stays. A backward pass costs one more
    evaluation of each layer and one of its inverse; where it is a coupling of vectors, one of its
    conditioner.

    *Drift.* Rebuilt numbers carry rounding errors. Each backward pass compares the rebuilt first input with the true
    one: the drift is the largest :math:`|\hat x - x| / (|x| + \overline{|x|})`. Above the tolerance, the inputs of all
    layers are computed anew from the first one and the gradient is taken at those, so that it is right in this very
    step; the layers behind whose inverse the drift passed the tolerance are in `stored` from then on, and their inputs
    are kept, as `nn.Sequential` would. One warning says so. `drift` is the last one measured in each direction. The
    comparison waits for the device once a backward pass; `tolerance=math.inf` leaves it out.

    *What it works with.* Contexts and frozen parameters; DistributedDataParallel; autocast (the layers are rebuilt as
    they were computed); dropout (the random numbers of each layer are drawn again as they were). Derivatives of second
    order, forward mode, torch.func and export take the layers as `nn.Sequential` does: right, at its cost in memory.
    Under `torch.compile` the stack runs eagerly behind a graph break, as what a compiler saves is not ours to rebuild;
    with `fullgraph=True` that is torch's error. A layer that changes its buffers in each call, as batch normalisation
    does while training, is refused in the backward pass, and so are parameters changed between the passes.

    Args:
        transforms: modules with `forward` and `inverse`, the first one acts on noise.
        tolerance: largest drift; by default the root of the dtype's precision (3e-4 in float32), under autocast and in
            half types twice the precision of the half type.

    Raises:
        TypeError: a transform has no `inverse`, or the tolerance is no number.
        ValueError: neighbours do not agree on the dimensions of an event, or on the width of the context; the tolerance
            is negative.

    Source:
        Gomez et al. 2017, "The reversible residual network: backpropagation without storing activations".

    Example:
        >>> layers = [AffineCoupling(half_mask(4, last=i % 2 == 0)) for i in range(32)]
        >>> flow = Flow(StandardNormal(4), [InvertibleSequential(layers)])
        >>> flow.forward_kl(torch.randn(64, 4)).backward()
        >>> flow.transforms[0].stored
        {'forward': set(), 'inverse': set()}
    """

    def __init__(self, transforms: Iterable[nn.Module], *, tolerance: float | None = None) -> None:
        super().__init__(transforms)
        self.tolerance = None if tolerance is None else number("tolerance", tolerance, 0, math.inf)
        #: The places of the layers whose input is kept, by direction.
        self.stored: dict[str, set[int]] = {"forward": set(), "inverse": set()}
        #: The drift that was last measured, by direction.
        self.drift: dict[str, float] = {}
        self._warned = False
        self._draws = False  # whether a layer was seen to draw random numbers

    def extra_repr(self) -> str:
        """Options, for the printed module."""
        return "" if self.tolerance is None else f"tolerance={self.tolerance:g}"

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise z to (x, log|det dx/dz|)."""
        return self._run("z", z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data x to (z, log|det dz/dx|)."""
        return self._run("x", x, context, inverse=True)

    def _run(self, name: str, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        real(name, x)
        if x.ndim == 0:
            raise ValueError(f"{name}: got a scalar, want rows [..., D]")
        if context is not None:
            x, context = self._with_context(x, context, self.event_dim_out if inverse else self.event_dim)
        if not torch.is_grad_enabled() or not len(self.transforms) or torch.compiler.is_exporting():
            return self.apply_all(x, context, inverse=inverse)
        out: tuple[Tensor, Tensor] = self._rebuilding(x, context, inverse)
        return out

    @torch.compiler.disable
    def _rebuilding(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        slots, tensors = self._slots()
        if (
            not any(t.requires_grad for t in (x, context, *tensors) if t is not None)
            or type(x) not in (Tensor, nn.Parameter)
            or x.device.type == "meta"
            or torch._C._functorch.peek_interpreter_stack() is not None  # noqa: SLF001
            or forward_ad._current_level >= 0  # noqa: SLF001
        ):
            return self.apply_all(x, context, inverse=inverse)
        out: tuple[Tensor, Tensor] = _Rebuilt.apply(_Call(self, inverse, slots), x, context, *tensors)
        return out

    def _slots(self) -> tuple[list[tuple[dict[str, Any], str, int]], list[Tensor]]:
        """Where parameters and buffers stand, each with the place of its tensor in the list of all of them."""
        places: dict[int, int] = {}
        tensors: list[Tensor] = []
        slots = []
        for module in self.modules():
            for store in (module._parameters, module._buffers):  # noqa: SLF001
                for name, t in store.items():
                    if t is None:
                        continue
                    place = places.setdefault(id(t), len(tensors))
                    if place == len(tensors):
                        tensors.append(t)
                    slots.append((store, name, place))
        return slots, tensors


class _Random:
    """The state of the generators that layers draw from: the CPU's, and that of the device of x."""

    def __init__(self, x: Tensor) -> None:
        self.device = x.device if x.device.type == "cuda" and not torch.cuda.is_current_stream_capturing() else None
        self.cpu = torch.get_rng_state()
        self.cuda = None if self.device is None else torch.cuda.get_rng_state(self.device)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Random):
            return False
        cuda = self.cuda is None or other.cuda is None or torch.equal(self.cuda, other.cuda)
        return torch.equal(self.cpu, other.cpu) and cuda

    __hash__ = None  # type: ignore[assignment]

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and self.device is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


@dataclasses.dataclass
class _Call:
    """One call of a stack: what its backward pass needs beside tensors."""

    stack: InvertibleSequential
    inverse: bool
    slots: list[tuple[dict[str, Any], str, int]]
    #: The random state before the first layer; before each of them, where they draw.
    start: _Random | None = None
    states: dict[int, _Random] = dataclasses.field(default_factory=dict)
    draws: bool = False
    #: The places of the layers whose inputs are saved, in the order of the saved tensors.
    kept: list[int] = dataclasses.field(default_factory=list)
    contexts: list[Any] = dataclasses.field(default_factory=list)

    @property
    def direction(self) -> str:
        return "inverse" if self.inverse else "forward"

    def order(self) -> list[int]:
        places = list(range(len(self.stack.transforms)))
        return places[::-1] if self.inverse else places

    def layer(self, i: int, x: Tensor, context: Tensor | None, *, back: bool = False) -> tuple[Tensor, Tensor]:
        """The layer, or what takes its output back, with the random numbers that it had."""
        if i in self.states:
            self.states[i].restore()
        return apply(self.stack.transforms[i], x, context, inverse=self.inverse != back)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """The autocast of the forward pass, without its cache: that holds weights cast without a graph."""
        with contextlib.ExitStack() as stack:
            for device, dtype, enabled in self.contexts:
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield

    # -- forward ------------------------------------------------------------------------------------------------------

    def run(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The output, the log-determinant, and the inputs of the layers whose inputs are kept."""
        self.contexts = [(t, torch.get_autocast_dtype(t), torch.is_autocast_enabled(t)) for t in {x.device.type, "cpu"}]
        inputs: list[Tensor] = []
        stored = self.stack.stored[self.direction]
        self.start = _Random(x)

        def step(i: int, at: Tensor) -> None:
            if self.stack._draws:  # noqa: SLF001
                self.states[i] = _Random(at)
            if i in stored:
                self.kept.append(i)
                inputs.append(at)

        with self.autocast():
            y, log_det = self.stack.apply_all(x, context, inverse=self.inverse, step=step)
        self.draws = self.start != _Random(x)
        self.stack._draws |= self.draws  # noqa: SLF001
        if y is x:  # an output of its own
            y = y.clone()
        return y, log_det, inputs

    # -- backward -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def as_it_was(self, tensors: list[Tensor], x: Tensor) -> Iterator[None]:
        """Inside, the layers have these parameters and buffers, autocast is what it was, and draws leave no trace."""
        before = []
        for store, name, place in self.slots:
            now, then = store[name], tensors[place]
            if now is not then and not _same_numbers(now, then):
                before.append((store, name, now))
                store[name] = then
        random = _Random(x)
        try:
            with self.autocast():
                yield
        finally:
            random.restore()
            for store, name, now in reversed(before):
                store[name] = now

    def replay(self, x: Tensor, context: Tensor | None) -> dict[int, Tensor]:
        """The inputs of all layers, computed from the first one."""
        inputs: dict[int, Tensor] = {}
        states = self.states
        self.states = {}
        if self.start is not None:
            self.start.restore()
        for i in self.order():
            inputs[i] = x
            if self.draws:
                states[i] = _Random(x)
            x, _ = self.layer(i, x, context)
        self.states = states
        return inputs

    def pull(
        self,
        x: Tensor,
        y: Tensor,
        context: Tensor | None,
        tensors: list[Tensor],
        inputs: dict[int, Tensor],
        grads: tuple[Tensor, Tensor],
        wants: tuple[bool, bool],
    ) -> tuple[list[Tensor | None], Tensor]:
        """The gradients of x, of the context and of the tensors, and the largest drift.

        Args:
            x: the first input, of which a rebuilt one is compared.
            y: the last output.
            context: that of x.
            tensors: parameters and buffers, detached, requiring a gradient where one is wanted.
            inputs: the inputs of layers that are known, by place.
            grads: of y and of the log-determinant.
            wants: whether a gradient of x and of the context is wanted.
        """
        place_of = {id(t): k for k, t in enumerate(tensors)}
        total: list[Tensor | None] = [None] * (2 + len(tensors))
        grad_y, grad_log_det = grads
        drift = y.new_zeros((), dtype=torch.float32)
        order = self.order()
        for i in reversed(order):
            first = i == order[0]
            known = x if first else inputs.get(i)
            given = None if context is None else context.detach().requires_grad_(wants[1])
            own = [t for t in _tensors_of(self.stack.transforms[i]) if t.requires_grad and id(t) in place_of]
            layer = self.stack.transforms[i]
            if known is None and _by_parts(layer):
                if i in self.states:
                    self.states[i].restore()
                y, grad_y, found = self.pull_coupling(layer, y, given, own, (grad_y, grad_log_det))
            else:
                if known is None or (first and i not in inputs and self.checks(x)):
                    with torch.no_grad():
                        rebuilt, _ = self.layer(i, y, context, back=True)
                    if known is not None:
                        drift = torch.maximum(drift, _distance(rebuilt, known))
                point = (rebuilt if known is None else known).detach()
                point.requires_grad_(not first or wants[0])
                with torch.enable_grad():
                    out, log_det = self.layer(i, point, given)
                if i in inputs and i != order[-1] and self.checks(x):
                    drift = torch.maximum(drift, _distance(y, out.detach()))
                found = _gradients([(out, grad_y), (log_det, grad_log_det)], [point, given, *own])
                grad_y, y = _or_zeros(found, point), point.detach()
            for k, leaf in [(1, given), *((2 + place_of[id(t)], t) for t in own)]:
                piece = None if leaf is None else found.get(id(leaf))
                before = total[k]
                if piece is not None:
                    total[k] = piece if before is None else before + piece
        total[0] = grad_y.to(x.dtype) if wants[0] else None
        return total, drift

    def pull_coupling(
        self,
        layer: Coupling,
        y: Tensor,
        given: Tensor | None,
        own: list[Tensor],
        grads: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, dict[int, Tensor | None]]:
        """The input of a coupling from its output y, its gradient, and those of the context and parameters.

        What is kept is the same on both sides, so that the conditioner is asked once: its parameters take the moved
        part back, and are differentiated with what then moves forward.
        """
        grad_y, grad_log_det = grads
        kept, moved, places = layer.split(y)
        kept = kept.detach().requires_grad_()
        with torch.enable_grad():
            said = None if given is None else layer.check_context(y, given)
            params = layer.parameters_for(kept, said)
        back, _ = layer.transform(moved, params.detach(), inverse=not self.inverse)
        point = back.detach().requires_grad_()
        with torch.enable_grad():
            out, log_det = layer.transform(point, params, inverse=self.inverse)
        grad_kept, grad_moved, _ = layer.split(grad_y)
        found = _gradients([(out, grad_moved), (log_det, grad_log_det)], [kept, point, given, *own])
        through = _or_zeros(found, kept)
        x = layer.join(kept.detach(), back, places)
        return x, layer.join(grad_kept + through, _or_zeros(found, point), places), found

    def checks(self, x: Tensor) -> bool:
        """Whether the drift is looked at."""
        capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
        return self.limit(x) < math.inf and has_values(x) and not capturing

    def limit(self, x: Tensor) -> float:
        """The largest drift that passes."""
        if self.stack.tolerance is not None:
            return self.stack.tolerance
        half = [torch.finfo(dtype).eps for _, dtype, enabled in self.contexts if enabled]
        eps = torch.finfo(x.dtype).eps
        wide = math.sqrt(min(eps, torch.finfo(torch.float32).eps))
        return max([wide, *(2 * e for e in half), 2 * eps])

    def mark(self, inputs: dict[int, Tensor], y: Tensor, context: Tensor | None, limit: float) -> None:
        """Store from now on the inputs that the inverses do not give back within the limit; `inputs` are true."""
        stored = self.stack.stored[self.direction]
        worst, name = 0.0, ""
        found = set()
        for i in reversed(self.order()):
            if i in stored:
                y = inputs[i]
                continue
            y, _ = self.layer(i, y, context, back=True)
            off = float(_distance(y, inputs[i]))
            if not off <= limit:
                found.add(i)
                y = inputs[i]
            if off > worst or math.isnan(off):
                worst, name = off, f"layer {i} ({type(self.stack.transforms[i]).__name__})"
        if not found and not stored.issuperset(self.order()):
            found = set(self.order()) - stored  # nothing stands out, and yet the whole drifts
        stored |= found
        if not self.stack._warned:  # noqa: SLF001
            self.stack._warned = True  # noqa: SLF001
            warnings.warn(
                f"InvertibleSequential: the input of {name}, rebuilt by inversion, is off by {worst:.2g} of its size, "
                f"tolerance {limit:.2g}; this gradient was computed from true inputs, and from now on the inputs of "
                f"{len(found)} of {len(self.stack.transforms)} layers are stored (see the attribute stored)",
                UserWarning,
                stacklevel=2,
            )


class _Rebuilt(torch.autograd.Function):
    """A call of a stack whose graph is one node."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, context: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det, inputs = call.run(x, context)
        ctx.call = call
        ctx.n = len(tensors)
        ctx.save_for_backward(x, y, context, *tensors, *inputs)
        return y, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        x, y, context, *rest = ctx.saved_tensors
        tensors, kept = rest[: ctx.n], rest[ctx.n :]
        needs = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return (None, *_differentiable(call, x, context, tensors, (grads[0], grads[1]), needs))
        leaves = [t.detach().requires_grad_() if need else t for t, need in zip(tensors, needs[2:], strict=True)]
        inputs = dict(zip(call.kept, kept, strict=True))
        versions = _versions(tensors)
        with call.as_it_was(leaves, x), torch.no_grad():
            wants = (needs[0], needs[1])
            if call.draws and not call.states:
                inputs |= call.replay(x, context)
            total, drift = call.pull(x, y, context, leaves, inputs, (grads[0], grads[1]), wants)
            if call.checks(x):
                off, limit = float(drift), call.limit(x)
                call.stack.drift[call.direction] = off
                if not off <= limit:
                    inputs = call.replay(x, context)
                    call.mark(inputs, y, context, limit)
                    total, _ = call.pull(x, y, context, leaves, inputs, (grads[0], grads[1]), wants)
        if _versions(tensors) != versions:
            raise RuntimeError(
                "InvertibleSequential: a layer changes its buffers in each call, as batch normalisation does while "
                "training, and rebuilding its input changed them again: put the layers into a Flow directly, or eval()"
            )
        return (None, *total)


def _differentiable(
    call: _Call,
    x: Tensor,
    context: Tensor | None,
    tensors: list[Tensor],
    grads: tuple[Tensor, Tensor],
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradients as a graph, for derivatives of higher order: by the layers as they are."""
    everything = [x, context, *tensors]
    # Views, so that hooks on the tensors themselves see their gradient once.
    views = [t.view_as(t) if t is not None and need else t for t, need in zip(everything, needs, strict=True)]
    with call.as_it_was(views[2:], x):  # type: ignore[arg-type]
        if call.start is not None:
            call.start.restore()
        first = views[0]
        assert first is not None  # noqa: S101  (x)
        out = call.stack.apply_all(first, views[1], inverse=call.inverse)
        ends = [(o, g) for o, g in zip(out, grads, strict=True) if o.requires_grad]
        leaves = [t for t, need in zip(views, needs, strict=True) if t is not None and need]
        got = iter(
            torch.autograd.grad(
                [o for o, _ in ends], leaves, [g for _, g in ends], create_graph=True, allow_unused=True
            )
        )
    return [next(got) if t is not None and need else None for t, need in zip(views, needs, strict=True)]


def _by_parts(layer: nn.Module) -> TypeGuard[Coupling]:
    """Whether a layer is a coupling of vectors, computed as by `Coupling` and without hooks."""
    if not isinstance(layer, Coupling) or layer.event_dim != 1 or layer._forward_hooks or layer._forward_pre_hooks:  # noqa: SLF001
        return False
    kind = type(layer)
    return all(getattr(kind, name) is getattr(Coupling, name) for name in _OF_COUPLING)


_OF_COUPLING = ("forward", "inverse", "_apply_map", "split", "join", "parameters_for")


def _gradients(ends: list[tuple[Tensor, Tensor]], leaves: list[Tensor | None]) -> dict[int, Tensor | None]:
    """The gradients of the leaves that require one, by id, of outputs with the gradients that arrive there."""
    ends = [(out, grad) for out, grad in ends if out.requires_grad]
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    if not ends or not wanted:
        return {}
    pulled = [grad.sum_to_size(out.shape).to(out.dtype) for out, grad in ends]
    got = torch.autograd.grad([out for out, _ in ends], wanted, pulled, allow_unused=True)
    return dict(zip(map(id, wanted), got, strict=True))


def _or_zeros(found: dict[int, Tensor | None], leaf: Tensor) -> Tensor:
    grad = found.get(id(leaf))
    return torch.zeros_like(leaf) if grad is None else grad


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """What stands in the places of its parameters now."""
    seen = set()
    for part in module.modules():
        for t in part._parameters.values():  # noqa: SLF001
            if t is not None and id(t) not in seen:
                seen.add(id(t))
                yield t


def _same_numbers(now: Tensor, then: Tensor) -> bool:
    """Whether two buffers share their memory: a module that watches its buffer then sees no other one."""
    if now.requires_grad or then.requires_grad or now.shape != then.shape or not has_values(now):
        return False
    return now.data_ptr() == then.data_ptr() and now.stride() == then.stride()


def _versions(tensors: list[Tensor]) -> list[int]:
    return [-1 if t.is_inference() else t._version for t in tensors]  # noqa: SLF001


def _distance(rebuilt: Tensor, true: Tensor) -> Tensor:
    """The largest |rebuilt - true| / (|true| + mean |true|); NaN where one of them alone is NaN."""
    if true.numel() == 0:
        return true.new_zeros((), dtype=torch.float32)
    a, b = rebuilt.to(torch.promote_types(rebuilt.dtype, torch.float32)), true.to(rebuilt.dtype)
    size = b.abs()
    size = size + size.nanmean().clamp(min=torch.finfo(size.dtype).tiny)
    off = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs() / size)
    return off.max().float()
