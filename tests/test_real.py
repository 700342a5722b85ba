"""Accuracy of the vector functions of csrc/common/{real,normal}.h, compiled for every instruction set and run here."""

import pathlib
import shutil
import subprocess

import pytest

from tests.conftest import CPU_TARGETS

CSRC = pathlib.Path(__file__).parents[1] / "csrc"
FLAGS = {
    "baseline": [],
    "avx2": "-mavx2 -mfma -mf16c -mbmi2".split(),
    "avx512": "-mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512".split(),
}
# ulp; abs and sqrt are exact by IEEE 754. Without fused multiply-add one more rounding enters.
LIMIT = {
    "abs": 0.5,
    "sqrt": 0.5,
    "exp": 2,
    "expm1": 3,
    "log": 3,
    "log1p": 3,
    "tanh": 4,
    "atan": 3,
    "softplus": 4,
    "sigmoid": 3,
    "normal_tail": 5,
    "normal_tail_quantile": 3,
}


ISAS = [t for t in CPU_TARGETS if t != "simt"]
PAIRS = [("fast", isa) for isa in ISAS] + [
    # Without contraction every instruction set does the same operations.
    pytest.param("off", isa, marks=[] if isa == ISAS[0] else [pytest.mark.slow])
    for isa in ISAS
]


@pytest.mark.parametrize(("contract", "isa"), PAIRS)
def test_errors_in_ulp(isa, contract, tmp_path):
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler")
    program = tmp_path / "test_real"
    source = pathlib.Path(__file__).parent / "csrc" / "test_real.cpp"
    command = [compiler, "-std=gnu++17", "-O2", "-Wno-psabi", f"-DGF_BACKEND={isa}", f"-ffp-contract={contract}"]
    subprocess.run([*command, *FLAGS[isa], f"-I{CSRC}", source, "-o", program], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 26
    for line in lines:
        name, kind, error, where = line.split()
        assert float(error) <= (0 if kind == "exact" else LIMIT[name]), f"{name} of {kind} at {where}: {error} ulp"
