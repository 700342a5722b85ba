import time

import pytest
import torch

from benchmarks.floor import copy_rate, flop_rate
from benchmarks.memory import saved_bytes
from benchmarks.timing import Case, Contender, Options, Quartiles, forward_backward, measure

QUICK = Options(threads=1, quick=True)


def wait(seconds, value=1.0):
    def run():
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return (torch.tensor([value]),)

    return run


def test_ratio_is_that_of_the_times():
    case = Case("op", "label", [Contender("genfast", wait(0.001)), Contender("eager", wait(0.004))])
    result = measure(case, QUICK)
    ours, theirs = result.rows
    assert result.agrees
    assert result.rounds >= QUICK.min_rounds
    assert ours.speedup is None
    assert 2.5 < theirs.speedup.median < 6
    assert 0.001 <= ours.seconds.median < theirs.seconds.median
    assert ours.seconds.low <= ours.seconds.median <= ours.seconds.high


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (lambda: (torch.tensor([1.01]),), "differs"),
        (lambda: (torch.tensor([float("nan")]),), "differs"),
        (lambda: (torch.tensor([1.0, 1.0]),), "shape"),
        (lambda: (torch.tensor([1.0]),) * 2, "returned 2 tensors"),
    ],
)
def test_nothing_is_timed_where_outputs_differ(other, problem):
    case = Case("op", "label", [Contender("genfast", lambda: (torch.tensor([1.0]),)), Contender("eager", other)])
    result = measure(case, QUICK)
    assert not result.agrees
    assert problem in result.rows[1].problem
    assert all(row.seconds is None for row in result.rows)


def test_a_case_can_bring_its_own_comparison():
    case = Case(
        "op",
        "label",
        [Contender("genfast", wait(0, 1.0)), Contender("eager", wait(0, 2.0))],
        compare=lambda ours, theirs: "" if theirs[0] == 2 * ours[0] else "not twice",
    )
    assert measure(case, QUICK).agrees


def test_forward_backward_returns_outputs_and_gradients():
    x, y = torch.randn(3, requires_grad=True), torch.randn(3)
    run = forward_backward(lambda x, y: (x * y,), [x, y], [torch.ones(3)])
    out, grad = run()
    assert torch.equal(out, x.detach() * y)
    assert not out.requires_grad
    assert torch.equal(grad, y)


def test_saved_bytes_counts_each_storage_once_and_inputs_never():
    x = torch.randn(100, requires_grad=True)
    assert saved_bytes(lambda: x * x, [x]) == 0
    assert saved_bytes(lambda: x * x, []) == 400

    def twice():
        y = x.exp()
        return y * y + y.expand(3, 100).sin()

    assert saved_bytes(twice, [x]) == 400


def test_quartiles():
    assert Quartiles.of([3.0]) == Quartiles(3.0, 3.0, 3.0)
    assert Quartiles.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Quartiles(3.0, 2.0, 4.0)


def test_floor_is_the_slower_of_memory_and_arithmetic():
    contenders = [Contender("genfast", wait(0.001)), Contender("eager", wait(0.001))]
    nbytes, flops = 1 << 22, 1 << 20
    result = measure(Case("op", "label", contenders, bytes_moved=nbytes, flops=flops), QUICK)
    expected = max(nbytes / copy_rate(nbytes, QUICK), flops / flop_rate(QUICK))
    assert result.floor == pytest.approx(expected)
    assert result.floor_kind in {"memory", "arithmetic"}
    assert measure(Case("op", "label", contenders), QUICK).floor is None
