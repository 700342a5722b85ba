"""A pytest plugin for scripts/gpu_check.py: `-p tests.gpu_plugin`.

- After the time `GENFAST_TESTS_UNTIL` tests are skipped, so that a run that is too long ends with its report.
- A test that takes longer than `GENFAST_TEST_LIMIT` seconds, or hangs, ends its process.
- A process whose GPU refuses all further work, as after an illegal access, ends too; pytest-xdist starts another.
- With `GENFAST_TRACE_KERNELS` the names of genfast's kernels that run on the GPU are noted.
- float32 comes before the other types.

Notes are lines of JSON in the file `GENFAST_TEST_NOTES`.
"""

import faulthandler
import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

UNTIL = float(os.environ.get("GENFAST_TESTS_UNTIL", "inf"))
LIMIT = float(os.environ.get("GENFAST_TEST_LIMIT", "0"))
STDERR = os.fdopen(os.dup(sys.__stderr__.fileno()), "w")  # before pytest captures it
NOTES = os.environ.get("GENFAST_TEST_NOTES", os.devnull)
tracing = "GENFAST_TRACE_KERNELS" in os.environ


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "float32" not in item.name)


def pytest_runtest_setup(item):
    if time.time() > UNTIL:
        pytest.skip("no time left")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    if LIMIT <= 0:
        return (yield)
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=STDERR)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def ours(names):
    """Those of the kernels that are genfast's: demangled ones, or not."""
    return sorted({name for name in names if "gf::" in name or (name.startswith("_Z") and "2gf" in name)})


def note(**event):
    with Path(NOTES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def untraced(item, error):
    global tracing
    tracing = False
    note(test=item.nodeid, untraced=f"{type(error).__name__}: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if not tracing:
        return (yield)
    try:
        profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        profile.start()
    except Exception as error:  # noqa: BLE001 (tracing must not cost a test)
        untraced(item, error)
        return (yield)
    try:
        return (yield)
    finally:
        try:
            profile.stop()
            events = profile.profiler.kineto_results.events()
            on_gpu = [event.name() for event in events if event.device_type() == torch.autograd.DeviceType.CUDA]
            note(test=item.nodeid, kernels=ours(on_gpu))
        except Exception as error:  # noqa: BLE001
            untraced(item, error)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and call.excinfo is not None and item.get_closest_marker("cuda") and device_lost():
        note(test=item.nodeid, lost=call.excinfo.exconly())
        if hasattr(item.config, "workerinput"):  # a worker of xdist
            os._exit(3)
        pytest.exit(f"the GPU is lost to this process after {item.nodeid}", returncode=3)
    return report


def device_lost():
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
