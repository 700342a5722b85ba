"""scikit-learn's `BernoulliRBM`, trained by genfast's kernel.

This module needs scikit-learn (1.6 or newer), which `pip install 'genfast[train]'` brings; nothing else of genfast
imports it.
"""

import time
from typing import Any

import numpy as np
import torch

from genfast import _native
from genfast._finite import NonFiniteError
from genfast._optional import require

_base = require("sklearn.base", "genfast.sklearn")
_neural_network = require("sklearn.neural_network", "genfast.sklearn")
_utils = require("sklearn.utils", "genfast.sklearn")
_validation = require("sklearn.utils.validation", "genfast.sklearn")
_sparse = require("scipy.sparse", "genfast.sklearn")

__all__ = ["BernoulliRBM"]

_LANES = 16  # what rows of W are padded to
_SLICE = 2**31  # products of one call of the kernel: well below a second, so that an interrupt is heard


class BernoulliRBM(_neural_network.BernoulliRBM):  # type: ignore[misc, name-defined]
    """`sklearn.neural_network.BernoulliRBM` with the same parameters, attributes and results, fitted faster.

    It is a subclass: `transform`, `gibbs`, `score_samples`, pipelines, `set_output`, cloning and pickling are
    scikit-learn's. `fit` and `partial_fit` do the same updates, persistent contrastive divergence with `batch_size`
    chains that start at zero and batches in the order of the data, in one native call for many batches. The cost of a
    batch is that of its active units, and of one pass over the visible units for the chains; dense arrays and CSR
    matrices of float32 and float64 are computed in their own dtype. The initial weights are scikit-learn's for the same
    `random_state`; the states are drawn by another generator, so that fits agree in distribution, not number by number.

    Args:
        n_components: number of hidden units.
        learning_rate: of the updates, divided by the rows of a batch.
        batch_size: rows of a batch, and number of persistent chains.
        n_iter: passes over the data.
        verbose: whether each pass prints the pseudo-likelihood and the seconds it took.
        random_state: seed of the initial weights and of all draws: an int, a `numpy.random.RandomState`, or None.

    Raises:
        genfast.NonFiniteError: a parameter became NaN or infinite (scikit-learn goes on).
        ImportError: scikit-learn is not installed.

    Source:
        Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood gradient", 2008.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from genfast.sklearn import BernoulliRBM
        >>> model = make_pipeline(BernoulliRBM(n_components=100, random_state=0), LogisticRegression())
    """

    @_base._fit_context(prefer_skip_nested_validation=True)  # noqa: SLF001
    def fit(self, X: Any, y: Any = None) -> "BernoulliRBM":  # noqa: ARG002
        """Fit the model to X `[n_samples, n_features]`, an array or CSR matrix of values in [0, 1]."""
        X = _validation.validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32))
        rng = _utils.check_random_state(self.random_state)
        self._start(X.shape[1], X.dtype, rng)
        n = X.shape[0]
        n_batches = -(-n // self.batch_size)
        even = _utils.gen_even_slices(n_batches * self.batch_size, n_batches, n_samples=n)
        edges = torch.tensor([0, *(batch.stop for batch in even)])
        training = _Training(self, X, rng)
        begin = time.time()
        for iteration in range(1, self.n_iter + 1):
            training.run(edges, f"iteration {iteration}")
            if self.verbose:
                training.write_back()
                end, score = time.time(), self.score_samples(X).mean()
                name = type(self).__name__
                print(f"[{name}] Iteration {iteration}, pseudo-likelihood = {score:.2f}, time = {end - begin:.2f}s")
                begin = end
        training.write_back()
        return self

    @_base._fit_context(prefer_skip_nested_validation=True)  # noqa: SLF001
    def partial_fit(self, X: Any, y: Any = None) -> "BernoulliRBM":  # noqa: ARG002
        """Do one update with the rows of X `[n_samples, n_features]` as one batch."""
        first = not hasattr(self, "components_")
        X = _validation.validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=first)
        if not hasattr(self, "random_state_"):
            self.random_state_ = _utils.check_random_state(self.random_state)
        if first:
            self._start(X.shape[1], X.dtype, self.random_state_)
        training = _Training(self, X, self.random_state_)
        training.run(torch.tensor([0, X.shape[0]]), "partial_fit")
        training.write_back()
        return self

    def _start(self, n_features: int, dtype: Any, rng: Any) -> None:
        normal = rng.normal(0, 0.01, (self.n_components, n_features))
        self.components_ = np.asarray(normal, order="F", dtype=dtype)
        self._n_features_out = self.n_components
        self.intercept_hidden_ = np.zeros(self.n_components, dtype=dtype)
        self.intercept_visible_ = np.zeros(n_features, dtype=dtype)
        self.h_samples_ = np.zeros((self.batch_size, self.n_components), dtype=dtype)


class _Training:
    """The data and the parameters of an estimator as the kernel takes them."""

    def __init__(self, estimator: BernoulliRBM, X: Any, rng: Any) -> None:
        self.estimator = estimator
        dtype = torch.float32 if X.dtype == np.float32 else torch.float64
        rows = _sparse.csr_array(X) if not _sparse.issparse(X) else X.tocsr()
        if not rows.has_canonical_format:  # entries that are there twice are one number
            rows = rows.copy()
            rows.sum_duplicates()
        self.starts = torch.from_numpy(rows.indptr.astype(np.int64))
        self.indices = torch.from_numpy(rows.indices.astype(np.int64))
        self.values = torch.from_numpy(np.ascontiguousarray(rows.data)).to(dtype)
        n_hidden, n_visible = estimator.components_.shape
        width = -(-n_hidden // _LANES) * _LANES
        self.n_hidden = n_hidden
        self.W = torch.zeros(n_visible, width, dtype=dtype)
        self.W[:, :n_hidden] = torch.as_tensor(np.ascontiguousarray(estimator.components_.T))
        self.hbias = torch.zeros(width, dtype=dtype)
        self.hbias[:n_hidden] = torch.as_tensor(estimator.intercept_hidden_)
        self.vbias = torch.as_tensor(estimator.intercept_visible_, dtype=dtype).clone()
        self.chains = torch.as_tensor(estimator.h_samples_, dtype=dtype).clone().contiguous()
        self.seed = torch.tensor(int(rng.randint(0, 2**31 - 1)))
        self.step = 0

    def run(self, edges: torch.Tensor, where: str) -> None:
        """One update for each batch of rows from one edge to the next."""
        lanes = -(-self.chains.shape[0] // _LANES) * _LANES
        batches = max(1, _SLICE // (self.W.numel() * lanes))
        for i in range(0, len(edges) - 1, batches):
            part = edges[i : i + batches + 1]
            _native.rbm_pcd_updates(
                self.starts, self.indices, self.values, part, self.seed, float(self.estimator.learning_rate),
                self.step & 0xFFFFFFFF, self.W, self.vbias, self.hbias, self.chains,
            )  # fmt: skip
            self.step += len(part) - 1
        for name, parameter in (("components_", self.W), ("intercept_visible_", self.vbias)):
            if not bool(parameter.isfinite().all()):
                raise NonFiniteError(
                    f"{where}: {name} has NaN or infinite values (a lower learning_rate usually helps)"
                )

    def write_back(self) -> None:
        """Set the estimator's attributes."""
        to, n = self.estimator, self.n_hidden
        to.components_ = self.W[:, :n].contiguous().numpy().T
        to.intercept_hidden_ = self.hbias[:n].clone().numpy()
        to.intercept_visible_ = self.vbias.clone().numpy()
        to.h_samples_ = self.chains.clone().numpy()
