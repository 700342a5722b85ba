"""`genfast.sklearn.BernoulliRBM` against scikit-learn's own: the time of `fit`, with the same settings."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

import genfast.data

from .baselines import peer
from .timing import Case, Contender, Options

GOAL = 5.0


def cases(options: Options) -> Iterator[Case]:
    """Digits, MNIST and sparse rows, in small batches as scikit-learn's default is."""
    sklearn = peer("sklearn.neural_network")
    threads = peer("threadpoolctl")
    ours = peer("genfast.sklearn")
    if sklearn is None or threads is None or ours is None or options.cuda:
        return

    def case(label: str, rows: Any, settings: dict[str, Any]) -> Case:
        def fitted(estimator: Callable[..., Any]) -> list[torch.Tensor]:
            with threads.threadpool_limits(options.threads):
                found = estimator(random_state=options.seed, **settings).fit(rows)
            names = ("components_", "intercept_hidden_", "intercept_visible_")
            return [torch.as_tensor(getattr(found, name)) for name in names]

        def score(weights: Sequence[torch.Tensor]) -> float:
            judge = sklearn.BernoulliRBM(random_state=options.seed, **{**settings, "n_iter": 1}).fit(rows[:20])
            judge.components_, judge.intercept_hidden_, judge.intercept_visible_ = (t.numpy() for t in weights)
            return float(np.mean(judge.score_samples(rows[:2000])))

        def compare(mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> str:
            a, b = score(mine), score(theirs)
            return "" if abs(a - b) < 0.1 * abs(b) else f"pseudo-log-likelihoods of {a:.2f} and {b:.2f}"

        contenders = [
            Contender("genfast", lambda: fitted(ours.BernoulliRBM), once=True),
            Contender("scikit-learn", lambda: fitted(sklearn.BernoulliRBM), target=GOAL, once=True),
        ]
        return Case("sklearn.BernoulliRBM.fit", label, contenders, compare=compare)

    digits = genfast.data.load("digits").x.double().numpy()
    yield case("digits, 100 hidden, 10 passes, batch 10", digits, {"n_components": 100, "n_iter": 10})
    try:
        mnist = genfast.data.load("mnist").x[:3000].double().numpy()
    except (ValueError, OSError):
        mnist = None
    if mnist is not None:
        settings = {"n_components": 256, "n_iter": 1}
        yield case("3,000 rows of MNIST, 256 hidden, 1 pass, batch 10", mnist, settings)
    sparse = peer("scipy.sparse")
    if sparse is not None:
        generator = np.random.default_rng(options.seed)
        rows = sparse.random(2000, 20_136, density=0.0035, format="csr", rng=generator, data_rvs=np.ones)
        settings = {"n_components": 100, "n_iter": 1, "learning_rate": 0.05}
        yield case("2,000 sparse rows of 20,136, density .0035, 100 hidden, 1 pass", rows, settings)
