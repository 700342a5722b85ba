"""`genfast train rbm` on digits against scikit-learn's BernoulliRBM: the time to the same pseudo-likelihood."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import genfast.data
from genfast.boltzmann import RBM

from .baselines import peer
from .timing import Case, Contender, Options

HIDDEN = 128
PASSES = 10
"""Passes over the data that scikit-learn makes by default; what it reaches with them is the goal of all."""

MOST_PASSES = 64
DEFAULTS = (10, 0.1)
"""scikit-learn's batch size and learning rate."""
OPTIONS = {"lr": 0.2, "average": 0}
"""Of `genfast train rbm`, besides the defaults: the default rate suits longer runs."""

LARGE_BATCHES = (64, 0.5)
"""The same for the batch size that `genfast train` has by default; a smaller rate takes longer."""

Weights = Sequence[torch.Tensor]


def pseudo_likelihood(v: torch.Tensor, weights: Weights) -> float:
    """The mean pseudo-log-likelihood of v, over every unit, of the machine with (W, vbias, hbias)."""
    rbm = RBM(*weights[0].shape)
    with torch.no_grad():
        for own, given in zip((rbm.W, rbm.vbias, rbm.hbias), weights, strict=True):
            own.copy_(given)
    return float(rbm.pseudo_likelihood(v, exact=True).mean())


def least(reaches: Callable[[int], bool], most: int) -> int | None:
    """The smallest number up to `most` from which `reaches` holds; None where it does not hold at `most`."""
    high = 1
    while not reaches(high):
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2  # does not reach, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def cases(options: Options) -> Iterator[Case]:
    """One case: 1,797 digits of 64 binary pixels, 128 hidden units.

    Each contender makes as many passes over the data as it needs to the goal, found beforehand and not timed. It is
    scikit-learn with its defaults, and again with our batch size.
    """
    sklearn = peer("sklearn.neural_network")
    threads = peer("threadpoolctl")
    command = peer("genfast.training.loop")
    if sklearn is None or threads is None or command is None:
        return
    from genfast import recipes
    from genfast.training.distributed import Processes
    from genfast.training.run import resolve

    digits = genfast.data.load("digits")
    v = digits.binarized().x
    array = v.numpy()
    recipe = recipes.load("rbm")

    def trainer_for(passes: int) -> Any:
        given = {"epochs": passes, "hidden": HIDDEN, "seed": options.seed, **OPTIONS}
        run = command.Trainer.start(recipe, resolve(recipe, given), digits)
        return command.Trainer(run, Processes(str(options.device)), quiet=True)

    def trained(trainer: Any) -> Weights:
        trainer.run()
        rbm = trainer.recipe.model
        return [t.detach().cpu() for t in (rbm.W, rbm.vbias, rbm.hbias)]

    def theirs(passes: int, batch_size: int, learning_rate: float) -> Weights:
        with threads.threadpool_limits(options.threads):
            machine: Any = sklearn.BernoulliRBM(
                HIDDEN, learning_rate=learning_rate, batch_size=batch_size, n_iter=passes, random_state=options.seed
            ).fit(array)
        weights = (machine.components_.T, machine.intercept_visible_, machine.intercept_hidden_)
        return [torch.as_tensor(t) for t in weights]

    goal = pseudo_likelihood(v, theirs(PASSES, *DEFAULTS))
    passes = least(lambda n: pseudo_likelihood(v, trained(trainer_for(n))) >= goal, MOST_PASSES)
    alike_passes = least(lambda n: pseudo_likelihood(v, theirs(n, *LARGE_BATCHES)) >= goal, MOST_PASSES)

    ready: list[Any] = []  # the data are loaded and the machine is made before the clock starts, as for scikit-learn
    contenders = [
        Contender(
            "genfast",
            lambda: trained(ready.pop()),
            once=True,
            prepare=lambda: ready.append(trainer_for(passes or MOST_PASSES)),
        ),
        Contender("scikit-learn", lambda: theirs(PASSES, *DEFAULTS), target=None if options.cuda else 3.0, once=True),
    ]
    if alike_passes is not None:
        name = f"scikit-learn, batch {LARGE_BATCHES[0]}"
        contenders.append(Contender(name, lambda: theirs(alike_passes, *LARGE_BATCHES), once=True))

    def compare(mine: Weights, other: Weights) -> str:
        for who, weights in (("genfast", mine), ("this", other)):
            reached = pseudo_likelihood(v, weights)
            if reached < goal - 1e-6:
                return f"{who} reached a pseudo-likelihood of {reached:.2f} only, the goal is {goal:.2f}"
        return ""

    yield Case(
        "genfast train rbm",
        f"digits, {HIDDEN} hidden units, to a pseudo-likelihood of {goal:.1f}",
        contenders,
        compare=compare,
    )
