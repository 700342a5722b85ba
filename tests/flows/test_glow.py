"""Glow and its layers: ActNorm, 1x1 convolutions, LU layers, squeezing and splitting."""

import copy
import importlib.util
import multiprocessing
import re
import warnings

import pytest
import torch
from torch import nn

from genfast.flows import (
    ActNorm,
    ActNormConv1x1,
    AffineCoupling,
    ConvNet,
    Flow,
    Glow,
    InvertibleConv1x1,
    LULinear,
    Permutation,
    Split,
    Squeeze,
    StandardNormal,
    Unflatten,
    half_mask,
)
from tests.flows.test_flows import shaken
from tests.harness import relative_error
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

BOTH = ("forward", "inverse")


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


def images(dtype, shape=(3, 4, 2, 2)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def ready(module):
    """Told that its scales are set."""
    for part in module.modules():
        if isinstance(part, ActNorm | ActNormConv1x1):
            part.mark_initialized()
    return module


def spec(name, family, build, data=images, calls=BOTH, **options):
    return ModuleSpec(name, lambda **o: ready(build(**o)), data, calls, family, smooth=calls, **options)


def two_scales(**options):
    inner = [Unflatten((2, 1, 1)), ActNorm(2, **options)]
    return Flow(StandardNormal(4, **options), [Split((4, 1, 1), inner), ActNormConv1x1(4, **options), Squeeze()])


class TestLayers(ModuleTests):
    specs = (
        spec("actnorm", "actnorm", lambda **o: ActNorm(4, **o)),
        spec("actnorm of vectors", "actnorm of vectors", lambda **o: ActNorm(4, event_dim=1, **o),
             lambda dtype: images(dtype, (3, 4))),
        spec("convolution", "convolution", lambda **o: InvertibleConv1x1(4, **o)),
        spec("both", "both", lambda **o: ActNormConv1x1(4, **o)),
        spec("two scales", "two scales", two_scales, lambda dtype: images(dtype, (3, 1, 2, 2)), calls=("log_prob",)),
        spec("lu", "lu", lambda **o: LULinear(4, identity_init=False, **o), lambda dtype: images(dtype, (3, 4))),
    )  # fmt: skip


def layers():
    torch.manual_seed(0)
    f64 = {"dtype": torch.float64}
    return {
        "actnorm": (ActNorm(4, **f64), (4, 2, 3)),
        "actnorm of vectors": (ActNorm(5, event_dim=1, **f64), (5,)),
        "convolution": (InvertibleConv1x1(4, **f64), (4, 2, 3)),
        "both": (ActNormConv1x1(4, **f64), (4, 2, 3)),
        "lu": (LULinear(5, **f64), (5,)),
        "lu at random": (LULinear(5, identity_init=False, **f64), (5,)),
        "squeeze": (Squeeze(), (4, 2, 3)),
        "squeeze by three": (Squeeze(3), (9, 1, 2)),
        "unflatten": (Unflatten((2, 2, 3)), (12,)),
        "permutation of channels": (Permutation([2, 0, 1], event_dim=3), (3, 1, 2)),
        "split": (Split((4, 2, 2), [Unflatten((2, 2, 2)), ActNormConv1x1(2, **f64)]), (16,)),
        "channel coupling, channels last": (Flow(StandardNormal((4, 2, 2), **f64), [
            AffineCoupling(half_mask(4), event_dim=3, hidden=(3,), **f64), Squeeze()]), (4, 2, 2)),
        "glow": (Glow((2, 4, 4), 2, 2, 4, **f64), (32,)),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(layers()))
def test_inverse_and_log_det(name):
    """Both ways undo each other, and log|det| is that of the Jacobian."""
    layer, shape = layers()[name]
    layer = shaken(ready(layer), std=0.2)
    z = torch.randn(3, *shape, dtype=torch.float64)
    x, log_det = layer.forward(z)
    back, log_det_back = layer.inverse(x)
    assert torch.allclose(back, z, atol=1e-9)
    assert torch.allclose(log_det, -log_det_back)
    assert log_det.shape == (3,)
    for i in range(3):
        for f, at, want in ((layer.forward, z, log_det), (layer.inverse, x, log_det_back)):
            jacobian = torch.autograd.functional.jacobian(lambda t, f=f: f(t[None])[0].flatten(), at[i])
            size = at[i].numel()
            assert torch.allclose(torch.linalg.slogdet(jacobian.reshape(size, size))[1], want[i], atol=1e-8)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("kind", ["actnorm", "vectors", "both"])
def test_first_training_batch_sets_the_scales(kind, inverse):
    layer = {
        "actnorm": lambda: ActNorm(3), "vectors": lambda: ActNorm(3, event_dim=1), "both": lambda: ActNormConv1x1(3)
    }[kind]()  # fmt: skip
    shape = (64, 3) if kind == "vectors" else (64, 3, 4, 5)
    x = 5 + 3 * torch.randn(shape)
    out, log_det = (layer.inverse if inverse else layer.forward)(x)
    if kind == "both" and inverse:  # before W
        out = torch.nn.functional.conv2d(out, torch.linalg.inv(layer.weight)[:, :, None, None])
    over = [0] if kind == "vectors" else [0, 2, 3]
    assert out.mean(over).abs().max() < 1e-4
    assert (out.std(over, unbiased=False) - 1).abs().max() < 1e-4
    assert layer.initialized
    assert log_det.isfinite().all()
    before = copy.deepcopy(layer.state_dict())
    (layer.inverse if inverse else layer.forward)(10 * x)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    other = type(layer)(3) if kind != "vectors" else ActNorm(3, event_dim=1)
    other.load_state_dict(layer.state_dict())
    other.inverse(x + 100)
    assert torch.equal(other.bias, layer.bias)
    other.reset_parameters()
    assert not other.initialized
    assert not other.bias.any()


def test_a_constant_channel_and_no_rows_do_no_harm():
    layer = ActNorm(2)
    layer.inverse(torch.zeros(0, 2, 4, 4))
    assert not layer.initialized
    z, _ = layer.inverse(torch.ones(4, 2, 4, 4))
    assert z.isfinite().all()
    assert layer.log_scale.isfinite().all()


def test_an_uninitialised_layer_in_evaluation_mode_says_so():
    layer, x = ActNorm(2).eval(), torch.randn(4, 2, 3, 3)
    with pytest.warns(UserWarning, match="ActNorm: no batch of training data has set its scales yet, so they are 1"):
        z, log_det = layer.inverse(x)
    assert torch.equal(z, x)
    assert not log_det.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.inverse(x)
    assert not layer.initialized


def test_an_uninitialised_layer_is_not_compiled_for_training():
    compiled = torch.compile(ActNorm(2).inverse, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="show it a batch of training data, which sets its scales, before it is comp"):
        compiled(torch.randn(4, 2, 3, 3))
    torch._dynamo.reset()


def _one_process(rank, x, port, results):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    layer = ActNorm(2)
    layer.inverse(x[rank::2])
    results.put((rank, layer.log_scale.tolist(), layer.bias.tolist()))
    torch.distributed.destroy_process_group()


def test_all_processes_start_from_the_same_scales():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    x = torch.randn(8, 2, 3, 3)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_one_process, args=(r, x, port, results)) for r in range(2)]
    for p in processes:
        p.start()
    found = [results.get(timeout=120) for _ in processes]
    for p in processes:
        p.join()
    alone = ActNorm(2)
    alone.inverse(x)
    for _, log_scale, bias in found:
        torch.testing.assert_close(torch.tensor(log_scale), alone.log_scale.detach())
        torch.testing.assert_close(torch.tensor(bias), alone.bias.detach())


def test_weight_starts_as_a_rotation():
    layer = InvertibleConv1x1(6, dtype=torch.float64)
    w = layer.weight
    assert torch.allclose(w @ w.T, torch.eye(6, dtype=torch.float64))
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    assert torch.allclose(layer.inverse(x)[0], nn.functional.conv2d(x, w[:, :, None, None]))
    assert torch.allclose(layer.inverse(x)[1], torch.zeros((), dtype=torch.float64), atol=1e-12)


def test_both_is_one_after_the_other():
    both = shaken(ready(ActNormConv1x1(4, dtype=torch.float64)))
    norm, conv = ready(ActNorm(4, dtype=torch.float64)), InvertibleConv1x1(4, dtype=torch.float64)
    norm.load_state_dict({k: v for k, v in both.state_dict().items() if k in ("log_scale", "bias", "initialized")})
    conv.load_state_dict({k: v for k, v in both.state_dict().items() if k in conv.state_dict() and "extra" not in k})
    flow = Flow(StandardNormal((4, 3, 3)), [conv, norm])
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    for a, b in ((both.forward(x), flow.forward(x)), (both.inverse(x), flow.inverse(x))):
        assert all(torch.allclose(s, t) for s, t in zip(a, b, strict=True))


def test_damaged_states_are_refused():
    layer = InvertibleConv1x1(3)
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match=r"permutation: got \[0, 0, 1\], want each of 0 to 2 once"):
        layer.load_state_dict(state | {"permutation": torch.tensor([0, 0, 1])})
    with pytest.raises(RuntimeError, match=r"sign_diag: got \[1.0, 0.0, 1.0\], want no 0"):
        layer.load_state_dict(state | {"sign_diag": torch.tensor([1.0, 0.0, 1.0])})


def test_squeeze_is_pixel_unshuffle():
    x = torch.randn(2, 3, 4, 6)
    for x_ in (x, x.contiguous(memory_format=torch.channels_last)):
        z = Squeeze().inverse(x_)[0]
        assert torch.equal(z, nn.functional.pixel_unshuffle(x, 2))
        assert z.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(Squeeze().forward(z)[0], x)


def test_split_lays_noise_out_flat():
    split = Split((4, 1, 2), [Unflatten((2, 1, 2))])
    z = torch.arange(8.0)[None]
    x, _ = split.forward(z)
    assert torch.equal(x.flatten(), z.flatten())
    assert torch.equal(split.inverse(x)[0], z)


BAD = {
    "actnorm channels": (lambda: ActNorm(0), "n_channels: got 0, want an integer >= 1"),
    "actnorm event": (lambda: ActNorm(2, event_dim=2), "event_dim: got 2, want 1 for vectors or 3 for images"),
    "actnorm data": (lambda: ActNorm(2).inverse(torch.zeros(5, 3, 2, 2)),
                     r"x: got shape \[5, 3, 2, 2\], want \[..., 2, H, W\]"),
    "convolution data": (lambda: InvertibleConv1x1(2).forward(torch.zeros(5, 3, 2, 2)),
                         r"z: got shape \[5, 3, 2, 2\], want \[..., 2, H, W\]"),
    "lu data": (lambda: LULinear(2).forward(torch.zeros(5, 3)), r"z: got shape \[5, 3\], want \[..., 2\]"),
    "lu minimum": (lambda: LULinear(2, min_diag=1.0), "min_diag: got 1.0, want a number from 1e-30 to 1"),
    "odd height": (lambda: Squeeze().inverse(torch.zeros(5, 3, 3, 2)),
                   "x: got images of 3 x 2 pixels, want a height and width that 2 divides"),
    "odd width": (lambda: Squeeze().inverse(torch.zeros(5, 3, 2, 3)),
                  "x: got images of 2 x 3 pixels, want a height and width that 2 divides"),
    "few channels": (lambda: Squeeze().forward(torch.zeros(5, 3, 2, 2)),
                     "z: got 3 channels, want a multiple of 4 to spread over 2 x 2 pixels"),
    "squeeze factor": (lambda: Squeeze(1), "factor: got 1, want an integer >= 2"),
    "no image": (lambda: Squeeze().inverse(torch.zeros(5, 4)), r"x: got shape \[5, 4\], want \[..., C, H, W\]"),
    "odd channels": (lambda: Split((3, 2, 2), [Unflatten((3, 2, 2))]), "shape: got 3 channels, want an even number"),
    "split of images": (lambda: Split((4, 2, 2), [ActNorm(2)]),
                        "transforms: got a map of events of 3 dimensions to such of 3, want vectors to images"),
    "shape": (lambda: Unflatten((2, 2)), r"shape: got \(2, 2\), want \(C, H, W\), three positive integers"),
    "permutation of images": (lambda: Permutation([1, 0], event_dim=3).forward(torch.zeros(5, 3, 2, 2)),
                              r"z: got shape \[5, 3, 2, 2\], want \[..., 2, H, W\]"),
    "permutation event": (lambda: Permutation([1, 0], event_dim=2), "event_dim: got 2, want 1 for vectors or 3"),
    "too many levels": (lambda: Glow((1, 28, 28), n_levels=3),
                        "shape: got images of 28 x 28 pixels, want a height and width that can be halved n_levels=3"),
    "no steps": (lambda: Glow((1, 8, 8), n_steps=0), "n_steps: got 0, want an integer >= 1"),
    "context of actnorm": (lambda: ActNorm(2).inverse(torch.zeros(5, 2, 2, 2), torch.zeros(5, 1)),
                           "context: got shape .*: ActNorm takes no context"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input(name):
    call, text = BAD[name]
    with pytest.raises(ValueError, match=text):
        call()
    assert re.compile(text)


@pytest.mark.parametrize("learn_prior", [False, True])
def test_density_integrates_to_one(learn_prior):
    """Importance sampling of the integral of p with another flow's samples: the mean of p / q is 1."""
    torch.manual_seed(0)
    options = {"dtype": torch.float64}
    flow = Glow((1, 4, 4), 2, 1, 4, learn_prior=learn_prior, **options)
    with torch.no_grad():
        flow.log_prob(torch.randn(64, 1, 4, 4, dtype=torch.float64))
        shaken(flow, std=0.05)
        z = 1.3 * torch.randn(40_000, 16, dtype=torch.float64)
        x, log_det = flow.forward(z)
        other = copy.deepcopy(flow)
        shaken(other, std=0.02, seed=3)
        log_q = torch.distributions.Normal(0, 1.3).log_prob(z).sum(-1) - log_det
        ratio = (other.log_prob(x) - log_q).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 200
    assert float(ratio.std()) < 20


def test_values_of_normflows():
    """The same weights give the same densities and samples; its forward is ours."""
    if importlib.util.find_spec("normflows") is None:
        pytest.skip("normflows is not installed")
    from benchmarks import bench_glow

    other = bench_glow.peer((2, 8, 8), 3, 2, 8).double()
    x = torch.randn(16, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        other.log_prob(x, None)
        shaken(other, std=0.05)
        model = Glow((2, 8, 8), 3, 2, 8, learn_prior=False, dtype=torch.float64)
        bench_glow.load_peer(model, other)
        assert torch.allclose(model.log_prob(x), other.log_prob(x, None), rtol=1e-10)
        z, _ = model.inverse(x)
        assert relative_error(model(z)[0], x) < 1e-8
    steps, want_steps = (
        [m for m in whole.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)] for whole in (model, other)
    )
    grads = torch.autograd.grad(model.forward_kl(x), [m.weight for m in steps])
    want = torch.autograd.grad(other.forward_kld(x), [m.weight for m in want_steps])
    norms, want_norms = (sorted(float(g.norm()) for g in gs) for gs in (grads, want))
    assert norms == pytest.approx(want_norms, rel=1e-8)


def test_class_conditional_glow():
    """The context reaches the couplings of all levels, through the splits."""
    flow = Glow((1, 8, 8), 2, 1, 8, context_features=3)
    x, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    context = nn.functional.one_hot(labels, 3).float()
    flow.log_prob(x, context)
    shaken(flow, std=0.1)
    by_class = torch.stack([flow.log_prob(x, torch.eye(3)[c].expand(6, 3)) for c in range(3)], -1)
    assert torch.allclose(flow.log_prob(x, context), by_class.gather(1, labels[:, None])[:, 0], atol=1e-4)
    assert (by_class.std(-1) > 1e-4).all()
    nets = [m for m in flow.modules() if isinstance(m, ConvNet) and m.context_features]
    grads = torch.autograd.grad(flow.log_prob(x, context).sum(), [n.project.weight for n in nets])
    assert all(g.abs().sum() > 0 for g in grads)
    assert flow.sample(4, context[:2]).shape == (4, 2, 1, 8, 8)
    with pytest.raises(ValueError, match="context: got None"):
        flow.log_prob(x)


def test_glow_learns():
    """Stripes of two kinds, in a few steps."""
    torch.manual_seed(0)
    flow = Glow((1, 4, 4), 1, 2, 16)
    stripes = torch.tensor([-1.0, 1.0]).repeat(2)
    both = torch.stack([stripes.expand(4, 4), stripes[:, None].expand(4, 4)])[:, None]
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        x = both[torch.randint(2, (64,))] + 0.2 * torch.randn(64, 1, 4, 4)
        loss = flow.forward_kl(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    best = 16 * (0.5 + 0.5 * torch.log(torch.tensor(2 * torch.pi * 0.04))) + torch.log(torch.tensor(2.0))
    assert losses[-1] < losses[0] - 4
    assert losses[-1] > float(best) - 1
