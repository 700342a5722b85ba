import subprocess
import sys
import warnings

import pytest
import torch

import genfast
from genfast import _backend, _native, ops
from tests.ops.test_planar import make


def arguments():
    return make((4, 2, 3), torch.Generator().manual_seed(0))


def test_backend_is_a_context_and_a_default():
    assert genfast.get_backend() == "native"
    with genfast.backend("reference"):
        assert genfast.get_backend() == "reference"
        with genfast.backend("native"):
            assert genfast.get_backend() == "native"
    genfast.set_backend("reference")
    assert genfast.get_backend() == "reference"
    genfast.set_backend("native")


def test_backend_is_restored_after_an_error():
    with pytest.raises(KeyError), genfast.backend("reference"):
        raise KeyError
    assert genfast.get_backend() == "native"


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match=r"^backend: got 'cuda', want one of 'native', 'reference'$"):
        genfast.set_backend("cuda")
    assert genfast.get_backend() == "native"


def test_reference_backend_does_not_touch_the_kernels(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a kernel was called")

    monkeypatch.setitem(_native.__dict__, "planar_forward", refuse)
    with genfast.backend("reference"):
        ops.planar_flow(**arguments())
    with pytest.raises(AssertionError, match="a kernel was called"):
        ops.planar_flow(**arguments())


def test_other_devices_fall_back_with_one_warning(monkeypatch):
    """No such device is at hand; what decides is the device's type."""

    class Elsewhere:
        device = torch.device("mps")
        is_cpu = False

    monkeypatch.setattr(_backend, "_warned", set())
    with pytest.warns(RuntimeWarning, match="no kernels for 'mps' devices; its ops run as plain PyTorch"):
        assert _backend.use_reference(Elsewhere())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backend.use_reference(Elsewhere())


def test_meta_tensors_have_shapes_only():
    x, log_det = ops.planar_flow(**{k: v.to("meta") for k, v in arguments().items()})
    assert x.shape == (4, 2)
    assert log_det.shape == (4,)


def test_unknown_cpu_target_names_the_known_ones():
    with pytest.raises(ValueError, match="CPU target 'mmx' cannot be used here; this build has: auto, baseline"):
        _native.load().set_cpu_target("mmx")


def test_cpu_target_from_the_environment():
    code = "from genfast import _native; print(_native.info()['CPU kernels'])"
    out = subprocess.run(
        [sys.executable, "-c", code], env={"GENFAST_CPU_TARGET": "baseline"}, capture_output=True, text=True, check=True
    )
    assert out.stdout.startswith("baseline (of ")


def test_missing_extension_explains_itself():
    """`import genfast` works without the extension; the first use of a kernel says what to do."""
    code = (
        "import sys; sys.modules['genfast._C'] = None\n"
        "import torch, genfast\n"
        "from genfast import _native\n"
        "print(_native.info()['extension'])\n"
        "z = torch.zeros(1, 2)\n"
        "with genfast.backend('reference'): genfast.ops.planar_flow(z, z, z, z[0, :1])\n"
        "genfast.ops.planar_flow(z, z, z, z[0, :1])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert out.stdout.startswith("NOT LOADED")
    last = out.stderr.strip().splitlines()[-1]
    assert "genfast's compiled extension does not load" in last
    assert "pip install --force-reinstall --no-deps genfast" in last
    assert 'genfast.set_backend("reference")' in last


def test_the_binding_refuses_what_python_let_through():
    """The kernels' own checks: a wrong shape is an error with both shapes, never a read past the end."""
    t = arguments()
    out = torch.ops.genfast.planar_forward.default
    with pytest.raises(ValueError, match=r"b: expected float64 \[3\] on the CPU, got float64 \[2\] on the CPU"):
        out(t["z"], t["w"], t["u"], t["b"][:2], False, False)
    with pytest.raises(ValueError, match=r"u: expected float64 \[3, 2\] on the CPU, got float32 \[3, 2\] on the CPU"):
        out(t["z"], t["w"], t["u"].float(), t["b"], False, False)


def test_info_answers_what_a_bug_report_needs():
    facts = _native.info()
    for key in ("genfast", "python", "torch", "compiler", "CPU kernels", "OpenMP", "CUDA kernels", "torch threads"):
        assert facts[key], key


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_openmp_is_that_of_torch():
    ops.planar_flow(**arguments())
    # scikit-learn, where another test has imported it, brings a runtime of its own.
    paths = [path for path in _native.info()["OpenMP"].split(", ")[1:] if "scikit_learn" not in path]
    assert len(paths) == 1, f"two OpenMP runtimes in one process: {paths}"
    torch.set_num_threads(1)
    assert _native.load().build_info()["threads"] == 1
    torch.set_num_threads(2)
    assert _native.load().build_info()["threads"] == 2
