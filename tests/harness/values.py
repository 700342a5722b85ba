"""Values and gradients against the reference in float64, on every backend."""

import pytest
import torch

from tests.harness.spec import HALF, OpSpec, cotangents_of, needs_gradients, relative_error, vjp
from tests.tolerances import tolerance


class ValueTests:
    spec: OpSpec

    def _compare(self, spec, tensors, options, dtype):
        exact = {k: v.detach().double().cpu() if v.is_floating_point() else v.cpu() for k, v in tensors.items()}
        cotangents = cotangents_of(spec.reference(**exact, **options))
        want, want_grads = vjp(spec.reference, exact, options, cotangents)
        got, got_grads = vjp(spec.function, tensors, options, cotangents)
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            if spec.outputs[i] == "states":
                assert torch.equal(a.double().cpu(), b.double())
                continue
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
    def test_half_types(self, backend, variant, dtype):
        case = (self.spec.half_cases or self.spec.cases)[0]
        tensors = self.spec.inputs(case, dtype, backend.device)
        self._compare(self.spec, tensors, variant, dtype)
        for out, kind in zip(self.spec.function(**tensors, **variant), self.spec.outputs, strict=True):
            assert out.dtype == (dtype if kind in ("rows", "states") else torch.float32), (
                "sums are accumulated in float32"
            )

    @needs_gradients
    def test_gradient_of_each_argument_alone(self, kernels, variant):
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64, kernels.device)
        cotangents = cotangents_of(spec.function(**tensors, **variant))
        want, want_grads = vjp(spec.function, tensors, variant, cotangents)
        for name in want_grads:
            got, grads = vjp(spec.function, tensors, variant, cotangents, only=[name])
            assert relative_error(grads[name], want_grads[name]) <= 1e-12, name
            for a, b in zip(got, want, strict=True):
                assert relative_error(a, b) <= 1e-12

    @needs_gradients
    def test_gradient_of_each_output_alone(self, native, variant):
        """An output that the loss does not use has no cotangent."""
        spec = self.spec
        tensors = spec.inputs(spec.cases[0], torch.float64)
        for i in range(len(spec.outputs)):
            pick = lambda f, i=i: lambda **t: (f(**t)[i],)  # noqa: E731
            cotangents = cotangents_of(pick(spec.function)(**tensors, **variant))
            _, got = vjp(pick(spec.function), tensors, variant, cotangents)
            _, want = vjp(pick(spec.reference), tensors, variant, cotangents)
            for name, g in want.items():
                assert relative_error(got[name], g) <= tolerance(spec.name, torch.float64, gradient=True), (i, name)

    def test_log_det_is_that_of_the_jacobian(self, kernels, variant):
        spec = self.spec
        if "log_det" not in spec.outputs:
            pytest.skip("no log-determinant")
        at, name = spec.outputs.index("log_det"), spec.mapped
        tensors = spec.inputs(spec.cases[0], torch.float64, kernels.device)
        log_det = spec.function(**tensors, **variant)[at]
        out = spec.outputs.index("rows")
        n = tensors[name].shape[0]
        for i in range(n):
            row = {k: v[i : i + 1] if k in spec.rows else v for k, v in tensors.items()}
            jacobian = torch.autograd.functional.jacobian(
                lambda x, row=row: spec.function(**{**row, name: x}, **variant)[out], row[name]
            )
            size = row[name].numel()
            want = torch.linalg.slogdet(jacobian.reshape(size, size))[1]
            assert torch.allclose(log_det[i].sum(), want, atol=1e-9, rtol=1e-9)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    def test_inverse_undoes_the_map(self, kernels, variant, dtype):
        spec = self.spec
        if spec.undo is None:
            pytest.skip("no inverse")
        for case in spec.cases:
            tensors = spec.inputs(case, dtype, kernels.device)
            outputs = spec.function(**tensors, **variant)
            again = spec.undo(tensors, variant, outputs)
            if dtype == torch.float64:
                assert relative_error(again, tensors[spec.mapped]) <= 1e-8, case
            # where the map is flat, rounding y moves x far; but it is mapped to the same y again
            there = spec.function(**{**tensors, spec.mapped: again}, **variant)
            assert relative_error(there[0], outputs[0]) <= (1e-8 if dtype == torch.float64 else 1e-4), case

    def test_extreme_values_stay_finite(self, kernels, variant):
        for name, make in self.spec.extreme.items():
            tensors = {k: v.to(kernels.device, torch.float32) for k, v in make().items()}
            out = self.spec.function(**tensors, **variant)
            outputs, grads = vjp(self.spec.function, tensors, variant, cotangents_of(out))
            for i, o in enumerate(outputs):
                assert o.isfinite().all(), f"{name}: output {i}"
            for k, g in grads.items():
                assert g.isfinite().all(), f"{name}: gradient of {k}"

    @needs_gradients
    def test_nan_stays_in_its_row(self, kernels, variant):
        tensors = self.spec.inputs(self.spec.cases[-1], torch.float32, kernels.device)
        want = self.spec.function(**tensors, **variant)
        poisoned = {k: v.clone() for k, v in tensors.items()}
        poisoned[self.spec.rows[0]][0] = torch.nan
        for i, (a, b) in enumerate(zip(self.spec.function(**poisoned, **variant), want, strict=True)):
            assert torch.equal(a[0], b[0]) if i in self.spec.constant else a[0].isnan().all()
            assert torch.equal(a[1:], b[1:])

    def test_threads_do_not_change_results(self, kernels, variant):
        tensors = self.spec.inputs(self.spec.cases[-1], torch.float32, kernels.device)
        cotangents = cotangents_of(self.spec.function(**tensors, **variant))
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, grads = vjp(self.spec.function, tensors, variant, cotangents)
            results.append([*out, *grads.values()])
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)

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
