"""scikit-learn's estimator with our kernel: its contract, its updates number by number, and what it learns."""

import copy
import itertools
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from tests.cli.conftest import environment

sklearn = pytest.importorskip("sklearn")
sparse = pytest.importorskip("scipy.sparse")

from sklearn.datasets import load_digits  # noqa: E402
from sklearn.neural_network import BernoulliRBM as Theirs  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from genfast import _native  # noqa: E402
from genfast._finite import NonFiniteError  # noqa: E402
from genfast.reference._gibbs import uniform_words  # noqa: E402
from genfast.sklearn import BernoulliRBM  # noqa: E402

# score_samples is an estimate from random units: scikit-learn expects these of its own estimator too.
STOCHASTIC = {
    f"check_methods_{what}_invariance": "score_samples flips random units" for what in ("subset", "sample_order")
}


@parametrize_with_checks([BernoulliRBM(n_components=5, n_iter=2)], expected_failed_checks=lambda _: STOCHASTIC)
def test_contract_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def plain_updates(X, W, a, b, h, seed, rate, edges):
    """The kernel's definition in float64."""
    m = len(h)

    def uniform(step, units, stream):
        words = uniform_words(torch.tensor(seed), torch.arange(m), units, step, stream)
        return ((words >> 1).float() * 2.0**-31 + 2.0**-32).double()

    for step, (begin, end) in enumerate(itertools.pairwise(edges)):
        v = X[begin:end]
        p = torch.sigmoid(b + v @ W)
        model = (uniform(step, len(a), 2) < torch.sigmoid(a + h @ W.T)).double()
        q = torch.sigmoid(b + model @ W)
        lr = rate / len(v)
        W = W + lr * (v.T @ p - model.T @ q)
        a, b = a + lr * (v.sum(0) - model.sum(0)), b + lr * (p.sum(0) - q.sum(0))
        h = (uniform(step, len(b), 1) < q).double()
    return W, a, b, h


@pytest.mark.parametrize("target", [t for t in _native.load().build_info()["cpu_targets"] if t != "simt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(3, 2, 1), (37, 21, 10), (70, 130, 33)], ids=str)
def test_updates_are_those_of_the_definition(target, dtype, size):
    n_visible, n_hidden, m = size
    width = -(-n_hidden // 16) * 16
    g = torch.Generator().manual_seed(0)
    X = torch.rand(25, n_visible, generator=g, dtype=torch.float64) * (torch.rand(25, n_visible, generator=g) < 0.4)
    W = 0.3 * torch.randn(n_visible, n_hidden, generator=g, dtype=torch.float64)
    h = (torch.rand(m, n_hidden, generator=g) < 0.5).double()
    edges = [0, 10, 20, 25]
    rows = sparse.csr_array(X.numpy())
    padded = torch.zeros(n_visible, width, dtype=dtype)
    padded[:, :n_hidden] = W
    a, b, chains = torch.zeros(n_visible, dtype=dtype), torch.zeros(width, dtype=dtype), h.to(dtype, copy=True)
    _native.load().set_cpu_target(target)
    try:
        _native.rbm_pcd_updates(
            torch.from_numpy(rows.indptr.astype(np.int64)), torch.from_numpy(rows.indices.astype(np.int64)),
            torch.from_numpy(rows.data).to(dtype), torch.tensor(edges), torch.tensor(5), 0.1, 0, padded, a, b, chains,
        )  # fmt: skip
    finally:
        _native.load().set_cpu_target("auto")
    zeros = torch.zeros(n_visible).double(), torch.zeros(n_hidden).double()
    want = plain_updates(X, W, *zeros, h, 5, 0.1, edges)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for got, exact in zip((padded[:, :n_hidden], a, b[:n_hidden], chains), want, strict=True):
        torch.testing.assert_close(got.double(), exact, atol=tolerance, rtol=tolerance)


def test_learns_as_well_as_scikit_learn():
    X = load_digits().data / 16
    ours, theirs = (
        [cls(n_components=32, n_iter=4, random_state=s).fit(X).score_samples(X).mean() for s in range(4)]
        for cls in (BernoulliRBM, Theirs)
    )
    before = BernoulliRBM(n_components=32, n_iter=0, random_state=0).fit(X).score_samples(X).mean()
    assert min(ours) > before + 10
    # of four runs each; 5.2 standard errors and more: a false alarm in a million
    spread = 5.2 * np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 4) + 0.5
    assert abs(np.mean(ours) - np.mean(theirs)) < spread


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_and_dense_data_are_the_same_fit(dtype):
    X = (load_digits().data[:103] / 16).astype(dtype)
    dense = BernoulliRBM(n_components=9, n_iter=2, random_state=1).fit(X)
    for other in (sparse.csr_matrix(X), sparse.csr_array(X), sparse.coo_array(X)):
        fitted = BernoulliRBM(n_components=9, n_iter=2, random_state=1).fit(other)
        for name in ("components_", "intercept_hidden_", "intercept_visible_", "h_samples_"):
            assert np.array_equal(getattr(fitted, name), getattr(dense, name)), name
            assert getattr(fitted, name).dtype == dtype


def test_attributes_pipelines_and_copies():
    pd = pytest.importorskip("pandas") if "pandas" in sys.modules else None
    X = load_digits().data[:50] / 16
    model = BernoulliRBM(n_components=7, n_iter=1, random_state=0)
    out = make_pipeline(model, BernoulliRBM(n_components=3, n_iter=1)).fit_transform(X)
    assert out.shape == (50, 3)
    assert model.components_.shape == (7, 64)
    assert model.n_features_in_ == 64
    assert list(model.get_feature_names_out())[:1] == ["bernoullirbm0"]
    assert isinstance(model, Theirs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.transform(X), model.transform(X))
    assert np.array_equal(model.transform(X), Theirs.transform(model, X))
    assert pd is None or hasattr(model, "set_output")


def test_partial_fit_continues(capsys):
    X = load_digits().data[:60] / 16
    model = BernoulliRBM(n_components=6, batch_size=10, random_state=0)
    for batch in np.split(X, 6):
        model.partial_fit(batch)
    again = BernoulliRBM(n_components=6, batch_size=10, random_state=0)
    for batch in np.split(X, 6):
        again.partial_fit(sparse.csr_array(batch))
    assert np.array_equal(model.components_, again.components_)
    assert set(np.unique(model.h_samples_)) <= {0.0, 1.0}
    BernoulliRBM(n_components=2, n_iter=2, verbose=1, random_state=0).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("[BernoulliRBM] Iteration 2, pseudo-likelihood = -")
    assert lines[1].endswith("s")


def test_divergence_is_an_error():
    X = load_digits().data[:40] / 16
    with pytest.raises(NonFiniteError, match=r"iteration \d+: \w+ has NaN or infinite values"):
        BernoulliRBM(n_components=4, n_iter=30, learning_rate=1e308, random_state=0).fit(X)


def test_genfast_does_not_import_scikit_learn():
    code = "import sys, genfast, genfast.ops, genfast.boltzmann; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_missing_scikit_learn_is_said():
    code = "import sys; sys.modules['sklearn.base'] = None; import genfast.sklearn"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "sklearn" in done.stderr
