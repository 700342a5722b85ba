"""The check of registers and spills."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "cuda_report.py"

LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN2gf4cuda6kernelIfEEvPT_' for 'sm_90'
ptxas info    : Function properties for _ZN2gf4cuda6kernelIfEEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 4224 bytes smem
ptxas info    : Compile time = 12.034 ms
ptxas info    : Compiling entry function '_ZN2gf4cuda6kernelIdEEvPT_' for 'sm_90'
ptxas info    : Function properties for _ZN2gf4cuda6kernelIdEEvPT_
    96 bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 96 bytes cumulative stack size
"""


@pytest.fixture
def report():
    spec = importlib.util.spec_from_file_location("cuda_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_log(tmp_path, stores, loads):
    path = tmp_path / "build.log"
    path.write_text(LOG.format(stores=stores, loads=loads))
    return str(path)


def test_reads_what_ptxas_prints(report, tmp_path, capsys):
    out = tmp_path / "new" / "kernels.json"
    assert report.main(["--log", write_log(tmp_path, 0, 0), "--out", str(out)]) == 0
    first, second = json.loads(out.read_text())
    assert (first["registers"], first["shared"], first["stack"], first["arch"]) == (40, 4224, 0, "sm_90")
    assert (second["registers"], second["shared"], second["stack"], second["spill_stores"]) == (255, 0, 96, 0)
    assert "2 kernels, 1 with a stack frame, no spills" in capsys.readouterr().out


def test_a_spill_fails_unless_listed(report, tmp_path, capsys, monkeypatch):
    log = write_log(tmp_path, 64, 80)
    assert report.main(["--log", log]) == 1
    assert "spills: not listed in ALLOWED_SPILLS" in capsys.readouterr().out
    monkeypatch.setitem(report.ALLOWED_SPILLS, "kernel", "outside the inner loop")
    assert report.main(["--log", log]) == 0
    assert "spills: outside the inner loop" in capsys.readouterr().out


def test_names_are_shortened(report):
    long = "void gf::cuda::(anonymous namespace)::forward_kernel<float, (int)8, (bool)1>(gf::Args<float>, long)"
    assert report.shorten(long) == "forward_kernel<float, 8, 1>"


def test_a_log_without_kernels_is_refused(report, tmp_path):
    path = tmp_path / "empty.log"
    path.write_text("nothing here\n")
    with pytest.raises(SystemExit, match="no kernel found"):
        report.main(["--log", str(path)])
