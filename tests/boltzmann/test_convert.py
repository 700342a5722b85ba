"""Machines keep their energies on the way to other libraries and back."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from genfast.boltzmann import RBM, convert
from genfast.boltzmann.units import Spin


def machine(n_visible=5, n_hidden=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    rbm = RBM(n_visible, n_hidden, init_std=0.7, generator=g, dtype=dtype)
    with torch.no_grad():
        rbm.vbias.normal_(generator=g)
        rbm.hbias.normal_(generator=g)
    return rbm


def states(n, low=0.0):
    return torch.tensor(list(itertools.product((low, 1.0), repeat=n)), dtype=torch.float64)


def assert_same(a, b):
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scikit_learn(dtype):
    pytest.importorskip("sklearn")
    rbm = machine(dtype=dtype)
    estimator = convert.to_sklearn(rbm, learning_rate=0.05)
    v = states(5).to(dtype)
    torch.testing.assert_close(torch.from_numpy(estimator.transform(v.numpy())), rbm.hidden_probs(v).detach())
    energies = torch.from_numpy(estimator._free_energy(v.numpy()))
    torch.testing.assert_close(energies, rbm.free_energy(v).detach())
    assert_same(convert.from_sklearn(estimator), rbm)
    estimator.partial_fit(v.numpy())  # goes on with these weights
    assert len(estimator.get_feature_names_out()) == 3
    with pytest.raises(ValueError, match="estimator: got one that is not fitted"):
        convert.from_sklearn(SimpleNamespace())


def test_rbms_by_its_attributes():
    rbm = machine()
    theirs = SimpleNamespace(name="BBRBM", weight_matrix=rbm.W, vbias=rbm.vbias, hbias=rbm.hbias)
    assert_same(convert.from_rbms(theirs), rbm)
    with pytest.raises(ValueError, match="parameters: got PBRBM, want a BBRBM"):
        convert.from_rbms(SimpleNamespace(name="PBRBM"))


def test_rbms_itself():
    pytest.importorskip("rbms.bernoulli_bernoulli.classes", exc_type=ImportError)
    rbm = machine()
    theirs = convert.to_rbms(rbm)
    torch.testing.assert_close(theirs.compute_energy_visibles(states(5)), rbm.free_energy(states(5)).detach())
    assert_same(convert.from_rbms(theirs), rbm)


class Bqm:
    """What a BinaryQuadraticModel says of itself, with its energy from D-Wave's definition."""

    def __init__(self, linear, quadratic, offset, vartype):
        self.linear, self.quadratic, self.offset, self.vartype = dict(linear), dict(quadratic), offset, vartype

    def add_quadratic_from(self, quadratic):
        self.quadratic |= quadratic

    def energy(self, sample):
        pairs = sum(x * sample[u] * sample[v] for (u, v), x in self.quadratic.items())
        return self.offset + sum(x * sample[u] for u, x in self.linear.items()) + pairs


@pytest.fixture(params=["by its attributes", "dimod"])
def dimod(request, monkeypatch):
    if request.param == "dimod":
        return pytest.importorskip("dimod")
    monkeypatch.setattr(convert, "require", lambda *_args, **_kwargs: SimpleNamespace(BinaryQuadraticModel=Bqm))
    return None


def energy(q, s):
    return -0.5 * ((s @ q.J) * s).sum(1) - s @ q.bias + q.offset


@pytest.mark.parametrize("values", ["01", "pm1"])
def test_bqm_of_a_general_machine(dimod, values):
    n, g = 5, torch.Generator().manual_seed(1)
    J = torch.randn(n, n, generator=g, dtype=torch.float64).triu(1)
    J[0, 3] = 0
    J, bias = J + J.T, torch.randn(n, generator=g, dtype=torch.float64)
    bqm = convert.to_bqm(J, bias, values=values, offset=0.75, labels="abcde")
    own = states(n, 0.0 if values == "01" else -1.0)
    want = torch.tensor([bqm.energy(dict(zip("abcde", s, strict=True))) for s in own.tolist()], dtype=torch.float64)
    back = convert.from_bqm(bqm)
    assert (back.values, back.labels) == (values, list("abcde"))
    assert torch.equal(back.J, J)
    assert torch.equal(back.bias, bias)
    torch.testing.assert_close(energy(back, own), want)
    other = convert.from_bqm(bqm, values="pm1" if values == "01" else "01")
    torch.testing.assert_close(energy(other, 2 * own - 1 if values == "01" else (own + 1) / 2), want)


def test_bqm_of_an_rbm(dimod):
    rbm = machine()
    bqm, joint = convert.rbm_to_bqm(rbm), states(8)
    for s in joint[::7]:
        sample = {("v", i): x for i, x in enumerate(s[:5].tolist())} | {
            ("h", j): x for j, x in enumerate(s[5:].tolist())
        }
        assert bqm.energy(sample) == pytest.approx(rbm.energy(s[:5], s[5:]).item(), abs=1e-12)


def test_bad_input():
    J, bias = torch.ones(2, 2), torch.zeros(2)
    for arguments, options, text in (
        ((J, bias), {}, "J: got a matrix that is not symmetric with zero diagonal"),
        ((J, torch.zeros(3)), {}, "J, bias: got shapes"),
        ((J - torch.eye(2), bias), {"values": "spin"}, "values: got 'spin', want '01' or 'pm1'"),
        ((J - torch.eye(2), bias), {"labels": "aa"}, "labels: got 1 different ones of 2, want 2"),
    ):
        with pytest.raises(ValueError, match=text):
            convert.to_bqm(*arguments, **options)
    with pytest.raises(ValueError, match="bqm: got vartype 'INTEGER', want BINARY or SPIN"):
        convert.from_bqm(SimpleNamespace(vartype="INTEGER"))
    with pytest.raises(ValueError, match="rbm: got Spin and Binary units, want Binary ones"):
        convert.to_rbms(RBM(Spin(3), 2))
