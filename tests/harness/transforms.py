"""Derivatives of every kind and order, torch.func, torch.compile and torch.export, against the reference."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp

from tests.harness.spec import (
    HALF,
    OpSpec,
    RecordOps,
    cotangents_of,
    needs_gradients,
    relative_error,
    vjp,
    with_gradients,
)  # fmt: skip
from tests.tolerances import tolerance


def first_variant(test):
    """The other variants run where slow tests do: what is tested is the way from Python to the op, not the kernel."""
    test.first_variant = True
    return test


class TransformTests:
    spec: OpSpec

    def _of(self, function, variant, names):
        return lambda *args: function(**dict(zip(names, args, strict=True)), **variant)

    def _same(self, got, want, limit, what):
        leaves = torch.utils._pytree.tree_leaves
        for i, (a, b) in enumerate(zip(leaves(got), leaves(want), strict=True)):
            error = relative_error(a, b)
            assert error <= limit, f"{what}, output {i}: relative error {error:.1e}"

    @needs_gradients
    def test_gradcheck(self, kernels, variant):
        leaves = with_gradients(self.spec.inputs(self.spec.cases[0], torch.float64, kernels.device))
        assert torch.autograd.gradcheck(self._of(self.spec.function, variant, leaves), tuple(leaves.values()))

    @needs_gradients
    def test_gradcheck_forward_and_batched(self, native, variant):
        leaves = with_gradients(self.spec.inputs(self.spec.cases[0], torch.float64))
        assert torch.autograd.gradcheck(
            self._of(self.spec.function, variant, leaves), tuple(leaves.values()), check_forward_ad=True,
            check_batched_grad=True, check_batched_forward_grad=True,
        )  # fmt: skip

    @needs_gradients
    def test_gradgradcheck(self, native, variant):
        leaves = with_gradients(self.spec.inputs(self.spec.cases[0], torch.float64))
        function = self._of(self.spec.function, variant, leaves)
        assert torch.autograd.gradgradcheck(function, tuple(leaves.values()), check_fwd_over_rev=True)

    @needs_gradients
    @pytest.mark.parametrize("live", [False, True], ids=["alone", "others need gradients"])
    def test_functional_transforms(self, native, variant, live):
        """jacrev, jacfwd, jvp, hessian and their compositions in one argument, while others may require gradients."""
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64)
        limit = 10 * max(tolerance(spec.name, torch.float64, gradient=True), 1e-11)
        for name in (n for n, t in tensors.items() if t.is_floating_point()):
            x = tensors[name]
            others = {k: v.clone().requires_grad_(live) for k, v in tensors.items() if k != name}
            f, r = (
                lambda x, h=h, others=others, name=name: h(**{**others, name: x}, **variant)
                for h in (spec.function, spec.reference)
            )
            sf, sr = (lambda x, h=h: sum((o * o).sum() for o in h(x)) for h in (f, r))
            tangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
            self._same(jacrev(f)(x), jacrev(r)(x), limit, f"jacrev in {name}")
            self._same(jvp(f, (x,), (tangent,)), jvp(r, (x,), (tangent,)), limit, f"jvp in {name}")
            with torch.no_grad():
                self._same(jvp(f, (x,), (tangent,)), jvp(r, (x,), (tangent,)), limit, f"jvp without grad in {name}")
                self._same(grad(sf)(x), grad(sr)(x), limit, f"grad without grad mode in {name}")
            _, pull_back, *_ = torch.func.vjp(f, x)  # called when the transform has ended
            self._same(
                pull_back(tuple(cotangents_of(f(x)))), torch.func.vjp(r, x)[1](tuple(cotangents_of(r(x)))), limit,
                f"vjp in {name}",
            )  # fmt: skip
            if name not in (spec.mapped, list(tensors)[-1]):
                continue
            self._same(jacfwd(f)(x), jacfwd(r)(x), limit, f"jacfwd in {name}")
            self._same(hessian(sf)(x), hessian(sr)(x), limit, f"hessian in {name}")
            self._same(jacrev(grad(sf))(x), jacrev(grad(sr))(x), limit, f"jacrev of grad in {name}")
            self._same(jacfwd(jacfwd(sf))(x), jacfwd(jacfwd(sr))(x), limit, f"jacfwd of jacfwd in {name}")
            if live:
                wanted = list(others.values())
                got, want = (
                    torch.autograd.grad(jacrev(h)(x)[0].square().sum(), wanted, allow_unused=True) for h in (f, r)
                )
                zeros = [torch.zeros_like(w) for w in wanted]
                got, want = ([z if g is None else g for g, z in zip(gs, zeros, strict=True)] for gs in (got, want))
                self._same(got, want, limit, f"gradient of jacrev in {name}")

    @needs_gradients
    @pytest.mark.parametrize("live", [False, True], ids=["no gradient", "gradients too"])
    def test_dual_numbers(self, native, variant, live):
        """Forward mode without torch.func, with and without grad mode."""
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64)
        tangents = spec.inputs(spec.cases[0], torch.float64, seed=3)
        results = []
        for function in (spec.function, spec.reference):
            with forward_ad.dual_level(), torch.set_grad_enabled(live):
                given = with_gradients(tensors) if live else tensors
                duals = {k: forward_ad.make_dual(v, tangents[k]) for k, v in given.items()}
                out = [forward_ad.unpack_dual(o) for o in function(**duals, **variant)]
                assert all(o.tangent is not None for o in out)
                results.append([t.detach() for o in out for t in o])
        self._same(*results, 10 * max(tolerance(spec.name, torch.float64, gradient=True), 1e-12), "dual numbers")

    @needs_gradients
    @pytest.mark.parametrize("dtype", HALF, ids=["float16", "bfloat16"])
    def test_dual_numbers_of_half_types(self, native, variant, dtype):
        """Forward mode gives what the op gives: computed in float32, and in the op's dtypes."""
        spec = self.spec
        case = (spec.half_cases or spec.cases)[0]
        tensors, tangents = spec.inputs(case, dtype), spec.inputs(case, dtype, seed=3)
        want = spec.function(**tensors, **variant)
        exact = {k: v.double() for k, v in tensors.items()}
        _, want_tangents = jvp(
            lambda t: tuple(spec.reference(**t, **variant)), (exact,), ({k: v.double() for k, v in tangents.items()},)
        )
        with forward_ad.dual_level():
            duals = {k: forward_ad.make_dual(v, tangents[k]) for k, v in tensors.items()}
            got = [forward_ad.unpack_dual(o) for o in spec.function(**duals, **variant)]
        for (primal, tangent), a, b in zip(got, want, want_tangents, strict=True):
            assert primal.dtype == tangent.dtype == a.dtype
            assert relative_error(primal, a) <= tolerance(spec.name, dtype)
            assert relative_error(tangent, b) <= tolerance(spec.name, dtype, gradient=True)

    def test_vmap(self, native, variant):
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64)
        names = list(tensors)
        stacks = [spec.inputs(spec.cases[0], torch.float64, seed=s) for s in range(3)]
        for batched in (list(spec.rows), names, [n for n in names if n not in spec.rows][:1]):
            if not batched:
                continue
            args = [torch.stack([s[n] for s in stacks]) if n in batched else tensors[n] for n in names]
            dims = tuple(0 if n in batched else None for n in names)
            f = self._of(spec.function, variant, names)
            scalar = lambda *a, f=f: sum((o * o).sum() for o in f(*a))  # noqa: E731
            out = torch.vmap(f, in_dims=dims)(*args)
            if not spec.differentiable:
                for i in range(3):
                    one = [a[i] if d == 0 else a for a, d in zip(args, dims, strict=True)]
                    self._same([o[i] for o in out], f(*one), 0, "vmap")
                continue
            grads = torch.vmap(grad(scalar, argnums=tuple(range(len(args)))), in_dims=dims)(*args)
            for i in range(3):
                one = [a[i] if d == 0 else a for a, d in zip(args, dims, strict=True)]
                self._same([o[i] for o in out], f(*one), 1e-12, "vmap")
                want = grad(scalar, argnums=tuple(range(len(args))))(*one)
                self._same([g[i] for g in grads], want, 1e-10, "vmap of grad")

    def test_ops(self, native, variant):
        """The ops below the public function: registered rightly, differentiable by themselves, and the same numbers."""
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64)
        cotangents = cotangents_of(spec.function(**tensors, **variant))
        plain = vjp(spec.function, tensors, variant, cotangents)
        with RecordOps() as record:
            through_ops = vjp(spec.function, tensors, variant, cotangents)
        for a, b in zip([*plain[0], *plain[1].values()], [*through_ops[0], *through_ops[1].values()], strict=True):
            assert torch.equal(a, b)
        assert len({func for func, _ in record.calls}) >= 1 + spec.differentiable, "a forward and a backward op"
        for func, args in record.calls:
            given = tuple(
                a.detach().requires_grad_(spec.differentiable) if isinstance(a, Tensor) and a.is_floating_point() else a
                for a in args
            )
            torch.library.opcheck(func, given)

    @first_variant
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
            if not spec.differentiable:
                for seed, case in enumerate(spec.cases[:2]):
                    tensors = spec.inputs(case, torch.float32, seed=seed)
                    assert torch.equal(compiled(tensors), loss(tensors))
                continue
            for seed, case in enumerate(spec.cases[:2]):
                leaves = with_gradients(spec.inputs(case, torch.float32, seed=seed))
                wanted = list(leaves.values())
                want = torch.autograd.grad(loss(leaves), wanted)
                got = torch.autograd.grad(compiled(leaves), wanted)
                for a, b in zip(got, want, strict=True):
                    assert relative_error(a, b) <= 1e-6
        torch._dynamo.reset()
        for graph in graphs:
            ours = [t for t in graph if t.startswith("genfast.")]
            assert len(ours) == 1, ours

    @first_variant
    @needs_gradients
    def test_transforms_in_a_compiled_function(self, native, variant):
        spec = self.spec
        tensors = with_gradients(spec.inputs(spec.cases[0], torch.float64))
        name = spec.mapped
        x, others = tensors[name].detach(), {k: v for k, v in tensors.items() if k != name}
        f = lambda x: spec.function(**{**others, name: x}, **variant)  # noqa: E731
        for transform in (lambda x: jvp(f, (x,), (x,)), jacrev(lambda x: f(x)[-1].sum())):
            torch._dynamo.reset()
            try:
                got = torch.compile(transform, backend="aot_eager", fullgraph=True)(x)
            except torch._dynamo.exc.Unsupported:
                assert torch.__version__ < "2.10", "newer versions can"
                continue
            self._same(got, transform(x), 1e-10, "compiled transform")
        torch._dynamo.reset()

    @first_variant
    def test_export(self, native, variant):
        """An exported program holds the op, gives the same numbers and can be trained."""
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64)
        name = spec.mapped

        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.others = torch.nn.ParameterDict({k: v.clone() for k, v in tensors.items() if k != name})

            def forward(self, x: Tensor) -> tuple[Tensor, ...]:
                return tuple(spec.function(**{**self.others, name: x}, **variant))

        module = Module()
        exported = torch.export.export(module, (tensors[name],))
        ours = {str(n.target).removesuffix(".default") for n in exported.graph.nodes if "genfast" in str(n.target)}
        assert len(ours) == 1, ours
        again = exported.module()
        want, got = module(tensors[name]), again(tensors[name])
        self._same(got, want, 1e-12, "exported program")
        if not spec.differentiable:
            return
        loss = lambda out: sum((o * o).sum() for o in out)  # noqa: E731
        self._same(
            torch.autograd.grad(loss(got), list(again.parameters())),
            torch.autograd.grad(loss(want), list(module.parameters())), 1e-12, "gradient of the exported program",
        )  # fmt: skip
