"""What may be given to an op and what may not: layouts, dtypes, devices, autocast, bad input."""

import re

import pytest
import torch

from tests.harness.spec import (
    HALF,
    BadInput,
    OpSpec,
    cotangents_of,
    needs_gradients,
    relative_error,
    vjp,
    with_gradients,
)  # fmt: skip


class InputTests:
    spec: OpSpec

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
            assert relative_error(a[1 if spec.differentiable else 0], b) <= 1e-12  # chains go on counting

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
        rows_alike = zip(spec.function(**expanded, **variant), want, strict=True) if spec.differentiable else ()
        for a, b in rows_alike:
            assert relative_error(a, b[:1].expand(n, *b.shape[1:])) <= 1e-12

    def test_lazily_negated_arguments(self, native, variant):
        """The imaginary part of a conjugate has its numbers in memory with the other sign."""
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64)
        negated = {k: torch.complex(torch.zeros_like(v), -v).conj().imag for k, v in tensors.items()}
        assert all(v.is_neg() for v in negated.values())
        outputs = spec.function(**tensors, **variant)
        cotangents = cotangents_of(outputs)
        want = vjp(spec.function, tensors, variant, cotangents)
        leaves = {k: v.requires_grad_() for k, v in negated.items()}
        out = spec.function(**leaves, **variant)
        got = torch.autograd.grad(out, list(leaves.values()), cotangents) if spec.differentiable else ()
        for a, b in zip([*out, *got], [*want[0], *want[1].values()], strict=True):
            assert relative_error(a, b) <= 1e-12

    @needs_gradients
    def test_strided_gradients(self, kernels, variant):
        """Gradients of strided arguments and from strided cotangents are those of contiguous ones."""
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64, kernels.device)
        outputs = spec.function(**tensors, **variant)
        cotangents = [c.expand_as(o) for c, o in zip(map(torch.sum, outputs), outputs, strict=True)]
        _, want = vjp(spec.function, tensors, variant, [c.contiguous() for c in cotangents])
        leaves = with_gradients({k: torch.stack([v, v], -1) for k, v in tensors.items()})
        out = spec.function(**{k: v.select(-1, 1) for k, v in leaves.items()}, **variant)
        got = torch.autograd.grad(out, list(leaves.values()), cotangents)
        for (name, g), found in zip(want.items(), got, strict=True):
            assert relative_error(found.select(-1, 1), g) <= 1e-12, name

    def test_arguments_are_not_changed(self, kernels, variant):
        tensors = self.spec.inputs(self.spec.cases[-1], torch.float32, kernels.device)
        before = {k: v.clone() for k, v in tensors.items()}
        out = self.spec.function(**tensors, **variant)
        vjp(self.spec.function, tensors, variant, cotangents_of(out))
        for k, v in tensors.items():
            assert torch.equal(v, before[k]), k

    @pytest.mark.parametrize("dtype", HALF, ids=["float16", "bfloat16"])
    @pytest.mark.parametrize("low", ["all", "rows", "others"])
    def test_autocast(self, kernels, variant, dtype, low):
        """Half arguments, or some of them, under autocast; the backward runs outside of it, as in every tutorial."""
        spec, device = self.spec, kernels.device
        tensors = spec.inputs((spec.half_cases or spec.cases)[0], dtype, device)
        is_low = {k: low == "all" or (k in spec.rows) == (low == "rows") for k in tensors}
        tensors = {k: v if is_low[k] or not v.is_floating_point() else v.float() for k, v in tensors.items()}
        wide = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        want = spec.function(**wide, **variant)
        cotangents = cotangents_of(want, torch.float32)
        _, want_grads = vjp(spec.function, wide, variant, cotangents)
        leaves = with_gradients(tensors)
        with torch.autocast(device.type, dtype=dtype):
            got = spec.function(**leaves, **variant)
            with torch.no_grad():
                without = spec.function(**tensors, **variant)
        for a, b, c, kind in zip(got, want, without, spec.outputs, strict=True):
            assert a.dtype == c.dtype == (tensors[spec.mapped].dtype if kind == "states" else torch.float32)
            assert torch.equal(a.float(), b)
            assert torch.equal(c.float(), b)
        if not spec.differentiable:
            return
        grads = torch.autograd.grad(got, list(leaves.values()), cotangents)
        for (k, leaf), g in zip(leaves.items(), grads, strict=True):
            assert g.dtype == leaf.dtype
            assert torch.equal(g, want_grads[k].to(leaf.dtype)), k

    def test_reference_backend_under_autocast(self, variant):
        """The fallback computes in float32 too; autocast would run its products in half."""
        import genfast

        tensors = self.spec.inputs((self.spec.half_cases or self.spec.cases)[0], torch.bfloat16)
        with genfast.backend("reference"):
            want = self.spec.function(**{k: v.float() for k, v in tensors.items()}, **variant)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                got = self.spec.function(**tensors, **variant)
        for a, b, kind in zip(got, want, self.spec.outputs, strict=True):
            assert a.dtype == (torch.bfloat16 if kind == "states" else torch.float32)
            assert torch.equal(a.float(), b)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_meta_and_fake_tensors(self, native, variant, dtype):
        from torch._subclasses.fake_tensor import FakeTensorMode

        spec = self.spec
        tensors = spec.inputs(spec.cases[0], dtype)
        want = spec.function(**tensors, **variant)
        mode = FakeTensorMode()
        for kind in ("meta", "fake"):
            there = {k: v.to("meta") if kind == "meta" else mode.from_tensor(v) for k, v in tensors.items()}
            leaves = with_gradients(there)
            with torch.no_grad():
                without = spec.function(**there, **variant)
            got = spec.function(**leaves, **variant)
            for a, b, c in zip(got, without, want, strict=True):
                assert a.shape == b.shape == c.shape
                assert a.dtype == b.dtype == c.dtype
                assert a.device.type == ("meta" if kind == "meta" else "cpu")
            if not spec.differentiable:
                continue
            grads = torch.autograd.grad(got, list(leaves.values()), [torch.ones_like(o) for o in got])
            for g, leaf in zip(grads, leaves.values(), strict=True):
                assert (g.shape, g.dtype, g.device) == (leaf.shape, leaf.dtype, leaf.device)

    @staticmethod
    def standard_bad(spec: OpSpec) -> dict[str, BadInput]:
        """Arguments of a wrong kind, made from their names alone."""
        names = list(spec.make(spec.cases[0], torch.Generator().manual_seed(0)))
        like = spec.like or names[0]
        floats = "want float32, float64, float16 or bfloat16"
        bad = {}
        for n in names:
            bad[f"{n} is not a tensor"] = BadInput(
                lambda t, n=n: {n: 1.5}, TypeError, rf"{n}: got float, want a torch.Tensor"
            )
            bad[f"{n} is an array"] = BadInput(
                lambda t, n=n: {n: t[n].detach().numpy()}, TypeError,
                rf"{n}: got ndarray, want a torch.Tensor: torch.from_numpy makes one",
            )  # fmt: skip
            bad[f"{n} is sparse"] = BadInput(
                lambda t, n=n: {n: t[n].detach().to_sparse()}, TypeError,
                rf"{n}: got a tensor of layout torch.sparse_coo, want a dense one: x.to_dense\(\)",
            )  # fmt: skip
            wide = rf"{n}: got torch.complex64, want (float32, .*|torch.float32 like {like}|states .*)"
            bad[f"{n} is complex"] = BadInput(lambda t, n=n: {n: t[n].to(torch.complex64)}, TypeError, wide)
            if n not in spec.any_dtype:
                text = floats if n == like else rf"torch.float32 like {like}"
                bad[f"{n} holds integers"] = BadInput(
                    lambda t, n=n: {n: t[n].long()}, TypeError, rf"{n}: got torch.int64, (want )?{text}|{n}: .*{text}"
                )
            if n != like and n not in spec.any_dtype:
                bad[f"{n} of another dtype"] = BadInput(
                    lambda t, n=n: {n: t[n].double()}, TypeError,
                    rf"{n}: got torch.float64, want torch.float32 like {like}",
                )  # fmt: skip
            if n != like:
                bad[f"{n} on another device"] = BadInput(
                    lambda t, n=n: {n: t[n].to("meta")}, ValueError,
                    rf"{n}: got a tensor on meta, want cpu like {like}",
                )  # fmt: skip
        return bad

    def test_bad_input(self, bad):
        tensors = self.spec.inputs(self.spec.cases[0], torch.float32)
        options = next(iter(self.spec.variants.values()))
        with pytest.raises(bad.error) as caught:
            self.spec.function(**{**tensors, **options, **bad.change(tensors)})
        assert re.fullmatch(bad.text, str(caught.value)), str(caught.value)
