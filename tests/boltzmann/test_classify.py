"""Classification: p(y | v) against the joint distribution, the losses, and the accuracy on digits."""

import pytest
import torch

import genfast.data
from genfast.boltzmann import RBMClassifier
from genfast.boltzmann.units import Gaussian, ReLU, Spin

KINDS = {
    "binary": lambda: (5, 4),
    "spin": lambda: (Spin(5), Spin(3)),
    "gaussian": lambda: (Gaussian(5), 4),
    "relu": lambda: (5, ReLU(3)),
}


def machine(kind: str = "binary") -> RBMClassifier:
    generator = torch.Generator().manual_seed(0)
    rbm = RBMClassifier(*KINDS[kind](), n_classes=3, init_std=0.8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        rbm.vbias.normal_(0, 0.5, generator=generator)
        rbm.hbias.normal_(0, 0.5, generator=generator)
    return rbm


def rows(rbm: RBMClassifier, n: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    v = rbm.data.sample(torch.zeros(n, 5, dtype=torch.float64), generator=generator)
    return v, torch.randint(3, (n,), generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_the_conditional_is_that_of_the_joint_distribution(kind):
    rbm = machine(kind)
    v, y = rows(rbm)
    free = torch.stack([rbm.free_energy(rbm.join(v, torch.full_like(y, c))) for c in range(3)], -1)
    torch.testing.assert_close(rbm.predict_proba(v), (-free).softmax(-1))
    torch.testing.assert_close(rbm.predict_log_proba(v).exp(), rbm.predict_proba(v))
    assert torch.equal(rbm.predict(v), (-free).argmax(-1))
    torch.testing.assert_close(rbm.predict_proba(v.view(7, 1, 5))[:, 0], rbm.predict_proba(v))
    joint, labels = rbm.split(rbm.join(v, y))
    assert torch.equal(joint, v)
    assert torch.equal(labels, y)
    assert rbm.score(v, rbm.predict(v)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_their_gradients(kind):
    rbm = machine(kind)
    v, y = rows(rbm)
    picked = rbm.predict_log_proba(v)[torch.arange(7), y]
    torch.testing.assert_close(rbm.discriminative_loss(v, y), -picked.mean())
    names = [name for name, _ in rbm.named_parameters()]
    rbm.forward = rbm.discriminative_loss
    leaves = tuple(p.detach().clone().requires_grad_() for p in rbm.parameters())

    def f(*parameters):
        return torch.func.functional_call(rbm, dict(zip(names, parameters, strict=True)), (v, y))

    assert torch.autograd.gradcheck(f, leaves)
    hybrid = rbm.hybrid_loss(v, y, generative=0.3, k=2, generator=torch.Generator().manual_seed(3))
    generative = rbm.cd_loss(rbm.join(v, y), 2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(hybrid, rbm.discriminative_loss(v, y) + 0.3 * generative)
    for method in ("pcd", "fpcd"):
        rbm.hybrid_loss(v, y, method=method).backward()
    assert rbm.chains.shape == (7, 8)


def test_chains_run_over_data_and_labels():
    rbm = machine()
    x = rbm.sample(50, 20, generator=torch.Generator().manual_seed(0))
    v, y = rbm.split(x)
    assert torch.equal(rbm.join(v, y), x)
    missing = torch.arange(8) < 5
    given = rbm.inpaint(rbm.join(v, torch.full_like(y, 1)), missing, 10)
    assert (rbm.split(given)[1] == 1).all()
    n, v0 = 40_000, v[:1].expand(40_000, -1)
    drawn = rbm.inpaint(
        rbm.join(v0, torch.zeros(n, dtype=torch.long)), ~missing, 30, generator=torch.Generator().manual_seed(0)
    )
    counts, p = torch.bincount(rbm.split(drawn)[1], minlength=3), rbm.predict_proba(v0[:1])[0].detach()
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 27.7, "chi-square with 2 degrees of freedom at 1e-6"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, v, y: RBMClassifier(4, 3, n_classes=1), ValueError, "n_classes: got 1, want an integer >= 2"),
        (lambda r, v, y: r.join(v, y.float()), TypeError, r"y: got torch\.float32, want integer labels"),
        (lambda r, v, y: r.join(v, y[:3]), ValueError, r"y: got shape \[3\], want \[7\], one label a row of v"),
        (lambda r, v, y: r.discriminative_loss(v, y + 2), ValueError, "y: got labels from 2 to 4, want 0 to n_classes"),
        (lambda r, v, y: r.predict(v[:, :4]), ValueError, r"v: got shape \[7, 4\], want \[..., 5\]"),
        (lambda r, v, y: r.predict(2 * v), ValueError, "v: got values from 0 to 2, want 0 or 1"),
        (lambda r, v, y: r.hybrid_loss(v, y, method="ml"), ValueError, "method: got 'ml', want one of cd, pcd, fpcd"),
        (lambda r, v, y: r.hybrid_loss(v, y, generative=-1), ValueError, "generative: got -1"),
    ],
)
def test_bad_input_is_named(call, error, message):
    rbm = machine()
    with pytest.raises(error, match=message):
        call(rbm, *rows(rbm))


def test_digits_are_told_apart():
    """Beyond 95% of test digits (grey values as probabilities), by the hybrid loss on 1,400 of them."""
    data = genfast.data.load("digits")
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(0))
    x, y = data.x[order], data.y[order]
    torch.manual_seed(0)
    rbm = RBMClassifier(64, 120, n_classes=10, init_std=0.2)
    optimizer = torch.optim.Adam(rbm.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 15 * 28)
    for _ in range(15):
        for batch in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            rbm.hybrid_loss(x[batch], y[batch], generative=0.003).backward()
            optimizer.step()
            schedule.step()
    assert rbm.score(x[1400:], y[1400:]) > 0.95
