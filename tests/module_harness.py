"""Every property that all modules share, run from one description of a module's configuration.

A test module gets all of them by a class with `specs`, a list of ModuleSpec:

    class TestFlows(ModuleTests):
        specs = [ModuleSpec("planar", lambda **o: Planar(4, 2, **o), calls=("forward", "inverse"), data=rows), ...]
"""

import copy
import dataclasses
import io
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize

import genfast

HALF = (torch.float16, torch.bfloat16)

# by name: the same in reverse mode
TRANSFORMS = {
    "jacrev": "jacrev",
    "jacfwd": "jacrev",
    "jvp": "jacrev along ones",
    "jvp of jvp": "jacrev of jacrev along ones",
    "vjp": "vjp",
    "hessian": "jacrev of grad",
    "jacfwd of jacfwd": "jacrev of grad",
    "jacrev of jacfwd": "jacrev of grad",
    "jacrev of grad": "jacrev of grad",
}


@dataclasses.dataclass
class ModuleSpec:
    """One configuration of a module.

    Attributes:
        name: of the configuration.
        build: makes it; takes dtype and device.
        calls: the methods whose results are compared, by name, or functions of (module, x).
        data: (dtype) -> x, what a call takes.
        family: configurations whose state dicts are loaded into each other; those of the same value share shapes.
        smooth: the calls that are differentiable in the parameters and in x.
        in_x: whether x has derivatives too.
        half: whether the module works in half types.
        traced: the calls that are compiled and exported; all, where not given.
        resets: whether `reset_parameters` knows the initial values of a module that was made on the meta device.
    """

    name: str
    build: Callable[..., nn.Module]
    data: Callable[[torch.dtype], Tensor]
    calls: Sequence[str]
    family: str
    smooth: Sequence[str] = ()
    in_x: bool = True
    half: bool = True
    traced: Sequence[str] | None = None
    resets: bool = True

    def make(self, dtype: torch.dtype = torch.float64, *, seed: int = 0, shake: float = 0.3) -> nn.Module:
        torch.manual_seed(seed)
        module = self.build(dtype=dtype)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(shake * torch.randn(p.shape, dtype=p.dtype))
        return module


class Call(nn.Module):
    """A method of a module as a module of its own, so that everything that takes a module takes it."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *args: Tensor) -> Any:
        return call(self.module, self.method, *args)


def call(module: nn.Module, method: str, x: Tensor) -> tuple[Tensor, ...]:
    """The results of a method as a tuple; "gibbs" with a fixed seed, "contrastive_loss" against fixed states."""
    if method == "log_partition":
        out = module.log_partition()
    elif method == "contrastive_loss":
        out = module.contrastive_loss(x, x.detach().amin() + x.detach().amax() - x.detach())
    elif method == "gibbs":
        out = module.gibbs(x, 3, seed=7)
    elif method == "energy" and hasattr(module, "hidden_probs"):
        out = module.energy(x, module.hidden_probs(x))
    else:
        out = getattr(module, method)(x)
    return out if isinstance(out, tuple) else (out,)


def results(module: nn.Module, spec: ModuleSpec, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [t for method in spec.calls for t in call(module, method, x)]


def same(got: Sequence[Tensor], want: Sequence[Tensor], **tolerances: float) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **tolerances)


def tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from itertools.chain(module.parameters(), module.buffers())


def smooth_methods(spec: ModuleSpec) -> Sequence[str]:
    return [m for m in spec.calls if m in spec.smooth]


class ModuleTests:
    """The shared properties; a subclass sets `specs`."""

    specs: Sequence[ModuleSpec]

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
    def test_a_copy_does_the_same_and_shares_nothing(self, spec, how):
        module, x = spec.make(), spec.data(torch.float64)
        want = results(module, spec, x)  # before: what a call leaves in the module is copied too
        if how == "deepcopy":
            other = copy.deepcopy(module)
        elif how == "pickle":
            other = pickle.loads(pickle.dumps(module))
        else:
            file = io.BytesIO()
            torch.save(module, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        same(results(other, spec, x), want, rtol=0, atol=0)
        own = {t.untyped_storage().data_ptr() for t in tensors(module) if t.numel()}
        assert not own & {t.untyped_storage().data_ptr() for t in tensors(other) if t.numel()}
        with torch.no_grad():
            for t in other.parameters():
                t.add_(1)
        same(results(module, spec, x), want, rtol=0, atol=0)

    @pytest.mark.parametrize("assign", [False, True])
    def test_state_dict_round_trip(self, spec, assign):
        module, other, x = spec.make(), spec.make(seed=1, shake=1.0), spec.data(torch.float64)
        want = results(module, spec, x)
        results(other, spec, x)
        file = io.BytesIO()
        state = module.state_dict()
        assert all(isinstance(t, Tensor) for t in state.values()), "what saves tensors only can save it"
        torch.save(state, file)
        file.seek(0)
        missing = other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
        assert not missing.missing_keys
        assert not missing.unexpected_keys
        same(results(other, spec, x), want, rtol=0, atol=0)

    def test_state_dict_survives_arithmetic(self, spec):
        """Averaging and casting a state dict, as weight averaging does, leaves what it says about the module."""
        module, x = spec.make(), spec.data(torch.float64)
        want = results(module, spec, x)
        state = {k: ((v + v) / 2).to(v.dtype) for k, v in module.state_dict().items()}
        module.load_state_dict(state)
        same(results(module, spec, x), want)
        module.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in state.items()})
        same(results(module, spec, x), want, rtol=0.05, atol=0.1)

    def test_loading_the_state_of_another_configuration(self, spec):
        """Afterwards the module computes what the donor does, or it refused and is what it was."""
        for donor_spec in self.specs:
            if donor_spec.family != spec.family or donor_spec is spec:
                continue
            donor, module, x = donor_spec.make(seed=3), spec.make(), spec.data(torch.float64)
            before, want = results(module, spec, x), results(donor, spec, x)
            state = copy.deepcopy(module.state_dict())
            try:
                module.load_state_dict(donor.state_dict())
            except RuntimeError:
                same(results(module, spec, x), before, rtol=0, atol=0)
                after = module.state_dict()
                assert after.keys() == state.keys()
                assert all(torch.equal(after[k], state[k]) for k in state)
            else:
                same(results(module, spec, x), want, rtol=0, atol=0)

    @pytest.mark.parametrize("how", ["context", "argument"])
    def test_meta_and_deferred_initialisation(self, spec, how):
        module, x = spec.make(), spec.data(torch.float64)
        want = results(module, spec, x)
        if how == "context":
            with torch.device("meta"):
                deferred = spec.build(dtype=torch.float64)
        else:
            deferred = spec.build(dtype=torch.float64, device="meta")
        assert all(t.is_meta for t in tensors(deferred))
        for a, b in zip(results(deferred, spec, x.to("meta")), want, strict=True):
            assert a.is_meta
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        deferred.to_empty(device="cpu")
        with torch.no_grad():
            for p in deferred.parameters():
                p.fill_(torch.nan)
        other = copy.deepcopy(deferred)
        deferred.load_state_dict(module.state_dict())
        same(results(deferred, spec, x), want, rtol=0, atol=0)
        if not spec.resets:
            with pytest.raises(RuntimeError, match="was made on the meta device"):
                other.reset_parameters()
            other = copy.deepcopy(module)
            other.to_empty(device="cpu")
            with torch.no_grad():
                for t in tensors(other):
                    t.fill_(torch.nan)
        other.reset_parameters()
        for t in itertools.chain(results(other, spec, x), other.parameters()):
            assert t.isfinite().all()
        torch.manual_seed(0)
        fresh = spec.build(dtype=torch.float64)
        torch.manual_seed(0)
        again = spec.build(dtype=torch.float64)
        torch.manual_seed(0)
        again.reset_parameters()
        torch.manual_seed(0)
        fresh.reset_parameters()
        same(list(again.parameters()), list(fresh.parameters()), rtol=0, atol=0)
        module.to("meta")
        assert all(t.is_meta for t in tensors(module))

    def test_fake_tensors(self, spec):
        want = results(spec.make(), spec, spec.data(torch.float64))
        with FakeTensorMode():
            module = spec.build(dtype=torch.float64)
            got = results(module, spec, spec.data(torch.float64))
        for a, b in zip(got, want, strict=True):
            assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        with FakeTensorMode(allow_non_fake_inputs=True):
            results(spec.make(), spec, spec.data(torch.float64))

    def test_double(self, spec):
        x = spec.data(torch.float64)
        single = spec.make(torch.float32)
        low = results(single, spec, x.float())
        high = results(single.double(), spec, x)
        assert all(t.dtype == torch.float64 for t in single.parameters())
        for a, b in zip(low, high, strict=True):
            assert b.dtype == torch.float64
            torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_half_types(self, spec, dtype):
        if not spec.half:
            pytest.skip("torch's own layers in it have no half kernels here")
        module, x = spec.make(torch.float32).to(dtype), spec.data(torch.float32).to(dtype)
        low = results(module, spec, x)
        high = results(module.float(), spec, x.float())
        for a, b in zip(low, high, strict=True):
            assert a.isfinite().all()
            scale = float(b.abs().max()) + 1
            assert float((a.float() - b.float()).abs().max()) <= (0.02 if dtype == torch.float16 else 0.15) * scale

    def test_autocast_with_the_backward_outside(self, spec):
        for method in smooth_methods(spec):
            module, x = spec.make(torch.float32), spec.data(torch.float32)
            if spec.in_x:
                x.requires_grad_()
            wanted = [*module.parameters(), *([x] if spec.in_x else [])]
            want = torch.autograd.grad(sum(t.sum() for t in call(module, method, x)), wanted, allow_unused=True)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = sum(t.float().sum() for t in call(module, method, x))
            got = torch.autograd.grad(loss, wanted, allow_unused=True)
            for a, b in zip(got, want, strict=True):
                assert (a is None) == (b is None), method
                if a is not None and b is not None:
                    assert a.dtype == b.dtype
                    assert float((a - b).abs().max()) <= 0.1 * (float(b.abs().max()) + 1), method

    def test_leading_dimensions_and_no_rows(self, spec):
        module, x = spec.make(), spec.data(torch.float64)
        for method in spec.calls:
            with torch.no_grad():
                want = call(module, method, x)
                if method in ("gibbs", "contrastive_loss", "log_partition"):
                    continue
                deep, empty = call(module, method, x[None, :, None]), call(module, method, x[:0])
            for a, b, c in zip(deep, want, empty, strict=True):
                torch.testing.assert_close(a, b[None, :, None], rtol=1e-9, atol=1e-9)
                assert c.shape == (0, *b.shape[1:])
                assert c.dtype == b.dtype

    def test_complex_input_is_refused(self, spec):
        module, x = spec.make(), spec.data(torch.float64).to(torch.complex128)
        for method in spec.calls:
            if method not in ("log_partition", "energy", "contrastive_loss"):
                with pytest.raises(TypeError, match=r"[svxz]: got torch\.complex128"):
                    call(module, method, x)

    @pytest.mark.parametrize("transform", TRANSFORMS)
    def test_transforms_of_the_live_module(self, spec, transform):
        """In x and in the parameters, while all parameters require gradients; against reverse mode in plain PyTorch."""
        module, x = spec.make(), spec.data(torch.float64)[:2]
        parameters = dict(module.named_parameters())
        for method in smooth_methods(spec):
            function = Call(module, method)

            def of_x(x, function=function):
                return function(x)

            def of_parameters(p, function=function):
                return torch.func.functional_call(function, {f"module.{k}": v for k, v in p.items()}, (x,))

            for f, at in ((of_x, x), (of_parameters, parameters)):
                if (f is of_x and not spec.in_x) or not (isinstance(at, Tensor) or at):
                    continue
                got = _transformed(transform, f, at)
                with genfast.backend("reference"):
                    want = _transformed(TRANSFORMS[transform], f, at)
                torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, msg=lambda m, n=method: f"{n}: {m}")

    def test_gradients_against_finite_differences(self, spec):
        module, x = spec.make(), spec.data(torch.float64)[:2]
        names = [n for n, p in module.named_parameters() if p.numel() <= 40]
        leaves = [module.get_parameter(n).detach().clone().requires_grad_() for n in names]
        for method in smooth_methods(spec):
            function = Call(module, method)

            def f(*values, function=function):
                return torch.func.functional_call(
                    function, {f"module.{n}": v for n, v in zip(names, values, strict=True)}, (x,)
                )

            if leaves:
                assert torch.autograd.gradcheck(f, leaves), method
            if spec.in_x:
                assert torch.autograd.gradcheck(function, (x.clone().requires_grad_(),)), method

    def test_vmap_over_stacked_modules(self, spec):
        """An ensemble: the states of all configurations of the family that this one loads, stacked."""
        modules = [spec.make(seed=s) for s in range(2)]
        for other in self.specs:
            if other.family == spec.family and other is not spec:
                try:
                    spec.make().load_state_dict(other.make(seed=5).state_dict())
                except RuntimeError:
                    continue
                modules.append(other.make(seed=5))
        x = spec.data(torch.float64)
        parameters, buffers = torch.func.stack_module_state(modules)
        for method in spec.calls:
            if method == "gibbs":
                continue
            function = Call(spec.make(seed=9), method)

            def one(p, b, function=function):
                state = {f"module.{k}": v for k, v in {**p, **b}.items()}
                return torch.func.functional_call(function, state, (x,))

            with torch.no_grad():
                got = torch.vmap(one)(parameters, buffers)
                for i, module in enumerate(modules):
                    same([t[i] for t in got], call(module, method, x), rtol=1e-9, atol=1e-9)
                same(function(x), call(spec.make(seed=9), method, x), rtol=0, atol=0)

    def test_parametrized_weights_are_followed(self, spec):
        """weight_norm, and a parametrization whose original moves: nothing is kept of the old weight."""
        module, x = spec.make(), spec.data(torch.float64)
        want = results(module, spec, x)
        for part in list(module.modules()):
            for name, p in list(part.named_parameters(recurse=False)):
                if p.ndim == 2:
                    parametrizations.weight_norm(part, name)
        same(results(module, spec, x), want)
        for part in module.modules():
            if parametrize.is_parametrized(part):
                for chain in part.parametrizations.values():
                    with torch.no_grad():
                        chain.original0.mul_(1.5)
        got = results(module, spec, x)
        for part in list(module.modules()):
            if parametrize.is_parametrized(part):
                for name in list(part.parametrizations):
                    parametrize.remove_parametrizations(part, name)
        same(got, results(module, spec, x))

    def test_replaced_parameters_are_followed(self, spec):
        module, donor, x = spec.make(), spec.make(seed=1), spec.data(torch.float64)
        results(module, spec, x)
        for name, p in donor.named_parameters():
            parent = module.get_submodule(name.rpartition(".")[0])
            parent.register_parameter(name.rpartition(".")[2], nn.Parameter(p.detach().clone()))
        for name, b in donor.named_buffers():
            module.get_buffer(name).copy_(b)
        same(results(module, spec, x), results(donor, spec, x), rtol=0, atol=0)

    def test_export(self, spec):
        module, x = spec.make(), spec.data(torch.float64)
        for method in spec.traced or spec.calls:
            want = call(module, method, x)
            program = torch.export.export(Call(module, method), (x,), strict=False)
            same(program.module()(x), want, rtol=1e-9, atol=1e-9)

    def test_gradients_of_the_exported_module(self, spec):
        """An exported program that is fine-tuned gets the module's gradients, and not none."""
        module, x = spec.make(), spec.data(torch.float64)
        for method in smooth_methods(spec):
            program = torch.export.export(Call(module, method), (x,), strict=False).module()
            names = [n for n, _ in module.named_parameters()]
            parameters = [program.get_parameter(f"module.{n}") for n in names]
            if not names or method not in (spec.traced or spec.calls):
                continue
            got = torch.autograd.grad(sum(t.sum() for t in program(x)), parameters, allow_unused=True)
            loss = sum(t.sum() for t in call(module, method, x))
            want = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
            for name, a, b in zip(names, got, want, strict=True):
                assert (a is None) == (b is None), f"{method}: {name}"
                if a is not None:
                    torch.testing.assert_close(a, b)

    @pytest.mark.slow
    def test_compile(self, spec):
        """One graph; a state that is loaded afterwards is seen."""
        x = spec.data(torch.float64)
        for method in spec.traced or spec.calls:
            torch._dynamo.reset()
            module = spec.make()
            compiled = torch.compile(Call(module, method), fullgraph=True, backend="aot_eager")
            same(compiled(x), call(module, method, x), rtol=1e-9, atol=1e-9)
            for other in self.specs:
                if other.family == spec.family and other is not spec:
                    donor = other.make(seed=5)
                    try:
                        module.load_state_dict(donor.state_dict())
                    except RuntimeError:
                        continue
                    same(compiled(x), call(donor, method, x), rtol=1e-9, atol=1e-9)
        torch._dynamo.reset()


def _transformed(transform: str, f: Callable[..., Any], at: Any) -> Any:
    ones = torch.ones_like(at) if isinstance(at, Tensor) else {k: torch.ones_like(v) for k, v in at.items()}
    total = lambda v: sum((t * (i + 1)).sum() for i, t in enumerate(f(v)))  # noqa: E731
    tangent = lambda v: torch.func.jvp(f, (v,), (ones,))[1]  # noqa: E731
    moved = lambda s: at + s if isinstance(at, Tensor) else {k: v + s for k, v in at.items()}  # noqa: E731
    along, zero = (lambda s: f(moved(s))), torch.zeros((), dtype=torch.float64)
    if transform == "jacrev":
        return torch.func.jacrev(f)(at)
    if transform == "jacfwd":
        return torch.func.jacfwd(f)(at)
    if transform == "jvp":
        return tangent(at)
    if transform == "jacrev along ones":
        return torch.func.jacrev(along)(zero)
    if transform == "jvp of jvp":
        return torch.func.jvp(tangent, (at,), (ones,))[1]
    if transform == "jacrev of jacrev along ones":
        return torch.func.jacrev(torch.func.jacrev(along))(zero)
    if transform == "vjp":
        out, pull = torch.func.vjp(f, at)
        return pull(tuple(torch.ones_like(t) for t in out))
    if transform == "hessian":
        return torch.func.hessian(total)(at)
    if transform == "jacfwd of jacfwd":
        return torch.func.jacfwd(torch.func.jacfwd(total))(at)
    if transform == "jacrev of jacfwd":
        return torch.func.jacrev(torch.func.jacfwd(total))(at)
    assert transform == "jacrev of grad"
    return torch.func.jacrev(torch.func.grad(total))(at)


def parametrize_modules(metafunc: pytest.Metafunc) -> None:
    """Give the tests of a ModuleTests class its specs."""
    specs = getattr(metafunc.cls, "specs", None)
    if specs and "spec" in metafunc.fixturenames:
        metafunc.parametrize("spec", specs, ids=[s.name for s in specs])
