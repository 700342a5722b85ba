import dataclasses
import time

import pytest
import torch

from benchmarks import baselines, bench_calls, bench_rbm, timing
from benchmarks.floor import copy_rate, flop_rate
from benchmarks.memory import saved_bytes
from benchmarks.timers import CpuTimer
from benchmarks.timing import Case, Contender, Options, Quartiles, forward_backward, measure

QUICK = Options(threads=1, quick=True)


class Work:
    """Work whose duration is what we say, so that a busy machine does not matter."""

    def __init__(self, seconds, value=1.0):
        self.seconds, self.value, self.calls = seconds, value, 0

    def __call__(self):
        self.calls += 1
        return (torch.tensor([self.value]),)


@pytest.fixture
def clock(monkeypatch):
    """Makes the timer report the durations of Work."""

    class Timer:
        def __call__(self, run, repeats):
            for _ in range(repeats):
                run()
            return run.seconds

        def wait(self):
            pass

    monkeypatch.setattr(timing, "timer_for", lambda _, host: Timer())


@pytest.mark.usefixtures("clock")
def test_ratios_are_those_of_the_times():
    contenders = [Contender("genfast", Work(0.002)), Contender("eager", Work(0.008)), Contender("fast", Work(0.001))]
    result = measure(Case("op", "label", contenders), QUICK)
    assert result.agrees
    assert result.rounds >= QUICK.min_rounds
    assert [row.seconds.median for row in result.rows] == [0.002, 0.008, 0.001]
    assert result.rows[0].speedup is None
    assert result.rows[1].speedup == Quartiles(4.0, 4.0, 4.0)
    assert result.rows[2].speedup == Quartiles(0.5, 0.5, 0.5)
    # A measurement lasts long enough, however fast the contender is.
    assert contenders[2].run.calls >= result.rounds * QUICK.slice_seconds / 0.001


def test_the_timer_measures_one_call():
    class Counted:
        calls = 0

        def __call__(self):
            self.calls += 1
            time.sleep(0.01)

    run = Counted()
    assert CpuTimer()(run, 3) >= 0.01
    assert run.calls == 3


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
        [Contender("genfast", Work(0.001, 1.0)), Contender("eager", Work(0.001, 2.0))],
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


@pytest.mark.usefixtures("clock")
def test_a_case_may_be_too_slow_to_repeat():
    slow, fast = Work(100.0), Work(1.0)
    result = measure(
        Case("op", "label", [Contender("genfast", fast, once=True), Contender("x", slow, once=True)]), QUICK
    )
    assert slow.calls == fast.calls == 1 + result.rounds


def test_floor_is_the_slower_of_memory_and_arithmetic():
    contenders = [Contender("genfast", Work(0.001)), Contender("eager", Work(0.001))]
    nbytes, flops = 1 << 22, 1 << 20
    result = measure(Case("op", "label", contenders, bytes_moved=nbytes, flops=flops), QUICK)
    machine = QUICK.device, QUICK.threads
    expected = max(nbytes / copy_rate(nbytes, *machine), flops / flop_rate(*machine))
    assert result.floor == pytest.approx(expected)
    assert result.floor_kind in {"memory", "arithmetic"}
    assert measure(Case("op", "label", contenders), QUICK).floor is None


def test_preparation_precedes_every_measurement():
    ready = []
    contenders = [
        Contender("genfast", lambda: (ready.pop(),), once=True, prepare=lambda: ready.append(torch.tensor([1.0]))),
        Contender("eager", lambda: (torch.tensor([1.0]),), once=True),
    ]
    result = measure(Case("op", "label", contenders), QUICK)
    assert result.agrees
    assert not ready


def test_small_calls_agree_with_what_they_replace(monkeypatch):
    monkeypatch.setattr(bench_rbm, "REPEATS", 50)
    torch.set_num_threads(1)
    found = list(bench_calls.cases(QUICK))
    assert {case.op for case in found} >= {"affine_coupling", "planar_flow", "rbm_gibbs", "RBM training"}
    for case in found:
        assert case.small
        assert not any(row.problem for row in timing.first_calls(case, CpuTimer())), case.op
    other = next(case for case in found if case.op == "RBM training")
    wrong = dataclasses.replace(
        other.contenders[1], compared=lambda: [g + 0.2 for g in other.contenders[0].compared()]
    )  # fmt: skip
    rows = timing.first_calls(dataclasses.replace(other, contenders=[other.contenders[0], wrong]), CpuTimer())
    assert "gradient of W: differs" in rows[1].problem


def test_a_short_call_is_timed_over_many(monkeypatch):
    """The number of calls a measurement comes from twenty, where one takes too little to tell."""
    asked = []

    class Timer:
        def __call__(self, run, repeats):
            asked.append(repeats)
            return 1e-6 if repeats == 1 else 1e-4

        def wait(self):
            pass

    monkeypatch.setattr(timing, "timer_for", lambda _, host: Timer() if host else None)
    work = [Contender("genfast", Work(1.0)), Contender("eager", Work(1.0))]
    measure(Case("op", "label", work, small=True), QUICK)
    assert asked[:6] == [3, 1, 20, 3, 1, 20]
    assert set(asked[6:]) == {round(QUICK.slice_seconds / 1e-4)}


def test_what_is_not_installed_is_named(capsys, monkeypatch):
    assert baselines.peer("no_such_library.part") is None
    assert "no_such_library is not installed and is left out" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError, match=r"genfast\.no_such_part"):
        baselines.peer("genfast.no_such_part")

    def needs_another(name):
        raise ImportError("needs it") from ModuleNotFoundError("no", name="lightning_fabric")

    monkeypatch.setattr(baselines.importlib, "import_module", needs_another)
    assert baselines.peer("genfast.cli") is None
    assert "lightning_fabric is not installed" in capsys.readouterr().err
