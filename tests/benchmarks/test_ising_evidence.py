import pytest

from benchmarks import bench_ising, ising_evidence
from benchmarks.timing import Options


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.491589, 0.0003, "1.4916(3)"),
        (50.6094, 0.012, "50.609(12)"),
        (310.28, 0.17, "310.28(17)"),
        (2.0, 0.0, "2.000000"),
    ],
)
def test_errors_in_brackets(value, error, text):
    assert ising_evidence.quoted(value, error) == text


def test_the_page_and_the_picture_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(ising_evidence, "SIZES", (3, 4))
    small = {"chains": 8, "burn": 5, "kept": 2, "apart": 2, "runs": 8, "steps": 10, "large": 16, "magnets": 4}
    small |= {"large-burn": 10, "large-kept": 2, "large-apart": 1, "picture": 16}
    ising_evidence.main(["--out", str(tmp_path), *(f"--{name}={n}" for name, n in small.items())])
    page = (tmp_path / "ising.md").read_text()
    assert "| 3 | " in page
    assert "| 4 | " in page
    assert "4 lattices of 16 x 16 spins" in page
    assert (tmp_path / "ising.png").read_bytes().startswith(b"\x89PNG")


def test_contenders_of_the_benchmark_agree():
    for case in bench_ising.cases(Options(quick=True, compile=False)):
        ours = case.contenders[0].compared()
        for other in case.contenders[1:2]:
            assert case.compare(ours, other.compared()) == ""
