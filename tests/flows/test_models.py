"""Ready models of couplings: density, round trip, context, images, state, and that they learn."""

import math

import pytest
import torch

from genfast import data
from genfast.flows import NICE, NSF, AffineCoupling, DiagonalNormal, Flow, InvertibleSequential, RealNVP, StandardNormal
from tests.flows.test_flows import shaken
from tests.module_harness import ModuleSpec, ModuleTests, parametrize_modules

F64 = {"dtype": torch.float64}
MODELS = [NICE, RealNVP, NSF]


def pytest_generate_tests(metafunc):
    parametrize_modules(metafunc)


def rows(dtype):
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(dtype)


def spec(name, build):
    methods = ("forward", "inverse", "log_prob")
    return ModuleSpec(name, build, rows, methods, name, smooth=() if name == "nsf" else methods)


class TestModels(ModuleTests):
    specs = (
        spec("nice", lambda **o: NICE(3, 2, (3,), **o)),
        spec("realnvp", lambda **o: RealNVP(3, 2, (3,), **o)),
        spec("nsf", lambda **o: NSF(3, 2, (3,), n_bins=3, **o)),
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("context", [None, 2])
@pytest.mark.parametrize("rebuild", [False, True])
def test_density_and_samples(model, dim, context, rebuild):
    torch.manual_seed(0)
    flow = shaken(model(dim, hidden=(8,), context_features=context, rebuild=rebuild, **F64), std=0.1)
    assert isinstance(flow, Flow)
    assert any(isinstance(part, InvertibleSequential) for part in flow.transforms) == rebuild
    given = () if context is None else (torch.randn(4, context, **F64),)
    x, log_p = flow.sample_and_log_prob(4 if context is None else (), *given)
    torch.testing.assert_close(flow.log_prob(x, *given), log_p)
    z, log_det = flow.inverse(x, *given)
    jacobian = torch.autograd.functional.jacobian(
        lambda t: flow.inverse(t, *(c[:1] for c in given))[0][0], x[:1].detach()
    )
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian[:, 0])[1])
    torch.testing.assert_close(flow(z, *given)[0], x)
    flow.log_prob(x.detach(), *given).sum().backward()
    assert all(p.grad is not None for p in flow.parameters())
    assert flow.to_distribution(*given).event_shape == (dim,)


@pytest.mark.parametrize("model", [RealNVP, NSF])
@pytest.mark.parametrize("context", [None, 2])
def test_images(model, context):
    torch.manual_seed(0)
    flow = shaken(model((2, 4, 3), n_layers=4, hidden=(4,), context_features=context, **F64), std=0.1)
    given = () if context is None else (torch.randn(3, context, **F64),)
    x, log_p = flow.sample_and_log_prob(3 if context is None else (), *given)
    assert x.shape == (3, 2, 4, 3)
    torch.testing.assert_close(flow.log_prob(x, *given), log_p)
    moves = torch.stack([layer.mask for layer in flow.transforms])
    assert (moves[0] ^ moves[1]).all(), "the second moves what the first one kept"
    assert (moves[2] ^ moves[3]).all()
    assert moves[2][0].tolist() == [[False] * 3, [True] * 3] * 2


def test_a_model_loads_the_state_of_its_layers():
    """Models are plain flows: the state dict of one is that of a flow of the same layers."""
    flow = shaken(RealNVP(4, 2, hidden=(5,)))
    from genfast.flows import half_mask

    by_hand = Flow(StandardNormal(4), [AffineCoupling(half_mask(4, last=i == 0), hidden=(5,)) for i in range(2)])
    by_hand.load_state_dict(flow.state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(flow.log_prob(x), by_hand.log_prob(x), rtol=0, atol=0)


def test_a_model_takes_a_base():
    flow = RealNVP(3, base=DiagonalNormal(3))
    flow.log_prob(torch.randn(2, 3)).sum().backward()
    assert flow.base.loc.grad is not None


def test_nice_keeps_volumes_but_for_its_scale():
    flow = shaken(NICE(4, hidden=(8,), **F64))
    _, log_det = flow(torch.randn(5, 4, **F64))
    torch.testing.assert_close(log_det, log_det[:1].expand(5))
    torch.testing.assert_close(log_det[0], flow.transforms[0](torch.zeros(1, 4, **F64))[1][0])


@pytest.mark.parametrize("model", MODELS)
def test_models_learn_with_their_defaults(model):
    torch.manual_seed(0)
    x = data.load("moons", n=4000).x
    flow = model(2)
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    before = flow.forward_kl(x).item()
    for _ in range(200):
        optimizer.zero_grad()
        flow.forward_kl(x[torch.randint(len(x), (256,))]).backward()
        optimizer.step()
    assert flow.forward_kl(x).item() < before - (0.3 if model is NICE else 0.5)
    assert math.isfinite(flow.sample(100).sum())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RealNVP(0), "dim: got 0"),
        (lambda: RealNVP(2, 0), "n_layers: got 0"),
        (lambda: NICE(2.5), "dim: got 2.5"),
        (lambda: NSF((2, 3)), r"dim: got \(2, 3\), want a number of dimensions, or \(C, H, W\) of images"),
        (lambda: RealNVP((1, 1, 4)), r"dim: got \(1, 1, 4\), want images of two rows or more"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
