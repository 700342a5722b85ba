"""Every property that all ops share, run from one description of an op.

A test module gets all of them by

    class TestPlanarFlow(OpTests):
        spec = OpSpec(name="planar_flow", function=ops.planar_flow, reference=..., make=..., cases=[...], ...)
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tolerances import tolerance

HALF = (torch.float16, torch.bfloat16)


@dataclasses.dataclass
class BadInput:
    """Arguments that must be refused: what replaces the good ones, the error and its whole text (a regex)."""

    change: Callable[[dict[str, Any]], dict[str, Any]]
    error: type[Exception]
    text: str


@dataclasses.dataclass
class OpSpec:
    """One op.

    Attributes:
        name: key of the tolerance table.
        function: the public function; called with the tensors of `make` by name, and the options of a variant.
        reference: the same in plain PyTorch.
        make: (case, generator) -> float64 CPU tensors by argument name.
        cases: sizes to test; the first is small enough for numerical Jacobians.
        rows: arguments whose leading dimensions are samples.
        variants: options by name of the variant.
        extreme: tensors by name of the case whose results and gradients must be finite in float32.
        bad: inputs that must be refused.
        not_differentiable: arguments without a gradient.
        half_cases: cases that half types are tested on (their range is small).
        row_wise: whether an output row depends on the same row of the inputs only.
    """

    name: str
    function: Callable[..., tuple[Tensor, ...]]
    reference: Callable[..., tuple[Tensor, ...]]
    make: Callable[[Any, torch.Generator], dict[str, Tensor]]
    cases: Sequence[Any]
    rows: Sequence[str]
    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=lambda: {"default": {}})
    extreme: dict[str, Callable[[], dict[str, Tensor]]] = dataclasses.field(default_factory=dict)
    bad: dict[str, BadInput] = dataclasses.field(default_factory=dict)
    not_differentiable: Sequence[str] = ()
    half_cases: Sequence[Any] | None = None
    row_wise: bool = True

    def inputs(self, case: Any, dtype: torch.dtype, device: Any = "cpu", seed: int = 0) -> dict[str, Tensor]:
        made = self.make(case, torch.Generator().manual_seed(seed))
        return {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in made.items()}


class RecordOps(TorchDispatchMode):
    """Records the calls of genfast's ops with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "genfast":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def relative_error(got: Tensor, want: Tensor) -> float:
    """The largest deviation over the largest entry of `want`; infinite where NaN or shapes disagree."""
    if got.shape != want.shape:
        return math.inf
    if want.numel() == 0:
        return 0.0
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    if not torch.equal(got.isnan(), want.isnan()):
        return math.inf
    scale = want.abs().nan_to_num(0, 0, 0).max().item() or 1.0
    return float((got - want).abs().nan_to_num(0).max()) / scale


def with_gradients(tensors: dict[str, Tensor], skip: Sequence[str] = ()) -> dict[str, Tensor]:
    return {
        k: v.detach().clone().requires_grad_() if v.is_floating_point() and k not in skip else v
        for k, v in tensors.items()
    }


def vjp(function, tensors, options, cotangents, skip=()):
    """Outputs and gradients of all differentiable tensors."""
    leaves = with_gradients(tensors, skip)
    out = function(**leaves, **options)
    names = [k for k, v in leaves.items() if v.requires_grad]
    grads = torch.autograd.grad(
        out,
        [leaves[k] for k in names],
        [c.to(o.dtype) for o, c in zip(out, cotangents, strict=True)],
        allow_unused=True,
    )
    zeros = [torch.zeros_like(leaves[k]) if g is None else g for k, g in zip(names, grads, strict=True)]
    return [o.detach() for o in out], dict(zip(names, zeros, strict=True))


class OpTests:
    """The shared properties; a subclass sets `spec`."""

    spec: OpSpec

    def _cotangents(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        g = torch.Generator().manual_seed(1)
        return [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.device) for o in outputs]

    def _compare(self, spec, tensors, options, dtype):
        exact = {k: v.detach().double().cpu() if v.is_floating_point() else v.cpu() for k, v in tensors.items()}
        outputs = spec.reference(**exact, **options)
        cotangents = self._cotangents(outputs)
        want, want_grads = vjp(spec.reference, exact, options, cotangents, spec.not_differentiable)
        device = next(iter(tensors.values())).device
        got, got_grads = vjp(
            spec.function, tensors, options, [c.to(device) for c in cotangents], spec.not_differentiable
        )
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            error = relative_error(a, b)
            assert error <= tolerance(spec.name, dtype), f"output {i}: relative error {error:.2e}"
        for name in want_grads:
            assert got_grads[name].dtype == tensors[name].dtype
            error = relative_error(got_grads[name], want_grads[name])
            assert error <= tolerance(spec.name, dtype, gradient=True), f"grad of {name}: relative error {error:.2e}"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    def test_values_and_gradients(self, backend, variant, case, dtype):
        self._compare(self.spec, self.spec.inputs(case, dtype, backend.device), variant, dtype)

    @pytest.mark.parametrize("dtype", HALF, ids=["float16", "bfloat16"])
    def test_half_types(self, kernels, variant, dtype):
        case = (self.spec.half_cases or self.spec.cases)[0]
        tensors = self.spec.inputs(case, dtype, kernels.device)
        self._compare(self.spec, tensors, variant, dtype)
        out = self.spec.function(**tensors, **variant)
        assert out[0].dtype == dtype
        assert out[1].dtype == torch.float32, "log-determinants are accumulated in float32"

    def test_gradcheck(self, kernels, variant):
        leaves = with_gradients(self.spec.inputs(self.spec.cases[0], torch.float64, kernels.device))
        names = list(leaves)
        function = lambda *args: self.spec.function(**dict(zip(names, args, strict=True)), **variant)  # noqa: E731
        assert torch.autograd.gradcheck(function, tuple(leaves.values()))

    def test_gradgradcheck(self, native, variant):
        leaves = with_gradients(self.spec.inputs(self.spec.cases[0], torch.float64))
        names = list(leaves)
        function = lambda *args: self.spec.function(**dict(zip(names, args, strict=True)), **variant)  # noqa: E731
        assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))

    def test_opcheck(self, native, variant):
        with RecordOps() as record:
            tensors = self.spec.inputs(self.spec.cases[0], torch.float64)
            outputs = self.spec.function(**tensors, **variant)
            vjp(self.spec.function, tensors, variant, self._cotangents(outputs))
        assert len({func for func, _ in record.calls}) >= 2, "a forward and a backward op"
        for func, args in record.calls:
            torch.library.opcheck(func, tuple(a.detach() if isinstance(a, Tensor) else a for a in args))

    @pytest.mark.slow
    def test_compile(self, native, variant):
        """One graph, dynamic sizes, and no call of ours in it but one forward and one backward op."""
        spec, graphs = self.spec, []
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def keep(graph, _):
            graphs.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
            return make_boxed_func(graph.forward)

        def loss(tensors):
            out = spec.function(**tensors, **variant)
            return sum((o * (i + 1)).sum() for i, o in enumerate(out))

        for compiler in (aot_autograd(fw_compiler=keep, bw_compiler=keep), "inductor"):
            torch._dynamo.reset()
            compiled = torch.compile(loss, backend=compiler, fullgraph=True, dynamic=True)
            for seed, case in enumerate(spec.cases[:2]):
                leaves = with_gradients(spec.inputs(case, torch.float32, seed=seed), spec.not_differentiable)
                wanted = [v for v in leaves.values() if v.requires_grad]
                want = torch.autograd.grad(loss(leaves), wanted)
                got = torch.autograd.grad(compiled(leaves), wanted)
                for a, b in zip(got, want, strict=True):
                    assert relative_error(a, b) <= 1e-6
        torch._dynamo.reset()
        for graph in graphs:
            ours = [t for t in graph if t.startswith("genfast.")]
            assert len(ours) == 1, ours

    def test_vmap_and_jacobian(self, native, variant):
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64)
        names = list(tensors)
        stacks = [spec.inputs(spec.cases[0], torch.float64, seed=s) for s in range(3)]
        for batched in (list(spec.rows), names, [n for n in names if n not in spec.rows][:1]):
            if not batched:
                continue
            args = [torch.stack([s[n] for s in stacks]) if n in batched else tensors[n] for n in names]
            dims = tuple(0 if n in batched else None for n in names)
            f = lambda *a: spec.function(**dict(zip(names, a, strict=True)), **variant)  # noqa: E731
            out = torch.vmap(f, in_dims=dims)(*args)
            for i in range(3):
                want = f(*(a[i] if d == 0 else a for a, d in zip(args, dims, strict=True)))
                for a, b in zip(out, want, strict=True):
                    assert relative_error(a[i], b) <= 1e-12
        for name in names:
            if name in spec.not_differentiable or not tensors[name].is_floating_point():
                continue
            one = lambda x, f, name=name: f(**{**tensors, name: x}, **variant)  # noqa: E731
            got = torch.func.jacrev(lambda x, one=one: one(x, spec.function))(tensors[name])
            want = torch.func.jacrev(lambda x, one=one: one(x, spec.reference))(tensors[name])
            for a, b in zip(got, want, strict=True):
                assert relative_error(a, b) <= tolerance(spec.name, torch.float64, gradient=True)

    def test_autocast(self, kernels, variant):
        tensors = self.spec.inputs((self.spec.half_cases or self.spec.cases)[0], torch.bfloat16, kernels.device)
        want = self.spec.function(
            **{k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, **variant
        )
        with torch.autocast(kernels.device.type, dtype=torch.bfloat16):
            got = self.spec.function(**tensors, **variant)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == torch.float32
            assert torch.equal(a, b)

    def test_layouts_of_the_arguments(self, backend, variant):
        """No rows, leading dimensions, strides and expanded tensors are ordinary inputs."""
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64, backend.device)
        want = spec.function(**tensors, **variant)
        n = tensors[spec.rows[0]].shape[0]

        empty = {k: v[:0] if k in spec.rows else v for k, v in tensors.items()}
        out, grads = vjp(spec.function, empty, variant, [w[:0] for w in want])
        for a, b in zip(out, want, strict=True):
            assert a.shape == (0, *b.shape[1:])
        assert all(not g.any() for g in grads.values())

        doubled = {k: torch.stack([v, v]) if k in spec.rows else v for k, v in tensors.items()}
        for a, b in zip(spec.function(**doubled, **variant), want, strict=True):
            assert a.shape == (2, *b.shape)
            assert relative_error(a[1], b) <= 1e-12

        strided = {
            k: torch.stack([v, torch.full_like(v, torch.nan)], -1).flatten(-2)[..., ::2] if v.dim() else v
            for k, v in tensors.items()
        }
        expanded = {
            k: v[:1].expand_as(v) if k in spec.rows else v.t().contiguous().t() if v.dim() == 2 else v
            for k, v in tensors.items()
        }
        for a, b in zip(spec.function(**strided, **variant), want, strict=True):
            assert torch.equal(a, b)
        if spec.row_wise:
            for a, b in zip(spec.function(**expanded, **variant), want, strict=True):
                assert relative_error(a, b[:1].expand(n, *b.shape[1:])) <= 1e-12

    def test_extreme_values_stay_finite(self, kernels, variant):
        for name, make in self.spec.extreme.items():
            tensors = {k: v.to(kernels.device, torch.float32) for k, v in make().items()}
            out = self.spec.function(**tensors, **variant)
            outputs, grads = vjp(self.spec.function, tensors, variant, self._cotangents(out))
            for i, o in enumerate(outputs):
                assert o.isfinite().all(), f"{name}: output {i}"
            for k, g in grads.items():
                assert g.isfinite().all(), f"{name}: gradient of {k}"

    def test_nan_stays_in_its_row(self, kernels, variant):
        if not self.spec.row_wise:
            pytest.skip("rows are coupled")
        tensors = self.spec.inputs(self.spec.cases[-1], torch.float32, kernels.device)
        want = self.spec.function(**tensors, **variant)
        poisoned = {k: v.clone() for k, v in tensors.items()}
        poisoned[self.spec.rows[0]][0] = torch.nan
        for a, b in zip(self.spec.function(**poisoned, **variant), want, strict=True):
            assert a[0].isnan().all()
            assert torch.equal(a[1:], b[1:])

    def test_threads_do_not_change_results(self, kernels, variant):
        tensors = self.spec.inputs(self.spec.cases[-1], torch.float32, kernels.device)
        cotangents = self._cotangents(self.spec.function(**tensors, **variant))
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, grads = vjp(self.spec.function, tensors, variant, cotangents)
            results.append([*out, *grads.values()])
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)

    def test_arguments_are_not_changed(self, kernels, variant):
        tensors = self.spec.inputs(self.spec.cases[-1], torch.float32, kernels.device)
        before = {k: v.clone() for k, v in tensors.items()}
        out = self.spec.function(**tensors, **variant)
        vjp(self.spec.function, tensors, variant, self._cotangents(out))
        for k, v in tensors.items():
            assert torch.equal(v, before[k]), k

    def test_bad_input(self, bad):
        tensors = self.spec.inputs(self.spec.cases[0], torch.float32)
        options = next(iter(self.spec.variants.values()))
        with pytest.raises(bad.error) as caught:
            self.spec.function(**{**tensors, **options, **bad.change(tensors)})
        assert re.fullmatch(bad.text, str(caught.value)), str(caught.value)

    @pytest.mark.cuda
    def test_cuda_graph_replay(self, variant):
        tensors = self.spec.inputs(self.spec.cases[-1], torch.float32, "cuda")
        side = torch.cuda.Stream()
        with torch.no_grad():
            with torch.cuda.stream(side):
                self.spec.function(**tensors, **variant)  # warm-up
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = self.spec.function(**tensors, **variant)
            fresh = self.spec.inputs(self.spec.cases[-1], torch.float32, "cuda", seed=5)
            for k, v in tensors.items():
                v.copy_(fresh[k])
            graph.replay()
            for a, b in zip(out, self.spec.function(**fresh, **variant), strict=True):
                assert torch.equal(a, b)


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give the tests of an OpTests class the cases, variants and bad inputs of its spec."""
    spec = getattr(metafunc.cls, "spec", None)
    if not isinstance(spec, OpSpec):
        return
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", spec.cases, ids=str)
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", list(spec.variants.values()), ids=list(spec.variants))
    if "bad" in metafunc.fixturenames:
        metafunc.parametrize("bad", list(spec.bad.values()), ids=list(spec.bad))
