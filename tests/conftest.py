"""Fixtures shared by all tests: the backend a test runs on."""

import contextlib

import pytest
import torch

import genfast
from genfast import _native
from tests.harness import parametrize

CPU_TARGETS = list(_native.load().build_info()["cpu_targets"])
BACKENDS = ["reference", *CPU_TARGETS, pytest.param("cuda", marks=pytest.mark.cuda)]


class Backend:
    """A backend under test: where its tensors lie, and how to make the ops use it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.device = torch.device("cuda" if name == "cuda" else "cpu")
        self.compiled = name != "reference"

    @contextlib.contextmanager
    def use(self):
        if self.name in CPU_TARGETS:
            _native.load().set_cpu_target(self.name)
        try:
            with genfast.backend("native" if self.compiled else "reference"):
                yield self
        finally:
            _native.load().set_cpu_target("auto")


def missing_backends() -> dict[str, str]:
    """The backends that tests cannot run on here, each with the reason."""
    reasons = {}
    for name in ("avx2", "avx512"):
        if name not in CPU_TARGETS:
            reasons[name] = "not built, or not of this processor"
    if "simt" not in CPU_TARGETS:
        reasons["simt"] = "not built: GENFAST_SIMT=ON"
    if not _native.has_cuda():
        reasons["cuda"] = "not built: GENFAST_CUDA=ON"
    elif not torch.cuda.is_available():
        reasons["cuda"] = "no GPU"
    return reasons


def pytest_report_header() -> list[str]:
    missing = missing_backends()
    run = ["reference", *CPU_TARGETS, *([] if "cuda" in missing else ["cuda"])]
    lines = [f"backends tested here: {', '.join(run)}"]
    if missing:
        lines.append(f"NOT tested here: {', '.join(f'{name} ({why})' for name, why in missing.items())}")
    return lines


def pytest_terminal_summary(terminalreporter) -> None:
    """Once more at the end, and with -q, which has no header."""
    if missing := missing_backends():
        terminalreporter.write_line(f"backends not tested here: {', '.join(missing)}")


def pytest_generate_tests(metafunc):
    parametrize(metafunc)


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and "cuda" in missing_backends():
        pytest.skip("no GPU here, or a build without CUDA kernels")


@pytest.fixture(params=BACKENDS)
def backend(request):
    with Backend(request.param).use() as b:
        yield b


@pytest.fixture(params=[p for p in BACKENDS if p != "reference"])
def kernels(request):
    """Every backend that runs compiled kernels."""
    with Backend(request.param).use() as b:
        yield b


@pytest.fixture
def native():
    """The kernels of the best instruction set: for properties of the Python layer, the same for all backends."""
    with Backend([t for t in CPU_TARGETS if t != "simt"][-1]).use() as b:
        yield b


@pytest.fixture(autouse=True)
def _same_state_for_every_test():
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
