"""What the build promises: one visible symbol, no CUDA library at run time, torch's own OpenMP, portable objects."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from genfast import _native

ROOT = Path(__file__).parents[1]
CSRC = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu"})
KERNELS = [p for p in CSRC if p.suffix == ".cu"]
EXTENSION = Path(_native.load().__file__)


def test_the_extension_is_that_of_the_sources():
    """Tests of kernels that were built from other sources tell nothing."""
    assert _native.load().build_info()["sources"] == _native.source_hash(), "run scripts/dev_build.sh"


def test_a_stale_extension_says_so(monkeypatch):
    monkeypatch.setattr(_native, "source_hash", lambda: "another")
    with pytest.warns(RuntimeWarning, match=r"were built from other sources than this checkout's csrc/ holds"):
        _native.load.__wrapped__()
    assert "STALE" in _native.info()["extension"]


def test_two_extensions_that_differ_are_refused(tmp_path):
    """Which of them runs would be anybody's guess."""
    copy = tmp_path / EXTENSION.name
    shutil.copy(EXTENSION, copy)
    code = f"import genfast; genfast.__path__.append({str(tmp_path)!r}); from genfast import _native; _native.load()"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0  # twice the same does no harm
    copy.write_bytes(copy.read_bytes() + b"\0")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "lies in 2 places, and the files differ" in done.stderr
    assert str(copy) in done.stderr
    assert str(EXTENSION.resolve()) in done.stderr


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
@pytest.mark.parametrize(
    ("environment", "argument", "heard"), [("nonsense", None, "nonsense"), ("OFF", "-DGENFAST_CUDA=other", "other")]
)
def test_options_come_from_the_environment(tmp_path, environment, argument, heard):
    """An explicit -D wins."""
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), *([argument] if argument else [])]
    done = subprocess.run(
        command, env={**os.environ, "GENFAST_CUDA": environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"GENFAST_CUDA: got '{heard}', want AUTO, ON or OFF" in done.stderr


def lines_with(pattern, files):
    """The lines that match, comments aside."""
    found = []
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(pattern, line.split("//")[0]):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


def output_of(*command):
    return subprocess.run([*command], capture_output=True, text=True, timeout=120, check=True).stdout


def test_every_op_with_a_cpu_kernel_has_a_cuda_kernel():
    assert KERNELS
    ops = [p for p in CSRC if p.is_relative_to(ROOT / "csrc" / "ops")]
    assert {p.parent for p in KERNELS} == {p.parent for p in ops if p.name.endswith("_cpu.cpp")}


def test_kernels_are_launched_by_launch_only():
    launch = ROOT / "csrc" / "common" / "launch.cuh"
    assert lines_with(r"<<<|cudaLaunchKernel", [p for p in CSRC if p != launch]) == []
    assert lines_with(r"cudaLaunchKernel", [launch])


def test_kernels_neither_allocate_nor_synchronise():
    """A call can be captured in a CUDA graph, and never waits for the device."""
    forbidden = r"cuda(Malloc|Free|Memcpy|Memset|DeviceSynchronize|StreamSynchronize|EventSynchronize)\w*\s*\("
    assert lines_with(forbidden, CSRC) == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("source", KERNELS, ids=lambda p: p.stem)
def test_kernels_compile_for_the_host(source):
    flags = ["-std=gnu++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-ignored-attributes", "-Werror"]
    command = ["g++", *flags, "-DGF_SIMT", "-DGF_BACKEND=simt", f"-I{ROOT / 'csrc'}", "-x", "c++", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_only_the_entry_point_is_visible():
    names = [line.split()[-1] for line in output_of("nm", "-D", "--defined-only", EXTENSION).splitlines()]
    assert names == ["PyInit__C"]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_needs_no_cuda_and_no_torch_library():
    needed = re.findall(r"NEEDED.*\[(.*)\]", output_of("readelf", "-d", EXTENSION))
    assert any(name.startswith("libc.") for name in needed)
    assert [name for name in needed if re.search(r"cuda|torch|c10|python", name)] == []
    assert "RPATH" not in output_of("readelf", "-d", EXTENSION)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_one_openmp_runtime():
    """The one that torch has loaded, so that torch.set_num_threads holds and threads are not doubled."""
    if not _native.load().build_info()["openmp"]:
        pytest.skip("built without OpenMP")
    code = (
        "from genfast import _native; import torch\n"
        "torch.ones(1 << 20).exp(); _native.load()\n"
        "print(*{l.split()[-1] for l in open('/proc/self/maps') if 'libgomp' in l or 'libomp' in l}, sep='\\n')\n"
    )
    runtimes = output_of(sys.executable, "-c", code).splitlines()
    assert len(runtimes) == 1, runtimes
    torch_first = "import torch; print(*{l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l}, sep='\\n')"
    assert runtimes == output_of(sys.executable, "-c", torch_first).splitlines()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc")
def test_short_calls_start_no_threads():
    """A region of OpenMP costs more than they take; results do not depend on it."""
    if not _native.load().build_info()["openmp"]:
        pytest.skip("built without OpenMP")
    code = (
        "import os, torch; from genfast import _native; torch.set_num_threads(2)\n"
        "def threads(n, k):\n"
        "    z, w = torch.ones(n, 2), torch.zeros(k, 2)\n"
        "    _native.planar_forward(z, w, w, w[:, 0].contiguous(), False, z.clone(), z[:, 0].clone())\n"
        "    return len(os.listdir('/proc/self/task'))\n"
        "print(threads(1, 1), threads(1024, 2), threads(4096, 64))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    none, short, long = map(int, done.stdout.split())
    assert short == none
    assert long > none


OBJECTS = sorted((ROOT / "build").glob("*/CMakeFiles/genfast_avx*.dir/**/*.o")) if shutil.which("nm") else []


@pytest.mark.skipif(not OBJECTS, reason="no object files of a build in build/")
def test_instruction_sets_share_no_function():
    """A function that the linker may merge with its twin of another instruction set crashes older processors."""
    shared = []
    for path in OBJECTS:
        isa = re.search(r"genfast_(avx\w+)\.dir", str(path))[1]
        for line in output_of("nm", "--defined-only", path).splitlines():
            kind, name = line.split()[-2:]
            if kind == "W" and isa not in name:
                shared.append(f"{path.name} ({isa}): {name}")
    assert shared == []


def test_build_report(tmp_path):
    """Seconds of the last compilation of each object that the build still has."""
    from scripts import build_report

    objects = ["genfast_avx2.dir/csrc/ops/planar/planar_cpu.cpp.o", "_C.dir/csrc/ops/planar/planar_args.cpp.o"]
    (tmp_path / "build.ninja").write_text("".join(f"build CMakeFiles/{o}: CXX_COMPILER x\n" for o in objects))
    log = ["# ninja log v5", *(f"0\t{t}\t0\tCMakeFiles/{objects[0]}\tx" for t in (9000, 1500))]
    log += [
        f"1000\t1250\t0\tCMakeFiles/{objects[1]}\tx",
        "0\t77000\t0\tCMakeFiles/_C.dir/csrc/ops/planar/gone.cpp.o\tx",
    ]
    (tmp_path / ".ninja_log").write_text("\n".join(log) + "\n")
    assert build_report.seconds(tmp_path) == {("planar", "avx2"): 1.5, ("planar", "binding"): 0.25}
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite><testcase classname="tests.ops.test_rbm_gibbs" time="1.5"/>'
        '<testcase classname="tests.ops.test_rbm_energy.TestX" time="2"/><testcase classname="tests.cli.a" time="4"/>'
        "</testsuite></testsuites>"
    )
    assert build_report.test_seconds(tmp_path / "tests.xml") == {"rbm": 3.5, "(others)": 4.0}
