import csv
import os
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import plots, report, runner
from benchmarks.timing import Quartiles, Result, Row

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "gpu": None,
    "processor": "Some CPU",
    "threads": 2,
    "torch": "2.13.0",
    "instruction_set": "avx2",
}


def around(x):
    return Quartiles(x, 0.9 * x, 1.1 * x)


RESULTS = [
    Result(
        "planar_flow",
        "K=32",
        [
            Row("genfast", 0.001, around(0.001), saved=1000),
            Row("eager", 0.02, around(0.02), around(20.0), target=10.0, saved=5000, saved_target=10.0),
            Row("torch.compile", 30.0, around(0.0005), around(0.5), target=4.0),
        ],
        rounds=9,
        floor=0.0005,
        floor_kind="memory",
    ),
    Result("spline", "bad", [Row("genfast", 0.1), Row("nflows", 0.2, problem="output 0 differs")]),
]


def test_saved_results_come_back_the_same(tmp_path):
    json_path, csv_path = report.save(RESULTS, MACHINE, tmp_path / "new", "cpu")
    assert report.load(json_path) == (RESULTS, MACHINE)
    with csv_path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["contender"] for row in rows] == ["genfast", "eager", "torch.compile", "genfast", "nflows"]
    assert float(rows[1]["speedup"]) == 20.0
    assert rows[4]["problem"] == "output 0 differs"


def test_lost_cases_and_missed_goals_are_printed_like_others():
    text = report.format_case(RESULTS[0])
    assert "20x (18x to 22x)" in text
    assert "10x reached" in text
    assert "0.5x (0.45x to 0.55x)" in text
    assert "4x MISSED" in text
    assert "4.88 KiB (5x, goal 10x MISSED)" in text
    summary = report.format_summary(RESULTS)
    assert "speed goals reached: 1 of 2" in summary
    assert "torch.compile is faster than genfast" in summary
    assert "saved bytes vs eager" in summary
    assert "DISAGREES: spline bad: nflows: output 0 differs" in summary


def test_markdown_goes_between_the_markers(tmp_path):
    table = report.markdown(RESULTS, MACHINE)
    assert "0.5x (0.45x to 0.55x) | 4x MISSED" in table
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.update_document(path, table)
        assert path.read_text() == f"before\n{report.BEGIN}\n{table}\n{report.END}\nafter\n"
    path.write_text("no markers")
    with pytest.raises(ValueError, match="has no line"):
        report.update_document(path, table)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ns"), (1.5e-7, "150 ns"), (2e-6, "2 us"), (0.0123, "12.3 ms"), (1.0, "1 s"), (1234.5, "1234 s")],
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    assert plots.draw(RESULTS, MACHINE, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not plots.draw(RESULTS[1:], MACHINE, tmp_path / "b.png")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nonsense"], "no benchmark is called 'nonsense'"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--device", "toaster"], "--device must be cpu, cuda or cuda:N"),
        (["--device", "meta"], "--device must be cpu, cuda or cuda:N"),
        (["--load", "absent.json"], "cannot read results"),
        (["--load", os.devnull + "/absent.jsonl"], "cannot read results"),
        (["--out", os.devnull], "cannot keep results in"),
    ],
)
def test_bad_arguments_are_one_sentence(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_exit_code_says_whether_outputs_agree(tmp_path, capsys):
    good, _ = report.save(RESULTS[:1], MACHINE, tmp_path, "good")
    bad, _ = report.save(RESULTS, MACHINE, tmp_path, "bad")
    assert command.main(["--load", str(good)]) == 0
    assert command.main(["--load", str(bad)]) == 1
    assert "DISAGREES" in capsys.readouterr().out


def test_a_benchmark_runs_from_data_to_table(tmp_path, capsys):
    code = command.main(["coupling", "--quick", "--no-compile", "--threads", "1", "--out", str(tmp_path)])
    assert code == 0
    assert "affine_coupling" in capsys.readouterr().out
    results, machine = report.load(tmp_path / "cpu.json")
    assert machine["quick"]
    assert [row.name for row in results[0].rows] == ["genfast", "eager"]
    assert results[0].rows[1].seconds.median > 0


def test_nothing_saved_is_less_than_any_part():
    nothing = Row("genfast", 0.1, around(0.1), saved=0)
    something = Row("eager", 0.1, around(0.1), around(1.0), saved=2048, saved_target=10.0)
    text = report.format_case(Result("op", "label", [nothing, something]))
    assert "2 KiB (genfast 0 B, goal 10x reached)" in text


@pytest.mark.parametrize("before", [None, "/somewhere"])
def test_first_calls_meet_an_empty_compile_cache(before, monkeypatch):
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with runner.empty_compile_cache():
        folder = Path(os.environ[name])
        assert folder.is_dir()
        assert not list(folder.iterdir())
    assert not folder.exists()
    assert os.environ.get(name) == before
