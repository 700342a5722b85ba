"""The host emulation of CUDA, the launch wrapper and the reductions, by the kernels of csrc/test_simt.cu."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tests" / "csrc" / "test_simt.cu"
CASES = ["indices", "shared", "warp", "reduce", "atomics", "mma", "intrinsics"]
ORDERS = ["forward", "reverse", "random"]
FLAGS = ["-std=c++17", "-O2", f"-I{ROOT / 'csrc'}"]


def compile_with(*command):
    done = subprocess.run([*command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def run(driver, case, **environment):
    return subprocess.run(
        [driver, case], capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """The test kernels, compiled for the host."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    out = tmp_path_factory.mktemp("simt") / "test_simt"
    runtime = sorted((ROOT / "csrc" / "common" / "simt").glob("*.cpp"))
    warnings = ["-Wall", "-Wextra", "-Werror"]
    compile_with(
        compiler, *FLAGS, *warnings, "-DGF_SIMT", "-DGF_BACKEND=simt", "-x", "c++", SOURCE, *runtime, "-o", out
    )
    return out


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", [*CASES, "recovery", "uninitialised"])
def test_case(driver, case, order):
    done = run(driver, case, GENFAST_SIMT_ORDER=order)
    assert done.stdout == f"{case}: ok\n"
    assert done.returncode == 0


def test_a_race_depends_on_the_order(driver):
    outputs = {order: run(driver, "race", GENFAST_SIMT_ORDER=order).stdout.splitlines() for order in ORDERS}
    assert all(lines[-1] == "race: ok" for lines in outputs.values())
    assert outputs["forward"][0] == "63 of 64 read before the write"
    assert outputs["reverse"][0] == "1 of 64 read before the write"
    other_seed = run(driver, "race", GENFAST_SIMT_ORDER="random", GENFAST_SIMT_SEED="2").stdout.splitlines()[0]
    assert len({outputs["forward"][0], outputs["reverse"][0], outputs["random"][0], other_seed}) >= 3


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("fail_deadlock", ["kernel skipped_barrier, block (0, 0, 0)", "deadlock", "62 thread(s)", "__shfl_xor_sync"]),
        ("fail_divergent", ["thread (32, 0, 0)", "reached __syncthreads", "while thread (0, 0, 0) waits"]),
        ("fail_lane", ["lane 0 reads lane 16, which does not take part"]),
        ("fail_mask", ["thread (16, 0, 0)", "the calling lane is not in the mask"]),
        ("fail_mixed", ["lanes of one warp meet at __any_sync", "and at __all_sync"]),
        ("fail_overrun", ["wrote past the end of its 64 bytes of dynamic shared memory"]),
        ("fail_launch", ["kernel index", "launch shape beyond sm_90", "block (1025, 1, 1), 4096 bytes"]),
    ],
)
def test_mistakes_are_found(driver, case, expected):
    done = run(driver, case, GENFAST_SIMT_ORDER="forward")
    assert done.returncode == 1
    for text in expected:
        assert text in done.stdout


def test_unknown_order_is_refused(driver):
    done = run(driver, "indices", GENFAST_SIMT_ORDER="sideways")
    assert done.returncode == 1
    assert 'GENFAST_SIMT_ORDER is "sideways"; it must be "forward", "reverse" or "random"' in done.stdout


def test_shared_memory_limit_is_raised_once_and_never_lowered(tmp_path):
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, out = ROOT / "tests" / "csrc" / "test_launch.cpp", tmp_path / "test_launch"
    fake = f"-I{source.parent / 'fake_cuda'}"
    compile_with(compiler, *FLAGS, fake, "-D__CUDACC__", "-DGF_BACKEND=cuda", "-pthread", source, "-o", out)
    assert subprocess.run([out], capture_output=True, text=True, check=False).stdout == "ok\n"


@pytest.fixture(scope="module")
def cuda_driver(tmp_path_factory):
    """The test kernels, compiled by nvcc."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    out = tmp_path_factory.mktemp("cuda") / "test_simt"
    arch = "native" if torch.cuda.is_available() else "sm_90"
    compile_with("nvcc", *FLAGS, f"-arch={arch}", "-cudart=static", "-DGF_BACKEND=cuda", SOURCE, "-o", out)
    return out


def test_launch_error_names_kernel_and_shape(cuda_driver):
    """Runs with or without a GPU; the error at the end differs."""
    done = run(cuda_driver, "fail_launch")
    assert done.returncode == 1
    assert (
        "fail_launch: CUDA kernel index on device 0, grid (1, 1, 1), block (1025, 1, 1), 4096 bytes of dynamic shared "
        "memory: " in done.stdout
    )
    assert re.search(r"(selecting the device|the launch) failed: \w+", done.stdout)


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES)
def test_on_the_gpu(cuda_driver, case):
    """The same kernels give the same answers on a real device."""
    assert run(cuda_driver, case).stdout == f"{case}: ok\n"


@pytest.mark.cuda
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_missing_architecture_is_named(tmp_path):
    major, minor = torch.cuda.get_device_capability()
    other = "80" if major != 8 else "90"
    out = tmp_path / "test_simt"
    code = f"-gencode=arch=compute_{other},code=sm_{other}"
    compile_with("nvcc", *FLAGS, code, "-DGF_BACKEND=cuda", SOURCE, "-o", out)
    text = run(out, "indices").stdout
    assert "CUDA kernel index on device 0" in text
    assert f"The device is sm_{major}{minor}; this build of genfast has code for sm_{other}." in text
    assert f"GENFAST_CUDA_ARCHS={major}{minor}" in text
