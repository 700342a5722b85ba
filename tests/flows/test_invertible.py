"""InvertibleSequential: gradients against those of the layers themselves, memory, drift, and where it runs."""

import copy
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from genfast.flows import (
    AffineCoupling,
    ConvNet,
    Flow,
    InvertibleSequential,
    Permutation,
    Planar,
    ResidualMLP,
    SplineCoupling,
    StandardNormal,
    Transform,
    checkerboard_mask,
    half_mask,
)
from tests.flows.test_flows import shaken
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

F64 = {"dtype": torch.float64}
DIM = 6


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


def couplings(n=32, *, dim=DIM, std=0.05, seed=0, **options):
    torch.manual_seed(seed)
    return [
        shaken(AffineCoupling(half_mask(dim, last=i % 2 == 0), hidden=(16,), **{**F64, **options}), std=std, seed=i)
        for i in range(n)
    ]


def mixed(**options):
    o = {**F64, **options}
    return [
        Planar(DIM, 2, **F64),
        shaken(SplineCoupling(half_mask(DIM), hidden=(8,), **o), std=0.1),
        Permutation("reverse", DIM),
        shaken(AffineCoupling(half_mask(DIM), hidden=(8,), **o), std=0.1),
    ]


def gradients(module, method, x, context=None, **options):
    """Of x, the context and all parameters, of a loss on both results."""
    leaves = [x.requires_grad_(), *([] if context is None else [context.requires_grad_()])]
    leaves += [p for p in module.parameters() if p.requires_grad]
    call = module if method == "forward" else module.inverse
    out, log_det = call(x) if context is None else call(x, context)
    loss = (out * out.detach().cos()).sum() + (log_det * torch.linspace(1, 2, len(log_det), dtype=log_det.dtype)).sum()
    return torch.autograd.grad(loss, leaves, **options)


def same(got, want, **tolerances):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **tolerances)


def data(n=20, dim=DIM):
    return torch.randn(n, dim, **F64, generator=torch.Generator().manual_seed(1))


def pair(layers, **options):
    """The stack, and the same layers in a plain flow."""
    return InvertibleSequential(layers, **options), Flow(StandardNormal(DIM, **F64), layers)


# -- right gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["forward", "inverse"])
@pytest.mark.parametrize("kind", ["couplings", "mixed", "context", "frozen", "one"])
def test_gradients_are_those_of_the_layers(kind, method):
    context = torch.randn(20, 2, **F64) if kind == "context" else None
    layers = {
        "couplings": couplings,
        "mixed": mixed,
        "context": lambda: mixed(context_features=2),
        "frozen": lambda: couplings(8),
        "one": lambda: couplings(1),
    }[kind]()
    if kind == "frozen":
        for layer in layers[::2]:
            layer.requires_grad_(False)
    stack, flow = pair(layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = gradients(stack, method, data(), context)
        want = gradients(flow, method, data(), context)
        same(got, want, rtol=1e-6, atol=1e-8)
        assert stack.drift[method] < 1e-9
        none = [data()[:0], None if context is None else context.detach()[:0]]
        same(gradients(stack, method, *none), gradients(flow, method, *none))
    assert stack.stored == {"forward": set(), "inverse": set()}


@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_the_conditioner_of_a_coupling_is_asked_once_in_the_backward_pass(method):
    """But for the layer that the drift is measured at; and a layer with hooks is called as a whole."""
    layers = couplings(5)
    asked = [0] * 5
    for i, layer in enumerate(layers):
        layer.conditioner.register_forward_hook(lambda *_, i=i: asked.__setitem__(i, asked[i] + 1))
    stack = InvertibleSequential(layers)
    gradients(stack, method, data())
    first = 0 if method == "forward" else 4
    assert asked == [3 if i == first else 2 for i in range(5)]
    called = []
    layers[2].register_forward_hook(lambda *_: called.append(1))
    gradients(stack, "forward", data())
    assert len(called) == 2


def test_x_need_not_require_a_gradient():
    stack, flow = pair(couplings(4))
    stack.inverse(data())[1].sum().backward()
    got = [p.grad.clone() for p in stack.parameters()]
    stack.zero_grad()
    flow.inverse(data())[1].sum().backward()
    same(got, [p.grad for p in flow.parameters()])
    assert stack.inverse(data().requires_grad_())[0].requires_grad
    with torch.no_grad():
        assert not stack(data())[0].requires_grad
    stack.requires_grad_(False)
    assert not stack(data())[0].requires_grad


def test_images_and_leading_dimensions():
    layers = [
        shaken(AffineCoupling(checkerboard_mask((1, 4, 4), odd=i % 2 == 0), hidden=(3,), **F64), std=0.1)
        for i in range(4)
    ]
    stack, flow = InvertibleSequential(layers), Flow(StandardNormal((1, 4, 4), **F64), layers)
    x = torch.randn(3, 1, 4, 4, **F64)
    same(gradients(stack, "inverse", x), gradients(flow, "inverse", x))
    z, log_det = stack(x[None])
    assert (z.shape, log_det.shape) == ((1, 3, 1, 4, 4), (1, 3))
    vectors = InvertibleSequential(couplings(2))
    assert vectors(data(6).view(2, 3, DIM))[1].shape == (2, 3)
    assert vectors(data(1)[0])[1].shape == ()


def test_a_layer_that_stands_twice_gets_both_gradients():
    layer = couplings(1)[0]
    stack, flow = pair([layer, Permutation("reverse", DIM), layer])
    same(gradients(stack, "forward", data()), gradients(flow, "forward", data()))


def test_shared_and_parametrized_weights():
    layers = couplings(4)
    layers[2].conditioner[0].weight = layers[0].conditioner[0].weight
    nn.utils.parametrizations.weight_norm(layers[1].conditioner[0])
    stack, flow = pair(layers)
    same(gradients(stack, "inverse", data()), gradients(flow, "inverse", data()))


def test_hooks_on_parameters_see_each_gradient_once():
    stack, flow = pair(couplings(3))
    weight = stack.transforms[1].conditioner[0].weight
    seen = []
    weight.register_hook(lambda g: seen.append(g) or 2 * g)
    want = 2 * torch.autograd.grad(flow.inverse(data())[1].sum(), weight)[0] / 2
    seen.clear()
    stack.inverse(data())[1].sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(weight.grad, want)


def test_other_parameters_by_functional_call():
    """The backward pass uses the parameters of its forward pass, also where the module has others again by then."""
    stack, flow = pair(couplings(3))
    other = {k: (v + 0.1).detach().requires_grad_() for k, v in stack.named_parameters()}
    got = torch.func.functional_call(stack, other, (data(),))
    want = torch.func.functional_call(flow, other, (data(),))
    same(
        torch.autograd.grad(got[0].sum() + got[1].sum(), list(other.values())),
        torch.autograd.grad(want[0].sum() + want[1].sum(), list(other.values())),
    )


def test_parameters_changed_between_the_passes_are_refused():
    stack, _ = pair(couplings(2))
    out = stack(data())[0].sum()
    with torch.no_grad():
        next(stack.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


# -- derivatives of other kinds ----------------------------------------------------------------------------------------


def test_derivatives_of_second_order():
    stack, flow = pair(couplings(3))
    for method in ("forward", "inverse"):
        x = data(3)
        got, want = (gradients(m, method, x.clone(), create_graph=True) for m in (stack, flow))
        got, want = (
            torch.autograd.grad(sum((g**2).sum() for g in gs), list(stack.parameters()), allow_unused=True)
            for gs in (got, want)
        )
        same(got, want)
    x = data(2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: stack(t), (x,))


def test_transforms_of_torch_func_and_forward_mode():
    stack, flow = pair(couplings(2))
    x = data(3)
    same(torch.func.jacrev(stack)(x), torch.func.jacrev(flow)(x))
    same(torch.func.jacfwd(stack)(x), torch.func.jacfwd(flow)(x))
    same(torch.vmap(stack)(x), flow(x))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangents = [torch.autograd.forward_ad.unpack_dual(m(dual)[0]).tangent for m in (stack, flow)]
    same(tangents[:1], tangents[1:])


def rows(dtype):
    return torch.randn(4, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(dtype)


def small(**o):
    return InvertibleSequential(
        [AffineCoupling(half_mask(DIM, last=i == 0), hidden=(3,), **o) for i in range(2)], tolerance=1e-3
    )


BOTH = ("forward", "inverse")


class TestInvertible(ModuleTests):
    specs = (ModuleSpec("stack", small, rows, BOTH, "stack", smooth=BOTH),)

    @pytest.mark.slow
    def test_compile(self, spec):
        """With a graph break, and right; as one graph where no gradient is wanted."""
        torch._dynamo.reset()
        stack = spec.make()
        flow = Flow(StandardNormal(DIM, **F64), stack.transforms)
        compiled = torch.compile(stack, backend="aot_eager")
        got, want = gradients(compiled, "forward", data()), gradients(flow, "forward", data())
        same(got, want)
        assert saved_bytes(compiled, data()) < 0.5 * saved_bytes(flow, data())
        with torch.no_grad():
            torch._dynamo.reset()
            same(torch.compile(stack, fullgraph=True, backend="aot_eager")(data()), flow(data()))
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(stack, fullgraph=True, backend="aot_eager")(data())
        torch._dynamo.reset()


# -- memory ------------------------------------------------------------------------------------------------------------


def saved_bytes(module, x):
    """Of what a forward pass keeps for the backward one, but for parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    return sum(s.nbytes() for p, s in kept.items() if p not in own)


def test_memory_is_that_of_a_tenth_and_does_not_grow_with_depth():
    layers = couplings(32)
    stack, flow = pair(layers)
    x = data(64)
    assert saved_bytes(stack, x) <= 0.1 * saved_bytes(flow, x)
    assert saved_bytes(stack, x) == saved_bytes(InvertibleSequential(layers[:2]), x)
    assert saved_bytes(stack, x) <= 2 * 64 * DIM * 8 + 64 * 8


# -- drift -------------------------------------------------------------------------------------------------------------


class Lossy(Transform):
    """x + t with a large t: float32 rounds x away, and the inverse returns something else."""

    def __init__(self, t):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(float(t)))
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, z, context=None):
        return self.w * z + self.t, z.new_zeros(z.shape[:-1]) + z.shape[-1] * self.w.abs().log()

    def inverse(self, x, context=None):
        return (x - self.t) / self.w, x.new_zeros(x.shape[:-1]) - x.shape[-1] * self.w.abs().log()


@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_where_the_inverse_drifts_the_gradient_is_right_and_the_input_is_stored(method):
    layers = couplings(6, dtype=torch.float32)
    layers[3:3] = [Lossy(3e5), Lossy(-3e5)]
    stack, flow = pair(layers)
    x = data().float()
    with pytest.warns(
        UserWarning, match=r"layer \d \(Lossy\), rebuilt by inversion, is off by .* tolerance 0.00035"
    ) as seen:
        got = gradients(stack, method, x.clone())
    assert len(seen) == 1
    same(got, gradients(flow, method, x.clone()), rtol=0, atol=0)
    assert stack.drift[method] > 3.5e-4
    assert stack.stored[method]
    assert len(stack.stored[method]) <= 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = gradients(stack, method, x.clone())
    assert stack.drift[method] < 3.5e-4
    same(again, gradients(flow, method, x.clone()), rtol=1e-4, atol=1e-4)
    assert copy.deepcopy(stack).stored == stack.stored


def test_drift_that_begins_later_is_seen_in_that_step():
    layers = couplings(4, dtype=torch.float32)
    layers[2:2] = [Lossy(0.0), Lossy(0.0)]
    stack, flow = pair(layers)
    gradients(stack, "forward", data().float())
    assert not stack.stored["forward"]
    with torch.no_grad():
        layers[2].t.fill_(3e5)
        layers[3].t.fill_(-3e5)
    with pytest.warns(UserWarning, match="off by"):
        got = gradients(stack, "forward", data().float())
    same(got, gradients(flow, "forward", data().float()), rtol=0, atol=0)


def test_a_wrong_inverse_is_seen():
    class Wrong(Lossy):
        def inverse(self, x, context=None):
            return x * 1.01, x.new_zeros(x.shape[:-1])

    stack, flow = pair([*couplings(2), Wrong(1.0).double(), *couplings(2, seed=1)])
    with pytest.warns(UserWarning, match=r"layer 2 \(Wrong\)"):
        got = gradients(stack, "forward", data())
    same(got, gradients(flow, "forward", data()))
    assert stack.stored["forward"] == {2}


def test_an_inverse_without_numbers_is_seen():
    class NoInverse(Lossy):
        def inverse(self, x, context=None):
            return x * math.nan, x.new_zeros(x.shape[:-1])

    stack, flow = pair([NoInverse(1.0).double(), *couplings(2, seed=1)])
    with pytest.warns(UserWarning, match=r"layer 0 \(NoInverse\)"):
        same(gradients(stack, "forward", data()), gradients(flow, "forward", data()))


def test_the_tolerance_may_be_none_at_all():
    layers = couplings(6, dtype=torch.float32)
    layers[3:3] = [Lossy(3e5), Lossy(-3e5)]
    stack, _ = pair(layers, tolerance=math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(stack, "forward", data().float())
    assert stack.drift == {}
    assert not stack.stored["forward"]


# -- random numbers, buffers, autocast ---------------------------------------------------------------------------------


def with_dropout(n=4):
    torch.manual_seed(0)
    return [
        shaken(
            AffineCoupling(half_mask(DIM, last=i % 2 == 0), ResidualMLP(DIM // 2, 8, DIM, dropout=0.5, **F64)), std=0.1
        )
        for i in range(n)
    ]


def test_dropout_is_drawn_again_as_it_was():
    stack, flow = pair(with_dropout())
    for _ in range(3):  # the first call finds out that the layers draw
        state = torch.get_rng_state()
        got = gradients(stack, "inverse", data())
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        same(got, gradients(flow, "inverse", data()))
        assert torch.equal(torch.get_rng_state(), after), "the backward pass leaves no trace"
        assert not torch.equal(state, after)
    assert not stack.stored["inverse"]
    assert saved_bytes(stack, data()) < 0.5 * saved_bytes(flow, data())


def test_dropout_in_derivatives_of_second_order():
    stack, flow = pair(with_dropout(2))
    state = torch.get_rng_state()
    results = []
    for module in (stack, flow):
        torch.set_rng_state(state)
        first = gradients(module, "forward", data(3), create_graph=True)
        results.append(torch.autograd.grad(sum((g**2).sum() for g in first), list(stack.parameters())))
    same(*results)


class Batch(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(DIM // 2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, DIM)).double()

    def forward(self, x):
        return self.net(x)


def test_batch_normalisation_is_refused_while_training():
    stack, flow = pair([AffineCoupling(half_mask(DIM), Batch())])
    loss = stack(data())[0].sum()
    with pytest.raises(RuntimeError, match="a layer changes its buffers in each call, as batch normalisation"):
        loss.backward()
    stack.eval()
    same(gradients(stack, "forward", data()), gradients(flow, "forward", data()))


class FirstCall(Lossy):
    """A scale that the first data set, as that of ActNorm."""

    def __init__(self):
        super().__init__(0.0)
        self.register_buffer("started", torch.tensor(False))

    def forward(self, z, context=None):
        if not self.started:
            with torch.no_grad():
                self.w.copy_(1 / z.std())
                self.started.fill_(True)
        return super().forward(z)


def test_a_layer_may_set_itself_up_in_its_first_call():
    torch.manual_seed(0)
    stack, flow = pair([FirstCall().double(), *couplings(2)])
    _, log_det = stack(3 * data())
    assert stack.transforms[0].started
    got = torch.autograd.grad(log_det.sum(), list(stack.parameters()))
    same(got, torch.autograd.grad(flow(3 * data())[1].sum(), list(stack.parameters())))


@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_autocast(method):
    """Against the layers under the same autocast; the weights' gradients, which its cache might drop, are there."""
    stack, flow = pair(couplings(6, dtype=torch.float32), tolerance=0.5)
    x = data().float()
    results = []
    for module in (stack, flow):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            call = module if method == "forward" else module.inverse
            a, first = call(x)
            b, second = call(x + 1)  # the second call of the same weights
            loss = (a**2).mean() + (b**2).mean() + first.mean() + second.mean()
        results.append(torch.autograd.grad(loss, list(stack.parameters())))
    for got, want in zip(*results, strict=True):
        scale = float(want.abs().max()) + 1e-3
        assert float((got - want).abs().max()) < 0.05 * scale
    with torch.autocast("cpu", dtype=torch.bfloat16):
        default = InvertibleSequential(stack.transforms)
        out = default(x)[0].sum()
    out.backward()
    assert default.drift["forward"] < 0.02 or default.stored["forward"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype):
    layers = [layer.to(dtype) for layer in couplings(4, dtype=torch.float32)]
    stack, flow = pair(layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = gradients(stack, "forward", data().to(dtype))
    for a, b in zip(got, gradients(flow, "forward", data().to(dtype)), strict=True):
        assert a.dtype == b.dtype == dtype
        assert float((a - b).abs().max()) <= 0.1 * (float(b.abs().max()) + 1)


# -- processes ---------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from tests.flows.test_invertible import couplings, data, DIM, F64
from genfast.flows import Flow, InvertibleSequential, StandardNormal
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)


class Loss(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return -self.flow.log_prob(x).mean()


layers = couplings(4)
x = data(20)
parameters = [p for layer in layers for p in layer.parameters()]
want = torch.autograd.grad(Loss(Flow(StandardNormal(DIM, **F64), layers))(x), parameters)
flow = Flow(StandardNormal(DIM, **F64), [InvertibleSequential(layers)])
wrapped = torch.nn.parallel.DistributedDataParallel(Loss(flow))
for _ in range(2):
    flow.zero_grad()
    wrapped(x[rank * 10 : rank * 10 + 10]).backward()
for p, g in zip(parameters, want, strict=True):
    torch.testing.assert_close(p.grad, g)
dist.destroy_process_group()
print("right")
"""


def test_two_processes(tmp_path):
    root = str(Path(__file__).parents[2])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "meeting"), root],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in started:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert out.endswith("right\n")


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"transforms\[0\]: got Linear, want a module with forward and inverse"):
        InvertibleSequential([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="tolerance: got -1, want a number from 0 to inf"):
        InvertibleSequential([], tolerance=-1)
    with pytest.raises(ValueError, match=r"transforms\[1\]: takes events of 3 dimensions"):
        InvertibleSequential([Planar(2), AffineCoupling(half_mask(2), ConvNet(1, (2,), 2), event_dim=3)])
    stack = InvertibleSequential(couplings(2))
    with pytest.raises(ValueError, match=r"z: got shape \[3, 2\], want \[\.\.\., 6\]"):
        stack(torch.zeros(3, 2, **F64))
    with pytest.raises(ValueError, match="context: got a context, want None"):
        stack(data(), data())
    with pytest.raises(ValueError, match="z: got a scalar"):
        stack(torch.zeros(()))
    conditional = InvertibleSequential(couplings(2, context_features=3))
    with pytest.raises(ValueError, match=r"context: got None, want \[\.\.\., 3\]"):
        conditional(data())
    x, _ = InvertibleSequential([])(data())
    assert torch.equal(x, data())
